"""Every number is the one that tf.lite.experimental.QuantizationDebugger itself gives."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tfdeploy_magic.artifacts.samples import SampleSet, save_arrays
from tfdeploy_magic.artifacts.signature import Arrays, Signature, TensorSpec
from tfdeploy_magic.errors import ConversionError, DataError, NameNotFound, UserCodeError
from tfdeploy_magic.jobs import Progress, Worker
from tfdeploy_magic.quantization.debugging import Debugged, debug

pytestmark = [
    pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Statistics for quantized inputs were expected:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:\s*Warning. tf.lite.Interpreter is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*experimental_preserve_all_tensors:UserWarning"),
]

ROWS = 12
LAYER_METRICS = {
    "l1_norm": lambda differences: np.mean(np.abs(differences)),
    "sometimes_nan": lambda differences: np.nan if differences.max() > 0.01 else float(differences.max()),
}
DIRECT_METRICS = {
    "rmse_by_scale": lambda real, stored, scale, zero_point: (
        np.sqrt(np.mean((real - (stored.astype(np.int32) - zero_point) * scale) ** 2)) / scale
    ),
    "saturated": lambda real, stored, scale, zero_point: int(np.sum(np.abs(stored.astype(np.int32)) >= 127)),
}
MODEL_METRICS = {
    "argmax_agreement": lambda real, quantized: np.argmax(real[0]) == np.argmax(quantized[0]),
    "worst": lambda real, quantized: max(np.abs(a - b).max() for a, b in zip(real, quantized, strict=True)),
}


@dataclass(frozen=True)
class Case:
    """A calibrated model as the quantizer keeps it."""

    calibrated: Path
    float_model: Path
    samples: SampleSet
    signature: Signature
    layers: dict[str, str]

    def feed(self) -> Iterator[list[Any]]:
        """Yield samples as a guide does, in the order of the model's arguments."""
        arrays, batch = self.samples.open(), self.signature.fixed_batch or 1
        for row in range(0, self.samples.count - batch + 1, batch):
            yield [np.array(arrays[spec.name][row : row + batch]) for spec in self.signature.inputs]


def case(model: Any, rows: Arrays, folder: Path) -> Case:
    """Convert and calibrate a Keras model with TensorFlow alone; ``rows`` are in the order of its arguments."""
    import tensorflow as tf
    from tensorflow.lite.python.optimize import calibrator

    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    count = len(next(iter(rows.values())))
    batch = model.inputs[0].shape[0]

    def feed() -> Iterator[Any]:
        for row in range(0, count, batch or 1):
            yield "serving_default", {name: array[row : row + (batch or 1)] for name, array in rows.items()}

    folder.mkdir(exist_ok=True)
    (folder / "float.tflite").write_bytes(content)
    calibrating = calibrator.Calibrator(calibrator.add_intermediate_tensors(content))
    (folder / "calibrated.tflite").write_bytes(calibrating.calibrate(feed))
    specs = tuple(TensorSpec(name, (batch, *array.shape[1:]), str(array.dtype)) for name, array in rows.items())
    return Case(
        folder / "calibrated.tflite",
        folder / "float.tflite",
        SampleSet(save_arrays(folder / "rows", rows), count, "rows"),
        Signature("serving_default", specs, ()),
        {layer.name: f"{layer.name} ({type(layer).__name__})" for layer in model.layers},
    )


def input_name(model: Any) -> str:
    return str(model.inputs[0].name)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(deadline=120) as one:
        yield one


