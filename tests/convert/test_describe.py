from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tests.convert import tiny
from tests.evaluate import by_hand
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.schemes import SCHEMES
from tfdeploy_magic.convert.describe import describe

Describe = Callable[..., LiteFile]


@pytest.fixture(scope="module")
def contents(trained_cnn: Any, digits: Digits) -> dict[str, bytes]:
    return {
        name: by_hand.plain_file(trained_cnn, name, SCHEMES[name].io, digits.x_train[:20]) for name in by_hand.SCHEMES
    }


@pytest.fixture(params=["float32", "int8"])
def content(request: pytest.FixtureRequest, contents: dict[str, bytes]) -> bytes:
    return contents[request.param]


@pytest.fixture
def described(tmp_path: Path) -> Describe:
    def read(content: bytes, scheme: str = "float32") -> LiteFile:
        path = tmp_path / "m.tflite"
        path.write_bytes(content)
        return LiteFile.from_description(path, scheme, describe(path))

    return read


def test_a_file_says_its_size_and_digest(described: Describe, content: bytes) -> None:
    file = described(content)
    assert file.size == len(content)
    assert file.sha256 == hashlib.sha256(content).hexdigest()


def test_its_signature_is_the_one_the_interpreter_sees(described: Describe, content: bytes) -> None:
    file = described(content)
    runner = by_hand.interpreter(content).get_signature_runner()
    for specs, details in (
        (file.inputs, runner.get_input_details()),
        (file.outputs, runner.get_output_details()),
    ):
        assert [spec.name for spec in specs] == list(details)
        for spec in specs:
            seen = details[spec.name]
            assert spec.dtype == seen["dtype"].__name__
            assert [-1 if size is None else size for size in spec.shape] == list(seen["shape_signature"])
            assert (spec.scale, spec.zero_point) == pytest.approx(seen["quantization"])


def own_operators(interpreter: Any) -> list[Any]:
    """Delegates add operators of their own; the graph itself is what was asked about."""
    return [operator for operator in interpreter._get_ops_details() if operator["op_name"] != "DELEGATE"]


def test_its_operators_are_those_the_interpreter_sees(described: Describe, content: bytes) -> None:
    file = described(content)
    seen = Counter(operator["op_name"] for operator in own_operators(by_hand.interpreter(content)))
    assert dict(file.operators) == dict(seen)
    assert file.operators["CONV_2D"] == 2


@pytest.mark.parametrize("scheme", by_hand.SCHEMES)
def test_its_activations_are_those_the_interpreter_sees(
    described: Describe, contents: dict[str, bytes], scheme: str
) -> None:
    file = described(contents[scheme], scheme)
    interpreter = by_hand.interpreter(contents[scheme])
    tensors = {row["index"]: row for row in interpreter.get_tensor_details()}
    activations, floats = Counter[str](), Counter[str]()
    for operator in own_operators(interpreter):
        for row in (tensors[index] for index in operator["outputs"]):
            dtype = row["dtype"].__name__
            if operator["op_name"] in ("QUANTIZE", "DEQUANTIZE"):
                continue
            floats[operator["op_name"]] += dtype == "float32"
            activations[dtype] += dtype == "float32" or len(row["quantization_parameters"]["scales"]) > 0
    assert dict(file.activations) == dict(+activations)
    assert dict(file.float_operators) == dict(+floats)


def test_its_weights_are_the_models_in_the_schemes_own_dtypes(
    described: Describe, contents: dict[str, bytes], trained_cnn: Any
) -> None:
    layers = [layer for layer in trained_cnn.layers if layer.weights]
    kernels = sum(int(np.prod(layer.kernel.shape)) for layer in layers if hasattr(layer, "kernel"))
    biases = sum(int(np.prod(layer.bias.shape)) for layer in layers if hasattr(layer, "kernel"))
    # What is left of the batch normalization: a factor and a summand for each of 16 channels.
    normalization = 2 * 16
    weights = {scheme: described(content, scheme).weights for scheme, content in contents.items()}
    assert weights["float32"]["float32"] == 4 * (kernels + biases + normalization)
    assert weights["float16"]["float16"] == 2 * (kernels + biases + normalization)
    assert weights["int8"]["int8"] == kernels + normalization
    assert weights["int16x8"]["int8"] == kernels
    assert weights["int16x8"]["int64"] == 8 * biases
    # The first kernel has 144 numbers, and dynamic range quantization leaves fewer than 1,024 alone.
    assert weights["dynamic"]["int8"] == kernels - 144
    assert weights["dynamic"]["float32"] == 4 * (144 + biases + normalization)


