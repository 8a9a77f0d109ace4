from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.jobs.processes import ROOT, alive, environment, fork_servers, gone_within
from tfdeploy_magic.errors import (
    ConversionCrashed,
    DeadlineExceeded,
    JobCrashed,
    MemoryLimitExceeded,
)
from tfdeploy_magic.jobs import Progress, Worker, client, server

MEGABYTE = 1_000_000


def assert_a_job_works() -> None:
    with Worker(deadline=60) as worker:
        assert worker.call("tests.jobs.tasks:echo", {"value": 7})["value"] == 7


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_job_that_dies_by_a_signal_says_so_and_the_next_one_works(number: signal.Signals) -> None:
    with Worker(deadline=60) as worker:
        before = worker.call("tests.jobs.tasks:echo", {})["pid"]
        with pytest.raises(JobCrashed) as caught:
            worker.call("tests.jobs.tasks:die", {"number": int(number)})
        assert not isinstance(caught.value, ConversionCrashed)
        assert caught.value.signal == number
        assert caught.value.stage == "dying"
        assert "my last words" in caught.value.last_lines
        assert number.name in str(caught.value)
        assert worker.call("tests.jobs.tasks:echo", {})["pid"] != before
    assert_a_job_works()


def test_a_crash_in_a_conversion_is_raised_as_one() -> None:
    with Worker(deadline=60) as worker, pytest.raises(ConversionCrashed) as caught:
        worker.call("tests.jobs.tasks:die", {"number": int(signal.SIGABRT)}, crash=ConversionCrashed)
    assert caught.value.signal == signal.SIGABRT


def test_a_kill_from_outside_is_explained_by_memory() -> None:
    with Worker(deadline=60) as worker, pytest.raises(JobCrashed) as caught:
        worker.call("tests.jobs.tasks:die", {"number": int(signal.SIGKILL)})
    assert "memory" in caught.value.cure


def test_a_job_that_exits_by_itself_is_a_crash_and_not_a_hang() -> None:
    with Worker(deadline=60) as worker, pytest.raises(JobCrashed) as caught:
        worker.call("tests.jobs.tasks:leave", {})
    assert caught.value.signal is None
    assert_a_job_works()


def test_a_hang_ends_at_the_deadline_and_leaves_no_process() -> None:
    with Worker(deadline=60) as worker:
        pid = worker.call("tests.jobs.tasks:echo", {})["pid"]
        worker.deadline = 0.5
        with pytest.raises(DeadlineExceeded, match=r"in stage 'hanging'.*\n.*--timeout"):
            worker.call("tests.jobs.tasks:hang", {})
        assert gone_within(2, pid)
    assert_a_job_works()


def test_a_job_that_never_stops_talking_ends_at_the_deadline_too() -> None:
    with Worker(deadline=60) as worker:
        worker.call("tests.jobs.tasks:echo", {})
        worker.deadline = 0.5
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            worker.call("tests.jobs.tasks:chatter", {"seconds": 10.0})
        assert time.monotonic() - began < 5


def test_a_job_that_outgrows_its_memory_is_ended() -> None:
    with Worker(deadline=60, memory_limit=1200 * MEGABYTE) as worker:
        pid = worker.call("tests.jobs.tasks:echo", {})["pid"]
        with pytest.raises(MemoryLimitExceeded, match=r"at most 1200 MB.*--memory-limit"):
            worker.call("tests.jobs.tasks:eat_memory", {"megabytes": 1500})
        assert gone_within(2, pid)
    assert_a_job_works()


def test_the_stop_button_cancels_a_hanging_job_in_two_seconds_and_leaves_no_process() -> None:
    pressed: list[float] = []

    def press_stop() -> None:
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    def listener(progress: Progress) -> None:
        if progress.stage == "hanging" and not pressed:
            pressed.append(0.0)
            threading.Timer(0.3, press_stop).start()

    with Worker(deadline=60, listener=listener) as worker:
        pid = worker.call("tests.jobs.tasks:echo", {})["pid"]
        with pytest.raises(KeyboardInterrupt):
            worker.call("tests.jobs.tasks:hang", {})
        assert time.monotonic() - pressed[-1] < 2
        assert gone_within(2, pid)
        assert worker.pid is None
    assert_a_job_works()


