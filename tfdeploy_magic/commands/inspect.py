"""``%inspect``: what a model holds, read without running it."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field

from tfdeploy_magic import jobs, sources
from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.signature import Signature, TensorSpec
from tfdeploy_magic.commands.declaration import FromKernel, Named, OnTheLine, Options, command
from tfdeploy_magic.commands.lite_model import LiteModel
from tfdeploy_magic.convert.describe import describe
from tfdeploy_magic.errors import JobError, JobFailed, NameNotFound, NotAModel
from tfdeploy_magic.evaluate.session import LiteSession
from tfdeploy_magic.jobs import Report, Worker
from tfdeploy_magic.jobs.progress import Listener
from tfdeploy_magic.sources import How, Source, StoredModel, TracedModel, files, functions, graphs, stored
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
        named = self.named
        value = named.value.path if isinstance(named.value, LiteModel) else named.value
        how = How(self.signature, self.input_spec, trust=self.trust)
        return sources.open_source(value, named.name, how, Worker(deadline=self.timeout))

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
    contents = _contents(model)
    kind = "keras" if contents["layers"] else "tensorflow"
    return _from_contents(source.name, kind, model, signatures, contents)


def _names_of_signatures(value: Any) -> list[str]:
    """Return the signatures of a SavedModel that the kernel has loaded."""
    declared = getattr(value, "signatures", None)
    return sorted(declared) if isinstance(declared, Mapping) else []


def _opened(source: Source, path: Path) -> Inspection:
    model = source.model
    assert isinstance(model, StoredModel)
    contents = _ask(source, "contents_task", path=str(path))
    return _from_contents(
        source.name, model.kind, model, {model.signature.name: model.signature}, contents, path=path, **contents["disk"]
    )


def _from_contents(
    name: str,
    kind: Any,
    model: TracedModel | StoredModel,
    signatures: dict[str, Signature],
    contents: dict[str, Any],
    **disk: Any,
) -> Inspection:
    return Inspection(
        name=name,
        kind=kind,
        description=model.description,
        signatures=MappingProxyType(signatures),
        operators=MappingProxyType(contents["operators"]),
        weights=MappingProxyType(contents["weights"]),
        variables=contents["variables"],
        parameters=contents["parameters"],
        trainable=contents["trainable"],
        precision=model.precision,
        layers=tuple(Layer(**layer) for layer in contents["layers"]),
        # All signatures are shown here, so that nothing need be said of those that a conversion leaves out.
        findings=tuple(finding for finding in model.findings if finding.code != "other-signatures"),
        **disk,
    )


def _contents(model: TracedModel) -> dict[str, Any]:
    graph_def = graphs.reachable(model.graph_def, [tensor.name for tensor in model.function.outputs])
    variables = model.function.graph.variables
    keras_model = next((owner for owner in model.trackables if sources.keras.matches(owner)), None)
    held = [(v.dtype.name, tuple(v.shape)) for v in variables]
    return {
        "operators": _operators(graph_def),
        "weights": _bytes_by_dtype(held) or _bytes_by_dtype(_constants(graph_def)),
        "variables": len(variables),
        "parameters": keras_model.count_params() if keras_model else sum(map(_elements, (shape for _, shape in held))),
        "trainable": sum(_elements(weight.shape) for weight in keras_model.trainable_weights) if keras_model else None,
        "layers": [asdict(layer) for layer in _layers(keras_model)] if keras_model else [],
    }


def contents_task(report: Report, path: str) -> dict[str, Any]:
    """Look at a Keras model or a frozen graph that this process has opened; a job's entry."""
    report.stage("looking at it")
    model = stored.opened(path)
    assert isinstance(model, TracedModel)
    return {**_contents(model), "disk": _on_disk(Path(path))}


def _on_disk(path: Path) -> dict[str, Any]:
    written_by, members = "", {}
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            written_by = (
                f"Keras {json.loads(archive.read('metadata.json')).get('keras_version', 'of an unknown version')}"
            )
            members = {member.filename: member.file_size for member in archive.infolist()}
    elif path.suffix != ".pb":
        import h5py

        with h5py.File(path, "r") as file:
            written_by = f"Keras {file.attrs.get('keras_version', 'of an unknown version')}"
    return {"size": path.stat().st_size, "files": members, "written_by": written_by}


def _layers(model: Any) -> Iterator[Layer]:
    for layer in model.layers:
        yield Layer(layer.name, type(layer).__name__, _output_shape(layer), layer.count_params() if layer.built else 0)


def _output_shape(layer: Any) -> str:
    import tensorflow as tf

    try:
        outputs = tf.nest.flatten(layer.output)
    except (AttributeError, ValueError, RuntimeError):  # a layer that only ever ran eagerly
        return ""
    shapes = (", ".join("?" if size is None else str(size) for size in output.shape) for output in outputs)
    return " ".join(f"[{shape}]" for shape in shapes)


