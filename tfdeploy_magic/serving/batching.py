"""Answering calls in threads of their own, those that wait together in one run of the model.

With TensorFlow Serving's batching parameters this follows its rules (batching_session.cc). Without them nothing ever
waits for company: whatever arrived while the model was busy is run together, if its rows are known to be independent.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
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


@dataclass(frozen=True)
class Rules:
    """How calls are put together; the names and defaults are those of ``BatchingParameters``.

    Args:
        max_batch_size: Rows in one run, at the most.
        batch_timeout_micros: How long the first call of a batch waits for others.
        max_enqueued_batches: Batches that may wait; more are refused.
        num_batch_threads: Batches that run at once.
        allowed_batch_sizes: Sizes that a batch is filled up to; any size where empty.
        pad_variable_length_inputs: Fill shorter inputs up with zeros, so that they go together.
        enable_large_batch_splitting: Run a call that is larger than a batch in parts.
        max_execution_batch_size: Rows in one run where large calls are split; ``max_batch_size`` where 0.
        every_call: Whether every call takes part, as TensorFlow Serving has it; otherwise only those of which it is
            known that their rows are independent.
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
    key: Key | None
    future: Future[Arrays]
    since: float = field(default_factory=time.perf_counter)


class Batcher:
    """The queue of one servable, and the threads that empty it.

    Args:
        run: Answers one call.
        rules: How calls are put together.
        independent: Whether the rows of a call may be run beside those of others.
        batched: Told of each batch: the rows of each call in it, all rows that were run, and how many microseconds each
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
        self._queue: deque[_Waiting] = deque()
        self._rows = 0
        self._together = False
        self._changed = threading.Condition()
        self._closed = False
        self._threads: list[threading.Thread] = []

    def submit(self, call: Call) -> Future[Arrays]:
        """Queue a call.

        Raises:
            Refusal: The queue is full, the call can never be batched, or the version is being unloaded.
        """
        rules = self._rules
        key, rows = self._key_of(call)
        if key is not None and rows > rules.max_batch_size and not rules.enable_large_batch_splitting:
            if rules.every_call:
                raise invalid(f"Task size {rows} is larger than maximum input batch size {rules.max_batch_size}")
            key = None
        waiting = _Waiting(call, rows, key, Future())
        with self._changed:
            if self._closed:
                raise Refusal(Code.UNAVAILABLE, "the version is being unloaded")
            if self._rows and self._rows + rows > rules.max_enqueued_batches * rules.max_batch_size:
                raise Refusal(
                    Code.UNAVAILABLE, "The batch scheduling queue to which this task was submitted is full; "
                    f"currently_enqueued_batches: {-(-self._rows // rules.max_batch_size)}, "
                    f"max_enqueued_batches: {rules.max_enqueued_batches}"
                )  # fmt: skip
            self._queue.append(waiting)
            self._rows += rows
            self._start_threads()
            self._changed.notify()
        return waiting.future

    def close(self) -> None:
        """Answer what waits, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _key_of(self, call: Call) -> tuple[Key | None, int]:
        """Return what calls must have in common to go together, None where this one goes alone, and its rows."""
        sizes = {array.shape[0] if array.ndim else None for array in call.inputs.values()}
        rows = sizes.pop() if len(sizes) == 1 else None
        if rows is None and self._rules.every_call:
            raise invalid("Batching session Run() input tensors must have equal 0th-dimension size")
        if not rows or not (self._rules.every_call or self._independent(call)):
            return None, rows or 1
        padded = self._rules.pad_variable_length_inputs
        shapes = tuple(
            (name, array.dtype.str, array.ndim if padded else array.shape[1:]) for name, array in call.inputs.items()
        )
        return (call.signature, call.outputs, shapes), rows

    def _start_threads(self) -> None:
        if not self._threads:  # a servable that is only ever answered inline has none
            self._threads = [
                threading.Thread(target=self._work, name="batching", daemon=True)
                for _ in range(self._rules.num_batch_threads)
            ]
            for thread in self._threads:
                thread.start()

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:  # those who asked may all have given up
                self._answer(batch)
            with self._changed:
                if not batch or batch[0].key is not None:
                    self._together = False
                    self._changed.notify()

    def _next_batch(self) -> list[_Waiting] | None:
        """Wait for calls; None when the queue is closed and empty."""
        with self._changed:
            while True:
                while (first := self._first()) is None:
                    if self._closed and not self._queue:
                        return None
                    self._changed.wait()
                left = first.since + self._rules.batch_timeout_micros / 1e6 - time.perf_counter()
                full = sum(w.rows for w in self._queue if w.key == first.key) >= self._rules.max_batch_size
                if first.key is None or left <= 0 or full or self._closed:
                    return self._take(first)
                self._changed.wait(left)

    def _first(self) -> _Waiting | None:
        """Return the call whose turn it is.

        Without batching parameters only one batch runs at a time: two would be smaller, and share the same cores.
        """
        return next((waiting for waiting in self._queue if waiting.key is None or not self._together), None)

    def _take(self, first: _Waiting) -> list[_Waiting]:
        taken, rows = [first], first.rows
        if first.key is not None:
            self._together = not self._rules.every_call
            for waiting in self._queue:
                if waiting.key == first.key and waiting is not first and rows + waiting.rows <= self._rules.most_rows:
                    taken.append(waiting)
                    rows += waiting.rows
        for waiting in taken:
            self._queue.remove(waiting)
        self._rows -= rows
        if self._queue:
            self._changed.notify()  # there is more for another thread
        return [waiting for waiting in taken if waiting.future.set_running_or_notify_cancel()]

    def _answer(self, batch: list[_Waiting]) -> None:
        waits = [(time.perf_counter() - waiting.since) * 1e6 for waiting in batch]
        if batch[0].key is None:
            _settle(batch[0], self._run)
            return
        rows = sum(waiting.rows for waiting in batch)
        try:
            whole = batch[0].call if len(batch) == 1 else _merged([waiting.call for waiting in batch])
            answers, filled = self._run_in_parts(whole, rows)
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            for waiting in batch if len(batch) > 1 else ():  # one bad call must not cost the others their answers
                _settle(waiting, self._run)
            return
        self._batched([waiting.rows for waiting in batch], rows + filled, waits)
        start = 0
        for waiting in batch:
            waiting.future.set_result({name: answer[start : start + waiting.rows] for name, answer in answers.items()})
            start += waiting.rows

    def _run_in_parts(self, call: Call, rows: int) -> tuple[Arrays, int]:
        """Run a batch, in parts where it is larger than one run may be; also return the rows that filled it up."""
        most, parts, filled = self._rules.most_rows, [], 0
        for start in range(0, rows, most):
            part = call if rows <= most else _rows_of(call, start, start + most)
            count = min(most, rows - start)
            size = next((size for size in self._rules.allowed_batch_sizes if size >= count), count)
            answers = self._run(_filled_up(part, count, size) if size > count else part)
            for name, answer in answers.items():
                if not answer.ndim or len(answer) != size:
                    raise Refusal(
                        Code.FAILED_PRECONDITION,
                        f"Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of "
                        f"the input tensors ({name})",
                    )
            parts.append({name: answer[:count] for name, answer in answers.items()})
            filled += size - count
        return (parts[0] if len(parts) == 1 else _joined(parts)), filled


