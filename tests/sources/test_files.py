from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluate import by_hand
from tests.sources import models
from tfdeploy_magic.artifacts.samples import SampleSet, save_arrays
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.errors import InputError, NameNotFound, NotAModel, TfdeployError
from tfdeploy_magic.jobs import Report, Worker, silent
from tfdeploy_magic.sources import How, Source, StoredModel, files, graphs, open_source


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """One process for the files of all tests here; a person's has one for each."""
    with Worker(deadline=120) as one:
        yield one


@pytest.fixture
def opened(worker: Worker) -> Callable[..., Source]:
    def open_it(path: Path | str, **choices: Any) -> Source:
        return open_source(path, "net", How(**choices), worker)

    return open_it


def ask(source: Source, folder: Path, **arrays: Any) -> Arrays:
    count = len(next(iter(arrays.values())))
    samples = SampleSet(save_arrays(folder / "asked", arrays), count, "samples")
    return source.model.predict(samples, Report(silent))


# Which files


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        ("model", False),
        ("x_train", False),
        ("a.b", False),
        ("model.keras", True),
        ("model.h5", True),
        ("model.tflite", True),
        ("graph.pb", True),
        ("./m", True),
        ("m/", True),
        ("~/m", True),
        (r"c:\m", True),
    ],
)
def test_words_that_can_only_mean_a_file_look_like_a_path(words: str, is_one: bool) -> None:
    assert files.looks_like_a_path(words) is is_one


def test_the_name_of_something_that_exists_looks_like_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not files.looks_like_a_path("exported")
    (tmp_path / "exported").mkdir()
    assert files.looks_like_a_path("exported")


def test_what_is_no_models_file_is_refused_with_what_lies_near(tmp_path: Path, opened: Any) -> None:
    (tmp_path / "dense.keras").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "bare").touch()
    (tmp_path / "served" / "3").mkdir(parents=True)
    (tmp_path / "served" / "3" / "saved_model.pb").touch()
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("dens.keras", r"no such file or variable[^!]*That folder has dense\.keras"),
        ("notes.txt", r"a file that ends in '\.txt'"),
        ("bare", "a file without an ending"),
        ("served", r"a directory without a saved_model\.pb[^!]*Did you mean .*served/3\?"),
        ("empty", r"a directory without a saved_model\.pb[^!]*Name the directory"),
    ):
        for part in ("model", "inputs", "sha256"):
            with pytest.raises(NotAModel, match=words):
                getattr(opened(tmp_path / name), part)


