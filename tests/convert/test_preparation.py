from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tfdeploy_magic.convert import preparation
from tfdeploy_magic.errors import ConversionError, VariablesLost
from tfdeploy_magic.sources import Source, open_source


def lstm(steps: int | None = 5) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((steps, 3)), keras.layers.LSTM(4, name="memory"), keras.layers.Dense(2)])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lstm") / "saved"
    lstm().export(folder, verbose=False)
    return folder


@pytest.fixture
def opened(exported: Path) -> Iterator[Source]:
    source = open_source(exported, "saved")
    yield source
    source.close()


def codes(ready: preparation.Prepared) -> list[str]:
    return [finding.code for finding in ready.findings if finding.code != "untrained"]


def test_a_loop_takes_one_sample_at_a_time_where_nothing_is_calibrated(tmp_path: Path) -> None:
    ready = preparation.prepare(open_source(lstm(), "model"), calibrated=False, select_ops=False)
    assert ready.single_sample and codes(ready) == ["one-sample"]
    assert "memory (LSTM)" in ready.findings[-1].message
    assert ready.save(tmp_path).signature.fixed_batch == 1
    assert ready.source.model.signature.fixed_batch is None, "the source itself answers batches"


def test_a_loop_is_unrolled_where_something_is_calibrated() -> None:
    model = lstm()
    ready = preparation.prepare(open_source(model, "model"), calibrated=True, select_ops=False)
    assert not ready.single_sample and codes(ready) == ["unrolled"]
    assert ready.source.how.unroll
    assert not any(node.op == "TensorListReserve" for node in ready.source.model.graph_def.node)
    assert model.layers[0].unroll is False


@pytest.mark.parametrize("steps", [None, 5])
def test_a_loop_of_unknown_length_or_in_a_file_cannot_be_quantized_and_the_error_says_what_can(
    opened: Source, steps: int | None
) -> None:
    source = opened if steps else open_source(lstm(steps), "model")
    with pytest.raises(
        ConversionError, match=r"cannot be quantized with its loop: found a loop over a list in"
    ) as error:
        preparation.prepare(source, calibrated=True, select_ops=False)
    assert "unroll=True" in error.value.cure and "--dynamic" in error.value.cure


def test_a_file_is_looked_at_in_its_job(opened: Source, tmp_path: Path) -> None:
    ready = preparation.prepare(opened, calibrated=False, select_ops=False)
    assert ready.single_sample and "one-sample" in codes(ready)
    assert ready.save(tmp_path / "frozen").frozen


def test_an_operation_without_a_builtin_is_refused_before_anything_is_saved() -> None:
    import keras
    import tensorflow as tf

    x = keras.Input((3, 3))
    model = keras.Model(x, keras.layers.Lambda(tf.linalg.inv, name="invert")(x))
    with pytest.raises(ConversionError, match=r"model cannot be converted: found MatrixInverse in invert \(Lambda\)"):
        preparation.prepare(open_source(model, "model"), calibrated=False, select_ops=False)
    ready = preparation.prepare(open_source(model, "model"), calibrated=False, select_ops=True)
    assert codes(ready) == ["select-op"]


def test_only_a_saved_model_can_be_written_anew(tmp_path: Path) -> None:
    ready = preparation.prepare(open_source(lstm(), "model"), calibrated=False, select_ops=False)
    with pytest.raises(VariablesLost, match=r"tf\.Variables of the model"):
        ready.rebuild(tmp_path)
