"""Writing a model as a numbered version that TensorFlow Serving loads: checked first, and then given its number."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tfdeploy_magic import jobs
from tfdeploy_magic.artifacts.evidence import Evidence, Finding
from tfdeploy_magic.artifacts.samples import SampleSet, open_arrays
from tfdeploy_magic.artifacts.signature import DEFAULT_SIGNATURE, Signature
from tfdeploy_magic.errors import (
    ContractBroken,
    DataError,
    InputError,
    JobFailed,
    ModelNotReady,
    NotAModel,
    OutputError,
)
from tfdeploy_magic.evaluate import judge, measure
from tfdeploy_magic.jobs import Report, Worker
from tfdeploy_magic.serving import read_back, version_folder
from tfdeploy_magic.serving.read_back import LITE_FILE
from tfdeploy_magic.serving.request_log import to_warmup
from tfdeploy_magic.serving.status import Refusal
from tfdeploy_magic.sources import Source, StoredModel, TracedModel, files, functions, graphs, stored, wrapped
from tfdeploy_magic.sources.samples import NamedData, gather
from tfdeploy_magic.sources.traced import save_together

SAMPLES = 256
"""Test samples that parity is measured on, at the most: enough to see a difference, quick for a large model."""

PATIENCE_SECONDS = 60.0
"""How long the person's generator may take for one sample."""

_SAFE = re.compile(r"[^A-Za-z0-9_.\-/]")


