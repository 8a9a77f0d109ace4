"""Models in files: opened in a job, because reading one can crash a process and loading one can run its code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfdeploy_magic.artifacts.evidence import Finding, Latency
from tfdeploy_magic.artifacts.models import SavedModelDir
from tfdeploy_magic.artifacts.samples import SampleSet, open_arrays
from tfdeploy_magic.artifacts.signature import Arrays, Signature
from tfdeploy_magic.errors import InputError, JobFailed, NotAModel
from tfdeploy_magic.jobs import Report, Worker
from tfdeploy_magic.sources import graphs
from tfdeploy_magic.sources.how import How

_TASKS = "tfdeploy_magic.sources.stored"

_KINDS = {".keras": "keras", ".h5": "keras", ".hdf5": "keras", ".pb": "graph", ".tflite": "lite"}


@dataclass(frozen=True)
class StoredModel:
    """A model that a job holds; what :class:`TracedModel` is for a model in the kernel.

    Args:
        name: How the person calls it.
        path: Its file or directory.
        kind: "saved_model", "keras", "graph" or "lite".
        worker: The process that holds it.
        description: "SavedModel, TensorFlow 2.21.0".
        signature: Its inputs and outputs.
        findings: What was noticed about it.
        layers: Name scope of a layer -> how a person knows it.
        precision: The policy it computes in.
        unrollable: Whether its loops could be traced step by step.
    """

    name: str
    path: Path
    kind: str
    worker: Worker
    description: str
    signature: Signature
    findings: tuple[Finding, ...]
    layers: Mapping[str, str]
    precision: str
    unrollable: bool

    def save(self, folder: Path, *, single_sample: bool = False, rebuilt: bool = False) -> SavedModelDir:
        """Return a SavedModel that a job can convert: the file itself where it is one.

        Args:
            folder: Where another form is written.
            single_sample: Fix the batch size at 1.
            rebuilt: Load it and write it anew, even if it is a SavedModel.
        """
        written = self._call("save_task", folder=str(folder), single_sample=single_sample, rebuilt=rebuilt)
        return SavedModelDir(
            Path(written["path"]),
            Signature.from_dict(written["signature"]),
            written["size"],
            frozen=written["frozen"],
            tags=tuple(written["tags"]),
        )

    def route(self, saved: SavedModelDir) -> tuple[str, ...]:
        """Say how ``saved`` came from it."""
        if saved.path == self.path:
            return (f"{self.path.name} read as it is",)
        return (f"{self.path.name} loaded, traced and {'frozen' if saved.frozen else 'saved'} in a job",)

    def sha256(self) -> str:
        """Return a digest of the file's bytes."""
        return sha256_of(self.path)

    def predict(self, samples: SampleSet, report: Report) -> Arrays:
        """Answer every sample with the model itself, in its job."""
        folder = next(iter(samples.files.values())).parent / "source_answers"
        inputs = {name: str(path) for name, path in samples.files.items()}
        answers = self._call("predict_task", inputs=inputs, count=samples.count, folder=str(folder))
        return open_arrays({name: Path(path) for name, path in answers.items()})

    def latency(self, samples: SampleSet, report: Report) -> Latency:
        """Time the model on one sample, in its job."""
        inputs = {name: str(path) for name, path in samples.files.items()}
        return Latency(**self._call("latency_task", inputs=inputs, count=samples.count))

    def _call(self, task: str, **arguments: Any) -> Any:
        return _in_job(self.worker, self.path, self.name, task, arguments)


def matches(value: object) -> bool:
    """Whether ``value`` is a path."""
    return isinstance(value, Path)


def path_of(words: str) -> Path:
    """Return what a person typed as a path."""
    return Path(words).expanduser()


def looks_like_a_path(words: str) -> bool:
    """Whether words can only mean a file: they hold a slash, end as a model file does, or name an existing one."""
    return "/" in words or "\\" in words or path_of(words).suffix in _KINDS or path_of(words).exists()


