"""The figures of a comparison: every row's size, score, SNR and latency, and what latency does over batch sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from tfdeploy_magic.artifacts.comparison import Row, SweepPoint, Table
from tfdeploy_magic.artifacts.evidence import Score
from tfdeploy_magic.views import words
from tfdeploy_magic.views.comparison import BEST, FRONT, float_row, marks_of, metric_of
from tfdeploy_magic.views.figures import INK, PAPER, QUIET, on_own_paper, plain, prepare, round_ticks
from tfdeploy_magic.views.labels import Named, write_names

GREEN, BLUE, GREY = "#009E73", "#0072B2", "#8a8f98"
STRIPE = "#f0f0ec"
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#1f2328")
SHAPES = "osD^vPX<>"

_WIDTH, _ROW, _SCATTER = 10.4, 0.27, 3.5  # inches
_LABEL = 9.0  # points
_NAME = 30  # characters


@dataclass(frozen=True)
class _Look:
    """How a row is drawn: by hue and, for those who cannot tell hues apart, by shape."""

    color: str
    shape: str
    mark: str
    size: float


@on_own_paper
def overview(table: Table) -> Figure:
    """Draw four panels with a line for each row, and below them size against SNR with the Pareto front."""
    count = len(table.rows)
    panels, below = _ROW * count, 0.92 + _SCATTER + 0.62 if count > 1 else 0.55
    height = 0.42 + panels + below
    figure = Figure(figsize=(_WIDTH, height), facecolor=PAPER)
    left = _name_width(figure, [_name(row, table) for row in table.rows]) + 0.3
    room, space = _WIDTH - left - 0.15, 0.28
    shares = (0.22, 0.26, 0.24, 0.28)
    axes: list[Axes] = []
    for number, share in enumerate(shares):
        start = left + sum(shares[:number]) * room
        box = (start / _WIDTH, 1 - (0.42 + panels) / height, (share * room - space) / _WIDTH, panels / height)
        axes.append(figure.add_axes(box, sharey=axes[0] if axes else None))
    _rows_of(axes, table)
    _sizes(axes[0], table)
    (_scores if metric_of(table) else _agreements)(axes[1], table)
    _noise_ratios(axes[2], table)
    _latencies(axes[3], table)
    if count > 1:  # one file lies on no front
        box = (0.75 / _WIDTH, 0.56 / height, (_WIDTH - 0.95) / _WIDTH, _SCATTER / height)
        _size_against_snr(figure.add_axes(box), table)
    return figure


@on_own_paper
def sweep(table: Table) -> Figure:
    """Draw the latency of one sample over the batch size: a panel for each number of threads, a line for each row."""
    threads = sorted({point.threads for point in table.sweep})
    labels = list(dict.fromkeys(point.label for point in table.sweep))
    height = max(3.2, 0.9 + 0.2 * len(labels))
    figure = Figure(figsize=(_WIDTH, height), facecolor=PAPER, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    axes = figure.subplots(1, max(len(threads), 1), squeeze=False, sharey=True)[0]
    for each, count in zip(axes, threads, strict=False):
        _over_batches(each, [point for point in table.sweep if point.threads == count], labels)
        prepare(each, words.threads(count))
        each.tick_params(axis="both", which="both", length=0, colors=QUIET, labelsize=8.5)
    axes[0].set_ylabel("ms for one sample", fontsize=_LABEL, color=INK)
    drawn = {line.get_label(): line for each in axes for line in each.lines}
    known = [label for label in map(plain, labels) if label in drawn]
    figure.legend(
        [drawn[label] for label in known],
        known,
        loc="outside right upper",
        frameon=False,
        fontsize=_LABEL,
        labelcolor=INK,
    )
    return figure


def _look(row: Row, table: Table) -> _Look:
    marks = marks_of(row.label, table)
    if any(mark.startswith(BEST) for mark in marks):
        return _Look(GREEN, "*", BEST, 9)
    return _Look(BLUE, "D", FRONT, 5.5) if marks else _Look(GREY, "o", "", 6)


def _name(row: Row, table: Table) -> str:
    return f"{_look(row, table).mark} {plain(row.label, _NAME)}".strip()


def _name_width(figure: Figure, names: Sequence[str]) -> float:
    """Return the inches that the longest name takes."""
    widths = [0.4]
    for name in names:
        written = figure.text(0, 0, name, fontsize=_LABEL)
        widths.append(written.get_window_extent().width / figure.dpi)
        written.remove()
    return max(widths)


def _places(table: Table) -> range:
    """Return the height of each row: the first above."""
    return range(len(table.rows) - 1, -1, -1)


def _rows_of(axes: Sequence[Axes], table: Table) -> None:
    for each in axes:
        prepare(each, "")
        for place in list(_places(table))[::2]:
            each.axhspan(place - 0.5, place + 0.5, color=STRIPE, zorder=0, linewidth=0)
        each.tick_params(axis="x", colors=QUIET, length=3)
        each.tick_params(axis="y", labelleft=each is axes[0])
    axes[0].set_yticks(_places(table), [_name(row, table) for row in table.rows], fontsize=_LABEL)
    axes[0].set_ylim(-0.5, len(table.rows) - 0.5)


def _bars(axes: Axes, table: Table, lengths: Sequence[float | None], said: Sequence[str]) -> None:
    """Draw a bar for each row, or none, and write its value beside it."""
    drawn = [0.0 if length is None else length for length in lengths]
    colors = [_look(row, table).color for row in table.rows]
    axes.barh(_places(table), drawn, height=0.6, color=colors, zorder=2)
    most, least = max((*drawn, 1e-9)), min((*drawn, 0.0))
    axes.set_xlim(least, most + 0.55 * (most - least))
    axes.set_xticks([])
    for place, length, words_said in zip(_places(table), drawn, said, strict=True):
        _beside(axes, max(length, 0.0), place, words_said)


def _beside(axes: Axes, x: float, place: float, said: str) -> None:
    axes.annotate(
        said, (x, place), xytext=(4, 0), textcoords="offset points", va="center", color=INK, fontsize=8.5, zorder=4
    )


def _sizes(axes: Axes, table: Table) -> None:
    _title(axes, "size")
    sizes = [row.file.size for row in table.rows]
    _bars(axes, table, sizes, [words.size(size) for size in sizes])


def _noise_ratios(axes: Axes, table: Table) -> None:
    _title(axes, "SNR of the answers")
    measured = [row.evidence.snr_db for row in table.rows]
    finite = [value for value in measured if value is not None and math.isfinite(value)]
    longest = max((*finite, 1.0)) * 1.1
    lengths = [_snr_length(value, longest) for value in measured]
    _bars(axes, table, lengths, ["not measured" if value is None else words.decibels(value) for value in measured])


def _snr_length(value: float | None, longest: float) -> float | None:
    """Return a bar's length: an exact answer, which has infinite SNR, has the longest; what is no number none."""
    if value is None or math.isnan(value) or value == -math.inf:
        return None
    return longest if value == math.inf else value


