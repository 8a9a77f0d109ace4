"""Five schemes from one model: traced, frozen and converted once, beside five plain ``TFLiteConverter`` conversions.

CPU seconds count, of this process and of the job: wall time says more about the machine's other tenants.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks.models import Subject, digits_cnn, mobilenet_v2
from benchmarks.report import Row, run
from tests.evaluate import by_hand
from tfdeploy_magic import sources
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.schemes import SCHEMES, Variant
from tfdeploy_magic.jobs import Report, Worker, silent
from tfdeploy_magic.quantization.engine import Maker
from tfdeploy_magic.sources.samples import NamedData, gather

CALIBRATION_SAMPLES = 100
FIVE = [scheme.name for scheme in SCHEMES.values() if scheme.engine == "tflite"]
SMALL_TASK = "tests.jobs.tasks:echo"
"""The package has no task that does nothing; the one its tests use is the cheapest."""


def measure() -> Iterator[Row]:
    """Measure both models, and what the fork server costs that makes our side quick."""
    server = start_server()
    rows = [
        _compare(digits_cnn(CALIBRATION_SAMPLES), least_ratio=4, rounds=3),
        _compare(mobilenet_v2(CALIBRATION_SAMPLES), least_ratio=8, rounds=2),
    ]
    for times, difference in rows:
        yield times
        yield difference
    counted_in = "; ".join(
        f"{times.what.split(', ')[1]} {times.by_hand / (times.ours + server):.1f}x"
        for times, _ in rows
        if times.by_hand is not None
    )
    yield Row(
        "fork server's own start, once a kernel, CPU s",
        server,
        notes=(
            "it imports TensorFlow in the background, and is not in the five-scheme rows; with all of it charged to "
            f"one run of five schemes their ratios are: {counted_in}",
        ),
    )


def start_server() -> float:
    """Start the fork server, wait until it answers, and return the CPU seconds that it took."""
    with Worker() as worker:
        worker.call(SMALL_TASK, {})
        server = next(child for child in psutil.Process().children() if "jobs import server" in str(child.cmdline()))
        times = server.cpu_times()
        return float(times.user + times.system)


def convert_ours(subject: Subject, folder: Path) -> tuple[dict[str, LiteFile], float]:
    """Make the five files from one trace with the stages of ``%tflite_convert``; return them and the CPU seconds."""
    report = Report(silent)
    began = time.process_time()
    with Worker() as worker:
        traced = sources.open_source(subject.model, "model").model
        calibration = gather(
            NamedData("calibration", subject.calibration),
            traced.signature.inputs,
            folder / "calibration",
            role="calibration",
            limit=CALIBRATION_SAMPLES,
            seconds=60,
            report=report,
        )
        saved_model = traced.save(folder / "saved_model")
        maker = Maker(worker, saved_model, folder / "made", calibration=calibration)
        files = {scheme: maker.make(Variant(scheme)) for scheme in FIVE}
        return files, time.process_time() - began + worker.cpu_seconds


def convert_by_hand(subject: Subject) -> tuple[dict[str, bytes], float]:
    """Convert five times with the settings of TensorFlow's guides and return the files and the CPU seconds."""
    began = time.process_time()
    files = {scheme: _plain(subject, scheme) for scheme in FIVE}
    return files, time.process_time() - began


def _plain(subject: Subject, scheme: str) -> bytes:
    """Convert as TensorFlow's guides say: the very reference that the tests compare answers with."""
    # Keras and the converter print an account of each export.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return by_hand.plain_file(subject.model, scheme, "int8", subject.calibration)


def _compare(subject: Subject, *, least_ratio: float, rounds: int) -> tuple[Row, Row]:
    _plain(subject, "float32")  # the first conversion of a process imports what later ones find imported
    ours, by_hand, differences = [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="tfdeploy-benchmark-") as folder:
            files, seconds = convert_ours(subject, Path(folder))
            ours.append(seconds)
            plain_files, seconds = convert_by_hand(subject)
            by_hand.append(seconds)
            differences += [
                _difference(file.path.read_bytes(), plain_files[scheme], subject.test) for scheme, file in files.items()
            ]
    times = Row(
        f"five schemes, {subject.name}, CPU s",
        median(ours),
        median(by_hand),
        least_ratio=least_ratio,
        notes=(f"rounds: by hand {_spread(by_hand)}; ours {_spread(ours)}",),
    )
    words = f"five schemes, {subject.name}, largest difference of answers"
    return times, Row(words, float(np.max(differences)), most=0, digits=0, notes=(f"{len(subject.test)} samples each",))


def _difference(content: bytes, other: bytes, samples: npt.NDArray[np.float32]) -> float:
    return float(np.abs(_raw_answers(content, samples) - _raw_answers(other, samples)).max())


def _raw_answers(content: bytes, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Answer samples one by one, in the numbers that the file itself stores."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = source["quantization"]
    if scale:
        limits = np.iinfo(source["dtype"])
        samples = np.clip(np.round(samples / scale) + zero_point, limits.min, limits.max)
    answers = []
    for row in range(len(samples)):
        interpreter.set_tensor(source["index"], samples[row : row + 1].astype(source["dtype"]))
        interpreter.invoke()
        answers.append(interpreter.get_tensor(target["index"]).astype(np.float64))
    return np.concatenate(answers)


def _spread(seconds: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in seconds)


if __name__ == "__main__":
    run(measure)
