"""``%serve``: the model in the kernel behind TensorFlow Serving's API, with no Docker; again, and it is swapped."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.commands.declaration import FromKernel, OnTheLine, Options, action, command
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.commands.export import ExportOptions, named_test, write_version
from tfdeploy_magic.errors import InputError, JobCancelled, NameNotFound, TfdeployError
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.jobs.progress import Listener, silent

if TYPE_CHECKING:
    from tfdeploy_magic.artifacts.samples import SampleSet
    from tfdeploy_magic.artifacts.signature import Signature
    from tfdeploy_magic.serving.export import ExportedVersion
    from tfdeploy_magic.serving.hosting import Host, Hosted
    from tfdeploy_magic.serving.lineup import Arm, Lineup
    from tfdeploy_magic.serving.served import Served
    from tfdeploy_magic.sources import Source
    from tfdeploy_magic.views.endpoint import Seen
    from tfdeploy_magic.views.servers import Row


class Serve(ExportOptions):
    """Serve a model by TensorFlow Serving's REST and gRPC API, on a server of its own that ends with this kernel.

    Typed again it writes the next version and swaps to it; no request is lost meanwhile.
    """

    rival: Annotated[Any, FromKernel("model"), OnTheLine(positional=True)] = Field(
        None, description="a second model that gets a share of the requests to the first: --split 90/10"
    )
    name: str | None = Field(None, description="what clients call it; the variable's name when left out")
    label: str | None = Field(
        None,
        pattern=r"^\w*[A-Za-z_]\w*$",
        description="what this version is called: /labels/canary; others stay loaded",
    )
    split: str | None = Field(
        None, description="who answers requests that name no version: 90/10, or stable=90,canary=10 (labels, versions)"
    )
    keep: int | None = Field(None, gt=0, description="versions that stay loaded, the newest ones; 1 when left out")
    base_path: Path | None = Field(
        None, description="where its versions are kept; a folder that goes with the server when left out"
    )
    backend: Literal["embedded", "docker"] = Field(
        "embedded", description="this package's own server, or TensorFlow Serving's image in a container"
    )
    image: str | None = Field(None, description="another image than tensorflow/serving:2.20.0, with --backend docker")
    pull: bool = Field(False, description="fetch the image where it is not here, with --backend docker")
    memory: str | None = Field(
        None, pattern=r"^\d+[kmg]?$", description="what a container may use at the most: 2g, with --backend docker"
    )
    cpus: float | None = Field(None, gt=0, description="CPUs that a container may use, with --backend docker")
    rest_api_port: int | None = Field(None, gt=0, lt=65536, description="port of REST; a free one when left out")
    grpc_port: int | None = Field(None, gt=0, lt=65536, description="port of gRPC; a free one when left out")
    host: str = Field(
        "127.0.0.1", description="address to listen on; with any other, whoever reaches it can use the model"
    )
    in_kernel: bool = Field(False, description="serve from the kernel's own process, busy when the kernel is")
    gpu: bool = Field(False, description="use GPUs")
    flags: str = Field("", description="more flags of tfdeploy-serve, which are tensorflow_model_server's, in quotes")

    @model_validator(mode="after")
    def _go_together(self) -> Serve:
        if self.rest_api_port is not None and self.rest_api_port == self.grpc_port:
            raise ValueError("give REST and gRPC a port each")
        docker = self.backend == "docker"
        for option in ("image", "pull", "memory", "cpus"):
            if getattr(self, option) and not docker:
                raise ValueError(f"--{option} is for --backend docker")
        if docker and self.in_kernel:
            raise ValueError("--in-kernel and --backend docker do not go together")
        if docker and self.split is not None:
            raise ValueError("--split is for this package's own server: TensorFlow Serving's has no router")
        if (self.rival is not None) and self.split is None:
            raise ValueError("two models need to know who gets how much: --split 90/10")
        for option in ("label", "version", "base_path"):
            if self.rival is not None and getattr(self, option) is not None:
                raise ValueError(f"--{option.replace('_', '-')} is for one model, and there are two")
        return self

    @field_validator("flags")
    @classmethod
    def _can_be_divided(cls, value: str) -> str:
        shlex.split(value)
        return value

    @field_validator("split")
    @classmethod
    def _adds_up(cls, value: str | None) -> str | None:
        from tfdeploy_magic.serving.lineup import shares_of

        if value is not None:
            shares_of(value)
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

    def of_the_rival(self) -> Serve:
        """Return what was asked for, of the second model."""
        return self.model_copy(update={"model": self.rival, "rival": None, "name": None, "split": None})


_KEPT = ("backend", "image", "memory", "cpus", "host", "in_kernel", "gpu", "flags")
"""Options that hold for as long as a server runs."""

LOAD_SECONDS = 600.0
"""How long a version may take to be loaded that was served before."""


@dataclass(frozen=True)
class _Made:
    """A version that is written and not yet served."""

    name: str
    source: Source
    exported: ExportedVersion
    samples: SampleSet | None


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
    from tfdeploy_magic.commands.serve_checks import check_rival, checked, numbered
    from tfdeploy_magic.serving import hosting

    report = Report(progress)
    with contextlib.ExitStack() as held:
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="tfdeploy-")))
        source = held.enter_context(contextlib.closing(options.source()))
        name = options.name or _servable_name(source)
        running = hosting.find(name)
        base_path = options.base_path or _folder(running, name)
        options = checked(options, name, base_path.expanduser().absolute(), running)
        if running is not None:
            held.enter_context(running.standing_still())
        unserved = held.enter_context(contextlib.ExitStack())
        made = [_write(options, name, source, base_path, _known(running, name), scratch, report, unserved)]
        if options.rival is not None:
            rival = options.of_the_rival()
            other = held.enter_context(contextlib.closing(rival.source()))
            its_name = _servable_name(other)
            check_rival(name, its_name, running)
            folder = _folder(running, its_name)
            rival = numbered(rival, its_name, folder, running)
            like = made[0].exported.signatures
            made.append(_write(rival, its_name, other, folder, like, scratch, report, unserved))
        lineup = _lineup(options, running, made)
        host = running or _start(options, name, made[0].exported, report)
        if running is None:
            unserved.callback(host.stop)  # nobody has heard of it yet
        for each in made[1:]:
            _add(host, each, options, report, unserved)
        if running is None and lineup.followed and lineup.keep == 1 and not lineup.split:
            host.models[name].lineup = lineup  # that is how it was started
        else:
            host.change(name, lineup, options.timeout, report)
        hosting.register(host)
        unserved.pop_all()
        with contextlib.ExitStack() as unheard:
            if running is None:
                unheard.callback(host.stop)
            for each in made:
                _compare(host, each, report)
            unheard.pop_all()
        _show_together(host, made)
    label = f"/labels/{options.label}" if options.label is not None and options.split is None else ""
    return Endpoint(f"{host.url_of(name)}{label}", host.grpc, host)


def _servable_name(source: Source) -> str:
    """Return what to call a model on the wire: its variable, or its file without numbers of versions."""
    name = source.name
    if isinstance(source.given, str | Path) and not name.isidentifier():
        path = source.value.absolute()
        path = path.parent if path.name == "saved_model.pb" else path
        path = path.parent if path.name.isdecimal() else path
        name = path.name if path.is_dir() else path.stem
    return re.sub(r"[^\w.-]", "_", name)


def _folder(running: Host | None, name: str) -> Path:
    """Return where a model's versions are, or go where nobody chose a folder."""
    from tfdeploy_magic.serving import hosting

    if running is not None and name in running.models:
        return running.models[name].base_path
    return hosting.own_folder() / name


