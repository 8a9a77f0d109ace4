"""The card of a converted model: HTML without JavaScript that a saved notebook keeps, and its plain-text twin."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from tfdeploy_magic.artifacts.evidence import ABOUT_ANSWERS, Evidence, Latency
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.provenance import Provenance
from tfdeploy_magic.artifacts.schemes import SCHEMES
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import words
from tfdeploy_magic.views.html import escape

_EDGE = {"ok": pieces.GOOD, "not ok": pieces.BAD, "not measured": pieces.NEUTRAL}
_MARK = {"ok": "✓", "not ok": "✗", "not measured": "–"}


@dataclass(frozen=True)
class _Row:
    """One line of the table: what, before, after, change."""

    what: str
    before: str
    after: str
    change: str

    @property
    def cells(self) -> tuple[str, ...]:
        """Its texts, left to right."""
        return self.what, self.before, self.after, self.change


def mimebundle(file: LiteFile, evidence: Evidence, provenance: Provenance) -> dict[str, str]:
    """Return the card as ``text/html`` and ``text/plain``."""
    return {"text/html": html(file, evidence, provenance), "text/plain": text(file, evidence, provenance)}


def text(file: LiteFile, evidence: Evidence, provenance: Provenance) -> str:
    """Return the card as plain text."""
    rows = [
        _Row("", provenance.source_form, f"{called(file, provenance)} .tflite", "change"),
        *_rows(file, evidence, provenance),
    ]
    said = evidence.verdict
    lines = [
        f"{_MARK[said]} {said}: {provenance.source} → {called(file, provenance)} .tflite",
        "",
        *pieces.plain_table([row.cells for row in rows]),
        "",
        *pieces.plain_facts(_facts(file, evidence, provenance)),
        *pieces.plain_findings(evidence.findings),
    ]
    if (following := next_line(file, evidence, provenance)) is not None:
        lines += ["", f"  next: {following}"]
    return pieces.plain_text(lines)


def html(file: LiteFile, evidence: Evidence, provenance: Provenance) -> str:
    """Return the card as HTML; every name that came from a model or a person is escaped."""
    said = evidence.verdict
    return pieces.card(
        _EDGE[said],
        f"conversion result: {said}",
        (
            pieces.heading(
                f"{_MARK[said]} {said}",
                f"{escape(provenance.source)} → <strong>{escape(called(file, provenance))} .tflite</strong>",
            ),
            pieces.table(
                ("", provenance.source_form, f"{called(file, provenance)} .tflite", "change"),
                *(row.cells for row in _rows(file, evidence, provenance)),
            ),
            _figure(file, evidence, provenance),
            *map(pieces.finding, evidence.findings),
            pieces.facts(_facts(file, evidence, provenance)),
            pieces.following(next_line(file, evidence, provenance)),
            pieces.folded("inputs, outputs, operators, times", pieces.preformatted(_details(file, provenance))),
            pieces.folded("conversion output", pieces.preformatted(provenance.log.strip() or "(it printed nothing)")),
        ),
    )


def next_line(file: LiteFile, evidence: Evidence, provenance: Provenance) -> str | None:
    """Return the line a person would most naturally type next; None when what is wrong has its cure beside it."""
    name = provenance.source.partition(": ")[0]
    about = f"{shlex.quote(name)}{provenance.options.get('kept_flags', '')}"
    if evidence.verdict == "not ok":
        wrong = {finding.code for finding in evidence.findings if finding.level == "error"}
        return (
            f"%quantize {about} --int8 --explain"
            if file.scheme == "int8" and wrong and wrong <= ABOUT_ANSWERS
            else None
        )
    if file.foreign_operators:
        return None
    if file.scheme == "float32":
        return f"%quantize {about}"
    if provenance.options.get("output") is not None:
        return None
    io = provenance.options.get("io")
    asked = f" --io {io}" if file.scheme == "int8" and io != "int8" else ""
    target = re.sub(r"[^\w-]", "_", name.rpartition("/")[2])
    scheme = SCHEMES.get(called(file, provenance))
    return (
        f"%tflite_convert {about} {scheme.flag}{asked} -o {target}.tflite"
        if scheme
        else f'RESULT.save("{target}.tflite")'
    )


def called(file: LiteFile, provenance: Provenance) -> str:
    """Return what tells a file from others of the same model."""
    return str(provenance.options.get("label", file.scheme))


def _rows(file: LiteFile, evidence: Evidence, provenance: Provenance) -> list[_Row]:
    before = provenance.source_size
    saved = f"{words.signed(100 * (file.size / before - 1), 1)}%"
    rows = [_Row("size", words.size(before), words.size(file.size), saved)]
    old, new = evidence.baseline_score, evidence.score
    if evidence.metric is not None and new is not None:
        rows.append(
            _Row(
                f"{evidence.metric}, 95% interval" if new.low is not None else evidence.metric,
                words.score(old, evidence.metric) if old else "not measured",
                words.score(new, evidence.metric),
                words.score_change(old, new, evidence.metric) if old else "",
            )
        )
    if evidence.latency and evidence.baseline_latency:
        first, second = evidence.baseline_latency, evidence.latency
        rows.append(
            _Row("latency p50 / p95", words.latency(first), words.latency(second), words.speed_up(first, second))
        )
    return rows


def _facts(file: LiteFile, evidence: Evidence, provenance: Provenance) -> list[tuple[str, str]]:
    facts = [("parity", parity(evidence))]
    if provenance.calibration:
        facts.append(("calibrated", f"on {provenance.calibration}"))
    if provenance.test:
        facts.append(("tested", f"on {provenance.test}"))
    if evidence.latency:
        facts.append(("timed", _timed(evidence.latency)))
    if file.quantized_share is not None:
        facts.append(("quantized", _quantized(file)))
    if provenance.file_cached:
        done = "made and measured" if provenance.cached else "measured now, made"
        facts.append(("from store", f"{done} on {provenance.made}; --no-cache does it again"))
    stored = provenance.options.get("output") is None
    where = words.path(file.path) + ("  (in the store; keep a copy with .save(PATH) or -o PATH)" if stored else "")
    return [*facts, ("route", " → ".join(provenance.route)), ("file", where)]


def _quantized(file: LiteFile) -> str:
    scheme = SCHEMES.get(file.scheme)
    of = "activations" if scheme and scheme.activations else "weights"
    left = ", ".join(f"{name} ×{count}" for name, count in file.float_operators.items())
    share = words.share(file.quantized_share or 0.0)
    return f"{share} of the {of}" + (f"; left in float: {left}" if of == "activations" and left else "")


def _timed(latency: Latency) -> str:
    samples = "one sample" if latency.batch == 1 else f"{latency.batch} samples"
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    return f"{samples} at a time, {threads} in LiteRT, TensorFlow's own choice in the kernel"


def parity(evidence: Evidence) -> str:
    """Return how far a model's answers are from its source's, in one line."""
    if evidence.snr_db is None or evidence.max_abs_error is None or evidence.mean_abs_error is None:
        return "not measured"
    agreement = f", same top class {words.share(evidence.agreement)}" if evidence.agreement is not None else ""
    return (
        f"SNR {words.decibels(evidence.snr_db)}{agreement}, mean |Δ| {evidence.mean_abs_error:.2g}, "
        f"max |Δ| {evidence.max_abs_error:.2g}, on {evidence.n} samples"
    )


def _figure(file: LiteFile, evidence: Evidence, provenance: Provenance) -> str:
    from tfdeploy_magic.views import figures

    alternative = "; ".join(
        f"{row.what}: {row.before} before, {row.after} after" for row in _rows(file, evidence, provenance)[:2]
    )
    return pieces.picture(figures.size_and_score(file, evidence, provenance), alternative)


def _details(file: LiteFile, provenance: Provenance) -> str:
    doors = [
        *(("input", str(spec), spec.scale, spec.zero_point) for spec in file.inputs),
        *(("output", str(spec), spec.scale, spec.zero_point) for spec in file.outputs),
    ]
    lines = [
        f"{kind} {spec}" + (f", scale {scale:.6g}, zero point {zero}" if scale else "")
        for kind, spec, scale, zero in doors
    ]
    lines.append("operators " + ", ".join(f"{name} ×{count}" for name, count in file.operators.items()))
    lines.append("took " + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in provenance.seconds.items()))
    lines.append(f"sha256 {file.sha256}")
    lines.append(", ".join(f"{package} {version}" for package, version in provenance.versions.items()))
    return "\n".join(lines)
