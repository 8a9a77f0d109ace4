from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tests.evaluate import by_hand
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.samples import SampleSet, save_arrays
from tfdeploy_magic.convert.describe import describe
from tfdeploy_magic.errors import DataError
from tfdeploy_magic.evaluate import latency, measure
from tfdeploy_magic.evaluate.session import LiteSession, latencies_task
from tfdeploy_magic.jobs import Progress, Report, Worker, silent

REPORT = Report(silent)


@pytest.fixture(scope="module")
def contents(trained_cnn: Any, digits: Digits) -> dict[str, bytes]:
    return {
        "float32": by_hand.plain_file(trained_cnn),
        "dynamic": by_hand.plain_file(trained_cnn, "dynamic"),
        "int8": by_hand.plain_file(trained_cnn, "int8", "int8", digits.x_train[:50]),
        "uint8": by_hand.plain_file(trained_cnn, "int8", "uint8", digits.x_train[:50]),
    }


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(content: bytes) -> Path:
        path = tmp_path / "model.tflite"
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker(deadline=60) as one:
        yield one


def file_of(path: Path) -> LiteFile:
    return LiteFile.from_description(path, "float32", describe(path))


def only(arrays: dict[str, Any]) -> Any:
    (array,) = arrays.values()
    return array


# Of float kernels, XNNPACK's are chosen by batch size, so the last bits may differ.
@pytest.mark.parametrize(("scheme", "tolerance"), [("float32", 1e-6), ("int8", 0), ("uint8", 0)])
def test_batched_answers_are_those_of_a_loop_over_single_samples(
    contents: dict[str, bytes], digits: Digits, written: Any, scheme: str, tolerance: float
) -> None:
    x = digits.x_test[:150]  # two full batches of 64 and a rest
    session = LiteSession(written(contents[scheme]))
    (name,) = by_hand.interpreter(contents[scheme]).get_signature_runner().get_input_details()
    expected = by_hand.answers(contents[scheme], {name: x})
    got = session.predict({name: x}, REPORT)
    assert got.keys() == expected.keys()
    assert only(got).shape == (150, 10)
    np.testing.assert_allclose(only(got), only(expected), rtol=0, atol=tolerance)


def test_a_session_answers_any_number_of_samples_in_any_order(
    contents: dict[str, bytes], digits: Digits, written: Any
) -> None:
    session = LiteSession(written(contents["int8"]))
    (name,) = by_hand.interpreter(contents["int8"]).get_signature_runner().get_input_details()
    expected = only(by_hand.answers(contents["int8"], {name: digits.x_test[:130]}))
    for count in (1, 130, 64, 3, 65, 1):
        np.testing.assert_array_equal(only(session.predict({name: digits.x_test[:count]}, REPORT)), expected[:count])
    assert session.latency({name: digits.x_test}, REPORT).runs >= 10
    np.testing.assert_array_equal(only(session.predict({name: digits.x_test[:65]}, REPORT)), expected[:65])


@pytest.mark.parametrize(("count", "wanted"), [(40, 8), (3, 8)])
def test_what_is_timed_is_the_samples_themselves(
    contents: dict[str, bytes], digits: Digits, written: Any, count: int, wanted: int
) -> None:
    """Zeros would not do: LiteRT skips them in the layers of a dynamic file."""
    session = LiteSession(written(contents["dynamic"]))
    (name,) = by_hand.interpreter(contents["dynamic"]).get_signature_runner().get_input_details()
    x = digits.x_test[:count]
    once, batch = session.stopwatch({name: x}, wanted)
    assert once() > 0
    assert batch == wanted
    (index,) = (index for index, _ in session._outputs.values())
    expected = only(by_hand.answers(contents["dynamic"], {name: np.concatenate([x, x[-1:].repeat(wanted, axis=0)])}))
    rows = [min(row, count - 1) for row in range(wanted)]
    np.testing.assert_allclose(session._interpreter.get_tensor(index), expected[rows], atol=1e-6)


def test_timing_several_files_says_how_far_it_is(
    contents: dict[str, bytes], digits: Digits, written: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "MOST_RUNS", 10**9)  # otherwise it is over before anything need be said
    file = file_of(written(contents["int8"]))
    inputs = save_arrays(tmp_path / "in", {file.inputs[0].name: digits.x_test[:3]})
    heard: list[Progress] = []
    rows = [{"path": str(file.path), "sha256": file.sha256}] * 2
    found = latencies_task(Report(heard.append), rows, {name: str(path) for name, path in inputs.items()}, 0.3)
    assert [one["batch"] for one in found if one] == [1, 1]
    assert {progress.stage for progress in heard} == {"loading the files", "timing"}
    shares = [progress.fraction for progress in heard if progress.stage == "timing" and progress.fraction is not None]
    assert shares
    assert shares == sorted(shares)


