from __future__ import annotations

import random
import shutil
import signal
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluate import by_hand
from tests.notebook.kernels import ROOT, kernel
from tfdeploy_magic.artifacts.evidence import Evidence
from tfdeploy_magic.artifacts.models import LiteFile
from tfdeploy_magic.commands import inspect as module
from tfdeploy_magic.commands.inspect import inspect
from tfdeploy_magic.commands.lite_model import LiteModel
from tfdeploy_magic.convert.describe import describe
from tfdeploy_magic.errors import InputError, NameNotFound, NotAModel, TfdeployError
from tfdeploy_magic.jobs import Worker
from tfdeploy_magic.views.inspection import PASSING_ON, Inspection

RANDOM = np.random.default_rng(0)


def computing(operators: Any) -> dict[str, int]:
    return {name: count for name, count in operators.items() if name not in PASSING_ON}


def codes(found: Inspection) -> list[str]:
    return [finding.code for finding in found.findings]


@pytest.fixture(scope="module")
def model() -> Any:
    import keras

    made = keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax", name="answer"),
        ]
    )
    made.set_weights([RANDOM.uniform(0.1, 1, weight.shape) for weight in made.get_weights()])
    return made


@pytest.fixture(scope="module")
def frozen(model: Any) -> Any:
    """The model as TensorFlow freezes it: every function inlined, every weight a constant."""
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(tf.TensorSpec((None, 8, 8, 1)))
    return convert_to_constants.convert_variables_to_constants_v2(function).graph


