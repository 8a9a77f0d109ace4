"""``tfdeploy-serve``: a model server on the command line, with the flags of ``tensorflow_model_server``."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from tfdeploy_magic.errors import TfdeployError
from tfdeploy_magic.serving import flags

STOP_SECONDS = 4.0
"""How long ending may take: a call that takes longer gets no answer."""


def main() -> int:
    """Serve until SIGINT or SIGTERM, which end the process with status 0.

    Returns:
        The exit status 1: it could not start.
    """
    _at_the_end(lambda *_: os._exit(0))  # a model may take long to load, and nobody is served before
    _log_to_standard_error()
    try:
        options = flags.parse(sys.argv[1:])
        for note in options.notes:
            logging.warning(note)
        if not options.gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        from tfdeploy_magic.serving.server import ModelServer

        server = ModelServer(options)
    except TfdeployError as error:
        print(f"tfdeploy-serve: {error}", file=sys.stderr)
        return 1
    gc.freeze()  # TensorFlow and the models are no garbage, and to look through them takes as long as many answers
    stopped = threading.Event()
    _at_the_end(lambda *_: stopped.set())
    if server.grpc_address:
        logging.info("Running gRPC ModelServer at %s ...", server.grpc_address)
    if options.grpc_socket_path:
        logging.info("Running gRPC ModelServer at UNIX socket %s ...", options.grpc_socket_path)
    if server.url:
        logging.info("Exporting HTTP/REST API at: %s ...", server.url)
    stopped.wait()
    threading.Timer(STOP_SECONDS, os._exit, [0]).start()
    server.stop()
    os._exit(0)  # without the seconds that TensorFlow takes to be torn down


def _at_the_end(act: Callable[..., Any]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, act)


def _log_to_standard_error() -> None:
    """Log to a descriptor of our own, which goes on while TensorFlow's is silenced."""
    stream = os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1)
    logging.basicConfig(format="%(asctime)s %(levelname).1s %(message)s", level=logging.INFO, stream=stream)
    logging.getLogger("tensorflow").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
