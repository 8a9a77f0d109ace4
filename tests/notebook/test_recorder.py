from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.evaluate import by_hand
from tfdeploy_magic.errors import InputError, NotAModel, TfdeployError
from tfdeploy_magic.notebook.recorder import Recorded, Recorder, UnknownSetting, recording, settings

pytestmark = pytest.mark.filterwarnings("ignore:Statistics for quantized inputs were expected:UserWarning")

Setup = Callable[[Any], None]


def representative_dataset() -> Iterator[list[Any]]:
    random = np.random.default_rng(0)
    for _ in range(5):
        yield [random.uniform(-1, 1, (1, 4)).astype("float32")]


def with_settings(
    optimizations: tuple[str, ...] = (),
    ops: tuple[str, ...] = ("TFLITE_BUILTINS",),
    types: tuple[str, ...] = (),
    io: tuple[str, str] = ("float32", "float32"),
    dataset: bool = False,
    **attributes: Any,
) -> Setup:
    """Set up a converter, recorded or real, as a person would in a cell."""

    def setup(converter: Any) -> None:
        import tensorflow as tf

        converter.optimizations = [tf.lite.Optimize[name] for name in optimizations]
        converter.target_spec.supported_ops = [tf.lite.OpsSet[name] for name in ops]
        converter.target_spec.supported_types = [tf.as_dtype(name) for name in types]
        converter.inference_input_type, converter.inference_output_type = map(tf.as_dtype, io)
        if dataset:
            converter.representative_dataset = representative_dataset
        for name, value in attributes.items():
            setattr(converter, name, value)

    return setup


def recorded(setup: Setup) -> Recorded:
    recorder = Recorder(no_file, "the model")
    setup(recorder)
    return settings(recorder)


def no_file(recorder: Recorder) -> bytes:
    raise AssertionError("convert() was called")


DEFAULT = ("DEFAULT",)
INT8 = ("TFLITE_BUILTINS_INT8",)
INT16X8 = ("EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8",)
WITH_FLOAT = ("TFLITE_BUILTINS",)
WITH_SELECT = ("SELECT_TF_OPS",)

OPTIONS = {
    "nothing set": (with_settings(), "float32", "float32"),
    "a dataset that nothing uses": (with_settings(dataset=True), "float32", "float32"),
    "default": (with_settings(DEFAULT), "dynamic", "float32"),
    "for size": (with_settings(("OPTIMIZE_FOR_SIZE",)), "dynamic", "float32"),
    "for latency": (with_settings(("OPTIMIZE_FOR_LATENCY",)), "dynamic", "float32"),
    "half": (with_settings(DEFAULT, types=("float16",)), "float16", "float32"),
    "half, a dataset that nothing uses": (
        with_settings(DEFAULT, types=("float16",), dataset=True),
        "float16",
        "float32",
    ),
    "dataset": (with_settings(DEFAULT, dataset=True), "int8", "float32"),
    "dataset, int8 io": (with_settings(DEFAULT, io=("int8", "int8"), dataset=True), "int8", "int8"),
    "int8 alone": (with_settings(DEFAULT, INT8, dataset=True), "int8", "float32"),
    "int8 alone, int8 io": (with_settings(DEFAULT, INT8, io=("int8", "int8"), dataset=True), "int8", "int8"),
    "int8 alone, uint8 io": (with_settings(DEFAULT, INT8, io=("uint8", "uint8"), dataset=True), "int8", "uint8"),
    "int8 or float": (with_settings(DEFAULT, INT8 + WITH_FLOAT, dataset=True), "int8", "float32"),
    "int16x8": (with_settings(DEFAULT, INT16X8, dataset=True), "int16x8", "float32"),
}
"""What our options express exactly."""

PLAIN = {
    "int8 in, float out": (with_settings(DEFAULT, INT8, io=("int8", "float32"), dataset=True), "int8", None),
    "int16x8 with int16 io": (with_settings(DEFAULT, INT16X8, io=("int16", "int16"), dataset=True), "int16x8", None),
    "int16x8 or float": (with_settings(DEFAULT, INT16X8 + WITH_FLOAT, dataset=True), "int16x8", "float32"),
    "int8 by its type": (with_settings(DEFAULT, types=("int8",), dataset=True), "int8", "float32"),
    "bfloat16": (with_settings(DEFAULT, types=("bfloat16",)), "float32", "float32"),
    "sparsity": (with_settings(("EXPERIMENTAL_SPARSITY",)), "float32", "float32"),
    "sparsity too": (with_settings(("DEFAULT", "EXPERIMENTAL_SPARSITY")), "dynamic", "float32"),
    "one scale a tensor": (with_settings(DEFAULT, _experimental_disable_per_channel=True), "dynamic", "float32"),
    "no metadata": (with_settings(exclude_conversion_metadata=True), "float32", "float32"),
    "the older quantizer": (
        with_settings(DEFAULT, INT8, dataset=True, experimental_new_quantizer=False),
        "int8",
        "float32",
    ),
}
"""What they do not."""

