"""A model that keeps a variable, as a .tflite file: some of its operators give nothing, and one runs another graph."""

from __future__ import annotations

from typing import Any


def counter_file() -> bytes:
    """Add ``x``, ``float32[1, 4]``, to what was given before and answer twice the sum."""
    import tensorflow as tf

    class Counter(tf.Module):
        def __init__(self) -> None:
            self.sum = tf.Variable(tf.zeros([1, 4]))

        @tf.function(input_signature=[tf.TensorSpec([1, 4], tf.float32, name="x")])
        def __call__(self, x: Any) -> Any:
            self.sum.assign_add(x)
            return {"y": self.sum * 2.0}

    model = Counter()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([model.__call__.get_concrete_function()], model)
    converter.experimental_enable_resource_variables = True
    return bytes(converter.convert())
