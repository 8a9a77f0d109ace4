"""``tfdeploy-serve`` as a process: what it prints, and how it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.serving.live import (
    SECONDS,
    Asking,
    Process,
    available,
    running,
    wait_until,
    write_slow,
)
from tests.serving.saved_models import SavedModels
from tfdeploy_magic.serving import state, warmup
from tfdeploy_magic.serving.protos import prediction_log_pb2, types_pb2

FOREVER = 1e9
"""What a slow model counts to in an hour."""


def ended(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run it until it ends by itself."""
    command = [sys.executable, "-m", "tfdeploy_magic.serving.cli", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    write_slow(tmp_path / "slow" / "1")
    return tmp_path / "slow"


def test_a_bad_configuration_file_is_told_on_standard_error_and_ends_it(tmp_path: Path) -> None:
    (tmp_path / "bad.config").write_text("model_config_list { config { name: half } }")
    done = ended("--any_port", f"--model_config_file={tmp_path}/bad.config")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "tfdeploy-serve: Error parsing text-format tensorflow.serving.ModelServerConfig: found 1:"
    )


def test_a_port_in_use_is_told_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = ended(f"--model_base_path={tmp_path}", f"--port={port}")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 2)
    assert f"cannot listen on 127.0.0.1:{port}: found another program there." in done.stderr


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--model_base_path=models/half", "--any_port"],
            "to have an absolute path or URI; got base_path()=models/half",
        ),
        (["--model_base_path=/no/such", "--any_port"], "Could not find base path /no/such for servable default"),
        (["--any_port"], "neither --model_base_path nor --model_config_file"),
        (["--model_base_path=/m", "--port=eighty"], '--port cannot be read: found "eighty"'),
    ],
)
def test_what_it_cannot_start_with_is_told_in_two_lines(argv: list[str], said: str) -> None:
    done = ended(*argv)
    assert (done.returncode, said in done.stderr, len(done.stderr.splitlines())) == (1, True, 2)


def test_what_was_asked_in_vain_is_told_at_the_start(live: Process) -> None:
    lines = live.said.splitlines()
    assert lines[0].endswith("W unknown argument: --no_such_flag=1")
    assert " W --rest_api_num_threads has no effect: " in lines[1]


def test_it_says_where_it_listens_and_tensorflow_says_nothing(live: Process) -> None:
    assert f"Running gRPC ModelServer at {live.grpc_address} ..." in live.said
    assert f"Running gRPC ModelServer at UNIX socket {live.socket_path} ..." in live.said
    assert f"Exporting HTTP/REST API at: {live.url} ..." in live.said
    for noise in ("absl::InitializeLog", "oneDNN", "cuda", "Restoring parameters", "Embedded server"):
        assert noise not in live.said


def test_it_is_in_the_list_of_servers_by_its_process(live: Process) -> None:
    (found,) = [each for each in state.running() if each.url == live.url]
    assert (found.pid, found.kernel, found.grpc) == (live.process.pid, None, live.grpc_address)
    assert "half_plus_two" in found.models


def test_it_ends_at_sigint_even_while_a_call_takes_for_ever(
    slow: Path, saved_models: SavedModels, tmp_path: Path
) -> None:
    argv = [f"--model_base_path={slow}", "--model_name=slow", "--enable_batching", f"--grpc_socket_path={tmp_path}/s"]
    with socket.socket(socket.AF_UNIX) as left:  # what a server that was killed leaves
        left.bind(str(tmp_path / "s"))
    with running(tmp_path, *argv) as process:
        assert available(process.ask, "slow") == [1]
        answers: list[object] = []

        def ask() -> None:
            try:
                answers.append(Asking(process.rest_port).post("/v1/models/slow:predict", {"instances": [FOREVER]}))
            except OSError as error:
                answers.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: process.busy)
        assert process.ask.get("/v1/models/slow").status == 200
        assert process.stop(signal.SIGINT) == 0
        asking.join(SECONDS)
        assert len(answers) == 1
        assert "Traceback" not in process.said


def test_it_ends_at_sigterm_while_a_model_is_still_being_loaded(slow: Path, tmp_path: Path) -> None:
    log = prediction_log_pb2.PredictionLog()
    counted = log.predict_log.request.inputs["x"]
    counted.dtype, counted.tensor_shape.dim.add().size = types_pb2.DT_DOUBLE, 1
    counted.double_val.append(FOREVER)
    warmup.write(slow / "1", [log])
    command = [sys.executable, "-m", "tfdeploy_magic.serving.cli", "--any_port", f"--model_base_path={slow}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert "Loading servable version" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()
