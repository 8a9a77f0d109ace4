from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluate import by_hand
from tests.sources import models
from tfdeploy_magic import sources
from tfdeploy_magic.artifacts.samples import SampleSet, save_arrays
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.convert.converter import open_graph
from tfdeploy_magic.errors import DataError, ModelNotReady, UserCodeError
from tfdeploy_magic.evaluate.session import LiteSession
from tfdeploy_magic.jobs import Report, Worker, silent
from tfdeploy_magic.sources import How, StoredModel, TracedModel, graphs, open_source, traced


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One process for the files of all tests here; a person's has one for each."""
    with Worker(deadline=120) as one:
        yield one


def lite_bytes(model: TracedModel | StoredModel, folder: Path, *, single_sample: bool = False) -> bytes:
    """Convert what a source writes, as the job does."""
    saved = model.save(folder / "saved", single_sample=single_sample)
    return open_graph(saved.path, saved.signature, frozen=saved.frozen, tags=saved.tags).convert()


def assert_as_near_as(share: float, got: Arrays, wanted: Arrays) -> None:
    """Check that each output is within ``share`` of its scale, and texts and integers equal."""
    assert got.keys() == wanted.keys()
    for name, answers in wanted.items():
        reference = np.asarray(answers)
        assert got[name].shape == reference.shape
        if reference.dtype.kind == "f":
            assert np.ptp(reference) > 0.1
            assert np.max(np.abs(got[name] - reference)) < share * np.max(np.abs(reference))
        else:
            np.testing.assert_array_equal(got[name], reference)


@pytest.mark.parametrize("build", models.BUILDS, ids=lambda build: build.__name__)
def test_the_float_file_of_every_kind_answers_as_its_original(
    build: models.Build, tmp_path: Path, worker: Worker
) -> None:
    case = build(tmp_path)
    source = open_source(case.model, "model", case.how, worker)
    assert {spec.name for spec in source.inputs} == case.inputs.keys()
    samples = SampleSet(save_arrays(tmp_path / "samples", case.inputs), models.COUNT, "samples")
    assert_as_near_as(1e-5, source.model.predict(samples, Report(silent)), case.answers)
    content = lite_bytes(source.model, tmp_path, single_sample=case.single_sample)
    assert_as_near_as(1e-5, by_hand.answers(content, case.inputs), case.answers)
    assert list(by_hand.interpreter(content).get_signature_list()) == [source.model.signature.name]


BESIDE = (
    models.BUILDS[1],
    models.tf_module_method,
    models.tf_function_of_a_nested_dict,
    models.concrete_function_of_a_keras_3_model,
    models.loaded_saved_model,
    models.any_rank,
)


@pytest.mark.parametrize("build", BESIDE, ids=lambda build: build.__name__)
def test_a_large_model_keeps_its_variables_beside_it_and_answers_the_same(
    build: models.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    case = build(tmp_path)
    model = open_source(case.model, "model", case.how).model
    frozen = model.save(tmp_path / "frozen")
    monkeypatch.setattr(traced, "FREEZE_LIMIT", -1)
    saved = model.save(tmp_path / "saved")
    assert (frozen.frozen, saved.frozen) == (True, False)
    assert saved.size == sum(path.stat().st_size for path in saved.path.rglob("*") if path.is_file())
    content = open_graph(saved.path, saved.signature, frozen=saved.frozen, tags=saved.tags).convert()
    assert_as_near_as(1e-5, by_hand.answers(content, case.inputs), case.answers)
    loaded = tf.saved_model.load(str(saved.path)).signatures[model.signature.name]
    given = loaded(**{name: tf.constant(array) for name, array in case.inputs.items()})
    assert_as_near_as(1e-5, {name: output.numpy() for name, output in given.items()}, case.answers)
    assert list(by_hand.interpreter(content).get_signature_list()) == [model.signature.name]


def test_a_loop_in_a_model_too_large_to_freeze_is_refused_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    monkeypatch.setattr(traced, "PROTOBUF_LIMIT", 0)
    model = open_source(models.recurrent(keras, "lstm"), "net").model
    with pytest.raises(ModelNotReady, match=r"net is too large to be frozen with its loop[^!]*unroll=True"):
        model.save(tmp_path, single_sample=True)


def multiplied(kernel: Any) -> Any:
    """A function that closes over a tensor too large for TensorFlow to copy it into the graph."""
    import tensorflow as tf

    constant = tf.constant(kernel)
    return tf.function(lambda x: x @ constant, input_signature=[tf.TensorSpec((None, 16), name="x")])


KERNEL = np.random.default_rng(0).normal(size=(16, 32)).astype("float32")


def test_a_tensor_that_a_function_closes_over_counts_as_weights_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traced, "FREEZE_LIMIT", KERNEL.nbytes - 1)
    model = open_source(multiplied(KERNEL), "net").model
    saved = model.save(tmp_path / "saved")
    assert not saved.frozen
    content = open_graph(saved.path, saved.signature, frozen=False, tags=saved.tags).convert()
    x = models.normal(16)
    assert_as_near_as(1e-5, by_hand.answers(content, {"x": x}), {"output_0": x @ KERNEL})
    monkeypatch.setattr(traced, "PROTOBUF_LIMIT", KERNEL.nbytes - 1)
    with pytest.raises(ModelNotReady, match=r"net closes over tensors[^!]*tf\.Variable"):
        model.save(tmp_path / "refused")


