"""The second engine answers as litert-quantizer used by hand, and says in words what it will not do."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.conftest import Digits
from tests.evaluate import by_hand
from tfdeploy_magic.artifacts.schemes import SCHEMES
from tfdeploy_magic.artifacts.signature import Arrays, Signature, TensorSpec
from tfdeploy_magic.errors import ConversionError, NameNotFound
from tfdeploy_magic.jobs import Progress, Report
from tfdeploy_magic.jobs.progress import silent
from tfdeploy_magic.quantization import litegraph, litert
from tfdeploy_magic.quantization.litert import Ranges

RECIPES = {
    "weight_only_wi8": "weight_only_wi8_afp32",
    "weight_only_wi4": "weight_only_wi4_afp32",
    "dynamic_wi8": "dynamic_wi8_afp32",
    "dynamic_wi4": "dynamic_wi4_afp32",
    "dynamic_wi4_b32": "dynamic_wi4b32_afp32",
    "static_wi8_ai8": "static_wi8_ai8",
    "static_wi8_ai16": "static_wi8_ai16",
}
"""Our name of a scheme -> litert-quantizer's."""

STATIC = ("static_wi8_ai8", "static_wi8_ai16")

RNG = np.random.default_rng(0)

Array = npt.NDArray[Any]


@contextlib.contextmanager
def as_litert_warns() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: Enabling `experimental_preserve_all_tensors`", UserWarning)
        yield


def by_its_own_hand(model: bytes, scheme: str, found: dict[str, Any] | None = None) -> bytes:
    """Quantize with the library alone, floats in and out."""
    from litert_quantizer import quantizer, recipe
    from litert_quantizer.qtyping import TFLOperationName

    with as_litert_warns():
        engine = quantizer.Quantizer(model, getattr(recipe, RECIPES[scheme])())
        for door in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
            engine.update_quantization_recipe("^", door, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE)
        return bytes(engine.quantize(found, enable_progress_report=False).quantized_model)


def its_own_ranges(model: bytes, rows: list[Arrays], *, min_max: bool) -> dict[str, Any]:
    from litert_quantizer import calibrator, recipe, recipe_manager
    from litert_quantizer.utils import qsv_utils

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai16())
    update = {"qsv_update_func": qsv_utils.min_max_update} if min_max else {}
    with as_litert_warns():
        calibrating = calibrator.Calibrator(model, **update)
        calibrating.calibrate({"serving_default": rows}, manager)
    found: dict[str, Any] = calibrating.get_model_qsvs()
    return found


def as_found(ranges: Ranges) -> dict[str, Any]:
    return {name: {"min": np.float32([low]), "max": np.float32([high])} for name, (low, high) in ranges.items()}


def as_ranges(found: dict[str, Any]) -> Ranges:
    floats = {name: seen for name, seen in found.items() if seen["min"].dtype == np.float32}
    return {name: (float(seen["min"].min()), float(seen["max"].max())) for name, seen in floats.items()}


def input_of(model: bytes) -> str:
    (name,) = by_hand.interpreter(model).get_signature_runner().get_input_details()
    return str(name)


def tensorflows_ranges(model: bytes, rows: Array) -> Ranges:
    from tensorflow.lite.python.optimize import calibrator

    calibrating = calibrator.Calibrator(calibrator.add_intermediate_tensors(model))
    return litert.ranges_of(bytes(calibrating.calibrate(lambda: ([row[None]] for row in rows))))


def answer(model: bytes, x: Array) -> Array:
    (output,) = by_hand.answers(model, {input_of(model): x}).values()
    return output


def snr(reference: Array, approximation: Array) -> float:
    reference = reference.astype("float64")
    with np.errstate(divide="ignore"):  # the same answers
        return float(10 * np.log10(np.square(reference).sum() / np.square(reference - approximation).sum()))


def built(*layers: Any) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential(layers)


def operators(model: bytes) -> litegraph.Graph:
    return litegraph.Graph(litegraph.parse(model))


