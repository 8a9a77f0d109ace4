"""Directories are watched and swapped as TensorFlow Serving does, and a version in use is never taken away."""

from __future__ import annotations

import gc
import logging
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from google.protobuf import text_format

from tests.serving import saved_models as builders
from tests.serving.saved_models import SavedModels
from tfdeploy_magic.serving.calls import Call
from tfdeploy_magic.serving.models import ModelManager
from tfdeploy_magic.serving.protos import model_server_config_pb2
from tfdeploy_magic.serving.servable import LoadedVersion, Settings
from tfdeploy_magic.serving.status import Code, Refusal, invalid


class FakeServable:
    """A version that only knows whether it is closed."""

    def __init__(self, name: str, version: int, path: Path) -> None:
        self.name, self.version, self.path, self.closed = name, version, path, False

    def close(self) -> None:
        self.closed = True


class Loader:
    """Loads directories that hold a file "model", refuses others, and notes what it loaded."""

    def __init__(self) -> None:
        self.loaded: list[FakeServable] = []
        self.tried: list[tuple[str, int]] = []
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()
        self.go_on.set()

    def __call__(self, name: str, version: int, path: Path) -> Any:
        self.tried.append((name, version))
        self.begun.release()
        assert self.go_on.wait(60)
        if not (path / "model").exists():
            raise invalid(f"no model in {path.name}")
        self.loaded.append(FakeServable(name, version, path))
        return self.loaded[-1]


@contextmanager
def managing(loader: Any = None, **options: Any) -> Iterator[ModelManager]:
    loader = loader or Loader()
    manager = ModelManager(loader, **{"poll_seconds": 0, **options})
    try:
        yield manager
    finally:
        if isinstance(loader, Loader):
            loader.go_on.set()
        manager.close()


def write(base: Path, *versions: int | str, whole: bool = True) -> Path:
    for version in versions:
        (base / str(version)).mkdir(parents=True, exist_ok=True)
        if whole:
            (base / str(version) / "model").touch()
    base.mkdir(exist_ok=True)
    return base


def config(models: Mapping[str, Path], policy: str = "", labels: Mapping[str, int] | None = None) -> Any:
    """Return a configuration; the policy and the labels are those of the first model."""
    made = model_server_config_pb2.ModelServerConfig()
    for name, base in models.items():
        made.model_config_list.config.add(name=name, base_path=str(base), model_platform="tensorflow")
    if models:
        first = made.model_config_list.config[0]
        text_format.Parse(policy, first.model_version_policy)
        first.version_labels.update(labels or {})
    return made


def served(manager: ModelManager, name: str = "m") -> list[int]:
    try:
        return [status.version for status in manager.statuses(name) if status.state == "AVAILABLE"]
    except Refusal:
        return []


def states(manager: ModelManager, name: str = "m") -> dict[int, str]:
    return {status.version: status.state for status in manager.statuses(name)}


