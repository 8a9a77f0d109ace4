from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from tests.views.test_card import FILE, Tags
from tfdeploy_magic.artifacts.comparison import Budget, Contrast, Failure, Row, SweepPoint, Table, Trial
from tfdeploy_magic.artifacts.evidence import Drop, Evidence, Finding, Latency, Score
from tfdeploy_magic.artifacts.provenance import Provenance
from tfdeploy_magic.views import comparison, comparison_figures, words

PROVENANCE = Provenance(
    source="model: Sequential, 356,906 parameters",
    source_form="SavedModel",
    source_size=1_420_000,
    source_sha256="cd" * 32,
    route=("traced", "converted"),
    options=MappingProxyType({}),
    calibration=None,
    manifest=MappingProxyType({}),
    test="x_test (497 samples)",
    versions=MappingProxyType({}),
    seconds=MappingProxyType({}),
    cpu_seconds=0.4,
    log="",
    made="2026-11-23 15:04",
)


def row(label: str, size: int, snr: float | None, p50: float | None, drop: tuple[float, float, float]) -> Row:
    accuracy = 0.9638 - drop[0]
    evidence = Evidence(
        n=497,
        snr_db=snr,
        agreement=0.992,
        metric="accuracy",
        score=Score(accuracy, accuracy - 0.016, accuracy + 0.016),
        baseline_score=Score(0.9638, 0.943, 0.977),
        drop=Drop(*drop),
        latency=None if p50 is None else Latency(p50, 1.2 * p50, 200, 1, noise=0.04),
    )
    scheme = label.partition(",")[0]
    file = replace(FILE, path=Path("/store/m.tflite"), scheme=scheme, size=size)
    made = PROVENANCE
    if scheme in ("int8", "int16x8"):
        made = replace(PROVENANCE, calibration="x_train (100 of 1200)", manifest={"samples": 100, "sha256": "ef" * 32})
    return Row(label, file, evidence, made)


FLOAT = row("float32", 1_396_600, 123.8, 0.390, (0.0, -0.004, 0.004))
DYNAMIC = row("dynamic", 358_900, 45.6, 0.077, (0.0, -0.004, 0.004))
EQUALIZED = row("int8, equalized", 363_100, 39.8, 0.385, (0.010, -0.004, 0.025))
WIDE = replace(
    row("int16x8", 368_000, 45.1, 20.7, (0.045, 0.021, 0.069)), slow=("CONV_2D has no kernel in XNNPACK", "one thread")
)
TABLE = Table(PROVENANCE.source, (FLOAT, DYNAMIC, EQUALIZED, WIDE), best="dynamic", seconds={"measuring": 83.0})
BUDGET = Budget(max_drop=0.02, max_size=400_000, max_latency=0.5)
EVIL = "<script>alert(1)</script>\x1b[2J"


def both(table: Table) -> tuple[str, str]:
    bundle = comparison.mimebundle(table)
    return bundle["text/plain"], Tags(bundle["text/html"]).text


@pytest.fixture(scope="module")
def renderings() -> tuple[str, str]:
    return both(TABLE)


def texts(axes: Axes) -> list[str]:
    return [each.get_text() for each in axes.texts]


@pytest.mark.parametrize(
    "said",
    [
        *("1.4 MB", "358.9 kB", "−74.3%", "96.4%", "94.8–98.0", "45.6 dB", "99.2%", "77 µs / 92.4 µs", "×5.06 faster"),
        *("×53.1 slower", "4.5 points worse", "4.5 (2.1 to 6.9) points", "1.0 (−0.4 to 2.5) points"),
        *("★ best · ◆ Pareto front", "CONV_2D has no kernel in XNNPACK; one thread", "on x_test (497 samples)"),
        *(
            "on x_train (100 of 1200)",
            "samples 100, sha256 efefefefefef…",
            "one sample at a time, 1 thread",
            "1 min 23 s",
        ),
        "medians of one and the same file differed by 4%",
        "%tflite_convert model --dynamic -o model.tflite",
    ],
)
def test_card_and_plain_text_say_the_same(said: str, renderings: tuple[str, str]) -> None:
    for rendering in renderings:
        assert said in rendering


