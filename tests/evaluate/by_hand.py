"""What one would write without this package: TensorFlow's converter and LiteRT's interpreter as guides use them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]

SCHEMES = ("float32", "float16", "dynamic", "int8", "int16x8")
"""What TensorFlow's own converter makes."""


def plain_file(model: Any, scheme: str = "float32", io: str = "float32", rows: npt.NDArray[Any] | None = None) -> bytes:
    """Convert a Keras model with ``TFLiteConverter.from_keras_model``; ``rows`` is its representative dataset."""
    import tensorflow as tf

    def representative_dataset() -> Iterator[list[npt.NDArray[Any]]]:
        for position in range(len(rows)):
            yield [rows[position : position + 1]]

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if scheme != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if scheme in ("int8", "int16x8"):
        converter.representative_dataset = representative_dataset
    if scheme == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.as_dtype(io)
    if scheme == "int16x8":
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        ]
    with warnings.catch_warnings():
        # TensorFlow says so of every integer file that was asked for in this, its own guide's, way.
        warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected", UserWarning)
        return bytes(converter.convert())


def interpreter(content: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_content=content, num_threads=1)


def answers(content: bytes, inputs: Arrays, batch: int = 1) -> Arrays:
    """Answer samples through the signature runner, ``batch`` at a time (the graph's own batch size)."""
    runner = interpreter(content).get_signature_runner()
    takes, gives = runner.get_input_details(), runner.get_output_details()
    count = len(next(iter(inputs.values())))
    collected: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in gives}
    for start in range(0, count, batch):
        rows = {name: _stored(array[start : start + batch], takes[name]) for name, array in inputs.items()}
        for name, output in runner(**rows).items():
            collected[name].append(_real(output, gives[name]))
    return {name: np.concatenate(parts) for name, parts in collected.items()}


def tensors(content: bytes, inputs: Arrays) -> Arrays:
    """Return every float tensor of a float file, ``[count, ...]``, as it is when the operators have run one by one."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    running = Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    runner = running.get_signature_runner()
    details = [found for found in running.get_tensor_details() if found["dtype"] is np.float32]
    collected: dict[str, list[npt.NDArray[Any]]] = {found["name"]: [] for found in details}
    for position in range(len(next(iter(inputs.values())))):
        runner(**{name: array[position : position + 1] for name, array in inputs.items()})
        for found in details:
            collected[found["name"]].append(running.get_tensor(found["index"]).copy())
    return {name: np.stack(parts) for name, parts in collected.items()}


def _stored(real: npt.NDArray[Any], details: dict[str, Any]) -> npt.NDArray[Any]:
    scale, zero_point = details["quantization"]
    if scale == 0:
        return real.astype(details["dtype"])
    limits = np.iinfo(details["dtype"])
    return np.clip(np.rint(real.astype("float64") / scale) + zero_point, limits.min, limits.max).astype(
        details["dtype"]
    )


def _real(stored: npt.NDArray[Any], details: dict[str, Any]) -> npt.NDArray[Any]:
    scale, zero_point = details["quantization"]
    return stored if scale == 0 else ((stored.astype("float64") - zero_point) * scale).astype("float32")
