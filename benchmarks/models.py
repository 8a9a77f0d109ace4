"""The models and the data that are measured: a trained digits CNN, and a MobileNetV2 with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

TRAINING_SAMPLES = 1297


@dataclass(frozen=True)
class Subject:
    """A model and samples that fit it.

    Args:
        name: What the table calls it.
        model: The Keras model; both contenders are given this very object.
        calibration: Samples that int8 and int16x8 are calibrated on.
        test: Samples whose answers are compared.
    """

    name: str
    model: Any
    calibration: npt.NDArray[np.float32]
    test: npt.NDArray[np.float32]


def digits() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return all 1,797 handwritten digits, ``float32[1797, 8, 8, 1]`` from 0 to 1, shuffled, and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return (data.images[order] / 16).astype("float32")[..., None], data.target[order]


def digits_cnn(samples: int) -> Subject:
    """Return the CNN of the tests, trained, to be calibrated on ``samples`` digits."""
    import keras

    x, y = digits()
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x[:TRAINING_SAMPLES], y[:TRAINING_SAMPLES], epochs=10, batch_size=32, verbose=0)
    return Subject("digits CNN", model, x[:samples], x[TRAINING_SAMPLES:])


def mobilenet_v2(samples: int) -> Subject:
    """Return a MobileNetV2 (alpha 0.35, 96 px, 10 classes) with random weights, fit to its samples' statistics."""
    import keras

    keras.utils.set_random_seed(0)
    # Without its softmax: that of random weights is nearly flat, and equal answers would then prove little.
    model = keras.applications.MobileNetV2(
        input_shape=(96, 96, 3), alpha=0.35, weights=None, classes=10, classifier_activation=None
    )
    images = np.random.default_rng(0).random((samples + 20, 96, 96, 3), dtype=np.float32) * 2 - 1
    # Fresh batch norms let the signal fade to 1e-10: int8 then answers 0 to everything, int16x8 does not even load.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images[:samples], training=True)
    return Subject("MobileNetV2", model, images[:samples], images[samples:])
