from __future__ import annotations

from pathlib import Path

from tests.jobs.processes import run_python

SCRIPT = """\
import keras
from tfdeploy_magic.commands.tflite_convert import tflite_convert
open("runs.txt", "a").write("ran\\n")
print(tflite_convert(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, bias_initializer="ones")])))
"""


def test_a_script_without_a_main_guard_converts_and_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = run_python("-W", "error::ResourceWarning", str(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("<LiteModel model-float32.tflite: float32,")
    assert (tmp_path / "runs.txt").read_text() == "ran\n"
