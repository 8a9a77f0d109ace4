"""Which arm of a split is better: a test that may be looked at at any time and is wrong in 5% of splits at most.

The null says that two arms have one success rate p, whatever it is. For each p there is a martingale that begins at 1:
the likelihood of both arms under a mixture of rates, divided by their likelihood under p. The evidence is its infimum
over all p, an e-process: where the null holds, it ever reaches 1 / alpha with probability alpha at most, however often
one looks and whatever the shares (Ville 1939; Ramdas, Ruf, Larsson and Koolen 2022, "Testing exchangeability").

Universal inference (Wasserman, Ramdas and Balakrishnan 2020) is the case of one mixture for all p. Ours holds that one,
Jeffreys', and beta distributions around each p: arms differ little, and a mixture that need not find p first pays less.
By simulation, with equal shares and with one in ten, it needs 13% to 44% fewer outcomes to show 80% against 90%, 90%
against 92% or 99% against 99.9%, and a fifth more, of few, to show 50% against 90%. Each part is log-convex in p, and
so is their sum: it has one minimum. All of it depends on the counts alone, so nothing is remembered between looks.

Where the evidence is 1 or more it grows with each success of the arm that leads, so the chance to call the worse arm
better is alpha at most too. What is assumed: outcomes are independent, each is reported once, whether one is reported
does not depend on what it is, and all counts are of the same shares. Requests that one user repeats are not
independent: with sticky keys they all meet one arm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tfdeploy_magic.serving.status import Code

ALPHA = 0.05

Metric = Literal["errors", "outcomes"]
METRICS: tuple[Metric, ...] = ("outcomes", "errors")

FAULTS = frozenset(
    code.name
    for code in (
        Code.UNKNOWN,
        Code.INTERNAL,
        Code.UNAVAILABLE,
        Code.DEADLINE_EXCEEDED,
        Code.RESOURCE_EXHAUSTED,
        Code.DATA_LOSS,
        Code.ABORTED,
    )
)
"""What is the server's fault; any other status but OK is the client's, and says nothing about an arm."""

_CONCENTRATIONS = (16.0, 128.0, 1024.0, 8192.0, 65536.0)
"""How closely rates lie around p: by as much as after this many outcomes, from points to hundredths of a point."""

_FARTHEST = 40.0
"""Log odds of the rates that are looked at; those beyond are 0 or 1 to a float's precision."""

_LARGEST = 700.0
_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 50


@dataclass(frozen=True)
class Counts:
    """How often something went well and how often it did not."""

    successes: int
    failures: int

    @property
    def total(self) -> int:
        """How many there are."""
        return self.successes + self.failures

    @property
    def rate(self) -> float | None:
        """The share of successes; None of nothing."""
        return self.successes / self.total if self.total else None


@dataclass(frozen=True)
class ArmSeen:
    """What a server has counted of one arm of a split.

    Args:
        name: What the arm is called; no two arms have the same.
        share: The share of the requests that it is meant to get, 0 to 1.
        model: The model that answers.
        version: Its version; None where none answers.
        requests: Status -> how many requests got it.
        outcomes: How many answers were right and wrong, as clients reported.
        p50_ms: The median latency in ms; None where nothing was answered.
        p95_ms: The 95th percentile of it.
        p99_ms: The 99th percentile of it.
    """

    name: str
    share: float
    model: str
    version: int | None
    requests: Mapping[str, int]
    outcomes: Counts
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None

    @property
    def errors(self) -> Counts:
        """Requests that were answered, and those that failed by a fault of the server."""
        failures = sum(count for status, count in self.requests.items() if status in FAULTS)
        return Counts(self.requests.get("OK", 0), failures)

    def counts(self, metric: Metric) -> Counts:
        """Return what a metric compares."""
        return self.outcomes if metric == "outcomes" else self.errors


@dataclass(frozen=True)
class Contrast:
    """What one metric says about two arms.

    Args:
        metric: "outcomes", or "errors".
        first: The arm that the others are set against.
        second: Another arm.
        e_value: The evidence that they differ; 1 of no data.
        needed: The evidence that shows it, after the correction for several comparisons (Bonferroni).
        better: The arm with the higher rate of successes; None where no difference is shown.
    """

    metric: Metric
    first: str
    second: str
    e_value: float
    needed: float
    better: str | None


