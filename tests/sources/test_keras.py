from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluate import by_hand
from tests.sources import models
from tfdeploy_magic import sources
from tfdeploy_magic.artifacts.samples import SampleSet, save_arrays
from tfdeploy_magic.artifacts.signature import TensorSpec
from tfdeploy_magic.errors import ModelNotReady, NameNotFound, NotAModel, UserCodeError
from tfdeploy_magic.jobs import Report, silent


def some_inputs(specs: tuple[TensorSpec, ...], count: int) -> dict[str, Any]:
    random = np.random.default_rng(1)
    made = {}
    for spec in specs:
        shape = (count, *(size or 1 for size in spec.shape[1:]))
        integer = spec.dtype.startswith("int")
        made[spec.name] = (random.integers(0, 10, shape) if integer else random.normal(size=shape)).astype(spec.dtype)
    return made


def in_model_order(model: Any, traced: Any, inputs: dict[str, Any]) -> Any:
    arrays = [inputs[spec.name] for spec in traced.signature.inputs]
    return model(arrays if len(arrays) > 1 else arrays[0], training=False)


def by_name(traced: Any, answer: Any) -> dict[str, Any]:
    if isinstance(answer, dict):
        return {name: np.asarray(output) for name, output in answer.items()}
    return {traced.signature.outputs[0].name: np.asarray(answer)}


@pytest.mark.parametrize("kind", models.KINDS)
def test_a_frozen_model_loads_in_tensorflow_and_answers_as_the_model(kind: Any, tmp_path: Path) -> None:
    import tensorflow as tf

    model = models.make(kind)
    traced = sources.trace(model, "model")
    saved = traced.save(tmp_path / "saved")
    assert saved.size == sum(path.stat().st_size for path in saved.path.rglob("*") if path.is_file())
    inputs = some_inputs(traced.signature.inputs, 7)
    expected = by_name(traced, in_model_order(model, traced, inputs))
    loaded = tf.saved_model.load(str(saved.path)).signatures["serving_default"]
    got = loaded(**{name: tf.constant(array) for name, array in inputs.items()})
    assert got.keys() == expected.keys()
    for name, output in expected.items():
        assert np.max(np.abs(got[name].numpy() - output)) < 1e-5
        assert np.ptp(output) > 0


@pytest.mark.parametrize("kind", models.KINDS)
def test_the_signature_a_frozen_model_carries_is_the_one_it_says(kind: Any, tmp_path: Path) -> None:
    import tensorflow as tf

    traced = sources.trace(models.make(kind), "model")
    saved = traced.save(tmp_path)
    loaded = tf.saved_model.load(str(tmp_path)).signatures
    assert list(loaded) == [saved.signature.name]
    function = loaded[saved.signature.name]
    taken = {
        spec.name: (tuple(spec.shape), spec.dtype.name) for spec in function.structured_input_signature[1].values()
    }
    given = {name: (tuple(spec.shape), spec.dtype.name) for name, spec in function.structured_outputs.items()}
    assert taken == {spec.name: (spec.shape, spec.dtype) for spec in saved.signature.inputs}
    assert given == {spec.name: (spec.shape, spec.dtype) for spec in saved.signature.outputs}


@pytest.mark.parametrize("kind", models.KINDS)
def test_inputs_and_outputs_are_named_as_the_plain_converter_names_them(kind: Any) -> None:
    model = models.make(kind)
    signature = sources.trace(model, "model").signature
    plain = by_hand.interpreter(by_hand.plain_file(model)).get_signature_list()
    names = {spec.name for spec in signature.inputs}, {spec.name for spec in signature.outputs}
    assert plain == {signature.name: {"inputs": sorted(names[0]), "outputs": sorted(names[1])}}


def test_inputs_stand_in_the_order_of_the_models_arguments() -> None:
    model = models.make(models.two_in_two_out)
    assert [spec.name for spec in sources.trace(model, "model").signature.inputs] == ["zebra", "ant"]
    assert [spec.name for spec in sources.input_specs(model, "model")] == ["zebra", "ant"]


@pytest.mark.parametrize("kind", models.KINDS)
def test_a_traced_model_answers_samples_as_the_model_itself(kind: Any, tmp_path: Path) -> None:
    model = models.make(kind)
    traced = sources.trace(model, "model")
    inputs = some_inputs(traced.signature.inputs, 300)  # more than two batches
    samples = SampleSet(save_arrays(tmp_path, inputs), 300, "x")
    got = traced.predict(samples, Report(silent))
    for name, expected in by_name(traced, in_model_order(model, traced, inputs)).items():
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-5)
    assert traced.latency(samples, Report(silent)).runs >= 10


