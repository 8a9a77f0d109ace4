"""A model is asked with numpy over REST or gRPC alike; what does not fit is said before anything is sent."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pandas as pd
import prometheus_client.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as drawn

from tests.serving.fake_server import Fake, serving
from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, Signature, TensorSpec
from tfdeploy_magic.errors import DataError, InputError, NameNotFound, RequestRefused, ServerUnreachable
from tfdeploy_magic.serving.calls import VersionStatus
from tfdeploy_magic.serving.client import LARGE, Client, Metrics, Over
from tfdeploy_magic.serving.client_json import outputs_of
from tfdeploy_magic.serving.client_metrics import Counted
from tfdeploy_magic.serving.monitoring import Monitoring
from tfdeploy_magic.serving.protos import predict_pb2, tensor_pb2, types_pb2
from tfdeploy_magic.serving.status import Code

X = np.array([[1.5, -2.25, 3.0], [0.1, 1e-30, -7e20]], np.float32)
BOTH: tuple[Over, ...] = ("rest", "grpc")
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving() as one:
        yield one


@pytest.fixture
def client(fake: Fake) -> Iterator[Client]:
    with Client(fake.url, grpc=fake.grpc) as one:
        yield one


def same(found: Any, wanted: npt.NDArray[Any]) -> bool:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(found, wanted)
    return True


def predictions(fake: Fake) -> list[Any]:
    return [json.loads(body) for method, _, body in fake.asked if method == "POST"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# Where it asks


def test_nothing_imports_tensorflow(fake: Fake) -> None:
    script = f"""
import sys
from tfdeploy_magic.serving.client import Client
print([name for name in ("tensorflow", "grpc", "google.protobuf") if name in sys.modules])
with Client({fake.url!r}, grpc={fake.grpc!r}) as client:
    print(client.predict([[1, 2, 3]]), client.predict([[1, 2, 3]], over="grpc"), "tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["[]", "[[1. 2. 3.]] [[1. 2. 3.]] False"]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/models/m", "/v1/models/m"),
        ("/v1/models/m/", "/v1/models/m"),
        ("/v1/models/m:predict", "/v1/models/m"),
        ("/v1/models/m/metadata", "/v1/models/m"),
        ("/v1/models/m/versions/12", "/v1/models/m/versions/12"),
        ("/v1/models/m/labels/canary:predict", "/v1/models/m/labels/canary"),
        ("/behind/a/gateway/v1/models/m/", "/behind/a/gateway/v1/models/m"),
        ("/v1/models/my%20model", "/v1/models/my%20model"),
    ],
)
def test_an_address_is_taken_as_people_copy_it(path: str, asked: str) -> None:
    assert Client(f"http://127.0.0.1:8501{path}").url == f"http://127.0.0.1:8501{asked}"


def test_a_version_or_label_may_be_given_beside_the_address() -> None:
    assert Client("http://[::1]:8501/v1/models/m", version=7).url == "http://[::1]:8501/v1/models/m/versions/7"
    assert Client("http://here/v1/models/m/versions/2", label="a b").url == "http://here/v1/models/m/labels/a%20b"


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8501", "http://127.0.0.1:8501", "http://h/v1/models/", "ftp://h/v1/models/m"]
)
def test_what_is_no_address_of_a_model_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="http://HOST:PORT/v1/models/NAME"):
        Client(url)


def test_a_version_and_a_label_are_too_much() -> None:
    with pytest.raises(InputError, match="version 1 and label 'stable'"):
        Client("http://h/v1/models/m", version=1, label="stable")


def test_version_and_label_are_asked_over_both_doors(fake: Fake) -> None:
    fake.answers["/v1/models/echo/versions/3/metadata"] = fake.answers["/v1/models/echo/metadata"]
    fake.answers["/v1/models/echo/labels/stable/metadata"] = fake.answers["/v1/models/echo/metadata"]
    for given_url, path in (("/versions/3", "/versions/3"), ("/labels/stable", "/labels/stable")):
        with Client(fake.url + given_url, grpc=fake.grpc) as client:
            client.predict(X, over="rest")
            client.predict(X, over="grpc")
        assert fake.asked[-1][1] == f"/v1/models/echo{path}:predict"
    by_version, by_label = (message.model_spec for message in fake.messages)
    assert (by_version.name, by_version.version.value, by_version.WhichOneof("version_choice")) == (
        "echo",
        3,
        "version",
    )
    assert by_label.version_label == "stable"
    assert by_label.signature_name == "serving_default"


