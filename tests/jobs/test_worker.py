from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.jobs.processes import run_python
from tfdeploy_magic.errors import DataError, DeadlineExceeded, JobCancelled, JobFailed
from tfdeploy_magic.jobs import Progress, Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker(deadline=60) as one:
        yield one


def test_a_job_has_tensorflow_imported_while_its_parent_never_imports_it() -> None:
    script = """
import sys
from tfdeploy_magic.jobs import Worker
with Worker() as worker:
    print(worker.call("tests.jobs.tasks:echo", {})["modules"], "tensorflow" in sys.modules, "keras" in sys.modules)
"""
    done = run_python("-c", script)
    assert done.stdout.split() == ["True", "False", "False"], done.stderr


def test_a_job_can_use_the_tensorflow_it_was_forked_with(worker: Worker) -> None:
    assert worker.call("tests.jobs.tasks:tensorflow_adds", {"numbers": [1.5, 2.5, 4.0]}) == 8.0


def test_a_warm_worker_keeps_its_process_over_several_calls(worker: Worker) -> None:
    assert worker.pid is None
    pids = {worker.call("tests.jobs.tasks:echo", {"turn": turn})["pid"] for turn in range(3)}
    assert pids == {worker.pid}


def test_two_workers_are_two_processes(worker: Worker) -> None:
    with Worker() as other:
        assert worker.call("tests.jobs.tasks:echo", {})["pid"] != other.call("tests.jobs.tasks:echo", {})["pid"]


def test_arguments_and_results_cross_unchanged_however_long_they_are(worker: Worker) -> None:
    long = "ü\n" * 2_000_000
    answer = worker.call("tests.jobs.tasks:echo", {"text": long, "rows": [1, None, 0.1]})
    assert answer["text"] == long
    assert answer["rows"] == [1, None, 0.1]


def test_a_failing_task_gives_job_failed_with_its_own_trace(worker: Worker) -> None:
    with pytest.raises(JobFailed) as caught:
        worker.call("tests.jobs.tasks:fail", {})
    assert caught.value.exception == "ZeroDivisionError"
    assert caught.value.message == "division by zero"
    assert "in fail" in caught.value.trace
    assert "stage 'failing'" in str(caught.value)
    assert "ZeroDivisionError: division by zero" in str(caught.value)


def test_a_worker_whose_task_failed_is_replaced(worker: Worker) -> None:
    before = worker.call("tests.jobs.tasks:echo", {})["pid"]
    with pytest.raises(JobFailed):
        worker.call("tests.jobs.tasks:fail", {})
    assert worker.call("tests.jobs.tasks:echo", {})["pid"] != before


def test_an_error_of_this_package_crosses_as_itself_and_the_worker_stays(worker: Worker) -> None:
    before = worker.call("tests.jobs.tasks:echo", {})["pid"]
    with pytest.raises(DataError) as caught:
        worker.call("tests.jobs.tasks:refuse", {})
    assert caught.value.as_fields() == {
        "what": "it does not fit",
        "found": "a square",
        "wanted": "a circle",
        "cure": "Round it.",
    }
    assert worker.call("tests.jobs.tasks:echo", {})["pid"] == before


def test_a_result_that_json_cannot_carry_is_a_failure_and_not_a_hang(worker: Worker) -> None:
    with pytest.raises(JobFailed, match="TypeError"):
        worker.call("tests.jobs.tasks:unspeakable", {})


@pytest.mark.parametrize("task", ["os:getcwd", "subprocess:run", "tfdeploy_magic_evil.x:f"])
def test_only_functions_of_this_package_can_be_named(worker: Worker, task: str) -> None:
    with pytest.raises(JobFailed, match="this package's own functions only"):
        worker.call(task, {})


def test_progress_arrives_with_its_fraction_and_eta() -> None:
    seen: list[Progress] = []
    with Worker(listener=seen.append) as worker:
        assert worker.call("tests.jobs.tasks:count", {"to": 6}) == 6
    counting = [progress for progress in seen if progress.stage == "counting"]
    assert counting[0].fraction is None
    assert counting[0].eta is None
    fractions = [progress.fraction for progress in counting if progress.fraction is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(set(fractions)) >= 4
    half = next(progress for progress in counting if progress.fraction == 0.5)
    assert half.eta == pytest.approx(half.elapsed)
    assert counting[-1].eta == 0.0
    assert worker.seconds["counting"] >= 6 * 0.12


def test_a_silent_job_still_gives_a_sign_of_life_with_its_stage_and_a_growing_time() -> None:
    seen: list[Progress] = []
    with Worker(deadline=60, listener=seen.append) as worker:
        worker.call("tests.jobs.tasks:echo", {})
        worker.deadline = 0.6
        with pytest.raises(DeadlineExceeded):
            worker.call("tests.jobs.tasks:hang", {})
    elapsed = [progress.elapsed for progress in seen if progress.stage == "hanging"]
    assert len(elapsed) >= 3
    assert elapsed == sorted(elapsed)
    assert elapsed[-1] > 0.3


def test_what_a_job_prints_stays_out_of_the_kernel_and_can_be_read(
    worker: Worker, capfd: pytest.CaptureFixture[str]
) -> None:
    worker.call("tests.jobs.tasks:say", {"text": "hello"})
    assert worker.output().split() == ["hello", "HELLO"]
    assert capfd.readouterr() == ("", "")


def test_a_job_sees_no_gpu_and_not_the_persons_script(worker: Worker) -> None:
    assert worker.call("tests.jobs.tasks:environment", {}) == {"devices": "-1", "main": None}
    assert vars(sys.modules["__main__"]).get("__file__") is not None


def test_another_thread_can_end_a_call_even_before_its_process_is_there(worker: Worker) -> None:
    for warm in (False, True):
        raised: list[BaseException] = []

        def wait(raised: list[BaseException] = raised) -> None:
            try:
                worker.call("tests.jobs.tasks:hang", {})
            except JobCancelled as error:
                raised.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        while not (worker.pid if warm else worker._lock.locked()):
            time.sleep(0.01)
        worker.cancel()
        waiting.join(timeout=5)
        assert not waiting.is_alive()
        assert len(raised) == 1
        assert worker.pid is None, "a job that was stopped is gone"
        assert worker.call("tests.jobs.tasks:echo", {"value": 1})["value"] == 1


def test_to_cancel_an_idle_worker_does_nothing(worker: Worker) -> None:
    worker.cancel()
    assert worker.call("tests.jobs.tasks:echo", {"value": 2})["value"] == 2


def test_a_worker_that_was_ended_while_idle_is_replaced_without_a_word(worker: Worker) -> None:
    first = worker.call("tests.jobs.tasks:echo", {})["pid"]
    os.kill(first, signal.SIGKILL)
    psutil.wait_procs([process] if (process := _process(first)) else [], timeout=5)
    assert worker.call("tests.jobs.tasks:echo", {})["pid"] != first


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
