"""The REST door: granian's HTTP server within this process, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import uvloop

from tfdeploy_magic.errors import ServingError
from tfdeploy_magic.serving.json_documents import error_body
from tfdeploy_magic.serving.rest import Reply, RestApi, unzipped
from tfdeploy_magic.serving.router import ARM_HEADER, KEY_HEADER, in_header
from tfdeploy_magic.serving.status import Refusal

MAX_BODY = 256 << 20
"""Bytes of a request's body."""

LARGE_BODY = 1 << 16
"""A body that may take a while to arrive; only those are worth a watch."""

_JSON = [("Content-Type", "application/json")]
_PLAIN = [("Content-Type", "text/plain")]
_CORS = [
    ("Access-Control-Allow-Origin", "*"),
    ("Access-Control-Allow-Methods", "POST, GET"),
    ("Access-Control-Allow-Headers", f"Content-Type, {KEY_HEADER}"),
    ("Access-Control-Expose-Headers", ARM_HEADER),
]
_NOT_FOUND = (
    b"<HTML><HEAD>\n<TITLE>404 Not Found</TITLE>\n</HEAD><BODY>\n<H1>Not Found</H1>\n</BODY></HTML>\n"  # libevent's own
)


class HttpDoor:
    """An HTTP server in a thread.

    Args:
        api: What answers below ``/v1/``.
        host: The address to listen on.
        port: The port.
        metrics_path: Where Prometheus finds ``metrics()``; None for nowhere.
        metrics: Returns the metrics as text.
        cors: Let pages of any origin ask.
        timeout: Seconds that a body may take to arrive; 0 or less for any time.

    Raises:
        ServingError: The port is taken, or the address is none of this machine's.
    """

    def __init__(
        self,
        api: RestApi,
        host: str,
        port: int,
        *,
        metrics_path: str | None,
        metrics: Callable[[], bytes],
        cors: bool = False,
        timeout: float = 30.0,
    ) -> None:
        from granian.constants import HTTPModes, Interfaces
        from granian.server.embed import Server

        check_port(host, port)
        logging.getLogger("_granian").setLevel(logging.ERROR)
        self.host, self.port = host, port
        self._api, self._metrics_path, self._metrics = api, metrics_path, metrics
        self._cors, self._timeout = cors, timeout if timeout > 0 else None
        self._headers = _JSON + _CORS if cors else _JSON
        self._guarded = is_loopback(host)
        address = host if ":" in host else socket.gethostbyname(host)  # granian takes no names
        self._server = Server(
            self._answer, address=address, port=port, interface=Interfaces.RSGI, http=HTTPModes.http1, websockets=False,
            log_enabled=False, backlog=1024,
        )  # fmt: skip
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="rest", daemon=True)
        self._thread.start()
        self._wait_until_it_listens()

    def close(self) -> None:
        """Stop listening; requests that are being answered still are."""
        with contextlib.suppress(RuntimeError):  # its loop is closed already
            self._loop.call_soon_threadsafe(self._server.stop)
        self._thread.join(timeout=10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve())
        self._loop.close()

    def _wait_until_it_listens(self) -> None:
        ends = time.monotonic() + 10
        while time.monotonic() < ends and self._thread.is_alive():
            try:
                socket.create_connection((self.host, self.port), 1).close()
                return
            except OSError:
                time.sleep(0.01)
        raise ServingError(
            "the REST API did not start",
            found=f"nothing listening at {self.host}:{self.port} after 10 s",
            wanted="an address of this machine",
            cure="Try another port.",
        )

    async def _answer(self, scope: Any, protocol: Any) -> None:
        headers = scope.headers
        if self._guarded and (wrong := self._stranger(headers)):
            protocol.response_bytes(403, self._headers, error_body(wrong))
            return
        path = f"{scope.path}?{scope.query_string}" if scope.query_string else scope.path
        if path[:4].lower() != "/v1/":
            self._answer_beside(scope.path, path, protocol)
            return
        if scope.method == "OPTIONS" and self._cors and headers.get("origin", "").startswith(("http://", "https://")):
            protocol.response_empty(200, self._headers)
            return
        status, answer, arm = await self._reply(scope.method, path, headers, protocol)
        told = [*self._headers, (ARM_HEADER, in_header(arm))] if arm else self._headers
        protocol.response_bytes(status, told, answer)

    async def _reply(self, method: str, path: str, headers: Any, protocol: Any) -> Reply:
        try:
            body = await self._body(headers, protocol) if method != "GET" else b""
        except Refusal as refusal:
            return refusal.code.http, error_body(refusal.message), ""
        except TimeoutError:
            return 408, error_body(f"the body did not arrive in {self._timeout:g} s"), ""
        except RuntimeError:  # granian's ProtocolClosed
            return 400, error_body("the body is shorter than it was said to be"), ""
        if body is None:
            return 413, error_body(f"the body is larger than {MAX_BODY} bytes"), ""
        return await self._api.reply(method, path, body, headers)

    def _answer_beside(self, path: str, with_query: str, protocol: Any) -> None:
        if path != self._metrics_path:
            protocol.response_bytes(404, [("Content-Type", "text/html")], _NOT_FOUND)
        elif with_query != path:
            wrong = f"Unexpected path: {with_query}. Should be {path}"
            protocol.response_bytes(400, _PLAIN, wrong.encode("utf-8", "replace"))
        else:
            protocol.response_bytes(200, _PLAIN, self._metrics())

    async def _body(self, headers: Any, protocol: Any) -> bytes | None:
        """Return the body, unzipped; None when it is too large."""
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) <= LARGE_BODY:
            body: bytes | None = await protocol()
        elif length.isdecimal() and int(length) > MAX_BODY:
            return None
        else:
            async with asyncio.timeout(self._timeout):
                body = await protocol() if length.isdecimal() else await _chunks(protocol)
        if body is not None and "gzip" in headers.get("content-encoding", "").lower():
            return await asyncio.to_thread(unzipped, body)  # a small body may hold a large one
        return body

    def _stranger(self, headers: Any) -> str:
        """Say why a request is not for us: a page of another site reaches loopback too, by a name of its own."""
        host = headers.get("host")
        if host is not None and not is_loopback(_name_in(host)):
            return f"Host {host} is not this server's; it listens on {self.host} only"
        origin = headers.get("origin")
        if origin is not None and not self._cors and not is_loopback(_name_in_origin(origin)):
            return f"Origin {origin} may not ask; --rest_api_enable_cors_support lets pages of any origin ask"
        return ""


async def _chunks(protocol: Any) -> bytes | None:
    parts, size = [], 0
    async for part in protocol:
        size += len(part)
        if size > MAX_BODY:
            return None
        parts.append(part)
    return b"".join(parts)


def _name_in(host: str) -> str:
    """Return a Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _name_in_origin(origin: str) -> str:
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""


@functools.lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether a host can only mean this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def check_port(host: str, port: int) -> None:
    """Fail when nobody could listen there.

    Raises:
        ServingError: The port is taken, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            # Without this, connections that have just ended would count as somebody listening.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise ServingError(
                f"cannot listen on {host}:{port}",
                found="another program there" if taken else (error.strerror or str(error)),
                wanted="a free port of this machine",
                cure="Choose another port, or leave it out and a free one is found." if taken else "Choose another.",
            ) from error


def free_port(host: str) -> int:
    """Return a port that nobody listens on."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def reached(host: str) -> str:
    """Return the address by which this machine reaches a server that listens on ``host``."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
