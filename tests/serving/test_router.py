"""Requests are dealt out as the shares say, the same key to the same arm, and none is lost with one arm."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serving.stand_ins import StandInModels, half_plus_two
from tfdeploy_magic.errors import InputError
from tfdeploy_magic.serving.lineup import Arm
from tfdeploy_magic.serving.router import KEY_HEADER, LONGEST_KEY, Router, Routing, Split, in_header
from tfdeploy_magic.serving.status import Refusal

KEYS = [f"user-{number}" for number in range(20_000)]


def arms(*shares: float, model: str = "half") -> tuple[Arm, ...]:
    """Return the arms a, b, c ..., which answer by the versions 1, 2, 3 ..."""
    return tuple(Arm("abcdefghijklmnopqrst"[at], share, model, at + 1) for at, share in enumerate(shares))


def split(*shares: float, model: str = "half") -> Split:
    return Split(model, arms(*shares, model=model))


def asked(**headers: str) -> Routing:
    return Routing({name.replace("_", "-"): value for name, value in headers.items()})


@pytest.fixture
def models() -> StandInModels:
    return StandInModels(
        {"half": {1: half_plus_two(1), 2: half_plus_two(2)}, "other": {7: half_plus_two(7, name="other")}},
        labels={"half": {"stable": 1}},
    )


# Shares


@pytest.mark.parametrize("shares", [(0.9, 0.1), (0.5, 0.5), (0.2, 0.3, 0.5), (1.0,)])
def test_requests_without_a_key_and_keys_are_dealt_out_as_the_shares_say(shares: tuple[float, ...]) -> None:
    random.seed(0)
    one = split(*shares)
    for found in (Counter(one.choose(None).name for _ in KEYS), Counter(one.arm_of(key).name for key in KEYS)):
        for arm in one.arms:
            deviation = (len(KEYS) * arm.share * (1 - arm.share)) ** 0.5
            assert abs(found[arm.name] - len(KEYS) * arm.share) <= 4 * deviation


def test_keys_lie_evenly_between_0_and_1() -> None:
    one = split(*[0.05] * 20)
    found = Counter(one.arm_of(key).name for key in KEYS)
    expected = len(KEYS) / 20
    assert sum((found[arm.name] - expected) ** 2 / expected for arm in one.arms) < 43.8  # 1 in 1000, 19 degrees


def test_who_gets_which_arm_of_a_model_says_nothing_about_another() -> None:
    first, second = split(0.5, 0.5), split(0.5, 0.5, model="other")
    both = Counter((first.arm_of(key).name, second.arm_of(key).name) for key in KEYS)
    assert all(abs(count / len(KEYS) - 0.25) < 0.015 for count in both.values())
    assert len(both) == 4


@pytest.mark.parametrize("drawn", [0.0, 1 - 2.0**-53])
def test_shares_that_no_float_adds_up_to_1_leave_no_gap(monkeypatch: pytest.MonkeyPatch, drawn: float) -> None:
    monkeypatch.setattr(random, "random", lambda: drawn)
    for one in (split(*[0.1] * 10), split(*[1 / 3] * 3), split(0.9, 0.1)):
        assert one.choose(None) is one.arms[0 if drawn == 0 else -1]


# Keys


def test_a_key_gets_the_same_arm_in_every_process_and_for_good() -> None:
    one = split(0.5, 0.5)
    found = "".join(one.arm_of(f"user-{number}").name for number in range(16))
    assert found == "bbabaabbabbbbbbb"


def test_of_another_share_only_as_many_keys_change_their_arm_as_must() -> None:
    before, after = split(0.9, 0.1), split(0.5, 0.5)
    moved = Counter((before.arm_of(key).name, after.arm_of(key).name) for key in KEYS)
    assert moved["b", "a"] == 0
    assert abs(moved["a", "b"] / len(KEYS) - 0.4) < 0.015


def test_an_empty_key_is_none_and_a_long_one_is_refused() -> None:
    random.seed(0)
    one = split(0.5, 0.5)
    assert {one.choose("").name for _ in range(50)} == {"a", "b"}
    one.choose("x" * LONGEST_KEY)
    for key in ("x" * (LONGEST_KEY + 1), "é" * (LONGEST_KEY // 6 + 1)):
        with pytest.raises(Refusal, match=f"INVALID_ARGUMENT: {KEY_HEADER} is longer than 1024 characters"):
            one.choose(key)


@given(st.text(max_size=20))
def test_any_key_fits_into_a_header_and_means_the_same_there(key: str) -> None:
    sent = in_header(key)
    assert sent.isascii()
    assert sent.isprintable()
    assert sent == sent.strip()
    one = split(*[0.05] * 20)
    assert one.arm_of(sent) is one.arm_of(key)


def test_a_key_of_plain_ascii_travels_as_it_is() -> None:
    for key in ("user-7", "a b", "50%", "%C3%BC", '"{}"', ""):
        assert in_header(key) == key
    for key, sent in (
        ("zwölf", "zw%C3%B6lf"),
        (" a", "%20a"),
        ("a\r\nb: c", "a%0D%0Ab%3A%20c"),
        ("\ud800", "%ED%A0%80"),
    ):
        assert in_header(key) == sent


# What is set

WRONG = [
    (arms(0.9, 0.2), "shares of 0.9, 0.2"),
    (arms(0.5), "shares of 0.5"),
    (arms(1.5, -0.5), "shares of 1.5, -0.5"),
    (arms(1.0, 0.0), "shares of 1, 0"),
    (arms(float("nan"), 1.0), "shares of nan, 1"),
    ((Arm("a", 0.5, "half", 1), Arm("a", 0.5, "half", 2)), "arms called 'a', 'a'"),
    ((Arm("", 1.0, "half"),), "arms called ''"),
]


@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_a_split_that_cannot_be_changes_nothing(wrong: tuple[Arm, ...], said: str) -> None:
    router = Router()
    router.set({"half": arms(0.9, 0.1)})
    with pytest.raises(InputError, match="the requests of half cannot be split like this") as raised:
        router.set({"other": arms(1.0), "half": wrong})
    assert raised.value.found == said
    assert router.routes == {"half": arms(0.9, 0.1)}


def test_what_is_set_replaces_all_and_what_stays_as_it_is_goes_on() -> None:
    begun: list[tuple[str, int]] = []
    router = Router(lambda split: begun.append((split.model, len(split.arms))))
    router.set({"half": arms(0.9, 0.1), "other": arms(1.0)})
    half = router.split("half")
    router.set({"half": list(arms(0.9, 0.1)), "other": ()})
    assert (router.split("half") is half, router.routes) == (True, {"half": arms(0.9, 0.1)})
    assert begun == [("half", 2), ("other", 1)]
    router.set({})
    assert (router.routes, router.split("half"), router.choose("half", "user-7")) == ({}, None, None)
    router.set({"half": arms(0.9, 0.1)})
    assert begun[2:] == [("half", 2)]  # nobody was split meanwhile: it is another test


def test_a_split_is_told_of_before_it_answers() -> None:
    seen: list[Any] = []
    router = Router(lambda split: seen.append(router.split(split.model)))
    router.set({"half": arms(0.5, 0.5)})
    assert seen == [None]
    chosen = router.choose("half", "user-7")
    assert chosen is not None
    assert chosen in arms(0.5, 0.5)


# Who answers


def held(router: Router, models: StandInModels, routing: Routing, *which: Any) -> tuple[str, int]:
    with router.hold(models, routing, *which) as servable:
        return servable.name, servable.version


def test_without_a_split_no_header_is_looked_at(models: StandInModels) -> None:
    routing = Routing(None)
    assert held(Router(), models, routing, "half") == ("half", 2)
    assert (routing.arm, routing.split) == ("", None)


def test_a_request_that_names_a_version_or_a_label_gets_that(models: StandInModels) -> None:
    router = Router()
    router.set({"half": arms(1.0)})
    for which, version in (((2, None), 2), ((None, "stable"), 1)):
        routing = Routing(None)
        assert held(router, models, routing, "half", *which) == ("half", version)
        assert (routing.arm, routing.split) == ("", None)


def test_the_arm_answers_that_the_key_says(models: StandInModels) -> None:
    router = Router()
    router.set({"half": (Arm("stable", 0.5, "half", label="stable"), Arm("other", 0.5, "other"))})
    seen = set()
    for key in KEYS[:20]:
        routing = asked(x_tfdeploy_key=key)
        who = held(router, models, routing, "half")
        assert {"stable": ("half", 1), "other": ("other", 7)}[routing.arm] == who
        assert routing.arm == router.choose("half", key).name  # type: ignore[union-attr]
        assert routing.split is router.split("half")
        seen.add(who)
    assert len(seen) == 2


@pytest.mark.parametrize(
    "gone", [Arm("a", 0.9, "half", 9), Arm("a", 0.9, "half", label="gone"), Arm("a", 0.9, "nowhere")]
)
def test_where_an_arm_is_gone_the_first_that_is_there_answers_and_is_named(models: StandInModels, gone: Arm) -> None:
    router = Router()
    router.set({"half": (gone, Arm("b", 0.05, "half", 2), Arm("c", 0.05, "half", 1))})
    found = Counter()  # type: ignore[var-annotated]
    for key in KEYS[:300]:
        routing = asked(x_tfdeploy_key=key)
        found[held(router, models, routing, "half"), routing.arm] += 1
    assert found.keys() == {(("half", 2), "b"), (("half", 1), "c")}
    assert found[("half", 2), "b"] > 250


def test_where_no_arm_is_there_the_one_that_was_chosen_is_refused_in_the_usual_words(models: StandInModels) -> None:
    router = Router()
    router.set({"half": (Arm("a", 0.5, "half", 8), Arm("b", 0.5, "half", 9))})
    for key in KEYS[:10]:
        routing = asked(x_tfdeploy_key=key)
        chosen = router.choose("half", key)
        assert chosen is not None
        with pytest.raises(Refusal) as raised:
            router.hold(models, routing, "half")
        assert str(raised.value) == f"NOT_FOUND: Servable not found for request: Specific(half, {chosen.version})"
        assert routing.arm == chosen.name


def test_a_key_that_http_cannot_read_is_refused_and_not_taken_for_none(models: StandInModels) -> None:
    router = Router()
    router.set({"half": arms(1.0)})
    with pytest.raises(Refusal, match="x-tfdeploy-key must be ASCII: percent-encode what is not"):
        router.hold(models, Routing({KEY_HEADER: None}), "half")
