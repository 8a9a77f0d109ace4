from __future__ import annotations

import json

import numpy as np
import pytest

from tfdeploy_magic.artifacts.signature import Signature, TensorSpec

INT8 = TensorSpec("x", (None, 3), "int8", scale=0.5, zero_point=-10)
UINT8 = TensorSpec("x", (None, 3), "uint8", scale=1 / 255, zero_point=0)


def test_quantizing_follows_real_is_scale_times_stored_minus_zero_point() -> None:
    assert INT8.quantize(np.array([0.0, 1.0, -3.5])).tolist() == [-10, -8, -17]
    assert INT8.dequantize(np.array([-10, -8, -17], "int8")).tolist() == [0.0, 1.0, -3.5]
    assert INT8.quantize(np.zeros(1)).dtype == np.int8
    assert INT8.dequantize(np.zeros(1, "int8")).dtype == np.float32


def test_every_stored_value_survives_the_round_trip() -> None:
    for spec in (INT8, UINT8):
        limits = np.iinfo(spec.dtype)
        stored = np.arange(limits.min, limits.max + 1).astype(spec.dtype)
        np.testing.assert_array_equal(spec.quantize(spec.dequantize(stored)), stored)


def test_real_numbers_inside_the_range_come_back_within_half_a_step() -> None:
    real = np.linspace(-59, 68.5, 1001)
    assert np.max(np.abs(INT8.dequantize(INT8.quantize(real)) - real)) <= INT8.scale / 2 + 1e-6


def test_quantizing_rounds_to_nearest_and_never_truncates() -> None:
    assert UINT8.quantize(np.array([1.6 / 255, 1.4 / 255])).tolist() == [2, 1]
    assert INT8.quantize(np.array([-0.3])).tolist() == [-11]


def test_quantizing_saturates_and_never_wraps() -> None:
    assert INT8.quantize(np.array([1e9, -1e9])).tolist() == [127, -128]
    assert UINT8.quantize(np.array([2.0, -1.0])).tolist() == [255, 0]


def test_a_tensor_without_a_scale_stores_the_numbers_themselves() -> None:
    spec = TensorSpec("x", (None,), "float32")
    real = np.array([0.25, -4.0], "float32")
    assert not spec.quantized
    np.testing.assert_array_equal(spec.quantize(real), real)
    np.testing.assert_array_equal(spec.dequantize(real), real)


@pytest.mark.parametrize(("spec", "words"), [(INT8, "x: int8[?, 3]"), (TensorSpec("s", (), "bool"), "s: bool[]")])
def test_a_tensor_reads_as_name_dtype_and_shape(spec: TensorSpec, words: str) -> None:
    assert str(spec) == words


def test_a_signature_survives_json() -> None:
    signature = Signature("serving_default", (INT8, UINT8), (TensorSpec("y", (None, 2), "float32", tensor="y:0"),))
    assert Signature.from_dict(json.loads(json.dumps(signature.to_dict()))) == signature
