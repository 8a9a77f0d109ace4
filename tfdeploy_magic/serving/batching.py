"""Answering calls in threads of their own, those that wait together in one run of the model.

With TensorFlow Serving's batching parameters this follows its rules (batching_session.cc). Without them nothing ever
waits for company: whatever arrived while the model was busy is run together, if its rows are known to be independent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.serving.calls import Call
from tfdeploy_magic.serving.status import Code, Refusal, invalid

Run = Callable[[Call], Arrays]
Key = tuple[Any, ...]
Batched = Callable[[Sequence[int], int, Sequence[float]], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rules:
    """How calls are put together; the names and defaults are those of ``BatchingParameters``.

    Args:
        max_batch_size: Rows of one call, and in one run, at the most.
        batch_timeout_micros: How long the first call of a batch waits for others.
        max_enqueued_batches: Batches that may wait for each signature; more are refused.
        num_batch_threads: Batches that run at once.
        allowed_batch_sizes: Sizes that a batch is filled up to; any size where empty.
        pad_variable_length_inputs: Fill shorter inputs up with their first number, so that they go together.
        enable_large_batch_splitting: Run a call that is larger than a batch in parts.
        max_execution_batch_size: Rows in one run where large calls are split; ``max_batch_size`` where 0.
        every_call: Whether every call takes part and too many are refused, as TensorFlow Serving has it; otherwise
            only those take part of which it is known that their rows are independent, and none is refused.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 1
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0
    every_call: bool = False

    @property
    def most_rows(self) -> int:
        """Rows in one run, at the most."""
        return (self.enable_large_batch_splitting and self.max_execution_batch_size) or self.max_batch_size


@dataclass(eq=False)
class _Waiting:
    """A call in the queue."""

    call: Call
    rows: int
    future: Future[Arrays] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)


@dataclass(eq=False)
class _Batch:
    """Calls that are run together."""

    calls: list[_Waiting]
    rows: int

    @property
    def since(self) -> float:
        """When its first call came."""
        return self.calls[0].since


@dataclass(eq=False)
class _Queue:
    """The batches of calls that may go together, the last of them still open; or one call that goes alone."""

    alone: bool
    batches: deque[_Batch] = field(default_factory=deque)


