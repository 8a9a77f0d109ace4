"""The card of a served model: where it is, how it is now, how its answers compare, and what to send it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.signature import DEFAULT_SIGNATURE, UNKNOWN_RANK, Signature, TensorSpec
from tfdeploy_magic.serving.calls import VersionStatus
from tfdeploy_magic.serving.client import Metrics
from tfdeploy_magic.serving.lineup import STABLE
from tfdeploy_magic.serving.sequential import ArmSeen, judge
from tfdeploy_magic.serving.served import Served
from tfdeploy_magic.views import container, split, words
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views.html import escape

if TYPE_CHECKING:
    from tfdeploy_magic.serving.containers import ContainerSeen

LONG = 400
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
        asked: The version that is asked here; None for the one that answers those who name none.
        labels: Label -> version, as far as this process knows them.
        arms: Who answers requests that name no version, and what was counted of each; nobody where they are not split.
        container: The container that it runs in; None where it runs in none.
    """

    name: str
    url: str
    grpc: str | None
    states: Sequence[VersionStatus] = ()
    metrics: Metrics | None = None
    signatures: Mapping[str, Signature] = field(default_factory=dict)
    asked: int | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    arms: tuple[ArmSeen, ...] = ()
    container: ContainerSeen | None = None

    @property
    def version(self) -> int | None:
        """The version that answers; None where none does."""
        there = (state.version for state in self.states if state.state == "AVAILABLE")
        return next((number for number in there if self.asked in (None, number)), None)

    @property
    def split(self) -> bool:
        """Whether requests to this address are split."""
        return len(self.arms) > 1 and self.asked is None


def mimebundle(seen: Seen, served: Served | None) -> dict[str, str]:
    """Return the card as ``text/html`` and ``text/plain``.

    Args:
        seen: The endpoint now.
        served: What is known of the version that this process served last; left out where another answers by now.
    """
    if served is not None and seen.version != served.version:
        served = None
    return {"text/html": html(seen, served), "text/plain": text(seen, served)}


def html(seen: Seen, served: Served | None) -> str:
    """Return the card as HTML; every name that came from a model or a server is escaped."""
    what = f"{escape(served.source)} → " if served else ""
    more = pieces.facts(_more(seen, served))
    return pieces.card(
        _edge(seen, served),
        f"endpoint {seen.name}: {_said(seen)}",
        (
            pieces.heading(_said(seen), f"{what}<strong>{escape(seen.url)}</strong>"),
            pieces.table(*_parity(served)) if served and served.parity else "",
            *_split(seen),
            *map(pieces.finding, _findings(seen, served)),
            pieces.facts(_facts(seen, served)),
            pieces.following(_next(seen)),
            pieces.folded("curl", pieces.preformatted(curl(seen, served))) if seen.signatures else "",
            pieces.folded("Python", pieces.preformatted(python(seen, served))) if seen.signatures else "",
            pieces.folded("versions and more", pieces.table(*_versions(seen)) + more) if seen.states else "",
            container.log(seen.container) if seen.container is not None else "",
        ),
    )


def text(seen: Seen, served: Served | None) -> str:
    """Return the card as plain text."""
    lines = [f"{_said(seen)}: {f'{served.source} → ' if served else ''}{seen.url}"]
    if served and served.parity:
        lines += ["", *pieces.plain_table(_parity(served))]
    if seen.split:
        judged = judge(seen.arms)
        lines += ["", *pieces.plain_table(split.rows(seen.arms, judged)), f"  {split.sentence(judged)}"]
    lines += [*pieces.plain_findings(_findings(seen, served)), ""]
    lines += pieces.plain_facts([*_facts(seen, served), *_more(seen, served)])
    if len(seen.states) > 1:
        lines += ["", *pieces.plain_table(_versions(seen))]
    lines += container.plain_log(seen.container) if seen.container is not None else ()
    if seen.signatures:
        lines += ["", *(f"  {line}" for line in curl(seen, served).splitlines())]
    lines += ["", f"  next: {_next(seen)}"]
    return pieces.plain_text(lines)


def curl(seen: Seen, served: Served | None) -> str:
    """Return a line for a shell that asks the model, or for what it takes where no request is at hand."""
    request = _request(seen, served)
    if request is None:
        return f"curl {shlex.quote(seen.url + '/metadata')}"
    data = shlex.quote(request)
    if served is not None and served.request_file is not None:
        data = f"@{_in_a_shell(Path(served.request_file))}"
    return f"curl -d {data} {shlex.quote(seen.url + ':predict')}"


