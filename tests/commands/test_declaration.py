from __future__ import annotations

import inspect

import pytest
from pydantic import ValidationError

from tfdeploy_magic.commands.declaration import COMMANDS
from tfdeploy_magic.commands.tflite_convert import TfliteConvert, tflite_convert


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
