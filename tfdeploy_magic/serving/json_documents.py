"""JSON as TensorFlow Serving reads and writes it: documents, the tensors in them, and what is said of wrong ones.

RapidJSON itself decides which documents are refused and says why. Its quick conversion of decimals is off by a few
units in the last place, so the values are read once more with correct rounding.
"""

from __future__ import annotations

import binascii
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import rapidjson

from tfdeploy_magic.serving.protos import types_pb2
from tfdeploy_magic.serving.status import Code, Refusal, invalid

Array = npt.NDArray[Any]

MOST_DIMENSIONS = 63
"""Of one tensor in JSON: numpy has 64, and a list of instances adds one."""

_AS_RAPIDJSON = rapidjson.NM_NATIVE | rapidjson.NM_NAN
_TRAILING = "The document root must not be followed by other values."
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TEXT_LIMIT = 256
_OBJECT = np.dtype(object)

# Bytes that are no UTF-8 pass through RapidJSON as they are. The Python binding insists on UTF-8, so that they go
# through it as characters that no standard assigns, and come out as surrogateescape has them.
_STAND_INS = {0xDC00 + byte: 0x10FF00 + byte for byte in range(128, 256)}
_BACK = {stand_in: escaped for escaped, stand_in in _STAND_INS.items()}


class _Decoder(rapidjson.Decoder):
    """Of members with the same name the first counts, as with RapidJSON's ``FindMember``."""

    def start_object(self) -> list[tuple[str, Any]]:
        return []

    def end_object(self, members: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(members)
        if len(found) != len(members):
            found.update(reversed(members))
        return found


class _StandInDecoder(_Decoder):
    def string(self, text: str) -> str:
        return text.translate(_BACK)


_decode = _Decoder(number_mode=rapidjson.NM_NAN)
_decode_stand_ins = _StandInDecoder(number_mode=rapidjson.NM_NAN)


def parse(body: bytes) -> dict[str, Any]:
    """Parse the body of a request, whatever follows its first JSON value left aside.

    Returns:
        Plain data. Bytes that are no UTF-8 stand in strings as ``surrogateescape`` has them; integers beyond 64 bits
        are whole, where RapidJSON has doubles.

    Raises:
        Refusal: It is no JSON, is nested too deeply, or is no object.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    text = body.removeprefix(_BYTE_ORDER_MARK)
    try:
        document = _document(text, skipped=len(body) - len(text))
    except RecursionError:
        raise invalid("JSON Parse error: The document is nested too deeply.") from None
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {value_text(document)} Is not object")
    return document


def signature_name(document: dict[str, Any]) -> str:
    """Return the key of the signature that a request names, "" where it names none.

    Raises:
        Refusal: The name is no string.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        text = value_text(document)
        raise invalid(f"JSON Value: {text} not formatted correctly. 'signature_name' key must be a string value.")
    return name


def is_double(value: Any) -> bool:
    """Whether RapidJSON holds a value as a double: a decimal, or an integer beyond 64 bits."""
    return isinstance(value, float) or (type(value) is int and not -(2**63) <= value < 2**64)


def type_name(value: Any) -> str:
    """Return what TensorFlow Serving calls the type of a JSON value, "Number"."""
    if isinstance(value, bool) or value is None:
        return "Null" if value is None else str(value)
    if isinstance(value, str):
        return "String"
    return "Array" if isinstance(value, list) else "Object" if isinstance(value, dict) else "Number"


def value_text(value: Any) -> str:
    """Return a JSON value for a message, pretty-printed and cut at 256 bytes."""
    if is_double(value):
        return _decimal(float(value))
    text = _pretty(_head(value, [_TEXT_LIMIT])).encode()
    return text[:_TEXT_LIMIT].decode(errors="ignore")


def error_body(message: str) -> bytes:
    """Return the body of an answer that refuses a request."""
    return _pretty({"error": _clean(message)}).encode()


def to_bytes(text: str) -> bytes:
    """Return the bytes that a JSON string stands for."""
    return text.encode("utf-8", "surrogateescape")


def is_base64(value: Any) -> bool:
    """Whether a JSON value is bytes in TensorFlow Serving's way: ``{"b64": "..."}``."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def from_base64(value: Any) -> bytes:
    """Return the bytes of ``{"b64": "..."}``; white space and absent padding do no harm.

    Raises:
        Refusal: It is something else, or not base64.
    """
    if not is_base64(value):
        raise invalid(f"JSON Value: {value_text(value)} not formatted correctly for base64 data")
    text = to_bytes(value["b64"]).translate(None, b" \t\n\v\f\r")
    digits = text.rstrip(b"=.")
    missing = -len(digits) % 4
    if len(text) - len(digits) not in (0, missing):
        raise invalid("Unable to base64 decode")
    try:
        return binascii.a2b_base64(digits + b"=" * missing, strict_mode=True)
    except binascii.Error:
        raise invalid("Unable to base64 decode") from None


@dataclass(frozen=True, slots=True)
class Kind:
    """What JSON may hold for a dtype.

    Args:
        name: The dtype as messages have it, "float".
        dtype: What a model is given.
        types: The Python types of the JSON values; none where TensorFlow Serving knows no conversion.
        wide: What the values are read as: a small integer may be any int32, of which it keeps the low bits.
    """

    name: str
    dtype: np.dtype[Any]
    types: frozenset[type]
    wide: np.dtype[Any]

    @classmethod
    def of(cls, dtype: int) -> Kind:
        """Return the kind of a ``DataType`` of types.proto."""
        return _KINDS.get(dtype) or cls(_dtype_name(dtype), _OBJECT, frozenset(), _OBJECT)

    def tensor(self, value: Any, alias: str) -> Array:
        """Return nested lists, or a single value, as an array.

        Raises:
            Refusal: The lists are ragged, or a value is not of this kind.
        """
        array = self.whole(value)
        if array is not None:
            return array
        shape = _promised_shape(value)
        if len(shape) > MOST_DIMENSIONS:
            raise invalid(f"tensor parsing error: {alias}")
        leaves = list(_leaves(value, 0, shape, self))
        if not self.types:
            raise _no_conversion(value, self)
        return self._packed(leaves).reshape(shape)

    def whole(self, value: Any) -> Array | None:
        """Return a tensor where every value is plain and right: checked list by list, not value by value."""
        shape = _promised_shape(value)
        if len(shape) > MOST_DIMENSIONS or not self.types:
            return None
        level = [value]
        for size in shape:
            if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
                return None
            level = list(itertools.chain.from_iterable(level))
        if not self.types.issuperset(map(type, level)):
            return None
        try:
            return self._packed(map(to_bytes, level) if self.name == "string" else level).reshape(shape)
        except OverflowError:
            return None

    def holds(self, value: Any) -> bool:
        """Whether an integer is in range; anything else always is."""
        if self.wide.kind not in "iu":
            return True
        limits = np.iinfo(self.wide)
        return bool(limits.min <= value <= limits.max)

    def cast(self, array: Array) -> Array:
        """Return numbers in the dtype that a model is given: what no float32 can hold is infinite."""
        with np.errstate(over="ignore"):
            return array.astype(self.dtype)

    def _packed(self, leaves: Iterable[Any]) -> Array:
        if self.wide != _OBJECT:
            return self.cast(np.array(leaves, self.wide))
        leaves = list(leaves)
        packed = np.empty(len(leaves), object)
        packed[:] = leaves
        return packed


def _kinds() -> dict[int, Kind]:
    number, whole = frozenset({int, float}), frozenset({int})
    rows = [
        ("float", "float32", number, "float64"),
        ("double", "float64", number, "float64"),
        *((name, name, whole, "int32") for name in ("int32", "int16", "int8", "uint8")),
        *((name, name, whole, name) for name in ("int64", "uint32", "uint64")),
        ("bool", "bool", frozenset({bool}), "bool"),
        ("string", "object", frozenset({str}), "object"),
    ]
    return {
        types_pb2.DataType.Value(f"DT_{name.upper()}"): Kind(name, np.dtype(dtype), types, np.dtype(wide))
        for name, dtype, types, wide in rows
    }


_KINDS = _kinds()


def write_answer(key: str, content: bytes) -> bytes:
    """Return the body of an answer from the JSON of what it holds."""
    return b'{\n    "%b": %b\n}' % (key.encode(), content)


def write_json(content: Any) -> bytes:
    """Write plain data and arrays of finite numbers, on one line."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def write_numbers(array: Array) -> bytes:
    """Write an array of numbers, with as few digits as identify each; NaN and the infinities as bare words."""
    text = write_json(np.ascontiguousarray(array) if array.ndim else array[()])
    if all_finite(array):
        return text
    words = [_decimal(value).encode() for value in array[~np.isfinite(array)].tolist()]
    pieces = text.split(b"null")  # what orjson writes for them
    return b"".join(itertools.chain.from_iterable(zip(pieces, [*words, b""], strict=True)))


def all_finite(array: Array) -> bool:
    """Whether no number of an array is NaN or infinite."""
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _document(text: bytes, skipped: int) -> Any:
    try:
        return _decode(_first_value(text, skipped))
    except UnicodeDecodeError:
        text = text.decode("utf-8", "surrogateescape").translate(_STAND_INS).encode()
        return _decode_stand_ins(_first_value(text, skipped, stand_ins=True))


def _first_value(text: bytes, skipped: int, *, stand_ins: bool = False) -> bytes:
    """Return a text up to the end of its first value; ``skipped`` bytes came before it."""
    try:
        rapidjson.loads(text, number_mode=_AS_RAPIDJSON)
    except rapidjson.JSONDecodeError as error:
        where, _, reason = str(error).partition(": ")
        offset = int(where.rpartition(" ")[2])
        if reason == _TRAILING:
            return text[:offset]
        if stand_ins:
            offset = len(to_bytes(text[:offset].decode(errors="ignore").translate(_BACK)))
        raise invalid(f"JSON Parse error: {reason} at offset: {offset + skipped}") from None
    return text


def _dtype_name(dtype: int) -> str:
    return str(types_pb2.DataType.Name(dtype)).removeprefix("DT_").lower()


def _promised_shape(value: Any) -> tuple[int, ...]:
    """Return the shape of nested lists as the first of each has it."""
    sizes = []
    while isinstance(value, list):
        sizes.append(len(value))
        value = value[0] if value else None
    return tuple(sizes)


def _leaves(value: Any, level: int, shape: tuple[int, ...], kind: Kind) -> Iterator[Any]:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {value_text(value)} found at incorrect level: {level + 1} in the JSON DOM."
                f" Expected at level: {len(shape)}"
            )
        yield _leaf(value, kind)
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for item in value:
        yield from _leaves(item, level + 1, shape, kind)


