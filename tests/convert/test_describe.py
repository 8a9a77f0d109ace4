from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Digits
from tests.evaluate import by_hand
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.convert.describe import describe


@pytest.fixture(scope="module", params=["float32", "int8"])
def content(request: pytest.FixtureRequest, trained_cnn: Any, digits: Digits) -> bytes:
    return by_hand.plain_file(trained_cnn, request.param, request.param, digits.x_train[:20])


@pytest.fixture
def file(content: bytes, tmp_path: Path) -> LiteFile:
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    return LiteFile.from_description(path, "float32", describe(path))


def test_a_file_says_its_size_and_digest(file: LiteFile, content: bytes) -> None:
    assert file.size == len(content)
    assert file.sha256 == hashlib.sha256(content).hexdigest()


def test_its_signature_is_the_one_the_interpreter_sees(file: LiteFile, content: bytes) -> None:
    runner = by_hand.interpreter(content).get_signature_runner()
    for specs, details in (
        (file.inputs, runner.get_input_details()),
        (file.outputs, runner.get_output_details()),
    ):
        assert [spec.name for spec in specs] == list(details)
        for spec in specs:
            seen = details[spec.name]
            assert spec.dtype == seen["dtype"].__name__
            assert [-1 if size is None else size for size in spec.shape] == list(seen["shape_signature"])
            assert (spec.scale, spec.zero_point) == pytest.approx(seen["quantization"])


def test_its_operators_are_those_the_interpreter_sees(file: LiteFile, content: bytes) -> None:
    interpreter = by_hand.interpreter(content)
    # Delegates add operators of their own; the graph itself is what was asked about.
    seen = Counter(op["op_name"] for op in interpreter._get_ops_details() if op["op_name"] != "DELEGATE")
    assert dict(file.operators) == dict(seen)
    assert file.operators["CONV_2D"] == 2
