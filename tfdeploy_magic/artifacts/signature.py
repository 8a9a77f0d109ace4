"""The names, shapes and dtypes at a model's door, for SavedModels and .tflite files alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

DEFAULT_SIGNATURE = "serving_default"
"""What is asked when no signature is named."""

UNKNOWN_RANK = (-1,)
"""The shape of a tensor of which not even the number of dimensions is known."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Args:
        name: Its name in the signature.
        shape: Its dimensions; None where any size is accepted.
        dtype: A numpy dtype name, "float32", or "string".
        scale: The quantization scale (real = scale * (stored - zero_point)); 0.0 when not quantized.
        zero_point: The quantization zero point.
        tensor: The tensor's name in the graph, where that differs from ``name``.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0
    tensor: str = ""

    @property
    def quantized(self) -> bool:
        """Whether stored integers stand for real numbers."""
        return self.scale != 0.0

    @property
    def as_real(self) -> TensorSpec:
        """What people hand over and get: real numbers, whatever is stored."""
        return replace(self, dtype="float32") if self.quantized else self

    @property
    def is_text(self) -> bool:
        """Whether it holds strings."""
        return self.dtype == "string"

    def quantize(self, real: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turn real numbers into what this tensor stores, rounding to nearest and saturating."""
        if not self.quantized:
            return np.asarray(real, dtype=self.dtype)
        limits = np.iinfo(self.dtype)
        stored = np.round(np.asarray(real, dtype=np.float64) / self.scale) + self.zero_point
        return np.clip(stored, limits.min, limits.max).astype(self.dtype)

    def dequantize(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turn what this tensor stores into real numbers, float32."""
        if not self.quantized:
            return stored
        return ((stored.astype(np.float64) - self.zero_point) * self.scale).astype(np.float32)

    def __str__(self) -> str:
        shape = ", ".join("?" if size is None else str(size) for size in self.shape)
        if self.shape == UNKNOWN_RANK:
            shape = "..."
        return f"{self.name}: {self.dtype}[{shape}]"


@dataclass(frozen=True)
class Signature:
    """A named way to call a model; the order of ``inputs`` is the order of the model's arguments."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def fixed_batch(self) -> int | None:
        """The batch size it was built with; None when any will do."""
        first = self.inputs[0].shape if self.inputs else ()
        return first[0] if first and first != UNKNOWN_RANK else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that survives JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Signature:
        """Rebuild from :meth:`to_dict`, also after a trip through JSON."""

        def specs(rows: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(**{**row, "shape": tuple(row["shape"])}) for row in rows)

        return cls(data["name"], specs(data["inputs"]), specs(data["outputs"]))
