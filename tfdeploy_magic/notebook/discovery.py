"""Finding data in the kernel that fits a model, so that ``%tflite_convert model --int8`` works as typed.

Only real data is ever used: what calibrates on random numbers loses 30 dB while its accuracy looks fine.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tfdeploy_magic import sources
from tfdeploy_magic.artifacts.signature import TensorSpec
from tfdeploy_magic.errors import DataError, UserCodeError
from tfdeploy_magic.jobs import deadline
from tfdeploy_magic.notebook.namespace import Namespace, variables
from tfdeploy_magic.sources.samples import (
    SEED,
    NamedData,
    arrays_of,
    element_shapes,
    fits,
    is_array,
    is_dataset,
)

TEST_ROWS = 2_000
"""Rows of found test data that are used, at the most; data that is named is used whole."""

TRY_SECONDS = 5.0
"""How long the person's ``preprocess`` may take for one row when data is looked for."""

_CALIBRATION_ORDER = ("representative", "calib", "train", "", "val", "test")
_TEST_ORDER = ("test", "val", "dev", "", "train")

_LABEL_NAMES = (
    (r"^x(?=$|_|\d)", ("y",)),
    (r"^X(?=$|_|\d)", ("y", "Y")),
    (r"(?<=_)[xX]$", ("y",)),
    (r"images?", ("labels", "label", "targets")),
    (r"features", ("labels", "targets", "target")),
    (r"inputs?", ("targets", "labels", "outputs")),
    (r"data", ("labels", "targets", "target")),
)
"""How people name the labels of what they name so."""


@dataclass(frozen=True)
class Kernel:
    """What a kernel holds, looked at for one model.

    Args:
        namespace: The kernel's variables.
        specs: The model's inputs.
        preprocess: Turns rows as they are kept into what the model takes.
        said: What that function raised, filled as data is tried.
    """

    namespace: Namespace
    specs: Sequence[TensorSpec]
    preprocess: Any = None
    said: list[UserCodeError] = field(default_factory=list)

    def find_calibration(self) -> NamedData:
        """Return the data that fits best for calibration: a representative dataset, else training data.

        Raises:
            DataError: Nothing fits; the error says what would.
        """
        found = sorted(self._candidates(generators=True), key=_rank(_CALIBRATION_ORDER))
        if not found and self.said:
            raise self.said[-1]
        if not found:
            raise DataError(
                "no data in this kernel fits this model",
                found=_near_misses(self.namespace),
                wanted=" and ".join(_wanted(spec) for spec in self.specs),
                cure="Make some, or name it: --calib NAME.",
            )
        return replace(found[0], remark="found by its shape; --calib NAME chooses another")

    def find_test(self, calibration: NamedData | None, samples: int) -> NamedData | None:
        """Return the data that fits best for testing, with its labels, never the rows that calibrate.

        Args:
            calibration: What calibrates the file.
            samples: How many samples of it do.

        Returns:
            None if none fits.
        """
        found = sorted(self._candidates(generators=False), key=_rank(_TEST_ORDER))
        if not found:
            return None
        best = found[0]
        columns = [best.value] if self.preprocess is not None else arrays_of(best.value, self.specs)
        if columns is None or is_dataset(best.value):
            return replace(best, remark="found by its shape; --test NAME chooses another")
        count = len(columns[0])
        order = np.random.default_rng(SEED).permutation(count)  # the same draw that gather() calibrates with
        remark = "found by its shape; --test x,y chooses other"
        if calibration is not None and calibration.value is best.value:
            if count <= samples:
                return None
            order = order[samples:]
            remark = "rows that did not calibrate the file; --test x,y chooses other"
        labels_name = labels_for(best.name, count, self.namespace)
        return replace(
            best,
            name=f"{best.name}, {labels_name}" if labels_name else best.name,
            rows=np.sort(order[:TEST_ROWS]),
            labels=self.namespace[labels_name] if labels_name else None,
            labels_name=labels_name,
            remark=remark,
        )

    def _candidates(self, *, generators: bool) -> Iterator[NamedData]:
        for name, value in variables(self.namespace):
            if generators and callable(value) and re.match(r"representative_data", name):
                yield NamedData(name, value)
            elif self.preprocess is not None:
                if is_array(value) and not sources.is_model(value) and self._fits_preprocessed(value):
                    yield NamedData(name, value)
            elif is_dataset(value):
                shapes = element_shapes(value, self.specs)
                if shapes is not None and _dataset_fits(shapes, self.specs):
                    yield NamedData(name, value)
            elif (columns := _arrays(value, self.specs)) is not None and all(
                _array_fits(column, spec) for column, spec in zip(columns, self.specs, strict=True)
            ):
                yield NamedData(name, value)

    def _fits_preprocessed(self, value: Any) -> bool:
        """Whether the person's function makes of one row what the model takes."""
        function = getattr(self.preprocess, "value", self.preprocess)
        if len(getattr(value, "shape", ())) < 2:
            return False  # labels, most likely
        try:
            row = np.asarray(value[:1])
            made = deadline.call(lambda: function(row), seconds=TRY_SECONDS, what="the function preprocess")
            columns = arrays_of(made, self.specs)
        except UserCodeError as error:  # data that it was not made for, or its own mistake
            self.said.append(error)
            return False
        return columns is not None and all(_array_fits(c, s) for c, s in zip(columns, self.specs, strict=True))


