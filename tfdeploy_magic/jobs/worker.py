"""The worker's side of a job: answer requests, one JSON line each, until the kernel closes its end."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from typing import Any, BinaryIO

from tfdeploy_magic.errors import TfdeployError
from tfdeploy_magic.jobs.progress import Progress, Report

PACKAGE = __name__.split(".", maxsplit=1)[0]


def main(requests: int, events: int, output: int) -> None:
    """Serve one kernel.

    Args (file descriptors):
        requests: Where requests come from: ``{"task": "package.module:function", "arguments": {...}}``.
        events: Where answers go: ``{"progress": ...}`` lines, then ``{"result": ...}`` or ``{"error": ...}``.
        output: What takes standard output and standard error.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # A file is block-buffered by default; a crash would take the last words with it.
    sys.stdout = open(1, "w", buffering=1, closefd=False, errors="replace")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="replace")  # noqa: SIM115
    faulthandler.enable(file=sys.stderr)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    with open(requests, "rb") as source, open(events, "wb", buffering=0) as sink:
        for line in source:
            _answer(json.loads(line), sink)


def _answer(request: dict[str, Any], sink: BinaryIO) -> None:
    def send(event: dict[str, Any]) -> None:
        sink.write(json.dumps(event).encode() + b"\n")

    def listener(progress: Progress) -> None:
        send({"progress": [progress.stage, progress.fraction, progress.elapsed]})

    began = time.process_time()
    report = Report(listener)
    try:
        result = _task(request["task"])(report, **request["arguments"])
        report.finish()
        send({"result": result, "cpu_seconds": time.process_time() - began, "seconds": report.seconds})
    except TfdeployError as error:
        send({"error": {"name": type(error).__name__, "fields": error.as_fields()}})
    except Exception as error:
        trace = traceback.format_exc()
        send(
            {
                "error": {
                    "name": type(error).__name__,
                    "message": str(error),
                    "trace": trace,
                    "stage": report.current,
                }
            }
        )


def _task(name: str) -> Any:
    module, _, function = name.partition(":")
    if module.split(".", maxsplit=1)[0] not in (PACKAGE, "tests"):
        raise ValueError(f"a job runs this package's own functions only, not {name}")
    return getattr(importlib.import_module(module), function)
