"""The gRPC door: TensorFlow Serving's PredictionService and ModelService, and what may stand beside them on a port."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tfdeploy_magic.serving import inference, tensors
from tfdeploy_magic.serving.calls import Models, Servable
from tfdeploy_magic.serving.protos import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)
from tfdeploy_magic.serving.router import ARM_HEADER, KEY_HEADER, Router, Routing, in_header
from tfdeploy_magic.serving.status import Code, Refusal, invalid

NAMES = ("tensorflow.serving.PredictionService", "tensorflow.serving.ModelService")
"""The services that the health service tells about."""

Observe = Callable[[str, str, str, float, int, Routing], None]
"""Told of each request: API, model, status ("OK", "NOT_FOUND" ...), microseconds, number of examples, who answered."""

Record = Callable[[Any], None]
"""Given the ``PredictionLog`` of each request that was answered."""

_MOST_MESSAGE = 1024
_PROFILER = "/tensorflow.ProfilerService/"
_CODES = {code.value[0]: code for code in grpc.StatusCode}

_log = logging.getLogger(__name__)


def register(
    server: Any,
    models: Models,
    *,
    check_method_name: bool = False,
    tensor_content: bool = False,
    health: bool = False,
    profiler: bool = False,
    router: Router | None = None,
    observe: Observe = lambda *_: None,
    record: Record | None = None,
) -> None:
    """Add TensorFlow Serving's services to a gRPC server that is not started yet.

    Args:
        server: The ``grpc.Server``.
        models: What is served.
        check_method_name: Refuse to classify by a signature whose method is not classify, and so on.
        tensor_content: Answer Predict in ``tensor_content`` and not in ``float_val`` and its like.
        health: Add ``grpc.health.v1.Health``, SERVING from now on.
        profiler: Add ``tensorflow.ProfilerService``. The first request to it starts TensorFlow's own profiler server,
            which listens on another port, and on every interface.
        router: Knows how the requests of models are split.
        observe: Told of each Predict, Classify, Regress and MultiInference.
        record: Given the log of each of those that was answered.
    """
    predictions = _Predictions(models, router or Router(), check_method_name, tensor_content)
    noted = {
        method: functools.partial(_handle, answer, functools.partial(_note, method, log, observe, record))
        for method, answer, log in (
            ("Predict", predictions.predict, "predict_log"),
            ("Classify", predictions.classify, "classify_log"),
            ("Regress", predictions.regress, "regress_log"),
            ("MultiInference", predictions.multi_inference, "multi_inference_log"),
        )
    }
    metadata = functools.partial(_handle, _unrouted(predictions.metadata), _unnoted)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        SimpleNamespace(**noted, GetModelMetadata=metadata), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(
        SimpleNamespace(
            GetModelStatus=functools.partial(_handle, _unrouted(functools.partial(_statuses, models)), _unnoted),
            HandleReloadConfigRequest=functools.partial(
                _handle, _unrouted(functools.partial(_reload, models)), _unnoted
            ),
        ),
        server,
    )
    if health:
        servicer = grpc_health.HealthServicer()
        for name in NAMES:
            servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if profiler:
        server.add_generic_rpc_handlers((_Profiler(),))


@dataclass(frozen=True)
class _Predictions:
    """What PredictionService answers."""

    models: Models
    router: Router
    check_method_name: bool
    tensor_content: bool

    def predict(self, request: Any, routing: Routing) -> Any:
        with self._asked(request, routing) as servable:
            routing.version = servable.version
            call = inference.predict_call(servable.signatures, request, check_method_name=self.check_method_name)
            answers = servable.answer(call)
            told = servable.signatures[call.signature].outputs
        response = predict_pb2.PredictResponse()
        _tell(response.model_spec, servable, call.signature)
        for alias, array in answers.items():
            proto = tensors.proto_of(array, as_content=self.tensor_content, number=told[alias].dtype)
            response.outputs[alias].CopyFrom(proto)
        return response

    def classify(self, request: Any, routing: Routing) -> Any:
        response = classification_pb2.ClassificationResponse()
        answers, count = self._by_examples(inference.classify_call, request, response, routing)
        response.result.CopyFrom(inference.classification(answers, count))
        return response

    def regress(self, request: Any, routing: Routing) -> Any:
        response = regression_pb2.RegressionResponse()
        answers, count = self._by_examples(inference.regress_call, request, response, routing)
        response.result.CopyFrom(inference.regression(answers, count))
        return response

    def multi_inference(self, request: Any, routing: Routing) -> Any:
        response = inference_pb2.MultiInferenceResponse()
        with self._use(_spec_of(request), routing) as servable:
            routing.version = servable.version
            calls = inference.multi_calls(servable.signatures, request, check_method_name=self.check_method_name)
            answers = [servable.answer(call) for call in calls]
        for task, call, answer in zip(request.tasks, calls, answers, strict=True):
            result = inference.multi_result(task.method_name, answer, len(call.inputs["inputs"]))
            _tell(result.model_spec, servable, call.signature)
            response.results.append(result)
        return response

    def metadata(self, request: Any) -> Any:
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        signatures = get_model_metadata_pb2.SignatureDefMap()
        with self.models.use(*_choice(request.model_spec)) as servable:
            _tell(response.model_spec, servable)
            for key, signature in servable.signatures.items():
                signatures.signature_def[key].CopyFrom(signature)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def _by_examples(
        self, call_of: Callable[..., Any], request: Any, response: Any, routing: Routing
    ) -> tuple[Any, int]:
        with self._asked(request, routing) as servable:
            routing.version = servable.version
            examples = inference.examples_of(request.input)
            call = call_of(
                servable.signatures,
                request.model_spec.signature_name,
                examples,
                check_method_name=self.check_method_name,
            )
            answers = servable.answer(call)
        _tell(response.model_spec, servable, call.signature)
        return answers, len(examples)

    def _asked(self, request: Any, routing: Routing) -> AbstractContextManager[Servable]:
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        return self._use(request.model_spec, routing)

    def _use(self, spec: Any, routing: Routing) -> AbstractContextManager[Servable]:
        return self.router.hold(self.models, routing, *_choice(spec))


def _choice(spec: Any) -> tuple[str, int | None, str | None]:
    """Return the model, version and label that a ``ModelSpec`` names."""
    if not spec.name:
        raise invalid("ModelSpec has no name specified.")
    match spec.WhichOneof("version_choice"):
        case "version":
            return spec.name, spec.version.value, None
        case "version_label":
            return spec.name, None, spec.version_label
        case _:
            return spec.name, None, None


def _tell(spec: Any, servable: Servable, signature: str = "") -> None:
    """Fill in who answered."""
    spec.name = servable.name
    spec.version.value = servable.version
    spec.signature_name = signature


def _spec_of(request: Any) -> Any:
    """Return a request's ``ModelSpec``; that of its first task, for a MultiInference."""
    if isinstance(request, inference_pb2.MultiInferenceRequest):
        request = request.tasks[0] if request.tasks else inference_pb2.InferenceTask()
    return request.model_spec


