"""A person's data, in whatever form, drained to memory-mapped files that a job can read.

Arrays, dicts of arrays, ``tf.data`` datasets, and representative datasets as the TensorFlow guides write them. All
of the person's code runs here, in the kernel, under a deadline.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.samples import SampleSet
from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, TensorSpec
from tfdeploy_magic.errors import DataError, UserCodeError
from tfdeploy_magic.jobs import Report, deadline
from tfdeploy_magic.sources.naming import describe

STREAM_LIMIT = 10_000
"""Samples taken from a generator or dataset when no limit is given: it may never end."""

SEED = 0
"""Of the draw when only some rows of an array are used."""


@dataclass(frozen=True)
class NamedData:
    """Data under the name its owner knows it by.

    Args:
        name: "x_train".
        value: Arrays, a dict of arrays, a dataset or a generator function.
        labels: Targets for the same rows; None when unknown or part of the dataset's elements.
        labels_name: "y_train".
        rows: Use only these rows of the arrays.
        remark: What else to say of it, "found by its shape".
        preprocess: Turns rows as they are kept into what the model takes; not used for a representative dataset
            function, which yields that by itself.
    """

    name: str
    value: Any
    labels: Any = None
    labels_name: str | None = None
    rows: npt.NDArray[np.intp] | None = None
    remark: str = ""
    preprocess: Callable[[Any], Any] | None = None


Block = tuple[list[npt.NDArray[Any]], npt.NDArray[Any] | None]
"""Some samples: an array ``[k, ...]`` for each input, and their labels ``[k, ...]``."""


def gather(
    data: NamedData,
    specs: Sequence[TensorSpec],
    folder: Path,
    *,
    role: str,
    limit: int | None,
    seconds: float,
    report: Report,
) -> SampleSet:
    """Drain ``data`` into ``.npy`` files.

    Args:
        data: What to drain.
        specs: The model's inputs.
        folder: Where the files go.
        role: "calibration" or "test"; errors and progress say it.
        limit: The most samples to take: drawn at random from arrays (seed 0), the first ones from a stream. None
            takes all of an array.
        seconds: How long the person's code may take for one item.
        report: Told of the progress.

    Returns:
        The samples, at least one, every value finite.

    Raises:
        DataError: Wrong shape, rank or dtype; empty; NaN or infinity; or not a kind of data known here.
        UserCodeError: The person's generator raised or hung.
    """
    option = {"calibration": "--calib", "test": "--test"}[role]
    columns = arrays_of(data.value, specs) if data.preprocess is None else _raw_column(data.value)
    if columns is not None:
        available = _common_length(columns, specs, data, role) if data.preprocess is None else len(columns[0])
        rows = np.arange(available) if data.rows is None else data.rows
        chosen = rows
        if limit is not None and len(rows) > limit:
            chosen = np.sort(np.random.default_rng(SEED).permutation(rows)[:limit])
        columns = [column if isinstance(column, np.ndarray) else np.asarray(column) for column in columns]
        blocks, total = _blocks_of(columns, _labels_of(data, available), chosen), len(chosen)
        if data.preprocess is not None:
            blocks = _preprocessed(blocks, data, specs, role, seconds)
        drawn = len(chosen) < available
        few = f"{len(chosen)} of {available} samples, drawn at random" if drawn else ""
    else:
        total, drawn = limit or STREAM_LIMIT, False
        blocks = _streamed_blocks(data, specs, role, seconds)
        few = f"the first {total} samples"
    sinks = [_NpyStream(folder / f"{position}.npy") for position in range(len(specs))]
    labels: list[npt.NDArray[Any]] = []
    count = 0
    try:
        for inputs, targets in blocks:
            take = min(_common_length(inputs, specs, data, role), total - count)
            for sink, spec, array in zip(sinks, specs, inputs, strict=True):
                sink.append(_fitting(array[:take], spec, data.name, role, count, option))
            if targets is not None:
                labels.append(targets[:take])
            count += take
            report.fraction(count / total)
            if count >= total:
                break
    finally:
        for sink in sinks:
            sink.close()
    if count == 0:
        raise DataError(
            f"{data.name} cannot be used for {role}",
            found="no samples in it",
            wanted="at least one",
            cure="Is a slice or a filter empty? A generator must yield afresh each time it is called.",
        )
    few = "" if columns is None and count < total else few
    words = ", ".join(part for part in (few or f"{count} samples", data.remark) if part)
    return SampleSet(
        {spec.name: sink.path for spec, sink in zip(specs, sinks, strict=True)},
        count,
        f"{data.name} ({words})",
        np.concatenate(labels) if labels else None,
        SEED if drawn else None,
    )


def arrays_of(value: object, specs: Sequence[TensorSpec]) -> list[Any] | None:
    """Return one array-like for each input when ``value`` holds whole arrays, else None.

    A dict gives them by input name. A list or tuple of as many arrays as the model has inputs gives them in the
    order of the model's own arguments, as ``model.predict([a, b])`` takes them.
    """
    if isinstance(value, Mapping):
        return [value[spec.name] for spec in specs] if all(spec.name in value for spec in specs) else None
    if len(specs) > 1:
        fits = isinstance(value, list | tuple) and len(value) == len(specs) and all(map(is_array, value))
        return list(value) if fits else None  # type: ignore[call-overload]
    if isinstance(value, list) and value and not isinstance(value[0], Mapping):
        try:
            value = np.asarray(value)
        except ValueError:  # items of different shape
            return None
    return [value] if is_array(value) else None


def is_quick(value: object) -> bool:
    """Whether reading it runs no code of the person's: arrays, and not a stream of samples."""
    if isinstance(value, NamedData):
        return is_quick(value.value)
    if value is None:
        return True
    if isinstance(value, Mapping):
        return all(map(is_quick, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_array, value))
    return is_array(value)


