"""One moment of a piece of work, as HTML and as text."""

from __future__ import annotations

from html import escape

from tfdeploy_magic.jobs.progress import Progress
from tfdeploy_magic.views import words


def html(progress: Progress) -> str:
    """Return a bar that needs no widget and no JavaScript."""
    value = "" if progress.fraction is None else f' value="{progress.fraction:.3f}"'
    return (
        f'<div role="status" style="font-size:13px"><progress max="1"{value} style="width:180px;vertical-align:middle">'
        f"</progress>&ensp;{escape(text(progress))}</div>"
    )


def text(progress: Progress) -> str:
    """Return "calibrating 37%, 4 s left"."""
    words_said = progress.stage
    if progress.fraction is not None:
        words_said += f" {100 * progress.fraction:.0f}%"
    if progress.eta is not None:
        words_said += f", {words.duration(progress.eta)} left" if progress.eta >= 1 else ""
    elif progress.elapsed >= 1:
        words_said += f", {words.duration(progress.elapsed)} so far"
    return words_said
