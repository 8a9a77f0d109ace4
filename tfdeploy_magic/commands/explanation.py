"""Explanation: what int8 does inside a model, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tfdeploy_magic.artifacts.comparison import Row
from tfdeploy_magic.artifacts.debugging import ChangedSample, ChannelSpread, Diagnosis, LayerError
from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.schemes import IoType, Variant
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.commands.conversion import Conversion
from tfdeploy_magic.commands.lite_model import LiteModel, source_reference
from tfdeploy_magic.errors import ConversionError, DataError
from tfdeploy_magic.evaluate import judge, measure
from tfdeploy_magic.quantization import debugging
from tfdeploy_magic.quantization.debugging import Debugged
from tfdeploy_magic.quantization.regions import Region
from tfdeploy_magic.sources.naming import describe

if TYPE_CHECKING:
    import pandas

    from tfdeploy_magic.views.figures import Figure

DEBUGGED = 100
"""Samples that the debugger runs, at the most: means over them change little with more."""

MOST_CHANGED = 6
"""Samples that are shown."""

_SETTINGS = (
    "layer_debug_metrics",
    "layer_direct_compare_metrics",
    "model_debug_metrics",
    "denylisted_ops",
    "denylisted_nodes",
    "fully_quantize",
)
"""What a tf.lite.experimental.QuantizationDebugOptions holds."""


@dataclass(frozen=True)
class Explanation:
    """What quantization does inside a model.

    Args:
        diagnosis: Everything that was measured.
        lite: The file it is about.
        csv: What TensorFlow's ``layer_statistics_dump`` writes.
    """

    diagnosis: Diagnosis
    lite: LiteModel
    csv: str = field(repr=False)

    @property
    def layers(self) -> tuple[LayerError, ...]:
        """The errors of the tensors, in the model's order."""
        return self.diagnosis.layers

    @property
    def worst(self) -> tuple[LayerError, ...]:
        """The same, the largest error over scale first."""
        from tfdeploy_magic.views.diagnosis import by_error

        return tuple(by_error(self.layers))

    @property
    def spreads(self) -> tuple[ChannelSpread, ...]:
        """How unequal the channels of the float model's tensors are, in the model's order."""
        return self.diagnosis.spreads

    @property
    def changed(self) -> tuple[ChangedSample, ...]:
        """The samples that quantization changed most."""
        return self.diagnosis.changed

    @property
    def model_metrics(self) -> dict[str, float]:
        """The person's own statistics of the outputs."""
        return dict(self.diagnosis.model_metrics)

    def to_pandas(self) -> pandas.DataFrame:
        """Return one line a tensor: TensorFlow's columns, layer, error over scale and SNR in dB.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas

        rows = []
        for layer in self.layers:
            row = asdict(layer)
            own = row.pop("custom")
            row.pop("histogram")
            rows.append({**row, "rmse/scale": layer.rmse_over_scale, **own})
        return pandas.DataFrame(rows)

    def figure(self, kind: str = "layers") -> Figure:
        """Draw it.

        Args:
            kind: "layers", "spread", "histograms" or "samples".

        Raises:
            DataError: There is no such figure.
        """
        from tfdeploy_magic.views import diagnosis

        figures = {
            "layers": diagnosis.layers_figure,
            "spread": diagnosis.spread_figure,
            "histograms": diagnosis.histograms_figure,
            "samples": diagnosis.samples_figure,
        }
        if kind not in figures:
            raise DataError(
                f"there is no figure '{kind}'", found=kind, wanted=", ".join(figures), cure="Name one of them."
            )
        return figures[kind](self.diagnosis)

    def __repr__(self) -> str:
        worst = f", worst {self.worst[0].layer}" if self.layers else ""
        return f"<Explanation of {self.lite.path.name}: {len(self.layers)} tensors{worst}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from tfdeploy_magic.views import diagnosis

        return diagnosis.mimebundle(self.diagnosis)


def explain(one: Conversion, io: IoType | None, options: Any) -> Explanation:
    """Make the int8 file, and look into it.

    Args:
        one: The model and its data.
        io: The dtype of the file's inputs and outputs.
        options: A ``tf.lite.experimental.QuantizationDebugOptions``, or anything with its attributes; None for none.

    Raises:
        ConversionError: The model's answers cannot be compared sample by sample.
    """
    one.read_data()
    assert one.test is not None
    if not one.comparable:
        raise ConversionError(
            f"{one.source.name} cannot be explained",
            found="a model that keeps state or draws at random",
            wanted="one that answers a sample alike each time",
            cure="Compare schemes only: leave --explain out.",
        )
    _ = one.baseline
    settings = _settings(options)
    variant = Variant(
        "int8",
        io,
        denylisted_ops=tuple(settings["denylisted_ops"] or ()),
        denylisted_nodes=tuple(settings["denylisted_nodes"] or ()),
    )
    made = one.make(variant)
    answers = measure.ask(one.worker, made.file, one.test.files, one.folder / "answers")
    found = debugged(one, **settings)
    spreads, regions = one.maker.screen()
    one.time_the_source()
    evidence = judge.judge(
        one.baseline,
        answers,
        one.task,
        scheme=made.file.scheme,
        latency=measure.time_one(one.worker, made.file, one.test.files),
        findings=one.findings(made),
    )
    one.keep_starts()
    provenance = one.with_costs(made.provenance)
    path = one.keep(replace(made, provenance=provenance))
    assert path is not None
    provenance = replace(provenance, test=one.test.name)
    lite = LiteModel(replace(made.file, path=path), evidence, provenance, source_reference(one.source))
    diagnosis = Diagnosis(
        Row(variant.label, lite.file, evidence, provenance),
        found.layers,
        spreads,
        _changed(one, answers),
        found.model_metrics,
        (*_unequal(regions), *_too_wide(one)),
    )
    return Explanation(diagnosis, lite, found.csv)


def _unequal(regions: Sequence[Region]) -> Iterator[Finding]:
    for region in regions:
        yield Finding(
            "warning",
            "unequal-channels",
            f"one channel of {region.layers[0]} is {region.spread:.0f} times the median one, and one scale serves them "
            "all",
            "Even them out, or leave that region in float: %quantize MODEL --int8 --max-drop 2% tries both.",
        )


def _too_wide(one: Conversion) -> Iterator[Finding]:
    wide, of = one.maker.widened()
    if wide:
        yield Finding(
            "warning",
            "too-wide-ranges",
            f"TensorFlow's calibrator gave {wide} of {of} tensors another range than they have: it looks at some only "
            "after an operator has overwritten them in place",
            "%quantize MODEL --int8 --engine both compares with the true ranges.",
        )


def debugged(one: Conversion, **settings: Any) -> Debugged:
    """Run TensorFlow's debugger on the test samples."""
    assert one.test is not None
    float_model, calibrated = one.maker.calibrated()
    one.report.stage("measuring each layer")
    given = {name: value for name, value in settings.items() if value}
    return debugging.debug(
        one.worker,
        calibrated,
        float_model,
        one.test.first(DEBUGGED, one.folder / "debugged"),
        one.maker.saved_model.signature,
        one.folder / "debugging",
        layers=one.maker.layers,
        seconds=one.patience,
        **given,
    )


