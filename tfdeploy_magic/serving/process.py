"""A model server in a process of its own, which a kernel starts, asks to look for versions, and outlives its cells.

It is a worker (``tfdeploy_magic.jobs``): forked with TensorFlow imported, deaf to the stop button, and gone with its
kernel, whatever ended that. The tasks here are what the kernel asks it; clients use the doors that it opened.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from tfdeploy_magic.errors import VersionFailed
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.serving import flags
from tfdeploy_magic.serving.server import ModelServer

_servers: dict[str, ModelServer] = {}
"""By the name of the model; a kernel that serves in its own process may have several."""


def start_task(report: Report, argv: list[str], kernel: int, devices: str | None = None) -> dict[str, Any]:
    """Start the server of this process; a job's entry.

    Args:
        report: Told of the progress.
        argv: The flags of ``tfdeploy-serve``.
        kernel: The process that asked.
        devices: ``CUDA_VISIBLE_DEVICES`` of the kernel where GPUs are to be used; None where they are not.

    Returns:
        "pid", "url", "grpc", and "notes" on flags that had no effect.
    """
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
        if not devices:
            del os.environ["CUDA_VISIBLE_DEVICES"]
    if kernel != os.getpid():
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=_end, daemon=True).start())
    report.stage("loading the model")
    options = flags.parse(argv)
    server = ModelServer(options, kernel=kernel)
    _servers[options.model_name] = server
    return {"pid": os.getpid(), "url": server.url, "grpc": server.grpc_address, "notes": list(options.notes)}


def load_task(report: Report, model: str, version: int, seconds: float) -> None:
    """Look for a version that has just been written, and return when it is served; a job's entry.

    Raises:
        VersionFailed: It cannot be loaded, or not within that time; what was served still is.
    """
    report.stage(f"loading version {version}")
    models = _servers[model].models
    models.look()
    found = models.wait_for(model, version, seconds)
    if found is not None and found.problem is None:
        return
    raise VersionFailed(
        f"version {version} of {model} is not served",
        found=str(found.problem) if found and found.problem else f"nothing after {seconds:g} s",
        wanted="a version that this server can load",
        cure="The version before it is still served. Export the model again.",
    )


def stop_task(report: Report, model: str) -> None:
    """Stop the server; a job's entry."""
    report.stage("stopping")
    _servers.pop(model).stop()


def _end() -> None:
    """Answer what has been asked, and end this process; who asked for it waits for some seconds only."""
    for server in list(_servers.values()):
        server.stop()
    os._exit(0)
