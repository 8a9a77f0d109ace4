"""The job behind the debugger: a model whose every int8 operator also runs in float, run on real samples."""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdeploy_magic.artifacts.samples import open_arrays
from tfdeploy_magic.artifacts.signature import Signature
from tfdeploy_magic.errors import ConversionError, NameNotFound
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.quantization.litegraph import Graph, layers_of, parse

BINS = 50
"""A histogram has at most so many bins, and rarely fewer than half as many."""

COLUMNS = (
    *("op_name", "tensor_idx", "num_elements", "stddev", "mean_error", "max_abs_error", "mean_squared_error"),
    *("scale", "zero_point", "tensor_name"),
)
"""TensorFlow's columns; the person's own stand before the scale."""


def debug_task(
    report: Report,
    calibrated: str,
    float_model: str,
    samples: dict[str, str],
    signature: dict[str, Any],
    layers: dict[str, str],
    denylisted_ops: list[str],
    denylisted_nodes: list[str],
    fully_quantize: bool,
    record: list[str],
    folder: str,
) -> dict[str, Any]:
    """Run TensorFlow's debugger; a job's entry.

    Args:
        report: Told of the progress.
        calibrated: The calibrated .tflite file.
        float_model: The float one.
        samples: Input name -> ``.npy`` file.
        signature: The model's.
        layers: Name scope of a layer -> how a person knows it.
        denylisted_ops: Operators to leave in float.
        denylisted_nodes: Output tensors of operators to leave in float.
        fully_quantize: Whether inputs and outputs of the model are quantized too.
        record: What to write for the person's functions: "differences" and "values" of each tensor, "answers".
        folder: Where to, empty.

    Returns:
        Under "rows" one for each tensor: what a LayerError has, and "text", TensorFlow's own row of the csv file.
    """
    from tensorflow.lite.python.convert import mlir_quantize
    from tensorflow.lite.tools.optimize.debugging.python import debugger

    content = Path(calibrated).read_bytes()
    tree = parse(content)
    check_denylists(tree, denylisted_ops, denylisted_nodes)

    report.stage("quantizing")
    debug_model = mlir_quantize(
        content,
        fully_quantize=fully_quantize,
        enable_numeric_verify=True,
        denylisted_ops=denylisted_ops,
        denylisted_nodes=denylisted_nodes,
    )
    recorder = _Recorder(Path(folder), record)
    options = debugger.QuantizationDebugOptions(
        layer_debug_metrics={"differences": recorder.differences} if "differences" in record else None,
        layer_direct_compare_metrics={"values": recorder.values},
        model_debug_metrics={"answers": recorder.answers} if "answers" in record else None,
    )
    rows = open_arrays({name: Path(file) for name, file in samples.items()})
    asked = Signature.from_dict(signature)
    order = _input_order(tree, asked)
    batch = asked.fixed_batch or 1
    starts = range(0, len(rows[order[0]]) - batch + 1, batch)

    def feed() -> Iterator[list[npt.NDArray[Any]]]:
        report.stage("running the debug model")
        for start in report.counting(starts, len(starts)):
            recorder.next_sample()
            yield [np.asarray(rows[name][start : start + batch]) for name in order]

    with warnings.catch_warnings():
        # It says that tf.lite.Interpreter is deprecated, and that keeping every tensor is for debugging.
        warnings.simplefilter("ignore", UserWarning)
        try:
            debugging = debugger.QuantizationDebugger(
                quant_debug_model_content=bytes(debug_model),
                float_model_path=float_model,
                debug_dataset=feed,
                debug_options=options,
            )
        except ValueError as error:
            if "debug mode" not in str(error):
                raise
            raise _nothing_to_verify(denied=bool(denylisted_ops or denylisted_nodes)) from error
        _mend_quantized_ends(debugging)
        debugging.run()
    dump = io.StringIO()
    debugging.layer_statistics_dump(dump)
    texts = list(csv.DictReader(io.StringIO(dump.getvalue())))
    tensor_layers = layers_of(tree, layers)
    places = {node: tensor_layers[tensors[0]] for node, tensors in _nodes(_graphs(tree)).items()}
    found = zip(debugging.layer_statistics.items(), texts, recorder.tensors, strict=True)
    return {"rows": [_row(name, metrics, text, tensor, places) for (name, metrics), text, tensor in found]}


