from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pydantic import ValidationError

from tests.conftest import Digits
from tests.serving.saved_models import SavedModels, half_plus_two, write_all
from tfdeploy_magic import sources
from tfdeploy_magic.commands import served_parity
from tfdeploy_magic.commands.declaration import Named
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.commands.serve import Serve, _servable_name, serve
from tfdeploy_magic.commands.tflite_convert import tflite_convert
from tfdeploy_magic.errors import (
    InputError,
    NameNotFound,
    OutputError,
    RequestRefused,
    ServerUnreachable,
    ServingError,
    TfdeployError,
    VersionFailed,
)
from tfdeploy_magic.serving import hosting, state
from tfdeploy_magic.serving.http import free_port
from tfdeploy_magic.views import endpoint as view


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SavedModels:
    return write_all(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def digits_served(trained_cnn: Any, digits: Digits) -> Endpoint:
    return serve(Named("cnn", trained_cnn), name="digits", test=digits.x_test)


@pytest.fixture(autouse=True)
def only_digits_goes_on() -> Iterator[None]:
    yield
    for name in [name for name in hosting.hosts if name != "digits"]:
        serve.stop(name)


@pytest.fixture(autouse=True, scope="module")
def nothing_goes_on() -> Iterator[None]:
    yield
    serve.stop(all=True)


def adding(number: float) -> Any:
    """Return a model that adds a number to float32[?]."""
    import tensorflow as tf

    return tf.function(lambda x: {"y": x + number}, input_signature=[tf.TensorSpec((None,), name="x")])


def versions(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def serving() -> set[str]:
    return {row.model for row in serve.list()}


# What a person sees


def test_a_model_is_served_and_compared(digits_served: Endpoint, trained_cnn: Any, digits: Digits) -> None:
    served = digits_served.served
    assert served is not None
    assert (served.version, served.replaced, served.findings) == (1, None, ())
    assert served.ends == "a process of its own, which ends with this kernel"
    assert served.source.startswith("cnn: Sequential, ")
    assert served.tested == "test (128 of 500 samples, drawn at random)"
    evidence = served.parity["the model in this kernel"]
    assert (evidence.verdict, evidence.n, evidence.agreement) == ("ok", 128, 1.0)
    wanted = trained_cnn.predict(digits.x_test, verbose=0)
    np.testing.assert_allclose(digits_served.predict(digits.x_test), wanted, atol=1e-6)
    np.testing.assert_allclose(digits_served.predict(digits.x_test, over="rest"), wanted, atol=1e-6)
    assert digits_served.version == 1
    assert digits_served.metrics().requests["OK"] > 0
    row = next(row for row in serve.list() if row.model == "digits")
    assert (row.state, row.url, row.grpc, row.owner) == (
        *("version 1", digits_served.url, digits_served.grpc, "this kernel"),
    )


def test_the_lines_of_its_card_give_the_models_answer(
    digits_served: Endpoint, trained_cnn: Any, digits: Digits
) -> None:
    seen, served = digits_served.glance(), digits_served.served
    assert served is not None and served.request is not None
    asked = np.array(json.loads(served.request)["instances"], "float32")
    assert any(np.array_equal(asked[0], row) for row in digits.x_test), "the example is a sample of the person's"
    wanted = trained_cnn.predict(asked, verbose=0)
    said = subprocess.run(["sh", "-c", view.curl(seen, served)], capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose(json.loads(said)["predictions"], wanted, atol=1e-6)
    code = f"{view.python(seen, served)}\nimport sys; assert 'tensorflow' not in sys.modules\n"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    ours, theirs = said.split("{'predictions': ")
    np.testing.assert_allclose(np.fromstring(ours.strip().strip("[]"), sep=" "), wanted[0], atol=1e-6)
    np.testing.assert_allclose(json.loads(theirs.strip()[:-1]), wanted, atol=1e-6)


def test_notes_of_the_server_are_warnings_in_the_card() -> None:
    endpoint = serve(adding(1), name="open", host="0.0.0.0", flags="--enable_batching --num_unload_threads=2")
    text = endpoint._repr_mimebundle_()["text/plain"]
    assert "! warning: --host=0.0.0.0: whoever reaches this machine can use" in text
    assert "! warning: --num_unload_threads has no effect" in text
    assert endpoint.url.startswith("http://127.0.0.1:")
    assert endpoint.predict([1.0]) == [2.0]
    with urllib.request.urlopen(f"{endpoint.url.partition('/v1/')[0]}/monitoring/prometheus/metrics") as metrics:
        assert b":tensorflow:serving:batching_session:wrapped_run_count{} 1" in metrics.read()


# Once more


def test_served_again_the_next_version_takes_over_and_nobody_waits_for_an_answer_in_vain() -> None:
    endpoint = serve(adding(1), name="swapped")
    answers: list[float] = []
    failures: list[Exception] = []
    enough = threading.Event()

    def ask() -> None:
        with endpoint.client as client:
            while not enough.is_set():
                try:
                    answers.append(float(client.predict([0.0])[0]))
                except TfdeployError as error:
                    failures.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for number in (2, 3):
            again = serve(adding(number), name="swapped")
            assert (again.url, again.version, again.served and again.served.replaced) == (
                *(endpoint.url, number, number - 1),
            )
    finally:
        enough.set()
        asking.join()
    assert failures == []
    assert [number for number, _ in itertools.groupby(answers)] == [1.0, 2.0, 3.0]
    assert endpoint.predict([0.0]) == [3.0]
    assert "✓ serving version 3" in endpoint._repr_mimebundle_()["text/plain"]


def test_another_model_may_take_the_name(trained_cnn: Any, digits: Digits) -> None:
    lite = tflite_convert(trained_cnn, scheme="int8", io="int8", calib=digits.x_train)
    endpoint = serve(lite, name="anything", test=digits.x_test)
    np.testing.assert_array_equal(endpoint.predict(digits.x_test[:2]), lite.predict(digits.x_test[:2]))
    serve(adding(5), name="anything")
    assert endpoint.predict([1.0]) == [6.0], "an old handle forgets the scales of what is served no longer"
    text = endpoint._repr_mimebundle_()["text/plain"]
    assert "x: float32[?] → y: float32[?]" in text
    assert "scales" not in text


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"rest_api_port": 80}, "--rest-api-port"),
        ({"grpc_port": 80}, "--grpc-port"),
        ({"host": "127.0.0.2"}, "--host"),
        ({"in_kernel": True}, "--in-kernel"),
        ({"gpu": True}, "--gpu"),
        ({"flags": "--enable_batching"}, "--flags"),
        ({"base_path": "/nowhere"}, "--base-path"),
    ],
)
def test_a_running_server_keeps_what_it_was_started_with(
    digits_served: Endpoint, options: dict[str, Any], flag: str
) -> None:
    with pytest.raises(InputError, match=f"digits is served already.*another {flag}") as caught:
        serve(adding(1), name="digits", **options)
    assert f"Leave {flag} out" in caught.value.cure
    assert digits_served.version == 1