@dataclass(frozen=True)
class ExportedVersion:
    """One version of a model on disk.

    Args:
        base_path: What a server is given: the folder of all versions.
        path: This version's folder.
        version: Its number.
        signatures: By name, as read back from what was written; "serving_default" first where there is one.
        size: Bytes.
        evidence: How its answers compare with the model's, and what was noticed.
        tested: What it was compared on; None where nothing was.
        model: What it was made of, as it is asked by default; None of a copy.
    """

    base_path: Path
    path: Path
    version: int
    signatures: Mapping[str, Signature]
    size: int
    evidence: Evidence
    tested: str | None = None
    model: TracedModel | StoredModel | None = field(default=None, repr=False, compare=False)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was noticed, worst first."""
        return self.evidence.findings

    @property
    def lite(self) -> bool:
        """Whether it is a .tflite file, which TensorFlow Serving serves with ``--prefer_tflite_model=true`` only."""
        return (self.path / LITE_FILE).exists()


@dataclass(frozen=True)
class _Written:
    """What lies in the hidden folder.

    Args:
        meant: The signatures it is to have; None of a copy, which has what the original has.
        model: What answers for ``serving_default``, or for the first signature; None of a copy.
        findings: What was noticed on the way.
    """

    meant: Mapping[str, Signature] | None = None
    model: TracedModel | StoredModel | None = None
    findings: tuple[Finding, ...] = ()


def export(
    source: Source,
    base_path: Path,
    *,
    version: int | Literal["auto"] = "auto",
    signatures: Mapping[str, Callable[..., Any]] | None = None,
    preprocess: Callable[..., Any] | None = None,
    postprocess: Callable[..., Any] | None = None,
    input_spec: str | None = None,
    test: NamedData | None = None,
    warmup: Path | None = None,
    like: Mapping[str, Signature] | None = None,
    report: Report,
) -> ExportedVersion:
    """Write a model as a version of a servable, read it back in a job, and give it its number.

    Args:
        source: The model.
        base_path: The folder of all versions; made when missing.
        version: Its number; "auto" takes the next.
        signatures: Functions of the model's tensors, as signatures of their own.
        preprocess: Runs before the model, within ``serving_default``.
        postprocess: Runs after it.
        input_spec: What ``preprocess`` takes, unless it says so itself: "?x28x28:uint8".
        test: Samples as ``serving_default`` takes them, to compare answers on.
        warmup: A request log; what is asked in it warms the version up before it is served.
        like: The signatures that clients know. Where one has a single input of the same shape and dtype, that keeps
            its name: Keras gives each model that is built another one.
        report: Told of the progress.

    Raises:
        OutputError: The version exists, or the disk or the permissions refuse.
        InputError: The model or a function cannot be used.
        UserCodeError: A function or the model raised while being traced or asked.
        ContractBroken: What was written cannot be read back as what was meant.
        JobError: Reading it back crashed or hung; this process is unharmed.
    """
    base_path = base_path.expanduser().absolute()
    jobs.warm_up()
    report.stage("tracing")
    custom = dict(signatures or {})
    _check_request(source, base_path, custom, preprocess or postprocess)
    version_folder.number_of(base_path, version)
    with version_folder.hidden(base_path) as partial, tempfile.TemporaryDirectory(prefix="tfdeploy-") as scratch:
        if isinstance(source.value, Path):
            written = _write_file(source, partial, like or {}, report)
        else:
            made = _traced(source, custom, preprocess, postprocess, input_spec)
            models = [_named_like(model, like or {}) for model in made]
            report.stage("writing")
            with version_folder.as_output_error(base_path):
                save_together(models, partial)
            meant = {model.signature.name: model.signature for model in models}
            written = _Written(meant, models[0], _noticed(models))
        tested = _samples(written, test, Path(scratch) / "in", report)
        found, evidence = _checked(source, written, partial, tested, Path(scratch), report)
        report.stage("writing")
        if warmup is not None:
            _warm_up_with(warmup.expanduser(), partial)
        with version_folder.as_output_error(base_path):
            size = graphs.folder_size(partial)
            number = version_folder.publish(partial, base_path, version)
    path = base_path / str(number)
    name = tested.name if tested else None
    return ExportedVersion(base_path, path, number, found, size, evidence, name, written.model)


# What a person asked for


def _warm_up_with(log: Path, version_dir: Path) -> None:
    try:
        to_warmup(log, version_dir)
    except Refusal as refusal:
        raise DataError(
            f"{log} cannot warm a version up",
            found=refusal.message,
            wanted="a whole log of requests, as --request_log_file writes it",
            cure="Leave --warmup out, or record the requests again.",
        ) from refusal


def _check_request(source: Source, base_path: Path, custom: Mapping[str, Any], wrapping: Any) -> None:
    for key in custom:
        if not key or key.startswith("__saved_model"):
            raise InputError(
                f"a signature cannot be called '{key}'",
                found="a name that TensorFlow keeps for itself" if key else "no name",
                wanted="a name of your own",
                cure="Write it as NAME=FUNCTION.",
            )
    if wrapping is not None and DEFAULT_SIGNATURE in custom:
        raise InputError(
            f"{DEFAULT_SIGNATURE} was given twice",
            found="a function of that name, and preprocess or postprocess, which make one",
            wanted="one of them",
            cure="Call the function otherwise, or leave the others out.",
        )
    if not isinstance(source.value, Path):
        return
    if custom or wrapping is not None:
        raise InputError(
            f"{source.name} is a file, and functions of yours were asked for",
            found="a model in another process than the functions",
            wanted="a model in this kernel",
            cure="Load it first, model = tf.saved_model.load(PATH) or keras.models.load_model(PATH), and name model.",
        )
    whole = _whole(source.value)
    if whole in (base_path, *base_path.parents):
        raise OutputError(
            f"cannot write {base_path}",
            found="a folder inside the model itself",
            wanted="a folder of its own",
            cure="Choose another.",
        )


def _whole(path: Path) -> Path:
    """Return the directory of a SavedModel that was named by its file, or the path as it is."""
    path = path.expanduser().absolute()
    return path.parent if files.kind_of(path) == "saved_model_file" else path


# A model in the kernel


def _traced(
    source: Source, custom: Mapping[str, Any], preprocess: Any, postprocess: Any, input_spec: str | None
) -> list[TracedModel]:
    """Return a model for each signature, ``serving_default`` first where there is one."""
    found = dict(_own_signatures(source))
    first = found.get(DEFAULT_SIGNATURE) or next(iter(found.values()))
    wrapped.refuse_python(first, source.name)
    if len(found) == 1:  # TensorFlow, too, serves a module's only function when no signature is named
        first = replace(first, signature=replace(first.signature, name=DEFAULT_SIGNATURE))
        found = {**found, DEFAULT_SIGNATURE: first}
    if preprocess is not None or postprocess is not None:
        found[first.signature.name] = wrapped.around(first, preprocess, postprocess, input_spec)
    for key, function in custom.items():
        found[key] = wrapped.beside(function, first.signature.inputs, key)
    ordered = sorted(found, key=lambda key: key != DEFAULT_SIGNATURE)
    return [_safely_named(found[key]) for key in ordered]


def _own_signatures(source: Source) -> Iterator[tuple[str, TracedModel]]:
    """Yield the model's signatures; a function of a module that does not say what it takes is none."""
    names = functions.names_of_signatures(source.value)
    if len(names) < 2:
        assert isinstance(source.model, TracedModel)
        yield source.model.signature.name, source.model
        return
    chosen = source.how.signature or (DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in names else None)
    refused: InputError | None = None
    some = False
    for name in names:
        how = replace(source.how, signature=name, input_spec=source.how.input_spec if name == chosen else None)
        try:
            yield name, functions.trace(source.value, source.name, how)
            some = True
        except (ModelNotReady, NotAModel) as error:
            if name == chosen:
                raise
            refused = error
    if refused is not None and not some:
        raise refused


