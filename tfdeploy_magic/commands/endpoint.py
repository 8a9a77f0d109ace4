"""Endpoint: the served model a person holds; it can be asked, measured and stopped, in a notebook and outside one."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tfdeploy_magic.artifacts.signature import DEFAULT_SIGNATURE, Signature, TensorSpec
from tfdeploy_magic.errors import DataError, RequestRefused, ServingError

if TYPE_CHECKING:
    from tfdeploy_magic.serving.calls import VersionStatus
    from tfdeploy_magic.serving.client import Client, Metrics, Over
    from tfdeploy_magic.serving.hosting import Host
    from tfdeploy_magic.serving.lineup import Arm
    from tfdeploy_magic.serving.sequential import ArmSeen
    from tfdeploy_magic.serving.served import Served
    from tfdeploy_magic.views.endpoint import Seen

GLANCE_SECONDS = 1.0
"""How long a card waits for the server to say how it is."""


@dataclass(frozen=True)
class Endpoint:
    """A model on a server that speaks TensorFlow Serving's API.

    Args:
        url: Its REST address, "http://127.0.0.1:8501/v1/models/NAME".
        grpc: The address of the server's gRPC, "127.0.0.1:8500"; None where it has none.
        host: The server, where this process has started it.

    Raises:
        InputError: The address is no model's.
    """

    url: str
    grpc: str | None = None
    host: Host | None = field(default=None, repr=False, compare=False)

    __tfdeploy_endpoint__: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self.client  # an address that is none should be met here, and not when it is first asked

    @classmethod
    def at(cls, url: str) -> Endpoint:
        """Return the endpoint at an address, with all that is known of it where it is a server of this user's."""
        from tfdeploy_magic.serving import hosting, state

        if (host := hosting.at(url)) is not None:
            return cls(url, host.grpc, host)
        servers = (server for server in state.running() if server.url and url.startswith(f"{server.url}/"))
        return cls(url, next((server.grpc for server in servers), None))

    @cached_property
    def client(self) -> Client:
        """What asks the server; it keeps connections open, and may be used from many threads."""
        from tfdeploy_magic.serving.client import Client

        return Client(self.url, grpc=self.grpc)

    @cached_property
    def _clients(self) -> dict[int, Client]:
        return {}

    def _own_client(self) -> Client:
        """Return what asks the version that was served last: another has other scales, and may come at any moment."""
        from tfdeploy_magic.serving.client import Client

        assert self.served is not None
        version = self.served.version
        if version not in self._clients:
            self._clients[version] = Client(self.url, grpc=self.grpc, version=version)
        return self._clients[version]

    @property
    def name(self) -> str:
        """What the model is called there."""
        return self.client.name

    @property
    def served(self) -> Served | None:
        """What is known of the version that answers here; None where another process has served it."""
        hosted = self.host.models.get(self.name) if self.host is not None else None
        if hosted is None:
            return None
        if self.client.label is not None:
            return hosted.known.get(hosted.lineup.labels.get(self.client.label, -1))
        return hosted.served if self.client.version is None else hosted.known.get(self.client.version)

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """What it takes and gives, by the keys of its signatures, as the server says now."""
        return self.client.signatures(refresh=True)

    def predict(
        self, x: Any, *, signature: str = DEFAULT_SIGNATURE, over: Over | None = None, key: str | None = None
    ) -> Any:
        """Ask the model.

        Args:
            x: ``[count, ...]`` for its one input; a dict by name, or a list, where it has several. A quantized .tflite
                that this process serves takes real numbers: they are quantized by the file's own scale.
            signature: The key of the signature.
            over: "rest" or "grpc"; left out, whichever is faster for an array of that size.
            key: Who asks: where requests are split, the same key is always answered by the same arm.

        Returns:
            ``[count, ...]``; a dict by name when there are several outputs.

        Raises:
            DataError: ``x`` does not fit; nothing was sent.
            ServerUnreachable: Nothing answers at the address.
            RequestRefused: The server answered with an error of its own.
        """
        if (lite := self._quantized(signature)) is None:
            return self.client.predict(x, signature=signature, over=over, key=key)
        stored = self.as_stored(x, signature)
        answers = self._own_client().predict(stored, signature=signature, over=over)
        specs = {spec.name: spec for spec in lite.outputs}
        if isinstance(answers, dict):
            return {name: specs[name].dequantize(answer) for name, answer in answers.items()}
        return lite.outputs[0].dequantize(answers)

    def as_stored(self, x: Any, signature: str = DEFAULT_SIGNATURE) -> Any:
        """Return inputs as the server takes them: integers by the file's own scale, where a .tflite stores those.

        Raises:
            DataError: Something in them is no number.
        """
        if (lite := self._quantized(signature)) is None:
            return x
        specs = {spec.name: spec for spec in lite.inputs}
        if len(specs) == 1 and not isinstance(x, Mapping):
            x = dict.fromkeys(specs, x)
        elif isinstance(x, list | tuple):
            x = dict(zip(sorted(specs), x, strict=False))
        if not isinstance(x, Mapping) or x.keys() != specs.keys():
            return x  # the client says what is missing
        return {name: _stored(specs[name], rows) for name, rows in x.items()}

    def inputs(self, signature: Signature) -> tuple[TensorSpec, ...]:
        """Return what :meth:`predict` takes by a signature of the server: real numbers where that stores integers."""
        lite = self._quantized(signature.name)
        return tuple(spec.as_real for spec in lite.inputs) if lite else signature.inputs

    def _quantized(self, signature: str) -> Signature | None:
        """Return a signature of the .tflite that is served, where it stores integers."""
        lite = self.served.lite.get(signature) if self.served and self.served.lite else None
        return lite if lite and any(spec.quantized for spec in (*lite.inputs, *lite.outputs)) else None

    def outcome(
        self,
        success: bool | Sequence[bool],
        *,
        key: str | Sequence[str] | None = None,
        arm: str | None = None,
    ) -> int:
        """Report whether answers turned out right: what a split is judged by.

        Args:
            success: Of one answer, or of several.
            key: What :meth:`predict` was given, or one for each answer.
            arm: Who answered, where no key was given: the answer's ``x-tfdeploy-arm`` header says it.

        Returns:
            How many were counted.

        Raises:
            RequestRefused: The requests are not split, or there is no such arm; nothing was counted.
            ServerUnreachable: Nothing answers at the address.
        """
        return self.client.outcome(success, key=key, arm=arm)

    def status(self) -> list[VersionStatus]:
        """Return the state of each version, newest first."""
        return self.client.status()

    @property
    def version(self) -> int | None:
        """The version that answers: the highest that is available where none is named; None where there is none."""
        if self.client.label is not None and self.host is not None:
            return self.host.models[self.name].lineup.labels.get(self.client.label)
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
        if (host := hosting.at(self.url)) is not None:
            host.stop()
            return
        found = next(
            (server for server in state.running() if server.url and server.url_of(self.name) == self.url), None
        )
        if found is None:
            raise ServingError(
                f"{self.name} was not stopped",
                found=f"no server of yours at {self.url}",
                wanted="a server that runs on this machine",
                cure="%serve --list shows those that run.",
            )
        found.stop()

    def glance(self) -> Seen:
        """Return how it is now; next to nothing where the server does not answer at once."""
        from tfdeploy_magic.serving.client import Client
        from tfdeploy_magic.views.endpoint import Seen

        seen = Seen(self.name, self.client.url, self.grpc, asked=self.client.version)
        hosted = self.host.models.get(self.name) if self.host is not None else None
        if hosted is not None:
            labels = hosted.lineup.labels
            asked = labels.get(self.client.label, -1) if self.client.label is not None else self.client.version
            seen = replace(seen, labels=dict(labels), asked=asked)
        with Client(self.url, timeout=GLANCE_SECONDS) as client, contextlib.suppress(ServingError):
            seen = replace(seen, states=client.status())
            with contextlib.suppress(RequestRefused):  # not every server shows metrics
                seen = replace(seen, metrics=client.metrics())
            seen = replace(seen, signatures=client.signatures())
        if self.host is not None and hosted is not None and seen.states:
            seen = replace(seen, arms=tuple(_arm_seen(arm, seen.metrics) for arm in self.host.arms(self.name)))
        return replace(seen, container=self.host.seen() if self.host is not None else None)

    def __repr__(self) -> str:
        return f"<Endpoint {self.url}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from tfdeploy_magic.views import endpoint

        return endpoint.mimebundle(self.glance(), self.served)


