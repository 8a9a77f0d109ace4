"""Calls that wait together are run together, and nobody can tell from the answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.serving.batching import Batcher, Rules
from tfdeploy_magic.serving.calls import Call
from tfdeploy_magic.serving.status import Code, Refusal

NEVER = 600_000_000
"""Microseconds that no test waits for."""


class Model:
    """x * 0.5 + 2, which notes what it is asked, refuses -13, and can be made to wait."""

    def __init__(self) -> None:
        self.runs: list[Any] = []
        self.batches: list[tuple[list[int], int]] = []
        self.busy, self.go_on = threading.Semaphore(0), threading.Event()
        self.go_on.set()

    def __call__(self, call: Call) -> Arrays:
        x = call.inputs["x"]
        self.runs.append(x)
        self.busy.release()
        assert self.go_on.wait(60)
        if (x == -13).any():
            raise Refusal(Code.INVALID_ARGUMENT, "-13 is no number")
        return dict.fromkeys(call.outputs, x * 0.5 + 2)

    def batched(self, rows: Any, processed: int, waits: Any) -> None:
        assert len(rows) == len(waits)
        self.batches.append((list(rows), processed))

    @property
    def sizes(self) -> list[int]:
        """Rows of each run."""
        return [len(x) for x in self.runs]


@contextmanager
def batching(
    model: Any, rules: Rules | None = None, independent: Callable[[Call], bool] = lambda _: True, batched: Any = None
) -> Iterator[Batcher]:
    batcher = Batcher(model, rules or Rules(max_batch_size=64), independent, batched or model.batched)
    try:
        yield batcher
    finally:
        if isinstance(model, Model):
            model.go_on.set()
        batcher.close()


def call(*rows: float, signature: str = "serving_default") -> Call:
    return Call(signature, {"x": np.array(rows, np.float32)}, ("y",))


def answer(future: Future[Arrays]) -> list[Any]:
    found: list[Any] = future.result(60)["y"].tolist()
    return found


def behind_a_busy_model(model: Model, batcher: Batcher, *calls: Call, busy: Call | None = None) -> list[Future[Arrays]]:
    """Submit calls while the model is at another one, and let it go on."""
    model.go_on.clear()
    futures = [batcher.submit(busy or call(0.0))]
    assert model.busy.acquire(timeout=60)
    futures += [batcher.submit(each) for each in calls]
    model.go_on.set()
    return futures


def test_calls_that_wait_are_run_together_and_each_gets_its_own_rows() -> None:
    model = Model()
    with batching(model) as batcher:
        futures = behind_a_busy_model(model, batcher, call(1.0), call(2.0, 3.0), call(4.0))
        assert [answer(future) for future in futures] == [[2.0], [2.5], [3.0, 3.5], [4.0]]
    assert model.sizes == [1, 4]
    assert model.batches == [([1], 1), ([1, 2, 1], 4)]


def test_without_parameters_nothing_waits_for_company() -> None:
    model = Model()
    with batching(model, Rules(max_batch_size=64, batch_timeout_micros=0)) as batcher:
        assert answer(batcher.submit(call(1.0))) == [2.5]


def test_rows_that_may_depend_on_each_other_are_never_run_together() -> None:
    model = Model()
    with batching(model, independent=lambda _: False) as batcher:
        futures = behind_a_busy_model(model, batcher, call(1.0), call(2.0))
        assert [answer(future) for future in futures] == [[2.0], [2.5], [3.0]]
    assert model.sizes == [1, 1, 1]
    assert model.batches == []


def test_only_calls_of_one_signature_shape_dtype_and_outputs_go_together() -> None:
    model = Model()
    others = [
        call(1.0, signature="other"),
        Call("serving_default", {"x": np.ones((1, 2), np.float32)}, ("y",)),
        Call("serving_default", {"x": np.ones(1, np.float64)}, ("y",)),
        Call("serving_default", {"x": np.ones(1, np.float32)}, ("y", "z")),
        call(1.0),
    ]
    with batching(model) as batcher:
        futures = behind_a_busy_model(model, batcher, *others)
        for other, future in zip(others, futures[1:], strict=True):
            found = future.result(60)
            assert set(found) == set(other.outputs)
            assert found["y"].dtype == other.inputs["x"].dtype
            assert found["y"].tolist() == (other.inputs["x"] * 0.5 + 2).tolist()
    assert model.sizes == [1] * 6


def test_the_answers_of_many_threads_are_never_mixed_up() -> None:
    rules = Rules(
        max_batch_size=16,
        num_batch_threads=4,
        max_enqueued_batches=1000,
        allowed_batch_sizes=(4, 16),
        pad_variable_length_inputs=True,
        every_call=True,
    )
    for chosen in (Rules(max_batch_size=16, num_batch_threads=4), rules):
        with batching(Model(), chosen, batched=lambda *_: None) as batcher, ThreadPoolExecutor(16) as pool:

            def ask(seed: int, batcher: Batcher = batcher) -> None:
                draw = np.random.default_rng(seed)
                for _ in range(30):
                    x = 100 + draw.random((draw.integers(1, 9), draw.integers(1, 3)))
                    found = batcher.submit(Call("s", {"x": x}, ("y",))).result(60)["y"]
                    assert found[:, : x.shape[1]].tolist() == (x * 0.5 + 2).tolist()

            list(pool.map(ask, range(16)))


def test_a_bad_call_fails_alone() -> None:
    model = Model()
    with batching(model) as batcher:
        _, good, bad, other = behind_a_busy_model(model, batcher, call(1.0), call(-13.0), call(2.0))
        assert answer(good) == [2.5]
        assert answer(other) == [3.0]
        with pytest.raises(Refusal, match="-13 is no number"):
            bad.result(60)


def test_a_bad_call_fails_alone_with_batching_parameters_too() -> None:
    model = Model()
    rules = Rules(max_batch_size=4, allowed_batch_sizes=(2, 4), batch_timeout_micros=NEVER, every_call=True)
    with batching(model, rules) as batcher:
        futures = [batcher.submit(call(*rows)) for rows in ((1.0,), (-13.0,), (2.0, 3.0))]
        assert answer(futures[0]) == [2.5]
        assert answer(futures[2]) == [3.0, 3.5]
        with pytest.raises(Refusal, match="-13 is no number"):
            futures[1].result(60)
    assert model.sizes == [4, 2, 2, 2]  # filled up, each by itself too


def test_answers_that_have_other_rows_than_the_call_are_left_as_they_are() -> None:
    class Positive(Model):
        def __call__(self, call: Call) -> Arrays:
            super().__call__(call)
            return {"y": call.inputs["x"][call.inputs["x"] > 0]}

    model = Positive()
    with batching(model) as batcher:
        futures = behind_a_busy_model(model, batcher, call(-1.0, 1.0), call(2.0, -2.0, 3.0), busy=call(-5.0))
        assert [answer(future) for future in futures] == [[], [1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (np.float32(1), "Batched output tensor has 0 dimensions"),
        (
            np.ones(3, np.float32),
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
            "tensors",
        ),
    ],
)
def test_with_batching_parameters_such_answers_are_tensorflow_servings_error(answers: Any, said: str) -> None:
    batched = batching(lambda _: {"y": answers}, Rules(every_call=True), batched=lambda *_: None)
    with batched as batcher, pytest.raises(Refusal) as refused:
        batcher.submit(call(1.0)).result(60)
    assert (refused.value.code, refused.value.message) == (Code.FAILED_PRECONDITION, said)


def test_a_call_larger_than_a_batch_goes_alone() -> None:
    model = Model()
    with batching(model, Rules(max_batch_size=4)) as batcher:
        futures = behind_a_busy_model(model, batcher, call(*[1.0] * 5), call(1.0))
        assert [len(answer(future)) for future in futures] == [1, 5, 1]
    assert sorted(model.sizes) == [1, 1, 5]


@pytest.mark.parametrize("split", [True, False])
def test_with_batching_parameters_a_call_larger_than_a_batch_is_refused(split: bool) -> None:
    rules = Rules(max_batch_size=4, every_call=True, enable_large_batch_splitting=split, max_execution_batch_size=2)
    with batching(Model(), rules) as batcher, pytest.raises(Refusal) as refused:
        batcher.submit(call(*[1.0] * 5))
    assert refused.value.code is Code.INVALID_ARGUMENT
    assert refused.value.message == "Task size 5 is larger than maximum input batch size 4"


def test_a_large_call_is_split_and_put_together_again() -> None:
    model = Model()
    rules = Rules(
        max_batch_size=100,
        max_execution_batch_size=10,
        allowed_batch_sizes=(8, 10),
        enable_large_batch_splitting=True,
        every_call=True,
    )
    with batching(model, rules) as batcher:
        assert answer(batcher.submit(call(*range(25)))) == [row * 0.5 + 2 for row in range(25)]
    assert model.sizes == [10, 10, 8]
    assert model.batches == [([10], 10), ([10], 10), ([5], 8)]


def test_a_batch_is_full_when_it_has_the_rows_of_one_execution() -> None:
    rules = Rules(
        max_batch_size=100,
        max_execution_batch_size=4,
        batch_timeout_micros=NEVER,
        enable_large_batch_splitting=True,
        every_call=True,
    )
    model = Model()
    with batching(model, rules) as batcher:
        futures = [batcher.submit(call(float(at))) for at in range(4)]
        assert [answer(future) for future in futures] == [[2.0], [2.5], [3.0], [3.5]]
    assert model.sizes == [4]


def test_a_batch_is_filled_up_to_an_allowed_size_with_its_first_row() -> None:
    model = Model()
    rules = Rules(max_batch_size=8, allowed_batch_sizes=(4, 8), every_call=True)
    with batching(model, rules) as batcher:
        assert answer(batcher.submit(call(5.0, 6.0))) == [4.5, 5.0]
        assert answer(batcher.submit(call(*range(4)))) == [2.0, 2.5, 3.0, 3.5]
    assert [run.tolist() for run in model.runs] == [[5, 6, 5, 5], [0, 1, 2, 3]]
    assert model.batches == [([2], 4), ([4], 4)]


def test_inputs_of_other_lengths_are_padded_with_their_first_number() -> None:
    model = Model()
    rules = Rules(max_batch_size=2, batch_timeout_micros=NEVER, pad_variable_length_inputs=True, every_call=True)
    with batching(model, rules) as batcher:
        futures = [
            batcher.submit(Call("s", {"x": np.array(rows, np.float32)}, ("y",)))
            for rows in ([[7.0, 1.0, 2.0]], [[3.0]])
        ]
        assert [answer(future) for future in futures] == [[[5.5, 2.5, 3.0]], [[3.5, 3.5, 3.5]]]
    assert [run.tolist() for run in model.runs] == [[[7, 1, 2], [3, 3, 3]]]


def test_texts_of_other_lengths_are_padded_too() -> None:
    runs = []

    def run(asked: Call) -> Arrays:
        runs.append(asked.inputs["x"].tolist())
        return {"y": asked.inputs["x"]}

    rules = Rules(max_batch_size=2, batch_timeout_micros=NEVER, pad_variable_length_inputs=True, every_call=True)
    with batching(run, rules, batched=lambda *_: None) as batcher:
        futures = [
            batcher.submit(Call("s", {"x": np.array(rows, object)}, ("y",))) for rows in ([[b"a"]], [[b"b", b"cc"]])
        ]
        assert answer(futures[1]) == [[b"b", b"cc"]]
    assert runs == [[[b"a", b"a"], [b"b", b"cc"]]]


def test_inputs_of_other_lengths_are_run_apart_where_padding_was_not_asked_for() -> None:
    model = Model()
    with batching(model, Rules(max_batch_size=8, batch_timeout_micros=1000, every_call=True)) as batcher:
        futures = [batcher.submit(Call("s", {"x": np.ones((1, length))}, ("y",))) for length in (2, 3)]
        assert [answer(future) for future in futures] == [[[2.5] * 2], [[2.5] * 3]]


def test_a_full_queue_refuses_and_the_queue_of_another_signature_does_not() -> None:
    model = Model()
    rules = Rules(max_batch_size=2, max_enqueued_batches=2, batch_timeout_micros=0, every_call=True)
    with batching(model, rules) as batcher:
        model.go_on.clear()
        futures = [batcher.submit(call(0.0))]
        assert model.busy.acquire(timeout=60)
        futures += [batcher.submit(call(1.0, 2.0)), batcher.submit(call(3.0, 4.0))]
        with pytest.raises(Refusal) as refused:
            batcher.submit(call(5.0))
        futures.append(batcher.submit(call(6.0, signature="other")))
        model.go_on.set()
        assert [answer(future) for future in futures] == [[2.0], [2.5, 3.0], [3.5, 4.0], [5.0]]
        assert answer(batcher.submit(call(5.0))) == [4.5]
    assert refused.value.code is Code.UNAVAILABLE
    assert refused.value.message == (
        "The batch scheduling queue to which this task was submitted is full; currently 2 batches enqueued and "
        "max_enqueued_batches is 2"
    )


def test_where_large_calls_are_split_a_queue_has_room_for_rows() -> None:
    rules = Rules(
        max_batch_size=8,
        max_execution_batch_size=2,
        max_enqueued_batches=3,
        enable_large_batch_splitting=True,
        every_call=True,
    )
    with batching(Model(), rules) as batcher, pytest.raises(Refusal) as refused:
        batcher.submit(call(*range(7)))
    assert refused.value.code is Code.UNAVAILABLE
    assert "task size is 7 but scheduling capacity is only 6" in refused.value.message


def test_without_parameters_no_number_of_calls_is_refused() -> None:
    model = Model()
    with batching(model, Rules(max_batch_size=2, max_enqueued_batches=1)) as batcher:
        futures = behind_a_busy_model(model, batcher, *[call(float(at)) for at in range(100)])
        assert [answer(future) for future in futures[1:]] == [[at * 0.5 + 2] for at in range(100)]


def test_a_batch_waits_for_company_until_it_is_full() -> None:
    model = Model()
    with batching(model, Rules(max_batch_size=3, batch_timeout_micros=NEVER, every_call=True)) as batcher:
        first = batcher.submit(call(1.0))
        assert not model.busy.acquire(timeout=0.05)
        rest = batcher.submit(call(2.0, 3.0))
        assert (answer(first), answer(rest)) == ([2.5], [3.0, 3.5])
    assert model.sizes == [3]


def test_a_batch_waits_no_longer_than_its_timeout() -> None:
    model = Model()
    with batching(model, Rules(max_batch_size=3, batch_timeout_micros=1000, every_call=True)) as batcher:
        assert answer(batcher.submit(call(1.0))) == [2.5]


def test_a_full_batch_is_not_held_up_by_one_that_waits() -> None:
    model = Model()
    with batching(model, Rules(max_batch_size=2, batch_timeout_micros=NEVER, every_call=True)) as batcher:
        waits = batcher.submit(call(1.0, signature="rare"))
        full = [batcher.submit(call(float(at))) for at in range(2)]
        assert [answer(future) for future in full] == [[2.0], [2.5]]
        assert not waits.done()
        batcher.close()
        assert answer(waits) == [2.5]


def test_as_many_batches_run_at_once_as_there_are_threads() -> None:
    together = threading.Barrier(3, timeout=60)

    def run(asked: Call) -> Arrays:
        together.wait()
        return {"y": asked.inputs["x"]}

    with batching(
        run, Rules(max_batch_size=1, num_batch_threads=3, every_call=True), batched=lambda *_: None
    ) as batcher:
        assert [answer(future) for future in [batcher.submit(call(float(at))) for at in range(3)]] == [[0], [1], [2]]


def test_without_parameters_calls_that_go_alone_run_at_once_and_batches_one_by_one() -> None:
    running, most = threading.Semaphore(0), [0]
    lock, at_once = threading.Lock(), [0]
    alone = threading.Barrier(2, timeout=60)

    def run(asked: Call) -> Arrays:
        if asked.signature == "alone":
            alone.wait()
            return {"y": asked.inputs["x"]}
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        running.release()
        threading.Event().wait(0.01)
        with lock:
            at_once[0] -= 1
        return {"y": asked.inputs["x"]}

    rules = Rules(max_batch_size=1, num_batch_threads=4)
    with batching(run, rules, lambda asked: asked.signature != "alone", lambda *_: None) as batcher:
        futures = [batcher.submit(call(float(at))) for at in range(6)]
        lone = [batcher.submit(call(1.0, signature="alone")) for _ in range(2)]
        assert [answer(future) for future in lone] == [[1.0], [1.0]]
        assert [answer(future) for future in futures] == [[at] for at in range(6)]
    assert most == [1]


def test_a_call_that_was_given_up_is_not_run() -> None:
    model = Model()
    with batching(model) as batcher:
        model.go_on.clear()
        busy = batcher.submit(call(0.0))
        assert model.busy.acquire(timeout=60)
        given_up, other = batcher.submit(call(1.0)), batcher.submit(call(2.0))
        all_given_up = batcher.submit(call(3.0, signature="other"))
        assert given_up.cancel()
        assert all_given_up.cancel()
        model.go_on.set()
        assert (answer(busy), answer(other)) == ([2.0], [3.0])
        assert answer(batcher.submit(call(4.0))) == [4.0]
        with pytest.raises(CancelledError):
            given_up.result(60)
    assert [run.tolist() for run in model.runs] == [[0], [2], [4]]


def test_an_asyncio_timeout_leaves_the_others_their_answers() -> None:
    model = Model()

    async def ask() -> list[Any]:
        with batching(model) as batcher:
            model.go_on.clear()
            running = asyncio.wrap_future(batcher.submit(call(0.0)))
            assert model.busy.acquire(timeout=60)
            waiting, other = (asyncio.wrap_future(batcher.submit(call(x))) for x in (1.0, 2.0))
            for late in (running, waiting):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await late
            model.go_on.set()
            found: list[Any] = (await other)["y"].tolist()
            return found

    assert asyncio.run(ask()) == [3.0]
    assert [run.tolist() for run in model.runs] == [[0], [2]]


def test_closing_answers_what_waits_and_ends_the_threads() -> None:
    model = Model()
    before = threading.active_count()
    rules = Rules(max_batch_size=10, batch_timeout_micros=NEVER, num_batch_threads=3, every_call=True)
    with batching(model, rules) as batcher:
        futures = [batcher.submit(call(float(at), signature=f"s{at}")) for at in range(5)]
        batcher.close()
        assert [answer(future) for future in futures] == [[at * 0.5 + 2] for at in range(5)]
        assert threading.active_count() == before
        with pytest.raises(Refusal) as refused:
            batcher.submit(call(1.0))
        batcher.close()
    assert refused.value.code is Code.UNAVAILABLE


def test_no_call_is_lost_while_the_queue_is_closed() -> None:
    for _ in range(20):
        answered, refused = [], []
        with batching(Model(), Rules(max_batch_size=4, num_batch_threads=2)) as batcher:
            begun = threading.Barrier(5, timeout=60)

            def ask(
                batcher: Batcher = batcher, begun: Any = begun, answered: Any = answered, refused: Any = refused
            ) -> None:
                begun.wait()
                for _ in range(20):
                    try:
                        answered.append(answer(batcher.submit(call(1.0))))
                    except Refusal:
                        refused.append(1)

            with ThreadPoolExecutor(4) as pool:
                done = [pool.submit(ask) for _ in range(4)]
                begun.wait()
                batcher.close()
                for each in done:
                    each.result(60)
        assert len(answered) + len(refused) == 80
        assert all(found == [2.5] for found in answered)


def test_a_servable_that_is_never_asked_has_no_threads() -> None:
    before = threading.active_count()
    with batching(Model()):
        assert threading.active_count() == before


def test_who_waits_hears_of_a_fault_in_between_and_the_next_is_answered() -> None:
    model = Model()
    faults = [ValueError("the metrics are gone")]

    def batched(*_: Any) -> None:
        if faults:
            raise faults.pop()

    with batching(model, batched=batched) as batcher:
        with pytest.raises(ValueError, match="the metrics are gone"):
            batcher.submit(call(1.0)).result(60)
        assert answer(batcher.submit(call(1.0))) == [2.5]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "Batching Run() must have at least one input tensor"),
        ({"x": np.float32(1)}, "Batching Run() input tensors must have at least one dimension"),
        ({"x": np.ones(2), "z": np.ones(3)}, "Batching Run() input tensors must have equal 0th-dimension size"),
    ],
)
def test_calls_without_common_rows_are_refused_with_batching_parameters_and_go_alone_without(
    inputs: Any, said: str
) -> None:
    asked = Call("s", inputs, ("y",))
    batched = batching(lambda _: {"y": np.float32(7)}, Rules(every_call=True), batched=lambda *_: None)
    with batched as batcher, pytest.raises(Refusal) as refused:
        batcher.submit(asked)
    assert (refused.value.code, refused.value.message) == (Code.INVALID_ARGUMENT, said)
    with batching(lambda _: {"y": np.float32(7)}, batched=lambda *_: None) as batcher:
        assert batcher.submit(asked).result(60) == {"y": 7}


def test_a_call_of_no_rows_is_answered() -> None:
    for rules in (Rules(), Rules(every_call=True)):
        with batching(Model(), rules) as batcher:
            assert answer(batcher.submit(call())) == []