def test_what_it_was_started_with_may_be_said_again() -> None:
    options: dict[str, Any] = {"name": "same", "host": "127.0.0.1", "flags": "--enable_batching", "in_kernel": False}
    endpoint = serve(adding(1), **options)
    port = int(endpoint.url.split(":")[2].partition("/")[0])
    assert serve(adding(2), **options, rest_api_port=port).version == 2
    assert serve(adding(3), name="same").version == 3


def test_a_version_that_cannot_be_loaded_leaves_the_one_before_it(files: SavedModels, tmp_path: Path) -> None:
    endpoint = serve(adding(1), name="half")
    broken = shutil.copytree(files.half_plus_two / "1", tmp_path / "broken")
    (broken / "assets.extra").mkdir()
    (broken / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"no records at all")
    with pytest.raises(VersionFailed, match="version 2 of half is not served") as caught:
        serve(broken, name="half", test=np.arange(40, dtype="float32"))
    assert "What was served before still is" in caught.value.cure
    assert versions(hosting.hosts["half"].models["half"].base_path) == {"1"}
    assert endpoint.predict([1.0]) == [2.0]
    assert endpoint.served is not None and endpoint.served.version == 1
    serve(adding(7), name="half")
    assert endpoint.predict([1.0]) == [8.0]
    assert endpoint.version == 3, "a number that was given once is not given again"


def test_a_model_that_cannot_be_written_leaves_the_one_before_it() -> None:
    import tensorflow as tf

    def in_python(x: Any) -> Any:
        return {"y": tf.reshape(tf.py_function(lambda value: value, [x], tf.float32), (-1,))}

    endpoint = serve(adding(1), name="plain")
    with pytest.raises(TfdeployError):
        serve(tf.function(in_python, input_signature=[tf.TensorSpec((None,), name="x")]), name="plain")
    assert endpoint.predict([1.0]) == [2.0]
    assert versions(hosting.hosts["plain"].models["plain"].base_path) == {"1"}