def outputs_by_kind(model: bytes) -> dict[str, list[str]]:
    graph = operators(model)
    found: dict[str, list[str]] = {}
    for op in graph.ops:
        found.setdefault(op.name, []).append(graph.name(op.outputs[0]))
    return found


def dtype_of(graph: litegraph.Graph, tensor: int) -> str:
    from ai_edge_litert.schema_py_generated import TensorType

    names = {code: name for name, code in vars(TensorType).items() if isinstance(code, int)}
    return names[int(graph.tensors[tensor].type)]


def stored(model: bytes) -> dict[str, tuple[str, str]]:
    """Return the output of each operator with weights -> dtypes of its weights and of its output."""
    graph = operators(model)
    found = {}
    for op in graph.ops:
        if op.name in ("CONV_2D", "FULLY_CONNECTED"):
            weights = op.inputs[1]
            if (maker := graph.makers.get(weights)) is not None:
                weights = maker.inputs[0]
            found[graph.name(op.outputs[0])] = dtype_of(graph, weights), dtype_of(graph, op.outputs[0])
    return found


@pytest.fixture(scope="module")
def cnn(trained_cnn: Any) -> bytes:
    return by_hand.plain_file(trained_cnn)


@pytest.fixture(scope="module")
def rows(digits: Digits) -> Array:
    return digits.x_train[:100]


@pytest.fixture(scope="module")
def x(digits: Digits) -> Array:
    return digits.x_test[:200]


@pytest.fixture(scope="module")
def ranges(cnn: bytes, rows: Array) -> Ranges:
    return tensorflows_ranges(cnn, rows)


@pytest.fixture(scope="module")
def own_ranges(cnn: bytes, rows: Array) -> dict[str, Any]:
    return its_own_ranges(cnn, [{input_of(cnn): row[None]} for row in rows], min_max=True)


@pytest.fixture(scope="module")
def dense() -> tuple[bytes, Array]:
    """A file of 400 kB without operators that work in place, and samples."""
    import keras

    model = built(
        keras.Input((64,)),
        keras.layers.Dense(512, activation="relu"),
        keras.layers.Dense(128, activation="tanh"),
        keras.layers.Dense(10),
    )
    return by_hand.plain_file(model), RNG.normal(size=(60, 64)).astype("float32")


# Schemes


@pytest.mark.parametrize("scheme", RECIPES)
def test_a_small_cnn_answers_as_litert_quantizer_used_by_hand(
    cnn: bytes, ranges: Ranges, x: Array, scheme: str
) -> None:
    found = as_found(ranges) if SCHEMES[scheme].calibrated else None
    made = litert.quantize(cnn, scheme, ranges if found else None)
    np.testing.assert_array_equal(answer(made, x), answer(by_its_own_hand(cnn, scheme, found), x))
    assert 20 < snr(answer(cnn, x), answer(made, x)) < 70
    assert len(made) < len(cnn)


def test_every_scheme_of_the_engine_is_tried_here() -> None:
    assert {name for name, scheme in SCHEMES.items() if scheme.engine == "litert"} == RECIPES.keys()


@pytest.mark.parametrize("scheme", STATIC)
def test_quantizing_twice_gives_the_same_file_and_changes_nothing(cnn: bytes, ranges: Ranges, scheme: str) -> None:
    before, given = bytes(bytearray(cnn)), dict(ranges)
    assert litert.quantize(cnn, scheme, ranges) == litert.quantize(cnn, scheme, ranges)
    assert (cnn, ranges) == (before, given)


def test_int8_of_both_engines_answers_alike_from_the_same_ranges(
    cnn: bytes, trained_cnn: Any, ranges: Ranges, rows: Array, x: Array
) -> None:
    ours = answer(litert.quantize(cnn, "static_wi8_ai8", ranges), x)
    tensorflows = answer(by_hand.plain_file(trained_cnn, "int8", "float32", rows), x)
    steps = np.abs(ours - tensorflows) * 256  # the scale of a softmax is fixed at 1/256
    assert steps.max() <= 1
    assert np.mean(steps > 0) < 0.01