def test_a_table_that_nobody_owns_is_refused_with_the_cure(tmp_path: Path) -> None:
    import tensorflow as tf

    codes = models.lookup().codes
    spec = tf.TensorSpec([None], tf.string, name="words")
    function = tf.function(lambda words: codes.lookup(words), input_signature=[spec])
    with pytest.raises(ModelNotReady, match=r"net uses a table [^!]*attribute of a tf\.Module"):
        open_source(function, "net").model.save(tmp_path)


@pytest.mark.slow
def test_a_constant_of_more_than_two_gigabytes_is_written_and_answers(tmp_path: Path) -> None:
    import tensorflow as tf

    class Large(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = tf.Variable(tf.random.stateless_normal((8600, 1 << 16), (1, 2)))

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32, name="rows")])
        def __call__(self, rows: Any) -> Any:
            return tf.reduce_sum(tf.gather(self.table, rows), axis=-1)

    model = Large()
    saved = open_source(model, "large").model.save(tmp_path / "saved")
    assert not saved.frozen
    assert saved.size > 1 << 31
    loaded = tf.saved_model.load(str(saved.path)).signatures["serving_default"]
    rows = tf.constant([0, 8599])
    np.testing.assert_array_equal(next(iter(loaded(rows=rows).values())), model(rows))


def test_a_model_that_changes_its_own_variables_is_not_frozen_and_its_file_goes_on_from_where_it_was(
    tmp_path: Path,
) -> None:
    saved = open_source(models.counter(), "counter").model.save(tmp_path)
    assert not saved.frozen
    content = open_graph(saved.path, saved.signature, frozen=False, tags=saved.tags).convert()
    got = by_hand.answers(content, {"x": np.zeros((3, 4), "float32")})["output_0"]
    np.testing.assert_array_equal(got[:, 0], [11, 12, 13])


def test_the_graph_of_a_signature_holds_only_what_computes_it(tmp_path: Path) -> None:
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    model = models.module()
    tf.saved_model.save(model, str(tmp_path), signatures=models.signatures_of(model))
    meta = saved_model_pb2.SavedModel.FromString((tmp_path / "saved_model.pb").read_bytes()).meta_graphs[0]
    (output,) = meta.signature_def["serving_default"].outputs.values()
    whole = {node.op for node in graphs.nodes(meta.graph_def)}
    part = {node.op for node in graphs.nodes(graphs.reachable(meta.graph_def, [output.name]))}
    assert {"MatMul", "ReadVariableOp"} <= part < whole
    assert "SaveV2" in whole - part


# Answers


class Shapes:
    """Functions whose answer to a batch is not one row a sample, and what they answer a single sample."""

    @staticmethod
    def total(x: Any) -> Any:
        import tensorflow as tf

        return tf.reduce_sum(x)

    @staticmethod
    def always_alike(x: Any) -> Any:
        import tensorflow as tf

        return tf.reshape(tf.range(12.0), (4, 3)) * tf.reduce_mean(x)


@pytest.mark.parametrize("function", [Shapes.total, Shapes.always_alike], ids=lambda each: str(each.__name__))
@pytest.mark.parametrize("count", [1, 5])
def test_a_model_without_rows_is_asked_one_sample_at_a_time_as_its_file_is(
    function: Any, count: int, tmp_path: Path
) -> None:
    import tensorflow as tf

    model = open_source(tf.function(function, input_signature=[tf.TensorSpec((None, 2), name="x")]), "net").model
    x = np.random.default_rng(0).normal(size=(count, 2)).astype("float32")
    samples = SampleSet(save_arrays(tmp_path / "samples", {"x": x}), count, "samples")
    got = model.predict(samples, Report(silent))["output_0"]
    np.testing.assert_allclose(got, [function(x[n : n + 1]) for n in range(count)], rtol=1e-5)
    (tmp_path / "m.tflite").write_bytes(lite_bytes(model, tmp_path))
    answers = LiteSession(tmp_path / "m.tflite").predict({"x": x}, Report(silent))["output_0"]
    np.testing.assert_allclose(answers, got, rtol=1e-5)