# A SavedModel, of which only the protocol buffer and the index of its variables are read


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


def saved_model_task(report: Report, path: str, name: str, signature: str | None) -> dict[str, Any]:
    """Read a SavedModel without loading it, which would run its initializers; a job's entry."""
    from tensorflow.python.saved_model import loader_impl

    report.stage("reading the SavedModel")
    folder = Path(path)
    metas = list(loader_impl.parse_saved_model(path).meta_graphs)
    if not metas:
        raise _not_whole(name, "no graph in it", "a SavedModel with a graph")
    meta = next((meta for meta in metas if "serve" in meta.meta_info_def.tags), metas[0])
    declared = {n: proto for n, proto in sorted(meta.signature_def.items()) if not n.startswith("__saved_model")}
    if signature is not None and signature not in declared:
        raise _no_signature(name, signature, declared)
    likely = signature or (functions.DEFAULT if functions.DEFAULT in declared else next(iter(declared), None))
    looked_at = [declared[likely]] if signature or likely == functions.DEFAULT else list(declared.values())
    outputs = [output.name for proto in looked_at for output in proto.outputs.values()]
    reached = graphs.reachable(meta.graph_def, outputs) if outputs else meta.graph_def
    variables = list(_variables(reached))
    contents = {part.relative_to(folder).as_posix(): part.stat().st_size for part in _files_in(folder)}
    return {
        "signatures": [_declared_signature(n, proto).to_dict() for n, proto in declared.items()],
        "looked_at": likely,
        "operators": _operators(reached),
        "weights": _bytes_by_dtype(variables) or _bytes_by_dtype(_constants(reached)),
        "variables": len(variables),
        "parameters": sum(_elements(shape) for _, shape in variables),
        "files": contents,
        "tags": list(meta.meta_info_def.tags),
        "version": meta.meta_info_def.tensorflow_version,
        "findings": [
            asdict(finding)
            for finding in (
                *_signature_findings(declared),
                *_graph_findings(meta, metas),
                *_variable_findings(folder, contents, expected=len(variables)),
                *_asset_findings(meta, contents),
            )
        ],
    }


def _files_in(folder: Path) -> Iterator[Path]:
    return (part for part in sorted(folder.rglob("*")) if part.is_file())


