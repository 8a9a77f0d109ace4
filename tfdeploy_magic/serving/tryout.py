"""Finding out what a model's signatures are like before they are served: how long they take, and on what they depend.

They are asked about numbers made up here. Nothing is concluded from the answers but whether a row is answered together
with others as it is alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.signature import DEFAULT_SIGNATURE, Arrays
from tfdeploy_magic.serving.calls import Call
from tfdeploy_magic.serving.status import Refusal

SHORT_SECONDS = 0.001
"""A call that takes less is answered where it arrives: handing it to a thread and back costs as much."""

PATIENCE_SECONDS = 0.5
"""A model whose signatures take longer to try out than this is served with the rest of them untried."""

MOST_NUMBERS = 1 << 16
"""Longer calls are not tried; reading and writing them takes longer than a thread's hand-over anyway."""

MOST_OF_A_ROW = 10_000_000
"""A signature whose rows hold more numbers is not tried out."""

SCALES = (1.0, -0.01, 30.0, -1000.0)
"""Sizes of the numbers in the rows that are asked about: what clips, sorts or masks a batch shows at one of them."""

_log = logging.getLogger(__name__)

Run = Callable[..., Arrays]
"""``Engine.run``."""


@dataclass(frozen=True)
class Trial:
    """What a signature is like.

    Args:
        short: How many numbers a call may hold to be answered where it arrives; None where none should be.
        independent: Whether rows are answered together as they are alone, as far as is known.
    """

    short: int | None = None
    independent: bool = False


def try_out(signatures: Mapping[str, Any], run: Run, *, loops: bool = False) -> dict[str, Trial]:
    """Try each signature that takes numbers.

    Args:
        signatures: Key -> ``SignatureDef``.
        run: Answers a call, ``here=True`` in this thread; raises Refusal.
        loops: Whether a call that is short for these numbers may be long for others: none is then called short.
    """
    ends = time.monotonic() + PATIENCE_SECONDS
    tried = {}
    for key in sorted(signatures, key=lambda key: key != DEFAULT_SIGNATURE):
        tried[key] = _tried(key, signatures[key], run, loops) if time.monotonic() < ends else Trial()
    return tried


def _tried(key: str, signature: Any, run: Run, loops: bool) -> Trial:
    outputs = tuple(signature.outputs)
    if not _can_be_made_up(signature):
        return Trial()
    row = Call(key, _made_up(signature), outputs)
    try:
        run(row)  # the first is never like the others
        began = time.perf_counter()
        run(row)
        taken = time.perf_counter() - began
    except Refusal as refusal:  # numbers made up may be none that it takes
        _log.debug("signature %s was not tried out: %s", key, refusal)
        return Trial()
    short = None
    if not loops and taken < 10 * SHORT_SECONDS:  # to get ready for calls in this thread takes time, too
        short = _short(signature, lambda inputs: run(Call(key, inputs, outputs), here=True))
    try:
        return Trial(short, _rows_are_open(signature) and _independent(key, signature, run))
    except Refusal:
        return Trial(short)


def _short(signature: Any, run: Callable[[Arrays], Arrays]) -> int | None:
    """Return how many numbers a call may hold to be short, by asking longer and longer ones.

    Rows grow where they can, for what grows faster than they do (attention); else there are more of them.
    """
    longer_rows = any(dim.size < 0 for info in signature.inputs.values() for dim in info.tensor_shape.dim[1:])
    most, size = None, 1
    while True:
        inputs = _made_up(signature, inner=size) if longer_rows else _made_up(signature, rows=size)
        numbers = sum(array.size for array in inputs.values())
        try:
            if numbers == most or _seconds(run, inputs) > SHORT_SECONDS:
                return most
        except Refusal:
            return most
        most, size = numbers, 2 * size
        if most > MOST_NUMBERS:
            return most


def _seconds(run: Callable[[Arrays], Arrays], inputs: Arrays) -> float:
    """Return how long a call takes where nothing else goes on."""
    run(inputs)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        run(inputs)
        best = min(best, time.perf_counter() - began)
        if best > 10 * SHORT_SECONDS:
            break
    return best


