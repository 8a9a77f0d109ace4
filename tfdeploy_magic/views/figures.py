"""Figures. Made with ``Figure`` and never with pyplot, so that threads and the person's own plots are left alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ParamSpec

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Figure

from tfdeploy_magic.artifacts.evidence import Evidence, Score
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.provenance import Provenance
from tfdeploy_magic.views import words
from tfdeploy_magic.views.html import printable

# A figure brings its own paper: dark ink on it reads the same in a light and in a dark notebook.
PAPER, INK, QUIET = "#fbfbfa", "#1f2328", "#8a8f98"
BEFORE, AFTER = "#8a8f98", "#0072B2"

MOST_BARS = 8

_Arguments = ParamSpec("_Arguments")


def on_own_paper(draw: Callable[_Arguments, Figure]) -> Callable[_Arguments, Figure]:
    """Draw with matplotlib's defaults: a person's dark style would put white text on our light paper."""

    @functools.wraps(draw)
    def drawn(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Figure:
        with style.context("default"):
            return draw(*args, **kwargs)

    return drawn


@dataclass(frozen=True)
class Bars:
    """Counts to be drawn.

    Args:
        title: What is counted.
        lengths: By name.
        said: How one count is written.
    """

    title: str
    lengths: Mapping[str, int]
    said: Callable[[int], str] = "{:,}".format


@on_own_paper
def size_and_score(file: LiteFile, evidence: Evidence, provenance: Provenance) -> Figure:
    """Draw size beside the task metric, source above and converted below.

    Without a metric the right half shows parity instead, and says so when that was not measured either.
    """
    # Placed by hand: finding the places means drawing everything twice, and a card is drawn each time it is shown.
    figure = Figure(figsize=(7.2, 1.75), facecolor=PAPER)
    left = figure.add_axes((0.155, 0.2, 0.36, 0.64))
    right = figure.add_axes((0.56, 0.2, 0.41, 0.64), sharey=left)
    label = provenance.options.get("label", file.scheme)
    names = (provenance.source_form, plain(f"{label} .tflite"))
    _sizes(left, names, (provenance.source_size, file.size))
    if evidence.metric and evidence.score and evidence.baseline_score:
        _scores(right, (evidence.baseline_score, evidence.score), evidence.metric, evidence.n)
    else:
        _parity_only(right, evidence)
    return figure


@on_own_paper
def bars(panels: Sequence[Bars]) -> Figure:
    """Draw counts of several kinds side by side, the largest of each above."""
    most = max(min(len(panel.lengths), MOST_BARS) for panel in panels)
    figure = Figure(figsize=(7.2, 0.62 + 0.24 * max(most, 2)), facecolor=PAPER, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_bars(axes, panel, most)
    return figure


def _draw_bars(axes: Axes, panel: Bars, places: int) -> None:
    largest = sorted(panel.lengths.items(), key=lambda item: (-item[1], item[0]))[:MOST_BARS]
    shown, all_of_them = len(largest), len(panel.lengths)
    prepare(axes, panel.title if shown == all_of_them else f"{panel.title} ({shown} of {all_of_them})")
    positions = range(places - 1, places - 1 - len(largest), -1)
    axes.barh(positions, [length for _, length in largest], height=0.62, color=AFTER)
    axes.set_yticks(positions, [plain(name) for name, _ in largest])
    axes.set_ylim(-0.6, places - 0.4)
    axes.set_xlim(0, max((length for _, length in largest), default=1) * 1.35)
    axes.set_xticks([])
    for position, (_, length) in zip(positions, largest, strict=True):
        said = panel.said(length)
        axes.annotate(said, (length, position), xytext=(5, 0), textcoords="offset points", va="center", color=INK)


def plain(name: str, longest: int = 24) -> str:
    """Return a name as it is drawn: short, on one line, and with no dollar sign, which would begin a formula."""
    return printable(name if len(name) <= longest else f"{name[: longest - 1]}…").replace("$", r"\$")


def _sizes(axes: Axes, names: tuple[str, str], sizes: tuple[int, int]) -> None:
    prepare(axes, "size")
    axes.barh([1, 0], sizes, height=0.56, color=(BEFORE, AFTER))
    axes.set_yticks([1, 0], names)
    axes.set_ylim(-0.45, 1.65)
    axes.set_xlim(0, max(sizes) * 1.28)
    axes.set_xticks([])
    for position, count in zip((1, 0), sizes, strict=True):
        axes.annotate(words.size(count), (count, position), xytext=(5, 0), textcoords="offset points", va="center")


def _scores(axes: Axes, scores: tuple[Score, Score], metric: str, n: int) -> None:
    interval = ", 95% interval" if scores[1].low is not None else ""
    prepare(axes, f"{metric}{interval} ({n} samples)")
    percent = 100.0 if "accuracy" in metric else 1.0
    for position, score, color in zip((1, 0), scores, (BEFORE, AFTER), strict=True):
        value = score.value * percent
        if score.low is not None and score.high is not None:
            ends = (score.low * percent, score.high * percent)
            axes.plot(ends, (position, position), color=color, linewidth=2, solid_capstyle="butt")
        axes.plot([value], [position], "o", color=color, markersize=7)
        label = f"{value:.1f}%" if percent == 100.0 else f"{value:.4g}"
        axes.annotate(label, (value, position), xytext=(0, 7), textcoords="offset points", ha="center", color=INK)
    axes.margins(x=0.12)
    axes.tick_params(axis="y", labelleft=False)
    axes.tick_params(axis="x", colors=QUIET, length=3)


def _parity_only(axes: Axes, evidence: Evidence) -> None:
    prepare(axes, "parity with the source model")
    axes.set_xticks([])
    axes.tick_params(axis="y", labelleft=False)
    lines = ["not measured"]
    if evidence.snr_db is not None:
        lines = [f"SNR {words.decibels(evidence.snr_db)}"]
        if evidence.agreement is not None:
            lines.append(f"same top class {words.share(evidence.agreement)}")
        lines.append(f"{evidence.n} samples")
    axes.text(0.0, 0.5, "\n".join(lines), transform=axes.transAxes, va="center", color=INK)


def prepare(axes: Axes, title: str) -> None:
    """Give axes the look of this package: a title, no frame, ink on paper."""
    axes.set_facecolor(PAPER)
    axes.set_title(title, loc="left", fontsize=9.5, color=INK)
    axes.tick_params(axis="y", length=0, colors=INK, labelsize=9.5)
    axes.tick_params(axis="x", labelsize=8.5)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most ``most`` round values between two positive ends: 1, 2 and 5 times powers of ten, evenly spread."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]