def test_integer_inputs_stay_integers_beside_quantized_activations() -> None:
    import keras

    model = by_hand.plain_file(
        built(
            keras.Input((12,), dtype="int32"),
            keras.layers.Embedding(200, 32),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(3),
        )
    )
    ids = RNG.integers(0, 200, (40, 12)).astype("int32")
    found = tensorflows_ranges(model, ids)
    for scheme in STATIC:
        made = litert.quantize(model, scheme, found)
        (taken,) = by_hand.interpreter(made).get_input_details()
        assert taken["dtype"] is np.int32
        assert snr(answer(model, ids), answer(made, ids)) > 30


def test_weights_stay_in_the_flatbuffer_of_a_file_of_some_size(dense: tuple[bytes, Array]) -> None:
    model, samples = dense
    made = litert.quantize(model, "weight_only_wi8", None)
    theirs = by_its_own_hand(model, "dynamic_wi8")
    assert len(model) > 4 * 64 * 512
    assert all(buffer.offset == 0 for buffer in litegraph.parse(made).buffers)
    np.testing.assert_array_equal(answer(litert.quantize(model, "dynamic_wi8", None), samples), answer(theirs, samples))


def test_a_model_of_many_operators_is_quantized_without_a_sound(capsys: pytest.CaptureFixture[str]) -> None:
    import keras

    model = by_hand.plain_file(built(keras.Input((6, 4)), keras.layers.GRU(8, unroll=True), keras.layers.Dense(2)))
    samples = RNG.normal(size=(5, 6, 4)).astype("float32")
    capsys.readouterr()
    found = litert.calibrate(model, {input_of(model): samples}, signature_of(model), Report(silent), "moving_average")
    made = litert.quantize(model, "static_wi8_ai16", found)
    assert capsys.readouterr() == ("", "")
    assert len(operators(made).ops) > 100
    assert snr(answer(model, samples), answer(made, samples)) > 3


# Outputs that the model itself uses


@pytest.fixture(scope="module")
def inside_out() -> tuple[bytes, Array]:
    """A file whose outputs are taken by its other operators too, one of them the last."""
    import keras

    keras.utils.set_random_seed(0)
    start = keras.Input((16,))
    hidden = keras.layers.Dense(24, activation="relu")(start)
    logits = keras.layers.Dense(4)(hidden)
    model = keras.Model(start, {"hidden": hidden, "logits": logits, "probabilities": keras.layers.Softmax()(logits)})
    return by_hand.plain_file(model), RNG.normal(size=(50, 16)).astype("float32")


@pytest.mark.parametrize("scheme", STATIC)
def test_outputs_that_are_used_inside_the_model_are_right(inside_out: tuple[bytes, Array], scheme: str) -> None:
    model, samples = inside_out
    made = litert.quantize(model, scheme, tensorflows_ranges(model, samples))
    expected = by_hand.answers(model, {input_of(model): samples})
    got = by_hand.answers(made, {input_of(made): samples})
    assert got.keys() == expected.keys() == {"hidden", "logits", "probabilities"}
    for name, answers in expected.items():
        assert snr(answers, got[name]) > 30
    assert {taken["dtype"] for taken in by_hand.interpreter(made).get_output_details()} == {np.float32}


def test_left_alone_litert_quantizer_gets_them_wrong(inside_out: tuple[bytes, Array]) -> None:
    model, samples = inside_out
    theirs = by_its_own_hand(model, "static_wi8_ai16", as_found(tensorflows_ranges(model, samples)))
    expected = by_hand.answers(model, {input_of(model): samples})
    got = by_hand.answers(theirs, {input_of(model): samples})
    # Should this fail, it has been mended: _mend can go.
    assert snr(expected["probabilities"], got["probabilities"]) < 5


# Ranges


