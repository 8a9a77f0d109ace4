"""What TensorFlow's converter says when it refuses a model, as an error that names operation, layer and cure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from tfdeploy_magic.convert.op_support import CURES, MOVE_OUT, NEVER, REDUCED, TYPED, UNROLL
from tfdeploy_magic.convert.preflight import in_words, locate
from tfdeploy_magic.errors import ConversionError

_ELEMENTS = "a list (tf.TensorArray) whose elements have no known shape"
_ELEMENT_SHAPE = "Give tf.TensorArray an element_shape and a size, or fix the shapes of the inputs with --input-spec."

_KNOWN = (
    (
        r"'tf\.TensorListReserve' op requires element_shape to be static",
        "a loop over a batch of unknown size (LSTM, GRU or another RNN layer)",
        UNROLL,
    ),
    (r"'tf\.TensorListReserve' op requires element_shape to be 1D tensor", _ELEMENTS, _ELEMENT_SHAPE),
    (r"Lowering tensor list ops is failed", _ELEMENTS, _ELEMENT_SHAPE),
    (
        r"Max and min for dynamic tensors should be recorded during calibration",
        "an integer input or a tensor that calibration saw no range for",
        "int16x8 cannot quantize this model: use --int8 or --dynamic.",
    ),
    (
        r"Quantization to (\S+)-bit not yet supported for op: '(\w+)'",
        r"\2, which TensorFlow cannot quantize to \1 bits",
        "Use another scheme: --dynamic and --float16 quantize no activations.",
    ),
    # Functionalizing turns every Case into an If of an integer, and then says so.
    (
        r"Inconsistent values for attr 'Tcond'|Unable to determine predicate for merge node",
        "a choice between branches by a number (tf.switch_case)",
        NEVER["StatelessCase"],
    ),
)
"""What TensorFlow says, what it means, and the cure."""

_MLIR_DTYPES = {
    "f64": "float64",
    "f16": "float16",
    "bf16": "bfloat16",
    "i32": "int32",
    "i64": "int64",
    "ui8": "uint8",
    "complex<f32>": "complex64",
    "complex<f64>": "complex128",
}


def explain(message: str, layers: Mapping[str, str]) -> ConversionError | None:
    """Say what a refusal means.

    Args:
        message: The text of TensorFlow's ``ConverterError``.
        layers: Name scope of a layer in node names -> how a person knows it, "dense_1 (Dense)".

    Returns:
        The error to raise; None when the text is not one we know.
    """
    # Those with a cure of their own first: one of them in half precision drags a dozen others into the list.
    operations = sorted(dict.fromkeys(_operations(message)), key=lambda operation: operation not in CURES)
    if operations:
        nodes = {operation: _nodes(message, operation) for operation in operations}
        places = locate([node for found in nodes.values() for node in found], layers)
        told, cures = [], []
        for operation in operations:
            dtype, cure = _dtype_and_cure(message, operation)
            where = list(dict.fromkeys(places[node] for node in nodes[operation]))[:3]
            told.append(
                f"tf.{operation}" + (f" of {dtype}" if dtype else "") + (f" in {in_words(where)}" if where else "")
            )
            cures.append(cure)
        more = [f"{len(told) - 6} more"] if len(told) > 6 else []
        return _refused(
            f"the operation{'s' if len(told) > 1 else ''} {in_words([*told[:6], *more])}, "
            "which .tflite has no builtin for",
            " ".join(list(dict.fromkeys(cures))[:3]),
        )
    for pattern, meaning, cure in _KNOWN:
        if (match := re.search(pattern, message)) is not None:
            located = re.search(r"loc\((.*)\): 'tf\.TensorList\w+' op requires", message)
            nodes_of_it = _names(located[1])[-1:] if located else []
            return _refused(", in ".join([match.expand(meaning), *locate(nodes_of_it, layers).values()]), cure)
    return None


def _operations(message: str) -> Iterator[str]:
    """Yield every operation that the message lists as unsupported."""
    for listed in re.findall(r"^(?:TF Select|Custom) ops: (.+)$", message, re.MULTILINE):
        yield from (name for name in re.split(r",\s*", listed.strip()) if name)
    yield from re.findall(r"'tf\.(\w+)' op is neither a custom op nor a flex op", message)


def _nodes(message: str, operation: str) -> list[str]:
    """Return the nodes that the message says an operation came from."""
    located = re.findall(rf"error: loc\((.*)\): 'tf\.{operation}' op is neither", message)
    return [names[-1] for names in map(_names, located) if names]


def _names(location: str) -> list[str]:
    """Read the node names of an MLIR location, such as ``callsite(fused["Tan:", "while/Tan@body"] at fused[...])``."""
    first = location.removeprefix("callsite(").partition(" at ")[0]
    return [name.partition("@")[0] for name in re.findall(r'"([^"]+)"', first) if not name.endswith(":")]


def _dtype_and_cure(message: str, operation: str) -> tuple[str, str]:
    """Return the dtype that .tflite does not have an operation in, or nothing, and what to do about it."""
    if operation in CURES:
        return "", CURES[operation]
    for types in re.findall(rf"^\ttf\.{operation}\((.*?)\) ->", message, re.MULTILINE):
        for written, dtype in _MLIR_DTYPES.items():
            cure = TYPED.get((operation, dtype)) or REDUCED.get(dtype)
            if cure is not None and re.search(rf"[<x]{re.escape(written)}>", types):
                return dtype, cure
    return "", MOVE_OUT


def _refused(found: str, cure: str) -> ConversionError:
    return ConversionError(
        "TensorFlow cannot convert this model",
        found=found,
        wanted="a model whose every operation .tflite can hold",
        cure=cure,
    )
