"""What was measured on a converted model, and the findings that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

MINIMUM_SAMPLES = 30
"""Fewer test samples than this can never be green: at n = 30 one sample is already 3 points."""


ABOUT_ANSWERS = frozenset(("accuracy-drop", "metric-drop", "low-agreement", "low-snr"))
"""Findings that say how far a file's answers are from its source's: what a budget allows, and a comparison shows."""


@dataclass(frozen=True)
class Finding:
    """One thing a person should know.

    Args:
        level: An error means "do not ship this"; a warning, "look at this"; a note is for the record.
        code: A stable name, "baseline-collapsed".
        message: One sentence.
        cure: What to do, one sentence; empty for a note.
    """

    level: Literal["error", "warning", "note"]
    code: str
    message: str
    cure: str = ""


@dataclass(frozen=True)
class Score:
    """The value of a task metric on the test samples.

    Args:
        value: The mean over the samples.
        low: Lower end of the 95% interval, or None for a metric that gives only one number.
        high: Upper end of it.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Drop:
    """How much worse the converted model scores than its source on the same samples; below 0 it scores better.

    Args:
        value: Of a metric that is a share, such as accuracy, the difference; of any other, the share of the source's
            value that was lost.
        low: Lower end of the 95% interval of the paired difference, or None for a metric that gives only one number.
        high: Upper end of it.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Latency:
    """Time for one sample, or for one batch of a model whose batch size is fixed, in milliseconds.

    Args:
        p50: The median.
        p95: The 95th percentile.
        runs: How many timed runs after warm-up.
        threads: Threads the interpreter was given; 0 where TensorFlow chose for itself.
        batch: Samples at a time.
        noise: How far medians of the same file lie apart when it is timed again, as a share of the median; None when
            it was timed once only.
    """

    p50: float
    p95: float
    runs: int
    threads: int
    batch: int = 1
    noise: float | None = None


@dataclass(frozen=True)
class Evidence:
    """What was measured; a field that was not measured is None, never a guess.

    Args:
        n: Test samples that both models answered; 0 means parity was not measured.
        snr_db: Signal-to-noise ratio of the outputs, dB: 10 log10(sum(ref^2) / sum((ref - out)^2)), the worst output.
        agreement: Share of samples with the same top class; None when the output is not a class score.
        mean_abs_error: Mean absolute difference of the outputs, in the output's unit.
        max_abs_error: Largest absolute difference of the outputs.
        metric: The task metric's name, "accuracy"; None when labels are unknown.
        score: The metric of the converted model.
        baseline_score: The metric of the source model on the same samples.
        drop: How much worse the converted model scores.
        latency: Of the converted model in the interpreter.
        baseline_latency: Of the source model in TensorFlow.
        findings: Everything noticed, worst first.
    """

    n: int = 0
    snr_db: float | None = None
    agreement: float | None = None
    mean_abs_error: float | None = None
    max_abs_error: float | None = None
    metric: str | None = None
    score: Score | None = None
    baseline_score: Score | None = None
    drop: Drop | None = None
    latency: Latency | None = None
    baseline_latency: Latency | None = None
    findings: tuple[Finding, ...] = ()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evidence:
        """Rebuild from what ``dataclasses.asdict`` gave, also after a trip through JSON."""
        parts: dict[str, Any] = {"findings": tuple(Finding(**row) for row in data["findings"])}
        for name, kind in (
            ("score", Score),
            ("baseline_score", Score),
            ("drop", Drop),
            ("latency", Latency),
            ("baseline_latency", Latency),
        ):
            parts[name] = kind(**data[name]) if data[name] is not None else None
        return cls(**{**data, **parts})

    @property
    def accuracy(self) -> float | None:
        """The converted model's accuracy, 0 to 1; None when it was not the metric or labels are unknown."""
        return self.score.value if self.score and self.metric == "accuracy" else None

    @property
    def baseline_accuracy(self) -> float | None:
        """The source model's accuracy on the same samples, 0 to 1."""
        return self.baseline_score.value if self.baseline_score and self.metric == "accuracy" else None

    @property
    def latency_ms(self) -> float | None:
        """The converted model's median latency for one sample, ms."""
        return self.latency.p50 if self.latency else None

    @property
    def worst_drop(self) -> float | None:
        """The drop of the metric, or without labels the share of samples that got another top class: no drop is worse.

        None when neither was measured.
        """
        if self.drop is not None:
            return self.drop.value
        return None if self.agreement is None or self.score is not None else 1 - self.agreement

    @property
    def measured(self) -> bool:
        """Whether the converted model's answers were compared with the source model's at all."""
        return self.n > 0

    @property
    def verdict(self) -> Literal["ok", "not ok", "not measured"]:
        """What to call the result in one or two words."""
        if self.ok:
            return "ok"
        failed = any(finding.level == "error" for finding in self.findings)
        return "not ok" if self.measured or failed else "not measured"

    @property
    def ok(self) -> bool:
        """True only when measured on at least 30 samples and no finding is an error."""
        return self.n >= MINIMUM_SAMPLES and not any(finding.level == "error" for finding in self.findings)
