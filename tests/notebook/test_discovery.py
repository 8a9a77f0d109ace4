from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from tfdeploy_magic.artifacts.signature import TensorSpec
from tfdeploy_magic.errors import DataError
from tfdeploy_magic.notebook.discovery import TEST_ROWS, Kernel, labels_for

IMAGE = (TensorSpec("image", (None, 4, 4, 1), "float32"),)


def images(count: int, dtype: str = "float32") -> Any:
    return np.ones((count, 4, 4, 1), dtype)


def test_training_data_calibrates_and_test_data_tests_with_its_labels() -> None:
    kernel = {"x_test": images(50), "y_test": np.zeros(50, int), "x_train": images(200), "y_train": np.zeros(200, int)}
    calibration = Kernel(kernel, IMAGE).find_calibration()
    test = Kernel(kernel, IMAGE).find_test(calibration, 100)
    assert calibration.name == "x_train"
    assert test is not None
    assert (test.name, test.labels_name) == ("x_test, y_test", "y_test")
    assert test.labels is kernel["y_test"]


def test_a_representative_dataset_comes_before_any_array() -> None:
    def representative_dataset() -> Any:
        yield [images(1)]

    kernel = {"x_train": images(200), "representative_dataset": representative_dataset}
    assert Kernel(kernel, IMAGE).find_calibration().value is representative_dataset


def test_one_array_is_split_so_that_no_row_both_calibrates_and_tests() -> None:
    kernel = {"x": images(300), "y": np.arange(300)}
    calibration = Kernel(kernel, IMAGE).find_calibration()
    test = Kernel(kernel, IMAGE).find_test(calibration, 100)
    assert test is not None and test.rows is not None
    calibrating = np.random.default_rng(0).permutation(300)[:100]  # what gather() draws
    assert len(test.rows) == 200
    assert not set(test.rows) & set(calibrating)
    assert "did not calibrate" in test.remark


def test_an_array_too_small_to_split_is_not_tested_on() -> None:
    kernel = {"x": images(80)}
    assert Kernel(kernel, IMAGE).find_test(Kernel(kernel, IMAGE).find_calibration(), 100) is None


def test_very_many_rows_are_not_all_used_unasked() -> None:
    test = Kernel({"x_test": images(5000)}, IMAGE).find_test(None, 0)
    assert test is not None and test.rows is not None
    assert len(test.rows) == TEST_ROWS


@pytest.mark.parametrize(
    "unfit", [images(9)[..., 0], images(9, "uint8"), np.ones((9, 4, 5, 1), "float32"), images(0), "text", None, 3.0, np]
)
def test_what_does_not_fit_is_left_alone(unfit: Any) -> None:
    with pytest.raises(DataError, match=r"Wanted float32\[n, 4, 4, 1\] for input image"):
        Kernel({"thing": unfit, "sys": sys, "array_type": np.ndarray}, IMAGE).find_calibration()


def test_the_error_names_the_arrays_that_are_there() -> None:
    with pytest.raises(DataError, match=r"found x float64\[7, 16\]"):
        Kernel({"x": np.ones((7, 16))}, IMAGE).find_calibration()


def test_two_inputs_are_found_in_a_dict_by_name_and_not_in_loose_arrays() -> None:
    specs = (TensorSpec("a", (None, 2), "float32"), TensorSpec("b", (None, 3), "float32"))
    both = {"a": np.ones((9, 2), "float32"), "b": np.ones((9, 3), "float32")}
    assert Kernel({"train": both, "x": both["a"]}, specs).find_calibration().name == "train"
    with pytest.raises(DataError):
        Kernel({"x": both["a"], "z": both["b"]}, specs).find_calibration()


def test_datasets_fit_by_what_their_elements_are() -> None:
    import tensorflow as tf

    labelled = tf.data.Dataset.from_tensor_slices((images(40), np.zeros(40, int)))
    other = tf.data.Dataset.from_tensor_slices(np.ones((40, 3), "float32")).batch(4)
    kernel = {"test_ds": other, "val_ds": labelled, "train_ds": labelled.batch(8)}
    assert Kernel(kernel, IMAGE).find_calibration().name == "train_ds"
    found = Kernel(kernel, IMAGE).find_test(None, 0)
    assert found is not None and found.name == "val_ds"


@pytest.mark.parametrize(
    ("data", "labels"),
    [("x_test", "y_test"), ("X_val", "y_val"), ("X", "y"), ("test_images", "test_labels"), ("val_x", "val_y")],
)
def test_labels_are_found_by_the_ways_people_name_them(data: str, labels: str) -> None:
    assert labels_for(data, 5, {data: images(5), labels: np.zeros(5)}) == labels
    assert labels_for(data, 5, {data: images(5), labels: np.zeros(6)}) is None


def test_a_symbolic_input_left_over_from_building_the_model_is_no_data() -> None:
    import keras

    kernel = {"inputs": keras.Input((4, 4, 1)), "x_train": images(200)}
    assert Kernel(kernel, IMAGE).find_calibration().name == "x_train"
    with pytest.raises(DataError):
        Kernel({"inputs": kernel["inputs"]}, IMAGE).find_calibration()
