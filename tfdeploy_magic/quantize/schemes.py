"""The schemes: how weights, activations, inputs and outputs are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

SchemeName = Literal["float32", "float16", "dynamic", "int8", "int16x8"]
IoType = Literal["int8", "uint8", "float32"]


@dataclass(frozen=True)
class Scheme:
    """One way to store a model.

    Args:
        name: What ``--NAME`` calls it.
        meaning: What it does, for cards and help.
        calibrated: Whether it needs real samples to find the ranges of activations.
        io: The dtype of floating-point inputs and outputs unless told otherwise.
        ios: The dtypes that can be asked for there.
    """

    name: SchemeName
    meaning: str
    calibrated: bool = False
    io: IoType = "float32"
    ios: tuple[IoType, ...] = ("float32",)


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("float32", "32-bit floating point, nothing quantized"),
        Scheme("float16", "weights stored as 16-bit floating point"),
        Scheme("dynamic", "8-bit weights, activations quantized as they come"),
        Scheme("int8", "8-bit weights and activations", calibrated=True, io="int8", ios=get_args(IoType)),
        Scheme("int16x8", "8-bit weights, 16-bit activations", calibrated=True),
    )
}
