"""The folders of a servable's versions: a new one is written out of sight, and has its number once it is whole."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tfdeploy_magic.artifacts import store
from tfdeploy_magic.errors import ContractBroken, OutputError, TfdeployError
from tfdeploy_magic.sources import files, graphs

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)

_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG)


def number_of(base_path: Path, version: int | Literal["auto"]) -> int:
    """Return the number that a new version gets: the next, or the one asked for.

    Raises:
        OutputError: That number is taken, or the folder cannot be read.
    """
    try:
        # TensorFlow Serving reads 00000123 as 123.
        names = [path.name for path in base_path.iterdir()] if base_path.exists() else []
    except OSError as error:
        raise store.unwritable(base_path, error, "") from error
    taken = {int(name) for name in names if name.isascii() and name.isdigit()}
    following = max(taken, default=0) + 1
    if version == "auto":
        return following
    if version in taken:
        raise OutputError(
            f"cannot write version {version} in {base_path}",
            found="a version of that number, which a server may be serving",
            wanted="a number that is free",
            cure=f"Leave --version out and it becomes {following}.",
        )
    return version


def copy(path: Path, target: Path) -> None:
    """Copy a file or a directory, its links as what they point to.

    Raises:
        ContractBroken: The copy differs: somebody was writing the original.
    """
    of = graphs.paths_in(path) if path.is_dir() else [path]
    for part in of:
        part_of_copy = target / part.relative_to(path)
        part_of_copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(part, part_of_copy)
    if files.sha256_of(path) != files.sha256_of(target):
        raise ContractBroken(
            f"the copy of {path.name} is not what it was made of",
            found="other bytes",
            wanted="the same",
            cure="Was it being written meanwhile? Export it again.",
        )


@contextlib.contextmanager
def hidden(base_path: Path) -> Iterator[Path]:
    """Make a folder beside the versions that no server takes for one; what is left of it in the end is removed."""
    partial = base_path / f".{base_path.name}.{secrets.token_hex(8)}"
    with as_output_error(base_path):
        made = [folder for folder in (base_path, *base_path.parents) if not folder.exists()]
    try:
        with as_output_error(base_path):
            partial.mkdir(parents=True)
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            with contextlib.suppress(OSError):  # it holds the version, or what another process put there
                folder.rmdir()


@contextlib.contextmanager
def as_output_error(base_path: Path) -> Iterator[None]:
    """Turn what the system says of a full or closed disk into an error with a cure, TensorFlow's form of it too.

    Raises:
        OutputError: The disk or the permissions refuse.
    """
    try:
        yield
    except TfdeployError:
        raise
    except OSError as error:
        raise store.unwritable(base_path, error, "") from error
    except Exception as error:
        for number in _REFUSALS:
            if os.strerror(number) in str(error):
                raise store.unwritable(base_path, OSError(number, os.strerror(number)), "") from error
        raise


def publish(partial: Path, base_path: Path, version: int | Literal["auto"]) -> int:
    """Give a finished folder its number, and return it; another process may take the same one at this moment.

    Raises:
        OutputError: It is taken.
        OSError: The disk or the permissions refuse.
    """
    _sync(partial)
    while True:
        number = number_of(base_path, version)
        try:
            partial.rename(base_path / str(number))
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        else:
            _sync_folder(base_path)
            return number


def _sync(folder: Path) -> None:
    for path in graphs.paths_in(folder):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    for at, _, _ in os.walk(folder):
        _sync_folder(Path(at))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network disks sync no folders
            os.fsync(handle)
    finally:
        os.close(handle)
