"""Before any time is spent: which operations of a traced graph .tflite cannot hold, in which layer, and the cure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any, Literal

import numpy as np

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, TensorSpec
from tfdeploy_magic.convert.op_support import (
    DTYPES,
    KEPT_WHEN_UNUSED,
    NEVER,
    NEVER_FOLDED,
    SELECT,
    TABLE_CURE,
    TABLES,
    TYPED,
    UNROLL,
)
from tfdeploy_magic.errors import ConversionError

Kind = Literal["select", "never", "dtype", "rnn"]

_CALLS = {
    "PartitionedCall": ("f",),
    "StatefulPartitionedCall": ("f",),
    "If": ("then_branch", "else_branch"),
    "StatelessIf": ("then_branch", "else_branch"),
    "While": ("cond", "body"),
    "StatelessWhile": ("cond", "body"),
}
"""Operations that run functions of the graph's library -> the attributes that name those."""

_SHAPES = frozenset(("Shape", "ShapeN", "Size", "Rank", "ZerosLike", "OnesLike", "TensorListLength"))
"""What follows from shapes alone: constant as soon as those are, so it never condemns an operation."""

_HANDLES = ("resource", "variant")
"""The dtypes of variables, tables and lists, which are no data."""


@dataclass(frozen=True)
class Problem:
    """An operation that .tflite cannot hold.

    Args:
        op: TensorFlow's name for it, "StringLower".
        kind: "select" when only TensorFlow's own kernels (Flex) hold it, "never" when not even those do, "dtype" when
            .tflite has it in other dtypes, "rnn" for a list whose elements have a size that is not known.
        where: The layers it is in, "dense_1 (Dense)", or nodes of the graph where no layer is known.
        cure: What to change, a sentence.
        dtype: The dtype that is the problem, "float64"; empty when it is the operation.
    """

    op: str
    kind: Kind
    where: tuple[str, ...]
    cure: str
    dtype: str = ""

    def __str__(self) -> str:
        places = [*self.where[:3], *([f"{len(self.where) - 3} more places"] if len(self.where) > 3 else [])]
        return f"{self.op}{f' of {self.dtype}' if self.dtype else ''} in {in_words(places)}"


def scan(
    graph_def: Any, layers: Mapping[str, str], *, inputs: Collection[str] = (), outputs: Collection[str] = ()
) -> tuple[Problem, ...]:
    """Find the operations that are sure to be refused.

    What depends on no input is computed before conversion, and what no output depends on is dropped: neither counts.

    Args:
        graph_def: A ``GraphDef`` with its function library, weights or not.
        layers: Name scope of a layer in node names -> how a person knows it, "dense_1 (Dense)".
        inputs: The graph's input tensors, "x:0"; empty for every placeholder that is no resource.
        outputs: Its output tensors; empty for whatever nothing else takes, which may be leftovers.

    Returns:
        One problem for each operation and dtype, in the graph's order.
    """
    walk = _Walk(graph_def.library.function, {_node_of(name) for name in inputs})
    roots = list(outputs) or _ends(graph_def.node)
    walk.body(graph_def.node, roots, {}, scope="")
    names = [
        node.name for nodes in (graph_def.node, *(f.node_def for f in graph_def.library.function)) for node in nodes
    ]
    places = locate([*names, *(path for found in walk.found.values() for path in found)], layers)
    return tuple(
        Problem(op, kind, tuple(dict.fromkeys(places[path] for path in found)), cure, dtype)
        for (op, kind, cure, dtype), found in walk.found.items()
    )


def findings(problems: Sequence[Problem], inputs: Sequence[TensorSpec]) -> tuple[Finding, ...]:
    """Say what a person should know of a model before it is converted.

    Args:
        problems: What :func:`scan` found.
        inputs: The model's inputs.
    """
    return (*map(_finding, problems), *filter(None, map(_shape_finding, inputs)))


