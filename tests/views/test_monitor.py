from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from tests.views.test_card import Tags
from tfdeploy_magic.serving.client import Client
from tfdeploy_magic.serving.history import STOPPED, History, Interval, Tally, Who
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import monitor as view
from tfdeploy_magic.views import monitor_figures
from tfdeploy_magic.views.figures import INK
from tfdeploy_magic.views.monitor_figures import ALL, COLORS, Picture, figure, name_of

NAME, URL = "digits", "http://127.0.0.1:8501/v1/models/digits"
START = 1_795_480_290.0
STABLE, CANARY = (3, "stable"), (4, "canary")
EVIL = "<script>alert(1)</script>\x1b[2J$x^{"


def tally(answered: float, failed: float = 0, microseconds: tuple[float, float] = (3000, 5000)) -> Tally:
    requests = {status: count for status, count in (("OK", answered), ("INTERNAL", failed)) if count}
    return Tally(requests, {microseconds: answered} if answered else {})


def interval(second: float, versions: Mapping[Who, Tally], **more: Any) -> Interval:
    model = more.pop("model", None) or Tally.sum(versions.values())
    return Interval(START + second, START + second + 1, 1.0, model, dict(versions), **more)


def history(*intervals: Interval, problem: str | None = None, silent: float = 0, versions: bool = True) -> History:
    made = History(Client(URL), kept=1000)
    made.intervals = intervals
    made.until = (intervals[-1].end if intervals else START) + silent
    made.problem = problem
    made.tells_versions = versions
    return made


def steady(seconds: int = 30, failing: range = range(0)) -> list[Interval]:
    return [
        interval(
            second,
            {
                STABLE: tally(180 + 10 * (second % 3)),
                CANARY: tally(20, 3 if second in failing else 0, (9000, 16_000)),
            },
        )
        for second in range(seconds)
    ]


WELL = history(*steady())
FAILING = history(*steady(failing=range(24, 28)))
GAPPED = history(*steady()[:10], *steady()[18:])
SILENT = history(*steady(), problem="Connection refused", silent=8)
TOGETHER = history(*(interval(second, {}, model=tally(200)) for second in range(30)), versions=False)
IDLE = history(*(interval(second, {}) for second in range(30)))
ONCE = history()
ALL_KINDS = {
    "well": WELL, "failing": FAILING, "gapped": GAPPED, "silent": SILENT, "together": TOGETHER, "idle": IDLE,
    "asked once": ONCE, "one interval": history(*steady(1)),
    "only errors": history(*(interval(s, {(None, ""): tally(0, 5)}) for s in range(5))),
    "far apart": history(*(interval(s, {STABLE: tally(90, 0, (10.0, 10.0 ** (2 + s % 5)))}) for s in range(9))),
    "many versions": history(*(interval(s, {(v, ""): tally(5 + v) for v in range(1, 15)}) for s in range(9))),
    "beyond the last limit": history(interval(0, {STABLE: tally(9, 0, (1e6, float("inf")))})),
}  # fmt: skip


def watched(seen: History, **more: Any) -> view.Watched:
    return view.Watched(NAME, URL, seen, 120.0, 1.0, START + 600, **more)


def both(seen: History, **more: Any) -> tuple[str, str]:
    bundle = view.mimebundle(watched(seen, **more))
    return bundle["text/plain"], Tags(bundle["text/html"]).text


def drawn(seen: History, seconds: float = 120.0) -> Picture:
    made = monitor_figures.picture(seconds)
    made.draw(seen)
    return made


