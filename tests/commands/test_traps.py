"""What breaks, or quietly answers wrong, when one converts it by hand: each by its name, from the model to the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluate import by_hand
from tests.jobs.processes import run_python
from tests.sources import models
from tfdeploy_magic import tflite_convert
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.commands.lite_model import LiteModel
from tfdeploy_magic.errors import ConversionError, InputError, NotAModel, TfdeployError
from tfdeploy_magic.sources import traced

COUNT = 40


def rows(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(COUNT, *shape)).astype("float32")


def notes(lite: LiteModel) -> list[str]:
    return [finding.code for finding in lite.evidence.findings if finding.level == "note"]


def assert_answers(lite: LiteModel, inputs: Arrays, wanted: Arrays, share: float = 1e-5) -> None:
    """Check the file in LiteRT's own interpreter, each output within ``share`` of its scale."""
    got = by_hand.answers(lite.path.read_bytes(), inputs)
    assert got.keys() == wanted.keys()
    for name, answers in wanted.items():
        reference = np.asarray(answers)
        if reference.dtype.kind == "f":
            assert np.ptp(reference) > 0.1
            assert np.max(np.abs(got[name] - reference)) < share * np.max(np.abs(reference))
        else:
            np.testing.assert_array_equal(got[name], reference)


def only(names: Any) -> str:
    (name,) = names
    return str(getattr(name, "name", name))


# Weights that get lost


@pytest.mark.parametrize("loaded", [False, True])
def test_tf_saved_model_save_of_a_keras_3_model(tmp_path: Path, loaded: bool) -> None:
    import keras
    import tensorflow as tf

    model = models.batch_normalized(keras)
    tf.saved_model.save(model, str(tmp_path))
    source = tf.saved_model.load(str(tmp_path)) if loaded else tmp_path
    x = rows(6, 6, 2)
    lite = tflite_convert(source, test=x)
    wanted = np.asarray(model(x, training=False))
    assert_answers(lite, {only(lite.inputs): x}, {only(lite.outputs): wanted})
    assert lite.evidence.ok, lite.evidence.findings
    assert ("rebuilt" in notes(lite)) is not loaded


def test_from_concrete_functions_with_a_keras_3_trackable() -> None:
    import keras
    import tensorflow as tf

    model = models.batch_normalized(keras)
    function = tf.function(lambda picture: {"marks": model(picture, training=False)})
    concrete = function.get_concrete_function(tf.TensorSpec((None, 6, 6, 2), name="picture"))
    x = rows(6, 6, 2)
    lite = tflite_convert(concrete, test=x)
    assert_answers(lite, {"picture": x}, {"marks": model(x, training=False)})
    assert lite.evidence.ok, lite.evidence.findings


# Half precision


@pytest.mark.parametrize(
    ("package", "policy"),
    [
        ("keras", "mixed_float16"),
        pytest.param("keras", "mixed_bfloat16", marks=pytest.mark.slow),
        pytest.param("tf_keras", "mixed_float16", marks=pytest.mark.slow),
        ("tf_keras", "mixed_bfloat16"),
    ],
)
def test_mixed_precision_policies(package: str, policy: str) -> None:
    keras = models.package_of(package)
    model, rewritten = models.batch_normalized(keras, policy), models.batch_normalized(keras)
    x = rows(6, 6, 2)
    before = np.asarray(model(x, training=False), "float32")
    lite = tflite_convert(model, test=x)
    assert_answers(lite, {only(lite.inputs): x}, {only(lite.outputs): rewritten(x, training=False)})
    assert lite.evidence.ok, lite.evidence.findings
    assert "mixed-precision" in notes(lite)
    np.testing.assert_array_equal(np.asarray(model(x, training=False), "float32"), before)
    assert {layer.dtype_policy.name for layer in model.layers} == {policy}


# Loops


def looped(package: str, name: str) -> tuple[Any, Any, Any]:
    model = models.recurrent(models.package_of(package), name)
    x = rows(*model.input_shape[1:])
    return model, x, np.asarray(model(x, training=False))


QUICK = (("keras", "lstm"), ("keras", "bidirectional"), ("tf_keras", "lstm"))
"""The others are converted without the command by tests/sources/test_graphs.py."""