def test_a_server_that_was_killed_is_started_again() -> None:
    first = serve(adding(1), name="again")
    host = hosting.hosts["again"]
    process = psutil.Process(host.pid)
    process.kill()
    while host.alive:
        time.sleep(0.02)
    assert "again" not in serving(), "the file of a server that was killed goes"
    second = serve(adding(2), name="again")
    assert (second.version, second.predict([0.0])) == (1, [2.0])
    assert "✗ not answering" in first._repr_mimebundle_()["text/plain"]


# Files and folders


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("digits/1", "digits"),
        ("digits/1/saved_model.pb", "digits"),
        ("my.model", "my.model"),
        ("my model.keras", "my_model"),
        ("digits-v2.tflite", "digits-v2"),
    ],
)
def test_a_path_gives_a_name(given: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / given
    if path.suffix in (".keras", ".tflite", ".pb"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    else:
        path.mkdir(parents=True)
        (path / "saved_model.pb").write_bytes(b"")
    monkeypatch.chdir(path if path.is_dir() else path.parent)
    for spelled in (str(path), "." if path.is_dir() else path.name):
        assert _servable_name(sources.open_source(spelled, spelled)) == name


@pytest.mark.parametrize(
    ("variable", "name"), [("model", "model"), ("trainer.model", "trainer.model"), ("модель", "модель")]
)
def test_a_variable_gives_its_name(variable: str, name: str) -> None:
    assert _servable_name(sources.open_source(adding(1), variable)) == name


def test_a_variable_that_holds_a_path_gives_its_name(files: SavedModels) -> None:
    assert _servable_name(sources.open_source(files.half_plus_two / "1", "best")) == "best"


def test_a_saved_model_of_tensorflow_1_is_served_whole(files: SavedModels) -> None:
    endpoint = serve(files.tf1 / "1", test=np.arange(40, dtype="float32"))
    assert endpoint.name == "tf1"
    assert endpoint.served is not None
    assert endpoint.served.parity["the file"].max_abs_error == 0.0
    assert set(endpoint.signatures) == {"serving_default", "regress_x_to_y", "classify_x_to_y"}
    assert endpoint.predict([2.0]) == [3.0]
    line = f'curl -s -d \'{{"examples": [{{"x": 2.0}}]}}\' {endpoint.url}:'
    for method, results in (("classify", [[["up", 3.0], ["down", -3.0]]]), ("regress", [3.0])):
        body = line.replace("{", '{"signature_name": "' + f'{method}_x_to_y", ', 1)
        said = subprocess.run(["sh", "-c", body + method], capture_output=True, text=True, check=True).stdout
        assert json.loads(said) == {"results": results}


@pytest.mark.parametrize("suffix", [".keras", ".tflite"])
def test_a_file_is_served(suffix: str, trained_cnn: Any, digits: Digits, tmp_path: Path) -> None:
    path = tmp_path / f"digits-v2{suffix}"
    if suffix == ".keras":
        trained_cnn.save(path)
    else:
        tflite_convert(trained_cnn).save(path)
    endpoint = serve(path, test=digits.x_test)
    assert endpoint.url.endswith("/v1/models/digits-v2")
    assert endpoint.served is not None
    assert endpoint.served.parity["the file"].max_abs_error == pytest.approx(0.0, abs=1e-6)
    wanted = trained_cnn.predict(digits.x_test[:3], verbose=0)
    np.testing.assert_allclose(endpoint.predict(digits.x_test[:3]), wanted, atol=1e-5)


def test_a_file_without_a_default_signature_is_served_and_not_compared(tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.up, module.down = adding(1), adding(-1)
    tf.saved_model.save(module, str(tmp_path / "pair" / "1"), signatures={"up": module.up, "down": module.down})
    assert Serve(model=str(tmp_path / "pair" / "1")).data_to_find() == ()
    endpoint = serve(tmp_path / "pair" / "1")
    assert endpoint.predict([1.0], signature="down") == [0.0]
    assert endpoint.served is not None and endpoint.served.parity == {}


def test_nothing_of_a_folder_that_a_person_chose_is_taken_away(tmp_path: Path) -> None:
    for number in ("1", "00000003"):
        half_plus_two(tmp_path / number)
    (tmp_path / "notes.txt").write_text("mine")
    endpoint = serve(adding(1), name="kept", base_path=tmp_path)
    assert endpoint.version == 4
    assert endpoint.predict([0.0]) == [1.0]
    for following in (5, 6, 7):
        assert serve(adding(following), name="kept").version == following
    serve.stop("kept")
    assert versions(tmp_path) == {"1", "00000003", "4", "5", "6", "7", "notes.txt"}


def test_a_version_that_would_not_be_served_is_refused(tmp_path: Path) -> None:
    half_plus_two(tmp_path / "7")
    with pytest.raises(InputError, match="version 3 of old would not be served") as caught:
        serve(adding(1), name="old", base_path=tmp_path, version=3)
    assert "becomes 8" in caught.value.cure
    with pytest.raises(OutputError, match="version 7"):
        serve(adding(1), name="old", base_path=tmp_path, version=7)
    assert serve(adding(1), name="old", base_path=tmp_path, version=20).version == 20
    assert serve(adding(1), name="old").version == 21


def test_two_models_cannot_share_a_folder(tmp_path: Path) -> None:
    serve(adding(1), name="first", base_path=tmp_path)
    with pytest.raises(InputError, match=r"second cannot have its versions in .*those of first"):
        serve(adding(2), name="second", base_path=tmp_path)
    assert versions(tmp_path) == {"1"}


# Options


def test_functions_are_served_with_the_model() -> None:
    import tensorflow as tf

    endpoint = serve(
        adding(1),
        name="wrapped",
        preprocess=lambda raw: tf.cast(raw, tf.float32) / 2,
        postprocess=lambda y: {"half": y / 2},
        signature={"double": lambda x: {"doubled": 2 * x}},
        input_spec="?:int32",
        test=np.arange(40, dtype="int32"),
    )
    assert endpoint.predict([4]) == [1.5]
    assert endpoint.predict([4.0], signature="double") == [8.0]
    assert endpoint.served is not None
    assert endpoint.served.parity["the model in this kernel"].max_abs_error == 0.0


def test_several_inputs_and_text_are_asked_by_name() -> None:
    import tensorflow as tf

    signature = [tf.TensorSpec((None, 2), name="a"), tf.TensorSpec((None,), tf.string, name="s")]
    endpoint = serve(
        tf.function(lambda a, s: {"sum": tf.reduce_sum(a, 1), "loud": tf.strings.upper(s)}, input_signature=signature),
        name="mixed",
    )
    answers = endpoint.predict({"a": [[1.0, 2.0]], "s": ["hey"]})
    assert (answers["sum"].tolist(), answers["loud"].tolist()) == ([3.0], [b"HEY"])


def test_a_server_in_this_process_is_one_like_any_other() -> None:
    threads = threading.active_count()
    endpoint = serve(adding(1), name="inside", in_kernel=True, test=np.arange(40, dtype="float32"))
    host = hosting.hosts["inside"]
    assert host.pid == os.getpid()
    assert "this kernel's own process" in endpoint._repr_mimebundle_()["text/plain"]
    assert endpoint.predict([1.0]) == [2.0]
    assert serve(adding(2), name="inside").predict([1.0], over="grpc") == [3.0]
    with pytest.raises(ServingError, match="inside runs inside a kernel"):
        next(server for server in state.running() if "inside" in server.models).stop()
    endpoint.stop()
    with pytest.raises(ServerUnreachable):
        endpoint.predict([1.0])
    assert threading.active_count() <= threads + 4, "gRPC and TensorFlow keep some threads, the server none"


def test_ports_may_be_chosen() -> None:
    rest, grpc = free_port("127.0.0.1"), free_port("127.0.0.1")
    endpoint = serve(adding(1), name="ports", rest_api_port=rest, grpc_port=grpc)
    assert (endpoint.url, endpoint.grpc) == (f"http://127.0.0.1:{rest}/v1/models/ports", f"127.0.0.1:{grpc}")


@pytest.mark.parametrize("option", ["rest_api_port", "grpc_port"])
def test_a_port_that_is_taken_is_refused_before_any_work(digits_served: Endpoint, option: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {option: int(digits_served.url.split(":")[2].partition("/")[0])}
    with pytest.raises(ServingError, match="another program there"):
        serve(adding(1), name="late", base_path=tmp_path / "late", **options)
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"name": "a b"}, "'a b'"),
        ({"name": "a/b"}, "'a/b'"),
        ({"name": ".."}, "'..'"),
        ({"host": "300.1.1.1"}, "300.1.1.1"),
        ({"flags": "--port=9"}, "Write --grpc-port"),
        ({"flags": "--model_config_file=m.txt"}, "--model_config_file"),
        ({"flags": "--help"}, "!tfdeploy-serve --help"),
        ({"flags": "--enabel_batching"}, "did you mean --enable_batching"),
        ({"flags": "--num_load_threads=many"}, "many"),
    ],
)
def test_what_no_server_can_be_is_refused_before_any_work(
    options: dict[str, Any], found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TfdeployError) as caught:
        serve(adding(1), **{"name": "never", "base_path": tmp_path / "never", **options})
    assert found in str(caught.value)
    assert not (tmp_path / "never").exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "options", [{"rest_api_port": 9000, "grpc_port": 9000}, {"flags": "'"}, {"rest_api_port": 0}, {"grpc_port": 70_000}]
)
def test_options_that_contradict_themselves_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        serve(adding(1), **options)


