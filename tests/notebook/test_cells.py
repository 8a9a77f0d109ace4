"""``%%tflite_convert`` as a person uses it: TensorFlow's guides pasted into a real kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.notebook.kernels import Kernel, two_lines

DATASET = """
def representative_dataset():
    for i in range(100):
        yield [x_train[i:i+1].astype("float32")]
"""

SETTINGS = """
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = representative_dataset
converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
converter.inference_input_type = tf.int8
converter.inference_output_type = tf.int8
"""

GUIDE = f"""{DATASET}
converter = tf.lite.TFLiteConverter.from_keras_model(model)
{SETTINGS}
tflite_model = converter.convert()
"""

ANSWERS = """
from ai_edge_litert.interpreter import Interpreter
def answers(content):
    interpreter = Interpreter(model_content=content)
    runner = interpreter.get_signature_runner()
    (name, details), = runner.get_input_details().items()
    scale, zero_point = details["quantization"]
    x = x_test[:50] if not scale else np.clip(np.round(x_test[:50] / scale) + zero_point, -128, 127)
    return np.concatenate([runner(**{name: row[None].astype(details["dtype"])})["output_0"] for row in x])
"""


@pytest.fixture(scope="module")
def guide(trained: Kernel) -> Iterator[Kernel]:
    trained.run("_known = set(globals())")
    assert trained.run(f"import io, contextlib\nimport numpy as np, tensorflow as tf\n{ANSWERS}").status == "ok"
    yield trained
    trained.run("for _name in set(globals()) - _known - {'_known', '_name'}: del globals()[_name]")


def value_of(kernel: Kernel, expression: str) -> str:
    shown = kernel.run(expression)
    assert shown.status == "ok", shown.error_text
    return str(shown.results[0]["text/plain"])


def test_the_guides_code_pasted_unchanged_gives_the_guides_file(guide: Kernel) -> None:
    shown = guide.run(f"%%tflite_convert model\n{GUIDE}")
    assert shown.status == "ok", shown.error_text
    text = shown.displays[0]["text/plain"]
    assert "✓ ok" in text and "int8 .tflite" in text
    assert "on representative_dataset (the first 100 samples)" in text
    assert value_of(guide, "type(tflite_model).__name__, tflite_model == _.path.read_bytes()") == "('bytes', True)"
    ours = "ours = answers(tflite_model); ours.dtype.name"
    assert value_of(guide, ours) == "'int8'"
    plain = guide.run(f"with contextlib.redirect_stdout(io.StringIO()):\n    exec({GUIDE!r})\n")
    assert plain.status == "ok", plain.error_text
    assert (
        value_of(guide, "bool(np.array_equal(ours, answers(tflite_model))), bool(ours.max() > ours.min())")
        == "(True, True)"
    )


def test_the_guides_code_works_without_the_two_lines_too(guide: Kernel) -> None:
    guide.run("tflite_model = None; converter = 'mine'")
    shown = guide.run(f"%%tflite_convert model\n{DATASET}{SETTINGS}")
    assert "int8 .tflite" in shown.displays[0]["text/plain"]
    assert value_of(guide, "type(tflite_model).__name__, converter") == "('bytes', 'mine')"
    assert value_of(guide, "bool(np.array_equal(ours, answers(tflite_model)))") == "True"


def test_what_follows_convert_has_the_bytes(guide: Kernel, tmp_path: Path) -> None:
    target = tmp_path / "m.tflite"
    cell = f"{GUIDE}\nwith open({str(target)!r}, 'wb') as f:\n    print(f.write(tflite_model))"
    shown = guide.run(f"%%tflite_convert model\n{cell}")
    assert shown.status == "ok", shown.error_text
    assert target.read_bytes()[4:8] == b"TFL3"
    assert shown.streams["stdout"] == f"{target.stat().st_size}\n"


def test_outside_the_cell_tensorflows_converter_is_its_own_again(guide: Kernel) -> None:
    guide.run(f"%%tflite_convert model\n{GUIDE}\n1/0")
    assert value_of(guide, "type(tf.lite.TFLiteConverter.from_keras_model(model)).__module__").startswith("'tensorflow")


def test_a_setting_that_no_option_expresses_runs_tensorflows_converter_in_the_job(guide: Kernel) -> None:
    cell = "converter.optimizations = [tf.lite.Optimize.DEFAULT]\nconverter.exclude_conversion_metadata = True"
    shown = guide.run(f"%%tflite_convert model\n{cell}")
    assert (
        "TFLiteConverter with optimizations, exclude_conversion_metadata, in a job" in shown.displays[0]["text/plain"]
    )
    assert value_of(guide, "b'CONVERSION_METADATA' in tflite_model") == "False"
    guide.run("%%tflite_convert model\nconverter.optimizations = [tf.lite.Optimize.DEFAULT]")
    assert value_of(guide, "b'CONVERSION_METADATA' in tflite_model") == "True"


@pytest.mark.parametrize("place", ["before", "after"])
def test_functions_that_the_cell_defines_are_used(guide: Kernel, place: str) -> None:
    functions = """
