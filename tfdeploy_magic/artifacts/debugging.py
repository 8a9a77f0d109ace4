"""What quantization does inside a model: each tensor's error, each channel's range, and the samples it changed most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from tfdeploy_magic.artifacts.comparison import Row
from tfdeploy_magic.artifacts.evidence import Finding


@dataclass(frozen=True)
class Histogram:
    """How the values of a tensor are spread.

    Args:
        edges: ``[bins + 1]``, in the tensor's unit.
        counts: ``[bins]``, of the values that the operator's float twin computes.
        low: The lowest value that the quantized tensor can hold.
        high: The highest.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    low: float
    high: float


@dataclass(frozen=True)
class LayerError:
    """The error of one quantized tensor, every column as TensorFlow's QuantizationDebugger names it.

    The error of each tensor is that of its own operator alone: its float twin computes from the same inputs, which are
    those of the quantized model, dequantized. Statistics are means over the samples.

    Args:
        op_name: The operator, "CONV_2D".
        tensor_idx: The tensor's index in the debug model.
        num_elements: Of the tensor.
        stddev: Of the differences between quantized and float values.
        mean_error: Of them.
        max_abs_error: Of them.
        mean_squared_error: Of them.
        scale: The tensor's quantization scale.
        zero_point: Its zero point.
        tensor_name: Its name in the file.
        layer: The layer as a person knows it, "conv2d_1 (Conv2D)"; the tensor's name where it is in none.
        snr_db: 10 log10(sum(float^2) / sum(difference^2)), dB; infinite where nothing differs.
        custom: The person's own statistics, by name.
        histogram: Of its float values.
    """

    op_name: str
    tensor_idx: int
    num_elements: float
    stddev: float
    mean_error: float
    max_abs_error: float
    mean_squared_error: float
    scale: float
    zero_point: int
    tensor_name: str
    layer: str
    snr_db: float
    custom: Mapping[str, float] = field(default_factory=dict)
    histogram: Histogram | None = None

    @property
    def rmse_over_scale(self) -> float:
        """The root of the mean squared error in steps of the scale: about 0.29 when rounding is all there is."""
        return math.sqrt(self.mean_squared_error) / self.scale if self.scale else math.nan


@dataclass(frozen=True)
class ChannelSpread:
    """How unequal the channels of a float tensor are: one scale has to serve them all.

    Args:
        tensor_name: Its name in the file.
        op_name: The operator that made it; "" for an input of the model.
        layer: The layer as a person knows it.
        ranges: ``[channels]``, the largest absolute value of each channel over the samples.
        spread: The largest of them over the median of those that are not 0; 1.0 when all are equal.
    """

    tensor_name: str
    op_name: str
    layer: str
    ranges: tuple[float, ...]
    spread: float


@dataclass(frozen=True)
class ChangedSample:
    """A sample that quantization changed much.

    Args:
        row: Its place in the test data.
        error: The root mean square difference of its answers.
        reference: Output name -> the source model's answer, ``[...]``.
        answer: Output name -> the quantized model's.
        label: Its label, ``[...]``; None when unknown.
        inputs: Input name -> the sample itself, ``[...]``.
    """

    row: int
    error: float
    reference: Mapping[str, npt.NDArray[Any]]
    answer: Mapping[str, npt.NDArray[Any]]
    label: npt.NDArray[Any] | None
    inputs: Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Diagnosis:
    """Everything an explanation of the damage shows.

    Args:
        row: The quantized file it is about.
        layers: The errors of its tensors, in the model's order.
        spreads: The channels of the float model's tensors, in the model's order.
        changed: The samples it changed most, the worst first.
        model_metrics: The person's own statistics of the outputs, by name.
        findings: What a person should look at.
    """

    row: Row
    layers: tuple[LayerError, ...]
    spreads: tuple[ChannelSpread, ...]
    changed: tuple[ChangedSample, ...]
    model_metrics: Mapping[str, float] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
