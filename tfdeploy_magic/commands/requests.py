"""What verbs that put a server under load have in common: what they take, and the requests that they send."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tfdeploy_magic.artifacts.signature import Arrays, Signature, TensorSpec
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.commands.predict import AskOptions
from tfdeploy_magic.errors import DataError
from tfdeploy_magic.sources.samples import NamedData, arrays_of

DIFFERENT = 64
"""Different requests that are sent in turn, at the most."""


@dataclass(frozen=True)
class Door:
    """An endpoint as data is looked for: its name and what it takes."""

    endpoint: Endpoint
    signature: Signature

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.endpoint.name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What is looked for."""
        return self.endpoint.inputs(self.signature)

    def close(self) -> None:
        """End the connections."""
        self.endpoint.client.close()


class LoadOptions(AskOptions):
    """Base of the options of every verb that asks with many clients at once."""

    over: Literal["rest", "grpc"] = Field("rest", description="which of its two APIs")
    clients: int = Field(8, gt=0, le=1024, description="how many ask at once, each waiting for its answer")
    rows: int = Field(1, gt=0, description="samples in each request")

    def data_to_find(self) -> tuple[str, ...]:
        """Samples to send."""
        return ("x",)

    def source(self) -> Any:
        """Return what the endpoint takes."""
        endpoint = self.opened()
        return Door(endpoint, self.signed(endpoint))

    @property
    def sent(self) -> str:
        """What is sent, "x_test, 1 row a request": data without the labels, which nobody sends."""
        name = self.x.name.removesuffix(f", {self.x.labels_name}") if isinstance(self.x, NamedData) else "data"
        return f"{name}, {self.rows} row{'s' if self.rows > 1 else ''} a request"

    def requests(self, specs: tuple[TensorSpec, ...], verb: str) -> Iterator[Arrays]:
        """Yield inputs of some rows each, cut from a person's data.

        Args:
            specs: What the endpoint takes.
            verb: Whose these options are.

        Raises:
            DataError: There is nothing to send, or too little for one request.
        """
        data = self.given
        columns = arrays_of(data, specs) if data is not None else None
        if columns is None:
            raise DataError(
                "there is nothing to send",
                found="no data that fits" if data is None else f"a {type(data).__name__}",
                wanted=" and ".join(map(str, specs)),
                cure=f"Name some: %{verb} ENDPOINT x_test.",
            )
        arrays = [np.asarray(column) for column in columns]
        count, rows = min(map(len, arrays)), self.rows
        if count < rows:
            raise DataError(
                "there are too few samples for one request",
                found=f"{count}",
                wanted=f"{rows}",
                cure="Name more, or ask for fewer --rows.",
            )
        for start in range(0, min(count - rows + 1, DIFFERENT * rows), rows):
            yield {spec.name: array[start : start + rows] for spec, array in zip(specs, arrays, strict=True)}
