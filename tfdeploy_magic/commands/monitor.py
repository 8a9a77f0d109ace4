"""``%monitor``: a served model as it does now, again and again, while the kernel is free for other cells."""

from __future__ import annotations

import atexit
import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from tfdeploy_magic.commands.declaration import FromKernel, Named, OnTheLine, Options, command
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.jobs.progress import Listener

if TYPE_CHECKING:
    from tfdeploy_magic.serving.history import History
    from tfdeploy_magic.serving.state import RunningServer
    from tfdeploy_magic.views.figures import Figure
    from tfdeploy_magic.views.monitor import Watched

TIMEOUT = 2.0
"""Seconds after which a server that says nothing is one that does not answer."""

NOTICED = 1.0
"""Seconds within which it is noticed that the server was stopped."""


class MonitorOptions(Options):
    """Watch a served model: requests a second, latency and errors of each version, refreshed while other cells run.

    It ends by itself when the time is over or the server is stopped, and the last picture stays.
    """

    endpoint: Annotated[Any, FromKernel("endpoint"), OnTheLine(positional=True)] = Field(
        description="what %serve returned, or the REST address of a model"
    )
    every: float = Field(1.0, ge=0.2, le=60, description="from one look at its counters to the next")
    seconds: float = Field(120.0, ge=2, le=3600, description="how much of the past is drawn")
    minutes: int | float = Field(10, gt=0, le=1440, description="how long it goes on")
    grafana: Path | None = Field(
        None, description="folder to write a Grafana dashboard and Prometheus' alerts to, to take along"
    )

    @model_validator(mode="after")
    def _sees_several(self) -> MonitorOptions:
        if self.seconds < 2 * self.every:
            raise ValueError("draw more --seconds, or look more often: --every")
        return self


