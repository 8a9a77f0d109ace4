"""What ``%monitor`` shows: how a served model does now, as numbers, and lately, as a figure."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.serving.history import STOPPED, History, Interval, Tally
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import words
from tfdeploy_magic.views.html import escape
from tfdeploy_magic.views.load_figures import ENOUGH, rate
from tfdeploy_magic.views.monitor_figures import name_of, picture

NOW = 10.0
"""Seconds that the numbers are of: of a single one they would jump, and few answers make no p99."""

WIDTH = 720
"""CSS pixels that the figure takes up at the most."""

MOST_ROWS = 8
"""Versions and arms in the table; the busiest."""


@dataclass(frozen=True)
class Watched:
    """A model that is watched.

    Args:
        name: What it is called.
        url: Its REST address.
        history: What was seen of it.
        seconds: How much of that is drawn, the last.
        every: Seconds from one look to the next.
        ends: When watching ends by itself, seconds since 1970.
        ended: Why it has ended, "it was stopped"; None while it goes on.
        written: Files that were written to take along.
    """

    name: str
    url: str
    history: History
    seconds: float
    every: float
    ends: float
    ended: str | None = None
    written: Sequence[Path] = ()


def mimebundle(watched: Watched, png: bytes | None = None) -> dict[str, str]:
    """Return the card as ``text/html`` and ``text/plain``.

    Args:
        watched: The model.
        png: The figure, where it has been drawn already.
    """
    if png is None and watched.history.intervals:
        drawn = picture(watched.seconds)
        drawn.draw(watched.history)
        png = drawn.png()
    return {"text/html": html(watched, png), "text/plain": text(watched)}


def html(watched: Watched, png: bytes | None = None) -> str:
    """Return the card as HTML; every name that came from a server is escaped.

    Args:
        watched: The model.
        png: The figure; None where it is shown beside the card.
    """
    now = _now(watched)
    return pieces.card(
        _edge(watched),
        f"{watched.name}: {_headline(watched)}",
        (
            pieces.heading(_headline(watched), escape(watched.url)),
            pieces.table(*_rows(now)) if now is not None else "",
            _image(png, alternative(watched)) if png is not None else "",
            *map(pieces.finding, _findings(watched)),
            pieces.facts(_facts(watched)),
            pieces.following(_next(watched)) if png is not None else "",
        ),
    )


def text(watched: Watched) -> str:
    """Return the card as plain text."""
    now = _now(watched)
    lines = [f"{_headline(watched)}: {watched.name} {watched.url}"]
    if now is not None:
        lines += ["", *pieces.plain_table(_rows(now))]
    lines += [*pieces.plain_findings(_findings(watched)), "", *pieces.plain_facts(_facts(watched))]
    return pieces.plain_text([*lines, "", f"  next: {_next(watched)}"])


def _image(png: bytes, said: str) -> str:
    data = base64.b64encode(png).decode()
    return (
        f'<img alt="{escape(said)}" src="data:image/png;base64,{data}" '
        f'style="width:100%;max-width:{WIDTH}px;border-radius:3px;margin:2px 0 6px 0">'
    )


def _now(watched: Watched) -> Interval | None:
    """Return the last seconds as one; None where the server does not answer, or has only been asked once."""
    return watched.history.lately(max(NOW, watched.every)) if watched.history.problem is None else None


def _window(watched: Watched) -> Interval | None:
    return watched.history.lately(watched.seconds)


def _headline(watched: Watched) -> str:
    now = _now(watched)
    if watched.history.problem is not None:
        return "✗ does not answer"
    if now is None:
        return "· asked once so far"
    if not now.model.asked:
        return "· no requests now"
    failed = now.model.failed / now.seconds
    errors = f", ✗ {rate(failed)} errors/s" if failed else ""
    return f"{'✗' if failed else '✓'} {rate(now.model.asked / now.seconds)} requests/s{_slowest(now.model)}{errors}"


def _slowest(tally: Tally) -> str:
    known = [share for share, enough in ENOUGH.items() if tally.answered >= enough]
    value = tally.percentile(known[-1] / 100) if known else None
    return f", p{known[-1]} {words.milliseconds(value)}" if value is not None else ""


def _edge(watched: Watched) -> str:
    levels = {finding.level for finding in _findings(watched)}
    now = _now(watched)
    if "error" in levels:
        return pieces.BAD
    if "warning" in levels:
        return pieces.DOUBTFUL
    return pieces.GOOD if now is not None and now.model.asked else pieces.NEUTRAL


def _rows(now: Interval) -> list[tuple[pieces.Cell, ...]]:
    asked = f"last {words.seconds(now.seconds)}"
    rows: list[tuple[pieces.Cell, ...]] = [(asked, "requests/s", "share", "p50", "p95", "p99", "errors/s")]
    busiest = sorted(now.versions.items(), key=lambda item: (-item[1].asked, name_of(item[0])))
    rows += [_row(name_of(who), tally, now) for who, tally in busiest[:MOST_ROWS]]
    if rest := busiest[MOST_ROWS:]:
        rows.append(_row(f"{len(rest)} others", Tally.sum(tally for _, tally in rest), now))
    return [*rows, _row("all", now.model, now)] if len(busiest) != 1 else rows


def _row(name: str, tally: Tally, now: Interval) -> tuple[pieces.Cell, ...]:
    share = words.share(min(1.0, tally.asked / now.model.asked)) if now.model.asked else "–"
    failed: pieces.Cell = "0"
    if tally.failed:
        failed = f"✗ {rate(tally.failed / now.seconds)}", f"{words.share(tally.failed / tally.asked)} of its requests"
    percentiles = (_percentile(tally, share, enough) for share, enough in ENOUGH.items())
    return (name, rate(tally.asked / now.seconds), share, *percentiles, failed)


def _percentile(tally: Tally, share: int, enough: int) -> str:
    value = tally.percentile(share / 100)
    if value is None:
        return "–"
    return words.milliseconds(value) if tally.answered >= enough else "too few"


def _findings(watched: Watched) -> Iterator[Finding]:
    history, window = watched.history, _window(watched)
    if history.problem is not None and watched.ended is None:
        yield Finding(
            "error", "silent", f"the server does not answer: {history.problem}", "%serve --list shows those that run."
        )
    if window is not None and window.model.failed:
        counts = sorted(window.model.requests.items(), key=lambda item: (-item[1], item[0]))
        said = ", ".join(f"{count:,.0f} × {status}" for status, count in counts if status != "OK")
        message = f"{window.model.failed:,.0f} of {window.model.asked:,.0f} requests failed ({said})"
        yield Finding("warning", "failed", message, "%predict sends one and shows the whole answer.")
    for interval in history.intervals:
        if interval.restarted:
            yield Finding("note", "restarted", f"the server was started anew before {_clock(interval.end)}", "")


def _facts(watched: Watched) -> Iterator[tuple[str, str]]:
    history, window = watched.history, _window(watched)
    if window is not None:
        missing = sum(min(end, window.end) - start for start, end in history.gaps if start >= window.start)
        unknown = f"; no answer for {words.seconds(missing)} of it" if missing > 0 else ""
        yield "seen", f"{window.model.asked:,.0f} requests in {words.seconds(window.seconds)}{unknown}"
    if window is not None and not history.tells_versions and window.model.asked:
        yield "versions", "this server counts them together, as TensorFlow Serving does"
    last = _clock(history.until)
    if watched.ended is None:
        yield "watching", f"every {words.seconds(watched.every)} until {_clock(watched.ends)}, last at {last}"
    else:
        yield "watched", f"until {last}: {watched.ended}"
    if watched.written:
        names = ", ".join(path.name for path in watched.written)
        yield "Grafana", f"{words.path(watched.written[0].parent)}: {names}"


def _next(watched: Watched) -> str:
    if watched.history.problem is not None or watched.ended == STOPPED:
        return "%serve --list"
    return f"%monitor {watched.url}" if watched.ended is not None else f"%loadtest {watched.url}"


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))


def alternative(watched: Watched) -> str:
    """Return what the figure shows, in words."""
    window = _window(watched)
    if window is None:
        return "nothing was seen yet"
    known = [
        f"p{share} {words.milliseconds(value)}"
        for share in ENOUGH
        if (value := window.model.percentile(share / 100)) is not None
    ]
    rates = [interval.model.asked / interval.seconds for interval in watched.history.intervals]
    parts = [
        f"requests, latency and errors from {_clock(window.start)} to {_clock(window.end)}",
        f"{rate(min(rates))} to {rate(max(rates))} requests/s",
        *known,
        f"{window.model.failed:,.0f} errors",
        *(f"{name_of(who)} {tally.asked:,.0f} requests" for who, tally in list(window.versions.items())[:MOST_ROWS]),
    ]
    return "; ".join(parts)
