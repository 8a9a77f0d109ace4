"""Telling a running server what to serve, by TensorFlow Serving's own ModelService: ours, or the one in a container."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tfdeploy_magic.errors import ServerUnreachable, ServingError, VersionFailed
from tfdeploy_magic.serving.load import CHANNEL_OPTIONS

POLL_SECONDS = 0.05
"""How often a server is asked whether a version has been loaded."""

Waiting = Callable[[], None]
"""Called while something is waited for; may raise to give up."""


def reload(address: str, models: Iterable[Any], seconds: float, waiting: Waiting) -> None:
    """Have a server serve what these ``ModelConfig`` list, and nothing else.

    Args:
        address: Of its gRPC.
        models: What it is to serve.
        seconds: How long it may take to answer; ours answers once it has loaded what is new.
        waiting: Called several times a second.

    Raises:
        VersionFailed: A model that is new to it cannot be loaded; all is as it was.
        ServingError: It refuses otherwise; all is as it was.
        ServerUnreachable: Nothing answers at the address.
    """
    from tfdeploy_magic.serving.protos import model_management_pb2

    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.extend(models)
    with _stub(address) as stub:
        answer = _waited(stub.HandleReloadConfigRequest.future(request, timeout=seconds), waiting, address)
    if answer.status.error_code:
        raise _refused(answer.status.error_message)


def wait_until_served(address: str, model: str, versions: Iterable[int], seconds: float, waiting: Waiting) -> None:
    """Wait until these versions answer.

    Raises:
        VersionFailed: One of them cannot be loaded, or not within that time.
        ServerUnreachable: Nothing answers at the address.
    """
    from tfdeploy_magic.serving.protos import get_model_status_pb2

    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = model
    left = set(versions)
    ends = time.monotonic() + seconds
    with _stub(address) as stub:
        while True:
            answer = _waited(stub.GetModelStatus.future(request, timeout=seconds), waiting, address)
            for status in answer.model_version_status:
                if status.version in left and status.status.error_code:
                    raise _failed(model, status.version, status.status.error_message)
                if status.state == status.AVAILABLE:
                    left.discard(status.version)
            if not left:
                return
            if time.monotonic() > ends:
                raise _failed(model, min(left), f"nothing after {seconds:g} s")
            waiting()
            time.sleep(POLL_SECONDS)


def _failed(model: str, version: int, found: str) -> VersionFailed:
    return VersionFailed(
        f"version {version} of {model} is not served",
        found=found,
        wanted="a version that this server can load",
        cure="What was served before still is. Export the model again.",
    )


def _refused(message: str) -> ServingError:
    if "did not become available" in message:  # a model that is new to the server
        return VersionFailed(
            "not everything can be served that was asked for",
            found=message,
            wanted="versions that this server can load",
            cure="What was served before still is. Export the model again.",
        )
    return ServingError(
        "the server does not take this configuration",
        found=message,
        wanted="versions that it can serve, and labels of those that it does serve",
        cure="What was served before still is.",
    )


@contextmanager
def _stub(address: str) -> Iterator[Any]:
    import grpc

    from tfdeploy_magic.serving.protos import model_service_pb2_grpc  # before gRPC, which reads a setting of it

    with grpc.insecure_channel(address, CHANNEL_OPTIONS) as channel:
        yield model_service_pb2_grpc.ModelServiceStub(channel)


def _waited(call: Any, waiting: Waiting, address: str) -> Any:
    """Return the answer of a call; the stop button ends the waiting."""
    import grpc

    answered = threading.Event()
    call.add_done_callback(lambda _: answered.set())
    try:
        while not answered.wait(0.1):
            waiting()
        return call.result()
    except grpc.RpcError as error:
        code, message = error.code().name, error.details() or ""
        if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            raise ServerUnreachable(
                f"nothing answers at {address}",
                found=message or code,
                wanted="the server that this kernel has started",
                cure="%serve --list shows those that run.",
            ) from None
        raise _refused(f"{code}: {message}") from None
    finally:
        call.cancel()
