"""Load: many clients that ask at once for some seconds, and what they saw.

The clients are in a process of their own, without TensorFlow, so that they take no time from the notebook and as
little as can be from the server. The loop is closed: a client waits for its answer before it asks again. A server that
stalls is then asked less, so the latencies say what this many clients saw, not what a stream of requests would see that
goes on arriving meanwhile (coordinated omission).
"""

from __future__ import annotations

import base64
import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson

from tfdeploy_magic.errors import DataError, ServingError
from tfdeploy_magic.jobs.progress import Report, silent
from tfdeploy_magic.jobs.server import python_command

KEPT = 100_000
"""Latencies that a result holds; of more, a sample drawn at random."""

GROWTH = 1.05
"""A step of a sweep has gained something when it answers this many times more than the best before it."""

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)
"""Messages of any size, and no proxy between us and the address that was given."""

_TIMEOUT = 30.0


@dataclass(frozen=True)
class Target:
    """What is asked.

    Args:
        url: The address of a call, "http://127.0.0.1:8501/v1/models/NAME:predict"; "127.0.0.1:8500" of gRPC.
        bodies: What is sent, one after the other: JSON, or ``PredictRequest`` messages.
        over: Which of the two.
    """

    url: str
    bodies: tuple[bytes, ...]
    over: Literal["rest", "grpc"] = "rest"


@dataclass(frozen=True)
class Second:
    """What was answered within one second of a run; the last one holds what was waited for after it too.

    Args:
        second: Seconds since its beginning.
        requests: Answers and failures.
        failures: How many of them were failures.
        p95_ms: The 95th percentile of the latency of the answers; None where there were none.
    """

    second: int
    requests: int
    failures: int
    p95_ms: float | None


