from __future__ import annotations

import json

import pytest

from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, TensorSpec
from tfdeploy_magic.errors import InputError
from tfdeploy_magic.sources import How

OPEN = (TensorSpec("image", (None, None, None, 3), "float32"), TensorSpec("words", (None, 7), "int32"))


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (None, ()),
        ("4", (TensorSpec("", (4,), ""),)),
        ("?", (TensorSpec("", (None,), ""),)),
        ("scalar", (TensorSpec("", (), ""),)),
        ("1x224x224x3:float32", (TensorSpec("", (1, 224, 224, 3), "float32"),)),
        ("?x?x?x3", (TensorSpec("", (None, None, None, 3), ""),)),
        (
            "words=?x7:int32, image=1x2x2x3",
            (TensorSpec("words", (None, 7), "int32"), TensorSpec("image", (1, 2, 2, 3), "")),
        ),
        ("nest/a_b.0=?x3", (TensorSpec("nest/a_b.0", (None, 3), ""),)),
        ("x=scalar:int64", (TensorSpec("x", (), "int64"),)),
    ],
)
def test_an_input_specification_is_read_as_it_sounds(words: str | None, asked: tuple[TensorSpec, ...]) -> None:
    assert How(input_spec=words).asked_inputs() == asked


@pytest.mark.parametrize(
    "words",
    [
        "",
        "1x",
        "x3",
        "1x-2",
        "-1x3",
        "1×2",
        "2*3",
        "1x2:",
        "=1x2",
        "a=b=1x2",
        "1x2,,3",
        "1.5x2",
        "1x2:int 32",
        "0x",
        "1?x16",
        "??",
    ],
)
def test_what_is_no_input_specification_is_refused_with_an_example_of_one(words: str) -> None:
    with pytest.raises(InputError, match=r"--input-spec .*cannot be read[^!]*NAME=\?x7:int32"):
        How(input_spec=words).asked_inputs()


def test_choices_survive_json() -> None:
    how = How("embed", "?x3", ("a", "b:1"), ("c",), trust=True, unroll=True)
    assert How.from_dict(json.loads(json.dumps(how.to_dict()))) == how
    assert How.from_dict(json.loads(json.dumps(How().to_dict()))) == How()


@pytest.mark.parametrize(
    ("words", "shapes"),
    [
        ("?x8x8x3", [(None, 8, 8, 3), (None, 7)]),
        ("1x8x8x3,1x7", [(1, 8, 8, 3), (1, 7)]),
        ("words=1x7", [(None, None, None, 3), (1, 7)]),
        ("words=1x7:int32,image=1x8x8x3:float32", [(1, 8, 8, 3), (1, 7)]),
        (None, [(None, None, None, 3), (None, 7)]),
    ],
)
def test_a_models_inputs_take_the_shapes_that_were_asked_for_and_keep_their_order(
    words: str | None, shapes: list[tuple[int | None, ...]]
) -> None:
    narrowed = How(input_spec=words).narrowed(OPEN, "model")
    assert [spec.shape for spec in narrowed] == shapes
    assert [(spec.name, spec.dtype) for spec in narrowed] == [("image", "float32"), ("words", "int32")]


def test_an_input_of_unknown_rank_takes_any_shape() -> None:
    (narrowed,) = How(input_spec="2x3").narrowed([TensorSpec("x", UNKNOWN_RANK, "float32")], "model")
    assert narrowed.shape == (2, 3)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("?x8x8x4", r"found image: float32\[\?, \?, \?, 3\]"),
        ("8x8x3", r"found image: float32"),
        ("image=?x8x8x3:int8", r"found image: float32"),
        ("words=?x?", r"found words: int32\[\?, 7\]"),
        ("picture=?x8x8x3", "found no input picture"),
        ("?x8x8x3,?x7,?x2", "found no input number 3"),
    ],
)
def test_a_shape_that_the_model_does_not_allow_is_refused_with_what_it_takes(words: str, found: str) -> None:
    with pytest.raises(InputError, match=f"does not go with net: {found}[^!]*It takes image: float32") as caught:
        How(input_spec=words).narrowed(OPEN, "net")
    assert "words: int32[?, 7]" in caught.value.cure
