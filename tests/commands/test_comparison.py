"""A comparison in a person's hands, and the file that meets what was asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tests.evaluate import by_hand
from tfdeploy_magic import quantize
from tfdeploy_magic.commands.comparison import Comparison
from tfdeploy_magic.commands.lite_model import LiteModel
from tfdeploy_magic.errors import BudgetNotMet, DataError, NameNotFound

LABELS = ["float32", "int8", "dynamic_wi4", "float16"]


def compared(model: Any, digits: Digits, **options: Any) -> Comparison:
    test = (digits.x_test, digits.y_test)
    made = quantize(model, **{"schemes": tuple(LABELS), "calib": digits.x_train[:60], "test": test, **options})
    assert isinstance(made, Comparison)
    return made


@pytest.fixture(scope="module")
def comparison(trained_cnn: Any, digits: Digits) -> Comparison:
    return compared(trained_cnn, digits)


# Its parts


def test_it_holds_the_files_by_place_and_by_label(comparison: Comparison) -> None:
    assert len(comparison) == 4
    assert list(comparison) == list(comparison.rows)
    assert [lite.scheme for lite in comparison.rows] == LABELS
    assert all(isinstance(lite, LiteModel) for lite in comparison)
    for label, lite in zip(LABELS, comparison, strict=True):
        assert comparison[label] is lite
        assert (lite.file, lite.evidence) == (comparison.table[label].file, comparison.table[label].evidence)


def test_a_label_that_is_not_there_is_answered_with_those_that_are(comparison: Comparison) -> None:
    with pytest.raises(NameNotFound, match=r"there is no file 'int4': found float32, int8, dynamic_wi4, float16"):
        comparison["int4"]


def test_the_pareto_front_has_what_no_other_file_beats_in_both_size_and_snr(comparison: Comparison) -> None:
    points = {lite.scheme: (lite.size, -lite.evidence.snr_db) for lite in comparison}
    front = [
        label
        for label, (size, loss) in points.items()
        if not any(s <= size and q <= loss and (s, q) != (size, loss) for s, q in points.values())
    ]
    assert [lite.scheme for lite in comparison.pareto] == front
    assert len(front) > 2
    assert comparison.table.pareto == tuple(front)


def test_it_is_shown_with_its_labels_and_marks(comparison: Comparison) -> None:
    bundle = comparison._repr_mimebundle_()
    assert all(label in bundle["text/plain"] and label in bundle["text/html"] for label in LABELS)
    assert "★ best" in bundle["text/plain"]
    assert repr(comparison) == f"<Comparison of {comparison.table.source}: 4 files, best dynamic_wi4>"


def test_its_figure_has_a_panel_for_each_of_size_metric_snr_and_latency(comparison: Comparison) -> None:
    figure = comparison.figure()
    words = " ".join(
        text.get_text() for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label)
    )
    words += " ".join(axes.get_title(loc="left") for axes in figure.axes)
    for said in ("size", "accuracy", "SNR", "latency"):
        assert said.lower() in words.lower()


def test_its_frame_has_a_line_for_each_file(comparison: Comparison) -> None:
    frame = comparison.to_pandas()
    assert list(frame.index) == LABELS
    for label, lite in zip(LABELS, comparison, strict=True):
        row, evidence = frame.loc[label], lite.evidence
        assert (row["scheme"], row["size"], row["verdict"]) == (lite.scheme, lite.path.stat().st_size, "ok")
        assert (row["metric"], row["score"], row["drop"]) == ("accuracy", evidence.accuracy, evidence.drop.value)
        assert (row["snr_db"], row["latency_ms"]) == (evidence.snr_db, evidence.latency_ms)
    assert list(frame.index[frame["best"]]) == ["dynamic_wi4"]
    assert tuple(frame.index[frame["pareto"]]) == comparison.table.pareto


# Which one to take


def meets(lite: LiteModel, digits: Digits, source: Any, drop: float) -> bool:
    (answers,) = by_hand.answers(lite.path.read_bytes(), {lite.inputs[0].name: digits.x_test}).values()
    right = [np.mean(np.argmax(given, axis=1) == digits.y_test) for given in (source, answers)]
    return bool(right[0] - right[1] <= drop)


def test_without_a_budget_the_smallest_that_is_ok_is_best(comparison: Comparison) -> None:
    assert comparison.best is comparison["dynamic_wi4"]
    assert comparison.best.size == min(lite.size for lite in comparison)
    assert all(lite.evidence.ok for lite in comparison)


def test_the_smallest_within_a_drop_is_best(trained_cnn: Any, digits: Digits) -> None:
    made = compared(trained_cnn, digits, max_drop="0.7%")
    source = trained_cnn.predict(digits.x_test, verbose=0)
    within = [lite for lite in made if meets(lite, digits, source, 0.007)]
    assert 0 < len(within) < 4, "the budget should tell the files apart"
    assert made.best is min(within, key=lambda lite: lite.size)


def test_the_closest_within_a_size_is_best(trained_cnn: Any, digits: Digits, comparison: Comparison) -> None:
    limit = comparison["float16"].size
    made = compared(trained_cnn, digits, max_size=limit)
    assert made.best is made["float16"]
    assert made.best.evidence.snr_db == max(lite.evidence.snr_db for lite in made if lite.size <= limit)
    assert compared(trained_cnn, digits, max_size=limit - 1).best.scheme == "int8"


def test_a_drop_and_a_size_must_both_be_met(trained_cnn: Any, digits: Digits, comparison: Comparison) -> None:
    made = compared(trained_cnn, digits, max_drop="0.7%", max_size=comparison["int8"].size - 1)
    with pytest.raises(BudgetNotMet):
        _ = made.best
    assert compared(trained_cnn, digits, max_drop="0.7%", max_size=comparison["int8"].size).best.scheme == "int8"


def test_the_closest_within_a_time_is_best(trained_cnn: Any, digits: Digits) -> None:
    made = compared(trained_cnn, digits, schemes=("int8", "int16x8", "float16"), max_latency="1s")
    assert made.best is made["float16"]
    # 16-bit activations run on reference kernels, twenty times slower than the others.
    between = (made["int16x8"].evidence.latency_ms + made["float16"].evidence.latency_ms) / 2
    slow = compared(trained_cnn, digits, schemes=("int16x8", "int8"), max_latency=between)
    assert slow.best is slow["int8"]
    assert slow["int16x8"].evidence.snr_db > slow["int8"].evidence.snr_db


def test_a_budget_that_nothing_meets_names_the_nearest_and_by_how_much(trained_cnn: Any, digits: Digits) -> None:
    made = compared(trained_cnn, digits, max_size=1000)
    smallest = made["dynamic_wi4"].size
    with pytest.raises(BudgetNotMet) as caught:
        _ = made.best
    assert "dynamic_wi4" in caught.value.found
    assert f"×{smallest / 1000:.3g} the size asked" in caught.value.found
    assert caught.value.wanted == "at most 1.0 kB"
    assert [lite.scheme for lite in made] == LABELS
    assert all(lite.evidence.ok for lite in made)
    plain = made._repr_mimebundle_()["text/plain"]
    assert "None of them meets it. Nearest: dynamic_wi4" in plain
    assert "misses size" in plain


def test_a_time_that_nothing_meets_is_missed_by_a_factor(trained_cnn: Any, digits: Digits) -> None:
    made = compared(trained_cnn, digits, schemes=("float32", "int8"), max_latency="0.001us")
    with pytest.raises(BudgetNotMet, match="the latency asked") as caught:
        _ = made.best
    fastest = min(made, key=lambda lite: lite.evidence.latency_ms)
    assert f"×{fastest.evidence.latency_ms / 1e-6:.3g}" in caught.value.found


def test_without_test_data_nothing_can_be_recommended_but_by_size(trained_cnn: Any, digits: Digits) -> None:
    unmeasured = compared(trained_cnn, digits, schemes=("float32", "int8"), test=None)
    with pytest.raises(BudgetNotMet, match="found float32: not measured, int8: not measured"):
        _ = unmeasured.best
    small = compared(trained_cnn, digits, schemes=("float32", "int8"), test=None, max_size="20kB")
    assert small.best is small["int8"]
    assert small.best.evidence.verdict == "not measured"


# What the test samples can show


def test_too_few_samples_for_what_is_asked_says_how_many_are_needed(trained_cnn: Any, digits: Digits) -> None:
    few = (digits.x_test[:148], digits.y_test[:148])
    with pytest.raises(DataError, match=r"cannot show a drop of 2 points: found 148 samples[^!]*at least 149"):
        compared(trained_cnn, digits, test=few, max_drop="2%")
    enough = (digits.x_test[:149], digits.y_test[:149])
    assert len(compared(trained_cnn, digits, schemes=("float32",), test=enough, max_drop="2%")) == 1


def test_the_drop_that_is_proposed_for_few_samples_is_one_they_can_show(trained_cnn: Any, digits: Digits) -> None:
    few = (digits.x_test[:100], digits.y_test[:100])
    with pytest.raises(DataError, match="cannot show") as caught:
        compared(trained_cnn, digits, test=few, max_drop="0.5%")
    proposed = caught.value.cure.rpartition("--max-drop ")[2].rstrip(".")
    assert len(compared(trained_cnn, digits, schemes=("float32",), test=few, max_drop=proposed)) == 1


def test_a_file_that_meets_the_budget_on_these_samples_only_is_doubted(trained_cnn: Any, digits: Digits) -> None:
    seen = compared(trained_cnn, digits, schemes=("dynamic_wi4",))["dynamic_wi4"].evidence.drop
    allowed = 100 * (seen.value + 0.7 * (seen.high - seen.value))
    made = compared(trained_cnn, digits, schemes=("dynamic_wi4",), max_drop=allowed)
    assert made.best is made["dynamic_wi4"]
    (doubt,) = (finding for finding in made.table.findings if finding.code == "resolution")
    assert f"{100 * seen.high:.1f} points" in doubt.message
    assert doubt.level == "warning"
    needed = int(doubt.cure.split()[1].replace(",", ""))
    assert 500 < needed < 5000
    sure = compared(trained_cnn, digits, schemes=("dynamic_wi4",), max_drop=100 * seen.high + 0.1)
    assert "resolution" not in [finding.code for finding in sure.table.findings]


def test_without_labels_a_drop_is_the_share_of_samples_with_another_top_class(trained_cnn: Any, digits: Digits) -> None:
    made = compared(trained_cnn, digits, test=digits.x_test, max_drop="0.7%")
    source = np.argmax(trained_cnn.predict(digits.x_test, verbose=0), axis=1)
    for row, lite in zip(made.table.rows, made, strict=True):
        (answers,) = by_hand.answers(lite.path.read_bytes(), {lite.inputs[0].name: digits.x_test}).values()
        changed = np.mean(np.argmax(answers, axis=1) != source)
        assert row.evidence.worst_drop == pytest.approx(changed)
        assert ("drop" in made.table.budget.excess(row)) == (changed > 0.007)
        assert row.evidence.score is None
    assert "of the samples with another top class" in made._repr_mimebundle_()["text/plain"]


@pytest.fixture(scope="module")
def regression() -> tuple[Any, Any, Any]:
    """A model of one number, what it takes, and what it should answer."""
    import keras

    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 40)).astype("float32")
    wanted = x[:, :1] - x[:, 1:2] + random.normal(scale=0.5, size=(300, 1)).astype("float32")
    model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(48, activation="relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(x, wanted, epochs=10, verbose=0)
    return model, x, wanted


def test_of_a_regression_a_drop_is_the_share_by_which_its_error_grew(regression: tuple[Any, Any, Any]) -> None:
    model, x, wanted = regression
    made = quantize(
        model, schemes=("float32", "int8"), calib=x[:100], test=(x[100:], wanted[100:]), metric="mae", max_drop="30%"
    )
    before = np.mean(np.abs(model.predict(x[100:], verbose=0) - wanted[100:]))
    for lite in made:
        (answers,) = by_hand.answers(lite.path.read_bytes(), {lite.inputs[0].name: x[100:]}).values()
        after = np.mean(np.abs(answers - wanted[100:]))
        assert lite.evidence.score.value == pytest.approx(after, rel=1e-4)
        assert lite.evidence.drop.value == pytest.approx((after - before) / before, abs=1e-4)
    assert abs(made["int8"].evidence.drop.value) > 1e-4
    assert made.best is made["int8"]


def test_a_regression_without_labels_has_no_drop_to_measure(regression: tuple[Any, Any, Any]) -> None:
    model, x, _ = regression
    with pytest.raises(DataError, match=r"--max-drop cannot be measured[^!]*no class scores[^!]*labelled test data"):
        quantize(model, schemes=("float32", "int8"), calib=x[:100], test=x[100:], max_drop="2%")
