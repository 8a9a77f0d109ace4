from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.conftest import Digits
from tests.evaluate import by_hand
from tests.sources import models
from tfdeploy_magic.artifacts import store
from tfdeploy_magic.artifacts.evidence import Evidence
from tfdeploy_magic.artifacts.schemes import SCHEMES
from tfdeploy_magic.commands.lite_model import LiteModel
from tfdeploy_magic.commands.tflite_convert import tflite_convert
from tfdeploy_magic.errors import (
    ConversionError,
    DataError,
    DeadlineExceeded,
    MemoryLimitExceeded,
    ModelNotReady,
    NameNotFound,
    NotAModel,
    OutputError,
    TfdeployError,
    UserCodeError,
)
from tfdeploy_magic.jobs import Progress


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where temporary files go in this test."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def codes(evidence: Evidence, level: str = "error") -> list[str]:
    return [finding.code for finding in evidence.findings if finding.level == level]


@pytest.fixture(scope="module")
def converted(trained_cnn: Any, digits: Digits) -> dict[str, LiteModel]:
    """The model in every scheme, as a person would ask for it."""
    return {
        name: tflite_convert(
            trained_cnn,
            scheme=name,
            calib=digits.x_train if scheme.calibrated else None,
            test=(digits.x_test, digits.y_test),
        )
        for name, scheme in SCHEMES.items()
    }


# Every scheme, end to end

LEAST_SNR_DB = {
    "float32": 100,
    "float16": 50,
    "dynamic": 30,
    "int8": 25,
    "int16x8": 30,
    "weight_only_wi8": 40,
    "weight_only_wi4": 15,
    "dynamic_wi8": 40,
    "dynamic_wi4": 15,
    "dynamic_wi4_b32": 25,
    "static_wi8_ai8": 25,
    "static_wi8_ai16": 30,
}
"""Well below what each has on this model."""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_trained_model_is_ok_in_every_scheme_and_every_number_was_measured(
    converted: dict[str, LiteModel], trained_cnn: Any, digits: Digits, scheme: str
) -> None:
    lite = converted[scheme]
    evidence = lite.evidence
    assert evidence.ok, evidence.findings
    x = digits.x_test
    source = trained_cnn.predict(x, verbose=0)
    (answers,) = by_hand.answers(lite.path.read_bytes(), {lite.inputs[0].name: x}).values()
    right = np.mean(np.argmax(answers, axis=1) == digits.y_test)
    assert evidence.n == 500
    assert evidence.metric == "accuracy"
    assert evidence.accuracy == pytest.approx(right)
    assert evidence.baseline_accuracy == pytest.approx(np.mean(np.argmax(source, axis=1) == digits.y_test))
    assert evidence.score.low < evidence.accuracy < evidence.score.high
    assert evidence.agreement == pytest.approx(np.mean(np.argmax(answers, axis=1) == np.argmax(source, axis=1)))
    assert evidence.max_abs_error == pytest.approx(np.max(np.abs(answers - source)), abs=1e-5)
    snr = 10 * np.log10(np.sum(source.astype("float64") ** 2) / np.sum((source.astype("float64") - answers) ** 2))
    # A float file differs from its source by rounding alone, and so does one rounding from another.
    if scheme != "float32":
        assert evidence.snr_db == pytest.approx(snr, abs=0.1)
    assert evidence.snr_db > LEAST_SNR_DB[scheme]
    assert 0 < evidence.latency.p50 <= evidence.latency.p95
    assert evidence.baseline_latency.p50 > 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_file_lives_in_the_store_and_is_described_truly(converted: dict[str, LiteModel], scheme: str) -> None:
    lite = converted[scheme]
    assert lite.path.name == f"model-{scheme}.tflite"
    assert store.store_folder() in lite.path.parents
    assert lite.size == lite.path.stat().st_size
    assert lite.scheme == scheme
    assert list(lite.signatures) == ["serving_default"]
    assert {spec.dtype for spec in (*lite.inputs, *lite.outputs)} == {SCHEMES[scheme].io}
    assert repr(lite) == f"<LiteModel model-{scheme}.tflite: {scheme}, {lite.size:,} bytes, ok>"


