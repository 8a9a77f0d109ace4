"""A ``tfdeploy-serve`` process with models of every kind, and ways to ask it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil

from tests.serving import saved_models as builders
from tests.serving.saved_models import SavedModels
from tfdeploy_magic.serving.protos import (
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    types_pb2,
)

START_SECONDS = 120.0
SECONDS = 60.0
IDLE_SECONDS = 10.0
"""How long a connection may lie idle before the server may have closed it."""
ODD_NAME = "v1.2-b_zwei hälften"
"""A model's name that a URL cannot hold as it is."""


@dataclass(frozen=True)
class Answer:
    """What REST answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


class Asking:
    """A REST address, asked over connections that are kept alive, one for each thread."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._own = threading.local()
        self._all: list[http.client.HTTPConnection] = []

    def __call__(self, method: str, path: str, body: Any = None, headers: Any = None) -> Answer:
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
            self._all.append(self._own.connection)
        connection = self._own.connection
        if time.monotonic() - getattr(self._own, "asked", 0.0) > IDLE_SECONDS:
            connection.close()  # the next request opens it again
        self._own.asked = time.monotonic()
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        for connection in self._all:
            connection.close()

    def get(self, path: str) -> Answer:
        return self("GET", path)

    def post(self, path: str, body: Any) -> Answer:
        return self("POST", path, body)

    def metrics(
        self, path: str = "/monitoring/prometheus/metrics"
    ) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Return what Prometheus' own parser reads: name and labels -> value."""
        from prometheus_client.parser import text_string_to_metric_families

        text = self.get(path).body.decode()
        return {
            (sample.name.removeprefix(":tensorflow:serving:"), frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def raw(self, data: bytes, *, wait: float = SECONDS) -> bytes:
        """Send bytes, and return all that comes back until the server or the time ends it."""
        received = b""
        with socket.create_connection(("127.0.0.1", self.port), SECONDS) as connection:
            connection.sendall(data)
            connection.settimeout(wait)
            with contextlib.suppress(TimeoutError, ConnectionError):
                while part := connection.recv(1 << 16):
                    received += part
        return received


@dataclass
class Process:
    """A ``tfdeploy-serve`` that runs."""

    process: subprocess.Popen[bytes]
    output: Path
    socket_path: Path | None = None

    def __post_init__(self) -> None:
        ports = dict(re.findall(r"(gRPC ModelServer at 127.0.0.1|REST API at: http://127.0.0.1):(\d+)", self.said))
        grpc_port, rest_port = (int(port) for _, port in sorted(ports.items(), reverse=True))
        self.grpc_address, self.rest_port = f"127.0.0.1:{grpc_port}", rest_port
        self.url = f"http://127.0.0.1:{rest_port}"
        self.ask = Asking(rest_port)

    @property
    def said(self) -> str:
        return self.output.read_text()

    @property
    def memory(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    @property
    def busy(self) -> bool:
        """Whether it has computed for some time since it was last asked this."""
        return psutil.Process(self.process.pid).cpu_percent(0.3) > 50

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


@contextlib.contextmanager
def running(folder: Path, *argv: str) -> Iterator[Process]:
    """Start a server on free ports, and end it."""
    output = folder / "stderr.txt"
    command = [sys.executable, "-m", "tfdeploy_magic.serving.cli", "--any_port", *argv]
    with output.open("wb") as stream:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    try:
        ends = time.monotonic() + START_SECONDS
        while "Exporting HTTP/REST API" not in output.read_text():
            assert process.poll() is None and time.monotonic() < ends, output.read_text()
            time.sleep(0.05)
        made = Process(process, output)
        yield made
        made.ask.close()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(SECONDS)


def channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])


def predictions(to: grpc.Channel) -> Any:
    return prediction_service_pb2_grpc.PredictionServiceStub(to)


def of_models(to: grpc.Channel) -> Any:
    return model_service_pb2_grpc.ModelServiceStub(to)


def spec(name: str, signature: str = "", version: int | None = None, label: str = "") -> Any:
    made = model_pb2.ModelSpec(name=name, signature_name=signature)
    if version is not None:
        made.version.value = version
    if label:
        made.version_label = label
    return made


def floats(*values: float) -> Any:
    """Return a ``PredictRequest``'s tensor ``x`` of these."""
    request = predict_pb2.PredictRequest()
    request.inputs["x"].dtype = types_pb2.DT_FLOAT
    request.inputs["x"].tensor_shape.dim.add(size=len(values))
    request.inputs["x"].float_val.extend(values)
    return request


def predict(to: grpc.Channel, of: Any, *values: float, **more: Any) -> Any:
    request = floats(*values)
    request.model_spec.CopyFrom(of)
    for name, value in more.items():
        getattr(request, name).extend(value)
    return predictions(to).Predict(request, timeout=SECONDS)


def states(to: grpc.Channel, name: str) -> dict[int, Any]:
    """Return the status of each version, as gRPC tells it."""
    request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec(name))
    return {each.version: each for each in of_models(to).GetModelStatus(request, timeout=SECONDS).model_version_status}