def test_a_path_may_be_typed_with_a_tilde_or_name_the_protocol_buffer_in_the_directory(
    tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    case = models.saved_model_of_a_module(tmp_path)
    for words in ("~/m", str(case.model), str(case.model / "saved_model.pb")):
        source = opened(words)
        assert [str(spec) for spec in source.inputs] == ["x: float32[?, 4]"]
        assert source.model.path == case.model


def test_a_relative_path_is_the_kernels_own(tmp_path: Path, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    models.frozen_graph(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert opened("m.pb").inputs[0].name == "x"


# SavedModels


def test_several_signatures_are_told_apart_by_name(tmp_path: Path, opened: Any) -> None:
    folder = models.saved_model_of_a_module(tmp_path).model
    signatures = {name: opened(folder, signature=name).model for name in ("serving_default", "weigh", "decode")}
    assert opened(folder).model.signature == signatures["serving_default"].signature
    assert [spec.name for spec in signatures["weigh"].signature.inputs] == ["ant", "zebra"]
    assert [str(spec) for spec in signatures["decode"].signature.outputs] == ["output_0: float32[?, 4]"]
    (note,) = signatures["weigh"].findings
    assert (note.level, note.code) == ("note", "other-signatures")
    with pytest.raises(NameNotFound, match=r"no signature 'embed': found decode, serving_default, weigh"):
        opened(folder, signature="embed").model  # noqa: B018


def test_several_signatures_without_a_default_are_refused_until_one_is_chosen(tmp_path: Path, opened: Any) -> None:
    import tensorflow as tf

    model = models.module()
    tf.saved_model.save(model, str(tmp_path), signatures={"weigh": model.weigh, "decode": model.decode})
    with pytest.raises(NameNotFound, match=r"net has several signatures: found decode, weigh[^!]*--signature decode"):
        opened(tmp_path).model  # noqa: B018
    assert opened(tmp_path, signature="decode").model.signature.name == "decode"


def test_a_saved_model_without_signatures_is_refused(tmp_path: Path, opened: Any) -> None:
    import tensorflow as tf

    tf.saved_model.save(tf.Module(), str(tmp_path))
    with pytest.raises(NameNotFound, match=r"found no signatures at all[^!]*Load it in the kernel"):
        opened(tmp_path).model  # noqa: B018


def test_a_saved_model_is_converted_as_it_is_and_rewritten_only_where_it_must_be(tmp_path: Path, opened: Any) -> None:
    case = models.saved_model_of_a_module(tmp_path)
    model = opened(case.model).model
    as_it_is = model.save(tmp_path / "a")
    assert (as_it_is.path, as_it_is.frozen, as_it_is.tags) == (case.model, False, ("serve",))
    assert model.route(as_it_is) == ("m read as it is",)
    rebuilt = model.save(tmp_path / "b", rebuilt=True)
    assert (rebuilt.path, rebuilt.frozen) == (tmp_path / "b", True)
    assert model.route(rebuilt) == ("m loaded, traced and frozen in a job",)
    fixed = opened(case.model, input_spec="1x4").model
    assert fixed.save(tmp_path / "c").signature.inputs[0].shape == (1, 4)
    np.testing.assert_allclose(ask(opened(case.model), tmp_path, **case.inputs)["y"], case.answers["y"], rtol=1e-6)


def test_unusual_tags_are_kept_for_the_converter(tmp_path: Path, opened: Any) -> None:
    model = opened(models.saved_model_with_unusual_tags(tmp_path).model).model
    assert set(model.save(tmp_path / "saved").tags) == {"mobile", "v7"}
    assert model.signature.name == "embed"


def writes_a_file(canary: Path) -> Any:
    import tensorflow as tf

    class Writer(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
        def __call__(self, x: Any) -> Any:
            with tf.control_dependencies([tf.io.write_file(str(canary), "here")]):
                return x * 2

    return Writer()


def reads_a_file(canary: Path) -> Any:
    import tensorflow as tf

    class Reader(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="path")])
        def __call__(self, path: Any) -> Any:
            return tf.map_fn(tf.io.read_file, path)

    return Reader()


@pytest.mark.parametrize(("make", "operation"), [(writes_a_file, "WriteFile"), (reads_a_file, "ReadFile")])
def test_a_saved_model_that_touches_files_is_refused_without_trust(
    tmp_path: Path, opened: Any, make: Any, operation: str
) -> None:
    import tensorflow as tf

    canary = tmp_path / "canary"
    tf.saved_model.save(make(canary), str(tmp_path / "m"))
    with pytest.raises(InputError, match=f"net touches the machine it runs on: found {operation}[^!]*--trust"):
        opened(tmp_path / "m").model  # noqa: B018
    assert not canary.exists()
    trusted = opened(tmp_path / "m", trust=True)
    if make is writes_a_file:
        np.testing.assert_array_equal(ask(trusted, tmp_path, x=models.normal(4))["output_0"], models.normal(4) * 2)
        assert canary.exists()  # so it would have been, had the graph run
    else:
        assert trusted.inputs[0].is_text


def saves_a_checkpoint(canary: Path) -> Any:
    import tensorflow as tf

    class Saver(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
        def __call__(self, x: Any) -> Any:
            saved = tf.raw_ops.SaveV2(prefix=str(canary), tensor_names=["x"], shape_and_slices=[""], tensors=[x])
            with tf.control_dependencies([saved] if saved is not None else []):
                return x * 2

    return Saver()


def writes_records(canary: Path) -> Any:
    import tensorflow as tf

    class Writer(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="x")])
        def __call__(self, x: Any) -> Any:
            records = tf.data.Dataset.from_tensor_slices(x)._variant_tensor
            tf.raw_ops.DatasetToTFRecord(input_dataset=records, filename=str(canary), compression_type="")
            return tf.strings.length(x)

    return Writer()


def prints_to_a_file(canary: Path) -> Any:
    import tensorflow as tf

    class Printer(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
        def __call__(self, x: Any) -> Any:
            tf.print("here", output_stream=f"file://{canary}")
            return x * 2

    return Printer()


def writes_beside_its_signature(canary: Path) -> Any:
    """What runs is named by the objects of the file and not by its signature."""
    import tensorflow as tf

    class Table(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = models.module()

        @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
        def __call__(self, x: Any) -> Any:
            return self.inner(x)

        @tf.function(input_signature=[])
        def _initialize(self) -> Any:
            tf.io.write_file(str(canary), "here")
            return 1

    return Table()


@pytest.mark.parametrize(
    ("make", "operation"),
    [
        (saves_a_checkpoint, "SaveV2"),
        (writes_records, "DatasetToTFRecord"),
        (prints_to_a_file, "PrintV2"),
        (writes_beside_its_signature, "WriteFile"),
    ],
)
def test_whatever_could_write_is_refused_though_a_saved_model_also_holds_what_saves_it(
    tmp_path: Path, opened: Any, make: Any, operation: str
) -> None:
    import tensorflow as tf

    canary = tmp_path / "canary"
    module = make(canary)
    with models.without_warnings():
        tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.__call__)
    with pytest.raises(InputError, match=f"net touches the machine it runs on: found [^!]*{operation}[^!]*--trust"):
        opened(tmp_path / "m").model  # noqa: B018
    assert not canary.exists()
    assert opened(tmp_path / "m", trust=True).model.signature.name == "serving_default"


def vocabulary(words: Path) -> Any:
    import tensorflow as tf

    class Words(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            line, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
            places = tf.lookup.TextFileInitializer(str(words), tf.string, line, tf.int64, number)
            self.codes = tf.lookup.StaticHashTable(places, -1)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])
        def __call__(self, words: Any) -> Any:
            tf.print("asked")
            return self.codes.lookup(words)

    return Words()


def test_a_vocabulary_among_the_files_of_a_saved_model_is_its_own_and_any_other_file_is_not(
    tmp_path: Path, opened: Any
) -> None:
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    (tmp_path / "words.txt").write_text("ant\nbee\n")
    tf.saved_model.save(vocabulary(tmp_path / "words.txt"), str(tmp_path / "m"))
    answers = ask(opened(tmp_path / "m"), tmp_path, words=np.array([b"bee", b"ant", b"cat"]))
    np.testing.assert_array_equal(answers["output_0"], [1, 0, -1])
    path = tmp_path / "m" / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    proto.meta_graphs[0].asset_file_def[0].filename = "../../words.txt"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="found InitializeTableFromTextFileV2"):
        opened(tmp_path / "m").model  # noqa: B018


