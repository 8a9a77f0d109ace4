"""Running a .tflite file in LiteRT's interpreter, in a job: batched where it can be, real numbers in and out."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.evidence import Latency
from tfdeploy_magic.artifacts.samples import open_arrays, rows_at_a_time, save_arrays
from tfdeploy_magic.artifacts.signature import Arrays, Signature, TensorSpec
from tfdeploy_magic.errors import DataError
from tfdeploy_magic.evaluate.latency import first_rows, in_turn, summarize, summarize_rounds, timed_runs
from tfdeploy_magic.jobs import Report

BATCH_SIZE = 64
"""Samples at a time, at the most."""


class LiteSession:
    """One file, loaded.

    Args:
        path: The .tflite file.
        threads: CPU threads of the interpreter.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        from ai_edge_litert.interpreter import Interpreter

        def load() -> Any:
            return Interpreter(model_path=str(path), num_threads=threads)

        self._load = load
        self.threads = threads
        self._name, inputs, outputs = _doors(load())
        self._inputs = {name: (details["index"], _spec(name, details)) for name, details in inputs.items()}
        self._outputs = {name: (details["index"], _spec(name, details)) for name, details in outputs.items()}
        self._interpreter = load()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._resizable = all(spec.shape and spec.shape[0] is None for _, spec in self._inputs.values())

    @property
    def signature(self) -> Signature:
        """What the file takes and gives, as its first signature says; by tensor names where it has none."""
        specs = [tuple(spec for _, spec in doors.values()) for doors in (self._inputs, self._outputs)]
        return Signature(self._name, *specs)

    def load(self) -> dict[str, tuple[int, ...]]:
        """Ask for one sample, as the first prediction would; not where a size beside the batch is open.

        Returns:
            Output name -> the shape of its answer; empty where it was not asked.

        Raises:
            RuntimeError: The interpreter refuses the file.
        """
        if any(None in spec.shape[1:] for _, spec in self._specs()):
            return {}
        self._prepare(1, {name: tuple(size or 1 for size in spec.shape[1:]) for name, spec in self._specs()})
        self._ask_blank()
        return {name: self._interpreter.get_tensor(index).shape for name, (index, _) in self._outputs.items()}

    def predict(self, inputs: Arrays, report: Report) -> Arrays:
        """Answer every sample.

        Args:
            inputs: Input name -> ``[count, ...]``, real numbers; they are quantized by the file's own scale.
            report: Told of the progress.

        Returns:
            Output name -> ``[count, ...]``, real numbers.
        """
        count = len(next(iter(inputs.values())))
        chunks: dict[str, list[Any]] = {name: [] for name in self._outputs}
        most = rows_at_a_time(inputs.values(), BATCH_SIZE)
        done = 0
        while done < count:
            batch = self._prepare(min(most, count - done), _rows_of(inputs))
            rows = {name: array[done : done + batch] for name, array in inputs.items()}
            short = batch - len(next(iter(rows.values())))
            if short:  # a batch size fixed in the graph
                rows = {name: first_rows(array, batch) for name, array in rows.items()}
            for name, output in self._invoke(rows).items():
                chunks[name].append(as_rows(output, batch, name)[: batch - short])
            done += batch
            report.fraction(min(done, count) / count)
        return {name: np.concatenate(parts) for name, parts in chunks.items()}

    def latency(self, inputs: Arrays, report: Report) -> Latency:
        """Time single samples, quantization of inputs and outputs not counted."""
        once, batch = self.stopwatch(inputs)
        return summarize(timed_runs(once, report), threads=self.threads, batch=batch)

    def stopwatch(self, inputs: Arrays, wanted: int = 1) -> tuple[Callable[[], float], int]:
        """Get ready to be timed, quantization of inputs and outputs not counted.

        Args:
            inputs: Input name -> ``[count, ...]``, real numbers; the last sample is repeated where there are too few.
            wanted: Samples at a time.

        Returns:
            What runs the samples once and says how many seconds that took, and how many samples they are: another
            number than was wanted where the graph takes no other.

        Raises:
            RuntimeError: The interpreter refuses the file.
        """
        batch = self._prepare(wanted, _rows_of(inputs))
        self._set_inputs({name: first_rows(array, batch) for name, array in inputs.items()})

        def once() -> float:
            began = time.perf_counter()
            self._interpreter.invoke()
            return time.perf_counter() - began

        return once, batch

    def nodes(self) -> list[dict[str, Any]]:
        """Return what the interpreter runs of the main graph, as it was last prepared.

        Returns:
            One row an operator: "op_name", "inputs" and "outputs" (indices of tensors, -1 for an input that it does
            without), "operand_types" and "result_types" (numpy's). After the operators come rows called DELEGATE, each
            in place of some of them.
        """
        rows: list[dict[str, Any]] = self._interpreter._get_ops_details()
        return rows

    @property
    def input_indices(self) -> frozenset[int]:
        """The tensors that a caller sets."""
        return frozenset(int(index) for index, _ in self._inputs.values())

    def _specs(self) -> list[tuple[str, TensorSpec]]:
        return [(name, spec) for name, (_, spec) in self._inputs.items()]

    def _prepare(self, wanted: int, rows: dict[str, tuple[int, ...]]) -> int:
        """Get ready for ``wanted`` samples at a time, each of these shapes, and return how many it will be."""
        fixed = next((spec.shape[0] for _, spec in self._specs() if spec.shape and spec.shape[0]), 1)
        batch = wanted if self._resizable else fixed
        if not self._try_shapes(batch, rows):  # some graphs reshape to a constant: one sample at a time always works
            self._interpreter = self._load()
            self._shapes = {}
            self._resizable = False
            batch = fixed
            if not self._try_shapes(batch, rows):
                self._interpreter.allocate_tensors()
        return batch

    def _try_shapes(self, batch: int, rows: dict[str, tuple[int, ...]]) -> bool:
        """Resize the inputs; False when the graph does not bear it."""
        # A tensor of unknown rank looks like a scalar here; only the samples tell them apart.
        shapes = {name: (batch, *rows[name]) if spec.shape or rows[name] else () for name, spec in self._specs()}
        if shapes == self._shapes:
            return True
        try:
            for name, shape in shapes.items():
                index, spec = self._inputs[name]
                if None in spec.shape or (shape and not spec.shape):
                    self._interpreter.resize_tensor_input(index, list(shape))
            self._interpreter.allocate_tensors()
            if batch > 1 and self._resizable:
                self._ask_blank()
                answers = [self._interpreter.get_tensor(index).shape for index, _ in self._outputs.values()]
                if not all(shape and shape[0] == batch for shape in answers):
                    return False
        except RuntimeError:
            if batch == 1:
                raise
            return False
        self._shapes = shapes
        return True

    def _ask_blank(self) -> None:
        """Ask for zeros and empty texts: what was never set is whatever lay in memory, and texts of that crash."""
        shapes = {details["index"]: details["shape"] for details in self._interpreter.get_input_details()}
        self._set_inputs(
            {
                name: np.zeros(shapes[index], "S1" if spec.is_text else "float32")
                for name, (index, spec) in self._inputs.items()
            }
        )
        self._interpreter.invoke()

    def _set_inputs(self, rows: Arrays) -> None:
        for name, (index, spec) in self._inputs.items():
            values = np.asarray(rows[name], order="C")  # a scalar stays one
            self._interpreter.set_tensor(index, values.astype(object) if spec.is_text else spec.quantize(values))

    def _invoke(self, rows: Arrays) -> Arrays:
        self._set_inputs(rows)
        self._interpreter.invoke()
        return {
            name: _plain(spec.dequantize(self._interpreter.get_tensor(index)))
            for name, (index, spec) in self._outputs.items()
        }


