"""Anything a person can have → a model with a signature that can be asked and saved. One module a kind."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tfdeploy_magic.artifacts.signature import TensorSpec
from tfdeploy_magic.errors import NotAModel
from tfdeploy_magic.jobs import Worker
from tfdeploy_magic.sources import files, functions, keras
from tfdeploy_magic.sources.files import StoredModel as StoredModel
from tfdeploy_magic.sources.how import How as How
from tfdeploy_magic.sources.naming import describe as describe
from tfdeploy_magic.sources.traced import TracedModel as TracedModel

_KINDS = (keras, functions)
"""Modules that offer ``matches``, ``input_specs``, ``fingerprint`` and ``trace``; the first that matches is used."""

WANTED = "a Keras model, a tf.Module or tf.function, or the path of a SavedModel, .keras, .h5, .pb or .tflite file"


@dataclass
class Source:
    """A model as a person named it; it is traced, or its file opened, when that is first needed.

    Args:
        name: How the person calls it.
        value: The model, or the path of its file.
        how: The choices they made about it.
        worker: Where a file is opened; not used for a model in this process.
        given: What they named, where that is more than the path it stands for.
    """

    name: str
    value: Any
    how: How
    worker: Worker
    given: Any = None

    @functools.cached_property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes; a model in this process is not traced for it.

        Raises:
            NotAModel: No source knows it.
            ModelNotReady: It is a model, but cannot be traced yet.
        """
        kind = _kind_of(self.value, self.name)
        if kind is files:
            return tuple(spec.as_real for spec in self.model.signature.inputs)
        specs: tuple[TensorSpec, ...] = kind.input_specs(self.value, self.name, self.how)
        return specs

    @functools.cached_property
    def model(self) -> TracedModel | StoredModel:
        """The model, traced here or opened in a job.

        Raises:
            NotAModel: No source knows it.
            ModelNotReady: It is a model, but cannot be traced yet.
            NameNotFound: It has no such signature.
            UserCodeError: Its own code raised while being traced.
        """
        kind = _kind_of(self.value, self.name)
        if kind is files:
            return files.open_file(self.value, self.name, self.how, self.worker)
        traced: TracedModel = kind.trace(self.value, self.name, self.how)
        return traced

    @functools.cached_property
    def sha256(self) -> str:
        """A digest of what it computes: graph, weights and the choices made; found without tracing where possible."""
        found = _kind_of(self.value, self.name).fingerprint(self.value, self.how)
        if found is None:
            running = hashlib.sha256(self.model.sha256().encode())
            running.update(json.dumps(self.how.to_dict(), sort_keys=True).encode())
            found = running.hexdigest()
        return str(found)

    def close(self) -> None:
        """End the process that holds a file; a model in this process is left alone."""
        self.worker.close()


def is_model(value: object) -> bool:
    """Whether ``value`` is a model in this process; never imports TensorFlow or Keras."""
    return any(kind.matches(value) for kind in _KINDS)


def open_source(value: object, name: str, how: How | None = None, worker: Worker | None = None) -> Source:
    """Return the source that ``value`` is.

    Raises:
        NotAModel: No source knows it.
    """
    given = value
    if isinstance(value, str | os.PathLike):
        value = files.path_of(os.fspath(value))
    _kind_of(value, name)
    return Source(name, value, how or How(), worker or Worker(), given)


def _kind_of(value: object, name: str) -> ModuleType:
    for kind in (files, *_KINDS):
        if kind.matches(value):
            return kind
    raise NotAModel(f"{name} is not a model", found=describe(value), wanted=WANTED, cure="Name what holds it.")
