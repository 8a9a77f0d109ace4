"""The flags of ``tfdeploy-serve``: those of ``tensorflow_model_server`` (main.cc), and a few of our own.

A flag that means something here is a field of :class:`ServerOptions`; one that does not is in ``_WITHOUT_EFFECT``, with
the reason. Nothing is ignored in silence.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import ipaddress
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn, get_args, get_type_hints

from tfdeploy_magic.errors import InputError

Range = tuple[float, float]

_CPUS = os.cpu_count() or 1
_INT32 = (-(2**31), 2**31 - 1)
_INT64 = (-(2**63), 2**63 - 1)
_COUNT = (0, 2**31 - 1)
_PORT = (0, 65535)


class Flag(NamedTuple):
    """What a flag does, which numbers it takes, and whether ``tensorflow_model_server`` does not have it."""

    says: str
    within: Range = _INT32
    ours: bool = False


@dataclass(frozen=True)
class ServerOptions:
    """What a command line asks for; each field is the flag of that name, and says what it does.

    Args:
        notes: A line for each thing that was asked for in vain, or that should be known.
    """

    port: Annotated[int, Flag("TCP port for gRPC; 0 for none, which takes --grpc_socket_path.", _PORT)] = 8500
    grpc_socket_path: Annotated[Path | None, Flag("Unix socket to listen on for gRPC as well.")] = None
    grpc_channel_arguments: Annotated[
        tuple[tuple[str, int | str], ...],
        Flag("Settings of the gRPC server, as in grpc.max_connection_age_ms=2000,grpc.so_reuseport=0."),
    ] = ()
    grpc_max_threads: Annotated[int, Flag("Threads that answer gRPC calls.", (1, 2**31 - 1))] = 4 * _CPUS
    enable_grpc_healthcheck_service: Annotated[bool, Flag("Answer grpc.health.v1.Health.")] = False
    enable_profiler: Annotated[
        bool,
        Flag("Answer tensorflow.ProfilerService on the gRPC port; once asked, TensorFlow's listens on all addresses."),
    ] = False
    enable_serialization_as_tensor_content: Annotated[
        bool, Flag("Answer gRPC Predict with tensor_content instead of a field for the type.")
    ] = False
    ssl_config_file: Annotated[Path | None, Flag("SSLConfig that secures the gRPC port.")] = None

    rest_api_port: Annotated[int, Flag("TCP port for REST and metrics, not that of --port; 0 for none.", _PORT)] = 0
    rest_api_timeout_in_ms: Annotated[int, Flag("How long a REST call may take; 0 for any time.")] = 30_000
    rest_api_enable_cors_support: Annotated[bool, Flag("Let pages of other origins use REST.")] = False
    monitoring_config_file: Annotated[Path | None, Flag("MonitoringConfig: whether and where metrics are told.")] = None

    model_name: Annotated[str, Flag("Name of the model; ignored with --model_config_file.")] = "default"
    model_base_path: Annotated[
        str,
        Flag("Absolute path of the directory that holds its version directories; ignored with --model_config_file."),
    ] = ""
    model_config_file: Annotated[Path | None, Flag("ModelServerConfig: several models, versions and labels.")] = None
    model_config_file_poll_wait_seconds: Annotated[int, Flag("How often that file is read again; 0 for never.")] = 0
    file_system_poll_wait_seconds: Annotated[
        int, Flag("How often base paths are searched for versions; 0 for once, negative for never.")
    ] = 1
    allow_version_labels_for_unavailable_models: Annotated[
        bool, Flag("Let a new label name a version that is not loaded yet.")
    ] = False
    saved_model_tags: Annotated[tuple[str, ...], Flag("Tags of the graph to load, with commas between them.")] = (
        "serve",
    )
    enable_signature_method_name_check: Annotated[
        bool, Flag("Classify and regress only with signatures that say they do; those of TF2 never say so.")
    ] = False
    prefer_tflite_model: Annotated[bool, Flag("Serve model.tflite of a version directory that has one.")] = False
    num_tflite_pools: Annotated[int, Flag("Calls of one .tflite file that are answered at once.", _COUNT)] = _CPUS

    num_load_threads: Annotated[int, Flag("Versions that are loaded at once; 0 for one after another.", _COUNT)] = 0
    max_num_load_retries: Annotated[int, Flag("How often a version that cannot be loaded is tried again.", _COUNT)] = 5
    load_retry_interval_micros: Annotated[int, Flag("Wait between tries; negative for none.", _INT64)] = 60_000_000
    enable_model_warmup: Annotated[
        bool, Flag("Answer the requests of assets.extra/tf_serving_warmup_requests first.")
    ] = True
    num_request_iterations_for_warmup: Annotated[int, Flag("How often each of those is answered, where above 0.")] = 0

    enable_batching: Annotated[bool, Flag("Answer calls together.")] = False
    batching_parameters_file: Annotated[Path | None, Flag("BatchingParameters for --enable_batching.")] = None
    enable_per_model_batching_parameters: Annotated[
        bool, Flag("Take them from batching_params.pbtxt of each version directory instead, all but the threads.")
    ] = False

    tensorflow_session_parallelism: Annotated[
        int, Flag("Threads of TensorFlow's two pools; 0 for its choice.", _INT64)
    ] = 0
    tensorflow_intra_op_parallelism: Annotated[int, Flag("Threads within an operation; 0 for its choice.", _INT64)] = 0
    tensorflow_inter_op_parallelism: Annotated[int, Flag("Operations that run at once; 0 for its choice.", _INT64)] = 0
    tensorflow_session_config_file: Annotated[Path | None, Flag("ConfigProto that Sessions start from.")] = None
    mixed_precision: Annotated[str, Flag("bfloat16: let graphs compute in it where oneDNN can.")] = ""
    per_process_gpu_memory_fraction: Annotated[
        float, Flag("Share of a GPU's memory that is taken at once; 0 for TensorFlow's choice.", (0, 1))
    ] = 0.0

    host: Annotated[str, Flag("Address to listen on; 0.0.0.0 for all. There are no passwords.", ours=True)] = (
        "127.0.0.1"
    )
    any_port: Annotated[bool, Flag("Let the system choose free ports for gRPC and REST.", ours=True)] = False
    gpu: Annotated[bool, Flag("Use GPUs.", ours=True)] = False
    request_log_file: Annotated[
        Path | None,
        Flag("TFRecord file to write PredictionLogs to; it can be replayed as warm-up requests.", ours=True),
    ] = None
    request_log_sampling_rate: Annotated[
        float, Flag("Share of requests that are written there.", (0, 1), ours=True)
    ] = 1.0
    request_log_max_records: Annotated[
        int, Flag("Requests that are written there, at the most.", _COUNT, ours=True)
    ] = 1000

    notes: tuple[str, ...] = ()

    @property
    def parallelism(self) -> tuple[int, int]:
        """Threads of the Session's intra-op and inter-op pools; 0 leaves the choice to TensorFlow."""
        separate = (self.tensorflow_intra_op_parallelism, self.tensorflow_inter_op_parallelism)
        return separate if any(count > 0 for count in separate) else (self.tensorflow_session_parallelism,) * 2


