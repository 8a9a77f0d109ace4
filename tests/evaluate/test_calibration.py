from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tests.evaluate import by_hand
from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.samples import SampleSet, save_arrays
from tfdeploy_magic.evaluate import calibration

Samples = Callable[..., SampleSet]
RANDOM = np.random.default_rng(0)


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    made = iter(range(99))

    def make(*only: Any, **inputs: Any) -> SampleSet:
        arrays = inputs or {"x": only[0]}
        return SampleSet(save_arrays(tmp_path / str(next(made)), arrays), len(next(iter(arrays.values()))), "rows")

    return make


def normal(*shape: int) -> Any:
    return RANDOM.normal(size=shape).astype("float32")


def found(findings: tuple[Finding, ...]) -> list[tuple[str, str]]:
    return [(finding.level, finding.code) for finding in findings]


def test_nothing_is_said_of_a_file_that_was_not_calibrated(samples: Samples) -> None:
    assert calibration.check(None, samples(normal(50, 3))) == ()
    assert calibration.check(None, None) == ()


def test_a_hundred_real_samples_are_good(samples: Samples, digits: Digits) -> None:
    for seed in range(5):
        rows = np.random.default_rng(seed).choice(len(digits.x_train), 100, replace=False)
        assert calibration.check(samples(digits.x_train[rows]), samples(digits.x_test)) == ()
        assert calibration.check(samples(digits.x_train[rows]), None) == ()


def test_every_finding_says_what_to_do(samples: Samples) -> None:
    zeros = samples(np.zeros((5, 3), "float32"))
    findings = calibration.check(zeros, samples(np.zeros((40, 3), "float32")))
    assert len(findings) > 2
    assert all(finding.cure.endswith(".") for finding in findings)


# Samples that are no samples


def test_an_input_that_is_always_zero_is_an_error_by_its_name(samples: Samples) -> None:
    given = samples(a=normal(50, 3), b=np.zeros((50, 2), "float32"))
    (finding,) = calibration.check(given, samples(a=normal(90, 3), b=normal(90, 2)))
    assert (finding.level, finding.code) == ("error", "constant-calibration")
    assert finding.message == "every calibration sample is the constant 0 in input b"


def test_an_input_that_is_always_one_number_is_a_warning_unless_the_test_data_say_so_too(samples: Samples) -> None:
    given = samples(x=normal(50, 3), temperature=np.ones((50, 1), "float32"))
    same = samples(x=normal(90, 3), temperature=np.ones((90, 1), "float32"))
    other = samples(x=normal(90, 3), temperature=RANDOM.uniform(0, 1, (90, 1)).astype("float32"))
    assert calibration.check(given, same) == ()
    assert found(calibration.check(given, other)) == [("warning", "constant-calibration")]
    assert found(calibration.check(given, None)) == [("warning", "constant-calibration")]


def test_one_sample_given_again_and_again_is_an_error(samples: Samples) -> None:
    (finding,) = calibration.check(samples(np.repeat(normal(1, 3), 50, axis=0)), None)
    assert (finding.level, finding.code) == ("error", "repeated-calibration")
    assert "all 50 calibration samples" in finding.message


def test_more_than_half_of_the_samples_repeated_is_a_warning(samples: Samples) -> None:
    rows = normal(50, 3)
    assert calibration.check(samples(np.concatenate([rows, rows])), None) == ()
    (finding,) = calibration.check(samples(np.concatenate([rows, rows, rows[:1]])), None)
    assert (finding.level, finding.code) == ("warning", "repeated-calibration")
    assert "51 of 101" in finding.message


@pytest.mark.parametrize(("count", "few"), [(1, True), (9, True), (10, False)])
def test_fewer_than_ten_samples_are_a_warning(samples: Samples, count: int, few: bool) -> None:
    codes = found(calibration.check(samples(normal(count, 3)), None))
    assert codes == ([("warning", "few-calibration-samples")] if few else [])


def test_samples_that_also_calibrated_are_found(samples: Samples) -> None:
    x = normal(200, 3)
    test = samples(x[:100])
    assert calibration.overlap(None, test) == ()
    assert calibration.overlap(samples(x[100:]), test) == ()
    (few,) = calibration.overlap(samples(x[95:]), test)
    (many,) = calibration.overlap(samples(x[94:]), test)
    assert (few.level, many.level) == ("warning", "error")
    assert "6 of 100 test samples" in many.message
    assert many in calibration.check(samples(x[94:]), test)


# Samples of something else