def _scores(axes: Axes, table: Table) -> None:
    metric = metric_of(table) or ""
    percent = 100.0 if "accuracy" in metric else 1.0
    source = next((row.evidence.baseline_score for row in table.rows if row.evidence.baseline_score), None)
    scores = [_finite(row.evidence.score) for row in table.rows]
    has_interval = any(score is not None and score.low is not None for score in scores)
    _title(axes, f"{plain(metric)}{', 95% interval' if has_interval else ''}")
    low, high = _score_range(table, _finite(source))
    room = 0.05 * (high - low) * percent or 1.0
    axes.set_xlim(low * percent - 2 * room, high * percent + 9 * room)
    for place, row, score in zip(_places(table), table.rows, scores, strict=True):
        if score is None:
            _at_edge(axes, place, "not measured")
            continue
        _point(axes, place, score, percent, _look(row, table))
        _at_edge(axes, place, _amount(score.value, metric))
    if source is not None and math.isfinite(source.value):
        _upright(axes, source.value * percent, f"source {_amount(source.value, metric)}")
    ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low * percent, high * percent)
    ticks = [tick for tick in ticks if low * percent <= tick <= high * percent]
    axes.set_xticks(ticks, [f"{tick:g}%" if percent == 100.0 else f"{tick:g}" for tick in ticks])


def _finite(score: Score | None) -> Score | None:
    return score if score is not None and math.isfinite(score.value) else None


