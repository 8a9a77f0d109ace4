"""What a model's variables say before anything is converted, whatever kind of model holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.errors import ModelNotReady


def check_finite(variables: Iterable[Any], name: str) -> None:
    """Refuse a model whose training diverged.

    Raises:
        ModelNotReady: A weight is NaN or infinite.
    """
    import tensorflow as tf

    for variable in variables:
        # In numpy: what TensorFlow computes stays in its own memory pool, the size of the largest weight.
        if tf.as_dtype(variable.dtype).is_floating and not np.isfinite(variable.numpy()).all():
            raise ModelNotReady(
                f"{name} has weights that are not finite",
                found=f"NaN or infinity in {path_of(variable)}",
                wanted="finite weights",
                cure="The training diverged: lower the learning rate and train again, or reload good weights.",
            )


def signs_of_no_training(variables: Sequence[Any]) -> Iterator[Finding]:
    """Find a model that nobody has trained: biases and batch-norm means start at zero and leave it at once."""
    shifts = [v for v in variables if path_of(v).rsplit("/", 1)[-1] in ("bias", "beta", "moving_mean")]
    if shifts and not any(np.any(variable) for variable in shifts):
        yield Finding(
            "error",
            "untrained",
            f"all {len(shifts)} biases and batch-norm means are still exactly zero: this model looks untrained",
            "Train it, or load its weights, before you convert it.",
        )


def digest(variables: Iterable[Any]) -> hashlib._Hash:
    """Return a running SHA-256 over the values of variables or tensors as they are now: training changes it."""
    running = hashlib.sha256()
    for variable in variables:
        value = np.ascontiguousarray(variable.numpy())
        running.update(f"{value.dtype}{value.shape}".encode())
        # Texts are an array of pointers.
        running.update(
            repr(value.tolist()).encode() if value.dtype == object else value.reshape(-1).view(np.uint8).data
        )
    return running


def path_of(variable: Any) -> str:
    """Return "dense/bias", which Keras 3 calls its path and TensorFlow its name."""
    return str(getattr(variable, "path", None) or variable.name.partition(":")[0])