def standardized(loader: str) -> tuple[Any, Any]:
    import sklearn.datasets

    data = getattr(sklearn.datasets, loader)()
    return (data.data - data.data.mean(0)) / data.data.std(0), data.target


def smooth_images(count: int) -> Any:
    """Photographs as far as statistics go: neighbours are alike, ``[count, 16, 16, 3]``."""
    waves = RANDOM.normal(size=(count, 3, 3, 3)) / np.arange(1, 4)[:, None, None] / np.arange(1, 4)[:, None]
    cosines = np.cos(np.arange(3)[:, None] * np.linspace(0, np.pi, 16))
    return np.einsum("nabc,ax,by->nxyc", waves, cosines, cosines) + np.array([0.1, 0.5, 0.9])


def mixed(values: Any) -> Any:
    """Make features that go together of independent ones."""
    return values @ np.random.default_rng(1).normal(size=(values.shape[1], 12))


REAL = {
    "digits": lambda digits: (digits.x_train, digits.y_train),
    "iris": lambda _: standardized("load_iris"),
    "wine": lambda _: standardized("load_wine"),
    "diabetes": lambda _: (standardized("load_diabetes")[0], np.arange(442)),
    "images": lambda _: (smooth_images(700), np.arange(700)),
    "heavy tails": lambda _: (mixed(RANDOM.standard_t(1.5, size=(900, 5))), np.arange(900)),
    "independent features": lambda _: (normal(900, 4) * [1, 2, 3, 4], np.arange(900)),
    "rare ones": lambda _: (RANDOM.poisson(0.1, size=(900, 300)).astype("float64"), np.arange(900)),
}

NOISE = {
    "rand": lambda shape: RANDOM.random(shape),
    "randn": lambda shape: RANDOM.normal(size=shape),
    "uniform": lambda shape: RANDOM.uniform(-1, 1, shape),
    "bytes": lambda shape: RANDOM.integers(0, 256, shape).astype("float64"),
}


def looks_random(given: SampleSet, test: SampleSet) -> bool:
    return ("warning", "random-calibration") in found(calibration.check(given, test))


