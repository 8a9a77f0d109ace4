"""Ends with status 0 if the server of this container answers, whatever its flags are: it notes its own addresses."""

from __future__ import annotations

import http.client
import socket
import sys
from urllib.parse import urlsplit

from tfdeploy_magic.serving import state

SECONDS = 4.0


def main() -> int:
    """Ask each address of the server; there is none before its models are loaded."""
    servers = state.running()
    for server in servers:
        if server.url:
            _ask_rest(urlsplit(server.url).netloc)
        if server.grpc:
            _ask_grpc(server.grpc)
    return 0 if servers else 1


def _ask_rest(address: str) -> None:
    """Wait for an answer, be it that there is no such page."""
    connection = http.client.HTTPConnection(address, timeout=SECONDS)
    connection.request("GET", "/v1/models")
    connection.getresponse().read()


def _ask_grpc(address: str) -> None:
    """Wait for the greeting of HTTP/2; a port that speaks TLS answers that this is not TLS."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), SECONDS) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        connection.recv(1)


if __name__ == "__main__":
    sys.exit(main())
