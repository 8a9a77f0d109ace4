"""TensorFlow's QuantizationDebugger: the error of every quantized tensor, by layer, and the person's own statistics."""

from __future__ import annotations

import csv
import io
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tfdeploy_magic.artifacts.debugging import Histogram, LayerError
from tfdeploy_magic.artifacts.samples import SampleSet
from tfdeploy_magic.artifacts.signature import Signature
from tfdeploy_magic.convert import refusals
from tfdeploy_magic.errors import ConversionCrashed, DataError, JobFailed
from tfdeploy_magic.evaluate.metrics import as_array
from tfdeploy_magic.jobs import Worker, deadline
from tfdeploy_magic.quantization.verification import COLUMNS, debug_task, recorded

Function = Callable[..., Any]
Functions = Mapping[str, Function]

_NONE: Functions = MappingProxyType({})


@dataclass(frozen=True)
class Debugged:
    """What the debugger found.

    Args:
        layers: The verified tensors, in the model's order.
        model_metrics: The person's own statistics of the outputs, by name.
        csv: The text that TensorFlow's ``layer_statistics_dump`` writes, the person's own columns included.
    """

    layers: tuple[LayerError, ...]
    model_metrics: Mapping[str, float]
    csv: str


def debug(
    worker: Worker,
    calibrated: Path,
    float_model: Path,
    samples: SampleSet,
    signature: Signature,
    folder: Path,
    *,
    layers: Mapping[str, str],
    denylisted_ops: Sequence[str] = (),
    denylisted_nodes: Sequence[str] = (),
    fully_quantize: bool = False,
    layer_debug_metrics: Functions = _NONE,
    layer_direct_compare_metrics: Functions = _NONE,
    model_debug_metrics: Functions = _NONE,
    seconds: float,
) -> Debugged:
    """Measure the error that int8 makes in every tensor, each by itself.

    The person's own functions run here, on arrays that the job records, and are averaged over the samples as TensorFlow
    does: a mean that leaves out NaN for tensors, a plain one for the model.

    Args:
        worker: The process that runs the model.
        calibrated: The float .tflite file with the ranges that TensorFlow's calibrator saw.
        float_model: The float .tflite file.
        samples: What to run it on, prepared for the signature.
        signature: Of the model.
        folder: Where recorded arrays pass; nothing is left there.
        layers: Name scope of a layer -> how a person knows it.
        denylisted_ops: Operators to leave in float, "CONV_2D".
        denylisted_nodes: Output tensors of operators to leave in float.
        fully_quantize: Quantize inputs and outputs of the model too.
        layer_debug_metrics: Name -> function of the differences ``float32[...]`` of one tensor and one sample.
        layer_direct_compare_metrics: Name -> function of (float values, ``int8[...]`` values, scale, zero point).
        model_debug_metrics: Name -> function of (float model's outputs, quantized model's outputs), lists of
            ``float32[...]`` in the file's order.
        seconds: How long one call of the person's functions may take.

    Returns:
        The statistics of TensorFlow's QuantizationDebugger, signal-to-noise ratios and histograms.

    Raises:
        NameNotFound: A denylist names nothing in the model.
        DataError: Too few samples, two statistics of one name, or a function that returned no single number.
        UserCodeError: A function of the person raised or hung.
        ConversionError: TensorFlow cannot quantize the model, or it has no tensor to verify.
        ConversionCrashed: The quantizer died.
        JobError: It hung or outgrew its memory.
    """
    _check_names(layer_debug_metrics, layer_direct_compare_metrics, model_debug_metrics)
    if samples.count < (batch := signature.fixed_batch or 1):
        raise DataError(
            f"{samples.name} cannot show the errors of this model",
            found=f"{samples.count} samples",
            wanted=f"at least {batch}, the batch size the model was built with",
            cure="Give more samples.",
        )
    asked = {
        "differences": layer_debug_metrics,
        "values": layer_direct_compare_metrics,
        "answers": model_debug_metrics,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        arguments = {
            "calibrated": str(calibrated),
            "float_model": str(float_model),
            "samples": {name: str(file) for name, file in samples.files.items()},
            "signature": signature.to_dict(),
            "layers": dict(layers),
            "denylisted_ops": list(denylisted_ops),
            "denylisted_nodes": list(denylisted_nodes),
            "fully_quantize": fully_quantize,
            "record": [kind for kind, functions in asked.items() if functions],
            "folder": temporary,
        }
        try:
            made = worker.call(f"{debug_task.__module__}:debug_task", arguments, crash=ConversionCrashed)
        except JobFailed as error:
            raise (refusals.explain(error.message, layers) or error) from error
        tape = Path(temporary)
        own = [_own_statistics(tape, turn, row, asked, seconds) for turn, row in enumerate(made["rows"])]
        model_metrics = {
            name: float(np.mean(_numbers(function, name, _both_answers(tape), seconds)))
            for name, function in model_debug_metrics.items()
        }
    return Debugged(
        tuple(_layer_error(row, custom) for row, custom in zip(made["rows"], own, strict=True)),
        model_metrics,
        _csv(made["rows"], own, [*layer_debug_metrics, *layer_direct_compare_metrics]),
    )


def _check_names(*kinds: Functions) -> None:
    times = Counter([*COLUMNS, *(name for functions in kinds for name in functions)])
    if repeated := [name for name, count in times.items() if count > 1]:
        raise DataError(
            f"the metric {repeated[0]} needs another name",
            found="one statistic of that name already",
            wanted=f"a name that no other of your metrics has, and none of {', '.join(COLUMNS)}",
            cure="Rename it.",
        )


def _own_statistics(
    tape: Path, turn: int, row: Mapping[str, Any], asked: Mapping[str, Functions], seconds: float
) -> dict[str, Any]:
    """Apply the person's functions to what was recorded of one tensor."""
    # Of the types that TensorFlow hands on: with others numpy computes in another precision.
    quantization = np.float32(row["scale"]), np.int32(row["zero_point"])

    def given(kind: str) -> Iterator[tuple[Any, ...]]:
        for arrays in recorded(tape, kind, turn):
            yield (*arrays, *quantization) if kind == "values" else tuple(arrays)

    return {
        name: _mean_without_nan(_numbers(function, name, given(kind), seconds))
        for kind in ("differences", "values")
        for name, function in asked[kind].items()
    }


def _mean_without_nan(numbers: list[Any]) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)  # NaN says so too
        return np.nanmean(numbers)