def test_an_answer_that_is_not_a_row_for_each_of_a_fixed_number_of_samples_is_refused_by_name(tmp_path: Path) -> None:
    import tensorflow as tf

    model = open_source(tf.function(Shapes.total, input_signature=[tf.TensorSpec((3, 2), name="x")]), "net").model
    samples = SampleSet(save_arrays(tmp_path, {"x": np.ones((4, 2), "float32")}), 4, "samples")
    with pytest.raises(DataError, match=r"output output_0 cannot be compared[^!]*a row for each sample"):
        model.predict(samples, Report(silent))


def test_a_model_that_raises_when_it_is_asked_is_the_persons_own_error(tmp_path: Path) -> None:
    import keras

    words = keras.Input((2,), dtype="int32", name="words")
    model = open_source(keras.Model(words, keras.layers.Embedding(10, 4)(words)), "net").model
    samples = SampleSet(save_arrays(tmp_path, {"words": np.array([[1, 99]], "int32")}), 1, "samples")
    with pytest.raises(UserCodeError, match=r"net raised while it was asked[^!]*Its own traceback") as caught:
        model.predict(samples, Report(silent))
    assert type(caught.value.__cause__).__name__ == "InvalidArgumentError"


def test_a_model_that_draws_its_answers_is_told_from_one_that_repeats_them() -> None:
    import keras
    import tensorflow as tf

    spec = [tf.TensorSpec((None, 2), name="x")]
    drawn = tf.function(lambda x: x + tf.random.normal([2], seed=1), input_signature=spec)
    fixed = tf.function(lambda x: x + tf.random.stateless_normal([2], (1, 2)), input_signature=spec)
    assert [finding.code for finding in open_source(drawn, "net").model.findings] == ["random"]
    assert open_source(fixed, "net").model.findings == ()
    dropped = models.weighed(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2), keras.layers.Dropout(0.5)]))
    assert open_source(dropped, "net").model.findings == ()


# Digests


def digest(value: Any, **choices: Any) -> str:
    return open_source(value, "model", How(**choices)).sha256


TWICE = (
    *models.BUILDS[:3],
    models.BUILDS[4],
    models.tf_module,
    models.tf_function,
    models.concrete_function_of_a_keras_3_model,
    models.table_of_words,
    models.loaded_saved_model,
    models.frozen_graph,
)


@pytest.mark.parametrize("build", TWICE, ids=lambda build: build.__name__)
def test_a_model_has_one_digest_however_often_it_is_opened_and_converted(build: models.Build, tmp_path: Path) -> None:
    case = build(tmp_path)
    source = open_source(case.model, "model", case.how)
    before = source.sha256
    if not isinstance(case.model, Path):
        source.model.save(tmp_path / "saved")
        source.model.call(list(case.inputs.values()))
    assert open_source(case.model, "model", case.how).sha256 == before
    assert len(bytes.fromhex(before)) == 32


def test_training_changes_the_digest() -> None:
    for kind in (models.sequential, models.subclassed):
        model = models.make(kind)
        model.compile("sgd", "mse")
        before = digest(model)
        model.fit(np.ones((8, 4), "float32"), np.ones((8, 3), "float32"), verbose=0)
        assert digest(model) != before
    module = models.module()
    before = digest(module)
    module.bias.assign_add([0, 0, 1e-6])
    assert digest(module) != before


def test_another_body_of_call_changes_the_digest_though_every_weight_is_the_same() -> None:
    import keras
    import tf_keras

    def scaled(package: Any, factor: float) -> Any:
        class Scaled(package.Model):
            def call(self, x: Any) -> Any:
                return x * factor

        model = Scaled(name="scaled")
        model(np.zeros((1, 4), "float32"))
        return model

    def activated(package: Any, factor: float) -> Any:
        def activation(x: Any) -> Any:
            return x * factor

        dense = package.layers.Dense(2, activation=activation, kernel_initializer="ones", name="dense")
        return package.Sequential([package.Input((3,), name="x"), dense], name="net")

    def lambdas(package: Any, factor: float) -> Any:
        layer = package.layers.Lambda(lambda x: x * factor, name="lambda")
        return package.Sequential([package.Input((3,), name="x"), layer], name="net")

    for package in (keras, tf_keras):
        for make in (scaled, activated, lambdas):
            assert digest(make(package, 2.0)) != digest(make(package, 3.0))
            assert digest(make(package, 2.0)) == digest(make(package, 2.0))


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
def test_the_words_a_lookup_layer_has_adapted_to_change_the_digest(package: str) -> None:
    keras = models.package_of(package)

    def adapted(words: list[str]) -> Any:
        layer = keras.layers.StringLookup(name="words")
        layer.adapt(words)
        return keras.Sequential([keras.Input((1,), dtype="string", name="x"), layer], name="net")

    assert digest(adapted(["ant", "bee"])) == digest(adapted(["ant", "bee"]))
    assert digest(adapted(["ant", "bee"])) != digest(adapted(["ant", "cat"]))


