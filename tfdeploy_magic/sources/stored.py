"""The job's side of a model file: open it safely, ask it, and write it in the form that is converted."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from tfdeploy_magic.artifacts.evidence import Finding, Latency
from tfdeploy_magic.artifacts.models import SavedModelDir
from tfdeploy_magic.artifacts.samples import SampleSet, save_arrays
from tfdeploy_magic.artifacts.signature import DEFAULT_SIGNATURE, Arrays, Signature
from tfdeploy_magic.errors import InputError, NameNotFound, NotAModel
from tfdeploy_magic.evaluate.session import LiteSession
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.sources import files, functions, graphs, keras
from tfdeploy_magic.sources.how import How
from tfdeploy_magic.sources.traced import TracedModel

_ONLY_STATE = re.compile(
    r"_?(VarHandleOp|VarIsInitializedOp|Variable(V2|Shape)?|TemporaryVariable|ReadVariableOp|DisableCopyOnRead"
    r"|Assign(Add|Sub)?VariableOp|Resource(Gather|Scatter|StridedSlice|Apply|Sparse|CountUpTo)\w*|DestroyResourceOp"
    r"|(Anonymous)?(Mutable)?(Dense)?HashTable\w*|InitializeTableV2|LookupTable\w+|BoostedTrees\w+"
    r"|StatefulPartitionedCall|If|While|Case|XlaIf|XlaWhile|XlaCallModule|Arg|Retval|DeviceIndex"
    r"|TensorArray\w*|Stack(Close|Pop|Push)?(V2)?|Empty|DeepCopy|GuaranteeConst|Mutex\w*|ConsumeMutexLock"
    r"|(Add|Take)ManySparse\w+|AddSparseToTensorsMap|CudnnRNN\w*|Assert|CheckNumerics(V2)?|Print|Timestamp"
    r"|Random\w+|Stateful(Uniform|StandardNormal|Truncated|Random)\w*|StatelessRandomGetAlg|Rng\w+|Multinomial"
    r"|(Parameterized)?TruncatedNormal|NonDeterministicInts|SampleDistortedBoundingBox(V2)?"
    r"|(All|Uniform|LogUniform|LearnedUnigram|ThreadUnsafeUnigram)CandidateSampler)"
)
"""Operations that TensorFlow calls stateful and whose state is the model's own."""

_READS = re.compile(
    r"ReadFile|MatchingFiles|PyFuncStateless|GenerateVocabRemapping|InitializeTableFromTextFile|Reader\w+|Debug\w+"
    r"|\w*Dataset\w*"
)
"""Operations that touch the machine though TensorFlow does not call them stateful."""

_RESTORES = frozenset(("RestoreV2", "Restore", "RestoreSlice"))


class _Opened(Protocol):
    """What every kind offers; a :class:`TracedModel` is one."""

    @property
    def description(self) -> str: ...
    @property
    def signature(self) -> Signature: ...
    @property
    def findings(self) -> tuple[Finding, ...]: ...
    @property
    def layers(self) -> Mapping[str, str]: ...
    @property
    def precision(self) -> str: ...
    @property
    def unrollable(self) -> bool: ...
    @property
    def graph_def(self) -> Any: ...
    @property
    def doors(self) -> tuple[tuple[str, ...], tuple[str, ...]]: ...
    def predict(self, samples: SampleSet, report: Report) -> Arrays: ...
    def latency(self, samples: SampleSet, report: Report) -> Latency: ...
    def save(self, folder: Path, *, single_sample: bool = False) -> SavedModelDir: ...


_opened: dict[str, _Opened] = {}
"""Path -> what this process holds of it: one process holds one model."""


def open_task(report: Report, path: str, kind: str, name: str, how: dict[str, Any]) -> dict[str, Any]:
    """Open a model file; a job's entry.

    Returns:
        The fields of a :class:`StoredModel`.
    """
    report.stage("opening the model")
    model = _OPENERS[kind](Path(path), name, How.from_dict(how))
    _opened[path] = model
    return {
        "description": model.description,
        "signature": model.signature.to_dict(),
        "findings": [asdict(finding) for finding in model.findings],
        "layers": dict(model.layers),
        "precision": model.precision,
        "unrollable": model.unrollable,
    }


