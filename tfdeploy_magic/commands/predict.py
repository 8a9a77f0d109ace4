"""``%predict``: ask a served model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tfdeploy_magic.artifacts.signature import DEFAULT_SIGNATURE, Signature
from tfdeploy_magic.commands.declaration import FromKernel, Named, OnTheLine, Options, command
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.errors import DataError, NameNotFound
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.jobs.progress import Listener
from tfdeploy_magic.sources.samples import NamedData


class AskOptions(Options):
    """Base of the options of every verb that asks a served model."""

    endpoint: Annotated[Any, FromKernel("endpoint"), OnTheLine(positional=True)] = Field(
        description="what %serve returned, or the REST address of a model"
    )
    x: Annotated[Any, FromKernel("data"), OnTheLine(positional=True)] = Field(
        None, description="samples: [count, ...], or a dict by input name; cut as in x_test[:3]"
    )
    signature: str = Field(DEFAULT_SIGNATURE, description="which signature of the model to ask")
    over: Literal["rest", "grpc"] | None = Field(
        None, description="which of its two APIs; left out, the faster for that size"
    )

    def opened(self) -> Endpoint:
        """Return the endpoint, also where a person gave an address."""
        found = self.endpoint.value if isinstance(self.endpoint, Named) else self.endpoint
        return Endpoint.at(found) if isinstance(found, str) else found

    def signed(self, endpoint: Endpoint) -> Signature:
        """Return the signature that is to be asked.

        Raises:
            NameNotFound: The model has none of that name.
        """
        signatures = endpoint.signatures
        if self.signature not in signatures:
            raise NameNotFound(
                f"signature '{self.signature}'",
                found=f"no such signature of {endpoint.name}",
                wanted=f"one of {', '.join(signatures)}",
                cure=f"Try --signature {next(iter(signatures), 'NAME')}.",
            )
        return signatures[self.signature]

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
    signature = options.signed(endpoint)
    if options.given is None:
        raise DataError(
            "there is nothing to ask",
            found="no input",
            wanted=" and ".join(map(str, endpoint.inputs(signature))),
            cure="Name it behind the endpoint: x_test[:3].",
        )
    report = Report(progress)
    report.stage(f"asking {endpoint.name}")
    answer = endpoint.predict(options.given, signature=options.signature, over=options.over)
    report.finish()
    return answer
