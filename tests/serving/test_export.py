from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.conftest import Digits
from tests.sources import models
from tfdeploy_magic.errors import (
    ContractBroken,
    DataError,
    InputError,
    JobCrashed,
    ModelNotReady,
    OutputError,
    UserCodeError,
)
from tfdeploy_magic.jobs import Report, Worker, silent
from tfdeploy_magic.serving import export as module
from tfdeploy_magic.serving import warmup
from tfdeploy_magic.serving.export import ExportedVersion
from tfdeploy_magic.serving.request_log import RequestLog
from tfdeploy_magic.sources import How, open_source
from tfdeploy_magic.sources.samples import NamedData

Exports = Callable[..., ExportedVersion]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "net"


@pytest.fixture
def export(base: Path) -> Exports:
    def run(model: Any, *, how: How | None = None, **options: Any) -> ExportedVersion:
        source = open_source(model, "net", how, Worker(deadline=120))
        try:
            return module.export(source, base, report=Report(silent), **options)
        finally:
            source.close()

    return run


def loaded(version: ExportedVersion | Path) -> Any:
    """The signatures as TensorFlow 2 gives them."""
    import tensorflow as tf

    path = version.path if isinstance(version, ExportedVersion) else version
    return tf.saved_model.load(str(path)).signatures


def ask(signature: Any, **inputs: Any) -> dict[str, npt.NDArray[Any]]:
    import tensorflow as tf

    return {
        name: np.asarray(answer) for name, answer in signature(**{k: tf.constant(v) for k, v in inputs.items()}).items()
    }


def doors(signature: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
    return tuple({n: (s.shape.as_list(), s.dtype) for n, s in specs.items()} for specs in (inputs, outputs))  # type: ignore[return-value]


def left_in(base: Path) -> list[str]:
    return sorted(path.name for path in base.iterdir())


# Models in the kernel


def keras_models() -> Iterator[Any]:
    yield from (pytest.param(lambda kind=kind: models.make(kind), id=kind.__name__) for kind in models.KINDS)
    for package in ("keras", "tf_keras"):
        for kind in (models.batch_normalized, models.dictionaries):
            yield pytest.param(
                lambda kind=kind, package=package: kind(models.package_of(package)), id=f"{package}_{kind.__name__}"
            )


@pytest.mark.parametrize("make", list(keras_models()))
def test_a_keras_model_is_served_as_its_own_export_serves_it(
    make: Callable[[], Any], export: Exports, tmp_path: Path
) -> None:
    model = make()
    is_old = type(model).__module__.startswith("tf_keras")  # there, what one serves is what save() writes
    with models.without_warnings():
        (model.save if is_old else model.export)(str(tmp_path / "reference"))
    reference = loaded(tmp_path / "reference")["serving_default"]
    version = export(model)
    ours = loaded(version)["serving_default"]
    assert doors(ours)[0] == doors(reference)[0]
    random = np.random.default_rng(1)
    inputs = {
        name: random.integers(0, 9, (5, *shape[1:])).astype(dtype.as_numpy_dtype)
        for name, (shape, dtype) in doors(ours)[0].items()
    }
    wanted, found = ask(reference, **inputs), ask(ours, **inputs)
    assert found.keys() == wanted.keys()
    for name, answer in wanted.items():
        np.testing.assert_allclose(found[name], answer, rtol=1e-5, atol=1e-6)


def test_a_session_as_tensorflow_serving_has_one_answers_as_the_model_does(
    trained_cnn: Any, digits: Digits, export: Exports
) -> None:
    import tensorflow as tf

    version = export(trained_cnn)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session, models.without_warnings():
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(version.path))
        signature = meta.signature_def["serving_default"]
        assert signature.method_name == "tensorflow/serving/predict"
        (fed,), (fetched,) = signature.inputs.values(), signature.outputs.values()
        answers = session.run(fetched.name, {fed.name: digits.x_test[:40]})
    np.testing.assert_allclose(answers, trained_cnn.predict(digits.x_test[:40], verbose=0), atol=1e-5)