def check_denylists(tree: Any, denylisted_ops: Iterable[str], denylisted_nodes: Iterable[str]) -> None:
    """Refuse a denylist that names nothing: TensorFlow ignores what it does not know.

    Args:
        tree: The float or calibrated file, as :func:`~tfdeploy_magic.quantization.litegraph.parse` reads it.
        denylisted_ops: Operators, in capitals or not.
        denylisted_nodes: The outputs of operators that have one; TensorFlow finds no other by its tensors.

    Raises:
        NameNotFound: The model does not have one of them.
    """
    graphs = _graphs(tree)
    _check_denied("operator", map(str.upper, denylisted_ops), [op.name for graph in graphs for op in graph.ops])
    alone = [node for node, tensors in _nodes(graphs).items() if len(tensors) == 1]
    _check_denied("tensor that is an operator's only output", denylisted_nodes, alone)


def _check_denied(kind: str, denied: Iterable[str], known: Sequence[str]) -> None:
    for name in denied:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
            raise NameNotFound(
                f"{name} cannot be left in float",
                found=f"no {kind} of that name",
                wanted=f"one of {', '.join(dict.fromkeys(near or known[:8]))}",
                cure="Copy op_name or tensor_name of a row; an operator with several outputs goes by op_name only.",
            )


def _graphs(tree: Any) -> list[Graph]:
    return [Graph(tree, index) for index in range(len(tree.subgraphs))]


def _nodes(graphs: Iterable[Graph]) -> dict[str, list[str]]:
    """Return what TensorFlow calls each operator, its outputs joined, -> these."""
    made = [[graph.name(tensor) for tensor in op.outputs] for graph in graphs for op in graph.ops]
    return {";".join(names): names for names in made if names}


def _input_order(tree: Any, signature: Signature) -> list[str]:
    """Return the names of the inputs in the order of the file, in which the debugger takes them."""
    asked = next(s for s in tree.signatureDefs if s.signatureKey.decode() == signature.name)
    names = {int(entry.tensorIndex): entry.name.decode() for entry in asked.inputs}
    return [names[index] for index in Graph(tree, asked.subgraphIndex).inputs]


def _nothing_to_verify(*, denied: bool) -> ConversionError:
    return ConversionError(
        "the quantization of this model cannot be debugged",
        found="no tensor that is computed in int8",
        wanted="at least one, to compare with its float values",
        cure="Shorten the denylists." if denied else "int8 gains nothing for it: keep it in float.",
    )


def _mend_quantized_ends(debugging: Any) -> None:
    """Let a model have inputs and outputs of any zero point.

    TensorFlow 2.21's debugger takes a zero point of 0 for none at all: it then gives integer inputs floats, which they
    refuse, and hands on integer outputs as they are. What lies beyond the range of an input it wraps around.
    """
    set_inputs = debugging._set_input_tensors

    def stored(array: npt.NDArray[Any], details: Mapping[str, Any]) -> Any:
        if array.dtype != np.float32 or details["dtype"] is not np.int8:
            return array
        scale, zero_point = _scale_and_zero_point(details)
        return np.clip(np.round(array / scale + zero_point), -128, 127).astype(np.int8)

    def real(array: npt.NDArray[Any], details: Mapping[str, Any]) -> Any:
        if details["dtype"] is not np.int8:
            return array
        scale, zero_point = _scale_and_zero_point(details)
        return ((array.astype(np.float32) - zero_point) * scale).astype(np.float32)

    debugging._set_input_tensors = lambda interpreter, arrays, initialize: set_inputs(
        interpreter, [stored(*pair) for pair in zip(arrays, interpreter.get_input_details(), strict=True)], initialize
    )
    debugging._get_output_tensors = lambda interpreter: [
        real(interpreter.get_tensor(details["index"]), details) for details in interpreter.get_output_details()
    ]


def _scale_and_zero_point(details: Mapping[str, Any]) -> tuple[Any, Any]:
    parameters = details["quantization_parameters"]
    return parameters["scales"][0], parameters["zero_points"][0]


class _Recorder:
    """Metrics to TensorFlow, which calls each for every tensor in turn, sample after sample; they keep what passes."""

    def __init__(self, folder: Path, kinds: Sequence[str]) -> None:
        self._folder = folder
        self._kinds = kinds
        self._turns: Counter[str] = Counter()
        self.tensors: list[_Tensor] = []

    def next_sample(self) -> None:
        self._turns.clear()

    def differences(self, differences: npt.NDArray[Any]) -> float:
        self._keep("differences", differences)
        return 0.0

    def values(self, real: npt.NDArray[Any], stored: npt.NDArray[Any], scale: Any, zero_point: Any) -> float:
        turn = self._keep("values", real, stored)
        if turn == len(self.tensors):
            self.tensors.append(_Tensor(np.iinfo(stored.dtype), scale, zero_point))
        self.tensors[turn].add(real, stored)
        return 0.0

    def answers(self, real: Sequence[npt.NDArray[Any]], quantized: Sequence[npt.NDArray[Any]]) -> float:
        self._keep("answers", *real, *quantized)
        return 0.0

    def _keep(self, kind: str, *arrays: npt.NDArray[Any]) -> int:
        turn = self._turns[kind]
        self._turns[kind] += 1
        if kind in self._kinds:
            with _tape(self._folder, kind, turn).open("ab") as file:
                np.save(file, len(arrays))
                for array in arrays:
                    np.save(file, array, allow_pickle=False)
        return turn


