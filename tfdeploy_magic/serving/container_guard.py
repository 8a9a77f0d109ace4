"""A small process beside each container: a container knows of no kernel, and this one ends it with its kernel.

The kernel holds one end of a pipe. When that closes, or the guard is ended, the container and our folders go; whatever
ended the kernel. To the lists of servers (:mod:`~tfdeploy_magic.serving.state`) the guard is the server's process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfdeploy_magic.errors import ServingError, TfdeployError
from tfdeploy_magic.jobs.server import python_command
from tfdeploy_magic.serving import state

LOOK_SECONDS = 1.0
"""How often it looks whether its kernel is there: a process that the kernel forked may hold the pipe open."""

_READY = b"ready\n"


class Guard:
    """The kernel's side.

    Args:
        container: The name that the container has, or will have.
        labels: What it is labelled with; one that is not is left alone.
        folders: What is taken away with it.
    """

    def __init__(self, container: str, labels: Mapping[str, str], folders: Sequence[Path]) -> None:
        code = f"from tfdeploy_magic.serving import container_guard; container_guard.main({os.getpid()})"
        self._process = subprocess.Popen(
            python_command(code),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # the interrupt of a terminal is ours to answer
        )
        try:
            self._tell(container=container, labels=dict(labels), folders=[str(folder) for folder in folders])
        except BaseException:
            self.dismiss(removed=False)
            raise

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def note(self, **known: Any) -> None:
        """Have it write down what is served (``state.note``), and return when that is so.

        Raises:
            ServingError: It is gone.
        """
        self._tell(note=known)

    def dismiss(self, *, removed: bool) -> None:
        """End it, and wait until it has done what it is there for.

        Args:
            removed: Whether the container is gone already.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(ServingError):
            if removed:
                self._tell(removed=True)
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            # A process that was forked here may hold the pipe open.
            self._process.terminate()
            self._process.wait(state.CONTAINER_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _tell(self, **what: Any) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()
            if self._process.stdout.readline() == _READY:
                return
        raise ServingError(
            "the process that guards the container is gone",
            found=f"process {self.pid} ended by itself",
            wanted="one that ends the container with this kernel",
            cure="Type the line again.",
        )


def main(kernel: int) -> None:
    """Guard one container; the process of the guard.

    Args:
        kernel: The process that started this one, and without which it ends.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGTERM, lambda *_: None)  # it is heard by the pipe, and interrupts nothing
    order: dict[str, Any] = {}
    noted: Path | None = None
    removed = False
    try:
        for said in _heard(kernel, woken):
            if "note" in said:
                noted = _noted(said["note"])
            removed = said.get("removed", removed)
            order = said if "container" in said else order
            os.write(1, _READY)
    finally:
        if noted is not None:
            noted.unlink(missing_ok=True)
        if order and not removed:
            _remove(order["container"], order["labels"])
        for folder in order.get("folders", ()):
            shutil.rmtree(folder, ignore_errors=True)


def _heard(kernel: int, woken: int) -> Iterator[dict[str, Any]]:
    """Yield what the kernel says until it closes its end, or is gone, or a signal ends this process."""
    pending = b""
    while os.getppid() == kernel:
        ready, _, _ = select.select([0, woken], [], [], LOOK_SECONDS)
        if woken in ready:
            return
        if not ready:
            continue
        chunk = os.read(0, 1 << 16)
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        yield from map(json.loads, lines)


def _noted(known: dict[str, Any]) -> Path | None:
    """Write down what is served; what cannot be written is in no list, and served all the same."""
    with contextlib.suppress(OSError):
        return state.note(**{**known, "models": tuple(known["models"])})
    return None


def _remove(container: str, labels: dict[str, str]) -> None:
    from tfdeploy_magic.serving import docker_engine  # the SDK, which is needed now and not for hours before

    with contextlib.suppress(TfdeployError), contextlib.closing(docker_engine.connect()) as engine:
        engine.remove(container, labels)