@pytest.mark.parametrize("where", ["restore", "main_op"])
def test_what_loading_alone_would_run_is_looked_at_too(tmp_path: Path, opened: Any, where: str) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    path = models.saved_model_of_a_module(tmp_path).model / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    meta = proto.meta_graphs[0]
    writer = meta.graph_def.node.add(name="writer", op="WriteFile", input=["saver_filename", "saver_filename"])
    if where == "restore":
        meta.saver_def.restore_op_name = writer.name
    else:
        meta.collection_def["saved_model_main_op"].node_list.value.append(writer.name)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="net touches the machine it runs on: found WriteFile"):
        opened(path.parent).model  # noqa: B018


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
def test_a_saved_model_of_usual_layers_needs_no_trust_and_neither_remembers_nor_draws(
    tmp_path: Path, opened: Any, package: str
) -> None:
    keras = models.package_of(package)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((5, 3)), layers.GRU(4, return_sequences=True), layers.Dropout(0.5), layers.LSTM(3)]
    )
    models.weighed(model)
    if package == "keras":
        model.export(tmp_path / "m", verbose=False)
    else:
        model.save(tmp_path / "m")
    found = {finding.code for finding in opened(tmp_path / "m").model.findings}
    assert found <= {"other-signatures"}


# Keras files


