"""The Docker engine, through its SDK: how it is reached, what it is asked, and its refusals in words."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from tfdeploy_magic.errors import InputError, ServerUnreachable, ServingError
from tfdeploy_magic.serving import state

SECONDS = 60.0
"""How long the engine may take to answer."""

STOP_SECONDS = 1
"""How long a container may take to end by itself: the official image ignores SIGTERM."""

INSTALL = 'pip install "tfdeploy-magic[docker]"'

_DOWNLOAD = 0.7
"""Share of a layer's time that is spent on the network; the rest on unpacking it."""


def label(name: str) -> str:
    """Return what a label of ours is called."""
    return f"tfdeploy_magic.{name}"


def person() -> dict[str, str]:
    """Return the labels that say whose a container is: this user's, among the processes that this one sees.

    Another container of this machine may have its name and share its engine, and no process in common with it.
    """
    labels = {label("uid"): str(os.getuid()), label("machine"): state.machine()}
    with contextlib.suppress(OSError):  # of Linux only
        labels[label("processes")] = str(Path("/proc/self/ns/pid").readlink())
    return labels


@dataclass(frozen=True)
class Usage:
    """What a container uses.

    Args:
        cpu_seconds: CPU time since it was started.
        seen: When that was, seconds on the engine's clock.
        memory: Bytes, without files that are only cached.
    """

    cpu_seconds: float
    seen: float
    memory: int


class Engine:
    """A Docker engine that answers.

    Args:
        client: The SDK's.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    @property
    def version(self) -> str:
        """As it calls itself, "20.10.24"."""
        with _told("the Docker engine cannot be asked"):
            return str(self._client.version()["Version"])

    @property
    def security(self) -> frozenset[str]:
        """What it confines containers by, "rootless" or "selinux" among them."""
        with _told("the Docker engine cannot be asked"):
            options = self._client.info().get("SecurityOptions") or ()
        return frozenset(re.findall(r"name=(\w+)", " ".join(options)))

    @property
    def architecture(self) -> str:
        """Of its machine, "amd64"."""
        with _told("the Docker engine cannot be asked"):
            return str(self._client.version()["Arch"])

    # Images

    def image(self, reference: str) -> dict[str, Any] | None:
        """Return what is known of an image; None where it is not here."""
        with _told(f"the image {reference} cannot be used"), _none_where_there_is_none():
            found: dict[str, Any] = self._client.api.inspect_image(reference)
            return found
        return None

    def pull(self, reference: str, fraction: Callable[[float], None]) -> None:
        """Fetch an image.

        Args:
            reference: "tensorflow/serving:2.20.0"; the tag ``latest`` where none is named.
            fraction: Told how much of it is here, 0 to 1.

        Raises:
            ServingError: It cannot be.
        """
        layers: dict[str, float] = {}
        with (
            _told(f"the image {reference} cannot be fetched", _FETCHING),
            contextlib.closing(self._client.api.pull(reference, stream=True, decode=True)) as events,
        ):
            for event in events:
                if "error" in event:
                    raise _Failed(str(event["error"]))
                _count(layers, event)
                if layers:
                    fraction(sum(layers.values()) / len(layers))

    # Containers

    def create(self, what: str, image: str, command: list[str], options: Mapping[str, Any]) -> str:
        """Make a container, which does not run yet, and return its id.

        Args:
            what: What is to fail, in an error.
            image: What it is made of.
            command: Arguments of the image's entrypoint.
            options: Of the SDK's ``containers.create``.
        """
        with _told(what):
            return str(self._client.containers.create(image, command, **options).id)

    def start(self, what: str, container: str) -> None:
        """Start a container."""
        with _told(what):
            self._client.api.start(container)

    def inspect(self, container: str) -> dict[str, Any] | None:
        """Return what is known of a container, by its id or name; None where there is none."""
        with _told("the container cannot be looked at"), _none_where_there_is_none():
            found: dict[str, Any] = self._client.api.inspect_container(container)
            return found
        return None

    def log(self, container: str, lines: int) -> tuple[str, ...]:
        """Return the last lines that a container has said; none where it is gone."""
        with _told("the container's log cannot be read"), _none_where_there_is_none():
            said = self._client.api.logs(container, tail=lines).decode(errors="replace")
            return tuple(line.rstrip() for line in said.splitlines() if line.strip())[-lines:]
        return ()

    def usage(self, container: str) -> Usage | None:
        """Return what a container uses now; None where it does not run."""
        from docker.errors import InvalidVersion

        too_old = contextlib.suppress(InvalidVersion)
        with _told("the container cannot be measured"), too_old, _none_where_there_is_none():
            # One look: the engine takes a second for two.
            return _usage(self._client.api.stats(container, stream=False, one_shot=True))
        return None

    def containers(self, labels: Mapping[str, str]) -> list[tuple[str, dict[str, str]]]:
        """Return the id and labels of each container that has these labels, whether it runs or not."""
        wanted = [f"{name}={value}" for name, value in labels.items()]
        with _told("the containers cannot be listed"):
            listed = self._client.api.containers(all=True, filters={"label": wanted})
        return [(each["Id"], dict(each["Labels"] or {})) for each in listed]

    def remove(self, container: str, labels: Mapping[str, str]) -> None:
        """End and remove a container if it has these labels, all of them; a name alone says nothing.

        Args:
            container: Its id or name.
            labels: What it was labelled with.
        """
        found = self.inspect(container)
        if found is None or not labels.items() <= (found["Config"]["Labels"] or {}).items():
            return
        with _told("the container cannot be removed"), _none_where_there_is_none():
            if found["State"]["Running"]:
                self._client.api.stop(found["Id"], timeout=STOP_SECONDS)
            self._client.api.remove_container(found["Id"], v=True, force=True)


def connect(seconds: float = SECONDS) -> Engine:
    """Return the engine that ``DOCKER_HOST`` or Docker's current context names, or the one of this machine.

    Args:
        seconds: How long it may take to answer, each time.

    Raises:
        InputError: The SDK is not installed.
        ServerUnreachable: No engine answers, or this user may not ask it.
    """
    try:
        from docker import from_env  # a folder called docker can be imported too, and has none
    except ImportError:
        raise InputError(
            "containers cannot be used",
            found="no Docker SDK for Python",
            wanted="the extra docker of this package",
            cure=f"{INSTALL} brings it; the embedded backend needs none.",
        ) from None
    with _told("the Docker engine cannot be reached", _CONNECTING):
        return Engine(from_env(timeout=seconds))


def shortened(text: str) -> str:
    """Return text with the person's home folder as "~"."""
    home = str(Path.home())
    return text if home == "/" else re.sub(rf"{re.escape(home)}(?=/|\W|$)", "~", text)