def is_array(value: object) -> bool:
    """Whether ``value`` is array-like with rows: numpy, TensorFlow, pandas, JAX or PyTorch on the CPU."""
    if inspect.isclass(value) or inspect.ismodule(value) or not hasattr(value, "__getitem__"):
        return False
    try:
        rank = len(getattr(value, "shape"))  # noqa: B009  (a TensorShape of unknown rank has no length)
    except (AttributeError, TypeError, ValueError):
        return False
    return rank > 0


def is_dataset(value: object) -> bool:
    """Whether ``value`` is a ``tf.data`` dataset; never imports TensorFlow."""
    return hasattr(value, "element_spec") and hasattr(value, "__iter__")


def fits(shape: Sequence[int | None], wanted: Sequence[int | None]) -> bool:
    """Whether a shape is allowed where ``wanted`` leaves some dimensions open (None)."""
    return len(shape) == len(wanted) and all(
        b is None or a is None or a == b for a, b in zip(shape, wanted, strict=True)
    )


def _common_length(columns: list[Any], specs: Sequence[TensorSpec], data: NamedData, role: str) -> int:
    for spec, column in zip(specs, columns, strict=True):
        if not len(getattr(column, "shape", None) or np.shape(column)):
            raise DataError(
                f"{data.name} cannot be used for {role}",
                found=f"a single value for input {spec.name}",
                wanted=f"samples: {spec}",
                cure="Give arrays with a batch dimension: x[i:i+1].",
            )
    lengths = {spec.name: len(column) for spec, column in zip(specs, columns, strict=True)}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"{data.name} cannot be used for {role}",
            found="different numbers of rows: " + ", ".join(f"{name} {count}" for name, count in lengths.items()),
            wanted="as many rows for every input",
            cure="Cut them to the same length.",
        )
    return next(iter(lengths.values()))


def _labels_of(data: NamedData, available: int) -> npt.NDArray[Any] | None:
    if data.labels is None:
        return None
    labels = np.asarray(data.labels)
    if labels.ndim == 0 or len(labels) != available:
        found = f"{len(labels)} labels" if labels.ndim else "a single value"
        raise DataError(
            f"{data.labels_name} does not label {data.name}",
            found=f"{found} for {available} samples",
            wanted="one label a sample",
            cure="Name the pair that belongs together: --test x_test,y_test.",
        )
    return labels


def _blocks_of(
    columns: list[Any], labels: npt.NDArray[Any] | None, rows: npt.NDArray[np.intp], size: int = 256
) -> Iterator[Block]:
    consecutive = len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        index: Any = slice(part[0], part[-1] + 1) if consecutive else part
        yield [np.asarray(column[index]) for column in columns], None if labels is None else labels[index]


