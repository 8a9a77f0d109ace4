from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.serving.saved_models import SavedModels, half_plus_two
from tfdeploy_magic.errors import ServingError, TfdeployError
from tfdeploy_magic.jobs.progress import Progress
from tfdeploy_magic.serving import state
from tfdeploy_magic.serving.client import Client
from tfdeploy_magic.serving.trials import Address, Servable, servable_of, trial


def processes() -> set[psutil.Process]:
    """The servers that run below this process; the fork server, which stays, is none."""
    return {
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and child.children() == [] and child.parent() != psutil.Process()
    }


def answer(address: Address) -> float:
    with Client(address.url, grpc=address.grpc) as client:
        rest = float(client.predict([2.0], over="rest")[0])
        assert float(client.predict([2.0], over="grpc")[0]) == rest
    return rest


def hosting(base_path: Path, **asked: Any) -> Any:
    return SimpleNamespace(models={"m": SimpleNamespace(base_path=base_path)}, asked=asked, backend="embedded")


def test_a_version_is_served_once_more_for_as_long_as_it_is_on_trial(saved_models: SavedModels, tmp_path: Path) -> None:
    base_path = shutil.copytree(saved_models.half_plus_two, tmp_path / "m")
    half_plus_two(base_path / "2", plus=7.0)
    found = servable_of(hosting(base_path), "m", 1)
    with trial(found, ["--tensorflow_intra_op_parallelism=1"]) as address:
        assert answer(address) == 3.0, "of version 1, though 2 is newer"
        running = next(server for server in state.running() if server.url and address.url.startswith(server.url))
        assert running.models == ("m.trial",)
    assert not psutil.pid_exists(running.pid)
    assert running.pid not in {server.pid for server in state.running()}
    assert base_path.joinpath("1", "saved_model.pb").exists()


def test_two_are_on_trial_at_once(saved_models: SavedModels) -> None:
    found = servable_of(hosting(saved_models.half_plus_two), "m", 1)
    with trial(found, []) as one, trial(found, ["--enable_batching"]) as other:
        assert one != other
        assert answer(one) == answer(other) == 3.0


def test_what_is_raised_while_one_is_on_trial_ends_it(saved_models: SavedModels) -> None:
    found = servable_of(hosting(saved_models.half_plus_two), "m", 1)
    before = processes()
    with pytest.raises(KeyboardInterrupt), trial(found, []):
        assert processes() - before
        raise KeyboardInterrupt
    assert processes() <= before


def test_the_stop_button_while_one_starts_leaves_nothing(saved_models: SavedModels) -> None:
    def press(progress: Progress) -> None:
        if progress.stage == "loading the model":
            raise KeyboardInterrupt

    found = servable_of(hosting(saved_models.half_plus_two), "m", 1)
    before = processes()
    with pytest.raises(KeyboardInterrupt), trial(found, [], press):
        raise AssertionError("it was stopped before")
    assert processes() <= before


def test_one_that_cannot_be_loaded_says_so(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"no graph")
    with pytest.raises(TfdeployError), trial(Servable("m", tmp_path / "1"), []):
        raise AssertionError("it did not start")


def test_flags_that_a_person_gave_come_along_but_those_that_tuning_sets_or_no_two_may_share(tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    given = "--enable_batching --saved_model_tags serve,gpu --tensorflow_intra_op_parallelism=-1 --mixed_precision ''"
    found = servable_of(hosting(tmp_path, flags=given, gpu=True), "m", 3)
    assert found.flags == ("--saved_model_tags", "serve,gpu", "--mixed_precision", "")
    assert found.given == ("--enable_batching", "--tensorflow_intra_op_parallelism=-1")
    assert (found.gpu, found.path, found.name) == (True, tmp_path / "3", "m.trial")
    plain = servable_of(hosting(tmp_path), "m", 3)
    assert (plain.flags, plain.given, plain.gpu) == ((), (), False)


def test_a_request_log_is_not_written_twice(saved_models: SavedModels, tmp_path: Path) -> None:
    log = tmp_path / "requests"
    log.write_bytes(b"")
    given = f"--request_log_file {log} --request_log_max_records=5 --grpc_socket_path={tmp_path}/socket"
    with trial(servable_of(hosting(saved_models.half_plus_two, flags=given), "m", 1), []) as address:
        assert answer(address) == 3.0
    assert log.read_bytes() == b""
    assert not (tmp_path / "socket").exists()


def test_a_version_whose_folder_is_gone_is_said_to_be(tmp_path: Path) -> None:
    for base_path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(ServingError, match="found no folder 4 in"):
            servable_of(hosting(base_path), "m", 4)
