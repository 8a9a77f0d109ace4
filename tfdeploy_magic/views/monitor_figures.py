"""The figure of a model that is watched: requests a second, latency and errors over the same time.

A picture is made once, by matplotlib's own defaults, and from then on its lines and words are only moved. That takes
less time, and a thread may do it: nothing of matplotlib's settings, which belong to the whole process, is changed.
"""

from __future__ import annotations

import datetime
import functools
import io
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from matplotlib import font_manager, style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from PIL import Image

from tfdeploy_magic.serving.history import History, Interval, Tally, Who
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import words
from tfdeploy_magic.views.figures import INK, PAPER, QUIET, on_own_paper, prepare, round_ticks
from tfdeploy_magic.views.load_figures import rate

COLORS = ("#0072B2", "#CC79A7", "#009E73", "#56B4E9")
"""Of versions and arms: those of Okabe and Ito that errors have not. The rest is drawn as one line, in grey."""

SHARES: dict[int, Literal["solid", "dashed", "dotted"]] = {50: "solid", 95: "dashed", 99: "dotted"}
"""Percentiles that are drawn, and how."""

ALL = "all requests"

_ERROR = pieces.BAD
_FONT, _LETTERS = "DejaVu Sans", 8.0  # points
_WIDTH, _LEFT, _RIGHT = 7.2, 0.6, 1.3  # inches
_HEIGHTS, _TOP, _GAP, _BOTTOM = (1.15, 1.05, 0.6), 0.28, 0.36, 0.28  # inches
_APART = 0.14  # inches between the names of two lines
_LONGEST = 18  # letters
_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)  # seconds
_FLOOR = 10
"""Intervals that the time axis holds at least: a single one would look like a steady state."""

_Line = tuple[int, str, list[Tally]]
_Value = TypeVar("_Value")


@on_own_paper
def figure(history: History, seconds: float) -> Figure:
    """Draw the last seconds of what was seen."""
    made = Picture(seconds, dpi=100)
    made.draw(history)
    return made.figure


def picture(seconds: float) -> Picture:
    """Return a picture to be drawn again and again."""
    with style.context("default"):
        return Picture(seconds, dpi=144)


def name_of(who: Who) -> str:
    """Return what a version is called, or an arm: "version 3", "canary (3)"."""
    version, arm = who
    if version is None:
        return arm or "no version"
    return f"{arm} ({version})" if arm and arm != str(version) else f"version {version}"


