"""The job's side of looking at a model: read what it holds as plain data, without running it."""

from __future__ import annotations

import math
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.signature import DEFAULT_SIGNATURE
from tfdeploy_magic.convert.describe import describe
from tfdeploy_magic.errors import NameNotFound, NotAModel
from tfdeploy_magic.evaluate.session import LiteSession
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.sources import TracedModel, graphs, keras, stored

Tensors = Iterable[tuple[str, tuple[int | None, ...]]]
"""The dtype and the shape of each."""


# A model that this process holds


def of_traced(model: TracedModel) -> dict[str, Any]:
    """Return what a traced model holds: the fields of an inspection, as plain data."""
    graph_def = graphs.reachable(model.graph_def, [tensor.name for tensor in model.function.outputs])
    variables = model.function.graph.variables
    keras_model = next((owner for owner in model.trackables if keras.matches(owner)), None)
    held = [(variable.dtype.name, graphs.shape_of(variable.shape)) for variable in variables]
    return {
        "operators": _operators(graph_def),
        "weights": _bytes_by_dtype(held) or _bytes_by_dtype(_constants(graph_def)),
        "variables": len(variables),
        "parameters": keras_model.count_params() if keras_model else sum(_elements(shape) for _, shape in held),
        "trainable": sum(_elements(weight.shape) for weight in keras_model.trainable_weights) if keras_model else None,
        "layers": [_layer(layer) for layer in keras_model.layers] if keras_model else [],
    }


def contents_task(report: Report, path: str) -> dict[str, Any]:
    """Look at a Keras model or a frozen graph that this process has opened; a job's entry."""
    report.stage("looking at it")
    model = stored.opened(path)
    assert isinstance(model, TracedModel)
    return {**of_traced(model), **_on_disk(Path(path))}


def _on_disk(path: Path) -> dict[str, Any]:
    on_disk: dict[str, Any] = {"size": path.stat().st_size, "files": {}, "written_by": ""}
    if path.suffix != ".pb":
        _, version = stored.keras_config(path, path.name)
        on_disk["written_by"] = f"Keras {version or 'of an unknown version'}"
    if path.suffix == ".keras":
        on_disk["files"] = _members(path)
    return on_disk


def _members(path: Path) -> dict[str, int]:
    with zipfile.ZipFile(path) as archive:
        return {member.filename: member.file_size for member in archive.infolist()}


def _layer(layer: Any) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kind": type(layer).__name__,
        "output": _output_shape(layer),
        "parameters": layer.count_params() if layer.built else 0,
    }


def _output_shape(layer: Any) -> str:
    import tensorflow as tf

    try:
        outputs = tf.nest.flatten(layer.output)
    except (AttributeError, ValueError, RuntimeError):  # a layer that only ever ran eagerly
        return ""
    shapes = (", ".join("?" if size is None else str(size) for size in output.shape) for output in outputs)
    return " ".join(f"[{shape}]" for shape in shapes)


# A SavedModel, of which only the protocol buffer and the index of its variables are read


def saved_model_task(report: Report, path: str, name: str, signature: str | None) -> dict[str, Any]:
    """Read a SavedModel without loading it, which would run its initializers; a job's entry."""
    from tensorflow.python.saved_model import loader_impl

    report.stage("reading the SavedModel")
    metas = list(loader_impl.parse_saved_model(path).meta_graphs)
    if not metas:
        raise not_whole(name, "no graph in it", "a SavedModel with a graph")
    meta, files = graphs.served(metas), graphs.files_in(Path(path))
    declared = graphs.declared(meta)
    if signature is not None and signature not in declared:
        raise no_signature(name, signature, declared)
    chosen = signature or (DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in declared else None)
    looked_at = [declared[chosen]] if chosen else list(declared.values())
    outputs = [output.name for proto in looked_at for output in proto.outputs.values()]
    reached = graphs.reachable(meta.graph_def, outputs) if outputs else meta.graph_def
    variables = list(_variables(reached))
    found = (
        *_signature_findings(declared),
        *_graph_findings(meta, metas),
        *_variable_findings(Path(path), files, expected=len(variables)),
        *_asset_findings(meta, files),
    )
    return {
        "signatures": [graphs.signature_of(n, proto).to_dict() for n, proto in declared.items()],
        "looked_at": chosen or next(iter(declared), None),
        "operators": _operators(reached),
        "weights": _bytes_by_dtype(variables) or _bytes_by_dtype(_constants(reached)),
        "variables": len(variables),
        "parameters": sum(_elements(shape) for _, shape in variables),
        "files": files,
        "tags": list(meta.meta_info_def.tags),
        "version": meta.meta_info_def.tensorflow_version,
        "findings": [asdict(finding) for finding in found],
    }


def _signature_findings(declared: Mapping[str, Any]) -> Iterator[Finding]:
    if not declared:
        yield Finding(
            "warning",
            "no-signatures",
            "it does not say how it is called: it has no signatures",
            "Load it in the kernel, model = tf.saved_model.load(DIR), and name one function of it.",
        )


