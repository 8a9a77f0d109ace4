from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from tfdeploy_magic.errors import DataError, NameNotFound, UserCodeError
from tfdeploy_magic.evaluate import metrics

RANDOM = np.random.default_rng(0)
SCORES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.5, 0.4, 0.1]], "float32")


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_one_newcombe_published(right: int, n: int, low: float, high: float) -> None:
    assert metrics.wilson(right / n, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (30, 30), (17, 40), (999, 1000)])
def test_wilsons_interval_is_scipys(right: int, n: int) -> None:
    interval = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert metrics.wilson(right / n, n) == pytest.approx((interval.low, interval.high), abs=1e-6)


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (1, 0), (5, 0), (6, 0), (9, 3), (40, 41), (3, 9), (900, 700)])
def test_mcnemars_p_is_the_exact_binomial_test(worse: int, better: int) -> None:
    before = np.array([1.0] * worse + [0.0] * better + [1.0] * 20 + [0.0] * 5)
    after = np.array([0.0] * worse + [1.0] * better + [1.0] * 20 + [0.0] * 5)
    expected = stats.binomtest(worse, worse + better).pvalue if worse + better else 1.0
    assert metrics.mcnemar(before, after) == pytest.approx(expected)


def test_accuracy_is_the_share_of_right_top_classes_with_its_interval() -> None:
    for labels in (np.array([0, 1, 2, 1]), np.array([[0], [1], [2], [1]]), np.eye(3)[[0, 1, 2, 1]]):
        score, per_sample = metrics.score(metrics.METRICS["accuracy"], labels, {"y": SCORES})
        assert score.value == 0.75
        assert (score.low, score.high) == metrics.wilson(0.75, 4)
        assert per_sample.tolist() == [1, 1, 1, 0]


def test_one_output_a_sample_is_read_as_the_probability_of_class_one() -> None:
    outputs = {"y": np.array([[0.9], [0.2], [0.6]], "float32")}
    score, _ = metrics.score(metrics.METRICS["accuracy"], np.array([1, 0, 0]), outputs)
    assert score.value == pytest.approx(2 / 3)


def test_top_five_accuracy_looks_at_five_classes() -> None:
    output = np.arange(10, dtype="float32")[None].repeat(3, 0)
    score, _ = metrics.score(metrics.METRICS["top_5_accuracy"], np.array([9, 5, 4]), {"y": output})
    assert score.value == pytest.approx(2 / 3)


def test_errors_of_regressions_are_means_with_a_normal_interval() -> None:
    labels, output = RANDOM.normal(size=(50, 2)), RANDOM.normal(size=(50, 2))
    mae, _ = metrics.score(metrics.METRICS["mae"], labels, {"y": output})
    mse, _ = metrics.score(metrics.METRICS["mse"], labels, {"y": output})
    each = np.abs(labels - output).mean(axis=1)
    assert mae.value == pytest.approx(np.abs(labels - output).mean())
    assert mse.value == pytest.approx(((labels - output) ** 2).mean())
    assert mae.high - mae.value == pytest.approx(1.959964 * stats.sem(each))
    assert mae.value - mae.low == pytest.approx(1.959964 * stats.sem(each))


@pytest.mark.parametrize(
    ("labels", "outputs", "fits"),
    [
        (np.array([0, 1, 2, 1]), {"y": SCORES}, True),
        (np.array([0.0, 1.0, 2.0, 1.0]), {"y": SCORES}, True),
        (np.eye(3)[[0, 1, 2, 1]], {"y": SCORES}, True),
        (np.array([0, 1, 1, 0]), {"y": SCORES[:, :1]}, True),
        (np.array([0, 1, 2, 3]), {"y": SCORES}, False),
        (np.array([-1, 1, 2, 0]), {"y": SCORES}, False),
        (np.array([0.5, 1.0, 2.0, 1.0]), {"y": SCORES}, False),
        (SCORES, {"y": SCORES}, False),
        (np.array(["a", "b", "c", "a"]), {"y": SCORES}, False),
        (np.array([0, 1, 2, 1]), {"y": SCORES, "z": SCORES}, False),
        (np.array([0, 1, 2, 1]), {"y": SCORES[None].repeat(4, 0)}, False),
    ],
)
def test_accuracy_is_the_default_exactly_where_labels_are_classes(
    labels: Any, outputs: dict[str, Any], fits: bool
) -> None:
    chosen = metrics.default_metric(labels, outputs)
    assert (chosen is metrics.METRICS["accuracy"]) is fits
    assert (chosen is None) is not fits


