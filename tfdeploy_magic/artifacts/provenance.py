"""How a file came to be: enough to make it again and to explain it a year later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Provenance:
    """The recipe that made a file.

    Args:
        source: The model, "model: Sequential, 36,042 parameters".
        source_form: What it is measured as, "SavedModel" or ".tflite".
        source_size: Bytes of that.
        source_sha256: A digest of its graph, its weights and the choices made about it.
        route: The steps, in order, each a clause.
        options: Every option that shaped the file.
        calibration: Which samples calibrated it; None when none were needed.
        manifest: What they were: how many, their digest, the seed of their draw, the function that prepared them and
            the digest of the float model they calibrated; empty when none were needed.
        test: Which samples tested it; None when nothing fitted.
        versions: Package -> version.
        seconds: Stage -> wall seconds.
        cpu_seconds: Of kernel and job together.
        log: What the converter printed, whole unless very long.
        made: When, "2026-11-23 15:04".
        file_cached: Whether the file was made then, and only found again now.
        evidence_cached: Whether it was measured then, too.
    """

    source: str
    source_form: str
    source_size: int
    source_sha256: str
    route: tuple[str, ...]
    options: Mapping[str, object]
    calibration: str | None
    manifest: Mapping[str, object]
    test: str | None
    versions: Mapping[str, str]
    seconds: Mapping[str, float]
    cpu_seconds: float
    log: str
    made: str
    file_cached: bool = False
    evidence_cached: bool = False

    @property
    def cached(self) -> bool:
        """Whether nothing was done anew."""
        return self.file_cached and self.evidence_cached

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Provenance:
        """Rebuild from what ``dataclasses.asdict`` gave, also after a trip through JSON."""
        return cls(**{**data, "route": tuple(data["route"])})
