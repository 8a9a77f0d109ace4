"""TensorProtos are read and written as TensorFlow does, without it; what is no tensor is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tfdeploy_magic.serving import tensors
from tfdeploy_magic.serving.protos import tensor_pb2, types_pb2
from tfdeploy_magic.serving.status import Code, Refusal

NAMES = [
    *("FLOAT", "DOUBLE", "HALF", "BFLOAT16", "COMPLEX64", "COMPLEX128", "BOOL", "STRING"),
    *("INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64", "INT4", "UINT4"),
    *("QINT8", "QUINT8", "QINT16", "QUINT16", "QINT32", "FLOAT8_E5M2", "FLOAT8_E4M3FN"),
]
"""The dtypes that ``tf.make_tensor_proto`` and ``tf.make_ndarray`` know."""

OTHERS = ["FLOAT8_E4M3FNUZ", "FLOAT8_E4M3B11FNUZ", "FLOAT8_E5M2FNUZ"]


def number_of(name: str) -> int:
    return int(types_pb2.DataType.Value(f"DT_{name}"))


def proto(name: str = "FLOAT", shape: tuple[int, ...] = (), **fields: Any) -> Any:
    made = tensor_pb2.TensorProto(dtype=number_of(name), **fields)
    made.tensor_shape.SetInParent()
    for size in shape:
        made.tensor_shape.dim.add(size=size)
    return made


def values(name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    import tensorflow as tf

    draw = np.random.default_rng(len(name))
    dtype = tf.dtypes.as_dtype(number_of(name)).as_numpy_dtype
    if name == "STRING":
        flat = np.empty(int(np.prod(shape)), object)
        flat[:] = [draw.bytes(int(size)) for size in draw.integers(0, 200, len(flat))]
        return flat.reshape(shape)
    if name.startswith("COMPLEX"):
        return (draw.normal(size=shape) + 1j * draw.normal(size=shape)).astype(dtype)
    if name == "BOOL":
        return np.asarray(draw.integers(0, 2, shape), bool)
    if name in ("FLOAT", "DOUBLE", "HALF", "BFLOAT16") or name.startswith("FLOAT8"):
        return np.asarray(draw.normal(size=shape)).astype(dtype)
    raw = np.dtype(dtype)[0] if np.dtype(dtype).fields else np.dtype(dtype)
    if name in ("INT4", "UINT4"):
        return np.asarray(draw.integers(0, 8, shape)).astype(dtype)
    limits = np.iinfo(raw)
    drawn = np.asarray(draw.integers(limits.min, limits.max, shape, raw, endpoint=True))
    return drawn.view(dtype)


def parsed_by_tensorflow(message: Any) -> npt.NDArray[Any] | None:
    """Return what TensorFlow's own ``Tensor::FromProto`` makes of a message, or None where it refuses."""
    import tensorflow as tf

    try:
        parsed = tf.io.parse_tensor(message.SerializeToString(), tf.dtypes.as_dtype(message.dtype))
    except tf.errors.InvalidArgumentError:
        return None
    return np.asarray(parsed.numpy())


