"""What ``tflite_convert`` finds again in the store, and what it must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tfdeploy_magic.commands.lite_model import LiteModel
from tfdeploy_magic.commands.tflite_convert import tflite_convert
from tfdeploy_magic.errors import DataError


def convert(model: Any, digits: Digits, **options: Any) -> LiteModel:
    options = {"scheme": "int8", "calib": digits.x_train, "test": (digits.x_test, digits.y_test), **options}
    lite: LiteModel = tflite_convert(model, **options)
    return lite


def test_the_same_again_starts_no_job_and_says_so(
    trained_cnn: Any, digits: Digits, empty_store: Path, calls: list[str]
) -> None:
    first = convert(trained_cnn, digits)
    assert "make_task" in calls and not first.provenance.cached
    calls.clear()
    again = convert(trained_cnn, digits)
    assert calls == []
    assert again.provenance.cached
    assert (again.file, again.evidence) == (first.file, first.evidence)
    assert f"made and measured on {first.provenance.made}" in again._repr_mimebundle_()["text/plain"]
    assert again.predict(digits.x_test[:3]).shape == (3, 10)


def test_no_cache_does_it_again(trained_cnn: Any, digits: Digits, empty_store: Path, calls: list[str]) -> None:
    convert(trained_cnn, digits)
    calls.clear()
    assert not convert(trained_cnn, digits, no_cache=True).provenance.cached
    assert "make_task" in calls and "predict_task" in calls


def changed_weights(model: Any) -> Any:
    import keras

    changed = keras.models.clone_model(model)
    changed.set_weights([weight * 1.01 for weight in model.get_weights()])
    return changed


@pytest.mark.parametrize("what", ["weights", "calibration", "scheme", "io"])
def test_what_the_file_depends_on_makes_another_file(
    trained_cnn: Any, digits: Digits, empty_store: Path, calls: list[str], what: str
) -> None:
    first = convert(trained_cnn, digits)
    calls.clear()
    other = {
        "weights": lambda: convert(changed_weights(trained_cnn), digits),
        "calibration": lambda: convert(trained_cnn, digits, calib=digits.x_train[:50]),
        "scheme": lambda: convert(trained_cnn, digits, scheme="int16x8"),
        "io": lambda: convert(trained_cnn, digits, io="float32"),
    }[what]()
    assert "make_task" in calls
    assert other.file.sha256 != first.file.sha256


def test_other_test_data_measures_the_same_file_again(
    trained_cnn: Any, digits: Digits, empty_store: Path, calls: list[str]
) -> None:
    first = convert(trained_cnn, digits)
    calls.clear()
    other = convert(trained_cnn, digits, test=(digits.x_test[:200], digits.y_test[:200]))
    assert set(calls) == {"predict_task", "latency_task"}
    assert (other.file, other.evidence.n) == (first.file, 200)
    wrong = convert(trained_cnn, digits, test=(digits.x_test, digits.y_test[::-1].copy()))
    assert wrong.evidence.accuracy < 0.3, "other labels are other evidence"


def test_a_metric_of_the_persons_own_is_measured_each_time(
    trained_cnn: Any, digits: Digits, empty_store: Path, calls: list[str]
) -> None:
    for value in (1.0, 2.0):
        lite = convert(trained_cnn, digits, metric=lambda labels, output, value=value: value)
        assert lite.evidence.score.value == value
    assert calls.count("make_task") == 1


def test_another_call_with_the_same_weights_is_another_model(digits: Digits, empty_store: Path) -> None:
    import keras

    class Scaled(keras.Model):
        factor = 1.0

        def __init__(self) -> None:
            super().__init__()
            self.flatten, self.dense = keras.layers.Flatten(), keras.layers.Dense(10)

        def call(self, x: Any) -> Any:
            return self.dense(self.flatten(x)) * self.factor

    keras.utils.set_random_seed(0)
    model = Scaled()
    model(digits.x_test[:1])
    first = tflite_convert(model)
    assert tflite_convert(model).provenance.cached
    Scaled.factor = 3.0
    second = tflite_convert(model)
    assert not second.provenance.cached
    answers = [lite.predict(digits.x_test[:5]) for lite in (first, second)]
    np.testing.assert_allclose(3 * answers[0], answers[1], rtol=1e-5)


def test_a_lambda_with_other_code_is_another_model(digits: Digits, empty_store: Path) -> None:
    import keras

    def model_with(function: Any) -> Any:
        x = keras.Input((8, 8, 1), name="image")
        return keras.Model(x, keras.layers.Lambda(function, name="code")(keras.layers.Flatten()(x)))

    assert not tflite_convert(model_with(lambda t: t * 2)).provenance.cached
    assert not tflite_convert(model_with(lambda t: t * 5)).provenance.cached
    assert tflite_convert(model_with(lambda t: t * 5)).provenance.cached


def test_a_file_that_rotted_in_the_store_is_made_again(trained_cnn: Any, digits: Digits, empty_store: Path) -> None:
    first = convert(trained_cnn, digits)
    first.path.write_bytes(first.path.read_bytes()[:-8])
    again = convert(trained_cnn, digits)
    assert again.path.stat().st_size == first.size
    assert again.evidence.ok


def test_a_named_output_is_written_from_the_store_too(
    trained_cnn: Any, digits: Digits, empty_store: Path, tmp_path: Path, calls: list[str]
) -> None:
    convert(trained_cnn, digits)
    calls.clear()
    lite = convert(trained_cnn, digits, output=tmp_path / "m.tflite")
    assert calls == []
    assert lite.path == tmp_path / "m.tflite" and lite.path.stat().st_size == lite.size
    assert lite.provenance.options["output"] == str(tmp_path / "m.tflite")


def test_an_entry_of_another_form_is_made_again(
    trained_cnn: Any, digits: Digits, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(trained_cnn, digits)
    for record in empty_store.glob("*/record.json"):
        record.write_text(record.read_text().replace('"findings"', '"remarks"'))
    again = convert(trained_cnn, digits)
    assert not again.provenance.file_cached and again.evidence.ok


def test_a_file_that_the_store_dropped_says_so(trained_cnn: Any, digits: Digits, empty_store: Path) -> None:
    lite = convert(trained_cnn, digits)
    lite.path.unlink()
    for ask in (lite.predict, lite.validate, lambda _: lite.save(empty_store / "x.tflite")):
        with pytest.raises(DataError, match=r"The store dropped it for want of room: convert again, with -o PATH"):
            ask(digits.x_test)


def test_converting_again_without_the_store_gives_a_file_that_answers(
    trained_cnn: Any, digits: Digits, empty_store: Path
) -> None:
    convert(trained_cnn, digits)
    assert convert(trained_cnn, digits, no_cache=True).predict(digits.x_test[:2]).shape == (2, 10)


def test_a_model_that_remembers_is_never_called_ok(empty_store: Path, counter: Any) -> None:
    x = np.ones((64, 2), "float32")
    lite = tflite_convert(counter, test=x)
    for evidence in (lite.evidence, lite.validate(x)):
        assert (evidence.verdict, evidence.n) == ("not measured", 0)
        assert "stateful" in [finding.code for finding in evidence.findings]
    assert float(counter.count) == 0.0
