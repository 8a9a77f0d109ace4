"""The card of a served model: where it is, how it is now, how its answers compare, and what to send it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.signature import Signature
from tfdeploy_magic.serving.calls import VersionStatus
from tfdeploy_magic.serving.client import Metrics
from tfdeploy_magic.serving.served import Served
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import words
from tfdeploy_magic.views.html import escape

_SHORT = 400
"""Characters of a request that a line of curl still shows."""


@dataclass(frozen=True)
class Seen:
    """An endpoint as it is at this moment.

    Args:
        name: What the model is called there.
        url: Its REST address.
        grpc: The address of gRPC; None where there is none.
        states: Its versions, newest first; none where the server did not answer.
        metrics: What it has counted; None where it did not say.
        signatures: What the model takes and gives.
    """

    name: str
    url: str
    grpc: str | None
    states: Sequence[VersionStatus]
    metrics: Metrics | None
    signatures: Mapping[str, Signature]

    @property
    def serving(self) -> VersionStatus | None:
        """The version that answers; None where none does."""
        return next((state for state in self.states if state.state == "AVAILABLE"), None)


def mimebundle(seen: Seen, served: Served | None) -> dict[str, str]:
    """Return the card as ``text/html`` and ``text/plain``."""
    return {"text/html": html(seen, served), "text/plain": text(seen, served)}


def html(seen: Seen, served: Served | None) -> str:
    """Return the card as HTML; every name that came from a model or a server is escaped."""
    what = f"{escape(served.source)} → " if served else ""
    return pieces.card(
        _edge(seen, served),
        f"endpoint {seen.name}: {_said(seen)}",
        (
            pieces.heading(_said(seen), f"{what}<strong>{escape(seen.url)}</strong>"),
            pieces.table(*_parity(served)) if served and served.parity else "",
            *map(pieces.finding, _findings(seen, served)),
            pieces.facts(_facts(seen, served)),
            pieces.following(_next(seen)),
            pieces.folded("versions", pieces.table(*_versions(seen.states))) if seen.states else "",
            pieces.folded("curl", pieces.preformatted(curl(seen, served))) if seen.signatures else "",
            pieces.folded("Python", pieces.preformatted(python(seen, served))) if seen.signatures else "",
        ),
    )


def text(seen: Seen, served: Served | None) -> str:
    """Return the card as plain text."""
    lines = [f"{_said(seen)}: {f'{served.source} → ' if served else ''}{seen.url}"]
    if served and served.parity:
        lines += ["", *pieces.plain_table(_parity(served))]
    lines += ["", *pieces.plain_facts(_facts(seen, served)), *pieces.plain_findings(_findings(seen, served))]
    if seen.states:
        lines += ["", *pieces.plain_table(_versions(seen.states))]
    if seen.signatures:
        lines += ["", *(f"  {line}" for line in curl(seen, served).splitlines())]
    if (following := _next(seen)) is not None:
        lines += ["", f"  next: {following}"]
    return pieces.plain_text(lines)


def curl(seen: Seen, served: Served | None) -> str:
    """Return a line for a shell that asks the model."""
    data = shlex.quote(_request(seen, served))
    if served is not None and served.request_file is not None:
        data = f"@{shlex.quote(served.request_file)}"
    return f"curl -d {data} {shlex.quote(seen.url + ':predict')}"


def python(seen: Seen, served: Served | None) -> str:
    """Return Python that asks the model: with this package, and with nothing but Python's own."""
    body = f"{_request(seen, served)!r}.encode()"
    if served is not None and served.request_file is not None:
        body = f"open({served.request_file!r}, 'rb').read()"
    grpc = f", grpc={seen.grpc!r}" if seen.grpc else ""
    return "\n".join(
        (
            "import tfdeploy_magic",
            f"endpoint = tfdeploy_magic.Endpoint({seen.url!r}{grpc})",
            "endpoint.predict(x)  # numpy in and out, without TensorFlow",
            "",
            "# or with nothing installed",
            "import json, urllib.request",
            f"body = {body}",
            f"json.load(urllib.request.urlopen({seen.url + ':predict'!r}, body))",
        )
    )


