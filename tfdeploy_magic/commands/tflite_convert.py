"""``%tflite_convert``: from a model in the kernel to a validated .tflite file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tfdeploy_magic.artifacts import store
from tfdeploy_magic.artifacts.evidence import Evidence
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.schemes import SCHEMES, IoType, SchemeName, Variant
from tfdeploy_magic.commands.declaration import OnTheLine, command
from tfdeploy_magic.commands.lite_model import LiteModel, source_reference
from tfdeploy_magic.commands.model_options import ModelOptions
from tfdeploy_magic.errors import DataError, OutputError
from tfdeploy_magic.evaluate import judge, measure
from tfdeploy_magic.jobs.progress import Listener

if TYPE_CHECKING:
    from tfdeploy_magic.commands.conversion import Conversion, Made


class TfliteConvert(ModelOptions):
    """Convert a model to a .tflite file and measure it against the model it came from.

    A notebook finds arrays and datasets in its kernel that fit the model, calibrates and tests with them, and says
    which. Each number in the result was measured.
    """

    scheme: Annotated[SchemeName, OnTheLine(flags=True)] = Field("float32", description="how numbers are stored")
    io: IoType | None = Field(
        None,
        description="dtype of inputs and outputs; int8 for --int8 unless told otherwise, float32 for the others",
    )
    output: Annotated[Path | None, OnTheLine(short="-o")] = Field(
        None, description="file to write; without it the file lives in the artefact store"
    )
    force: bool = Field(False, description="replace an existing file")
    settings: Annotated[dict[str, Any] | None, OnTheLine(hidden=True)] = Field(
        None, description="settings of TFLiteConverter that no other option expresses, as a cell's converter had them"
    )

    def data_to_find(self) -> tuple[str, ...]:
        """Calibration data where the scheme needs it, and test data always."""
        return ("calib", "test") if SCHEMES[self.scheme].calibrated else ("test",)


@command("tflite_convert", TfliteConvert, cell="converter")
def tflite_convert(options: TfliteConvert, progress: Listener) -> LiteModel:
    """Trace, convert, measure, keep; or find again what was done before.

    Returns:
        The file with its evidence and the recipe that made it.

    Raises:
        InputError: Something named cannot be used; nothing was started.
        UserCodeError: The model's call(), a generator or a metric raised or hung.
        ConversionError: TensorFlow refused the model.
        JobError: The conversion crashed, hung or outgrew its memory; this process is unharmed.
    """
    from tfdeploy_magic.commands import conversion  # loading the extension has no need of it

    target = options.output.expanduser().absolute() if options.output else None
    if target:
        store.check_writable(target, force=options.force)
    _check_options(options)
    variant = Variant(options.scheme, options.io)
    with conversion.opened(options, progress, calibrated=variant.calibrated) as one:
        one.settings = options.settings
        one.read_data()
        return _finish(one, variant, target, force=options.force)


def _finish(one: Conversion, variant: Variant, target: Path | None, *, force: bool) -> LiteModel:
    """Find or make the file and its evidence, and put them where they belong."""
    found = one.find(variant)
    evidence = one.known_evidence(variant) if found else None
    if found is None and one.comparable:
        _ = one.baseline  # a metric that does not fit shows before anything is converted
    made = found or one.make(variant)
    provenance = replace(made.provenance, evidence_cached=evidence is not None)
    if evidence is None:
        evidence = _measured(one, made)
        provenance = one.with_costs(provenance)
        one.note(variant, evidence)
    one.report.stage("writing")
    kept = made.file
    if found is None:
        path = one.keep(replace(made, provenance=provenance), optional=target is not None)
        kept = replace(kept, path=path) if path else kept
    if target is not None:
        kept = _write(kept, target, force=force)
    provenance = replace(
        provenance,
        test=one.test.name if one.test and evidence.measured else None,
        options={**provenance.options, "output": str(target) if target else None},
    )
    return LiteModel(kept, evidence, provenance, source_reference(one.source))


def _measured(one: Conversion, made: Made) -> Evidence:
    findings = one.findings(made)
    cannot = measure.cannot_be_measured(made.file, findings, samples=one.test is not None)
    if cannot is not None or one.test is None:
        return cannot or judge.not_measured(findings)
    _ = one.baseline
    # Timed last: by now the fork server has done importing, and nothing else is at work.
    one.time_the_source()
    return measure.measure(one.worker, made.file, one.test, one.baseline, one.task, one.folder / "answers", findings)


def _check_options(options: TfliteConvert) -> None:
    scheme = SCHEMES[options.scheme]
    if options.io is not None and options.io not in scheme.ios:
        raise DataError(
            f"--io {options.io} does not go with {scheme.flag}",
            found=options.io,
            wanted=" or ".join(scheme.ios),
            cure="Only --int8 stores its inputs and outputs as integers.",
        )
    if scheme.calibrated and options.calib is None:
        raise DataError(
            f"{scheme.flag} needs calibration data",
            found="none",
            wanted="some real samples: random numbers ruin a quantized model while its accuracy looks fine",
            cure="Name some: --calib x_train.",
        )
    if not scheme.calibrated and options.calib is not None:
        raise DataError(
            f"--calib does not go with {scheme.flag}",
            found="calibration data",
            wanted="none: only schemes that quantize activations are calibrated",
            cure="Leave --calib out, or add --int8.",
        )


def _write(file: LiteFile, target: Path, *, force: bool) -> LiteFile:
    try:
        store.write_whole(file.path, target, force=force)
    except OutputError as error:
        if store.store_folder() not in file.path.parents:
            raise
        raise OutputError(
            error.what, found=error.found, wanted=error.wanted, cure=f"The finished file is kept at {file.path}."
        ) from error
    return replace(file, path=target)
