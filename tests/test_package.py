from __future__ import annotations

import re

import tfdeploy_magic
from tests.jobs.processes import run_python

HEAVY = ("tensorflow", "keras", "ai_edge_litert", "sklearn", "matplotlib", "jax", "torch")
QUIET = f"import sys; print([name for name in {HEAVY!r} if name in sys.modules])"


def test_importing_the_package_imports_nothing_heavy() -> None:
    done = run_python("-c", f"import tfdeploy_magic; {QUIET}")
    assert done.stdout.strip() == "[]", done.stderr


def test_importing_the_verbs_imports_nothing_heavy() -> None:
    modules = "tfdeploy_magic.commands.tflite_convert, tfdeploy_magic.quantization.engine, tfdeploy_magic.jobs.worker"
    done = run_python("-c", f"import {modules}; {QUIET}")
    assert done.stdout.strip() == "[]", done.stderr


def test_asking_whether_something_is_a_model_or_data_imports_nothing_heavy() -> None:
    ask = "from tfdeploy_magic import sources; from tfdeploy_magic.sources import samples"
    done = run_python("-c", f"{ask}; print(sources.is_model(3), samples.is_dataset(3), samples.is_array(3)); {QUIET}")
    assert done.stdout.split("\n")[:2] == ["False False False", "[]"], done.stderr


def test_importing_starts_no_process_and_writes_nothing_to_the_screen() -> None:
    code = "import tfdeploy_magic.commands.tflite_convert, psutil; print(psutil.Process().children())"
    done = run_python("-c", code)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_version_is_one_that_pip_understands() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", tfdeploy_magic.__version__)
