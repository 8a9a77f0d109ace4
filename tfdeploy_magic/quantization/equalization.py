"""Cross-layer equalization: channels made alike where one layer makes them and the next takes them, answers unchanged.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.1,
https://arxiv.org/abs/1906.04721.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.quantization.litegraph import Graph, Op, parse

_MOST_PASSES = 100
"""Passes over all pairs: in a chain of layers each change asks for one in the layers beside it."""

_SETTLED = 0.01
"""A smaller change of every channel ends it: 8 passes for three convolutions, 19 for fourteen layers."""


class _Layout(NamedTuple):
    """Where a layer's operator has its data, and where its weights their channels.

    Args:
        data: Which of its inputs is the data; the weights are input 1.
        bias: Which is the bias.
        made: The weights' axis of output channels.
        taken: Their axis of input channels.
    """

    data: int
    bias: int
    made: int
    taken: int


_LAYERS = {
    "CONV_2D": _Layout(data=0, bias=2, made=0, taken=3),
    "DEPTHWISE_CONV_2D": _Layout(data=0, bias=2, made=3, taken=3),
    "FULLY_CONNECTED": _Layout(data=0, bias=2, made=0, taken=1),
    "TRANSPOSE_CONV": _Layout(data=2, bias=3, made=0, taken=3),
}
_WEIGHTS = 1

ELEMENTWISE = ("RELU", "LEAKY_RELU", "PRELU", "RESHAPE", "SQUEEZE", "EXPAND_DIMS")
"""What commutes with a positive factor for each channel: the channel of a value is its place modulo their number."""

CHANNELWISE = ("MAX_POOL_2D", "AVERAGE_POOL_2D", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "PAD", "MEAN")
"""What does too, as long as its last axis holds whole sets of channels, and it leaves that axis alone."""


class Pair(NamedTuple):
    """Two layers that were equalized.

    Args:
        producer: The name of the tensor that the first one makes.
        consumer: The name of the tensor that the second one makes.
        factor: By how much the channel that changed most was divided, or multiplied.
    """

    producer: str
    consumer: str
    factor: float


@dataclass(frozen=True)
class Equalized:
    """A model with equal channels.

    Args:
        model: The .tflite file.
        pairs: What was changed, in the model's order; pairs that were equal already are left out.
    """

    model: bytes
    pairs: tuple[Pair, ...]


def equalize(model: bytes) -> Equalized:
    """Equalize the ranges of the channels between each two layers of a float .tflite file.

    A channel is divided by s = sqrt(r1 r2) / r2 where it is made and multiplied by s where it is taken, r1 and r2 its
    largest weights there. Unlike the paper's, r1 counts the bias: a channel that batch norm has switched off, whose
    weights are nearly 0, would otherwise be blown up with its bias.

    Args:
        model: With batch norms folded, as TensorFlow's converter does. Layers with nothing between them but what
            commutes with a positive factor are equalized; others, and what is quantized, stay as they are.

    Returns:
        The file, of the same size and layout: only weights differ. Its answers are those of the model but for the
        rounding of float32, 1e-6 of the largest.

    Raises:
        ConversionError: It is over 2 GB.
    """
    content = bytearray(model)
    tree = parse(content)
    links = [link for index in range(len(tree.subgraphs)) for link in _links(Graph(tree, index))]
    for _ in range(_MOST_PASSES):
        changed = [link.equalize() for link in links]
        if not any(changed):
            break
    return Equalized(bytes(content), tuple(link.pair for link in links if link.pair.factor > 1 + _SETTLED))


@dataclass(frozen=True)
class _Slices:
    """Weights by channel; changing them changes the file.

    Args:
        values: ``[slices, ...]``, a view.
        channel: ``int[slices]``, the channel of each.
    """

    values: npt.NDArray[np.float32]
    channel: npt.NDArray[np.intp]

    def ranges(self, count: int) -> npt.NDArray[np.float64]:
        """Return the largest absolute weight of each channel, ``[count]``."""
        found = np.zeros(count)
        np.maximum.at(found, self.channel, np.abs(self.values).max(axis=tuple(range(1, self.values.ndim))))
        return found

    def multiply(self, factors: npt.NDArray[np.float64]) -> None:
        each = factors[self.channel].reshape(-1, *[1] * (self.values.ndim - 1)).astype("float32")
        np.multiply(self.values, each, out=self.values)


class _Link:
    """A pair of layers, and the factors that its channels have been divided by so far."""

    def __init__(self, names: tuple[str, str], count: int, made: list[_Slices], taken: _Slices) -> None:
        self._names = names
        self._made = made
        self._taken = taken
        self._total = np.ones(count)

    @property
    def pair(self) -> Pair:
        return Pair(*self._names, float(np.maximum(self._total, 1 / self._total).max()))

    def equalize(self) -> bool:
        """Equalize the two once, and say whether that changed anything."""
        count = len(self._total)
        made = np.max([slices.ranges(count) for slices in self._made], axis=0)
        taken = self._taken.ranges(count)
        # A channel that is all zeros on either side has no range to share.
        usable = (made > 0) & (taken > 0) & np.isfinite(made) & np.isfinite(taken)
        ratio = np.divide(made, taken, out=np.ones(count), where=usable)
        factors = np.sqrt(ratio)
        for slices in self._made:
            slices.multiply(1 / factors)
        self._taken.multiply(factors)
        self._total *= factors
        return bool((abs(factors - 1) > _SETTLED).any())


def _links(graph: Graph) -> Iterator[_Link]:
    for producer in graph.ops:
        made = _made_by(graph, producer)
        if made is None:
            continue
        count = len(made[0].channel)
        consumer = _next_layer(graph, producer, count)
        taken = _taken_by(graph, consumer, count) if consumer is not None else None
        if consumer is not None and taken is not None:
            yield _Link((graph.name(producer.outputs[0]), graph.name(consumer.outputs[0])), count, made, taken)


def _made_by(graph: Graph, op: Op) -> list[_Slices] | None:
    """Return a layer's weights and bias by output channel; None where they cannot be changed."""
    layout = _LAYERS.get(op.name)
    weights = _own_float(graph, op, _WEIGHTS) if layout is not None else None
    if layout is None or weights is None or not _is_linear(op):
        return None
    by_channel = np.moveaxis(weights, layout.made, 0)
    made = [_Slices(by_channel, np.arange(len(by_channel)))]
    if len(op.inputs) <= layout.bias or op.inputs[layout.bias] < 0:
        return made
    bias = _own_float(graph, op, layout.bias)
    if bias is not None:
        return [*made, _Slices(bias, np.arange(len(bias)))]
    # Biases of zeros are one constant of several layers, and stay zeros.
    shared = graph.constant(op.inputs[layout.bias])
    return made if shared is not None and not shared.any() else None