ALL_LOOPS = [
    pytest.param(package, name, marks=[] if (package, name) in QUICK else pytest.mark.slow)
    for package in ("keras", "tf_keras")
    for name in models.RECURRENT
]


@pytest.mark.parametrize(("package", "name"), ALL_LOOPS)
def test_a_default_recurrent_layer_in_float_takes_one_sample_at_a_time_and_says_so(package: str, name: str) -> None:
    model, x, wanted = looped(package, name)
    lite = tflite_convert(model, test=x)
    assert_answers(lite, {only(lite.inputs): x}, {only(lite.outputs): wanted})
    assert lite.inputs[0].shape[0] == 1
    assert lite.evidence.ok, lite.evidence.findings
    (note,) = (finding for finding in lite.evidence.findings if finding.code == "one-sample")
    assert "unroll=True" in note.cure
    np.testing.assert_allclose(lite.predict(x), wanted, atol=1e-5)


@pytest.mark.parametrize("scheme", [pytest.param("float16", marks=pytest.mark.slow), "dynamic"])
def test_a_default_recurrent_layer_with_smaller_weights_takes_one_sample_at_a_time(scheme: Any) -> None:
    import keras

    model = models.weighed(keras.Sequential([keras.Input((4, 3)), keras.layers.LSTM(32), keras.layers.Dense(2)]))
    x = rows(4, 3)
    lite = tflite_convert(model, scheme=scheme)
    assert_answers(lite, {only(lite.inputs): x}, {"output_0": model(x)}, 0.05)
    assert "one-sample" in notes(lite)


@pytest.mark.parametrize(("package", "name"), [each for each in ALL_LOOPS if each.values != ("tf_keras", "convlstm")])
def test_a_default_recurrent_layer_in_int8_is_unrolled_and_says_so(package: str, name: str) -> None:
    model, x, wanted = looped(package, name)
    lite = tflite_convert(model, scheme="int8", io="float32", calib=x, test=rows(*x.shape[1:], seed=1))
    assert_answers(lite, {only(lite.inputs): x}, {only(lite.outputs): wanted}, 0.2)
    assert lite.inputs[0].shape[0] is None
    assert "unrolled" in notes(lite)
    assert lite.evidence.snr_db > 15
    assert model.layers[0].name  # the model is whole, and loops as before
    np.testing.assert_allclose(model(x, training=False), wanted, atol=1e-6)


def test_a_convlstm_of_tf_keras_which_never_unrolls_is_refused_in_int8_with_the_cure() -> None:
    model, x, _ = looped("tf_keras", "convlstm")
    with pytest.raises(ConversionError, match=r"cannot be quantized with its loop[^!]*--dynamic"):
        tflite_convert(model, scheme="int8", calib=x)


@pytest.mark.parametrize("loaded", [False, True])
def test_a_saved_model_with_a_recurrent_layer(tmp_path: Path, loaded: bool) -> None:
    import tensorflow as tf

    model, x, wanted = looped("keras", "lstm")
    model.export(tmp_path / "m", verbose=False)
    source = tf.saved_model.load(str(tmp_path / "m")) if loaded else tmp_path / "m"
    options = {"signature": "serving_default"}
    lite = tflite_convert(source, test=x, **options)
    assert_answers(lite, {only(lite.inputs): x}, {only(lite.outputs): wanted})
    assert "one-sample" in notes(lite)
    assert lite.evidence.ok, lite.evidence.findings
    with pytest.raises(ConversionError, match=r"cannot be quantized with its loop[^!]*unroll=True"):
        tflite_convert(source, scheme="int8", calib=x, **options)


def test_a_loop_of_ones_own_without_lists_is_quantized_around() -> None:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
    def shrunk(x: Any) -> Any:
        return tf.while_loop(lambda n, y: n < 3, lambda n, y: (n + 1, tf.tanh(y)), (0, x))[1]

    x = rows(4)
    lite = tflite_convert(shrunk, scheme="int8", io="float32", calib=x)
    assert_answers(lite, {"x": x}, {"output_0": shrunk(x)}, 0.05)


