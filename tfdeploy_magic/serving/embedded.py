"""Our own server, in a process of its own or in the kernel's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import psutil

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.errors import TfdeployError
from tfdeploy_magic.jobs import Report, Worker, silent
from tfdeploy_magic.serving.hosting import Host

_TASKS = "tfdeploy_magic.serving.process"


@dataclass
class EmbeddedHost(Host):
    """``tfdeploy-serve``, told what to do by the tasks of :mod:`~tfdeploy_magic.serving.process`.

    Args:
        in_kernel: Whether it runs in this process.
        worker: The process that it runs in otherwise.
    """

    in_kernel: bool = False
    worker: Worker = field(default_factory=Worker, repr=False)
    pid: int = field(default=0, init=False)

    backend: ClassVar[str] = "embedded"

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.in_kernel or (self.pid != 0 and self.pid == self.worker.pid and psutil.pid_exists(self.pid))

    @property
    def ends(self) -> str:
        """Where it runs and when it ends."""
        return "this kernel's own process" if self.in_kernel else "a process of its own, which ends with this kernel"

    def start(self, flags: Sequence[str], report: Report, *, gpu: bool) -> None:
        """Start it with its first model, and return when that is served."""
        base_path = self.models[self.name].base_path
        argv = [f"--model_name={self.name}", f"--model_base_path={base_path}", "--prefer_tflite_model", *flags]
        argv += ["--gpu"] if gpu else []
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "") if gpu else None
        report.stage("starting the server")
        try:
            started = self._call("start_task", report, argv=argv, kernel=os.getpid(), devices=devices)
        except BaseException:
            self.worker.close()
            self.take_away()
            raise
        self.url, self.grpc, self.pid = started["url"], started["grpc"], started["pid"]
        self.findings = tuple(Finding("warning", "flag", note) for note in started["notes"])

    def _route(self, name: str) -> None:
        arms = [asdict(arm) for arm in self.arms(name)]
        # In a thread: here the stop button would end the worker, and with it what is served.
        with ThreadPoolExecutor(1) as apart:
            apart.submit(self._call, "route_task", Report(silent), routes={name: arms}, server=self.name).result()

    def _end(self) -> None:
        if not self.worker.cancel() and self.alive:  # one that still starts is not asked
            with contextlib.suppress(TfdeployError):
                self._call("stop_task", Report(silent), model=self.name)
        self.worker.close()

    def _call(self, task: str, report: Report, **arguments: Any) -> Any:
        if not self.in_kernel:
            self.worker.listener = report.relay
            return self.worker.call(f"{_TASKS}:{task}", arguments)
        from tfdeploy_magic.serving import process

        return getattr(process, task)(report, **arguments)
