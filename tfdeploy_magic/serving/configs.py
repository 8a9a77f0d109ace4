"""The configuration files of ``tensorflow_model_server``: protocol buffers in text format.

Only some of their messages come with tensorflow-serving-api; the others are declared here (session_bundle_config.proto,
monitoring_config.proto and ssl_config.proto of TensorFlow Serving).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

from tfdeploy_magic.errors import InputError
from tfdeploy_magic.serving.batching import Rules
from tfdeploy_magic.serving.protos import model_server_config_pb2
from tfdeploy_magic.serving.status import Code, Refusal, invalid

PLATFORM = "tensorflow"
"""The one ``model_platform`` there is."""

METRICS_PATH = "/monitoring/prometheus/metrics"
"""Where Prometheus looks when no file says otherwise."""

DEFAULT_RULES = Rules(num_batch_threads=os.cpu_count() or 1, every_call=True)
"""Batching that was asked for without a file."""

_PACKAGE = "tensorflow.serving"

# In the order of their numbers. What may be left out, and is then not zero, is wrapped in a message.
_DECLARED = {
    "BatchingParameters": {
        "max_batch_size": "Int64Value",
        "batch_timeout_micros": "Int64Value",
        "max_enqueued_batches": "Int64Value",
        "num_batch_threads": "Int64Value",
        "thread_pool_name": "StringValue",
        "allowed_batch_sizes": "repeated int64",
        "pad_variable_length_inputs": "bool",
        "enable_large_batch_splitting": "BoolValue",
        "max_execution_batch_size": "Int64Value",
    },
    "PrometheusConfig": {"enable": "bool", "path": "string"},
    "MonitoringConfig": {"prometheus_config": "PrometheusConfig"},
    "SSLConfig": {"server_key": "string", "server_cert": "string", "custom_ca": "string", "client_verify": "bool"},
}

_HAS_SCHEME = re.compile(r"[a-zA-Z][0-9a-zA-Z.]*://")


@dataclass(frozen=True)
class Monitoring:
    """Where metrics are told to Prometheus, on the REST port.

    Args:
        enabled: Whether they are; TensorFlow Serving tells none where no file asks for them.
        path: Of the page.
    """

    enabled: bool = True
    path: str = METRICS_PATH


@dataclass(frozen=True)
class Ssl:
    """What the gRPC port proves itself with; each of these is PEM.

    Args:
        server_key: Private.
        server_cert: The chain of certificates.
        custom_ca: Who may have signed a client's certificate; empty for whom the system trusts.
        client_verify: Whether a client must show a certificate.
    """

    server_key: bytes = field(repr=False)
    server_cert: bytes
    custom_ca: bytes = b""
    client_verify: bool = False


def _messages(declared: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return a class for each message; the pool is our own, so that the real ones may be imported beside them."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="tfdeploy_magic/serving.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for name, fields in declared.items():
        message = file.message_type.add(name=name)
        for number, (each, kind) in enumerate(fields.items(), 1):
            plain = kind.removeprefix("repeated ")
            label = kinds.LABEL_REPEATED if plain != kind else kinds.LABEL_OPTIONAL
            if plain.islower():
                message.field.add(name=each, number=number, label=label, type=kinds.Type.Value(f"TYPE_{plain.upper()}"))
            else:
                package = _PACKAGE if plain in declared else "google.protobuf"
                message.field.add(
                    name=each, number=number, label=label, type=kinds.TYPE_MESSAGE, type_name=f".{package}.{plain}"
                )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in declared
    }


_MESSAGES = _messages(_DECLARED)


def single_model_config(name: str, base_path: str) -> Any:
    """Return the ``ModelServerConfig`` of one model, as ``--model_name`` and ``--model_base_path`` mean it."""
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(name=name, base_path=base_path, model_platform=PLATFORM)
    return config


def read_model_config(path: Path) -> Any:
    """Read a ``ModelServerConfig``; :func:`check_model_config` says whether it can be served.

    Raises:
        InputError: The file cannot be read, or is none; its text begins with TensorFlow Serving's own.
    """
    return _read(path, model_server_config_pb2.ModelServerConfig())


def check_model_config(config: Any, running: Any = None) -> None:
    """Refuse a ``ModelServerConfig`` that TensorFlow Serving refuses before it looks at any model (server_core.cc).

    Args:
        config: What is to be served.
        running: What is served now; None at the start.

    Raises:
        Refusal: It cannot be served, in TensorFlow Serving's words.
    """
    if running is not None and running.WhichOneof("config") and not config.HasField("model_config_list"):
        raise Refusal(
            Code.FAILED_PRECONDITION,
            "Cannot transition to requested config. It is only legal to transition from one ModelConfigList to "
            "another.",
        )
    if config.HasField("custom_model_config"):
        raise Refusal(Code.UNIMPLEMENTED, "ModelServer does not yet support custom model config.")
    models = config.model_config_list.config
    _check_names(models)
    served = {model.name: _platform(model) for model in running.model_config_list.config} if running else {}
    for model in models:
        if not _HAS_SCHEME.match(model.base_path) and not model.base_path.startswith("/"):
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )
    for model in models:
        platform, before = _platform(model), served.get(model.name)
        if before is not None and platform != before:
            raise invalid(
                f"Illegal to change a model's platform. For model {model.name} platform was {before} and new platform "
                f"requested is {platform}"
            )
        if platform != PLATFORM:
            raise invalid(f"Model {model.name} requests unsupported platform {platform}")


def remarks(config: Any) -> tuple[str, ...]:
    """Return a line for each thing that a ``ModelServerConfig`` asks for in vain."""
    return tuple(
        f"logging_config of model {model.name} has no effect: it names no file; --request_log_file does"
        for model in config.model_config_list.config
        if model.HasField("logging_config")
    )


def read_batching_parameters(path: Path) -> Rules:
    """Read ``BatchingParameters``; what the file leaves out is as in TensorFlow Serving.

    ``thread_pool_name`` only labels threads, and is not kept.

    Raises:
        InputError: The file cannot be read, is none, or its numbers do not go together.
    """
    given = _read(path, _MESSAGES["BatchingParameters"]())
    wrapped = {each.name: getattr(given, each.name).value for each, _ in given.ListFields() if each.message_type}
    wrapped.pop("thread_pool_name", None)
    splits = wrapped.get("enable_large_batch_splitting", False)
    if not splits and wrapped.get("max_enqueued_batches") == 0:
        wrapped["max_enqueued_batches"] = 1  # as SharedBatchScheduler has it
    rules = Rules(
        allowed_batch_sizes=tuple(given.allowed_batch_sizes),
        pad_variable_length_inputs=given.pad_variable_length_inputs,
        every_call=True,
        **{"num_batch_threads": DEFAULT_RULES.num_batch_threads, **wrapped},
    )
    if (complaint := _complaint(rules)) is not None:
        raise InputError(
            f"the batching parameters of {path} do not go together",
            found=complaint,
            wanted="sizes in increasing order up to the largest batch, and no size or count below 1",
            cure="Change the file.",
        )
    return rules


def read_monitoring_config(path: Path) -> Monitoring:
    """Read a ``MonitoringConfig``.

    Raises:
        InputError: The file cannot be read, is none, or its path is none of HTTP's.
    """
    prometheus = _read(path, _MESSAGES["MonitoringConfig"]()).prometheus_config
    if prometheus.path and not prometheus.path.startswith("/"):
        raise InputError(
            f"the metrics of {path} have no address",
            found=f'path: "{prometheus.path}"',
            wanted="a path that begins with a slash",
            cure=f'Write path: "/{prometheus.path}".',
        )
    return Monitoring(prometheus.enable, prometheus.path or METRICS_PATH)


def read_ssl_config(path: Path) -> Ssl:
    """Read an ``SSLConfig``.

    Raises:
        InputError: The file cannot be read, is none, or lacks a key or a certificate; no error quotes the file.
    """
    config = _read(path, _MESSAGES["SSLConfig"](), secret=True)
    needed = ["server_key", "server_cert", *(["custom_ca"] if config.client_verify or config.custom_ca else [])]
    for name in needed:
        if "-----BEGIN " not in getattr(config, name):
            raise InputError(
                f"{path} cannot secure the gRPC port",
                found=f"no PEM text in {name}",
                wanted=" and ".join(needed),
                cure=f"Write the text of the .pem file itself into {name}, each end of line as \\n.",
            )
    return Ssl(config.server_key.encode(), config.server_cert.encode(), config.custom_ca.encode(), config.client_verify)


def read_session_config(path: Path | None, gpu_memory_fraction: float = 0.0, mixed_precision: str = "") -> Any:
    """Return the ``ConfigProto`` that Sessions start from; this imports TensorFlow.

    Args:
        path: A file of one; None for an empty one.
        gpu_memory_fraction: Of a GPU's memory, what the process takes at once; 0 leaves that to TensorFlow.
        mixed_precision: "bfloat16", or nothing.

    Raises:
        InputError: The file cannot be read, or is none.
    """
    from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2

    config = config_pb2.ConfigProto() if path is None else _read(path, config_pb2.ConfigProto())
    if gpu_memory_fraction:
        config.gpu_options.per_process_gpu_memory_fraction = gpu_memory_fraction
    if mixed_precision == "bfloat16":
        options = config.graph_options.rewrite_options
        options.auto_mixed_precision_onednn_bfloat16 = rewriter_config_pb2.RewriterConfig.ON
    return config


def _read(path: Path, message: Any, *, secret: bool = False) -> Any:
    name = message.DESCRIPTOR.full_name
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read",
            found=error.strerror or type(error).__name__ if isinstance(error, OSError) else "bytes that are no UTF-8",
            wanted=f"a {name} in text format",
            cure="Check the path, and who may read it.",
        ) from error
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        said = f"line {error.GetLine()}" if secret else str(error).replace(" : ", ": ", 1).rstrip(".")
        # The first words are what clients of TensorFlow Serving look for in its standard error.
        raise InputError(
            f"Error parsing text-format {name}",
            found=f"{said} (in {path})",
            wanted="fields as name: value, messages as name { ... } and texts in quotes",
            cure="Change that place of the file.",
        ) from None


def _check_names(models: Any) -> None:
    seen = set()
    for model in models:
        if not model.name:
            raise invalid(f"Illegal to list a model without a name in config list; its base_path()={model.base_path}")
        if model.name in seen:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        seen.add(model.name)


def _platform(model: Any) -> str:
    kinds = model_server_config_pb2
    if model.model_type == kinds.MODEL_TYPE_UNSPECIFIED:
        if not model.model_platform:
            raise invalid(
                "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
                "ModelServerConfig::model_platform."
            )
        return str(model.model_platform)
    if model.model_platform:
        raise invalid(
            "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform."
        )
    if model.model_type != kinds.TENSORFLOW:
        raise invalid(f"ModelServerConfig::model_type choice {model.model_type} not supported.")
    return PLATFORM


def _complaint(rules: Rules) -> str | None:
    """Return what SharedBatchScheduler or BatchingSession has against the rules; None where there is nothing."""
    for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
        if getattr(rules, name) < 1:
            return f"{name} must be positive; was {getattr(rules, name)}"
    if rules.batch_timeout_micros < 0:
        return f"batch_timeout_micros must be non-negative; was {rules.batch_timeout_micros}"
    if not 0 < rules.most_rows <= rules.max_batch_size:
        return (
            "When enable_large_batch_splitting is true, max_batch_size must be greater than or equal to "
            f"max_execution_batch_size; was {rules.max_batch_size} and {rules.max_execution_batch_size}"
        )
    sizes = rules.allowed_batch_sizes
    if sizes and any(after <= before for before, after in zip((0, *sizes), sizes, strict=False)):
        return "allowed_batch_sizes entries must be monotonically increasing"
    if sizes and sizes[-1] != rules.most_rows:
        kind = "be equal to max_execution" if rules.enable_large_batch_splitting else "match max"
        return (
            f"Last entry in allowed_batch_sizes must {kind}_batch_size; last entry was {sizes[-1]}; expected "
            f"{rules.most_rows}"
        )
    return None
