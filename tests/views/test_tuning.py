from __future__ import annotations

import functools
import itertools
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from tests.views.test_card import Tags
from tests.views.test_load import EVIL, ran, shown
from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.serving.load import Load
from tfdeploy_magic.serving.tuning import DEFAULTS, Duel, Settings, Trial, Tuning, parameters_text
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import tuning as view
from tfdeploy_magic.views import tuning_figures
from tfdeploy_magic.views.figures import PAPER

URL = "http://127.0.0.1:8501/v1/models/digits"
BEST = Settings(32, 1000, 2, 1)


def seen(rate: float, p99: float, **more: Any) -> Load:
    """Return what clients saw of a server, with that p99."""
    load = ran(32, rate, 1.0, seconds=1.5, **more)
    top = float(np.percentile(load.latencies_ms, 99)) if load.latencies_ms.size else 1.0
    return replace(load, latencies_ms=load.latencies_ms * p99 / top)


def tried(*found: tuple[Settings, float, float]) -> tuple[Trial, ...]:
    return tuple(Trial(settings, seen(rate, p99)) for settings, rate, p99 in found)


def duel(throughputs: Sequence[float], p99s: Sequence[float], base: tuple[float, float] = (1000.0, 18.0)) -> Duel:
    """Return rounds in which the tuned settings are that many times the defaults."""
    rate, p99 = base
    return Duel(
        tuple(seen(rate, p99) for _ in throughputs),
        tuple(seen(rate * more, p99 * other) for more, other in zip(throughputs, p99s, strict=True)),
    )


TRIALS = tried(
    (DEFAULTS, 1000, 18),
    (Settings(32), 1150, 16),
    (Settings(16), 1100, 19),
    (Settings(8), 900, 24),
    (Settings(128), 1140, 17),
    (Settings(32, intra_op_parallelism=1), 1300, 15),
    (Settings(32, num_batch_threads=2, intra_op_parallelism=1), 1210, 31),
    (Settings(32, num_batch_threads=4, intra_op_parallelism=1), 1250, 12),
    (Settings(32, 500, 2, 1), 1320, 17),
    (BEST, 1340, 17.4),
)
FASTER = Tuning(20.0, TRIALS, duel((1.31, 1.25, 1.42, 1.33, 1.28), (0.97, 0.9, 1.04, 0.95, 0.99)))
SAME = Tuning(20.0, TRIALS, duel((1.1, 0.95, 1.02, 1.07, 0.9), (0.97, 0.9, 1.04, 0.95, 0.99)))
ONLY_OURS = Tuning(15.0, TRIALS, duel((0.9, 0.95, 0.9, 0.9, 0.9), (0.7, 0.6, 0.65, 0.75, 0.7)))
NEARER = Tuning(5.0, TRIALS, duel((1.0, 0.95, 0.9, 0.9, 0.9), (0.7, 0.6, 0.65, 0.75, 0.7)))
NEVER = Tuning(5.0, TRIALS, duel((1.0, 0.95, 0.9, 0.9, 0.9), (1.7, 0.6, 0.65, 0.75, 0.7)))
OURS_OVER = Tuning(20.0, TRIALS, duel((1.3, 1.3, 1.3, 1.3, 1.3), (1.2, 1.3, 1.4, 1.3, 1.2)))
BARELY = Tuning(20.0, TRIALS, duel((1.02, 1.03, 1.02, 1.03, 1.02), (1, 1, 1, 1, 1)))
ALONE = Tuning(20.0, TRIALS[:1])
OWN_BEST = Tuning(20.0, (TRIALS[0], TRIALS[3]))
BROKEN = Tuning(
    20.0,
    (
        TRIALS[0],
        Trial(Settings(4), problem="the server cannot start: found no room"),
        Trial(Settings(2), seen(400, 30, failures={"UNAVAILABLE": 12})),
        Trial(Settings(8), seen(0, 1, failures={"503": 40})),
    ),
)
SILENT = Tuning(20.0, (Trial(DEFAULTS, seen(0, 1)), Trial(Settings(8), problem="gone")))
WIDE = Tuning(0.2, tried((DEFAULTS, 0.4, 9000), (Settings(8), 90_000, 0.06)), duel((0.1, 9.0, 2.0), (0.2, 30.0, 1.0)))
EDGES = {
    "faster": FASTER,
    "the same": SAME,
    "only tuned ones within": ONLY_OURS,
    "nearer": NEARER,
    "never": NEVER,
    "over in the duel": OURS_OVER,
    "barely": BARELY,
    "alone": ALONE,
    "the defaults best": OWN_BEST,
    "broken": BROKEN,
    "silent": SILENT,
    "wide": WIDE,
    "target far away": replace(FASTER, target_ms=60_000.0),
    "no duel of answers": Tuning(20.0, TRIALS, Duel((seen(0, 1),), (seen(100, 3),))),
}