def _both_answers(tape: Path) -> Iterator[tuple[Any, ...]]:
    for arrays in recorded(tape, "answers", 0):
        yield arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :]


def _numbers(function: Function, name: str, given: Iterable[tuple[Any, ...]], seconds: float) -> list[Any]:
    what = f"the metric {name}"
    return [_number(deadline.call(partial(function, *one), seconds=seconds, what=what), name) for one in given]


def _number(answer: Any, name: str) -> Any:
    value = as_array(answer)
    if value.ndim or value.dtype.kind not in "biuf":
        raise DataError(
            f"the metric {name} is of no use",
            found=f"{value.dtype.name}{list(value.shape)}" if value.ndim else repr(answer),
            wanted="one number for each sample",
            cure="Reduce what it returns, with np.mean say.",
        )
    return value[()]


def _layer_error(row: Mapping[str, Any], custom: Mapping[str, Any]) -> LayerError:
    fields = {name: value for name, value in row.items() if name not in ("text", "histogram")}
    spread = row["histogram"]
    return LayerError(
        **fields,
        custom={name: float(value) for name, value in custom.items()},
        histogram=Histogram(tuple(spread["edges"]), tuple(spread["counts"]), spread["low"], spread["high"]),
    )


def _csv(rows: Iterable[Mapping[str, Any]], own: Iterable[Mapping[str, Any]], names: Sequence[str]) -> str:
    before = COLUMNS.index("scale")
    file = io.StringIO()
    writer = csv.DictWriter(file, [*COLUMNS[:before], *names, *COLUMNS[before:]])
    writer.writeheader()
    writer.writerows({**row["text"], **custom} for row, custom in zip(rows, own, strict=True))
    return file.getvalue()
