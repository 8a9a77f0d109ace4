from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfdeploy_magic.artifacts.evidence import Evidence, Finding
from tfdeploy_magic.evaluate import judge

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 10, 1000)


def scores(classes: np.ndarray) -> dict[str, np.ndarray]:
    """Probabilities whose top classes are ``classes``."""
    noise = np.random.default_rng(1).uniform(0, 0.01, (len(classes), 10))
    raw = np.eye(10)[classes] + noise
    return {"y": (raw / raw.sum(axis=1, keepdims=True)).astype("float32")}


def wrong_on(count: int) -> np.ndarray:
    classes = LABELS.copy()
    classes[:count] = (classes[:count] + 1) % 10
    return classes


def judged(
    source: dict[str, Any], answers: dict[str, Any], labels: Any = None, scheme: str = "int8", **task: Any
) -> Evidence:
    task = judge.Task(labels, **task)
    base = judge.baseline(source, task)
    return judge.judge(base, answers, task, scheme=scheme, latency=None, findings=())


def codes(evidence: Evidence, level: str = "error") -> list[str]:
    return [finding.code for finding in evidence.findings if finding.level == level]


def test_a_faithful_file_of_a_good_model_is_ok() -> None:
    evidence = judged(scores(wrong_on(30)), scores(wrong_on(31)), LABELS)
    assert evidence.ok
    assert evidence.findings == ()
    assert (evidence.n, evidence.metric) == (1000, "accuracy")
    assert (evidence.baseline_accuracy, evidence.accuracy, evidence.agreement) == (0.97, 0.969, 0.999)


def test_without_labels_parity_alone_can_be_ok() -> None:
    evidence = judged(scores(LABELS), scores(LABELS))
    assert evidence.ok
    assert (evidence.metric, evidence.score) == (None, None)


def test_a_baseline_that_answers_one_class_to_everything_is_never_ok() -> None:
    always = scores(np.full(1000, 3))
    evidence = judged(always, always)
    assert codes(evidence) == ["baseline-collapsed"]
    assert "class 3 to all 1000 samples" in evidence.findings[0].message
    assert not evidence.ok


def test_a_baseline_with_one_and_the_same_answer_is_never_ok() -> None:
    constant = {"y": np.full((100, 1), 0.25, "float32")}
    evidence = judged(constant, constant)
    assert codes(evidence) == ["baseline-collapsed"]
    assert "one and the same answer" in evidence.findings[0].message
    assert not evidence.ok


def test_a_baseline_no_better_than_the_commonest_class_is_never_ok() -> None:
    labels = np.where(np.arange(1000) < 900, 0, 1)
    source = scores(np.where(np.arange(1000) % 10 < 9, 0, 1))
    evidence = judged(source, source, labels)
    assert codes(evidence) == ["baseline-collapsed"]
    assert "always answering class 0, which gives 90.0%" in evidence.findings[0].message
    assert not evidence.ok


def test_a_baseline_that_guesses_is_never_ok_and_one_hot_labels_show_it_too() -> None:
    guesses = scores(RANDOM.integers(0, 10, 1000))
    for labels in (LABELS, np.eye(10)[LABELS]):
        assert codes(judged(guesses, guesses, labels)) == ["baseline-collapsed"]


@pytest.mark.parametrize(("n", "ok"), [(1, False), (29, False), (30, True)])
def test_fewer_than_thirty_samples_are_never_ok(n: int, ok: bool) -> None:
    source = scores(LABELS[:n])
    evidence = judged(source, source, LABELS[:n])
    assert evidence.ok is ok
    assert ("few-samples" in codes(evidence, "warning")) is not ok


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_converted_model_that_answers_nan_once_is_never_ok(broken: float) -> None:
    answers = scores(LABELS)
    answers["y"][500, 2] = broken
    evidence = judged(scores(LABELS), answers, LABELS)
    assert codes(evidence) == ["not-finite"]
    assert evidence.score is None
    assert not evidence.ok


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_source_model_that_answers_nan_is_never_ok(broken: float) -> None:
    source = scores(LABELS)
    source["y"][7] = broken
    for answers in (source, scores(LABELS)):
        evidence = judged(source, answers, LABELS)
        assert "baseline-not-finite" in codes(evidence)
        assert not evidence.ok


@pytest.mark.parametrize("lost", [10, 20, 200, 900])
def test_a_drop_of_accuracy_that_the_data_can_show_is_never_ok(lost: int) -> None:
    evidence = judged(scores(LABELS), scores(wrong_on(lost)), LABELS)
    assert "accuracy-drop" in codes(evidence)
    assert f"fell by {lost / 10:.1f} points" in next(f.message for f in evidence.findings if f.code == "accuracy-drop")
    assert not evidence.ok


