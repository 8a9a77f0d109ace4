"""What tests of commands share: a store of their own, and what jobs were asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tfdeploy_magic.artifacts import store
from tfdeploy_magic.jobs import Worker


@pytest.fixture
def empty_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return store.store_folder()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The tasks that jobs were asked to run."""
    asked: list[str] = []
    real = Worker.call

    def call(self: Worker, task: str, *arguments: Any, **options: Any) -> Any:
        asked.append(task.rpartition(":")[2])
        return real(self, task, *arguments, **options)

    monkeypatch.setattr(Worker, "call", call)
    yield asked


@pytest.fixture
def counter() -> Any:
    """A model that keeps state: it counts its calls."""
    import tensorflow as tf

    class Counter(tf.Module):
        def __init__(self) -> None:
            self.count = tf.Variable(0.0)

        @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.float32, name="x")])
        def __call__(self, x: Any) -> Any:
            return x + self.count.assign_add(1.0)

    return Counter()