def fingerprint(path: Path, how: How) -> str:
    """Return a digest of a file's bytes and of how it is to be opened."""
    kind_of(path)
    words = json.dumps(how.to_dict(), sort_keys=True)
    return hashlib.sha256(f"{sha256_of(path)}{words}".encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return a digest of a file, or of the names and bytes of all files in a directory."""
    running = hashlib.sha256()
    for part in graphs.paths_in(path) if path.is_dir() else [path]:
        running.update(part.relative_to(path).as_posix().encode())
        with part.open("rb") as stream:
            running.update(hashlib.file_digest(stream, "sha256").digest())
    return running.hexdigest()


def kind_of(path: Path) -> str:
    """Return "saved_model", "keras", "graph" or "lite".

    Raises:
        NotAModel: There is nothing there, or it is none of these.
    """
    if path.is_dir():
        if (path / "saved_model.pb").exists() or (path / "saved_model.pbtxt").exists():
            return "saved_model"
        within = sorted(str(p.parent) for p in path.glob("*/saved_model.pb"))
        cure = f"Did you mean {within[-1]}?" if within else "Name the directory that holds saved_model.pb."
        raise NotAModel(
            f"{path} is not a model", found="a directory without a saved_model.pb", wanted=_WANTED, cure=cure
        )
    if not path.exists():
        near = ", ".join(sorted(p.name for p in path.parent.glob("*") if p.suffix in _KINDS)[:5])
        raise NotAModel(
            f"{path} is not a model",
            found="no such file or variable",
            wanted=_WANTED,
            cure=f"That folder has {near}." if near else "Check the spelling, or run the cell that makes it.",
        )
    if path.suffix not in _KINDS:
        raise NotAModel(
            f"{path} is not a model",
            found=f"a file that ends in '{path.suffix}'" if path.suffix else "a file without an ending",
            wanted=_WANTED,
            cure="Name the file that holds the model.",
        )
    return "saved_model_file" if path.name == "saved_model.pb" else _KINDS[path.suffix]


_WANTED = "a SavedModel directory, or a .keras, .h5, .pb or .tflite file"


def open_file(path: Path, name: str, how: How, worker: Worker) -> StoredModel:
    """Open a model file in a job.

    Raises:
        NotAModel: It is not a model's file.
        InputError: It carries code and is not trusted, or needs code that only the kernel has.
        JobError: Reading it crashed the job, or raised something unforeseen.
    """
    path = path.absolute()
    kind = kind_of(path)
    if kind == "saved_model_file":
        path, kind = path.parent, "saved_model"
    opened = _in_job(worker, path, name, "open_task", {"kind": kind, "name": name, "how": how.to_dict()})
    return StoredModel(
        name,
        path,
        kind,
        worker,
        opened["description"],
        Signature.from_dict(opened["signature"]),
        tuple(Finding(**finding) for finding in opened["findings"]),
        opened["layers"],
        opened["precision"],
        opened["unrollable"],
    )


def _in_job(worker: Worker, path: Path, name: str, task: str, arguments: Mapping[str, Any]) -> Any:
    try:
        return worker.call(f"{_TASKS}:{task}", {"path": str(path), **arguments})
    except JobFailed as error:
        if task == "open_task":
            raise cannot_be_opened(name, error.exception, error.message) from error
        saved = task == "save_task"
        raise InputError(
            f"{name} failed while being {'saved' if saved else 'asked'}",
            found=_first_line(error.exception, error.message),
            wanted="a model that can be written as a SavedModel" if saved else "a model that answers this data",
            cure=f"{'Does it answer at all?' if saved else 'Are all samples what it takes?'} --debug shows where.",
        ) from error


def cannot_be_opened(name: str, exception: str, message: str) -> InputError:
    """Return the error for a file that TensorFlow, Keras or LiteRT does not load."""
    return InputError(
        f"{name} cannot be opened",
        found=_first_line(exception, message),
        wanted="a whole file that this TensorFlow can read",
        cure="Was it written to its end, by a version not newer than this one? --debug shows where it failed.",
    )


def _first_line(exception: str, message: str) -> str:
    return f"{exception}: {next(iter(message.strip().splitlines()), 'no message')[:300]}".rstrip(".")
