"""Honest timing: warm-up first, then a distribution and not a best case; of several files, each in its turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.evidence import Latency
from tfdeploy_magic.jobs import Report

WARM_UP_RUNS = 5
RUNS = 200
SECONDS = 1.0
"""Timing stops at :data:`RUNS` runs or after this long, whichever comes first, but not before ten runs."""

ROUNDS = 20
"""How often each file has its turn.

Measured on a shared virtual machine whose speed jumps by 40% for tenths of a second: eight files, each given twice and
timed ten times over. In 95% of the cases the medians of twins lay less than 17% apart with 10 rounds, 6% with 20 and 5%
with 50; in batches of 32 samples 18%, 7% and 8%.
"""

LEAST_RUNS, LEAST_SLOW_RUNS = 10, 3
"""Fewer runs than this say nothing; the second is for what takes longer than :data:`SLOW` seconds."""

MOST_RUNS = 10 * ROUNDS
"""More runs of a fast file in each round take time and say no more."""

SLOW = 1.0


def timed_runs(once: Callable[[], float], report: Report) -> list[float]:
    """Run ``once``, which returns its own seconds, until there is enough to say something."""
    for _ in range(WARM_UP_RUNS):
        once()
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < RUNS and (len(seconds) < LEAST_RUNS or time.perf_counter() - began < SECONDS):
        seconds.append(once())
        report.fraction(len(seconds) / RUNS)
    return seconds


def in_turn(timers: Sequence[Callable[[], float]], report: Report, seconds: float) -> list[list[list[float]]]:
    """Run each of several things a few times, then each again, so that a slow moment of the machine hits all alike.

    Args:
        timers: Each runs once and returns its own seconds.
        report: Told of the progress.
        seconds: For all together, shared evenly; more only where that is not enough for the fewest runs that count.

    Returns:
        For each of ``timers`` its rounds, each the seconds of its runs.
    """
    share = seconds / max(len(timers), 1)
    planned = [_affordable(_warmed_up(timer, share), share) for timer in timers]
    rounds: list[list[list[float]]] = [[] for _ in timers]
    for turn in report.counting(range(ROUNDS), ROUNDS):
        for timer, runs, into in zip(timers, planned, rounds, strict=True):
            count = runs * (turn + 1) // ROUNDS - runs * turn // ROUNDS
            if count > 1:
                timer()  # what ran in between has taken the caches
            if count:
                into.append([timer() for _ in range(count)])
    return rounds


def _warmed_up(timer: Callable[[], float], share: float) -> float:
    """Warm up within a fifth of the share, and return about how long a run takes."""
    runs = [timer()]
    while len(runs) < WARM_UP_RUNS and sum(runs) < share / 5:
        runs.append(timer())
    return float(np.median(runs))


def _affordable(pace: float, share: float) -> int:
    """Return how many runs there is time for, of those that are worth it."""
    return max(LEAST_RUNS if pace <= SLOW else LEAST_SLOW_RUNS, min(MOST_RUNS, int(share / pace)))


def first_rows(array: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """Return the first ``count`` rows, the last one repeated where there are too few."""
    rows = np.ascontiguousarray(array[:count])
    return rows if len(rows) == count else np.concatenate([rows, rows[-1:].repeat(count - len(rows), axis=0)])


def summarize(seconds: Sequence[float], *, threads: int, batch: int, noise: float | None = None) -> Latency:
    """Turn timed runs into a :class:`Latency`, ms."""
    p50, p95 = np.percentile(seconds, (50, 95)) * 1e3
    return Latency(float(p50), float(p95), len(seconds), threads, batch, noise)


def summarize_rounds(rounds: Sequence[Sequence[float]], *, threads: int, batch: int) -> Latency:
    """Turn runs in several rounds into a :class:`Latency`, ms, that says how far its median can be trusted."""
    runs = [seconds for one in rounds for seconds in one]
    return summarize(runs, threads=threads, batch=batch, noise=noise(rounds))


def noise(rounds: Sequence[Sequence[float]]) -> float:
    """Return how far medians of the same thing lie apart when it is timed again, as a share of the median.

    It is half the distance from the 10th to the 90th percentile of the rounds' medians. Measured as for :data:`ROUNDS`:
    in 90% and 94% of the cases a median lay no further from the file's usual one, and in 95% and 99% a twin timed in
    the same rounds lay no further away. The difference of even and odd rounds, one draw of what is sought, held in
    about half of the cases: rounds that follow each other are slow or fast together.
    """
    low, middle, high = np.percentile([np.median(one) for one in rounds], (10, 50, 90))
    return float((high - low) / 2 / middle)
