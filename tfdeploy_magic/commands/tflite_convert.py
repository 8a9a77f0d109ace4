"""``%tflite_convert``: from a model in the kernel to a validated .tflite file."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ByteSize, Field

from tfdeploy_magic import jobs, sources
from tfdeploy_magic.artifacts import store
from tfdeploy_magic.artifacts.evidence import Evidence, Finding
from tfdeploy_magic.artifacts.models import LiteFile, SavedModelDir
from tfdeploy_magic.artifacts.provenance import Provenance
from tfdeploy_magic.artifacts.samples import SampleSet, digest_of
from tfdeploy_magic.artifacts.schemes import SCHEMES, IoType, SchemeName
from tfdeploy_magic.commands.declaration import FromKernel, Named, OnTheLine, Options, command
from tfdeploy_magic.commands.lite_model import PATIENCE_SECONDS, LiteModel, source_reference
from tfdeploy_magic.convert import preparation
from tfdeploy_magic.errors import DataError, OutputError, VariablesLost
from tfdeploy_magic.evaluate import calibration, judge, measure, metrics
from tfdeploy_magic.jobs import Report, Worker
from tfdeploy_magic.jobs.progress import Listener
from tfdeploy_magic.quantize import engine
from tfdeploy_magic.sources import Source, samples
from tfdeploy_magic.sources.native import give_back_memory, native_stderr_to
from tfdeploy_magic.sources.samples import NamedData

PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "tf-keras", "ai-edge-litert", "numpy", "tfdeploy-magic")
LOG_LIMIT = 20_000
"""Characters of the converter's output that are kept."""


Names = Annotated[tuple[str, ...], BeforeValidator(lambda v: tuple(v.split(",")) if isinstance(v, str) else v)]
"""Several names with commas between them."""


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
    metric: Annotated[str | Callable[..., Any] | Named | None, FromKernel("metric")] = Field(
        None,
        description=f"what is measured beside parity: {', '.join(metrics.METRICS)}, or a function "
        "metric(labels, output); accuracy for classifiers when left out",
    )
    output: Annotated[Path | None, OnTheLine(short="-o")] = Field(
        None, description="file to write; without it the file lives in the artefact store"
    )
    force: bool = Field(False, description="replace an existing file")
    signature: str | None = Field(None, description="which signature of the model to convert")
    input_spec: str | None = Field(
        None, description="shapes of inputs that are not clear, or to fix: 1x224x224x3:float32, or NAME=?x7:int32,..."
    )
    inputs: Names = Field((), description="input tensors of a frozen graph, NAME,...")
    outputs: Names = Field((), description="output tensors of a frozen graph, NAME,...")
    select_ops: bool = Field(
        False, description="leave operations that .tflite lacks to TensorFlow's kernels; such a file cannot be measured"
    )
    trust: bool = Field(False, description="run the code that a model file carries, in a job")
    preprocess: Annotated[Callable[..., Any] | Named | None, FromKernel("function")] = Field(
        None, description="function that turns rows of your data [k, ...] into what the model takes"
    )
    postprocess: Annotated[Callable[..., Any] | Named | None, FromKernel("function")] = Field(
        None, description="function that turns the model's answers into what the metric takes"
    )
    no_cache: bool = Field(False, description="convert and measure again what was done before")
    settings: Annotated[dict[str, Any] | None, OnTheLine(hidden=True)] = Field(
        None, description="settings of TFLiteConverter that no other option expresses, as a cell's converter had them"
    )
    timeout: float = Field(1800.0, gt=0, description="seconds the conversion may take")
    memory_limit: ByteSize | None = Field(None, description="memory the conversion may use, as in 4GB")

    def data_to_find(self) -> tuple[str, ...]:
        """Calibration data where the scheme needs it, and test data always."""
        return ("calib", "test") if SCHEMES[self.scheme].calibrated else ("test",)

    def source(self) -> Source:
        """Open the model; a face that looked at it already hands its source on as the model."""
        model = self.model if isinstance(self.model, Named) else Named(_name_of(self.model), self.model)
        if isinstance(model.value, Source):
            return model.value
        how = sources.How(self.signature, self.input_spec, self.inputs, self.outputs, self.trust)
        worker = Worker(deadline=self.timeout, memory_limit=self.memory_limit)
        return sources.open_source(model.value, model.name, how, worker)


