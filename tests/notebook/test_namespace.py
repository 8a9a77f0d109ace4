from __future__ import annotations

from types import SimpleNamespace

import pytest

from tfdeploy_magic.errors import NameNotFound
from tfdeploy_magic.notebook.namespace import lookup


def test_a_variable_and_an_attribute_path_are_found() -> None:
    trainer = SimpleNamespace(model="the model")
    assert lookup("trainer", {"trainer": trainer}, wanted="it") is trainer
    assert lookup("trainer.model", {"trainer": trainer}, wanted="it") == "the model"


@pytest.mark.parametrize("expression", ["f()", "models[0]", "a + b", "__import__('os')", "model;x", "", "1"])
def test_an_expression_is_never_evaluated(expression: str) -> None:
    with pytest.raises(NameNotFound, match="is not a name"):
        lookup(expression, {"f": pytest.fail, "models": [1], "a": 1, "b": 2}, wanted="a model")


def test_a_misspelled_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(NameNotFound, match="Did you mean model"):
        lookup("modle", {"model": 1, "other": 2}, wanted="a model")
    with pytest.raises(NameNotFound, match="Did you mean weights"):
        lookup("m.wieghts", {"m": SimpleNamespace(weights=1)}, wanted="data")
