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
from tfdeploy_magic.errors import ModelNotReady
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
