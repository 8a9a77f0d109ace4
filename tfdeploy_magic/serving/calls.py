"""What the wire and the engine hand each other: calls, the loaded versions that answer them, and their states.

The doors (REST, gRPC) know models and servables by the protocols here; what they are is the engine's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.serving.status import Refusal

State = Literal["UNKNOWN", "START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
"""Where a version is in its life (``ModelVersionStatus.State``)."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a signature.

    Args:
        signature: The key of the signature.
        inputs: Alias of each input -> its array, of the signature's dtype; strings are ``object`` arrays of bytes.
        outputs: Aliases of the outputs that are wanted.
    """

    signature: str
    inputs: Arrays
    outputs: tuple[str, ...]


class Servable(Protocol):
    """One loaded version of a model; safe to ask from many threads at once."""

    @property
    def name(self) -> str:
        """The model's name."""

    @property
    def version(self) -> int:
        """The number of the version."""

    @property
    def signatures(self) -> Mapping[str, Any]:
        """Key -> ``SignatureDef`` (meta_graph.proto), TensorFlow's own ``__saved_model_init_op`` not among them."""

    def inline(self, call: Call) -> bool:
        """Whether a call is so short that it is answered where it arrives, on the event loop too."""

    def independent(self, call: Call) -> bool:
        """Whether the rows of a call are answered beside those of others as they are alone."""

    def answer(self, call: Call) -> Arrays:
        """Answer a call, waiting for it.

        Raises:
            Refusal: TensorFlow refused it, the queue is full, or the version is unloaded.
        """

    def submit(self, call: Call) -> Future[Arrays]:
        """Answer a call in another thread, together with others that wait."""


@dataclass(frozen=True)
class VersionStatus:
    """One version of a model, as ``GetModelStatus`` tells it.

    Args:
        version: Its number.
        state: Where it is in its life.
        problem: Why it could not be loaded; None where nothing is wrong.
    """

    version: int
    state: State
    problem: Refusal | None = None


class Models(Protocol):
    """All models of a server."""

    def use(self, name: str, version: int | None = None, label: str | None = None) -> AbstractContextManager[Servable]:
        """Hold a version for as long as a request needs it: it is not unloaded meanwhile.

        Args:
            name: The model's.
            version: Its number; the highest that is available when neither this nor a label is given.
            label: A version's label.

        Raises:
            Refusal: NOT_FOUND "Servable not found for request: Latest(m)" or "... Specific(m, 7)", INVALID_ARGUMENT
                "Unrecognized servable version label: X".
        """

    def statuses(self, name: str, version: int | None = None) -> list[VersionStatus]:
        """Return the state of one version or of all, newest first.

        Raises:
            Refusal: NOT_FOUND "Could not find any versions of model m" or "Could not find version 7 of model m".
        """

    def reload(self, config: Any) -> None:
        """Serve what a ``ModelServerConfig`` lists, and nothing else.

        Raises:
            Refusal: It cannot be; everything is as it was.
        """
