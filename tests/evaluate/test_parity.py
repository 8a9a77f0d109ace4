from __future__ import annotations

import math

import numpy as np
import pytest

from tfdeploy_magic.evaluate.parity import compare, predicted_class


def test_snr_is_ten_decades_of_signal_over_noise() -> None:
    reference = np.array([[3.0, 4.0]])
    parity = compare({"y": reference}, {"y": reference + np.array([[0.0, 0.5]])})
    assert parity.snr_db == pytest.approx(10 * math.log10(25 / 0.25))
    assert parity.snr_db == pytest.approx(20.0)
    assert parity.mean_abs_error == 0.25
    assert parity.max_abs_error == 0.5
    assert parity.n == 1


def test_equal_answers_have_infinite_snr() -> None:
    y = np.full((3, 2), 0.5)
    parity = compare({"y": y}, {"y": y.copy()})
    assert parity.snr_db == math.inf
    assert parity.agreement == 1.0


def test_noise_where_the_source_answers_zero_has_no_signal() -> None:
    assert compare({"y": np.zeros((2, 2))}, {"y": np.ones((2, 2))}).snr_db == -math.inf


def test_the_worst_output_decides() -> None:
    reference = {"good": np.full((4, 1), 10.0), "bad": np.full((4, 1), 10.0)}
    parity = compare(reference, {"good": np.full((4, 1), 10.01), "bad": np.full((4, 1), 11.0)})
    assert parity.snr_db == pytest.approx(20.0)
    assert parity.max_abs_error == 1.0


def test_agreement_is_the_share_of_equal_top_classes_of_the_worst_output() -> None:
    one = np.eye(4)[[0, 1, 2, 3]]
    three_of_four = np.eye(4)[[0, 1, 2, 0]]
    assert compare({"y": one}, {"y": three_of_four}).agreement == 0.75
    assert compare({"a": one, "b": one}, {"a": one, "b": three_of_four}).agreement == 0.75


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_one_answer_that_is_not_finite_makes_the_whole_not_finite(broken: float) -> None:
    reference, answer = np.ones((5, 2)), np.ones((5, 2))
    answer[3, 1] = broken
    parity = compare({"y": reference, "z": reference}, {"y": reference, "z": answer})
    assert not parity.finite
    assert math.isnan(parity.snr_db)


def test_differences_of_large_float32_answers_do_not_overflow() -> None:
    y = np.full((2, 2), 1e30, "float32")
    assert compare({"y": y}, {"y": y * np.float32(1.1)}).snr_db == pytest.approx(20.0, abs=0.01)


@pytest.mark.parametrize(
    ("output", "is_score"),
    [
        (np.zeros((3, 2)), True),
        (np.zeros((3, 1)), False),
        (np.zeros(3), False),
        (np.zeros((3, 2, 2)), False),
        (np.zeros((3, 2), "int32"), False),
    ],
)
def test_class_scores_are_two_or_more_real_numbers_a_sample(output: np.ndarray, is_score: bool) -> None:
    assert (predicted_class(output, classifier=True) is not None) is is_score
    assert predicted_class(output, classifier=False) is None, "not probabilities"


def test_the_largest_coordinate_of_a_regressor_is_not_a_class() -> None:
    boxes = np.tile([[1.0, 2.0, 3.0, 9.0]], (50, 1))
    assert compare({"box": boxes}, {"box": boxes + 0.1}).agreement is None
    assert compare({"logits": boxes}, {"logits": boxes + 0.1}, classifier=True).agreement == 1.0
    probabilities = np.tile([[0.1, 0.2, 0.3, 0.4]], (50, 1))
    assert compare({"p": probabilities}, {"p": probabilities[:, ::-1]}).agreement == 0.0