def test_a_tensor_that_a_function_or_a_call_closes_over_changes_the_digest() -> None:
    import keras
    import tensorflow as tf

    def placed(positions: Any) -> Any:
        class Placed(keras.Model):
            def __init__(self) -> None:
                super().__init__(name="placed")
                self.positions = tf.constant(positions)

            def call(self, x: Any) -> Any:
                return x @ self.positions

        model = Placed()
        model(np.zeros((1, 16), "float32"))
        return model

    def named(words: list[str]) -> Any:
        names = tf.constant(words)
        spec = tf.TensorSpec([None], tf.int32, name="x")
        return tf.function(lambda x: tf.gather(names, x), input_signature=[spec])

    for make in (placed, multiplied):
        assert digest(make(KERNEL)) == digest(make(KERNEL.copy()))
        assert digest(make(KERNEL)) != digest(make(KERNEL + 1))
    words = [f"word {n}" for n in range(200)]
    assert digest(named(words)) == digest(named(list(words)))
    assert digest(named(words)) != digest(named([*words[:-1], "other"]))


@pytest.mark.parametrize("package_name", ["keras", "tf_keras"])
def test_an_activation_of_the_persons_own_is_not_taken_for_the_one_of_keras_it_is_named_after(
    package_name: str,
) -> None:
    package = models.package_of(package_name)

    def relu(x: Any) -> Any:
        return x * 3.0

    def dense(activation: Any) -> Any:
        layer = package.layers.Dense(2, activation=activation, kernel_initializer="ones")
        return package.Sequential([package.Input((3,), name="x"), layer], name="net")

    def lstm(activation: Any) -> Any:
        layer = package.layers.LSTM(2, recurrent_activation=activation, kernel_initializer="ones", seed=1)
        return weighed_alike(package.Sequential([package.Input((3, 4), name="x"), layer], name="net"))

    for make in (dense, lstm):
        assert digest(make(relu)) != digest(make("relu"))
        assert sources.keras.fingerprint(make(relu), How()) is None
        assert sources.keras.fingerprint(make("gelu"), How()) is not None


def weighed_alike(model: Any) -> Any:
    model.set_weights([np.ones(weight.shape) for weight in model.get_weights()])
    return model


@pytest.mark.parametrize("package_name", ["keras", "tf_keras"])
def test_how_often_words_came_changes_the_digest(package_name: str) -> None:
    package = models.package_of(package_name)

    def adapted(texts: list[str]) -> Any:
        layer = package.layers.TextVectorization(output_mode="tf_idf", name="words")
        layer.adapt(texts)
        return package.Sequential([package.Input((1,), dtype="string", name="x"), layer], name="net")

    some, others = adapted(["ant bee", "ant cat", "ant"]), adapted(["ant bee", "ant cat", "ant", "ant"])
    assert sources.keras.fingerprint(some, How()) is None
    assert digest(some) != digest(others)


def test_the_words_in_a_modules_table_change_the_digest() -> None:
    assert digest(models.lookup(("ant", "bee"))) == digest(models.lookup(("ant", "bee")))
    assert digest(models.lookup(("ant", "bee"))) != digest(models.lookup(("ant", "cat")))


def test_the_choices_made_about_a_model_change_the_digest(tmp_path: Path) -> None:
    import keras

    module = models.module()
    assert len({digest(module, signature=name) for name in ("serving_default", "weigh", "decode")}) == 3
    recurrent = models.recurrent(keras, "lstm")
    assert digest(recurrent) != digest(recurrent, unroll=True)
    open_size = keras.Sequential([keras.Input((None, 3)), keras.layers.Dense(2)])
    assert len({digest(open_size, input_spec=spec) for spec in (None, "?x4x3", "1x4x3")}) == 3
    graph = models.frozen_graph(tmp_path).model
    assert len({digest(graph), digest(graph, outputs=("Relu",)), digest(graph, inputs=("hidden",))}) == 3


def test_the_digest_of_a_model_of_keras_own_layers_is_found_without_tracing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras
    import tf_keras

    monkeypatch.setattr(sources.keras, "trace", None)
    for package in (keras, tf_keras):
        assert len(digest(models.dictionaries(package))) == 64
        assert len(digest(models.recurrent(package, "bidirectional"))) == 64
