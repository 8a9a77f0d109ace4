"""The servers that this process has started: what they serve, how that changes, and how they end."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import platformdirs
import psutil

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.errors import InputError, ServingError, TfdeployError
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.jobs.progress import Progress
from tfdeploy_magic.serving import control, state, versions
from tfdeploy_magic.serving.lineup import Arm, Lineup, specific_config
from tfdeploy_magic.serving.served import Served

if TYPE_CHECKING:
    from tfdeploy_magic.serving.containers import ContainerSeen

KEPT_VERSIONS = 3
"""Versions of a model that stay on disk where nobody chose the folder."""

UNDO_SECONDS = 5.0
"""How long a server may take to go back to what it served."""


@dataclass
class Hosted:
    """One model of a server.

    Args:
        base_path: The folder of its versions.
        ours: Whether that folder is ours to clean up.
        lineup: Which of them are served, by which labels, and how requests are split.
        known: Version -> what is known of it, the one that was written last at the end.
        newest: The highest version that the server was ever asked to load: no number is given twice.
        loaded: The versions that it serves.
        routed: The arms that the router was told of last; None while it is not certain that it heard of them.
    """

    base_path: Path
    ours: bool
    lineup: Lineup = field(default_factory=Lineup)
    known: dict[int, Served] = field(default_factory=dict)
    newest: int = 0
    loaded: tuple[int, ...] = ()
    routed: tuple[Arm, ...] | None = ()

    @property
    def served(self) -> Served | None:
        """What is known of the version that answers those who name none; None before there is one."""
        return self.known.get(max(self.loaded or self.known, default=-1))

    def numbers(self) -> list[int]:
        """Return the versions on disk, in increasing order."""
        with contextlib.suppress(OSError):
            return sorted(versions.directories(self.base_path))
        return []

    def prune(self) -> None:
        """Take old versions away where the folder is ours; those that are served, or were before, stay."""
        if not self.ours:
            return
        found = self.numbers()
        kept = {*found[-max(KEPT_VERSIONS, self.lineup.keep) :]}
        for lineup in (self.lineup, self.lineup.before):
            kept.update(lineup.versions(found) if lineup is not None else ())
        for number in set(found) - kept:
            self.known.pop(number, None)
            shutil.rmtree(self.base_path / str(number), ignore_errors=True)


@dataclass
class Host(ABC):
    """One server, which this process has started and ends.

    Args:
        name: What its first model is served as.
        models: What it serves, by name.
        asked: What a person asked for besides, option -> value.
        findings: What was noticed when it was started.
    """

    name: str
    models: dict[str, Hosted]
    asked: Mapping[str, object] = field(default_factory=dict)
    url: str = ""
    grpc: str | None = None
    still: bool = field(default=False, init=False)
    findings: tuple[Finding, ...] = field(default=(), init=False)
    owner: int = field(default_factory=os.getpid, init=False)

    backend: ClassVar[str]
    """What it runs in."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether it still runs."""

    @property
    @abstractmethod
    def ends(self) -> str:
        """Where it runs and when it ends, in words."""

    @abstractmethod
    def start(self, flags: Sequence[str], report: Report, *, gpu: bool) -> None:
        """Start it with its first model, and return when that is served; :func:`register` makes it known.

        Args:
            flags: Of the server, besides those that say what is served.
            report: Told of the progress.
            gpu: Whether it may use GPUs.

        Raises:
            TfdeployError: It could not start; nothing is left of it.
        """

    @abstractmethod
    def _end(self) -> None:
        """End the server."""

    @abstractmethod
    def _route(self, name: str) -> None:
        """Have requests to a model split as its lineup says."""

    def seen(self) -> ContainerSeen | None:
        """Return how its container is now; None where it runs in none."""
        return None

    @property
    def request_file(self) -> Path:
        """Where a request lies that examples send."""
        return own_folder() / f"{self.name}-request.json"

    def url_of(self, name: str) -> str:
        """Return the REST address of a model."""
        return f"{self.url}/v1/models/{name}"

    @property
    def model_url(self) -> str:
        """The REST address of its first model."""
        return self.url_of(self.name)

    def seen_path(self, name: str) -> str:
        """Return where the server finds the versions of a model."""
        return str(self.models[name].base_path)

    def change(self, name: str, lineup: Lineup, seconds: float, report: Report) -> None:
        """Serve a model by another lineup: what is new is loaded before anything else changes, and no request is lost.

        Args:
            name: The model.
            lineup: What is wanted of it.
            seconds: How long loading may take.
            report: Told of the progress.

        Raises:
            InputError: A version of it is no longer on disk.
            VersionFailed: One cannot be loaded; all is as it was.
            ServingError: The server is gone, or refuses.
        """
        hosted = self.models[name]
        former, found = hosted.lineup, hosted.numbers()
        wanted = lineup.versions(found)
        _check(name, lineup, wanted, found)
        stage = f"loading version {wanted[-1]}"
        report.stage(stage)
        began = time.monotonic()

        def waiting() -> None:
            report.pass_on(Progress(stage, None, time.monotonic() - began))
            if not self.alive:
                raise self._gone()

        before = self._config(name, [each for each in found if each <= hosted.newest])
        hosted.newest = max(hosted.newest, *wanted)
        joint = sorted({*wanted, *hosted.loaded}.intersection(found))
        loaded, split = hosted.loaded, any(each.routed for each in self.models.values())
        try:
            if split or lineup.split or not (lineup.followed and former.followed):
                labels = {label: number for label, number in former.labels.items() if number in joint}
                self._reload(name, specific_config(name, self.seen_path(name), joint, labels), seconds, waiting)
                control.wait_until_served(str(self.grpc), name, wanted, seconds, waiting)
                self._reload(name, specific_config(name, self.seen_path(name), joint, lineup.labels), seconds, waiting)
            hosted.lineup, hosted.loaded = lineup, wanted
            self._route_anew()
            self._reload(name, self._config(name, found), seconds, waiting)
            control.wait_until_served(str(self.grpc), name, wanted, seconds, waiting)
        except BaseException:
            hosted.lineup, hosted.loaded = former, loaded
            with contextlib.suppress(TfdeployError):
                self._route_anew()
                self._reload(name, before, UNDO_SECONDS, lambda: None)
            raise
        hosted.prune()

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Have it take up no version by itself meanwhile: one that is written is served when :meth:`change` says so."""
        for hosted in self.models.values():
            if hosted.lineup.followed:  # somebody may have written one that it found
                hosted.loaded = hosted.lineup.versions(hosted.numbers()) or hosted.loaded
                hosted.newest = max(hosted.newest, *hosted.loaded)
        self.still = True
        try:
            self._reload_all()
            yield
        finally:
            self.still = False
            with contextlib.suppress(ServingError):  # one that is gone by now is told nothing
                self._reload_all()

    def drop(self, name: str) -> None:
        """Serve a model no longer."""
        del self.models[name]
        self._reload_all()

    def _reload_all(self) -> None:
        name, hosted = next(iter(self.models.items()))
        self._reload(name, self._config(name, hosted.loaded), UNDO_SECONDS, lambda: None)

    def arms(self, name: str) -> tuple[Arm, ...]:
        """Return who answers requests to a model that name no version, each by its version.

        Another version behind a label, or the next one of a model, is another arm: what was counted of the one before
        says nothing about it.
        """
        return tuple(replace(arm, version=self._version_of(arm), label=None) for arm in self.models[name].lineup.split)

    def _version_of(self, arm: Arm) -> int | None:
        hosted = self.models[arm.model]
        if arm.version is not None or arm.label is not None:
            return arm.version if arm.label is None else hosted.lineup.labels.get(arm.label)
        return max(hosted.loaded, default=None)

    def _route_anew(self) -> None:
        """Tell the router of the splits that are others than it knows."""
        for name, hosted in self.models.items():
            if (arms := self.arms(name)) != hosted.routed:
                hosted.routed = None
                self._route(name)
                hosted.routed = arms

    def _config(self, name: str, found: Sequence[int]) -> Any:
        """Return the ``ModelConfig`` of a model, of these versions on disk.

        Where requests are split nothing may change that the router is not told of, so no version is found by itself.
        """
        lineup, where = self.models[name].lineup, self.seen_path(name)
        if self.still or any(hosted.lineup.split for hosted in self.models.values()):
            return specific_config(name, where, lineup.versions(found), lineup.labels)
        return lineup.config(name, where, found)

    def _reload(self, name: str, config: Any, seconds: float, waiting: control.Waiting) -> None:
        """Have the server serve this of a model, and the others as they are."""
        others = (self._config(key, other.loaded) for key, other in self.models.items() if key != name)
        control.reload(str(self.grpc), [*others, config], seconds, waiting)

    def stop(self) -> None:
        """End it, and take its folders away where they are ours."""
        if hosts.get(self.name) is self:
            del hosts[self.name]
        self._end()
        self.take_away()

    def take_away(self) -> None:
        """Take away what it has left on disk."""
        self.request_file.unlink(missing_ok=True)
        for hosted in self.models.values():
            if hosted.ours:
                shutil.rmtree(hosted.base_path, ignore_errors=True)

    def _gone(self) -> ServingError:
        return ServingError(
            f"the server of {self.name} is gone",
            found="it ended by itself",
            wanted="a server that runs",
            cure="%serve MODEL starts another one.",
        )


def _check(name: str, lineup: Lineup, wanted: Sequence[int], found: Sequence[int]) -> None:
    """Refuse a lineup whose versions somebody has taken away."""
    missing = {*lineup.labels.values(), *(arm.version for arm in lineup.split if arm.model == name)} - {*found, None}
    if missing or not wanted:
        raise InputError(
            f"{name} cannot be served like this",
            found=f"no version {', '.join(map(str, sorted(filter(None, missing))))} on disk".replace("  ", " "),
            wanted=f"one of {', '.join(map(str, found)) or 'none'}",
            cure="%serve MODEL writes the next version.",
        )


def check_name(name: str) -> None:
    """Refuse a name that a model cannot be served by.

    Raises:
        InputError: It is no part of an address.
    """
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise InputError(
            "a model cannot be served by that name",
            found=f"'{name}'",
            wanted="a name of letters, digits, dots, dashes and underscores: it is part of its address",
            cure="Choose another: --name digits.",
        )


hosts: dict[str, Host] = {}
"""By the name of their first model."""


def register(host: Host) -> None:
    """Make a server known to whatever looks for it in this process."""
    hosts[host.name] = host


def own_folder() -> Path:
    """Return where this process keeps versions that nobody chose a folder for."""
    return _served() / f"{os.getpid()}-{psutil.Process().create_time():.2f}"


def clean_up() -> None:
    """Take away what processes that are gone have left."""
    with contextlib.suppress(OSError):
        for folder in _served().iterdir():
            match = re.fullmatch(r"(\d+)-(\d+\.\d+)", folder.name)
            if match and not state.is_process(int(match[1]), float(match[2])):
                shutil.rmtree(folder, ignore_errors=True)


def _served() -> Path:
    return platformdirs.user_cache_path("tfdeploy_magic") / "served" / state.machine()


def living() -> Iterator[Host]:
    """Yield the servers of this process that run; of the others nothing is left."""
    for host in list(hosts.values()):
        if host.alive:
            yield host
        else:
            host.stop()


def find(name: str) -> Host | None:
    """Return the running server of this process that serves a model of that name."""
    return next((host for host in living() if name in host.models), None)


def at(url: str) -> Host | None:
    """Return the server of this process that has a model at this REST address, or a version or label of it."""
    found = ((host, host.url_of(name)) for host in hosts.values() for name in host.models)
    return next((host for host, own in found if url == own or url.startswith(f"{own}/")), None)


def stop_everywhere(name: str) -> tuple[str, ...]:
    """Stop the server that has a model of that name, of this process or of another one of this user.

    Returns:
        The models that it had; none where there is no such server.
    """
    host = next((host for host in hosts.values() if name in host.models), None)
    if host is not None:
        host.stop()
        return tuple(host.models)
    others = [server for server in state.running() if name in server.models]
    if len(others) > 1:
        raise ServingError(
            f"several servers have a model called {name}",
            found=", ".join(f"{server.url} (process {server.pid})" for server in others),
            wanted="one",
            cure=f"Stop it by its process: !kill {others[0].pid}",
        )
    for server in others:
        server.stop()
    return tuple(model for server in others for model in server.models)


@atexit.register
def _stop_all() -> None:
    # Not those that a process inherited when it was forked: they are its parent's.
    own = [host for host in hosts.values() if host.owner == os.getpid()]
    for host in own:
        host.stop()
    if own:
        shutil.rmtree(own_folder(), ignore_errors=True)
