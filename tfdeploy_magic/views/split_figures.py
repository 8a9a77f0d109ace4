"""The figure of a split: how often each arm is right and fails, and how much evidence there is that arms differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from tfdeploy_magic.serving.sequential import ALPHA, ArmSeen, Contrast, Judged, amount, percents
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views.figures import AFTER, BEFORE, INK, PAPER, QUIET, on_own_paper, plain, prepare
from tfdeploy_magic.views.split import failing

LEAST, MOST = 0.1, 1e5
"""Evidence that is drawn to scale; arrows stand for what lies beyond."""

STRIPE = "#f0f0ec"
SHAPE = {"outcomes": "o", "errors": "s"}

_WIDTH, _ROW, _TOP, _BOTTOM = 7.2, 0.4, 0.34, 0.5  # inches
_GAP, _SHARES = 0.2, (0.31, 0.31, 0.38)
_LETTERS, _NAME = 8.0, 9.0  # points
_LETTER = 0.068  # inches that a digit of the smaller ones takes
_APART = 0.17  # of a row, that the two contrasts of an arm stand from its middle

_Rate = tuple[float, float, float] | None
"""Low end, rate and high end; None where nothing was counted."""


@on_own_paper
def figure(arms: Sequence[ArmSeen], judged: Judged) -> Figure:
    """Draw a row for each arm: its rates with their intervals, and the evidence that it differs from the first.

    Args:
        arms: What was counted.
        judged: What it shows.
    """
    count = len(arms)
    height = _TOP + _ROW * count + _BOTTOM
    drawn = Figure(figsize=(_WIDTH, height), facecolor=PAPER)
    names = [f"{'✓ ' if arm.name == judged.better else ''}{plain(arm.name)}" for arm in arms]
    left = _width(drawn, names) + 0.25
    room = _WIDTH - left - 0.12
    panels: list[tuple[Axes, float]] = []
    for number, share in enumerate(_SHARES):
        start, width = left + sum(_SHARES[:number]) * room, share * room - _GAP * (number < len(_SHARES) - 1)
        box = (start / _WIDTH, _BOTTOM / height, width / _WIDTH, _ROW * count / height)
        panels.append((drawn.add_axes(box), width))
        _lines(panels[-1][0], count)
    panels[0][0].set_yticks(_places(arms), names, fontsize=_NAME)
    right, failed = [_right(arm, judged) for arm in arms], [_failed(arm, judged) for arm in arms]
    colors = [_color(arm, arms, judged) for arm in arms]
    _rates(*panels[0], "right", right, colors, "no outcome\nwas reported")
    _rates(*panels[1], "failed", failed, colors, "no request\nwas counted")
    _evidence(panels[2][0], arms, judged)
    if any(each.better is not None for each in judged.contrasts):
        said = f"filled: shown, better (green) or worse (orange) than {plain(arms[0].name)}"
        drawn.text(0.12 / _WIDTH, 0.07 / height, said, color=INK, fontsize=_LETTERS)
    return drawn


def _width(drawn: Figure, names: Sequence[str]) -> float:
    """Return the inches that the longest name takes."""
    widths = [0.3]
    for name in names:
        written = drawn.text(0, 0, name, fontsize=_NAME)
        widths.append(written.get_window_extent().width / drawn.dpi)
        written.remove()
    return max(widths)


def _places(arms: Sequence[ArmSeen]) -> range:
    """Return the height of each row: the first above."""
    return range(len(arms) - 1, -1, -1)


def _lines(axes: Axes, count: int) -> None:
    """Give a panel its look, and a line for each arm."""
    prepare(axes, "")
    for place in range(count - 1, -1, -2):
        axes.axhspan(place - 0.5, place + 0.5, color=STRIPE, zorder=0, linewidth=0)
    axes.set_ylim(-0.5, count - 0.5)
    axes.set_yticks([])
    axes.tick_params(axis="x", colors=QUIET, labelcolor=INK, labelsize=_LETTERS, length=3)


def _right(arm: ArmSeen, judged: Judged) -> _Rate:
    rate, (low, high) = arm.outcomes.rate, judged.intervals[arm.name, "outcomes"]
    return None if rate is None else (low, rate, high)


def _failed(arm: ArmSeen, judged: Judged) -> _Rate:
    rate, (low, high) = arm.errors.rate, failing(judged, arm.name)
    return None if rate is None else (low, 1 - rate, high)


def _color(arm: ArmSeen, arms: Sequence[ArmSeen], judged: Judged) -> str:
    if arm.name == judged.better:
        return pieces.GOOD
    return BEFORE if arm is arms[0] else AFTER


def _rates(axes: Axes, width: float, what: str, rates: Sequence[_Rate], colors: Sequence[str], nothing: str) -> None:
    known = [rate for rate in rates if rate is not None]
    if not known:
        _title(axes, what)
        axes.set_xticks([])
        axes.text(0.02, 0.5, nothing, transform=axes.transAxes, va="center", color=INK, fontsize=_LETTERS)
        return
    _title(axes, f"{what}, {100 * (1 - ALPHA):.0f}% interval")
    said = percents(*(rate[1] for rate in known))
    low, high = min(rate[0] for rate in known), max(rate[2] for rate in known)
    # The numbers stand to the right of everything.
    scale = (high - low) / (width - _LETTER * max(map(len, said)) - 0.2)
    axes.set_xlim(low - 0.06 * scale, low + (width - 0.06) * scale)
    axes.set_xticks(*_ticks(low, high, scale))
    numbers = iter(said)
    for place, rate, color in zip(range(len(rates) - 1, -1, -1), rates, colors, strict=True):
        if rate is not None:
            axes.plot((rate[0], rate[2]), (place, place), color=color, linewidth=2.4, solid_capstyle="butt", zorder=2)
            axes.plot([rate[1]], [place], "o", color=color, markersize=6.5, zorder=3, clip_on=False)
        axes.text(
            0.99, place, "–" if rate is None else next(numbers), transform=axes.get_yaxis_transform(), ha="right",
            va="center", color=INK, fontsize=_LETTERS,
        )  # fmt: skip


def _ticks(low: float, high: float, scale: float) -> tuple[list[float], list[str]]:
    """Return round rates and their names, as many as have room where an inch is ``scale`` wide."""
    ticks = [tick for tick in MaxNLocator(3, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
    names = [f"{100 * tick:.8f}".rstrip("0").rstrip(".") + "%" for tick in ticks]
    room = (_LETTER * max(map(len, names), default=0) + 0.12) * scale
    apart = math.ceil(room / (ticks[1] - ticks[0])) if len(ticks) > 1 else 1
    return ticks[::apart], names[::apart]


def _evidence(axes: Axes, arms: Sequence[ArmSeen], judged: Judged) -> None:
    if not judged.contrasts:
        _title(axes, "evidence")
        axes.set_xticks([])
        axes.text(0.02, 0.5, "there is one arm", transform=axes.transAxes, va="center", color=INK, fontsize=_LETTERS)
        return
    _title(axes, "evidence  ● right  ■ failed")
    places = dict(zip((arm.name for arm in arms), _places(arms), strict=True))
    needed = judged.contrasts[0].needed
    most = min(max(MOST, 10 * needed), max(10 * needed, *(3 * each.e_value for each in judged.contrasts)))
    axes.set_xscale("log")
    axes.set_xlim(LEAST / 1.3, most * 1.3)
    powers = range(0, math.floor(math.log10(most / 4)) + 1, 1 if most < 1e4 else 2)
    axes.set_xticks([10.0**power for power in powers], [f"{10**power:,}" for power in powers])
    axes.xaxis.set_minor_locator(NullLocator())
    below = (len(arms) - 1) / len(arms)
    axes.axvline(1, ymax=below, color=QUIET, linewidth=0.8, zorder=1)
    axes.axvline(needed, ymax=below, color=INK, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    axes.annotate(
        f"{amount(needed)} needed", (needed, 0), xycoords=("data", "axes fraction"), xytext=(0, -18),
        textcoords="offset points", ha="center", va="top", color=INK, fontsize=_LETTERS, annotation_clip=False,
    )  # fmt: skip
    axes.text(
        0.02, places[arms[0].name], "the others are set against it", transform=axes.get_yaxis_transform(), va="center",
        color=INK, fontsize=_LETTERS,
    )  # fmt: skip
    for each in judged.contrasts:
        _contrast(axes, each, places[each.second] + (_APART if each.metric == "outcomes" else -_APART), most)


def _contrast(axes: Axes, contrast: Contrast, place: float, most: float) -> None:
    value = min(max(contrast.e_value, LEAST), most)
    color = AFTER if contrast.better is None else pieces.GOOD if contrast.better == contrast.second else pieces.BAD
    shape = SHAPE[contrast.metric] if value == contrast.e_value else "<" if value == LEAST else ">"
    inside = PAPER if contrast.better is None else color
    axes.plot((1, value), (place, place), color=color, linewidth=1.6, zorder=2)
    axes.plot([value], [place], shape, color=color, markerfacecolor=inside, markersize=5, zorder=3)


def _title(axes: Axes, said: str) -> None:
    axes.set_title(said, loc="left", fontsize=9.5, color=INK)