def test_tensorflows_ranges_reach_from_the_lowest_to_the_highest_value(cnn: bytes, ranges: Ranges, rows: Array) -> None:
    details = by_hand.interpreter(cnn)
    (taken,), (given,) = details.get_input_details(), details.get_output_details()
    answers = answer(cnn, rows)
    assert ranges[taken["name"]] == (rows.min(), rows.max())
    assert ranges[given["name"]] == pytest.approx((answers.min(), answers.max()), rel=1e-4)
    graph = operators(cnn)
    made = {graph.name(tensor) for op in graph.ops for tensor in op.outputs if graph.is_float(tensor)}
    assert ranges.keys() == made | {taken["name"]}


def test_tensorflows_ranges_are_litert_quantizers_own_where_nothing_works_in_place(
    dense: tuple[bytes, Array],
) -> None:
    model, samples = dense
    shared = tensorflows_ranges(model, samples)
    own = its_own_ranges(model, [{input_of(model): row[None]} for row in samples], min_max=True)
    assert litert.differing(shared, as_ranges(own)) == (0, 5)
    for scheme in STATIC:
        ours, theirs = litert.quantize(model, scheme, shared), by_its_own_hand(model, scheme, own)
        assert snr(answer(theirs, samples), answer(ours, samples)) > 80


def test_tensorflow_widens_a_range_where_an_operator_works_in_place(
    cnn: bytes, ranges: Ranges, own_ranges: dict[str, Any], x: Array
) -> None:
    own = as_ranges(own_ranges)
    assert litert.differing(ranges, own) == (2, len(own))
    kinds = outputs_by_kind(cnn)
    for tensor in (kinds["CONV_2D"][0], *kinds["MUL"]):  # the batch norm writes over what it takes
        assert ranges[tensor] != own[tensor]
        assert ranges[tensor][0] <= own[tensor][0] and own[tensor][1] <= ranges[tensor][1]
    expected = answer(cnn, x)
    shared, exact = (answer(litert.quantize(cnn, "static_wi8_ai8", each), x) for each in (ranges, own))
    assert snr(expected, exact) > snr(expected, shared) + 3


def signature_of(model: bytes, batch: int | None = None) -> Signature:
    return Signature("serving_default", (TensorSpec(input_of(model), (batch,), "float32"),), ())


def test_the_moving_average_is_litert_quantizers_own(cnn: bytes, rows: Array) -> None:
    seen: list[Progress] = []
    name = input_of(cnn)
    found = litert.calibrate(cnn, {name: rows}, signature_of(cnn), Report(seen.append), "moving_average")
    theirs = its_own_ranges(cnn, [{name: row[None]} for row in rows], min_max=False)
    assert found == as_ranges(theirs)
    fractions = [progress.fraction or 0 for progress in seen]
    assert fractions and fractions == sorted(fractions) and fractions[-1] <= 1


def test_the_moving_average_throws_precision_away(cnn: bytes, ranges: Ranges, rows: Array, x: Array) -> None:
    average = litert.calibrate(cnn, {input_of(cnn): rows}, signature_of(cnn), Report(silent), "moving_average")
    differ, both = litert.differing(average, ranges)
    assert differ > both / 2
    expected = answer(cnn, x)
    narrow, wide = (answer(litert.quantize(cnn, "static_wi8_ai8", each), x) for each in (average, ranges))
    assert snr(expected, narrow) < snr(expected, wide) - 8


