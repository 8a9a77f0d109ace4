"""What ``%serve`` refuses before any work is done."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from tfdeploy_magic.errors import InputError

if TYPE_CHECKING:
    from tfdeploy_magic.commands.serve import Serve
    from tfdeploy_magic.serving.hosting import Host

_SETTLED = {
    "model_name": "--name",
    "model_base_path": "--base-path",
    "rest_api_port": "--rest-api-port",
    "port": "--grpc-port",
    "host": "--host",
    "gpu": "--gpu",
}
"""Flags of the server that options of this verb set."""

_NOT_HERE = ("model_config_file", "ssl_config_file", "any_port", "prefer_tflite_model", "help", "version")
"""Flags of the server that would make it another one than the model's own, or that its own client does not speak."""


def checked(options: Serve, name: str, base_path: Path, running: Host | None) -> Serve:
    """Refuse what cannot be, and return the options with the number of the version where that must be a certain one.

    Args:
        options: What was asked for.
        name: What the model is to be called.
        base_path: Where its versions are to be kept.
        running: The server that has it already.

    Raises:
        InputError: Something cannot be, or does not go with what runs.
        ServingError: A port is taken.
    """
    from tfdeploy_magic.serving import hosting

    hosting.check_name(name)
    _check_flags(options)
    if running is None:
        _check_address(options)
    else:
        _check_same(options, name, running)
        _check_split(options, name, running)
    return numbered(options, name, base_path, running)


def check_rival(name: str, rival: str, running: Host | None) -> None:
    """Refuse a second model that cannot stand beside the first.

    Raises:
        InputError: It has the same name, or a server of its own.
    """
    from tfdeploy_magic.serving import hosting

    if rival == name:
        raise InputError(
            "two models cannot have one name",
            found=f"'{name}' twice",
            wanted="two models",
            cure="Name another variable, or serve the first by another name: --name NAME.",
        )
    own = hosting.find(rival)
    if own is not None and own is not running:
        raise InputError(
            f"{rival} cannot share the requests of {name}",
            found=f"a server of its own, at {own.url_of(rival)}",
            wanted="both models in one server",
            cure=f"%serve --stop {rival} first.",
        )


def _check_flags(options: Serve) -> None:
    from tfdeploy_magic.serving import flags

    if options.backend == "docker":
        from tfdeploy_magic.serving.container_flags import check_flags

        check_flags(shlex.split(options.flags))
        return
    for word in shlex.split(options.flags):
        given = word.lstrip("-").partition("=")[0]
        if given in _SETTLED or given in _NOT_HERE:
            raise InputError(
                "--flags has one that does not belong there",
                found=word,
                wanted="flags that leave the server this model's own",
                cure=f"Write {_SETTLED[given]}." if given in _SETTLED else "!tfdeploy-serve --help lists them all.",
            )
    parsed = flags.parse(["--model_base_path=/", *options.server_flags()])
    if unknown := next((note for note in parsed.notes if note.startswith("unknown argument")), None):
        raise InputError(
            "--flags cannot be used",
            found=unknown.rstrip("?"),
            wanted="flags of tfdeploy-serve",
            cure="!tfdeploy-serve --help lists them all.",
        )


def _check_address(options: Serve) -> None:
    from tfdeploy_magic.serving.http import check_port

    for port in (options.rest_api_port or 0, options.grpc_port or 0):
        check_port(options.host, port)


def _check_same(options: Serve, name: str, running: Host) -> None:
    """Refuse to swap a model under a server that was asked to be another one."""
    found = {
        **running.asked,
        "base_path": running.models[name].base_path,
        "rest_api_port": _port(running.url),
        "grpc_port": _port(running.grpc),
    }
    for option in found.keys() & options.model_fields_set:
        asked = getattr(options, option)
        if asked in (None, found[option]) or (option == "base_path" and asked.expanduser().absolute() == found[option]):
            continue
        flag = f"--{option.replace('_', '-')}"
        raise InputError(
            f"{name} is served already, at {running.url_of(name)}",
            found=f"another {flag}",
            wanted="the server as it runs",
            cure=f"Leave {flag} out to swap to a new version, or %serve --stop {name} first.",
        )


def _check_split(options: Serve, name: str, running: Host) -> None:
    """Refuse a new version that no arm of the split would ever ask."""
    split = running.models[name].lineup.split
    if options.split is not None or any(
        arm.model == name and arm.version is None and arm.label is None for arm in split
    ):
        return
    if split and options.label not in {arm.label for arm in split if arm.label}:
        arms = " and ".join(f"{arm.name} ({arm.share:.0%})" for arm in split)
        raise InputError(
            f"a new version of {name} would get no requests",
            found=f"a split between {arms}",
            wanted="the label of an arm, or another split",
            cure=f"Add --label or --split, or decide first: %serve --promote {name}, %serve --rollback {name}.",
        )


def _port(address: str | None) -> int | None:
    return int(address.rpartition(":")[2]) if address else None


def numbered(options: Serve, name: str, base_path: Path, running: Host | None) -> Serve:
    """Return the options with a number that is served: the newest in its folder, and never one that was before.

    Raises:
        InputError: The number asked for would not be served, or the folder is another server's.
    """
    from tfdeploy_magic.serving import version_folder

    _check_folder(name, base_path, running)
    following = version_folder.number_of(base_path, "auto")
    hosted = running.models.get(name) if running is not None else None
    if hosted is not None:
        following = max(following, hosted.newest + 1)
    if options.version is None:
        return options.model_copy(update={"version": following}) if hosted is not None else options
    version_folder.number_of(base_path, options.version)
    if options.version < following - 1 and options.label is None:
        raise InputError(
            f"version {options.version} of {name} would not be served",
            found=f"version {following - 1} in {base_path}",
            wanted="a higher number: the highest is served; or a label",
            cure=f"Leave --version out and it becomes {following}.",
        )
    return options


def _check_folder(name: str, base_path: Path, running: Host | None) -> None:
    """Refuse a folder of versions that another server looks into, of this kernel or of another one."""
    from tfdeploy_magic.serving import hosting, state

    there = base_path.resolve()
    for host in hosting.hosts.values():
        for model, hosted in host.models.items():
            if hosted.base_path.resolve() == there and (host is not running or model != name):
                raise InputError(
                    f"{name} cannot have its versions in {base_path}",
                    found=f"those of {model}, which is served from there",
                    wanted="a folder for each model",
                    cure=f"Choose another --base-path, or swap {model}: --name {model}.",
                )
    own = {host.url for host in hosting.hosts.values()}
    for server in state.running():
        if server.url not in own and any(Path(path).resolve() == there for path in server.base_paths.values()):
            raise InputError(
                f"{name} cannot have its versions in {base_path}",
                found=f"a server of another notebook that serves them, at {server.url}",
                wanted="one notebook that decides what is served",
                cure="%export writes a version there, which that server takes up; or choose another --base-path.",
            )
