"""Every scheme side by side: real files, each number against what LiteRT and TensorFlow say by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pydantic import ValidationError

from tests.conftest import Digits
from tests.evaluate import by_hand
from tests.jobs.processes import alive, fork_servers, gone_within
from tfdeploy_magic import quantize
from tfdeploy_magic.artifacts import store
from tfdeploy_magic.artifacts.evidence import Evidence
from tfdeploy_magic.artifacts.schemes import SCHEMES
from tfdeploy_magic.commands.comparison import Comparison
from tfdeploy_magic.commands.lite_model import LiteModel
from tfdeploy_magic.commands.quantize import Quantize
from tfdeploy_magic.errors import ConversionError, DataError, NameNotFound, TfdeployError, UserCodeError
from tfdeploy_magic.evaluate import timing
from tfdeploy_magic.jobs import Progress

ROWS = 60
"""Calibration samples: so few that all are taken, in their order."""


@dataclass(frozen=True)
class Run:
    """One comparison of every scheme, and what was said meanwhile."""

    comparison: Comparison
    seen: list[Progress]

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(progress.stage for progress in self.seen))


@pytest.fixture(scope="module")
def run(trained_cnn: Any, digits: Digits) -> Run:
    seen: list[Progress] = []
    return Run(compared(trained_cnn, digits, no_cache=True, progress=seen.append), seen)


def compared(model: Any, digits: Digits, *schemes: str, **options: Any) -> Comparison:
    test = (digits.x_test, digits.y_test)
    made = quantize(model, **{"schemes": schemes, "calib": digits.x_train[:ROWS], "test": test, **options})
    assert isinstance(made, Comparison)
    return made


def labels(comparison: Comparison) -> list[str]:
    return [row.label for row in comparison.table.rows]


def failures(comparison: Comparison) -> dict[str, str]:
    return {failure.label: failure.reason for failure in comparison.table.failures}


def codes(evidence: Evidence) -> list[str]:
    return [finding.code for finding in evidence.findings]


def by_litert(lite: LiteModel, x: Any) -> Any:
    (answers,) = by_hand.answers(lite.path.read_bytes(), {lite.inputs[0].name: x}).values()
    return answers


def snr_db(reference: Any, answers: Any) -> float:
    reference = np.asarray(reference, np.float64)
    return float(10 * np.log10(np.sum(reference**2) / np.sum((reference - answers) ** 2)))


# Every scheme, end to end


def test_every_scheme_has_a_row_in_the_order_of_the_schemes(run: Run) -> None:
    assert labels(run.comparison) == list(SCHEMES)
    assert run.comparison.table.failures == ()
    assert [lite.scheme for lite in run.comparison] == list(SCHEMES)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_number_of_a_row_is_the_one_that_litert_gives_by_hand(
    run: Run, trained_cnn: Any, digits: Digits, scheme: str
) -> None:
    lite = run.comparison[scheme]
    evidence, x, y = lite.evidence, digits.x_test, digits.y_test
    source, answers = trained_cnn.predict(x, verbose=0), by_litert(lite, x)
    classes = np.argmax(answers, axis=1)
    assert lite.size == lite.path.stat().st_size
    assert evidence.n == len(x)
    assert evidence.metric == "accuracy"
    assert evidence.accuracy == pytest.approx(np.mean(classes == y))
    assert evidence.baseline_accuracy == pytest.approx(np.mean(np.argmax(source, axis=1) == y))
    assert evidence.drop.value == pytest.approx(evidence.baseline_accuracy - evidence.accuracy)
    assert evidence.drop.low <= evidence.drop.value <= evidence.drop.high
    assert evidence.agreement == pytest.approx(np.mean(classes == np.argmax(source, axis=1)))
    if scheme == "float32":  # it differs by rounding alone, and so does one rounding from another
        assert evidence.snr_db > 100
    else:
        assert evidence.snr_db == pytest.approx(snr_db(source, answers), abs=0.1)
        assert 20 < evidence.snr_db < 100


def test_int8_answers_bit_for_bit_as_the_plain_converters_file(run: Run, trained_cnn: Any, digits: Digits) -> None:
    plain = by_hand.plain_file(trained_cnn, "int8", "int8", digits.x_train[:ROWS])
    lite = run.comparison["int8"]
    (expected,) = by_hand.answers(plain, {lite.inputs[0].name: digits.x_test}).values()
    np.testing.assert_array_equal(by_litert(lite, digits.x_test), expected)
    assert np.ptp(expected) > 0.5


def test_one_float_conversion_and_one_calibration_serve_every_file(run: Run) -> None:
    during_files = [stage.partition(": ")[2] for stage in run.stages if stage.startswith("file ")]
    for once in ("reading the graph", "converting to float32", "calibrating"):
        assert during_files.count(once) == 1, during_files
    assert sum(stage.startswith("calibrating") for stage in during_files) == 1
    assert during_files.count("loading the file") == len(SCHEMES)
    assert run.stages.count("freezing") == run.stages.count("asking the source model") == 1


def test_rows_arrive_one_by_one_and_times_come_last(run: Run) -> None:
    tables = [progress.so_far.table for progress in run.seen if progress.so_far is not None]
    *arriving, timed = tables
    assert [len(table.rows) for table in arriving] == list(range(1, len(SCHEMES) + 1))
    for count, table in enumerate(arriving, 1):
        assert [row.label for row in table.rows] == list(SCHEMES)[:count]
        assert all(row.evidence.snr_db is not None and row.evidence.latency is None for row in table.rows)
    assert all(row.evidence.latency is not None for row in timed.rows)


def test_what_is_finished_can_be_shown_meanwhile(run: Run) -> None:
    second = [progress.so_far for progress in run.seen if progress.so_far is not None][1]
    bundle = second._repr_mimebundle_()
    assert "2 files side by side" in bundle["text/plain"]
    assert "float16" in bundle["text/plain"] and "int8" not in bundle["text/plain"]
    assert "float16" in bundle["text/html"]


def test_all_files_are_timed_against_each_other_and_say_how_far_to_trust_it(run: Run) -> None:
    for row in run.comparison.table.rows:
        latency = row.evidence.latency
        assert 0 < latency.p50 <= latency.p95
        assert (latency.threads, latency.batch) == (1, 1)
        assert latency.noise >= 0
        assert row.evidence.baseline_latency.p50 > 0
    assert run.comparison.table.noise == max(row.evidence.latency.noise for row in run.comparison.table.rows)
    assert "16-bit activations: XNNPACK takes none" in run.comparison.table["int16x8"].slow[0]
    assert run.comparison.table["float32"].slow == ()


def test_each_file_keeps_the_manifest_of_what_calibrated_it(run: Run, digits: Digits) -> None:
    for lite in run.comparison:
        made = lite.provenance
        if SCHEMES[lite.scheme].calibrated:
            assert (made.manifest["samples"], made.manifest["model_sha256"]) == (ROWS, made.source_sha256)
            assert made.calibration == f"calibration ({ROWS} samples)"
        else:
            assert (made.manifest, made.calibration) == ({}, None)
    digests = {lite.provenance.manifest["sha256"] for lite in run.comparison if lite.provenance.manifest}
    assert len(digests) == 1


def test_the_files_live_in_the_store_and_answer(run: Run, digits: Digits) -> None:
    for lite in run.comparison:
        assert store.store_folder() in lite.path.parents
        assert lite.path.name == f"model-{lite.scheme}.tflite"
    lite = run.comparison["dynamic_wi4"]
    np.testing.assert_allclose(lite.predict(digits.x_test[:5]), by_litert(lite, digits.x_test[:5]), atol=1e-6)


def test_some_schemes_come_in_the_order_they_are_asked_for(trained_cnn: Any, digits: Digits) -> None:
    some = compared(trained_cnn, digits, "int8", "float32", "int8")
    assert labels(some) == ["int8", "float32"]


@pytest.mark.parametrize(("engine", "others"), [("tflite", set()), ("litert", {"float32"})])
def test_an_engine_makes_its_own_schemes_and_float32_to_set_them_against(engine: Any, others: set[str]) -> None:
    made = {variant.scheme for variant in Quantize(model=None, engine=engine).variants()}
    assert made == {name for name, scheme in SCHEMES.items() if scheme.engine == engine} | others


def test_int8_takes_other_inputs_and_outputs_when_asked(trained_cnn: Any, digits: Digits) -> None:
    some = compared(trained_cnn, digits, "int8", "float16", io="uint8")
    assert {spec.dtype for spec in (*some["int8"].inputs, *some["int8"].outputs)} == {"uint8"}
    assert {spec.dtype for spec in (*some["float16"].inputs, *some["float16"].outputs)} == {"float32"}
    assert some["int8"].evidence.ok


# Stopped, and asked again


def stopping(when: Callable[[Progress], bool]) -> Callable[[Progress], None]:
    def listen(progress: Progress) -> None:
        if when(progress):
            raise KeyboardInterrupt

    return listen


def workers() -> set[int]:
    servers = {server.pid for server in fork_servers()}
    return {child.pid for child in psutil.Process().children(recursive=True) if alive(child.pid)} - servers


def second_row(progress: Progress) -> bool:
    return progress.so_far is not None and len(progress.so_far.table.rows) == 2


@pytest.mark.parametrize(
    ("when", "finished"),
    [
        (second_row, 2),
        (lambda progress: progress.stage.endswith("calibrating"), 3),
        (lambda progress: progress.stage == "timing all files in turn", 5),
    ],
    ids=["after the second", "while calibrating", "while timing"],
)
def test_ctrl_c_keeps_what_is_done_says_so_and_leaves_nothing_running(
    trained_cnn: Any, digits: Digits, when: Callable[[Progress], bool], finished: int
) -> None:
    processes, threads = workers(), set(threading.enumerate())
    stopped = compared(trained_cnn, digits, engine="tflite", no_cache=True, progress=stopping(when))
    assert gone_within(2, *workers() - processes)
    assert set(threading.enumerate()) <= threads
    assert labels(stopped) == ["float32", "float16", "dynamic", "int8", "int16x8"][:finished]
    assert stopped.table.stopped
    plain = stopped._repr_mimebundle_()["text/plain"]
    assert "(stopped)" in plain and "Stopped before its end" in plain
    for lite in stopped:
        assert lite.evidence.n == len(digits.x_test) and lite.evidence.latency is None
        assert lite.predict(digits.x_test[:2]).shape == (2, 10)


def test_ctrl_c_before_the_first_file_leaves_nothing_to_show_and_nothing_running(
    trained_cnn: Any, digits: Digits
) -> None:
    processes, threads = workers(), set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        started = stopping(lambda progress: progress.stage.endswith("converting to float32"))
        compared(trained_cnn, digits, engine="tflite", no_cache=True, progress=started)
    assert gone_within(2, *workers() - processes)
    assert set(threading.enumerate()) <= threads


def test_after_ctrl_c_the_rest_is_made_and_the_finished_files_are_found(
    trained_cnn: Any, digits: Digits, empty_store: Path
) -> None:
    compared(trained_cnn, digits, "float32", "float16", "dynamic", progress=stopping(second_row))
    rest = compared(trained_cnn, digits, "float32", "float16", "dynamic")
    assert [lite.provenance.file_cached for lite in rest] == [True, True, False]
    assert not rest.table.stopped
    assert all(lite.evidence.ok and lite.evidence.latency is not None for lite in rest)


def test_the_same_again_is_found_in_the_store_and_timed_anew(
    trained_cnn: Any, digits: Digits, empty_store: Path, calls: list[str]
) -> None:
    first = compared(trained_cnn, digits, "float32", "int8", "dynamic_wi8")
    assert calls.count("make_task") == 3 and not any(lite.provenance.file_cached for lite in first)
    calls.clear()
    again = compared(trained_cnn, digits, "float32", "int8", "dynamic_wi8")
    assert not {"make_task", "predict_task"} & set(calls)
    assert "latencies_task" in calls
    assert all(lite.provenance.cached for lite in again)
    for before, after in zip(first, again, strict=True):
        assert before.file.sha256 == after.file.sha256
        assert replace(before.evidence, latency=None, baseline_latency=None) == replace(
            after.evidence, latency=None, baseline_latency=None
        )
        assert after.evidence.latency != before.evidence.latency


def test_no_cache_makes_all_of_it_again(trained_cnn: Any, digits: Digits, empty_store: Path, calls: list[str]) -> None:
    compared(trained_cnn, digits, "float32", "int8")
    calls.clear()
    again = compared(trained_cnn, digits, "float32", "int8", no_cache=True)
    assert calls.count("make_task") == calls.count("predict_task") == 2
    assert not any(lite.provenance.file_cached for lite in again)


# A metric of one's own


def test_a_metric_of_ones_own_scores_every_row(trained_cnn: Any, digits: Digits) -> None:
    def confidence(truth: Any, scores: Any) -> float:
        return float(np.mean(scores[np.arange(len(truth)), truth]))

    some = compared(trained_cnn, digits, "float32", "int8", metric=confidence)
    for lite in some:
        answers = by_litert(lite, digits.x_test)
        assert lite.evidence.metric == "confidence"
        assert lite.evidence.score.value == pytest.approx(confidence(digits.y_test, answers), abs=1e-5)
        before = confidence(digits.y_test, trained_cnn.predict(digits.x_test, verbose=0))
        assert lite.evidence.drop.value == pytest.approx(
            (before - confidence(digits.y_test, answers)) / before, abs=1e-5
        )


def broken(truth: Any, scores: Any) -> float:
    raise ZeroDivisionError("no such luck")


@pytest.mark.parametrize(
    ("metric", "error", "says"),
    [
        (lambda truth, scores: float("nan"), DataError, r"is of no use: found nan\.\nWanted one finite number"),
        (lambda truth, scores: scores[0], DataError, r"found float32\[10\]\.\nWanted one finite number"),
        (lambda truth, scores: "high", DataError, "found high"),
        (broken, UserCodeError, "the metric broken raised: found ZeroDivisionError: no such luck"),
    ],
    ids=["NaN", "a vector", "a word", "raises"],
)
def test_a_metric_that_is_of_no_use_shows_before_anything_is_made(
    trained_cnn: Any, digits: Digits, calls: list[str], metric: Any, error: type[TfdeployError], says: str
) -> None:
    with pytest.raises(error, match=says):
        compared(trained_cnn, digits, "float32", "int8", metric=metric)
    assert "make_task" not in calls


@pytest.mark.parametrize("answer", ["raises", "NaN"])
def test_a_metric_that_fails_on_one_file_costs_that_row_only(trained_cnn: Any, digits: Digits, answer: str) -> None:
    source = trained_cnn.predict(digits.x_test, verbose=0)

    def picky(truth: Any, scores: Any) -> float:
        if np.abs(scores - source).max() < 1e-3:
            return 0.5
        if answer == "NaN":
            return float("nan")
        raise ZeroDivisionError("no such luck")

    some = compared(trained_cnn, digits, "float32", "int8", "float16", metric=picky)
    assert labels(some) == ["float32", "float16"]
    assert list(failures(some)) == ["int8"]
    assert ("ZeroDivisionError: no such luck" if answer == "raises" else "nan") in failures(some)["int8"]
    assert all(lite.evidence.score.value == 0.5 and lite.evidence.latency is not None for lite in some)
    plain = some._repr_mimebundle_()["text/plain"]
    assert "✗ failed" in plain and failures(some)["int8"] in plain


# Models that not every scheme can be made of


def test_a_float_file_gives_what_can_be_derived_from_it(trained_cnn: Any, digits: Digits, tmp_path: Path) -> None:
    (tmp_path / "digits.tflite").write_bytes(by_hand.plain_file(trained_cnn))
    every = compared(tmp_path / "digits.tflite", digits)
    assert set(labels(every)) == set(SCHEMES) - {"float16", "dynamic"}
    assert set(failures(every)) == {"float16", "dynamic"}
    assert "--float16 for a file that is converted already" in failures(every)["float16"]
    assert all(lite.evidence.ok for lite in every)
    plain = by_hand.plain_file(trained_cnn, "int8", "int8", digits.x_train[:ROWS])
    (expected,) = by_hand.answers(plain, {every["int8"].inputs[0].name: digits.x_test}).values()
    np.testing.assert_array_equal(by_litert(every["int8"], digits.x_test), expected)


@pytest.mark.parametrize("scheme", ["dynamic", "int8"])
def test_a_file_that_is_quantized_already_is_refused(
    trained_cnn: Any, digits: Digits, tmp_path: Path, scheme: str
) -> None:
    content = by_hand.plain_file(trained_cnn, scheme, "int8", digits.x_train[:ROWS])
    (tmp_path / "small.tflite").write_bytes(content)
    with pytest.raises(ConversionError, match="quantized already"):
        compared(tmp_path / "small.tflite", digits)


def test_integer_inputs_cost_16x8_only_and_it_says_why() -> None:
    import keras

    keras.utils.set_random_seed(0)
    words = keras.Input((6,), dtype="int32", name="words")
    dense = keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(keras.layers.Embedding(400, 8)(words)))
    rows = np.random.default_rng(0).integers(0, 400, (200, 6)).astype("int32")
    every = quantize(keras.Model(words, dense), calib=rows[:100], test=rows[100:], engine="tflite")
    assert labels(every) == ["float32", "float16", "dynamic", "int8"]
    assert list(failures(every)) == ["int16x8"]
    assert "an integer input" in failures(every)["int16x8"]
    assert [spec.dtype for lite in every for spec in lite.inputs] == ["int32"] * 4
    assert all(lite.evidence.n == 100 for lite in every)


def lstm(steps: int | None) -> Any:
    import keras

    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((steps, 4)), keras.layers.LSTM(24), keras.layers.Dense(2)])


SEQUENCES = np.random.default_rng(0).normal(size=(80, 5, 4)).astype("float32")


def test_a_loop_that_can_be_unrolled_is_in_every_file() -> None:
    model = lstm(5)
    made = quantize(model, schemes=("float32", "dynamic", "int8"), calib=SEQUENCES[:40], test=SEQUENCES[40:])
    assert labels(made) == ["float32", "dynamic", "int8"]
    wanted = model.predict(SEQUENCES, verbose=0)
    for lite, share in zip(made, (1e-5, 0.1, 0.2), strict=True):
        assert "unrolled" in codes(lite.evidence)
        assert "WHILE" not in lite.file.operators
        assert np.abs(by_litert(lite, SEQUENCES) - wanted).max() < share * np.abs(wanted).max()


@pytest.mark.parametrize("tested", [False, True])
def test_a_loop_that_cannot_be_unrolled_costs_the_calibrated_rows_only(tested: bool) -> None:
    model, test = lstm(None), SEQUENCES[40:] if tested else None
    made = quantize(model, calib=SEQUENCES[:40], test=test, engine="tflite")
    assert labels(made) == ["float32", "float16", "dynamic"]
    assert list(failures(made)) == ["int8", "int16x8"]
    assert all("a loop over a list" in reason for reason in failures(made).values())
    assert "unroll=True" in made.table.failures[0].cure
    assert [lite.evidence.n for lite in made] == [40 * tested] * 3


# What does not go together, and what is missing


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"engine": "litert", "schemes": ("int8",)}, "--engine litert and --int8 do not go together"),
        (
            {"engine": "tflite", "schemes": ("int8", "dynamic_wi4")},
            "--engine tflite and --dynamic-wi4 do not go together",
        ),
        ({"explain": True}, "--explain cannot explain these files: found no scheme"),
        ({"explain": True, "schemes": ("int8", "dynamic")}, "found --int8 --dynamic"),
        ({"explain": True, "schemes": ("dynamic",)}, "Write %quantize MODEL --int8 --explain"),
        ({"explain": True, "schemes": ("int8",), "max_drop": "2%"}, "--explain and a budget"),
        ({"explain": True, "schemes": ("int8",), "max_size": "3kB"}, "--explain and a budget"),
        ({"explain": True, "schemes": ("int8",), "sweep": True}, "--explain and --sweep"),
        ({"explain": True, "schemes": ("int8",), "recipe": "dense: float32"}, "--explain and a recipe"),
        ({"schemes": ("int8",), "debug_options": object()}, "--debug-options and no --explain"),
        ({"schemes": ("dynamic", "int16x8"), "io": "uint8"}, "--io uint8 and --dynamic --int16x8"),
        ({"recipe": "conv: floaty"}, "line 1 of the recipe cannot be read"),
        ({"recipe": " # nothing"}, "the recipe is empty"),
        ({"calib": None}, "calibration data is needed: found none"),
        ({"calib": None, "schemes": ("float32", "static_wi8_ai8")}, "calibration data is needed"),
        ({"calib": None, "schemes": ("float32",), "recipe": "dense: static_wi8_ai8"}, "calibration data is needed"),
        ({"test": None, "max_drop": "2%"}, "the budget cannot be measured: found no test data"),
        ({"test": None, "max_latency": "2ms"}, "the budget cannot be measured: found no test data"),
        ({"test": None, "explain": True, "schemes": ("int8",)}, "there is nothing to explain: found no test data"),
    ],
)
def test_what_does_not_go_together_is_said_before_the_model_is_opened(options: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as caught:
        quantize(object(), **{"calib": np.ones(3), "test": np.ones(3), **options})
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_drop": "much"}, "between 0 and 100, as in 2%"),
        ({"max_drop": "0%"}, "between 0 and 100"),
        ({"max_drop": 100}, "between 0 and 100"),
        ({"max_latency": "soon"}, "should be a time, as in 5ms"),
        ({"max_latency": "-1ms"}, "should be a time, as in 5ms"),
        ({"max_latency": "1.2.3ms"}, "should be a time, as in 5ms"),
        ({"max_size": 0}, "greater than 0"),
        ({"schemes": ("int7",)}, "int8"),
    ],
)
def test_a_budget_that_is_none_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        quantize(object(), **options)


@pytest.mark.parametrize(
    ("written", "drop", "size", "milliseconds"),
    [
        (("2%", "300kB", "5ms"), 0.02, 300_000, 5.0),
        ((2, 300, 5), 0.02, 300, 5.0),
        (("0.5 %", "1.5MB", "0.2s"), 0.005, 1_500_000, 200.0),
        (("0.5", "2KiB", "50 µs"), 0.005, 2048, 0.05),
    ],
)
def test_a_budget_is_read_as_people_write_it(
    written: tuple[Any, Any, Any], drop: float, size: int, milliseconds: float
) -> None:
    names = ("max_drop", "max_size", "max_latency")
    budget = Quantize(model=None, **dict(zip(names, written, strict=True))).budget
    assert (budget.max_drop, budget.max_size, budget.max_latency) == (
        pytest.approx(drop),
        size,
        pytest.approx(milliseconds),
    )


def test_without_test_data_the_files_are_there_and_nothing_is_called_measured(trained_cnn: Any, digits: Digits) -> None:
    some = compared(trained_cnn, digits, "float32", "int8", test=None)
    for lite in some:
        assert (lite.evidence.verdict, lite.evidence.n, lite.evidence.latency) == ("not measured", 0, None)
        assert lite.predict(digits.x_test[:2]).shape == (2, 10)
    assert some.pareto == ()
    assert "not measured" in some._repr_mimebundle_()["text/plain"]


def test_only_schemes_without_calibration_need_no_calibration_data(trained_cnn: Any, digits: Digits) -> None:
    assert labels(compared(trained_cnn, digits, "float16", "dynamic_wi4", calib=None)) == ["float16", "dynamic_wi4"]


# Calibration data that ruins a file while its accuracy looks fine


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("random-calibration", lambda d: np.random.default_rng(0).uniform(0, 1, (100, 8, 8, 1)).astype("float32")),
        ("calibration-too-wide", lambda d: d.x_train[:100] * 255),
        ("one-class-calibration", lambda d: d.x_train[d.y_train == 3]),
        ("unsettled-calibration", lambda d: d.x_train[:5]),
        ("calibration-test-overlap", lambda d: d.x_test[:100]),
    ],
)
def test_calibration_data_that_is_not_what_it_should_be_is_noticed(
    trained_cnn: Any, digits: Digits, code: str, change: Callable[[Digits], Any]
) -> None:
    some = compared(trained_cnn, digits, "float32", "int8", calib=change(digits))
    noticed = {finding.code for finding in some.table.findings} | set(codes(some["int8"].evidence))
    assert code in noticed
    message = next(f.message for f in (*some.table.findings, *some["int8"].evidence.findings) if f.code == code)
    assert message in some._repr_mimebundle_()["text/plain"]
    assert code not in codes(some["float32"].evidence)


def test_good_calibration_data_is_not_complained_of(run: Run) -> None:
    assert run.comparison.table.findings == ()
    assert all(codes(lite.evidence) == [] for lite in run.comparison)


# Threads and batches


def test_a_sweep_times_every_file_with_every_number_of_threads_and_samples(trained_cnn: Any, digits: Digits) -> None:
    swept = compared(trained_cnn, digits, "float32", "int8", sweep=True).table.sweep
    points = product(("float32", "int8"), timing.worthwhile_threads(), timing.BATCHES)
    assert [(point.label, point.threads, point.batch) for point in swept] == list(points)
    for point in swept:
        assert (point.latency.threads, point.latency.batch) == (point.threads, point.batch)
        assert 0 < point.latency.p50 <= point.latency.p95
    one, *_, many = [point.latency.p50 for point in swept if (point.label, point.threads) == ("float32", 1)]
    assert many > one


# Recipes


def computed(lite: LiteModel) -> dict[str, str]:
    """Return what LiteRT says that operators make, conversions left out: the tensor's name -> its dtype."""
    interpreter = by_hand.interpreter(lite.path.read_bytes())
    interpreter.allocate_tensors()
    operators = [op for op in interpreter._get_ops_details() if op["op_name"] not in NO_COMPUTING]
    made = {int(index) for op in operators for index in op["outputs"]}
    tensors = [tensor for tensor in interpreter.get_tensor_details() if tensor["index"] in made]
    return {tensor["name"]: np.dtype(tensor["dtype"]).name for tensor in tensors}


