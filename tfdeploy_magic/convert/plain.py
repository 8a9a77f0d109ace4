"""TensorFlow's converter with a person's own settings, in a job: for settings that no option of ours expresses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

import numpy as np

from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.convert.converter import ConvertedGraph, Convertible, FrozenGraph, VariableGraph
from tfdeploy_magic.convert.signatures import put_signature
from tfdeploy_magic.errors import ConversionError, InputError
from tfdeploy_magic.jobs import Report

_BUFFER_OFFSETS = "_experimental_use_buffer_offset"


def convert(graph: Convertible, settings: Mapping[str, Any], samples: Arrays | None, report: Report) -> bytes:
    """Convert with ``TFLiteConverter``, each of ``settings`` set on it as a person would.

    Args:
        graph: What the source wrote.
        settings: Attribute of the converter, "target_spec.supported_ops" -> its value as :func:`to_json` gave it.
        samples: Input name -> ``[count, ...]``, the representative dataset; None leaves it unset.
        report: Told of calibration.

    Returns:
        A .tflite flatbuffer that carries the signature.

    Raises:
        ConversionError: The graph is converted already, or the file would have no room for its signature.
    """
    if isinstance(graph, ConvertedGraph):
        raise ConversionError(
            "a .tflite file cannot be converted again with these settings",
            found=", ".join(settings),
            wanted="a model that is not converted yet",
            cure="Convert the model it was made from.",
        )
    frozen = isinstance(graph, FrozenGraph)
    if frozen and settings.get(_BUFFER_OFFSETS):
        raise ConversionError(
            f"converter.{_BUFFER_OFFSETS} cannot be honoured",
            found="a file whose constants lie behind its flatbuffer",
            wanted="a flatbuffer that a signature can be put into",
            cure="Leave it out.",
        )
    converter = _converter(graph)
    if graph.signature.fixed_batch == 1:
        # As for the schemes: lists in loops whose element shape says nothing of the batch.
        converter._experimental_default_to_single_batch_in_tensor_list_ops = True
    for name, value in settings.items():
        owner, _, attribute = name.rpartition(".")
        setattr(attrgetter(owner)(converter) if owner else converter, attribute, from_json(value))
    if samples is not None:
        names = [spec.name for spec in graph.signature.inputs]
        batch = graph.signature.fixed_batch or 1
        starts = range(0, len(samples[names[0]]) - batch + 1, batch)

        def feed() -> Iterator[Any]:
            report.stage("calibrating")
            for start in report.counting(starts, len(starts)):
                rows = {name: np.asarray(samples[name][start : start + batch]) for name in names}
                # The file of a frozen graph has no signature yet, but keeps the order of its inputs.
                yield list(rows.values()) if frozen else (graph.signature.name, rows)

        converter.representative_dataset = feed
    content = bytes(converter.convert())
    return put_signature(content, graph.signature) if frozen else content


def _converter(graph: FrozenGraph | VariableGraph) -> Any:
    import tensorflow as tf

    if isinstance(graph, VariableGraph):
        return tf.lite.TFLiteConverter.from_saved_model(
            str(graph.folder), signature_keys=[graph.signature.name], tags=set(graph.tags)
        )
    wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph.graph_def, name=""), [])
    function = wrapped.prune([tensor.name for tensor in graph.inputs], [tensor.name for tensor in graph.outputs])
    # Named as its own trackable, the function is converted as it is, without the warning that there is none.
    return tf.lite.TFLiteConverter.from_concrete_functions([function], function)


def to_json(setting: str, value: object) -> Any:
    """Return the value of one setting as data that survives JSON; lists, tuples and sets all become lists.

    Args:
        setting: The converter's attribute, for the error.
        value: What it was set to.

    Raises:
        InputError: It is an object that only exists in this process.
    """
    import tensorflow as tf

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tf.DType):
        return {"dtype": value.name}
    if isinstance(value, tf.lite.Optimize | tf.lite.OpsSet):
        return {"enum": f"{type(value).__name__}.{value.name}"}
    if isinstance(value, list | tuple):
        return [to_json(setting, member) for member in value]
    if isinstance(value, set | frozenset):
        return sorted((to_json(setting, member) for member in value), key=str)
    raise InputError(
        f"converter.{setting} cannot be sent to the job that converts",
        found=f"a {type(value).__name__}",
        wanted="a number, a text, True, False, None, a tf dtype, a tf.lite enum, or a list of these",
        cure="Leave it unset.",
    )


def from_json(value: Any) -> Any:
    """Rebuild what :func:`to_json` wrote."""
    import tensorflow as tf

    match value:
        case {"dtype": name}:
            return tf.as_dtype(name)
        case {"enum": name}:
            return attrgetter(name)(tf.lite)
        case list():
            return [from_json(member) for member in value]
    return value