def test_weights_stay_variables_and_the_optimizers_are_left_out(trained_cnn: Any, export: Exports) -> None:
    import tensorflow as tf

    version = export(trained_cnn)
    stored = dict(tf.train.list_variables(str(version.path / "variables/variables")))
    weights = sorted(tuple(shape) for name, shape in stored.items() if "_CHECKPOINTABLE" not in name)
    assert weights == sorted(tuple(variable.shape) for variable in trained_cnn.weights)
    assert version.size == sum(path.stat().st_size for path in version.path.rglob("*") if path.is_file())


def test_answers_are_compared_with_the_models_on_samples(trained_cnn: Any, digits: Digits, export: Exports) -> None:
    version = export(trained_cnn, test=NamedData("x_test", digits.x_test))
    assert version.evidence.n == module.SAMPLES
    assert version.evidence.max_abs_error is not None
    assert 0 <= version.evidence.max_abs_error < 1e-5
    assert version.evidence.verdict == "ok"
    assert version.tested == "x_test (256 of 500 samples, drawn at random)"


def test_without_samples_nothing_is_said_of_the_answers(trained_cnn: Any, export: Exports) -> None:
    version = export(trained_cnn)
    assert version.tested is None
    assert version.evidence.max_abs_error is None
    assert [finding.code for finding in version.findings] == ["not-measured"]


def test_answers_that_differ_are_an_error_among_the_findings(
    trained_cnn: Any, digits: Digits, export: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.save_together

    def spoilt(traced: Any, folder: Path) -> int:
        bias = trained_cnn.layers[-1].bias
        before = bias.numpy()
        bias.assign(before + np.arange(10))
        try:
            return real(traced, folder)
        finally:
            bias.assign(before)

    monkeypatch.setattr(module, "save_together", spoilt)
    version = export(trained_cnn, test=NamedData("x_test", digits.x_test))
    assert version.evidence.verdict == "not ok"
    assert "float-differs" in [finding.code for finding in version.findings]


def test_recorded_requests_warm_a_version_up(trained_cnn: Any, digits: Digits, export: Exports, tmp_path: Path) -> None:
    name = open_source(trained_cnn, "net").inputs[0].name
    log = RequestLog(tmp_path / "requests")
    for rows in (1, 2, 1):
        log.record_predict("net", 1, "serving_default", {name: digits.x_test[:rows]})
    log.close()
    version = export(trained_cnn, warmup=log.path)
    shapes = [row.predict_log.request.inputs[name].tensor_shape.dim[0].size for row in warmup.read(version.path)]
    assert sorted(shapes) == [1, 2]


def test_a_log_that_is_damaged_leaves_no_version(trained_cnn: Any, export: Exports, base: Path, tmp_path: Path) -> None:
    (tmp_path / "requests").write_bytes(b"no records" * 20)
    with pytest.raises(DataError, match="cannot warm a version up"):
        export(trained_cnn, warmup=tmp_path / "requests")
    assert not base.exists()


def test_a_model_that_keeps_state_is_written_and_not_compared(export: Exports) -> None:
    version = export(models.counter(), test=NamedData("x", np.ones((40, 4), "float32")))
    assert [finding.code for finding in version.findings] == ["stateful"]
    signature = loaded(version)["serving_default"]
    answers = [ask(signature, x=np.zeros((1, 4), "float32"))["output_0"][0, 0] for _ in range(2)]
    assert answers == [11.0, 12.0]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_of_mixed_precision_is_served_in_float32(policy: str, export: Exports) -> None:
    import keras

    model = models.batch_normalized(keras, policy)
    x = np.random.default_rng(0).normal(size=(40, 6, 6, 2)).astype("float32")
    version = export(model, test=NamedData("x", x))
    assert version.evidence.verdict == "ok"
    (note,) = (finding for finding in version.findings if finding.code == "mixed-precision")
    assert policy in note.message
    assert ".tflite" not in note.message
    exact = models.batch_normalized(keras)
    exact.set_weights(model.get_weights())
    (answers,) = ask(
        loaded(version)["serving_default"], **{version.signatures["serving_default"].inputs[0].name: x}
    ).values()
    np.testing.assert_allclose(answers, exact.predict(x, verbose=0), rtol=1e-4, atol=1e-5)


def test_every_function_of_a_module_is_a_signature(export: Exports) -> None:
    scales = models.module()
    version = export(scales)
    assert list(version.signatures) == ["serving_default", "decode", "weigh"]
    signatures = loaded(version)
    zebra, ant = np.ones((2, 4), "float32"), np.full((2, 4), 2, "float32")
    found = ask(signatures["weigh"], zebra=zebra, ant=ant)
    np.testing.assert_array_equal(found["z"], 3 * zebra - ant)
    np.testing.assert_array_equal(found["a"], zebra + 10 * ant)
    np.testing.assert_allclose(ask(signatures["serving_default"], x=zebra)["output_0"], scales(zebra), rtol=1e-6)


def test_a_modules_only_function_is_the_default_too(export: Exports) -> None:
    import tensorflow as tf

    class Doubler(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None,), name="x")])
        def double(self, x: Any) -> Any:
            return 2 * x

    version = export(Doubler())
    signatures = loaded(version)
    assert sorted(signatures) == ["double", "serving_default"]
    for name in signatures:
        assert ask(signatures[name], x=[1.5])["output_0"].tolist() == [3.0]


