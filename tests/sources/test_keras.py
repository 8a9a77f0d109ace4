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
from tfdeploy_magic.convert.converter import FrozenGraph
from tfdeploy_magic.errors import ModelNotReady, NameNotFound, NotAModel, UserCodeError
from tfdeploy_magic.jobs import Report, silent
from tfdeploy_magic.sources import How, TracedModel, graphs, open_source

PACKAGES = ("keras", "tf_keras")


def trace(model: Any, **choices: Any) -> TracedModel:
    traced = open_source(model, "model", How(**choices)).model
    assert isinstance(traced, TracedModel)
    return traced


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
    traced = trace(model)
    saved = traced.save(tmp_path / "saved")
    assert saved.frozen
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

    traced = trace(models.make(kind))
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
    signature = trace(model).signature
    plain = by_hand.interpreter(by_hand.plain_file(model)).get_signature_list()
    names = {spec.name for spec in signature.inputs}, {spec.name for spec in signature.outputs}
    assert plain == {signature.name: {"inputs": sorted(names[0]), "outputs": sorted(names[1])}}


def test_inputs_stand_in_the_order_of_the_models_arguments() -> None:
    model = models.make(models.two_in_two_out)
    assert [spec.name for spec in trace(model).signature.inputs] == ["zebra", "ant"]
    assert [spec.name for spec in open_source(model, "model").inputs] == ["zebra", "ant"]


@pytest.mark.parametrize("kind", models.KINDS)
def test_a_traced_model_answers_samples_as_the_model_itself(kind: Any, tmp_path: Path) -> None:
    model = models.make(kind)
    traced = trace(model)
    inputs = some_inputs(traced.signature.inputs, 300)  # more than two batches
    samples = SampleSet(save_arrays(tmp_path, inputs), 300, "x")
    got = traced.predict(samples, Report(silent))
    for name, expected in by_name(traced, in_model_order(model, traced, inputs)).items():
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-5)
    assert traced.latency(samples, Report(silent)).runs >= 10


def test_a_batch_size_that_the_model_fixes_stays_fixed(tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input(batch_shape=(4, 3)), keras.layers.Dense(2)])
    traced = trace(model)
    assert traced.signature.inputs[0].shape == (4, 3)
    assert traced.save(tmp_path).signature.outputs[0].shape == (4, 2)


def test_the_batch_size_is_left_open() -> None:
    signature = trace(models.make(models.functional)).signature
    assert [spec.shape for spec in (*signature.inputs, *signature.outputs)] == [(None, 8, 8, 1), (None, 2)]


def test_freezing_takes_no_notice_of_later_training(tmp_path: Path) -> None:
    import tensorflow as tf

    model = models.make(models.sequential)
    traced = trace(model)
    x = some_inputs(traced.signature.inputs, 2)
    before, digest = np.asarray(model(next(iter(x.values())))), traced.sha256()
    traced.save(tmp_path)
    model.set_weights([weight + 1 for weight in model.get_weights()])
    got = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](**{k: tf.constant(v) for k, v in x.items()})
    np.testing.assert_allclose(next(iter(got.values())).numpy(), before, atol=1e-5)
    assert traced.sha256() != digest
    assert trace(model).sha256() == traced.sha256()


@pytest.mark.parametrize("subclass", [False, True])
def test_a_model_that_was_never_built_is_not_ready_and_the_cure_says_how(subclass: bool) -> None:
    import keras

    model = models.subclassed(called=False) if subclass else keras.Sequential([keras.layers.Dense(3)])
    for part in ("inputs", "model"):
        with pytest.raises(ModelNotReady, match=r"net is not built[^!]*Call it once on data: net\(x\[:1\]\)"):
            getattr(open_source(model, "net"), part)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_model_whose_weights_are_not_finite_is_not_ready_and_the_weight_is_named(broken: float) -> None:
    model = models.make(models.functional)
    model.layers[-1].bias.assign([0.0, broken])
    with pytest.raises(ModelNotReady, match=r"answer/bias[^!]*learning rate"):
        trace(model)


