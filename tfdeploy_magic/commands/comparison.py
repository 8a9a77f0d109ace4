"""Comparison: the files of one model that a person holds side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from tfdeploy_magic.artifacts.comparison import Row, Table
from tfdeploy_magic.commands.lite_model import LiteModel
from tfdeploy_magic.errors import BudgetNotMet, NameNotFound

if TYPE_CHECKING:
    import pandas

    from tfdeploy_magic.views.figures import Figure


@dataclass(frozen=True)
class Comparison:
    """Several files of one model, measured on the same samples.

    Args:
        table: What was measured, and what follows from it.
        rows: The files, in the order of the table.
    """

    table: Table
    rows: tuple[LiteModel, ...]

    @property
    def best(self) -> LiteModel:
        """The file to take: the smallest that meets the budget.

        Without a budget it is the smallest that is ok and whose answers nothing warns of; where only size or latency is
        limited, the one within the limits whose answers are closest to the source's.

        Raises:
            BudgetNotMet: There is none; the nearest is named.
        """
        if self.table.best is None:
            raise _not_met(self.table)
        return self[self.table.best]

    @property
    def pareto(self) -> tuple[LiteModel, ...]:
        """The files than which no other is both as small and as close to the source, and better in one of the two."""
        return tuple(self[label] for label in self.table.pareto)

    def __getitem__(self, label: str) -> LiteModel:
        """Return the file of a label, "int8"."""
        labels = [row.label for row in self.table.rows]
        if label not in labels:
            raise NameNotFound(
                f"there is no file '{label}'",
                found=f"{', '.join(labels) or 'no files'}",
                wanted="one of them",
                cure="comparison.rows has them all.",
            )
        return self.rows[labels.index(label)]

    def __iter__(self) -> Iterator[LiteModel]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data that Python's JSON carries, an infinite SNR as infinity."""
        return {
            **asdict(replace(self.table, rows=())),
            "rows": [_row_to_dict(row, self.table) for row in self.table.rows],
            "pareto": list(self.table.pareto),
            "noise": self.table.noise,
        }

    def to_pandas(self) -> pandas.DataFrame:
        """Return one line a file: bytes, shares, dB and ms.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas

        lines = [_flat(row, self.table) for row in self.table.rows]
        return pandas.DataFrame(lines, columns=COLUMNS).set_index("label")

    def figure(self) -> Figure:
        """Draw size, metric, signal-to-noise ratio and latency of every file, and the Pareto front."""
        from tfdeploy_magic.views import comparison

        return comparison.figure(self.table)

    def __repr__(self) -> str:
        best = f", best {self.table.best}" if self.table.best else ""
        return f"<Comparison of {self.table.source}: {len(self.rows)} files{best}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from tfdeploy_magic.views import comparison

        return comparison.mimebundle(self.table)


@dataclass(frozen=True)
class Unfinished:
    """The files of a comparison that are finished while others are being made.

    Args:
        table: What is measured so far.
    """

    table: Table

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from tfdeploy_magic.views import comparison

        return comparison.unfinished(self.table)


COLUMNS = (
    *("label", "scheme", "size", "metric", "score", "drop", "drop_low", "drop_high", "snr_db", "agreement"),
    *("latency_ms", "latency_p95_ms", "verdict", "best", "pareto"),
)
"""What is said of one file on one line."""


def _row_to_dict(row: Row, table: Table) -> dict[str, Any]:
    return {
        **_flat(row, table),
        "path": str(row.file.path),
        "sha256": row.file.sha256,
        "operators": dict(row.file.operators),
        "evidence": asdict(row.evidence),
        "manifest": dict(row.provenance.manifest),
        "slow": list(row.slow),
    }


def _flat(row: Row, table: Table) -> dict[str, Any]:
    evidence = row.evidence
    return {
        "label": row.label,
        "scheme": row.file.scheme,
        "size": row.file.size,
        "metric": evidence.metric,
        "score": evidence.score.value if evidence.score else None,
        "drop": evidence.drop.value if evidence.drop else None,
        "drop_low": evidence.drop.low if evidence.drop else None,
        "drop_high": evidence.drop.high if evidence.drop else None,
        "snr_db": evidence.snr_db,
        "agreement": evidence.agreement,
        "latency_ms": evidence.latency_ms,
        "latency_p95_ms": evidence.latency.p95 if evidence.latency else None,
        "verdict": evidence.verdict,
        "best": row.label == table.best,
        "pareto": row.label in table.pareto,
    }


def _not_met(table: Table) -> BudgetNotMet:
    if not table.budget:
        return BudgetNotMet(
            "no file can be recommended",
            found=", ".join(f"{row.label}: {row.evidence.verdict}" for row in table.rows) or "no file at all",
            wanted="one that is ok",
            cure="Each file's own card says why: comparison.rows has them.",
        )
    from tfdeploy_magic.views import comparison

    return BudgetNotMet(
        "no file meets the budget",
        found=f"as the nearest {comparison.nearest(table)}" if table.rows else "no file at all",
        wanted=comparison.asked(table),
        cure="Allow more, or search among other schemes: %quantize MODEL without naming one tries all of them.",
    )
