from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator

import pytest

from tfdeploy_magic.errors import UserCodeError
from tfdeploy_magic.jobs import deadline


def my_broken_line() -> Iterator[int]:
    yield 1
    raise LookupError("no such picture")


def test_items_come_in_order_and_end() -> None:
    assert list(deadline.iterate(lambda: range(100), seconds=5, what="it")) == list(range(100))


def test_code_that_raises_is_an_error_whose_cause_is_its_own_exception_with_its_traceback() -> None:
    items = deadline.iterate(my_broken_line, seconds=5, what="the generator pictures")
    assert next(items) == 1
    with pytest.raises(UserCodeError, match=r"the generator pictures raised.*LookupError: no such picture") as caught:
        next(items)
    cause = caught.value.__cause__
    assert isinstance(cause, LookupError)
    assert "my_broken_line" in [frame.name for frame in traceback.extract_tb(cause.__traceback__)]


def test_a_function_that_raises_is_an_error_with_its_cause() -> None:
    with pytest.raises(UserCodeError) as caught:
        deadline.call(lambda: 1 / 0, seconds=5, what="the metric f1")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.what == "the metric f1 raised"


def test_code_that_hangs_is_an_error_at_its_deadline() -> None:
    release = threading.Event()
    began = time.monotonic()
    with pytest.raises(UserCodeError, match=r"the metric f1 hung: found nothing after 0\.2 s"):
        deadline.call(release.wait, seconds=0.2, what="the metric f1")
    release.set()
    assert time.monotonic() - began < 2


def test_a_stream_that_nobody_reads_to_its_end_is_not_drained() -> None:
    made = []

    def endless() -> Iterator[int]:
        for number in range(10**9):
            made.append(number)
            yield number

    items = deadline.iterate(endless, seconds=5, what="it")
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    items.close()
    time.sleep(0.3)
    count = len(made)
    assert count < 10
    time.sleep(0.2)
    assert len(made) == count


def test_a_function_gives_what_it_returns_even_none() -> None:
    assert deadline.call(lambda: None, seconds=5, what="it") is None
    assert deadline.call(lambda: [1, 2], seconds=5, what="it") == [1, 2]
