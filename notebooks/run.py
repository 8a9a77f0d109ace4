"""Run the tutorials headless: ``make demo`` shows what the quickstart measures, ``make notebooks`` refreshes outputs.

A committed notebook keeps the outputs that nbval compares (cells marked NBVAL_CHECK_OUTPUT) and no others: figures,
timings and paths belong to the machine that made them. ``make demo`` puts a whole one into ``.demo/``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
DEMO = HERE.parent / ".demo"


def execute(path: Path) -> nbformat.NotebookNode:
    """Return a notebook, executed in a fresh kernel of this interpreter's environment."""
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    warnings.filterwarnings("ignore", message=".*without encryption.*")
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(HERE)}})
    # What TensorFlow prints while it is imported is not what this shows; Python's own output is in the notebook.
    client.execute(stderr=subprocess.DEVNULL)
    return notebook


def demo() -> None:
    """Execute the quickstart, keep it in ``.demo/``, and print what its magics showed."""
    print("running notebooks/01_quickstart.ipynb: it trains a small network on scikit-learn's digits …", flush=True)
    notebook = execute(HERE / "01_quickstart.ipynb")
    DEMO.mkdir(exist_ok=True)
    nbformat.write(notebook, DEMO / "01_quickstart.ipynb")
    for cell in notebook.cells:
        if cell.cell_type == "code" and "%tflite_convert" in cell.source:
            print(f"\n>>> {cell.source.strip()}\n")
            for output in cell.outputs:
                print(output.get("data", {}).get("text/plain") or output.get("text") or output.get("evalue", ""))
    jupyter = Path(sys.executable).with_name("jupyter")
    print(f"\nopen it, figures and all:  {jupyter} lab .demo/01_quickstart.ipynb")


def refresh() -> None:
    """Execute every tutorial and keep the outputs that nbval compares."""
    for path in sorted(HERE.glob("*.ipynb")):
        notebook = execute(path)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.metadata.pop("execution", None)
                cell.outputs = cell.outputs if "NBVAL_CHECK_OUTPUT" in cell.source else []
        nbformat.write(notebook, path)


if __name__ == "__main__":
    {"demo": demo, "refresh": refresh}[sys.argv[1]]()
