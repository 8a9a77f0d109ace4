"""Every scheme answers bit for bit as the file that the plain TFLiteConverter makes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tests.evaluate import by_hand
from tfdeploy_magic import sources
from tfdeploy_magic.artifacts.models import LiteFile, SavedModelDir
from tfdeploy_magic.artifacts.samples import SampleSet, save_arrays
from tfdeploy_magic.artifacts.schemes import SCHEMES, Variant
from tfdeploy_magic.errors import ConversionCrashed, ConversionError, DataError
from tfdeploy_magic.jobs import Progress, Worker
from tfdeploy_magic.quantization.engine import Maker

ROWS = 60


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker(deadline=300) as one:
        yield one


def saved_and_calibrated(model: Any, rows: Any, folder: Path) -> tuple[SavedModelDir, SampleSet]:
    traced = sources.open_source(model, "model").model
    files = save_arrays(folder / "calibration", {traced.signature.inputs[0].name: rows})
    return traced.save(folder / "saved"), SampleSet(files, len(rows), "rows")


def made(model: Any, rows: Any, folder: Path, *schemes: str, io: Any = None) -> dict[str, LiteFile]:
    saved, calibration = saved_and_calibrated(model, rows, folder)
    with Worker(deadline=300) as worker:
        maker = Maker(worker, saved, folder / f"made-{io}", calibration=calibration)
        return {scheme: maker.make(Variant(scheme, io)) for scheme in schemes}


def assert_equal_answers(file: LiteFile, plain: bytes, x: Any) -> None:
    (name,) = by_hand.interpreter(plain).get_signature_runner().get_input_details()
    expected = by_hand.answers(plain, {name: x})
    got = by_hand.answers(file.path.read_bytes(), {name: x})
    assert got.keys() == expected.keys()
    for output, answer in expected.items():
        np.testing.assert_array_equal(got[output], answer)
        assert np.ptp(answer) > 0


@pytest.fixture(scope="module")
def cnn_files(trained_cnn: Any, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LiteFile]:
    return made(trained_cnn, digits.x_train[:ROWS], tmp_path_factory.mktemp("cnn"), *by_hand.SCHEMES)


@pytest.mark.parametrize("scheme", by_hand.SCHEMES)
def test_a_small_cnn_answers_as_the_plain_converters_file(
    cnn_files: dict[str, LiteFile], trained_cnn: Any, digits: Digits, scheme: str
) -> None:
    plain = by_hand.plain_file(trained_cnn, scheme, SCHEMES[scheme].io, digits.x_train[:ROWS])
    assert_equal_answers(cnn_files[scheme], plain, digits.x_test[:200])
    assert cnn_files[scheme].size <= len(plain) * 1.02 + 1024


@pytest.mark.parametrize("io", ["uint8", "float32"])
def test_int8_with_other_inputs_and_outputs_answers_as_the_plain_converters_file(
    trained_cnn: Any, digits: Digits, tmp_path: Path, io: str
) -> None:
    rows = digits.x_train[:ROWS]
    file = made(trained_cnn, rows, tmp_path, "int8", io=io)["int8"]
    assert {spec.dtype for spec in (*file.inputs, *file.outputs)} == {io}
    assert_equal_answers(file, by_hand.plain_file(trained_cnn, "int8", io, rows), digits.x_test[:100])


def test_each_scheme_stores_what_its_name_says(cnn_files: dict[str, LiteFile]) -> None:
    types = {scheme: set(file.tensor_types) for scheme, file in cnn_files.items()}
    assert types["float32"] <= {"float32", "int32"}
    assert "float16" in types["float16"]
    assert {"int8", "float32"} <= types["dynamic"]
    assert types["int8"] <= {"int8", "int32"}
    assert {"int8", "int16"} <= types["int16x8"]
    sizes = {scheme: file.size for scheme, file in cnn_files.items()}
    assert max(sizes["int8"], sizes["dynamic"], sizes["int16x8"]) < sizes["float16"] < sizes["float32"]


def test_calibration_uses_the_samples_it_is_given(trained_cnn: Any, digits: Digits, tmp_path: Path) -> None:
    wide = made(trained_cnn, digits.x_train[:20] * 10, tmp_path, "int8")["int8"]
    assert wide.inputs[0].scale == pytest.approx(10 / 255, rel=0.01)


def test_the_true_ranges_are_what_the_tensors_hold_and_bring_int8_closer(
    trained_cnn: Any, digits: Digits, tmp_path: Path
) -> None:
    """Its batch norm follows a ReLU, and TensorFlow's calibrator reads a tensor after a MUL has overwritten it."""
    saved, calibration = saved_and_calibrated(trained_cnn, digits.x_train[:ROWS], tmp_path)
    with Worker(deadline=300) as worker:
        maker = Maker(worker, saved, tmp_path / "made", calibration=calibration)
        wide, of = maker.widened()
        assert (wide, of) == (2, 9)
        theirs, true = maker.ranges("min_max"), maker.ranges("true_min_max")
        files = [maker.make(Variant("int8", range_rule=rule)).path.read_bytes() for rule in ("min_max", "true_min_max")]
    (name,) = by_hand.interpreter(files[0]).get_signature_runner().get_input_details()
    seen = by_hand.tensors((tmp_path / "made" / "float.start").read_bytes(), {name: digits.x_train[:ROWS]})
    for tensor, (low, high) in true.items():
        assert (low, high) == pytest.approx((seen[tensor].min(), seen[tensor].max()), rel=1e-4, abs=1e-6)
    assert any(theirs[tensor][1] > 2 * high for tensor, (_, high) in true.items())
    expected = np.asarray(trained_cnn(digits.x_test))
    noise = [
        np.sum((next(iter(by_hand.answers(file, {name: digits.x_test}).values())) - expected) ** 2) for file in files
    ]
    assert noise[1] < noise[0] / 2


