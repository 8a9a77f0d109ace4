from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tfdeploy_magic.artifacts import store
from tfdeploy_magic.errors import OutputError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "made" / "finished.tflite"
    path.parent.mkdir()
    path.write_bytes(b"TFL3" * 50_000)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "here"
    path.mkdir()
    return path


def mounted(folder: Path, options: str) -> Iterator[Path]:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting needs privileges: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    yield from mounted(folder, "size=64k")


@pytest.fixture
def read_only_disk(folder: Path) -> Iterator[Path]:
    yield from mounted(folder, "ro")


def test_a_file_is_written_whole_and_alone(source: Path, folder: Path) -> None:
    store.write_whole(source, folder / "m.tflite", force=False)
    assert (folder / "m.tflite").read_bytes() == source.read_bytes()
    assert [path.name for path in folder.iterdir()] == ["m.tflite"]


def test_an_existing_file_is_left_alone_without_force(source: Path, folder: Path) -> None:
    target = folder / "m.tflite"
    target.write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"m\.tflite: found an existing file[^!]*--force"):
        store.write_whole(source, target, force=False)
    assert target.read_bytes() == b"precious"
    assert list(folder.iterdir()) == [target]


def test_an_existing_file_is_replaced_with_force(source: Path, folder: Path) -> None:
    target = folder / "m.tflite"
    target.write_bytes(b"old")
    store.write_whole(source, target, force=True)
    assert target.read_bytes() == source.read_bytes()
    assert list(folder.iterdir()) == [target]


@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk_leaves_nothing_behind(source: Path, small_disk: Path, force: bool) -> None:
    with pytest.raises(OutputError, match=r"No space left on device[^!]*Free some space"):
        store.write_whole(source, small_disk / "m.tflite", force=force)
    assert list(small_disk.iterdir()) == []


def test_a_full_disk_leaves_the_old_file_whole(source: Path, small_disk: Path) -> None:
    (small_disk / "m.tflite").write_bytes(b"old")
    with pytest.raises(OutputError):
        store.write_whole(source, small_disk / "m.tflite", force=True)
    assert (small_disk / "m.tflite").read_bytes() == b"old"
    assert len(list(small_disk.iterdir())) == 1


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "Choose a folder you may write to"),
        (errno.EIO, "Choose another place"),
    ],
)
def test_a_disk_that_fails_while_it_is_written_leaves_nothing_and_names_the_cure(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, cure: str
) -> None:
    def copy_half(stream: Any, sink: Any) -> None:
        sink.write(stream.read(1000))
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store.shutil, "copyfileobj", copy_half)
    with pytest.raises(OutputError, match=re.escape(os.strerror(number))) as caught:
        store.write_whole(source, folder / "m.tflite", force=False)
    assert cure in caught.value.cure
    assert list(folder.iterdir()) == []


