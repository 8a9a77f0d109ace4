from __future__ import annotations

import functools
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdeploy_magic.serving.sequential import (
    ALPHA,
    FAULTS,
    ArmSeen,
    Counts,
    Judged,
    amount,
    evidence,
    interval,
    judge,
    percents,
)

Array = npt.NDArray[Any]

SIZES = (16, 128, 1024, 8192, 65536)
RUNS, LENGTH = 300, 2000

numbers = st.integers(0, 10**6)
small = st.builds(Counts, st.integers(0, 300), st.integers(0, 300))
any_counts = st.builds(Counts, numbers, numbers)


def arm(name: str, right: tuple[int, int] = (0, 0), ok: int = 0, share: float = 0.5, **failed: int) -> ArmSeen:
    return ArmSeen(name, share, "digits", 1, {"OK": ok, **failed}, Counts(*right))


def odds(rate: float) -> float:
    return math.log(rate / (1 - rate))


@functools.cache
def by_integration(a: float, b: float) -> float:
    """Return the logarithm of the beta function by the trapezoidal rule over log odds: no gamma function in it."""
    centre, width = odds(a / (a + b)), math.sqrt(1 / a + 1 / b)
    at = np.linspace(centre - 40 * width - 40 / min(a, b), centre + 40 * width + 40 / min(a, b), 8001)
    log = -a * np.logaddexp(0, -at) - b * np.logaddexp(0, at)
    return float(log.max() + np.log(np.exp(log - log.max()).sum() * (at[1] - at[0])))


def evidence_against(rate: float, *arms: Counts) -> float:
    """Return the mixture's likelihood of the arms over that of one rate."""
    parts = []
    for a, b in ((0.5, 0.5), *((size * rate, size * (1 - rate)) for size in SIZES)):
        marginals = [by_integration(a + each.successes, b + each.failures) - by_integration(a, b) for each in arms]
        parts.append(sum(marginals))
    likelihood = sum(each.successes * math.log(rate) + each.failures * math.log(1 - rate) for each in arms)
    return float(np.mean(np.exp(np.array(parts) - likelihood)))


def universal(first: Counts, second: Counts) -> float:
    """Return the e-value of universal inference with Jeffreys' mixture, in closed form."""

    def marginal(each: Counts) -> float:
        a, b = each.successes + 0.5, each.failures + 0.5
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b) - math.log(math.pi)

    right, wrong = first.successes + second.successes, first.failures + second.failures
    highest = sum(count * math.log(count / (right + wrong)) for count in (right, wrong) if count)
    return math.exp(min(marginal(first) + marginal(second) - highest, 700))


@pytest.mark.parametrize(
    ("first", "second"),
    [((17, 4), (9, 9)), ((80, 20), (95, 5)), ((2, 30), (1, 300)), ((0, 40), (6, 30)), ((880, 120), (99, 1))],
)
def test_evidence_is_the_least_of_all_rates_by_numeric_integration(
    first: tuple[int, int], second: tuple[int, int]
) -> None:
    arms = Counts(*first), Counts(*second)
    pooled = odds((first[0] + second[0]) / sum((*first, *second)))
    against = [evidence_against(1 / (1 + math.exp(-at)), *arms) for at in np.linspace(pooled - 2, pooled + 2, 41)]
    assert against.index(min(against)) not in (0, len(against) - 1)
    assert evidence(*arms) == pytest.approx(min(against), rel=0.02)
    assert evidence(*arms) <= min(against) * (1 + 1e-6)


@pytest.mark.parametrize("counts", [(17, 4), (1, 30), (95, 5), (880, 120), (5, 995)])
def test_an_interval_ends_where_the_evidence_against_a_rate_is_one_in_alpha(counts: tuple[int, int]) -> None:
    low, high = interval(Counts(*counts))
    assert 0 < low < counts[0] / sum(counts) < high < 1
    for end in (low, high):
        assert evidence_against(end, Counts(*counts)) == pytest.approx(1 / ALPHA, rel=1e-4)
    assert all(evidence_against(rate, Counts(*counts)) < 1 / ALPHA for rate in np.linspace(low, high, 12)[1:-1])


