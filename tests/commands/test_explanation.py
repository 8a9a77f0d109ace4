"""What int8 does inside a model: every number is that of TensorFlow's own debugger, or read off the files by hand."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tests.evaluate import by_hand
from tests.quantization import unequal
from tfdeploy_magic import quantize
from tfdeploy_magic.commands.explanation import MOST_CHANGED, Explanation
from tfdeploy_magic.errors import ConversionError, DataError, NameNotFound, UserCodeError
from tfdeploy_magic.jobs import Progress

# TensorFlow says so of its own debugger.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Statistics for quantized inputs were expected:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:\s*Warning. tf.lite.Interpreter is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*experimental_preserve_all_tensors:UserWarning"),
]

ROWS, DEBUGGED = 60, 100
"""Calibration samples, all taken in their order; test samples that the debugger runs, the first of them."""

LAYER_METRICS = {"l1_norm": lambda differences: np.mean(np.abs(differences))}
DIRECT_METRICS = {"saturated": lambda real, stored, scale, zero_point: int(np.sum(stored.astype(int) == 127))}
MODEL_METRICS = {"agreement": lambda real, quantized: np.argmax(real[0]) == np.argmax(quantized[0])}


def explained(model: Any, digits: Digits, **options: Any) -> Explanation:
    test = (digits.x_test, digits.y_test)
    found = quantize(
        model, **{"schemes": ("int8",), "explain": True, "calib": digits.x_train[:ROWS], "test": test, **options}
    )
    assert isinstance(found, Explanation)
    return found


@pytest.fixture(scope="module")
def explanation(trained_cnn: Any, digits: Digits) -> Explanation:
    return explained(trained_cnn, digits)


def feed(rows: Any) -> Callable[[], Iterator[list[Any]]]:
    def samples() -> Iterator[list[Any]]:
        for row in range(len(rows)):
            yield [rows[row : row + 1]]

    return samples


def theirs(model: Any, digits: Digits, options: Any = None) -> tuple[str, Any]:
    """Follow TensorFlow's guide to its debugger with a Keras model: csv text, statistics of the model."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = feed(digits.x_train[:ROWS])
    debugger = tf.lite.experimental.QuantizationDebugger(
        converter=converter, debug_dataset=feed(digits.x_test[:DEBUGGED]), debug_options=options
    )
    debugger.run()
    file = io.StringIO()
    debugger.layer_statistics_dump(file)
    # Only this name comes from the signature that each puts around the model.
    return file.getvalue().replace("StatefulPartitionedCall_1:0", "Identity"), debugger.model_statistics


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# What the debugger says


def test_every_column_is_that_of_tensorflows_debugger_run_by_hand(
    explanation: Explanation, trained_cnn: Any, digits: Digits
) -> None:
    text, _ = theirs(trained_cnn, digits)
    assert explanation.csv == text
    assert len(explanation.layers) == len(rows_of(text)) == 8
    for row, layer in zip(rows_of(text), explanation.layers, strict=True):
        for column, said in row.items():
            value = getattr(layer, column)
            assert value == pytest.approx(float(said), rel=1e-5) if isinstance(value, float) else str(value) == said
    assert explanation.model_metrics == {}


def test_the_worst_come_first_by_the_error_over_scale(explanation: Explanation) -> None:
    rows = rows_of(explanation.csv)
    errors = {row["tensor_name"]: float(row["mean_squared_error"]) ** 0.5 / float(row["scale"]) for row in rows}
    assert [layer.tensor_name for layer in explanation.worst] == sorted(errors, key=lambda name: -errors[name])
    for layer in explanation.layers:
        assert layer.rmse_over_scale == pytest.approx(errors[layer.tensor_name], rel=1e-5)


def test_each_row_names_its_keras_layer(explanation: Explanation, trained_cnn: Any) -> None:
    conv, norm, pool, second, flatten, dense = trained_cnn.layers
    made_by = [conv, norm, norm, pool, second, flatten, dense, dense]
    assert [layer.layer for layer in explanation.layers] == [f"{one.name} ({type(one).__name__})" for one in made_by]
    assert repr(explanation).endswith(f"8 tensors, worst {explanation.worst[0].layer}>")


def test_its_frame_has_a_line_for_each_tensor_with_layer_error_and_snr(explanation: Explanation) -> None:
    frame = explanation.to_pandas()
    assert len(frame) == len(explanation.layers)
    assert {"op_name", "mean_squared_error", "scale", "zero_point", "tensor_name", "layer", "rmse/scale", "snr_db"} <= {
        *frame.columns
    }
    wanted = np.sqrt([float(row["mean_squared_error"]) for row in rows_of(explanation.csv)]) / frame["scale"]
    np.testing.assert_allclose(frame["rmse/scale"], wanted, rtol=1e-5)
    assert list(frame["layer"]) == [layer.layer for layer in explanation.layers]


