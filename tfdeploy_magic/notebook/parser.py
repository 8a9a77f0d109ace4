"""From a command's declaration to the parser of its magic: ``%magic?``, one-line errors and completion come from it."""

from __future__ import annotations

import argparse
import difflib
import keyword
import shlex
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, get_args, get_origin

from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from tfdeploy_magic.artifacts.schemes import SCHEMES
from tfdeploy_magic.commands.declaration import Command, FromKernel, OnTheLine


@dataclass(frozen=True)
class Line:
    """A parsed magic line.

    Args:
        values: Option -> what was typed, options left out not among them.
        variable: ``--as NAME``.
        debug: Whether the whole traceback is wanted.
    """

    values: dict[str, Any]
    variable: str | None
    debug: bool


class CommandParser(MagicArgumentParser):
    """The parser of one command's magic.

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

    def parse_line(self, line: str) -> Line:
        """Parse what stands behind the magic's name.

        Raises:
            UsageError: It is not what the command takes; one line says what is wrong.
        """
        try:
            words = shlex.split(line)
        except ValueError as error:
            self.error(str(error).lower())
        known, unknown = self.parse_known_args(words)
        if unknown:
            self.error(f"unknown: {unknown[0]}{self._nearest(unknown[0])}. %{self.command.name}? shows what there is")
        values = dict(vars(known))
        variable, debug = values.pop("as_variable"), values.pop("debug")
        if variable is not None and (not variable.isidentifier() or keyword.iskeyword(variable)):
            self.error(f"--as {variable}: not a variable name")
        return Line({name: value for name, value in values.items() if value is not None}, variable, debug)

    def validated(self, values: dict[str, Any]) -> Any:
        """Return the command's options.

        Raises:
            UsageError: A value is not what its option takes.
        """
        try:
            return self.command.options(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            if first["type"] == "missing":
                self.error(f"the following arguments are required: {name.upper()}")
            said = first["msg"].removeprefix("Value error, ").replace("string", "text")
            self.error(f"--{name.replace('_', '-')} {values.get(name)}: {said[:1].lower()}{said[1:]}")

    def error(self, message: str) -> NoReturn:
        """Turn any complaint into the one line IPython shows."""
        raise UsageError(f"%{self.prog}: {message}")

    def _nearest(self, word: str) -> str:
        near = difflib.get_close_matches(word.partition("=")[0], self._option_string_actions, n=1)
        return f" (did you mean {near[0]}?)" if near else ""

    def _add(self, name: str, field: FieldInfo) -> None:
        description = (field.description or "").replace("%", "%%")  # argparse formats it
        form = marker(field, OnTheLine) or OnTheLine()
        if form.hidden:
            return
        spelled = f"--{name.replace('_', '-')}"
        options = [form.short, spelled] if form.short else [spelled]
        choices = _choices(field.annotation)
        if form.positional:
            # It may be left out of a cell magic's line, where the cell itself says it.
            self.add_argument(name, metavar=name.upper(), help=description, nargs="?", choices=choices or None)
        elif form.flags:
            several = get_origin(field.annotation) is tuple
            group = self if several else self.add_mutually_exclusive_group()
            action = "append_const" if several else "store_const"
            for choice in choices:
                default = " (default)" if choice == field.default else ""
                meaning = SCHEMES[choice].meaning if choice in SCHEMES else choice
                text = f"{description}: {meaning}{default}"
                group.add_argument(f"--{choice.replace('_', '-')}", dest=name, action=action, const=choice, help=text)
        elif field.annotation is bool:
            self.add_argument(*options, dest=name, action="store_const", const=True, help=description)
        else:
            default = "" if field.default in (None, ()) else f" (default: {field.default})"
            metavar = "|".join(choices) if choices else _metavar(field)
            help_text = f"{description}{default}"
            self.add_argument(*options, dest=name, metavar=metavar, choices=choices or None, help=help_text)


def several(action: argparse.Action) -> bool:
    """Whether an action collects each flag of its kind instead of being overruled by the next."""
    return isinstance(action, argparse._AppendConstAction)


def marker(field: FieldInfo, kind: type[Any]) -> Any:
    """Return the field's marker of this kind, or None."""
    return next((mark for mark in field.metadata if isinstance(mark, kind)), None)


def expected_value(action: argparse.Action, command: Command[Any]) -> FromKernel | None:
    """Return what of the kernel the option of this action names, or None."""
    field = command.options.model_fields.get(action.dest)
    found: FromKernel | None = marker(field, FromKernel) if field else None
    return found


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return next((found for part in get_args(annotation) if (found := _choices(part))), [])


def _metavar(field: FieldInfo) -> str:
    if marker(field, FromKernel):
        return "NAME"
    names = {int: "N", float: "SECONDS"}
    return names.get(field.annotation, "VALUE") if isinstance(field.annotation, type) else "VALUE"
