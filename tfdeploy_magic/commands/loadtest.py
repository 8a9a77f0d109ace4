"""``%loadtest``: what a served model bears, and how long its answers take meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from tfdeploy_magic.artifacts.signature import Arrays, Signature, TensorSpec
from tfdeploy_magic.commands.declaration import command
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.commands.predict import AskOptions
from tfdeploy_magic.errors import DataError
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.jobs.progress import Listener
from tfdeploy_magic.sources.samples import NamedData, arrays_of

if TYPE_CHECKING:
    from tfdeploy_magic.serving.load import Load, Saturation
    from tfdeploy_magic.views.figures import Figure

DIFFERENT = 64
"""Different requests that are sent in turn, at the most."""

STEP_SECONDS = 2.0
"""How long each number of clients is tried for the saturation curve, at the most."""


@dataclass(frozen=True)
class _Door:
    """An endpoint as data is looked for: its name and what it takes."""

    endpoint: Endpoint
    signature: Signature

    @property
    def name(self) -> str:
        return self.endpoint.name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.endpoint.inputs(self.signature)

    def close(self) -> None:
        """End the connections."""
        self.endpoint.client.close()


class LoadTest(AskOptions):
    """Ask a served model with many clients at once: throughput, latency, failures, and where it is saturated.

    Samples that fit are found in the kernel when none are named.
    """

    over: Literal["rest", "grpc"] = Field("rest", description="which of its two APIs")
    clients: int = Field(8, gt=0, le=1024, description="how many ask at once, each waiting for its answer")
    seconds: float = Field(10.0, gt=0, le=3600, description="how long they do")
    rows: int = Field(1, gt=0, description="samples in each request")
    no_saturation: bool = Field(False, description="leave out the runs with 1, 2, 4, ... clients")

    def data_to_find(self) -> tuple[str, ...]:
        """Samples to send."""
        return ("x",)

    def source(self) -> Any:
        """Return what the endpoint takes."""
        endpoint = self.opened()
        return _Door(endpoint, self.signed(endpoint))


@dataclass(frozen=True)
class LoadTested:
    """What many clients saw of a served model.

    Args:
        name: What the model is called.
        url: Its REST address.
        load: The run that was asked for.
        saturation: Runs with fewer clients up to that many; None where they were left out.
        sent: What was sent, "x_test, 1 row a request".
    """

    name: str
    url: str
    load: Load
    saturation: Saturation | None
    sent: str

    def figure(self) -> Figure:
        """Draw latency, the run second by second, and the saturation curve."""
        from tfdeploy_magic.views import load_figures

        return load_figures.figure(self.load, self.saturation)

    def __repr__(self) -> str:
        return f"<LoadTested {self.name}: {self.load.throughput:.0f} answers/s, {self.load.failed} failed>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from tfdeploy_magic.views import load as view

        return view.mimebundle(self.name, self.url, self.load, self.saturation, self.sent)


@command("loadtest", LoadTest)
def loadtest(options: LoadTest, progress: Listener) -> LoadTested:
    """Ask with more and more clients for a short while, and then with all of them for as long as was asked.

    Returns:
        Throughput, latencies, failures and the saturation curve.

    Raises:
        DataError: There is nothing to send, or it does not fit the signature.
        ServerUnreachable: Nothing answers at the address.
        RequestRefused: The server refuses the first request.
    """
    from tfdeploy_magic.serving import load  # loading the extension has no need of it

    report = Report(progress)
    report.stage("asking once")
    door = options.source()
    endpoint, specs = door.endpoint, door.inputs
    requests = list(_requests(options.given, specs, options.rows))
    endpoint.predict(requests[0], signature=options.signature, over=options.over)  # a refusal is better met here
    stored = [endpoint.as_stored(request, options.signature) for request in requests]
    target = endpoint.client.target(stored, signature=options.signature, over=options.over)
    curve = None
    if not options.no_saturation and options.clients > 1:
        step = min(STEP_SECONDS, options.seconds / 4)
        curve = load.saturation(target, clients=options.clients, seconds=step, report=report)
    found = load.run(target, clients=options.clients, seconds=options.seconds, report=report)
    report.finish()
    rows = f"{options.rows} row{'s' if options.rows > 1 else ''} a request"
    return LoadTested(endpoint.name, endpoint.url, found, curve, f"{_name(options.x)}, {rows}")


def _name(data: Any) -> str:
    """Return what data is called, without the labels, which nobody sends."""
    return data.name.removesuffix(f", {data.labels_name}") if isinstance(data, NamedData) else "data"


def _requests(data: Any, specs: tuple[TensorSpec, ...], rows: int) -> Iterator[Arrays]:
    """Yield inputs of some rows each, cut from a person's data."""
    columns = arrays_of(data, specs) if data is not None else None
    if columns is None:
        raise DataError(
            "there is nothing to send",
            found="no data that fits" if data is None else f"a {type(data).__name__}",
            wanted=" and ".join(map(str, specs)),
            cure="Name some: %loadtest ENDPOINT x_test.",
        )
    arrays = [np.asarray(column) for column in columns]
    count = min(map(len, arrays))
    if count < rows:
        raise DataError(
            "there are too few samples for one request",
            found=f"{count}",
            wanted=f"{rows}",
            cure="Name more, or ask for fewer --rows.",
        )
    for start in range(0, min(count - rows + 1, DIFFERENT * rows), rows):
        yield {spec.name: array[start : start + rows] for spec, array in zip(specs, arrays, strict=True)}
