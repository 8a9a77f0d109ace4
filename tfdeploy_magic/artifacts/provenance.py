"""How a file came to be: enough to make it again and to explain it a year later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Provenance:
    """The recipe that made a file.

    Args:
        source: The model, "model: Sequential, 36,042 parameters".
        source_size: Bytes of its SavedModel.
        weights_sha256: A digest of its weights.
        route: The steps, in order, each a clause.
        options: Every option that shaped the file.
        calibration: Which samples calibrated it; None when none were needed.
        calibration_sha256: A digest of them.
        test: Which samples tested it; None when nothing fitted.
        versions: Package -> version.
        seconds: Stage -> wall seconds.
        cpu_seconds: Of kernel and job together.
        log: What the converter printed, whole unless very long.
    """

    source: str
    source_size: int
    weights_sha256: str
    route: tuple[str, ...]
    options: Mapping[str, object]
    calibration: str | None
    calibration_sha256: str | None
    test: str | None
    versions: Mapping[str, str]
    seconds: Mapping[str, float]
    cpu_seconds: float
    log: str
