"""A version directory that holds ``model.tflite``: answered by LiteRT's interpreters, under the signatures it has."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tfdeploy_magic.artifacts.signature import DEFAULT_SIGNATURE, Arrays
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
        interpreters: How many calls are answered at once; one where the file has variables, which no two share.

    Raises:
        Refusal: It is no such file, or LiteRT cannot run it.
    """

    def __init__(self, path: Path, interpreters: int) -> None:
        from ai_edge_litert import schema_py_generated as schema

        content = path.read_bytes()
        self._free: queue.SimpleQueue[_Interpreter] = queue.SimpleQueue()
        try:
            model = schema.Model.GetRootAs(content, 0)
            self.changes = _has_operator(model, schema.BuiltinOperator.ASSIGN_VARIABLE)
            self.loops = _has_operator(model, schema.BuiltinOperator.WHILE)
            listed, recurrent = _listed_signatures(model), _has_state(model)
            for _ in range(1 if self.changes else max(1, interpreters)):
                loaded = _Interpreter(content, listed, recurrent)
                self.signatures = loaded.signatures
                self._free.put(loaded)
        except Exception as error:  # bytes that are no flatbuffer fail in any way
            raise _refusal(f"Could not load {path}", error) from error

    @property
    def idle(self) -> bool:
        """Whether an interpreter waits for a call."""
        return not self._free.empty()

    def run(self, call: Call, *, here: bool = False) -> Arrays:
        """Answer a call in this thread; the interpreter has no threads of its own."""
        with self._borrowed() as interpreter:
            try:
                return interpreter.ask(call)
            except Exception as error:
                raise _refusal(call.signature, error) from error

    def close(self) -> None:
        """Let the interpreters go."""
        while not self._free.empty():
            self._free.get()

    @contextmanager
    def _borrowed(self) -> Iterator[_Interpreter]:
        interpreter = self._free.get()
        try:
            yield interpreter
        finally:
            self._free.put(interpreter)


class _Interpreter:
    """One interpreter, by signatures: the file's own, those its metadata lists, or one made of its tensors' names."""

    def __init__(self, content: bytes, listed: dict[str, Any], recurrent: bool) -> None:
        self._content, self._recurrent = content, recurrent
        self._load()
        if self._runners:
            self.signatures = {
                key: _definition(runner.get_input_details(), runner.get_output_details())
                for key, runner in self._runners.items()
            }
            return
        inputs, outputs = (
            {row["name"]: row for row in details}
            for details in (self._interpreter.get_input_details(), self._interpreter.get_output_details())
        )
        by_name = {name: details["index"] for name, details in (inputs | outputs).items()}
        self._indices = {name.partition(":")[0]: index for name, index in by_name.items()} | by_name
        self.signatures = listed or {DEFAULT_SIGNATURE: _definition(inputs, outputs)}

    def ask(self, call: Call) -> Arrays:
        """Answer a call."""
        for name, array in call.inputs.items():
            _check_shape(name, array.shape, self.signatures[call.signature].inputs[name].tensor_shape)
        try:
            answers = self._by_signature(call) if self._runners else self._by_tensor(call)
        except RuntimeError:  # it may have lost its memory, and would say this again before whatever comes next
            self._load()
            raise
        if self._recurrent:
            self._forget()
        return answers

    def _forget(self) -> None:
        """Reset recurrent layers: an LSTM would go on from here, unlike the SavedModel that it was made of."""
        try:
            self._interpreter.reset_all_variables()
        except RuntimeError:  # a state that no signature uses has no memory
            self._load()

    def _load(self) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_content=self._content, num_threads=1)
        self._shapes: dict[int, tuple[int, ...]] = {}
        if self._recurrent:
            self._interpreter.allocate_tensors()
        self._runners = {
            key: self._interpreter.get_signature_runner(key) for key in self._interpreter.get_signature_list()
        }
        if self._recurrent:  # states can be reset only when those of all signatures have their memory
            for runner in self._runners.values():
                runner._interpreter_wrapper.AllocateTensors(runner._subgraph_index)

    def _by_signature(self, call: Call) -> Arrays:
        answers = self._runners[call.signature](**call.inputs)
        return {name: np.asarray(answers[name]) for name in call.outputs}

    def _by_tensor(self, call: Call) -> Arrays:
        signature = self.signatures[call.signature]
        self._feed({self._index(signature.inputs[name]): array for name, array in call.inputs.items()})
        self._interpreter.invoke()
        places = {name: self._index(signature.outputs[name]) for name in call.outputs}
        return {name: self._interpreter.get_tensor(place) for name, place in places.items()}

    def _index(self, info: Any) -> int:
        """Return the tensor that a signature means; TensorFlow calls "x:0" what a file may call "x"."""
        name = info.name if info.name in self._indices else info.name.partition(":")[0]
        return int(self._indices[name])

    def _feed(self, given: dict[int, Any]) -> None:
        shapes = {index: array.shape for index, array in given.items()}
        if shapes != self._shapes:
            self._shapes = {}
            for index, shape in shapes.items():
                self._interpreter.resize_tensor_input(index, shape)
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for index, array in given.items():
            self._interpreter.set_tensor(index, array)


def _check_shape(name: str, found: tuple[int, ...], wanted: Any) -> None:
    """Refuse what would resize dimensions that are fixed: LiteRT does, and then answers or not, as it happens.

    Raises:
        ValueError: The shape is another.
    """
    sizes = [dim.size for dim in wanted.dim]
    if sizes and (
        len(found) != len(sizes) or any(size not in (-1, had) for size, had in zip(sizes, found, strict=True))
    ):
        raise ValueError(f"input {name} has shape {list(found)}, and the file takes {sizes}")


def _refusal(what: str, error: Exception) -> status.Refusal:
    said = str(error).strip() or type(error).__name__
    return status.invalid(f"{what}: {said.splitlines()[0]}")


def _has_operator(model: Any, operator: int) -> bool:
    return any(model.OperatorCodes(at).BuiltinCode() == operator for at in range(model.OperatorCodesLength()))


def _has_state(model: Any) -> bool:
    """Whether recurrent layers keep their state in the interpreter."""
    graphs = (model.Subgraphs(at) for at in range(model.SubgraphsLength()))
    return any(graph.Tensors(at).IsVariable() for graph in graphs for at in range(graph.TensorsLength()))


def _listed_signatures(model: Any) -> dict[str, Any]:
    """Return the signatures that a file's metadata lists: a map from key to serialized SignatureDef."""
    from flatbuffers import flexbuffers

    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        if entry.Name() == _LISTED:
            data = model.Buffers(entry.Buffer()).DataAsNumpy()
            rows = flexbuffers.GetRoot(bytearray(data.tobytes())).AsMap
            # TensorFlow writes them as strings, which need be no UTF-8.
            return {
                key.AsKey: meta_graph_pb2.SignatureDef.FromString(
                    bytes(value.AsBlob if value.IsBlob else value.AsStringBytes)
                )
                for key, value in zip(rows.Keys, rows.Values, strict=True)
            }
    return {}


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
