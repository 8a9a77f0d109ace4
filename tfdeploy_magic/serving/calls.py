"""What the wire and the engine hand each other: a call of one signature, and the loaded version that answers it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from tfdeploy_magic.artifacts.signature import Arrays


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

    @property
    def inline(self) -> bool:
        """Whether a call is so short that it is answered where it arrives, on the event loop too."""

    def answer(self, call: Call) -> Arrays:
        """Answer a call, waiting for it.

        Raises:
            Refusal: TensorFlow refused it, the queue is full, or the version is unloaded.
        """

    def submit(self, call: Call) -> Future[Arrays]:
        """Answer a call in another thread, together with others that wait."""
