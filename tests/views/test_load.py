from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from tests.views.test_card import Tags
from tfdeploy_magic.serving.load import Load, Saturation, Second
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import load as view
from tfdeploy_magic.views import load_figures
from tfdeploy_magic.views.figures import PAPER

NAME, URL, SENT = "digits", "http://127.0.0.1:8501/v1/models/digits", "x_test, 1 row a request"
EVIL = "<script>alert(1)</script>\x1b[2J$x^{"


def ran(
    clients: int = 8,
    rate: float = 2310.0,
    p50: float = 3.2,
    *,
    seconds: float = 10.002,
    spread: float = 0.35,
    failures: Mapping[str, int] | None = None,
    failing: tuple[int, ...] = (4, 5, 6),
    **more: Any,
) -> Load:
    """Return what clients saw of a server that answers evenly, but for some seconds in which requests fail."""
    draw = np.random.default_rng(clients)
    answered = round(rate * seconds)
    latencies = p50 * np.exp(spread * draw.standard_normal(min(answered, 20_000)))
    failed = dict(failures or {})
    timeline = tuple(
        Second(
            second,
            round(rate * min(1.0, seconds - second)) + (here := sum(failed.values()) if second == failing[0] else 0),
            here,
            1.8 * p50 if rate else None,
        )
        for second in range(int(np.ceil(seconds)))
    )
    load = Load(
        clients=clients,
        seconds=seconds,
        over="rest",
        requests=answered + sum(failed.values()),
        failures=failed,
        first_failure="",
        latencies_ms=latencies,
        max_ms=float(latencies.max()) if answered else None,
        concurrency=0.98 * clients,
        timeline=timeline,
        request_bytes=1203.4,
        answer_bytes=340.2,
        generator=0.31,
    )
    return replace(load, **more)


def curve(*rates: float, **more: Any) -> Saturation:
    """Return throughputs with 1, 2, 4, ... clients."""
    steps = ((2**number, rate) for number, rate in enumerate(rates))
    return Saturation(tuple(ran(n, rate, 950 * n / max(rate, 1), seconds=2.001, **more) for n, rate in steps))


LOAD, CURVE = ran(), curve(577, 1155, 2310, 2325)
FULL = '{\n    "error": "The queue is full; currently 8 batches."\n}'
FAILED = ran(failures={"503": 9, "timeout": 3}, first_failure=FULL)
NOTHING = ran(rate=0, failures={"unreachable": 800}, first_failure="Connect call failed")
TAILED = replace(LOAD, latencies_ms=np.append(LOAD.latencies_ms, [9_700.0] * 600), max_ms=10_400.0)
STALLED = ran(seconds=300.01, rate=3000, failures={"closed": 4}, failing=(200,), max_ms=29_900.0)
EDGES = {
    "usual": (LOAD, CURVE),
    "failures": (FAILED, CURVE),
    "one client, no curve": (ran(1, 400, 2.4), None),
    "1024 clients": (ran(1024, 11_500, 88.0), curve(*(min(11_800, 740 * 2**n) for n in range(11)))),
    "1000 clients, still growing": (ran(1000, 900_000, 1.1), curve(*(900 * 2**n for n in range(10)))),
    "17 clients": (ran(17), Saturation((*curve(9, 19, 40, 80, 160).loads, ran(17, 180)))),
    "nothing answered": (NOTHING, None),
    "nothing answered at all": (NOTHING, curve(0, 0, 0, failures={"400": 9}, failing=(0,))),
    "no request": (ran(rate=0, timeline=()), None),
    "sub-millisecond": (ran(rate=25_000, p50=0.0421, spread=0.05), curve(25_000, 25_100)),
    "10 seconds": (ran(rate=0.7, p50=10_400, spread=0.1), curve(0.1, 0.2, 0.4)),
    "one answer": (ran(1, 0.1, 9_996, seconds=9.99), None),
    "all the same": (ran(spread=0.0), None),
    "a long tail": (TAILED, CURVE),
    "300 seconds": (STALLED, CURVE),
    "half a second": (ran(seconds=0.5), None),
    "one step": (LOAD, curve(577)),
}


