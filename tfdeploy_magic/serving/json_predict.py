"""Predict in JSON: a request to arrays, and arrays to an answer, by the rules of TensorFlow Serving's json_tensor.cc.

Most bodies are numbers in lists. simdjson reads those straight into arrays, provided that the whole body is built
just so; everything else, and all that is wrong, goes the exact way.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from tfdeploy_magic.artifacts.signature import DEFAULT_SIGNATURE, Arrays
from tfdeploy_magic.serving.calls import Call
from tfdeploy_magic.serving.json_documents import (
    MOST_DIMENSIONS,
    Kind,
    all_finite,
    is_base64,
    parse,
    signature_name,
    value_text,
    write_answer,
    write_json,
    write_numbers,
)
from tfdeploy_magic.serving.status import Refusal, invalid

Array = npt.NDArray[Any]
SignatureDef = Any
"""``tensorflow.SignatureDef`` of meta_graph.proto."""


class Codec:
    """The JSON of one loaded version, with what can be known of its signatures beforehand.

    Args:
        signatures: Key -> ``SignatureDef``.
    """

    def __init__(self, signatures: Mapping[str, SignatureDef]) -> None:
        self._signatures = signatures
        self._short = _Short.of(signatures)

    def parse(self, body: bytes) -> tuple[Call, bool]:
        """Read the body of a request; as :func:`parse_predict`."""
        if self._short is not None and (call := self._short.parse(body)) is not None:
            return call, True
        return parse_predict(body, self._signatures)

    def write(self, answers: Arrays, signature: str, row: bool) -> bytes:
        """Write an answer; as :func:`write_predict`."""
        if row and self._short is not None and (written := self._short.write(answers, signature)) is not None:
            return written
        return write_predict(answers, self._signatures[signature], row)


class _Short:
    """A few numbers in, a few out, by row: what a busy small model is asked all the time.

    simdjson lets other threads run while it parses, which costs more than parsing something so short.
    """

    LONGEST = 300
    """Bytes; a number of 309 digits, which RapidJSON refuses, does not fit in."""

    _SKELETON = b'{"instances":}'
    _NUMBERS = b"0123456789+-.,[] "
    _OVER_FLOAT32 = re.compile(rb"\d{38}")

    def __init__(self, alias: str, dtype: Any, outputs: tuple[str, ...]) -> None:
        self._alias, self._dtype, self._outputs = alias, dtype, outputs

    @classmethod
    def of(cls, signatures: Mapping[str, SignatureDef]) -> _Short | None:
        """Return it for a default signature of one float input; None where that is another."""
        signature = signatures.get(DEFAULT_SIGNATURE)
        if signature is None or len(signature.inputs) != 1:
            return None
        ((alias, info),) = signature.inputs.items()
        kind = Kind.of(info.dtype)
        if kind.name not in ("float", "double"):
            return None
        return cls(alias, np.float32 if kind.name == "float" else np.float64, tuple(signature.outputs))

    def parse(self, body: bytes) -> Call | None:
        """Read nothing but rows of plain numbers; None where it is anything else."""
        if len(body) > self.LONGEST or body.translate(None, self._NUMBERS) != self._SKELETON:
            return None
        if self._OVER_FLOAT32.search(body):
            return None
        try:
            array = np.array(orjson.loads(body)["instances"], self._dtype)
        except (ValueError, TypeError, LookupError):
            return None
        if not array.ndim or not array.size:
            return None
        return Call(DEFAULT_SIGNATURE, {self._alias: array}, self._outputs)

    def write(self, answers: Arrays, signature: str) -> bytes | None:
        """Write one output of finite floats; None where it is anything else."""
        if len(answers) != 1 or signature != DEFAULT_SIGNATURE:
            return None
        (array,) = answers.values()
        if not array.ndim or array.dtype.char not in "fd":
            return None
        try:
            written = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
        except orjson.JSONEncodeError:  # not in one piece
            return None
        return None if b"null" in written else write_answer("predictions", written)


def parse_predict(body: bytes, signatures: Mapping[str, SignatureDef]) -> tuple[Call, bool]:
    """Read the body of a request to predict.

    Args:
        body: JSON with ``instances`` (one entry per example) or ``inputs`` (one tensor per input).
        signatures: Key -> ``SignatureDef``.

    Returns:
        The call, for all outputs of the signature, and whether it came in rows (``instances``).

    Raises:
        Refusal: In TensorFlow Serving's words.
    """
    return _quick(body, signatures) or _exact(body, signatures)


def write_predict(answers: Arrays, signature: SignatureDef, row: bool) -> bytes:
    """Write the answer to a request to predict.

    Args:
        answers: Alias of each output -> its array; strings are ``object`` arrays of bytes.
        signature: The ``SignatureDef`` that answered.
        row: Whether the request came in rows: one prediction per example, an object where there are several outputs.

    Raises:
        Refusal: An output has no batch dimension or another batch size than the rest, or is of a dtype that
            TensorFlow Serving does not write.
    """
    if not answers:
        raise invalid("Cannot convert empty tensor map to JSON")
    if row:
        _check_batch(answers)
    for alias in answers:
        kind = Kind.of(signature.outputs[alias].dtype)
        if not kind.types:
            raise invalid(f"Failed to write JSON value for tensor type: {kind.name}")
    if len(answers) == 1:
        ((alias, array),) = answers.items()
        content = _values(alias, array)
    elif row:
        columns = zip(*(_cells(alias, array) for alias, array in answers.items()), strict=True)
        content = [dict(zip(answers, cells, strict=True)) for cells in columns]
    else:
        content = {alias: _values(alias, array) for alias, array in answers.items()}
    return write_answer("predictions" if row else "outputs", write_json(content))


def _check_batch(answers: Arrays) -> None:
    batch = None
    for alias, array in answers.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {alias} has no shape information ")
        if batch is not None and len(array) != batch:
            raise invalid(f"Tensor name: {alias} has inconsistent batch size: {len(array)} expecting: {batch}")
        batch = len(array)


def _values(alias: str, array: Array) -> Any:
    return _strings(alias, array) if array.dtype == object else orjson.Fragment(write_numbers(array))


def _cells(alias: str, array: Array) -> list[Any]:
    """Return an output row by row, as orjson takes it."""
    if array.dtype == object:
        strings: list[Any] = _strings(alias, array)
        return strings
    if all_finite(array):
        return list(np.ascontiguousarray(array))
    return [orjson.Fragment(write_numbers(np.asarray(part))) for part in array]


def _strings(alias: str, array: Array) -> Any:
    """Bytes of an alias that ends in ``_bytes`` become base64, all others text: invalid UTF-8 is replaced in that."""
    written = np.empty(array.size, object)
    if alias.endswith("_bytes"):
        written[:] = [{"b64": base64.b64encode(value).decode()} for value in array.flat]
    else:
        written[:] = [value.decode("utf-8", "replace") for value in array.flat]
    return written.reshape(array.shape).tolist()


# The exact way.


def _exact(body: bytes, signatures: Mapping[str, SignatureDef]) -> tuple[Call, bool]:
    document = parse(body)
    named = signature_name(document)
    name = named or DEFAULT_SIGNATURE
    if name not in signatures:
        raise invalid(f'Serving signature name: "{name}" not found in signature def')
    kinds = {alias: Kind.of(info.dtype) for alias, info in signatures[name].inputs.items()}
    if not kinds:
        raise invalid(f"Failed to get input map for signature: {named or 'DEFAULT'}")
    row = _is_row(document)
    inputs = _from_rows(document["instances"], kinds) if row else _from_columns(document["inputs"], kinds)
    return Call(name, inputs, tuple(signatures[name].outputs)), row


def _is_row(document: dict[str, Any]) -> bool:
    if "instances" not in document:
        if "inputs" not in document:
            raise invalid("Missing 'inputs' or 'instances' key")
        return False
    found = document["instances"]
    if "inputs" in document:
        wrong = "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist "
    elif not isinstance(found, list):
        wrong = "Expecting 'instances' to be an list/array"
    elif not found:
        wrong = "No values in 'instances' array"
    else:
        return True
    raise invalid(f"JSON Value: {value_text(document)} {wrong}")


def _from_columns(value: Any, kinds: dict[str, Kind]) -> Arrays:
    if not isinstance(value, dict) or is_base64(value):
        if len(kinds) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per"
                " tensorinfo_map"
            )
        return {alias: kind.tensor(value, alias) for alias, kind in kinds.items()}
    inputs = {}
    for alias in sorted(kinds):
        if alias not in value:
            raise invalid(f"Missing named input: {alias} in 'inputs' object.")
        inputs[alias] = kinds[alias].tensor(value[alias], alias)
    return inputs


def _from_rows(rows: list[Any], kinds: dict[str, Kind]) -> Arrays:
    named = _is_named(rows[0])
    if not named and len(kinds) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per"
            " tensorinfo_map"
        )
    columns = _columns(rows, kinds) if named else dict.fromkeys(kinds, rows)
    whole = {alias: kinds[alias].whole(column) for alias, column in columns.items()}
    done = {alias: array for alias, array in whole.items() if array is not None}
    return done if len(done) == len(kinds) else _one_by_one(rows, kinds, named)


def _is_named(row: Any) -> bool:
    return isinstance(row, dict) and not is_base64(row)


def _columns(rows: list[Any], kinds: dict[str, Kind]) -> dict[str, list[Any]]:
    if any(not isinstance(row, dict) or row.keys() != kinds.keys() for row in rows):
        return {}
    return {alias: [row[alias] for row in rows] for alias in kinds}


def _one_by_one(rows: list[Any], kinds: dict[str, Kind], named: bool) -> Arrays:
    """Read rows in their order, so that the first that is wrong is the one that is named."""
    done: dict[str, list[Array]] = {alias: [] for alias in kinds}
    for place, row in enumerate(rows):
        if _is_named(row) != named:
            found, wanted = ("list", "object") if named else ("object", "value/list")
            raise invalid(f"Expecting {wanted} but got {found} at item {place} of input list")
        for alias, value in row.items() if named else ((next(iter(kinds)), row),):
            try:
                _add(done, alias, value, kinds)
            except Refusal as refusal:
                key = f" key: {alias}" if named else ""
                raise invalid(
                    f"Failed to process element: {place}{key} of 'instances' list. Error: {refusal}"
                ) from None
        if named and row.keys() != kinds.keys():
            raise invalid(
                f"Failed to process element: {place} of 'instances' list. JSON object: {value_text(row)} keys must be"
                f" equal to: {','.join(sorted(kinds))}"
            )
    return {alias: np.stack(arrays) for alias, arrays in done.items()}


def _add(done: dict[str, list[Array]], alias: str, value: Any, kinds: dict[str, Kind]) -> None:
    if alias not in kinds:
        raise invalid(f"JSON object: does not have named input: {alias}")
    array = kinds[alias].tensor(value, alias)
    first = done[alias][0] if done[alias] else array
    if array.size != first.size:
        raise invalid(f"Expecting tensor size: {first.size} but got: {array.size}")
    if array.shape != first.shape:
        raise invalid(f"Expecting shape {_shape(first)} but got: {_shape(array)}")
    done[alias].append(array)


def _shape(array: Array) -> str:
    return f"[{','.join(map(str, array.shape))}]"


# The quick way. It takes nothing that the exact way refuses: what it is not sure of, it leaves.

_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{},"\\'))
_EXPONENT = re.compile(rb"e\+?\d\d\d")
_CAPITAL_EXPONENT = re.compile(rb"E\+?\d\d\d")
_LONGEST_KEPT = 1 << 24
_BUFFERS = {"f": ("d", np.dtype(np.float64)), "i": ("i", np.dtype(np.int64)), "u": ("u", np.dtype(np.uint64))}
_threads = threading.local()


def _quick(body: bytes, signatures: Mapping[str, SignatureDef]) -> tuple[Call, bool] | None:
    if _may_be_too_big(body):
        return None
    try:
        return _from_simdjson(_parser(body).parse(body), body, signatures)
    except RuntimeError:
        _threads.parser = simdjson.Parser()
    except (ValueError, TypeError, LookupError, OverflowError):
        pass  # simdjson refuses the body or finds another type: the exact way says what is wrong, if anything
    return None


def _may_be_too_big(body: bytes) -> bool:
    """Whether a number may be refused by RapidJSON for its size before its value is known: 0e400, or 400 digits."""
    # Looking for the letter is ten times faster; the one in '{"instances"' is none of a number.
    if body.find(b"e", 12) >= 0 and _EXPONENT.search(body):
        return True
    if b"E" in body and _CAPITAL_EXPONENT.search(body):
        return True
    if len(body) < 308:
        return False
    # 308 digits reach over one of these places and the next 24, and no number that people send has as many.
    places = np.lib.stride_tricks.as_strided(
        np.frombuffer(body, np.uint8), ((len(body) - 24) // 256 + 1, 24), (256, 1), writeable=False
    )
    return bool((places - np.uint8(48) < 10).all(axis=1).any())


def _parser(body: bytes) -> Any:
    """Return the thread's own parser; what a large body made it allocate is not kept."""
    if len(body) > _LONGEST_KEPT:
        return simdjson.Parser()
    if not hasattr(_threads, "parser"):
        _threads.parser = simdjson.Parser()
    return _threads.parser