def test_an_interval_of_nothing_is_everything_and_what_never_happened_may_happen_never() -> None:
    assert interval(Counts(0, 0)) == (0.0, 1.0)
    assert interval(Counts(0, 50))[0] == 0.0
    assert interval(Counts(50, 0)) == pytest.approx([1 - end for end in reversed(interval(Counts(0, 50)))])


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("sizes", [(12, 12), (20, 3)])
def test_evidence_is_at_most_one_on_average_where_the_null_holds(rate: float, sizes: tuple[int, int]) -> None:
    chances = [
        [math.comb(size, right) * rate**right * (1 - rate) ** (size - right) for right in range(size + 1)]
        for size in sizes
    ]
    mean = sum(
        one * other * evidence(Counts(a, sizes[0] - a), Counts(b, sizes[1] - b))
        for a, one in enumerate(chances[0])
        for b, other in enumerate(chances[1])
    )
    assert mean <= 1


@pytest.mark.parametrize("sizes", [(16, 16), (30, 6), (6, 30)])
def test_evidence_grows_with_each_success_of_the_arm_that_leads(sizes: tuple[int, int]) -> None:
    first, second = sizes
    found = np.array(
        [[evidence(Counts(a, first - a), Counts(b, second - b)) for b in range(second + 1)] for a in range(first + 1)]
    )
    leads = np.arange(second + 1)[None] / second > np.arange(first + 1)[:, None] / first
    from_one_on = leads & (found >= 1)
    assert from_one_on.sum() > 30
    assert (np.diff(found, axis=1)[from_one_on[:, :-1]] > 0).all()
    assert (np.diff(found, axis=0)[from_one_on[1:]] < 0).all()


@given(any_counts, any_counts)
@settings(max_examples=60, deadline=None)
def test_evidence_is_the_same_from_either_arm_and_for_failures_as_for_successes(first: Counts, second: Counts) -> None:
    found = evidence(first, second)
    turned = [Counts(each.failures, each.successes) for each in (first, second)]
    assert evidence(second, first) == pytest.approx(found, rel=1e-5)
    assert evidence(*turned) == pytest.approx(found, rel=1e-5)


@given(any_counts, any_counts)
@settings(max_examples=60, deadline=None)
def test_evidence_is_never_far_below_universal_inference(first: Counts, second: Counts) -> None:
    assert evidence(first, second) >= universal(first, second) / (len(SIZES) + 1) * (1 - 1e-5)


@given(small, small, st.integers(2, 50))
@settings(max_examples=60, deadline=None)
def test_more_of_the_same_makes_evidence_of_a_difference_grow(first: Counts, second: Counts, times: int) -> None:
    once = evidence(first, second)
    many = evidence(*(Counts(times * each.successes, times * each.failures) for each in (first, second)))
    assert many > once or once < 2


@given(any_counts, st.integers(2, 50))
@settings(max_examples=60, deadline=None)
def test_an_interval_holds_the_rate_and_narrows_with_more_of_the_same(counts: Counts, times: int) -> None:
    low, high = interval(counts)
    assert 0 <= low <= high <= 1
    if counts.rate is not None:
        assert low <= counts.rate <= high
        closer = interval(Counts(times * counts.successes, times * counts.failures))
        assert closer[1] - closer[0] < high - low


@pytest.mark.parametrize("scale", [1, 10**3, 10**6, 10**9])
def test_counts_of_any_size_are_compared(scale: int) -> None:
    none, same = Counts(0, 0), Counts(9 * scale, scale)
    assert evidence(none, none) == 1.0
    assert 0 < evidence(same, none) <= 1
    assert 0 < evidence(same, same) <= 1
    assert evidence(same, Counts(scale, 9 * scale)) > 4
    assert math.isfinite(evidence(same, Counts(0, 10 * scale)))


