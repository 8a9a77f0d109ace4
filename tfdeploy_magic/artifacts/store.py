"""Where files live: a per-user store of finished work by what made it, and writing that is whole or not at all.

An entry of the store is a folder with a file and a record of it. It appears by one rename, so that no kernel ever
sees half of it, and two that write the same entry at once do no harm: the first one stays. The store is a cache: the
entries unused for longest are dropped when it outgrows its limit.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import ByteSize, TypeAdapter, ValidationError

from tfdeploy_magic.errors import OutputError

LIMIT = 4_000_000_000
"""Bytes that the store may hold; ``TFDEPLOY_STORE_LIMIT`` sets another number, as in 500MB."""

FORMAT = 2
"""Part of every key: entries of another format are not found."""

IN_USE_SECONDS = 60.0
"""An entry used within this time is not dropped: a command keeps a file, and then the evidence on it."""

_RECORD = "record.json"


@dataclass(frozen=True)
class Entry:
    """One entry of the store.

    Args:
        path: Its file, or None when it is only a record.
        record: What was noted of it: plain data.
    """

    path: Path | None
    record: dict[str, Any]


def store_folder() -> Path:
    """Return the per-user folder that keeps finished work (``XDG_CACHE_HOME`` moves it on Linux)."""
    return platformdirs.user_cache_path("tfdeploy_magic") / "models"


def key_of(**parts: object) -> str:
    """Return the key of what these parts make: a digest of them as JSON."""
    return hashlib.sha256(json.dumps({"format": FORMAT, **parts}, sort_keys=True).encode()).hexdigest()


def limit() -> int:
    """Return how many bytes the store may hold; what cannot be read as a size counts as not set."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(os.environ.get("TFDEPLOY_STORE_LIMIT", LIMIT)))
    except ValidationError:
        return LIMIT


def find(key: str) -> Entry | None:
    """Return the entry of that key, marked as used; None when there is none or its file is not what it was."""
    folder = store_folder() / key[:32]
    try:
        record = json.loads((folder / _RECORD).read_text())
        path = folder / record["file"] if record["file"] else None
        if path is not None and _digest(path) != record["sha256"]:
            return None
        os.utime(folder)
    except (OSError, ValueError, KeyError):
        return None
    return Entry(path, record["data"])


def keep(
    key: str, data: Mapping[str, Any], source: Path | None = None, file_name: str = "", sha256: str | None = None
) -> Entry:
    """Keep a copy of a finished file, and a record of it, under a key.

    Args:
        key: From :func:`key_of`.
        data: Plain data that JSON can carry, NaN and infinity too.
        source: The finished file; None when there is only a record.
        file_name: What to call it there.
        sha256: Of the file, where that is known already.

    Returns:
        Where it is now: under that key, or beside it when that has a file with other bytes already. The same model
        can give files that differ in the names of layers.

    Raises:
        OutputError: The store cannot be written.
    """
    digest = sha256 or (_digest(source) if source is not None else "")
    there = find(key)
    if there is not None and there.path is not None and _digest(there.path) != digest:
        key = key_of(key=key, sha256=digest)
    target = store_folder() / key[:32]
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        partial.mkdir(parents=True)
        if source is not None:
            _copy(source, partial / file_name)
        note = json.dumps({"file": file_name, "sha256": digest, "data": dict(data)})
        (partial / _RECORD).write_text(note)
        if find(key) is None:  # nothing there, or something broken
            _move_over(partial, target)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _drop_oldest(spare=target)
    return Entry(target / file_name if source is not None else None, dict(data))


def size() -> int:
    """Return the bytes that the store holds."""
    return sum(_size(folder) for folder in _entries())


def _entries() -> list[Path]:
    return [folder for folder in _folders() if not folder.name.startswith(".")]


def _folders() -> list[Path]:
    try:
        return [folder for folder in store_folder().iterdir() if folder.is_dir()]
    except OSError:
        return []


def _size(folder: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):  # another kernel may drop it at any moment
        for path in folder.iterdir():
            total += path.stat().st_size
    return total