REFUSED = {
    "int8 io without a dataset": with_settings(DEFAULT, io=("int8", "int8")),
    "int8 io without optimizations": with_settings(dataset=True, io=("int8", "int8")),
    "int16 io of int8": with_settings(DEFAULT, INT8, io=("int16", "int16"), dataset=True),
    "int8 io of int16x8": with_settings(DEFAULT, INT16X8, io=("int8", "int8"), dataset=True),
}
"""What TensorFlow says no to."""


@pytest.mark.parametrize("name", OPTIONS)
def test_what_the_options_express_becomes_options(name: str) -> None:
    setup, scheme, io = OPTIONS[name]
    found = recorded(setup)
    assert (found.scheme, found.io, found.select_ops, found.plain) == (scheme, io, False, None)
    calibrated = scheme in ("int8", "int16x8")
    assert found.representative_dataset is (representative_dataset if calibrated or "nothing uses" in name else None)


@pytest.mark.parametrize("name", PLAIN)
def test_what_no_option_expresses_is_left_to_the_plain_converter(name: str) -> None:
    setup, scheme, io = PLAIN[name]
    found = recorded(setup)
    assert (found.scheme, found.io) == (scheme, io)
    assert found.plain


# What TensorFlow makes of the same settings


@pytest.fixture(scope="module")
def dense() -> Any:
    """A model all of which is quantized: weights of less than 1024 numbers are left alone, and zero biases dropped."""
    import keras

    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(300, bias_initializer="ones")
    return keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(2, bias_initializer="ones")])


def made_by_tensorflow(model: Any, setup: Setup) -> bytes:
    import tensorflow as tf

    function = tf.function(model).get_concrete_function(tf.TensorSpec((None, 4), tf.float32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], function)
    setup(converter)
    return bytes(converter.convert())


def scheme_of(content: bytes) -> str:
    dtypes = {np.dtype(tensor["dtype"]).name for tensor in by_hand.interpreter(content).get_tensor_details()}
    if "int64" in dtypes:  # the biases of 16-bit activations
        return "int16x8"
    if "float16" in dtypes:
        return "float16"
    if "int8" not in dtypes:
        return "float32"
    return "int8" if "int32" in dtypes else "dynamic"  # int32 are the biases of 8-bit activations


@pytest.mark.parametrize("name", [*OPTIONS, *PLAIN])
def test_tensorflow_makes_the_scheme_that_is_recorded(name: str, dense: Any) -> None:
    setup, scheme, io = (OPTIONS | PLAIN)[name]
    content = made_by_tensorflow(dense, setup)
    assert scheme_of(content) == scheme
    if io is not None:
        interpreter = by_hand.interpreter(content)
        ends = (*interpreter.get_input_details(), *interpreter.get_output_details())
        assert {np.dtype(tensor["dtype"]).name for tensor in ends} == {io}


@pytest.mark.parametrize("setup", REFUSED.values(), ids=REFUSED)
def test_what_tensorflow_refuses_is_left_to_its_plain_converter_to_refuse(setup: Setup, dense: Any) -> None:
    found = recorded(setup)
    assert found.io is None
    assert found.plain is not None
    with pytest.raises(ValueError, match="inference_input_type"):
        made_by_tensorflow(dense, setup)


# Select TF ops


@pytest.mark.parametrize("ops", [WITH_FLOAT, INT8, INT8 + WITH_FLOAT])
def test_select_ops_stand_beside_a_scheme(ops: tuple[str, ...]) -> None:
    found = recorded(with_settings(DEFAULT, ops + WITH_SELECT, dataset=True))
    assert (found.scheme, found.select_ops, found.plain) == ("int8", True, None)


@pytest.mark.parametrize("ops", [WITH_SELECT, INT16X8 + WITH_SELECT, (*WITH_FLOAT, "EXPERIMENTAL_STABLEHLO_OPS")])
def test_other_sets_of_operations_are_left_to_the_plain_converter(ops: tuple[str, ...]) -> None:
    found = recorded(with_settings(DEFAULT, ops, dataset=True))
    assert found.select_ops == ("SELECT_TF_OPS" in ops)
    assert found.plain is not None
    assert found.plain["target_spec.supported_ops"] == [{"enum": f"OpsSet.{name}"} for name in ops]


