from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.sources import models
from tfdeploy_magic import sources
from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK
from tfdeploy_magic.errors import InputError, ModelNotReady, NameNotFound, NotAModel, UserCodeError
from tfdeploy_magic.sources import How, TracedModel, open_source


def trace(model: Any, **choices: Any) -> TracedModel:
    traced = open_source(model, "model", How(**choices)).model
    assert isinstance(traced, TracedModel)
    return traced


def ask(traced: TracedModel, **arrays: Any) -> dict[str, Any]:
    """Ask by name, whatever the order."""
    answers = traced.call([arrays[spec.name] for spec in traced.signature.inputs])
    return dict(zip((spec.name for spec in traced.signature.outputs), answers, strict=True))


# What is one of these


def test_functions_modules_and_loaded_saved_models_are_models(tmp_path: Path) -> None:
    import tensorflow as tf

    module = models.module()
    tf.saved_model.save(module, str(tmp_path))
    for value in (module, module.weigh, module.weigh.get_concrete_function(), tf.saved_model.load(str(tmp_path))):
        assert sources.is_model(value)


def test_what_merely_belongs_to_tensorflow_is_not_a_model() -> None:
    import tensorflow as tf

    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [1]), -1)
    things = [
        tf.constant(1.0),
        tf.Variable(1.0),
        tf.data.Dataset.range(3),
        tf.random.Generator.from_seed(1),
        tf.train.Checkpoint(module=models.module()),
        tf.distribute.get_strategy(),
        tf.Module(),
        type(models.module()),
        table,
        len,
        lambda x: x,
    ]
    assert [thing for thing in things if sources.is_model(thing)] == []


def test_looking_for_functions_runs_none_of_the_persons_properties() -> None:
    import tensorflow as tf

    class Careful(tf.Module):
        @property
        def expensive(self) -> Any:
            raise AssertionError("ran")

        @tf.function(input_signature=[tf.TensorSpec((None, 2), name="x")])
        def embed(self, x: Any) -> Any:
            return x * 2

    assert sources.is_model(Careful())
    assert trace(Careful()).signature.name == "embed"


# Which function


def test_a_module_is_called_unless_a_signature_is_chosen() -> None:
    model = models.module()
    assert trace(model).signature.name == "serving_default"
    chosen = trace(model, signature="decode")
    assert chosen.signature.name == "decode"
    assert [str(spec) for spec in chosen.signature.inputs] == ["y: float32[?, 3]"]
    (note,) = chosen.findings
    assert (note.level, note.code) == ("note", "other-signatures")
    assert "serving_default, weigh" in note.message
    assert "--signature serving_default" in note.cure


def test_several_signatures_without_a_default_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    import tensorflow as tf

    model = models.module()
    tf.saved_model.save(model, str(tmp_path), signatures={"weigh": model.weigh, "decode": model.decode})
    loaded = tf.saved_model.load(str(tmp_path))
    with pytest.raises(NameNotFound, match=r"model has several signatures: found [^!]*weigh[^!]*--signature"):
        trace(loaded)
    assert trace(loaded, signature="decode").signature.name == "decode"


def test_a_signature_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(NameNotFound, match=r"no signature 'embed': found serving_default, decode, weigh"):
        trace(models.module(), signature="embed")
    with pytest.raises(NameNotFound, match=r"no signature 'embed': found one function[^!]*Leave --signature out"):
        trace(models.module().weigh, signature="embed")


# Names and values


