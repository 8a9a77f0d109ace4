from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tests.evaluate import by_hand
from tests.jobs.processes import gone_within
from tfdeploy_magic.commands.lite_model import LiteModel
from tfdeploy_magic.commands.tflite_convert import tflite_convert
from tfdeploy_magic.errors import DataError, OutputError, UserCodeError


@pytest.fixture(scope="module")
def model(trained_cnn: Any) -> Any:
    """A copy that these tests may train further."""
    import keras

    copy = keras.models.clone_model(trained_cnn)
    copy.set_weights(trained_cnn.get_weights())
    return copy


@pytest.fixture(scope="module")
def lite(model: Any, digits: Digits) -> LiteModel:
    return tflite_convert(model, scheme="int8", calib=digits.x_train, test=(digits.x_test, digits.y_test))


def codes(lite_evidence: Any) -> list[str]:
    return [finding.code for finding in lite_evidence.findings]


def test_it_answers_real_numbers_with_real_numbers_as_the_file_does_by_hand(lite: LiteModel, digits: Digits) -> None:
    (expected,) = by_hand.answers(lite.path.read_bytes(), {lite.inputs[0].name: digits.x_test[:100]}).values()
    got = lite.predict(digits.x_test[:100])
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)


def test_its_answers_are_the_callers_own(lite: LiteModel, digits: Digits) -> None:
    first = lite.predict(digits.x_test[:3])
    kept = first.copy()
    first += 1
    np.testing.assert_array_equal(lite.predict(digits.x_test[:3]), kept)


def test_it_keeps_one_warm_process(lite: LiteModel, digits: Digits) -> None:
    lite.predict(digits.x_test[:1])
    pid = lite._worker.pid
    lite.predict(digits.x_test[:2])
    assert lite._worker.pid == pid is not None


def test_a_forgotten_model_leaves_no_process(model: Any, digits: Digits) -> None:
    forgotten = tflite_convert(model)
    forgotten.predict(digits.x_test[:1])
    pid = forgotten._worker.pid
    del forgotten
    gc.collect()
    assert gone_within(2, pid)


@pytest.mark.parametrize("wrong", [lambda x: x[..., 0], lambda x: x * np.nan, lambda x: x[:0], lambda x: None])
def test_samples_that_do_not_fit_are_refused(lite: LiteModel, digits: Digits, wrong: Any) -> None:
    with pytest.raises(DataError):
        lite.predict(wrong(digits.x_test[:4]))


def test_a_worker_killed_while_idle_costs_no_answer(lite: LiteModel, digits: Digits) -> None:
    import psutil

    expected = lite.predict(digits.x_test[:2])
    psutil.Process(lite._worker.pid).kill()
    assert gone_within(2, lite._worker.pid)
    np.testing.assert_array_equal(lite.predict(digits.x_test[:2]), expected)


def test_validating_again_gives_the_same_numbers_on_the_same_samples(lite: LiteModel, digits: Digits) -> None:
    again = lite.validate(digits.x_test, digits.y_test)
    assert again.ok
    for name in ("n", "snr_db", "agreement", "max_abs_error", "metric", "score", "baseline_score"):
        assert getattr(again, name) == getattr(lite.evidence, name)


def test_validating_without_labels_measures_parity_alone(lite: LiteModel, digits: Digits) -> None:
    evidence = lite.validate(digits.x_test)
    assert evidence.ok
    assert (evidence.metric, evidence.score) == (None, None)


def test_validating_with_a_metric_uses_it(lite: LiteModel, digits: Digits) -> None:
    def always_half(labels: Any, output: Any) -> float:
        return 0.5

    evidence = lite.validate(digits.x_test, digits.y_test, metric=always_half)
    assert (evidence.metric, evidence.score.value) == ("always_half", 0.5)
    with pytest.raises(UserCodeError):
        lite.validate(digits.x_test, digits.y_test, metric=lambda labels, output: 1 / 0)


def test_validating_on_noise_is_not_ok(lite: LiteModel, digits: Digits) -> None:
    noise = np.random.default_rng(0).uniform(0, 1, digits.x_test.shape).astype("float32")
    evidence = lite.validate(noise, digits.y_test)
    assert "baseline-collapsed" in codes(evidence)
    assert not evidence.ok


def test_validating_leaves_nothing_behind(
    lite: LiteModel, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lite.predict(digits.x_test[:1])  # its worker's log is elsewhere
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lite.validate(digits.x_test, digits.y_test)
    lite.predict(digits.x_test)
    with pytest.raises(DataError):
        lite.predict(digits.x_test[..., 0])
    assert list(tmp_path.iterdir()) == []


def test_saving_writes_a_copy_that_works_and_refuses_to_overwrite(
    lite: LiteModel, digits: Digits, tmp_path: Path
) -> None:
    target = tmp_path / "copy.tflite"
    copy = lite.save(target)
    assert target.read_bytes() == lite.path.read_bytes()
    assert (copy.path, copy.evidence) == (target, lite.evidence)
    np.testing.assert_array_equal(copy.predict(digits.x_test[:5]), lite.predict(digits.x_test[:5]))
    target.write_bytes(b"precious")
    with pytest.raises(OutputError, match="found an existing file"):
        lite.save(target)
    assert target.read_bytes() == b"precious"
    lite.save(str(target), force=True)
    assert target.read_bytes() == lite.path.read_bytes()


def test_a_file_that_changed_on_disk_is_never_asked(lite: LiteModel, digits: Digits, tmp_path: Path) -> None:
    copy = lite.save(tmp_path / "copy.tflite")
    content = bytearray(copy.path.read_bytes())
    content[-20] ^= 1
    copy.path.write_bytes(content)
    with pytest.raises(DataError, match="has changed since it was made"):
        copy.predict(digits.x_test[:1])
    with pytest.raises(DataError, match="has changed since it was made"):
        copy.validate(digits.x_test, digits.y_test)


# Last: this trains the source.


def test_once_its_source_was_trained_further_it_says_so_and_is_not_ok(
    lite: LiteModel, model: Any, digits: Digits
) -> None:
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(digits.x_train[:64], digits.y_train[:64], verbose=0)
    evidence = lite.validate(digits.x_test, digits.y_test)
    assert codes(evidence) == ["no-source"]
    assert "has changed since this file was made" in evidence.findings[0].message
    assert evidence.score == lite.evidence.score
    assert (evidence.n, evidence.snr_db, evidence.agreement, evidence.ok) == (0, None, None, False)


def test_once_its_source_is_gone_it_says_so_and_is_not_ok(digits: Digits) -> None:
    import keras

    def convert() -> LiteModel:
        source = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
        return tflite_convert(source)

    orphan = convert()
    keras.backend.clear_session()
    gc.collect()
    evidence = orphan.validate(digits.x_test, digits.y_test)
    assert codes(evidence) == ["no-source"]
    assert "is gone" in evidence.findings[0].message
    assert not evidence.ok
    assert 0 <= evidence.accuracy <= 1