def both(load: Load, saturation: Saturation | None = None, sent: str = SENT) -> tuple[str, str]:
    bundle = view.mimebundle(NAME, URL, load, saturation, sent)
    return bundle["text/plain"], Tags(bundle["text/html"]).text


def plain(load: Load, saturation: Saturation | None = None, sent: str = SENT) -> str:
    return both(load, saturation, sent)[0]


@pytest.fixture(scope="module")
def renderings() -> tuple[str, str]:
    return both(LOAD, CURVE)


@pytest.mark.parametrize(
    "said",
    [
        *("✓ 2,310 answers/s, p99", NAME, URL, "answers/s", "p50", "p95", "p99", "longest", "failed", "▶ 8", "◎ knee"),
        "▶: the run of 10 s; those before it took 2.0 s each.",
        "More than 4 clients only wait longer: throughput stops growing at 2,310/s.",
        "x_test, 1 row a request, over REST",
        "23,105 requests in 10 s by 8 clients",
        "1.2 kB a request, 340 B an answer",
        "7.84 requests at once on average",
        "2,310 to 2,310 answers/s, p95 5.76 ms to 5.76 ms",
        "20,000 of 23,105, drawn at random",
        "31% of one core",
        "(coordinated omission)",
        f"%loadtest {URL} x_test --clients 4",
    ],
)
def test_card_and_plain_text_say_the_same(said: str, renderings: tuple[str, str]) -> None:
    for rendering in renderings:
        assert said in rendering


def test_each_step_has_a_row_and_the_run_is_the_last() -> None:
    lines = plain(LOAD, CURVE).splitlines()[2:8]
    assert [re.split(" {2,}", line.strip())[0] for line in lines] == ["clients", "1", "2", "4", "8", "▶ 8"]
    assert [f"{LOAD.p50_ms:.3g} ms", f"{LOAD.p95_ms:.3g} ms", f"{LOAD.p99_ms:.3g} ms"] == re.findall(
        r"[\d.]+ ms", lines[-1]
    )[:3]


def test_without_a_curve_nothing_is_marked_and_more_clients_are_the_next_line() -> None:
    said = plain(ran(1, 400, 2.4))
    assert "▶" not in said and "knee" not in said and "longer:" not in said
    assert said.endswith(f"next: %loadtest {URL} x_test --clients 2")


@pytest.mark.parametrize(
    ("rates", "sentence"),
    [
        ((500, 1000, 2000), "Throughput still grew at 4 clients: --clients 8 tries more."),
        ((3000, 3000, 3000), "More than 1 client only waits longer: throughput stops growing at 3,000/s."),
        ((500, 1000, 900, 400), "stops growing at 1,000/s, and falls to 400/s with 8 clients."),
        ((0, 0), "Nothing was answered, with however many clients."),
    ],
)
def test_the_knee_is_named_in_a_sentence(rates: tuple[float, ...], sentence: str) -> None:
    for rendering in both(LOAD, curve(*rates)):
        assert sentence in rendering


def test_more_clients_than_can_be_asked_with_are_not_proposed() -> None:
    most = ran(1024, 90_000, 1.1)
    said = plain(most, curve(*(80 * 2**n for n in range(11))))
    assert "Throughput still grew at 1,024 clients: the most that can be asked with." in said
    assert "next:" not in said


def test_a_single_step_says_nothing_about_growth() -> None:
    assert "hroughput" not in plain(ran(1), curve(577))


def test_failures_make_the_heading_the_edge_and_a_finding_with_the_server_s_own_words() -> None:
    html = view.mimebundle(NAME, URL, FAILED, CURVE, SENT)["text/html"]
    assert f"border-left:5px solid {pieces.BAD}" in html
    for rendering in both(FAILED, CURVE):
        assert "✗ 12 of 23,117 failed" in rendering
        assert "12 of 23,117 requests failed (9 × HTTP 503, 3 × timeout)" in rendering
        assert "the first of them: The queue is full; currently 8 batches." in rendering
        assert "batches.." not in rendering
        assert "ask with fewer --clients" in rendering
        assert "less than 0.1%" in rendering
        assert "failures in 1 of 10 seconds, the first after 4 s" in rendering


