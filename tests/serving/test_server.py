"""The server as a whole: what is served, swapped, configured and counted, asked by TensorFlow Serving's own stubs."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.serving import saved_models as builders
from tests.serving.live import (
    ODD_NAME,
    SECONDS,
    Asking,
    Hammer,
    Process,
    available,
    channel,
    entry,
    floats,
    listed,
    of_models,
    predict,
    predictions,
    put,
    spec,
    states,
    wait_until,
    write_slow,
)
from tests.serving.saved_models import SavedModels
from tfdeploy_magic.errors import InputError, OutputError, ServingError, VersionFailed
from tfdeploy_magic.jobs import Report, silent
from tfdeploy_magic.serving import flags, process, state, warmup
from tfdeploy_magic.serving.client import Client
from tfdeploy_magic.serving.client_metrics import Counted
from tfdeploy_magic.serving.lineup import Arm
from tfdeploy_magic.serving.protos import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    model_management_pb2,
    model_server_config_pb2,
    prediction_log_pb2,
    regression_pb2,
)
from tfdeploy_magic.serving.request_log import to_warmup
from tfdeploy_magic.serving.server import ModelServer
from tfdeploy_magic.serving.status import Refusal

QUICK: dict[str, Any] = {"file_system_poll_wait_seconds": 0.05, "model_config_file_poll_wait_seconds": 0.05}
ROWS = {"instances": [1.0, 2.0, 5.0]}
ANSWER = {"predictions": [2.5, 3.0, 4.5]}


@contextlib.contextmanager
def started(*argv: str, kernel: int | None = None, **changed: Any) -> Iterator[tuple[ModelServer, Asking]]:
    """Start a server in this process, on free ports and quick to notice changes."""
    options = dataclasses.replace(flags.parse(["--any_port", *argv]), **{**QUICK, **changed})
    server = ModelServer(options, kernel=kernel)
    ask = Asking(server.rest_port)
    try:
        yield server, ask
    finally:
        ask.close()
        server.stop()


@contextlib.contextmanager
def asked_by_grpc(server: ModelServer) -> Iterator[grpc.Channel]:
    assert server.grpc_address is not None
    with channel(server.grpc_address) as to:
        yield to


@pytest.fixture
def base(saved_models: SavedModels, tmp_path: Path) -> Path:
    """A base path of our own that holds version 1."""
    folder = tmp_path / "models" / "half"
    folder.mkdir(parents=True)
    put(folder / "1", saved_models.half_plus_two / "1")
    return folder


@pytest.fixture(scope="session")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return half plus a number, to be put where it is wanted."""
    folder = tmp_path_factory.mktemp("newer")

    def write(plus: int) -> Path:
        path = folder / str(plus)
        return path if path.exists() else builders.half_plus_two(path, plus=float(plus))

    return write


def serving(base: Path, *more: str) -> list[str]:
    return [f"--model_base_path={base}", "--model_name=half", *more]


