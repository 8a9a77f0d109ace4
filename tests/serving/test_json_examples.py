"""Lists of examples become tf.Example as TensorFlow Serving makes them; results become JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdeploy_magic.serving import json_examples
from tfdeploy_magic.serving.status import Code, Refusal


def features(example: Any) -> dict[str, tuple[str | None, list[Any]]]:
    """Return name -> the kind of list and what is in it."""
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = (kind, list(getattr(feature, kind).value) if kind else [])
    return found


def parsed(content: str) -> dict[str, tuple[str | None, list[Any]]]:
    """Return the features of the one example in a body."""
    _, (example,), _ = json_examples.parse_examples(f'{{"examples": [{content}]}}'.encode())
    return features(example)


def refusal(body: str) -> str:
    with pytest.raises(Refusal) as caught:
        json_examples.parse_examples(body.encode())
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


def test_examples_with_context_and_signature() -> None:
    signature, examples, context = json_examples.parse_examples(
        b"""{"signature_name": "custom", "context": {"query": "pizza", "location": ["sfo"]}, "examples": [
            {"names": ["foo", "bar"], "ratings": [8.0, 9.0, NaN, Infinity], "age": 20},
            {"names": ["baz", {"b64": "aGVsbG8="}], "ratings": 6.0, "mix": [1, true, false]}]}"""
    )
    assert signature == "custom"
    assert features(context) == {"query": ("bytes_list", [b"pizza"]), "location": ("bytes_list", [b"sfo"])}
    first, second = map(features, examples)
    assert first.pop("ratings")[1][:2] == [8.0, 9.0]
    assert first == {"names": ("bytes_list", [b"foo", b"bar"]), "age": ("int64_list", [20])}
    assert second == {
        "names": ("bytes_list", [b"baz", b"hello"]),
        "ratings": ("float_list", [6.0]),
        "mix": ("int64_list", [1, 1, 0]),
    }


def test_without_signature_and_context() -> None:
    signature, examples, context = json_examples.parse_examples(b'{"examples": [{}, {}]}')
    assert (signature, len(examples), context) == ("", 2, None)


def test_an_empty_context_is_a_context() -> None:
    assert json_examples.parse_examples(b'{"examples": [{}], "context": {}}')[2] is not None


def test_an_empty_list_is_a_feature_of_no_kind() -> None:
    assert parsed('{"a": []}') == {"a": (None, [])}


def test_a_decimal_makes_floats_and_so_does_what_exceeds_64_bits() -> None:
    found = parsed('{"a": 0.1, "b": [1e39, -1e39], "c": 36893488147419103232, "d": -9223372036854775808}')
    assert found["a"] == ("float_list", [float(np.float32(0.1))])
    assert found["b"] == ("float_list", [math.inf, -math.inf])
    assert found["c"] == ("float_list", [2.0**65])
    assert found["d"] == ("int64_list", [-(2**63)])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "JSON Parse error: The document is empty"),
        (
            '{"signature_name": ["a"], "examples": [{}]}',
            'JSON Value: {\n    "signature_name": [\n        "a"\n    ],\n    "examples": [\n        {}\n    ]\n} not'
            " formatted correctly. 'signature_name' key must be a string value.",
        ),
        ("{}", "JSON Value: {} When method is classify, key 'examples' is expected and was not found"),
        (
            '{"examples": null}',
            "JSON Value: {\n    \"examples\": null\n} Expecting 'examples' value to be an list/array",
        ),
        ('{"examples": []}', "JSON Value: {\n    \"examples\": []\n} 'examples' value is an empty array"),
        ('{"examples": [[{}]]}', "Example must be JSON object but got JSON Array"),
        ('{"context": [{}], "examples": 1}', "Example must be JSON object but got JSON Array"),
        ('{"examples": [true]}', "Example must be JSON object but got JSON True"),
    ],
)
def test_what_is_wrong_is_said_in_tensorflow_servings_words(body: str, said: str) -> None:
    assert refusal(body) == said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("[10, null]", "Feature: f has element with unexpected JSON type: Null"),
        ('[10, {"test": 10}]', "Feature: f has element with unexpected JSON type: Object"),
        ("[[10], 20]", "Feature: f has element with unexpected JSON type: Array"),
        ("[10, 10.0]", "Unexpected element type in feature: f expecting type: int64"),
        ("[10.0, true]", "Unexpected element type in feature: f expecting type: float"),
        ('["a", 1]', "Unexpected element type in feature: f expecting type: bytes"),
        ('[1, {"b64": "YQ=="}]', "Unexpected element type in feature: f expecting type: int64"),
        ('{"b64": "Y"}', "Unable to base64 decode"),
        ("[20, 18446744073709551603]", "Feature: f has uint64 element. Only int64_t is supported."),
    ],
)
def test_a_feature_that_cannot_be_is_named(values: str, said: str) -> None:
    assert refusal(f'{{"examples": [{{"f": {values}}}]}}') == said


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["b64", "a"]), inner, max_size=2),
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["examples", "context", "signature_name", "a"]), values))
def test_any_object_is_examples_or_a_refusal(document: dict[str, Any]) -> None:
    for content in (document, {"examples": [document]}):
        try:
            signature, examples, _ = json_examples.parse_examples(json.dumps(content).encode())
        except Refusal:
            continue
        assert isinstance(signature, str)
        assert len(examples) == len(content["examples"])


@settings(deadline=None)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1))
    | st.lists(st.floats(width=32, allow_nan=False))
    | st.lists(st.text(st.characters(exclude_categories=["Cs"])))
)
def test_a_feature_holds_the_list_that_was_sent(sent: list[Any]) -> None:
    found = parsed(json.dumps({"f": sent}))["f"][1]
    assert found == [value.encode() if isinstance(value, str) else value for value in sent]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.floats(width=32))), min_size=1)
)
def test_classes_read_back_are_the_same(results: list[list[tuple[str, float]]]) -> None:
    found = json.loads(json_examples.write_classify(results))
    assert list(found) == ["results"]
    assert repr([[(label, float(np.float32(score))) for label, score in row] for row in found["results"]]) == repr(
        results
    )


@settings(deadline=None)
@given(st.lists(st.floats(width=32), min_size=1))
def test_values_read_back_are_the_same(values: list[float]) -> None:
    found = json.loads(json_examples.write_regress(values))["results"]
    np.testing.assert_array_equal(np.array(found, np.float32), np.array(values, np.float32))


def test_results_have_the_digits_of_float32_and_bare_words() -> None:
    score = float(np.float32(0.2))
    assert json_examples.write_classify([[("car", score), ("bike", math.nan)], []]) == (
        b'{\n    "results": [[["car",0.2],["bike",NaN]],[]]\n}'
    )
    assert json_examples.write_regress([score, math.inf]) == b'{\n    "results": [0.2,Infinity]\n}'


def test_no_results_are_no_answer() -> None:
    with pytest.raises(Refusal, match="Cannot convert empty ClassificationResults to JSON"):
        json_examples.write_classify([])
    with pytest.raises(Refusal, match="Cannot convert empty RegressionResults to JSON"):
        json_examples.write_regress([])
