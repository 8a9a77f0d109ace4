from __future__ import annotations

import inspect
import re
import signal

import pytest

from tfdeploy_magic import errors

PARTS = {"what": "x is not a model", "found": "a list", "wanted": "a Keras model", "cure": "Name another."}
KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.TfdeployError)]
PLAIN = [kind for kind in KINDS if kind.__init__ is errors.TfdeployError.__init__]


def test_an_error_is_two_lines_that_name_all_four_parts() -> None:
    text = str(errors.NotAModel(**PARTS))
    assert text == "x is not a model: found a list.\nWanted a Keras model. Name another."


def test_the_tree_drawn_at_the_top_is_the_tree() -> None:
    drawn = re.findall(r"^[│ ]*(?:[├└]── )?([A-Z]\w+)", errors.__doc__.split("\n\n", 1)[1], re.MULTILINE)
    assert sorted(drawn) == sorted(kind.__name__ for kind in KINDS)
    parents = []
    for line in errors.__doc__.split("\n\n", 1)[1].splitlines():
        depth = re.search("[A-Z]", line).start() // 4
        name = re.search(r"[A-Z]\w+", line).group()
        parents = [*parents[:depth], name]
        if depth:
            assert getattr(errors, name).__bases__ == (getattr(errors, parents[-2]),)


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.__name__)
def test_an_error_rebuilt_from_its_parts_is_the_same(kind: type[errors.TfdeployError]) -> None:
    error = kind(**PARTS)
    again = errors.from_fields(kind.__name__, error.as_fields())
    assert type(again) is kind
    assert str(again) == str(error)


@pytest.mark.parametrize("name", ["os", "signals", "Exception", "JobCrashed", "from_fields", ""])
def test_a_name_that_is_no_plain_error_of_ours_becomes_the_base(name: str) -> None:
    assert type(errors.from_fields(name, PARTS)) is errors.TfdeployError


def test_a_crash_names_signal_stage_and_last_words() -> None:
    crash = errors.ConversionCrashed(
        "it died", signal=signal.SIGSEGV, stage="calibrating", last_lines=("a", "the end.")
    )
    assert "SIGSEGV in stage 'calibrating'; its last words: \"the end\"" in str(crash)
    assert isinstance(crash, errors.JobError)
    unseen = errors.JobCrashed("it died", signal=None, stage="s", last_lines=())
    assert "no exit status in stage 's'." in str(unseen)


def test_a_failed_job_quotes_one_line_and_keeps_the_whole_message() -> None:
    failed = errors.JobFailed("it failed", exception="ValueError", message="first.\nsecond", trace="T")
    assert "found ValueError: first.\n" in str(failed)
    assert failed.message == "first.\nsecond"
    assert "no message" in str(errors.JobFailed("it failed", exception="E", message=" \n", trace=""))
