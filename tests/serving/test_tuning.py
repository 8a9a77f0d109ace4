from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.views.test_load import ran
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.errors import ContractBroken, DataError, OutputError
from tfdeploy_magic.serving import configs, flags, tuning
from tfdeploy_magic.serving.load import Load
from tfdeploy_magic.serving.tuning import (
    DEFAULTS,
    Duel,
    Grid,
    Settings,
    Trial,
    Tuning,
    best_of,
    may_be_put_together,
    parameters_text,
    search,
    write_parameters,
)

SETTINGS = st.builds(
    Settings,
    st.integers(1, 10_000),
    st.integers(0, 10**6),
    st.integers(1, 256),
    st.integers(0, 64),
    st.integers(0, 64),
)
untimed = hypothesis.settings(deadline=None)

GRIDS = st.builds(Grid, st.integers(1, 1024), st.integers(1, 64), st.booleans(), st.booleans(), st.floats(0, 10**4))


def seen(rate: float, p99: float, failed: int = 0) -> Load:
    """Return what clients saw: so many answers a second, all of them after the same time."""
    load = ran(8, rate, 1.0, seconds=1.0, failures={"503": failed} if failed else {})
    return replace(load, latencies_ms=np.full(load.latencies_ms.size, p99))


def tried(settings: Settings, rate: float, p99: float, failed: int = 0) -> Trial:
    return Trial(settings, seen(rate, p99, failed))


class Fake:
    """A server whose throughput and p99 are made up from its settings."""

    def __init__(self, rate: Any = lambda settings: 100.0, p99: Any = lambda settings: 10.0) -> None:
        self.rate, self.p99 = rate, p99
        self.asked: list[Settings] = []

    def measure(self, settings: Settings) -> Trial:
        self.asked.append(settings)
        return tried(settings, self.rate(settings), self.p99(settings))

    def search(self, grid: Grid, target: float = 20.0, **more: Any) -> tuple[Trial, ...]:
        return search(self.measure(DEFAULTS), self.measure, grid, target, **more)


# The search


def test_the_search_climbs_one_setting_at_a_time_and_goes_round_again_where_that_gained_something() -> None:
    def rate(settings: Settings) -> float:
        # Batches are worth it with one thread in each operation only, which itself is worth a little.
        if settings.intra_op_parallelism != 1:
            return 50.0 if settings.max_batch_size else 100.0
        size = {8: 300.0, 4: 250.0, 2: 200.0}.get(settings.max_batch_size or 0, 110.0)
        return size + 10 * (settings.num_batch_threads == 4) + (settings.batch_timeout_micros == 1000)

    fake = Fake(rate)
    trials = fake.search(Grid(8, cpus=2))
    assert best_of(trials, 20.0).settings == Settings(8, 1000, 4, 1)
    assert [trial.settings for trial in trials] == fake.asked
    assert fake.asked[0] == DEFAULTS


def test_what_is_over_the_target_is_not_climbed_to_however_much_it_answers() -> None:
    fake = Fake(
        rate=lambda settings: 100.0 + (settings.max_batch_size or 0) + settings.batch_timeout_micros,
        p99=lambda settings: 5.0 + settings.batch_timeout_micros / 100,
    )
    best = best_of(fake.search(Grid(8, cpus=2)), 20.0).settings
    assert (best.max_batch_size, best.batch_timeout_micros) == (32, 1000)


def test_batches_that_pay_off_only_one_at_a_time_are_found_where_the_defaults_miss_the_target() -> None:
    fake = Fake(
        rate=lambda settings: 900.0 if settings.max_batch_size else 200.0,
        p99=lambda settings: (
            210.0 if settings.max_batch_size is None else 60.0 + 300 * (settings.num_batch_threads > 1)
        ),
    )
    assert best_of(fake.search(Grid(32, cpus=2)), 100.0).settings == Settings(32, num_batch_threads=1)


