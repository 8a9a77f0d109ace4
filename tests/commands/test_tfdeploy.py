from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.evaluate import by_hand
from tests.notebook.kernels import ROOT, kernel
from tests.serving.engine_sockets import saying
from tests.views.test_card import Tags
from tfdeploy_magic.artifacts import store
from tfdeploy_magic.commands import tfdeploy as module
from tfdeploy_magic.commands.declaration import COMMANDS
from tfdeploy_magic.commands.tfdeploy import PACKAGES, NextLines, tfdeploy
from tfdeploy_magic.errors import JobCrashed
from tfdeploy_magic.jobs import Worker
from tfdeploy_magic.views import doctor
from tfdeploy_magic.views.doctor import Checkup, Row


@pytest.fixture(scope="module")
def checkup() -> Checkup:
    found = tfdeploy("doctor")
    assert isinstance(found, Checkup)
    return found


def row(found: Checkup | Iterator[Row], what: str) -> Row:
    (only,) = (row for row in getattr(found, "rows", found) if row.what == what)
    return only


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """What this test says is installed; None for what is not."""
    real, versions = importlib.metadata.version, {}

    def version(name: str) -> str:
        found = versions.get(name, "") or (None if name in versions else real(name))
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


# Versions


@pytest.mark.parametrize("package", [*PACKAGES, "tfdeploy-magic"])
def test_each_package_is_the_one_that_is_installed(checkup: Checkup, package: str) -> None:
    assert row(checkup, package).found.startswith(importlib.metadata.version(package))
    assert row(checkup, package).level == "ok"


def test_the_wanted_versions_are_those_of_the_project(checkup: Checkup) -> None:
    assert "~=2.21.0" in row(checkup, "tensorflow").found
    assert "~=2.3.0" in row(checkup, "ai-edge-litert").found
    assert "<3.14" in row(checkup, "python").found and ">=3.11" in row(checkup, "python").found


def test_what_most_do_without_is_missing_with_a_purpose_and_a_cure(installed: dict[str, str | None]) -> None:
    installed["tf-keras"] = None
    found = Checkup(tuple(module._versions()))
    missing = row(found, "tf-keras")
    assert (missing.level, "Keras 2" in missing.purpose) == ("missing", True)
    assert missing.cure.startswith('pip install "tf-keras')
    assert found.ok
    assert found.troubles == (missing,)


def test_what_everything_needs_is_missing_and_that_is_not_ok(installed: dict[str, str | None]) -> None:
    installed["ipywidgets"] = None
    found = Checkup(tuple(module._versions()))
    assert row(found, "ipywidgets").cure == 'pip install "ipywidgets>=8.1"'
    assert not found.ok


@pytest.mark.parametrize("version", ["2.20.1", "2.22.0", "3.0"])
def test_another_version_than_the_wanted_one_is_a_warning(installed: dict[str, str | None], version: str) -> None:
    installed["tensorflow"] = version
    other = row(module._versions(), "tensorflow")
    assert (other.level, other.found) == ("warning", f"{version}, wanted ~=2.21.0")
    assert other.cure == 'pip install "tensorflow~=2.21.0"'


def test_tensorflow_cpu_is_tensorflow_and_tf_keras_must_not_bring_the_other(installed: dict[str, str | None]) -> None:
    installed.update({"tensorflow": None, "tensorflow-cpu": "2.21.0", "tf-keras": None})
    rows = list(_with_metadata_of_tensorflow(module._versions))
    assert row(iter(rows), "tensorflow-cpu").level == "ok"
    assert "--no-deps" in row(iter(rows), "tf-keras").cure


def test_two_tensorflows_over_one_folder_are_a_warning(installed: dict[str, str | None]) -> None:
    installed["tensorflow-cpu"] = "2.21.0"
    both = row(_with_metadata_of_tensorflow(module._versions), "tensorflow-cpu")
    assert (both.level, "pip uninstall" in both.cure) == ("warning", True)


def _with_metadata_of_tensorflow(call: Any) -> Iterator[Row]:
    real = importlib.metadata.requires
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "requires", lambda name: real(name.removesuffix("-cpu")))
        yield from list(call())


# Docker


def test_the_engine_that_answers_is_named(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with saying(tmp_path_factory.mktemp("e") / "socket", {}) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        found = row(module._docker(), "Docker")
    assert (found.found, found.level) == ("engine 20.10.24 for amd64, which may be used", "ok")


def test_no_engine_is_missing_for_containers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    found = row(module._docker(), "Docker")
    assert (found.level, found.found) == ("missing", "no engine at tcp://127.0.0.1:1")
    assert "--backend docker" in found.purpose and "Start Docker" in found.cure
    assert Checkup((found,)).ok


def test_without_the_sdk_no_engine_is_looked_for(installed: dict[str, str | None]) -> None:
    installed["docker"] = None
    assert list(module._docker()) == []
    missing = row(module._versions(), "docker")
    assert (missing.level, "--backend docker" in missing.purpose) == ("missing", True)
    assert missing.cure.startswith('pip install "docker')


# The machine, the store


def test_the_machine_is_the_one_the_operating_system_knows(checkup: Checkup) -> None:
    assert row(checkup, "CPU").found == f"{len(os.sched_getaffinity(0))} of {psutil.cpu_count()} cores"
    total = f"of {psutil.virtual_memory().total / 1e9:.2f} GB"
    assert row(checkup, "memory").found.endswith(total)


def test_a_gpu_is_named_without_its_serial_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1234-abcd)"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert row(module._machine(), "GPU").found == "GPU 0: NVIDIA H100 80GB HBM3; jobs leave it alone"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert row(module._machine(), "GPU").found == "none seen"