def save_task(report: Report, path: str, folder: str, single_sample: bool, rebuilt: bool) -> dict[str, Any]:
    """Write an opened model as a SavedModel, or say that it is one; a job's entry."""
    report.stage("freezing")
    model = _opened[path]
    if isinstance(model, _SavedModel) and (rebuilt or single_sample):
        model = model.loaded
    written = model.save(Path(folder), single_sample=single_sample)
    return {
        "path": str(written.path),
        "signature": written.signature.to_dict(),
        "size": written.size,
        "frozen": written.frozen,
        "tags": list(written.tags),
    }


def predict_task(report: Report, path: str, inputs: dict[str, str], count: int, folder: str) -> dict[str, str]:
    """Answer samples with an opened model; a job's entry.

    Returns:
        Output name -> ``.npy`` file.
    """
    report.stage("asking the source model")
    answers = _opened[path].predict(_samples(inputs, count), report)
    return {name: str(file) for name, file in save_arrays(Path(folder), answers).items()}


def latency_task(report: Report, path: str, inputs: dict[str, str], count: int) -> dict[str, Any]:
    """Time an opened model on one sample; a job's entry.

    Returns:
        The fields of a :class:`Latency`.
    """
    report.stage("timing the source model")
    return asdict(_opened[path].latency(_samples(inputs, count), report))


def opened(path: str) -> Any:
    """Return the model that this process has opened, for jobs that look into it."""
    return _opened[path]


def _samples(inputs: dict[str, str], count: int) -> SampleSet:
    return SampleSet({name: Path(file) for name, file in inputs.items()}, count, "samples")


class _SavedModel:
    """A SavedModel directory: described from its protocol buffer, loaded only to be asked.

    Args:
        path: The directory.
        name: How the person calls it.
        how: Which signature, and whether it is trusted.
    """

    precision = "float32"
    unrollable = False
    layers: Mapping[str, str] = {}
    doors: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def __init__(self, path: Path, name: str, how: How) -> None:
        from tensorflow.core.protobuf import saved_model_pb2
        from tensorflow.python.saved_model import loader_impl

        self.path, self.name, self.how = path, name, how
        proto: saved_model_pb2.SavedModel = loader_impl.parse_saved_model(str(path))
        meta = graphs.served(proto.meta_graphs)
        self.tags = tuple(meta.meta_info_def.tags)
        if not how.trust:
            refuse_touching(touching(meta), name)
        found = {key: proto for key, proto in graphs.declared(meta).items() if proto.inputs and proto.outputs}
        key = _pick_signature(list(found), name, how)
        self.graph_def = graphs.reachable(meta.graph_def, [info.name for info in found[key].outputs.values()])
        self._found = [other for other in found if other != key]
        self._loaded: TracedModel | None = None
        version = meta.meta_info_def.tensorflow_version or "unknown"
        self.description = f"SavedModel, written by TensorFlow {version}"
        self.declared = graphs.signature_of(key, found[key])
        self.signature = replace(self.declared, inputs=how.narrowed(self.declared.inputs, name))

    @property
    def findings(self) -> tuple[Finding, ...]:
        others = functions.note_of_others(self._found, self.signature.name)
        return (*graphs.signs_of_state(self.graph_def), *others)

    @property
    def loaded(self) -> TracedModel:
        """The SavedModel in TensorFlow, which runs its initializers."""
        if self._loaded is None:
            import tensorflow as tf

            try:
                model = tf.saved_model.load(str(self.path), tags=list(self.tags))
            except Exception as error:  # whatever a file that is not whole makes TensorFlow raise
                raise files.cannot_be_opened(self.name, type(error).__name__, str(error)) from error
            self._loaded = functions.trace(model, self.name, replace(self.how, signature=self.signature.name))
        return self._loaded

    def predict(self, samples: SampleSet, report: Report) -> Arrays:
        return self.loaded.predict(samples, report)

    def latency(self, samples: SampleSet, report: Report) -> Latency:
        return self.loaded.latency(samples, report)

    def save(self, folder: Path, *, single_sample: bool = False) -> SavedModelDir:
        if self.signature != self.declared:  # a shape was asked for that the file does not say
            return self.loaded.save(folder, single_sample=single_sample)
        size = graphs.folder_size(self.path)
        return SavedModelDir(self.path, self.signature, size, frozen=False, tags=self.tags)


