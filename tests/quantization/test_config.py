"""A converter that Model Maker's configuration has set up makes the file that one set up by hand makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tests.evaluate import by_hand
from tfdeploy_magic.errors import DataError, InputError
from tfdeploy_magic.notebook.recorder import Recorder, settings
from tfdeploy_magic.quantization.config import QuantizationConfig

pytestmark = pytest.mark.filterwarnings("ignore:Statistics for quantized inputs were expected:UserWarning")

ROWS = np.random.default_rng(0).uniform(0, 1, (20, 4)).astype("float32")


class MakerData:
    """Model Maker's data as far as a converter sees them."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self.asked: list[dict[str, Any]] = []

    def gen_dataset(self, batch_size: int = 1, is_training: bool = False, **more: Any) -> Any:
        import tensorflow as tf

        self.asked.append({"batch_size": batch_size, "is_training": is_training, **more})
        return tf.data.Dataset.from_tensor_slices((self.rows, np.arange(len(self.rows)))).batch(batch_size)


class Counted:
    """A representative dataset as guides write it, which counts what is drawn from it."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self.drawn = 0

    def __call__(self) -> Iterator[list[Any]]:
        for position in range(len(self.rows)):
            self.drawn += 1
            yield [self.rows[position : position + 1]]


def recorder() -> Recorder:
    return Recorder(lambda _: b"", "the model")


def items(config: QuantizationConfig, **more: Any) -> list[Any]:
    """What a converter would calibrate with."""
    return list(config.get_converter_with_quantization(recorder(), **more).representative_dataset())


def converted(config: QuantizationConfig, model: Any) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    assert config.get_converter_with_quantization(converter) is converter
    return bytes(converter.convert())


# Files


@pytest.mark.parametrize("scheme", ["float16", "dynamic", "int8"])
def test_a_file_answers_exactly_as_one_set_up_by_hand(trained_cnn: Any, digits: Digits, scheme: str) -> None:
    rows = digits.x_train[:60]
    config = {
        "float16": QuantizationConfig.for_float16,
        "dynamic": QuantizationConfig.for_dynamic,
        "int8": lambda: QuantizationConfig.for_int8(MakerData(rows)),
    }[scheme]()
    content = converted(config, trained_cnn)
    by_me = by_hand.plain_file(trained_cnn, scheme, "uint8" if scheme == "int8" else "float32", rows)
    (name,) = by_hand.interpreter(by_me).get_signature_runner().get_input_details()
    expected, got = (by_hand.answers(file, {name: digits.x_test[:100]}) for file in (by_me, content))
    for output, answers in expected.items():
        np.testing.assert_array_equal(got[output], answers)
        assert np.ptp(answers) > 0.5
    assert len(content) == len(by_me) < len(by_hand.plain_file(trained_cnn)) * 0.7


def test_an_int8_file_takes_and_gives_uint8_and_holds_no_floats(trained_cnn: Any, digits: Digits) -> None:
    interpreter = by_hand.interpreter(converted(QuantizationConfig.for_int8(digits.x_train[:30]), trained_cnn))
    ends = (*interpreter.get_input_details(), *interpreter.get_output_details())
    assert {details["dtype"] for details in ends} == {np.uint8}
    assert {np.dtype(details["dtype"]).kind for details in interpreter.get_tensor_details()} <= {"i", "u"}


# Attributes


@pytest.mark.parametrize(
    ("config", "scheme", "io"),
    [
        (lambda: QuantizationConfig(), "dynamic", "float32"),
        (lambda: QuantizationConfig.for_dynamic(), "dynamic", "float32"),
        (lambda: QuantizationConfig.for_float16(), "float16", "float32"),
        (lambda: QuantizationConfig.for_int8(ROWS), "int8", "uint8"),
        (lambda: QuantizationConfig.for_int8(ROWS, 5, "int8", "int8"), "int8", "int8"),
        (lambda: QuantizationConfig(representative_dataset=Counted(ROWS)), "int8", "float32"),
        (lambda: QuantizationConfig.for_int8(representative_dataset=Counted(ROWS)), "int8", "uint8"),
        (
            lambda: QuantizationConfig.for_int8(ROWS, supported_ops=["TFLITE_BUILTINS", "TFLITE_BUILTINS_INT8"]),
            "int8",
            "uint8",
        ),
    ],
)
def test_a_recorder_finds_the_scheme(config: Callable[[], QuantizationConfig], scheme: str, io: str) -> None:
    recorded = settings(config().get_converter_with_quantization(recorder()))
    assert (recorded.scheme, recorded.io, recorded.plain) == (scheme, io, None)


def test_names_and_single_members_mean_what_tensorflows_own_do() -> None:
    import tensorflow as tf

    ours = QuantizationConfig("DEFAULT", ROWS, None, "uint8", "int8", "TFLITE_BUILTINS_INT8", "int8", False)
    theirs = QuantizationConfig(
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_data=ROWS,
        quantization_steps=500,
        inference_input_type=tf.uint8,
        inference_output_type=tf.int8,
        supported_ops=[tf.lite.OpsSet.TFLITE_BUILTINS_INT8],
        supported_types=[tf.int8],
        experimental_new_quantizer=False,
    )
    assert vars(ours) == vars(theirs)
    converter = ours.get_converter_with_quantization(recorder())
    assert converter.optimizations == [tf.lite.Optimize.DEFAULT]
    assert (converter.inference_input_type, converter.inference_output_type) == (tf.uint8, tf.int8)
    assert converter.target_spec.supported_ops == [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    assert converter.target_spec.supported_types == [tf.int8]
    assert converter.experimental_new_quantizer is False


def test_what_is_not_given_stays_as_the_converter_has_it() -> None:
    before = recorder()
    after = QuantizationConfig().get_converter_with_quantization(recorder())
    for name in (
        "inference_input_type",
        "inference_output_type",
        "experimental_new_quantizer",
        "representative_dataset",
    ):
        assert getattr(after, name) == getattr(before, name)
    assert vars(after.target_spec) == vars(before.target_spec)


# Samples


def dataset(*tensors: Any, batch: int | None = None, whole: bool = False) -> Any:
    import tensorflow as tf

    made = tf.data.Dataset.from_tensor_slices(tensors if len(tensors) > 1 else tensors[0])
    return made if batch is None else made.batch(batch, drop_remainder=whole)


LABELS = np.arange(20) % 3

DATA: dict[str, Callable[[], Any]] = {
    "an array": lambda: ROWS,
    "doubles": lambda: ROWS.astype("float64"),
    "Model Maker's data": lambda: MakerData(ROWS),
    "a function": lambda: Counted(ROWS),
    "a dataset": lambda: dataset(ROWS),
    "a dataset in batches": lambda: dataset(ROWS, batch=8),
    "a dataset with labels": lambda: dataset(ROWS, LABELS),
    "a dataset with labels in batches": lambda: dataset(ROWS, LABELS, batch=8),
    "a dataset with labels in whole batches": lambda: dataset(ROWS, LABELS, batch=5, whole=True),
    "a dataset with one-hot labels": lambda: dataset(ROWS, np.eye(3)[LABELS]),
    "a dataset with weights": lambda: dataset(ROWS, LABELS, np.ones(20), batch=3),
}


@pytest.mark.parametrize("name", DATA)
def test_samples_come_one_at_a_time_from_any_data(name: str) -> None:
    found = items(QuantizationConfig.for_int8(DATA[name]()))
    assert all(isinstance(item, list) and [part.shape for part in item] == [(1, 4)] for item in found)
    assert all(part.dtype == np.float32 for item in found for part in item)
    np.testing.assert_array_equal(np.concatenate([item[0] for item in found]), ROWS)


@pytest.mark.parametrize("name", DATA)
def test_quantization_steps_limit_the_samples(name: str) -> None:
    found = items(QuantizationConfig(representative_data=DATA[name](), quantization_steps=7))
    assert len(found) == 7
    assert all(any(np.array_equal(item[0][0], row) for row in ROWS) for item in found)


def test_no_more_than_the_steps_are_drawn_from_a_function() -> None:
    for steps, drawn in ((3, 3), (None, 500)):
        function = Counted(np.zeros((600, 4), "float32"))
        items(QuantizationConfig(representative_data=function, quantization_steps=steps))
        assert function.drawn == drawn


def test_a_guides_function_is_drawn_to_its_end_unless_steps_are_given() -> None:
    function = Counted(np.zeros((600, 4), "float32"))
    whole = QuantizationConfig(representative_dataset=function)
    assert whole.get_converter_with_quantization(recorder()).representative_dataset is function
    assert len(items(QuantizationConfig(representative_dataset=function, quantization_steps=4))) == 4


def test_tensorflows_own_wrapper_of_a_function_is_opened() -> None:
    import tensorflow as tf

    assert len(items(QuantizationConfig(representative_dataset=tf.lite.RepresentativeDataset(Counted(ROWS))))) == 20


def test_some_rows_of_an_array_are_drawn_at_random() -> None:
    ordered = np.repeat(np.arange(10, dtype="float32"), 100)[:, None]
    drawn = [float(item[0][0, 0]) for item in items(QuantizationConfig.for_int8(ordered, 50))]
    assert len(set(drawn)) > 7


def test_samples_can_be_drawn_more_than_once() -> None:
    for make in DATA.values():
        function = (
            QuantizationConfig.for_int8(make()).get_converter_with_quantization(recorder()).representative_dataset
        )
        assert len(list(function())) == len(list(function())) == 20


def test_inputs_by_name_and_several_inputs_keep_their_names_and_order() -> None:
    pair = {"a": ROWS, "b": ROWS[:, :2]}
    for made in (dataset(pair), dataset(pair, batch=6)):
        found = items(QuantizationConfig.for_int8(made))
        assert [{name: part.shape for name, part in item.items()} for item in found] == [
            {"a": (1, 4), "b": (1, 2)}
        ] * 20
    found = items(QuantizationConfig.for_int8(dataset((ROWS, ROWS[:, :2]), LABELS, batch=6)))
    assert [[part.shape for part in item] for item in found] == [[(1, 4), (1, 2)]] * 20


def test_sentences_of_any_length_with_labels_are_not_taken_for_batches() -> None:
    import tensorflow as tf

    spec = (tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.int32))
    made = tf.data.Dataset.from_generator(lambda: ((np.arange(n), 0) for n in (3, 5)), output_signature=spec)
    assert [item[0].shape for item in items(QuantizationConfig.for_int8(made))] == [(1, 3), (1, 5)]


def test_model_makers_data_are_asked_as_model_maker_asks_them() -> None:
    data, preprocess = MakerData(ROWS), abs
    items(QuantizationConfig.for_int8(data), preprocess=preprocess, shuffle=False)
    assert data.asked == [{"batch_size": 1, "is_training": False, "preprocess": preprocess, "shuffle": False}]


# Errors


def test_two_kinds_of_samples_are_refused() -> None:
    with pytest.raises(InputError, match="found representative_data and representative_dataset"):
        QuantizationConfig(representative_data=ROWS, representative_dataset=Counted(ROWS))


@pytest.mark.parametrize("ops", ["TFLITE_BUILTINS_INT8", "EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8"])
def test_integer_operations_without_samples_are_refused(ops: str) -> None:
    with pytest.raises(InputError, match=f"{ops} without samples"):
        QuantizationConfig(supported_ops=["TFLITE_BUILTINS", ops])


def test_int8_without_samples_is_refused() -> None:
    with pytest.raises(InputError, match="TFLITE_BUILTINS_INT8 without samples"):
        QuantizationConfig.for_int8(None)


@pytest.mark.parametrize("value", [3, "x_train", Counted(ROWS)(), [ROWS]])
def test_what_yields_no_samples_is_refused_by_its_type(value: Any) -> None:
    with pytest.raises(DataError, match=f"representative_data cannot be used.*{type(value).__name__}"):
        QuantizationConfig(representative_data=value)
    with pytest.raises(DataError, match=f"representative_dataset cannot be used.*{type(value).__name__}"):
        QuantizationConfig(representative_dataset=value)


def test_an_array_is_no_representative_dataset() -> None:
    with pytest.raises(DataError, match=r"found a numpy array float32\[20, 4\]"):
        QuantizationConfig(representative_dataset=ROWS)  # type: ignore[arg-type]


def test_settings_that_only_model_makers_data_take_are_refused_for_others() -> None:
    config = QuantizationConfig.for_int8(ROWS)
    with pytest.raises(InputError, match="preprocess cannot be used"):
        config.get_converter_with_quantization(recorder(), preprocess=abs)
    assert QuantizationConfig().get_converter_with_quantization(recorder(), preprocess=abs)


@pytest.mark.parametrize(
    ("argument", "wrong", "has"),
    [
        ("optimizations", "FASTER", "DEFAULT"),
        ("optimizations", [["DEFAULT"]], "DEFAULT"),
        ("supported_ops", "INT8", "TFLITE_BUILTINS_INT8"),
        ("inference_input_type", "uint9", "uint8"),
        ("supported_types", ["half of it"], "uint8"),
    ],
)
def test_a_name_that_tensorflow_lacks_is_refused_with_those_it_has(argument: str, wrong: Any, has: str) -> None:
    with pytest.raises(InputError, match=f"(?s)cannot be used.*{has}"):
        QuantizationConfig(**{argument: wrong})


def test_importing_it_does_not_import_tensorflow() -> None:
    import subprocess
    import sys

    code = "import sys, tfdeploy_magic.quantization.config; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
