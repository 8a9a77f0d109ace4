"""What a .tflite file says of itself, read off its flatbuffer in a job without running it."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, Signature, TensorSpec

MAXIMUM_STEPS = 100_000
"""Operators that touch variables, followed before a file whose subgraphs call each other without end is refused."""

_BOUNDARIES = ("QUANTIZE", "DEQUANTIZE")
"""They hand tensors from one form to the other; what they put out is no work done in either."""


def describe(path: Path) -> dict[str, Any]:
    """Return the fields that :meth:`LiteFile.from_description` takes, as plain data.

    Args:
        path: A .tflite file from anywhere: every index in it is checked, and nothing is run.

    Raises:
        ValueError: It is not a whole .tflite file.
    """
    content = path.read_bytes()
    try:
        fields = _fields(_Reader(content))
    except ValueError as error:
        raise ValueError(f"{path.name} is not a whole .tflite file: {error}") from error
    # The flatbuffers package checks nothing itself: these are what it stumbles into.
    except (struct.error, TypeError, AttributeError, LookupError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a whole .tflite file: an offset in it leads nowhere") from error
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), **fields}


class _Reader:
    """Checked access to the tables of a flatbuffer.

    Args:
        content: The whole file.
    """

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        if not schema.Model.ModelBufferHasIdentifier(content, 0):
            raise ValueError("it does not begin as one")
        self.schema = schema
        self.model = schema.Model.GetRootAs(content, 0)
        self._content = content
        # An element of a vector takes four bytes of a well-formed file, so it can hold no more of them than this.
        self._left = len(content) // 4

    def tables(self, table: Any, field: str) -> list[Any]:
        """Return every element of a vector of tables."""
        count = getattr(table, f"{field}Length")()
        self._left -= count
        if self._left < 0:
            raise ValueError(f"it is too short for {count} {field}")
        return [getattr(table, field)(position) for position in range(count)]

    def indices(self, table: Any, field: str) -> list[int]:
        """Return a vector of integers."""
        return [] if getattr(table, f"{field}IsNone")() else getattr(table, f"{field}AsNumpy")().tolist()

    def data(self, buffer: Any) -> npt.NDArray[np.uint8]:
        """Return the bytes of a buffer; above 2 GB they lie behind the flatbuffer, at an offset from its start."""
        if buffer.Offset() > 1:
            return np.frombuffer(self._content, np.uint8, buffer.Size(), buffer.Offset())
        return np.empty(0, np.uint8) if buffer.DataIsNone() else buffer.DataAsNumpy()


@dataclass(frozen=True)
class _Subgraph:
    """A subgraph's parts: its operators are (name, inputs, outputs, table)."""

    inputs: list[int]
    outputs: list[int]
    tensors: list[Any]
    operators: list[tuple[str, list[int], list[int], Any]]


def _fields(reader: _Reader) -> dict[str, Any]:
    schema, model = reader.schema, reader.model
    buffers = reader.tables(model, "Buffers")
    codes = [_operator_name(schema, code) for code in reader.tables(model, "OperatorCodes")]
    subgraphs = [_subgraph(reader, table, codes) for table in reader.tables(model, "Subgraphs")]
    definitions = reader.tables(model, "SignatureDefs")
    metadata = {
        _text(entry.Name(), "a metadata buffer"): reader.data(_at(buffers, entry.Buffer(), "buffer"))
        for entry in reader.tables(model, "Metadata")
    }
    version = metadata.get("min_runtime_version")
    return {
        "signatures": [_signature(reader, table, subgraphs).to_dict() for table in definitions],
        **_counts(reader, subgraphs, buffers),
        "uninitialised_variables": _uninitialised(schema, subgraphs, {0, *(d.SubgraphIndex() for d in definitions)}),
        "subgraphs": len(subgraphs),
        "version": model.Version(),
        "description": (model.Description() or b"").decode(),
        "metadata": list(metadata),
        "min_runtime_version": None if version is None else version.tobytes().rstrip(b"\0").decode(),
    }


