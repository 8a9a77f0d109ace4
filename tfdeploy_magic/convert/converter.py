"""The conversion itself, in a job: a graph opened once and converted as often as schemes need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfdeploy_magic.artifacts.signature import Signature
from tfdeploy_magic.convert.describe import describe
from tfdeploy_magic.convert.signatures import put_signature
from tfdeploy_magic.errors import ConversionError


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
        """Read what ``TracedModel.save`` froze."""
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

    def convert(self, *, optimize: bool = False, float16: bool = False, select_ops: bool = False) -> bytes:
        """Convert to a .tflite flatbuffer that carries the signature.

        ``tf.compat.v1``'s converter takes a GraphDef as it is. The one in ``tf.lite`` would freeze the frozen graph
        again at each call, which is most of its cost; the answers of the files are equal.

        Args:
            optimize: Quantize weights (dynamic range), or store them as float16.
            float16: Which of the two.
            select_ops: Leave operations that .tflite has no builtin for to TensorFlow's kernels.
        """
        import tensorflow as tf

        converter = tf.compat.v1.lite.TFLiteConverter(self.graph_def, self.inputs, self.outputs)
        _set_up(converter, self.signature, optimize=optimize, float16=float16, select_ops=select_ops)
        return put_signature(converter.convert(), self.signature)


@dataclass(frozen=True)
class VariableGraph:
    """A SavedModel whose variables, tables and assets are beside it; TensorFlow's importer reads them all.

    Args:
        folder: The directory.
        tags: The tags of its graph.
        signature: The signature to convert.
    """

    folder: Path
    tags: tuple[str, ...]
    signature: Signature

    def convert(self, *, optimize: bool = False, float16: bool = False, select_ops: bool = False) -> bytes:
        """Convert to a .tflite flatbuffer; the importer keeps the signature itself."""
        import tensorflow as tf

        converter = tf.lite.TFLiteConverter.from_saved_model(
            str(self.folder), signature_keys=[self.signature.name], tags=set(self.tags)
        )
        _set_up(converter, self.signature, optimize=optimize, float16=float16, select_ops=select_ops)
        return bytes(converter.convert())


@dataclass(frozen=True)
class ConvertedGraph:
    """A float .tflite file, which is what the integer schemes start from.

    Args:
        path: The file.
        signature: What its tensors are called.
    """

    path: Path
    signature: Signature

    def convert(self, *, optimize: bool = False, float16: bool = False, select_ops: bool = False) -> bytes:
        """Return the file as it is, with a signature if it had none.

        Raises:
            ConversionError: It is quantized already, or float16 or dynamic was asked for, which TensorFlow makes of a
                graph only.
        """
        if optimize:
            raise ConversionError(
                "a .tflite file cannot be converted to this scheme",
                found=f"--{'float16' if float16 else 'dynamic'} for a file that is converted already",
                wanted="--int8 or --int16x8, which TensorFlow makes of a float .tflite file",
                cure="Convert the model it was made from, or use --weight-only-wi8 or --dynamic-wi8.",
            )
        found = describe(self.path)
        check_not_quantized(self.path.name, found["weights"])
        content = self.path.read_bytes()
        return content if found["signatures"] else put_signature(content, self.signature)


def check_not_quantized(name: str, weights: Mapping[str, int]) -> None:
    """Refuse a .tflite file that a quantizer has been at.

    Args:
        name: Of the file.
        weights: Bytes of its constants, by dtype.

    Raises:
        ConversionError: It is quantized.
    """
    if quantized := [dtype for dtype in ("int4", "int8", "uint8", "int16") if dtype in weights]:
        raise ConversionError(
            f"{name} cannot be converted again",
            found=f"a file that is quantized already ({', '.join(quantized)} weights)",
            wanted="a float .tflite file",
            cure="Convert the model it was made from.",
        )


def open_graph(folder: Path, signature: Signature, *, frozen: bool, tags: tuple[str, ...]) -> Convertible:
    """Open what a source wrote, or a .tflite file."""
    if folder.is_file():
        return ConvertedGraph(folder, signature)
    return FrozenGraph.open(folder, signature) if frozen else VariableGraph(folder, tags, signature)


Convertible = FrozenGraph | VariableGraph | ConvertedGraph


def _set_up(converter: Any, signature: Signature, *, optimize: bool, float16: bool, select_ops: bool) -> None:
    import tensorflow as tf

    if optimize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if float16:
        converter.target_spec.supported_types = [tf.float16]
    if select_ops:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    if signature.fixed_batch == 1:
        # For lists in loops whose element shape says nothing of the batch; there is no public way to say it is 1.
        converter._experimental_default_to_single_batch_in_tensor_list_ops = True
