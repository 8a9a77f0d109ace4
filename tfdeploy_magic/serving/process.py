"""A model server in a process of its own, which a kernel starts and which outlives its cells.

It is a worker (``tfdeploy_magic.jobs``): forked with TensorFlow imported, deaf to the stop button, and gone with its
kernel, whatever ended that. The tasks here are what the kernel asks it; clients use the doors that it opened.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from tfdeploy_magic.jobs import Report
from tfdeploy_magic.serving import flags
from tfdeploy_magic.serving.lineup import Arm
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


def route_task(report: Report, routes: dict[str, list[dict[str, Any]]], server: str | None = None) -> None:
    """Split the requests of models among arms, and those of others as before; a job's entry.

    Args:
        report: Told of the progress.
        routes: The arms of each model, as ``dataclasses.asdict`` has them; where there are none, it is not split.
        server: The name that the server was started with; may be left out where this process has one only.

    Raises:
        InputError: Shares do not add up to 1, or two arms are called alike; all is as it was.
    """
    report.stage("splitting the requests")
    name = server if server is not None else next(iter(_servers))
    _servers[name].route({model: [Arm(**arm) for arm in arms] for model, arms in routes.items()})


def stop_task(report: Report, model: str) -> None:
    """Stop the server; a job's entry."""
    report.stage("stopping")
    _servers.pop(model).stop()


def _end() -> None:
    """Answer what has been asked, and end this process; who asked for it waits for some seconds only."""
    for server in list(_servers.values()):
        server.stop()
    os._exit(0)