def test_the_environments_proxies_are_not_asked(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with Client(fake.url, grpc=fake.grpc, timeout=10) as client:
        for over in BOTH:
            same(client.predict(X, over=over), X)


# What the model is


def test_signatures_are_read_from_the_metadata(fake: Fake, client: Client) -> None:
    fake.has(
        {"b": ("DT_STRING", [-1]), "a": ("DT_HALF", [1, -1, 8])},
        {"y": ("DT_BFLOAT16", None), "z": ("DT_INT64", [])},
    )
    assert client.signatures() == {
        "serving_default": Signature(
            "serving_default",
            (TensorSpec("a", (1, None, 8), "float16", tensor="a:0"), TensorSpec("b", (None,), "string", tensor="b:0")),
            (TensorSpec("y", UNKNOWN_RANK, "bfloat16", tensor="y:0"), TensorSpec("z", (), "int64", tensor="z:0")),
        )
    }


def test_signatures_are_asked_once_until_a_refresh(fake: Fake, client: Client) -> None:
    before = client.signatures()
    fake.has({"other": ("DT_FLOAT", [2])})
    assert client.signatures() == before
    assert [spec.name for spec in client.signatures(refresh=True)["serving_default"].inputs] == ["other"]
    assert len(fake.asked) == 2


def test_a_newer_version_with_other_inputs_is_noticed(fake: Fake, client: Client) -> None:
    client.predict(X)
    fake.has({"x": ("DT_FLOAT", [-1, 2])})
    same(client.predict(X[:, :2]), X[:, :2])


def test_a_newer_version_with_other_outputs_is_noticed(fake: Fake, client: Client) -> None:
    client.predict(X)
    fake.has({"x": ("DT_FLOAT", [-1, 3])}, {"a": ("DT_FLOAT", [-1]), "b": ("DT_INT32", [-1])})
    fake.answers["/v1/models/echo:predict"] = (200, '{"outputs": {"b": [1], "a": [0.5]}}')
    found = client.predict(X)
    same(found["a"], np.array([0.5], np.float32))
    same(found["b"], np.array([1], np.int32))


def test_an_unknown_signature_is_an_error_that_names_the_nearest(client: Client) -> None:
    with pytest.raises(NameNotFound, match=r"one of serving_default.*Did you mean serving_default"):
        client.predict(X, signature="serving_defualt")


# What goes there and comes back


@pytest.mark.parametrize("over", BOTH)
@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64"]
)
def test_numbers_come_back_as_they_were(fake: Fake, client: Client, dtype: str, over: Over) -> None:
    fake.has({"x": (f"DT_{ {'float32': 'FLOAT', 'float64': 'DOUBLE'}.get(dtype, dtype.upper()) }", None)})
    kind = np.dtype(dtype)
    limits: Any = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
    edge = np.array([[limits.min, limits.max, 0], [1, 2, 3]], kind)
    for x in (
        edge,
        edge[:, ::2],
        edge.T,
        edge[0, 1:2].reshape(()),
        np.zeros((1, 0), kind),
        edge.astype(kind.newbyteorder()),
    ):
        same(client.predict(x, over=over), np.asarray(x, kind))


@pytest.mark.parametrize("over", BOTH)
def test_bools_and_scalars_come_back_as_they_were(fake: Fake, client: Client, over: Over) -> None:
    fake.has({"x": ("DT_BOOL", [-1]), "n": ("DT_INT32", [])})
    found = client.predict({"x": [True, False], "n": 4}, over=over)
    same(found["x"], np.array([True, False]))
    same(found["n"], np.array(4, np.int32))


@pytest.fixture(scope="module")
def echoes() -> Iterator[tuple[Client, Client]]:
    """A model of floats and one of strings, of any shape."""
    with serving() as fake:
        fake.has({"x": ("DT_FLOAT", None)}, name="floats")
        fake.has({"x": ("DT_STRING", None)}, name="texts")
        root = fake.url.removesuffix("echo")
        with Client(root + "floats", grpc=fake.grpc) as floats, Client(root + "texts", grpc=fake.grpc) as texts:
            yield floats, texts


@many
@given(drawn.arrays(np.float32, drawn.array_shapes(max_dims=3, max_side=4), elements=st.floats(width=32)))
def test_any_floats_come_back_as_they_were_nan_and_infinity_too(
    echoes: tuple[Client, Client], x: npt.NDArray[Any]
) -> None:
    for over in BOTH:
        same(echoes[0].predict(x, over=over), x)


@many
@given(st.lists(st.one_of(st.binary(), st.text()), min_size=1))
def test_any_text_and_bytes_come_back_as_bytes_over_both_doors(
    echoes: tuple[Client, Client], texts: list[str | bytes]
) -> None:
    wanted = [text.encode() if isinstance(text, str) else text for text in texts]
    for over in BOTH:
        assert echoes[1].predict(texts, over=over).tolist() == wanted


