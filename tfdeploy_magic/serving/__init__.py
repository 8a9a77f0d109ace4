"""TensorFlow Serving's API over models on disk: engine, versions, REST and gRPC, the server, and its client."""
