"""``%serve`` and what follows it, as a person uses them: every test here types into a real kernel."""

from __future__ import annotations

import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.notebook.kernels import Kernel, Shown, kernel, two_lines
from tests.serving.saved_models import half_plus_two
from tfdeploy_magic.serving import state

SECONDS = 5.0
"""How long a server may outlive its kernel."""

DIFFERENCE = "abs(endpoint.predict(x_test) - model.predict(x_test, verbose=0)).max()"

COUNTING = """
import threading
asked, failed, enough = [0], [], threading.Event()
def ask():
    while not enough.is_set():
        try:
            endpoint.predict(x_test[:1])
            asked[0] += 1
        except Exception as error:
            failed.append(error)
asking = threading.Thread(target=ask)
asking.start()
"""


def ok(shown: Shown) -> Shown:
    assert shown.status == "ok", shown.error_text or shown.streams
    assert "stderr" not in shown.streams, shown.streams["stderr"]
    return shown


def value_of(kernel: Kernel, expression: str) -> str:
    return str(ok(kernel.run(expression)).results[0]["text/plain"])


def process_of(kernel: Kernel) -> int:
    return int(value_of(kernel, "__import__('os').getpid()"))


def complete(kernel: Kernel, line: str) -> list[str]:
    return list(kernel.client.complete(line, len(line), reply=True, timeout=20)["content"]["matches"])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def is_gone(url: str) -> bool:
    ends = time.monotonic() + SECONDS
    while answers(url) and time.monotonic() < ends:
        time.sleep(0.05)
    return not answers(url)


@pytest.fixture(scope="module")
def served(trained: Kernel) -> Iterator[Kernel]:
    """The kernel, with ``endpoint`` that serves ``model``."""
    shown = ok(trained.run("endpoint = %serve model"))
    assert len(shown.displays) == 1
    assert shown.results == []
    yield trained
    ok(trained.run("%serve --stop --all\ndel endpoint"))


def test_the_line_as_typed_finds_its_data_and_shows_a_card(served: Kernel) -> None:
    card = ok(served.run("endpoint")).results[0]
    text = card["text/plain"]
    assert re.match(r"✓ serving version 1: model: Sequential, 5,130 parameters → http://127\.0\.0\.1:\d+/v1/mod", text)
    assert "on x_test (128 of 500 samples, drawn at random, found by its shape" in text
    assert re.search(r"the model in this kernel +128 +(exact|\d{3}\.\d dB) +100\.0%", text)
    assert "✓ serving version 1" in card["text/html"]
    assert float(value_of(served, f"float({DIFFERENCE})")) < 1e-6


def test_the_lines_of_the_card_can_be_typed_as_they_stand(served: Kernel) -> None:
    card = served.run("endpoint").results[0]["text/plain"]
    line = next(line.strip() for line in card.splitlines() if line.startswith("  curl "))
    said = served.run(f"!{line} -s").streams["stdout"]
    assert said.lstrip().startswith('{\n    "predictions": [[') or said.startswith('{\r\n    "predictions": [[')
    following = card.splitlines()[-1].removeprefix("  next: ")
    assert following.startswith("%loadtest http://")
    assert "answers/s" in ok(served.run(f"{following} --clients 1 --seconds 0.2")).text


def test_trained_again_and_served_again_it_answers_as_the_new_one_and_no_request_is_lost(served: Kernel) -> None:
    url = value_of(served, "endpoint.url")
    ok(served.run(f"old = [w.copy() for w in model.get_weights()]\n{COUNTING}"))
    ok(served.run("model.fit(x_train, y_train, epochs=1, verbose=0);"))
    again = ok(served.run("%serve model"))
    ok(served.run("enough.set(); asking.join()"))
    assert "✓ serving version 2" in again.text
    assert "took over from version 1" in again.text
    assert value_of(served, "failed") == "[]"
    assert value_of(served, "asked[0] > 20") == "True"
    assert value_of(served, "endpoint.url") == url
    assert "✓ serving version 2: model: Sequential" in served.run("endpoint").text
    assert float(value_of(served, f"float({DIFFERENCE})")) < 1e-6
    ok(served.run("model.set_weights(old)\ndel old, asked, failed, enough, ask, asking, threading"))


