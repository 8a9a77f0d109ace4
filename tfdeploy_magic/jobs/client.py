"""The kernel's side of a job: start a worker, ask it things, and survive whatever becomes of it."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

import psutil

from tfdeploy_magic import errors
from tfdeploy_magic.jobs.progress import Listener, Progress, silent
from tfdeploy_magic.jobs.server import python_command

POLL_SECONDS = 0.1
"""How often a waiting kernel looks at the deadline and the memory; the stop button needs no poll."""


class _Server:
    """The fork server of this process; started when first needed, again if it was killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._owner = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server unless it runs; returns at once, while it imports TensorFlow."""
        with self._lock:
            self._ensure()

    def request(self, fds: list[int]) -> None:
        """Ask for a worker that inherits ``fds``."""
        with self._lock:
            for attempt in (1, 2):
                control = self._ensure()
                try:
                    socket.send_fds(control, [b"w"], fds)
                    return
                except OSError:
                    self._forget()  # it was killed; a second server gets the request
                    if attempt == 2:
                        raise

    def stop(self) -> None:
        """End the server and with it every worker."""
        with self._lock:
            process = self.process if self._owner == os.getpid() else None
            self._forget()
        if process is not None:
            process.terminate()  # it may still be importing TensorFlow, deaf to its closed socket
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)

    def _ensure(self) -> socket.socket:
        alive = self.process is not None and self.process.poll() is None and self._owner == os.getpid()
        if self._control is None or not alive:
            self._forget()
            self._launch()
        assert self._control is not None
        return self._control

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        code = f"from tfdeploy_magic.jobs import server; server.main({theirs.fileno()})"
        with theirs:
            self.process = subprocess.Popen(
                python_command(code),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._control = ours
        self._owner = os.getpid()

    def _forget(self) -> None:
        if self._control is not None:
            self._control.close()
        self._control = None


_server = _Server()
atexit.register(_server.stop)


def warm_up() -> None:
    """Start the fork server in the background, so that the first job need not wait for TensorFlow's import."""
    _server.start()


class Worker:
    """A process that runs this package's functions, one at a time, isolated from the kernel.

    Use it as a context manager, or keep it and call :meth:`close`. It is started by the first call.

    Args:
        deadline: Seconds one call may take.
        memory_limit: Bytes of resident memory it may use; None for no limit.
        listener: Told of the progress.
    """

    def __init__(
        self, *, deadline: float = 1800.0, memory_limit: int | None = None, listener: Listener = silent
    ) -> None:
        self.deadline = deadline
        self.memory_limit = memory_limit
        self.listener = listener
        self.cpu_seconds = 0.0
        self.seconds: dict[str, float] = {}
        self._process: _Process | None = None
        self._lock = threading.Lock()
        self._cancelled = False
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process, once the first call has started it."""
        return self._process.pid if self._process else None

    def call(
        self, task: str, arguments: Mapping[str, Any], *, crash: type[errors.JobCrashed] = errors.JobCrashed
    ) -> Any:
        """Run one function in the worker and return its result.

        Args:
            task: "package.module:function" of this package; it takes a ``Report`` and the arguments.
            arguments: Plain data that JSON can carry; paths as strings.
            crash: The error to raise when the worker dies by a signal.

        Returns:
            What the function returned, after a trip through JSON.

        Raises:
            JobError: It crashed, hung, outgrew its memory, or raised something unforeseen.
            TfdeployError: Whatever of ours the function raised.
            KeyboardInterrupt: The person pressed stop; the worker is gone.
        """
        with self._lock:
            self._cancelled = False
            if self._process is not None and self._process.gone():
                self._discard()  # something ended it while it was idle
            if self._process is None:
                self._process = _Process()
                self._finalizer = weakref.finalize(self, self._process.kill)
            try:
                return self._converse(self._process, task, arguments, crash)
            except BaseException as error:
                # After anything but a clean answer the worker's state is unknown: the next call gets a new one.
                if not isinstance(error, errors.TfdeployError) or isinstance(error, errors.JobError):
                    self._discard()
                raise

    def cancel(self) -> bool:
        """End the call that another thread is waiting in, where it raises ``JobCancelled``; tell whether one is."""
        self._cancelled = self._lock.locked()
        return self._cancelled

    def output(self) -> str:
        """Everything the worker has printed."""
        return self._process.output() if self._process else ""

    def close(self) -> None:
        """End the worker; its output stays readable no longer."""
        with self._lock:
            self._discard()

    def _discard(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None

    def _converse(
        self, process: _Process, task: str, arguments: Mapping[str, Any], crash: type[errors.JobCrashed]
    ) -> Any:
        ends = time.monotonic() + self.deadline
        stage, fraction, stage_began = "starting a job", None, time.monotonic()
        process.send({"task": task, "arguments": dict(arguments)})
        while True:
            event = process.receive(timeout=POLL_SECONDS)
            if self._cancelled:
                raise errors.JobCancelled(
                    f"the job was stopped in stage '{stage}'",
                    found="the stop button or Ctrl-C",
                    wanted="to run to its end",
                    cure="Run it again when you like.",
                )
            if event is None or "progress" in event:
                self._check_limits(process, stage, ends)  # a job that reports without a pause has limits too
            if event is None:
                self.listener(Progress(stage, fraction, time.monotonic() - stage_began))
            elif "progress" in event:
                stage, fraction, elapsed = event["progress"]
                stage_began = time.monotonic() - elapsed
                self.listener(Progress(stage, fraction, elapsed))
            elif "result" in event:
                self.cpu_seconds += event["cpu_seconds"]
                for name, spent in event["seconds"].items():
                    self.seconds[name] = self.seconds.get(name, 0.0) + spent
                return event["result"]
            elif "error" in event:
                raise _rebuild(event["error"])
            else:
                raise self._post_mortem(process, stage, crash)

    def _check_limits(self, process: _Process, stage: str, ends: float) -> None:
        if time.monotonic() > ends:
            raise errors.DeadlineExceeded(
                f"the job was ended in stage '{stage}'",
                found=f"no result after {self.deadline:g} s",
                wanted="one before the deadline",
                cure="Allow more with --timeout SECONDS.",
            )
        if self.memory_limit is not None and (used := process.resident_bytes()) > self.memory_limit:
            raise errors.MemoryLimitExceeded(
                f"the job was ended in stage '{stage}'",
                found=f"{used / 1e6:.0f} MB in use",
                wanted=f"at most {self.memory_limit / 1e6:.0f} MB",
                cure="Allow more with --memory-limit.",
            )

    def _post_mortem(self, process: _Process, stage: str, crash: type[errors.JobCrashed]) -> errors.JobCrashed:
        status = process.exit_status()
        number = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None
        lines = tuple(line for line in process.output().splitlines() if line.strip())
        cure = None
        if number == signal.SIGKILL:
            cure = "Something outside ended it, most often for want of memory: use less data, or close other kernels."
        words = tuple(line for line in lines if not line.lstrip().startswith(_NOISE))[-20:]
        return crash("the job crashed", signal=number, stage=stage, last_lines=words, cure=cure)


_NOISE = ("File ", "Extension modules:", "Current thread", "Thread 0x", "<no Python frame>")
"""Python's fault handler prints frames after the words that matter."""