def test_what_is_sent_is_columnar_json_with_bare_tokens_where_json_has_none(fake: Fake, client: Client) -> None:
    client.predict(X)
    client.predict([[np.nan, np.inf, -np.inf]])
    plain, special = (body for method, _, body in fake.asked if method == "POST")
    assert json.loads(plain).keys() == {"signature_name", "inputs"}
    same(np.array(json.loads(plain)["inputs"], np.float32), X)
    assert special == b'{"signature_name": "serving_default", "inputs": [[NaN, Infinity, -Infinity]]}'


def test_bytes_that_are_no_text_go_as_base64(fake: Fake, client: Client) -> None:
    fake.has({"x": ("DT_STRING", [-1])})
    client.predict(["é\x00", b"\xff\xd8"])
    assert predictions(fake) == [{"signature_name": "serving_default", "inputs": ["é\x00", {"b64": "/9g="}]}]


def test_bytes_that_the_server_writes_bare_are_read(fake: Fake, client: Client) -> None:
    fake.has({"x": ("DT_FLOAT", [-1, 3])}, {"t": ("DT_STRING", [-1])})
    fake.answers["/v1/models/echo:predict"] = (
        200,
        b'{"outputs": ["\xff ok", {"b64": "AAE="}]}',
    )
    assert client.predict(X).tolist() == [b"\xff ok", b"\x00\x01"]


@pytest.mark.parametrize("over", BOTH)
def test_several_inputs_go_by_name_or_in_the_order_of_their_names(fake: Fake, client: Client, over: Over) -> None:
    fake.has({"b": ("DT_INT32", [-1]), "a": ("DT_FLOAT", [-1])})
    for x in ({"b": [1, 2], "a": [0.5]}, [[0.5], [1, 2]], ([0.5], np.array([1, 2]))):
        found = client.predict(x, over=over)
        assert list(found) == ["a", "b"]
        same(found["a"], np.array([0.5], np.float32))
        same(found["b"], np.array([1, 2], np.int32))


def test_an_input_called_b64_is_not_taken_for_base64(fake: Fake, client: Client) -> None:
    fake.has({"b64": ("DT_STRING", [])})
    client.predict({"b64": "text"})
    assert predictions(fake)[0]["inputs"] == "text"


def test_data_frames_and_whatever_numpy_reads_are_taken(client: Client) -> None:
    class Tensor:
        def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
            return X if dtype is None else X.astype(dtype)

    same(client.predict(pd.DataFrame(X.astype("f8"), columns=["a", "b", "c"])), X)
    same(client.predict(Tensor()), X)
    same(client.predict({"x": X.tolist()}), X)


def test_casts_that_lose_nothing_but_last_digits_are_done(fake: Fake, client: Client) -> None:
    same(client.predict(np.full((1, 3), 0.1)), np.full((1, 3), 0.1, np.float32))
    same(client.predict(np.array([[True, 2, 3]], object).astype("i8")), np.array([[1, 2, 3]], np.float32))
    fake.has({"x": ("DT_UINT8", [-1])})
    client.signatures(refresh=True)
    same(client.predict([0, 255]), np.array([0, 255], np.uint8))
    same(client.predict([]), np.array([], np.uint8))


@pytest.mark.parametrize(
    ("dtype", "x", "said"),
    [
        ("DT_INT32", [1.0], r"float64.*\nWanted x: int32.*np.rint\(x\).astype\('int32'\)"),
        ("DT_UINT8", [256], "found 256.*\n.*more than uint8 holds"),
        ("DT_INT64", np.array([2**63], np.uint64), "found 9223372036854775808"),
        ("DT_UINT64", [-1], "found -1"),
        ("DT_FLOAT", [1e39], r"found 1e\+39.*\n.*more than float32 holds"),
        ("DT_FLOAT", [1j], "complex128"),
        ("DT_FLOAT", ["a"], "Convert it first"),
        ("DT_FLOAT", [None], "object"),
        ("DT_BOOL", [1], "int64"),
        ("DT_STRING", [1], "int 1"),
        ("DT_STRING", [["a"], ["b", "c"]], "list"),
        ("DT_FLOAT", [[1], [1, 2]], "rows of different lengths.*\n.*Pad"),
        ("DT_RESOURCE", [1], "resource"),
    ],
)
def test_what_would_lose_something_is_an_error_before_anything_is_sent(
    fake: Fake, client: Client, dtype: str, x: Any, said: str
) -> None:
    fake.has({"x": (dtype, [-1])}, {"y": ("DT_FLOAT", [])})
    with pytest.raises(DataError, match=said):
        client.predict(x)
    assert not predictions(fake)


