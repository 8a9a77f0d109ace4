"""From measurements to Evidence: which of them a person must know about, and whether it may ship."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.evidence import MINIMUM_SAMPLES, Drop, Evidence, Finding, Latency, Score
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.errors import DataError
from tfdeploy_magic.evaluate import metrics
from tfdeploy_magic.evaluate.parity import Parity, compare, predicted_class
from tfdeploy_magic.jobs import deadline

FLOAT_SNR_DB = {"float16": 40.0, "bfloat16": 25.0, "float32": 60.0}
"""A float32 conversion below this is wrong, not imprecise: by what the source model computes in.

Measured: 120 dB and more from float32; one rounding to float16 costs all beyond 66 dB, to bfloat16 beyond 48 dB.
"""

LOW_SNR_DB, POOR_SNR_DB = 20.0, 10.0
"""Quantized: worth a look below the first (a well calibrated int8 file has 35 dB or more), broken below the second."""

LOW_AGREEMENT, POOR_AGREEMENT = 0.98, 0.90

DROP = 0.01
"""A drop of the accuracy that the data can show is an error from this size, one percentage point."""

SIGNIFICANCE = 0.05

WORSE_SHARE = 0.05
"""Any other metric that gets worse by this share of its value, as far as the data can show it, is an error."""

MetricFunction = Callable[..., Any]


@dataclass(frozen=True)
class Task:
    """How answers are scored.

    Args:
        labels: Targets of the test samples, or None.
        metric: A name, the person's function, or None for accuracy where that makes sense.
        metric_name: What the person calls the function.
        seconds: How long the function may take.
        postprocess: Turns a model's answers into what the metric takes.
    """

    labels: npt.NDArray[Any] | None = None
    metric: str | MetricFunction | None = None
    metric_name: str = "metric"
    seconds: float = 60.0
    postprocess: MetricFunction | None = None

    @property
    def higher_is_better(self) -> bool:
        """Whether a lower score is worse; a function of the person's says otherwise by an attribute of this name."""
        if callable(self.metric):
            return bool(getattr(self.metric, "higher_is_better", True))
        return self.metric is None or metrics.METRICS[self.metric].higher_is_better

    def score(self, outputs: Arrays) -> Scored | None:
        """Score one model's answers; None when there are no labels or no metric that fits.

        Raises:
            DataError: The metric does not fit, or gave no finite number.
            NameNotFound: There is no metric of that name.
            UserCodeError: The person's function raised or hung.
        """
        if self.labels is None:
            return None
        if self.postprocess is not None:
            outputs = self._postprocessed(outputs, self.postprocess)
        if callable(self.metric):
            value = metrics.custom_score(self.metric, self.metric_name, self.labels, outputs, seconds=self.seconds)
            return Scored(self.metric_name, value, None)
        if self.metric is None:
            chosen = metrics.default_metric(self.labels, outputs)
            if chosen is None:
                return None
        else:
            chosen = metrics.named_metric(self.metric)
        value, per_sample = metrics.score(chosen, self.labels, outputs)
        return Scored(chosen.name, value, per_sample)

    def _postprocessed(self, outputs: Arrays, function: MetricFunction) -> Arrays:
        given = next(iter(outputs.values())) if len(outputs) == 1 else dict(outputs)
        made = deadline.call(lambda: function(given), seconds=self.seconds, what="the function postprocess")
        if isinstance(made, Mapping):
            return {str(name): np.asarray(value) for name, value in made.items()}
        return {"output": np.asarray(made)}


def task(
    labels: npt.NDArray[Any] | None,
    metric: str | MetricFunction | None,
    seconds: float,
    name: str | None = None,
    postprocess: MetricFunction | None = None,
) -> Task:
    """Say how answers are to be scored, and fail before any work is done when they cannot be.

    Args:
        labels: Targets of the test samples, or None.
        metric: A name, the person's function, or None for accuracy where that makes sense.
        seconds: How long the function may take.
        name: What the person calls the function; its own name when None.
        postprocess: Turns a model's answers into what the metric takes.

    Raises:
        NameNotFound: There is no metric of that name.
        DataError: A metric was asked for, but there are no labels.
    """
    if isinstance(metric, str):
        name = metrics.named_metric(metric).name
    called = str(name or getattr(metric, "__name__", "metric"))
    if metric is not None and labels is None:
        raise DataError(
            f"--metric {called} cannot be measured",
            found="no labels",
            wanted="labelled test data",
            cure="Name it with its labels: --test x_test,y_test.",
        )
    if labels is not None and labels.dtype == bool:
        labels = labels.astype(int)
    return Task(labels, metric, called, seconds, postprocess)