def _graph_findings(meta: Any, metas: list[Any]) -> Iterator[Finding]:
    if touching := stored.touching(meta):
        yield Finding(
            "warning",
            "file-ops",
            f"it touches the machine it runs on: {', '.join(touching)}",
            "Convert it with --trust, and only if you trust who wrote it.",
        )
    others = [", ".join(other.meta_info_def.tags) or "nothing" for other in metas if other is not meta]
    if others:
        yield Finding("note", "other-graphs", f"it also holds graphs tagged {'; '.join(others)}")


def _variable_findings(folder: Path, files: Mapping[str, int], *, expected: int) -> Iterator[Finding]:
    """Find values that are missing, without reading them."""
    import tensorflow as tf

    cure = "Was it written and copied to its end? Save the model again."
    if "variables/variables.index" not in files:
        if expected:
            yield Finding("error", "no-variables", f"the values of its {expected} variables are missing", cure)
        return
    try:
        index = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
        dtypes, shapes = index.get_variable_to_dtype_map(), index.get_variable_to_shape_map()
    except Exception as error:  # whatever a mutated table makes TensorFlow raise
        yield Finding("error", "variables-broken", f"its variables cannot be read: {first_line(error)}", cure)
        return
    wanted = sum(_bytes_by_dtype((dtypes[key].name, tuple(shapes[key])) for key in shapes).values())
    there = sum(size for file, size in files.items() if file.startswith("variables/variables.data"))
    if there < wanted:
        yield Finding("error", "variables-cut", f"its variables are {wanted:,} bytes, but {there:,} are there", cure)


def _asset_findings(meta: Any, files: Mapping[str, int]) -> Iterator[Finding]:
    for asset in meta.asset_file_def:
        if f"assets/{asset.filename}" not in files:
            yield Finding(
                "error", "no-asset", f"its asset {asset.filename} is missing", "Copy the whole directory again."
            )


# A .tflite file


def lite_task(report: Report, path: str, name: str) -> dict[str, Any]:
    """Read a .tflite file and list what is appended to it, without loading it; a job's entry."""
    report.stage("reading the file")
    try:
        description = describe(Path(path))
    except ValueError as error:
        raise not_whole(name, first_line(error.__cause__ or error), "a whole .tflite file") from error
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
        return {"refused": first_line(error), "signature": signature}
    return {"refused": None, "signature": signature}


def _appended(path: Path) -> tuple[dict[str, int], list[Finding]]:
    """List the associated files that TensorFlow Lite metadata puts into a zip archive behind the flatbuffer."""
    if not zipfile.is_zipfile(path):
        return {}, []
    try:
        return _members(path), []
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        message = f"the files appended to it cannot be read: {first_line(error)}"
        return {}, [Finding("warning", "broken-archive", message, "Write its metadata again.")]


# What all kinds share


def not_whole(name: str, found: str, wanted: str) -> NotAModel:
    """Return the error for a file that broke on its way here."""
    cure = "Was it written and copied to its end? Save the model again."
    return NotAModel(f"{name} cannot be read", found=found.rstrip("."), wanted=wanted, cure=cure)


def no_signature(name: str, asked: str, there: Iterable[str]) -> NameNotFound:
    """Return the error for a signature that is not there."""
    names = list(there)
    return NameNotFound(
        f"{name} has no signature '{asked}'",
        found=", ".join(names) or "no signatures at all",
        wanted="one that it has",
        cure=f"Try --signature {names[0]}." if names else "Leave --signature out.",
    )


def first_line(error: object) -> str:
    """Return the first line of what an error says."""
    return next(iter(str(error).strip().splitlines()), "no message")[:200]


def _operators(graph_def: Any) -> dict[str, int]:
    called = {function.signature.name for function in graph_def.library.function}
    return dict(Counter(node.op for node in graphs.nodes(graph_def) if node.op not in called).most_common())


def _variables(graph_def: Any) -> Tensors:
    for node in graphs.nodes(graph_def):
        if node.op in graphs.VARIABLE_OPS:
            yield _dtype_name(node.attr["dtype"].type), tuple(dim.size for dim in node.attr["shape"].shape.dim)


def _constants(graph_def: Any) -> Tensors:
    for node in graphs.nodes(graph_def):
        if node.op == "Const":
            tensor = node.attr["value"].tensor
            yield _dtype_name(tensor.dtype), tuple(dim.size for dim in tensor.tensor_shape.dim)


def _dtype_name(number: int) -> str:
    import tensorflow as tf

    return str(tf.as_dtype(number).name)


def _bytes_by_dtype(tensors: Tensors) -> dict[str, int]:
    """Sum up tensors' sizes; strings have none that their shape would tell."""
    import tensorflow as tf

    total: Counter[str] = Counter()
    for dtype, shape in tensors:
        if dtype not in ("string", "resource", "variant"):
            total[dtype] += _elements(shape) * tf.as_dtype(dtype).size
    return {dtype: size for dtype, size in total.most_common() if size}


def _elements(shape: Iterable[int | None]) -> int:
    """Return how many numbers a tensor holds; none where its shape is open, which a graph writes as -1."""
    return math.prod(max(size or 0, 0) for size in shape)
