from __future__ import annotations

import itertools
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from tests.views.test_card import Tags
from tests.views.test_load import shown
from tfdeploy_magic.serving.sequential import ArmSeen, Counts, judge
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import split
from tfdeploy_magic.views.figures import AFTER, PAPER
from tfdeploy_magic.views.split_figures import LEAST, MOST, figure

EVIL = "<script>alert(1)</script>\x1b[2J$x^{"
LONG = "a name of an arm that no line of a figure has room for"


def arm(name: str, right: tuple[int, int] = (0, 0), ok: int = 0, failed: int = 0, share: float = 0.5) -> ArmSeen:
    requests = {status: count for status, count in (("OK", ok), ("INTERNAL", failed)) if count}
    latencies = (1.25, 4.0, 33.0) if ok else ()
    return ArmSeen(name, share, "digits", 3, requests, Counts(*right), *latencies)


NOTHING = (arm("stable", share=0.9), arm("canary", share=0.1))
FEW = (arm("stable", (17, 4), 30, share=0.9), arm("canary", (2, 0), 3, 1, share=0.1))
DECIDED = (arm("stable", (8800, 1200), 20_000, 3, 0.9), arm("canary", (951, 49), 2200, share=0.1))
AGAINST = (arm("stable", (8800, 1200), 20_000, 3, 0.9), arm("canary", (951, 49), 2200, 130, 0.1))
EDGES = {
    "nothing": NOTHING,
    "few": FEW,
    "decided": DECIDED,
    "metrics against each other": AGAINST,
    "the first is better": (arm("a", (4400, 600), 9000, 3), arm("b", (3900, 1100), 9000, 2)),
    "no outcome": (arm("a", ok=3000), arm("b", ok=300, failed=1)),
    "one arm has nothing": (arm("a", (30, 5), 3000), arm("b")),
    "one arm": (arm("only", (880, 120), 2000, 3, 1.0),),
    "all right": (arm("a", (500, 0), 600), arm("b", (400, 0), 500)),
    "hardly ever wrong": (arm("a", (99_999_000, 1000), 10**8, 10), arm("b", (99_998_800, 1200), 10**8, 12)),
    "long names": (arm(LONG, (880, 120), 2000, 3), arm(f"{LONG}, 2", (990, 10), 2000, 60)),
    "hostile names": (arm(EVIL, (880, 120), 2000, 3), arm(f"{EVIL}2", (990, 10), 2000, 60)),
    "many arms": tuple(arm(f"version {n}", (800 + 17 * n, 200 - 17 * n), 2000 + n, n * n, 0.1) for n in range(10)),
}


def cells(*arms: ArmSeen) -> list[dict[str, pieces.Cell]]:
    head, *rows = split.rows(arms, judge(arms))
    return [dict(zip(map(str, head), row, strict=True)) for row in rows]


def test_each_arm_has_a_row_and_the_better_one_is_marked() -> None:
    assert cells(*DECIDED) == [
        {
            "arm": "stable",
            "answers": "digits version 3",
            "share": "90%",
            "requests": "20,003",
            "errors": ("✗ 3", "0.015% (0.000–0.065)"),
            "p50 / p95 / p99": "1.25 ms / 4 ms / 33 ms",
            "right": ("88.0% (86.9–89.1)", "10,000 reported"),
        },
        {
            "arm": "✓ canary",
            "answers": "digits version 3",
            "share": "10%",
            "requests": "2,200",
            "errors": ("0", "0.00% (0.00–0.20)"),
            "p50 / p95 / p99": "1.25 ms / 4 ms / 33 ms",
            "right": ("95.1% (92.4–97.1)", "1,000 reported"),
        },
    ]


def test_what_was_not_counted_is_a_dash() -> None:
    for row in cells(*NOTHING):
        assert (row["requests"], row["errors"], row["p50 / p95 / p99"], row["right"]) == ("0", "–", "–", "–")
    unknown = ArmSeen("a", 1 / 3, "digits", None, {"NOT_FOUND": 4}, Counts(0, 0), 1.0)
    (row,) = cells(unknown)
    assert (row["answers"], row["share"], row["requests"], row["errors"]) == ("digits", "33.33%", "4", "–")
    assert row["p50 / p95 / p99"] == "1 ms / – / –"


def test_the_intervals_of_a_row_are_those_that_were_judged() -> None:
    judged = judge(AGAINST)
    low, high = judged.intervals["canary", "errors"]
    assert split.failing(judged, "canary") == (1 - high, 1 - low)
    assert cells(*AGAINST)[1]["errors"] == ("✗ 130", f"5.6% ({100 * (1 - high):.1f}–{100 * (1 - low):.1f})")
    low, high = judged.intervals["stable", "outcomes"]
    assert cells(*AGAINST)[0]["right"] == (f"88.0% ({100 * low:.1f}–{100 * high:.1f})", "10,000 reported")


@pytest.mark.parametrize(("arms", "mark"), [(NOTHING, "·"), (FEW, "·"), (DECIDED, "✓"), (AGAINST, "!")])
def test_the_sentence_is_marked_by_what_the_counts_show(arms: tuple[ArmSeen, ...], mark: str) -> None:
    judged = judge(arms)
    assert split.sentence(judged) == f"{mark} {judged.said}."


