"""A ResNet50: what converting it costs beside the plain converter, what it leaves in the kernel, and an unchanged cell.

Each measurement has a process of its own, so that none finds what another one warmed.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.report import Row, run
from tests.notebook.kernels import ROOT, kernel

ROUNDS = 3
MEBIBYTE = 2**20

CELL_SETUP = """
%load_ext tfdeploy_magic
import keras, numpy as np
from benchmarks.models import digits_cnn, mobilenet_v2
small, large = digits_cnn(100), mobilenet_v2(100)
model, x_train, x_test = small.model, small.calibration, small.test
big, b_train, b_test = large.model, large.calibration, large.test
"""


def measure() -> Iterator[Row]:
    """Measure a SavedModel's conversion, the kernel's memory and a cached cell."""
    with tempfile.TemporaryDirectory(prefix="tfdeploy-benchmark-") as folder:
        yield from _saved_model(Path(folder))
    yield from _memory()
    yield from _cached_cell()


def _saved_model(folder: Path) -> Iterator[Row]:
    _in_a_process(f"export {folder}/resnet50")
    pairs = [
        (_in_a_process(f"plain {folder}/resnet50"), _in_a_process(f"ours {folder}/resnet50")) for _ in range(ROUNDS)
    ]
    by_hand, ours = ([round_["cpu"] for round_ in rounds] for rounds in zip(*pairs, strict=True))
    yield Row(
        "a SavedModel (ResNet50) to float32, CPU s",
        median(ours),
        median(by_hand),
        least_ratio=1 / 1.1,
        notes=(f"TensorFlow's import not counted; rounds: by hand {_spread(by_hand)}; ours {_spread(ours)}",),
    )


def _memory() -> Iterator[Row]:
    rounds = [_in_a_process("memory") for _ in range(ROUNDS)]
    weights = rounds[0]["weights"] / MEBIBYTE
    yield Row(
        "kernel memory after converting a ResNet50 in it, MiB more than before",
        median(found["after"] for found in rounds) / MEBIBYTE,
        most=50,
        digits=0,
    )
    yield Row(
        "its peak meanwhile, times the weights",
        median(found["peak"] for found in rounds) / MEBIBYTE / weights,
        most=2.5,
        notes=(f"resident memory above where it was before; the weights are {weights:.0f} MiB",),
    )


def _cached_cell() -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="tfdeploy-benchmark-") as cache, kernel(Path(cache)) as running:
        setup = running.run(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{CELL_SETUP}", timeout=300)
        assert setup.status == "ok", setup.error_text
        for name, line in (
            ("digits CNN", "model --int8 --calib x_train --test x_test"),
            ("MobileNetV2", "big --int8 --calib b_train --test b_test"),
        ):
            first = _timed(lambda line=line: running.run(f"%tflite_convert {line}", timeout=300))
            again = [_timed(lambda line=line: running.run(f"%tflite_convert {line}")) for _ in range(10)]
            yield Row(
                f"an unchanged cell again, {name}, wall s",
                median(again),
                first,
                most=0.15,
                digits=3,
                notes=(f"in a real kernel, its card drawn anew; by hand: the first time; rounds: {_spread(again)}",),
            )


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    shown = call()
    assert shown.status == "ok", shown.error_text
    return time.perf_counter() - began


def _in_a_process(words: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.large", *words.split()]
    with tempfile.TemporaryDirectory(prefix="tfdeploy-benchmark-") as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _resnet() -> Any:
    import keras
    import numpy as np

    model = keras.applications.ResNet50(weights=None)
    model(np.zeros((1, 224, 224, 3), "float32"))
    return model


def _export(folder: str) -> dict[str, float]:
    _resnet().export(folder, verbose=False)
    return {}


def _plain(folder: str) -> dict[str, float]:
    import tensorflow as tf

    began = time.process_time()
    with contextlib.redirect_stderr(io.StringIO()):
        tf.lite.TFLiteConverter.from_saved_model(folder).convert()
    return {"cpu": time.process_time() - began}


def _ours(folder: str) -> dict[str, float]:
    from benchmarks.conversion import start_server
    from tfdeploy_magic import tflite_convert

    start_server()
    return {"cpu": tflite_convert(folder).provenance.cpu_seconds}


def _memory_here() -> dict[str, float]:
    import keras

    from tfdeploy_magic import tflite_convert

    model = _resnet()
    tflite_convert(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))  # imports what is imported once
    gc.collect()
    process = psutil.Process()
    before = process.memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # Linux then counts the peak anew; watching it would take memory too
    tflite_convert(model)
    after, status = process.memory_info().rss, Path("/proc/self/status").read_text()
    peak = 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    weights = sum(variable.numpy().nbytes for variable in model.variables)
    return {"after": after - before, "peak": peak - before, "weights": weights}


def _spread(seconds: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in seconds)


if __name__ == "__main__":
    tasks: dict[str, Callable[..., dict[str, float]]] = {
        "export": _export,
        "plain": _plain,
        "ours": _ours,
        "memory": _memory_here,
    }
    if sys.argv[1:2] and sys.argv[1] in tasks:
        print(json.dumps(tasks[sys.argv[1]](*sys.argv[2:])))
    else:
        run(measure)
