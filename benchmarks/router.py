"""What splitting a model's requests costs our server: CPU of its process for each answer, with and without.

One server has one tiny model, in two versions. Requests to it are not split; those to two other names are, among its
versions, so that all are answered by what was loaded once. They are asked in turn, round after round, and what counts
is the difference within a round, so that a machine that gets slower or faster does so for all of them. Those who send
keys send them to the model that is not split, too. One thread answers gRPC: how several get in each other's way costs
more, and differs more from round to round, than what is measured.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

from benchmarks.conversion import start_server
from benchmarks.report import Row, run
from benchmarks.serving import ROOT
from tfdeploy_magic.jobs import Worker
from tfdeploy_magic.serving.client import Client
from tfdeploy_magic.serving.configs import single_model_config
from tfdeploy_magic.serving.lineup import Arm
from tfdeploy_magic.serving.protos import predict_pb2
from tfdeploy_magic.serving.router import KEY_HEADER

ROUNDS, SECONDS = 80, 0.25
CLIENTS = {"rest": 32, "grpc": 8}
KEYS = 997
MOST = 15
"""Microseconds of CPU that the router may add to a request."""

TASKS = "tfdeploy_magic.serving.process"
WHOLE, SAME, TWO = "whole", "same", "two"
"""The model, and the names that are split 90/10: between two arms that are one version of it, and between two."""

BETWEEN = {SAME: "one version under two names", TWO: "two versions"}
KEYED = {"": "at random", "key": "by key"}


@dataclass(frozen=True)
class Server:
    """A running server.

    Args:
        pid: Of its process.
        url: Of its REST API.
        grpc: Of its gRPC API.
    """

    pid: int
    url: str
    grpc: str

    def cpu(self, over: str) -> dict[str, list[float]]:
        """Have it asked in all ways, and return the CPU for an answer of each round, microseconds."""
        ways = {}
        for model, keyed in itertools.product((WHOLE, SAME, TWO), KEYED):
            keys = [f"user-{number}" for number in range(KEYS)] if keyed else [""]
            ways[model + keyed] = self._requests(model, keys) if over == "rest" else self._messages(model, keys)
        url = self.url if over == "rest" else self.grpc
        order = {"pid": self.pid, "over": over, "url": url, "clients": CLIENTS[over], "ways": ways}
        order |= {"seconds": SECONDS, "rounds": ROUNDS}
        command = [sys.executable, "-m", "benchmarks.router_clients"]
        done = subprocess.run(command, input=json.dumps(order), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        found: dict[str, list[float]] = json.loads(done.stdout)
        return found

    def _requests(self, model: str, keys: list[str]) -> list[str]:
        return [_encoded(_request(self.url, model, key)) for key in keys]

    def _messages(self, model: str, keys: list[str]) -> list[tuple[str, str]]:
        with Client(f"{self.url}/v1/models/{WHOLE}", grpc=self.grpc) as client:
            (whole,) = client.target([[1.0, 2.0, 5.0]], over="grpc").bodies
        message = predict_pb2.PredictRequest.FromString(whole)
        message.model_spec.name = model
        return [(_encoded(message.SerializeToString()), key) for key in keys]


def measure() -> Iterator[Row]:
    """Measure both doors, without keys and with them."""
    start_server()
    with tempfile.TemporaryDirectory(prefix="tfdeploy-benchmark-") as scratch, started(Path(scratch)) as server:
        for over in CLIENTS:
            taken = server.cpu(over)
            for model, keyed in itertools.product(BETWEEN, KEYED):
                yield _row(over, model, keyed, taken[WHOLE + keyed], taken[model + keyed])


def _row(over: str, model: str, keyed: str, whole: list[float], split: list[float]) -> Row:
    more = [with_it - without for with_it, without in zip(split, whole, strict=True)]
    low, _, high = quantiles(more, n=4)
    give = 1.57 * (high - low) / len(more) ** 0.5  # 95% of a median, as box plots have it (McGill, 1978)
    return Row(
        f"CPU that a split between {BETWEEN[model]}, {KEYED[keyed]}, adds to an answer over {over}, µs",
        median(more),
        most=MOST,
        notes=(
            f"median of {len(more)} rounds of {CLIENTS[over]} clients, give or take {give:.1f}; middle half "
            f"{low:.1f} to {high:.1f}; the whole answer takes {median(split):.1f} beside {median(whole):.1f} µs",
        ),
    )


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Server]:
    """Start a server whose models are split, as ``%serve`` does."""
    config = folder / "models.config"
    config.write_text(_model(folder))
    with Worker() as worker:
        argv = [f"--model_config_file={config}", "--host=127.0.0.1", "--any_port", "--grpc_max_threads=1"]
        found = worker.call(f"{TASKS}:start_task", {"argv": argv, "kernel": os.getpid()})
        arms = {
            SAME: (Arm("stable", 0.9, WHOLE, version=2), Arm("canary", 0.1, WHOLE)),
            TWO: (Arm("stable", 0.9, WHOLE, version=2), Arm("canary", 0.1, WHOLE, version=1)),
        }
        routes = {model: [asdict(arm) for arm in each] for model, each in arms.items()}
        worker.call(f"{TASKS}:route_task", {"routes": routes})
        with Client(f"{found['url']}/v1/models/{WHOLE}") as client:
            assert client.predict([1.0, 2.0, 5.0]).tolist() == [2.5, 3.0, 4.5]
        yield Server(found["pid"], found["url"], found["grpc"])
        worker.call(f"{TASKS}:stop_task", {"model": "default"})


def _model(folder: Path) -> str:
    """Write the model, in two versions that answer alike, and return the configuration that serves both."""
    import keras

    tiny = keras.Sequential([keras.Input(()), keras.layers.Rescaling(0.5, offset=2.0)])
    tiny.export(folder / WHOLE / "1", verbose=False)
    shutil.copytree(folder / WHOLE / "1", folder / WHOLE / "2")
    config = single_model_config(WHOLE, str(folder / WHOLE))
    config.model_config_list.config[0].model_version_policy.all.SetInParent()
    return str(config)


def _request(url: str, model: str, key: str) -> bytes:
    body = b'{"instances": [1.0, 2.0, 5.0]}'
    head = [
        f"POST /v1/models/{model}:predict HTTP/1.1",
        f"Host: {urllib.parse.urlsplit(url).netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *([f"{KEY_HEADER}: {key}"] if key else []),
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


if __name__ == "__main__":
    run(measure)
