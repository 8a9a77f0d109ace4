"""The graph of a model is looked at before it is converted; the table behind that is asked of TensorFlow itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, TensorSpec
from tfdeploy_magic.convert import preflight
from tfdeploy_magic.convert.op_support import KEPT_WHEN_UNUSED, NEVER, NEVER_FOLDED, SELECT, TYPED
from tfdeploy_magic.convert.preflight import Problem
from tfdeploy_magic.convert.refusals import explain
from tfdeploy_magic.errors import ConversionError
from tfdeploy_magic.jobs import Worker


def found(function: Any, *specs: Any, layers: dict[str, str] | None = None, told: bool = True) -> tuple[Problem, ...]:
    """Scan the graph of a function of tensors; ``told`` says the scan which tensors are its inputs and outputs."""
    import tensorflow as tf

    traced = tf.function(function, autograph=False).get_concrete_function(*specs)
    ends = {
        "inputs": [tensor.name for tensor in traced.inputs[: len(specs)]],
        "outputs": [tensor.name for tensor in traced.outputs],
    }
    return preflight.scan(traced.graph.as_graph_def(), layers or {}, **(ends if told else {}))


def numbers() -> Any:
    import tensorflow as tf

    return tf.TensorSpec((None, 4), name="x")


# What is found


def test_an_operation_is_found_with_its_kind_its_place_and_its_cure() -> None:
    import tensorflow as tf

    (problem,) = found(lambda x: tf.strings.length(tf.strings.lower(x)), tf.TensorSpec([None], tf.string))[:1]
    assert (problem.op, problem.kind, problem.where) == ("StringLower", "select", ("StringLower",))
    assert "before the model" in problem.cure
    (problem,) = found(lambda x: tf.numpy_function(abs, [x], tf.float32), numbers())
    assert (problem.op, problem.kind) == ("PyFunc", "never")


def test_half_and_double_precision_are_found_by_their_dtype() -> None:
    import tensorflow as tf

    for dtype in ("float64", "float16", "bfloat16"):
        (problem,) = found(lambda x, dtype=dtype: tf.cast(x, dtype) @ tf.ones([4, 3], dtype), numbers())
        assert (problem.op, problem.kind, problem.dtype) == ("MatMul", "dtype", dtype)
        assert str(problem) == f"MatMul of {dtype} in matmul"
        assert "float32" in problem.cure
    assert found(lambda x: x @ tf.ones([4, 3]), numbers()) == ()


def test_each_place_of_an_operation_is_named_once() -> None:
    import tensorflow as tf

    def twice(x: Any) -> Any:
        with tf.name_scope("first"):
            x = tf.math.tan(tf.math.tan(x))
        with tf.name_scope("second"):
            return tf.math.tan(x)

    (problem,) = found(twice, numbers(), layers={"first": "first (Lambda)", "second": "second (Lambda)"})
    assert problem.where == ("first (Lambda)", "second (Lambda)")
    assert str(problem) == "Tan in first (Lambda) and second (Lambda)"


def test_operations_in_loops_branches_and_functions_are_found() -> None:
    import tensorflow as tf

    tan = tf.math.tan
    assert found(lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: tan(x), lambda: x), numbers())[0].op == "Tan"
    assert found(lambda x: tf.function(tan)(x), numbers())[0].op == "Tan"
    loop = found(lambda x: tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tan(y)), [0, x])[1], numbers())
    assert loop[0].op == "Tan"

    def of_the_counter(x: Any) -> Any:
        step = lambda i, y: (i + 1, y + tan(tf.cast(i, tf.float32)))  # noqa: E731
        return x + tf.while_loop(lambda i, y: i < 3, step, [0, 0.0])[1]

    assert found(of_the_counter, numbers())[0].op == "Tan"


def test_what_has_an_effect_is_found_though_nobody_takes_its_answer() -> None:
    import tensorflow as tf

    def prints(x: Any) -> Any:
        tf.print("here")
        tf.function(lambda y: tf.numpy_function(abs, [y], tf.float32))(x)
        return x * 2

    assert [(problem.op, problem.kind) for problem in found(prints, numbers())] == [
        ("PrintV2", "select"),
        ("PyFunc", "never"),
    ]


def test_without_being_told_the_outputs_a_scan_takes_what_nothing_else_takes() -> None:
    import tensorflow as tf

    def leftover(x: Any) -> Any:
        tf.math.tan(x)
        return x * 2

    assert found(leftover, numbers()) == ()
    assert [problem.op for problem in found(leftover, numbers(), told=False)] == ["Tan"]


def test_a_large_constant_is_no_input_once_the_inputs_are_known() -> None:
    import tensorflow as tf

    large = tf.eye(20)

    def uses_it(x: Any) -> Any:
        return tf.tile(x, [1, 5]) @ tf.linalg.inv(large)

    assert found(uses_it, numbers()) == ()


def test_a_choice_by_number_is_found_whatever_chooses() -> None:
    import tensorflow as tf

    (problem,) = found(lambda x: tf.switch_case(tf.constant(1), [lambda: x, lambda: x * 2]), numbers())
    assert (problem.op, problem.kind) == ("StatelessCase", "never")
    assert "tf.cond" in problem.cure


def test_a_table_is_found_unless_it_is_between_text_and_int64() -> None:
    import keras
    import tensorflow as tf

    ids, words = keras.layers.IntegerLookup(vocabulary=[3, 4]), keras.layers.StringLookup(vocabulary=["a", "b"])
    layers = {"integer_lookup": "integer_lookup (IntegerLookup)"}
    ids(tf.constant([3], tf.int64)), words(tf.constant(["a"]))
    problems = found(lambda x: ids(x), tf.TensorSpec([None], tf.int64), layers=layers)
    assert [(problem.op, problem.kind, problem.dtype) for problem in problems] == [
        ("LookupTableFindV2", "dtype", "int64 to int64")
    ]
    assert found(lambda x: words(x), tf.TensorSpec([None], tf.string)) == ()


def test_the_loops_of_tensorflow_1_are_walked_too() -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        v1 = tf.compat.v1
        x = v1.placeholder(tf.float32, [None, 4], name="x")
        v2 = v1.control_flow_v2_enabled()
        v1.disable_control_flow_v2()
        try:
            _, y = v1.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.math.tan(y)), [0, x])
        finally:
            v1.enable_control_flow_v2() if v2 else None
        tf.identity(y, name="y")
    problems = preflight.scan(graph.as_graph_def(), {}, inputs=["x:0"], outputs=["y:0"])
    assert [problem.op for problem in problems] == ["Tan"]


def test_a_scan_leaves_the_graph_as_it_was() -> None:
    import tensorflow as tf

    def everything(x: Any) -> Any:
        tf.print(x)
        return tf.map_fn(tf.math.tan, x) + tf.cond(tf.reduce_sum(x) > 0, lambda: x, lambda: x * 2)

    graph_def = tf.function(everything, autograph=False).get_concrete_function(numbers()).graph.as_graph_def()
    before = graph_def.SerializeToString(deterministic=True)
    assert preflight.scan(graph_def, {})
    assert graph_def.SerializeToString(deterministic=True) == before


# Loops over lists


def loop_of(**options: Any) -> tuple[Problem, ...]:
    import keras
    import tensorflow as tf

    shape = options.pop("shape", (None, 5, 4))
    layer = keras.layers.LSTM(3, name="memory", **options)
    layer(tf.zeros([1, 5, 4]))
    return found(lambda x: layer(x), tf.TensorSpec(shape), layers={"memory": "memory (LSTM)"})


def test_a_loop_over_an_open_batch_is_found_with_its_layer() -> None:
    (problem,) = loop_of()
    assert (problem.op, problem.kind, problem.where) == ("TensorListReserve", "rnn", ("memory (LSTM)",))
    assert "unroll=True" in problem.cure


@pytest.mark.parametrize("options", [{"unroll": True}, {"shape": (1, 5, 4)}, {"shape": (1, None, 4)}])
def test_an_unrolled_loop_or_a_fixed_batch_is_no_problem(options: dict[str, Any]) -> None:
    assert loop_of(**options) == ()


def test_a_loop_of_the_older_keras_is_found_inside_its_function() -> None:
    import tf_keras

    model = tf_keras.Sequential([tf_keras.layers.LSTM(3, input_shape=(5, 4), name="memory")])
    import tensorflow as tf

    (problem,) = found(lambda x: model(x), tf.TensorSpec((None, 5, 4)), layers={"memory": "memory (LSTM)"})
    assert (problem.kind, problem.where) == ("rnn", ("memory (LSTM)",))


# Layers


def test_a_keras_layer_is_named_though_its_scope_is_numbered() -> None:
    import keras
    import tensorflow as tf

    keras.utils.clear_session()
    model = keras.Sequential([keras.Input((4,))])
    for _ in range(3):
        model.add(keras.layers.Lambda(tf.math.tan, output_shape=(4,)))
    names = [layer.name for layer in model.layers]
    assert names == ["lambda", "lambda_1", "lambda_2"]
    (problem,) = found(lambda x: model(x), numbers(), layers={name: f"{name} (Lambda)" for name in names})
    assert problem.where == ("lambda (Lambda)", "lambda_1 (Lambda)", "lambda_2 (Lambda)")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["net/dense/MatMul", "net/dense_1/MatMul"], ["A", "B"]),
        (["net_1/dense_1/MatMul", "net_1/dense_1_1/MatMul"], ["A", "B"]),
        (["net_1/dense_1/MatMul", "net_1/dense_3/MatMul", "net_1/dense_1_1/MatMul"], ["A", "A", "B"]),
        (["net/block/dense/MatMul", "net/block/Tan", "net/Tan"], ["A", "C", "net/Tan"]),
        (["net/dense_1/MatMul"], ["A or B"]),
        (["dense"], ["dense"]),
    ],
)
def test_the_innermost_layer_is_named_whichever_way_scopes_are_numbered(names: list[str], expected: list[str]) -> None:
    places = preflight.locate(names, {"dense": "A", "dense_1": "B", "block": "C"})
    assert [places[name] for name in names] == expected


# What is said


TAN = Problem("Tan", "select", ("a", "b", "c", "d", "e"), "Use sin and cos.")
PYTHON = Problem("PyFunc", "never", ("f",), "Use TensorFlow.")
DOUBLE = Problem("MatMul", "dtype", ("dense (Dense)",), "Use float32.", "float64")
LOOP = Problem("TensorListReserve", "rnn", ("lstm (LSTM)",), "Unroll it.")


def test_a_refusal_names_operations_layers_and_cures_in_two_lines() -> None:
    with pytest.raises(ConversionError) as caught:
        preflight.refuse((TAN, PYTHON, DOUBLE, LOOP), "model")
    assert str(caught.value) == (
        "model cannot be converted: found Tan in a, b, c and 2 more places; PyFunc in f; MatMul of float64 in "
        "dense (Dense).\n"
        "Wanted operations that .tflite has. Use sin and cos. Use TensorFlow. Use float32."
    )


def test_a_long_refusal_counts_what_it_does_not_name() -> None:
    many = [Problem(f"Op{number}", "select", ("here",), f"Cure {number}.") for number in range(9)]
    with pytest.raises(ConversionError, match=r"Op5 in here; 3 more operations\.\n[^!]*Cure 2\. Or leave it"):
        preflight.refuse(many, "model")


def test_a_refusal_offers_select_ops_only_where_they_help() -> None:
    with pytest.raises(ConversionError, match="--select-ops"):
        preflight.refuse((TAN, DOUBLE), "model")
    with pytest.raises(ConversionError, match=r"Use TensorFlow\.$"):
        preflight.refuse((TAN, PYTHON), "model")


def test_select_ops_let_pass_what_tensorflows_kernels_hold() -> None:
    preflight.refuse((TAN, DOUBLE, LOOP), "model", select_ops=True)
    with pytest.raises(ConversionError, match=r"found PyFunc in f\.\nWanted operations that TensorFlow's own kernels"):
        preflight.refuse((TAN, PYTHON), "model", select_ops=True)


def test_a_loop_alone_is_no_refusal() -> None:
    preflight.refuse((LOOP,), "model")
    preflight.refuse((), "model")


def test_every_problem_is_a_finding_with_its_cure() -> None:
    told = preflight.findings((TAN, PYTHON, DOUBLE, LOOP), ())
    assert [(finding.level, finding.code, finding.cure) for finding in told] == [
        ("warning", "select-op", TAN.cure),
        ("error", "unsupported-op", PYTHON.cure),
        ("warning", "select-op", DOUBLE.cure),
        ("warning", "open-loop", LOOP.cure),
    ]
    assert "MatMul of float64 in dense (Dense)" in told[2].message


@pytest.mark.parametrize(
    ("shape", "level", "option"),
    [
        ((None, 28, 28, 1), None, ""),
        ((None,), None, ""),
        ((), None, ""),
        ((None, None, None, 3), "note", "--input-spec x=1x224x224x3"),
        ((8, None), "note", "--input-spec x=8x128"),
        (UNKNOWN_RANK, "warning", "--input-spec x=1x224x224x3"),
    ],
)
def test_an_input_of_open_shape_is_a_finding_that_says_what_to_type(
    shape: tuple[int | None, ...], level: str | None, option: str
) -> None:
    told = preflight.findings((), [TensorSpec("x", shape, "float32")])
    assert [finding.level for finding in told] == ([level] if level else [])
    assert all(option in finding.cure for finding in told)


# The table, asked of TensorFlow


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(deadline=600) as one:
        yield one


def ask(worker: Worker, task: str, **arguments: Any) -> Any:
    return worker.call(f"tests.convert.op_probes:{task}", arguments)


TURNED_INTO_OTHERS = ("Case", "StatelessCase", "RngReadAndSkip")
"""What TensorFlow rewrites before it refuses what that became."""


def assert_refused(answer: dict[str, Any], operation: str, kind: str, dtype: str = "") -> None:
    """Say that an operation is in the graph, that the scan finds it and that the converter refuses it by its name."""
    assert operation in answer["ops"]
    kinds = {(problem["op"], problem["dtype"]): problem["kind"] for problem in answer["problems"]}
    assert kinds.get((operation, dtype)) == kind
    assert answer["message"] is not None
    error = explain(answer["message"], {})
    assert error is not None
    assert operation in TURNED_INTO_OTHERS or f"tf.{operation}" in error.found


def check_operation(worker: Worker, operation: str) -> None:
    for answer in ask(worker, "refused_task", operation=operation):
        assert_refused(answer["without"], operation, "never" if operation in NEVER else "select")
        if operation in NEVER:
            assert explain(answer["with"]["message"], {}) is not None
        else:
            assert answer["with"]["message"] is None


def check_dtype(worker: Worker, operation: str, dtype: str) -> None:
    for answer in ask(worker, "dtype_task", operation=operation, dtype=dtype):
        assert_refused(answer["without"], operation, "dtype", dtype)
        assert answer["with"]["message"] is None


@pytest.mark.parametrize(
    "operation", ["StringLower", "Tan", "MatrixInverse", "PrintV2", "Svd", "PyFunc", "StatelessCase"]
)
def test_tensorflow_refuses_what_the_table_says(worker: Worker, operation: str) -> None:
    check_operation(worker, operation)


@pytest.mark.parametrize(
    ("operation", "dtype"), [("MatMul", "float64"), ("Conv2D", "float16"), ("Softmax", "bfloat16")]
)
def test_tensorflow_refuses_the_dtypes_that_the_table_says(worker: Worker, operation: str, dtype: str) -> None:
    check_dtype(worker, operation, dtype)


@pytest.mark.parametrize("name", ["atan", "linear algebra of a weight", "unused", "gelu", "table of words"])
def test_what_converts_has_no_problem(worker: Worker, name: str) -> None:
    check_converting(worker, name)


def check_converting(worker: Worker, name: str) -> None:
    for answer in ask(worker, "converting_task", name=name):
        assert answer["message"] is None
        assert answer["problems"] == []


def test_every_entry_of_the_table_can_be_asked(worker: Worker) -> None:
    names = ask(worker, "names_task")
    assert set(names["refused"]) == {*SELECT, *NEVER}
    assert set(names["dtypes"]) == {operation for operation, _ in TYPED}


@pytest.mark.slow
@pytest.mark.parametrize("operation", [*SELECT, *NEVER])
def test_tensorflow_refuses_every_operation_of_the_table(worker: Worker, operation: str) -> None:
    check_operation(worker, operation)


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "dtype"), TYPED)
def test_tensorflow_refuses_every_dtype_of_the_table(worker: Worker, operation: str, dtype: str) -> None:
    check_dtype(worker, operation, dtype)


@pytest.mark.slow
def test_everything_that_converts_has_no_problem(worker: Worker) -> None:
    for name in ask(worker, "names_task")["converting"]:
        check_converting(worker, name)


@pytest.mark.slow
@pytest.mark.parametrize("operation", sorted(NEVER_FOLDED))
def test_what_is_never_folded_is_refused_even_of_constants(worker: Worker, operation: str) -> None:
    kind = "never" if operation in NEVER else "select"
    assert_refused(ask(worker, "alone_task", operation=operation, used=True), operation, kind)


@pytest.mark.slow
@pytest.mark.parametrize("operation", sorted(KEPT_WHEN_UNUSED))
def test_what_has_an_effect_is_refused_even_unused(worker: Worker, operation: str) -> None:
    kind = "never" if operation in NEVER else "select"
    assert_refused(ask(worker, "alone_task", operation=operation, used=False), operation, kind)