# Refusals


class _Failed(Exception):
    """What the engine said in the middle of an answer."""


class _Refusal(NamedTuple):
    """How a refusal is told, by what the engine says; in its own words where ``found`` is empty."""

    pattern: str
    found: str
    wanted: str
    cure: str
    kind: type[ServingError | InputError] = ServingError


_REFUSALS = (
    _Refusal(
        r"no space left|disk quota exceeded",
        "no space left on the engine's disk",
        "some GB",
        "docker system df shows what takes it; docker image prune frees what nothing uses.",
    ),
    _Refusal(
        r"port is already allocated|address already in use|ports are not available",
        "another program at its port",
        "a free port of this machine",
        "Choose another port, or leave it out and a free one is found.",
    ),
    _Refusal(
        r"cannot assign requested address",
        "an address of another machine",
        "one of this machine's",
        "Leave --host out.",
    ),
    _Refusal(
        r"bind source path does not exist|mounts denied|not shared|file sharing|invalid mount config|error mounting",
        "",
        "an engine on this machine that may mount the folder",
        "Choose another --base-path. Docker Desktop has a list of folders that may be mounted; an engine on another "
        "machine sees none of this one's.",
    ),
    _Refusal(
        r"could not select device driver|nvidia",
        "no GPU that the engine can hand out",
        "the NVIDIA Container Toolkit",
        "Install it, or leave --gpu out.",
    ),
    _Refusal(
        r"invalid reference|must be lowercase",
        "",
        "the name of an image, as tensorflow/serving:2.20.0",
        "Write --image NAME:TAG.",
        InputError,
    ),
    _Refusal(
        r"minimum memory|range of cpus|invalid memory|must be in the format|not a valid.*size",
        "",
        "limits that this machine can keep",
        "Choose another --memory or --cpus.",
        InputError,
    ),
    _Refusal(
        r"executable file not found|no such file or directory|no command specified",
        "",
        "an image whose entrypoint takes the flags of tensorflow_model_server",
        "Leave --image out and the official one is used.",
    ),
)

_FETCHING = (
    _Refusal(
        r"toomanyrequests|rate limit",
        "too many requests from this address",
        "an image",
        "Wait, or log in at the registry with docker login.",
    ),
    _Refusal(
        r"pull access denied|requested access|unauthorized|authentication required|no basic auth|forbidden",
        "no such image, or one that only others may have",
        "an image of that registry",
        "Look at its name; docker login logs you in.",
    ),
    _Refusal(
        r"no matching manifest|exec format error",
        "an image for another kind of processor",
        "one for this machine's",
        "docker/Dockerfile of this project makes one that is; name it with --image.",
    ),
    _Refusal(
        r"manifest unknown|manifest for .* not found|not found: manifest|resolve reference.*: not found",
        "no such tag at its registry",
        "one that is there",
        "Look at its tags: hub.docker.com/r/tensorflow/serving/tags lists the official ones.",
    ),
    _Refusal(
        r"dial tcp|no such host|handshake|timeout|unreachable|proxyconnect|x509|connection re|\bEOF\b",
        "no way to its registry",
        "a network that reaches it",
        "Try again with one, or bring the image from another machine: docker save, docker load.",
    ),
)


