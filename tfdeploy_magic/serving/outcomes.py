"""Whether what was answered was any good: what clients tell of it when they know, read from JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tfdeploy_magic.serving.json_documents import value_text
from tfdeploy_magic.serving.router import Split
from tfdeploy_magic.serving.status import Refusal, invalid

Outcomes = dict[tuple[str, str], int]
"""An arm's name, and "success" or "failure" -> how many."""


def outcomes_of(document: dict[str, Any], split: Split) -> Outcomes:
    """Return the outcomes that a request tells: one, or a list of them.

    Args:
        document: {"key": "user-7", "success": true}, {"arm": "canary", "success": false}, or {"outcomes": [...]}.
        split: The arms that they may be of; that of a key is the one that its requests are sent to.

    Raises:
        Refusal: One of them is none.
    """
    if "outcomes" not in document:
        return {_outcome(document, split): 1}
    rows = document["outcomes"]
    if not isinstance(rows, list):
        raise invalid("'outcomes' key must be a list value.")
    if document.keys() & {"key", "arm", "success"}:
        raise invalid("'outcomes' key stands alone: 'key', 'arm' and 'success' belong to each of them.")
    found: Counter[tuple[str, str]] = Counter()
    for number, row in enumerate(rows):
        try:
            found[_outcome(row, split)] += 1
        except Refusal as refusal:
            raise invalid(f"Failed to process element: {number} of 'outcomes' list. Error: {refusal}") from None
    return dict(found)


def _outcome(row: Any, split: Split) -> tuple[str, str]:
    if not isinstance(row, dict):
        raise invalid(f"JSON Value: {value_text(row)} Is not object")
    if "success" not in row:
        raise invalid("'success' key is expected and was not found")
    success = row["success"]
    if not isinstance(success, bool):
        raise invalid(f"'success' key must be true or false. Was: {value_text(success)}")
    if ("key" in row) is ("arm" in row):
        raise invalid(f"either 'key' or 'arm' is expected and {'both were' if 'key' in row else 'none was'} found")
    return _arm(row, split), "success" if success else "failure"


def _arm(row: dict[str, Any], split: Split) -> str:
    if "key" in row:
        key = row["key"]
        if not isinstance(key, str) or not key:
            raise invalid(f"'key' key must be a string value that is not empty. Was: {value_text(key)}")
        return split.arm_of(key).name
    name = row["arm"]
    names = [arm.name for arm in split.arms]
    if name not in names:
        raise invalid(f"Model {split.model} has no arm {value_text(name)}. Its arms: {', '.join(names)}.")
    return str(name)
