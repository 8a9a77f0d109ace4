"""Model Maker's ``QuantizationConfig``: code that was written for it sets up a converter here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Self, TypeVar

import numpy as np

from tfdeploy_magic.errors import DataError, InputError
from tfdeploy_magic.sources.naming import describe
from tfdeploy_magic.sources.samples import SEED, is_array, is_dataset

QUANTIZATION_STEPS = 500
"""Samples that calibrate when Model Maker's ``representative_data`` is given and their number is not."""

_Member = TypeVar("_Member", bound=Enum)


class QuantizationConfig:
    """How to quantize, in the words of Model Maker (tflite-model-maker 0.4.3); its attributes are the arguments.

    Unlike there, samples may come from any data, and whatever ``supported_ops`` are set stay set. Members of
    TensorFlow's enumerations and dtypes may be given by their names too: "TFLITE_BUILTINS_INT8", "uint8".

    Args:
        optimizations: One ``tf.lite.Optimize`` or a list of them; [DEFAULT] when None.
        representative_data: Samples: Model Maker's data (anything with its ``gen_dataset``), an array
            ``[count, ...]``, a ``tf.data`` dataset of x or (x, y), batched or not, or a generator function. Elements
            without labels are batches when their first dimension is open.
        quantization_steps: How many samples at most: the first ones, or of an array some drawn at random (seed 0). 500
            of ``representative_data`` when None, and all of ``representative_dataset``.
        inference_input_type: The dtype of the file's inputs; the converter's own when None, float32.
        inference_output_type: The dtype of its outputs; likewise.
        supported_ops: One ``tf.lite.OpsSet`` or a list of them; the converter's own when None.
        supported_types: One dtype or a list of them, of weights mostly; the converter's own when None.
        experimental_new_quantizer: Whether MLIR's quantizer does it; the converter's own choice when None.
        representative_dataset: A generator function as TensorFlow's guides write it, which Model Maker has no word for.

    Raises:
        InputError: Both kinds of samples are given, or integer operations without any; or a name that TensorFlow lacks.
        DataError: The samples are nothing that yields samples.
    """

    def __init__(
        self,
        optimizations: Any = None,
        representative_data: Any = None,
        quantization_steps: int | None = None,
        inference_input_type: Any = None,
        inference_output_type: Any = None,
        supported_ops: Any = None,
        supported_types: Any = None,
        experimental_new_quantizer: bool | None = None,
        representative_dataset: Callable[[], Iterable[Any]] | None = None,
    ) -> None:
        import tensorflow as tf

        self.optimizations = _members(["DEFAULT"] if optimizations is None else optimizations, tf.lite.Optimize)
        self.representative_data = representative_data
        # TensorFlow's own wrapper of such a function is of no use to anyone.
        self.representative_dataset = getattr(representative_dataset, "input_gen", representative_dataset)
        self.quantization_steps = quantization_steps
        self.inference_input_type = _dtype(inference_input_type)
        self.inference_output_type = _dtype(inference_output_type)
        self.supported_ops = None if supported_ops is None else _members(supported_ops, tf.lite.OpsSet)
        self.supported_types = None if supported_types is None else [_dtype(name) for name in _listed(supported_types)]
        self.experimental_new_quantizer = experimental_new_quantizer
        if representative_data is not None and quantization_steps is None:
            self.quantization_steps = QUANTIZATION_STEPS
        self._check_samples()

    @classmethod
    def for_dynamic(cls) -> Self:
        """Store weights in 8 bits and quantize activations as they come."""
        return cls()

    @classmethod
    def for_float16(cls) -> Self:
        """Store weights as 16-bit floating point."""
        return cls(supported_types=["float16"])

    @classmethod
    def for_int8(
        cls,
        representative_data: Any = None,
        quantization_steps: int | None = QUANTIZATION_STEPS,
        inference_input_type: Any = "uint8",
        inference_output_type: Any = "uint8",
        supported_ops: Any = "TFLITE_BUILTINS_INT8",
        *,
        representative_dataset: Callable[[], Iterable[Any]] | None = None,
    ) -> Self:
        """Store weights and activations in 8 bits, and nothing in float.

        Args:
            representative_data: See the class.
            quantization_steps: How many samples at most; None takes all of ``representative_dataset``.
            inference_input_type: The dtype of the file's inputs: ``tf.uint8``, ``tf.int8`` or ``tf.float32``.
            inference_output_type: The dtype of its outputs.
            supported_ops: One ``tf.lite.OpsSet`` or a list of them.
            representative_dataset: See the class.
        """
        return cls(
            representative_data=representative_data,
            quantization_steps=quantization_steps,
            inference_input_type=inference_input_type,
            inference_output_type=inference_output_type,
            supported_ops=supported_ops,
            representative_dataset=representative_dataset,
        )

    def get_converter_with_quantization(self, converter: Any, **settings: Any) -> Any:
        """Set the attributes of a converter, and return it.

        Args:
            converter: A ``tf.lite.TFLiteConverter``, or a recorder that stands for one.
            settings: What else Model Maker's data take: ``gen_dataset(batch_size=1, is_training=False, **settings)``.

        Raises:
            InputError: Settings are given, and data that take none.
        """
        converter.optimizations = self.optimizations
        if (samples := self._samples(settings)) is not None:
            converter.representative_dataset = samples
        for name in ("inference_input_type", "inference_output_type", "experimental_new_quantizer"):
            if (value := getattr(self, name)) is not None:
                setattr(converter, name, value)
        for name in ("supported_ops", "supported_types"):
            if (value := getattr(self, name)) is not None:
                setattr(converter.target_spec, name, value)
        return converter

    def _check_samples(self) -> None:
        import tensorflow as tf

        data, function = self.representative_data, self.representative_dataset
        if data is not None and function is not None:
            raise InputError(
                "QuantizationConfig cannot choose its samples",
                found="representative_data and representative_dataset",
                wanted="one of them",
                cure="Leave one out.",
            )
        if data is not None and not (hasattr(data, "gen_dataset") or is_dataset(data) or is_array(data)):
            _check_function(
                "representative_data", data, "an array, a tf.data dataset, Model Maker's data or a function"
            )
        if function is not None:
            _check_function("representative_dataset", function, "a function")
        integer = {
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
            tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
        }
        if data is None and function is None and integer.intersection(self.supported_ops or ()):
            raise InputError(
                "QuantizationConfig cannot find the ranges of activations",
                found=f"{', '.join(map(str, self.supported_ops or ()))} without samples",
                wanted="some real ones",
                cure="Give representative_data=x_train.",
            )

    def _samples(self, settings: Mapping[str, Any]) -> Callable[[], Iterable[Any]] | None:
        """Return what TensorFlow calls a representative dataset."""
        data, steps = self.representative_data, self.quantization_steps
        if data is None:
            return self.representative_dataset and _limited(self.representative_dataset, steps)
        if hasattr(data, "gen_dataset"):
            # Once, as there: a bad setting shows here and not in the middle of a conversion.
            made = data.gen_dataset(batch_size=1, is_training=False, **settings)
            return _limited(lambda: (_as_item(_x_of(element)) for element in made), steps)
        if settings:
            raise InputError(
                f"{', '.join(settings)} cannot be used",
                found=f"settings for {describe(data)}",
                wanted="them for Model Maker's data only, whose gen_dataset takes them",
                cure="Leave them out, and prepare the samples beforehand.",
            )
        if is_dataset(data):
            return _limited(lambda: _rows_of_dataset(data), steps)
        return _limited(data, steps) if callable(data) else lambda: _rows_of_array(data, steps)


