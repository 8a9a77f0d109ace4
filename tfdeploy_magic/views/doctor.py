"""What the doctor found, and how it shows itself: a card without JavaScript, and its plain-text twin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tfdeploy_magic.views import html as pieces

Level = Literal["ok", "warning", "missing"]

_MARK = {"ok": "✓", "warning": "!", "missing": "✗"}


@dataclass(frozen=True)
class Row:
    """One thing that was looked at.

    Args:
        area: Which part of the checkup it belongs to, "versions".
        what: "tf-keras".
        found: "2.21.0".
        level: "missing" means that something does not work without it.
        purpose: What it is for, where the package does the rest without it; empty when all of it needs this.
        cure: What to type or change; empty where nothing need or can be done.
    """

    area: str
    what: str
    found: str
    level: Level = "ok"
    purpose: str = ""
    cure: str = ""

    @property
    def verdict(self) -> str:
        """The level as a mark and a word."""
        return f"{_MARK[self.level]} {self.level}"


@dataclass(frozen=True)
class Checkup:
    """What is installed here, what is missing, and what for.

    Args:
        rows: Everything that was looked at.
    """

    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is missing that all of the package needs."""
        return not any(row.level == "missing" and not row.purpose for row in self.rows)

    @property
    def troubles(self) -> tuple[Row, ...]:
        """The rows that are not ok, what is missing first."""
        return tuple(sorted((row for row in self.rows if row.level != "ok"), key=lambda row: row.level != "missing"))

    def __repr__(self) -> str:
        return f"<Checkup: {_summary(self)}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": html(self), "text/plain": text(self)}


def text(found: Checkup) -> str:
    """Return the card as plain text."""
    lines = [_heading(found)]
    if found.troubles:
        lines += ["", *pieces.plain_table(_troubles(found))]
    for area in _areas(found):
        lines += ["", *pieces.plain_table(_area(found, area))]
    return pieces.plain_text(lines)


def html(found: Checkup) -> str:
    """Return the card as HTML."""
    return pieces.card(
        pieces.GOOD if found.ok else pieces.BAD,
        f"checkup: {_summary(found)}",
        (
            pieces.heading(_heading(found), ""),
            pieces.table(*_troubles(found)) if found.troubles else "",
            *(pieces.table(*_area(found, area)) for area in _areas(found)),
        ),
    )


def _heading(found: Checkup) -> str:
    return f"{_MARK['ok' if found.ok else 'missing']} {_summary(found)}"


def _summary(found: Checkup) -> str:
    if not found.ok:
        return "not ok: something that the package needs is missing"
    return "ok: all that the package needs is here"


def _troubles(found: Checkup) -> list[tuple[str, ...]]:
    rows = [(row.what, row.verdict, row.purpose or "everything", row.cure) for row in found.troubles]
    return [("what is missing", "", "what for", "cure"), *rows]


def _areas(found: Checkup) -> list[str]:
    return list(dict.fromkeys(row.area for row in found.rows))


def _area(found: Checkup, area: str) -> list[tuple[str, ...]]:
    return [(area, "", ""), *((row.what, row.verdict, row.found) for row in found.rows if row.area == area)]
