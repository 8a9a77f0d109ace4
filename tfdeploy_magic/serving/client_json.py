"""The JSON of a client: requests, answers and metadata of TensorFlow Serving's REST API."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, Arrays, Signature, TensorSpec
from tfdeploy_magic.serving.fitting import dtype_of, objects

_NAMES = {"DT_FLOAT": "float32", "DT_DOUBLE": "float64", "DT_HALF": "float16"}


def request_body(key: str, arrays: Arrays) -> bytes:
    """Return the body of a request to predict, its inputs column by column."""
    inputs: Any = {name: _plain(array) for name, array in arrays.items()}
    if len(inputs) == 1:
        inputs = next(iter(inputs.values()))
    request = {"signature_name": key, "inputs": inputs}
    if all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f"):
        return orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY)
    # orjson writes null for NaN and infinity, where the server expects the bare words.
    return json.dumps(request, default=np.ndarray.tolist).encode()


def _plain(array: npt.NDArray[Any]) -> Any:
    if array.dtype.kind == "O":
        return _text(array.tolist())
    return np.ascontiguousarray(array) if array.ndim else array.item()


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(item) for item in value]
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def parsed(body: bytes) -> Any:
    """Read an answer.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:  # bare NaN and Infinity, and strings of bytes that are not UTF-8
        return json.loads(body.decode("utf-8", "surrogateescape"))


def outputs_of(signed: Signature, outputs: Any) -> Arrays:
    """Return the outputs of an answer, in the dtypes of the signature.

    Raises:
        KeyError, TypeError, ValueError: They are not those of the signature.
    """
    if len(signed.outputs) == 1:
        return {signed.outputs[0].name: _from_json(signed.outputs[0], outputs)}
    return {spec.name: _from_json(spec, outputs[spec.name]) for spec in signed.outputs}


def _from_json(spec: TensorSpec, value: Any) -> npt.NDArray[Any]:
    if spec.is_text:
        found = np.array(value, dtype=object)
        array = objects([_string(item) for item in found.flat], found.shape)
    else:
        dtype = dtype_of(spec.dtype)
        if dtype.kind in "iub" and any(type(item) is float for item in np.array(value, object).flat):
            raise ValueError(f"{spec.name} is no {spec.dtype}")  # casting it would cut its decimals off
        array = np.array(value, dtype)
    if array.size == 0 and spec.shape != UNKNOWN_RANK:  # JSON does not say the sizes within an empty list
        array = array.reshape(array.shape + tuple(size or 0 for size in spec.shape[array.ndim :]))
    return array


def _string(item: Any) -> bytes:
    if isinstance(item, dict):
        return base64.b64decode(item["b64"])
    return str.encode(item, "utf-8", "surrogateescape")


def signature_of(key: str, data: dict[str, Any]) -> Signature:
    """Read a signature of the metadata."""
    inputs, outputs = (
        tuple(_spec(name, data.get(side, {})[name]) for name in sorted(data.get(side, {})))
        for side in ("inputs", "outputs")
    )
    return Signature(key, inputs, outputs)


def _spec(name: str, data: dict[str, Any]) -> TensorSpec:
    sizes = [int(dim["size"]) for dim in data["tensor_shape"].get("dim", ())]
    shape = tuple(None if size < 0 else size for size in sizes)
    unknown = data["tensor_shape"].get("unknown_rank", False)
    return TensorSpec(name, UNKNOWN_RANK if unknown else shape, _short(data["dtype"]), tensor=data.get("name", ""))


def _short(name: str) -> str:
    return _NAMES.get(name, name.removeprefix("DT_").lower())
