"""Which versions of which models are served: numbered directories are watched, loaded, swapped and unloaded.

A new version is loaded before the old one goes (TensorFlow Serving's AvailabilityPreservingPolicy), and a version that
cannot be loaded costs none that is served.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tfdeploy_magic.serving import versions
from tfdeploy_magic.serving.calls import VersionStatus
from tfdeploy_magic.serving.servable import LoadedVersion
from tfdeploy_magic.serving.status import Code, Refusal, invalid
from tfdeploy_magic.serving.versions import Held, Model, Version

KEPT_ENDED = 50
"""Versions of one model that are gone and still told of."""

HOLD_SECONDS = 60.0
"""How long a version that is unloaded waits for those who still use it."""

Loader = Callable[[str, int, Path], LoadedVersion]

_log = logging.getLogger(__name__)


class ModelManager:
    """All models of a server (``calls.Models``), and the thread that watches their directories.

    Args:
        load: Loads a version and warms it up; raises Refusal.
        poll_seconds: How often directories are looked at; 0 looks when a configuration comes, and a negative number
            never: then only :meth:`look` does.
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
        self._models: dict[str, Model] = {}
        self._changed = threading.Condition(threading.RLock())
        self._configuring = threading.Lock()
        self._work = threading.Event()
        self._turns_asked = self._turns_done = 0
        self._look_asked = False
        self._keeping = False
        self._closed = False
        self._loads = ThreadPoolExecutor(max(1, load_threads), thread_name_prefix="load")
        self._thread = threading.Thread(target=self._watch, name="versions", daemon=True)
        self._thread.start()

    def use(self, name: str, version: int | None = None, label: str | None = None) -> Held:
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
            return Held(found, self._changed)

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
        """Serve what a ``ModelServerConfig`` lists, and nothing else; returns when new models are loaded or refused.

        New models come first; nothing is unloaded before it is certain that the configuration can be served.
        """
        entries = {entry.name: entry for entry in config.model_config_list.config}
        for entry in entries.values():
            if not Path(entry.base_path).is_dir():
                raise Refusal(Code.NOT_FOUND, f"Could not find base path {entry.base_path} for servable {entry.name}")
        with self._configuring:
            before = {name: self._models[name].config for name in self.names()}
            self._list(before | entries, keeping=True)
            try:
                self._turn(looking=self._poll_seconds >= 0)
                self._settle(entries)
                self._check_models(entries.keys() - before.keys())
                self._check_labels(entries)
            except BaseException:
                self._list(before)
                self._turn(looking=self._poll_seconds >= 0)
                raise
            with self._changed:
                self._list(entries)
                for name, entry in entries.items():
                    self._models[name].labels = dict(entry.version_labels)
            self._turn(looking=False)

    def look(self) -> None:
        """Look at the directories now, and return when that is done."""
        self._turn(looking=True)

    def wait_for(self, name: str, version: int, seconds: float) -> VersionStatus | None:
        """Wait until a version is served or has failed; None when it is not within that time, or nobody wants it."""

        def find() -> Version | None:
            model = self._models.get(name)
            return model.versions.get(version) if model is not None and version in model.wanted else None

        with self._changed:
            self._changed.wait_for(lambda: (found := find()) is None or found.told or self._closed, seconds)
            found = find()
            return VersionStatus(version, found.state, found.problem) if found is not None and found.told else None

    def close(self) -> None:
        """Unload everything; requests that are being answered still are."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._work.set()
        self._thread.join()
        self._loads.shutdown(cancel_futures=True)
        with self._changed:
            for model in self._models.values():
                model.remove()
                for version in model.versions.values():
                    if version.state in ("START", "LOADING"):
                        version.state, version.due = "END", None
                self._begin_unloads(model)
            self._changed.wait_for(
                lambda: all(v.state == "END" for model in self._models.values() for v in model.versions.values())
            )

    # Watching

    def _turn(self, looking: bool) -> None:
        """Have the thread do what is to be done now, and return when it has begun all of it."""
        with self._changed:
            self._look_asked = self._look_asked or looking
            self._turns_asked += 1
            mine = self._turns_asked
            self._work.set()
            self._changed.wait_for(lambda: self._turns_done >= mine or self._closed)

    def _watch(self) -> None:
        next_look = time.monotonic() if self._poll_seconds > 0 else math.inf
        while True:
            self._work.clear()
            with self._changed:
                if self._closed:
                    return
                asked, looking = self._turns_asked, self._look_asked or next_look <= time.monotonic()
                self._look_asked = False
            if looking and self._poll_seconds > 0:
                next_look = time.monotonic() + self._poll_seconds
            try:
                due = min(self._step(looking), next_look)
            except Exception:
                _log.exception("looking for versions failed")
                due = next_look
            with self._changed:
                self._turns_done = asked
                self._changed.notify_all()
            self._work.wait(None if due == math.inf else max(0.0, due - time.monotonic()))

    def _step(self, looking: bool) -> float:
        """Find what is wanted, begin to load it, and unload what is wanted no longer; return when more is due."""
        with self._changed:
            models = list(self._models.items())
        for name, model in models:
            if looking:
                self._look_at(name, model)
            with self._changed:
                self._begin_loads(name, model)
                self._begin_unloads(model)
        with self._changed:
            every = (version.due for _, model in models for version in model.versions.values())
            return min((due for due in every if due is not None), default=math.inf)

    def _look_at(self, name: str, model: Model) -> None:
        """Find the versions of a model that are wanted, and those of them that somebody has mended."""
        with self._changed:
            if model.removed:
                return
            base, policy = Path(model.config.base_path), model.config.model_version_policy
        try:
            found = versions.directories(base)
        except OSError as error:  # what is served goes on: the directory may be back soon
            _log.error("Could not find base path %s for servable %s with error %s", base, name, error)
            return
        wanted = versions.chosen(found, policy)
        with self._changed:
            failed = [version for version in model.versions.values() if version.failed and version.number in wanted]
        looks = [(version, versions.looks(wanted[version.number])) for version in failed]
        with self._changed:
            if model.removed:
                return
            if not wanted and (model.wanted or not model.versions):
                _log.warning(
                    "No versions of servable %s found under base path %s. Did you forget to name your leaf directory "
                    "as a number (eg. '/1/')?", name, base,
                )  # fmt: skip
            model.want(wanted)
            for version, seen in looks:
                if version.looked_like != seen:
                    version.path, version.tries, version.due = wanted[version.number], 0, 0.0
                    version.state, version.problem = "START", None

    def _begin_loads(self, name: str, model: Model) -> None:
        for number, path in model.wanted.items():
            known = model.versions.get(number)
            if known is None or (known.state == "END" and known.problem is None):
                model.versions[number] = Version(number, path)
        now = time.monotonic()
        for number in sorted(model.wanted, reverse=True):
            version = model.versions[number]
            if version.due is not None and version.due <= now:
                version.state, version.due = "LOADING", None
                self._loads.submit(self._load_one, name, model, version)

    def _load_one(self, name: str, model: Model, version: Version) -> None:
        version.looked_like = versions.looks(version.path)
        _log.info("Loading servable version {name: %s version: %d}", name, version.number)
        try:
            servable = self._load(name, version.number, version.path)
        except Refusal as refusal:
            self._failed(name, version, refusal)
        except Exception as error:
            _log.exception("loading {name: %s version: %d} failed", name, version.number)
            self._failed(name, version, Refusal(Code.INTERNAL, f"{type(error).__name__}: {error}"))
        else:
            _log.info("Successfully loaded servable version {name: %s version: %d}", name, version.number)
            with self._changed:
                version.servable, version.state, version.problem = servable, "AVAILABLE", None
                model.choose_latest()
                self._changed.notify_all()
        self._work.set()

    def _failed(self, name: str, version: Version, problem: Refusal) -> None:
        _log.error("Loading servable: {name: %s version: %d} failed: %s", name, version.number, problem)
        with self._changed:
            version.problem = problem
            version.tries += 1
            if version.tries > self._retries:
                version.state = "END"
            else:
                version.due = time.monotonic() + self._retry_seconds
            self._changed.notify_all()

    def _begin_unloads(self, model: Model) -> None:
        """Unload what is not wanted, but nothing as long as that would leave a model with nothing to serve."""
        for number, version in model.versions.items():
            if version.due is not None and number not in model.wanted:
                version.state, version.due = "END", None
        available = model.numbers("AVAILABLE")
        if (self._keeping and not self._closed) or (model.wanted and available.isdisjoint(model.wanted)):
            return
        for number in sorted(available - model.wanted.keys()):
            model.versions[number].state = "UNLOADING"
            threading.Thread(
                target=self._unload, args=(model, model.versions[number]), name="unload", daemon=True
            ).start()
        model.choose_latest()

    def _unload(self, model: Model, version: Version) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not version.holders, HOLD_SECONDS)
            servable, version.servable = version.servable, None
        try:
            if servable is not None:
                servable.close()
        except Exception:
            _log.exception("unloading version %d of %s failed", version.number, version.path.parent)
        with self._changed:
            version.state = "END"
            for number in sorted(model.numbers("END") - model.wanted.keys())[:-KEPT_ENDED]:
                del model.versions[number]
            self._changed.notify_all()
        self._work.set()

    # Configuring

    def _list(self, entries: Mapping[str, Any], keeping: bool = False) -> None:
        """Make these the models; ``keeping`` unloads nothing until the next time."""
        with self._changed:
            self._keeping = keeping
            for name, model in self._models.items():
                if name not in entries:
                    model.remove()
            for name, entry in entries.items():
                model = self._models.setdefault(name, Model(entry))
                model.config, model.removed = entry, False

    def _settle(self, names: Iterable[str]) -> None:
        """Wait until each wanted version of these models is available or has failed once."""

        def settled() -> bool:
            models = [self._models[name] for name in names]
            wanted = [model.versions.get(number) for model in models for number in model.wanted]
            return all(version is not None and version.told for version in wanted)

        with self._changed:
            self._changed.wait_for(lambda: self._closed or settled())

    def _check_models(self, names: Iterable[str]) -> None:
        """Refuse where a new model has nothing to serve."""
        with self._changed:
            failed = [
                f"{{{{name: {name} version: {number}}} due to error: {version.problem}}}, "
                for name, model in ((name, self._models[name]) for name in sorted(names))
                for number, version in model.versions.items()
                if number in model.wanted and version.problem is not None and not model.numbers("AVAILABLE")
            ]
        if failed:
            raise Refusal(Code.UNKNOWN, f"{len(failed)} servable(s) did not become available: {{{''.join(failed)}}}")

    def _check_labels(self, entries: Mapping[str, Any]) -> None:
        """Refuse a label of a version that is not available, new labels only where that is not allowed."""
        with self._changed:
            for name, entry in entries.items():
                model = self._models[name]
                for label, number in entry.version_labels.items():
                    same_or_new = model.labels.get(label, number) == number
                    if number in model.numbers("AVAILABLE") or (same_or_new and self._labels_for_unavailable):
                        continue
                    raise Refusal(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {number} of model {name}, which is not currently "
                        "available for inference",
                    )
