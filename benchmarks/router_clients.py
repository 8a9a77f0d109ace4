"""Clients that ask a server in several ways by turns, and measure its CPU for each answer meanwhile.

``benchmarks.router`` starts them in a process of their own. What they are to do comes in by standard input, as JSON:
"pid", "over", "url", "clients", "seconds" of a turn, "rounds", and the "ways", by name: the requests that are sent one
after the other, as they are; over gRPC each is a message and a key. Microseconds by way and round go out.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import grpc
import psutil
import uvloop

from tfdeploy_magic.serving import load_clients
from tfdeploy_magic.serving.load import CHANNEL_OPTIONS
from tfdeploy_magic.serving.router import KEY_HEADER

TIMEOUT = 60.0

Ask = Callable[[int, Iterator[Any], Any], Coroutine[Any, Any, None]]
"""Has one of the clients ask until the turn is over."""


def main() -> None:
    order = json.load(sys.stdin)
    found = uvloop.run(over_rest(order) if order["over"] == "rest" else over_grpc(order))
    print(json.dumps(found))


async def over_rest(order: dict[str, Any]) -> dict[str, list[float]]:
    async def ask(_: int, requests: Iterator[bytes], seen: Any) -> None:
        await load_clients._over_rest(order["url"], requests, TIMEOUT, seen)

    ways = {name: [base64.b64decode(each) for each in requests] for name, requests in order["ways"].items()}
    return await rounds(order, ways, ask)


async def over_grpc(order: dict[str, Any]) -> dict[str, list[float]]:
    options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
    channels = [grpc.aio.insecure_channel(order["url"], options) for _ in range(order["clients"])]
    predict = [each.unary_unary("/tensorflow.serving.PredictionService/Predict") for each in channels]

    async def ask(number: int, requests: Iterator[tuple[bytes, Any]], seen: Any) -> None:
        while (now := time.perf_counter()) < seen.end:
            message, metadata = next(requests)
            answer = await predict[number](message, metadata=metadata)
            seen.answer(now, len(message), len(answer))

    ways = {
        name: [(base64.b64decode(message), ((KEY_HEADER, key),) if key else ()) for message, key in requests]
        for name, requests in order["ways"].items()
    }
    found = await rounds(order, ways, ask)
    for channel in channels:
        await channel.close()
    return found


async def rounds(order: dict[str, Any], ways: dict[str, list[Any]], ask: Ask) -> dict[str, list[float]]:
    """Ask in all ways, each round in another order."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    server = psutil.Process(order["pid"])
    for number in range(order["rounds"] + 1):
        for name in random.sample([*ways], len(ways)):
            seen = load_clients._Seen(order["seconds"])
            before = cpu_seconds(server)
            endless = [itertools.islice(itertools.cycle(ways[name]), n, None) for n in range(order["clients"])]
            await asyncio.gather(*(ask(n, requests, seen) for n, requests in enumerate(endless)))
            spent = cpu_seconds(server) - before
            load = seen.result(order["clients"], order["over"])
            assert not load.failed, load.first_failure
            if number:  # the first round prepares what later ones find
                found[name].append(spent * 1e6 / load.requests)
    return found


def cpu_seconds(server: psutil.Process) -> float:
    if sys.platform == "linux":
        return time.clock_gettime((~server.pid << 3) | 2)  # clock_getcpuclockid(3): psutil's has steps of 10 ms
    times = server.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
