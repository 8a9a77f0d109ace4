"""How far the answers of a converted model are from those of its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.signature import Arrays


@dataclass(frozen=True)
class Parity:
    """The distance between two sets of answers to the same samples.

    Args:
        n: Samples.
        snr_db: 10 log10(sum(reference^2) / sum((reference - answer)^2)), dB, of the worst output; infinite when equal.
        agreement: Share of samples with the same top class; None when no output is a class score.
        mean_abs_error: Mean absolute difference over all outputs.
        max_abs_error: Largest absolute difference.
        finite: Whether every answer is finite.
    """

    n: int
    snr_db: float
    agreement: float | None
    mean_abs_error: float
    max_abs_error: float
    finite: bool


def compare(reference: Arrays, answers: Arrays, *, classifier: bool = False) -> Parity:
    """Compare answers output by output.

    Args:
        reference: Output name -> the source model's ``[count, ...]``.
        answers: The same from the converted model.
        classifier: Whether the outputs are known to score classes; otherwise only rows that sum to 1 are taken to.
    """
    snr, absolute, agreements = [], [], []
    finite = True
    for name, expected in reference.items():
        wanted, got = _numbers(expected, answers[name])
        finite = finite and bool(np.isfinite(got).all())
        with np.errstate(invalid="ignore"):  # infinity - infinity; `finite` tells
            difference = np.abs(wanted - got)
        absolute.append(difference.ravel())
        snr.append(_snr_db(wanted, difference))
        if (wanted_class := predicted_class(expected, classifier=classifier)) is not None:
            agreements.append(np.mean(wanted_class == np.argmax(answers[name], axis=1)))
    differences = np.concatenate(absolute)
    return Parity(
        n=len(next(iter(reference.values()))),
        snr_db=min(snr) if finite else float("nan"),
        agreement=float(min(agreements)) if agreements else None,
        mean_abs_error=float(differences.mean()),
        max_abs_error=float(differences.max()),
        finite=finite,
    )


def predicted_class(output: npt.NDArray[Any], *, classifier: bool) -> npt.NDArray[np.intp] | None:
    """Return the top class of each sample, or None when the output does not score classes.

    A regressor's four coordinates have a largest one too, so ``[count, classes >= 2]`` floating-point numbers count
    as scores only when ``classifier`` says so or they are probabilities: none negative, each row's sum 1.
    """
    if output.ndim != 2 or output.shape[1] < 2 or not np.issubdtype(output.dtype, np.floating):
        return None
    if not classifier and (np.any(output < 0) or not np.allclose(output.sum(axis=1), 1, atol=1e-3)):
        return None
    return np.asarray(np.argmax(output, axis=1))


def _numbers(reference: npt.NDArray[Any], answer: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return two outputs as numbers; of strings, 1 where they are equal."""
    if reference.dtype.kind in "SUO":
        return np.ones(reference.shape), (reference == answer).astype(np.float64)
    return np.asarray(reference, dtype=np.float64), np.asarray(answer, dtype=np.float64)


def _snr_db(reference: npt.NDArray[np.float64], difference: npt.NDArray[np.float64]) -> float:
    noise = float(np.sum(difference**2))
    signal = float(np.sum(reference**2))
    if noise == 0.0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal and np.isfinite(noise) else float("-inf")
