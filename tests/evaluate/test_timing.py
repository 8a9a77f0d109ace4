"""Files of one model against each other, in a real job: what crashes or cannot be loaded costs the others nothing."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.conftest import Digits
from tests.evaluate import by_hand
from tests.evaluate.counter import counter_file
from tfdeploy_magic.artifacts.comparison import SweepPoint
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.samples import save_arrays
from tfdeploy_magic.convert.describe import describe
from tfdeploy_magic.errors import DataError, JobCrashed
from tfdeploy_magic.evaluate import timing
from tfdeploy_magic.jobs import Worker


def file_of(path: Path, content: bytes) -> LiteFile:
    path.write_bytes(content)
    return LiteFile.from_description(path, "float32", describe(path))


def unchecked(path: Path, content: bytes, like: LiteFile) -> LiteFile:
    """A file that nothing read before the interpreter does."""
    path.write_bytes(content)
    return replace(like, path=path, sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(deadline=120) as one:
        yield one


@pytest.fixture(scope="module")
def files(trained_cnn: Any, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LiteFile]:
    folder = tmp_path_factory.mktemp("files")
    return {
        scheme: file_of(folder / f"{scheme}.tflite", by_hand.plain_file(trained_cnn, scheme, rows=digits.x_train[:20]))
        for scheme in ("float32", "int8", "int16x8")
    }


@pytest.fixture(scope="module")
def inputs(files: dict[str, LiteFile], digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return save_arrays(tmp_path_factory.mktemp("inputs"), {files["float32"].inputs[0].name: digits.x_test[:40]})


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> tuple[LiteFile, LiteFile, Mapping[str, Path]]:
    """A model with a variable, a file of it whose initialization never ends, and its samples."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    folder = tmp_path_factory.mktemp("counter")
    good = file_of(folder / "good.tflite", counter_file())

    table = schema.ModelT.InitFromPackedBuf(bytearray(good.path.read_bytes()), 0)
    call_once = table.subgraphs[0].operators[0]
    table.subgraphs.append(copy.deepcopy(table.subgraphs[1]))
    for position, other in ((1, 2), (2, 1)):  # two initializations that begin with each other
        call = copy.deepcopy(call_once)
        call.builtinOptions.initSubgraphIndex = other
        table.subgraphs[position].operators.insert(0, call)
    builder = flatbuffers.Builder(1024)
    builder.Finish(table.Pack(builder), b"TFL3")
    crashing = unchecked(folder / "crashing.tflite", bytes(builder.Output()), good)
    return good, crashing, save_arrays(folder / "inputs", {"x": np.ones((3, 4), "float32")})


def test_every_file_of_a_model_is_timed(worker: Worker, files: dict[str, LiteFile], inputs: Mapping[str, Path]) -> None:
    found = timing.latencies(worker, list(files.values()), inputs, seconds=0.15)
    assert len(found) == 3
    for one in found:
        assert one is not None
        assert 0 < one.p50 <= one.p95
        assert one.runs >= 10
        assert one.noise is not None
        assert math.isfinite(one.noise)
        assert one.noise >= 0
        assert (one.threads, one.batch) == (1, 1)
    assert timing.latencies(worker, [], inputs) == ()


def test_threads_and_batch_are_those_asked_for(
    worker: Worker, files: dict[str, LiteFile], inputs: Mapping[str, Path]
) -> None:
    found = timing.latencies(worker, [files["int8"]], inputs, threads=2, batch=64, seconds=0.02)
    assert [(one.threads, one.batch) for one in found if one] == [(2, 64)], "forty samples, the last one repeated"


