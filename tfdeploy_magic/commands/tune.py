"""``%tune``: the settings with which a served model answers most within a target for its p99, and what they gain."""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator, model_validator

from tfdeploy_magic.artifacts import store
from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.commands.declaration import OnTheLine, command
from tfdeploy_magic.commands.requests import LoadOptions
from tfdeploy_magic.errors import JobCancelled, ServingError, TfdeployError
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.jobs.progress import Listener, Progress

if TYPE_CHECKING:
    from tfdeploy_magic.commands.endpoint import Endpoint
    from tfdeploy_magic.serving.load import Load, Target
    from tfdeploy_magic.serving.trials import Address, Servable
    from tfdeploy_magic.serving.tuning import Duel, Grid, Settings, Trial, Tuning
    from tfdeploy_magic.views.figures import Figure

SEARCH_SHARE = 0.6
"""Of the time that there is, what the search gets; the rest is the duel's."""

WARM_SECONDS = 0.3
"""How long a server is asked before anything is measured: its first answers take longer."""

ANSWERS = 300
"""Answers that a trial is long enough for, where time allows; a p99 of fewer is little more than the longest."""

LAUNCH_SECONDS = 0.4
"""What a run takes besides its own seconds: the clients are a process of their own."""

_UNITS = {"": 1.0, "ms": 1.0, "s": 1000.0, "us": 0.001, "µs": 0.001}

_NOT_SAID: Any = None  # a value that a line may leave out, so that what is missing is said in words


class Tune(LoadOptions):
    """Find the batch size, timeout, threads and workers with which a model answers most requests within a target.

    Servers on trial are started beside the one that serves it, which is left as it is. What is found meets the
    defaults once more, and the batching parameters are written where they gain something.
    """

    p99: int | float = Field(
        _NOT_SAID, description="what 99 of 100 answers are to keep within: 20ms, 0.02s, or 20 for ms"
    )
    seconds: float = Field(60.0, ge=1, le=3600, description="how long all of it takes, about")
    output: Annotated[Path | None, OnTheLine(short="-o")] = Field(
        None, description="where the batching parameters go; NAME-batching.pbtxt when left out"
    )
    force: bool = Field(False, description="replace an existing file")

    @model_validator(mode="before")
    @classmethod
    def _has_a_target(cls, values: Any) -> Any:
        if values.get("p99") is None:
            raise ValueError("say what 99 of 100 answers are to keep within: --p99 20ms")
        return values

    @field_validator("p99", mode="before")
    @classmethod
    def _in_ms(cls, value: Any) -> Any:
        match = re.fullmatch(r"(\d+\.?\d*|\.\d+) ?(ms|s|us|µs)?", str(value).strip())
        milliseconds = float(match[1]) * _UNITS[match[2] or ""] if match else 0.0
        if not 0 < milliseconds < math.inf:
            raise ValueError("write a time above 0, as in 20ms, 0.02s, or 20 for milliseconds")
        return milliseconds