def test_the_stop_button_while_writing_leaves_nothing(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(fd: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.os, "fsync", stopped)
    with pytest.raises(KeyboardInterrupt):
        store.write_whole(source, folder / "m.tflite", force=False)
    assert list(folder.iterdir()) == []


def test_a_read_only_disk_is_an_error_that_says_so(source: Path, read_only_disk: Path) -> None:
    for attempt in (
        lambda: store.check_writable(read_only_disk / "m.tflite", force=False),
        lambda: store.write_whole(source, read_only_disk / "m.tflite", force=False),
        lambda: store.write_whole(source, read_only_disk / "deeper" / "m.tflite", force=False),
    ):
        with pytest.raises(OutputError, match=r"Read-only file system[^!]*Choose a folder you may write to"):
            attempt()


def test_a_closed_folder_is_an_error_that_says_so(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(store.tempfile, "TemporaryFile", refused)
        with pytest.raises(OutputError, match="Permission denied"):
            store.check_writable(folder / "m.tflite", force=False)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        with pytest.raises(OutputError, match="Permission denied"):
            store.write_whole(source, folder / "m.tflite", force=False)
    assert list(folder.iterdir()) == []


def test_what_can_be_known_before_the_work_is_refused_before_the_work(folder: Path) -> None:
    (folder / "old.tflite").write_bytes(b"old")
    with pytest.raises(OutputError, match="found an existing file"):
        store.check_writable(folder / "old.tflite", force=False)
    with pytest.raises(OutputError, match=r"found a folder[^!]*model\.tflite"):
        store.check_writable(folder, force=True)
    with pytest.raises(OutputError, match=r"(?s)found no folder.*mkdir -p"):
        store.check_writable(folder / "missing" / "m.tflite", force=False)


def test_looking_whether_a_file_can_be_written_changes_nothing(folder: Path) -> None:
    (folder / "old.tflite").write_bytes(b"old")
    store.check_writable(folder / "old.tflite", force=True)
    store.check_writable(folder / "new.tflite", force=False)
    assert [path.name for path in folder.iterdir()] == ["old.tflite"]


@pytest.fixture
def empty_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return store.store_folder()


def test_what_was_kept_is_found_again_under_its_key(source: Path, empty_store: Path) -> None:
    key = store.key_of(model="a", scheme="int8")
    assert store.find(key) is None
    kept = store.keep(key, {"snr_db": float("inf"), "n": 3}, source, "m.tflite")
    found = store.find(key)
    assert found == kept
    assert found is not None and found.path is not None and found.path.read_bytes() == source.read_bytes()
    assert store.find(store.key_of(model="b", scheme="int8")) is None
    assert empty_store in found.path.parents


def test_a_record_needs_no_file(empty_store: Path) -> None:
    assert store.keep("k" * 64, {"a": [1, 2]}).path is None
    found = store.find("k" * 64)
    assert found is not None and found.record == {"a": [1, 2]}


def test_the_first_to_keep_an_entry_wins_and_the_second_does_no_harm(source: Path, empty_store: Path) -> None:
    first = store.keep("k" * 64, {"by": "first"}, source, "m.tflite")
    second = store.keep("k" * 64, {"by": "second"}, source, "m.tflite")
    assert first.path == second.path
    found = store.find("k" * 64)
    assert found is not None and found.record == {"by": "first"}
    assert len(list(empty_store.iterdir())) == 1


@pytest.mark.parametrize("harm", ["cut", "gone", "no record", "half a record"])
def test_a_broken_entry_is_not_found_and_is_made_again(source: Path, empty_store: Path, harm: str) -> None:
    kept = store.keep("k" * 64, {}, source, "m.tflite").path
    assert kept is not None
    record = kept.with_name("record.json")
    if harm == "cut":
        kept.write_bytes(kept.read_bytes()[:-1])
    elif harm == "gone":
        kept.unlink()
    elif harm == "no record":
        record.unlink()
    else:
        record.write_text(record.read_text()[:20])
    assert store.find("k" * 64) is None
    again = store.keep("k" * 64, {}, source, "m.tflite")
    assert again.path == kept and kept.read_bytes() == source.read_bytes()
    assert store.find("k" * 64) == again
    assert len(list(empty_store.iterdir())) == 1


def test_the_store_drops_what_was_unused_for_longest(
    source: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = source.stat().st_size
    monkeypatch.setenv("TFDEPLOY_STORE_LIMIT", str(int(3.5 * size)))
    monkeypatch.setattr(store, "IN_USE_SECONDS", 0.0)
    for number in range(3):
        store.keep(str(number) * 64, {}, source, "m.tflite")
        folder = empty_store / (str(number) * 32)
        os.utime(folder, (number, number))
    assert store.find("0" * 64) is not None  # used now: number 1 is the oldest
    store.keep("3" * 64, {}, source, "m.tflite")
    assert [number for number in "0123" if store.find(number * 64)] == ["0", "2", "3"]
    assert store.size() <= 3.5 * size


def test_an_entry_larger_than_the_store_is_kept_all_the_same(
    source: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDEPLOY_STORE_LIMIT", "10")
    assert store.keep("k" * 64, {}, source, "m.tflite").path is not None
    assert store.find("k" * 64) is not None


def test_a_file_and_its_evidence_are_kept_together_even_over_the_limit(
    source: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDEPLOY_STORE_LIMIT", "1")
    store.keep("k" * 64, {}, source, "m.tflite")
    store.keep("e" * 64, {"n": 3})
    assert store.find("k" * 64) is not None and store.find("e" * 64) is not None


def test_other_bytes_under_one_key_are_kept_beside_the_first(source: Path, empty_store: Path) -> None:
    first = store.keep("k" * 64, {}, source, "m.tflite").path
    content = source.read_bytes()
    source.write_bytes(b"TFL3 with other names")
    second = store.keep("k" * 64, {}, source, "m.tflite").path
    assert first is not None and second is not None and first != second
    assert (first.read_bytes(), second.read_bytes()) == (content, b"TFL3 with other names")


@pytest.mark.parametrize(("said", "bytes_"), [("4GB", 4_000_000_000), ("17", 17), ("much", store.LIMIT)])
def test_the_limit_is_read_as_people_write_sizes(monkeypatch: pytest.MonkeyPatch, said: str, bytes_: int) -> None:
    monkeypatch.setenv("TFDEPLOY_STORE_LIMIT", said)
    assert store.limit() == bytes_


def test_what_a_killed_kernel_was_writing_is_swept_up_later(source: Path, empty_store: Path) -> None:
    for name, age in ((".old.half", 2 * 3600), (".new.half", 0)):
        (empty_store / name).mkdir(parents=True)
        os.utime(empty_store / name, (time.time() - age,) * 2)
    store.keep("k" * 64, {}, source, "m.tflite")
    assert sorted(folder.name for folder in empty_store.iterdir()) == [".new.half", "k" * 32]


def test_two_kernels_writing_at_once_leave_whole_entries_only(source: Path, empty_store: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tfdeploy_magic.artifacts import store\n"
        "for round in range(60):\n"
        "    key = store.key_of(n=round % 5)\n"
        "    entry = store.keep(key, {'n': round % 5}, Path(sys.argv[1]), 'm.tflite')\n"
        "    found = store.find(key)\n"
        "    assert found is None or found.record == {'n': round % 5}, found\n"
    )
    environment = {**os.environ, "TFDEPLOY_STORE_LIMIT": str(3 * source.stat().st_size)}
    command = [sys.executable, "-c", code, str(source)]
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=60)[1] for process in running]
    assert [(process.returncode, words) for process, words in zip(running, said, strict=True)] == [(0, "")] * 3
    left = [folder.name for folder in empty_store.iterdir()]
    assert left and not any(name.startswith(".") for name in left)


def test_the_store_moves_with_xdg_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tmp_path in store.store_folder().parents


def test_a_disk_without_hard_links_is_written_to_and_still_nothing_is_replaced(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(store.os, "link", refuse)
    store.write_whole(source, folder / "m.tflite", force=False)
    assert (folder / "m.tflite").read_bytes() == source.read_bytes()
    (folder / "mine").write_text("mine")
    with pytest.raises(OutputError, match="existing file"):
        store.write_whole(source, folder / "mine", force=False)
    assert (folder / "mine").read_text() == "mine"
    assert sorted(path.name for path in folder.iterdir()) == ["m.tflite", "mine"]
