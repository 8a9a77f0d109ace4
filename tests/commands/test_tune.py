from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pydantic import ValidationError

from tests.serving.saved_models import save
from tests.serving.test_tuning import seen
from tfdeploy_magic.commands import tune as module
from tfdeploy_magic.commands.declaration import COMMANDS
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.commands.serve import serve
from tfdeploy_magic.commands.tune import Tune, Tuned, tune
from tfdeploy_magic.errors import DataError, OutputError, RequestRefused, ServingError, VersionFailed
from tfdeploy_magic.jobs.progress import Progress
from tfdeploy_magic.notebook.parser import CommandParser
from tfdeploy_magic.serving import configs, hosting
from tfdeploy_magic.serving.tuning import DEFAULTS, Duel, Grid, Settings, Trial
from tfdeploy_magic.sources.samples import NamedData

ROWS = np.arange(12, dtype="float32").reshape(6, 2)
SHORT: dict[str, Any] = {"p99": "60s", "clients": 2, "seconds": 1}
BEST = Settings(4, 500, 3, 1)


def write(folder: Path) -> None:
    """Write a model of which version 2 is served: x -> 2x, and by another signature x less the mean of its column."""
    import tensorflow as tf

    specs = {"x": tf.TensorSpec([None, 2])}
    save(
        folder / "2",
        {
            "serving_default": (lambda x: {"y": 2.0 * x}, specs),
            "centred": (lambda x: {"y": x - tf.reduce_mean(x, axis=0)}, specs),
        },
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("doubling")
    write(folder)
    endpoint = serve(str(folder / "2"), name="doubling", flags="--enable_batching --max_num_load_retries=2")
    yield endpoint
    endpoint.stop()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def three_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as are tried, however fast the machine is."""
    monkeypatch.setattr(module._Bench, "may_go_on", lambda bench: bench._tried < 3)


def servers() -> set[int]:
    """The processes below this one that are no fork server: workers, which servers are, and clients."""
    below = psutil.Process().children(recursive=True)
    return {each.pid for each in below if each.status() != psutil.STATUS_ZOMBIE and not each.children()}


class Made:
    """Stands for the bench: settings answer as it was told, and no server is started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rounds: tuple[float, ...], p99: float = 10.0) -> None:
        self.rounds, self.p99 = rounds, p99
        for name in ("first", "measure", "duel"):
            made = getattr(self, name)
            monkeypatch.setattr(module._Bench, name, lambda bench, *settings, made=made: made(*settings))
        monkeypatch.setattr(module._Bench, "grid", Grid(4, cpus=3))

    def first(self) -> Trial:
        return self.measure(DEFAULTS)

    def measure(self, settings: Settings) -> Trial:
        alike = sum(getattr(settings, name) == getattr(BEST, name) for name in vars(BEST))
        gained = alike if settings.max_batch_size else 0
        return Trial(settings, seen(100.0 + 10 * gained, self.p99 - 0.1 * gained))

    def duel(self, settings: Settings) -> Duel:
        assert settings == BEST
        ours = tuple(seen(1000 * more, self.p99) for more in self.rounds)
        return Duel(tuple(seen(1000, self.p99) for _ in self.rounds), ours)


# What is asked for


@pytest.mark.parametrize(
    ("written", "milliseconds"),
    [("20ms", 20), ("0.02s", 20), ("20", 20), (20, 20), (0.5, 0.5), ("1.5 ms", 1.5), (".5s", 500), ("800us", 0.8)],
)
def test_a_target_is_a_time_in_any_usual_form(written: Any, milliseconds: float) -> None:
    assert Tune(endpoint="http://127.0.0.1:9/v1/models/m", p99=written).p99 == pytest.approx(milliseconds)


@pytest.mark.parametrize("written", ["", "0", "-3ms", "20 parsecs", "ms", "nan", "inf", "1e3", True, "0.0s"])
def test_what_is_no_time_is_refused_with_what_would_be_one(written: Any) -> None:
    with pytest.raises(ValidationError, match="write a time above 0, as in 20ms"):
        Tune(endpoint="http://127.0.0.1:9/v1/models/m", p99=written)


def test_a_target_must_be_given_and_data_is_looked_for() -> None:
    with pytest.raises(ValidationError, match="--p99 20ms"):
        tune("http://127.0.0.1:9/v1/models/m")
    assert "PydanticUndefined" not in CommandParser(COMMANDS["tune"]).format_help()
    assert Tune(endpoint="http://127.0.0.1:9/v1/models/m", p99=20).data_to_find() == ("x",)


# What is refused


