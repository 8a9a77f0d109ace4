from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tfdeploy_magic.commands.endpoint import Endpoint
from tfdeploy_magic.commands.serve import serve
from tfdeploy_magic.commands.tflite_convert import tflite_convert
from tfdeploy_magic.errors import DataError
from tfdeploy_magic.sources.samples import NamedData

LITERT, HERE = "LiteRT's interpreter here", "the model in this kernel"


@pytest.fixture(autouse=True, scope="module")
def nothing_goes_on() -> Iterator[None]:
    yield
    serve.stop(all=True)


def known(endpoint: Endpoint) -> Any:
    assert endpoint.served is not None
    return endpoint.served


def function(**specs: Any) -> Any:
    """Return a decorator that makes a ``tf.function`` of these inputs."""
    import tensorflow as tf

    return tf.function(input_signature=[tf.TensorSpec(*spec, name=name) for name, spec in specs.items()])


@pytest.mark.parametrize(
    ("options", "least_db"),
    [({}, 100), ({"scheme": "dynamic"}, 20), ({"scheme": "int8", "io": "int8"}, 15)],
    ids=["float32", "dynamic", "int8"],
)
def test_a_converted_model_is_compared_three_ways(
    trained_cnn: Any, digits: Digits, options: dict[str, Any], least_db: float
) -> None:
    calib = digits.x_train if "io" in options else None
    lite = tflite_convert(trained_cnn, calib=calib, **options)
    endpoint = serve(lite, name="lite", test=digits.x_test)
    parity = known(endpoint).parity
    assert list(parity) == [LITERT, HERE]
    assert parity[LITERT].max_abs_error == 0.0
    assert parity[HERE].snr_db > least_db
    assert parity[HERE].agreement > 0.9
    rows = digits.x_test[:5]
    for over in ("rest", "grpc"):
        np.testing.assert_array_equal(endpoint.predict(rows, over=over), lite.predict(rows))
    stored = "int8" if "io" in options else "float32"
    assert [spec.dtype for spec in endpoint.signatures["serving_default"].inputs] == [stored]
    assert ("scales" in endpoint._repr_mimebundle_()["text/plain"]) is ("io" in options)


def test_labels_are_not_asked_and_not_named(trained_cnn: Any, digits: Digits) -> None:
    test = NamedData("x_test, y_test", digits.x_test, labels=digits.y_test, labels_name="y_test", remark="found")
    assert (
        known(serve(trained_cnn, name="m", test=test)).tested == "x_test (128 of 500 samples, drawn at random, found)"
    )


def test_rows_that_depend_on_each_other_are_asked_together() -> None:
    import tensorflow as tf

    centred = function(x=((None, 2),))(lambda x: {"y": x - tf.reduce_mean(x, axis=0)})
    rows = np.random.default_rng(0).normal(size=(100, 2)).astype("float32")
    assert known(serve(centred, name="m", test=rows)).parity[HERE].max_abs_error == 0.0


def test_a_fixed_batch_is_filled_up() -> None:
    doubled = function(x=((4, 2),))(lambda x: {"y": 2 * x})
    served = known(serve(doubled, name="m", test=np.arange(20, dtype="float32").reshape(10, 2)))
    assert served.parity[HERE].n == 10
    assert served.parity[HERE].max_abs_error == 0.0
    assert json.loads(served.request) == {"instances": [[0.0, 1.0]] * 4}, "the example must be one that is answered"


def test_text_and_bytes_are_compared_as_they_are() -> None:
    import tensorflow as tf

    joined = function(n=((None,), tf.int64), s=((None,), tf.string))(
        lambda n, s: {"echo": tf.strings.join([s, tf.strings.as_string(n)])}
    )
    words = np.array([b"\xff", b"\0", "zwölf".encode(), b""] * 10, object)
    served = known(serve(joined, name="m", test={"n": np.arange(40), "s": words}))
    assert served.parity[HERE].max_abs_error == 0.0
    assert json.loads(served.request) == {"inputs": {"n": [0], "s": [{"b64": "/w=="}]}}


def test_another_signature_than_the_default_is_asked_by_its_name() -> None:
    import tensorflow as tf

    module = tf.Module()
    module.up, module.down = function(x=((None,),))(lambda x: x + 1), function(x=((None,),))(lambda x: x - 1)
    endpoint = serve(module, name="m", test=np.arange(40, dtype="float32"))
    served = known(endpoint)
    assert served.parity[HERE].max_abs_error == 0.0
    request = json.loads(served.request)
    assert request["instances"] == [0.0]
    assert endpoint.predict([1.0], signature="up") == [2.0]
    assert f"%loadtest {endpoint.url} --signature " in endpoint._repr_mimebundle_()["text/plain"]


def test_a_model_that_counts_its_calls_is_served_and_not_compared(counter: Any) -> None:
    endpoint = serve(counter, name="m", test=np.zeros((40, 2), "float32"))
    served = known(endpoint)
    assert served.parity == {}
    assert "stateful" in {finding.code for finding in served.findings}
    assert json.loads(served.request) == {"instances": [[0.0, 0.0]]}
    assert endpoint.predict(np.zeros((1, 2), "float32")).tolist() == [[1.0, 1.0]]


def test_numbers_that_json_has_not_are_compared_over_grpc_and_make_no_example() -> None:
    import tensorflow as tf

    halved = function(x=((None, 2), tf.float16))(lambda x: {"y": x / 2})
    served = known(serve(halved, name="m", test=np.ones((40, 2), "float16")))
    assert served.parity[HERE].max_abs_error == 0.0
    assert served.request is None


def test_data_that_does_not_fit_is_refused_before_anything_is_served(trained_cnn: Any, digits: Digits) -> None:
    with pytest.raises(DataError):
        serve(trained_cnn, name="refused", test=digits.y_test)
    assert "refused" not in {row.model for row in serve.list()}