@dataclass(frozen=True)
class Scored:
    """A metric's value, and its value for each sample where it is a mean over samples."""

    metric: str
    score: Score
    per_sample: npt.NDArray[Any] | None

    @property
    def is_share(self) -> bool:
        """Whether it is a share of samples, so that a drop is counted in points."""
        return "accuracy" in self.metric


@dataclass(frozen=True)
class Baseline:
    """The source model's answers to the test samples.

    Args:
        outputs: Output name -> ``[count, ...]``.
        scored: Its task metric.
        latency: Of one sample.
        findings: What is wrong with the model itself.
        precision: What it computes in, "float32" or "mixed_bfloat16".
    """

    outputs: Arrays
    scored: Scored | None
    latency: Latency | None
    findings: tuple[Finding, ...]
    precision: str = "float32"


def baseline(outputs: Arrays, task: Task, precision: str = "float32") -> Baseline:
    """Judge the source model before anything is compared with it; its latency is not measured yet."""
    scored = task.score(outputs)
    return Baseline(outputs, scored, None, tuple(_baseline_findings(outputs, task, scored)), precision)


def judge(
    base: Baseline,
    answers: Arrays,
    task: Task,
    *,
    scheme: str,
    latency: Latency | None,
    findings: tuple[Finding, ...],
) -> Evidence:
    """Compare a converted model's answers with the baseline's.

    Args:
        base: The source model's answers.
        answers: Output name -> the converted model's answers to the same samples.
        task: How they are scored.
        scheme: What the file was made with; a float32 file must answer as its source does.
        latency: Of the converted model.
        findings: What was noticed elsewhere.
    """
    parity = compare(base.outputs, answers, classifier=_is_classifier(base.scored))
    scored = task.score(answers) if parity.finite else None
    noticed = (
        *findings,
        *base.findings,
        *_parity_findings(parity, scheme, base.precision),
        *_score_findings(base.scored, scored),
    )
    return Evidence(
        n=parity.n,
        snr_db=parity.snr_db,
        agreement=parity.agreement,
        mean_abs_error=parity.mean_abs_error,
        max_abs_error=parity.max_abs_error,
        metric=base.scored.metric if base.scored else None,
        score=scored.score if scored else None,
        baseline_score=base.scored.score if base.scored else None,
        drop=_drop(base.scored, scored, higher_is_better=task.higher_is_better),
        latency=latency,
        baseline_latency=base.latency,
        findings=worst_first(noticed),
    )


def not_measured(findings: tuple[Finding, ...]) -> Evidence:
    """Return the evidence of a file that nothing was measured on."""
    missing = Finding(
        "warning",
        "not-measured",
        "parity was not measured: there is no test data",
        "Name some: --test x_test,y_test.",
    )
    return Evidence(findings=worst_first((*findings, missing)))


def not_measurable(findings: tuple[Finding, ...], operators: Sequence[str]) -> Evidence:
    """Return the evidence of a file that no interpreter here can run, because of these operators."""
    missing = Finding(
        "warning",
        "select-ops",
        f"nothing was measured: the file leaves {', '.join(operators)} to kernels of TensorFlow (Flex) or of your own, "
        "and no interpreter that TensorFlow 2.21 comes with can run such a file",
        "Test it on the device, with tensorflow-lite-select-tf-ops or your kernels linked in.",
    )
    return Evidence(findings=worst_first((*findings, missing)))