def _drop_oldest(spare: Path) -> None:
    for folder in _folders():  # what a killed kernel was writing; a living one is done within the hour
        if folder.name.startswith(".") and _used(folder) < time.time() - 3600:
            shutil.rmtree(folder, ignore_errors=True)
    most = limit()
    sizes = {folder: _size(folder) for folder in _entries()}
    total = sum(sizes.values())
    for folder in sorted(sizes, key=_used):
        if total <= most or _used(folder) > time.time() - IN_USE_SECONDS:
            return
        if folder != spare:
            total -= sizes[folder]
            shutil.rmtree(_aside(folder), ignore_errors=True)


def _used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _aside(folder: Path) -> Path:
    """Move an entry out of sight, so that no kernel finds it half deleted."""
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
    with contextlib.suppress(OSError):
        folder.rename(aside)
    return aside


def _move_over(partial: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(_aside(target), ignore_errors=True)
    try:
        partial.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another kernel was first
            raise


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_writable(target: Path, *, force: bool) -> None:
    """Fail before any work is done when ``target`` could not be written at the end.

    Raises:
        OutputError: It exists and ``force`` is False, is a folder, or its folder is missing or closed to us.
    """
    try:
        is_folder, exists, has_folder = target.is_dir(), target.exists(), target.parent.is_dir()
    except OSError as error:  # a closed folder on the way
        raise unwritable(target, error) from error
    if is_folder:
        raise OutputError(
            f"cannot write {target}",
            found="a folder",
            wanted="a file name",
            cure=f"Try -o {target / 'model.tflite'}.",
        )
    if exists and not force:
        raise _exists(target)
    folder = target.parent
    if not has_folder:
        raise OutputError(
            f"cannot write {target}",
            found=f"no folder {folder}",
            wanted="an existing folder",
            cure=f"Create it: !mkdir -p {folder}",
        )
    try:
        # os.access says yes to root on a read-only file system; trying is the only true answer.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(target, error) from error


def write_whole(source: Path, target: Path, *, force: bool) -> None:
    """Copy ``source`` to ``target`` so that no reader ever sees half a file.

    Args:
        source: A finished file.
        target: Where it goes; its folder is made when missing.
        force: Replace an existing file.

    Raises:
        OutputError: ``target`` exists and ``force`` is False, or the disk or the permissions refuse.
    """
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(source, partial)
        if force:
            partial.replace(target)
        else:
            _move_without_replacing(partial, target)
    except FileExistsError as error:
        raise _exists(target) from error
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        with contextlib.suppress(OSError):  # a read-only disk refuses even to look whether it is there
            partial.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    with target.open("xb") as sink, source.open("rb") as stream:
        shutil.copyfileobj(stream, sink)
        sink.flush()
        os.fsync(sink.fileno())


def _move_without_replacing(source: Path, target: Path) -> None:
    try:
        os.link(source, target)  # unlike replace, a link refuses to overwrite
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        # A disk without hard links (FAT, some network mounts): take the name first, then put the file there.
        target.touch(exist_ok=False)
        source.replace(target)


def _exists(target: Path) -> OutputError:
    return OutputError(
        f"cannot write {target}",
        found="an existing file",
        wanted="a new name",
        cure="Choose another name, or add --force to replace it.",
    )


def unwritable(target: Path, error: OSError, option: str = " with -o") -> OutputError:
    """Return the error for a place that the disk or the permissions refuse, in the system's own words.

    Args:
        target: What was to be written.
        error: What the system said.
        option: How another place is chosen, as the end of a sentence.
    """
    cures = {
        errno.ENOSPC: f"Free some space, or choose another disk{option}.",
        errno.EDQUOT: f"Your quota is used up: free some space, or choose another disk{option}.",
        errno.EACCES: f"Choose a folder you may write to{option}.",
        errno.EROFS: f"Choose a folder you may write to{option}.",
    }
    return OutputError(
        f"cannot write {target}",
        found=error.strerror or str(error),
        wanted="a place with room that you may write to",
        cure=cures.get(error.errno or 0, f"Choose another place{option}."),
    )