# When it goes wrong


def stopped(*_: Any) -> Any:
    raise KeyboardInterrupt


def refused(*_: Any) -> Any:
    raise RequestRefused("digits was asked to predict", status="INTERNAL", message="no", cure="Look.")


def test_the_stop_button_while_it_is_compared_leaves_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_parity, "compare", stopped)
    with pytest.raises(KeyboardInterrupt):
        serve(adding(1), name="halted", test=np.arange(40, dtype="float32"))
    assert "halted" not in hosting.hosts
    assert "halted" not in serving()
    assert not (hosting.own_folder() / "halted").exists()


def test_the_stop_button_while_the_next_version_is_compared_leaves_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = serve(adding(1), name="going")
    monkeypatch.setattr(served_parity, "compare", stopped)
    with pytest.raises(KeyboardInterrupt):
        serve(adding(2), name="going", test=np.arange(40, dtype="float32"))
    assert endpoint.predict([1.0]) == [3.0]


def test_a_comparison_that_fails_costs_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_parity, "compare", refused)
    endpoint = serve(adding(1), name="unsure", test=np.arange(40, dtype="float32"))
    assert endpoint.predict([1.0]) == [2.0]
    text = endpoint._repr_mimebundle_()["text/plain"]
    assert "✗ error: its answers were not compared: digits was asked to predict: found INTERNAL: no" in text