def _from_simdjson(document: Any, body: bytes, signatures: Mapping[str, SignatureDef]) -> tuple[Call, bool] | None:
    fields = list(document.keys()) if isinstance(document, simdjson.Object) else []
    tensors = [field for field in fields if field != "signature_name"]
    if len(fields) > 2 or tensors not in (["instances"], ["inputs"]):
        return None
    name = (document["signature_name"] if len(fields) == 2 else "") or DEFAULT_SIGNATURE
    signature = signatures.get(name)
    if signature is None or not signature.inputs:
        return None
    kinds = {alias: Kind.of(info.dtype) for alias, info in signature.inputs.items()}
    row = tensors == ["instances"]
    read = _read(document[tensors[0]], kinds, row)
    if read is None:
        return None
    inputs, structure = read
    # Strings keep their quotes here, and must hold none of these characters: so the whole body is as it seems.
    parts = [structure if field == tensors[0] else b'""' for field in fields]
    if body.translate(None, _NOT_STRUCTURE) != _object_structure(parts):
        return None
    return Call(name, inputs, tuple(signature.outputs)), row


def _read(value: Any, kinds: dict[str, Kind], row: bool) -> tuple[Arrays, bytes] | None:
    """Read all inputs, and tell what brackets, commas and quotes they must have been written with."""
    if isinstance(value, simdjson.Array):
        if row and isinstance(value[0], simdjson.Object):
            return _read_rows(value, kinds)
        if len(kinds) != 1:
            return None
        ((alias, kind),) = kinds.items()
        shape = _extent(value)
        return {alias: _numbers([value], kind).reshape(shape)}, _list_structure(shape)
    if row or not isinstance(value, simdjson.Object):
        return None
    aliases = list(value.keys())
    if sorted(aliases) != sorted(kinds):
        return None
    inputs, structures = {}, []
    for alias in aliases:
        shape = _extent(value[alias])
        inputs[alias] = _numbers([value[alias]], kinds[alias]).reshape(shape)
        structures.append(_list_structure(shape))
    return inputs, _object_structure(structures)


