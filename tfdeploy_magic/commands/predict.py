"""``%predict``: ask a served model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tfdeploy_magic.commands.declaration import FromKernel, Named, OnTheLine, Options, command
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.errors import DataError
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.jobs.progress import Listener
from tfdeploy_magic.sources.samples import NamedData


class AskOptions(Options):
    """Base of the options of every verb that asks a served model."""

    endpoint: Annotated[Any, FromKernel("endpoint"), OnTheLine(positional=True)] = Field(
        description="what %serve returned, or the REST address of a model"
    )
    x: Annotated[Any, FromKernel("data"), OnTheLine(positional=True)] = Field(
        None, description="what to send: [count, ...], a dict by input name, or x_test[:3]"
    )
    signature: str = Field("serving_default", description="which signature of the model to ask")
    over: Literal["rest", "grpc"] | None = Field(None, description="the door; left out, the faster for that size")

    def opened(self) -> Endpoint:
        """Return the endpoint, also where a person gave an address."""
        found = self.endpoint.value if isinstance(self.endpoint, Named) else self.endpoint
        return Endpoint(found) if isinstance(found, str) else found

    @property
    def given(self) -> Any:
        """What to send, as the person has it."""
        return self.x.value if isinstance(self.x, NamedData) else self.x


class Predict(AskOptions):
    """Ask a served model, and return its answer as a numpy array."""


@command("predict", Predict)
def predict(options: Predict, progress: Listener) -> Any:
    """Check the input against the signature, send it, and read the answer.

    Returns:
        ``[count, ...]``; a dict by name when there are several outputs.

    Raises:
        DataError: The input does not fit the signature; nothing was sent.
        ServerUnreachable: Nothing answers at the address.
        RequestRefused: The server answered with an error of its own.
    """
    endpoint = options.opened()
    if options.given is None:
        key = next(iter(endpoint.signatures.values()), None)
        raise DataError(
            "there is nothing to ask",
            found="no input",
            wanted=", ".join(map(str, key.inputs)) if key else "an array",
            cure=f"Name it: %predict {endpoint.name} x_test[:3]",
        )
    report = Report(progress)
    report.stage(f"asking {endpoint.name}")
    answer = endpoint.predict(options.given, signature=options.signature, over=options.over)
    report.finish()
    return answer