@pytest.fixture(scope="module")
def kept(model: Any, frozen: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model in every form it takes on disk."""
    folder = tmp_path_factory.mktemp("models")
    paths = {
        "saved_model": folder / "exported",
        **{kind: folder / f"model.{kind}" for kind in ("keras", "h5", "pb", "tflite")},
    }
    model.export(paths["saved_model"], verbose=False)
    model.save(paths["keras"])
    model.save(paths["h5"])
    paths["pb"].write_bytes(frozen.as_graph_def().SerializeToString())
    rows = RANDOM.uniform(0, 1, (20, 8, 8, 1)).astype("float32")
    paths["tflite"].write_bytes(by_hand.plain_file(model, "int8", "int8", rows))
    return paths


@pytest.fixture
def copies(kept: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The same, for a test to spoil."""
    for path in kept.values():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    return {kind: tmp_path / path.name for kind, path in kept.items()}


# What is found is what is there


def test_a_keras_model_in_the_kernel_is_described_truly(model: Any, frozen: Any) -> None:
    found = inspect(model)
    assert (found.kind, found.name, found.path, found.size) == ("keras", "model", None, None)
    assert [(spec.name, spec.shape, spec.dtype) for spec in found.inputs] == [("image", (None, 8, 8, 1), "float32")]
    assert [spec.shape for spec in found.outputs] == [(None, 10)]
    assert found.parameters == model.count_params()
    assert found.trainable == sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert found.variables == len(model.weights)
    assert dict(found.weights) == {"float32": 4 * model.count_params()}
    assert computing(found.operators) == computing(Counter(op.type for op in frozen.get_operations()))
    for layer, made in zip(found.layers, model.layers, strict=True):
        assert (layer.name, layer.kind, layer.parameters) == (made.name, type(made).__name__, made.count_params())
        assert layer.output == str(made.output.shape).replace("(", "[").replace(")", "]").replace("None", "?")


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_a_keras_file_holds_the_model_that_was_saved(model: Any, kept: dict[str, Path], kind: str) -> None:
    import keras

    found, original = inspect(kept[kind]), inspect(model)
    for name in ("kind", "description", "operators", "weights", "parameters", "trainable", "layers", "precision"):
        assert getattr(found, name) == getattr(original, name), name
    assert found.size == kept[kind].stat().st_size
    assert found.written_by == f"Keras {keras.__version__}"
    if kind == "keras":
        with zipfile.ZipFile(kept[kind]) as archive:
            assert dict(found.files) == {name: len(archive.read(name)) for name in archive.namelist()}


@pytest.mark.parametrize("inner", ["", "saved_model.pb"])
def test_a_saved_model_says_what_loading_it_would_show(
    model: Any, kept: dict[str, Path], frozen: Any, inner: str
) -> None:
    import tensorflow as tf

    path = kept["saved_model"]
    found, loaded = inspect(path / inner), tf.saved_model.load(str(path))
    assert list(found.signatures) == ["serving_default", *sorted(set(loaded.signatures) - {"serving_default"})]
    for name, signature in found.signatures.items():
        (_, takes), gives = (
            loaded.signatures[name].structured_input_signature,
            loaded.signatures[name].structured_outputs,
        )
        for specs, truth in ((signature.inputs, takes), (signature.outputs, gives)):
            assert {s.name: (s.shape, s.dtype) for s in specs} == {
                n: (tuple(t.shape), t.dtype.name) for n, t in truth.items()
            }
    assert computing(found.operators) == computing(Counter(op.type for op in frozen.get_operations()))
    assert (found.variables, found.parameters) == (len(model.weights), model.count_params())
    assert (found.tags, found.written_by) == (("serve",), f"TensorFlow {tf.__version__}")
    assert found.size == sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
    assert found.files["saved_model.pb"] == (path / "saved_model.pb").stat().st_size
    assert (found.path, found.findings) == (path, ())


def test_a_frozen_graph_holds_its_weights_as_constants(kept: dict[str, Path], frozen: Any) -> None:
    import tensorflow as tf

    found = inspect(str(kept["pb"]))
    assert found.kind == "graph"
    assert computing(found.operators) == computing(Counter(op.type for op in frozen.get_operations()))
    constants: Counter[str] = Counter()
    for op in frozen.get_operations():
        if op.type == "Const":
            value = tf.make_ndarray(op.get_attr("value"))
            constants[value.dtype.name] += value.nbytes
    assert dict(found.weights) == dict(constants)
    assert (found.variables, found.parameters) == (0, 0)


def test_a_tflite_file_is_what_the_interpreter_sees(kept: dict[str, Path]) -> None:
    found, interpreter = inspect(kept["tflite"]), by_hand.interpreter(kept["tflite"].read_bytes())
    runner = interpreter.get_signature_runner()
    for specs, details in ((found.inputs, runner.get_input_details()), (found.outputs, runner.get_output_details())):
        assert [(s.name, s.dtype) for s in specs] == [(n, d["dtype"].__name__) for n, d in details.items()]
        assert [(s.scale, s.zero_point) for s in specs] == [pytest.approx(d["quantization"]) for d in details.values()]
    fresh = by_hand.interpreter(kept["tflite"].read_bytes())
    operators = [op for op in fresh._get_ops_details() if op["op_name"] != "DELEGATE"]
    assert dict(found.operators) == dict(Counter(op["op_name"] for op in operators))
    made = {int(index) for op in operators for index in op["outputs"]}
    given = {details["index"] for details in fresh.get_input_details()}
    constants = {int(index) for op in operators for index in op["inputs"]} - made - given - {-1}
    sizes: Counter[str] = Counter()
    for index in constants:
        value = fresh.get_tensor(index)
        sizes[value.dtype.name] += value.nbytes
    assert dict(found.weights) == dict(sizes)
    assert (found.loads, found.size, found.files) == (True, kept["tflite"].stat().st_size, {})
    assert (found.file.subgraphs, found.file.min_runtime_version) == (1, "1.14.0")
    quantized, total = found.quantized_outputs
    assert quantized == total > 0


def test_files_appended_to_a_tflite_file_are_listed_and_never_extracted(
    copies: dict[str, Path], tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with zipfile.ZipFile(copies["tflite"], "a") as archive:
        archive.writestr("labels.txt", "zero\none\n")
        archive.writestr("../../outside.txt", "x")
    found = inspect(copies["tflite"])
    assert dict(found.files) == {"labels.txt": 9, "../../outside.txt": 1}
    assert found.loads
    assert sorted(tmp_path.rglob("*")) == before


def test_a_tflite_file_without_signatures_goes_by_its_tensors_names(copies: dict[str, Path]) -> None:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    bare = schema.ModelT.InitFromPackedBuf(copies["tflite"].read_bytes(), 0)
    bare.signatureDefs = None
    builder = flatbuffers.Builder(1024)
    builder.Finish(bare.Pack(builder), b"TFL3")
    copies["tflite"].write_bytes(bytes(builder.Output()))
    found = inspect(copies["tflite"])
    (details,) = by_hand.interpreter(copies["tflite"].read_bytes()).get_input_details()
    assert [spec.name for spec in found.inputs] == [details["name"].partition(":")[0]]
    assert codes(found) == ["no-signatures"]


def test_a_converted_model_is_looked_at_where_it_lives_now(copies: dict[str, Path]) -> None:
    file = LiteFile.from_description(copies["tflite"], "int8", describe(copies["tflite"]))
    lite = LiteModel(file, Evidence(), None)  # type: ignore[arg-type]  (how it was made does not matter here)
    found = inspect(lite)
    assert (found.kind, found.file, found.findings) == ("lite", file, ())
    content = bytearray(file.path.read_bytes())
    content[-1] ^= 1
    file.path.write_bytes(content)
    assert codes(inspect(lite)) == ["changed"]


def test_functions_modules_and_loaded_saved_models_are_looked_at_in_the_kernel(kept: dict[str, Path]) -> None:
    import tensorflow as tf

    @tf.function
    def scale(x: Any) -> Any:
        return tf.nn.relu(3.0 * x)

    found = inspect(scale, input_spec="?x3")
    assert (found.kind, str(found.inputs[0])) == ("tensorflow", "x: float32[?, 3]")
    assert computing(found.operators) == {"Mul": 1, "Relu": 1}
    loaded = inspect(tf.saved_model.load(str(kept["saved_model"])))
    assert list(loaded.signatures) == list(inspect(kept["saved_model"]).signatures)
    assert computing(loaded.operators) == computing(inspect(kept["saved_model"]).operators)


def test_a_model_of_keras_2_is_looked_at_too(tmp_path: Path) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    model = tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Dense(2, bias_initializer="ones")])
    model.save(tmp_path / "old.keras")
    here, there = inspect(model), inspect(tmp_path / "old.keras")
    assert (here.parameters, here.trainable) == (8, 8)
    assert [(layer.kind, layer.output) for layer in here.layers] == [("Dense", "[?, 2]")]
    assert there.layers == here.layers
    assert there.written_by == f"Keras {tf_keras.__version__}"


