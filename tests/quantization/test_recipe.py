"""Recipes are read line by line, matched against a model's layers, and refused in words."""

from __future__ import annotations

import pytest

from tfdeploy_magic.artifacts.schemes import Variant
from tfdeploy_magic.errors import DataError, NameNotFound
from tfdeploy_magic.quantization import recipe
from tfdeploy_magic.quantization.recipe import Operator, Rule

OPERATORS = (
    Operator("CONV_2D", "net/conv_1/Relu", "conv_1 (Conv2D)"),
    Operator("MAX_POOL_2D", "net/pool/MaxPool", "pool (MaxPooling2D)"),
    Operator("CONV_2D", "net/conv_2/Relu", "conv_2 (Conv2D)"),
    Operator("FULLY_CONNECTED", "net/dense/MatMul", "dense (Dense)"),
    Operator("SOFTMAX", "net/dense/Softmax", "dense (Dense)"),
)


def resolved(text: str, default: str = "int8") -> Variant:
    return recipe.resolve(recipe.parse(text), OPERATORS, default)


def test_a_line_is_a_pattern_and_a_scheme_and_comments_are_left_out() -> None:
    text = """
    # the last layers are sensitive
    .*: int8
    "conv_1": float32   # by name
    dense: dynamic-wi4
    """
    assert recipe.parse(text) == (Rule(".*", "int8"), Rule("conv_1", "float32"), Rule("dense", "dynamic_wi4"))


def test_a_pattern_may_hold_a_colon() -> None:
    assert recipe.parse("StatefulPartitionedCall:0: float32") == (Rule("StatefulPartitionedCall:0", "float32"),)


def test_layers_in_float_beside_int8_are_a_denylist_of_tensorflows() -> None:
    assert resolved("conv_1: float32").denylisted_nodes == ("net/conv_1/Relu",)
    assert resolved("conv_.: float32").denylisted_nodes == ("net/conv_1/Relu", "net/conv_2/Relu")
    assert resolved("dense: float32").denylisted_nodes == ("net/dense/MatMul", "net/dense/Softmax")
    assert resolved("net/pool/MaxPool: float32").denylisted_nodes == ("net/pool/MaxPool",)


def test_an_operator_names_all_of_its_kind() -> None:
    assert resolved("CONV_2D: float32").denylisted_nodes == ("net/conv_1/Relu", "net/conv_2/Relu")


def test_later_rules_decide() -> None:
    assert resolved("conv_.: float32\nconv_2: int8").denylisted_nodes == ("net/conv_1/Relu",)
    assert resolved("conv_1: float32\n.*: int8").denylisted_nodes == ()


def test_four_bits_for_a_layer_are_a_recipe_of_litert_quantizer() -> None:
    asked = resolved(".*: static_wi8_ai8\ndense: dynamic_wi4\nconv_1: float32")
    assert asked.scheme == "static_wi8_ai8"
    assert asked.calibrated
    groups = {scheme: outputs for outputs, scheme in asked.recipe}
    assert set(groups["static_wi8_ai8"]) == {operator.output for operator in OPERATORS}
    assert groups["dynamic_wi4"] == ("net/dense/MatMul", "net/dense/Softmax")
    assert groups["float32"] == ("net/conv_1/Relu",)


def test_a_recipe_that_quantizes_one_layer_only_leaves_the_rest_in_float() -> None:
    asked = resolved(".*: float32\ndense: weight_only_wi4")
    assert {scheme: outputs for outputs, scheme in asked.recipe}["weight_only_wi4"] == (
        "net/dense/MatMul",
        "net/dense/Softmax",
    )
    assert not asked.calibrated


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("conv_1 float32", "line 1 of the recipe cannot be read"),
        ("\nconv_1: int9", r"line 2[^!]*Did you mean int8"),
        ("conv_(: float32", r"unterminated subpattern|missing \)"),
        (": float32", "cannot be read"),
        ("# nothing\n", "the recipe is empty"),
    ],
)
def test_what_is_no_recipe_is_an_error_that_names_the_line(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        recipe.parse(text)


def test_a_rule_that_matches_nothing_names_the_nearest_layer() -> None:
    with pytest.raises(NameNotFound, match=r"'conv_3'[^!]*Did you mean conv_"):
        resolved("conv_3: float32")
    with pytest.raises(NameNotFound, match="one of conv_1, pool, conv_2, dense"):
        resolved("zzz: float32")


def test_schemes_that_no_one_quantizer_makes_together_name_the_one_to_use() -> None:
    with pytest.raises(DataError, match="Use static_wi8_ai8 in place of int8"):
        resolved(".*: int8\ndense: dynamic_wi4")
    with pytest.raises(DataError, match="Use static_wi8_ai16 in place of int16x8"):
        resolved(".*: int16x8\ndense: float32")
