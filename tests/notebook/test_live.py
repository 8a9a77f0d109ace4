"""``%monitor`` as a person sees it: in a real kernel, which runs other cells meanwhile."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.notebook.kernels import Kernel, kernel, two_lines
from tests.serving.saved_models import half_plus_two
from tfdeploy_magic.notebook import live

SECONDS = 30.0
WIDGET = "application/vnd.jupyter.widget-view+json"
PNG = b"\x89PNG\r\n"


class Page:
    """What a front end has on its page: outputs by their identity, and the widgets' state."""

    def __init__(self, running: Kernel) -> None:
        self.kernel = running
        self.client = running.client
        self.shown: dict[str, dict[str, Any]] = {}
        self.last = ""
        self.states: dict[str, dict[str, Any]] = {}
        self.pictures: list[bytes] = []
        self.idle: set[str] = set()
        self.printed = ""

    def start(self, code: str, **options: Any) -> str:
        return str(self.client.execute(code, **options))

    def run(self, code: str, **options: Any) -> None:
        request = self.start(code, **options)
        self.read_until(lambda: request in self.idle)
        reply = self.client.get_shell_msg(timeout=SECONDS)
        while reply["parent_header"].get("msg_id") != request:
            reply = self.client.get_shell_msg(timeout=SECONDS)
        assert reply["content"]["status"] == "ok", reply["content"]

    def read_until(self, done: Callable[[], object]) -> None:
        ends = time.monotonic() + SECONDS
        while not done():
            self._take(self.client.get_iopub_msg(timeout=max(0.1, ends - time.monotonic())))

    def model(self, name: str) -> str:
        """Return the identity of the widget of this kind that is there."""
        (found,) = (key for key, state in self.states.items() if state.get("_model_name") == name)
        return found

    def has_widgets(self) -> bool:
        return bool(self.states)

    def send(self, kind: str, model: str, data: dict[str, Any], subshell: str | None = None) -> None:
        message = self.client.session.msg(kind, {"comm_id": model, "data": data})
        message["header"]["subshell_id"] = subshell
        self.client.shell_channel.send(message)

    def subshell(self) -> str:
        """Make what JupyterLab makes for widgets, so that they are heard while a cell runs."""
        self.client.control_channel.send(self.client.session.msg("create_subshell_request"))
        return str(self.client.get_control_msg(timeout=SECONDS)["content"]["subshell_id"])

    @property
    def output(self) -> dict[str, Any]:
        return self.shown[self.last]

    def _take(self, message: dict[str, Any]) -> None:
        kind, content = message["msg_type"], message["content"]
        if kind in ("display_data", "update_display_data"):
            self.last = content["transient"].get("display_id", "")
            self.shown[self.last] = content["data"]
        elif kind == "status" and content["execution_state"] == "idle":
            self.idle.add(message["parent_header"]["msg_id"])
        elif kind == "stream":
            self.printed += content["text"]
        elif kind == "comm_open":
            self.states[content["comm_id"]] = content["data"]["state"]
        elif kind == "comm_msg" and content["data"].get("method") == "update":
            self.states[content["comm_id"]].update(content["data"]["state"])
            self.pictures += map(bytes, message["buffers"])
        elif kind == "comm_close":
            self.states.pop(content["comm_id"], None)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("live")
    half_plus_two(folder / "half" / "1")
    with kernel(folder) as running:
        made = Page(running)
        made.run(f"%load_ext tfdeploy_magic\nendpoint = %serve {folder}/half/1\nimport pathlib, threading, time")
        made.run("def monitors(): return [t.name for t in threading.enumerate() if t.name.startswith('monitor ')]")
        yield made
        made.run("%serve --stop --all")


@pytest.fixture
def watched(page: Page) -> Iterator[Page]:
    page.pictures.clear()
    page.printed = ""
    page.run("m = %monitor endpoint --every 0.2 --seconds 20")
    yield page
    page.run("m.stop()")
    page.read_until(lambda: not page.has_widgets())
    page.run("print(monitors())")
    assert page.printed.endswith("[]\n"), page.printed


def until_a_file_is_there(path: Path) -> str:
    return f"while not pathlib.Path({str(path)!r}).exists():\n    endpoint.predict([1.0])"


def test_it_is_refreshed_while_a_cell_runs(watched: Page, tmp_path: Path) -> None:
    assert {WIDGET, "text/html", "text/plain"} == watched.output.keys()
    assert watched.output[WIDGET]["model_id"] == watched.model("VBoxModel")
    busy = watched.start(until_a_file_is_there(tmp_path / "enough"))
    numbers = watched.states[watched.model("HTMLModel")]
    watched.read_until(lambda: len(set(watched.pictures)) >= 3 and "version 1" in numbers["value"])
    assert busy not in watched.idle, "the cell still runs"
    assert all(picture.startswith(PNG) for picture in watched.pictures)
    (tmp_path / "enough").touch()
    watched.read_until(lambda: busy in watched.idle)
    count = len(watched.pictures)
    watched.run("print(endpoint.predict([2.0]))")
    watched.read_until(lambda: len(watched.pictures) > count)
    assert "[3.]" in watched.printed
    assert "Error" not in watched.printed


