from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from IPython.core.error import UsageError
from pydantic import Field, model_validator

from tfdeploy_magic.commands import tflite_convert  # noqa: F401
from tfdeploy_magic.commands.declaration import COMMANDS, Command, FromKernel, OnTheLine, Options, action
from tfdeploy_magic.jobs.progress import Listener
from tfdeploy_magic.notebook.parser import CommandParser


class Host(Options):
    """Host a model."""

    model: Annotated[Any, FromKernel("model"), OnTheLine(positional=True)] = Field(description="the model to host")
    port: int = Field(8501, gt=0, description="where it listens")
    methods: Annotated[Any, FromKernel("functions")] = Field(None, description="what else it answers")
    notes: Annotated[str | None, OnTheLine(hidden=True)] = Field(None, description="the text of the cell")


class StopHosting(Options):
    """Stop what is hosted."""

    name: Annotated[str | None, OnTheLine(positional=True)] = Field(None, description="which model")
    all: bool = Field(False, description="all of them")

    @model_validator(mode="after")
    def _one_or_all(self) -> StopHosting:
        if (self.name is None) != self.all:
            raise ValueError("Name a model, or --all")
        return self


class AskHost(Options):
    """Ask what is hosted."""

    endpoint: Annotated[Any, FromKernel("endpoint"), OnTheLine(positional=True)] = Field(description="whom")
    x: Annotated[Any, FromKernel("data"), OnTheLine(positional=True)] = Field(description="samples")
    version: int | None = Field(None, description="which version")


@dataclass(frozen=True)
class Done:
    """What was done, and with which options."""

    what: str
    options: Any


def host_verb() -> Command[Done]:
    """Return a verb with actions; the last of them has no result."""
    host = Command("host", Host, lambda options, progress: Done("host", options), cell="notes")
    action(host, "stop", StopHosting)(lambda options, progress: Done("stop", options))
    action(host, "ask", AskHost)(lambda options, progress: Done("ask", options))
    action(host, "forget_all", Options)(_forget)
    return host


def _forget(options: Options, progress: Listener) -> None:
    """Forget what was hosted."""


@pytest.fixture
def parser() -> CommandParser:
    return CommandParser(COMMANDS["tflite_convert"])


@pytest.fixture
def host() -> CommandParser:
    return CommandParser(host_verb())


def test_a_scheme_is_a_flag(parser: CommandParser) -> None:
    line = parser.parse_line("model --int8")
    assert line.values == {"model": "model", "scheme": "int8"}
    assert (line.variable, line.debug) == (None, False)


def test_every_option_of_the_declaration_is_an_option_of_the_magic(parser: CommandParser) -> None:
    text = parser.format_help()
    for name, field in COMMANDS["tflite_convert"].options.model_fields.items():
        if name == "settings":  # for programs
            continue
        spelled = {"model": "model", "scheme": "--int16x8"}.get(name, f"--{name.replace('_', '-')}")
        assert spelled in text
        assert (field.description or "nothing")[:30] in " ".join(text.split())


def test_quotes_keep_a_path_with_spaces_together(parser: CommandParser) -> None:
    line = parser.parse_line("model -o 'my models/a b.tflite' --as kept --debug")
    assert parser.validated(line.values).output == Path("my models/a b.tflite")
    assert (line.variable, line.debug) == ("kept", True)


def test_sizes_of_memory_are_read_as_people_write_them(parser: CommandParser) -> None:
    assert parser.validated(parser.parse_line("model --memory-limit 2GB").values).memory_limit == 2_000_000_000


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("model --int9", "did you mean --int8?"),
        ("model --int8 --float16", "not allowed with argument"),
        ("", "required: MODEL"),
        ("model --io float64", "choose from"),
        ("model --samples none", "--samples none"),
        ("model --samples 0", "greater than 0"),
        ("model --as 1x", "not a variable name"),
        ("model --as class", "not a variable name"),
        ("model other", "unknown: other"),
        ("model --calib", "expected one argument"),
    ],
)
def test_a_mistyped_line_is_one_line_that_says_what_is_wrong(parser: CommandParser, line: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parser.validated(parser.parse_line(line).values)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["--stop digits --as kept", "digits --as kept --stop", "--as kept --stop digits"])
def test_the_flag_of_an_action_may_stand_anywhere_in_its_line(host: CommandParser, line: str) -> None:
    parsed = host.parse_line(line)
    assert parsed.parser.command.name == "host --stop"
    assert (parsed.values, parsed.variable) == ({"name": "digits"}, "kept")
    assert parsed.parser.validated(parsed.values) == StopHosting(name="digits")


