"""Task metrics: what a model is for, measured on labelled samples, with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.evidence import Score
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.errors import DataError, NameNotFound
from tfdeploy_magic.jobs import deadline

Z95 = 1.959964
"""Two-sided 95% point of the normal distribution."""

PerSample = Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[Any]]


@dataclass(frozen=True)
class Metric:
    """A task metric that is a mean over samples, and so has an interval.

    Args:
        name: What ``--metric`` calls it.
        per_sample: (labels ``[count, ...]``, output ``[count, ...]``) -> ``[count]``.
        higher_is_better: Whether a drop is bad.
    """

    name: str
    per_sample: PerSample
    higher_is_better: bool = True


METRICS: dict[str, Metric] = {}
"""Every metric ``--metric`` knows by name."""


def metric(name: str, *, higher_is_better: bool = True) -> Callable[[PerSample], PerSample]:
    """Register a per-sample function as a metric."""

    def register(per_sample: PerSample) -> PerSample:
        METRICS[name] = Metric(name, per_sample, higher_is_better)
        return per_sample

    return register


@metric("accuracy")
def correct(labels: npt.NDArray[Any], output: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """1.0 where the top class is the label; one output a sample is read as the probability of class 1."""
    return np.asarray(_classes(labels, output) == top_class(output), dtype=float)


@metric("top_5_accuracy")
def correct_in_five(labels: npt.NDArray[Any], output: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """1.0 where the label is among the five top classes."""
    top = np.argsort(output, axis=1)[:, -5:]
    return np.asarray(np.any(top == _classes(labels, output)[:, None], axis=1), dtype=float)


@metric("mae", higher_is_better=False)
def absolute_error(labels: npt.NDArray[Any], output: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Mean absolute error of each sample."""
    return _by_sample(np.abs(np.reshape(labels, output.shape) - output))