NO_COMPUTING = ("QUANTIZE", "DEQUANTIZE", "DELEGATE", "SHAPE", "STRIDED_SLICE", "PACK")


def test_a_layer_of_a_recipe_stays_float_and_nothing_else(trained_cnn: Any, digits: Digits) -> None:
    conv = trained_cnn.layers[3].name
    made = compared(trained_cnn, digits, recipe=f"{conv}: float32")
    assert labels(made) == ["float32", "int8", "int8, recipe"]
    types = computed(made["int8, recipe"])
    (left,) = (name for name, dtype in types.items() if dtype == "float32")
    assert f"/{conv}" in left and len(types) > 5
    assert {dtype for name, dtype in types.items() if name != left} == {"int8"}
    assert set(computed(made["int8"]).values()) == {"int8"}
    assert made["int8"].size < made["int8, recipe"].size < made["float32"].size
    assert made["int8, recipe"].scheme == "recipe"
    assert made["int8, recipe"].evidence.snr_db == pytest.approx(
        snr_db(trained_cnn.predict(digits.x_test, verbose=0), by_litert(made["int8, recipe"], digits.x_test)), abs=0.1
    )


def test_an_operator_of_a_recipe_stays_float(trained_cnn: Any, digits: Digits) -> None:
    made = compared(trained_cnn, digits, recipe="SOFTMAX: float32")
    assert made["int8, recipe"].file.float_operators == {"SOFTMAX": 1}


