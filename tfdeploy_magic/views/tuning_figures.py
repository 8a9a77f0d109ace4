"""The figure of tuning: what each of the settings answered and how fast, and the duel of the best with the defaults."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullLocator

from tfdeploy_magic.serving.load import Load
from tfdeploy_magic.serving.tuning import Duel, Ratio, Trial, Tuning
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import words
from tfdeploy_magic.views.figures import AFTER, INK, PAPER, QUIET, on_own_paper, prepare, round_ticks
from tfdeploy_magic.views.load_figures import rate

STANDARD, CHOSEN = "■", "◆"
"""What marks the defaults and the best of the others, in the figure and in the table."""

CALLED = ("chosen", "best when tried")
"""What the best is called where the duel shows that it gains something, and where not."""

_WIDTH, _HEIGHT = 7.2, 2.7  # inches
_BOTTOM, _TOP = 0.46, 0.32  # inches
_LETTERS = 8.0  # points
_LIGHT = "#e4eff6"
_ROUND = (1, 2, 5, 10)


@on_own_paper
def figure(tuning: Tuning) -> Figure:
    """Draw throughput against p99, a point for each trial, and beside it the ratios in each round of the duel."""
    drawn = Figure(figsize=(_WIDTH, _HEIGHT), facecolor=PAPER)
    _trials(_axes(drawn, (0.62, 3.7) if tuning.duel else (0.62, 6.3)), tuning)
    if tuning.duel is not None:
        _duel(_axes(drawn, (4.75, 2.2)), tuning.duel)
    return drawn


def _axes(drawn: Figure, place: tuple[float, float]) -> Axes:
    left, width = place
    axes = drawn.add_axes((left / _WIDTH, _BOTTOM / _HEIGHT, width / _WIDTH, (_HEIGHT - _BOTTOM - _TOP) / _HEIGHT))
    prepare(axes, "")
    axes.tick_params(axis="both", which="both", colors=QUIET, labelcolor=INK, labelsize=_LETTERS, length=0)
    return axes


def _trials(axes: Axes, tuning: Tuning) -> None:
    measured = [(trial, trial.load) for trial in tuning.trials if trial.load is not None and trial.load.p99_ms]
    axes.set_title("answers/s against p99", loc="left", fontsize=9.5, color=INK)
    axes.set_xlabel("p99, log axis", fontsize=_LETTERS, color=INK)
    most = max((load.throughput for _, load in measured), default=1.0)
    latencies = [load.p99_ms or 0.0 for _, load in measured] + [tuning.target_ms]
    low, high = min(latencies) / 1.3, max(latencies) * 1.3
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = next(found for most_ticks in (5, 4, 3, 2) if len(found := _ticks(low, high, most_ticks)) <= most_ticks)
    axes.set_xticks(ticks, list(map(words.milliseconds, ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.17 * most, 1.32 * most)
    rates = [tick for tick in MaxNLocator(4, steps=_ROUND).tick_values(0, most) if 0 <= tick <= 1.1 * most]
    axes.set_yticks(rates, list(map(rate, rates)))
    _target(axes, tuning.target_ms, low, high)
    _curve(axes, [load for trial, load in measured if not load.failed])
    for trial, load in measured:
        if trial is tuning.defaults or trial is tuning.best:
            continue
        style = {"marker": "x", "color": pieces.BAD} if load.failed else {"marker": "o", "color": AFTER}
        axes.plot([load.p99_ms], [load.throughput], linestyle="", markersize=4.5, alpha=0.75, **style)  # type: ignore[arg-type]
    _named_points(axes, tuning, low, high)


def _ticks(low: float, high: float, most: int) -> list[float]:
    found = round_ticks(low, high, most)
    return found or [float(f"{math.sqrt(low * high):.1g}")]


def _target(axes: Axes, target_ms: float, low: float, high: float) -> None:
    axes.axvspan(low, target_ms, color=_LIGHT, zorder=0, linewidth=0)
    axes.axvline(target_ms, color=INK, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    is_left = math.log(target_ms / low) > 0.5 * math.log(high / low)
    axes.annotate(
        f"target {words.milliseconds(target_ms)}", (target_ms, 1.0), xycoords=("data", "axes fraction"),
        xytext=(-4 if is_left else 4, -2), textcoords="offset points", ha="right" if is_left else "left", va="top",
        color=INK, fontsize=_LETTERS,
    )  # fmt: skip


def _curve(axes: Axes, loads: Sequence[Load]) -> None:
    """Draw the most that was answered within each p99."""
    points = sorted((load.p99_ms or 0.0, load.throughput) for load in loads)
    best = list(itertools.accumulate((throughput for _, throughput in points), max))
    edge = [point for point, most in zip(points, best, strict=True) if point[1] == most]
    if edge:
        axes.plot(*zip(*edge, strict=True), drawstyle="steps-post", color=AFTER, linewidth=1.1, alpha=0.6, zorder=1)


def _named_points(axes: Axes, tuning: Tuning, low: float, high: float) -> None:
    """Mark the defaults and the best; the name of the higher one stands above it, that of the other below."""
    named = [(tuning.defaults, "s", QUIET, "defaults")]
    if tuning.best is not tuning.defaults:
        named.append((tuning.best, "D", AFTER, CALLED[tuning.gain == "nothing"]))
    known = [each for each in named if each[0].load is not None and each[0].load.p99_ms]
    known.sort(key=lambda each: _throughput(each[0]))
    for place, (trial, marker, color, name) in enumerate(known):
        assert trial.load is not None and trial.load.p99_ms is not None
        p99, throughput = trial.load.p99_ms, trial.load.throughput
        axes.plot([p99], [throughput], marker, color=color, markeredgecolor=INK, markersize=7, zorder=3)
        across = math.log(p99 / low) / math.log(high / low)
        above = place == len(known) - 1
        axes.annotate(
            name, (p99, throughput), xytext=(0, 7 if above else -7), textcoords="offset points", color=INK,
            fontsize=_LETTERS, va="bottom" if above else "top", zorder=4,
            ha="left" if across < 0.2 else "right" if across > 0.8 else "center",
            path_effects=[withStroke(linewidth=3, foreground=PAPER)],
        )  # fmt: skip


def _throughput(trial: Trial) -> float:
    return trial.load.throughput if trial.load is not None else 0.0


def _duel(axes: Axes, duel: Duel) -> None:
    """Draw how the tuned settings compare with the defaults in each round; beyond the line of 1 they are better."""
    rows = [("answers/s", duel.throughput, _quotients(duel, "throughput"), "more"),
            ("p99", duel.p99, _quotients(duel, "p99_ms"), "shorter")]  # fmt: skip
    axes.set_title(f"tuned ÷ defaults, {len(duel.tuned)} rounds", loc="left", fontsize=9.5, color=INK)
    every = [quotient for _, _, quotients, _ in rows for quotient in quotients]
    low, high = min((*every, 1.0)) / 1.12, max((*every, 1.0)) * 1.12
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(-0.5, 1.75)
    axes.set_yticks([])
    for place, (name, ratio, quotients, better) in zip((1, 0), rows, strict=True):
        axes.annotate(
            f"{name}: {_said(ratio)}", (0.0, place + 0.3), xycoords=("axes fraction", "data"), color=INK,
            fontsize=_LETTERS, va="bottom",
        )  # fmt: skip
        axes.plot([1.0, 1.0], [place - 0.24, place + 0.24], color=INK, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
        if ratio is not None:
            is_better = ratio.low > 1 if better == "more" else ratio.high < 1
            axes.plot([ratio.low, ratio.high], [place, place], color=AFTER, linewidth=2, alpha=0.4, zorder=2)
            axes.plot(quotients, [place] * len(quotients), "o", color=AFTER, markersize=4, alpha=0.7, zorder=3)
            face = AFTER if is_better else PAPER
            axes.plot([ratio.median], [place], "D", color=face, markeredgecolor=INK, markersize=7, zorder=4)
    ticks = _ratio_ticks(low, high)
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("◆ median; line: the range of the rounds", fontsize=_LETTERS, color=INK)


def _quotients(duel: Duel, what: str) -> list[float]:
    pairs = [
        (getattr(ours, what), getattr(theirs, what)) for ours, theirs in zip(duel.tuned, duel.defaults, strict=True)
    ]
    return [ours / theirs for ours, theirs in pairs if ours and theirs]


def _ratio_ticks(low: float, high: float) -> list[float]:
    """Return 1 and round ratios on both sides of it that have room."""
    if high / low > 4:
        return round_ticks(low, high, 5)
    step = next(step for step in (0.05, 0.1, 0.2, 0.5, 1.0) if (high - low) / step <= 6)
    counts = range(math.ceil(low / step), math.floor(high / step) + 1)
    ticks = [round(count * step, 2) for count in counts]
    return ticks if 1.0 in ticks else sorted({*ticks, 1.0})


def _said(ratio: Ratio | None) -> str:
    if ratio is None:
        return "not known"
    return f"{ratio.median:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})"
