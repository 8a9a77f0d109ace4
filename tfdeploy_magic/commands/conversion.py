"""One model and its data, of which files are made and measured one by one."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tfdeploy_magic import jobs
from tfdeploy_magic.artifacts import store
from tfdeploy_magic.artifacts.evidence import Evidence, Finding
from tfdeploy_magic.artifacts.models import LiteFile, SavedModelDir
from tfdeploy_magic.artifacts.provenance import Provenance
from tfdeploy_magic.artifacts.samples import SampleSet, digest_of
from tfdeploy_magic.artifacts.schemes import RULES, SCHEMES, Variant
from tfdeploy_magic.commands.lite_model import PATIENCE_SECONDS
from tfdeploy_magic.commands.model_options import ModelOptions, value_and_name
from tfdeploy_magic.convert import preparation
from tfdeploy_magic.errors import OutputError, VariablesLost
from tfdeploy_magic.evaluate import calibration, judge, measure
from tfdeploy_magic.jobs import Report, Worker
from tfdeploy_magic.jobs.progress import Listener
from tfdeploy_magic.quantization.engine import CALIBRATED, FLOAT, Maker
from tfdeploy_magic.sources import Source, samples
from tfdeploy_magic.sources.native import give_back_memory, native_stderr_to
from tfdeploy_magic.sources.samples import NamedData

PACKAGES = (
    "tensorflow",
    "tensorflow-cpu",
    "keras",
    "tf-keras",
    "ai-edge-litert",
    "litert-quantizer",
    "numpy",
    "tfdeploy-magic",
)
LARGE = 8_000_000
"""Bytes of a model from which on its memory is given back at once: looking for it takes 0.3 s in a usual kernel."""

LOG_LIMIT = 20_000
"""Characters of the converter's output that are kept."""


@dataclass(frozen=True)
class Made:
    """A finished file that is not kept yet, or one found in the store.

    Args:
        variant: What was asked for.
        file: The file.
        provenance: How it was made.
        findings: What was noticed when its model was looked at.
    """

    variant: Variant
    file: LiteFile
    provenance: Provenance
    findings: tuple[Finding, ...]

    def to_record(self) -> dict[str, Any]:
        """Return what :meth:`from_entry` reads."""
        return {
            "description": {"scheme": self.file.scheme, **self.file.to_description()},
            "provenance": asdict(self.provenance),
            "findings": [asdict(finding) for finding in self.findings],
        }

    @classmethod
    def from_entry(cls, variant: Variant, entry: store.Entry) -> Made | None:
        """Read an entry; None when another version of this package wrote it in another form."""
        assert entry.path is not None
        try:
            description = dict(entry.record["description"])
            return cls(
                variant,
                LiteFile.from_description(entry.path, description.pop("scheme"), description),
                Provenance.from_dict(entry.record["provenance"]),
                tuple(Finding(**row) for row in entry.record["findings"]),
            )
        except (KeyError, TypeError, ValueError):
            return None


@contextlib.contextmanager
def opened(options: ModelOptions, progress: Listener, *, calibrated: bool) -> Iterator[Conversion]:
    """Open the model, start the processes, and clean up after them whatever happens."""
    jobs.warm_up()
    report = Report(progress)
    with (
        tempfile.TemporaryDirectory(prefix="tfdeploy-") as scratch,
        contextlib.closing(options.source()) as source,
        options.worker(report.relay) as worker,
    ):
        source.worker.listener = report.relay
        conversion = Conversion(options, source, worker, Path(scratch), report, calibrated=calibrated)
        try:
            yield conversion
        finally:
            conversion.forget()
        report.finish()