def _independent(key: str, signature: Any, run: Run) -> bool:
    """Whether rows are answered the same alone, together, and in another order."""
    outputs = tuple(signature.outputs)
    rows = [_made_up(signature, inner=3, scale=scale, seed=seed) for seed, scale in enumerate(SCALES)]
    alone = [run(Call(key, row, outputs)) for row in rows]
    for order in (range(len(rows)), range(len(rows))[::-1]):
        together = {name: np.concatenate([rows[at][name] for at in order]) for name in rows[0]}
        if not _same(run(Call(key, together, outputs)), [alone[at] for at in order]):
            return False
    return True


def _same(together: Arrays, alone: Sequence[Arrays]) -> bool:
    return all(
        answers.shape == (len(alone), *alone[0][name].shape[1:])
        and all(
            row[name].shape == alone[0][name].shape and _close(answers[at], row[name][0])
            for at, row in enumerate(alone)
        )
        for name, answers in together.items()
    )


def _close(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether numbers differ by no more than the order in which a sum is taken explains."""
    if one.dtype == object or np.issubdtype(one.dtype, np.integer) or one.dtype == bool:
        return bool(np.array_equal(one, other))
    wide = np.complex128 if one.dtype.kind == "c" else np.float64
    share = 1e-2 if one.dtype.itemsize <= 2 else 2e-5
    wider = np.asarray(other, wide)
    largest = float(np.max(np.abs(wider), initial=0.0, where=np.isfinite(wider)))
    return bool(np.allclose(np.asarray(one, wide), wider, rtol=0.0, atol=share * largest, equal_nan=True))


def _rows_are_open(signature: Any) -> bool:
    """Whether every input and output says that it takes any number of rows."""
    infos = (*signature.inputs.values(), *signature.outputs.values())
    return bool(signature.inputs) and all(
        not info.tensor_shape.unknown_rank and info.tensor_shape.dim and info.tensor_shape.dim[0].size < 0
        for info in infos
    )


def _can_be_made_up(signature: Any) -> bool:
    """Whether numbers are all it takes, and a row of them is no monster."""
    return all(
        _dtype(info) is not None
        and not info.tensor_shape.unknown_rank
        and np.prod(_shape(info, 1, 1), dtype=float) <= MOST_OF_A_ROW
        for info in signature.inputs.values()
    )


def _made_up(signature: Any, rows: int = 1, inner: int = 1, scale: float = 1.0, seed: int = 0) -> Arrays:
    """Return numbers for a signature's inputs.

    Args:
        signature: One that takes numbers only.
        rows: The size of a first dimension that is open.
        inner: The size of any other dimension that is open.
        scale: The size and sign of floats; integers are 0 or 1, which number something in any vocabulary, but those of
            8 bits, which are pixels, are any.
        seed: Of the numbers.
    """
    draw = np.random.default_rng(seed)
    made = {}
    for name, info in signature.inputs.items():
        dtype, shape = _dtype(info), _shape(info, rows, inner)
        if dtype.is_floating:
            values: npt.NDArray[Any] = scale * (1 + draw.standard_normal(shape))
        elif dtype.is_integer and dtype.size == 1 and seed > 1:
            values = draw.integers(dtype.min, dtype.max, shape, endpoint=True)
        else:
            values = np.full(shape, seed) if seed < 2 else draw.integers(0, 2, shape)
        made[name] = np.asarray(values).astype(dtype.as_numpy_dtype)
    return made


def _shape(info: Any, rows: int, inner: int) -> list[int]:
    sizes = [dim.size for dim in info.tensor_shape.dim]
    return [size if size >= 0 else inner if at else rows for at, size in enumerate(sizes)]


def _dtype(info: Any) -> Any:
    """Return the dtype of an input that takes numbers; None of any other."""
    import tensorflow as tf

    if not info.name or not info.dtype:
        return None  # a sparse or composite tensor is several
    dtype = tf.dtypes.as_dtype(info.dtype)
    return dtype if dtype.is_floating or dtype.is_integer or dtype.is_bool else None