_CONNECTING = (
    _Refusal(
        r"bind address|paramiko|tls|certificate|scheme",
        "",
        "an address that leads to an engine of this machine",
        "%env DOCKER_HOST=unix:///var/run/docker.sock is the usual one.",
    ),
)


@contextlib.contextmanager
def _none_where_there_is_none() -> Iterator[None]:
    """Take it for done where the thing is gone, or goes by somebody else's hand."""
    from docker.errors import APIError, NotFound

    try:
        yield
    except NotFound:
        pass
    except APIError as error:
        if "already in progress" not in str(error.explanation):
            raise


@contextlib.contextmanager
def _told(what: str, refusals: Sequence[_Refusal] = ()) -> Iterator[None]:
    """Tell what the SDK, and the libraries below it, raise as one sentence with its cure."""
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (APIError, _Failed) as error:
        said = error.explanation if isinstance(error, APIError) else error
        raise _refused(what, str(said or error), refusals) from None
    except (DockerException, RequestException, HTTPError, OSError) as error:
        raise _unreachable(what, error) or _refused(what, str(error), refusals) from None


def _refused(what: str, said: str, refusals: Sequence[_Refusal]) -> ServingError | InputError:
    words = shortened(" ".join(said.split()))[:300].rstrip(". ")
    for refusal in (*_REFUSALS, *refusals):
        if re.search(refusal.pattern, said, re.IGNORECASE):
            return refusal.kind(what, found=refusal.found or words, wanted=refusal.wanted, cure=refusal.cure)
    return ServingError(
        what, found=words or "no reason", wanted="an engine that does it", cure="docker info says how the engine is."
    )


def _unreachable(what: str, error: BaseException) -> ServerUnreachable | None:
    """Return why no engine answers; None where it is something else."""
    from requests.exceptions import ChunkedEncodingError, ConnectionError, RequestException, Timeout
    from urllib3.exceptions import HTTPError

    seen = _chain(error)
    lost = (ConnectionError, ChunkedEncodingError, HTTPError)
    where = shortened(os.environ.get("DOCKER_HOST", "")) or "its usual address"
    wanted = "a Docker engine that this user may ask"
    if any(isinstance(each, PermissionError) for each in seen) or "ermission denied" in str(error):
        return ServerUnreachable(
            what,
            found=f"no permission to ask the engine at {where}",
            wanted=wanted,
            cure="sudo usermod -aG docker $USER adds you to its group; then log in again and restart the kernel.",
        )
    if any(isinstance(each, Timeout | TimeoutError) for each in seen) or "timed out" in str(error):
        found = f"no answer in time from the engine at {where}"
    elif any(
        isinstance(each, lost) or (isinstance(each, OSError) and not isinstance(each, RequestException))
        for each in seen
    ):
        found = f"no engine at {where}"
    else:
        return None
    return ServerUnreachable(
        what,
        found=found,
        wanted=wanted,
        cure="Start Docker, or say where it listens: %env DOCKER_HOST=unix:///path/docker.sock; the embedded backend "
        "needs none.",
    )


def _chain(error: BaseException | None) -> list[BaseException]:
    """Return an error, and those that it came of: as causes, or among the arguments."""
    found: list[BaseException] = []
    left = [error]
    while left:
        each = left.pop()
        if isinstance(each, BaseException) and each not in found:
            found.append(each)
            left += [each.__cause__, each.__context__, *(arg for arg in each.args if isinstance(arg, BaseException))]
    return found


# What the engine says, read


def seconds_of(time: str) -> float:
    """Return a time of the engine as seconds since 1970; it has more digits than Python reads."""
    return datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*", r"\1", time)).timestamp()


def _count(layers: dict[str, float], event: Mapping[str, Any]) -> None:
    """Note how much of a layer is here by an event of a pull."""
    layer, status = event.get("id"), str(event.get("status", ""))
    detail = event.get("progressDetail") or {}
    share = detail.get("current", 0) / detail["total"] if detail.get("total") else 0.0
    done = {
        "Pulling fs layer": 0.0,
        "Downloading": _DOWNLOAD * share,
        "Download complete": _DOWNLOAD,
        "Extracting": _DOWNLOAD + (1 - _DOWNLOAD) * share,
        "Pull complete": 1.0,
        "Already exists": 1.0,
    }.get(status)
    if layer is not None and done is not None:
        layers[str(layer)] = max(done, layers.get(str(layer), 0.0))


def _usage(stats: Mapping[str, Any]) -> Usage | None:
    memory = stats.get("memory_stats") or {}
    if "usage" not in memory:
        return None
    more = memory.get("stats") or {}
    cached = more.get("total_inactive_file", more.get("inactive_file", 0))  # of cgroups 1 and 2, as docker stats has it
    return Usage(
        stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9,
        seconds_of(stats["read"]),
        max(0, memory["usage"] - cached),
    )
