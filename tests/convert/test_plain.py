from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tests.evaluate import by_hand
from tests.sources import models
from tfdeploy_magic import sources
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.convert import plain
from tfdeploy_magic.convert.converter import ConvertedGraph, FrozenGraph, VariableGraph
from tfdeploy_magic.errors import ConversionError, InputError
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.jobs.progress import Progress, silent
from tfdeploy_magic.sources.traced import TracedModel, save_together

pytestmark = [
    pytest.mark.filterwarnings("ignore:Statistics for quantized inputs were expected:UserWarning"),
    # TensorFlow's calibrator itself looks names up with the interpreter it warns of.
    pytest.mark.filterwarnings(r"ignore:\s*Warning. tf.lite.Interpreter is deprecated:UserWarning"),
]

DEFAULT = {"optimizations": [{"enum": "Optimize.DEFAULT"}]}
INT8 = {"target_spec.supported_ops": [{"enum": "OpsSet.TFLITE_BUILTINS_INT8"}]}
INT8_IN = {"inference_input_type": {"dtype": "int8"}}
INT16X8 = {
    "target_spec.supported_ops": [
        {"enum": "OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8"},
        {"enum": "OpsSet.TFLITE_BUILTINS"},
    ]
}


def graph_of(model: Any, folder: Path) -> FrozenGraph:
    saved = sources.open_source(model, "model").model.save(folder)
    return FrozenGraph.open(saved.path, saved.signature)


def by_the_guide(model: Any, settings: dict[str, Any], rows: Arrays | None) -> bytes:
    """Convert with TensorFlow alone, each setting assigned as a person would."""
    import tensorflow as tf

    def representative_dataset() -> Iterator[dict[str, Any]]:
        assert rows is not None
        for position in range(len(next(iter(rows.values())))):
            yield {name: array[position : position + 1] for name, array in rows.items()}

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if rows is not None:
        converter.representative_dataset = representative_dataset
    values: dict[str, Any] = {
        "optimizations": [tf.lite.Optimize.DEFAULT],
        "inference_input_type": tf.int8,
        "target_spec.supported_types": [tf.int8],
    }
    for name, value in settings.items():
        if name == "target_spec.supported_ops":
            converter.target_spec.supported_ops = [tf.lite.OpsSet[op["enum"].partition(".")[2]] for op in value]
        elif name == "target_spec.supported_types":
            converter.target_spec.supported_types = values[name]
        else:
            setattr(converter, name, values.get(name, value))
    return bytes(converter.convert())