@pytest.mark.parametrize(
    ("kind", "cure", "line"),
    [
        ("unreachable", "%serve --list shows", "%serve --list"),
        ("NOT_FOUND", "%serve --list shows", "%serve --list"),
        ("RESOURCE_EXHAUSTED", "longer queue", f"%loadtest {URL} x_test --clients 4"),
        ("timeout", "fewer --rows", f"%loadtest {URL} x_test --clients 4"),
        ("400", "%predict sends one request", f"%predict {URL} x_test"),
        ("INTERNAL", "%predict sends one request", f"%predict {URL} x_test"),
    ],
)
def test_the_cure_and_the_next_line_suit_the_most_frequent_failure(kind: str, cure: str, line: str) -> None:
    said = plain(ran(failures={kind: 7, "closed": 1}))
    assert cure in said
    assert said.endswith(f"next: {line}")


def test_a_failure_before_the_run_is_told_too() -> None:
    steps = curve(577, 1155, 2310).loads
    broken = ran(4, 2310, 1.6, seconds=2.001, failures={"500": 3}, failing=(1,), first_failure="Out of memory")
    for rendering in both(LOAD, Saturation((*steps[:2], broken))):
        assert "✗ 3 of 8,091 failed before the run" in rendering
        assert "3 of 4,625 requests failed, with 4 clients before the run (3 × HTTP 500)" in rendering
        assert "the first of them: Out of memory." in rendering


def test_a_failure_in_other_words_than_json_stands_on_one_short_line() -> None:
    said = plain(ran(failures={"502": 1}, first_failure=f"<html>\r\n<body>{'no ' * 400}"))
    line = next(line for line in said.splitlines() if "the first of them" in line)
    assert "<html> <body>no no" in line
    assert len(line) < 400


def test_busy_clients_are_a_warning_and_the_knee_is_not_blamed_on_the_server() -> None:
    load = replace(LOAD, generator=0.93)
    html = view.mimebundle(NAME, URL, load, curve(577, 1155, 1160, generator=0.9), SENT)["text/html"]
    assert f"border-left:5px solid {pieces.DOUBTFUL}" in html
    for rendering in both(load, curve(577, 1155, 1160, generator=0.9)):
        assert "8 clients used 93% of one core: that, and not the server, may be what limited" in rendering
        assert "stops growing at 1,155/s, with 2 clients, but the clients may be what limits it" in rendering
        assert "only wait longer" not in rendering
    assert "--over rest" in plain(replace(load, over="grpc"))
    assert "warning" not in plain(replace(LOAD, generator=0.85))


def test_of_too_few_answers_no_p99_is_written() -> None:
    few = ran(rate=9.9, p50=101)
    for rendering in both(few):
        assert f"✓ {few.throughput:.3g} answers/s, longest {few.max_ms:.0f} ms" in rendering
        assert "99 answers are too few for a p99. --seconds 20 gives more." in " ".join(rendering.split())
        assert "too few" in rendering
    assert "too few for a p95 or p99" in plain(ran(rate=1.9))
    assert "1 answer is too few" in plain(ran(rate=0.1))
    assert "too few" not in plain(ran(rate=10.0))


@pytest.mark.parametrize(
    ("sent", "line"),
    [
        ("x_test, 32 rows a request", "x_test --rows 32 --clients 16"),
        ("images[:100], 1 row a request", "images[:100] --clients 16"),
        ("data, 8 rows a request", "--rows 8 --clients 16"),
        ("a b; rm, 1 row a request", "--clients 16"),
    ],
)
def test_the_next_line_sends_the_same(sent: str, line: str) -> None:
    assert plain(LOAD, None, sent).endswith(f"next: %loadtest {URL} {line}")
    assert plain(replace(LOAD, over="grpc"), None, sent).endswith(f"{line} --over grpc")


