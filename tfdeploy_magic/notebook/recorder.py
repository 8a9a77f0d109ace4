"""``tf.lite.TFLiteConverter`` recorded, not run: TensorFlow's converter can take the kernel with it.

A cell written as TensorFlow's guides write it sets attributes on a :class:`Recorder`; :func:`settings` then says what
was asked for in this package's own terms.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tfdeploy_magic.artifacts.schemes import SCHEMES, IoType, SchemeName
from tfdeploy_magic.convert.plain import to_json
from tfdeploy_magic.errors import DataError, InputError, NameNotFound, NotAModel

_NOT_SETTINGS = {
    "_funcs",
    "_trackable_obj",
    "saved_model_dir",
    "_saved_model_tags",
    "_saved_model_version",
    "_saved_model_exported_names",
    "_tflite_metrics",
    "_collected_converter_params",
    "_metadata",
    "_debug_info",
}
"""Attributes in which a converter keeps its model and its own accounts."""

_WITH_OPTIONS = {
    "optimizations",
    "target_spec.supported_ops",
    "target_spec.supported_types",
    "inference_input_type",
    "inference_output_type",
}
"""Settings that a scheme, its inputs and outputs and ``select_ops`` may express."""


class UnknownSetting(NameNotFound, AttributeError):
    """The converter has no attribute of that name; an AttributeError too, so that ``hasattr`` answers."""


class _Known:
    """An object with attributes that are known beforehand, and no others.

    Args:
        known: Its attributes and their values.
    """

    __slots__ = ("__dict__",)
    _called = "converter.target_spec"

    def __init__(self, known: Mapping[str, Any]) -> None:
        vars(self).update(known)

    def __getattr__(self, name: str) -> Any:
        raise _unknown(self._called, name, vars(self))

    def __setattr__(self, name: str, value: object) -> None:
        if name not in vars(self):
            raise _unknown(self._called, name, vars(self))
        vars(self)[name] = value


class Recorder(_Known):
    """Stands for a ``TFLiteConverter``: it has the attributes of the installed TensorFlow's, with their defaults.

    Args:
        on_convert: Makes the file when ``convert()`` is called.
        source: The model, the folder of a SavedModel, or the concrete function.
        signature_keys: The signatures asked for; None when none were named.
        trackable: Kept alive: a concrete function holds its variables weakly.
    """

    __slots__ = ("on_convert", "signature_keys", "source", "trackable")
    _called = "converter"

    on_convert: Callable[[Recorder], bytes]
    source: Any
    signature_keys: tuple[str, ...] | None
    trackable: Any

    def __init__(
        self,
        on_convert: Callable[[Recorder], bytes],
        source: Any = None,
        signature_keys: Sequence[str] | None = None,
        trackable: Any = None,
    ) -> None:
        super().__init__(_defaults())
        own = object.__setattr__
        own(self, "on_convert", on_convert)
        own(self, "source", source)
        own(self, "signature_keys", tuple(signature_keys) if signature_keys else None)
        own(self, "trackable", trackable)

    def convert(self) -> bytes:
        """Return the .tflite file as it was asked for so far."""
        return self.on_convert(self)


@dataclass(frozen=True)
class Recorded:
    """What a cell asked of its converter.

    Args:
        source: What the converter was made from; None when nothing was named.
        signature_keys: The signatures asked for; None when none were named.
        scheme: What TensorFlow's converter would make.
        io: The dtype of inputs and outputs; None when they differ or no option expresses them (then ``plain`` does).
        representative_dataset: The generator function that was given, for a scheme that is calibrated or not.
        select_ops: Whether TensorFlow operations may stay in the file.
        plain: Every setting that is not TensorFlow's default, as JSON; None when the fields above say it all.
    """

    source: Any
    signature_keys: tuple[str, ...] | None
    scheme: SchemeName
    io: IoType | None
    representative_dataset: Callable[[], Iterable[Any]] | None
    select_ops: bool
    plain: dict[str, Any] | None


@contextmanager
def recording(on_convert: Callable[[Recorder], bytes]) -> Iterator[None]:
    """Have ``tf.lite.TFLiteConverter.from_*()`` return recorders, and no other converter run, until the block ends.

    Args:
        on_convert: Makes the file when a recorder's ``convert()`` is called.
    """
    from tensorflow.lite.python import lite

    def from_keras_model(model: Any) -> Recorder:
        return Recorder(on_convert, model)

    def from_saved_model(
        saved_model_dir: str | Path, signature_keys: Sequence[str] | None = None, tags: Iterable[str] | None = None
    ) -> Recorder:
        if tags is not None and set(tags) != {"serve"}:
            raise InputError(
                f"tags={tags} cannot be converted",
                found=f"other tags for {saved_model_dir}",
                wanted="those of a model that serves, {'serve'}",
                cure="Leave tags out, or export the model for serving.",
            )
        return Recorder(on_convert, saved_model_dir, signature_keys)

    def from_concrete_functions(funcs: Sequence[Any], trackable_obj: Any = None) -> Recorder:
        if len(funcs) != 1:
            raise InputError(
                "from_concrete_functions cannot convert these",
                found=f"{len(funcs)} functions",
                wanted="one",
                cure="Convert each to a file of its own.",
            )
        return Recorder(on_convert, funcs[0], trackable=trackable_obj)

    def experimental_from_jax(serving_funcs: Any, inputs: Any) -> NoReturn:
        raise NotAModel(
            "experimental_from_jax cannot be recorded",
            found="JAX functions, by a call that TensorFlow deprecates",
            wanted="a Keras model, a SavedModel or a concrete function",
            cure="Make a tf.function with jax2tf.convert and give from_concrete_functions its concrete function.",
        )

    def run_in_the_kernel(converter: Any, *_: Any, **__: Any) -> NoReturn:
        raise InputError(
            "this converter would run in your kernel, where a crash costs all its variables",
            found=f"a {type(converter).__name__} made before the cell, by its constructor or by tf.compat.v1",
            wanted="one made in the cell by tf.lite.TFLiteConverter.from_keras_model, from_saved_model or "
            "from_concrete_functions",
            cure="Make it there.",
        )

    constructors = (from_keras_model, from_saved_model, from_concrete_functions, experimental_from_jax)
    ours: dict[tuple[type, str], Any] = {
        (lite.TFLiteConverterV2, constructor.__name__): staticmethod(constructor) for constructor in constructors
    }
    # Every convert(), TensorFlow 1's too, passes through here.
    ours[lite.TFLiteConverterBase, "_convert_and_export_metrics"] = run_in_the_kernel
    kept = {(owner, name): vars(owner)[name] for owner, name in ours}
    try:
        for (owner, name), value in ours.items():
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name), value in kept.items():
            setattr(owner, name, value)


def settings(recorder: Recorder) -> Recorded:
    """Say in this package's terms what a recorder was asked for.

    Raises:
        UnknownSetting: A target_spec has an attribute that TensorFlow does not know.
        InputError: A setting cannot leave this process, or TensorFlow would refuse or ignore it.
    """
    import tensorflow as tf

    spec = recorder.target_spec
    if not isinstance(spec, tf.lite.TargetSpec | _Known):
        raise _unusable("target_spec", spec, "a tf.lite.TargetSpec")
    optimizations = _members("optimizations", recorder.optimizations, tf.lite.Optimize, "tf.lite.Optimize.DEFAULT")
    ops = _members("target_spec.supported_ops", spec.supported_ops, tf.lite.OpsSet, "tf.lite.OpsSet.TFLITE_BUILTINS")
    types = _members("target_spec.supported_types", spec.supported_types, tf.DType, "tf.float16")
    changed = _changed(recorder)
    dataset = _generator(recorder.representative_dataset)
    scheme = _scheme(optimizations, ops, types, dataset)
    inputs, outputs = recorder.inference_input_type, recorder.inference_output_type
    io = next((name for name in SCHEMES[scheme].ios if inputs == outputs == tf.as_dtype(name)), None)
    exact = (
        _is_exactly(scheme, ops, types)
        and io is not None
        and tf.lite.Optimize.EXPERIMENTAL_SPARSITY not in optimizations
        and changed.keys() <= _WITH_OPTIONS
    )
    return Recorded(
        recorder.source,
        recorder.signature_keys,
        scheme,
        io,
        dataset,
        tf.lite.OpsSet.SELECT_TF_OPS in ops,
        None if exact else changed,
    )


def _scheme(optimizations: set[Any], ops: set[Any], types: set[Any], dataset: object) -> SchemeName:
    """Ask TensorFlow what these settings amount to."""
    import tensorflow as tf
    from tensorflow.lite.python import lite

    integer = bool(ops & {tf.lite.OpsSet.TFLITE_BUILTINS_INT8, _int16x8()}) or types == {tf.int8}
    # With no dataset TensorFlow refuses int8 and turns int16x8 into dynamic; here data may yet be found in the kernel.
    stand_in = dataset or (tuple if integer else None)
    try:
        mode = lite.QuantizationMode(optimizations, lite.TargetSpec(ops, types), stand_in, None)
    except ValueError as error:
        raise InputError(
            "TensorFlow refuses these settings",
            found=str(error).rstrip("."),
            wanted="settings that go together",
            cure="Leave target_spec.supported_types unset.",
        ) from error
    smaller = types - {tf.float32} or (integer and not mode.is_allow_float())
    if smaller and not mode.is_any_optimization_enabled():
        raise InputError(
            "converter.target_spec would be ignored",
            found="no DEFAULT in converter.optimizations, so that TensorFlow would write float32",
            wanted="both",
            cure="Add converter.optimizations = [tf.lite.Optimize.DEFAULT].",
        )
    if mode.is_post_training_int16x8_quantization():
        return "int16x8"
    if mode.is_post_training_int8_quantization():
        return "int8"
    if mode.is_post_training_dynamic_range_quantization():
        return "dynamic"
    return "float16" if mode.is_post_training_float16_quantization() else "float32"


def _is_exactly(scheme: SchemeName, ops: set[Any], types: set[Any]) -> bool:
    """Whether a scheme, with select_ops or without, says all that the operations and types do."""
    import tensorflow as tf

    builtins, int8 = tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.TFLITE_BUILTINS_INT8
    if types != ({tf.float16} if scheme == "float16" else set()):
        return False
    if scheme == "int16x8":
        return ops == {_int16x8()}  # beside others it may leave operations in float
    own = ops - {tf.lite.OpsSet.SELECT_TF_OPS}
    return own == {builtins} or (scheme == "int8" and own in ({int8}, {builtins, int8}))


def _int16x8() -> Any:
    import tensorflow as tf

    return tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8


def _defaults() -> dict[str, Any]:
    from tensorflow.lite.python import lite

    known = {name: value for name, value in vars(lite.TFLiteConverterV2([])).items() if name not in _NOT_SETTINGS}
    return known | {"target_spec": _Known(vars(known["target_spec"]))}


def _changed(recorder: Recorder) -> dict[str, Any]:
    """Return what differs from TensorFlow's defaults, "target_spec.supported_ops" -> its value as JSON."""
    defaults = _flat(_defaults())
    changed = {}
    for name, value in _flat(vars(recorder)).items():
        if name not in defaults:  # on a tf.lite.TargetSpec of the person's own
            owner, _, attribute = name.rpartition(".")
            raise _unknown(f"converter.{owner}", attribute, vars(_defaults()[owner]))
        crossed = to_json(name, value)
        if crossed != to_json(name, defaults[name]):
            changed[name] = crossed
    return changed