def preprocess(images):
    return (images / 16).astype("float32")[..., None]
def postprocess(scores):
    return scores.argmax(axis=1)
def metric(labels, digits):
    assert digits.ndim == 1
    return float(np.mean(labels == digits))
"""
    convert = "converter = tf.lite.TFLiteConverter.from_keras_model(model)\ntflite_model = converter.convert()\n"
    guide.run("raw = _digits.images[1297:]; raw_labels = y_test")
    cell = functions + convert if place == "before" else convert + functions
    shown = guide.run(f"%%tflite_convert model --test raw,raw_labels\n{cell}")
    assert shown.status == "ok", shown.error_text
    text = shown.displays[0]["text/plain"]
    right = value_of(guide, "f'{(model.predict(x_test, verbose=0).argmax(1) == y_test).mean():.4g}'").strip("'")
    assert f"metric {right} {right} ±0" in " ".join(text.split())
    assert "on raw, raw_labels (500 samples" in text
    guide.run("del raw, raw_labels, preprocess, postprocess, metric")


def test_with_preprocess_raw_data_is_found_by_what_it_becomes(guide: Kernel) -> None:
    guide.run("kept = x_train, x_test; del x_train, x_test, representative_dataset")
    guide.run("images_train = _digits.images[:1297]")
    cell = "def preprocess(images):\n    return (images / 16).astype('float32')[..., None]"
    shown = guide.run(f"%%tflite_convert model --int8\n{cell}")
    guide.run("x_train, x_test = kept; del kept, images_train, preprocess; representative_dataset = None")
    assert shown.status == "ok", shown.error_text
    assert "calibrated   on images_train (100 of 1297 samples" in shown.displays[0]["text/plain"]


@pytest.mark.parametrize(
    ("line", "cell", "error", "said"),
    [
        ("model", "converter.optimisations = []", "UnknownSetting", "Did you mean optimizations?"),
        (
            "model --float16",
            "converter.optimizations = [tf.lite.Optimize.DEFAULT]",
            "InputError",
            "Leave --float16 out",
        ),
        (
            "model",
            "other = keras.models.clone_model(model)\nconverter = tf.lite.TFLiteConverter.from_keras_model(other)",
            "InputError",
            "model on the line, other in the cell",
        ),
        ("modle", "x = 1", "NameNotFound", "Did you mean model"),
    ],
)
def test_a_mistake_in_a_cell_costs_two_lines(guide: Kernel, line: str, cell: str, error: str, said: str) -> None:
    text = two_lines(guide.run(f"%%tflite_convert {line}\n{cell}"), error)
    assert said in text


def test_an_error_of_the_cells_own_shows_the_cells_own_lines(guide: Kernel) -> None:
    shown = guide.run("%%tflite_convert model\nbefore = 1\nraise ValueError('my own mistake')")
    assert (shown.status, shown.error_name) == ("error", "ValueError")
    assert "raise ValueError('my own mistake')" in shown.error_text
    assert "tfdeploy_magic/" not in shown.error_text
    assert not shown.displays
    assert value_of(guide, "before") == "1"


def test_the_model_may_stand_in_the_cell_alone(guide: Kernel, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    guide.run(f"model.export({str(folder)!r}, verbose=False)")
    cell = f"converter = tf.lite.TFLiteConverter.from_saved_model({str(folder)!r})\ntflite_model = converter.convert()"
    shown = guide.run(f"%%tflite_convert\n{cell}")
    assert shown.status == "ok", shown.error_text
    assert "SavedModel, written by TensorFlow" in shown.displays[0]["text/plain"]
    text = guide.run("%%tflite_convert\nx = 1").streams["stderr"]
    assert "the following arguments are required: MODEL" in text


def test_from_concrete_functions_of_a_keras_model_keeps_its_weights(guide: Kernel) -> None:
    cell = """