def test_one_conversion_reports_its_stages_in_order(trained_cnn: Any, digits: Digits, tmp_path: Path) -> None:
    seen: list[Progress] = []
    saved, calibration = saved_and_calibrated(trained_cnn, digits.x_train[:20], tmp_path)
    with Worker(deadline=300, listener=seen.append) as worker:
        Maker(worker, saved, tmp_path / "made", calibration=calibration).make(Variant("int8"))
    stages = list(dict.fromkeys(progress.stage for progress in seen if progress.stage != "starting a job"))
    assert stages == [
        "reading the graph",
        "converting to float32",
        "calibrating",
        "quantizing to int8",
        "loading the file",
    ]


# MobileNetV2


@pytest.fixture(scope="module")
def mobilenet() -> tuple[Any, Any]:
    import keras

    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2((96, 96, 3), weights=None, classes=10, alpha=0.35)
    x = np.random.default_rng(0).uniform(-1, 1, (16, 96, 96, 3)).astype("float32")
    # Fresh, it answers 0.1 to everything: signals fade from layer to layer until batch norms have seen some data.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    for _ in range(8):
        model(x, training=True)
    return model, x


@pytest.fixture(scope="module")
def mobilenet_files(mobilenet: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, LiteFile]:
    model, x = mobilenet
    return made(model, x[:8], tmp_path_factory.mktemp("mobilenet"), *by_hand.SCHEMES)


@pytest.mark.parametrize("scheme", by_hand.SCHEMES)
def test_mobilenet_v2_answers_as_the_plain_converters_file(
    mobilenet_files: dict[str, LiteFile], mobilenet: tuple[Any, Any], scheme: str
) -> None:
    model, x = mobilenet
    assert_equal_answers(mobilenet_files[scheme], by_hand.plain_file(model, scheme, SCHEMES[scheme].io, x[:8]), x)


# What TensorFlow refuses, or dies of


def lstm(**options: Any) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    start = options.pop("start", {"shape": (10, 4)})
    return keras.Sequential([keras.Input(**start), keras.layers.LSTM(8, **options), keras.layers.Dense(2)])


SEQUENCES = np.random.default_rng(0).normal(size=(20, 10, 4)).astype("float32")


def test_a_loop_over_an_open_batch_is_refused_with_its_cure(tmp_path: Path, worker: Worker) -> None:
    saved, calibration = saved_and_calibrated(lstm(), SEQUENCES, tmp_path)
    with pytest.raises(ConversionError, match=r"LSTM[^!]*unroll=True"):
        Maker(worker, saved, tmp_path / "made", calibration=calibration).make(Variant("int8"))
    assert worker.call("tests.jobs.tasks:echo", {"value": 1})["value"] == 1


def test_the_cure_for_a_loop_works(tmp_path: Path) -> None:
    model = lstm(unroll=True)
    file = made(model, SEQUENCES, tmp_path, "int8")["int8"]
    assert_equal_answers(file, by_hand.plain_file(model, "int8", "int8", SEQUENCES), SEQUENCES)


def test_a_loop_over_one_sample_never_costs_more_than_its_job(tmp_path: Path, worker: Worker) -> None:
    model = lstm(start={"shape": (10, 4), "batch_size": 1})
    saved, calibration = saved_and_calibrated(model, SEQUENCES, tmp_path)
    try:
        file = Maker(worker, saved, tmp_path / "made", calibration=calibration).make(Variant("int8"))
    except ConversionCrashed as error:
        assert error.signal is not None
        assert error.stage == "calibrating"
        assert "unroll=True" in error.cure
    else:
        assert file.inputs[0].dtype == "int8"
    assert worker.call("tests.jobs.tasks:echo", {"value": 1})["value"] == 1


def test_an_operation_without_a_builtin_is_refused_by_its_name(tmp_path: Path, worker: Worker) -> None:
    import keras

    x = keras.Input((4,))
    model = keras.Model(x, keras.ops.erf(x))
    saved, _ = saved_and_calibrated(model, SEQUENCES[:, 0], tmp_path)
    with pytest.raises(ConversionError, match=r"the operation tf\.Erf[^!]*preprocessing"):
        Maker(worker, saved, tmp_path / "made").make(Variant("float32"))


def test_fewer_samples_than_one_fixed_batch_cannot_calibrate(tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((3,), batch_size=8), keras.layers.Dense(2)])
    rows = np.ones((5, 3), "float32")
    with pytest.raises(DataError, match=r"found 5 samples\.\nWanted at least 8"):
        made(model, rows, tmp_path, "int8")