def test_the_quantized_share_is_of_activations_or_of_weights_as_the_scheme_has_it(
    described: Describe, contents: dict[str, bytes]
) -> None:
    files = {scheme: described(content, scheme) for scheme, content in contents.items()}
    shares = {scheme: file.quantized_share for scheme, file in files.items()}
    held = files["dynamic"].weights
    assert shares["dynamic"] == pytest.approx(held["int8"] / (held["int8"] + held["float32"]))
    del shares["dynamic"]
    assert shares == {"float32": None, "float16": 1.0, "int8": 1.0, "int16x8": 1.0}


def test_operators_that_stay_float_lower_the_share_and_are_named(described: Describe) -> None:
    import tensorflow as tf

    content = tiny.from_function(lambda x: tf.nn.softmax(tf.sin(x)), [1, 8], **tiny.calibrated_on(1, 8))
    file = described(content, "int8")
    assert file.quantized_share == 0.5
    assert dict(file.float_operators) == {"SIN": 1}


def test_shapes_and_indices_are_no_activations(described: Describe) -> None:
    import tensorflow as tf

    content = tiny.from_function(lambda x: tf.reshape(x, [tf.shape(x)[0] * 2, 2]), [None, 4])
    file = described(content)
    assert file.operators["SHAPE"] == 1
    assert dict(file.activations) == {"float32": 1}


def test_a_file_says_who_made_it_and_what_runs_it(described: Describe, content: bytes) -> None:
    file = described(content)
    assert (file.version, file.subgraphs, file.description) == (3, 1, "MLIR Converted.")
    assert {"min_runtime_version", "CONVERSION_METADATA"} <= set(file.metadata)
    assert file.min_runtime_version is not None
    assert re.fullmatch(r"\d+\.\d+\.\d+", file.min_runtime_version)
    assert file.min_runtime_version.encode() in content


def test_a_description_survives_json(described: Describe, content: bytes) -> None:
    file = described(content, "int8")
    again = json.loads(json.dumps(file.to_description()))
    assert LiteFile.from_description(file.path, "int8", again) == file


def test_operators_of_tensorflow_itself_are_named(described: Describe) -> None:
    import tensorflow as tf

    assert described(tiny.from_function(tf.math.erf, [1, 4], **tiny.with_flex())).flex_operators == ("Erf",)
    assert described(tiny.from_function(tf.sin, [1, 4], **tiny.with_flex())).flex_operators == ()


# Variables


def test_tf_saved_model_save_of_a_keras_3_model_converts_to_variables_that_nothing_writes(
    described: Describe, trained_cnn: Any, digits: Digits, tmp_path: Path
) -> None:
    import tensorflow as tf

    tf.saved_model.save(trained_cnn, str(tmp_path / "trap"))
    content = tiny.from_saved_model(str(tmp_path / "trap"))
    file = described(content)
    assert len(file.uninitialised_variables) == file.operators["VAR_HANDLE"] == len(trained_cnn.weights)
    assert any(re.search(r"conv2d(_\d+)?/kernel$", name) for name in file.uninitialised_variables)
    # TensorFlow says nothing, and the file runs.
    (answers,) = by_hand.answers(content, {file.inputs[0].name: digits.x_test[:50]}).values()
    assert not np.allclose(answers, trained_cnn.predict(digits.x_test[:50], verbose=0), atol=0.1)


