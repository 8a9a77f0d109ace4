"""Rows of measurements, the table they make, and where and with what they were measured."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("tfdeploy-magic", "tensorflow", "keras", "ai-edge-litert", "numpy", "ipython")
HEADINGS = ("measured", "by hand", "ours", "ratio", "limit", "met")


@dataclass(frozen=True)
class Row:
    """One measurement.

    Args:
        what: What was measured, and its unit.
        ours: What this package takes.
        by_hand: What the hand-written way takes; None when nobody would write it.
        least_ratio: How many times less ours must take.
        most: The most that ours may take.
        digits: Decimals shown.
        notes: What a reader must know of how it was measured.
    """

    what: str
    ours: float
    by_hand: float | None = None
    least_ratio: float | None = None
    most: float | None = None
    digits: int = 2
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float | None:
        """How many times less ours takes."""
        return None if self.by_hand is None else self.by_hand / self.ours

    @property
    def met(self) -> bool | None:
        """Whether the limit is kept; None where there is none."""
        if self.least_ratio is not None:
            assert self.ratio is not None
            return self.ratio >= self.least_ratio
        return None if self.most is None else self.ours <= self.most

    def cells(self) -> tuple[str, ...]:
        """Return one text a column."""
        limit = "" if self.least_ratio is None else f"at least {self.least_ratio:g}x"
        if self.most is not None:
            limit = f"at most {self.most:g}"
        return (
            self.what,
            "" if self.by_hand is None else f"{self.by_hand:.{self.digits}f}",
            f"{self.ours:.{self.digits}f}",
            "" if self.ratio is None else f"{self.ratio:.1f}x",
            limit,
            {True: "yes", False: "NO", None: ""}[self.met],
        )


def as_text(rows: list[Row]) -> str:
    """Return the table for a terminal."""
    table = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]

    def line(cells: tuple[str, ...]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()

    ruler = "-" * len(line(HEADINGS))
    return "\n".join([line(HEADINGS), ruler, *map(line, table[1:]), "", *_notes(rows), "", *_circumstances()])


def as_markdown(rows: list[Row]) -> str:
    """Return the table for the repository."""
    module = sys.modules["__main__"].__spec__
    name = module.name.removesuffix(".__main__") if module else "benchmarks"
    lines = ["# Benchmark results", "", f"Written by `python -m {name} --write FILE`.", ""]
    lines += ["| " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * (len(HEADINGS) - 1)]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    lines += ["", *(f"- {note}" for note in _notes(rows)), ""]
    return "\n".join([*lines, *(f"- {fact}" for fact in _circumstances()), ""])


def run(*measurements: Callable[[], Iterator[Row]]) -> None:
    """Measure, print the table, and exit with 1 when a limit was missed."""
    parser = argparse.ArgumentParser(description="Measure this package beside what a person would write by hand.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="also write the table to FILE, as markdown")
    target: Path | None = parser.parse_args().write
    rows: list[Row] = []
    for measure in measurements:
        for row in measure():
            print(f"measured: {row.what}", file=sys.stderr)
            rows.append(row)
    print(as_text(rows))
    if target is not None:
        target.write_text(as_markdown(rows))
    sys.exit(any(row.met is False for row in rows))


def _notes(rows: list[Row]) -> list[str]:
    return [f"{row.what}: {note}" for row in rows for note in row.notes]


def _circumstances() -> list[str]:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    return [
        f"Date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        f"Machine: {_processor()}, {os.cpu_count()} cores, {platform.system()}; load average {load}",
        f"Versions: Python {platform.python_version()}, {versions}",
    ]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
