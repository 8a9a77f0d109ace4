"""TensorFlow Serving's official image, or one like it, in a container of this machine's Docker engine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import psutil
from packaging.version import InvalidVersion, Version

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.errors import InputError, ServerUnreachable, ServingError, TfdeployError, VersionFailed
from tfdeploy_magic.jobs import Progress, Report
from tfdeploy_magic.serving import container_flags, control, docker_engine, hosting, state
from tfdeploy_magic.serving.configs import METRICS_PATH
from tfdeploy_magic.serving.container_guard import Guard
from tfdeploy_magic.serving.docker_engine import Engine, Usage, label
from tfdeploy_magic.serving.hosting import Host
from tfdeploy_magic.serving.http import check_port, reached

IMAGE = "tensorflow/serving:2.20.0"
"""The newest release of TensorFlow Serving."""

SECONDS = 300.0
"""How long a container may take until its model is served."""

QUICK_SECONDS = 3.0
"""How long the engine may take to say how a container is."""

LOG_LINES = 20
"""Lines that are kept of what a container has said."""

_GRPC, _REST = "8500/tcp", "8501/tcp"
_MODELS = "/models"
_CONFIG = "/config"
_LOOK_SECONDS = 0.5
"""How often a container is looked at while it starts."""

_THREADS = 4096
"""Processes and threads of a container: the server has several for each core of a large machine."""


@dataclass(frozen=True)
class ContainerSeen:
    """A container as it is at this moment, as far as the engine says.

    Args:
        container: Its short id; empty before there is one.
        image: What it was made of.
        digest: That image's, where it came from a registry.
        state: "running", "exited with status 1", or why nothing is known.
        cpu_percent: Of one core, since it was last looked at or started.
        memory: What it uses, bytes.
        memory_limit: What it may use, bytes; None for all there is.
        cpu_limit: Cores that it may use; None for all there are.
        log: The last lines that it has said.
    """

    container: str
    image: str
    digest: str | None
    state: str
    cpu_percent: float | None = None
    memory: int | None = None
    memory_limit: int | None = None
    cpu_limit: float | None = None
    log: tuple[str, ...] = ()


@dataclass
class ContainerHost(Host):
    """A container with one model; the versions that appear in its folder are served as they come.

    Args:
        image: The official one, or another whose entrypoint takes the flags of ``tensorflow_model_server``.
        pull: Whether it is fetched where it is not here.
        memory: What it may use at the most, "2g".
        cpus: How many cores it may use.
        host: The address to listen on.
        rest_api_port: Port of REST; a free one when None.
        grpc_port: Port of gRPC; a free one when None.
        timeout: Seconds until the model has to be served.
    """

    image: str = IMAGE
    pull: bool = False
    memory: str | None = None
    cpus: float | None = None
    host: str = "127.0.0.1"
    rest_api_port: int | None = None
    grpc_port: int | None = None
    timeout: float = SECONDS
    findings: tuple[Finding, ...] = field(default=(), init=False)
    container: str = field(default="", init=False)
    _token: str = field(default_factory=lambda: secrets.token_hex(3), init=False, repr=False)
    _engine: Engine | None = field(default=None, init=False, repr=False)
    _quick: Engine | None = field(default=None, init=False, repr=False)
    _guard: Guard | None = field(default=None, init=False, repr=False)
    _digest: str | None = field(default=None, init=False, repr=False)
    _used: Usage | None = field(default=None, init=False, repr=False)

    backend: ClassVar[str] = "docker"

    @property
    def alive(self) -> bool:
        """Whether it still runs; where the engine does not say, whether it still answers."""
        engine = self._quick
        if not self.container or engine is None:
            return False
        try:
            found = engine.inspect(self.container)
        except ServingError:
            return self._answers()
        return found is not None and bool(found["State"]["Running"])

    @property
    def ends(self) -> str:
        """Where it runs and when it ends."""
        return f"a container of {self.image}, which ends with this kernel"

    def seen_path(self, name: str) -> str:
        """Return where the container has the versions of a model."""
        return f"{_MODELS}/{name}"

    @property
    def folder(self) -> Path:
        """What the container has as ``/config``."""
        # No model has a name with this sign, and so none of them has this folder for its versions.
        return hosting.own_folder() / f"@{self._token}"

    def start(self, flags: Sequence[str], report: Report, *, gpu: bool) -> None:
        """Start it with its model, and return when that is served."""
        try:
            self._start(flags, report, gpu)
        except BaseException:
            self._end()
            self.take_away()
            raise

    def seen(self) -> ContainerSeen:
        """Return how it is now; quick, and without an engine what is known."""
        known = ContainerSeen(self.container[:12], self.image, self._digest, "gone")
        engine = self._quick
        if not self.container or engine is None:
            return known
        try:
            found = engine.inspect(self.container)
            if found is None:
                return known
            log = engine.log(self.container, LOG_LINES)
            used = engine.usage(self.container) if found["State"]["Running"] else None
        except ServingError as error:
            return replace(known, state=f"not known: {error.found}")
        limits = found["HostConfig"]
        seen = replace(
            known,
            state=_state(found["State"]),
            cpu_percent=_percent(self._used or _at_its_start(found["State"]), used),
            memory=used.memory if used is not None else None,
            memory_limit=limits["Memory"] or None,
            cpu_limit=limits["NanoCpus"] / 1e9 or None,
            log=log,
        )
        self._used = used
        return seen

    def take_away(self) -> None:
        """Take away what it has left on disk."""
        super().take_away()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Starting

    def _start(self, flags: Sequence[str], report: Report, gpu: bool) -> None:
        check(self.name, self.models)
        report.stage("asking the Docker engine")
        address = _address(self.host)
        for port in (self.rest_api_port or 0, self.grpc_port or 0):
            check_port(address, port)
        self._engine = docker_engine.connect()
        self._quick = docker_engine.connect(QUICK_SECONDS)
        clean_up(self._engine)
        self._fetch(report, gpu)
        report.stage("starting the container")
        command = self._configured(flags)
        ours = [hosted.base_path for hosted in self.models.values() if hosted.ours]
        self._guard = Guard(self._called, self._labels, [self.folder, *ours])
        what = f"the container of {self.name} cannot be started"
        self.container = self._engine.create(what, self.image, command, self._options(address, gpu))
        self._engine.start(what, self.container)
        self.grpc, rest = (f"{reached(address)}:{port}" for port in self._ports())
        self.url = f"http://{rest}"
        report.stage("loading the model")
        self._wait(report)
        self._guard.note(
            models=list(self.models),
            url=self.url,
            grpc=self.grpc,
            base_paths={name: str(hosted.base_path) for name, hosted in self.models.items()},
            kernel=os.getpid(),
            backend=self.backend,
            container=self.container[:12],
        )

    def _fetch(self, report: Report, gpu: bool) -> None:
        """See that the image is here, and what is to be known of it."""
        assert self._engine is not None
        official = self.image == IMAGE
        if gpu and official:
            self.image = f"{IMAGE}-gpu"
        found = self._engine.image(self.image)
        if found is None and self.pull:
            report.stage(f"pulling {self.image}")
            self._engine.pull(self.image, report.fraction)
            found = self._engine.image(self.image)
        if found is None:
            size = ("some GB" if gpu else "some hundred MB") if official else "all of its layers"
            raise ServingError(
                f"the image {self.image} is not on this machine",
                found="no such image",
                wanted="one that is here",
                cure=f"--pull fetches it, {size}; --image names another one.",
            )
        self._digest = next((each.rpartition("@")[2] for each in found.get("RepoDigests") or ()), None)
        self.findings = tuple(_findings(self.image, found.get("Architecture"), self._engine.architecture))

    def _configured(self, flags: Sequence[str]) -> list[str]:
        """Write what the server reads, and return its flags."""
        given = dict(container_flags.given(flags))
        self.folder.mkdir(parents=True)
        for name, value in given.items():
            if name in container_flags.FILES and value:
                container_flags.copy(name, Path(value).expanduser(), self.folder / name)
                given[name] = f"{_CONFIG}/{name}"
        monitoring = f'prometheus_config {{ enable: true path: "{METRICS_PATH}" }}\n'
        _write(self.folder / "monitoring.config", monitoring)
        self._write_models(
            hosted.lineup.config(name, self.seen_path(name), hosted.numbers()) for name, hosted in self.models.items()
        )
        settled = {
            "model_config_file": f"{_CONFIG}/models.config",
            "monitoring_config_file": f"{_CONFIG}/monitoring.config",
            "max_num_load_retries": "0",  # what cannot be loaded once cannot be loaded a minute later
            "allow_version_labels_for_unavailable_models": "true",  # or no label could be there from the start
            "prefer_tflite_model": "true",
        }
        return [f"--{name}={value}" for name, value in {**settled, **given}.items()]

    def _options(self, address: str, gpu: bool) -> dict[str, Any]:
        """Return how the container is made: with nothing but what a server needs."""
        from docker.types import DeviceRequest, LogConfig, Mount

        assert self._engine is not None
        security = self._engine.security
        mounts = [(str(hosted.base_path), self.seen_path(name)) for name, hosted in self.models.items()]
        options: dict[str, Any] = {
            "name": self._called,
            "labels": self._labels,
            "environment": {"MODEL_NAME": self.name},
            "mounts": [
                Mount(target, source, type="bind", read_only=True)
                for source, target in [*mounts, (str(self.folder), _CONFIG)]
            ],
            "ports": {_GRPC: (address, self.grpc_port), _REST: (address, self.rest_api_port)},
            # Root of an engine that is run by this user is this user; elsewhere its files want its own number.
            "user": "0:0" if "rootless" in security else f"{os.getuid()}:{os.getgid()}",
            "cap_drop": ["ALL"],
            # The label that SELinux wants on a mounted folder would stay there, for other programs to trip over.
            "security_opt": ["no-new-privileges", *(["label=disable"] if "selinux" in security else [])],
            "read_only": True,
            "tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777"},
            "pids_limit": _THREADS,
            "log_config": LogConfig(type="json-file", config={"max-size": "1m", "max-file": "2"}),
        }
        if "userns" in security:
            options["userns_mode"] = "host"
        if self.memory is not None:
            options |= {"mem_limit": self.memory, "memswap_limit": self.memory}
        if self.cpus is not None:
            options["nano_cpus"] = round(self.cpus * 1e9)
        if gpu:
            options["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
        return options

    @property
    def _called(self) -> str:
        """The name of the container."""
        return f"tfdeploy-{re.sub(r'[^a-zA-Z0-9_.-]', '_', self.name)[:40]}-{self._token}"

    @property
    def _labels(self) -> dict[str, str]:
        return {
            **docker_engine.person(),
            label("kernel"): f"{os.getpid()}-{psutil.Process().create_time():.2f}",
            label("model"): self.name,
            label("token"): self._token,
        }

    def _ports(self) -> tuple[int, int]:
        """Return where this machine reaches gRPC and REST."""
        assert self._engine is not None
        found = self._engine.inspect(self.container)
        bound = (found or {}).get("NetworkSettings", {}).get("Ports", {})
        if not (bound.get(_GRPC) and bound.get(_REST)):
            raise self._gone()
        return int(bound[_GRPC][0]["HostPort"]), int(bound[_REST][0]["HostPort"])

    def _wait(self, report: Report) -> None:
        """Return when the model is served, over gRPC and REST."""
        from tfdeploy_magic.serving.client import Client

        began = looked = time.monotonic()

        def waiting() -> None:
            nonlocal looked
            now = time.monotonic()
            report.pass_on(Progress(report.current, None, now - began))
            if now - looked > _LOOK_SECONDS:
                looked = now
                if not self.alive:
                    raise self._gone()
                if now - began > self.timeout:
                    raise self._too_slow()

        for name, hosted in self.models.items():
            wanted = hosted.lineup.versions(hosted.numbers())
            address = str(self.grpc)
            _patiently(lambda: control.wait_until_served(address, name, wanted, self.timeout, waiting), waiting)  # noqa: B023
            with Client(self.url_of(name), timeout=QUICK_SECONDS) as client:
                _patiently(client.status, waiting)

    # While it runs

    def _reload(self, name: str, config: Any, seconds: float, waiting: control.Waiting) -> None:
        super()._reload(name, config, seconds, waiting)
        self._write_models([config])  # so that a container that somebody starts again serves the same

    def _route(self, name: str) -> None:
        if self.models[name].lineup.split:
            raise ServingError(
                f"the requests of {name} cannot be split in a container",
                found="TensorFlow Serving, which has no router",
                wanted="the embedded server",
                cure="Leave --backend docker out, or let clients choose by version or label.",
            )

    def _write_models(self, configs: Sequence[Any] | Iterator[Any]) -> None:
        from google.protobuf import text_format

        from tfdeploy_magic.serving.protos import model_server_config_pb2

        listed = model_server_config_pb2.ModelServerConfig()
        listed.model_config_list.config.extend(configs)
        _write(self.folder / "models.config", text_format.MessageToString(listed))

    def _end(self) -> None:
        removed = self._engine is None
        if self._engine is not None:
            with contextlib.suppress(TfdeployError):
                self._engine.remove(self.container or self._called, self._labels)
                removed = True
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.dismiss(removed=removed)
        for engine in (self._engine, self._quick):
            if engine is not None:
                engine.close()
        self._engine = self._quick = None

    def _answers(self) -> bool:
        host, _, port = str(self.grpc).rpartition(":")
        with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), QUICK_SECONDS):
            return True
        return False

    # What went wrong

    def _gone(self) -> ServingError:
        seen = self.seen()
        starving = "out of memory" in seen.state
        return ServingError(
            f"the container of {self.name} is gone",
            found=f"{seen.state}{_last(seen.log)}",
            wanted=f"a container of {self.image} that runs",
            cure="Give it more: --memory 4g." if starving else "%serve MODEL starts another one.",
        )

    def _too_slow(self) -> VersionFailed:
        return VersionFailed(
            f"{self.name} is not served",
            found=f"nothing after {self.timeout:g} s{_last(self.seen().log)}",
            wanted="a model that is loaded within that time",
            cure="Give it more: --timeout 600.",
        )


def check(name: str, models: Mapping[str, object]) -> None:
    """Refuse what no container can serve.

    Raises:
        InputError: The name is no part of a path, or there are several models.
    """
    hosting.check_name(name)
    if list(models) != [name]:
        raise InputError(
            "a container serves one model",
            found=", ".join(models),
            wanted="one",
            cure="Serve each by itself: nothing can be mounted into a container that runs.",
        )


def clean_up(engine: Engine) -> None:
    """Remove the containers of this user whose kernels are gone; their guards were ended by force."""
    with contextlib.suppress(TfdeployError):
        for container, labels in engine.containers(docker_engine.person()):
            kernel = re.fullmatch(r"(\d+)-(\d+\.\d+)", labels.get(label("kernel"), ""))
            if kernel and label("token") in labels and not state.is_process(int(kernel[1]), float(kernel[2])):
                engine.remove(container, labels)


# Files


def _write(path: Path, text: str) -> None:
    """Write a file whole, or not at all: the server may read it at any moment."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