@pytest.mark.parametrize(
    ("wanted", "found", "cure"),
    [
        ([-1, 8, 8, 1], (8, 8, 1), r"Add the batch dimension: x\[None\]"),
        ([-1, 8, 8, 1], (5, 8, 8), r"Add the last dimension: x\[..., None\]"),
        ([-1, 8, 8, 1], (8, 8), r"x\[None, ..., None\]"),
        ([-1, 28, 28], (1, 5, 28, 28), r"x\[0\]"),
        ([-1, 28, 28], (5, 28, 28, 1), r"x\[..., 0\]"),
        ([-1, 32, 32, 3], (5, 3, 32, 32), r"np.moveaxis\(x, 1, -1\)"),
        ([-1, 784], (5, 28, 28), r"x.reshape\(-1, 784\)"),
        ([-1, 4], (5, 3), r"Give it in that shape"),
        ([], (3,), r"Give it in that shape"),
        ([1, 4], (2, 4), r"found the shape \[2, 4\].*\nWanted x: float32\[1, 4\]"),
    ],
)
def test_a_shape_that_does_not_fit_is_an_error_with_what_to_type(
    fake: Fake, client: Client, wanted: list[int], found: tuple[int, ...], cure: str
) -> None:
    fake.has({"x": ("DT_FLOAT", wanted)})
    with pytest.raises(DataError, match=cure):
        client.predict(np.zeros(found))
    assert not predictions(fake)


def test_inputs_that_lack_or_are_too_many_are_named(fake: Fake, client: Client) -> None:
    fake.has({"a": ("DT_FLOAT", [-1]), "b": ("DT_FLOAT", [-1])})
    with pytest.raises(DataError, match=r"found a, c.*\nWanted a, b"):
        client.predict({"a": [1], "c": [1]})
    with pytest.raises(DataError, match=r"2 inputs: found 3 of them.*\n.*Give \{'a': ..., 'b': ...\}"):
        client.predict([[1], [1], [1]])
    with pytest.raises(DataError, match="found one ndarray"):
        client.predict(np.zeros(2))


# Which door


