from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.serving.fake_server import Fake, serving
from tfdeploy_magic.commands.declaration import Named
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.commands.predict import predict
from tfdeploy_magic.errors import DataError, NameNotFound, ServerUnreachable
from tfdeploy_magic.sources.samples import NamedData

ROWS = np.arange(6, dtype="float32").reshape(2, 3)


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving() as running:
        yield running


@pytest.mark.parametrize("x", [ROWS, ROWS.tolist(), {"x": ROWS}, NamedData("x_test[:2]", ROWS)])
def test_the_answer_is_an_array(fake: Fake, x: Any) -> None:
    np.testing.assert_array_equal(predict(Endpoint(fake.url), x=x), ROWS)


def test_an_address_and_a_name_of_the_kernel_will_do(fake: Fake) -> None:
    np.testing.assert_array_equal(predict(fake.url, x=ROWS), ROWS)
    np.testing.assert_array_equal(predict(Named("endpoint", Endpoint(fake.url)), x=ROWS), ROWS)


def test_the_door_may_be_chosen(fake: Fake) -> None:
    np.testing.assert_array_equal(predict(Endpoint(fake.url, fake.grpc), x=ROWS, over="grpc"), ROWS)
    assert len(fake.messages) == 1


def test_several_outputs_come_by_name(fake: Fake) -> None:
    fake.has({"a": ("DT_FLOAT", [-1]), "b": ("DT_FLOAT", [-1])})
    answers = predict(Endpoint(fake.url), x={"a": [1.0], "b": [2.0]})
    assert {name: answer.tolist() for name, answer in answers.items()} == {"a": [1.0], "b": [2.0]}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, DataError, r"there is nothing to ask: found no input.\nWanted x: float32\[\?, 3\]"),
        ({"x": ROWS[0]}, DataError, r"found the shape \[3\]"),
        ({"x": ROWS, "signature": "embed"}, NameNotFound, "Try --signature serving_default"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_sent(
    fake: Fake, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        predict(Endpoint(fake.url), **options)
    assert not any(path.endswith(":predict") for _, path, _ in fake.asked)


def test_a_server_that_is_gone_is_said_to_be() -> None:
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:9 does not answer"):
        predict("http://127.0.0.1:9/v1/models/gone", x=ROWS)
