from __future__ import annotations

import tracemalloc
from collections.abc import Callable
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
    given = samples(RANDOM.uniform(0, 1, (10, 256, 256)).astype("float32"))
    tracemalloc.start()
    try:
        findings = calibration.check(given, SampleSet({"x": path}, len(large), "large"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert findings == ()
    assert peak < large.nbytes / 4