def test_a_function_that_does_not_say_what_it_takes_is_no_signature(export: Exports) -> None:
    import tensorflow as tf

    class Helped(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None,), name="x")])
        def __call__(self, x: Any) -> Any:
            return self.helper(x)

        @tf.function
        def helper(self, x: Any) -> Any:
            return x + 1

    assert list(export(Helped()).signatures) == ["serving_default"]


def test_a_module_whose_functions_all_have_other_names_says_that_requests_must_name_one(export: Exports) -> None:
    import tensorflow as tf

    class Pair(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None,), name="x")])
        def up(self, x: Any) -> Any:
            return x + 1

        @tf.function(input_signature=[tf.TensorSpec((None,), name="x")])
        def down(self, x: Any) -> Any:
            return x - 1

    # Which of the two is asked for the default makes no difference to what is written.
    version = export(Pair())
    assert list(version.signatures) == ["down", "up"]
    assert "no-default" in [finding.code for finding in version.findings]


def test_tables_and_the_files_they_are_read_from_go_along(export: Exports, tmp_path: Path) -> None:
    import tensorflow as tf

    words = tmp_path / "words.txt"
    words.write_text("one\ntwo\n")

    class Words(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            lines = tf.lookup.TextFileInitializer(
                str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
            )
            self.table = tf.lookup.StaticHashTable(lines, -1)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])
        def __call__(self, words: Any) -> Any:
            return self.table.lookup(words)

    version = export(Words())
    words.unlink()
    assert (version.path / "assets/words.txt").read_text() == "one\ntwo\n"
    assert ask(loaded(version)["serving_default"], words=["two", "ten"])["output_0"].tolist() == [1, -1]


def test_the_vocabulary_of_a_trained_keras_model_goes_along_and_its_optimizer_does_not(export: Exports) -> None:
    import keras
    import tensorflow as tf

    text = keras.Input((1,), dtype="string", name="text")
    layer = keras.layers.TextVectorization(output_sequence_length=3)
    layer.adapt(["a b c", "d e"])
    pooled = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(20, 4)(layer(text)))
    model = keras.Model(text, keras.layers.Dense(2)(pooled))
    model.compile("adam", "mse")
    model.fit(tf.constant([["a b"], ["d"]]), np.ones((2, 2)), verbose=0)
    version = export(model)
    asked = tf.constant([["c a"], ["nothing"]])
    found = ask(loaded(version)["serving_default"], text=asked)["output_0"]
    np.testing.assert_allclose(found, model.predict(asked, verbose=0), rtol=1e-5)
    stored = [name for name, _ in tf.train.list_variables(str(version.path / "variables/variables"))]
    assert not [name for name in stored if "optimizer" in name]