def test_where_nothing_keeps_the_target_the_quickest_is_the_best() -> None:
    fake = Fake(rate=lambda settings: 1000.0, p99=lambda settings: 30.0 - (
        settings.intra_op_parallelism == 1) - 2 * (settings.max_batch_size == 4))  # fmt: skip
    trials = fake.search(Grid(8, cpus=2))
    assert not any(trial.meets(20.0) for trial in trials)
    assert best_of(trials, 20.0).p99_ms == 27.0


@untimed
@given(GRIDS, st.integers(0, 2**32), st.floats(0.5, 100))
def test_whatever_is_measured_the_search_ends_tries_nothing_twice_and_finds_the_best_of_what_it_tried(
    grid: Grid, seed: int, target: float
) -> None:
    draw = np.random.default_rng(seed)
    fake = Fake(lambda settings: draw.uniform(1, 100), lambda settings: draw.uniform(0.1, 100))
    trials = fake.search(grid, target)
    tried_ones = [trial.settings for trial in trials]
    assert len(set(tried_ones)) == len(tried_ones)
    assert tried_ones == fake.asked
    best = best_of(trials, target)
    within = [trial for trial in trials if trial.p99_ms <= target]
    if within:
        assert best.load is not None
        assert all(best.load.throughput >= trial.load.throughput for trial in within if trial.load)
        assert best in within
    else:
        assert best.p99_ms == min(trial.p99_ms for trial in trials)
    for settings in tried_ones:
        assert grid.together or settings.max_batch_size is None
        assert grid.session or (settings.intra_op_parallelism, settings.inter_op_parallelism) == (0, 0)
        assert settings.max_batch_size is None or settings.max_batch_size >= grid.rows
        assert settings.batch_timeout_micros <= grid.longest_micros


@pytest.mark.parametrize("most", [0, 1, 5])
def test_no_trial_begins_when_the_time_is_over(most: int) -> None:
    fake = Fake()
    trials = fake.search(Grid(8), may_go_on=lambda: len(fake.asked) <= most)
    assert len(trials) == len(fake.asked) == most + 1


def test_one_request_at_a_time_has_nothing_to_be_put_together_with() -> None:
    fake = Fake()
    fake.search(Grid(1, cpus=2))
    assert {settings.max_batch_size for settings in fake.asked} <= {None, 4}
    fake.search(Grid(1, session=False, together=False))
    assert fake.asked[-1] == DEFAULTS


def test_a_trial_that_failed_or_never_started_is_never_the_best() -> None:
    trials = [
        tried(DEFAULTS, 10, 90),
        tried(Settings(2), 1000, 1, failed=1),
        Trial(Settings(4), problem="no room"),
        tried(Settings(8), 0, 1),
    ]
    assert best_of(trials, 20.0) is trials[0]
    assert best_of(trials[1:], 20.0) is trials[1], "of those that all failed the first"


def test_of_several_alike_the_first_is_the_best() -> None:
    trials = [tried(DEFAULTS, 100, 9), tried(Settings(2), 100, 5)]
    assert best_of(trials, 20.0) is trials[0]


# The duel


def of(throughputs: Sequence[float], p99s: Sequence[float], base: float = 18.0, failed: int = 0) -> Tuning:
    """Return a duel of defaults with 1000 answers/s against settings that are so many times as good in each round."""
    trials = (tried(DEFAULTS, 1000, base), tried(Settings(8), 2000, 1))
    theirs = tuple(seen(1000, base) for _ in throughputs)
    ours = tuple(seen(1000 * more, base * other, failed) for more, other in zip(throughputs, p99s, strict=True))
    return Tuning(20.0, trials, Duel(theirs, ours))


