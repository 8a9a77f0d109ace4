"""How a request is refused: TensorFlow Serving's canonical codes, and what they are in HTTP and gRPC."""

from __future__ import annotations

import enum


class Code(enum.Enum):
    """A canonical status code: its number in gRPC, and its status in HTTP (http_rest_api_util.cc)."""

    CANCELLED = (1, 499)
    UNKNOWN = (2, 500)
    INVALID_ARGUMENT = (3, 400)
    DEADLINE_EXCEEDED = (4, 504)
    NOT_FOUND = (5, 404)
    ALREADY_EXISTS = (6, 409)
    PERMISSION_DENIED = (7, 403)
    RESOURCE_EXHAUSTED = (8, 429)
    FAILED_PRECONDITION = (9, 400)
    ABORTED = (10, 409)
    OUT_OF_RANGE = (11, 400)
    UNIMPLEMENTED = (12, 501)
    INTERNAL = (13, 500)
    UNAVAILABLE = (14, 503)
    DATA_LOSS = (15, 500)
    UNAUTHENTICATED = (16, 401)

    @property
    def number(self) -> int:
        """Its number in gRPC."""
        return self.value[0]

    @property
    def http(self) -> int:
        """Its status in HTTP."""
        return self.value[1]


_BY_NUMBER = {code.number: code for code in Code}


class Refusal(Exception):
    """Why a request gets no answer; it crosses the wire, and is no fault of the server.

    Args:
        code: The canonical code.
        message: TensorFlow Serving's own words where it has some.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        """As TensorFlow writes a status: "INVALID_ARGUMENT: what is wrong"."""
        return f"{self.code.name}: {self.message}"


def invalid(message: str) -> Refusal:
    """Return the refusal of a request that says something wrong."""
    return Refusal(Code.INVALID_ARGUMENT, message)


def from_number(number: int, message: str) -> Refusal:
    """Return the refusal that TensorFlow's own exception (``OpError.error_code``) stands for."""
    return Refusal(_BY_NUMBER.get(number, Code.UNKNOWN), message)