class _Lite:
    """A .tflite file as a source: LiteRT answers for it.

    Args:
        path: The file.
        name: How the person calls it.
        how: Which signature.
    """

    precision = "float32"
    unrollable = False
    layers: Mapping[str, str] = {}
    doors: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    graph_def = None
    findings: tuple[Finding, ...] = ()

    def __init__(self, path: Path, name: str, how: How) -> None:
        self.path = path
        try:
            self.session = LiteSession(path)
        except (RuntimeError, ValueError) as error:
            raise NotAModel(
                f"{name} is not a model",
                found=str(error).strip().splitlines()[0].rstrip("."),
                wanted="a .tflite file that LiteRT can load",
                cure="Was it written to its end? Convert the model again.",
            ) from error
        self.signature = replace(self.session.signature, inputs=how.narrowed(self.session.signature.inputs, name))
        if how.signature not in (None, self.signature.name):
            raise NameNotFound(
                f"{name} has no signature '{how.signature}'",
                found=self.signature.name,
                wanted="one that it has",
                cure="Leave --signature out.",
            )
        self.description = f".tflite file, {path.stat().st_size:,} bytes"

    def predict(self, samples: SampleSet, report: Report) -> Arrays:
        return self.session.predict(samples.open(), report)

    def latency(self, samples: SampleSet, report: Report) -> Latency:
        return self.session.latency(samples.open(), report)

    def save(self, folder: Path, *, single_sample: bool = False) -> SavedModelDir:
        return SavedModelDir(self.path, self.signature, self.path.stat().st_size)


def _open_keras(path: Path, name: str, how: How) -> TracedModel:
    config, version = keras_config(path, name)
    load_it = "Load it where its classes are defined, model = keras.models.load_model(...), and name the variable."
    if not how.trust and (code := sorted(set(_code_in(config)))):
        trust = "If you trust who wrote it, add --trust: its code then runs in a job, not in your kernel."
        raise InputError(
            f"{name} carries code, which loading it would run",
            found=", ".join(code),
            wanted="a file made of Keras' own layers only",
            cure=f"{load_it} {trust}" if any("." in part for part in code) else trust,
        )
    package = _keras_package(version)
    try:
        model = package.models.load_model(str(path), compile=False, safe_mode=not how.trust)
    except (TypeError, ValueError) as error:
        words = str(error).rpartition("Exception encountered: ")[2]  # what went wrong within, in Keras 3
        raise InputError(
            f"{name} cannot be loaded on its own",
            found=next(iter(words.strip().splitlines()), type(error).__name__)[:300].rstrip("."),
            wanted="a file whose every class Keras knows",
            cure=load_it,
        ) from error
    return keras.trace(model, name, how)


def _keras_package(version: str) -> Any:
    """Return the Keras that wrote a file, where it is installed."""
    if version.startswith("2"):
        try:
            import tf_keras

            return tf_keras
        except ImportError:
            pass
    import keras as keras_3

    return keras_3


def keras_config(path: Path, name: str) -> tuple[Any, str]:
    """Read a Keras file's configuration as data, and the version that wrote it, without building anything.

    Raises:
        NotAModel: It is broken, or holds weights only.
    """
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                config = json.loads(archive.read("config.json"))
                metadata = json.loads(archive.read("metadata.json"))
            return config, str(metadata.get("keras_version", ""))
        import h5py

        with h5py.File(path, "r") as file:
            if "model_config" not in file.attrs:
                raise NotAModel(
                    f"{name} is not a model",
                    found="weights without the model they belong to",
                    wanted="a file that holds the whole model",
                    cure="Build the model in the kernel, load these weights into it, and name its variable.",
                )
            return json.loads(file.attrs["model_config"]), str(file.attrs.get("keras_version", ""))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise NotAModel(
            f"{name} is not a model",
            found=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200].rstrip("."),
            wanted=f"a whole {path.suffix} file",
            cure="Was it written to its end? Save the model again.",
        ) from error