def _raw_column(value: object) -> list[Any] | None:
    if isinstance(value, list | tuple) and value and not is_array(value[0]):
        value = np.asarray(value)
    return [value] if is_array(value) else None


def _preprocessed(
    blocks: Iterable[Block], data: NamedData, specs: Sequence[TensorSpec], role: str, seconds: float
) -> Iterator[Block]:
    """Run the person's ``preprocess`` over blocks of raw rows."""
    function = data.preprocess
    assert function is not None
    for raw, labels in blocks:
        rows = raw[0]
        made = deadline.call(lambda rows=rows: function(rows), seconds=seconds, what="the function preprocess")  # type: ignore[misc]
        inputs = _inputs(made, specs, replace(data, name=f"preprocess({data.name})"), role)
        if len(inputs[0]) != len(rows):
            raise DataError(
                f"preprocess({data.name}) cannot be used for {role}",
                found=f"{len(inputs[0])} rows for {len(rows)}",
                wanted="as many rows as it was given",
                cure="preprocess(x) takes a batch [k, ...] and returns a batch.",
            )
        yield inputs, labels


def _streamed_blocks(data: NamedData, specs: Sequence[TensorSpec], role: str, seconds: float) -> Iterator[Block]:
    """Turn a dataset, a generator function or an iterator into blocks."""
    if data.labels is not None:
        raise DataError(
            f"{data.labels_name} cannot label {data.name}",
            found="labels beside a stream of samples",
            wanted="arrays, or a tf.data dataset whose elements are (x, y)",
            cure="Pair them: tf.data.Dataset.zip((x, y)), or use arrays.",
        )
    if is_dataset(data.value):
        elements = deadline.iterate(lambda: data.value, seconds=seconds, what=f"the dataset {data.name}")
        if data.preprocess is not None:
            yield from _preprocessed(_raw_elements(elements, specs, data, role, seconds), data, specs, role, seconds)
            return
        unbatched = _is_unbatched(data.value.element_spec, specs)
        for element in elements:
            yield _element(element, specs, data, role, unbatched)
        return
    for item in deadline.iterate(_iterable(data, role), seconds=seconds, what=f"the generator {data.name}"):
        yield _inputs(item, specs, data, role), None


def _raw_elements(
    elements: Iterator[Any], specs: Sequence[TensorSpec], data: NamedData, role: str, seconds: float
) -> Iterator[Block]:
    """Yield what a dataset holds, x or (x, y), as batches that ``preprocess`` takes."""
    batched: bool | None = None
    for element in elements:
        x, *rest = element if isinstance(element, tuple) else (element,)
        rows, targets = np.asarray(x), _targets(rest[0], data, role) if rest else None
        if batched is None:
            alone = rows.ndim == 0 or (targets is not None and targets.ndim == 0)
            batched = not alone and _makes_rows(rows, specs, data, role, seconds)
        if not batched:
            rows, targets = rows[np.newaxis], None if targets is None else targets[np.newaxis]
        yield [rows], targets


def _makes_rows(
    rows: npt.NDArray[Any], specs: Sequence[TensorSpec], data: NamedData, role: str, seconds: float
) -> bool:
    """Whether ``preprocess`` makes of this a row for each of its rows; raw shapes say nothing of a batch dimension."""
    try:
        ((made, *_), _), *_ = _preprocessed([([rows], None)], data, specs, role, seconds)
    except (DataError, UserCodeError):
        return False
    return specs[0].shape == UNKNOWN_RANK or made.ndim == len(specs[0].shape)


def _iterable(data: NamedData, role: str) -> Callable[[], Iterable[Any]]:
    value = data.value
    if callable(value):

        def make() -> Iterable[Any]:
            made = value()
            if not isinstance(made, Iterable):
                raise TypeError(f"{data.name}() returned {type(made).__name__}; it must yield samples")
            return made

        return make
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return lambda: value
    raise DataError(
        f"{data.name} cannot be used for {role}",
        found=describe(value),
        wanted="arrays, a tf.data dataset, or a function that yields samples",
        cure="A representative dataset is a function: def representative_dataset(): yield [x[i:i+1]].",
    )


