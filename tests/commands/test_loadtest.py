from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from pydantic import ValidationError

from tests.serving.fake_server import Fake, serving
from tfdeploy_magic.artifacts.signature import Signature, TensorSpec
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.commands.loadtest import LoadTest, loadtest
from tfdeploy_magic.errors import DataError, NameNotFound, ServerUnreachable
from tfdeploy_magic.jobs.progress import Progress
from tfdeploy_magic.serving.embedded import EmbeddedHost
from tfdeploy_magic.serving.hosting import Hosted
from tfdeploy_magic.serving.served import Served
from tfdeploy_magic.sources.samples import NamedData

ROWS = np.arange(30, dtype="float32").reshape(10, 3)
SHORT: dict[str, Any] = {"clients": 2, "seconds": 0.3, "no_saturation": True}


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving() as running:
        yield running


def sent(fake: Fake) -> list[Any]:
    """The inputs of every request, each told once."""
    bodies = dict.fromkeys(body for _, path, body in fake.asked if path.endswith(":predict"))
    return [json.loads(body)["inputs"] for body in bodies]


def test_a_served_model_is_asked_by_many_at_once(fake: Fake) -> None:
    tested = loadtest(Endpoint(fake.url), x=NamedData("x, y", ROWS, labels=ROWS, labels_name="y"), **SHORT)
    assert (tested.name, tested.url, tested.sent, tested.saturation) == ("echo", fake.url, "x, 1 row a request", None)
    assert (tested.load.clients, tested.load.failed, tested.load.over) == (2, 0, "rest")
    assert tested.load.requests > 10
    assert sent(fake) == [[row] for row in ROWS.tolist()]
    assert repr(tested).startswith("<LoadTested echo: ")
    bundle = tested._repr_mimebundle_()
    assert "answers/s" in bundle["text/plain"].splitlines()[0]
    assert "data:image/png" in bundle["text/html"]
    assert tested.figure().axes


def test_fewer_clients_come_first(fake: Fake) -> None:
    tested = loadtest(fake.url, x=ROWS, clients=4, seconds=0.4)
    assert tested.saturation is not None
    assert [load.clients for load in tested.saturation.loads] == [1, 2, 4]
    assert tested.sent == "data, 1 row a request"


@pytest.mark.parametrize("over", ["rest", "grpc"])
def test_a_request_may_hold_several_rows_and_go_either_way(fake: Fake, over: Any) -> None:
    tested = loadtest(Endpoint(fake.url, fake.grpc), x=ROWS, rows=4, over=over, **SHORT)
    assert (tested.sent, tested.load.over, tested.load.failed) == ("data, 4 rows a request", over, 0)
    if over == "rest":
        assert sent(fake) == [ROWS[:4].tolist(), ROWS[4:8].tolist()], "what is left over is not sent"
    else:
        assert len(fake.messages) > 10


def test_real_numbers_are_sent_as_the_file_stores_them(fake: Fake) -> None:
    fake.has({"x": ("DT_INT8", [-1, 3])})
    fake.answers["/v1/models/echo/versions/1/metadata"] = fake.answers["/v1/models/echo/metadata"]
    spec = TensorSpec("x", (None, 3), "int8", scale=0.5)
    host = EmbeddedHost("echo", {"echo": Hosted(Path("/nowhere"), ours=False)}, in_kernel=True)
    lite = {"serving_default": Signature("serving_default", (spec,), (spec,))}
    host.models["echo"].known[1] = Served(1, "lite", "/nowhere", 1, lite=lite)
    options = LoadTest(endpoint=Endpoint(fake.url, host=host))
    assert [str(each) for each in options.source().inputs] == ["x: float32[?, 3]"], "what is looked for in the kernel"
    loadtest(options.endpoint, x=ROWS, **SHORT)
    assert sent(fake) == (2 * ROWS)[:, None].astype(int).tolist()


def test_answers_that_never_came_are_counted(fake: Fake) -> None:
    def fail_after_a_while(progress: Progress) -> None:
        if progress.elapsed > 0.3:
            fake.answers["/v1/models/echo:predict"] = (503, '{"error": "gone"}')

    options = {**SHORT, "seconds": 1.2}
    tested = loadtest(Endpoint(fake.url), x=ROWS, progress=fail_after_a_while, **options)
    assert 0 < tested.load.failed < tested.load.requests
    assert set(tested.load.failures) == {"503"}
    assert "failed" in tested._repr_mimebundle_()["text/plain"].splitlines()[0]


def test_the_stop_button_ends_the_clients(fake: Fake) -> None:
    def press(progress: Progress) -> None:
        if progress.elapsed > 0.3:
            raise KeyboardInterrupt

    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(KeyboardInterrupt):
        loadtest(Endpoint(fake.url), x=ROWS, progress=press, **{**SHORT, "seconds": 60})
    left = set(psutil.Process().children(recursive=True)) - before
    assert [child for child in left if child.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, DataError, "there is nothing to send: found no data that fits"),
        ({"x": "x_test"}, DataError, "there is nothing to send: found a str"),
        ({"x": ROWS, "rows": 11}, DataError, "too few samples for one request: found 10"),
        ({"x": ROWS[:, :2]}, DataError, r"found the shape \[1, 2\]"),
        ({"x": ROWS, "signature": "embed"}, NameNotFound, "Try --signature serving_default"),
    ],
)
def test_what_cannot_be_sent_is_said_at_once(
    fake: Fake, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        loadtest(Endpoint(fake.url), **SHORT, **options)
    assert sent(fake) == []


def test_a_server_that_is_gone_is_said_to_be() -> None:
    with pytest.raises(ServerUnreachable):
        loadtest("http://127.0.0.1:9/v1/models/gone", x=ROWS, **SHORT)


@pytest.mark.parametrize("options", [{"clients": 0}, {"seconds": 0}, {"rows": 0}, {"clients": 5000}, {"over": None}])
def test_no_clients_no_time_and_no_rows_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        loadtest("http://127.0.0.1:9/v1/models/gone", x=ROWS, **options)


def test_data_is_looked_for_in_the_kernel() -> None:
    assert LoadTest(endpoint="http://127.0.0.1:9/v1/models/m").data_to_find() == ("x",)
