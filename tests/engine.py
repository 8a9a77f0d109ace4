"""The Docker engine that tests use, and images that are made without a registry.

Two images are made of what this machine has. The base holds its Python at ``/usr/local``, the packages that serving
needs, a shell and the shared libraries of them all, and takes the place of ``python:3.x-slim``. The stand-in adds this
package and the entrypoint of the official ``tensorflow/serving`` image.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import importlib.metadata
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import docker
import docker.errors
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "docker" / "requirements.txt"
STAND_IN = "tfdeploy-magic/stand-in:latest"

_REPOSITORY = "tfdeploy-magic/test-python"
_LIB = f"python{sys.version_info.major}.{sys.version_info.minor}"
_TOOLS = ("bash", "sh", "env", "cat", "ls", "id", "sleep", "rm", "mkdir", "cp", "mv", "ln", "chmod", "head", "kill")
_LEFT_OUT = re.compile(
    r"/(site-packages|dist-packages|test|tests|idlelib|tkinter|turtledemo|ensurepip|lib2to3|config-[^/]*)(/|$)"
    r"|/_tkinter[^/]*$|/libpython[^/]*\.a$"
)
_UNUSED = ("tensorflow/include/", "clang/native/")
"""Headers, and what parses them: 490 MB."""

_ENTRYPOINT = """#!/bin/bash

tensorflow_model_server --port=8500 --rest_api_port=8501 \
--model_name=${MODEL_NAME} --model_base_path=${MODEL_BASE_PATH}/${MODEL_NAME} "$@"
"""
_MODEL_SERVER = """#!/bin/bash
trap '' TERM
tfdeploy-serve --host=0.0.0.0 "$@"
"""
_SERVE = """#!/usr/local/bin/python3
import sys

from tfdeploy_magic.serving.cli import main

sys.exit(main())
"""
_DOCKERFILE = """FROM {base}
COPY scripts /usr/bin/
COPY packages {packages}/
ENV MODEL_BASE_PATH=/models MODEL_NAME=model
EXPOSE 8500 8501
ENTRYPOINT ["/usr/bin/tf_serving_entrypoint.sh"]
"""


@functools.cache
def client() -> docker.DockerClient:
    """Return the engine's client; skip the test where no engine answers, or fail with TFDEPLOY_REQUIRE_DOCKER=1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the SDK leaves a socket open that reached nobody
        try:
            return docker.from_env(timeout=300)
        except docker.errors.DockerException as error:
            reason = f"no Docker engine answers: {error}"
        gc.collect()
    if os.environ.get("TFDEPLOY_REQUIRE_DOCKER") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@functools.cache
def python_image() -> str:
    """Return the tag of the base, which is made where the engine does not have it."""
    made_of = [Path(__file__).read_text(), sys.version, *(f"{d.name} {d.version}" for d in distributions())]
    tag = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:12]
    image = f"{_REPOSITORY}:{tag}"
    try:
        client().images.get(image)
    except docker.errors.ImageNotFound:
        client().api.import_image_from_data(
            _streamed(), _REPOSITORY, tag, changes=["ENV PATH=/usr/local/bin:/usr/bin:/bin", 'CMD ["python3"]']
        )
        client().images.get(image)
    return image


@functools.cache
def stand_in() -> str:
    """Return the tag of an image that takes the place of ``tensorflow/serving``, made of the code as it is now."""
    context = io.BytesIO()
    dockerfile = _DOCKERFILE.format(base=python_image(), packages=_packages())
    scripts = {
        "tf_serving_entrypoint.sh": _ENTRYPOINT,
        "tensorflow_model_server": _MODEL_SERVER,
        "tfdeploy-serve": _SERVE,
    }
    with tarfile.open(fileobj=context, mode="w") as tar:
        _add_bytes(tar, "Dockerfile", dockerfile.encode())
        for name, text in scripts.items():
            _add_bytes(tar, f"scripts/{name}", text.encode(), 0o755)
        for source in sorted((ROOT / "tfdeploy_magic").rglob("*")):
            if source.is_file() and "__pycache__" not in source.parts:
                _add_bytes(tar, f"packages/{source.relative_to(ROOT).as_posix()}", source.read_bytes())
        installed = importlib.metadata.distribution("tfdeploy-magic")
        info = f"packages/tfdeploy_magic-{installed.version}.dist-info/METADATA"
        _add_bytes(tar, info, (installed.read_text("METADATA") or "").encode())
    context.seek(0)
    client().images.build(fileobj=context, custom_context=True, tag=STAND_IN, rm=True, forcerm=True)
    return STAND_IN