def test_a_loaded_saved_model_is_written_with_all_its_signatures(export: Exports, tmp_path: Path) -> None:
    import tensorflow as tf

    scales, words = models.module(), models.lookup()
    signatures = {**models.signatures_of(scales), "words": words.__call__}
    holder = tf.Module()
    holder.parts = [scales, words]
    tf.saved_model.save(holder, str(tmp_path / "m"), signatures=signatures)
    version = export(tf.saved_model.load(str(tmp_path / "m")))
    found, wanted = loaded(version), loaded(tmp_path / "m")
    assert sorted(found) == sorted(wanted)
    assert {name: doors(found[name]) for name in found} == {name: doors(wanted[name]) for name in wanted}
    x = np.ones((3, 4), "float32")
    np.testing.assert_allclose(
        ask(found["serving_default"], x=x)["y"], ask(wanted["serving_default"], x=x)["y"], rtol=1e-6
    )
    assert ask(found["words"], words=["two"])["code"].tolist() == [2]


def test_an_input_whose_name_no_saved_model_can_hold_is_renamed_and_said(export: Exports) -> None:
    import keras

    first, second = keras.Input((2,), name="my input"), keras.Input((2,), name="my_input")
    model = models.weighed(keras.Model([first, second], keras.layers.Subtract()([first, second])))
    x, y = np.random.default_rng(0).normal(size=(2, 40, 2)).astype("float32")
    version = export(model, test=NamedData("pair", [x, y]))
    assert version.evidence.max_abs_error == 0.0
    (finding,) = (each for each in version.findings if each.code == "renamed")
    assert "'my input' is now 'my_input'" in finding.message
    assert "'my_input' is now 'my_input_1'" in finding.message
    answers = ask(loaded(version)["serving_default"], my_input=x, my_input_1=y)
    np.testing.assert_array_equal(answers["output_0"], x - y)


# Signatures of the person's own


def test_functions_beside_the_model_share_its_variables(trained_cnn: Any, digits: Digits, export: Exports) -> None:
    import keras
    import tensorflow as tf

    inner = keras.Model(trained_cnn.inputs, trained_cnn.layers[-2].output)

    @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 1), name="pixels")])
    def best(pixels: Any) -> Any:
        return {"class": tf.argmax(trained_cnn(pixels), axis=1)}

    def embed(x: Any) -> Any:
        return inner(x)

    plain = export(trained_cnn)
    version = export(trained_cnn, signatures={"embed": embed, "best": best, "inner": inner})
    assert list(version.signatures) == ["serving_default", "best", "embed", "inner"]
    signatures, x = loaded(version), digits.x_test[:20]
    (name,) = (spec.name for spec in version.signatures["embed"].inputs)
    wanted = inner.predict(x, verbose=0)
    np.testing.assert_allclose(ask(signatures["embed"], **{name: x})["output_0"], wanted, atol=1e-5)
    np.testing.assert_allclose(ask(signatures["inner"], **{name: x})["output_0"], wanted, atol=1e-5)
    classes = trained_cnn.predict(x, verbose=0).argmax(axis=1)
    np.testing.assert_array_equal(ask(signatures["best"], pixels=x)["class"], classes)
    weights = "variables/variables.data-00000-of-00001"
    size = (version.path / weights).stat().st_size
    assert size < 1.2 * (plain.path / weights).stat().st_size


def test_a_function_of_several_inputs_takes_them_one_by_one_or_as_a_dict(export: Exports) -> None:
    model = models.make(models.two_in_two_out)

    def swapped(zebra: Any, ant: Any) -> Any:
        return ant[:, :1] - zebra[:, :1]

    def by_name(given: Any) -> Any:
        return given["ant"][:, :1] - given["zebra"][:, :1]

    version = export(model, signatures={"swapped": swapped, "by_name": by_name})
    signatures = loaded(version)
    for name in ("swapped", "by_name"):
        found = ask(signatures[name], zebra=np.ones((2, 3), "float32"), ant=np.full((2, 2), 3, "float32"))
        assert found["output_0"].tolist() == [[2.0], [2.0]]


def test_a_function_can_take_the_place_of_the_default(export: Exports) -> None:
    import tensorflow as tf

    scales = models.module()
    version = export(scales, signatures={"serving_default": lambda x: tf.reduce_sum(scales(x), axis=1)})
    found = ask(loaded(version)["serving_default"], x=np.ones((2, 4), "float32"))["output_0"]
    np.testing.assert_allclose(found, np.asarray(scales(np.ones((2, 4), "float32"))).sum(axis=1), rtol=1e-5)


