"""Where the two engines differ on one model, against both files in LiteRT's interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tests.evaluate import by_hand
from tfdeploy_magic import quantize
from tfdeploy_magic.artifacts.comparison import Contrast
from tfdeploy_magic.commands.comparison import Comparison

AVERAGED = "static_wi8_ai8, moving average"


@pytest.fixture(scope="module")
def both(trained_cnn: Any, digits: Digits) -> Comparison:
    made = quantize(
        trained_cnn,
        schemes=("float32", "dynamic", "int8", "dynamic_wi8", "static_wi8_ai8"),
        engine="both",
        calib=digits.x_train[:60],
        test=(digits.x_test, digits.y_test),
        no_cache=True,
    )
    assert isinstance(made, Comparison)
    return made


def contrast(both: Comparison, first: str, second: str) -> Contrast:
    (found,) = (each for each in both.table.contrasts if (each.first, each.second) == (first, second))
    return found


def by_litert(both: Comparison, label: str, x: Any) -> Any:
    lite = both[label]
    (answers,) = by_hand.answers(lite.path.read_bytes(), {lite.inputs[0].name: x}).values()
    return np.asarray(answers, np.float64)


def test_with_the_same_range_rule_the_engines_agree_but_for_rounding(both: Comparison, digits: Digits) -> None:
    found = contrast(both, "int8", "static_wi8_ai8")
    ours, theirs = (by_litert(both, label, digits.x_test) for label in ("int8", "static_wi8_ai8"))
    assert np.abs(ours - theirs).max() <= 1 / 256
    assert found.snr_db > 50
    assert found.agreement > 0.99
    assert found.ranges is not None and found.ranges[0] == 0 < found.ranges[1]


@pytest.mark.parametrize(
    ("first", "second"), [("dynamic", "dynamic_wi8"), ("int8", "static_wi8_ai8"), ("int8", AVERAGED)]
)
def test_what_is_said_of_two_files_is_what_their_answers_say(
    both: Comparison, digits: Digits, first: str, second: str
) -> None:
    found = contrast(both, first, second)
    ours, theirs = (by_litert(both, label, digits.x_test) for label in (first, second))
    if np.array_equal(ours, theirs):
        assert (found.snr_db, found.why) == (np.inf, "Nothing differs: every answer is the same.")
    else:
        assert found.snr_db == pytest.approx(10 * np.log10(np.sum(ours**2) / np.sum((ours - theirs) ** 2)), abs=0.1)
    assert found.agreement == pytest.approx(np.mean(ours.argmax(1) == theirs.argmax(1)))


def test_litert_quantizers_own_range_rule_costs_accuracy_and_is_counted(both: Comparison) -> None:
    found = contrast(both, "int8", AVERAGED)
    assert found.ranges is not None and 0 < found.ranges[0] <= found.ranges[1]
    assert found.snr_db < contrast(both, "int8", "static_wi8_ai8").snr_db - 10
    assert found.why.startswith(f"{found.ranges[0]} of {found.ranges[1]} tensors get another range")
    assert both[AVERAGED].evidence.snr_db < both["static_wi8_ai8"].evidence.snr_db - 5


def test_files_without_activations_in_integers_have_no_ranges_to_compare(both: Comparison) -> None:
    found = contrast(both, "dynamic", "dynamic_wi8")
    assert found.ranges is None
    assert "8 bits" in found.why


def test_the_contrasts_are_shown_with_their_reasons(both: Comparison) -> None:
    plain = both._repr_mimebundle_()["text/plain"]
    assert "where the two engines differ" in plain
    assert all(" ".join(each.why.split()[:6]) in plain for each in both.table.contrasts)


def test_what_was_not_made_by_both_engines_is_not_contrasted(trained_cnn: Any, digits: Digits) -> None:
    alone = quantize(trained_cnn, schemes=("dynamic_wi8",), engine="both", test=(digits.x_test, digits.y_test))
    assert alone.table.contrasts == ()


def test_contrasts_of_files_found_in_the_store_are_those_of_fresh_ones(
    trained_cnn: Any, digits: Digits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = ("dynamic", "int8", "dynamic_wi8", "static_wi8_ai8")
    data = {"calib": digits.x_train[:60], "test": (digits.x_test, digits.y_test)}
    fresh, found = (quantize(trained_cnn, schemes=names, engine="both", **data) for _ in range(2))
    assert all(row.provenance.file_cached for row in found.rows)
    assert [c.snr_db for c in found.table.contrasts] == pytest.approx([c.snr_db for c in fresh.table.contrasts])
    assert len({c.snr_db for c in fresh.table.contrasts}) > 2
