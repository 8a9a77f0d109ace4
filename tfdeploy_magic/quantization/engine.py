"""One .tflite file after another of one model: its graph is opened, converted to float and calibrated once for all."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from signal import SIGABRT, SIGSEGV
from types import MappingProxyType
from typing import Any

from tfdeploy_magic.artifacts.debugging import ChannelSpread
from tfdeploy_magic.artifacts.models import LiteFile, SavedModelDir
from tfdeploy_magic.artifacts.samples import SampleSet, open_arrays
from tfdeploy_magic.artifacts.schemes import SCHEMES, RangeRule, Variant
from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, Arrays, Signature
from tfdeploy_magic.convert import contract, plain, refusals
from tfdeploy_magic.convert.converter import open_graph
from tfdeploy_magic.convert.describe import describe
from tfdeploy_magic.errors import ConversionCrashed, ConversionError, DataError, JobFailed
from tfdeploy_magic.evaluate.session import LiteSession
from tfdeploy_magic.jobs import Report, Worker
from tfdeploy_magic.quantization import equalization, litegraph, litert, regions, verification
from tfdeploy_magic.quantization.litert import Ranges
from tfdeploy_magic.quantization.recipe import Operator
from tfdeploy_magic.quantization.regions import Region

_CRASH_CURES = {
    "calibrating": "Loops (LSTM, GRU) crash TensorFlow's calibrator: build with unroll=True, or use --dynamic.",
}
"""Stage -> the known cure when the process dies there."""

FLOAT, CALIBRATED = "float.start", "calibrated.start"
"""Files in a maker's folder that others are made from; a process that finds them there need not make them."""


