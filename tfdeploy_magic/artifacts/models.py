"""The two forms a model takes on disk: a SavedModel directory, and a .tflite file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tfdeploy_magic.artifacts.signature import Signature, TensorSpec


@dataclass(frozen=True)
class SavedModelDir:
    """A frozen SavedModel: one ``saved_model.pb`` that holds graph, weights and signature.

    Args:
        path: The directory.
        signature: The one signature it holds; ``TensorSpec.tensor`` names the graph's tensors.
        size: All its bytes on disk.
    """

    path: Path
    signature: Signature
    size: int


@dataclass(frozen=True)
class LiteFile:
    """A .tflite file and what its flatbuffer says of itself.

    Args:
        path: The file.
        scheme: The scheme it was made with: "float32", "float16", "dynamic", "int8", "int16x8".
        size: Bytes.
        sha256: Of the bytes; a corrupt .tflite often still loads, so trust this and not a clean load.
        signatures: By name.
        operators: How many of each operator, "CONV_2D" -> 2.
        tensor_types: How many tensors of each dtype.
    """

    path: Path
    scheme: str
    size: int
    sha256: str
    signatures: Mapping[str, Signature]
    operators: Mapping[str, int]
    tensor_types: Mapping[str, int]

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
        return cls(
            path=path,
            scheme=scheme,
            size=data["size"],
            sha256=data["sha256"],
            signatures=MappingProxyType({signature.name: signature for signature in found}),
            operators=MappingProxyType(data["operators"]),
            tensor_types=MappingProxyType(data["tensor_types"]),
        )
