#!/bin/sh
# What the official tensorflow/serving image starts with; exec lets "docker stop" reach the server.
exec tfdeploy-serve --host=0.0.0.0 --port=8500 --rest_api_port=8501 --enable_grpc_healthcheck_service \
    --model_name="${MODEL_NAME}" --model_base_path="${MODEL_BASE_PATH}/${MODEL_NAME}" "$@"