def _flat(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that cross into a job; the representative dataset does so as samples."""
    own = {name: value for name, value in attributes.items() if name not in ("target_spec", "representative_dataset")}
    return own | {f"target_spec.{name}": value for name, value in vars(attributes["target_spec"]).items()}


def _members(setting: str, value: Any, kind: type, example: str) -> set[Any]:
    if isinstance(value, list | tuple | set | frozenset) and all(isinstance(member, kind) for member in value):
        return set(value)
    raise _unusable(setting, value, f"a list such as [{example}]")


def _generator(value: Any) -> Callable[[], Iterable[Any]] | None:
    import tensorflow as tf

    if isinstance(value, tf.lite.RepresentativeDataset):
        value = value.input_gen
    if value is None:
        return None
    if callable(value):
        generator: Callable[[], Iterable[Any]] = value
        return generator
    raise DataError(
        "converter.representative_dataset cannot be used",
        found=f"a {type(value).__name__}",
        wanted="a function that yields samples",
        cure="Name the function, without calling it: converter.representative_dataset = representative_dataset.",
    )


def _unusable(setting: str, value: object, wanted: str) -> InputError:
    return InputError(
        f"converter.{setting} cannot be used", found=repr(value), wanted=wanted, cure=f"Set converter.{setting} to one."
    )


def _unknown(owner: str, name: str, known: Iterable[str]) -> UnknownSetting:
    near = difflib.get_close_matches(name, known, n=1)
    return UnknownSetting(
        f"{owner} has no '{name}'",
        found="nothing of that name in TensorFlow's converter",
        wanted="an attribute that it has",
        cure=f"Did you mean {near[0]}?" if near else "dir(converter) lists them.",
    )