def keras_file(package: str, path: Path, *layers: Any) -> Path:
    keras = models.package_of(package)
    with models.without_warnings():
        keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(3)]).save(path)
    return path


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_lambda_is_refused_without_trust_and_its_code_does_not_run(
    tmp_path: Path, opened: Any, package: str, suffix: str
) -> None:
    canary = str(tmp_path / "canary")
    keras = models.package_of(package)
    # Marshalled without its imports, so that nothing but a builtin can be called.
    layer = keras.layers.Lambda(lambda x: (open(canary, "w").close(), x * 2)[1], output_shape=(4,))  # noqa: PTH123
    path = keras_file(package, tmp_path / f"m{suffix}", layer)
    Path(canary).unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"net carries code, which loading it would run: found Lambda[^!]*--trust"):
        opened(path).model  # noqa: B018
    assert not Path(canary).exists()
    assert opened(path, trust=True).model.signature.outputs[0].shape == (None, 3)
    assert Path(canary).exists()  # so it would have been, had it been loaded


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_layer_of_the_persons_own_is_an_error_that_names_the_cure(
    tmp_path: Path, opened: Any, package: str, suffix: str
) -> None:
    keras = models.package_of(package)

    class Doubled(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x * 2

    path = keras_file(package, tmp_path / f"m{suffix}", Doubled())
    for trust in (False, True):
        with pytest.raises(InputError, match=r"Doubled|carries code") as caught:
            opened(path, trust=trust).model  # noqa: B018
    assert "Load it where its classes are defined" in caught.value.cure


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
def test_weights_alone_are_not_a_model_and_the_cure_says_how_to_load_them(
    tmp_path: Path, opened: Any, package: str
) -> None:
    keras = models.package_of(package)
    path = tmp_path / "m.weights.h5"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save_weights(path)
    with pytest.raises(NotAModel, match=r"weights without the model they belong to[^!]*Build the model in the kernel"):
        opened(path).model  # noqa: B018


def test_a_file_of_either_keras_is_read_by_the_keras_that_wrote_it(tmp_path: Path, opened: Any) -> None:
    outputs = {
        package: opened(keras_file(package, tmp_path / f"{package}.keras")).model.signature.outputs[0].name
        for package in ("keras", "tf_keras")
    }
    assert outputs["keras"] == "output_0"
    assert outputs["tf_keras"].startswith("dense")  # as only tf_keras names outputs


def test_a_keras_file_has_the_findings_layers_and_loops_of_the_model_in_it(tmp_path: Path, opened: Any) -> None:
    import keras

    models.recurrent(keras, "lstm").save(tmp_path / "m.keras")
    model = opened(tmp_path / "m.keras").model
    assert model.unrollable
    assert any(words.endswith("(LSTM)") for words in model.layers.values())
    unrolled = opened(tmp_path / "m.keras", unroll=True).model
    assert [finding.code for finding in unrolled.findings] == ["unrolled"]
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, dtype="mixed_float16")]).save(tmp_path / "half.keras")
    half = opened(tmp_path / "half.keras").model
    assert half.precision == "mixed_float16"
    assert [finding.code for finding in half.findings] == ["untrained", "mixed-precision"]


# Frozen graphs


