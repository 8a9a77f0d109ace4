"""TensorFlow Serving's messages and stubs, imported without TensorFlow where nobody has imported that yet.

``predict_pb2`` imports ``tensorflow.core.framework.tensor_pb2``, and Python runs all of ``tensorflow/__init__.py``
first: seconds, for files of plain messages. A client does without: while the messages are imported an empty package
stands in for ``tensorflow``, with its folder as path. A later ``import tensorflow`` finds the same messages.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterator


@contextlib.contextmanager
def _a_stand_in_for_tensorflow() -> Iterator[None]:
    if "tensorflow" in sys.modules or (spec := importlib.util.find_spec("tensorflow")) is None:
        yield
        return
    stand_in = types.ModuleType("tensorflow")
    stand_in.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["tensorflow"] = stand_in
    try:
        yield
    finally:
        if sys.modules.get("tensorflow") is stand_in:
            del sys.modules["tensorflow"]


# gRPC reads this when it is first imported. A kernel forks at each "!command", and gRPC would complain under the cell.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

with _a_stand_in_for_tensorflow():
    from tensorflow.core.example import example_pb2 as example_pb2
    from tensorflow.core.framework import tensor_pb2 as tensor_pb2
    from tensorflow.core.framework import types_pb2 as types_pb2
    from tensorflow.core.protobuf import meta_graph_pb2 as meta_graph_pb2
    from tensorflow_serving.apis import classification_pb2 as classification_pb2
    from tensorflow_serving.apis import get_model_metadata_pb2 as get_model_metadata_pb2
    from tensorflow_serving.apis import get_model_status_pb2 as get_model_status_pb2
    from tensorflow_serving.apis import inference_pb2 as inference_pb2
    from tensorflow_serving.apis import input_pb2 as input_pb2
    from tensorflow_serving.apis import model_management_pb2 as model_management_pb2
    from tensorflow_serving.apis import model_pb2 as model_pb2
    from tensorflow_serving.apis import model_service_pb2_grpc as model_service_pb2_grpc
    from tensorflow_serving.apis import predict_pb2 as predict_pb2
    from tensorflow_serving.apis import prediction_log_pb2 as prediction_log_pb2
    from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_service_pb2_grpc
    from tensorflow_serving.apis import regression_pb2 as regression_pb2
    from tensorflow_serving.config import model_server_config_pb2 as model_server_config_pb2
