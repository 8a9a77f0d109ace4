"""``%quantize``: all schemes with their evidence beside one plain conversion, and the search on a net that int8 ruins.

Wall seconds count, since a person waits for them; the fork server is up, as it is in a kernel that holds a model.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np

from benchmarks.conversion import start_server
from benchmarks.models import TRAINING_SAMPLES, digits, digits_cnn
from benchmarks.report import Row, run
from tests.evaluate import by_hand
from tests.quantization import unequal

ROUNDS = 5
CALIBRATION_SAMPLES = 100


def measure() -> Iterator[Row]:
    """Measure both on a store that is empty at first and unused afterwards."""
    before = os.environ.get("XDG_CACHE_HOME")
    with tempfile.TemporaryDirectory(prefix="tfdeploy-benchmark-") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            start_server()
            yield from _schemes()
            yield from _search()
        finally:
            if before is None:
                del os.environ["XDG_CACHE_HOME"]
            else:
                os.environ["XDG_CACHE_HOME"] = before


def _schemes() -> Iterator[Row]:
    """Compare with int8 alone as TensorFlow's guide makes it, and with both accuracies as one measures them."""
    model = digits_cnn(CALIBRATION_SAMPLES).model
    x, y = digits()
    data = (x[:CALIBRATION_SAMPLES], x[TRAINING_SAMPLES:], y[TRAINING_SAMPLES:])
    _by_hand(model, *data)  # the first conversion of a process imports what later ones find
    plain, five, every = [], [], []
    for _ in range(ROUNDS):
        plain.append(_by_hand(model, *data))
        five.append(_ours(model, *data, engine="tflite"))
        every.append(_ours(model, *data, engine=None))
    one = median(plain)
    guide = (
        f"by hand is one int8 file, its accuracy on {len(data[1])} digits one by one and the model's by model.predict"
    )
    for what, ours, limit in (
        ("five tflite schemes with evidence", five, 1.5),
        ("twelve schemes of both engines with evidence", every, 3.0),
    ):
        yield Row(
            f"{what}, digits CNN, in plain int8 conversions, wall",
            median(ours) / one,
            most=limit,
            notes=(f"{guide}: {_spread(plain)} s; ours, with parity, intervals and times: {_spread(ours)} s",),
        )


def _by_hand(model: Any, calibration: Any, test: Any, labels: Any) -> float:
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        content = by_hand.plain_file(model, "int8", "int8", calibration)
    (name,) = by_hand.interpreter(content).get_signature_runner().get_input_details()
    (answers,) = by_hand.answers(content, {name: test}).values()
    expected = model.predict(test, verbose=0)
    assert np.mean(answers.argmax(1) == labels) > np.mean(expected.argmax(1) == labels) - 0.05
    return time.perf_counter() - began


def _ours(model: Any, calibration: Any, test: Any, labels: Any, *, engine: str | None) -> float:
    from tfdeploy_magic import quantize

    began = time.perf_counter()
    compared = quantize(model, engine=engine, calib=calibration, test=(test, labels), no_cache=True)
    seconds = time.perf_counter() - began
    assert not compared.table.failures, compared.table.failures
    assert all(row.evidence.ok for row in compared.rows)
    return seconds


def _search() -> Iterator[Row]:
    """Search on the reference case, whose int8 file answers at random."""
    from tfdeploy_magic import quantize

    x, _, test, labels = unequal.data()
    ruined = unequal.unbalance(unequal.reference_model(), unequal.PRODUCER, unequal.CONSUMER)
    began = time.perf_counter()
    found = quantize(
        ruined, schemes=("int8",), max_drop="2%", calib=x[:CALIBRATION_SAMPLES], test=(test, labels), no_cache=True
    )
    seconds = time.perf_counter() - began
    plain = found["int8"]
    source = _share(plain.evidence.baseline_accuracy)
    told = "; ".join(f"{row.label}: {_share(row.evidence.accuracy)}, {row.size:,} bytes" for row in found.rows)
    yield Row(
        "search with --int8 --max-drop 2% on unequal channels, wall s",
        seconds,
        most=60,
        notes=(f"the source model has {source}; {told}; best: {found.best.label}",),
    )
    float_size = plain.provenance.source_size
    cures = {row.label: row for row in found.rows if row.label != "int8"}
    for label, row in cures.items():
        lost = (plain.evidence.baseline_accuracy or 0.0) - (row.evidence.accuracy or 0.0)
        yield Row(f"{label}: points lost", 100 * lost, most=2)
        if row.label == "int8, equalized":
            yield Row(f"{label}: size over plain int8", row.size / plain.size, most=1.05)
        else:
            yield Row(f"{label}: size over the float model", row.size / float_size, most=0.5)


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1%}"


def _spread(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


if __name__ == "__main__":
    run(measure)
