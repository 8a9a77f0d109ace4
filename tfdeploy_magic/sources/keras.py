"""Keras models, of Keras 3 and of the older ``tf_keras``: Sequential, functional, and subclassed ones once called."""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.signature import DEFAULT_SIGNATURE, Signature, TensorSpec
from tfdeploy_magic.errors import ModelNotReady, NameNotFound, UserCodeError
from tfdeploy_magic.sources import functions, graphs, weights
from tfdeploy_magic.sources.how import How
from tfdeploy_magic.sources.naming import describe
from tfdeploy_magic.sources.traced import TracedModel


def matches(value: object) -> bool:
    """Whether ``value`` is a Keras model; false while nobody has imported Keras."""
    return _package_of(value) is not None


def input_specs(model: Any, name: str, how: How) -> tuple[TensorSpec, ...]:
    """Return what the model takes, under the names that exporting it gives its inputs."""
    specs = list(_named_inputs(_input_structure(model, name)))
    # export() opens every batch dimension; one that the model fixes on purpose stays fixed here.
    batches = [tensor.shape[0] for tensor in getattr(model, "inputs", None) or ()] or [None] * len(specs)
    found = tuple(
        TensorSpec(called, (batch, *spec.shape[1:]), _dtype_name(spec.dtype))
        for (called, spec), batch in zip(specs, batches, strict=True)
    )
    return how.narrowed(found, name)


def fingerprint(model: Any, how: How) -> str | None:
    """Return a digest of what the model computes, found without tracing it; None when only its graph can tell.

    The configuration of a functional model made of Keras' own layers says all there is besides the weights. Code of
    the person's (a Lambda, a subclass, a custom activation) can change without a trace in it.
    """
    if type(model).__name__ not in ("Sequential", "Functional", "Model") or not _is_kerass_own(type(model)):
        return None
    if any(type(layer).__name__ == "Lambda" or _holds_foreign_code(layer) for layer in _layers(model)):
        return None
    config = model.get_config()
    if _mentions_foreign_code(config):
        return None
    said = {
        "package": type(model).__module__,
        "config": config,
        # What a lookup layer has adapted to is neither in its configuration nor a variable.
        "vocabularies": [layer.get_vocabulary() for layer in _layers(model) if hasattr(layer, "get_vocabulary")],
        # And inputs are named after a counter.
        "inputs": [str(spec) for spec in input_specs(model, "model", how)],
        "how": how.to_dict(),
    }
    running = weights.digest(_variables(model))
    running.update(json.dumps(said, sort_keys=True, default=str).encode())
    return str(running.hexdigest())