def has_rows(answer: npt.NDArray[Any], batch: int) -> bool:
    """Whether an answer is one row a sample."""
    return answer.ndim > 0 and len(answer) == batch


def as_rows(answer: npt.NDArray[Any], batch: int, name: str) -> npt.NDArray[Any]:
    """Return an answer as one row a sample; what a single sample is answered with is its row, whatever its shape.

    Raises:
        DataError: Several samples were asked about at once, and the answer cannot be told apart.
    """
    if has_rows(answer, batch):
        return answer
    if batch == 1:
        return answer[np.newaxis]
    raise DataError(
        f"output {name} cannot be compared",
        found=f"an answer of shape {list(answer.shape)} to {batch} samples at once",
        wanted="a row for each sample",
        cure="Let the model answer with a batch dimension, or take that output away.",
    )


def _doors(interpreter: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return a file's signature: its name, and the details of each input and output by name.

    Tensors are found by their signature names: the order of get_input_details() is not the signature's. A runner
    must be gone before anything is resized, so this takes an interpreter of its own.
    """
    names = list(interpreter.get_signature_list())
    if names:
        runner = interpreter.get_signature_runner(names[0])
        return names[0], runner.get_input_details(), runner.get_output_details()
    inputs = {details["name"].partition(":")[0]: details for details in interpreter.get_input_details()}
    outputs = {details["name"].partition(":")[0]: details for details in interpreter.get_output_details()}
    return "serving_default", inputs, outputs


def _spec(name: str, details: dict[str, Any]) -> TensorSpec:
    parameters = details["quantization_parameters"]
    scales, zero_points = parameters["scales"], parameters["zero_points"]
    shape = tuple(None if size < 0 else int(size) for size in details["shape_signature"])
    tensor = str(details["name"])
    if details["dtype"] is np.bytes_:
        return TensorSpec(name, shape, "string", tensor=tensor)
    dtype = np.dtype(details["dtype"]).name
    if len(scales) and np.issubdtype(details["dtype"], np.integer):
        return TensorSpec(name, shape, dtype, float(scales[0]), int(zero_points[0]), tensor)
    return TensorSpec(name, shape, dtype, tensor=tensor)


def _rows_of(inputs: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in inputs.items()}


def _plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return strings as fixed-width bytes, which a ``.npy`` file holds without pickling."""
    return array.astype(np.bytes_) if array.dtype == object else array


def _open(path: str, sha256: str) -> LiteSession:
    """Load a file once for the many calls a warm worker answers, and only if it is the file that was made."""
    now = Path(path).stat()
    return _open_as_of(path, sha256, (now.st_ino, now.st_size, now.st_mtime_ns))


@functools.lru_cache(maxsize=2)
def _open_as_of(path: str, sha256: str, stamp: tuple[int, ...]) -> LiteSession:
    """Load a file; a changed ``stamp`` makes a warm worker look again.

    More than half of all corrupted files load and run without a word, so the digest and not the loader decides.
    """
    check_unchanged(path, sha256)
    return LiteSession(Path(path))


def check_unchanged(path: str, sha256: str) -> None:
    """Refuse a file that is no longer the one that was made.

    Raises:
        DataError: It has changed.
    """
    found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path} has changed since it was made",
            found=f"SHA-256 {found[:12]}…",
            wanted=f"{sha256[:12]}…",
            cure="Convert the model again.",
        )


