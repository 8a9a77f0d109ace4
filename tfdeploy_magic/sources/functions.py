"""TensorFlow's own callables: ``tf.function``, concrete functions, ``tf.Module``, and loaded SavedModels."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.signature import DEFAULT_SIGNATURE, Signature, TensorSpec
from tfdeploy_magic.errors import ModelNotReady, NameNotFound, NotAModel, UserCodeError
from tfdeploy_magic.sources import graphs, weights
from tfdeploy_magic.sources.how import How
from tfdeploy_magic.sources.naming import describe
from tfdeploy_magic.sources.traced import TracedModel


def matches(value: object) -> bool:
    """Whether ``value`` is one of these; false while nobody has imported TensorFlow."""
    tf = sys.modules.get("tensorflow")
    if tf is None or isinstance(value, type) or not hasattr(tf, "types"):
        return False
    return _is_function(tf, value) or bool(_signatures(tf, value)) or _is_plain_module(tf, value)


def names_of_signatures(value: Any) -> list[str]:
    """Return the functions that a module or a loaded SavedModel offers by name; none of anything else."""
    import tensorflow as tf

    return [] if _is_function(tf, value) else list(_signatures(tf, value))


def input_specs(value: Any, name: str, how: How) -> tuple[TensorSpec, ...]:
    """Return what the chosen signature takes."""
    _, function = _chosen(value, name, how)
    return how.narrowed([spec for _, spec in _inputs(function)], name)


def fingerprint(value: Any, how: How) -> str | None:
    """Return None: only the graph says what a function computes."""
    return None


def trace(value: Any, name: str, how: How) -> TracedModel:
    """Trace the chosen signature with flat inputs and outputs."""
    import tensorflow as tf

    signature_name, function = _chosen(value, name, how)
    doors = _inputs(function)
    if not doors:
        raise NotAModel(
            f"{name} is not a model",
            found="no input tensors",
            wanted="a function that takes some",
            cure="What a model is asked must be an argument of its function, or a placeholder of its graph.",
        )
    inputs = how.narrowed([spec for _, spec in doors], name)
    arguments = function.structured_input_signature
    output_names: list[str] = []

    def call_flat(flat: Any) -> list[Any]:
        by_place = {place: tensor for (place, _), tensor in zip(doors, flat, strict=True)}
        args, kwargs = _filled(arguments, by_place)
        answer = function(*args, **kwargs)
        found = list(leaves(answer))
        output_names[:] = [path for path, _ in found]
        return [leaf for _, leaf in found]

    def inference(*flat: Any) -> list[Any]:
        return call_flat(flat)

    try:
        traced = tf.function(inference, autograph=False).get_concrete_function(
            *(tf.TensorSpec(graphs.tf_shape(spec.shape), spec.dtype, name=_scope(spec.name)) for spec in inputs)
        )
    except Exception as error:
        raise UserCodeError(
            f"{name} cannot be traced",
            found=f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}".rstrip("."),
            wanted="a function that runs as a graph",
            cure="Its own traceback follows.",
        ) from error
    outputs = graphs.outputs_of(traced, output_names, name)

    def call(flat: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        return [graphs.array_of(output) for output in call_flat([tf.convert_to_tensor(array) for array in flat])]

    others = [] if _is_function(tf, value) else [n for n in _signatures(tf, value) if n != signature_name]
    variables = traced.graph.variables
    weights.check_finite(variables, name)
    parameters = sum(int(variable.shape.num_elements() or 0) for variable in variables)
    return TracedModel(
        name=name,
        description=f"{_kind(tf, value)}, {parameters:,} parameters",
        signature=Signature(signature_name, inputs, outputs),
        function=traced,
        call=call,
        findings=(
            *weights.signs_of_no_training(variables),
            *graphs.signs_of_state(traced.graph.as_graph_def()),
            *note_of_others(others, signature_name),
        ),
        trackables=(value,) if isinstance(value, tf.__internal__.tracking.AutoTrackable) else (),
    )


def _kind(tf: Any, value: Any) -> str:
    if isinstance(value, tf.Module):
        return type(value).__name__
    if isinstance(value, tf.types.experimental.ConcreteFunction):
        return "concrete function"
    return "tf.function" if _is_function(tf, value) else "SavedModel"


def _is_function(tf: Any, value: Any) -> bool:
    kinds = tf.types.experimental
    return isinstance(value, kinds.ConcreteFunction | kinds.PolymorphicFunction)


def _is_plain_module(tf: Any, value: Any) -> bool:
    ours = type(value).__module__.partition(".")[0] != "tensorflow"
    return isinstance(value, tf.Module) and ours and callable(value) and not _is_kerass(value)


def _is_kerass(value: Any) -> bool:
    """Whether it is a part of a Keras model: a layer or an optimizer, the person's own ones too."""
    return any(base.__module__.partition(".")[0] in ("keras", "tf_keras") for base in type(value).__mro__)


