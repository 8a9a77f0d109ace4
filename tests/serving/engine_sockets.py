"""Sockets in an engine's place: one that leads to it and can be cut, and one where what it says is made up."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

VERSION = {"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Version": "20.10.24", "Arch": "amd64"}


class Way:
    """The way to the engine that tests use.

    Args:
        path: Where it begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.address = f"unix://{path}"
        self._target = urlsplit(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")).path
        self._listening: socket.socket | None = None
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._begin()

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Have nobody reach the engine meanwhile, as if it had been stopped."""
        self.close()
        try:
            yield
        finally:
            self._begin()

    def close(self) -> None:
        """End it, with all that goes over it."""
        assert self._listening is not None
        self.path.unlink()
        _shut(self._listening)
        with self._lock:
            for each in self._open:
                _shut(each)
            self._open.clear()

    def _begin(self) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.path))
        self._listening.listen()
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listening.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(self._target)
                with self._lock:
                    self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(1 << 16):
            other.sendall(data)
    _shut(one)
    _shut(other)


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()


@contextlib.contextmanager
def saying(path: Path, answers: Mapping[str, tuple[int, Any]]) -> Iterator[str]:
    """Stand in for an engine.

    Args:
        path: The socket.
        answers: "GET /images/x/json" -> status and content: JSON; of a pull, its events.

    Yields:
        Its address.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = urlsplit(self.path).path.removeprefix(f"/v{VERSION['ApiVersion']}")
            known = {"GET /version": (200, VERSION), **answers}
            status, content = known.get(f"{self.command} {asked}", (404, {"message": f"no {asked}"}))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if isinstance(content, list) and status == 200 and asked == "/images/create":  # as they come
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for event in content:
                    line = json.dumps(event).encode() + b"\r\n"
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.write(b"0\r\n\r\n")
                return
            body = json.dumps(content).encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = answer  # noqa: N815

        def address_string(self) -> str:
            return "the client"

        def log_message(self, *_: object) -> None:
            pass

    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown()
            thread.join()