class Monitor:
    """What is seen of a served model, for as long as it is watched; it is shown as it is at the moment.

    Args:
        endpoint: The model.
        history: What was seen so far.
        every: Seconds from one look to the next.
        seconds: How much is drawn, the last.
        minutes: How long it goes on.
        written: Files that were written to take along.
    """

    __tfdeploy_live__: ClassVar[bool] = True

    def __init__(
        self,
        endpoint: Endpoint,
        history: History,
        *,
        every: float,
        seconds: float,
        minutes: float,
        written: Sequence[Path] = (),
    ) -> None:
        from tfdeploy_magic.serving import hosting

        self.endpoint = endpoint
        self.history = history
        self.written = tuple(written)
        self._every, self._seconds = every, seconds
        self._due = time.monotonic()
        self._ends = self._due + 60 * minutes
        self._ends_at = time.time() + 60 * minutes
        self._host = hosting.at(endpoint.url)
        self._server = _server(endpoint.url)
        self._asked_to_end = threading.Event()
        self._ended: str | None = None
        self._lock = threading.Lock()
        self._watchers: list[Callable[[], None]] = []
        self._thread = threading.Thread(target=self._run, name=f"monitor {endpoint.name}", daemon=True)

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self._ended is None

    def start(self) -> None:
        """Go on looking; another monitor of the same model ends."""
        with _registry:
            former = _monitors.get(self.endpoint.url)
            _monitors[self.endpoint.url] = self
        if former is not None:
            former.stop()
        self._thread.start()

    def stop(self, *, wait: bool = True) -> None:
        """End it; what was seen stays.

        Args:
            wait: Whether to return only when it has ended.
        """
        self._asked_to_end.set()
        if wait and self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Have a function called after each look and at the end, in the thread that looks."""
        with self._lock:
            if self.running:
                self._watchers.append(watcher)
                return
        watcher()

    def seen(self) -> Watched:
        """Return it as it is now."""
        from tfdeploy_magic.views.monitor import Watched

        endpoint = self.endpoint
        return Watched(
            endpoint.name, endpoint.url, self.history, self._seconds, self._every, self._ends_at, self._ended,
            self.written,
        )  # fmt: skip

    def figure(self) -> Figure:
        """Draw requests a second, latency and errors over time."""
        from tfdeploy_magic.views import monitor_figures

        return monitor_figures.figure(self.history, self._seconds)

    def __repr__(self) -> str:
        return f"<Monitor of {self.endpoint.url}: {self._ended or 'running'}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from tfdeploy_magic.views import monitor as view

        return view.mimebundle(self.seen())

    def _run(self) -> None:
        try:
            while self._wait():
                self.history.look()
                self._tell()
        finally:
            with self._lock:
                self._ended = self._over() or "it failed"
            with _registry:
                if _monitors.get(self.endpoint.url) is self:
                    del _monitors[self.endpoint.url]
            self.history.client.close()
            self._tell()

    def _wait(self) -> bool:
        """Wait until it is time for the next look, and return whether there is one."""
        self._due = max(self._due + self._every, time.monotonic())  # looks that were missed are not made up for
        while (over := self._over()) is None and (left := self._due - time.monotonic()) > 0:
            self._asked_to_end.wait(min(left, NOTICED))
        return over is None

    def _tell(self) -> None:
        with self._lock:
            watchers = tuple(self._watchers)
        for watcher in watchers:
            watcher()

    def _over(self) -> str | None:
        """Return why it ends now."""
        from tfdeploy_magic.serving import hosting
        from tfdeploy_magic.serving.history import STOPPED

        if self._asked_to_end.is_set():
            return "it was stopped"
        if time.monotonic() >= self._ends:
            return "its time was over"
        if self._host is not None:
            gone = hosting.hosts.get(self._host.name) is not self._host
            gone = gone or (self.history.problem is not None and not self._host.alive)
            return STOPPED if gone else None
        if self._server is not None and self.history.problem is not None and not self._server.alive:
            return STOPPED
        return None


_monitors: dict[str, Monitor] = {}
"""By the address of the model: a cell that is run again takes over from itself."""

_registry = threading.Lock()


@atexit.register
def _stop_all() -> None:
    for running in list(_monitors.values()):
        running.stop()


def _server(url: str) -> RunningServer | None:
    """Return the server of this user that has a model at this address, of whatever process."""
    from tfdeploy_magic.serving import state

    servers = state.running()
    return next((server for server in servers if server.url and url.startswith(f"{server.url}/")), None)


@command("monitor", MonitorOptions)
def monitor(options: MonitorOptions, progress: Listener) -> Monitor:
    """Look twice, and from then on again and again in a thread of its own.

    Returns:
        What is seen: ``.figure()``, ``.history``, ``.stop()``.

    Raises:
        OutputError: The files for Grafana cannot be written; nothing was started.
        ServerUnreachable: Nothing answers at the address.
        RequestRefused: The server has no such model, or shows no metrics.
    """
    # Loading the extension imports every verb, and has no need of what this one does.
    from tfdeploy_magic.serving import grafana
    from tfdeploy_magic.serving.client import Client
    from tfdeploy_magic.serving.history import History

    report = Report(progress)
    report.stage("looking at what it counts")
    endpoint = options.endpoint.value if isinstance(options.endpoint, Named) else options.endpoint
    endpoint = Endpoint.at(endpoint) if isinstance(endpoint, str) else endpoint
    with contextlib.ExitStack() as undone:
        client = undone.enter_context(Client(endpoint.url, timeout=TIMEOUT))
        client.status()  # of a model that it has not, a server has nothing to tell
        history = History(client, kept=math.ceil(options.seconds / options.every) + 1)
        history.look()
        written = grafana.write(options.grafana, endpoint.url, endpoint.name) if options.grafana is not None else ()
        time.sleep(min(options.every, 1.0))
        history.look()
        undone.pop_all()
    report.finish()
    made = Monitor(
        endpoint,
        history,
        every=options.every,
        seconds=options.seconds,
        minutes=options.minutes,
        written=written,
    )
    made.start()
    return made