@dataclass(frozen=True)
class Tuned:
    """What tuning found.

    Args:
        name: What the model is called.
        url: Its REST address.
        tuning: What was tried, and the duel of the best with the defaults.
        path: The batching parameters file; None where none was worth writing.
        text: What is in it.
        flags: What ``%serve --flags`` takes for the chosen settings; empty where they are the defaults.
        model: What the model is called in this kernel.
        sent: What was sent, "x_test, 1 row a request".
        seconds: How long all of it took.
        findings: What was noticed before anything was measured.
    """

    name: str
    url: str
    tuning: Tuning
    path: Path | None
    text: str
    flags: str
    model: str
    sent: str
    seconds: float
    findings: tuple[Finding, ...] = ()

    @property
    def chosen(self) -> Settings:
        """The settings to serve with; the defaults where nothing was gained."""
        return self.tuning.chosen.settings

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Each of the settings that was tried, the defaults first."""
        return self.tuning.trials

    def figure(self) -> Figure:
        """Draw throughput against p99 of all trials, and the rounds of the duel."""
        from tfdeploy_magic.views import tuning_figures

        return tuning_figures.figure(self.tuning)

    def __repr__(self) -> str:
        return f"<Tuned {self.name}: {self.chosen}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from tfdeploy_magic.views import tuning as view

        shown = view.Shown(
            *(self.name, self.url, self.tuning, self.path, self.text, self.flags, self.model, self.sent),
            *(self.seconds, self.findings),
        )
        return view.mimebundle(shown)


@command("tune", Tune)
def tune(options: Tune, progress: Listener) -> Tuned:
    """Try settings on servers of their own, let the best meet the defaults, and write what gains something.

    Returns:
        The trials, the duel, and the file and flags to serve with.

    Raises:
        ServingError: The endpoint is not of this kernel, or cannot be served once more.
        DataError: There is nothing to send, or it does not fit the signature.
        RequestRefused: The model refuses the first request.
        OutputError: The file cannot be written where it was asked for.
    """
    from tfdeploy_magic.serving import tuning

    clock = _Clock(progress, options.seconds)
    clock.stage("looking at the model")
    with contextlib.closing(options.source()) as door, tempfile.TemporaryDirectory(prefix="tfdeploy-") as scratch:
        endpoint: Endpoint = door.endpoint
        servable = _servable(endpoint)
        output = (options.output or Path(f"{endpoint.name}-batching.pbtxt")).expanduser().absolute()
        store.check_writable(output, force=options.force)
        requests = list(options.requests(door.inputs, "tune"))
        stored = [endpoint.as_stored(request, options.signature) for request in requests]
        bench = _Bench(options, servable, stored, clock, Path(scratch))
        first = bench.first()
        trials = tuning.search(first, bench.measure, bench.grid, options.p99, may_go_on=bench.may_go_on)
        found = tuning.Tuning(options.p99, trials)
        if found.best is not found.defaults:
            found = replace(found, duel=bench.duel(found.best.settings))
        chosen = found.chosen.settings
        path = output if chosen.max_batch_size is not None else None
        text = ""
        if path is not None:
            clock.stage(f"writing {path.name}")
            said = f"Measured by %tune {endpoint.name} --p99 {options.p99:g}ms with {options.clients} clients"
            text = tuning.write_parameters(chosen, path, queue=bench.queue, said=said, force=options.force)
        flags = shlex.join((*servable.flags, *chosen.flags(path))) if found.gain != "nothing" else ""
        return Tuned(
            name=endpoint.name,
            url=endpoint.url,
            tuning=found,
            path=path,
            text=text,
            flags=flags,
            model=_model(endpoint),
            sent=options.sent,
            seconds=clock.elapsed,
            findings=tuple(bench.findings()),
        )


def _servable(endpoint: Endpoint) -> Servable:
    """Return the version that answers at an endpoint of this kernel."""
    from tfdeploy_magic.serving import hosting, trials

    host = endpoint.host or hosting.at(endpoint.url)
    if host is None or not host.alive:
        raise ServingError(
            f"{endpoint.name} cannot be tuned from here",
            found=f"a server that this kernel has not started, at {endpoint.url}"
            if host is None
            else "a server that ended",
            wanted="one of this kernel: others are started on trial with the version that it serves",
            cure="%serve MODEL starts one here; a SavedModel or a folder of versions does as MODEL, too.",
        )
    version = endpoint.version
    if version is None:
        raise ServingError(
            f"{endpoint.name} cannot be tuned",
            found="no version that is available",
            wanted="one that answers",
            cure="%serve --list shows what is served, and where.",
        )
    return trials.servable_of(host, endpoint.name, version)


def _model(endpoint: Endpoint) -> str:
    """Return what the model is called in this kernel, as it stands on a line."""
    made_of = endpoint.served.source.partition(": ")[0] if endpoint.served is not None else ""
    return shlex.quote(made_of) if made_of else "MODEL"


class _Clock:
    """Tells how much of the time is over, whatever is being done."""

    def __init__(self, listener: Listener, seconds: float) -> None:
        self._listener = listener
        self._seconds = seconds
        self._began = time.monotonic()
        self._stage = ""

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds until the end; 0 after it."""
        return max(0.0, self._seconds - self.elapsed)

    def stage(self, name: str) -> None:
        """Say what is done now."""
        self._stage = name
        self.listen()

    def listen(self, *_: Progress) -> None:
        """Tell the time, whenever a part of the work says how far that is."""
        elapsed = self.elapsed
        self._listener(Progress(self._stage, min(elapsed / self._seconds, 0.99), elapsed))


