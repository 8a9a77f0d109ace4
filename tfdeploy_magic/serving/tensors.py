"""``TensorProto`` to numpy and back, by TensorFlow's own rules and without TensorFlow: server and client share it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from tfdeploy_magic.serving.protos import tensor_pb2, types_pb2
from tfdeploy_magic.serving.status import Refusal, invalid

MOST_FILLED_BYTES = 2**28
"""What a tensor may take that says its last value once and means it for the rest: 20 bytes can ask for terabytes."""

_FIXED_WIDTH = frozenset({"float_val", "double_val", "scomplex_val", "dcomplex_val"})


@dataclass(frozen=True, slots=True)
class _Kind:
    """One of TensorFlow's dtypes: how numpy has it, and which field of a ``TensorProto`` holds its values.

    Args:
        number: Of the ``DataType``.
        dtype: Of the arrays.
        field: The field of the values.
        carried: The numbers of that field.
        raw: What those are cut to before they are seen as ``dtype``.
    """

    number: int
    dtype: np.dtype[Any]
    field: str
    carried: str
    raw: np.dtype[Any]


def _kinds() -> Iterable[_Kind]:
    plain = [("FLOAT", "f4", "float_val"), ("DOUBLE", "f8", "double_val"), ("INT64", "i8", "int64_val"),
             ("UINT32", "u4", "uint32_val"), ("UINT64", "u8", "uint64_val"), ("BOOL", "?", "bool_val")]  # fmt: skip
    rows: list[tuple[str, Any, str, str, Any]] = [(name, dtype, field, dtype, dtype) for name, dtype, field in plain]
    rows += [(name.upper(), name, "int_val", "i4", name) for name in ("int32", "int16", "int8", "uint16", "uint8")]
    rows += [(name.upper(), dtype, "int_val", "i4", dtype)
             for name, dtype in (("int4", ml_dtypes.int4), ("uint4", ml_dtypes.uint4))]  # fmt: skip
    rows += [(name.upper(), [(name, name[1:])], "int_val", "i4", name[1:])
             for name in ("qint8", "quint8", "qint16", "quint16", "qint32")]  # fmt: skip
    rows += [("HALF", "f2", "half_val", "i4", "u2"), ("BFLOAT16", ml_dtypes.bfloat16, "half_val", "i4", "u2")]
    rows += [("COMPLEX64", "c8", "scomplex_val", "f4", "f4"), ("COMPLEX128", "c16", "dcomplex_val", "f8", "f8")]
    rows += [(name.upper(), getattr(ml_dtypes, name), "float8_val", "u1", "u1")
             for name in ("float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz",
                          "float8_e5m2fnuz")]  # fmt: skip
    rows += [("STRING", object, "string_val", "O", object)]
    for name, dtype, field, carried, raw in rows:
        yield _Kind(types_pb2.DataType.Value(f"DT_{name}"), np.dtype(dtype), field, carried, np.dtype(raw))


_BY_NUMBER = {kind.number: kind for kind in _kinds()}
_BY_DTYPE = {kind.dtype: kind for kind in _BY_NUMBER.values()}
_STRING = _BY_NUMBER[types_pb2.DT_STRING]


def number_of(dtype: np.dtype[Any]) -> int:
    """Return the ``DataType`` of arrays of a numpy dtype; texts of every kind are ``DT_STRING``.

    Raises:
        TypeError: TensorFlow has no such tensors.
    """
    return _kind_of(dtype).number


def array_of(proto: Any) -> npt.NDArray[Any]:
    """Return the array of a ``TensorProto``.

    Values that a field lacks are the last one it has, or zero, and those too many are left out, as TensorFlow does.

    Args:
        proto: From anywhere.

    Returns:
        Read-only where it is a view of the message; strings are ``object`` arrays of bytes.

    Raises:
        Refusal: INVALID_ARGUMENT, it is no tensor.
    """
    kind = _BY_NUMBER.get(proto.dtype)
    if kind is None:
        raise invalid(f"tensor of an unsupported dtype: {proto.dtype}")
    shape = _shape_of(proto.tensor_shape)
    count = math.prod(shape)
    if count == 0:
        flat = np.empty(0, kind.dtype)
    elif content := proto.tensor_content:
        flat = _from_content(content, kind, count)
    else:
        flat = _from_field(proto, kind, count)
    try:
        return flat.reshape(shape)
    except ValueError as error:  # numpy has a limit of dimensions, and of their product
        raise invalid(f"tensor of shape {list(shape)}: {error}") from error


def proto_of(array: npt.NDArray[Any], *, as_content: bool = False, number: int = 0) -> Any:
    """Return an array as ``TensorProto``.

    Args:
        array: Texts may be bytes or str, in arrays of any kind.
        number: The ``DataType``, where it is known; a Session answers quantized integers as plain ones.
        as_content: Put the values in ``tensor_content``, in place of one field by dtype (``float_val`` ...).

    Raises:
        TypeError: TensorFlow has no such tensors.
    """
    kind = _BY_NUMBER.get(number)
    if kind is None or array.dtype not in (kind.dtype, kind.raw) or not kind.dtype.fields:
        kind = _kind_of(array.dtype)
    proto = tensor_pb2.TensorProto(dtype=kind.number)
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if kind is _STRING:
        texts = [_bytes_of(text) for text in array.ravel().tolist()]
        if as_content:
            proto.tensor_content = b"".join([*(_varint(len(text)) for text in texts), *texts])
        else:
            proto.string_val.extend(texts)
        return proto
    flat = array.ravel().astype(array.dtype.newbyteorder("="), copy=False).view(kind.dtype)
    if as_content:
        proto.tensor_content = flat.tobytes()
    else:
        _to_field(proto, kind, flat)
    return proto


def _kind_of(dtype: np.dtype[Any]) -> _Kind:
    kind = _STRING if dtype.kind in "OSU" else _BY_DTYPE.get(dtype.newbyteorder("="))
    if kind is None:
        raise TypeError(f"there is no TensorFlow dtype for arrays of {dtype}")
    return kind


def _shape_of(proto: Any) -> tuple[int, ...]:
    shape = tuple(dim.size for dim in proto.dim)
    if min(shape, default=0) < 0 or (shape and proto.unknown_rank):
        raise invalid(f"tensor of a shape that is not known: {list(shape)}")
    return shape


def _from_content(content: bytes, kind: _Kind, count: int) -> npt.NDArray[Any]:
    if kind is _STRING:
        return _objects(_strings_of(content, count))
    if len(content) != count * kind.dtype.itemsize:
        raise invalid(f"tensor_content of {len(content)} bytes where {count * kind.dtype.itemsize} were expected")
    flat = np.frombuffer(content, kind.dtype)
    if kind.dtype == bool and flat.view(np.uint8).max() > 1:
        raise invalid("tensor_content with a bool that is neither 0 nor 1")
    return flat


def _from_field(proto: Any, kind: _Kind, count: int) -> npt.NDArray[Any]:
    values = _values_of(proto, kind)[:count]
    if len(values) == count:
        return values
    if count * kind.dtype.itemsize > MOST_FILLED_BYTES:
        raise invalid(f"tensor of {count} values of which {len(values)} were sent")
    flat = np.zeros(count, kind.dtype) if kind is not _STRING else np.full(count, b"", object)
    flat[: len(values)] = values
    if len(values):
        flat[len(values) :] = values[-1]
    return flat


def _values_of(proto: Any, kind: _Kind) -> npt.NDArray[Any]:
    found = getattr(proto, kind.field)
    if kind is _STRING:
        return _objects(found)
    if isinstance(found, bytes):
        return np.frombuffer(found, kind.dtype)
    values = np.array(found, kind.carried).astype(kind.raw, copy=False)
    if kind.dtype.kind == "c":
        values = values[: len(values) // 2 * 2]
    return values.view(kind.dtype)


def _to_field(proto: Any, kind: _Kind, flat: npt.NDArray[Any]) -> None:
    values = flat.view(kind.raw).astype(kind.carried, copy=False)
    if kind.field == "float8_val":
        proto.float8_val = values.tobytes()
    elif kind.field in _FIXED_WIDTH and len(values):
        # On the wire these are the array's own bytes; value by value takes thirty times as long.
        field = tensor_pb2.TensorProto.DESCRIPTOR.fields_by_name[kind.field]
        data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        proto.MergeFromString(_varint(field.number << 3 | 2) + _varint(len(data)) + data)
    else:
        getattr(proto, kind.field).extend(values.tolist())


def _objects(texts: Any) -> npt.NDArray[Any]:
    array = np.empty(len(texts), object)
    array[:] = texts
    return array


def _bytes_of(text: Any) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, bytes):
        return text
    raise TypeError(f"there is no TensorFlow dtype for arrays of {type(text).__name__}")


def _strings_of(content: bytes, count: int) -> list[bytes]:
    """Read strings as ``tensor_content`` has them: first every length, then the bytes of all."""
    lengths, at = [], 0
    malformed = invalid(f"tensor_content that is not {count} strings")
    if count > len(content):
        raise malformed
    for _ in range(count):
        length, at = _read_varint(content, at, malformed)
        lengths.append(length)
    if at + sum(lengths) != len(content):
        raise malformed
    texts = []
    for length in lengths:
        texts.append(content[at : at + length])
        at += length
    return texts


def _read_varint(content: bytes, at: int, malformed: Refusal) -> tuple[int, int]:
    number = 0
    for shift in range(0, 35, 7):
        if at == len(content):
            break
        byte = content[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
    raise malformed


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)