# Addresses


def _address(host: str) -> str:
    """Return an address as the engine takes it, which knows no names."""
    if ":" in host:
        return host
    try:
        return socket.gethostbyname(host)
    except OSError:
        raise ServingError(
            f"cannot listen on {host}",
            found="no such address",
            wanted="an address of this machine",
            cure="Leave --host out.",
        ) from None


def _patiently(ask: Callable[[], object], waiting: control.Waiting) -> None:
    """Ask until somebody answers."""
    while True:
        try:
            ask()
            return
        except ServerUnreachable:
            waiting()
            time.sleep(control.POLL_SECONDS)


# What is known of it


def _findings(image: str, architecture: str | None, here: str) -> Iterator[Finding]:
    theirs, ours = _version_of(image), _own_version()
    if theirs is not None and ours is not None and ours.release[:2] > theirs.release[:2]:
        yield Finding(
            "warning",
            "newer-tensorflow",
            f"the model was written by TensorFlow {ours} and is served by {theirs}, which may not load what a newer "
            "one wrote",
            "Compare the answers before you rely on it, or name a newer image with --image.",
        )
    if architecture and here and architecture != here:
        yield Finding(
            "warning",
            "emulated",
            f"the image is for {architecture} and this machine is {here}: it is emulated, slowly",
            "docker/Dockerfile of this project makes one for this machine: --image names it.",
        )


