"""What was asked against what the file holds: a conversion that quietly did something else is a failure."""

from __future__ import annotations

from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.signature import Signature
from tfdeploy_magic.errors import ContractBroken


def check(file: LiteFile, asked: Signature, *, io: str) -> None:
    """Compare a finished file with the source's signature and the types asked for.

    Args:
        file: The file as it describes itself.
        asked: The source model's signature.
        io: The dtype asked for at floating-point inputs and outputs.

    Raises:
        ContractBroken: A name is missing, or an input or output has another dtype or shape.
    """
    activations = {"int8": "int8", "int16x8": "int16"}.get(file.scheme)
    if activations is not None and activations not in file.tensor_types:
        raise _broken(f"tensors of {', '.join(file.tensor_types)} only", f"{activations} activations")
    got = file.signatures.get(asked.name)
    if got is None:
        raise _broken(f"signatures {', '.join(file.signatures) or 'none'}", f"a signature '{asked.name}'")
    for wanted_specs, found_specs in ((asked.inputs, got.inputs), (asked.outputs, got.outputs)):
        found = {spec.name: spec for spec in found_specs}
        for wanted in wanted_specs:
            spec = found.get(wanted.name)
            if spec is None:
                raise _broken(f"no tensor named {wanted.name}", str(wanted))
            dtype = io if wanted.dtype.startswith("float") else wanted.dtype
            if spec.dtype != dtype:
                raise _broken(str(spec), f"{dtype} for {wanted.name}")
            known = [(a, b) for a, b in zip(wanted.shape, spec.shape, strict=False) if a is not None]
            if len(wanted.shape) != len(spec.shape) or any(a != b and b is not None for a, b in known):
                raise _broken(str(spec), str(wanted))


def _broken(found: str, wanted: str) -> ContractBroken:
    return ContractBroken(
        "the file is not what was asked for",
        found=found,
        wanted=wanted,
        cure="Was the calibration data real? Otherwise please report this model.",
    )