def _score_range(table: Table, source: Score | None) -> tuple[float, float]:
    """Return the ends of what is drawn: files that are not ok would flatten the differences of the others."""
    sound = [_finite(row.evidence.score) for row in table.rows if row.evidence.verdict != "not ok"]
    if not any(sound):
        sound = [_finite(row.evidence.score) for row in table.rows]
    ends = [
        end for score in (*sound, source) if score for end in (score.value, score.low, score.high) if end is not None
    ]
    return min(ends, default=0.0), max(ends, default=1.0)


def _point(axes: Axes, place: int, score: Score, percent: float, look: _Look) -> None:
    low, high = axes.get_xlim()
    if not low <= score.value * percent <= high:
        beyond = 0.03 if score.value * percent < low else 0.72
        shape = "<" if score.value * percent < low else ">"
        axes.plot([beyond], [place], shape, color=look.color, markersize=7, transform=axes.get_yaxis_transform())
        return
    if score.low is not None and score.high is not None:
        ends = (score.low * percent, score.high * percent)
        axes.plot(ends, (place, place), color=look.color, linewidth=2, solid_capstyle="butt", zorder=2)
    axes.plot([score.value * percent], [place], look.shape, color=look.color, markersize=look.size, zorder=3)


def _at_edge(axes: Axes, place: int, said: str) -> None:
    """Write a value at the right edge, where nothing is drawn."""
    axes.text(
        0.985,
        place,
        said,
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="center",
        color=INK,
        fontsize=8.5,
    )


def _amount(value: float, metric: str) -> str:
    return words.share(value) if "accuracy" in metric else f"{value:.4g}"


def _upright(axes: Axes, x: float, said: str) -> None:
    """Draw a line that all rows are set against, its name below the axis."""
    axes.axvline(x, color=INK, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    axes.annotate(
        said,
        (x, 0),
        xycoords=("data", "axes fraction"),
        xytext=(0, -24),
        textcoords="offset points",
        ha="center",
        va="top",
        color=INK,
        fontsize=8,
        annotation_clip=False,
    )


def _agreements(axes: Axes, table: Table) -> None:
    _title(axes, "same top class as the source")
    shares = [row.evidence.agreement for row in table.rows]
    said = ["not measured" if share is None else words.share(share) for share in shares]
    _bars(axes, table, shares, said)


def _latencies(axes: Axes, table: Table) -> None:
    _title(axes, "latency p50, whisker to p95")
    measured = [row.evidence.latency for row in table.rows]
    known = [latency for latency in measured if latency is not None]
    axes.set_xticks([])
    if known:
        low, high = min(each.p50 for each in known) / 1.5, max(each.p95 for each in known) * 1.2
        axes.set_xscale("log")
        axes.set_xlim(low, low * (high / low) ** 1.45)
        _name_ticks(axes, round_ticks(low, high, 4), words.milliseconds)
    reference = float_row(table)
    if reference is not None and reference.evidence.latency is not None:
        _same_as(axes, reference.evidence.latency.p50, table.noise or 0.0)
    for place, row, latency in zip(_places(table), table.rows, measured, strict=True):
        if latency is None:
            _at_edge(axes, place, "not measured")
            continue
        look = _look(row, table)
        axes.plot((latency.p50, latency.p95), (place, place), color=look.color, linewidth=1.6, zorder=2)
        axes.plot([latency.p95], [place], "|", color=look.color, markersize=7, zorder=2)
        axes.plot([latency.p50], [place], look.shape, color=look.color, markersize=look.size, zorder=3)
        _at_edge(axes, place, words.milliseconds(latency.p50))


def _same_as(axes: Axes, median: float, noise: float) -> None:
    """Mark the float32 median, and around it what cannot be told from it."""
    axes.axvspan(median / (1 + noise), median * (1 + noise), color="#d9dce1", zorder=1, linewidth=0)
    _upright(axes, median, "float32 ± noise" if noise else "float32")


def _title(axes: Axes, said: str) -> None:
    axes.set_title(said, loc="left", fontsize=9.5, color=INK)


def _name_ticks(axes: Axes, ticks: Sequence[float], said: Callable[[float], str]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: said(value)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _size_against_snr(axes: Axes, table: Table) -> None:
    prepare(axes, "size against SNR: what lies on the line is beaten by no other file")
    axes.tick_params(axis="both", colors=QUIET, labelsize=8.5, length=3)
    placed = [row for row in table.rows if row.evidence.snr_db is not None and row.evidence.snr_db > -math.inf]
    placed = [row for row in placed if not math.isnan(row.evidence.snr_db or 0.0)]
    if not placed:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.0, 0.5, "SNR was not measured", transform=axes.transAxes, va="center", color=INK)
        return
    heights, highest = _snr_heights(placed)
    _limits(axes, [row.file.size for row in placed], list(heights.values()))
    front = sorted((row.file.size, heights[row.label]) for row in placed if row.label in table.pareto)
    if front:
        axes.plot(*zip(*front, strict=True), color=BLUE, linewidth=1.2, drawstyle="steps-post", zorder=1)
    points = []
    for row in placed:
        look, snr = _look(row, table), row.evidence.snr_db or 0.0
        size, beyond = 1.3 * look.size, snr > highest
        shape = "^" if beyond else look.shape
        axes.plot(row.file.size, heights[row.label], shape, color=look.color, markersize=size, zorder=3)
        said = f" ({words.decibels(snr)})" if beyond else ""
        points.append(Named(row.file.size, heights[row.label], f"{_name(row, table)}{said}"))
    write_names(axes, points, front, _LABEL)
    _explain(axes, table, len(table.rows) - len(placed))


def _snr_heights(rows: Sequence[Row]) -> tuple[dict[str, float], float]:
    """Return where each row stands, dB, and the highest that is drawn to scale.

    Float files, whose answers are all but exact, stand just above the others, which they would press into a line.
    """
    finite = [snr for row in rows if (snr := row.evidence.snr_db) is not None and snr < math.inf]
    lossy = [snr for row in rows if row.file.scheme != "float32" and (snr := row.evidence.snr_db) in finite]
    highest = max(lossy or finite, default=0.0)
    above = highest + max(0.2 * (highest - min(finite, default=0.0)), 6.0)
    heights = {row.label: above if (snr := row.evidence.snr_db or 0.0) > highest else snr for row in rows}
    return heights, highest


def _limits(axes: Axes, sizes: Sequence[int], heights: Sequence[float]) -> None:
    low, high = min(sizes), max(sizes)
    if high > 3 * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.25, high * 1.25)
        _name_ticks(axes, round_ticks(low / 1.25, high * 1.25, 7), _round_size)
    else:
        margin = 0.15 * (high - low) or 0.1 * high
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _round_size(value)))
    margin = max(0.14 * (max(heights) - min(heights)), 4.0)
    axes.set_ylim(min(heights) - margin, max(heights) + margin)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words.decibels(value).replace(".0 ", " ")))
    axes.grid(color="#e4e4df", linewidth=0.7)
    axes.set_axisbelow(True)


