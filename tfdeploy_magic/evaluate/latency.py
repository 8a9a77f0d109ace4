"""Honest timing of one sample: warm-up first, then a distribution and not a best case."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.evidence import Latency
from tfdeploy_magic.jobs import Report

WARM_UP_RUNS = 5
RUNS = 200
SECONDS = 1.0
"""Timing stops at :data:`RUNS` runs or after this long, whichever comes first, but not before ten runs."""


def timed_runs(once: Callable[[], float], report: Report) -> list[float]:
    """Run ``once``, which returns its own seconds, until there is enough to say something."""
    for _ in range(WARM_UP_RUNS):
        once()
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < RUNS and (len(seconds) < 10 or time.perf_counter() - began < SECONDS):
        seconds.append(once())
        report.fraction(len(seconds) / RUNS)
    return seconds


def first_rows(array: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """Return the first ``count`` rows, the last one repeated where there are too few."""
    rows = np.ascontiguousarray(array[:count])
    return rows if len(rows) == count else np.concatenate([rows, rows[-1:].repeat(count - len(rows), axis=0)])


def summarize(seconds: list[float], *, threads: int, batch: int) -> Latency:
    """Turn timed runs into a :class:`Latency`, ms."""
    p50, p95 = np.percentile(seconds, (50, 95)) * 1e3
    return Latency(float(p50), float(p95), len(seconds), threads, batch)
