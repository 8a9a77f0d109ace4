"""The pieces that cards are made of: HTML that needs no JavaScript, and the same as plain text.

Text and lines take the page's own colour, so that one card suits light and dark. The hues are Okabe and Ito's
(2008), which the colour-blind tell apart; they mark edges only, always together with a word.
"""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from tfdeploy_magic.artifacts.evidence import Finding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GOOD, BAD, DOUBTFUL, NEUTRAL = "#009E73", "#D55E00", "#E69F00", "#999999"
MARK = {"error": "✗", "warning": "!", "note": "·"}
EDGE = {"error": BAD, "warning": DOUBTFUL, "note": NEUTRAL}
Cell = str | tuple[str, str]
"""What stands in one cell of a table: a line, or a line and a smaller one below it."""
_LINE = "1px solid rgba(128,128,128,.35)"
_CELL = f"padding:3px 14px 3px 0;text-align:left;border:0;border-bottom:{_LINE};background:transparent"
_PRE = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:12px;margin:4px 0 8px 0;background:transparent"


def printable(text: str) -> str:
    """Return text in which nothing commands a terminal or breaks a line: names in a file may hold anything."""
    return "".join(letter if letter.isprintable() or letter == "\t" else "�" for letter in text)


def escape(text: str) -> str:
    """Return text as HTML that shows it and nothing else; line breaks stay."""
    return html.escape("\n".join(printable(line) for line in text.split("\n")))


def card(edge: str, label: str, parts: Iterable[str], width: int = 820) -> str:
    """Return a card.

    Args:
        edge: The colour of its left edge.
        label: What a screen reader calls it.
        parts: HTML.
        width: The most it takes up, in CSS pixels.
    """
    return (
        f'<div style="border:{_LINE};border-left:5px solid {edge};border-radius:4px;padding:10px 16px;'
        f'max-width:{width}px;font-size:13px;line-height:1.45" role="group" aria-label="{escape(label)}">'
        f"{''.join(parts)}</div>"
    )


def heading(strong: str, rest: str) -> str:
    """Return a card's first line; ``rest`` is HTML."""
    return f'<div><strong style="font-size:15px">{escape(strong)}</strong>&ensp;{rest}</div>'


def table(head: Sequence[Cell], *rows: Sequence[Cell]) -> str:
    """Return a table; the first cell of each row names it."""
    titles = "".join(f'<th scope="col" style="{_cell(title)};font-weight:600">{_stacked(title)}</th>' for title in head)
    body = "".join(
        '<tr style="background:transparent">'
        f'<th scope="row" style="{_cell(name)};font-weight:400">{_stacked(name)}</th>'
        + "".join(f'<td style="{_cell(value)}">{_stacked(value)}</td>' for value in values)
        + "</tr>"
        for name, *values in rows
    )
    return (
        '<div style="overflow-x:auto"><table style="border-collapse:collapse;margin:8px 0;font-size:13px;border:0">'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: Cell) -> str:
    # A mark stays with its word and a number with its unit, however long the other cells are.
    kept_whole = len(value) <= 16 if isinstance(value, str) else max(map(len, value)) <= 32
    return f"{_CELL};white-space:nowrap" if kept_whole else _CELL


def _stacked(value: Cell) -> str:
    above, below = (value, "") if isinstance(value, str) else value
    return escape(above) + (f'<div style="font-size:11.5px;opacity:.75">{escape(below)}</div>' if below else "")


def picture(figure: Figure, alternative: str, width: int = 720) -> str:
    """Return a figure as an image of at most ``width`` CSS pixels; ``alternative`` says the same in words."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the text beside the figure has it whole.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(buffer, format="png", dpi=144, facecolor=figure.get_facecolor())
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img alt="{escape(alternative)}" src="data:image/png;base64,{data}" '
        f'style="width:100%;max-width:{width}px;border-radius:3px;margin:2px 0 6px 0">'
    )


def finding(noticed: Finding) -> str:
    """Return one finding, its level in a word."""
    return (
        f'<div style="border-left:3px solid {EDGE[noticed.level]};padding:1px 0 1px 10px;margin:6px 0">'
        f"<strong>{MARK[noticed.level]} {noticed.level}</strong>: {escape(noticed.message)}. "
        f"{escape(noticed.cure)}</div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and values, a line each."""
    rows = "".join(
        f'<div style="display:flex;gap:10px"><span style="min-width:80px;opacity:.75">{escape(name)}</span>'
        f'<span style="overflow-wrap:anywhere">{escape(value)}</span></div>'
        for name, value in pairs
    )
    return f'<div style="margin:6px 0">{rows}</div>'


def following(line: str | None) -> str:
    """Return the line a person would most naturally type next, ready to copy."""
    return f'<div style="margin-top:8px">next: <code>{escape(line)}</code></div>' if line else ""


def folded(title: str, inner: str) -> str:
    """Return HTML that is one click away."""
    return f'<details style="margin-top:6px"><summary style="cursor:pointer">{escape(title)}</summary>{inner}</details>'


def preformatted(body: str) -> str:
    """Return text whose lines stay as they are."""
    return f'<pre style="{_PRE}">{escape(body)}</pre>'


def section(title: str, *inner: str) -> str:
    """Return HTML below a title of its own; nothing when there is nothing to say."""
    body = "".join(inner)
    return f'<div style="margin-top:10px"><strong>{escape(title)}</strong>{body}</div>' if body else ""


def sentence(said: str) -> str:
    """Return a line of text."""
    return f'<div style="margin:4px 0;overflow-wrap:anywhere">{escape(said)}</div>' if said else ""


def plain_table(rows: Sequence[Sequence[Cell]]) -> Iterator[str]:
    """Yield the lines of a table in plain text; a cell of two lines makes a row of two."""
    cells = [[(cell,) if isinstance(cell, str) else cell for cell in row] for row in rows]
    lines = [line for row in cells for line in zip_longest(*row, fillvalue="")]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))


def plain_section(title: str, lines: Iterable[str]) -> Iterator[str]:
    """Yield lines below a title of their own; nothing when there are none."""
    for number, line in enumerate(lines):
        yield from ("", f"  {title}") if number == 0 else ()
        yield f"  {line}"


def plain_facts(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the lines of names and values in plain text."""
    for name, value in pairs:
        yield f"  {name.ljust(12)} {value}"


def plain_findings(noticed: Iterable[Finding]) -> Iterator[str]:
    """Yield the lines of findings in plain text."""
    for each in noticed:
        yield from ("", f"  {MARK[each.level]} {each.level}: {each.message}.")
        if each.cure:
            yield f"    {each.cure}"


def plain_text(lines: Iterable[str]) -> str:
    """Return lines as one text."""
    return "\n".join(printable(line).rstrip() for line in lines)
