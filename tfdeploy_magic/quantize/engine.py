"""TensorFlow's own quantizer, in a job: every scheme from one graph, opened once and converted to float once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from signal import SIGABRT, SIGSEGV
from types import MappingProxyType
from typing import Any

from tfdeploy_magic.artifacts.models import LiteFile, SavedModelDir
from tfdeploy_magic.artifacts.samples import SampleSet, open_arrays
from tfdeploy_magic.artifacts.schemes import SCHEMES, IoType
from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, Arrays, Signature
from tfdeploy_magic.convert import contract, plain, refusals
from tfdeploy_magic.convert.converter import open_graph
from tfdeploy_magic.convert.describe import describe
from tfdeploy_magic.errors import ConversionCrashed, ConversionError, DataError, JobFailed
from tfdeploy_magic.evaluate.session import LiteSession
from tfdeploy_magic.jobs import Report, Worker

_CRASH_CURES = {
    "calibrating": "Loops (LSTM, GRU) crash TensorFlow's calibrator: build with unroll=True, or use --dynamic.",
}
"""Stage -> the known cure when the process dies there."""


def make_files(
    worker: Worker,
    saved_model: SavedModelDir,
    schemes: Sequence[str],
    folder: Path,
    *,
    io: IoType | None = None,
    calibration: SampleSet | None = None,
    select_ops: bool = False,
    settings: Mapping[str, Any] | None = None,
    layers: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, LiteFile]:
    """Convert a saved model to one .tflite file a scheme, in a worker.

    Args:
        worker: The process that does it.
        saved_model: What a source wrote: a SavedModel, or a float .tflite file.
        schemes: Which; the graph is opened once and converted to float once for all of them.
        folder: Where the files go; they are called "SCHEME.tflite".
        io: The dtype of floating-point inputs and outputs of an int8 file; the scheme's own when None.
        calibration: Real samples; needed by int8 and int16x8.
        select_ops: Leave operations that .tflite has no builtin for to TensorFlow's kernels.
        settings: Settings of TensorFlow's own converter, which then does it all; None for our own route.
        layers: Name scope of a layer -> how a person knows it; errors name layers.

    Returns:
        Scheme -> its file, checked against what was asked.

    Raises:
        DataError: There are fewer calibration samples than one batch of a model with a fixed batch size.
        ConversionError: TensorFlow refused the model, or made something else than was asked.
        ConversionCrashed: The converter died; the cure is named where it is known.
        JobError: It hung or outgrew its memory.
    """
    batch = saved_model.signature.fixed_batch or 1
    if calibration is not None and calibration.count < batch:
        raise DataError(
            f"{calibration.name} cannot calibrate this model",
            found=f"{calibration.count} samples",
            wanted=f"at least {batch}, the batch size the model was built with",
            cure="Give more with --calib and --samples.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    arguments = {
        "saved_model": str(saved_model.path),
        "signature": saved_model.signature.to_dict(),
        "frozen": saved_model.frozen,
        "tags": list(saved_model.tags),
        "select_ops": select_ops,
        "settings": dict(settings) if settings is not None else None,
        "schemes": list(schemes),
        "io": io or SCHEMES["int8"].io,
        "calibration": {name: str(file) for name, file in calibration.files.items()} if calibration else None,
        "folder": str(folder),
    }
    try:
        made = worker.call(f"{__name__}:convert_task", arguments, crash=ConversionCrashed)
    except JobFailed as error:
        raise (refusals.explain(error.message, layers) or error) from error
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
    files = {
        scheme: LiteFile.from_description(Path(row["path"]), scheme, row["description"]) for scheme, row in made.items()
    }
    for scheme, file in files.items():
        contract.check_variables(file)
        if settings is not None:  # what else such a file should hold is known to whoever chose them
            contract.check_operators(file, select_ops=select_ops, custom_ops=bool(settings.get("allow_custom_ops")))
            contract.check_share(file)
            continue
        asked_io = (io if scheme == "int8" else None) or SCHEMES[scheme].io
        contract.check(file, saved_model.signature, io=asked_io, select_ops=select_ops)
    return {scheme: _in_argument_order(file, saved_model.signature) for scheme, file in files.items()}


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


def convert_task(
    report: Report,
    saved_model: str,
    signature: dict[str, Any],
    frozen: bool,
    tags: list[str],
    select_ops: bool,
    settings: dict[str, Any] | None,
    schemes: list[str],
    io: str,
    calibration: dict[str, str] | None,
    folder: str,
) -> dict[str, Any]:
    """Make one file a scheme; a job's entry.

    Args:
        report: Told of the progress.
        saved_model: The folder of a SavedModel, or a .tflite file.
        signature: Its signature, with the graph's tensor names.
        frozen: Whether its weights are constants of its graph.
        tags: The tags of its graph.
        select_ops: Whether TensorFlow's kernels may be left in the file.
        settings: Settings of TensorFlow's own converter; None for our own route.
        schemes: Which schemes.
        io: The dtype of inputs and outputs of the int8 file.
        calibration: Input name -> ``.npy`` file of calibration samples; needed by int8 and int16x8.
        folder: Where the files go.

    Returns:
        Scheme -> path and description of its file.
    """
    target = Path(folder)
    asked = Signature.from_dict(signature)
    report.stage("reading the graph")
    graph = open_graph(Path(saved_model), asked, frozen=frozen, tags=tuple(tags))
    float_model: bytes | None = None
    made = {}
    samples = open_arrays({name: Path(file) for name, file in calibration.items()}) if calibration else None
    for scheme in schemes:
        if settings is not None:
            report.stage("converting with your settings")
            content = plain.convert(graph, settings, samples, report)
        elif scheme in ("float16", "dynamic"):
            report.stage(f"converting to {scheme}")
            content = graph.convert(optimize=True, float16=scheme == "float16", select_ops=select_ops)
        else:
            if float_model is None:
                report.stage("converting to float32")
                float_model = graph.convert(select_ops=select_ops)
            content = float_model
            if scheme != "float32":
                assert samples is not None
                content = _quantize(float_model, scheme, io, samples, asked, report)
        path = target / f"{scheme}.tflite"
        path.write_bytes(content)
        report.stage("loading the file")
        description = describe(path)
        if not LiteFile.from_description(path, scheme, description).foreign_operators:
            _check_that_it_runs(path, scheme, asked)
        made[scheme] = {"path": str(path), "description": description}
    return made


def _check_that_it_runs(path: Path, scheme: str, asked: Signature) -> None:
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
            f"the {scheme} file was made, but LiteRT cannot run it",
            found=str(error).strip().splitlines()[0].rstrip("."),
            wanted="a file that its interpreter loads",
            cure="Try another scheme: --dynamic and --float16 quantize no activations."
            if SCHEMES[scheme].calibrated
            else "Move what it names out of the model; a lookup table, say, can stay outside.",
        ) from error


def _quantize(float_model: bytes, scheme: str, io: str, samples: Arrays, signature: Signature, report: Report) -> bytes:
    """Calibrate and quantize with the two calls that ``TFLiteConverter.convert`` itself makes.

    They are internal to TensorFlow 2.21, which is why the package pins that line.
    """
    import tensorflow as tf
    from tensorflow.lite.python.convert import mlir_quantize
    from tensorflow.lite.python.optimize import calibrator

    count = len(next(iter(samples.values())))
    batch = signature.fixed_batch or 1
    starts = range(0, count - batch + 1, batch)

    def feed() -> Iterator[tuple[str, Arrays]]:
        report.stage("calibrating")
        for start in report.counting(starts, len(starts)):
            yield signature.name, {name: array[start : start + batch] for name, array in samples.items()}

    calibrating = calibrator.Calibrator(calibrator.add_intermediate_tensors(float_model))
    if scheme == "int16x8":
        # The older quantizer takes both steps at once; MLIR's has no 16-bit activations.
        return bytes(
            calibrating.calibrate_and_quantize(
                feed, tf.float32, tf.float32, False, activations_type=tf.int16, bias_type=tf.int64
            )
        )
    calibrated = calibrating.calibrate(feed)
    report.stage("quantizing")
    dtype = tf.as_dtype(io)
    return bytes(mlir_quantize(calibrated, input_data_type=dtype, output_data_type=dtype))
