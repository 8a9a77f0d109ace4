"""``%serve``'s server beside what tutorials write, its own HTTP library answering a constant, and the model alone.

What counts is the CPU of the server's process for each answer: requests a second say more about the machine's other
tenants, the clients among them. All servers are up at once and asked in turn, round after round, so that a machine that
gets slower or faster does so for all of them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import psutil

from benchmarks.conversion import start_server
from benchmarks.report import Row, run
from tfdeploy_magic.jobs import Report, silent
from tfdeploy_magic.serving import hosting, load
from tfdeploy_magic.serving.client import Client
from tfdeploy_magic.serving.http import free_port

ROUNDS = 3
TINY, TINY_CLIENTS, TINY_SECONDS = "tiny", 32, 2.0
LARGE, LARGE_CLIENTS, LARGE_SECONDS = "mobilenet_v2", 8, 3.0
IMAGES = 4
BATCH = 8
START_SECONDS = 180.0
SWAPS, SWAP_SECONDS, LEAST_REQUESTS = 3, 10.0, 10_000
CONSTANT = "a constant"
PREDICT, SIGNATURE, FASTAPI = "Flask + model.predict", "Flask + signature", "FastAPI + signature"
PEERS = {PREDICT: "flask-predict", SIGNATURE: "flask-signature", FASTAPI: "fastapi-signature"}
"""What the table calls them -> what ``benchmarks.serving_peers`` does."""

ROOT = Path(__file__).parent.parent
BENCH = ROOT / ".bench"
"""The packages of the peers, which are no business of this one's."""

REQUIREMENTS = ("flask>=3.1", "fastapi>=0.115", "uvicorn[standard]>=0.34")
IMPORT_ROUNDS = 5
IMPORT_CLIENT = """
import time
began = time.perf_counter()
from tfdeploy_magic.serving.client import Client
print(time.perf_counter() - began)
"""

Images = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Round:
    """What one round of load took: ms of the server's CPU for each answer, and what the clients saw."""

    cpu: float
    seen: load.Load


@dataclass
class Server:
    """A server in a process of its own, and the rounds that it was asked in.

    Args:
        label: What the table calls it.
        process: Its process.
        url: Of its REST; a model's name goes where "NAME" is.
        grpc: Of its gRPC, where it has one.
        rounds: By what was asked.
    """

    label: str
    process: subprocess.Popen[bytes]
    url: str
    grpc: str = ""
    rounds: dict[str, list[Round]] = field(default_factory=dict)

    def ask(self, what: str, target: load.Target, *, clients: int, seconds: float) -> None:
        """Have it asked for a round."""
        before = self._cpu_seconds()
        seen = load.run(target, clients=clients, seconds=seconds, timeout=120)
        spent = self._cpu_seconds() - before
        assert not seen.failed, f"{self.label}, {what}: {seen.failures}: {seen.first_failure}"
        self.rounds.setdefault(what, []).append(Round(spent * 1e3 / seen.requests, seen))

    def rest(self, model: str, *bodies: bytes) -> load.Target:
        """Return what asks for a model in JSON."""
        return load.Target(self.url.replace("NAME", model), bodies)

    def cpu(self, what: str) -> float:
        """Return the CPU for an answer, ms."""
        return median(each.cpu for each in self.rounds[what])

    def interval(self, what: str) -> float:
        """Return the time from answer to answer, ms: the inverse of the throughput."""
        return median(1e3 / each.seen.throughput for each in self.rounds[what])

    def p99(self, what: str) -> float:
        """Return the 99th percentile of the latency, ms."""
        return median(each.seen.p99_ms or 0.0 for each in self.rounds[what])

    def told(self, what: str) -> str:
        """Return the rounds in words."""
        cpu = _spread([each.cpu for each in self.rounds[what]])
        rates = _spread([each.seen.throughput for each in self.rounds[what]], 0)
        return f"{self.label}: {cpu} ms of CPU, {rates} answers/s, p99 {self.p99(what):.1f} ms"

    def _cpu_seconds(self) -> float:
        process = psutil.Process(self.process.pid)
        times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
        return float(sum(each.user + each.system for each in times))


def measure() -> Iterator[Row]:
    """Measure all of it; without Flask and FastAPI the rows that they stand beside are left out."""
    problem = install_peers()
    with tempfile.TemporaryDirectory(prefix="tfdeploy-benchmark-") as scratch, contextlib.ExitStack() as running:
        folder = Path(scratch)
        alone = write_models(folder)
        ours, constant, *peers = start_servers(folder, {} if problem else PEERS, running)
        yield from _tiny(ours, constant, peers, problem)
        yield from _large(ours, peers, alone)
        yield _swaps(ours, folder / TINY)
        for server in (ours, constant, *peers):
            _end(server.process)  # whoever starts next has the machine for itself
        yield from _starts(folder)
    imports = [_import_client() for _ in range(IMPORT_ROUNDS)]
    yield Row(
        "import of the client, s",
        median(imports),
        most=1,
        notes=(f"median of {IMPORT_ROUNDS} fresh interpreters: {_spread(imports)}",),
    )