@pytest.mark.parametrize(
    ("found", "gain", "meets"),
    [
        (of([1.3, 1.2, 1.4], [1, 1, 1]), "throughput", True),
        (of([1.3, 0.99, 1.4], [0.5, 0.5, 0.5]), "nothing", True),
        (of([1.03, 1.04, 1.02], [1, 1, 1]), "nothing", True),
        (of([1.3, 1.3, 1.3], [1.2, 1.2, 1.2]), "nothing", True),
        (of([1.3, 1.3, 1.3], [1, 1, 1], failed=1), "nothing", True),
        (of([0.8, 0.7, 0.9], [0.5, 0.4, 0.6], base=30), "target", True),
        (of([0.8, 0.7, 0.9], [0.5, 0.4, 1.1], base=30), "nothing", False),
        (of([1.5, 1.5, 1.5], [0.9, 0.8, 0.9], base=30), "p99", False),
        (of([1.5, 1.5, 1.5], [0.9, 0.8, 1.0], base=30), "nothing", False),
        (of([1.5, 1.5, 1.5], [0.98, 0.97, 0.96], base=30), "nothing", False),
        (of([0.8, 0.7, 0.9], [0.5, 0.4, 0.6], base=30, failed=1), "nothing", False),
        (of([0, 0, 0], [1, 1, 1]), "nothing", True),
    ],
)
def test_only_what_is_better_in_every_round_gains_something(found: Tuning, gain: str, meets: bool) -> None:
    assert (found.gain, found.meets) == (gain, meets)
    assert found.chosen is (found.trials[0] if gain == "nothing" else found.trials[1])


def test_settings_that_lose_no_request_where_the_defaults_do_keep_the_target() -> None:
    found = of([1.0, 1.0], [1.0, 1.0])
    assert found.duel is not None
    lossy = Duel(tuple(seen(1000, 18.0, failed=3) for _ in range(2)), found.duel.tuned)
    assert replace(found, duel=lossy).gain == "target"


def test_without_a_duel_nothing_was_gained() -> None:
    alone = Tuning(20.0, (tried(DEFAULTS, 100, 19),))
    assert (alone.gain, alone.meets, alone.chosen.settings) == ("nothing", True, DEFAULTS)
    assert not Tuning(18.0, alone.trials).meets


@untimed
@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=8), st.floats(1, 100))
def test_a_ratio_is_the_median_of_the_rounds_and_their_range(rounds: list[tuple[float, float]], base: float) -> None:
    duel = of([ours for ours, _ in rounds], [ours for _, ours in rounds], base).duel
    assert duel is not None and duel.throughput is not None and duel.p99 is not None
    quotients = [ours.throughput / theirs.throughput for ours, theirs in zip(duel.tuned, duel.defaults, strict=True)]
    assert duel.throughput.median == pytest.approx(float(np.median(quotients)))
    assert (duel.throughput.low, duel.throughput.high) == (min(quotients), max(quotients))
    assert duel.p99.low == pytest.approx(min(p99 for _, p99 in rounds))


# Whether requests may go together

ROWS = np.arange(24, dtype="float32").reshape(8, 1, 3)
REQUESTS: list[Arrays] = [{"x": rows} for rows in ROWS]


def refuse_many(request: Arrays) -> Any:
    if len(request["x"]) > 1:
        raise DataError("too many rows", found="4", wanted="1", cure="Send one.")
    return request["x"]


@pytest.mark.parametrize(
    ("answer", "together"),
    [
        (lambda request: request["x"] * 2, True),
        (lambda request: request["x"] * 2 + 1e-7, True),
        (lambda request: {"y": request["x"], "text": np.array([b"a"] * len(request["x"]), object)}, True),
        (lambda request: request["x"] - request["x"].mean(0), False),
        (lambda request: request["x"] / request["x"].max(), False),
        (lambda request: request["x"].sum(), False),
        (lambda request: np.cumsum(request["x"], axis=0), False),
        (lambda request: np.array([str(len(request["x"])).encode()] * len(request["x"]), object), False),
        (lambda request: np.arange(len(request["x"])), False),
        (refuse_many, False),
    ],
)
def test_requests_go_together_only_where_rows_are_answered_as_they_are_alone(answer: Any, together: bool) -> None:
    assert may_be_put_together(answer, REQUESTS) is together


def test_requests_that_do_not_differ_or_cannot_be_joined_show_nothing() -> None:
    def answer(request: Arrays) -> Any:
        return request["x"]

    assert not may_be_put_together(answer, REQUESTS[:1])
    assert not may_be_put_together(answer, REQUESTS[:1] * 3)
    assert not may_be_put_together(answer, [{"x": np.zeros((1, 2))}, {"x": np.ones((1, 3))}])