def test_a_drop_whose_interval_includes_zero_is_not_called_one() -> None:
    lines = comparison.text(TABLE).splitlines()
    by_file = {line.split("  ")[1]: line for line in lines if "ms" in line or "µs" in line}
    assert "no difference shown" in by_file["int8, equalized"]
    assert "worse" not in by_file["int8, equalized"]
    assert "no difference shown" not in by_file["int16x8"]


def test_a_latency_within_the_noise_is_the_same() -> None:
    assert comparison.speed(EQUALIZED, TABLE) == "same as float32"  # 1.3% apart, where 4% is noise
    assert comparison.speed(DYNAMIC, TABLE) == "×5.06 faster"
    assert comparison.speed(FLOAT, TABLE) == ""


def test_a_budget_names_what_was_asked_and_the_file_that_meets_it() -> None:
    for rendering in both(replace(TABLE, budget=BUDGET, best="dynamic")):
        assert "at most 2 points worse in accuracy, at most 400.0 kB, at most 0.5 ms for one sample" in rendering
        assert "dynamic meets it: 358.9 kB, on a par with the source model" in rendering
        assert "the smallest of 2 that do" in rendering
        assert "misses size" in rendering


def test_the_winner_s_drop_stands_with_its_interval() -> None:
    table = replace(TABLE, rows=(FLOAT, EQUALIZED), budget=BUDGET, best="int8, equalized")
    said = "363.1 kB, 1.0 points below the source model (95% interval −0.4 to 2.5, no difference shown)"
    assert f"{said}, the only one that does." in comparison.text(table)
    better = replace(EQUALIZED, evidence=replace(EQUALIZED.evidence, drop=Drop(-0.010, -0.025, -0.002)))
    said = comparison.text(replace(table, rows=(FLOAT, better)))
    assert "1.0 points above the source model (95% interval 0.2 to 2.5)" in said


def test_when_nothing_meets_the_budget_the_nearest_is_named_with_what_it_misses() -> None:
    table = replace(TABLE, budget=Budget(max_size=300_000), best=None)
    for rendering in both(table):
        assert "None of them meets it. Nearest: dynamic, 358.9 kB" in rendering
        assert "×1.2 the size asked" in rendering
        assert "next:" not in rendering


def test_without_labels_a_drop_is_the_share_of_samples_with_another_class() -> None:
    bare = tuple(
        replace(each, evidence=replace(each.evidence, metric=None, score=None, baseline_score=None, drop=None))
        for each in TABLE.rows
    )
    said = comparison.text(replace(TABLE, rows=bare, budget=BUDGET))
    assert "at most 2% of the samples with another top class" in said
    assert "0.8% of the samples got another top class" in said
    assert "drop of" not in said


def test_what_was_not_measured_is_called_that_and_a_stopped_table_says_so() -> None:
    fresh = replace(WIDE, evidence=replace(WIDE.evidence, latency=None, snr_db=None))
    table = replace(TABLE, rows=(FLOAT, fresh), best=None)
    line = next(line for line in comparison.text(table).splitlines() if line.startswith("  int16x8"))
    assert line.count("not measured") == 2
    for rendering in both(replace(table, stopped=True)):
        assert "Stopped before its end" in rendering


def test_columns_in_which_nobody_has_anything_are_left_out() -> None:
    rows = tuple(replace(row, evidence=replace(row.evidence, latency=None)) for row in TABLE.rows)
    for rendering in both(replace(TABLE, rows=rows)):
        assert "latency p50" not in rendering.partition("<img")[0]
    assert "latency p50" in comparison.text(TABLE)