def _counts(reader: _Reader, subgraphs: list[_Subgraph], buffers: list[Any]) -> dict[str, dict[str, int]]:
    """Count what the subgraphs hold."""
    operators: Counter[str] = Counter()
    tensor_types: Counter[str] = Counter()
    activations: Counter[str] = Counter()
    float_operators: Counter[str] = Counter()
    constants: dict[int, tuple[str, int]] = {}
    for subgraph in subgraphs:
        dtypes = [_dtype(reader.schema, tensor) for tensor in subgraph.tensors]
        tensor_types.update(dtypes)
        for tensor, dtype in zip(subgraph.tensors, dtypes, strict=True):
            # Tensors with equal values share a buffer.
            constants[tensor.Buffer()] = dtype, reader.data(_at(buffers, tensor.Buffer(), "buffer")).nbytes
        for name, _, outputs, _ in subgraph.operators:
            operators[name] += 1
            for index in outputs if name not in _BOUNDARIES else ():
                dtype, quantization = _at(dtypes, index, "tensor"), subgraph.tensors[index].Quantization()
                # Integers without a scale are shapes and indices, which no scheme quantizes.
                if "float" in dtype or (quantization is not None and quantization.ScaleLength()):
                    activations[dtype] += 1
                    float_operators[name] += "float" in dtype
    weights: Counter[str] = Counter()
    for dtype, size in constants.values():
        weights[dtype] += size
    counts = {
        "operators": operators,
        "tensor_types": tensor_types,
        "activations": activations,
        "float_operators": float_operators,
        "weights": weights,
    }
    return {field: dict((+counter).most_common()) for field, counter in counts.items()}


def _subgraph(reader: _Reader, table: Any, codes: list[str]) -> _Subgraph:
    tensors = reader.tables(table, "Tensors")

    def tensor_indices(owner: Any, field: str) -> list[int]:
        found = reader.indices(owner, field)
        for index in found:
            if index != -1:  # an input that an operator does without
                _at(tensors, index, "tensor")
        return found

    return _Subgraph(
        tensor_indices(table, "Inputs"),
        tensor_indices(table, "Outputs"),
        tensors,
        [
            (
                _at(codes, operator.OpcodeIndex(), "operator code"),
                tensor_indices(operator, "Inputs"),
                tensor_indices(operator, "Outputs"),
                operator,
            )
            for operator in reader.tables(table, "Operators")
        ],
    )


def _signature(reader: _Reader, definition: Any, subgraphs: list[_Subgraph]) -> Signature:
    tensors = _at(subgraphs, definition.SubgraphIndex(), "subgraph").tensors

    def specs(field: str) -> tuple[TensorSpec, ...]:
        return tuple(
            _tensor_spec(
                reader.schema,
                _text(row.Name(), "an input" if field == "Inputs" else "an output"),
                _at(tensors, row.TensorIndex(), "tensor"),
            )
            for row in reader.tables(definition, field)
        )

    return Signature(_text(definition.SignatureKey(), "a signature"), specs("Inputs"), specs("Outputs"))


def _tensor_spec(schema: Any, name: str, tensor: Any) -> TensorSpec:
    sizes = tensor.ShapeSignatureAsNumpy() if tensor.ShapeSignatureLength() else tensor.ShapeAsNumpy()
    shape: tuple[int | None, ...] = (
        tuple(None if size < 0 else int(size) for size in np.atleast_1d(sizes)) if tensor.ShapeLength() else ()
    )
    if not shape and not tensor.HasRank():
        shape = UNKNOWN_RANK
    quantization = tensor.Quantization()
    quantized = quantization is not None and quantization.ScaleLength() == quantization.ZeroPointLength() == 1
    return TensorSpec(
        name,
        shape,
        _dtype(schema, tensor),
        float(quantization.Scale(0)) if quantized else 0.0,
        int(quantization.ZeroPoint(0)) if quantized else 0,
        (tensor.Name() or b"").decode(),
    )


