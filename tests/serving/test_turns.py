"""Short calls that arrive together: answered as alone, in fewer runs, and none pays for another's mistake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.serving.calls import Call
from tfdeploy_magic.serving.status import Refusal, invalid
from tfdeploy_magic.serving.turns import Turn


@dataclass(eq=False)
class Doubler:
    """A servable that doubles, refuses rows with a 13 in them, and remembers how many rows it was run with."""

    is_independent: bool = True
    most: int = 100
    runs: list[int] = field(default_factory=list)

    def inline(self, call: Call) -> bool:
        return sum(array.size for array in call.inputs.values()) <= self.most

    def independent(self, call: Call) -> bool:
        return self.is_independent

    def answer(self, call: Call) -> Arrays:
        x = call.inputs["x"]
        self.runs.append(x.shape[0] if x.ndim else 0)
        if (x == 13).any():
            raise invalid("thirteen")
        return dict.fromkeys(call.outputs, 2 * x)


def call(*values: float, **others: Any) -> Call:
    return Call("serving_default", {"x": np.array(values, np.float32), **others}, ("y",))


def answered(servable: Any, calls: list[Call]) -> list[Any]:
    async def together() -> list[Any]:
        turn = Turn()
        return await asyncio.gather(*(turn.answer(servable, each) for each in calls), return_exceptions=True)

    return asyncio.run(together())


def values(answer: Any) -> list[float]:
    return [float(value) for value in answer["y"]]


def test_calls_of_one_turn_are_one_run_and_each_gets_its_own_rows() -> None:
    servable = Doubler()
    answers = answered(servable, [call(1), call(2, 3), call(4, 5, 6)])
    assert [values(answer) for answer in answers] == [[2], [4, 6], [8, 10, 12]]
    assert servable.runs == [6]


def test_rows_that_depend_on_each_other_are_never_put_together() -> None:
    servable = Doubler(is_independent=False)
    assert [values(answer) for answer in answered(servable, [call(1), call(2)])] == [[2], [4]]
    assert servable.runs == [1, 1]


def test_a_call_that_is_refused_costs_the_others_nothing() -> None:
    first, bad, last = answered(Doubler(), [call(1), call(13), call(2)])
    assert (values(first), values(last)) == ([2], [4])
    assert isinstance(bad, Refusal) and bad.message == "thirteen"


def test_what_would_be_long_together_is_run_in_parts() -> None:
    servable = Doubler(most=4)
    answers = answered(servable, [call(*range(3 * n, 3 * n + 3)) for n in range(4)])
    assert [values(answer)[0] for answer in answers] == [0, 6, 12, 18]
    assert servable.runs == [3, 3, 3, 3]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: Call("other", c.inputs, c.outputs),
        lambda c: Call(c.signature, {"x": c.inputs["x"].astype(np.float64)}, c.outputs),
        lambda c: Call(c.signature, {"x": c.inputs["x"][:, None]}, c.outputs),
        lambda c: Call(c.signature, c.inputs, ("y", "z")),
    ],
)
def test_calls_of_another_kind_are_another_run(change: Callable[[Call], Call]) -> None:
    servable = Doubler()
    one, other = answered(servable, [call(1), change(call(2))])
    assert one["y"].tolist() == [2] and other["y"].ravel().tolist() == [4]
    assert servable.runs == [1, 1]


def test_a_call_without_rows_goes_alone() -> None:
    servable = Doubler()
    scalar = Call("serving_default", {"x": np.float32(3).reshape(())}, ("y",))
    answers = answered(servable, [scalar, scalar, call(1)])
    assert [answer["y"].tolist() for answer in answers] == [6, 6, [2]]
    assert servable.runs == [0, 0, 1]


def test_answers_that_are_not_one_a_row_are_never_dealt_out() -> None:
    class Filter(Doubler):
        def answer(self, call: Call) -> Arrays:
            self.runs.append(len(call.inputs["x"]))
            return {"y": call.inputs["x"][call.inputs["x"] < 5]}

    servable = Filter()
    answers = answered(servable, [call(9), call(1, 2), call(3)])
    assert [values(answer) for answer in answers] == [[], [1, 2], [3]]
    assert servable.runs == [4, 1, 2, 1]


def test_the_loop_goes_on_while_a_call_waits_that_is_short_no_longer() -> None:
    submitted: list[Future[Arrays]] = []

    class Busy(Doubler):
        def inline(self, call: Call) -> bool:
            return False

        def submit(self, call: Call) -> Future[Arrays]:
            submitted.append(Future())
            return submitted[-1]

    async def asked() -> Any:
        waiting = asyncio.ensure_future(Turn().answer(Busy(), call(4)))
        while not submitted:
            await asyncio.sleep(0)
        assert not waiting.done()
        submitted[0].set_result({"y": np.array([8.0])})
        return await waiting

    assert values(asyncio.run(asyncio.wait_for(asked(), 30))) == [8]


def test_a_caller_that_gave_up_is_left_out() -> None:
    servable = Doubler()

    async def given_up() -> Any:
        turn = Turn()
        gone = asyncio.ensure_future(turn.answer(servable, call(1, 2)))
        stays = asyncio.ensure_future(turn.answer(servable, call(3)))
        asyncio.get_running_loop().call_soon(gone.cancel)
        return await asyncio.gather(gone, stays, return_exceptions=True)

    gone, stays = asyncio.run(given_up())
    assert isinstance(gone, asyncio.CancelledError)
    assert values(stays) == [6]


def test_a_real_model_answers_together_as_it_does_alone(saved_models: Any) -> None:
    from tfdeploy_magic.serving.servable import LoadedVersion, Settings

    runs: list[float] = []
    loaded = LoadedVersion("half", 1, saved_models.half_plus_two / "1", Settings(), ran=runs.append)
    try:
        calls = [call(*np.arange(n, 2 * n + 1)) for n in range(20)]
        assert all(loaded.inline(each) and loaded.independent(each) for each in calls)
        runs.clear()
        for each, answer in zip(calls, answered(loaded, calls), strict=True):
            np.testing.assert_array_equal(answer["y"], each.inputs["x"] / 2 + 2)
        assert len(runs) < len(calls)
    finally:
        loaded.close()
