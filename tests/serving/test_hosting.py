from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.serving.saved_models import SavedModels, half_plus_two
from tfdeploy_magic.errors import InputError, RequestRefused, ServingError, VersionFailed
from tfdeploy_magic.jobs import Report, silent
from tfdeploy_magic.jobs.progress import Progress
from tfdeploy_magic.serving import control, hosting, state
from tfdeploy_magic.serving.client import Client
from tfdeploy_magic.serving.embedded import EmbeddedHost
from tfdeploy_magic.serving.hosting import Hosted
from tfdeploy_magic.serving.http import free_port
from tfdeploy_magic.serving.lineup import Arm

Start = Callable[..., EmbeddedHost]


def quiet() -> Report:
    return Report(silent)


def flags() -> list[str]:
    return [f"--rest_api_port={free_port('127.0.0.1')}", f"--port={free_port('127.0.0.1')}"]


def answer(host: EmbeddedHost) -> float:
    """What the model makes of 2: 3, and of a version that adds another number, 1 more than that."""
    with Client(host.model_url) as client:
        return float(client.predict([2.0])[0])


def folder(host: EmbeddedHost) -> Path:
    return host.models[host.name].base_path


def versions(host: EmbeddedHost) -> set[str]:
    return {path.name for path in folder(host).iterdir()}


def swap(host: EmbeddedHost, number: int, report: Report | None = None) -> None:
    """Serve a version that was just written."""
    lineup = host.models[host.name].lineup.with_version(number, latest=number - 1, label=None)
    host.change(host.name, lineup, 30, report or quiet())


@pytest.fixture
def start(saved_models: SavedModels, tmp_path: Path) -> Iterator[Start]:
    started: list[EmbeddedHost] = []

    def begin(name: str, *, ours: bool = True) -> EmbeddedHost:
        base_path = shutil.copytree(saved_models.half_plus_two, tmp_path / name)
        host = EmbeddedHost(name, {name: Hosted(base_path, ours)})
        started.append(host)
        host.start(flags(), quiet(), gpu=False)
        hosting.register(host)
        return host

    yield begin
    for host in started:
        host.stop()


def test_a_server_answers_until_it_is_stopped_and_takes_its_folder_along(start: Start) -> None:
    host = start("whole")
    assert answer(host) == 3.0
    assert (host.alive, host.pid) == (True, host.worker.pid)
    assert hosting.find("whole") is hosting.at(host.model_url) is host
    noted = next(server for server in state.running() if server.pid == host.pid)
    assert (noted.models, noted.url, noted.grpc, noted.kernel) == (("whole",), host.url, host.grpc, os.getpid())
    host.request_file.parent.mkdir(parents=True, exist_ok=True)
    host.request_file.write_text("{}")
    host.stop()
    assert not host.alive
    assert not psutil.pid_exists(host.pid)
    assert not folder(host).exists()
    assert not host.request_file.exists()
    assert hosting.find("whole") is hosting.at(host.model_url) is None
    assert host.pid not in {server.pid for server in state.running()}


def test_of_our_own_versions_three_are_kept_and_of_anybody_elses_all(start: Start) -> None:
    ours, theirs = start("ours"), start("theirs", ours=False)
    for host in (ours, theirs):
        for number in (2, 3, 4):
            half_plus_two(folder(host) / str(number), plus=float(number))
            swap(host, number)
            assert answer(host) == 1.0 + number
    assert versions(ours) == {"2", "3", "4"}
    assert versions(theirs) == {"1", "2", "3", "4"}
    assert ours.models["ours"].newest == 4
    theirs.stop()
    assert versions(theirs) == {"1", "2", "3", "4"}


def test_a_version_that_cannot_be_loaded_leaves_the_one_before_it(start: Start) -> None:
    host = start("broken")
    (folder(host) / "2").mkdir()
    (folder(host) / "2" / "saved_model.pb").write_bytes(b"no graph")
    with pytest.raises(VersionFailed, match="version 2 of broken is not served"):
        swap(host, 2)
    assert answer(host) == 3.0


