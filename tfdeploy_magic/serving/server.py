"""A model server: models, REST and gRPC doors, metrics and the request log, put together as the options say."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.errors import InputError, ServingError, VersionFailed
from tfdeploy_magic.serving import configs, inference, services, state, warmup
from tfdeploy_magic.serving.calls import Call
from tfdeploy_magic.serving.flags import ServerOptions
from tfdeploy_magic.serving.http import HttpDoor, check_port, free_port, reached
from tfdeploy_magic.serving.lineup import Arm
from tfdeploy_magic.serving.models import ModelManager
from tfdeploy_magic.serving.monitoring import Monitoring
from tfdeploy_magic.serving.request_log import RequestLog
from tfdeploy_magic.serving.rest import RestApi
from tfdeploy_magic.serving.router import Router, Routing
from tfdeploy_magic.serving.servable import LoadedVersion, Settings
from tfdeploy_magic.serving.status import Refusal
from tfdeploy_magic.sources.native import native_stderr_to

GRACE_SECONDS = 2.0
"""How long calls that are being answered may take when the server stops."""

_PER_MODEL_RULES = "batching_params.pbtxt"

_log = logging.getLogger(__name__)


class ModelServer:
    """A running server.

    Args:
        options: What a command line asks for.
        kernel: The process whose end this server ends with, for others to know; None where there is none.

    Raises:
        InputError: A configuration file cannot be used.
        ServingError: A port is taken.
        VersionFailed: A model has nothing that can be loaded.
    """

    def __init__(self, options: ServerOptions, *, kernel: int | None = None) -> None:
        self.options = options
        self.monitoring = Monitoring()
        self.router = Router(lambda split: self.monitoring.split(split.model, split))
        self._config = _config_of(options)
        self._settings = _settings(options)
        self._monitored = _monitored(options)
        self.port, self.rest_port = _ports(options)
        self._reloading, self._routing = threading.Lock(), threading.Lock()
        self._stopping = threading.Event()
        self.models = ModelManager(
            self._load,
            poll_seconds=options.file_system_poll_wait_seconds,
            retries=options.max_num_load_retries,
            retry_seconds=max(0.0, options.load_retry_interval_micros / 1e6),
            load_threads=options.num_load_threads or 1,
            labels_for_unavailable=options.allow_version_labels_for_unavailable_models,
        )
        self._log: RequestLog | None = None
        self._rest: HttpDoor | None = None
        self._grpc: Any = None
        self._kernel = kernel
        self._noted: Path | None = None
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str | None:
        """Of its REST API."""
        return f"http://{reached(self.options.host)}:{self.rest_port}" if self.rest_port else None

    @property
    def grpc_address(self) -> str | None:
        """Of its gRPC API."""
        return f"{reached(self.options.host)}:{self.port}" if self.port else None

    def reload(self, config: Any) -> None:
        """Serve what a ``ModelServerConfig`` lists (``calls.Models``).

        Raises:
            Refusal: It cannot be.
        """
        with self._reloading:
            configs.check_model_config(config, self._config)
            for entry in config.model_config_list.config:
                self.monitoring.served(entry.name)
            self.models.reload(config)
            self._config = config
            for remark in configs.remarks(config):
                _log.warning(remark)
            if self._noted is not None:
                self._note()

    def route(self, routes: Mapping[str, Sequence[Arm]]) -> None:
        """Split the requests of these models among these arms from now on, and those of others as before.

        Args:
            routes: The arms of each model; where there are none, it is not split any longer.

        Raises:
            InputError: Shares do not add up to 1, or two arms are called alike; all is as it was.
        """
        with self._routing:
            self.router.set({**self.router.routes, **routes})

    def stop(self) -> None:
        """Stop listening, answer what has been asked, and unload everything."""
        self._stopping.set()
        if self._noted is not None:
            self._noted.unlink(missing_ok=True)
        ended = self._grpc.stop(GRACE_SECONDS) if self._grpc is not None else None
        if self._rest is not None:
            self._rest.close()
        if ended is not None:
            ended.wait()
        self.models.close()
        if self._log is not None:
            self._log.close()

    # Starting

    def _start(self) -> None:
        try:
            self.reload(self._config)
        except Refusal as refusal:
            raise VersionFailed(
                "the models cannot be served",
                found=str(refusal),
                wanted="a base path that holds numbered directories, each a whole SavedModel",
                cure="Look at the directory, or export the model again.",
            ) from refusal
        self._log = _request_log(self.options, self.monitoring)
        if self.rest_port:
            self._rest = self._rest_door()
        if self.port or self.options.grpc_socket_path is not None:
            self._grpc = self._grpc_server()
        if self.options.model_config_file is not None and self.options.model_config_file_poll_wait_seconds > 0:
            threading.Thread(target=self._read_config_again, name="model-config", daemon=True).start()
        self._note()

    def _note(self) -> None:
        """Tell others that this server runs; one that cannot is found by whoever knows its address."""
        before = self._noted
        models = {entry.name: entry.base_path for entry in self._config.model_config_list.config}
        try:
            self._noted = state.note(tuple(models), self.url, self.grpc_address, models, self._kernel)
        except OSError as error:
            _log.warning("%s cannot be written (%s): this server is in no list", state.folder(), error.strerror)
        if before is not None:
            before.unlink(missing_ok=True)

    def _rest_door(self) -> HttpDoor:
        options = self.options
        api = RestApi(
            self.models,
            observe=functools.partial(self._observe, "REST"),
            router=self.router,
            count=lambda split, outcomes: self.monitoring.outcomes(split.model, split, outcomes),
            check_method_names=options.enable_signature_method_name_check,
            timeout=options.rest_api_timeout_in_ms / 1000,
            record=self._record,
        )
        return HttpDoor(
            api,
            options.host,
            self.rest_port,
            metrics_path=self._monitored.path if self._monitored.enabled else None,
            metrics=self.monitoring.text,
            cors=options.rest_api_enable_cors_support,
            timeout=options.rest_api_timeout_in_ms / 1000,
        )

    def _grpc_server(self) -> Any:
        options = self.options
        server = grpc.server(
            futures.ThreadPoolExecutor(options.grpc_max_threads, thread_name_prefix="grpc"),
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                *options.grpc_channel_arguments,
            ],
        )
        services.register(
            server,
            self,
            check_method_name=options.enable_signature_method_name_check,
            tensor_content=options.enable_serialization_as_tensor_content,
            health=options.enable_grpc_healthcheck_service,
            profiler=options.enable_profiler,
            router=self.router,
            observe=functools.partial(self._observe, "GRPC"),
            record=self._log.record if self._log is not None else None,
        )
        for address in _grpc_addresses(options.host, self.port, options.grpc_socket_path):
            _listen(server, address, options.ssl_config_file)
        server.start()
        return server

    def _read_config_again(self) -> None:
        path = self.options.model_config_file
        assert path is not None
        while not self._stopping.wait(self.options.model_config_file_poll_wait_seconds):
            try:
                config = configs.read_model_config(path)
                if config != self._config:
                    self.reload(config)
            except (InputError, Refusal) as error:  # what is served goes on
                _log.error("%s is left as it was: %s", path, error)

    # Models, as the doors see them

    def use(self, name: str, version: int | None = None, label: str | None = None) -> Any:
        """Hold a version (``calls.Models``)."""
        return self.models.use(name, version, label)

    def statuses(self, name: str, version: int | None = None) -> Any:
        """Return the state of versions (``calls.Models``)."""
        return self.models.statuses(name, version)

    def _load(self, name: str, version: int, path: Path) -> LoadedVersion:
        _import_tensorflow()
        settings = self._settings
        rules_file = path / _PER_MODEL_RULES
        if settings.rules is not None and self.options.enable_per_model_batching_parameters and rules_file.exists():
            own = configs.read_batching_parameters(rules_file)
            rules = dataclasses.replace(own, num_batch_threads=settings.rules.num_batch_threads)
            settings = dataclasses.replace(settings, rules=rules)
        loaded = LoadedVersion(
            name,
            version,
            path,
            settings,
            batched=functools.partial(self.monitoring.batch, name),
            ran=functools.partial(self.monitoring.ran, name, "Predict", "TF1"),
        )
        try:
            if self.options.enable_model_warmup:
                self._warm_up(loaded)
        except BaseException:
            loaded.close()
            raise
        return loaded

    def _warm_up(self, loaded: LoadedVersion) -> None:
        began = time.perf_counter()
        logs: list[Any] = []
        status = "OK"
        try:
            logs = warmup.read(loaded.path)
            for log in logs:
                for call in inference.calls_of(loaded.signatures, log):
                    for _ in range(max(1, self.options.num_request_iterations_for_warmup)):
                        loaded.answer(call)
        except Refusal as refusal:
            status = refusal.code.name
            raise
        finally:
            if logs or status != "OK":
                spent = (time.perf_counter() - began) * 1e6
                self.monitoring.warmed_up(str(loaded.path), status, spent, len(logs))

    def _observe(
        self, door: Any, api: Any, model: str, status: str, microseconds: float, examples: int, routing: Routing
    ) -> None:
        self.monitoring.request(model, status, api, door, microseconds, routing.version, routing.arm, routing.split)
        if examples and status == "OK":
            self.monitoring.examples(model, examples)

    @property
    def _record(self) -> Callable[[str, int, Call, Arrays], None] | None:
        log = self._log
        if log is None:
            return None

        def record(model: str, version: int, call: Call, answers: Arrays) -> None:
            log.record_predict(model, version, call.signature, call.inputs, answers)

        return record


def _import_tensorflow() -> None:
    """Import it without the notices that it prints of itself."""
    if "tensorflow" not in sys.modules:
        with native_stderr_to(Path(os.devnull)):
            importlib.import_module("tensorflow")


def _config_of(options: ServerOptions) -> Any:
    if options.model_config_file is not None:
        return configs.read_model_config(options.model_config_file)
    return configs.single_model_config(options.model_name, options.model_base_path)


def _settings(options: ServerOptions) -> Settings:
    intra, inter = options.parallelism
    rules = None
    if options.enable_batching:
        file = options.batching_parameters_file
        rules = configs.read_batching_parameters(file) if file is not None else configs.DEFAULT_RULES
    session_config = None
    if options.tensorflow_session_config_file or options.mixed_precision or options.per_process_gpu_memory_fraction:
        session_config = configs.read_session_config(
            options.tensorflow_session_config_file, options.per_process_gpu_memory_fraction, options.mixed_precision
        )
    return Settings(
        tags=options.saved_model_tags,
        lite=options.prefer_tflite_model,
        gpu=options.gpu,
        intra_op_threads=intra,
        inter_op_threads=inter,
        rules=rules,
        session_config=session_config,
        lite_interpreters=options.num_tflite_pools,
    )


def _request_log(options: ServerOptions, monitoring: Monitoring) -> RequestLog | None:
    if options.request_log_file is None:
        return None
    return RequestLog(
        options.request_log_file, options.request_log_sampling_rate, options.request_log_max_records, monitoring
    )


def _monitored(options: ServerOptions) -> configs.Monitoring:
    if options.monitoring_config_file is None:
        return configs.Monitoring()
    return configs.read_monitoring_config(options.monitoring_config_file)


def _ports(options: ServerOptions) -> tuple[int, int]:
    """Return the ports of gRPC and of REST, 0 for none; those that are fixed must be free."""
    if options.any_port:
        return free_port(options.host), free_port(options.host)
    for port in filter(None, (options.port, options.rest_api_port)):
        check_port(options.host, port)
    return options.port, options.rest_api_port


def _grpc_addresses(host: str, port: int, socket_path: Path | None) -> list[str]:
    addresses = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"] if port else []
    return [*addresses, f"unix:{socket_path}"] if socket_path is not None else addresses


def _listen(server: Any, address: str, ssl_config_file: Path | None) -> None:
    try:
        if ssl_config_file is None:
            server.add_insecure_port(address)
            return
        ssl = configs.read_ssl_config(ssl_config_file)
        credentials = grpc.ssl_server_credentials(
            [(ssl.server_key, ssl.server_cert)], ssl.custom_ca or None, require_client_auth=ssl.client_verify
        )
        server.add_secure_port(address, credentials)
    except RuntimeError as error:
        said = re.sub(r"^.*?: |;.*", "", str(error).splitlines()[0])
        raise ServingError(
            f"cannot listen on {address}",
            found=said or "another program there",
            wanted="an address of this machine that nobody listens on",
            cure="Choose another port or path.",
        ) from error
