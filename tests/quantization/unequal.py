"""A classifier that int8 ruins: a few channels are far larger than the rest, and the next layer makes up for it.

Nagel et al. show such channels in a trained MobileNetV2, https://arxiv.org/abs/1906.04721; here they are made.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.evaluate import by_hand

PRODUCER, CONSUMER = "middle", "last"
"""Two layers of :func:`reference_model` with a max-pool between them."""

Array = npt.NDArray[Any]


@functools.cache
def data() -> tuple[Array, Array, Array, Array]:
    """Return digits twice as large as scikit-learn has them.

    Returns:
        Images to train with, ``float32[1297, 16, 16, 1]`` from 0 to 1, their labels, and the same of 500 to test with.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = (digits.images[order] / 16).astype("float32").repeat(2, axis=1).repeat(2, axis=2)[..., None]
    y = digits.target[order]
    return x[:1297], y[:1297], x[1297:], y[1297:]


@functools.cache
def reference_model(seed: int = 0) -> Any:
    """Return a trained Keras classifier of :func:`data`, shared: change only a copy, as :func:`unbalance` does."""
    import keras

    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu", name="first"),
            keras.layers.MaxPooling2D(name="pool_1"),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu", name=PRODUCER),
            keras.layers.MaxPooling2D(name="pool_2"),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu", name=CONSUMER),
            keras.layers.Conv2D(256, 3, padding="same", activation="relu", name="head"),
            keras.layers.GlobalAveragePooling2D(name="mean"),
            keras.layers.Dense(10, activation="softmax", name="classes"),
        ]
    )
    x, y, *_ = data()
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=6, batch_size=32, verbose=0)
    return model


def unbalance(model: Any, producer: str, consumer: str, channels: int = 4, factor: float = 500) -> Any:
    """Copy a Keras model with some channels between two convolutions made larger; its answers stay the same.

    Args:
        model: It has nothing but ReLU and pooling between the two.
        producer: The name of the layer that makes the channels.
        consumer: The name of the layer that takes them.
        channels: How many of them, spread evenly.
        factor: How many times larger.
    """
    import keras

    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    kernel, bias = copy.get_layer(producer).get_weights()
    chosen = np.linspace(0, kernel.shape[-1], channels, endpoint=False).astype(int)
    kernel[..., chosen] *= factor
    bias[chosen] *= factor
    copy.get_layer(producer).set_weights([kernel, bias])
    kernel, bias = copy.get_layer(consumer).get_weights()
    kernel[..., chosen, :] /= factor
    copy.get_layer(consumer).set_weights([kernel, bias])
    return copy


def float_file(model: Any, folder: Path) -> tuple[bytes, dict[str, str]]:
    """Convert a Keras model to a float .tflite file as this package does.

    Returns:
        The file, and name scope of a layer -> how a person knows it.
    """
    from tfdeploy_magic import sources
    from tfdeploy_magic.convert.converter import open_graph

    traced = sources.open_source(model, "model").model
    saved = traced.save(folder)
    graph = open_graph(saved.path, saved.signature, frozen=saved.frozen, tags=tuple(saved.tags))
    return graph.convert(), dict(traced.layers)


def int8_file(float_model: bytes, rows: Array, denied: Sequence[str] = ()) -> bytes:
    """Quantize a float .tflite file of one input to int8 with TensorFlow's own calls, inputs and outputs left float.

    Args:
        float_model: The file.
        rows: Calibration samples, ``[count, ...]``.
        denied: Names of tensors whose operators stay float.
    """
    import tensorflow as tf
    from tensorflow.lite.python.convert import mlir_quantize
    from tensorflow.lite.python.optimize import calibrator

    signature, name = input_of(float_model)

    def feed() -> Iterator[tuple[str, dict[str, Array]]]:
        for position in range(len(rows)):
            yield signature, {name: rows[position : position + 1]}

    with warnings.catch_warnings():
        # TensorFlow's calibrator makes an interpreter of the kind that TensorFlow warns of.
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated", UserWarning)
        calibrated = calibrator.Calibrator(calibrator.add_intermediate_tensors(float_model)).calibrate(feed)
    return bytes(
        mlir_quantize(
            calibrated,
            input_data_type=tf.float32,
            output_data_type=tf.float32,
            denylisted_nodes=list(denied) or None,
        )
    )


def input_of(content: bytes) -> tuple[str, str]:
    """Return the name of a file's signature, and of that one's input."""
    ((signature, names),) = by_hand.interpreter(content).get_signature_list().items()
    (name,) = names["inputs"]
    return signature, name


def answers(content: bytes, rows: Array) -> Array:
    """Answer samples with a .tflite file of one input and one output."""
    (answer,) = by_hand.answers(content, {input_of(content)[1]: rows}, batch=len(rows)).values()
    return answer


def accuracy(answer: Array, labels: Array) -> float:
    """Return the share of samples whose largest output is the label's."""
    return float((answer.argmax(-1) == labels).mean())
