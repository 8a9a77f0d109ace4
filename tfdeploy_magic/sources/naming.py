"""Values as an error names them."""

from __future__ import annotations


def describe(value: object) -> str:
    """Say what a value is in a few words, "a numpy array float64[1797, 64]"."""
    kind = type(value)
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        sort = "a numpy array" if kind.__module__ == "numpy" else f"a {kind.__name__}"
        return f"{sort} {getattr(dtype, 'name', dtype)}[{', '.join(map(str, tuple(shape)))}]"
    if value is None:
        return "None"
    return f"{'an' if kind.__name__[0] in 'aeiouAEIOU' else 'a'} {kind.__name__}"
