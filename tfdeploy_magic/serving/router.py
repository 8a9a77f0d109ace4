"""Who answers a request that names no version and no label, where the requests of its model are split among arms.

The same key always gets the same arm: a hash puts it at a point between 0 and 1, where the arms lie one after the
other, each as long as its share. It is salted with the model's name, so that who gets which arm of one model says
nothing about another.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import random
import urllib.parse
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tfdeploy_magic.errors import InputError
from tfdeploy_magic.serving.calls import Models, Servable
from tfdeploy_magic.serving.lineup import Arm
from tfdeploy_magic.serving.status import Refusal, invalid

KEY_HEADER, ARM_HEADER = "x-tfdeploy-key", "x-tfdeploy-arm"
"""What a client sends to get the same arm each time, and what it is told of who answered: headers of HTTP; metadata
of gRPC, where the answer's are trailing ones."""

LONGEST_KEY = 1024
"""Characters of a key, as it travels in a header."""

_BITS = 53  # of a float's fraction: all of the hash's 64 could be rounded up to 1


class Split:
    """The arms of one model, from when they are set until others are: one test of which is better.

    Args:
        model: What clients ask for.
        arms: Who answers; their shares add up to 1.
    """

    __slots__ = ("_ends", "_hash", "arms", "model")

    def __init__(self, model: str, arms: tuple[Arm, ...]) -> None:
        self.model, self.arms = model, arms
        self._ends = tuple(itertools.accumulate(arm.share for arm in arms[:-1]))
        self._hash = hashlib.blake2b(f"{model}\0".encode("utf-8", "surrogatepass"), digest_size=8)

    def choose(self, key: str | None) -> Arm:
        """Return the arm of a key, or any at random where there is none.

        Raises:
            Refusal: The key is too long.
        """
        return self.arm_of(key) if key else self.arms[bisect_right(self._ends, random.random())]

    def arm_of(self, key: str) -> Arm:
        """Return the arm of a key.

        Raises:
            Refusal: It is too long.
        """
        sent = in_header(key)
        if len(sent) > LONGEST_KEY:
            raise invalid(f"{KEY_HEADER} is longer than {LONGEST_KEY} characters")
        salted = self._hash.copy()
        salted.update(sent.encode())
        point = (int.from_bytes(salted.digest()) >> (64 - _BITS)) * 2.0**-_BITS
        return self.arms[bisect_right(self._ends, point)]


class Routing:
    """What one request is routed by, and who answered it.

    Args:
        headers: What the request came with besides its body: a mapping of small letters to text.
    """

    __slots__ = ("arm", "headers", "split", "version")

    def __init__(self, headers: Any) -> None:
        self.headers = headers
        self.version: int | None = None
        self.split: Split | None = None
        self.arm = ""

    @property
    def key(self) -> str | None:
        """The key of the request; asked for only where there is a split.

        Raises:
            Refusal: It is not in ASCII, which HTTP leaves open how to read.
        """
        key: str | None = self.headers.get(KEY_HEADER)
        if key is None and KEY_HEADER in self.headers:
            raise invalid(f"{KEY_HEADER} must be ASCII: percent-encode what is not")
        return key


class Router:
    """The splits of a server's models; everything may be called from any thread.

    Args:
        began: Told of each new split before the first request is answered by it.
    """

    def __init__(self, began: Callable[[Split], None] = lambda _: None) -> None:
        self._began = began
        self._splits: dict[str, Split] = {}

    @property
    def routes(self) -> dict[str, tuple[Arm, ...]]:
        """The arms of each model that is split."""
        return {model: split.arms for model, split in self._splits.items()}

    def set(self, routes: Mapping[str, Sequence[Arm]]) -> None:
        """Split the requests of these models among these arms, and of no others, all at once.

        A split that stays as it is goes on; any other one is new.

        Args:
            routes: The arms of each model; where there are none, it is not split.

        Raises:
            InputError: Shares do not add up to 1, or two arms are called alike; all is as it was.
        """
        for model, arms in routes.items():
            _check(model, arms)
        now, before = {}, self._splits
        for model, arms in routes.items():
            if arms:
                same = model in before and before[model].arms == tuple(arms)
                now[model] = before[model] if same else Split(model, tuple(arms))
        for model, split in now.items():
            if split is not before.get(model):
                self._began(split)
        self._splits = now

    def split(self, model: str) -> Split | None:
        """Return the split of a model; None where it has none."""
        return self._splits.get(model)

    def choose(self, model: str, key: str | None) -> Arm | None:
        """Return the arm that answers a request; None where the model is not split.

        Raises:
            Refusal: The key is too long.
        """
        split = self._splits.get(model)
        return None if split is None else split.choose(key)

    def hold(
        self, models: Models, routing: Routing, model: str, version: int | None = None, label: str | None = None
    ) -> AbstractContextManager[Servable]:
        """Hold the version that answers a request (``calls.Models.use``), and note the arm that it is.

        Where an arm has nothing to answer with, the first of the others that has does.

        Raises:
            Refusal: There is none.
        """
        split = self._splits.get(model) if version is None and label is None else None
        if split is None:
            return models.use(model, version, label)
        chosen = split.choose(routing.key)
        routing.split, routing.arm = split, chosen.name
        try:
            return models.use(chosen.model, chosen.version, chosen.label)
        except Refusal:
            for arm in split.arms:
                with contextlib.suppress(Refusal):
                    held = models.use(arm.model, arm.version, arm.label)
                    routing.arm = arm.name
                    return held
            raise


def in_header(text: str) -> str:
    """Return a key, or the name of an arm, as it travels in a header: percent-encoded where that cannot hold it."""
    if text.isascii() and text.isprintable() and text == text.strip():
        return text
    return urllib.parse.quote(text, safe="", errors="surrogatepass")


def _check(model: str, arms: Sequence[Arm]) -> None:
    shares = [arm.share for arm in arms]
    if not arms:
        return
    if not all(0 < share <= 1 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise InputError(
            f"the requests of {model} cannot be split like this",
            found=f"shares of {', '.join(f'{share:g}' for share in shares)}",
            wanted="shares above 0 that add up to 1",
            cure="Give each arm its share: 0.9 and 0.1.",
        )
    names = [arm.name for arm in arms]
    if len({*names}) < len(names) or not all(names):
        raise InputError(
            f"the requests of {model} cannot be split like this",
            found=f"arms called {', '.join(repr(name) for name in names)}",
            wanted="a name of its own for each",
            cure="Name them by label, version or model.",
        )
