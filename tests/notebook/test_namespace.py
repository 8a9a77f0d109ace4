from __future__ import annotations

import builtins
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfdeploy_magic.commands.declaration import Named
from tfdeploy_magic.errors import DataError, InputError, NameNotFound
from tfdeploy_magic.notebook.namespace import endpoints, lookup, lookup_data, lookup_endpoint, lookup_functions, pair

ARRAY = np.arange(4 * 3 * 2).reshape(4, 3, 2)
INDICES = [
    "[:3]",
    "[0]",
    "[-1]",
    "[1:4:2]",
    "[..., 0]",
    "[::-1]",
    "[-3:-1]",
    "[None]",
    "[None, :2, ..., -1]",
    "[0,1,1]",
]


class Digits:
    """What a running model looks like."""

    __tfdeploy_endpoint__ = True


def test_a_variable_and_an_attribute_path_are_found() -> None:
    trainer = SimpleNamespace(model="the model")
    assert lookup("trainer", {"trainer": trainer}, wanted="it") is trainer
    assert lookup("trainer.model", {"trainer": trainer}, wanted="it") == "the model"


@pytest.mark.parametrize("expression", ["f()", "models[0]", "a + b", "__import__('os')", "model;x", "", "1"])
def test_an_expression_is_never_evaluated(expression: str) -> None:
    with pytest.raises(NameNotFound, match="is not a name"):
        lookup(expression, {"f": pytest.fail, "models": [1], "a": 1, "b": 2}, wanted="a model")


def test_a_misspelled_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(NameNotFound, match="Did you mean model"):
        lookup("modle", {"model": 1, "other": 2}, wanted="a model")
    with pytest.raises(NameNotFound, match="Did you mean weights"):
        lookup("m.wieghts", {"m": SimpleNamespace(weights=1)}, wanted="data")


@pytest.mark.parametrize("index", INDICES)
def test_numbers_and_slices_cut_data_as_python_does(index: str) -> None:
    kernel = {"x": ARRAY, "data": SimpleNamespace(x=ARRAY)}
    expected = eval(f"x{index}", {"x": ARRAY})
    np.testing.assert_array_equal(lookup_data(f"x{index}", kernel, wanted="data"), expected)
    np.testing.assert_array_equal(lookup_data(f"data.x{index}", kernel, wanted="data"), expected)


_whole = st.integers(-9, 9) | st.none()
_parts = st.one_of(st.integers(-9, 9), st.builds(slice, _whole, _whole, _whole), st.none(), st.just(...))


@given(st.one_of(_parts, st.lists(_parts, min_size=1, max_size=4).map(tuple)))
def test_whatever_index_is_written_arrives_as_it_was_meant(index: Any) -> None:
    class Echo:
        def __getitem__(self, index: Any) -> Any:
            return index

    parts = index if isinstance(index, tuple) else (index,)
    text = ", ".join(_spelled(part) for part in parts) + ("," if isinstance(index, tuple) else "")
    assert lookup_data(f"x[{text}]", {"x": Echo()}, wanted="data") == index


def _spelled(part: Any) -> str:
    if not isinstance(part, slice):
        return "..." if part is ... else str(part)
    bounds = ["" if bound is None else str(bound) for bound in (part.start, part.stop, part.step)]
    return ":".join(bounds)


@pytest.mark.parametrize(
    "index",
    [
        *(
            "[n]",
            "[f()]",
            "[:n]",
            "[x[0]]",
            "[0][1]",
            "[0] + 1",
            "[1 + 1]",
            "[~1]",
            "[True]",
            "[1.0]",
            "['a']",
            "[[0, 1]]",
        ),
        *(
            "[(0, 1), 2]",
            "[:True]",
            "[:...]",
            "[n := 1]",
            "[*x]",
            "[0",
            "[]",
            "[0].shape",
            "[0] if f() else 1",
            "[-None]",
        ),
        *("[--1]", "[0]]", "[lambda: 0]", "[" + "-" * 100_000 + "1]", "[" + "9" * 5000 + "]", "[\0]"),
    ],
)
def test_anything_else_in_brackets_is_refused_and_nothing_is_evaluated(index: str) -> None:
    class Untouched:
        def __getitem__(self, index: Any) -> Any:
            pytest.fail("it was looked into")

    with pytest.raises(NameNotFound, match=r"only numbers and slices in one pair of brackets, as in x\[:100\]"):
        lookup_data(f"x{index}", {"x": Untouched(), "f": pytest.fail, "n": 1}, wanted="data")