def _safely_named(model: TracedModel) -> TracedModel:
    """Return the model with inputs whose names a SavedModel can hold: one with a space would stop the writing."""
    names: dict[str, str] = {}
    for spec in model.signature.inputs:
        safe = _SAFE.sub("_", spec.name)
        safe = safe if safe[:1].isalnum() else f"x{safe}"
        taken = {name.lower() for name in names.values()}  # TensorFlow tells no "X" from "x"
        names[spec.name] = next(
            name for name in (safe, *(f"{safe}_{n}" for n in range(1, 10_000))) if name.lower() not in taken
        )
    renamed = [f"'{old}' is now '{new}'" for old, new in names.items() if old != new]
    if not renamed:
        return model
    inputs = tuple(replace(spec, name=names[spec.name]) for spec in model.signature.inputs)
    message = f"an input has a name that a SavedModel cannot hold: {', '.join(renamed)}"
    finding = Finding("warning", "renamed", message, "Use that name in requests.")
    return replace(model, signature=replace(model.signature, inputs=inputs), findings=(*model.findings, finding))


def _named_like(model: TracedModel, known: Mapping[str, Signature]) -> TracedModel:
    """Return the model with the name of its only input that clients know it by."""
    theirs = known[model.signature.name].inputs if model.signature.name in known else ()
    ours = model.signature.inputs
    if len(ours) != 1 or len(theirs) != 1 or ours[0].name == theirs[0].name:
        return model
    renamed = replace(ours[0], name=theirs[0].name)
    if str(renamed) != str(theirs[0]):
        return model
    message = f"its input is called '{renamed.name}' as it was, and not '{ours[0].name}': clients know it by that name"
    finding = Finding("note", "same-name", message)
    return replace(model, signature=replace(model.signature, inputs=(renamed,)), findings=(*model.findings, finding))


def _noticed(models: Sequence[TracedModel]) -> tuple[Finding, ...]:
    """Return what concerns a served model: all signatures are written, and nothing becomes .tflite."""
    found: dict[str, Finding] = {}
    for finding in (finding for model in models for finding in model.findings):
        found.setdefault(finding.code, finding)
    kept = [finding for code, finding in found.items() if code not in ("other-signatures", "mixed-precision")]
    if (precision := models[0].precision) != "float32":
        kept.append(
            Finding(
                "note",
                "mixed-precision",
                f"the model computes in {precision}, what is served in float32 with the same weights: "
                "REST has no half-precision numbers",
            )
        )
    names = [model.signature.name for model in models]
    if DEFAULT_SIGNATURE not in names:
        kept.append(
            Finding(
                "warning",
                "no-default",
                f"it has no signature '{DEFAULT_SIGNATURE}', so that every request must name one of {', '.join(names)}",
                "Say which it is: --signature serving_default=FUNCTION.",
            )
        )
    return tuple(kept)


# A model in a file


def _write_file(source: Source, partial: Path, like: Mapping[str, Signature], report: Report) -> _Written:
    report.stage("writing")
    path = _whole(source.value)
    kind = files.kind_of(path)
    if kind in ("saved_model", "lite"):
        if source.how.input_spec is not None:
            raise InputError(
                f"{source.name} is copied as it is",
                found="--input-spec",
                wanted="nothing to change in it",
                cure="Leave it out, or load the model in the kernel and name that.",
            )
        with version_folder.as_output_error(partial.parent):
            version_folder.copy(path, partial if kind == "saved_model" else partial / LITE_FILE)
        prefer = "TensorFlow Serving takes a .tflite file only with --prefer_tflite_model=true"
        return _Written(findings=(Finding("note", "lite", prefer),) if kind == "lite" else ())
    model = source.model
    assert isinstance(model, StoredModel)
    known = {name: signature.to_dict() for name, signature in like.items()}
    task = {"path": str(model.path), "folder": str(partial), "name": source.name, "base_path": str(partial.parent)}
    written = source.worker.call(f"{__name__}:write_task", {**task, "like": known})
    signature = Signature.from_dict(written["signature"])
    return _Written({signature.name: signature}, model, tuple(Finding(**row) for row in written["findings"]))