# The file


@untimed
@given(SETTINGS, st.integers(1, 10_000), st.text())
def test_the_file_reads_back_as_the_settings_whatever_stands_above_them(
    tmp_path_factory: pytest.TempPathFactory, settings: Settings, queue: int, said: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "batching.pbtxt"
    text = write_parameters(settings, path, queue=queue, said=said, force=True)
    assert path.read_text(encoding="utf-8") == text
    rules = configs.read_batching_parameters(path)
    assert rules == settings.rules(queue)
    assert (rules.max_batch_size, rules.num_batch_threads) == (settings.max_batch_size, settings.num_batch_threads)
    assert (rules.batch_timeout_micros, rules.max_enqueued_batches) == (settings.batch_timeout_micros, queue)


def test_the_file_has_the_fields_of_tensorflow_serving() -> None:
    assert parameters_text(Settings(32, 1000, 2), said="two\nlines") == (
        "# two lines\n"
        "max_batch_size { value: 32 }\n"
        "batch_timeout_micros { value: 1000 }\n"
        "max_enqueued_batches { value: 100 }\n"
        "num_batch_threads { value: 2 }\n"
    )


def test_a_file_that_is_there_stays_unless_force_is_given(tmp_path: Path) -> None:
    path = tmp_path / "batching.pbtxt"
    path.write_text("mine")
    with pytest.raises(OutputError, match="add --force"):
        write_parameters(Settings(8), path, force=False)
    assert path.read_text() == "mine"
    write_parameters(Settings(8), path, force=True)
    assert [each.name for each in tmp_path.iterdir()] == ["batching.pbtxt"]


def test_what_does_not_read_back_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "read_batching_parameters", lambda path: Settings(9).rules())
    with pytest.raises(ContractBroken):
        write_parameters(Settings(8), tmp_path / "batching.pbtxt", force=False)
    assert list(tmp_path.iterdir()) == []


@untimed
@given(st.builds(replace, SETTINGS, max_batch_size=st.none() | st.integers(1, 99)))
def test_the_flags_are_the_servers_own(settings: Settings) -> None:
    parsed = flags.parse(["--model_base_path=/models", *settings.flags(Path("/tmp/batching.pbtxt"))])
    assert parsed.notes == ()
    assert parsed.enable_batching == (settings.max_batch_size is not None)
    assert (parsed.batching_parameters_file is None) == (settings.max_batch_size is None)
    assert parsed.parallelism == (settings.intra_op_parallelism, settings.inter_op_parallelism)


def test_settings_are_named_by_what_is_not_left_to_the_server() -> None:
    assert str(DEFAULTS) == str(Settings()) == "the defaults"
    assert str(Settings(8, 500, 3, 1, 2)) == (
        "max_batch_size=8, batch_timeout_micros=500, num_batch_threads=3, intra_op=1, inter_op=2"
    )
    assert str(Settings(intra_op_parallelism=1)) == "intra_op=1"
    names = [str(settings) for settings in itertools.chain(*(axis(Settings(8)) for axis in Grid(8, cpus=4).axes))]
    assert len(set(names)) == len(set(itertools.chain(*(axis(Settings(8)) for axis in Grid(8, cpus=4).axes))))


def test_two_servers_alike_are_told_apart_no_more_often_than_once_in_32_duels() -> None:
    draw = np.random.default_rng(0)

    def rounds() -> tuple[Any, ...]:
        speeds = draw.lognormal(0.0, 0.3, tuning.ROUNDS)
        return tuple(SimpleNamespace(throughput=speed, p99_ms=1.0, failed=0) for speed in speeds)

    trials = (tried(DEFAULTS, 100, 1), tried(Settings(8), 110, 1))
    gained = sum(Tuning(20.0, trials, Duel(rounds(), rounds())).gain == "throughput" for _ in range(2000))
    assert 0 < gained / 2000 < 1 / 32 + 0.01
