"""Requests and answers to predict: values against json and numpy, refusals against TensorFlow Serving's own texts."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tfdeploy_magic.serving import json_predict
from tfdeploy_magic.serving.calls import Call
from tfdeploy_magic.serving.protos import meta_graph_pb2, types_pb2
from tfdeploy_magic.serving.status import Code, Refusal

untimed = settings(deadline=None)
DTYPES = {
    "float": "float32",
    "double": "float64",
    "int8": "int8",
    "uint8": "uint8",
    "int16": "int16",
    "int32": "int32",
    "int64": "int64",
    "uint32": "uint32",
    "uint64": "uint64",
    "bool": "bool",
}


def signature(outputs: dict[str, str] | None = None, **inputs: str) -> Any:
    made = meta_graph_pb2.SignatureDef()
    for tensors, dtypes in ((made.inputs, inputs), (made.outputs, outputs or {"y": "float"})):
        for alias, dtype in dtypes.items():
            tensors[alias].dtype = types_pb2.DataType.Value(f"DT_{dtype.upper()}")
    return made


def parsed(body: bytes | str, **inputs: str) -> tuple[Call, bool]:
    body = body if isinstance(body, bytes) else body.encode()
    return json_predict.parse_predict(body, {"serving_default": signature(**inputs)})


def refusal(body: bytes | str, code: Code = Code.INVALID_ARGUMENT, **inputs: str) -> str:
    with pytest.raises(Refusal) as caught:
        parsed(body, **inputs)
    assert caught.value.code is code
    return caught.value.message


def the_same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tolist() == other.tolist()


# Values.


def test_a_row_is_one_example_and_asks_for_all_outputs_of_the_default_signature() -> None:
    signatures = {"serving_default": signature({"p": "float", "q": "float"}, x="float")}
    call, row = json_predict.parse_predict(b'{"instances": [1.0, 2.0, 5.0]}', signatures)
    assert row
    assert (call.signature, set(call.outputs)) == ("serving_default", {"p", "q"})
    assert the_same(call.inputs["x"], np.array([1, 2, 5], np.float32))


@pytest.mark.parametrize("named", ["", '"signature_name": "",', '"signature_name": "other",'])
def test_the_signature_may_be_named(named: str) -> None:
    signatures = {"serving_default": signature(x="float"), "other": signature(x="int32")}
    call, _ = json_predict.parse_predict(f'{{{named} "inputs": [1]}}'.encode(), signatures)
    assert call.signature == ("other" if "other" in named else "serving_default")
    assert call.inputs["x"].dtype == ("int32" if "other" in named else "float32")


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, npt.NDArray[Any]]:
    kind = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(npst.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
    return kind, draw(npst.arrays(DTYPES[kind], shape, elements={"allow_nan": False} if kind in FLOATS else None))


FLOATS = ("float", "double")


@untimed
@given(tensors(), st.sampled_from([None, 2]))
def test_one_tensor_arrives_as_it_was_sent_in_every_format(
    sent: tuple[str, npt.NDArray[Any]], indent: int | None
) -> None:
    kind, array = sent
    listed = array.tolist()
    for content in (
        {"instances": listed},
        {"inputs": listed},
        {"inputs": {"x": listed}},
        {"instances": [{"x": value} for value in listed]},
    ):
        call, row = parsed(json.dumps(content, indent=indent), x=kind)
        assert row == ("instances" in content)
        assert the_same(call.inputs["x"], array)


def test_several_inputs_may_have_shapes_of_their_own() -> None:
    call, row = parsed(b'{"inputs": {"b": [[1, 2]], "a": 3.5, "extra": []}}', a="float", b="int32")
    assert not row
    assert the_same(call.inputs["a"], np.array(3.5, np.float32))
    assert the_same(call.inputs["b"], np.array([[1, 2]], np.int32))


def test_rows_of_objects_are_batched_by_input() -> None:
    rows = [{"a": [1, 2.5], "b": i, "c": f"t{i}", "d": i == 1} for i in range(3)]
    call, _ = parsed(json.dumps({"instances": rows}), a="float", b="int64", c="string", d="bool")
    assert the_same(call.inputs["a"], np.array([[1, 2.5]] * 3, np.float32))
    assert the_same(call.inputs["b"], np.arange(3))
    assert call.inputs["c"].tolist() == [b"t0", b"t1", b"t2"]
    assert the_same(call.inputs["d"], np.array([False, True, False]))


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ('{"instances": ["a", {"b64": "/wA="}, "\\u00e9"]}', [b"a", b"\xff\x00", "é".encode()]),
        ('{"instances": [["a"], [{"b64": "YQ"}]]}', [[b"a"], [b"a"]]),
        ('{"instances": [{"x": ["a"]}]}', [[b"a"]]),
        ('{"instances": [{"x": {"b64": "YQ=="}}]}', [b"a"]),
        ('{"inputs": {"b64": "YQ=="}}', b"a"),
        ('{"inputs": {"x": "a"}}', b"a"),
        (b'{"instances": ["\xff"]}', [b"\xff"]),
        (b'{"instances": [{"x": "\xff"}]}', [b"\xff"]),
    ],
)
def test_strings_are_bytes(body: bytes | str, wanted: Any) -> None:
    found = parsed(body, x="string")[0].inputs["x"]
    assert found.dtype == object
    assert found.tolist() == wanted


def test_numbers_beyond_float32_are_infinite_and_nan_is_taken() -> None:
    call, _ = parsed(b'{"instances": [1e39, -1e39, 1e-60, NaN, -Infinity, 123456789012345678901234567890]}', x="float")
    wanted = np.array([np.inf, -np.inf, 0, np.nan, -np.inf, 123456789012345678901234567890], np.float32)
    np.testing.assert_array_equal(call.inputs["x"], wanted)
    assert the_same(
        parsed(b'{"instances": [1e39]}', x="float")[0].inputs["x"], np.array([np.inf], np.float32)
    )  # the quick way


def test_small_integers_are_read_as_int32_and_keep_their_low_bits() -> None:
    assert parsed(b'{"instances": [300, -1]}', x="uint8")[0].inputs["x"].tolist() == [44, 255]


def test_empty_lists_keep_their_shape() -> None:
    assert parsed(b'{"inputs": []}', x="int32")[0].inputs["x"].shape == (0,)
    assert parsed(b'{"instances": [[[]], [[]]]}', x="float")[0].inputs["x"].shape == (2, 1, 0)


# Refusals.

ITEM = "Failed to process element: {} of 'instances' list. Error: "
KEY = "Failed to process element: {} key: {} of 'instances' list. Error: INVALID_ARGUMENT: "


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "JSON Parse error: The document is empty"),
        ("[1]", "JSON Value: [\n    1\n] Is not object"),
        ("{}", "Missing 'inputs' or 'instances' key"),
        (
            '{"signature_name": 5, "instances": [1]}',
            'JSON Value: {\n    "signature_name": 5,\n    "instances": [\n        1\n    ]\n} not formatted correctly.'
            " 'signature_name' key must be a string value.",
        ),
        (
            '{"signature_name": null, "instances": [1]}',
            'JSON Value: {\n    "signature_name": null,\n    "instances": [\n        1\n    ]\n} not formatted'
            " correctly. 'signature_name' key must be a string value.",
        ),
        (
            '{"signature_name": "s", "instances": [1]}',
            'Serving signature name: "s" not found in signature def',
        ),
        (
            '{"instances": 1, "inputs": 2}',
            'JSON Value: {\n    "instances": 1,\n    "inputs": 2\n} Not formatted correctly expecting only one of'
            " 'inputs' or 'instances' keys to exist ",
        ),
        ('{"instances": 1}', "JSON Value: {\n    \"instances\": 1\n} Expecting 'instances' to be an list/array"),
        ('{"instances": []}', "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array"),
        ('{"instances": [{"x": 1}, [1]]}', "Expecting object but got list at item 1 of input list"),
        ('{"instances": [1, {"x": 1}]}', "Expecting value/list but got object at item 1 of input list"),
        (
            '{"instances": [{"x": 1}, {}]}',
            "Failed to process element: 1 of 'instances' list. JSON object: {} keys must be equal to: x",
        ),
        ('{"instances": [{"x": 1, "k": 1}]}', KEY.format(0, "k") + "JSON object: does not have named input: k"),
        ('{"instances": [[1], [3, 4]]}', ITEM.format(1) + "INVALID_ARGUMENT: Expecting tensor size: 1 but got: 2"),
        (
            '{"instances": [[1, 2], [[3, 4]]]}',
            ITEM.format(1) + "INVALID_ARGUMENT: Expecting shape [2] but got: [1,2]",
        ),
        (
            '{"instances": [{"x": 1}, {"x": "a"}]}',
            KEY.format(1, "x") + 'JSON Value: "a" Type: String is not of expected type: float',
        ),
        ('{"inputs": [[1, 2], [3]]}', "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ('{"inputs": [[1], [[2]]]}', "Encountered list at unexpected level: 2 expected < 2"),
        (
            '{"inputs": [[1], 3]}',
            "JSON Value: 3 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        ),
        ('{"inputs": {"z": 1}}', "Missing named input: x in 'inputs' object."),
        ('{"inputs": [true]}', "JSON Value: true Type: True is not of expected type: float"),
        ('{"inputs": [null]}', "JSON Value: null Type: Null is not of expected type: float"),
        ('{"inputs": [{}]}', "JSON Value: {} Type: Object is not of expected type: float"),
        (
            '{"inputs": {"b64": "YQ=="}}',
            'JSON Value: {\n    "b64": "YQ=="\n} Type: Object is not of expected type: float',
        ),
        (f'{{"inputs": {"[" * 70}1{"]" * 70}}}', "tensor parsing error: x"),
        (f'{{"inputs": {"[" * 900}1,[{"]" * 901}}}', "tensor parsing error: x"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_tensorflow_servings_words(body: str, said: str) -> None:
    assert refusal(body, x="float") == said


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        ("int32", "1.0", "1.0 Type: Number"),
        ("int32", "2147483648", "2147483648 Type: Number"),
        ("uint8", "-2147483649", "-2147483649 Type: Number"),
        ("int64", "9223372036854775808", "9223372036854775808 Type: Number"),
        ("int64", "36893488147419103232", "3.68934881e+19 Type: Number"),
        ("uint32", "-1", "-1 Type: Number"),
        ("uint32", "4294967296", "4294967296 Type: Number"),
        ("uint64", "-1", "-1 Type: Number"),
        ("bool", "1", "1 Type: Number"),
        ("string", "1", "1 Type: Number"),
        ("double", '"1"', '"1" Type: String'),
        ("int64", "true", "true Type: True"),
    ],
)
def test_a_value_of_another_type_is_named(kind: str, value: str, shown: str) -> None:
    assert refusal(f'{{"inputs": [[{value}]]}}', x=kind) == f"JSON Value: {shown} is not of expected type: {kind}"


def test_dtypes_without_a_conversion_are_unimplemented() -> None:
    assert refusal('{"inputs": [1]}', Code.UNIMPLEMENTED, x="half") == "Conversion of JSON Value: 1 to type: half"
    assert refusal('{"inputs": []}', Code.UNIMPLEMENTED, x="complex64").endswith("[] to type: complex64")
    assert refusal('{"instances": [1]}', x="half") == (
        ITEM.format(0) + "UNIMPLEMENTED: Conversion of JSON Value: 1 to type: half"
    )


def test_several_inputs_need_objects() -> None:
    two = {"a": "float", "b": "float"}
    end = " input tensors required as per tensorinfo_map"
    assert refusal('{"inputs": [1]}', **two) == (
        "inputs is a plain value/list, but expecting an object as multiple" + end
    )
    for body in ('{"instances": [1]}', '{"instances": [{"b64": "YQ=="}]}'):
        assert refusal(body, **two) == "instances is a plain list, but expecting list of objects as multiple" + end


def test_a_signature_without_inputs_cannot_be_asked() -> None:
    for body in ('{"inputs": {}}', '{"instances": [{}]}'):
        assert refusal(body) == "Failed to get input map for signature: DEFAULT"


SHORT = st.recursive(
    st.sampled_from(["0", "-0", "1", "2.5", "-3.25", "0.1", "16777217", "1e3", "01", "1.", ".5", "-", "+1", "1 2", ""])
    | st.integers(-(10**45), 10**45).map(str)
    | st.floats(allow_nan=False, allow_infinity=False, width=32).map(repr),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: f"[{','.join(parts)}]"),
    max_leaves=6,
)


@settings(deadline=None, max_examples=500)
@given(SHORT, st.sampled_from(["float", "double"]), st.sampled_from(["instances", "inputs", "instance"]))
def test_a_few_numbers_are_read_as_the_exact_way_reads_them(value: str, kind: str, key: str) -> None:
    agree(f'{{"{key}": {value}}}'.encode(), {"x": kind})


@pytest.mark.parametrize("body", ['{"instances": [1.0, 2.0, 5.0]}', '{"instances":[[1, 2], [3, -4.5]]}'])
def test_a_few_numbers_take_the_shortest_way(body: str) -> None:
    short = json_predict._Short.of({"serving_default": signature(x="float")})
    assert short is not None and short.parse(body.encode()) is not None
    assert agree(body.encode(), {"x": "float"})


@untimed
@given(npst.arrays(st.sampled_from(["f4", "f8"]), npst.array_shapes(min_dims=0, max_dims=3, max_side=4)))
def test_the_codec_writes_what_is_written_without_it(array: npt.NDArray[Any]) -> None:
    made = signature({"y": "float" if array.dtype == np.float32 else "double"}, x="float")
    codec = json_predict.Codec({"serving_default": made})
    for answer in (array, array.T):
        try:
            wanted = json_predict.write_predict({"y": answer}, made, row=True)
        except Refusal as refused:
            with pytest.raises(Refusal, match=re.escape(refused.message)):
                codec.write({"y": answer}, "serving_default", row=True)
        else:
            assert codec.write({"y": answer}, "serving_default", row=True) == wanted


def test_half_a_million_levels_are_refused() -> None:
    assert refusal('{"instances": ' + "[" * 500_000 + "]" * 500_000 + "}", x="float").endswith("nested too deeply.")


# The quick way and the exact way.

LITERALS = [
    *("0", "-0", "1", "2.5", "-0.0", "1e2", "1E-7", "1e-400", "0.1e1", "1e39", "255", "2147483648", "-2147483649"),
    *("9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616"),
    *("NaN", "Infinity", "-Infinity", "1e400", "0e400", "0E400", "0e+309", "1e308", "1.7976931348623157e308", "01"),
    *("1.", "-", "+1", "true", "false", "null", '"x"', '"["', '"a\\"b"', '"\\ud800"', "[]", "{}", "[1]"),
    *('{"b64": "YQ=="}', "9" * 308, "1" + "0" * 308, "9" * 400, "1" + "0" * 400 + "e-200"),
    *("0." + "0" * 400 + "1e390", "17976931348623157" + "0" * 292),
]  # fmt: skip
PLAIN = LITERALS[:13]
WHOLE = ["0", "-0", "1", "100", "255", "2147483647"]


def listed(literals: list[str], shape: tuple[int, ...]) -> str:
    """Write literals as nested lists; there may be too few or too many of them."""
    if not shape:
        return literals.pop() if literals else "7"
    return f"[{','.join(listed(literals, shape[1:]) for _ in range(shape[0]))}]"


def members(values: dict[str, str]) -> str:
    return "{" + ", ".join(f'"{alias}": {value}' for alias, value in values.items()) + "}"


def written_tensors(kind: str, right: bool) -> st.SearchStrategy[str]:
    """Return texts of tensors: such as the kind takes, or with anything that may stand in JSON."""
    plain = {"bool": ["true", "false"], "string": ['"x"', '"a b"'], "float": PLAIN, "double": PLAIN}.get(kind, WHOLE)
    sizes = st.lists(st.integers(1, 3) if right else st.integers(0, 3), max_size=3).map(tuple)
    literals = st.lists(st.sampled_from(plain if right else LITERALS), min_size=27 if right else 0, max_size=27)
    texts = st.builds(listed, literals, sizes)
    return texts if right else texts | texts.map(lambda text: text.replace("],[", "],[7,", 1).replace("]", "", 1))


@st.composite
def bodies(draw: st.DrawFn) -> tuple[dict[str, str], bytes]:
    """Draw a body that is right or nearly so, and the dtypes of the inputs that it is for."""
    right = draw(st.booleans())
    names = st.lists(st.sampled_from(["x", "y", "b64"]), min_size=int(right), max_size=3, unique=True)
    inputs = {
        alias: draw(st.sampled_from([*DTYPES, "string", "half"][: -1 if right else None])) for alias in draw(names)
    }
    rows = [
        {alias: draw(written_tensors(inputs[alias], right)) for alias in draw(st.permutations(list(inputs)))}
        for _ in range(draw(st.integers(1, 3)))
    ]
    key, content = draw(
        st.sampled_from(
            [
                ("inputs", members(rows[0])),
                ("instances", f"[{', '.join(map(members, rows[:1] * len(rows)))}]"),
                ("instances", f"[{', '.join(map(members, rows))}]"),
                *(("instances", f"[{value}, {value}]") for value in rows[0].values()),
                *(("inputs", value) for value in rows[0].values()),
            ]
        )
    )
    start = draw(st.sampled_from(["", "\n", "\N{ZERO WIDTH NO-BREAK SPACE}"]))
    named = draw(st.sampled_from(["", '"signature_name": "serving_default", ']))
    extra = "" if right else draw(st.sampled_from(["", '"extra": "]", ', f'"{key}": 1, ', '"signature_name": "", ']))
    end = draw(st.sampled_from(["", " ", "\n"] if right else ["", "x", "\x00", "\xff"]))
    return inputs, f'{start}{{{named}{extra}"{key}":{content}}}'.encode() + end.encode("latin-1")


def agree(body: bytes, inputs: dict[str, str]) -> bool:
    """Check that the quick ways, where they take a body, make of it what the exact way makes of it."""
    signatures = {"serving_default": signature(**inputs)}
    ways = [json_predict._quick(body, signatures)]
    if (short := json_predict._Short.of(signatures)) is not None and (call := short.parse(body)) is not None:
        ways.append((call, True))
    found = [way for way in ways if way is not None]
    try:
        exact = json_predict._exact(body, signatures)
    except Refusal:
        assert not found
        return False
    for call, row in found:
        assert (call.signature, call.outputs, row) == (exact[0].signature, exact[0].outputs, exact[1])
        assert call.inputs.keys() == exact[0].inputs.keys()
        for alias, array in call.inputs.items():
            wanted = exact[0].inputs[alias]
            assert (array.dtype, array.shape) == (wanted.dtype, wanted.shape)
            assert (array.tolist() if array.dtype == object else array.tobytes()) == (
                wanted.tolist() if wanted.dtype == object else wanted.tobytes()
            )
    return bool(found)


@settings(deadline=None, max_examples=500)
@given(bodies())
def test_the_quick_way_takes_nothing_that_the_exact_way_refuses_and_gives_the_same(
    drawn: tuple[dict[str, str], bytes],
) -> None:
    inputs, body = drawn
    agree(body, inputs)


@settings(deadline=None, max_examples=200)
@given(bodies(), st.data())
def test_a_byte_changed_or_cut_makes_no_difference_between_the_ways(
    drawn: tuple[dict[str, str], bytes], data: st.DataObject
) -> None:
    inputs, body = drawn
    place = data.draw(st.integers(0, len(body) - 1))
    put = data.draw(st.sampled_from([b"", b"[", b"]", b",", b'"', b"{", b"}", b":", b"e", b"0", b"\\", b"\xc3", b" "]))
    agree(body[:place] + put + body[place + data.draw(st.integers(0, 2)) :], inputs)


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ('{"instances": [[1, 2], [3]]}', {"x": "float"}),
        ('{"instances": [[1, 2], [3], [4]]}', {"x": "float"}),
        ('{"instances": [[[1, 2]], [[3], [4]]]}', {"x": "float"}),
        ('{"inputs": [1, [2]]}', {"x": "float"}),
        ('{"instances": [0e400]}', {"x": "float"}),
        ('{"instances": [0E+400]}', {"x": "float"}),
        ('{"instances": [1], "inputs": [1]}', {"x": "float"}),
        ('{"instances": [1], "instances": [2]}', {"x": "float"}),
        ('{"inputs": {"x": [1], "x": [2]}}', {"x": "float"}),
        ('{"instances": [{"x": [1]}, {"x": [2], "x": [3]}]}', {"x": "float"}),
        ('{"instances": [{"x": [1]}, {"x": [2], "y": [3]}]}', {"x": "float"}),
        ('{"instances": [{"x": [1]}, {"x": 2}]}', {"x": "float"}),
        ('{"instances": [{"b64": "YQ=="}]}', {"b64": "string"}),
        ('{"inputs": {"b64": "YQ=="}}', {"b64": "string"}),
        ('{"instances": [{}]}', {}),
        ('{"inputs": {}}', {}),
        ('{"signature_name": null, "instances": [1]}', {"x": "float"}),
        ('{"signature_name": [], "instances": [1]}', {"x": "float"}),
        ('{"signature_name": "serving_default", "signature_name": 1, "instances": [1]}', {"x": "float"}),
        ('{"signature_name": "s", "signature_name": "serving_default", "instances": [1]}', {"x": "float"}),
        ('{"instances": [-2147483649, 0]}', {"x": "int8"}),
        ('{"instances": [0, 4294967296]}', {"x": "uint32"}),
        (f'{{"inputs": {"[" * 64}1{"]" * 64}}}', {"x": "float"}),
    ],
)
def test_what_simdjson_takes_for_numbers_and_the_exact_way_does_not_is_left_to_it(
    body: str, inputs: dict[str, str]
) -> None:
    assert not agree(body.encode(), inputs)


@pytest.mark.parametrize("digits", [300, 308, 309, 330, 400, 700])
def test_numbers_of_hundreds_of_digits_are_never_taken_quickly(digits: int) -> None:
    for before in range(0, 260, 13):
        for end in ("", "e-99", ".5"):
            agree(f'{{"instances":[{" " * before}1{"0" * (digits - 1)}{end}]}}'.encode(), {"x": "double"})


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ('{"instances": [1, 2.5]}', {"x": "float"}),
        ('{"instances": [[[1, 2], [3, 4]]]}', {"x": "uint8"}),
        ('\n{"inputs": [[1e-5]], "signature_name": "serving_default"} ', {"x": "double"}),
        ('{"inputs": {"b": [[1], [2]], "a": [1, 2, 3]}}', {"a": "int64", "b": "uint64"}),
        ('{"instances": [{"x": [1, 2]}, {"x": [3, 4]}]}', {"x": "int32"}),
        ('{"instances": [{"a": 1, "b": "x", "c": true}]}', {"a": "float", "b": "string", "c": "bool"}),
    ],
)
def test_the_common_requests_go_the_quick_way(body: str, inputs: dict[str, str]) -> None:
    assert agree(body.encode(), inputs)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint64"])
def test_many_numbers_are_read_exactly(dtype: str) -> None:
    bits = np.random.default_rng(0).integers(0, 2**64, 20_000, np.uint64)
    array = bits.view(dtype)
    array = array[np.isfinite(array)].reshape(-1)
    array = array[: len(array) // 8 * 8].reshape(-1, 2, 4)
    kind = {"float32": "float", "float64": "double"}.get(dtype, dtype)
    body = json.dumps({"instances": array.tolist()})
    assert the_same(parsed(body, x=kind)[0].inputs["x"], array)


def test_threads_do_not_disturb_each_other() -> None:
    def ask(seed: int) -> bool:
        array = np.random.default_rng(seed).random((50, 20))
        content = {"instances": array.tolist()} if seed % 2 else {"inputs": array.tolist(), "more": math_words}
        body = json.dumps(content)
        return all(the_same(parsed(body, x="double")[0].inputs["x"], array) for _ in range(5))

    math_words = [float("nan"), {"a": float("inf")}]  # which only the exact way takes
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(40)))


@untimed
@given(st.binary(max_size=40))
def test_any_bytes_are_a_call_or_a_refusal(body: bytes) -> None:
    for start in (b"", b'{"instances":', b'{"inputs":[', b'{"instances":[1,"', b'{"instances":[{"x":'):
        with contextlib.suppress(Refusal):
            assert parsed(start + body, x="float")[0].inputs["x"].dtype == np.float32


def test_nothing_of_this_imports_tensorflow() -> None:
    script = (
        "import sys, tfdeploy_magic.serving.json_predict, tfdeploy_magic.serving.json_examples;"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# Answers.


def written(answers: dict[str, Any], row: bool, **dtypes: str) -> Any:
    return json.loads(json_predict.write_predict(answers, signature(dtypes, x="float"), row))


@untimed
@given(
    st.sampled_from([*DTYPES]).flatmap(
        lambda kind: st.tuples(
            st.just(kind), npst.arrays(DTYPES[kind], npst.array_shapes(min_dims=1, min_side=0, max_side=4))
        )
    )
)
def test_answers_read_back_are_the_arrays(answer: tuple[str, npt.NDArray[Any]]) -> None:
    kind, array = answer
    for row, key in ((True, "predictions"), (False, "outputs")):
        found = written({"y": array}, row, y=kind)
        assert list(found) == [key]
        np.testing.assert_array_equal(np.array(found[key], array.dtype).reshape(array.shape), array)
        several = written({"y": array, "z": array}, row, y=kind, z=kind)[key]
        again = [entry["z"] for entry in several] if row else several["z"]
        np.testing.assert_array_equal(np.array(again, array.dtype).reshape(array.shape), array)


def strings(*values: bytes) -> npt.NDArray[Any]:
    return np.array(values, object)


def test_strings_of_an_alias_in_bytes_are_base64_and_others_are_text() -> None:
    answers = {"t": strings(b"caf\xc3\xa9", b"\xff"), "t_bytes": strings(b"a", b"\xff")}
    assert written(answers, True, t="string", t_bytes="string")["predictions"] == [
        {"t": "café", "t_bytes": {"b64": "YQ=="}},
        {"t": "\N{REPLACEMENT CHARACTER}", "t_bytes": {"b64": "/w=="}},
    ]
    assert written({"t": strings(b"a").reshape(1, 1)}, True, t="string") == {"predictions": [["a"]]}
    scalar = strings(b"a").reshape(())
    assert written({"t": scalar, "t_bytes": scalar}, False, t="string", t_bytes="string") == {
        "outputs": {"t": "a", "t_bytes": {"b64": "YQ=="}}
    }


def test_rows_with_several_outputs_keep_nan_where_it_is() -> None:
    answers = {
        "a": np.array([[1, np.nan], [np.inf, 0.1]], np.float32),
        "b": np.array([np.nan, 2]),
        "c": strings(b"null", b""),
    }
    body = json_predict.write_predict(answers, signature({"a": "float", "b": "double", "c": "string"}), True)
    assert b'[{"a":[1.0,NaN],"b":NaN,"c":"null"},{"a":[Infinity,0.1],"b":2.0,"c":""}]' in body


def test_rows_with_several_outputs_have_the_digits_of_their_dtype() -> None:
    answers = {"a": np.array([0.1], np.float32), "b": np.array([[0.1, 2]], np.float64).T.copy().T}
    body = json_predict.write_predict(answers, signature({"a": "float", "b": "double"}), True)
    assert b'[{"a":0.1,"b":[0.1,2.0]}]' in body


def test_the_answer_of_the_documentation() -> None:
    body = json_predict.write_predict({"y": np.array([2.5, 3.0, 4.5], np.float32)}, signature(), True)
    assert body == b'{\n    "predictions": [2.5,3.0,4.5]\n}'


def test_a_scalar_output_has_no_rows_but_is_a_column() -> None:
    scalar = np.array(0.1, np.float32)
    assert json_predict.write_predict({"y": scalar}, signature(), False) == b'{\n    "outputs": 0.1\n}'
    with pytest.raises(Refusal) as caught:
        json_predict.write_predict({"y": scalar}, signature(), True)
    assert str(caught.value) == "INVALID_ARGUMENT: Tensor name: y has no shape information "


def test_outputs_of_different_batch_sizes_have_no_rows() -> None:
    with pytest.raises(Refusal) as caught:
        written({"a": np.zeros((2, 1)), "b": np.zeros(1)}, True, a="double", b="double")
    assert str(caught.value) == "INVALID_ARGUMENT: Tensor name: b has inconsistent batch size: 1 expecting: 2"
    assert written({"a": np.zeros((0, 1)), "b": strings()}, True, a="double", b="string") == {"predictions": []}


@pytest.mark.parametrize(("kind", "dtype"), [("half", "float16"), ("complex64", "complex64"), ("uint16", "uint16")])
def test_dtypes_that_are_not_written_are_named(kind: str, dtype: str) -> None:
    with pytest.raises(Refusal) as caught:
        written({"y": np.zeros(2, dtype)}, True, y=kind)
    assert str(caught.value) == f"INVALID_ARGUMENT: Failed to write JSON value for tensor type: {kind}"


def test_no_outputs_are_no_answer() -> None:
    with pytest.raises(Refusal, match="Cannot convert empty tensor map to JSON"):
        json_predict.write_predict({}, signature(), True)