def _statuses(models: Models, request: Any) -> Any:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec = request.model_spec
    version = spec.version.value if spec.HasField("version") else None
    response = get_model_status_pb2.GetModelStatusResponse()
    for status in models.statuses(spec.name, version):
        told = response.model_version_status.add(version=status.version, state=status.state)
        told.status.SetInParent()
        if status.problem is not None:
            told.status.error_code = status.problem.code.number
            told.status.error_message = status.problem.message
    return response


def _reload(models: Models, request: Any) -> Any:
    if request.config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
            "supported"
        )
    models.reload(request.config)
    response = model_management_pb2.ReloadConfigResponse()
    response.status.SetInParent()
    return response


class _Routing(Routing):
    """What a gRPC call is routed by; its ``headers`` are the call's context."""

    __slots__ = ()

    @property
    def key(self) -> str | None:
        return next((str(value) for name, value in self.headers.invocation_metadata() if name == KEY_HEADER), None)


Answer = Callable[[Any, Routing], Any]
Note = Callable[[Any, Any, Refusal | None, float, Routing], None]


def _unrouted(answer: Callable[[Any], Any]) -> Answer:
    return lambda request, _: answer(request)


def _handle(answer: Answer, note: Note, request: Any, context: Any) -> Any:
    """Answer one request; whatever goes wrong is a status of gRPC."""
    began = time.perf_counter()
    response, refusal, routing = None, None, _Routing(context)
    try:
        if not context.is_active():  # it waited for a thread until nobody wanted it
            raise Refusal(Code.CANCELLED, "The caller is gone.")
        response = answer(request, routing)
    except Refusal as raised:
        refusal = raised
    except Exception as error:
        _log.exception("a request was not answered")
        refusal = Refusal(Code.INTERNAL, (str(error).strip() or type(error).__name__).splitlines()[0])
    try:
        note(request, response, refusal, (time.perf_counter() - began) * 1e6, routing)
    except Exception:
        _log.exception("a request was not noted")
    if routing.arm:  # initial metadata would be a message of its own, for 200 microseconds of CPU
        context.set_trailing_metadata(((ARM_HEADER, in_header(routing.arm)),))
    if refusal is not None:
        context.abort(_CODES[refusal.code.number], _cut(refusal.message))
    return response


def _unnoted(request: Any, response: Any, refusal: Refusal | None, microseconds: float, routing: Routing) -> None:
    """TensorFlow Serving counts inferences only."""


def _note(
    api: str,
    log: str,
    observe: Observe,
    record: Record | None,
    request: Any,
    response: Any,
    refusal: Refusal | None,
    microseconds: float,
    routing: Routing,
) -> None:
    status = "OK" if refusal is None else refusal.code.name
    examples = _examples_in(request) if refusal is None else 0
    observe(api, _spec_of(request).name, status, microseconds, examples, routing)
    if record is not None and refusal is None:
        entry = prediction_log_pb2.PredictionLog()
        getattr(entry, log).request.CopyFrom(request)
        getattr(entry, log).response.CopyFrom(response)
        record(entry)


def _examples_in(request: Any) -> int:
    if isinstance(request, predict_pb2.PredictRequest):
        return 0
    return len(getattr(request.input, request.input.WhichOneof("kind")).examples)


def _cut(message: str) -> str:
    return message if len(message) <= _MOST_MESSAGE else message[:_MOST_MESSAGE] + "...TRUNCATED"


class _Profiler:
    """Hands the bytes of every call of ProfilerService to TensorFlow's profiler server, and its answer back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel: Any = None

    def service(self, details: Any) -> Any:
        """Return the handler of a method, as a ``grpc.GenericRpcHandler`` does."""
        if not details.method.startswith(_PROFILER):
            return None
        forward = functools.partial(_handle, _unrouted(functools.partial(self._forward, details.method)), _unnoted)
        return grpc.unary_unary_rpc_method_handler(forward)

    def _forward(self, method: str, request: bytes) -> Any:
        with self._lock:
            if self._channel is None:
                self._channel = _channel_to(_start_profiler())
        with _known_refusals():
            return self._channel.unary_unary(method)(request)


@contextlib.contextmanager
def _known_refusals() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise Refusal(Code[error.code().name], error.details()) from error


def _channel_to(port: int) -> Any:
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=[*unlimited, ("grpc.enable_http_proxy", 0)])


def _start_profiler() -> int:
    import tensorflow as tf

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    tf.profiler.experimental.server.start(port)
    return port
