"""A model traced in the kernel: freeze it to a SavedModel, and ask it for the answers the others are judged by."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.evidence import Finding, Latency
from tfdeploy_magic.artifacts.models import SavedModelDir
from tfdeploy_magic.artifacts.samples import SampleSet
from tfdeploy_magic.artifacts.signature import Arrays, Signature
from tfdeploy_magic.evaluate.latency import first_rows, summarize, timed_runs
from tfdeploy_magic.jobs import Report

BATCH_SIZE = 128
"""Samples the source model answers at a time."""


@dataclass(frozen=True)
class TracedModel:
    """A model of any kind, ready to be frozen.

    Args:
        name: How the person calls it.
        description: "Sequential, 36,042 parameters".
        signature: Its inputs in the model's own argument order, and its outputs.
        function: The traced ``tf.ConcreteFunction``; flat positional inputs, flat list of outputs.
        call: The model itself, not its trace: flat input arrays in, flat output arrays out.
        findings: What was noticed about the model before anything was converted.
    """

    name: str
    description: str
    signature: Signature
    function: Any
    call: Callable[[list[npt.NDArray[Any]]], list[npt.NDArray[Any]]]
    findings: tuple[Finding, ...] = ()

    def save(self, folder: Path) -> SavedModelDir:
        """Freeze the weights into the graph and write it as a SavedModel that TensorFlow can load.

        One ``saved_model.pb`` holds everything: it is what a job converts, and its bytes are "size before".

        Args:
            folder: Made when missing.
        """
        from tensorflow.core.protobuf import saved_model_pb2
        from tensorflow.python.framework import convert_to_constants

        # TFLiteConverter freezes with the same call; control flow stays functional, as its MLIR passes want it.
        frozen, graph_def = convert_to_constants.convert_variables_to_constants_v2_as_graph(
            self.function, lower_control_flow=False
        )
        named = Signature(
            self.signature.name,
            tuple(replace(s, tensor=t.name) for s, t in zip(self.signature.inputs, frozen.inputs, strict=True)),
            tuple(replace(s, tensor=t.name) for s, t in zip(self.signature.outputs, frozen.outputs, strict=True)),
        )
        proto = saved_model_pb2.SavedModel(saved_model_schema_version=1)
        meta = proto.meta_graphs.add()
        meta.meta_info_def.tags.append("serve")
        meta.graph_def.CopyFrom(graph_def)
        _write_signature(meta.signature_def[named.name], named)
        folder.mkdir(parents=True, exist_ok=True)
        content = proto.SerializeToString()
        (folder / "saved_model.pb").write_bytes(content)
        return SavedModelDir(folder, named, len(content))

    def weights_sha256(self) -> str:
        """Return a digest of the weights as they are now: training changes it."""
        digest = hashlib.sha256()
        for variable in self.function.graph.variables:
            digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
        return digest.hexdigest()

    def predict(self, samples: SampleSet, report: Report) -> Arrays:
        """Answer every sample with the model itself.

        Returns:
            Output name -> array of shape ``[count, ...]``.
        """
        arrays = samples.open()
        inputs = [arrays[spec.name] for spec in self.signature.inputs]
        fixed = self.signature.inputs[0].shape[0]
        batch = fixed or BATCH_SIZE

        def batches() -> Iterator[list[npt.NDArray[Any]]]:
            for start in range(0, samples.count, batch):
                part = [np.ascontiguousarray(array[start : start + batch]) for array in inputs]
                short = batch - len(part[0]) if fixed else 0  # a batch size fixed in the graph: fill up, then cut
                answers = self.call([first_rows(array, batch) for array in part] if short else part)
                yield [answer[: batch - short] for answer in answers]

        total = -(-samples.count // batch)
        columns = zip(*report.counting(batches(), total), strict=True)
        return {spec.name: np.concatenate(column) for spec, column in zip(self.signature.outputs, columns, strict=True)}

    def latency(self, samples: SampleSet, report: Report) -> Latency:
        """Time the traced function on one sample in this process, TensorFlow choosing its own threads."""
        import tensorflow as tf

        arrays = samples.open()
        batch = self.signature.inputs[0].shape[0] or 1
        inputs = [tf.constant(first_rows(arrays[spec.name], batch)) for spec in self.signature.inputs]

        def once() -> float:
            began = time.perf_counter()
            for output in self.function(*inputs):
                output.numpy()
            return time.perf_counter() - began

        return summarize(timed_runs(once, report), threads=0, batch=batch)


def _write_signature(proto: Any, signature: Signature) -> None:
    import tensorflow as tf

    proto.method_name = "tensorflow/serving/predict"
    for infos, specs in ((proto.inputs, signature.inputs), (proto.outputs, signature.outputs)):
        for spec in specs:
            infos[spec.name].name = spec.tensor
            infos[spec.name].dtype = tf.as_dtype(spec.dtype).as_datatype_enum
            infos[spec.name].tensor_shape.CopyFrom(tf.TensorShape(spec.shape).as_proto())
