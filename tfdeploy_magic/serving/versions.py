"""What is known of a model's versions, and of the numbered directories that they lie in."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tfdeploy_magic.serving.calls import State
from tfdeploy_magic.serving.servable import LoadedVersion
from tfdeploy_magic.serving.status import Refusal

HIGHEST = (1 << 63) - 1
"""A version is an int64."""


@dataclass
class Version:
    """One version of a model, from when its directory is first wanted."""

    number: int
    path: Path
    state: State = "START"
    problem: Refusal | None = None
    servable: LoadedVersion | None = None
    tries: int = 0
    due: float | None = 0.0
    """When it is to be loaded; None where it is being loaded, is loaded, or never will be."""
    looked_like: tuple[Any, ...] | None = None
    holders: int = 0

    @property
    def failed(self) -> bool:
        """Whether it could not be loaded, and is not being loaded again right now."""
        return self.problem is not None and (self.due is not None or self.state == "END")

    @property
    def told(self) -> bool:
        """Whether it is known to be good, or known to be bad."""
        return self.state == "AVAILABLE" or self.problem is not None


@dataclass
class Model:
    """One entry of the configuration, and what became of it."""

    config: Any
    versions: dict[int, Version] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    wanted: dict[int, Path] = field(default_factory=dict)
    removed: bool = False
    latest: int | None = None

    def numbers(self, state: State) -> set[int]:
        """Return the versions that are in a state."""
        return {number for number, version in self.versions.items() if version.state == state}

    def want(self, wanted: dict[int, Path]) -> None:
        """Want these versions; one that failed is tried again when it is back."""
        for number in self.versions.keys() - wanted.keys():
            self.versions[number].looked_like = None
        self.wanted = wanted

    def remove(self) -> None:
        """Want none of it any more."""
        self.want({})
        self.removed, self.labels = True, {}

    def choose_latest(self) -> None:
        """Note which version those get who name none."""
        self.latest = max(self.numbers("AVAILABLE"), default=None)


class Held:
    """A version in use; lighter than a generator, because every request pays for it."""

    __slots__ = ("_lock", "_version")

    def __init__(self, version: Version, lock: threading.Condition) -> None:
        self._version, self._lock = version, lock

    def __enter__(self) -> LoadedVersion:
        assert self._version.servable is not None
        return self._version.servable

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        version = self._version
        with self._lock:
            version.holders -= 1
            if not version.holders and version.state == "UNLOADING":
                self._lock.notify_all()


def directories(base: Path) -> dict[int, Path]:
    """Return the directories whose names are numbers, "00000123" as 123; "1" wins over "01".

    Raises:
        OSError: There is no such directory, or it cannot be read.
    """
    return {
        int(path.name): path
        for path in sorted(base.iterdir())
        if re.fullmatch(r"\d+", path.name, re.ASCII) and int(path.name) <= HIGHEST and path.is_dir()
    }


def chosen(found: Mapping[int, Path], policy: Any) -> dict[int, Path]:
    """Return the versions that a ``ServableVersionPolicy`` wants; the latest one where it says nothing."""
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return dict(found)
    if kind == "specific":
        return {number: found[number] for number in policy.specific.versions if number in found}
    return {number: found[number] for number in sorted(found)[-(policy.latest.num_versions or 1) :]}


def looks(path: Path) -> tuple[Any, ...]:
    """Return what would differ if somebody wrote into a directory."""
    with contextlib.suppress(OSError):
        seen = ((part, part.lstat()) for part in sorted(path.rglob("*")))
        return tuple((str(part), stat.st_size, stat.st_mtime_ns) for part, stat in seen)
    return ()