def _known(running: Host | None, name: str) -> Mapping[str, Signature]:
    """Return the signatures that clients of a model know."""
    served = running.models[name].served if running is not None and name in running.models else None
    return served.signatures if served is not None else {}


def _write(
    options: Serve,
    name: str,
    source: Source,
    base_path: Path,
    like: Mapping[str, Signature],
    scratch: Path,
    report: Report,
    unserved: contextlib.ExitStack,
) -> _Made:
    """Write a version; ``unserved`` takes it away again, so that nobody tries to load what was not served."""
    from tfdeploy_magic.commands import served_parity

    source.worker.listener = report.relay
    exported = write_version(options, source, base_path, report, like=like)
    unserved.callback(shutil.rmtree, exported.path, ignore_errors=True)
    test = named_test(options.test)
    return _Made(
        name, source, exported, served_parity.samples_of(source, exported, test, scratch / f"in-{name}", report)
    )


def _start(options: Serve, name: str, exported: ExportedVersion, report: Report) -> Host:
    from tfdeploy_magic.serving import hosting
    from tfdeploy_magic.serving.http import free_port

    hosting.clean_up()
    asked = {option: getattr(options, option) for option in _KEPT}
    version = exported.version
    hosted = hosting.Hosted(exported.base_path, options.base_path is None, newest=version, loaded=(version,))
    models = {name: hosted}
    if options.backend == "docker":
        from tfdeploy_magic.serving.containers import IMAGE, ContainerHost

        container = ContainerHost(
            name,
            models,
            asked,
            image=options.image or IMAGE,
            pull=options.pull,
            memory=options.memory,
            cpus=options.cpus,
            host=options.host,
            rest_api_port=options.rest_api_port,
            grpc_port=options.grpc_port,
            timeout=options.timeout,
        )
        container.start(shlex.split(options.flags), report, gpu=options.gpu)
        return container
    from tfdeploy_magic.serving.embedded import EmbeddedHost

    host = EmbeddedHost(name, models, asked, in_kernel=options.in_kernel)
    host.worker.deadline = options.timeout
    rest, grpc = (port or free_port(options.host) for port in (options.rest_api_port, options.grpc_port))
    flags = [f"--rest_api_port={rest}", f"--port={grpc}", *options.server_flags()]
    host.start(flags, report, gpu=options.gpu)
    return host