def _code_in(config: Any) -> Iterator[str]:
    """Name every part of a Keras configuration that is code, or that says which code to import."""
    if isinstance(config, Mapping):
        kind, module = config.get("class_name"), config.get("module")
        if kind in ("Lambda", "__lambda__", "TFSMLayer"):
            yield str(kind)
        elif isinstance(module, str) and module.partition(".")[0] not in ("keras", "tf_keras", "builtins"):
            yield f"{module}.{kind}"
        for part in config.values():
            yield from _code_in(part)
    elif isinstance(config, list):
        for part in config:
            yield from _code_in(part)


def _open_graph(path: Path, name: str, how: How) -> TracedModel:
    import tensorflow as tf

    try:
        graph_def = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError, which is not worth an import
        raise NotAModel(
            f"{name} is not a model",
            found=f"{type(error).__name__}: {error}"[:200].rstrip("."),
            wanted="a frozen GraphDef",
            cure="Is it a SavedModel? Then name its directory. Was it written to its end?",
        ) from error
    if not how.trust:
        refuse_touching(_touching(graph_def), name)
    variables = sorted({node.op for node in graph_def.node if node.op in graphs.VARIABLE_OPS})
    if variables:
        raise InputError(
            f"{name} is not frozen",
            found=f"{variables[0]} operations, whose values are elsewhere",
            wanted="a graph that holds its weights as constants",
            cure="Freeze it with its checkpoint first, or convert the SavedModel it came from.",
        )
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(graph_def, name="")
    inputs = [_tensor(graph, each, name) for each in how.inputs or _placeholders(graph_def)]
    outputs = [_tensor(graph, each, name) for each in how.outputs or _ends_of(graph_def)]

    def run(*flat: Any) -> dict[str, Any]:
        feeds = {tensor.name: given for tensor, given in zip(inputs, flat, strict=True)}
        wanted = [tensor.name for tensor in outputs]
        found = tf.graph_util.import_graph_def(graph_def, input_map=feeds, return_elements=wanted, name="")
        return dict(zip(_names_of(outputs), found, strict=True))

    function = tf.function(run, autograph=False).get_concrete_function(
        *(
            tf.TensorSpec(tensor.shape, tensor.dtype, name=called)
            for tensor, called in zip(inputs, _names_of(inputs), strict=True)
        )
    )
    return replace(functions.trace(function, name, how), description=f"frozen graph, {len(graph_def.node):,} nodes")


def _names_of(tensors: Sequence[Any]) -> list[str]:
    """Name tensors after their operations, and by number where an operation gives several of them."""
    names = [tensor.op.name for tensor in tensors]
    return [
        name if names.count(name) == 1 else tensor.name.replace(":", "_")
        for name, tensor in zip(names, tensors, strict=True)
    ]


def _placeholders(graph_def: Any) -> Iterator[str]:
    return (node.name for node in graph_def.node if node.op == "Placeholder")


def _ends_of(graph_def: Any) -> Iterator[str]:
    """Yield the nodes whose answers no other node takes."""
    taken = {each.lstrip("^").partition(":")[0] for node in graph_def.node for each in node.input}
    for node in graph_def.node:
        if node.name not in taken and node.op not in ("NoOp", "Placeholder", "Const", "Assert"):
            yield node.name


def _tensor(graph: Any, each: str, name: str) -> Any:
    try:
        return graph.get_tensor_by_name(each if ":" in each else f"{each}:0")
    except (KeyError, ValueError) as error:
        names = [operation.name for operation in graph.get_operations() if operation.type != "Const"]
        raise NameNotFound(
            f"{name} has no tensor '{each}'",
            found=", ".join(names[:3] + ["…"] * (len(names) > 6) + names[-3:] if len(names) > 6 else names),
            wanted="the names of its input and output tensors",
            cure="Choose with --inputs A,B --outputs C.",
        ) from error


