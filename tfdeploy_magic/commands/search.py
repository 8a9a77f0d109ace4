"""The search for a file within a budget: which cures int8 is given, in which order, and which file wins."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tfdeploy_magic.artifacts.comparison import Budget, Row, Trial
from tfdeploy_magic.artifacts.evidence import ABOUT_ANSWERS, Finding
from tfdeploy_magic.artifacts.schemes import Variant
from tfdeploy_magic.commands.conversion import Conversion
from tfdeploy_magic.commands.explanation import debugged
from tfdeploy_magic.commands.matrix import Matrix
from tfdeploy_magic.errors import DataError
from tfdeploy_magic.evaluate import metrics, parity
from tfdeploy_magic.views import comparison as views
from tfdeploy_magic.views.diagnosis import by_error

MOST_LAYERS_FLOAT = 8
"""How many of the worst layers are left in float before the search gives up: more are most of a small model."""


def check_budget(one: Conversion, budget: Budget) -> None:
    """Refuse a budget that no measurement on these samples can tell to be met.

    Raises:
        DataError: There is nothing to measure a drop with, or too little.
    """
    drop = budget.max_drop
    if drop is None or one.test is None:
        return
    scored = one.baseline.scored
    if scored is None and parity.compare(one.baseline.outputs, one.baseline.outputs).agreement is None:
        raise DataError(
            "--max-drop cannot be measured",
            found="test data without labels, and answers that are no class scores",
            wanted="labelled test data",
            cure="Name it with its labels: --test x_test,y_test.",
        )
    needed = metrics.samples_to_show(drop)
    if (scored is None or scored.is_share) and one.test.count < needed:
        finest = 100 * (1 - 0.05 ** (1 / one.test.count))
        raise DataError(
            f"the test data cannot show a drop of {100 * drop:g} points",
            found=f"{one.test.count} samples: even a file that answers all of them alike may be {finest:.1f} points "
            "worse, at 95%",
            wanted=f"at least {needed} samples for that",
            cure=f"Test on more, or allow --max-drop {math.ceil(10 * finest) / 10:g}%.",
        )


def best_of(rows: Sequence[Row], budget: Budget) -> str | None:
    """Return the label of the row to take; None when there is none.

    It is the smallest that meets the budget; without one, the smallest that is ok and whose answers nothing warns of.
    Where only size or latency is limited, it is the closest to the source within the limits.
    """
    if budget:
        fit = [row for row in rows if not budget.excess(row) and not _broken(row)]
    else:
        fit = [row for row in rows if row.evidence.ok]
        fit = [row for row in fit if not any(f.code in ABOUT_ANSWERS for f in row.evidence.findings)] or fit
    if not budget or budget.max_drop is not None:
        best = min(fit, key=lambda row: row.file.size, default=None)
    else:
        best = max(fit, key=lambda row: -math.inf if row.evidence.snr_db is None else row.evidence.snr_db, default=None)
    return best.label if best else None


def resolution(best: Row, budget: Budget) -> Iterator[Finding]:
    """Say so when the samples are too few to rule out that the best file is worse than allowed."""
    drop, allowed = best.evidence.drop, budget.max_drop
    if allowed is None or drop is None or drop.high is None or drop.low is None or drop.high <= allowed:
        return
    unit = "points" if best.evidence.metric and "accuracy" in best.evidence.metric else "%"
    room = allowed - drop.value
    half = (drop.high - drop.low) / 2
    yield Finding(
        "warning",
        "resolution",
        f"{best.label} is within the budget on these {best.evidence.n} samples; on others it may lose up to "
        f"{100 * drop.high:.1f} {unit}, more than the {100 * allowed:g} allowed (95% interval)",
        f"About {math.ceil(best.evidence.n * (half / room) ** 2):,} samples would tell."
        if room > half / 30
        else "Only a larger margin would tell.",
    )


class Search:
    """One search among int8 files.

    Args:
        matrix: Where files are made and measured.
    """

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix
        self.trials = matrix.trials

    def run(self) -> None:
        """Cure int8 where it misses the budget: by what the channels' ranges show first, then by single layers."""
        plain = self.matrix.row("int8")
        if plain is None or not plain.evidence.measured:
            return  # it was not asked for, or its row says why there is nothing to cure
        took = self.matrix.seconds("int8")
        self.trials.append(
            Trial("int8", "what was asked for, as it is", took, views.standing(plain), self._meets(plain))
        )
        if not self._accurate(plain):
            self._cure_channels()
            if not self._cured():
                self._cure_ranges()
            if not self._cured():
                self._hold_layers()

    def _cure_channels(self) -> None:
        """Even out unequal channels, and leave the region around them in float; both are tried and the smaller wins."""
        began = time.monotonic()
        spreads, regions = self.matrix.one.maker.screen()
        looked = time.monotonic() - began
        if not regions:
            return
        worst = max(spreads, key=lambda spread: spread.spread)
        why = f"one channel of {worst.layer} is {worst.spread:.0f} times the median one, and one scale serves them all"
        self._try(replace(self.matrix.variant("int8"), equalized=True), f"{why}: even them out", looked)
        tensors: tuple[str, ...] = ()
        layers: tuple[str, ...] = ()
        for region in regions:
            tensors, layers = (*tensors, *region.tensors), (*layers, *region.layers)
            if self._try(self._held_float(tensors, layers), f"{why}: leave that region in float"):
                return
        if not self._cured():
            both = self._held_float(tensors, layers)
            self._try(replace(both, equalized=True, name=f"{both.name}, equalized"), "neither alone was enough")

    def _cure_ranges(self) -> None:
        """Take the ranges that tensors really have, where TensorFlow's calibrator found others."""
        began = time.monotonic()
        wide, of = self.matrix.one.maker.widened()
        if wide:
            why = f"TensorFlow's calibrator gave {wide} of {of} tensors too wide a range: take the true ones"
            variant = replace(self.matrix.variant("int8"), range_rule="true_min_max")
            self._try(variant, why, time.monotonic() - began)

    def _hold_layers(self) -> None:
        """Leave the layers with the largest errors in float, more of them until it is enough."""
        why = "that was not enough" if len(self.trials) > 1 else "no channel stands out"
        ranked = by_error(debugged(self.matrix.one).layers)
        count = 1
        while count <= min(MOST_LAYERS_FLOAT, len(ranked)):
            worst = ranked[:count]
            variant = self._held_float([layer.tensor_name for layer in worst], [layer.layer for layer in worst])
            said = "the worst layer" if count == 1 else f"the {count} worst layers"
            if self._try(variant, f"{why}: leave {said} by the debugger's error over scale in float"):
                return
            row = self.matrix.row(variant.label)
            if row is not None and row.file.size >= row.provenance.source_size:
                return  # nothing is left to be saved
            count *= 2

    def _held_float(self, tensors: Sequence[str], layers: Sequence[str]) -> Variant:
        short = list(dict.fromkeys(layer.partition(" (")[0] for layer in layers))
        said = ", ".join(short) if len(short) <= 3 else f"{short[0]} and {len(short) - 1} more"
        name = f"int8, {said} float"
        if name in (trial.label for trial in self.trials):  # more tensors of the same layers
            name = f"int8, {said} float ({len(tensors)} tensors)"
        return replace(self.matrix.variant("int8"), denylisted_nodes=tuple(dict.fromkeys(tensors)), name=name)

    def _try(self, variant: Variant, why: str, spent: float = 0.0) -> bool:
        """Make and measure one more file, and return whether it is accurate enough."""
        began = time.monotonic() - spent
        if self.matrix.row(variant.label) is None:
            self.matrix.add([variant])
        row = self.matrix.row(variant.label)
        met = row is not None and self._meets(row)
        outcome = views.standing(row) if row else f"failed: {self.matrix.failures[-1].reason}"
        self.trials.append(Trial(variant.label, why, time.monotonic() - began, outcome, met))
        return row is not None and self._accurate(row)

    def _accurate(self, row: Row) -> bool:
        return "drop" not in self.matrix.budget.excess(row)

    def _meets(self, row: Row) -> bool:
        """Whether a row is within the budget as far as is known: times are taken when all files are there."""
        return not self.matrix.budget.excess(row).keys() - {"latency"} and not _broken(row)

    def _cured(self) -> bool:
        tried = [self.matrix.row(trial.label) for trial in self.trials]
        return any(row is not None and self._accurate(row) for row in tried)


def _broken(row: Row) -> bool:
    """Whether anything is wrong with a file that a budget does not speak of."""
    return any(finding.level == "error" and finding.code not in ABOUT_ANSWERS for finding in row.evidence.findings)
