"""Several files of one model side by side: which are worth having, which meet a budget, and what was tried for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tfdeploy_magic.artifacts.evidence import Evidence, Finding, Latency
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.provenance import Provenance


@dataclass(frozen=True)
class Row:
    """One file of a comparison.

    Args:
        label: What tells it from the others, "int8" or "int8, equalized".
        file: The file.
        evidence: What was measured on it.
        provenance: How it was made.
        slow: Why it may be slower than its float twin, each a clause; empty where nothing speaks for it.
    """

    label: str
    file: LiteFile
    evidence: Evidence
    provenance: Provenance
    slow: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A file that could not be made.

    Args:
        label: What it would have been called.
        reason: Why, a clause.
        cure: What to do, a sentence.
    """

    label: str
    reason: str
    cure: str


@dataclass(frozen=True)
class Budget:
    """What a file may cost.

    Args:
        max_drop: How much worse than its source it may score, as :class:`Drop` counts it: 0.02 is two points.
        max_size: Bytes.
        max_latency: The median for one sample, ms.
    """

    max_drop: float | None = None
    max_size: int | None = None
    max_latency: float | None = None

    def __bool__(self) -> bool:
        return any(limit is not None for limit in (self.max_drop, self.max_size, self.max_latency))

    def excess(self, row: Row) -> dict[str, float]:
        """Return by what factor or amount a row misses each limit: "drop" as a share, "size" and "latency" as ratios.

        What was not measured misses a limit by infinity.
        """
        missed: dict[str, float] = {}
        drop = row.evidence.worst_drop
        if self.max_drop is not None and (drop is None or drop > self.max_drop + 1e-12):  # 0.7 / 100 is below 0.007
            missed["drop"] = float("inf") if drop is None else drop - self.max_drop
        if self.max_size is not None and row.file.size > self.max_size:
            missed["size"] = row.file.size / self.max_size
        latency = row.evidence.latency_ms
        if self.max_latency is not None and (latency is None or latency > self.max_latency):
            missed["latency"] = float("inf") if latency is None else latency / self.max_latency
        return missed


@dataclass(frozen=True)
class Trial:
    """One step of a search.

    Args:
        label: What was tried.
        why: Why, a clause: "plain int8 misses the budget by 71.4 points".
        seconds: What it cost.
        outcome: What came of it, a clause.
        met: Whether it met the budget.
    """

    label: str
    why: str
    seconds: float
    outcome: str
    met: bool


@dataclass(frozen=True)
class Contrast:
    """The same scheme made by both engines, their answers to the same samples compared.

    Args:
        first: The label of TensorFlow's row.
        second: The label of litert-quantizer's.
        snr_db: Of the second's answers with the first's as reference, dB; infinite when they are equal.
        agreement: Share of samples with the same top class; None when the output scores no classes.
        ranges: How many tensors were given another range, and of how many; None when activations have none.
        why: Where the difference comes from, a sentence.
    """

    first: str
    second: str
    snr_db: float
    agreement: float | None
    ranges: tuple[int, int] | None
    why: str


@dataclass(frozen=True)
class SweepPoint:
    """The latency of one file with one number of threads and one batch size; the latency is None when it cannot run so.

    Args:
        label: Of the row.
        threads: Of the interpreter.
        batch: Samples at a time.
        latency: Of one batch, ms.
    """

    label: str
    threads: int
    batch: int
    latency: Latency | None


@dataclass(frozen=True)
class Table:
    """Everything a comparison shows.

    Args:
        source: What was compared, "model: Sequential, 36,042 parameters".
        rows: The files, in the order they were asked for.
        failures: Those that could not be made.
        budget: What was asked for; empty when nothing was.
        best: The label of the row to take; None when there is none.
        trials: The steps of a search, in order.
        contrasts: Where the two engines differ.
        sweep: Latencies over threads and batch sizes, when they were asked for.
        findings: About the comparison itself; what concerns one file stands in its evidence.
        stopped: Whether a person stopped it before its end.
        seconds: Stage -> wall seconds.
    """

    source: str
    rows: tuple[Row, ...]
    failures: tuple[Failure, ...] = ()
    budget: Budget = field(default_factory=Budget)
    best: str | None = None
    trials: tuple[Trial, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    sweep: tuple[SweepPoint, ...] = ()
    findings: tuple[Finding, ...] = ()
    stopped: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def pareto(self) -> tuple[str, ...]:
        """The labels of the rows than which no other is both as small and as close to the source, and better in one."""
        return tuple(row.label for row in self.rows if _worth_having(row, self.rows))

    def __getitem__(self, label: str) -> Row:
        """Return the row of a label; a KeyError when there is none."""
        return {row.label: row for row in self.rows}[label]

    @property
    def nearest(self) -> Row | None:
        """The row that misses the budget by the least; None when nothing was made."""
        return min(self.rows, key=self._missed, default=None)

    def _missed(self, row: Row) -> tuple[int, float]:
        missed = self.budget.excess(row)
        shares = {"drop": self.budget.max_drop or 1.0, "size": 1.0, "latency": 1.0}
        return len(missed), max((amount / shares[limit] for limit, amount in missed.items()), default=0.0)

    @property
    def noise(self) -> float | None:
        """How far apart medians of one and the same file lay, as a share: differences below it mean nothing."""
        seen = [row.evidence.latency.noise for row in self.rows if row.evidence.latency is not None]
        return max((noise for noise in seen if noise is not None), default=None)


def _worth_having(row: Row, rows: Sequence[Row]) -> bool:
    snr = row.evidence.snr_db
    if snr is None or row.evidence.verdict == "not ok":
        return False
    for other in rows:
        there = other.evidence.snr_db
        if other is row or there is None or other.evidence.verdict == "not ok":
            continue
        if other.file.size <= row.file.size and there >= snr and (other.file.size < row.file.size or there > snr):
            return False
    return True
