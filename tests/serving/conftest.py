"""What tests of the model server share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.live import Process, running, write_repository
from tests.serving.saved_models import SavedModels, write_all


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory: pytest.TempPathFactory) -> SavedModels:
    """Tiny SavedModels, each a base directory that holds version ``1``; copy one before changing it."""
    return write_all(tmp_path_factory.mktemp("saved_models"))


@pytest.fixture(scope="session")
def live(saved_models: SavedModels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A ``tfdeploy-serve`` process with models of every kind (``live.write_repository``), as a person starts it."""
    folder = tmp_path_factory.mktemp("live")
    config = write_repository(folder, saved_models)
    with running(
        folder,
        f"--model_config_file={config}",
        "--prefer_tflite_model",
        "--rest_api_num_threads=4",
        f"--grpc_socket_path={folder}/grpc.sock",
        "--enable_grpc_healthcheck_service",
        "--grpc_channel_arguments=grpc.max_concurrent_streams=100",
        "--no_such_flag=1",
    ) as process:
        process.socket_path = folder / "grpc.sock"
        yield process
        assert process.stop() == 0
