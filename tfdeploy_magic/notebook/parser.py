"""From a command's declaration to the parser of its magic: ``%magic?``, one-line errors and completion come from it."""

from __future__ import annotations

import argparse
import difflib
import keyword
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, get_origin

from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from tfdeploy_magic.artifacts.schemes import SCHEMES
from tfdeploy_magic.commands.declaration import Command, FromKernel, OnTheLine, choices, flag, flags_of, marker

_COMMENT = re.compile(r"""^((?:[^"'#]|"[^"]*"|'[^']*'|(?<=\S)\#)*?)(?:^|(?<=\s))\#.*$""", re.VERBOSE)
"""What stands before a comment, which begins with a "#" of its own: not within a word, nor within quotes."""


@dataclass(frozen=True)
class Line:
    """A parsed magic line.

    Args:
        values: Option -> what was typed, options left out not among them.
        variable: ``--as NAME``.
        debug: Whether the whole traceback is wanted.
        parser: Whose line it is: the verb's, or that of one of its actions.
    """

    values: dict[str, Any]
    variable: str | None
    debug: bool
    parser: CommandParser


class CommandParser(MagicArgumentParser):
    """The parser of one command's magic, and of its actions'.

    Args:
        command: The command.
    """

    def __init__(self, command: Command[Any]) -> None:
        super().__init__(command.name, description=command.options.__doc__, add_help=False)  # type: ignore[no-untyped-call]
        self.allow_abbrev = False
        self.command = command
        for name, field in command.options.model_fields.items():
            self._add(name, field)
        self.add_argument("--as", dest="as_variable", metavar="NAME", help="variable to keep the result in")
        self.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
        self.actions = {flag(name): CommandParser(action) for name, action in command.actions.items()}

    def parse_line(self, line: str) -> Line:
        """Parse what stands behind the magic's name.

        Raises:
            UsageError: It is not what the command takes; one line says what is wrong.
        """
        try:
            words = together(shlex.split(_COMMENT.sub(r"\1", line)))
        except ValueError as error:
            self.error(str(error).lower())
        asked = list(dict.fromkeys(word for word in words if word in self.actions))
        if len(asked) > 1:
            self.error(f"{asked[0]} and {asked[1]} do not go together")
        return self.of(words)._parsed([word for word in words if word not in asked])

    def of(self, words: Iterable[str]) -> CommandParser:
        """Return the parser of the action that a line asks for, this one where it asks for none."""
        return next((self.actions[word] for word in words if word in self.actions), self)

    def format_help(self) -> str:
        """Return the help: the verb's, and after it that of each action."""
        return "\n".join([super().format_help(), *(parser.format_help() for parser in self.actions.values())])

    def _parsed(self, words: list[str]) -> Line:
        # Intermixed: of two words that stand alone the second may come after an option.
        known, unknown = self.parse_known_intermixed_args(self._with_text(words))
        if unknown:
            verb = self.command.name.partition(" ")[0]
            self.error(f"unknown: {unknown[0]}{self._nearest(unknown[0])}. %{verb}? shows what there is")
        values = dict(vars(known))
        variable, debug = values.pop("as_variable"), values.pop("debug")
        if variable is not None and (not variable.isidentifier() or keyword.iskeyword(variable)):
            self.error(f"--as {variable}: not a variable name")
        return Line({name: value for name, value in values.items() if value is not None}, variable, debug, self)

    def _with_text(self, words: list[str]) -> list[str]:
        """Return the words with those options that take any text joined to it: it may be flags, "--enable_batching"."""
        joined: list[str] = []
        for word in words:
            option = self._option_string_actions.get(joined[-1]) if joined else None
            field = self.command.options.model_fields.get(option.dest) if option else None
            if field is not None and field.annotation is str and word not in self._option_string_actions:
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return joined

    def validated(self, values: dict[str, Any]) -> Any:
        """Return the command's options.

        Raises:
            UsageError: A value is not what its option takes.
        """
        try:
            return self.command.options(**values)
        except ValidationError as error:
            first = error.errors()[0]
            said = first["msg"].removeprefix("Value error, ").replace("string", "text")
            said = f"{said[:1].lower()}{said[1:]}"
            if not first["loc"]:  # the options together are wrong
                self.error(said)
            name = str(first["loc"][0])
            if first["type"] == "missing":
                self.error(f"the following arguments are required: {name.upper()}")
            self.error(f"{flag(name)} {values.get(name)}: {said}")

    def error(self, message: str) -> NoReturn:
        """Turn any complaint into the one line IPython shows."""
        raise UsageError(f"%{self.prog}: {message}")

    def _nearest(self, word: str) -> str:
        near = difflib.get_close_matches(word.partition("=")[0], [*self._option_string_actions, *self.actions], n=1)
        return f" (did you mean {near[0]}?)" if near else ""

    def _add(self, name: str, field: FieldInfo) -> None:
        description = (field.description or "").replace("%", "%%")  # argparse formats it
        form = marker(field, OnTheLine) or OnTheLine()
        if form.hidden:
            return
        words, spelled = choices(field.annotation), flags_of(name, field)
        if form.positional:
            # It may be left out of a cell magic's line, where the cell itself says it.
            self.add_argument(name, metavar=name.upper(), help=description, nargs="?", choices=words or None)
        elif form.flags:
            several = get_origin(field.annotation) is tuple
            group = self if several else self.add_mutually_exclusive_group()
            action = "append_const" if several else "store_const"
            for choice, option in zip(words, spelled, strict=True):
                default = " (default)" if choice == field.default else ""
                meaning = SCHEMES[choice].meaning if choice in SCHEMES else choice
                text = f"{description}: {meaning}{default}"
                group.add_argument(option, dest=name, action=action, const=choice, help=text)
        elif field.annotation is bool:
            self.add_argument(*spelled, dest=name, action="store_const", const=True, help=description)
        else:
            default = "" if field.default in (None, (), "") else f" (default: {field.default})"
            metavar = "|".join(words) if words else _metavar(field)
            help_text = f"{description}{default}"
            self.add_argument(*spelled, dest=name, metavar=metavar, choices=words or None, help=help_text)


def together(words: Iterable[str]) -> list[str]:
    """Return the words of a line with those put together that stand in one pair of brackets, "x[..., 0]"."""
    whole: list[str] = []
    waiting: list[str] = []
    for word in words:
        waiting.append(word)
        if (joined := " ".join(waiting)).count("[") <= joined.count("]"):
            whole.append(joined)
            waiting = []
    return [*whole, *waiting]


def several(action: argparse.Action) -> bool:
    """Whether an action collects each flag of its kind instead of being overruled by the next."""
    return isinstance(action, argparse._AppendConstAction)


def expected_value(action: argparse.Action, command: Command[Any]) -> FromKernel | None:
    """Return what of the kernel the option of this action names, or None."""
    field = command.options.model_fields.get(action.dest)
    found: FromKernel | None = marker(field, FromKernel) if field else None
    return found


def _metavar(field: FieldInfo) -> str:
    if kernel := marker(field, FromKernel):
        return "NAME=FUNCTION,..." if kernel.kind == "functions" else "NAME"
    names = {int: "N", float: "SECONDS"}
    return names.get(field.annotation, "VALUE") if isinstance(field.annotation, type) else "VALUE"
