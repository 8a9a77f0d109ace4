"""The image of ``tfdeploy-serve``: what is in it, and how it runs as ``docker/compose.yaml`` says."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.models.containers import Container
from packaging.utils import canonicalize_name

from tests import engine
from tests.serving import live, saved_models

IMAGE = "tfdeploy-magic/test-serve"
HEALTH_CHECK = {"interval": 10**9, "retries": 1}
"""Each second, and the first failure counts; the rest is the image's own."""

BLOCKER = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_models.half_plus_two(tmp_path_factory.mktemp("models") / "half" / "1").parent


@pytest.fixture(scope="module")
def image() -> str:
    """The image, made as a person makes it but for the Python that it starts from."""
    python_image = engine.python_image()
    make = ["make", "--old-file=install", "image", f"IMAGE={IMAGE}", f"PYTHON_IMAGE={python_image}"]
    done = subprocess.run(make, cwd=engine.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return IMAGE


@pytest.fixture(scope="module")
def run(image: str) -> Iterator[Callable[..., Container]]:
    """Start containers of it, which are removed with the module."""
    started: list[Container] = []

    def start(*argv: str, **options: Any) -> Container:
        started.append(engine.client().containers.run(image, argv, detach=True, healthcheck=HEALTH_CHECK, **options))
        return started[-1]

    yield start
    for container in started:
        container.remove(force=True)


@pytest.fixture(scope="module")
def served(run: Callable[..., Container], half: Path) -> Container:
    """A container as the compose file says, but on ports that are free."""
    container = run(**options(service(MODEL_NAME="half", MODEL_DIR=str(half), GRPC_PORT="", REST_PORT="")))
    wait_for("healthy", container)
    return container


def service(**variables: str) -> dict[str, Any]:
    """Return the one service of the compose file, with its variables replaced."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        assert kind == "-" or name in variables, f"{name}: {rest}"
        return variables.get(name, rest)

    text = (engine.ROOT / "docker" / "compose.yaml").read_text()
    read = yaml.safe_load(re.sub(r"\$\{(\w+):([-?])([^}]*)\}", value, text))
    (only,) = read["services"].values()
    return dict(only)


def options(said: dict[str, Any]) -> dict[str, Any]:
    """Return what a service says as options of the SDK; nothing that it says may be left over."""
    left = dict(said)
    assert (left.pop("image"), left.pop("pull_policy")) == ("tfdeploy-serve", "never")
    (volume,) = left.pop("volumes")
    assert (volume["type"], volume["bind"]) == ("bind", {"create_host_path": False})
    made = {
        "volumes": {volume["source"]: {"bind": volume["target"], "mode": "ro" if volume["read_only"] else "rw"}},
        "ports": {f"{inside}/tcp": (host, None) for host, _, inside in (port.split(":") for port in left.pop("ports"))},
        "tmpfs": dict(each.split(":") for each in left.pop("tmpfs")),
        "nano_cpus": int(left.pop("cpus") * 1e9),
        "restart_policy": {"Name": left.pop("restart")},
    }
    same = {"environment", "read_only", "cap_drop", "security_opt", "mem_limit", "pids_limit"}
    assert set(left) == same
    return {**left, **made}


def state(container: Container) -> dict[str, Any]:
    container.reload()
    return dict(container.attrs["State"])


def wait_for(health: str, container: Container) -> None:
    def reached() -> bool:
        now = state(container)
        assert now["Running"], container.logs().decode()
        return bool(now["Health"]["Status"] == health)

    live.wait_until(reached, live.START_SECONDS)


def port(container: Container, inside: int) -> int:
    container.reload()
    (published,) = container.ports[f"{inside}/tcp"]
    assert published["HostIp"] == "127.0.0.1"
    return int(published["HostPort"])


def output(container: Container, *command: str) -> str:
    return str(container.exec_run(command).output.decode())


def test_the_image_requires_what_the_package_requires_of_the_same_versions() -> None:
    project = tomllib.loads((engine.ROOT / "pyproject.toml").read_text())["project"]
    assert set(engine.requirements()) < set(project["dependencies"])


def test_a_model_of_either_kind_is_served_without_any_package_that_is_not_in_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    version = saved_models.half_plus_two(tmp_path / "half" / "1")
    lite = tmp_path / "lite" / "1" / "model.tflite"
    lite.parent.mkdir(parents=True)
    lite.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(version)).convert())
    config = tmp_path / "models.config"
    config.write_text(live.listed(*(live.entry(name, tmp_path / name) for name in ("half", "lite"))))
    there = {canonicalize_name(each.name) for each in engine.distributions()} - {"pip"} | {"tfdeploy-magic"}
    blocked = {
        module
        for module, names in importlib.metadata.packages_distributions().items()
        if not there.intersection(map(canonicalize_name, names))
    }
    assert {"IPython", "matplotlib", "litert_quantizer", "pip"} <= blocked
    (tmp_path / "sitecustomize.py").write_text(f"BLOCKED = {blocked!r}\n{BLOCKER}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(engine.ROOT)]))

    with live.running(tmp_path, f"--model_config_file={config}", "--prefer_tflite_model") as process:
        for name in ("half", "lite"):
            answer = process.ask.post(f"/v1/models/{name}:predict", {"instances": [1.0, 5.0]})
            assert answer.json == {"predictions": [2.5, 4.5]}
            with live.channel(process.grpc_address) as channel:
                assert list(live.predict(channel, live.spec(name), 1.0).outputs["y"].float_val) == [2.5]


@pytest.mark.docker
def test_the_container_that_the_compose_file_describes_answers_on_loopback(served: Container) -> None:
    asked = live.Asking(port(served, 8501))
    assert asked.post("/v1/models/half:predict", {"instances": [1.0, 5.0]}).json == {"predictions": [2.5, 4.5]}
    asked.close()
    with live.channel(f"127.0.0.1:{port(served, 8500)}") as channel:
        assert list(live.predict(channel, live.spec("half"), 1.0).outputs["y"].float_val) == [2.5]


@pytest.mark.docker
def test_the_server_may_do_no_more_than_serve(served: Container) -> None:
    status = dict(line.split(":\t", 1) for line in output(served, "cat", "/proc/1/status").splitlines())
    assert set(status["Uid"].split()) == {"1000"}
    assert (int(status["CapBnd"], 16), status["NoNewPrivs"]) == (0, "1")
    for folder in ("/models/half", "/usr/local/bin"):
        assert "Read-only file system" in output(served, "mkdir", f"{folder}/made")
    limits = served.attrs["HostConfig"]
    assert (limits["Memory"], limits["NanoCpus"], limits["PidsLimit"]) == (2 << 30, 10**9, 1024)


@pytest.mark.docker
def test_a_server_that_no_longer_answers_is_unhealthy_until_it_does(served: Container) -> None:
    served.kill("SIGSTOP")
    wait_for("unhealthy", served)
    served.kill("SIGCONT")
    wait_for("healthy", served)


@pytest.mark.docker
def test_without_rest_it_is_healthy_by_grpc_and_docker_stop_reaches_it(
    run: Callable[..., Container], half: Path
) -> None:
    mounted = {str(half): {"bind": "/models/half", "mode": "ro"}}
    container = run("--rest_api_port=0", environment={"MODEL_NAME": "half"}, volumes=mounted)
    wait_for("healthy", container)
    assert "Running gRPC ModelServer at 127.0.0.1:8500" in container.logs().decode()
    assert "REST API" not in container.logs().decode()
    container.stop(timeout=60)
    assert state(container)["ExitCode"] == 0


@pytest.mark.docker
def test_a_model_that_is_not_there_ends_the_container_with_what_is_wrong(run: Callable[..., Container]) -> None:
    container = run(environment={"MODEL_NAME": "nothing"})
    assert container.wait()["StatusCode"] == 1
    assert "/models/nothing" in container.logs().decode()