# Which versions are served


def _lineup(options: Serve, running: Host | None, made: Sequence[_Made]) -> Lineup:
    """Return what is to be served of the first model that was written.

    Raises:
        InputError: The shares do not fit, or the arms do not take and give the same.
    """
    from tfdeploy_magic.serving.hosting import Hosted
    from tfdeploy_magic.serving.lineup import STABLE, Arm, arms_of, shares_of

    name, exported = made[0].name, made[0].exported
    number = exported.version
    hosted = running.models[name] if running is not None else Hosted(exported.base_path, ours=False)
    older = [each for each in hosted.numbers() if each != number]
    latest = max(hosted.loaded if running is not None else older, default=None)
    lineup = hosted.lineup.with_version(number, latest=latest, label=options.label, keep=options.keep)
    if options.split is None:
        return lineup
    known = [Arm(each.name, 0, each.name) for each in made]
    if len(made) == 1 and options.label not in (None, STABLE) and STABLE in lineup.labels:
        known = [Arm(label, 0, name, label=label) for label in (STABLE, str(options.label))]
    elif len(made) == 1:
        known = [Arm(str(each), 0, name, version=each) for each in (latest, number) if each is not None]
    arms = arms_of(shares_of(options.split), name, known, labels=lineup.labels, found=hosted.numbers())
    doors: dict[tuple[str, int | None], _Doors] = {}
    doors |= {(each.name, each.exported.version): _Doors.of(each.exported) for each in made}
    doors |= {(name, version): _Doors.of(served) for version, served in hosted.known.items()}
    newest = {each.name: each.exported.version for each in made}
    check_arms(name, arms, {arm.name: doors.get((arm.model, _version_of(arm, lineup, newest))) for arm in arms})
    return replace(lineup, split=arms, before=lineup.before or replace(lineup, split=()))


def _version_of(arm: Arm, lineup: Lineup, newest: Mapping[str, int]) -> int | None:
    if arm.label is not None:
        return lineup.labels[arm.label]
    return arm.version if arm.version is not None else newest.get(arm.model)


