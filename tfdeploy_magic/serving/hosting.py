"""The servers that this process has started: where their versions lie, how they are swapped, and how they end."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs
import psutil

from tfdeploy_magic.errors import ServingError, TfdeployError
from tfdeploy_magic.jobs import Report, Worker, silent
from tfdeploy_magic.jobs.progress import Progress
from tfdeploy_magic.serving import state
from tfdeploy_magic.serving.served import Served

KEPT_VERSIONS = 3
"""Versions of a model that stay on disk where nobody chose the folder."""

SPARE_SECONDS = 60.0
"""How much longer than it may take to load a version its server may take to say so."""

_TASKS = "tfdeploy_magic.serving.process"


@dataclass
class Host:
    """One server with one model, in a process of its own or in this one.

    Args:
        name: What the model is served as.
        base_path: The folder of its versions.
        ours: Whether that folder is ours to clean up.
        in_kernel: Whether it runs in this process.
        asked: What a person asked for besides, option -> value.
        served: What is known of the version that it serves; None before there is one.
        newest: The highest version that it was ever asked to load: no number is given twice.
    """

    name: str
    base_path: Path
    ours: bool
    in_kernel: bool
    worker: Worker = field(default_factory=Worker, repr=False)
    url: str = ""
    grpc: str | None = None
    pid: int = 0
    asked: Mapping[str, object] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    served: Served | None = None
    newest: int = 0
    owner: int = field(default_factory=os.getpid)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.in_kernel or (self.pid != 0 and self.pid == self.worker.pid and psutil.pid_exists(self.pid))

    @property
    def request_file(self) -> Path:
        """Where a request lies that examples send."""
        return own_folder() / f"{self.name}-request.json"

    @property
    def model_url(self) -> str:
        """The model's REST address."""
        return f"{self.url}/v1/models/{self.name}"

    def start(self, version: int, flags: Sequence[str], report: Report, *, gpu: bool) -> None:
        """Start it, and return when the model is served.

        Args:
            version: The newest, which it is to load.
            flags: Of ``tfdeploy-serve``.
            report: Told of the progress.
            gpu: Whether it may use GPUs.

        Raises:
            TfdeployError: It could not start; nothing is left of it.
        """
        argv = [f"--model_name={self.name}", f"--model_base_path={self.base_path}", "--prefer_tflite_model", *flags]
        argv += ["--gpu"] if gpu else []
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "") if gpu else None
        report.stage("starting the server")
        try:
            started = self._call("start_task", report, argv=argv, kernel=os.getpid(), devices=devices)
        except BaseException:
            self.worker.close()
            self._take_away()
            raise
        self.url, self.grpc, self.pid = started["url"], started["grpc"], started["pid"]
        self.notes = tuple(started["notes"])
        self.newest = version
        hosts[self.name] = self

    def load(self, version: int, seconds: float, report: Report) -> None:
        """Swap to a version that has just been written, and return when it is served.

        Raises:
            VersionFailed: It cannot be loaded; the version before it still is served.
        """
        self.newest = max(self.newest, version)
        self.worker.deadline = seconds + SPARE_SECONDS  # to miss that one would end the server
        stage = f"loading version {version}"
        report.stage(stage)
        _in_a_thread(
            lambda: self._call("load_task", Report(silent), model=self.name, version=version, seconds=seconds),
            lambda elapsed: report.pass_on(Progress(stage, None, elapsed)),
        )
        if self.ours:
            numbers = sorted(int(path.name) for path in self.base_path.iterdir() if path.name.isdecimal())
            for number in numbers[:-KEPT_VERSIONS]:
                shutil.rmtree(self.base_path / str(number), ignore_errors=True)

    def stop(self) -> None:
        """End it, and take its folder away where that is ours."""
        hosts.pop(self.name, None)
        if not self.worker.cancel() and self.alive:  # one that still loads a version is not asked
            with contextlib.suppress(TfdeployError):
                self._call("stop_task", Report(silent), model=self.name)
        self.worker.close()
        self._take_away()

    def _take_away(self) -> None:
        self.request_file.unlink(missing_ok=True)
        if self.ours:
            shutil.rmtree(self.base_path, ignore_errors=True)

    def _call(self, task: str, report: Report, **arguments: Any) -> Any:
        if not self.in_kernel:
            self.worker.listener = report.relay
            return self.worker.call(f"{_TASKS}:{task}", arguments)
        from tfdeploy_magic.serving import process

        return getattr(process, task)(report, **arguments)


def _in_a_thread(work: Callable[[], Any], waiting: Callable[[float], None]) -> None:
    """Do work that the stop button does not reach: it would end the worker, and with it what is served.

    Args:
        work: What to do; after the stop button it goes on, and nobody waits for it.
        waiting: Told meanwhile how many seconds it has taken.
    """
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    began = time.monotonic()
    threading.Thread(target=run, name="load", daemon=True).start()
    while not wait([outcome], timeout=0.1).done:
        waiting(time.monotonic() - began)
    outcome.result()


hosts: dict[str, Host] = {}
"""By the name of the model."""


def own_folder() -> Path:
    """Return where this process keeps versions that nobody chose a folder for."""
    return _served() / f"{os.getpid()}-{psutil.Process().create_time():.2f}"


def clean_up() -> None:
    """Take away what processes that are gone have left."""
    with contextlib.suppress(OSError):
        for folder in _served().iterdir():
            match = re.fullmatch(r"(\d+)-(\d+\.\d+)", folder.name)
            if match and not state.is_process(int(match[1]), float(match[2])):
                shutil.rmtree(folder, ignore_errors=True)


def _served() -> Path:
    return platformdirs.user_cache_path("tfdeploy_magic") / "served" / state.machine()


def find(name: str) -> Host | None:
    """Return the running server of that name in this process."""
    host = hosts.get(name)
    if host is not None and not host.alive:
        host.stop()
        return None
    return host


def at(url: str) -> Host | None:
    """Return the server of this process that has a model at this REST address."""
    return next((host for host in hosts.values() if host.model_url == url), None)


def stop_everywhere(name: str) -> bool:
    """Stop the server of that name, of this process or of another one of this user.

    Returns:
        Whether there was one.
    """
    host = hosts.get(name)
    if host is not None:
        host.stop()
        return True
    others = [server for server in state.running() if name in server.models]
    if len(others) > 1:
        raise ServingError(
            f"several servers have a model called {name}",
            found=", ".join(f"{server.url} (process {server.pid})" for server in others),
            wanted="one",
            cure=f"Stop it by its process: !kill {others[0].pid}",
        )
    for server in others:
        server.stop()
    return bool(others)


@atexit.register
def _stop_all() -> None:
    # Not those that a process inherited when it was forked: they are its parent's.
    own = [host for host in hosts.values() if host.owner == os.getpid()]
    for host in own:
        host.stop()
    if own:
        shutil.rmtree(own_folder(), ignore_errors=True)