def _inputs(item: Any, specs: Sequence[TensorSpec], data: NamedData, role: str) -> list[npt.NDArray[Any]]:
    """Read one item of a representative dataset: a list in argument order, a dict by name, or the one array."""
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], Mapping):
        item = item[1]  # (signature, inputs), as TensorFlow's guide for several signatures writes it
    with contextlib.suppress(ValueError):  # lists whose rows differ in length are no arrays
        if isinstance(item, Mapping) and all(spec.name in item for spec in specs):
            return [np.asarray(item[spec.name]) for spec in specs]
        if isinstance(item, list | tuple) and len(item) == len(specs):
            return [np.asarray(array) for array in item]
        if len(specs) == 1 and is_array(item):
            return [np.asarray(item)]
    names = ", ".join(spec.name for spec in specs)
    found = f"a dict with {', '.join(map(str, item))}" if isinstance(item, Mapping) else f"a {type(item).__name__}"
    if isinstance(item, list | tuple):
        found += f" of {len(item)}"
    raise DataError(
        f"{data.name} cannot be used for {role}",
        found=f"{found} where one sample was expected",
        wanted=f"a list of {len(specs)} array{'s' * (len(specs) > 1)}, or a dict with {names}",
        cure="Yield a list, its arrays with a batch dimension: yield [x[i:i+1]].",
    )


def _element(element: Any, specs: Sequence[TensorSpec], data: NamedData, role: str, unbatched: bool) -> Block:
    """Read one element of a ``tf.data`` dataset: x, (x, y) or (x, y, weight), batched or not."""
    targets = None
    if isinstance(element, tuple) and not _is_inputs(element, specs):
        targets = _targets(element[1], data, role) if len(element) > 1 else None
        element = element[0]
    inputs = _inputs(element, specs, data, role)
    if unbatched:
        inputs = [array[np.newaxis] for array in inputs]
        targets = None if targets is None else np.asarray(targets)[np.newaxis]
    return inputs, targets


def _targets(labels: Any, data: NamedData, role: str) -> npt.NDArray[Any] | None:
    if not isinstance(labels, Mapping | tuple | list):
        return np.asarray(labels)
    if role == "calibration":
        return None
    raise DataError(
        f"the labels in {data.name} cannot be used for {role}",
        found=f"{len(labels)} of them for each sample",
        wanted="one",
        cure=f"Choose one: {data.name}.map(lambda x, y: (x, y[KEY])).",
    )


def _is_inputs(element: tuple[Any, ...], specs: Sequence[TensorSpec]) -> bool:
    """Tell (input, input) of a two-input model from (x, y)."""
    return len(element) == len(specs) and all(
        len(getattr(part, "shape", ())) in (len(spec.shape), len(spec.shape) - 1) and len(specs) > 1
        for part, spec in zip(element, specs, strict=True)
    )


def _is_unbatched(element_spec: Any, specs: Sequence[TensorSpec]) -> bool:
    first = element_spec
    if isinstance(first, tuple | list):
        first = first[0]
    if isinstance(first, Mapping):
        first = first.get(specs[0].name)
    if isinstance(first, tuple | list):
        first = first[0]
    rank = getattr(getattr(first, "shape", None), "rank", None)
    return rank is not None and rank == len(specs[0].shape) - 1


def element_shapes(dataset: Any, specs: Sequence[TensorSpec]) -> list[Any] | None:
    """Return the tensor specs a dataset gives for each input, or None when it does not give them."""
    spec = dataset.element_spec
    if isinstance(spec, tuple) and not _is_inputs(spec, specs):
        spec = spec[0]
    if isinstance(spec, Mapping):
        return [spec[s.name] for s in specs] if all(s.name in spec for s in specs) else None
    if isinstance(spec, list | tuple):
        return list(spec) if len(spec) == len(specs) else None
    return [spec] if len(specs) == 1 else None