def refuse(problems: Sequence[Problem], name: str, *, select_ops: bool = False) -> None:
    """Stop before a conversion that is sure to fail.

    Args:
        problems: What :func:`scan` found; loops ("rnn") are let through.
        name: The model.
        select_ops: Whether operations without a builtin may be left to TensorFlow's kernels.

    Raises:
        ConversionError: There are operations that the file cannot hold, each named with its layers.
    """
    kinds = ("never",) if select_ops else ("never", "select", "dtype")
    refused = [problem for problem in problems if problem.kind in kinds]
    if not refused:
        return
    more = [f"{len(refused) - 6} more operations"] if len(refused) > 6 else []
    cures = list(dict.fromkeys(problem.cure for problem in refused))[:3]
    if all(problem.kind != "never" for problem in refused):
        cures.append("Or leave it to TensorFlow's own kernels (Flex), with --select-ops.")
    raise ConversionError(
        f"{name} cannot be converted",
        found="; ".join([*map(str, refused[:6]), *more]),
        wanted="operations that TensorFlow's own kernels hold" if select_ops else "operations that .tflite has",
        cure=" ".join(cures),
    )


def locate(names: Iterable[str], layers: Mapping[str, str]) -> dict[str, str]:
    """Find the innermost layer of each node.

    Graphs make scopes unique with a number: "dense_1" may be a layer of that name, or a call of the layer "dense". The
    scopes that can be read in one way only say which it is; where they do not, a place names both.

    Args:
        names: Of nodes, "model/dense_1/MatMul".
        layers: Name scope of a layer -> how a person knows it.

    Returns:
        Name -> its layer; the name itself where it is in none.
    """
    paths = {name: name.split("/")[:-1] for name in names}
    scopes = {scope for path in paths.values() for scope in path}
    plain = sum(
        scope in layers and (_unnumbered(scope) == scope or _unnumbered(scope) not in layers) for scope in scopes
    )
    numbered = sum(scope not in layers and _unnumbered(scope) in layers for scope in scopes)

    def layer(scope: str) -> str | None:
        as_named, as_called = layers.get(scope), layers.get(_unnumbered(scope))
        if as_named and as_called and as_named != as_called and plain == numbered:
            return f"{as_called} or {as_named}"
        return (as_named or as_called) if plain > numbered else (as_called or as_named)

    return {name: next(filter(None, map(layer, reversed(path))), name) for name, path in paths.items()}


