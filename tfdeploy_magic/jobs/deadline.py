"""Running a person's own code in the kernel without being hung by it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from tfdeploy_magic.errors import UserCodeError

Item = TypeVar("Item")

_END = object()


def iterate(iterable: Callable[[], Iterable[Item]], *, seconds: float, what: str) -> Iterator[Item]:
    """Yield what the person's iterable yields, each item within ``seconds``.

    It runs in a thread of its own, at most two items ahead. A thread that hangs cannot be ended in Python; it is
    left behind as a daemon.

    Args:
        iterable: Makes the iterable; called in that thread.
        seconds: How long one item may take.
        what: How the error names it, "the generator representative_dataset".

    Raises:
        UserCodeError: It raised (its exception is the cause) or an item took too long.
    """
    items: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=2)
    stopped = threading.Event()

    def put(item: Any, error: BaseException | None) -> None:
        while not stopped.is_set():
            try:
                items.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return

    def produce() -> None:
        try:
            for item in iterable():
                put(item, None)
                if stopped.is_set():
                    return
            put(_END, None)
        except BaseException as error:
            put(None, error)

    threading.Thread(target=produce, name=f"tfdeploy: {what}", daemon=True).start()
    try:
        while True:
            try:
                item, error = items.get(timeout=seconds)
            except queue.Empty:
                raise UserCodeError(
                    f"{what} hung",
                    found=f"nothing after {seconds:g} s",
                    wanted="an item within that time",
                    cure="Find what it waits for; its thread is left behind, so restart the kernel if it holds a lock.",
                ) from None
            if error is not None:
                raise UserCodeError(
                    f"{what} raised",
                    found=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}",
                    wanted="a result",
                    cure="Its own traceback follows.",
                ) from error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()


def call(function: Callable[[], Item], *, seconds: float, what: str) -> Item:
    """Return what the person's function returns, within ``seconds``.

    Raises:
        UserCodeError: It raised or took too long.
    """
    return next(iterate(lambda: (function(),), seconds=seconds, what=what))