def test_the_same_model_exported_has_no_variables(described: Describe, trained_cnn: Any, tmp_path: Path) -> None:
    trained_cnn.export(str(tmp_path / "good"), verbose=False)
    file = described(tiny.from_saved_model(str(tmp_path / "good")))
    assert file.uninitialised_variables == ()
    assert "VAR_HANDLE" not in file.operators


def test_a_variable_that_is_read_before_the_graph_writes_it_has_no_first_value(
    described: Describe, tmp_path: Path
) -> None:
    import keras
    import tensorflow as tf

    class Calls(keras.layers.Layer):  # type: ignore[misc]
        def build(self, shape: Any) -> None:
            self.seen = self.add_weight(shape=(1, 2), initializer="ones", trainable=False, name="seen")

        def call(self, x: Any) -> Any:
            self.seen.assign(self.seen + 1)
            return x * self.seen

    model = keras.Sequential([keras.Input((2,), batch_size=1), Calls()])
    tf.saved_model.save(model, str(tmp_path / "trap"))
    model.export(str(tmp_path / "good"), verbose=False)
    state = {"experimental_enable_resource_variables": True}
    trap = described(tiny.from_saved_model(str(tmp_path / "trap"), **state))
    assert trap.operators["ASSIGN_VARIABLE"] == 1
    assert len(trap.uninitialised_variables) == 1
    assert described(tiny.from_saved_model(str(tmp_path / "good"), **state)).uninitialised_variables == ()


@pytest.mark.parametrize(
    ("methods", "answers"),
    [(("add",), [6.0, 7.0]), (("loop",), [4.0, 4.0]), (("add", "loop"), None)],
    ids=["straight", "branch and loop", "two signatures"],
)
def test_state_that_the_file_itself_starts_and_changes_is_no_fault(
    described: Describe, methods: tuple[str, ...], answers: list[float] | None
) -> None:
    content = tiny.from_methods(tiny.counter(), *methods, experimental_enable_resource_variables=True)
    file = described(content)
    assert file.operators["VAR_HANDLE"] > 1
    assert file.uninitialised_variables == ()
    if answers:
        runner = by_hand.interpreter(content).get_signature_runner()
        assert [float(runner(x=np.ones((1, 2), "float32"))["y"][0, 0]) for _ in answers] == answers


def test_without_its_initializer_the_same_state_is_a_fault_wherever_it_is_read(described: Describe) -> None:
    def forget(tree: Any) -> None:
        for subgraph in tree.subgraphs:
            subgraph.operators = [op for op in subgraph.operators if names[op.opcodeIndex] != "CALL_ONCE"]

    for method in ("add", "loop"):
        content = tiny.from_methods(tiny.counter(), method, experimental_enable_resource_variables=True)
        names = operator_names(content)
        assert len(described(tiny.edited(content, forget)).uninitialised_variables) == 1