def _add(host: Host, made: _Made, options: Serve, report: Report, unserved: contextlib.ExitStack) -> None:
    """Have a server serve a second model; ``unserved`` makes it serve what it did before."""
    from tfdeploy_magic.serving.hosting import Hosted

    name, number = made.name, made.exported.version
    former = host.models[name].lineup if name in host.models else None
    hosted = host.models.setdefault(name, Hosted(made.exported.base_path, ours=True))
    unserved.callback(_without, host, name, former)
    lineup = hosted.lineup.with_version(number, latest=max(hosted.loaded, default=None), label=None)
    host.change(name, lineup, options.timeout, report)


def _without(host: Host, name: str, former: Lineup | None) -> None:
    """Have a server serve of a second model what it served before, or nothing."""
    with contextlib.suppress(TfdeployError):
        if former is None:
            host.drop(name)
        elif host.models[name].lineup is not former:
            host.change(name, former.back_to(host.models[name].lineup), LOAD_SECONDS, Report(silent))


@dataclass(frozen=True)
class _Doors:
    """What a version takes and gives.

    Args:
        signatures: By their keys.
        lite: Whether it is a .tflite file, whose integers have scales of their own.
    """

    signatures: Mapping[str, Signature]
    lite: bool

    @classmethod
    def of(cls, version: ExportedVersion | Served) -> _Doors:
        return cls(version.signatures, bool(version.lite))

    @property
    def scaled(self) -> bool:
        """Whether its integers stand for other numbers."""
        specs = (spec for each in self.signatures.values() for spec in (*each.inputs, *each.outputs))
        return self.lite and any(spec.quantized for spec in specs)


def check_arms(name: str, arms: Sequence[Arm], doors: Mapping[str, _Doors | None]) -> None:
    """Refuse arms of which one cannot answer what another is asked.

    Args:
        name: The model whose requests are split.
        arms: Its arms.
        doors: Arm -> what it takes and gives; None where this process does not know.

    Raises:
        InputError: They take or give something else.
    """
    first, *others = arms
    known = [each for each in doors.values() if each is not None]
    if any(each.scaled for each in known):
        raise InputError(
            f"{name} cannot be split between {' and '.join(arm.name for arm in arms)}",
            found="a .tflite that takes or gives integers by scales of its own",
            wanted="arms that take and give the same numbers",
            cure="Convert it with float32 inputs and outputs: --io float32.",
        )
    reference = doors[first.name]
    for arm in others:
        door = doors[arm.name]
        for key, signature in reference.signatures.items() if reference is not None and door is not None else ():
            assert door is not None
            other = door.signatures.get(key)
            wanted = ", ".join(map(str, signature.inputs))
            found = ", ".join(map(str, other.inputs)) if other is not None else ""
            if other is None or found != wanted:
                raise InputError(
                    f"{arm.name} cannot answer what {first.name} is asked",
                    found=f"{found} in signature {key}" if other is not None else f"no signature {key}",
                    wanted=wanted,
                    cure="Give both inputs of the same name, shape and dtype: --preprocess puts code before them.",
                )


# What it answers


def _compare(host: Host, made: _Made, report: Report) -> None:
    """Ask the server what the model is asked, and keep what is known of it."""
    from tfdeploy_magic.commands import served_parity
    from tfdeploy_magic.serving.served import Served

    exported, samples, hosted = made.exported, made.samples, host.models[made.name]
    told = {"lite"} if samples is None else {"lite", "not-measured", "copied"}
    before = hosted.lineup.before.newest if hosted.lineup.before is not None else None
    gone = before in hosted.known and before not in hosted.loaded
    served = Served(
        version=exported.version,
        source=_described(made.source, exported),
        base_path=str(exported.base_path),
        size=exported.size,
        findings=(*host.findings, *(finding for finding in exported.findings if finding.code not in told)),
        lite=exported.signatures if exported.lite else None,
        signatures=exported.signatures,
        ends=host.ends,
        replaced=before if gone else None,
    )
    hosted.known[served.version] = served
    if samples is not None:
        # The version itself: others may answer a part of those who name none.
        endpoint = Endpoint(f"{host.url_of(made.name)}/versions/{served.version}", host.grpc, host)
        request = served_parity.example(made.source, exported, endpoint, samples)
        served = replace(served, request=request, request_file=_file(host, request))
        try:
            parity = served_parity.compare(made.source, exported, endpoint, samples, report)
            served = replace(served, parity=parity, tested=samples.name if parity else None)
        except JobCancelled:
            raise
        except TfdeployError as error:  # it is served, and that is worth to be known with this beside it
            message = f"its answers were not compared: {error.what}: found {error.found}"
            failed = Finding("error", "not-compared", message, error.cure)
            served = replace(served, findings=(failed, *served.findings))
        finally:
            endpoint.client.close()
    report.finish()
    hosted.known[served.version] = replace(served, seconds=dict(report.seconds))


