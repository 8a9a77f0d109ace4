"""Which servers of this user run: one small file each, so that any kernel and JupyterLab find them."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs
import psutil

from tfdeploy_magic.errors import ServingError

STOP_SECONDS = 5.0
"""How long a server may take to end by itself."""

CONTAINER_STOP_SECONDS = 30.0
"""How long it may take to end a container: the engine is asked, and waits for it."""

EMBEDDED = "embedded"
"""The backend that is a process of its own."""


@dataclass(frozen=True)
class RunningServer:
    """One server of this user.

    Args:
        pid: Its process.
        created: When that process began, seconds since 1970: numbers of processes are used again.
        models: What it serves.
        url: Of its REST API, "http://127.0.0.1:8501".
        grpc: Of its gRPC API, "127.0.0.1:8500"; None where it has none.
        base_paths: Model -> where its versions are.
        kernel: The process whose end it ends with; None when it was started by hand.
        started: When, seconds since 1970.
        backend: What it runs in, "embedded" or "docker".
        container: The id of its container, whose guard is its process; None where it is none.
    """

    pid: int
    created: float
    models: tuple[str, ...]
    url: str | None
    grpc: str | None
    base_paths: dict[str, str]
    kernel: int | None
    started: float
    backend: str = EMBEDDED
    container: str | None = None

    @property
    def alive(self) -> bool:
        """Whether its process still runs."""
        return is_process(self.pid, self.created)

    def url_of(self, model: str) -> str:
        """Return a model's REST address."""
        return f"{self.url}/v1/models/{model}"

    def stop(self) -> None:
        """End it: politely, and by force after :data:`STOP_SECONDS`, or :data:`CONTAINER_STOP_SECONDS`.

        Raises:
            ServingError: It is part of a kernel, which would end with it.
        """
        if self.pid in (self.kernel, os.getpid()):
            raise ServingError(
                f"{', '.join(self.models)} runs inside a kernel",
                found=f"a server in process {self.pid}, started with --in-kernel",
                wanted="a server in a process of its own",
                cure="Stop it in the notebook that started it.",
            )
        if not self.alive:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS if self.container is None else CONTAINER_STOP_SECONDS)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(STOP_SECONDS)


def is_process(pid: int, created: float) -> bool:
    """Whether a process is the one that began then, and no other with its number."""
    with contextlib.suppress(psutil.Error):  # a process of another user has taken over the number
        process = psutil.Process(pid)
        return bool(abs(process.create_time() - created) < 0.1 and process.status() != psutil.STATUS_ZOMBIE)
    return False


def machine() -> str:
    """Return what tells this machine, or container, from others that share the folder: processes are its own."""
    return re.sub(r"[^\w.-]", "_", platform.node()) or "here"


def folder() -> Path:
    """Return where the files of this machine are."""
    return platformdirs.user_cache_path("tfdeploy_magic") / "servers" / machine()


def note(
    models: tuple[str, ...],
    url: str | None,
    grpc: str | None,
    base_paths: dict[str, str],
    kernel: int | None = None,
    backend: str = EMBEDDED,
    container: str | None = None,
) -> Path:
    """Write down that this process serves, and return where; that file goes when the server does."""
    process = psutil.Process()
    running = RunningServer(
        *(process.pid, process.create_time(), models, url, grpc, base_paths, kernel, time.time()),
        backend=backend,
        container=container,
    )
    path = folder() / f"{process.pid}-{secrets.token_hex(4)}.json"
    partial = path.with_name(f".{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps(asdict(running)))
    partial.replace(path)
    return path


def running() -> list[RunningServer]:
    """Return the servers that run, oldest first; the files of those that were killed are taken away."""
    return sorted(_living(), key=lambda server: server.started)


def _living() -> Iterator[RunningServer]:
    with contextlib.suppress(OSError):
        for path in list(folder().glob("*.json")):
            try:
                noted = json.loads(path.read_text())
                server = RunningServer(**{**noted, "models": tuple(noted["models"])})
            except (OSError, ValueError, TypeError, KeyError):
                continue
            if server.alive:
                yield server
            else:
                path.unlink(missing_ok=True)
