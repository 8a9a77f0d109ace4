"""The arms of a split as a table, and in a sentence what their counts show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tfdeploy_magic.serving.sequential import ArmSeen, Judged
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import words

METHOD = (
    "an e-value: where no arm differs from the first, it reaches what is needed in 5% of splits at most, however often "
    "one looks and whatever the shares; each interval holds at all looks at once in 95%"
)
"""What evidence and intervals are."""

_NOTHING = "–"


def rows(arms: Sequence[ArmSeen], judged: Judged) -> list[tuple[pieces.Cell, ...]]:
    """Return the table of a split, its head first.

    Args:
        arms: What was counted.
        judged: What it shows.
    """
    head: tuple[pieces.Cell, ...] = ("arm", "answers", "share", "requests", "errors", "p50 / p95 / p99", "right")
    return [head, *(_row(arm, judged) for arm in arms)]


def sentence(judged: Judged) -> str:
    """Return what the counts show as a sentence, marked where they show something."""
    if judged.better is not None:
        return f"✓ {judged.said}."
    shows_something = any(each.better is not None for each in judged.contrasts)
    return f"{pieces.MARK['warning' if shows_something else 'note']} {judged.said}."


def alternative(arms: Sequence[ArmSeen], judged: Judged) -> str:
    """Return what the figure shows in words."""
    parts = [judged.said]
    for arm in arms:
        right, failed = _right_rate(arm, judged), _failed_rate(arm, judged)
        parts += [f"{arm.name} {right} right"] if right else []
        parts += [f"{arm.name} {failed} failed"] if failed else []
    return "; ".join(parts)


def failing(judged: Judged, arm: str) -> tuple[float, float]:
    """Return the ends of the interval for the share of an arm's requests that fail."""
    low, high = judged.intervals[arm, "errors"]
    return 1 - high, 1 - low


def _row(arm: ArmSeen, judged: Judged) -> tuple[pieces.Cell, ...]:
    name = f"✓ {arm.name}" if arm.name == judged.better else arm.name
    answers = arm.model if arm.version is None else f"{arm.model} version {arm.version}"
    asked, share = f"{sum(arm.requests.values()):,}", f"{100 * arm.share:.4g}%"
    failed, right = _failed_rate(arm, judged), _right_rate(arm, judged)
    failures = arm.errors.failures
    errors: pieces.Cell = (f"✗ {failures:,}" if failures else "0", failed) if failed else _NOTHING
    outcomes: pieces.Cell = (right, f"{arm.outcomes.total:,} reported") if right else _NOTHING
    return name, answers, share, asked, errors, _latencies(arm), outcomes


def _right_rate(arm: ArmSeen, judged: Judged) -> str:
    rate = arm.outcomes.rate
    return "" if rate is None else _with_interval(rate, judged.intervals[arm.name, "outcomes"])


def _failed_rate(arm: ArmSeen, judged: Judged) -> str:
    rate = arm.errors.rate
    return "" if rate is None else _with_interval(1 - rate, failing(judged, arm.name))


def _latencies(arm: ArmSeen) -> str:
    known = (arm.p50_ms, arm.p95_ms, arm.p99_ms)
    if all(value is None for value in known):
        return _NOTHING
    return " / ".join(_NOTHING if value is None else words.milliseconds(value) for value in known)


def _with_interval(rate: float, ends: tuple[float, float]) -> str:
    """Return a rate with its interval, as many digits as that leaves: "93.1% (91.0–94.8)"."""
    low, high = ends
    digits = min(max(1, 1 - math.floor(math.log10(100 * (high - low)))), 6)
    return f"{100 * rate:.{digits}f}% ({100 * low:.{digits}f}–{100 * high:.{digits}f})"