def _check_function(name: str, value: object, wanted: str) -> None:
    if not callable(value):
        raise DataError(
            f"{name} cannot be used for calibration",
            found=describe(value),
            wanted=wanted,
            cure="Name a function, without calling it, that does: yield [x[i:i+1]].",
        )


def _limited(function: Callable[[], Iterable[Any]], steps: int | None) -> Callable[[], Iterable[Any]]:
    if steps is None:
        return function

    def representative_dataset() -> Iterator[Any]:
        return itertools.islice(function(), steps)

    return representative_dataset


def _rows_of_array(array: Any, steps: int | None) -> Iterator[list[Any]]:
    values = np.asarray(array)
    if values.dtype == np.float64:  # models take float32, and the calibrator casts nothing
        values = values.astype(np.float32)
    chosen = np.arange(len(values))
    if steps is not None and steps < len(values):
        # The first rows of data that are sorted are of one class.
        chosen = np.sort(np.random.default_rng(SEED).permutation(chosen)[:steps])
    for row in chosen:
        yield [values[row : row + 1]]


def _rows_of_dataset(dataset: Any) -> Iterator[Any]:
    """Yield the samples of a ``tf.data`` dataset one at a time, each with a batch dimension of 1."""
    import tensorflow as tf

    batched = _is_batched(dataset.element_spec)
    for element in dataset:
        x = _x_of(element)
        if not batched:
            yield _as_item(tf.nest.map_structure(lambda part: part[tf.newaxis], x))
            continue
        for row in range(len(tf.nest.flatten(x)[0])):
            yield _as_item(tf.nest.map_structure(lambda part, row=row: part[row : row + 1], x))


def _is_batched(element_spec: Any) -> bool:
    """Tell batches from samples: labels of a batch have its length; without labels only it can be open."""
    import tensorflow as tf

    first = tf.nest.flatten(_x_of(element_spec))[0].shape
    if first.rank is None:
        return True
    if isinstance(element_spec, tuple) and len(element_spec) > 1:
        labels = tf.nest.flatten(element_spec[1])[0].shape
        return bool(first.rank) and bool(labels.rank) and first[0] == labels[0]
    return bool(first.rank) and first[0] is None


def _x_of(element: Any) -> Any:
    """Return x of x, (x, y) or (x, y, weight)."""
    return element[0] if isinstance(element, tuple) else element


def _as_item(x: Any) -> Any:
    """Return one sample as the calibrator reads it: inputs by name, or a list of them."""
    if isinstance(x, Mapping):
        return {name: np.asarray(part) for name, part in x.items()}
    return [np.asarray(part) for part in (x if isinstance(x, tuple | list) else (x,))]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def _members(value: Any, kind: type[_Member]) -> list[_Member]:
    """Return members of one of TensorFlow's enumerations, which may be given by name."""
    members = []
    for member in _listed(value):
        if not isinstance(member, kind) and member not in list(kind.__members__):
            raise InputError(
                f"{member!r} cannot be used",
                found=f"no {kind.__name__} of that name",
                wanted=f"one of tf.lite.{kind.__name__}",
                cure=f"It has: {', '.join(kind.__members__)}.",
            )
        members.append(member if isinstance(member, kind) else kind[member])
    return members


def _dtype(value: Any) -> Any:
    import tensorflow as tf

    try:
        return None if value is None else tf.as_dtype(value)
    except TypeError as error:
        raise InputError(
            f"{value!r} cannot be used as a dtype",
            found="none of that name in TensorFlow",
            wanted="one such as tf.uint8 or 'uint8'",
            cure="Inputs and outputs may be uint8, int8 or float32.",
        ) from error
