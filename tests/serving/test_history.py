"""Rates and percentiles between two looks, against differences worked out by hand, and of a real server."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping

import pytest

from tests.serving.fake_server import Fake, serving
from tests.serving.live import Process
from tfdeploy_magic.errors import RequestRefused, ServerUnreachable
from tfdeploy_magic.serving.client import Client, Metrics
from tfdeploy_magic.serving.history import History, Interval, Sample, Tally

PAGE = "/monitoring/prometheus/metrics"
V3, CANARY, NOBODY = (3, ""), (4, "canary"), (None, "")


def page(
    requests: Mapping[str, int], *, within: Mapping[str, int], aside: int = 0, versions: str = "", model: str = "echo"
) -> str:
    """Return what a server shows.

    Args:
        requests: Status -> count.
        within: Upper limit in microseconds -> answers within it.
        aside: Answers about its state, which count among the requests.
        versions: More lines.
        model: Its name.
    """
    t = ":tensorflow:serving:"
    lines = [f'{t}request_count{{model_name="{model}",status="{name}"}} {count}' for name, count in requests.items()]
    both = f'model_name="{model}",API="predict",entrypoint="REST"'
    lines += [f'{t}request_latency_bucket{{{both},le="{limit}"}} {count}' for limit, count in within.items()]
    lines += [f"{t}request_latency_count{{{both}}} {list(within.values())[-1] if within else 0}"]
    lines += [f'{t}request_latency_bucket{{model_name="{model}",API="",entrypoint="REST",le="+Inf"}} {aside}']
    lines += [f'{t}request_latency_count{{model_name="{model}",API="",entrypoint="REST"}} {aside}']
    return "\n".join([*lines, versions]) + "\n"


def of_version(version: object, arm: str, requests: Mapping[str, int], within: Mapping[str, int]) -> str:
    t, who = ":tfdeploy:serving:version_request_", f'model_name="echo",version="{version}",arm="{arm}"'
    lines = [f'{t}count{{{who},status="{status}"}} {count}' for status, count in requests.items()]
    lines += [f'{t}latency_bucket{{{who},le="{limit}"}} {count}' for limit, count in within.items()]
    return "\n".join(lines) + "\n"


def sample(time: float, text: str) -> Sample:
    return Sample.of(Metrics.read(text, "echo"), time)


@pytest.fixture
def history() -> History:
    return History(Client("http://127.0.0.1:9/v1/models/echo"), kept=5)


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving() as running:
        yield running


def test_rates_and_percentiles_are_of_the_interval_and_not_since_the_start() -> None:
    before = sample(10.0, page({"OK": 1000}, within={"100": 1000, "200": 1000, "400": 1000, "+Inf": 1000}))
    after = sample(
        12.0, page({"OK": 1010, "INTERNAL": 4}, within={"100": 1000, "200": 1005, "400": 1010, "+Inf": 1010})
    )
    found = Interval.between(before, after)
    assert (found.start, found.end, found.seconds, found.restarted) == (10.0, 12.0, 2.0, False)
    assert found.model.requests == {"OK": 10, "INTERNAL": 4}
    assert (found.model.asked / found.seconds, found.model.failed / found.seconds) == (7.0, 2.0)
    # Of the 10 answers, 5 took 100 to 200 microseconds and 5 took 200 to 400.
    assert found.model.percentile(0.5) == pytest.approx(0.200)
    assert found.model.percentile(0.95) == pytest.approx(0.200 + 0.200 * 4.5 / 5)
    assert found.model.percentile(0.99) == pytest.approx(0.200 + 0.200 * 4.9 / 5)


def test_an_answer_beyond_the_last_limit_took_at_least_that() -> None:
    tally = Tally.of({("le", "100"): 1, ("le", "+Inf"): 4})
    assert tally.percentile(0.99) == pytest.approx(0.1)
    assert tally.answered == 4


def test_where_nothing_was_answered_there_is_no_percentile() -> None:
    same = page({"OK": 7}, within={"100": 7, "+Inf": 7})
    found = Interval.between(sample(1, same), sample(2, same))
    assert (found.model.asked, found.model.answered, found.model.percentile(0.5)) == (0, 0, None)


def test_what_asks_for_the_state_of_the_model_is_no_request() -> None:
    before, after = (
        page({"OK": 5}, within={"100": 5, "+Inf": 5}),
        page({"OK": 9}, within={"100": 6, "+Inf": 6}, aside=3),
    )
    assert Interval.between(sample(1, before), sample(2, after)).model.requests == {"OK": 1}


def test_all_doors_and_kinds_of_request_count_together() -> None:
    more = page({}, within={"100": 2, "+Inf": 8}).replace("REST", "GRPC").replace("predict", "Predict")
    text = page({"OK": 10}, within={"100": 2, "+Inf": 2}) + more
    assert sample(1, text).model["le", "100"] == 4
    assert sample(1, text).model["le", "+Inf"] == 10


def test_each_version_and_arm_has_rates_and_percentiles_of_its_own() -> None:
    def at(time: float, third: int, fourth: int, failed: int, nobody: int) -> Sample:
        parts = [
            of_version(3, "", {"OK": third}, {"100": third, "+Inf": third}),
            of_version(4, "canary", {"OK": fourth, "INTERNAL": failed}, {"100": 0, "900": fourth, "+Inf": fourth}),
            of_version("", "", {"NOT_FOUND": nobody}, {}),
        ]
        return sample(time, page({"OK": third + fourth}, within={}, versions="".join(parts)))

    found = Interval.between(at(0, 100, 10, 0, 1), at(5, 110, 30, 5, 1))
    assert found.versions.keys() == {V3, CANARY}, "nobody was asked in vain meanwhile"
    assert found.versions[V3].requests == {"OK": 10}
    assert found.versions[V3].percentile(0.5) == pytest.approx(0.050)
    assert found.versions[CANARY].requests == {"OK": 20, "INTERNAL": 5}
    assert found.versions[CANARY].percentile(0.5) == pytest.approx(0.100 + 0.800 / 2)
    assert Interval.between(at(0, 1, 1, 1, 1), at(1, 1, 1, 1, 3)).versions.keys() == {NOBODY}


def test_a_version_that_appears_counts_from_zero() -> None:
    first = sample(0, page({"OK": 5}, within={}, versions=of_version(1, "", {"OK": 5}, {"+Inf": 5})))
    both = of_version(1, "", {"OK": 5}, {"+Inf": 5}) + of_version(2, "", {"OK": 3}, {"+Inf": 3})
    found = Interval.between(first, sample(1, page({"OK": 8}, within={}, versions=both)))
    assert {who: tally.requests for who, tally in found.versions.items()} == {(2, ""): {"OK": 3}}


def test_a_label_may_hold_anything() -> None:
    text = of_version(1, r"a \"b\\c,d=\"", {"OK": 5}, {})
    assert list(sample(0, text).versions) == [(1, 'a "b\\c,d="')]


def test_a_counter_that_fell_is_a_restart_and_never_a_negative_rate() -> None:
    before = sample(0, page({"OK": 500, "INTERNAL": 9}, within={"100": 400, "200": 500, "+Inf": 500}))
    after = sample(1, page({"OK": 6}, within={"100": 0, "200": 6, "+Inf": 6}))
    found = Interval.between(before, after)
    assert found.restarted
    assert found.model.requests == {"OK": 6}
    assert found.model.percentile(0.5) == pytest.approx(0.150)


def test_arms_that_begin_at_zero_are_a_new_split_and_no_restart() -> None:
    def at(time: float, model: int, arm: int) -> Sample:
        return sample(
            time, page({"OK": model}, within={}, versions=of_version(4, "canary", {"OK": arm}, {"+Inf": arm}))
        )

    found = Interval.between(at(0, 100, 90), at(1, 105, 5))
    assert not found.restarted
    assert found.versions[CANARY].requests == {"OK": 5}
    assert found.versions[CANARY].answered == 5


def test_what_was_not_seen_is_a_gap_and_no_rate(history: History) -> None:
    for time, count in ((100, 0), (101, 10)):
        history.add(sample(time, page({"OK": count}, within={})))
    history.miss(102, "refused")
    assert (history.until, history.problem, history.gaps) == (102, "refused", [(101, 102)])
    history.add(sample(103, page({"OK": 1000}, within={})))
    assert (history.problem, history.gaps) == (None, [(101, 103)])
    history.add(sample(104, page({"OK": 1007}, within={})))
    assert [(each.start, each.end, each.model.asked) for each in history.intervals] == [(100, 101, 10), (103, 104, 7)]
    assert history.gaps == [(101, 103)]
    assert not any(each.restarted for each in history.intervals)


def test_a_restart_within_a_gap_is_seen_after_it(history: History) -> None:
    history.add(sample(0, page({"OK": 50}, within={})))
    history.miss(1, "refused")
    for time in (2, 3, 4):
        history.add(sample(time, page({"OK": time}, within={})))
    assert [(each.start, each.restarted) for each in history.intervals] == [(2, True), (3, False)]


def test_only_the_last_intervals_are_kept(history: History) -> None:
    for time in range(20):
        history.add(sample(time, page({"OK": time * time}, within={})))
    assert [each.start for each in history.intervals] == [14, 15, 16, 17, 18]
    assert [each.model.asked for each in history.intervals] == [29, 31, 33, 35, 37]


def test_several_intervals_are_one_without_what_lies_between_them(history: History) -> None:
    assert history.lately(10) is None
    answers = of_version(3, "", {"OK": 0}, {"100": 0, "+Inf": 0})
    for time, count in ((0, 0), (1, 100), (2, 200), (4, 300), (5, 400)):
        if time == 4:
            history.miss(3, "refused")
        answers = of_version(3, "", {"OK": count}, {"100": count // 2, "300": count, "+Inf": count})
        history.add(sample(time, page({"OK": count}, within={"100": count, "+Inf": count}, versions=answers)))
    found = history.lately(60)
    assert found is not None
    assert (found.start, found.end, found.seconds) == (0, 5, 3)
    assert (found.model.asked, found.versions[V3].asked) == (300, 300)
    assert found.versions[V3].percentile(0.75) == pytest.approx(0.200)
    last = history.lately(1)
    assert last is not None
    assert last.start == 4


def test_two_looks_at_one_moment_make_no_interval(history: History) -> None:
    for count in (1, 2):
        history.add(sample(5, page({"OK": count}, within={})))
    assert history.intervals == ()


def test_a_server_that_does_not_answer_is_a_gap_and_no_exception(fake: Fake) -> None:
    with Client(fake.url, timeout=5) as client:
        history = History(client, kept=10)
        fake.answers[PAGE] = (200, page({"OK": 1}, within={}))
        history.look()
        fake.answers[PAGE] = (503, "busy")
        history.look()
        assert history.problem == "UNAVAILABLE: no metrics"
        fake.answers[PAGE] = (200, ':tensorflow:serving:request_count{model_name="echo",status="OK"} many\n')
        history.look()
        assert history.problem == "a page that holds no metrics"
        fake.answers[PAGE] = (200, page({"OK": 4}, within={}))
        history.look()
        assert history.problem is None
        assert history.intervals == ()
        history.look()
        assert [each.model.asked for each in history.intervals] == [0]


def test_a_server_that_never_answered_is_an_error(fake: Fake) -> None:
    with pytest.raises(ServerUnreachable), Client("http://127.0.0.1:9/v1/models/echo") as client:
        History(client, kept=1).look()
    with pytest.raises(RequestRefused, match="monitoring_config"), Client(fake.url) as client:
        History(client, kept=1).look()


def test_time_only_goes_on(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(fake.url) as client:
        history = History(client, kept=1)
        fake.answers[PAGE] = (200, page({"OK": 1}, within={}))
        monkeypatch.setattr("time.time", lambda: 0.0)
        before = history.until
        history.look()
        assert before < history.until < before + 60


def test_a_real_server_is_seen_to_answer_what_it_was_asked(live: Process) -> None:
    url = f"{live.url}/v1/models/half_plus_two"
    with Client(url) as client:
        history = History(client, kept=10)
        history.look()
        for _ in range(30):
            client.predict([1.0, 2.0])
        with Client(url, label="stable") as stable:
            for _ in range(20):
                stable.predict([1.0])
        assert live.ask.post("/v1/models/half_plus_two:predict", {"instances": ["no"]}).status == 400
        live.ask.get("/v1/models/half_plus_two")
        history.look()
        (found,) = history.intervals
        assert found.model.requests == {"OK": 50, "INVALID_ARGUMENT": 1}
        assert found.model.answered == 50
        percentiles = [found.model.percentile(share) for share in (0.5, 0.95, 0.99)]
        assert all(value is not None and 0 < value < 60_000 for value in percentiles)
        assert percentiles == sorted(percentiles, key=lambda value: value or math.inf)
        assert history.tells_versions
        # Versions 1 (stable) and 2 are served; the newest is asked where none is named.
        assert found.versions[1, ""].requests == {"OK": 20}
        assert found.versions[2, ""].requests["OK"] == 30
        assert found.versions[1, ""].answered == 20
        assert not found.restarted
        history.look()
        assert history.intervals[-1].model.asked == 0
        assert json.dumps(history.gaps) == "[]"
