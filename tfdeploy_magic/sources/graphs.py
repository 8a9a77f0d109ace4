"""TensorFlow graphs as protocol buffers: writing them as SavedModels, and telling one from another."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.models import SavedModelDir
from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, Signature, TensorSpec
from tfdeploy_magic.errors import NotAModel

VARIABLE_OPS = frozenset(("VarHandleOp", "VariableV2", "Variable"))
"""Operations of a graph that stand for a variable, whose value is elsewhere."""

_DRAWS = re.compile(
    r"Random(Uniform|UniformInt|StandardNormal|Gamma|Poisson|PoissonV2|Shuffle|Crop)|TruncatedNormal"
    r"|ParameterizedTruncatedNormal|Multinomial|NonDeterministicInts|Stateful(Uniform|StandardNormal|Truncated|Random).*"
)
"""Operations that answer anew each time, a fixed seed or not; those called stateless repeat their answer."""


def save_frozen(function: Any, signature: Signature, folder: Path, *, single_sample: bool) -> SavedModelDir:
    """Freeze a function's weights into its graph and write that as one ``saved_model.pb``.

    Args:
        function: A ``tf.ConcreteFunction`` with flat inputs and outputs in the signature's order.
        signature: What they are called.
        folder: Made when missing.
        single_sample: Fix the first dimension of every input at 1.
    """
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.framework import convert_to_constants

    # TFLiteConverter freezes with the same call; control flow stays functional, as its MLIR passes want it.
    frozen, graph_def = convert_to_constants.convert_variables_to_constants_v2_as_graph(
        function, lower_control_flow=False
    )
    named = Signature(
        signature.name,
        tuple(replace(s, tensor=t.name) for s, t in zip(signature.inputs, frozen.inputs, strict=True)),
        tuple(replace(s, tensor=t.name) for s, t in zip(signature.outputs, frozen.outputs, strict=True)),
    )
    if single_sample:
        named = _one_sample(graph_def, named)
    proto = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    meta = proto.meta_graphs.add()
    meta.meta_info_def.tags.append("serve")
    meta.graph_def.CopyFrom(graph_def)
    _write_signature(meta.signature_def[named.name], named)
    folder.mkdir(parents=True, exist_ok=True)
    content = proto.SerializeToString()
    (folder / "saved_model.pb").write_bytes(content)
    return SavedModelDir(folder, named, len(content))


def save_signatures(functions: Sequence[tuple[Any, Signature]], trackables: Sequence[Any], folder: Path) -> int:
    """Write functions as the signatures of one SavedModel, what they share once, and return its bytes.

    ``tf.saved_model.save`` of a Keras 3 model itself would lose the variables (TFLiteConverter then answers NaN):
    here a plain module holds the variables TensorFlow's own way.

    Args:
        functions: Each ``tf.ConcreteFunction`` with flat inputs and outputs, and what they are called.
        trackables: What owns their tables and other resources.
        folder: Made when missing.
    """
    import tensorflow as tf

    def named(function: Any, signature: Signature) -> Any:
        def by_name(*flat: Any) -> dict[str, Any]:
            return dict(zip((spec.name for spec in signature.outputs), function(*flat), strict=True))

        specs = (tf.TensorSpec(tf_shape(spec.shape), spec.dtype, name=spec.name) for spec in signature.inputs)
        return tf.function(by_name, autograph=False).get_concrete_function(*specs)

    variables = {id(variable): variable for function, _ in functions for variable in function.graph.variables}
    holder = tf.Module()
    holder.variables_of_the_model = list(variables.values())
    holder.resources_of_the_model = _resources([function for function, _ in functions], trackables)
    signatures = {signature.name: named(function, signature) for function, signature in functions}
    tf.saved_model.save(holder, str(folder), signatures=signatures)
    return folder_size(folder)


def _resources(functions: Sequence[Any], trackables: Sequence[Any]) -> list[Any]:
    """Return what of ``trackables`` some functions use; all of them where a table of theirs is not found in there.

    A trained model held whole would bring its optimizer's variables along, twice the size of its own.
    """
    import tensorflow as tf

    used = {id(table) for function in functions for table in _tables(function)}
    if not used:
        return []
    roots = [each for each in trackables if isinstance(each, tf.__internal__.tracking.Trackable)]
    held = [part for each in roots for part in tf.train.TrackableView(each).descendants()]
    kind = tf.saved_model.experimental.TrackableResource
    found = {id(part.resource_handle): part for part in held if isinstance(part, kind)}
    return [found[handle] for handle in used] if used <= found.keys() else list(trackables)


def files_in(folder: Path) -> dict[str, int]:
    """Return the bytes of every file in a folder, by its path within."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths_in(folder)}


