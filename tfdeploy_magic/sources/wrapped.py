"""What a person adds to a model for serving: functions beside it, and code that runs before and after it."""

from __future__ import annotations

import inspect
import itertools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, Signature, TensorSpec
from tfdeploy_magic.errors import InputError, ModelNotReady, UserCodeError
from tfdeploy_magic.sources import functions, graphs, keras
from tfdeploy_magic.sources.how import How
from tfdeploy_magic.sources.samples import fits
from tfdeploy_magic.sources.traced import TracedModel

_PYTHON = ("PyFunc", "PyFuncStateless", "EagerPyFunc")
"""Operations that call back into the process that traced them."""

_WITH_TF = "Write it with tf.* operations, which run in a server too; its own traceback follows."


def beside(function: Any, specs: Sequence[TensorSpec], key: str, input_spec: str | None = None) -> TracedModel:
    """Trace a function of a model's tensors as a signature of its own.

    Args:
        function: A ``tf.function``, a Keras model, or Python made of TensorFlow's operations.
        specs: What it is given when it does not say itself: one tensor for each, or all as a dict where it takes
            fewer arguments than there are.
        key: The signature's name.
        input_spec: Shapes to fix of what it takes, as ``--input-spec`` says them.

    Raises:
        UserCodeError: It does not run as a graph.
    """
    how = How(input_spec=input_spec)
    if keras.matches(function):
        model = keras.trace(function, key, how)
    else:
        concrete = _concrete(function, _arguments(function, specs), key)
        model = functions.trace(concrete, key, how)
        if inspect.isroutine(function):  # Python answers for itself: tracing may have frozen what should vary
            model = replace(model, call=_eager(function, concrete))
        model = replace(model, trackables=tuple(_owners(function)))
    refuse_python(model, key)
    return replace(model, signature=replace(model.signature, name=key))


def around(
    model: TracedModel,
    preprocess: Any = None,
    postprocess: Any = None,
    input_spec: str | None = None,
) -> TracedModel:
    """Put a person's code before and after a model.

    Args:
        model: What it surrounds.
        preprocess: Turns raw tensors into what the model takes: a tensor, or a dict by the names of its inputs.
        postprocess: Takes the model's answer, a dict by name where it has several, and gives a tensor or a dict.
        input_spec: What ``preprocess`` takes, as ``--input-spec`` says it, unless it has an ``input_signature``.

    Raises:
        InputError: What one gives is not what the next takes, or it is not known what ``preprocess`` takes.
        UserCodeError: One of them does not run as a graph.
    """
    stages = [model]
    if preprocess is not None:
        stages.insert(0, beside(preprocess, _raw_specs(preprocess, input_spec), "preprocess", input_spec))
    if postprocess is not None:
        stages.append(beside(postprocess, model.signature.outputs, "postprocess"))
    for before, after in itertools.pairwise(stages):
        _matched(before.signature.outputs, after.signature.inputs, model.name)

    def through(flat: Any, ask: Callable[[TracedModel, list[Any]], Any]) -> list[Any]:
        for place, stage in enumerate(stages):
            if place:
                taken = stages[place - 1].signature.outputs
                order = _matched(taken, stage.signature.inputs, model.name)
                flat = [_cast(flat[at], spec) for at, spec in zip(order, stage.signature.inputs, strict=True)]
            flat = ask(stage, list(flat))
        return list(flat)

    names = [spec.name for spec in stages[-1].signature.outputs]

    def inference(*flat: Any) -> dict[str, Any]:
        return dict(zip(names, through(flat, lambda stage, given: stage.function(*given)), strict=True))

    def call(flat: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        return through(flat, lambda stage, given: stage.call([np.asarray(each) for each in given]))

    traced = functions.trace(_concrete(inference, _tf_specs(stages[0].signature.inputs), model.name), model.name, How())
    # Tracing sorts the names of a dict; what answers eagerly keeps its own order.
    order = [names.index(spec.name) for spec in traced.signature.outputs]
    return replace(
        model,
        signature=Signature(model.signature.name, traced.signature.inputs, traced.signature.outputs),
        function=traced.function,
        call=lambda flat: [call(flat)[at] for at in order],
        findings=tuple(dict.fromkeys(finding for stage in stages for finding in stage.findings)),
        trackables=tuple(owner for stage in stages for owner in stage.trackables),
    )


def refuse_python(model: TracedModel, called: str) -> None:
    """Refuse a graph that calls back into this process: no other process could run it.

    Raises:
        ModelNotReady: It does.
    """
    if found := sorted({node.op for node in graphs.nodes(model.graph_def) if node.op in _PYTHON}):
        raise ModelNotReady(
            f"{called} runs Python that only this kernel has",
            found=f"{', '.join(found)}: tf.py_function or tf.numpy_function",
            wanted="TensorFlow's operations, which a server has too",
            cure="Write that part with tf.* operations.",
        )


def _concrete(function: Any, arguments: Sequence[Any], called: str) -> Any:
    import tensorflow as tf

    if isinstance(function, tf.types.experimental.ConcreteFunction):
        return function
    try:
        if getattr(function, "input_signature", None) is not None:
            return function.get_concrete_function()
        if not isinstance(function, tf.types.experimental.PolymorphicFunction):
            function = tf.function(function)
        return function.get_concrete_function(*arguments)
    except Exception as error:
        # What the person's code raised stands last: TensorFlow puts where it was before it.
        said = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), "no message")
        raise UserCodeError(
            f"{called} cannot be traced",
            found=f"{type(error).__name__}: {said.removeprefix(f'{type(error).__name__}: ')[:300]}".rstrip("."),
            wanted="a function that runs as a graph",
            cure=_WITH_TF,
        ) from error


