"""Asking a model server from Python: numpy in and out, over REST or gRPC, and without TensorFlow.

It uses nothing but TensorFlow Serving's API, so the server may be any that speaks it. What a signature cannot take is
refused here, in words, before anything is sent.
"""

from __future__ import annotations

import difflib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.signature import DEFAULT_SIGNATURE, Arrays, Signature
from tfdeploy_magic.errors import DataError, InputError, NameNotFound, RequestRefused, ServerUnreachable
from tfdeploy_magic.serving.calls import VersionStatus
from tfdeploy_magic.serving.client_json import outputs_of, parsed, request_body, signature_of
from tfdeploy_magic.serving.client_metrics import Metrics as Metrics
from tfdeploy_magic.serving.connections import Connections, unreachable
from tfdeploy_magic.serving.fitting import fitted
from tfdeploy_magic.serving.load import CHANNEL_OPTIONS, Target
from tfdeploy_magic.serving.router import KEY_HEADER, LONGEST_KEY, in_header
from tfdeploy_magic.serving.status import Code, Refusal

Over = Literal["rest", "grpc"]

LARGE = 16_384
"""Bytes of input above which gRPC is the faster of the two: it sends arrays as they lie in memory, JSON as digits."""

_IN_JSON = {"float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64", "bool", "string"}
_CODES = {code.http: code.name for code in Code if [other.http for other in Code].count(code.http) == 1}
_CODES[400] = Code.INVALID_ARGUMENT.name

