"""One small model of every kind, with weights that are not zero; Keras is imported when one is made."""

from __future__ import annotations

from typing import Any

import numpy as np

RANDOM = np.random.default_rng(0)


def sequential() -> Any:
    import keras

    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, activation="relu"), keras.layers.Dense(3)])


def functional() -> Any:
    import keras

    picture = keras.Input((8, 8, 1), name="picture")
    x = keras.layers.Conv2D(4, 3)(picture)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(picture, keras.layers.Dense(2, activation="softmax", name="answer")(x))


def two_in_two_out() -> Any:
    """Named so that alphabetical order is neither the order of the inputs nor that of the outputs."""
    import keras

    text = keras.Input((3,), name="zebra")
    picture = keras.Input((2,), name="ant")
    joined = keras.layers.Concatenate()([text, picture])
    outputs = {"second": keras.layers.Dense(4)(joined), "first": keras.layers.Dense(1)(text)}
    return keras.Model([text, picture], outputs)


def integers() -> Any:
    import keras

    words = keras.Input((6,), dtype="int32", name="words")
    x = keras.layers.Embedding(10, 4)(words)
    return keras.Model(words, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(x)))


def subclassed(called: bool = True) -> Any:
    import keras

    class Doubler(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x: Any, training: bool = False) -> Any:
            return self.dense(x) * (100.0 if training else 2.0)

    model = Doubler()
    if called:
        model(np.zeros((1, 4), "float32"))
    return model


KINDS = (sequential, functional, two_in_two_out, integers, subclassed)


def make(kind: Any) -> Any:
    """Make a model and give every weight a value of its own, biases too."""
    import keras

    keras.utils.set_random_seed(0)
    model = kind()
    model.set_weights([RANDOM.uniform(0.1, 1, weight.shape) for weight in model.get_weights()])
    return model