def test_the_recipe_says_how_the_file_came_to_be(converted: dict[str, LiteModel], trained_cnn: Any) -> None:
    made = converted["int8"].provenance
    assert made.source == f"model: Sequential, {trained_cnn.count_params():,} parameters"
    assert made.source_size > converted["float32"].size > converted["int8"].size
    assert made.calibration == "calibration (100 of 1297 samples, drawn at random)"
    assert made.test == "test (500 samples)"
    assert (made.options["scheme"], made.options["io"], made.options["samples"]) == ("int8", "int8", 100)
    assert {"tensorflow", "keras", "ai-edge-litert", "numpy", "tfdeploy-magic"} <= set(made.versions)
    assert {"tracing", "freezing", "calibrating", "quantizing to int8", "validating"} <= set(made.seconds)
    assert made.cpu_seconds > 0
    float_made = converted["float32"].provenance
    assert (float_made.calibration, float_made.manifest) == (None, {})
    assert float_made.source_sha256 == made.source_sha256


@pytest.mark.parametrize("io", ["uint8", "float32"])
def test_int8_takes_other_inputs_and_outputs_when_asked(trained_cnn: Any, digits: Digits, io: Any) -> None:
    test = (digits.x_test, digits.y_test)
    lite = tflite_convert(trained_cnn, scheme="int8", io=io, calib=digits.x_train, test=test)
    assert lite.evidence.ok
    assert {spec.dtype for spec in (*lite.inputs, *lite.outputs)} == {io}


def test_progress_goes_through_every_stage(trained_cnn: Any, digits: Digits) -> None:
    seen: list[Progress] = []
    tflite_convert(
        trained_cnn,
        scheme="int8",
        calib=digits.x_train,
        test=(digits.x_test, digits.y_test),
        no_cache=True,
        progress=seen.append,
    )
    stages = [stage for stage in dict.fromkeys(progress.stage for progress in seen) if stage != "starting a job"]
    assert stages == [
        "reading calibration data",
        "reading test data",
        "tracing",
        "asking the source model",
        "freezing",
        "reading the graph",
        "converting to float32",
        "calibrating",
        "quantizing to int8",
        "loading the file",
        "timing the source model",
        "validating",
        "timing",
        "writing",
    ]


@pytest.mark.parametrize("scheme", sorted(SCHEMES.keys() - {"dynamic", "dynamic_wi4_b32"}))  # its weights are too small
def test_a_model_of_two_inputs_and_outputs_is_measured_on_all_of_them(scheme: Any) -> None:
    calibrated = SCHEMES[scheme].calibrated
    model = models.make(models.two_in_two_out)
    random = np.random.default_rng(0)
    zebra, ant = (random.normal(size=(200, size)).astype("float32") for size in (3, 2))
    test = {"zebra": zebra[100:], "ant": ant[100:]}
    lite = tflite_convert(model, scheme=scheme, calib=[zebra[:100], ant[:100]] if calibrated else None, test=test)
    assert [spec.name for spec in lite.inputs] == ["zebra", "ant"]
    assert lite.evidence.n == 100
    assert lite.evidence.snr_db > 20
    answers = lite.predict([zebra, ant])
    assert answers.keys() == {"first", "second"}
    source = model([zebra, ant])
    for name, answer in answers.items():
        assert np.max(np.abs(answer - np.asarray(source[name]))) < 0.2 * np.ptp(source[name])


def test_a_dataset_and_a_representative_dataset_do_as_well(trained_cnn: Any, digits: Digits) -> None:
    import tensorflow as tf

    def representative_dataset() -> Iterator[list[Any]]:
        for i in range(100):
            yield [digits.x_train[i : i + 1]]

    test = tf.data.Dataset.from_tensor_slices((digits.x_test, digits.y_test)).batch(32)
    lite = tflite_convert(trained_cnn, scheme="int8", calib=representative_dataset, test=test)
    assert lite.evidence.ok
    assert lite.evidence.n == 500


# What can never be ok


def test_without_data_a_float_file_is_made_and_nothing_is_claimed(trained_cnn: Any) -> None:
    lite = tflite_convert(trained_cnn)
    assert lite.path.exists()
    assert not lite.evidence.ok
    assert codes(lite.evidence, "warning") == ["not-measured"]
    assert {field.name: getattr(lite.evidence, field.name) for field in fields(Evidence)} == {
        field.name: field.default for field in fields(Evidence)
    } | {"findings": lite.evidence.findings}
    assert repr(lite).endswith("not measured>")


@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_without_calibration_data_an_integer_file_is_refused(trained_cnn: Any, digits: Digits, scheme: Any) -> None:
    with pytest.raises(DataError, match=rf"--{scheme} needs calibration data[^!]*--calib x_train"):
        tflite_convert(trained_cnn, scheme=scheme, test=(digits.x_test, digits.y_test))


def test_an_untrained_model_converts_but_is_not_ok(trained_cnn: Any, digits: Digits) -> None:
    import keras

    keras.utils.set_random_seed(0)
    fresh = keras.models.clone_model(trained_cnn)
    lite = tflite_convert(fresh, test=(digits.x_test, digits.y_test))
    assert lite.path.exists()
    assert lite.evidence.measured
    assert "untrained" in codes(lite.evidence)
    assert not lite.evidence.ok