def test_a_batch_size_fixed_in_the_graph_is_filled_up_and_cut_off(written: Any) -> None:
    import keras

    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input(batch_shape=(4, 8)), keras.layers.Dense(3)])
    content = by_hand.plain_file(model)
    # from_keras_model opens the batch dimension again; a concrete function keeps it.
    if by_hand.interpreter(content).get_input_details()[0]["shape_signature"][0] != 4:
        content = from_function(lambda x: model(x), [4, 8])
    x = np.random.default_rng(0).normal(size=(10, 8)).astype("float32")
    (name,) = by_hand.interpreter(content).get_signature_runner().get_input_details()
    got = only(LiteSession(written(content)).predict({name: x}, REPORT))
    padded = np.concatenate([x, x[-2:]])
    np.testing.assert_array_equal(got, only(by_hand.answers(content, {name: padded}, batch=4))[:10])
    assert LiteSession(written(content)).latency({name: x[:1]}, REPORT).batch > 1


def from_function(function: Any, shape: list[int | None]) -> bytes:
    import tensorflow as tf

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="x")])
        def __call__(self, x: Any) -> Any:
            return {"y": function(x)}

    module = Module()
    concrete = module.__call__.get_concrete_function()
    return bytes(tf.lite.TFLiteConverter.from_concrete_functions([concrete], module).convert())


def a_reshape_to_a_constant_batch(x: Any) -> Any:
    import tensorflow as tf

    return tf.matmul(tf.reshape(x, [1, 4]), tf.reshape(tf.range(12.0), [4, 3]))


def an_answer_without_the_batch(x: Any) -> Any:
    import tensorflow as tf

    return tf.reduce_sum(x, axis=0, keepdims=True) * 2.0


@pytest.mark.parametrize("function", [a_reshape_to_a_constant_batch, an_answer_without_the_batch])
def test_a_graph_that_cannot_be_resized_is_asked_one_sample_at_a_time(function: Any, written: Any) -> None:
    content = from_function(function, [None, 4])
    x = np.random.default_rng(0).normal(size=(70, 4)).astype("float32")
    (name,) = by_hand.interpreter(content).get_signature_runner().get_input_details()
    got = only(LiteSession(written(content)).predict({name: x}, REPORT))
    assert len(got) == 70
    np.testing.assert_array_equal(got, only(by_hand.answers(content, {name: x})))


@pytest.mark.parametrize("count", [1, 70])
def test_a_scalar_answer_to_each_sample_is_its_row(count: int, written: Any) -> None:
    import tensorflow as tf

    content = from_function(tf.reduce_sum, [None, 4])
    x = np.random.default_rng(0).normal(size=(count, 4)).astype("float32")
    got = only(LiteSession(written(content)).predict({"x": x}, REPORT))
    np.testing.assert_allclose(got, x.sum(axis=1), rtol=1e-5)


def test_a_scalar_answer_to_several_samples_is_refused_by_name(written: Any) -> None:
    import tensorflow as tf

    session = LiteSession(written(from_function(tf.reduce_sum, [3, 4])))
    with pytest.raises(DataError, match=r"output y cannot be compared[^!]*a row for each sample"):
        session.predict({"x": np.ones((5, 4), "float32")}, REPORT)


def test_a_worker_answers_as_the_loop_by_hand(
    contents: dict[str, bytes], digits: Digits, written: Any, worker: Worker, tmp_path: Path
) -> None:
    file = file_of(written(contents["int8"]))
    name = file.inputs[0].name
    samples = SampleSet(save_arrays(tmp_path / "in", {name: digits.x_test[:70]}), 70, "x")
    got = measure.ask(worker, file, samples.files, tmp_path / "out")
    np.testing.assert_array_equal(only(got), only(by_hand.answers(contents["int8"], {name: digits.x_test[:70]})))
    latency = measure.time_one(worker, file, samples.files)
    assert 0 < latency.p50 <= latency.p95
    assert latency.runs >= 10


@pytest.mark.parametrize("warm", [False, True])
def test_a_file_that_changed_on_disk_is_refused(
    contents: dict[str, bytes], digits: Digits, written: Any, worker: Worker, tmp_path: Path, warm: bool
) -> None:
    file = file_of(written(contents["int8"]))
    inputs = save_arrays(tmp_path / "in", {file.inputs[0].name: digits.x_test[:3]})
    if warm:
        measure.ask(worker, file, inputs, tmp_path / "out")
    changed = tmp_path / "changed"
    changed.write_bytes(contents["float32"])
    changed.replace(file.path)
    with pytest.raises(DataError, match=r"model\.tflite has changed since it was made[^!]*Convert the model again"):
        measure.ask(worker, file, inputs, tmp_path / "out")