def _settle(waiting: _Waiting, run: Run) -> None:
    try:
        waiting.future.set_result(run(waiting.call))
    except Exception as error:
        waiting.future.set_exception(error)


def _merged(calls: list[Call]) -> Call:
    inputs = {}
    for name in calls[0].inputs:
        arrays = [call.inputs[name] for call in calls]
        longest = np.max([array.shape[1:] for array in arrays], axis=0).astype(int)
        inputs[name] = np.concatenate([_padded(array, longest) for array in arrays])
    return Call(calls[0].signature, inputs, calls[0].outputs)


def _padded(array: Any, shape: Any) -> Any:
    """Return rows filled up with zeros, or empty strings, to a shape."""
    if array.shape[1:] == tuple(shape):
        return array
    wider = np.full((len(array), *shape), b"" if array.dtype == object else 0, array.dtype)
    wider[tuple(slice(size) for size in array.shape)] = array
    return wider


def _filled_up(call: Call, count: int, size: int) -> Call:
    """Return a call of ``size`` rows: its first one again and again, which no model minds."""
    rows = np.r_[np.arange(count), np.zeros(size - count, int)]
    return Call(call.signature, {name: array[rows] for name, array in call.inputs.items()}, call.outputs)


def _rows_of(call: Call, start: int, stop: int) -> Call:
    return Call(call.signature, {name: array[start:stop] for name, array in call.inputs.items()}, call.outputs)


def _joined(parts: Iterable[Arrays]) -> Arrays:
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