def test_markup_in_names_is_text_and_commands_no_terminal() -> None:
    load = ran(failures={EVIL: 3, "²": 1}, first_failure=EVIL, over=EVIL)
    bundle = view.mimebundle(EVIL, EVIL, load, CURVE, f"{EVIL}, 1 row a request")
    tags = Tags(bundle["text/html"])
    assert "script" not in tags.seen
    assert tags.text.count("alert(1)") >= 6
    for rendering in bundle.values():
        assert "\x1b" not in rendering


def test_text_takes_the_colour_of_the_page() -> None:
    html = re.sub(r'src="[^"]*"', "", view.mimebundle(NAME, URL, FAILED, CURVE, SENT)["text/html"])
    assert re.findall(r"(?<![-\w])color:", html) == []
    assert re.findall(r"background:(?!transparent)", html) == []


def test_the_picture_has_the_numbers_in_words() -> None:
    alt = re.search('alt="([^"]*)"', view.mimebundle(NAME, URL, FAILED, CURVE, SENT)["text/html"])
    assert alt is not None
    assert alt[1].startswith(f"latency p50 {FAILED.p50_ms:.3g} ms")
    assert "second by second 2,310 to 2,310 answers/s" in alt[1]
    assert "1 client 577 answers/s; 2 clients 1,155 answers/s; 4 clients 2,310 answers/s" in alt[1]


def test_what_is_left_of_a_second_counts_with_the_one_before_or_by_its_own_length() -> None:
    short = ran(seconds=3.2, rate=100.0)
    assert [(pace.start, pace.end) for pace in load_figures.paces_of(short)] == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.2)]
    long = ran(seconds=2.75, rate=100.0)
    for load in (short, long):
        assert [pace.answers for pace in load_figures.paces_of(load)] == pytest.approx([100, 100, 100], rel=0.02)
    assert load_figures.paces_of(long)[-1].end == 2.75
    late = replace(short, timeline=(*short.timeline[:3], Second(3, 6, 6, None)))
    assert load_figures.paces_of(late)[-1].failures == pytest.approx(6 / 1.2)
    assert load_figures.paces_of(late)[-1].p95_ms == short.timeline[2].p95_ms


def test_the_figure_has_latencies_the_seconds_and_the_curve_with_its_knee() -> None:
    latencies, strip, seconds, strip_of_curve, steps = load_figures.figure(LOAD, CURVE).axes
    assert latencies.get_xscale() == "log"
    assert latencies.get_title(loc="left") == "latency of 23,105 answers"
    assert texts(latencies) == [f"p{share} {np.percentile(LOAD.latencies_ms, share):.3g} ms" for share in (50, 95, 99)]
    drawn = [line.get_xdata()[0] for line in latencies.lines]  # type: ignore[index]
    assert drawn == pytest.approx(np.percentile(LOAD.latencies_ms, [50, 95, 99]))
    counts = latencies.patches[0].get_data().values  # type: ignore[attr-defined]
    assert counts.sum() == LOAD.latencies_ms.size
    rates = [patch.get_data().values for patch in seconds.patches]  # type: ignore[attr-defined]
    assert rates[0] == pytest.approx([2310] * 10, rel=1e-3)
    assert strip.patches[0].get_data().values == pytest.approx([5.76] * 10)  # type: ignore[attr-defined]
    assert steps.get_title(loc="left") == "answers/s, knee at 4"
    assert np.asarray(steps.lines[0].get_xdata()).tolist() == [1, 2, 4, 8]
    assert np.asarray(steps.lines[0].get_ydata()).tolist() == pytest.approx([577, 1155, 2310, 2325], rel=1e-3)
    run, knee = steps.lines[1:]
    assert (run.get_xdata()[0], run.get_ydata()[0]) == (8, pytest.approx(LOAD.throughput))  # type: ignore[index]
    assert np.asarray(knee.get_xdata()).tolist() == [4, 4]
    assert np.asarray(strip_of_curve.lines[0].get_ydata()).tolist() == [load.p95_ms for load in CURVE.loads]