def _fitting(
    array: npt.NDArray[Any], spec: TensorSpec, name: str, role: str, before: int, option: str
) -> npt.NDArray[Any]:
    """Check a block against an input and cast it as Keras would.

    Raises:
        DataError: It does not fit, or holds a value that is not finite.
    """
    shape = ", ".join("n" if size is None else str(size) for size in spec.shape)
    wanted = f"{spec.dtype}[{shape}] for input {spec.name}"
    found = f"{array.dtype.name}[{', '.join(map(str, array.shape))}]"
    known = spec.shape != UNKNOWN_RANK
    if known and (not fits((None, *array.shape[1:]), (None, *spec.shape[1:])) or array.ndim != len(spec.shape)):
        cure = f"Choose data that fits with {option} NAME."
        if array.ndim == len(spec.shape) - 1:
            cure = "Keep the batch dimension: yield [x[i:i+1]] and not [x[i]]."
            if fits((None, *array.shape[1:], 1), (None, *spec.shape[1:])):
                cure = f"Add the channel: {name}[..., None]."
        elif np.prod(array.shape[1:]) == np.prod([size or 1 for size in spec.shape[1:]]):
            inner = ", ".join(str(size or 1) for size in spec.shape[1:])
            cure = f"It has as many numbers: {name}.reshape(-1, {inner})."
        raise DataError(f"{name} cannot be used for {role}", found=found, wanted=wanted, cure=cure)
    if spec.is_text and array.dtype.kind in "SUO":
        texts = array.ravel().tolist()
        wrong = next((place for place, text in enumerate(texts) if not isinstance(text, str | bytes)), None)
        if wrong is not None:
            raise DataError(
                f"{name} cannot be used for {role}",
                found=f"{describe(texts[wrong])} in sample {before + wrong * len(array) // array.size}",
                wanted=f"texts for input {spec.name}",
                cure="Drop that sample, or write what is missing as an empty text.",
            )
        encoded = [text.encode() if isinstance(text, str) else text for text in texts]
        return np.array(encoded, np.bytes_).reshape(array.shape)
    if array.dtype.name != spec.dtype:
        if spec.is_text or not np.can_cast(array.dtype, spec.dtype, "same_kind"):
            raise DataError(
                f"{name} cannot be used for {role}",
                found=found,
                wanted=wanted,
                cure=f'Convert it if that keeps its meaning: .astype("{spec.dtype}").',
            )
        array = array.astype(spec.dtype)
    if np.issubdtype(array.dtype, np.floating):
        broken = np.flatnonzero(~np.isfinite(array).all(axis=tuple(range(1, array.ndim))))
        if len(broken):
            kind = "NaN" if np.isnan(array[broken[0]]).any() else "infinity"
            raise DataError(
                f"{name} cannot be used for {role}",
                found=f"{kind} in sample {before + int(broken[0])} (and {len(broken) - 1} more of these {len(array)})",
                wanted="finite numbers",
                cure="Look at how these samples were made; drop or repair them.",
            )
    return array


class _NpyStream:
    """Appends blocks to a ``.npy`` file whose length is known only at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")
        self._shape: tuple[int, ...] = ()
        self._dtype: np.dtype[Any] | None = None
        self._rows = 0
        self._texts: list[npt.NDArray[Any]] = []

    def append(self, block: npt.NDArray[Any]) -> None:
        if self._dtype is None:
            self._dtype, self._shape = block.dtype, block.shape[1:]
            self._header()
        elif block.shape[1:] != self._shape:
            raise DataError(
                "samples differ in shape",
                found=f"{list(block.shape[1:])} after {list(self._shape)}",
                wanted="one shape for all samples",
                cure="Pad or crop them to one shape.",
            )
        if block.dtype.kind == "S":
            self._texts.append(block)  # the longest string, known at the end, is the width of all
        else:
            np.ascontiguousarray(block).tofile(self._file)
        self._rows += len(block)

    def close(self) -> None:
        if self._texts:
            self._file.seek(0)
            self._file.truncate()
            np.save(self._file, np.concatenate(self._texts), allow_pickle=False)
        elif self._dtype is not None:
            self._file.seek(0)
            self._header()
        self._file.close()

    def _header(self) -> None:
        assert self._dtype is not None
        # numpy pads the header so that the first dimension may grow in place.
        description = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False}
        np.lib.format.write_array_header_1_0(self._file, {**description, "shape": (self._rows, *self._shape)})