def test_its_button_stops_it_while_a_cell_runs_and_the_last_picture_stays(watched: Page, tmp_path: Path) -> None:
    subshell = watched.subshell()
    shown = watched.last
    busy = watched.start(until_a_file_is_there(tmp_path / "enough"))
    watched.read_until(lambda: watched.pictures)
    click = {"method": "custom", "content": {"event": "click"}}
    watched.send("comm_msg", watched.model("ButtonModel"), click, subshell)
    watched.read_until(lambda: not watched.has_widgets())
    assert busy not in watched.idle, "the cell still runs"
    assert watched.shown[shown].keys() == {"text/html", "text/plain"}
    assert "it was stopped" in watched.shown[shown]["text/plain"]
    assert "data:image/png;base64," in watched.shown[shown]["text/html"]
    (tmp_path / "enough").touch()
    watched.read_until(lambda: busy in watched.idle)


@pytest.mark.parametrize("closed", ["by the page", "by the kernel"])
def test_a_widget_that_is_closed_ends_it(watched: Page, closed: str) -> None:
    shown = watched.last
    if closed == "by the page":
        box = watched.model("VBoxModel")
        watched.send("comm_close", box, {})
        del watched.states[box]
    else:
        watched.run("import ipywidgets; ipywidgets.Widget.close_all()")
    watched.read_until(lambda: "it was stopped" in watched.shown[shown]["text/plain"])


def test_the_same_cell_again_takes_over(watched: Page) -> None:
    first, box = watched.last, watched.model("VBoxModel")
    watched.run("m = %monitor endpoint --every 0.2 --seconds 20")
    watched.read_until(lambda: box not in watched.states)
    assert "it was stopped" in watched.shown[first]["text/plain"]
    second = next(key for key in watched.shown if WIDGET in watched.shown[key])
    assert watched.shown[second][WIDGET]["model_id"] == watched.model("VBoxModel")
    watched.run("print(monitors())")
    assert "['monitor half']\n" in watched.printed


def test_it_ends_when_its_time_is_over_or_its_server_is_stopped(page: Page, tmp_path: Path) -> None:
    page.run("short = %monitor endpoint --every 0.2 --seconds 5 --minutes 0.01")
    shown = page.last
    page.read_until(lambda: "its time was over" in page.shown[shown]["text/plain"])
    half_plus_two(tmp_path / "other" / "1")
    page.run(f"other = %serve {tmp_path}/other/1")
    page.run("short = %monitor other --every 0.2 --seconds 5")
    shown = page.last
    page.run("%serve --stop other")
    page.read_until(lambda: "the server was stopped" in page.shown[shown]["text/plain"])
    page.read_until(lambda: not page.has_widgets())
    page.run("del short, other")


def test_the_value_is_shown_as_it_is_now(watched: Page) -> None:
    request = watched.start("m")
    watched.read_until(lambda: request in watched.idle)
    watched.run("print(repr(m), len(m.figure().axes), len(m.history.intervals) > 0)")
    assert ": running> 3 True" in watched.printed


def test_where_nobody_can_answer_the_card_stands_as_it_is(page: Page) -> None:
    page.run("static = %monitor endpoint --every 0.2 --seconds 5", allow_stdin=False)
    assert page.output.keys() == {"text/html", "text/plain"}
    assert "data:image/png;base64," in page.output["text/html"]
    assert not page.has_widgets()
    page.run("static.stop(); del static")


def test_an_error_is_two_lines_that_say_what_to_type(page: Page) -> None:
    assert "does not answer" in two_lines(
        page.kernel.run("%monitor http://127.0.0.1:9/v1/models/gone"), "ServerUnreachable"
    )
    assert "Did you mean endpoint?" in two_lines(page.kernel.run("%monitor endpont"), "NameNotFound")
    said = page.kernel.run("%monitor endpoint --seconds 3 --every 2").streams["stderr"]
    assert "%monitor: draw more --seconds, or look more often: --every" in said


@pytest.mark.parametrize(
    "shell",
    [
        SimpleNamespace(),
        SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda _: {})),
        SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda _: {"content": {"allow_stdin": False}})),
    ],
    ids=["a terminal", "no request", "nbconvert"],
)
def test_nothing_is_shown_live_where_nobody_sees_it(shell: Any) -> None:
    changing: Any = type("Changing", (), {"__tfdeploy_live__": True})()
    assert not live.show(changing, shell, None)


def test_without_ipywidgets_the_card_stands_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    shell: Any = SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda _: {"content": {"allow_stdin": True}}))
    changing: Any = type("Changing", (), {"__tfdeploy_live__": True})()
    assert not live.show(changing, shell, None)
    assert not live.show(object(), shell, None)
