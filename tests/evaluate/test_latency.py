from __future__ import annotations

import pytest

from tfdeploy_magic.evaluate.latency import RUNS, WARM_UP_RUNS, summarize, timed_runs
from tfdeploy_magic.jobs import Report, silent


def test_warm_up_runs_are_not_counted() -> None:
    runs = iter(range(10_000))
    seconds = timed_runs(lambda: float(next(runs)), Report(silent))
    assert seconds == [float(number) for number in range(WARM_UP_RUNS, WARM_UP_RUNS + RUNS)]


def test_latency_is_median_and_95th_percentile_in_ms() -> None:
    latency = summarize([number / 1000 for number in range(1, 102)], threads=3, batch=1)
    assert latency.p50 == pytest.approx(51.0)
    assert latency.p95 == pytest.approx(96.0)
    assert (latency.runs, latency.threads) == (101, 3)
