"""Asking a model server from Python: numpy in and out, over REST or gRPC, and without TensorFlow.

It uses nothing but TensorFlow Serving's API, so the server may be any that speaks it. What a signature cannot take is
refused here, in words, before anything is sent.
"""

from __future__ import annotations

import base64
import contextlib
import difflib
import http.client
import json
import math
import re
import threading
import urllib.parse
import weakref
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, Arrays, Signature, TensorSpec
from tfdeploy_magic.errors import DataError, InputError, NameNotFound, RequestRefused, ServerUnreachable
from tfdeploy_magic.serving.calls import VersionStatus
from tfdeploy_magic.serving.load import CHANNEL_OPTIONS, Target
from tfdeploy_magic.serving.status import Code, Refusal

Over = Literal["rest", "grpc"]

LARGE = 16_384
"""Bytes of input above which gRPC is the faster of the two: it sends arrays as they lie in memory, JSON as digits."""

_IN_JSON = {"float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64", "bool", "string"}
_NAMES = {"DT_FLOAT": "float32", "DT_DOUBLE": "float64", "DT_HALF": "float16"}
_CODES = {code.http: code.name for code in Code if [other.http for other in Code].count(code.http) == 1}
_CODES[400] = Code.INVALID_ARGUMENT.name

_ADDRESS = re.compile(r"(.*)/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?(?:/|:predict|/metadata)?")
_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Metrics:
    """What a server counted for one model since it started.

    Args:
        requests: Status, "OK" -> number of requests.
        mean_ms: Mean time from a request's arrival to its answer; None where none was measured.
        p50_ms: Median of that time, estimated within the histogram's bucket, as Prometheus does it.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        raw: Name of each metric of the model -> its other labels as text -> value.
    """

    requests: dict[str, int]
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    raw: dict[str, dict[str, float]]

    @classmethod
    def read(cls, text: str, model: str) -> Metrics:
        """Read what Prometheus would be given, in its text format, and keep what belongs to one model."""
        raw: defaultdict[str, dict[str, float]] = defaultdict(dict)
        requests: defaultdict[str, int] = defaultdict(int)
        buckets: defaultdict[float, float] = defaultdict(float)
        microseconds = 0.0
        for line in text.splitlines():
            if (sample := _SAMPLE.match(line)) is None:
                continue
            labels = dict(_LABEL.findall(sample[2] or ""))
            if re.sub(r"\\(.)", r"\1", labels.pop("model_name", labels.pop("model", ""))) != model:
                continue
            name, value = sample[1], float(sample[3])
            raw[name][",".join(f'{key}="{text}"' for key, text in labels.items())] = value
            if name == ":tensorflow:serving:request_count":
                requests[labels.get("status", "")] += int(value)
            elif name == ":tensorflow:serving:request_latency_bucket":
                buckets[float(labels["le"])] += value
            elif name == ":tensorflow:serving:request_latency_sum":
                microseconds += value
        measured = buckets.get(math.inf, 0.0)
        mean = microseconds / measured / 1000 if measured else None
        p50, p95, p99 = (_quantile(sorted(buckets.items()), share) for share in (0.5, 0.95, 0.99))
        return cls(dict(requests), mean, p50, p95, p99, dict(raw))