def test_files_are_shown_while_others_are_being_made() -> None:
    rows = tuple(replace(row, evidence=replace(row.evidence, latency=None)) for row in TABLE.rows[:2])
    shown = comparison.unfinished(replace(TABLE, rows=rows, best=None))
    assert "<img" not in shown["text/html"]
    for rendering in shown.values():
        assert "2 files side by side" in rendering
        assert all(row.label in rendering for row in rows)
    assert comparison.unfinished(replace(TABLE, rows=(), failures=())) == {"text/html": "", "text/plain": ""}


def test_failures_are_rows_with_reason_and_cure_beneath() -> None:
    failed = Failure("dynamic_wi4_b32", "blocks of 32 do not divide 10 channels", "Take dynamic_wi4.")
    for rendering in both(replace(TABLE, failures=(failed,))):
        assert "✗ failed" in rendering
        assert "dynamic_wi4_b32 failed: blocks of 32 do not divide 10 channels." in rendering
        assert "Take dynamic_wi4." in rendering
    assert "✗ failed" in comparison.html(replace(TABLE, rows=(), failures=(failed,), best=None))


def test_the_search_the_engines_and_the_sweep_are_told() -> None:
    table = replace(
        TABLE,
        trials=(Trial("int8", "it was asked for", 3.4, "misses by 64.4 points", False),),
        contrasts=(Contrast("int8", "static_wi8_ai8", 16.0, 1.0, (11, 12), "Another range rule."),),
        sweep=(
            SweepPoint("dynamic", 1, 4, Latency(0.4, 0.5, 50, 1, 4)),
            SweepPoint("int16x8", 1, 4, None),
        ),
    )
    for rendering in both(table):
        for said in ("✗ misses by 64.4 points", "3.4 s", "it was asked for", "16.0 dB", "11 of 12 tensors"):
            assert said in rendering
        for said in ("Another range rule.", "0.1 ms", "cannot run so"):
            assert said in rendering


def test_equal_findings_on_files_are_told_once_and_only_notes_are_folded() -> None:
    few = Finding("note", "few", "calibrated on 3 samples", "Take more.")
    broken = Finding("error", "drop", "accuracy fell", "Look.")
    said = Finding("error", "accuracy-drop", "what the table says already")
    rows = tuple(replace(each, evidence=replace(each.evidence, findings=(few,))) for each in TABLE.rows[:2])
    bad = replace(WIDE, evidence=replace(WIDE.evidence, findings=(broken, said)))
    html = comparison.html(replace(TABLE, rows=(*rows, bad)))
    assert html.count("calibrated on 3 samples") == 1
    assert "float32, dynamic: calibrated on 3 samples" in html
    assert html.index("int16x8: accuracy fell") < html.index("<details") < html.index("calibrated on 3 samples")
    assert said.message not in html


@pytest.mark.parametrize(
    ("table", "line"),
    [
        (TABLE, "%tflite_convert model --dynamic -o model.tflite"),
        (replace(TABLE, best="int8, equalized"), 'RESULT.best.save("model.tflite")'),
        (replace(TABLE, best=None), None),
        (replace(TABLE, rows=(replace(DYNAMIC, evidence=Evidence(n=3)),)), None),
    ],
)
def test_the_next_line_keeps_the_best_file(table: Table, line: str | None) -> None:
    assert comparison.next_line(table) == line


def test_markup_in_names_is_text_and_commands_no_terminal() -> None:
    made = replace(PROVENANCE, source=f"{EVIL}: {EVIL}", test=EVIL, calibration=EVIL, manifest={"seed": EVIL})
    finding = Finding("warning", "x", EVIL, EVIL)
    evil = replace(FLOAT, label=EVIL, provenance=made, slow=(EVIL,))
    evil = replace(evil, evidence=replace(evil.evidence, findings=(finding,), metric=EVIL))
    table = Table(
        EVIL,
        (evil, DYNAMIC),
        (Failure(EVIL, EVIL, EVIL),),
        best=EVIL,
        trials=(Trial(EVIL, EVIL, 1.0, EVIL, True),),
        contrasts=(Contrast(EVIL, EVIL, 1.0, None, None, EVIL),),
        sweep=(SweepPoint(EVIL, 1, 1, None),),
        findings=(finding,),
        seconds={EVIL: 1.0},
    )
    html = comparison.html(table)
    tags = Tags(html)
    assert "script" not in tags.seen
    assert tags.text.count("alert(1)") >= 20
    for rendering in (html, comparison.text(table)):
        assert "\x1b" not in rendering