def _signatures(tf: Any, value: Any) -> dict[str, Any]:
    """Return the named functions of a module or a loaded SavedModel."""
    if not isinstance(value, tf.__internal__.tracking.AutoTrackable):
        return {}
    if isinstance(loaded := getattr(value, "signatures", None), Mapping) and loaded:
        return dict(loaded)
    if _is_kerass(value):
        return {}
    names = [n for n in dir(type(value)) if not n.startswith("_")]
    names += [n for n in vars(value) if not n.startswith("_")]
    # Looked up without running properties: a person's may do anything, and tf.Module's own take long.
    functions = [n for n in dict.fromkeys(names) if _is_function(tf, inspect.getattr_static(value, n, None))]
    found = {n: getattr(value, n) for n in functions}
    if _is_function(tf, getattr(value, "__call__", None)):  # noqa: B004  (the attribute, and not whether it is there)
        found = {DEFAULT_SIGNATURE: value.__call__, **found}
    return found


def _chosen(value: Any, name: str, how: How) -> tuple[str, Any]:
    """Return the name and the concrete function that ``how`` asks for."""
    import tensorflow as tf

    if _is_function(tf, value):
        if how.signature not in (None, DEFAULT_SIGNATURE):
            raise NameNotFound(
                f"{name} has no signature '{how.signature}'",
                found="one function",
                wanted="a signature that it has",
                cure="Leave --signature out.",
            )
        return DEFAULT_SIGNATURE, _concrete(tf, value, name, how)
    found = _signatures(tf, value)
    if not found:
        return DEFAULT_SIGNATURE, _concrete(tf, tf.function(value), name, how)
    wanted = how.signature or (
        DEFAULT_SIGNATURE if DEFAULT_SIGNATURE in found else next(iter(found)) if len(found) == 1 else None
    )
    if wanted is None:
        raise NameNotFound(
            f"{name} has several signatures",
            found=", ".join(found),
            wanted="one of them",
            cure=f"Choose: --signature {next(iter(found))}",
        )
    if wanted not in found:
        raise NameNotFound(
            f"{name} has no signature '{wanted}'",
            found=", ".join(found),
            wanted="one that it has",
            cure=f"Try --signature {next(iter(found))}.",
        )
    return wanted, _concrete(tf, found[wanted], name, how)


def _concrete(tf: Any, function: Any, name: str, how: How) -> Any:
    if isinstance(function, tf.types.experimental.ConcreteFunction):
        return function
    asked = how.asked_inputs()
    try:
        if getattr(function, "input_signature", None) is not None or not asked:
            return function.get_concrete_function()
        specs = [tf.TensorSpec(spec.shape, spec.dtype or "float32") for spec in asked]
        named = {spec.name: given for spec, given in zip(asked, specs, strict=True) if spec.name}
        return function.get_concrete_function(
            *(given for spec, given in zip(asked, specs, strict=True) if not spec.name), **named
        )
    except Exception as error:
        if asked:
            raise UserCodeError(
                f"{name} cannot be traced",
                found=f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}".rstrip(
                    "."
                ),
                wanted=f"a function that takes {how.input_spec}",
                cure="Its own traceback follows.",
            ) from error
        raise ModelNotReady(
            f"{name} does not say what it takes",
            found=f"{describe(function)} without an input_signature",
            wanted="the shape and dtype of each input",
            cure="Say them: --input-spec ?x28x28x1:float32, where ? is the batch.",
        ) from error


def leaves(structure: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the tensors of a nested answer, each under the name it has in a signature: its key, else its place."""
    if structure is None:
        return
    if isinstance(structure, Mapping):
        for key in sorted(structure):
            yield from leaves(structure[key], f"{path}/{key}" if path else str(key))
    elif isinstance(structure, list | tuple):
        for place, part in enumerate(structure):
            yield from leaves(part, f"{path or 'output'}_{place}")
    else:
        yield path or "output_0", structure


def _inputs(function: Any) -> list[tuple[int, TensorSpec]]:
    """Return each input's place among the flattened arguments, and what it takes."""
    import tensorflow as tf

    found: list[tuple[int, TensorSpec]] = []
    for place, leaf in enumerate(tf.nest.flatten(function.structured_input_signature)):
        if isinstance(leaf, tf.TensorSpec):
            name = (leaf.name or f"args_{len(found)}").partition(":")[0]
            taken = {spec.name for _, spec in found}
            name = f"{name}_{len(found)}" if name in taken else name
            found.append((place, TensorSpec(name, graphs.shape_of(leaf.shape), leaf.dtype.name)))
    return found


def _filled(arguments: Any, by_place: Mapping[int, Any]) -> Any:
    """Return the arguments with tensors in the place of their specs."""
    import tensorflow as tf

    flat = tf.nest.flatten(arguments)
    return tf.nest.pack_sequence_as(arguments, [by_place.get(place, leaf) for place, leaf in enumerate(flat)])


def _scope(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_.-/" else "_" for letter in name)


def note_of_others(others: Sequence[str], chosen: str) -> Iterator[Finding]:
    """Note the signatures of a model that the file will not hold."""
    if others:
        yield Finding(
            "note",
            "other-signatures",
            f"the file holds signature '{chosen}' only; the model also has {', '.join(others)}",
            f"Convert another with --signature {others[0]}.",
        )