def test_an_unknown_metric_is_an_error_that_lists_those_there_are() -> None:
    with pytest.raises(NameNotFound, match=r"(?s)'f1'.*accuracy, top_5_accuracy, mae, mse.*--metric"):
        metrics.named_metric("f1")


@pytest.mark.parametrize("name", ["accuracy", "top_5_accuracy", "mae"])
def test_labels_that_do_not_fit_the_output_are_an_error_that_gives_both_shapes(name: str) -> None:
    with pytest.raises(DataError, match=r"\[4, 7\] for an output \[4, 3\]"):
        metrics.score(metrics.METRICS[name], np.zeros((4, 7)), {"y": SCORES})


def custom(function: Any, outputs: dict[str, Any] | None = None) -> Any:
    return metrics.custom_score(function, "mine", np.zeros(4), outputs or {"y": SCORES}, seconds=0.3)


def test_a_persons_metric_gets_labels_and_output_and_gives_one_number_without_an_interval() -> None:
    score = custom(lambda labels, output: float(labels.sum() + output[0, 0]))
    assert (score.value, score.low, score.high) == (pytest.approx(0.7), None, None)
    assert custom(lambda labels, output: np.array([[2.0]])).value == 2.0
    assert custom(lambda labels, output: len(output), {"a": SCORES, "b": SCORES}).value == 2.0


@pytest.mark.parametrize(
    "answer",
    [float("nan"), float("inf"), None, "0.9", [0.1, 0.2], np.zeros(4), [], {"f1": 0.5}, True, [[1], [1, 2]], 1j],
    ids=str,
)
def test_a_metric_that_gives_no_finite_number_is_of_no_use(answer: Any) -> None:
    with pytest.raises(
        DataError, match=r"the metric mine is of no use[^!]*one finite number[^!]*mine\(labels, output\)"
    ):
        custom(lambda labels, output: answer)


def test_a_metric_that_raises_or_hangs_is_the_persons_own_error() -> None:
    import threading

    with pytest.raises(UserCodeError, match="ZeroDivisionError") as caught:
        custom(lambda labels, output: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    release = threading.Event()
    with pytest.raises(UserCodeError, match="mine hung"):
        custom(lambda labels, output: release.wait())
    release.set()


def test_the_fall_of_a_share_has_the_interval_of_agresti_and_min() -> None:
    before, after = np.ones(100), np.ones(100)
    after[:10] = 0
    before[95:], after[95:] = 0, 1
    mean, low, high = metrics.fall(before, after)
    worse, better, n = 10 + 0.5, 5 + 0.5, 100 + 2
    half = 1.959964 * np.sqrt(worse + better - (worse - better) ** 2 / n) / n
    assert mean == pytest.approx(0.05)
    assert (low, high) == (pytest.approx((worse - better) / n - half), pytest.approx((worse - better) / n + half))


def test_the_fall_of_two_that_never_differ_is_zero_and_its_interval_is_not_a_point() -> None:
    mean, low, high = metrics.fall(np.ones(500), np.ones(500))
    assert mean == 0
    assert low < 0 < high < 0.006


def test_the_interval_of_a_fall_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        before = (rng.random(300) < 0.9).astype(float)
        after = np.where(rng.random(300) < 0.04, 0.0, before)
        _, low, high = metrics.fall(before, after)
        held += low <= 0.9 * 0.04 <= high
    assert 0.92 <= held / 400 <= 0.99


def test_the_fall_of_a_mean_has_the_interval_of_paired_differences() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=50)
    after = before - 0.5 + rng.normal(scale=0.1, size=50)
    mean, low, high = metrics.fall(before, after)
    half = 1.959964 * (before - after).std(ddof=1) / np.sqrt(50)
    assert mean == pytest.approx((before - after).mean())
    assert high - low == pytest.approx(2 * half)


@pytest.mark.parametrize(("drop", "needed"), [(0.02, 149), (0.01, 299), (0.05, 59), (0.1, 29)])
def test_a_small_drop_takes_many_samples_to_rule_out(drop: float, needed: int) -> None:
    from scipy.stats import beta

    assert metrics.samples_to_show(drop) == needed
    # Clopper and Pearson's one-sided 95% bound of nothing seen in that many.
    assert beta.ppf(0.95, 1, needed) <= drop < beta.ppf(0.95, 1, needed - 1)