@command("tflite_convert", TfliteConvert, cell=True)
def tflite_convert(options: TfliteConvert, progress: Listener) -> LiteModel:
    """Trace, convert, measure, keep; or find again what was done before.

    Returns:
        The file with its evidence and the recipe that made it.

    Raises:
        InputError: Something named cannot be used; nothing was started.
        UserCodeError: The model's call(), a generator or a metric raised or hung.
        ConversionError: TensorFlow refused the model.
        JobError: The conversion crashed, hung or outgrew its memory; this process is unharmed.
    """
    jobs.warm_up()
    target = options.output.expanduser().absolute() if options.output else None
    if target:
        store.check_writable(target, force=options.force)
    _check_options(options)
    report = Report(progress)
    with (
        tempfile.TemporaryDirectory(prefix="tfdeploy-") as scratch,
        contextlib.closing(options.source()) as source,
        Worker(deadline=options.timeout, memory_limit=options.memory_limit, listener=report.relay) as worker,
    ):
        source.worker.listener = report.relay
        return _Conversion(options, source, worker, Path(scratch), report).run(target)


@dataclass
class _Made:
    """A finished file that is not kept yet, or one found in the store."""

    file: LiteFile
    provenance: Provenance
    findings: tuple[Finding, ...]

    def to_record(self) -> dict[str, Any]:
        return {
            "description": {"scheme": self.file.scheme, **self.file.to_description()},
            "provenance": asdict(self.provenance),
            "findings": [asdict(finding) for finding in self.findings],
        }

    @classmethod
    def from_entry(cls, entry: store.Entry) -> _Made | None:
        """Read an entry; None when another version of this package wrote it in another form."""
        assert entry.path is not None
        try:
            description = dict(entry.record["description"])
            return cls(
                LiteFile.from_description(entry.path, description.pop("scheme"), description),
                Provenance.from_dict(entry.record["provenance"]),
                tuple(Finding(**row) for row in entry.record["findings"]),
            )
        except (KeyError, TypeError, ValueError):
            return None