@dataclass(frozen=True)
class Maker:
    """Makes files of one model in a worker, whose process keeps the graph open; a new process starts from the disk.

    Args:
        worker: The process.
        saved_model: What a source wrote: a SavedModel, or a float .tflite file.
        folder: Where the files go.
        calibration: Real samples; needed by the schemes that quantize activations.
        select_ops: Leave operations that .tflite has no builtin for to TensorFlow's kernels.
        settings: Settings of TensorFlow's own converter, which then does it all; None for our own route.
        layers: Name scope of a layer -> how a person knows it; errors name layers.
    """

    worker: Worker
    saved_model: SavedModelDir
    folder: Path
    calibration: SampleSet | None = None
    select_ops: bool = False
    settings: Mapping[str, Any] | None = None
    layers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def make(self, variant: Variant) -> LiteFile:
        """Make one file.

        Returns:
            The file, checked against what was asked.

        Raises:
            DataError: There are fewer calibration samples than one batch of a model with a fixed batch size.
            ConversionError: TensorFlow or litert-quantizer refused the model, or made something else than was asked.
            ConversionCrashed: The converter died; the cure is named where it is known.
            JobError: It hung or outgrew its memory.
        """
        signature = self.saved_model.signature
        path = self.folder / f"{hashlib.sha256(json.dumps(variant.to_dict()).encode()).hexdigest()[:16]}.tflite"
        made = self._call("make_task", variant=variant.to_dict(), path=str(path))
        file = LiteFile.from_description(path, variant.file_scheme, made)
        contract.check_variables(file)
        if self.settings is not None:  # what else such a file should hold is known to whoever chose them
            custom = bool(self.settings.get("allow_custom_ops"))
            contract.check_operators(file, select_ops=self.select_ops, custom_ops=custom)
            contract.check_share(file)
        else:
            contract.check(file, signature, io=variant.asked_io, select_ops=self.select_ops)
        return _in_argument_order(file, signature)

    def halves(self) -> tuple[Ranges, Ranges] | None:
        """Return the ranges that each half of the calibration samples gives; None where a half is less than a batch."""
        batch = self.saved_model.signature.fixed_batch or 1
        if self.calibration is None or self.calibration.count < 2 * batch:
            return None
        first, second = self._call("halves_task")
        return _ranges(first), _ranges(second)

    def ranges(self, rule: RangeRule) -> Ranges:
        """Return the ranges of tensors by a rule of :data:`RangeRule`."""
        return _ranges(self._call("ranges_task", rule=rule))

    def widened(self) -> tuple[int, int]:
        """Return how many tensors TensorFlow's calibrator gives another range than they have, and of how many.

        Of none where that cannot be seen: litert-quantizer does not look into loops and branches.
        """
        try:
            return litert.differing(self.ranges("min_max"), self.ranges("true_min_max"))
        except ConversionError:
            return 0, 0

    def screen(self) -> tuple[tuple[ChannelSpread, ...], tuple[Region, ...]]:
        """Look at the channels of the float model's tensors, and find where they are unequal."""
        spreads, found = self._call("screen_task")
        return (
            tuple(ChannelSpread(**{**row, "ranges": tuple(row["ranges"])}) for row in spreads),
            tuple(Region(tuple(row["tensors"]), tuple(row["layers"]), row["spread"]) for row in found),
        )

    def operators(self) -> tuple[Operator, ...]:
        """Return the operators of the float model, in its order."""
        return tuple(Operator(**row) for row in self._call("operators_task"))

    def calibrated(self) -> tuple[Path, Path]:
        """Return the float file and the calibrated one, which debugging starts from."""
        float_model, calibrated = self._call("calibrated_task")
        return Path(float_model), Path(calibrated)

    def _call(self, task: str, **more: Any) -> Any:
        signature, calibration = self.saved_model.signature, self.calibration
        batch = signature.fixed_batch or 1
        if calibration is not None and calibration.count < batch:
            raise DataError(
                f"{calibration.name} cannot calibrate this model",
                found=f"{calibration.count} samples",
                wanted=f"at least {batch}, the batch size the model was built with",
                cure="Give more with --calib and --samples.",
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        work = {
            "saved_model": str(self.saved_model.path),
            "signature": signature.to_dict(),
            "frozen": self.saved_model.frozen,
            "tags": list(self.saved_model.tags),
            "select_ops": self.select_ops,
            "settings": dict(self.settings) if self.settings is not None else None,
            "calibration": {name: str(file) for name, file in calibration.files.items()} if calibration else None,
            "layers": dict(self.layers),
            "folder": str(self.folder),
        }
        try:
            return self.worker.call(f"{__name__}:{task}", {"work": work, **more}, crash=ConversionCrashed)
        except JobFailed as error:
            raise (refusals.explain(error.message, self.layers) or error) from error
        except ConversionCrashed as error:
            # A kill from outside, for want of memory say, has a cure of its own already.
            cure = _CRASH_CURES.get(error.stage) if error.signal in (SIGSEGV, SIGABRT) else None
            if cure is None:
                raise
            raise ConversionCrashed(
                "the converter crashed",
                signal=error.signal,
                stage=error.stage,
                last_lines=error.last_lines,
                cure=cure,
            ) from error


def _in_argument_order(file: LiteFile, asked: Signature) -> LiteFile:
    """Undo the quantizer's sorting of names: a list of inputs is read in the order of the model's arguments."""
    got = file.signatures[asked.name]
    inputs = {spec.name: spec for spec in got.inputs}
    outputs = {spec.name: spec for spec in got.outputs}
    ordered = Signature(
        asked.name,
        tuple(inputs[spec.name] for spec in asked.inputs),
        tuple(outputs[spec.name] for spec in asked.outputs),
    )
    return replace(file, signatures=MappingProxyType({asked.name: ordered}))


def _ranges(data: Mapping[str, list[float]]) -> Ranges:
    return {name: (low, high) for name, (low, high) in data.items()}


class _Work:
    """The job's side: what is made once and used by every file."""

    def __init__(self, work: dict[str, Any]) -> None:
        self.signature = Signature.from_dict(work["signature"])
        self.select_ops: bool = work["select_ops"]
        self.settings: dict[str, Any] | None = work["settings"]
        self.layers: dict[str, str] = work["layers"]
        self.folder = Path(work["folder"])
        self.report: Report
        self._work = work
        self._calibrators: dict[bool, Any] = {}
        self._found_ranges: dict[tuple[RangeRule, bool], Ranges] = {}

    @functools.cached_property
    def graph(self) -> Any:
        self.report.stage("reading the graph")
        work = self._work
        return open_graph(Path(work["saved_model"]), self.signature, frozen=work["frozen"], tags=tuple(work["tags"]))

    @functools.cached_property
    def samples(self) -> Arrays:
        assert self._work["calibration"] is not None
        return open_arrays({name: Path(file) for name, file in self._work["calibration"].items()})

    def path(self, name: str, equalized: bool) -> Path:
        return self.folder / (f"equalized-{name}" if equalized else name)

    def float_model(self, equalized: bool = False) -> bytes:
        """Return the float model that the quantizers start from; a process before this one may have made it."""
        path = self.path(FLOAT, equalized)
        if path.exists():
            return path.read_bytes()
        if equalized:
            start = self.float_model()
            self.report.stage("equalizing channels")
            content = equalization.equalize(start).model
        else:
            graph = self.graph
            self.report.stage("converting to float32")
            content = graph.convert(select_ops=self.select_ops)
        _write_whole(path, content)
        return content

    def calibrated(self, equalized: bool = False) -> bytes:
        """Return the float model with the ranges that TensorFlow's calibrator found; it may have been made before."""
        path = self.path(CALIBRATED, equalized)
        if not path.exists():
            self.calibrator(equalized)
        return path.read_bytes()

    def calibrator(self, equalized: bool = False) -> Any:
        """Return TensorFlow's calibrator, fed with the samples.

        It and the quantizers are internal to TensorFlow 2.21, which is why the package pins that line;
        ``TFLiteConverter.convert`` calls the same.
        """
        if equalized not in self._calibrators:
            count = len(next(iter(self.samples.values())))
            fed, content = self._calibrate(self.float_model(equalized), 0, count)
            self._calibrators[equalized] = fed
            _write_whole(self.path(CALIBRATED, equalized), content)
        return self._calibrators[equalized]

    def _calibrate(self, float_model: bytes, first: int, last: int) -> tuple[Any, bytes]:
        from tensorflow.lite.python.optimize import calibrator

        batch = self.signature.fixed_batch or 1
        starts = range(first, last - batch + 1, batch)

        def feed() -> Iterator[tuple[str, Arrays]]:
            self.report.stage("calibrating")
            for start in self.report.counting(starts, len(starts)):
                yield (
                    self.signature.name,
                    {name: array[start : start + batch] for name, array in self.samples.items()},
                )

        calibrating = calibrator.Calibrator(calibrator.add_intermediate_tensors(float_model))
        return calibrating, bytes(calibrating.calibrate(feed))

    def ranges(self, rule: RangeRule, equalized: bool = False) -> Ranges:
        if (rule, equalized) not in self._found_ranges:
            self._found_ranges[rule, equalized] = self._find_ranges(rule, equalized)
        return self._found_ranges[rule, equalized]

    def _find_ranges(self, rule: RangeRule, equalized: bool) -> Ranges:
        if rule == "min_max":
            return litert.ranges_of(self.calibrated(equalized))
        start = self.float_model(equalized)
        self.report.stage("calibrating with litert-quantizer")
        return litert.calibrate(start, self.samples, self.signature, self.report, rule)

    def halves(self) -> tuple[Ranges, Ranges]:
        count = len(next(iter(self.samples.values())))
        batch = self.signature.fixed_batch or 1
        middle = count // 2 // batch * batch
        parts = [(0, middle), (middle, count)]
        first, second = (litert.ranges_of(self._calibrate(self.float_model(), *part)[1]) for part in parts)
        return first, second

    def content(self, variant: Variant) -> bytes:
        """Make one file."""
        scheme = SCHEMES[variant.scheme]
        if self.settings is not None:
            graph, samples = self.graph, self.samples if variant.calibrated else None
            self.report.stage("converting with your settings")
            return plain.convert(graph, self.settings, samples, self.report)
        if variant.scheme in ("float16", "dynamic"):
            graph = self.graph
            self.report.stage(f"converting to {variant.scheme}")
            made: bytes = graph.convert(optimize=True, float16=variant.scheme == "float16", select_ops=self.select_ops)
            return made
        if variant.recipe or scheme.engine == "litert":
            return self._by_litert(variant)
        if variant.scheme == "float32":
            return self.float_model(variant.equalized)
        return self._by_tensorflow(variant)

    def _by_tensorflow(self, variant: Variant) -> bytes:
        import numpy as np
        import tensorflow as tf
        from tensorflow.lite.python.convert import mlir_quantize

        if variant.scheme == "int16x8":
            # The older quantizer takes the ranges from the calibrator; MLIR's has no 16-bit activations.
            fed = self.calibrator(variant.equalized)
            self.report.stage("quantizing to int16x8")
            float32, int16, int64 = (np.dtype(name).num for name in ("float32", "int16", "int64"))
            return bytes(fed._calibrator.QuantizeModel(float32, float32, False, int16, int64, False, False))
        calibrated = self.calibrated(variant.equalized)
        if variant.range_rule != "min_max":
            calibrated = litert.put_ranges(calibrated, self.ranges(variant.range_rule, variant.equalized))
        if variant.denylisted_ops or variant.denylisted_nodes:
            verification.check_denylists(litegraph.parse(calibrated), variant.denylisted_ops, variant.denylisted_nodes)
        self.report.stage(f"quantizing to {variant.scheme}")
        dtype = tf.as_dtype(variant.asked_io)
        return bytes(
            mlir_quantize(
                calibrated,
                input_data_type=dtype,
                output_data_type=dtype,
                denylisted_ops=list(variant.denylisted_ops) or None,
                denylisted_nodes=list(variant.denylisted_nodes) or None,
            )
        )

    def _by_litert(self, variant: Variant) -> bytes:
        start = self.float_model(variant.equalized)
        ranges = self.ranges(variant.range_rule, variant.equalized) if variant.calibrated else None
        self.report.stage(f"quantizing to {variant.scheme}")
        if variant.recipe:
            return litert.quantize_recipe(start, [(list(names), scheme) for names, scheme in variant.recipe], ranges)
        return litert.quantize(start, variant.scheme, ranges)


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all: whoever finds it takes it as it is."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)


def _opened(work: dict[str, Any], report: Report) -> _Work:
    """Return the work of this process; a warm worker keeps the last one open."""
    found = _kept(json.dumps(work, sort_keys=True))
    found.report = report
    return found


@functools.lru_cache(maxsize=1)
def _kept(work: str) -> _Work:
    return _Work(json.loads(work))


def make_task(report: Report, work: dict[str, Any], variant: dict[str, Any], path: str) -> dict[str, Any]:
    """Make one file; a job's entry.

    Args:
        report: Told of the progress.
        work: What :class:`Maker` says of the model.
        variant: Which file, as :meth:`Variant.to_dict` says it.
        path: Where it goes.

    Returns:
        Its description.
    """
    asked = Variant.from_dict(variant)
    opened = _opened(work, report)
    target = Path(path)
    target.write_bytes(opened.content(asked))
    report.stage("loading the file")
    description = describe(target)
    if not LiteFile.from_description(target, asked.file_scheme, description).foreign_operators:
        _check_that_it_runs(target, asked, opened.signature)
    return description


def halves_task(report: Report, work: dict[str, Any]) -> tuple[Ranges, Ranges]:
    """Calibrate on each half of the samples; a job's entry."""
    return _opened(work, report).halves()


def ranges_task(report: Report, work: dict[str, Any], rule: RangeRule) -> Ranges:
    """Return the ranges that a rule gives; a job's entry."""
    return _opened(work, report).ranges(rule)


def screen_task(report: Report, work: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Look at the channels of the float model's tensors; a job's entry."""
    opened = _opened(work, report)
    model = opened.float_model()
    report.stage("looking at channels")
    spreads = regions.screen(model, opened.samples, opened.layers)
    return [asdict(spread) for spread in spreads], [asdict(region) for region in regions.find(model, spreads)]


def operators_task(report: Report, work: dict[str, Any]) -> list[dict[str, str]]:
    """Return the operators of the float model; a job's entry."""
    opened = _opened(work, report)
    model = opened.float_model()
    graph = litegraph.Graph(litegraph.parse(model))
    layers = litegraph.layers_of(model, opened.layers)
    outputs = [(op.name, graph.name(op.outputs[0])) for op in graph.ops if op.outputs]
    return [asdict(Operator(name, output, layers[output])) for name, output in outputs]


def calibrated_task(report: Report, work: dict[str, Any]) -> tuple[str, str]:
    """Return where the float model and the calibrated one lie; a job's entry."""
    opened = _opened(work, report)
    opened.float_model()
    opened.calibrated()
    return str(opened.path(FLOAT, False)), str(opened.path(CALIBRATED, False))


def _check_that_it_runs(path: Path, variant: Variant, asked: Signature) -> None:
    """Run a finished file once where it will run: TensorFlow writes files that no interpreter takes."""
    if any(spec.shape == UNKNOWN_RANK for spec in asked.inputs):
        return
    try:
        shapes = LiteSession(path).load()
        for spec in asked.outputs:
            if spec.shape != UNKNOWN_RANK and len(shape := shapes.get(spec.name, spec.shape)) != len(spec.shape):
                raise ValueError(f"it answers one sample with {list(shape)} for {spec}")
    except (RuntimeError, ValueError) as error:
        raise ConversionError(
            f"the {variant.scheme} file was made, but LiteRT cannot run it",
            found=str(error).strip().splitlines()[0].rstrip("."),
            wanted="a file that its interpreter loads",
            cure="Try another scheme: --dynamic and --float16 quantize no activations."
            if variant.calibrated
            else "Move what it names out of the model; a lookup table, say, can stay outside.",
        ) from error