@pytest.mark.parametrize(
    ("thing", "found"),
    [
        (3, "found an int"),
        (None, "found None"),
        (np.zeros((5, 2)), r"found a numpy array float64\[5, 2\]"),
        (models.sequential, "found a function"),
    ],
)
def test_what_is_not_a_model_is_described(thing: object, found: str) -> None:
    assert not sources.is_model(thing)
    with pytest.raises(NotAModel, match=f"thing is not a model: {found}[^!]*a Keras model"):
        open_source(thing, "thing")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_models_class_or_layer_is_not_a_model(package: str) -> None:
    import tensorflow as tf

    keras = models.package_of(package)

    class Own(keras.layers.Layer):
        @tf.function
        def call(self, x: Any) -> Any:
            return x

    assert sources.is_model(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    for thing in (keras.Model, keras.layers.Dense(2), Own(), keras.optimizers.Adam(), keras.metrics.Mean()):
        assert not sources.is_model(thing)


def test_an_unknown_signature_is_an_error_that_says_which_there_is() -> None:
    model = models.make(models.sequential)
    assert trace(model, signature="serving_default").signature.name == "serving_default"
    with pytest.raises(NameNotFound, match=r"no signature 'embed'[^!]*serving_default[^!]*--signature"):
        trace(model, signature="embed")


def test_a_call_that_cannot_run_as_a_graph_is_the_persons_own_error() -> None:
    import keras

    class Eager(keras.Model):
        def call(self, x: Any) -> Any:
            return x * float(np.asarray(x)[0, 0])

    model = Eager()
    model(np.ones((1, 4), "float32"))
    with pytest.raises(UserCodeError, match="model cannot be traced") as caught:
        trace(model)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("package", PACKAGES)
def test_a_model_with_all_biases_at_zero_looks_untrained(package: str) -> None:
    keras = models.package_of(package)
    fresh = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    (finding,) = trace(fresh).findings
    assert (finding.level, finding.code) == ("error", "untrained")
    assert trace(models.weighed(fresh)).findings == ()
    unbiased = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, use_bias=False)])
    assert trace(unbiased).findings == ()


def test_a_model_is_described_by_kind_and_size() -> None:
    assert trace(models.make(models.sequential)).description == "Sequential, 43 parameters"


def test_layers_are_known_by_the_name_and_kind_that_a_person_gave_them() -> None:
    assert trace(models.make(models.functional)).layers["answer"] == "answer (Dense)"


# Names of inputs and outputs


@pytest.mark.parametrize("package", PACKAGES)
def test_a_subclassed_model_that_takes_and_gives_dicts_is_asked_by_their_keys(package: str) -> None:
    keras = models.package_of(package)

    class Pair(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, given: Any) -> Any:
            return {"z": {"y": self.dense(given["zebra"]), "b": given["ant"]}, "a": given["zebra"] - given["ant"]}

    model = Pair()
    zebra, ant = models.normal(3), models.normal(3)[::-1].copy()
    answer = model({"zebra": zebra, "ant": ant})
    traced = trace(model)
    assert [spec.name for spec in traced.signature.inputs] == ["ant", "zebra"]
    got = dict(zip((spec.name for spec in traced.signature.outputs), traced.call([ant, zebra]), strict=True))
    assert got.keys() == {"a", "z/b", "z/y"}
    np.testing.assert_array_equal(got["a"], zebra - ant)
    np.testing.assert_array_equal(got["z/b"], ant)
    np.testing.assert_allclose(got["z/y"], answer["z"]["y"], atol=1e-6)


def test_several_arguments_of_call_are_refused_where_keras_forgets_them_and_kept_where_it_does_not() -> None:
    import keras
    import tf_keras

    def difference(package: Any) -> Any:
        class Difference(package.Model):
            def call(self, zebra: Any, ant: Any, training: Any) -> Any:
                return zebra - 2 * ant

        model = Difference()
        model(np.zeros((1, 3), "float32"), np.zeros((1, 3), "float32"), training=False)
        return model

    with pytest.raises(ModelNotReady, match=r"also takes ant, [^!]*as one dict"):
        trace(difference(keras))
    (answer,) = trace(difference(tf_keras)).call([np.ones((1, 3), "float32"), np.full((1, 3), 3, "float32")])
    np.testing.assert_array_equal(answer, [[-5, -5, -5]])