def test_an_answer_is_an_array_that_can_be_kept(served: Kernel) -> None:
    shown = ok(served.run("%predict endpoint x_test[:3]"))
    assert "dtype=float32" in shown.results[0]["text/plain"]
    ok(served.run("answers = %predict endpoint x_test[:3] --over grpc"))
    assert value_of(served, "answers.shape, (answers == endpoint.predict(x_test[:3], over='rest')).all()") == (
        "((3, 10), np.True_)"
    )
    ok(served.run("url = endpoint.url\nanswers = %predict {url} x_test[0:2] --over grpc"))
    ok(served.run("answers = %predict url x_test[0:2]"))
    assert value_of(served, "answers.shape") == "(2, 10)"
    served.run("del answers, url")


@pytest.mark.parametrize(
    ("line", "error", "said"),
    [
        ("%predict endpoint x_test[0]", "DataError", "x[None]"),
        ("%predict endpoint y_test", "DataError", "found the shape [500]"),
        ("%predict endpoint", "DataError", "Wanted keras_tensor: float32[?, 8, 8, 1]"),
        ("%predict endpoint x_test --signature embed", "NameNotFound", "Try --signature serving_default"),
        ("%predict endpont x_test", "NameNotFound", "Did you mean endpoint?"),
        ("%predict http://127.0.0.1:9/v1/models/m x_test", "ServerUnreachable", "does not answer"),
        ("%loadtest endpoint y_test", "DataError", "found the shape"),
        ("%serve model --rest-api-port 80", "InputError", "Leave --rest-api-port out"),
        ('%serve model --flags "--enable_batching"', "InputError", "found another --flags"),
        ('%serve model --name b --flags "--model_name=c"', "InputError", "Write --name"),
        ("%serve model --name a/b", "InputError", "'a/b'"),
        ("%serve model --version 1", "OutputError", "Leave --version out"),
        ("%serve modl", "NameNotFound", "Did you mean model?"),
        ("%serve --stop modl", "NameNotFound", "no server serves 'modl': found model"),
    ],
)
def test_an_error_is_two_lines_that_say_what_to_type(served: Kernel, line: str, error: str, said: str) -> None:
    assert said in two_lines(served.run(line), error)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("%serve --stop", "%serve --stop: name a model, or --all"),
        ("%serve --stop model --all", "%serve --stop: name a model, or --all"),
        ("%serve --list --stop model", "%serve: --list and --stop do not go together"),
        ("%serve model --port 80", "did you mean --grpc-port?"),
        ("%serve model --rest-api-port many", "%serve: --rest-api-port many: input should be a valid integer"),
        ('%serve model --flags "it\'s"', "%serve: --flags it's: no closing quotation"),
        ("%serve model --rest-api-port 9000 --grpc-port 9000", "%serve: give REST and gRPC a port each"),
    ],
)
def test_a_mistyped_line_is_answered_in_one(served: Kernel, line: str, said: str) -> None:
    assert said in served.run(line).streams["stderr"]


def test_many_clients_are_shown_with_a_figure(served: Kernel) -> None:
    shown = ok(served.run("tested = %loadtest endpoint --clients 2 --seconds 0.4"))
    assert len(shown.displays) == 1
    assert "sent         x_test, 1 row a request, over REST" in shown.displays[0]["text/plain"]
    assert "data:image/png;base64," in shown.displays[0]["text/html"]
    assert value_of(served, "tested.load.failed, tested.saturation is None") == "(0, False)"
    served.run("del tested")


