"""Many files of one model: made by one process while another measures, and what is searched for among them."""

from __future__ import annotations

import contextlib
import math
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tfdeploy_magic.artifacts.comparison import Budget, Contrast, Failure, Row, SweepPoint, Table, Trial
from tfdeploy_magic.artifacts.evidence import Evidence, Finding, Latency
from tfdeploy_magic.artifacts.schemes import SCHEMES, Variant
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.commands.comparison import Comparison, Unfinished
from tfdeploy_magic.commands.conversion import Conversion, Made
from tfdeploy_magic.commands.lite_model import LiteModel, source_reference
from tfdeploy_magic.errors import ConversionError, DataError, InputError, TfdeployError
from tfdeploy_magic.evaluate import calibration, judge, measure, metrics, parity, slowness, timing
from tfdeploy_magic.jobs import Progress, Worker
from tfdeploy_magic.quantize import litert, recipe as recipes

TWINS = (("dynamic", "dynamic_wi8"), ("int8", "static_wi8_ai8"), ("int16x8", "static_wi8_ai16"))
"""What the two engines call the same scheme."""

MOST_LAYERS_FLOAT = 8
"""How many of the worst layers a search leaves in float before it gives up: more are most of a small model."""

_ABOUT_ACCURACY = frozenset(("accuracy-drop", "metric-drop", "low-agreement", "low-snr"))
"""Findings that a budget overrules: whoever allows five points knows that they are lost."""


@dataclass
class _Done:
    """A file of the matrix.

    Args:
        made: The file.
        evidence: What is measured so far.
        known: Whether that was found in the store.
        answers: Its answers to the test samples, memory-mapped; None where they were not needed.
        slow: Why it may be slower than the float file.
        seconds: What it took to make and measure it; 0.0 when it was found in the store.
    """

    made: Made
    evidence: Evidence
    known: bool
    answers: Arrays | None = None
    slow: tuple[str, ...] = ()
    seconds: float = 0.0