def _round_size(value: float) -> str:
    return words.size(round(value)).replace(".0 ", " ")


def _explain(axes: Axes, table: Table, missing: int) -> None:
    marked = {mark for row in table.rows for mark in marks_of(row.label, table)}
    parts = sorted(marked, key=lambda mark: not mark.startswith(BEST))
    if missing:
        parts.append(f"{missing} not drawn: SNR not measured")
    axes.text(
        1.0, -0.125, "     ".join(parts), transform=axes.transAxes, ha="right", va="top", color=INK, fontsize=_LABEL
    )


def _over_batches(axes: Axes, points: Sequence[SweepPoint], labels: Sequence[str]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for number, label in enumerate(labels):
        ours = sorted((point for point in points if point.label == label), key=lambda point: point.batch)
        drawn = [(point.batch, point.latency.p50 / point.batch) for point in ours if point.latency is not None]
        if drawn:
            hue, shape = HUES[number % len(HUES)], SHAPES[number % len(SHAPES)]
            axes.plot(
                *zip(*drawn, strict=True), color=hue, marker=shape, markersize=5, linewidth=1.3, label=plain(label)
            )
    batches = sorted({point.batch for point in points})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#e4e4df", linewidth=0.7)
    axes.set_xlabel("\n".join(("samples at a time", *_left_out(points))), fontsize=8.5, color=INK)


def _left_out(points: Sequence[SweepPoint]) -> Iterator[str]:
    missing: dict[str, list[int]] = {}
    for point in points:
        if point.latency is None:
            missing.setdefault(point.label, []).append(point.batch)
    for label, batches in list(missing.items())[:4]:
        yield f"{plain(label)} cannot run with {', '.join(map(str, batches))} at a time"
    if len(missing) > 4:
        yield f"nor {len(missing) - 4} other files with some"