@pytest.mark.parametrize(
    ("settings", "calibrated"),
    [
        ({"exclude_conversion_metadata": True}, False),
        ({**DEFAULT, "_experimental_disable_per_channel": True}, False),
        ({**DEFAULT, "experimental_new_dynamic_range_quantizer": False}, False),
        ({**DEFAULT, **INT8, **INT8_IN}, True),
        ({**DEFAULT, "target_spec.supported_types": [{"dtype": "int8"}]}, True),
        ({**DEFAULT, **INT8, "experimental_new_quantizer": False}, True),
        ({**DEFAULT, **INT16X8}, True),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_the_file_answers_as_the_one_tensorflow_makes_with_these_settings(
    settings: dict[str, Any], calibrated: bool, trained_cnn: Any, digits: Digits, tmp_path: Path
) -> None:
    graph = graph_of(trained_cnn, tmp_path)
    name = graph.signature.inputs[0].name
    rows = {name: digits.x_train[:20]} if calibrated else None
    crossed = json.loads(json.dumps(settings))
    content = plain.convert(graph, crossed, rows, Report(silent))
    expected = by_the_guide(trained_cnn, settings, rows)
    assert by_hand.interpreter(content).get_signature_list() == by_hand.interpreter(expected).get_signature_list()
    assert types_of(content) == types_of(expected)
    inputs = {name: digits.x_test[:50]}
    answers, wanted = by_hand.answers(content, inputs), by_hand.answers(expected, inputs)
    for output in wanted:
        np.testing.assert_array_equal(answers[output], wanted[output])


def types_of(content: bytes) -> set[str]:
    return {np.dtype(tensor["dtype"]).name for tensor in by_hand.interpreter(content).get_tensor_details()}


def test_settings_are_really_set(trained_cnn: Any, digits: Digits, tmp_path: Path) -> None:
    graph = graph_of(trained_cnn, tmp_path)
    with_metadata = plain.convert(graph, {}, None, Report(silent))
    assert b"CONVERSION_METADATA" in with_metadata
    without = plain.convert(graph, {"exclude_conversion_metadata": True}, None, Report(silent))
    assert b"CONVERSION_METADATA" not in without


@pytest.mark.parametrize("kind", models.KINDS)
def test_every_kind_of_model_keeps_its_signature_and_the_order_of_its_inputs(kind: Any, tmp_path: Path) -> None:
    model = models.make(kind)
    graph = graph_of(model, tmp_path)
    random = np.random.default_rng(2)
    rows = {
        spec.name: random.integers(0, 9, (10, *spec.shape[1:])).astype(spec.dtype) for spec in graph.signature.inputs
    }
    settings = {**DEFAULT, "_experimental_disable_per_channel": True}
    content = plain.convert(graph, settings, rows, Report(silent))
    expected = by_the_guide(model, settings, rows)
    assert by_hand.interpreter(content).get_signature_list() == by_hand.interpreter(expected).get_signature_list()
    answers, wanted = by_hand.answers(content, rows), by_hand.answers(expected, rows)
    for output in wanted:
        np.testing.assert_array_equal(answers[output], wanted[output])


def test_an_output_that_is_the_input_and_one_given_twice_keep_their_names(tmp_path: Path) -> None:
    import keras

    x = keras.Input((3,), name="x")
    y = keras.layers.Dense(2)(x)
    model = keras.Model(x, {"same": x, "second": y, "first": y})
    content = plain.convert(graph_of(model, tmp_path), {}, None, Report(silent))
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    answers = by_hand.answers(content, {"x": rows})
    np.testing.assert_array_equal(answers["same"], rows)
    np.testing.assert_array_equal(answers["first"], answers["second"])
    np.testing.assert_allclose(answers["first"], model(rows)["first"], rtol=1e-5, atol=1e-6)


def test_a_fixed_batch_is_calibrated_by_the_batch_and_what_is_left_over_is_not_used(tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((3,), batch_size=4), keras.layers.Dense(2)])
    graph = graph_of(model, tmp_path)
    rows = np.ones((10, 3), "float32")
    rows[8:] = 100
    seen: list[Progress] = []
    settings = {**DEFAULT, **INT8, **INT8_IN}
    content = plain.convert(graph, settings, {graph.signature.inputs[0].name: rows}, Report(seen.append))
    (details,) = by_hand.interpreter(content).get_input_details()
    assert list(details["shape"]) == [4, 3]
    assert details["quantization"][0] == pytest.approx(1 / 255, rel=0.01)
    assert "calibrating" in {progress.stage for progress in seen}


@pytest.mark.parametrize("settings", [{"exclude_conversion_metadata": True}, {**DEFAULT, **INT8, **INT8_IN}])
def test_a_model_with_its_variables_beside_it_answers_as_a_frozen_one(settings: dict[str, Any], tmp_path: Path) -> None:
    model = models.make(models.two_in_two_out)
    traced = sources.open_source(model, "model").model
    assert isinstance(traced, TracedModel)
    random = np.random.default_rng(2)
    rows = {spec.name: random.normal(size=(20, *spec.shape[1:])).astype("float32") for spec in traced.signature.inputs}
    samples = rows if "optimizations" in settings else None
    save_together([traced], tmp_path / "beside")
    beside = VariableGraph(tmp_path / "beside", ("serve",), traced.signature)
    content = plain.convert(beside, settings, samples, Report(silent))
    wanted = by_hand.answers(plain.convert(graph_of(model, tmp_path), settings, samples, Report(silent)), rows)
    for output, answer in by_hand.answers(content, rows).items():
        np.testing.assert_array_equal(answer, wanted[output])


def test_a_loop_saved_for_one_sample_at_a_time_converts(tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((10, 4)), keras.layers.LSTM(8), keras.layers.Dense(2)])
    traced = sources.open_source(model, "model").model
    assert isinstance(traced, TracedModel)
    saved = traced.save(tmp_path, single_sample=True)
    graph = FrozenGraph.open(saved.path, saved.signature)
    content = plain.convert(graph, {"exclude_conversion_metadata": True}, None, Report(silent))
    rows = np.random.default_rng(0).normal(size=(5, 10, 4)).astype("float32")
    answers = by_hand.answers(content, {saved.signature.inputs[0].name: rows})
    np.testing.assert_allclose(next(iter(answers.values())), model(rows), rtol=1e-4, atol=1e-5)


def test_a_file_that_is_converted_already_is_refused(tmp_path: Path) -> None:
    graph = ConvertedGraph(tmp_path, graph_of(models.make(models.sequential), tmp_path).signature)
    with pytest.raises(ConversionError, match="found allow_custom_ops"):
        plain.convert(graph, {"allow_custom_ops": True}, None, Report(silent))


def test_constants_outside_the_flatbuffer_are_refused(tmp_path: Path) -> None:
    graph = graph_of(models.make(models.sequential), tmp_path)
    with pytest.raises(ConversionError, match="_experimental_use_buffer_offset"):
        plain.convert(graph, {"_experimental_use_buffer_offset": True}, None, Report(silent))


def test_settings_survive_json() -> None:
    import tensorflow as tf

    for value in (None, True, 3, 0.5, "UNSET", tf.int8, tf.bfloat16, tf.lite.Optimize.DEFAULT, [tf.float16, "x"], []):
        crossed = json.loads(json.dumps(plain.to_json("setting", value)))
        assert plain.from_json(crossed) == value
        assert type(plain.from_json(crossed)) is type(value)


def test_sets_and_tuples_become_lists_in_an_order_of_their_own() -> None:
    import tensorflow as tf

    ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    assert plain.from_json(plain.to_json("ops", tuple(ops))) == ops
    assert plain.to_json("ops", {ops[0], ops[1]}) == plain.to_json("ops", {ops[1], ops[0]})
    assert set(plain.from_json(plain.to_json("ops", set(ops)))) == set(ops)


@pytest.mark.parametrize("value", [object(), print, np.float32, [object()], {"a": 1}, b"bytes"])
def test_an_object_of_this_process_is_refused_by_the_settings_name(value: Any) -> None:
    with pytest.raises(InputError, match=r"converter\.debug_info cannot be sent"):
        plain.to_json("debug_info", value)