def test_a_layer_can_be_stored_in_4_bits_beside_others_in_8(trained_cnn: Any, digits: Digits) -> None:
    conv = trained_cnn.layers[3].name
    made = compared(trained_cnn, digits, recipe=f".*: dynamic_wi8\n{conv}: weight_only_wi4")
    assert labels(made) == ["float32", "dynamic_wi8", "recipe"]
    weights = trained_cnn.layers[3].get_weights()[0]
    assert made["recipe"].file.weights["int4"] == weights.size // 2
    assert "int4" not in made["dynamic_wi8"].file.weights
    assert made["recipe"].size == pytest.approx(made["dynamic_wi8"].size - weights.size / 2, abs=600)
    assert made["recipe"].evidence.snr_db < made["dynamic_wi8"].evidence.snr_db


def test_a_layer_that_the_model_does_not_have_is_named_with_those_near_it(trained_cnn: Any, digits: Digits) -> None:
    near = trained_cnn.layers[3].name
    with pytest.raises(NameNotFound, match=rf"the recipe names '{near}x'[^!]*Did you mean {near}"):
        compared(trained_cnn, digits, recipe=f"{near}x: float32")


def test_a_recipe_that_no_quantizer_can_make_is_refused(trained_cnn: Any, digits: Digits) -> None:
    with pytest.raises(DataError, match="no quantizer makes a file of this recipe"):
        compared(trained_cnn, digits, recipe=f"{trained_cnn.layers[0].name}: dynamic_wi4")