def named(made: Picture, panel: int) -> dict[str, Any]:
    """Return the lines of a panel by the names at their ends."""
    found = made._panels[panel]
    return {text.get_text(): line for text, line in zip(found._names, found.lines, strict=True) if text.get_text()}


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_card_says_the_same_in_both_forms_whatever_was_seen(kind: str) -> None:
    plain, shown = both(ALL_KINDS[kind])
    headline = plain.partition(": digits")[0]
    assert shown.startswith(headline)
    assert "nan" not in plain.lower()
    for line in re.findall(r"(?m)^  (?:seen|watching) +(.*)$", plain):
        assert line in shown


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_whatever_was_seen_can_be_drawn(kind: str) -> None:
    made = drawn(ALL_KINDS[kind])
    assert Image.open(io.BytesIO(made.png())).size == tuple(made.figure.get_size_inches() * 144 // 1)
    assert len(figure(ALL_KINDS[kind], 120.0).axes) == 3


def test_the_numbers_are_of_the_last_seconds_by_version() -> None:
    plain = both(FAILING)[0]
    assert plain.startswith("✗ 212 requests/s, p99 15.3 ms, ✗ 1.2 errors/s: digits http://")
    assert re.search(r"last 10 s +requests/s +share +p50 +p95 +p99 +errors/s\n  stable", plain)
    assert re.search(r"\n  stable \(3\) +191 +90\.0% +4 ms +4\.9 ms +4\.98 ms +0\n", plain)
    assert re.search(r"canary \(4\) +21\.2 +10\.0% +12\.5 ms +15\.7 ms +15\.9 ms +✗ 1\.2\n +5\.7% of its", plain)
    assert re.search(r"\n  all +212 +100\.0%", plain)
    assert "12 of 6,312 requests failed" in plain
    assert "(12 × INTERNAL)" in plain


def test_where_all_is_well_there_is_nothing_more_to_say() -> None:
    plain, _ = both(WELL)
    assert plain.startswith("✓ ")
    assert "warning" not in plain
    assert "error:" not in plain
    assert "versions  " not in plain
    assert pieces.GOOD in view.html(watched(WELL))


def test_of_few_answers_no_p99_is_told() -> None:
    plain, _ = both(history(interval(0, {STABLE: tally(30)})))
    assert plain.startswith("✓ 30 requests/s, p95 ")
    assert "too few" in plain
    assert both(history(interval(0, {STABLE: tally(0, 2)})))[0].startswith("✗ 2 requests/s, ✗ 2 errors/s")


def test_a_server_that_does_not_answer_is_said_to_be_silent() -> None:
    plain, _ = both(SILENT)
    assert plain.startswith("✗ does not answer: digits")
    assert "✗ error: the server does not answer: Connection refused.\n    %serve --list" in plain
    assert pieces.BAD in view.html(watched(SILENT))
    over, _ = both(SILENT, ended="the server was stopped")
    assert "✗ error" not in over, "that it was stopped is no failure"
    assert re.search(r"watched +until \d\d:\d\d:\d\d: the server was stopped", over)


def test_what_is_next_depends_on_how_it_ended() -> None:
    assert both(WELL)[0].endswith(f"next: %loadtest {URL}")
    assert both(WELL, ended="its time was over")[0].endswith(f"next: %monitor {URL}")
    assert both(WELL, ended=STOPPED)[0].endswith("next: %serve --list")


def test_no_requests_are_no_failure() -> None:
    plain, _ = both(IDLE)
    assert plain.startswith("· no requests now: digits")
    assert both(ONCE)[0].startswith("· asked once so far: digits")
    assert "<img" not in view.mimebundle(watched(ONCE))["text/html"], "there is nothing to draw"


def test_gaps_and_restarts_are_told() -> None:
    assert "; no answer for 8.0 s of it" in both(GAPPED)[0]
    restarted = history(interval(0, {}), interval(1, {STABLE: tally(5)}, restarted=True))
    assert re.search(r"· note: the server was started anew before \d\d:\d\d:\d\d", both(restarted)[0])


def test_a_server_that_counts_versions_together_is_said_to() -> None:
    plain, _ = both(TOGETHER)
    assert "versions     this server counts them together, as TensorFlow Serving does" in plain
    assert re.search(r"\n  all +200 +100\.0%", plain)


def test_the_busiest_versions_have_a_row_and_the_others_one_together() -> None:
    plain, _ = both(ALL_KINDS["many versions"])
    assert plain.index("version 14 ") < plain.index("version 13 ") < plain.index("version 7 ")
    assert re.search(r"\n  6 others +51 ", plain)


def test_what_was_written_is_named() -> None:
    plain, shown = both(WELL, written=(Path("/a/dashboard.json"), Path("/a/alerts.yml")))
    assert "Grafana      /a: dashboard.json, alerts.yml" in plain
    assert "/a: dashboard.json, alerts.yml" in shown


def test_names_from_a_server_are_escaped() -> None:
    seen = history(interval(0, {(3, EVIL): tally(200, 5)}), problem=None)
    page = view.mimebundle(watched(seen))
    assert "<script" not in page["text/html"]
    assert "\x1b" not in page["text/html"] + page["text/plain"]
    assert "<script" not in view.html(watched(history(*steady(2), problem=EVIL)))
    assert drawn(seen).png()


def test_a_picture_is_told_in_words() -> None:
    page = Tags(view.mimebundle(watched(FAILING))["text/html"])
    (alternative,) = re.findall(r'alt="([^"]*)"', view.mimebundle(watched(FAILING))["text/html"])
    assert page.text
    assert re.match(
        r"requests, latency and errors from \d\d:\d\d:\d\d to \d\d:\d\d:\d\d; 200 to 223 requests/s; p50 ",
        alternative,
    )
    assert "12 errors; stable (3) 5,700 requests" in alternative


@pytest.mark.parametrize(
    ("who", "name"),
    [
        ((3, ""), "version 3"), ((3, "canary"), "canary (3)"), ((3, "3"), "version 3"), ((None, ""), "no version"),
        ((None, "canary"), "canary"),
    ],
)  # fmt: skip
def test_a_version_or_arm_is_called_by_its_name(who: Who, name: str) -> None:
    assert name_of(who) == name


# The figure


def test_each_version_has_a_line_of_its_rate_and_a_name_at_its_end() -> None:
    lines = named(drawn(WELL), 0)
    assert list(lines) == ["stable (3)", "canary (4)"]
    x, y = lines["stable (3)"].get_data()
    assert list(x[:4]) == [START, START + 1, START + 1, START + 2]
    assert list(y[::2]) == [one.versions[STABLE].asked for one in WELL.intervals]
    assert len({line.get_color() for line in lines.values()}) == 2
    assert list(named(drawn(TOGETHER), 0)) == list(named(drawn(IDLE), 0)) == [ALL]


def test_errors_have_a_colour_and_a_mark_of_their_own() -> None:
    made = drawn(FAILING)
    rates, errors = named(made, 0), named(made, 2)
    assert list(rates) == ["stable (3)", "canary (4)", "✗ errors"]
    assert to_hex(rates["✗ errors"].get_color()).upper() == pieces.BAD
    assert pieces.BAD not in COLORS
    crosses = [panel._crosses for panel in made._panels]
    assert [len(each.get_xdata()) for each in crosses] == [4, 0, 4]
    assert {each.get_marker() for each in crosses} == {"x"}
    assert list(crosses[2].get_ydata()) == [3.0] * 4
    assert list(errors) == ["✗ canary (4)"]
    assert made._panels[0]._ends[len(COLORS) + 1] == 0, "there are none any more"
    assert errors["✗ canary (4)"].get_color() == rates["canary (4)"].get_color()
    assert made._panels[2]._title.get_text() == "✗ errors/s"
    assert drawn(WELL)._panels[2]._title.get_text() == "no errors"


def test_percentiles_are_of_each_interval_and_told_apart_by_their_dashes() -> None:
    lines = named(drawn(WELL), 1)
    assert [name.partition(" ")[0] for name in lines] == ["p50", "p95", "p99"]
    assert [line.get_linestyle() for line in lines.values()] == ["-", "--", ":"]
    assert {to_hex(line.get_color()) for line in lines.values()} == {INK}
    (last,) = {name for name in lines if name.startswith("p99")}
    assert lines[last].get_ydata()[-1] == WELL.intervals[-1].model.percentile(0.99)
    assert drawn(IDLE)._panels[1]._title.get_text() == "latency: nothing was answered"
    assert drawn(ALL_KINDS["far apart"])._panels[1].axes.get_yscale() == "log"
    assert drawn(WELL)._panels[1].axes.get_yscale() == "linear"


def test_the_panels_share_their_time() -> None:
    for seen in ALL_KINDS.values():
        limits = {panel.axes.get_xlim() for panel in drawn(seen)._panels}
        assert len(limits) == 1
        assert limits.pop()[1] == seen.until
    assert drawn(WELL, seconds=12.0)._panels[0].axes.get_xlim() == (WELL.until - 12, WELL.until)
    assert drawn(ALL_KINDS["one interval"])._panels[0].axes.get_xlim()[0] == START - 9, "one is no steady state"


def test_where_nothing_is_known_a_line_is_broken_and_the_paper_grey() -> None:
    for panel in drawn(GAPPED)._panels:
        (path,) = panel._gaps.get_paths()
        assert path.get_extents().x0 == START + 10
        assert path.get_extents().x1 == START + 18
        assert panel._silence.get_visible()
    y = named(drawn(GAPPED), 0)["stable (3)"].get_ydata()
    assert np.isnan(y).sum() == 1
    (path,) = drawn(SILENT)._panels[0]._gaps.get_paths()
    assert (path.get_extents().x0, path.get_extents().x1) == (START + 30, START + 38)
    assert drawn(WELL)._panels[0]._gaps.get_paths() == []


def test_names_stand_apart_and_within_their_panel() -> None:
    for seen in ALL_KINDS.values():
        for panel in drawn(seen)._panels:
            heights = sorted(text.get_position()[1] for text in panel._names if text.get_text())
            assert all(height >= 0 for height in heights)
            apart = np.diff(heights) * panel._inches
            assert (apart > 0.139).all()


def test_a_version_keeps_its_colour_while_it_is_drawn_and_those_beyond_are_grey() -> None:
    made = monitor_figures.picture(10.0)
    made.draw(history(*(interval(s, {(2, ""): tally(9), (3, ""): tally(9)}) for s in range(10))))
    before = named(made, 0)["version 3"]
    made.draw(history(*(interval(s, {(v, ""): tally(v) for v in (1, 3, 4, 5, 6, 7)}) for s in range(20, 30))))
    lines = named(made, 0)
    assert lines["version 3"] is before
    assert "version 2" not in lines
    assert len(lines) == len(COLORS) + 1
    assert lines["2 others"].get_ydata()[-1] == 6 + 7


def test_a_picture_depends_on_no_setting_of_matplotlib_and_changes_none() -> None:
    made = monitor_figures.picture(120.0)
    made.draw(FAILING)
    expected = made.png()
    changed = {
        "text.color": "red", "axes.facecolor": "black", "axes.grid": True, "font.family": "serif", "font.size": 30.0,
        "lines.linestyle": "--", "lines.marker": "o", "text.usetex": True, "savefig.bbox": "tight", "xtick.top": True,
        "ytick.color": "red", "axes.prop_cycle": matplotlib.cycler(color=["red"]), "path.sketch": (5.0, 50.0, 2.0),
        "savefig.dpi": 10.0, "ytick.labelsize": 30.0, "image.origin": "lower",
    }  # fmt: skip
    with matplotlib.rc_context(changed):
        before = dict(matplotlib.rcParams)
        made.draw(ALL_KINDS["far apart"])
        made.draw(FAILING)
        assert made.png() == expected
        assert dict(matplotlib.rcParams) == before
        again = monitor_figures.picture(120.0)
        again.draw(FAILING)
        assert again.png() == expected, "one that is made by a person of other tastes is the same"
        assert dict(matplotlib.rcParams) == before


def test_what_the_font_lacks_is_a_box_and_no_warning() -> None:
    made = drawn(history(interval(0, {(3, "模型 $x$ " + "é" * 20): tally(5)})))
    (name,) = named(made, 0)
    assert name == "▯▯ $x$ éééééééééé…"
    assert made.png()


def test_times_of_the_clock_are_round() -> None:
    for seconds in (2, 7, 30, 120, 3600, 100_000):
        ticks = monitor_figures._clock(START, START + seconds)
        assert 2 <= len(ticks) <= 6
        (step,) = set(np.diff(ticks)) or {1.0}
        assert all(tick % step == 0 for tick in ticks)