_WITHOUT_EFFECT: dict[str, tuple[type, str]] = {
    "flush_filesystem_caches": (
        bool,
        "models are read through the system's cache, and TensorFlow keeps none of its own",
    ),
    "num_tflite_interpreters_per_pool": (
        int,
        "each interpreter answers calls by itself; --num_tflite_pools counts them",
    ),
    "platform_config_file": (Path, "tensorflow is the one platform, and each of its settings is a flag"),
    "num_unload_threads": (int, "each version is unloaded in a thread of its own"),
    "remove_unused_fields_from_bundle_metagraph": (bool, "of a graph only the signatures are kept, always"),
    "rest_api_num_threads": (int, "REST calls arrive in one thread; what takes long is answered in the model's own"),
    "skip_initialize_tpu": (bool, "no TPU is ever used"),
    "thread_pool_factory_config_file": (
        Path,
        "the thread pools are TensorFlow's; --tensorflow_*_parallelism sizes them",
    ),
    "use_alts_credentials": (bool, "gRPC in Python has none; true is an error"),
    "xla_cpu_compilation_enabled": (bool, "XLA compiles what a model asks it to, always"),
    "xla_gpu_compilation_enabled": (bool, "XLA compiles what a model asks it to, always"),
}

# What each of these needs, one of them at least.
_ONLY_WITH: dict[str, tuple[str, ...]] = {
    "rest_api_timeout_in_ms": ("rest_api_port", "any_port"),
    "rest_api_enable_cors_support": ("rest_api_port", "any_port"),
    "monitoring_config_file": ("rest_api_port", "any_port"),
    "model_config_file_poll_wait_seconds": ("model_config_file",),
    "num_tflite_pools": ("prefer_tflite_model",),
    "num_request_iterations_for_warmup": ("enable_model_warmup",),
    "enable_per_model_batching_parameters": ("enable_batching",),
    "per_process_gpu_memory_fraction": ("gpu",),
    "request_log_sampling_rate": ("request_log_file",),
    "request_log_max_records": ("request_log_file",),
}
# What makes each of these idle.
_NOT_WITH = {
    "model_name": "model_config_file",
    "model_base_path": "model_config_file",
    "port": "any_port",
    "rest_api_port": "any_port",
}


