"""Several files of one model timed against each other in a job, over threads and batch sizes too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import psutil

from tfdeploy_magic.artifacts.comparison import SweepPoint
from tfdeploy_magic.artifacts.evidence import Latency
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.errors import JobCrashed, MemoryLimitExceeded
from tfdeploy_magic.evaluate import session, slowness
from tfdeploy_magic.evaluate.slowness import Delegation
from tfdeploy_magic.jobs import Worker

SECONDS_A_FILE = 0.25
"""So long that a slow moment does not cover all rounds; one that takes 20 ms has its ten runs in it too."""

BATCHES = (1, 8, 32)


def latencies(
    worker: Worker,
    files: Sequence[LiteFile],
    inputs: Mapping[str, Path],
    *,
    threads: int = 1,
    batch: int = 1,
    seconds: float | None = None,
) -> tuple[Latency | None, ...]:
    """Time files of one model in turn, so that a slow moment of the machine hits all alike.

    Args:
        worker: The process that runs them.
        files: Which.
        inputs: Input name -> ``.npy`` file of samples.
        threads: CPU threads of each interpreter.
        batch: Samples at a time; a graph that takes no such number stays at its own, which its latency says.
        seconds: For all files together; :data:`SECONDS_A_FILE` for each when None.

    Returns:
        The latency of each, ms; None where the interpreter cannot load or run it, or crashes.

    Raises:
        DataError: A file has changed since it was made.
        JobError: The job hung, or failed in a way not foreseen.
    """
    share = SECONDS_A_FILE if seconds is None else seconds / max(len(files), 1)

    def ask(some: Sequence[LiteFile]) -> list[Any]:
        more = {"threads": threads, "batch": batch, "seconds": share * len(some)}
        return _asked(worker, f"{session.__name__}:latencies_task", some, inputs, more)

    return tuple(Latency(**row) if row is not None else None for row in _of_survivors(ask, files))


def delegations(worker: Worker, files: Sequence[LiteFile], inputs: Mapping[str, Path]) -> tuple[Delegation | None, ...]:
    """See what XNNPACK takes of each of several files of one model.

    Args:
        worker: The process that loads them.
        files: Which.
        inputs: Input name -> ``.npy`` file of samples, for their shapes.

    Returns:
        One for each file; None where the interpreter cannot load it, or crashes.

    Raises:
        DataError: A file has changed since it was made.
        JobError: The job hung, or failed in a way not foreseen.
    """

    def ask(some: Sequence[LiteFile]) -> list[Any]:
        return _asked(worker, f"{slowness.__name__}:delegations_task", some, inputs, {})

    return tuple(Delegation(**row) if row is not None else None for row in _of_survivors(ask, files))


def sweep(
    worker: Worker,
    files: Mapping[str, LiteFile],
    inputs: Mapping[str, Path],
    threads: Sequence[int] | None = None,
    batches: Sequence[int] = BATCHES,
    *,
    seconds: float | None = None,
) -> tuple[SweepPoint, ...]:
    """Time files of one model with several numbers of threads and samples at a time.

    Args:
        worker: The process that runs them.
        files: Label -> file.
        inputs: Input name -> ``.npy`` file of samples.
        threads: Of the interpreter; :func:`worthwhile_threads` when None.
        batches: Samples at a time.
        seconds: For all files together at each of these points; :data:`SECONDS_A_FILE` for each when None.

    Returns:
        The points, file by file; those of one number of threads and one batch size were timed against each other.

    Raises:
        DataError: A file has changed since it was made.
        JobError: The job hung, or failed in a way not foreseen.
    """
    settings = list(product(threads or worthwhile_threads(), batches))
    columns = [
        latencies(worker, list(files.values()), inputs, threads=count, batch=batch, seconds=seconds)
        for count, batch in settings
    ]
    return tuple(
        SweepPoint(label, count, batch, one if one is not None and one.batch == batch else None)
        for position, label in enumerate(files)
        for (count, batch), one in zip(settings, (column[position] for column in columns), strict=True)
    )


def worthwhile_threads() -> tuple[int, ...]:
    """Return 1, 2 and the number of physical cores that this process may use, as far as there are so many."""
    allowed = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    cores = min(psutil.cpu_count(logical=False) or 1, allowed or 1)
    return tuple(sorted({1, min(2, cores), cores}))


def _of_survivors(ask: Callable[[Sequence[LiteFile]], list[Any]], files: Sequence[LiteFile]) -> list[Any]:
    """Ask about all files at once; where that ends the process, find out which one did it and ask about the others.

    Args:
        ask: Returns one answer a file, or raises when the process dies.
        files: Which.
    """
    if not files:
        return []
    try:
        return ask(files)
    except (JobCrashed, MemoryLimitExceeded):
        if len(files) == 1:
            return [None]
    alone = [_of_survivors(ask, [file])[0] for file in files]
    good = [file for file, answer in zip(files, alone, strict=True) if answer is not None]
    if len(good) in (1, len(files)):  # nothing to set them against, or only all of them together are too much
        return alone
    together = iter(_of_survivors(ask, good))
    return [next(together) if answer is not None else None for answer in alone]


def _asked(
    worker: Worker, task: str, files: Sequence[LiteFile], inputs: Mapping[str, Path], more: Mapping[str, Any]
) -> list[Any]:
    arguments = {
        "files": [{"path": str(file.path), "sha256": file.sha256} for file in files],
        "inputs": {name: str(path) for name, path in inputs.items()},
        **more,
    }
    answers: list[Any] = worker.call(task, arguments)
    return answers