@metric("mse", higher_is_better=False)
def squared_error(labels: npt.NDArray[Any], output: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Mean squared error of each sample."""
    return _by_sample((np.reshape(labels, output.shape) - output) ** 2)


def top_class(output: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the predicted class of each sample; one column is a probability, or a logit where it leaves 0 to 1."""
    if output.shape[1] > 1:
        return np.asarray(np.argmax(output, axis=1))
    threshold = 0.5 if output.min() >= 0 and output.max() <= 1 else 0.0
    return np.asarray(output[:, 0] > threshold, dtype=int)


def default_metric(labels: npt.NDArray[Any], outputs: Arrays) -> Metric | None:
    """Return accuracy when the labels are classes and the one output scores them, else None."""
    if len(outputs) != 1:
        return None
    output = next(iter(outputs.values()))
    if output.ndim != 2 or not np.issubdtype(output.dtype, np.floating):
        return None
    classes = max(output.shape[1], 2)
    if labels.shape == output.shape and output.shape[1] > 1:
        one_hot = np.all((labels == 0) | (labels == 1)) and np.all(labels.sum(axis=1) == 1)
        return METRICS["accuracy"] if one_hot else None
    flat = labels.reshape(len(labels), -1)
    whole = flat.shape[1] == 1 and np.issubdtype(labels.dtype, np.number) and np.all(flat == np.round(flat))
    return METRICS["accuracy"] if whole and flat.min() >= 0 and flat.max() < classes else None


def named_metric(name: str) -> Metric:
    """Look a metric up.

    Raises:
        NameNotFound: There is none of that name.
    """
    if name not in METRICS:
        raise NameNotFound(
            f"there is no metric '{name}'",
            found=f"'{name}'",
            wanted=f"one of {', '.join(METRICS)}, or a function metric(labels, output)",
            cure="Define the function in a cell and name it with --metric.",
        )
    return METRICS[name]


def score(chosen: Metric, labels: npt.NDArray[Any], outputs: Arrays) -> tuple[Score, npt.NDArray[Any]]:
    """Return the metric with its 95% interval, and its value for each sample.

    The interval is Wilson's for shares (Wilson 1927) and the normal approximation for means.

    Raises:
        DataError: The labels do not fit the output.
    """
    output = next(iter(outputs.values()))
    try:
        values = chosen.per_sample(labels, output)
    except (ValueError, IndexError, TypeError) as error:
        raise DataError(
            f"{chosen.name} cannot be computed",
            found=f"labels {labels.dtype.name}{list(labels.shape)} for an output {list(output.shape)}",
            wanted="labels that fit the output",
            cure="Name the labels with --test x,y, or give a function: --metric NAME.",
        ) from error
    mean, n = float(values.mean()), len(values)
    if np.all((values == 0) | (values == 1)):
        return Score(mean, *wilson(mean, n)), values
    half = Z95 * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return Score(mean, mean - half, mean + half), values


def custom_score(
    function: Callable[..., Any], name: str, labels: npt.NDArray[Any], outputs: Arrays, *, seconds: float
) -> Score:
    """Return what the person's ``metric(labels, output)`` says; the output is a dict when there are several.

    Raises:
        UserCodeError: It raised or hung.
        DataError: It did not return one finite number.
    """
    output = next(iter(outputs.values())) if len(outputs) == 1 else outputs
    answer = deadline.call(lambda: function(labels, output), seconds=seconds, what=f"the metric {name}")
    value = as_array(answer)
    if value.size != 1 or value.dtype.kind not in "iuf" or not np.isfinite(value).all():
        raise DataError(
            f"the metric {name} is of no use",
            found=f"{value.dtype.name}{list(value.shape)}" if value.size != 1 else str(value.item()),
            wanted="one finite number",
            cure=f"Make {name}(labels, output) return one.",
        )
    return Score(float(value.item()))


def as_array(answer: Any) -> npt.NDArray[Any]:
    """Return whatever a person's function gave as an array, if need be of objects."""
    try:
        return np.asarray(answer)
    except ValueError:  # rows of different length
        return np.asarray(answer, dtype=object)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return the 95% interval of a share seen in ``n`` samples (Wilson 1927)."""
    center = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
    return max(0.0, center - half), min(1.0, center + half)


def mcnemar(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> float:
    """Return the exact two-sided p-value that two models are right equally often on the same samples (McNemar 1947).

    Args:
        before: ``[count]`` of 1.0 where the first model is right.
        after: The same for the second.
    """
    worse = int(np.sum((before == 1) & (after == 0)))
    better = int(np.sum((before == 0) & (after == 1)))
    n = worse + better
    tail = sum(math.comb(n, k) for k in range(min(worse, better) + 1))
    return float(min(1.0, 2 * tail / 2**n))


def fall(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> tuple[float, float, float]:
    """Return how much a mean over the same samples fell, and the 95% interval of that.

    For values of 0 and 1 the interval is Wald's with half a sample added to each cell of the table of who was right
    (Agresti and Min 2005), which stays honest where the two never differ; for others the normal approximation.

    Args:
        before: ``[count]``, the first model's value for each sample.
        after: ``[count]``, the second's.
    """
    difference = np.asarray(before, np.float64) - np.asarray(after, np.float64)
    n, mean = len(difference), float(difference.mean())
    if np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all():
        worse, better = float(np.sum(difference > 0)) + 0.5, float(np.sum(difference < 0)) + 0.5
        middle = (worse - better) / (n + 2)
        half = Z95 * math.sqrt(max(worse + better - (worse - better) ** 2 / (n + 2), 0.0)) / (n + 2)
        return mean, min(middle - half, mean), max(middle + half, mean)
    half = Z95 * float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return mean, mean - half, mean + half


def samples_to_show(drop: float) -> int:
    """Return how many samples it takes to show that a share fell by less than ``drop``, 0 to 1.

    Fewer cannot: even where all of them are answered alike, a share of ``drop`` may yet be answered otherwise, at 95%
    (Clopper and Pearson 1934; for small drops the rule of three).
    """
    return math.ceil(math.log(0.05) / math.log1p(-drop))


def _classes(labels: npt.NDArray[Any], output: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if labels.shape == output.shape and output.shape[1] > 1:
        return np.asarray(np.argmax(labels, axis=1))
    return np.reshape(labels, len(output))


def _by_sample(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(values.reshape(len(values), -1).mean(axis=1))
