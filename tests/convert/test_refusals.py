"""The texts are what TensorFlow 2.21 said, shortened where a line says "..."."""

from __future__ import annotations

import pytest

from tfdeploy_magic.convert.op_support import FIX_BATCH, MOVE_OUT
from tfdeploy_magic.convert.refusals import explain

LAYERS = {
    "hidden": "hidden (Dense)",
    "curve": "curve (Lambda)",
    "special": "special (Lambda)",
    "words": "words (TextVectorization)",
    "memory": "memory (LSTM)",
}

HINT = (
    "Some ops are not supported by the native TFLite runtime, you can enable TF kernels fallback using TF Select. "
    "See instructions: https://www.tensorflow.org/lite/guide/ops_select "
)

SELECT_AND_CUSTOM = f"""\
Could not translate MLIR to FlatBuffer.<unknown>:0: error: loc(fused["Tan:", "functional_1/curve_1/Tan"]): 'tf.Tan' op \
is neither a custom op nor a flex op
<unknown>:0: note: loc(fused["Tan:", "functional_1/curve_1/Tan"]): see current operation: %3 = "tf.Tan"(%2) {{device = \
""}} : (tensor<?x4xf32>) -> tensor<?x4xf32>
<unknown>:0: note: loc(fused["Tan:", "functional_1/curve_1/Tan"]): Error code: ERROR_NEEDS_FLEX_OPS
<unknown>:0: error: loc(fused["Asin:", "functional_1/special_1/Asin"]): 'tf.Asin' op is neither a custom op nor a flex \
op
<unknown>:0: note: loc(fused["Asin:", "functional_1/special_1/Asin"]): Error code: ERROR_NEEDS_CUSTOM_OPS
<unknown>:0: error: failed while converting: 'main':
{HINT}
TF Select ops: Tan
Details:
\ttf.Tan(tensor<?x4xf32>) -> (tensor<?x4xf32>) : {{device = ""}}
Some ops in the model are custom ops, See instructions to implement custom ops: \
https://www.tensorflow.org/lite/guide/ops_custom
Custom ops: Asin
Details:
\ttf.Asin(tensor<?x4xf32>) -> (tensor<?x4xf32>) : {{device = ""}}
..."""

HALF = f"""\
Could not translate MLIR to FlatBuffer.<unknown>:0: error: loc(fused["MatMul:", "sequential_1/hidden_1/MatMul"]): \
'tf.MatMul' op is neither a custom op nor a flex op
<unknown>:0: error: loc(fused["BiasAdd:", "sequential_1/hidden_1/BiasAdd"]): 'tf.BiasAdd' op is neither a custom op \
nor a flex op
<unknown>:0: error: failed while converting: 'main':
{HINT}
TF Select ops: BiasAdd, MatMul
Details:
\ttf.BiasAdd(tensor<?x4xf16>, tensor<4xf16>) -> (tensor<?x4xf16>) : {{data_format = "NHWC", device = ""}}
\ttf.MatMul(tensor<?x4xf16>, tensor<4x4xf16>) -> (tensor<?x4xf16>) : {{grad_a = false, transpose_b = true}}
..."""

IN_A_CALL = """\
Could not translate MLIR to FlatBuffer.<unknown>:0: error: loc(callsite(fused["StringLower:", "words_1/StringLower@\
__inference_flat_213"] at callsite(fused["StatefulPartitionedCall:", "StatefulPartitionedCall@__inference_by_name_226\
"] at fused["StatefulPartitionedCall:", "StatefulPartitionedCall"]))): 'tf.StringLower' op is neither a custom op nor \
a flex op
<unknown>:0: note: loc(fused["StatefulPartitionedCall:", "StatefulPartitionedCall"]): called from
..."""

INLINED = """\
Could not translate MLIR to FlatBuffer.<unknown>:0: error: loc(fused["Tan:", "Tan@__inference_g_7", \
"special_1/PartitionedCall/Tan"]): 'tf.Tan' op is neither a custom op nor a flex op
..."""

LOWERING = (
    "<unknown>:0: error: Lowering tensor list ops is failed. Please consider using Select TF ops and disabling "
    "`_experimental_lower_tensor_list_ops` flag in the TFLite converter object. ..."
)

OPEN_BATCH = f"""\
<unknown>:0: error: loc(fused["TensorListReserve:", "memory_1/TensorArrayV2_1"]): 'tf.TensorListReserve' op requires \
element_shape to be static during TF Lite transformation pass
{LOWERING}"""

OPEN_ELEMENTS = f"""\
<unknown>:0: error: loc(fused["TensorListReserve:", "TensorArrayV2"]): 'tf.TensorListReserve' op requires \
element_shape to be 1D tensor during TF Lite transformation pass
{LOWERING}"""

TWO_BRANCHES = """\
Inconsistent values for attr 'Tcond' DT_BOOL vs. DT_INT32 while building NodeDef 'switch_case/indexed_case/\
branch_executed/_7_if' using Op<name=If; signature=cond:Tcond, input: -> output:; ...>
\tFailed to functionalize Control Flow V1 ops. Consider using Control Flow V2 ops instead. ..."""