def refused(ask: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as raised:
        ask()
    error: Any = raised.value
    return error.code().name, error.details()


# gRPC, of a server as a person starts it


@pytest.fixture(scope="module")
def to(live: Process) -> Iterator[grpc.Channel]:
    with channel(live.grpc_address) as opened:
        yield opened


@pytest.mark.parametrize(
    ("chosen", "version", "plus"),
    [({}, 2, 3.0), ({"version": 1}, 1, 2.0), ({"label": "stable"}, 1, 2.0), ({"label": "canary"}, 2, 3.0)],
)
def test_predict_answers_by_version_or_label_and_says_who_answered(
    to: grpc.Channel, chosen: dict[str, Any], version: int, plus: float
) -> None:
    response = predict(to, spec("half_plus_two", **chosen), 2.0)
    assert list(response.outputs["y"].float_val) == [1.0 + plus]
    assert not response.outputs["y"].tensor_content
    assert response.model_spec == spec("half_plus_two", "serving_default", version)


def test_signatures_and_output_filters_are_honoured(to: grpc.Channel) -> None:
    assert list(predict(to, spec("several", "doubled"), 2.0).outputs["y"].float_val) == [4.0]
    assert list(predict(to, spec("lite"), 2.0, output_filter=["y"]).outputs) == ["y"]
    assert list(predict(to, spec(ODD_NAME), 2.0).outputs["y"].float_val) == [3.0]
    assert list(predict(to, spec("tf1"), 2.0).outputs["y"].float_val) == [3.0]


MISSING = (
    "input size does not match signature: 1!=2 len({x}) != len({a,b}). Sent extra: {x}. Missing but required: {a,b}."
)
REFUSED = [
    (spec("nothing"), [], "NOT_FOUND", "Servable not found for request: Latest(nothing)"),
    (spec("tf1", version=7), [], "NOT_FOUND", "Servable not found for request: Specific(tf1, 7)"),
    (spec("tf1", label="x"), [], "INVALID_ARGUMENT", "Unrecognized servable version label: x"),
    (spec(""), [], "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    (spec("tf1", "s"), [], "FAILED_PRECONDITION", 'Serving signature key "s" not found.'),
    (spec("many"), [], "INVALID_ARGUMENT", MISSING),
    (
        spec("tf1"),
        ["q"],
        "INVALID_ARGUMENT",
        "output tensor alias not found in signature: q Outputs expected to be in the set {y}.",
    ),
    (spec("tf1"), ["y", "y"], "INVALID_ARGUMENT", "duplicate output tensor alias: y"),
]


@pytest.mark.parametrize(("of", "outputs", "code", "message"), REFUSED)
def test_predict_is_refused_in_tensorflow_servings_words(
    to: grpc.Channel, of: Any, outputs: list[str], code: str, message: str
) -> None:
    assert refused(lambda: predict(to, of, 2.0, output_filter=outputs)) == (code, message)


def by_example(request: Any, name: str, signature: str) -> Any:
    request.model_spec.CopyFrom(spec(name, signature))
    request.input.example_list.examples.add().features.feature["x"].float_list.value.append(2.0)
    return request


@pytest.mark.parametrize(("model", "of"), [("tf1", "{}_x_to_y"), ("scalars", "tf2_{}")])
def test_examples_are_classified_and_regressed_by_signatures_of_tf1_and_tf2(
    to: grpc.Channel, model: str, of: str
) -> None:
    classify = by_example(classification_pb2.ClassificationRequest(), model, of.format("classify"))
    (found,) = predictions(to).Classify(classify, timeout=SECONDS).result.classifications
    assert found.classes[0].score == 3.0
    regress = by_example(regression_pb2.RegressionRequest(), model, of.format("regress"))
    response = predictions(to).Regress(regress, timeout=SECONDS)
    assert [each.value for each in response.result.regressions] == [3.0]
    assert response.model_spec == spec(model, of.format("regress"), 1)


@pytest.mark.parametrize(("model", "of"), [("tf1", "{}_x_to_y"), ("scalars", "tf2_{}")])
def test_several_inferences_share_their_examples(to: grpc.Channel, model: str, of: str) -> None:
    request = inference_pb2.MultiInferenceRequest()
    for method in ("regress", "classify"):
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.CopyFrom(spec(model, of.format(method)))
    request.input.example_list.examples.add().features.feature["x"].float_list.value.append(2.0)
    first, second = predictions(to).MultiInference(request, timeout=SECONDS).results
    assert first.regression_result.regressions[0].value == 3.0
    assert second.classification_result.classifications[0].classes[0].score == 3.0


def test_metadata_is_told_by_version_and_label(to: grpc.Channel) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.CopyFrom(spec("half_plus_two", label="stable"))
    response = predictions(to).GetModelMetadata(request, timeout=SECONDS)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    assert (response.model_spec.version.value, list(signatures.signature_def)) == (1, ["serving_default"])


def test_the_states_of_versions_are_told(to: grpc.Channel, live: Process) -> None:
    found = states(to, "half_plus_two")
    assert {number: (each.state, each.status.error_code) for number, each in found.items()} == {1: (30, 0), 2: (30, 0)}
    assert refused(lambda: states(to, "empty")) == ("NOT_FOUND", "Could not find any versions of model empty")


def test_a_unix_socket_and_the_health_service_answer_too(live: Process) -> None:
    with channel(f"unix:{live.socket_path}") as to:
        assert list(predict(to, spec("tf1"), 2.0).outputs["y"].float_val) == [3.0]
        health = health_pb2_grpc.HealthStub(to).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        assert health.status == health_pb2.HealthCheckResponse.SERVING


def test_the_profiler_is_not_there_unless_asked_for(to: grpc.Channel) -> None:
    profile = to.unary_unary("/tensorflow.ProfilerService/Profile")
    assert refused(lambda: profile(b"", timeout=SECONDS))[0] == "UNIMPLEMENTED"


def test_messages_may_be_large(to: grpc.Channel) -> None:
    values = np.arange(2_000_000, dtype=np.float32)
    request = floats()
    request.model_spec.CopyFrom(spec("half_plus_two"))
    request.inputs["x"].tensor_shape.dim[0].size = len(values)
    request.inputs["x"].tensor_content = values.tobytes()
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    target = to._channel.target().decode()
    with grpc.insecure_channel(target, options=[*unlimited, ("grpc.enable_http_proxy", 0)]) as wide:
        response = predictions(wide).Predict(request, timeout=SECONDS)
    assert np.array_equal(np.array(response.outputs["y"].float_val, np.float32), values * np.float32(0.5) + 3)


# Versions


def test_versions_are_swapped_under_load_without_a_failed_request(
    live: Process, newer: Callable[[int], Path], saved_models: SavedModels, tmp_path: Path
) -> None:
    base = live.output.parent / "swapped"
    with channel(live.grpc_address) as to:

        def by_rest() -> float:
            return float(live.ask.post("/v1/models/swapped:predict", {"instances": [1.0]}).json["predictions"][0])

        def by_grpc() -> float:
            return float(predict(to, spec("swapped"), 1.0).outputs["y"].float_val[0])

        def served(version: int) -> Callable[[], bool]:
            return lambda: available(live.ask, "swapped") == [version]

        def failed(version: int) -> Callable[[], bool]:
            return lambda: bool((found := states(to, "swapped").get(version)) and found.status.error_code)

        with Hammer(by_rest, by_grpc, by_rest, by_grpc) as hammer:
            for version in (2, 3, 4):
                put(base / str(version), newer(version + 1))
                wait_until(served(version))
            swapped = len(hammer.answers) + 4
            for version, spoil in ((5, _without_variables), (6, _with_half_a_graph)):
                put(base / str(version), spoil(saved_models.half_plus_two / "1", tmp_path))
                wait_until(failed(version))
            wait_until(lambda: len(hammer.answers) > swapped + 40)
        assert hammer.failures == []
        assert set(hammer.answers) == {0.5 + plus for plus in (2, 3, 4, 5)}
        assert set(hammer.answers[swapped:]) == {5.5}
        assert states(to, "swapped")[4].state == 30
        assert "variables" in states(to, "swapped")[5].status.error_message
    told = {each["version"]: each for each in live.ask.get("/v1/models/swapped").json["model_version_status"]}
    assert told["6"]["state"] != "AVAILABLE"
    assert told["6"]["status"]["error_code"] == "INVALID_ARGUMENT"
    assert told["4"]["status"] == {"error_code": "OK", "error_message": ""}
    refusal = live.ask.post("/v1/models/swapped/versions/5:predict", {"instances": [1.0]})
    assert (refusal.status, refusal.error) == (404, "Servable not found for request: Specific(swapped, 5)")


def _without_variables(source: Path, folder: Path) -> Path:
    shutil.rmtree(shutil.copytree(source, folder / "without_variables") / "variables")
    return folder / "without_variables"


def _with_half_a_graph(source: Path, folder: Path) -> Path:
    graph = shutil.copytree(source, folder / "half_a_graph") / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])
    return graph.parent


