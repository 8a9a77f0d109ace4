"""The flags of ``tensorflow_model_server`` in a container: which it takes, and which of them name files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from tfdeploy_magic.errors import InputError
from tfdeploy_magic.serving.flags import Flag, ServerOptions

_SETTLED = {
    "port": "--grpc-port",
    "rest_api_port": "--rest-api-port",
    "model_name": "--name",
    "model_base_path": "--base-path",
    "model_config_file": "--label, --keep and --version",
    "grpc_socket_path": "--grpc-port: a socket would lie inside of the container",
    "ssl_config_file": "nothing: the port of gRPC is this machine's own",
}
"""Flags of the server that have no place here, and what to write instead."""

_MORE_FILES = ("platform_config_file", "thread_pool_factory_config_file")
"""Flags that name files, and that only tensorflow_model_server heeds."""


def _flags() -> dict[str, Any]:
    """Return the flags of our server: name -> its kind, or None where only ours has it."""
    hints = get_type_hints(ServerOptions, include_extras=True)
    found: dict[str, Any] = {}
    for name, hint in hints.items():
        for flag in getattr(hint, "__metadata__", ()):
            if isinstance(flag, Flag):
                found[name] = None if flag.ours else get_args(hint)[0]
    return found


_KNOWN = _flags()
FILES = frozenset(name for name, kind in _KNOWN.items() if kind in (Path, Path | None)).union(_MORE_FILES)
"""Flags whose values are paths."""


def check_flags(flags: Sequence[str]) -> None:
    """Refuse flags that ``tensorflow_model_server`` in a container cannot heed.

    Raises:
        InputError: One is only our own server's, or is settled by something else.
    """
    for _ in given(flags):
        pass


def given(flags: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield name and value of each flag, for TensorFlow's parser wants an equals sign between them.

    Raises:
        InputError: One is only our own server's, or is settled by something else.
    """
    left = list(flags)
    while left:
        word = left.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            value = left.pop(0) if left and not left[0].startswith("--") else "true"
        if name in _SETTLED or _KNOWN.get(name, name) is None or not word.startswith("--"):
            raise InputError(
                "--flags has one that a container does not take",
                found=word,
                wanted="flags of tensorflow_model_server that are not settled already",
                cure=f"Write {_SETTLED[name]}."
                if name in _SETTLED
                else "Only the embedded server has it: leave it out.",
            )
        yield name, value


def copy(name: str, source: Path, target: Path) -> None:
    """Copy the file that a flag names.

    Raises:
        InputError: It cannot be read.
    """
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise InputError(
            f"--{name} cannot be read",
            found=f"{source}: {error.strerror}",
            wanted="a file",
            cure="Write its path as it is on this machine: the container gets a copy.",
        ) from None
