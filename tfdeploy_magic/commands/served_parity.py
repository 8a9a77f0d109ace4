"""Whether a server answers as the model does: the same samples through its door and through the model itself."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from tfdeploy_magic.artifacts.evidence import Evidence
from tfdeploy_magic.artifacts.samples import SampleSet, rows_at_a_time
from tfdeploy_magic.artifacts.signature import Arrays, Signature
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.commands.lite_model import LiteModel
from tfdeploy_magic.evaluate import judge, measure
from tfdeploy_magic.evaluate.latency import first_rows
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.serving.client import Over
from tfdeploy_magic.serving.export import PATIENCE_SECONDS, ExportedVersion
from tfdeploy_magic.sources import Source, StoredModel, TracedModel
from tfdeploy_magic.sources.samples import NamedData, gather
from tfdeploy_magic.sources.traced import BATCH_SIZE
from tfdeploy_magic.views.endpoint import request_of

SAMPLES = 128
"""Test samples that are asked through the server, at the most."""


def samples_of(
    source: Source, exported: ExportedVersion, test: NamedData | None, folder: Path, report: Report
) -> SampleSet | None:
    """Return what the server and the model are asked; None where there is nothing to ask.

    Args:
        source: The model.
        exported: The version that is to be served.
        test: Samples as the signature takes that is asked by default; None where there are none.
        folder: For them.
        report: Told of the progress.

    Raises:
        DataError: They do not fit.
    """
    if test is None:
        return None
    report.stage("reading test data")
    if test.labels_name is not None:  # no server is asked labels
        name = test.name.removesuffix(f", {test.labels_name}")
        test = replace(test, name=name, labels=None, labels_name=None)
    specs = [spec.as_real for spec in (exported.model or source.model).signature.inputs]
    return gather(test, specs, folder, role="test", limit=SAMPLES, seconds=PATIENCE_SECONDS, report=report)


def compare(
    source: Source, exported: ExportedVersion, endpoint: Endpoint, samples: SampleSet, report: Report
) -> dict[str, Evidence]:
    """Ask the server what the model is asked.

    Args:
        source: The model.
        exported: The version that is served.
        endpoint: Where.
        samples: What :func:`samples_of` returned.
        report: Told of the progress.

    Returns:
        What was asked beside the server -> how the answers compare; nothing where no two answers are alike.
    """
    model = exported.model or source.model
    if any(finding.code in measure.INCOMPARABLE for finding in (*model.findings, *exported.findings)):
        return {}
    report.stage("asking the server")
    answers = _asked(endpoint, samples, model.signature, report)
    found = {}
    for name, (other, scheme) in _others(source, model).items():
        report.stage(f"asking {name}")
        reference = judge.baseline(other.predict(samples, report), judge.Task(), other.precision)
        named = _named_alike(answers, reference.outputs)
        found[name] = judge.judge(reference, named, judge.Task(), scheme=scheme, latency=None, findings=())
    return found


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
    # As many at a time as the model is asked: rows may depend on each other.
    rows = fixed or rows_at_a_time(arrays.values(), BATCH_SIZE)
    # Bytes that are no text would come back through JSON as something else.
    over: Over | None = "grpc" if any(spec.is_text for spec in signature.outputs) else None
    parts: list[Arrays] = []
    for start in range(0, samples.count, rows):
        sent = {name: np.ascontiguousarray(array[start : start + rows]) for name, array in arrays.items()}
        count = len(next(iter(sent.values())))
        if fixed:  # a batch size fixed in the graph: fill up, then cut
            sent = {name: first_rows(array, fixed) for name, array in sent.items()}
        answer = endpoint.predict(sent, signature=signature.name, over=over)
        given = answer if isinstance(answer, dict) else {signature.outputs[0].name: answer}
        parts.append({name: np.asarray(array)[:count] for name, array in given.items()})
        report.fraction((start + count) / samples.count)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _named_alike(answers: Arrays, reference: Arrays) -> Arrays:
    """Return answers under the names of the reference: exporting may rename the only output of a function."""
    if set(answers) == set(reference) or len(answers) != 1 or len(reference) != 1:
        return answers
    return dict(zip(reference, answers.values(), strict=True))


def example(source: Source, exported: ExportedVersion, endpoint: Endpoint, samples: SampleSet) -> str | None:
    """Return the JSON of a request about the first sample; None where JSON has no such numbers."""
    signature = (exported.model or source.model).signature
    first = {name: first_rows(array[:1], signature.fixed_batch or 1) for name, array in samples.open().items()}
    stored = endpoint.as_stored(first, signature.name)
    if not all(array.dtype.kind in "biuSUO" or array.dtype.name in ("float32", "float64") for array in stored.values()):
        return None
    return request_of(signature.name, signature, {name: _plain(array) for name, array in stored.items()})


def _plain(array: npt.NDArray[Any]) -> Any:
    if array.dtype.kind in "SUO":
        return _text(array.tolist())
    # As short as the number can be told: 0.1 and not 0.10000000149011612.
    return orjson.loads(orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY))


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(each) for each in value]
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}
