"""Running a .tflite file in LiteRT's interpreter, in a job: batched where it can be, real numbers in and out."""

from __future__ import annotations

import functools
import hashlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tfdeploy_magic.artifacts.evidence import Latency
from tfdeploy_magic.artifacts.samples import open_arrays, save_arrays
from tfdeploy_magic.artifacts.signature import Arrays, TensorSpec
from tfdeploy_magic.errors import DataError
from tfdeploy_magic.evaluate.latency import first_rows, summarize, timed_runs
from tfdeploy_magic.jobs import Report

BATCH_SIZE = 64


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
        # Tensors are found by their signature names: the order of get_input_details() is not the signature's.
        # The runner must be gone before anything is resized, so it is asked once, on an interpreter of its own.
        runner = load().get_signature_runner()
        self._inputs = {name: (d["index"], _spec(name, d)) for name, d in runner.get_input_details().items()}
        self._outputs = {name: (d["index"], _spec(name, d)) for name, d in runner.get_output_details().items()}
        del runner
        self._interpreter = load()
        self._batch = 0
        self._resizable = all(spec.shape and spec.shape[0] is None for _, spec in self._inputs.values())

    def load(self) -> None:
        """Make ready for one sample, as the first prediction would.

        Raises:
            RuntimeError: The interpreter refuses the file.
        """
        self._prepare(1)

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
        done = 0
        while done < count:
            batch = self._prepare(min(BATCH_SIZE, count - done))
            rows = {name: array[done : done + batch] for name, array in inputs.items()}
            short = batch - len(next(iter(rows.values())))
            if short:  # a batch size fixed in the graph
                rows = {name: first_rows(array, batch) for name, array in rows.items()}
            for name, output in self._invoke(rows).items():
                chunks[name].append(output[: batch - short] if output.ndim and len(output) == batch else output)
            done += batch
            report.fraction(min(done, count) / count)
        return {name: np.concatenate(parts) for name, parts in chunks.items()}

    def latency(self, inputs: Arrays, report: Report) -> Latency:
        """Time single samples, quantization of inputs and outputs not counted."""
        batch = self._prepare(1)
        self._set_inputs({name: first_rows(array, batch) for name, array in inputs.items()})

        def once() -> float:
            began = time.perf_counter()
            self._interpreter.invoke()
            return time.perf_counter() - began

        return summarize(timed_runs(once, report), threads=self.threads, batch=batch)

    def _prepare(self, wanted: int) -> int:
        """Get ready for ``wanted`` samples at a time and return how many it will be."""
        if self._resizable and wanted != self._batch:
            if self._try_resize(wanted):
                self._batch = wanted
            else:  # some graphs reshape to a constant: one sample at a time always works
                self._interpreter = self._load()
                self._resizable = False
                self._batch = 0
        if not self._batch:
            self._interpreter.allocate_tensors()
            spec = next(iter(self._inputs.values()))[1]
            self._batch = (spec.shape[0] or 1) if spec.shape else 1
        return self._batch

    def _try_resize(self, batch: int) -> bool:
        try:
            for details in self._interpreter.get_input_details():
                self._interpreter.resize_tensor_input(details["index"], [batch, *details["shape"][1:]])
            self._interpreter.allocate_tensors()
            self._interpreter.invoke()
        except RuntimeError:
            return False
        shapes = [self._interpreter.get_tensor(index).shape for index, _ in self._outputs.values()]
        return all(shape and shape[0] == batch for shape in shapes)

    def _set_inputs(self, rows: Arrays) -> None:
        for name, (index, spec) in self._inputs.items():
            self._interpreter.set_tensor(index, spec.quantize(np.ascontiguousarray(rows[name])))

    def _invoke(self, rows: Arrays) -> Arrays:
        self._set_inputs(rows)
        self._interpreter.invoke()
        return {
            name: spec.dequantize(self._interpreter.get_tensor(index)) for name, (index, spec) in self._outputs.items()
        }


def _spec(name: str, details: dict[str, Any]) -> TensorSpec:
    parameters = details["quantization_parameters"]
    scales, zero_points = parameters["scales"], parameters["zero_points"]
    shape = tuple(None if size < 0 else int(size) for size in details["shape_signature"])
    dtype = np.dtype(details["dtype"]).name
    if len(scales) and np.issubdtype(details["dtype"], np.integer):
        return TensorSpec(name, shape, dtype, float(scales[0]), int(zero_points[0]))
    return TensorSpec(name, shape, dtype)


def _open(path: str, sha256: str) -> LiteSession:
    """Load a file once for the many calls a warm worker answers, and only if it is the file that was made."""
    now = Path(path).stat()
    return _open_as_of(path, sha256, (now.st_ino, now.st_size, now.st_mtime_ns))


@functools.lru_cache(maxsize=2)
def _open_as_of(path: str, sha256: str, stamp: tuple[int, ...]) -> LiteSession:
    """Load a file; a changed ``stamp`` makes a warm worker look again.

    More than half of all corrupted files load and run without a word, so the digest and not the loader decides.
    """
    found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path} has changed since it was made",
            found=f"SHA-256 {found[:12]}…",
            wanted=f"{sha256[:12]}…",
            cure="Convert the model again.",
        )
    return LiteSession(Path(path))


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
