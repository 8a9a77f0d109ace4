"""``%quantize`` as a person uses it: every test here types into a real kernel."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.notebook.kernels import Kernel, two_lines

INT8 = "%quantize model --int8"

HANG_AFTER_TWO = """
from tfdeploy_magic.jobs import Worker
real_call, made = Worker.call, []
def call(self, task, args, **more):
    if task.endswith(":make_task"):
        made.append(args["variant"]["scheme"])
        if len(made) > 2:
            return real_call(self, "tests.jobs.tasks:hang", {}, **more)
    return real_call(self, task, args, **more)
Worker.call = call
"""


@dataclass
class Watched:
    """What a running cell showed, moment by moment.

    Args:
        texts: The one display's text at each of its updates.
        displays: How many displays there were.
        seconds: From the stop button to the end.
        error: The exception's text, "" for none.
    """

    texts: list[str] = field(default_factory=list)
    displays: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def rows(self) -> list[int]:
        """How many files each update with a table had."""
        counts = (re.match(r"\s*(\d+) files?\b", text) for text in self.texts)
        return [int(count[1]) for count in counts if count]


def watch(kernel: Kernel, code: str, *, stop_at: int | None = None) -> Watched:
    """Run a cell, and press the stop button once so many files are shown."""
    request, watched, pressed = kernel.start(code), Watched(), 0.0
    while True:
        message = kernel.client.get_iopub_msg(timeout=60)
        kind, content = message["msg_type"], message["content"]
        if message["parent_header"].get("msg_id") != request:
            continue
        if kind in ("display_data", "update_display_data"):
            watched.displays += kind == "display_data"
            watched.texts.append(content["data"].get("text/plain", ""))
        elif kind == "error":
            watched.error = f"{content['ename']}: {content['evalue']}"
        elif kind == "status" and content["execution_state"] == "idle":
            watched.seconds = time.monotonic() - pressed
            break
        if stop_at is not None and not pressed and watched.rows and watched.rows[-1] >= stop_at:
            pressed = time.monotonic()
            kernel.manager.interrupt_kernel()
    while kernel.client.get_shell_msg(timeout=10)["parent_header"].get("msg_id") != request:
        pass
    return watched


def value_of(kernel: Kernel, expression: str) -> str:
    shown = kernel.run(expression)
    assert shown.status == "ok", shown.error_text
    return str(shown.results[0]["text/plain"])


def complete(kernel: Kernel, line: str) -> list[str]:
    return list(kernel.client.complete(line, len(line), reply=True, timeout=20)["content"]["matches"])


def test_the_line_as_typed_finds_its_data_shows_one_card_and_gives_a_value(trained: Kernel) -> None:
    shown = trained.run(f"best = {INT8} --max-drop 2%")
    assert shown.status == "ok", shown.error_text
    assert len(shown.displays) == 1
    assert shown.results == []
    text = shown.displays[0]["text/plain"]
    assert "on x_train (100 of 1297 samples, drawn at random, found by its shape" in text
    assert "on x_test, y_test (500 samples, found by its shape" in text
    assert "Asked for: at most 2 points" in text
    assert "int8 meets it" in text
    assert "data:image/png;base64," in shown.displays[0]["text/html"]
    assert "stderr" not in shown.streams
    assert value_of(trained, "type(best).__name__, len(best), best.best.scheme") == "('Comparison', 1, 'int8')"
    drop = (
        "round(float(np.mean(model.predict(x_test, verbose=0).argmax(1) == y_test)) - best.best.evidence.accuracy, 9)"
    )
    assert value_of(trained, f"import numpy as np\n{drop} == round(best.best.evidence.drop.value, 9)") == "True"
    assert "int8 meets it" in trained.run("best").results[0]["text/plain"], "later it shows itself as any value does"


def test_as_keeps_the_comparison_in_a_variable(trained: Kernel) -> None:
    shown = trained.run("%quantize model --float32 --float16 --as pair\nprint(len(pair), pair.table.pareto)")
    assert shown.streams["stdout"] == "2 ('float32', 'float16')\n"
    assert value_of(trained, "[row.label for row in pair.table.rows], pair['float16'].scheme") == (
        "(['float32', 'float16'], 'float16')"
    )


def test_files_appear_as_they_arrive(trained: Kernel) -> None:
    watched = watch(trained, "rows = %quantize model --engine tflite --no-cache")
    assert watched.error == ""
    assert watched.displays == 1, "one place on the page"
    assert watched.rows == sorted(watched.rows)
    assert len(set(watched.rows)) >= 3, watched.rows
    assert watched.rows[-1] == 5
    assert value_of(trained, "[row.label for row in rows.table.rows]") == (
        "['float32', 'float16', 'dynamic', 'int8', 'int16x8']"
    )


def test_the_stop_button_keeps_what_is_finished_and_leaves_no_process(trained: Kernel) -> None:
    trained.run(HANG_AFTER_TWO)
    kernel_process = psutil.Process(trained.manager.provisioner.pid)  # type: ignore[union-attr]
    watched = watch(trained, "kept = %quantize model --engine tflite --no-cache", stop_at=2)
    trained.run("Worker.call = real_call")
    assert watched.error == ""
    assert watched.seconds < 2
    assert "2 files side by side (stopped)" in watched.texts[-1]
    assert "Stopped before its end" in watched.texts[-1]
    assert value_of(trained, "[row.label for row in kept.table.rows], kept.table.stopped") == (
        "(['float32', 'float16'], True)"
    )
    assert value_of(trained, "[row.path.read_bytes()[4:8] for row in kept]") == "[b'TFL3', b'TFL3']"
    assert not [worker for worker in workers(kernel_process) if worker.is_running()]
    assert "1 file" in trained.run("%quantize model --float16").text


def workers(kernel_process: psutil.Process) -> list[psutil.Process]:
    """Return the jobs that live: children of the fork server, which is a child of the kernel."""
    jobs = [worker for server in kernel_process.children() for worker in server.children()]
    return [job for job in jobs if job.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("line", "error", "said"),
    [
        (f"few, few_y = x_test[:40], y_test[:40]\n{INT8} --max-drop 2% --test few,few_y", "DataError", "at least 149"),
        ("%quantize model --explain", "DataError", "Write %quantize MODEL --int8 --explain."),
        (f"{INT8} --float16 --explain", "DataError", "found --int8 --float16"),
        (f"{INT8} --explain --max-drop 2%", "DataError", "--explain and a budget do not go together"),
        (f"{INT8} --explain --sweep", "DataError", "--explain and --sweep do not go together"),
        (f"{INT8} --debug-options model", "DataError", "--debug-options"),
        (f"{INT8} --explain --debug-options model", "DataError", "without layer_debug_metrics"),
        (f"{INT8} --explain --debug-options nothing", "NameNotFound", "there is no 'nothing'"),
        (f"{INT8} --engine litert", "DataError", "Leave --engine out"),
        ("%quantize model --float16 --io uint8", "DataError", "only int8 files store inputs as integers"),
        ("%quantize modle", "NameNotFound", "Did you mean model"),
        ("def nan(labels, output): return float('nan')\n%quantize model --metric nan", "DataError", "finite number"),
        ("%%quantize model\nno_such_layer: int8", "NameNotFound", "Wanted one of conv2d"),
        ("%%quantize model\nconv2d: int9", "DataError", "Did you mean int8?"),
        ("%%quantize model\nconv2d: float32\nconv2d float32", "DataError", "line 2 of the recipe cannot be read"),
        ("%%quantize model\nconv2d: int8\ndense: dynamic_wi4", "DataError", "static_wi8_ai8 in place of int8"),
    ],
)
def test_a_mistake_costs_two_lines(trained: Kernel, line: str, error: str, said: str) -> None:
    assert said in two_lines(trained.run(line), error)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--int9", "unknown: --int9 (did you mean --int8?)"),
        ("--engine tflow", "invalid choice: 'tflow'"),
        ("--max-drop two", "should be percentage points between 0 and 100, as in 2%"),
        ("--max-drop 0", "--max-drop 0"),
        ("--max-drop 200%", "--max-drop 200%"),
        ("--max-size x", "--max-size x"),
        ("--max-latency soon", "should be a time, as in 5ms"),
    ],
)
def test_a_typing_mistake_is_a_usage_error(trained: Kernel, flags: str, said: str) -> None:
    shown = trained.run(f"%quantize model {flags}")
    assert shown.status == "error"
    assert shown.streams["stderr"].startswith("UsageError: %quantize: ")
    assert said in shown.streams["stderr"]
    assert len(shown.streams["stderr"].splitlines()) == 1


def test_a_budget_that_nothing_meets_is_no_error_until_its_best_is_asked_for(trained: Kernel) -> None:
    shown = trained.run(f"small = {INT8} --max-size 1kB --max-latency 10s")
    assert shown.status == "ok", shown.error_text
    assert re.search(r"None of them meets it\. Nearest: int8, .*: ×[\d.]+ the size asked\.", shown.text)
    failed = trained.run("small.best")
    assert failed.error_name == "BudgetNotMet"
    assert "no file meets the budget: found as the nearest int8" in failed.error_text


def test_a_recipe_in_the_cell_makes_one_file_beside_the_plain_one(trained: Kernel) -> None:
    cell = ".*: dynamic_wi8\nconv.*: dynamic_wi4  # a regular expression\n\ndense_1: float32"
    shown = trained.run(f"%%quantize model --as mixed\n{cell}")
    assert shown.status == "ok", shown.error_text
    assert value_of(trained, "[row.label for row in mixed.table.rows]") == "['float32', 'dynamic_wi8', 'recipe']"
    path = Path(value_of(trained, "str(mixed['recipe'].path)").strip("'"))
    kinds = weight_types(path.read_bytes())
    assert kinds == {"conv2d": "INT4", "dense": "INT8", "dense_1": "FLOAT32"}


def weight_types(content: bytes) -> dict[str, str]:
    """Return layer -> how its kernel is stored, by the flatbuffer's own schema."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.TensorType).items()}
    (graph,) = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0)).subgraphs
    kernels = [tensor for tensor in graph.tensors if tensor.name.endswith((b"/MatMul", b"/convolution"))]
    return {tensor.name.decode().split("/")[1].rpartition("_")[0]: names[tensor.type] for tensor in kernels}


