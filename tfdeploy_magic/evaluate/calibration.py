"""What is wrong with calibration data, seen before anything is measured: ranges are only as good as the samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.samples import SampleSet

FEW_SAMPLES = 10
"""Fewer samples than this are a warning.

Measured on the digits CNN over ten draws: one sample gives int8 files of 5 to 38 dB SNR, three 31 dB or more, ten 37 dB
or more, a hundred 39 dB.
"""

OFTEN_REPEATED = 0.5
"""A larger share of samples that repeat an earlier one is a warning."""

CUT, DEEP_CUT = 0.2, 0.5
"""How much of the test data may be cut off: root mean square of what is, in standard deviations of the test data.

Measured with int8 files: the digits CNN calibrated on 0.8 x has a cut of 0.18, 19 dB SNR and agrees with its source on
98.0% of the samples; on 0.7 x 0.29, 14 dB, 95.9%; on 0.5 x 0.54, 7 dB, 92.0%; on 0.3 x 0.81, 2 dB, 67.8%. Above 0.5
classifiers of two tables had 2 to 12 dB and agreed on 60% to 96%. It was below 0.16 in 4,000 draws of 100 real samples.
"""

COARSE, TOO_COARSE = 32, 4
"""How many steps of the input's scale the test data should span at least, of 256 in int8.

Measured: 32 steps (calibrated on 8 x) leave the digits CNN 20 dB SNR and 97.2% agreement, 16 steps 14 dB and 91.5%,
8 steps 1 dB and 26.5%; at 4 steps no model of four had more than 8 dB. int16x8 had 32 dB on 255 x, 257 steps.
"""

Extent = tuple[float, float]

_BLOCK_VALUES = 1 << 20
_SAME_PREPARATION = "Prepare calibration data as the model's inputs are prepared, and draw it from the same source."


def check(calibration: SampleSet | None, test: SampleSet | None, *, bits: int = 8) -> tuple[Finding, ...]:
    """Find everything about calibration data that makes the ranges it gave doubtful.

    Args:
        calibration: The samples that calibrated the file, at least one; None when none were needed.
        test: The samples that tested it; None leaves out what only they can show.
        bits: Of the activations: 8 for int8, 16 for int16x8.
    """
    if calibration is None:
        return ()
    return (
        *_repetition(calibration),
        *_ranges(calibration, test, bits),
        *_few(calibration),
        *(overlap(calibration, test) if test is not None else ()),
    )


def overlap(calibration: SampleSet | None, test: SampleSet) -> tuple[Finding, ...]:
    """Find test samples that also calibrated the file: on those it was not tested but tuned."""
    if calibration is None:
        return ()
    seen = set(calibration.row_digests())
    shared = sum(digest in seen for digest in test.row_digests())
    if not shared:
        return ()
    return (
        Finding(
            "error" if shared / test.count > 0.05 else "warning",
            "calibration-test-overlap",
            f"{shared} of {test.count} test samples also calibrated the file",
            "Keep them apart: --calib x_train --test x_test,y_test.",
        ),
    )


def _few(calibration: SampleSet) -> Iterator[Finding]:
    if calibration.count < FEW_SAMPLES:
        yield Finding(
            "warning",
            "few-calibration-samples",
            f"only {calibration.count} sample{'s' * (calibration.count > 1)} calibrated the file; fewer than "
            f"{FEW_SAMPLES} leave its ranges to chance",
            "Give more: --calib NAME --samples 100.",
        )


def _repetition(calibration: SampleSet) -> Iterator[Finding]:
    count, distinct = calibration.count, len(set(calibration.row_digests()))
    if distinct == 1 < count:
        yield Finding(
            "error",
            "repeated-calibration",
            f"all {count} calibration samples are one and the same",
            "Yield another sample each time: for i in range(100): yield [x[i:i+1]].",
        )
    elif count - distinct > OFTEN_REPEATED * count:
        yield Finding(
            "warning",
            "repeated-calibration",
            f"{count - distinct} of {count} calibration samples repeat an earlier one",
            "Draw them without replacement: one that is seen twice widens no range.",
        )


def _ranges(calibration: SampleSet, test: SampleSet | None, bits: int) -> Iterator[Finding]:
    """Look at each floating-point input; token ids, masks and strings are not calibrated."""
    tested = test.open() if test is not None else {}
    for name, values in calibration.open().items():
        if not np.issubdtype(values.dtype, np.floating):
            continue
        low, high = _extent(values)
        shown = _extent(tested[name]) if name in tested else None
        # An input that is one number other than 0 wherever it is seen, such as a temperature, may well mean to be.
        if low == high and (low == 0 or (low, high) != shown):
            yield Finding(
                "warning" if low else "error",
                "constant-calibration",
                f"every calibration sample is the constant {low:g} in input {name}",
                "Calibrate on some of the data the model will see: --calib x_train.",
            )
        if shown is not None and (low or high):
            yield from _compared(name, (low, high), shown, tested[name], bits)


def _compared(name: str, seen: Extent, shown: Extent, values: npt.NDArray[Any], bits: int) -> Iterator[Finding]:
    # A quantized range always holds 0, so that padding is exact.
    low, high = min(seen[0], 0.0), max(seen[1], 0.0)
    span = max(shown[1], 0.0) - min(shown[0], 0.0)
    outside, cut = _cut(values, low, high)
    if cut > CUT:
        yield Finding(
            "error" if cut > DEEP_CUT else "warning",
            "calibration-too-narrow",
            f"{outside:.1%} of the test values of input {name} lie outside the calibrated range, {low:g} to {high:g}, "
            f"and are cut off: they reach from {shown[0]:g} to {shown[1]:g}",
            _SAME_PREPARATION,
        )
    steps = 2**bits * span / (high - low)
    if 0 < steps < COARSE:
        yield Finding(
            "error" if steps <= TOO_COARSE else "warning",
            "calibration-too-wide",
            f"the test values of input {name}, {shown[0]:g} to {shown[1]:g}, span {max(steps, 1):.0f} of the {2**bits} "
            f"steps between {low:g} and {high:g}, the calibrated range",
            _SAME_PREPARATION,
        )


def _extent(values: npt.NDArray[Any]) -> Extent:
    """Return the lowest and the highest value."""
    extents = [(block.min(), block.max()) for block in _blocks(values)]
    return float(min(low for low, _ in extents)), float(max(high for _, high in extents))


def _cut(values: npt.NDArray[Any], low: float, high: float) -> tuple[float, float]:
    """Return the share of values outside a range, and the root mean square of the excess in standard deviations."""
    # Sums about one of the values keep their digits where values are large and close together.
    middle = float(values.flat[0])
    outside, total, squares, excess = 0, 0.0, 0.0, 0.0
    for block in _blocks(values):
        block = block.astype(np.float64)
        beyond = block - np.clip(block, low, high)
        outside += int(np.count_nonzero(beyond))
        excess += float(np.square(beyond).sum())
        block -= middle
        total += float(block.sum())
        squares += float(np.square(block).sum())
    # Values that are all the same have no deviation; their size says then how much it is to miss them.
    variance = (squares - total**2 / values.size) or values.size * middle**2
    return outside / values.size, float(np.sqrt(excess / variance)) if excess else 0.0


def _blocks(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield a memory-mapped array some rows at a time: a whole one may not fit into memory."""
    rows = max(1, _BLOCK_VALUES // max(1, values[:1].size))
    for start in range(0, len(values), rows):
        yield np.asarray(values[start : start + rows])