def _declared_signature(name: str, proto: Any) -> Signature:
    def specs(infos: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
        return tuple(_spec(n, info) for n, info in sorted(infos.items()))

    return Signature(name, specs(proto.inputs), specs(proto.outputs))


def _spec(name: str, info: Any) -> TensorSpec:
    import tensorflow as tf

    return TensorSpec(
        name, graphs.shape_of(tf.TensorShape(info.tensor_shape)), tf.as_dtype(info.dtype).name, tensor=info.name
    )


def _signature_findings(declared: Mapping[str, Any]) -> Iterator[Finding]:
    if not declared:
        yield Finding(
            "warning",
            "no-signatures",
            "it does not say how it is called: it has no signatures",
            "Load it in the kernel, model = tf.saved_model.load(DIR), and name one function of it.",
        )


def _graph_findings(meta: Any, metas: list[Any]) -> Iterator[Finding]:
    if touching := sorted({node.op for node in graphs.nodes(meta.graph_def)} & stored.FILE_OPS):
        yield Finding(
            "warning",
            "file-ops",
            f"it touches the machine it runs on: {', '.join(touching)}",
            "Convert it with --trust, and only if you trust who wrote it.",
        )
    others = [", ".join(other.meta_info_def.tags) or "nothing" for other in metas if other is not meta]
    if others:
        yield Finding("note", "other-graphs", f"it also holds graphs tagged {'; '.join(others)}")


def _variable_findings(folder: Path, contents: Mapping[str, int], *, expected: int) -> Iterator[Finding]:
    """Find values that are missing, without reading them."""
    import tensorflow as tf

    cure = "Was it written and copied to its end? Save the model again."
    if "variables/variables.index" not in contents:
        if expected:
            yield Finding("error", "no-variables", f"the values of its {expected} variables are missing", cure)
        return
    try:
        index = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
        dtypes, shapes = index.get_variable_to_dtype_map(), index.get_variable_to_shape_map()
    except Exception as error:  # whatever a mutated table makes TensorFlow raise
        yield Finding("error", "variables-broken", f"its variables cannot be read: {_first_line(error)}", cure)
        return
    wanted = sum(_bytes_by_dtype((dtypes[key].name, tuple(shapes[key])) for key in shapes).values())
    there = sum(size for file, size in contents.items() if file.startswith("variables/variables.data"))
    if there < wanted:
        yield Finding("error", "variables-cut", f"its variables are {wanted:,} bytes, but {there:,} are there", cure)


def _asset_findings(meta: Any, contents: Mapping[str, int]) -> Iterator[Finding]:
    for asset in meta.asset_file_def:
        if f"assets/{asset.filename}" not in contents:
            yield Finding(
                "error", "no-asset", f"its asset {asset.filename} is missing", "Copy the whole directory again."
            )


# A .tflite file


def _lite(source: Source, path: Path) -> Inspection:
    read = _ask(source, "lite_task", path=str(path), name=source.name)
    file = LiteFile.from_description(path, "unknown", read["description"])
    signatures, noticed = dict(file.signatures), [Finding(**finding) for finding in read["findings"]]
    loads, refused = None, ""
    try:
        loaded = source.worker.call(f"{__name__}:load_task", {"path": str(path)})
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
            raise _no_signature(source.name, wanted, signatures)
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


def lite_task(report: Report, path: str, name: str) -> dict[str, Any]:
    """Read a .tflite file and list what is appended to it, without loading it; a job's entry."""
    report.stage("reading the file")
    try:
        description = describe(Path(path))
    except ValueError as error:
        raise _not_whole(name, _first_line(error.__cause__ or error), "a whole .tflite file") from error
    appended, findings = _appended(Path(path))
    return {"description": description, "files": appended, "findings": [asdict(finding) for finding in findings]}


def load_task(report: Report, path: str) -> dict[str, Any]:
    """Try whether LiteRT loads a file; a job's entry.

    Returns:
        What it said when it refused, or None; and the signature it sees, by tensor names where the file has none.
    """
    report.stage("loading it in LiteRT")
    signature = None
    try:
        session = LiteSession(Path(path))
        signature = session.signature.to_dict()
        session.load()
    except (RuntimeError, ValueError) as error:
        return {"refused": _first_line(error), "signature": signature}
    return {"refused": None, "signature": signature}


def _appended(path: Path) -> tuple[dict[str, int], list[Finding]]:
    """List the associated files that TensorFlow Lite metadata puts into a zip archive behind the flatbuffer."""
    if not zipfile.is_zipfile(path):
        return {}, []
    try:
        with zipfile.ZipFile(path) as archive:
            return {member.filename: member.file_size for member in archive.infolist()}, []
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        message = f"the files appended to it cannot be read: {_first_line(error)}"
        return {}, [Finding("warning", "broken-archive", message, "Write its metadata again.")]


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
        return source.worker.call(f"{__name__}:{task}", arguments)
    except JobFailed as error:
        said = f"{error.exception}: {_first_line(error.message)}"
        raise _not_whole(source.name, said, "a whole model that this TensorFlow can read") from error


def _not_whole(name: str, found: str, wanted: str) -> NotAModel:
    cure = "Was it written and copied to its end? Save the model again."
    return NotAModel(f"{name} cannot be read", found=found.rstrip("."), wanted=wanted, cure=cure)


def _no_signature(name: str, asked: str, there: Iterable[str]) -> NameNotFound:
    names = list(there)
    return NameNotFound(
        f"{name} has no signature '{asked}'",
        found=", ".join(names) or "no signatures at all",
        wanted="one that it has",
        cure=f"Try --signature {names[0]}." if names else "Leave --signature out.",
    )


def _first_line(error: object) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")[:200]


def _operators(graph_def: Any) -> dict[str, int]:
    called = {function.signature.name for function in graph_def.library.function}
    return dict(Counter(node.op for node in graphs.nodes(graph_def) if node.op not in called).most_common())


def _variables(graph_def: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    for node in graphs.nodes(graph_def):
        if node.op in ("VarHandleOp", "VariableV2", "Variable"):
            yield _dtype_name(node.attr["dtype"].type), tuple(dim.size for dim in node.attr["shape"].shape.dim)


def _constants(graph_def: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    for node in graphs.nodes(graph_def):
        if node.op == "Const":
            tensor = node.attr["value"].tensor
            yield _dtype_name(tensor.dtype), tuple(dim.size for dim in tensor.tensor_shape.dim)


def _dtype_name(number: int) -> str:
    import tensorflow as tf

    return str(tf.as_dtype(number).name)


def _bytes_by_dtype(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """Sum up tensors' sizes; strings have none that their shape would tell."""
    import tensorflow as tf

    total: Counter[str] = Counter()
    for dtype, shape in tensors:
        if dtype not in ("string", "resource", "variant"):
            total[dtype] += _elements(shape) * tf.as_dtype(dtype).size
    return {dtype: size for dtype, size in total.most_common() if size}


def _elements(shape: Iterable[Any]) -> int:
    count = 1
    for size in shape:
        count *= max(int(size), 0)
    return count