def test_the_file_is_the_int8_file_and_was_measured(explanation: Explanation, trained_cnn: Any, digits: Digits) -> None:
    plain = by_hand.plain_file(trained_cnn, "int8", "int8", digits.x_train[:ROWS])
    name = explanation.lite.inputs[0].name
    (expected,) = by_hand.answers(plain, {name: digits.x_test}).values()
    np.testing.assert_array_equal(answers_of(explanation, digits), expected)
    assert explanation.lite.evidence.accuracy == pytest.approx(np.mean(expected.argmax(1) == digits.y_test))
    assert explanation.lite.evidence.latency.p50 > 0
    assert explanation.lite.evidence.ok


def answers_of(explanation: Explanation, digits: Digits) -> Any:
    lite = explanation.lite
    (answers,) = by_hand.answers(lite.path.read_bytes(), {lite.inputs[0].name: digits.x_test}).values()
    return answers


# Samples and channels


def test_the_samples_shown_are_those_that_changed_most(
    explanation: Explanation, trained_cnn: Any, digits: Digits
) -> None:
    source, answers = trained_cnn.predict(digits.x_test, verbose=0), answers_of(explanation, digits)
    errors = np.sqrt(np.mean((source.astype(float) - answers) ** 2, axis=1))
    shown = explanation.changed
    assert len(shown) == MOST_CHANGED
    np.testing.assert_allclose([one.error for one in shown], np.sort(errors)[::-1][:MOST_CHANGED], atol=1e-6)
    for one in shown:
        assert one.error == pytest.approx(errors[one.row], abs=1e-6)
        assert one.label == digits.y_test[one.row]
        np.testing.assert_array_equal(*one.inputs.values(), digits.x_test[one.row])
        np.testing.assert_allclose(*one.reference.values(), source[one.row], atol=1e-5)
        np.testing.assert_allclose(*one.answer.values(), answers[one.row], atol=1e-6)


def test_the_ranges_of_channels_are_those_of_the_float_file(
    explanation: Explanation, trained_cnn: Any, digits: Digits
) -> None:
    import keras

    conv = trained_cnn.layers[0]
    found = next(spread for spread in explanation.spreads if spread.layer.startswith(f"{conv.name} "))
    inner = keras.Model(trained_cnn.inputs, conv.output)
    ranges = np.abs(inner.predict(digits.x_train[:20], verbose=0)).max(axis=(0, 1, 2))
    np.testing.assert_allclose(found.ranges, ranges, rtol=1e-4)
    assert found.spread == pytest.approx(ranges.max() / np.median(ranges[ranges > 0]), rel=1e-4)


@pytest.fixture(scope="module")
def reference_case() -> Explanation:
    x, _, x_test, y_test = unequal.data()
    model = unequal.unbalance(unequal.reference_model(), unequal.PRODUCER, unequal.CONSUMER)
    found = quantize(model, schemes=("int8",), explain=True, calib=x[:100], test=(x_test, y_test))
    assert isinstance(found, Explanation)
    return found


def test_on_the_reference_case_the_consumer_is_worst_and_the_producers_channels_are_named(
    reference_case: Explanation,
) -> None:
    assert reference_case.worst[0].layer == f"{unequal.CONSUMER} (Conv2D)"
    assert reference_case.worst[0].rmse_over_scale > 5 * reference_case.worst[1].rmse_over_scale
    spreads = {spread.layer: spread.spread for spread in reference_case.spreads}
    large = {layer for layer, spread in spreads.items() if spread > 100}
    assert large == {f"{unequal.PRODUCER} (Conv2D)", "pool_2 (MaxPooling2D)"}
    assert max(spread for layer, spread in spreads.items() if layer not in large) < 10
    (finding,) = (each for each in reference_case.diagnosis.findings if each.code == "unequal-channels")
    assert f"one channel of {unequal.PRODUCER} (Conv2D)" in finding.message
    assert "--max-drop" in finding.cure


def test_it_is_shown_with_the_layers_a_person_knows(reference_case: Explanation) -> None:
    bundle = reference_case._repr_mimebundle_()
    for layer in (f"{unequal.PRODUCER} (Conv2D)", f"{unequal.CONSUMER} (Conv2D)", "classes (Dense)"):
        assert layer in bundle["text/plain"] and layer in bundle["text/html"]
    assert "one channel of middle (Conv2D) is" in bundle["text/plain"]