class Matrix:
    """One run.

    Args:
        one: The model and its data.
        measurer: The process that asks and times files, while the model's own process makes others.
        budget: What a file may cost.
    """

    def __init__(self, one: Conversion, measurer: Worker, budget: Budget) -> None:
        self.one, self.measurer, self.budget = one, measurer, budget
        self.order: list[str] = []
        self.done: dict[str, _Done] = {}
        self.failures: list[Failure] = []
        self.trials: list[Trial] = []
        self.contrasts: tuple[Contrast, ...] = ()
        self.swept: tuple[SweepPoint, ...] = ()
        self.findings: list[Finding] = []
        self.stopped = False

    def run(
        self, variants: Sequence[Variant], *, recipe: str | None = None, contrast: bool = False, sweep: bool = False
    ) -> Comparison:
        """Make and measure every file, search, time; what is finished stays when it is stopped or something fails."""
        one = self.one
        one.read_data()
        if one.test is not None and one.comparable:
            _ = one.baseline  # a metric that does not fit shows before anything is converted
        self._check_budget()
        try:
            variants = self._with_recipe(variants, recipe)
            self._make_and_measure(variants)
            if not self.done:
                raise self._nothing()
            self._look_at_calibration(variants)
            self._time()
            if self.budget.max_drop is not None:
                self._search()
                self._time()
            if contrast:
                self.contrasts = tuple(self._contrasts())
            if sweep:
                self._sweep()
        except KeyboardInterrupt:
            self._stop()
        return self._comparison()

    # Making and measuring.

    def _with_recipe(self, variants: Sequence[Variant], recipe: str | None) -> tuple[Variant, ...]:
        """Put the file of a recipe between its float twin and the same without the recipe."""
        if recipe is None:
            return tuple(variants)
        rules = recipes.parse(recipe)
        default = next((v.scheme for v in variants if v.scheme != "float32"), "int8") if len(variants) < 3 else "int8"
        asked = recipes.resolve(rules, self.one.maker.operators(), default)
        return Variant("float32"), Variant(asked.scheme, asked.io), asked

    def _make_and_measure(self, variants: Sequence[Variant]) -> None:
        """Make files in one process and measure each as it arrives in another."""
        self.order += [variant.label for variant in variants]
        missing = []
        for variant in variants:
            found = self.one.find(variant)
            if found is None:
                missing.append(variant)
            else:
                self._measured(found)
        missing = self._possible(missing)
        if not missing:
            return
        began = time.monotonic()
        for variant, made in self._arriving(missing):
            if isinstance(made, Made):
                self._measured(made)
            else:
                self._failed(variant.label, made)
            if variant.label in self.done:
                self.done[variant.label].seconds = time.monotonic() - began
            began = time.monotonic()

    def _possible(self, variants: Sequence[Variant]) -> list[Variant]:
        """Return what can be made at all: a model with a loop can do without calibration only."""
        if not variants:
            return []
        try:
            _ = self.one.maker
        except ConversionError as error:
            rest = [variant for variant in variants if not variant.calibrated]
            if len(rest) == len(variants) or not rest:
                raise
            for variant in variants:
                if variant.calibrated:
                    self._failed(variant.label, error)
            self.one.calibrated = False
            _ = self.one.maker
            return rest
        return list(variants)

    def _arriving(self, variants: Sequence[Variant]) -> Iterator[tuple[Variant, Made | TfdeployError]]:
        """Yield each file, or why there is none, as soon as it is there."""
        one, arrived = self.one, queue.SimpleQueue[Any]()
        relayed, one.worker.listener = one.worker.listener, arrived.put
        stopped = threading.Event()
        one.report.stage("making and measuring files")

        def make_all() -> None:
            for variant in variants:
                if stopped.is_set():
                    return
                try:
                    arrived.put((variant, one.make(variant)))
                except TfdeployError as error:
                    arrived.put((variant, error))
                except BaseException as error:
                    arrived.put(error)
                    return

        making = threading.Thread(target=make_all, name="tfdeploy: making files", daemon=True)
        making.start()
        left = len(variants)
        try:
            while left:
                event = arrived.get()
                if isinstance(event, Progress):
                    done = len(variants) - left + 1
                    one.report.pass_on(replace(event, stage=f"file {done} of {len(variants)}: {event.stage}"))
                elif isinstance(event, BaseException):
                    raise event
                else:
                    left -= 1
                    yield event
        finally:
            stopped.set()
            if left:
                one.worker.cancel()
            making.join()
            one.worker.listener = relayed

    def _measured(self, made: Made) -> None:
        """Measure a file's answers; its time is taken later, when nothing else is at work."""
        one, label = self.one, made.variant.label
        known = one.known_evidence(made.variant) if made.provenance.file_cached else None
        if known is not None:
            self.done[label] = _Done(made, replace(known, latency=None), known=True)
            return self._show()
        findings = one.findings(made)
        cannot = measure.cannot_be_measured(made.file, findings, samples=one.test is not None)
        if cannot is not None:
            self.done[label] = _Done(made, cannot, known=False)
            return self._show()
        try:
            answers = self._answers(made)
            evidence = judge.judge(
                one.baseline, answers, one.task, scheme=made.file.scheme, latency=None, findings=findings
            )
        except TfdeployError as error:
            self._failed(label, error)
            return None
        self.done[label] = _Done(made, evidence, known=False, answers=answers)
        return self._show()

    def _answers(self, made: Made) -> Arrays:
        assert self.one.test is not None
        folder = self.one.folder / "answers" / str(len(self.done) + len(self.failures))
        return measure.ask(self.measurer, made.file, self.one.test.files, folder)

    def _failed(self, label: str, error: TfdeployError) -> None:
        reason = f"{error.what}: {error.found}" if isinstance(error, InputError) else error.found
        self.failures.append(Failure(label, reason, error.cure))
        self._error = error
        self._show()

    def _nothing(self) -> TfdeployError:
        return self._error

    def _show(self) -> None:
        self.one.report.show(Unfinished(self._table()))

    def _stop(self) -> None:
        self.stopped = True
        self.one.worker.cancel()
        self.one.worker.close()
        self.measurer.close()

    # Time.

    def _time(self) -> None:
        """Time all files in turn: times from different moments do not compare."""
        one = self.one
        able = [done for done in self.done.values() if done.evidence.measured and not done.made.file.foreign_operators]
        if one.test is None or not able or (all(done.evidence.latency for done in able)):
            return
        one.time_the_source()
        one.report.stage("timing all files in turn")
        self.measurer.listener = one.report.relay
        files = [done.made.file for done in able]
        delegated = timing.delegations(self.measurer, files, one.test.files)
        timed = timing.latencies(self.measurer, files, one.test.files)
        plain = next((taken for done, taken in zip(able, delegated, strict=True) if done is self.done.get("float32")), None)
        for done, found, taken in zip(able, timed, delegated, strict=True):
            done.evidence = replace(done.evidence, latency=found, baseline_latency=one.baseline.latency)
            if taken is not None and taken is not plain:
                done.slow = slowness.why_slow(done.made.file, taken, plain)
        self._show()

    def _sweep(self) -> None:
        one = self.one
        assert one.test is not None
        able = {label: done for label, done in self.done.items() if done.evidence.latency is not None}
        one.report.stage("timing threads and batches")
        files = {label: done.made.file for label, done in able.items()}
        self.swept = timing.sweep(self.measurer, files, one.test.files)

    # The search.

    def _check_budget(self) -> None:
        """Refuse a budget that no measurement on these samples can tell to be met."""
        one, drop = self.one, self.budget.max_drop
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
            finest = 1 - 0.05 ** (1 / one.test.count)
            raise DataError(
                f"the test data cannot show a drop of {100 * drop:g} points",
                found=f"{one.test.count} samples: even a file that answers all of them alike may be "
                f"{100 * finest:.1f} points worse, at 95%",
                wanted=f"at least {needed} samples for that",
                cure=f"Test on more, or allow --max-drop {math.ceil(1000 * finest) / 10:g}%.",
            )

    def _search(self) -> None:
        """Cure int8 where it misses the budget: by what the channels' ranges show first, then by single layers."""
        plain = self.done.get("int8")
        if plain is None or not plain.evidence.measured:
            return
        missed = self._drop_missed(plain)
        self.trials.append(Trial("int8", "what was asked for, as it is", plain.seconds, self._outcome(plain), not missed))
        if not missed:
            return
        began = time.monotonic()
        spreads, found = self.one.maker.screen()
        looked = time.monotonic() - began
        worst = max(spreads, key=lambda spread: spread.spread, default=None)
        if worst is not None and found:
            why = (
                f"the largest channel of {worst.layer} is {worst.spread:.0f} times the median one, and one scale serves "
                "them all"
            )
            self._try(Variant("int8", plain.made.variant.io, equalized=True), f"{why}: even them out", looked)
            held: tuple[str, ...] = ()
            layers: tuple[str, ...] = ()
            for region in found:
                held, layers = (*held, *region.tensors), (*layers, *region.layers)
                if self._try(self._held_float(held, layers), f"{why}: leave that region in float"):
                    break
            if not self._met():
                both = replace(self._held_float(held, layers), equalized=True)
                self._try(replace(both, name=f"{both.name}, equalized"), "neither alone was enough")
        if not self._met():
            self._search_layers(has_regions=bool(found))

    def _search_layers(self, *, has_regions: bool) -> None:
        """Leave the layers with the largest errors in float, more of them until it is enough."""
        why = "the regions were not enough" if has_regions else "no channels stand out"
        ranked = self._ranked_layers()
        count = 1
        while count <= min(MOST_LAYERS_FLOAT, len(ranked)):
            worst = ranked[:count]
            variant = self._held_float([tensor for tensor, _ in worst], [layer for _, layer in worst])
            if self._try(variant, f"{why}: leave the {count} worst by the debugger's error over scale in float"):
                return
            count *= 2

    def _ranked_layers(self) -> list[tuple[str, str]]:
        from tfdeploy_magic.commands.explanation import debugged

        layers = debugged(self.one).layers
        ranked = sorted(layers, key=lambda layer: -layer.rmse_over_scale)
        return [(layer.tensor_name, layer.layer) for layer in ranked]

    def _held_float(self, tensors: Sequence[str], layers: Sequence[str]) -> Variant:
        short = list(dict.fromkeys(layer.partition(" (")[0] for layer in layers))
        said = ", ".join(short) if len(short) <= 3 else f"{short[0]} and {len(short) - 1} more"
        io = self.done["int8"].made.variant.io
        return Variant("int8", io, denylisted_nodes=tuple(dict.fromkeys(tensors)), name=f"int8, {said} float")

    def _try(self, variant: Variant, why: str, spent: float = 0.0) -> bool:
        """Make and measure one more file, and say what came of it."""
        began = time.monotonic() - spent
        self._make_and_measure([variant])
        done = self.done.get(variant.label)
        met = done is not None and not self._drop_missed(done)
        outcome = self._outcome(done) if done else f"could not be made: {self.failures[-1].reason}"
        self.trials.append(Trial(variant.label, why, time.monotonic() - began, outcome, met))
        self._show()
        return met

    def _drop_missed(self, done: _Done) -> bool:
        return "drop" in self.budget.excess(_row(done))

    def _met(self) -> bool:
        return any(trial.met for trial in self.trials)

    def _outcome(self, done: _Done) -> str:
        from tfdeploy_magic.views import comparison

        return comparison.standing(_row(done))

    # What follows.

    def _look_at_calibration(self, variants: Sequence[Variant]) -> None:
        """See whether the calibration samples are like the test samples, and enough."""
        one = self.one
        if one.calibration is None or not any(variant.calibrated for variant in variants):
            return
        if all(done.known for done in self.done.values()):
            return
        if one.test is not None and one.comparable:
            answers = one.ready.source.model.predict(one.calibration, one.report)
            self.findings += calibration.one_class(
                answers,
                one.baseline.outputs,
                classifier=one.baseline.scored is not None and one.baseline.scored.is_share,
            )
        with contextlib.suppress(TfdeployError):  # whatever fails there has failed above, and is said there
            first, second = one.maker.halves()
            self.findings += calibration.halves(first, second, one.calibration.count)

    def _contrasts(self) -> Iterator[Contrast]:
        """Compare what the two engines make of the same scheme."""
        for mine, theirs in TWINS:
            for label in (theirs, Variant(theirs, range_rule="moving_average").label):
                first, second = self.done.get(mine), self.done.get(label)
                if first is None or second is None or not (first.evidence.measured and second.evidence.measured):
                    continue
                found = parity.compare(
                    self._answers_of(first), self._answers_of(second), classifier=first.evidence.agreement is not None
                )
                rule = second.made.variant.range_rule
                ranges = self._ranges_compared(rule) if second.made.variant.calibrated else None
                yield Contrast(
                    mine, label, found.snr_db, found.agreement, ranges, _why_different(first, second, ranges, found)
                )

    def _answers_of(self, done: _Done) -> Arrays:
        if done.answers is None:
            done.answers = self._answers(done.made)
        return done.answers

    def _ranges_compared(self, rule: str) -> tuple[int, int]:
        return litert.differing(self.one.maker.ranges("min_max"), self.one.maker.ranges(rule))

    def _table(self) -> Table:
        rows = tuple(_row(self.done[label]) for label in self.order if label in self.done)
        return Table(
            source=self._source(),
            rows=rows,
            failures=tuple(self.failures),
            budget=self.budget,
            best=_best(rows, self.budget),
            trials=tuple(self.trials),
            contrasts=self.contrasts,
            sweep=self.swept,
            findings=judge.worst_first(tuple(self.findings)),
            stopped=self.stopped,
            seconds={**self.one.report.seconds, **self.one.worker.seconds},
        )

    def _source(self) -> str:
        if self.done:
            return next(iter(self.done.values())).made.provenance.source
        return self.one.source.name

    def _comparison(self) -> Comparison:
        for done in self.done.values():
            self._keep(done)
        table = self._table()
        best = next((row for row in table.rows if row.label == table.best), None)
        if best is not None:
            table = replace(table, findings=judge.worst_first((*table.findings, *_resolution(best, self.budget))))
        reference = source_reference(self.one.source)
        models = tuple(LiteModel(row.file, row.evidence, row.provenance, reference) for row in table.rows)
        return Comparison(table, models)

    def _keep(self, done: _Done) -> None:
        """Put a file into the store, with what is known of it now."""
        one, made = self.one, done.made
        if not made.provenance.file_cached:
            with contextlib.suppress(FileNotFoundError):
                made = replace(made, provenance=one.with_costs(made.provenance))
            path = one.keep(made)
            assert path is not None
            made = replace(made, file=replace(made.file, path=path))
        if not done.known and done.evidence.latency is not None:
            one.note(made.variant, done.evidence)
        test = one.test.name if one.test and done.evidence.measured else None
        done.made = replace(made, provenance=replace(made.provenance, test=test, evidence_cached=done.known))


