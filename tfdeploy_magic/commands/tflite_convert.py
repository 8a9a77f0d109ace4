"""``%tflite_convert``: from a model in the kernel to a validated .tflite file."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import ByteSize, Field

from tfdeploy_magic import jobs, sources
from tfdeploy_magic.artifacts import store
from tfdeploy_magic.artifacts.models import LiteFile, SavedModelDir
from tfdeploy_magic.artifacts.provenance import Provenance
from tfdeploy_magic.artifacts.samples import SampleSet
from tfdeploy_magic.commands.declaration import FromKernel, Named, OnTheLine, Options, command
from tfdeploy_magic.commands.lite_model import PATIENCE_SECONDS, LiteModel, source_reference
from tfdeploy_magic.errors import DataError, OutputError
from tfdeploy_magic.evaluate import judge, measure, metrics
from tfdeploy_magic.jobs import Report, Worker
from tfdeploy_magic.jobs.progress import Listener
from tfdeploy_magic.quantize import engine
from tfdeploy_magic.quantize.schemes import SCHEMES, IoType, SchemeName
from tfdeploy_magic.sources.native_output import native_stderr_to
from tfdeploy_magic.sources.samples import NamedData, gather
from tfdeploy_magic.sources.traced import TracedModel

PACKAGES = ("tensorflow", "keras", "ai-edge-litert", "numpy", "tfdeploy-magic")
LOG_LIMIT = 20_000
"""Characters of the converter's output that are kept."""


class TfliteConvert(Options):
    """Convert a model to a .tflite file and measure it against the model it came from.

    A notebook finds arrays and datasets in its kernel that fit the model, calibrates and tests with them, and says
    which. Each number in the result was measured.
    """

    model: Annotated[Any, FromKernel("model"), OnTheLine(positional=True)] = Field(description="the model to convert")
    scheme: Annotated[SchemeName, OnTheLine(flags=True)] = Field("float32", description="how numbers are stored")
    io: IoType | None = Field(
        None,
        description="dtype of inputs and outputs; int8 for --int8 unless told otherwise, float32 for the others",
    )
    calib: Annotated[Any, FromKernel("data")] = Field(
        None, description="calibration data: arrays, a tf.data dataset or a representative_dataset function"
    )
    test: Annotated[Any, FromKernel("data")] = Field(
        None, description="test data, with labels as in x_test,y_test or in a dataset's elements"
    )
    samples: int = Field(100, gt=0, description="how many samples calibrate the file, at the most")
    metric: Annotated[str | Callable[..., Any] | Named | None, FromKernel("function")] = Field(
        None,
        description=f"what is measured beside parity: {', '.join(metrics.METRICS)}, or a function "
        "metric(labels, output); accuracy for classifiers when left out",
    )
    output: Annotated[Path | None, OnTheLine(short="-o")] = Field(
        None, description="file to write; without it the file lives in the artefact store"
    )
    force: bool = Field(False, description="replace an existing file")
    signature: str | None = Field(None, description="which signature of the model to convert")
    timeout: float = Field(1800.0, gt=0, description="seconds the conversion may take")
    memory_limit: ByteSize | None = Field(None, description="memory the conversion may use, as in 4GB")

    def data_to_find(self) -> tuple[str, ...]:
        """Calibration data where the scheme needs it, and test data always."""
        return ("calib", "test") if SCHEMES[self.scheme].calibrated else ("test",)


