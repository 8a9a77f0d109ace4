"""What XNNPACK takes, read off the interpreter in one way and checked in another: with every operator on its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tests.evaluate import by_hand
from tests.evaluate.counter import counter_file
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.samples import save_arrays
from tfdeploy_magic.convert.describe import describe
from tfdeploy_magic.evaluate import timing
from tfdeploy_magic.evaluate.session import LiteSession
from tfdeploy_magic.evaluate.slowness import Delegation, delegation, replaced_by, why_slow
from tfdeploy_magic.jobs import Worker

PLAIN = ("float32", "float16", "dynamic", "int8", "int16x8")
RECIPES = ("weight_only_wi8_afp32", "weight_only_wi4_afp32", "dynamic_wi4_afp32")


@pytest.fixture(scope="module")
def contents(trained_cnn: Any, digits: Digits) -> dict[str, bytes]:
    from litert_quantizer import quantizer, recipe

    made = {scheme: by_hand.plain_file(trained_cnn, scheme, rows=digits.x_train[:20]) for scheme in PLAIN}
    for name in RECIPES:
        quantizing = quantizer.Quantizer(bytearray(made["float32"]), getattr(recipe, name)())
        made[name] = bytes(quantizing.quantize().quantized_model)
    return {**made, "variable": counter_file(), "two_branches": two_branches()}


def two_branches() -> bytes:
    """XNNPACK takes what is around two operators that it does not know, one of them in the middle."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([1, 4], tf.float32, name="x")])
    def answer(x: Any) -> Any:
        left, right = tf.nn.relu(x) * 2.0, tf.math.floormod(x + 1.0, 3.0)
        return {"y": tf.cumsum(left + right, axis=1) * 3.0, "z": left - 1.0}

    return bytes(tf.lite.TFLiteConverter.from_concrete_functions([answer.get_concrete_function()]).convert())


def nodes_of(content: bytes, **options: Any) -> list[dict[str, Any]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1, **options)
    interpreter.allocate_tensors()
    return list(interpreter._get_ops_details())


def edges(node: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(sorted({int(index) for index in node[field]} - {-1})) for field in ("inputs", "outputs"))


@pytest.mark.parametrize("name", [*PLAIN, *RECIPES, "variable", "two_branches"])
def test_the_operators_in_delegates_are_those_that_xnnpack_takes_one_by_one(
    contents: dict[str, bytes], name: str
) -> None:
    nodes = nodes_of(contents[name])
    operators = [node for node in nodes if node["op_name"] != "DELEGATE"]
    delegates = [node for node in nodes if node["op_name"] == "DELEGATE"]
    pieces = [replaced_by(node, operators) for node in delegates]
    assert sum(map(len, pieces)) == len(set().union(*pieces)), "no operator is in two"
    alone = nodes_of(contents[name], experimental_disable_delegate_node_fusion=True)
    one_by_one = sorted(edges(node) for node in alone if node["op_name"] == "DELEGATE")
    assert sorted(edges(operators[position]) for position in set().union(*pieces)) == one_by_one
    seen = delegation(nodes, given=())
    assert (seen.total, seen.delegated, seen.pieces) == (len(operators), len(one_by_one), len(delegates))
    assert sum(seen.left.values()) == seen.total - seen.delegated


def test_xnnpack_takes_most_of_a_float_file_and_nothing_of_16_bit_activations(contents: dict[str, bytes]) -> None:
    from ai_edge_litert.interpreter import OpResolverType

    found = {name: delegation(nodes_of(contents[name]), given=(0,)) for name in ("float32", "int16x8")}
    assert found["float32"].delegated == 7
    assert found["float32"].left == {"SHAPE": 1, "STRIDED_SLICE": 1, "PACK": 1, "RESHAPE": 1}
    assert (found["int16x8"].delegated, found["int16x8"].pieces) == (0, 0)
    without = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    bare = {name: nodes_of(contents[name], experimental_op_resolver_type=without) for name in found}
    assert delegation(bare["float32"], given=(0,)).delegated == 0
    assert delegation(bare["int16x8"], given=(0,)) == found["int16x8"]