def shown_as(tuning: Tuning, **more: Any) -> view.Shown:
    gained = tuning.gain != "nothing"
    given: dict[str, Any] = {
        "name": "digits",
        "url": URL,
        "tuning": tuning,
        "path": Path("/srv/digits-batching.pbtxt") if gained else None,
        "text": parameters_text(BEST, said="Measured by %tune digits") if gained else "",
        "flags": "--enable_batching --batching_parameters_file=/srv/digits-batching.pbtxt" if gained else "",
        "model": "model",
        "sent": "x_test, 1 row a request",
        "seconds": 58.3,
    }
    return view.Shown(**{**given, **more})


@functools.cache
def both(tuning: Tuning, **more: Any) -> tuple[str, str]:
    bundle = view.mimebundle(shown_as(tuning, **more))
    return bundle["text/plain"], Tags(bundle["text/html"]).text


@pytest.mark.parametrize(
    "said",
    [
        "✓ tuned settings give 1.31× (1.25–1.42) the throughput",
        "digits",
        URL,
        f"5 rounds of {BEST} against the defaults, both up at once and asked in turn",
        "1.31× (1.25–1.42) the throughput, 0.97× (0.90–1.04) the p99 (median, and range of the rounds)",
        *("■ defaults", "◆ chosen", "1 ms", "1 / –", "1,340", "17.4 ms", "✓ within"),
        "max_batch_size { value: 32 }",
        "# Measured by %tune digits",
        "/srv/digits-batching.pbtxt",
        "a request of more than 32 rows will be refused, as TensorFlow Serving does",
        "p99 within 20 ms",
        "x_test, 1 row a request, over REST, by 32 clients that wait for their answers",
        "1.5 s on a server of its own, beside the one that serves",
        "58 s, 10 trials",
        "%serve --stop digits",
        "%serve model --name digits --flags '--enable_batching --batching_parameters_file=/srv/digits-batching.pbtxt'",
    ],
)
def test_card_and_plain_text_say_the_same(said: str) -> None:
    for rendering in both(FASTER):
        assert said in rendering


@pytest.mark.parametrize(
    ("tuning", "said", "edge"),
    [
        (FASTER, "✓ tuned settings give 1.31×", pieces.GOOD),
        (SAME, "– nothing was gained: keep the defaults", pieces.NEUTRAL),
        (ONLY_OURS, "✓ tuned settings keep p99 within 15 ms, the defaults do not", pieces.GOOD),
        (
            NEARER,
            "✗ nothing kept p99 within 5 ms; tuned settings come nearest, with 0.70× (0.60–0.75)",
            pieces.DOUBTFUL,
        ),
        (NEVER, "✗ nothing kept p99 within 5 ms, and nothing was gained on the defaults", pieces.DOUBTFUL),
        (ALONE, "– nothing was gained: keep the defaults", pieces.NEUTRAL),
    ],
)
def test_the_heading_is_what_the_duel_says(tuning: Tuning, said: str, edge: str) -> None:
    assert f"border-left:5px solid {edge}" in view.mimebundle(shown_as(tuning))["text/html"]
    for rendering in both(tuning):
        assert said in rendering


