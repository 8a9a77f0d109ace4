"""``%loadtest``: what a served model bears, and how long its answers take meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tfdeploy_magic.commands.declaration import command
from tfdeploy_magic.commands.requests import LoadOptions
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.jobs.progress import Listener

if TYPE_CHECKING:
    from tfdeploy_magic.serving.load import Load, Saturation
    from tfdeploy_magic.views.figures import Figure

STEP_SECONDS = 2.0
"""How long each number of clients is tried for the saturation curve, at the most."""


class LoadTest(LoadOptions):
    """Ask a served model with many clients at once: throughput, latency, failures, and where it is saturated.

    Samples that fit are found in the kernel when none are named.
    """

    seconds: float = Field(10.0, gt=0, le=3600, description="how long they ask")
    no_saturation: bool = Field(False, description="leave out the runs with 1, 2, 4, ... clients")


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
    requests = list(options.requests(specs, "loadtest"))
    endpoint.predict(requests[0], signature=options.signature, over=options.over)  # a refusal is better met here
    stored = [endpoint.as_stored(request, options.signature) for request in requests]
    target = endpoint.client.target(stored, signature=options.signature, over=options.over)
    curve = None
    if not options.no_saturation and options.clients > 1:
        step = min(STEP_SECONDS, options.seconds / 4)
        curve = load.saturation(target, clients=options.clients, seconds=step, report=report)
    found = load.run(target, clients=options.clients, seconds=options.seconds, report=report)
    report.finish()
    return LoadTested(endpoint.name, endpoint.url, found, curve, options.sent)