def test_the_stop_button_ends_a_load_test_and_its_clients(served: Kernel) -> None:
    process = psutil.Process(process_of(served))
    before = set(process.children())
    request = served.start("%loadtest endpoint --clients 2 --seconds 60 --no-saturation")
    time.sleep(1.5)
    served.manager.interrupt_kernel()
    assert "%loadtest was stopped" in two_lines(served.wait(request), "JobCancelled")
    assert set(process.children()) <= before
    assert value_of(served, "endpoint.predict(x_test[:1]).shape") == "(1, 10)"


def test_the_stop_button_in_another_cell_leaves_the_server(served: Kernel) -> None:
    request = served.start("import time\ntime.sleep(60)")
    time.sleep(0.5)
    served.manager.interrupt_kernel()
    assert served.wait(request).error_name == "KeyboardInterrupt"
    assert value_of(served, "endpoint.predict(x_test[:1]).shape") == "(1, 10)"


def test_the_stop_button_while_it_is_served_leaves_nothing(served: Kernel, tmp_path: Path) -> None:
    compared = tmp_path / "compared"
    ok(
        served.run(f"""
import pathlib, time
from tfdeploy_magic.commands import served_parity
real = served_parity.compare
def compare(*arguments):
    pathlib.Path({str(compared)!r}).touch()
    time.sleep(60)
served_parity.compare = compare
""")
    )
    try:
        request = served.start("%serve model --name halted")
        while not compared.exists():
            time.sleep(0.05)
        served.manager.interrupt_kernel()
        assert "%serve was stopped" in two_lines(served.wait(request), "JobCancelled")
    finally:
        ok(served.run("served_parity.compare = real\ndel real, compare, served_parity"))
    listed = ok(served.run("%serve --list")).text
    assert "halted" not in listed
    assert "model  version" in listed


def test_a_handle_that_is_thrown_away_stops_nothing(served: Kernel) -> None:
    url = value_of(served, "endpoint.url").strip("'")
    ok(served.run("Out.clear()\ndel endpoint\nimport gc\ngc.collect();"))
    assert answers(url)
    ok(served.run("from tfdeploy_magic import Endpoint\nendpoint = Endpoint.at(%r)\ndel Endpoint" % url))  # noqa: UP031
    assert "took over from version 1" in served.run("endpoint").text, "what is known of it is found again"


def test_servers_are_listed_and_stopped_by_name(served: Kernel) -> None:
    ok(served.run("other = %serve model --name other"))
    listed = ok(served.run("servers = %serve --list"))
    assert re.search(
        r"^  other +version 1 +http://127\.0\.0\.1:\d+/v1/models/other +\d+ +this kernel", listed.text, re.M
    )
    assert "<table" in listed.displays[0]["text/html"]
    assert value_of(served, "sorted(row.model for row in servers)") == "['model', 'other']"
    stopped = ok(served.run("%serve --stop other")).text
    assert stopped.startswith("stopped other")
    assert "next: %serve --stop model" in stopped
    assert "✗ not answering" in ok(served.run("other")).text
    assert "does not answer" in two_lines(served.run("%predict other x_test"), "ServerUnreachable")
    assert "does not answer" in two_lines(served.run("%loadtest other"), "ServerUnreachable")
    served.run("del other, servers")


def test_a_quantized_file_is_served_and_asked_with_real_numbers(served: Kernel) -> None:
    ok(served.run("lite = %tflite_convert model --int8 --io int8\nquantized = %serve lite"))
    text = served.run("quantized").text
    assert re.search(r"LiteRT's interpreter here +128 +exact", text)
    assert re.search(r"the model in this kernel +128 +\d\d\.\d dB", text)
    assert "keras_tensor: int8[?, 8, 8, 1]" in text
    assert value_of(served, "(quantized.predict(x_test) == lite.predict(x_test)).all()") == "np.True_"
    assert "x_test, 1 row a request" in ok(served.run("%loadtest quantized --clients 1 --seconds 0.2")).text
    ok(served.run("%serve --stop lite\ndel lite, quantized\nimport gc\ngc.collect();"))


