"""Whether a server answers as the model does: the same samples through its door and through the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfdeploy_magic.artifacts.evidence import Evidence
from tfdeploy_magic.artifacts.samples import SampleSet, rows_at_a_time
from tfdeploy_magic.artifacts.signature import Arrays, Signature
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.commands.lite_model import LiteModel
from tfdeploy_magic.evaluate import judge, measure
from tfdeploy_magic.evaluate.latency import first_rows
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.serving.export import PATIENCE_SECONDS, ExportedVersion
from tfdeploy_magic.sources import Source, StoredModel, TracedModel
from tfdeploy_magic.sources.samples import NamedData, gather

SAMPLES = 128
"""Test samples that are asked through the server, at the most."""

ROWS = 32
"""Samples in one request, at the most."""


@dataclass(frozen=True)
class Parity:
    """How served answers compare.

    Args:
        evidence: What they were compared with -> how they compare.
        tested: The samples; None where there were none.
        first: One sample as the server takes it, for the examples.
    """

    evidence: Mapping[str, Evidence]
    tested: str | None = None
    first: Arrays | None = None


def compare(
    source: Source,
    exported: ExportedVersion,
    endpoint: Endpoint,
    test: NamedData | None,
    folder: Path,
    report: Report,
) -> Parity:
    """Ask the server what the model is asked.

    Args:
        source: The model.
        exported: The version that is served.
        endpoint: Where.
        test: Samples as ``serving_default`` takes them; None where there are none.
        folder: For samples and answers.
        report: Told of the progress.
    """
    if test is None:
        return Parity({})
    model = exported.model or source.model
    signature = model.signature
    report.stage("reading test data")
    specs = [spec.as_real for spec in signature.inputs]
    samples = gather(test, specs, folder / "in", role="test", limit=SAMPLES, seconds=PATIENCE_SECONDS, report=report)
    first = {name: np.array(array[:1]) for name, array in samples.open().items()}
    if any(finding.code in measure.INCOMPARABLE for finding in (*model.findings, *exported.findings)):
        return Parity({}, None, first)
    report.stage("asking the server")
    answers = _asked(endpoint, samples, signature, report)
    found = {}
    for name, (other, scheme) in _others(source, model).items():
        report.stage(f"asking {name}")
        reference = judge.baseline(other.predict(samples, report), judge.Task(), other.precision)
        named = _named_alike(answers, reference.outputs)
        found[name] = judge.judge(reference, named, judge.Task(), scheme=scheme, latency=None, findings=())
    return Parity(found, samples.name, first)


def _others(source: Source, model: TracedModel | StoredModel) -> dict[str, tuple[Any, str]]:
    """Return what is asked beside the server, each with the scheme that says how far apart the two may be."""
    if not isinstance(source.given, LiteModel):
        where = "the file" if isinstance(source.value, Path) else "the model in this kernel"
        return {where: (model, "float32")}
    lite = source.given
    found: dict[str, tuple[Any, str]] = {"LiteRT's interpreter here": (model, "float32")}
    origin = lite.source()
    if origin is not None and origin.sha256 == lite.provenance.source_sha256:
        found["the model in this kernel"] = (origin.model, lite.scheme)
    return found


def _asked(endpoint: Endpoint, samples: SampleSet, signature: Signature, report: Report) -> Arrays:
    arrays = samples.open()
    fixed = signature.fixed_batch
    rows = fixed or rows_at_a_time(arrays.values(), ROWS)
    parts: list[Arrays] = []
    for start in range(0, samples.count, rows):
        sent = {name: np.ascontiguousarray(array[start : start + rows]) for name, array in arrays.items()}
        count = len(next(iter(sent.values())))
        if fixed:  # a batch size fixed in the graph: fill up, then cut
            sent = {name: first_rows(array, fixed) for name, array in sent.items()}
        answer = endpoint.predict(sent)
        given = answer if isinstance(answer, dict) else {signature.outputs[0].name: answer}
        parts.append({name: np.asarray(array)[:count] for name, array in given.items()})
        report.fraction((start + count) / samples.count)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _named_alike(answers: Arrays, reference: Arrays) -> Arrays:
    """Return answers under the names of the reference: exporting may rename the only output of a function."""
    if set(answers) == set(reference) or len(answers) != 1 or len(reference) != 1:
        return answers
    return dict(zip(reference, answers.values(), strict=True))