# Plain settings


def test_plain_settings_are_those_that_differ_from_the_defaults() -> None:
    found = recorded(
        with_settings(
            DEFAULT, INT8, io=("int8", "float32"), dataset=True, allow_custom_ops=True, experimental_new_converter=True
        )
    )
    assert found.plain == {
        "optimizations": [{"enum": "Optimize.DEFAULT"}],
        "target_spec.supported_ops": [{"enum": "OpsSet.TFLITE_BUILTINS_INT8"}],
        "inference_input_type": {"dtype": "int8"},
        "allow_custom_ops": True,
    }


def test_a_value_that_cannot_leave_the_process_is_refused_by_the_settings_name() -> None:
    with pytest.raises(InputError, match=r"experimental_stablehlo_quantizer_config[^!]*found a object"):
        recorded(with_settings(experimental_stablehlo_quantizer_config=object()))


# Asked for, but TensorFlow would do something else


@pytest.mark.parametrize("ops", [INT8, INT16X8])
def test_integers_without_a_dataset_are_still_what_was_asked_for(ops: tuple[str, ...]) -> None:
    found = recorded(with_settings(DEFAULT, ops))
    assert found.scheme == ("int8" if ops == INT8 else "int16x8")
    assert found.representative_dataset is None


@pytest.mark.parametrize(
    "setup",
    [
        with_settings(ops=INT8, dataset=True),
        with_settings(ops=INT16X8, dataset=True),
        with_settings(types=("float16",)),
        with_settings(("EXPERIMENTAL_SPARSITY",), types=("float16",)),
    ],
)
def test_a_smaller_file_without_optimizations_is_refused(setup: Setup, dense: Any) -> None:
    assert scheme_of(made_by_tensorflow(dense, setup)) == "float32"
    with pytest.raises(InputError, match=r"Add converter\.optimizations = "):
        recorded(setup)


def test_what_tensorflow_refuses_is_refused() -> None:
    with pytest.raises(InputError, match="supported_types"):
        recorded(with_settings(DEFAULT, INT8, types=("float16",), dataset=True))


def test_a_single_value_where_a_list_belongs_is_refused() -> None:
    import tensorflow as tf

    def setup(converter: Any) -> None:
        converter.optimizations = tf.lite.Optimize.DEFAULT

    with pytest.raises(InputError, match=r"Wanted a list such as \[tf\.lite\.Optimize\.DEFAULT\]"):
        recorded(setup)


def test_a_dtype_of_numpy_is_no_supported_type() -> None:
    def setup(converter: Any) -> None:
        converter.target_spec.supported_types = [np.float16]

    with pytest.raises(InputError, match=r"found \[.*numpy\.float16[^!]*tf\.float16"):
        recorded(setup)


# Representative datasets


def test_a_wrapped_generator_function_is_unwrapped() -> None:
    import tensorflow as tf

    wrapped = tf.lite.RepresentativeDataset(representative_dataset)
    found = recorded(with_settings(DEFAULT, representative_dataset=wrapped))
    assert found.representative_dataset is representative_dataset


def test_a_generator_that_was_called_is_refused() -> None:
    with pytest.raises(InputError, match=r"found a generator\.\nWanted a function[^!]*without calling it"):
        recorded(with_settings(DEFAULT, representative_dataset=representative_dataset()))


# Attributes


def test_reading_gives_tensorflows_defaults() -> None:
    import tensorflow as tf

    converter = Recorder(no_file)
    assert converter.optimizations == set()
    assert converter.inference_input_type is tf.float32
    assert converter.target_spec.supported_ops == {tf.lite.OpsSet.TFLITE_BUILTINS}
    assert converter.experimental_new_quantizer is True
    assert "allow_custom_ops" in dir(converter)


def test_values_may_be_changed_where_they_stand() -> None:
    import tensorflow as tf

    def setup(converter: Any) -> None:
        converter.optimizations.add(tf.lite.Optimize.DEFAULT)
        converter.target_spec.supported_types.add(tf.float16)

    assert recorded(setup).scheme == "float16"
    assert recorded(with_settings()).scheme == "float32"