def outcomes(rates: tuple[float, float], share: float, seed: int, length: int = LENGTH) -> Array:
    """Return the counts of two arms after each outcome: ``int[arm, successes or failures, run, outcome]``."""
    draw = np.random.default_rng(seed)
    is_second = draw.random((RUNS, length)) < share
    is_right = draw.random((RUNS, length)) < np.where(is_second, rates[1], rates[0])
    seen = [(is_second == which) & (is_right == right) for which in (False, True) for right in (True, False)]
    return np.cumsum(seen, axis=-1, dtype=np.int32).reshape(2, 2, RUNS, length)


def log_evidence_against(rate: float, counts: Array) -> Array:
    """Return the logarithm of the mixture's likelihood over that of one rate, for many counts: gammas from a table."""
    length = counts.shape[-1]

    def rising(start: float) -> Array:
        """Return log gamma(start + n) - log gamma(start) for each n."""
        return np.concatenate(([0.0], np.cumsum(np.log(start + np.arange(length)))))

    total = np.zeros(counts.shape[2:])
    for a, b in ((0.5, 0.5), *((size * rate, size * (1 - rate)) for size in SIZES)):
        tables = (
            rising(a) - np.arange(length + 1) * math.log(rate),
            rising(b) - np.arange(length + 1) * math.log1p(-rate),
        )
        both = rising(a + b)
        part = sum(tables[0][right] + tables[1][wrong] - both[right + wrong] for right, wrong in counts)
        total += np.exp(np.minimum(part, 600.0)) / (len(SIZES) + 1)
    return np.log(total)


def at(counts: Array, run: int, outcome: int) -> tuple[Counts, Counts]:
    (a, b), (c, d) = counts[:, :, run, outcome].tolist()
    return Counts(a, b), Counts(c, d)


def is_ever_shown(rate: float, counts: Array) -> Array:
    """Return in which runs the evidence ever reaches 1 / alpha: it is below that wherever it is against one rate."""
    possible = log_evidence_against(rate, counts) >= math.log(1 / ALPHA)
    return np.array(
        [
            any(evidence(*at(counts, run, n)) >= 1 / ALPHA for n in np.flatnonzero(row))
            for run, row in enumerate(possible)
        ]
    )


NULLS = [(rate, share) for rate in (0.5, 0.9, 0.99) for share in (0.5, 0.1)]


@pytest.mark.parametrize(("rate", "share"), NULLS)
def test_looking_after_every_outcome_finds_a_difference_that_is_not_there_in_5_of_100_runs_at_most(
    rate: float, share: float
) -> None:
    counts = outcomes((rate, rate), share, seed=7)
    against = log_evidence_against(rate, counts)
    for run, n in ((0, 5), (1, 300), (2, LENGTH - 1)):
        assert math.log(evidence(*at(counts, run, n))) <= against[run, n] + 1e-9
    assert is_ever_shown(rate, counts).mean() <= ALPHA
    # The same looks with a test that is made for one look: what the bound above is there to rule out.
    (a, b), (c, d) = counts.astype(float)
    first, second, pooled = a + b, c + d, (a + c) / (a + b + c + d)
    with np.errstate(all="ignore"):
        z = np.abs(a / first - c / second) / np.sqrt(pooled * (1 - pooled) * (1 / first + 1 / second))
    enough = np.minimum(first, second) >= 20
    assert ((z > 1.96) & enough).any(axis=1).mean() > 2 * ALPHA


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.99])
def test_an_interval_looked_at_after_every_outcome_loses_the_rate_in_5_of_100_runs_at_most(rate: float) -> None:
    alone = outcomes((rate, rate), 0.0, seed=11)[:1]
    lost = (log_evidence_against(rate, alone) >= math.log(1 / ALPHA)).any(axis=1)
    assert 0 < lost.mean() <= ALPHA
    run = int(np.flatnonzero(lost)[0])
    n = int(np.argmax(log_evidence_against(rate, alone)[run]))
    low, high = interval(Counts(*alone[0, :, run, n].tolist()))
    assert not low <= rate <= high


