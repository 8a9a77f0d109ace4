"""``%tfdeploy``: what to type next, and ``%tfdeploy doctor``: what is installed, what is missing, and what for."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from pydantic import Field

from tfdeploy_magic import jobs
from tfdeploy_magic.artifacts import store
from tfdeploy_magic.commands.declaration import COMMANDS, Command, OnTheLine, Options, command
from tfdeploy_magic.errors import TfdeployError
from tfdeploy_magic.jobs import Report, Worker
from tfdeploy_magic.jobs.progress import Listener
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import words
from tfdeploy_magic.views.doctor import Checkup, Level, Row

OURS = "tfdeploy-magic"

PACKAGES = (
    *("tensorflow", "keras", "tf-keras", "ai-edge-litert", "litert-quantizer", "numpy"),
    *("ipython", "ipywidgets", "jupyterlab", "matplotlib"),
    "docker",
)

_CONTAINERS = "serving in TensorFlow Serving's own image, %serve --backend docker"

PURPOSES = {
    "tf-keras": "models of Keras 2, in the kernel or in .keras and .h5 files",
    "docker": _CONTAINERS,
}
"""What a package is for that most people do without."""

SCARCE = 1_000_000_000
"""Bytes of free memory or disk below which a conversion of an ordinary model may fail."""

PATIENCE_SECONDS = 120.0

DOCKER_SECONDS = 2.0
"""How long a Docker engine may take to answer."""


class Tfdeploy(Options):
    """Say what to type next; with doctor, look at what is installed, what is missing, and what for."""

    action: Annotated[Literal["doctor"] | None, OnTheLine(positional=True)] = Field(
        None, description="what to do: doctor; left out, the natural next lines are shown"
    )


@dataclass(frozen=True)
class NextLines:
    """What a person can type.

    Args:
        lines: Magic lines, and what each is for.
    """

    lines: tuple[tuple[str, str], ...]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        rows = (("type", "to"), *self.lines)
        return {
            "text/html": pieces.card(pieces.NEUTRAL, "what to type next", (pieces.table(*rows),)),
            "text/plain": pieces.plain_text(pieces.plain_table(rows)),
        }


@command("tfdeploy", Tfdeploy)
def tfdeploy(options: Tfdeploy, progress: Listener) -> Checkup | NextLines:
    """Look around; TensorFlow is never imported in this process.

    Returns:
        What the doctor found, or what can be typed.
    """
    if options.action is None:
        return NextLines(tuple(_next_lines()))
    report = Report(progress)
    report.stage("looking at what is installed")
    rows = [*_versions(), *_machine(), *_docker(), *_store(), *_jobs(report)]
    report.finish()
    return Checkup(tuple(rows))


def _next_lines() -> Iterator[tuple[str, str]]:
    for name, verb in sorted(COMMANDS.items(), key=lambda item: item[1] is tfdeploy):
        purpose = (verb.options.__doc__ or "").partition("\n")[0].rstrip(".")
        yield f"%{name}{_arguments(verb)}", purpose[:1].lower() + purpose[1:]


def _arguments(verb: Command[Any]) -> str:
    """Return what stands alone in a verb's line, " MODEL"."""
    return "".join(
        f" {name.upper()}" if field.is_required() else " [doctor]"
        for name, field in verb.options.model_fields.items()
        if any(isinstance(mark, OnTheLine) and mark.positional for mark in field.metadata)
    )


# What is installed


def _versions() -> Iterator[Row]:
    required = _required()
    yield _version_row("python", platform.python_version(), required.get("python"), cure="Use a Python that does.")
    yield Row("versions", OURS, _version(OURS) or "not installed, run from its folder")
    only_cpu = _version("tensorflow") is None and _version("tensorflow-cpu") is not None
    for package in PACKAGES:
        name = "tensorflow-cpu" if package == "tensorflow" and only_cpu else package
        wanted = required.get(package)
        # tf-keras asks for tensorflow, and would put a second copy over the one that tensorflow-cpu installed.
        flag = "--no-deps " if package == "tf-keras" and only_cpu else ""
        line = f'pip install {flag}"{name}{wanted or ""}"'
        yield _version_row(name, _version(name), wanted, cure=line, purpose=PURPOSES.get(package, ""))
    if _version("tensorflow") and _version("tensorflow-cpu"):
        yield Row(
            *("versions", "tensorflow-cpu", "installed over tensorflow, in the same folder"),
            level="warning",
            cure="pip uninstall -y tensorflow tensorflow-cpu, then install one of them",
        )


