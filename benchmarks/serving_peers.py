"""What tutorials write to serve a model, and our server's HTTP library with nothing behind it.

``python -m benchmarks.serving_peers PEER PORT FOLDER`` is one of them; ``benchmarks.serving`` starts each in a process
of its own. FOLDER holds, for each model, NAME.keras and the SavedModel NAME/1.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Answer = Callable[[Array], Array]

NAMES = ("tiny", "mobilenet_v2")


def main() -> None:
    peer, port, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if peer == "constant":
        serve_constant(port)
    answer_of = by_predict if peer.endswith("predict") else by_signature
    serve = serve_by_flask if peer.startswith("flask") else serve_by_fastapi
    serve({name: answer_of(folder, name) for name in NAMES}, port)


def by_predict(folder: Path, name: str) -> Answer:
    import keras

    model = keras.saving.load_model(folder / f"{name}.keras")
    return lambda x: model.predict(x, verbose=0)


def by_signature(folder: Path, name: str) -> Answer:
    import tensorflow as tf

    model = tf.saved_model.load(str(folder / name / "1"))
    signature = model.signatures["serving_default"]
    (source,) = signature.structured_input_signature[1]
    (target,) = signature.structured_outputs
    signature.loaded_from = model  # its variables live no longer than the model does
    return lambda x: signature(**{source: tf.constant(x)})[target].numpy()


def serve_by_flask(answers: dict[str, Answer], port: int) -> None:
    from flask import Flask, jsonify, request

    app = Flask(__name__)

    @app.post("/<name>")
    def predict(name: str) -> Any:
        x = np.array(request.get_json()["instances"], dtype=np.float32)
        return jsonify({"predictions": answers[name](x).tolist()})

    app.run(host="127.0.0.1", port=port, threaded=True)


def serve_by_fastapi(answers: dict[str, Answer], port: int) -> None:
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Request(BaseModel):
        instances: list  # type: ignore[type-arg]

    app = FastAPI()

    @app.post("/{name}")
    def predict(name: str, request: Request) -> Any:
        x = np.array(request.instances, dtype=np.float32)
        return {"predictions": answers[name](x).tolist()}

    uvicorn.run(app, host="127.0.0.1", port=port)


def serve_constant(port: int) -> None:
    """Serve as ``tfdeploy_magic.serving.http`` does."""
    import uvloop
    from granian.constants import HTTPModes, Interfaces
    from granian.server.embed import Server

    headers = [("Content-Type", "application/json")]

    async def answer(scope: Any, protocol: Any) -> None:
        await protocol()
        protocol.response_bytes(200, headers, b'{\n    "predictions": [2.5,3.0,4.5]\n}')

    server = Server(
        answer, address="127.0.0.1", port=port, interface=Interfaces.RSGI, http=HTTPModes.http1, websockets=False,
        log_enabled=False, backlog=1024,
    )  # fmt: skip
    uvloop.new_event_loop().run_until_complete(server.serve())


if __name__ == "__main__":
    main()
