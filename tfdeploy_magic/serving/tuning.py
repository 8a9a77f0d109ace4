"""Finding the settings with which a server answers most within a target for its p99, and whether they gain anything.

The search is coordinate descent over small grids: the best so far is kept, and one setting of it changed at a time. One
short run each is all that a trial gets, and the best of many short runs is partly the luckiest; so what is chosen meets
the server's defaults once more, both up at once and asked in turn. That duel alone says what was gained.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts import store
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.errors import ContractBroken, DataError, RequestRefused
from tfdeploy_magic.serving import configs
from tfdeploy_magic.serving.batching import Rules
from tfdeploy_magic.serving.load import GROWTH, Load

QUEUE = 100
"""Batches that may wait, at the least: TensorFlow Serving's own 10 of a few rows each refuse calls early."""

ROUNDS = 5
"""Rounds of a duel: of two servers alike the second is ahead in all of them once in 32 duels."""

TIMEOUTS_MICROS = (0, 500, 1000, 2000, 5000)
"""How long a batch may wait for company: what is worth trying."""

_CPUS = os.cpu_count() or 1


@dataclass(frozen=True)
class Settings:
    """How a server is set up, in the words of TensorFlow Serving's parameters and flags; as it comes, the defaults.

    Args:
        max_batch_size: Rows of a batch at the most; None for no batching parameters: our own server then puts together
            what waits anyway, and TensorFlow Serving nothing.
        batch_timeout_micros: How long the first call of a batch waits for others.
        num_batch_threads: Batches that run at once; the search begins with one, since on a CPU two share its cores.
        intra_op_parallelism: Threads within an operation; 0 for TensorFlow's choice.
        inter_op_parallelism: Operations that run at once; 0 for TensorFlow's choice.
    """

    max_batch_size: int | None = None
    batch_timeout_micros: int = 0
    num_batch_threads: int = 1
    intra_op_parallelism: int = 0
    inter_op_parallelism: int = 0

    def __str__(self) -> str:
        if self == DEFAULTS:
            return "the defaults"
        parts = []
        if self.max_batch_size is not None:
            parts += [f"max_batch_size={self.max_batch_size}"]
            parts += [f"batch_timeout_micros={self.batch_timeout_micros}"] if self.batch_timeout_micros else []
            parts += [f"num_batch_threads={self.num_batch_threads}"]
        parts += [f"intra_op={self.intra_op_parallelism}"] if self.intra_op_parallelism else []
        parts += [f"inter_op={self.inter_op_parallelism}"] if self.inter_op_parallelism else []
        return ", ".join(parts)

    def flags(self, parameters: Path | None) -> tuple[str, ...]:
        """Return the flags of the server.

        Args:
            parameters: The file that :func:`write_parameters` has written; None where there is none to write.
        """
        found = []
        if self.max_batch_size is not None:
            found += ["--enable_batching", f"--batching_parameters_file={parameters}"]
        if self.intra_op_parallelism:
            found.append(f"--tensorflow_intra_op_parallelism={self.intra_op_parallelism}")
        if self.inter_op_parallelism:
            found.append(f"--tensorflow_inter_op_parallelism={self.inter_op_parallelism}")
        return tuple(found)

    def rules(self, queue: int = QUEUE) -> Rules:
        """Return the batching parameters as a server holds them; only of settings that have any."""
        assert self.max_batch_size is not None
        return Rules(
            max_batch_size=self.max_batch_size,
            batch_timeout_micros=self.batch_timeout_micros,
            max_enqueued_batches=queue,
            num_batch_threads=self.num_batch_threads,
            every_call=True,
        )


DEFAULTS = Settings()


@dataclass(frozen=True, eq=False)
class Trial:
    """What clients saw of a server with certain settings.

    Args:
        settings: Its settings.
        load: What they saw; None where the server did not start.
        problem: Why it did not.
    """

    settings: Settings
    load: Load | None = None
    problem: str = ""

    @property
    def p99_ms(self) -> float:
        """The 99th percentile of the latency in ms; infinite where not every request was answered."""
        known = None if self.load is None or self.load.failed else self.load.p99_ms
        return math.inf if known is None else known

    def meets(self, target_ms: float) -> bool:
        """Whether every request was answered, and 99 of 100 of them within the target."""
        return self.p99_ms <= target_ms


