"""How work, in the kernel or in a job, says how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Progress:
    """One moment of a piece of work.

    Args:
        stage: What is being done, "calibrating".
        fraction: How much of the stage is done, 0 to 1; None where that cannot be known.
        elapsed: Seconds since the stage began.
        so_far: What is finished already, to be shown meanwhile; None where there is nothing new to show.
    """

    stage: str
    fraction: float | None = None
    elapsed: float = 0.0
    so_far: Any = None

    @property
    def eta(self) -> float | None:
        """Seconds left in this stage at the pace so far; None while that cannot be said."""
        if not self.fraction:
            return None
        return self.elapsed * (1 - self.fraction) / self.fraction


Listener = Callable[[Progress], None]


class Report:
    """Tells a listener which stage is running and how far it is, at most ten times a second.

    Args:
        listener: Called with each :class:`Progress`.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._stage = ""
        self._began = time.monotonic()
        self._last = 0.0
        self.seconds: dict[str, float] = {}

    @property
    def current(self) -> str:
        """The stage that is running."""
        return self._stage

    def stage(self, name: str) -> None:
        """Begin a stage."""
        self.finish()
        self._stage = name
        self._began = time.monotonic()
        self._send(None)

    def fraction(self, value: float) -> None:
        """Say how much of this stage is done, 0 to 1."""
        if time.monotonic() - self._last >= 0.1:
            self._send(value)

    def counting(self, items: Iterable[Item], total: int) -> Iterator[Item]:
        """Yield ``items``, reporting the share of ``total`` that is done."""
        for done, item in enumerate(items):
            yield item
            self.fraction((done + 1) / total)

    def show(self, so_far: Any) -> None:
        """Hand over what is finished already."""
        self._last = time.monotonic()
        self._listener(Progress(self._stage, None, self._last - self._began, so_far))

    def pass_on(self, progress: Progress) -> None:
        """Let the listener hear of work that is no stage of this report's own."""
        self._listener(progress)

    def relay(self, progress: Progress) -> None:
        """Pass on what a job reported as if it were said here."""
        if progress.stage != self._stage:
            self.stage(progress.stage)
        self._listener(progress)

    def finish(self) -> None:
        """End the stage, keeping its seconds."""
        if self._stage:
            spent = time.monotonic() - self._began
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + spent
            self._stage = ""

    def _send(self, fraction: float | None) -> None:
        self._last = time.monotonic()
        self._listener(Progress(self._stage, fraction, self._last - self._began))


def silent(progress: Progress) -> None:
    """Listen and say nothing."""