@pytest.mark.parametrize(
    ("tuning", "reason"),
    [
        (SAME, "They did best when tried, but not in every round of the duel."),
        (OURS_OVER, "With them p99 was 23.4 ms, over the target."),
        (BARELY, "That is less than the 5% that other settings are worth."),
        (replace(SAME, duel=Duel(SAME.duel.defaults, (seen(900, 3, failures={"503": 2}),) * 5)), "10 requests failed"),  # type: ignore[union-attr]
        (ALONE, "Nothing but the defaults was tried."),
        (OWN_BEST, "None of 1 other settings did better than the defaults when tried."),
    ],
)
def test_what_gains_nothing_is_said_with_its_reason_and_writes_no_file(tuning: Tuning, reason: str) -> None:
    assert tuning.gain == "nothing"
    for rendering in both(tuning):
        assert reason in rendering
        assert "max_batch_size {" not in rendering
        assert "%serve" not in rendering


def test_where_nothing_keeps_the_target_the_next_line_asks_how_many_clients_it_bears() -> None:
    assert both(NEVER)[0].endswith(f"next: %loadtest {URL} x_test")
    assert both(NEVER, sent="a b, 1 row a request")[0].endswith(f"next: %loadtest {URL}")
    assert "next:" not in both(SAME)[0]


def test_the_card_has_the_trials_worth_seeing_and_folds_the_others_away() -> None:
    html = view.mimebundle(shown_as(FASTER))["text/html"]
    first, folded = html.split("<details", 1)
    assert first.count('<th scope="row"') == view.MOST_ROWS
    assert folded.count('<th scope="row"') == len(TRIALS)
    assert ">31 ms<" in folded and ">31 ms<" not in first, "it is over the target"
    assert "<details" not in view.mimebundle(shown_as(OWN_BEST))["text/html"]


def test_what_did_not_start_or_failed_is_said_in_its_row() -> None:
    for rendering in both(BROKEN):
        assert "✗ not started" in rendering
        assert "the server cannot start: found no room" in rendering
        assert "✗ 12 failed" in rendering
        assert "✗ 40 failed" in rendering


def test_busy_clients_and_too_few_answers_are_findings() -> None:
    busy = Tuning(20.0, (Trial(DEFAULTS, seen(1000, 3, generator=0.93)), TRIALS[1]))
    few = Tuning(20.0, tried((DEFAULTS, 20, 3)))
    assert "! warning: the clients used 93% of one core" in both(busy)[0]
    assert "the shortest run had 30 answers: too few for a p99" in both(few)[0]
    for quiet in (FASTER, SAME):
        assert "warning" not in both(quiet)[0] and "too few" not in both(quiet)[0]


def test_what_was_noticed_before_comes_along() -> None:
    noticed = Finding("note", "cut-short", "the time was over before all was tried", "--seconds 120 tries more.")
    for rendering in both(SAME, findings=(noticed,)):
        assert "note: the time was over before all was tried. --seconds 120 tries more." in " ".join(rendering.split())


def test_markup_in_names_is_text_and_commands_no_terminal() -> None:
    hostile = Tuning(20.0, (*TRIALS, Trial(Settings(3), problem=EVIL)), FASTER.duel)
    told = {"name": EVIL, "url": EVIL, "text": EVIL, "flags": EVIL, "model": EVIL, "sent": f"{EVIL}, 1 row a request"}
    bundle = view.mimebundle(shown_as(hostile, path=Path("/") / EVIL, **told))
    tags = Tags(bundle["text/html"])
    assert "script" not in tags.seen
    assert tags.text.count("alert(1)") >= 6
    for rendering in bundle.values():
        assert "\x1b" not in rendering


