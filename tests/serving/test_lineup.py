from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfdeploy_magic.errors import InputError, NameNotFound
from tfdeploy_magic.serving import configs
from tfdeploy_magic.serving.lineup import Arm, Lineup, arms_of, shares_of, specific_config

A_VERSION_OF_DIGITS = {"labels": {"stable": 1, "canary": 2}, "found": [1, 2]}


def on_trial() -> Lineup:
    """Return version 1 as stable, and version 2 as canary."""
    first = Lineup().with_version(1, latest=None, label=None)
    return first.with_version(2, latest=1, label="canary")


# Which versions are loaded


@pytest.mark.parametrize(
    ("lineup", "loaded"),
    [
        (Lineup(), (5,)),
        (Lineup(keep=3), (2, 4, 5)),
        (Lineup(keep=9), (1, 2, 4, 5)),
        (Lineup(newest=4), (4,)),
        (Lineup(newest=3, keep=2), (1, 2)),
        (Lineup(labels={"stable": 1, "canary": 5}), (1, 5)),
        (Lineup(split=(Arm("2", 0.5, "m", version=2), Arm("5", 0.5, "m", version=5))), (2, 5)),
        (Lineup(labels={"gone": 3}), (5,)),
    ],
)
def test_of_the_versions_on_disk_the_newest_and_those_with_a_name_are_loaded(
    lineup: Lineup, loaded: tuple[int, ...]
) -> None:
    assert lineup.versions([4, 1, 5, 2]) == loaded


def test_a_server_finds_the_newest_versions_by_itself_and_is_told_of_all_others() -> None:
    follows = Lineup(keep=2).config("digits", "/models/digits", [1, 2, 3])
    assert (follows.name, follows.base_path, follows.model_platform) == ("digits", "/models/digits", "tensorflow")
    assert follows.model_version_policy.latest.num_versions == 2
    assert Lineup().config("digits", "/d", [1, 2]).model_version_policy.WhichOneof("policy_choice") is None
    told = on_trial().config("digits", "/d", [1, 2])
    assert list(told.model_version_policy.specific.versions) == [1, 2]
    assert dict(told.version_labels) == {"stable": 1, "canary": 2}


def test_a_config_is_one_that_a_server_takes(tmp_path: object) -> None:
    from tfdeploy_magic.serving.protos import model_server_config_pb2

    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.extend(
        [on_trial().config("a", "/a", [1, 2]), specific_config("b", "/b", [7], {"only": 7})]
    )
    configs.check_model_config(config)


# How it changes


def test_a_version_on_trial_makes_the_one_before_stable_once() -> None:
    lineup = on_trial()
    assert lineup.labels == {"stable": 1, "canary": 2}
    assert lineup.versions([1, 2]) == (1, 2)
    again = lineup.with_version(3, latest=2, label="canary")
    assert again.labels == {"stable": 1, "canary": 3}
    assert again.versions([1, 2, 3]) == (1, 3)


def test_the_first_version_may_be_stable_or_on_trial_and_nothing_was_before() -> None:
    for label in ("stable", "canary"):
        lineup = Lineup().with_version(1, latest=None, label=label)
        assert lineup.labels == {label: 1}
        assert lineup.before is None


def test_promoted_what_is_on_trial_is_stable_and_answers_alone() -> None:
    promoted = on_trial().promoted("digits", None, [1, 2])
    assert promoted.labels == {"stable": 2}
    assert promoted.versions([1, 2]) == (2,)
    assert promoted.newest is None, "later versions are newer still"


def test_promoted_an_older_version_keeps_newer_ones_out() -> None:
    promoted = Lineup().promoted("digits", "1", [1, 2, 3])
    assert promoted.versions([1, 2, 3]) == (1,)
    assert promoted.with_version(4, latest=1, label=None).versions([1, 2, 3, 4]) == (4,)


def test_promoted_an_arm_of_another_model_answers_everything() -> None:
    split = Lineup(split=(Arm("a", 0.9, "a"), Arm("b", 0.1, "b")))
    assert split.promoted("a", None, [1]).split == (Arm("b", 1.0, "b"),)
    assert split.promoted("a", "a", [1]).split == ()


def test_promoted_an_arm_by_version_ends_the_split() -> None:
    arms = (Arm("1", 0.9, "m", version=1), Arm("2", 0.1, "m", version=2))
    promoted = Lineup(split=arms).promoted("m", None, [1, 2])
    assert (promoted.split, promoted.versions([1, 2]), promoted.labels) == ((), (2,), {})
    assert Lineup(split=arms).promoted("m", "1", [1, 2]).versions([1, 2]) == (1,)


def test_promoted_a_model_is_served_as_it_was_rolled_back_to() -> None:
    split = Lineup(newest=1, split=(Arm("a", 0.5, "a"), Arm("b", 0.5, "b")))
    assert split.promoted("a", "a", [1, 2]).versions([1, 2]) == (1,)


def test_a_lineup_that_is_served_again_leaves_out_what_came_after_it() -> None:
    first = Lineup()
    later = first.with_version(2, latest=1, label=None)
    assert first.back_to(later).versions([1, 2]) == (1,)