def test_a_small_drop_that_the_data_can_show_is_at_least_a_warning() -> None:
    evidence = judged(scores(LABELS), scores(wrong_on(9)), LABELS)
    assert codes(evidence, "warning") == ["accuracy-drop"]


def test_a_drop_that_chance_explains_is_not_held_against_the_file() -> None:
    n = 100
    classes = LABELS[:n].copy()
    classes[:2] = (classes[:2] + 1) % 10
    evidence = judged(scores(LABELS[:n]), scores(classes), LABELS[:n])
    assert evidence.accuracy == 0.98
    assert evidence.ok


def test_a_gain_is_no_drop() -> None:
    evidence = judged(scores(wrong_on(15)), scores(LABELS), LABELS)
    assert "accuracy-drop" not in codes(evidence) + codes(evidence, "warning")


@pytest.mark.parametrize(("wrong", "level"), [(101, "error"), (30, "warning"), (20, None)])
def test_low_agreement_of_the_top_class_is_found_without_labels(wrong: int, level: str | None) -> None:
    evidence = judged(scores(LABELS), scores(wrong_on(wrong)))
    assert [finding.level for finding in evidence.findings if finding.code == "low-agreement"] == [level] * bool(level)
    assert evidence.ok is (level != "error")


@pytest.mark.parametrize(("db", "level"), [(9.0, "error"), (15.0, "warning"), (25.0, None)])
def test_low_snr_is_found_where_there_are_no_classes(db: float, level: str | None) -> None:
    y = RANDOM.normal(size=(500, 1))
    noise = RANDOM.normal(size=(500, 1))
    noise *= np.sqrt(np.sum(y**2) / np.sum(noise**2) / 10 ** (db / 10))
    evidence = judged({"y": y}, {"y": y + noise})
    assert evidence.snr_db == pytest.approx(db)
    assert [finding.level for finding in evidence.findings] == [level] * bool(level)
    assert evidence.ok is (level != "error")


def test_a_float32_file_must_answer_as_its_source_does() -> None:
    source = scores(LABELS)
    answers = {"y": source["y"] * 1.01}
    assert codes(judged(source, answers, scheme="float32")) == ["float-differs"]
    assert judged(source, answers, scheme="int8").ok


def test_findings_come_worst_first_and_bring_those_from_elsewhere() -> None:
    note, error = Finding("note", "n", "n"), Finding("error", "e", "e")
    task = judge.Task()
    base = judge.baseline(scores(LABELS[:10]), task)
    evidence = judge.judge(base, scores(LABELS[:10]), task, scheme="int8", latency=None, findings=(note, error))
    assert [finding.code for finding in evidence.findings] == ["e", "few-samples", "n"]


def test_nothing_measured_says_so_and_is_not_ok() -> None:
    evidence = judge.not_measured(())
    assert codes(evidence, "warning") == ["not-measured"]
    assert (evidence.n, evidence.snr_db, evidence.score, evidence.ok) == (0, None, None, False)


def test_a_persons_metric_is_scored_for_both_models() -> None:
    def worst(labels: Any, output: Any) -> float:
        return float(np.max(output))

    evidence = judged(scores(LABELS), scores(LABELS), LABELS, metric=worst, metric_name="worst")
    assert evidence.metric == "worst"
    assert evidence.score.value == evidence.baseline_score.value == np.max(scores(LABELS)["y"])
    assert evidence.accuracy is None


def test_a_regressor_with_poor_snr_is_not_excused_by_its_largest_coordinate() -> None:
    boxes = RANDOM.normal(size=(500, 4)) + np.array([0, 0, 0, 50])
    evidence = judged({"box": boxes}, {"box": boxes + RANDOM.normal(size=(500, 4)) * 20})
    assert evidence.agreement is None
    assert codes(evidence) + codes(evidence, "warning") != []
    assert "baseline-collapsed" not in codes(evidence)


def test_an_error_that_got_worse_is_found_for_any_metric() -> None:
    labels = RANDOM.normal(size=(500, 1))
    source = {"y": labels + RANDOM.normal(size=(500, 1)) * 0.1}
    worse = judged(source, {"y": source["y"] + RANDOM.normal(size=(500, 1)) * 0.2}, labels, metric="mae")
    assert "metric-drop" in codes(worse)
    same = judged(source, {"y": source["y"] + 1e-6}, labels, metric="mae")
    assert "metric-drop" not in codes(same) + codes(same, "warning")


def test_labels_that_are_true_or_false_are_classes() -> None:
    truth = RANDOM.integers(0, 2, 200).astype(bool)
    logits = np.where(truth, 3.0, -3.0)[:, None]
    task = judge.task(truth, None, 60.0)
    scored = task.score({"y": logits})
    assert scored is not None
    assert (scored.metric, scored.score.value) == ("accuracy", 1.0)
