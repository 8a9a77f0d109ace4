"""Short calls that arrive in one turn of the event loop, answered by one run of the model.

TensorFlow lets other threads run while it does, and getting the thread back costs more than a tiny model: many calls
are better answered at once. None waits for others: what has arrived when the loop comes to it goes together.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.serving.batching import Key, check_answers, key_of, merged, rows_in
from tfdeploy_magic.serving.calls import Call, Servable

_Waiting = tuple[Call, "asyncio.Future[Arrays]"]


class Turn:
    """The calls of the turn that is going on; used on one event loop only."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[Servable, Key], list[_Waiting]] = {}

    async def answer(self, servable: Servable, call: Call) -> Arrays:
        """Answer a call that is short, beside others where its rows are independent.

        Raises:
            Refusal: It cannot be answered.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Arrays] = loop.create_future()
        if not rows_in(call) or not servable.independent(call):
            _settle(servable, call, future)
            return await future
        key = (servable, key_of(call))
        if (waiting := self._waiting.get(key)) is None:
            waiting = self._waiting[key] = []
            loop.call_soon(self._run, key)
        waiting.append((call, future))
        return await future

    def _run(self, key: tuple[Servable, Key]) -> None:
        _answer(key[0], [(call, future) for call, future in self._waiting.pop(key) if not future.done()])


def _answer(servable: Servable, waiting: list[_Waiting]) -> None:
    if len(waiting) < 2:
        for call, future in waiting:
            _settle(servable, call, future)
        return
    whole = merged([call for call, _ in waiting])
    if not servable.inline(whole):  # together they are no longer short
        half = len(waiting) // 2
        _answer(servable, waiting[:half])
        _answer(servable, waiting[half:])
        return
    try:
        answers = servable.answer(whole)
        check_answers(answers, rows_in(whole) or 0)
    except Exception:  # one bad call must not cost the others their answers
        for call, future in waiting:
            _settle(servable, call, future)
        return
    start = 0
    for call, future in waiting:
        stop = start + (rows_in(call) or 0)
        future.set_result({name: answer[start:stop] for name, answer in answers.items()})
        start = stop


def _settle(servable: Servable, call: Call, future: asyncio.Future[Any]) -> None:
    try:
        if not servable.inline(call):  # it was when it came; the loop must not wait for it
            waiting = asyncio.wrap_future(servable.submit(call), loop=future.get_loop())
            waiting.add_done_callback(functools.partial(_hand_on, future))
            return
        future.set_result(servable.answer(call))
    except Exception as error:
        future.set_exception(error)


def _hand_on(future: asyncio.Future[Any], done: asyncio.Future[Any]) -> None:
    if future.done():  # nobody waits any longer
        return
    error = done.exception()
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(done.result())