@pytest.mark.parametrize(
    ("rates", "share", "length", "step"), [((0.8, 0.9), 0.5, 3000, 100), ((0.8, 0.9), 0.1, 8000, 400)]
)
def test_a_true_difference_is_found_and_sooner_than_by_universal_inference(
    rates: tuple[float, float], share: float, length: int, step: int
) -> None:
    counts = outcomes(rates, share, seed=3, length=length)
    ours, theirs = [], []
    for run in range(50):
        looks = [(n, at(counts, run, n - 1)) for n in range(step, length + 1, step)]
        ours.append(next((n for n, seen in looks if evidence(*seen) >= 2 / ALPHA), math.inf))
        theirs.append(next((n for n, seen in looks if universal(*seen) >= 2 / ALPHA), math.inf))
    assert np.mean(np.isfinite(ours)) >= 0.9
    assert np.median(ours) < np.median(theirs)


def test_requests_that_are_the_client_s_own_fault_do_not_count() -> None:
    seen = replace(arm("a"), requests={"OK": 90, "NOT_FOUND": 7, "INVALID_ARGUMENT": 5, "CANCELLED": 3, "INTERNAL": 2})
    assert seen.errors == Counts(90, 2)
    assert replace(seen, requests=dict.fromkeys(FAULTS, 1)).errors == Counts(0, len(FAULTS))
    assert len(FAULTS) == 7
    assert arm("a").errors.rate is None


@pytest.mark.parametrize(("count", "needed"), [(2, 40), (3, 80), (4, 120)])
def test_all_comparisons_with_the_first_arm_share_the_5_per_cent(count: int, needed: float) -> None:
    judged = judge([arm(f"arm {n}", (40, 10), 50) for n in range(count)])
    assert [(each.first, each.second, each.metric) for each in judged.contrasts] == [
        ("arm 0", f"arm {n}", metric) for n in range(1, count) for metric in ("outcomes", "errors")
    ]
    assert [each.needed for each in judged.contrasts] == pytest.approx([needed] * 2 * (count - 1))
    assert judge([arm("a"), arm("b")], alpha=0.01).contrasts[0].needed == pytest.approx(200)


def test_a_difference_is_shown_from_the_needed_evidence_on_and_not_before() -> None:
    first = Counts(880, 120)
    rising = [judge([arm("a", (880, 120)), arm("b", (right, 1000 - right))]) for right in range(905, 955, 3)]
    for judged in rising:
        contrast = judged.contrasts[0]
        assert contrast.better == ("b" if contrast.e_value >= contrast.needed else None) == judged.better
    assert {judged.better for judged in rising} == {None, "b"}
    assert rising[0].contrasts[0].e_value == evidence(first, Counts(905, 95))


PLAIN, GOOD, BAD = (880, 120), (950, 50), (780, 220)
FOR_GOOD, FOR_BAD = (amount(evidence(Counts(*PLAIN), Counts(*other))) for other in (GOOD, BAD))
SAME = amount(evidence(Counts(1000, 0), Counts(1000, 0)))