def until(condition: Any) -> None:
    """Wait for something that threads bring about."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def refused(manager: ModelManager, *asked: Any, **by_name: Any) -> Refusal:
    with pytest.raises(Refusal) as refusal, manager.use(*asked, **by_name):
        pass
    return refusal.value


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("", [10]),
        ("latest {}", [10]),
        ("latest { num_versions: 2 }", [10, 9]),
        ("latest { num_versions: 9 }", [10, 9, 2]),
        ("all {}", [10, 9, 2]),
        ("specific { versions: 2 versions: 9 }", [9, 2]),
        ("specific { versions: 9 versions: 4 }", [9]),
        ("specific { versions: 4 }", []),
    ],
)
def test_the_policy_says_which_versions_are_served(tmp_path: Path, policy: str, wanted: list[int]) -> None:
    with managing() as manager:
        manager.reload(config({"m": write(tmp_path / "m", 2, 9, 10)}, policy))
        assert served(manager) == wanted


def test_names_are_read_as_numbers_and_others_are_passed_over(tmp_path: Path) -> None:
    base = write(tmp_path / "m", "00000123", "7", "8a", "v9", "-3", "²", "1e3", str(1 << 63), "assets")
    (base / "999").touch()  # a file
    with managing() as manager:
        manager.reload(config({"m": base}, "all {}"))
        assert served(manager) == [123, 7]
        with manager.use("m", 123) as version:
            assert version.path == base / "00000123"


def test_of_two_directories_of_one_number_one_is_served(tmp_path: Path) -> None:
    loader = Loader()
    with managing(loader) as manager:
        manager.reload(config({"m": write(tmp_path / "m", "1", "01", "001")}, "all {}"))
        assert served(manager) == [1]
        assert [each.path.name for each in loader.loaded] == ["1"]


def test_who_names_no_version_gets_the_highest_and_who_names_one_gets_that(tmp_path: Path) -> None:
    with managing() as manager:
        manager.reload(config({"m": write(tmp_path / "m", 1, 2, 3)}, "all {}"))
        for asked, got in ((None, 3), (2, 2), (1, 1)):
            with manager.use("m", asked) as version:
                assert version.version == got


def test_what_is_not_served_is_refused_in_tensorflow_servings_words(tmp_path: Path) -> None:
    with managing() as manager:
        manager.reload(config({"m": write(tmp_path / "m", 1)}))
        for asked, said in (
            (("n",), "Latest(n)"),
            (("n", 1), "Specific(n, 1)"),
            (("m", 7), "Specific(m, 7)"),
            (("m", 0), "Specific(m, 0)"),
        ):
            refusal = refused(manager, *asked)
            assert (refusal.code, refusal.message) == (Code.NOT_FOUND, f"Servable not found for request: {said}")
        for name in ("m", "n"):
            refusal = refused(manager, name, None, "stable")
            assert refusal.code is Code.INVALID_ARGUMENT
            assert refusal.message == "Unrecognized servable version label: stable"
        for asked, said in (
            (("n",), "Could not find any versions of model n"),
            (("m", 7), "Could not find version 7 of model m"),
        ):
            with pytest.raises(Refusal) as status:
                manager.statuses(*asked)
            assert (status.value.code, status.value.message) == (Code.NOT_FOUND, said)


def test_a_new_version_is_served_before_the_old_one_goes(tmp_path: Path) -> None:
    loader = Loader()
    base = write(tmp_path / "m", 1)
    with managing(loader, poll_seconds=0.01) as manager:
        manager.reload(config({"m": base}))
        loader.go_on.clear()
        write(base, 2)
        for _ in range(2):
            assert loader.begun.acquire(timeout=60)
        assert states(manager) == {2: "LOADING", 1: "AVAILABLE"}
        assert not loader.loaded[0].closed
        loader.go_on.set()
        until(lambda: states(manager) == {2: "AVAILABLE", 1: "END"})
        assert loader.loaded[0].closed
        assert refused(manager, "m", 1).code is Code.NOT_FOUND


def test_clients_notice_nothing_of_a_swap(tmp_path: Path) -> None:
    base = write(tmp_path / "m", 1)
    stop, seen, faults = threading.Event(), set(), []

    def ask(manager: ModelManager) -> None:
        while not stop.is_set():
            try:
                with manager.use("m") as version:
                    seen.add(version.version)
                    time.sleep(0.0005)
                    if version.closed:  # type: ignore[attr-defined]
                        faults.append("closed while held")
            except Refusal as refusal:
                faults.append(str(refusal))

    with managing(poll_seconds=0.005) as manager:
        manager.reload(config({"m": base}))
        clients = [threading.Thread(target=ask, args=(manager,)) for _ in range(4)]
        for client in clients:
            client.start()
        for number in range(2, 12):
            write(base, number)
            until(lambda number=number: served(manager) == [number])
        stop.set()
        for client in clients:
            client.join()
    assert faults == []
    assert {1, 11} <= seen


def test_a_version_that_cannot_be_loaded_costs_none_that_is_served(tmp_path: Path) -> None:
    base = write(tmp_path / "m", 1)
    with managing(retries=0) as manager:
        manager.reload(config({"m": base}))
        write(base, 2, whole=False)
        manager.look()
        found = manager.wait_for("m", 2, 60)
        assert found is not None
        assert (found.state, found.problem and found.problem.message) == ("END", "no model in 2")
        assert served(manager) == [1]
        assert refused(manager, "m", 2).code is Code.NOT_FOUND
        with manager.use("m") as version:
            assert version.version == 1
        write(base, 3)
        manager.look()
        until(lambda: states(manager) == {3: "AVAILABLE", 2: "END", 1: "END"})
        problems = {status.version: status.problem for status in manager.statuses("m")}
        assert problems[3] is problems[1] is None
        assert problems[2] is not None  # kept for who asks


def test_a_load_that_fails_is_tried_again(tmp_path: Path) -> None:
    left = [3]

    class Shaky(Loader):
        def __call__(self, name: str, version: int, path: Path) -> Any:
            left[0] -= 1
            if left[0]:
                raise OSError("the network is away")
            return super().__call__(name, version, path)

    with managing(Shaky(), retries=5, retry_seconds=0.01) as manager:
        write(tmp_path / "m", 1)
        with pytest.raises(Refusal, match="INTERNAL: OSError: the network is away"):
            manager.reload(config({"m": tmp_path / "m"}))
        until(lambda: states(manager) == {1: "END"})
        left[0] = 3
        base = write(tmp_path / "old", 1)
        left[0] = 1
        manager.reload(config({"old": base}))
        left[0] = 3
        write(base, 2)
        manager.look()
        until(lambda: served(manager, "old") == [2])


def test_tries_are_as_many_as_was_asked_for(tmp_path: Path) -> None:
    loader = Loader()
    base = write(tmp_path / "m", 1)
    with managing(loader, retries=2, retry_seconds=0.001) as manager:
        manager.reload(config({"m": base}))
        write(base, 2, whole=False)
        manager.look()
        until(lambda: states(manager)[2] == "END")
        manager.look()
        assert loader.tried.count(("m", 2)) == 3


@pytest.mark.parametrize("retries", [0, 5])
def test_a_version_half_written_is_served_when_it_is_complete(tmp_path: Path, retries: int) -> None:
    base = write(tmp_path / "m", 1)
    with managing(poll_seconds=0.01, retries=retries, retry_seconds=3600) as manager:
        manager.reload(config({"m": base}))
        write(base, 2, whole=False)
        until(lambda: states(manager).get(2) and manager.statuses("m", 2)[0].problem is not None)
        assert served(manager) == [1]
        write(base, 2)
        until(lambda: states(manager) == {2: "AVAILABLE", 1: "END"})
        assert manager.statuses("m", 2)[0].problem is None


def test_a_version_that_failed_is_tried_again_when_it_is_back(tmp_path: Path) -> None:
    loader = Loader()
    base = write(tmp_path / "m", 1)
    with managing(loader, retries=0) as manager:
        manager.reload(config({"m": base}))
        write(base, 2, whole=False)
        manager.look()
        assert manager.wait_for("m", 2, 60) is not None
        (base / "2").rename(tmp_path / "aside")
        manager.look()
        (tmp_path / "aside").rename(base / "2")
        manager.look()
        until(lambda: loader.tried.count(("m", 2)) == 2)


def test_a_version_that_is_gone_is_unloaded_and_the_one_before_comes_back(tmp_path: Path) -> None:
    base = write(tmp_path / "m", 1, 2)
    loader = Loader()
    with managing(loader, poll_seconds=0.01) as manager:
        manager.reload(config({"m": base}))
        assert served(manager) == [2]
        shutil.rmtree(base / "2")
        until(lambda: states(manager) == {2: "END", 1: "AVAILABLE"})
        write(base, 2)
        until(lambda: states(manager) == {2: "AVAILABLE", 1: "END"})
        shutil.rmtree(base / "1")
        shutil.rmtree(base / "2")
        until(lambda: states(manager) == {2: "END", 1: "END"})
    assert all(each.closed for each in loader.loaded)


def test_a_base_path_that_is_away_for_a_while_costs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = write(tmp_path / "m", 1)
    with managing() as manager:
        manager.reload(config({"m": base}))
        base.rename(tmp_path / "away")
        with caplog.at_level(logging.ERROR):
            manager.look()
        assert f"Could not find base path {base} for servable m" in caplog.text
        assert served(manager) == [1]
        (tmp_path / "away").rename(base)
        manager.look()
        assert served(manager) == [1]


def test_a_base_path_without_versions_waits_for_some(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = write(tmp_path / "m")
    with managing(poll_seconds=0.01) as manager:
        with caplog.at_level(logging.WARNING):
            manager.reload(config({"m": base}))
        assert (
            f"No versions of servable m found under base path {base}. Did you forget to name your leaf" in caplog.text
        )
        assert refused(manager, "m").message == "Servable not found for request: Latest(m)"
        write(base, 1)
        until(lambda: served(manager) == [1])


def test_a_base_path_that_is_not_there_is_refused_and_all_is_as_it_was(tmp_path: Path) -> None:
    with managing() as manager:
        manager.reload(config({"m": write(tmp_path / "m", 1)}))
        with pytest.raises(Refusal) as refusal:
            manager.reload(config({"n": tmp_path / "nowhere"}))
        assert refusal.value.code is Code.NOT_FOUND
        assert refusal.value.message == f"Could not find base path {tmp_path / 'nowhere'} for servable n"
        assert manager.names() == ["m"]
        assert served(manager) == [1]


def test_polling_by_0_looks_when_it_is_configured_and_when_it_is_asked(tmp_path: Path) -> None:
    base = write(tmp_path / "m", 1)
    with managing(poll_seconds=0) as manager:
        manager.reload(config({"m": base}))
        write(base, 2)
        time.sleep(0.05)
        assert states(manager) == {1: "AVAILABLE"}
        manager.look()
        until(lambda: served(manager) == [2])


def test_polling_by_less_never_looks_by_itself(tmp_path: Path) -> None:
    base = write(tmp_path / "m", 1)
    with managing(poll_seconds=-1) as manager:
        manager.reload(config({"m": base}))
        assert refused(manager, "m").code is Code.NOT_FOUND
        manager.look()
        assert manager.wait_for("m", 1, 60) is not None
        manager.reload(config({}))
        until(lambda: states(manager) == {1: "END"})


def test_waiting_ends_with_the_first_failure_and_where_nobody_wants_the_version(tmp_path: Path) -> None:
    base = write(tmp_path / "m", 1)
    with managing(retries=5, retry_seconds=3600) as manager:
        manager.reload(config({"m": base}))
        write(base, 2, whole=False)
        manager.look()
        found = manager.wait_for("m", 2, 3600)
        assert found is not None
        assert found.problem is not None
        write(base, 3)
        manager.look()
        loaded = manager.wait_for("m", 3, 3600)
        assert loaded is not None
        assert (loaded.state, loaded.problem) == ("AVAILABLE", None)
        assert manager.wait_for("m", 1, 3600) is None  # gone, which is no success
        assert manager.wait_for("m", 99, 3600) is None
        assert manager.wait_for("nobody", 1, 3600) is None


def test_a_version_is_not_unloaded_while_it_is_held(tmp_path: Path) -> None:
    loader = Loader()
    base = write(tmp_path / "m", 1)
    with managing(loader) as manager:
        manager.reload(config({"m": base}))
        with manager.use("m") as first, manager.use("m"):
            write(base, 2)
            manager.look()
            until(lambda: states(manager) == {2: "AVAILABLE", 1: "UNLOADING"})
            with manager.use("m") as second:
                assert second.version == 2
            assert refused(manager, "m", 1).code is Code.NOT_FOUND
            assert not loader.loaded[0].closed
            assert first.version == 1
        until(lambda: states(manager) == {2: "AVAILABLE", 1: "END"})
        assert loader.loaded[0].closed


def test_a_version_that_is_wanted_again_while_it_is_unloaded_comes_back(tmp_path: Path) -> None:
    base = write(tmp_path / "m", 1)
    with managing() as manager:
        manager.reload(config({"m": base}))
        with manager.use("m"):
            write(base, 2)
            manager.look()
            until(lambda: states(manager) == {2: "AVAILABLE", 1: "UNLOADING"})
            shutil.rmtree(base / "2")
            manager.look()
        until(lambda: states(manager) == {2: "END", 1: "AVAILABLE"})


def test_closing_waits_for_those_who_use_a_version_and_lets_nobody_else_in(tmp_path: Path) -> None:
    loader = Loader()
    with managing(loader) as manager:
        manager.reload(config({"m": write(tmp_path / "m", 1)}))
        with manager.use("m"):
            closing = threading.Thread(target=manager.close)
            closing.start()
            until(lambda: states(manager) == {1: "UNLOADING"})
            assert refused(manager, "m").code is Code.NOT_FOUND
            assert not loader.loaded[0].closed
        closing.join(60)
        assert not closing.is_alive()
        assert loader.loaded[0].closed
        manager.look()
        assert manager.wait_for("m", 1, 60) is None


def test_closing_while_a_version_is_loaded_unloads_that_too(tmp_path: Path) -> None:
    loader = Loader()
    base = write(tmp_path / "m", 1, 2, 3)
    with managing(loader) as manager:
        loader.go_on.clear()
        loading = threading.Thread(target=lambda: refused_reload(manager, config({"m": base}, "all {}")))
        loading.start()
        assert loader.begun.acquire(timeout=60)
        closing = threading.Thread(target=manager.close)
        closing.start()
        loader.go_on.set()
        for thread in (closing, loading):
            thread.join(60)
            assert not thread.is_alive()
    assert all(each.closed for each in loader.loaded)
    assert set(states(manager).values()) == {"END"}


def refused_reload(manager: ModelManager, made: Any) -> None:
    with suppress(Refusal):
        manager.reload(made)


def test_a_servable_that_fails_to_close_ends_all_the_same(tmp_path: Path) -> None:
    class Stubborn(FakeServable):
        def close(self) -> None:
            raise RuntimeError("no")

    base = write(tmp_path / "m", 1)
    with managing(lambda *about: Stubborn(*about)) as manager:
        manager.reload(config({"m": base}))
        write(base, 2)
        manager.look()
        until(lambda: states(manager) == {2: "AVAILABLE", 1: "END"})


def test_reloading_adds_models_and_unloads_those_that_are_not_listed(tmp_path: Path) -> None:
    loader = Loader()
    with managing(loader) as manager:
        first, second = write(tmp_path / "a", 1), write(tmp_path / "b", 5)
        manager.reload(config({"a": first}, labels={}))
        manager.reload(config({"a": first, "b": second}))
        assert (served(manager, "a"), served(manager, "b"), manager.names()) == ([1], [5], ["a", "b"])
        manager.reload(config({"b": second}))
        assert manager.names() == ["b"]
        assert refused(manager, "a").message == "Servable not found for request: Latest(a)"
        until(lambda: loader.loaded[0].closed)
        until(lambda: states(manager, "a") == {1: "END"})  # TensorFlow Serving tells of it too
        assert not loader.loaded[1].closed
        manager.reload(config({"a": first}))
        assert served(manager, "a") == [1]


def test_reloading_changes_the_policy(tmp_path: Path) -> None:
    base = write(tmp_path / "m", 1, 2, 3)
    with managing() as manager:
        manager.reload(config({"m": base}))
        manager.reload(config({"m": base}, "specific { versions: 1 versions: 2 }"))
        until(lambda: states(manager) == {3: "END", 2: "AVAILABLE", 1: "AVAILABLE"})
        with manager.use("m") as version:
            assert version.version == 2


def test_a_new_model_that_cannot_be_served_leaves_all_as_it_was(tmp_path: Path) -> None:
    loader = Loader()
    good, other = write(tmp_path / "good", 1, 2), write(tmp_path / "other", 1)
    bad = write(tmp_path / "bad", 4, whole=False)
    with managing(loader) as manager:
        manager.reload(config({"good": good}, labels={"stable": 2}))
        for _ in range(2):  # the second is tried again, and not refused from memory
            with pytest.raises(Refusal) as refusal:
                manager.reload(config({"other": other, "bad": bad}))
            assert refusal.value.code is Code.UNKNOWN
            assert refusal.value.message == (
                "1 servable(s) did not become available: {{{name: bad version: 4} due to error: INVALID_ARGUMENT: "
                "no model in 4}, }"
            )
        assert loader.tried.count(("bad", 4)) == 2
        assert manager.names() == ["good"]
        assert not loader.loaded[0].closed
        with manager.use("good", label="stable") as version:
            assert version.version == 2
        assert refused(manager, "other").code is Code.NOT_FOUND
        write(bad, 4)
        manager.reload(config({"other": other, "bad": bad}))
        assert (served(manager, "other"), served(manager, "bad")) == ([1], [4])


def test_what_failed_when_a_model_was_last_listed_counts_no_more(tmp_path: Path) -> None:
    base = write(tmp_path / "m", 4, whole=False)
    with managing() as manager:
        with pytest.raises(Refusal):
            manager.reload(config({"m": base}))
        shutil.rmtree(base / "4")
        manager.reload(config({"m": base}))
        assert manager.names() == ["m"]
        write(base, 5)
        manager.reload(config({"m": base}))
        assert served(manager) == [5]


def test_a_known_model_whose_new_version_fails_is_no_reason_to_refuse(tmp_path: Path) -> None:
    base = write(tmp_path / "m", 1)
    with managing(retries=0) as manager:
        manager.reload(config({"m": base}))
        write(base, 2, whole=False)
        manager.reload(config({"m": base}))
        assert states(manager) == {2: "END", 1: "AVAILABLE"}


def test_labels_name_versions_and_move(tmp_path: Path) -> None:
    base = write(tmp_path / "m", 1, 2)
    with managing() as manager:
        manager.reload(config({"m": base}, "all {}", {"stable": 1, "canary": 2}))
        assert manager.labels("m") == {"stable": 1, "canary": 2}
        for label, number in {"stable": 1, "canary": 2}.items():
            with manager.use("m", label=label) as version:
                assert version.version == number
        manager.reload(config({"m": base}, "all {}", {"stable": 2}))
        with manager.use("m", label="stable") as version:
            assert version.version == 2
        assert refused(manager, "m", label="canary").code is Code.INVALID_ARGUMENT
        manager.reload(config({}))
        assert refused(manager, "m", label="stable").message == "Unrecognized servable version label: stable"


def test_a_label_of_a_version_that_is_not_available_is_refused_and_all_is_as_it_was(tmp_path: Path) -> None:
    loader = Loader()
    base, other = write(tmp_path / "m", 1, 2), write(tmp_path / "other", 1)
    with managing(loader) as manager:
        manager.reload(config({"m": base}, "specific { versions: 1 }", {"stable": 1}))
        with pytest.raises(Refusal) as refusal:
            manager.reload(config({"m": base, "other": other}, "specific { versions: 2 }", {"stable": 2, "canary": 7}))
        assert refusal.value.code is Code.FAILED_PRECONDITION
        assert refusal.value.message == (
            "Request to assign label to version 7 of model m, which is not currently available for inference"
        )
        assert manager.labels("m") == {"stable": 1}
        assert manager.names() == ["m"]
        until(lambda: states(manager) == {2: "END", 1: "AVAILABLE"})
        assert not next(each for each in loader.loaded if each.version == 1).closed


def test_new_labels_of_versions_to_come_are_accepted_where_that_is_allowed(tmp_path: Path) -> None:
    base = write(tmp_path / "m", 1)
    with managing(labels_for_unavailable=True) as manager:
        manager.reload(config({"m": base}, "all {}", {"stable": 1, "next": 2}))
        assert refused(manager, "m", label="next").message == "Servable not found for request: Specific(m, 2)"
        manager.reload(config({"m": base}, "all {}", {"stable": 1, "next": 2}))  # nothing has changed
        with pytest.raises(Refusal) as refusal:
            manager.reload(config({"m": base}, "all {}", {"stable": 3, "next": 2}))  # one that is in use may not break
        assert refusal.value.code is Code.FAILED_PRECONDITION
        write(base, 2)
        manager.look()
        until(lambda: served(manager) == [2, 1])
        with manager.use("m", label="next") as version:
            assert version.version == 2


def test_a_label_outlives_its_version_and_then_finds_nothing(tmp_path: Path) -> None:
    base = write(tmp_path / "m", 1)
    with managing() as manager:
        manager.reload(config({"m": base}, labels={"stable": 1}))
        write(base, 2)
        manager.look()
        until(lambda: served(manager) == [2])
        assert refused(manager, "m", label="stable").message == "Servable not found for request: Specific(m, 1)"


def test_only_so_many_versions_that_are_gone_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfdeploy_magic.serving.models.KEPT_ENDED", 3)
    base = write(tmp_path / "m")
    with managing() as manager:
        manager.reload(config({"m": base}))
        for number in range(1, 8):
            write(base, number)
            manager.look()
            until(lambda number=number: served(manager) == [number])
        until(lambda: states(manager) == {7: "AVAILABLE", 6: "END", 5: "END", 4: "END"})


def test_looking_goes_on_after_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write(tmp_path / "m", 1)
    with managing() as manager:
        manager.reload(config({"m": base}))
        with monkeypatch.context() as patch:
            patch.setattr("tfdeploy_magic.serving.versions.chosen", lambda *_: 1 / 0)
            manager.look()
        write(base, 2)
        manager.look()
        until(lambda: served(manager) == [2])


def test_versions_that_are_loaded_at_once_are_as_many_as_was_asked_for(tmp_path: Path) -> None:
    loader = Loader()
    loader.go_on.clear()
    with managing(loader, load_threads=3) as manager:
        base = write(tmp_path / "m", 1, 2, 3, 4)
        loading = threading.Thread(target=manager.reload, args=(config({"m": base}, "all {}"),))
        loading.start()
        for _ in range(3):
            assert loader.begun.acquire(timeout=60)
        assert not loader.begun.acquire(timeout=0.02)
        assert sorted(loader.tried) == [("m", 2), ("m", 3), ("m", 4)]  # the highest first
        loader.go_on.set()
        loading.join(60)
        assert served(manager) == [4, 3, 2, 1]


def half_plus(base: Path, numbers: Iterable[int]) -> None:
    """Write versions, each of which adds its own number; whole or not at all."""
    for number in numbers:
        aside = builders.half_plus_two(base.parent / "aside" / str(number), plus=float(number))
        base.mkdir(exist_ok=True)
        aside.rename(base / str(number))


def load(name: str, number: int, path: Path) -> LoadedVersion:
    return LoadedVersion(name, number, path, Settings())


def ask(version: LoadedVersion, x: float) -> float:
    call = Call("serving_default", {"x": np.array([x], np.float32)}, ("y",))
    answers = version.answer(call) if x % 2 else version.submit(call).result(60)
    return float(answers["y"][0])


def test_real_versions_are_swapped_under_load_without_a_wrong_or_missing_answer(tmp_path: Path) -> None:
    base = tmp_path / "m"
    half_plus(base, [1])
    stop, asked, faults = threading.Event(), [0], []

    def client(manager: ModelManager) -> None:
        x = 0.0
        while not stop.is_set():
            x += 1
            try:
                with manager.use("m") as version:
                    if ask(version, x) != x * 0.5 + version.version:
                        faults.append(f"{x} by {version.version}")
            except Refusal as refusal:
                faults.append(str(refusal))
            asked[0] += 1

    with managing(load, poll_seconds=0.01) as manager:
        manager.reload(config({"m": base}))
        clients = [threading.Thread(target=client, args=(manager,)) for _ in range(4)]
        for each in clients:
            each.start()
        for number in (2, 3, 4):
            half_plus(base, [number])
            until(lambda number=number: served(manager) == [number])
        stop.set()
        for each in clients:
            each.join()
    assert faults == []
    assert asked[0] > 50


def test_thirty_versions_come_and_go_without_a_trace(saved_models: SavedModels, tmp_path: Path) -> None:
    import tensorflow as tf

    base = tmp_path / "m"
    base.mkdir()

    def swap(number: int) -> None:
        shutil.copytree(saved_models.half_plus_two / "1", base / f"partial{number}")
        (base / f"partial{number}").rename(base / str(number))
        manager.look()
        until(lambda: served(manager) == [number])
        until(lambda: all(state == "END" for at, state in states(manager).items() if at != number))
        with manager.use("m") as version:
            assert ask(version, 2.0) == 3.0

    def sessions() -> int:
        gc.collect()
        return sum(isinstance(thing, tf.compat.v1.Session) for thing in gc.get_objects())

    with managing(load) as manager:
        manager.reload(config({"m": base}))
        for number in range(1, 6):
            swap(number)
        until(lambda: not any(thread.name == "unload" for thread in threading.enumerate()))
        threads, open_before, memory = threading.active_count(), sessions(), psutil.Process().memory_info().rss
        for number in range(6, 36):
            swap(number)
        until(lambda: not any(thread.name == "unload" for thread in threading.enumerate()))
        assert threading.active_count() == threads
        assert sessions() == open_before
        assert psutil.Process().memory_info().rss - memory < 60 << 20
