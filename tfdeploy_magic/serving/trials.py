"""Servers on trial: a version that is served already, started once more beside that, with other flags."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tfdeploy_magic.errors import ServingError, TfdeployError
from tfdeploy_magic.jobs import Worker, silent
from tfdeploy_magic.jobs.progress import Listener
from tfdeploy_magic.serving import versions
from tfdeploy_magic.serving.hosting import Host

TUNED = frozenset(
    (
        *("enable_batching", "batching_parameters_file", "enable_per_model_batching_parameters"),
        *("tensorflow_session_parallelism", "tensorflow_intra_op_parallelism", "tensorflow_inter_op_parallelism"),
    )
)
"""Flags of the server that tuning sets."""

_NOT_SHARED = frozenset(
    ("grpc_socket_path", "request_log_file", "request_log_sampling_rate", "request_log_max_records")
)
"""Flags that no two servers may have alike."""

_TASKS = "tfdeploy_magic.serving.process"


@dataclass(frozen=True)
class Servable:
    """A version that is served, as another server is to serve it.

    Args:
        name: What the model is called on trial.
        path: The version's folder.
        flags: What a person has given its server besides what tuning sets.
        given: What they have given of what tuning sets.
        gpu: Whether it may use GPUs.
        backend: What it is served by, "embedded" or "docker".
    """

    name: str
    path: Path
    flags: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    gpu: bool = False
    backend: str = "embedded"


class Address(NamedTuple):
    """Where a server on trial is.

    Args:
        url: Of the model, over REST.
        grpc: Of its gRPC.
    """

    url: str
    grpc: str


def servable_of(host: Host, name: str, version: int) -> Servable:
    """Return a version of a model of a host of this process.

    Raises:
        ServingError: Its folder is gone.
    """
    base_path = host.models[name].base_path
    with contextlib.suppress(OSError):
        if (path := versions.directories(base_path).get(version)) is not None:
            words = shlex.split(str(host.asked.get("flags") or ""))
            return Servable(
                name=f"{name}.trial",
                path=path,
                flags=tuple(_split(words, TUNED)[1]),
                given=tuple(_split(words, TUNED)[0]),
                gpu=bool(host.asked.get("gpu")),
                backend=host.backend,
            )
    raise ServingError(
        f"version {version} of {name} cannot be served once more",
        found=f"no folder {version} in {base_path}",
        wanted="the folder that it was loaded from",
        cure="%serve MODEL writes the next version.",
    )


def _split(words: Sequence[str], names: frozenset[str]) -> tuple[list[str], list[str]]:
    """Return those words of a command line that are flags of these names with their values, and the others."""
    parts: tuple[list[str], list[str]] = [], []
    others = True
    for word in words:
        if word.startswith("--"):
            others = word[2:].partition("=")[0] not in names
        parts[others].append(word)
    return parts


@contextlib.contextmanager
def trial(servable: Servable, flags: Sequence[str], listener: Listener = silent) -> Iterator[Address]:
    """Serve a version on free ports for as long as this lasts; the server that has it already hears nothing of it.

    Args:
        servable: The version.
        flags: Of ``tfdeploy-serve``, besides those that its own server was given.
        listener: Told of the progress while it starts.

    Raises:
        TfdeployError: It cannot be served with these flags; nothing is left of it.
    """
    argv = [f"--model_name={servable.name}", "--prefer_tflite_model", "--any_port", "--file_system_poll_wait_seconds=0"]
    argv += [*(["--gpu"] if servable.gpu else []), *_split(servable.flags, _NOT_SHARED)[1], *flags]
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "") if servable.gpu else None
    with tempfile.TemporaryDirectory(prefix="tfdeploy-") as folder, Worker(listener=listener) as worker:
        # A folder with this version only: in its own a newer one may be, or come meanwhile.
        (Path(folder) / "1").symlink_to(servable.path.absolute(), target_is_directory=True)
        arguments = {"argv": [f"--model_base_path={folder}", *argv], "kernel": os.getpid(), "devices": devices}
        started = worker.call(f"{_TASKS}:start_task", arguments)
        yield Address(f"{started['url']}/v1/models/{servable.name}", started["grpc"])
        worker.listener = silent
        with contextlib.suppress(TfdeployError):
            worker.call(f"{_TASKS}:stop_task", {"model": servable.name})