def test_large_inputs_go_over_grpc_and_small_ones_over_rest(fake: Fake, client: Client) -> None:
    large = np.zeros((LARGE // 12 + 1, 3), np.float32)
    client.predict(large[:-1])
    assert (len(predictions(fake)), len(fake.messages)) == (1, 0)
    client.predict(large)
    assert (len(predictions(fake)), len(fake.messages)) == (1, 1)
    with Client(fake.url) as no_grpc:
        no_grpc.predict(large)
    assert (len(predictions(fake)), len(fake.messages)) == (2, 1)


def test_text_is_as_large_as_its_bytes(fake: Fake, client: Client) -> None:
    fake.has({"x": ("DT_STRING", [-1])})
    client.predict([b"a" * LARGE])
    assert not fake.messages
    client.predict([b"a" * LARGE, "b"])
    assert list(fake.messages[0].inputs["x"].string_val) == [b"a" * LARGE, b"b"]


def test_a_dtype_that_json_has_not_goes_over_grpc(fake: Fake, client: Client) -> None:
    fake.has({"x": ("DT_HALF", [-1])})
    same(client.predict([0.5, 1]), np.array([0.5, 1], np.float16))
    with (
        Client(fake.url) as no_grpc,
        pytest.raises(DataError, match=r"'x' cannot travel over REST: found float16.*\n.*grpc="),
    ):
        no_grpc.predict([0.5])
    with pytest.raises(DataError, match="cannot travel"):
        client.predict([0.5], over="rest")


def test_grpc_needs_an_address(fake: Fake) -> None:
    with Client(fake.url) as client, pytest.raises(InputError, match=r'Client\(url, grpc="127.0.0.1:8500"\)'):
        client.predict(X, over="grpc")


def test_numbers_go_over_grpc_as_they_lie_in_memory(fake: Fake, client: Client) -> None:
    client.predict(X, over="grpc")
    sent = fake.messages[0].inputs["x"]
    assert sent.tensor_content == X.tobytes()
    assert [dim.size for dim in sent.tensor_shape.dim] == [2, 3]


def test_answers_in_typed_fields_are_read_and_may_be_written_to(fake: Fake, client: Client) -> None:
    def respond(request: Any, context: Any) -> Any:
        answer = predict_pb2.PredictResponse()
        tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[0.5])
        tensor.tensor_shape.dim.add(size=3)
        answer.outputs["y"].CopyFrom(tensor)
        return answer

    fake.respond = respond
    found = client.predict(X, over="grpc")
    same(found, np.full(3, 0.5, np.float32))
    found += 1
    fake.respond = None
    client.predict(X, over="grpc")[0] = 0


def test_a_target_holds_what_predict_would_send(fake: Fake, client: Client) -> None:
    client.predict(X)
    client.predict(X, over="grpc")
    rest, over_grpc = client.target([X, X[:1]]), client.target([X], over="grpc")
    assert (rest.url, rest.over) == (f"{fake.url}:predict", "rest")
    assert json.loads(rest.bodies[0]) == predictions(fake)[0]
    assert len(rest.bodies) == 2
    assert (over_grpc.url, over_grpc.over) == (fake.grpc, "grpc")
    assert predict_pb2.PredictRequest.FromString(over_grpc.bodies[0]) == fake.messages[0]
    with pytest.raises(DataError, match="nothing to ask"):
        client.target([])


# What goes wrong


def test_a_refusal_carries_the_servers_words(fake: Fake, client: Client) -> None:
    message = 'JSON Value: "x" Type: String is not of expected type: float'
    fake.answers["/v1/models/echo:predict"] = (400, json.dumps({"error": message}))
    with pytest.raises(RequestRefused, match="echo was asked to predict: found INVALID_ARGUMENT: JSON Value") as caught:
        client.predict(X)
    assert (caught.value.status, caught.value.message) == ("INVALID_ARGUMENT", message)
    assert "Client.signatures()" in caught.value.cure


def test_a_refusal_over_grpc_carries_the_servers_words(fake: Fake, client: Client) -> None:
    fake.respond = lambda _, context: context.abort(grpc.StatusCode.FAILED_PRECONDITION, "it is not so")
    with pytest.raises(RequestRefused, match="FAILED_PRECONDITION: it is not so"):
        client.predict(X, over="grpc")


def test_a_server_that_is_full_is_refusing_and_not_unreachable(fake: Fake, client: Client) -> None:
    words = "The batch scheduling queue to which this task was submitted is full"
    fake.respond = lambda _, context: context.abort(grpc.StatusCode.UNAVAILABLE, words)
    fake.answers["/v1/models/echo:predict"] = (503, json.dumps({"error": words}))
    for over in BOTH:
        with pytest.raises(RequestRefused, match=r"UNAVAILABLE: The batch.*\n.*fewer at once"):
            client.predict(X, over=over)


def test_an_unknown_model_is_refused_with_where_to_look(fake: Fake) -> None:
    url = f"http://127.0.0.1:{fake.port}/v1/models/eco"
    fake.answers["/v1/models/eco/metadata"] = (404, '{"error": "Servable not found for request: Latest(eco)"}')
    with (
        Client(url) as client,
        pytest.raises(RequestRefused, match=r"NOT_FOUND: Servable.*\n.*No model 'eco' is served"),
    ):
        client.predict(X)


def test_an_unknown_version_is_refused_with_those_there_are(fake: Fake) -> None:
    fake.answers["/v1/models/echo"] = (200, json.dumps(STATUS))
    fake.answers["/v1/models/echo/versions/7/metadata"] = (
        404,
        '{"error": "Servable not found for request: Specific(echo, 7)"}',
    )
    with Client(fake.url, version=7) as client, pytest.raises(RequestRefused) as caught:
        client.predict(X)
    assert caught.value.cure == "Its versions: 4 LOADING, 3 AVAILABLE, 2 END (NOT_FOUND: no graph)."


def test_an_unknown_label_is_refused_with_what_labels_are(fake: Fake) -> None:
    words = '{"error": "Unrecognized servable version label: new"}'
    fake.answers["/v1/models/echo/labels/new/metadata"] = (400, words)
    with Client(fake.url, label="new") as client, pytest.raises(RequestRefused, match="configuration gives labels"):
        client.predict(X)


def test_an_answer_that_is_no_json_is_refused(fake: Fake, client: Client) -> None:
    fake.answers["/v1/models/echo/metadata"] = (404, "<html>Not Found</html>")
    with pytest.raises(RequestRefused, match=r"NOT_FOUND: an answer that is no JSON.*\n.*Is http://127.0.0.1"):
        client.signatures()


def test_nothing_that_listens_is_an_error_with_the_address() -> None:
    port = free_port()
    said = rf"http://127.0.0.1:{port} does not answer.*refused.*\n.*Start it"
    with Client(f"http://127.0.0.1:{port}/v1/models/m") as client, pytest.raises(ServerUnreachable, match=said):
        client.status()


def test_nothing_that_listens_for_grpc_is_an_error_with_the_address(fake: Fake) -> None:
    address = f"127.0.0.1:{free_port()}"
    with Client(fake.url, grpc=address) as client, pytest.raises(ServerUnreachable, match=f"{address} does not answer"):
        client.predict(X, over="grpc")


def test_the_port_of_grpc_is_no_rest_address(fake: Fake) -> None:
    with Client(f"http://{fake.grpc}/v1/models/echo") as client, pytest.raises(ServerUnreachable):
        client.status()


def test_what_does_not_speak_http_is_no_model_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail.example\r\n\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/models/m"
        with Client(url) as client, pytest.raises(ServerUnreachable, match="no model server: found an answer that is"):
            client.status()
        thread.join()


def test_an_answer_that_takes_too_long_is_an_error_and_its_connection_is_not_used_again(fake: Fake) -> None:
    with Client(fake.url, grpc=fake.grpc, timeout=0.3) as client:
        client.signatures()
        fake.hold = threading.Event()
        with pytest.raises(ServerUnreachable, match=r"no answer within 0.3 s.*\n.*timeout="):
            client.predict(X)
        fake.hold.set()
        same(client.predict(X[:1]), X[:1])
    assert len(fake.connections) == 2


def test_a_call_of_grpc_that_takes_too_long_is_an_error(fake: Fake) -> None:
    wait = threading.Event()
    fake.respond = lambda *_: wait.wait(10) and None
    with Client(fake.url, grpc=fake.grpc, timeout=0.3) as client:
        with pytest.raises(ServerUnreachable, match="no answer within"):
            client.predict(X, over="grpc")
        wait.set()


# Connections and threads


def test_one_connection_serves_one_call_after_the_other(fake: Fake, client: Client) -> None:
    for _ in range(5):
        client.predict(X)
    assert len(fake.connections) == 1


def test_a_connection_that_the_server_ended_is_replaced_unnoticed(fake: Fake, client: Client) -> None:
    fake.ends_connections = True
    for _ in range(4):
        same(client.predict(X), X)
    assert len(predictions(fake)) == 4


def test_eight_threads_each_get_their_own_answers(fake: Fake, client: Client) -> None:
    def ask(number: int) -> bool:
        x = np.full((number + 1, 3), number, np.float32)
        return all(same(client.predict(x, over=BOTH[turn % 2]), x) for turn in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))
    assert len(fake.connections) <= 8


