from __future__ import annotations

import errno
import os
import re
import subprocess
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


def test_keeping_the_same_content_twice_is_one_file(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.keep(source, "m.tflite")
    stamp = first.stat().st_mtime_ns
    assert first.read_bytes() == source.read_bytes()
    assert store.store_folder() in first.parents
    assert store.keep(source, "m.tflite") == first
    assert first.stat().st_mtime_ns == stamp


def test_other_content_of_the_same_name_is_kept_beside_it(source: Path) -> None:
    first = store.keep(source, "m.tflite")
    content = first.read_bytes()
    source.write_bytes(b"other")
    second = store.keep(source, "m.tflite")
    assert second != first
    assert (first.read_bytes(), second.read_bytes()) == (content, b"other")


def test_a_kept_file_that_rotted_is_written_again(source: Path) -> None:
    kept = store.keep(source, "m.tflite")
    kept.write_bytes(kept.read_bytes()[:-1])
    assert store.keep(source, "m.tflite") == kept
    assert kept.read_bytes() == source.read_bytes()


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
