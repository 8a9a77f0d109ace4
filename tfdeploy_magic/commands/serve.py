"""``%serve``: the model in the kernel behind TensorFlow Serving's API, with no Docker; again, and it is swapped."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator, model_validator

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.commands.declaration import OnTheLine, Options, action, command
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.commands.export import ExportOptions, named_test, write_version
from tfdeploy_magic.errors import InputError, JobCancelled, NameNotFound, TfdeployError
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.jobs.progress import Listener

if TYPE_CHECKING:
    from tfdeploy_magic.artifacts.samples import SampleSet
    from tfdeploy_magic.serving.export import ExportedVersion
    from tfdeploy_magic.serving.hosting import Host
    from tfdeploy_magic.sources import Source
    from tfdeploy_magic.views.servers import Row


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

    @model_validator(mode="after")
    def _ports_differ(self) -> Serve:
        if self.rest_api_port is not None and self.rest_api_port == self.grpc_port:
            raise ValueError("give REST and gRPC a port each")
        return self

    @field_validator("flags")
    @classmethod
    def _can_be_split(cls, value: str) -> str:
        shlex.split(value)
        return value

    def data_to_find(self) -> tuple[str, ...]:
        """Test data: what a server answers is compared with the model, also where that is copied as it is."""
        with contextlib.closing(self.source()) as source:
            try:
                _ = source.inputs
            except NameNotFound:  # it has no signature that is asked by default
                return ()
        return ("test",)

    def server_flags(self) -> list[str]:
        """Return what was asked for besides the model, as flags of the server."""
        return [f"--host={self.host}", *shlex.split(self.flags)]


_SETTLED = {
    "model_name": "--name",
    "model_base_path": "--base-path",
    "rest_api_port": "--rest-api-port",
    "port": "--grpc-port",
    "host": "--host",
    "gpu": "--gpu",
}
"""Flags of the server that options of this verb set."""

_NOT_HERE = ("model_config_file", "ssl_config_file", "any_port", "prefer_tflite_model", "help", "version")
"""Flags of the server that would make it another one than the model's own, or that its own client does not speak."""

_KEPT = ("host", "in_kernel", "gpu", "flags")
"""Options that hold for as long as a server runs."""


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
    from tfdeploy_magic.commands import served_parity
    from tfdeploy_magic.serving import hosting

    report = Report(progress)
    with contextlib.closing(options.source()) as source, tempfile.TemporaryDirectory(prefix="tfdeploy-") as scratch:
        source.worker.listener = report.relay
        name = options.name or _servable_name(source)
        running = hosting.find(name)
        base_path = options.base_path or (running.base_path if running else hosting.own_folder() / name)
        options = _checked(options, name, base_path.expanduser().absolute(), running)
        exported = write_version(options, source, base_path, report)
        with _removed_when_it_fails(exported):
            test = named_test(options.test)
            samples = served_parity.samples_of(source, exported, test, Path(scratch) / "in", report)
            if running is None:
                host = _start(options, name, exported, report)
            else:
                host = running
                host.load(exported.version, options.timeout, report)
        with contextlib.ExitStack() as undone:
            if running is None:
                undone.callback(host.stop)  # nobody has heard of it yet
            endpoint = _compare(host, source, exported, samples, report)
            undone.pop_all()
        return endpoint


def _servable_name(source: Source) -> str:
    """Return what to call a model on the wire: its variable, or its file without numbers of versions."""
    name = source.name
    if isinstance(source.given, str | Path) and not name.isidentifier():
        path = source.value.absolute()
        path = path.parent if path.name == "saved_model.pb" else path
        path = path.parent if path.name.isdecimal() else path
        name = path.name if path.is_dir() else path.stem
    return re.sub(r"[^\w.-]", "_", name)


# What can be refused before any work is done


def _checked(options: Serve, name: str, base_path: Path, running: Host | None) -> Serve:
    """Refuse what cannot be, and return the options with the number of the version where that must be a certain one."""
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise InputError(
            "a model cannot be served by that name",
            found=f"'{name}'",
            wanted="a name of letters, digits, dots, dashes and underscores: it is part of its address",
            cure="Choose another: --name digits.",
        )
    _check_flags(options)
    if running is None:
        _check_address(options)
    else:
        _check_same(options, running)
    return _numbered(options, name, base_path, running)


def _check_flags(options: Serve) -> None:
    from tfdeploy_magic.serving import flags

    for word in shlex.split(options.flags):
        given = word.lstrip("-").partition("=")[0]
        if given in _SETTLED or given in _NOT_HERE:
            raise InputError(
                "--flags has one that does not belong there",
                found=word,
                wanted="flags that leave the server this model's own",
                cure=f"Write {_SETTLED[given]}." if given in _SETTLED else "!tfdeploy-serve --help lists them all.",
            )
    parsed = flags.parse(["--model_base_path=/", *options.server_flags()])
    if unknown := next((note for note in parsed.notes if note.startswith("unknown argument")), None):
        raise InputError(
            "--flags cannot be used",
            found=unknown.rstrip("?"),
            wanted="flags of tfdeploy-serve",
            cure="!tfdeploy-serve --help lists them all.",
        )


def _check_address(options: Serve) -> None:
    from tfdeploy_magic.serving.http import check_port

    for port in (options.rest_api_port or 0, options.grpc_port or 0):
        check_port(options.host, port)