@pytest.mark.parametrize("name", REAL)
def test_real_samples_are_never_taken_for_random_numbers(samples: Samples, digits: Digits, name: str) -> None:
    x, y = REAL[name](digits)
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(len(x))
        given, test = order[: len(x) // 2], order[len(x) // 2 :]
        by_class = given[np.argsort(y[given], kind="stable")]
        test = samples(x[test] if seed % 2 else x[test[:40]])
        for count in (12, 25, 70):
            assert not looks_random(samples(x[given[:count]]), test)
            assert not looks_random(samples(x[by_class[:count]]), test)


@pytest.mark.parametrize("name", ["digits", "iris", "wine", "diabetes", "images", "heavy tails"])
@pytest.mark.parametrize("noise", NOISE)
def test_random_numbers_in_place_of_samples_are_a_warning(
    samples: Samples, digits: Digits, name: str, noise: str
) -> None:
    x, _ = REAL[name](digits)
    assert looks_random(samples(NOISE[noise]((100, *x.shape[1:]))), samples(x))


def test_random_numbers_that_were_normalized_by_colour_are_random_numbers(samples: Samples) -> None:
    noise = (RANDOM.random((100, 16, 16, 3)) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert looks_random(samples(noise), samples(smooth_images(300)))


def test_random_numbers_are_told_from_independent_features_that_differ(samples: Samples) -> None:
    x = normal(300, 10) * np.geomspace(1, 9, 10)
    assert looks_random(samples(normal(100, 10) * 9), samples(x))
    assert not looks_random(samples(x[:100]), samples(x[100:]))


@pytest.mark.parametrize(
    ("given", "test"),
    [
        (normal(100, 1), mixed(normal(100, 2))[:, :1]),
        (normal(9, 12), mixed(normal(100, 2))),
        (normal(100, 12), mixed(normal(9, 2))),
        (normal(100, 5), mixed(normal(100, 2))),
        (normal(100, 12) > 0, mixed(normal(100, 2)) > 0),
        (normal(100, 12), np.ones((50, 12))),
        (normal(100, 12), normal(100, 12)),
    ],
    ids=[
        "one feature",
        "few samples",
        "few tests",
        "another shape",
        "not numbers",
        "constant",
        "the test data are too",
    ],
)
def test_what_cannot_be_told_is_not_said(samples: Samples, given: Any, test: Any) -> None:
    assert not looks_random(samples(given), samples(test))


def test_the_traits_are_what_scipy_says_of_ranks(digits: Digits) -> None:
    from scipy import stats

    x = digits.x_train[:200].reshape(200, -1).astype("float64")
    x = x[:, np.ptp(x, axis=0) > 0][:, 18:30]
    together, unlike = calibration._traits(x, np.zeros(12, int))
    rho = stats.spearmanr(x).statistic[np.triu_indices(12, 1)]
    assert together.size == pytest.approx(np.mean(rho**2) - 1 / 199)
    ranks = stats.rankdata(x).reshape(x.shape)
    between = [np.var(r.mean(0)) / np.mean(r.var(0)) for r in (ranks, np.abs(ranks - ranks.mean()))]
    assert unlike.size == pytest.approx(max(between) - 1 / 200)


def test_the_scale_of_chance_is_that_of_random_numbers() -> None:
    for shape in ((15, 20), (100, 6), (200, 64)):
        drawn = [calibration._traits(RANDOM.random(shape), np.zeros(shape[1], int)) for _ in range(60)]
        for traits in zip(*drawn, strict=True):
            scores = [trait.size / trait.chance for trait in traits]
            assert max(scores) < calibration.SURE + 1
            assert 0.5 < np.std(scores) < 1.5


def test_random_numbers_cost_signal_where_the_finding_says_so(
    trained_cnn: Any, digits: Digits, samples: Samples
) -> None:
    noise = RANDOM.random((100, 8, 8, 1)).astype("float32")
    assert found(calibration.check(samples(noise), samples(digits.x_test))) == [("warning", "random-calibration")]
    reference = trained_cnn.predict(digits.x_test, verbose=0)
    ratios = []
    for rows in (noise, digits.x_train[:100]):
        content = by_hand.plain_file(trained_cnn, "int8", "int8", rows)
        (name,) = by_hand.interpreter(content).get_signature_runner().get_input_details()
        (answers,) = by_hand.answers(content, {name: digits.x_test}).values()
        ratios.append(snr_db(reference, answers))
    assert ratios[0] < ratios[1] - 6


# Classes


def scores(*classes: int, of: int = 10) -> Any:
    return np.eye(of, dtype="float32")[list(classes)]


MIXED = {"y": scores(*range(10), *range(10), *range(10), *range(10))}


@pytest.mark.parametrize(("others", "finds"), [(0, True), (3, True), (8, False)])
def test_samples_of_nearly_one_class_are_a_warning(others: int, finds: bool) -> None:
    given = {"y": scores(*[3] * (100 - others), *[5] * others)}
    expected = [("warning", "one-class-calibration")] if finds else []
    assert found(calibration.one_class(given, MIXED, True)) == expected


def test_the_class_and_both_shares_are_told() -> None:
    (finding,) = calibration.one_class({"y": scores(*[7] * 20)}, MIXED, False)
    assert finding.message.startswith("output y takes 20 of 20 calibration samples for class 7, but only 10.0% of")
    assert finding.cure.endswith(".")


def test_random_samples_are_of_one_class_only_where_the_test_samples_nearly_are() -> None:
    random = np.random.default_rng(0)
    for _ in range(2000):
        classes = random.integers(2, 12)
        shares = random.dirichlet(np.full(classes, random.choice([0.05, 0.3, 1, 5])))
        given, test = (
            {"y": scores(*random.choice(classes, size, p=shares), of=classes)} for size in random.integers(10, 300, 2)
        )
        assert calibration.one_class(given, test, True) == ()


def test_a_few_samples_of_the_same_class_of_two_may_be_chance() -> None:
    even = {"y": scores(*[0, 1] * 100, of=2)}
    assert calibration.one_class({"y": scores(*[1] * 10, of=2)}, even, True) == ()
    assert calibration.one_class({"y": scores(*[1] * 40, of=2)}, even, True)


def test_each_head_is_looked_at_and_outputs_that_score_no_classes_are_not() -> None:
    given = {"a": scores(*range(10)), "b": scores(*[1] * 10), "c": normal(10, 4)}
    test = {"a": MIXED["y"], "b": MIXED["y"], "c": normal(40, 4)}
    (finding,) = calibration.one_class(given, test, False)
    assert "output b takes" in finding.message


def test_the_chance_is_never_less_than_the_binomial_distribution_gives() -> None:
    from scipy import stats

    for count, share in ((10, 0.1), (50, 0.5), (100, 0.9)):
        for many in (count, count - count // 20):
            assert calibration._chance(many, count, share, 10**9) >= stats.binom.sf(many - 1, count, share) * 0.999


# Halves


def ranges_found(float_file: bytes, rows: Any) -> dict[str, tuple[float, float]]:
    from ai_edge_litert import schema_py_generated as schema
    from tensorflow.lite.python.optimize import calibrator

    def feed() -> Iterator[list[Any]]:
        for position in range(len(rows)):
            yield [rows[position : position + 1]]

    content = calibrator.Calibrator(calibrator.add_intermediate_tensors(float_file)).calibrate(feed)
    tensors = schema.ModelT.InitFromPackedBuf(bytes(content), 0).subgraphs[0].tensors
    known = [(t.name.decode(), t.quantization) for t in tensors if t.quantization and t.quantization.min is not None]
    return {name: (float(found.min[0]), float(found.max[0])) for name, found in known}


def test_a_hundred_samples_of_digits_have_settled_and_four_have_not(trained_cnn: Any, digits: Digits) -> None:
    float_file = by_hand.plain_file(trained_cnn)
    unsettled = {4: 0, 100: 0}
    for count in unsettled:
        for seed in range(6):
            rows = digits.x_train[np.random.default_rng(seed).permutation(len(digits.x_train))[:count]]
            first, second = (ranges_found(float_file, rows[half::2]) for half in (0, 1))
            assert len(first) > 5
            unsettled[count] += bool(calibration.halves(first, second, count))
    assert unsettled[4] >= 5
    assert unsettled[100] == 0


def test_what_disagrees_is_told_and_how_many_samples_to_try() -> None:
    first = {"a;b": (0.0, 2.0), "c": (-1.0, 1.0), "only here": (0.0, 1.0)}
    (few,) = calibration.halves(first, {"a;b": (0.5, 1.0), "c": (-1.0, 0.7)}, 10)
    assert (few.level, few.code) == ("warning", "unsettled-calibration")
    assert "the 10 calibration samples gives other ranges, 32% of their width apart" in few.message
    assert few.message.endswith("1 of 2 tensors by more than 20%, a by 50%")
    assert few.cure == "Grow it: --samples 100."
    (more,) = calibration.halves({"a": (0.0, 1.0)}, {"a": (0.0, 9.0)}, 80)
    assert more.cure == "Grow it: --samples 160."


def test_the_more_samples_the_more_ranges_may_differ() -> None:
    first, second = {"a": (0.0, 1.0)}, {"a": (0.0, 0.9)}
    assert calibration.halves(first, second, 19)
    assert calibration.halves(first, second, 21) == ()


def test_a_few_tensors_with_outliers_say_nothing_about_the_others() -> None:
    first = {str(number): (0.0, 1.0) for number in range(10)}
    for outliers, silent in ((2, True), (5, False)):
        second = first | {str(number): (0.0, 100.0) for number in range(outliers)}
        assert (calibration.halves(first, second, 60) == ()) == silent


def test_ranges_hold_zero_as_quantized_ones_do() -> None:
    assert calibration.halves({"a": (5.0, 6.0)}, {"a": (5.9, 6.0)}, 4) == ()
    assert calibration.halves({"a": (0.0, 0.0)}, {"a": (0.0, 0.0)}, 4) == ()
    assert calibration.halves({"a": (0.0, 1.0)}, {"b": (0.0, 1.0)}, 4) == ()


# Ranges


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "S4"])
def test_token_ids_masks_and_strings_have_no_range(samples: Samples, dtype: str) -> None:
    ids = np.arange(60).reshape(30, 2)
    given = samples(x=normal(30, 3), ids=np.zeros_like(ids).astype(dtype))
    assert calibration.check(given, samples(x=normal(90, 3), ids=np.tile(ids, (3, 1)).astype(dtype))) == ()


def test_what_lies_outside_is_counted_and_both_ranges_are_told(samples: Samples) -> None:
    x = normal(1000, 2)
    (finding,) = calibration.check(samples(a=x, b=x[:, :1] / 10), samples(a=normal(300, 2), b=x[:300, :1]))
    outside = np.mean((x[:300, 0] < x[:, 0].min() / 10) | (x[:300, 0] > x[:, 0].max() / 10))
    assert (finding.level, finding.code) == ("error", "calibration-too-narrow")
    assert finding.message.startswith(f"{outside:.1%} of the test values of input b lie outside")
    assert f"from {x[:300, 0].min():g} to {x[:300, 0].max():g}" in finding.message


@pytest.mark.parametrize("offset", [0.0, 300.0, -1e9])
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_what_is_cut_off_is_what_numpy_says_of_the_whole_array(
    monkeypatch: pytest.MonkeyPatch, offset: float, block: int
) -> None:
    monkeypatch.setattr(calibration, "_BLOCK_VALUES", block)
    values = normal(50, 3).astype("float64") + offset
    low, high = float(np.quantile(values, 0.2)), float(np.quantile(values, 0.9))
    outside, cut = calibration._cut(values, low, high)
    excess = values - np.clip(values, low, high)
    assert outside == np.mean(excess != 0)
    assert cut == pytest.approx(np.sqrt(np.mean(excess**2)) / np.std(values), rel=1e-4)
    assert calibration._extent(values) == (values.min(), values.max())


def test_a_quantized_range_holds_zero_whether_samples_do_or_not(
    samples: Samples, trained_cnn: Any, digits: Digits
) -> None:
    bright = digits.x_train[:20] + 8
    assert calibration.check(samples(bright), samples(np.concatenate([digits.x_test, digits.x_test + 8]))) == ()
    (given,) = by_hand.interpreter(by_hand.plain_file(trained_cnn, "int8", "int8", bright)).get_input_details()
    scale, zero_point = given["quantization"]
    assert scale * (-128 - zero_point) == 0


@pytest.mark.parametrize(("value", "expected"), [(0.9, []), (9.0, [("error", "calibration-too-narrow")])])
def test_a_single_number_that_misses_the_range_is_an_error(
    samples: Samples, value: float, expected: list[tuple[str, str]]
) -> None:
    given = RANDOM.uniform(0, 1, (50, 1))
    given[0] = 1
    assert found(calibration.check(samples(given), samples(np.full((1, 1), value)))) == expected


def test_data_far_from_zero_that_miss_their_range_are_an_error(samples: Samples) -> None:
    celsius, kelvin = RANDOM.uniform(-10, 30, (50, 2)), RANDOM.uniform(263, 303, (90, 2))
    assert found(calibration.check(samples(celsius), samples(kelvin))) == [("error", "calibration-too-narrow")]


def test_test_data_that_are_all_zero_say_nothing_about_the_calibration(samples: Samples) -> None:
    assert calibration.check(samples(normal(50, 2)), samples(np.zeros((40, 2), "float32"))) == ()


def snr_db(source: Any, answers: Any) -> float:
    return float(10 * np.log10(np.sum(source**2) / np.sum((source - answers) ** 2)))


@pytest.mark.parametrize(
    ("factor", "bits", "expected", "snr"),
    [
        (0.3, 8, [("error", "calibration-too-narrow")], (0, 8)),
        (0.7, 8, [("warning", "calibration-too-narrow")], (8, 20)),
        (1.0, 8, [], (30, 60)),
        (4.0, 8, [], (20, 60)),
        (16.0, 8, [("warning", "calibration-too-wide")], (8, 20)),
        (64.0, 8, [("error", "calibration-too-wide")], (0, 8)),
        (255.0, 16, [], (20, 60)),
        (0.3, 16, [("error", "calibration-too-narrow")], (0, 8)),
    ],
)
def test_a_finding_is_as_bad_as_the_file_that_tensorflow_makes_with_such_data(
    trained_cnn: Any,
    digits: Digits,
    samples: Samples,
    factor: float,
    bits: int,
    expected: list[tuple[str, str]],
    snr: tuple[float, float],
) -> None:
    rows = digits.x_train[:100] * np.float32(factor)
    assert found(calibration.check(samples(rows), samples(digits.x_test), bits=bits)) == expected
    scheme, io = {8: ("int8", "int8"), 16: ("int16x8", "float32")}[bits]
    content = by_hand.plain_file(trained_cnn, scheme, io, rows)
    (name,) = by_hand.interpreter(content).get_signature_runner().get_input_details()
    (answers,) = by_hand.answers(content, {name: digits.x_test}).values()
    assert snr[0] < snr_db(trained_cnn.predict(digits.x_test, verbose=0), answers) < snr[1]


def test_data_larger_than_memory_are_read_in_blocks(tmp_path: Path, samples: Samples) -> None:
    path = tmp_path / "large.npy"
    # Zeros that nobody writes take no room on disk; one row makes them data.
    large = np.lib.format.open_memmap(path, "w+", "float32", (1024, 256, 256))
    large[-1] = 1
    given = samples(np.linspace(0.01, 0.99, 10, dtype="float32")[:, None, None] * np.ones((256, 256), "float32"))
    tracemalloc.start()
    try:
        findings = calibration.check(given, SampleSet({"x": path}, len(large), "large"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert findings == ()
    assert peak < large.nbytes / 4