# Several signatures, none, and odd ones


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tensorflow as tf

    class Two(tf.Module):
        def __init__(self) -> None:
            self.weight = tf.Variable(tf.ones((4, 3)))

        @tf.function(input_signature=[tf.TensorSpec((None, 4))])
        def embed(self, x: Any) -> Any:
            return x @ self.weight

        @tf.function(input_signature=[tf.TensorSpec((2, 4))])
        def judge(self, x: Any) -> Any:
            return tf.nn.relu(x @ self.weight)

    path, two = tmp_path_factory.mktemp("several") / "two", Two()
    tf.saved_model.save(two, str(path), signatures={"embed": two.embed, "judge": two.judge})
    return path


def test_of_several_signatures_all_are_shown_and_one_can_be_chosen(several: Path) -> None:
    everything = inspect(several)
    assert list(everything.signatures) == ["embed", "judge"]
    assert computing(everything.operators) == {"MatMul": 2, "Relu": 1}
    embed, judge = (inspect(several, signature=name) for name in ("embed", "judge"))
    assert (next(iter(judge.signatures)), computing(judge.operators)) == ("judge", {"MatMul": 1, "Relu": 1})
    assert computing(embed.operators) == {"MatMul": 1}
    assert str(inspect(several, signature="embed", input_spec="7x4").inputs[0]) == "x: float32[7, 4]"
    with pytest.raises(NameNotFound, match="found embed, judge"):
        inspect(several, signature="other")
    with pytest.raises(InputError, match="does not go with"):
        inspect(several, signature="judge", input_spec="7x4")


def test_a_signature_that_a_tflite_file_lacks_is_named_with_those_it_has(kept: dict[str, Path]) -> None:
    with pytest.raises(NameNotFound, match="found serving_default"):
        inspect(kept["tflite"], signature="other")


