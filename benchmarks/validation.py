"""Does the int8 file answer as its source does, on 1,797 digits: batches in a job, beside the usual loop.

Both sides ask the source model and the file about every digit and compare the top classes. Wall time counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.conversion import CALIBRATION_SAMPLES, SMALL_TASK, convert_ours
from benchmarks.models import digits, digits_cnn
from benchmarks.report import Row, run
from tfdeploy_magic import sources
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.evaluate import measure as evaluation
from tfdeploy_magic.evaluate.parity import compare
from tfdeploy_magic.jobs import Report, Worker, silent
from tfdeploy_magic.sources.samples import NamedData, gather
from tfdeploy_magic.sources.traced import TracedModel

ROUNDS = 3
"""Of ours, before the loop and again after it: the machine may have become slower or faster in between."""
PATIENCE_SECONDS = 180.0
"""The loop is stopped after this long; its time for all samples is then an extrapolation, and said to be one."""


def measure() -> Iterator[Row]:
    """Measure both sides on the same file."""
    subject = digits_cnn(CALIBRATION_SAMPLES)
    samples, _ = digits()
    with tempfile.TemporaryDirectory(prefix="tfdeploy-benchmark-") as folder:
        files, _ = convert_ours(subject, Path(folder))
        traced = sources.open_source(subject.model, "model").model
        ours = [_ours(traced, files["int8"], samples) for _ in range(ROUNDS)]
        plain_same, seconds, predicting = _by_hand(subject.model, files["int8"], samples)
        ours += [_ours(traced, files["int8"], samples) for _ in range(ROUNDS)]
    spent = [seconds for _, seconds in ours]
    done, scale = len(plain_same), len(samples) / len(plain_same)
    looped = f"the loop took {seconds:.1f} s for {done} samples, {predicting:.1f} s of it in model.predict"
    if scale > 1:
        looped += f"; it was stopped there and its times are SCALED by {len(samples)}/{done}"
    rounds = "ours, rounds: " + ", ".join(f"{value:.2f}" for value in spent)
    what = f"validation of {len(samples)} digits, int8, wall s"
    yield Row(what, median(spent), seconds * scale, least_ratio=8, notes=(looped, rounds))
    at_once = (seconds - predicting) * scale + _predict_at_once(subject.model, samples)
    yield Row("the same, the loop with one model.predict of all, wall s", median(spent), at_once)
    unlike = max(int(np.sum(same[:done] != plain_same)) for same, _ in ours)
    agreement = f"the file agrees with its source on {ours[0][0].mean():.2%} of all {len(samples)}"
    yield Row("validation, digits judged differently", unlike, most=0, digits=0, notes=(agreement,))


def _ours(traced: TracedModel, file: LiteFile, samples: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.bool_], float]:
    """Return for each sample whether the classes agree, and the seconds; the worker is up but has opened no file."""
    report = Report(silent)
    with tempfile.TemporaryDirectory(prefix="tfdeploy-benchmark-") as scratch, Worker() as worker:
        worker.call(SMALL_TASK, {})
        folder = Path(scratch)
        began = time.perf_counter()
        drained = gather(
            NamedData("digits", samples),
            traced.signature.inputs,
            folder / "test",
            role="test",
            limit=None,
            seconds=60,
            report=report,
        )
        expected = traced.predict(drained, report)
        answers = evaluation.ask(worker, file, drained.files, folder / "answers")
        compare(expected, answers)
        seconds = time.perf_counter() - began
        (wanted,), (got,) = expected.values(), answers.values()
        return np.argmax(wanted, axis=1) == np.argmax(got, axis=1), seconds


def _by_hand(
    model: Any, file: LiteFile, samples: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.bool_], float, float]:
    """Return for each sample it came to whether the classes agree, the seconds, and those in ``model.predict``."""
    from ai_edge_litert.interpreter import Interpreter

    model.predict(samples[:1], verbose=0)  # the first call traces
    same: list[bool] = []
    predicting = 0.0
    began = time.perf_counter()
    interpreter = Interpreter(model_path=str(file.path))
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = source["quantization"]
    while len(same) < len(samples) and time.perf_counter() - began < PATIENCE_SECONDS:
        asked = time.perf_counter()
        sample = samples[len(same) : len(same) + 1]
        expected = model.predict(sample, verbose=0)
        predicting += time.perf_counter() - asked
        # Nothing is clipped: the digits that calibrated the file reach 0 and 1, the ends of the range.
        interpreter.set_tensor(source["index"], np.round(sample / scale + zero_point).astype(np.int8))
        interpreter.invoke()
        same.append(bool(np.argmax(expected) == np.argmax(interpreter.get_tensor(target["index"]))))
    return np.array(same), time.perf_counter() - began, predicting


def _predict_at_once(model: Any, samples: npt.NDArray[np.float32]) -> float:
    """Return the seconds of what a more careful hand would write for the source model's half."""
    began = time.perf_counter()
    model.predict(samples, verbose=0)
    return time.perf_counter() - began


if __name__ == "__main__":
    run(measure)
