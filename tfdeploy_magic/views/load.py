"""What ``%loadtest`` shows: how many answers a second, how long they took, what failed, and where more is no use."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.serving.load import Load, Saturation
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import words
from tfdeploy_magic.views.figures import AFTER, INK, PAPER, QUIET, on_own_paper, prepare, round_ticks

CLIENTS_ARE_THE_LIMIT = 0.85
"""Share of one core from which on the clients themselves may be what limits the throughput."""

MOST_CLIENTS = 1024
"""What ``--clients`` takes at the most."""

ENOUGH = {50: 1, 95: 20, 99: 100}
"""Answers that a percentile needs: of fewer, none lies above it."""

MOST_STEPS = 75
"""Seconds that are drawn one by one; of a longer run several are drawn as one."""

_NO_P95 = "p95: nothing was answered"
_KNEE = "◎"
_RUN = "▶"
_METHOD = (
    "each client waits for its answer before it asks again. A server that stalls is asked less meanwhile, so requests "
    "that go on arriving would have waited longer than these (coordinated omission)"
)
_IS_GONE = frozenset(("unreachable", "closed", "404", "NOT_FOUND"))
_IS_FULL = frozenset(("timeout", "504", "DEADLINE_EXCEEDED", "503", "UNAVAILABLE", "429", "RESOURCE_EXHAUSTED"))
_FULL = "The server bears no more at once: ask with fewer --clients, send fewer --rows, or give it a longer queue."
_GONE = "%serve --list shows what is served, and where."
_OTHER = "%predict sends one request and shows the whole answer."


@dataclass(frozen=True)
class _Shown:
    """What a card is made of; see :func:`mimebundle`."""

    name: str
    url: str
    load: Load
    saturation: Saturation | None
    sent: str

    @property
    def steps(self) -> tuple[Load, ...]:
        return self.saturation.loads if self.saturation else ()


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


def mimebundle(name: str, url: str, load: Load, saturation: Saturation | None, sent: str) -> dict[str, str]:
    """Return a load test as ``text/html`` and ``text/plain``.

    Args:
        name: What the model is called.
        url: Its REST address.
        load: The run that was asked for.
        saturation: Runs with fewer clients up to that many; None where they were left out.
        sent: What was sent, "x_test, 1 row a request".
    """
    shown = _Shown(name, url, load, saturation, sent)
    return {"text/html": _html(shown), "text/plain": _text(shown)}


def _html(shown: _Shown) -> str:
    said, *more = _headline(shown)
    head, *rows = _rows(shown)
    also = "".join(f"{pieces.escape(each)}&ensp;" for each in more)
    return pieces.card(
        _edge(shown),
        f"load test of {shown.name}: {said}",
        (
            pieces.heading(said, f"{also}{pieces.escape(shown.name)} <strong>{pieces.escape(shown.url)}</strong>"),
            pieces.table(head, *rows),
            *map(pieces.sentence, _sentences(shown)),
            pieces.picture(figure(shown.load, shown.saturation), _alternative(shown)),
            *map(pieces.finding, _findings(shown)),
            pieces.facts(_facts(shown)),
            pieces.following(_next(shown)),
        ),
    )


def _text(shown: _Shown) -> str:
    lines = [f"{', '.join(_headline(shown))}: {shown.name} {shown.url}", "", *pieces.plain_table(_rows(shown))]
    lines += [f"  {said}" for said in _sentences(shown)]
    lines += pieces.plain_findings(_findings(shown))
    lines += ["", *pieces.plain_facts(_facts(shown))]
    if (following := _next(shown)) is not None:
        lines += ["", f"  next: {following}"]
    return pieces.plain_text(lines)


def _headline(shown: _Shown) -> Iterator[str]:
    load = shown.load
    failed, asked = sum(step.failed for step in shown.steps), sum(step.requests for step in shown.steps)
    if load.failed:
        yield f"✗ {load.failed:,} of {load.requests:,} failed"
    elif failed:
        yield f"✗ {failed:,} of {asked:,} failed before the run"
    else:
        yield f"{'✓' if _answers(load) else '✗'} {_speed(load)}"
        return
    yield _speed(load)


def _speed(load: Load) -> str:
    if load.max_ms is None:
        return "nothing was answered"
    slowest = f"p99 {_percentile(load, 99)}" if _is_known(load, 99) else f"longest {words.milliseconds(load.max_ms)}"
    return f"{_rate(load.throughput)} answers/s, {slowest}"


def _edge(shown: _Shown) -> str:
    levels = {noticed.level for noticed in _findings(shown)}
    if "error" in levels or not _answers(shown.load):
        return pieces.BAD
    return pieces.DOUBTFUL if "warning" in levels else pieces.GOOD


def _answers(load: Load) -> int:
    return load.requests - load.failed


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _is_known(load: Load, share: int) -> bool:
    return _answers(load) >= ENOUGH[share]


def _percentiles(load: Load) -> tuple[float | None, ...]:
    return load.p50_ms, load.p95_ms, load.p99_ms


def _percentile(load: Load, share: int) -> str:
    value = dict(zip(ENOUGH, _percentiles(load), strict=True))[share]
    if value is None:
        return "–"
    return words.milliseconds(value) if _is_known(load, share) else "too few"


def _rows(shown: _Shown) -> list[tuple[pieces.Cell, ...]]:
    knee = shown.saturation.knee if shown.saturation else None
    rows: list[tuple[pieces.Cell, ...]] = [("clients", "answers/s", "p50", "p95", "p99", "longest", "failed")]
    rows += [_row(step, f"{step.clients:,}{f'  {_KNEE} knee' if step is knee else ''}") for step in shown.steps]
    mark = f"{_RUN} " if shown.steps else ""
    return [*rows, _row(shown.load, f"{mark}{shown.load.clients:,}")]


def _row(load: Load, name: str) -> tuple[pieces.Cell, ...]:
    longest = "–" if load.max_ms is None else words.milliseconds(load.max_ms)
    failed: pieces.Cell = "0"
    if load.failed:
        failed = f"✗ {load.failed:,}", _small_share(load.failed / load.requests)
    return (name, _rate(load.throughput), *(_percentile(load, share) for share in ENOUGH), longest, failed)


def _small_share(value: float) -> str:
    return "less than 0.1%" if value < 0.001 else words.share(value)


def _sentences(shown: _Shown) -> Iterator[str]:
    if shown.steps:
        each = words.seconds(float(np.median([step.seconds for step in shown.steps])))
        yield f"{_RUN}: the run of {words.seconds(shown.load.seconds)}; those before it took {each} each."
    if shown.saturation is not None and len(shown.steps) > 1:
        yield _growth(shown.saturation)


def _growth(saturation: Saturation) -> str:
    """Say where more clients brought no more answers."""
    last, knee = saturation.loads[-1], saturation.knee
    if not saturation.peak.throughput:
        return "Nothing was answered, with however many clients."
    if knee is None:
        more = min(2 * last.clients, MOST_CLIENTS)
        tries = f"--clients {more} tries more" if more > last.clients else "the most that can be asked with"
        return f"Throughput still grew at {_some(last.clients, 'client')}: {tries}."
    beyond = saturation.loads[saturation.loads.index(knee) :]
    if any(step.generator > CLIENTS_ARE_THE_LIMIT for step in beyond):
        return (
            f"Throughput stops growing at {_rate(knee.throughput)}/s, with {_some(knee.clients, 'client')}, "
            "but the clients may be what limits it, and not the server."
        )
    falls = ""
    if last.throughput < 0.8 * saturation.peak.throughput:
        falls = f", and falls to {_rate(last.throughput)}/s with {_some(last.clients, 'client')}"
    waits = "waits" if knee.clients == 1 else "wait"
    return (
        f"More than {_some(knee.clients, 'client')} only {waits} longer: "
        f"throughput stops growing at {_rate(knee.throughput)}/s{falls}."
    )


def _findings(shown: _Shown) -> Iterator[Finding]:
    load = shown.load
    failing = [load] if load.failed else [step for step in shown.steps if step.failed]
    if failing:
        yield _failure(max(failing, key=lambda each: each.failed), is_the_run=failing[0] is load)
    busiest = max((load, *shown.steps), key=lambda each: each.generator)
    if busiest.generator > CLIENTS_ARE_THE_LIMIT:
        yield Finding(
            "warning",
            "clients-limit",
            f"{_some(busiest.clients, 'client')} used {100 * busiest.generator:.0f}% of one core: "
            "that, and not the server, may be what limited the throughput",
            "Over REST they need less: --over rest."
            if load.over == "grpc"
            else "Send more --rows in each request, or ask from several machines at once.",
        )
    if 0 < _answers(load) < ENOUGH[99]:
        enough = min(3600, 10 * math.ceil(15 / load.throughput))
        counted = f"{_some(_answers(load), 'answer')} {'is' if _answers(load) == 1 else 'are'}"
        missing = "p99" if _is_known(load, 95) else "p95 or p99"
        message = f"{counted} too few for a {missing}"
        yield Finding("note", "few-answers", message, f"--seconds {enough} gives more.")


def _failure(load: Load, *, is_the_run: bool) -> Finding:
    kinds = sorted(load.failures.items(), key=lambda item: (-item[1], item[0]))
    counted = ", ".join(f"{count:,} × {f'HTTP {kind}' if kind.isdigit() else kind}" for kind, count in kinds)
    where = "" if is_the_run else f", with {_some(load.clients, 'client')} before the run"
    message = f"{load.failed:,} of {load.requests:,} requests failed{where} ({counted})"
    if said := _reason(load.first_failure):
        message += f"; the first of them: {said}"
    most = kinds[0][0]
    return Finding("error", "failed", message, _GONE if most in _IS_GONE else _FULL if most in _IS_FULL else _OTHER)


def _reason(said: str) -> str:
    """Return what a server said as one line, out of the JSON that it may stand in."""
    with contextlib.suppress(ValueError):
        heard = orjson.loads(said)
        if isinstance(heard, dict) and isinstance(heard.get("error"), str):
            said = heard["error"]
    line = " ".join(said.split())
    return (line if len(line) <= 300 else f"{line[:299]}…").rstrip(". ")


def _facts(shown: _Shown) -> Iterator[tuple[str, str]]:
    load = shown.load
    yield "sent", f"{shown.sent}, over {'gRPC' if load.over == 'grpc' else 'REST'}"
    asked, clients = _some(load.requests, "request"), _some(load.clients, "client")
    yield "asked", f"{asked} in {words.seconds(load.seconds)} by {clients}"
    if load.requests:
        sizes = f"{words.size(round(load.request_bytes))} a request"
        answer = f", {words.size(round(load.answer_bytes))} an answer" if _answers(load) else ""
        yield "size", f"{sizes}{answer}"
    yield "under way", f"{_rate(load.concurrency)} requests at once on average"
    if said := _paced(load):
        yield "each second", said
    if load.latencies_ms.size < _answers(load):
        yield "latencies", f"{load.latencies_ms.size:,} of {_answers(load):,}, drawn at random; the longest is of all"
    yield "clients", f"a process of their own on this machine, {100 * load.generator:.0f}% of one core"
    yield "closed loop", _METHOD


def _paced(load: Load) -> str:
    """Say how evenly a run of several seconds went."""
    paces = paces_of(load)
    if len(paces) < 2:
        return ""
    parts = []
    if latencies := [pace.p95_ms for pace in paces if pace.p95_ms is not None]:
        rates = [pace.answers for pace in paces]
        parts.append(f"{_rate(min(rates))} to {_rate(max(rates))} answers/s")
        parts.append(f"p95 {words.milliseconds(min(latencies))} to {words.milliseconds(max(latencies))}")
    if failing := [pace for pace in paces if pace.failures]:
        parts.append(f"failures in {len(failing)} of {len(paces)} seconds, the first after {failing[0].start:.0f} s")
    return ", ".join(parts)


def _next(shown: _Shown) -> str | None:
    load, knee = shown.load, shown.saturation.knee if shown.saturation else None
    if load.failed:
        most = max(load.failures, key=lambda kind: load.failures[kind])
        if most in _IS_FULL and load.clients > 1:
            return _again(shown, load.clients // 2)
        data, _ = _what(shown)
        return " ".join(("%predict", shlex.quote(shown.url), *data)) if most not in _IS_GONE else "%serve --list"
    if knee is not None:
        return _again(shown, knee.clients)
    return _again(shown, min(2 * load.clients, MOST_CLIENTS)) if load.clients < MOST_CLIENTS else None


def _again(shown: _Shown, clients: int) -> str:
    data, rows = _what(shown)
    over = ("--over grpc",) if shown.load.over == "grpc" else ()
    return " ".join(("%loadtest", shlex.quote(shown.url), *data, *rows, f"--clients {clients}", *over))


def _what(shown: _Shown) -> tuple[Sequence[str], Sequence[str]]:
    """Return the data that was sent, and how many rows of it, as they stand on a line; nothing where they would not."""
    found = re.fullmatch(r"(?P<name>.+), (?P<rows>\d+) rows? a request", shown.sent)
    if found is None:
        return (), ()
    rows = () if found["rows"] == "1" else (f"--rows {found['rows']}",)
    return (() if not re.fullmatch(r"[\w.]+(\[[\d:, -]+\])?", found["name"]) else (found["name"],)), rows


def _alternative(shown: _Shown) -> str:
    load = shown.load
    parts = [f"latency p50 {_percentile(load, 50)}, p95 {_percentile(load, 95)}, p99 {_percentile(load, 99)}"]
    if said := _paced(load):
        parts.append(f"second by second {said}")
    parts += [f"{_some(step.clients, 'client')} {_rate(step.throughput)} answers/s" for step in shown.steps]
    return "; ".join(parts)


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
    return above, strip


def _latencies(axes: Axes, load: Load, width: float) -> None:
    _title(axes, f"latency of {_some(_answers(load), 'answer')}")
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
    _name_ticks(axes, low, high, (end / low) ** (_TICK / width))
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
    found = zip(ENOUGH, _percentiles(load), strict=True)
    known = [(share, value) for share, value in found if value is not None and _is_known(load, share)]
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


def _name_ticks(axes: Axes, low: float, high: float, apart: float) -> None:
    """Name round values between two ends of a log axis, each ``apart`` times the one before it or more."""
    for most in (4, 3, 2):
        ticks = round_ticks(low, high, most)
        if all(after >= apart * before for before, after in itertools.pairwise(ticks)):
            break
    if len(ticks) < 2:
        ticks = [tick for tick in MaxNLocator(2).tick_values(low, high) if low <= tick <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.milliseconds(value)))
    axes.xaxis.set_minor_locator(NullLocator())


def _over_time(pair: tuple[Axes, Axes], load: Load) -> None:
    above, strip = pair
    paces = paces_of(load)
    some = max(1, math.ceil(len(paces) / MOST_STEPS))
    groups = [paces[start : start + some] for start in range(0, len(paces), some)]
    failed = "✗ failed/s" if load.failed else ""
    every = "second by second" if some == 1 else f"every {some} s"
    _title(above, f"answers/s, {failed or every}")
    caption = f"p95 of {'each second' if some == 1 else f'the worst of {some} seconds'}"
    _title(strip, caption if _answers(load) else _NO_P95, _LETTERS)
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
    axes.set_yticks(ticks or [0], [_rate(tick) for tick in ticks] or ["0"])


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
        axes.set_ylim(low / 1.5, high * 1.5)
        ticks = round_ticks(low / 1.5, high * 1.5, 3)
    else:
        axes.set_ylim(0, 1.2 * high)
        ticks = [tick for tick in MaxNLocator(2, steps=_ROUND).tick_values(0, high) if 0 <= tick <= 1.2 * high]
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(ticks, [words.milliseconds(tick) if tick else "0" for tick in ticks])
