"""LiteModel: the .tflite file a person holds, with its evidence and the recipe that made it."""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts import store
from tfdeploy_magic.artifacts.evidence import Evidence, Finding
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.provenance import Provenance
from tfdeploy_magic.artifacts.samples import SampleSet
from tfdeploy_magic.artifacts.signature import Arrays, Signature, TensorSpec
from tfdeploy_magic.errors import DataError
from tfdeploy_magic.evaluate import judge, measure
from tfdeploy_magic.jobs import Report, Worker, silent
from tfdeploy_magic.sources import Source, open_source
from tfdeploy_magic.sources.samples import NamedData, gather

if TYPE_CHECKING:
    from tfdeploy_magic.views.figures import Figure

PATIENCE_SECONDS = 60.0
"""How long the person's generator may take for one sample, or their metric for one score."""


@dataclass(frozen=True)
class LiteModel:
    """A converted model: a file, what was measured on it, and how it was made.

    Args:
        file: The .tflite file.
        evidence: What was measured when it was made.
        provenance: How it was made.
    """

    file: LiteFile
    evidence: Evidence
    provenance: Provenance
    _source: Callable[[], Source | None] | None = field(default=None, repr=False, compare=False)
    _worker: Worker = field(default_factory=Worker, repr=False, compare=False)

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.file.path

    @property
    def size(self) -> int:
        """Bytes."""
        return self.file.size

    @property
    def scheme(self) -> str:
        """The scheme it was made with, "int8"; "recipe" where layers differ."""
        return self.file.scheme

    @property
    def label(self) -> str:
        """What tells it from other files of the same model, "int8, equalized"."""
        return str(self.provenance.options.get("label", self.scheme))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape, dtype, scale and zero point of each input."""
        return self.file.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape, dtype, scale and zero point of each output."""
        return self.file.outputs

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Every signature by its name."""
        return self.file.signatures

    def source(self) -> Source | None:
        """Return the model it was made of; None once that is gone."""
        return self._source() if self._source is not None else None

    def predict(self, x: Any) -> npt.NDArray[Any] | Arrays:
        """Answer samples with LiteRT's interpreter, in a process of its own that stays warm.

        Args:
            x: ``[count, ...]`` real numbers, whatever the file stores; for several inputs a dict by name, or a list
                in the order of the source model's arguments.

        Returns:
            ``[count, ...]`` real numbers; a dict by name when there are several outputs.

        Raises:
            DataError: ``x`` does not fit.
            JobError: The interpreter crashed or hung; the kernel is unharmed.
        """
        self._check_that_it_is_there()
        with tempfile.TemporaryDirectory(prefix="tfdeploy-") as scratch:
            samples = self._gather(NamedData("x", x), Path(scratch) / "in")
            answers = measure.ask(self._worker, self.file, samples.files, Path(scratch) / "out")
            copies = {name: np.array(answer) for name, answer in answers.items()}
        return next(iter(copies.values())) if len(copies) == 1 else copies

    def validate(self, x: Any, y: Any = None, *, metric: Any = None) -> Evidence:
        """Measure the file again, on other samples.

        Args:
            x: Samples, as :meth:`predict` takes them, or a dataset or generator function.
            y: Their labels; None when unknown.
            metric: A metric's name or a function ``metric(labels, output)``; accuracy where that makes sense.

        Returns:
            Parity with the source model while that is alive and unchanged; otherwise the file's own score, and a
            finding that says why there is no more.
        """
        self._check_that_it_is_there()
        name = self.provenance.source.partition(":")[0]
        report = Report(silent)
        with tempfile.TemporaryDirectory(prefix="tfdeploy-") as scratch, contextlib.ExitStack() as opened:
            folder = Path(scratch)
            data = NamedData("x", x, labels=y, labels_name="y")
            samples = self._gather(data, folder / "in")
            task = judge.task(samples.labels, metric, PATIENCE_SECONDS)
            source = self.source()
            if source is not None:
                opened.callback(source.close)
            if source is not None and source.sha256 == self.provenance.source_sha256:
                model = source.model
                cannot = measure.cannot_be_measured(self.file, model.findings, samples=True)
                if cannot is not None:
                    return cannot
                base = judge.baseline(model.predict(samples, report), task, model.precision)
                base = replace(base, latency=model.latency(samples, report))
                return measure.measure(self._worker, self.file, samples, base, task, folder / "out", model.findings)
            answers = measure.ask(self._worker, self.file, samples.files, folder / "out")
            scored = task.score(answers)
            gone = "is gone" if source is None else "has changed since this file was made"
            return Evidence(
                metric=scored.metric if scored else None,
                score=scored.score if scored else None,
                latency=measure.time_one(self._worker, self.file, samples.files),
                findings=(
                    Finding(
                        "error",
                        "no-source",
                        f"the source model {name} {gone}",
                        "Convert it again to compare.",
                    ),
                ),
            )

    def save(self, path: str | Path, *, force: bool = False) -> LiteModel:
        """Write a copy of the file, whole or not at all.

        Args:
            path: Where to; its folder must exist.
            force: Replace an existing file.

        Returns:
            This model, living there.

        Raises:
            OutputError: It cannot be written there.
        """
        self._check_that_it_is_there()
        target = Path(path).expanduser().absolute()
        store.check_writable(target, force=force)
        store.write_whole(self.path, target, force=force)
        made = replace(self.provenance, options={**self.provenance.options, "output": str(target)})
        return replace(self, file=replace(self.file, path=target), provenance=made, _worker=Worker())

    def figure(self) -> Figure:
        """Draw size beside accuracy."""
        from tfdeploy_magic.views import figures

        return figures.size_and_score(self.file, self.evidence, self.provenance)

    def _check_that_it_is_there(self) -> None:
        if self.path.exists():
            return
        in_store = store.store_folder() in self.path.parents
        raise DataError(
            f"{self.path.name} is gone",
            found=f"no file {self.path}",
            wanted="the file that was made",
            cure="The store dropped it for want of room: convert again, with -o PATH to keep it."
            if in_store
            else "It was moved or deleted: convert again.",
        )

    def _gather(self, data: NamedData, folder: Path) -> SampleSet:
        specs = [spec.as_real for spec in self.inputs]  # the session quantizes them by the file's own scale
        return gather(data, specs, folder, role="test", limit=None, seconds=PATIENCE_SECONDS, report=Report(silent))

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"<LiteModel {self.path.name}: {self.scheme}, {self.size:,} bytes, {self.evidence.verdict}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from tfdeploy_magic.views import card

        return card.mimebundle(self.file, self.evidence, self.provenance)


def source_reference(source: Source) -> Callable[[], Source | None]:
    """Return what opens a source again; it does not keep a model alive, only the path of a file."""
    name, how = source.name, source.how
    if isinstance(source.value, Path):
        path = source.value
        return lambda: open_source(path, name, how)
    try:
        reference = weakref.ref(source.value)
    except TypeError:
        return lambda: None

    def again() -> Source | None:
        alive = reference()
        return None if alive is None else open_source(alive, name, how)

    return again
