"""What is known of a served model by whoever served it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tfdeploy_magic.artifacts.evidence import Evidence, Finding
from tfdeploy_magic.artifacts.signature import Signature


@dataclass(frozen=True)
class Served:
    """One version, from when it was written until it answered.

    Args:
        version: Its number.
        source: What it was made of, "model: Sequential, 36,042 parameters".
        base_path: Where its versions lie.
        size: Of this version, bytes.
        parity: What its answers were compared with -> how they compare.
        tested: What they were compared on; None where nothing was.
        seconds: Stage of the work -> how long it took.
        findings: What was noticed while it was exported and started.
        request: The body of a request as JSON, for the examples; None where there is none at hand.
        request_file: Where a body lies that is too long to be shown.
        ends: Where the server runs and when it ends, in words.
        replaced: The version that it took over from; None where it is the first.
        lite: The signatures of the .tflite that is served, with scales and zero points; None of a SavedModel.
        signatures: What it takes and gives, by the keys of its signatures.
    """

    version: int
    source: str
    base_path: str
    size: int
    parity: Mapping[str, Evidence] = field(default_factory=dict)
    tested: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    request: str | None = None
    request_file: str | None = None
    ends: str = ""
    replaced: int | None = None
    lite: Mapping[str, Signature] | None = None
    signatures: Mapping[str, Signature] = field(default_factory=dict)
