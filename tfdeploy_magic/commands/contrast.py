"""Where the two quantization engines differ on one model, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from tfdeploy_magic.artifacts.comparison import Contrast, Row
from tfdeploy_magic.artifacts.schemes import RULES, SCHEMES, Variant
from tfdeploy_magic.commands.matrix import Matrix
from tfdeploy_magic.evaluate import parity
from tfdeploy_magic.quantization import litert
from tfdeploy_magic.views import words

TWINS = (("dynamic", "dynamic_wi8"), ("int8", "static_wi8_ai8"), ("int16x8", "static_wi8_ai16"))
"""What the two engines call the same scheme."""

_RULES = {
    "true_min_max": "TensorFlow's calibrator looks at some only after an operator has overwritten them in place, and "
    "finds them too wide",
    "moving_average": "litert-quantizer by itself takes a 0.95 moving average over the samples where TensorFlow takes "
    "the widest seen, so that large values are cut off",
}
"""Why a rule finds other ranges than TensorFlow."""


def contrasts(matrix: Matrix) -> Iterator[Contrast]:
    """Compare what the two engines made of the same scheme, as far as both did."""
    for ours, theirs in TWINS:
        for variant in (Variant(theirs, range_rule=rule) for rule in RULES):
            first, second = matrix.row(ours), matrix.row(variant.label)
            if first is None or second is None or not (first.evidence.measured and second.evidence.measured):
                continue
            found = parity.compare(
                matrix.answers(ours),
                matrix.answers(variant.label),
                classifier=first.evidence.agreement is not None,
            )
            ranges = _ranges_compared(matrix, variant) if SCHEMES[theirs].calibrated else None
            why = _why(first, second, variant, ranges, found.snr_db)
            yield Contrast(ours, variant.label, found.snr_db, found.agreement, ranges, why)


def _ranges_compared(matrix: Matrix, variant: Variant) -> tuple[int, int]:
    maker = matrix.one.maker
    return litert.differing(maker.ranges("min_max"), maker.ranges(variant.range_rule))


def _why(first: Row, second: Row, variant: Variant, ranges: tuple[int, int] | None, snr_db: float) -> str:
    if math.isinf(snr_db) and snr_db > 0:
        return "Nothing differs: every answer is the same."
    if ranges is not None and variant.range_rule in _RULES and ranges[0]:
        return f"{ranges[0]} of {ranges[1]} tensors get another range: {_RULES[variant.range_rule]}."
    if ranges is not None:
        same = (
            "the same ranges"
            if variant.range_rule == "min_max"
            else "ranges that differ by less than a quarter of a step"
        )
        return f"Both use {same}; what is left is how each rounds."
    stored = [_in_8_bits(row.file.weights) for row in (first, second)]
    if stored[0] != stored[1]:
        ours, theirs = map(words.size, stored)
        return (
            f"TensorFlow stores {ours} of weights in 8 bits, litert-quantizer {theirs}: TensorFlow leaves tensors of "
            "fewer than 1,024 weights in float."
        )
    return "Both store the same weights in 8 bits; what is left is how each rounds."


def _in_8_bits(weights: Mapping[str, int]) -> int:
    return weights.get("int8", 0)
