"""Where a float model's channels are too unequal for int8, and what to keep float because of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.debugging import ChannelSpread
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.evaluate.latency import first_rows
from tfdeploy_magic.quantization.equalization import CHANNELWISE, ELEMENTWISE
from tfdeploy_magic.quantization.litegraph import Graph, layers_of, parse

SAMPLES = 20
"""Samples that ranges are taken from."""

UNEQUAL = 32.0
"""A larger spread makes a region.

Measured: a dozen undamaged nets have 1.8 to 7.9, MobileNetV2 of fresh random weights 12.4. With 4 of 64 channels of
three digits nets made larger, int8 files keep 34 dB SNR or more up to a spread of 28 (40 to 43 dB when undamaged), 29
to 32 dB at 42 to 57, 21 to 24 dB at 84 to 94, and at 660 they guess.
"""

_FIXED_SCALE = ("SOFTMAX", "LOG_SOFTMAX", "LOGISTIC", "TANH", "L2_NORMALIZATION")
"""Operators whose int8 outputs have the same scale whatever the ranges."""

_HANDED_ON = (*ELEMENTWISE, *CHANNELWISE)
"""Operators whose outputs are about as unequal as what they take."""


@dataclass(frozen=True)
class Region:
    """Operators to keep float together.

    Args:
        tensors: The names of the tensors they make, in the model's order; what ``denylisted_nodes`` of TensorFlow's
            quantizer takes.
        layers: Their layers, each once.
        spread: The largest of the region's tensors.
    """

    tensors: tuple[str, ...]
    layers: tuple[str, ...]
    spread: float


def screen(
    model: bytes, samples: Arrays, layers: Mapping[str, str] = MappingProxyType({})
) -> tuple[ChannelSpread, ...]:
    """Measure how unequal the channels of each tensor are, in one pass of the float model over a few samples.

    Args:
        model: A float .tflite file.
        samples: Input name -> ``[count, ...]``; the first 20 are used.
        layers: Name scope of a layer -> how a person knows it.

    Returns:
        The tensors of floats with a batch and a last axis for channels, in the model's order; constants are left out.

    Raises:
        ConversionError: The file is over 2 GB.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    tree = parse(model)
    interpreter = Interpreter(
        model_content=model,
        experimental_preserve_all_tensors=True,
        # A delegate computes what lies within its part in memory of its own.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    index = int(tree.signatureDefs[0].subgraphIndex)
    graph = Graph(tree, index)
    ranges: dict[int, npt.NDArray[Any]] = {}
    for _ in _answered(interpreter, samples):
        for tensor in _activations(graph):
            values = interpreter.get_tensor(tensor, index)
            if values.ndim > 1 and values.size:
                found = abs(values).max(axis=tuple(range(values.ndim - 1)))
                ranges[tensor] = np.maximum(ranges[tensor], found) if tensor in ranges else found
    places = layers_of(tree, layers)
    return tuple(
        ChannelSpread(
            graph.name(tensor),
            graph.makers[tensor].name if tensor in graph.makers else "",
            places[graph.name(tensor)],
            tuple(map(float, found)),
            _spread(found),
        )
        for tensor, found in ranges.items()
    )


def find(model: bytes, spreads: Sequence[ChannelSpread]) -> tuple[Region, ...]:
    """Find what has to stay float together: each unequal tensor with whatever makes it and whatever takes it.

    One operator alone is not enough, for the tensor between two is quantized as soon as either of them is.

    Args:
        model: A float .tflite file.
        spreads: What :func:`screen` found in it.

    Returns:
        The regions, the most unequal first; none share an operator.
    """
    tree = parse(model)
    graph = Graph(tree, int(tree.signatureDefs[0].subgraphIndex))
    indices = {graph.name(tensor): tensor for tensor in range(len(graph.tensors))}
    found: list[tuple[set[int], float]] = []
    for spread in spreads:
        tensor = indices[spread.tensor_name]
        if spread.spread <= UNEQUAL or spread.op_name in _FIXED_SCALE:
            continue
        merged, largest = {*_before(graph, tensor), *_after(graph, tensor)}, spread.spread
        apart = []
        for tensors, other in found:
            if merged.isdisjoint(tensors):
                apart.append((tensors, other))
            else:
                merged, largest = merged | tensors, max(largest, other)
        found = [*apart, (merged, largest)]
    layers = {spread.tensor_name: spread.layer for spread in spreads}
    regions = [_region(graph, tensors, largest, layers) for tensors, largest in found if tensors]
    return tuple(sorted(regions, key=lambda region: -region.spread))


def _before(graph: Graph, tensor: int) -> Iterator[int]:
    """Yield a tensor, and those it was only handed on from."""
    while (op := graph.makers.get(tensor)) is not None:
        yield from op.outputs
        if op.name not in _HANDED_ON:
            return
        tensor = op.inputs[0]


def _after(graph: Graph, tensor: int) -> Iterator[int]:
    """Yield what is made of a tensor, and of what that is only handed on to."""
    for op in graph.takers[tensor]:
        floats = [output for output in op.outputs if graph.is_float(output)]  # Flatten asks for its shape too
        yield from floats
        if op.name in _HANDED_ON:
            for output in floats:
                yield from _after(graph, output)


def _region(graph: Graph, tensors: set[int], spread: float, layers: Mapping[str, str]) -> Region:
    names = tuple(graph.name(tensor) for op in graph.ops for tensor in op.outputs if tensor in tensors)
    return Region(names, tuple(dict.fromkeys(layers.get(name, name) for name in names)), spread)


def _answered(interpreter: Any, samples: Arrays) -> Iterator[None]:
    """Ask for one sample at a time, or for as many as the model always takes, and wait there for a look inside."""
    runner = interpreter.get_signature_runner(next(iter(interpreter.get_signature_list())))
    takes = runner.get_input_details()
    sizes = [details["shape_signature"][0] for details in takes.values() if len(details["shape_signature"])]
    batch = max([1, *map(int, sizes)])
    for start in range(0, min(len(next(iter(samples.values()))), SAMPLES), batch):
        rows = {name: first_rows(samples[name][start:], batch) for name in takes}
        runner(**{name: _stored(rows[name], details) for name, details in takes.items()})
        yield


def _stored(rows: npt.NDArray[Any], details: Mapping[str, Any]) -> npt.NDArray[Any]:
    return rows.astype(object if details["dtype"] is np.bytes_ else details["dtype"])


def _activations(graph: Graph) -> list[int]:
    made = [tensor for op in graph.ops for tensor in op.outputs]
    return [tensor for tensor in (*graph.inputs, *made) if graph.is_float(tensor)]


def _spread(ranges: npt.NDArray[Any]) -> float:
    used = ranges[ranges > 0]
    return float(used.max() / np.median(used)) if len(used) else 1.0