def _tape(folder: Path, kind: str, turn: int) -> Path:
    return folder / f"{kind}-{turn}.npy"


def recorded(folder: Path, kind: str, turn: int) -> Iterator[list[npt.NDArray[Any]]]:
    """Yield what was recorded of one sample after the other.

    Args:
        folder: Where it was recorded.
        kind: "differences", one array; "values", the float ones and the int8 ones; "answers", the float model's outputs
            and then as many of the quantized one's.
        turn: Which tensor, in the model's order; 0 for "answers".
    """
    with _tape(folder, kind, turn).open("rb") as file:
        while file.peek(1):
            count = int(np.load(file))
            yield [np.load(file, allow_pickle=False) for _ in range(count)]


class _Tensor:
    """What is kept of the values of one verified tensor."""

    def __init__(self, limits: Any, scale: Any, zero_point: Any) -> None:
        self.scale = np.float32(scale)
        self.zero_point = int(zero_point)
        self._limits = limits
        self._signal = self._noise = 0.0
        # Bins as wide as a power of two halve their number exactly; finer ones than steps would say nothing.
        self._exponent = math.frexp(self.scale)[1] - 1
        self._counts: Counter[int] = Counter()

    def add(self, real: npt.NDArray[Any], stored: npt.NDArray[Any]) -> None:
        """Take one sample's float values and int8 values."""
        # In float32, as DEQUANTIZE computes: then an operator that only moves values shows no difference.
        answer = (stored.astype(np.float32) - np.float32(self.zero_point)) * self.scale
        wanted = real.astype(np.float64)
        self._signal += float(np.sum(wanted**2))
        self._noise += float(np.sum((wanted - answer) ** 2))
        self._count(wanted[np.isfinite(wanted)])

    def _count(self, values: npt.NDArray[np.float64]) -> None:
        if not values.size:
            return
        bins = np.floor(values / 2.0**self._exponent)
        low, high = min([int(bins.min()), *self._counts]), max([int(bins.max()), *self._counts])
        shift = 0
        while (high >> shift) - (low >> shift) >= BINS:
            shift += 1
        self._exponent += shift
        merged: Counter[int] = Counter()
        for position, count in self._counts.items():
            merged[position >> shift] += count
        low >>= shift
        for offset, count in enumerate(np.bincount((np.floor(bins / 2.0**shift) - low).astype(np.intp))):
            merged[low + offset] += int(count)
        self._counts = merged

    def row(self) -> dict[str, Any]:
        """Return what it adds to TensorFlow's statistics."""
        low, high = min(self._counts, default=0), max(self._counts, default=0)
        width = 2.0**self._exponent
        return {
            "scale": float(self.scale),
            "zero_point": self.zero_point,
            "snr_db": _snr_db(self._signal, self._noise),
            "histogram": {
                "edges": [position * width for position in range(low, high + 2)],
                "counts": [self._counts[position] for position in range(low, high + 1)],
                "low": float(self.scale) * (int(self._limits.min) - self.zero_point),
                "high": float(self.scale) * (int(self._limits.max) - self.zero_point),
            },
        }


def _snr_db(signal: float, noise: float) -> float:
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _row(
    verified: str,
    statistics: Mapping[str, Any],
    text: Mapping[str, str],
    tensor: _Tensor,
    places: Mapping[str, str],
) -> dict[str, Any]:
    name = _name_in_file(text["tensor_name"], verified.removeprefix("NumericVerify/").rpartition(":")[0], places)
    return {
        "op_name": text["op_name"],
        "tensor_idx": int(text["tensor_idx"]),
        **{column: float(statistics[column]) for column in COLUMNS if column in statistics},
        "tensor_name": name,
        "layer": places.get(name, name),
        **tensor.row(),
        "text": {column: text[column] for column in COLUMNS},
    }


def _name_in_file(theirs: str, quantized: str, made: Collection[str]) -> str:
    """Return the name of a quantized tensor in the float file.

    The two differ by digits that the converter appends where a name is taken. TensorFlow's debugger cuts off one digit
    whether or not it was appended.
    """
    if theirs in made:
        return theirs
    close = [name for name in made if re.fullmatch(re.escape(name) + r"\d*", quantized)]
    return max(close, key=len, default=theirs)
