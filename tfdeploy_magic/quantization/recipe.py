"""Recipes: which layer is stored how, a line a rule, and what that makes of a model's operators."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tfdeploy_magic.artifacts.schemes import SCHEMES, Variant
from tfdeploy_magic.errors import DataError, NameNotFound

_HELP = 'Write lines such as "conv2d_1: float32", "dense.*: dynamic_wi4" or "SOFTMAX: float32", and ".*: int8" first.'


@dataclass(frozen=True)
class Rule:
    """One line of a recipe.

    Args:
        pattern: The name of a layer, or a regular expression that matches all of it; or an operator's, "SOFTMAX".
        scheme: What its operators get.
    """

    pattern: str
    scheme: str


@dataclass(frozen=True)
class Operator:
    """An operator of a float file.

    Args:
        name: "CONV_2D".
        output: The name of its first output tensor.
        layer: Its layer as a person knows it, "conv2d_1 (Conv2D)".
    """

    name: str
    output: str
    layer: str


def parse(text: str) -> tuple[Rule, ...]:
    """Read a recipe.

    Raises:
        DataError: A line is no rule, or there is none.
    """
    rules = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        pattern, colon, scheme = (part.strip() for part in line.rpartition(":"))
        scheme = scheme.strip("'\"").replace("-", "_")
        pattern = ".*" if pattern.strip("'\"") == "*" else pattern.strip("'\"")
        if not colon or not pattern or scheme not in SCHEMES:
            near = difflib.get_close_matches(scheme, SCHEMES, n=1)
            raise DataError(
                f"line {number} of the recipe cannot be read",
                found=line,
                wanted=f"LAYER: SCHEME, with a scheme of {', '.join(SCHEMES)}",
                cure=f"Did you mean {near[0]}?" if colon and near else _HELP,
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise DataError(
                f"line {number} of the recipe cannot be read",
                found=f"{pattern}: {error}",
                wanted="a layer's name or a regular expression",
                cure="Put a backslash before a bracket or a dot that means itself.",
            ) from error
        rules.append(Rule(pattern, scheme))
    if not rules:
        raise DataError("the recipe is empty", found="no lines", wanted="at least one rule", cure=_HELP)
    return tuple(rules)


def resolve(rules: Sequence[Rule], operators: Sequence[Operator], default: str) -> Variant:
    """Say which file a recipe asks for.

    The operators that no rule names get what the last ``.*`` says, or the default.

    Args:
        rules: Later ones decide.
        operators: Of the float file.
        default: A scheme.

    Raises:
        NameNotFound: A rule names no layer and no operator of the model.
        DataError: No one quantizer makes such a file.
    """
    chosen: dict[str, str] = {}
    default, rules = _from_the_last_default(rules, default)
    for rule in rules:
        matched = [operator for operator in operators if _matches(rule.pattern, operator)]
        if not matched:
            raise _unknown(rule.pattern, operators)
        chosen.update((operator.output, rule.scheme) for operator in matched)
    chosen = {output: scheme for output, scheme in chosen.items() if scheme != default}
    if not chosen:
        return Variant(default, name=f"{default}, recipe")
    others = set(chosen.values())
    if default == "float32" and others == {"int8"}:
        rest = tuple(operator.output for operator in operators if operator.output not in chosen)
        return Variant("int8", denylisted_nodes=rest, name="int8, recipe")
    if default in ("int8",) and others == {"float32"}:
        return Variant(default, denylisted_nodes=tuple(chosen), name="int8, recipe")
    foreign = sorted(name for name in {default, *others} if SCHEMES[name].engine != "litert" and name != "float32")
    if foreign:
        raise DataError(
            "no quantizer makes a file of this recipe",
            found=" beside ".join(sorted({default, *others})),
            wanted="int8 and float32, or schemes of litert-quantizer and float32",
            cure=f"Use {_twin(foreign[0])} in place of {foreign[0]}.",
        )
    groups = [(tuple(o.output for o in operators), default)]
    groups += [(tuple(o for o, scheme in chosen.items() if scheme == name), name) for name in dict.fromkeys(others)]
    start = default if default != "float32" else next(iter(sorted(others)))
    return Variant(start, recipe=tuple(groups), name="recipe")


def schemes(rules: Sequence[Rule], default: str) -> tuple[str, ...]:
    """Return the schemes that a recipe may come to."""
    default, rules = _from_the_last_default(rules, default)
    return tuple(dict.fromkeys((default, *(rule.scheme for rule in rules))))


def _from_the_last_default(rules: Sequence[Rule], default: str) -> tuple[str, Sequence[Rule]]:
    """Drop what a later rule for everything overrules."""
    for place in reversed(range(len(rules))):
        if rules[place].pattern == ".*":
            return rules[place].scheme, rules[place + 1 :]
    return default, rules


def _matches(pattern: str, operator: Operator) -> bool:
    names = (operator.layer, operator.layer.partition(" (")[0], operator.name, operator.output)
    return any(pattern == name or re.fullmatch(pattern, name) for name in names)


def _unknown(pattern: str, operators: Sequence[Operator]) -> NameNotFound:
    layers = list(dict.fromkeys(operator.layer.partition(" (")[0] for operator in operators))
    near = difflib.get_close_matches(pattern, [*layers, *(operator.name for operator in operators)], n=3)
    return NameNotFound(
        f"the recipe names '{pattern}'",
        found="no layer and no operator that it matches",
        wanted=f"one of {', '.join(layers[:8])}{' ...' if len(layers) > 8 else ''}",
        cure=f"Did you mean {' or '.join(near)}?" if near else "A regular expression must match the whole name.",
    )


def _twin(scheme: str) -> str:
    return {"int8": "static_wi8_ai8", "int16x8": "static_wi8_ai16", "dynamic": "dynamic_wi8"}.get(
        scheme, "weight_only_wi8"
    )