def test_a_graph_is_cut_where_its_tensors_are_named(tmp_path: Path, opened: Any) -> None:
    path = models.frozen_graph(tmp_path).model
    cut = opened(path, inputs=("hidden",), outputs=("y", "Relu:0"))
    assert [str(spec) for spec in cut.inputs] == ["hidden: float32[?, 3]"]
    answers = ask(cut, tmp_path, hidden=models.normal(3))
    np.testing.assert_array_equal(answers["Relu"], np.maximum(models.normal(3), 0))
    with pytest.raises(NameNotFound, match=r"net has no tensor 'logits'[^!]*--inputs A,B --outputs C") as caught:
        opened(path, outputs=("logits",)).model  # noqa: B018
    assert "hidden" in caught.value.found


def test_two_outputs_of_one_operation_keep_apart(tmp_path: Path, opened: Any) -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, (None, 4), name="x")
        tf.split(x, 2, axis=1, name="halves")
    path = tmp_path / "m.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    answers = ask(opened(path, outputs=("halves:0", "halves:1")), tmp_path, x=models.normal(4))
    assert list(answers) == ["halves_0", "halves_1"]
    np.testing.assert_array_equal(answers["halves_0"], models.normal(4)[:, :2])
    np.testing.assert_array_equal(answers["halves_1"], models.normal(4)[:, 2:])


def test_a_graph_whose_variables_are_elsewhere_is_refused(tmp_path: Path, opened: Any) -> None:
    with models.v1_graph() as (session, *_):
        (tmp_path / "m.pb").write_bytes(session.graph_def.SerializeToString())
    with pytest.raises(InputError, match=r"net is not frozen: found VariableV2[^!]*Freeze it"):
        opened(tmp_path / "m.pb").model  # noqa: B018


def test_a_graph_that_touches_files_is_refused_without_trust(tmp_path: Path, opened: Any) -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.io.read_file(tf.compat.v1.placeholder(tf.string, (), name="path"), name="content")
    (tmp_path / "m.pb").write_bytes(graph.as_graph_def().SerializeToString())
    with pytest.raises(InputError, match="net touches the machine it runs on: found ReadFile"):
        opened(tmp_path / "m.pb").model  # noqa: B018
    assert opened(tmp_path / "m.pb", trust=True).inputs[0].is_text


# .tflite files


def test_a_lite_file_is_asked_by_litert_and_handed_on_as_it_is(tmp_path: Path, opened: Any) -> None:
    case = models.lite_file(tmp_path)
    source = opened(case.model)
    assert {spec.name for spec in source.inputs} == {"zebra", "ant"}
    wanted = by_hand.answers(case.model.read_bytes(), case.inputs)
    for name, answer in ask(source, tmp_path, **case.inputs).items():
        np.testing.assert_allclose(answer, wanted[name], atol=1e-6)
    assert source.model.save(tmp_path / "unused").path == case.model
    assert source.model.route(source.model.save(tmp_path / "unused")) == ("m.tflite read as it is",)
    with pytest.raises(NameNotFound, match="no signature 'embed': found serving_default"):
        opened(case.model, signature="embed").model  # noqa: B018


def test_a_lite_file_of_several_signatures_is_asked_by_one_and_another_is_refused(tmp_path: Path, opened: Any) -> None:
    import tensorflow as tf

    case = models.saved_model_of_a_module(tmp_path)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(case.model), signature_keys=["serving_default", "decode"])
    path = tmp_path / "both.tflite"
    path.write_bytes(converter.convert())
    asked = opened(path).model.signature
    assert [str(spec) for spec in asked.inputs] == {
        "serving_default": ["x: float32[?, 4]"],
        "decode": ["y: float32[?, 3]"],
    }[asked.name]
    (other,) = {"serving_default", "decode"} - {asked.name}
    with pytest.raises(NameNotFound, match=f"no signature '{other}'"):
        opened(path, signature=other).model  # noqa: B018


# Files that are not whole


