"""The gRPC services, asked through a real port by tensorflow-serving-api's own stubs."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.serving.stand_ins import FLOAT, StandInModels, StandInServable, half_plus_two, signature_def
from tfdeploy_magic.serving import services, tensors
from tfdeploy_magic.serving.lineup import Arm
from tfdeploy_magic.serving.protos import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)
from tfdeploy_magic.serving.router import Router, Routing
from tfdeploy_magic.serving.status import Code, Refusal

SECONDS = 30.0


@contextlib.contextmanager
def serving_at(models: StandInModels, threads: int = 4, **options: Any) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(threads))
    services.register(server, models, **options)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def serving(models: StandInModels, threads: int = 4, **options: Any) -> Iterator[grpc.Channel]:
    with (
        serving_at(models, threads, **options) as address,
        grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel,
    ):
        yield channel


@pytest.fixture
def models() -> StandInModels:
    return StandInModels(
        {"half": {123: half_plus_two(), 124: half_plus_two(124, plus=3.0)}},
        labels={"half": {"stable": 123}},
        failed={125: Refusal(Code.NOT_FOUND, "no saved_model.pb")},
    )


@pytest.fixture
def channel(models: StandInModels) -> Iterator[grpc.Channel]:
    with serving(models) as channel:
        yield channel


def predictions(channel: grpc.Channel) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def of_models(channel: grpc.Channel) -> Any:
    return model_service_pb2_grpc.ModelServiceStub(channel)


def predict_request(*numbers: float, name: str = "half") -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tensors.proto_of(np.float32(numbers)))
    return request


def with_examples(request: Any, signature: str, *numbers: float) -> Any:
    request.model_spec.name, request.model_spec.signature_name = "half", signature
    return fill(request, *numbers)


def fill(request: Any, *numbers: float) -> Any:
    for number in numbers:
        example = request.input.example_list.examples.add()
        example.features.feature["x"].float_list.value.append(number)
    return request


def multi_request(regress: str = "regress_x_to_y", classify: str = "classify_x_to_y") -> Any:
    request = inference_pb2.MultiInferenceRequest()
    for signature, method in ((regress, "regress"), (classify, "classify")):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "half", signature
    return fill(request, 2.0)


def told(spec: Any) -> tuple[str, int, str]:
    return spec.name, spec.version.value, spec.signature_name


def refused(ask: Callable[..., Any], request: Any) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as error:
        ask(request, SECONDS)
    status: Any = error.value
    return status.code().name, status.details()


def test_predict_answers_in_float_val_and_says_who_answered(channel: grpc.Channel) -> None:
    response = predictions(channel).Predict(predict_request(1.0, 2.0, 5.0), SECONDS)
    assert list(response.outputs) == ["y"]
    assert list(response.outputs["y"].float_val) == [3.5, 4.0, 5.5]
    assert response.outputs["y"].tensor_content == b""
    assert told(response.model_spec) == ("half", 124, "serving_default")


def test_predict_answers_in_tensor_content_where_asked(models: StandInModels) -> None:
    with serving(models, tensor_content=True) as channel:
        response = predictions(channel).Predict(predict_request(1.0, 2.0), SECONDS)
    assert response.outputs["y"].tensor_content == np.float32([3.5, 4.0]).tobytes()
    assert list(response.outputs["y"].float_val) == []


def test_only_the_outputs_of_the_filter_are_answered() -> None:
    ports = dict.fromkeys(("a", "b"), (FLOAT, (-1,)))
    twice = StandInServable(
        "half", 1, {"serving_default": (signature_def({"x": (FLOAT, (-1,))}, ports), lambda x: {"a": x, "b": x * 2})}
    )
    with serving(StandInModels({"half": {1: twice}})) as channel:
        request = predict_request(1.0)
        assert sorted(predictions(channel).Predict(request, SECONDS).outputs) == ["a", "b"]
        request.output_filter.append("b")
        assert list(predictions(channel).Predict(request, SECONDS).outputs) == ["b"]


def test_a_version_is_chosen_by_number_by_label_or_is_the_highest(channel: grpc.Channel) -> None:
    def version_of(request: Any) -> int:
        return int(predictions(channel).Predict(request, SECONDS).model_spec.version.value)

    by_number, by_label = predict_request(1.0), predict_request(1.0)
    by_number.model_spec.version.value = 123
    by_label.model_spec.version_label = "stable"
    assert [version_of(request) for request in (by_number, by_label, predict_request(1.0))] == [123, 123, 124]


def test_an_unknown_model_version_or_label_is_named(channel: grpc.Channel) -> None:
    ask = predictions(channel).Predict
    version, label = predict_request(1.0), predict_request(1.0)
    version.model_spec.version.value = 7
    label.model_spec.version_label = "X"
    assert refused(ask, predict_request(1.0, name="m")) == (
        "NOT_FOUND",
        "Servable not found for request: Latest(m)",
    )
    assert refused(ask, version) == ("NOT_FOUND", "Servable not found for request: Specific(half, 7)")
    assert refused(ask, label) == ("INVALID_ARGUMENT", "Unrecognized servable version label: X")


@pytest.mark.parametrize(
    ("method", "request_type"),
    [
        ("Predict", predict_pb2.PredictRequest),
        ("Classify", classification_pb2.ClassificationRequest),
        ("Regress", regression_pb2.RegressionRequest),
        ("GetModelMetadata", get_model_metadata_pb2.GetModelMetadataRequest),
    ],
)
def test_a_request_must_say_which_model(channel: grpc.Channel, method: str, request_type: Any) -> None:
    ask, request = getattr(predictions(channel), method), request_type()
    assert refused(ask, request) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    request.model_spec.SetInParent()
    if method == "GetModelMetadata":
        request.metadata_field.append("signature_def")
    assert refused(ask, request) == ("INVALID_ARGUMENT", "ModelSpec has no name specified.")


def test_a_multi_inference_without_tasks_has_no_model_either(channel: grpc.Channel) -> None:
    said = refused(predictions(channel).MultiInference, inference_pb2.MultiInferenceRequest())
    assert said == ("INVALID_ARGUMENT", "ModelSpec has no name specified.")


def test_refusals_cross_the_wire_with_their_code_and_words(channel: grpc.Channel) -> None:
    request = predict_request(1.0)
    request.model_spec.signature_name = "s"
    said = refused(predictions(channel).Predict, request)
    assert said == ("FAILED_PRECONDITION", 'Serving signature key "s" not found.')


def test_examples_are_classified(channel: grpc.Channel) -> None:
    request = with_examples(classification_pb2.ClassificationRequest(), "classify_x_to_y", 2.0, 4.0)
    response = predictions(channel).Classify(request, SECONDS)
    rows = [[(found.label, found.score) for found in row.classes] for row in response.result.classifications]
    assert rows == [[("up", 4.0), ("down", -4.0)], [("up", 5.0), ("down", -5.0)]]
    assert told(response.model_spec) == ("half", 124, "classify_x_to_y")


def test_examples_get_values(channel: grpc.Channel) -> None:
    request = with_examples(regression_pb2.RegressionRequest(), "regress_x_to_y", 2.0, 4.0)
    response = predictions(channel).Regress(request, SECONDS)
    assert [found.value for found in response.result.regressions] == [4.0, 5.0]
    assert told(response.model_spec) == ("half", 124, "regress_x_to_y")


@pytest.mark.parametrize("names", [{}, {"regress": "tf2_regress", "classify": "tf2_classify"}], ids=["tf1", "tf2"])
def test_several_inferences_share_a_request(channel: grpc.Channel, names: dict[str, str]) -> None:
    request = multi_request(**names)
    first, second = predictions(channel).MultiInference(request, SECONDS).results
    assert [found.value for found in first.regression_result.regressions] == [4.0]
    assert [found.score for found in second.classification_result.classifications[0].classes] == [4.0, -4.0]
    signatures = [task.model_spec.signature_name for task in request.tasks]
    assert [told(result.model_spec) for result in (first, second)] == [("half", 124, name) for name in signatures]


def test_the_method_name_check_holds_for_all_three(models: StandInModels) -> None:
    with serving(models, check_method_name=True) as channel:
        stub = predictions(channel)
        classify = with_examples(classification_pb2.ClassificationRequest(), "tf2_classify", 1.0)
        regress = with_examples(regression_pb2.RegressionRequest(), "tf2_regress", 1.0)
        both = multi_request("tf2_regress", "tf2_classify")
        for ask, request in ((stub.Classify, classify), (stub.Regress, regress), (stub.MultiInference, both)):
            code, message = refused(ask, request)
            assert code == "INVALID_ARGUMENT"
            assert "signature method_name to be tensorflow/serving/" in message


def test_metadata_are_the_signatures_packed_in_any(channel: grpc.Channel, models: StandInModels) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "half"
    response = predictions(channel).GetModelMetadata(request, SECONDS)
    assert told(response.model_spec) == ("half", 124, "")
    unpacked = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(unpacked)
    assert dict(unpacked.signature_def) == models.versions["half"][124].signatures


def test_metadata_of_another_kind_are_refused(channel: grpc.Channel) -> None:
    ask = predictions(channel).GetModelMetadata
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "half"
    said = refused(ask, request)
    assert said == ("INVALID_ARGUMENT", "GetModelMetadataRequest must specify at least one metadata_field")
    request.metadata_field.append("weather")
    assert refused(ask, request) == ("INVALID_ARGUMENT", "Metadata field weather is not supported")


def test_status_tells_every_version_and_why_one_failed(channel: grpc.Channel) -> None:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "half"
    found = of_models(channel).GetModelStatus(request, SECONDS).model_version_status
    state = get_model_status_pb2.ModelVersionStatus.State.Name
    assert [(status.version, state(status.state)) for status in found] == [
        (125, "END"),
        (124, "AVAILABLE"),
        (123, "AVAILABLE"),
    ]
    assert (found[0].status.error_code, found[0].status.error_message) == (5, "no saved_model.pb")
    assert all(status.HasField("status") and status.status.error_code == 0 for status in found[1:])


def test_status_of_one_version_and_of_none(channel: grpc.Channel) -> None:
    ask = of_models(channel).GetModelStatus
    request = get_model_status_pb2.GetModelStatusRequest()
    assert refused(ask, request) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    request.model_spec.name = "half"
    request.model_spec.version.value = 123
    assert [status.version for status in ask(request, SECONDS).model_version_status] == [123]
    request.model_spec.version.value = 7
    assert refused(ask, request) == ("NOT_FOUND", "Could not find version 7 of model half")
    request.model_spec.name = "m"
    assert refused(ask, request) == ("NOT_FOUND", "Could not find any versions of model m")


def test_a_new_config_is_handed_to_the_models(channel: grpc.Channel, models: StandInModels) -> None:
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.add(name="other", base_path="/models/other")
    response = of_models(channel).HandleReloadConfigRequest(request, SECONDS)
    assert response.HasField("status")
    assert response.status.error_code == 0
    assert models.configs == [request.config]


def test_a_config_that_cannot_be_served_is_refused(channel: grpc.Channel, models: StandInModels) -> None:
    ask = of_models(channel).HandleReloadConfigRequest
    request = model_management_pb2.ReloadConfigRequest()
    assert refused(ask, request) == (
        "INVALID_ARGUMENT",
        "ServerModelConfig type not supported by HandleReloadConfigRequest. "
        "Only ModelConfigList is currently supported",
    )
    models.refuses_config = Refusal(Code.FAILED_PRECONDITION, "no such label")
    request.config.model_config_list.SetInParent()
    assert refused(ask, request) == ("FAILED_PRECONDITION", "no such label")
    assert models.configs == []


def failing(raises: Callable[[npt.NDArray[Any]], Any]) -> StandInModels:
    signature = signature_def({"x": (FLOAT, (-1,))}, {"y": (FLOAT, (-1,))})
    return StandInModels({"half": {1: StandInServable("half", 1, {"serving_default": (signature, raises)})}})


def test_an_unexpected_exception_is_internal_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def bad(x: npt.NDArray[Any]) -> Any:
        raise RuntimeError("the first line\nand a secret")

    models = failing(bad)
    with serving(models) as channel, caplog.at_level(logging.ERROR, logger=services.__name__):
        assert refused(predictions(channel).Predict, predict_request(1.0)) == ("INTERNAL", "the first line")
    assert models.in_use == 0
    assert "and a secret" in caplog.text


def test_an_answer_that_no_tensor_can_hold_is_internal() -> None:
    with serving(failing(lambda x: {"y": np.array([object()])})) as channel:
        code, message = refused(predictions(channel).Predict, predict_request(1.0))
    assert (code, message) == ("INTERNAL", "there is no TensorFlow dtype for arrays of object")


def test_long_messages_are_cut_as_tensorflow_serving_cuts_them() -> None:
    def refuse(x: npt.NDArray[Any]) -> Any:
        raise Refusal(Code.INVALID_ARGUMENT, "a" * 2000)

    with serving(failing(refuse)) as channel:
        said = refused(predictions(channel).Predict, predict_request(1.0))
    assert said == ("INVALID_ARGUMENT", "a" * 1024 + "...TRUNCATED")


def test_a_request_that_waited_too_long_never_reaches_the_model() -> None:
    began, go_on, seen = threading.Event(), threading.Event(), []

    def slow(x: npt.NDArray[Any]) -> Any:
        seen.append(float(x[0]))
        began.set()
        assert go_on.wait(SECONDS)
        return {"y": x}

    with serving(failing(slow), threads=1) as channel:
        ask = predictions(channel).Predict
        first = ask.future(predict_request(1.0), SECONDS)
        assert began.wait(SECONDS)
        with pytest.raises(grpc.RpcError) as error:
            ask(predict_request(2.0), 0.3)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        go_on.set()
        assert list(first.result().outputs["y"].float_val) == [1.0]
        assert list(ask(predict_request(3.0), SECONDS).outputs["y"].float_val) == [3.0]
    assert seen == [1.0, 3.0]


def test_every_inference_is_observed(models: StandInModels) -> None:
    seen: list[tuple[str, str, str, float, int, Routing]] = []
    with serving(models, observe=lambda *noted: seen.append(noted)) as channel:
        stub = predictions(channel)
        stub.Predict(predict_request(1.0), SECONDS)
        stub.Classify(with_examples(classification_pb2.ClassificationRequest(), "classify_x_to_y", 1.0, 2.0), SECONDS)
        stub.Regress(with_examples(regression_pb2.RegressionRequest(), "regress_x_to_y", 1.0), SECONDS)
        stub.MultiInference(multi_request(), SECONDS)
        refused(stub.Predict, predict_request(1.0, name="m"))
        refused(stub.Classify, with_examples(classification_pb2.ClassificationRequest(), "classify_x_to_y"))
    assert [(api, model, status, examples) for api, model, status, _, examples, _ in seen] == [
        ("Predict", "half", "OK", 0),
        ("Classify", "half", "OK", 2),
        ("Regress", "half", "OK", 1),
        ("MultiInference", "half", "OK", 1),
        ("Predict", "m", "NOT_FOUND", 0),
        ("Classify", "half", "INVALID_ARGUMENT", 0),
    ]
    assert all(microseconds > 0 for *_, microseconds, _, _ in seen)


def test_what_was_answered_is_recorded_whole(models: StandInModels) -> None:
    logs: list[Any] = []
    with serving(models, record=logs.append) as channel:
        stub = predictions(channel)
        asked = [
            (stub.Predict, predict_request(1.0)),
            (stub.Classify, with_examples(classification_pb2.ClassificationRequest(), "classify_x_to_y", 1.0)),
            (stub.Regress, with_examples(regression_pb2.RegressionRequest(), "regress_x_to_y", 1.0)),
            (stub.MultiInference, multi_request()),
        ]
        answered = [ask(request, SECONDS) for ask, request in asked]
        refused(stub.Predict, predict_request(1.0, name="m"))
    kinds = ["predict_log", "classify_log", "regress_log", "multi_inference_log"]
    assert [log.WhichOneof("log_type") for log in logs] == kinds
    entries = [getattr(log, kind) for log, kind in zip(logs, kinds, strict=True)]
    assert [entry.request for entry in entries] == [request for _, request in asked]
    assert [entry.response for entry in entries] == answered


def test_a_broken_log_does_not_cost_the_answer(models: StandInModels, caplog: pytest.LogCaptureFixture) -> None:
    def full(log: Any) -> None:
        raise OSError("the disk is full")

    with serving(models, record=full) as channel:
        assert predictions(channel).Predict(predict_request(1.0), SECONDS).outputs["y"].float_val == [3.5]
    assert "the disk is full" in caplog.text


def test_health_is_told_where_asked(models: StandInModels) -> None:
    with serving(models, health=True) as channel:
        ask = health_pb2_grpc.HealthStub(channel).Check
        for name in ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"):
            assert ask(health_pb2.HealthCheckRequest(service=name), SECONDS).status == 1
        assert refused(ask, health_pb2.HealthCheckRequest(service="other"))[0] == "NOT_FOUND"


@pytest.mark.parametrize("method", ["/grpc.health.v1.Health/Check", "/tensorflow.ProfilerService/Profile"])
def test_what_was_not_asked_for_is_not_there(channel: grpc.Channel, method: str) -> None:
    assert refused(channel.unary_unary(method), b"") == ("UNIMPLEMENTED", "Method not found!")


@contextlib.contextmanager
def a_profiler(answer: Callable[[bytes, Any], bytes]) -> Iterator[int]:
    """Serve ``Profile`` of bytes, in place of TensorFlow's own profiler server."""
    server = grpc.server(ThreadPoolExecutor(1))
    handlers = {"Profile": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tensorflow.ProfilerService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield int(port)
    finally:
        server.stop(None).wait()


def test_the_profilers_bytes_go_through_unread(models: StandInModels, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def answer(request: bytes, context: Any) -> bytes:
        if request == b"bad":
            context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        return b"got " + request

    with a_profiler(answer) as port, serving(models, profiler=True) as channel:
        monkeypatch.setattr(services, "_start_profiler", lambda: started.append(port) or port)
        profile = channel.unary_unary("/tensorflow.ProfilerService/Profile")
        assert [profile(request, timeout=SECONDS) for request in (b"\xff\x00", b"")] == [b"got \xff\x00", b"got "]
        assert refused(profile, b"bad") == ("UNAVAILABLE", "busy")
        assert refused(channel.unary_unary("/tensorflow.ProfilerService/Other"), b"")[0] == "UNIMPLEMENTED"
        assert refused(channel.unary_unary("/tensorflow.Another/Profile"), b"")[0] == "UNIMPLEMENTED"
    assert started == [port]


def test_tensorflows_profiler_client_writes_a_trace_through_the_same_port(tmp_path: Path) -> None:
    code = f"""
import threading
import tensorflow as tf
from tests.serving.stand_ins import StandInModels
from tests.serving.test_services import serving_at

done = threading.Event()
def work():  # a trace of nothing is tried again and again
    while not done.is_set():
        tf.linalg.matmul(tf.ones([50, 50]), tf.ones([50, 50]))

with serving_at(StandInModels({{}}), profiler=True) as address:
    threading.Thread(target=work).start()
    try:
        tf.profiler.experimental.client.trace("grpc://" + address, {str(tmp_path)!r}, 200)
    finally:
        done.set()
"""
    # In a process of its own: nothing ends TensorFlow's profiler server but the end of its process.
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)
    traces = list(tmp_path.rglob("*.xplane.pb"))
    assert [trace.stat().st_size > 0 for trace in traces] == [True]


# Arms


def routed(*arms: Arm) -> Router:
    router = Router()
    router.set({"half": arms})
    return router


def arm_of(call: Any) -> str | None:
    return dict(call.trailing_metadata()).get("x-tfdeploy-arm")


def test_every_inference_is_answered_by_an_arm_which_is_told_and_observed(models: StandInModels) -> None:
    seen: list[Routing] = []
    router = routed(Arm("old", 1.0, "half", label="stable"))
    with serving(models, router=router, observe=lambda *noted: seen.append(noted[-1])) as channel:
        stub = predictions(channel)
        requests = (
            (stub.Predict, predict_request(1.0)),
            (stub.Classify, with_examples(classification_pb2.ClassificationRequest(), "classify_x_to_y", 1.0)),
            (stub.Regress, with_examples(regression_pb2.RegressionRequest(), "regress_x_to_y", 1.0)),
            (stub.MultiInference, multi_request()),
        )
        for ask, request in requests:
            response, call = ask.with_call(request, SECONDS)
            assert arm_of(call) == "old"
            spec = response.results[0].model_spec if hasattr(response, "results") else response.model_spec
            assert (spec.name, spec.version.value) == ("half", 123)
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = "half"
        response, call = stub.GetModelMetadata.with_call(request, SECONDS)
        assert (response.model_spec.version.value, arm_of(call)) == (124, None)
    assert [(each.version, each.arm) for each in seen] == [(123, "old")] * 4


def test_the_key_of_a_call_says_which_arm_answers(models: StandInModels) -> None:
    router = routed(Arm("a", 0.5, "half", 123), Arm("zwei hälften", 0.5, "half", 124))
    told = {"a": ("a", 123), "zwei hälften": ("zwei%20h%C3%A4lften", 124)}
    with serving(models, router=router) as channel:
        for number in range(10):
            key = f"user-{number}"
            chosen = router.choose("half", key)
            assert chosen is not None
            response, call = predictions(channel).Predict.with_call(
                predict_request(1.0), SECONDS, metadata=(("x-tfdeploy-key", key),)
            )
            assert (arm_of(call), response.model_spec.version.value) == told[chosen.name]


def test_a_version_or_label_that_is_named_is_no_arm(models: StandInModels) -> None:
    request = predict_request(1.0)
    request.model_spec.version.value = 124
    seen: list[Routing] = []
    router = routed(Arm("a", 1.0, "half", 123))
    with serving(models, router=router, observe=lambda *noted: seen.append(noted[-1])) as channel:
        response, call = predictions(channel).Predict.with_call(request, SECONDS)
    assert (response.model_spec.version.value, arm_of(call), seen[0].arm) == (124, None, "")


def test_a_refusal_of_an_arm_says_which_one_it_was(models: StandInModels) -> None:
    router = routed(Arm("gone", 1.0, "half", 7))
    with serving(models, router=router) as channel, pytest.raises(grpc.RpcError) as raised:
        predictions(channel).Predict(predict_request(1.0), SECONDS)
    error: Any = raised.value
    assert (error.details(), arm_of(error)) == ("Servable not found for request: Specific(half, 7)", "gone")
