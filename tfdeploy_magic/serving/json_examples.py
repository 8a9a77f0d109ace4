"""Classify and regress in JSON: lists of examples to tf.Example, and results to an answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from tfdeploy_magic.serving.json_documents import (
    from_base64,
    is_base64,
    is_double,
    parse,
    signature_name,
    to_bytes,
    type_name,
    value_text,
    write_answer,
    write_json,
    write_numbers,
)
from tfdeploy_magic.serving.protos import example_pb2
from tfdeploy_magic.serving.status import invalid

Example = Any
"""``tensorflow.Example`` of example.proto."""


def parse_examples(body: bytes) -> tuple[str, list[Example], Example | None]:
    """Read the body of a request to classify or to regress; both are the same.

    Returns:
        The key of the signature, "" where none is named; the examples; and the features that all of them share.

    Raises:
        Refusal: In TensorFlow Serving's words.
    """
    document = parse(body)
    signature = signature_name(document)
    context = _example(document["context"]) if "context" in document else None
    return signature, [_example(entry) for entry in _entries(document)], context


def write_classify(results: list[list[tuple[str, float]]]) -> bytes:
    """Write what classify found: the labels and scores (float32) of each example.

    Raises:
        Refusal: There is no example.
    """
    if not results:
        raise invalid("Cannot convert empty ClassificationResults to JSON")
    content = [[(label, orjson.Fragment(_number(score))) for label, score in classes] for classes in results]
    return write_answer("results", write_json(content))


def write_regress(values: list[float]) -> bytes:
    """Write what regress found: a float32 for each example.

    Raises:
        Refusal: There is no example.
    """
    if not values:
        raise invalid("Cannot convert empty RegressionResults to JSON")
    return write_answer("results", write_numbers(np.array(values, np.float32)))


def _number(score: float) -> bytes:
    return write_numbers(np.array(score, np.float32))


def _entries(document: dict[str, Any]) -> list[Any]:
    found = document.get("examples")
    if "examples" not in document:
        wrong = "When method is classify, key 'examples' is expected and was not found"
    elif not isinstance(found, list):
        wrong = "Expecting 'examples' value to be an list/array"
    elif not found:
        wrong = "'examples' value is an empty array"
    else:
        return found
    raise invalid(f"JSON Value: {value_text(document)} {wrong}")


def _example(entry: Any) -> Example:
    if not isinstance(entry, dict):
        raise invalid(f"Example must be JSON object but got JSON {type_name(entry)}")
    example = example_pb2.Example()
    for name, content in entry.items():
        _fill(example.features.feature[name], name, content if isinstance(content, list) else [content])
    return example


def _fill(feature: Any, name: str, values: list[Any]) -> None:
    first = ""
    for value in values:
        kind = _kind(name, value)
        if kind != (first := first or kind):
            raise invalid(f"Unexpected element type in feature: {name} expecting type: {first}")
        if kind == "int64" and value >= 2**63:
            raise invalid(f"Feature: {name} has uint64 element. Only int64_t is supported.")
    if first == "bytes":
        feature.bytes_list.value.extend(to_bytes(v) if isinstance(v, str) else from_base64(v) for v in values)
    elif first == "float":
        feature.float_list.value.extend(map(float, values))
    elif first:
        feature.int64_list.value.extend(map(int, values))


def _kind(name: str, value: Any) -> str:
    """Return the kind of list that a feature with such a value is, as messages have it."""
    if isinstance(value, str) or is_base64(value):
        return "bytes"
    if value is None or isinstance(value, list | dict):
        raise invalid(f"Feature: {name} has element with unexpected JSON type: {type_name(value)}")
    return "float" if is_double(value) else "int64"
