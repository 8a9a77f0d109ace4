"""A .tflite file as a graph: its operators, who makes and takes each tensor, and which layer each is from."""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.convert.preflight import locate
from tfdeploy_magic.errors import ConversionError

LARGEST = 2**31 - 1
"""Bytes a flatbuffer can address; larger files keep their weights behind it."""

_WEIGHTED = re.compile("conv|depthwise|matmul|tensordot|einsum", re.IGNORECASE)
"""In the name of a node that has weights."""


@dataclass(frozen=True)
class Op:
    """An operator.

    Args:
        name: What it is, "CONV_2D".
        inputs: The indices of the tensors it takes; -1 for one that is left out.
        outputs: Of those it makes.
        options: Its options, of the flatbuffer's object API; None where it has none.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any


class Graph:
    """One subgraph of a .tflite file.

    Args:
        tree: The file, as :func:`parse` reads it.
        index: Which of its subgraphs.
    """

    def __init__(self, tree: Any, index: int = 0) -> None:
        subgraph = tree.subgraphs[index]
        self._buffers = tree.buffers
        self._uses = Counter(int(tensor.buffer) for each in tree.subgraphs for tensor in each.tensors)
        self.tensors = list(subgraph.tensors)
        self.inputs = _indices(subgraph.inputs)
        self.outputs = _indices(subgraph.outputs)
        self.ops = [
            Op(_op_name(tree, op), _indices(op.inputs), _indices(op.outputs), op.builtinOptions)
            for op in (subgraph.operators if subgraph.operators is not None else ())
        ]
        self.makers = {tensor: op for op in self.ops for tensor in op.outputs}
        self.takers: defaultdict[int, list[Op]] = defaultdict(list)
        for op in self.ops:
            for tensor in dict.fromkeys(op.inputs):
                self.takers[tensor].append(op)

    def name(self, tensor: int) -> str:
        """Return a tensor's name in the file."""
        name: bytes | None = self.tensors[tensor].name
        return (name or b"").decode()

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Return a tensor's shape as the file has it, 1 where a size is open."""
        return _indices(self.tensors[tensor].shape)

    def is_float(self, tensor: int) -> bool:
        """Whether a tensor holds float32."""
        return int(self.tensors[tensor].type) == 0  # TensorType.FLOAT32

    def constant(self, tensor: int) -> npt.NDArray[Any] | None:
        """Return a view of the values of a constant of float32 or int32; None of anything else.

        It is a view of what was parsed: a bytearray can be changed through it.
        """
        if tensor < 0 or tensor in self.makers or tensor in self.inputs:
            return None
        dtype = {0: "<f4", 2: "<i4"}.get(int(self.tensors[tensor].type))
        data = self._buffers[self.tensors[tensor].buffer].data
        if dtype is None or data is None or not len(data) or self.tensors[tensor].sparsity is not None:
            return None
        return np.asarray(data).view(dtype).reshape(self.shape(tensor))

    def is_shared(self, constant: int) -> bool:
        """Whether anything but one operator has a constant: another operator, subgraph or tensor of the same values."""
        alone = self._uses[int(self.tensors[constant].buffer)] == 1 and len(self.takers[constant]) == 1
        return not alone or constant in self.outputs


def parse(model: bytes | bytearray) -> Any:
    """Read a .tflite file with the flatbuffer's object API; buffers are views of ``model``.

    Raises:
        ConversionError: It is over 2 GB.
    """
    from ai_edge_litert import schema_py_generated as schema

    if len(model) > LARGEST:
        raise _too_large(len(model))
    tree = schema.ModelT.InitFromPackedBuf(model, 0)
    if any(buffer.offset > 1 for buffer in tree.buffers):  # 0 and 1 stand for none
        raise _too_large(len(model))
    return tree


def layers_of(model: Any, layers: Mapping[str, str]) -> dict[str, str]:
    """Find the layer of each tensor of a .tflite file.

    The converter names an operator after all that was fused into it, "model/re_lu/Relu;model/conv2d/convolution": its
    layer is the one with the weights, "conv2d". It names the model's outputs anew, "Identity": their layer is that of
    the operator's weights or, where it has none, of what it takes.

    Args:
        model: The file, float or quantized, or what :func:`parse` made of it.
        layers: Name scope of a layer -> how a person knows it.

    Returns:
        Tensor name -> its layer; the name itself where it is in none.
    """
    tree = parse(model) if isinstance(model, bytes | bytearray) else model
    graphs = [Graph(tree, index) for index in range(len(tree.subgraphs))]
    names = [graph.name(tensor) for graph in graphs for tensor in range(len(graph.tensors))]
    places = locate(dict.fromkeys(part for name in names for part in name.split(";")), layers)
    found: dict[str, str] = {}
    for graph in graphs:
        for name, layer in _layers_of_graph(graph, {part: layer for part, layer in places.items() if layer != part}):
            found.setdefault(name, layer)
    return {name: found.get(name, name) for name in names}


def _layers_of_graph(graph: Graph, places: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    made: dict[int, str] = {}
    for op in graph.ops:  # they stand in an order in which they can run
        weights = [tensor for tensor in op.inputs if tensor >= 0 and tensor not in graph.makers]
        # A constant that several take, a bias of zeros say, is named after one of them only.
        own = [tensor for tensor in weights if len(graph.takers[tensor]) == 1]
        names = [*map(graph.name, own), *map(graph.name, op.outputs)]
        layer = _first_place(names, places)
        if layer is None and not any("/" in graph.name(tensor) for tensor in op.outputs):
            layer = next((made[tensor] for tensor in op.inputs if tensor in made), None)
        if layer is not None:
            made.update(dict.fromkeys(op.outputs, layer))
    for tensor in range(len(graph.tensors)):
        layer = made.get(tensor) or _first_place([graph.name(tensor)], places)
        if layer is not None:
            yield graph.name(tensor), layer


def _first_place(names: Iterable[str], places: Mapping[str, str]) -> str | None:
    parts = [part for name in names for part in name.split(";") if part in places]
    # Activations, batch norms and padding are fused into these; constants of other layers that are equal join the name.
    main = (part for part in parts if _WEIGHTED.search(part.rpartition("/")[2]))
    return next((places[part] for part in (*main, *parts)), None)


def _indices(vector: Sequence[Any] | npt.NDArray[Any] | None) -> tuple[int, ...]:
    return () if vector is None else tuple(map(int, vector))


def _op_name(tree: Any, op: Any) -> str:
    code = tree.operatorCodes[op.opcodeIndex]
    # Files of old writers have the code in an 8-bit field of its own.
    return _op_names().get(max(int(code.builtinCode), int(code.deprecatedBuiltinCode)), "CUSTOM")


@functools.cache
def _op_names() -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    return {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}


def _too_large(size: int) -> ConversionError:
    return ConversionError(
        "the model is too large to be changed",
        found=f"a .tflite file of {size / 1e9:.1f} GB, with weights outside its flatbuffer",
        wanted="a file below 2 GB",
        cure="Quantize it as it is.",
    )