def test_the_moving_average_goes_by_batches_where_their_size_is_fixed() -> None:
    import keras

    model = by_hand.plain_file(built(keras.Input(batch_shape=(4, 6)), keras.layers.Dense(3)))
    samples, name = RNG.normal(size=(11, 6)).astype("float32"), input_of(model)
    found = litert.calibrate(model, {name: samples}, signature_of(model, 4), Report(silent), "moving_average")
    theirs = its_own_ranges(model, [{name: samples[:4]}, {name: samples[4:8]}], min_max=False)
    assert found == as_ranges(theirs)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"a": (0.0, 1.0)}, {"a": (0.0, 1.0000002)}, (0, 1)),
        ({"a": (-1.0, 1.0)}, {"a": (-1.0, 1.01)}, (1, 1)),
        ({"a": (0.5, 1.0)}, {"a": (0.2, 1.0)}, (0, 1)),  # both are stored as 0 to 1
        ({"a": (0.0, 0.0)}, {"a": (0.0, 1.0)}, (1, 1)),
        ({"a": (0.0, 0.0)}, {"a": (0.0, 0.0)}, (0, 1)),
        ({"a": (0.0, 1.0), "b": (0.0, 1.0)}, {"a": (-3.0, 1.0), "c": (0.0, 1.0)}, (1, 1)),
    ],
)
def test_ranges_differ_from_a_quarter_of_a_step_on(first: Ranges, second: Ranges, expected: tuple[int, int]) -> None:
    assert litert.differing(first, second) == litert.differing(second, first) == expected


# Recipes


@pytest.fixture(scope="module")
def everything(cnn: bytes) -> list[str]:
    return [name for names in outputs_by_kind(cnn).values() for name in names]


def test_a_recipe_stores_each_layer_as_it_says(cnn: bytes, ranges: Ranges, everything: list[str], x: Array) -> None:
    kinds = outputs_by_kind(cnn)
    (first, second), (last,) = kinds["CONV_2D"], kinds["FULLY_CONNECTED"]
    made = litert.quantize_recipe(
        cnn, [(everything, "static_wi8_ai8"), ([second], "dynamic_wi4"), ([last], "float32")], ranges
    )
    assert stored(made) == {first: ("INT8", "INT8"), second: ("INT4", "FLOAT32"), last: ("FLOAT32", "FLOAT32")}
    assert snr(answer(cnn, x), answer(made, x)) > 25


@pytest.mark.parametrize("rest", [name for name in ("float32", *RECIPES) if name != "dynamic_wi4_b32"])
@pytest.mark.parametrize("own", [*RECIPES])
def test_schemes_stand_side_by_side(
    cnn: bytes, ranges: Ranges, everything: list[str], x: Array, rest: str, own: str
) -> None:
    (last,) = outputs_by_kind(cnn)["FULLY_CONNECTED"]
    made = litert.quantize_recipe(cnn, [(everything, rest), ([last], own)], ranges)
    weights = {"float32": "FLOAT32"} | {name: (SCHEMES[name].weights or "").upper() for name in RECIPES}
    activations = {name: (scheme.activations or "float32").upper() for name, scheme in SCHEMES.items()}
    assert stored(made)[last] == (weights[own], activations[own])
    assert {kinds for tensor, kinds in stored(made).items() if tensor != last} == {(weights[rest], activations[rest])}
    assert snr(answer(cnn, x), answer(made, x)) > 20


def test_a_recipe_of_one_scheme_is_that_scheme(cnn: bytes, ranges: Ranges, everything: list[str], x: Array) -> None:
    recipe = [(everything[:3], "float32"), (everything, "static_wi8_ai16")]
    np.testing.assert_array_equal(
        answer(litert.quantize_recipe(cnn, recipe, ranges), x),
        answer(litert.quantize(cnn, "static_wi8_ai16", ranges), x),
    )


def test_names_are_taken_literally_and_whole(cnn: bytes) -> None:
    import flatbuffers

    kinds = outputs_by_kind(cnn)
    (first, second), (last,) = kinds["CONV_2D"], kinds["FULLY_CONNECTED"]
    tree = litegraph.parse(cnn)
    renamed = {first: "a[1].*", second: "early;a[1].*", last: "a[1].*/more"}
    for tensor in tree.subgraphs[0].tensors:
        tensor.name = renamed.get(tensor.name.decode(), tensor.name.decode()).encode()
    builder = flatbuffers.Builder()
    builder.Finish(tree.Pack(builder), file_identifier=b"TFL3")
    made = litert.quantize_recipe(bytes(builder.Output()), [(["a[1].*"], "dynamic_wi8")], None)
    kept = ("FLOAT32", "FLOAT32")
    assert stored(made) == {"a[1].*": ("INT8", "FLOAT32"), "early;a[1].*": kept, "a[1].*/more": kept}