class _Process:
    """One worker process and the pipes to it."""

    def __init__(self) -> None:
        requests, self._requests = os.pipe()
        self._events, events = os.pipe()
        self._status, status = os.pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (nameless: even a killed kernel leaves no file behind)
        try:
            _server.request([requests, events, self._log.fileno(), status])
        finally:
            for fd in (requests, events, status):
                os.close(fd)
        self._buffer = b""
        self._pid: int | None = None
        self._exit: int | None = None

    @property
    def pid(self) -> int | None:
        """The process id, once the server has forked it."""
        if self._pid is None and select.select([self._status], [], [], 0)[0]:
            self._pid = _read_number(self._status)
        return self._pid

    def gone(self) -> bool:
        """Whether the process has ended, also while the server has yet to say so."""
        return self.pid is not None and (not _running(self._status) or not psutil.pid_exists(self.pid))

    def send(self, request: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # dead already: receive() will say so
            data = memoryview(json.dumps(request).encode() + b"\n")
            while data:
                data = data[os.write(self._requests, data) :]

    def receive(self, timeout: float) -> dict[str, Any] | None:
        """Return the next event, None after ``timeout`` seconds without one, ``{}`` when the worker is gone."""
        if b"\n" not in self._buffer:
            if not select.select([self._events], [], [], timeout)[0]:
                return None
            chunk = os.read(self._events, 1 << 20)
            if not chunk:
                return {}
            self._buffer += chunk
            if b"\n" not in self._buffer:
                return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        return event

    def resident_bytes(self) -> int:
        try:
            return int(psutil.Process(self.pid).memory_info().rss) if self.pid else 0
        except psutil.NoSuchProcess:
            return 0

    def exit_status(self) -> int | None:
        """Wait for the status that ``waitpid`` gave the server; None when the server died with the worker."""
        if self.pid is not None and self._exit is None:
            self._exit = _read_number(self._status)
        return self._exit

    def output(self) -> str:
        if self._log.closed:
            return ""
        # Read at a position of its own: the worker writes through the same open file.
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def kill(self) -> None:
        """End the process, wait for it, and close everything; safe to call twice."""
        with contextlib.suppress(OSError):
            os.close(self._requests)  # an idle worker ends by itself
        if self._status >= 0:
            # Before the server has forked it, closing its requests is enough: it will find nothing to do.
            if self._exit is None and (pid := self.pid) is not None and _running(self._status):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                select.select([self._status], [], [], 2.0)
            for fd in (self._events, self._status):
                with contextlib.suppress(OSError):
                    os.close(fd)
            self._requests = self._events = self._status = -1
        self._log.close()


def _running(status_fd: int) -> bool:
    """Whether no exit status has arrived: only then does the process id still belong to the worker."""
    return not select.select([status_fd], [], [], 0)[0]


def _read_number(fd: int) -> int | None:
    data = os.read(fd, 8)
    return int.from_bytes(data, "little") if len(data) == 8 else None


def _rebuild(error: dict[str, Any]) -> errors.TfdeployError:
    if "fields" in error:
        return errors.from_fields(error["name"], error["fields"])
    return errors.JobFailed(
        f"the job failed in stage '{error['stage']}'",
        exception=error["name"],
        message=error["message"],
        trace=error["trace"],
    )
