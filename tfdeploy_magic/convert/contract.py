"""What was asked against what the file holds: a conversion that quietly did something else is a failure."""

from __future__ import annotations

from collections.abc import Iterable

from tfdeploy_magic.artifacts.models import LITERT_CUSTOM_OPERATORS, LiteFile
from tfdeploy_magic.artifacts.schemes import SCHEMES
from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, Signature, TensorSpec
from tfdeploy_magic.errors import ContractBroken, VariablesLost

MINIMUM_SHARE = 0.5
"""Below this share a file is mostly not what its scheme says.

Measured on TensorFlow 2.21: MobileNetV2 and V3, EfficientNet, a U-Net and unrolled LSTM and GRU have 1.0 of their
activations in integers, a transformer and ConvNeXt 0.95 (NEG stays float), a chain of dense layers and sines 0.57.
"""

_CUSTOM = "CUSTOM "


def check(file: LiteFile, asked: Signature, *, io: str, select_ops: bool = False, custom_ops: bool = False) -> None:
    """Compare a finished file with the source's signature and what was asked for.

    Args:
        file: The file as it describes itself.
        asked: The source model's signature.
        io: The dtype asked for at floating-point inputs and outputs.
        select_ops: Whether TensorFlow's own operators (Flex) are welcome.
        custom_ops: Whether operators that somebody has to supply at run time are.

    Raises:
        VariablesLost: A variable is read before anything has written it.
        ContractBroken: An operator was not asked for, too little is quantized, a name is missing, or an input or
            output has another dtype or shape.
    """
    check_variables(file)
    check_operators(file, select_ops=select_ops, custom_ops=custom_ops)
    check_share(file)
    got = file.signatures.get(asked.name)
    if got is None:
        raise _broken(f"signatures {', '.join(file.signatures) or 'none'}", f"a signature '{asked.name}'")
    _check_specs(asked.inputs, got.inputs, io)
    _check_specs(asked.outputs, got.outputs, io)


def check_variables(file: LiteFile) -> None:
    """Refuse a file whose answers depend on what lies in memory, whatever was asked for.

    Raises:
        VariablesLost: A variable is read before anything has written it.
    """
    if file.uninitialised_variables:
        raise VariablesLost(
            "the file has variables without values",
            found=f"no value for {_listed(file.uninitialised_variables)}",
            wanted="the weights of the model: this file would answer NaN, zeros or whatever lies in memory",
            cure="Save the model with model.export(DIR), not with tf.saved_model.save, and convert that.",
        )


def check_operators(file: LiteFile, *, select_ops: bool, custom_ops: bool) -> None:
    """Refuse operators that LiteRT does not bring and that were not asked for.

    Raises:
        ContractBroken: There are some.
    """
    if file.flex_operators and not select_ops:
        raise _broken(
            f"operators that only TensorFlow's own kernels run (Flex): {_listed(file.flex_operators)}",
            "LiteRT's own operators",
            "Replace them in the model, or leave them to TensorFlow: --select-ops.",
        )
    custom = [name.removeprefix(_CUSTOM) for name in file.operators if name.startswith(_CUSTOM)]
    unknown = [name for name in custom if not name.startswith("Flex") and name not in LITERT_CUSTOM_OPERATORS]
    if unknown and not custom_ops:
        raise _broken(
            f"custom operators: {_listed(unknown)}",
            "LiteRT's own operators",
            "Replace them in the model, or set converter.allow_custom_ops in a %%tflite_convert cell.",
        )


def check_share(file: LiteFile) -> None:
    """Refuse a file that is mostly not what its scheme says.

    Raises:
        ContractBroken: Too little of it is quantized.
    """
    scheme = SCHEMES.get(file.scheme)
    if scheme is None:
        return
    if (activations := scheme.activations) is not None:
        if activations not in file.tensor_types:
            raise _broken(f"tensors of {', '.join(file.tensor_types)} only", f"{activations} activations")
        # Custom operators were asked for, and no quantizer can touch them.
        floats = {name: count for name, count in file.float_operators.items() if not name.startswith(_CUSTOM)}
        left = sum(floats.values())
        integers = sum(file.activations.values()) - sum(file.float_operators.values())
        if integers < MINIMUM_SHARE * (integers + left):
            operators = _listed(f"{name} ×{count}" for name, count in floats.items())
            raise _broken(
                f"{left} of {integers + left} activations left in float, by {operators}",
                f"{activations} activations",
                "TensorFlow does not quantize these operators: replace them, or use --dynamic or --float16.",
            )
    elif (weights := scheme.weights) is not None and not file.quantized_share:
        cure = "Please report this model."
        if file.quantized_share is None:
            cure = "It has nothing to store so: use --float32."
        elif file.scheme == "dynamic":
            cure = "TensorFlow leaves weights of fewer than 1,024 numbers as they are: use --float16 or --float32."
        raise _broken(f"weights of {', '.join(file.weights) or 'no kind'}", f"{weights} weights", cure)


def _check_specs(asked: Iterable[TensorSpec], got: Iterable[TensorSpec], io: str) -> None:
    found = {spec.name: spec for spec in got}
    for wanted in asked:
        spec = found.get(wanted.name)
        if spec is None:
            raise _broken(f"no tensor named {wanted.name}", str(wanted))
        dtype = io if wanted.dtype.startswith("float") else wanted.dtype
        if spec.dtype != dtype:
            raise _broken(str(spec), f"{dtype} for {wanted.name}")
        if UNKNOWN_RANK in (wanted.shape, spec.shape):
            continue
        known = [(a, b) for a, b in zip(wanted.shape, spec.shape, strict=False) if a is not None]
        if len(wanted.shape) != len(spec.shape) or any(a != b and b is not None for a, b in known):
            raise _broken(str(spec), str(wanted))


def _listed(names: Iterable[str], most: int = 5) -> str:
    """Join names, but only the first few of many."""
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")


def _broken(
    found: str, wanted: str, cure: str = "Was the calibration data real? Otherwise please report this model."
) -> ContractBroken:
    return ContractBroken("the file is not what was asked for", found=found, wanted=wanted, cure=cure)
