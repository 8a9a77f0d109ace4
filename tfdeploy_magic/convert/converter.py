"""The conversion itself, in a job: one frozen graph, opened once and converted as often as schemes need it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfdeploy_magic.artifacts.signature import Signature
from tfdeploy_magic.convert.signatures import put_signature


@dataclass(frozen=True)
class FrozenGraph:
    """A frozen SavedModel's graph, imported.

    Args:
        graph_def: The graph.
        inputs: Its input tensors, in the signature's order.
        outputs: Its output tensors, in the signature's order.
        signature: What they are called.
    """

    graph_def: Any
    inputs: list[Any]
    outputs: list[Any]
    signature: Signature

    @classmethod
    def open(cls, folder: Path, signature: Signature) -> FrozenGraph:
        """Read what ``TracedModel.save`` wrote."""
        import tensorflow as tf
        from tensorflow.core.protobuf import saved_model_pb2

        proto = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        graph_def = proto.meta_graphs[0].graph_def
        graph = tf.Graph()
        with graph.as_default():
            tf.graph_util.import_graph_def(graph_def, name="")
        return cls(
            graph_def,
            [graph.get_tensor_by_name(spec.tensor) for spec in signature.inputs],
            [graph.get_tensor_by_name(spec.tensor) for spec in signature.outputs],
            signature,
        )

    def convert(self, *, optimize: bool = False, float16: bool = False) -> bytes:
        """Convert to a .tflite flatbuffer that carries the signature.

        ``tf.compat.v1``'s converter takes a GraphDef as it is. The one in ``tf.lite`` would freeze the frozen graph
        again at each call, which is most of its cost; the answers of the files are equal.

        Args:
            optimize: Quantize weights (dynamic range), or store them as float16.
            float16: Which of the two.
        """
        import tensorflow as tf

        converter = tf.compat.v1.lite.TFLiteConverter(self.graph_def, self.inputs, self.outputs)
        if optimize:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if float16:
            converter.target_spec.supported_types = [tf.float16]
        return put_signature(converter.convert(), self.signature)
