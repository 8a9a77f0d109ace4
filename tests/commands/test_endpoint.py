from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving.fake_server import Fake, serving
from tfdeploy_magic.artifacts.signature import Signature, TensorSpec
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.errors import DataError, InputError, ServerUnreachable, ServingError
from tfdeploy_magic.serving import hosting, state
from tfdeploy_magic.serving.embedded import EmbeddedHost
from tfdeploy_magic.serving.hosting import Hosted
from tfdeploy_magic.serving.served import Served

STATUS = '{"model_version_status": [{"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK"}}]}'
COUNTED = ':tensorflow:serving:request_count{model_name="echo",status="OK"} 7\n'
HALVES = TensorSpec("x", (None, 3), "int8", scale=0.5, zero_point=-10)


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving() as running:
        running.answers["/v1/models/echo"] = (200, STATUS)
        running.answers["/monitoring/prometheus/metrics"] = (200, COUNTED)
        yield running


def quantized(fake: Fake, *inputs: TensorSpec) -> Endpoint:
    """Return an endpoint of a .tflite file that this process serves, and that answers what it is asked."""
    # It is asked by its version: others have other scales.
    fake.answers["/v1/models/echo/versions/3/metadata"] = fake.answers["/v1/models/echo/metadata"]
    lite = {"serving_default": Signature("serving_default", inputs, inputs)}
    host = EmbeddedHost("echo", {"echo": Hosted(Path("/nowhere"), ours=False)}, in_kernel=True)
    host.url = f"http://127.0.0.1:{fake.port}"
    host.models["echo"].known[3] = Served(3, "lite", "/nowhere", 1, lite=lite)
    return Endpoint(fake.url, fake.grpc, host)


def test_asked_it_answers(fake: Fake) -> None:
    endpoint = Endpoint(fake.url, fake.grpc)
    x = np.arange(6, dtype="float32").reshape(2, 3)
    over: Any
    for over in ("rest", "grpc", None):
        np.testing.assert_array_equal(endpoint.predict(x, over=over), x)
    assert endpoint.name == "echo"
    assert endpoint.version == 3
    assert [found.state for found in endpoint.status()] == ["AVAILABLE"]
    assert endpoint.metrics().requests == {"OK": 7}
    assert [str(spec) for spec in endpoint.signatures["serving_default"].inputs] == ["x: float32[?, 3]"]
    assert repr(endpoint) == f"<Endpoint {fake.url}>"