def test_a_model_is_exported_and_what_was_exported_is_served(served: Kernel, tmp_path: Path) -> None:
    exported = ok(served.run(f"%export model {tmp_path}/digits"))
    assert "✓ ok" in exported.text
    text = ok(served.run(f"copy = %serve {tmp_path}/digits/1 --test x_test")).text
    assert text.startswith("✓ serving version 1: ")
    assert "/v1/models/digits\n" in text
    assert re.search(r"the file +128 +(exact|\d{3}\.\d dB)", text)
    assert float(value_of(served, f"float({DIFFERENCE.replace('endpoint', 'copy')})")) < 1e-5
    ok(served.run("%serve --stop digits\ndel copy"))
    assert (tmp_path / "digits" / "1" / "saved_model.pb").exists()


def test_help_and_completion_know_every_flag(served: Kernel) -> None:
    def explained(name: str) -> str:
        found: dict[str, Any] = served.client.inspect(name, len(name), reply=True, timeout=20)["content"]["data"]
        return str(found["text/plain"])

    text = explained("%serve")
    for flag in ("--base-path", "--rest-api-port", "--in-kernel", "--flags", "--preprocess", "--list", "--stop"):
        assert flag in text
    assert "(default: )" not in text
    assert text.index("%serve [") < text.index("%serve --list") < text.index("%serve --stop [--all]")
    assert "x_test[:3]" in explained("%predict")
    assert "--no-saturation" in explained("%loadtest")
    assert complete(served, "%serve mo") == ["model"]
    assert complete(served, "endpoint = %serve model --base") == ["--base-path"]
    assert complete(served, "%serve model --test x_te") == ["x_test"]
    assert complete(served, "%serve --st") == ["--stop"]
    assert complete(served, "%serve --stop --a") == ["--all", "--as"]
    assert complete(served, "%predict endp") == ["endpoint"]
    assert complete(served, "%predict endpoint x_te") == ["x_test"]
    assert complete(served, "%predict endpoint x_test --over ") == ["grpc", "rest"]
    assert complete(served, "%loadtest endpoint --cl") == ["--clients"]


# The end of a kernel


def again(running: Kernel) -> Kernel:
    """Start a kernel in the place of one that has ended, as a front end does, with nothing in it."""
    running.client.stop_channels()
    running.manager.restart_kernel(now=True)
    return Kernel(running.manager)


def test_servers_end_with_their_kernel_whatever_ends_that(tmp_path: Path) -> None:
    half_plus_two(tmp_path / "half" / "1")
    half_plus_two(tmp_path / "inside" / "1")
    with kernel(tmp_path) as running:
        ok(running.run("%load_ext tfdeploy_magic"))
        ok(running.run(f"endpoint = %serve {tmp_path}/half/1\ninside = %serve {tmp_path}/inside/1 --in-kernel"))
        urls = [value_of(running, f"{name}.url").strip("'") for name in ("endpoint", "inside")]
        assert all(map(answers, urls))
        folder = next((tmp_path / "tfdeploy_magic" / "served" / state.machine()).iterdir())
        assert {"half", "inside"} <= {path.name for path in folder.iterdir()}
        running.client.stop_channels()
        running.manager.restart_kernel(now=False)
        running = Kernel(running.manager)
        assert all(map(is_gone, urls))
        assert not folder.exists(), "a kernel that is restarted cleans up behind itself"

        ok(running.run("%load_ext tfdeploy_magic"))
        ok(running.run(f"endpoint = %serve {tmp_path}/half/1"))
        url = value_of(running, "endpoint.url").strip("'")
        (folder,) = (tmp_path / "tfdeploy_magic" / "served" / state.machine()).iterdir()
        psutil.Process(process_of(running)).send_signal(signal.SIGKILL)
        assert is_gone(url)
        assert folder.exists(), "nobody was left to clean up"
        running = again(running)
        ok(running.run("%load_ext tfdeploy_magic"))
        assert "no server of yours runs on this machine" in ok(running.run("%serve --list")).text
        ok(running.run(f"endpoint = %serve {tmp_path}/half/1"))
        assert not folder.exists(), "the next one does"
        running.client.stop_channels()