class Client:
    """One model of a server.

    It may be used from many threads at once. It keeps connections open; :meth:`close`, or a ``with`` block, ends them.

    Args:
        url: The model's REST address, "http://127.0.0.1:8501/v1/models/NAME"; a version or label in it counts too.
        grpc: The address of the server's gRPC, "127.0.0.1:8500"; None where it has none.
        version: The version to ask; the newest when neither this nor a label is given.
        label: The label of the version to ask.
        timeout: Seconds to wait for an answer.

    Raises:
        InputError: The address is no model's, or both a version and a label are given.
    """

    def __init__(
        self,
        url: str,
        *,
        grpc: str | None = None,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        path = _ADDRESS.fullmatch(parts.path)
        if parts.scheme not in ("http", "https") or not parts.hostname or path is None:
            raise InputError(
                "this is not the address of a model",
                found=url,
                wanted="http://HOST:PORT/v1/models/NAME",
                cure="Give its REST address; that of gRPC goes into grpc=.",
            )
        if version is None and label is None:
            version = int(path[3]) if path[3] else None
            label = urllib.parse.unquote(path[4]) if path[4] else None
        if version is not None and label is not None:
            raise InputError(
                "a client asks one version",
                found=f"version {version} and label '{label}'",
                wanted="one of them, or neither for the newest",
                cure="Leave one away.",
            )
        self.name = urllib.parse.unquote(path[2])
        self.version = version
        self.label = label
        self._root = path[1]
        self._model = f"{self._root}/v1/models/{_quoted(self.name)}"
        self._grpc_address = grpc
        self._timeout = timeout
        self._http = _Connections(parts.scheme, parts.hostname, parts.port, timeout)
        self._lock = threading.Lock()
        self._channel: Any = None
        self._signatures: dict[str, Signature] | None = None

    def __repr__(self) -> str:
        return f"<Client of {self.url}>"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The REST address that it asks."""
        return self._http.address + self._path

    @property
    def _path(self) -> str:
        if self.version is not None:
            return f"{self._model}/versions/{self.version}"
        return self._model if self.label is None else f"{self._model}/labels/{_quoted(self.label)}"

    def close(self) -> None:
        """End its connections; a later call opens new ones."""
        self._http.close()
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def signatures(self, refresh: bool = False) -> dict[str, Signature]:
        """Return the model's signatures by their keys, inputs and outputs in the order of their names.

        Args:
            refresh: Ask the server again; otherwise it is asked once.

        Raises:
            ServerUnreachable: Nothing answers at the address.
            RequestRefused: The server has no such model.
        """
        if self._signatures is None or refresh:
            answer = self._json("GET", f"{self._path}/metadata", f"{self.name} was asked for its signatures")
            found = answer["metadata"]["signature_def"]["signature_def"]
            self._signatures = {key: _signature(key, found[key]) for key in sorted(found)}
        return self._signatures

    def predict(self, x: Any, *, signature: str = "serving_default", over: Over | None = None) -> Any:
        """Ask the model.

        Args:
            x: What its one input takes; or a dict by the inputs' names, or a list in the order of their names.
                Numbers are cast where nothing is lost but a float's last digits.
            signature: The key of the signature.
            over: "rest" or "grpc". By default gRPC where its address is known and the inputs are larger than
                ``LARGE`` or of a dtype that JSON has not, else REST. The answer is the same.

        Returns:
            The output, or a dict by the outputs' names where there are several; strings are bytes.

        Raises:
            DataError: The inputs do not fit the signature; nothing was sent.
            NameNotFound: The model has no such signature.
            ServerUnreachable: Nothing answers at the address, or not in time.
            RequestRefused: The server answered with an error of its own.
        """
        signed, arrays = self._fit(signature, x)
        if self._choose(over, signed, arrays) == "grpc":
            answer = self._over_grpc(self._message(signature, arrays))
        else:
            answer = self._over_rest(signed, _body(signature, arrays))
        return next(iter(answer.values())) if len(answer) == 1 else answer

    def target(self, samples: Iterable[Any], *, signature: str = "serving_default", over: Over = "rest") -> Target:
        """Return the calls of :meth:`predict` on samples as what a load generator sends, one after the other.

        Raises:
            DataError: A sample does not fit the signature, or there is none.
        """
        fitted = [self._fit(signature, x) for x in samples]
        if not fitted:
            raise DataError("there is nothing to ask", found="no samples", wanted="at least one", cure="Give some.")
        if self._choose(over, *fitted[0]) == "grpc":
            messages = tuple(self._message(signature, arrays).SerializeToString() for _, arrays in fitted)
            return Target(str(self._grpc_address), messages, "grpc")
        return Target(f"{self.url}:predict", tuple(_body(signature, arrays) for _, arrays in fitted), "rest")

    def status(self) -> list[VersionStatus]:
        """Return the state of the model's versions, newest first; of one version where the client asks only that.

        Raises:
            ServerUnreachable: Nothing answers at the address.
            RequestRefused: The server has no such model or version.
        """
        path = self._model if self.version is None else self._path
        answer = self._json("GET", path, f"{self.name} was asked for its status")
        return [_version_status(row) for row in answer.get("model_version_status", ())]

    def metrics(self) -> Metrics:
        """Return what the server counted for this model.

        Raises:
            ServerUnreachable: Nothing answers at the address.
            RequestRefused: The server shows no metrics.
        """
        what = f"{self.name} was asked for its metrics"
        status, body = self._http.request("GET", f"{self._root}/monitoring/prometheus/metrics")
        if status != 200:
            cure = "Start the server with a monitoring_config that enables Prometheus at its usual path."
            code = _CODES.get(status, f"HTTP {status}")
            raise RequestRefused(what, status=code, message="no metrics", cure=cure)
        return Metrics.read(body.decode(), self.name)

    def _fit(self, key: str, x: Any) -> tuple[Signature, Arrays]:
        known = self._signatures is not None
        try:
            signed = self._signature(key)
            return signed, _fitted(signed, x)
        except InputError:
            if not known:
                raise
        self.signatures(refresh=True)  # the server may have loaded a newer version, with other signatures, since
        signed = self._signature(key)
        return signed, _fitted(signed, x)

    def _signature(self, key: str) -> Signature:
        signatures = self.signatures()
        if key in signatures:
            return signatures[key]
        near = difflib.get_close_matches(key, signatures, n=1)
        raise NameNotFound(
            f"signature '{key}'",
            found=f"no such signature of {self.name}",
            wanted=f"one of {', '.join(signatures)}",
            cure=f"Did you mean {near[0]}?" if near else "Name one of these in signature=.",
        )

    def _choose(self, over: Over | None, signed: Signature, arrays: Arrays) -> Over:
        foreign = next((spec for spec in (*signed.inputs, *signed.outputs) if spec.dtype not in _IN_JSON), None)
        if over is None:
            large = sum(array.nbytes for array in arrays.values()) > LARGE
            over = "grpc" if self._grpc_address is not None and (large or foreign is not None) else "rest"
        if over == "grpc" and self._grpc_address is None:
            raise InputError(
                "gRPC was asked for",
                found="no address of it",
                wanted="the address that the server's gRPC listens at",
                cure='Give it: Client(url, grpc="127.0.0.1:8500").',
            )
        if over == "rest" and foreign is not None:
            raise DataError(
                f"'{foreign.name}' cannot travel over REST",
                found=foreign.dtype,
                wanted="a dtype that the JSON of TensorFlow Serving has",
                cure="Use gRPC: give its address in grpc=, and leave over= away.",
            )
        return over

    def _over_rest(self, signed: Signature, body: bytes) -> Arrays:
        outputs = self._json("POST", f"{self._path}:predict", f"{self.name} was asked to predict", body)["outputs"]
        try:
            return _outputs(signed, outputs)
        except (KeyError, TypeError, ValueError):  # a newer version, which takes the same and answers something else
            return _outputs(self.signatures(refresh=True)[signed.name], outputs)

    def _message(self, key: str, arrays: Arrays) -> Any:
        from tfdeploy_magic.serving.protos import predict_pb2
        from tfdeploy_magic.serving.tensors import proto_of

        request = predict_pb2.PredictRequest()
        request.model_spec.name = self.name
        request.model_spec.signature_name = key
        if self.version is not None:
            request.model_spec.version.value = self.version
        elif self.label is not None:
            request.model_spec.version_label = self.label
        for name, array in arrays.items():
            request.inputs[name].CopyFrom(proto_of(array, as_content=array.dtype != object))
        return request

    def _over_grpc(self, request: Any) -> Arrays:
        import grpc

        from tfdeploy_magic.serving.tensors import array_of

        try:
            answer = self._stub().Predict(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise self._grpc_error(error) from None
        return {name: np.require(array_of(answer.outputs[name]), requirements="W") for name in sorted(answer.outputs)}

    def _stub(self) -> Any:
        import grpc

        from tfdeploy_magic.serving.protos import prediction_service_pb2_grpc

        with self._lock:
            if self._channel is None:
                self._channel = grpc.insecure_channel(self._grpc_address, CHANNEL_OPTIONS)
            return prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def _grpc_error(self, error: Any) -> Exception:
        code, message = error.code().name, error.details() or ""
        if code == "DEADLINE_EXCEEDED":
            return _unreachable(str(self._grpc_address), f"no answer within {self._timeout:g} s")
        if code == "UNAVAILABLE" and re.search(r"connect|Socket closed|GOAWAY|DNS", message):
            return _unreachable(str(self._grpc_address), message)
        what = f"{self.name} was asked to predict"
        return RequestRefused(what, status=code, message=message, cure=self._cure(message))

    def _json(self, method: str, path: str, what: str, body: bytes | None = None) -> Any:
        status, answer = self._http.request(method, path, body)
        code = _CODES.get(status, f"HTTP {status}")
        try:
            found = _parsed(answer)
        except ValueError:
            cure = f"Is {self._http.address} the REST address of a TensorFlow Serving model server?"
            raise RequestRefused(what, status=code, message="an answer that is no JSON", cure=cure) from None
        if status == 200:
            return found
        message = str(found.get("error", "")) if isinstance(found, dict) else ""
        raise RequestRefused(what, status=code, message=message, cure=self._cure(message))

    def _cure(self, message: str) -> str:
        if "Servable not found" in message or "Could not find version" in message:
            return self._versions_there()
        if "Could not find any versions" in message:
            return f"No model '{self.name}' is served there: see the name that the server was started with."
        if "Unrecognized servable version label" in message:
            return "The server's configuration gives labels: ask by version, or give the label there."
        if "queue" in message:
            return "The server has as many requests as it takes: ask again, or with fewer at once."
        return f"Client.signatures() says what {self.name} takes."

    def _versions_there(self) -> str:
        try:
            rows = self._json("GET", self._model, "")["model_version_status"]
        except (RequestRefused, ServerUnreachable, KeyError):
            return f"No model '{self.name}' is served there: see the name that the server was started with."
        states = (
            f"{one.version} {one.state}{f' ({one.problem})' if one.problem else ''}"
            for one in map(_version_status, rows)
        )
        return f"Its versions: {', '.join(states)}."


class _Connections:
    """Connections to one HTTP server that are kept open, each used by one thread at a time."""

    def __init__(self, scheme: str, host: str, port: int | None, timeout: float) -> None:
        self._kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        self._place = (host, port)
        self._timeout = timeout
        self._idle: deque[http.client.HTTPConnection] = deque()
        self.address = f"{scheme}://{f'[{host}]' if ':' in host else host}{'' if port is None else f':{port}'}"
        weakref.finalize(self, _close_all, self._idle)

    def close(self) -> None:
        _close_all(self._idle)

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        try:
            if (kept := self._kept()) is not None:
                try:
                    return self._exchange(kept, method, path, body)
                except ConnectionError:  # the server ended it, and the others, while they lay idle
                    self.close()
            return self._exchange(self._kind(*self._place, timeout=self._timeout), method, path, body)
        except TimeoutError:
            raise _unreachable(self.address, f"no answer within {self._timeout:g} s") from None
        except (OSError, http.client.IncompleteRead) as error:
            raise _unreachable(self.address, str(error) or type(error).__name__) from error
        except http.client.HTTPException as error:
            raise ServerUnreachable(
                f"what listens at {self.address} is no model server",
                found="an answer that is not HTTP",
                wanted="TensorFlow Serving's REST API",
                cure="Give the REST port in the address; that of gRPC goes into grpc=.",
            ) from error

    def _kept(self) -> http.client.HTTPConnection | None:
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        return None

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
    ) -> tuple[int, bytes]:
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body is not None else {})
            answer = connection.getresponse()
            found = answer.read()
        except BaseException:  # a stopped cell too: half an answer must not be taken for the next one's
            connection.close()
            raise
        if answer.will_close:
            connection.close()
        else:
            self._idle.append(connection)
        return answer.status, found


def _fitted(signed: Signature, x: Any) -> Arrays:
    """Return what goes to the server, by the inputs' names, or say why it cannot."""
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
        dtype = _dtype(spec.dtype)
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
    return _objects([item.encode() if isinstance(item, str) else item for item in array.flat], array.shape)


def _objects(values: list[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape)


def _body(key: str, arrays: Arrays) -> bytes:
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


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:  # bare NaN and Infinity, and strings of bytes that are not UTF-8
        return json.loads(body.decode("utf-8", "surrogateescape"))


def _outputs(signed: Signature, outputs: Any) -> Arrays:
    if len(signed.outputs) == 1:
        return {signed.outputs[0].name: _from_json(signed.outputs[0], outputs)}
    return {spec.name: _from_json(spec, outputs[spec.name]) for spec in signed.outputs}


def _from_json(spec: TensorSpec, value: Any) -> npt.NDArray[Any]:
    if spec.is_text:
        found = np.array(value, dtype=object)
        array = _objects([_string(item) for item in found.flat], found.shape)
    else:
        array = np.array(value, _dtype(spec.dtype))
    if array.size == 0 and spec.shape != UNKNOWN_RANK:  # JSON does not say the sizes within an empty list
        array = array.reshape(array.shape + tuple(size or 0 for size in spec.shape[array.ndim :]))
    return array


def _string(item: Any) -> bytes:
    if isinstance(item, dict):
        return base64.b64decode(item["b64"])
    return str.encode(item, "utf-8", "surrogateescape")


def _signature(key: str, data: dict[str, Any]) -> Signature:
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


def _dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes  # those that numpy has not: bfloat16, float8, int4

        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return found


def _version_status(row: dict[str, Any]) -> VersionStatus:
    said = row.get("status", {})
    code = said.get("error_code", "OK")
    problem = None if code == "OK" else Refusal(Code[code], said.get("error_message", ""))
    return VersionStatus(int(row["version"]), row["state"], problem)


def _quantile(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """Return a quantile in ms of a histogram of cumulative counts by upper limits in microseconds."""
    wanted = share * buckets[-1][1] if buckets else 0.0
    lower = below = 0.0
    for limit, count in buckets:
        if count >= wanted > 0:
            inside = (wanted - below) / (count - below)
            return (lower if math.isinf(limit) else lower + (limit - lower) * inside) / 1000
        lower, below = limit, count
    return None


def _close_all(connections: deque[http.client.HTTPConnection]) -> None:
    while connections:
        connections.pop().close()


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")


def _sizes(shape: Iterable[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _misfit(what: str, found: str, wanted: str, cure: str = "Client.signatures() says what it takes.") -> DataError:
    return DataError(what if " has " in what else f"{what} does not take this", found=found, wanted=wanted, cure=cure)


def _unreachable(address: str, found: str) -> ServerUnreachable:
    slow = found.startswith("no answer within")
    return ServerUnreachable(
        f"{address} does not answer",
        found=found,
        wanted="a model server that listens there",
        cure="Give it longer with timeout=." if slow else "Start it, or give the address that it listens at.",
    )