def _settings(options: Any) -> dict[str, Any]:
    if options is None:
        return dict.fromkeys(_SETTINGS)
    missing = [name for name in _SETTINGS if not hasattr(options, name)]
    if missing:
        raise DataError(
            "--debug-options cannot be used",
            found=f"{describe(options)} without {missing[0]}",
            wanted="a tf.lite.experimental.QuantizationDebugOptions",
            cure="Make one: debug_options = tf.lite.experimental.QuantizationDebugOptions(...).",
        )
    return {name: getattr(options, name) for name in _SETTINGS}


def _changed(one: Conversion, answers: Arrays) -> tuple[ChangedSample, ...]:
    """Return the samples whose answers differ most."""
    assert one.test is not None
    base, test = one.baseline.outputs, one.test
    squares = [
        np.mean(np.square(np.asarray(base[name], np.float64) - answers[name]).reshape(test.count, -1), axis=1)
        for name in base
        if base[name].dtype.kind == "f"
    ]
    if not squares:
        return ()
    errors = np.sqrt(np.mean(squares, axis=0))
    inputs = test.open()
    return tuple(
        ChangedSample(
            int(row),
            float(errors[row]),
            {name: np.array(array[row]) for name, array in base.items()},
            {name: np.array(answers[name][row]) for name in base},
            None if test.labels is None else np.asarray(test.labels[row]),
            {name: np.array(array[row]) for name, array in inputs.items()},
        )
        for row in np.argsort(-np.nan_to_num(errors, nan=np.inf))[:MOST_CHANGED]
    )
