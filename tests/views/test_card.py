from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import MappingProxyType

import pytest

from tfdeploy_magic.artifacts.evidence import Evidence, Finding, Latency, Score
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.provenance import Provenance
from tfdeploy_magic.artifacts.signature import Signature, TensorSpec
from tfdeploy_magic.views import card, figures, words

FILE = LiteFile(
    Path("/store/model-int8.tflite"),
    "int8",
    22_312,
    "ab" * 32,
    MappingProxyType(
        {
            "serving_default": Signature(
                "serving_default",
                (TensorSpec("image", (None, 8, 8, 1), "int8", 0.0039, -128),),
                (TensorSpec("output_0", (None, 10), "int8", 0.0039, -128),),
            )
        }
    ),
    MappingProxyType({"CONV_2D": 2}),
    MappingProxyType({"int8": 9}),
)
EVIDENCE = Evidence(
    n=500,
    snr_db=37.7,
    agreement=0.996,
    mean_abs_error=0.0019,
    max_abs_error=0.029,
    metric="accuracy",
    score=Score(0.958, 0.937, 0.972),
    baseline_score=Score(0.962, 0.941, 0.976),
    latency=Latency(0.008, 0.009, 200, 1),
    baseline_latency=Latency(0.4, 0.5, 200, 0),
)
PROVENANCE = Provenance(
    source="model: Sequential, 13,770 parameters",
    source_form="SavedModel",
    source_size=64_100,
    source_sha256="cd" * 32,
    route=("traced", "converted"),
    options={"scheme": "int8", "io": "int8", "output": None},
    calibration="x_train (100 of 1300 samples)",
    manifest={"sha256": "ef" * 32},
    test="x_test (500 samples)",
    versions={"tensorflow": "2.21.0"},
    seconds={"tracing": 0.04},
    cpu_seconds=0.4,
    log="it said <b>this</b>",
    made="2026-11-23 15:04",
)


class Tags(HTMLParser):
    """Collects tags and text, and fails on an end tag that nothing opened."""

    VOID = frozenset({"img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    "number", ["64.1 kB", "22.3 kB", "−65.2%", "95.8% (93.7–97.2)", "96.2% (94.1–97.6)", "−0.4 points", "37.7 dB"]
)
def test_card_and_plain_text_say_the_same_numbers(number: str) -> None:
    bundle = card.mimebundle(FILE, EVIDENCE, PROVENANCE)
    assert number in bundle["text/plain"]
    assert number in Tags(bundle["text/html"]).text


def test_both_name_the_data_that_calibrated_and_tested() -> None:
    for rendering in card.mimebundle(FILE, EVIDENCE, PROVENANCE).values():
        assert "x_train (100 of 1300 samples)" in rendering
        assert "x_test (500 samples)" in rendering


def test_the_card_has_no_script_and_its_picture_has_words() -> None:
    html = card.html(FILE, EVIDENCE, PROVENANCE)
    assert "script" not in Tags(html).seen
    assert 'alt="size: 64.1 kB before, 22.3 kB after' in html


def test_markup_in_names_findings_and_logs_is_text() -> None:
    evil = "<script>alert(1)</script>"
    file = replace(FILE, path=Path(f"/tmp/{evil.replace('/', '')}.tflite"), operators={evil: 1})
    evidence = replace(EVIDENCE, findings=(Finding("error", "x", evil, evil),))
    provenance = replace(PROVENANCE, source=f"{evil}: {evil}", calibration=evil, test=evil, log=evil, route=(evil,))
    tags = Tags(card.html(file, evidence, provenance))
    assert "script" not in tags.seen
    assert tags.text.count("alert(1)") >= 8


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        (EVIDENCE, "ok"),
        (replace(EVIDENCE, n=29), "not ok"),
        (replace(EVIDENCE, findings=(Finding("error", "x", "broken"),)), "not ok"),
        (replace(EVIDENCE, findings=(Finding("warning", "x", "look"),)), "ok"),
        (Evidence(), "not measured"),
        (Evidence(findings=(Finding("error", "untrained", "untrained"),)), "not ok"),
    ],
)
def test_the_verdict_is_ok_only_when_measured_and_without_error(evidence: Evidence, said: str) -> None:
    assert evidence.verdict == said
    assert said in card.text(FILE, evidence, PROVENANCE).splitlines()[0]


def test_what_was_not_measured_is_called_that() -> None:
    text = card.text(FILE, Evidence(), replace(PROVENANCE, test=None))
    assert "not measured" in text
    assert "accuracy" not in text
    assert "latency" not in text


def test_nobody_is_told_to_keep_a_file_that_is_not_ok() -> None:
    assert card.next_line(FILE, EVIDENCE, PROVENANCE) == "%tflite_convert model --int8 -o model.tflite"
    assert card.next_line(FILE, replace(EVIDENCE, n=3), PROVENANCE) is None
    cured = replace(PROVENANCE, options={**PROVENANCE.options, "label": "int8, equalized"})
    assert card.next_line(FILE, EVIDENCE, cured) == 'RESULT.save("model.tflite")'
    assert card.next_line(replace(FILE, scheme="float32"), EVIDENCE, PROVENANCE) == "%quantize model"
    fell = replace(EVIDENCE, findings=(Finding("error", "accuracy-drop", "it fell", "Look."),))
    assert card.next_line(FILE, fell, PROVENANCE) == "%quantize model --int8 --explain"
    useless = replace(
        EVIDENCE, findings=(*fell.findings, Finding("error", "baseline-collapsed", "it knows nothing", ""))
    )
    assert card.next_line(FILE, useless, PROVENANCE) is None


def test_the_figure_draws_both_sizes_and_both_scores() -> None:
    left, right = figures.size_and_score(FILE, EVIDENCE, PROVENANCE).axes
    assert [bar.get_width() for bar in left.patches] == [64_100, 22_312]
    points = [line.get_xdata()[0] for line in right.lines if line.get_marker() == "o"]
    assert points == pytest.approx([96.2, 95.8])
    assert "500 samples" in right.get_title(loc="left")


def test_the_figure_says_when_there_is_nothing_to_draw() -> None:
    _, right = figures.size_and_score(FILE, Evidence(), PROVENANCE).axes
    assert [text.get_text() for text in right.texts] == ["not measured"]


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (22_312, "22.3 kB"), (999_600, "1.0 MB"), (2_345_000_000, "2.35 GB")],
)
def test_sizes_have_a_unit_that_suits_them(count: int, said: str) -> None:
    assert words.size(count) == said


def test_a_change_too_small_to_show_is_not_a_change() -> None:
    assert words.signed(-0.04, 1) == "±0"
    assert words.signed(-0.06, 1) == "−0.1"
    assert words.decibels(float("inf")) == "exact"


def test_a_slower_file_is_called_slower() -> None:
    assert words.speed_up(Latency(1, 1, 10, 1), Latency(4, 4, 10, 1)) == "×4 slower"
    assert words.speed_up(Latency(4, 4, 10, 1), Latency(1, 1, 10, 1)) == "×4 faster"


def test_a_home_folder_is_not_named() -> None:
    file = replace(FILE, path=Path.home() / ".cache" / "model-int8.tflite")
    for rendering in card.mimebundle(file, EVIDENCE, PROVENANCE).values():
        assert "~/.cache/model-int8.tflite" in rendering
        assert str(Path.home()) not in rendering
