"""The figure of a load test: latencies, the run second by second, and what more clients bring."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from tfdeploy_magic.serving.load import Load, Saturation
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import words
from tfdeploy_magic.views.figures import AFTER, INK, PAPER, QUIET, on_own_paper, prepare, round_ticks

ENOUGH = {50: 1, 95: 20, 99: 100}
"""Answers that a percentile needs: of fewer, none lies above it."""

MOST_STEPS = 75
"""Seconds that are drawn one by one; of a longer run several are drawn as one."""

_NO_P95 = "p95: nothing was answered"


@dataclass(frozen=True)
class Pace:
    """How fast a server answered for about a second.

    Args:
        start: Seconds since the beginning of the run.
        end: Likewise.
        answers: Answers per second.
        failures: Failures per second.
        p95_ms: The 95th percentile of the latency; None where nothing was answered.
    """

    start: float
    end: float
    answers: float
    failures: float
    p95_ms: float | None


def paces_of(load: Load) -> list[Pace]:
    """Return how fast each second went; what is left of less than half a second at the end counts with the last."""
    spans: list[tuple[float, float, int, int, float | None]] = []
    for row in load.timeline:
        end = min(row.second + 1.0, load.seconds)
        span = (float(row.second), end, row.requests - row.failures, row.failures, row.p95_ms)
        if spans and end - row.second < 0.5:
            start, _, answers, failures, p95 = spans.pop()
            known = [each for each in (p95, row.p95_ms) if each is not None]
            span = (start, max(end, row.second), answers + span[2], failures + span[3], max(known, default=None))
        spans.append(span)
    return [
        Pace(start, end, answers / (end - start), failures / (end - start), p95)
        for start, end, answers, failures, p95 in spans
        if end > start
    ]


_WIDTH, _HEIGHT = 7.2, 2.6  # inches
_BOTTOM, _STRIP, _GAP, _TOP = 0.44, 0.46, 0.31, 0.3  # inches
_LETTERS = 8.0  # points
_ROUND = (1, 2, 5, 10)
_MARK, _TICK = 0.85, 0.5  # inches that "p99 0.123 ms" and "100 ms" take
_LIGHT = "#cfe3f1"


@on_own_paper
def figure(load: Load, saturation: Saturation | None) -> Figure:
    """Draw latencies as a histogram, answers per second and p95 second by second, and both over the clients."""
    drawn = Figure(figsize=(_WIDTH, _HEIGHT), facecolor=PAPER)
    first, second = ((0.22, 1.98), (2.76, 1.92)) if saturation else ((0.22, 3.1), (3.98, 3.0))
    _latencies(_axes(drawn, first, _BOTTOM, _HEIGHT - _BOTTOM - _TOP), load, first[1])
    _over_time(_pair(drawn, second), load)
    if saturation is not None:
        _over_clients(_pair(drawn, (5.26, 1.8)), saturation, load)
    return drawn


def _axes(drawn: Figure, place: tuple[float, float], low: float, height: float) -> Axes:
    """Return axes at a place in inches: finding one means drawing everything twice."""
    left, width = place
    axes = drawn.add_axes((left / _WIDTH, low / _HEIGHT, width / _WIDTH, height / _HEIGHT))
    prepare(axes, "")
    axes.tick_params(axis="both", which="both", colors=QUIET, labelcolor=INK, labelsize=_LETTERS, length=0)
    return axes


def _title(axes: Axes, said: str, letters: float = 9.5) -> None:
    axes.set_title(said, loc="left", fontsize=letters, color=INK, pad=3 if letters == _LETTERS else 6)


def _pair(drawn: Figure, place: tuple[float, float]) -> tuple[Axes, Axes]:
    """Return axes for answers per second, and below them a strip for the p95 of the same time or clients."""
    low = _BOTTOM + _STRIP + _GAP
    strip = _axes(drawn, place, _BOTTOM, _STRIP)
    above = _axes(drawn, place, low, _HEIGHT - low - _TOP)
    above.tick_params(axis="x", labelbottom=False)
    strip.tick_params(axis="x", pad=4.5)  # clear of the 0 of the other axis
    return above, strip


def _latencies(axes: Axes, load: Load, width: float) -> None:
    _title(axes, f"latency of {some(answered(load), 'answer')}")
    axes.set_yticks([])
    found = load.latencies_ms[load.latencies_ms > 0]
    if not found.size:
        _title(axes, "latency")
        axes.set_xticks([])
        axes.text(0.0, 0.5, "nothing was answered", transform=axes.transAxes, va="center", color=INK, fontsize=9)
        return
    low, high = found.min() / 1.15, max(load.max_ms or 0.0, found.max()) * 1.15
    counts, edges = np.histogram(found, np.geomspace(low, high, min(48, 8 + 2 * math.isqrt(found.size))))
    axes.stairs(counts, edges, fill=True, color=AFTER, zorder=2)
    axes.set_ylim(0, counts.max() / 0.72)
    axes.set_xscale("log")
    end = _mark_percentiles(axes, load, low, high, _MARK / width)
    axes.set_xlim(low, end)
    ticks = _ticks(low, high, (end / low) ** (_TICK / width))
    axes.set_xticks(ticks, list(map(words.milliseconds, ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"log axis; longest {words.milliseconds(load.max_ms or high)}", fontsize=_LETTERS, color=INK)


def _mark_percentiles(axes: Axes, load: Load, low: float, high: float, room: float) -> float:
    """Draw a line and a name for each percentile, and return where the axis has to end for the names to fit.

    Args:
        axes: The axes.
        load: What is drawn.
        low: Where the axis begins, ms.
        high: Where it has to end at least, ms.
        room: What a name takes, as a share of the axis.
    """
    found = zip(ENOUGH, percentiles(load), strict=True)
    known = [(share, value) for share, value in found if value and is_known(load, share)]
    values = [low, *(value for _, value in known)]
    last = math.log(values[-1] / low) / math.log(high / low)
    stands_left = last + room > 1 and math.log(values[-1] / values[-2]) / math.log(high / low) > room
    if not stands_left:
        high = max(high, low * (values[-1] / low) ** (1 / (1 - room)))
    for number, ((share, value), style) in enumerate(zip(known, ("solid", "dashed", "dotted"), strict=False)):
        # Each line ends below the names of those before it, so that it crosses none.
        top, is_left = 1.0 - 0.085 * number, stands_left and share == known[-1][0]
        axes.axvline(value, ymax=top, color=INK, linestyle=style, linewidth=1.1, zorder=3)
        axes.annotate(
            f"p{share} {words.milliseconds(value)}", (value, top), xycoords=("data", "axes fraction"),
            xytext=(-3 if is_left else 3, 0), textcoords="offset points", ha="right" if is_left else "left", va="top",
            color=INK, fontsize=_LETTERS,
        )  # fmt: skip
    return high


def _ticks(low: float, high: float, apart: float) -> list[float]:
    """Return round values between two ends of a log axis, each ``apart`` times the one before it or more."""
    linear = [tick for tick in MaxNLocator(2).tick_values(low, high) if low <= tick <= high]
    found = (*(round_ticks(low, high, most) for most in (4, 3, 2)), linear)
    fitting = [ticks for ticks in found if all(b >= apart * a for a, b in itertools.pairwise(ticks))]
    return max(fitting, key=len, default=linear[-1:])


def _over_time(pair: tuple[Axes, Axes], load: Load) -> None:
    above, strip = pair
    paces = paces_of(load)
    some = max(1, math.ceil(len(paces) / MOST_STEPS))
    groups = [paces[start : start + some] for start in range(0, len(paces), some)]
    failed = "✗ failed/s" if load.failed else ""
    every = "second by second" if some == 1 else f"every {some} s"
    _title(above, f"answers/s, {failed or every}")
    caption = f"p95 of {'each second' if some == 1 else f'the worst of {some} seconds'}"
    _title(strip, caption if answered(load) else _NO_P95, _LETTERS)
    edges = [group[0].start for group in groups] + [group[-1].end for group in groups[-1:]]
    rates = [float(np.mean([pace.answers for pace in group])) for group in groups]
    if groups:
        if some > 1:
            ends = [[end(pace.answers for pace in group) for group in groups] for end in (min, max)]
            above.stairs(ends[1], edges, baseline=ends[0], fill=True, color=_LIGHT, zorder=1)
        else:
            above.stairs(rates, edges, fill=True, color=_LIGHT, zorder=1)
        above.stairs(rates, edges, color=AFTER, linewidth=1.3, zorder=2, baseline=None)
    failures = [float(np.mean([pace.failures for pace in group])) for group in groups]
    _draw_failures(above, failures, edges)
    worst = [max((pace.p95_ms for pace in group if pace.p95_ms is not None), default=math.nan) for group in groups]
    if groups:
        strip.stairs(worst, edges, color=AFTER, linewidth=1.1, baseline=None)
    _rate_axis(above, [*rates, *failures, *(pace.answers for pace in paces)])
    _latency_axis(strip, worst)
    for axes in pair:
        axes.set_xlim(0, max((*edges, load.seconds)))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_ROUND))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    strip.set_xlabel("seconds; band: slowest to fastest" if some > 1 else "seconds", fontsize=_LETTERS, color=INK)


def _draw_failures(axes: Axes, failures: Sequence[float], edges: Sequence[float]) -> None:
    """Draw failures per second hatched, and a cross above each: few among many answers would not be seen."""
    if not any(failures):
        return
    axes.stairs(failures, edges, fill=True, facecolor=pieces.BAD, edgecolor=PAPER, hatch="////", linewidth=0, zorder=3)
    middles = [(edges[place] + edges[place + 1]) / 2 for place, rate in enumerate(failures) if rate]
    axes.plot(
        middles, [0.96] * len(middles), "x", transform=axes.get_xaxis_transform(), color=pieces.BAD, markersize=4.5,
        markeredgewidth=1.4, zorder=4, clip_on=False,
    )  # fmt: skip


def _over_clients(pair: tuple[Axes, Axes], saturation: Saturation, load: Load) -> None:
    above, strip = pair
    steps, knee = saturation.loads, saturation.knee
    clients = [step.clients for step in steps]
    said = f"knee at {knee.clients:,}" if knee else "by clients"
    _title(above, f"answers/s, {said}")
    at_knee = f", {words.milliseconds(knee.p95_ms)} at the knee" if knee and knee.p95_ms is not None else ""
    _title(strip, f"p95{at_knee}" if saturation.peak.throughput or load.throughput else _NO_P95, _LETTERS)
    rates = [step.throughput for step in steps]
    latencies = [math.nan if step.p95_ms is None else step.p95_ms for step in steps]
    for axes, values, own in ((above, rates, load.throughput), (strip, latencies, load.p95_ms)):
        axes.plot(clients, values, "o-", color=AFTER, markersize=4, linewidth=1.3, clip_on=False)
        if own is not None:
            axes.plot([load.clients], [own], "D", color=INK, markerfacecolor="none", markersize=6, clip_on=False)
        if knee:
            axes.axvline(knee.clients, ymax=0.94, color=INK, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
        axes.set_xscale("log", base=2)
        low, high = min((*clients, load.clients)), max((*clients, load.clients))
        axes.set_xlim(low / (high / low) ** 0.06 / 1.05, high * (high / low) ** 0.06 * 1.05)
        axes.xaxis.set_major_locator(FixedLocator(_apart([*clients, load.clients])))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
    _rate_axis(above, [*rates, load.throughput])
    _latency_axis(strip, [*latencies, math.nan if load.p95_ms is None else load.p95_ms])
    strip.set_xlabel(f"clients; ◇ the run of {words.seconds(load.seconds)}", fontsize=_LETTERS, color=INK)


def _apart(counts: Sequence[int]) -> list[int]:
    """Return the numbers of clients that have room below a log axis, the highest first."""
    kept: list[int] = []
    across = math.log(max(counts) / min(counts)) or 1.0
    for count in sorted(set(counts), reverse=True):
        if not kept or math.log(kept[-1] / count) > 0.17 * across:
            kept.append(count)
    return kept


def _rate_axis(axes: Axes, values: Sequence[float]) -> None:
    most = max(values, default=0.0)
    axes.set_ylim(0, 1.2 * most or 1.0)
    ticks = [tick for tick in MaxNLocator(4, steps=_ROUND).tick_values(0, most or 1.0) if 0 <= tick <= 1.1 * most]
    axes.set_yticks(ticks or [0], [rate(tick) for tick in ticks] or ["0"])


def _latency_axis(axes: Axes, values: Sequence[float]) -> None:
    """Name the ends of a small axis of latencies: from 0, and logarithmic where they lie far apart."""
    known = [value for value in values if math.isfinite(value) and value > 0]
    if not known:
        axes.set_yticks([])
        axes.set_ylim(0, 1)
        return
    low, high = min(known), max(known)
    if high > 20 * low:
        axes.set_yscale("log")
        low, high = low / 1.5, high * 1.5
        axes.set_ylim(low, high)
        ticks = _ticks(low, high, (high / low) ** 0.36)
    else:
        axes.set_ylim(0, 1.2 * high)
        ticks = [tick for tick in MaxNLocator(2, steps=_ROUND).tick_values(0, high) if 0 <= tick <= 1.2 * high]
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(ticks, [words.milliseconds(tick) if tick else "0" for tick in ticks])


def answered(load: Load) -> int:
    """Return how many requests were answered."""
    return load.requests - load.failed


def rate(value: float) -> str:
    """Return answers per second as people read them: "2,310", "0.45"."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def some(count: int, what: str) -> str:
    """Return a count of things: "1 answer", "9,000 answers"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def is_known(load: Load, share: int) -> bool:
    """Whether there were enough answers for a percentile."""
    return answered(load) >= ENOUGH[share]


def percentiles(load: Load) -> tuple[float | None, ...]:
    """Return the median, the 95th and the 99th percentile in ms, in the order of ``ENOUGH``."""
    return load.p50_ms, load.p95_ms, load.p99_ms
