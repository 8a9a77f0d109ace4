"""Tab completion of options, choices, and the models and data in the kernel; read off the parsers."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher
from IPython.core.interactiveshell import InteractiveShell

from tfdeploy_magic.evaluate.metrics import METRICS
from tfdeploy_magic.notebook import namespace
from tfdeploy_magic.notebook.parser import CommandParser, expected_value, several, together
from tfdeploy_magic.sources.samples import is_array, is_dataset

_MAGIC_LINE = re.compile(r"^\s*(?:[\w.\[\]'\", ]+=\s*)?%{1,2}(?P<name>\w+)\s+(?P<rest>.*)$")

Matcher = Callable[[CompletionContext], SimpleMatcherResult]


def matcher_for(parsers: Mapping[str, CommandParser], shell: InteractiveShell) -> Matcher:
    """Return a matcher for IPython's completer; also for lines that assign, ``x = %magic ...``."""

    @context_matcher()  # type: ignore[untyped-decorator]
    def tfdeploy_matcher(context: CompletionContext) -> SimpleMatcherResult:
        match = _MAGIC_LINE.match(context.line_with_cursor.rstrip("\n")) if context.line_with_cursor else None
        if match is None or match["name"] not in parsers:
            return {"completions": []}
        *before, typed = together(match["rest"].split(" "))
        if match["rest"].count("[") > match["rest"].count("]"):
            return {"completions": []}  # numbers are typed
        # Past a comma the second name of a pair is typed, --test x_test,y_<TAB>, and past = what is named.
        fragment = re.split("[,=]", typed)[-1]
        offered = _offers(parsers[match["name"]], [word for word in before if word], typed, shell.user_ns)
        found = [SimpleCompletion(word, type=kind) for word, kind in offered if word.startswith(fragment)]
        return {"completions": found, "matched_fragment": fragment, "suppress": bool(found)}

    matcher: Matcher = tfdeploy_matcher
    return matcher


def _offers(
    parser: CommandParser, before: list[str], typed: str, user_ns: namespace.Namespace
) -> Iterable[tuple[str, str]]:
    flags, parser = parser.actions, parser.of(before)
    before = [word for word in before if word not in flags]
    waiting = parser._option_string_actions.get(before[-1]) if before else None
    if waiting is not None and waiting.nargs != 0:
        return _values(parser, waiting, user_ns)
    if typed.startswith("-"):
        given = [
            (word, parser._option_string_actions[word]) for word in before if word in parser._option_string_actions
        ]
        # Of flags that may be named together, each may be named once.
        used = {word if isinstance(action.const, str) and several(action) else action.dest for word, action in given}
        options = [
            option
            for option, action in parser._option_string_actions.items()
            if action.dest not in used and option not in used and option.startswith("--")
        ]
        return [(option, "option") for option in (*options, *parser.actions)]
    positional = [action for action in parser._actions if not action.option_strings][_alone(parser, before) :]
    return _values(parser, positional[0], user_ns) if positional else []


def _alone(parser: CommandParser, words: list[str]) -> int:
    """Return how many words stand alone: neither options nor what options take."""
    count, taken = 0, False
    for word in words:
        action = parser._option_string_actions.get(word)
        count += not (taken or action or word.startswith("-"))
        taken = action is not None and action.nargs != 0
    return count


def _values(parser: CommandParser, action: argparse.Action, user_ns: namespace.Namespace) -> Iterable[tuple[str, str]]:
    if action.choices:
        return [(str(choice), "choice") for choice in action.choices]
    kernel = expected_value(action, parser.command)
    if kernel is None:
        return []
    if kernel.kind == "model":
        files = [name for name, value in namespace.variables(user_ns) if isinstance(value, os.PathLike)]
        return [(name, "model") for name in (*namespace.models(user_ns), *files)]
    if kernel.kind == "endpoint":
        return [(name, "endpoint") for name in namespace.endpoints(user_ns)]
    if kernel.kind == "value":
        return [(name, "variable") for name, _ in namespace.variables(user_ns)]
    if kernel.kind in ("function", "functions", "metric"):
        own = [(name, "function") for name, value in namespace.variables(user_ns) if _is_function(value)]
        return [*((name, "metric") for name in METRICS), *own] if kernel.kind == "metric" else own
    return [(name, "data") for name, value in namespace.variables(user_ns) if _is_data(value)]


def _is_data(value: Any) -> bool:
    return is_array(value) or is_dataset(value) or _is_function(value)


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type) and hasattr(value, "__code__")
