from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.views.test_card import Tags
from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.signature import Signature, TensorSpec
from tfdeploy_magic.views import figures, inspection
from tfdeploy_magic.views.inspection import Inspection, Layer

SIGNATURE = Signature(
    "serving_default",
    (TensorSpec("image", (None, 8, 8, 1), "int8", 0.0039, -128),),
    (TensorSpec("output_0", (None, 10), "int8", 0.0039, 3),),
)
FILE = LiteFile(
    Path("/store/m.tflite"),
    "unknown",
    22_312,
    "ab" * 32,
    MappingProxyType({"serving_default": SIGNATURE}),
    MappingProxyType({"CONV_2D": 2}),
    MappingProxyType({"int8": 9}),
    activations=MappingProxyType({"int8": 6, "float32": 2}),
    metadata=("min_runtime_version",),
    min_runtime_version="1.14.0",
)
LITE = Inspection(
    name="m.tflite",
    kind="lite",
    description=".tflite file, 22,312 bytes",
    signatures=FILE.signatures,
    operators=MappingProxyType({"CONV_2D": 2, "SOFTMAX": 1}),
    weights=MappingProxyType({"int8": 20_000, "int32": 300}),
    path=FILE.path,
    size=22_312,
    files=MappingProxyType({"labels.txt": 40}),
    written_by="MLIR Converted.",
    file=FILE,
    loads=True,
)
KERAS = Inspection(
    name="model",
    kind="keras",
    description="Sequential, 13,770 parameters",
    signatures=MappingProxyType({"serving_default": SIGNATURE}),
    operators=MappingProxyType({"Const": 40, "Conv2D": 2}),
    weights=MappingProxyType({"float32": 55_080}),
    variables=10,
    parameters=13_770,
    trainable=13_738,
    layers=(Layer("conv", "Conv2D", "[?, 8, 8, 16]", 160), Layer("flat", "Flatten", "[?, 512]", 0)),
)
EVIL = "<script>alert(1)</script>\x1b[2J\n\ud800"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (LITE, "0.0039 × (q + 128)"),
        (LITE, "0.0039 × (q − 3)"),
        (LITE, "20.3 kB: int8 20.0 kB, int32 300 B"),
        (LITE, "6 of 8 operator outputs"),
        (LITE, "TensorFlow Lite 1.14.0 or later"),
        (LITE, "22.3 kB with 1 file appended: labels.txt 40 B"),
        (LITE, "loads it"),
        (replace(LITE, loads=False), "does not load it"),
        (KERAS, "13,770 parameters (13,738 trainable) in 10 variables, 55.1 kB of float32"),
        (KERAS, "Conv2D ×2, Const ×40"),
        (KERAS, "[?, 8, 8, 16]"),
        (KERAS, "%tflite_convert model --int8"),
    ],
)
def test_card_and_plain_text_say_the_same(found: Inspection, said: str) -> None:
    assert said in inspection.text(found)
    assert said in Tags(inspection.html(found)).text


def test_a_column_that_says_nothing_is_left_out() -> None:
    plain = replace(SIGNATURE.inputs[0], scale=0.0)
    only = Signature("serving_default", (plain,), ())
    one = inspection.text(replace(KERAS, signatures={"serving_default": only}))
    assert "quantized as" not in one
    assert one.splitlines()[2].split() == ["name", "is", "type"]
    both = inspection.text(replace(KERAS, signatures={"a": only, "b": replace(only, name="b")}))
    assert both.splitlines()[2].split() == ["name", "is", "type", "signature"]


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (LITE, None),
        (replace(KERAS, signatures={}), None),
        (replace(KERAS, findings=(Finding("error", "x", "broken"),)), None),
        (replace(KERAS, findings=(Finding("warning", "x", "odd"),)), "%tflite_convert model --int8"),
        (replace(KERAS, name="my model.keras", path=Path("/x")), "%tflite_convert 'my model.keras' --int8"),
        (replace(KERAS, signatures={"embed": SIGNATURE}), "%tflite_convert model --int8 --signature embed"),
    ],
)
def test_the_next_line_is_one_that_works(found: Inspection, line: str | None) -> None:
    assert inspection.next_line(found) == line


def test_names_from_a_file_are_text_and_command_no_terminal() -> None:
    spec = TensorSpec(EVIL, (1,), "float32")
    file = replace(FILE, metadata=(EVIL,), min_runtime_version=EVIL, tensor_types={EVIL: 1})
    found = replace(
        KERAS,
        name=EVIL,
        description=EVIL,
        signatures={EVIL: Signature(EVIL, (spec,), (spec,)), "b": Signature("b", (spec,), ())},
        operators={EVIL: 2},
        weights={EVIL: 3},
        layers=(Layer(EVIL, EVIL, EVIL, 1),),
        files={EVIL: 3},
        tags=(EVIL,),
        written_by=EVIL,
        path=Path("/tmp") / EVIL.replace("/", ""),
        size=3,
        file=file,
        findings=(Finding("warning", "x", EVIL, EVIL),),
    )
    tags = Tags(inspection.html(found))
    assert "script" not in tags.seen
    assert tags.text.count("alert(1)") >= 15
    for rendering in (inspection.html(found), inspection.text(found)):
        assert "\x1b" not in rendering
        rendering.encode()  # a lone surrogate would end the message to the browser


def test_a_file_that_names_a_million_things_makes_a_card_that_can_be_read() -> None:
    specs = tuple(TensorSpec(f"{n}" * 1000, (1,), "float32") for n in range(300))
    found = replace(
        KERAS,
        signatures={"s": Signature("s", specs, specs)},
        operators={f"op{n}": 1 for n in range(2000)},
        layers=tuple(Layer(f"layer{n}", "Dense", "", 1) for n in range(2000)),
        files={f"file{n}": 1 for n in range(2000)},
    )
    assert "… 570 more" in inspection.text(found)
    assert "… 1970 more" in inspection.text(found)
    assert "and 1988 more" in inspection.text(found)
    assert len(Tags(inspection.html(found)).text) < 30_000


def test_a_home_folder_is_not_named() -> None:
    path = Path.home() / "models" / "m.keras"
    found = replace(KERAS, name=str(path), path=path)
    for rendering in (inspection.text(found), inspection.html(found)):
        assert "~/models/m.keras" in rendering
        assert str(Path.home()) not in rendering


def test_the_figure_counts_what_computes_and_says_the_same_in_words() -> None:
    html = inspection.html(KERAS)
    assert 'alt="operators: Conv2D 2; parameters: conv 160"' in html
    assert 'alt="operators: CONV_2D 2, SOFTMAX 1; weights: int8 20.0 kB, int32 300 B"' in inspection.html(LITE)
    assert "<img" not in inspection.html(replace(LITE, operators={}, weights={}))


def test_the_longest_bars_are_drawn_and_the_rest_is_counted() -> None:
    counts = {f"$op_{n}^": n for n in range(1, 12)}
    left, right = figures.bars((figures.Bars("operators", counts), figures.Bars("weights", {"int8": 5}))).axes
    assert [bar.get_width() for bar in left.patches] == [11, 10, 9, 8, 7, 6, 5, 4]
    assert left.get_title(loc="left") == "operators (8 of 11)"
    assert [text.get_text() for text in right.texts] == ["5"]
    figures.bars((figures.Bars("operators", counts),)).savefig("/dev/null", format="png")  # "$" begins no formula