def parse(argv: Sequence[str]) -> ServerOptions:
    """Read a command line, without the program's name.

    Values follow an equals sign, as TensorFlow has it, or a space. A switch alone means true.

    Raises:
        InputError: A value cannot be read, or the server cannot start with these flags.
        SystemExit: ``--help`` or ``--version`` was asked for, and is printed.
    """
    try:
        read, unknown = _parser().parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        _unreadable(str(error.argument_name), str(error.message), "--name=value, or a switch alone")
    given = vars(read)
    if given.get("use_alts_credentials"):  # who asks for encryption must not get none
        raise InputError(
            "the gRPC port cannot be secured",
            found="--use_alts_credentials",
            wanted="--ssl_config_file, or neither",
            cure="ALTS exists on Google Cloud only, and not in Python.",
        )
    options = ServerOptions(**{name: value for name, value in given.items() if name not in _WITHOUT_EFFECT})
    _check(options)
    notes = [_unknown(argument) for argument in unknown]
    notes += [f"--{name} has no effect: {_WITHOUT_EFFECT[name][1]}" for name in given if name in _WITHOUT_EFFECT]
    return replace(_with_ports_settled(options), notes=(*notes, *_remarks(options, given)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "tfdeploy-serve",
        usage="%(prog)s --model_base_path=/models/digits --rest_api_port=8501 [--flag=value ...]",
        description="Serve models by TensorFlow Serving's REST and gRPC API, as tensorflow_model_server does.",
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        exit_on_error=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    theirs, ours, idle = map(
        parser.add_argument_group, ("of tensorflow_model_server", "of tfdeploy-serve", "accepted without effect")
    )
    hints = get_type_hints(ServerOptions, include_extras=True)
    for each in fields(ServerOptions):
        for flag in getattr(hints[each.name], "__metadata__", ()):
            kind = get_args(hints[each.name])[0]
            default = _shown(each.default)
            says = f"{flag.says} Default: {default}." if default else flag.says
            _add(ours if flag.ours else theirs, each.name, kind, says, flag.within)
    for name, (kind, reason) in _WITHOUT_EFFECT.items():
        _add(idle, name, kind, f"{reason}.")
    ours.add_argument("--help", action="help", help="Print this.")
    ours.add_argument("--version", action="version", version=_version(), help="Print what this is.")
    return parser


def _add(group: Any, name: str, kind: Any, says: str, within: Range = _INT32) -> None:
    label, read = _KINDS[kind]
    group.add_argument(
        f"--{name}",
        type=lambda text: read(name, text, within),
        metavar=label,
        help=says.replace("%", "%%"),
        **({"nargs": "?", "const": True} if kind is bool else {}),
    )


def _unknown(argument: str) -> str:
    known = [*(each.name for each in fields(ServerOptions) if each.name != "notes"), *_WITHOUT_EFFECT]
    near = difflib.get_close_matches(argument.lstrip("-").partition("=")[0], known, n=1, cutoff=0.75)
    return f"unknown argument: {argument}" + (f"; did you mean --{near[0]}?" if near else "")


def _version() -> str:
    ours, tensorflow = (importlib.metadata.version(name) for name in ("tfdeploy-magic", "tensorflow"))
    return f"TensorFlow ModelServer: tfdeploy-serve {ours}\nTensorFlow Library: {tensorflow}"


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return ",".join(default) if isinstance(default, tuple) else "" if default is None else str(default)


def _unreadable(flag: str, found: str, wanted: str) -> NoReturn:
    raise InputError(f"{flag} cannot be read", found=found, wanted=wanted, cure="--help lists the flags.")


def _whole(name: str, text: str, within: Range) -> int:
    if not re.fullmatch(r"[+-]?[0-9]+", text) or not within[0] <= int(text) <= within[1]:
        _unreadable(f"--{name}", f'"{text}"', f"a whole number from {within[0]} to {within[1]}")
    return int(text)


def _decimal(name: str, text: str, within: Range) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not within[0] <= value <= within[1]:
        _unreadable(f"--{name}", f'"{text}"', f"a number from {within[0]} to {within[1]}")
    return value


def _switch(name: str, text: str, _: Range) -> bool:
    if text.lower() not in ("true", "t", "1", "false", "f", "0"):
        _unreadable(f"--{name}", f'"{text}"', "true or false")
    return text.lower() in ("true", "t", "1")


def _channel_arguments(name: str, text: str, _: Range) -> tuple[tuple[str, int | str], ...]:
    """Read settings of gRPC: a number where it looks like one, as TensorFlow Serving guesses."""
    read: list[tuple[str, int | str]] = []
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not key or not equals:
            _unreadable(f"--{name}", f'"{pair}"', "name=value, with commas between several")
        number = re.fullmatch(r"[+-]?[0-9]+", value) and _INT32[0] <= int(value) <= _INT32[1]
        read.append((key, int(value) if number else value))
    return tuple(read)


_KINDS: dict[Any, tuple[str, Callable[[str, str, Range], Any]]] = {
    int: ("int", _whole),
    float: ("float", _decimal),
    bool: ("bool", _switch),
    str: ("string", lambda name, text, within: text),
    Path: ("path", lambda name, text, within: text),
    Path | None: ("path", lambda name, text, within: Path(text) if text else None),
    tuple[str, ...]: ("string", lambda name, text, within: tuple(filter(None, text.split(",")))),
    tuple[tuple[str, int | str], ...]: ("string", _channel_arguments),
}


def _check(options: ServerOptions) -> None:
    """Refuse what TensorFlow Serving does not start with (server.cc)."""
    cannot = "the server cannot start"
    if not options.model_base_path and options.model_config_file is None:
        raise InputError(
            cannot,
            found="neither --model_base_path nor --model_config_file",
            wanted="one of them",
            cure="Write --model_base_path=/models/digits, a directory that holds version directories such as 1.",
        )
    if options.port == 0 and options.grpc_socket_path is None and not options.any_port:
        raise InputError(
            cannot,
            found="--port=0 and no --grpc_socket_path",
            wanted="at least one of the two to listen on",
            cure="--any_port lets the system choose free ports.",
        )
    if options.batching_parameters_file is not None and not options.enable_batching:
        raise InputError(
            cannot,
            found="--batching_parameters_file without --enable_batching",
            wanted="both or none",
            cure="Add --enable_batching.",
        )
    intra, inter = options.tensorflow_intra_op_parallelism, options.tensorflow_inter_op_parallelism
    if min(options.tensorflow_session_parallelism, intra, inter) > 0:
        raise InputError(
            cannot,
            found="--tensorflow_session_parallelism beside --tensorflow_intra_op_parallelism and ..._inter_op_...",
            wanted="the first for both thread pools, or the others for one each",
            cure="Take one of them away.",
        )
    if options.mixed_precision not in ("", "bfloat16"):
        _unreadable("--mixed_precision", f'"{options.mixed_precision}"', "bfloat16")


def _with_ports_settled(options: ServerOptions) -> ServerOptions:
    """Leave out REST where it would take the port of gRPC, and the ports where the system chooses them."""
    if options.any_port:
        return replace(options, port=0, rest_api_port=0)
    return replace(options, rest_api_port=0) if options.rest_api_port == options.port else options


def _remarks(options: ServerOptions, given: dict[str, Any]) -> list[str]:
    notes = [
        f"--{name} has no effect without --{needed[0]}"
        for name, needed in _ONLY_WITH.items()
        if given.get(name) and not any(getattr(options, each) for each in needed)
    ]
    notes += [
        f"--{name} has no effect beside --{other}"
        for name, other in _NOT_WITH.items()
        if name in given and getattr(options, other)
    ]
    if options.tensorflow_session_parallelism > 0 and options.parallelism[0] != options.tensorflow_session_parallelism:
        notes.append("--tensorflow_session_parallelism has no effect beside --tensorflow_..._op_parallelism")
    if options.rest_api_port and options.rest_api_port == options.port and not options.any_port:
        notes.append(
            "--rest_api_port cannot be same as --port. Please use a different port for HTTP/REST API. Skipped "
            "exporting HTTP/REST API."
        )
    if not _is_private(options.host):
        notes.append(f"--host={options.host}: whoever reaches this machine can use and replace its models")
    return notes


def _is_private(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