@pytest.mark.parametrize("package", PACKAGES)
def test_an_output_that_is_none_is_left_out(package: str) -> None:
    keras = models.package_of(package)

    class Some(keras.Model):
        def call(self, x: Any) -> Any:
            return {"doubled": x * 2, "attention": None}

    model = Some()
    model(np.zeros((1, 3), "float32"))
    assert [spec.name for spec in trace(model).signature.outputs] == ["doubled"]


# Half precision and loops


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("package", PACKAGES)
def test_mixed_precision_is_traced_in_float32_and_the_model_is_left_as_it_was(
    package: str, policy: str, tmp_path: Path
) -> None:
    keras = models.package_of(package)
    model, rewritten = models.batch_normalized(keras, policy), models.batch_normalized(keras)
    rewritten.set_weights(model.get_weights())
    x = models.normal(6, 6, 2)
    before = np.asarray(model(x, training=False), "float32")
    traced = trace(model)
    saved = traced.save(tmp_path)
    content = FrozenGraph.open(saved.path, saved.signature).convert()
    (got,) = by_hand.answers(content, {traced.signature.inputs[0].name: x}).values()
    wanted = np.asarray(rewritten(x, training=False))
    assert np.max(np.abs(got - wanted)) < 1e-5 * np.max(np.abs(wanted))
    assert traced.precision == policy
    assert [finding.code for finding in traced.findings] == ["mixed-precision"]
    after = model(x, training=False)
    assert after.dtype == policy.removeprefix("mixed_")
    np.testing.assert_array_equal(np.asarray(after, "float32"), before)
    policies = [getattr(layer, "dtype_policy", None) for layer in model.layers]
    assert {getattr(each, "name", None) for each in policies} == {policy}
    # The original itself is off by what half precision costs, so the test above can tell the two apart.
    assert np.max(np.abs(before - wanted)) > 1e-4 * np.max(np.abs(wanted))


def test_a_mixed_precision_model_is_left_as_it_was_when_its_call_raises() -> None:
    import keras

    class Eager(keras.Model):
        def __init__(self) -> None:
            super().__init__(dtype="mixed_float16")
            self.dense = keras.layers.Dense(2, dtype="mixed_float16")

        def call(self, x: Any) -> Any:
            return self.dense(x) * float(np.asarray(x)[0, 0])

    model = Eager()
    model(np.ones((1, 4), "float32"))
    with pytest.raises(UserCodeError):
        trace(model)
    assert {model.dtype_policy.name, model.dense.dtype_policy.name} == {"mixed_float16"}


@pytest.mark.parametrize(
    ("package", "name"),
    [*(("keras", name) for name in models.RECURRENT), ("tf_keras", "bidirectional"), ("tf_keras", "convlstm")],
)
def test_a_recurrent_model_says_whether_it_can_be_unrolled_and_is_rolled_up_again(package: str, name: str) -> None:
    model = models.recurrent(models.package_of(package), name)
    traced = trace(model)
    assert traced.unrollable == ((package, name) != ("tf_keras", "convlstm"))
    if not traced.unrollable:
        return
    unrolled = trace(model, unroll=True)
    assert [finding.code for finding in unrolled.findings] == ["unrolled"]
    assert [loops(each) for each in (traced, unrolled, trace(model))] == [True, False, True]


def loops(traced: TracedModel) -> bool:
    return any(node.op in ("While", "StatelessWhile") for node in graphs.nodes(traced.graph_def))


def test_a_loop_over_an_unknown_number_of_steps_cannot_be_unrolled() -> None:
    import keras

    model = keras.Sequential([keras.Input((None, 3)), keras.layers.LSTM(4)])
    assert not trace(model).unrollable
