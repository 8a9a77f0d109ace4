"""The clients of a load, in a process of their own: what they are to do comes in by standard input."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import sys
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from tfdeploy_magic.serving.load import CHANNEL_OPTIONS, KEPT, Load, Second, percentile

_PAUSE = 0.1
"""Seconds that a client waits after a failure before it asks again."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")


def main() -> None:
    """Be the clients that the first line of standard input describes, and write what they saw as JSON."""
    import uvloop

    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    result = uvloop.run(_all_clients(order))
    _tell({"load": result.to_dict()})


def _end_with_the_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # returns when the other end is closed
    os._exit(1)


def _end_with_an_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # An exception in a connection's callback would leave its client waiting for good.
    loop.default_exception_handler(context)
    os._exit(1)


def _tell(message: dict[str, Any]) -> None:
    # Not sys.stdout.buffer: with PYTHONUNBUFFERED that has no buffer, and may write a part only.
    with open(sys.stdout.fileno(), "wb", closefd=False) as out:
        out.write(orjson.dumps(message) + b"\n")


async def _all_clients(order: dict[str, Any]) -> Load:
    bodies = [base64.b64decode(body) for body in order["bodies"]]
    over_rest = order["over"] == "rest"
    requests = [_request(order["url"], body) for body in bodies] if over_rest else bodies
    # Each client begins at another one.
    turns = [itertools.islice(itertools.cycle(requests), n % len(requests), None) for n in range(order["clients"])]
    client = _over_rest if over_rest else _over_grpc
    if over_rest:
        asyncio.get_running_loop().set_exception_handler(_end_with_an_error)
    seen = _Seen(order["seconds"])
    used = time.process_time()
    progress = asyncio.create_task(_progress(seen))
    await asyncio.gather(*(client(order["url"], turn, order["timeout"], seen) for turn in turns))
    progress.cancel()
    load = seen.result(order["clients"], order["over"])
    return replace(load, generator=(time.process_time() - used) / load.seconds)


async def _progress(seen: _Seen) -> None:
    while True:
        await asyncio.sleep(0.2)
        _tell({"fraction": min(1.0, (time.perf_counter() - seen.began) / seen.seconds)})