def test_without_a_curve_the_figure_has_two_panels_and_only_known_percentiles() -> None:
    assert len(load_figures.figure(LOAD, None).axes) == 3
    assert [said.split()[0] for said in texts(load_figures.figure(ran(rate=5.0), None).axes[0])] == ["p50", "p95"]


def test_failures_are_hatched_and_crossed_so_that_few_among_many_are_seen() -> None:
    seconds = load_figures.figure(FAILED, None).axes[2]
    assert seconds.get_title(loc="left") == "answers/s, ✗ failed/s"
    hatched = [patch for patch in seconds.patches if patch.get_hatch()]
    assert hatched[0].get_data().values == pytest.approx([0, 0, 0, 0, 12, 0, 0, 0, 0, 0])  # type: ignore[attr-defined]
    (crosses,) = (line for line in seconds.lines if line.get_marker() == "x")
    assert np.asarray(crosses.get_xdata()).tolist() == [4.5]


def test_a_long_run_is_drawn_in_spans_whose_band_keeps_the_slowest_second() -> None:
    timeline = [Second(n, 3000, 0, 2.0) for n in range(300)]
    timeline[121] = Second(121, 10, 0, 900.0)
    strip, seconds = load_figures.figure(ran(seconds=300.0, timeline=tuple(timeline)), None).axes[1:]
    band, mean = (patch.get_data() for patch in seconds.patches)  # type: ignore[attr-defined]
    assert seconds.get_title(loc="left") == "answers/s, every 4 s"
    assert (mean.values[30], band.baseline[30], band.values[30]) == (pytest.approx(2252.5), 10, 3000)
    assert strip.patches[0].get_data().values[30] == 900.0  # type: ignore[attr-defined]
    assert strip.get_yscale() == "log"


@pytest.mark.parametrize("name", EDGES)
def test_nothing_overlaps_or_leaves_the_picture(name: str) -> None:
    load, saturation = EDGES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = load_figures.figure(load, saturation)
        figure.draw_without_rendering()
    frame = figure.bbox
    written = shown(figure)
    boxes = [text.get_window_extent() for text in written]
    for text, box in zip(written, boxes, strict=True):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1, text
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1, text
    for (one, first), (other, second) in itertools.combinations(zip(written, boxes, strict=True), 2):
        assert not first.overlaps(second), (one, other)
    latencies = figure.axes[0]
    for text in (each for each in latencies.texts if isinstance(each, Annotation)):
        box = text.get_window_extent()
        for line in latencies.lines:
            assert not line.get_window_extent().overlaps(box), (text, line)


@pytest.mark.parametrize("name", EDGES)
def test_every_edge_has_a_card_whose_edge_is_that_of_its_heading(name: str) -> None:
    load, saturation = EDGES[name]
    bundle = view.mimebundle(NAME, URL, load, saturation, SENT)
    Tags(bundle["text/html"])
    is_bad = f"border-left:5px solid {pieces.BAD}" in bundle["text/html"]
    assert is_bad == bundle["text/plain"].startswith("✗")


def test_a_dark_style_of_the_person_leaves_the_figure_as_it_is() -> None:
    with matplotlib.rc_context({"text.color": "white", "savefig.facecolor": "black", "axes.titlecolor": "white"}):
        figure = load_figures.figure(FAILED, CURVE)
    assert "#ffffff" not in {to_hex(text.get_color()) for text in shown(figure)}
    assert to_hex(figure.get_facecolor()) == PAPER


def texts(axes: Axes) -> list[str]:
    return [each.get_text() for each in axes.texts]


def shown(figure: Figure) -> list[Text]:
    """Return every text that is drawn: matplotlib keeps names of ticks beyond the ends of an axis, undrawn."""
    beyond = set()
    for axes in figure.axes:
        for axis, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            ticks = (*axis.get_major_ticks(), *axis.get_minor_ticks())
            beyond |= {tick.label1 for tick in ticks if not min(ends) <= tick.get_loc() <= max(ends)}
    found = cast(list[Text], figure.findobj(Text))
    return [text for text in found if text.get_text() and text.get_visible() and text not in beyond]