class _Bench:
    """Starts servers on trial and asks them.

    Args:
        options: What was asked for.
        servable: What they serve.
        stored: What they are asked.
        clock: Tells how far it is.
        scratch: A folder for their parameters.
    """

    def __init__(
        self, options: Tune, servable: Servable, stored: Sequence[Arrays], clock: _Clock, scratch: Path
    ) -> None:
        from tfdeploy_magic.serving import read_back, tuning

        self._options, self._servable, self._stored = options, servable, stored
        self._clock, self._scratch = clock, scratch
        self._lite = (servable.path / read_back.LITE_FILE).exists()
        self._together = False
        self._target: Target | None = None
        self._step, self._rate = options.seconds / 40, 0.0
        self._tried, self._longest = 0, 0.0
        self._cut_short = False
        self.queue = max(tuning.QUEUE, options.clients)

    @property
    def grid(self) -> Grid:
        """What is worth trying, as far as it is known."""
        from tfdeploy_magic.serving.tuning import Grid

        return Grid(
            in_flight=self._options.clients * self._options.rows,
            rows=self._options.rows,
            together=self._together,
            session=not self._lite,
            longest_micros=1000 * self._options.p99 / 2,
        )

    def may_go_on(self) -> bool:
        """Whether there is time for another trial like those so far."""
        in_time = self._clock.elapsed + self._longest <= SEARCH_SHARE * self._options.seconds
        self._cut_short = not in_time
        return in_time

    def first(self) -> Trial:
        """Try the defaults, and find out how to ask, for how long, and whether requests may go together.

        Raises:
            TfdeployError: The model cannot be served, or refuses what it is asked.
        """
        from tfdeploy_magic.serving.client import Client
        from tfdeploy_magic.serving.tuning import DEFAULTS, Trial, may_be_put_together

        over, signature = self._options.over, self._options.signature
        with self._timed(), self._served(DEFAULTS) as address, Client(address.url, grpc=address.grpc) as client:
            self._clock.stage("asking once")
            client.predict(self._stored[0], signature=signature, over=over)
            self._together = may_be_put_together(
                lambda request: client.predict(request, signature=signature, over=over), self._stored
            )
            self._target = client.target(self._stored, signature=signature, over=over)
            self._rate = self._asked(address, WARM_SECONDS).throughput
            shortest, longest = min(3.0, self._options.seconds / 40), self._options.seconds / 8
            self._step = min(max(shortest, ANSWERS / self._rate if self._rate else longest), longest)
            self._clock.stage(self._trying(DEFAULTS))
            return Trial(DEFAULTS, self._asked(address, self._step))

    def measure(self, settings: Settings) -> Trial:
        """Try settings; a server that cannot be started with them is a result, too."""
        from tfdeploy_magic.serving.tuning import Trial

        self._clock.stage(self._trying(settings))
        with self._timed():
            try:
                with self._served(settings) as address:
                    self._asked(address, WARM_SECONDS)
                    return Trial(settings, self._asked(address, self._step))
            except JobCancelled:
                raise
            except TfdeployError as error:
                return Trial(settings, problem=f"{error.what}: found {error.found}")

    def duel(self, settings: Settings) -> Duel:
        """Let settings and the defaults answer in turn, both up at once."""
        from tfdeploy_magic.serving.tuning import DEFAULTS, ROUNDS, Duel

        runs: dict[Settings, list[Load]] = {DEFAULTS: [], settings: []}
        self._clock.stage("starting both for the duel")
        with contextlib.ExitStack() as up:
            addresses = {each: up.enter_context(self._served(each)) for each in runs}
            for address in addresses.values():
                self._asked(address, WARM_SECONDS)
            shortest = min(max(0.2, ANSWERS / 3 / self._rate if self._rate else 0.0), self._options.seconds / 8)
            seconds = min(max(self._clock.left / (2 * ROUNDS) - LAUNCH_SECONDS, shortest), 5.0)
            for number in range(ROUNDS):
                self._clock.stage(f"the defaults against {settings}, round {number + 1} of {ROUNDS}")
                # Each goes first as often as the other, nearly: what drifts does so for both.
                for each in (DEFAULTS, settings) if number % 2 == 0 else (settings, DEFAULTS):
                    runs[each].append(self._asked(addresses[each], seconds))
        return Duel(tuple(runs[DEFAULTS]), tuple(runs[settings]))

    def findings(self) -> Iterator[Finding]:
        """Yield what is to be known of how it was measured."""
        if self._servable.backend != "embedded":
            yield Finding(
                "warning",
                "other-server",
                f"it is served by {self._servable.backend}, and was tried on this package's own server",
                "Serve it with these flags and let %loadtest say what they do there.",
            )
        if self._servable.given:
            yield Finding(
                "note",
                "given",
                f"its server was started with {shlex.join(self._servable.given)}, and the defaults here are without",
                "What is chosen takes their place.",
            )
        if not self._together:
            yield Finding(
                "note",
                "not-together",
                "requests were never put together: in one call they are answered otherwise than alone, or not at all, "
                "or there were too few that differ to say",
                "Give more than one sample, and inputs whose first dimension is open.",
            )
        if self._lite:
            yield Finding("note", "lite", "threads were not tried: LiteRT answers each call in one", "")
        if self._cut_short:
            enough = 10 * math.ceil(0.2 * self._options.seconds)
            yield Finding(
                "note", "cut-short", "the time was over before all was tried", f"--seconds {enough} tries more."
            )

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._tried += 1
        self._longest = max(self._longest, time.monotonic() - began)

    def _trying(self, settings: Settings) -> str:
        """Return what is being tried, and of how many: as many as there will be time for."""
        if not self._longest:
            return f"trying {settings}"
        more = (SEARCH_SHARE * self._options.seconds - self._clock.elapsed) / self._longest
        return f"trying {settings}, {self._tried + 1} of at most {self._tried + max(1, math.floor(more))}"

    @contextlib.contextmanager
    def _served(self, settings: Settings) -> Iterator[Address]:
        from tfdeploy_magic.serving import trials, tuning

        parameters = None
        if settings.max_batch_size is not None:
            parameters = self._scratch / f"{self._tried}.pbtxt"
            parameters.write_text(tuning.parameters_text(settings, self.queue))
        with trials.trial(self._servable, settings.flags(parameters), self._clock.listen) as address:
            yield address

    def _asked(self, address: Address, seconds: float) -> Load:
        from tfdeploy_magic.serving import load

        assert self._target is not None
        url = f"{address.url}:predict" if self._target.over == "rest" else address.grpc
        return load.run(
            replace(self._target, url=url),
            clients=self._options.clients,
            seconds=seconds,
            report=Report(self._clock.listen),
        )