@pytest.fixture(scope="module")
def cnn(trained_cnn: Any, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(trained_cnn, {input_name(trained_cnn): digits.x_train[:ROWS]}, tmp_path_factory.mktemp("cnn"))


@pytest.fixture(scope="module")
def debugged(cnn: Case, worker: Worker, tmp_path_factory: pytest.TempPathFactory) -> Debugged:
    return ours(cnn, worker, tmp_path_factory.mktemp("debugged"))


def ours(one: Case, worker: Worker, folder: Path, **options: Any) -> Debugged:
    options = {"seconds": 10.0, **options}
    found = debug(
        worker, one.calibrated, one.float_model, one.samples, one.signature, folder, layers=one.layers, **options
    )
    assert list(folder.iterdir()) == []
    return found


def debug_model(one: Case, **options: Any) -> bytes:
    from tensorflow.lite.python.convert import mlir_quantize

    return bytes(mlir_quantize(one.calibrated.read_bytes(), enable_numeric_verify=True, **options))


def op_counts(content: bytes) -> Counter[str]:
    """Return how many operators of each kind a model has: of two like halves, either may come first."""
    import tensorflow as tf

    return Counter(op["op_name"] for op in tf.lite.Interpreter(model_content=content)._get_ops_details())


def theirs(one: Case, *, fully_quantize: bool = False, metrics: Any = None, **denylists: Any) -> tuple[str, Any]:
    """Return TensorFlow's csv text and its statistics of the model, by way of the file."""
    import tensorflow as tf

    debugger = tf.lite.experimental.QuantizationDebugger(
        quant_debug_model_content=debug_model(one, fully_quantize=fully_quantize, **denylists),
        float_model_content=one.float_model.read_bytes(),
        debug_dataset=one.feed,
        debug_options=tf.lite.experimental.QuantizationDebugOptions(**(metrics or {})),
    )
    return dumped(debugger), debugger.model_statistics


def dumped(debugger: Any) -> str:
    debugger.run()
    file = io.StringIO()
    debugger.layer_statistics_dump(file)
    return file.getvalue()


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_column_is_that_of_tensorflows_debugger_on_the_keras_model(
    trained_cnn: Any, cnn: Case, debugged: Debugged
) -> None:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(trained_cnn)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = cnn.feed
    expected = dumped(tf.lite.experimental.QuantizationDebugger(converter=converter, debug_dataset=cnn.feed))
    assert debugged.csv == expected
    assert [layer.op_name for layer in debugged.layers] == [
        *("CONV_2D", "MUL", "ADD", "MAX_POOL_2D", "CONV_2D", "RESHAPE", "FULLY_CONNECTED", "SOFTMAX")
    ]
    assert debugged.model_metrics == {}


def test_the_fields_of_each_row_are_what_the_csv_says(debugged: Debugged) -> None:
    rows = rows_of(debugged.csv)
    assert len(rows) == len(debugged.layers)
    for row, layer in zip(rows, debugged.layers, strict=True):
        for column, text in row.items():
            value = getattr(layer, column)
            if isinstance(value, float):
                np.testing.assert_allclose(value, float(text), rtol=1e-6)
            else:
                assert str(value) == text
        assert layer.rmse_over_scale == pytest.approx(float(row["mean_squared_error"]) ** 0.5 / float(row["scale"]))
        assert layer.custom == {}


def test_each_row_names_its_keras_layer_even_the_last_one(trained_cnn: Any, debugged: Debugged) -> None:
    conv, norm, pool, second, flatten, dense = trained_cnn.layers
    kinds = ["Conv2D", "BatchNormalization", "BatchNormalization", "MaxPooling2D", "Conv2D", "Flatten", *["Dense"] * 2]
    layers = [conv, norm, norm, pool, second, flatten, dense, dense]
    assert [row.layer for row in debugged.layers] == [
        f"{layer.name} ({kind})" for layer, kind in zip(layers, kinds, strict=True)
    ]


def verified(one: Case) -> list[list[tuple[Any, Any]]]:
    """Read the float and the int8 values of each verified tensor, sample by sample, from the interpreter."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_content=debug_model(one), experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    pairs = [op["inputs"] for op in interpreter._get_ops_details() if op["op_name"] == "NumericVerify"]
    read: list[list[tuple[Any, Any]]] = [[] for _ in pairs]
    for arrays in one.feed():
        for details, array in zip(interpreter.get_input_details(), arrays, strict=True):
            interpreter.set_tensor(details["index"], array)
        interpreter.invoke()
        for kept, (stored, real) in zip(read, pairs, strict=True):
            kept.append((interpreter.get_tensor(real), interpreter.get_tensor(stored)))
    return read


def test_signal_to_noise_ratios_are_those_of_the_tensors_themselves(cnn: Case, debugged: Debugged) -> None:
    for layer, pairs in zip(debugged.layers, verified(cnn), strict=True):
        real = np.concatenate([real for real, _ in pairs]).astype(float)
        stored = np.concatenate([stored for _, stored in pairs]).astype(float)
        noise = np.sum(((stored - layer.zero_point) * layer.scale - real) ** 2)
        by_hand = 10 * np.log10(np.sum(real**2) / noise)
        if layer.op_name in ("MAX_POOL_2D", "RESHAPE"):  # they move values; what is left by hand is float32's rounding
            assert layer.snr_db == np.inf
            assert by_hand > 120
        else:
            assert layer.snr_db == pytest.approx(by_hand, abs=1e-4)
            assert 15 < layer.snr_db < 60


def test_histograms_count_every_float_value_between_the_ends_of_int8(cnn: Case, debugged: Debugged) -> None:
    for layer, pairs in zip(debugged.layers, verified(cnn), strict=True):
        real = np.concatenate([real for real, _ in pairs])
        histogram = layer.histogram
        assert histogram is not None
        assert 20 <= len(histogram.counts) <= 50
        assert len(histogram.edges) == len(histogram.counts) + 1
        np.testing.assert_allclose(np.diff(histogram.edges), histogram.edges[1] - histogram.edges[0])
        np.testing.assert_array_equal(np.histogram(real, np.array(histogram.edges))[0], histogram.counts)
        assert sum(histogram.counts) == real.size
        assert histogram.low == pytest.approx((-128 - layer.zero_point) * layer.scale)
        assert histogram.high == pytest.approx((127 - layer.zero_point) * layer.scale)


def test_the_first_tensors_histogram_is_the_float_models(cnn: Case, debugged: Debugged) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(cnn.float_model), experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    first = debugged.layers[0]
    index = next(d["index"] for d in interpreter.get_tensor_details() if d["name"] == first.tensor_name)
    seen = []
    for (array,) in cnn.feed():
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], array)
        interpreter.invoke()
        seen.append(interpreter.get_tensor(index))
    assert first.histogram is not None
    counted = np.histogram(np.concatenate(seen), np.array(first.histogram.edges))[0]
    assert np.abs(counted - first.histogram.counts).max() <= 2  # another kernel rounds otherwise next to an edge
    assert np.concatenate(seen).max() <= first.histogram.high + first.scale


def test_a_histogram_shows_what_lies_beyond_the_calibrated_range(cnn: Case, worker: Worker, tmp_path: Path) -> None:
    def eightfold(rows: Any) -> Any:
        return rows * 8

    wide = changed(cnn, eightfold, tmp_path)
    found = ours(wide, worker, empty(tmp_path))
    histogram = found.layers[0].histogram
    assert histogram is not None
    assert histogram.edges[-1] > 1.5 * histogram.high
    assert 20 <= len(histogram.counts) <= 50
    assert found.layers[0].snr_db < 5


def changed(one: Case, change: Callable[[Any], Any], folder: Path) -> Case:
    arrays = {name: change(array) for name, array in one.samples.open().items()}
    return replace(one, samples=SampleSet(save_arrays(folder / change.__name__, arrays), one.samples.count, "changed"))


def empty(folder: Path) -> Path:
    (folder / "passing").mkdir()
    return folder / "passing"


def test_own_metrics_of_all_three_kinds_give_what_they_give_in_tensorflow(
    cnn: Case, worker: Worker, tmp_path: Path
) -> None:
    metrics = {
        "layer_debug_metrics": LAYER_METRICS,
        "layer_direct_compare_metrics": DIRECT_METRICS,
        "model_debug_metrics": MODEL_METRICS,
    }
    found = ours(cnn, worker, tmp_path, **metrics)
    text, model_statistics = theirs(cnn, metrics=metrics)
    assert found.csv == text
    assert found.model_metrics == model_statistics
    assert 0 < found.model_metrics["worst"] < 0.5
    for row, layer in zip(rows_of(text), found.layers, strict=True):
        assert list(layer.custom) == [*LAYER_METRICS, *DIRECT_METRICS]
        for name, value in layer.custom.items():
            np.testing.assert_allclose(value, float(row[name]), rtol=1e-6)
    assert any(np.isfinite(layer.custom["sometimes_nan"]) for layer in found.layers)


@pytest.mark.parametrize("kind", ["layer_debug_metrics", "layer_direct_compare_metrics", "model_debug_metrics"])
def test_own_metrics_of_one_kind_need_no_other(cnn: Case, worker: Worker, tmp_path: Path, kind: str) -> None:
    functions: Any = {"layer_debug_metrics": LAYER_METRICS, "layer_direct_compare_metrics": DIRECT_METRICS}
    metrics = {kind: functions.get(kind, MODEL_METRICS)}
    found = ours(cnn, worker, tmp_path, **metrics)
    text, model_statistics = theirs(cnn, metrics=metrics)
    assert found.csv == text
    assert found.model_metrics == (model_statistics or {})


def test_only_what_is_asked_for_is_recorded(cnn: Case, worker: Worker, tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def spy(differences: Any) -> float:
        seen.append(sorted({path.name.partition("-")[0] for path in tmp_path.rglob("*.npy")}))
        return float(differences.size)

    found = ours(cnn, worker, tmp_path, layer_debug_metrics={"size": spy})
    assert [layer.custom["size"] for layer in found.layers] == [layer.num_elements for layer in found.layers]
    assert seen == [["differences"]] * (ROWS * len(found.layers))


@pytest.mark.parametrize(
    ("denylists", "missing"),
    [
        ({"denylisted_ops": ["CONV_2D"]}, {"CONV_2D"}),
        ({"denylisted_ops": ["mul", "ADD"]}, {"MUL", "ADD"}),
        ({"denylisted_nodes": [4]}, set()),
        ({"denylisted_ops": ["SOFTMAX"], "denylisted_nodes": [0, 4]}, {"SOFTMAX", "CONV_2D"}),
    ],
)
def test_what_a_denylist_names_stays_in_float(
    cnn: Case, worker: Worker, tmp_path: Path, debugged: Debugged, denylists: dict[str, Any], missing: set[str]
) -> None:
    nodes = [debugged.layers[place].tensor_name for place in denylists.get("denylisted_nodes", ())]
    lists = {**denylists, "denylisted_nodes": nodes}
    found = ours(cnn, worker, tmp_path, **lists)
    assert found.csv == theirs(cnn, **lists)[0]
    assert not missing & {layer.op_name for layer in found.layers}
    assert not set(nodes) & {layer.tensor_name for layer in found.layers}
    assert 0 < len(found.layers) < len(debugged.layers)


def test_a_denied_operator_that_the_model_does_not_have_is_named_with_those_near_it(
    cnn: Case, worker: Worker, tmp_path: Path
) -> None:
    with pytest.raises(NameNotFound, match=r"CONV2D cannot be left in float: found no operator[^!]*one of CONV_2D"):
        ours(cnn, worker, tmp_path, denylisted_ops=["CONV2D"])


def test_a_denied_tensor_must_be_one_that_an_operator_makes(
    cnn: Case, worker: Worker, tmp_path: Path, debugged: Debugged
) -> None:
    name = debugged.layers[3].tensor_name
    with pytest.raises(NameNotFound) as caught:
        ours(cnn, worker, tmp_path, denylisted_nodes=[name[:-1]])
    assert name in caught.value.wanted
    with pytest.raises(NameNotFound, match="found no tensor that is an operator's only output"):
        ours(cnn, worker, tmp_path, denylisted_nodes=[f"serving_default_{cnn.signature.inputs[0].name}:0"])


def test_a_model_without_anything_to_verify_is_refused_in_words(
    cnn: Case, worker: Worker, tmp_path: Path, debugged: Debugged
) -> None:
    everything = sorted({layer.op_name for layer in debugged.layers})
    with pytest.raises(ConversionError, match=r"found no tensor that is computed in int8[^!]*Shorten the denylists"):
        ours(cnn, worker, tmp_path, denylisted_ops=everything)


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A model whose arguments are not in the order of their names, with two outputs and inputs about 0."""
    import keras

    keras.utils.set_random_seed(0)
    zeta, alpha = keras.Input((5,), name="zeta"), keras.Input((5,), name="alpha")
    first = keras.layers.Dense(4, activation="relu", name="first")(zeta)
    both = keras.layers.Add(name="plus")([first, keras.layers.Dense(4, name="second")(alpha)])
    outputs = [keras.layers.Dense(2, name="last", activation="tanh")(both), keras.layers.Dense(3, name="side")(first)]
    random = np.random.default_rng(0)
    rows = {"zeta": random.uniform(0, 1, (ROWS, 5)), "alpha": random.uniform(-1, 1, (ROWS, 5))}
    rows["alpha"][0, :2] = -1.01, 1  # an even range: its zero point is 0
    rows = {name: array.astype("float32") for name, array in rows.items()}
    return case(keras.Model([zeta, alpha], outputs), rows, tmp_path_factory.mktemp("two"))


def test_several_inputs_go_where_they_belong(two_inputs: Case, worker: Worker, tmp_path: Path) -> None:
    found = ours(two_inputs, worker, tmp_path, model_debug_metrics=MODEL_METRICS)
    text, model_statistics = theirs(two_inputs, metrics={"model_debug_metrics": MODEL_METRICS})
    assert found.csv == text
    assert found.model_metrics == model_statistics
    layers = {layer.layer.partition(" ")[0] for layer in found.layers}
    assert layers == {"first", "second", "plus", "last", "side"}


def test_several_inputs_may_be_named_in_any_order(two_inputs: Case, worker: Worker, tmp_path: Path) -> None:
    swapped = Signature("serving_default", two_inputs.signature.inputs[::-1], ())
    files = dict(reversed(two_inputs.samples.files.items()))
    turned = replace(two_inputs, samples=SampleSet(files, ROWS, "rows"), signature=swapped)
    assert ours(turned, worker, tmp_path).csv == theirs(two_inputs)[0]


def test_inputs_and_outputs_can_be_quantized_too(cnn: Case, worker: Worker, tmp_path: Path) -> None:
    metrics = {"model_debug_metrics": MODEL_METRICS}
    found = ours(cnn, worker, tmp_path, fully_quantize=True, **metrics)
    text, model_statistics = theirs(cnn, fully_quantize=True, metrics=metrics)
    assert found.csv == text
    assert found.model_metrics == model_statistics


def test_a_quantized_input_with_zero_point_0_is_no_error_as_it_is_in_tensorflow(
    two_inputs: Case, worker: Worker, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="Got value of type FLOAT32 but expected type INT8"):
        theirs(two_inputs, fully_quantize=True)
    found = ours(two_inputs, worker, tmp_path, fully_quantize=True, model_debug_metrics=MODEL_METRICS)
    plain = ours(two_inputs, worker, tmp_path, model_debug_metrics=MODEL_METRICS)
    assert found.model_metrics["worst"] == pytest.approx(plain.model_metrics["worst"], abs=0.02)
    assert [layer.snr_db for layer in found.layers] == pytest.approx([layer.snr_db for layer in plain.layers], abs=6)


def test_what_lies_beyond_a_quantized_input_is_cut_off(cnn: Case, worker: Worker, tmp_path: Path) -> None:
    def wide(rows: Any) -> Any:
        return rows * 8 - 1

    def cut(rows: Any) -> Any:
        return np.clip(wide(rows), 0, 1)  # the range that the images calibrated

    metrics = {"model_debug_metrics": {"mine": lambda _, quantized: quantized[0][0, 3]}}
    found = ours(changed(cnn, wide, tmp_path), worker, empty(tmp_path), fully_quantize=True, **metrics)
    text, model_statistics = theirs(changed(cnn, cut, tmp_path), fully_quantize=True, metrics=metrics)
    assert found.csv == text
    assert found.model_metrics == model_statistics


def test_tensors_keep_the_names_of_the_file_where_tensorflow_cuts_them(
    two_inputs: Case, worker: Worker, tmp_path: Path
) -> None:
    found = ours(two_inputs, worker, tmp_path, fully_quantize=True)
    cut = {row["tensor_name"] for row in rows_of(found.csv)}
    assert "StatefulPartitionedCall_1:" in cut
    names = {layer.tensor_name for layer in found.layers}
    assert {"StatefulPartitionedCall_1:0", "StatefulPartitionedCall_1:1"} <= names
    again = ours(two_inputs, worker, tmp_path, fully_quantize=True, denylisted_nodes=["StatefulPartitionedCall_1:0"])
    assert len(again.layers) < len(found.layers)


def test_a_fixed_batch_is_one_sample_to_the_debugger(worker: Worker, tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,), batch_size=4), keras.layers.Dense(2, activation="relu")])
    rows = np.random.default_rng(0).normal(size=(ROWS, 3)).astype("float32")
    one = case(model, {input_name(model): rows}, tmp_path / "case")
    found = ours(one, worker, empty(tmp_path))
    assert found.csv == theirs(one)[0]
    assert [layer.num_elements for layer in found.layers] == [8.0]
    few = SampleSet(save_arrays(tmp_path / "few", {input_name(model): rows[:3]}), 3, "few")
    with pytest.raises(DataError, match=r"few cannot show[^!]*at least 4"):
        ours(replace(one, samples=few), worker, tmp_path / "passing")


