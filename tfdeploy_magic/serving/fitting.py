"""Whether what a person hands over fits a signature, and what to type where it does not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, Arrays, Signature, TensorSpec
from tfdeploy_magic.errors import DataError


def fitted(signed: Signature, x: Any) -> Arrays:
    """Return what goes to the server, by the inputs' names.

    Raises:
        DataError: It does not fit.
    """
    return {spec.name: _checked(spec, value) for spec, value in _paired(signed, x)}


def _paired(signed: Signature, x: Any) -> Sequence[tuple[TensorSpec, Any]]:
    names = [spec.name for spec in signed.inputs]
    if isinstance(x, Mapping):
        if x.keys() != set(names):
            raise _misfit(f"signature '{signed.name}'", ", ".join(map(str, x)) or "no inputs", ", ".join(names))
        return [(spec, x[spec.name]) for spec in signed.inputs]
    if len(names) == 1:
        return [(signed.inputs[0], x)]
    if not isinstance(x, list | tuple) or len(x) != len(names):
        found = f"{len(x)} of them" if isinstance(x, list | tuple) else f"one {type(x).__name__}"
        example = ", ".join(f"'{name}': ..." for name in names)
        raise _misfit(
            f"signature '{signed.name}' has {len(names)} inputs", found, ", ".join(names), f"Give {{{example}}}."
        )
    return list(zip(signed.inputs, x, strict=True))


def _checked(spec: TensorSpec, value: Any) -> npt.NDArray[Any]:
    try:
        array = np.asarray(value, dtype=object if spec.is_text else None)
    except (TypeError, ValueError) as error:
        found = "rows of different lengths" if "inhomogeneous" in str(error) else type(value).__name__
        raise _misfit(f"input '{spec.name}'", found, str(spec), "Pad the rows to one length.") from error
    array = _as_bytes(spec, array) if spec.is_text else _cast(spec, array)
    if spec.shape != UNKNOWN_RANK and not _fits(array.shape, spec.shape):
        raise _misfit(f"input '{spec.name}'", f"the shape {_sizes(array.shape)}", str(spec), _reshaping(array, spec))
    return array


def _fits(found: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(found) == len(wanted) and all(want in (None, size) for size, want in zip(found, wanted, strict=True))


def _reshaping(array: npt.NDArray[Any], spec: TensorSpec) -> str:
    """Say what to type so that it fits, where that can be known."""
    shape, wanted = array.shape, spec.shape
    for cure, after in (
        ("Add the batch dimension: x[None].", (1, *shape)),
        ("Add the last dimension: x[..., None].", (*shape, 1)),
        ("Add the batch and the last dimension: x[None, ..., None].", (1, *shape, 1)),
        ("Take the first dimension away: x[0].", shape[1:] if shape[:1] == (1,) else ()),
        ("Take the last dimension away: x[..., 0].", shape[:-1] if shape[-1:] == (1,) else ()),
        ("The channels come last: np.moveaxis(x, 1, -1).", (shape[0], *shape[2:], shape[1]) if len(shape) > 2 else ()),
    ):
        if after and _fits(after, wanted):
            return cure
    inner = [size for size in wanted[1:] if size]
    if (
        wanted[:1] == (None,)
        and len(inner) == len(wanted) - 1 > 0
        and array.size
        and array.size % math.prod(inner) == 0
    ):
        return f"Its numbers would fill x.reshape({', '.join(map(str, (-1, *inner)))})."
    return "Give it in that shape; ? takes any size."


def _cast(spec: TensorSpec, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    try:
        dtype = dtype_of(spec.dtype)
    except (AttributeError, TypeError) as error:
        raise _misfit(f"input '{spec.name}'", f"the dtype {spec.dtype}", "one that a client can send") from error
    if array.dtype == dtype:
        return array
    if array.size and _family(array.dtype) > _family(dtype):
        rounding = (
            "Say how to round it: np.rint(x).astype" if _family(array.dtype) == 2 else "Convert it first: x.astype"
        )
        raise _misfit(f"input '{spec.name}'", array.dtype.name, str(spec), f"{rounding}('{spec.dtype}').")
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        lost = cast != array if _family(dtype) == 1 else np.isinf(cast) & np.isfinite(array)
    if lost.any():
        value = array[lost].flat[0]
        raise _misfit(f"input '{spec.name}'", f"{value}", str(spec), f"That is more than {spec.dtype} holds.")
    return cast


def _family(dtype: np.dtype[Any]) -> int:
    """Return the place of a dtype among bool, integers, floats, complex numbers and all others."""
    kinds = (("bool",), ("int", "uint"), ("float", "bfloat"), ("complex",))
    return next((place for place, names in enumerate(kinds) if dtype.name.startswith(names)), len(kinds))


def _as_bytes(spec: TensorSpec, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    for item in array.flat:
        if not isinstance(item, str | bytes):
            raise _misfit(f"input '{spec.name}'", f"{type(item).__name__} {item}"[:80], "text or bytes")
    return objects([item.encode() if isinstance(item, str) else item for item in array.flat], array.shape)


def objects(values: list[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    """Return values as an ``object`` array, lists among them too."""
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)


def dtype_of(name: str) -> np.dtype[Any]:
    """Return numpy's dtype of that name, or the one that stands for it where numpy has none."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes  # bfloat16, float8, int4

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found


def _sizes(shape: Iterable[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _misfit(what: str, found: str, wanted: str, cure: str = "Client.signatures() says what it takes.") -> DataError:
    return DataError(what if " has " in what else f"{what} does not take this", found=found, wanted=wanted, cure=cure)