def test_a_closed_or_forgotten_worker_leaves_neither_process_nor_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    closed, forgotten = Worker(), Worker()
    pids = [worker.call("tests.jobs.tasks:echo", {})["pid"] for worker in (closed, forgotten)]
    assert list(tmp_path.iterdir()) == [], "a named file would outlive a killed kernel"
    closed.close()
    del forgotten
    assert gone_within(2, *pids)
    assert list(tmp_path.iterdir()) == []


def test_jobs_leave_no_open_files_in_the_kernel() -> None:
    assert_a_job_works()
    before = psutil.Process().num_fds()
    for _ in range(5):
        assert_a_job_works()
        with Worker() as worker, pytest.raises(JobCrashed):
            worker.call("tests.jobs.tasks:die", {"number": int(signal.SIGABRT)})
    assert psutil.Process().num_fds() <= before


def test_killing_the_fork_server_costs_no_more_than_a_new_one() -> None:
    assert_a_job_works()
    (before,) = fork_servers()
    before.kill()
    assert gone_within(5, before.pid)
    assert_a_job_works()
    (after,) = fork_servers()
    assert after.pid != before.pid


def test_killing_the_fork_server_under_a_running_job_is_a_crash_and_the_next_job_works() -> None:
    killed: list[int] = []

    def listener(progress: Progress) -> None:
        if progress.stage == "hanging" and not killed:
            (before,) = fork_servers()
            before.kill()
            killed.append(before.pid)

    with Worker(deadline=60, listener=listener) as worker:
        with pytest.raises(JobCrashed) as caught:
            worker.call("tests.jobs.tasks:hang", {})
        assert caught.value.stage == "hanging"
        assert worker.call("tests.jobs.tasks:echo", {"value": 1})["value"] == 1
    assert not alive(killed[0])


def test_killing_the_kernel_ends_the_server_and_every_worker() -> None:
    script = """
import json, os, threading, time
from tests.jobs.processes import fork_servers
from tfdeploy_magic.jobs import Worker
idle, busy = Worker(), Worker()
pids = [worker.call("tests.jobs.tasks:echo", {})["pid"] for worker in (idle, busy)]
def listener(progress):
    if progress.stage == "hanging":
        print(json.dumps([fork_servers()[0].pid, *pids]), flush=True)
busy.listener = listener
busy.call("tests.jobs.tasks:hang", {})
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    ) as kernel:
        assert kernel.stdout is not None
        pids = json.loads(kernel.stdout.readline())
        assert len(pids) == 3
        assert all(map(alive, pids))
        kernel.kill()
    assert gone_within(5, *pids)


def test_where_forking_is_not_safe_workers_are_new_interpreters_and_behave_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The path that macOS takes."""

    def spawning(code: str) -> list[str]:
        return server.python_command(f"from tfdeploy_magic.jobs import server as s; s.FORKING = False; {code}")

    monkeypatch.setattr(client, "python_command", spawning)
    monkeypatch.setattr(client, "_server", client._Server())
    try:
        with Worker(deadline=60) as worker:
            answer = worker.call("tests.jobs.tasks:echo", {"value": 3})
            assert (answer["value"], answer["modules"]) == (3, False)
            assert worker.call("tests.jobs.tasks:echo", {})["pid"] == answer["pid"]
            with pytest.raises(JobCrashed) as caught:
                worker.call("tests.jobs.tasks:die", {"number": int(signal.SIGSEGV)})
            assert caught.value.signal == signal.SIGSEGV
            assert "my last words" in caught.value.last_lines
            pid = worker.call("tests.jobs.tasks:echo", {})["pid"]
            worker.deadline = 0.5
            with pytest.raises(DeadlineExceeded):
                worker.call("tests.jobs.tasks:hang", {})
            assert gone_within(2, pid)
            worker.deadline = 60
            pid = worker.call("tests.jobs.tasks:echo", {})["pid"]
            client._server.stop()
            assert gone_within(5, pid)
    finally:
        client._server.stop()
