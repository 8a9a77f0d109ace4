"""The magic as a person uses it: every test here types into a real kernel."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.notebook.kernels import Kernel, two_lines


def test_the_line_as_typed_shows_a_card_and_gives_a_value(trained: Kernel) -> None:
    shown = trained.run("lite = %tflite_convert model --int8")
    assert shown.status == "ok"
    assert len(shown.displays) == 1
    assert "✓ ok" in shown.displays[0]["text/plain"]
    assert "on x_train (100 of 1297 samples" in shown.displays[0]["text/plain"]
    assert "data:image/png;base64," in shown.displays[0]["text/html"]
    assert "stderr" not in shown.streams
    value = trained.run("lite.scheme, lite.path.exists(), lite.size == lite.path.stat().st_size, lite.evidence.ok")
    assert value.results[0]["text/plain"] == "('int8', True, True, True)"


def test_the_card_is_shown_once_and_the_value_is_in_the_underscore(trained: Kernel) -> None:
    shown = trained.run("%tflite_convert model --float16")
    assert len(shown.displays) == 1
    assert shown.results == []
    assert trained.run("_.scheme").results[0]["text/plain"] == "'float16'"
    again = trained.run("__")
    assert "float16 .tflite" in again.results[0]["text/plain"], "later the value shows itself as any other"


def test_as_keeps_the_result_in_a_variable_and_output_in_a_file(trained: Kernel, tmp_path: Path) -> None:
    target = tmp_path / "a model.tflite"
    shown = trained.run(f"%tflite_convert model --dynamic -o '{target}' --as kept\nprint(kept.path)")
    assert shown.streams["stdout"].strip() == str(target)
    assert target.read_bytes()[4:8] == b"TFL3"
    before = target.read_bytes()
    text = two_lines(trained.run(f"%tflite_convert model -o '{target}'"), "OutputError")
    assert "existing file" in text and "--force" in text
    assert target.read_bytes() == before
    assert trained.run(f"%tflite_convert model -o '{target}' --force").status == "ok"
    assert target.read_bytes() != before


def test_named_data_and_metric_are_used(trained: Kernel) -> None:
    trained.run("def share_of_sevens(labels, output): return float((output.argmax(1) == 7).mean())")
    shown = trained.run("%tflite_convert model --int8 --calib x_test --test x_train,y_train --metric share_of_sevens")
    assert "share_of_sevens" in shown.text
    assert "tested       on x_train, y_train (1297 samples)" in shown.text


def test_data_may_be_cut_where_it_is_named(trained: Kernel) -> None:
    shown = trained.run("%tflite_convert model --int8 --calib x_train[:50] --test x_test[:-400, ..., :],y_test[:-400]")
    assert "calibrated   on x_train[:50] (50 samples)" in shown.text
    assert "tested       on x_test[:-400, ..., :], y_test[:-400] (100 samples)" in shown.text


@pytest.mark.parametrize(
    ("line", "error", "said"),
    [
        ("%tflite_convert modle --int8", "NameNotFound", "Did you mean model"),
        ("%tflite_convert x_train --int8", "NotAModel", "Models in this kernel: model"),
        ("%tflite_convert keras.Sequential()", "NameNotFound", "Expressions are not evaluated"),
        ("m = keras.Sequential([keras.layers.Dense(1)])\n%tflite_convert m", "ModelNotReady", "Call it once on data"),
        ("%tflite_convert model --int8 --calib y_train", "DataError", "for input"),
        ("n = 50\n%tflite_convert model --int8 --calib x_train[:n]", "NameNotFound", "only numbers and slices"),
        ("%tflite_convert model --int8 --calib x_train[2000]", "DataError", "index 2000 is out of bounds"),
        ("%tflite_convert model --int8 --calib model[:3]", "DataError", "found a Sequential, and TypeError"),
        ("%tflite_convert model --test x_test[:9],y_test", "DataError", "y_test does not label x_test[:9]"),
        ("e = x_train[:0]\n%tflite_convert model --int8 --calib e", "DataError", "no samples"),
        ("n = x_train * float('nan')\n%tflite_convert model --int8 --calib n", "DataError", "NaN in sample 0"),
        ("%tflite_convert model --int8 -o /no/such/folder/m.tflite", "OutputError", "no folder"),
        ("%tflite_convert model --metric f1000", "NameNotFound", "there is no metric"),
        ("%tflite_convert model --signature other", "NameNotFound", "serving_default"),
        ("%tflite_convert model --float16 --io int8", "DataError", "--io int8"),
        ("def f(): return 3\n%tflite_convert model --int8 --calib f", "UserCodeError", "must yield samples"),
    ],
)
def test_a_mistake_costs_two_lines(trained: Kernel, line: str, error: str, said: str) -> None:
    shown = trained.run(line)
    assert shown.error_name == error
    assert said in shown.error_text
    if error != "UserCodeError":
        two_lines(shown, error)
    assert trained.run("model.count_params() > 0").results[0]["text/plain"] == "True"


def test_a_typing_mistake_is_a_usage_error(trained: Kernel) -> None:
    shown = trained.run("%tflite_convert model --int9")
    assert shown.status == "error"
    assert shown.streams["stderr"].startswith("UsageError: %tflite_convert: unknown: --int9")


def test_a_generator_that_raises_shows_the_persons_own_traceback(trained: Kernel) -> None:
    trained.run("def broken():\n    yield [x_train[:1]]\n    raise ValueError('my own mistake')")
    text = trained.run("%tflite_convert model --int8 --calib broken").error_text
    assert "raise ValueError('my own mistake')" in text
    assert "tfdeploy_magic/" not in text


def test_a_generator_that_hangs_ends_at_the_deadline(trained: Kernel) -> None:
    trained.run("import time\ndef hanging():\n    yield [x_train[:1]]\n    time.sleep(600)")
    text = trained.run("%tflite_convert model --int8 --calib hanging --timeout 1").error_text
    assert text.startswith("UserCodeError: the generator hanging hung: found nothing after 1 s")
    assert "✓ ok" in trained.run("%tflite_convert model").text


def test_debug_shows_the_whole_traceback(trained: Kernel) -> None:
    text = trained.run("%tflite_convert modle --debug").error_text
    assert "namespace.py" in text


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_in_the_job_costs_an_error_and_not_the_kernel(trained: Kernel, number: signal.Signals) -> None:
    trained.run(_inject("die", f'{{"number": {int(number)}}}'))
    text = two_lines(trained.run("%tflite_convert model --no-cache"), "ConversionCrashed")
    assert number.name in text
    assert "stage 'dying'" in text
    trained.run("Worker.call = real_call")
    assert "✓ ok" in trained.run("%tflite_convert model").text


def test_a_hang_in_the_job_ends_at_the_deadline(trained: Kernel) -> None:
    trained.run(_inject("hang", "{}"))
    text = two_lines(trained.run("%tflite_convert model --timeout 2 --no-cache"), "DeadlineExceeded")
    assert "--timeout" in text
    trained.run("Worker.call = real_call")
    assert "✓ ok" in trained.run("%tflite_convert model").text


def test_the_stop_button_ends_the_job_within_two_seconds_and_leaves_no_process(trained: Kernel) -> None:
    trained.run(_inject("hang", "{}"))
    kernel_process = psutil.Process(trained.manager.provisioner.pid)  # type: ignore[union-attr]
    request = trained.start("%tflite_convert model --no-cache")
    ends = time.monotonic() + 30
    while not (workers := _workers(kernel_process)) and time.monotonic() < ends:
        time.sleep(0.05)
    assert workers
    began = time.monotonic()
    trained.manager.interrupt_kernel()
    text = two_lines(trained.wait(request), "JobCancelled")
    assert time.monotonic() - began < 2
    assert "was stopped" in text
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    trained.run("Worker.call = real_call")
    assert "✓ ok" in trained.run("%tflite_convert model").text


@pytest.mark.parametrize("batch_size", [None, 1])
def test_a_default_lstm_is_quantized_unrolled_and_says_so(trained: Kernel, batch_size: int | None) -> None:
    trained.run(f"lstm = keras.Sequential([keras.Input((8, 8), batch_size={batch_size}), keras.layers.LSTM(4)])")
    trained.run("x_rows = x_train[..., 0]")
    text = trained.run("%tflite_convert lstm --int8").displays[0]["text/plain"]
    assert "int8 .tflite" in text
    assert "loops were unrolled for the file" in text
    assert trained.run("lstm.layers[0].unroll").results[0]["text/plain"] == "False"
    assert trained.run("%tflite_convert lstm").status == "ok", "and float is not unrolled"
    trained.run("del lstm, x_rows")


def test_an_untrained_model_converts_but_is_not_ok(trained: Kernel) -> None:
    shown = trained.run("fresh = keras.models.clone_model(model)\n%tflite_convert fresh --int8")
    assert "looks untrained" in shown.displays[0]["text/plain"]
    assert trained.run("_.evidence.ok").results[0]["text/plain"] == "False"
    trained.run("del fresh")


def test_help_and_completion_come_from_the_declaration(trained: Kernel) -> None:
    help_text = trained.client.inspect("%tflite_convert", 15, reply=True, timeout=20)["content"]["data"]["text/plain"]
    assert "--int16x8" in help_text and "representative_dataset" in help_text

    def complete(line: str) -> list[str]:
        return list(trained.client.complete(line, len(line), reply=True, timeout=20)["content"]["matches"])

    assert complete("%tflite_convert mo") == ["model"]
    assert complete("lite = %tflite_convert model --int") == ["--int16x8", "--int8"]
    assert complete("%tflite_convert model --int8 --io u") == ["uint8"]
    assert complete("%tflite_convert model --calib x_tr") == ["x_train"]
    assert complete("%tflite_convert model --test x_test,y_te") == ["y_test"]
    assert complete("%tflite_convert model --metric acc") == ["accuracy"]
    assert "x_train" in complete("x_tr"), "ordinary completion is left alone"


def test_actions_of_a_verb_are_run_explained_and_completed(trained: Kernel) -> None:
    trained.run(
        "from tests.notebook.test_parser import host_verb\n"
        "from tests.notebook.test_namespace import Digits\n"
        "from tfdeploy_magic.commands.declaration import COMMANDS\n"
        "COMMANDS['host'], digits = host_verb(), Digits()\n"
        "%reload_ext tfdeploy_magic"
    )
    shown = trained.run("%host --ask digits x_test[:3, ..., 0] --version 2")
    assert "Done(what='ask'" in shown.text
    kept = trained.run("kept = %host --ask digits x_test[:3, ..., 0] --version 2")
    assert "Done" not in kept.text, "a plain value is shown as any other: not where it is assigned"
    seen = trained.run("kept.options.endpoint.value is digits, kept.options.x.value.shape, kept.options.version").text
    assert seen == "(True, (3, 8, 8), 2)"
    named = trained.run("%host model --methods embed=host_verb --as named\nprint(named.options.methods['embed'].value)")
    assert "host_verb" in named.streams["stdout"]
    quiet = trained.run("%host --forget-all")
    assert (quiet.status, quiet.displays, quiet.results) == ("ok", [], [])
    assert trained.run("%host --stop --al").streams["stderr"].startswith("UsageError: %host --stop: unknown: --al")
    assert "notes='by hand\\n'" in trained.run("%%host model\nby hand\n").text
    assert "%host --stop: it takes a line and no cell" in trained.run("%%host --stop digits\nx\n").streams["stderr"]
    assert "Endpoints in this kernel: digits." in two_lines(trained.run("%host --ask model x_test"), "InputError")

    help_text = trained.client.inspect("%host", 5, reply=True, timeout=20)["content"]["data"]["text/plain"]
    assert help_text.index("%host [") < help_text.index("%host --stop") < help_text.index("all of them")

    def complete(line: str) -> list[str]:
        return list(trained.client.complete(line, len(line), reply=True, timeout=20)["content"]["matches"])

    assert {"--stop", "--ask", "--forget-all", "--port"} <= set(complete("%host --"))
    assert complete("%host --stop --") == ["--all", "--as", "--debug"]
    assert complete("%host --ask di") == ["digits"]
    assert "digits" not in complete("%host di"), "an endpoint is no model"
    assert complete("%host --ask digits x_te") == ["x_test"]
    assert complete("%host --ask digits --version 2 x_te") == ["x_test"]
    assert complete("%host --ask digits x_test[0, 1] --v") == ["--version"]
    assert complete("%host model --methods embed=host_v") == ["host_verb"]
    trained.run("del COMMANDS['host'], digits, Digits, host_verb, kept, named\n%reload_ext tfdeploy_magic")


def test_unloading_takes_the_magic_away_and_loading_twice_is_once(trained: Kernel) -> None:
    trained.run("%load_ext tfdeploy_magic\n%reload_ext tfdeploy_magic")
    assert (
        trained.run("len([c for c in get_ipython().configurables if type(c).__name__ == 'TFDeployMagics'])").results[0][
            "text/plain"
        ]
        == "1"
    )
    trained.run("%unload_ext tfdeploy_magic")
    assert "not found" in trained.run("%tflite_convert model").streams.get("stderr", "")
    trained.run("%load_ext tfdeploy_magic")
    assert trained.run("%config TFDeployMagics.progress = False").status == "ok"
    assert "✓ ok" in trained.run("%tflite_convert model").text
    trained.run("%config TFDeployMagics.progress = True")


def _inject(task: str, arguments: str) -> str:
    return f"""
from tfdeploy_magic.jobs import Worker
real_call = Worker.call
Worker.call = lambda self, task, args, **kw: real_call(self, "tests.jobs.tasks:{task}", {arguments}, **kw)
"""


def _workers(kernel_process: psutil.Process) -> list[psutil.Process]:
    """Return the jobs: children of the fork server, which is a child of the kernel."""
    return [worker for server in kernel_process.children() for worker in server.children()]
