"""litert-quantizer, the second engine: 4-bit weights, blocks and a scheme a layer, from the ranges of the first."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfdeploy_magic.artifacts.schemes import SCHEMES, RangeRule
from tfdeploy_magic.artifacts.signature import Arrays, Signature
from tfdeploy_magic.errors import ConversionError, NameNotFound
from tfdeploy_magic.jobs import Report
from tfdeploy_magic.quantization.litegraph import LARGEST

Ranges = dict[str, tuple[float, float]]
"""Tensor name -> the lowest and the highest value that calibration saw there."""

SAME = 1 / 1024
"""Ranges whose ends differ by no more than this share of the wider one are the same.

It is a quarter of a step of int8. Kernels that add in another order differ by 2e-7 of the range (measured on ten
models); what else was seen to differ began at 7e-3.
"""

_BITS = {"int4": 4, "int8": 8, "int16": 16}

_REFUSALS = (
    (
        r"tensor: (.+)\. Error: Quantized dimension (\d+) in tensor shape \((.+)\) is not divisible by block \w+ (\d+)",
        r"the weights \1 of shape [\3], whose \2 values a channel make no whole blocks of \4",
        "Use --dynamic-wi4, which has one scale a channel, for the model or for that layer.",
    ),
    (
        r"tensor: (.+)\. Error: .*not found in tensor_name_to_qsv",
        r"no calibrated range for the tensor \1",
        "It is in a branch or a loop (tf.cond, tf.while_loop), which litert-quantizer's own calibration does not look "
        "into: quantize no activations, --dynamic-wi8.",
    ),
    (
        r"QSVs\) are required",
        "no calibrated ranges",
        "Give real samples: --calib x_train.",
    ),
    (
        r"Tensor data is null",
        "a loop or a branch (LSTM, GRU, tf.while_loop, tf.cond), into which its calibration cannot look",
        "Build the layer with unroll=True, or quantize no activations: --dynamic-wi8.",
    ),
    (
        r"Select TensorFlow op\(s\)",
        "operations that only TensorFlow's own kernels can run",
        "Quantize no activations, --dynamic-wi8, or convert without --select-ops.",
    ),
)
"""What litert-quantizer says, what it means, and the cure."""


def ranges_of(calibrated: bytes) -> Ranges:
    """Read the ranges that TensorFlow's calibrator wrote into a model.

    Where an operator works in place they are wider than what was seen: the calibrator looks at inputs again after the
    operator ran, and takes what it wrote over them for them (``LoggingEval`` in TensorFlow's calibrator.cc).

    Args:
        calibrated: What ``Calibrator.calibrate`` of ``tensorflow.lite.python.optimize.calibrator`` gave.

    Returns:
        The range of each float32 tensor that is no constant.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(calibrated, 0)
    subgraphs = [model.Subgraphs(position) for position in range(model.SubgraphsLength())]
    tensors = [subgraph.Tensors(position) for subgraph in subgraphs for position in range(subgraph.TensorsLength())]
    return {
        tensor.Name().decode(): (float(found.Min(0)), float(found.Max(0)))
        for tensor in tensors
        if (found := tensor.Quantization()) is not None and found.MinLength() == found.MaxLength() == 1
    }


def calibrate(float_model: bytes, samples: Arrays, signature: Signature, report: Report, rule: RangeRule) -> Ranges:
    """Calibrate with litert-quantizer, which keeps every tensor until it has looked at it.

    Args:
        float_model: A float .tflite file with the signature.
        samples: Input name -> ``[count, ...]``; rows that fill no batch are left out.
        signature: Its batch size is used where it is fixed; else it is one sample.
        report: Told how many samples are done.
        rule: "moving_average", its own, by which each sample moves a range by 5% of the way; or "true_min_max".

    Raises:
        ConversionError: The model has loops or branches.
    """
    from litert_quantizer import calibrator, recipe, recipe_manager
    from litert_quantizer.utils import qsv_utils

    updates = {"moving_average": qsv_utils.moving_average_update, "true_min_max": qsv_utils.min_max_update}
    batch = signature.fixed_batch or 1
    starts = range(0, len(next(iter(samples.values()))) - batch + 1, batch)
    # Which static recipe makes no difference: it only says whose tensors are looked at.
    everything = recipe_manager.RecipeManager()
    everything.load_quantization_recipe(recipe.static_wi8_ai8())
    with _asking():
        calibrating = calibrator.Calibrator(float_model, num_threads=1, qsv_update_func=updates[rule])
        # It takes them all at once too, but then it says nothing until the last.
        for start in report.counting(starts, len(starts)):
            rows = {name: array[start : start + batch] for name, array in samples.items()}
            calibrating.calibrate({signature.name: [rows]}, everything)
        found = calibrating.get_model_qsvs()
    # It averages shapes and token ids too.
    graphs = _read(float_model).subgraphs
    floats = {tensor.name.decode() for graph in graphs for tensor in graph.tensors if _is_float(tensor)}
    return {name: (seen["min"].item(), seen["max"].item()) for name, seen in found.items() if name in floats}


def put_ranges(calibrated: bytes, ranges: Ranges) -> bytes:
    """Return a calibrated model with other ranges in it, for TensorFlow's quantizer.

    Args:
        calibrated: What TensorFlow's calibrator gave.
        ranges: Tensor name -> its range; tensors without one keep theirs.
    """
    tree = _parse(calibrated)
    for subgraph in tree.subgraphs:
        for tensor in subgraph.tensors:
            found = ranges.get(tensor.name.decode())
            if found is not None and tensor.quantization is not None and tensor.quantization.min is not None:
                tensor.quantization.min, tensor.quantization.max = [found[0]], [found[1]]
    return _packed(tree)


def differing(first: Ranges, second: Ranges) -> tuple[int, int]:
    """Compare the ranges of one model.

    Returns:
        How many tensors have ranges that differ by more than :data:`SAME`, of how many that both have.
    """
    both = first.keys() & second.keys()
    return sum(not _same(first[name], second[name]) for name in both), len(both)


def _same(first: tuple[float, float], second: tuple[float, float]) -> bool:
    # A quantized range always holds 0, so that padding is exact.
    lows, highs = (np.minimum((first[0], second[0]), 0.0), np.maximum((first[1], second[1]), 0.0))
    furthest = max(np.ptp(lows), np.ptp(highs))
    return bool(furthest <= SAME * (highs - lows).max())


def quantize(float_model: bytes, scheme: str, ranges: Ranges | None) -> bytes:
    """Quantize every operator that the scheme can; the others stay float, and so do inputs and outputs.

    Args:
        float_model: A float .tflite file.
        scheme: A name in :data:`~tfdeploy_magic.artifacts.schemes.SCHEMES`, one of this engine's.
        ranges: Of its tensors; needed where the scheme quantizes activations.

    Raises:
        ConversionError: litert-quantizer refused the model, or nothing of it can be quantized so.
    """
    return _quantize(_parse(float_model), float_model, {".*": scheme}, ranges, scheme)


def quantize_recipe(float_model: bytes, recipe: Sequence[tuple[list[str], str]], ranges: Ranges | None) -> bytes:
    """Quantize each operator by a scheme of its own; the others stay float, and so do inputs and outputs.

    Args:
        float_model: A float .tflite file.
        recipe: Pairs of names of output tensors, whose operators get the scheme after them, one of this engine's or
            "float32"; later ones decide.
        ranges: Of its tensors; needed where a scheme quantizes activations.

    Raises:
        NameNotFound: No operator makes a tensor of that name.
        ConversionError: litert-quantizer refused the model, or a pair quantizes nothing.
    """
    tree = _parse(float_model)
    operators = _operators(tree)
    decided: dict[str, tuple[int, str]] = {}
    for position, (names, scheme) in enumerate(recipe):
        for name in names:
            if name not in operators:
                raise _no_operator(name, operators)
            decided[operators[name][0]] = position, scheme
    kinds = dict(operators.values())
    for position, (_, scheme) in enumerate(recipe):
        own = [scope for scope, (decider, _) in decided.items() if decider == position]
        if own and scheme != "float32" and not any(map(_takers(scheme), (kinds[scope] for scope in own))):
            where = own[0].partition(";")[0] + (f" and {len(own) - 1} more" if len(own) > 1 else "")
            raise _nothing(scheme, where, [kinds[scope] for scope in own])
    patterns = {
        _any_of([scope for scope, (_, chosen) in decided.items() if chosen == scheme]): scheme
        for scheme in dict.fromkeys(chosen for _, chosen in decided.values())
    }
    return _quantize(tree, float_model, patterns, ranges, "the recipe")


def _quantize(tree: Any, float_model: bytes, patterns: Mapping[str, str], ranges: Ranges | None, asked: str) -> bytes:
    from litert_quantizer import quantizer
    from litert_quantizer.qtyping import TFLOperationName

    # It writes into what it is given: where output and input share a scale, the range of one replaces the other's.
    found = {
        name: {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
        for name, (low, high) in (ranges or {}).items()
    }
    with _asking():
        engine = quantizer.Quantizer(float_model)
        for pattern, scheme in patterns.items():
            _ask(engine, pattern, scheme)
        for door in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
            engine.update_quantization_recipe(".*", door, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE)
        made = engine.quantize(
            found if engine.need_calibration else None, enable_progress_bar=False, enable_progress_report=False
        ).quantized_model
    if not _is_quantized(made_tree := _read(made)):
        raise _nothing(asked, "this model", [kind for _, kind in _operators(tree).values()])
    _mend(made_tree, tree)
    return _packed(made_tree) if len(made) <= LARGEST else bytes(made)


def _ask(engine: Any, pattern: str, scheme: str) -> None:
    """Add a scheme for the operators that a pattern finds, to a Quantizer or a RecipeManager."""
    from litert_quantizer.algorithm_manager import AlgorithmName
    from litert_quantizer.qtyping import QuantGranularity, TFLOperationName

    every = TFLOperationName.ALL_SUPPORTED
    asked = SCHEMES[scheme]
    if asked.weights is None:
        engine.update_quantization_recipe(pattern, every, algorithm_key=AlgorithmName.NO_QUANTIZE)
        return
    bits = _BITS[asked.weights]
    if asked.activations is not None:
        engine.add_static_config(pattern, every, _BITS[asked.activations], bits)
    elif scheme.startswith("weight_only"):
        engine.add_weight_only_config(pattern, every, bits)
    else:
        blocks = QuantGranularity.BLOCKWISE_32 if scheme.endswith("_b32") else QuantGranularity.CHANNELWISE
        engine.add_dynamic_config(pattern, every, bits, blocks)


def _takers(scheme: str) -> Callable[[str], bool]:
    """Return what says whether a scheme can quantize a kind of operator."""
    from litert_quantizer import quantizer, recipe_manager

    manager = recipe_manager.RecipeManager()
    _ask(manager, ".*", scheme)
    return lambda kind: manager.get_quantization_configs(kind, "")[0] != quantizer.AlgorithmName.NO_QUANTIZE


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """Keep litert-quantizer quiet, and turn what it refuses into words."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # where its progress bars go
        warnings.filterwarnings("ignore", "Warning: Enabling `experimental_preserve_all_tensors`", UserWarning)
        try:
            yield
        except (ValueError, RuntimeError) as error:
            raise _refused(str(error)) from error


def _refused(message: str) -> ConversionError:
    found = (message.strip() or "no reason given").splitlines()[0][:300].rstrip(".")
    cure = "Use TensorFlow's own quantizer: --int8 or --dynamic."
    for pattern, meaning, known in _REFUSALS:
        if (match := re.search(pattern, message)) is not None:
            found, cure = match.expand(meaning), known
            break
    return ConversionError(
        "litert-quantizer cannot quantize this model",
        found=found,
        wanted="a model all of which the scheme can store",
        cure=cure,
    )


def _nothing(asked: str, where: str, kinds: Sequence[str]) -> ConversionError:
    from litert_quantizer.qtyping import TFLOperationName

    wanted = "an operator that its schemes can quantize"
    if asked in SCHEMES:
        takes, doors = _takers(asked), (TFLOperationName.INPUT, TFLOperationName.OUTPUT)
        taken = sorted(kind.value for kind in TFLOperationName if kind not in doors and takes(kind.value))
        wanted = ", ".join(taken[:6]) + (f" or one of {len(taken) - 6} more" if len(taken) > 6 else "")
    return ConversionError(
        f"{asked} quantizes nothing of {where}",
        found=f"no operators but {', '.join(sorted(set(kinds))[:6])}",
        wanted=wanted,
        cure="Leave it in float32, or use another scheme.",
    )


def _no_operator(name: str, operators: Mapping[str, Any]) -> NameNotFound:
    return NameNotFound(
        f"the recipe names {name}",
        found="no operator of the float file that makes it",
        wanted=f"a name such as {', '.join(list(operators)[:3])}",
        cure="Name the output tensor of an operator, or its layer.",
    )


# The file itself


def _read(model: bytes) -> Any:
    from litert_quantizer.utils import tfl_flatbuffer_utils

    return tfl_flatbuffer_utils.read_model(model)


def _parse(float_model: bytes) -> Any:
    """Read a float file; litert-quantizer would leave what is quantized as it is and warn."""
    tree = _read(float_model)
    if _is_quantized(tree):
        raise ConversionError(
            "litert-quantizer cannot quantize this model",
            found="a file with quantized tensors in it",
            wanted="a float file, or the model that it was made from",
            cure="Start from the model before it was quantized.",
        )
    return tree


def _is_quantized(tree: Any) -> bool:
    found = (tensor.quantization for subgraph in tree.subgraphs for tensor in subgraph.tensors)
    return any(each is not None and (each.scale is not None or each.details is not None) for each in found)


def _operators(tree: Any) -> dict[str, tuple[str, str]]:
    """Return output tensor -> what litert-quantizer matches patterns against, and the kind of its operator."""
    from litert_quantizer.qtyping import BuiltinOperator
    from litert_quantizer.utils import tfl_flatbuffer_utils as utils

    ours = {code: name for name, code in vars(BuiltinOperator).items() if isinstance(code, int)}
    found = {}
    for subgraph in tree.subgraphs:
        for operator in subgraph.operators:
            code = tree.operatorCodes[operator.opcodeIndex].builtinCode
            theirs = utils.TFL_OP_CODE_TO_NAME.get(code)
            kind = theirs.value if theirs else ours.get(code, "CUSTOM")
            scope = utils.get_op_scope(operator, subgraph.tensors)
            for index in operator.outputs:
                found[utils.get_tensor_name(subgraph.tensors[index])] = scope, kind
    return found


def _any_of(scopes: Sequence[str]) -> str:
    """Return a pattern of exactly these; names hold brackets, dots and the semicolon between names."""
    return rf"\A(?:{'|'.join(map(re.escape, scopes))})\Z"


def _mend(made: Any, source: Any) -> None:
    """Undo what litert-quantizer 0.11 does wrong where an output of the model is used inside it too.

    It takes such an output's consumer, -1, for the position of an operator, so the last one gets the dequantized tensor
    in place of the quantized one; it leaves the output's entry in the signature at the quantized tensor; and it lets
    the output of a subgraph point at what was quantized for the next operator.

    Raises:
        ConversionError: An operator or an output would still get numbers of the wrong kind.
    """
    for subgraph in made.subgraphs:
        _rewire(made, subgraph)
    for signature, before in zip(made.signatureDefs or (), source.signatureDefs or (), strict=True):
        then, now = source.subgraphs[before.subgraphIndex], made.subgraphs[signature.subgraphIndex]
        for output, old in zip(signature.outputs, before.outputs, strict=True):
            position = list(then.outputs).index(old.tensorIndex)
            dtype = then.tensors[old.tensorIndex].type
            fitting = (
                index for index in (now.outputs[position], output.tensorIndex) if now.tensors[index].type == dtype
            )
            index = next(fitting, None)
            if index is None:
                raise _refused(f"the output {output.name.decode()}, which it would leave quantized")
            now.outputs[position] = output.tensorIndex = index


def _rewire(made: Any, subgraph: Any) -> None:
    from litert_quantizer.qtyping import BuiltinOperator, TensorType

    codes = [made.operatorCodes[operator.opcodeIndex].builtinCode for operator in subgraph.operators]
    quantized_from = {
        operator.outputs[0]: operator.inputs[0]
        for operator, code in zip(subgraph.operators, codes, strict=True)
        if code == BuiltinOperator.DEQUANTIZE
    }
    for operator, code in zip(subgraph.operators, codes, strict=True):
        output = subgraph.tensors[operator.outputs[0]] if operator.outputs else None
        if code == BuiltinOperator.QUANTIZE or output is None or output.type not in (TensorType.INT8, TensorType.INT16):
            continue
        floats = {index for index in operator.inputs if index >= 0 and _is_float(subgraph.tensors[index])}
        operator.inputs = [quantized_from.get(index, index) if index in floats else index for index in operator.inputs]
        if output.quantization.scale is not None and floats.intersection(operator.inputs):
            raise _refused(f"the operator of {output.name.decode()}, which it would give floats in place of integers")


def _is_float(tensor: Any) -> bool:
    from litert_quantizer.qtyping import TensorType

    return bool(tensor.type == TensorType.FLOAT32)


def _packed(tree: Any) -> bytes:
    """Write a file with its weights in the flatbuffer; from 256 kB litert-quantizer puts them behind it, as for 2 GB.

    Not all that reads .tflite files looks there.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    return bytes(flatbuffer_utils.convert_object_to_bytearray(tree))
