"""What is wrong with calibration data, seen before anything is measured: ranges are only as good as the samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.samples import SampleSet
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.evaluate.metrics import wilson
from tfdeploy_magic.evaluate.parity import predicted_class

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

LOST, SURE = 0.3, 4
"""When a trait of the test data is missing from calibration data, so that these look like random numbers.

They do with no more of it than chance gives, ``SURE`` standard deviations at most, where ``LOST`` of what the test data
have would be more than that. Measured on 33 sets (digits, photographs, four tables prepared in three ways, synthetic
ones with heavy tails, rare ones, clusters or trends): real samples were called random in none of 27,060 draws of 50 to
1,000 and in 5 of 12,240 of 10 or 20, class-ordered ones in none of 15,060, and ones of a single class in none of
12,168. ``rand``, ``randn`` and bytes were found in all draws of 50 for digits and photographs and in 80% or more for
tables; not where real features are whitened, nor where noise has each feature's own range. ``rand`` cost two digits
CNNs 17 and 15 dB SNR with 0.2% of the top classes; for tables noise cost 0 to 42 dB.
"""

ONE_CLASS, UNLIKELY = 0.95, 1e-6
"""When calibration samples are of one class: this share of them is, which random test samples would be this unlikely.

Measured with samples of one class against as many of all (100, of small tables 30; medians of six draws): of two
networks with logits one has 20 to 26 dB SNR in place of 34 (digits), the other 15 to 40 in place of 30 (tumours, two
classes); five with a softmax lose 0 to 16 dB.
"""

DISAGREE = 0.005
"""How far the ranges of two halves may lie apart, a share of their width, for each sample.

Each further sample widens the ranges by roughly that much. Chosen on eight networks (two of digits, six of tables) and
measured on the same trained anew on another split, 20 draws each: none of 260 sets of 100 or 200 samples is above it,
7% of 50, 45% of 20, 79% of 10 and 99% of 5. With 10 or more, sets above it cost 6 dB SNR in the median and the others
0.3. As a test for sets that cost over 10 dB and not under 3 its ROC area is 0.88; the number of samples alone has 0.86,
the disagreement not divided by it 0.77.
"""

DISAGREES = 0.2
"""A tensor is counted when the halves disagree on more of its range than this."""

AGREEING = 0.8
"""The share of tensors, those that disagree least, that is looked at: the range of one with outliers never settles."""

Extent = tuple[float, float]

_BLOCK_VALUES = 1 << 20
_MOST_ROWS, _MOST_FEATURES, _NEIGHBOURS, _MOST_COLOURS = 1000, 64, 4, 4
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
        *(_noise(calibration, test) if test is not None else ()),
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


def one_class(predicted_calibration: Arrays, predicted_test: Arrays, classifier: bool) -> tuple[Finding, ...]:
    """Find outputs that take nearly all calibration samples for one class, as the first rows of sorted data are.

    Args:
        predicted_calibration: Output name -> the source model's ``[count, ...]`` for the calibration samples.
        predicted_test: The same for the test samples.
        classifier: Whether the outputs are known to score classes; see :func:`parity.predicted_class`.
    """
    findings = []
    for name, scores in predicted_calibration.items():
        calibrated = predicted_class(scores, classifier=classifier)
        tested = predicted_class(predicted_test[name], classifier=classifier)
        if calibrated is None or tested is None:
            continue
        top = int(np.bincount(calibrated).argmax())
        many, share = int(np.count_nonzero(calibrated == top)), float(np.mean(tested == top))
        if many >= ONE_CLASS * len(calibrated) and _chance(many, len(calibrated), share, len(tested)) < UNLIKELY:
            findings.append(
                Finding(
                    "warning",
                    "one-class-calibration",
                    f"output {name} takes {many} of {len(calibrated)} calibration samples for class {top}, but only "
                    f"{share:.1%} of the test samples",
                    "Draw them from all classes: for i in np.random.permutation(len(x_train))[:100].",
                )
            )
    return tuple(findings)


def halves(first: Mapping[str, Extent], second: Mapping[str, Extent], count: int) -> tuple[Finding, ...]:
    """Find ranges that have not settled: calibrating on either half of the samples gives others.

    Args:
        first: Tensor name -> lowest and highest value that one half of the samples gave.
        second: The same of the other half, which shares no sample with the first.
        count: How many samples both halves have together.
    """
    apart = {name: _apart(first[name], second[name]) for name in first.keys() & second.keys()}
    ordered = sorted(apart, key=lambda name: (-apart[name], name))
    if not ordered:
        return ()
    kept = ordered[len(ordered) - math.ceil(AGREEING * len(ordered)) :]
    disagreement = sum(apart[name] for name in kept) / len(kept)
    if disagreement <= DISAGREE * count:
        return ()
    far = sum(share > DISAGREES for share in apart.values())
    worst = ordered[0]
    return (
        Finding(
            "warning",
            "unsettled-calibration",
            f"either half of the {count} calibration samples gives other ranges, {disagreement:.0%} of their width "
            f"apart: {far} of {len(apart)} tensors by more than {DISAGREES:.0%}, {_short(worst)} by {apart[worst]:.0%}",
            f"Grow it: --samples {max(100, 2 * count)}.",
        ),
    )


def _short(tensor: str) -> str:
    """Return the first of the operations that a tensor's name lists when they were fused."""
    return tensor.partition(";")[0]