@pytest.mark.parametrize("kind", models.FILES)
def test_a_truncated_file_is_an_error_and_not_a_crash(tmp_path: Path, opened: Any, kind: str) -> None:
    whole: Path = models.FILES[kind](tmp_path).model
    content = (whole / "saved_model.pb" if kind == "saved_model" else whole).read_bytes()
    for share in (0, 0.1, 0.5, 0.9):
        path = tmp_path / f"cut{int(share * 100)}{whole.suffix}"
        if kind == "saved_model":
            shutil.copytree(whole, path)
        target = path / "saved_model.pb" if kind == "saved_model" else path
        target.write_bytes(content[: int(share * len(content))])
        with pytest.raises(TfdeployError) as caught:
            opened(path).model  # noqa: B018
        assert isinstance(caught.value, InputError), caught.value


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_saved_model_without_its_variables_is_an_error_when_it_is_asked(
    tmp_path: Path, opened: Any, damage: str
) -> None:
    case = models.saved_model_of_a_module(tmp_path)
    for part in (case.model / "variables").iterdir():
        content = part.read_bytes()
        part.unlink()
        if damage != "missing":
            part.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    with pytest.raises(InputError, match=r"net cannot be opened[^!]*Was it written to its end"):
        ask(opened(case.model), tmp_path, **case.inputs)


def test_a_model_that_fails_while_it_is_asked_is_not_said_to_be_cut_off(tmp_path: Path, opened: Any) -> None:
    import tensorflow as tf

    class Words(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 2), tf.int32, name="words")])
        def __call__(self, words: Any) -> Any:
            return tf.gather(tf.reshape(tf.range(20.0), (10, 2)), words)

    model = Words()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([model.__call__.get_concrete_function()], model)
    (tmp_path / "m.tflite").write_bytes(converter.convert())
    with pytest.raises(InputError, match=r"net failed while being asked[^!]*a model that answers this data") as caught:
        ask(opened(tmp_path / "m.tflite"), tmp_path, words=np.array([[1, 99]], "int32"))
    assert "written to its end" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".keras", ".h5", ".pb", ".tflite"])
def test_what_only_ends_like_a_models_file_is_not_a_model(tmp_path: Path, opened: Any, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(np.random.default_rng(0).bytes(4000))
    with pytest.raises(NotAModel, match="net is not a model"):
        opened(path).model  # noqa: B018


# Processes and digests


def test_a_source_ends_its_own_process_when_it_is_closed(tmp_path: Path) -> None:
    source = open_source(models.frozen_graph(tmp_path).model, "net")
    assert isinstance(source.model, StoredModel)
    assert source.worker.pid is not None
    source.close()
    assert source.worker.pid is None


def test_the_digest_of_a_file_changes_with_its_bytes_and_with_the_choices_made_about_it(
    tmp_path: Path, opened: Any
) -> None:
    folder = models.saved_model_of_a_module(tmp_path).model
    choices = ({}, {"signature": "weigh"}, {"input_spec": "1x4"}, {"trust": True}, {"unroll": True})
    assert len({opened(folder, **each).sha256 for each in choices}) == len(choices)
    assert opened(folder).sha256 == opened(str(folder)).sha256
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert opened(moved).sha256 == opened(folder).sha256
    variables = next((moved / "variables").glob("*.data*"))
    content = bytearray(variables.read_bytes())
    content[-1] ^= 1
    variables.write_bytes(content)
    assert opened(moved).sha256 != opened(folder).sha256


def test_variables_behind_a_link_are_part_of_the_digest_and_of_the_size(tmp_path: Path, opened: Any) -> None:
    folder = models.saved_model_of_a_module(tmp_path).model
    before, listed = opened(folder).sha256, graphs.files_in(folder)
    (folder / "variables").rename(tmp_path / "elsewhere")
    (folder / "variables").symlink_to(tmp_path / "elsewhere")
    assert opened(folder).sha256 == before
    assert graphs.files_in(folder) == listed
    variables = next((tmp_path / "elsewhere").glob("*.data*"))
    variables.write_bytes(bytes(variables.stat().st_size))
    assert opened(folder).sha256 != before
