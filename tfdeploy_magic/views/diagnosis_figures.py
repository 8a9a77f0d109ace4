"""The figures of a diagnosis: errors of tensors, channels, values against what is held, and changed samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from tfdeploy_magic.artifacts.debugging import ChangedSample, ChannelSpread, Diagnosis, LayerError
from tfdeploy_magic.views import words
from tfdeploy_magic.views.diagnosis import (
    ROUNDING,
    by_error,
    chosen_output,
    label_of,
    labelled,
    outcome,
    outside,
    steps,
)
from tfdeploy_magic.views.diagnosis import worst_spread as most_unequal
from tfdeploy_magic.views.figures import AFTER, BEFORE, INK, PAPER, QUIET, on_own_paper, plain, prepare, round_ticks

BAD, HELD = "#D55E00", "#cfe3f1"
STRIPE = "#f0f0ec"

MOST_TENSORS = 60
"""Tensors that are drawn one below the other; of more, the worst in the model's order."""

MOST_HISTOGRAMS, MOST_SAMPLES, MOST_SCORES, MOST_VALUES, MOST_DRAWN = 6, 5, 10, 2000, 150

_WIDTH = 10.4  # inches
_TALLEST = 3.2  # inches of a panel that has no line for each name
_NAME = 50  # characters

_HISTOGRAMS = (
    "values of the worst tensors, computed in float (counts, log axis); shaded: what the quantized tensor can hold"
)

Numbers = npt.NDArray[np.float64]


@on_own_paper
def layers(diagnosis: Diagnosis) -> Figure:
    """Draw two panels with a bar for each tensor in the model's order: RMSE/scale, and SNR; the worst stands out."""
    found = diagnosis.layers
    if not found:
        return _nothing("no tensor was measured")
    kept = {id(layer) for layer in by_error(found)[:MOST_TENSORS]}
    shown = [layer for layer in found if id(layer) in kept]
    worst = by_error(shown)[0]
    names = [f"{'▶ ' if layer is worst else ''}{plain(labelled(layer), _NAME)}" for layer in shown]
    figure, (left, right) = _side_by_side(names, (0.55, 0.45))
    counted = "" if len(shown) == len(found) else f" (the worst {len(shown)} of {len(found)})"
    left.set_title(f"RMSE / scale{counted}", loc="left", fontsize=9.5, color=INK)
    right.set_title("SNR", loc="left", fontsize=9.5, color=INK)
    errors = [layer.rmse_over_scale for layer in shown]
    hues = [BAD if layer is worst else AFTER for layer in shown]
    said = [f"{steps(layer)}{'  ◀ worst' if layer is worst else ''}" for layer in shown]
    _bars(left, errors, said, hues, least=2 * ROUNDING, clear=ROUNDING)
    left.axvline(ROUNDING, color=INK, linewidth=1, linestyle=(0, (4, 2)), zorder=3)
    left.annotate(
        f"{ROUNDING:.2f}: rounding alone", (ROUNDING, 0), xycoords=("data", "axes fraction"), xytext=(0, -4),
        textcoords="offset points", ha="left", va="top", color=INK, fontsize=8, annotation_clip=False,
    )  # fmt: skip
    ratios = [layer.snr_db for layer in shown]
    _bars(right, ratios, [words.decibels(ratio) for ratio in ratios], hues, least=10.0)
    return figure


@on_own_paper
def spread(diagnosis: Diagnosis) -> Figure:
    """Draw the spread of every tensor's channels on a log axis, and the channels of the most unequal tensor."""
    worst = most_unequal(diagnosis.spreads)
    if worst is None:
        return _nothing("no channels were measured")
    ranked = sorted(diagnosis.spreads, key=lambda each: -1.0 if math.isnan(each.spread) else -each.spread)
    kept = {id(each) for each in ranked[:MOST_TENSORS]}
    shown = [each for each in diagnosis.spreads if id(each) in kept or each is worst]
    names = [f"{'▶ ' if each is worst else ''}{plain(labelled(each), _NAME)}" for each in shown]
    figure, (left, right) = _side_by_side(names, (0.4, 0.6), least_height=2.2, shared=False)
    left.set_title("channel ranges: largest / median", loc="left", fontsize=9.5, color=INK)
    values = [each.spread if math.isfinite(each.spread) and each.spread >= 1 else 1.0 for each in shown]
    left.set_xscale("log")
    most = max((*values, 2.0))
    left.set_xlim(0.93, most**1.6)
    _name_ticks(left, round_ticks(1, most, 4), lambda value: f"×{value:g}")
    for place, each, value in zip(range(len(shown) - 1, -1, -1), shown, values, strict=True):
        hue, shape = (BAD, "D") if each is worst else (AFTER, "o")
        left.plot((1, value), (place, place), color=hue, linewidth=1.6, zorder=2)
        left.plot([value], [place], shape, color=hue, markersize=5, zorder=3)
        _beside(left, value, place, f"×{each.spread:.3g}{'  ◀ widest' if each is worst else ''}")
    _channels(right, worst)
    return figure