# What it refuses


def refusal(error: pytest.ExceptionInfo[Any]) -> str:
    text = str(error.value)
    assert len(text.splitlines()) == 2
    return text


def test_a_quantized_file_is_not_quantized_again(cnn: bytes) -> None:
    once = litert.quantize(cnn, "dynamic_wi8", None)
    with pytest.raises(ConversionError, match="a file with quantized tensors in it") as error:
        litert.quantize(once, "weight_only_wi4", None)
    assert "before it was quantized" in refusal(error)


@pytest.mark.parametrize("scheme", [name for name in RECIPES if name not in STATIC])
def test_a_model_without_weights_is_no_case_for_schemes_that_store_weights(scheme: str) -> None:
    import keras

    model = by_hand.plain_file(built(keras.Input((8, 8, 1)), keras.layers.MaxPooling2D()))
    with pytest.raises(ConversionError, match=f"{scheme} quantizes nothing of this model") as error:
        litert.quantize(model, scheme, None)
    assert "found no operators but MAX_POOL_2D" in refusal(error)
    assert "FULLY_CONNECTED" in refusal(error)


def test_weights_that_make_no_whole_blocks_are_named() -> None:
    import keras

    model = by_hand.plain_file(built(keras.Input((40,)), keras.layers.Dense(3, name="odd")))
    with pytest.raises(ConversionError, match=r"odd\S* of shape \[3, 40\], whose 40 values") as error:
        litert.quantize(model, "dynamic_wi4_b32", None)
    assert "--dynamic-wi4," in refusal(error)


def test_activations_are_not_quantized_without_ranges(cnn: bytes, ranges: Ranges) -> None:
    with pytest.raises(ConversionError, match="no calibrated ranges"):
        litert.quantize(cnn, "static_wi8_ai8", None)
    (first, _) = outputs_by_kind(cnn)["CONV_2D"]
    with pytest.raises(ConversionError, match=re.escape(f"no calibrated range for the tensor {first}")):
        litert.quantize(cnn, "static_wi8_ai8", {name: seen for name, seen in ranges.items() if name != first})


def test_a_loop_has_no_moving_average_but_can_store_its_weights() -> None:
    import keras

    model = by_hand.plain_file(built(keras.Input(batch_shape=(1, 6, 4)), keras.layers.LSTM(32), keras.layers.Dense(3)))
    samples = RNG.normal(size=(5, 6, 4)).astype("float32")
    with pytest.raises(ConversionError, match="a loop or a branch") as error:
        litert.calibrate(model, {input_of(model): samples}, signature_of(model, 1), Report(silent), "moving_average")
    assert "unroll=True" in refusal(error)
    made = litert.quantize(model, "dynamic_wi8", None)
    assert snr(answer(model, samples), answer(made, samples)) > 30


def test_a_recipe_for_an_operator_that_is_not_there_is_refused(cnn: bytes, ranges: Ranges) -> None:
    with pytest.raises(NameNotFound, match="the recipe names dense_9: found no operator"):
        litert.quantize_recipe(cnn, [(["dense_9"], "dynamic_wi8")], ranges)


def test_a_pair_that_quantizes_nothing_is_refused(cnn: bytes, everything: list[str]) -> None:
    (pool,) = outputs_by_kind(cnn)["MAX_POOL_2D"]
    with pytest.raises(ConversionError, match="dynamic_wi4 quantizes nothing of") as error:
        litert.quantize_recipe(cnn, [(everything, "dynamic_wi8"), ([pool], "dynamic_wi4")], None)
    assert "max_pooling2d" in refusal(error)
    with pytest.raises(ConversionError, match="the recipe quantizes nothing of this model"):
        litert.quantize_recipe(cnn, [(everything, "float32")], None)