def test_text_takes_the_colour_of_the_page() -> None:
    html = re.sub(r'src="[^"]*"', "", comparison.html(replace(TABLE, budget=BUDGET)))
    assert re.findall(r"(?<![-\w])color:", html) == []
    assert re.findall(r"background:(?!transparent)", html) == []


def test_the_picture_has_the_numbers_in_words() -> None:
    html = comparison.html(TABLE)
    assert 'alt="float32: 1.4 MB, accuracy 96.4%' in html
    assert "dynamic: 358.9 kB, accuracy 96.4% (94.8–98.0), SNR 45.6 dB, median 77 µs, ★ best, ◆ Pareto front" in html


def test_the_figure_draws_every_row_in_order_in_four_panels_and_a_scatter() -> None:
    size, score, snr, latency, scatter = comparison.figure(TABLE).axes
    names = [label.get_text() for label in size.get_yticklabels()]
    assert names == ["◆ float32", "★ dynamic", "int8, equalized", "int16x8"]
    assert _bars(size) == [1_396_600, 358_900, 363_100, 368_000]
    assert _bars(snr) == [123.8, 45.6, 39.8, 45.1]
    assert texts(score)[:4] == ["96.4%", "96.4%", "95.4%", "91.9%"]
    assert "source 96.4%" in texts(score)
    assert latency.get_xscale() == "log"
    assert [said for said in texts(latency) if "±" not in said] == ["0.39 ms", "77 µs", "0.385 ms", "20.7 ms"]
    assert {"◆ float32 (123.8 dB)", "★ dynamic", "int8, equalized", "int16x8"} <= set(texts(scatter))


def test_the_front_goes_from_the_smallest_file_to_the_most_exact() -> None:
    scatter = comparison.figure(TABLE).axes[4]
    front = next(line for line in scatter.lines if line.get_drawstyle() == "steps-post")
    assert list(front.get_xdata()) == [358_900, 1_396_600]


def test_intervals_and_whiskers_have_their_length() -> None:
    _, score, _, latency, _ = comparison.figure(TABLE).axes
    ends = [line.get_xdata() for line in score.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 2]
    assert np.asarray(ends)[1] == pytest.approx([94.78, 97.98])
    whiskers = [line.get_xdata() for line in latency.lines if line.get_linewidth() == 1.6]
    assert np.asarray(whiskers)[3] == pytest.approx([20.7, 24.84])


def test_a_file_that_is_not_ok_does_not_flatten_the_scores_of_the_others() -> None:
    collapsed = row("int8", 363_100, -0.2, 0.08, (0.86, 0.80, 0.90))
    finding = Finding("error", "drop", "accuracy fell")
    collapsed = replace(collapsed, evidence=replace(collapsed.evidence, findings=(finding,)))
    score = comparison.figure(replace(TABLE, rows=(*TABLE.rows, collapsed))).axes[1]
    assert score.get_xlim()[0] > 80
    assert "10.4%" in texts(score)
    assert "<" in [line.get_marker() for line in score.lines]


def test_without_a_metric_the_figure_shows_agreement() -> None:
    bare = tuple(replace(each, evidence=replace(each.evidence, metric=None, score=None)) for each in TABLE.rows)
    panel = comparison.figure(replace(TABLE, rows=bare)).axes[1]
    assert panel.get_title(loc="left") == "same top class as the source"
    assert _bars(panel) == [0.992] * 4


