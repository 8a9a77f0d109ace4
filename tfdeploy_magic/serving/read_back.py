"""The job's side of an export: load a version as TensorFlow Serving does, and ask it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tfdeploy_magic.artifacts.samples import SampleSet, save_arrays
from tfdeploy_magic.artifacts.signature import Signature
from tfdeploy_magic.evaluate.session import LiteSession
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.sources import graphs, stored
from tfdeploy_magic.sources.traced import in_batches

LITE_FILE = "model.tflite"
"""What TensorFlow Serving looks for with ``--prefer_tflite_model``."""


def check_task(
    report: Report,
    path: str,
    name: str,
    trust: bool,
    signature: dict[str, Any] | None,
    inputs: list[str],
    count: int,
    folder: str,
) -> dict[str, Any]:
    """Load a version as TensorFlow Serving does, and answer samples where there are any; a job's entry.

    Returns:
        "signatures", and "answers": output name -> ``.npy`` file, or None.
    """
    report.stage("loading it back")
    if (lite := Path(path) / LITE_FILE).exists():
        return {"signatures": [row.to_dict() for row in _lite_signatures(lite)], "answers": None}
    import tensorflow as tf
    from tensorflow.python.saved_model import loader_impl

    meta = graphs.served(loader_impl.parse_saved_model(path).meta_graphs)
    if not trust:
        stored.refuse_touching(stored.touching(meta), name)
    found = [graphs.signature_of(key, proto) for key, proto in graphs.declared(meta).items()]
    answers = None
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.compat.v1.saved_model.load(session, list(meta.meta_info_def.tags), path)
        if signature is not None:
            report.stage("comparing answers")
            asked = Signature.from_dict(signature)
            files_of = {spec.name: Path(file) for spec, file in zip(asked.inputs, inputs, strict=True)}
            samples = SampleSet(files_of, count, "samples")
            ask = _asking(session, meta.signature_def[asked.name], asked)
            answers = save_arrays(Path(folder), in_batches(ask, asked, samples, report))
    return {
        "signatures": [row.to_dict() for row in found],
        "answers": answers and {output: str(file) for output, file in answers.items()},
    }


def _asking(
    session: Any, proto: Any, signature: Signature
) -> Callable[[list[npt.NDArray[Any]]], list[npt.NDArray[Any]]]:
    feeds = [proto.inputs[spec.name].name for spec in signature.inputs]
    fetches = [proto.outputs[spec.name].name for spec in signature.outputs]

    def ask(flat: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        return [graphs.array_of(answer) for answer in session.run(fetches, dict(zip(feeds, flat, strict=True)))]

    return ask


def _lite_signatures(path: Path) -> list[Signature]:
    from tfdeploy_magic.convert.describe import describe

    session = LiteSession(path)
    return [Signature.from_dict(row) for row in describe(path)["signatures"]] or [session.signature]