def test_arguments_are_told_apart_by_name_wherever_they_stand(tmp_path: Path) -> None:
    import tensorflow as tf

    model = models.module()
    tf.saved_model.save(model, str(tmp_path), signatures={"weigh": model.weigh})
    zebra, ant = models.normal(4), models.normal(4)[::-1].copy()
    # TensorFlow sorts the arguments of a loaded signature by name; the function itself keeps their order.
    for value, order in (
        (model, ["zebra", "ant"]),
        (model.weigh, ["zebra", "ant"]),
        (model.weigh.get_concrete_function(), ["zebra", "ant"]),
        (tf.saved_model.load(str(tmp_path)).signatures["weigh"], ["ant", "zebra"]),
    ):
        traced = trace(value, signature="weigh" if value is model else None)
        assert [spec.name for spec in traced.signature.inputs] == order
        answers = ask(traced, zebra=zebra, ant=ant)
        np.testing.assert_allclose(answers["z"], 3 * zebra - ant, rtol=1e-6)
        np.testing.assert_allclose(answers["a"], zebra + 10 * ant, rtol=1e-6)


def test_outputs_are_named_by_their_keys_and_places_in_what_the_function_returns() -> None:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, 2), name="x")])
    def nested(x: Any) -> Any:
        return {"b": x, "a": [x + 1, (x + 2, None)], "c": {"e": x + 3, "d": None}}

    x = models.normal(2)
    answers = ask(trace(nested), x=x)
    assert list(answers) == ["a_0", "a_1_0", "b", "c/e"]
    for name, more in (("a_0", 1), ("a_1_0", 2), ("b", 0), ("c/e", 3)):
        np.testing.assert_array_equal(answers[name], x + more)


def test_arguments_that_are_no_tensors_keep_the_values_they_were_traced_with() -> None:
    import tensorflow as tf

    @tf.function
    def scaled(x: Any, factor: float = 2.0, negative: bool = False) -> Any:
        return -x * factor if negative else x * factor

    x = models.normal(3)
    concrete = scaled.get_concrete_function(tf.TensorSpec((None, 3), name="x"), factor=5.0, negative=True)
    np.testing.assert_array_equal(ask(trace(concrete), x=x)["output_0"], -5 * x)
    np.testing.assert_array_equal(ask(trace(scaled, input_spec="?x3"), x=x)["output_0"], 2 * x)


def test_integers_texts_and_truth_values_go_in_and_come_out() -> None:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "s"), tf.TensorSpec((None,), tf.bool, "b")])
    def swap(s: Any, b: Any) -> Any:
        return {"s": tf.where(b, s, "no"), "b": tf.equal(s, "ant")}

    answers = ask(trace(swap), s=np.array([b"ant", b"bee"]), b=np.array([True, False]))
    np.testing.assert_array_equal(answers["s"], np.array([b"ant", b"no"]))
    np.testing.assert_array_equal(answers["b"], [True, False])
    assert answers["s"].dtype.kind == "S"


# Shapes


def test_a_function_without_an_input_signature_needs_to_be_told_its_shapes() -> None:
    import tensorflow as tf

    @tf.function
    def difference(zebra: Any, ant: Any) -> Any:
        return zebra - ant

    source = open_source(difference, "difference")
    for part in ("inputs", "model"):
        with pytest.raises(ModelNotReady, match=r"difference does not say what it takes[^!]*--input-spec \?x28x28x1"):
            getattr(source, part)
    for words in ("?x3,?x3", "ant=?x3,zebra=?x3"):
        traced = trace(difference, input_spec=words)
        assert [str(spec) for spec in traced.signature.inputs] == ["zebra: float32[?, 3]", "ant: float32[?, 3]"]
        np.testing.assert_array_equal(
            ask(traced, zebra=models.normal(3) * 3, ant=models.normal(3))["output_0"],
            models.normal(3) * 3 - models.normal(3),
        )
    assert trace(difference, input_spec="4x3:int32,4x3:int32").signature.inputs[1].dtype == "int32"


@pytest.mark.parametrize("words", ["?x3", "?x3,?x3,?x3", "zebra=?x3,bee=?x3", "?x3,?x4", "?x3:int33,?x3"])
def test_shapes_that_a_function_cannot_take_are_the_persons_own_error(words: str) -> None:
    import tensorflow as tf

    @tf.function
    def difference(zebra: Any, ant: Any) -> Any:
        return zebra - ant

    with pytest.raises(UserCodeError, match=r"model cannot be traced[^!]*a function that takes") as caught:
        trace(difference, input_spec=words)
    assert caught.value.__cause__ is not None


