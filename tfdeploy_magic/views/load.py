"""What ``%loadtest`` shows: how many answers a second, how long they took, what failed, and where more is no use."""

from __future__ import annotations

import contextlib
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import orjson

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.serving.load import Load, Saturation
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import words
from tfdeploy_magic.views.load_figures import ENOUGH, answered, figure, is_known, paces_of, percentiles, rate, some

CLIENTS_ARE_THE_LIMIT = 0.85
"""Share of one core from which on the clients themselves may be what limits the throughput."""

MOST_CLIENTS = 1024
"""What ``--clients`` takes at the most."""

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
        yield f"{'✓' if answered(load) else '✗'} {_speed(load)}"
        return
    yield _speed(load)


def _speed(load: Load) -> str:
    if load.max_ms is None:
        return "nothing was answered"
    slowest = f"p99 {_percentile(load, 99)}" if is_known(load, 99) else f"longest {words.milliseconds(load.max_ms)}"
    return f"{rate(load.throughput)} answers/s, {slowest}"


def _edge(shown: _Shown) -> str:
    levels = {noticed.level for noticed in _findings(shown)}
    if "error" in levels or not answered(shown.load):
        return pieces.BAD
    return pieces.DOUBTFUL if "warning" in levels else pieces.GOOD


def _percentile(load: Load, share: int) -> str:
    value = dict(zip(ENOUGH, percentiles(load), strict=True))[share]
    if value is None:
        return "–"
    return words.milliseconds(value) if is_known(load, share) else "too few"


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
    return (name, rate(load.throughput), *(_percentile(load, share) for share in ENOUGH), longest, failed)


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
        return f"Throughput still grew at {some(last.clients, 'client')}: {tries}."
    beyond = saturation.loads[saturation.loads.index(knee) :]
    if any(step.generator > CLIENTS_ARE_THE_LIMIT for step in beyond):
        return (
            f"Throughput stops growing at {rate(knee.throughput)}/s, with {some(knee.clients, 'client')}, "
            "but the clients may be what limits it, and not the server."
        )
    falls = ""
    if last.throughput < 0.8 * saturation.peak.throughput:
        falls = f", and falls to {rate(last.throughput)}/s with {some(last.clients, 'client')}"
    waits = "waits" if knee.clients == 1 else "wait"
    return (
        f"More than {some(knee.clients, 'client')} only {waits} longer: "
        f"throughput stops growing at {rate(knee.throughput)}/s{falls}."
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
            f"{some(busiest.clients, 'client')} used {100 * busiest.generator:.0f}% of one core: "
            "that, and not the server, may be what limited the throughput",
            "Over REST they need less: --over rest."
            if load.over == "grpc"
            else "Send more --rows in each request, or ask from several machines at once.",
        )
    if 0 < answered(load) < ENOUGH[99]:
        enough = min(3600, 10 * math.ceil(15 / load.throughput))
        counted = f"{some(answered(load), 'answer')} {'is' if answered(load) == 1 else 'are'}"
        missing = "p99" if is_known(load, 95) else "p95 or p99"
        message = f"{counted} too few for a {missing}"
        yield Finding("note", "few-answers", message, f"--seconds {enough} gives more.")


def _failure(load: Load, *, is_the_run: bool) -> Finding:
    kinds = sorted(load.failures.items(), key=lambda item: (-item[1], item[0]))
    counted = ", ".join(f"{count:,} × {f'HTTP {kind}' if kind.isdigit() else kind}" for kind, count in kinds)
    where = "" if is_the_run else f", with {some(load.clients, 'client')} before the run"
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
    asked, clients = some(load.requests, "request"), some(load.clients, "client")
    yield "asked", f"{asked} in {words.seconds(load.seconds)} by {clients}"
    if load.requests:
        sizes = f"{words.size(round(load.request_bytes))} a request"
        answer = f", {words.size(round(load.answer_bytes))} an answer" if answered(load) else ""
        yield "size", f"{sizes}{answer}"
    yield "under way", f"{rate(load.concurrency)} requests at once on average"
    if said := _paced(load):
        yield "each second", said
    if load.latencies_ms.size < answered(load):
        yield "latencies", f"{load.latencies_ms.size:,} of {answered(load):,}, drawn at random; the longest is of all"
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
        parts.append(f"{rate(min(rates))} to {rate(max(rates))} answers/s")
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
    name, _, rows = shown.sent.rpartition(", ")
    count = re.match(r"\d+", rows)
    # "data" has no name of its own.
    data = (name,) if name != "data" and re.fullmatch(r"[\w.]+(\[[\d:, -]+\])?", name) else ()
    return data, (f"--rows {count[0]}",) if count and count[0] != "1" else ()


def _alternative(shown: _Shown) -> str:
    load = shown.load
    parts = [f"latency p50 {_percentile(load, 50)}, p95 {_percentile(load, 95)}, p99 {_percentile(load, 99)}"]
    if said := _paced(load):
        parts.append(f"second by second {said}")
    parts += [f"{some(step.clients, 'client')} {rate(step.throughput)} answers/s" for step in shown.steps]
    return "; ".join(parts)
