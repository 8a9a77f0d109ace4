"""A real IPython kernel for tests: run a cell, see what a person would see."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.manager import KernelManager

ROOT = Path(__file__).parents[2]


@dataclass
class Shown:
    """What one cell put on the page."""

    displays: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    streams: dict[str, str] = field(default_factory=dict)
    error: list[str] = field(default_factory=list)
    error_name: str = ""
    status: str = ""

    @property
    def text(self) -> str:
        return "\n".join(d.get("text/plain", "") for d in (*self.displays, *self.results)) + self.streams.get(
            "stdout", ""
        )

    @property
    def error_text(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(self.error))


class Kernel:
    """A running kernel."""

    def __init__(self, manager: KernelManager) -> None:
        self.manager = manager
        self.client = manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def start(self, code: str) -> str:
        return str(self.client.execute(code))

    def run(self, code: str, timeout: float = 120) -> Shown:
        return self.wait(self.start(code), timeout)

    def wait(self, request: str, timeout: float = 120) -> Shown:
        shown, by_id = Shown(), {}
        ends = time.monotonic() + timeout
        while True:
            message = self.client.get_iopub_msg(timeout=max(0.1, ends - time.monotonic()))
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                shown.streams[content["name"]] = shown.streams.get(content["name"], "") + content["text"]
            elif kind == "display_data":
                by_id[content["transient"].get("display_id")] = len(shown.displays)
                shown.displays.append(content["data"])
            elif kind == "update_display_data" and content["transient"]["display_id"] in by_id:
                shown.displays[by_id[content["transient"]["display_id"]]] = content["data"]
            elif kind == "execute_result":
                shown.results.append(content["data"])
            elif kind == "error":
                shown.error, shown.error_name = content["traceback"], content["ename"]
            elif kind == "status" and content["execution_state"] == "idle":
                break
        while True:
            reply = self.client.get_shell_msg(timeout=10)
            if reply["parent_header"].get("msg_id") == request:
                shown.status = reply["content"]["status"]
                return shown


def two_lines(shown: Shown, name: str) -> str:
    """Return an error's text after checking that it is two lines and the kernel said it failed."""
    assert shown.status == "error"
    assert shown.error_name == name
    assert len(shown.error_text.splitlines()) == 2, shown.error_text
    return shown.error_text


@contextmanager
def kernel(cache: Path) -> Iterator[Kernel]:
    """Start a kernel whose store is in ``cache`` and end it, and nothing else, afterwards."""
    manager = KernelManager(kernel_name="python3", transport="ipc", ip=str(cache / "k"))
    manager.start_kernel(cwd=str(ROOT), env={**os.environ, "XDG_CACHE_HOME": str(cache), "TF_CPP_MIN_LOG_LEVEL": "3"})
    running = Kernel(manager)
    try:
        yield running
    finally:
        running.client.stop_channels()
        manager.shutdown_kernel(now=True)
