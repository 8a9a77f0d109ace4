"""Which versions of which models are served: numbered directories are watched, loaded, swapped and unloaded.

A new version is loaded before the old one goes (TensorFlow Serving's AvailabilityPreservingPolicy), and a version that
cannot be loaded costs none that is served.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tfdeploy_magic.serving.calls import State, VersionStatus
from tfdeploy_magic.serving.servable import LoadedVersion
from tfdeploy_magic.serving.status import Code, Refusal, invalid

KEPT_ENDED = 50
"""Versions of one model that are gone and still told of."""

HOLD_SECONDS = 60.0
"""How long a version that is unloaded waits for those who still use it."""

HIGHEST = (1 << 63) - 1
"""A version is an int64."""

Loader = Callable[[str, int, Path], LoadedVersion]

_log = logging.getLogger(__name__)


@dataclass
class _Version:
    """One version of a model, from when its directory is first wanted."""

    number: int
    path: Path
    state: State = "START"
    problem: Refusal | None = None
    servable: LoadedVersion | None = None
    tries: int = 0
    next_try: float = 0.0
    looked_like: tuple[Any, ...] = ()
    holders: int = 0

    @property
    def settled(self) -> bool:
        """Whether nothing is being done about it."""
        return self.state in ("AVAILABLE", "END")


@dataclass
class _Model:
    """One entry of the configuration, and what became of it."""

    config: Any
    versions: dict[int, _Version] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    wanted: set[int] = field(default_factory=set)
    removed: bool = False
    latest: int | None = None


class _Held:
    """A version in use; lighter than a generator, because every request pays for it."""

    __slots__ = ("_lock", "_version")

    def __init__(self, version: _Version, lock: threading.Condition) -> None:
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


class ModelManager:
    """All models of a server (``calls.Models``), and the thread that watches their directories.

    Args:
        load: Loads a version and warms it up; raises Refusal.
        poll_seconds: How often directories are looked at; 0 looks once, and a negative number never by itself.
        retries: How often a version that failed is tried again; one that changes on disk always is.
        retry_seconds: Between tries.
        load_threads: Versions that are loaded at once.
        labels_for_unavailable: Accept new labels of versions that are not there yet.
    """

    def __init__(
        self,
        load: Loader,
        *,
        poll_seconds: float = 1.0,
        retries: int = 5,
        retry_seconds: float = 60.0,
        load_threads: int = 1,
        labels_for_unavailable: bool = False,
    ) -> None:
        self._load, self._poll_seconds = load, poll_seconds
        self._retries, self._retry_seconds = retries, retry_seconds
        self._labels_for_unavailable = labels_for_unavailable
        self._models: dict[str, _Model] = {}
        self._changed = threading.Condition(threading.RLock())
        self._configuring = threading.Lock()
        self._work = threading.Event()
        self._looks_asked = 1
        self._looks_done = 0
        self._closed = False
        self._loads = ThreadPoolExecutor(max(1, load_threads), thread_name_prefix="load")
        self._thread = threading.Thread(target=self._watch, name="versions", daemon=True)
        self._thread.start()

    def use(self, name: str, version: int | None = None, label: str | None = None) -> _Held:
        """Hold a version for as long as a request needs it."""
        with self._changed:
            model = self._models.get(name)
            if label is not None:
                if model is None or label not in model.labels:
                    raise invalid(f"Unrecognized servable version label: {label}")
                version = model.labels[label]
            number = version if version is not None or model is None else model.latest
            found = model.versions.get(number) if model is not None and number is not None else None
            if found is None or found.state != "AVAILABLE":
                request = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise Refusal(Code.NOT_FOUND, f"Servable not found for request: {request}")
            found.holders += 1
            return _Held(found, self._changed)

    def statuses(self, name: str, version: int | None = None) -> list[VersionStatus]:
        """Return the state of one version or of all, newest first."""
        with self._changed:
            model = self._models.get(name)
            versions = dict(model.versions) if model else {}
            if version is not None and version not in versions:
                raise Refusal(Code.NOT_FOUND, f"Could not find version {version} of model {name}")
            if not versions:
                raise Refusal(Code.NOT_FOUND, f"Could not find any versions of model {name}")
            return [
                VersionStatus(number, versions[number].state, versions[number].problem)
                for number in sorted(versions, reverse=True)
                if version in (None, number)
            ]

    def names(self) -> list[str]:
        """Return the models of the configuration."""
        with self._changed:
            return [name for name, model in self._models.items() if not model.removed]

    def labels(self, name: str) -> dict[str, int]:
        """Return the labels of a model's versions."""
        with self._changed:
            return dict(self._models[name].labels) if name in self._models else {}

    def reload(self, config: Any) -> None:
        """Serve what a ``ModelServerConfig`` lists, and nothing else; returns when new models are loaded or refused."""
        entries = {entry.name: entry for entry in config.model_config_list.config}
        for entry in entries.values():
            if not Path(entry.base_path).is_dir():
                raise Refusal(Code.NOT_FOUND, f"Could not find base path {entry.base_path} for servable {entry.name}")
        with self._configuring:
            with self._changed:
                new = [name for name in entries if name not in self._models or self._models[name].removed]
                for name, model in self._models.items():
                    model.removed = name not in entries
                for name, entry in entries.items():
                    self._models.setdefault(name, _Model(entry)).config = entry
                    self._models[name].removed = False
            self.look()
            self._settle(entries)
            self._label(entries)
            self._report_failures(new)

    def look(self) -> None:
        """Look at the directories now, and return when that is done."""
        with self._changed:
            self._looks_asked += 1
            mine = self._looks_asked
            self._work.set()
            self._changed.wait_for(lambda: self._looks_done >= mine or self._closed)

    def wait_for(self, name: str, version: int, seconds: float) -> VersionStatus | None:
        """Wait until a version is settled; None when it is not within that time, or nobody wants it."""

        def settled() -> bool:
            model = self._models.get(name)
            return model is not None and version in model.versions and model.versions[version].settled

        with self._changed:
            self._changed.wait_for(lambda: settled() or self._closed, seconds)
            return self.statuses(name, version)[0] if settled() else None

    def close(self) -> None:
        """Unload everything; requests that are being answered still are."""
        with self._changed:
            self._closed = True
            for model in self._models.values():
                model.removed = True
            self._changed.notify_all()
        self._work.set()
        self._thread.join()
        self._loads.shutdown()
        for model in self._models.values():
            for version in model.versions.values():
                self._unload(model, version)

    # Watching

    def _watch(self) -> None:
        wait = self._poll_seconds if self._poll_seconds > 0 else None
        while True:
            self._work.clear()
            with self._changed:
                if self._closed:
                    return
                asked = self._looks_asked
            self._step(looking=asked > self._looks_done or wait is not None)
            with self._changed:
                self._looks_done = asked
                self._changed.notify_all()
            self._work.wait(wait)

    def _step(self, looking: bool) -> None:
        """Find what is wanted, begin to load it, and unload what is wanted no longer."""
        with self._changed:
            models = list(self._models.items())
        for name, model in models:
            if looking:
                self._find_wanted(name, model)
            self._begin_loads(name, model)
            for version in self._no_longer_wanted(model):
                threading.Thread(target=self._unload, args=(model, version), name="unload", daemon=True).start()
        with self._changed:
            for name, model in models:
                if model.removed and all(version.state == "END" for version in model.versions.values()):
                    del self._models[name]

    def _find_wanted(self, name: str, model: _Model) -> None:
        base = Path(model.config.base_path)
        found = {} if model.removed else dict(_version_directories(base))
        wanted = _chosen(found, model.config.model_version_policy)
        if not found and not model.removed and (model.wanted or not model.versions):
            _log.warning(
                "No versions of servable %s found under base path %s. Did you forget to name your leaf directory as a "
                "number (eg. '/1/')?", name, base,
            )  # fmt: skip
        with self._changed:
            model.wanted = wanted
            for number in wanted:
                known = model.versions.get(number)
                if known is None or (known.state == "END" and known.problem is None):
                    model.versions[number] = _Version(number, found[number])
                elif known.state == "END" and known.looked_like != _looks(found[number]):
                    known.state, known.tries, known.next_try = "START", 0, 0.0  # somebody has mended it

    def _begin_loads(self, name: str, model: _Model) -> None:
        now = time.monotonic()
        with self._changed:
            due = [
                version
                for number, version in sorted(model.versions.items(), reverse=True)
                if number in model.wanted and version.next_try <= now
                and (version.state == "START" or (version.state == "LOADING" and version.problem and version.next_try))
            ]  # fmt: skip
            for version in due:
                version.state, version.next_try = "LOADING", float("inf")
                self._loads.submit(self._load_one, name, model, version)

    def _load_one(self, name: str, model: _Model, version: _Version) -> None:
        version.looked_like = _looks(version.path)
        _log.info("Loading servable version {name: %s version: %d}", name, version.number)
        try:
            servable = self._load(name, version.number, version.path)
        except Refusal as refusal:
            self._failed(name, version, refusal)
            return
        except Exception as error:
            _log.exception("loading {name: %s version: %d} failed", name, version.number)
            self._failed(name, version, Refusal(Code.INTERNAL, f"{type(error).__name__}: {error}"))
            return
        with self._changed:
            version.servable, version.state, version.problem = servable, "AVAILABLE", None
            self._choose_latest(model)
            self._changed.notify_all()
        self._work.set()
        _log.info("Successfully loaded servable version {name: %s version: %d}", name, version.number)

    def _failed(self, name: str, version: _Version, problem: Refusal) -> None:
        _log.error("Loading servable: {name: %s version: %d} failed: %s", name, version.number, problem)
        with self._changed:
            version.problem = problem
            version.tries += 1
            if version.tries > self._retries:
                version.state = "END"
            else:
                version.next_try = time.monotonic() + self._retry_seconds
                timer = threading.Timer(self._retry_seconds, self._work.set)
                timer.daemon = True
                timer.start()
            self._changed.notify_all()
        self._work.set()

    def _no_longer_wanted(self, model: _Model) -> Iterator[_Version]:
        """Mark and return versions to unload: none as long as that would leave a model with nothing to serve."""
        with self._changed:
            available = {number for number, v in model.versions.items() if v.state == "AVAILABLE"}
            goes = available - model.wanted
            if not model.removed and model.wanted and not available & model.wanted:
                goes = set()
            for number in goes:
                model.versions[number].state = "UNLOADING"
            for number, version in model.versions.items():
                if version.state in ("START", "LOADING") and version.problem and number not in model.wanted:
                    version.state = "END"
            self._choose_latest(model)
        yield from (model.versions[number] for number in sorted(goes))

    def _unload(self, model: _Model, version: _Version) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not version.holders, HOLD_SECONDS)
            servable, version.servable = version.servable, None
        if servable is not None:
            servable.close()
        with self._changed:
            version.state = "END"
            ended = sorted(number for number, v in model.versions.items() if v.state == "END")
            for number in ended[:-KEPT_ENDED]:
                del model.versions[number]
            self._changed.notify_all()
        self._work.set()

    def _choose_latest(self, model: _Model) -> None:
        model.latest = max((number for number, v in model.versions.items() if v.state == "AVAILABLE"), default=None)

    # Configuring

    def _settle(self, names: Iterable[str]) -> None:
        """Wait until each wanted version of these models is available or has failed once."""

        def settled() -> bool:
            return all(
                version.settled or version.problem is not None
                for name in names
                for number in self._models[name].wanted
                if (version := self._models[name].versions.get(number)) is not None
            )

        with self._changed:
            self._changed.wait_for(lambda: settled() or self._closed)

    def _label(self, entries: Mapping[str, Any]) -> None:
        with self._changed:
            for name, entry in entries.items():
                model = self._models[name]
                for label, number in entry.version_labels.items():
                    version = model.versions.get(number)
                    is_new = label not in model.labels
                    if version is not None and version.state == "AVAILABLE":
                        continue
                    if not (is_new and self._labels_for_unavailable):
                        raise Refusal(
                            Code.FAILED_PRECONDITION,
                            f"Request to assign label to version {number} of model {name}, which is not currently "
                            "available for inference",
                        )
            for name, entry in entries.items():
                self._models[name].labels = dict(entry.version_labels)

    def _report_failures(self, names: Iterable[str]) -> None:
        """Refuse where a new model has nothing to serve."""
        with self._changed:
            failed = [
                f"{{{{name: {name} version: {version.number}}} due to error: {version.problem}}}"
                for name in names
                if not any(v.state == "AVAILABLE" for v in self._models[name].versions.values())
                for version in self._models[name].versions.values()
                if version.problem is not None
            ]
        if failed:
            raise Refusal(Code.UNKNOWN, f"{len(failed)} servable(s) did not become available: {', '.join(failed)}")


def _version_directories(base: Path) -> Iterator[tuple[int, Path]]:
    """Yield the directories whose names are numbers; "00000123" is 123."""
    with contextlib.suppress(OSError):
        for path in sorted(base.iterdir()):
            if re.fullmatch(r"\d+", path.name, re.ASCII) and int(path.name) <= HIGHEST and path.is_dir():
                yield int(path.name), path


def _chosen(found: Mapping[int, Path], policy: Any) -> set[int]:
    """Return the versions that a ``ServableVersionPolicy`` wants; the latest one where it says nothing."""
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return set(found)
    if kind == "specific":
        return set(policy.specific.versions) & set(found)
    return set(sorted(found)[-(policy.latest.num_versions or 1) :])


def _looks(path: Path) -> tuple[Any, ...]:
    """Return what would differ if somebody wrote into a directory."""
    with contextlib.suppress(OSError):
        seen = ((part, part.lstat()) for part in sorted(path.rglob("*")))
        return tuple((str(part), stat.st_size, stat.st_mtime_ns) for part, stat in seen)
    return ()