def requirements() -> list[str]:
    """Return what the image of ``tfdeploy-serve`` is told to install."""
    return [line for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]


@functools.cache
def distributions() -> tuple[importlib.metadata.Distribution, ...]:
    """Return the installed packages that serving requires, that these require, and pip."""
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = ["pip", *requirements()]
    while wanted:
        requirement = Requirement(wanted.pop())
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found[name] = importlib.metadata.distribution(name)
        wanted += found[name].requires or []
    return tuple(found[name] for name in sorted(found))


def _packages() -> str:
    """Return where the Python of the base looks for packages: Debian's has a folder of its own."""
    command = [str(_python()), "-S", "-c", "import site; print(site.getsitepackages(['/usr/local'])[0])"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _python() -> Path:
    return Path(sys._base_executable).resolve()


def _streamed() -> Iterator[bytes]:
    """Yield the base's file system as a tar stream, written in a thread as it is read."""
    read_end, write_end = os.pipe()
    failed: list[BaseException] = []

    def write() -> None:
        try:
            with os.fdopen(write_end, "wb") as stream, tarfile.open(fileobj=stream, mode="w|", bufsize=1 << 20) as tar:
                _write(tar)
        except BaseException as error:
            failed.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(read_end, "rb", buffering=0) as stream:
        while chunk := stream.read(1 << 20):
            yield chunk
    writer.join()
    if failed:
        raise failed[0]


def _write(tar: tarfile.TarFile) -> None:
    for folder, mode in (("usr/bin", 0o755), ("usr/lib", 0o755), ("usr/lib64", 0o755), ("tmp", 0o1777)):
        _add_folder(tar, folder, mode)
    for link in ("bin", "lib", "lib64"):
        _add_link(tar, link, f"usr/{link}")
    _add_bytes(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    _add_bytes(tar, "etc/group", b"root:x:0:\nnogroup:x:65534:\n")

    python, standard = _python(), Path(sysconfig.get_path("stdlib"))
    files = {f"usr/local/bin/{_LIB}": python}
    files |= {f"usr/bin/{tool}": Path(shutil.which(tool) or tool).resolve() for tool in _TOOLS}
    for source in sorted(standard.rglob("*")):
        within = source.relative_to(standard).as_posix()
        if source.is_file() and not _LEFT_OUT.search(f"/{within}"):
            files[f"usr/local/lib/{_LIB}/{within}"] = source
    packages = _packages().lstrip("/")
    for distribution in distributions():
        for path in distribution.files or ():
            source = Path(str(distribution.locate_file(path)))
            if ".." not in path.parts and not path.as_posix().startswith(_UNUSED) and source.is_file():
                files[f"{packages}/{path.as_posix()}"] = source
    for target, source in (files | _libraries(set(files.values()))).items():
        _add_file(tar, target, source)
    for link in ("python", "python3"):
        _add_link(tar, f"usr/local/bin/{link}", _LIB)


def _libraries(files: set[Path]) -> dict[str, Path]:
    """Return the system's shared libraries that binaries load, by where the dynamic linker finds them."""
    binaries = [str(file) for file in sorted(files) if ".so" in file.name or os.access(file, os.X_OK)]
    said = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False).stdout
    found: dict[str, Path] = {}
    for path in sorted(set(re.findall(r"^\t(?:\S+ => )?(/\S+) \(0x", said, re.MULTILINE))):
        library = Path(path)
        if library.resolve() in files or "site-packages" in library.parts:
            continue
        of_the_system = re.match(r"/(?:usr/)?(lib(?:64)?/.*)", os.path.normpath(path))
        # Elsewhere the linker would not look: the libpython of a Python that was built by hand.
        found[f"usr/{of_the_system[1]}" if of_the_system else f"usr/lib/{library.name}"] = library.resolve()
    return found


def _add_file(tar: tarfile.TarFile, name: str, source: Path) -> None:
    with source.open("rb") as stream:
        status = os.fstat(stream.fileno())
        executable = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
        _add(tar, name, stream, size=status.st_size, mode=executable, mtime=int(status.st_mtime))


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    _add(tar, name, io.BytesIO(content), size=len(content), mode=mode)


def _add_folder(tar: tarfile.TarFile, name: str, mode: int) -> None:
    _add(tar, name, type=tarfile.DIRTYPE, mode=mode)


def _add_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    _add(tar, name, type=tarfile.SYMTYPE, linkname=target)


def _add(tar: tarfile.TarFile, name: str, content: IO[bytes] | None = None, **fields: Any) -> None:
    entry = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(entry, field, value)
    tar.addfile(entry, content)