def _version_of(image: str) -> Version | None:
    """Return the release of an official image, by its tag; None of any other."""
    match = re.fullmatch(r"(?:docker\.io/)?tensorflow/serving:(\d+\.\d+\.\d+)(?:-gpu)?(?:@.*)?", image)
    return Version(match[1]) if match else None


def _own_version() -> Version | None:
    for package in ("tensorflow", "tensorflow-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError, InvalidVersion):
            return Version(importlib.metadata.version(package))
    return None


def _state(found: Mapping[str, Any]) -> str:
    """Return the state of a container in words."""
    status = str(found["Status"])
    if found.get("OOMKilled"):
        status += ", out of memory"
    elif status == "exited":
        status += f" with status {found['ExitCode']}"
    return status


def _at_its_start(found: Mapping[str, Any]) -> Usage:
    return Usage(0.0, docker_engine.seconds_of(found["StartedAt"]), 0)


def _percent(before: Usage, now: Usage | None) -> float | None:
    if now is None or now.seen <= before.seen:
        return None
    return 100 * (now.cpu_seconds - before.cpu_seconds) / (now.seen - before.seen)


def _last(log: Sequence[str]) -> str:
    """Return the last lines of a log as part of a sentence."""
    lines = [docker_engine.shortened(line.strip())[:160].rstrip(".") for line in log[-3:]]
    return "; its last lines: " + " / ".join(f'"{line}"' for line in lines) if lines else ""