def _arm_seen(arm: Arm, metrics: Metrics | None) -> ArmSeen:
    """Return what a server has counted of an arm."""
    from tfdeploy_magic.serving.sequential import ArmSeen, Counts

    counted = [row for row in metrics.by_version if row.arm == arm.name] if metrics is not None else []
    requests: Counter[str] = Counter()
    for row in counted:
        requests.update(row.requests)
    last = max(counted, key=lambda row: row.version or 0, default=None)
    return ArmSeen(
        arm.name,
        arm.share,
        arm.model,
        arm.version,
        requests,
        Counts(sum(row.successes for row in counted), sum(row.failures for row in counted)),
        *((last.p50_ms, last.p95_ms, last.p99_ms) if last is not None else ()),
    )


def _stored(spec: TensorSpec, rows: Any) -> Any:
    """Return rows as a tensor stores them, or as they are where the client is to refuse them."""
    if not spec.quantized:
        return rows
    try:
        real = np.asarray(rows, np.float64)
    except (TypeError, ValueError):
        return rows
    if not np.isfinite(real).all():
        raise DataError(
            f"input '{spec.name}' does not take this",
            found="NaN or infinity",
            wanted=str(spec.as_real),
            cure="No integer stands for it: clean the data first.",
        )
    return spec.quantize(real)
