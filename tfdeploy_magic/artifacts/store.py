"""Where files live: a per-user store by content, and writing that is whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import tempfile
from pathlib import Path

import platformdirs

from tfdeploy_magic.errors import OutputError


def store_folder() -> Path:
    """Return the per-user folder that keeps converted files (``XDG_CACHE_HOME`` moves it on Linux)."""
    return platformdirs.user_cache_path("tfdeploy_magic") / "models"


def keep(source: Path, file_name: str) -> Path:
    """Copy a finished file into the store under its content's hash and return where it lives now.

    Args:
        source: The finished file.
        file_name: What to call it there.

    Raises:
        OutputError: The store cannot be written.
    """
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    target = store_folder() / digest[:16] / file_name
    if not (target.exists() and hashlib.sha256(target.read_bytes()).hexdigest() == digest):
        write_whole(source, target, force=True)
    return target


def check_writable(target: Path, *, force: bool) -> None:
    """Fail before any work is done when ``target`` could not be written at the end.

    Raises:
        OutputError: It exists and ``force`` is False, is a folder, or its folder is missing or closed to us.
    """
    try:
        is_folder, exists, has_folder = target.is_dir(), target.exists(), target.parent.is_dir()
    except OSError as error:  # a closed folder on the way
        raise _unwritable(target, error) from error
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
        raise _unwritable(target, error) from error


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
        with partial.open("xb") as sink, source.open("rb") as stream:
            shutil.copyfileobj(stream, sink)
            sink.flush()
            os.fsync(sink.fileno())
        if force:
            partial.replace(target)
        else:
            _move_without_replacing(partial, target)
    except FileExistsError as error:
        raise _exists(target) from error
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        with contextlib.suppress(OSError):  # a read-only disk refuses even to look whether it is there
            partial.unlink(missing_ok=True)


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


def _unwritable(target: Path, error: OSError) -> OutputError:
    cures = {
        errno.ENOSPC: "Free some space, or choose another disk with -o.",
        errno.EDQUOT: "Your quota is used up: free some space, or choose another disk with -o.",
        errno.EACCES: "Choose a folder you may write to with -o.",
        errno.EROFS: "Choose a folder you may write to with -o.",
    }
    return OutputError(
        f"cannot write {target}",
        found=error.strerror or str(error),
        wanted="a place with room that you may write to",
        cure=cures.get(error.errno or 0, "Choose another place with -o."),
    )
