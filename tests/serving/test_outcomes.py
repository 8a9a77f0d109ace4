"""Outcomes are counted for the arms that they belong to, or refused in words that say which one is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tfdeploy_magic.serving.lineup import Arm
from tfdeploy_magic.serving.outcomes import outcomes_of
from tfdeploy_magic.serving.router import Split
from tfdeploy_magic.serving.status import Refusal

SPLIT = Split("half", (Arm("stable", 0.5, "half", 1), Arm("canary", 0.5, "half", 2)))


def test_an_outcome_is_of_the_arm_that_it_names_or_that_its_key_gets() -> None:
    assert outcomes_of({"arm": "canary", "success": False}, SPLIT) == {("canary", "failure"): 1}
    for number in range(10):
        key = f"user-{number}"
        assert outcomes_of({"key": key, "success": True, "at": 5}, SPLIT) == {(SPLIT.arm_of(key).name, "success"): 1}


def test_many_outcomes_are_added_up() -> None:
    rows = [{"arm": "stable", "success": number % 3 == 0} for number in range(9)] + [{"arm": "canary", "success": True}]
    found = outcomes_of({"outcomes": rows}, SPLIT)
    assert found == {("stable", "success"): 3, ("stable", "failure"): 6, ("canary", "success"): 1}
    assert outcomes_of({"outcomes": []}, SPLIT) == {}


WRONG: list[tuple[Any, str]] = [
    ({}, "'success' key is expected and was not found"),
    ({"success": True}, "either 'key' or 'arm' is expected and none was found"),
    ({"key": "u", "arm": "stable", "success": True}, "either 'key' or 'arm' is expected and both were found"),
    ({"arm": "stable", "success": 1}, "'success' key must be true or false. Was: 1"),
    ({"arm": "stable", "success": "yes"}, "'success' key must be true or false. Was: \"yes\""),
    ({"arm": "stable", "success": None}, "'success' key must be true or false. Was: null"),
    ({"arm": "blue", "success": True}, 'Model half has no arm "blue". Its arms: stable, canary.'),
    ({"arm": ["stable"], "success": True}, 'Model half has no arm [\n    "stable"\n]. Its arms: stable, canary.'),
    ({"key": 7, "success": True}, "'key' key must be a string value that is not empty. Was: 7"),
    ({"key": "", "success": True}, "'key' key must be a string value that is not empty. Was: \"\""),
    ({"key": "u" * 1025, "success": True}, "x-tfdeploy-key is longer than 1024 characters"),
    (5, "JSON Value: 5 Is not object"),
]


@pytest.mark.parametrize(("row", "message"), WRONG)
def test_what_is_no_outcome_is_refused_alone_and_among_others(row: Any, message: str) -> None:
    if isinstance(row, dict):
        with pytest.raises(Refusal) as alone:
            outcomes_of(row, SPLIT)
        assert alone.value.message == message
    with pytest.raises(Refusal) as among:
        outcomes_of({"outcomes": [{"arm": "stable", "success": True}, row]}, SPLIT)
    where = "Failed to process element: 1 of 'outcomes' list. Error: INVALID_ARGUMENT: "
    assert str(among.value) == f"INVALID_ARGUMENT: {where}{message}"


def test_a_list_of_outcomes_is_a_list_and_stands_alone() -> None:
    for rows in (None, {"arm": "stable", "success": True}, "x"):
        with pytest.raises(Refusal, match="'outcomes' key must be a list value"):
            outcomes_of({"outcomes": rows}, SPLIT)
    with pytest.raises(Refusal, match="'outcomes' key stands alone"):
        outcomes_of({"outcomes": [], "success": True}, SPLIT)
