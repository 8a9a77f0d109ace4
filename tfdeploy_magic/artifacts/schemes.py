"""The schemes: how weights, activations, inputs and outputs are stored, and by whose quantizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

EngineName = Literal["tflite", "litert"]
"""TensorFlow's own quantizer, which guides know and upstream deprecates; and litert-quantizer, its successor."""

SchemeName = Literal[
    "float32",
    "float16",
    "dynamic",
    "int8",
    "int16x8",
    "weight_only_wi8",
    "weight_only_wi4",
    "dynamic_wi8",
    "dynamic_wi4",
    "dynamic_wi4_b32",
    "static_wi8_ai8",
    "static_wi8_ai16",
]
IoType = Literal["int8", "uint8", "float32"]

RangeRule = Literal["min_max", "true_min_max", "moving_average"]
"""How the range of a tensor is found: the widest that TensorFlow's calibrator sees, the widest there is, or
litert-quantizer's own 0.95 moving average.

TensorFlow's calibrator looks at what an operator took after it has run. A MUL or ADD that works in place has then
written over it, and the range becomes that of both: of the CNN of the tests, whose batch norm follows its ReLU, 2 of 9
tensors are affected, and int8 has 40.1 dB SNR instead of 44.4.
"""

RULES: dict[RangeRule, str] = {"min_max": "", "true_min_max": "true ranges", "moving_average": "moving average"}
"""What a rule adds to a file's label."""


@dataclass(frozen=True)
class Scheme:
    """One way to store a model.

    Args:
        name: What ``--NAME`` calls it; those of litert-quantizer are its recipes: wi8 is 8-bit integer weights, ai16
            16-bit integer activations, b32 one scale for each block of 32 weights instead of each channel.
        meaning: What it does, for cards and help.
        engine: Whose quantizer makes it.
        weights: The dtype that weights are stored in; None where they stay float32.
        activations: The dtype that activations are stored in; such a scheme needs real samples to find their ranges.
        io: The dtype of floating-point inputs and outputs unless told otherwise.
        ios: The dtypes that can be asked for there.
    """

    name: SchemeName
    meaning: str
    engine: EngineName = "tflite"
    weights: Literal["float16", "int8", "int4"] | None = None
    activations: Literal["int8", "int16"] | None = None
    io: IoType = "float32"
    ios: tuple[IoType, ...] = ("float32",)

    @property
    def calibrated(self) -> bool:
        """Whether it needs real samples to find the ranges of activations."""
        return self.activations is not None

    @property
    def flag(self) -> str:
        """How a line asks for it: "--int8"."""
        return f"--{self.name.replace('_', '-')}"


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("float32", "32-bit floating point, nothing quantized"),
        Scheme("float16", "weights stored as 16-bit floating point", weights="float16"),
        Scheme("dynamic", "8-bit weights, activations quantized as they come", weights="int8"),
        Scheme(
            "int8",
            "8-bit weights and activations",
            weights="int8",
            activations="int8",
            io="int8",
            ios=get_args(IoType),
        ),
        Scheme("int16x8", "8-bit weights, 16-bit activations", weights="int8", activations="int16"),
        Scheme("weight_only_wi8", "8-bit weights, computed in float32", "litert", "int8"),
        Scheme("weight_only_wi4", "4-bit weights, computed in float32", "litert", "int4"),
        Scheme("dynamic_wi8", "8-bit weights, activations quantized as they come", "litert", "int8"),
        Scheme("dynamic_wi4", "4-bit weights, activations quantized as they come", "litert", "int4"),
        Scheme("dynamic_wi4_b32", "4-bit weights with a scale for each block of 32", "litert", "int4"),
        Scheme("static_wi8_ai8", "8-bit weights and activations", "litert", "int8", "int8"),
        Scheme("static_wi8_ai16", "8-bit weights, 16-bit activations", "litert", "int8", "int16"),
    )
}


@dataclass(frozen=True)
class Variant:
    """One file to make of a model: a scheme, and what of it is done otherwise.

    Args:
        scheme: A name in :data:`SCHEMES`.
        io: The dtype of floating-point inputs and outputs of an int8 file; the scheme's own when None.
        equalized: Whether the ranges of channels are evened out first.
        range_rule: How the ranges of activations are found.
        denylisted_ops: Operators that stay float, "SOFTMAX".
        denylisted_nodes: Output tensors of operators that stay float.
        recipe: Pairs of output tensors and the scheme that their operators get instead; later ones decide.
        name: What to call it in place of what the rest says; "" for that.
    """

    scheme: str
    io: IoType | None = None
    equalized: bool = False
    range_rule: RangeRule = "min_max"
    denylisted_ops: tuple[str, ...] = ()
    denylisted_nodes: tuple[str, ...] = ()
    recipe: tuple[tuple[tuple[str, ...], str], ...] = ()
    name: str = ""

    @property
    def label(self) -> str:
        """What tells it from others of the same model."""
        if self.name:
            return self.name
        told = [self.scheme]
        told += ["equalized"] if self.equalized else []
        told += [rule] if (rule := RULES[self.range_rule]) else []
        if held := (*self.denylisted_ops, *self.denylisted_nodes):
            told.append(f"{held[0]} float" if len(held) == 1 and len(held[0]) < 20 else f"{len(held)} names float")
        told += ["recipe"] if self.recipe else []
        return ", ".join(told)

    @property
    def file_scheme(self) -> str:
        """The scheme that its file can be held to; "recipe" where layers differ."""
        return "recipe" if self.recipe or self.denylisted_ops or self.denylisted_nodes else self.scheme

    @property
    def asked_io(self) -> IoType:
        """The dtype of its floating-point inputs and outputs."""
        scheme = SCHEMES[self.scheme]
        return (self.io if len(scheme.ios) > 1 else None) or scheme.io

    @property
    def calibrated(self) -> bool:
        """Whether any part of it needs real samples."""
        return any(SCHEMES[name].calibrated for name in (self.scheme, *(scheme for _, scheme in self.recipe)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that survives JSON; its name is no part of what it is."""
        parts = asdict(self)
        del parts["name"]
        return parts

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Variant:
        """Rebuild from :meth:`to_dict`, also after a trip through JSON."""
        recipe = tuple((tuple(tensors), scheme) for tensors, scheme in data["recipe"])
        lists = {name: tuple(data[name]) for name in ("denylisted_ops", "denylisted_nodes")}
        return cls(**{**data, **lists, "recipe": recipe})
