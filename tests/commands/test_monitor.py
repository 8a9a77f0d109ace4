from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.serving.fake_server import Fake, serving
from tests.serving.live import wait_until
from tests.serving.test_history import PAGE, of_version, page
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.commands.monitor import Monitor, monitor
from tfdeploy_magic.errors import OutputError, RequestRefused, ServerUnreachable
from tfdeploy_magic.serving import hosting

QUICK: dict[str, Any] = {"every": 0.2, "seconds": 5}
STATUS = {"model_version_status": [{"version": "3", "state": "AVAILABLE", "status": {"error_code": "OK"}}]}


@dataclass
class Counting:
    """A server whose counters grow by 7 with each look."""

    fake: Fake
    looks: int = 0
    silent: bool = field(default=False)

    def __post_init__(self) -> None:
        self.fake.answers["/v1/models/echo"] = (200, json.dumps(STATUS))
        real = self.fake.answer

        def answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
            if path != PAGE:
                return real(method, path, body)
            self.looks += 1
            if self.silent:
                return 503, b"busy"
            count = 7 * self.looks
            versions = of_version(3, "", {"OK": count}, {"100": count, "+Inf": count})
            return 200, page({"OK": count}, within={"100": count, "+Inf": count}, versions=versions).encode()

        self.fake.answer = answer  # type: ignore[method-assign]


@pytest.fixture
def counting() -> Iterator[Counting]:
    with serving() as running:
        yield Counting(running)


@pytest.fixture
def watched(counting: Counting) -> Iterator[Monitor]:
    made = monitor(Endpoint(counting.fake.url), **QUICK)
    yield made
    made.stop()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("monitor ")]


def after(watched: Monitor, condition: Callable[[], bool]) -> None:
    """Wait until something is so when a look is told of."""
    happened = threading.Event()
    watched.watch(lambda: happened.set() if condition() else None)
    assert happened.wait(20)


def test_a_model_is_looked_at_twice_at_once_and_from_then_on_in_a_thread(counting: Counting, watched: Monitor) -> None:
    assert len(watched.history.intervals) >= 1
    assert watched.history.intervals[0].model.requests == {"OK": 7}
    assert threads() == ["monitor echo"]
    after(watched, lambda: len(watched.history.intervals) >= 4)
    assert {each.model.asked for each in watched.history.intervals} == {7}
    assert watched.running
    assert repr(watched) == f"<Monitor of {counting.fake.url}: running>"


def test_it_is_stopped_and_what_was_seen_stays(counting: Counting, watched: Monitor) -> None:
    watched.stop()
    assert threads() == []
    assert not watched.running
    looks, text = counting.looks, watched._repr_mimebundle_()["text/plain"]
    assert "it was stopped" in text
    assert "version 3" in text
    assert len(watched.figure().axes) == 3
    watched.stop()
    assert counting.looks == looks


def test_it_ends_by_itself_when_its_time_is_over(counting: Counting) -> None:
    watched = monitor(counting.fake.url, minutes=0.01, **QUICK)
    after(watched, lambda: not watched.running)
    assert repr(watched).endswith("its time was over>")


def test_a_cell_that_is_run_again_takes_over_from_itself(watched: Monitor) -> None:
    again = monitor(Endpoint(watched.endpoint.url), **QUICK)
    try:
        assert not watched.running
        assert again.running
        assert threads() == ["monitor echo"]
    finally:
        again.stop()


def test_who_watches_is_told_of_each_look_and_of_the_end(watched: Monitor) -> None:
    told: list[bool] = []
    watched.watch(lambda: told.append(watched.running))
    after(watched, lambda: len(told) >= 2)
    watched.stop()
    assert told[-1] is False
    assert told[:-1] == [True] * (len(told) - 1)
    late: list[bool] = []
    watched.watch(lambda: late.append(watched.running))
    assert late == [False], "who comes too late is told at once"


def test_a_watcher_may_stop_it(watched: Monitor) -> None:
    watched.watch(watched.stop)
    wait_until(lambda: not watched.running)
    assert repr(watched).endswith("it was stopped>")


def test_a_server_that_does_not_answer_for_a_while_leaves_a_gap(counting: Counting, watched: Monitor) -> None:
    counting.silent = True
    after(watched, lambda: watched.history.problem is not None)
    assert "✗ does not answer" in watched._repr_mimebundle_()["text/plain"]
    counting.silent = False
    after(watched, lambda: watched.history.problem is None and bool(watched.history.gaps))
    after(watched, lambda: watched.history.intervals[-1].start >= watched.history.gaps[-1][1])
    watched.stop()
    assert len(watched.history.gaps) == 1
    assert {each.model.asked for each in watched.history.intervals} == {7}


class Hosted:
    """A server of this process, as far as it is looked for."""

    name, grpc, models = "echo", None, ("echo",)

    def __init__(self, url: str) -> None:
        self.url, self.alive = url, True

    def url_of(self, name: str) -> str:
        return self.url


def test_it_ends_when_the_server_is_stopped(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts: dict[str, Any] = {"echo": Hosted(counting.fake.url)}
    monkeypatch.setattr(hosting, "hosts", hosts)
    watched = monitor(Endpoint(counting.fake.url), **{**QUICK, "every": 2.0})
    del hosts["echo"]
    after(watched, lambda: not watched.running)
    assert repr(watched).endswith("the server was stopped>")


def test_it_ends_when_the_server_has_died(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Hosted(counting.fake.url)
    monkeypatch.setattr(hosting, "hosts", {"echo": host})
    watched = monitor(Endpoint(counting.fake.url), **QUICK)
    host.alive = False
    after(watched, lambda: len(watched.history.intervals) >= 3)
    assert watched.running, "one that answers has not"
    counting.silent = True
    after(watched, lambda: not watched.running)
    assert repr(watched).endswith("the server was stopped>")


def test_files_for_grafana_are_written_and_named(counting: Counting, tmp_path: Path) -> None:
    watched = monitor(counting.fake.url, grafana=tmp_path / "taken", **QUICK)
    watched.stop()
    assert f"127.0.0.1:{counting.fake.port}" in (tmp_path / "taken" / "prometheus.yml").read_text()
    assert "dashboard.json, alerts.yml, prometheus.yml, README.txt" in watched._repr_mimebundle_()["text/plain"]


def test_where_files_cannot_be_written_nothing_is_started(counting: Counting, tmp_path: Path) -> None:
    (tmp_path / "alerts.yml").write_text("mine")
    with pytest.raises(OutputError, match=r"alerts\.yml: found another file"):
        monitor(counting.fake.url, grafana=tmp_path, **QUICK)
    assert threads() == []


def test_what_is_not_there_is_said_at_once(counting: Counting) -> None:
    with pytest.raises(ServerUnreachable):
        monitor("http://127.0.0.1:9/v1/models/gone", **QUICK)
    with pytest.raises(RequestRefused, match="other was asked for its status"):
        monitor(counting.fake.url.replace("echo", "other"), **QUICK)
    counting.silent = True
    with pytest.raises(RequestRefused, match="monitoring_config"):
        monitor(counting.fake.url, **QUICK)
    assert threads() == []


@pytest.mark.parametrize(
    "options", [{"every": 0.1}, {"every": 5, "seconds": 8}, {"seconds": 0}, {"minutes": 0}, {"minutes": 10_000}]
)
def test_times_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        monitor("http://127.0.0.1:9/v1/models/m", **options)
