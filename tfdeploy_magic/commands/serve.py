"""``%serve``: the model in the kernel behind TensorFlow Serving's API, with no Docker; again, and it is swapped."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.commands.declaration import OnTheLine, Options, action, command
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.commands.export import ExportOptions, named_test, write_version
from tfdeploy_magic.errors import InputError, NameNotFound
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.jobs.progress import Listener

if TYPE_CHECKING:
    from tfdeploy_magic.serving.export import ExportedVersion
    from tfdeploy_magic.serving.hosting import Host
    from tfdeploy_magic.serving.served import Served
    from tfdeploy_magic.sources import Source
    from tfdeploy_magic.views.servers import Row

LONG = 400
"""Characters of a request above which examples read it from a file."""


class Serve(ExportOptions):
    """Serve a model by TensorFlow Serving's REST and gRPC API, in a process of its own that ends with this kernel.

    Typed again it writes the next version and swaps to it; no request is lost meanwhile.
    """

    name: str | None = Field(None, description="what clients call it; the variable's name when left out")
    base_path: Path | None = Field(
        None, description="where its versions are kept; a folder that goes with the server when left out"
    )
    rest_api_port: int | None = Field(None, gt=0, lt=65536, description="port of REST; a free one when left out")
    grpc_port: int | None = Field(None, gt=0, lt=65536, description="port of gRPC; a free one when left out")
    host: str = Field(
        "127.0.0.1", description="address to listen on; with any other, whoever reaches it can use the model"
    )
    in_kernel: bool = Field(False, description="serve from the kernel's own process, busy when the kernel is")
    gpu: bool = Field(False, description="use GPUs")
    flags: str = Field("", description="more flags of tfdeploy-serve, which are tensorflow_model_server's, in quotes")

    def data_to_find(self) -> tuple[str, ...]:
        """Test data: what a server answers is compared with the model, also where that is copied as it is."""
        return ("test",)

    def server_flags(self) -> list[str]:
        """Return what was asked for besides the model, as flags of the server."""
        return [f"--host={self.host}", *shlex.split(self.flags)]


@command("serve", Serve)
def serve(options: Serve, progress: Listener) -> Endpoint:
    """Write a version, start a server or swap to it, and compare what it answers with the model.

    Returns:
        The endpoint: ``.predict(x)``, ``.url``, ``.grpc``, ``.status()``, ``.metrics()``, ``.stop()``.

    Raises:
        InputError: Something named cannot be used; nothing was started.
        UserCodeError: The model's call(), or a function, raised.
        VersionFailed: The server cannot load it; a version before it is still served.
        ServingError: The server did not start.
    """
    # Loading the extension imports every verb, and has no need of what this one does.
    from tfdeploy_magic.serving import hosting

    report = Report(progress)
    with contextlib.closing(options.source()) as source, tempfile.TemporaryDirectory(prefix="tfdeploy-") as scratch:
        source.worker.listener = report.relay
        name = options.name or _servable_name(source.name)
        _check(options, name)
        host = hosting.find(name)
        if host is not None:
            _check_same(options, host)
        base_path = options.base_path or (host.base_path if host else hosting.own_folder() / name)
        exported = write_version(options, source, base_path, report)
        before = Endpoint(host.model_url, host.grpc).version if host is not None else None
        with _removed_when_it_fails(exported):
            if host is None:
                ours = options.base_path is None
                host = hosting.Host(name, exported.base_path, ours, options.in_kernel, flags=options.flags)
                host.start(_flags(options), report, gpu=options.gpu)
            else:
                host.load(exported.version, options.timeout, report)
        endpoint = Endpoint(host.model_url, host.grpc)
        served = _compared(options, source, exported, endpoint, Path(scratch), report)
        report.finish()
        notes = tuple(Finding("note", "flag", note) for note in host.notes)
        return replace(
            endpoint,
            served=replace(
                served,
                findings=(*served.findings, *notes),
                seconds=dict(report.seconds),
                in_kernel=host.in_kernel,
                replaced=before,
            ),
        )


def _servable_name(name: str) -> str:
    """Return what to call a model on the wire: its variable, or its file without numbers of versions."""
    path = Path(name)
    stem = path.parent.name if path.name.isdecimal() and path.parent.name else path.stem or name
    return re.sub(r"[^\w.-]", "_", stem)


def _check(options: Serve, name: str) -> None:
    """Refuse, before any work is done, what the server would refuse."""
    from tfdeploy_magic.serving import flags

    if re.search(r"[/:\s]", name) or not name:
        raise InputError(
            "a model cannot be served by that name",
            found=f"'{name}'",
            wanted="a name without slashes, colons and spaces: it is part of its address",
            cure="Choose another: --name digits.",
        )
    flags.parse([f"--model_name={name}", "--model_base_path=/", *options.server_flags()])


def _check_same(options: Serve, host: Host) -> None:
    """Refuse to swap a model under a server that was asked to be another one."""
    asked = {
        "--base-path": options.base_path is not None and options.base_path.expanduser().absolute() != host.base_path,
        "--rest-api-port": options.rest_api_port not in (None, _port(host.url)),
        "--grpc-port": options.grpc_port not in (None, _port(host.grpc)),
        "--in-kernel": options.in_kernel and not host.in_kernel,
        "--flags": bool(options.flags) and options.flags != host.flags,
    }
    if changed := next((flag for flag, differs in asked.items() if differs), None):
        raise InputError(
            f"{host.name} is served already, at {host.model_url}",
            found=f"another {changed}",
            wanted="the server as it runs",
            cure=f"Leave {changed} out to swap to a new version, or %serve --stop {host.name} first.",
        )


def _port(address: str | None) -> int | None:
    return int(address.rpartition(":")[2]) if address else None


def _flags(options: Serve) -> list[str]:
    from tfdeploy_magic.serving.http import free_port

    rest, grpc = (port or free_port(options.host) for port in (options.rest_api_port, options.grpc_port))
    return [f"--rest_api_port={rest}", f"--port={grpc}", *options.server_flags()]


@contextlib.contextmanager
def _removed_when_it_fails(exported: ExportedVersion) -> Iterator[None]:
    """Take a version away that is not served, so that nobody tries to load it again."""
    try:
        yield
    except BaseException:
        shutil.rmtree(exported.path, ignore_errors=True)
        raise


def _compared(
    options: Serve,
    source: Source,
    exported: ExportedVersion,
    endpoint: Endpoint,
    folder: Path,
    report: Report,
) -> Served:
    """Ask the server what the model is asked, and return what is known of it."""
    from tfdeploy_magic.commands import served_parity
    from tfdeploy_magic.serving.served import Served

    model = exported.model or source.model
    lite = {signature.name: signature for signature in (model.signature,)} if exported.lite else None
    served = Served(
        version=exported.version,
        source=f"{source.name}: {model.description}",
        base_path=str(exported.base_path),
        size=exported.size,
        findings=exported.findings,
        lite=lite,
    )
    asking = replace(endpoint, served=served)
    parity = served_parity.compare(source, exported, asking, named_test(options.test), folder, report)
    if parity.first is None:
        return served
    request = _request(asking.as_stored(parity.first))
    file = None
    if len(request) > LONG:
        file = str(_write_request(endpoint.name, request))
    findings = tuple(finding for finding in exported.findings if finding.code not in ("not-measured", "copied", "lite"))
    served = replace(served, findings=findings)
    return replace(served, parity=parity.evidence, tested=parity.tested, request=request, request_file=file)


def _request(inputs: Arrays) -> str:
    """Return the JSON that asks about these inputs, by row."""
    plain = {name: _plain(array) for name, array in inputs.items()}
    rows: list[Any] = next(iter(plain.values()))
    if len(plain) > 1:
        rows = [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
    return json.dumps({"instances": rows})


def _plain(array: Any) -> list[Any]:
    if array.dtype.kind in "SO":
        return [_text(value) for value in array.ravel()] if array.ndim == 1 else [_plain(row) for row in array]
    import orjson

    # As short as the number can be told: 0.1 and not 0.10000000149011612.
    return list(orjson.loads(orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)))


def _text(value: bytes | str) -> Any:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}  # type: ignore[arg-type]


def _write_request(name: str, request: str) -> Path:
    from tfdeploy_magic.serving import hosting

    path = hosting.own_folder() / f"{name}-request.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(request)
    return path


class ListServers(Options):
    """Show the model servers of yours that run on this machine, and what they serve."""


@dataclass(frozen=True)
class Servers:
    """The model servers that run.

    Args:
        rows: Each model of each server.
        stopped: The models that have just been stopped.
    """

    rows: tuple[Row, ...]
    stopped: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from tfdeploy_magic.views import servers

        return servers.mimebundle(self.rows, self.stopped)


@action(serve, "list", ListServers)
def list_servers(options: ListServers, progress: Listener) -> Servers:
    """Ask each server how it is.

    Returns:
        One row for each model.
    """
    report = Report(progress)
    report.stage("asking the servers")
    rows = tuple(_rows())
    report.finish()
    return Servers(rows)


class StopServing(Options):
    """Stop serving a model, or all that this kernel serves; those of other kernels are stopped by name."""

    name: Annotated[str | None, OnTheLine(positional=True)] = Field(None, description="what the model is served as")
    all: bool = Field(False, description="stop every server that this kernel has started")

    @model_validator(mode="after")
    def _one_of_them(self) -> StopServing:
        if (self.name is None) != self.all:
            raise ValueError("name a model, or --all")
        return self


@action(serve, "stop", StopServing)
def stop_serving(options: StopServing, progress: Listener) -> Servers:
    """End servers; requests that are being answered still are.

    Returns:
        Those that still run.

    Raises:
        NameNotFound: No server has a model of that name.
    """
    from tfdeploy_magic.serving import hosting

    report = Report(progress)
    report.stage("stopping")
    names = tuple(hosting.hosts) if options.name is None else (options.name,)
    for name in names:
        if not hosting.stop_everywhere(name):
            known = ", ".join(dict.fromkeys(row.model for row in _rows()))
            raise NameNotFound(
                f"no server serves '{name}'",
                found=known or "no server of yours on this machine",
                wanted="one that runs",
                cure="%serve --list shows them all.",
            )
    report.finish()
    return Servers(tuple(_rows()), names)


def _rows() -> Iterator[Row]:
    from tfdeploy_magic.serving import state
    from tfdeploy_magic.views.servers import Row

    for server in state.running():
        for model in server.models:
            endpoint = Endpoint(server.url_of(model), server.grpc)
            states, metrics = endpoint.glance() if server.url else ([], None)
            serving = next((found.version for found in states if found.state == "AVAILABLE"), None)
            yield Row(
                model,
                f"version {serving}" if serving is not None else "not answering" if not states else states[0].state,
                server.url_of(model) if server.url else "–",
                server.grpc or "",
                f"{sum(metrics.requests.values()):,}" if metrics else "–",
                _owner(server.kernel, server.pid),
                server.started,
            )


def _owner(kernel: int | None, pid: int) -> str:
    if kernel is None:
        return f"process {pid}"
    return "this kernel" if kernel == os.getpid() else f"kernel {kernel}"