@dataclass(frozen=True)
class Judged:
    """What the counts of a split show.

    Args:
        contrasts: Each other arm against the first, by outcomes and by errors.
        intervals: Arm and metric -> ends of the success rate; each holds, by itself, at all looks at once with the
            probability 1 - alpha.
        better: The arm to keep: shown better by one metric and not shown worse by the other. None where no arm is, or
            several are.
        said: The same as a clause for people.
    """

    contrasts: tuple[Contrast, ...]
    intervals: Mapping[tuple[str, Metric], tuple[float, float]]
    better: str | None
    said: str


def judge(arms: Sequence[ArmSeen], alpha: float = ALPHA) -> Judged:
    """Say what the counts of a split show.

    Args:
        arms: What was counted; the others are set against the first.
        alpha: The probability to ever see a difference where there is none, for all comparisons together.
    """
    first, *others = arms
    needed = len(METRICS) * max(1, len(others)) / alpha
    contrasts = tuple(_contrast(metric, first, other, needed) for other in others for metric in METRICS)
    intervals = {(arm.name, metric): interval(arm.counts(metric), alpha) for arm in arms for metric in METRICS}
    return Judged(contrasts, intervals, _arm_to_keep(arms, contrasts), _said(arms, contrasts))


def evidence(first: Counts, second: Counts) -> float:
    """Return the e-value against the null that two arms have one success rate."""
    arms = (first, second)
    return math.exp(min(_minimum(lambda log_odds: _log_evidence(log_odds, arms)), _LARGEST))


def interval(counts: Counts, alpha: float = ALPHA) -> tuple[float, float]:
    """Return the rates that an arm's own counts leave: a confidence sequence (Robbins 1970)."""
    needed = math.log(1 / alpha)

    def left_out(log_odds: float) -> bool:
        return _log_evidence(log_odds, (counts,)) >= needed

    # The rate that was seen has never any evidence against it.
    if not counts.total:
        return 0.0, 1.0
    seen = math.log(counts.successes / counts.failures) if counts.successes and counts.failures else None
    low = _border(left_out, -_FARTHEST, _FARTHEST if seen is None else seen) if counts.successes else -math.inf
    high = _border(left_out, _FARTHEST, -_FARTHEST if seen is None else seen) if counts.failures else math.inf
    return _rate(low), _rate(high)


def _log_evidence(log_odds: float, arms: Sequence[Counts]) -> float:
    """Return the logarithm of the likelihood under the mixture around a rate, divided by that under the rate."""
    rate, rest = _rate(log_odds), _rate(-log_odds)
    priors = ((0.5, 0.5), *((size * rate, size * rest) for size in _CONCENTRATIONS))
    parts = [sum(_log_marginal(arm, *prior) for arm in arms) for prior in priors]
    largest = max(parts)
    mixture = largest + math.log(sum(math.exp(part - largest) for part in parts) / len(parts))
    return mixture - sum(arm.successes * math.log(rate) + arm.failures * math.log(rest) for arm in arms)


def _log_marginal(counts: Counts, a: float, b: float) -> float:
    """Return the logarithm of the likelihood of counts under rates that are distributed as Beta(a, b)."""
    gained = math.lgamma(counts.successes + a) + math.lgamma(counts.failures + b) - math.lgamma(counts.total + a + b)
    return gained - (math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))


def _rate(log_odds: float) -> float:
    if log_odds < 0:
        odds = math.exp(log_odds)
        return odds / (1 + odds)
    return 1 / (1 + math.exp(-log_odds))