@dataclass(frozen=True)
class Ratio:
    """How the tuned settings compare with the defaults, as a quotient in each round of a duel.

    Args:
        median: Of the rounds.
        low: The lowest of them.
        high: The highest.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, quotients: Sequence[float]) -> Ratio:
        """Return the ratio of several rounds."""
        return cls(float(np.median(quotients)), min(quotients), max(quotients))


@dataclass(frozen=True, eq=False)
class Duel:
    """What clients saw of the defaults and of the tuned settings, round by round, both servers up at once.

    Args:
        defaults: One run each round.
        tuned: Likewise.
    """

    defaults: tuple[Load, ...]
    tuned: tuple[Load, ...]

    @cached_property
    def throughput(self) -> Ratio | None:
        """Answers per second of the tuned ones over those of the defaults; None where either answered nothing."""
        pairs = [(ours.throughput, theirs.throughput) for ours, theirs in self._rounds]
        return Ratio.of([ours / theirs for ours, theirs in pairs]) if all(map(all, pairs)) else None

    @cached_property
    def p99(self) -> Ratio | None:
        """Their p99 latency likewise: below 1 the tuned ones are quicker."""
        pairs = [(ours.p99_ms or 0.0, theirs.p99_ms or 0.0) for ours, theirs in self._rounds]
        return Ratio.of([ours / theirs for ours, theirs in pairs]) if all(map(all, pairs)) else None

    @property
    def _rounds(self) -> Iterator[tuple[Load, Load]]:
        return zip(self.tuned, self.defaults, strict=True)


Gain = Literal["throughput", "target", "p99", "nothing"]


@dataclass(frozen=True, eq=False)
class Tuning:
    """What was tried, and what came of it.

    Args:
        target_ms: What was wanted of the p99.
        trials: Each of the settings that was tried, the defaults first.
        duel: The best of them against the defaults; None where those were the best.
    """

    target_ms: float
    trials: tuple[Trial, ...]
    duel: Duel | None = None

    @property
    def defaults(self) -> Trial:
        """The server as it comes."""
        return self.trials[0]

    @property
    def best(self) -> Trial:
        """The one that answered most within the target, or the quickest where none is within it."""
        return best_of(self.trials, self.target_ms)

    @property
    def chosen(self) -> Trial:
        """The one to be recommended: the best where the duel shows that it gains something, else the defaults."""
        return self.best if self.gain != "nothing" else self.defaults

    @cached_property
    def meets(self) -> bool:
        """Whether what is chosen is within the target, by the duel where there was one."""
        if self.duel is None:
            return self.defaults.meets(self.target_ms)
        return _meets(self.duel.defaults if self.gain == "nothing" else self.duel.tuned, self.target_ms)

    @cached_property
    def gain(self) -> Gain:
        """What the tuned settings are better at in every round of the duel, and by 5% in its median.

        "throughput" where both are within the target; "target" where only the tuned ones are, and "p99" where neither
        is: both are said only of a lower p99.
        """
        if self.duel is None:
            return "nothing"
        ours, theirs = (_meets(loads, self.target_ms) for loads in (self.duel.tuned, self.duel.defaults))
        if theirs:
            throughput = self.duel.throughput
            faster = throughput is not None and throughput.low > 1 and throughput.median >= GROWTH
            return "throughput" if ours and faster else "nothing"
        p99 = self.duel.p99
        quicker = p99 is not None and p99.high < 1 and p99.median <= 1 / GROWTH
        if ours:
            return "target" if quicker or _failed(self.duel.defaults) else "nothing"
        return "p99" if quicker and not _failed(self.duel.tuned) else "nothing"


def _failed(loads: Sequence[Load]) -> int:
    return sum(load.failed for load in loads)


def _meets(loads: Sequence[Load], target_ms: float) -> bool:
    """Whether nothing failed and the median p99 is within the target."""
    latencies = [load.p99_ms for load in loads if load.p99_ms is not None]
    return len(latencies) == len(loads) and not _failed(loads) and float(np.median(latencies)) <= target_ms


# The search


@dataclass(frozen=True)
class Grid:
    """What is worth trying.

    Args:
        in_flight: Rows that are asked about at once: clients times rows.
        rows: Of one request.
        together: Whether requests may be put together.
        session: Whether TensorFlow runs the model; LiteRT has no threads that could be set.
        longest_micros: The longest that a batch may wait.
        cpus: Of the machine.
    """

    in_flight: int
    rows: int = 1
    together: bool = True
    session: bool = True
    longest_micros: float = TIMEOUTS_MICROS[-1]
    cpus: int = _CPUS

    @property
    def axes(self) -> tuple[Callable[[Settings], Iterator[Settings]], ...]:
        """What may be changed of settings, that first which is most likely to matter."""
        return self._sizes, self._threads, self._workers, self._timeouts, self._operations

    def _sizes(self, best: Settings) -> Iterator[Settings]:
        """All that is under way in one batch, in two, in four, and room for more than that."""
        shares = (self.in_flight, self.in_flight // 2, self.in_flight // 4, 4 * self.in_flight)
        for size in dict.fromkeys(max(share, self.rows) for share in shares if self.together and share > 1):
            yield replace(best, max_batch_size=size)

    def _threads(self, best: Settings) -> Iterator[Settings]:
        for count in sorted({1, max(1, self.cpus // 2), 0}) if self.session else ():
            yield replace(best, intra_op_parallelism=count)

    def _workers(self, best: Settings) -> Iterator[Settings]:
        for count in sorted({1, max(1, self.cpus // 2), self.cpus, 2 * self.cpus}) if best.max_batch_size else ():
            yield replace(best, num_batch_threads=count)

    def _timeouts(self, best: Settings) -> Iterator[Settings]:
        for micros in TIMEOUTS_MICROS if best.max_batch_size else ():
            if micros <= self.longest_micros:
                yield replace(best, batch_timeout_micros=micros)

    def _operations(self, best: Settings) -> Iterator[Settings]:
        for count in (1, 0) if self.session else ():
            yield replace(best, inter_op_parallelism=count)


def search(
    first: Trial,
    measure: Callable[[Settings], Trial],
    grid: Grid,
    target_ms: float,
    *,
    may_go_on: Callable[[], bool] = lambda: True,
) -> tuple[Trial, ...]:
    """Look for the settings that answer most within the target, one setting at a time, until no step gains anything.

    Args:
        first: The trial of the defaults.
        measure: Tries other settings.
        grid: What is worth trying.
        target_ms: What is wanted of the p99.
        may_go_on: Asked before each trial.

    Returns:
        All trials in their order, no settings twice; the first of them first.
    """
    trials = {first.settings: first}
    best, before = first.settings, None
    while best != before:
        before = best
        for axis in grid.axes:
            for settings in axis(best):
                if settings in trials:
                    continue
                if not may_go_on():
                    return tuple(trials.values())
                trials[settings] = measure(settings)
            best = best_of(trials.values(), target_ms).settings
    return tuple(trials.values())


def best_of(trials: Iterable[Trial], target_ms: float) -> Trial:
    """Return the trial that answered most within the target; where none is within it, that with the lowest p99.

    Of several alike it is the first, and the first of all where none answered every request.
    """
    tried = list(trials)
    within = [trial for trial in tried if trial.meets(target_ms)]
    if within:
        return max(within, key=lambda trial: trial.load.throughput if trial.load else 0.0)
    return min(tried, key=lambda trial: trial.p99_ms)


# Whether requests may be put together


def may_be_put_together(ask: Callable[[Arrays], Any], requests: Sequence[Arrays]) -> bool:
    """Whether some requests are answered in one call as they are alone, in either order.

    Batching asked for by parameters asks nobody: a model whose rows depend on each other answers wrong then.

    Args:
        ask: Answers a request: an array, or a dict of them.
        requests: Different ones; of fewer than two nothing can be said.
    """
    few = list(requests[:4])
    if not any(_differ(few[0], other) for other in few[1:]):
        return False
    try:
        alone = [_named(ask(request)) for request in few]
        for order in (range(len(few)), range(len(few))[::-1]):
            answers = _named(ask({name: np.concatenate([few[at][name] for at in order]) for name in few[0]}))
            for name, answer in answers.items():
                wanted = [alone[at][name] for at in order]
                if not _close(np.asarray(answer), np.concatenate(wanted)):
                    return False
    except (DataError, RequestRefused, ValueError):  # so many rows, or rows of such shapes, do not go into one call
        return False
    return True


def _differ(one: Arrays, other: Arrays) -> bool:
    return any(not np.array_equal(one[name], other[name]) for name in one)


def _named(answer: Any) -> dict[str, Any]:
    return answer if isinstance(answer, dict) else {"": answer}


def _close(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether numbers differ by no more than other kernels for other sizes explain."""
    if one.shape != other.shape or one.dtype.kind not in "fc":
        return bool(np.array_equal(one, other))
    wide = other.astype(np.complex128)
    largest = float(np.max(np.abs(wide), initial=0.0, where=np.isfinite(wide)))
    share = 1e-2 if one.dtype.itemsize <= 2 else 1e-4
    return bool(np.allclose(one.astype(np.complex128), wide, rtol=0.0, atol=share * largest, equal_nan=True))