# The other actions


def test_servers_are_stopped_by_name_and_together(digits_served: Endpoint) -> None:
    serve(adding(1), name="one")
    one = hosting.hosts["one"]
    left = serve.stop("one")
    assert left.stopped == ("one",)
    assert {row.model for row in left} == {"digits"}
    assert len(left) == 1
    assert not psutil.pid_exists(one.pid)
    assert not one.models["one"].base_path.exists()
    assert "stopped one" in left._repr_mimebundle_()["text/plain"]


def test_a_name_that_nobody_serves_is_an_error_that_says_which_are(digits_served: Endpoint) -> None:
    with pytest.raises(NameNotFound, match="no server serves 'digit': found digits"):
        serve.stop("digit")


@pytest.mark.parametrize("options", [{}, {"name": "digits", "all": True}])
def test_a_stop_needs_a_name_or_all(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="name a model, or --all"):
        serve.stop(**options)


@pytest.fixture
def console(files: SavedModels) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(*flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tfdeploy_magic.serving.cli", f"--model_base_path={files.half_plus_two}"]
        process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stderr is not None
        for line in process.stderr:
            if "Exporting HTTP" in line:
                break
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_a_server_of_another_process_is_listed_and_stopped_by_name(
    console: Callable[..., subprocess.Popen[str]],
) -> None:
    port = free_port("127.0.0.1")
    process = console("--model_name=half", f"--rest_api_port={port}", f"--port={free_port('127.0.0.1')}")
    ends = time.monotonic() + 10
    while "half" not in serving() and time.monotonic() < ends:
        time.sleep(0.05)
    row = next(row for row in serve.list() if row.model == "half")
    assert (row.state, row.url, row.owner) == (
        *("version 1", f"http://127.0.0.1:{port}/v1/models/half", f"process {process.pid}"),
    )
    assert Endpoint.at(row.url).grpc == row.grpc
    assert "half" not in {left.model for left in serve.stop("half")}
    assert process.wait(10) == 0


def test_a_server_without_rest_is_listed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = state.RunningServer(4711, 0.0, ("talker",), None, "127.0.0.1:1", {}, None, 0.0)
    monkeypatch.setattr(state, "running", lambda: [quiet])
    (row,) = serve.list()
    assert (row.state, row.url, row.grpc, row.requests, row.owner) == (
        *("gRPC only", "–", "127.0.0.1:1", "–", "process 4711"),
    )


# Versions, labels and splits


def scaled(by: float) -> Any:
    """Return a Keras model that multiplies float32[?, 2]; Keras calls the input of each otherwise."""
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Rescaling(by)])
    return Named(f"by_{by:g}".replace(".", "_"), model)