def _leaf(value: Any, kind: Kind) -> Any:
    if kind.name == "string" and isinstance(value, dict):
        return from_base64(value)
    if not kind.types and not isinstance(value, dict):
        raise _no_conversion(value, kind)
    if type(value) not in kind.types or not kind.holds(value):
        text = f"JSON Value: {value_text(value)} Type: {type_name(value)}"
        raise invalid(f"{text} is not of expected type: {kind.name}")
    return to_bytes(value) if kind.name == "string" else value


def _no_conversion(value: Any, kind: Kind) -> Refusal:
    return Refusal(Code.UNIMPLEMENTED, f"Conversion of JSON Value: {value_text(value)} to type: {kind.name}")


def _decimal(number: float) -> str:
    """Write a number as TensorFlow Serving does: six digits where they suffice, else as many as identify it."""
    if not np.isfinite(number):
        return "NaN" if np.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    is_single = abs(number) <= 3.4028234e38
    exact = float(np.float32(number)) if is_single else number
    text = f"{exact:g}"
    again = float(np.float32(text)) if is_single else float(text)
    if again != exact:
        text = f"{exact:.9g}" if is_single else f"{exact:.17g}"
    return text if "." in text or "e" in text else f"{text}.0"


def _pretty(value: Any) -> str:
    return str(rapidjson.dumps(value, indent=4, ensure_ascii=False, number_mode=_AS_RAPIDJSON))


def _head(value: Any, left: list[int]) -> Any:
    """Copy what the first ``left[0]`` bytes of a value's text can show: errors cost the same for any body."""
    left[0] -= 1
    if isinstance(value, str):
        left[0] -= len(value)
        return _clean(value[:_TEXT_LIMIT])
    if isinstance(value, list):
        items = []
        for item in value:
            if left[0] < 0:
                break
            items.append(_head(item, left))
        return items
    if isinstance(value, dict):
        members = {}
        for key, item in value.items():
            if left[0] < 0:
                break
            members[_head(key, left)] = _head(item, left)
        return members
    return float(value) if is_double(value) else value


def _clean(text: str) -> str:
    """Replace what UTF-8 cannot hold: a name or a string of the request that was none."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