def _uninitialised(schema: Any, subgraphs: list[_Subgraph], entries: set[int]) -> list[str]:
    """Return the variables that a first call of the model reads before anything has written them."""
    found: dict[str, None] = {}
    for entry in sorted(entries):
        call = _FirstCall(schema, subgraphs)
        call.follow(entry)
        found.update(call.uninitialised)
    return list(found)


class _FirstCall:
    """Follows variables through one call of a model, in the order in which its operators run.

    Args:
        schema: The generated reader.
        subgraphs: All of them.
    """

    def __init__(self, schema: Any, subgraphs: list[_Subgraph]) -> None:
        self._schema = schema
        self._subgraphs = subgraphs
        self._written: set[str] = set()
        self._steps = 0
        self.uninitialised: dict[str, None] = {}

    def follow(self, position: int, given: Sequence[str | None] = ()) -> list[str | None]:
        """Follow one subgraph: either branch may be taken, and a loop may not run at all.

        Args:
            position: Which.
            given: The variable that each of its inputs stands for, or None.

        Returns:
            The same for its outputs.
        """
        subgraph = _at(self._subgraphs, position, "subgraph")
        variables = dict(zip(subgraph.inputs, given, strict=False))
        for name, inputs, outputs, table in subgraph.operators:
            if name not in ("VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE", "IF", "WHILE"):
                continue
            self._steps += 1
            if self._steps > MAXIMUM_STEPS:
                raise ValueError("its subgraphs call each other without end")
            held = [variables.get(index) for index in inputs]
            options = self._schema.BuiltinOptionsCreator(table.BuiltinOptionsType(), table.BuiltinOptions())
            if name == "VAR_HANDLE":
                variables[outputs[0]] = b"/".join(filter(None, (options.container, options.sharedName))).decode()
            elif name == "CALL_ONCE":
                self.follow(options.initSubgraphIndex)
            elif name == "IF":
                results, written = self._perhaps(options.thenSubgraphIndex, held[1:])
                _, otherwise = self._perhaps(options.elseSubgraphIndex, held[1:])
                self._written = written & otherwise
                variables.update(zip(outputs, results, strict=False))
            elif name == "WHILE":
                self.follow(options.condSubgraphIndex, held)
                results, _ = self._perhaps(options.bodySubgraphIndex, held)
                variables.update(zip(outputs, results, strict=False))
            elif held[0] is None:
                continue
            elif name == "ASSIGN_VARIABLE":
                self._written.add(held[0])
            elif held[0] not in self._written:
                self.uninitialised[held[0]] = None
        return [variables.get(index) for index in subgraph.outputs]

    def _perhaps(self, position: int, given: Sequence[str | None]) -> tuple[list[str | None], set[str]]:
        """Follow a subgraph that may not run; what it would have written is returned beside its outputs."""
        before, self._written = self._written, set(self._written)
        outputs = self.follow(position, given)
        written, self._written = self._written, before
        return outputs, written


def _at(items: Sequence[Any], index: int, what: str) -> Any:
    if not 0 <= index < len(items):
        raise ValueError(f"it names {what} {index}, but holds {len(items)}")
    return items[index]


def _text(value: bytes | None, what: str) -> str:
    if value is None:
        raise ValueError(f"the name of {what} is missing")
    return value.decode()


def _dtype(schema: Any, tensor: Any) -> str:
    return _name(schema.TensorType, tensor.Type()).lower()


def _operator_name(schema: Any, code: Any) -> str:
    # Operators above 127 did not fit the deprecated field; the larger of the two is the truth.
    name = _name(schema.BuiltinOperator, max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))
    return f"CUSTOM {_text(code.CustomCode(), 'a custom operator')}" if name == "CUSTOM" else name


def _name(enumeration: type, code: int) -> str:
    try:
        return _names(enumeration)[code]
    except KeyError:
        raise ValueError(f"{enumeration.__name__} {code} is not known to the installed LiteRT") from None


@cache
def _names(enumeration: type) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if isinstance(value, int)}
