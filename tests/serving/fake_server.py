"""A server that speaks just enough of TensorFlow Serving's REST and gRPC: one model that answers what it is asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc

from tfdeploy_magic.serving.protos import predict_pb2, prediction_service_pb2_grpc

Specs = dict[str, tuple[str, list[int] | None]]


@dataclass
class Fake:
    """What it answers, and what it was asked.

    Args:
        port: Where it listens for REST.
        grpc: The address of its gRPC.
    """

    port: int = 0
    grpc: str = ""
    answers: dict[str, tuple[int, str | bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    messages: list[Any] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    """The key that came with each request to predict, over either."""
    connections: set[int] = field(default_factory=set)
    respond: Callable[[Any, Any], Any] | None = None
    """What gRPC answers to a message, given its context; by default what it was asked."""
    hold: threading.Event | None = None
    """What every REST answer waits for."""
    ends_connections: bool = False
    """Whether it ends a connection after each answer, without a word in it, as after a time of idleness."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/models/echo"

    def has(self, inputs: Specs, outputs: Specs | None = None, name: str = "echo") -> None:
        """Give the model this signature."""
        sides = {"inputs": inputs, "outputs": inputs if outputs is None else outputs}
        signature = {
            side: {
                key: {
                    "dtype": dtype,
                    "tensor_shape": {
                        "dim": [{"size": str(size), "name": ""} for size in shape or ()],
                        "unknown_rank": shape is None,
                    },
                    "name": f"{key}:0",
                }
                for key, (dtype, shape) in specs.items()
            }
            for side, specs in sides.items()
        }
        answer = {
            "model_spec": {"name": name, "signature_name": "", "version": "3"},
            "metadata": {"signature_def": {"signature_def": {"serving_default": signature}}},
        }
        self.answers[f"/v1/models/{name}/metadata"] = (200, json.dumps(answer))

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        self.asked.append((method, path, body))
        if self.hold is not None:
            self.hold.wait(20)
        if path in self.answers:
            status, text = self.answers[path]
            return status, text if isinstance(text, bytes) else text.encode()
        if path.endswith(":predict"):
            return 200, json.dumps({"outputs": json.loads(body)["inputs"]}).encode()
        return 404, b'{\n    "error": "Could not find any versions of model echo"\n}'


def _handler(fake: Fake) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._reply(b"")

        def do_POST(self) -> None:
            self._reply(self.rfile.read(int(self.headers["Content-Length"])))

        def _reply(self, body: bytes) -> None:
            fake.connections.add(self.client_address[1])
            if self.path.endswith(":predict"):
                fake.keys.append(self.headers["x-tfdeploy-key"])
            status, answer = fake.answer(self.command, self.path, body)
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
            self.close_connection = fake.ends_connections

        def log_message(self, *said: Any) -> None:
            pass

    return Handler


class _Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    def __init__(self, fake: Fake) -> None:
        self._fake = fake

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._fake.messages.append(request)
        self._fake.keys.append(dict(context.invocation_metadata()).get("x-tfdeploy-key"))
        if self._fake.respond is not None:
            return self._fake.respond(request, context)
        answer = predict_pb2.PredictResponse()
        for name, tensor in request.inputs.items():
            answer.outputs[name].CopyFrom(tensor)
        return answer


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, address: Any) -> None:
        pass  # clients that leave in the middle are part of the tests


@contextlib.contextmanager
def serving() -> Iterator[Fake]:
    fake = Fake()
    fake.has({"x": ("DT_FLOAT", [-1, 3])})
    options = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    door = grpc.server(ThreadPoolExecutor(8), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Predictions(fake), door)
    fake.grpc = f"127.0.0.1:{door.add_insecure_port('127.0.0.1:0')}"
    door.start()
    with _Server(("127.0.0.1", 0), _handler(fake)) as server:
        fake.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield fake
        finally:
            if fake.hold is not None:
                fake.hold.set()
            server.shutdown()
            thread.join()
            door.stop(0).wait()