def test_calibration_data_of_another_scale_is_not_ok(trained_cnn: Any, digits: Digits) -> None:
    test = (digits.x_test, digits.y_test)
    lite = tflite_convert(trained_cnn, scheme="int8", calib=digits.x_train * 255, test=test)
    assert lite.evidence.baseline_accuracy > 0.95
    assert not lite.evidence.ok
    assert "accuracy-drop" in codes(lite.evidence)


def test_a_file_tested_on_what_calibrated_it_is_not_ok(trained_cnn: Any, digits: Digits) -> None:
    test = (digits.x_test, digits.y_test)
    lite = tflite_convert(trained_cnn, scheme="int8", calib=digits.x_test, test=test)
    assert codes(lite.evidence) == ["calibration-test-overlap"]
    assert not lite.evidence.ok


def test_a_handful_of_test_samples_is_not_ok(trained_cnn: Any, digits: Digits) -> None:
    lite = tflite_convert(trained_cnn, test=(digits.x_test[:29], digits.y_test[:29]))
    assert lite.evidence.measured
    assert not lite.evidence.ok


# Metrics


def test_a_metric_of_ones_own_is_measured_for_both_models(trained_cnn: Any, digits: Digits) -> None:
    def mean_confidence(labels: Any, output: Any) -> float:
        return float(np.mean(output[np.arange(len(labels)), labels]))

    lite = tflite_convert(trained_cnn, test=(digits.x_test, digits.y_test), metric=mean_confidence)
    source = trained_cnn.predict(digits.x_test, verbose=0)
    assert lite.evidence.metric == "mean_confidence"
    assert lite.evidence.baseline_score.value == pytest.approx(mean_confidence(digits.y_test, source), abs=1e-5)
    assert lite.evidence.score.value == pytest.approx(lite.evidence.baseline_score.value, abs=1e-5)
    assert lite.evidence.accuracy is None


def test_a_metric_by_name_is_measured(trained_cnn: Any, digits: Digits) -> None:
    lite = tflite_convert(trained_cnn, test=(digits.x_test, digits.y_test), metric="top_5_accuracy")
    assert lite.evidence.metric == "top_5_accuracy"
    assert 0.99 < lite.evidence.score.value <= 1


def not_a_number(labels: Any, output: Any) -> float:
    return float("nan")


def one_for_each_sample(labels: Any, output: Any) -> Any:
    return np.argmax(output, axis=1) == labels


def broken(labels: Any, output: Any) -> float:
    raise KeyError("f1")


@pytest.mark.parametrize(
    ("metric", "error", "words"),
    [
        (not_a_number, DataError, "not_a_number is of no use: found nan"),
        (one_for_each_sample, DataError, r"one_for_each_sample is of no use: found bool\[500\]"),
        (broken, UserCodeError, "the metric broken raised: found KeyError"),
        ("f1", NameNotFound, "there is no metric 'f1'"),
    ],
)
def test_a_metric_that_gives_no_number_ends_the_command(
    trained_cnn: Any, digits: Digits, scratch: Path, metric: Any, error: type[TfdeployError], words: str
) -> None:
    with pytest.raises(error, match=words):
        tflite_convert(trained_cnn, test=(digits.x_test, digits.y_test), metric=metric)
    assert list(scratch.iterdir()) == []


def test_a_metric_without_labels_is_refused(trained_cnn: Any, digits: Digits) -> None:
    for test in (None, digits.x_test):
        with pytest.raises(DataError, match=r"--metric accuracy cannot be measured[^!]*--test x_test,y_test"):
            tflite_convert(trained_cnn, test=test, metric="accuracy")


# The file


def test_the_file_is_written_where_it_was_asked_for(trained_cnn: Any, tmp_path: Path) -> None:
    lite = tflite_convert(trained_cnn, output=tmp_path / "m.tflite")
    assert lite.path == tmp_path / "m.tflite"
    assert by_hand.interpreter(lite.path.read_bytes()).get_signature_list()
    assert list(tmp_path.iterdir()) == [lite.path]


def test_an_existing_file_is_refused_before_the_work_and_left_alone(trained_cnn: Any, tmp_path: Path) -> None:
    target = tmp_path / "m.tflite"
    target.write_bytes(b"precious")
    seen: list[Progress] = []
    with pytest.raises(OutputError, match=r"found an existing file[^!]*--force"):
        tflite_convert(trained_cnn, output=target, progress=seen.append)
    assert target.read_bytes() == b"precious"
    assert seen == []
    lite = tflite_convert(trained_cnn, output=target, force=True)
    assert target.stat().st_size == lite.size > 1000


