"""HTTP connections to one server, kept open between requests."""

from __future__ import annotations

import contextlib
import http.client
import weakref
from collections import deque
from collections.abc import Mapping

from tfdeploy_magic.errors import ServerUnreachable


class Connections:
    """Connections to one HTTP server that are kept open, each used by one thread at a time."""

    def __init__(self, scheme: str, host: str, port: int | None, timeout: float) -> None:
        self._kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        self._place = (host, port)
        self._timeout = timeout
        self._idle: deque[http.client.HTTPConnection] = deque()
        self.address = f"{scheme}://{f'[{host}]' if ':' in host else host}{'' if port is None else f':{port}'}"
        weakref.finalize(self, _close_all, self._idle)

    def close(self) -> None:
        """End those that lie idle."""
        _close_all(self._idle)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Return the status and the body of an answer.

        Raises:
            ServerUnreachable: Nothing answers, or not in time, or not in HTTP.
        """
        try:
            if (kept := self._kept()) is not None:
                try:
                    return self._exchange(kept, method, path, body, headers)
                except ConnectionError:  # the server ended it, and the others, while they lay idle
                    self.close()
            return self._exchange(self._kind(*self._place, timeout=self._timeout), method, path, body, headers)
        except TimeoutError:
            raise unreachable(self.address, f"no answer within {self._timeout:g} s") from None
        except (OSError, http.client.IncompleteRead) as error:
            raise unreachable(self.address, str(error) or type(error).__name__) from error
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
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
    ) -> tuple[int, bytes]:
        try:
            kind = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, body, {**kind, **(headers or {})})
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


def _close_all(connections: deque[http.client.HTTPConnection]) -> None:
    while connections:
        connections.pop().close()


def unreachable(address: str, found: str) -> ServerUnreachable:
    """Return the error for a server that does not answer."""
    slow = found.startswith("no answer within")
    return ServerUnreachable(
        f"{address} does not answer",
        found=found,
        wanted="a model server that listens there",
        cure="Give it longer with timeout=." if slow else "Start it, or give the address that it listens at.",
    )