def test_scarce_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    scarce = psutil.virtual_memory()._replace(available=400_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: scarce)
    assert row(module._machine(), "memory").level == "warning"


def test_the_store_is_measured_and_its_home_is_not_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert row(module._store(), "folder").found.startswith("~/")
    (store.store_folder() / "entry").mkdir(parents=True)
    (store.store_folder() / "entry" / "m.tflite").write_bytes(b"x" * 12_300)
    assert row(module._store(), "used").found.startswith("12.3 kB of at most ")
    monkeypatch.setattr(os, "access", lambda *_: False)
    closed = row(module._store(), "folder")
    assert (closed.level, str(tmp_path) in closed.found) == ("missing", False)
    assert "XDG_CACHE_HOME" in closed.cure


# Jobs


def test_a_job_starts_and_knows_its_tensorflow(checkup: Checkup) -> None:
    import tensorflow as tf

    assert row(checkup, "a job").found.startswith("starts in ")
    assert tf.version.GIT_VERSION in row(checkup, "TensorFlow").found
    assert row(checkup, "devices in a job").found == "CPU:0", "a job sees no GPU"


def test_jobs_that_do_not_start_are_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*_: Any, **__: Any) -> Any:
        raise JobCrashed("the job crashed", signal=9, stage="starting a job", last_lines=())

    monkeypatch.setattr(Worker, "call", call)
    found = tfdeploy("doctor")
    assert "SIGKILL" in row(found, "a job").found
    assert (row(found, "a job").level, found.ok) == ("missing", False)


def test_what_litert_can_do_was_tried(checkup: Checkup) -> None:
    assert row(checkup, "XNNPACK").level == "ok"
    flex = row(checkup, "Flex")
    assert (flex.level, "--select-ops" in flex.purpose) == ("missing", True)


def test_the_file_that_is_tried_is_an_addition() -> None:
    interpreter = by_hand.interpreter(module._addition())
    interpreter.allocate_tensors()
    for index in (0, 1):
        interpreter.set_tensor(index, np.full((1, 8), index + 1.5, "float32"))
    interpreter.invoke()
    np.testing.assert_array_equal(interpreter.get_tensor(2), np.full((1, 8), 4.0))


def test_every_accelerator_named_is_a_library_that_is_there(checkup: Checkup) -> None:
    folder = Path(next(iter(importlib.util.find_spec("ai_edge_litert").submodule_search_locations)))
    names = " ".join(path.name for path in folder.rglob("*.so"))
    for each in row(checkup, "accelerators").found.split(", "):
        assert each.partition(" ")[0] in names.replace("Accelerator", "").replace("CompilerPlugin_", "")


# How it shows itself

GOOD = Row("versions", "numpy", "2.4.6")
OPTIONAL = Row("versions", "tf-keras", "not installed", "missing", "models of Keras 2", "pip install tf-keras")
NEEDED = Row("jobs", "a job", "none starts", "missing", cure="pip install tensorflow")
ODD = Row("store", "disk", "3 B free", "warning", cure="Free some.")


@pytest.mark.parametrize(
    ("rows", "ok"), [((GOOD,), True), ((GOOD, ODD), True), ((GOOD, OPTIONAL), True), ((GOOD, OPTIONAL, NEEDED), False)]
)
def test_only_what_everything_needs_decides(rows: tuple[Row, ...], ok: bool) -> None:
    assert Checkup(rows).ok is ok
    assert doctor.text(Checkup(rows)).startswith("✓ ok" if ok else "✗ not ok")


def test_card_and_plain_text_say_the_same_and_mark_every_row_with_a_word() -> None:
    found = Checkup((GOOD, ODD, OPTIONAL, NEEDED))
    html, text = found._repr_mimebundle_()["text/html"], found._repr_mimebundle_()["text/plain"]
    shown = Tags(html)
    assert "script" not in shown.seen
    for row_ in found.rows:
        for word in (row_.what, row_.verdict, row_.found, row_.purpose, row_.cure):
            assert word in text
            assert word in shown.text
    assert [row_.what for row_ in found.troubles] == ["tf-keras", "a job", "disk"]


def test_markup_in_what_was_found_is_text() -> None:
    evil = "<script>alert(1)</script>\x1b[2J"
    found = Checkup((replace(NEEDED, area=evil, what=evil, found=evil, cure=evil),))
    assert "script" not in Tags(doctor.html(found)).seen
    assert "\x1b" not in doctor.html(found) + doctor.text(found)


def test_without_an_action_every_verb_is_offered() -> None:
    found = tfdeploy()
    assert isinstance(found, NextLines)
    assert {line.split()[0] for line, _ in found.lines} == {f"%{name}" for name in COMMANDS}
    assert found.lines[-1][0] == "%tfdeploy [doctor]"
    bundle = found._repr_mimebundle_()
    for line, purpose in found.lines:
        assert line in bundle["text/plain"] and purpose in Tags(bundle["text/html"]).text


def test_in_a_kernel_the_doctor_never_imports_tensorflow(tmp_path: Path) -> None:
    with kernel(tmp_path) as running:
        running.run(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n%load_ext tfdeploy_magic")
        shown = running.run("found = %tfdeploy doctor")
        assert shown.displays[0]["text/plain"].startswith("✓ ok")
        assert running.run("found.ok, 'tensorflow' in sys.modules").results[0]["text/plain"] == "(True, False)"
        assert "%inspect THING" in running.run("%tfdeploy").displays[0]["text/plain"]
        assert "invalid choice: 'docter'" in running.run("%tfdeploy docter").streams["stderr"]
        line = "%tfdeploy do"
        assert running.client.complete(line, len(line), reply=True, timeout=20)["content"]["matches"] == ["doctor"]