# The file


def parameters_text(settings: Settings, queue: int = QUEUE, said: str = "") -> str:
    """Return settings as ``BatchingParameters`` in text format.

    Args:
        settings: Those with a batch size.
        queue: Batches that may wait.
        said: What stands above them as a comment, on one line.
    """
    rules = settings.rules(queue)
    names = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
    above = [f"# {' '.join(said.split())}"] if said else []
    return "\n".join([*above, *(f"{name} {{ value: {getattr(rules, name)} }}" for name in names), ""])


def write_parameters(settings: Settings, target: Path, *, queue: int = QUEUE, said: str = "", force: bool) -> str:
    """Write settings as a batching parameters file, whole or not at all, once it reads back as what they are.

    Args:
        settings: Those with a batch size.
        target: Where to.
        queue: Batches that may wait.
        said: What stands in the file as a comment.
        force: Replace an existing file.

    Returns:
        The text of the file.

    Raises:
        ContractBroken: It does not read back as it was meant; nothing is written.
        OutputError: It exists and ``force`` is False, or the disk or the permissions refuse.
    """
    text = parameters_text(settings, queue, said)
    with tempfile.TemporaryDirectory(prefix="tfdeploy-") as folder:
        draft = Path(folder) / "batching.pbtxt"
        draft.write_text(text, encoding="utf-8")
        if (found := configs.read_batching_parameters(draft)) != settings.rules(queue):
            raise ContractBroken(
                "the batching parameters do not read back as they were measured",
                found=str(found),
                wanted=str(settings.rules(queue)),
                cure="Please report this with the two lines above.",
            )
        store.write_whole(draft, target, force=force)
    return text