@pytest.mark.parametrize("url", ["127.0.0.1:8501", "http://127.0.0.1:8501", "digits", "ftp://h/v1/models/m"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(InputError, match="not the address of a model"):
        Endpoint(url)


def test_an_input_that_does_not_fit_is_not_sent(fake: Fake) -> None:
    endpoint = Endpoint(fake.url)
    with pytest.raises(DataError, match=r"found the shape \[3\]"):
        endpoint.predict(np.zeros(3, "float32"))
    assert not any(path.endswith(":predict") for _, path, _ in fake.asked)


def test_real_numbers_are_quantized_by_the_scale_of_the_file(fake: Fake) -> None:
    fake.has({"x": ("DT_INT8", [-1, 3])})
    endpoint = quantized(fake, HALVES)
    for rows in ([[0.5, 1.0, -1.0]], np.array([[0.5, 1.0, -1.0]], "float32"), {"x": [[0.5, 1.0, -1.0]]}):
        np.testing.assert_array_equal(endpoint.predict(rows), [[0.5, 1.0, -1.0]])
    assert fake.asked[-1][1] == "/v1/models/echo/versions/3:predict"
    assert fake.asked[-1][2] == b'{"signature_name":"serving_default","inputs":[[-9,-8,-12]]}'
    assert endpoint.predict(np.full((2, 3), 1e9)).max() == 0.5 * (127 + 10), "what it cannot hold is as near as can be"
    assert [str(spec) for spec in endpoint.inputs(endpoint.signatures["serving_default"])] == ["x: float32[?, 3]"]


def test_several_inputs_are_quantized_each_by_its_own(fake: Fake) -> None:
    fake.has({"a": ("DT_INT8", [-1, 1]), "n": ("DT_INT32", [-1])})
    endpoint = quantized(fake, TensorSpec("a", (None, 1), "int8", scale=0.25), TensorSpec("n", (None,), "int32"))
    for given in ({"a": [[2.0]], "n": [7]}, [[[2.0]], [7]]):
        answers = endpoint.predict(given)
        assert (answers["a"].tolist(), answers["n"].tolist()) == ([[2.0]], [7])
    for wrong in ({"a": [[2.0]]}, [[[2.0]]], np.zeros((1, 1))):
        with pytest.raises(DataError):
            endpoint.predict(wrong)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_integer_stands_for_what_is_not_finite(fake: Fake, value: float) -> None:
    with pytest.raises(DataError, match="NaN or infinity"):
        quantized(fake, HALVES).predict([[0.0, 0.0, value]])


def test_what_is_no_number_is_refused_in_words(fake: Fake) -> None:
    fake.has({"x": ("DT_INT8", [-1, 3])})
    with pytest.raises(DataError, match="input 'x' does not take this"):
        quantized(fake, HALVES).predict([["a", "b", "c"]])


def test_what_an_old_handle_knows_is_what_was_served_last(fake: Fake) -> None:
    fake.has({"x": ("DT_INT8", [-1, 3])})
    endpoint = quantized(fake, HALVES)
    endpoint.predict([[1.0, 1.0, 1.0]])
    fake.has({"x": ("DT_FLOAT", [-1, 3])})
    assert endpoint.host is not None and endpoint.served is not None
    endpoint.host.models["echo"].known[4] = replace(endpoint.served, version=4, lite=None)
    np.testing.assert_array_equal(endpoint.predict([[1.25, 1.0, 1.0]]), [[1.25, 1.0, 1.0]])


def test_a_card_says_how_it_is(fake: Fake) -> None:
    bundle = Endpoint(fake.url, fake.grpc)._repr_mimebundle_()
    for said in ("✓ serving version 3", fake.url, "x: float32[?, 3]", "7 OK", fake.grpc):
        assert said in bundle["text/plain"]
    assert "✓ serving version 3" in bundle["text/html"]


def test_a_server_that_shows_no_metrics_has_a_card_all_the_same(fake: Fake) -> None:
    del fake.answers["/monitoring/prometheus/metrics"]
    text = Endpoint(fake.url)._repr_mimebundle_()["text/plain"]
    assert text.startswith("✓ serving version 3")
    assert "x: float32[?, 3]" in text


def test_a_model_that_is_not_loaded_yet_has_a_card_too(fake: Fake) -> None:
    fake.answers["/v1/models/echo"] = (200, STATUS.replace("AVAILABLE", "LOADING"))
    fake.answers["/v1/models/echo/metadata"] = (404, '{"error": "Servable not found for request: Latest(echo)"}')
    assert Endpoint(fake.url)._repr_mimebundle_()["text/plain"].startswith("– loading")


def test_an_address_may_name_a_version_and_the_method(fake: Fake) -> None:
    fake.answers["/v1/models/echo/versions/3"] = fake.answers["/v1/models/echo"]
    fake.answers["/v1/models/echo/versions/3/metadata"] = fake.answers["/v1/models/echo/metadata"]
    text = Endpoint(f"{fake.url}/versions/3:predict")._repr_mimebundle_()["text/plain"]
    assert f"{fake.url}/versions/3:predict" in text
    assert ":predict:predict" not in text


def test_a_server_that_is_gone_is_said_to_be() -> None:
    endpoint = Endpoint("http://127.0.0.1:9/v1/models/gone")
    assert endpoint._repr_mimebundle_()["text/plain"].startswith("✗ not answering")
    with pytest.raises(ServerUnreachable):
        endpoint.predict([1.0])
    with pytest.raises(ServingError, match="no server of yours at"):
        endpoint.stop()


def test_of_an_address_all_is_known_that_its_server_wrote_down(monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"a": Hosted(Path("/nowhere"), ours=False)}
    host = EmbeddedHost("a", models, url="http://127.0.0.1:1", grpc="127.0.0.1:2", in_kernel=True)
    other = state.RunningServer(1, 0.0, ("b",), "http://127.0.0.1:3", "127.0.0.1:4", {}, None, 0.0)
    without_rest = state.RunningServer(1, 0.0, ("c",), None, "127.0.0.1:5", {}, None, 0.0)
    monkeypatch.setitem(hosting.hosts, "a", host)
    monkeypatch.setattr(state, "running", lambda: [without_rest, other])
    found = [Endpoint.at(f"http://127.0.0.1:{port}/v1/models/{name}") for port, name in ((1, "a"), (3, "b"), (33, "d"))]
    assert [(each.grpc, each.host) for each in found] == [("127.0.0.1:2", host), ("127.0.0.1:4", None), (None, None)]


def test_a_script_that_asks_imports_no_tensorflow(fake: Fake) -> None:
    code = f"""
import sys, tfdeploy_magic
endpoint = tfdeploy_magic.Endpoint({fake.url!r}, grpc={fake.grpc!r})
print(endpoint.predict([[1, 2, 3]]).tolist(), endpoint.predict([[4, 5, 6]], over="grpc").tolist())
print([name for name in ("tensorflow", "keras", "IPython", "matplotlib", "granian") if name in sys.modules])
"""
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-W", "error", "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    assert said == "[[1.0, 2.0, 3.0]] [[4.0, 5.0, 6.0]]\n[]\n"