def paths_in(folder: Path) -> list[Path]:
    """Return every file in a folder, in order; ``rglob`` would leave out a folder that is a link."""
    found = (Path(at, name) for at, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(path for path in found if path.is_file())


def folder_size(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(files_in(folder).values())


def served(metas: Sequence[Any]) -> Any:
    """Return that graph of a SavedModel which is meant for use: the one tagged so, or the first."""
    return next((meta for meta in metas if "serve" in meta.meta_info_def.tags), metas[0])


def declared(meta: Any) -> dict[str, Any]:
    """Return the signatures of a SavedModel's graph by name, as protocol buffers, without TensorFlow's own."""
    return {name: proto for name, proto in sorted(meta.signature_def.items()) if not name.startswith("__saved_model")}


def signature_of(name: str, proto: Any) -> Signature:
    """Return what a signature's protocol buffer says; :func:`save_frozen` writes one."""
    import tensorflow as tf

    def specs(infos: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                spec, shape_of(tf.TensorShape(info.tensor_shape)), tf.as_dtype(info.dtype).name, tensor=info.name
            )
            for spec, info in sorted(infos.items())
        )

    return Signature(name, specs(proto.inputs), specs(proto.outputs))


def has_resources(function: Any) -> bool:
    """Whether a function uses tables, changes its variables or draws from a generator: freezing would lose that."""
    return bool(_tables(function)) or changes_variables(function.graph.as_graph_def())


def _tables(function: Any) -> list[Any]:
    """Return the handles of what a function uses that is no variable."""
    import tensorflow as tf

    known = {id(variable.handle) for variable in function.graph.variables}
    captured = (handle for handle, _ in function.graph.captures if handle.dtype == tf.resource)
    return [handle for handle in captured if id(handle) not in known]


def changes_variables(graph_def: Any) -> bool:
    """Whether a graph's answers depend on what it was asked before."""
    return any(node.op.startswith(("Assign", "Rng")) for node in nodes(graph_def))


def signs_of_state(graph_def: Any) -> Iterator[Finding]:
    """Find a model that remembers or draws: its answers and the file's cannot be compared one by one."""
    if changes_variables(graph_def):
        yield Finding(
            "warning",
            "stateful",
            "the model changes its own variables when it is asked, so parity was not measured: what it answers depends "
            "on what it was asked before",
            "Compare the two on a sequence of your own, each started afresh.",
        )
    if drawn := sorted({node.op for node in nodes(graph_def) if _DRAWS.fullmatch(node.op)}):
        yield Finding(
            "warning",
            "random",
            f"the model draws its answers at random ({', '.join(drawn)}), so parity was not measured: a difference "
            "means nothing",
            "Take the drawing out of the model, or draw with a fixed seed: tf.random.stateless_normal(shape, seed).",
        )


def constants(function: Any) -> list[Any]:
    """Return the tensors a function closes over: neither in its graph nor a variable."""
    import tensorflow as tf

    captured = (tensor for tensor, _ in function.graph.captures)
    return [tensor for tensor in captured if tensor.dtype not in (tf.resource, tf.variant)]


def nodes(graph_def: Any) -> Iterator[Any]:
    """Yield every node of a graph and of the functions in its library."""
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def reachable(graph_def: Any, tensors: Iterable[str], functions_too: Iterable[str] = ()) -> Any:
    """Return the part of a graph that computes some tensors: a SavedModel also holds what saves and restores it.

    Args:
        graph_def: The whole graph.
        tensors: What is computed.
        functions_too: Functions of its library that are run from elsewhere.
    """
    by_name = {node.name: node for node in graph_def.node}
    functions = {function.signature.name: function for function in graph_def.library.function}
    part = type(graph_def)()
    waiting = [_node_name(tensor) for tensor in tensors]
    seen: set[str] = set()
    called = list(functions_too)
    while waiting:
        name = waiting.pop()
        if name in seen or name not in by_name:
            continue
        seen.add(name)
        node = by_name[name]
        part.node.add().CopyFrom(node)
        waiting += [_node_name(tensor) for tensor in node.input]
        called += _functions_of(node)
    taken: set[str] = set()
    while called:
        name = called.pop()
        if name in taken or name not in functions:
            continue
        taken.add(name)
        part.library.function.add().CopyFrom(functions[name])
        called += [other for node in functions[name].node_def for other in _functions_of(node)]
    return part


def _node_name(tensor: str) -> str:
    return tensor.lstrip("^").partition(":")[0]


def _functions_of(node: Any) -> list[str]:
    return [node.op, *(called.name for attribute in node.attr.values() for called in _called(attribute))]


def canonical(graph_def: Any) -> bytes:
    """Return a graph's bytes with its nodes and functions numbered as they come.

    Their names hold counters of the process, so that the same model traced or built twice would look like two.
    """
    copy = type(graph_def)()
    copy.CopyFrom(graph_def)
    copy.ClearField("versions")
    numbered = {function.signature.name: f"f{n}" for n, function in enumerate(copy.library.function)}
    for function in copy.library.function:
        function.signature.name = numbered[function.signature.name]
        function.attr.clear()
    places = {node.name: f"n{n}" for n, node in enumerate(copy.node)}
    for node in copy.node:
        node.name = places[node.name]
        node.input[:] = [tensor.replace(_node_name(tensor), places[_node_name(tensor)], 1) for tensor in node.input]
        node.attr.pop("_user_specified_name", None)
    for node in nodes(copy):
        node.op = numbered.get(node.op, node.op)
        node.ClearField("experimental_debug_info")
        for attribute in node.attr.values():
            for called in _called(attribute):
                called.name = numbered.get(called.name, called.name)
    return bytes(copy.SerializeToString(deterministic=True))


def outputs_of(function: Any, names: Sequence[str], name: str) -> tuple[TensorSpec, ...]:
    """Return what a traced function answers.

    Args:
        function: A ``tf.ConcreteFunction`` with a flat list of outputs.
        names: What they are called.
        name: How the person calls the model.

    Raises:
        NotAModel: It answers with nothing, or with a ragged or sparse tensor.
    """
    import tensorflow as tf

    other = next((each for each in function.structured_outputs if not isinstance(each, tf.Tensor)), None)
    if other is not None or not names:
        raise NotAModel(
            f"{name} cannot be converted",
            found=f"a {type(other).__name__.removesuffix('Spec')} among its outputs" if names else "no outputs",
            wanted="a model that answers with tensors",
            cure="Return a dense tensor, .to_tensor() of a ragged one." if names else "Return what it computes.",
        )
    return tuple(
        TensorSpec(output, shape_of(tensor.shape), tensor.dtype.name)
        for output, tensor in zip(names, function.outputs, strict=True)
    )


def tables(function: Any) -> bytes:
    """Return what a function's lookup tables hold, in an order of its own."""
    import tensorflow as tf

    every = nodes(function.graph.as_graph_def())
    kinds = {(node.attr["Tin"].type, node.attr["Tout"].type) for node in every if node.op == "LookupTableFindV2"}
    found = []
    for handle in _tables(function):
        for keys, values in kinds:
            with contextlib.suppress(tf.errors.InvalidArgumentError):  # a table of other kinds
                columns = tf.raw_ops.LookupTableExportV2(table_handle=handle, Tkeys=keys, Tvalues=values)
                found.append(sorted(zip(*(column.numpy().ravel().tolist() for column in columns), strict=True)))
    return repr(found).encode()


def array_of(tensor: Any) -> npt.NDArray[Any]:
    """Return a tensor's value; texts as fixed-width bytes, which a ``.npy`` file holds without pickling."""
    array = np.asarray(tensor)
    return array.astype(np.bytes_) if array.dtype == object else array


def nbytes(variable: Any) -> int:
    """Return the size of a variable's value."""
    return int(variable.shape.num_elements() or 0) * int(variable.dtype.size)


def shape_of(shape: Any) -> tuple[int | None, ...]:
    """Return a ``tf.TensorShape`` as plain sizes."""
    return UNKNOWN_RANK if shape.rank is None else tuple(shape.as_list())


def tf_shape(shape: tuple[int | None, ...]) -> Any:
    """Return plain sizes as a shape TensorFlow takes."""
    return None if shape == UNKNOWN_RANK else shape


def _called(attribute: Any) -> list[Any]:
    # Asking for a field that is not set would set it.
    single = [attribute.func] if attribute.HasField("func") else []
    return single + (list(attribute.list.func) if attribute.HasField("list") else [])


def _one_sample(graph_def: Any, signature: Signature) -> Signature:
    doors = {spec.tensor.partition(":")[0] for spec in signature.inputs}
    for node in graph_def.node:
        if node.name in doors and node.attr["shape"].shape.dim:
            node.attr["shape"].shape.dim[0].size = 1
            node.attr.pop("_output_shapes", None)
    return replace(
        signature,
        inputs=tuple(replace(s, shape=(1, *s.shape[1:]) if s.shape else ()) for s in signature.inputs),
    )


def _write_signature(proto: Any, signature: Signature) -> None:
    import tensorflow as tf

    proto.method_name = "tensorflow/serving/predict"
    for infos, specs in ((proto.inputs, signature.inputs), (proto.outputs, signature.outputs)):
        for spec in specs:
            infos[spec.name].name = spec.tensor
            infos[spec.name].dtype = tf.as_dtype(spec.dtype).as_datatype_enum
            infos[spec.name].tensor_shape.CopyFrom(tf.TensorShape(tf_shape(spec.shape)).as_proto())
