"""What the tests run inside a job."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from tfdeploy_magic.errors import DataError
from tfdeploy_magic.jobs import Report


def echo(report: Report, **arguments: Any) -> dict[str, Any]:
    return {"pid": os.getpid(), "modules": "tensorflow" in sys.modules, **arguments}


def tensorflow_adds(report: Report, numbers: list[float]) -> float:
    import tensorflow as tf

    return float(tf.reduce_sum(tf.constant(numbers)))


def die(report: Report, number: int) -> None:
    report.stage("dying")
    print("my last words", file=sys.stderr)
    os.kill(os.getpid(), signal.Signals(number))
    time.sleep(60)


def hang(report: Report) -> None:
    report.stage("hanging")
    time.sleep(600)


def eat_memory(report: Report, megabytes: int) -> int:
    report.stage("eating")
    eaten = [bytearray(1_000_000) for _ in range(megabytes)]
    time.sleep(60)
    return len(eaten)


def refuse(report: Report) -> None:
    raise DataError("it does not fit", found="a square", wanted="a circle", cure="Round it.")


def fail(report: Report) -> None:
    report.stage("failing")
    raise ZeroDivisionError("division by zero")


def count(report: Report, to: int) -> int:
    report.stage("counting")
    return sum(1 for _ in report.counting((time.sleep(0.12) for _ in range(to)), to))


def chatter(report: Report, seconds: float) -> None:
    """Never silent for as long as the kernel waits before it looks at the deadline."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        report.stage("talking")
        time.sleep(0.02)


def leave(report: Report) -> None:
    sys.exit("I am leaving")


def say(report: Report, text: str) -> None:
    print(text)
    print(text.upper(), file=sys.stderr)


def unspeakable(report: Report) -> object:
    return {1, 2}


def environment(report: Report) -> dict[str, Any]:
    return {"devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "main": vars(sys.modules["__main__"]).get("__file__")}
