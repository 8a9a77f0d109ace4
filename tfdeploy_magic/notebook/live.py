"""Results that go on changing: shown by widgets, which a thread refreshes while other cells run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display

if TYPE_CHECKING:
    from tfdeploy_magic.commands.monitor import Monitor

SHARE = 0.1
"""Of a core that drawing may take at the most; a picture that takes longer is drawn less often."""

_WIDGET = "application/vnd.jupyter.widget-view+json"
_UNSEEN = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)"


def show(result: Any, shell: InteractiveShell, handle: Any) -> bool:
    """Show a result that goes on changing.

    Args:
        result: Any result.
        shell: The shell.
        handle: The place in the output where progress was shown; None where there was none.

    Returns:
        Whether it was shown: not where it does not change, nor where nobody would see it do so.
    """
    if getattr(type(result), "__tfdeploy_live__", False) is not True or not _is_watched(shell):
        return False
    try:
        import ipywidgets  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        return False
    view = _View(result, handle)
    result.watch(view.refresh)
    return True


def _is_watched(shell: InteractiveShell) -> bool:
    """Whether a person is at the other end: a terminal shows no widgets, and nbconvert answers no questions."""
    kernel = getattr(shell, "kernel", None)
    request = kernel.get_parent("shell") if kernel is not None else {}
    return bool(request.get("content", {}).get("allow_stdin", False))


class _View:
    """The widgets of a monitor: its numbers, its picture, and a button that stops it.

    Args:
        monitor: What is shown.
        handle: The place in the output; None where there is none yet.
    """

    def __init__(self, monitor: Monitor, handle: Any) -> None:
        import ipywidgets

        from tfdeploy_magic.views import monitor as view
        from tfdeploy_magic.views import monitor_figures

        self._monitor = monitor
        self._next = 0.0
        seen = monitor.seen()
        self._picture = monitor_figures.picture(seen.seconds)
        self._picture.draw(seen.history)
        png = self._picture.png()
        self._numbers = ipywidgets.HTML(_numbers(seen))
        self._image = ipywidgets.Image(value=png, format="png", layout={"max_width": f"{view.WIDTH}px"})
        self._button = ipywidgets.Button(description="Stop", icon="stop", tooltip="Stop watching; the picture stays")
        self._button.on_click(self._stop)
        self._box = ipywidgets.VBox([self._numbers, self._image, self._button])
        self._box.comm.on_close(self._stop)  # by the front end
        widget = {"version_major": 2, "version_minor": 0, "model_id": self._box.model_id}
        bundle = {_WIDGET: widget, **view.mimebundle(seen, png)}
        if handle is None:
            handle = display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            handle.update(bundle, raw=True)
        self._handle = handle
        # ipykernel 7 has a click handled by whoever used the button's comm last: this thread, which may be busy with a
        # cell for hours. Without that note the front end's own subshell does it, at once.
        vars(self._button.comm).pop("_reply_subshell_id", None)

    def refresh(self) -> None:
        """Show it as it is now; at the end without widgets, so that it stays without a kernel."""
        if not self._monitor.running:
            self._leave()
        elif self._box.comm is None:  # closed in the kernel
            self._monitor.stop(wait=False)
        elif time.monotonic() >= self._next:
            began = time.thread_time()
            seen = self._monitor.seen()
            self._picture.draw(seen.history)
            self._image.value = self._picture.png()
            self._numbers.value = _numbers(seen)
            self._next = time.monotonic() + (time.thread_time() - began) * (1 / SHARE - 1)

    def _leave(self) -> None:
        from tfdeploy_magic.views import monitor as view

        seen = self._monitor.seen()
        self._picture.draw(seen.history)
        self._handle.update(view.mimebundle(seen, self._picture.png()), raw=True)
        for widget in (self._box, self._numbers, self._image, self._button):
            for part in (widget, widget.layout, getattr(widget, "style", None)):
                if part is not None:
                    part.close()

    def _stop(self, *_: object) -> None:
        # It may be called by any thread, and while a cell runs: it only says so.
        self._button.disabled = True
        self._monitor.stop(wait=False)


def _numbers(seen: Any) -> str:
    """Return the card, with what the picture beside it shows for those who do not see it."""
    from tfdeploy_magic.views import monitor as view
    from tfdeploy_magic.views.html import escape

    return f'{view.html(seen)}<div style="{_UNSEEN}">{escape(view.alternative(seen))}</div>'
