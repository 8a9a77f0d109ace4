"""Small files of TensorFlow's own converter, each made for one thing that a file may hold."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema


def from_function(function: Callable[..., Any], shape: list[int | None], **settings: Any) -> bytes:
    """Convert a function of one tensor ``x`` with attributes of the converter set."""
    import tensorflow as tf

    class Module(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="x")])
        def __call__(self, x: Any) -> Any:
            return {"y": function(x)}

    return from_methods(Module(), "__call__", **settings)


def from_methods(module: Any, *methods: str, **settings: Any) -> bytes:
    """Convert methods of a ``tf.Module``, a signature each, through a SavedModel as TensorFlow's guides do."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        names = methods if len(methods) > 1 else ("serving_default",)
        tf.saved_model.save(
            module, folder, signatures=dict(zip(names, [getattr(module, m) for m in methods], strict=True))
        )
        return from_saved_model(folder, **settings)


def from_saved_model(folder: str, **settings: Any) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    for name, value in settings.items():
        setattr(converter, name, value)
    return bytes(converter.convert())


def with_flex() -> dict[str, Any]:
    import tensorflow as tf

    spec = tf.lite.TargetSpec()
    spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    return {"target_spec": spec}


def calibrated_on(*shape: int) -> dict[str, Any]:
    """Return settings for an int8 file that is calibrated on noise."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    return {
        "optimizations": [tf.lite.Optimize.DEFAULT],
        "representative_dataset": lambda: ([random.normal(size=shape).astype("float32")] for _ in range(9)),
    }


def counter() -> Any:
    """A module whose state is a real variable."""
    import tensorflow as tf

    class Counter(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.total = tf.Variable(tf.fill([1, 2], 5.0))

        @tf.function(input_signature=[tf.TensorSpec([1, 2], tf.float32, name="x")])
        def add(self, x: Any) -> Any:
            self.total.assign_add(x)
            return {"y": self.total.read_value()}

        @tf.function(input_signature=[tf.TensorSpec([1, 2], tf.float32, name="x")])
        def loop(self, x: Any) -> Any:
            if tf.reduce_sum(x) > 0:
                self.total.assign(x)
            for _ in tf.range(3):
                self.total.assign_add(x)
            return {"y": self.total.read_value()}

    return Counter()


def edited(content: bytes, change: Callable[[Any], None]) -> bytes:
    """Change a file's object tree (``ModelT``)."""
    tree = schema.ModelT.InitFromPackedBuf(content, 0)
    change(tree)
    builder = flatbuffers.Builder(len(content) + 1024)
    builder.Finish(tree.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