def test_a_saved_model_without_signatures_says_so_and_shows_the_rest(tmp_path: Path) -> None:
    import tensorflow as tf

    module_ = tf.Module()
    module_.weight = tf.Variable(tf.ones((4, 3)))
    for name in ("one", "two"):  # of a single function TensorFlow makes a signature by itself
        function = tf.function(lambda x: x @ module_.weight, input_signature=[tf.TensorSpec((None, 4))])
        setattr(module_, name, function)
    tf.saved_model.save(module_, str(tmp_path / "plain"))
    found = inspect(tmp_path / "plain")
    assert (codes(found), dict(found.signatures), found.parameters) == (["no-signatures"], {}, 12)
    assert found.operators["MatMul"] == 2
    assert "no signatures" in found._repr_mimebundle_()["text/plain"]


def test_a_saved_model_that_reads_files_is_shown_with_a_warning(tmp_path: Path) -> None:
    import tensorflow as tf

    module_ = tf.Module()
    module_.call = tf.function(tf.io.read_file, input_signature=[tf.TensorSpec((), "string")])
    tf.saved_model.save(module_, str(tmp_path / "reader"), signatures={"serving_default": module_.call})
    found = inspect(tmp_path / "reader")
    assert codes(found) == ["file-ops"]
    assert "ReadFile" in found.findings[0].message


def test_code_in_a_file_is_not_run_unless_it_is_trusted(tmp_path: Path) -> None:
    import keras

    path = tmp_path / "lambda.keras"
    keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x * 2)]).save(path)
    with pytest.raises(InputError, match="carries code"):
        inspect(path)
    assert inspect(path, trust=True).layers[0].kind == "Lambda"


# What is missing is said


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda folder: (folder / "variables.index").unlink(), "no-variables"),
        (lambda folder: (folder / "variables.index").write_bytes(b"x" * 300), "variables-broken"),
        (lambda folder: next(folder.glob("*.data*")).write_bytes(b"x" * 300), "variables-cut"),
    ],
)
def test_variables_that_are_missing_or_cut_are_an_error_finding(copies: dict[str, Path], spoil: Any, code: str) -> None:
    spoil(copies["saved_model"] / "variables")
    found = inspect(copies["saved_model"])
    assert codes(found) == [code]
    assert "next:" not in found._repr_mimebundle_()["text/plain"]


def test_an_asset_that_is_missing_is_an_error_finding(tmp_path: Path) -> None:
    import tensorflow as tf

    (tmp_path / "words.txt").write_text("a\nb\n")
    holder = tf.Module()
    holder.words = tf.saved_model.Asset(str(tmp_path / "words.txt"))
    holder.call = tf.function(lambda x: x + 1, input_signature=[tf.TensorSpec((None,))])
    tf.saved_model.save(holder, str(tmp_path / "m"), signatures={"serving_default": holder.call})
    found = inspect(tmp_path / "m")
    assert (found.files["assets/words.txt"], found.findings) == (4, ())
    (tmp_path / "m" / "assets" / "words.txt").unlink()
    assert codes(inspect(tmp_path / "m")) == ["no-asset"]


@pytest.mark.parametrize(
    ("task", "arguments", "said"),
    [
        ("die", {"number": int(signal.SIGSEGV)}, "SIGSEGV in stage 'dying'"),
        ("hang", {}, "no result after 2 s"),
        ("fail", {}, "ZeroDivisionError"),
    ],
)
def test_a_file_that_kills_or_hangs_litert_is_shown_and_called_so(
    kept: dict[str, Path], monkeypatch: pytest.MonkeyPatch, task: str, arguments: dict[str, Any], said: str
) -> None:
    real = Worker.call

    def call(worker: Worker, asked: str, given: Any, **more: Any) -> Any:
        if asked.endswith(":load_task"):
            return real(worker, f"tests.jobs.tasks:{task}", arguments, **more)
        return real(worker, asked, given, **more)

    monkeypatch.setattr(Worker, "call", call)
    found = inspect(kept["tflite"], timeout=2 if task == "hang" else 60)
    assert found.loads is False
    assert codes(found) == ["does-not-load"]
    assert said in found.findings[0].message
    assert found.operators["CONV_2D"] == 1