def test_a_server_of_somebody_else_cannot_be_tuned_from_here(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "hosts", {})
    with pytest.raises(ServingError, match="a server that this kernel has not started") as raised:
        tune(served.url, x=ROWS, **SHORT)
    assert raised.value.cure.startswith("%serve MODEL starts one here")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, DataError, "Name some: %tune ENDPOINT x_test"),
        ({"x": ROWS, "rows": 9}, DataError, "too few samples for one request"),
        ({"x": ROWS[:, :1]}, DataError, r"found the shape \[1, 1\]"),
        ({"x": ROWS, "output": Path("no/such/folder.pbtxt")}, OutputError, "no folder"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_measured(
    served: Endpoint, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    before = servers()
    with pytest.raises(error, match=words):
        tune(served, **options, **SHORT)
    assert servers() <= before


def test_a_file_that_is_there_is_not_replaced_without_force(served: Endpoint, folder: Path) -> None:
    (folder / "doubling-batching.pbtxt").write_text("mine")
    with pytest.raises(OutputError, match="add --force"):
        tune(served, x=ROWS, **SHORT)
    assert (folder / "doubling-batching.pbtxt").read_text() == "mine"


# What comes of it


def test_what_gains_something_is_written_and_read_back(
    served: Endpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Made(monkeypatch, (1.3, 1.2, 1.4))
    tuned = tune(served, x=NamedData("x_test", ROWS), p99="20ms", clients=4)
    path = folder / "doubling-batching.pbtxt"
    assert (tuned.chosen, tuned.tuning.gain, tuned.path) == (BEST, "throughput", path)
    rules = configs.read_batching_parameters(path)
    assert (rules.max_batch_size, rules.batch_timeout_micros, rules.num_batch_threads) == (4, 500, 3)
    assert path.read_text().startswith("# Measured by %tune doubling --p99 20ms with 4 clients\n")
    flags = f"--enable_batching --batching_parameters_file={path} --tensorflow_intra_op_parallelism=1"
    assert tuned.flags == f"--max_num_load_retries=2 {flags}", "what the server was given besides stays"
    assert repr(tuned) == f"<Tuned doubling: {BEST}>"
    text = tuned._repr_mimebundle_()["text/plain"]
    assert text.startswith("✓ tuned settings give 1.30× (1.20–1.40) the throughput: doubling http://")
    assert path.read_text().replace("\n", "\n  ").rstrip() in text
    assert f"next: %serve --stop doubling\n  next: %serve {tuned.model} --name doubling --flags '{tuned.flags}'" in text
    assert tuned.model.endswith("/2")
    assert "its server was started with --enable_batching" in text
    assert tuned.figure().axes
    assert tuned.trials[0].settings == DEFAULTS


def test_the_file_goes_where_it_was_asked_for(served: Endpoint, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Made(monkeypatch, (1.3, 1.2, 1.4))
    (folder / "b.txt").write_text("old")
    tuned = tune(served, x=ROWS, p99=20, clients=500, output=Path("b.txt"), force=True)
    assert tuned.path == folder / "b.txt"
    assert configs.read_batching_parameters(tuned.path).max_enqueued_batches == 500, "as many as may come at once"
    assert [each.name for each in folder.iterdir()] == ["b.txt"]


@pytest.mark.parametrize(("rounds", "p99"), [((1.3, 0.9, 1.4), 10.0), ((1.3, 1.2, 1.4), 30.0)])
def test_where_nothing_is_gained_it_says_so_and_nothing_is_written(
    served: Endpoint, folder: Path, monkeypatch: pytest.MonkeyPatch, rounds: tuple[float, ...], p99: float
) -> None:
    Made(monkeypatch, rounds, p99)
    tuned = tune(served, x=ROWS, p99=20, clients=4)
    assert (tuned.chosen, tuned.path, tuned.text, tuned.flags) == (DEFAULTS, None, "", "")
    assert list(folder.iterdir()) == []
    said = tuned._repr_mimebundle_()["text/plain"].splitlines()[0]
    assert "nothing was gained" in said
    assert ("nothing kept p99 within 20 ms" in said) == (p99 > 20)


def test_threads_alone_need_no_file(served: Endpoint, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Made(monkeypatch, ())
    rate = {Settings(intra_op_parallelism=1): 200.0}
    monkeypatch.setattr(module._Bench, "measure", lambda _, each: Trial(each, seen(rate.get(each, 50.0), 5)))
    monkeypatch.setattr(module._Bench, "duel", lambda *_: Duel((seen(100, 5),) * 3, (seen(200, 5),) * 3))
    tuned = tune(served, x=ROWS, p99=20, clients=4)
    assert (tuned.path, tuned.text) == (None, "")
    assert tuned.flags == "--max_num_load_retries=2 --tensorflow_intra_op_parallelism=1"
    assert list(folder.iterdir()) == []


# With real servers


@pytest.mark.parametrize("over", ["rest", "grpc"])
@pytest.mark.usefixtures("three_trials")
def test_a_short_run_tries_real_servers_and_leaves_none(served: Endpoint, folder: Path, over: Any) -> None:
    before, asked = servers(), served.metrics().requests
    said: list[Progress] = []
    tuned = tune(served, x=NamedData("x_test", ROWS), over=over, progress=said.append, **SHORT)
    assert isinstance(tuned, Tuned)
    assert tuned.trials[0].settings == DEFAULTS
    assert len(tuned.trials) == 3
    for trial in tuned.trials:
        assert trial.load is not None, trial.problem
        assert (trial.load.failed, trial.load.clients, trial.load.over) == (0, 2, over)
    assert servers() <= before
    assert served.metrics().requests == asked, "the server itself was asked nothing"
    assert (tuned.path is not None) == (tuned.chosen.max_batch_size is not None) == bool(list(folder.iterdir()))
    stages = list(dict.fromkeys(each.stage for each in said))
    assert stages[:3] == ["looking at the model", "asking once", "trying the defaults"]
    assert re.fullmatch(r"trying max_batch_size=2, num_batch_threads=\d+, 2 of at most \d+", stages[3])
    assert any(re.fullmatch(r"the defaults against .*, round 5 of 5", stage) for stage in stages) == (
        tuned.tuning.duel is not None
    )
    fractions = [each.fraction for each in said if each.fraction is not None]
    assert fractions == sorted(fractions) and fractions[-1] < 1
    assert "each trial" in tuned._repr_mimebundle_()["text/plain"]


def test_rows_that_depend_on_each_other_are_never_put_together(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._Bench, "may_go_on", lambda _: True)
    monkeypatch.setattr(module._Bench, "measure", lambda _, settings: Trial(settings, seen(0.1, 90_000)))
    tuned = tune(served, x=ROWS, rows=2, signature="centred", **SHORT)
    assert len(tuned.trials) > 1
    assert {trial.settings.max_batch_size for trial in tuned.trials} == {None}
    assert "requests were never put together" in tuned._repr_mimebundle_()["text/plain"]


@pytest.mark.usefixtures("three_trials")
@pytest.mark.parametrize("stage", ["looking at", "asking once", "trying the defaults", "trying max", "round 2"])
def test_the_stop_button_ends_whatever_was_started(served: Endpoint, folder: Path, stage: str) -> None:
    before = servers()

    def press(progress: Progress) -> None:
        if stage in progress.stage:
            raise KeyboardInterrupt

    def quick(bench: Any, settings: Settings) -> Trial:
        return Trial(settings, seen(1000.0 * (settings.max_batch_size or 1), 1))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if stage == "round 2":
            patch.setattr(module._Bench, "measure", quick)
        tune(served, x=ROWS, progress=press, **SHORT)
    assert servers() <= before
    assert list(folder.iterdir()) == []
    np.testing.assert_array_equal(served.predict(ROWS), 2 * ROWS)


def test_a_version_that_is_gone_from_disk_cannot_be_served_once_more(tmp_path: Path, monkeypatch: Any) -> None:
    write(tmp_path / "m")
    endpoint = serve(str(tmp_path / "m" / "2"), name="vanished", base_path=tmp_path / "versions")
    try:
        shutil.rmtree(tmp_path / "versions")
        with pytest.raises(ServingError, match="cannot be served once more: found no folder 1"):
            tune(endpoint, x=ROWS, **SHORT)
    finally:
        endpoint.stop()


def test_settings_with_which_no_server_starts_are_a_trial_too(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = module._Bench.__new__(module._Bench)
    monkeypatch.setattr(bench, "_clock", module._Clock(lambda _: None, 9), raising=False)
    monkeypatch.setattr(bench, "_tried", 1, raising=False)
    monkeypatch.setattr(bench, "_longest", 0.0, raising=False)

    def broken(settings: Settings) -> Any:
        raise VersionFailed("no room", found="none", wanted="some", cure="Free some.")

    monkeypatch.setattr(bench, "_served", broken, raising=False)
    trial = bench.measure(Settings(8))
    assert (trial.load, trial.problem) == (None, "no room: found none")


def test_a_model_that_refuses_what_it_is_asked_says_so_at_once(served: Endpoint, monkeypatch: Any) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RequestRefused("m was asked", status="INVALID_ARGUMENT", message="no", cure="Ask otherwise.")

    monkeypatch.setattr("tfdeploy_magic.serving.client.Client.predict", refuse)
    before = servers()
    with pytest.raises(RequestRefused):
        tune(served, x=ROWS, **SHORT)
    assert servers() <= before
