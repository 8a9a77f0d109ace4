from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.views.test_card import Tags
from tfdeploy_magic.views import servers
from tfdeploy_magic.views.servers import Row

EVIL = "<script>alert(1)</script>\x1b[2J"
NOON = time.mktime((2026, 11, 23, 12, 5, 0, 0, 0, -1))
ROW = Row(
    "digits", "version 2", "http://127.0.0.1:8501/v1/models/digits", "127.0.0.1:8500", "1,200", "this kernel", NOON
)


@pytest.mark.parametrize(
    "said",
    [
        *("digits", "version 2", "http://127.0.0.1:8501/v1/models/digits", "127.0.0.1:8500", "1,200", "this kernel"),
        *("process 4711", "not answering", "next: %serve --stop digits"),
    ],
)
def test_table_and_plain_text_say_the_same(said: str) -> None:
    other = replace(ROW, model="letters", state="not answering", grpc="", requests="–", owner="process 4711")
    bundle = servers.mimebundle((ROW, other))
    assert said in bundle["text/plain"]
    assert said in Tags(bundle["text/html"]).text


@pytest.mark.parametrize(("now", "since"), [(NOON + 3600, "12:05"), (NOON + 86_400, "2026-11-23 12:05")])
def test_a_server_of_another_day_says_which(monkeypatch: pytest.MonkeyPatch, now: float, since: str) -> None:
    today = time.localtime(now)
    local = time.localtime
    monkeypatch.setattr(time, "localtime", lambda *seconds: local(*seconds) if seconds else today)
    assert servers.mimebundle((ROW,))["text/plain"].splitlines()[1].endswith(f"  {since}")


def test_without_servers_it_says_how_to_start_one() -> None:
    bundle = servers.mimebundle(())
    for rendering in (bundle["text/plain"], Tags(bundle["text/html"]).text):
        assert "no server of yours runs on this machine" in rendering
        assert "next: %serve MODEL" in rendering


@pytest.mark.parametrize("rows", [(), (ROW,)])
def test_what_was_stopped_is_named(rows: tuple[Row, ...]) -> None:
    bundle = servers.mimebundle(rows, ("letters", "words"))
    for rendering in (bundle["text/plain"], Tags(bundle["text/html"]).text):
        assert "stopped letters, words" in rendering


def test_names_are_text_and_command_no_terminal() -> None:
    bundle = servers.mimebundle((replace(ROW, model=EVIL, state=EVIL, url=EVIL, owner=EVIL),), (EVIL,))
    assert "script" not in Tags(bundle["text/html"]).seen
    assert not any("\x1b" in rendering for rendering in bundle.values())