@pytest.mark.parametrize(
    ("arms", "better", "said"),
    [
        ([arm("a"), arm("b")], None, "nothing to compare yet: no outcome was reported, no request was counted"),
        ([arm("a")], None, "nothing to compare: there is one arm"),
        (
            [arm("a", (9, 1), 10), arm("b")],
            None,
            "nothing to compare yet: no outcome was reported for b, no request was counted for b",
        ),
        (
            [arm("a", ok=1000), arm("b", ok=1000)],
            None,
            f"no difference is shown yet: evidence {SAME} in errors where 40 is needed; no outcome was reported",
        ),
        (
            [arm("a", (1000, 0), 1000), arm("b", (1000, 0), 1000)],
            None,
            f"no difference is shown yet: evidence {SAME} in outcomes and {SAME} in errors where 40 is needed",
        ),
        (
            [arm("a", ok=1000), arm("b", ok=1000), arm("c", ok=1000)],
            None,
            f"no difference is shown yet: evidence at most {SAME} in errors where 80 is needed; "
            "no outcome was reported",
        ),
        (
            [arm("a", PLAIN, 1000), arm("b", GOOD, 1000)],
            "b",
            f"b is better: 95.0% right against 88.0%, evidence {FOR_GOOD} where 40 is needed",
        ),
        (
            [arm("a", PLAIN, 1000), arm("b", BAD, 1000)],
            "a",
            f"a is better: 88.0% right against 78.0%, evidence {FOR_BAD} where 40 is needed",
        ),
        (
            [arm("a", ok=900, INTERNAL=100), arm("b", ok=1000)],
            "b",
            "b is better: 0% failed against 10.0%, evidence over 1,000,000 where 40 is needed",
        ),
        (
            [arm("a", PLAIN, 900, INTERNAL=100), arm("b", GOOD, 1000)],
            "b",
            f"b is better: 95.0% right against 88.0%, evidence {FOR_GOOD}, and 0% failed against 10.0%, "
            "evidence over 1,000,000 where 40 is needed",
        ),
        (
            [arm("a", PLAIN, 1000), arm("b", GOOD, 900, UNAVAILABLE=100)],
            None,
            f"b and a are each better at one thing: b has 95.0% right against 88.0%, evidence {FOR_GOOD}, "
            "and a has 0% failed against 10.0%, evidence over 1,000,000 where 40 is needed",
        ),
        (
            [arm("a", PLAIN, 1000), arm("b", GOOD, 1000), arm("c", (88, 12), 100)],
            "b",
            f"b is better than a: 95.0% right against 88.0%, evidence {FOR_GOOD} where 80 is needed; "
            "no difference from a is shown yet for c",
        ),
        (
            [arm("a", PLAIN, 1000), arm("b", GOOD, 1000), arm("c", GOOD, 1000)],
            None,
            f"b is better than a: 95.0% right against 88.0%, evidence {FOR_GOOD} where 80 is needed; "
            f"c is better than a: 95.0% right against 88.0%, evidence {FOR_GOOD}; "
            "which of b and c is better is not compared here",
        ),
        (
            [arm("a", PLAIN, 1000), arm("b", BAD, 1000), arm("c", BAD, 1000)],
            "a",
            f"a is better than b: 88.0% right against 78.0%, evidence {FOR_BAD} where 80 is needed; "
            f"a is better than c: 88.0% right against 78.0%, evidence {FOR_BAD}",
        ),
        (
            [arm("a", PLAIN, 1000), arm("b", BAD, 1000), arm("c", PLAIN, 1000)],
            None,
            f"a is better than b: 88.0% right against 78.0%, evidence {FOR_BAD} where 80 is needed; "
            "no difference from a is shown yet for c",
        ),
    ],
)
def test_what_is_shown_is_said(arms: list[ArmSeen], better: str | None, said: str) -> None:
    judged = judge(arms)
    assert (judged.better, judged.said) == (better, said)


def test_intervals_are_those_of_each_arm_and_metric() -> None:
    judged: Judged = judge([arm("a", PLAIN, 990, INTERNAL=10), arm("b")])
    assert judged.intervals == {
        ("a", "outcomes"): interval(Counts(*PLAIN)),
        ("a", "errors"): interval(Counts(990, 10)),
        ("b", "outcomes"): (0.0, 1.0),
        ("b", "errors"): (0.0, 1.0),
    }


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "below 0.1"), (3.19, "3.1"), (9.99, "9.9"), (39.9, "39"), (1234.5, "1,234"), (1e300, "over 1,000,000")],
)
def test_evidence_is_written_rounded_down(value: float, said: str) -> None:
    assert amount(value) == said


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ((0.931, 0.88), ("93.1%", "88.0%")),
        ((0.9996, 0.9994), ("99.96%", "99.94%")),
        ((0.0, 0.0004), ("0%", "0.04%")),
        ((1.0, 0.99999), ("100%", "99.999%")),
        ((0.5, 0.5), ("50.0%", "50.0%")),
    ],
)
def test_rates_that_differ_are_written_so(rates: tuple[float, float], said: tuple[str, str]) -> None:
    assert percents(*rates) == said


def test_the_test_needs_nothing_heavy() -> None:
    asked = "import sys, tfdeploy_magic.serving.sequential; print({'numpy', 'scipy', 'tensorflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout == "set()\n"
