from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.metadata
import io
import json
import os
import shutil
import socket
import sys
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import psutil
import pytest
from docker.transport.unixconn import UnixHTTPConnection

from tests import engine
from tests.serving.engine_sockets import Way, saying
from tests.serving.saved_models import SavedModels, half_plus_two
from tfdeploy_magic.errors import InputError, ServerUnreachable, ServingError, TfdeployError, VersionFailed
from tfdeploy_magic.jobs import Progress, Report, silent
from tfdeploy_magic.serving import configs, containers, docker_engine, state
from tfdeploy_magic.serving.client import Client
from tfdeploy_magic.serving.containers import IMAGE, ContainerHost
from tfdeploy_magic.serving.docker_engine import label, person
from tfdeploy_magic.serving.hosting import Hosted
from tfdeploy_magic.serving.lineup import Arm, Lineup

needs_docker = pytest.mark.docker
NAME = "--privileged"
"""A name that is valid, and that a command line would take for something else."""

BATCHES = "max_batch_size { value: 8 }\nbatch_timeout_micros { value: 0 }\n"


def quiet() -> Report:
    return Report(silent)


def answer(host: ContainerHost, path: str = "", **over: Any) -> float:
    """What the model makes of 2: 1 more than the number that it adds."""
    with Client(host.model_url + path, grpc=host.grpc) as client:
        return float(client.predict([2.0], **over)[0])


def inspected(host: ContainerHost) -> dict[str, Any]:
    found: dict[str, Any] = engine.client().api.inspect_container(host.container)
    return found


def ids() -> set[str]:
    """The containers that this process has."""
    own = {**person(), label("kernel"): f"{os.getpid()}-{psutil.Process().create_time():.2f}"}
    listed = engine.client().api.containers(all=True, filters={"label": [f"{k}={v}" for k, v in own.items()]})
    return {each["Id"] for each in listed}


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    engine.client()
    made = Way(tmp_path_factory.mktemp("way") / "socket")
    yield made
    made.close()


