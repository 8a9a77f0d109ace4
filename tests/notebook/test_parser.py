from __future__ import annotations

from pathlib import Path

import pytest
from IPython.core.error import UsageError

from tfdeploy_magic.commands import tflite_convert  # noqa: F401
from tfdeploy_magic.commands.declaration import COMMANDS
from tfdeploy_magic.notebook.parser import CommandParser


@pytest.fixture
def parser() -> CommandParser:
    return CommandParser(COMMANDS["tflite_convert"])


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