@command("tflite_convert", TfliteConvert)
def tflite_convert(options: TfliteConvert, progress: Listener) -> LiteModel:
    """Trace, freeze, convert, measure, keep.

    Returns:
        The file with its evidence and the recipe that made it.

    Raises:
        InputError: Something named cannot be used; nothing was started.
        UserCodeError: The model's call(), a generator or a metric raised or hung.
        ConversionError: TensorFlow refused the model.
        JobError: The conversion crashed, hung or outgrew its memory; this process is unharmed.
    """
    jobs.warm_up()
    scheme = SCHEMES[options.scheme]
    target = options.output.expanduser().absolute() if options.output else None
    if target:
        store.check_writable(target, force=options.force)
    if options.io is not None and options.io not in scheme.ios:
        raise DataError(
            f"--io {options.io} does not go with --{scheme.name}",
            found=options.io,
            wanted=" or ".join(scheme.ios),
            cure="Only --int8 stores its inputs and outputs as integers.",
        )
    if scheme.calibrated and options.calib is None:
        raise DataError(
            f"--{scheme.name} needs calibration data",
            found="none",
            wanted="some real samples: random numbers ruin a quantized model while its accuracy looks fine",
            cure="Name some: --calib x_train.",
        )
    if not scheme.calibrated and options.calib is not None:
        raise DataError(
            f"--calib does not go with --{scheme.name}",
            found="calibration data",
            wanted="none: only int8 and int16x8 are calibrated",
            cure="Leave --calib out, or add --int8.",
        )
    model = options.model if isinstance(options.model, Named) else Named("model", options.model)
    report = Report(progress)
    patience = min(PATIENCE_SECONDS, options.timeout)
    began = time.process_time()
    with (
        tempfile.TemporaryDirectory(prefix="tfdeploy-") as scratch,
        Worker(deadline=options.timeout, memory_limit=options.memory_limit, listener=report.relay) as worker,
    ):
        folder = Path(scratch)
        report.stage("tracing")
        traced = sources.trace(model.value, model.name, options.signature)
        calibration = None
        if scheme.calibrated:
            calibration = _gather(
                options.calib, traced, folder, report, role="calibration", limit=options.samples, seconds=patience
            )
        test = None
        if options.test is not None:
            test = _gather(options.test, traced, folder, report, role="test", limit=None, seconds=patience)
        task = _task(options, test, patience)
        base = None
        if test is not None:
            report.stage("asking the source model")
            outputs = traced.predict(test, report)
            base = judge.baseline(outputs, task)
        report.stage("freezing")
        with native_stderr_to(folder / "freezing.log"):
            saved_model = traced.save(folder / "saved_model")
        files = engine.make_files(
            worker, saved_model, [scheme.name], folder / "made", io=options.io, calibration=calibration
        )
        file = files[scheme.name]
        if test is not None and base is not None:
            # Timed last: by now the fork server has done importing, and nothing else is at work.
            report.stage("timing the source model")
            base = replace(base, latency=traced.latency(test, report))
            noticed = (*traced.findings, *measure.overlap(calibration, test))
            evidence = measure.measure(worker, file, test, base, task, folder / "answers", noticed)
        else:
            evidence = judge.not_measured(traced.findings)
        log = (folder / "freezing.log").read_text(errors="replace") + worker.output()
        report.stage("writing")
        cpu_seconds = time.process_time() - began + worker.cpu_seconds
        provenance = _provenance(options, traced, saved_model, file, calibration, test, report, cpu_seconds, log)
        file = _keep(file, target, f"{_file_name(model.name)}-{scheme.name}.tflite", force=options.force)
        report.finish()
    return LiteModel(file, evidence, provenance, source_reference(model.value))


def _gather(
    data: Any, traced: TracedModel, folder: Path, report: Report, *, role: str, limit: int | None, seconds: float
) -> SampleSet:
    report.stage(f"reading {role} data")
    if not isinstance(data, NamedData):
        pair = role == "test" and isinstance(data, tuple) and len(data) == 2
        data = NamedData(role, data[0], data[1], f"{role} labels") if pair else NamedData(role, data)
    return gather(
        data,
        traced.signature.inputs,
        folder / role,
        role=role,
        limit=limit,
        seconds=seconds,
        report=report,
    )


def _task(options: TfliteConvert, test: SampleSet | None, seconds: float) -> judge.Task:
    metric = options.metric
    labels = test.labels if test else None
    if isinstance(metric, Named):
        return judge.task(labels, metric.value, seconds, metric.name)
    return judge.task(labels, metric, seconds)


def _keep(file: LiteFile, target: Path | None, name: str, *, force: bool) -> LiteFile:
    if target is None:
        return replace(file, path=store.keep(file.path, name))
    try:
        store.write_whole(file.path, target, force=force)
    except OutputError as error:
        kept = store.keep(file.path, name)
        raise OutputError(
            error.what, found=error.found, wanted=error.wanted, cure=f"The finished file is kept at {kept}."
        ) from error
    return replace(file, path=target)


def _versions() -> dict[str, str]:
    """Return what is installed; a checkout or a tensorflow-cpu has no entry under the name looked for."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)


def _provenance(
    options: TfliteConvert,
    traced: TracedModel,
    saved_model: SavedModelDir,
    file: LiteFile,
    calibration: SampleSet | None,
    test: SampleSet | None,
    report: Report,
    cpu_seconds: float,
    log: str,
) -> Provenance:
    scheme = SCHEMES[options.scheme]
    route = ["traced and frozen in the kernel", "TFLiteConverter on the frozen graph, in a job"]
    if calibration is not None:
        quantizer = "TensorFlow's MLIR quantizer" if scheme.name == "int8" else "TensorFlow's 16x8 quantizer"
        route.append(f"calibrated on {calibration.count} samples")
        route.append(f"{quantizer} on the float file")
    route.append("signature put back")
    return Provenance(
        source=f"{traced.name}: {traced.description}",
        source_size=saved_model.size,
        weights_sha256=traced.weights_sha256(),
        route=tuple(route),
        options={
            "scheme": scheme.name,
            "io": options.io or scheme.io,
            "signature": file.signature.name,
            "samples": calibration.count if calibration else None,
            "output": str(options.output) if options.output else None,
        },
        calibration=calibration.name if calibration else None,
        calibration_sha256=calibration.sha256 if calibration else None,
        test=test.name if test else None,
        versions=_versions(),
        seconds=dict(report.seconds),
        cpu_seconds=cpu_seconds,
        log=log if len(log) <= LOG_LIMIT else f"{log[:LOG_LIMIT]}\n… {len(log) - LOG_LIMIT} more characters",
    )