def operator_names(content: bytes) -> list[str]:
    numbers = {value: name for name, value in vars(tiny.schema.BuiltinOperator).items() if isinstance(value, int)}
    codes = tiny.schema.ModelT.InitFromPackedBuf(content, 0).operatorCodes
    return [numbers[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in codes]


# Files from anywhere


@pytest.fixture(scope="module")
def branching() -> bytes:
    return tiny.from_methods(tiny.counter(), "loop", experimental_enable_resource_variables=True)


def refused(described: Describe, content: bytes, because: str) -> None:
    with pytest.raises(ValueError, match=rf"^m\.tflite is not a whole \.tflite file: .*{because}"):
        described(content)


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\x89PNG\r\n\x1a\n" * 9, b"PK\x03\x04" * 50])
def test_what_is_not_a_tflite_file_is_refused(described: Describe, content: bytes) -> None:
    refused(described, content, "")


@pytest.mark.parametrize("kind", ["cnn", "branching"])
def test_a_cut_or_scrambled_file_is_refused_or_read_but_never_more(
    described: Describe, contents: dict[str, bytes], branching: bytes, kind: str
) -> None:
    content = {"cnn": contents["int8"], "branching": branching}[kind]
    random = np.random.default_rng(0)
    seen: Counter[bool] = Counter()
    for turn in range(300):
        broken = bytearray(content)
        for position in random.integers(8, len(content), random.integers(1, 20)):
            broken[position] = random.integers(0, 256)
        if turn % 3 == 0:
            del broken[random.integers(0, len(content)) :]
        try:
            described(bytes(broken))
        except ValueError as error:
            assert str(error).startswith("m.tflite is not a whole .tflite file: ")
            seen[False] += 1
        else:
            seen[True] += 1
    assert seen[True]
    assert seen[False] > 100


def set_output(tree: Any) -> None:
    tree.subgraphs[0].operators[0].outputs = [999]


def set_input(tree: Any) -> None:
    tree.subgraphs[0].operators[0].inputs = [-2]


def set_buffer(tree: Any) -> None:
    tree.subgraphs[0].tensors[1].buffer = 999


def set_operator_code(tree: Any) -> None:
    tree.subgraphs[0].operators[0].opcodeIndex = 99


def set_signature_tensor(tree: Any) -> None:
    tree.signatureDefs[0].inputs[0].tensorIndex = 999


def set_signature_subgraph(tree: Any) -> None:
    tree.signatureDefs[0].subgraphIndex = 99


def set_signature_name(tree: Any) -> None:
    tree.signatureDefs[0].outputs[0].name = None


def set_dtype(tree: Any) -> None:
    tree.subgraphs[0].tensors[0].type = 99


def set_metadata(tree: Any) -> None:
    tree.metadata[0].buffer = 999


def drop_subgraphs(tree: Any) -> None:
    tree.subgraphs = []


@pytest.mark.parametrize(
    ("change", "because"),
    [
        (set_output, "tensor 999"),
        (set_input, "tensor -2"),
        (set_buffer, "buffer 999"),
        (set_operator_code, "operator code 99"),
        (set_signature_tensor, "tensor 999"),
        (set_signature_subgraph, "subgraph 99"),
        (set_signature_name, "the name of an output is missing"),
        (set_dtype, "TensorType 99 is not known"),
        (set_metadata, "buffer 999"),
        (drop_subgraphs, "subgraph 0, but holds 0"),
    ],
)
def test_an_index_that_leads_nowhere_is_named(
    described: Describe, contents: dict[str, bytes], change: Callable[[Any], None], because: str
) -> None:
    refused(described, tiny.edited(contents["int8"], change), because)


def test_subgraphs_that_call_each_other_without_end_are_refused(described: Describe, branching: bytes) -> None:
    names = operator_names(branching)

    def call_itself(tree: Any) -> None:
        for operator in tree.subgraphs[0].operators:
            if names[operator.opcodeIndex] == "IF":
                operator.builtinOptions.thenSubgraphIndex = 0

    def double_at_each_level(tree: Any) -> None:
        (branch,) = (op for op in tree.subgraphs[0].operators if names[op.opcodeIndex] == "IF")
        leaf = tree.subgraphs[branch.builtinOptions.elseSubgraphIndex]
        for _ in range(60):
            level = tiny.schema.SubGraphT()
            level.tensors, level.inputs, level.outputs = leaf.tensors, leaf.inputs, leaf.outputs
            call = tiny.schema.OperatorT()
            call.opcodeIndex, call.builtinOptionsType = branch.opcodeIndex, branch.builtinOptionsType
            call.builtinOptions = tiny.schema.IfOptionsT()
            call.builtinOptions.thenSubgraphIndex = call.builtinOptions.elseSubgraphIndex = len(tree.subgraphs) + 1
            level.operators = [call]
            tree.subgraphs.append(level)
        tree.subgraphs.append(leaf)
        branch.builtinOptions.thenSubgraphIndex = len(tree.subgraphs) - 61

    refused(described, tiny.edited(branching, call_itself), "")
    refused(described, tiny.edited(branching, double_at_each_level), "without end")