@pytest.mark.parametrize("stage", ["looking at the calibration samples", "calibrating", "timing the source model"])
def test_a_job_that_dies_after_the_files_are_made_costs_none_of_them(
    trained_cnn: Any, digits: Digits, stage: str
) -> None:
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if progress.stage == stage and not killed:
            for child in [child for server in fork_servers() for child in server.children()]:
                killed.append(child.pid)
                child.kill()

    made = compared(trained_cnn, digits, "float32", "int8", no_cache=True, progress=kill)
    assert killed and labels(made) == ["float32", "int8"]


def test_options_left_at_none_are_as_if_left_out() -> None:
    asked = Quantize(model=None, max_drop=None, max_latency=None, max_size=None)
    assert asked.budget == Quantize(model=None).budget
    assert not asked.budget


@pytest.mark.parametrize(("said", "share"), [("2%", 0.02), ("2", 0.02), (2, 0.02), ("0.7%", 0.007)])
def test_a_drop_is_in_percentage_points(said: Any, share: float) -> None:
    assert Quantize(model=None, max_drop=said).max_drop == pytest.approx(share)


def test_a_recipe_without_calibrated_schemes_needs_no_calibration_data(trained_cnn: Any, digits: Digits) -> None:
    conv = trained_cnn.layers[3].name
    made = compared(trained_cnn, digits, recipe=f".*: dynamic_wi8\n{conv}: weight_only_wi4", calib=None)
    assert labels(made) == ["float32", "dynamic_wi8", "recipe"]