class Batcher:
    """The queues of one servable, and the threads that empty them.

    Args:
        run: Answers one call.
        rules: How calls are put together.
        independent: Whether the rows of a call may be run beside those of others.
        batched: Told of each run: the rows of each call in it, all rows that were run, and how many microseconds each
            call waited.
    """

    def __init__(
        self,
        run: Run,
        rules: Rules,
        independent: Callable[[Call], bool],
        batched: Batched,
    ) -> None:
        self._run, self._rules, self._independent, self._batched = run, rules, independent, batched
        self._queues: dict[Key, _Queue] = {}  # the one whose turn is next comes first
        self._changed = threading.Condition()
        self._busy = False
        self._closed = False
        self._threads: list[threading.Thread] = []

    def submit(self, call: Call) -> Future[Arrays]:
        """Queue a call.

        Raises:
            Refusal: The queue is full, the call can never be batched, or the version is being unloaded.
        """
        key, rows = self._key_of(call)
        waiting = _Waiting(call, rows)
        with self._changed:
            if self._closed:
                raise Refusal(Code.UNAVAILABLE, "the version is being unloaded")
            if key is None:
                self._queues[(waiting,)] = _Queue(True, deque([_Batch([waiting], rows)]))
            else:
                self._enqueue(key, waiting)
            self._start_threads()
            self._changed.notify()
        return waiting.future

    def close(self) -> None:
        """Answer what waits, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _key_of(self, call: Call) -> tuple[Key | None, int]:
        """Return what calls must have in common to go together, None where this one goes alone, and its rows."""
        rules = self._rules
        rows = rows_in(call)
        if rules.every_call:
            _check_rows(call, rows, rules.max_batch_size)
        elif not (rows and rows <= rules.most_rows and self._independent(call)):
            return None, rows or 1
        if not rows:
            return None, 1
        return key_of(call, padded=rules.pad_variable_length_inputs), rows

    def _enqueue(self, key: Key, waiting: _Waiting) -> None:
        batches = self._queues[key].batches if key in self._queues else deque()
        if not batches or batches[-1].rows + waiting.rows > self._rules.most_rows:
            if self._rules.every_call:
                _check_room(batches, waiting.rows, self._rules)
            batches.append(_Batch([], 0))
        batches[-1].calls.append(waiting)
        batches[-1].rows += waiting.rows
        self._queues.setdefault(key, _Queue(False, batches))

    def _start_threads(self) -> None:
        if not self._threads:  # a servable that is only ever answered inline has none
            self._threads = [
                threading.Thread(target=self._work, name="batching", daemon=True)
                for _ in range(self._rules.num_batch_threads)
            ]
            for thread in self._threads:
                thread.start()

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            alone, batch = taken
            try:
                self._answer(alone, [w for w in batch.calls if w.future.set_running_or_notify_cancel()])
            except Exception as error:  # whoever waits must hear of it, and the thread goes on
                _log.exception("a batch was not answered")
                for waiting in batch.calls:
                    if not waiting.future.done():
                        waiting.future.set_exception(error)
            with self._changed:
                self._busy = self._busy and alone
            del taken, batch  # nothing is kept while this thread waits

    def _next(self) -> tuple[bool, _Batch] | None:
        """Wait for a batch, and whether it is a call that goes alone; None when all is closed and answered."""
        with self._changed:
            while self._queues or not self._closed:
                now = time.perf_counter()
                for key, queue in self._queues.items():
                    if self._due(queue) <= now:
                        return queue.alone, self._take(key, queue)
                due = min(map(self._due, self._queues.values()), default=float("inf"))
                self._changed.wait(None if due == float("inf") else due - now)
            self._changed.notify_all()
            return None

    def _due(self, queue: _Queue) -> float:
        """Return when a queue's first batch may be run.

        Without batching parameters only one batch runs at a time: two would be smaller, and share the same cores.
        """
        first = queue.batches[0]
        if queue.alone:
            return 0.0
        if self._busy:
            return float("inf")
        if len(queue.batches) > 1 or first.rows >= self._rules.most_rows or self._closed:
            return 0.0
        return first.since + self._rules.batch_timeout_micros / 1e6

    def _take(self, key: Key, queue: _Queue) -> _Batch:
        batch = queue.batches.popleft()
        del self._queues[key]
        if queue.batches:
            self._queues[key] = queue  # behind the others
        self._busy = self._busy or not (queue.alone or self._rules.every_call)
        if self._queues:
            self._changed.notify()  # there is more for another thread
        return batch

    def _answer(self, alone: bool, calls: list[_Waiting]) -> None:
        if alone or len(calls) == 1:
            for waiting in calls:
                self._answer_one(alone, waiting)
            return
        if not calls:
            return  # those who asked have all given up
        began = time.perf_counter()
        rows = [waiting.rows for waiting in calls]
        try:
            answers, ran = self._run_in_parts(merged([waiting.call for waiting in calls]), sum(rows))
        except Exception:  # one bad call must not cost the others their answers
            for waiting in calls:
                self._answer_one(alone, waiting)
            return
        self._batched(rows, sum(ran), [(began - waiting.since) * 1e6 for waiting in calls])
        start = 0
        for waiting in calls:
            waiting.future.set_result({name: answer[start : start + waiting.rows] for name, answer in answers.items()})
            start += waiting.rows

    def _answer_one(self, alone: bool, waiting: _Waiting) -> None:
        waited = (time.perf_counter() - waiting.since) * 1e6
        try:
            if alone or not self._rules.every_call:
                answers, ran = self._run(waiting.call), [] if alone else [waiting.rows]
            else:
                answers, ran = self._run_in_parts(waiting.call, waiting.rows)
        except Exception as error:
            waiting.future.set_exception(error)
            return
        for part, size in enumerate(ran):
            left = waiting.rows - part * self._rules.most_rows
            self._batched([min(left, self._rules.most_rows)], size, [waited])
        waiting.future.set_result(answers)

    def _run_in_parts(self, call: Call, rows: int) -> tuple[Arrays, list[int]]:
        """Run a batch, in parts where it is larger than one run may be; also return the rows of each run."""
        most, parts, ran = self._rules.most_rows, [], []
        for start in range(0, rows, most):
            part = call if rows <= most else _rows_of(call, slice(start, start + most))
            count = min(most, rows - start)
            size = next((size for size in self._rules.allowed_batch_sizes if size >= count), count)
            if size > count:  # its first row again and again, which no model minds
                part = _rows_of(part, np.r_[np.arange(count), np.zeros(size - count, int)])
            answers = self._run(part)
            check_answers(answers, size)
            parts.append({name: answer[:count] for name, answer in answers.items()})
            ran.append(size)
        return (parts[0] if len(parts) == 1 else _joined(parts)), ran


def rows_in(call: Call) -> int | None:
    """Return how many rows each input of a call has; None where they have none, or not the same."""
    sizes = {array.shape[0] if array.ndim else None for array in call.inputs.values()}
    return sizes.pop() if len(sizes) == 1 else None


def key_of(call: Call, *, padded: bool = False) -> Key:
    """Return what calls must have in common to go together; ``padded`` where shorter rows are filled up."""
    shapes = tuple(
        (name, array.dtype.str, array.ndim if padded else array.shape[1:]) for name, array in call.inputs.items()
    )
    return (call.signature, call.outputs, shapes)


def _check_rows(call: Call, rows: int | None, most: int) -> None:
    """Refuse a call that cannot be batched (batching_util.h, shared_batch_scheduler.h)."""
    if not call.inputs:
        raise invalid("Batching Run() must have at least one input tensor")
    if any(not array.ndim for array in call.inputs.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    if rows is None:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    if rows > most:
        raise invalid(f"Task size {rows} is larger than maximum input batch size {most}")


def _check_room(batches: Sequence[_Batch], rows: int, rules: Rules) -> None:
    """Refuse what would open one batch too many (shared_batch_scheduler.h)."""
    full = "The batch scheduling queue to which this task was submitted is full; "
    most = rules.max_enqueued_batches
    if not rules.enable_large_batch_splitting and len(batches) >= most:
        raise Refusal(
            Code.UNAVAILABLE, f"{full}currently {len(batches)} batches enqueued and max_enqueued_batches is {most}"
        )
    room = most * rules.most_rows - sum(batch.rows for batch in batches)
    if rules.enable_large_batch_splitting and rows > room:
        raise Refusal(
            Code.UNAVAILABLE,
            f"{full}task size is {rows} but scheduling capacity is only {room} (num_enqueued_batches="
            f"{max(1, len(batches))}, max_enqueued_batches={most}, open_batch_size="
            f"{batches[-1].rows if batches else 0}, max_execution_batch_size={rules.most_rows})",
        )


def check_answers(answers: Arrays, rows: int) -> None:
    """See that each answer has a row for each that was asked (batching_session.cc).

    Raises:
        Refusal: They cannot be told apart.
    """
    for answer in answers.values():
        if not answer.ndim:
            raise Refusal(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
        if len(answer) != rows:
            raise Refusal(
                Code.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
                "tensors",
            )


def merged(calls: Sequence[Call]) -> Call:
    """Return one call with the rows of several, in their order."""
    inputs = {}
    for name in calls[0].inputs:
        arrays = [call.inputs[name] for call in calls]
        longest = tuple(map(max, zip(*(array.shape[1:] for array in arrays), strict=True)))
        inputs[name] = np.concatenate([_padded(array, longest) for array in arrays])
    return Call(calls[0].signature, inputs, calls[0].outputs)


def _padded(array: Any, shape: tuple[int, ...]) -> Any:
    """Return rows filled up to a shape with their first number, as TensorFlow Serving does (batching_util.cc)."""
    if array.shape[1:] == shape:
        return array
    if not array.size:
        raise invalid("Got empty tensor in batch of non-empty tensors.")
    wider = np.full((len(array), *shape), array.flat[0], array.dtype)
    wider[tuple(slice(size) for size in array.shape)] = array
    return wider


def _rows_of(call: Call, rows: Any) -> Call:
    return Call(call.signature, {name: array[rows] for name, array in call.inputs.items()}, call.outputs)


def _joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
