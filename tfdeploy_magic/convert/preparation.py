"""Before any time is spent: look at the model's operations, cure what has a cure, and refuse what has none."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.models import SavedModelDir
from tfdeploy_magic.convert import preflight
from tfdeploy_magic.convert.converter import check_not_quantized
from tfdeploy_magic.convert.describe import describe
from tfdeploy_magic.errors import ConversionError, VariablesLost
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.sources import Source, StoredModel, graphs, open_source, stored


@dataclass
class Prepared:
    """A source that can be converted, and what was done to make it so.

    Args:
        source: The source; traced anew where its loops were unrolled.
        findings: What a person must know about it.
        single_sample: Whether the file takes one sample at a time.
    """

    source: Source
    findings: tuple[Finding, ...]
    single_sample: bool

    def save(self, folder: Path) -> SavedModelDir:
        """Write the model in the form that is converted."""
        return self.source.model.save(folder, single_sample=self.single_sample)

    def rebuild(self, folder: Path) -> SavedModelDir:
        """Load a SavedModel whose variables TensorFlow's converter cannot find, and write it so that it can.

        Raises:
            VariablesLost: It is no SavedModel: there is no other way to write it.
        """
        model = self.source.model
        if not isinstance(model, StoredModel) or model.kind != "saved_model":
            raise VariablesLost(
                "the file has variables without values",
                found=f"{self.source.name}, whose state TensorFlow's converter cannot find",
                wanted="weights that are tf.Variables of the model",
                cure="Keep them as attributes of the model or the tf.Module. Otherwise please report this model.",
            )
        self.findings = (
            *self.findings,
            Finding(
                "note",
                "rebuilt",
                "TFLiteConverter loses the weights of this SavedModel, which tf.saved_model.save wrote from a Keras 3 "
                "model: it was loaded and written anew",
                "Write it with model.export(DIR).",
            ),
        )
        return model.save(folder, single_sample=self.single_sample, rebuilt=True)


def prepare(source: Source, *, calibrated: bool, select_ops: bool) -> Prepared:
    """Look at a source's graph before it is converted.

    A loop over a batch of unknown size has two cures. Unrolled it can be quantized and takes any batch; otherwise
    the file takes one sample at a time.

    Args:
        source: The model.
        calibrated: Whether its activations will be quantized, which crashes TensorFlow on loops.
        select_ops: Whether operations without a builtin may stay.

    Raises:
        ConversionError: It has operations that .tflite cannot hold, each named with its layer and a cure.
    """
    seen = _look(source)
    open_loops = [problem for problem in seen.problems if problem.kind == "rnn"]
    extra: tuple[Finding, ...] = ()
    if seen.lists and calibrated:
        if source.model.unrollable:
            source = open_source(source.value, source.name, replace(source.how, unroll=True), source.worker)
            seen = _look(source)
        if seen.lists:  # of no layer that could be unrolled
            raise ConversionError(
                f"{source.name} cannot be quantized with its loop",
                found=f"a loop over a list in {preflight.in_words(seen.lists[:3])}",
                wanted="no such loop: TensorFlow's calibrator crashes on one",
                cure="Build the recurrent layer with unroll=True and a fixed number of steps, or use --dynamic.",
            )
    elif open_loops:
        extra = (
            Finding(
                "note",
                "one-sample",
                f"the file takes one sample at a time: {preflight.in_words(open_loops[0].where[:3])} loops over a "
                "batch of unknown size, which .tflite cannot hold",
                "For batches build the layer with unroll=True.",
            ),
        )
    remaining = tuple(problem for problem in seen.problems if problem.kind != "rnn")
    preflight.refuse(remaining, source.name, select_ops=select_ops)
    found = preflight.findings(remaining, source.inputs)
    return Prepared(source, (*source.model.findings, *extra, *found), single_sample=bool(extra))


@dataclass(frozen=True)
class _Seen:
    """What a look at a graph found.

    Args:
        problems: Operations that .tflite cannot hold.
        lists: The layers that loop over lists, open or not.
    """

    problems: tuple[preflight.Problem, ...]
    lists: tuple[str, ...]


def _look(source: Source) -> _Seen:
    model = source.model
    if not isinstance(model, StoredModel):
        return _look_at(model)
    seen = model.worker.call(f"{__name__}:look_task", {"path": str(model.path)})
    problems = (preflight.Problem(**{**row, "where": tuple(row["where"])}) for row in seen["problems"])
    return _Seen(tuple(problems), tuple(seen["lists"]))


def look_task(report: Report, path: str) -> dict[str, Any]:
    """Look at the graph of a model file that this process has opened; a job's entry."""
    report.stage("looking at its operations")
    model = stored.opened(path)
    if model.graph_def is None:
        check_not_quantized(Path(path).name, describe(Path(path))["weights"])
        return asdict(_Seen((), ()))
    return asdict(_look_at(model))


def _look_at(model: Any) -> _Seen:
    graph_def, (inputs, outputs) = model.graph_def, model.doors
    lists = [node.name for node in graphs.nodes(graph_def) if node.op == "TensorListReserve"]
    places = preflight.locate(lists, model.layers)
    problems = preflight.scan(graph_def, model.layers, inputs=inputs, outputs=outputs)
    return _Seen(problems, tuple(dict.fromkeys(places.values())))