@pytest.mark.parametrize("ours", [True, False])
def test_nothing_is_left_of_a_server_that_cannot_start(ours: bool, tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    host = EmbeddedHost("m", {"m": Hosted(tmp_path / "m", ours)})
    with pytest.raises(ServingError):
        host.start(flags(), quiet(), gpu=False)
    assert hosting.find("m") is None
    assert not host.alive
    assert host.worker.pid is None
    assert (tmp_path / "m").exists() is not ours


def test_the_stop_button_while_it_starts_leaves_nothing(saved_models: SavedModels, tmp_path: Path) -> None:
    def press(progress: Progress) -> None:
        if progress.stage == "loading the model":
            raise KeyboardInterrupt

    base_path = shutil.copytree(saved_models.half_plus_two, tmp_path / "m")
    host = EmbeddedHost("m", {"m": Hosted(base_path, ours=True)})
    with pytest.raises(KeyboardInterrupt):
        host.start(flags(), Report(press), gpu=False)
    assert host.worker.pid is None
    assert hosting.find("m") is None
    assert "m" not in {model for server in state.running() for model in server.models}
    assert not folder(host).exists()


def test_the_stop_button_while_a_version_is_loaded_ends_the_wait_and_not_the_server(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(progress: Progress) -> None:
        if progress.elapsed > 0.05:
            raise KeyboardInterrupt

    def forever(*arguments: Any) -> None:
        while True:
            arguments[-1]()

    host = start("patient")
    half_plus_two(folder(host) / "2", plus=2.0)
    monkeypatch.setattr(control, "wait_until_served", forever)
    with pytest.raises(KeyboardInterrupt):
        swap(host, 2, Report(press))
    monkeypatch.undo()
    assert host.alive
    half_plus_two(folder(host) / "3", plus=3.0)
    swap(host, 3)
    assert answer(host) == 4.0


def test_versions_are_named_promoted_and_rolled_back(start: Start) -> None:
    host = start("named")
    hosted = host.models["named"]

    def ask(which: str) -> float:
        with Client(f"{host.model_url}{which}") as client:
            return float(client.predict([2.0])[0])

    half_plus_two(folder(host) / "2", plus=10.0)
    host.change("named", hosted.lineup.with_version(2, latest=1, label="canary"), 30, quiet())
    assert [ask(which) for which in ("/labels/stable", "/labels/canary", "/versions/1", "")] == [3.0, 11.0, 3.0, 11.0]
    host.change("named", hosted.lineup.promoted("named", None, hosted.numbers()), 30, quiet())
    assert [ask("/labels/stable"), ask("")] == [11.0, 11.0]
    with Client(f"{host.model_url}/labels/canary") as client, pytest.raises(RequestRefused, match="version label"):
        client.predict([2.0])
    for answers in ([3.0, 11.0], [3.0]):
        host.change("named", hosted.lineup.rolled_back("named"), 30, quiet())
        assert [ask(which) for which in ("/versions/1", "")[: len(answers)]] == answers
    assert ask("") == 3.0, "the version that was added is on disk and not served"
    assert versions(host) == {"1", "2"}


def test_another_version_behind_a_label_or_a_model_is_another_arm_and_its_counts_begin_at_zero(start: Start) -> None:
    host = start("first")
    hosted = host.models["first"]
    half_plus_two(folder(host) / "2", plus=10.0)
    host.change("first", hosted.lineup.with_version(2, latest=1, label="canary"), 30, quiet())
    arms = (Arm("stable", 0.5, "first", label="stable"), Arm("canary", 0.5, "first", label="canary"))
    host.change("first", hosted.lineup.with_split(arms), 30, quiet())

    def asked() -> dict[str, int]:
        with Client(host.model_url) as client:
            counted = client.metrics().by_version
        return {row.arm: sum(row.requests.values()) for row in counted if row.arm}

    with Client(host.model_url) as client:
        for number in range(40):
            client.predict([2.0], key=str(number))
    assert set(asked()) == {"stable", "canary"}
    assert sum(asked().values()) == 40
    half_plus_two(folder(host) / "3", plus=20.0)
    host.change("first", hosted.lineup.with_version(3, latest=2, label="canary"), 30, quiet())
    assert sum(asked().values()) == 0
    assert [arm.version for arm in host.arms("first")] == [1, 3]
    with Client(host.model_url) as client:
        assert {float(client.predict([2.0], key=str(number))[0]) for number in range(40)} == {3.0, 21.0}


def test_nothing_is_taken_up_while_it_stands_still_and_everything_afterwards(start: Start) -> None:
    host = start("patient")
    with host.standing_still():
        half_plus_two(folder(host) / "2", plus=10.0)
        with Client(host.model_url) as client:
            ends = time.monotonic() + 2.5  # it looks every second
            while time.monotonic() < ends:
                assert float(client.predict([2.0])[0]) == 3.0
                time.sleep(0.1)
            assert [found.version for found in client.status()] == [1]
    with Client(host.model_url) as client:
        while float(client.predict([2.0])[0]) != 11.0:
            assert time.monotonic() < ends + 10
            time.sleep(0.05)
    assert host.models["patient"].loaded == (1,)
    with host.standing_still():
        assert host.models["patient"].loaded == (2,), "what it found by itself is known"


def test_the_stop_button_while_the_router_is_told_leaves_no_split(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = start("halfway")
    hosted, route = host.models["halfway"], host._route
    half_plus_two(folder(host) / "2", plus=10.0)
    host.change("halfway", hosted.lineup.with_version(2, latest=1, label=None, keep=2), 30, quiet())
    arms = (Arm("1", 0.5, "halfway", version=1), Arm("2", 0.5, "halfway", version=2))
    pressed = iter([True])

    def press(name: str) -> None:
        route(name)
        if next(pressed, False):
            raise KeyboardInterrupt

    monkeypatch.setattr(host, "_route", press)
    with pytest.raises(KeyboardInterrupt):
        host.change("halfway", hosted.lineup.with_split(arms), 30, quiet())
    with Client(host.model_url) as client:
        assert {float(client.predict([2.0], key=str(number))[0]) for number in range(30)} == {11.0}
    assert hosted.lineup.split == ()


def test_a_lineup_whose_version_somebody_took_away_changes_nothing(start: Start) -> None:
    host = start("taken")
    lineup = host.models["taken"].lineup
    with pytest.raises(InputError, match="no version 7 on disk"):
        host.change("taken", replace(lineup, labels={"stable": 7}), 30, quiet())
    assert host.models["taken"].lineup is lineup
    assert answer(host) == 3.0


def test_a_canary_that_cannot_be_loaded_leaves_labels_and_versions_as_they_were(start: Start) -> None:
    host = start("canary")
    hosted = host.models["canary"]
    (folder(host) / "2").mkdir()
    (folder(host) / "2" / "saved_model.pb").write_bytes(b"no graph")
    with pytest.raises(VersionFailed, match="version 2 of canary is not served"):
        host.change("canary", hosted.lineup.with_version(2, latest=1, label="canary"), 30, quiet())
    shutil.rmtree(folder(host) / "2")
    assert (hosted.lineup.labels, answer(host)) == ({}, 3.0)


def test_a_server_that_somebody_killed_is_forgotten(start: Start) -> None:
    host = start("victim")
    os.kill(host.pid, signal.SIGKILL)
    ends = time.monotonic() + 10
    while host.alive and time.monotonic() < ends:
        time.sleep(0.02)
    assert hosting.find("victim") is None
    assert not folder(host).exists()
    assert "victim" not in {model for server in state.running() for model in server.models}


def test_a_process_that_was_forked_ends_no_server_of_its_parents(start: Start) -> None:
    host = start("inherited")
    child = os.fork()
    if child == 0:
        try:
            hosting._stop_all()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert answer(host) == 3.0
    assert folder(host).exists()


def test_a_server_is_stopped_by_name(start: Start) -> None:
    start("named")
    assert hosting.stop_everywhere("named") == ("named",)
    assert hosting.stop_everywhere("named") == ()


def test_of_several_that_are_called_alike_none_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def server(pid: int) -> state.RunningServer:
        return state.RunningServer(pid, 0.0, ("digits",), f"http://127.0.0.1:{pid}", None, {}, None, 0.0)

    monkeypatch.setattr(state, "running", lambda: [server(4711), server(4712)])
    with pytest.raises(ServingError, match="several servers have a model called digits") as caught:
        hosting.stop_everywhere("digits")
    assert "http://127.0.0.1:4712 (process 4712)" in caught.value.found
    assert "!kill 4711" in caught.value.cure


def test_what_processes_that_are_gone_have_left_is_taken_away() -> None:
    mine, served = hosting.own_folder(), hosting.own_folder().parent
    gone, reused, other = served / "4194305-1.50", served / f"{os.getpid()}-1.50", served / "notes"
    for folder in (mine, gone, reused, other):
        (folder / "m" / "1").mkdir(parents=True, exist_ok=True)
    hosting.clean_up()
    assert [folder.exists() for folder in (mine, gone, reused, other)] == [True, False, False, True]
    for folder in (mine, other):
        shutil.rmtree(folder)
    hosting.clean_up()