def test_an_open_shape_can_be_fixed_and_a_fixed_one_not_changed() -> None:
    model = models.module()
    assert trace(model, signature="weigh", input_spec="ant=1x4").signature.inputs[1].shape == (1, 4)
    fixed = trace(model, input_spec="5x4")
    assert (fixed.signature.inputs[0].shape, fixed.signature.outputs[0].shape) == ((5, 4), (5, 3))
    with pytest.raises(InputError, match=r"--input-spec \?x5 does not go with model: found x: float32\[\?, 4\]"):
        trace(model, input_spec="?x5")


def test_a_shape_of_unknown_rank_stays_unknown_until_it_is_fixed(tmp_path: Path) -> None:
    double = models.any_rank(tmp_path).model
    assert trace(double).signature.inputs[0].shape == UNKNOWN_RANK
    assert trace(double, input_spec="?x2x2").signature.outputs[0].shape == (None, 2, 2)


# What cannot be converted


def test_a_function_without_inputs_or_outputs_is_not_a_model() -> None:
    import tensorflow as tf

    @tf.function(input_signature=[])
    def nothing_in() -> Any:
        return tf.constant([1.0])

    @tf.function(input_signature=[tf.TensorSpec((None, 2))])
    def nothing_out(x: Any) -> Any:
        return None

    with pytest.raises(NotAModel, match="model is not a model: found no input tensors"):
        trace(nothing_in)
    with pytest.raises(NotAModel, match="model cannot be converted: found no outputs"):
        trace(nothing_out)


def test_ragged_and_sparse_tensors_are_refused_by_name() -> None:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="texts")])
    def split(texts: Any) -> Any:
        return {"count": tf.strings.length(texts), "words": tf.strings.split(texts)}

    @tf.function(input_signature=[tf.TensorSpec((None, 2))])
    def sparse(x: Any) -> Any:
        return tf.sparse.from_dense(x)

    @tf.function(input_signature=[tf.RaggedTensorSpec((None, None))])
    def ragged_in(x: Any) -> Any:
        return x.to_tensor()

    with pytest.raises(NotAModel, match=r"found a RaggedTensor among its outputs[^!]*\.to_tensor\(\)"):
        trace(split)
    with pytest.raises(NotAModel, match=r"found a SparseTensor among its outputs"):
        trace(sparse)
    with pytest.raises(NotAModel, match=r"found no input tensors"):
        trace(ragged_in)


def test_a_function_that_raises_while_it_is_traced_is_the_persons_own_error() -> None:
    import tensorflow as tf

    @tf.function
    def broken(x: Any) -> Any:
        raise KeyError("weights")

    with pytest.raises(UserCodeError, match=r"model cannot be traced: found KeyError") as caught:
        trace(broken, input_spec="?x3")
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_concrete_function_whose_variables_are_gone_is_refused(tmp_path: Path) -> None:
    concrete = models.concrete_function_of_a_keras_3_model(tmp_path).model  # the case held the model
    gc.collect()
    with pytest.raises(UserCodeError, match="variables which have been deleted"):
        trace(concrete)


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    model = models.module()
    model.bias.assign([1.0, np.nan, 0.0])
    with pytest.raises(ModelNotReady, match=r"NaN or infinity in bias"):
        trace(model)


def test_it_is_described_by_kind_and_size(tmp_path: Path) -> None:
    import tensorflow as tf

    model = models.module()
    tf.saved_model.save(model, str(tmp_path), signatures={"decode": model.decode})
    loaded = tf.saved_model.load(str(tmp_path))
    assert trace(model).description == "Scales, 15 parameters"
    assert trace(model.decode).description == "tf.function, 15 parameters"
    assert trace(model.decode.get_concrete_function()).description == "concrete function, 15 parameters"
    assert trace(loaded, signature="decode").description == "SavedModel, 15 parameters"
