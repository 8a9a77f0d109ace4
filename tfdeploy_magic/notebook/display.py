"""Showing work while it runs and its result when it is done, in a notebook and in a terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display

from tfdeploy_magic import errors
from tfdeploy_magic.jobs.progress import Progress
from tfdeploy_magic.notebook import live
from tfdeploy_magic.views import progress as views


class Stage:
    """The place in the output where progress is shown, and then the result.

    Args:
        shell: The shell.
        show_progress: Whether to show any.
    """

    def __init__(self, shell: InteractiveShell, *, show_progress: bool) -> None:
        self._shell = shell
        self._terminal = not hasattr(shell, "kernel")
        self._show = show_progress and (not self._terminal or sys.stderr.isatty())
        self._handle: Any = None
        self._last = ("", 0.0)
        self._so_far: dict[str, str] = {}

    def listen(self, progress: Progress) -> None:
        """Show one moment; repeated moments of one stage at most ten times a second, and what is new at once."""
        stage, when = self._last
        soon = progress.stage == stage and time.monotonic() - when < 0.1
        if not self._show or (soon and progress.so_far is None):
            return
        if progress.so_far is not None:
            self._so_far = progress.so_far._repr_mimebundle_()
        self._last = (progress.stage, time.monotonic())
        if self._terminal:
            print(f"\r\033[K{views.text(progress)}", end="", file=sys.stderr, flush=True)
            return
        bundle = {"text/html": views.html(progress), "text/plain": views.text(progress)}
        bundle = {kind: f"{self._so_far.get(kind, '')}\n{line}" for kind, line in bundle.items()}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(bundle, raw=True)

    def clear(self) -> None:
        """Take the progress away."""
        if self._terminal and self._show:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        elif self._handle is not None:
            self._handle.update({"text/plain": ""}, raw=True)

    def show(self, result: Any) -> None:
        """Put the result where the progress was, once: also when the line assigns it, and not again when it does not.

        IPython shows the value of a cell's last line, but not of ``lite = %tflite_convert model``.
        """
        if not live.show(result, self._shell, self._handle):
            if self._handle is not None:
                self._handle.update(result)
            else:
                self.clear()
                display(result)  # type: ignore[no-untyped-call]
        _silence_until_the_cell_ends(self._shell, result)


def _silence_until_the_cell_ends(shell: InteractiveShell, result: Any) -> None:
    object.__setattr__(result, "_ipython_display_", lambda **_: None)

    def restore(*_: Any) -> None:
        shell.events.unregister("post_run_cell", restore)
        object.__delattr__(result, "_ipython_display_")

    shell.events.register("post_run_cell", restore)


def brief(error: errors.TfdeployError, shell: InteractiveShell) -> errors.TfdeployError:
    """Make IPython show an error as its two lines, and after them the person's own traceback when their code raised."""

    def render() -> list[str]:
        lines = [f"{type(error).__name__}: {line}" if not row else line for row, line in enumerate(_lines(error))]
        cause = error.__cause__
        if isinstance(error, errors.UserCodeError) and cause is not None:
            trace = _without_our_frames(cause.__traceback__)
            lines += ["", *shell.InteractiveTB.structured_traceback(type(cause), cause, trace)]
        return lines

    error._render_traceback_ = render  # type: ignore[attr-defined]
    return error


def from_their_code(error: Exception, shell: InteractiveShell) -> Exception:
    """Make IPython show an exception of the person's cell from their own first line on, and not from ours."""

    def render() -> list[str]:
        trace = _without_our_frames(_inside_our_frames(error.__traceback__))
        return list(shell.InteractiveTB.structured_traceback(type(error), error, trace))

    error._render_traceback_ = render  # type: ignore[attr-defined]
    return error


def print_job_trace(error: errors.TfdeployError) -> None:
    """Print what happened inside the job, for ``--debug``."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, errors.JobFailed):
            print(f"Inside the job:\n{seen.trace}", file=sys.stderr)
        elif isinstance(seen, errors.JobCrashed) and seen.last_lines:
            print("The job's last words:", *seen.last_lines, sep="\n", file=sys.stderr)
        else:
            seen = seen.__cause__
            continue
        return


def _lines(error: errors.TfdeployError) -> list[str]:
    return str(error).splitlines()


def _inside_our_frames(trace: TracebackType | None) -> TracebackType | None:
    package = __name__.partition(".")[0]
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] != package:
        trace = trace.tb_next
    return trace


def _without_our_frames(trace: TracebackType | None) -> TracebackType | None:
    package = __name__.partition(".")[0]
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] == package:
        trace = trace.tb_next
    return trace