def test_a_canary_is_asked_by_its_label_and_promoted_and_rolled_back_in_one_line_each() -> None:
    x = np.ones((1, 2), "float32")
    stable = serve(scaled(1), name="lined", test=x)
    canary = serve(scaled(2), name="lined", label="canary", test=x)
    by_label = Endpoint(f"{stable.url}/labels/stable")
    assert canary.url == f"{stable.url}/labels/canary"
    assert (canary.version, stable.version) == (2, 2)
    assert (canary.predict(x)[0, 0], by_label.predict(x)[0, 0]) == (2, 1)
    text = canary._repr_mimebundle_()["text/plain"]
    assert "canary: version 2, stable: version 1" in text
    assert "who names no label is answered by version 2" in text
    assert f"Ask {stable.url}/labels/stable for version 1" in text
    promoted = serve.promote("lined")
    assert (promoted.version, by_label.predict(x)[0, 0], promoted.predict(x)[0, 0]) == (2, 2, 2)
    back = serve.rollback(serve.rollback("lined").name)
    assert (back.version, back.predict(x)[0, 0]) == (1, 1)
    assert "✓ serving version 1: by_1" in back._repr_mimebundle_()["text/plain"], "what is known of it is kept"


def test_a_lower_number_may_be_served_by_a_label() -> None:
    x = np.ones((1, 2), "float32")
    newest = serve(scaled(1), name="lower", version=5, test=x)
    older = serve(scaled(3), name="lower", version=3, label="legacy", test=x)
    assert (older.predict(x)[0, 0], newest.predict(x)[0, 0]) == (3, 1)
    with pytest.raises(InputError, match="version 4 of lower would not be served"):
        serve(scaled(3), name="lower", version=4, test=x)


def test_as_many_versions_stay_loaded_as_asked_for() -> None:
    x = np.ones((1, 2), "float32")
    for by in (1, 2, 3, 4):
        endpoint = serve(scaled(by), name="kept", keep=2, test=x)
    assert [found.version for found in endpoint.status() if found.state == "AVAILABLE"] == [4, 3]
    assert Endpoint(f"{endpoint.url}/versions/3").predict(x)[0, 0] == 3


def test_a_model_built_anew_keeps_the_name_that_clients_know_its_input_by() -> None:
    x = np.ones((1, 2), "float32")
    first = serve(scaled(1), name="renamed", test=x)
    known = first.signatures["serving_default"].inputs[0].name
    again = serve(scaled(2), name="renamed", test=x)
    assert again.signatures["serving_default"].inputs[0].name == known
    assert f"its input is called '{known}' as it was" in again._repr_mimebundle_()["text/plain"]
    assert again.predict({known: x}, over="grpc")[0, 0] == 2


