"""Endpoint: the served model a person holds; it can be asked, measured and stopped, in a notebook and outside one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from tfdeploy_magic.artifacts.signature import Signature
from tfdeploy_magic.errors import ServingError, TfdeployError

if TYPE_CHECKING:
    from tfdeploy_magic.serving.calls import VersionStatus
    from tfdeploy_magic.serving.client import Client, Metrics, Over
    from tfdeploy_magic.serving.served import Served

GLANCE_SECONDS = 1.0
"""How long a card waits for the server to say how it is."""


@dataclass(frozen=True)
class Endpoint:
    """A model on a server that speaks TensorFlow Serving's API.

    Args:
        url: Its REST address, "http://127.0.0.1:8501/v1/models/NAME".
        grpc: The address of the server's gRPC, "127.0.0.1:8500"; None where it has none.
        served: What is known of it where this kernel served it.
    """

    url: str
    grpc: str | None = None
    served: Served | None = field(default=None, repr=False, compare=False)

    __tfdeploy_endpoint__: ClassVar[bool] = True

    @cached_property
    def client(self) -> Client:
        """What asks the server; it keeps connections open, and may be used from many threads."""
        from tfdeploy_magic.serving.client import Client

        return Client(self.url, grpc=self.grpc)

    @property
    def name(self) -> str:
        """What the model is called there."""
        return self.client.name

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """What it takes and gives, by the keys of its signatures, as the server says now."""
        return self.client.signatures(refresh=True)

    def predict(self, x: Any, *, signature: str = "serving_default", over: Over | None = None) -> Any:
        """Ask the model.

        Args:
            x: ``[count, ...]`` for its one input; a dict by name, or a list, where it has several. A quantized .tflite
                takes real numbers: they are quantized by the file's own scale.
            signature: The key of the signature.
            over: "rest" or "grpc"; left out, whichever is faster for an array of that size.

        Returns:
            ``[count, ...]``; a dict by name when there are several outputs.

        Raises:
            DataError: ``x`` does not fit; nothing was sent.
            ServerUnreachable: Nothing answers at the address.
            RequestRefused: The server answered with an error of its own.
        """
        answers = self.client.predict(self.as_stored(x, signature), signature=signature, over=over)
        if (lite := self._quantized(signature)) is None:
            return answers
        specs = {spec.name: spec for spec in lite.outputs}
        if isinstance(answers, dict):
            return {name: specs[name].dequantize(answer) for name, answer in answers.items()}
        return lite.outputs[0].dequantize(answers)

    def as_stored(self, x: Any, signature: str = "serving_default") -> Any:
        """Return inputs as the server takes them: integers by the file's own scale, where a .tflite stores those."""
        if (lite := self._quantized(signature)) is None:
            return x
        specs = {spec.name: spec for spec in lite.inputs}
        given = (
            x if isinstance(x, Mapping) else dict(zip(sorted(specs), x if isinstance(x, list) else [x], strict=False))
        )
        return {name: specs[name].quantize(rows) if name in specs else rows for name, rows in given.items()}

    def _quantized(self, signature: str) -> Signature | None:
        """Return a signature of the .tflite that is served, where it stores integers."""
        lite = self.served.lite.get(signature) if self.served and self.served.lite else None
        return lite if lite and any(spec.quantized for spec in (*lite.inputs, *lite.outputs)) else None

    def status(self) -> list[VersionStatus]:
        """Return the state of each version, newest first."""
        return self.client.status()

    @property
    def version(self) -> int | None:
        """The version that answers: the highest that is available; None where none is."""
        return next((found.version for found in self.status() if found.state == "AVAILABLE"), None)

    def metrics(self) -> Metrics:
        """Return what the server counted for this model: requests by outcome, and their latency."""
        return self.client.metrics()

    def stop(self) -> None:
        """End the server.

        Raises:
            ServingError: It is none of this user's on this machine.
        """
        from tfdeploy_magic.serving import hosting, state

        self.client.close()
        host = next((host for host in hosting.hosts.values() if host.model_url == self.url), None)
        if host is not None:
            host.stop()
            return
        found = next((server for server in state.running() if server.url_of(self.name) == self.url), None)
        if found is None:
            raise ServingError(
                f"{self.name} was not stopped",
                found=f"no server of yours at {self.url}",
                wanted="a server that runs on this machine",
                cure="%serve --list shows those that run.",
            )
        found.stop()

    def glance(self) -> tuple[list[VersionStatus], Metrics | None]:
        """Return the state of its versions and its metrics now; nothing where the server does not answer at once."""
        from tfdeploy_magic.serving.client import Client

        with Client(self.url, timeout=GLANCE_SECONDS) as client:
            try:
                return client.status(), client.metrics()
            except TfdeployError:
                return [], None

    def __repr__(self) -> str:
        return f"<Endpoint {self.url}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from tfdeploy_magic.views import endpoint

        states, metrics = self.glance()
        signatures: Mapping[str, Signature] = {}
        if states:
            signatures = self.client.signatures()
        return endpoint.mimebundle(
            endpoint.Seen(self.name, self.url, self.grpc, states, metrics, signatures), self.served
        )