@pytest.mark.parametrize("kind", ["layers", "spread", "histograms", "samples"])
def test_each_kind_of_figure_is_drawn(reference_case: Explanation, kind: str) -> None:
    file = io.BytesIO()
    reference_case.figure(kind).savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG") and len(file.getvalue()) > 5000


def test_another_kind_of_figure_is_refused_with_those_there_are(explanation: Explanation) -> None:
    with pytest.raises(DataError, match=r"no figure 'heat'[^!]*layers, spread, histograms, samples"):
        explanation.figure("heat")


# TensorFlow's own options


def test_tensorflows_options_are_used_metrics_and_denylists_alike(
    trained_cnn: Any, digits: Digits, explanation: Explanation
) -> None:
    import tensorflow as tf

    conv = explanation.layers[0].tensor_name
    options = tf.lite.experimental.QuantizationDebugOptions(
        layer_debug_metrics=LAYER_METRICS,
        layer_direct_compare_metrics=DIRECT_METRICS,
        model_debug_metrics=MODEL_METRICS,
        denylisted_ops=["SOFTMAX"],
        denylisted_nodes=[conv],
    )
    found = explained(trained_cnn, digits, debug_options=options)
    text, model_statistics = theirs(trained_cnn, digits, options)
    assert found.csv == text
    assert found.model_metrics == model_statistics
    assert 0.9 < found.model_metrics["agreement"] <= 1
    assert {"l1_norm", "saturated"} <= {*found.to_pandas().columns} & {*rows_of(text)[0]}
    left = {layer.op_name for layer in explanation.layers} - {layer.op_name for layer in found.layers}
    assert left == {"SOFTMAX"} and conv not in {layer.tensor_name for layer in found.layers}
    assert found.lite.file.float_operators == {"CONV_2D": 1, "SOFTMAX": 1}
    assert found.lite.scheme == "recipe"


def test_anything_else_is_no_debug_options(trained_cnn: Any, digits: Digits) -> None:
    with pytest.raises(DataError, match=r"--debug-options cannot be used[^!]*QuantizationDebugOptions"):
        explained(trained_cnn, digits, debug_options={"denylisted_ops": ["SOFTMAX"]})


def options_of(**settings: Any) -> Any:
    import tensorflow as tf

    return tf.lite.experimental.QuantizationDebugOptions(**settings)


def test_a_denylist_that_names_nothing_is_refused(trained_cnn: Any, digits: Digits) -> None:
    with pytest.raises(NameNotFound, match=r"CONV2D cannot be left in float[^!]*CONV_2D"):
        explained(trained_cnn, digits, debug_options=options_of(denylisted_ops=["CONV2D"]))


def test_a_metric_of_the_persons_that_raises_is_named(trained_cnn: Any, digits: Digits) -> None:
    def broken(differences: Any) -> float:
        raise ZeroDivisionError("no such luck")

    options = options_of(layer_debug_metrics={"mine": broken})
    with pytest.raises(UserCodeError, match="the metric mine raised: found ZeroDivisionError: no such luck"):
        explained(trained_cnn, digits, debug_options=options)


# Other data, other models


def test_without_labels_the_samples_have_none(trained_cnn: Any, digits: Digits, explanation: Explanation) -> None:
    found = explained(trained_cnn, digits, test=digits.x_test)
    assert [one.label for one in found.changed] == [None] * MOST_CHANGED
    assert [one.row for one in found.changed] == [one.row for one in explanation.changed]
    assert found.csv == explanation.csv


def test_a_float_file_is_explained_as_the_model_it_came_from(
    trained_cnn: Any, digits: Digits, explanation: Explanation, tmp_path: Path
) -> None:
    (tmp_path / "digits.tflite").write_bytes(by_hand.plain_file(trained_cnn))
    found = explained(tmp_path / "digits.tflite", digits)
    numbers = [[row[column] for column in ("op_name", "mean_squared_error", "scale")] for row in rows_of(found.csv)]
    wanted = [
        [row[column] for column in ("op_name", "mean_squared_error", "scale")] for row in rows_of(explanation.csv)
    ]
    assert numbers == wanted


def test_a_model_that_remembers_cannot_be_explained(counter: Any) -> None:
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    with pytest.raises(ConversionError, match="keeps state"):
        quantize(counter, schemes=("int8",), explain=True, calib=x[:32], test=x[32:])
    assert float(counter.count) == 0.0


def test_the_stages_name_what_takes_the_time(trained_cnn: Any, digits: Digits) -> None:
    seen: list[Progress] = []
    explained(trained_cnn, digits, progress=seen.append, no_cache=True)
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    for stage in ("converting to float32", "calibrating", "measuring each layer", "looking at channels"):
        assert stages.count(stage) == 1
