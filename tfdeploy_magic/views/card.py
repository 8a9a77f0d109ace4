"""The card of a converted model: HTML without JavaScript that a saved notebook keeps, and its plain-text twin."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape

from tfdeploy_magic.artifacts.evidence import Evidence, Finding, Latency
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.provenance import Provenance
from tfdeploy_magic.views import words

# Text and lines take the page's own colour, so that one card suits light and dark; these three are Okabe and Ito's
# (2008) colour-blind-safe hues, used for edges and always together with a word.
_EDGE = {"ok": "#009E73", "not ok": "#D55E00", "not measured": "#999999"}
_MARK = {"ok": "✓", "not ok": "✗", "not measured": "–", "error": "✗", "warning": "!", "note": "·"}
_LEVEL_EDGE = {"error": "#D55E00", "warning": "#E69F00", "note": "#999999"}
_LINE = "1px solid rgba(128,128,128,.35)"
_CELL = f"padding:3px 14px 3px 0;text-align:left;border:0;border-bottom:{_LINE};background:transparent"


@dataclass(frozen=True)
class _Row:
    """One line of the table: what, before, after, change."""

    what: str
    before: str
    after: str
    change: str


def mimebundle(file: LiteFile, evidence: Evidence, provenance: Provenance) -> dict[str, str]:
    """Return the card as ``text/html`` and ``text/plain``."""
    return {"text/html": html(file, evidence, provenance), "text/plain": text(file, evidence, provenance)}


def text(file: LiteFile, evidence: Evidence, provenance: Provenance) -> str:
    """Return the card as plain text."""
    rows = [_Row("", "SavedModel", f"{file.scheme} .tflite", "change"), *_rows(file, evidence, provenance)]
    cells = [(row.what, row.before, row.after, row.change) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    said = evidence.verdict
    lines = [f"{_MARK[said]} {said}: {provenance.source} → {file.scheme} .tflite", ""]
    lines += ["  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    lines += ["", *(f"  {name.ljust(12)} {value}" for name, value in _facts(file, evidence, provenance))]
    for finding in evidence.findings:
        lines += ["", f"  {_MARK[finding.level]} {finding.level}: {finding.message}."]
        lines += [f"    {finding.cure}"] if finding.cure else []
    if (following := next_line(file, evidence, provenance)) is not None:
        lines += ["", f"  next: {following}"]
    return "\n".join(line.rstrip() for line in lines)


def html(file: LiteFile, evidence: Evidence, provenance: Provenance) -> str:
    """Return the card as HTML; every name that came from a model or a person is escaped."""
    said = evidence.verdict
    following = next_line(file, evidence, provenance)
    parts = [
        f'<div style="border:{_LINE};border-left:5px solid {_EDGE[said]};border-radius:4px;padding:10px 16px;'
        f'max-width:820px;font-size:13px;line-height:1.45" role="group" aria-label="conversion result: {said}">',
        f'<div><strong style="font-size:15px">{_MARK[said]} {said}</strong>'
        f"&ensp;{escape(provenance.source)} → <strong>{escape(file.scheme)} .tflite</strong></div>",
        _table(file, evidence, provenance),
        _figure(file, evidence, provenance),
        "".join(_finding(finding) for finding in evidence.findings),
        _fact_list(file, evidence, provenance),
        f'<div style="margin-top:8px">next: <code>{escape(following)}</code></div>' if following else "",
        _details(file, provenance),
        "</div>",
    ]
    return "".join(parts)


def next_line(file: LiteFile, evidence: Evidence, provenance: Provenance) -> str | None:
    """Return the line a person would most naturally type next; when something is wrong its cure stands already."""
    name = provenance.source.partition(":")[0]
    if evidence.verdict == "not ok":
        return None
    if file.scheme == "float32":
        return f"%tflite_convert {name} --int8"
    if provenance.options.get("output") is not None:
        return None
    io = provenance.options.get("io")
    asked = f" --io {io}" if file.scheme == "int8" and io != "int8" else ""
    return f"%tflite_convert {name} --{file.scheme}{asked} -o {name.replace('.', '_')}.tflite"


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
    facts = [("parity", _parity(evidence))]
    if provenance.calibration:
        facts.append(("calibrated", f"on {provenance.calibration}"))
    if provenance.test:
        facts.append(("tested", f"on {provenance.test}"))
    if evidence.latency:
        facts.append(("timed", _timed(evidence.latency)))
    stored = provenance.options.get("output") is None
    where = words.path(file.path) + ("  (in the store; keep a copy with .save(PATH) or -o PATH)" if stored else "")
    return [*facts, ("route", " → ".join(provenance.route)), ("file", where)]


def _timed(latency: Latency) -> str:
    samples = "one sample" if latency.batch == 1 else f"{latency.batch} samples"
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    return f"{samples} at a time, {threads} in LiteRT, TensorFlow's own choice in the kernel"


def _parity(evidence: Evidence) -> str:
    if evidence.snr_db is None or evidence.max_abs_error is None or evidence.mean_abs_error is None:
        return "not measured"
    agreement = f", same top class {words.share(evidence.agreement)}" if evidence.agreement is not None else ""
    return (
        f"SNR {words.decibels(evidence.snr_db)}{agreement}, mean |Δ| {evidence.mean_abs_error:.2g}, "
        f"max |Δ| {evidence.max_abs_error:.2g}, on {evidence.n} samples"
    )


def _table(file: LiteFile, evidence: Evidence, provenance: Provenance) -> str:
    head = "".join(
        f'<th scope="col" style="{_CELL};font-weight:600">{escape(title)}</th>'
        for title in ("", "SavedModel", f"{file.scheme} .tflite", "change")
    )
    body = "".join(
        f'<tr style="background:transparent"><th scope="row" style="{_CELL};font-weight:400">{escape(row.what)}</th>'
        + "".join(f'<td style="{_CELL}">{escape(cell)}</td>' for cell in (row.before, row.after, row.change))
        + "</tr>"
        for row in _rows(file, evidence, provenance)
    )
    return (
        f'<table style="border-collapse:collapse;margin:8px 0;font-size:13px;border:0"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _figure(file: LiteFile, evidence: Evidence, provenance: Provenance) -> str:
    from tfdeploy_magic.views import figures

    drawn = figures.size_and_score(file, evidence, provenance)
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=144)
    picture = base64.b64encode(buffer.getvalue()).decode()
    alternative = "; ".join(
        f"{row.what}: {row.before} before, {row.after} after" for row in _rows(file, evidence, provenance)[:2]
    )
    return (
        f'<img alt="{escape(alternative)}" src="data:image/png;base64,{picture}" '
        'style="width:100%;max-width:720px;border-radius:3px;margin:2px 0 6px 0">'
    )


def _finding(finding: Finding) -> str:
    return (
        f'<div style="border-left:3px solid {_LEVEL_EDGE[finding.level]};padding:1px 0 1px 10px;margin:6px 0">'
        f"<strong>{_MARK[finding.level]} {finding.level}</strong>: {escape(finding.message)}. "
        f"{escape(finding.cure)}</div>"
    )


def _fact_list(file: LiteFile, evidence: Evidence, provenance: Provenance) -> str:
    rows = "".join(
        f'<div style="display:flex;gap:10px"><span style="min-width:80px;opacity:.75">{name}</span>'
        f'<span style="overflow-wrap:anywhere">{escape(value)}</span></div>'
        for name, value in _facts(file, evidence, provenance)
    )
    return f'<div style="margin:6px 0">{rows}</div>'


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
    log = provenance.log.strip() or "(it printed nothing)"
    pre = "white-space:pre-wrap;overflow-wrap:anywhere;font-size:12px;margin:4px 0 8px 0;background:transparent"
    return "".join(
        f'<details style="margin-top:6px"><summary style="cursor:pointer">{title}</summary>'
        f'<pre style="{pre}">{escape(body)}</pre></details>'
        for title, body in (("inputs, outputs, operators, times", "\n".join(lines)), ("conversion output", log))
    )