def _read_rows(rows: Any, kinds: dict[str, Kind]) -> tuple[Arrays, bytes] | None:
    aliases = list(rows[0].keys())
    if sorted(aliases) != sorted(kinds) or aliases == ["b64"]:
        return None
    inputs, structures = {}, []
    for alias in aliases:
        cells = [row[alias] for row in rows]
        shape = _extent(cells[0])
        array = _numbers(cells, kinds[alias]) if shape else kinds[alias].whole(cells)
        if array is None:
            return None
        inputs[alias] = array.reshape(len(cells), *shape)
        structures.append(b'""' if isinstance(cells[0], str) else _list_structure(shape))
    structure = b",".join([_object_structure(structures)] * len(rows))
    return inputs, b"[%b]" % structure


def _extent(value: Any) -> tuple[int, ...]:
    sizes = []
    while isinstance(value, simdjson.Array):
        sizes.append(len(value))
        value = value[0]
    if len(sizes) > MOST_DIMENSIONS:
        raise OverflowError
    return tuple(sizes)


def _numbers(cells: list[Any], kind: Kind) -> Array:
    letter, dtype = _BUFFERS[kind.wide.kind]
    if not all(isinstance(cell, simdjson.Array) for cell in cells):
        raise TypeError("these are no lists")
    array = np.frombuffer(b"".join([cell.as_buffer(of_type=letter) for cell in cells]), dtype)
    if kind.wide.itemsize < array.itemsize and not (kind.holds(array.min()) and kind.holds(array.max())):
        raise OverflowError
    return kind.cast(array)


def _list_structure(shape: tuple[int, ...]) -> bytes:
    structure = b""
    for size in reversed(shape):
        structure = b"[%b]" % b",".join([structure] * size)
    return structure


def _object_structure(values: list[bytes]) -> bytes:
    return b"{%b}" % b",".join([b'""' + value for value in values])