def _show_together(host: Host, made: Sequence[_Made]) -> None:
    """Let the card of the first model tell of the second one's answers too."""
    first, *others = (host.models[each.name].known[each.exported.version] for each in made)
    parity = dict(first.parity)
    for each, served in zip(made[1:], others, strict=True):
        parity |= {f"{each.name}: {against}": evidence for against, evidence in served.parity.items()}
    host.models[made[0].name].known[first.version] = replace(first, parity=parity)


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


class Promote(Options):
    """Let one arm, label or version of a served model answer all requests that name none.

    The label stable goes to it where there are labels.
    """

    name: Annotated[str, OnTheLine(positional=True)] = Field(description="what the model is served as")
    what: Annotated[str | None, OnTheLine(positional=True)] = Field(
        None, description="an arm, a label or a version; what is on trial when left out"
    )


@action(serve, "promote", Promote)
def promote(options: Promote, progress: Listener) -> Endpoint:
    """Load it where it is not, move the label, and end the split.

    Returns:
        The endpoint, whose card shows who answers now.

    Raises:
        InputError: Nothing is on trial, or this kernel serves no such model.
        NameNotFound: There is no such arm, label or version.
        VersionFailed: It cannot be loaded; all is as it was.
    """
    name = options.name
    return _changed(name, lambda hosted: hosted.lineup.promoted(name, options.what, hosted.numbers()), progress)


class RollBack(Options):
    """Serve what was served before the last new version, label, split or promotion."""

    name: Annotated[str, OnTheLine(positional=True)] = Field(description="what the model is served as")


@action(serve, "rollback", RollBack)
def roll_back(options: RollBack, progress: Listener) -> Endpoint:
    """Load the versions that were served before, and unload the others; each is still on disk.

    Returns:
        The endpoint, whose card shows who answers now.

    Raises:
        InputError: Nothing was served before, or this kernel serves no such model.
        VersionFailed: One cannot be loaded; all is as it was.
    """
    return _changed(options.name, lambda hosted: hosted.lineup.rolled_back(options.name), progress)


class Route(Options):
    """Change the shares of a split, or begin one between versions and labels that are served already."""

    name: Annotated[str, OnTheLine(positional=True)] = Field(description="what the model is served as")
    shares: Annotated[str, OnTheLine(positional=True)] = Field(
        description="50/50 for the arms as they are, or stable=50,canary=50 (labels, versions, models)"
    )

    @field_validator("shares")
    @classmethod
    def _add_up(cls, value: str) -> str:
        from tfdeploy_magic.serving.lineup import shares_of

        shares_of(value)
        return value


