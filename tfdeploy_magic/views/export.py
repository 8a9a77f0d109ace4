"""The card of a version written for a server: what it takes and gives, what was checked, and how to serve it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tfdeploy_magic.serving.export import ExportedVersion
from tfdeploy_magic.views import card, inspection, words
from tfdeploy_magic.views import html as pieces

IMAGE = "tensorflow/serving:2.20.0"
"""The newest image of TensorFlow Serving."""

_EDGE = {"ok": pieces.GOOD, "not ok": pieces.BAD, "not measured": pieces.NEUTRAL, "copied": pieces.GOOD}
_MARK = {"ok": "✓", "not ok": "✗", "not measured": "–", "copied": "✓"}


def mimebundle(version: ExportedVersion, source: str) -> dict[str, str]:
    """Return the card as ``text/html`` and ``text/plain``.

    Args:
        version: What was written.
        source: What the person calls the model.
    """
    return {"text/html": html(version, source), "text/plain": text(version, source)}


def text(version: ExportedVersion, source: str) -> str:
    """Return the card as plain text."""
    said = _said(version)
    lines = [f"{_MARK[said]} {said}: {source} → {name_of(version)}, version {version.version}"]
    if version.signatures:
        lines += ["", *pieces.plain_table(inspection.doors(version.signatures))]
    lines += ["", *pieces.plain_facts(_facts(version)), *pieces.plain_findings(version.findings), ""]
    lines += [f"  next: {line}" for line in next_lines(version)]
    return pieces.plain_text(lines)


def html(version: ExportedVersion, source: str) -> str:
    """Return the card as HTML; every name that came from a model or a person is escaped."""
    said = _said(version)
    named = pieces.escape(f"{name_of(version)}, version {version.version}")
    return pieces.card(
        _EDGE[said],
        f"exported version: {said}",
        (
            pieces.heading(f"{_MARK[said]} {said}", f"{pieces.escape(source)} → <strong>{named}</strong>"),
            pieces.table(*inspection.doors(version.signatures)) if version.signatures else "",
            *map(pieces.finding, version.findings),
            pieces.facts(_facts(version)),
            *map(pieces.following, next_lines(version)),
        ),
    )


def next_lines(version: ExportedVersion) -> tuple[str, ...]:
    """Return the shell lines that serve it: with this package, and with TensorFlow Serving's own image."""
    name, folder = shlex.quote(name_of(version)), _in_a_shell(version.base_path)
    prefer = " --prefer_tflite_model=true" if version.lite else ""
    mounted = f"{folder}:{shlex.quote(f'/models/{name_of(version)}')}:ro"
    return (
        f"tfdeploy-serve --model_name={name} --model_base_path={folder}{prefer}",
        f"docker run --rm -p 127.0.0.1:8501:8501 -v {mounted} -e MODEL_NAME={name} {IMAGE}{prefer}",
    )


def name_of(version: ExportedVersion) -> str:
    """Return what a server calls the model: the name of the folder of its versions."""
    return version.base_path.name or "model"


def _said(version: ExportedVersion) -> str:
    copied = any(finding.code == "copied" for finding in version.findings)
    verdict = version.evidence.verdict
    return "copied" if copied and verdict == "not measured" else verdict


def _facts(version: ExportedVersion) -> list[tuple[str, str]]:
    signatures = [("signature", name) for name in version.signatures] if len(version.signatures) == 1 else []
    copied = _said(version) == "copied"
    measured = [] if copied else [("parity", card.parity(version.evidence))]
    tested = [("tested", f"on {version.tested}")] if version.tested else []
    return [*signatures, ("size", words.size(version.size)), *measured, *tested, ("folder", words.path(version.path))]


def _in_a_shell(path: Path) -> str:
    """Return a path as a shell takes it, the person's home folder not by its name."""
    try:
        inside = str(path.relative_to(Path.home()))
    except ValueError:
        return shlex.quote(str(path))
    return '"$HOME/' + re.sub(r'([\\"$`])', r"\\\1", inside) + '"'
