"""The fork server: one process a kernel, with TensorFlow imported, that forks a worker for each request.

Why not ``multiprocessing``'s own: that server is one for the whole process, shared with whatever the person's own
code does with it, and each of its children first runs ``__main__`` again. This one inherits the
import paths and the environment and nothing else, speaks JSON instead of pickles, and ends its workers when the
kernel is gone.

On macOS forking after TensorFlow's import is not safe; there the server starts each worker as a new interpreter.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

FORKING = sys.platform == "linux"
"""Whether workers are forked, TensorFlow already imported, or started afresh."""

PRELOAD = (
    *("numpy", "tensorflow", "ai_edge_litert.interpreter", "ai_edge_litert.schema_py_generated", "litert_quantizer"),
    *("tfdeploy_magic.quantization.engine", "tfdeploy_magic.evaluate.slowness"),
)
"""What workers find imported, by name: nothing up there is any business of this module's."""

FDS_PER_REQUEST = 4
"""What comes with each request: its requests, its events, its output, and where its pid and exit status go."""


def main(control_fd: int) -> None:
    """Serve until the kernel closes its end of ``control_fd``.

    Args:
        control_fd: A Unix stream socket; each byte that arrives brings :data:`FDS_PER_REQUEST` file descriptors.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    if FORKING:
        for module in PRELOAD:
            importlib.import_module(module)
        # What was imported is no garbage. To look through it takes a worker a quarter of a second, in which a model
        # server answers nobody, and makes copies of the memory that it shares with this process.
        gc.collect()
        gc.freeze()
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    control = socket.socket(fileno=control_fd)
    status_fds: dict[int, int] = {}
    try:
        while True:
            ready, _, _ = select.select([control.fileno(), woken], [], [])
            if woken in ready:
                os.read(woken, 4096)
                _report_the_dead(status_fds)
            if control.fileno() in ready:
                message, fds, _, _ = socket.recv_fds(control, 1, FDS_PER_REQUEST)
                if not message:
                    return
                *worker_fds, status_fd = fds
                inherited = (control.fileno(), woken, waker, status_fd, *status_fds.values())
                pid = _start_worker(*worker_fds, inherited=inherited)
                for fd in worker_fds:
                    os.close(fd)
                status_fds[pid] = status_fd
                _write_number(status_fd, pid)
    finally:
        for pid in status_fds:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _start_worker(requests: int, events: int, output: int, *, inherited: tuple[int, ...]) -> int:
    if not FORKING:
        return _spawn_worker(requests, events, output)
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for fd in inherited:
            os.close(fd)
        _die_with_the_server()
        from tfdeploy_magic.jobs import worker

        worker.main(requests, events, output)
        status = 0
    finally:
        # Never run what the server registered to run at its own exit.
        os._exit(status)


def _spawn_worker(requests: int, events: int, output: int) -> int:
    code = f"from tfdeploy_magic.jobs import worker; worker.main({requests}, {events}, {output})"
    process = subprocess.Popen(
        python_command(code),
        stdin=subprocess.DEVNULL,
        pass_fds=(requests, events, output),
        start_new_session=True,
    )
    process.returncode = 0  # the server reaps it itself
    return process.pid


def _die_with_the_server() -> None:
    """Ask the kernel of the operating system to end this process when its parent ends, even by SIGKILL."""
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    os.setsid()  # out of reach of the stop button's SIGINT, which goes to the kernel's process group


def _report_the_dead(status_fds: dict[int, int]) -> None:
    while status_fds:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        if pid in status_fds:
            fd = status_fds.pop(pid)
            _write_number(fd, status)
            os.close(fd)


def _write_number(fd: int, value: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the kernel may have lost interest
        os.write(fd, value.to_bytes(8, "little"))


def python_command(code: str) -> list[str]:
    """Return a command line that runs ``code`` in a fresh interpreter with this one's import paths.

    The empty path and the paths of ``__main__`` stay out: a job never runs the person's own script.
    """
    paths = [path for path in sys.path if path and Path(path).exists()]
    return [sys.executable, "-P", "-c", f"import sys; sys.path[:] = {paths!r}; {code}"]
