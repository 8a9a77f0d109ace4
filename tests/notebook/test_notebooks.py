"""A tutorial that stops working must turn red."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.notebook.kernels import ROOT


def run_nbval(folder: Path, *cells: str) -> subprocess.CompletedProcess[str]:
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), folder / "tutorial.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider"]
    return subprocess.run([*command, "tutorial.ipynb"], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "line", ["lite = %tflite_convert nothing --int8", "lite = %tflite_convert sys --int8", "lite = %no_such_magic sys"]
)
def test_a_broken_magic_turns_a_notebook_red(tmp_path: Path, line: str) -> None:
    done = run_nbval(tmp_path, "%load_ext tfdeploy_magic", "import sys", line, "lite.path")
    assert done.returncode == 1, done.stdout


def test_the_same_notebook_without_the_broken_line_is_green(tmp_path: Path) -> None:
    assert run_nbval(tmp_path, "%load_ext tfdeploy_magic", "import sys").returncode == 0


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_every_tutorial_holds_the_outputs_that_are_compared(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    checked = [cell for cell in notebook.cells if "NBVAL_CHECK_OUTPUT" in cell.source]
    assert checked
    assert all(cell.outputs for cell in checked), "run make notebooks"
    assert "/root/" not in path.read_text() and "/home/" not in path.read_text()