class _Conversion:
    """One run of the command.

    Args:
        options: What was asked.
        source: The model.
        worker: Converts and validates.
        folder: For everything on the way.
        report: Told of the progress.
    """

    def __init__(self, options: TfliteConvert, source: Source, worker: Worker, folder: Path, report: Report) -> None:
        self.options, self.source, self.worker, self.folder, self.report = options, source, worker, folder, report
        self.scheme = SCHEMES[options.scheme]
        self.patience = min(PATIENCE_SECONDS, options.timeout)
        self.began = time.process_time()
        self.calibration: SampleSet | None = None
        self.test: SampleSet | None = None
        self.task = judge.Task()

    def run(self, target: Path | None) -> LiteModel:
        if not (samples.is_quick(self.options.calib) and samples.is_quick(self.options.test)):
            _ = self.ready  # refuse the model before the person's generators run
        self._read_data()
        value = self.source.value
        stem = re.sub(r"[^\w.-]", "_", value.stem if isinstance(value, Path) else self.source.name)
        file_name = f"{stem}-{self.scheme.name}.tflite"
        key = store.key_of(**self._what_makes_the_file(), file_name=file_name)
        measured = self._what_is_measured(key)
        found = self._found(key)
        evidence = self._known(measured) if found and measured else None
        made = found or self._make()
        provenance = replace(
            made.provenance,
            source=f"{self.source.name}: {made.provenance.source.partition(': ')[2]}",
            calibration=self.calibration.name if self.calibration else None,
            file_cached=found is not None,
            evidence_cached=evidence is not None,
        )
        if evidence is None:
            evidence = self._measure(made)
            provenance = self._with_costs(provenance)
        self.report.stage("writing")
        kept = made.file
        if found is None:
            entry = self._keep(key, replace(made, provenance=provenance), file_name, optional=target is not None)
            kept = made.file if entry is None else replace(made.file, path=entry)
        if not provenance.evidence_cached and measured and not self.options.no_cache:
            self._note(measured, evidence)
        if target is not None:
            kept = _write(kept, target, force=self.options.force)
        provenance = replace(
            provenance,
            test=self.test.name if self.test and evidence.measured else None,
            options={**provenance.options, "output": str(target) if target else None},
        )
        self._close()
        self.report.finish()
        return LiteModel(kept, evidence, provenance, source_reference(self.source))

    def _found(self, key: str) -> _Made | None:
        entry = None if self.options.no_cache else store.find(key)
        return _Made.from_entry(entry) if entry else None

    def _known(self, key: str) -> Evidence | None:
        entry = store.find(key)
        try:
            return Evidence.from_dict(entry.record) if entry else None
        except (KeyError, TypeError):  # another version of this package wrote it
            return None

    def _close(self) -> None:
        """Let go of the traced graph."""
        traced = "ready" in vars(self) or "model" in vars(self.source)
        vars(self).pop("ready", None)
        vars(self).pop("baseline", None)
        vars(self.source).pop("model", None)
        if traced:
            give_back_memory()

    @functools.cached_property
    def ready(self) -> preparation.Prepared:
        """The model, looked at and cured before any time is spent."""
        self.report.stage("tracing")
        return preparation.prepare(self.source, calibrated=self.scheme.calibrated, select_ops=self.options.select_ops)

    @functools.cached_property
    def baseline(self) -> judge.Baseline:
        """The source model's own answers."""
        assert self.test is not None
        model = self.source.model
        self.report.stage("asking the source model")
        return judge.baseline(model.predict(self.test, self.report), self.task, model.precision)

    def _read_data(self) -> None:
        options = self.options
        if self.scheme.calibrated:
            self.calibration = self._gather(options.calib, "calibration", options.samples)
        if options.test is not None:
            self.test = self._gather(options.test, "test", None)
        labels = self.test.labels if self.test else None
        metric, name = _value_and_name(options.metric)
        postprocess, _ = _value_and_name(options.postprocess)
        self.task = judge.task(labels, metric, self.patience, name, postprocess)

    def _gather(self, data: Any, role: str, limit: int | None) -> SampleSet:
        self.report.stage(f"reading {role} data")
        if not isinstance(data, NamedData):
            pair = role == "test" and isinstance(data, tuple) and len(data) == 2
            data = NamedData(role, data[0], data[1], f"{role} labels") if pair else NamedData(role, data)
        preprocess, _ = _value_and_name(self.options.preprocess)
        if preprocess is not None and not callable(data.value):
            data = replace(data, preprocess=preprocess)
        return samples.gather(
            data,
            self.source.inputs,
            self.folder / role,
            role=role,
            limit=limit,
            seconds=self.patience,
            report=self.report,
        )

    def _what_makes_the_file(self) -> dict[str, Any]:
        return {
            "source": self.source.sha256,
            "scheme": self.scheme.name,
            "io": self.options.io or self.scheme.io,
            "select_ops": self.options.select_ops,
            "settings": self.options.settings,
            "calibration": self.calibration.sha256 if self.calibration else None,
            "versions": _versions(),
        }

    def _what_is_measured(self, key: str) -> str | None:
        """Return the key of the evidence; None when a function of the person's, which may change, is part of it."""
        metric, _ = _value_and_name(self.options.metric)
        if callable(metric) or self.options.postprocess is not None:
            return None
        labels = None if self.test is None or self.test.labels is None else digest_of(self.test.labels)
        return store.key_of(
            file=key, test=self.test.sha256 if self.test else None, labels=labels, metric=metric, cpus=os.cpu_count()
        )

    def _make(self) -> _Made:
        model = self.ready.source.model
        if self.test is not None and not any(f.code in measure.INCOMPARABLE for f in self.ready.findings):
            _ = self.baseline  # a metric that does not fit shows before anything is converted
        self.report.stage("freezing")
        with native_stderr_to(self.folder / "freezing.log"):
            saved_model = self.ready.save(self.folder / "saved_model")
        make = functools.partial(
            engine.make_files,
            self.worker,
            schemes=[self.scheme.name],
            folder=self.folder / "made",
            io=self.options.io,
            calibration=self.calibration,
            select_ops=self.options.select_ops,
            settings=self.options.settings,
            layers=model.layers,
        )
        try:
            file = make(saved_model)[self.scheme.name]
        except VariablesLost:
            saved_model = self.ready.rebuild(self.folder / "rebuilt")
            file = make(saved_model)[self.scheme.name]
        return _Made(file, self._provenance(saved_model, file), self.ready.findings)

    def _measure(self, made: _Made) -> Evidence:
        bits = 16 if self.scheme.name == "int16x8" else 8
        findings = (*made.findings, *calibration.check(self.calibration, self.test, bits=bits))
        cannot = measure.cannot_be_measured(made.file, findings, samples=self.test is not None)
        if cannot is not None or self.test is None:
            return cannot or judge.not_measured(findings)
        base = self.baseline
        # Timed last: by now the fork server has done importing, and nothing else is at work.
        self.report.stage("timing the source model")
        base = replace(base, latency=self.source.model.latency(self.test, self.report))
        answers = self.folder / "answers"
        return measure.measure(self.worker, made.file, self.test, base, self.task, answers, findings)

    def _with_costs(self, provenance: Provenance) -> Provenance:
        """Note what this run cost, now that it is over."""
        log = provenance.log
        if not provenance.file_cached:
            log = (self.folder / "freezing.log").read_text(errors="replace")
            log += self.source.worker.output() + self.worker.output()
        return replace(
            provenance,
            seconds=dict(self.report.seconds),
            cpu_seconds=time.process_time() - self.began + self.worker.cpu_seconds + self.source.worker.cpu_seconds,
            log=log if len(log) <= LOG_LIMIT else f"{log[:LOG_LIMIT]}\n… {len(log) - LOG_LIMIT} more characters",
        )

    def _keep(self, key: str, made: _Made, file_name: str, *, optional: bool) -> Path | None:
        """Put the file in the store; where it lives elsewhere too, a store that cannot be written is no matter."""
        try:
            return store.keep(key, made.to_record(), made.file.path, file_name, made.file.sha256).path
        except OutputError:
            if optional:
                return None
            raise

    def _note(self, key: str, evidence: Evidence) -> None:
        with contextlib.suppress(OutputError):
            store.keep(key, asdict(evidence))

    def _provenance(self, saved_model: SavedModelDir, file: LiteFile) -> Provenance:
        model, drawn = self.ready.source.model, self.calibration
        route = [*model.route(saved_model), "converted by TFLiteConverter, in a job"]
        if self.options.settings is not None:
            route[-1] = f"converted by TFLiteConverter with {', '.join(self.options.settings)}, in a job"
        elif drawn is not None:
            quantizer = "MLIR quantizer" if self.scheme.name == "int8" else "16x8 quantizer"
            route += [f"calibrated on {drawn.count} samples", f"quantized by TensorFlow's {quantizer}"]
        return Provenance(
            source=f"{self.source.name}: {model.description}",
            source_form="SavedModel" if saved_model.path.is_dir() else ".tflite",
            source_size=saved_model.size,
            source_sha256=self.source.sha256,
            route=tuple(route),
            options={
                "scheme": self.scheme.name,
                "io": self.options.io or self.scheme.io,
                "signature": file.signature.name,
                "samples": drawn.count if drawn else None,
                "kept_flags": _flags_to_keep(self.options),
                "output": None,
            },
            calibration=drawn.name if drawn else None,
            calibration_sha256=drawn.sha256 if drawn else None,
            test=None,
            versions=_versions(),
            seconds={},
            cpu_seconds=0.0,
            log="",
            made=time.strftime("%Y-%m-%d %H:%M"),
        )