def in_words(parts: Sequence[str]) -> str:
    """Join parts as a sentence does: "a, b and c"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _unnumbered(scope: str) -> str:
    return re.sub(r"_\d+$", "", scope)


def _finding(problem: Problem) -> Finding:
    if problem.kind == "rnn":
        where = in_words(problem.where)
        return Finding("warning", "open-loop", f"a loop in {where} goes over a batch of unknown size", problem.cure)
    if problem.kind == "never":
        return Finding("error", "unsupported-op", f"no .tflite file can hold {problem}", problem.cure)
    return Finding(
        "warning",
        "select-op",
        f"{problem} is no builtin of .tflite: only TensorFlow's own kernels run it",
        problem.cure,
    )


def _shape_finding(spec: TensorSpec) -> Finding | None:
    if spec.shape == UNKNOWN_RANK:
        return Finding(
            "warning",
            "unknown-rank",
            f"not even the number of dimensions of input {spec} is known: an interpreter may be unable to run the file",
            f"Say its shape: --input-spec {spec.name}=1x224x224x3.",
        )
    if None not in spec.shape[1:]:
        return None
    # A picture's usual size, a text's usual length: an example to edit.
    usual = 224 if len(spec.shape) == 4 else 128
    example = "x".join(str(size or usual) for size in (spec.shape[0] or 1, *spec.shape[1:]))
    return Finding(
        "note",
        "dynamic-shape",
        f"input {spec} is open in more than the batch: whoever runs the file has to resize it first",
        f"Where its size is always the same, fix it: --input-spec {spec.name}={example}.",
    )


class _Walk:
    """One pass over a graph and the functions it runs; it collects what cannot be converted.

    Args:
        library: The graph's functions.
        inputs: Names of its input nodes; empty for every placeholder that is no resource.
    """

    def __init__(self, library: Iterable[Any], inputs: Collection[str]) -> None:
        self.functions = {function.signature.name: function for function in library}
        self.inputs = inputs
        self.found: defaultdict[tuple[str, Kind, str, str], list[str]] = defaultdict(list)
        self.silent = False

    def body(self, nodes: Sequence[Any], roots: Iterable[str], arguments: Mapping[str, bool], scope: str) -> _Varying:
        """Walk the part of a graph, or of a function, that its roots need.

        Args:
            nodes: All its nodes.
            roots: What is asked of it: tensors, or nodes as "^name".
            arguments: For a function, its arguments -> whether they depend on an input.
            scope: The path of the node that calls it, ending in "/", or empty.

        Returns:
            Which of its tensors depend on an input.
        """
        by_name = {node.name: node for node in nodes}
        needed = self._needed(by_name, roots)
        varying = _Varying(arguments)
        for name in TopologicalSorter({n: _before(by_name[n]) & needed.keys() for n in needed}).static_order():
            node = by_name[name]
            takes = [varying[tensor] for tensor in node.input if not tensor.startswith("^")]
            if (functions := self._functions_of(node)) is not None:
                varying.give(name, self._call(node, functions, takes, needed[name], scope))
                continue
            if node.op == "Placeholder" and not self.inputs:
                depends = _dtype_of(node, "dtype") not in _HANDLES
            else:
                constant = node.op in _SHAPES or not any(takes)
                depends = name in self.inputs or node.op in NEVER_FOLDED or not constant
            varying.give(name, depends)
            if not self.silent:
                for problem in _problems(node, depends, by_name):
                    self.found[problem].append(scope + name)
        return varying

    def _needed(self, by_name: Mapping[str, Any], roots: Iterable[str]) -> dict[str, set[int]]:
        """Return the nodes that some roots need -> which of their outputs."""
        needed: dict[str, set[int]] = {}
        passed: set[tuple[str, str]] = set()
        waiting = list(roots)
        while waiting:
            tensor = waiting.pop()
            node = by_name.get(name := _node_of(tensor))
            if node is None:
                continue
            for_its_order = tensor.startswith("^")
            # Something that only has to run first, and has no effect, is dropped; what runs before it is not.
            stays = not for_its_order or self._has_effect(node)
            if stays:
                needed.setdefault(name, set()).update(() if for_its_order else (_output_of(tensor),))
            follow = {(name, each) for each in node.input if stays or each.startswith("^")} - passed
            waiting += [each for _, each in follow]
            passed |= follow
        return needed

    def _has_effect(self, node: Any) -> bool:
        functions = self._functions_of(node) or ()
        return node.op in KEPT_WHEN_UNUSED or any(
            self._has_effect(inner) for function in functions for inner in function.node_def
        )

    def _functions_of(self, node: Any) -> list[Any] | None:
        if node.op in self.functions:
            return [self.functions[node.op]]
        names = [node.attr[attribute].func.name for attribute in _CALLS.get(node.op, ()) if attribute in node.attr]
        return [self.functions[name] for name in names] if names and self.functions.keys() >= set(names) else None

    def _call(
        self, node: Any, functions: Sequence[Any], takes: Sequence[bool], wanted: set[int], scope: str
    ) -> list[bool]:
        """Walk the functions that a node runs, and return which of its outputs depend on an input."""
        inner = f"{scope}{node.name}/"
        if node.op in ("While", "StatelessWhile"):
            condition, body = functions
            # A weight that only goes round stays a constant.
            takes = [varies or not _is_handed_on(body, position) for position, varies in enumerate(takes)]
            self._function(condition, takes, None, inner)
            gives = self._function(body, takes, None, inner)
            return [a or b for a, b in zip(takes, gives, strict=True)]
        if node.op not in ("If", "StatelessIf"):
            return self._function(functions[0], takes, wanted, inner)
        chosen, *takes = takes
        # Where the condition is constant one branch alone is converted, and we do not know which.
        was_silent, self.silent = self.silent, self.silent or not chosen
        branches = [self._function(function, takes, wanted, inner) for function in functions]
        self.silent = was_silent
        return [chosen or any(outputs) for outputs in zip(*branches, strict=True)]

    def _function(self, function: Any, takes: Sequence[bool], wanted: set[int] | None, scope: str) -> list[bool]:
        names = [argument.name for argument in function.signature.input_arg]
        gives = [function.ret[output.name] for output in function.signature.output_arg]
        asked = gives if wanted is None else [gives[position] for position in sorted(wanted)]
        kept = [f"^{node}" for node in function.control_ret.values()]
        arguments = dict(zip(names, takes, strict=True))
        varying = self.body(function.node_def, [*asked, *kept], arguments, scope)
        return [varying[tensor] for tensor in gives]


class _Varying:
    """Which tensors depend on an input of the model.

    Args:
        arguments: What is known of a function's arguments.
    """

    def __init__(self, arguments: Mapping[str, bool]) -> None:
        self._known: dict[str, bool | list[bool]] = dict(arguments)

    def give(self, name: str, outputs: bool | list[bool]) -> None:
        """Note what is known of a node, as a whole or for each of its outputs."""
        self._known[name] = outputs

    def __getitem__(self, tensor: str) -> bool:
        known = self._known.get(_node_of(tensor), False)
        return known if isinstance(known, bool) else known[_output_of(tensor)]


def _problems(node: Any, depends: bool, by_name: Mapping[str, Any]) -> Iterator[tuple[str, Kind, str, str]]:
    """Yield what is wrong with one node: its operation, the kind of the problem, the cure and the dtype."""
    if node.op in ("Case", "StatelessCase"):
        yield node.op, "never", NEVER[node.op], ""  # whatever chooses: TensorFlow cannot read it
    elif node.op == "TensorListReserve" and _has_open_elements(node, by_name):
        yield node.op, "rnn", UNROLL, ""
    if not depends:
        return
    if node.op == "LookupTableFindV2":
        pair = (_dtype_of(node, "Tin"), _dtype_of(node, "Tout"))
        if pair not in TABLES:
            yield node.op, "dtype", TABLE_CURE, " to ".join(pair)
    elif node.op in NEVER:
        yield node.op, "never", NEVER[node.op], ""
    elif node.op in SELECT:
        yield node.op, "select", SELECT[node.op], ""
    elif (key := (node.op, _dtype_of(node, "T"))) in TYPED:
        yield node.op, "dtype", TYPED[key], key[1]


def _dtype_of(node: Any, attribute: str) -> str:
    # Asking a protocol buffer for an attribute that is not there would add it.
    return DTYPES.get(node.attr[attribute].type, "another dtype") if attribute in node.attr else ""


def _has_open_elements(node: Any, by_name: Mapping[str, Any]) -> bool:
    """Whether a list's elements have a known rank and an open size; of a rank unknown TensorFlow may find it out."""
    shape = by_name.get(_node_of(node.input[0]))
    if shape is None or shape.op != "Const":
        return False
    tensor = shape.attr["value"].tensor
    if len(tensor.tensor_shape.dim) != 1:
        return False
    dtype = np.int64 if DTYPES[tensor.dtype] == "int64" else np.int32
    sizes = [*np.frombuffer(tensor.tensor_content, dtype), *tensor.int_val, *tensor.int64_val]
    return any(size < 0 for size in sizes)


def _is_handed_on(body: Any, position: int) -> bool:
    """Whether a loop's body gives back an argument as it was."""
    by_name = {node.name: node for node in body.node_def}
    name = _node_of(body.ret[body.signature.output_arg[position].name])
    while name in by_name and by_name[name].op == "Identity":
        name = _node_of(by_name[name].input[0])
    return bool(name == body.signature.input_arg[position].name)


def _before(node: Any) -> set[str]:
    # The loops of TensorFlow 1 go round through NextIteration; cut there, a graph has an order.
    return set() if node.op == "NextIteration" else {_node_of(tensor) for tensor in node.input}


def _ends(nodes: Sequence[Any]) -> list[str]:
    taken = {_node_of(tensor) for node in nodes for tensor in node.input}
    return [node.name for node in nodes if node.name not in taken]


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _output_of(tensor: str) -> int:
    """Read the output's number: "node:1" in a graph, "node:output:1" in a function, "node" for the first."""
    return int(tensor.rpartition(":")[2]) if ":" in tensor else 0