@pytest.fixture(scope="module")
def host(saved_models: SavedModels, way: Way, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerHost]:
    """A container that most tests share; ``add`` gives it another version."""
    folder = tmp_path_factory.mktemp("served")
    base_path = shutil.copytree(saved_models.half_plus_two, folder / "versions")
    (folder / "batching").write_text(BATCHES)
    made = ContainerHost(NAME, {NAME: Hosted(base_path, ours=True)}, image=engine.stand_in(), memory="2g", cpus=1.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", way.address)
        made.start(["--enable_batching", "--batching_parameters_file", f"{folder}/batching"], quiet(), gpu=False)
        yield made
        guard = next(each.pid for each in state.running() if each.container == made.container[:12])
        made.stop()
    assert made.container not in ids()
    assert not base_path.exists()
    assert not made.folder.exists()
    assert not psutil.pid_exists(guard)
    assert (made.alive, made.seen().state) == (False, "gone")
    made.stop()


def add(host: ContainerHost, plus: float) -> int:
    hosted = host.models[NAME]
    number = hosted.numbers()[-1] + 1
    half_plus_two(hosted.base_path / str(number), plus=plus)
    return number


def written(host: ContainerHost) -> Any:
    """What a container would serve that is started again."""
    (config,) = configs.read_model_config(host.folder / "models.config").model_config_list.config
    return config


def make(tmp_path: Path, saved_models: SavedModels, name: str = "half", **options: Any) -> ContainerHost:
    base_path = shutil.copytree(saved_models.half_plus_two, tmp_path / "versions")
    return ContainerHost(name, {name: Hosted(base_path, ours=True)}, **options)


@pytest.fixture
def careless_sdk() -> Iterator[None]:
    """Let the SDK forget a socket that it could not connect."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


# A container that serves


@needs_docker
def test_it_answers_over_both_doors_and_is_in_the_list_of_servers(host: ContainerHost) -> None:
    assert answer(host, "/versions/1") == 3.0
    assert answer(host, "/versions/1", over="grpc") == 3.0
    (noted,) = [each for each in state.running() if each.container == host.container[:12]]
    assert (noted.models, noted.url, noted.grpc, noted.backend) == ((NAME,), host.url, host.grpc, "docker")
    assert noted.base_paths == {NAME: str(host.models[NAME].base_path)}
    assert noted.kernel == os.getpid() != noted.pid
    with Client(host.model_url) as client:
        assert client.metrics().requests["OK"] >= 2, "metrics are on by default"


@needs_docker
def test_it_gets_nothing_but_what_a_server_needs(host: ContainerHost) -> None:
    found = inspected(host)
    given, mounts = found["HostConfig"], {each["Destination"]: each for each in found["Mounts"]}
    assert (given["Memory"], given["MemorySwap"], given["NanoCpus"]) == (2 << 30, 2 << 30, 1_500_000_000)
    assert (given["CapDrop"], given["CapAdd"], given["Privileged"]) == (["ALL"], None, False)
    assert given["SecurityOpt"] == ["no-new-privileges"]
    assert (given["ReadonlyRootfs"], given["PidsLimit"], given["AutoRemove"]) == (True, 4096, False)
    assert found["Config"]["User"] == f"{os.getuid()}:{os.getgid()}"
    assert {path: each["RW"] for path, each in mounts.items()} == {f"/models/{NAME}": False, "/config": False}
    assert mounts[f"/models/{NAME}"]["Source"] == str(host.models[NAME].base_path)
    bound = found["NetworkSettings"]["Ports"]
    assert {each["HostIp"] for port in bound.values() if port for each in port} == {"127.0.0.1"}
    assert {port for port, where in bound.items() if where} == {"8500/tcp", "8501/tcp"}
    assert f"MODEL_NAME={NAME}" in found["Config"]["Env"]


@needs_docker
def test_files_that_flags_name_come_along(host: ContainerHost) -> None:
    command = inspected(host)["Args"]
    assert "--enable_batching=true" in command
    assert "--batching_parameters_file=/config/batching_parameters_file" in command
    assert (host.folder / "batching_parameters_file").read_text() == BATCHES
    assert configs.read_monitoring_config(host.folder / "monitoring.config").enabled


@needs_docker
def test_a_new_version_by_a_label_is_swapped_to_and_what_a_restart_reads_is_the_same(host: ContainerHost) -> None:
    hosted = host.models[NAME]
    number, before = add(host, plus=8.0), hosted.numbers()[-2]
    host.change(NAME, hosted.lineup.with_version(number, latest=before, label="canary"), 60, quiet())
    assert answer(host) == answer(host, "/labels/canary") == 9.0
    assert answer(host, "/labels/stable") != 9.0
    assert written(host) == hosted.lineup.config(NAME, f"/models/{NAME}", hosted.numbers())
    assert written(host).version_labels["canary"] == number


@needs_docker
def test_a_version_that_cannot_be_loaded_leaves_what_is_served(host: ContainerHost) -> None:
    hosted = host.models[NAME]
    former, before, number = hosted.lineup, answer(host), hosted.numbers()[-1] + 1
    broken = hosted.base_path / str(number)
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(b"no graph")
    labels = dict(written(host).version_labels)
    with pytest.raises(VersionFailed, match=f"version {number} of {NAME} is not served"):
        host.change(NAME, former.with_version(number, latest=number - 1, label="new"), 60, quiet())
    shutil.rmtree(broken)
    assert answer(host) == before
    assert hosted.lineup == former
    assert dict(written(host).version_labels) == labels


@needs_docker
def test_requests_are_not_split_in_a_container(host: ContainerHost) -> None:
    former = host.models[NAME].lineup
    (number, *_) = former.versions(host.models[NAME].numbers())
    with pytest.raises(ServingError, match="TensorFlow Serving, which has no router") as caught:
        host.change(NAME, former.with_split((Arm("a", 1.0, NAME, version=number),)), 60, quiet())
    assert "--backend docker" in caught.value.cure
    assert host.models[NAME].lineup == former


@needs_docker
def test_it_is_seen_with_what_it_uses_and_what_it_says(host: ContainerHost) -> None:
    first, second = host.seen(), host.seen()
    for seen in (first, second):
        assert (seen.container, seen.image, seen.state) == (host.container[:12], engine.STAND_IN, "running")
        assert seen.memory is not None and 0 < seen.memory < 2 << 30
        assert seen.cpu_percent is not None and seen.cpu_percent >= 0
        assert (seen.memory_limit, seen.cpu_limit, seen.digest) == (2 << 30, 1.5, None)
    assert any("Successfully loaded servable version" in line for line in first.log)
    assert first.cpu_percent != second.cpu_percent, "of the time since it was last looked at"


@pytest.mark.usefixtures("careless_sdk")
@needs_docker
def test_an_engine_that_stops_midway_is_told_and_what_is_served_goes_on(
    host: ContainerHost, way: Way, tmp_path: Path, saved_models: SavedModels
) -> None:
    with way.cut():
        assert host.alive
        seen = host.seen()
        assert seen.state.startswith("not known: no engine at unix://")
        assert seen.container == host.container[:12]
        assert answer(host, "/versions/1") == 3.0
        other = make(tmp_path, saved_models, image=engine.STAND_IN)
        with pytest.raises(ServerUnreachable, match="no engine at unix://"):
            other.start([], quiet(), gpu=False)
        assert not (tmp_path / "versions").exists()
    assert host.alive
    assert host.seen().state == "running"


# One that does not come to serve


@needs_docker
def test_of_one_that_ends_at_its_start_the_last_lines_are_told(tmp_path: Path, saved_models: SavedModels) -> None:
    before = ids()
    with built("echo well >&2; echo no such flag >&2; exit 3") as image:
        host = make(tmp_path, saved_models, image=image)
        with pytest.raises(ServingError) as caught:
            host.start([], quiet(), gpu=False)
    assert caught.value.what == "the container of half is gone"
    assert caught.value.found == 'exited with status 3; its last lines: "well" / "no such flag"'
    assert ids() == before
    assert not (tmp_path / "versions").exists()
    assert not host.folder.exists()


@needs_docker
def test_one_that_never_serves_is_given_up(tmp_path: Path, saved_models: SavedModels) -> None:
    before = ids()
    with built("echo asleep; exec sleep 600") as image:
        host = make(tmp_path, saved_models, image=image, timeout=0.5)
        with pytest.raises(VersionFailed, match=r'nothing after 0\.5 s; its last lines: "asleep"'):
            host.start([], quiet(), gpu=False)
    assert ids() == before


@needs_docker
def test_a_model_that_cannot_be_loaded_ends_it_at_once(tmp_path: Path) -> None:
    (tmp_path / "versions" / "1").mkdir(parents=True)
    (tmp_path / "versions" / "1" / "saved_model.pb").write_bytes(b"no graph")
    before = ids()
    host = ContainerHost("broken", {"broken": Hosted(tmp_path / "versions", ours=False)}, image=engine.stand_in())
    with pytest.raises(ServingError, match="exited with status 1; its last lines: "):
        host.start([], quiet(), gpu=False)
    assert ids() == before
    assert (tmp_path / "versions").exists()


@needs_docker
def test_the_stop_button_while_it_starts_leaves_nothing(tmp_path: Path, saved_models: SavedModels) -> None:
    before, noted = ids(), state.running()

    def press(progress: Progress) -> None:
        if progress.stage == "loading the model":
            raise KeyboardInterrupt

    host = make(tmp_path, saved_models, image=engine.stand_in())
    with pytest.raises(KeyboardInterrupt):
        host.start([], Report(press), gpu=False)
    assert ids() == before
    assert state.running() == noted
    assert not (tmp_path / "versions").exists()
    assert not host.folder.exists()


@needs_docker
@pytest.mark.parametrize("checked", [True, False])
def test_a_port_that_is_taken_is_told_whoever_finds_it(
    checked: bool, tmp_path: Path, saved_models: SavedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = ids()
    if not checked:  # it was free a moment ago
        monkeypatch.setattr(containers, "check_port", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host = make(tmp_path, saved_models, image=engine.stand_in(), rest_api_port=taken.getsockname()[1])
        with pytest.raises(ServingError, match="found another program") as caught:
            host.start([], quiet(), gpu=False)
    assert "Choose another port" in caught.value.cure
    assert ids() == before


@needs_docker
@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"image": "tfdeploy-magic/nowhere:1"}, "--pull fetches it"),
        ({"image": "Not An Image"}, "the name of an image"),
        ({"memory": "1k"}, "Choose another --memory or --cpus"),
        ({"cpus": 4000.0}, "Choose another --memory or --cpus"),
    ],
)
def test_what_the_engine_refuses_is_told_with_its_cure(
    options: dict[str, Any], found: str, tmp_path: Path, saved_models: SavedModels
) -> None:
    host = make(tmp_path, saved_models, **{"image": engine.stand_in(), **options})
    with pytest.raises(TfdeployError, match=found):
        host.start([], quiet(), gpu=False)
    assert not (tmp_path / "versions").exists()


@needs_docker
def test_a_folder_that_the_engine_does_not_see_is_told(tmp_path: Path) -> None:
    host = ContainerHost("half", {"half": Hosted(tmp_path / "nowhere", ours=False)}, image=engine.stand_in())
    with pytest.raises(ServingError, match="an engine on this machine that may mount the folder"):
        host.start([], quiet(), gpu=False)


@contextlib.contextmanager
def built(script: str) -> Iterator[str]:
    """Make an image of the stand-in whose entrypoint runs a script."""
    content = f"FROM {engine.stand_in()}\nENTRYPOINT {json.dumps(['/bin/sh', '-c', script])}\n".encode()
    context, tag = io.BytesIO(), f"tfdeploy-magic/test-containers:{os.getpid()}"
    with tarfile.open(fileobj=context, mode="w") as tar:
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    context.seek(0)
    engine.client().images.build(fileobj=context, custom_context=True, tag=tag, rm=True, forcerm=True)
    try:
        yield tag
    finally:
        engine.client().images.remove(tag, force=True)


# What is ours, and what is not


@needs_docker
def test_only_containers_with_all_our_labels_and_no_kernel_are_cleaned_up() -> None:
    ended = psutil.Popen([sys.executable, "-c", ""])
    gone = f"{ended.pid}-{ended.create_time():.2f}"
    ended.wait()
    ours = {**person(), label("kernel"): gone, label("model"): "half", label("token"): "abc"}
    here = f"{os.getpid()}-{psutil.Process().create_time():.2f}"
    labels = {
        "left behind": ours,
        "in use": {**ours, label("kernel"): here},
        "of another user": {**ours, label("uid"): "12345"},
        "of another machine": {**ours, label("machine"): "elsewhere"},
        "with some of them": {key: value for key, value in ours.items() if key != label("token")},
        "with a kernel that is none": {**ours, label("kernel"): "7"},
        "with none": {},
    }
    client = engine.client()
    made = {what: client.containers.create(engine.stand_in(), labels=each) for what, each in labels.items()}
    try:
        connected = docker_engine.connect()
        containers.clean_up(connected)
        connected.close()
        there = {each.id for each in client.containers.list(all=True)}
        assert {what for what, each in made.items() if each.id not in there} == {"left behind"}
    finally:
        for each in made.values():
            remove(each.id)


@needs_docker
def test_a_container_of_somebody_else_with_our_name_is_left_alone(tmp_path: Path, saved_models: SavedModels) -> None:
    host = make(tmp_path, saved_models, image=engine.stand_in())
    theirs = engine.client().containers.create(
        engine.STAND_IN, name=host._called, labels={**host._labels, label("token"): "other"}
    )
    try:
        with pytest.raises(ServingError, match="is already in use by container"):
            host.start([], quiet(), gpu=False)
        assert theirs.id in {each.id for each in engine.client().containers.list(all=True)}
    finally:
        remove(theirs.id)


def remove(container: str) -> None:
    with contextlib.suppress(docker.errors.NotFound):
        engine.client().api.remove_container(container, force=True)


# What is refused before any engine is asked


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "a b", "$(id)", "x\n"])
def test_a_name_that_is_no_part_of_an_address_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_engine, "connect", lambda *_: pytest.fail("the engine was asked"))
    with pytest.raises(InputError, match="a model cannot be served by that name"):
        containers.check(name, {name: Hosted(tmp_path, ours=False)})


def test_two_models_are_refused(tmp_path: Path) -> None:
    hosted = Hosted(tmp_path, ours=False)
    with pytest.raises(InputError, match="a container serves one model: found a, b"):
        ContainerHost("a", {"a": hosted, "b": hosted}).start([], quiet(), gpu=False)


def test_a_monitoring_file_of_the_persons_takes_the_place_of_ours(tmp_path: Path, saved_models: SavedModels) -> None:
    (tmp_path / "m").write_text("prometheus_config { enable: false }")
    host = make(tmp_path, saved_models)
    command = host._configured(["--monitoring_config_file", f"{tmp_path}/m", "--max_num_load_retries=2"])
    assert "--monitoring_config_file=/config/monitoring_config_file" in command
    assert "--max_num_load_retries=2" in command
    assert (host.folder / "monitoring_config_file").read_text() == "prometheus_config { enable: false }"
    with pytest.raises(InputError, match="--batching_parameters_file cannot be read"):
        other = dataclasses.replace(host)
        other._configured(["--batching_parameters_file=/no/such/file"])
    for each in (host, other):
        each.take_away()
        assert not each.folder.exists()


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    host = ContainerHost("a", {"a": Hosted(tmp_path, ours=False)}, host="no.such.host.invalid")
    with pytest.raises(ServingError, match=r"cannot listen on no\.such\.host\.invalid"):
        host.start([], quiet(), gpu=False)


# What an engine may say, without one


@pytest.fixture
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e") / "socket"  # a name of few letters: that of a socket has at most 107


def events(*ends: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"status": "Pulling from tensorflow/serving", "id": "2.20.0"},
        {"status": "Pulling fs layer", "id": "a"},
        {"status": "Already exists", "id": "b"},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 50, "total": 100}},
        {"status": "Download complete", "id": "a"},
        {"status": "Extracting", "id": "a", "progressDetail": {"current": 50, "total": 100}},
        *ends,
    ]


def test_pulling_tells_how_much_is_here(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[float] = []
    with saying(socket_path, {"POST /images/create": (200, events({"status": "Pull complete", "id": "a"}))}) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        connected = docker_engine.connect(5)
        connected.pull(IMAGE, heard.append)
        connected.close()
    assert heard == [0.0, 0.5, pytest.approx(0.675), pytest.approx(0.85), pytest.approx(0.925), 1.0]


DENIED = {"message": "pull access denied for x, repository does not exist or may require 'docker login'"}
LOOKUP = "dial tcp: lookup registry.invalid on 10.0.0.1:53: no such host"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ((404, {"message": "manifest for tensorflow/serving:9 not found: manifest unknown"}), "no such tag"),
        ((404, DENIED), "no such image, or one that only others may have"),
        ((500, {"message": f'Get "https://registry.invalid/v2/": {LOOKUP}'}), "no way to its registry"),
        ((429, {"message": "toomanyrequests: You have reached your pull rate limit"}), "too many requests"),
        ((200, events({"error": "write /var/lib/docker/tmp/x: no space left on device"})), "no space left"),
        ((200, events({"error": "no matching manifest for linux/arm64/v8"})), "another kind of processor"),
        ((200, events({"error": "the moon is full"})), "the moon is full"),
    ],
)
def test_why_an_image_is_not_fetched_is_one_sentence(
    answer: tuple[int, Any], found: str, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with saying(socket_path, {"POST /images/create": answer}) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        connected = docker_engine.connect(5)
        with pytest.raises(ServingError) as caught:
            connected.pull("tensorflow/serving:9", lambda _: None)
        connected.close()
    assert caught.value.what == "the image tensorflow/serving:9 cannot be fetched"
    assert found in caught.value.found
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ('could not select device driver "" with capabilities: [[gpu]]', "no GPU"),
        ("driver failed: Bind for 127.0.0.1:8501 failed: port is already allocated", "another program at its port"),
        ("listen tcp4 10.9.9.9:0: bind: cannot assign requested address", "an address of another machine"),
        ("Mounts denied: the path /x is not shared from the host", "Mounts denied"),
        ("OCI runtime create failed: no space left on device", "no space left"),
    ],
)
def test_why_a_container_does_not_start_is_one_sentence(
    message: str, found: str, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with saying(socket_path, {"POST /containers/abc/start": (500, {"message": message})}) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        connected = docker_engine.connect(5)
        with pytest.raises(ServingError, match="the container of half cannot be started") as caught:
            connected.start("the container of half cannot be started", "abc")
        connected.close()
    assert found in caught.value.found


def test_no_sdk_is_told_with_the_line_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(InputError, match="no Docker SDK") as caught:
        docker_engine.connect()
    assert 'pip install "tfdeploy-magic[docker]"' in caught.value.cure


@pytest.mark.usefixtures("careless_sdk")
@pytest.mark.parametrize("address", ["unix:///no/such/socket", "tcp://127.0.0.1:1"])
def test_no_engine_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    with pytest.raises(ServerUnreachable, match=f"no engine at {address}") as caught:
        docker_engine.connect(2)
    assert "Start Docker" in caught.value.cure


@pytest.mark.usefixtures("careless_sdk")
@pytest.mark.parametrize("address", ["nonsense", "gopher://x"])
def test_an_address_that_leads_nowhere_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    with pytest.raises(ServingError, match="DOCKER_HOST=unix://"):
        docker_engine.connect(2)


@pytest.mark.usefixtures("careless_sdk")
def test_an_engine_that_does_not_answer_in_time_is_told(socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as silent_one:
        silent_one.bind(str(socket_path))
        silent_one.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{socket_path}")
        with pytest.raises(ServerUnreachable, match="no answer in time from the engine at unix://"):
            docker_engine.connect(0.1)


@pytest.mark.usefixtures("careless_sdk")
def test_no_permission_is_told_with_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: UnixHTTPConnection) -> None:
        raise PermissionError(13, "Permission denied")  # root is never refused, and tests may be root

    monkeypatch.setattr(UnixHTTPConnection, "connect", refuse)
    monkeypatch.setenv("DOCKER_HOST", "unix:///var/run/docker.sock")
    with pytest.raises(ServerUnreachable, match="no permission to ask the engine at unix:///var/run") as caught:
        docker_engine.connect(2)
    assert "usermod -aG docker" in caught.value.cure


@pytest.mark.parametrize(
    ("security", "wanted"),
    [
        ([], (f"{os.getuid()}:{os.getgid()}", ["no-new-privileges"], None)),
        (["name=seccomp,profile=default", "name=rootless"], ("0:0", ["no-new-privileges"], None)),
        (["name=selinux"], (f"{os.getuid()}:{os.getgid()}", ["no-new-privileges", "label=disable"], None)),
        (["name=userns"], (f"{os.getuid()}:{os.getgid()}", ["no-new-privileges"], "host")),
    ],
)
def test_whose_files_it_reads_depends_on_the_engine(
    security: list[str], wanted: tuple[Any, ...], socket_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host = ContainerHost("half", {"half": Hosted(tmp_path, ours=False)})
    with saying(socket_path, {"GET /info": (200, {"SecurityOptions": security})}) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        host._engine = docker_engine.connect(5)
        options = host._options("127.0.0.1", True)
        host._engine.close()
    assert (options["user"], options["security_opt"], options.get("userns_mode")) == wanted
    assert options["device_requests"][0]["Capabilities"] == [["gpu"]]
    assert "mem_limit" not in options and "nano_cpus" not in options


@pytest.mark.parametrize(
    ("gpu", "image", "asked"), [(False, IMAGE, IMAGE), (True, IMAGE, f"{IMAGE}-gpu"), (True, "mine:1", "mine:1")]
)
def test_an_image_that_is_not_here_is_fetched_only_when_asked(
    gpu: bool, image: str, asked: str, socket_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stages: list[str] = []
    host = ContainerHost("half", {"half": Hosted(tmp_path, ours=False)}, image=image)
    pulled = (404, {"message": "manifest unknown"})
    with saying(socket_path, {"POST /images/create": pulled, "GET /containers/json": (200, [])}) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        report = Report(lambda progress: stages.append(progress.stage))
        with pytest.raises(ServingError, match=f"the image {asked} is not on this machine") as caught:
            host.start([], report, gpu=gpu)
        assert "--pull fetches it" in caught.value.cure
        assert f"pulling {asked}" not in stages
        with pytest.raises(ServingError, match="no such tag"):
            dataclasses.replace(host, pull=True).start([], report, gpu=gpu)
    assert f"pulling {asked}" in stages


@pytest.mark.parametrize(
    ("image", "ours", "codes"),
    [
        (IMAGE, "2.21.0", {"newer-tensorflow"}),
        (f"docker.io/{IMAGE}-gpu", "2.21.0", {"newer-tensorflow"}),
        (IMAGE, "2.20.3", set()),
        (IMAGE, "2.19.0", set()),
        ("tensorflow/serving:latest", "2.21.0", set()),
        ("mine:2.1.0", "2.21.0", set()),
    ],
)
def test_a_model_of_a_newer_tensorflow_is_a_warning(
    image: str, ours: str, codes: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: ours)
    assert {finding.code for finding in containers._findings(image, "amd64", "amd64")} == codes


def test_an_image_for_another_processor_is_a_warning() -> None:
    (finding,) = containers._findings("mine:1", "amd64", "arm64")
    assert (finding.code, finding.level) == ("emulated", "warning")


def test_the_digest_and_the_end_of_a_container_are_told_in_words() -> None:
    assert containers._state({"Status": "running"}) == "running"
    assert containers._state({"Status": "exited", "ExitCode": 137, "OOMKilled": True}) == "exited, out of memory"
    assert containers._state({"Status": "exited", "ExitCode": 3}) == "exited with status 3"


def test_home_folders_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert docker_engine.shortened("/home/ada/x, /home/ada: /home/adam") == "~/x, ~: /home/adam"
    monkeypatch.setenv("HOME", "/")
    assert docker_engine.shortened("/models/1") == "/models/1"


def test_a_lineup_with_labels_may_be_there_from_the_start(tmp_path: Path, saved_models: SavedModels) -> None:
    host = make(tmp_path, saved_models)
    host.models["half"].lineup = Lineup(labels={"stable": 1})
    assert "--allow_version_labels_for_unavailable_models=true" in host._configured([])
    assert dict(written(host).version_labels) == {"stable": 1}
    host.take_away()