def _version_row(name: str, version: str | None, wanted: SpecifierSet | None, *, cure: str, purpose: str = "") -> Row:
    if version is None:
        return Row("versions", name, "not installed", "missing", purpose, cure)
    if wanted is None:
        return Row("versions", name, version)
    if not wanted.contains(version, prereleases=True):
        return Row("versions", name, f"{version}, wanted {wanted}", "warning", purpose, cure)
    return Row("versions", name, f"{version}, as wanted: {wanted}" if str(wanted) else version)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _required() -> dict[str, SpecifierSet]:
    """Return what this package asks for, and what TensorFlow asks for where this one does not."""
    found: dict[str, SpecifierSet] = {}
    for package in (OURS, "tensorflow", "tensorflow-cpu"):
        if _version(package) is None:
            continue
        for line in importlib.metadata.requires(package) or ():
            requirement = Requirement(line)
            found.setdefault(canonicalize_name(requirement.name), requirement.specifier)
        if package == OURS:
            found["python"] = SpecifierSet(importlib.metadata.metadata(OURS)["Requires-Python"] or "")
    return found


# Where it runs


def _machine() -> Iterator[Row]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Row("this machine", "system", f"{platform.system()} {platform.machine()}")
    yield Row("this machine", "CPU", f"{usable} of {os.cpu_count()} cores")
    memory = psutil.virtual_memory()
    yield _free("this machine", "memory", memory.available, memory.total, "Close other kernels.")
    gpus = _gpus()
    yield Row("this machine", "GPU", f"{', '.join(gpus)}; jobs leave it alone" if gpus else "none seen")


def _free(area: str, what: str, free: int, total: int, cure: str) -> Row:
    scarce = free < SCARCE
    level: Level = "warning" if scarce else "ok"
    return Row(area, what, f"{words.size(free)} free of {words.size(total)}", level, cure=cure if scarce else "")


def _gpus() -> list[str]:
    if (tool := shutil.which("nvidia-smi")) is None:
        return []
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    # The serial number says which machine this is, and checkups are shared.
    return [re.sub(r" \(UUID:.*\)$", "", line) for line in listed.stdout.splitlines() if line.startswith("GPU ")]


def _docker() -> Iterator[Row]:
    if _version("docker") is None:
        return  # its engine is none of our business then
    from tfdeploy_magic.serving import docker_engine

    try:
        with contextlib.closing(docker_engine.connect(DOCKER_SECONDS)) as engine:
            yield Row("this machine", "Docker", f"engine {engine.version} for {engine.architecture}, which may be used")
    except TfdeployError as error:
        yield Row("this machine", "Docker", error.found, "missing", _CONTAINERS, error.cure)


def _store() -> Iterator[Row]:
    folder = store.store_folder()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    writable = os.access(there, os.W_OK)
    yield Row(
        *("store", "folder", words.path(folder) if writable else f"{words.path(there)} cannot be written"),
        level="ok" if writable else "missing",
        purpose="" if writable else "converting without -o PATH",
        cure="" if writable else "Set XDG_CACHE_HOME to a folder of yours.",
    )
    yield Row("store", "used", f"{words.size(store.size())} of at most {words.size(store.limit())}")
    disk = shutil.disk_usage(there)
    yield _free("store", "disk", disk.free, disk.total, "Delete the store's folder, or free some space.")


# What only a job may find out


def _jobs(report: Report) -> Iterator[Row]:
    jobs.warm_up()
    report.stage("starting a job")
    try:
        first, again = _seconds_to_start(report), _seconds_to_start(report)
        with Worker(deadline=PATIENCE_SECONDS, listener=report.relay) as worker:
            built = worker.call(f"{__name__}:tensorflow_task", {})
            lite = worker.call(f"{__name__}:litert_task", {})
    except TfdeployError as error:
        yield Row(
            "jobs", "a job", str(error).replace("\n", " "), "missing", cure="pip install --force-reinstall tensorflow"
        )
        return
    before = f"; the first one here took {first:.1f} s, with TensorFlow's import" if first > 1 else ""
    yield Row("jobs", "a job", f"starts in {again * 1000:.0f} ms{before}")
    yield Row("jobs", "TensorFlow", built["build"])
    yield Row("jobs", "devices in a job", built["devices"])
    yield from _litert(lite)


