"""The two forms a model takes on disk: a SavedModel directory, and a .tflite file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tfdeploy_magic.artifacts.schemes import SCHEMES
from tfdeploy_magic.artifacts.signature import Signature, TensorSpec

LITERT_CUSTOM_OPERATORS = frozenset(
    {"AudioSpectrogram", "Mfcc", "NumericVerify", "TFLite_Detection_PostProcess", "aeq.hadamard_rotation"}
)
"""Custom by name only: LiteRT's own resolver brings them (tensorflow/lite/core/kernels/register.cc)."""


@dataclass(frozen=True)
class SavedModelDir:
    """A SavedModel ready to be converted.

    Args:
        path: The directory.
        signature: The signature to convert; in a frozen one ``TensorSpec.tensor`` names the graph's tensors.
        size: All its bytes on disk.
        frozen: Whether one ``saved_model.pb`` holds graph, weights and signature; otherwise its variables, tables
            and assets are beside it.
        tags: The tags of its graph.
    """

    path: Path
    signature: Signature
    size: int
    frozen: bool = True
    tags: tuple[str, ...] = ("serve",)


@dataclass(frozen=True)
class LiteFile:
    """A .tflite file and what its flatbuffer says of itself.

    Args:
        path: The file.
        scheme: The scheme it was made with, a name in ``SCHEMES``; "recipe" where layers differ.
        size: Bytes.
        sha256: Of the bytes; a corrupt .tflite often still loads, so trust this and not a clean load.
        signatures: By name.
        operators: How many of each operator, "CONV_2D" -> 2.
        tensor_types: How many tensors of each dtype.
        activations: How many operator outputs are held as quantized integers or as floats, by dtype.
        float_operators: How many of those outputs are floats, by operator, "SOFTMAX" -> 1.
        weights: Bytes of constants, by dtype.
        uninitialised_variables: Variables that the first call reads before anything writes them; what the file
            answers is then whatever lay in memory.
        subgraphs: How many; more than one for each signature where there are branches, loops or variables.
        version: Of the schema.
        description: Who wrote it, "MLIR Converted.".
        metadata: The names of its metadata buffers.
        min_runtime_version: The oldest TensorFlow Lite that runs it, "1.14.0"; None when it does not say.
    """

    path: Path
    scheme: str
    size: int
    sha256: str
    signatures: Mapping[str, Signature]
    operators: Mapping[str, int]
    tensor_types: Mapping[str, int]
    activations: Mapping[str, int] = field(default_factory=dict)
    float_operators: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, int] = field(default_factory=dict)
    uninitialised_variables: tuple[str, ...] = ()
    subgraphs: int = 1
    version: int = 3
    description: str = ""
    metadata: tuple[str, ...] = ()
    min_runtime_version: str | None = None

    @property
    def quantized_share(self) -> float | None:
        """How much of what the scheme quantizes is quantized, 0 to 1; None where there is nothing to quantize.

        Where activations are quantized it is the share of the operators' outputs held in integers, by count, without
        inherent integers such as shapes and indices; otherwise the share of the weights held so, in bytes.
        """
        scheme = SCHEMES.get(self.scheme)
        if scheme is None or scheme.weights is None:
            return None
        held: Mapping[str, int] = self.weights
        asked: tuple[str, ...] = (scheme.weights,)
        if scheme.activations is not None:
            # Shifts and sums of 8-bit activations may be 16 bits wide, and 8-bit ones appear beside 16-bit ones.
            held, asked = self.activations, ("int8", "uint8", "int16")
        quantized = sum(held.get(dtype, 0) for dtype in asked)
        total = sum(amount for dtype, amount in held.items() if dtype in asked or "float" in dtype)
        return quantized / total if total else None

    @property
    def flex_operators(self) -> tuple[str, ...]:
        """TensorFlow's own operators in it, "Erf": no interpreter runs them without the Flex delegate."""
        prefix = "CUSTOM Flex"
        return tuple(name.removeprefix(prefix) for name in self.operators if name.startswith(prefix))

    @property
    def foreign_operators(self) -> tuple[str, ...]:
        """Those and custom ones, by name: no interpreter that comes with TensorFlow or LiteRT runs the file."""
        custom = (name.removeprefix("CUSTOM ") for name in self.operators if name.startswith("CUSTOM "))
        return tuple(name.removeprefix("Flex") for name in custom if name not in LITERT_CUSTOM_OPERATORS)

    @property
    def signature(self) -> Signature:
        """The signature used when none is named: the first."""
        return next(iter(self.signatures.values()))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the first signature."""
        return self.signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs of the first signature."""
        return self.signature.outputs

    @classmethod
    def from_description(cls, path: Path, scheme: str, data: dict[str, Any]) -> LiteFile:
        """Build from what a job read off the file (``convert.describe``)."""
        found = [Signature.from_dict(row) for row in data["signatures"]]
        parts = {name: _frozen(value) for name, value in data.items()}
        parts["signatures"] = MappingProxyType({signature.name: signature for signature in found})
        return cls(path=path, scheme=scheme, **parts)

    def to_description(self) -> dict[str, Any]:
        """Return what :meth:`from_description` takes, as plain data that survives JSON."""
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        del parts["path"], parts["scheme"]
        parts = {name: dict(value) if isinstance(value, Mapping) else value for name, value in parts.items()}
        return {**parts, "signatures": [signature.to_dict() for signature in self.signatures.values()]}


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType(value)
    return tuple(value) if isinstance(value, list) else value