def python(seen: Seen, served: Served | None) -> str:
    """Return Python that asks the model: with this package, and with nothing but Python's own."""
    grpc = f", grpc={seen.grpc!r}" if seen.grpc else ""
    ours = ("import tfdeploy_magic", f"endpoint = tfdeploy_magic.Endpoint({seen.url!r}{grpc})")
    request = _request(seen, served)
    if request is None:
        key = _key(seen)
        named = "" if key == DEFAULT_SIGNATURE else f", signature={key!r}"
        return "\n".join((*ours, f"endpoint.predict(x{named})  # {_inputs(seen.signatures[key])}"))
    content = json.loads(request)
    made = repr(content)
    if served is not None and served.request_file is not None:
        made = f"json.load(open({_in_python(Path(served.request_file))}))"
    key = content.get("signature_name", DEFAULT_SIGNATURE)
    named = "" if key == DEFAULT_SIGNATURE else f", signature={key!r}"
    rows = next(key for key in ("instances", "inputs") if key in content)
    asking = f"print(endpoint.predict(request[{rows!r}]{named}))  # numpy arrays do as well; TensorFlow is not needed"
    with_ours = ("", *ours, asking, "", "# or with nothing installed")
    return "\n".join(
        (
            "import json, os, urllib.request" if "os." in made else "import json, urllib.request",
            f"request = {made}",
            *(("",) if '{"b64"' in request else with_ours),  # bytes that are no text cross JSON in a form of its own
            f"answer = urllib.request.urlopen({seen.url + ':predict'!r}, json.dumps(request).encode())",
            "print(json.load(answer))",
        )
    )


def request_of(key: str, signature: Signature, inputs: Mapping[str, Any]) -> str:
    """Return the JSON of a request.

    Args:
        key: Of the signature.
        signature: What it takes.
        inputs: Its inputs as plain lists.
    """
    named = {} if key == DEFAULT_SIGNATURE else {"signature_name": key}
    by_row = len(inputs) == 1 and signature.inputs[0].shape != ()
    return json.dumps({**named, "instances": next(iter(inputs.values()))} if by_row else {**named, "inputs": inputs})


def _request(seen: Seen, served: Served | None) -> str | None:
    """Return a request that the model answers: a sample of the person's, or zeros; None where those would be long."""
    if served is not None and served.request is not None:
        return served.request
    key = _key(seen)
    signature = seen.signatures[key]
    zeros = {spec.name: _zeros(spec) for spec in signature.inputs}
    if not zeros or any(each is None for each in zeros.values()):
        return None
    return request_of(key, signature, zeros)


def _key(seen: Seen) -> str:
    return DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in seen.signatures else next(iter(seen.signatures))


def _zeros(spec: TensorSpec) -> Any:
    """Return one row of zeros, or of empty text; None where it would be long, or its rank is not known."""
    sizes = [size or 1 for size in spec.shape]
    if spec.shape == UNKNOWN_RANK or math.prod(sizes) > LONG / 8:
        return None
    value: Any = "" if spec.is_text else False if spec.dtype == "bool" else 0.0 if "float" in spec.dtype else 0
    for size in reversed(sizes):
        value = [value] * size
    return value


def _in_a_shell(path: Path) -> str:
    """Return a path as a shell takes it, the person's home folder not by its name."""
    inside = words.path(path)
    return f'"$HOME"/{shlex.quote(inside[2:])}' if inside.startswith("~/") else shlex.quote(inside)


def _in_python(path: Path) -> str:
    inside = words.path(path)
    return f"os.path.expanduser({inside!r})" if inside.startswith("~/") else repr(inside)


def _split(seen: Seen) -> Iterator[str]:
    """Yield the arms of a split, and what their counts show: in a table, a sentence and a figure."""
    if not seen.split:
        return
    judged = judge(seen.arms)
    yield pieces.table(*split.rows(seen.arms, judged))
    yield pieces.sentence(split.sentence(judged))
    if any(arm.outcomes.total or arm.errors.failures for arm in seen.arms):
        from tfdeploy_magic.views import split_figures  # most cards have no figure, and matplotlib takes its time

        drawn = pieces.picture(split_figures.figure(seen.arms, judged), split.alternative(seen.arms, judged))
        yield pieces.folded("how sure that is", drawn + pieces.sentence(f"Evidence is {split.METHOD}."))


def _said(seen: Seen) -> str:
    if not seen.states:
        return "✗ not answering"
    if seen.split:
        return f"✓ requests are split: {' / '.join(f'{arm.name} {100 * arm.share:.4g}%' for arm in seen.arms)}"
    if len(seen.arms) == 1 and seen.asked is None:
        return f"✓ {seen.arms[0].name} answers for {seen.name}"
    return f"✓ serving version {seen.version}" if seen.version is not None else f"– {seen.states[0].state.lower()}"


def _edge(seen: Seen, served: Served | None) -> str:
    if seen.version is None:
        return pieces.BAD if not seen.states else pieces.DOUBTFUL
    levels = {finding.level for finding in _findings(seen, served)}
    return pieces.BAD if "error" in levels else pieces.DOUBTFUL if "warning" in levels else pieces.GOOD


def _parity(served: Served) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("served answers against", "samples", "SNR", "same top class", "max |Δ|")]
    for other, evidence in served.parity.items():
        if evidence.snr_db is None or evidence.max_abs_error is None:
            rows.append((other, "not measured", "", "", ""))
            continue
        agreement = words.share(evidence.agreement) if evidence.agreement is not None else "–"
        rows.append(
            (other, str(evidence.n), words.decibels(evidence.snr_db), agreement, f"{evidence.max_abs_error:.2g}")
        )
    return rows


