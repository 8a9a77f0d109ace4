"""``%export``: a model as a numbered version that TensorFlow Serving and ``tfdeploy-serve`` load."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from tfdeploy_magic import sources
from tfdeploy_magic.artifacts.evidence import Evidence, Finding
from tfdeploy_magic.artifacts.signature import Signature
from tfdeploy_magic.commands.declaration import FromKernel, Named, OnTheLine, Options, command
from tfdeploy_magic.commands.model_options import value_and_name
from tfdeploy_magic.errors import NameNotFound
from tfdeploy_magic.jobs import Report, Worker
from tfdeploy_magic.jobs.progress import Listener
from tfdeploy_magic.sources import How, Source, files
from tfdeploy_magic.sources.samples import NamedData

if TYPE_CHECKING:
    from tfdeploy_magic.serving.export import ExportedVersion


def _number(value: object) -> object:
    return None if value == "auto" else value


class ExportOptions(Options):
    """Base of the options of every verb that writes a model as a version that a server loads."""

    model: Annotated[Any, FromKernel("model"), OnTheLine(positional=True)] = Field(description="the model to serve")
    version: Annotated[int | None, BeforeValidator(_number)] = Field(
        None, ge=0, lt=2**63, description="its number; the next one when left out, or auto"
    )
    signature: Annotated[Mapping[str, Any] | None, FromKernel("functions")] = Field(
        None, description="functions of the model's tensors to be asked by a name of their own: embed=FUNCTION,..."
    )
    preprocess: Annotated[Callable[..., Any] | Named | None, FromKernel("function")] = Field(
        None, description="function of tf.* operations that turns raw inputs into what the model takes, in the server"
    )
    postprocess: Annotated[Callable[..., Any] | Named | None, FromKernel("function")] = Field(
        None, description="function of tf.* operations that turns the model's answers into what a client gets"
    )
    input_spec: str | None = Field(
        None,
        description="what preprocess takes, or without one what the model takes where that is not clear: "
        "?x224x224x3:uint8, ?:string, or NAME=?x7:int32,...",
    )
    test: Annotated[Any, FromKernel("data")] = Field(
        None, description="samples as they are sent to the server, to compare its answers with the model's"
    )
    warmup: Path | None = Field(
        None,
        description="a request log (--request_log_file of tfdeploy-serve): a request of each shape in it is run before "
        "the version is served",
    )
    trust: bool = Field(False, description="run the code that a model file carries, in a job")
    timeout: float = Field(1800.0, gt=0, description="seconds that one step of the work may take")

    def data_to_find(self) -> tuple[str, ...]:
        """Test data, unless the model is copied or has no signature that is asked by default."""
        source = self.source()
        if isinstance(source.value, Path):
            return ("test",) if files.kind_of(source.value) in ("keras", "graph") else ()
        try:
            _ = source.inputs
        except NameNotFound:
            return ()
        return ("test",)

    def source(self) -> Source:
        """Open the model; a face that looked at it already hands its source on as the model."""
        value, name = value_and_name(self.model)
        if isinstance(value, Source):
            return value
        how = How(input_spec=None if self.preprocess is not None else self.input_spec, trust=self.trust)
        name = name or (str(value) if isinstance(value, str | Path) else "model")
        return sources.open_source(value, name, how, Worker(deadline=self.timeout))


class Export(ExportOptions):
    """Write a model as a version that a server loads: whole, read back and compared, or not at all.

    A Keras model, tf.Module or tf.function becomes a SavedModel with its weights as variables and all its signatures.
    A SavedModel or .tflite file is copied as it is.
    """

    base_path: Annotated[Path, OnTheLine(positional=True)] = Field(
        description="the folder of all its versions, as a server is given it; made when missing"
    )


@dataclass(frozen=True)
class Exported:
    """A version on disk, as a person holds it.

    Args:
        exported: What was written, and what was measured on it.
        source: What the person calls the model.
    """

    exported: ExportedVersion
    source: str

    @property
    def path(self) -> Path:
        """The version's folder."""
        return self.exported.path

    @property
    def base_path(self) -> Path:
        """The folder of all versions: what a server is given."""
        return self.exported.base_path

    @property
    def version(self) -> int:
        """Its number."""
        return self.exported.version

    @property
    def size(self) -> int:
        """Bytes."""
        return self.exported.size

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Every signature by its name."""
        return self.exported.signatures

    @property
    def evidence(self) -> Evidence:
        """How its answers compare with the model's."""
        return self.exported.evidence

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was noticed, worst first."""
        return self.exported.findings

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"<Exported {self.base_path.name}, version {self.version}: {self.size:,} bytes>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from tfdeploy_magic.views import export as view

        return view.mimebundle(self.exported, self.source)


@command("export", Export)
def export(options: Export, progress: Listener) -> Exported:
    """Trace, write, read back, compare, and only then give it its number.

    Returns:
        The version, with its signatures and what was measured.

    Raises:
        InputError: Something named cannot be used, or the folder cannot be written; nothing was left there.
        UserCodeError: The model or a function raised while being traced or asked.
        ContractBroken: What was written cannot be read back as what was meant.
        JobError: A job crashed or hung; this process is unharmed.
    """
    report = Report(progress)
    with contextlib.closing(options.source()) as source:
        source.worker.listener = report.relay
        exported = write_version(options, source, options.base_path, report, test=named_test(options.test))
        report.finish()
    # What traced the model holds on to its weights, and a version on disk needs none.
    return Exported(replace(exported, model=None), source.name)


def write_version(
    options: ExportOptions,
    source: Source,
    base_path: Path,
    report: Report,
    *,
    test: NamedData | None = None,
    like: Mapping[str, Signature] | None = None,
) -> ExportedVersion:
    """Write a model as its options say.

    Args:
        options: How.
        source: The model, opened.
        base_path: The folder of all its versions.
        report: Told of the progress.
        test: Samples to compare what was written with the model on.
        like: The signatures that clients know already.
    """
    from tfdeploy_magic.serving.export import export as write  # loading the extension has no need of it

    return write(
        source,
        base_path,
        version="auto" if options.version is None else options.version,
        signatures={name: value_and_name(each)[0] for name, each in (options.signature or {}).items()},
        preprocess=value_and_name(options.preprocess)[0],
        postprocess=value_and_name(options.postprocess)[0],
        input_spec=options.input_spec if options.preprocess is not None else None,
        test=test,
        warmup=options.warmup,
        like=like,
        report=report,
    )


def named_test(data: Any) -> NamedData | None:
    """Return test data under a name; labels, which no server is asked, are left out."""
    if data is None or isinstance(data, NamedData):
        return data
    return NamedData("test", data[0]) if isinstance(data, tuple) and len(data) == 2 else NamedData("test", data)
