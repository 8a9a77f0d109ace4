from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Digits
from tests.evaluate import by_hand
from tfdeploy_magic import sources
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.artifacts.signature import Signature
from tfdeploy_magic.convert import contract
from tfdeploy_magic.convert.describe import describe
from tfdeploy_magic.errors import ContractBroken


@pytest.fixture(scope="module")
def asked(trained_cnn: Any) -> Signature:
    return sources.trace(trained_cnn, "model").signature


@pytest.fixture(scope="module")
def float_file(trained_cnn: Any, tmp_path_factory: pytest.TempPathFactory) -> LiteFile:
    return written(by_hand.plain_file(trained_cnn), tmp_path_factory, "float32")


@pytest.fixture(scope="module")
def int8_file(trained_cnn: Any, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> LiteFile:
    return written(by_hand.plain_file(trained_cnn, "int8", "int8", digits.x_train[:20]), tmp_path_factory, "int8")


def written(content: bytes, factory: pytest.TempPathFactory, scheme: str) -> LiteFile:
    path: Path = factory.mktemp("file") / "m.tflite"
    path.write_bytes(content)
    return LiteFile.from_description(path, scheme, describe(path))


def test_a_file_that_is_what_was_asked_for_passes(float_file: LiteFile, int8_file: LiteFile, asked: Signature) -> None:
    contract.check(float_file, asked, io="float32")
    contract.check(int8_file, asked, io="int8")


def test_a_float_file_where_int8_was_asked_is_a_failure(float_file: LiteFile, asked: Signature) -> None:
    with pytest.raises(ContractBroken, match=r"float32\[\?, 8, 8, 1\][^!]*int8 for"):
        contract.check(float_file, asked, io="int8")
    for scheme, activations in (("int8", "int8"), ("int16x8", "int16")):
        with pytest.raises(ContractBroken, match=f"Wanted {activations} activations"):
            contract.check(replace(float_file, scheme=scheme), asked, io="float32")


@pytest.mark.parametrize("io", ["float32", "uint8"])
def test_an_int8_file_where_something_else_was_asked_is_a_failure(
    int8_file: LiteFile, asked: Signature, io: str
) -> None:
    with pytest.raises(ContractBroken, match=f"{io} for"):
        contract.check(int8_file, asked, io=io)


def test_a_missing_signature_input_or_output_is_a_failure(float_file: LiteFile, asked: Signature) -> None:
    with pytest.raises(ContractBroken, match="a signature 'embed'"):
        contract.check(float_file, replace(asked, name="embed"), io="float32")
    renamed = replace(asked.outputs[0], name="other")
    with pytest.raises(ContractBroken, match="no tensor named other"):
        contract.check(float_file, replace(asked, outputs=(renamed,)), io="float32")


@pytest.mark.parametrize("shape", [(None, 9, 8, 1), (None, 8, 8), (None, 8, 8, 1, 1)])
def test_another_shape_is_a_failure(float_file: LiteFile, asked: Signature, shape: tuple[int | None, ...]) -> None:
    other = replace(asked, inputs=(replace(asked.inputs[0], shape=shape),))
    with pytest.raises(ContractBroken):
        contract.check(float_file, other, io="float32")