def test_the_picture_has_its_rates_in_words() -> None:
    assert split.alternative(DECIDED, judge(DECIDED)).endswith(
        "; stable 88.0% (86.9–89.1) right; stable 0.015% (0.000–0.065) failed; "
        "canary 95.1% (92.4–97.1) right; canary 0.00% (0.00–0.20) failed"
    )
    assert split.alternative(NOTHING, judge(NOTHING)) == judge(NOTHING).said


def test_markup_in_names_is_text() -> None:
    arms = EDGES["hostile names"]
    judged = judge(arms)
    tags = Tags(pieces.table(*split.rows(arms, judged)) + pieces.sentence(split.sentence(judged)))
    assert "script" not in tags.seen
    assert tags.text.count("alert(1)") >= 3


def points(axes: Axes) -> list[Line2D]:
    return [line for line in axes.lines if line.get_marker() not in ("None", None, "")]


def spans(axes: Axes) -> list[list[float]]:
    return [np.asarray(line.get_xdata()).tolist() for line in axes.lines if line.get_linewidth() == 2.4]


def test_the_figure_has_the_rates_of_each_arm_with_their_intervals() -> None:
    judged = judge(DECIDED)
    right, failed, _ = figure(DECIDED, judged).axes
    assert [label.get_text() for label in right.get_yticklabels()] == ["stable", "✓ canary"]
    assert [line.get_xdata()[0] for line in points(right)] == [0.88, 0.951]  # type: ignore[index]
    assert [line.get_ydata()[0] for line in points(right)] == [1, 0]  # type: ignore[index]
    assert spans(right) == [list(judged.intervals[name, "outcomes"]) for name in ("stable", "canary")]
    assert [line.get_xdata()[0] for line in points(failed)] == pytest.approx([3 / 20_003, 0])  # type: ignore[index]
    assert spans(failed) == [list(split.failing(judged, name)) for name in ("stable", "canary")]
    assert [text.get_text() for text in right.texts] == ["88.0%", "95.1%"]
    assert [to_hex(str(line.get_color())).upper() for line in points(right)][1] == pieces.GOOD


def test_the_figure_sets_the_evidence_against_what_is_needed_on_a_log_axis() -> None:
    arms = EDGES["many arms"]
    judged = judge(arms)
    axes = figure(arms, judged).axes[2]
    assert axes.get_xscale() == "log"
    drawn = points(axes)
    values = [line.get_xdata()[0] for line in drawn]  # type: ignore[index]
    assert values == pytest.approx([min(max(each.e_value, LEAST), MOST) for each in judged.contrasts])
    assert f"{judged.contrasts[0].needed:,.0f} needed" in [text.get_text() for text in axes.texts]
    assert judged.contrasts[0].needed in [line.get_xdata()[0] for line in axes.lines]  # type: ignore[index]
    is_filled = [to_hex(str(line.get_markerfacecolor())) != PAPER for line in drawn]
    assert is_filled == [each.better is not None for each in judged.contrasts]
    assert {True, False} == set(is_filled)


def test_better_and_worse_have_hues_that_are_explained_and_outcomes_and_errors_have_shapes() -> None:
    drawn = figure(AGAINST, judge(AGAINST))
    better, worse = points(drawn.axes[2])
    assert [to_hex(str(line.get_color())).upper() for line in (better, worse)] == [pieces.GOOD, pieces.BAD]
    assert "better (green) or worse (orange) than stable" in drawn.texts[0].get_text()
    undecided = figure(FEW, judge(FEW))
    assert not undecided.texts
    assert [line.get_marker() for line in points(undecided.axes[2])] == ["o", "s"]
    assert {to_hex(str(line.get_color())).upper() for line in points(undecided.axes[2])} == {AFTER.upper()}


def test_what_was_not_counted_is_said_in_the_figure() -> None:
    right, failed, _ = figure(NOTHING, judge(NOTHING)).axes
    assert right.texts[0].get_text() == "no outcome\nwas reported"
    assert failed.texts[0].get_text() == "no request\nwas counted"
    arms = EDGES["one arm has nothing"]
    assert [text.get_text() for text in figure(arms, judge(arms)).axes[0].texts] == ["85.7%", "–"]
    alone = EDGES["one arm"]
    assert figure(alone, judge(alone)).axes[2].texts[0].get_text() == "there is one arm"


@pytest.mark.parametrize("name", EDGES)
def test_nothing_overlaps_or_leaves_the_picture(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        drawn = figure(EDGES[name], judge(EDGES[name]))
        drawn.draw_without_rendering()
    frame, written = drawn.bbox, shown(drawn)
    boxes = [text.get_window_extent() for text in written]
    for text, box in zip(written, boxes, strict=True):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1, text
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1, text
    for (one, first), (other, second) in itertools.combinations(zip(written, boxes, strict=True), 2):
        assert not first.overlaps(second), (one, other)
    for axes in drawn.axes:
        inside = [text.get_window_extent() for text in axes.texts if text.get_window_extent().y0 >= axes.bbox.y0]
        marks = [line.get_window_extent() for line in axes.lines]
        assert not any(mark.overlaps(box) for mark in marks for box in inside), axes


def test_a_dark_style_of_the_person_leaves_the_figure_as_it_is() -> None:
    with matplotlib.rc_context({"text.color": "white", "savefig.facecolor": "black", "axes.titlecolor": "white"}):
        drawn = figure(DECIDED, judge(DECIDED))
    assert "#ffffff" not in {to_hex(text.get_color()) for text in shown(drawn)}
    assert to_hex(drawn.get_facecolor()) == PAPER
