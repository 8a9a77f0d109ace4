"""What a person waits for before anything happens: ``%load_ext``, and the start of a job."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from statistics import median

import numpy as np

from benchmarks.conversion import SMALL_TASK, start_server
from benchmarks.report import Row, run
from tfdeploy_magic.jobs import Worker

LOAD_ROUNDS = 5
JOB_ROUNDS = 20
LIMIT_SECONDS = 0.3
LOAD_EXT = """
import time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
began = time.perf_counter()
shell.run_line_magic("load_ext", "tfdeploy_magic")
seconds = time.perf_counter() - began
assert shell.find_line_magic("tflite_convert") is not None
print(seconds)
"""


def measure() -> Iterator[Row]:
    """Measure both."""
    loads = [_load_ext() for _ in range(LOAD_ROUNDS)]
    rounds = ", ".join(f"{seconds:.3f}" for seconds in loads)
    yield Row(
        "%load_ext tfdeploy_magic, s",
        median(loads),
        most=LIMIT_SECONDS,
        digits=3,
        notes=(f"median of {LOAD_ROUNDS} fresh interpreters: {rounds}",),
    )
    start_server()
    jobs = [_job() for _ in range(JOB_ROUNDS)]
    yield Row(
        "start of a job and its first answer, s",
        median(jobs),
        most=LIMIT_SECONDS,
        digits=3,
        notes=(f"median of {JOB_ROUNDS}, the fork server up; 95th percentile {np.percentile(jobs, 95):.3f}",),
    )


def _load_ext() -> float:
    with tempfile.TemporaryDirectory(prefix="tfdeploy-benchmark-") as folder:
        # A profile of its own: the person's startup files and history stay out of it.
        environment = {**os.environ, "IPYTHONDIR": folder}
        done = subprocess.run(
            [sys.executable, "-c", LOAD_EXT], env=environment, capture_output=True, text=True, check=True
        )
    return float(done.stdout.splitlines()[-1])


def _job() -> float:
    began = time.perf_counter()
    with Worker() as worker:
        worker.call(SMALL_TASK, {})
        return time.perf_counter() - began


if __name__ == "__main__":
    run(measure)