def test_two_models_share_the_requests_and_the_better_one_is_promoted() -> None:
    x = np.ones((1, 2), "float32")
    one, two = scaled(1), scaled(2)
    endpoint = serve(one, rival=two, split="50/50", test=x)
    assert endpoint.name == "by_1"
    keys = [f"user-{number}" for number in range(300)]
    answers = {key: float(endpoint.predict(x, key=key)[0, 0]) for key in keys}
    assert set(answers.values()) == {1, 2}
    assert answers == {key: float(endpoint.predict(x, key=key, over="grpc")[0, 0]) for key in keys}
    assert endpoint.outcome([answers[key] == 2 for key in keys], key=keys) == 300
    text = endpoint._repr_mimebundle_()["text/plain"]
    assert "✓ requests are split: by_1 50% / by_2 50%" in text
    assert "✓ by_2 is better: 100% right against 0%" in text
    assert text.endswith("next: %serve --promote by_1 by_2")
    both = sum(1 for value in answers.values() if value == 2)
    arms = {arm.name: arm for arm in endpoint.glance().arms}
    assert (arms["by_2"].requests["OK"], arms["by_2"].outcomes.total) == (2 * both, both)
    html = endpoint._repr_mimebundle_()["text/html"]
    assert "data:image/png" in html
    assert {row.model for row in serve.list()} >= {"by_1", "by_2"}
    promoted = serve.promote("by_1")
    assert "✓ by_2 answers for by_1" in promoted._repr_mimebundle_()["text/plain"]
    assert {float(promoted.predict(x)[0, 0]) for _ in range(20)} == {2}
    assert Endpoint(f"{endpoint.url}/versions/1").predict(x)[0, 0] == 1, "who names a version still gets it"
    back = serve.rollback("by_1")
    assert "by_1 50% / by_2 50%" in back._repr_mimebundle_()["text/plain"]
    stopped = serve.stop("by_2")
    assert set(stopped.stopped) == {"by_1", "by_2"}, "they are one server"
    assert not {"by_1", "by_2"} & serving()


def test_a_new_version_of_a_rival_begins_a_new_test_and_its_arm_answers_all_the_while() -> None:
    x = np.ones((1, 2), "float32")
    endpoint = serve(scaled(1), rival=scaled(2), split="50/50", test=x)
    keys = [str(number) for number in range(40)]
    seen, asking = set[float](), threading.Event()
    mine = next(key for key in keys if endpoint.predict(x, key=key)[0, 0] == 2)

    def ask() -> None:
        while not asking.is_set():
            seen.add(float(endpoint.predict(x, key=mine)[0, 0]))

    endpoint.outcome(True, arm="by_2")
    thread = threading.Thread(target=ask)
    thread.start()
    serve(Named("by_2", scaled(5).value), test=x)
    asking.set()
    thread.join()
    assert seen <= {2, 5}, "by_1 never answers for by_2"
    assert endpoint.predict(x, key=mine)[0, 0] == 5
    arms = {arm.name: arm for arm in endpoint.glance().arms}
    assert (arms["by_2"].version, arms["by_2"].outcomes.total) == (2, 0)


def test_a_split_can_be_ended_and_begun_again_by_the_names_of_the_models() -> None:
    x = np.ones((1, 2), "float32")
    serve(scaled(1), rival=scaled(2), split="90/10", test=x)
    back = serve.rollback("by_1")
    assert {float(back.predict(x)[0, 0]) for _ in range(30)} == {1}
    again = serve.route("by_1", shares="by_2=50,by_1=50")
    assert [(arm.name, arm.share) for arm in again.glance().arms] == [("by_1", 0.5), ("by_2", 0.5)]
    assert [arm.share for arm in serve.route("by_1", shares="80/20").glance().arms] == [0.8, 0.2]


def test_a_line_that_is_refused_late_changes_nothing_and_its_number_means_nothing() -> None:
    x = np.ones((1, 2), "float32")
    endpoint = serve(scaled(1), name="calm", test=x)
    host = hosting.hosts["calm"]
    for wrong in ({"split": "50/30/20"}, {"split": "calm=50,nobody=50"}):
        with pytest.raises(InputError):
            serve(scaled(3), name="calm", rival=scaled(2), test=x, **wrong)
        assert (endpoint.predict(x)[0, 0], list(host.models)) == (1, ["calm"])
        assert [found.state for found in endpoint.status()] == ["AVAILABLE"]
    assert serve(scaled(7), name="calm", test=x).predict(x)[0, 0] == 7


def test_a_rival_that_cannot_be_served_leaves_the_first_model_alone(files: SavedModels, tmp_path: Path) -> None:
    x = np.ones(3, "float32")
    endpoint = serve(files.half_plus_two / "1", name="whole", test=x)
    broken = shutil.copytree(files.half_plus_two / "1", tmp_path / "broken")
    (broken / "assets.extra").mkdir()
    (broken / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"no records at all")
    with pytest.raises(VersionFailed, match=r"not everything can be served.*name: broken"):
        serve(files.half_plus_two / "1", name="whole", rival=broken, split="50/50", test=x)
    host = hosting.hosts["whole"]
    assert (list(host.models), endpoint.glance().arms) == (["whole"], ())
    assert endpoint.predict([2.0])[0] == 3.0
    assert serve(files.half_plus_two / "1", name="whole", test=x).version == 2