def test_text_takes_the_colour_of_the_page() -> None:
    html = re.sub(r'src="[^"]*"', "", view.mimebundle(shown_as(FASTER))["text/html"])
    assert re.findall(r"(?<![-\w])color:", html) == []
    assert re.findall(r"background:(?!transparent)", html) == []


def test_the_picture_has_the_numbers_in_words() -> None:
    alt = re.search('alt="([^"]*)"', view.mimebundle(shown_as(FASTER))["text/html"])
    assert alt is not None
    assert alt[1].startswith("the defaults 1,000 answers/s, p99 18 ms; ")
    assert alt[1].endswith("in the duel 1.31× (1.25–1.42) the throughput, 0.97× (0.90–1.04) the p99")


# The figure


def test_the_figure_has_a_point_for_each_trial_the_target_and_the_rounds() -> None:
    trials, rounds = tuning_figures.figure(FASTER).axes
    points = {
        (round(float(x), 3), round(float(y)))
        for line in trials.lines
        if line.get_marker() in ("o", "s", "D")
        for x, y in zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True)
    }
    assert points == {(round(trial.p99_ms, 3), round(trial.load.throughput)) for trial in TRIALS if trial.load}
    assert {text.get_text() for text in trials.texts} == {"target 20 ms", "defaults", "chosen"}
    assert any(np.asarray(line.get_xdata()).tolist() == [20.0, 20.0] for line in trials.lines)
    dots = [line for line in rounds.lines if line.get_marker() == "o"]
    assert np.asarray(dots[0].get_xdata()).tolist() == pytest.approx([1.31, 1.25, 1.42, 1.33, 1.28], rel=0.01)
    assert [text.get_text() for text in rounds.texts] == [
        *("answers/s: 1.31× (1.25–1.42)", "p99: 0.97× (0.90–1.04)"),
    ]


def test_the_curve_is_the_most_that_was_answered_within_each_p99() -> None:
    (curve,) = (line for line in tuning_figures.figure(FASTER).axes[0].lines if line.get_drawstyle() == "steps-post")
    steps = list(zip(np.asarray(curve.get_xdata()), np.asarray(curve.get_ydata()), strict=True))
    assert [(round(x, 1), round(y)) for x, y in steps] == [(12, 1250), (15, 1300), (17, 1320), (17.4, 1340)]


def test_what_won_nothing_is_not_called_chosen() -> None:
    assert "best when tried" in {text.get_text() for text in tuning_figures.figure(SAME).axes[0].texts}
    assert len(tuning_figures.figure(ALONE).axes) == 1


@pytest.mark.parametrize("name", EDGES)
def test_nothing_overlaps_or_leaves_the_picture(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = tuning_figures.figure(EDGES[name])
        figure.draw_without_rendering()
    frame, written = figure.bbox, shown(figure)
    boxes = [text.get_window_extent() for text in written]
    for text, box in zip(written, boxes, strict=True):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1, text
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1, text
    for (one, first), (other, second) in itertools.combinations(zip(written, boxes, strict=True), 2):
        assert not first.overlaps(second), (one, other)


@pytest.mark.parametrize("name", EDGES)
def test_every_edge_has_a_card_whose_edge_is_that_of_its_heading(name: str) -> None:
    bundle = view.mimebundle(shown_as(EDGES[name]))
    Tags(bundle["text/html"])
    edges = {"✓": pieces.GOOD, "–": pieces.NEUTRAL, "✗": pieces.DOUBTFUL}
    assert f"border-left:5px solid {edges[bundle['text/plain'][0]]}" in bundle["text/html"]


def test_a_dark_style_of_the_person_leaves_the_figure_as_it_is() -> None:
    with matplotlib.rc_context({"text.color": "white", "savefig.facecolor": "black", "axes.titlecolor": "white"}):
        figure = tuning_figures.figure(FASTER)
    assert "#ffffff" not in {to_hex(text.get_color()) for text in shown(figure)}
    assert to_hex(figure.get_facecolor()) == PAPER
