"""Looking at processes from outside, as an operating system's owner would."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie that nobody has reaped yet."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def gone_within(seconds: float, *pids: int) -> bool:
    ends = time.monotonic() + seconds
    while any(map(alive, pids)):
        if time.monotonic() > ends:
            return False
        time.sleep(0.02)
    return True


def fork_servers() -> list[psutil.Process]:
    """The fork servers of this very process."""
    children = psutil.Process().children()
    return [child for child in children if alive(child.pid) and "server.main" in " ".join(child.cmdline())]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def run_python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