def _flags_to_keep(options: TfliteConvert) -> str:
    """Return the flags that any other line about the same model needs too."""
    named = {"signature": options.signature, "input-spec": options.input_spec}
    named |= {"inputs": ",".join(options.inputs), "outputs": ",".join(options.outputs)}
    words = [f" --{name} {shlex.quote(value)}" for name, value in named.items() if value]
    for name, function in (("preprocess", options.preprocess), ("postprocess", options.postprocess)):
        words += [f" --{name} {function.name}"] if isinstance(function, Named) else []
    words += [f" --{name}" for name, on in (("select-ops", options.select_ops), ("trust", options.trust)) if on]
    return "".join(words)


def _value_and_name(option: Any) -> tuple[Any, str | None]:
    return (option.value, option.name) if isinstance(option, Named) else (option, None)


def _name_of(model: Any) -> str:
    return str(model) if isinstance(model, str | Path) else "model"


def _check_options(options: TfliteConvert) -> None:
    scheme = SCHEMES[options.scheme]
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


def _write(file: LiteFile, target: Path, *, force: bool) -> LiteFile:
    try:
        store.write_whole(file.path, target, force=force)
    except OutputError as error:
        if store.store_folder() not in file.path.parents:
            raise
        raise OutputError(
            error.what, found=error.found, wanted=error.wanted, cure=f"The finished file is kept at {file.path}."
        ) from error
    return replace(file, path=target)


@functools.cache
def _versions() -> dict[str, str]:
    """Return what is installed; a checkout or a tensorflow-cpu has no entry under the name looked for."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
