"""How a verb is declared, once, so that every face can be made from it: magic, completion, form, Python function.

A verb is a frozen pydantic model of options and a function ``run(options, progress)``. ``Literal`` types are
choices, field descriptions are the help, and the markers below say what the type cannot.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from tfdeploy_magic.jobs.progress import Listener, silent
from tfdeploy_magic.sources import Source

Result = TypeVar("Result")


@dataclass(frozen=True)
class FromKernel:
    """The option names something in the kernel: its value is looked up before ``run``.

    Args:
        kind: "model"; "data", which may be "x" or "x,labels"; "function"; "metric", a function where any other word
            stays a word; or "value", whatever it is.
    """

    kind: Literal["model", "data", "function", "metric", "value"]


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
    """

    name: str
    options: type[Options]
    run: Callable[[Any, Listener], Result]
    cell: str | None = None

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
        arguments = "\n".join(f"    {name}: {field.description}" for name, field in fields.items())
        notes = "    progress: Called with each step of the work."
        _, heading, outcome = (inspect.getdoc(self.run) or "").partition("Returns:")
        object.__setattr__(self, "__signature__", inspect.Signature([*parameters, progress]))
        object.__setattr__(
            self, "__doc__", f"{inspect.getdoc(self.options)}\n\nArgs:\n{arguments}\n{notes}\n\n{heading}{outcome}"
        )
        object.__setattr__(self, "__name__", self.name)

    def __call__(self, *positional: Any, progress: Listener = silent, **options: Any) -> Result:
        """Validate the options and run; a ``pydantic.ValidationError`` says which one is wrong."""
        names = list(self.options.model_fields)[:1]
        if len(positional) > len(names):
            raise TypeError(f"{self.name}() takes {len(names)} positional argument but {len(positional)} were given")
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