def install_peers() -> str | None:
    """Install Flask and FastAPI in a folder of their own, where they are not; return why that failed."""
    done = BENCH / "installed"
    wanted = " ".join(REQUIREMENTS)
    if done.exists() and done.read_text() == wanted:
        return None
    shutil.rmtree(BENCH, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(BENCH), *REQUIREMENTS]
    tried = subprocess.run(pip, capture_output=True, text=True)
    if tried.returncode:
        return (tried.stderr.strip() or "pip failed").splitlines()[-1]
    done.write_text(wanted)
    return None


def write_models(folder: Path) -> Callable[[], float]:
    """Write both models, and return what measures the CPU that the large one takes by itself: ms for an image."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    tiny = keras.Sequential([keras.Input(()), keras.layers.Rescaling(0.5, offset=2.0)])
    large = keras.applications.MobileNetV2(weights=None)
    for name, model in ((TINY, tiny), (LARGE, large)):
        model.save(folder / f"{name}.keras")
        model.export(folder / name / "1", verbose=False)
    model = tf.saved_model.load(str(folder / LARGE / "1"))
    (source,) = model.signatures["serving_default"].structured_input_signature[1]
    batch = {source: tf.constant(_images(BATCH))}

    def alone() -> float:
        signature = model.signatures["serving_default"]
        signature(**batch)  # the first call of all prepares what later ones find
        began, used, images = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() < began + LARGE_SECONDS:
            signature(**batch)
            images += BATCH
        return (time.process_time() - used) * 1e3 / images

    return alone


def start_servers(folder: Path, peers: dict[str, str], running: contextlib.ExitStack) -> list[Server]:
    """Start ours, the constant and the peers together; return when all of them answer. ``running`` ends them."""
    config = folder / "models.config"
    entries = (
        f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" }}'
        for name in (TINY, LARGE)
    )
    config.write_text(f"model_config_list {{ {' '.join(entries)} }}")
    rest, grpc = free_port("127.0.0.1"), free_port("127.0.0.1")
    command = [
        str(Path(sys.executable).with_name("tfdeploy-serve")),
        "--host=127.0.0.1",
        f"--model_config_file={config}",
    ]
    process = _start([*command, f"--rest_api_port={rest}", f"--port={grpc}"], folder / "ours.log", running)
    servers = [Server("ours", process, f"http://127.0.0.1:{rest}/v1/models/NAME:predict", f"127.0.0.1:{grpc}")]
    for label, peer in {CONSTANT: "constant", **peers}.items():
        port = free_port("127.0.0.1")
        command = [sys.executable, "-m", "benchmarks.serving_peers", peer, str(port), str(folder)]
        process = _start(command, folder / f"{peer}.log", running, PYTHONPATH=str(BENCH))
        servers.append(Server(label, process, f"http://127.0.0.1:{port}/NAME"))
    for server in servers:
        _wait_until_right(server)
    return servers


def _start(command: list[str], log: Path, running: contextlib.ExitStack, **more: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2", **more}
    with log.open("wb") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
    running.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_right(server: Server) -> None:
    """Wait until a server answers what it should."""
    ends = time.monotonic() + START_SECONDS
    while True:
        assert server.process.poll() is None and time.monotonic() < ends, f"{server.label} does not start"
        try:
            predictions = _predictions(server, TINY, _tiny_body())
            break
        except OSError:
            time.sleep(0.2)
    assert np.allclose(predictions, [2.5, 3.0, 4.5]), f"{server.label} answers {predictions}"
    if server.label != CONSTANT:
        predictions = _predictions(server, LARGE, _large_bodies()[0])
        assert np.shape(predictions) == (1, 1000) and np.allclose(np.sum(predictions), 1, atol=1e-3)


def _predictions(server: Server, model: str, body: bytes) -> Any:
    asked = urllib.request.Request(server.rest(model).url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=START_SECONDS) as answer:
        return json.load(answer)["predictions"]


def _tiny(ours: Server, constant: Server, peers: list[Server], problem: str | None) -> Iterator[Row]:
    servers = (ours, constant, *peers)
    for _ in range(ROUNDS):
        for server in servers:
            target = server.rest(TINY, _tiny_body())
            server.ask(TINY, target, clients=TINY_CLIENTS, seconds=TINY_SECONDS)
    what = f"of x*0.5+2 on 3 numbers, {TINY_CLIENTS} clients"
    rounds = tuple(server.told(TINY) for server in servers)
    skipped = (f"Flask and FastAPI could not be installed: {problem}",) if problem else (_versions(),)
    yield Row(
        f"server CPU {what}, in constant answers of its HTTP library",
        ours.cpu(TINY) / constant.cpu(TINY),
        most=5,
        notes=(*rounds, *skipped),
    )
    for peer in peers:
        limit = 25 if peer.label == SIGNATURE else None
        yield Row(f"server CPU {what}, ms; {peer.label}", ours.cpu(TINY), peer.cpu(TINY), limit, digits=3)
    for peer in (constant, *peers):
        yield Row(f"p99 latency {what}, ms; {peer.label}", ours.p99(TINY), peer.p99(TINY))


def _large(ours: Server, peers: list[Server], alone: Callable[[], float]) -> Iterator[Row]:
    bodies = _large_bodies()
    with Client(ours.url.replace("NAME:predict", LARGE), grpc=ours.grpc) as client:
        tensors = client.target(list(_images(IMAGES)[:, None]), over="grpc")
    floor = []
    for _ in range(ROUNDS):
        floor.append(alone())
        ours.ask("gRPC", tensors, clients=LARGE_CLIENTS, seconds=LARGE_SECONDS)
        for server in (ours, *peers):
            server.ask("JSON", server.rest(LARGE, *bodies), clients=LARGE_CLIENTS, seconds=LARGE_SECONDS)
    batched = f"the model alone, {BATCH} images a call of its signature: {_spread(floor)} ms of CPU an image"
    for way, most, servers in (("JSON", 1.6, (ours, *peers)), ("gRPC", 1.25, (ours,))):
        yield Row(
            f"server CPU of MobileNetV2 by {way}, {LARGE_CLIENTS} clients, in the model's own",
            ours.cpu(way) / median(floor),
            most=most,
            notes=(batched, *(server.told(way) for server in servers)),
        )
    what = f"MobileNetV2 by JSON, {LARGE_CLIENTS} clients, ms"
    for peer in peers:
        limit = 5 if peer.label == FASTAPI else None
        yield Row(f"time for each answer of {what}; {peer.label}", ours.interval("JSON"), peer.interval("JSON"), limit)
    for peer in peers:
        yield Row(f"p99 latency of {what}; {peer.label}", ours.p99("JSON"), peer.p99("JSON"))


def _swaps(ours: Server, base_path: Path) -> Row:
    """Swap versions in while clients ask."""
    took = []
    with ThreadPoolExecutor(1) as clients, Client(ours.url.replace("NAME:predict", TINY)) as client:
        target = ours.rest(TINY, _tiny_body())
        seen = clients.submit(load.run, target, clients=TINY_CLIENTS, seconds=SWAP_SECONDS)
        for version in range(2, 2 + SWAPS):
            time.sleep(SWAP_SECONDS / (SWAPS + 2))
            shutil.copytree(base_path / "1", base_path / ".next")
            (base_path / ".next").rename(base_path / str(version))
            began = time.perf_counter()
            while (newest := client.status()[0]).version != version or newest.state != "AVAILABLE":
                assert time.perf_counter() - began < 60, f"version {version} is {newest}"
                time.sleep(0.02)
            took.append(time.perf_counter() - began)
        result = seen.result()
        assert [one.version for one in client.status() if one.state == "AVAILABLE"] == [version]
    assert result.requests >= LEAST_REQUESTS, f"{result.requests} requests prove too little"
    return Row(
        f"failed of {result.requests:,} requests while {SWAPS} versions are swapped in",
        result.failed,
        most=0,
        digits=0,
        notes=(f"each was served {_spread(took)} s after it lay on disk; {result.first_failure or 'none failed'}",),
    )


def _starts(folder: Path) -> Iterator[Row]:
    """Start servers as ``%serve`` does, which has just exported and whose fork server is up."""
    start_server()
    for name, version, words in ((TINY, 1 + SWAPS, "x*0.5+2"), (LARGE, 1, "MobileNetV2")):
        seconds = []
        for _ in range(ROUNDS):
            host = hosting.Host(name, folder / name, ours=False, in_kernel=False)
            began = time.perf_counter()
            host.start(version, ["--host=127.0.0.1", "--any_port"], Report(silent), gpu=False)
            seconds.append(time.perf_counter() - began)
            host.stop()
        yield Row(f"start of a server, {words}, s", median(seconds), most=3, notes=(f"rounds: {_spread(seconds)}",))


def _import_client() -> float:
    done = subprocess.run([sys.executable, "-c", IMPORT_CLIENT], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _tiny_body() -> bytes:
    return b'{"instances": [1.0, 2.0, 5.0]}'


def _large_bodies() -> list[bytes]:
    images = _images(IMAGES)[:, None]
    return [orjson.dumps({"instances": image}, option=orjson.OPT_SERIALIZE_NUMPY) for image in images]


def _images(count: int) -> Images:
    return np.random.default_rng(0).random((count, 224, 224, 3), np.float32) * 2 - 1


def _versions() -> str:
    found = {each.name.lower(): each.version for each in importlib.metadata.distributions(path=[str(BENCH)])}
    return ", ".join(f"{package} {found[package]}" for package in ("flask", "fastapi", "uvicorn"))


def _spread(values: list[float], digits: int = 3) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


if __name__ == "__main__":
    run(measure)
