"""Figures. Made with ``Figure`` and never with pyplot, so that threads and the person's own plots are left alone."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Figure

from tfdeploy_magic.artifacts.evidence import Evidence, Score
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.provenance import Provenance
from tfdeploy_magic.views import words

# A figure brings its own paper: dark ink on it reads the same in a light and in a dark notebook.
PAPER, INK, QUIET = "#fbfbfa", "#1f2328", "#8a8f98"
BEFORE, AFTER = "#8a8f98", "#0072B2"


def size_and_score(file: LiteFile, evidence: Evidence, provenance: Provenance) -> Figure:
    """Draw size beside the task metric, source above and converted below.

    Without a metric the right half shows parity instead, and says so when that was not measured either.
    """
    figure = Figure(figsize=(7.2, 1.75), facecolor=PAPER, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    left, right = figure.subplots(1, 2, sharey=True)
    names = ("SavedModel", f"{file.scheme} .tflite")
    _sizes(left, names, (provenance.source_size, file.size))
    if evidence.metric and evidence.score and evidence.baseline_score:
        _scores(right, (evidence.baseline_score, evidence.score), evidence.metric, evidence.n)
    else:
        _parity_only(right, evidence)
    return figure


def _sizes(axes: Axes, names: tuple[str, str], sizes: tuple[int, int]) -> None:
    _prepare(axes, "size")
    axes.barh([1, 0], sizes, height=0.56, color=(BEFORE, AFTER))
    axes.set_yticks([1, 0], names)
    axes.set_ylim(-0.45, 1.65)
    axes.set_xlim(0, max(sizes) * 1.28)
    axes.set_xticks([])
    for position, count in zip((1, 0), sizes, strict=True):
        axes.annotate(words.size(count), (count, position), xytext=(5, 0), textcoords="offset points", va="center")


def _scores(axes: Axes, scores: tuple[Score, Score], metric: str, n: int) -> None:
    interval = ", 95% interval" if scores[1].low is not None else ""
    _prepare(axes, f"{metric}{interval} ({n} samples)")
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
    _prepare(axes, "parity with the source model")
    axes.set_xticks([])
    axes.tick_params(axis="y", labelleft=False)
    lines = ["not measured"]
    if evidence.snr_db is not None:
        lines = [f"SNR {words.decibels(evidence.snr_db)}"]
        if evidence.agreement is not None:
            lines.append(f"same top class {words.share(evidence.agreement)}")
        lines.append(f"{evidence.n} samples")
    axes.text(0.0, 0.5, "\n".join(lines), transform=axes.transAxes, va="center", color=INK)


def _prepare(axes: Axes, title: str) -> None:
    axes.set_facecolor(PAPER)
    axes.set_title(title, loc="left", fontsize=9.5, color=INK)
    axes.tick_params(axis="y", length=0, colors=INK, labelsize=9.5)
    axes.tick_params(axis="x", labelsize=8.5)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