THREE_BRANCHES = """\
Unable to determine predicate for merge node
\tfor node {{node switch_case/indexed_case/branch_executed/_9}}
\tFailed to functionalize Control Flow V1 ops. Consider using Control Flow V2 ops instead. ..."""

NO_RANGES = (
    "Max and min for dynamic tensors should be recorded during calibration: Failed for tensor "
    "serving_default_input_layer_9:0"
)


def refusal(operation: str, node: str, types: str = "tensor<?x4xf32>") -> str:
    """Return what TensorFlow says of one operation."""
    return (
        f'Could not translate MLIR to FlatBuffer.<unknown>:0: error: loc(fused["{operation}:", "{node}"]): '
        f"'tf.{operation}' op is neither a custom op nor a flex op\n"
        f"<unknown>:0: error: failed while converting: 'main':\n"
        f'{HINT}\nTF Select ops: {operation}\nDetails:\n\ttf.{operation}({types}) -> ({types}) : {{device = ""}}\n'
    )


def test_every_operation_is_named_with_its_layer_and_its_cure() -> None:
    error = explain(SELECT_AND_CUSTOM, LAYERS)
    assert error is not None
    assert error.found == (
        "the operations tf.Tan in curve (Lambda) and tf.Asin in special (Lambda), which .tflite has no builtin for"
    )
    assert "tf.atan2" in error.cure
    assert error.cure.count("Write it with") == 1


def test_a_dtype_is_named_where_it_is_the_reason() -> None:
    error = explain(HALF, LAYERS)
    assert error is not None
    assert "tf.MatMul of float16 in hidden (Dense)" in error.found
    assert "tf.BiasAdd of float16 in hidden (Dense)" in error.found
    assert error.cure.startswith("Compute in float32")


@pytest.mark.parametrize(
    ("types", "named", "cure"),
    [
        ("tensor<?x4xf64>, tensor<4x4xf64>", "float64", "Compute in float32"),
        ("tensor<?x4xbf16>, tensor<4x4xbf16>", "bfloat16", "Compute in float32"),
        ("tensor<?x4xcomplex<f32>>, tensor<4x4xcomplex<f32>>", "complex64", "Keep the real"),
        ("tensor<?x4xi32>, tensor<4x4xi32>", "int32", "Cast to float32"),
        ("tensor<f16>", "float16", "Compute in float32"),
    ],
)
def test_each_dtype_has_its_cure(types: str, named: str, cure: str) -> None:
    error = explain(refusal("MatMul", "matmul", types), {})
    assert error is not None
    assert f"tf.MatMul of {named} in matmul" in error.found
    assert error.cure.startswith(cure)


def test_places_in_functions_are_read() -> None:
    for message, named in ((IN_A_CALL, "tf.StringLower in words (T"), (INLINED, "tf.Tan in special (L")):
        error = explain(message, LAYERS)
        assert error is not None
        assert named in error.found


def test_an_operation_whose_place_is_not_said_is_named_all_the_same() -> None:
    error = explain("...\nTF Select ops: Tan, Roll\nDetails:\n", {})
    assert error is not None
    assert error.found == "the operations tf.Tan and tf.Roll, which .tflite has no builtin for"
    assert FIX_BATCH in error.cure


def test_an_operation_we_have_no_cure_for_is_named_with_the_general_one() -> None:
    error = explain(refusal("Frobnicate", "odd_1/Frobnicate"), {"odd": "odd (Lambda)"})
    assert error is not None
    assert error.found == "the operation tf.Frobnicate in odd (Lambda), which .tflite has no builtin for"
    assert error.cure == MOVE_OUT


def test_of_a_long_list_those_with_a_cure_come_first() -> None:
    error = explain("...\nTF Select ops: A, B, C, D, E, F, Tan\n", {})
    assert error is not None
    assert error.found.startswith("the operations tf.Tan, tf.A, tf.B, tf.C, tf.D, tf.E and 1 more, which")


@pytest.mark.parametrize(
    ("message", "found", "cure"),
    [
        (
            OPEN_BATCH,
            "a loop over a batch of unknown size (LSTM, GRU or another RNN layer), in memory (LSTM)",
            "unroll",
        ),
        (
            OPEN_ELEMENTS,
            "a list (tf.TensorArray) whose elements have no known shape, in TensorArrayV2",
            "element_shape",
        ),
        (LOWERING, "a list (tf.TensorArray) whose elements have no known shape", "element_shape"),
        (NO_RANGES, "an integer input or a tensor that calibration saw no range for", "--int8 or --dynamic"),
        (TWO_BRANCHES, "a choice between branches by a number (tf.switch_case)", "tf.cond"),
        (THREE_BRANCHES, "a choice between branches by a number (tf.switch_case)", "tf.cond"),
    ],
)
def test_other_refusals_are_explained(message: str, found: str, cure: str) -> None:
    error = explain(message, LAYERS)
    assert error is not None
    assert error.found == found
    assert cure in error.cure
    assert str(error).count("\n") == 1


def test_what_is_not_known_stays_unexplained() -> None:
    assert explain("'tfl.transpose' op expect output type tensor<2x4x1xf32>, got tensor<2x4xf32>", LAYERS) is None
    assert explain("", {}) is None