LABELS: Any = None
"""As in a notebook, where what a function refers to is global."""


def test_a_table_that_a_function_refers_to_goes_along(export: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    names = tf.lookup.KeyValueTensorInitializer(tf.range(3, dtype=tf.int64), tf.constant(["red", "green", "blue"]))
    monkeypatch.setitem(globals(), "LABELS", tf.lookup.StaticHashTable(names, "?"))
    scales = models.module()

    def helper(scores: Any) -> Any:
        return LABELS.lookup(tf.argmax(scores, axis=1))

    def named(x: Any) -> Any:
        return {"label": helper(scales(x))}

    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    found = ask(loaded(export(scales, signatures={"named": named}))["named"], x=x)["label"]
    wanted = [("red", "green", "blue")[place] for place in np.asarray(scales(x)).argmax(axis=1)]
    assert [each.decode() for each in found] == wanted


def test_a_table_that_nobody_can_find_is_an_error_with_a_cure(export: Exports, base: Path) -> None:
    import tensorflow as tf

    hidden = [models.lookup()]  # in a list, where nobody looks
    with pytest.raises(ModelNotReady, match=r"table or another resource that nobody owns.*\n.*tf\.Module"):
        export(tf.function(lambda words: hidden[0](words)["code"], input_signature=[tf.TensorSpec([None], tf.string)]))
    assert not base.exists()


@pytest.mark.parametrize("key", ["", "__saved_model_init_op"])
def test_a_name_that_tensorflow_keeps_for_itself_is_refused(key: str, export: Exports) -> None:
    with pytest.raises(InputError, match="cannot be called"):
        export(models.module(), signatures={key: lambda x: x})


# Before and after the model


@pytest.fixture
def pixels(digits: Digits) -> npt.NDArray[np.uint8]:
    return (digits.x_test * 255).round().astype("uint8")


def to_unit(image: Any) -> Any:
    import tensorflow as tf

    return tf.cast(image, tf.float32) / 255.0


def test_raw_inputs_go_in_and_names_come_out(trained_cnn: Any, pixels: npt.NDArray[np.uint8], export: Exports) -> None:
    import tensorflow as tf

    def name(scores: Any) -> Any:
        best = tf.argmax(scores, axis=1)
        return {"score": tf.reduce_max(scores, axis=1), "label": tf.gather([f"digit {n}" for n in range(10)], best)}

    version = export(
        trained_cnn,
        preprocess=to_unit,
        postprocess=name,
        input_spec="?x8x8x1:uint8",
        test=NamedData("pixels", pixels),
    )
    signature = version.signatures["serving_default"]
    assert [str(spec) for spec in signature.inputs] == ["image: uint8[?, 8, 8, 1]"]
    assert [str(spec) for spec in signature.outputs] == ["label: string[?]", "score: float32[?]"]
    assert version.evidence.n == module.SAMPLES
    assert not [finding for finding in version.findings if finding.level == "error"]
    found = ask(loaded(version)["serving_default"], image=pixels[:20])
    wanted = trained_cnn.predict(pixels[:20] / np.float32(255), verbose=0)
    np.testing.assert_allclose(found["score"], wanted.max(axis=1), atol=1e-5)
    assert [each.decode() for each in found["label"]] == [f"digit {place}" for place in wanted.argmax(axis=1)]


def test_encoded_images_are_strings_in_a_request(
    trained_cnn: Any, pixels: npt.NDArray[np.uint8], export: Exports
) -> None:
    import tensorflow as tf

    def decode(image_bytes: Any) -> Any:
        def one(encoded: Any) -> Any:
            return to_unit(tf.io.decode_png(encoded, channels=1))

        return tf.map_fn(one, image_bytes, fn_output_signature=tf.float32)

    encoded = np.array([tf.io.encode_png(each).numpy() for each in pixels[:40]], object)
    version = export(trained_cnn, preprocess=decode, input_spec="?:string", test=NamedData("encoded", encoded))
    assert [str(spec) for spec in version.signatures["serving_default"].inputs] == ["image_bytes: string[?]"]
    assert version.evidence.verdict == "ok"
    found = ask(loaded(version)["serving_default"], image_bytes=encoded)["output_0"]
    np.testing.assert_allclose(found, trained_cnn.predict(pixels[:40] / np.float32(255), verbose=0), atol=1e-5)


def test_a_dict_by_the_names_of_the_inputs_feeds_a_model_of_several(export: Exports) -> None:
    import tensorflow as tf

    model = models.make(models.two_in_two_out)

    @tf.function(input_signature=[tf.TensorSpec((None, 5), tf.float64, name="row")])
    def split(row: Any) -> Any:
        return {"ant": row[:, 3:], "zebra": row[:, :3]}

    row = np.random.default_rng(0).normal(size=(40, 5))
    version = export(model, preprocess=split, postprocess=lambda answer: answer["second"], test=NamedData("row", row))
    assert version.evidence.verdict == "ok"
    found = ask(loaded(version)["serving_default"], row=row)["output_0"]
    wanted = model([row[:, :3].astype("float32"), row[:, 3:].astype("float32")], training=False)["second"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_what_tracing_freezes_shows_in_the_comparison(export: Exports) -> None:
    import tensorflow as tf

    calls = []

    def drifting(x: Any) -> Any:
        calls.append(1)
        return x + float(len(calls))

    scales = models.module()
    x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    version = export(scales, preprocess=drifting, input_spec="?x4", test=NamedData("x", x))
    assert "float-differs" in [finding.code for finding in version.findings]
    assert isinstance(scales, tf.Module)


@pytest.mark.parametrize(
    "function",
    [lambda image: np.asarray(image) / 255, lambda image: image.numpy() / 255, lambda image: nothing(image)],  # noqa: F821
    ids=["numpy", "eager", "mistake"],
)
def test_python_that_does_not_run_as_a_graph_names_the_cure(
    function: Any, trained_cnn: Any, export: Exports, base: Path
) -> None:
    with pytest.raises(UserCodeError, match=r"preprocess cannot be traced.*\n.*tf\.\* operations") as caught:
        export(trained_cnn, preprocess=function, input_spec="?x8x8x1:uint8")
    assert "in user code" not in caught.value.found
    assert caught.value.__cause__ is not None
    assert not base.exists()


def test_python_inside_the_graph_is_refused_since_no_server_has_it(trained_cnn: Any, export: Exports) -> None:
    import tensorflow as tf

    def scaled(image: Any) -> Any:
        return tf.ensure_shape(
            tf.numpy_function(lambda a: a.astype("float32") / 255, [image], tf.float32), (None, 8, 8, 1)
        )

    with pytest.raises(ModelNotReady, match="preprocess runs Python that only this kernel has"):
        export(trained_cnn, preprocess=scaled, input_spec="?x8x8x1:uint8")


def test_a_preprocess_that_does_not_say_what_it_takes_is_asked_to(trained_cnn: Any, export: Exports) -> None:
    with pytest.raises(ModelNotReady, match=r"preprocess does not say what it takes.*\n.*--input-spec"):
        export(trained_cnn, preprocess=to_unit)


def test_a_preprocess_of_the_wrong_shape_is_refused_before_anything_is_written(
    trained_cnn: Any, export: Exports, base: Path
) -> None:
    with pytest.raises(InputError, match=r"found output_0: float32\[\?, 9, 9, 1\]"):
        export(trained_cnn, preprocess=to_unit, input_spec="?x9x9x1:uint8")
    assert not base.exists()


def test_two_defaults_are_refused(export: Exports) -> None:
    with pytest.raises(InputError, match="given twice"):
        export(models.module(), signatures={"serving_default": lambda x: x}, postprocess=lambda y: y)


# Files


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def classifier(folder: Path) -> Path:
    """A SavedModel of TensorFlow 1 with the signatures that ``Classify`` and ``Regress`` are for, and no default."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with models.without_warnings(), models.v1_graph() as (session, x, y, _):
        info = v1.saved_model.build_tensor_info
        scores = v1.saved_model.build_signature_def(
            {"inputs": info(x)}, {"scores": info(y)}, "tensorflow/serving/classify"
        )
        values = v1.saved_model.build_signature_def(
            {"inputs": info(x)}, {"outputs": info(y)}, "tensorflow/serving/regress"
        )
        builder = v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["serve"], {"classify": scores, "regress": values})
        builder.save()
    (folder / "assets.extra").mkdir()
    (folder / "assets.extra/tf_serving_warmup_requests").write_bytes(b"recorded")
    return folder


def test_a_saved_model_directory_is_copied_byte_for_byte(export: Exports, tmp_path: Path) -> None:
    path = classifier(tmp_path / "m")
    version = export(path)
    assert bytes_of(version.path) == bytes_of(path)
    assert list(version.signatures) == ["classify", "regress"]
    assert [finding.code for finding in version.findings] == ["copied"]
    again = export(path / "saved_model.pb")
    assert again.version == 2
    assert bytes_of(again.path) == bytes_of(path)


@pytest.mark.parametrize("kind", ["keras", "h5", "pb"])
def test_a_model_file_is_written_by_a_job(kind: str, export: Exports, tmp_path: Path) -> None:
    with models.without_warnings():
        case = models.FILES[kind](tmp_path)
    count = len(next(iter(case.inputs.values())))
    version = export(case.model, how=case.how, test=NamedData("x", case.inputs))
    assert version.evidence.n == count
    found = ask(loaded(version)["serving_default"], **case.inputs)
    assert found.keys() == dict(case.answers).keys()
    for name, answer in case.answers.items():
        np.testing.assert_allclose(found[name], answer, rtol=1e-4, atol=1e-5)


def test_a_lite_file_becomes_what_prefer_tflite_model_serves(export: Exports, tmp_path: Path) -> None:
    case = models.lite_file(tmp_path)
    version = export(case.model)
    assert left_in(version.path) == ["model.tflite"]
    assert (version.path / "model.tflite").read_bytes() == Path(case.model).read_bytes()
    assert version.lite
    (signature,) = version.signatures.values()
    assert sorted(spec.name for spec in signature.inputs) == ["ant", "zebra"]
    assert "lite" in [finding.code for finding in version.findings]


def test_functions_cannot_join_a_model_in_a_file(export: Exports, tmp_path: Path) -> None:
    case = models.FILES["keras"](tmp_path)
    with pytest.raises(InputError, match=r"is a file, and functions.*\n.*load_model"):
        export(case.model, signatures={"embed": lambda x: x})


def test_a_shape_cannot_be_asked_of_a_copy(export: Exports, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="copied as it is"):
        export(classifier(tmp_path / "m"), how=How(input_spec="1x4"))


def test_a_saved_model_that_reads_files_is_refused_unless_trusted(export: Exports, base: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    reader = tf.Module()
    reader.read = tf.function(tf.io.read_file, input_signature=[tf.TensorSpec((), tf.string, name="filename")])
    tf.saved_model.save(reader, str(tmp_path / "m"), signatures=reader.read)
    with pytest.raises(InputError, match="touches the machine"):
        export(tmp_path / "m")
    assert not base.exists()
    assert export(tmp_path / "m", how=How(trust=True)).version == 1


def test_no_version_is_written_into_the_model_itself(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m")
    before = bytes_of(path)
    with pytest.raises(OutputError, match="inside the model itself"):
        module.export(open_source(path, "m"), path / "versions", report=Report(silent))
    assert bytes_of(path) == before


def test_a_broken_saved_model_leaves_nothing_behind(export: Exports, base: Path, tmp_path: Path) -> None:
    path = classifier(tmp_path / "m")
    data = path / "variables/variables.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:10])
    with pytest.raises(InputError, match="cannot be opened"):
        export(path)
    assert not base.exists()


# Numbers, and whole or not at all


def test_the_next_number_is_one_more_than_the_highest(export: Exports, base: Path) -> None:
    (base / "00000007").mkdir(parents=True)
    (base / "notes").mkdir()
    (base / ".net.0123").mkdir()
    assert export(models.module()).version == 8
    assert export(models.module(), version=3).version == 3
    assert left_in(base) == [".net.0123", "00000007", "3", "8", "notes"]
    for taken in (7, 8):
        with pytest.raises(OutputError, match=rf"version {taken}.*\n.*it becomes 9"):
            export(models.module(), version=taken)
    assert left_in(base) == [".net.0123", "00000007", "3", "8", "notes"]


def test_nothing_has_a_number_before_it_is_whole_and_checked(
    export: Exports, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    real = Worker.call

    def call(self: Worker, task: str, *arguments: Any, **options: Any) -> Any:
        seen.append(left_in(base))
        return real(self, task, *arguments, **options)

    monkeypatch.setattr(Worker, "call", call)
    export(models.module())
    ((hidden,),) = seen
    assert hidden.startswith(".net.")
    assert left_in(base) == ["1"]


def test_a_full_disk_is_said_in_its_own_words(export: Exports, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    words = os.strerror(errno.ENOSPC)

    def save(holder: Any, folder: str, **_: Any) -> None:
        (Path(folder) / "saved_model.pb").write_text("half")
        raise tf.errors.ResourceExhaustedError(None, None, f"{folder}/variables/variables.data_temp; {words}")

    monkeypatch.setattr(tf.saved_model, "save", save)
    with pytest.raises(OutputError, match=f"cannot write {base}: found {words}"):
        export(models.module())
    assert not base.exists()


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), RuntimeError("no")], ids=["stopped", "failed"])
def test_what_was_begun_is_removed(
    raised: BaseException, export: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(traced: Any, folder: Path) -> int:
        (folder / "saved_model.pb").write_text("half")
        raise raised

    monkeypatch.setattr(module, "save_together", half)
    before = left_in(tmp_path)
    with pytest.raises(type(raised)):
        export(models.module())
    assert left_in(tmp_path) == before


def test_a_version_that_cannot_be_read_back_gets_no_number(
    export: Exports, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.mkdir()
    monkeypatch.setattr(module, "save_together", lambda traced, folder: (folder / "saved_model.pb").write_text("junk"))
    with pytest.raises(ContractBroken, match="cannot be loaded"):
        export(models.module())
    assert left_in(base) == []


def test_a_version_without_a_signature_that_was_meant_gets_no_number(
    export: Exports, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.mkdir()
    real = module.save_together
    monkeypatch.setattr(module, "save_together", lambda traced, folder: real(traced[:1], folder))
    with pytest.raises(ContractBroken, match="not as it was meant"):
        export(models.module())
    assert left_in(base) == []


def test_a_crash_while_reading_it_back_costs_nothing(
    export: Exports, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.read_back, "__name__", "tests.serving.test_export")
    with pytest.raises(JobCrashed):
        export(models.module())
    assert not base.exists()


def check_task(report: Report, **asked: Any) -> None:
    """What a job runs in place of the real one: it dies."""
    os.abort()


# Names that clients know


def with_input(name: str, size: int = 2) -> Any:
    import keras

    return keras.Sequential([keras.Input((size,), name=name), keras.layers.Rescaling(2.0)])


def inputs_of(exported: ExportedVersion) -> list[str]:
    return [str(spec) for spec in exported.signatures["serving_default"].inputs]


def test_the_only_input_keeps_the_name_that_clients_know(export: Exports, tmp_path: Path) -> None:
    known = export(with_input("image")).signatures
    again = export(with_input("keras_tensor_7"), like=known)
    assert inputs_of(again) == ["image: float32[?, 2]"]
    assert [finding.code for finding in again.findings if finding.level == "note"] == ["same-name"]
    np.testing.assert_array_equal(ask(loaded(again)["serving_default"], image=[[1.0, 2.0]])["output_0"], [[2.0, 4.0]])
    stored = tmp_path / "model.keras"
    with_input("other").save(stored)
    assert inputs_of(export(stored, like=known)) == ["image: float32[?, 2]"]


def test_an_input_of_another_shape_keeps_its_own_name(export: Exports) -> None:
    known = export(with_input("image")).signatures
    again = export(with_input("pixels", size=3), like=known)
    assert inputs_of(again) == ["pixels: float32[?, 3]"]
    assert "same-name" not in {finding.code for finding in again.findings}