def trace(model: Any, name: str, how: How) -> TracedModel:
    """Trace the model for inference in float32, its batch size left open unless the model fixes it."""
    import tensorflow as tf

    structure = _input_structure(model, name)
    inputs = input_specs(model, name, how)
    if how.signature not in (None, DEFAULT_SIGNATURE):
        raise NameNotFound(
            f"{name} has no signature '{how.signature}'",
            found=f"a Keras model, whose only one is '{DEFAULT_SIGNATURE}'",
            wanted="one that it has",
            cure="Leave --signature out.",
        )
    weights.check_finite(_variables(model), name)
    output_names: list[str] = []

    def inference(*flat: Any) -> list[Any]:
        found = _named_outputs(model, model(*_pack(model, structure, flat), training=False))
        output_names[:] = [called for called, _ in found]
        return [output for _, output in found]

    try:
        with _as_deployed(model, unroll=how.unroll):
            function = tf.function(inference, autograph=False).get_concrete_function(
                *(tf.TensorSpec(spec.shape, spec.dtype, name=spec.name) for spec in inputs)
            )
    except Exception as error:
        raise UserCodeError(
            f"{name} cannot be traced",
            found=f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}".rstrip("."),
            wanted="a call() that runs as a graph",
            cure="Its own traceback follows.",
        ) from error
    outputs = graphs.outputs_of(function, output_names, name)

    def call(flat: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        answer = model(*_pack(model, structure, [tf.convert_to_tensor(array) for array in flat]), training=False)
        return [graphs.array_of(output) for _, output in _named_outputs(model, answer)]

    precision = _precision(model)
    return TracedModel(
        name=name,
        description=f"{type(model).__name__}, {model.count_params():,} parameters",
        signature=Signature(DEFAULT_SIGNATURE, inputs, outputs),
        function=function,
        call=call,
        findings=(
            *weights.signs_of_no_training(_variables(model)),
            *graphs.signs_of_state(function.graph.as_graph_def()),
            *_cures(model, precision, how),
        ),
        layers={layer.name: f"{layer.name} ({type(layer).__name__})" for layer in _layers(model)},
        precision=precision,
        unrollable=not how.unroll and _can_unroll(model),
        trackables=(model,),
    )


def _can_unroll(model: Any) -> bool:
    """Whether every recurrent layer of the model can be unrolled: it knows how many steps it takes."""
    return bool(_recurrent(model)) and all(
        _steps(layer) is not None and not any(base.__name__ == "ConvRNN" for base in type(layer).__mro__)
        for layer in _recurrent(model)  # tf_keras never unrolls a ConvRNN
    )


def _package_of(value: object) -> Any:
    for name in ("keras", "tf_keras"):
        package = sys.modules.get(name)
        model_class = getattr(package, "Model", None)
        if isinstance(model_class, type) and isinstance(value, model_class):
            return package
    return None


def _is_keras_3(model: Any) -> bool:
    return str(getattr(_package_of(model), "__version__", "")).startswith("3")


def _is_kerass_own(code: Any) -> bool:
    return str(getattr(code, "__module__", "")).partition(".")[0] in ("keras", "tf_keras")


_ROUTINES = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def _holds_foreign_code(layer: Any) -> bool:
    """Whether a layer computes what its configuration does not say.

    A function of the person's that is named like one of Keras' own is written down as that one.
    """
    routines = [part for part in vars(layer).values() if isinstance(part, _ROUTINES)]
    return not all(map(_is_kerass_own, (type(layer), *routines))) or getattr(layer, "idf_weights", None) is not None


def _mentions_foreign_code(config: Any) -> bool:
    """Whether some part of a configuration was made by code outside Keras."""
    if isinstance(config, Mapping):
        if config.get("class_name") in ("Lambda", "__lambda__", "function"):
            return True
        module = config.get("module")
        if isinstance(module, str) and module.partition(".")[0] not in ("keras", "tf_keras", "builtins"):
            return True
        return any(_mentions_foreign_code(part) for part in config.values())
    if isinstance(config, list | tuple):
        return any(_mentions_foreign_code(part) for part in config)
    return callable(config)


def _input_structure(model: Any, name: str) -> Any:
    """Return the positional arguments of the model's call, each leaf with name, shape and dtype."""
    not_built = ModelNotReady(
        f"{name} is not built",
        found=f"{describe(model)} that does not know its input shape",
        wanted="a model that has been called or built",
        cure=f"Call it once on data: {name}(x[:1]), or start it with keras.Input(shape=...).",
    )
    if not _is_keras_3(model):
        saved = model.save_spec()
        if saved is None:
            raise not_built
        return list(saved[0])
    import keras

    # Private, and yet the one true answer: model.export() itself asks this function.
    from keras.src.export.export_utils import get_input_signature

    if keras.backend.backend() != "tensorflow":
        raise ModelNotReady(
            f"{name} cannot be traced",
            found=f"Keras on its {keras.backend.backend()} backend",
            wanted="the TensorFlow backend",
            cure='Restart the kernel and set os.environ["KERAS_BACKEND"] = "tensorflow" before importing keras.',
        )
    try:
        structure: list[Any] = get_input_signature(model)
    except ValueError as error:
        raise not_built from error
    missing = _required_arguments(model)[len(structure) :]
    if missing:
        raise ModelNotReady(
            f"{name} cannot be traced",
            found=f"a call() that also takes {', '.join(missing)}, whose shape Keras 3 does not keep",
            wanted="one argument: a tensor, or a dict or list of them",
            cure=f"Take them as one dict, or name f = tf.function(lambda a, b: {name}(a, b)) with --input-spec.",
        )
    return structure


def _required_arguments(model: Any) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [
        argument.name
        for argument in inspect.signature(model.call).parameters.values()
        if argument.kind in kinds and argument.default is argument.empty and argument.name not in ("training", "mask")
    ]


def _pack(model: Any, structure: Any, flat: Iterable[Any]) -> Any:
    if not _is_keras_3(model):
        import tensorflow as tf

        return tf.nest.pack_sequence_as(structure, list(flat))
    import keras

    return keras.tree.pack_sequence_as(structure, list(flat))


def _dtype_name(dtype: Any) -> str:
    return str(getattr(dtype, "name", dtype))


def _named_inputs(structure: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Name what each argument of the call holds as exporting does: by its own name, its key, or its place."""
    for place, argument in enumerate(structure):
        for position, (path, spec) in enumerate(functions.leaves(argument)):
            numbered = f"args_{place}_{position}" if position else f"args_{place}"
            yield spec.name or (path if isinstance(argument, Mapping) else numbered), spec


def _named_outputs(model: Any, outputs: Any) -> list[tuple[str, Any]]:
    """Name outputs as exporting does: by key when the model returns a dict, by layer in tf_keras, else by position."""
    found = list(functions.leaves(outputs))
    if isinstance(outputs, Mapping):
        return found
    names = list(getattr(model, "output_names", None) or ()) if not _is_keras_3(model) else []
    if len(set(names)) != len(found):
        names = [f"output_{position}" for position in range(len(found))]
    return [(called, output) for called, (_, output) in zip(names, found, strict=True)]


def _layers(model: Any) -> list[Any]:
    return list(model._flatten_layers(include_self=False))


def _variables(model: Any) -> list[Any]:
    # tf_keras counts lookup tables among them.
    return [variable for variable in model.variables if hasattr(variable, "dtype")]


def _recurrent(model: Any) -> list[Any]:
    return [layer for layer in _layers(model) if hasattr(layer, "unroll") and hasattr(layer, "cell")]


def _steps(layer: Any) -> int | None:
    """Return how many steps a recurrent layer takes; None where that is open."""
    config = layer.get_build_config() or {}
    shape: Any = next(iter(config.get("shapes_dict", config).values()), ())
    if shape and isinstance(shape[0], Sequence):  # tf_keras puts the shapes of initial states beside it
        shape = shape[0]
    return shape[1] if len(shape) > 1 else None


def _precision(model: Any) -> str:
    """Return the policy that the model computes in, "float32" or "mixed_bfloat16"."""
    names = {_policy_name(layer) for layer in (model, *_layers(model))}
    return next((name for name in sorted(names) if name not in ("float32", "")), "float32")


def _policy_name(layer: Any) -> str:
    policy = getattr(layer, "dtype_policy", None)
    reduced = str(getattr(policy, "compute_dtype", "")) in ("float16", "bfloat16")
    return str(policy.name) if reduced and policy is not None else "float32"


@contextlib.contextmanager
def _as_deployed(model: Any, *, unroll: bool) -> Iterator[None]:
    """Let the model compute in float32, and its loops unrolled if asked, for as long as it is traced.

    .tflite has no half-precision arithmetic. The weights of a mixed policy are float32 already, so nothing is lost;
    the model itself is as it was afterwards.
    """
    with contextlib.ExitStack() as undo:
        for layer in (model, *_layers(model)):
            if _policy_name(layer) != "float32":
                undo.callback(_set_policy, layer, layer.dtype_policy)
                _set_policy(layer, "float32")
        for layer in _recurrent(model) if unroll else ():
            # tf_keras picks its fused kernel, which never unrolls, when the layer is made.
            for attribute, value in (("unroll", True), ("_could_use_gpu_kernel", False)):
                if hasattr(layer, attribute):
                    undo.callback(setattr, layer, attribute, getattr(layer, attribute))
                    setattr(layer, attribute, value)
        yield


def _set_policy(layer: Any, policy: Any) -> None:
    if hasattr(layer, "_set_dtype_policy"):
        layer._set_dtype_policy(policy)  # tf_keras has no public setter
    else:
        layer.dtype_policy = policy


def _cures(model: Any, precision: str, how: How) -> Iterator[Finding]:
    if precision != "float32":
        yield Finding(
            "note",
            "mixed-precision",
            f"the model computes in {precision}, which .tflite does not have: the file computes in float32, "
            "with the same weights",
        )
    if own := [layer for layer in _layers(model) if not _is_kerass_own(type(layer))]:
        names = ", ".join(f"{layer.name} ({type(layer).__name__})" for layer in own[:5])
        yield Finding(
            "note",
            "own-layers",
            f"layers of your own were traced as they are; the file needs none of your code: {names}",
        )
    if how.unroll and (recurrent := _recurrent(model)):
        names = ", ".join(f"{layer.name} ({type(layer).__name__}, {_steps(layer)} steps)" for layer in recurrent)
        yield Finding(
            "note", "unrolled", f"loops were unrolled for the file, because a loop cannot be quantized: {names}"
        )