def _taken_by(graph: Graph, op: Op, count: int) -> _Slices | None:
    """Return a layer's weights by input channel, of ``count``; None where they cannot be changed."""
    weights = _own_float(graph, op, _WEIGHTS)
    if weights is None:
        return None
    layout = _LAYERS[op.name]
    by_channel = np.moveaxis(weights, layout.taken, 0)
    positions = np.arange(len(by_channel))
    if op.name == "DEPTHWISE_CONV_2D":
        positions //= len(by_channel) // graph.shape(op.inputs[layout.data])[-1]
    elif op.name != "FULLY_CONNECTED" and len(by_channel) != graph.shape(op.inputs[layout.data])[-1]:
        return None  # a convolution in groups, each with channels of its own
    # A dense layer may take more than the last axis: it flattens what it is given.
    return _Slices(by_channel, positions % count) if len(by_channel) % count == 0 else None


def _own_float(graph: Graph, op: Op, position: int) -> npt.NDArray[Any] | None:
    tensor = op.inputs[position]
    values = graph.constant(tensor)
    return values if values is not None and graph.is_float(tensor) and not graph.is_shared(tensor) else None


def _next_layer(graph: Graph, producer: Op, count: int) -> Op | None:
    """Return the layer that alone takes what another makes, with nothing between that a factor could not pass."""
    tensor = producer.outputs[0]
    while tensor not in graph.outputs:
        # Asking for the shape, as Flatten does, is no use of the values.
        takers = [op for op in graph.takers[tensor] if op.name != "SHAPE"]
        if len(takers) != 1:
            return None
        taker = takers[0]
        if taker.name in _LAYERS:
            return taker if taker.inputs[_LAYERS[taker.name].data] == tensor else None
        if taker.inputs[0] != tensor or not _commutes(graph, taker, count):
            return None
        tensor = taker.outputs[0]
    return None


def _commutes(graph: Graph, op: Op, count: int) -> bool:
    if op.name in ELEMENTWISE:
        return True
    shape = graph.shape(op.inputs[0])
    if op.name not in CHANNELWISE or not shape or shape[-1] % count or not _is_linear(op):
        return False
    if op.name == "PAD":
        padding = graph.constant(op.inputs[1])
        return padding is not None and not padding[-1].any()
    if op.name == "MEAN":
        axes = graph.constant(op.inputs[1])
        return axes is not None and len(shape) - 1 not in axes % len(shape)
    return True


def _is_linear(op: Op) -> bool:
    """Whether the activation fused into an operator, if any, is ReLU."""
    from ai_edge_litert.schema_py_generated import ActivationFunctionType as Activation

    fused = getattr(op.options, "fusedActivationFunction", Activation.NONE)
    return int(fused) in (Activation.NONE, Activation.RELU)