def test_a_closed_client_opens_again_and_a_forgotten_one_leaves_nothing_open(fake: Fake) -> None:
    client = Client(fake.url, grpc=fake.grpc)
    client.predict(X)
    client.close()
    same(client.predict(X), X)
    del client  # an open socket would be a ResourceWarning, which fails


# What the server says of itself

STATUS = {
    "model_version_status": [
        {"version": "4", "state": "LOADING", "status": {"error_code": "OK", "error_message": ""}},
        {"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}},
        {"version": "2", "state": "END", "status": {"error_code": "NOT_FOUND", "error_message": "no graph"}},
    ]
}


def test_status_lists_versions_with_what_is_wrong(fake: Fake, client: Client) -> None:
    fake.answers["/v1/models/echo"] = (200, json.dumps(STATUS))
    loading, available, failed = client.status()
    assert (loading, available) == (VersionStatus(4, "LOADING"), VersionStatus(3, "AVAILABLE"))
    assert failed.problem is not None
    assert (failed.version, failed.state, failed.problem.code) == (2, "END", Code.NOT_FOUND)
    assert str(failed.problem) == "NOT_FOUND: no graph"


def test_status_of_one_version_is_asked_alone_and_a_label_is_of_no_matter(fake: Fake) -> None:
    fake.answers["/v1/models/echo"] = fake.answers["/v1/models/echo/versions/3"] = (200, json.dumps(STATUS))
    for options in ({"version": 3}, {"label": "stable"}):
        with Client(fake.url, **options) as client:
            client.status()
    assert [path for _, path, _ in fake.asked] == ["/v1/models/echo/versions/3", "/v1/models/echo"]


METRICS = r"""# TYPE :tensorflow:serving:request_count counter
:tensorflow:serving:request_count{model_name="echo",status="OK"} 90
:tensorflow:serving:request_count{model_name="echo",status="INVALID_ARGUMENT"} 10
:tensorflow:serving:request_count{model_name="a \"b\\c",status="OK"} 5
# TYPE :tensorflow:serving:request_latency histogram
:tensorflow:serving:request_latency_bucket{model_name="echo",API="predict",entrypoint="REST",le="1000"} 40
:tensorflow:serving:request_latency_bucket{model_name="echo",API="predict",entrypoint="REST",le="2000"} 60
:tensorflow:serving:request_latency_bucket{model_name="echo",API="predict",entrypoint="REST",le="+Inf"} 60
:tensorflow:serving:request_latency_sum{model_name="echo",API="predict",entrypoint="REST"} 50000
:tensorflow:serving:request_latency_count{model_name="echo",API="predict",entrypoint="REST"} 60
:tensorflow:serving:request_latency_bucket{model_name="echo",API="predict",entrypoint="GRPC",le="1000"} 10
:tensorflow:serving:request_latency_bucket{model_name="echo",API="predict",entrypoint="GRPC",le="2000"} 30
:tensorflow:serving:request_latency_bucket{model_name="echo",API="predict",entrypoint="GRPC",le="+Inf"} 40
:tensorflow:serving:request_latency_sum{model_name="echo",API="predict",entrypoint="GRPC"} 70000
:tensorflow:serving:request_latency_count{model_name="echo",API="predict",entrypoint="GRPC"} 40
:tensorflow:serving:request_example_count_total{model="echo"} 3
process_start_time_seconds 1.5e+09
"""


def test_metrics_are_of_this_model_and_over_both_doors(fake: Fake, client: Client) -> None:
    fake.answers["/monitoring/prometheus/metrics"] = (200, METRICS)
    found = client.metrics()
    assert found.requests == {"OK": 90, "INVALID_ARGUMENT": 10}
    assert found.mean_ms == pytest.approx(1.2)
    # 100 requests: 50 up to 1 ms, 90 up to 2 ms, 10 beyond the last limit.
    assert found.p50_ms == pytest.approx(1.0)
    assert found.p95_ms == found.p99_ms == pytest.approx(2.0)
    assert found.raw[":tensorflow:serving:request_example_count_total"] == {"": 3}
    assert Metrics.read(METRICS, 'a "b\\c').requests == {"OK": 5}


def test_metrics_read_the_samples_that_prometheus_reads() -> None:
    untyped = re.sub(r"(?m)^#.*\n", "", METRICS)  # it would rename a counter
    samples = {
        (sample.name, tuple((key, text) for key, text in sample.labels.items() if "model" not in key)): sample.value
        for family in prometheus_client.parser.text_string_to_metric_families(untyped)
        for sample in family.samples
        if "echo" in (sample.labels.get("model_name"), sample.labels.get("model"))
    }
    raw = Metrics.read(METRICS, "echo").raw
    found = {(name, labels): value for name, rows in raw.items() for labels, value in rows.items()}
    wanted = {(name, ",".join(f'{key}="{text}"' for key, text in labels)): v for (name, labels), v in samples.items()}
    assert found == wanted


def test_a_newer_version_that_answers_in_floats_is_not_read_as_integers() -> None:
    signed = Signature("serving_default", (), (TensorSpec("y", (None,), "int64"),))
    assert outputs_of(signed, [1, 2])["y"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="y is no int64"):
        outputs_of(signed, [0.3, 0.9])


def test_what_asks_for_the_state_of_a_model_is_no_request_of_it(fake: Fake, client: Client) -> None:
    monitoring = Monitoring()
    monitoring.served(client.name)
    for api in ("", "", "predict"):
        monitoring.request(client.name, "OK", api, "REST", 1000.0)
    fake.answers["/monitoring/prometheus/metrics"] = (200, monitoring.text().decode())
    found = client.metrics()
    assert found.requests == {"OK": 1}
    assert found.mean_ms == pytest.approx(1.0)


def test_metrics_of_a_model_that_nobody_asked_are_empty() -> None:
    found = Metrics.read(METRICS, "nobody")
    assert (found.requests, found.mean_ms, found.p50_ms, found.p99_ms, found.raw) == ({}, None, None, None, {})


def test_a_server_without_metrics_says_how_to_have_them(fake: Fake, client: Client) -> None:
    fake.answers["/monitoring/prometheus/metrics"] = (404, "<html>")
    with pytest.raises(RequestRefused, match="monitoring_config"):
        client.metrics()


# Splits


def test_a_key_goes_along_over_both_doors(fake: Fake, client: Client) -> None:
    for key, sent in (("user-7", "user-7"), ("zwölf\n", "zw%C3%B6lf%0A"), (None, None)):
        fake.keys.clear()
        for over in BOTH:
            same(client.predict(X, over=over, key=key), X)
        assert fake.keys == [sent, sent]


@pytest.mark.parametrize("key", ["", "x" * 1025, 7])
def test_what_is_no_key_is_refused_before_anything_is_sent(fake: Fake, client: Client, key: Any) -> None:
    with pytest.raises(InputError, match="this is no key"):
        client.predict(X, key=key)
    with pytest.raises(InputError, match="this is no key"):
        client.outcome([True], key=[key])
    assert fake.asked == []


def told(fake: Fake) -> Any:
    method, path, body = fake.asked[-1]
    assert (method, path) == ("POST", "/v1/models/echo:outcome")
    return json.loads(body)["outcomes"]


def test_outcomes_are_told_by_key_or_by_arm(fake: Fake) -> None:
    fake.answers["/v1/models/echo:outcome"] = (200, '{"counted": 2}')
    with Client(fake.url + "/versions/3") as client:  # of the model, whichever version the client asks
        assert client.outcome([True, np.False_], key=["a", "b"]) == 2  # type: ignore[list-item]
        assert told(fake) == [{"key": "a", "success": True}, {"key": "b", "success": False}]
        client.outcome(np.array([True, False]), key="a")  # type: ignore[arg-type]
        assert told(fake) == [{"key": "a", "success": True}, {"key": "a", "success": False}]
        client.outcome(False, key="a")
        assert told(fake) == [{"key": "a", "success": False}]
        client.outcome([True, True], arm="canary")
        assert told(fake) == [{"arm": "canary", "success": True}] * 2


@pytest.mark.parametrize(
    ("success", "more", "said"),
    [
        (True, {}, "neither a key nor an arm"),
        (True, {"key": "a", "arm": "b"}, "a key and an arm"),
        ([True], {"key": ["a", "b"]}, "1 outcomes and 2 keys"),
        ([True, 1], {"key": "a"}, "found 1"),
        (["yes"], {"arm": "a"}, "found 'yes'"),
    ],
)
def test_what_is_no_outcome_is_refused_before_anything_is_sent(
    fake: Fake, client: Client, success: Any, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        client.outcome(success, **more)
    assert fake.asked == []


@pytest.mark.parametrize(
    ("message", "cure"),
    [
        ("The requests of model echo are not split: no arm has outcomes.", "%serve echo --split 90/10"),
        ("Malformed request: POST /v1/models/echo:outcome", "Only the server of %serve counts outcomes"),
        ('Model echo has no arm "x". Its arms: a, b.', "Name one of these in arm="),
    ],
)
def test_outcomes_that_nobody_counts_are_refused_with_a_cure(
    fake: Fake, client: Client, message: str, cure: str
) -> None:
    fake.answers["/v1/models/echo:outcome"] = (400, json.dumps({"error": message}))
    with pytest.raises(RequestRefused, match=cure):
        client.outcome(True, arm="x")


def test_metrics_tell_versions_and_arms_apart(fake: Fake, client: Client) -> None:
    monitoring, split, arm = Monitoring(), object(), 'a "b"\\n\nc'
    monitoring.split(client.name, split)
    monitoring.split("other", split)
    for version, microseconds in ((2, 1000.0), (2, 1000.0), (10, 5000.0)):
        monitoring.request(client.name, "OK", "predict", "REST", microseconds, version, arm, split)
        monitoring.request("other", "OK", "predict", "REST", microseconds, version, arm, split)
    monitoring.request(client.name, "INVALID_ARGUMENT", "predict", "REST", 9.0, 10, arm, split)
    monitoring.request(client.name, "NOT_FOUND", "predict", "REST", 9.0, None, arm, split)
    monitoring.request(client.name, "OK", "Predict", "GRPC", 1000.0, 2)
    outcomes = {(arm, "success"): 5, (arm, "failure"): 2, ("unasked", "success"): 1}
    assert monitoring.outcomes(client.name, split, outcomes)
    fake.answers["/monitoring/prometheus/metrics"] = (200, monitoring.text().decode())
    rows = client.metrics().by_version
    assert [(row.version, row.arm, row.requests, row.successes, row.failures) for row in rows] == [
        (2, "", {"OK": 1}, 0, 0),
        (None, arm, {"NOT_FOUND": 1}, 0, 0),
        (2, arm, {"OK": 2}, 0, 0),
        (10, arm, {"OK": 1, "INVALID_ARGUMENT": 1}, 5, 2),
        (None, "unasked", {}, 1, 0),
    ]
    assert rows[1] == Counted(None, arm, {"NOT_FOUND": 1}, None, None, None)
    p50 = [row.p50_ms for row in rows]
    assert p50[0] == p50[2]
    assert p50[2] is not None
    assert p50[3] is not None
    assert 0.6 < p50[2] < 1.2 < 3 < p50[3] < 6.5


def test_a_server_that_counts_no_versions_has_none() -> None:
    assert Metrics.read(METRICS, "echo").by_version == ()