def _request(seen: Seen, served: Served | None) -> str:
    if served is not None and served.request is not None:
        return served.request
    key = "serving_default" if "serving_default" in seen.signatures else next(iter(seen.signatures), "")
    shapes = ", ".join(str(spec) for spec in seen.signatures[key].inputs) if key else "..."
    return f'{{"instances": [ {shapes} ]}}'


def _said(seen: Seen) -> str:
    if not seen.states:
        return "✗ not answering"
    serving = seen.serving
    return f"✓ serving version {serving.version}" if serving else f"– {seen.states[0].state.lower()}"


def _edge(seen: Seen, served: Served | None) -> str:
    if seen.serving is None:
        return pieces.BAD if not seen.states else pieces.DOUBTFUL
    wrong = any(evidence.verdict == "not ok" for evidence in (served.parity.values() if served else ()))
    return pieces.BAD if wrong else pieces.GOOD


def _parity(served: Served | None) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("served answers against", "samples", "SNR", "same top class", "max |Δ|")]
    for other, evidence in served.parity.items() if served else ():
        if evidence.snr_db is None or evidence.max_abs_error is None:
            rows.append((other, "not measured", "", "", ""))
            continue
        agreement = words.share(evidence.agreement) if evidence.agreement is not None else "–"
        rows.append(
            (other, str(evidence.n), words.decibels(evidence.snr_db), agreement, f"{evidence.max_abs_error:.2g}")
        )
    return rows


def _findings(seen: Seen, served: Served | None) -> Iterator[Finding]:
    for state in seen.states:
        if state.problem is not None:
            message = f"version {state.version} cannot be served: {state.problem}"
            yield Finding("error", "version-failed", message, "Export it again; the others are still served.")
    if served is None:
        return
    found = dict.fromkeys(served.findings)
    for evidence in served.parity.values():
        found |= dict.fromkeys(evidence.findings)
    yield from found


def _facts(seen: Seen, served: Served | None) -> Iterator[tuple[str, str]]:
    for key, signature in seen.signatures.items():
        inputs, outputs = (", ".join(map(str, specs)) for specs in (signature.inputs, signature.outputs))
        yield "signature", f"{key}: {inputs} → {outputs}"
    if seen.grpc:
        yield "gRPC", seen.grpc
    if seen.metrics is not None:
        yield "requests", _counted(seen.metrics)
        yield "metrics", f"{seen.url.partition('/v1/')[0]}/monitoring/prometheus/metrics"
    if served is None:
        return
    if served.tested:
        yield "compared", f"on {served.tested}, asked through the server"
    where = words.path(Path(served.base_path))
    yield "versions in", f"{where}/{served.version}, {words.size(served.size)}"
    took = ", ".join(f"{stage} {words.seconds(seconds)}" for stage, seconds in served.seconds.items())
    yield "took", took
    ends = "this kernel's own process" if served.in_kernel else "a process of its own, which ends with this kernel"
    yield "server", ends if served.replaced is None else f"{ends}; took over from version {served.replaced}"


def _counted(metrics: Metrics) -> str:
    if not metrics.requests:
        return "none yet"
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(metrics.requests.items()))
    if metrics.p50_ms is None or metrics.p95_ms is None or metrics.p99_ms is None:
        return counts
    p50, p95, p99 = map(words.milliseconds, (metrics.p50_ms, metrics.p95_ms, metrics.p99_ms))
    return f"{counts}; in the server p50 {p50}, p95 {p95}, p99 {p99}"


def _versions(states: Sequence[VersionStatus]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("version", "state", "")]
    rows += [
        (str(state.version), state.state, str(state.problem) if state.problem is not None else "") for state in states
    ]
    return rows


def _next(seen: Seen) -> str | None:
    return f"%loadtest {seen.url}" if seen.serving is not None else None
