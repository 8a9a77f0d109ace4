"""What was found in a model, and how it shows itself: a card without JavaScript, and its plain-text twin."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.signature import Signature, TensorSpec
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import words

Kind = Literal["keras", "tensorflow", "saved_model", "graph", "lite"]

PASSING_ON = frozenset(
    (
        *("Const", "Identity", "IdentityN", "NoOp", "Placeholder", "ReadVariableOp", "VarHandleOp"),
        *("PartitionedCall", "StatefulPartitionedCall"),
    )
)
"""Operations of TensorFlow that only hand values on; they come after those that compute."""

LINES = 30
"""Rows of one table that are shown; the rest is counted. A hostile file can name a million of anything."""

LONGEST = 100
"""Characters of one name that are shown."""


@dataclass(frozen=True)
class Layer:
    """One layer of a Keras model.

    Args:
        name: Its name.
        kind: Its class, "Conv2D".
        output: The shape of its output, "[?, 8, 8, 16]"; empty where that is not known before it is called.
        parameters: How many numbers it has learned or keeps.
    """

    name: str
    kind: str
    output: str
    parameters: int


@dataclass(frozen=True)
class Inspection:
    """What a model holds; nothing of it was run.

    Args:
        name: How the person calls it.
        kind: "keras", "tensorflow" (a module or function), "saved_model", "graph" (a frozen one) or "lite".
        description: "Sequential, 36,042 parameters".
        signatures: By name; the one that was looked at first.
        operators: How many of each operation. Of a TensorFlow graph, what that signature reaches (or all of them, when
            none was asked for and none is the default), each function counted once.
        weights: Bytes by dtype: of the variables, or where there are none of the constants.
        variables: How many.
        parameters: How many numbers they hold; None for a .tflite file, whose constants are not all weights.
        trainable: How many of those a Keras model would train; None where that is not recorded.
        precision: The policy a Keras model computes in.
        layers: Of a Keras model.
        path: Its file or directory; None for a model in the kernel.
        size: Bytes on disk.
        files: What lies in it, by name, in bytes: a directory's files, an archive's members, files appended to a
            .tflite file.
        tags: Of a SavedModel's graph.
        written_by: What wrote it, as it says itself.
        file: More about a .tflite file.
        loads: Whether LiteRT loads it; None for other kinds.
        findings: What was noticed.
    """

    name: str
    kind: Kind
    description: str
    signatures: Mapping[str, Signature]
    operators: Mapping[str, int]
    weights: Mapping[str, int]
    variables: int = 0
    parameters: int | None = None
    trainable: int | None = None
    precision: str = "float32"
    layers: tuple[Layer, ...] = ()
    path: Path | None = None
    size: int | None = None
    files: Mapping[str, int] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    written_by: str = ""
    file: LiteFile | None = None
    loads: bool | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the signature that was looked at; none where there is no signature."""
        return next((signature.inputs for signature in self.signatures.values()), ())

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs of the signature that was looked at."""
        return next((signature.outputs for signature in self.signatures.values()), ())

    @property
    def quantized_outputs(self) -> tuple[int, int] | None:
        """How many of a .tflite file's operators' outputs are quantized, and of how many that could be."""
        if self.file is None or not (total := sum(self.file.activations.values())):
            return None
        return sum(n for dtype, n in self.file.activations.items() if "int" in dtype), total

    def __repr__(self) -> str:
        return f"<Inspection {self.name}: {self.description}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": html(self), "text/plain": text(self)}


def text(found: Inspection) -> str:
    """Return the card as plain text."""
    lines = [f"{_title(found)}: {found.description}"]
    if found.inputs or found.outputs:
        lines += ["", *pieces.plain_table(doors(found.signatures))]
    lines += ["", *pieces.plain_facts(_facts(found))]
    if found.layers:
        lines += ["", *pieces.plain_table(_layers(found))]
    lines += pieces.plain_findings(found.findings)
    if (following := next_line(found)) is not None:
        lines += ["", f"  next: {following}"]
    return pieces.plain_text(lines)


def html(found: Inspection) -> str:
    """Return the card as HTML; every name that came from a model is escaped."""
    worst = next((level for level in pieces.EDGE if any(each.level == level for each in found.findings)), "note")
    return pieces.card(
        pieces.EDGE[worst],
        f"what is in {_title(found)}",
        (
            pieces.heading(_title(found), pieces.escape(found.description)),
            pieces.table(*doors(found.signatures)) if found.inputs or found.outputs else "",
            _figure(found),
            *map(pieces.finding, found.findings),
            pieces.facts(_facts(found)),
            pieces.following(next_line(found)),
            pieces.folded(f"{len(found.layers)} layers", pieces.table(*_layers(found))) if found.layers else "",
            pieces.folded("all operators and files", pieces.preformatted("\n".join(_details(found)))),
        ),
    )


def next_line(found: Inspection) -> str | None:
    """Return the line a person would most naturally type next; a broken model or a finished file has none."""
    finished = found.kind == "lite" or not found.signatures
    if finished or any(each.level == "error" for each in found.findings):
        return None
    first = next(iter(found.signatures))
    chosen = "" if first == "serving_default" else f" --signature {shlex.quote(first)}"
    return f"%tflite_convert {shlex.quote(_title(found))} --int8{chosen}"


def _title(found: Inspection) -> str:
    return _short(words.path(Path(found.name)) if found.path is not None else found.name)


def doors(signatures: Mapping[str, Signature]) -> list[tuple[str, ...]]:
    """Return the inputs and outputs of all signatures, below the titles of the columns; empty columns are left out."""
    several = len(signatures) > 1
    rows = [("name", "is", "type", "quantized as", "signature")]
    for signature in signatures.values():
        of = _short(signature.name) if several else ""
        for direction, specs in (("input", signature.inputs), ("output", signature.outputs)):
            for spec in specs:
                kind = str(spec)[len(spec.name) + 2 :]
                rows.append((_short(spec.name), direction, kind, _quantization(spec), of))
    used = [column for column in range(len(rows[0])) if any(row[column] for row in rows[1:])]
    return _capped([tuple(row[column] for column in used) for row in rows])


def _quantization(spec: TensorSpec) -> str:
    if not spec.quantized:
        return ""
    sign = "−" if spec.zero_point >= 0 else "+"
    return f"{spec.scale:.6g} × (q {sign} {abs(spec.zero_point)})"


def _layers(found: Inspection) -> list[tuple[str, ...]]:
    rows = [(_short(layer.name), _short(layer.kind), layer.output, f"{layer.parameters:,}") for layer in found.layers]
    return _capped([("layer", "class", "output", "parameters"), *rows])


def _capped(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    left_out = len(rows) - 1 - LINES
    return [*rows[: LINES + 1], (f"… {left_out} more", *[""] * (len(rows[0]) - 1))] if left_out > 0 else rows


def _facts(found: Inspection) -> list[tuple[str, str]]:
    facts = [("signature", _short(name)) for name in found.signatures] if len(found.signatures) == 1 else []
    facts.append(("weights", _weights(found)))
    if found.kind == "keras":
        facts.append(("precision", found.precision))
    if (quantized := found.quantized_outputs) is not None:
        facts.append(("quantized", f"{quantized[0]} of {quantized[1]} operator outputs"))
    facts.append(("operators", _counted(found.operators, 12) or "none"))
    if found.loads is not None:
        facts.append(("LiteRT", "loads it" if found.loads else "does not load it"))
    if found.file is not None:
        facts += _flatbuffer(found.file)
    if found.tags:
        facts.append(("tags", _listed(found.tags, 8)))
    if found.written_by:
        facts.append(("written by", _short(found.written_by)))
    if found.path is not None:
        facts += [("on disk", _on_disk(found)), ("file", words.path(found.path))]
    return facts


def _weights(found: Inspection) -> str:
    parts = []
    if found.variables:
        trained = f" ({found.trainable:,} trainable)" if found.trainable is not None else ""
        parts.append(f"{found.parameters:,} parameters{trained} in {_number(found.variables, 'variable')}")
    if found.weights:
        total = words.size(sum(found.weights.values()))
        one = len(found.weights) == 1
        parts.append(f"{total} of {next(iter(found.weights))}" if one else f"{total}: {_sized(found.weights, 8)}")
    return ", ".join(parts) or "none"


def _on_disk(found: Inspection) -> str:
    size = words.size(found.size or 0)
    if not found.files:
        return size
    inside = "with" if found.kind == "lite" else "in"
    appended = " appended" if found.kind == "lite" else ""
    return f"{size} {inside} {_number(len(found.files), 'file')}{appended}: {_sized(found.files, 4)}"


def _flatbuffer(file: LiteFile) -> list[tuple[str, str]]:
    needs = f"TensorFlow Lite {_short(file.min_runtime_version)} or later" if file.min_runtime_version else "not said"
    holds = f"{_number(file.subgraphs, 'subgraph')}, schema version {file.version}"
    return [("needs", needs), ("holds", holds), ("metadata", _listed(file.metadata, 8) or "none")]


def _figure(found: Inspection) -> str:
    from tfdeploy_magic.views import figures

    computing = {_short(name): count for name, count in found.operators.items() if name not in PASSING_ON}
    held = {_short(layer.name): layer.parameters for layer in found.layers if layer.parameters}
    panels = (
        figures.Bars("operators", computing),
        figures.Bars("parameters", held) if held else figures.Bars("weights", found.weights, words.size),
    )
    drawn = [panel for panel in panels if panel.lengths]
    if not drawn:
        return ""
    said = (
        f"{panel.title}: {_listed((f'{n} {panel.said(c)}' for n, c in panel.lengths.items()), 8)}" for panel in drawn
    )
    return pieces.picture(figures.bars(drawn), "; ".join(said))


def _details(found: Inspection) -> Iterable[str]:
    yield f"operators {_counted(found.operators, 300)}"
    if found.files:
        yield f"files {_sized(found.files, 300)}"
    if found.file is not None:
        yield f"tensors {_counted(found.file.tensor_types, 30)}"
        yield f"sha256 {found.file.sha256}"


def _counted(counts: Mapping[str, int], limit: int) -> str:
    """Return names and counts, commonest first, and what only passes values on last."""
    ordered = sorted(counts.items(), key=lambda item: (item[0] in PASSING_ON, -item[1], item[0]))
    return _listed((f"{_short(name)} ×{count}" for name, count in ordered), limit)


def _sized(files: Mapping[str, int], limit: int) -> str:
    return _listed((f"{_short(name)} {words.size(size)}" for name, size in files.items()), limit)


def _listed(parts: Iterable[str], limit: int) -> str:
    each = [_short(part) for part in parts]
    return ", ".join(each[:limit]) + (f" and {len(each) - limit} more" if len(each) > limit else "")


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
