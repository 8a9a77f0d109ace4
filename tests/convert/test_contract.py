from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tests.convert import tiny
from tests.evaluate import by_hand
from tfdeploy_magic import sources
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.schemes import SCHEMES
from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, Signature, TensorSpec
from tfdeploy_magic.convert import contract
from tfdeploy_magic.convert.describe import describe
from tfdeploy_magic.errors import ContractBroken, VariablesLost


@pytest.fixture(scope="module")
def asked(trained_cnn: Any) -> Signature:
    return sources.open_source(trained_cnn, "model").model.signature


@pytest.fixture(scope="module")
def float_file(trained_cnn: Any, tmp_path_factory: pytest.TempPathFactory) -> LiteFile:
    return written(by_hand.plain_file(trained_cnn), tmp_path_factory, "float32")


@pytest.fixture(scope="module")
def int8_file(trained_cnn: Any, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> LiteFile:
    return written(by_hand.plain_file(trained_cnn, "int8", "int8", digits.x_train[:20]), tmp_path_factory, "int8")


def written(content: bytes, factory: pytest.TempPathFactory, scheme: str) -> LiteFile:
    path: Path = factory.mktemp("file") / "m.tflite"
    path.write_bytes(content)
    return LiteFile.from_description(path, scheme, describe(path))


def test_a_file_that_is_what_was_asked_for_passes(float_file: LiteFile, int8_file: LiteFile, asked: Signature) -> None:
    contract.check(float_file, asked, io="float32")
    contract.check(int8_file, asked, io="int8")


def test_a_float_file_where_int8_was_asked_is_a_failure(float_file: LiteFile, asked: Signature) -> None:
    with pytest.raises(ContractBroken, match=r"float32\[\?, 8, 8, 1\][^!]*int8 for"):
        contract.check(float_file, asked, io="int8")
    for scheme, activations in (("int8", "int8"), ("int16x8", "int16")):
        with pytest.raises(ContractBroken, match=f"Wanted {activations} activations"):
            contract.check(replace(float_file, scheme=scheme), asked, io="float32")


@pytest.mark.parametrize("io", ["float32", "uint8"])
def test_an_int8_file_where_something_else_was_asked_is_a_failure(
    int8_file: LiteFile, asked: Signature, io: str
) -> None:
    with pytest.raises(ContractBroken, match=f"{io} for"):
        contract.check(int8_file, asked, io=io)


def test_a_missing_signature_input_or_output_is_a_failure(float_file: LiteFile, asked: Signature) -> None:
    with pytest.raises(ContractBroken, match="a signature 'embed'"):
        contract.check(float_file, replace(asked, name="embed"), io="float32")
    renamed = replace(asked.outputs[0], name="other")
    with pytest.raises(ContractBroken, match="no tensor named other"):
        contract.check(float_file, replace(asked, outputs=(renamed,)), io="float32")


@pytest.mark.parametrize("shape", [(None, 9, 8, 1), (None, 8, 8), (None, 8, 8, 1, 1)])
def test_another_shape_is_a_failure(float_file: LiteFile, asked: Signature, shape: tuple[int | None, ...]) -> None:
    other = replace(asked, inputs=(replace(asked.inputs[0], shape=shape),))
    with pytest.raises(ContractBroken):
        contract.check(float_file, other, io="float32")


def test_a_shape_of_unknown_rank_fits_any(float_file: LiteFile, asked: Signature) -> None:
    unknown = replace(asked, inputs=(replace(asked.inputs[0], shape=UNKNOWN_RANK),))
    contract.check(float_file, unknown, io="float32")


def check(content: bytes, factory: pytest.TempPathFactory, scheme: str = "float32", **options: Any) -> None:
    """Check a file that takes and gives what it says."""
    file = written(content, factory, scheme)
    contract.check(file, file.signature, io="float32", **options)


# Operators


@pytest.fixture(scope="module")
def with_flex() -> bytes:
    import tensorflow as tf

    return tiny.from_function(tf.math.erf, [1, 4], **tiny.with_flex())


@pytest.fixture(scope="module")
def with_custom() -> bytes:
    import tensorflow as tf

    return tiny.from_function(tf.math.erf, [1, 4], allow_custom_ops=True)


def test_tensorflows_own_operators_are_a_failure_unless_asked_for(
    with_flex: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(ContractBroken, match=r"\(Flex\): Erf[^!]*--select-ops"):
        check(with_flex, tmp_path_factory, custom_ops=True)
    check(with_flex, tmp_path_factory, select_ops=True)


def test_custom_operators_are_a_failure_unless_asked_for(
    with_custom: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(ContractBroken, match=r"custom operators: Erf[^!]*converter.allow_custom_ops"):
        check(with_custom, tmp_path_factory, select_ops=True)
    check(with_custom, tmp_path_factory, custom_ops=True)


def test_the_postprocessing_that_tensorflow_makes_for_detectors_is_welcome(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    content = detector()
    check(content, tmp_path_factory)
    assert by_hand.interpreter(content).get_signature_runner()(x=np.ones((1, 10, 4), "float32"))["y"].shape == (1, 5, 4)


def detector() -> bytes:
    """Convert a function that says it implements LiteRT's detection postprocessing."""
    import tensorflow as tf

    attributes = {
        "max_detections": "i: 5",
        "max_classes_per_detection": "i: 1",
        "use_regular_nms": "b: false",
        "nms_score_threshold": "f: 0.1",
        "nms_iou_threshold": "f: 0.5",
        "num_classes": "i: 2",
        **dict.fromkeys(("y_scale", "x_scale", "h_scale", "w_scale"), "f: 10.0"),
    }
    implements = 'name: "TFLite_Detection_PostProcess" ' + " ".join(
        f'attr {{ key: "{key}" value {{ {value} }} }}' for key, value in attributes.items()
    )

    @tf.function(experimental_implements=implements)
    def postprocess(boxes: Any, scores: Any, anchors: Any) -> Any:
        return tf.zeros([1, 5, 4]), tf.zeros([1, 5]), tf.zeros([1, 5]), tf.zeros([1])

    def detect(x: Any) -> Any:
        return postprocess(x, x[:, :, :3], tf.ones([10, 4]))[0]

    return tiny.from_function(detect, [1, 10, 4], allow_custom_ops=True)


@pytest.mark.parametrize("name", [*sorted(contract.LITERT_CUSTOM_OPERATORS), "Erf"])
def test_the_custom_operators_that_are_welcome_are_those_litert_brings_along(with_custom: bytes, name: str) -> None:
    def rename(tree: Any) -> None:
        tree.operatorCodes[0].customCode = name.encode()

    complaint = ""
    try:
        by_hand.interpreter(tiny.edited(with_custom, rename)).allocate_tensors()
    except RuntimeError as error:  # of missing inputs and options
        complaint = str(error)
    assert ("unresolved custom op" in complaint) is (name not in contract.LITERT_CUSTOM_OPERATORS)


# How much is quantized


@pytest.mark.parametrize("scheme", by_hand.SCHEMES)
def test_what_tensorflow_makes_of_a_trained_model_passes_in_every_scheme(
    trained_cnn: Any, digits: Digits, asked: Signature, tmp_path_factory: pytest.TempPathFactory, scheme: str
) -> None:
    io = SCHEMES[scheme].io
    content = by_hand.plain_file(trained_cnn, scheme, io, digits.x_train[:20])
    contract.check(written(content, tmp_path_factory, scheme), asked, io=io)


def waves(x: Any, count: int) -> Any:
    import tensorflow as tf

    for _ in range(count):
        x = tf.sin(x)
    return tf.nn.softmax(x)


@pytest.mark.parametrize("count", [0, 1])
def test_a_file_that_is_mostly_integers_passes(tmp_path_factory: pytest.TempPathFactory, count: int) -> None:
    content = tiny.from_function(lambda x: waves(x, count), [1, 8], **tiny.calibrated_on(1, 8))
    check(content, tmp_path_factory, "int8")


def test_a_file_that_is_mostly_float_is_a_failure_that_names_what_stayed_float(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    content = tiny.from_function(lambda x: waves(x, 2), [1, 8], **tiny.calibrated_on(1, 8))
    with pytest.raises(ContractBroken, match=r"2 of 3 activations left in float, by SIN ×2[^!]*int8 activations"):
        check(content, tmp_path_factory, "int8")


def test_custom_operators_that_were_asked_for_are_not_held_against_an_integer_file(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    import tensorflow as tf

    def function(x: Any) -> Any:
        return tf.nn.softmax(tf.math.erf(tf.math.erf(x)))

    content = tiny.from_function(function, [1, 8], allow_custom_ops=True)
    file = written(content, tmp_path_factory, "int8")
    held = {"activations": {"float32": 2, "int8": 1}, "float_operators": {"CUSTOM Erf": 2}, "tensor_types": {"int8": 1}}
    contract.check(replace(file, **held), file.signature, io="float32", custom_ops=True)


def dense(inputs: int, outputs: int) -> Any:
    import keras

    return keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(outputs)])


@pytest.mark.parametrize(("inputs", "outputs"), [(1023, 1), (31, 33)])
def test_a_dynamic_file_of_small_weights_alone_is_a_failure_with_its_cure(
    tmp_path_factory: pytest.TempPathFactory, inputs: int, outputs: int
) -> None:
    content = by_hand.plain_file(dense(inputs, outputs), "dynamic")
    with pytest.raises(ContractBroken, match=r"weights of float32[^!]*fewer than 1,024 numbers[^!]*--float16"):
        check(content, tmp_path_factory, "dynamic")


@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 1), (32, 32)])
def test_a_dynamic_file_with_one_weight_of_1024_numbers_passes(
    tmp_path_factory: pytest.TempPathFactory, inputs: int, outputs: int
) -> None:
    check(by_hand.plain_file(dense(inputs, outputs), "dynamic"), tmp_path_factory, "dynamic")


def test_small_weights_are_stored_as_float16_all_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    check(by_hand.plain_file(dense(4, 2), "float16"), tmp_path_factory, "float16")


@pytest.mark.parametrize("scheme", ["float16", "dynamic"])
def test_without_weights_there_is_nothing_to_store_otherwise(
    tmp_path_factory: pytest.TempPathFactory, scheme: str
) -> None:
    import tensorflow as tf

    with pytest.raises(ContractBroken, match="weights of no kind"):
        check(tiny.from_function(tf.nn.softmax, [1, 8]), tmp_path_factory, scheme)


# Variables


def test_a_file_whose_weights_were_lost_on_the_way_is_a_failure(
    trained_cnn: Any, asked: Signature, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import tensorflow as tf

    folder = str(tmp_path_factory.mktemp("trap"))
    tf.saved_model.save(trained_cnn, folder)
    file = written(tiny.from_saved_model(folder), tmp_path_factory, "float32")
    with pytest.raises(VariablesLost, match=r"and 5 more\.[^!]*answer NaN[^!]*model\.export"):
        contract.check(file, asked, io="float32")


def test_a_model_with_a_state_of_its_own_passes(tmp_path_factory: pytest.TempPathFactory) -> None:
    content = tiny.from_methods(tiny.counter(), "loop", experimental_enable_resource_variables=True)
    x, y = TensorSpec("x", (1, 2), "float32"), TensorSpec("y", (1, 2), "float32")
    file = written(content, tmp_path_factory, "float32")
    contract.check(file, Signature("serving_default", (x,), (y,)), io="float32")