def _seconds_to_start(report: Report) -> float:
    began = time.perf_counter()
    with Worker(deadline=PATIENCE_SECONDS, listener=report.relay) as worker:
        worker.call("tfdeploy_magic.jobs.progress:silent", {})  # it does nothing, and needs no import
    return time.perf_counter() - began


def _litert(found: dict[str, Any]) -> Iterator[Row]:
    if found["xnnpack"]:
        yield Row("LiteRT", "XNNPACK", "takes over in the interpreter")
    else:
        yield Row("LiteRT", "XNNPACK", "does not take over: answers come three to four times slower", "warning")
    if found["flex"]:
        yield Row("LiteRT", "Flex", "runs TensorFlow's own operations")
    else:
        purpose = "measuring files made with --select-ops"
        cure = "None: no LiteRT for Python has it. Such files run on a device that links it."
        yield Row("LiteRT", "Flex", "not in this LiteRT", "missing", purpose, cure)
    yield Row("LiteRT", "accelerators", ", ".join(_accelerators()) or "none")


def _accelerators() -> list[str]:
    """Return what ai-edge-litert ships besides its CPU kernels, by the names of its libraries."""
    spec = importlib.util.find_spec("ai_edge_litert")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    libraries = sorted(path.name for folder in folders for path in folder.rglob("libLiteRt*") if path.is_file())
    named = (re.match(r"libLiteRt(\w*?)(Accelerator|CompilerPlugin|Dispatch)_?(\w*)\.", name) for name in libraries)
    kinds = {"Accelerator": "accelerator", "CompilerPlugin": "compiler", "Dispatch": "dispatch"}
    return [f"{match[1]}{match[3]} ({kinds[match[2]]})" for match in named if match]


def tensorflow_task(report: Report) -> dict[str, str]:
    """Ask TensorFlow how it was built and what it sees; a job's entry."""
    import tensorflow as tf

    report.stage("asking TensorFlow")
    build = tf.sysconfig.get_build_info()
    gpu = (
        f"CUDA {build['cuda_version']}" if build.get("is_cuda_build") else "ROCm" if build.get("is_rocm_build") else ""
    )
    described = (
        tf.version.GIT_VERSION,
        tf.version.COMPILER_VERSION,
        f"built for {gpu}" if gpu else "built for the CPU",
    )
    return {
        "build": ", ".join(described),
        "devices": ", ".join(
            device.name.rpartition("physical_device:")[2] for device in tf.config.list_physical_devices()
        ),
    }


def litert_task(report: Report) -> dict[str, bool]:
    """Load a file of one addition in LiteRT, and one that asks for TensorFlow's own; a job's entry."""
    from ai_edge_litert.interpreter import Interpreter

    report.stage("asking LiteRT")
    interpreter = Interpreter(model_content=_addition())
    interpreter.allocate_tensors()
    # Private, and yet the one place that says which operators a delegate has taken.
    operators = [details["op_name"] for details in interpreter._get_ops_details()]
    flex = True
    try:
        Interpreter(model_content=_addition("FlexAddV2")).allocate_tensors()
    except (RuntimeError, ValueError) as error:
        flex = "Select TensorFlow op" not in str(error)
    return {"xnnpack": "DELEGATE" in operators, "flex": flex}


def _addition(custom: str | None = None) -> bytes:
    """Return a .tflite file that adds two tensors, by the builtin operator or by a custom one."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model, subgraph = schema.ModelT(), schema.SubGraphT()
    code, operator = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = schema.BuiltinOperator.CUSTOM if custom else schema.BuiltinOperator.ADD
    code.deprecatedBuiltinCode, code.customCode, code.version = code.builtinCode, custom, 1
    if not custom:
        operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    subgraph.tensors = [schema.TensorT() for _ in range(3)]
    for tensor in subgraph.tensors:
        tensor.shape, tensor.type = [1, 8], schema.TensorType.FLOAT32
    subgraph.inputs, subgraph.outputs = operator.inputs, operator.outputs = [0, 1], [2]
    subgraph.operators = [operator]
    model.version, model.buffers, model.operatorCodes, model.subgraphs = 3, [schema.BufferT()], [code], [subgraph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())