@on_own_paper
def histograms(diagnosis: Diagnosis) -> Figure:
    """Draw the float values of the worst tensors as histograms over the range that each can hold."""
    shown = [layer for layer in by_error(diagnosis.layers) if layer.histogram is not None][:MOST_HISTOGRAMS]
    if not shown:
        return _nothing("no values were counted")
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    height = 2.15 * rows + 0.35
    figure = Figure(figsize=(_WIDTH, height), facecolor=PAPER)
    # Placed by hand: to find the places means drawing everything twice.
    figure.subplots_adjust(0.06, 0.28 / height, 0.985, 1 - 0.6 / height, wspace=0.2, hspace=0.38)
    figure.text(0.012, 1 - 0.12 / height, _HISTOGRAMS, va="top", fontsize=9.5, color=INK)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, layer in zip(grid, shown, strict=False):
        _histogram(axes, layer)
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    return figure


@on_own_paper
def samples(diagnosis: Diagnosis) -> Figure:
    """Draw the samples that were changed most side by side: each sample, and below it both models' answers."""
    shown = diagnosis.changed[:MOST_SAMPLES]
    if not shown:
        return _nothing("no sample was compared")
    figure = Figure(figsize=(_WIDTH, 4.5), facecolor=PAPER, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    columns = max(len(shown), 3)
    grid = figure.subplots(2, columns, squeeze=False, height_ratios=(1, 1.25))
    for column, sample in enumerate(shown):
        _sample(grid[0][column], sample)
        _answers(grid[1][column], sample)
    for axes in grid[:, len(shown) :].ravel():
        axes.set_axis_off()
    figure.legend(
        *_pair_of_handles(grid[1]), loc="outside lower left", ncols=2, frameon=False, fontsize=9, labelcolor=INK
    )
    return figure


def _nothing(said: str) -> Figure:
    figure = Figure(figsize=(_WIDTH, 0.6), facecolor=PAPER)
    figure.text(0.02, 0.5, said, va="center", fontsize=9.5, color=INK)
    return figure


def _side_by_side(
    names: Sequence[str], shares: tuple[float, float], least_height: float = 0.0, *, shared: bool = True
) -> tuple[Figure, tuple[Axes, Axes]]:
    """Return two panels placed by hand, with a line for each name; small letters when there are many."""
    many = len(names) > 24
    line, letters = (0.175, 7.5) if many else (0.25, 9.0)
    lines = line * len(names)
    panels = max(lines, least_height)
    height = 0.38 + panels + 0.36
    figure = Figure(figsize=(_WIDTH, height), facecolor=PAPER)
    left = _name_width(figure, names, letters) + 0.25
    room, gap = _WIDTH - left - 0.2, 0.3 if shared else 0.75
    bottom = (0.36 + panels - lines) / height
    first = figure.add_axes((left / _WIDTH, bottom, (shares[0] * room - gap) / _WIDTH, lines / height))
    low, right = (0.0, 0.0) if shared else (max(panels - _TALLEST, 0.0), 0.45)
    box = (left + shares[0] * room, 0.36 + low, shares[1] * room - right, panels - low)
    second = figure.add_axes(
        (box[0] / _WIDTH, box[1] / height, box[2] / _WIDTH, box[3] / height), sharey=first if shared else None
    )
    for axes in (first, second):
        prepare(axes, "")
    for axes in (first, second) if shared else (first,):
        for place in range(len(names) - 1, -1, -2):
            axes.axhspan(place - 0.5, place + 0.5, color=STRIPE, zorder=0, linewidth=0)
    second.tick_params(axis="y", labelleft=not shared)
    first.set_yticks(range(len(names) - 1, -1, -1), list(names), fontsize=letters)
    first.set_ylim(-0.5, len(names) - 0.5)
    return figure, (first, second)


def _name_width(figure: Figure, names: Sequence[str], letters: float) -> float:
    written = [figure.text(0, 0, name, fontsize=letters) for name in names]
    widths = [each.get_window_extent().width / figure.dpi for each in written]
    for each in written:
        each.remove()
    return max(widths)


def _bars(
    axes: Axes, values: Sequence[float], said: Sequence[str], hues: Sequence[str], least: float, clear: float = 0.0
) -> None:
    """Draw a bar for each value, its text right of ``clear``; infinite ones have the longest, no number has none."""
    finite = [value for value in values if math.isfinite(value)]
    most, lowest = max((*finite, least)), min((*finite, 0.0))
    lengths = [most * 1.05 if value == math.inf else value if math.isfinite(value) else 0.0 for value in values]
    places = range(len(values) - 1, -1, -1)
    bars = axes.barh(places, lengths, height=0.62, color=hues, zorder=2)
    for bar, hue in zip(bars, hues, strict=True):
        if hue == BAD:
            bar.set(hatch="////", edgecolor=PAPER, linewidth=0)
    axes.set_xlim(lowest, most + 0.42 * (most - lowest))
    axes.set_xticks([])
    for place, length, words_said in zip(places, lengths, said, strict=True):
        _beside(axes, max(length, clear), place, words_said)


def _beside(axes: Axes, x: float, place: float, said: str) -> None:
    axes.annotate(
        said, (x, place), xytext=(5, 0), textcoords="offset points", va="center", color=INK, fontsize=8, zorder=4
    )


def _channels(axes: Axes, worst: ChannelSpread) -> None:
    """Draw the range of each channel on a log axis, and their median; those that are always 0 are counted."""
    ranges = np.asarray(worst.ranges, dtype=float)
    drawn = np.flatnonzero(np.isfinite(ranges) & (ranges > 0))
    silent = int(np.sum(ranges == 0))
    zeros = f"; {silent} of them always 0, not drawn" if silent else ""
    axes.set_title(plain(labelled(worst), 56), loc="left", fontsize=9.5, color=INK)
    axes.tick_params(axis="both", which="both", colors=QUIET, labelsize=8.5, length=0)
    axes.set_xlabel(
        f"largest absolute value of each of {len(ranges)} channels{zeros}", fontsize=8.5, color=INK, labelpad=1
    )
    if not len(drawn):
        axes.set_yticks([])
        return
    low, high = ranges[drawn].min() / 1.5, ranges[drawn].max() * 1.5
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.vlines(drawn, low, ranges[drawn], color=AFTER, linewidth=max(0.6, min(5.0, 260 / len(ranges))))
    axes.yaxis.set_major_locator(FixedLocator(round_ticks(low, high, 6)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlim(-0.8, len(ranges) - 0.2)
    median = float(np.median(ranges[drawn]))
    axes.axhline(median, color=INK, linewidth=1, linestyle=(0, (4, 2)))
    axes.annotate(
        f"median\n{median:.3g}",
        (1.0, median),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        color=INK,
        fontsize=8,
        annotation_clip=False,
    )


def _name_ticks(axes: Axes, ticks: Sequence[float], said: Callable[[float], str]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: said(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", colors=QUIET, labelsize=8, length=0)


def _histogram(axes: Axes, layer: LayerError) -> None:
    histogram = layer.histogram
    assert histogram is not None
    prepare(axes, plain(labelled(layer), 40))
    axes.axvspan(histogram.low, histogram.high, color=HELD, zorder=0, linewidth=0)
    counts = np.asarray(histogram.counts, dtype=float)
    axes.stairs(counts, histogram.edges, fill=True, color=AFTER, baseline=0.5, zorder=2)
    axes.set_yscale("log")
    most = float(counts.max(initial=1.0))
    axes.set_ylim(0.5, most * 6)
    axes.yaxis.set_major_locator(FixedLocator(round_ticks(1, most, 4)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    ends = (*histogram.edges, histogram.low, histogram.high)
    margin = 0.04 * (max(ends) - min(ends)) or 1.0
    axes.set_xlim(min(ends) - margin, max(ends) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(axis="both", which="both", colors=QUIET, labelsize=8, length=0)
    axes.text(0.02, 0.96, _held(layer), transform=axes.transAxes, va="top", color=INK, fontsize=8.5)


def _held(layer: LayerError) -> str:
    assert layer.histogram is not None
    lost = outside(layer)
    low, high = layer.histogram.low, layer.histogram.high
    what = "no values" if math.isnan(lost) else "nothing" if lost <= 0 else f"about {100 * lost:.2g}% of the values"
    return f"{what} outside {low:.3g} to {high:.3g}".replace("-", "−")


def _sample(axes: Axes, sample: ChangedSample) -> None:
    """Draw a sample: an image where its shape is one, otherwise its values as a line, text as text."""
    label = "" if sample.label is None else f", label {label_of(sample)}"
    prepare(axes, plain(f"sample {sample.row}{label}", 30))
    axes.set_xticks([])
    axes.set_yticks([])
    images = [image for value in sample.inputs.values() if (image := as_image(value)) is not None]
    if images:
        axes.imshow(images[0], cmap="gray", interpolation="nearest", vmin=0, vmax=1)
        axes.set_anchor("W")
        return
    first = next(iter(sample.inputs.values()), np.zeros(0))
    values = _numbers(first)
    if values is None:
        axes.text(0.0, 0.95, plain(str(first.tolist()), 120), transform=axes.transAxes, va="top", wrap=True, color=INK)
        return
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.plot(values[:: max(1, len(values) // MOST_VALUES)], color=AFTER, linewidth=1.1, zorder=2)
    axes.tick_params(axis="both", colors=QUIET, labelsize=8)


def as_image(value: npt.NDArray[Any]) -> Numbers | None:
    """Return a ``[h, w]``, ``[h, w, 1]`` or ``[h, w, 3]`` array scaled to its own ends, 0 to 1; None if it is none."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        return None
    if min(array.shape[:2]) < 2:
        return None
    pixels = np.nan_to_num(array.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = pixels.min(), pixels.max()
    pixels = (pixels - low) / (high - low) if high > low else np.zeros_like(pixels)
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _numbers(value: npt.NDArray[Any]) -> Numbers | None:
    """Return an array's values as one line of numbers; None for text."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        return None
    return array.astype(np.float64).ravel()


def _answers(axes: Axes, sample: ChangedSample) -> None:
    """Draw both answers: paired bars of the scores that matter most, or lines where they are no vectors."""
    name = chosen_output(sample)
    prepare(axes, "")
    axes.tick_params(axis="both", colors=QUIET, labelsize=8, length=0)
    if name is None:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    before, after = np.asarray(sample.reference[name]), np.asarray(sample.answer[name])
    title = f"{outcome(before)} → {outcome(after)}" if before.ndim <= 1 else f"RMS difference {sample.error:.3g}"
    axes.set_title(plain(title, 40), loc="left", fontsize=9, color=INK)
    first, second = _numbers(before), _numbers(after)
    if first is None or second is None:
        axes.set_xticks([])
        axes.set_yticks([])
    elif before.ndim <= 1 and before.shape == after.shape:
        _paired_bars(axes, first, second)
    else:
        every = max(1, before.size // MOST_DRAWN)
        axes.plot(first[::every], color=BEFORE, linewidth=2.4, label="source model", zorder=2)
        axes.plot(second[::every], color=BAD, linewidth=0.9, linestyle="--", label="quantized", zorder=3)
        axes.set_xticks([])
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(f"{len(first[::every])} of {before.size:,} values", fontsize=8, color=INK)


def _paired_bars(axes: Axes, before: Numbers, after: Numbers) -> None:
    """Draw pairs of bars, the classes from the left; of many classes those with the highest scores."""
    highest = np.nan_to_num(np.maximum(before, after), nan=-np.inf)
    classes = np.sort(np.argsort(-highest, kind="stable")[:MOST_SCORES])
    places = np.arange(len(classes))
    axes.bar(places - 0.2, before[classes], width=0.38, color=BEFORE, label="source model", zorder=2)
    axes.bar(
        places + 0.2, after[classes], width=0.38, color=BAD, hatch="////", edgecolor=PAPER, linewidth=0,
        label="quantized", zorder=2,
    )  # fmt: skip
    axes.axhline(0, color=QUIET, linewidth=0.8)
    axes.set_xticks(places, [str(each) if len(before) > 1 else "" for each in classes])
    axes.yaxis.set_major_locator(MaxNLocator(4))


def _pair_of_handles(row: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    for axes in row:
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            return handles, labels
    return [], []
