"""Why a quantized file may be slower than its float twin, from what LiteRT was seen to do with it.

LiteRT hands what it can to XNNPACK, its CPU delegate, and runs the rest itself, several times slower: the digits CNN
takes 2 to 3 times as long without XNNPACK, as float and as int8. Which operators XNNPACK takes depends on their types.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.samples import open_arrays
from tfdeploy_magic.evaluate.session import LiteSession, check_unchanged
from tfdeploy_magic.jobs import Report

_CONVERSIONS = ("QUANTIZE", "DEQUANTIZE")


@dataclass(frozen=True)
class Delegation:
    """What XNNPACK takes of a file, one sample at a time; operators within loops and branches are not seen.

    Args:
        total: Operators of the main graph.
        delegated: How many of them XNNPACK runs.
        pieces: In how many pieces; between them LiteRT's own kernels run.
        left: How many of each operator those run, "GELU" -> 2.
        conversions: How many operators only convert what is computed between float and integers, or between integers
            of different scales, by name; weights are unpacked once, when the file is loaded, and do not count.
        quantizing: How many operators with integer weights take floats, and quantize them anew in each run.
    """

    total: int
    delegated: int
    pieces: int
    left: Mapping[str, int]
    conversions: Mapping[str, int]
    quantizing: int


def delegations_task(
    report: Report, files: list[dict[str, str]], inputs: dict[str, str]
) -> list[dict[str, Any] | None]:
    """See what XNNPACK takes of several files of one model; a job's entry.

    Args:
        report: Told of the progress.
        files: The "path" and "sha256" of each.
        inputs: Input name -> ``.npy`` file.

    Returns:
        For each file the fields of a :class:`Delegation`, None where it cannot be loaded.
    """
    report.stage("loading the files")
    arrays = open_arrays({name: Path(file) for name, file in inputs.items()})
    found: list[dict[str, Any] | None] = []
    for file in report.counting(files, len(files)):
        check_unchanged(file["path"], file["sha256"])
        try:
            session = LiteSession(Path(file["path"]))
            session.stopwatch(arrays)
        except (RuntimeError, ValueError):  # the interpreter raises either
            found.append(None)
        else:
            found.append(asdict(delegation(session.nodes(), session.input_indices)))
    return found


def delegation(nodes: Sequence[Mapping[str, Any]], given: Iterable[int]) -> Delegation:
    """Read off what was delegated.

    Args:
        nodes: What :meth:`LiteSession.nodes` returns.
        given: The tensors that a caller sets.
    """
    operators = [node for node in nodes if node["op_name"] != "DELEGATE"]
    delegates = [node for node in nodes if node["op_name"] == "DELEGATE"]
    taken = {position for node in delegates for position in replaced_by(node, operators)}
    computed = {*given, *(tensor for node in operators for tensor in _indices(node, "outputs"))}
    return Delegation(
        total=len(operators),
        delegated=len(taken),
        pieces=len(delegates),
        left=_counts(node["op_name"] for position, node in enumerate(operators) if position not in taken),
        conversions=_counts(
            node["op_name"]
            for node in operators
            if node["op_name"] in _CONVERSIONS and computed.issuperset(_indices(node, "inputs"))
        ),
        quantizing=sum(_quantizes_its_input(node, computed) for node in operators),
    )


def replaced_by(delegate: Mapping[str, Any], operators: Sequence[Mapping[str, Any]]) -> set[int]:
    """Return the positions of the operators that a delegate runs.

    The interpreter says only what goes into a delegate and what comes out. A tensor that is neither is seen by nothing
    outside, so whatever makes or reads it is inside.
    """
    edge = {*_indices(delegate, "inputs"), *_indices(delegate, "outputs")}
    touching: dict[int, set[int]] = {}
    for position, node in enumerate(operators):
        for tensor in (*_indices(node, "inputs"), *_indices(node, "outputs")):
            touching.setdefault(tensor, set()).add(position)
    goals = set(_indices(delegate, "outputs"))
    inside: set[int] = set()
    found = [position for position, node in enumerate(operators) if goals.intersection(_indices(node, "outputs"))]
    while found:
        position = found.pop()
        if position in inside:
            continue
        inside.add(position)
        node = operators[position]
        for tensor in (*_indices(node, "inputs"), *_indices(node, "outputs")):
            if tensor not in edge:
                found.extend(touching[tensor])
    return inside


def why_slow(file: LiteFile, delegated: Delegation, float_delegated: Delegation | None = None) -> tuple[str, ...]:
    """Say what in a file may cost it time, each a clause; empty where nothing does.

    Args:
        file: The file.
        delegated: What XNNPACK takes of it.
        float_delegated: What it takes of the model's float file: what is the same there slows neither.
    """
    return (
        *_left_out(file, delegated, float_delegated),
        *_pieces(delegated, float_delegated),
        *_conversions(delegated, float_delegated),
        *_quantizing(delegated),
    )


def _left_out(file: LiteFile, here: Delegation, there: Delegation | None) -> tuple[str, ...]:
    left = Counter(here.left) - Counter(there.left if there else {})
    if not left:
        return ()
    if not here.delegated:
        wide = "16-bit activations: " if file.activations.get("int16") else ""
        return (f"{wide}XNNPACK takes none of its {_number(here.total, 'operator')}",)
    twin = f" and {there.delegated} of {there.total} of the float file" if there else ""
    return (f"XNNPACK takes {here.delegated} of its {here.total} operators{twin}; left out here: {_listed(left)}",)


def _pieces(here: Delegation, there: Delegation | None) -> tuple[str, ...]:
    if there is None or not 0 < there.pieces < here.pieces:
        return ()
    return (f"XNNPACK runs it in {here.pieces} pieces, the float file in {there.pieces}",)


def _conversions(here: Delegation, there: Delegation | None) -> tuple[str, ...]:
    more = Counter(here.conversions) - Counter(there.conversions if there else {})
    if not more:
        return ()
    named = " and ".join(f"{more[name]} {name}" for name in _CONVERSIONS if more[name])
    return (f"{named} that only convert{'s' * (more.total() == 1)} between float and integers or between scales",)


def _quantizing(here: Delegation) -> tuple[str, ...]:
    if not here.quantizing:
        return ()
    verb = "quantizes its input" if here.quantizing == 1 else "quantize their inputs"
    return (f"{_number(here.quantizing, 'operator')} {verb} anew in each run",)


def _quantizes_its_input(node: Mapping[str, Any], computed: set[int]) -> bool:
    operands = list(zip(_indices(node, "inputs"), node["operand_types"], strict=True))
    return any(tensor in computed and dtype is np.float32 for tensor, dtype in operands) and any(
        tensor not in computed and dtype in (np.int8, np.uint8) for tensor, dtype in operands
    )


def _indices(node: Mapping[str, Any], field: str) -> list[int]:
    return [int(index) for index in node[field] if index != -1]


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts.items())


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