class Conversion:
    """A model and its data, ready for one file after another.

    Args:
        options: What was asked.
        source: The model.
        worker: Makes files, and measures them.
        folder: For everything on the way.
        report: Told of the progress.
        calibrated: Whether any file will need calibration.
    """

    settings: Mapping[str, Any] | None = None
    """Settings of TensorFlow's own converter, which then makes the file."""

    def __init__(
        self, options: ModelOptions, source: Source, worker: Worker, folder: Path, report: Report, *, calibrated: bool
    ) -> None:
        self.options, self.source, self.worker, self.folder, self.report = options, source, worker, folder, report
        self.calibrated = calibrated
        self.patience = min(PATIENCE_SECONDS, options.timeout)
        self.calibration: SampleSet | None = None
        self.test: SampleSet | None = None
        self.task = judge.Task()
        self.preprocessed: dict[str, str] = {}
        self._calibration_findings: dict[int, tuple[Finding, ...]] = {}
        self._began = time.process_time()
        value = source.value
        self.stem = re.sub(r"[^\w.-]", "_", value.stem if isinstance(value, Path) else source.name)

    def read_data(self) -> None:
        """Drain the person's data, and fail before any work is done when it does not fit."""
        options = self.options
        quick = samples.is_quick(options.calib) and samples.is_quick(options.test)
        if not quick or getattr(self.source.value, "suffix", "") == ".tflite":
            _ = self.ready  # refuse the model before the person's generators run, or their data is called unfit for it
        if self.calibrated:
            self.calibration = self._gather(options.calib, "calibration", options.samples)
        if options.test is not None:
            self.test = self._gather(options.test, "test", None)
        labels = self.test.labels if self.test else None
        metric, name = value_and_name(options.metric)
        postprocess, _ = value_and_name(options.postprocess)
        self.task = judge.task(labels, metric, self.patience, name, postprocess)

    @functools.cached_property
    def ready(self) -> preparation.Prepared:
        """The model, looked at and cured before any time is spent."""
        self.report.stage("tracing")
        return preparation.prepare(self.source, calibrated=self.calibrated, select_ops=self.options.select_ops)

    @functools.cached_property
    def comparable(self) -> bool:
        """Whether there are samples, and answers to them that can be compared."""
        return self.test is not None and not any(f.code in measure.INCOMPARABLE for f in self.ready.findings)

    @functools.cached_property
    def baseline(self) -> judge.Baseline:
        """The source model's own answers."""
        assert self.test is not None
        model = self.ready.source.model if "ready" in vars(self) else self.source.model
        self.report.stage("asking the source model")
        return judge.baseline(model.predict(self.test, self.report), self.task, model.precision)

    def time_the_source(self) -> None:
        """Time the source model; done last, when nothing else is at work."""
        assert self.test is not None
        if self.baseline.latency is None:
            self.report.stage("timing the source model")
            latency = self.source.model.latency(self.test, self.report)
            self.baseline = replace(self.baseline, latency=latency)

    @functools.cached_property
    def maker(self) -> Maker:
        """What makes the files of the model as it was written."""
        model = self.ready.source.model
        self.report.stage("freezing")
        with native_stderr_to(self.folder / "freezing.log"):
            saved_model = self.ready.save(self.folder / "saved_model")
        folder = self.folder / "made"
        for name, key in self._starts(model.layers).items():
            entry = None if self.options.no_cache else store.find(key)
            if entry is not None and entry.path is not None:
                folder.mkdir(exist_ok=True)
                shutil.copyfile(entry.path, folder / name)
        return self._maker_of(saved_model, model.layers, folder)

    def keep_starts(self) -> None:
        """Remember the float model and the calibrated one, so that other files of the model start from them."""
        if "maker" not in vars(self) or self.options.no_cache:
            return
        for name, key in self._starts(self.maker.layers).items():
            path = self.maker.folder / name
            if path.exists():
                with contextlib.suppress(OutputError):
                    store.keep(key, {}, path, name)

    def _starts(self, layers: Mapping[str, str]) -> dict[str, str]:
        """Return the keys of those two; the names of layers count, since tensors are named after them."""
        parts = {
            "source": self.source.sha256,
            "unroll": self.ready.source.how.unroll,
            "single_sample": self.ready.single_sample,
            "layers": dict(layers),
            "select_ops": self.options.select_ops,
            "versions": _versions(),
        }
        keys = {FLOAT: store.key_of(**parts)}
        if self.calibration is not None:
            keys[CALIBRATED] = store.key_of(**parts, calibration=self.calibration.sha256)
        return keys

    def make(self, variant: Variant) -> Made:
        """Make one file, of the model loaded and written anew where TensorFlow's converter loses its variables."""
        try:
            file = self.maker.make(variant)
        except VariablesLost:
            rebuilt = self.ready.rebuild(self.folder / "rebuilt")
            self.maker = self._maker_of(rebuilt, self.maker.layers, self.folder / "made-anew")
            file = self.maker.make(variant)
        return Made(variant, file, self._provenance(self.maker.saved_model, file, variant), self.ready.findings)

    def find(self, variant: Variant) -> Made | None:
        """Return a file that was made before."""
        entry = None if self.options.no_cache else store.find(self.key(variant))
        made = Made.from_entry(variant, entry) if entry else None
        if made is None:
            return None
        return replace(
            made,
            provenance=replace(
                made.provenance,
                source=f"{self.source.name}: {made.provenance.source.partition(': ')[2]}",
                calibration=self._calibration_name(variant),
                manifest=self._manifest(variant),
                file_cached=True,
            ),
        )

    def known_evidence(self, variant: Variant) -> Evidence | None:
        """Return what was measured before on a file that was made before."""
        key = None if self.options.no_cache else self._evidence_key(variant)
        entry = store.find(key) if key else None
        try:
            return Evidence.from_dict(entry.record) if entry else None
        except (KeyError, TypeError):  # another version of this package wrote it
            return None

    def keep(self, made: Made, *, optional: bool = False) -> Path | None:
        """Put the file in the store; where it lives elsewhere too, a store that cannot be written is no matter."""
        key, name = self.key(made.variant), self._file_name(made.variant)
        try:
            return store.keep(key, made.to_record(), made.file.path, name, made.file.sha256).path
        except OutputError:
            if optional:
                return None
            raise

    def note(self, variant: Variant, evidence: Evidence) -> None:
        """Remember what was measured."""
        key = None if self.options.no_cache else self._evidence_key(variant)
        if key is not None:
            with contextlib.suppress(OutputError):
                store.keep(key, asdict(evidence))

    def key(self, variant: Variant) -> str:
        """Return the key of the file in the store: everything that makes it what it is."""
        return store.key_of(
            file_name=self._file_name(variant),
            source=self.source.sha256,
            variant=variant.to_dict(),
            select_ops=self.options.select_ops,
            settings=self.settings,
            calibration=self.calibration.sha256 if self.calibration and variant.calibrated else None,
            versions=_versions(),
        )

    def findings(self, made: Made) -> tuple[Finding, ...]:
        """Return what was noticed about the model and the samples that calibrated the file."""
        if not made.variant.calibrated:
            return made.findings
        bits = 16 if SCHEMES[made.variant.scheme].activations == "int16" else 8
        if bits not in self._calibration_findings:  # each look reads every sample, and files share them
            self._calibration_findings[bits] = calibration.check(self.calibration, self.test, bits=bits)
        return (*made.findings, *self._calibration_findings[bits])

    def with_costs(self, provenance: Provenance) -> Provenance:
        """Note what this run cost, now that it is over."""
        log = provenance.log
        if not provenance.file_cached:
            log = (self.folder / "freezing.log").read_text(errors="replace")
            log += self.source.worker.output() + self.worker.output()
        return replace(
            provenance,
            seconds=dict(self.report.seconds),
            cpu_seconds=time.process_time() - self._began + self.worker.cpu_seconds + self.source.worker.cpu_seconds,
            log=log if len(log) <= LOG_LIMIT else f"{log[:LOG_LIMIT]}\n… {len(log) - LOG_LIMIT} more characters",
        )

    def forget(self) -> None:
        """Let go of the traced graph, and give back its memory where that is worth the time."""
        large = "maker" in vars(self) and self.maker.saved_model.size > LARGE
        for name in ("ready", "baseline", "maker"):
            vars(self).pop(name, None)
        vars(self.source).pop("model", None)
        if large:
            give_back_memory()

    def _maker_of(self, saved_model: SavedModelDir, layers: Mapping[str, str], folder: Path) -> Maker:
        return Maker(
            self.worker,
            saved_model,
            folder,
            calibration=self.calibration,
            select_ops=self.options.select_ops,
            settings=self.settings,
            layers=layers,
        )

    def _gather(self, data: Any, role: str, limit: int | None) -> SampleSet:
        self.report.stage(f"reading {role} data")
        if not isinstance(data, NamedData):
            pair = role == "test" and isinstance(data, tuple) and len(data) == 2
            data = NamedData(role, data[0], data[1], f"{role} labels") if pair else NamedData(role, data)
        preprocess, name = value_and_name(self.options.preprocess)
        if preprocess is not None and not callable(data.value):
            data = replace(data, preprocess=preprocess)
            self.preprocessed[role] = str(name or getattr(preprocess, "__name__", "a function"))
        return samples.gather(
            data,
            self.source.inputs,
            self.folder / role,
            role=role,
            limit=limit,
            seconds=self.patience,
            report=self.report,
        )

    def _file_name(self, variant: Variant) -> str:
        return f"{self.stem}-{re.sub(r'[^A-Za-z0-9_]+', '-', variant.label)[:80]}.tflite"

    def _evidence_key(self, variant: Variant) -> str | None:
        """Return the key of the evidence; None when a function of the person's, which may change, is part of it."""
        metric, _ = value_and_name(self.options.metric)
        if callable(metric) or self.options.postprocess is not None:
            return None
        labels = None if self.test is None or self.test.labels is None else digest_of(self.test.labels)
        return store.key_of(
            file=self.key(variant),
            test=self.test.sha256 if self.test else None,
            labels=labels,
            metric=metric,
            cpus=os.cpu_count(),
        )

    def _calibration_name(self, variant: Variant) -> str | None:
        return self.calibration.name if self.calibration and variant.calibrated else None

    def _manifest(self, variant: Variant) -> dict[str, object]:
        if self.calibration is None or not variant.calibrated:
            return {}
        prepared = self.preprocessed.get("calibration")
        return self.calibration.manifest(preprocess=prepared, model_sha256=self.source.sha256)

    def _provenance(self, saved_model: SavedModelDir, file: LiteFile, variant: Variant) -> Provenance:
        model, drawn = self.ready.source.model, self.calibration if variant.calibrated else None
        return Provenance(
            source=f"{self.source.name}: {model.description}",
            source_form="SavedModel" if saved_model.path.is_dir() else ".tflite",
            source_size=saved_model.size,
            source_sha256=self.source.sha256,
            route=(*model.route(saved_model), *_route(variant, drawn, self.settings)),
            options={
                "scheme": file.scheme,
                "variant": variant.to_dict(),
                "label": variant.label,
                "io": variant.asked_io,
                "signature": file.signature.name,
                "samples": drawn.count if drawn else None,
                "kept_flags": self.options.kept_flags(),
                "output": None,
            },
            calibration=drawn.name if drawn else None,
            manifest=self._manifest(variant),
            test=None,
            versions=_versions(),
            seconds={},
            cpu_seconds=0.0,
            log="",
            made=time.strftime("%Y-%m-%d %H:%M"),
        )


def _route(variant: Variant, drawn: SampleSet | None, settings: Mapping[str, Any] | None) -> Iterator[str]:
    if settings is not None:
        yield f"converted by TFLiteConverter with {', '.join(settings)}, in a job"
        return
    yield "converted by TFLiteConverter, in a job"
    if variant.equalized:
        yield "channels equalized across layers (Nagel et al. 2019)"
    if drawn is not None:
        rule = RULES[variant.range_rule]
        yield f"calibrated on {drawn.count} samples{f' ({rule})' if rule else ''}"
    if variant.recipe or SCHEMES[variant.scheme].engine == "litert":
        yield "quantized by litert-quantizer"
    elif variant.calibrated:
        yield f"quantized by TensorFlow's {'16x8' if variant.scheme == 'int16x8' else 'MLIR'} quantizer"
    if kept := (*variant.denylisted_ops, *variant.denylisted_nodes):
        yield f"{', '.join(kept[:3])}{f' and {len(kept) - 3} more' if len(kept) > 3 else ''} left in float"


@functools.cache
def _versions() -> dict[str, str]:
    """Return what is installed; a checkout or a tensorflow-cpu has no entry under the name looked for."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