def test_no_file_of_a_recipe_is_listed_twice(trained_cnn: Any, digits: Digits) -> None:
    made = compared(trained_cnn, digits, recipe=".*: float32")
    assert len(set(labels(made))) == len(labels(made))


def test_a_recipe_may_quantize_one_layer_to_int8_and_leave_the_rest_in_float(trained_cnn: Any, digits: Digits) -> None:
    conv = trained_cnn.layers[3].name
    made = compared(trained_cnn, digits, recipe=f".*: float32\n{conv}: int8")["int8, recipe"]
    integers = sum(count for dtype, count in made.file.activations.items() if "int" in dtype)
    assert 0 < integers < sum(made.file.activations.values()) / 2
    assert made.evidence.ok


def test_a_metric_of_ones_own_may_say_that_lower_is_better(trained_cnn: Any, digits: Digits) -> None:
    def wrong(labels: Any, output: Any) -> float:
        return float(np.mean((np.eye(10)[labels] - output) ** 2))

    for lower in (False, True):
        if lower:
            wrong.higher_is_better = False  # type: ignore[attr-defined]
        made = compared(trained_cnn, digits, "int8", metric=wrong)["int8"].evidence
        assert made.score is not None and made.baseline_score is not None and made.drop is not None
        worse = (made.score.value - made.baseline_score.value) / made.baseline_score.value
        assert made.drop.value == pytest.approx(worse if lower else -worse)


def test_the_manifest_says_what_prepared_the_calibration_samples(trained_cnn: Any, digits: Digits) -> None:
    def brighter(x: Any) -> Any:
        return np.asarray(x, "float32")

    manifest = compared(trained_cnn, digits, "int8", preprocess=brighter)["int8"].provenance.manifest
    assert manifest["preprocess"] == "brighter"
    assert (manifest["samples"], manifest["seed"]) == (ROWS, None)
    assert compared(trained_cnn, digits, "int8")["int8"].provenance.manifest["preprocess"] is None