def _check_same(options: Serve, running: Host) -> None:
    """Refuse to swap a model under a server that was asked to be another one."""
    found = {
        **running.asked,
        "base_path": running.base_path,
        "rest_api_port": _port(running.url),
        "grpc_port": _port(running.grpc),
    }
    for option in found.keys() & options.model_fields_set:
        asked = getattr(options, option)
        if asked in (None, found[option]) or (option == "base_path" and asked.expanduser().absolute() == found[option]):
            continue
        flag = f"--{option.replace('_', '-')}"
        raise InputError(
            f"{running.name} is served already, at {running.model_url}",
            found=f"another {flag}",
            wanted="the server as it runs",
            cure=f"Leave {flag} out to swap to a new version, or %serve --stop {running.name} first.",
        )


def _port(address: str | None) -> int | None:
    return int(address.rpartition(":")[2]) if address else None


def _numbered(options: Serve, name: str, base_path: Path, running: Host | None) -> Serve:
    """Return the options with a number that is served: the newest in its folder, and never one that was before."""
    from tfdeploy_magic.serving import hosting, version_folder

    there = base_path.resolve()
    others = (host for host in hosting.hosts.values() if host is not running)
    other = next((host for host in others if host.base_path.resolve() == there), None)
    if other is not None:
        raise InputError(
            f"{name} cannot have its versions in {base_path}",
            found=f"those of {other.name}, which is served from there",
            wanted="a folder for each model",
            cure=f"Choose another --base-path, or swap {other.name}: --name {other.name}.",
        )
    following = version_folder.number_of(base_path, "auto")
    if running is not None:
        following = max(following, running.newest + 1)
    if options.version is None:
        return options.model_copy(update={"version": following}) if running is not None else options
    version_folder.number_of(base_path, options.version)
    if options.version < following - 1:
        raise InputError(
            f"version {options.version} of {name} would not be served",
            found=f"version {following - 1} in {base_path}",
            wanted="a higher number: the highest is served",
            cure=f"Leave --version out and it becomes {following}.",
        )
    return options


@contextlib.contextmanager
def _removed_when_it_fails(exported: ExportedVersion) -> Iterator[None]:
    """Take a version away that is not served, so that nobody tries to load it again."""
    try:
        yield
    except BaseException:
        shutil.rmtree(exported.path, ignore_errors=True)
        raise


def _start(options: Serve, name: str, exported: ExportedVersion, report: Report) -> Host:
    from tfdeploy_magic.serving import hosting
    from tfdeploy_magic.serving.http import free_port

    hosting.clean_up()
    asked = {option: getattr(options, option) for option in _KEPT}
    host = hosting.Host(name, exported.base_path, options.base_path is None, options.in_kernel, asked=asked)
    host.worker.deadline = options.timeout
    rest, grpc = (port or free_port(options.host) for port in (options.rest_api_port, options.grpc_port))
    flags = [f"--rest_api_port={rest}", f"--port={grpc}", *options.server_flags()]
    host.start(exported.version, flags, report, gpu=options.gpu)
    return host


# What it answers


def _compare(
    host: Host, source: Source, exported: ExportedVersion, samples: SampleSet | None, report: Report
) -> Endpoint:
    """Ask the server what the model is asked, and keep what is known of it."""
    from tfdeploy_magic.commands import served_parity
    from tfdeploy_magic.serving.served import Served

    notes = (Finding("warning", "flag", note) for note in host.notes)
    told = {"lite"} if samples is None else {"lite", "not-measured", "copied"}
    endpoint = Endpoint(host.model_url, host.grpc, host)
    host.served = Served(
        version=exported.version,
        source=_described(source, exported),
        base_path=str(exported.base_path),
        size=exported.size,
        findings=(*notes, *(finding for finding in exported.findings if finding.code not in told)),
        lite=exported.signatures if exported.lite else None,
        in_kernel=host.in_kernel,
        replaced=host.served.version if host.served is not None else None,
    )
    if samples is not None:
        request = served_parity.example(source, exported, endpoint, samples)
        host.served = replace(host.served, request=request, request_file=_file(host, request))
        try:
            parity = served_parity.compare(source, exported, endpoint, samples, report)
            host.served = replace(host.served, parity=parity, tested=samples.name if parity else None)
        except JobCancelled:
            raise
        except TfdeployError as error:  # it is served, and that is worth to be known with this beside it
            message = f"its answers were not compared: {error.what}: found {error.found}"
            failed = Finding("error", "not-compared", message, error.cure)
            host.served = replace(host.served, findings=(failed, *host.served.findings))
    report.finish()
    host.served = replace(host.served, seconds=dict(report.seconds))
    return endpoint


def _file(host: Host, request: str | None) -> str | None:
    """Write a request down that is too long to be shown, and return where."""
    from tfdeploy_magic.views.endpoint import LONG

    if request is None or len(request) <= LONG:
        return None
    host.request_file.parent.mkdir(parents=True, exist_ok=True)
    host.request_file.write_text(request)
    return str(host.request_file)


def _described(source: Source, exported: ExportedVersion) -> str:
    from tfdeploy_magic.views import words

    name = words.path(Path(source.name))
    with contextlib.suppress(NameNotFound):  # a file with no signature that is asked by default
        return f"{name}: {(exported.model or source.model).description}"
    return name


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
            shown = "gRPC only", "–"
            if server.url is not None:
                seen = Endpoint(server.url_of(model)).glance()
                now = seen.states[0].state.lower() if seen.states else "not answering"
                serving = f"version {seen.version}" if seen.version is not None else now
                shown = serving, f"{sum(seen.metrics.requests.values()):,}" if seen.metrics else "–"
            url = server.url_of(model) if server.url else "–"
            yield Row(
                model, shown[0], url, server.grpc or "", shown[1], _owner(server.kernel, server.pid), server.started
            )


def _owner(kernel: int | None, pid: int) -> str:
    if kernel is None:
        return f"process {pid}"
    return "this kernel" if kernel == os.getpid() else f"the kernel {kernel}"
