"""``tfdeploy-serve``: a model server on the command line, with the flags of ``tensorflow_model_server``."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from tfdeploy_magic.errors import TfdeployError
from tfdeploy_magic.serving import flags


def main() -> int:
    """Serve until SIGINT or SIGTERM.

    Returns:
        The exit status: 0 when it was stopped, 1 when it could not start.
    """
    logging.basicConfig(format="%(asctime)s %(levelname).1s %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        options = flags.parse(sys.argv[1:])
        for note in options.notes:
            logging.warning(note)
        if not options.gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        from tfdeploy_magic.serving.server import ModelServer

        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        server = ModelServer(options)
    except TfdeployError as error:
        print(f"tfdeploy-serve: {error}", file=sys.stderr)
        return 1
    logging.info("Running gRPC ModelServer at %s ...", server.grpc_address or options.grpc_socket_path)
    if server.url:
        logging.info("Exporting HTTP/REST API at: %s ...", server.url)
    stopped.wait()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
