"""Many files of one model: one process makes them while another measures, and all are timed in turn."""

from __future__ import annotations

import contextlib
import queue
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfdeploy_magic.artifacts.comparison import Budget, Failure, Row, SweepPoint, Table, Trial
from tfdeploy_magic.artifacts.evidence import Evidence, Finding
from tfdeploy_magic.artifacts.schemes import Variant
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.commands.comparison import Unfinished
from tfdeploy_magic.commands.conversion import Conversion, Made
from tfdeploy_magic.commands.lite_model import LiteModel, source_reference
from tfdeploy_magic.errors import ConversionError, TfdeployError, UserCodeError
from tfdeploy_magic.evaluate import calibration, judge, measure, slowness, timing
from tfdeploy_magic.jobs import Progress, Worker


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
        self.failures: list[Failure] = []
        self.trials: list[Trial] = []
        self.findings: list[Finding] = []
        self._order: list[str] = []
        self._done: dict[str, _Done] = {}
        self._error: TfdeployError | None = None

    def row(self, label: str) -> Row | None:
        """Return what is known of a file; None when there is none of that label."""
        return _row(self._done[label]) if label in self._done else None

    def variant(self, label: str) -> Variant:
        """Return what was asked for under a label that has a row."""
        return self._done[label].made.variant

    def seconds(self, label: str) -> float:
        """Return what it took to make and measure a file; 0.0 when it was found in the store."""
        return self._done[label].seconds

    def answers(self, label: str) -> Arrays:
        """Return a file's answers to the test samples."""
        done = self._done[label]
        if done.answers is None:
            done.answers = self._ask(done.made)
        return done.answers

    def possible(self, variants: Sequence[Variant]) -> tuple[Variant, ...]:
        """Return what can be made at all; a model with a loop that cannot be unrolled is not quantized but shrunk.

        Raises:
            ConversionError: Nothing can.
        """
        try:
            _ = self.one.ready
        except ConversionError as error:
            rest = tuple(variant for variant in variants if not variant.calibrated)
            if not self.one.calibrated or not rest:
                raise
            self.one.calibrated = False
            _ = self.one.ready
            self._order += [variant.label for variant in variants if variant.calibrated]
            for variant in variants:
                if variant.calibrated:
                    self._failed(variant.label, error)
            return rest
        return tuple(variants)

    def add(self, variants: Sequence[Variant]) -> None:
        """Make files in one process, and measure each in another as it arrives.

        Raises:
            TfdeployError: There is no file at all after that; why the first could not be made.
        """
        self._order += [variant.label for variant in variants if variant.label not in self._order]
        missing = []
        for variant in variants:
            found = self.one.find(variant)
            if found is None:
                missing.append(variant)
            else:
                self._measured(found)
        if missing:
            self._make(missing)
        if not self._done and self._error is not None:
            raise self._error

    def _make(self, missing: Sequence[Variant]) -> None:
        _ = self.one.maker  # what it takes is done here, in the person's own thread
        began = time.monotonic()
        # Closed at once when anything interrupts: a generator that is only dropped may go on making files.
        with contextlib.closing(self._arriving(missing)) as arriving:
            for variant, made in arriving:
                if isinstance(made, Made):
                    self._measured(made)
                else:
                    self._failed(variant.label, made)
                if variant.label in self._done:
                    self._done[variant.label].seconds = time.monotonic() - began
                began = time.monotonic()

    def _arriving(self, variants: Sequence[Variant]) -> Generator[tuple[Variant, Made | TfdeployError]]:
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
            self._done[label] = _Done(made, replace(known, latency=None), known=True)
            return self._show()
        findings = one.findings(made)
        cannot = measure.cannot_be_measured(made.file, findings, samples=one.test is not None)
        if cannot is not None:
            self._done[label] = _Done(made, cannot, known=False)
            return self._show()
        try:
            answers = self._ask(made)
            evidence = judge.judge(
                one.baseline, answers, one.task, scheme=made.file.scheme, latency=None, findings=findings
            )
        except TfdeployError as error:
            self._failed(label, error)
            return None
        self._done[label] = _Done(made, evidence, known=False, answers=answers)
        return self._show()

    def _ask(self, made: Made) -> Arrays:
        assert self.one.test is not None
        folder = Path(tempfile.mkdtemp(prefix="answers-", dir=self.one.folder))
        return measure.ask(self.measurer, made.file, self.one.test.files, folder)

    def _failed(self, label: str, error: TfdeployError) -> None:
        cure = "Mend it and run this again." if isinstance(error, UserCodeError) else error.cure
        self.failures.append(Failure(label, f"{error.what}: {error.found}", cure))
        self._error = self._error or error
        self._show()

    def _show(self) -> None:
        self.one.report.show(Unfinished(self.table()))

    @contextlib.contextmanager
    def surviving(self) -> Iterator[None]:
        """Make a failure of what is done with finished files a finding: the files themselves stay."""
        try:
            yield
        except TfdeployError as error:
            self.findings.append(Finding("warning", "unfinished", f"{error.what}: {error.found}", error.cure))

    def stop(self) -> None:
        """End both processes, whatever they are at."""
        self.one.worker.cancel()
        self.one.worker.close()
        self.measurer.close()

    def time(self) -> None:
        """Time all files in turn: times from different moments do not compare."""
        one = self.one
        able = [done for done in self._done.values() if done.evidence.measured and not done.made.file.foreign_operators]
        if one.test is None or not able or (all(done.evidence.latency for done in able)):
            return
        one.time_the_source()
        one.report.stage("timing all files in turn")
        self.measurer.listener = one.report.relay
        files = [done.made.file for done in able]
        delegated = timing.delegations(self.measurer, files, one.test.files)
        timed = timing.latencies(self.measurer, files, one.test.files)
        plain = next(
            (taken for done, taken in zip(able, delegated, strict=True) if done is self._done.get("float32")), None
        )
        for done, found, taken in zip(able, timed, delegated, strict=True):
            done.evidence = replace(done.evidence, latency=found, baseline_latency=one.baseline.latency)
            if taken is not None and taken is not plain:
                done.slow = slowness.why_slow(done.made.file, taken, plain)
        self._show()

    def sweep(self) -> tuple[SweepPoint, ...]:
        """Time all files with several numbers of threads and samples at a time."""
        one = self.one
        if one.test is None:
            return ()
        one.report.stage("timing threads and batches")
        files = {label: done.made.file for label, done in self._done.items() if done.evidence.latency is not None}
        return timing.sweep(self.measurer, files, one.test.files)

    def look_at_calibration(self) -> None:
        """See whether the calibration samples are like the test samples, and enough."""
        one = self.one
        if one.calibration is None or not any(done.made.variant.calibrated for done in self._done.values()):
            return
        if one.test is not None and one.comparable:
            model, scored = one.ready.source.model, one.baseline.scored
            one.report.stage("looking at the calibration samples")
            answers = model.predict(one.calibration, one.report)
            classifier = scored is not None and scored.is_share
            self.findings += calibration.one_class(answers, one.baseline.outputs, classifier=classifier)
        if (halves := one.maker.halves()) is not None:
            self.findings += calibration.halves(*halves, one.calibration.count)

    def table(self) -> Table:
        """Return what is known so far; who put it together adds what else it found out."""
        rows = tuple(_row(self._done[label]) for label in self._order if label in self._done)
        return Table(
            source=rows[0].provenance.source if rows else self.one.source.name,
            rows=rows,
            failures=tuple(self.failures),
            budget=self.budget,
            trials=tuple(self.trials),
            findings=judge.worst_first(tuple(self.findings)),
            seconds={**self.one.report.seconds, **self.one.worker.seconds},
        )

    def keep(self) -> tuple[LiteModel, ...]:
        """Put every file into the store, with what was measured, and return them in the order of the table."""
        for done in self._done.values():
            self._keep(done)
        reference = source_reference(self.one.source)
        rows = self.table().rows
        return tuple(LiteModel(row.file, row.evidence, row.provenance, reference) for row in rows)

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