def test_a_batch_size_that_the_model_fixes_stays_fixed(tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input(batch_shape=(4, 3)), keras.layers.Dense(2)])
    traced = sources.trace(model, "model")
    assert traced.signature.inputs[0].shape == (4, 3)
    assert traced.save(tmp_path).signature.outputs[0].shape == (4, 2)


def test_the_batch_size_is_left_open() -> None:
    signature = sources.trace(models.make(models.functional), "model").signature
    assert [spec.shape for spec in (*signature.inputs, *signature.outputs)] == [(None, 8, 8, 1), (None, 2)]


def test_freezing_takes_no_notice_of_later_training(tmp_path: Path) -> None:
    import tensorflow as tf

    model = models.make(models.sequential)
    traced = sources.trace(model, "model")
    x = some_inputs(traced.signature.inputs, 2)
    before, digest = np.asarray(model(next(iter(x.values())))), traced.weights_sha256()
    traced.save(tmp_path)
    model.set_weights([weight + 1 for weight in model.get_weights()])
    got = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](**{k: tf.constant(v) for k, v in x.items()})
    np.testing.assert_allclose(next(iter(got.values())).numpy(), before, atol=1e-5)
    assert traced.weights_sha256() != digest
    assert sources.trace(model, "model").weights_sha256() == traced.weights_sha256()


@pytest.mark.parametrize("subclass", [False, True])
def test_a_model_that_was_never_built_is_not_ready_and_the_cure_says_how(subclass: bool) -> None:
    import keras

    model = models.subclassed(called=False) if subclass else keras.Sequential([keras.layers.Dense(3)])
    for attempt in (sources.trace, sources.input_specs):
        with pytest.raises(ModelNotReady, match=r"net is not built[^!]*Call it once on data: net\(x\[:1\]\)"):
            attempt(model, "net")


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_model_whose_weights_are_not_finite_is_not_ready_and_the_weight_is_named(broken: float) -> None:
    model = models.make(models.functional)
    model.layers[-1].bias.assign([0.0, broken])
    with pytest.raises(ModelNotReady, match=r"answer/bias[^!]*learning rate"):
        sources.trace(model, "model")


@pytest.mark.parametrize(
    ("thing", "found"),
    [
        (3, "found an int"),
        (None, "found None"),
        ("model.keras", "found a str"),
        (np.zeros((5, 2)), r"found a numpy array float64\[5, 2\]"),
        (models.sequential, "found a function"),
    ],
)
def test_what_is_not_a_model_is_described(thing: object, found: str) -> None:
    assert not sources.is_model(thing)
    with pytest.raises(NotAModel, match=f"thing is not a model: {found}[^!]*a Keras model"):
        sources.trace(thing, "thing")


def test_a_models_class_or_layer_is_not_a_model() -> None:
    import keras

    assert sources.is_model(models.make(models.sequential))
    for thing in (keras.Model, keras.layers.Dense(2)):
        assert not sources.is_model(thing)


def test_an_unknown_signature_is_an_error_that_says_which_there_is() -> None:
    model = models.make(models.sequential)
    assert sources.trace(model, "model", "serving_default").signature.name == "serving_default"
    with pytest.raises(NameNotFound, match=r"no signature 'embed'[^!]*serving_default[^!]*--signature"):
        sources.trace(model, "model", "embed")


def test_a_call_that_cannot_run_as_a_graph_is_the_persons_own_error() -> None:
    import keras

    class Eager(keras.Model):
        def call(self, x: Any) -> Any:
            return x * float(np.asarray(x)[0, 0])

    model = Eager()
    model(np.ones((1, 4), "float32"))
    with pytest.raises(UserCodeError, match="net cannot be traced") as caught:
        sources.trace(model, "net")
    assert caught.value.__cause__ is not None


def test_a_model_with_all_biases_at_zero_looks_untrained() -> None:
    import keras

    fresh = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    (finding,) = sources.trace(fresh, "model").findings
    assert (finding.level, finding.code) == ("error", "untrained")
    assert sources.trace(models.make(models.sequential), "model").findings == ()
    unbiased = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, use_bias=False)])
    assert sources.trace(unbiased, "model").findings == ()


def test_a_model_is_described_by_kind_and_size() -> None:
    assert sources.trace(models.make(models.sequential), "model").description == "Sequential, 43 parameters"
