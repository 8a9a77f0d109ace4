"""A model traced in this process: save it for a job, and ask it for the answers the others are judged by."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.evidence import Finding, Latency
from tfdeploy_magic.artifacts.models import SavedModelDir
from tfdeploy_magic.artifacts.samples import SampleSet, rows_at_a_time
from tfdeploy_magic.artifacts.signature import Arrays, Signature
from tfdeploy_magic.errors import ModelNotReady, UserCodeError
from tfdeploy_magic.evaluate.latency import first_rows, summarize, timed_runs
from tfdeploy_magic.evaluate.session import as_rows, has_rows
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.sources import graphs, weights
from tfdeploy_magic.sources.native import without_chatter

BATCH_SIZE = 128
"""Samples the source model answers at a time, at the most."""

FREEZE_LIMIT = 32_000_000
"""Bytes of weights up to which freezing is cheap: it holds ten copies of them at once (measured, ResNet50)."""

PROTOBUF_LIMIT = 1_900_000_000
"""A frozen graph is one protocol buffer, which ends at 2 GiB."""


@dataclass(frozen=True)
class TracedModel:
    """A model of any kind, ready to be saved for conversion.

    Args:
        name: How the person calls it.
        description: "Sequential, 36,042 parameters".
        signature: Its inputs in the model's own argument order, and its outputs.
        function: The traced ``tf.ConcreteFunction``; flat positional inputs, flat list of outputs.
        call: The model itself, not its trace: flat input arrays in, flat output arrays out.
        findings: What was noticed about the model before anything was converted.
        layers: Name scope of a layer in the graph -> how a person knows it, "dense_1 (Dense)".
        precision: The policy it computes in; the trace computes in float32 all the same.
        unrollable: Whether its loops could be traced step by step.
        trackables: What owns its tables and other resources.
    """

    name: str
    description: str
    signature: Signature
    function: Any
    call: Callable[[list[npt.NDArray[Any]]], list[npt.NDArray[Any]]]
    findings: tuple[Finding, ...] = ()
    layers: Mapping[str, str] = field(default_factory=dict)
    precision: str = "float32"
    unrollable: bool = False
    trackables: tuple[Any, ...] = ()

    @property
    def graph_def(self) -> Any:
        """The traced graph, its weights left out."""
        return self.function.graph.as_graph_def()

    @property
    def doors(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The graph's input and output tensors; beside them it holds captured weights, and whatever tracing left."""
        inputs = self.function.inputs[: len(self.signature.inputs)]
        return tuple(tensor.name for tensor in inputs), tuple(tensor.name for tensor in self.function.outputs)

    def save(self, folder: Path, *, single_sample: bool = False) -> SavedModelDir:
        """Write a SavedModel that a job converts and that TensorFlow can load.

        A small model is frozen: one ``saved_model.pb`` holds everything. Freezing takes ten times the weights'
        memory and drops tables and state, so a large model, or one with such things, keeps its variables beside it.

        Args:
            folder: Made when missing.
            single_sample: Fix the batch size at 1, as a loop over lists of unknown size needs it.

        Raises:
            ModelNotReady: It has such a loop and is too large to be frozen, closes over tensors that are too large
                for any graph, or uses a table that nobody owns.
        """
        size = self._constants() + sum(map(graphs.nbytes, self.function.graph.variables))
        if single_sample and size > PROTOBUF_LIMIT:
            raise ModelNotReady(
                f"{self.name} is too large to be frozen with its loop",
                found=f"{size / 1e9:.1f} GB of weights",
                wanted="less than 1.9 GB",
                cure="Build its recurrent layers with unroll=True, or the model with a fixed batch size.",
            )
        if not single_sample and (size > FREEZE_LIMIT or graphs.has_resources(self.function)):
            return SavedModelDir(folder, self.signature, save_together([self], folder), frozen=False)
        return graphs.save_frozen(self.function, self.signature, folder, single_sample=single_sample)

    def _constants(self) -> int:
        """Return the bytes of the tensors it closes over, and refuse those that no graph can hold."""
        constants = sum(map(graphs.nbytes, graphs.constants(self.function)))
        if constants > PROTOBUF_LIMIT:
            raise ModelNotReady(
                f"{self.name} closes over tensors that are too large for a graph",
                found=f"{constants / 1e9:.1f} GB of constants",
                wanted="less than 1.9 GB",
                cure="Make each large one a tf.Variable of the model: tf.Variable(value, trainable=False).",
            )
        return constants

    def route(self, saved: SavedModelDir) -> tuple[str, ...]:
        """Say how ``saved`` came from it."""
        return ("traced and frozen in the kernel" if saved.frozen else "traced and saved in the kernel",)

    def sha256(self) -> str:
        """Return a digest of the graph and of the weights as they are now: training or another call() changes it."""
        running = weights.digest([*self.function.graph.variables, *graphs.constants(self.function)])
        running.update(graphs.canonical(self.graph_def))
        running.update(graphs.tables(self.function))
        running.update(repr(self.signature).encode())
        return running.hexdigest()

    def predict(self, samples: SampleSet, report: Report) -> Arrays:
        """Answer every sample with the model itself.

        Returns:
            Output name -> array of shape ``[count, ...]``.

        Raises:
            UserCodeError: The model raised.
        """
        with self._left_as_it_was():
            return in_batches(self._asked, self.signature, samples, report)

    def latency(self, samples: SampleSet, report: Report) -> Latency:
        """Time the traced function on one sample in this process, TensorFlow choosing its own threads."""
        import tensorflow as tf

        arrays = samples.open()
        batch = self.signature.fixed_batch or 1
        inputs = [tf.constant(first_rows(arrays[spec.name], batch)) for spec in self.signature.inputs]

        def once() -> float:
            began = time.perf_counter()
            for output in self.function(*inputs):
                output.numpy()
            return time.perf_counter() - began

        with self._left_as_it_was():
            return summarize(timed_runs(once, report), threads=0, batch=batch)

    def _asked(self, flat: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        try:
            return self.call(flat)
        except Exception as error:
            raise UserCodeError(
                f"{self.name} raised while it was asked",
                found=f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}".rstrip(
                    "."
                ),
                wanted="an answer to every sample",
                cure="Are all samples what it takes? Its own traceback follows.",
            ) from error

    @contextlib.contextmanager
    def _left_as_it_was(self) -> Iterator[None]:
        """Put back what the model changes of itself when it is called."""
        changed = self.function.graph.variables if graphs.changes_variables(self.graph_def) else ()
        before = [variable.numpy() for variable in changed]
        try:
            yield
        finally:
            for variable, value in zip(changed, before, strict=True):
                variable.assign(value)