function = tf.function(lambda x: model(x)).get_concrete_function(tf.TensorSpec([None, 8, 8, 1], tf.float32))
converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
tflite_model = converter.convert()
"""
    shown = guide.run(f"%%tflite_convert\n{cell}")
    assert shown.status == "ok", shown.error_text
    assert "✓ ok" in shown.displays[0]["text/plain"]
    check = "float(np.abs(answers(tflite_model) - model.predict(x_test[:50], verbose=0)).max()) < 1e-5"
    assert value_of(guide, check) == "True"


def test_the_cells_dataset_calibrates_when_the_line_says_the_scheme(guide: Kernel) -> None:
    cell = f"{DATASET}\nconverter.representative_dataset = representative_dataset"
    shown = guide.run(f"%%tflite_convert model --int8\n{cell}")
    assert "calibrated   on representative_dataset (the first 100 samples)" in shown.displays[0]["text/plain"]


def test_a_converter_that_a_helper_makes_is_recorded_too(guide: Kernel) -> None:
    guide.run("def make(m):\n    return tf.lite.TFLiteConverter.from_keras_model(m).convert()")
    shown = guide.run("%%tflite_convert model\nmade = make(model)")
    assert len(shown.displays) == 1, "converted once, and in a job"
    assert value_of(guide, "made == _.path.read_bytes()") == "True"


def test_the_line_may_name_the_cells_model_by_an_attribute_path(guide: Kernel, tmp_path: Path) -> None:
    guide.run("from types import SimpleNamespace\ntrainer = SimpleNamespace(model=model)")
    cell = "tflite_model = tf.lite.TFLiteConverter.from_keras_model(trainer.model).convert()"
    text = guide.run(f"%%tflite_convert trainer.model\n{cell}").displays[0]["text/plain"]
    assert "trainer.model: Sequential" in text
    guide.run(f"folder = {str(tmp_path / 'm')!r}; model.export(folder, verbose=False)")
    cell = "tflite_model = tf.lite.TFLiteConverter.from_saved_model(folder).convert()"
    assert guide.run(f"%%tflite_convert folder\n{cell}").status == "ok"


def test_several_signature_keys_are_refused(guide: Kernel) -> None:
    cell = "converter = tf.lite.TFLiteConverter.from_saved_model('/nowhere', signature_keys=['a', 'b'])"
    text = two_lines(guide.run(f"%%tflite_convert\n{cell}\nconverter.convert()"), "InputError")
    assert "a, b" in text


def test_the_cells_last_expression_is_shown(guide: Kernel) -> None:
    shown = guide.run("%%tflite_convert model\ntflite_model = converter.convert()\nlen(tflite_model) > 1000")
    assert shown.results[0]["text/plain"] == "True"


def test_a_converter_that_is_left_keeps_nothing_else_alive(guide: Kernel) -> None:
    guide.run("class Big:\n    pass\nimport weakref\nbig = Big(); watched = weakref.ref(big)")
    guide.run("%%tflite_convert model\nconverter = tf.lite.TFLiteConverter.from_keras_model(model)")
    assert value_of(guide, "del big\nwatched() is None, converter is not None") == "(True, True)"


def test_a_preprocess_that_fails_is_shown_with_its_own_traceback(guide: Kernel) -> None:
    guide.run("kept = x_train, x_test; del x_train, x_test; images_train = _digits.images[:1297]")
    guide.run("representative_dataset = None")
    shown = guide.run("%%tflite_convert model --int8\ndef preprocess(images):\n    return images / nothing")
    guide.run("x_train, x_test = kept; del kept, images_train, preprocess")
    assert shown.error_name == "UserCodeError"
    assert "return images / nothing" in shown.error_text
