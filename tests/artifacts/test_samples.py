from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfdeploy_magic.artifacts.samples import SampleSet, open_arrays, save_arrays


def sample_set(folder: Path, **arrays: np.ndarray) -> SampleSet:
    return SampleSet(save_arrays(folder, arrays), len(next(iter(arrays.values()))), "x")


def test_arrays_come_back_as_they_were_and_memory_mapped(tmp_path: Path) -> None:
    arrays = {"serving/x:0": np.arange(6.0).reshape(2, 3), "../y": np.array([True, False])}
    opened = open_arrays(save_arrays(tmp_path / "new", arrays))
    assert list(opened) == list(arrays)
    for name, array in arrays.items():
        assert isinstance(opened[name], np.memmap)
        assert opened[name].dtype == array.dtype
        np.testing.assert_array_equal(opened[name], array)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["0.npy", "1.npy"]


def test_objects_are_never_pickled(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        save_arrays(tmp_path, {"x": np.array([{}], dtype=object)})


def test_digests_are_equal_exactly_for_equal_rows(tmp_path: Path) -> None:
    x = np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0], [0.0, 0.0]])
    first, twin, swapped, zero = sample_set(tmp_path, x=x).row_digests()
    assert first == twin
    assert len({first, swapped, zero}) == 3


def test_a_digest_covers_every_input(tmp_path: Path) -> None:
    same = np.zeros((2, 3))
    one, other = sample_set(tmp_path, a=same, b=np.array([[1], [2]])).row_digests()
    assert one != other


def test_the_digest_of_a_set_depends_on_order_and_nothing_else(tmp_path: Path) -> None:
    x = np.arange(6.0).reshape(3, 2)
    digest = sample_set(tmp_path / "a", x=x).sha256
    assert sample_set(tmp_path / "b", x=x.copy()).sha256 == digest
    assert sample_set(tmp_path / "c", x=x[::-1]).sha256 != digest
