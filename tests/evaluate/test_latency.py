from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import pytest

from tfdeploy_magic.evaluate.latency import (
    LEAST_RUNS,
    LEAST_SLOW_RUNS,
    MOST_RUNS,
    ROUNDS,
    RUNS,
    WARM_UP_RUNS,
    in_turn,
    noise,
    summarize,
    summarize_rounds,
    timed_runs,
)
from tfdeploy_magic.jobs import Progress, Report, silent

REPORT = Report(silent)


class Machine:
    """A clock that only runs while something is timed, on a machine whose speed changes.

    Args:
        slowdown: Time in seconds -> by what factor things take longer then.
    """

    def __init__(self, slowdown: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now = 0.0
        self.ran: list[str] = []
        self._slowdown = slowdown

    def timer(self, name: str, seconds: float) -> Callable[[], float]:
        def once() -> float:
            spent = seconds * self._slowdown(self.now)
            self.now += spent
            self.ran.append(name)
            return spent

        return once


def median(rounds: list[list[float]]) -> float:
    return statistics.median(seconds for one in rounds for seconds in one)


def test_warm_up_runs_are_not_counted() -> None:
    runs = iter(range(10_000))
    seconds = timed_runs(lambda: float(next(runs)), REPORT)
    assert seconds == [float(number) for number in range(WARM_UP_RUNS, WARM_UP_RUNS + RUNS)]


def test_latency_is_median_and_95th_percentile_in_ms() -> None:
    latency = summarize([number / 1000 for number in range(1, 102)], threads=3, batch=1)
    assert latency.p50 == pytest.approx(51.0)
    assert latency.p95 == pytest.approx(96.0)
    assert (latency.runs, latency.threads, latency.noise) == (101, 3, None)


def test_each_file_has_its_turn_before_any_has_another() -> None:
    machine = Machine()
    rounds = in_turn([machine.timer(name, 0.001) for name in "abc"], REPORT, seconds=3.0)
    turns = [name for name, before in zip(machine.ran, ["", *machine.ran], strict=False) if name != before]
    assert "".join(turns) == "abc" + "abc" * ROUNDS, "each is warmed up, then each runs in every round"
    assert [len(one) for one in rounds] == [ROUNDS] * 3


def test_a_slow_moment_hits_all_files_alike() -> None:
    def seconds_of_three(slowdown: Callable[[float], float]) -> list[float]:
        machine = Machine(slowdown)
        return [median(one) for one in in_turn([machine.timer(name, 0.01) for name in "abc"], REPORT, seconds=3.0)]

    assert seconds_of_three(lambda now: 5.0 if 1.0 < now < 2.0 else 1.0) == [0.01] * 3
    # One after the other, the second of three would have been all slow.
    assert seconds_of_three(lambda now: 1.0) == [0.01] * 3
    assert seconds_of_three(lambda now: 5.0 if now > 1.0 else 1.0) == [0.05] * 3


def test_time_is_shared_evenly_and_a_slow_file_gets_the_fewest_runs_that_count() -> None:
    machine = Machine()
    fast, slow, slowest = in_turn(
        [machine.timer("fast", 0.0005), machine.timer("slow", 0.05), machine.timer("slowest", 2.0)], REPORT, 0.75
    )
    assert sum(map(len, fast)) == MOST_RUNS < 0.25 / 0.0005
    assert sum(map(len, slow)) == LEAST_RUNS == 10
    assert sum(map(len, slowest)) == LEAST_SLOW_RUNS
    assert machine.ran.count("slow") <= LEAST_RUNS + WARM_UP_RUNS
    assert machine.ran.count("slowest") == LEAST_SLOW_RUNS + 1
    where = [position for position, name in enumerate(machine.ran) if name == "slow"][-LEAST_RUNS:]
    assert max(np.diff(where)) < 2.5 * min(np.diff(where)), "its few runs are spread over the whole time"


def test_what_runs_first_in_a_turn_is_not_counted() -> None:
    """Whatever ran in between has taken the caches."""
    before: list[str] = [""]

    def cold_after_another(name: str) -> Callable[[], float]:
        def once() -> float:
            spent = 0.001 if before[-1] == name else 0.01
            before.append(name)
            return spent

        return once

    for rounds in in_turn([cold_after_another("a"), cold_after_another("b")], REPORT, seconds=1.0):
        assert {seconds for one in rounds for seconds in one} == {0.001}


def test_no_files_take_no_time() -> None:
    assert in_turn([], REPORT, seconds=1.0) == []


def test_progress_runs_from_nothing_to_all() -> None:
    heard: list[Progress] = []
    report = Report(heard.append)
    report._last = -1e9
    report.stage("timing")
    report._last = -1e9
    in_turn([lambda: 0.001], report, seconds=0.01)
    assert heard[-1].stage == "timing"
    assert heard[-1].fraction is not None
    assert 0 < heard[-1].fraction <= 1


def test_median_and_percentile_are_of_all_runs_whatever_their_round() -> None:
    latency = summarize_rounds([[0.001], [0.002] * 3, [0.009]], threads=2, batch=8)
    assert latency.p50 == pytest.approx(2.0)
    assert latency.p95 == pytest.approx(float(np.percentile([1, 2, 2, 2, 9], 95)))
    assert (latency.runs, latency.threads, latency.batch) == (5, 2, 8)
    assert latency.noise == noise([[0.001], [0.002] * 3, [0.009]])


def test_a_steady_machine_has_no_noise_and_one_disturbed_round_makes_none() -> None:
    assert noise([[0.001, 0.001]] * 20) == 0
    assert noise([[0.001, 0.001]] * 19 + [[0.5, 0.5]]) == 0
    assert noise([[0.001, 0.5, 0.001]] * 20) == 0, "a spike within a round does not move its median"


@pytest.mark.parametrize("jump", [1.02, 1.4])
def test_noise_is_how_far_medians_lie_apart_when_timed_again(jump: float) -> None:
    """On a machine that is slowed down for half of the time, in moments of 0.1 to 1 s."""
    random = np.random.default_rng(0)

    def timed_again() -> tuple[float, float]:
        edges = np.cumsum(random.uniform(0.1, 1.0, 60))
        machine = Machine(lambda now: jump if np.searchsorted(edges, now) % 2 else 1.0)
        machine.now = random.uniform(0, 1)
        (rounds, _) = in_turn([machine.timer("a", 0.002), machine.timer("b", 0.002)], REPORT, seconds=1.0)
        return median(rounds), noise(rounds)

    medians, noises = np.transpose([timed_again() for _ in range(40)])
    spread = np.std(medians) / np.median(medians)
    assert spread > 0.2 * (jump - 1), "the machine is as unsteady as it was made"
    assert spread / 2 < np.median(noises) < 3 * spread
