from __future__ import annotations

import pytest

from tfdeploy_magic.artifacts.evidence import Evidence, Finding, Latency, Score

ERROR = Finding("error", "broken", "It is broken.", "Mend it.")


def test_nothing_measured_is_never_ok() -> None:
    assert not Evidence().measured
    assert not Evidence().ok


@pytest.mark.parametrize(("n", "ok"), [(1, False), (29, False), (30, True), (500, True)])
def test_thirty_samples_are_needed_to_be_ok(n: int, ok: bool) -> None:
    assert Evidence(n=n).measured
    assert Evidence(n=n).ok is ok


def test_an_error_is_never_ok_and_a_warning_may_be() -> None:
    warning, note = Finding("warning", "w", "w"), Finding("note", "n", "n")
    assert not Evidence(n=500, findings=(warning, ERROR)).ok
    assert Evidence(n=500, findings=(warning, note)).ok


def test_accuracy_is_none_unless_it_was_the_metric() -> None:
    score = Score(0.9, 0.8, 0.95)
    assert Evidence(metric="accuracy", score=score, baseline_score=score).accuracy == 0.9
    assert Evidence(metric="accuracy", baseline_score=score).baseline_accuracy == 0.9
    assert Evidence(metric="accuracy", baseline_score=score).accuracy is None
    assert Evidence(metric="mae", score=score, baseline_score=score).accuracy is None
    assert Evidence(metric="mae", score=score, baseline_score=score).baseline_accuracy is None


def test_latency_is_the_median_in_ms() -> None:
    assert Evidence(latency=Latency(1.5, 2.0, 100, 1)).latency_ms == 1.5
    assert Evidence().latency_ms is None