@pytest.mark.parametrize("name", ["none.tflite", "none", "folder", "text.txt"])
def test_what_is_no_model_costs_two_lines(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(NotAModel) as caught:
        inspect(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 2


# Broken files


class Warm(Worker):
    """A worker that a command cannot close: one process for many files."""

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def warm() -> Iterator[Worker]:
    worker = Warm(deadline=60)
    yield worker
    Worker.close(worker)


def mutated(content: bytes, seed: int) -> bytes:
    """Return a file as a broken download, a full disk or a careless editor leaves it."""
    draw = random.Random(seed)
    broken = bytearray(content)
    at, length = draw.randrange(len(broken)), draw.randrange(2, 256)
    match draw.choice(("cut", "bit", "bytes", "zeros", "inserted", "shuffled")):
        case "cut":
            del broken[at:]
        case "bit":
            broken[at] ^= 1 << draw.randrange(8)
        case "bytes":
            for _ in range(draw.randrange(2, 64)):
                broken[draw.randrange(len(broken))] = draw.randrange(256)
        case "zeros":
            broken[at : at + length] = bytes(len(broken[at : at + length]))
        case "inserted":
            broken[at:at] = draw.randbytes(length)
        case _:
            part = broken[at : at + length]
            draw.shuffle(part)
            broken[at : at + length] = part
    return bytes(broken)


PARTS = {
    "tflite": "",
    "pb": "",
    "keras": "",
    "h5": "",
    "saved_model": "saved_model.pb",
    "saved_model variables": "variables/variables.index",
}


def assert_each_mutation_ends_well(thing: Path, part: Path, seeds: range, warm: Worker, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "Worker", lambda **_: warm)
    content = part.read_bytes()
    for seed in seeds:
        part.write_bytes(mutated(content, seed))
        try:
            shown = inspect(thing)._repr_mimebundle_()
        except TfdeployError as error:
            assert len(str(error).splitlines()) == 2, (seed, str(error))
            assert "deadline" not in str(error), seed
        else:
            assert all(rendering.encode() for rendering in shown.values())


@pytest.mark.parametrize("kind", PARTS)
def test_a_broken_file_is_a_card_or_an_error_of_two_lines(
    copies: dict[str, Path], kind: str, warm: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    thing = copies[kind.split()[0]]
    assert_each_mutation_ends_well(thing, thing / PARTS[kind], range(30), warm, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("kind", PARTS)
def test_three_hundred_broken_files_of_a_kind_cost_no_kernel(
    copies: dict[str, Path], kind: str, warm: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    thing = copies[kind.split()[0]]
    assert_each_mutation_ends_well(thing, thing / PARTS[kind], range(30, 330), warm, monkeypatch)


# As a person uses it


def test_the_magic_shows_a_card_gives_a_value_and_survives_a_broken_file(
    copies: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "kernel"
    folder.mkdir()
    with kernel(folder) as running:
        running.run(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n%load_ext tfdeploy_magic")
        shown = running.run(f"found = %inspect {copies['keras']}")
        assert shown.status == "ok", shown.error_text
        assert len(shown.displays) == 1
        assert "Conv2D" in shown.displays[0]["text/plain"]
        assert "data:image/png;base64," in shown.displays[0]["text/html"]
        value = running.run("len(found.layers), found.signatures['serving_default'].inputs[0].shape")
        assert value.results[0]["text/plain"] == "(4, (None, 8, 8, 1))"
        assert running.run("'tensorflow' in sys.modules").results[0]["text/plain"] == "False"
        copies["tflite"].write_bytes(copies["tflite"].read_bytes()[:700])
        broken = running.run(f"%inspect {copies['tflite']}")
        assert broken.error_name == "NotAModel"
        assert len(broken.error_text.splitlines()) == 2
        running.run("import keras\nmodel = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])")
        assert "dense" in running.run("%inspect model").displays[0]["text/plain"]
        assert "looks untrained" in running.run("_").text
        running.run("lite = %tflite_convert model")
        assert "FULLY_CONNECTED" in running.run("%inspect lite").displays[0]["text/plain"]
        assert running.run("_.file == lite.file, _.loads").results[0]["text/plain"] == "(True, True)"