def test_a_list_in_a_loop_of_ones_own_is_refused_in_int8_and_does_not_crash() -> None:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
    def doubled(x: Any) -> Any:
        return tf.map_fn(lambda row: row * 2.0, x)

    with pytest.raises(ConversionError, match="loop"):
        tflite_convert(doubled, scheme="int8", calib=rows(4))


def test_a_list_in_a_loop_beside_a_recurrent_layer_is_refused_in_int8_though_the_layer_could_be_unrolled() -> None:
    import keras
    import tensorflow as tf

    class Doubled(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return tf.map_fn(lambda row: row * 2.0, x)

    layers = [keras.layers.LSTM(4), Doubled(), keras.layers.Dense(2)]
    model = models.weighed(keras.Sequential([keras.Input((4, 3)), *layers]))
    with pytest.raises(ConversionError, match="cannot be quantized with its loop"):
        tflite_convert(model, scheme="int8", calib=rows(4, 3))


# Several inputs and outputs


def test_inputs_and_outputs_go_by_name_and_never_by_position(tmp_path: Path) -> None:
    case = models.saved_model_with_arguments_out_of_order(tmp_path)
    zebra, ant = rows(4), rows(4, seed=1)
    wanted = {"z": 3 * zebra - ant, "a": zebra + 10 * ant}
    module = models.module()
    for model, order in ((case.model, ["ant", "zebra"]), (module, ["zebra", "ant"])):
        lite = tflite_convert(model, signature="weigh", test={"zebra": zebra, "ant": ant})
        assert_answers(lite, {"zebra": zebra, "ant": ant}, wanted)
        assert lite.evidence.snr_db > 100
        assert [spec.name for spec in lite.inputs] == order
        by_name = lite.predict({"ant": ant, "zebra": zebra})
        in_order = lite.predict([{"zebra": zebra, "ant": ant}[name] for name in order])
        for name, reference in wanted.items():
            np.testing.assert_allclose(by_name[name], reference, rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(by_name[name], in_order[name])


@pytest.mark.parametrize("scheme", ["float32", "int8"])
def test_dicts_and_nested_dicts(scheme: Any) -> None:
    import keras

    model = models.nested_dictionaries(keras)
    inputs = {name: rows(3, seed=seed) for seed, name in enumerate(("ant", "bee", "zebra"))}
    answer = model({"zebra": inputs["zebra"], "inner": {"bee": inputs["bee"], "ant": inputs["ant"]}}, training=False)
    wanted = {"z/sums": answer["z"]["sums"], "z/more": answer["z"]["more"], "a": answer["a"]}
    options = {"calib": inputs, "io": "float32"} if scheme == "int8" else {}
    lite = tflite_convert(model, scheme=scheme, test=inputs, **options)
    assert_answers(lite, inputs, wanted, 1e-5 if scheme == "float32" else 0.05)
    assert lite.evidence.snr_db > (100 if scheme == "float32" else 25)


# Texts and tables

WORDS = ["two", "one", "zwölf", "", "a longer text than the others"] * 8


@pytest.mark.parametrize(
    "words",
    [np.array(WORDS), np.array([word.encode() for word in WORDS]), np.array(WORDS, object)],
    ids=["U", "S", "O"],
)
def test_string_inputs(words: Any) -> None:
    lite = tflite_convert(models.lookup(), test=words)
    codes = np.array([2, 1, -1, -1, -1] * 8)
    answers = lite.predict(words)
    np.testing.assert_array_equal(answers["code"], codes)
    np.testing.assert_array_equal(answers["same"], np.array([word.encode() for word in WORDS]))
    encoded = np.array([word.encode() for word in WORDS])
    assert_answers(lite, {"words": encoded}, {"code": codes, "same": encoded})
    assert lite.evidence.measured
    assert not [finding for finding in lite.evidence.findings if finding.level == "error"]


def test_texts_in_a_saved_model_with_a_static_table(tmp_path: Path) -> None:
    case = models.saved_model_with_a_table(tmp_path)
    lite = tflite_convert(case.model, test=case.inputs)
    assert_answers(lite, case.inputs, case.answers)


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
@pytest.mark.parametrize("kind", ["StringLookup", "IntegerLookup", "TextVectorization"])
def test_a_lookup_layer_answers_right_or_is_refused_by_name(package: str, kind: str) -> None:
    keras = models.package_of(package)
    words: Any = [3, 5, 7] if kind == "IntegerLookup" else ["ant", "bee", "zebra"]
    dtype = "int64" if kind == "IntegerLookup" else "string"
    layer = getattr(keras.layers, kind)(vocabulary=words)
    model = models.weighed(
        keras.Sequential([keras.Input((1,), dtype=dtype), layer, keras.layers.Embedding(6, 3), keras.layers.Flatten()])
    )
    x = np.array(words * 12)[:, None]
    try:
        lite = tflite_convert(model, test=x)
    except ConversionError as error:
        # The table or the text operation is named before, or LiteRT's own words once it refuses to run the file.
        assert any(words in str(error) for words in ("able", "String", "LiteRT cannot run it")), error
        return
    inputs = {only(lite.inputs): np.char.encode(x) if x.dtype.kind == "U" else x}
    import tensorflow as tf

    assert_answers(lite, inputs, {only(lite.outputs): model(tf.constant(x))})


# Shapes


def test_dynamic_shapes_take_an_image_of_another_size_and_can_be_fixed() -> None:
    import keras

    layers = keras.layers
    model = models.weighed(
        keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()])
    )
    name = model.inputs[0].name
    lite = tflite_convert(model, test=rows(9, 7, 3))
    assert lite.inputs[0].shape == (None, None, None, 3)
    assert lite.evidence.ok, lite.evidence.findings
    for size in ((9, 7), (5, 12)):
        assert_answers(lite, {name: rows(*size, 3)}, {"output_0": model(rows(*size, 3))})
    fixed = tflite_convert(model, input_spec="1x9x7x3", test=rows(9, 7, 3))
    assert fixed.inputs[0].shape == (1, 9, 7, 3)
    assert_answers(fixed, {name: rows(9, 7, 3)}, {"output_0": model(rows(9, 7, 3))})


