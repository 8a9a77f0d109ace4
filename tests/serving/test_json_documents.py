"""Documents are read as RapidJSON reads them, and every text that goes out is JSON again."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tfdeploy_magic.serving import json_documents
from tfdeploy_magic.serving.status import Code, Refusal

untimed = settings(deadline=None)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(names, inner, max_size=4))
documents = st.dictionaries(names, values, max_size=5)


def refusal(body: bytes) -> str:
    with pytest.raises(Refusal) as caught:
        json_documents.parse(body)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value.message


@untimed
@given(documents, st.sampled_from([None, 1]), st.booleans())
def test_any_object_is_read_as_pythons_own_parser_reads_it(
    document: dict[str, Any], indent: int | None, ascii_only: bool
) -> None:
    body = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode()
    assert repr(json_documents.parse(body)) == repr(json.loads(body))


@untimed
@given(documents, st.binary())
def test_what_follows_the_document_is_ignored(document: dict[str, Any], rest: bytes) -> None:
    assert json_documents.parse(json.dumps(document).encode() + rest) == document


@untimed
@given(st.binary())
def test_any_bytes_are_an_object_or_a_refusal(body: bytes) -> None:
    for start in (b"", b'{"a":', b'{"a":"', b'{"a":[1,2.5,"'):
        try:
            assert isinstance(json_documents.parse(start + body), dict)
        except Refusal as refused:
            assert json.loads(json_documents.error_body(refused.message))["error"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"  ", "JSON Parse error: The document is empty. at offset: 2"),
        (b'{"a":x}', "JSON Parse error: Invalid value. at offset: 5"),
        (b'\xef\xbb\xbf{"a":x}', "JSON Parse error: Invalid value. at offset: 8"),
        (b'{"\xff\xfe":x}', "JSON Parse error: Invalid value. at offset: 6"),
        (b'{"a":[1.]}', "JSON Parse error: Miss fraction part in number. at offset: 8"),
        (b'{"a" 1}', "JSON Parse error: Missing a colon after a name of object member. at offset: 5"),
        (b'{"a":[1 2]}', "JSON Parse error: Missing a comma or ']' after an array element. at offset: 8"),
        (b'{"a":1e400}', "JSON Parse error: Number too big to be stored in double. at offset: 5"),
        (b'{"a":1%be300}' % (b"0" * 22), "JSON Parse error: Number too big to be stored in double. at offset: 5"),
        (b'{"a":%b}' % (b"9" * 5000), "JSON Parse error: Number too big to be stored in double. at offset: 5"),
        (b'{"a":"\\ud800"}', "JSON Parse error: The surrogate pair in string is invalid. at offset: 6"),
        (b'{"a":"\\x"}', "JSON Parse error: Invalid escape character in string. at offset: 6"),
        (b"3", "JSON Value: 3 Is not object"),
        (b'["a"] {}', 'JSON Value: [\n    "a"\n] Is not object'),
    ],
)
def test_what_is_wrong_is_said_in_rapidjsons_words(body: bytes, said: str) -> None:
    assert refusal(body) == said


@pytest.mark.parametrize("deep", [b"[" * 500_000 + b"]" * 500_000, b'{"a":' * 500_000, b'{"a":' + b"[" * 500_000])
def test_half_a_million_levels_are_refused(deep: bytes) -> None:
    assert refusal(deep) == "JSON Parse error: The document is nested too deeply."


def test_nan_and_the_infinities_are_numbers() -> None:
    found = json_documents.parse(b'{"a": [NaN, Infinity, -Infinity, Inf, -Inf]}')["a"]
    assert math.isnan(found[0])
    assert found[1:] == [math.inf, -math.inf, math.inf, -math.inf]


def test_decimals_are_rounded_correctly() -> None:
    rng = np.random.default_rng(0)
    texts = [repr(value) for value in (rng.standard_normal(2000) * 10.0 ** rng.integers(-300, 300, 2000)).tolist()]
    assert json_documents.parse(f'{{"a": [{",".join(texts)}]}}'.encode())["a"] == [float(text) for text in texts]


def test_the_first_of_members_with_one_name_counts_and_the_order_stays() -> None:
    found = json_documents.parse(b'{"a": 1, "b": {"c": 2, "c": 3}, "a": 4}')
    assert list(found.items()) == [("a", 1), ("b", {"c": 2})]


def test_bytes_that_are_no_utf8_pass_through_a_string() -> None:
    raw = b"\xff\x80 caf\xe9 \xc3\xa9 \xed\xa0\x80 \xf4\x8f"
    found = json_documents.parse(b'{"a": "%b", "b": ["%b"]} \xfe' % (raw, raw))
    assert json_documents.to_bytes(found["a"]) == raw
    assert json_documents.to_bytes(found["b"][0]) == raw


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (-0.0, "-0.0"),
        (3.0, "3.0"),
        (3.14159265358979, "3.14159274"),
        (9e6, "9e+06"),
        (3e-5, "3e-05"),
        (1e300 / 3, "3.3333333333333335e+299"),
        (math.nan, "NaN"),
        (-math.inf, "-Infinity"),
        (2**64, "1.84467441e+19"),
        (2**64 - 1, "18446744073709551615"),
        ([1, {"a": math.inf}], '[\n    1,\n    {\n        "a": Infinity\n    }\n]'),
        ("\udcff", '"\N{REPLACEMENT CHARACTER}"'),
    ],
)
def test_values_in_messages_are_pretty_printed(value: Any, text: str) -> None:
    assert json_documents.value_text(value) == text


@untimed
@given(values)
def test_values_in_messages_are_the_start_of_the_whole_text(value: Any) -> None:
    text = json_documents.value_text(value)
    assert len(text.encode()) <= 256
    if len(text.encode()) < 250 and not json_documents.is_double(value):
        assert json.loads(text) == json.loads(json.dumps(value), parse_int=_as_rapidjson)


def _as_rapidjson(text: str) -> int | float:
    return float(text) if json_documents.is_double(int(text)) else int(text)


@pytest.mark.parametrize("large", [list(range(10**6)), ["x" * 10**6], {"x" * 10**6: 1}, [[[1] * 1000] * 1000]])
def test_large_values_are_cut_at_256_bytes(large: Any) -> None:
    assert len(json_documents.value_text(large).encode()) == 256


def test_a_cut_never_splits_a_character() -> None:
    assert json_documents.value_text("é" * 300) == '"' + "é" * 127


@untimed
@given(st.text())
def test_any_message_is_an_answer_that_parses(message: str) -> None:
    found = json.loads(json_documents.error_body(message))
    assert list(found) == ["error"]
    expected = "".join("\N{REPLACEMENT CHARACTER}" if "\ud800" <= char <= "\udfff" else char for char in message)
    assert found["error"] == expected


def test_an_error_is_laid_out_as_rapidjson_lays_it_out() -> None:
    assert json_documents.error_body('"a"\\ /\n\x1fé') == '{\n    "error": "\\"a\\"\\\\ /\\n\\u001Fé"\n}'.encode()


@untimed
@given(st.binary(), st.booleans())
def test_base64_is_read_with_and_without_padding(raw: bytes, padded: bool) -> None:
    text = base64.b64encode(raw).decode()
    assert json_documents.from_base64({"b64": text if padded else text.rstrip("=")}) == raw


def test_white_space_in_base64_does_no_harm() -> None:
    assert json_documents.from_base64({"b64": " Y\nQ\t= =\r"}) == b"a"


@pytest.mark.parametrize("text", ["Y", "YQ=", "YWJj=", "====", "YQ==YQ==", "Y-Q_", "é", "\udcff", "Y=Q="])
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(Refusal, match=r"^INVALID_ARGUMENT: Unable to base64 decode$"):
        json_documents.from_base64({"b64": text})


@pytest.mark.parametrize("value", [{"b64": 1}, {"b64": "YQ==", "c": 1}, {}, {"c": "YQ=="}])
def test_other_objects_are_not_formatted_for_base64(value: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match=r"^INVALID_ARGUMENT: JSON Value: [^!]* not formatted correctly for base64 data$"):
        json_documents.from_base64(value)


@untimed
@given(
    st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int32", "int64", "uint64", "bool"]).flatmap(
        lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, min_side=0, max_side=4))
    )
)
def test_numbers_read_back_are_the_same(array: npt.NDArray[Any]) -> None:
    found = json.loads(json_documents.write_numbers(array))
    np.testing.assert_array_equal(np.array(found, array.dtype).reshape(array.shape), array)


def test_a_float32_is_written_with_its_own_digits() -> None:
    array = np.array([[0.1, np.nan, -np.inf], [np.inf, 1.0, 16777216.0]], np.float32)
    assert json_documents.write_numbers(array) == b"[[0.1,NaN,-Infinity],[Infinity,1.0,16777216.0]]"


def test_arrays_that_are_not_contiguous_are_written_in_their_own_order() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert json_documents.write_numbers(array.T) == b"[[0,3],[1,4],[2,5]]"