@action(serve, "route", Route)
def route(options: Route, progress: Listener) -> Endpoint:
    """Split the requests anew; what was counted of the split before is counted from zero.

    Returns:
        The endpoint, whose card shows the arms.

    Raises:
        InputError: The shares do not fit, or this kernel serves no such model.
        NameNotFound: A name is no label, version or model of this server.
    """
    from tfdeploy_magic.serving.lineup import Arm, arms_of, shares_of

    host, name = _own(options.name), options.name

    def split(hosted: Hosted) -> Lineup:
        shares, labels, numbers = shares_of(options.shares), hosted.lineup.labels, hosted.numbers()
        models = [Arm(each, 0, each) for each in host.models]
        known = list(hosted.lineup.split)
        if not known and len(models) > 1:
            known = sorted(models, key=lambda arm: arm.model != name)
        elif not known:
            known = [Arm(label, 0, name, label=label) for label in sorted(labels, reverse=True)]
        if shares[0][0] is not None:
            known += [arm for arm in models if arm.name not in {each.name for each in known} and len(models) > 1]
        arms = arms_of(shares, name, known, labels=labels, found=numbers)
        newest = {model: max(each.loaded, default=0) for model, each in host.models.items()}
        served = {
            arm.name: host.models[arm.model].known.get(_version_of(arm, hosted.lineup, newest) or 0) for arm in arms
        }
        check_arms(name, arms, {arm: _Doors.of(each) if each is not None else None for arm, each in served.items()})
        return hosted.lineup.with_split(arms)

    return _changed(options.name, split, progress)


def _changed(name: str, lineup: Callable[[Hosted], Lineup], progress: Listener) -> Endpoint:
    host = _own(name)
    report = Report(progress)
    report.stage("asking the server")
    host.change(name, lineup(host.models[name]), LOAD_SECONDS, report)
    report.finish()
    return Endpoint(host.url_of(name), host.grpc, host)


def _own(name: str) -> Host:
    """Return the server of this kernel that has a model of that name.

    Raises:
        InputError: Another kernel's has it.
        NameNotFound: None has.
    """
    from tfdeploy_magic.serving import hosting, state

    if (host := hosting.find(name)) is not None:
        return host
    other = next((server for server in state.running() if name in server.models), None)
    if other is not None:
        raise InputError(
            f"what {name} serves is decided elsewhere",
            found=f"a server of {_owner(other.kernel, other.pid)}",
            wanted="a server that this kernel has started",
            cure="Type this line in that notebook.",
        )
    raise _unknown(name)


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
    stopped: list[str] = []
    for name in tuple(hosting.hosts) if options.name is None else (options.name,):
        if not (models := hosting.stop_everywhere(name)):
            raise _unknown(name)
        stopped += models
    report.finish()
    return Servers(tuple(_rows()), tuple(stopped))


def _unknown(name: str) -> NameNotFound:
    known = ", ".join(dict.fromkeys(row.model for row in _rows()))
    return NameNotFound(
        f"no server serves '{name}'",
        found=known or "no server of yours on this machine",
        wanted="one that runs",
        cure="%serve --list shows them all.",
    )


def _rows() -> Iterator[Row]:
    from tfdeploy_magic.serving import state
    from tfdeploy_magic.views.servers import Row

    for server in state.running():
        for model in server.models:
            shown: tuple[str | tuple[str, str], str] = "gRPC only", "–"
            if server.url is not None:
                seen = Endpoint.at(server.url_of(model)).glance()
                shown = _serving(seen), f"{sum(seen.metrics.requests.values()):,}" if seen.metrics else "–"
            url = server.url_of(model) if server.url else "–"
            owner = _owner(server.kernel, server.pid)
            belongs = owner if server.container is None else (owner, f"container {server.container}")
            yield Row(model, shown[0], url, server.grpc or "", shown[1], belongs, server.started)


def _serving(seen: Seen) -> str | tuple[str, str]:
    """Say which versions answer, with their labels or shares below."""
    there = [state.version for state in seen.states if state.state == "AVAILABLE"]
    if not there:
        return seen.states[0].state.lower() if seen.states else "not answering"
    said = f"version{'s' if len(there) > 1 else ''} {', '.join(map(str, there))}"
    below = [f"{label} {number}" for label, number in sorted(seen.labels.items(), key=lambda label: -label[1])]
    below += [f"{arm.name} {100 * arm.share:.4g}%" for arm in seen.arms]
    return (said, ", ".join(below)) if below else said


def _owner(kernel: int | None, pid: int) -> str:
    if kernel is None:
        return f"process {pid}"
    return "this kernel" if kernel == os.getpid() else f"the kernel {kernel}"
