"""What quantization does inside a model: HTML and its plain-text twin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.debugging import ChangedSample, ChannelSpread, Diagnosis, LayerError
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDING = 1 / math.sqrt(12)
"""The root mean square error of rounding, in steps: a value lies anywhere between two of them."""

LINES = 12
"""Layers in the table that is always shown; all of them are one click away."""

WIDTH = 1080

_BEYOND_ROUNDING = 1.5 * ROUNDING
_LONGEST = 80


def mimebundle(diagnosis: Diagnosis) -> dict[str, str]:
    """Return the diagnosis as ``text/html`` and ``text/plain``."""
    return {"text/html": html(diagnosis), "text/plain": text(diagnosis)}


def text(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as plain text."""
    lines = [f"{_title(diagnosis)}: {diagnosis.row.provenance.source}", f"  {first_sentence(diagnosis)}"]
    lines += pieces.plain_findings(diagnosis.findings)
    for title, rows in _sections(diagnosis):
        lines += pieces.plain_section(title, pieces.plain_table(rows))
    lines += ["", *pieces.plain_facts(_facts(diagnosis))]
    return pieces.plain_text(lines)


def html(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as HTML; every name that came from a model or a person is escaped."""
    worst = next((level for level in pieces.EDGE if any(each.level == level for each in diagnosis.findings)), "note")
    tables = {title: pieces.section(title, pieces.table(*rows)) for title, rows in _sections(diagnosis)}
    return pieces.card(
        pieces.EDGE[worst],
        _title(diagnosis),
        (
            pieces.heading(_title(diagnosis), pieces.escape(diagnosis.row.provenance.source)),
            pieces.sentence(first_sentence(diagnosis)),
            *map(pieces.finding, diagnosis.findings),
            *tables.values(),
            *_pictures(diagnosis),
            pieces.facts(_facts(diagnosis)),
            pieces.folded(
                f"all columns of {_number(len(diagnosis.layers), 'tensor')}", pieces.table(*_columns(diagnosis.layers))
            )
            if diagnosis.layers
            else "",
        ),
        width=WIDTH,
    )


def layers_figure(diagnosis: Diagnosis) -> Figure:
    """Draw the error of every tensor in the model's order: in steps of its scale, and as SNR."""
    from tfdeploy_magic.views import diagnosis_figures

    return diagnosis_figures.layers(diagnosis)


def spread_figure(diagnosis: Diagnosis) -> Figure:
    """Draw how unequal the channels of every float tensor are, and those of the most unequal one by one."""
    from tfdeploy_magic.views import diagnosis_figures

    return diagnosis_figures.spread(diagnosis)


def histograms_figure(diagnosis: Diagnosis) -> Figure:
    """Draw the values of the worst tensors, and the range that each can hold."""
    from tfdeploy_magic.views import diagnosis_figures

    return diagnosis_figures.histograms(diagnosis)


def samples_figure(diagnosis: Diagnosis) -> Figure:
    """Draw the samples that were changed most: the sample, and both models' answers."""
    from tfdeploy_magic.views import diagnosis_figures

    return diagnosis_figures.samples(diagnosis)


def by_error(layers: Sequence[LayerError]) -> list[LayerError]:
    """Return tensors, the worst first: by the error in steps of their scale, what is no number before all."""
    return sorted(layers, key=_badness, reverse=True)


def worst_spread(spreads: Sequence[ChannelSpread]) -> ChannelSpread | None:
    """Return the tensor with the most unequal channels; None when there is none."""
    return max(spreads, key=lambda each: -1.0 if math.isnan(each.spread) else each.spread, default=None)


def outside(layer: LayerError) -> float:
    """Return about what share of a tensor's float values it cannot hold, by the bins of its histogram; NaN unknown."""
    histogram = layer.histogram
    if histogram is None or not (total := sum(histogram.counts)):
        return math.nan
    return 1 - sum(_inside(layer)) / total


def _inside(layer: LayerError) -> Iterator[float]:
    assert layer.histogram is not None
    edges, counts = layer.histogram.edges, layer.histogram.counts
    half = layer.scale / 2  # what rounds to an end is held
    low, high = layer.histogram.low - half, layer.histogram.high + half
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        width = right - left
        held = (min(right, high) - max(left, low)) / width if width > 0 else float(low <= left <= high)
        yield count * min(max(held, 0.0), 1.0)


def steps(layer: LayerError) -> str:
    """Return a tensor's error in steps of its scale: "6.57", "no scale" where nothing was rounded."""
    if not layer.scale:
        return "no scale"
    return f"{layer.rmse_over_scale:.2f}" if math.isfinite(layer.rmse_over_scale) else "not a number"


def labelled(layer: LayerError | ChannelSpread) -> str:
    """Return what a tensor is called: the layer, and the operator where that says more."""
    return f"{layer.layer} · {layer.op_name}" if layer.op_name else f"{layer.layer} · input"


def outcome(values: npt.NDArray[np.generic] | None) -> str:
    """Return an answer or a label in a word: "class 3", "0.27", "[28, 28] values"."""
    if values is None:
        return "unknown"
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" or array.size == 0:
        return _short(str(array.tolist()), 24)
    if array.size == 1:
        return f"{array.item():.4g}"
    return f"class {int(np.argmax(array))}" if array.ndim == 1 else f"{list(array.shape)} values"


def label_of(sample: ChangedSample) -> str:
    """Return a sample's label: a class where the answer is one, otherwise the value."""
    label, name = sample.label, chosen_output(sample)
    answered = "" if name is None else outcome(sample.reference[name])
    is_index = label is not None and label.size == 1 and label.dtype.kind in "iu"
    return f"class {label.item()}" if label is not None and is_index and "class" in answered else outcome(label)


def chosen_output(sample: ChangedSample) -> str | None:
    """Return the name of the output that differs most; None when there is none that both models have."""
    shared = [name for name in sample.reference if name in sample.answer]
    return max(shared, key=lambda name: _distance(sample.reference[name], sample.answer[name]), default=None)


def first_sentence(diagnosis: Diagnosis) -> str:
    """Return what hurts most, in the person's words."""
    if not diagnosis.layers:
        return "No tensor was measured."
    worst = by_error(diagnosis.layers)[0]
    name, operator = _short(worst.layer), _short(worst.op_name)
    if math.isinf(_badness(worst)):
        return f"{name} is the worst layer: the error of its {operator} is no number, so it computes NaN or infinity."
    if _badness(worst) <= _BEYOND_ROUNDING:
        return (
            f"No layer does more than round: {name} is the worst with {steps(worst)} steps of its scale, and rounding "
            f"alone gives about {ROUNDING:.2f}."
        )
    return (
        f"{name} is the worst layer: its {operator} is off by {steps(worst)} steps of its scale, where rounding alone "
        f"gives about {ROUNDING:.2f} (SNR {words.decibels(worst.snr_db)})."
    )


def _badness(layer: LayerError) -> float:
    if not layer.scale:  # nothing was rounded, so there are no steps to count
        return -1.0
    return layer.rmse_over_scale if math.isfinite(layer.rmse_over_scale) else math.inf


def _distance(reference: npt.NDArray[np.generic], answer: npt.NDArray[np.generic]) -> float:
    both = np.asarray(reference), np.asarray(answer)
    if any(each.dtype.kind not in "biuf" for each in both) or both[0].shape != both[1].shape or not both[0].size:
        return 0.0
    distance = float(np.sqrt(np.mean((both[0].astype(float) - both[1].astype(float)) ** 2)))
    return math.inf if math.isnan(distance) else distance


def _title(diagnosis: Diagnosis) -> str:
    return f"inside {_short(diagnosis.row.label)}"


def _sections(diagnosis: Diagnosis) -> Iterator[tuple[str, list[tuple[pieces.Cell, ...]]]]:
    if diagnosis.layers:
        shown = by_error(diagnosis.layers)[:LINES]
        of = _number(len(diagnosis.layers), "quantized tensor")
        counted = f"the worst {len(shown)} of {of}" if len(diagnosis.layers) > LINES else of
        yield f"{counted}, the worst first", _main(shown)
    if diagnosis.changed:
        yield "the samples it changed most", _changed(diagnosis.changed)


def _main(layers: Sequence[LayerError]) -> list[tuple[pieces.Cell, ...]]:
    rows: list[tuple[pieces.Cell, ...]] = [
        ("layer", "operator", "RMSE / scale", "SNR", "largest |Δ|", "scale", "not held")
    ]
    for layer in layers:
        lost = outside(layer)
        rows.append(
            (
                _short(layer.layer),
                _short(layer.op_name),
                steps(layer),
                words.decibels(layer.snr_db),
                f"{layer.max_abs_error:.3g}",
                f"{layer.scale:.3g}",
                "–" if math.isnan(lost) else "none" if not lost else f"{_per_cent(lost)}",
            )
        )
    return rows


def _per_cent(share: float) -> str:
    return "under 0.1%" if share < 0.001 else words.share(share)


def _changed(changed: Sequence[ChangedSample]) -> list[tuple[pieces.Cell, ...]]:
    rows: list[tuple[pieces.Cell, ...]] = [("sample", "label", "source model", "quantized", "RMS difference")]
    for sample in changed:
        name = chosen_output(sample)
        both = (None, None) if name is None else (sample.reference[name], sample.answer[name])
        rows.append((f"{sample.row}", label_of(sample), *map(outcome, both), f"{sample.error:.3g}"))
    return rows


def _columns(layers: Sequence[LayerError]) -> list[tuple[pieces.Cell, ...]]:
    """Return every column under its name in TensorFlow's QuantizationDebugger, and the person's own."""
    own = list(dict.fromkeys(name for layer in layers for name in layer.custom))
    head = (
        *("layer", "op_name", "tensor_idx", "num_elements", "stddev", "mean_error", "max_abs_error"),
        *("mean_squared_error", "scale", "zero_point", "rmse/scale", "snr_db", *own, "tensor_name"),
    )
    rows: list[tuple[pieces.Cell, ...]] = [head]
    for layer in layers:
        numbers = (layer.stddev, layer.mean_error, layer.max_abs_error, layer.mean_squared_error, layer.scale)
        mine = (f"{layer.custom[name]:.4g}" if name in layer.custom else "" for name in own)
        rows.append(
            (
                *(_short(layer.layer), layer.op_name, f"{layer.tensor_idx}", f"{layer.num_elements:g}"),
                *(f"{number:.4g}" for number in numbers),
                *(f"{layer.zero_point}", f"{layer.rmse_over_scale:.4g}", f"{layer.snr_db:.4g}", *mine),
                _short(layer.tensor_name),
            )
        )
    return rows


def _facts(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    evidence = diagnosis.row.evidence
    snr = "not measured" if evidence.snr_db is None else f"SNR {words.decibels(evidence.snr_db)}"
    agreement = "" if evidence.agreement is None else f", same top class {words.share(evidence.agreement)}"
    facts = [("the file", f"{words.size(diagnosis.row.file.size)}, {snr}{agreement}")]
    if (unequal := worst_spread(diagnosis.spreads)) is not None:
        facts.append(("channels", f"most unequal in {_short(labelled(unequal))}: {_unequal(unequal)}"))
    facts += [(_short(name), f"{value:.4g}") for name, value in diagnosis.model_metrics.items()]
    return facts


def _unequal(spread: ChannelSpread) -> str:
    return f"the widest has {spread.spread:.3g} times the range of the median one"


def _pictures(diagnosis: Diagnosis) -> Iterator[str]:
    room = WIDTH - 40
    if diagnosis.layers:
        said = "; ".join(
            f"{_short(labelled(layer))}: RMSE / scale {steps(layer)}, SNR {words.decibels(layer.snr_db)}"
            for layer in by_error(diagnosis.layers)[:LINES]
        )
        yield pieces.picture(layers_figure(diagnosis), f"errors of the tensors, the worst first: {said}", room)
    if (unequal := worst_spread(diagnosis.spreads)) is not None:
        said = f"ranges of the channels, most unequal in {_short(labelled(unequal))}: {_unequal(unequal)}"
        yield pieces.picture(spread_figure(diagnosis), said, room)
    if any(layer.histogram for layer in diagnosis.layers):
        lost = [(layer, outside(layer)) for layer in by_error(diagnosis.layers) if layer.histogram][:6]
        said = "; ".join(f"{_short(layer.layer)}: {_held(share)}" for layer, share in lost)
        yield pieces.picture(histograms_figure(diagnosis), f"float values and the range held: {said}", room)
    if diagnosis.changed:
        rows = [", ".join(map(str, row)) for row in _changed(diagnosis.changed)[1:]]
        said = f"samples changed most (number, label, source model, quantized, difference): {'; '.join(rows)}"
        yield pieces.picture(samples_figure(diagnosis), said, room)


def _held(share: float) -> str:
    if math.isnan(share):
        return "no values"
    return "all held" if not share else f"{_per_cent(share)} outside"


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _short(name: str, longest: int = _LONGEST) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"