def _findings(seen: Seen, served: Served | None) -> tuple[Finding, ...]:
    found = [
        Finding(
            "error",
            "version-failed",
            f"version {state.version} cannot be served: {state.problem}",
            "Export it again; the others are still served.",
        )
        for state in seen.states
        if state.problem is not None
    ]
    found += _unlabelled(seen)
    for findings in (served.findings, *(evidence.findings for evidence in served.parity.values())) if served else ():
        found += findings
    return tuple(dict.fromkeys(found))


def _unlabelled(seen: Seen) -> Iterator[Finding]:
    """Yield that another version than the stable one answers those who name none."""
    highest = next((state.version for state in seen.states if state.state == "AVAILABLE"), None)
    stable = seen.labels.get(STABLE)
    if stable is not None and highest not in (None, stable) and not seen.arms:
        model_url = seen.url.partition("/labels/")[0].partition("/versions/")[0]
        yield Finding(
            "warning",
            "unlabelled",
            f"who names no label is answered by version {highest}, the highest, as TensorFlow Serving has it",
            f"Ask {model_url}/labels/{STABLE} for version {stable}"
            + ("." if seen.container is not None else f", or split: %serve --route {seen.name} 90/10."),
        )


def _facts(seen: Seen, served: Served | None) -> Iterator[tuple[str, str]]:
    for key, signature in seen.signatures.items():
        yield "signature", f"{key}: {_inputs(signature)} → {', '.join(map(str, signature.outputs))}"
    if served is not None and served.lite and (scales := _scales(served.lite.values())):
        yield "scales", f"{scales}; endpoint.predict takes and gives real numbers, other clients do this themselves"
    if served is not None and served.tested:
        yield "compared", f"on {served.tested}, asked through the server"
    if seen.labels:
        yield "labels", ", ".join(f"{label}: version {number}" for label, number in sorted(seen.labels.items()))
    if seen.grpc:
        yield "gRPC", seen.grpc
    if seen.metrics is not None:
        yield "requests", _counted(seen.metrics)
    if served is not None:
        took_over = f"; took over from version {served.replaced}" if served.replaced is not None else ""
        yield "server", f"{served.ends}{took_over}"
    if seen.container is not None:
        yield from container.facts(seen.container)


def _more(seen: Seen, served: Served | None) -> Iterator[tuple[str, str]]:
    if served is not None:
        where = words.path(Path(served.base_path))
        yield "versions in", f"{where}/{served.version}, {words.size(served.size)}"
    if seen.metrics is not None:
        yield "metrics", f"{seen.url.partition('/v1/')[0]}/monitoring/prometheus/metrics"
    if served is not None and served.seconds:
        longest = sorted(served.seconds.items(), key=lambda stage: -stage[1])[:3]
        parts = ", ".join(f"{stage} {words.seconds(seconds)}" for stage, seconds in longest)
        yield "took", f"{words.seconds(sum(served.seconds.values()))}: mostly {parts}"


def _inputs(signature: Signature) -> str:
    return ", ".join(map(str, signature.inputs))


def _scales(signatures: Iterable[Signature]) -> str:
    """Say what the integers stand for, "x = 0.0039 × (stored + 128)"."""
    specs = (spec for signature in signatures for spec in (*signature.inputs, *signature.outputs) if spec.quantized)
    return ", ".join(dict.fromkeys(f"{spec.name} = {spec.scale:.6g} × {_shifted(spec.zero_point)}" for spec in specs))


def _shifted(zero_point: int) -> str:
    return f"(stored {'+' if zero_point < 0 else '−'} {abs(zero_point)})" if zero_point else "stored"


def _counted(metrics: Metrics) -> str:
    if not metrics.requests:
        return "none yet"
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(metrics.requests.items()))
    if metrics.p50_ms is None or metrics.p95_ms is None or metrics.p99_ms is None:
        return counts
    p50, p95, p99 = map(words.milliseconds, (metrics.p50_ms, metrics.p95_ms, metrics.p99_ms))
    return f"{counts}; in the server p50 {p50}, p95 {p95}, p99 {p99}"


def _versions(seen: Seen) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("version", "state", "label", "")]
    for state in seen.states:
        labels = ", ".join(label for label, number in sorted(seen.labels.items()) if number == state.version)
        rows.append((str(state.version), state.state, labels, str(state.problem) if state.problem is not None else ""))
    return rows


def _next(seen: Seen) -> str:
    if seen.version is None:
        return "%serve --list"
    if seen.split:
        better = judge(seen.arms).better
        return f"%serve --promote {seen.name} {shlex.quote(better)}" if better is not None else f"%monitor {seen.url}"
    key = _key(seen) if seen.signatures else DEFAULT_SIGNATURE
    return f"%loadtest {seen.url}" + ("" if key == DEFAULT_SIGNATURE else f" --signature {shlex.quote(key)}")