class Picture:
    """Three panels that share their time; one thread at a time may draw it.

    Args:
        seconds: How much is drawn, the last.
        dpi: How fine.
    """

    def __init__(self, seconds: float, *, dpi: int) -> None:
        height = sum(_HEIGHTS) + _TOP + 2 * _GAP + _BOTTOM
        self.figure = Figure(figsize=(_WIDTH, height), dpi=dpi, facecolor=PAPER)
        self._canvas = FigureCanvasAgg(self.figure)
        self._seconds = seconds
        self._places: dict[Who, int] = {}
        lows = [height - _TOP - sum(_HEIGHTS[: place + 1]) - place * _GAP for place in range(3)]
        colors = ((*COLORS, QUIET, _ERROR), (INK,) * len(SHARES), (*COLORS, QUIET))
        self._rate, self._latency, self._failing = self._panels = tuple(
            _Panel(self.figure, low, inches, own) for low, inches, own in zip(lows, _HEIGHTS, colors, strict=True)
        )
        for line, lead, dashes in zip(self._latency.lines, self._latency.leads, SHARES.values(), strict=True):
            line.set_linestyle(dashes)
            lead.set_linestyle(dashes)
        for panel in (self._rate, self._latency):
            panel.axes.tick_params(axis="x", labelbottom=False)

    def draw(self, history: History) -> None:
        """Draw what was seen so far."""
        end = history.until
        seen = [interval for interval in history.intervals if interval.end > end - self._seconds]
        lines = self._lines(seen)
        self._draw_rates(seen, lines)
        self._draw_latencies(seen)
        self._draw_errors(seen, lines)
        start = end - self._seconds
        if seen:
            start = max(start, min(seen[0].start, end - _FLOOR * seen[-1].seconds))
        for panel in self._panels:
            panel.over(start, end, history.gaps)

    def png(self) -> bytes:
        """Return it as a PNG."""
        self._canvas.draw()  # type: ignore[no-untyped-call]
        buffer = io.BytesIO()
        pixels = np.asarray(self._canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
        Image.fromarray(pixels).save(buffer, "png", compress_level=4)
        return buffer.getvalue()

    def _lines(self, seen: Sequence[Interval]) -> list[_Line]:
        """Return the place, the name and the requests of each line; a line keeps its place while it is drawn."""
        present = sorted({who for interval in seen for who in interval.versions}, key=lambda who: (who[0] or 0, who[1]))
        if not present:
            return [(0, ALL, [interval.model for interval in seen])] if seen else []
        self._places = {who: place for who, place in self._places.items() if who in present}
        free = iter(sorted(set(range(len(COLORS))) - set(self._places.values())))
        for who in present:
            if who not in self._places and (place := next(free, None)) is not None:
                self._places[who] = place
        none = Tally()
        lines = [
            (place, name_of(who), [interval.versions.get(who, none) for interval in seen])
            for who, place in self._places.items()
        ]
        if rest := [who for who in present if who not in self._places]:
            tallies = [Tally.sum(interval.versions.get(who, none) for who in rest) for interval in seen]
            lines.append((len(COLORS), f"{len(rest)} others", tallies))
        return lines

    def _draw_rates(self, seen: Sequence[Interval], lines: Sequence[_Line]) -> None:
        panel = self._rate
        panel.clear("requests/s")
        for place, name, tallies in lines:
            panel.draw(place, name, seen, [tally.asked / one.seconds for one, tally in _both(seen, tallies)])
        failed = [interval.model.failed / interval.seconds for interval in seen]
        if any(failed):
            panel.draw(len(COLORS) + 1, "✗ errors", seen, [value or math.nan for value in failed], failed[-1])
            panel.cross([(one, value) for one, value in _both(seen, failed) if value], _ERROR)
        panel.rates()

    def _draw_latencies(self, seen: Sequence[Interval]) -> None:
        panel = self._latency
        found = [[interval.model.percentile(share / 100) for interval in seen] for share in SHARES]
        known = any(value is not None for values in found for value in values)
        panel.clear("latency in the server" if known else "latency: nothing was answered")
        for place, (share, values) in enumerate(zip(SHARES, found, strict=True)):
            last = next((value for value in reversed(values) if value is not None), None)
            if last is not None:
                drawn = [math.nan if value is None else value for value in values]
                panel.draw(place, f"p{share} {words.milliseconds(last)}", seen, drawn)
        panel.times()

    def _draw_errors(self, seen: Sequence[Interval], lines: Sequence[_Line]) -> None:
        panel = self._failing
        failing = [
            (place, name, [tally.failed / one.seconds for one, tally in _both(seen, tallies)])
            for place, name, tallies in lines
            if any(tally.failed for tally in tallies)
        ]
        panel.clear("✗ errors/s" if failing else "no errors")
        for place, name, failed in failing:
            panel.draw(place, f"✗ {name}", seen, failed)
        panel.cross([(one, value) for _, _, failed in failing for one, value in _both(seen, failed) if value], INK)
        panel.rates()


class _Panel:
    """One panel: lines with their names at the right, crosses, and grey where nothing is known.

    Args:
        drawn: Where it is drawn.
        low: Its lower edge, inches.
        inches: Its height.
        colors: Of each line that it may have.
    """

    def __init__(self, drawn: Figure, low: float, inches: float, colors: Sequence[str]) -> None:
        height = drawn.get_figheight()
        width = _WIDTH - _LEFT - _RIGHT
        self.axes = axes = drawn.add_axes((_LEFT / _WIDTH, low / height, width / _WIDTH, inches / height))
        prepare(axes, "")
        axes.spines["bottom"].set(visible=True, color="#d4d4d0", linewidth=0.6, zorder=0)
        axes.tick_params(
            axis="both", which="both", colors=QUIET, labelcolor=INK, labelsize=_LETTERS, length=0, labelfontfamily=_FONT
        )
        axes.yaxis.set_minor_locator(NullLocator())
        letters: dict[str, Any] = {"transform": axes.transAxes, "color": INK, "family": _FONT, "parse_math": False}
        self._title = axes.text(0.0, 1 + 0.07 / inches, "", fontsize=_LETTERS + 1, **letters)
        self.lines = [axes.plot([], [], color=color, linewidth=1.3)[0] for color in colors]
        self._names = [
            axes.text(1 + 0.17 / width, 0.0, "", fontsize=_LETTERS, va="center_baseline", **letters) for _ in colors
        ]
        # From the end of a line to its name, which may have had to make room for another.
        self.leads = [
            axes.plot(
                [1 + 0.02 / width, 1 + 0.13 / width], [0, 0], color=color, linewidth=1.3, transform=axes.transAxes,
                clip_on=False,
            )[0]
            for color in colors
        ]  # fmt: skip
        (self._crosses,) = axes.plot([], [], "x", markersize=4, markeredgewidth=1.2, clip_on=False, zorder=4)
        self._gaps = PolyCollection([], facecolor="#e4e4e1", transform=axes.get_xaxis_transform(), zorder=0)
        axes.add_collection(self._gaps, autolim=False)
        self._silence = axes.text(0.0, 0.5, "no answer", fontsize=_LETTERS, va="center", **letters)
        self._silence.set(transform=axes.get_xaxis_transform(), ha="center", clip_on=True)
        self._inches, self._width = inches, width
        self._ends: dict[int, float] = {}
        self._values: list[float] = []

    def clear(self, title: str) -> None:
        """Take all lines away."""
        self._title.set_text(title)
        self._ends, self._values = {}, []
        self._crosses.set_data([], [])
        for line, name, lead in zip(self.lines, self._names, self.leads, strict=True):
            line.set_data([], [])
            name.set_text("")
            lead.set_visible(False)

    def draw(
        self, place: int, name: str, seen: Sequence[Interval], values: Sequence[float], end: float | None = None
    ) -> None:
        """Draw a line, each value for as long as its interval; it is broken where something is missing.

        Args:
            place: Which of the lines.
            name: What it is called.
            seen: When each value was.
            values: NaN where there is none.
            end: The value that its name stands at; the last one when left out.
        """
        x: list[float] = []
        y: list[float] = []
        for interval, value in _both(seen, values):
            if x and interval.start > x[-1]:
                x.append(x[-1])
                y.append(math.nan)
            x += [interval.start, interval.end]
            y += [value, value]
        self.lines[place].set_data(x, y)
        self._names[place].set_text(_drawable(name))
        known = [value for value in values if math.isfinite(value)]
        self._values += known
        self._ends[place] = end if end is not None else known[-1] if known else 0.0

    def cross(self, found: Sequence[tuple[Interval, float]], color: str) -> None:
        """Mark values by a cross each."""
        self._crosses.set_data([(one.start + one.end) / 2 for one, _ in found], [value for _, value in found])
        self._crosses.set_color(color)

    def rates(self) -> None:
        """Count from zero on the left."""
        most = max(self._values, default=0.0)
        self.axes.set_yscale("linear")
        self.axes.set_ylim(0, 1.12 * most or 1.0)
        few = MaxNLocator(4 if self._inches > 1 else 2, steps=(1, 2, 5, 10))
        ticks = [float(tick) for tick in few.tick_values(0, most) if 0 <= tick <= 1.12 * most] if most else [0.0]
        self.axes.set_yticks(ticks, [rate(tick) if tick else "0" for tick in ticks])

    def times(self) -> None:
        """Write milliseconds on the left, on a log axis where they lie far apart."""
        known = [value for value in self._values if value > 0]
        low, high = min(known, default=1.0), max(known, default=1.0)
        if high > 20 * low:
            low, high = low / 1.3, high * 1.3
            self.axes.set_yscale("log")
            ticks = round_ticks(low, high, 4)
        else:
            low, high = 0.0, 1.15 * high
            self.axes.set_yscale("linear")
            ticks = [float(tick) for tick in MaxNLocator(4, steps=(1, 2, 5, 10)).tick_values(0, high) if tick <= high]
        self.axes.set_ylim(low, high)
        self.axes.yaxis.set_minor_locator(NullLocator())
        ticks = ticks if known else []
        self.axes.set_yticks(ticks, [words.milliseconds(tick) if tick else "0" for tick in ticks])

    def over(self, start: float, end: float, gaps: Sequence[tuple[float, float]]) -> None:
        """Draw the time axis, and what belongs to a place on it."""
        axes = self.axes
        axes.set_xlim(start, end)
        ticks = _clock(start, end)
        step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
        said = "%H:%M" if step % 60 == 0 else "%H:%M:%S"
        axes.set_xticks(ticks, [datetime.datetime.fromtimestamp(tick).strftime(said) for tick in ticks])
        shown = [(max(a, start), b) for a, b in gaps if b > start]
        self._gaps.set_verts([[(a, 0), (b, 0), (b, 1), (a, 1)] for a, b in shown])
        a, b = max(shown, key=lambda gap: gap[1] - gap[0], default=(start, start))
        self._silence.set(x=(a + b) / 2, visible=(b - a) / (end - start) * self._width > 0.7)
        self._place_names()

    def _place_names(self) -> None:
        """Write the names at the ends of their lines, and apart from each other."""
        to_axes = self.axes.transScale + self.axes.transLimits
        low = self.axes.get_ylim()[0]
        wanted = {place: to_axes.transform((0.0, max(end, low)))[1] for place, end in self._ends.items()}
        for place, (at, name_at) in _spread(wanted, _APART / self._inches).items():
            self._names[place].set_y(name_at)
            self.leads[place].set_ydata([at, name_at])
            self.leads[place].set_visible(True)


def _both(seen: Sequence[Interval], values: Sequence[_Value]) -> list[tuple[Interval, _Value]]:
    return list(zip(seen, values, strict=True))


def _spread(wanted: dict[int, float], apart: float) -> dict[int, tuple[float, float]]:
    """Return for each name where its line ends and where it stands: as near as there is room, from above."""
    order = sorted(wanted, key=lambda place: (-wanted[place], place))
    found = [min(max(wanted[place], 0.0), 1.0) for place in order]
    for place in range(1, len(found)):
        found[place] = min(found[place], found[place - 1] - apart)
    lowest = 0.0
    for place in reversed(range(len(found))):  # those that were pushed below the panel push the others up
        found[place] = max(found[place], lowest)
        lowest = found[place] + apart
    return {place: (min(max(wanted[place], 0.0), 1.0), at) for place, at in zip(order, found, strict=True)}


def _clock(start: float, end: float) -> list[float]:
    """Return round times of the clock."""
    step = next((step for step in _STEPS if (end - start) / step <= 5), 3600 * math.ceil((end - start) / 18_000))
    return [float(tick) for tick in range(math.ceil(start / step) * step, math.floor(end) + 1, step)]


@functools.cache
def _letters() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(_FONT)).get_charmap())


def _drawable(name: str) -> str:
    """Return a name as it is drawn: short, on one line, and with a box for what the font lacks."""
    short = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    return "".join(letter if ord(letter) in _letters() else "▯" for letter in pieces.printable(short))
