"""TensorFlow Serving's REST API: which request asks for what, and what it is answered (http_rest_api_handler.cc).

This knows nothing of sockets: a request is a method, a path, a body and headers. One call is not TensorFlow Serving's:
``POST /v1/models/NAME:outcome`` tells whether what an arm of a split had answered was any good.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import re
import time
import weakref
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.serving import inference
from tfdeploy_magic.serving.calls import Call, Models, Servable
from tfdeploy_magic.serving.json_documents import error_body, parse, signature_name, write_answer
from tfdeploy_magic.serving.json_examples import parse_examples, write_classify, write_regress
from tfdeploy_magic.serving.json_predict import Codec
from tfdeploy_magic.serving.outcomes import Outcomes, outcomes_of
from tfdeploy_magic.serving.protos import get_model_metadata_pb2, input_pb2
from tfdeploy_magic.serving.router import Router, Routing, Split
from tfdeploy_magic.serving.status import Code, Refusal, invalid
from tfdeploy_magic.serving.turns import Turn

MAX_UNCOMPRESSED = 100 << 20
"""Bytes that a compressed body may unfold to (http_server.cc)."""

LARGE = 1 << 20
"""Bytes of a request, or values of an answer, that may take long to read or to write."""

_T = TypeVar("_T")
_WHICH = r"(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?"
_PATHS = {
    "POST": re.compile(rf"/v1/models/([^/:]+){_WHICH}:(classify|regress|predict|outcome)", re.IGNORECASE | re.ASCII),
    "GET": re.compile(rf"/v1/models(?:/([^/:]+))?{_WHICH}(?:/(metadata))?", re.IGNORECASE | re.ASCII),
}
_HIGHEST = (1 << 63) - 1
_LONGEST_KEPT = 256
_NO_HEADERS: Mapping[str, str] = {}
_log = logging.getLogger(__name__)

Reply = tuple[int, bytes, str]
"""An HTTP status, JSON, and the arm that answered, "" where the requests of the model are not split."""

Observe = Callable[[str, str, str, float, int, Routing], None]
"""Told of each request: the API that it asked ("predict", "classify", "regress", or "" for anything else), the model,
the status, microseconds, how many examples it brought, and who answered it."""

Count = Callable[[Split, Outcomes], bool]
"""Counts the outcomes of a split; False where another one has begun."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a path asks for.

    Args:
        what: "predict", "classify", "regress", "outcome", "status" or "metadata".
        model: The model's name.
        version: The version's number; None for the newest.
        label: A version's label.
    """

    what: str
    model: str
    version: int | None
    label: str | None


def asked(method: str, path: str) -> Asked:
    """Return what a request asks for.

    Raises:
        Refusal: It is none of the API's.
    """
    return (_asked_before if len(path) <= _LONGEST_KEPT else _asked)(method, path)


def _asked(method: str, path: str) -> Asked:
    match = _PATHS[method].fullmatch(path) if method in _PATHS else None
    model, version, label, what = match.groups() if match is not None else (None,) * 4
    what = (what or "status").lower()
    if match is None or (what == "outcome" and (version or label)):
        raise invalid(f"Malformed request: {method} {path}")
    if model is None:
        raise invalid("Missing model name in request.")
    return Asked(what, model, None if version is None else _number(version), label)


_asked_before = functools.lru_cache(maxsize=1024)(_asked)


def _number(digits: str) -> int:
    significant = digits.lstrip("0") or "0"
    if len(significant) > len(str(_HIGHEST)) or int(significant) > _HIGHEST:
        raise invalid(f"Failed to convert version: {digits} to numeric.")
    return int(significant)


class RestApi:
    """The API over some models.

    Args:
        models: What is served.
        observe: Told of each request.
        router: Knows the splits.
        count: Given the outcomes that are told.
        check_method_names: Whether a signature must have been made for what it is asked (classify, regress).
        timeout: Seconds that an answer may take; 0 or less for any time.
        record: Given each call that was answered, its model, version and answers; None where nothing is recorded.
    """

    def __init__(
        self,
        models: Models,
        *,
        observe: Observe,
        router: Router | None = None,
        count: Count = lambda *_: True,
        check_method_names: bool = False,
        timeout: float = 30.0,
        record: Callable[[str, int, Call, Arrays], None] | None = None,
    ) -> None:
        self._models, self._observe, self._record = models, observe, record
        self._router, self._count = router or Router(), count
        self._timeout = timeout if timeout > 0 else None
        self._check_method_names = check_method_names
        self._gets = {"status": self._status, "metadata": self._metadata}
        self._turn = Turn()
        self._codecs: weakref.WeakKeyDictionary[Servable, Codec] = weakref.WeakKeyDictionary()
        self._posts = {"predict": self._predict, "classify": self._classify, "regress": self._regress}

    async def reply(self, method: str, path: str, body: bytes, headers: Mapping[str, str] = _NO_HEADERS) -> Reply:
        """Answer a request; nothing is ever raised."""
        began = time.perf_counter()
        api, model, status, examples = "", "", "OK", 0
        routing = Routing(headers)
        try:
            wanted = asked(method, path)
            model = wanted.model
            if wanted.what in self._gets:
                return 200, self._gets[wanted.what](wanted), ""
            if wanted.what == "outcome":
                return 200, await self._outcome(wanted, body), ""
            api = wanted.what
            answer, examples = await self._posts[api](wanted, body, routing)
            return 200, answer, routing.arm
        except Refusal as refusal:
            status = refusal.code.name
            return refusal.code.http, error_body(refusal.message), routing.arm
        except Exception as error:
            _log.exception("%s %s failed", method, path)
            status = Code.INTERNAL.name
            return Code.INTERNAL.http, error_body(f"{type(error).__name__}: {error}"), routing.arm
        finally:
            self._observe(api, model, status, (time.perf_counter() - began) * 1e6, examples, routing)

    async def _predict(self, wanted: Asked, body: bytes, routing: Routing) -> tuple[bytes, int]:
        try:
            held = self._use(wanted, routing)
        except Refusal:
            # What is wrong with a body comes before what is wrong with a model.
            signature_name(await _apart(len(body), parse, body))
            raise
        with held as servable:
            routing.version = servable.version
            codec = self._codecs.get(servable)
            if codec is None:
                codec = self._codecs[servable] = Codec(servable.signatures)
            call, by_row = await _apart(len(body), codec.parse, body)
            answers = await self._answers(servable, call)
            size = sum(array.size for array in answers.values())
            return await _apart(size, codec.write, answers, call.signature, by_row), 0

    async def _classify(self, wanted: Asked, body: bytes, routing: Routing) -> tuple[bytes, int]:
        name, rows = await _apart(len(body), _examples, body)
        with self._use(wanted, routing) as servable:
            routing.version = servable.version
            call = inference.classify_call(servable.signatures, name, rows, check_method_name=self._check_method_names)
            result = inference.classification(await self._answers(servable, call), len(rows))
        found = [[(each.label, each.score) for each in row.classes] for row in result.classifications]
        return write_classify(found), len(rows)

    async def _regress(self, wanted: Asked, body: bytes, routing: Routing) -> tuple[bytes, int]:
        name, rows = await _apart(len(body), _examples, body)
        with self._use(wanted, routing) as servable:
            routing.version = servable.version
            call = inference.regress_call(servable.signatures, name, rows, check_method_name=self._check_method_names)
            result = inference.regression(await self._answers(servable, call), len(rows))
        return write_regress([each.value for each in result.regressions]), len(rows)

    async def _outcome(self, wanted: Asked, body: bytes) -> bytes:
        document = await _apart(len(body), parse, body)
        while (split := self._router.split(wanted.model)) is not None:
            outcomes = await _apart(len(body), outcomes_of, document, split)
            if self._count(split, outcomes):
                return write_answer("counted", str(sum(outcomes.values())).encode())
            await asyncio.sleep(0)  # another split is just beginning
        self._models.statuses(wanted.model)
        what = f"The requests of model {wanted.model} are not split: no arm has outcomes."
        raise Refusal(Code.FAILED_PRECONDITION, what)

    def _use(self, wanted: Asked, routing: Routing) -> AbstractContextManager[Servable]:
        return self._router.hold(self._models, routing, wanted.model, wanted.version, wanted.label)

    async def _answers(self, servable: Servable, call: Call) -> Arrays:
        if servable.inline(call):
            answers = await self._turn.answer(servable, call)
        else:
            try:
                async with asyncio.timeout(self._timeout):
                    answers = await asyncio.wrap_future(servable.submit(call))
            except TimeoutError:
                raise Refusal(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification") from None
        if self._record is not None:
            self._record(servable.name, servable.version, call, answers)
        return answers

    def _status(self, wanted: Asked) -> bytes:
        # A label in the path is ignored, as TensorFlow Serving does.
        rows = [
            {
                "version": str(found.version),
                "state": found.state,
                "status": {
                    "error_code": found.problem.code.name if found.problem else "OK",
                    "error_message": found.problem.message if found.problem else "",
                },
            }
            for found in self._models.statuses(wanted.model, wanted.version)
        ]
        return json.dumps({"model_version_status": rows}, indent=1).encode() + b"\n"

    def _metadata(self, wanted: Asked) -> bytes:
        from google.protobuf import json_format

        with self._models.use(wanted.model, wanted.version, wanted.label) as servable:
            listed = get_model_metadata_pb2.SignatureDefMap()
            for key, signature in servable.signatures.items():
                listed.signature_def[key].CopyFrom(signature)
            spec = {"name": servable.name, "signature_name": "", "version": str(servable.version)}
        described = json_format.MessageToDict(
            listed, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        model, signatures = (json.dumps(each, indent=1) for each in (spec, described))
        return f'{{\n"model_spec":{model}\n,\n"metadata": {{"signature_def": {signatures}\n}}\n}}\n'.encode()


async def _apart(size: int, work: Callable[..., _T], *given: Any) -> _T:
    """Do what may take long in another thread: meanwhile the event loop answers others."""
    return await asyncio.to_thread(work, *given) if size > LARGE else work(*given)


def unzipped(body: bytes) -> bytes:
    """Return what a gzip body holds.

    Raises:
        Refusal: It is no gzip, or unfolds to more than is allowed.
    """
    unfolder = zlib.decompressobj(wbits=31)
    try:
        plain = unfolder.decompress(body, MAX_UNCOMPRESSED)
    except zlib.error as error:
        raise invalid(f"Failed to uncompress the gzip body of the request: {error}") from None
    if not unfolder.eof:
        why = f"more than {MAX_UNCOMPRESSED} bytes" if len(plain) >= MAX_UNCOMPRESSED else "its end is missing"
        raise invalid(f"Failed to uncompress the gzip body of the request: {why}")
    return plain


def _examples(body: bytes) -> tuple[str, list[bytes]]:
    """Return the signature's name and the examples, serialized, of a request to classify or regress."""
    name, examples, context = parse_examples(body)
    asked_with = input_pb2.Input()
    if context is None:
        asked_with.example_list.examples.extend(examples)
    else:
        asked_with.example_list_with_context.examples.extend(examples)
        asked_with.example_list_with_context.context.CopyFrom(context)
    return name, inference.examples_of(asked_with)
