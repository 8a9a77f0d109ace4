"""Samples on disk: how a person's data crosses into a job, memory-mapped and never pickled."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.signature import Arrays


@dataclass(frozen=True)
class SampleSet:
    """Rows for every input of a model, one ``.npy`` file an input, and labels where they are known.

    Args:
        files: Input name -> a ``.npy`` file of shape ``[count, ...]``.
        count: How many samples.
        name: Where they came from, in the person's words: "x_train (100 of 1297, spread evenly)".
        labels: ``[count]`` class indices, ``[count, classes]`` one-hot, or any targets; None when unknown.
        seed: Of the draw, where they were drawn at random from more.
    """

    files: Mapping[str, Path]
    count: int
    name: str
    labels: npt.NDArray[Any] | None = None
    seed: int | None = None

    def open(self) -> Arrays:
        """Memory-map every input."""
        return open_arrays(self.files)

    def first(self, count: int, folder: Path) -> SampleSet:
        """Return the first of them as samples of their own, in ``folder`` where that takes a copy."""
        if self.count <= count:
            return self
        files = save_arrays(folder, {name: array[:count] for name, array in self.open().items()})
        labels = None if self.labels is None else self.labels[:count]
        return SampleSet(files, count, f"{self.name}, the first {count}", labels)

    def row_digests(self) -> list[bytes]:
        """Return one digest a sample, equal exactly when two samples are equal bit for bit."""
        opened = self.open()
        arrays = [opened[name] for name in sorted(opened)]
        return [
            hashlib.blake2b(b"".join(array[row].tobytes() for array in arrays), digest_size=16).digest()
            for row in range(self.count)
        ]

    @functools.cached_property
    def sha256(self) -> str:
        """A digest of all samples in order."""
        return hashlib.sha256(b"".join(self.row_digests())).hexdigest()

    def manifest(self, *, preprocess: str | None, model_sha256: str) -> dict[str, object]:
        """Return what it takes to know a year later which samples these were.

        Args:
            preprocess: The function that prepared them, by name; None when there was none.
            model_sha256: Of the model that they calibrated.
        """
        return {
            "name": self.name,
            "samples": self.count,
            "sha256": self.sha256,
            "seed": self.seed,
            "preprocess": preprocess,
            "model_sha256": model_sha256,
        }


BLOCK_BYTES = 1_000_000
"""Input bytes that a model is given at a time: what it computes from them takes a hundred times as much memory."""


def rows_at_a_time(arrays: Iterable[npt.NDArray[Any]], most: int) -> int:
    """Return how many samples to give a model at a time: many small ones, or few large ones."""
    sample = sum(array[:1].nbytes for array in arrays)
    return max(1, min(most, BLOCK_BYTES // max(sample, 1)))


def digest_of(array: npt.NDArray[Any]) -> str:
    """Return a digest of an array's dtype, shape and values."""
    running = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    running.update(np.ascontiguousarray(array).tobytes())
    return running.hexdigest()


def save_arrays(folder: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Path]:
    """Write each array to a numbered ``.npy`` file in ``folder`` and return name -> file."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for index, (name, array) in enumerate(arrays.items()):
        files[name] = folder / f"{index}.npy"
        np.save(files[name], array, allow_pickle=False)
    return files


def open_arrays(files: Mapping[str, Path]) -> Arrays:
    """Memory-map what :func:`save_arrays` wrote."""
    return {name: np.load(path, mmap_mode="r", allow_pickle=False) for name, path in files.items()}