def test_an_empty_base_path_is_served_as_soon_as_a_version_is_there(live: Process, saved_models: SavedModels) -> None:
    assert live.ask.post("/v1/models/later:predict", ROWS).status == 404
    put(live.output.parent / "later" / "7", saved_models.half_plus_two / "1")
    wait_until(lambda: available(live.ask, "later") == [7])
    assert live.ask.post("/v1/models/later:predict", ROWS).json == ANSWER


def test_what_is_counted_is_what_was_asked(live: Process) -> None:
    labels = frozenset({("model_name", "texts"), ("status", "OK")})
    latency = frozenset({("model_name", "texts"), ("API", "predict"), ("entrypoint", "REST")})
    before = live.ask.metrics()
    for _ in range(3):
        assert live.ask.post("/v1/models/texts:predict", {"instances": ["a"]}).status == 200
    assert live.ask.post("/v1/models/texts:predict", {}).status == 400
    after = live.ask.metrics()

    def more(name: str, labels: frozenset[tuple[str, str]]) -> float:
        return after[name, labels] - before.get((name, labels), 0)

    assert more("request_count_total", labels) == 3
    assert more("request_count_total", frozenset({("model_name", "texts"), ("status", "INVALID_ARGUMENT")})) == 1
    assert more("request_latency_count", latency) == 3
    assert after["request_latency_sum", latency] > 0


# Configuration


def reload(to: grpc.Channel, text: str) -> Any:
    from google.protobuf import text_format

    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    request = model_management_pb2.ReloadConfigRequest(config=config)
    return of_models(to).HandleReloadConfigRequest(request, timeout=SECONDS)


def test_a_new_configuration_replaces_the_whole_list(
    saved_models: SavedModels, base: Path, newer: Callable[[int], Path]
) -> None:
    put(base / "2", newer(3))
    both = "model_version_policy { all {} }"
    with started(*serving(base)) as (server, ask), asked_by_grpc(server) as to:
        before = server._noted
        reload(to, listed(entry("half", base, both), entry("many", saved_models.many)))
        wait_until(lambda: available(ask, "half") == [2, 1])
        assert available(ask, "many") == [1]
        (noted,) = [each for each in state.running() if each.url == server.url]
        assert (noted.models, noted.base_paths["many"]) == (("half", "many"), str(saved_models.many))
        assert before is not None
        assert not before.exists()
        reload(to, listed(entry("half", base, both + ' version_labels { key: "old" value: 1 }')))
        wait_until(lambda: available(ask, "many") == [])
        assert ask.post("/v1/models/half/labels/old:predict", ROWS).json == ANSWER
        assert ask.post("/v1/models/many:predict", ROWS).error == "Servable not found for request: Latest(many)"


def test_a_configuration_that_cannot_be_served_changes_nothing(saved_models: SavedModels, base: Path) -> None:
    with started(*serving(base)) as (server, ask), asked_by_grpc(server) as to:
        for text, code, message in (
            (listed(entry("half", base), entry("half", base)), "INVALID_ARGUMENT", "multiple times in config list"),
            (listed(entry("half", Path("here"))), "INVALID_ARGUMENT", "to have an absolute path or URI"),
            (listed(entry("x", base / "nowhere")), "NOT_FOUND", "Could not find base path"),
            (
                listed(entry("half", base, 'version_labels { key: "new" value: 9 }')),
                "FAILED_PRECONDITION",
                "Request to assign label to version 9 of model half, which is not currently available for inference",
            ),
            (
                listed(entry("half", base).replace("tensorflow", "caffe")),
                "INVALID_ARGUMENT",
                "change a model's platform",
            ),
        ):
            found = refused(lambda text=text: reload(to, text))  # type: ignore[misc]
            assert (found[0], message in found[1]) == (code, True), found
            assert ask.post("/v1/models/half:predict", ROWS).json == ANSWER
        assert refused(lambda: of_models(to).HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest()))[
            0
        ] == ("INVALID_ARGUMENT")