_ADDRESS = re.compile(r"(.*)/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?(?:/|:predict|/metadata)?")


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
        self._http = Connections(parts.scheme, parts.hostname, parts.port, timeout)
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
            self._signatures = {key: signature_of(key, found[key]) for key in sorted(found)}
        return self._signatures

    def predict(
        self, x: Any, *, signature: str = DEFAULT_SIGNATURE, over: Over | None = None, key: str | None = None
    ) -> Any:
        """Ask the model.

        Args:
            x: What its one input takes; or a dict by the inputs' names, or a list in the order of their names.
                Numbers are cast where nothing is lost but a float's last digits.
            signature: The key of the signature.
            over: "rest" or "grpc". By default gRPC where its address is known and the inputs are larger than
                ``LARGE`` or of a dtype that JSON has not, else REST. The answer is the same.
            key: Where the server splits the requests of the model: whose request it is, such as a user's name. The
                same key is answered by the same arm each time.

        Returns:
            The output, or a dict by the outputs' names where there are several; strings are bytes.

        Raises:
            DataError: The inputs do not fit the signature; nothing was sent.
            InputError: The key is empty or too long; nothing was sent.
            NameNotFound: The model has no such signature.
            ServerUnreachable: Nothing answers at the address, or not in time.
            RequestRefused: The server answered with an error of its own.
        """
        headers = {} if key is None else {KEY_HEADER: in_header(_checked(key))}
        signed, arrays = self._fit(signature, x)
        if self._choose(over, signed, arrays) == "grpc":
            answer = self._over_grpc(self._message(signature, arrays), headers)
        else:
            answer = self._over_rest(signed, request_body(signature, arrays), headers)
        return next(iter(answer.values())) if len(answer) == 1 else answer

    def outcome(
        self, success: bool | Sequence[bool], *, key: str | Sequence[str] | None = None, arm: str | None = None
    ) -> int:
        """Tell the server whether what it had answered was any good, for the arms of a split to be compared.

        Args:
            success: Whether it was; or a sequence, of several answers.
            key: What :meth:`predict` was given, for all of them or for each.
            arm: The name of the arm that answered, where there were no keys.

        Returns:
            How many outcomes were counted: all, or none where one of them is wrong.

        Raises:
            InputError: Neither a key nor an arm is given, or both, or not a key for each; nothing was sent.
            ServerUnreachable: Nothing answers at the address.
            RequestRefused: The requests of the model are not split, or there is no such arm.
        """
        rows = _outcomes(success, key, arm)
        body = json.dumps({"outcomes": rows}).encode()
        return int(self._json("POST", f"{self._model}:outcome", f"{self.name} was told outcomes", body)["counted"])

    def target(self, samples: Iterable[Any], *, signature: str = DEFAULT_SIGNATURE, over: Over = "rest") -> Target:
        """Return the calls of :meth:`predict` on samples as what a load generator sends, one after the other.

        Raises:
            DataError: A sample does not fit the signature, or there is none.
        """
        fitting = [self._fit(signature, x) for x in samples]
        if not fitting:
            raise DataError("there is nothing to ask", found="no samples", wanted="at least one", cure="Give some.")
        if self._choose(over, *fitting[0]) == "grpc":
            messages = tuple(self._message(signature, arrays).SerializeToString() for _, arrays in fitting)
            return Target(str(self._grpc_address), messages, "grpc")
        return Target(f"{self.url}:predict", tuple(request_body(signature, arrays) for _, arrays in fitting), "rest")

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
            return signed, fitted(signed, x)
        except InputError:
            if not known:
                raise
        self.signatures(refresh=True)  # the server may have loaded a newer version, with other signatures, since
        signed = self._signature(key)
        return signed, fitted(signed, x)

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
            large = sum(map(_size, arrays.values())) > LARGE
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

    def _over_rest(self, signed: Signature, body: bytes, headers: Mapping[str, str]) -> Arrays:
        what = f"{self.name} was asked to predict"
        outputs = self._json("POST", f"{self._path}:predict", what, body, headers)["outputs"]
        try:
            return outputs_of(signed, outputs)
        except (KeyError, TypeError, ValueError):  # a newer version, which takes the same and answers something else
            return outputs_of(self.signatures(refresh=True)[signed.name], outputs)

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

    def _over_grpc(self, request: Any, headers: Mapping[str, str]) -> Arrays:
        import grpc

        from tfdeploy_magic.serving.tensors import array_of

        try:
            answer = self._stub().Predict(request, timeout=self._timeout, metadata=tuple(headers.items()))
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
            return unreachable(str(self._grpc_address), f"no answer within {self._timeout:g} s")
        if code == "UNAVAILABLE" and re.search(r"connect|Socket closed|GOAWAY|DNS", message):
            return unreachable(str(self._grpc_address), message)
        what = f"{self.name} was asked to predict"
        return RequestRefused(what, status=code, message=message, cure=self._cure(message))

    def _json(
        self,
        method: str,
        path: str,
        what: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        status, answer = self._http.request(method, path, body, headers)
        code = _CODES.get(status, f"HTTP {status}")
        try:
            found = parsed(answer)
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
        if "are not split" in message:
            return f"%serve {self.name} --split 90/10 splits them."
        if message.endswith(":outcome"):
            return "Only the server of %serve counts outcomes: TensorFlow Serving has no arms."
        if "has no arm" in message:
            return "Name one of these in arm=, or give the key that was asked with."
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


def _checked(key: Any) -> str:
    """Return a key that the server will take."""
    if isinstance(key, str) and 0 < len(in_header(key)) <= LONGEST_KEY:
        return key
    raise InputError(
        "this is no key",
        found=repr(key) if not isinstance(key, str) or not key else f"{len(in_header(key))} characters",
        wanted=f"text of 1 to {LONGEST_KEY} characters, percent-encoded where it is not ASCII",
        cure="Give what tells one user from another, str(user_id).",
    )


def _outcomes(success: Any, key: Any, arm: str | None) -> list[dict[str, Any]]:
    """Return the rows of a request that tells outcomes."""
    if (key is None) is (arm is None):
        raise InputError(
            "an outcome belongs to one arm",
            found="a key and an arm" if arm is not None else "neither a key nor an arm",
            wanted="one of them",
            cure='Give the key that was asked with, key="user-7", or arm="canary".',
        )
    successes = [success] if isinstance(success, bool | np.bool_) else list(success)
    if wrong := [one for one in successes if not isinstance(one, bool | np.bool_)]:
        raise InputError("this is no outcome", found=repr(wrong[0]), wanted="True or False", cure="Give success=True.")
    if key is None:
        return [{"arm": arm, "success": bool(good)} for good in successes]
    keys = [key] * len(successes) if isinstance(key, str) else list(key)
    if len(keys) != len(successes):
        raise InputError(
            "not every outcome has a key of its own",
            found=f"{len(successes)} outcomes and {len(keys)} keys",
            wanted="as many of one as of the other",
            cure="Give the key of each request beside its outcome.",
        )
    return [{"key": _checked(one), "success": bool(good)} for one, good in zip(keys, successes, strict=True)]


def _quoted(name: str) -> str:
    return urllib.parse.quote(name, safe="")


def _size(array: npt.NDArray[Any]) -> int:
    return array.nbytes if array.dtype.kind != "O" else sum(map(len, array.flat))


def _version_status(row: dict[str, Any]) -> VersionStatus:
    said = row.get("status", {})
    code = said.get("error_code", "OK")
    problem = None if code == "OK" else Refusal(Code[code], said.get("error_message", ""))
    return VersionStatus(int(row["version"]), row["state"], problem)