def test_an_operator_with_several_outputs_is_denied_by_its_kind_only(worker: Worker, tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(0)
    start = keras.Input((8,))
    left, right = keras.ops.split(keras.layers.Dense(8, activation="relu")(start), 2, axis=1)
    model = keras.Model(start, keras.layers.Dense(2, name="left")(left) + keras.layers.Dense(2, name="right")(right))
    rows = np.random.default_rng(0).normal(size=(ROWS, 8)).astype("float32")
    one = case(model, {input_name(model): rows}, tmp_path / "case")
    halves = [layer for layer in ours(one, worker, empty(tmp_path)).layers if layer.op_name == "SPLIT"]
    assert len(halves) == 2
    denied = debug_model(one, denylisted_nodes=[halves[0].tensor_name])
    assert op_counts(denied) == op_counts(debug_model(one)) != op_counts(debug_model(one, denylisted_ops=["SPLIT"]))
    with pytest.raises(NameNotFound, match="several outputs goes by op_name only"):
        ours(one, worker, tmp_path / "passing", denylisted_nodes=[halves[0].tensor_name])
    found = ours(one, worker, tmp_path / "passing", denylisted_ops=["SPLIT"])
    assert "SPLIT" not in {layer.op_name for layer in found.layers}


def returning(value: Any) -> dict[str, Callable[..., Any]]:
    return {"mine": lambda *_: value}


@pytest.mark.parametrize(
    ("metrics", "found"),
    [
        ({"layer_debug_metrics": returning(np.zeros(3))}, r"float64\[3\]"),
        ({"layer_debug_metrics": {"mine": np.abs}}, r"float32\[1, 8, 8, 16\]"),
        ({"layer_direct_compare_metrics": returning(None)}, "None"),
        ({"model_debug_metrics": returning("good")}, "'good'"),
        ({"model_debug_metrics": returning([[1], [1, 2]])}, r"object\[2\]"),
    ],
)
def test_a_metric_must_return_one_number(
    cnn: Case, worker: Worker, tmp_path: Path, metrics: dict[str, Any], found: str
) -> None:
    with pytest.raises(DataError, match=rf"the metric mine is of no use: found {found}\.\nWanted one number"):
        ours(cnn, worker, tmp_path, **metrics)


def test_a_metric_that_raises_is_the_persons_own_error(cnn: Case, worker: Worker, tmp_path: Path) -> None:
    def divide(real: Any, quantized: Any) -> float:
        return 1 / 0

    with pytest.raises(UserCodeError, match="the metric ratio raised: found ZeroDivisionError") as caught:
        ours(cnn, worker, tmp_path, model_debug_metrics={"ratio": divide})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_hangs_is_left_behind(cnn: Case, worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(UserCodeError, match="the metric slow hung"):
        ours(cnn, worker, tmp_path, layer_debug_metrics={"slow": lambda _: time.sleep(1)}, seconds=0.1)


@pytest.mark.parametrize(
    "metrics",
    [
        {"layer_debug_metrics": returning(1), "model_debug_metrics": returning(1)},
        {"layer_debug_metrics": returning(1), "layer_direct_compare_metrics": returning(1)},
        {"layer_debug_metrics": {"mine": np.mean, "stddev": np.std}},
        {"layer_direct_compare_metrics": {"tensor_name": lambda *_: 1.0}},
    ],
)
def test_statistics_of_one_name_are_refused_before_anything_runs(
    cnn: Case, tmp_path: Path, metrics: dict[str, Any]
) -> None:
    with Worker() as never, pytest.raises(DataError, match=r"the metric (mine|stddev|tensor_name) needs another name"):
        ours(cnn, never, tmp_path, **metrics)
    assert never.pid is None


def test_a_mean_leaves_out_nan_and_is_nan_only_when_all_are(cnn: Case, worker: Worker, tmp_path: Path) -> None:
    found = ours(cnn, worker, tmp_path, layer_debug_metrics=returning(float("nan")), model_debug_metrics={})
    assert all(np.isnan(layer.custom["mine"]) for layer in found.layers)
    turns = iter(range(10_000))
    every_other = {"mine": lambda _: 3.0 if next(turns) % 2 else float("nan")}
    found = ours(cnn, worker, tmp_path, layer_debug_metrics=every_other)
    assert {layer.custom["mine"] for layer in found.layers} == {3.0}


def test_progress_names_its_stages(cnn: Case, tmp_path: Path) -> None:
    seen: list[Progress] = []
    with Worker(listener=seen.append) as worker:
        ours(cnn, worker, tmp_path)
    stages = list(dict.fromkeys(progress.stage for progress in seen if progress.stage != "starting a job"))
    assert stages == ["quantizing", "running the debug model"]