def worst_first(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Sort findings: errors, warnings, notes."""
    order = ("error", "warning", "note")
    return tuple(sorted(findings, key=lambda finding: order.index(finding.level)))


def _baseline_findings(outputs: Arrays, task: Task, scored: Scored | None) -> Iterator[Finding]:
    n = len(next(iter(outputs.values())))
    if n < MINIMUM_SAMPLES:
        yield Finding(
            "warning",
            "few-samples",
            f"only {n} test samples: at least {MINIMUM_SAMPLES} are needed before anything can be called ok",
            "Test on more: --test x_test,y_test.",
        )
    if not all(np.isfinite(output).all() for output in outputs.values() if output.dtype.kind != "S"):
        yield Finding(
            "error",
            "baseline-not-finite",
            "the source model itself answers NaN or infinity",
            "Mend the model first.",
        )
        return
    if reason := _collapse(outputs, task, scored):
        yield Finding(
            "error",
            "baseline-collapsed",
            f"the source model itself has collapsed: {reason}",
            "Train it first; no comparison with it means anything.",
        )


def _is_classifier(scored: Scored | None) -> bool:
    return scored is not None and scored.metric in ("accuracy", "top_5_accuracy")


def _collapse(outputs: Arrays, task: Task, scored: Scored | None) -> str | None:
    """Say why a model's answers cannot be told from those of a model that learned nothing."""
    first = next(iter(outputs.values()))
    n = len(first)
    if n < 2:
        return None
    if all(np.all(output == output[:1]) for output in outputs.values()):
        return "it gives one and the same answer to every sample"
    classes = predicted_class(first, classifier=_is_classifier(scored)) if len(outputs) == 1 else None
    if classes is not None and n >= MINIMUM_SAMPLES and len(np.unique(classes)) == 1:
        return f"it answers class {classes[0]} to all {n} samples"
    if scored is None or scored.metric != "accuracy" or task.labels is None or scored.score.low is None:
        return None
    labels = np.argmax(task.labels, axis=1) if task.labels.shape == first.shape else task.labels.reshape(n)
    values, counts = np.unique(labels, return_counts=True)
    most, share = values[np.argmax(counts)], counts.max() / n
    if len(values) > 1 and scored.score.low <= share:
        return (
            f"its accuracy of {scored.score.value:.1%} on {n} samples cannot be told from always answering "
            f"class {most}, which gives {share:.1%}"
        )
    return None


def _parity_findings(parity: Parity, scheme: str, precision: str) -> Iterator[Finding]:
    if not parity.finite:
        yield Finding(
            "error",
            "not-finite",
            "the converted model answers NaN or infinity",
            "Look for a division or logarithm that needs more range, and try float32.",
        )
        return
    noise = f"the answers differ from the source model's (SNR {parity.snr_db:.1f} dB)"
    calibrate = "Calibrate on more of the data it will see: --calib NAME --samples N; or try int16x8 or float16."
    if scheme == "float32" and parity.snr_db < FLOAT_SNR_DB.get(precision.removeprefix("mixed_"), 60.0):
        yield Finding("error", "float-differs", f"{noise}, though nothing was quantized", "Please report this model.")
    elif parity.agreement is not None:
        if parity.agreement < LOW_AGREEMENT:
            level: Literal["error", "warning"] = "error" if parity.agreement < POOR_AGREEMENT else "warning"
            message = f"the top class agrees with the source model's on only {parity.agreement:.1%} of the samples"
            yield Finding(level, "low-agreement", message, calibrate)
    elif parity.snr_db < LOW_SNR_DB:
        yield Finding("error" if parity.snr_db < POOR_SNR_DB else "warning", "low-snr", noise, calibrate)


def _drop(before: Scored | None, after: Scored | None, *, higher_is_better: bool) -> Drop | None:
    """Say how much worse a score is than the source model's on the same samples."""
    if before is None or after is None:
        return None
    sign = 1 if higher_is_better else -1
    if before.per_sample is None or after.per_sample is None:
        ends: tuple[float, ...] = (sign * (before.score.value - after.score.value),)
    else:
        ends = metrics.fall(sign * before.per_sample, sign * after.per_sample)
    whole = 1.0 if before.is_share else abs(before.score.value) or 1.0
    return Drop(*(end / whole for end in ends))


def _score_findings(before: Scored | None, after: Scored | None) -> Iterator[Finding]:
    if before is None or after is None or before.per_sample is None or after.per_sample is None:
        return
    if not _is_classifier(before):
        yield from _mean_findings(before, after)
        return
    drop = before.score.value - after.score.value
    p = metrics.mcnemar(before.per_sample, after.per_sample)
    if drop > 0 and p < SIGNIFICANCE:
        yield Finding(
            "error" if drop >= DROP else "warning",
            "accuracy-drop",
            f"{before.metric} fell by {100 * drop:.1f} points, more than chance explains (McNemar p = {p:.2g})",
            "Calibrate on more real data, or try int16x8 or float16.",
        )


def _mean_findings(before: Scored, after: Scored) -> Iterator[Finding]:
    """Compare two means over the same samples: the interval of the paired difference must leave zero out."""
    chosen = metrics.METRICS.get(before.metric)
    if chosen is None or before.per_sample is None or after.per_sample is None:
        return
    sign = 1 if chosen.higher_is_better else -1
    mean, low, _ = metrics.fall(sign * before.per_sample, sign * after.per_sample)
    if low > 0:
        share = mean / abs(before.score.value) if before.score.value else np.inf
        yield Finding(
            "error" if share >= WORSE_SHARE else "warning",
            "metric-drop",
            f"{before.metric} got worse by {mean:.3g} ({share:.1%}), more than chance explains",
            "Calibrate on more real data, or try int16x8 or float16.",
        )