def _apart(first: Extent, second: Extent) -> float:
    """Return the share of two ranges' common width that only one of them has; both hold 0, as quantized ones do."""
    lows, highs = [min(low, 0.0) for low, _ in (first, second)], [max(high, 0.0) for _, high in (first, second)]
    width = max(highs) - min(lows)
    return 1 - (min(highs) - max(lows)) / width if width > 0 else 0.0


def _chance(many: int, count: int, share: float, tested: int) -> float:
    """Return Chernoff's bound on the probability that ``many`` of ``count`` random test samples are of a class.

    Args:
        many: How many calibration samples are of the class.
        count: How many there are.
        share: Of the test samples, that are of the class.
        tested: How many test samples there are.
    """
    seen, shown = many / count, wilson(share, tested)[1]
    if seen <= shown:
        return 1.0
    divergence = seen * math.log(seen / shown)
    if many < count:
        divergence += (1 - seen) * math.log((1 - seen) / (1 - shown))
    return math.exp(-count * divergence)


@dataclass(frozen=True)
class _Trait:
    """Something that real features have and random numbers do not.

    Args:
        size: How much of it samples have; 0 in the mean of random ones.
        chance: The standard deviation of that in random ones.
    """

    size: float
    chance: float

    @property
    def missing(self) -> bool:
        return self.size < SURE * self.chance

    def shows_in(self, others: _Trait) -> bool:
        """Whether others, had they as much of it, would surely not miss it."""
        return LOST * self.size > SURE * max(self.chance, others.chance)


def _noise(calibration: SampleSet, test: SampleSet) -> Iterator[Finding]:
    """Look for inputs whose calibration samples are independent and identically distributed, their test data not.

    Comparing the means of features would do for that if class-ordered data, which are real, did not differ in them too.
    """
    tested = test.open()
    for name, values in calibration.open().items():
        if name not in tested or not np.issubdtype(values.dtype, np.floating):
            continue
        # Below ten samples ranks say nothing, and their number is a finding by itself.
        if values.shape[1:] != tested[name].shape[1:] or min(calibration.count, test.count) < FEW_SAMPLES:
            continue
        features, colours = _features(values.shape[1:])
        seen, shown = _some_rows(values, features), _some_rows(tested[name], features)
        varying = (np.ptp(seen, axis=0) > 0) & (np.ptp(shown, axis=0) > 0)
        if np.count_nonzero(varying) < 2:
            continue
        found = _traits(seen[:, varying], colours[varying])
        expected = _traits(shown[:, varying], colours[varying])
        if all(trait.missing for trait in found) and any(map(_Trait.shows_in, expected, found)):
            yield Finding(
                "warning",
                "random-calibration",
                f"the calibration samples of input {name} look like random numbers: its features are alike and "
                "independent of each other, those of the test samples are not",
                "Calibrate on real samples, some of the training data: --calib x_train.",
            )


def _features(shape: tuple[int, ...]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Choose features of a sample by their position, neighbours among them, and say which colour each is of."""
    count = math.prod(shape)
    chosen = np.arange(count)
    if count > _MOST_FEATURES:
        starts = np.linspace(0, count - _NEIGHBOURS, _MOST_FEATURES // _NEIGHBOURS).astype(np.intp)
        chosen = np.unique(starts[:, None] + np.arange(_NEIGHBOURS))
    # Noise whose colours were each normalized is still noise.
    coloured = len(shape) > 1 and shape[-1] <= _MOST_COLOURS
    return chosen, chosen % shape[-1] if coloured else np.zeros_like(chosen)


def _some_rows(values: npt.NDArray[Any], features: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    rows = np.linspace(0, len(values) - 1, min(len(values), _MOST_ROWS)).astype(np.intp)
    flat = values.reshape(len(values), -1)
    return np.asarray(flat[np.ix_(rows, features)], dtype=np.float64)


def _traits(samples: npt.NDArray[np.float64], colours: npt.NDArray[np.intp]) -> tuple[_Trait, _Trait]:
    """Measure how far features go together, and how far they differ from others of their colour.

    Both are of ranks, which heavy tails do not disturb: the mean square of Spearman's correlation of two features, and
    the variance between features (Kruskal and Wallis, 1952), of their location or of their spread.

    Args:
        samples: ``[count, features]``, each feature with two values at least.
        colours: ``[features]``.
    """
    count, features = samples.shape
    correlations = np.asarray(np.corrcoef(np.stack([_ranks(column) for column in samples.T])))
    together = correlations[np.triu_indices(features, 1)]
    ranks = np.empty_like(samples)
    for colour in np.unique(colours):
        ranks[:, colours == colour] = _ranks(samples[:, colours == colour])
    unlike = max(_between(ranks, colours), _between(np.abs(ranks), colours))
    return (
        _Trait(float(np.mean(together**2)) - 1 / (count - 1), math.sqrt(2 / len(together)) / (count - 1)),
        _Trait(unlike - 1 / count, math.sqrt(2 / features) / count),
    )


def _between(ranks: npt.NDArray[np.float64], colours: npt.NDArray[np.intp]) -> float:
    """Return the variance of the features' means within their colour, in variances within a feature."""
    means = ranks.mean(axis=0)
    for colour in np.unique(colours):
        means[colours == colour] -= means[colours == colour].mean()
    within = float(ranks.var(axis=0).mean())
    return float(np.mean(means**2)) / within if within else 0.0


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return ranks about their mean; equal values share one."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(ranks[inverse].reshape(values.shape) - (values.size + 1) / 2)


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