def test_a_missing_folder_is_refused(trained_cnn: Any, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"(?s)no folder.*mkdir -p"):
        tflite_convert(trained_cnn, output=tmp_path / "missing" / "m.tflite")


def test_a_conversion_that_fails_leaves_the_old_file_alone(trained_cnn: Any, tmp_path: Path, digits: Digits) -> None:
    target = tmp_path / "m.tflite"
    target.write_bytes(b"precious")
    with pytest.raises(DataError):
        tflite_convert(trained_cnn, scheme="int8", calib=digits.x_train[..., 0], output=target, force=True)
    assert target.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [target]


def test_a_path_and_name_may_hold_any_letters(trained_cnn: Any, tmp_path: Path) -> None:
    target = tmp_path / "modèle ünï'\"$(x).tflite"
    lite = tflite_convert(trained_cnn, output=target)
    assert lite.path == target
    assert lite.predict(np.zeros((1, 8, 8, 1), "float32")).shape == (1, 10)


# What is refused, and what stays behind


def test_options_that_contradict_each_other_are_refused(trained_cnn: Any, digits: Digits) -> None:
    with pytest.raises(DataError, match="--io int8 does not go with --float16"):
        tflite_convert(trained_cnn, scheme="float16", io="int8")
    with pytest.raises(DataError, match="--calib does not go with --float32"):
        tflite_convert(trained_cnn, calib=digits.x_train)


@pytest.mark.parametrize(
    "options", [{"scheme": "int4"}, {"io": "int16"}, {"samples": 0}, {"timeout": -1}, {"quantise": True}], ids=str
)
def test_an_option_that_does_not_exist_is_refused(trained_cnn: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        tflite_convert(trained_cnn, **options)


def test_what_is_not_a_model_is_refused(digits: Digits) -> None:
    with pytest.raises(NotAModel, match=r"a numpy array float32\[1297, 8, 8, 1\]"):
        tflite_convert(digits.x_train)
    with pytest.raises(TypeError, match="takes 1 positional argument but 2"):
        tflite_convert(digits.x_train, "int8")


def test_an_unbuilt_model_is_refused(scratch: Path) -> None:
    with pytest.raises(ModelNotReady):
        tflite_convert(models.subclassed(called=False))
    assert list(scratch.iterdir()) == []


def raises() -> Iterator[Any]:
    yield [np.zeros((1, 8, 8, 1), "float32")]
    raise RuntimeError("no more")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"scheme": "int8", "calib": raises}, UserCodeError),
        ({"scheme": "int8", "calib": np.full((9, 8, 8, 1), np.inf)}, DataError),
        ({"test": np.zeros((0, 8, 8, 1))}, DataError),
        ({"timeout": 0.01}, DeadlineExceeded),
        ({"memory_limit": "1MB"}, MemoryLimitExceeded),
        ({"signature": "embed"}, NameNotFound),
    ],
    ids=["raises", "infinity", "empty", "deadline", "memory", "signature"],
)
def test_a_failure_leaves_nothing_behind(
    trained_cnn: Any, scratch: Path, options: dict[str, Any], error: type[TfdeployError]
) -> None:
    with pytest.raises(error):
        tflite_convert(trained_cnn, no_cache=True, **options)
    assert list(scratch.iterdir()) == []


def test_a_failure_in_the_job_leaves_nothing_behind(scratch: Path) -> None:
    import keras

    x = keras.Input((4,))
    with pytest.raises(ConversionError, match="Erf"):
        tflite_convert(keras.Model(x, keras.ops.erf(x)))
    assert list(scratch.iterdir()) == []


def test_a_success_leaves_nothing_behind_but_the_file(trained_cnn: Any, digits: Digits, scratch: Path) -> None:
    lite = tflite_convert(trained_cnn, test=(digits.x_test, digits.y_test))
    assert lite.evidence.ok
    assert list(scratch.iterdir()) == []


def test_an_output_may_have_the_name_of_an_input() -> None:
    import keras

    keras.utils.set_random_seed(0)
    image = keras.Input((6,), name="image")
    code = keras.layers.Dense(3, activation="tanh")(image)
    model = keras.Model({"image": image}, {"image": keras.layers.Dense(6)(code), "code": code})
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    lite = tflite_convert(model, test={"image": x})
    answers = lite.predict({"image": x})
    wanted = model({"image": x}, training=False)
    for name in ("image", "code"):
        np.testing.assert_allclose(answers[name], wanted[name], atol=1e-5)
    assert lite.evidence.snr_db > 60
