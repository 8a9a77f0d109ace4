"""Servers are found by the files that they leave, and only those that run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from tests.serving.live import wait_until
from tfdeploy_magic.errors import ServingError
from tfdeploy_magic.serving import state
from tfdeploy_magic.serving.state import RunningServer

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('x', flush=True); time.sleep(600)"
POLITE = "import time; print('x', flush=True); time.sleep(600)"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return state.folder()


@pytest.fixture(params=[POLITE])
def other(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that has come to life."""
    process = subprocess.Popen([sys.executable, "-c", request.param], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def served_by(pid: int, **changed: object) -> RunningServer:
    made = RunningServer(
        pid,
        psutil.Process(pid).create_time(),
        ("half",),
        "http://127.0.0.1:8501",
        None,
        {"half": "/m"},
        None,
        time.time(),
    )
    return replace(made, **changed)  # type: ignore[arg-type]


def write(folder: Path, server: RunningServer) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{server.pid}-{server.started}.json"
    path.write_text(json.dumps(asdict(server)))
    return path


def test_nothing_runs_where_nothing_was_noted() -> None:
    assert state.running() == []


def test_several_servers_of_one_process_are_noted_apart(folder: Path) -> None:
    first = state.note(("half",), "http://127.0.0.1:1", "127.0.0.1:2", {"half": "/m"}, kernel=7)
    second = state.note(("half",), None, "127.0.0.1:3", {"half": "/m"})
    found = state.running()
    assert [(each.pid, each.kernel, each.url, each.grpc, each.alive) for each in found] == [
        (os.getpid(), 7, "http://127.0.0.1:1", "127.0.0.1:2", True),
        (os.getpid(), None, None, "127.0.0.1:3", True),
    ]
    assert found[0].url_of("half") == "http://127.0.0.1:1/v1/models/half"
    first.unlink()
    assert [each.grpc for each in state.running()] == ["127.0.0.1:3"]
    second.unlink()
    assert list(folder.iterdir()) == []


def test_a_server_whose_process_is_gone_is_forgotten(folder: Path, other: subprocess.Popen[bytes]) -> None:
    path = write(folder, served_by(other.pid))
    assert [each.pid for each in state.running()] == [other.pid]
    other.kill()
    wait_until(lambda: psutil.Process(other.pid).status() == psutil.STATUS_ZOMBIE)
    assert state.running() == []
    assert not path.exists()
    other.wait()
    write(folder, replace(served_by(os.getpid()), pid=other.pid))
    assert state.running() == []


def test_another_process_with_the_same_number_is_not_taken_for_it(folder: Path, other: subprocess.Popen[bytes]) -> None:
    server = served_by(other.pid)
    path = write(folder, replace(server, created=server.created - 100))
    (found,) = [RunningServer(**{**json.loads(path.read_text()), "models": ("half",)})]
    found.stop()
    assert other.poll() is None
    assert state.running() == []
    assert not path.exists()


def test_files_of_others_are_left_alone(folder: Path) -> None:
    folder.mkdir(parents=True)
    contents = {
        "cut.json": '{"pid": 1',
        "list.json": "[]",
        "other.json": '{"models": []}',
        "number.json": "1",
        "x": "y",
    }
    for name, content in contents.items():
        (folder / name).write_text(content)
    assert state.running() == []
    assert {path.name for path in folder.iterdir()} == contents.keys()


@pytest.mark.parametrize("other", [POLITE, DEAF], indirect=True)
def test_stopping_is_polite_and_then_sure(other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "STOP_SECONDS", 0.5)
    server = served_by(other.pid)
    server.stop()
    assert not psutil.pid_exists(other.pid)
    assert not server.alive
    server.stop()


@pytest.mark.parametrize("other", [DEAF], indirect=True)
def test_a_container_is_given_more_time_to_end(other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    wait = psutil.Process.wait

    def measured(process: psutil.Process, timeout: float) -> object:
        waited.append(timeout)
        return wait(process, 0.1)

    monkeypatch.setattr(psutil.Process, "wait", measured)
    served_by(other.pid, backend="docker", container="1a2b3c4d5e6f").stop()
    assert waited == [state.CONTAINER_STOP_SECONDS, state.STOP_SECONDS]
    assert waited[0] > waited[1]


def test_a_file_of_an_earlier_release_is_read_all_the_same(folder: Path, other: subprocess.Popen[bytes]) -> None:
    path = write(folder, served_by(other.pid))
    fields = json.loads(path.read_text())
    del fields["backend"], fields["container"]
    path.write_text(json.dumps(fields))
    assert [(each.pid, each.backend, each.container) for each in state.running()] == [(other.pid, "embedded", None)]


def test_a_container_is_noted_as_one() -> None:
    path = state.note(("half",), None, "127.0.0.1:3", {"half": "/m"}, kernel=7, backend="docker", container="1a2b")
    (found,) = state.running()
    assert (found.backend, found.container) == ("docker", "1a2b")
    path.unlink()


def test_a_server_inside_a_kernel_is_not_stopped_from_outside(other: subprocess.Popen[bytes]) -> None:
    with pytest.raises(ServingError, match="half runs inside a kernel"):
        served_by(other.pid, kernel=other.pid).stop()
    with pytest.raises(ServingError, match="Stop it in the notebook that started it"):
        served_by(os.getpid()).stop()
    assert other.poll() is None
