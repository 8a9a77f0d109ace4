"""Keras 3 models: Sequential, functional, and subclassed ones that have been called."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.signature import Signature, TensorSpec
from tfdeploy_magic.errors import ModelNotReady, NameNotFound, UserCodeError
from tfdeploy_magic.sources.naming import describe
from tfdeploy_magic.sources.traced import TracedModel

SIGNATURE_NAME = "serving_default"


def matches(value: object) -> bool:
    """Whether ``value`` is a Keras 3 model; false while nobody has imported Keras."""
    keras = sys.modules.get("keras")
    model_class = getattr(keras, "Model", None)
    return isinstance(model_class, type) and isinstance(value, model_class)


def input_specs(model: Any, name: str) -> tuple[TensorSpec, ...]:
    """Return what the model takes, under the names that ``model.export`` gives its inputs."""
    specs = _flatten(_input_structure(model, name))
    # export() opens every batch dimension; one that the model fixes on purpose stays fixed here.
    batches = [tensor.shape[0] for tensor in getattr(model, "inputs", None) or ()] or [None] * len(specs)
    return tuple(
        TensorSpec(spec.name or f"args_{position}", (batch, *spec.shape[1:]), str(spec.dtype))
        for position, (spec, batch) in enumerate(zip(specs, batches, strict=True))
    )


def trace(model: Any, name: str, signature: str | None) -> TracedModel:
    """Trace the model for inference, its batch size left open unless the model fixes it."""
    import tensorflow as tf

    structure = _input_structure(model, name)
    inputs = input_specs(model, name)
    if signature not in (None, SIGNATURE_NAME):
        raise NameNotFound(
            f"{name} has no signature '{signature}'",
            found=f"a Keras model, whose only one is '{SIGNATURE_NAME}'",
            wanted="one that it has",
            cure="Leave --signature out.",
        )
    _check_weights(model, name)
    output_names: list[str] = []

    def inference(*flat: Any) -> list[Any]:
        outputs = model(*_pack(structure, flat), training=False)
        output_names[:] = _output_names(outputs)
        return _flatten(outputs)

    try:
        function = tf.function(inference, autograph=False).get_concrete_function(
            *(tf.TensorSpec(spec.shape, spec.dtype, name=spec.name) for spec in inputs)
        )
    except Exception as error:
        raise UserCodeError(
            f"{name} cannot be traced",
            found=f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no message')}",
            wanted="a call() that runs as a graph",
            cure="Its own traceback follows.",
        ) from error
    outputs = tuple(
        TensorSpec(output, tuple(tensor.shape), tensor.dtype.name)
        for output, tensor in zip(output_names, function.outputs, strict=True)
    )

    def call(flat: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        answer = model(*_pack(structure, [tf.convert_to_tensor(array) for array in flat]), training=False)
        return [np.asarray(output) for output in _flatten(answer)]

    return TracedModel(
        name=name,
        description=f"{type(model).__name__}, {model.count_params():,} parameters",
        signature=Signature(SIGNATURE_NAME, inputs, outputs),
        function=function,
        call=call,
        findings=tuple(_signs_of_no_training(model)),
    )


def _input_structure(model: Any, name: str) -> Any:
    """Return the positional arguments of the model's call, each leaf a ``keras.InputSpec``."""
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
        return get_input_signature(model)
    except ValueError as error:
        raise ModelNotReady(
            f"{name} is not built",
            found=f"{describe(model)} that does not know its input shape",
            wanted="a model that has been called or built",
            cure=f"Call it once on data: {name}(x[:1]), or start it with keras.Input(shape=...).",
        ) from error


def _flatten(structure: Any) -> list[Any]:
    import keras

    return list(keras.tree.flatten(structure))


def _pack(structure: Any, flat: Iterable[Any]) -> Any:
    import keras

    return keras.tree.pack_sequence_as(structure, list(flat))


def _output_names(outputs: Any) -> list[str]:
    """Name outputs as ``model.export`` does: by key when the model returns a dict, else by position."""
    if isinstance(outputs, dict):
        return [str(key) for key in sorted(outputs)]
    return [f"output_{position}" for position in range(len(_flatten(outputs)))]


def _check_weights(model: Any, name: str) -> None:
    import tensorflow as tf

    for variable in model.variables:
        if tf.as_dtype(variable.dtype).is_floating and not bool(tf.reduce_all(tf.math.is_finite(variable.value))):
            raise ModelNotReady(
                f"{name} has weights that are not finite",
                found=f"NaN or infinity in {variable.path}",
                wanted="finite weights",
                cure="The training diverged: lower the learning rate and train again, or reload good weights.",
            )


def _signs_of_no_training(model: Any) -> Iterable[Finding]:
    shifts = [v for v in model.variables if v.path.rsplit("/", 1)[-1] in ("bias", "beta", "moving_mean")]
    if shifts and not any(np.any(variable) for variable in shifts):
        yield Finding(
            "error",
            "untrained",
            f"all {len(shifts)} biases and batch-norm means are still exactly zero: this model looks untrained",
            "Train it, or load its weights, before you convert it.",
        )