@pytest.mark.parametrize(
    ("lineup", "what", "error", "said"),
    [
        (Lineup(), None, InputError, "no split, and no label but stable"),
        (Lineup(labels={"stable": 1}), None, InputError, "no split, and no label but stable"),
        (Lineup(labels={"x": 1, "y": 2}), None, InputError, "x, y"),
        (Lineup(labels={"x": 1}), "z", NameNotFound, "one of x, 1, 2"),
        (Lineup(), "7", NameNotFound, "one of 1, 2"),
    ],
)
def test_what_to_promote_must_be_clear(lineup: Lineup, what: str | None, error: type[InputError], said: str) -> None:
    with pytest.raises(error, match=said):
        lineup.promoted("m", what, [1, 2])


def test_each_change_can_be_undone_and_the_one_before_it_too() -> None:
    first = Lineup().with_version(1, latest=None, label=None)
    second = first.with_version(2, latest=1, label="canary")
    split = second.with_split((Arm("stable", 0.9, "m", label="stable"), Arm("canary", 0.1, "m", label="canary")))
    promoted = split.promoted("m", None, [1, 2])
    back = promoted.rolled_back("m")
    assert back == split
    assert back.rolled_back("m") == second
    undone = back.rolled_back("m").rolled_back("m")
    assert undone.versions([1, 2]) == (1,), "the version that was added is on disk and not served"
    assert undone.labels == {}
    with pytest.raises(InputError, match="nothing that was served before"):
        undone.rolled_back("m")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12, unique=True), st.integers(1, 5), st.data())
def test_after_any_changes_all_that_has_a_name_is_loaded(numbers: list[int], keep: int, data: st.DataObject) -> None:
    lineup, found = Lineup(keep=keep), list[int]()
    for number in sorted(numbers):
        latest = max(lineup.versions(found), default=None)
        found.append(number)
        lineup = lineup.with_version(number, latest=latest, label=data.draw(st.sampled_from([None, "canary", "x"])))
        assert number in lineup.versions(found)
        if data.draw(st.booleans()) and lineup.labels:
            lineup = lineup.promoted("m", data.draw(st.sampled_from(sorted(lineup.labels))), found)
            assert lineup.versions(found)
        assert set(lineup.labels.values()) <= set(lineup.versions(found))
        if lineup.before is not None and data.draw(st.booleans()):
            lineup = lineup.rolled_back("m")
            assert lineup.versions(found)


# Splits as they are written


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("90/10", ((None, 0.9), (None, 0.1))),
        (" 50 / 25/25 ", ((None, 0.5), (None, 0.25), (None, 0.25))),
        ("99.5/0.5", ((None, 0.995), (None, 0.005))),
        ("90%/10%", ((None, 0.9), (None, 0.1))),
        ("stable=90,canary=10", (("stable", 0.9), ("canary", 0.1))),
        ("2=90/3=10", (("2", 0.9), ("3", 0.1))),
    ],
)
def test_shares_are_written_as_numbers_or_with_names(text: str, shares: object) -> None:
    assert shares_of(text) == shares


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("90/20", "add up to 110"),
        ("90/5", "add up to 95"),
        ("100", "at least two"),
        ("100/0", "at least two shares above 0"),
        ("a=50,a=50", "twice"),
        ("a=90,10", "is no share"),
        ("=90,=10", "is no share"),
        ("-10/110", "is no share"),
        ("", "is no share"),
        ("nan/10", "is no share"),
        ("1e2/0", "is no share"),
    ],
)
def test_what_is_no_split_is_refused_with_how_to_write_one(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        shares_of(text)


def test_names_are_models_labels_or_versions_in_this_order() -> None:
    known = [Arm("a", 0, "a"), Arm("b", 0, "b")]
    arms = arms_of(shares_of("b=40,canary=30,1=30"), "a", known, **A_VERSION_OF_DIGITS)  # type: ignore[arg-type]
    assert arms == (Arm("b", 0.4, "b"), Arm("canary", 0.3, "a", label="canary"), Arm("1", 0.3, "a", version=1))
    numbers = arms_of(shares_of("90/10"), "a", known, **A_VERSION_OF_DIGITS)  # type: ignore[arg-type]
    assert numbers == (replace(known[0], share=0.9), replace(known[1], share=0.1))


def test_shares_in_another_order_leave_the_arms_in_theirs() -> None:
    known = [Arm("stable", 0.9, "m", label="stable"), Arm("canary", 0.1, "m", label="canary")]
    arms = arms_of(shares_of("canary=20,stable=80"), "m", known, **A_VERSION_OF_DIGITS)  # type: ignore[arg-type]
    assert [(arm.name, arm.share) for arm in arms] == [("stable", 0.8), ("canary", 0.2)]


def test_a_share_for_nobody_is_refused() -> None:
    with pytest.raises(NameNotFound, match=r"'beta' cannot have a share of a.*\n?.*one of stable, canary, 1, 2"):
        arms_of(shares_of("stable=90,beta=10"), "a", [], **A_VERSION_OF_DIGITS)  # type: ignore[arg-type]
    with pytest.raises(NameNotFound, match="'3' cannot"):
        arms_of(shares_of("1=90,3=10"), "a", [], **A_VERSION_OF_DIGITS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="something to split with"):
        arms_of(shares_of("90/10"), "a", [], labels={}, found=[1])