def test_explaining_names_layers_and_takes_settings_of_tensorflows_debugger(trained: Kernel) -> None:
    trained.run(
        """
import tensorflow as tf
settings = tf.lite.experimental.QuantizationDebugOptions(
    layer_debug_metrics={"mean_size": lambda differences: np.mean(np.abs(differences))},
    model_debug_metrics={"changed": lambda before, after: float(np.argmax(before[0]) != np.argmax(after[0]))},
    denylisted_ops=["SOFTMAX"],
)
"""
    )
    shown = trained.run(f"why = {INT8} --explain --debug-options settings")
    assert shown.status == "ok", shown.error_text
    assert len(shown.displays) == 1
    assert "inside int8, SOFTMAX float" in shown.text
    assert value_of(trained, "sorted({row.op_name for row in why.layers})") == (
        "['CONV_2D', 'FULLY_CONNECTED', 'MAX_POOL_2D', 'RESHAPE']"
    )
    assert value_of(trained, "all(row.custom['mean_size'] <= row.max_abs_error for row in why.layers)") == "True"
    assert value_of(trained, "0 <= why.model_metrics['changed'] < 0.1") == "True"
    assert value_of(trained, "[row.layer for row in why.layers if row.op_name == 'CONV_2D']") == "['conv2d (Conv2D)']"


def test_help_and_completion_know_every_flag(trained: Kernel) -> None:
    found = trained.client.inspect("%quantize", 9, reply=True, timeout=20)["content"]["data"]["text/plain"]
    for flag in ("--max-drop", "--max-size", "--max-latency", "--explain", "--sweep", "--engine", "--debug-options"):
        assert flag in found
    assert "2%" in found and "2%%" not in found
    assert complete(trained, "%quantize mo") == ["model"]
    assert complete(trained, "best = %quantize model --int8 --max-") == ["--max-drop", "--max-latency", "--max-size"]
    assert complete(trained, "%quantize model --dynamic-") == ["--dynamic-wi4", "--dynamic-wi4-b32", "--dynamic-wi8"]
    assert complete(trained, "%quantize model --ex") == ["--explain"]
    assert complete(trained, "%quantize model --engine ") == ["both", "litert", "tflite"]
    assert complete(trained, "%quantize model --int8 --test x_test,y_te") == ["y_test"]