def test_a_line_without_such_a_flag_is_the_verbs_own(host: CommandParser) -> None:
    parsed = host.parse_line("stop --port 80")
    assert parsed.parser is host
    assert parsed.values == {"model": "stop", "port": "80"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--stop digits --port 80", "%host --stop: unknown: --port. %host? shows what there is"),
        ("--stop digits --al", "%host --stop: unknown: --al (did you mean --all?). %host? shows what there is"),
        ("--stop digits letters", "%host --stop: unknown: letters. %host? shows what there is"),
        ("model --stpo", "%host: unknown: --stpo (did you mean --stop?). %host? shows what there is"),
        ("--stop digits --forget-all", "%host: --stop and --forget-all do not go together"),
        ("--stop", "%host --stop: name a model, or --all"),
        ("--stop digits --all", "%host --stop: name a model, or --all"),
        ("--ask digits", "%host --ask: the following arguments are required: X"),
        ("--ask digits x --version new", "%host --ask: --version new: input should be a valid integer"),
        ("--forget-all digits", "%host --forget-all: unknown: digits. %host? shows what there is"),
        ("--stop 'digits", "%host: no closing quotation"),
    ],
)
def test_an_error_names_the_line_that_it_is_about(host: CommandParser, line: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed = host.parse_line(line)
        parsed.parser.validated(parsed.values)
    assert str(caught.value).startswith(said)


def test_help_shows_the_verb_first_and_then_each_action_with_its_options(host: CommandParser) -> None:
    text = " ".join(host.format_help().split())
    pieces = [
        *("%host [--port N] [--methods NAME=FUNCTION,...]", "Host a model.", "where it listens"),
        *("%host --stop [--all] [--as NAME] [--debug] [NAME]", "Stop what is hosted.", "all of them"),
        *("%host --ask", "Ask what is hosted.", "which version", "%host --forget-all"),
    ]
    places = [text.find(piece) for piece in pieces]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize(
    "line", ["--ask digits x[:3] --version 2", "--ask digits --version 2 x[:3]", "--ask --version 2 digits x[:3]"]
)
def test_an_option_may_stand_between_two_words_that_stand_alone(host: CommandParser, line: str) -> None:
    assert host.parse_line(line).values == {"endpoint": "digits", "x": "x[:3]", "version": "2"}


@pytest.mark.parametrize(
    ("line", "model", "others"),
    [
        ("x[..., 0] --port 80", "x[..., 0]", {"port": "80"}),
        ("--port 80 x[1, :, -1]", "x[1, :, -1]", {"port": "80"}),
        ("'a b[1 2].tflite' --port 80", "a b[1 2].tflite", {"port": "80"}),
        ("open[ --port 80", "open[", {"port": "80"}),
    ],
)
def test_what_stands_in_one_pair_of_brackets_is_one_word(
    host: CommandParser, line: str, model: str, others: dict[str, str]
) -> None:
    assert host.parse_line(line).values == {"model": model, **others}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("digits  # it's the small one", {"model": "digits"}),
        ("digits --port 9 # 9 is free", {"model": "digits", "port": "9"}),
        ("'my # model'", {"model": "my # model"}),
        ("issue#5", {"model": "issue#5"}),
    ],
)
def test_a_comment_is_no_part_of_a_line(line: str, words: dict[str, str]) -> None:
    command = Command("host", Host, lambda options, progress: None)
    assert CommandParser(command).parse_line(line).values == words