def test_a_scalar_input_stays_a_scalar() -> None:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((), name="x")])
    def double(x: Any) -> Any:
        return x * 2

    lite = tflite_convert(double)
    (answer,) = by_hand.interpreter(lite.path.read_bytes()).get_signature_runner()(x=np.float32(3)).values()
    assert (answer.shape, answer) == ((), 6)


def test_an_input_of_unknown_rank_takes_whatever_it_is_given(tmp_path: Path) -> None:
    double = models.any_rank(tmp_path).model
    lite = tflite_convert(double, test=rows(3, 2))
    assert_answers(lite, {"x": rows(3, 2)}, {"output_0": rows(3, 2) * 2 + 1})
    assert lite.evidence.snr_db > 100
    fixed = tflite_convert(double, input_spec="?x5", test=rows(5))
    assert fixed.inputs[0].shape == (None, 5)


# Size


@pytest.mark.parametrize("scheme", ["float32", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_large_model_is_not_frozen_and_answers_the_same(scheme: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.make(models.two_in_two_out)
    inputs = {"zebra": rows(3), "ant": rows(2)}
    options: dict[str, Any] = {"calib": inputs, "io": "float32"} if scheme == "int8" else {}
    options["no_cache"] = True
    small = tflite_convert(model, scheme=scheme, test=inputs, **options)
    monkeypatch.setattr(traced, "FREEZE_LIMIT", 0)
    large = tflite_convert(model, scheme=scheme, test=inputs, **options)
    assert any("frozen" in step for step in small.provenance.route)
    assert not any("frozen" in step for step in large.provenance.route)
    assert large.signatures.keys() == small.signatures.keys()
    assert [spec.name for spec in large.inputs] == ["zebra", "ant"]
    wanted = by_hand.answers(small.path.read_bytes(), inputs)
    assert_answers(large, inputs, wanted, 1e-5 if scheme == "float32" else 0.02)
    assert large.evidence.snr_db > (100 if scheme == "float32" else 25)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_constant_of_more_than_two_gigabytes() -> None:
    import tensorflow as tf

    class Large(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = tf.Variable(tf.random.stateless_normal((8600, 1 << 16), (1, 2)))

        @tf.function(input_signature=[tf.TensorSpec((None,), tf.int32, name="rows")])
        def __call__(self, rows: Any) -> Any:
            return tf.gather(self.table, rows)

    model = Large()
    lite = tflite_convert(model, no_cache=True)
    asked = np.array([0, 8599], np.int32)
    assert lite.size > 1 << 31
    np.testing.assert_array_equal(lite.predict(asked), model(asked))
    lite.path.unlink()


# Where and how it was built

MIRRORED = """\
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, tensorflow as tf, keras
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.BatchNormalization(),
                              keras.layers.Dense(3)])
    model.compile("adam", "mse")
x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
model.fit(x, x[:, :3], batch_size=16, epochs=2, verbose=0)
assert strategy.num_replicas_in_sync == 2 and len(strategy.experimental_local_results(model.weights[0].value)) == 2
from tfdeploy_magic import tflite_convert
lite = tflite_convert(model, test=x)
weights = [np.asarray(w) for w in model.get_weights()]
plain = keras.models.clone_model(model); plain.set_weights(weights)
print(lite.evidence.ok, float(np.max(np.abs(lite.predict(x) - np.asarray(plain(x, training=False))))) < 1e-5)
"""


def test_a_model_built_under_a_mirrored_strategy(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(MIRRORED)
    done = run_python(str(tmp_path / "script.py"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True"]


def test_a_module_that_changes_its_own_variables() -> None:
    module = models.counter()
    lite = tflite_convert(module, test=rows(4))
    assert module.count.numpy() == 10  # asking and timing it leave it as it was
    got = by_hand.answers(lite.path.read_bytes(), {"x": np.zeros((3, 4), "float32")})["output_0"]
    np.testing.assert_array_equal(got[:, 0], [11, 12, 13])


@pytest.mark.parametrize(
    "build",
    [models.v1_saved_model, models.saved_model_with_unusual_tags, models.tf_keras_saved_model],
    ids=lambda build: build.__name__,
)
def test_saved_models_of_every_age_and_tag(build: models.Build, tmp_path: Path) -> None:
    case = build(tmp_path)
    lite = tflite_convert(case.model, test=case.inputs)
    assert_answers(lite, case.inputs, case.answers)
    assert lite.evidence.snr_db > 100


def test_several_signatures_each_make_a_file_of_their_own(tmp_path: Path) -> None:
    folder = models.saved_model_of_a_module(tmp_path).model
    module = models.module()
    y = rows(3)
    lite = tflite_convert(str(folder), signature="decode", test=y)
    assert list(lite.signatures) == ["decode"]
    assert_answers(lite, {"y": y}, {"output_0": module.decode(y)})
    assert "other-signatures" in notes(lite)
    with pytest.raises(InputError, match=r"no signature 'embed': found decode, serving_default, weigh"):
        tflite_convert(str(folder), signature="embed")


# Files


def test_a_lambda_in_a_keras_file_does_not_run_without_trust(tmp_path: Path) -> None:
    import keras

    canary = tmp_path / "canary"
    path = str(canary)
    # Marshalled without its imports, so that nothing but a builtin can be called.
    layer = keras.layers.Lambda(lambda x: (open(path, "w").close(), x * 2)[1], output_shape=(4,))  # noqa: PTH123
    model = models.weighed(keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(3)]))
    model.save(tmp_path / "m.keras")
    wanted = np.asarray(model(rows(4)))
    canary.unlink()
    with pytest.raises(InputError, match=r"carries code[^!]*--trust"):
        tflite_convert(tmp_path / "m.keras")
    assert not canary.exists()
    lite = tflite_convert(tmp_path / "m.keras", trust=True)
    assert canary.exists()
    assert_answers(lite, {only(lite.inputs): rows(4)}, {"output_0": wanted})


def test_a_saved_model_that_reads_files_is_refused_without_trust(tmp_path: Path) -> None:
    import tensorflow as tf

    class Reader(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((), tf.string, name="path")])
        def __call__(self, path: Any) -> Any:
            return tf.io.read_file(path)

    tf.saved_model.save(Reader(), str(tmp_path / "m"))
    with pytest.raises(InputError, match=r"touches the machine it runs on: found ReadFile[^!]*--trust"):
        tflite_convert(tmp_path / "m")
    with pytest.raises(ConversionError, match="ReadFile"):  # trusted, and yet nothing that .tflite can hold
        tflite_convert(tmp_path / "m", trust=True)


def test_a_frozen_graph_is_converted_between_the_tensors_one_chooses(tmp_path: Path) -> None:
    case = models.frozen_graph_cut_out(tmp_path)
    lite = tflite_convert(case.model, inputs="hidden:0", outputs="y,Relu", test=case.inputs)
    assert_answers(lite, case.inputs, case.answers)
    assert lite.evidence.snr_db > 100


def test_a_graph_that_is_not_frozen_is_refused(tmp_path: Path) -> None:
    with models.v1_graph() as (session, *_):
        (tmp_path / "m.pb").write_bytes(session.graph_def.SerializeToString())
    with pytest.raises(InputError, match=r"is not frozen[^!]*Freeze it"):
        tflite_convert(tmp_path / "m.pb")


@pytest.mark.parametrize(
    "name",
    [
        "keras_file_keras",
        pytest.param("keras_file_h5", marks=pytest.mark.slow),
        pytest.param("tf_keras_file_keras", marks=pytest.mark.slow),
        "tf_keras_file_h5",
    ],
)
def test_keras_files(name: str, tmp_path: Path) -> None:
    case = next(build for build in models.BUILDS if build.__name__ == name)(tmp_path)
    lite = tflite_convert(case.model, test=case.inputs)
    assert_answers(lite, case.inputs, case.answers)
    assert lite.evidence.snr_db > 100


def test_a_custom_layer_in_a_keras_file_is_an_error_that_names_the_cure(tmp_path: Path) -> None:
    import keras

    class Doubled(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x * 2

    keras.Sequential([keras.Input((4,)), Doubled()]).save(tmp_path / "m.keras")
    with pytest.raises(InputError, match=r"Doubled[^!]*Load it where its classes are defined"):
        tflite_convert(tmp_path / "m.keras")


def test_a_file_of_weights_alone_is_not_a_model(tmp_path: Path) -> None:
    models.make(models.sequential).save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(NotAModel, match=r"weights without the model[^!]*load these weights into it"):
        tflite_convert(tmp_path / "m.weights.h5")


@pytest.mark.parametrize("build", [models.lite_file, models.lite_file_without_a_signature], ids=lambda b: b.__name__)
def test_a_lite_file_can_be_quantized_to_integers_and_to_nothing_else(build: models.Build, tmp_path: Path) -> None:
    case = build(tmp_path)
    inputs = {name: np.repeat(array, 8, axis=0) for name, array in case.inputs.items()}
    wanted = {name: np.repeat(np.asarray(answer), 8, axis=0) for name, answer in case.answers.items()}
    lite = tflite_convert(case.model, scheme="int8", io="float32", calib=inputs, test=inputs)
    assert_answers(lite, inputs, wanted, 0.05)
    assert lite.evidence.snr_db > 20
    same = tflite_convert(case.model, test=inputs)
    assert_answers(same, inputs, wanted)
    for scheme in ("float16", "dynamic"):
        with pytest.raises(ConversionError, match=rf"--{scheme} for a file[^!]*Convert the model it was made from"):
            tflite_convert(case.model, scheme=scheme)


@pytest.mark.parametrize("kind", [*models.FILES, "variables"])
def test_a_truncated_file_is_an_error_and_not_a_crash(kind: str, tmp_path: Path) -> None:
    whole: Path = models.FILES["saved_model" if kind == "variables" else kind](tmp_path).model
    part = {
        "saved_model": whole / "saved_model.pb",
        "variables": whole / "variables" / "variables.data-00000-of-00001",
    }.get(kind, whole)
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    with pytest.raises(TfdeployError) as caught:
        tflite_convert(whole)
    assert "rashed" not in str(caught.value)