def _row(done: _Done) -> Row:
    return Row(done.made.variant.label, done.made.file, done.evidence, done.made.provenance, done.slow)


def _best(rows: Sequence[Row], budget: Budget) -> str | None:
    """Return the label of the row to take."""
    if not budget:
        fit = [row for row in rows if row.evidence.ok]
        fit = [row for row in fit if not any(f.code in _ABOUT_ACCURACY for f in row.evidence.findings)] or fit
    else:
        fit = [row for row in rows if not budget.excess(row) and not _broken(row)]
    if not budget or budget.max_drop is not None:
        best = min(fit, key=lambda row: row.file.size, default=None)
    else:  # only size or time is limited: within that, the closest to the source
        best = max(fit, key=lambda row: -math.inf if row.evidence.snr_db is None else row.evidence.snr_db, default=None)
    return best.label if best else None


def _broken(row: Row) -> bool:
    return any(f.level == "error" and f.code not in _ABOUT_ACCURACY for f in row.evidence.findings)


def _resolution(best: Row, budget: Budget) -> Iterator[Finding]:
    """Say so when the samples are too few to rule out that the best file is worse than allowed."""
    drop = best.evidence.drop
    if budget.max_drop is None or drop is None or drop.high is None or drop.low is None:
        return
    if drop.high > budget.max_drop:
        room = max(budget.max_drop - drop.value, 1e-9)
        needed = math.ceil(best.evidence.n * ((drop.high - drop.low) / 2 / room) ** 2)
        yield Finding(
            "warning",
            "resolution",
            f"{best.label} lost {100 * drop.value:.1f} points on these {best.evidence.n} samples; on others it may be up "
            f"to {100 * drop.high:.1f}, more than the {100 * budget.max_drop:g} allowed (95% interval)",
            f"About {needed:,} samples would tell." if room > 1e-6 else "Only a larger margin would tell.",
        )


def _why_different(first: _Done, second: _Done, ranges: tuple[int, int] | None, found: parity.Parity) -> str:
    if math.isinf(found.snr_db) and found.snr_db > 0:
        return "Nothing differs: every answer is the same."
    if second.made.variant.range_rule == "moving_average" and ranges is not None:
        return (
            f"{ranges[0]} of {ranges[1]} tensors get another range: litert-quantizer by itself takes a 0.95 moving average "
            "over the samples where TensorFlow takes the widest seen, so that large values are cut off."
        )
    if ranges is not None:
        return "Both use the same ranges; what is left is how each rounds."
    stored = [_stored(done.made.file.weights) for done in (first, second)]
    if stored[0] != stored[1]:
        return f"TensorFlow stores {stored[0]}, litert-quantizer {stored[1]}: TensorFlow leaves small weights in float."
    return "Both store the same weights in 8 bits; what is left is how each rounds."


def _stored(weights: Mapping[str, int]) -> str:
    from tfdeploy_magic.views import words

    return f"{words.size(weights.get('int8', 0))} of weights in 8 bits"