def test_versions_that_take_something_else_share_no_requests() -> None:
    serve(adding(1), name="shapes", test=np.ones(1, "float32"))
    with pytest.raises(InputError, match="2 cannot answer what 1 is asked"):
        serve(Named("other", scaled(2).value), name="shapes", split="50/50", test=np.ones((1, 2), "float32"))
    serve(Named("other", scaled(2).value), name="shapes", keep=2, test=np.ones((1, 2), "float32"))
    with pytest.raises(InputError, match="2 cannot answer what 1 is asked"):
        serve.route("shapes", shares="1=50,2=50")


def test_versions_and_labels_share_the_requests_too() -> None:
    x = np.ones((1, 2), "float32")
    serve(scaled(1), name="shared", test=x)
    endpoint = serve(scaled(2), name="shared", split="50/50", test=x)
    assert {arm.name for arm in endpoint.glance().arms} == {"1", "2"}
    assert {float(endpoint.predict(x)[0, 0]) for _ in range(60)} == {1, 2}
    with pytest.raises(InputError, match="a new version of shared would get no requests"):
        serve(scaled(3), name="shared", test=x)
    routed = serve.route("shared", shares="1=10,2=90")
    assert [arm.share for arm in routed.glance().arms] == [0.1, 0.9]
    assert serve.promote("shared", what="1").predict(x)[0, 0] == 1
    endpoint = serve(scaled(3), name="shared", label="canary", split="90/10", test=x)
    assert [(arm.name, arm.version) for arm in endpoint.glance().arms] == [("stable", 1), ("canary", 3)]
    swapped = serve(scaled(4), name="shared", label="canary", test=x)
    assert (swapped.predict(x)[0, 0], [arm.version for arm in endpoint.glance().arms]) == (4, [1, 4])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rival": 1}, "two models need to know who gets how much"),
        ({"rival": 1, "split": "50/50", "label": "canary"}, "--label is for one model"),
        ({"rival": 1, "split": "50/50", "base_path": "x"}, "--base-path is for one model"),
        ({"split": "90/20"}, "add up to 110"),
        ({"split": "90/10", "backend": "docker"}, "no router"),
        ({"memory": "2g"}, "--memory is for --backend docker"),
        ({"pull": True}, "--pull is for --backend docker"),
        ({"backend": "docker", "in_kernel": True}, "do not go together"),
        ({"label": "a/b"}, "pattern"),
        ({"label": "3"}, "pattern"),
        ({"keep": 0}, "greater than 0"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_done(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        serve(scaled(1), **options)


def test_a_second_model_that_takes_something_else_is_refused_and_nothing_is_left() -> None:
    with pytest.raises(InputError, match=r"other cannot answer what adds is asked: found x: float32\[\?\]"):
        serve(Named("adds", scaled(1).value), rival=Named("other", adding(1)), split="50/50")
    assert not serving() & {"adds", "other"}
    assert not (hosting.own_folder() / "adds" / "1").exists()
    with pytest.raises(InputError, match="two models cannot have one name"):
        serve(scaled(1), rival=scaled(1), split="50/50")
    serve(adding(1), name="alone", test=np.ones(1, "float32"))
    with pytest.raises(InputError, match="alone cannot share the requests of other"):
        serve(Named("other", adding(2)), rival=Named("alone", adding(1)), split="50/50")


def test_what_another_notebook_serves_is_changed_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs = state.RunningServer(
        4711, 0.0, ("theirs",), "http://127.0.0.1:9", None, {"theirs": str(tmp_path)}, 4710, 0.0
    )
    monkeypatch.setattr(state, "running", lambda: [theirs])
    with pytest.raises(InputError, match="a server of the kernel 4710"):
        serve.promote("theirs")
    with pytest.raises(InputError, match="a server of another notebook that serves them"):
        serve(adding(1), name="mine", base_path=tmp_path)


def test_quantized_files_of_other_scales_share_no_requests(trained_cnn: Any, digits: Digits) -> None:
    lite = tflite_convert(trained_cnn, scheme="int8", calib=digits.x_train, test=digits.x_test, io="int8")
    with pytest.raises(InputError, match="integers by scales of its own"):
        serve(Named("lite", lite), rival=Named("twin", lite), split="50/50", test=digits.x_test)