@pytest.fixture(scope="module")
def seen(
    contents: dict[str, bytes], digits: Digits, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[LiteFile, Delegation]]]:
    """As the kernel gets them: from a job."""
    folder = tmp_path_factory.mktemp("files")
    files = {}
    for name in (*PLAIN, *RECIPES):
        path = folder / f"{name}.tflite"
        path.write_bytes(contents[name])
        files[name] = LiteFile.from_description(path, "float32", describe(path))
    inputs = save_arrays(folder / "inputs", {files["float32"].inputs[0].name: digits.x_test[:2]})
    broken = replace(files["int8"], path=folder / "broken.tflite")
    broken.path.write_bytes(b"")
    broken = replace(broken, sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    with Worker(deadline=60) as worker:
        *found, nothing = timing.delegations(worker, [*files.values(), broken], inputs)
    assert nothing is None
    assert all(isinstance(one, Delegation) for one in found)
    yield {name: (file, one) for (name, file), one in zip(files.items(), found, strict=True) if one is not None}


def test_a_job_sees_what_is_seen_here(
    seen: dict[str, tuple[LiteFile, Delegation]], contents: dict[str, bytes], digits: Digits
) -> None:
    for name, (file, found) in seen.items():
        session = LiteSession(file.path)
        session.stopwatch({file.inputs[0].name: digits.x_test[:1]})
        assert found == delegation(session.nodes(), session.input_indices)
        assert (found.total, found.delegated) == (
            sum(file.operators.values()),
            delegation(nodes_of(contents[name]), given=()).delegated,
        )


def test_only_what_is_computed_counts_as_converted(seen: dict[str, tuple[LiteFile, Delegation]]) -> None:
    converted = {name: dict(found.conversions) for name, (_, found) in seen.items()}
    assert converted["int8"] == converted["int16x8"] == {"QUANTIZE": 1, "DEQUANTIZE": 1}
    assert seen["float16"][0].operators["DEQUANTIZE"] == 8, "its weights are unpacked"
    assert converted["float16"] == converted["weight_only_wi8_afp32"] == converted["float32"] == {}


def test_operators_of_a_dynamic_file_quantize_what_they_are_given(seen: dict[str, tuple[LiteFile, Delegation]]) -> None:
    assert {name: found.quantizing for name, (_, found) in seen.items()} == {
        "float32": 0,
        "float16": 0,
        "dynamic": 2,  # TensorFlow leaves the 144 weights of the first convolution alone
        "int8": 0,
        "int16x8": 0,
        "weight_only_wi8_afp32": 0,
        "weight_only_wi4_afp32": 0,
        "dynamic_wi4_afp32": 3,
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("float32", ()),
        ("float16", ()),
        ("dynamic", ("2 operators quantize their inputs anew in each run",)),
        (
            "int8",
            (
                "XNNPACK takes 8 of its 13 operators and 7 of 11 of the float file; left out here: SOFTMAX",
                "XNNPACK runs it in 3 pieces, the float file in 2",
                "1 QUANTIZE and 1 DEQUANTIZE that only convert between float and integers or between scales",
            ),
        ),
        (
            "int16x8",
            (
                "16-bit activations: XNNPACK takes none of its 13 operators",
                "1 QUANTIZE and 1 DEQUANTIZE that only convert between float and integers or between scales",
            ),
        ),
        ("weight_only_wi8_afp32", ()),
        (
            "weight_only_wi4_afp32",
            (
                "XNNPACK takes 4 of its 14 operators and 7 of 11 of the float file; "
                "left out here: 3 DEQUANTIZE, 2 CONV_2D, FULLY_CONNECTED",
            ),
        ),
        (
            "dynamic_wi4_afp32",
            (
                "XNNPACK takes 5 of its 11 operators and 7 of 11 of the float file; left out here: 2 CONV_2D",
                "3 operators quantize their inputs anew in each run",
            ),
        ),
    ],
)
def test_what_may_cost_a_file_time_is_said_against_its_float_twin(
    seen: dict[str, tuple[LiteFile, Delegation]], name: str, expected: tuple[str, ...]
) -> None:
    assert why_slow(*seen[name], seen["float32"][1]) == expected


def test_without_a_float_file_everything_that_xnnpack_leaves_is_said(
    seen: dict[str, tuple[LiteFile, Delegation]],
) -> None:
    assert why_slow(*seen["int8"])[0] == (
        "XNNPACK takes 8 of its 13 operators; left out here: SHAPE, STRIDED_SLICE, PACK, RESHAPE, SOFTMAX"
    )
    assert why_slow(*seen["int16x8"])[0] == "16-bit activations: XNNPACK takes none of its 13 operators"


def test_where_xnnpack_takes_nothing_of_the_float_file_either_it_explains_nothing(
    seen: dict[str, tuple[LiteFile, Delegation]],
) -> None:
    file, found = seen["int8"]
    nothing = replace(found, delegated=0, pieces=0, left={"ATAN2": 2}, conversions={"QUANTIZE": 1}, quantizing=1)
    assert why_slow(file, nothing, replace(nothing, conversions={}, quantizing=0)) == (
        "1 QUANTIZE that only converts between float and integers or between scales",
        "1 operator quantizes its input anew in each run",
    )
    taken = replace(nothing, delegated=2, pieces=1, left={})
    assert why_slow(file, replace(nothing, total=1), taken)[0] == "XNNPACK takes none of its 1 operator"


def test_weights_of_integers_are_unpacked_once_and_not_in_each_run(contents: dict[str, bytes]) -> None:
    """Zeroing what a first run unpacked shows in a second one: nothing writes it again."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=contents["weight_only_wi4_afp32"],
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    interpreter.set_tensor(given["index"], np.ones((1, 8, 8, 1), "float32"))
    interpreter.invoke()
    unpacked = next(node["outputs"][0] for node in interpreter._get_ops_details() if node["op_name"] == "DEQUANTIZE")
    assert np.ptp(interpreter.get_tensor(unpacked)) > 0
    interpreter.tensor(unpacked)()[:] = 0
    interpreter.invoke()
    assert not interpreter.get_tensor(unpacked).any()