def _minimum(function: Callable[[float], float]) -> float:
    """Return the minimum of a function that falls and then rises, by golden sections."""
    low, high = -_FARTHEST, _FARTHEST
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(_STEPS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = function(right)
    return min(at_left, at_right)


def _border(left_out: Callable[[float], bool], outside: float, inside: float) -> float:
    """Return where rates begin to be left out, by bisection; a hair too far rather than too near."""
    for _ in range(_STEPS):
        middle = (outside + inside) / 2
        if left_out(middle):
            outside = middle
        else:
            inside = middle
    return outside


def _contrast(metric: Metric, first: ArmSeen, second: ArmSeen, needed: float) -> Contrast:
    ours, theirs = first.counts(metric), second.counts(metric)
    value = evidence(ours, theirs)
    better = None
    if value >= needed and ours.rate is not None and theirs.rate is not None:
        better = second.name if theirs.rate > ours.rate else first.name
    return Contrast(metric, first.name, second.name, value, needed, better)


def _arm_to_keep(arms: Sequence[ArmSeen], contrasts: Sequence[Contrast]) -> str | None:
    first, *others = arms
    winners = {other.name: _shown_better(other.name, contrasts) for other in others}
    better = [name for name, winner in winners.items() if winner == {name}]
    if len(better) == 1:
        return better[0]
    return first.name if others and all(winner == {first.name} for winner in winners.values()) else None


def _shown_better(second: str, contrasts: Sequence[Contrast]) -> set[str]:
    """Return which of an arm and the first is shown better: both of them where the metrics contradict each other."""
    return {each.better for each in contrasts if each.second == second and each.better is not None}


def _said(arms: Sequence[ArmSeen], contrasts: Sequence[Contrast]) -> str:
    if not contrasts:
        return "nothing to compare: there is one arm"
    if all(each.better is None for each in contrasts):
        return _nothing_shown(arms, contrasts)
    first, *others = arms
    clauses: list[str] = []
    unclear: list[str] = []
    better: list[str] = []
    for other in others:
        ours = [each for each in contrasts if each.second == other.name and each.better is not None]
        winners = _shown_better(other.name, contrasts)
        if not winners:
            unclear.append(other.name)
        elif len(winners) == 2:
            clauses.append(
                f"{other.name} and {first.name} are each better at one thing: {_reasons(arms, ours, named=True)}"
            )
        else:
            winner, loser = (other, first) if winners == {other.name} else (first, other)
            better += [winner.name] if winner is other else []
            than = f" than {loser.name}" if len(others) > 1 else ""
            clauses.append(f"{winner.name} is better{than}: {_reasons(arms, ours, named=False)}")
    clauses[0] += f" where {amount(contrasts[0].needed)} is needed"
    if unclear:
        clauses.append(f"no difference from {first.name} is shown yet for {_listed(unclear)}")
    if len(better) > 1:
        clauses.append(f"which of {_listed(better)} is better is not compared here")
    return "; ".join(clauses)


def _reasons(arms: Sequence[ArmSeen], shown: Sequence[Contrast], *, named: bool) -> str:
    """Return the rates that show a difference, and the evidence: "93.1% right against 88.0%, evidence 41"."""
    by_name = {arm.name: arm for arm in arms}
    parts = []
    for each in shown:
        assert each.better is not None
        loser = each.second if each.better == each.first else each.first
        # Both rates are known: without data no difference is shown.
        pair = [by_name[name].counts(each.metric).rate or 0.0 for name in (each.better, loser)]
        one, other = percents(*(pair if each.metric == "outcomes" else [1 - rate for rate in pair]))
        said = f"{one} {'right' if each.metric == 'outcomes' else 'failed'} against {other}"
        whose = f"{each.better} has " if named else ""
        parts.append(f"{whose}{said}, evidence {amount(each.e_value)}")
    return ", and ".join(parts)


def _nothing_shown(arms: Sequence[ArmSeen], contrasts: Sequence[Contrast]) -> str:
    by_name = {arm.name: arm for arm in arms}
    found = []
    for metric in METRICS:
        compared = [
            each.e_value
            for each in contrasts
            if each.metric == metric
            and by_name[each.first].counts(metric).total
            and by_name[each.second].counts(metric).total
        ]
        if compared:
            found.append(f"{'at most ' if len(compared) > 1 else ''}{amount(max(compared))} in {metric}")
    missing = list(_missing(arms))
    if not found:
        return f"nothing to compare yet: {', '.join(missing)}"
    needed = amount(contrasts[0].needed)
    return "; ".join((f"no difference is shown yet: evidence {' and '.join(found)} where {needed} is needed", *missing))


def _missing(arms: Sequence[ArmSeen]) -> Iterator[str]:
    said: dict[Metric, str] = {"outcomes": "no outcome was reported", "errors": "no request was counted"}
    for metric, what in said.items():
        without = [arm.name for arm in arms if not arm.counts(metric).total]
        if without:
            yield what if len(without) == len(arms) else f"{what} for {_listed(without)}"


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def amount(value: float) -> str:
    """Return evidence as people read it, rounded down, so that what is not enough never looks like it: "3.1", "41"."""
    if value < 0.1:
        return "below 0.1"
    if value < 10:
        return f"{math.floor(10 * value) / 10:.1f}"
    return f"{math.floor(value):,}" if value < 1e6 else "over 1,000,000"


def percents(*rates: float) -> tuple[str, ...]:
    """Return rates in per cent with as many digits as tell them from each other, and from "0%" and "100%"."""
    said: tuple[str, ...] = ()
    for digits in range(1, 7):
        said = tuple(f"{100 * rate:.{digits if 0 < rate < 1 else 0}f}%" for rate in rates)
        ends = {f"{end:.{digits}f}%" for end in (0, 100)}
        if len(set(said)) == len(set(rates)) and not ends & set(said):
            break
    return said
