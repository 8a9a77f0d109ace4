"""A container ends with its kernel, whatever ended that."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import psutil
import pytest

from tests import engine
from tests.serving.live import wait_until
from tests.serving.saved_models import SavedModels
from tfdeploy_magic.errors import ServingError
from tfdeploy_magic.jobs.server import python_command
from tfdeploy_magic.serving import state
from tfdeploy_magic.serving.container_guard import Guard

LABELS = {"tfdeploy_magic.test": "guard"}


def say(container: str, guard: int, *folders: str) -> None:
    """Tell the test what there is, and live on; called in a kernel."""
    print(json.dumps({"container": container, "guard": guard, "folders": folders}), flush=True)
    sys.stdin.read()


def serve(image: str, base_path: str) -> None:
    """Serve a model in a container; called in a kernel."""
    from tfdeploy_magic.jobs import Report, silent
    from tfdeploy_magic.serving.containers import ContainerHost
    from tfdeploy_magic.serving.hosting import Hosted

    host = ContainerHost("half", {"half": Hosted(Path(base_path), ours=True)}, image=image)
    host.start([], Report(silent), gpu=False)
    (noted,) = (each for each in state.running() if each.container == host.container[:12])
    say(host.container, noted.pid, base_path, str(host.folder))


def hold(container: str, folder: str) -> None:
    """Guard a container; a child that was forked holds the pipe open. Called in a kernel."""
    guard = Guard(container, LABELS, [Path(folder)])
    child = os.fork()
    if child == 0:
        os.close(1)
        time.sleep(600)
    guard.note(models=["half"], url="http://127.0.0.1:1", grpc=None, base_paths={}, kernel=os.getpid(), container="abc")
    print(child, flush=True)
    say(container, guard.pid, folder)


def kernel(call: str) -> subprocess.Popen[bytes]:
    code = f"from tests.serving import test_container_guard; test_container_guard.{call}"
    return subprocess.Popen(python_command(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def heard(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the kernel ended"
    said: dict[str, Any] = json.loads(line)
    return said


def close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def is_there(container: str) -> bool:
    try:
        engine.client().api.inspect_container(container)
    except docker.errors.NotFound:
        return False
    return True


@pytest.fixture
def light() -> Iterator[str]:
    """A container that only sleeps."""
    made = engine.client().containers.run(
        engine.stand_in(), ["600"], entrypoint="/bin/sleep", labels=LABELS, detach=True, network_mode="none"
    )
    yield made.id
    if is_there(made.id):
        made.remove(force=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "models.config").write_text("")
    return tmp_path / "config"


@pytest.mark.docker
def test_a_kernel_that_is_killed_takes_its_container_and_folders_along(
    saved_models: SavedModels, tmp_path: Path
) -> None:
    base_path = shutil.copytree(saved_models.half_plus_two, tmp_path / "half")
    process = kernel(f"serve({engine.stand_in()!r}, {str(base_path)!r})")
    said = heard(process)
    assert is_there(said["container"])
    assert all(Path(each).exists() for each in said["folders"])
    close(process)
    wait_until(lambda: not psutil.pid_exists(said["guard"]))
    assert not is_there(said["container"])
    assert not any(Path(each).exists() for each in said["folders"])
    assert said["guard"] not in {each.pid for each in state.running()}


@pytest.mark.docker
def test_a_process_that_the_kernel_forked_does_not_keep_the_container(light: str, folder: Path) -> None:
    process = kernel(f"hold({light!r}, {str(folder)!r})")
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    said = heard(process)
    close(process)
    wait_until(lambda: not psutil.pid_exists(said["guard"]))
    assert child.is_running()
    child.kill()
    assert not is_there(light)
    assert not folder.exists()


@pytest.mark.docker
def test_any_kernel_of_this_user_stops_it_by_the_list(light: str, folder: Path) -> None:
    guard = Guard(light, LABELS, [folder])
    guard.note(
        models=["half"], url=None, grpc="127.0.0.1:1", base_paths={}, kernel=1, backend="docker", container=light[:12]
    )
    (server,) = (each for each in state.running() if each.pid == guard.pid)
    assert (server.backend, server.container, server.models) == ("docker", light[:12], ("half",))
    server.stop()
    assert not is_there(light)
    assert not folder.exists()
    assert guard.pid not in {each.pid for each in state.running()}
    with pytest.raises(ServingError, match="the process that guards the container is gone"):
        guard.note(models=[], url=None, grpc=None, base_paths={})
    guard.dismiss(removed=False)


@pytest.mark.docker
def test_a_container_with_other_labels_is_none_of_its_business(light: str, folder: Path) -> None:
    guard = Guard(light, {**LABELS, "tfdeploy_magic.uid": "none"}, [folder])
    guard.dismiss(removed=False)
    assert is_there(light)
    assert not folder.exists()


@pytest.mark.parametrize("removed", [True, False])
def test_without_an_engine_it_takes_the_folders_away_and_ends(
    removed: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    guard = Guard("abc", LABELS, [folder])
    guard.note(models=["half"], url=None, grpc="127.0.0.1:1", base_paths={})
    assert guard.pid in {each.pid for each in state.running()}
    guard.dismiss(removed=removed)
    assert not psutil.pid_exists(guard.pid)
    assert not folder.exists()
    assert guard.pid not in {each.pid for each in state.running()}


def test_a_list_that_cannot_be_written_does_not_end_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = folder / "cache"
    blocked.write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    guard = Guard("abc", LABELS, [])
    guard.note(models=["half"], url=None, grpc="127.0.0.1:1", base_paths={})
    guard.dismiss(removed=True)
    assert not psutil.pid_exists(guard.pid)


def test_it_imports_nothing_heavy() -> None:
    code = "import sys; from tfdeploy_magic.serving import container_guard; print(*sys.modules)"
    said = subprocess.run(python_command(code), capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorflow", "numpy", "docker", "requests", "grpc", "IPython"} & set(said)
