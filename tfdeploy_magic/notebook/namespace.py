"""Names in the kernel: attribute paths are looked up, expressions are never evaluated."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tfdeploy_magic import sources
from tfdeploy_magic.errors import NameNotFound, NotAModel

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_IPYTHONS_OWN = {"In", "Out", "exit", "quit", "open", "get_ipython"}

Namespace = Mapping[str, Any]


def lookup(path: str, namespace: Namespace, *, wanted: str) -> Any:
    """Return the value of a variable or an attribute path.

    Args:
        path: "model", "trainer.model".
        namespace: The kernel's variables.
        wanted: What is looked for, for the error: "a model".

    Raises:
        NameNotFound: There is none; the error names the nearest.
    """
    if not _PATH.fullmatch(path):
        raise NameNotFound(
            f"'{path}' is not a name",
            found="something else",
            wanted=f"the name of {wanted}: a variable or an attribute path",
            cure="Expressions are not evaluated: assign it to a variable first.",
        )
    first, *rest = path.split(".")
    if first not in namespace:
        raise _missing(path, wanted, list(_own(namespace)), "in this kernel")
    value = namespace[first]
    for attribute in rest:
        if not hasattr(value, attribute):
            attributes = [name for name in dir(value) if not name.startswith("_")]
            raise _missing(path, wanted, attributes, f"on {type(value).__name__}", attribute)
        value = getattr(value, attribute)
    return value


def lookup_model(words: str, namespace: Namespace) -> Any:
    """Return the model a person named: a variable, an attribute path, or the path of a file.

    Raises:
        NameNotFound: There is none; the error names the models there are.
        NotAModel: The variable is something else.
    """
    first = words.partition(".")[0]
    if first not in namespace and sources.files.looks_like_a_path(words):
        return sources.files.path_of(words)
    value = lookup(words, namespace, wanted="a model in this kernel, or a model file")
    if isinstance(value, str | os.PathLike) or sources.is_model(value):
        return value
    names = models(namespace)
    raise NotAModel(
        f"{words} is not a model",
        found=sources.describe(value),
        wanted=sources.WANTED,
        cure=f"Models in this kernel: {', '.join(names)}." if names else "There is no model in this kernel yet.",
    )


def models(namespace: Namespace) -> list[str]:
    """Return the names of the models in the kernel, in the order they were made."""
    return [name for name, value in _own(namespace).items() if sources.is_model(value)]


def variables(namespace: Namespace) -> Iterator[tuple[str, Any]]:
    """Yield the person's own variables."""
    yield from _own(namespace).items()


def _own(namespace: Namespace) -> dict[str, Any]:
    return {name: value for name, value in namespace.items() if not name.startswith("_") and name not in _IPYTHONS_OWN}


def _missing(path: str, wanted: str, names: list[str], where: str, word: str | None = None) -> NameNotFound:
    near = difflib.get_close_matches(word or path, names, n=3)
    return NameNotFound(
        f"there is no '{path}'",
        found=f"nothing of that name {where}",
        wanted=wanted,
        cure=f"Did you mean {' or '.join(near)}?" if near else "Run the cell that makes it, or check the spelling.",
    )