@dataclass(frozen=True, eq=False)
class Load:
    """What some clients saw of a server.

    Args:
        clients: How many asked at once.
        seconds: From the first request to the last answer.
        over: "rest" or "grpc".
        requests: How many were sent.
        failures: HTTP status, gRPC code, "unreachable", "closed" or "timeout" -> how many requests got that.
        first_failure: What the server said to the first of them.
        latencies_ms: Of the answers, failures not among them: all, or ``KEPT`` of them drawn at random.
        max_ms: The longest of all.
        concurrency: Mean number of requests that waited for an answer.
        timeline: Each second of it.
        request_bytes: Mean size of a request, over REST with its head.
        answer_bytes: Mean size of an answer, over REST with its head.
        generator: Share of one core that the clients took themselves; near 1 they were what limited the throughput.
    """

    clients: int
    seconds: float
    over: str
    requests: int
    failures: dict[str, int]
    first_failure: str
    latencies_ms: npt.NDArray[np.float64]
    max_ms: float | None
    concurrency: float
    timeline: tuple[Second, ...]
    request_bytes: float
    answer_bytes: float
    generator: float

    @property
    def failed(self) -> int:
        """How many requests got no answer, or an error."""
        return sum(self.failures.values())

    @property
    def throughput(self) -> float:
        """Answers per second."""
        return (self.requests - self.failed) / self.seconds

    @property
    def p50_ms(self) -> float | None:
        """The median latency in ms; None where nothing was answered."""
        return percentile(self.latencies_ms, 50)

    @property
    def p95_ms(self) -> float | None:
        """The 95th percentile of the latency in ms."""
        return percentile(self.latencies_ms, 95)

    @property
    def p99_ms(self) -> float | None:
        """The 99th percentile of the latency in ms."""
        return percentile(self.latencies_ms, 99)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that survives JSON."""
        return {**asdict(self), "latencies_ms": self.latencies_ms.tolist()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Load:
        """Rebuild from :meth:`to_dict`, also after a trip through JSON."""
        latencies = np.array(data["latencies_ms"], np.float64)
        return cls(**{**data, "latencies_ms": latencies, "timeline": tuple(Second(**row) for row in data["timeline"])})


@dataclass(frozen=True)
class Saturation:
    """How throughput grew with the number of clients.

    Args:
        loads: One for each number of clients, fewest first.
    """

    loads: tuple[Load, ...]

    @property
    def peak(self) -> Load:
        """The one that answered most."""
        return max(self.loads, key=lambda load: load.throughput)

    @property
    def knee(self) -> Load | None:
        """The fewest clients with which throughput no longer grew; None where it grew to the last.

        More clients than that only wait longer.
        """
        enough = next(load for load in self.loads if load.throughput * GROWTH >= self.peak.throughput)
        return None if enough is self.loads[-1] or not enough.throughput else enough

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that survives JSON."""
        return {"loads": [load.to_dict() for load in self.loads]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Saturation:
        """Rebuild from :meth:`to_dict`, also after a trip through JSON."""
        return cls(tuple(Load.from_dict(row) for row in data["loads"]))


def run(
    target: Target,
    *,
    clients: int = 8,
    seconds: float = 10.0,
    timeout: float = _TIMEOUT,
    report: Report | None = None,
) -> Load:
    """Ask with many clients at once; failed requests are counted, never raised.

    Args:
        target: What is asked.
        clients: How many ask at once, each over a connection of its own.
        seconds: How long they begin new requests; what is under way then is waited for.
        timeout: Seconds after which a request without an answer has failed.
        report: Hears how far it is.

    Raises:
        DataError: There are no clients, no seconds or no bodies.
        ServingError: The process of the clients ended before it had a result.
    """
    if clients < 1 or not seconds > 0 or not target.bodies:
        raise DataError(
            "this is no load",
            found=f"{clients} clients, {seconds:g} s, {len(target.bodies)} bodies",
            wanted="at least one client, some time and one body",
            cure="Give clients=8, seconds=10 and a target of Client.target().",
        )
    report = report or Report(silent)
    report.stage(f"{clients} client{'s' if clients > 1 else ''}")
    order = {
        "url": target.url,
        "over": target.over,
        "clients": clients,
        "seconds": seconds,
        "timeout": timeout,
        "bodies": [base64.b64encode(body).decode() for body in target.bodies],
    }
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            python_command("from tfdeploy_magic.serving import load_clients; load_clients.main()"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,  # the interrupt of a terminal is ours to answer, by ending it
        )
        try:
            result = _followed(process, order, report)
        finally:
            process.kill()
            process.wait()
        if result is None:
            said.seek(0)
            raise _died(said.read().decode(errors="replace"))
    report.finish()
    return Load.from_dict(result)


def saturation(
    target: Target, *, clients: int = 64, seconds: float = 2.0, timeout: float = _TIMEOUT, report: Report | None = None
) -> Saturation:
    """Ask with 1, 2, 4, ... clients, and see where more of them bring no more answers.

    It ends early where neither of the last two steps gained anything.

    Args:
        target: What is asked.
        clients: The most clients.
        seconds: How long each step lasts.
        timeout: Seconds after which a request without an answer has failed.
        report: Hears how far it is.
    """
    loads: list[Load] = []
    best = [0.0]
    for count in _steps(clients):
        loads.append(run(target, clients=count, seconds=seconds, timeout=timeout, report=report))
        best.append(max(best[-1], loads[-1].throughput))
        if len(loads) > 2 and best[-1] <= best[-3] * GROWTH:
            break
    return Saturation(tuple(loads))


def _steps(clients: int) -> Iterator[int]:
    count = 1
    while count < clients:
        yield count
        count *= 2
    yield clients


def _followed(process: subprocess.Popen[bytes], order: dict[str, Any], report: Report) -> dict[str, Any] | None:
    assert process.stdin is not None and process.stdout is not None
    # Standard input stays open until the end: that it closes tells the other side that we are gone.
    with contextlib.suppress(BrokenPipeError), process.stdout, process.stdin:
        process.stdin.write(orjson.dumps(order) + b"\n")
        process.stdin.flush()
        for line in process.stdout:
            if not line.endswith(b"\n"):
                break  # it ended in the middle of it
            heard = orjson.loads(line)
            if "load" in heard:
                found: dict[str, Any] = heard["load"]
                return found
            report.fraction(heard["fraction"])
    return None


def _died(said: str) -> ServingError:
    last = (said.strip() or "nothing was said").splitlines()[-1]
    return ServingError(
        "the process of the clients ended early",
        found=last[:300],
        wanted="a result",
        cure="Try it with fewer clients, or fewer and smaller bodies.",
    )


def percentile(latencies: npt.NDArray[np.float64], share: float) -> float | None:
    """Return a percentile; None of nothing."""
    return float(np.percentile(latencies, share)) if latencies.size else None
