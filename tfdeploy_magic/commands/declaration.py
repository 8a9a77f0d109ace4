"""How a verb is declared, once, so that every face can be made from it: magic, completion, form, Python function.

A verb is a frozen pydantic model of options and a function ``run(options, progress)``. ``Literal`` types are
choices, field descriptions are the help, and the markers below say what the type cannot. What else a verb does, it
declares as actions: ``%serve --stop NAME`` and ``serve.stop("NAME")``, with options of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from tfdeploy_magic.jobs.progress import Listener, silent
from tfdeploy_magic.sources import Source

Result = TypeVar("Result")

ON_EVERY_LINE = ("--as", "--debug")
"""What every magic line takes besides its options: a variable for the result, and the whole traceback of an error."""


@dataclass(frozen=True)
class FromKernel:
    """The option names something in the kernel: its value is looked up before ``run``.

    Args:
        kind: "model"; "data", which may be "x" or "x,labels", each cut as in "x[:100]"; "function"; "functions",
            "NAME=FUNCTION,..." that becomes a dict of :class:`Named`; "metric", a function where any other word stays
            a word; "endpoint", a running model, where a URL stays a URL; or "value", whatever it is.
    """

    kind: Literal["model", "data", "function", "functions", "metric", "endpoint", "value"]


@dataclass(frozen=True)
class OnTheLine:
    """How the option is spelled in a magic line, where ``--name VALUE`` is not it.

    Args:
        positional: It stands alone, without a name.
        flags: Each choice of its ``Literal`` is a flag: ``--int8``.
        short: A one-letter form, "-o".
        hidden: It is for programs and has no place in a line.
    """

    positional: bool = False
    flags: bool = False
    short: str | None = None
    hidden: bool = False


@dataclass(frozen=True)
class Named:
    """A kernel value and the name it was asked for by."""

    name: str
    value: Any


class Options(BaseModel):
    """Base of every verb's options; its docstring is the verb's help."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    def data_to_find(self) -> tuple[str, ...]:
        """Return the data options that a face which sees the kernel should fill when they were left out."""
        return ()

    def source(self) -> Source:
        """Return the opened model of a verb that has one."""
        raise NotImplementedError


@dataclass(frozen=True)
class Command(Generic[Result]):
    """A verb: what it is called, what it takes, and what it does.

    Calling it is the Python face: ``tflite_convert(model, scheme="int8")``.

    Args:
        name: What its magic is called.
        options: What it takes.
        run: What it does.
        cell: What the cell of its magic is: "converter", code that may use TensorFlow's converter; or the name of the
            option that takes the cell's text. None when it has no cell magic.
        actions: What else it does, by name: "stop" is ``%serve --stop`` and ``serve.stop()``. The name of such a
            command is what its line begins with, "serve --stop".
    """

    name: str
    options: type[Options]
    run: Callable[[Any, Listener], Result]
    cell: str | None = None
    actions: Mapping[str, Command[Any]] = field(default_factory=dict, init=False, compare=False)

    if TYPE_CHECKING:
        # Actions become attributes when they are registered, where no type checker sees them.
        def __getattr__(self, name: str) -> Command[Any]: ...

    def __post_init__(self) -> None:
        fields = self.options.model_fields
        parameters = [
            inspect.Parameter(
                name,
                inspect.Parameter.POSITIONAL_OR_KEYWORD if position == 0 else inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.is_required() else field.default,
                annotation=field.annotation,
            )
            for position, (name, field) in enumerate(fields.items())
        ]
        progress = inspect.Parameter("progress", inspect.Parameter.KEYWORD_ONLY, default=silent, annotation=Listener)
        arguments = "".join(f"    {name}: {field.description}\n" for name, field in fields.items())
        notes = "    progress: Called with each step of the work."
        _, heading, outcome = (inspect.getdoc(self.run) or "").partition("Returns:")
        object.__setattr__(self, "__signature__", inspect.Signature([*parameters, progress]))
        object.__setattr__(
            self, "__doc__", f"{inspect.getdoc(self.options)}\n\nArgs:\n{arguments}{notes}\n\n{heading}{outcome}"
        )
        object.__setattr__(self, "__name__", self.name.replace(" --", ".").replace("-", "_"))

    def __call__(self, *positional: Any, progress: Listener = silent, **options: Any) -> Result:
        """Validate the options and run; a ``pydantic.ValidationError`` says which one is wrong."""
        names = list(self.options.model_fields)[:1]
        if len(positional) > len(names):
            raise TypeError(
                f"{self.__name__}() takes {len(names)} positional argument but {len(positional)} were given"
            )
        return self.run(self.options(**dict(zip(names, positional, strict=False)), **options), progress)


COMMANDS: dict[str, Command[Any]] = {}
"""Every verb, by the name of its magic."""


def command(
    name: str, options: type[Options], *, cell: str | None = None
) -> Callable[[Callable[[Any, Listener], Result]], Command[Result]]:
    """Register ``run(options, progress)`` as a verb; ``cell`` as :class:`Command` has it."""

    def register(run: Callable[[Any, Listener], Result]) -> Command[Result]:
        COMMANDS[name] = Command(name, options, run, cell)
        return COMMANDS[name]

    return register


def action(
    verb: Command[Any], name: str, options: type[Options]
) -> Callable[[Callable[[Any, Listener], Result]], Command[Result]]:
    """Register ``run(options, progress)`` as something else that a verb does.

    Args:
        verb: The verb.
        name: "stop" for ``%serve --stop`` and ``serve.stop()``.
        options: What it takes.

    Raises:
        ValueError: Its flag is an option of the verb or of an action, or its name an attribute of the verb.
    """

    def register(run: Callable[[Any, Listener], Result]) -> Command[Result]:
        made = Command(f"{verb.name} {flag(name)}", options, run)
        actions = {**verb.actions, name: made}
        taken = {*ON_EVERY_LINE, *_spellings(verb.options, *(one.options for one in actions.values()))}
        clash = next((one for one in map(flag, actions) if one in taken), None)
        if clash or hasattr(verb, name):
            raise ValueError(f"%{made.name}: {clash or name} is taken, and no line can mean both")
        object.__setattr__(verb, "actions", actions)
        object.__setattr__(verb, name, made)
        return made

    return register


def flag(name: str) -> str:
    """Return how a line spells a name, "--dry-run" for dry_run."""
    return f"--{name.replace('_', '-')}"


def flags_of(name: str, field: FieldInfo) -> list[str]:
    """Return what stands for an option in a line: its name and short form, or a flag for each choice."""
    form = marker(field, OnTheLine) or OnTheLine()
    if form.hidden or form.positional:
        return []
    if form.flags:
        return [flag(choice) for choice in choices(field.annotation)]
    return [form.short, flag(name)] if form.short else [flag(name)]


def choices(annotation: Any) -> list[str]:
    """Return the words of a ``Literal``, also of one inside a union or a tuple."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return next((found for part in get_args(annotation) if (found := choices(part))), [])


def marker(field: FieldInfo, kind: type[Any]) -> Any:
    """Return the field's marker of this kind, or None."""
    return next((mark for mark in field.metadata if isinstance(mark, kind)), None)


def _spellings(*models: type[Options]) -> set[str]:
    return {word for model in models for name, field in model.model_fields.items() for word in flags_of(name, field)}
