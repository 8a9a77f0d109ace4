"""TensorFlow Serving's REST API, row by row, asked of a server as a person starts it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import math
import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any
from urllib.parse import quote

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.serving.live import ODD_NAME, Answer, Asking, Process
from tests.serving.stand_ins import StandInModels, StandInServable, half_plus_two
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.serving import rest
from tfdeploy_magic.serving.calls import Call
from tfdeploy_magic.serving.lineup import Arm
from tfdeploy_magic.serving.outcomes import Outcomes
from tfdeploy_magic.serving.rest import Asked, RestApi, asked, unzipped
from tfdeploy_magic.serving.router import Router, Routing, Split
from tfdeploy_magic.serving.status import Refusal

HALF = "/v1/models/half_plus_two"
SCALARS = "/v1/models/scalars"
ROW = "Failed to process element: {} of 'instances' list. Error: INVALID_ARGUMENT: "
KEY = "Failed to process element: {} key: {} of 'instances' list. Error: INVALID_ARGUMENT: "


@pytest.fixture
def ask(live: Process) -> Asking:
    return live.ask


def error(answer: Answer) -> str:
    """Return what an error says, having checked that it is written as TensorFlow Serving writes it."""
    text = json.dumps(answer.error, ensure_ascii=False)
    assert answer.body.decode() == '{\n    "error": ' + text + "\n}"
    assert answer.headers["content-type"] == "application/json"
    return answer.error


# Paths

MALFORMED = [
    ("GET", "/v1/foo"),
    ("GET", "/v1/"),
    ("GET", "/v1/models/"),
    ("GET", f"{HALF}/"),
    ("GET", f"{HALF}:predict"),
    ("GET", f"{HALF}/versions/x"),
    ("GET", f"{HALF}/versions/-1"),
    ("GET", f"{HALF}/versions/1/labels/stable"),
    ("GET", f"{HALF}/metadata/x"),
    ("POST", HALF),
    ("POST", f"{HALF}/metadata"),
    ("POST", f"{HALF}:explain"),
    ("POST", f"{HALF}:predict?pretty=1"),
    ("POST", f"{HALF}/versions/1:outcome"),
    ("POST", f"{HALF}/labels/stable:outcome"),
    ("GET", f"{HALF}:outcome"),
    ("POST", f"{HALF}/versions/x:predict"),
    ("PUT", HALF),
    ("PUT", f"{HALF}:predict"),
    ("DELETE", HALF),
    ("PATCH", HALF),
    ("OPTIONS", f"{HALF}:predict"),
    ("BREW", HALF),
]


@pytest.mark.parametrize(("method", "path"), MALFORMED)
def test_what_is_none_of_the_api_is_a_malformed_request(ask: Asking, method: str, path: str) -> None:
    answer = ask(method, path, b"{}" if method == "POST" else None)
    assert (answer.status, error(answer)) == (400, f"Malformed request: {method} {path}")


def test_head_is_malformed_too_and_has_no_body(ask: Asking) -> None:
    answer = ask("HEAD", HALF)
    assert (answer.status, answer.body) == (400, b"")
    assert int(answer.headers["content-length"]) == len('{\n    "error": "Malformed request: HEAD "\n}') + len(HALF)


@pytest.mark.parametrize("path", ["/", "/v2/models/x", "/v1", "/v10/models", "/metrics"])
def test_paths_beside_the_api_get_libevents_page(ask: Asking, path: str) -> None:
    answer = ask.get(path)
    assert (answer.status, answer.headers["content-type"]) == (404, "text/html")
    assert answer.body.startswith(b"<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n")


REFUSED = [
    ("GET", "/v1/models", 400, "Missing model name in request."),
    ("GET", "/v1/models/versions/3", 400, "Missing model name in request."),
    ("GET", "/v1/models/nothing", 404, "Could not find any versions of model nothing"),
    ("GET", f"{HALF}/versions/7", 404, "Could not find version 7 of model half_plus_two"),
    ("GET", f"{HALF}?x=1", 404, "Could not find any versions of model half_plus_two?x=1"),
    ("GET", "/v1/models/nothing/metadata", 404, "Servable not found for request: Latest(nothing)"),
    ("GET", f"{HALF}/versions/7/metadata", 404, "Servable not found for request: Specific(half_plus_two, 7)"),
    ("GET", f"{HALF}/labels/x/metadata", 400, "Unrecognized servable version label: x"),
    ("GET", "/v1/models/empty", 404, "Could not find any versions of model empty"),
    ("POST", "/v1/models/nothing:predict", 404, "Servable not found for request: Latest(nothing)"),
    ("POST", "/v1/models/empty:predict", 404, "Servable not found for request: Latest(empty)"),
    ("POST", f"{HALF}/versions/7:predict", 404, "Servable not found for request: Specific(half_plus_two, 7)"),
    ("POST", f"{HALF}/versions/123:predict", 404, "Servable not found for request: Specific(half_plus_two, 123)"),
    ("POST", f"{HALF}/labels/x:predict", 400, "Unrecognized servable version label: x"),
    ("POST", "/v1/models/nothing/labels/x:predict", 400, "Unrecognized servable version label: x"),
    ("POST", "/v1/models/nothing:outcome", 404, "Could not find any versions of model nothing"),
    ("POST", f"{HALF}:outcome", 400, "The requests of model half_plus_two are not split: no arm has outcomes."),
]
TOO_HIGH = ["9223372036854775808", "9" * 30, "9" * 5000, "0" * 5000 + "9223372036854775808"]


@pytest.mark.parametrize(("method", "path", "status", "message"), REFUSED)
def test_what_is_not_served_is_told_as_tensorflow_serving_tells_it(
    ask: Asking, method: str, path: str, status: int, message: str
) -> None:
    answer = ask(method, path, {"instances": [1.0]} if method == "POST" else None)
    assert (answer.status, error(answer)) == (status, message)


@pytest.mark.parametrize("version", TOO_HIGH)
def test_a_version_beyond_int64_is_no_number(ask: Asking, version: str) -> None:
    for method, path in (("GET", f"{HALF}/versions/{version}"), ("POST", f"{HALF}/versions/{version}:predict")):
        answer = ask(method, path, b"{}" if method == "POST" else None)
        assert (answer.status, error(answer)) == (400, f"Failed to convert version: {version} to numeric.")


def test_what_is_wrong_with_a_body_comes_before_what_is_wrong_with_the_model(ask: Asking) -> None:
    empty = ask.post("/v1/models/nothing:predict", b"")
    assert (empty.status, error(empty)) == (400, "JSON Parse error: The document is empty")
    unnamed = ask.post("/v1/models/nothing:regress", {})
    assert (unnamed.status, error(unnamed).endswith("key 'examples' is expected and was not found")) == (400, True)


def test_leading_zeros_of_a_version_mean_nothing(ask: Asking) -> None:
    assert ask.post(f"{HALF}/versions/{'0' * 100}1:predict", {"instances": [1.0]}).json == {"predictions": [2.5]}


def test_letters_of_a_path_may_be_of_either_case_but_not_a_models_name(ask: Asking) -> None:
    assert ask.post("/V1/Models/half_plus_two/Versions/1:PREDICT", {"instances": [1.0]}).status == 200
    assert ask.get("/v1/models/Half_plus_two").status == 404


def test_a_name_that_no_url_can_hold_is_percent_decoded_once(ask: Asking) -> None:
    path = f"/v1/models/{quote(ODD_NAME)}"
    assert ask.get(path).json["model_version_status"][0]["version"] == "123"
    assert ask.post(f"{path}:predict", {"instances": [1.0]}).json == {"predictions": [2.5]}
    assert ask.get(f"{path}/metadata").json["model_spec"]["name"] == ODD_NAME
    twice = ask.get(f"/v1/models/{quote(quote(ODD_NAME))}")
    assert (twice.status, error(twice)) == (404, f"Could not find any versions of model {quote(ODD_NAME)}")
    assert ask.post(f"{HALF}/labels/st%61ble:predict", {"instances": [1.0]}).json == {"predictions": [2.5]}


@given(st.sampled_from(["GET", "POST", "PUT", "get"]), st.text(max_size=30) | st.from_regex(r"/v1/models/.{0,30}"))
@example("GET", "/v1/models/half/versions/١٢")
@example("GET", "/v1/model\u017f/half")
def test_any_path_is_understood_or_refused(method: str, path: str) -> None:
    try:
        found = asked(method, path)
    except Refusal as refusal:
        assert refusal.code.http == 400
    else:
        assert (path.replace(found.model, "", 1).replace(found.label or "", "", 1)).isascii()
        assert found.what in ("predict", "classify", "regress", "outcome", "status", "metadata")


def test_a_path_is_understood_alike_whether_it_is_remembered_or_not() -> None:
    short, long = "m" * 20, "m" * 5000
    for name in (short, long):
        for _ in range(2):
            assert asked("POST", f"/v1/models/{name}/versions/07:Regress") == Asked("regress", name, 7, None)


# Status and metadata


def test_the_status_is_written_as_protobuf_writes_it(ask: Asking) -> None:
    answer = ask.get(f"/v1/models/{quote(ODD_NAME)}")
    assert answer.body == (
        b'{\n "model_version_status": [\n  {\n   "version": "123",\n   "state": "AVAILABLE",\n'
        b'   "status": {\n    "error_code": "OK",\n    "error_message": ""\n   }\n  }\n ]\n}\n'
    )
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")


@pytest.mark.parametrize(
    ("path", "versions"),
    [
        ("", ["2", "1"]),
        ("/versions/1", ["1"]),
        ("/versions/0002", ["2"]),
        ("/labels/stable", ["2", "1"]),
        ("/labels/x", ["2", "1"]),
    ],
)
def test_the_status_is_of_a_version_or_of_all_newest_first_and_labels_are_ignored(
    ask: Asking, path: str, versions: list[str]
) -> None:
    assert [each["version"] for each in ask.get(HALF + path).json["model_version_status"]] == versions


def test_metadata_is_the_signatures_written_as_tensorflow_serving_writes_it(ask: Asking) -> None:
    answer = ask.get("/v1/models/tf1/metadata")
    assert answer.body.startswith(
        b'{\n"model_spec":{\n "name": "tf1",\n "signature_name": "",\n "version": "1"\n}\n,\n'
        b'"metadata": {"signature_def": {\n "signature_def": {\n  "'
    )
    assert answer.body.endswith(b"\n }\n}\n}\n}\n")
    signatures = answer.json["metadata"]["signature_def"]["signature_def"]
    assert signatures.keys() == {"serving_default", "regress_x_to_y", "classify_x_to_y"}
    rows = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert signatures["serving_default"] == {
        "inputs": {"x": {"dtype": "DT_FLOAT", "tensor_shape": rows, "name": "x:0"}},
        "outputs": {"y": {"dtype": "DT_FLOAT", "tensor_shape": rows, "name": "add:0"}},
        "method_name": "tensorflow/serving/predict",
        "defaults": {},
    }
    assert signatures["classify_x_to_y"]["method_name"] == "tensorflow/serving/classify"


@pytest.mark.parametrize(("path", "version"), [("", "2"), ("/versions/1", "1"), ("/labels/stable", "1")])
def test_metadata_is_of_the_version_that_is_asked_for(ask: Asking, path: str, version: str) -> None:
    assert ask.get(f"{HALF}{path}/metadata").json["model_spec"]["version"] == version


def test_an_unknown_rank_is_told(ask: Asking) -> None:
    signature = ask.get(f"{SCALARS}/metadata").json["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["tensor_shape"] == {"dim": [], "unknown_rank": True}


# Predict


@pytest.mark.parametrize(("path", "plus"), [("", 3), ("/versions/1", 2), ("/labels/stable", 2), ("/labels/canary", 3)])
def test_the_highest_version_answers_unless_another_is_asked(ask: Asking, path: str, plus: int) -> None:
    assert ask.post(f"{HALF}{path}:predict", {"instances": [1.0, 2, 5e0]}).json == {
        "predictions": [0.5 + plus, 1.0 + plus, 2.5 + plus]
    }


PREDICTIONS: list[tuple[str, Any, Any]] = [
    ("several", {"instances": [1]}, {"predictions": [2.5]}),
    ("several", {"inputs": [1]}, {"outputs": [2.5]}),
    ("several", {"inputs": {"x": [1]}}, {"outputs": [2.5]}),
    ("several", {"instances": [{"x": 1}]}, {"predictions": [2.5]}),
    ("several", {"signature_name": "doubled", "instances": [1]}, {"predictions": [2.0]}),
    ("several", {"signature_name": "", "instances": [1]}, {"predictions": [2.5]}),
    ("several", {"signature_name": "sums", "inputs": [[1, 2, 3]]}, {"outputs": [6.0]}),
    ("several", {"inputs": []}, {"outputs": []}),
    ("tf1", {"instances": [1]}, {"predictions": [2.5]}),
    ("lite", {"instances": [1]}, {"predictions": [2.5]}),
    ("many", {"instances": [{"a": [1, 2], "b": 3}]}, {"predictions": [{"scaled": [3.0, 6.0], "parity": False}]}),
    ("many", {"inputs": {"a": [[1, 2]], "b": [4], "c": 0}}, {"outputs": {"scaled": [[4.0, 8.0]], "parity": [True]}}),
    (
        "texts",
        {"instances": ["a", {"b64": "/w=="}]},
        {
            "predictions": [
                {"shouted": "A", "letters": 1, "raw_bytes": {"b64": "YQ=="}},
                {"shouted": "\ufffd", "letters": 1, "raw_bytes": {"b64": "/w=="}},
            ]
        },
    ),
    (
        "texts",
        {"instances": [{"text": "a"}]},
        {"predictions": [{"shouted": "A", "letters": 1, "raw_bytes": {"b64": "YQ=="}}]},
    ),
    ("scalars", {"inputs": 3}, {"outputs": 3.0}),
    ("scalars", {"signature_name": "sum", "inputs": [1, 2]}, {"outputs": 3.0}),
    ("scalars", {"signature_name": "bool", "instances": [True, False]}, {"predictions": [True, False]}),
    ("scalars", {"signature_name": "int64", "inputs": 2**63 - 1}, {"outputs": 2**63 - 1}),
    ("scalars", {"signature_name": "int8", "inputs": [-128, 127, 300]}, {"outputs": [-128, 127, 44]}),
    ("scalars", {"signature_name": "double", "inputs": 0.1}, {"outputs": 0.1}),
    ("scalars", {"instances": [[[1, 2]], [[3, 4]]]}, {"predictions": [[[1.0, 2.0]], [[3.0, 4.0]]]}),
    ("scalars", {"signature_name": "uneven", "inputs": [1]}, {"outputs": {"a": [1.0], "b": [1.0, 1.0]}}),
]


@pytest.mark.parametrize(("model", "document", "expected"), PREDICTIONS)
def test_predictions_come_back_in_the_form_of_the_request(
    ask: Asking, model: str, document: Any, expected: Any
) -> None:
    answer = ask.post(f"/v1/models/{model}:predict", document)
    assert (answer.status, answer.json) == (200, expected)
    assert answer.headers["content-type"] == "application/json"


def test_numbers_are_written_so_that_they_are_seen_to_be_decimals(ask: Asking) -> None:
    written = ask.post(f"{SCALARS}:predict", b'{"inputs": [1, 0.1, 9e6, 3e-5, 16777217, -0.0, 1e39, 1e-46]}').body
    values = written[written.index(b"[") + 1 : written.index(b"]")].split(b",")
    assert all(set(value.strip()) & set(b".eIN") for value in values), values
    read = np.array([float(value) for value in values], np.float32)
    with np.errstate(over="ignore"):
        assert np.array_equal(read, np.array([1, 0.1, 9e6, 3e-5, 16777217, -0.0, 1e39, 1e-46]).astype(np.float32))


def test_nan_and_the_infinities_come_and_go_as_bare_words(ask: Asking) -> None:
    answer = ask.post(f"{SCALARS}:predict", b'{"instances": [NaN, Infinity, -Infinity, Inf, -Inf, 1]}')
    assert answer.status == 200
    found = answer.json["predictions"]
    assert math.isnan(found[0])
    assert found[1:] == [math.inf, -math.inf, math.inf, -math.inf, 1.0]
    assert b"NaN" in answer.body


def test_whatever_follows_the_document_is_ignored(ask: Asking) -> None:
    assert ask.post(f"{HALF}:predict", b'\n {"instances": [1.0]} trailing {').json == {"predictions": [3.5]}


AS_PER = "as multiple input tensors required as per tensorinfo_map"
KEYS = "keys must be equal to: a,b"
B64 = "not formatted correctly for base64 data"
WRONG: list[tuple[str, Any, int, str]] = [
    ("half_plus_two", b"", 400, "JSON Parse error: The document is empty"),
    ("half_plus_two", b"this is not json", 400, "JSON Parse error: Invalid value. at offset: 1"),
    ("half_plus_two", b"\xff\xfe", 400, "JSON Parse error: Invalid value. at offset: 0"),
    ("half_plus_two", b"[1]", 400, "JSON Value: [\n    1\n] Is not object"),
    ("half_plus_two", b"1", 400, "JSON Value: 1 Is not object"),
    ("half_plus_two", {}, 400, "Missing 'inputs' or 'instances' key"),
    (
        "half_plus_two",
        {"signature_name": 5, "instances": [1]},
        400,
        'JSON Value: {\n    "signature_name": 5,\n    "instances": [\n        1\n    ]\n} not formatted correctly.'
        " 'signature_name' key must be a string value.",
    ),
    (
        "half_plus_two",
        {"signature_name": "s", "instances": [1]},
        400,
        'Serving signature name: "s" not found in signature def',
    ),
    (
        "half_plus_two",
        {"instances": [1], "inputs": [1]},
        400,
        'JSON Value: {\n    "instances": [\n        1\n    ],\n    "inputs": [\n        1\n    ]\n} Not formatted'
        " correctly expecting only one of 'inputs' or 'instances' keys to exist ",
    ),
    (
        "half_plus_two",
        {"instances": 1},
        400,
        "JSON Value: {\n    \"instances\": 1\n} Expecting 'instances' to be an list/array",
    ),
    ("half_plus_two", {"instances": []}, 400, "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array"),
    ("many", {"instances": [1]}, 400, f"instances is a plain list, but expecting list of objects {AS_PER}"),
    ("many", {"instances": [{"a": [1, 2], "b": 1}, 2]}, 400, "Expecting object but got list at item 1 of input list"),
    ("half_plus_two", {"instances": [1, {"x": 1}]}, 400, "Expecting value/list but got object at item 1 of input list"),
    (
        "many",
        {"instances": [{"a": [1, 2]}]},
        400,
        "Failed to process element: 0 of 'instances' list. JSON object: "
        f'{{\n    "a": [\n        1,\n        2\n    ]\n}} {KEYS}',
    ),
    (
        "many",
        {"instances": [{"a": [1, 2], "b": 1, "c": 1}]},
        400,
        KEY.format(0, "c") + "JSON object: does not have named input: c",
    ),
    ("several", {"instances": [[1, 2], [1, 2, 3]]}, 400, ROW.format(1) + "Expecting tensor size: 2 but got: 3"),
    ("several", {"instances": [[1, 2], [[1, 2]]]}, 400, ROW.format(1) + "Expecting shape [2] but got: [1,2]"),
    ("many", {"inputs": {"a": [[1, 2]]}}, 400, "Missing named input: b in 'inputs' object."),
    ("many", {"inputs": [1]}, 400, f"inputs is a plain value/list, but expecting an object {AS_PER}"),
    ("several", {"inputs": [[1, 2], [1]]}, 400, "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    ("several", {"inputs": [1, [2]]}, 400, "Encountered list at unexpected level: 1 expected < 1"),
    (
        "several",
        {"inputs": [[1], 3]},
        400,
        "JSON Value: 3 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
    ),
    ("several", {"inputs": ["x"]}, 400, 'JSON Value: "x" Type: String is not of expected type: float'),
    ("several", {"inputs": [None]}, 400, "JSON Value: null Type: Null is not of expected type: float"),
    ("several", {"inputs": [True]}, 400, "JSON Value: true Type: True is not of expected type: float"),
    (
        "several",
        {"instances": [1, "x"]},
        400,
        ROW.format(1) + 'JSON Value: "x" Type: String is not of expected type: float',
    ),
    (
        "scalars",
        {"signature_name": "int64", "inputs": 1.0},
        400,
        "JSON Value: 1.0 Type: Number is not of expected type: int64",
    ),
    (
        "scalars",
        {"signature_name": "int64", "inputs": 2**63},
        400,
        f"JSON Value: {2**63} Type: Number is not of expected type: int64",
    ),
    (
        "scalars",
        {"signature_name": "int8", "inputs": 2**31},
        400,
        f"JSON Value: {2**31} Type: Number is not of expected type: int8",
    ),
    (
        "scalars",
        {"signature_name": "bool", "inputs": 1},
        400,
        "JSON Value: 1 Type: Number is not of expected type: bool",
    ),
    ("scalars", {"signature_name": "half", "inputs": [1]}, 501, "Conversion of JSON Value: 1 to type: half"),
    ("texts", {"inputs": [1]}, 400, "JSON Value: 1 Type: Number is not of expected type: string"),
    ("texts", {"inputs": [{"b64": "a", "c": 1}]}, 400, f'JSON Value: {{\n    "b64": "a",\n    "c": 1\n}} {B64}'),
    ("texts", {"inputs": [{"b64": "!"}]}, 400, "Unable to base64 decode"),
    ("scalars", {"signature_name": "sum", "instances": [1]}, 400, "Tensor name: y has no shape information "),
]


@pytest.mark.parametrize(("model", "document", "status", "message"), WRONG)
def test_a_wrong_request_is_told_what_tensorflow_serving_would_say(
    ask: Asking, model: str, document: Any, status: int, message: str
) -> None:
    answer = ask.post(f"/v1/models/{model}:predict", document)
    assert (answer.status, error(answer)) == (status, message)


def test_outputs_of_different_batches_make_no_rows(ask: Asking) -> None:
    answer = ask.post(f"{SCALARS}:predict", {"signature_name": "uneven", "instances": [1]})
    assert (answer.status, error(answer)) in [
        (400, f"Tensor name: {alias} has inconsistent batch size: {size} expecting: {first}")
        for alias, size, first in (("a", 1, 2), ("b", 2, 1))
    ]


def test_a_shape_that_the_graph_refuses_is_told_by_tensorflow(ask: Asking) -> None:
    answer = ask.post("/v1/models/many:predict", {"inputs": {"a": [[1, 2], [3, 4]], "b": [1, 2, 3]}})
    assert answer.status == 400
    assert "ncompatible shapes" in error(answer)


def test_half_a_million_nested_lists_are_refused(ask: Asking) -> None:
    answer = ask.post(f"{HALF}:predict", b'{"instances": ' + b"[" * 500_000 + b"]" * 500_000 + b"}")
    assert answer.status == 400
    assert ask.post(f"{HALF}:predict", {"instances": [1]}).status == 200


def test_a_graph_that_counts_counts_each_request_once(ask: Asking) -> None:
    first = ask.post("/v1/models/state:predict", {"inputs": 1}).json["outputs"]
    assert ask.post("/v1/models/state:predict", {"inputs": 1}).json["outputs"] == first + 1


# Classify and regress

EXAMPLES = [{"x": 1.0}, {"x": [5.0]}]


def test_classify_answers_labels_and_scores(ask: Asking) -> None:
    document = {"signature_name": "classify_x_to_y", "examples": EXAMPLES}
    assert ask.post("/v1/models/tf1:classify", document).json == {
        "results": [[["up", 2.5], ["down", -2.5]], [["up", 4.5], ["down", -4.5]]]
    }


def test_regress_answers_values(ask: Asking) -> None:
    document = {"signature_name": "regress_x_to_y", "examples": EXAMPLES}
    assert ask.post("/v1/models/tf1:regress", document).json == {"results": [2.5, 4.5]}


def test_a_context_is_shared_by_all_examples_and_gives_way_to_their_own(ask: Asking) -> None:
    document = {"signature_name": "regress_x_to_y", "context": {"x": 9.0}, "examples": [{}, {"x": 1.0}]}
    assert ask.post("/v1/models/tf1:regress", document).json == {"results": [6.5, 2.5]}


BY_EXAMPLES: list[tuple[Any, int, str]] = [
    ({}, 400, "JSON Value: {} When method is classify, key 'examples' is expected and was not found"),
    ({"examples": 1}, 400, "JSON Value: {\n    \"examples\": 1\n} Expecting 'examples' value to be an list/array"),
    ({"examples": []}, 400, "JSON Value: {\n    \"examples\": []\n} 'examples' value is an empty array"),
    ({"examples": [1]}, 400, "Example must be JSON object but got JSON Number"),
    ({"examples": [{"f": [1, 1.5]}]}, 400, "Unexpected element type in feature: f expecting type: int64"),
    ({"examples": [{"f": None}]}, 400, "Feature: f has element with unexpected JSON type: Null"),
    ({"examples": [{"f": [[1]]}]}, 400, "Feature: f has element with unexpected JSON type: Array"),
    ({"examples": [{"f": {"a": 1}}]}, 400, "Feature: f has element with unexpected JSON type: Object"),
    ({"examples": [{"f": 2**63}]}, 400, "Feature: f has uint64 element. Only int64_t is supported."),
    ({"signature_name": "s", "examples": [{}]}, 400, "No signature was found with the name: s"),
    (
        {"signature_name": 1, "examples": [{}]},
        400,
        'JSON Value: {\n    "signature_name": 1,\n    "examples": [\n        {}\n    ]\n} not formatted correctly. '
        "'signature_name' key must be a string value.",
    ),
]


@pytest.mark.parametrize("method", ["classify", "regress"])
@pytest.mark.parametrize(("document", "status", "message"), BY_EXAMPLES)
def test_wrong_examples_are_told_alike_for_both(
    ask: Asking, method: str, document: Any, status: int, message: str
) -> None:
    answer = ask.post(f"/v1/models/tf1:{method}", document)
    assert (answer.status, error(answer)) == (status, message)


def test_a_signature_over_tensors_is_none_to_classify_by(ask: Asking) -> None:
    answer = ask.post("/v1/models/tf1:classify", {"examples": [{"x": 1.0}]})
    assert (answer.status, error(answer).startswith("No classification inputs found in SignatureDef: ")) == (400, True)


# Curl, as the guides have it


def test_curl_gets_what_the_guides_say(live: Process) -> None:
    url = f"{live.url}{HALF}/versions/1:predict"
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "-d", '{"instances": [1.0, 2.0, 5.0]}', url]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert json.loads(done.stdout) == {"predictions": [2.5, 3.0, 4.5]}


def test_curl_sends_a_large_body_in_chunks_and_zipped(live: Process) -> None:
    body = gzip.compress(json.dumps({"instances": np.random.default_rng(0).normal(size=100_000).tolist()}).encode())
    headers = ["-H", "Content-Encoding: gzip", "-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue"]
    command = ["curl", "-sS", "--noproxy", "*", *headers, "--data-binary", "@-", f"{live.url}{HALF}:predict"]
    done = subprocess.run(command, input=body, capture_output=True, timeout=60, check=True)
    assert len(json.loads(done.stdout)["predictions"]) == 100_000


# Whatever comes

SCALARS_OF_JSON = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text(max_size=5)
BODIES = st.one_of(
    st.binary(max_size=200),
    st.recursive(
        SCALARS_OF_JSON,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode()),
)
ALIASES = st.sampled_from(["x", "a", "b", "b64"])
TENSORS = st.recursive(
    SCALARS_OF_JSON | st.builds(lambda text: {"b64": text}, st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ALIASES, inner, max_size=2),
    max_leaves=8,
)
NEAR_MISSES = st.builds(
    lambda signature, key, value, examples: json.dumps(
        {"signature_name": signature, key: value, **({"examples": examples} if examples else {})}
    ).encode(),
    st.sampled_from(["", "serving_default", "sums", "doubled", "int8", "half", "bool", "regress_x_to_y", "nothing"]),
    st.sampled_from(["instances", "inputs", "examples"]),
    TENSORS | st.lists(TENSORS, max_size=3),
    st.none() | st.lists(st.dictionaries(st.sampled_from(["x", "y"]), TENSORS, max_size=2), max_size=2),
)


@st.composite
def mutated(draw: Callable[[Any], Any]) -> bytes:
    """Return a good body of which some bytes are others."""
    valid = draw(
        st.sampled_from(
            [
                b'{"instances": [1.0, 2.5, -3e2]}',
                b'{"signature_name": "sums", "inputs": [[1, 2, 3], [4, 5, 6]]}',
                b'{"instances": [{"a": [1, 2], "b": 3}, {"a": [1, 2], "b": 4}]}',
                b'{"instances": ["a", {"b64": "aGVsbG8="}]}',
                b'{"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}, {"x": [2.0]}]}',
            ]
        )
    )
    body = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body) - 1))
        body[at : at + draw(st.integers(0, 3))] = draw(
            st.binary(max_size=3) | st.sampled_from([b"]", b"[", b"}", b"9" * 40])
        )
        body = body or bytearray(b"x")
    return bytes(body)


MODELS = st.sampled_from(["half_plus_two", "several", "many", "texts", "tf1", "lite", "scalars"])
METHODS = st.sampled_from(["predict", "predict", "predict", "classify", "regress"])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MODELS, METHODS, BODIES | NEAR_MISSES | mutated())
@example("half_plus_two", "predict", b'{"instances": [1e400]}')
@example("half_plus_two", "predict", b'{"instances": [' + b"9" * 400 + b"]}")
@example("scalars", "predict", b'{"inputs": ' + b"[" * 300 + b"1" + b"]" * 300 + b"}")
@example("texts", "predict", b'{"instances": ["\\ud800"]}')
@example("texts", "predict", b'{"instances": ["\\u0000"]}')
@example("many", "predict", b'{"inputs": {"a": [], "b": []}}')
def test_any_body_is_answered_or_refused_and_never_breaks_anything(
    live: Process, model: str, method: str, body: bytes
) -> None:
    answer = live.ask.post(f"/v1/models/{model}:{method}", body)
    assert answer.status in (200, 400, 501), answer
    if answer.status != 200:
        assert error(answer)


def test_large_bodies_are_answered_and_their_memory_is_not_all_kept(live: Process) -> None:
    before = live.memory
    pages = b'{"instances": "' + b"a" * (64 << 20) + b'"}'
    spaces = b" " * (64 << 20) + b'{"instances": [1.0]}'
    for _ in range(2):
        answer = live.ask.post(f"{HALF}:predict", pages)
        assert (answer.status, len(answer.body) < 1000) == (400, True)
        assert live.ask.post(f"{HALF}:predict", spaces).json == {"predictions": [3.5]}
    rows = live.ask.post(f"{HALF}:predict", b'{"instances": [' + b"1.0," * 500_000 + b"1.0]}")
    assert len(rows.json["predictions"]) == 500_001
    assert live.memory - before < 600 << 20
    assert psutil.Process(live.process.pid).is_running()
    assert live.ask.post(f"{HALF}:predict", {"instances": [1]}).json == {"predictions": [3.5]}


# The API alone


class Slow(StandInServable):
    """Answers when it is told to."""

    answers: Future[Arrays]

    def inline(self, call: Call) -> bool:
        return False

    def submit(self, call: Call) -> Future[Arrays]:
        self.calls.append(call)
        return self.answers


Observed = list[tuple[str, str, str, float, int, Routing]]


def replied(models: StandInModels, *requests: tuple[str, str, Any], **options: Any) -> tuple[list[Any], Observed]:
    """Return the replies, and what was observed."""
    observed: Observed = []
    api = RestApi(models, observe=lambda *what: observed.append(what), **options)

    async def reply() -> list[Any]:
        return [await api.reply(method, path, json.dumps(body).encode()) for method, path, body in requests]

    return asyncio.run(reply()), observed


def slow() -> tuple[StandInModels, Slow]:
    one = Slow("half", 1, half_plus_two().functions)
    one.answers = Future()
    return StandInModels({"half": {1: one}}), one


PREDICT = ("POST", "/v1/models/half:predict", {"instances": [1.0]})


def test_an_answer_that_does_not_come_in_time_is_a_504() -> None:
    models, _ = slow()
    ((status, body, _),), observed = replied(models, PREDICT, timeout=0.01)
    assert (status, json.loads(body)) == (504, {"error": "Timed out waiting for notification"})
    assert observed[0][2] == "DEADLINE_EXCEEDED"
    assert models.in_use == 0


@pytest.mark.parametrize("timeout", [0.0, -0.001])
def test_no_timeout_is_any_time(timeout: float) -> None:
    models, one = slow()
    one.answers.set_result({"y": np.array([2.5], np.float32)})
    ((status, _, _),), _ = replied(models, PREDICT, timeout=timeout)
    assert status == 200


def test_an_exception_of_the_engine_is_a_500_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    models, one = slow()
    one.answers.set_exception(RuntimeError("boom"))
    ((status, body, _),), observed = replied(models, PREDICT)
    assert (status, json.loads(body)) == (500, {"error": "RuntimeError: boom"})
    assert observed[0][2] == "INTERNAL"
    assert "POST /v1/models/half:predict failed" in caplog.text


def test_requests_are_observed_under_the_names_that_dashboards_know() -> None:
    models = StandInModels({"half": {1: half_plus_two(1)}})
    examples = {"signature_name": "regress_x_to_y", "examples": [{"x": 1.0}, {"x": 2.0}]}
    _, observed = replied(
        models,
        PREDICT,
        ("POST", "/v1/models/half:REGRESS", examples),
        ("POST", "/v1/models/half:classify", {}),
        ("GET", "/v1/models/half", None),
        ("GET", "/v1/models/half/metadata", None),
        ("GET", "/v1/models/other", None),
        ("GET", "/v1/foo", None),
    )
    assert [(api, model, status, count) for api, model, status, _, count, _ in observed] == [
        ("predict", "half", "OK", 0),
        ("regress", "half", "OK", 2),
        ("classify", "half", "INVALID_ARGUMENT", 0),
        ("", "half", "OK", 0),
        ("", "half", "OK", 0),
        ("", "other", "NOT_FOUND", 0),
        ("", "", "INVALID_ARGUMENT", 0),
    ]
    assert all(microseconds > 0 for *_, microseconds, _, _ in observed)


def test_what_was_answered_is_recorded_with_the_version_that_answered() -> None:
    recorded: list[tuple[str, int, Call, Arrays]] = []
    models = StandInModels({"half": {1: half_plus_two(1)}})
    replied(models, PREDICT, ("POST", "/v1/models/half:predict", {}), record=lambda *what: recorded.append(what))
    ((model, version, call, answers),) = recorded
    assert (model, version, call.inputs["x"].tolist(), answers["y"].tolist()) == ("half", 1, [1.0], [2.5])


def test_signatures_of_tf2_classify_unless_their_method_is_checked() -> None:
    models = StandInModels({"half": {1: half_plus_two(1)}})
    request = ("POST", "/v1/models/half:classify", {"signature_name": "tf2_classify", "examples": [{"x": 1.0}]})
    ((lenient, body, _),), _ = replied(models, request)
    ((strict, refused, _),), _ = replied(models, request, check_method_names=True)
    assert (lenient, json.loads(body)["results"]) == (200, [[["", 2.5], ["", -2.5]]])
    assert (strict, json.loads(refused)["error"]) == (
        400,
        "Expected classification signature method_name to be tensorflow/serving/classify. Was: "
        "tensorflow/serving/predict",
    )


def test_a_gzip_body_is_unfolded_up_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "MAX_UNCOMPRESSED", 1000)
    assert unzipped(gzip.compress(b"a" * 999)) == b"a" * 999
    for body, why in (
        (gzip.compress(b"a" * 1001), "more than 1000 bytes"),
        (gzip.compress(b"a" * 10)[:-4], "its end is missing"),
        (b"", "its end is missing"),
        (b"no gzip", "incorrect header check"),
    ):
        with pytest.raises(Refusal, match=why):
            unzipped(body)


def test_base64_of_any_bytes_comes_back_whole(ask: Asking) -> None:
    sent = [bytes(range(256)), b"", b"\x00"]
    rows = [{"b64": base64.b64encode(each).decode()} for each in sent]
    answer = ask.post("/v1/models/texts:predict", {"instances": rows}).json["predictions"]
    assert [base64.b64decode(each["raw_bytes"]["b64"]) for each in answer] == sent


# Arms

ONE_EXAMPLE = {"examples": [{"x": 2.0}]}
BY_ALL = [
    PREDICT,
    ("POST", "/v1/models/half:regress", {"signature_name": "regress_x_to_y", **ONE_EXAMPLE}),
    ("POST", "/v1/models/half:classify", {"signature_name": "classify_x_to_y", **ONE_EXAMPLE}),
]


def routed(*arms: Arm) -> Router:
    router = Router()
    router.set({"half": arms})
    return router


def two() -> StandInModels:
    return StandInModels({"half": {1: half_plus_two(1), 2: half_plus_two(2)}}, labels={"half": {"stable": 1}})


def test_every_inference_is_answered_by_an_arm_which_is_told_and_observed() -> None:
    router = routed(Arm("old", 1.0, "half", label="stable"))
    replies, observed = replied(two(), *BY_ALL, ("GET", "/v1/models/half/metadata", None), router=router)
    assert [(status, arm) for status, _, arm in replies] == [*[(200, "old")] * 3, (200, "")]
    assert json.loads(replies[3][1])["model_spec"]["version"] == "2"
    assert [(each[-1].version, each[-1].arm) for each in observed] == [*[(1, "old")] * 3, (None, "")]
    assert all(each[-1].split is router.split("half") for each in observed[:3])


def test_the_version_that_answered_is_observed_without_a_split_and_where_it_refused() -> None:
    wrong = ("POST", "/v1/models/half:predict", {"inputs": {"z": 1}})
    nowhere = ("POST", "/v1/models/half/versions/9:predict", {"instances": [1.0]})
    replies, observed = replied(two(), *BY_ALL, wrong, nowhere)
    assert [status for status, _, _ in replies] == [200, 200, 200, 400, 404]
    assert [each[-1].version for each in observed] == [2, 2, 2, 2, None]
    assert {arm for _, _, arm in replies} == {""}


def test_a_refusal_of_an_arm_says_which_one_it_was() -> None:
    wrong = ("POST", "/v1/models/half:predict", {"inputs": {"z": 1}})
    ((status, _, arm),), observed = replied(two(), wrong, router=routed(Arm("old", 1.0, "half", 1)))
    assert (status, arm, observed[0][-1].version) == (400, "old", 1)


def test_the_key_of_a_request_says_which_arm_answers() -> None:
    router = routed(Arm("a", 0.5, "half", 1), Arm("b", 0.5, "half", 2))
    api = RestApi(two(), observe=lambda *_: None, router=router)

    async def arms(key: str) -> set[str]:
        body = json.dumps(PREDICT[2]).encode()
        return {(await api.reply(*PREDICT[:2], body, {"x-tfdeploy-key": key}))[2] for _ in range(5)}

    for number in range(10):
        assert asyncio.run(arms(f"user-{number}")) == {router.choose("half", f"user-{number}").name}  # type: ignore[union-attr]
    status, _, arm = asyncio.run(api.reply(*PREDICT[:2], b"{}", {"x-tfdeploy-key": "x" * 2000}))
    assert (status, arm) == (400, "")


def outcome(document: Any, *, counts: Callable[[Split, Outcomes], bool]) -> tuple[int, Any]:
    router = routed(Arm("a", 0.5, "half", 1), Arm("b", 0.5, "half", 2))
    ((status, body, _),), observed = replied(
        two(), ("POST", "/v1/models/half:outcome", document), router=router, count=counts
    )
    assert observed[0][:2] == ("", "half")  # no inference
    return status, json.loads(body)


def test_outcomes_are_counted_and_the_answer_says_how_many() -> None:
    counted: list[Outcomes] = []

    def counts(split: Split, outcomes: Outcomes) -> bool:
        counted.append(outcomes)
        return True

    assert outcome({"arm": "a", "success": True}, counts=counts) == (200, {"counted": 1})
    rows = [{"arm": "a", "success": True}, {"arm": "b", "success": False}, {"arm": "a", "success": True}]
    assert outcome({"outcomes": rows}, counts=counts) == (200, {"counted": 3})
    assert counted == [{("a", "success"): 1}, {("a", "success"): 2, ("b", "failure"): 1}]


def test_where_one_outcome_is_wrong_none_is_counted() -> None:
    def counts(*_: Any) -> bool:
        raise AssertionError

    rows = [{"arm": "a", "success": True}, {"arm": "c", "success": True}]
    status, body = outcome({"outcomes": rows}, counts=counts)
    assert (status, "has no arm" in body["error"]) == (400, True)


def test_outcomes_that_meet_a_new_split_are_counted_by_that() -> None:
    router = routed(Arm("a", 1.0, "half", 1))
    seen: list[Split] = []

    def counts(split: Split, _: Outcomes) -> bool:
        seen.append(split)
        if len(seen) == 1:
            router.set({"half": (Arm("a", 0.5, "half", 1), Arm("b", 0.5, "half", 2))})
        return len(seen) > 1

    request = ("POST", "/v1/models/half:outcome", {"arm": "a", "success": True})
    ((status, _, _),), _ = replied(two(), request, router=router, count=counts)
    assert (status, [len(split.arms) for split in seen]) == (200, [1, 2])