def same(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> bool:
    """Whether arrays are equal bit by bit; an EagerTensor's quantized numbers are plain integers in numpy."""
    if left.dtype.kind in "OS":
        return left.shape == right.shape and left.ravel().tolist() == right.ravel().tolist()
    if left.dtype in ("int4", "uint4"):  # the four bits that are not used may be anything
        left, right = left.astype(np.int8), right.astype(np.int8)
    dtypes = [array.dtype[0] if array.dtype.fields else array.dtype for array in (left, right)]
    return left.shape == right.shape and dtypes[0] == dtypes[1] and left.tobytes() == right.tobytes()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (5, 7), (2, 1, 3, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_tensorflow_reads_what_we_write_and_we_read_what_it_writes(name: str, shape: tuple[int, ...]) -> None:
    import tensorflow as tf

    array = values(name, shape)
    theirs = tf.make_tensor_proto(array, dtype=tf.dtypes.as_dtype(number_of(name)), shape=shape)
    assert same(tensors.array_of(theirs), array)
    for as_content in (False, True):
        ours = tensors.proto_of(array, as_content=as_content)
        assert ours.dtype == number_of(name)
        assert bool(ours.tensor_content) == (as_content and array.size > 0)
        theirs = parsed_by_tensorflow(ours)
        assert theirs is not None
        assert same(theirs, array)
        assert same(tensors.array_of(ours), array)
        if not (as_content and name == "STRING"):  # TensorFlow's own Python cannot read strings from tensor_content
            assert same(tf.make_ndarray(ours).reshape(shape), array)


@pytest.mark.parametrize("as_content", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_dtypes_that_tensorflows_python_cannot_write_are_what_its_runtime_reads(name: str, as_content: bool) -> None:
    array = values(name, (3, 4))
    ours = tensors.proto_of(array, as_content=as_content)
    theirs = parsed_by_tensorflow(ours)
    assert theirs is not None
    assert same(theirs, array)
    assert same(tensors.array_of(ours), array)


@pytest.mark.parametrize("name", NAMES)
def test_values_are_in_the_field_that_tensorflow_puts_them_in(name: str) -> None:
    import tensorflow as tf

    array = values(name, ())  # of a scalar, make_tensor_proto writes the field and not the content
    theirs = tf.make_tensor_proto(array, dtype=tf.dtypes.as_dtype(number_of(name)), shape=())
    assert tensors.proto_of(array) == theirs


MALFORMED = {
    "content too short": proto(shape=(2,), tensor_content=b"12345"),
    "content too long": proto(shape=(2,), tensor_content=b"x" * 9),
    "negative size": proto(shape=(-1,), float_val=[1.0]),
    "product beyond an int64": proto(shape=(2**40, 2**40), float_val=[1.0]),
    "a reference": tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT_REF, float_val=[1.0]),
    "no dtype": tensor_pb2.TensorProto(float_val=[1.0]),
    "bool of two": proto("BOOL", (2,), tensor_content=b"\x02\x00"),
    "strings too few": proto("STRING", (3,), tensor_content=b"\x01\x01ab"),
    "strings too long": proto("STRING", (2,), tensor_content=b"\x02\x01abcd"),
    "strings too short": proto("STRING", (2,), tensor_content=b"\x02\x01ab"),
    "length cut off": proto("STRING", (1,), tensor_content=b"\x80"),
    "length without end": proto("STRING", (1,), tensor_content=b"\x80" * 12),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_no_tensor_is_refused_where_tensorflow_refuses_it(what: str) -> None:
    message = MALFORMED[what]
    if message.dtype in (0, types_pb2.DT_FLOAT_REF):
        with pytest.raises(Refusal):
            tensors.array_of(message)
        return
    assert parsed_by_tensorflow(message) is None
    with pytest.raises(Refusal) as refused:
        tensors.array_of(message)
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert "tensor" in refused.value.message


LENIENT = {
    "too many values": proto(shape=(2,), float_val=[1, 2, 3]),
    "too few values": proto(shape=(4,), float_val=[1, 2]),
    "no values": proto(shape=(3,)),
    "no quantized values": proto("QINT8", (3,)),
    "one value for all": proto("QINT8", (2, 3), int_val=[-3]),
    "no strings": proto("STRING", (2,)),
    "one string for all": proto("STRING", (2, 2), string_val=[b"a"]),
    "numbers beyond the dtype": proto("UINT8", (3,), int_val=[300, -1, 7]),
    "four bits": proto("INT4", (4,), int_val=[3, -1, 9, 25]),
    "half a complex number": proto("COMPLEX64", (2,), scomplex_val=[1, 2, 3]),
    "too few of eight bits": proto("FLOAT8_E5M2", (3,), float8_val=b"\x03\x0f"),
    "content and field": proto(shape=(1,), tensor_content=b"\0\0\x80?", float_val=[7.0]),
    "content of nothing": proto(shape=(0,), tensor_content=b"1234"),
    "strings in content": proto("STRING", (2,), tensor_content=b"\x02\x01abc"),
    "rank unknown and no dimensions": tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[2.0]),
}
LENIENT["rank unknown and no dimensions"].tensor_shape.unknown_rank = True


@pytest.mark.parametrize("what", LENIENT)
def test_odd_messages_mean_what_they_mean_to_tensorflow(what: str) -> None:
    theirs = parsed_by_tensorflow(LENIENT[what])
    assert theirs is not None
    assert same(tensors.array_of(LENIENT[what]), theirs)


def test_random_bytes_as_messages_never_do_worse_than_a_refusal() -> None:
    draw = np.random.default_rng(7)
    seen = {"read": 0, "refused": 0}
    for _ in range(300):
        name = str(draw.choice([*NAMES, *OTHERS]))
        shape = tuple(int(size) for size in draw.integers(-1, 4, int(draw.integers(0, 3))))
        content = draw.bytes(int(draw.integers(0, 20)))
        message = proto(name, shape, tensor_content=content, float_val=[1.0], int_val=[1, 2])
        theirs = parsed_by_tensorflow(message)
        try:
            ours = tensors.array_of(message)
        except Refusal:
            assert theirs is None
            seen["refused"] += 1
        else:
            assert theirs is not None
            assert ours.shape == theirs.shape
            assert same(ours, theirs)
            seen["read"] += 1
    assert min(seen.values()) > 20


def test_a_few_bytes_cannot_ask_for_gigabytes() -> None:
    for message in (proto(shape=(2**38,), float_val=[1.0]), proto(shape=(2**38,)), proto("STRING", (2**38,))):
        with pytest.raises(Refusal, match="274877906944 values of which"):
            tensors.array_of(message)


def test_more_dimensions_than_numpy_has_are_a_refusal() -> None:
    for message in (proto(shape=(1,) * 70, float_val=[1.0]), proto(shape=(0, 2**62, 2**62))):
        with pytest.raises(Refusal) as refused:
            tensors.array_of(message)
        assert refused.value.code is Code.INVALID_ARGUMENT


def test_plain_integers_of_a_quantized_output_are_written_as_quantized() -> None:
    made = tensors.proto_of(np.array([1, -3], np.int8), number=types_pb2.DT_QINT8)
    assert made.dtype == types_pb2.DT_QINT8
    assert list(made.int_val) == [1, -3]
    assert tensors.proto_of(np.zeros(2, np.float32), number=types_pb2.DT_QINT8).dtype == types_pb2.DT_FLOAT


def test_content_is_not_copied() -> None:
    array = tensors.array_of(proto(shape=(2,), tensor_content=b"\0" * 8))
    assert not array.flags.owndata
    assert not array.flags.writeable


@pytest.mark.parametrize(
    "texts",
    [np.array(["a", "ü"]), np.array([b"a", "ü".encode()]), np.array(["a", b"\xc3\xbc"], object)],
    ids=["str", "bytes", "object"],
)
def test_texts_of_every_kind_are_strings(texts: npt.NDArray[Any]) -> None:
    made = tensors.proto_of(texts)
    assert made.dtype == types_pb2.DT_STRING
    assert list(made.string_val) == [b"a", "ü".encode()]


def test_arrays_in_any_memory_order_are_written_in_row_order() -> None:
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    for as_content in (False, True):
        back = tensors.array_of(tensors.proto_of(array, as_content=as_content))
        assert back.dtype == np.float32
        np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("array", [np.array(["2020-01-01"], "M8[D]"), np.array([None, 1.0], object)])
def test_arrays_that_tensorflow_has_not_are_a_type_error(array: npt.NDArray[Any]) -> None:
    with pytest.raises(TypeError, match="no TensorFlow dtype"):
        tensors.proto_of(array)


def test_importing_it_imports_no_tensorflow() -> None:
    code = (
        "import sys; from tfdeploy_magic.serving import tensors, inference, services; assert 'tensorflow' not in "
        "sys.modules; import numpy as np; assert tensors.array_of(tensors.proto_of(np.float32([1])))[0] == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