def test_a_configuration_file_is_read_again_and_a_bad_one_leaves_what_is_served(
    saved_models: SavedModels, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "models.config"
    file.write_text(listed(entry("half", base)))
    argv = [f"--model_config_file={file}", "--model_config_file_poll_wait_seconds=1"]
    with started(*argv) as (_, ask):
        file.write_text(listed(entry("half", base), entry("many", saved_models.many)))
        wait_until(lambda: available(ask, "many") == [1])
        for bad, said in (
            ("model_config_list {", "Error parsing text-format tensorflow.serving.ModelServerConfig"),
            (listed(entry("half", base), entry("nowhere", tmp_path / "nowhere")), "Could not find base path"),
        ):
            file.write_text(bad)
            wait_until(lambda said=said: f"{file} is left as it was" in caplog.text and said in caplog.text)  # type: ignore[misc]
            assert (available(ask, "many"), ask.post("/v1/models/half:predict", ROWS).json) == ([1], ANSWER)
        file.write_text(listed(entry("many", saved_models.many)))
        wait_until(lambda: available(ask, "half") == [])


def test_what_a_configuration_asks_for_in_vain_is_told(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "models.config"
    file.write_text(listed(entry("half", base, "logging_config { sampling_config { sampling_rate: 1 } }")))
    with started(f"--model_config_file={file}"):
        assert "logging_config of model half has no effect" in caplog.text


def test_labels_of_versions_that_are_not_there_yet_need_leave(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text(listed(entry("half", base, 'version_labels { key: "next" value: 2 }')))
    with pytest.raises(VersionFailed, match="Request to assign label to version 2 of model half"):
        ModelServer(flags.parse(["--any_port", f"--model_config_file={file}"]))
    with started(f"--model_config_file={file}", "--allow_version_labels_for_unavailable_models") as (_, ask):
        answer = ask.post("/v1/models/half/labels/next:predict", ROWS)
        assert (answer.status, answer.error) == (404, "Servable not found for request: Specific(half, 2)")


# Flags


def test_metrics_are_told_where_a_file_says(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "monitoring.config"
    file.write_text('prometheus_config { enable: true path: "/m" }')
    with started(*serving(base, f"--monitoring_config_file={file}")) as (_, ask):
        assert ask.metrics("/m")[("process_start_time_seconds", frozenset())] > 0
        assert ask.get("/monitoring/prometheus/metrics").status == 404
    file.write_text("prometheus_config { enable: false }")
    with started(*serving(base, f"--monitoring_config_file={file}")) as (_, ask):
        assert ask.get("/monitoring/prometheus/metrics").status == 404


def test_batches_are_made_as_a_file_says(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "batching.config"
    file.write_text(
        "max_batch_size { value: 8 } batch_timeout_micros { value: 20000 } num_batch_threads { value: 2 } "
        "allowed_batch_sizes: 4 allowed_batch_sizes: 8"
    )
    with started(*serving(base, "--enable_batching", f"--batching_parameters_file={file}")) as (_, ask):
        rows = [[float(number)] for number in range(12)]
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda row: ask.post("/v1/models/half:predict", {"instances": row}).json, rows))
        assert answers == [{"predictions": [number * 0.5 + 2]} for (number,) in rows]
        metrics = ask.metrics()
        sizes = {labels for name, labels in metrics if name == "batching_session:padding_size_count"}
        assert sizes <= {frozenset({("execution_batch_size", size)}) for size in ("4", "8")}
        assert 1 <= metrics["batching_session:wrapped_run_count_total", frozenset()] <= 12
        assert ask.post("/v1/models/half:predict", {"instances": [1.0] * 9}).status == 400


def test_a_version_may_bring_its_own_batching(base: Path) -> None:
    (base / "1" / "batching_params.pbtxt").write_text("max_batch_size { value: 2 }")
    argv = serving(base, "--enable_batching", "--enable_per_model_batching_parameters")
    with started(*argv) as (_, ask):
        assert ask.post("/v1/models/half:predict", {"instances": [1.0] * 2}).status == 200
        assert ask.post("/v1/models/half:predict", {"instances": [1.0] * 3}).status == 400


def test_tensor_content_and_checked_methods_are_opted_into(saved_models: SavedModels) -> None:
    argv = [f"--model_base_path={saved_models.half_plus_two}", "--model_name=half"]
    more = ["--enable_serialization_as_tensor_content", "--enable_signature_method_name_check"]
    with started(*argv, *more) as (server, _), asked_by_grpc(server) as to:
        found = predict(to, spec("half"), 2.0).outputs["y"]
        assert (found.tensor_content, list(found.float_val)) == (np.float32(3).tobytes(), [])
        request = by_example(regression_pb2.RegressionRequest(), "half", "")
        code, said = refused(lambda: predictions(to).Regress(request, timeout=SECONDS))
        assert (code, "Expected regression signature method_name" in said) == ("INVALID_ARGUMENT", True)


def test_pages_of_other_origins_may_ask_where_that_is_allowed(base: Path) -> None:
    with started(*serving(base, "--rest_api_enable_cors_support")) as (_, ask):
        answer = ask("POST", "/v1/models/half:predict", ROWS, {"Origin": "https://app.example"})
        assert (answer.json, answer.headers["access-control-allow-origin"]) == (ANSWER, "*")


def certificate(folder: Path) -> tuple[str, str]:
    """Return a key and a certificate of localhost, PEM."""
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True, timeout=SECONDS)
    return (folder / "key.pem").read_text(), (folder / "cert.pem").read_text()


def test_the_grpc_port_is_secured_as_a_file_says(base: Path, tmp_path: Path) -> None:
    key, cert = certificate(tmp_path)
    file = tmp_path / "ssl.config"
    escaped = [text.replace("\n", "\\n") for text in (key, cert)]
    file.write_text('server_key: "{}" server_cert: "{}"'.format(*escaped))
    with started(*serving(base, f"--ssl_config_file={file}")) as (server, ask):
        named = [("grpc.enable_http_proxy", 0), ("grpc.ssl_target_name_override", "localhost")]
        trusting = grpc.ssl_channel_credentials(cert.encode())
        with grpc.secure_channel(str(server.grpc_address), trusting, options=named) as to:
            assert list(predict(to, spec("half"), 2.0).outputs["y"].float_val) == [3.0]
        with asked_by_grpc(server) as to:
            assert refused(lambda: predict(to, spec("half"), 2.0))[0] == "UNAVAILABLE"
        assert ask.post("/v1/models/half:predict", ROWS).json == ANSWER
    file.write_text('server_key: "-----BEGIN x" server_cert: "-----BEGIN y"')
    with pytest.raises(ServingError, match="cannot listen on 127"):
        ModelServer(flags.parse(["--any_port", *serving(base, f"--ssl_config_file={file}")]))


def test_a_call_that_takes_too_long_is_a_504_and_holds_up_nobody(tmp_path: Path) -> None:
    write_slow(tmp_path / "slow" / "1")
    argv = [f"--model_base_path={tmp_path}/slow", "--model_name=slow", "--enable_batching"]
    with started(*argv, "--rest_api_timeout_in_ms=200") as (_, ask):
        assert ask.post("/v1/models/slow:predict", {"instances": [5.0]}).json == {"predictions": [5.0]}
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(ask.post, "/v1/models/slow:predict", {"instances": [400_000.0]})
            assert [ask.get("/v1/models/slow").status for _ in range(5)] == [200] * 5
            assert (late.result().status, late.result().error) == (504, "Timed out waiting for notification")


# Warm-up and the request log


def recorded(*values: float) -> Any:
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(floats(*values))
    log.predict_log.request.model_spec.name = "half"
    return log


def warmed(ask: Asking, version_dir: Path, status: str = "OK") -> tuple[float, float]:
    """Return how often a version was warmed up, and by how many requests."""
    metrics, path = ask.metrics(), ("model_path", str(version_dir))
    times = metrics.get(("model_warmup_latency_count", frozenset({path, ("status", status)})), 0)
    return times, metrics.get(("model_warmup_records_read_total", frozenset({path})), 0)


def test_a_version_is_warmed_up_before_it_answers(base: Path) -> None:
    warmup.write(base / "1", [recorded(1.0), recorded(1.0, 2.0)])
    with started(*serving(base, "--num_request_iterations_for_warmup=3")) as (_, ask):
        assert warmed(ask, base / "1") == (1, 2)
        ran = frozenset({("model_name", "half"), ("API", "Predict"), ("runtime", "TF1")})
        assert ask.metrics()["runtime_latency_count", ran] >= 6
    with started(*serving(base, "--enable_model_warmup=false")) as (_, ask):
        assert warmed(ask, base / "1") == (0, 0)


@pytest.mark.parametrize("damage", ["no such input", "half a file", "another file"])
def test_a_bad_warm_up_file_fails_its_version_alone_and_is_counted(
    base: Path, newer: Callable[[int], Path], tmp_path: Path, damage: str
) -> None:
    with started(*serving(base)) as (server, ask), asked_by_grpc(server) as to:
        made = shutil.copytree(newer(3), tmp_path / "made")
        wrong = recorded(1.0)
        if damage == "no such input":
            wrong.predict_log.request.inputs["z"].CopyFrom(wrong.predict_log.request.inputs["x"])
        file = warmup.write(made, [wrong])
        if damage == "half a file":
            file.write_bytes(file.read_bytes()[:-5])
        elif damage == "another file":
            file.write_bytes(b"x" * 100)
        made.rename(base / "2")
        wait_until(lambda: states(to, "half").get(2) is not None and states(to, "half")[2].status.error_code)
        status = "INVALID_ARGUMENT" if damage == "no such input" else "DATA_LOSS"
        assert warmed(ask, base / "2", status)[0] == 1
        assert states(to, "half")[1].state == 30
        assert ask.post("/v1/models/half:predict", ROWS).json == ANSWER


def test_what_was_asked_warms_up_the_next_version(base: Path, newer: Callable[[int], Path], tmp_path: Path) -> None:
    file = tmp_path / "requests.tfrecord"
    with started(*serving(base, f"--request_log_file={file}")) as (server, ask), asked_by_grpc(server) as to:
        for rows in ([1.0], [1.0, 2.0], [3.0, 4.0]):
            assert ask.post("/v1/models/half:predict", {"instances": rows}).status == 200
        predict(to, spec("half"), 1.0, 2.0, 3.0)
        assert ask.post("/v1/models/half:predict", {}).status == 400
        next_one = shutil.copytree(newer(3), tmp_path / "next")
        assert server._log is not None
        server._log.flush()
        assert to_warmup(file, next_one) == 3
        counted = frozenset({("model_name", "half"), ("status_code", "OK")})
        assert ask.metrics()["request_log_count_total", counted] == 4
        next_one.rename(base / "2")
        wait_until(lambda: available(ask, "half") == [2])
        assert warmed(ask, base / "2") == (1, 3)
    logs = [warmup.parse(record, file) for record in warmup.records(file)]
    assert [log.predict_log.request.inputs["x"].tensor_shape.dim[0].size for log in logs] == [1, 2, 2, 3]


# Starting and stopping


def test_a_server_is_known_to_others_while_it_runs(base: Path) -> None:
    with started(*serving(base), kernel=1) as (server, _), started(*serving(base)) as (second, _):
        found = {each.url: each for each in state.running()}
        assert {server.url, second.url} <= found.keys()
        told = found[server.url]
        assert (told.models, told.grpc, told.kernel) == (("half",), server.grpc_address, 1)
        assert (told.base_paths, told.url_of("half")) == ({"half": str(base)}, f"{server.url}/v1/models/half")
    assert not {server.url, second.url} & {each.url for each in state.running()}


def test_a_server_runs_where_nothing_can_be_noted(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(state, "folder", lambda: tmp_path / "file")
    with started(*serving(base)) as (_, ask):
        assert ask.post("/v1/models/half:predict", ROWS).json == ANSWER
    assert "this server is in no list" in caplog.text


def test_a_start_that_fails_leaves_nothing_behind(base: Path, tmp_path: Path) -> None:
    log, threads = tmp_path / "log.tfrecord", set(threading.enumerate())
    argv = ["--any_port", f"--request_log_file={log}"]
    (base / "1" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(VersionFailed, match=r"1 servable\(s\) did not become available"):
        ModelServer(flags.parse([*argv, *serving(base)]))
    assert not log.exists()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for flag in (f"--port={port}", f"--rest_api_port={port}"):
            with pytest.raises(ServingError, match=rf"cannot listen on 127\.0\.0\.1:{port}: found another program"):
                ModelServer(flags.parse([f"--model_base_path={base}", flag]))
    with pytest.raises(InputError, match="batching parameters"):
        file = tmp_path / "batching.config"
        file.write_text("max_batch_size { value: 0 }")
        flagged = ["--enable_batching", f"--batching_parameters_file={file}"]
        ModelServer(flags.parse([*argv, *serving(base), *flagged]))
    assert not log.exists()
    wait_until(lambda: not {thread for thread in threading.enumerate() if not thread.daemon} - threads)
    assert state.running() == [] or all(str(base) not in each.base_paths.values() for each in state.running())


def test_an_existing_request_log_is_not_written_over(base: Path, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"kept")
    with pytest.raises(OutputError, match="an existing file"):
        ModelServer(flags.parse(["--any_port", *serving(base, f"--request_log_file={tmp_path}/log")]))
    assert (tmp_path / "log").read_bytes() == b"kept"


def test_a_base_path_must_be_absolute_and_there(tmp_path: Path) -> None:
    with pytest.raises(VersionFailed, match="Expected model default to have an absolute path or URI"):
        ModelServer(flags.parse(["--any_port", "--model_base_path=models/half"]))
    with pytest.raises(VersionFailed, match=f"Could not find base path {tmp_path}/no"):
        ModelServer(flags.parse(["--any_port", f"--model_base_path={tmp_path}/no"]))


def test_a_server_that_stops_answers_what_it_was_asked_and_nothing_more(base: Path) -> None:
    with started(*serving(base)) as (server, ask), asked_by_grpc(server) as to:
        asked = threading.Event()

        def answered() -> float:
            value = float(ask.post("/v1/models/half:predict", {"instances": [1.0]}).json["predictions"][0])
            asked.set()
            return value

        with Hammer(answered, lambda: float(predict(to, spec("half"), 1.0).outputs["y"].float_val[0])) as hammer:
            assert asked.wait(SECONDS)
            server.stop()
        assert set(hammer.answers) == {2.5}
        half_gone = ("KeyError", "NOT_FOUND", "INTERNAL")  # the doors close before the models
        assert not [each for each in hammer.failures if any(sign in each for sign in half_gone)]
        with pytest.raises(Refusal, match="Servable not found"):
            server.use("half")


def test_two_reloads_at_once_come_one_after_the_other(saved_models: SavedModels, base: Path) -> None:
    one, two = listed(entry("half", base)), listed(entry("half", base), entry("many", saved_models.many))
    with started(*serving(base)) as (server, ask), asked_by_grpc(server) as to:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda text: reload(to, text), [one, two] * 4))
        names = [each.name for each in server._config.model_config_list.config]
        assert sorted(server.models.names()) == sorted(names)
        assert ask.post("/v1/models/half:predict", ROWS).json == ANSWER


def test_what_is_logged_names_models_and_versions(base: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), started(*serving(base)):
        assert "Successfully loaded servable version {name: half version: 1}" in caplog.text


# Splits


@contextlib.contextmanager
def of_half(server: ModelServer) -> Iterator[Client]:
    with Client(f"{server.url}/v1/models/half", grpc=server.grpc_address) as client:
        yield client


def counted(server: ModelServer) -> tuple[Counted, ...]:
    with of_half(server) as client:
        return client.metrics().by_version


def by_rest(ask: Asking, key: str | None = None) -> tuple[str, float]:
    """Return the arm that answered, and what it makes of 1."""
    answer = ask("POST", "/v1/models/half:predict", {"instances": [1.0]}, {"x-tfdeploy-key": key} if key else {})
    return answer.headers.get("x-tfdeploy-arm", ""), answer.json["predictions"][0]


def by_grpc(to: grpc.Channel, key: str | None = None) -> tuple[str, float]:
    request = floats(1.0)
    request.model_spec.CopyFrom(spec("half"))
    metadata = (("x-tfdeploy-key", key),) if key else ()
    response, call = predictions(to).Predict.with_call(request, timeout=SECONDS, metadata=metadata)
    return dict(call.trailing_metadata()).get("x-tfdeploy-arm", ""), response.outputs["y"].float_val[0]


def labelled(base: Path, version: int) -> str:
    label = f'version_labels {{ key: "next" value: {version} }}'
    return listed(entry("half", base, f"model_version_policy {{ all {{}} }} {label}"))


@pytest.fixture
def split_server(base: Path, newer: Callable[[int], Path], tmp_path: Path) -> Iterator[tuple[ModelServer, Asking]]:
    """A server with the versions 1 and 2, which adds 3 and is labelled "next"; nothing is split yet."""
    put(base / "2", newer(3))
    file = tmp_path / "models.config"
    file.write_text(labelled(base, 2))
    with started(f"--model_config_file={file}", "--allow_version_labels_for_unavailable_models") as found:
        yield found


ARMS = (Arm("old", 0.7, "half", version=1), Arm("next", 0.3, "half", label="next"))


def test_requests_are_split_at_both_doors_and_the_same_key_gets_the_same_arm(
    split_server: tuple[ModelServer, Asking],
) -> None:
    server, ask = split_server
    with asked_by_grpc(server) as to:
        assert (by_rest(ask), by_grpc(to)) == (("", 3.5), ("", 3.5))
        server.route({"half": ARMS})
        answers = {"old": ("old", 2.5), "next": ("next", 3.5)}
        arms = Counter[str]()
        for number in range(40):
            key = f"user-{number}"
            arm = server.router.choose("half", key)
            assert arm is not None
            assert by_rest(ask, key) == by_grpc(to, key) == answers[arm.name]
            arms[arm.name] += 1
        assert set(arms) == {"old", "next"}
        assert {by_rest(ask) for _ in range(60)} == {*answers.values()}
        assert ask.post("/v1/models/half/versions/2:predict", ROWS).headers.get("x-tfdeploy-arm") is None
        assert ask.get("/v1/models/half/metadata").json["model_spec"]["version"] == "2"
        server.route({"half": ()})
        assert (by_rest(ask), by_grpc(to)) == (("", 3.5), ("", 3.5))


def test_each_arm_is_counted_as_its_clients_count_and_anew_for_a_new_split(
    split_server: tuple[ModelServer, Asking],
) -> None:
    server, ask = split_server
    server.route({"half": ARMS})
    with asked_by_grpc(server) as to, ThreadPoolExecutor(8) as pool:
        for shares in ((0.7, 0.3), (0.5, 0.5)):
            server.route({"half": [dataclasses.replace(a, share=s) for a, s in zip(ARMS, shares, strict=True)]})
            seen = Counter(pool.map(lambda n: (by_rest(ask) if n % 2 else by_grpc(to))[0], range(200)))
            wrong = [ask.post("/v1/models/half:predict", {}).headers["x-tfdeploy-arm"] for _ in range(20)]
            rows = {row.arm: row for row in counted(server)}
            assert {arm: row.requests["OK"] for arm, row in rows.items()} == seen
            assert {arm: row.requests.get("INVALID_ARGUMENT", 0) for arm, row in rows.items()} == {
                arm: wrong.count(arm) for arm in rows
            }
            assert {arm: row.version for arm, row in rows.items()} == {"old": 1, "next": 2}
            assert all(row.p50_ms is not None and row.p50_ms > 0 for row in rows.values())
    assert by_rest(ask)[0]
    server.route({"half": ()})
    by_rest(ask)
    assert {row.arm for row in counted(server)} == {"", "old", "next"}  # a test that is over can still be read


def test_outcomes_are_counted_by_the_arm_of_their_key_and_go_with_the_split(
    split_server: tuple[ModelServer, Asking],
) -> None:
    server, ask = split_server
    server.route({"half": ARMS})
    keys = [f"user-{number}" for number in range(30)]
    with of_half(server) as client:
        arms = Counter(by_rest(ask, key)[0] for key in keys)
        assert client.outcome([True] * 30, key=keys) == 30
        assert client.outcome([False, False], arm="next") == 2
        refused = ask.post("/v1/models/half:outcome", {"outcomes": [{"arm": "old", "success": True}, {"arm": "x"}]})
        assert (refused.status, refused.error.startswith("Failed to process element: 1 of 'outcomes'")) == (400, True)
        rows = {row.arm: (row.version, row.requests, row.successes, row.failures) for row in counted(server)}
        assert rows == {
            "old": (1, {"OK": arms["old"]}, arms["old"], 0),
            "next": (2, {"OK": arms["next"]}, arms["next"], 2),
        }
        server.route({"half": [Arm("old", 1.0, "half", version=1)]})
        assert counted(server) == ()
        client.outcome(True, arm="old")
        assert counted(server) == (Counted(None, "old", {}, None, None, None, 1, 0),)


def test_an_arm_may_be_another_model(saved_models: SavedModels, base: Path, newer: Callable[[int], Path]) -> None:
    other = base.parent / "other"
    other.mkdir()
    put(other / "5", newer(4))
    with started(*serving(base)) as (server, ask), asked_by_grpc(server) as to:
        reload(to, listed(entry("half", base), entry("other", other)))
        server.route({"half": (Arm("half", 0.5, "half"), Arm("other", 0.5, "other"))})
        server.route({"other": ()})  # of one model, the others' splits go on
        assert {by_rest(ask) for _ in range(40)} == {("half", 2.5), ("other", 4.5)}
        assert ask.post("/v1/models/other:predict", ROWS).headers.get("x-tfdeploy-arm") is None
        rows = {(row.arm, row.version): row.requests["OK"] for row in counted(server)}
        assert (rows.keys(), sum(rows.values())) == ({("half", 1), ("other", 5)}, 40)


def test_the_version_of_an_arm_is_swapped_and_unloaded_under_load_and_nothing_is_lost(
    split_server: tuple[ModelServer, Asking], base: Path, newer: Callable[[int], Path]
) -> None:
    server, ask = split_server
    server.route({"half": ARMS})
    seen: list[tuple[str, float]] = []
    with asked_by_grpc(server) as to:

        def asking(door: Callable[[], tuple[str, float]]) -> Callable[[], float]:
            def once() -> float:
                seen.append(door())
                return seen[-1][1]

            return once

        def go_on(more: int = 40) -> None:
            at = len(seen) + more
            wait_until(lambda: len(seen) > at)

        rest, over_grpc = asking(lambda: by_rest(ask)), asking(lambda: by_grpc(to))
        with Hammer(rest, over_grpc, rest, over_grpc) as hammer:
            go_on()
            put(base / "3", newer(4))
            wait_until(lambda: available(ask, "half") == [3, 2, 1])
            reload(to, labelled(base, 3))  # the label moves
            go_on()
            specific = "model_version_policy { specific { versions: 1 } }"
            reload(to, listed(entry("half", base, specific)))  # the label and its version are gone
            wait_until(lambda: available(ask, "half") == [1])
            gone = len(seen) + 4
            go_on()
        assert hammer.failures == []
    assert {*seen} == {("old", 2.5), ("next", 3.5), ("next", 4.5)}
    assert {*seen[gone:]} == {("old", 2.5)}
    rows = {(row.arm, row.version): row.requests for row in counted(server)}
    versions = {("old", 1): ("old", 2.5), ("next", 2): ("next", 3.5), ("next", 3): ("next", 4.5)}
    assert rows == {key: {"OK": seen.count(answer)} for key, answer in versions.items()}


def test_a_split_that_cannot_be_leaves_the_one_before_it(split_server: tuple[ModelServer, Asking]) -> None:
    server, _ = split_server
    server.route({"half": ARMS})
    with pytest.raises(InputError, match=r"shares of 0\.7, 0\.7"):
        server.route({"half": [dataclasses.replace(arm, share=0.7) for arm in ARMS]})
    assert server.router.routes == {"half": ARMS}


def test_a_kernel_splits_the_requests_of_a_server_that_it_started(base: Path, newer: Callable[[int], Path]) -> None:
    report = Report(silent)
    other = base.parent / "other"
    other.mkdir()
    put(other / "1", newer(4))
    urls = {}
    for name, path in (("half", base), ("other", other)):
        argv = ["--any_port", f"--model_name={name}", f"--model_base_path={path}"]
        urls[name] = process.start_task(report, argv, os.getpid())["url"]
    try:
        routes = {"half": [dataclasses.asdict(Arm("only", 1.0, "half", version=1))]}
        process.route_task(report, routes, server="half")
        with Client(f"{urls['half']}/v1/models/half") as client:
            client.predict([1.0])
            assert [(row.arm, row.version) for row in client.metrics().by_version] == [("only", 1)]
        process.route_task(report, {"half": []}, server="half")
        assert process._servers["half"].router.routes == process._servers["other"].router.routes == {}
    finally:
        for name in urls:
            process.stop_task(report, name)