def write_task(
    report: Report, path: str, folder: str, name: str, base_path: str, like: dict[str, Any]
) -> dict[str, Any]:
    """Write the model that this process has opened as a servable; a job's entry."""
    report.stage("writing")
    model: TracedModel = stored.opened(path)
    wrapped.refuse_python(model, name)
    model = _safely_named(replace(model, signature=replace(model.signature, name=DEFAULT_SIGNATURE)))
    model = _named_like(model, {key: Signature.from_dict(known) for key, known in like.items()})
    with version_folder.as_output_error(Path(base_path)):
        save_together([model], Path(folder))
    return {"signature": model.signature.to_dict(), "findings": [asdict(finding) for finding in _noticed([model])]}


# Reading it back


def _samples(written: _Written, test: NamedData | None, folder: Path, report: Report) -> SampleSet | None:
    if test is None or written.model is None or any(f.code in measure.INCOMPARABLE for f in written.findings):
        return None
    report.stage("reading test data")
    specs = written.model.signature.inputs
    return gather(test, specs, folder, role="test", limit=SAMPLES, seconds=PATIENCE_SECONDS, report=report)


def _checked(
    source: Source, written: _Written, partial: Path, tested: SampleSet | None, folder: Path, report: Report
) -> tuple[dict[str, Signature], Evidence]:
    """Load what was written in a job, and compare its signatures and answers with those of the model."""
    meant = written.meant
    first = next(iter(meant.values())) if meant else None
    base = None
    if tested is not None and written.model is not None:
        report.stage("asking the source model")
        answers = written.model.predict(tested, report)
        base = judge.baseline(answers, judge.Task(), written.model.precision)
    asked = {
        "path": str(partial),
        "name": source.name,
        "trust": meant is not None or source.how.trust,  # written here, of a model that was opened or is in the kernel
        "signature": first.to_dict() if first and tested else None,
        "inputs": [str(path) for path in tested.files.values()] if tested else [],
        "count": tested.count if tested else 0,
        "folder": str(folder / "out"),
    }
    with Worker(deadline=source.worker.deadline, listener=report.relay) as worker:
        try:
            read = worker.call(f"{read_back.__name__}:check_task", asked)
        except JobFailed as error:
            raise _unreadable(source, error) from error
    found = {row["name"]: Signature.from_dict(row) for row in read["signatures"]}
    if meant is not None and _doors(found) != _doors(meant):
        raise ContractBroken(
            f"{source.name} was written, but not as it was meant",
            found=str(_doors(found)),
            wanted=str(_doors(meant)),
            cure="Please report this model.",
        )
    found = {name: found[name] for name in sorted(found, key=lambda name: (name != DEFAULT_SIGNATURE, name))}
    return found, _evidence(written, base, read["answers"])


def _evidence(written: _Written, base: judge.Baseline | None, answers: dict[str, str] | None) -> Evidence:
    noticed = written.findings
    if written.meant is None:
        copied = Finding("note", "copied", "it is a copy, byte for byte, and so answers as the original does")
        return Evidence(findings=judge.worst_first((*noticed, copied)))
    if base is None or answers is None:
        incomparable = any(finding.code in measure.INCOMPARABLE for finding in noticed)
        return Evidence(findings=judge.worst_first(noticed)) if incomparable else judge.not_measured(noticed)
    opened = open_arrays({name: Path(path) for name, path in answers.items()})
    return judge.judge(base, opened, judge.Task(), scheme="float32", latency=None, findings=noticed)


def _doors(signatures: Mapping[str, Signature]) -> dict[str, tuple[list[str], list[str]]]:
    return {
        name: (sorted(map(str, signatures[name].inputs)), sorted(map(str, signatures[name].outputs)))
        for name in sorted(signatures)
    }


def _unreadable(source: Source, error: JobFailed) -> Exception:
    if isinstance(source.value, Path):
        return files.cannot_be_opened(source.name, error.exception, error.message)
    return ContractBroken(
        f"{source.name} was written, but cannot be loaded",
        found=f"{error.exception}: {next(iter(error.message.strip().splitlines()), 'no message')[:300]}".rstrip("."),
        wanted="a version that TensorFlow Serving loads",
        cure="--debug shows where. Please report this model.",
    )