@pytest.mark.parametrize(
    ("owner", "name", "near"),
    [("converter", "optimisations", "optimizations"), ("converter.target_spec", "supported_type", "supported_types")],
)
def test_an_unknown_attribute_is_an_error_that_names_the_nearest(owner: str, name: str, near: str) -> None:
    converter = Recorder(no_file)
    thing = converter if owner == "converter" else converter.target_spec
    for use in (lambda: getattr(thing, name), lambda: setattr(thing, name, [])):
        with pytest.raises(UnknownSetting, match=rf"{owner} has no '{name}'[^!]*Did you mean {near}\?"):
            use()
    assert not hasattr(thing, name)


def test_a_target_spec_of_ones_own_counts_as_it_is_when_converted() -> None:
    import tensorflow as tf

    spec = tf.lite.TargetSpec()

    def setup(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec = spec
        spec.supported_types = [tf.float16]

    assert recorded(setup).scheme == "float16"
    spec.supported_type = []
    with pytest.raises(UnknownSetting, match=r"converter\.target_spec has no 'supported_type'"):
        recorded(setup)


def test_a_target_spec_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="TargetSpec"):
        recorded(with_settings(target_spec=["TFLITE_BUILTINS"]))


# Recording


def test_constructors_record_their_source_and_convert_calls_back() -> None:
    import tensorflow as tf

    seen = []

    def on_convert(recorder: Recorder) -> bytes:
        seen.append((recorder.source, recorder.signature_keys))
        return b"file"

    class_before = tf.lite.TFLiteConverter
    with recording(on_convert):
        assert class_before.from_keras_model("model").convert() == b"file"
        assert tf.lite.TFLiteConverter.from_saved_model("folder", signature_keys=["embed"], tags={"serve"}).convert()
        assert tf.lite.TFLiteConverter.from_concrete_functions(["function"], "trackable").convert()
    assert seen == [("model", None), ("folder", ("embed",)), ("function", None)]


def test_a_cell_as_the_guides_write_it() -> None:
    import tensorflow as tf

    found = []
    cell = """
converter = tf.lite.TFLiteConverter.from_keras_model(model)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = representative_dataset
converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
converter.inference_input_type = tf.int8
converter.inference_output_type = tf.int8
tflite_model = converter.convert()
"""
    kernel = {"tf": tf, "model": "a model", "representative_dataset": representative_dataset}
    with recording(lambda recorder: found.append(settings(recorder)) or b"file"):
        exec(cell, kernel)
    assert kernel["tflite_model"] == b"file"
    assert found == [Recorded("a model", None, "int8", "int8", representative_dataset, False, None)]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("experimental_from_jax", ([], []), "jax2tf"),
        ("from_saved_model", ("folder", None, {"train"}), "tags"),
        ("from_concrete_functions", ([],), "0 functions"),
        ("from_concrete_functions", (["one", "two"],), "2 functions"),
    ],
)
def test_what_cannot_be_recorded_is_refused(name: str, arguments: tuple[Any, ...], words: str) -> None:
    import tensorflow as tf

    with recording(no_file), pytest.raises(TfdeployError, match=words) as caught:
        getattr(tf.lite.TFLiteConverter, name)(*arguments)
    assert isinstance(caught.value, NotAModel if name == "experimental_from_jax" else InputError)


def test_no_other_converter_runs_in_the_kernel(dense: Any) -> None:
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, (1, 2))
        version_1 = tf.compat.v1.lite.TFLiteConverter(graph.as_graph_def(), [x], [x + 1.0])
    for converter in (
        tf.lite.TFLiteConverter.from_keras_model(dense),
        tf.lite.TFLiteConverter([tf.function(dense).get_concrete_function(tf.TensorSpec((1, 4)))]),
        version_1,
    ):
        with recording(no_file), pytest.raises(InputError, match=f"found a {type(converter).__name__} made"):
            converter.convert()


def test_everything_is_put_back_whatever_happens() -> None:
    from tensorflow.lite.python import lite

    before = {owner: dict(vars(owner)) for owner in (lite.TFLiteConverterV2, lite.TFLiteConverterBase)}
    with pytest.raises(KeyboardInterrupt), recording(no_file):
        raise KeyboardInterrupt
    with recording(lambda _: b"outer"):
        with pytest.raises(ZeroDivisionError), recording(lambda _: b"inner"):
            assert lite.TFLiteConverterV2.from_keras_model("model").convert() == b"inner"
            raise ZeroDivisionError
        assert lite.TFLiteConverterV2.from_keras_model("model").convert() == b"outer"
    for owner, attributes in before.items():
        assert dict(vars(owner)) == attributes