def touching(meta: Any) -> list[str]:
    """Return the operations of a SavedModel's graph that touch the machine it runs on.

    Those count that loading it or asking any of its signatures runs; what saves it again does not.
    """
    assets = {info.tensor_info.name.partition(":")[0] for info in meta.asset_file_def}
    for info in meta.asset_file_def:
        path = PurePosixPath(info.filename)
        if path.is_absolute() or ".." in path.parts:
            assets.clear()
    run = [output.name for proto in meta.signature_def.values() for output in proto.outputs.values()]
    for key in ("saved_model_main_op", "main_op", "legacy_init_op", "table_initializer"):
        run += meta.collection_def[key].node_list.value if key in meta.collection_def else []
    run += _initializers_of_local_variables(meta)
    called = [*meta.object_graph_def.concrete_functions]  # loading in TensorFlow 2 looks there, not at the signatures
    found = _touching(graphs.reachable(meta.graph_def, run, called), assets)
    # The converter runs whatever is said to restore the variables.
    restoring = graphs.reachable(meta.graph_def, [meta.saver_def.restore_op_name])
    return sorted({*found, *_touching(restoring, assets)} - _RESTORES | (set(found) & _RESTORES))


def _initializers_of_local_variables(meta: Any) -> list[str]:
    from tensorflow.core.framework import variable_pb2

    if "local_variables" not in meta.collection_def:
        return []
    found = meta.collection_def["local_variables"].bytes_list.value
    return [variable_pb2.VariableDef.FromString(each).initializer_name for each in found]


def _touching(graph_def: Any, assets: Set[str] = frozenset()) -> list[str]:
    found = {node.op for node in graph_def.node if _touches(node, assets)}
    for function in graph_def.library.function:
        arguments = {argument.name for argument in function.signature.input_arg} if assets else set()
        found |= {node.op for node in function.node_def if _touches(node, arguments)}
    return sorted(found)


def _touches(node: Any, files_of_its_own: Set[str]) -> bool:
    """Whether running a node can do more than compute.

    Args:
        node: A node of a graph or function.
        files_of_its_own: Tensors that may say which file of the SavedModel a table is read from.
    """
    from tensorflow.python.framework import op_def_registry

    if node.op in ("InitializeTableFromTextFile", "InitializeTableFromTextFileV2"):
        return node.input[1].partition(":")[0] not in files_of_its_own
    if node.op == "PrintV2":  # it can also write to a file
        return not re.fullmatch(r"|stdout|stderr|log\(\w+\)", node.attr["output_stream"].s.decode(errors="replace"))
    if _READS.fullmatch(node.op):
        return True
    # An operation that is not registered is a call of a function, or cannot run.
    known = op_def_registry.get(node.op)
    return known is not None and known.is_stateful and not _ONLY_STATE.fullmatch(node.op)


def refuse_touching(found: Sequence[str], name: str) -> None:
    """Refuse a model that holds operations which touch the machine, by these names.

    Raises:
        InputError: There are any.
    """
    if found:
        raise InputError(
            f"{name} touches the machine it runs on",
            found=", ".join(found),
            wanted="a model that only computes",
            cure="If you trust who wrote it, add --trust.",
        )


def _pick_signature(found: list[str], name: str, how: How) -> str:
    default = DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in found else found[0] if len(found) == 1 else None
    wanted = how.signature or default
    if wanted in found:
        return str(wanted)
    raise NameNotFound(
        f"{name} has no signature '{wanted}'" if wanted else f"{name} has several signatures",
        found=", ".join(sorted(found)) or "no signatures at all",
        wanted="one of them" if found else "a SavedModel that says how it is called",
        cure=f"Choose: --signature {sorted(found)[0]}"
        if found
        else "Load it in the kernel, and name one function of it.",
    )


_OPENERS: dict[str, Any] = {"saved_model": _SavedModel, "keras": _open_keras, "graph": _open_graph, "lite": _Lite}