def labels_for(name: str, count: int, namespace: Namespace) -> str | None:
    """Return the variable that by its name and length labels ``name``: y_test for x_test."""
    for pattern, words in _LABEL_NAMES:
        for word in words:
            other = re.sub(pattern, word, name, count=1)
            value = namespace.get(other)
            if other != name and is_array(value) and len(namespace[other]) == count:
                return other
    return None


def _arrays(value: Any, specs: Sequence[TensorSpec]) -> list[Any] | None:
    # Plain lists are people's own business: turning a large one into an array to look at its shape is not free.
    if isinstance(value, list) or sources.is_model(value):
        return None
    return arrays_of(value, specs)


def _array_fits(array: Any, spec: TensorSpec) -> bool:
    shape = tuple(array.shape)
    return (
        isinstance(shape[0], int)  # a symbolic tensor, such as keras.Input gives, has no number of rows
        and shape[0] > 0
        and fits((None, *shape[1:]), (None, *spec.shape[1:]))
        and _same_kind(getattr(array, "dtype", None), spec)
    )


def _dataset_fits(shapes: list[Any], specs: Sequence[TensorSpec]) -> bool:
    for found, spec in zip(shapes, specs, strict=True):
        rank = getattr(getattr(found, "shape", None), "rank", None)
        if rank is None:
            return False
        inner = tuple(found.shape) if rank == len(spec.shape) - 1 else tuple(found.shape)[1:]
        if not fits(inner, spec.shape[1:]) or not _same_kind(found.dtype, spec):
            return False
    return True


def _same_kind(dtype: Any, spec: TensorSpec) -> bool:
    # Whole numbers for a float input are not taken unasked: pixels of 0..255 for a model that learned 0..1 would fit.
    name = getattr(dtype, "name", str(dtype))
    if spec.is_text:
        return name == "string" or getattr(dtype, "kind", "") in "SU"
    try:
        return np.dtype(name).kind == np.dtype(spec.dtype).kind
    except TypeError:
        return False


def _rank(order: Sequence[str]) -> Callable[[NamedData], int]:
    def rank(data: NamedData) -> int:
        name = data.name.lower()
        return next((place for place, word in enumerate(order) if word and word in name), order.index(""))

    return rank


def _wanted(spec: TensorSpec) -> str:
    shape = ", ".join("n" if size is None else str(size) for size in spec.shape)
    return f"{spec.dtype}[{shape}] for input {spec.name}"


def _near_misses(namespace: Namespace) -> str:
    arrays = [
        f"{name} {np.dtype(value.dtype).name}[{', '.join(map(str, value.shape))}]"
        for name, value in variables(namespace)
        if isinstance(value, np.ndarray) and value.ndim
    ]
    return ", ".join(arrays[:5]) + (" and more" if len(arrays) > 5 else "") if arrays else "no arrays at all"
