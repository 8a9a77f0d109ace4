"""What a budget misses, which rows are worth having, and which is the nearest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tfdeploy_magic.artifacts.comparison import Budget, Row, Table
from tfdeploy_magic.artifacts.evidence import Drop, Evidence, Finding, Latency, Score
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.provenance import Provenance

MADE = Provenance("model: Sequential", "SavedModel", 100, "", (), {}, None, {}, None, {}, {}, 0.0, "", "")


def row(label: str, size: int, snr: float | None, drop: float | None = 0.0, ms: float = 1.0, noise: float = 0.0) -> Row:
    evidence = Evidence(
        n=100,
        snr_db=snr,
        agreement=0.99,
        metric="accuracy",
        score=Score(0.9),
        drop=None if drop is None else Drop(drop),
        latency=Latency(ms, ms, 10, 1, noise=noise),
    )
    return Row(label, LiteFile(Path(label), "int8", size, "", {}, {}, {}), evidence, MADE)


def test_a_row_is_worth_having_when_no_other_is_as_small_and_as_close() -> None:
    rows = (row("float", 100, 120.0), row("half", 50, 70.0), row("worse", 60, 60.0), row("small", 20, 30.0))
    assert Table("model", rows).pareto == ("float", "half", "small")


def test_of_two_equal_rows_both_are_worth_having() -> None:
    assert Table("model", (row("a", 10, 5.0), row("b", 10, 5.0))).pareto == ("a", "b")


def test_a_broken_or_unmeasured_row_is_not_worth_having_and_keeps_no_other_away() -> None:
    broken = row("broken", 10, 99.0)
    broken = replace(broken, evidence=replace(broken.evidence, findings=(Finding("error", "x", "y"),)))
    assert Table("model", (broken, row("unmeasured", 5, None), row("fine", 20, 30.0))).pareto == ("fine",)


def test_a_budget_counts_what_each_limit_is_missed_by() -> None:
    budget = Budget(max_drop=0.02, max_size=50, max_latency=0.5)
    missed = budget.excess(row("x", 100, 30.0, drop=0.05, ms=2.0))
    assert missed == {"drop": pytest.approx(0.03), "size": 2.0, "latency": 4.0}
    assert budget.excess(row("x", 50, 30.0, drop=0.02, ms=0.5)) == {}
    assert not Budget() and Budget(max_size=1)


def test_what_was_not_measured_meets_no_limit() -> None:
    unmeasured = row("x", 10, None, drop=None)
    evidence = replace(unmeasured.evidence, latency=None)
    missed = Budget(max_drop=0.02, max_latency=1.0).excess(replace(unmeasured, evidence=evidence))
    assert missed == {"drop": float("inf"), "latency": float("inf")}


def test_without_labels_a_drop_is_the_share_of_samples_that_got_another_class() -> None:
    assert Evidence(n=100, agreement=0.97).worst_drop == pytest.approx(0.03)
    assert Evidence(n=100).worst_drop is None
    assert Evidence(n=100, agreement=0.97, score=Score(0.9), drop=Drop(0.01)).worst_drop == 0.01


def test_the_nearest_row_misses_fewest_limits_and_those_by_least() -> None:
    rows = (row("far", 100, 30.0, drop=0.5), row("near", 100, 30.0, drop=0.03), row("two", 999, 30.0, drop=0.021))
    table = Table("model", rows, budget=Budget(max_drop=0.02, max_size=500))
    assert table.nearest is not None and table.nearest.label == "near"
    assert Table("model", ()).nearest is None


def test_the_noise_of_a_table_is_that_of_its_noisiest_row() -> None:
    assert Table("model", (row("a", 1, 1.0, noise=0.02), row("b", 1, 1.0, noise=0.2))).noise == 0.2
    assert Table("model", ()).noise is None