@pytest.mark.parametrize("words", ["f()[0]", "[0]", "a b[0]", "xs[:3]"])
def test_what_stands_before_the_brackets_must_be_a_name_that_is_there(words: str) -> None:
    with pytest.raises(NameNotFound, match=r"is not a name|Did you mean x"):
        lookup_data(words, {"x": ARRAY, "f": pytest.fail}, wanted="data")


@pytest.mark.parametrize(
    ("value", "index", "said"),
    [
        (iter([]), "[:3]", "found a list_iterator, and TypeError"),
        ({"a": ARRAY}, "[0]", "found a dict, and KeyError: 0"),
        (ARRAY, "[4]", r"found a numpy array int64\[4, 3, 2\], and IndexError: index 4 is out of bounds"),
        (ARRAY, "[0, 0, 0, 0]", "IndexError: too many indices"),
        (ARRAY, "[::0]", "ValueError"),
        (3, "[0]", "found an int, and TypeError"),
    ],
)
def test_what_cannot_be_cut_so_is_a_data_error_that_says_what_it_is(value: Any, index: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        lookup_data(f"x{index}", {"x": value}, wanted="data")
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "data", "labels"),
    [
        ("x", "x", ""),
        ("x,y", "x", "y"),
        ("x[:9],y[:9]", "x[:9]", "y[:9]"),
        ("x[..., 0],y", "x[..., 0]", "y"),
        ("x[0, 1]", "x[0, 1]", ""),
        ("x,y[0,1]", "x", "y[0,1]"),
        ("x,y,z", "x", "y,z"),
    ],
)
def test_only_a_comma_outside_brackets_parts_data_and_labels(words: str, data: str, labels: str) -> None:
    assert pair(words) == (data, labels)


def test_functions_are_named_by_what_they_answer_to() -> None:
    kernel = {"f": len, "tools": SimpleNamespace(g=max)}
    found = lookup_functions("embed=f, other=tools.g", kernel)
    assert found == {"embed": Named("f", len), "other": Named("tools.g", builtins.max)}


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        ("f", InputError, r"found 'f'.*\n.*as in embed=FUNCTION"),
        ("embed=", InputError, "found 'embed='"),
        ("=f", InputError, "found '=f'"),
        ("embed=f,", InputError, "found ''"),
        ("embed=f,embed=f", InputError, "found 'embed' twice"),
        ("embed=n", InputError, "n is not a function: found an int"),
        ("embed=g", NameNotFound, "there is no 'g'"),
        ("embed=f()", NameNotFound, "Expressions are not evaluated"),
    ],
)
def test_functions_named_wrongly_are_an_error_that_shows_the_form(words: str, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        lookup_functions(words, {"f": len, "n": 1})


def test_an_endpoint_is_known_by_its_mark_and_found_by_its_name() -> None:
    digits = Digits()
    kernel = {"x": 1, "digits": digits, "Digits": Digits, "all": SimpleNamespace(first=digits), "_": digits}
    assert endpoints(kernel) == ["digits"]
    assert lookup_endpoint("digits", kernel) == Named("digits", digits)
    assert lookup_endpoint("all.first", kernel) == Named("all.first", digits)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8501/v1/models/digits", "https://host/behind/v1/models/digits/versions/3"]
)
def test_the_url_of_a_model_stays_a_url(url: str) -> None:
    assert lookup_endpoint(url, {}) == url
    assert lookup_endpoint("where", {"where": url}) == url


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        ("x", InputError, "x is not an endpoint: found a numpy array int64"),
        ("Digits", InputError, "Digits is not an endpoint: found a type"),
        ("word", InputError, "word is not an endpoint: found a str"),
        ("digist", NameNotFound, "Did you mean digits"),
        ("start()", NameNotFound, "'start\\(\\)' is not a name"),
        ("http://127.0.0.1:8501", InputError, "found another URL.\nWanted .*http://HOST:PORT/v1/models/NAME"),
        ("ftp://host/v1/models/digits", InputError, "found another URL"),
    ],
)
def test_anything_else_is_answered_with_the_endpoints_there_are(words: str, error: Any, said: str) -> None:
    kernel = {"x": ARRAY, "word": "digits", "Digits": Digits}
    with pytest.raises(error, match=said) as caught:
        lookup_endpoint(words, {**kernel, "digits": Digits(), "letters": Digits()})
    assert str(caught.value).endswith("Endpoints in this kernel: digits, letters.")
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(error, match="There is no endpoint in this kernel"):
        lookup_endpoint(words, kernel)
