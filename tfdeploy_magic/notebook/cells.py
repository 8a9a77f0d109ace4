"""``%%tflite_convert``: a cell that defines what the conversion uses, or that is TensorFlow's guide pasted as it is."""

from __future__ import annotations

import ast
import contextlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from tfdeploy_magic.artifacts.schemes import SCHEMES
from tfdeploy_magic.commands.declaration import Named
from tfdeploy_magic.commands.lite_model import LiteModel
from tfdeploy_magic.errors import InputError
from tfdeploy_magic.notebook import namespace, recorder
from tfdeploy_magic.notebook.recorder import Recorded, Recorder
from tfdeploy_magic.sources.samples import NamedData

FUNCTIONS = ("preprocess", "postprocess", "metric")
"""Functions that the conversion uses when the cell defines them."""

Convert = Callable[[dict[str, Any]], LiteModel]


class ConverterCell:
    """One run of such a cell.

    Args:
        shell: Where it runs.
        values: Options from the magic's line.
        convert: Runs the command with options, shows its result and returns it.
    """

    def __init__(self, shell: InteractiveShell, values: dict[str, Any], convert: Convert) -> None:
        self._shell = shell
        self._values = values
        self._convert = convert
        watched = (*FUNCTIONS, "representative_dataset", "converter")
        self._before = {name: shell.user_ns[name] for name in watched if name in shell.user_ns}
        self._result: LiteModel | None = None

    def run(self, cell: str) -> LiteModel:
        """Run the cell, its converter recorded, and convert where the cell does or else at its end."""
        user_ns = self._shell.user_ns
        with self._recording(cell) as given:
            self._execute(cell)
            if self._result is None:
                last = user_ns.get("converter")
                own = isinstance(last, Recorder) and last is not self._before.get("converter")
                user_ns["tflite_model"] = self._on_convert(last if own else given)
        assert self._result is not None
        return self._result

    @contextlib.contextmanager
    def _recording(self, cell: str) -> Iterator[Recorder | None]:
        """Have TensorFlow's converter recorded; a cell that has none does not import TensorFlow."""
        if "tensorflow" not in sys.modules and "converter" not in cell and "TFLite" not in cell:
            yield None
            return
        user_ns = self._shell.user_ns
        with recorder.recording(self._on_convert):
            given = user_ns["converter"] = Recorder(self._on_convert)
            try:
                yield given
            finally:
                if user_ns.get("converter") is given:
                    user_ns.pop("converter")
                    if "converter" in self._before:
                        user_ns["converter"] = self._before["converter"]

    def _execute(self, cell: str) -> None:
        shell = self._shell
        transformed: str = shell.transform_cell(cell)  # type: ignore[no-untyped-call]
        name = shell.compile.cache(transformed, shell.execution_count, raw_code=cell)
        tree = shell.transform_ast(shell.compile.ast_parse(transformed, filename=name))  # type: ignore[no-untyped-call]
        _define_before_converting(tree)
        shown = [tree.body.pop()] if tree.body and isinstance(tree.body[-1], ast.Expr) else []
        exec(shell.compile(tree, name, "exec"), shell.user_ns)
        for expression in shown:  # as in any cell
            last = ast.Interactive([expression])
            exec(shell.compile(last, name, "single"), shell.user_ns)  # type: ignore[arg-type]  # it takes trees too

    def _on_convert(self, asked: Recorder | None) -> bytes:
        values = dict(self._values)
        for name in FUNCTIONS:
            if (function := self._own(name)) is not None:
                values.setdefault(name, Named(name, function))
        dataset = self._own("representative_dataset")
        if asked is not None:
            recorded = recorder.settings(asked)
            dataset = recorded.representative_dataset or dataset
            self._merge(values, recorded)
        if dataset is not None and SCHEMES[values.get("scheme", "float32")].calibrated:
            name = getattr(dataset, "__name__", "representative_dataset")
            values = {"calib": NamedData(name, dataset), **values}
        self._result = self._convert(values)
        return self._result.path.read_bytes()

    def _own(self, name: str) -> Any:
        """Return the function of that name that this cell has defined."""
        value = self._shell.user_ns.get(name)
        return value if inspect.isfunction(value) and value is not self._before.get(name) else None

    def _merge(self, values: dict[str, Any], recorded: Recorded) -> None:
        """Add what the converter was told to what the line says.

        Raises:
            InputError: They contradict each other.
        """
        if recorded.source is not None:
            self._merge_model(values, recorded)
        if recorded.scheme == "float32" and recorded.plain is None and not recorded.select_ops:
            return  # nothing was set: the line alone decides
        said_twice = [name for name in ("io", "select_ops") if name in values and recorded.plain is not None]
        if values.setdefault("scheme", recorded.scheme) != recorded.scheme:
            said_twice.append(values["scheme"])
        if said_twice:
            flag = f"--{said_twice[0].replace('_', '-')}"
            raise InputError(
                "the line and the cell ask for different files",
                found=f"{flag} on the line, and settings in the cell that make {recorded.scheme}",
                wanted="one of them",
                cure=f"Leave {flag} out.",
            )
        if recorded.io is not None and recorded.scheme == "int8":
            values.setdefault("io", recorded.io)
        if recorded.select_ops:
            values["select_ops"] = True
        if recorded.plain is not None:
            values["settings"] = recorded.plain

    def _merge_model(self, values: dict[str, Any], recorded: Recorded) -> None:
        source, asked = recorded.source, values.get("model")
        if isinstance(source, str | os.PathLike):
            name = os.fspath(source)
        else:
            own = [key for key, value in self._shell.user_ns.items() if value is source and not key.startswith("_")]
            name = own[-1] if own else "model"
        if isinstance(asked, str):
            if not _same(namespace.lookup_model(asked, self._shell.user_ns), source):
                raise InputError(
                    "the line and the cell name different models",
                    found=f"{asked} on the line, {name} in the cell",
                    wanted="one of them",
                    cure=f"Write %%tflite_convert {name}.",
                )
            name = asked
        values["model"] = Named(name, source)
        if recorded.signature_keys:
            if len(recorded.signature_keys) > 1:
                raise InputError(
                    "signature_keys cannot be converted to one file",
                    found=", ".join(recorded.signature_keys),
                    wanted="one signature a file",
                    cure="Convert each to a file of its own.",
                )
            values.setdefault("signature", recorded.signature_keys[0])


def _same(named: Any, source: Any) -> bool:
    paths = isinstance(named, str | os.PathLike) and isinstance(source, str | os.PathLike)
    return named is source or (paths and Path(named).expanduser().resolve() == Path(source).expanduser().resolve())


def _define_before_converting(tree: ast.Module) -> None:
    """Move the functions that the conversion uses up to where it happens, should they stand below it."""
    place = next((n for n, statement in enumerate(tree.body) if _converts(statement)), None)
    if place is None:
        return
    late = [s for s in tree.body[place:] if isinstance(s, ast.FunctionDef) and s.name in FUNCTIONS]
    rest = [s for s in tree.body[place:] if s not in late]
    tree.body[place:] = [*late, *rest]


def _converts(statement: ast.stmt) -> bool:
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "convert"
        for node in ast.walk(statement)
    )
