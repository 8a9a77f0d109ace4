from __future__ import annotations

import inspect
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from tfdeploy_magic.commands.declaration import COMMANDS, Command, OnTheLine, Options, action
from tfdeploy_magic.commands.tflite_convert import TfliteConvert, tflite_convert
from tfdeploy_magic.jobs.progress import Listener


def test_the_python_face_has_the_options_as_its_signature_and_help() -> None:
    parameters = inspect.signature(tflite_convert).parameters
    assert list(parameters) == [*TfliteConvert.model_fields, "progress"]
    assert parameters["model"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert parameters["model"].default is inspect.Parameter.empty
    assert parameters["scheme"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["scheme"].default == "float32"
    for name, field in TfliteConvert.model_fields.items():
        assert f"    {name}: {field.description}" in tflite_convert.__doc__


def test_every_verb_is_registered_under_its_name_and_every_option_is_explained() -> None:
    assert COMMANDS["tflite_convert"] is tflite_convert
    for command in COMMANDS.values():
        assert all(field.description for field in command.options.model_fields.values())


def test_options_are_values_that_cannot_be_changed() -> None:
    options = TfliteConvert(model=1)
    with pytest.raises(ValidationError, match="frozen"):
        options.scheme = "int8"


def test_data_is_looked_for_only_where_the_scheme_can_use_it() -> None:
    assert TfliteConvert(model=1).data_to_find() == ("test",)
    assert TfliteConvert(model=1, scheme="int8").data_to_find() == ("calib", "test")


class Host(Options):
    """Host a model."""

    model: Annotated[str, OnTheLine(positional=True)] = Field(description="the model")
    dry_run: bool = Field(False, description="only say what would be done")
    output: Annotated[str | None, OnTheLine(short="-o")] = Field(None, description="where to")
    speed: Annotated[Literal["quick", "slow"], OnTheLine(flags=True)] = Field("slow", description="how")
    secret: Annotated[str | None, OnTheLine(hidden=True)] = Field(None, description="for programs")


class StopHosting(Options):
    """Stop hosting."""

    name: Annotated[str | None, OnTheLine(positional=True)] = Field(None, description="which one")
    all: bool = Field(False, description="every one")


class ListHosts(Options):
    """Show what is hosted."""


def did(options: Options, progress: Listener) -> Options:
    """Return what it was given.

    Returns:
        The options.
    """
    return options


@pytest.fixture
def host() -> Command[Options]:
    return Command("host", Host, did)


def test_an_action_is_called_as_an_attribute_of_its_verb(host: Command[Options]) -> None:
    stop = action(host, "stop", StopHosting)(did)
    action(host, "list", ListHosts)(did)
    assert host("digits") == Host(model="digits")
    assert host.stop("digits") == StopHosting(name="digits")
    assert host.stop(all=True) == StopHosting(all=True)
    assert host.list() == ListHosts()
    assert list(host.actions) == ["stop", "list"]
    assert host.actions["stop"] is stop
    assert stop.options.model_json_schema()["properties"].keys() == {"name", "all"}
    assert "host" not in COMMANDS and "stop" not in COMMANDS


def test_an_action_has_its_own_signature_help_and_name(host: Command[Options]) -> None:
    action(host, "stop_all", StopHosting)(did)
    action(host, "list", ListHosts)(did)
    assert host.stop_all.name == "host --stop-all"
    assert list(inspect.signature(host.stop_all).parameters) == ["name", "all", "progress"]
    assert "    all: every one\n    progress:" in (inspect.getdoc(host.stop_all) or "")
    assert "Args:\n    progress:" in (inspect.getdoc(host.list) or "")
    with pytest.raises(TypeError, match=r"host.stop_all\(\) takes 1 positional argument but 2 were given"):
        host.stop_all("digits", "letters")
    with pytest.raises(ValidationError, match="Extra inputs"):
        host.list(name="digits")


@pytest.mark.parametrize(
    "name", ["dry_run", "output", "quick", "debug", "as", "all", "stop", "options", "actions", "name"]
)
def test_an_action_whose_flag_or_name_is_taken_is_refused_when_it_is_declared(
    host: Command[Options], name: str
) -> None:
    action(host, "stop", StopHosting)(did)
    with pytest.raises(ValueError, match="is taken"):
        action(host, name, ListHosts)(did)
    assert list(host.actions) == ["stop"]


def test_an_option_of_an_action_may_not_be_the_flag_of_another(host: Command[Options]) -> None:
    action(host, "all", ListHosts)(did)
    with pytest.raises(ValueError, match="--all is taken"):
        action(host, "stop", StopHosting)(did)


@pytest.mark.parametrize("name", ["model", "secret"])
def test_what_has_no_flag_in_the_line_takes_none_away(host: Command[Options], name: str) -> None:
    assert action(host, name, ListHosts)(did) is host.actions[name]
