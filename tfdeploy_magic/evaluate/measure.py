"""Measuring a .tflite file against its source model: the job asks it, the kernel judges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tfdeploy_magic.artifacts.evidence import Evidence, Finding, Latency
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.samples import SampleSet, open_arrays
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.errors import ConversionError
from tfdeploy_magic.evaluate import judge, session
from tfdeploy_magic.jobs import Worker

INCOMPARABLE = frozenset(("stateful", "random"))
"""Findings on a model whose answers cannot be compared sample by sample."""


def cannot_be_measured(file: LiteFile, findings: tuple[Finding, ...], *, samples: bool) -> Evidence | None:
    """Return the evidence of a file that nothing can be measured on, and why; None where it can.

    Args:
        file: The .tflite file.
        findings: What was noticed about it and its source.
        samples: Whether there are any to test with.
    """
    if file.foreign_operators:
        return judge.not_measurable(findings, file.foreign_operators)
    if any(finding.code in INCOMPARABLE for finding in findings):
        return Evidence(findings=judge.worst_first(findings))
    return None if samples else judge.not_measured(findings)


def ask(worker: Worker, file: LiteFile, inputs: Mapping[str, Path], folder: Path) -> Arrays:
    """Return the file's answers to samples, real numbers, memory-mapped from ``folder``.

    Raises:
        ConversionError: No interpreter here can run the file.
        JobError: The interpreter crashed or hung.
    """
    if file.foreign_operators:
        raise ConversionError(
            f"{file.path.name} cannot be asked here",
            found=f"operators that no interpreter here has: {', '.join(file.foreign_operators)}",
            wanted="LiteRT's own operators",
            cure="Run it on the device, or replace them in the model.",
        )
    arguments = {**_of(file, inputs), "folder": str(folder)}
    outputs = worker.call(f"{session.__name__}:predict_task", arguments)
    return open_arrays({name: Path(path) for name, path in outputs.items()})


def time_one(worker: Worker, file: LiteFile, inputs: Mapping[str, Path]) -> Latency:
    """Time the file on one sample."""
    return Latency(**worker.call(f"{session.__name__}:latency_task", _of(file, inputs)))


def measure(
    worker: Worker,
    file: LiteFile,
    samples: SampleSet,
    base: judge.Baseline,
    task: judge.Task,
    folder: Path,
    findings: tuple[Finding, ...] = (),
) -> Evidence:
    """Measure parity, the task metric and latency of a file.

    Args:
        worker: The process that loads and runs it.
        file: The .tflite file.
        samples: The test samples.
        base: The source model's answers to them.
        task: How answers are scored.
        folder: For the answers.
        findings: What was noticed elsewhere.
    """
    answers = ask(worker, file, samples.files, folder)
    latency = time_one(worker, file, samples.files)
    return judge.judge(base, answers, task, scheme=file.scheme, latency=latency, findings=findings)


def _of(file: LiteFile, inputs: Mapping[str, Path]) -> dict[str, object]:
    return {
        "path": str(file.path),
        "sha256": file.sha256,
        "inputs": {name: str(path) for name, path in inputs.items()},
    }