def predict_task(report: Report, path: str, sha256: str, inputs: dict[str, str], folder: str) -> dict[str, str]:
    """Answer samples; a job's entry.

    Args:
        report: Told of the progress.
        path: The .tflite file.
        sha256: Its digest.
        inputs: Input name -> ``.npy`` file.
        folder: Where the outputs go.

    Returns:
        Output name -> ``.npy`` file.
    """
    report.stage("validating")
    session = _open(path, sha256)
    outputs = session.predict(open_arrays({name: Path(file) for name, file in inputs.items()}), report)
    return {name: str(file) for name, file in save_arrays(Path(folder), outputs).items()}


def latency_task(report: Report, path: str, sha256: str, inputs: dict[str, str]) -> dict[str, Any]:
    """Time single samples; a job's entry.

    Returns:
        The fields of a :class:`Latency`.
    """
    report.stage("timing")
    session = _open(path, sha256)
    arrays = open_arrays({name: Path(file) for name, file in inputs.items()})
    return asdict(session.latency(arrays, report))


def latencies_task(
    report: Report,
    files: list[dict[str, str]],
    inputs: dict[str, str],
    seconds: float,
    threads: int = 1,
    batch: int = 1,
) -> list[dict[str, Any] | None]:
    """Time several files of one model in turn; a job's entry.

    Args:
        report: Told of the progress.
        files: The "path" and "sha256" of each.
        inputs: Input name -> ``.npy`` file.
        seconds: For all of them together, loading not counted.
        threads: CPU threads of each interpreter.
        batch: Samples at a time.

    Returns:
        For each file the fields of a :class:`Latency`, None where it cannot be loaded or run so.
    """
    report.stage("loading the files")
    arrays = open_arrays({name: Path(file) for name, file in inputs.items()})
    ready = [_stopwatch(file, arrays, threads, batch) for file in report.counting(files, len(files))]
    report.stage("timing")
    runs = iter(in_turn([timer for timer, _ in filter(None, ready)], report, seconds))
    return [
        asdict(summarize_rounds(next(runs), threads=threads, batch=one[1])) if one is not None else None
        for one in ready
    ]


def _stopwatch(
    file: dict[str, str], inputs: Arrays, threads: int, batch: int
) -> tuple[Callable[[], float], int] | None:
    """Load a file and run it once; None where it cannot."""
    check_unchanged(file["path"], file["sha256"])
    try:
        once, taken = LiteSession(Path(file["path"]), threads).stopwatch(inputs, batch)
        once()
    except (RuntimeError, ValueError):  # the interpreter raises either
        return None
    return once, taken