def test_a_file_that_cannot_be_loaded_has_no_latency_and_the_others_keep_their_places(
    worker: Worker, files: dict[str, LiteFile], inputs: Mapping[str, Path], trained_cnn: Any, tmp_path: Path
) -> None:
    import tensorflow as tf

    whole = files["float32"].path.read_bytes()
    broken = unchecked(tmp_path / "broken.tflite", whole[: len(whole) // 2], files["float32"])
    (name,) = inputs
    fixed = tf.function(lambda x: {"y": trained_cnn(x)}).get_concrete_function(
        tf.TensorSpec([4, 8, 8, 1], tf.float32, name=name)
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([fixed], trained_cnn)
    of_four = file_of(tmp_path / "of_four.tflite", bytes(converter.convert()))
    found = timing.latencies(worker, [of_four, broken, files["int8"]], inputs, seconds=0.03)
    assert [one and one.batch for one in found] == [4, None, 1], "a fixed batch size stays"
    points = timing.sweep(worker, {"of four": of_four, "int8": files["int8"]}, inputs, (1,), (4, 8), seconds=0.03)
    ran = [(point.label, point.batch, point.latency is not None) for point in points]
    assert ran == [("of four", 4, True), ("of four", 8, False), ("int8", 4, True), ("int8", 8, True)]


def test_a_file_that_changed_is_an_error_and_not_a_missing_latency(
    worker: Worker, files: dict[str, LiteFile], inputs: Mapping[str, Path]
) -> None:
    changed = replace(files["int8"], sha256="0" * 64)
    with pytest.raises(DataError, match="has changed since it was made"):
        timing.latencies(worker, [files["float32"], changed], inputs)


def test_a_crashing_file_costs_the_others_nothing(
    worker: Worker, counter: tuple[LiteFile, LiteFile, Mapping[str, Path]]
) -> None:
    good, crashing, inputs = counter
    with pytest.raises(JobCrashed):
        worker.call(
            "tfdeploy_magic.evaluate.session:latencies_task",
            {
                "files": [{"path": str(crashing.path), "sha256": crashing.sha256}],
                "inputs": {name: str(path) for name, path in inputs.items()},
                "seconds": 0.01,
            },
        )
    before, lost, after = timing.latencies(worker, [good, crashing, good], inputs, seconds=0.03)
    assert lost is None
    assert before is not None
    assert after is not None
    assert before.runs >= 10
    assert timing.latencies(worker, [crashing], inputs) == (None,)
    seen, unseen = timing.delegations(worker, [good, crashing], inputs)
    assert seen is not None
    assert unseen is not None, "it crashes when it runs, not when it is loaded"


@pytest.mark.parametrize(
    ("deadly", "answers", "asked"),
    [
        ("", ["A", "B", "C"], ["abc"]),
        ("b", ["A", None, "C"], ["abc", "a", "b", "c", "ac"]),
        ("bc", ["A", None, None], ["abc", "a", "b", "c"]),
        ("abc", [None, None, None], ["abc", "a", "b", "c"]),
    ],
)
def test_those_that_survive_alone_are_asked_together_again(
    deadly: str, answers: list[str | None], asked: list[str]
) -> None:
    seen: list[str] = []

    def ask(some: Sequence[Any]) -> list[Any]:
        seen.append("".join(some))
        if set(some) & set(deadly):
            raise JobCrashed("the job crashed", signal=11, stage="timing", last_lines=())
        return [one.upper() for one in some]

    assert timing._of_survivors(ask, list("abc")) == answers  # type: ignore[arg-type]
    assert seen == asked


def test_files_that_are_too_much_together_are_asked_one_by_one() -> None:
    def ask(some: Sequence[Any]) -> list[Any]:
        if len(some) > 1:
            raise JobCrashed("the job crashed", signal=9, stage="timing", last_lines=())
        return [one.upper() for one in some]

    assert timing._of_survivors(ask, list("abc")) == ["A", "B", "C"]  # type: ignore[arg-type]


def test_a_sweep_has_a_point_for_each_file_and_each_number_of_threads_and_samples(
    worker: Worker, files: dict[str, LiteFile], inputs: Mapping[str, Path]
) -> None:
    chosen = {"float": files["float32"], "integer": files["int8"]}
    points = timing.sweep(worker, chosen, inputs, threads=(1, 2), batches=(1, 8), seconds=0.02)
    assert all(isinstance(point, SweepPoint) for point in points)
    assert [(point.label, point.threads, point.batch) for point in points] == [
        (label, threads, batch) for label in ("float", "integer") for threads in (1, 2) for batch in (1, 8)
    ]
    for point in points:
        assert point.latency is not None
        assert (point.latency.threads, point.latency.batch) == (point.threads, point.batch)


@pytest.mark.parametrize(
    ("physical", "allowed", "expected"),
    [(8, 16, (1, 2, 8)), (8, 4, (1, 2, 4)), (2, 2, (1, 2)), (1, 2, (1,)), (None, 4, (1,)), (8, 1, (1,))],
)
def test_threads_worth_trying_are_one_two_and_all_cores_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch, physical: int | None, allowed: int, expected: tuple[int, ...]
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: None if logical else physical)
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: list(range(allowed)), raising=False)
    assert timing.worthwhile_threads() == expected
