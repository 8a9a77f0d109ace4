"""TensorFlow's own quantizer, in a job: every scheme from one graph, opened once and converted to float once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from signal import SIGABRT, SIGSEGV
from types import MappingProxyType
from typing import Any

from tfdeploy_magic.artifacts.models import LiteFile, SavedModelDir
from tfdeploy_magic.artifacts.samples import SampleSet, open_arrays
from tfdeploy_magic.artifacts.signature import Arrays, Signature
from tfdeploy_magic.convert import contract
from tfdeploy_magic.convert.converter import FrozenGraph
from tfdeploy_magic.convert.describe import describe
from tfdeploy_magic.errors import ConversionCrashed, ConversionError, DataError, JobFailed
from tfdeploy_magic.evaluate.session import LiteSession
from tfdeploy_magic.jobs import Report, Worker
from tfdeploy_magic.quantize.schemes import SCHEMES, IoType

_KNOWN_REFUSALS = (
    (
        r"'tf\.TensorListReserve' op requires element_shape to be static",
        "a loop over a batch of unknown size (LSTM, GRU or another RNN layer)",
        "Build the layer with unroll=True, or the model with keras.Input(batch_size=1, ...).",
    ),
    (
        r"'(tf\.\w+)' op is neither a custom op nor a flex op",
        r"the operation \1, which .tflite has no builtin for",
        "Replace it in the model, or move it out: into preprocessing or postprocessing.",
    ),
    (
        r"Max and min for dynamic tensors should be recorded during calibration",
        "an integer input or a tensor that calibration saw no range for",
        "int16x8 cannot quantize this model: use --int8 or --dynamic.",
    ),
)
"""What TensorFlow says, what it means, and the cure."""

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
) -> dict[str, LiteFile]:
    """Convert a frozen model to one .tflite file a scheme, in a worker.

    Args:
        worker: The process that does it.
        saved_model: What ``TracedModel.save`` wrote.
        schemes: Which; the graph is opened once and converted to float once for all of them.
        folder: Where the files go; they are called "SCHEME.tflite".
        io: The dtype of floating-point inputs and outputs of an int8 file; the scheme's own when None.
        calibration: Real samples; needed by int8 and int16x8.

    Returns:
        Scheme -> its file, checked against what was asked.

    Raises:
        DataError: There are fewer calibration samples than one batch of a model with a fixed batch size.
        ConversionError: TensorFlow refused the model, or made something else than was asked.
        ConversionCrashed: The converter died; the cure is named where it is known.
        JobError: It hung or outgrew its memory.
    """
    batch = saved_model.signature.inputs[0].shape[0] or 1
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
        "schemes": list(schemes),
        "io": io or SCHEMES["int8"].io,
        "calibration": {name: str(file) for name, file in calibration.files.items()} if calibration else None,
        "folder": str(folder),
    }
    try:
        made = worker.call(f"{__name__}:convert_task", arguments, crash=ConversionCrashed)
    except JobFailed as error:
        raise _explained(error) from error
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
        asked_io = (io if scheme == "int8" else None) or SCHEMES[scheme].io
        contract.check(file, saved_model.signature, io=asked_io)
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


def _explained(error: JobFailed) -> ConversionError | JobFailed:
    for pattern, meaning, cure in _KNOWN_REFUSALS:
        if match := re.search(pattern, error.message):
            return ConversionError(
                "TensorFlow cannot convert this model",
                found=match.expand(meaning),
                wanted="a model whose every operation .tflite can hold",
                cure=cure,
            )
    return error


def convert_task(
    report: Report,
    saved_model: str,
    signature: dict[str, Any],
    schemes: list[str],
    io: str,
    calibration: dict[str, str] | None,
    folder: str,
) -> dict[str, Any]:
    """Make one file a scheme; a job's entry.

    Args:
        report: Told of the progress.
        saved_model: The folder ``TracedModel.save`` wrote.
        signature: Its signature, with the graph's tensor names.
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
    graph = FrozenGraph.open(Path(saved_model), asked)
    float_model: bytes | None = None
    made = {}
    for scheme in schemes:
        if scheme in ("float16", "dynamic"):
            report.stage(f"converting to {scheme}")
            content = graph.convert(optimize=True, float16=scheme == "float16")
        else:
            if float_model is None:
                report.stage("converting to float32")
                float_model = graph.convert()
            content = float_model
            if scheme != "float32":
                assert calibration is not None
                samples = open_arrays({name: Path(file) for name, file in calibration.items()})
                content = _quantize(float_model, scheme, io, samples, asked, report)
        path = target / f"{scheme}.tflite"
        path.write_bytes(content)
        report.stage("loading the file")
        _check_that_it_loads(path, scheme)
        made[scheme] = {"path": str(path), "description": describe(path)}
    return made


def _check_that_it_loads(path: Path, scheme: str) -> None:
    """Load a finished file where it will run: TensorFlow's quantizers write files that no interpreter takes."""
    try:
        LiteSession(path).load()
    except (RuntimeError, ValueError) as error:
        raise ConversionError(
            f"the {scheme} file was made, but LiteRT cannot run it",
            found=str(error).strip().splitlines()[0].rstrip("."),
            wanted="a file that its interpreter loads",
            cure="Try another scheme: --dynamic and --float16 quantize no activations.",
        ) from error


def _quantize(float_model: bytes, scheme: str, io: str, samples: Arrays, signature: Signature, report: Report) -> bytes:
    """Calibrate and quantize with the two calls that ``TFLiteConverter.convert`` itself makes.

    They are internal to TensorFlow 2.21, which is why the package pins that line.
    """
    import tensorflow as tf
    from tensorflow.lite.python.convert import mlir_quantize
    from tensorflow.lite.python.optimize import calibrator

    count = len(next(iter(samples.values())))
    batch = signature.inputs[0].shape[0] or 1
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