@pytest.mark.parametrize("snr", [math.inf, -math.inf, math.nan, None])
def test_an_snr_that_is_no_number_is_said_and_drawn_without_one(snr: float | None) -> None:
    odd = replace(DYNAMIC, evidence=replace(DYNAMIC.evidence, snr_db=snr))
    table = replace(TABLE, rows=(FLOAT, odd, EQUALIZED))
    panel, scatter = comparison.figure(table).axes[2], comparison.figure(table).axes[4]
    said = "not measured" if snr is None else words.decibels(snr)
    assert texts(panel)[1] == said
    assert all(math.isfinite(length) for length in _bars(panel))
    named = any("dynamic" in name for name in texts(scatter))
    assert named == (snr == math.inf)
    assert any("1 not drawn" in name for name in texts(scatter)) != named
    assert said in comparison.text(table)


@pytest.mark.parametrize("count", [2, 8, 16])
def test_no_name_covers_another_or_leaves_the_picture(count: int) -> None:
    draw = np.random.default_rng(count)
    rows = tuple(
        row(
            f"int8, variant {n}", int(360_000 + draw.normal() * 9_000), float(40 + draw.normal()), 0.1, (0, -0.01, 0.01)
        )
        for n in range(count)
    )
    scatter = comparison.figure(replace(TABLE, rows=rows)).axes[4]
    boxes = [each.get_window_extent() for each in scatter.texts if "variant" in each.get_text()]
    assert len(boxes) == count
    frame = scatter.get_window_extent()
    for number, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:number]) == 0
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1


@pytest.mark.parametrize("rows", [TABLE.rows[:1], TABLE.rows[:2], ()])
def test_the_first_rows_are_shown_as_they_come(rows: tuple[Row, ...]) -> None:
    bare = tuple(replace(each, evidence=Evidence()) for each in rows)
    for table in (replace(TABLE, rows=rows, best=None), replace(TABLE, rows=bare, best=None)):
        bundle = comparison.mimebundle(table)
        assert all(each.label in bundle["text/plain"] for each in rows)
        assert ("<img" in bundle["text/html"]) == bool(rows)


def test_a_dark_style_of_the_person_leaves_the_figure_as_it_is() -> None:
    with matplotlib.rc_context({"text.color": "white", "savefig.facecolor": "black", "axes.titlecolor": "white"}):
        figure = comparison.figure(TABLE)
        assert matplotlib.rcParams["text.color"] == "white"
    inks = {to_hex(each.get_color()) for axes in figure.axes for each in (*axes.texts, *axes.get_yticklabels())}
    assert "#ffffff" not in inks
    assert to_hex(figure.get_facecolor()) == comparison_figures.PAPER


def test_the_sweep_has_a_panel_for_each_number_of_threads_and_says_what_cannot_run() -> None:
    points = [
        SweepPoint(
            label, threads, batch, None if batch == 16 and label == "int16x8" else Latency(batch / threads, 9, 9, 1)
        )
        for label in ("float32", "int16x8")
        for threads in (1, 2)
        for batch in (1, 4, 16)
    ]
    one, two = comparison.sweep_figure(replace(TABLE, sweep=tuple(points))).axes
    assert [one.get_title(loc="left"), two.get_title(loc="left")] == ["1 thread", "2 threads"]
    assert [list(line.get_ydata()) for line in two.lines] == [[0.5, 0.5, 0.5], [0.5, 0.5]]
    assert list(two.lines[1].get_xdata()) == [1, 4]
    assert "int16x8 cannot run with 16 at a time" in one.get_xlabel()
    assert len({line.get_marker() for line in one.lines}) == 2


def test_names_with_dollar_signs_are_drawn_as_they_are() -> None:
    odd = replace(DYNAMIC, label="$x^{ and 100%")
    figure = comparison.figure(replace(TABLE, rows=(FLOAT, odd)))
    figure.savefig("/dev/null", format="png")
    assert isinstance(figure, Figure)
    assert r"\$x^{ and 100%" in [each.get_text().removeprefix("◆ ") for each in figure.axes[0].get_yticklabels()]


def _bars(axes: Axes) -> list[float]:
    return [bar.get_width() for bar in axes.containers[0]]
