"""How a model is to be opened, where it leaves a choice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, TensorSpec
from tfdeploy_magic.errors import InputError

_INPUT = re.compile(r"(?:(?P<name>[^=:,]+)=)?(?P<shape>scalar|(?:\d+|\?)(?:x(?:\d+|\?))*)(?::(?P<dtype>\w+))?")


@dataclass(frozen=True)
class How:
    """The choices a person made about a model; each has a default that suits most.

    Args:
        signature: Which of its signatures; None for the only or default one.
        input_spec: Shapes and dtypes of inputs, "1x224x224x3:float32" or "NAME=?x7:int32,OTHER=?x3"; "?" is open.
        inputs: Input tensors of a frozen graph; its placeholders when empty.
        outputs: Output tensors of a frozen graph; those that nothing consumes when empty.
        trust: Run code that a file carries.
        unroll: Trace recurrent Keras layers step by step, without a loop.
    """

    signature: str | None = None
    input_spec: str | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    trust: bool = False
    unroll: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that survives JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> How:
        """Rebuild from :meth:`to_dict`, also after a trip through JSON."""
        return cls(**{**data, "inputs": tuple(data["inputs"]), "outputs": tuple(data["outputs"])})

    def asked_inputs(self) -> tuple[TensorSpec, ...]:
        """Return what ``input_spec`` says; a name or dtype that it leaves out is ``""``.

        Raises:
            InputError: It is not an input specification.
        """
        if self.input_spec is None:
            return ()
        found = []
        for part in self.input_spec.split(","):
            match = _INPUT.fullmatch(part.strip())
            if match is None:
                raise InputError(
                    f"--input-spec {self.input_spec} cannot be read",
                    found=f"'{part.strip()}'",
                    wanted="a shape, and a name and a dtype where they are not clear",
                    cure="Write --input-spec 1x224x224x3, or NAME=?x7:int32,OTHER=?x3 where ? is any size.",
                )
            sizes = [] if match["shape"] == "scalar" else match["shape"].split("x")
            shape = tuple(None if size == "?" else int(size) for size in sizes)
            found.append(TensorSpec(match["name"] or "", shape, match["dtype"] or ""))
        return tuple(found)

    def narrowed(self, specs: Sequence[TensorSpec], name: str) -> tuple[TensorSpec, ...]:
        """Return a model's inputs with the shapes that were asked for.

        Args:
            specs: What the model takes.
            name: How the person calls it.

        Raises:
            InputError: The model has no such input, or the input does not allow that shape or dtype.
        """
        narrowed = {spec.name: spec for spec in specs}
        for place, asked in enumerate(self.asked_inputs()):
            key = asked.name or (specs[place].name if place < len(specs) else "")
            spec = narrowed.get(key)
            if spec is None:
                raise self._refused(name, f"no input {asked.name or f'number {place + 1}'}", specs)
            allowed = spec.shape == UNKNOWN_RANK or (
                len(asked.shape) == len(spec.shape)
                and all(b is None or a == b for a, b in zip(asked.shape, spec.shape, strict=True))
            )
            if not allowed or asked.dtype not in ("", spec.dtype):
                raise self._refused(name, str(spec), specs)
            narrowed[key] = replace(spec, shape=asked.shape)
        return tuple(narrowed.values())

    def _refused(self, name: str, found: str, specs: Sequence[TensorSpec]) -> InputError:
        return InputError(
            f"--input-spec {self.input_spec} does not go with {name}",
            found=found,
            wanted="a shape that the model allows",
            cure=f"It takes {', '.join(map(str, specs))}.",
        )
