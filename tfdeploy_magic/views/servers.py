"""The servers that run, as a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tfdeploy_magic.views import html as pieces


@dataclass(frozen=True)
class Row:
    """One model of one server.

    Args:
        model: Its name.
        state: "version 2", and below it labels and shares; or what is wrong.
        url: Its REST address.
        grpc: The address of gRPC; empty where there is none.
        requests: How many it has had, as text.
        owner: "this kernel", "the kernel 4711" or "process 4712"; below it the container.
        started: When, seconds since 1970.
    """

    model: str
    state: pieces.Cell
    url: str
    grpc: str
    requests: str
    owner: pieces.Cell
    started: float


def mimebundle(rows: Sequence[Row], stopped: Sequence[str] = ()) -> dict[str, str]:
    """Return the table as ``text/html`` and ``text/plain``.

    Args:
        rows: The models that are served.
        stopped: Those that have just been stopped.
    """
    ended = f"stopped {', '.join(stopped)}" if stopped else ""
    table = _table(rows)
    following = "%serve MODEL" if not rows else f"%serve --stop {rows[0].model}"
    nothing = "" if rows else "no server of yours runs on this machine"
    plain = [line for line in (ended, nothing) if line]
    return {
        "text/html": pieces.card(
            pieces.GOOD if rows else pieces.NEUTRAL,
            "model servers",
            (
                pieces.sentence(ended),
                pieces.table(*table) if rows else pieces.sentence(nothing),
                pieces.following(following),
            ),
            width=1000,
        ),
        "text/plain": pieces.plain_text([*plain, *(pieces.plain_table(table) if rows else ()), f"  next: {following}"]),
    }


def _table(rows: Sequence[Row]) -> list[tuple[pieces.Cell, ...]]:
    head: tuple[pieces.Cell, ...] = ("model", "serving", "REST and gRPC", "requests", "belongs to", "since")
    return [
        head,
        *(
            (
                row.model,
                row.state,
                (row.url, row.grpc) if row.grpc else row.url,
                row.requests,
                row.owner,
                _since(row.started),
            )
            for row in rows
        ),
    ]


def _since(started: float) -> str:
    """Return a time of today by its hour, and any other with its day."""
    when, now = time.localtime(started), time.localtime()
    return time.strftime("%H:%M" if when[:3] == now[:3] else "%Y-%m-%d %H:%M", when)