class _Seen:
    """Counts what the clients see; a second's latencies are summed up when it is over."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.began = self._last = time.perf_counter()
        self.end = self.began + seconds
        self._next = self.began + 1
        self._latencies: list[float] = []
        self._failed = 0
        self._failures: Counter[str] = Counter()
        self._first_failure = ""
        self._timeline: list[Second] = []
        self._sample = np.empty((2, 0))
        self._random = np.random.default_rng()
        self._waited = self._longest = 0.0
        self._sent = self._received = self._answers = 0

    def answer(self, since: float, sent: int, received: int) -> None:
        now = self._now()
        self._latencies.append(now - since)
        self._sent += sent
        self._received += received

    def failure(self, kind: str, said: str, since: float, sent: int) -> None:
        now = self._now()
        self._failures[kind] += 1
        self._failed += 1
        self._first_failure = self._first_failure or said[:1000] or kind
        self._waited += now - since
        self._sent += sent

    def _now(self) -> float:
        self._last = now = time.perf_counter()
        while now >= self._next < self.end - 0.001:
            self._end_of_second()
        return now

    def _end_of_second(self) -> None:
        self._next += 1
        latencies = np.array(self._latencies) * 1000
        count, failed = len(latencies), self._failed
        self._timeline.append(Second(len(self._timeline), count + failed, failed, percentile(latencies, 95)))
        self._answers += count
        self._waited += float(latencies.sum()) / 1000
        self._longest = max(self._longest, float(latencies.max(initial=0.0)))
        # Those with the smallest of random keys are a fair sample of all that came so far.
        together = np.hstack((self._sample, (latencies, self._random.random(count))))
        if together.shape[1] > KEPT:
            together = together[:, np.argpartition(together[1], KEPT)[:KEPT]]
        self._sample = together
        self._latencies, self._failed = [], 0

    def result(self, clients: int, over: str) -> Load:
        seconds = self._last - self.began or self.seconds
        if self._latencies or self._failed:
            self._end_of_second()
        requests = self._answers + sum(self._failures.values())
        return Load(
            clients=clients,
            seconds=seconds,
            over=over,
            requests=requests,
            failures=dict(self._failures),
            first_failure=self._first_failure,
            latencies_ms=self._sample[0],
            max_ms=self._longest if self._answers else None,
            concurrency=self._waited / seconds,
            timeline=tuple(self._timeline),
            request_bytes=self._sent / max(requests, 1),
            answer_bytes=self._received / max(self._answers, 1),
            generator=0.0,
        )


def _request(url: str, body: bytes) -> bytes:
    parts = urllib.parse.urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _over_rest(url: str, requests: Iterator[bytes], timeout: float, seen: _Seen) -> None:
    while (now := time.perf_counter()) < seen.end:
        connection = _Connection(requests, seen)
        try:
            async with asyncio.timeout(timeout):
                await connection.open(url)
        except OSError as error:
            seen.failure("unreachable", str(error), now, 0)
            await asyncio.sleep(_PAUSE)
            continue
        if await connection.ended(timeout):
            await asyncio.sleep(_PAUSE)


class _Connection(asyncio.Protocol):
    """A client's connection: each answer sets off the next request, at the cost of no task switch.

    Args:
        requests: What is sent.
        seen: Where answers and failures are counted.
    """

    def __init__(self, requests: Iterator[bytes], seen: _Seen) -> None:
        self._requests = requests
        self._seen = seen
        self._waits = False
        self._head = b""
        self._failed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def open(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        await asyncio.get_running_loop().create_connection(lambda: self, parts.hostname or "", port, ssl=secure or None)

    async def ended(self, timeout: float) -> bool:
        """Wait for its end, and say whether that was a failure."""
        while not self._failed.done():
            await asyncio.wait((self._failed,), timeout=min(timeout, 1.0))
            if self._waits and time.perf_counter() - self._since > timeout:
                self._fail("timeout", f"no answer within {timeout:g} s")
        return self._failed.result()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if self._waits:
            self._fail("closed", str(error or "the server closed the connection"))
        elif not self._failed.done():
            self._failed.set_result(False)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not self._head:
            self._head, end, _ = bytes(self._answer).lower().partition(b"\r\n\r\n")
            if not end:
                self._head = b""
                return
            length = _LENGTH.search(self._head)
            self._size = len(self._head) + 4 + int(length[1]) if length else None
        chunks_end = self._size is None and self._answer.endswith(b"0\r\n\r\n")
        if chunks_end or (self._size is not None and len(self._answer) >= self._size):
            self._answered()

    def _send(self) -> None:
        request = next(self._requests)
        self._answer = bytearray()
        self._head = b""
        self._sent = len(request)
        self._waits = True
        self._since = time.perf_counter()
        self._transport.write(request)

    def _answered(self) -> None:
        self._waits = False
        status = self._head[9:12].decode(errors="replace")
        if status == "200":
            self._seen.answer(self._since, self._sent, len(self._answer))
        else:
            said = self._answer[len(self._head) + 4 :].decode(errors="replace")
            self._seen.failure(status, said, self._since, self._sent)
        if b"\r\nconnection: close" in self._head or time.perf_counter() >= self._seen.end:
            self._transport.close()
        else:
            self._send()

    def _fail(self, kind: str, said: str) -> None:
        self._waits = False
        self._seen.failure(kind, said, self._since, self._sent)
        self._failed.set_result(True)
        self._transport.abort()


async def _over_grpc(address: str, requests: Iterator[bytes], timeout: float, seen: _Seen) -> None:
    import grpc

    options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))  # else all clients share one connection
    async with grpc.aio.insecure_channel(address, options) as channel:
        predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        while (now := time.perf_counter()) < seen.end:
            request = next(requests)
            try:
                answer = await predict(request, timeout=timeout)
            except grpc.aio.AioRpcError as error:
                seen.failure(error.code().name, error.details() or "", now, len(request))
                if error.code() is grpc.StatusCode.UNAVAILABLE:
                    await asyncio.sleep(_PAUSE)
            else:
                seen.answer(now, len(request), len(answer))