def save_together(models: Sequence[TracedModel], folder: Path) -> int:
    """Write models as the signatures of one SavedModel, their variables, tables and assets beside it.

    Returns:
        Its bytes.

    Raises:
        ModelNotReady: One closes over tensors that are too large for any graph, or uses a table that nobody owns.
    """
    for model in models:
        model._constants()
    functions = [(model.function, model.signature) for model in models]
    owners = {id(owner): owner for model in models for owner in model.trackables}
    try:
        with without_chatter():
            return graphs.save_signatures(functions, list(owners.values()), folder)
    except AssertionError as error:
        if "untracked" not in str(error):
            raise
        raise ModelNotReady(
            f"{models[0].name} uses a table or another resource that nobody owns",
            found="a function that refers to it from outside",
            wanted="a tf.Module that holds both",
            cure="Make it an attribute of a tf.Module, the function its @tf.function method, and name that.",
        ) from error


def in_batches(
    ask: Callable[[list[npt.NDArray[Any]]], list[npt.NDArray[Any]]],
    signature: Signature,
    samples: SampleSet,
    report: Report,
) -> Arrays:
    """Answer every sample, many at a time where the model allows that.

    Args:
        ask: Flat input arrays in, flat output arrays out.
        signature: What they are called.
        samples: An array for each input, by its name.
        report: Told of the progress.

    Returns:
        Output name -> array of shape ``[count, ...]``.
    """
    arrays = samples.open()
    inputs = [arrays[spec.name] for spec in signature.inputs]
    fixed = signature.fixed_batch
    names = [spec.name for spec in signature.outputs]

    def batches(batch: int) -> Iterator[list[npt.NDArray[Any]]]:
        for start in range(0, samples.count, batch):
            part = [np.ascontiguousarray(array[start : start + batch]) for array in inputs]
            count = len(part[0])
            if fixed:  # a batch size fixed in the graph: fill up, then cut
                part = [first_rows(array, batch) for array in part]
            answers = ask(part)
            if start == 0 and batch > 1 and not fixed and not all(has_rows(answer, count) for answer in answers):
                yield from batches(1)
                return
            rows = zip(answers, names, strict=True)
            yield [as_rows(answer, len(part[0]), name)[:count] for answer, name in rows]
            report.fraction((start + count) / samples.count)

    columns = list(zip(*batches(fixed or rows_at_a_time(inputs, BATCH_SIZE)), strict=True))
    return {spec.name: np.concatenate(column) for spec, column in zip(signature.outputs, columns, strict=True)}
