"""``%inspect``: what a model holds, read without running it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field

from tfdeploy_magic import jobs, sources
from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.signature import Signature
from tfdeploy_magic.commands.declaration import FromKernel, Named, OnTheLine, Options, command
from tfdeploy_magic.commands.lite_model import LiteModel
from tfdeploy_magic.convert import contents
from tfdeploy_magic.errors import JobError, JobFailed
from tfdeploy_magic.jobs import Report, Worker
from tfdeploy_magic.jobs.progress import Listener
from tfdeploy_magic.sources import How, Source, StoredModel, TracedModel, files
from tfdeploy_magic.views.inspection import Inspection, Layer


class Inspect(Options):
    """Show what a model holds: signatures, operators, sizes, weights, quantization, metadata.

    It takes a model in the kernel, a converted model, or the path of a model file. A file is opened in a job, so that
    a broken one costs two lines.
    """

    thing: Annotated[Any, FromKernel("model"), OnTheLine(positional=True)] = Field(
        description="a model, a converted model, or the path of a model file"
    )
    signature: str | None = Field(None, description="which signature of the model to look at")
    input_spec: str | None = Field(
        None, description="shapes of inputs that are not clear: 1x224x224x3:float32, or NAME=?x7:int32,..."
    )
    trust: bool = Field(False, description="run the code that a model file carries, in a job")
    timeout: float = Field(300.0, gt=0, description="seconds that reading a file may take")

    def source(self) -> Source:
        """Return the model, not traced yet and its file not opened."""
        how = How(self.signature, self.input_spec, trust=self.trust)
        return sources.open_source(self.named.value, self.named.name, how, Worker(deadline=self.timeout))

    @property
    def named(self) -> Named:
        """The thing, and the name it was asked for by."""
        return self.thing if isinstance(self.thing, Named) else Named(_name_of(self.thing), self.thing)


@command("inspect", Inspect)
def inspect(options: Inspect, progress: Listener) -> Inspection:
    """Look at a model, without running it.

    Returns:
        What it holds.

    Raises:
        InputError: It is no model, a broken one, or one that carries code and is not trusted.
        UserCodeError: A model in the kernel raised while being traced.
        JobError: Reading the file crashed or hung; this process is unharmed.
    """
    report = Report(progress)
    with contextlib.closing(options.source()) as source:
        source.worker.listener = report.relay
        if not isinstance(source.value, Path):
            found = _in_kernel(source, report)
        else:
            jobs.warm_up()
            path = source.value.absolute()
            kind = files.kind_of(path)
            look = {"lite": _lite, "saved_model": _saved_model, "saved_model_file": _saved_model}.get(kind, _opened)
            found = look(source, path.parent if kind == "saved_model_file" else path)
        report.finish()
    held = options.named.value
    return _compared(found, held) if isinstance(held, LiteModel) else found


def _name_of(thing: Any) -> str:
    return str(thing) if isinstance(thing, str | Path) else "model"


# A model in the kernel, and a file that a job has opened as one


def _in_kernel(source: Source, report: Report) -> Inspection:
    report.stage("tracing")
    model = source.model
    assert isinstance(model, TracedModel)
    signatures = {model.signature.name: model.signature}
    for name in _names_of_signatures(source.value):
        if name not in signatures:
            other = sources.open_source(source.value, source.name, replace(source.how, signature=name, input_spec=None))
            signatures[name] = other.model.signature
    read = contents.of_traced(model)
    kind = "keras" if read["layers"] else "tensorflow"
    return _as_opened(source.name, kind, model, signatures, read)


def _names_of_signatures(value: Any) -> list[str]:
    """Return the signatures of a SavedModel that the kernel has loaded."""
    declared = getattr(value, "signatures", None)
    return sorted(declared) if isinstance(declared, Mapping) else []


def _opened(source: Source, path: Path) -> Inspection:
    model = source.model
    assert isinstance(model, StoredModel)
    read = _ask(source, "contents_task", path=str(path))
    return _as_opened(source.name, model.kind, model, {model.signature.name: model.signature}, {"path": path, **read})


def _as_opened(
    name: str, kind: Any, model: TracedModel | StoredModel, signatures: dict[str, Signature], read: dict[str, Any]
) -> Inspection:
    fields: dict[str, Any] = {
        n: MappingProxyType(value) if isinstance(value, dict) else value for n, value in read.items()
    }
    fields["layers"] = tuple(Layer(**layer) for layer in read["layers"])
    return Inspection(
        name=name,
        kind=kind,
        description=model.description,
        signatures=MappingProxyType(signatures),
        precision=model.precision,
        # All signatures are shown here, so that nothing need be said of those that a conversion leaves out.
        findings=tuple(finding for finding in model.findings if finding.code != "other-signatures"),
        **fields,
    )


# A SavedModel


def _saved_model(source: Source, path: Path) -> Inspection:
    read = _ask(source, "saved_model_task", path=str(path), name=source.name, signature=source.how.signature)
    signatures = {row["name"]: Signature.from_dict(row) for row in read["signatures"]}
    if (looked_at := read["looked_at"]) is not None:
        first = signatures[looked_at]
        narrowed = replace(first, inputs=source.how.narrowed(first.inputs, source.name))
        signatures = {looked_at: narrowed, **{n: s for n, s in signatures.items() if n != looked_at}}
    return Inspection(
        name=source.name,
        kind="saved_model",
        description=f"SavedModel, {read['parameters']:,} parameters",
        signatures=MappingProxyType(signatures),
        operators=MappingProxyType(read["operators"]),
        weights=MappingProxyType(read["weights"]),
        variables=read["variables"],
        parameters=read["parameters"],
        path=path,
        size=sum(read["files"].values()),
        files=MappingProxyType(read["files"]),
        tags=tuple(read["tags"]),
        written_by=f"TensorFlow {read['version']}" if read["version"] else "",
        findings=tuple(Finding(**finding) for finding in read["findings"]),
    )


# A .tflite file


def _lite(source: Source, path: Path) -> Inspection:
    read = _ask(source, "lite_task", path=str(path), name=source.name)
    file = LiteFile.from_description(path, "unknown", read["description"])
    signatures, noticed = dict(file.signatures), [Finding(**finding) for finding in read["findings"]]
    loads, refused = None, ""
    try:
        loaded = source.worker.call(f"{contents.__name__}:load_task", {"path": str(path)})
        loads, refused = loaded["refused"] is None, loaded["refused"] or ""
        if loaded["signature"] and not signatures:
            named = Signature.from_dict(loaded["signature"])
            signatures = {named.name: named}
    except JobError as error:
        loads, refused = False, error.found
    if not file.signatures:
        noticed.append(
            Finding("note", "no-signatures", "it has no signatures: inputs and outputs go by their tensors' names")
        )
    if refused:
        noticed.append(_refusal(refused))
    if (wanted := source.how.signature) is not None:
        if wanted not in signatures:
            raise contents.no_signature(source.name, wanted, signatures)
        signatures = {wanted: signatures[wanted]}
    if signatures:
        first = next(iter(signatures.values()))
        signatures[first.name] = replace(first, inputs=source.how.narrowed(first.inputs, source.name))
    return Inspection(
        name=source.name,
        kind="lite",
        description=f".tflite file, {file.size:,} bytes",
        signatures=MappingProxyType(signatures),
        operators=file.operators,
        weights=file.weights,
        path=path,
        size=file.size,
        files=MappingProxyType(read["files"]),
        written_by=file.description,
        file=file,
        loads=loads,
        findings=tuple(noticed),
    )


def _compared(found: Inspection, held: LiteModel) -> Inspection:
    """Return what was found in a converted model's file, beside what is known of that model."""
    assert found.file is not None
    findings = found.findings
    if found.file.sha256 != held.file.sha256:
        message = "the file has changed since it was made: what was measured then says nothing of it"
        findings = (*findings, Finding("error", "changed", message, "Convert the model again."))
    return replace(found, file=replace(found.file, scheme=held.scheme), findings=findings)


def _refusal(said: str) -> Finding:
    if "Select TensorFlow op" in said:
        return Finding(
            "warning",
            "select-ops",
            "it needs TensorFlow's own kernels, which LiteRT for Python does not have: it cannot be run here",
            "On a device, link the Flex delegate.",
        )
    return Finding(
        "error",
        "does-not-load",
        f"LiteRT does not load it: {said}",
        "Was it written to its end, for this LiteRT? Convert the model again.",
    )


# What all kinds share


def _ask(source: Source, task: str, **arguments: Any) -> Any:
    try:
        return source.worker.call(f"{contents.__name__}:{task}", arguments)
    except JobFailed as error:
        said = f"{error.exception}: {contents.first_line(error.message)}"
        raise contents.not_whole(source.name, said, "a whole model that this TensorFlow can read") from error
