"""A version directory that holds ``model.tflite``: answered by LiteRT's interpreters, under the signatures it has."""

from __future__ import annotations

import queue
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.serving import status
from tfdeploy_magic.serving.calls import Call
from tfdeploy_magic.serving.protos import meta_graph_pb2

PREDICT = "tensorflow/serving/predict"

_LISTED = b"signature_defs_metadata"
"""The metadata of a flatbuffer that lists SignatureDefs of TensorFlow (tensorflow/lite/tools/signature)."""


class LiteEngine:
    """A .tflite file and the interpreters that answer for it.

    Args:
        path: The file.
        interpreters: How many calls are answered at once.
    """

    changes = False

    def __init__(self, path: Path, interpreters: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        content = path.read_bytes()

        def load() -> _Doors:
            try:
                interpreter = Interpreter(model_content=content, num_threads=1)
                return _Doors(interpreter, _listed_signatures(content))
            except (RuntimeError, ValueError, struct.error) as error:
                raise status.invalid(f"Could not load {path}: {str(error).strip().splitlines()[0]}") from error

        doors = [load() for _ in range(max(1, interpreters))]
        self.signatures = doors[0].definitions
        self._free: queue.SimpleQueue[_Doors] = queue.SimpleQueue()
        for door in doors:
            self._free.put(door)

    def run(self, call: Call, *, here: bool = False) -> Arrays:
        """Answer a call in this thread; the interpreter has no threads of its own."""
        with self._borrowed() as doors:
            try:
                return doors.ask(call)
            except (RuntimeError, ValueError) as error:
                raise status.invalid(f"{call.signature}: {str(error).strip().splitlines()[0]}") from error

    def close(self) -> None:
        """Let the interpreters go."""
        self._free = queue.SimpleQueue()

    @contextmanager
    def _borrowed(self) -> Iterator[_Doors]:
        doors = self._free.get()
        try:
            yield doors
        finally:
            self._free.put(doors)


class _Doors:
    """One interpreter, by signatures: the file's own, those its metadata lists, or one made of its tensors' names."""

    def __init__(self, interpreter: Any, listed: dict[str, Any]) -> None:
        self._interpreter = interpreter
        self._runners = {key: interpreter.get_signature_runner(key) for key in interpreter.get_signature_list()}
        self._shapes: tuple[Any, ...] = ()
        if self._runners:
            self.definitions = {
                key: _definition(runner.get_input_details(), runner.get_output_details())
                for key, runner in self._runners.items()
            }
            return
        inputs, outputs = _by_tensor(interpreter.get_input_details()), _by_tensor(interpreter.get_output_details())
        self._indices = {name: details["index"] for name, details in (inputs | outputs).items()}
        self.definitions = listed or {"serving_default": _definition(inputs, outputs)}

    def ask(self, call: Call) -> Arrays:
        """Answer a call."""
        if self._runners:
            answers = self._runners[call.signature](**call.inputs)
            return {name: np.asarray(answers[name]) for name in call.outputs}
        definition = self.definitions[call.signature]
        given = {self._indices[_plain(definition.inputs[name])]: array for name, array in call.inputs.items()}
        shapes = tuple((index, array.shape) for index, array in given.items())
        if shapes != self._shapes:
            self._shapes = ()
            for index, shape in shapes:
                self._interpreter.resize_tensor_input(index, shape)
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for index, array in given.items():
            self._interpreter.set_tensor(index, array)
        self._interpreter.invoke()
        return {
            name: self._interpreter.get_tensor(self._indices[_plain(definition.outputs[name])]) for name in call.outputs
        }


def _listed_signatures(content: bytes) -> dict[str, Any]:
    """Return the signatures that a file's metadata lists: a map from key to serialized SignatureDef."""
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import flexbuffers

    model = schema.Model.GetRootAs(content, 0)
    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        if entry.Name() == _LISTED:
            data = model.Buffers(entry.Buffer()).DataAsNumpy()
            rows = flexbuffers.GetRoot(bytearray(data.tobytes())).Value
            return {key: meta_graph_pb2.SignatureDef.FromString(bytes(value)) for key, value in rows.items()}
    return {}


def _by_tensor(details: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["name"].partition(":")[0]: row for row in details}


def _plain(info: Any) -> str:
    return str(info.name).partition(":")[0]


def _definition(inputs: dict[str, Any], outputs: dict[str, Any]) -> Any:
    found = meta_graph_pb2.SignatureDef(method_name=PREDICT)
    for infos, rows in ((found.inputs, inputs), (found.outputs, outputs)):
        for name, details in rows.items():
            _describe(infos[name], details)
    return found


def _describe(info: Any, details: dict[str, Any]) -> None:
    import tensorflow as tf

    info.name = details["name"]
    info.dtype = tf.dtypes.as_dtype(tf.string if details["dtype"] is np.bytes_ else details["dtype"]).as_datatype_enum
    for size in details["shape_signature"]:
        info.tensor_shape.dim.add(size=int(size))