def available(ask: Asking, name: str) -> list[int]:
    """Return the versions that answer, as REST tells it."""
    answer = ask.get(f"/v1/models/{name}")
    if answer.status == 404:
        return []
    return [int(each["version"]) for each in answer.json["model_version_status"] if each["state"] == "AVAILABLE"]


def wait_until(done: Callable[[], object], seconds: float = SECONDS) -> None:
    ends = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.02)


def put(version_dir: Path, source: Path) -> None:
    """Make a version appear at once, as an export does: copied beside, then renamed."""
    partial = version_dir.with_name(f".{version_dir.name}")
    shutil.copytree(source, partial)
    partial.rename(version_dir)


def write_repository(folder: Path, models: SavedModels) -> Path:
    """Write base paths and a ``ModelServerConfig`` of them.

    ``half_plus_two`` has the versions 1 (labelled stable), 2 (canary; it adds 3) and a directory "00000123" that
    nobody asked for; ``empty`` and ``later`` have none yet.
    """
    half = folder / "half_plus_two"
    put(_made(half) / "1", models.half_plus_two / "1")
    builders.half_plus_two(half / "2", plus=3.0)
    put(half / "00000123", models.half_plus_two / "1")
    put(_made(folder / "odd") / "00000123", models.half_plus_two / "1")
    _lite(_made(folder / "lite") / "1", models.half_plus_two / "1")
    _scalars(folder / "scalars" / "1")
    for name in ("empty", "later"):
        _made(folder / name)
    put(_made(folder / "swapped") / "1", models.half_plus_two / "1")
    config = folder / "models.config"
    entries = [entry("half_plus_two", half, HALF)]
    entries += [entry(name, getattr(models, name)) for name in ("several", "tf1", "many", "texts", "state")]
    entries += [entry(name, folder / name) for name in ("lite", "scalars", "empty", "later", "swapped")]
    entries += [entry(ODD_NAME, folder / "odd")]
    config.write_text(listed(*entries), encoding="utf-8")
    return config


HALF = """model_version_policy { specific { versions: 1 versions: 2 } }
    version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 2 }"""


def entry(name: str, base: Path, more: str = "") -> str:
    """Return a model of a ``ModelServerConfig``."""
    return f'  config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" {more} }}\n'


def listed(*entries: str) -> str:
    """Return a ``ModelServerConfig`` in text."""
    return f"model_config_list {{\n{''.join(entries)}}}\n"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _lite(version_dir: Path, source: Path) -> None:
    import tensorflow as tf

    version_dir.mkdir()
    converted = tf.lite.TFLiteConverter.from_saved_model(str(source)).convert()
    (version_dir / "model.tflite").write_bytes(converted)


def _scalars(version_dir: Path) -> None:
    """Write signatures whose answers have no batch or batches of different sizes, of many dtypes, and over examples."""
    import tensorflow as tf

    def numbers(inputs: Any) -> Any:
        return tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"] * 0.5 + 2.0

    specs, examples = {"x": tf.TensorSpec(None)}, {"inputs": tf.TensorSpec([None], tf.string)}
    builders.save(
        version_dir,
        {
            "serving_default": (lambda x: {"y": x}, specs),
            "sum": (lambda x: {"y": tf.reduce_sum(x)}, specs),
            "uneven": (lambda x: {"a": x, "b": tf.concat([x, x], 0)}, {"x": tf.TensorSpec([None])}),
            "half": (lambda x: {"y": tf.cast(x, tf.float32)}, {"x": tf.TensorSpec([None], tf.half)}),
            "double": (lambda x: {"y": x}, {"x": tf.TensorSpec(None, tf.float64)}),
            "int8": (lambda x: {"y": x}, {"x": tf.TensorSpec(None, tf.int8)}),
            "int64": (lambda x: {"y": x}, {"x": tf.TensorSpec(None, tf.int64)}),
            "bool": (lambda x: {"y": x}, {"x": tf.TensorSpec(None, tf.bool)}),
            "tf2_classify": (lambda inputs: {"scores": numbers(inputs)}, examples),
            "tf2_regress": (lambda inputs: {"outputs": numbers(inputs)}, examples),
        },
    )


def write_slow(version_dir: Path) -> Path:
    """Write a model that counts to x, 300 000 a second."""
    import tensorflow as tf

    def count(x: Any) -> Any:
        last = tf.while_loop(lambda i: i < x[0], lambda i: [i + 1.0], [tf.constant(0.0, tf.float64)])[0]
        return {"y": tf.reshape(last, [1])}

    return builders.save(version_dir, {"serving_default": (count, {"x": tf.TensorSpec([1], tf.float64)})})


class Hammer:
    """Threads that ask without pause, and what they were answered."""

    def __init__(self, *asking: Callable[[], float]) -> None:
        self.answers: list[float] = []
        self.failures: list[str] = []
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(each,)) for each in asking]

    def __enter__(self) -> Hammer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, ask: Callable[[], float]) -> None:
        while not self._stopped.is_set():
            try:
                self.answers.append(ask())
            except Exception as error:
                self.failures.append(repr(error))