def _arguments(function: Any, specs: Sequence[TensorSpec]) -> list[Any]:
    """Return what a function is traced with: a tensor for each input, or one dict of all."""
    given = _tf_specs(specs)
    try:
        taken = inspect.signature(getattr(function, "python_function", function)).parameters.values()
    except (TypeError, ValueError):
        return given
    needed = [each for each in taken if each.kind is not each.KEYWORD_ONLY and each.default is each.empty]
    if len(given) > 1 and len(needed) == 1 and needed[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        return [{spec.name: each for spec, each in zip(specs, given, strict=True)}]
    return given


def _tf_specs(specs: Sequence[TensorSpec]) -> list[Any]:
    import tensorflow as tf

    return [tf.TensorSpec(graphs.tf_shape(spec.shape), spec.dtype, name=spec.name or None) for spec in specs]


def _eager(function: Any, concrete: Any) -> Callable[[list[npt.NDArray[Any]]], list[npt.NDArray[Any]]]:
    import tensorflow as tf

    def call(flat: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        tensors = [tf.convert_to_tensor(array) for array in flat]
        args, kwargs = tf.nest.pack_sequence_as(concrete.structured_input_signature, tensors)
        return [graphs.array_of(answer) for _, answer in functions.leaves(function(*args, **kwargs))]

    return call


def _raw_specs(preprocess: Any, input_spec: str | None) -> tuple[TensorSpec, ...]:
    asked = How(input_spec=input_spec).asked_inputs()
    own = getattr(preprocess, "input_signature", None) or getattr(preprocess, "structured_input_signature", None)
    if own is None and not asked and not keras.matches(preprocess):
        raise ModelNotReady(
            "preprocess does not say what it takes",
            found="a function without an input_signature",
            wanted="the shape and dtype of the raw input",
            cure="Say them: --input-spec ?x28x28:uint8, where ? is the batch and string is a dtype too.",
        )
    return tuple(replace(spec, dtype=spec.dtype or "float32") for spec in asked)


def _owners(function: Any) -> Iterator[Any]:
    """Yield what a function refers to from outside that may own a table: in a notebook such things are global."""
    import tensorflow as tf

    seen: set[int] = set()
    waiting, notebook = [function], None
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, tf.__internal__.tracking.Trackable):
            yield each
        routine = getattr(each, "python_function", each)
        if isinstance(routine, types.MethodType):
            waiting.append(routine.__self__)
            routine = routine.__func__
        if isinstance(routine, types.FunctionType) and notebook in (None, routine.__module__):
            notebook = routine.__module__
            used = inspect.getclosurevars(routine)
            waiting += [*used.nonlocals.values(), *used.globals.values()]


def _matched(given: Sequence[TensorSpec], taken: Sequence[TensorSpec], name: str) -> list[int]:
    """Return the place of what each input takes among what is given: by name, or else in order."""
    places: Mapping[str, int] = {spec.name: place for place, spec in enumerate(given)}
    if all(spec.name in places for spec in taken):
        order = [places[spec.name] for spec in taken]
    elif len(given) == len(taken):
        order = list(range(len(taken)))
    else:
        raise _unfit(given, taken, name)
    for place, spec in zip(order, taken, strict=True):
        rank_known = UNKNOWN_RANK not in (given[place].shape, spec.shape)
        if rank_known and not fits(given[place].shape, spec.shape):
            raise _unfit(given, taken, name)
        floats = "float" in spec.dtype and not given[place].is_text
        if given[place].dtype != spec.dtype and not floats:
            raise _unfit(given, taken, name)
    return order


def _cast(tensor: Any, spec: TensorSpec) -> Any:
    """Return a tensor as an input takes it: Keras, too, takes any number where it wants a float."""
    import tensorflow as tf

    tensor = tf.cast(tensor, spec.dtype) if tensor.dtype != spec.dtype and not spec.is_text else tensor
    return tf.ensure_shape(tensor, graphs.tf_shape(spec.shape))


def _unfit(given: Sequence[TensorSpec], taken: Sequence[TensorSpec], name: str) -> InputError:
    return InputError(
        f"preprocess or postprocess does not go with {name}",
        found=", ".join(map(str, given)),
        wanted=", ".join(map(str, taken)),
        cure="Give tensors of that shape and dtype; several of them as a dict by these names.",
    )
