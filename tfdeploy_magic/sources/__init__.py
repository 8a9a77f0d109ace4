"""Anything a person can have → a traced model with a signature. One module a kind."""

from __future__ import annotations

from types import ModuleType
from typing import cast

from tfdeploy_magic.artifacts.signature import TensorSpec
from tfdeploy_magic.errors import NotAModel
from tfdeploy_magic.sources import keras
from tfdeploy_magic.sources.naming import describe as describe
from tfdeploy_magic.sources.traced import TracedModel

_KINDS = (keras,)
"""Modules that offer ``matches``, ``input_specs`` and ``trace``; the first that matches is used."""


def is_model(value: object) -> bool:
    """Whether some source can trace ``value``; never imports TensorFlow or Keras."""
    return any(kind.matches(value) for kind in _KINDS)


def input_specs(value: object, name: str) -> tuple[TensorSpec, ...]:
    """Return what ``value`` takes, without tracing it.

    Raises:
        NotAModel: No source can trace it.
        ModelNotReady: It is a model, but cannot be traced yet.
    """
    return cast(tuple[TensorSpec, ...], _kind_of(value, name).input_specs(value, name))


def trace(value: object, name: str, signature: str | None = None) -> TracedModel:
    """Trace ``value`` for inference.

    Args:
        value: The model.
        name: How the person calls it.
        signature: Which of its signatures; None for the only or default one.

    Raises:
        NotAModel: No source can trace it.
        ModelNotReady: It is a model, but cannot be traced yet.
        NameNotFound: It has no such signature.
        UserCodeError: Its own code raised while being traced.
    """
    return cast(TracedModel, _kind_of(value, name).trace(value, name, signature))


def _kind_of(value: object, name: str) -> ModuleType:
    for kind in _KINDS:
        if kind.matches(value):
            return kind
    raise NotAModel(
        f"{name} is not a model",
        found=describe(value),
        wanted="a Keras model",
        cure="Name the variable that holds it.",
    )
