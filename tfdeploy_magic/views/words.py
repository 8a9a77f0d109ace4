"""Numbers as people read them: used by every rendering, so that a card and its plain-text twin say the same."""

from __future__ import annotations

import math
from pathlib import Path

from tfdeploy_magic.artifacts.evidence import Drop, Latency, Score


def size(count: int) -> str:
    """Return bytes with a decimal unit: "22.3 kB"."""
    if count < 1000:
        return f"{count} B"
    for unit, scale in (("kB", 1e3), ("MB", 1e6)):
        if count < 999.5 * scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e9:.2f} GB"


def share(value: float) -> str:
    """Return a share as per cent: "97.2%"."""
    return f"{100 * value:.1f}%"


def score(value: Score, metric: str) -> str:
    """Return a metric with its 95% interval: "97.2% (95.4–98.3)" for shares, "0.123 (0.120–0.126)" for others."""
    percent = "accuracy" in metric
    text = share(value.value) if percent else f"{value.value:.4g}"
    if value.low is None or value.high is None:
        return text
    low, high = (f"{100 * end:.1f}" if percent else f"{end:.4g}" for end in (value.low, value.high))
    return f"{text} ({low}–{high})"


def score_change(before: Score, after: Score, metric: str) -> str:
    """Return how a metric changed: "−0.4 points"."""
    if "accuracy" in metric:
        return f"{signed(100 * (after.value - before.value), 1)} points"
    return signed(after.value - before.value, 4)


def signed(value: float, digits: int) -> str:
    """Return a number with its sign; a rounded zero is "±0"."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return "±0"
    return f"{'−' if value < 0 else '+'}{text}"


def milliseconds(value: float) -> str:
    """Return a time with a unit that suits it: "4.2 µs", "1.25 ms"."""
    if value < 0.1:
        return f"{value * 1e3:.3g} µs"
    return f"{value:.3g} ms" if value < 999.5 else f"{value / 1e3:.3g} s"


def latency(value: Latency) -> str:
    """Return median and 95th percentile: "0.30 / 0.45 ms" with units."""
    return f"{milliseconds(value.p50)} / {milliseconds(value.p95)}"


def speed_up(before: Latency, after: Latency) -> str:
    """Return how the median changed: "×4.1 faster" or "×2.0 slower"."""
    ratio = before.p50 / after.p50
    return f"×{ratio:.3g} faster" if ratio >= 1 else f"×{1 / ratio:.3g} slower"


def decibels(value: float) -> str:
    """Return a signal-to-noise ratio: "37.7 dB", "exact" when nothing differs."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "exact" if value > 0 else "nothing left"
    return f"{value:.1f} dB".replace("-", "−")


def drop(value: Drop, metric: str) -> str:
    """Return how much worse a file scores: "1.0 points worse", "0.4% better", "the same"."""
    amount = tenths(abs(value.value))
    if amount == "0.0":
        return "the same"
    unit = " points" if "accuracy" in metric else "%"
    return f"{amount}{unit} {'worse' if value.value > 0 else 'better'}"


def drop_in_numbers(value: Drop, metric: str) -> str:
    """Return a drop with its 95% interval, better than the source below 0: "1.0 (−0.4 to 2.5) points"."""
    unit = " points" if "accuracy" in metric else "%"
    if value.low is None or value.high is None:
        return f"{tenths(value.value)}{unit}, no interval"
    return f"{tenths(value.value)} ({tenths(value.low)} to {tenths(value.high)}){unit}"


def drop_is_shown(value: Drop) -> bool:
    """Return whether the data can tell the drop from none: its interval, as it is written, leaves 0 out."""
    if value.low is None or value.high is None:
        return tenths(value.value) != "0.0"
    return not round(100 * value.low, 1) <= 0 <= round(100 * value.high, 1)


def tenths(share: float) -> str:
    """Return a share in per cent, without the sign: "−0.4"."""
    return f"{round(100 * share, 1) + 0.0:.1f}".replace("-", "−")


def path(value: Path) -> str:
    """Return a path with the person's home folder as "~": cards are shared, home folders have names in them."""
    try:
        return f"~/{value.relative_to(Path.home())}"
    except ValueError:
        return str(value)


def duration(seconds: float) -> str:
    """Return a time span for a progress line: "3 s", "2 min 05 s"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


def seconds(value: float) -> str:
    """Return how long something took: "0.42 s", "8.3 s", "2 min 05 s"."""
    return f"{value:.2f} s" if value < 1 else f"{value:.1f} s" if value < 10 else duration(value)


def threads(count: int) -> str:
    """Return "1 thread", "4 threads"."""
    return "1 thread" if count == 1 else f"{count} threads"
