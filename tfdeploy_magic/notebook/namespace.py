"""Names in the kernel: attribute paths are looked up, data may be cut, expressions are never evaluated."""

from __future__ import annotations

import ast
import difflib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tfdeploy_magic import sources
from tfdeploy_magic.commands.declaration import Named
from tfdeploy_magic.errors import DataError, InputError, NameNotFound, NotAModel

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_URL = re.compile(r"https?://[^\s/]\S*/v1/models/[^\s/]+\S*")
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


def lookup_data(words: str, namespace: Namespace, *, wanted: str) -> Any:
    """Return data, or the part of it that numbers and slices in brackets name.

    Args:
        words: "x_test", "x_test[:100]", "x_test[..., -1]".
        namespace: The kernel's variables.
        wanted: What is looked for, for the error: "data".

    Raises:
        NameNotFound: There is none of that name, or something else stands in the brackets.
        DataError: It has no such part.
    """
    path, bracket, _ = words.partition("[")
    if not bracket:
        return lookup(path, namespace, wanted=wanted)
    index = _index(words, path)
    value = lookup(path, namespace, wanted=wanted)
    try:
        return value[index]
    except Exception as error:  # any class may have brackets, and any library its own error
        said = (str(error).strip() or "no message").splitlines()[0][:160].rstrip(".")
        raise DataError(
            f"{words} cannot be taken from {path}",
            found=f"{sources.describe(value)}, and {type(error).__name__}: {said}",
            wanted="an array, a tensor or a list that has such a part",
            cure="Assign the part that you want to a variable, and name that.",
        ) from error


def pair(words: str) -> tuple[str, str]:
    """Return data and labels of "x_test[:9],y_test[:9]", "" where none are named."""
    data, *labels = re.split(r",(?![^\[]*\])", words, maxsplit=1)
    return data, labels[0] if labels else ""


def lookup_function(path: str, namespace: Namespace) -> Named:
    """Return the function a person named.

    Raises:
        NameNotFound: There is none.
    """
    return Named(path, lookup(path, namespace, wanted="a function in this kernel"))


def lookup_functions(words: str, namespace: Namespace) -> dict[str, Named]:
    """Return the functions of "embed=fn,other=fn2" by the names they are given.

    Raises:
        NameNotFound: There is no such function.
        InputError: The words are something else, or what they name is not a function.
    """
    found: dict[str, Named] = {}
    for part in words.split(","):
        name, _, path = (piece.strip() for piece in part.partition("="))
        if not name or not path or name in found:
            raise InputError(
                f"'{words}' does not name functions",
                found=f"'{name}' twice" if name in found else f"'{part}'",
                wanted="a name for each function, and commas between them",
                cure="Write it as in embed=FUNCTION,other=FUNCTION.",
            )
        found[name] = lookup_function(path, namespace)
        if not callable(found[name].value):
            raise InputError(
                f"{path} is not a function",
                found=sources.describe(found[name].value),
                wanted=f"a function for {name}",
                cure="Name one that is defined in this kernel.",
            )
    return found


def lookup_endpoint(words: str, namespace: Namespace) -> Named | str:
    """Return the running model a person named, or the URL of one as it is.

    Raises:
        NameNotFound: There is nothing of that name; the error names the endpoints there are.
        InputError: It is something else.
    """
    if _URL.fullmatch(words):
        return words
    names = endpoints(namespace)
    there_are = f"Endpoints in this kernel: {', '.join(names)}." if names else "There is no endpoint in this kernel."
    wanted = "an endpoint in this kernel, or http://HOST:PORT/v1/models/NAME"
    if "://" in words:
        raise InputError(f"{words} is not an endpoint", found="another URL", wanted=wanted, cure=there_are)
    try:
        value = lookup(words, namespace, wanted=wanted)
    except NameNotFound as error:
        cure = f"{error.cure} {there_are}"
        raise NameNotFound(error.what, found=error.found, wanted=error.wanted, cure=cure) from None
    if isinstance(value, str) and _URL.fullmatch(value):
        return value
    if not _is_endpoint(value):
        found = sources.describe(value)
        raise InputError(f"{words} is not an endpoint", found=found, wanted=wanted, cure=there_are)
    return Named(words, value)


def models(namespace: Namespace) -> list[str]:
    """Return the names of the models in the kernel, in the order they were made."""
    return [name for name, value in _own(namespace).items() if sources.is_model(value)]


def endpoints(namespace: Namespace) -> list[str]:
    """Return the names of the running models in the kernel, in the order they were started."""
    return [name for name, value in _own(namespace).items() if _is_endpoint(value)]


def variables(namespace: Namespace) -> Iterator[tuple[str, Any]]:
    """Yield the person's own variables."""
    yield from _own(namespace).items()


def _is_endpoint(value: object) -> bool:
    # By a mark and not by its class: the code of servers is not imported to look at a kernel's variables.
    return getattr(type(value), "__tfdeploy_endpoint__", False) is True


def _index(words: str, path: str) -> Any:
    """Return what stands in the brackets behind ``path``, which nothing evaluates.

    Raises:
        NameNotFound: It is not made of whole numbers, slices, None and `...` alone.
    """
    try:
        tree = ast.parse(f"_{words.removeprefix(path)}", mode="eval").body
        if isinstance(tree, ast.Subscript) and isinstance(tree.value, ast.Name):
            inside = tree.slice
            return tuple(map(_part, inside.elts)) if isinstance(inside, ast.Tuple) else _part(inside)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        pass
    raise NameNotFound(
        f"'{words}' cannot be looked up",
        found=words.removeprefix(path),
        wanted=f"only numbers and slices in one pair of brackets, as in {path}[:100]",
        cure="Expressions are not evaluated: assign it to a variable first.",
    )


def _part(node: ast.expr) -> Any:
    if isinstance(node, ast.Slice):
        return slice(*(None if part is None else _number(part) for part in (node.lower, node.upper, node.step)))
    if isinstance(node, ast.Constant) and node.value is Ellipsis:
        return Ellipsis
    return _number(node)


def _number(node: ast.expr) -> int | None:
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        node, sign = node.operand, -1
    if isinstance(node, ast.Constant) and type(node.value) is int:  # to isinstance True is a number, too
        return sign * node.value
    if isinstance(node, ast.Constant) and node.value is None and sign == 1:
        return None
    raise ValueError("neither a number nor None")


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
