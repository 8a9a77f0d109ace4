"""A .tflite file is served under the signatures that it has, listed or not, and answers as the model it was made of."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.serving import saved_models as builders
from tests.serving.saved_models import SavedModels
from tfdeploy_magic.serving.calls import Call
from tfdeploy_magic.serving.lite import LiteEngine
from tfdeploy_magic.serving.protos import meta_graph_pb2, types_pb2
from tfdeploy_magic.serving.servable import LoadedVersion, Settings
from tfdeploy_magic.serving.status import Code, Refusal

X = np.array([1, 2, 5], np.float32)


def converted(saved_model: Path) -> bytes:
    import tensorflow as tf

    return bytes(tf.lite.TFLiteConverter.from_saved_model(str(saved_model)).convert())


def without_signatures(content: bytes, listed: bytes | None = None) -> bytes:
    """Return a file as old converters wrote it, maybe with metadata that lists signatures."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    model.signatureDefs = None
    if listed is not None:
        buffer, metadata = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(listed, np.uint8)
        model.buffers.append(buffer)
        metadata.name, metadata.buffer = b"signature_defs_metadata", len(model.buffers) - 1
        model.metadata = [*(model.metadata or []), metadata]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def flexbuffer_map(values: dict[str, bytes]) -> bytes:
    """Return a map of strings that are no UTF-8, as TensorFlow's C++ writes it; Python's builder only takes text."""
    from flatbuffers import flexbuffers

    builder = flexbuffers.Builder()
    with builder.Map():
        for key, value in values.items():
            builder.Key(key)
            builder._WriteBlob(value, append_zero=True, type_=flexbuffers.Type.STRING)
    return bytes(builder.Finish())


def written(folder: Path, content: bytes) -> Path:
    (folder / "1").mkdir(parents=True)
    (folder / "1/model.tflite").write_bytes(content)
    return folder


@contextmanager
def loaded(base: Path, interpreters: int = 2) -> Iterator[LoadedVersion]:
    version = LoadedVersion("lite", 1, base / "1", Settings(lite=True, lite_interpreters=interpreters))
    try:
        yield version
    finally:
        version.close()


def call(version: LoadedVersion, key: str = "serving_default", **inputs: Any) -> Call:
    return Call(key, inputs, tuple(sorted(version.signatures[key].outputs)))


@pytest.fixture(scope="module")
def several(saved_models: SavedModels) -> bytes:
    return converted(saved_models.several / "1")


@pytest.fixture(scope="module")
def many(saved_models: SavedModels) -> bytes:
    return converted(saved_models.many / "1")


def test_each_signature_of_a_file_is_served(saved_models: SavedModels, several: bytes, tmp_path: Path) -> None:
    import tensorflow as tf

    model = tf.saved_model.load(str(saved_models.several / "1"))
    with loaded(written(tmp_path, several)) as version:
        assert set(version.signatures) == {"serving_default", "doubled", "sums"}
        for key, x in {"serving_default": X, "doubled": X, "sums": np.ones((2, 3), np.float32)}.items():
            for found in (version.answer(call(version, key, x=x)), version.submit(call(version, key, x=x)).result(60)):
                wanted = model.signatures[key](x=tf.constant(x))
                assert set(found) == set(wanted)
                for name, array in wanted.items():
                    np.testing.assert_allclose(found[name], array.numpy(), rtol=1e-6)


def test_a_signature_says_names_dtypes_and_open_dimensions(many: bytes, tmp_path: Path) -> None:
    with loaded(written(tmp_path, many)) as version:
        signature = version.signatures["serving_default"]
        inputs = {
            name: (info.dtype, [dim.size for dim in info.tensor_shape.dim]) for name, info in signature.inputs.items()
        }
        assert inputs == {"a": (types_pb2.DT_FLOAT, [-1, 2]), "b": (types_pb2.DT_INT64, [-1])}
        assert {name: info.dtype for name, info in signature.outputs.items()} == {
            "scaled": types_pb2.DT_FLOAT,
            "parity": types_pb2.DT_BOOL,
        }
        assert signature.method_name == "tensorflow/serving/predict"


def test_several_inputs_and_outputs_and_any_number_of_rows(many: bytes, tmp_path: Path) -> None:
    with loaded(written(tmp_path, many)) as version:
        for rows in (1, 4, 2):
            a, b = np.full((rows, 2), 3, np.float32), np.arange(rows)
            found = version.answer(call(version, a=a, b=b))
            assert found["scaled"].tolist() == (a * b[:, None]).tolist()
            assert found["parity"].tolist() == (b % 2 == 0).tolist()
        only = Call("serving_default", {"b": b, "a": a}, ("parity",))
        assert {name: array.tolist() for name, array in version.answer(only).items()} == {"parity": [True, False]}


def test_a_file_without_signatures_is_served_by_its_tensors_names(many: bytes, tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    content = without_signatures(many)
    plain = Interpreter(model_content=content)
    assert plain.get_signature_list() == {}
    names = {row["name"]: row for row in plain.get_input_details()}
    a, b = (next(name for name, row in names.items() if len(row["shape"]) == rank) for rank in (2, 1))
    with loaded(written(tmp_path, content)) as version:
        signature = version.signatures["serving_default"]
        assert set(signature.inputs) == {a, b}
        for rows in (2, 5, 5, 1):
            given = {a: np.full((rows, 2), 3, np.float32), b: np.arange(rows)}
            for name, array in given.items():
                plain.resize_tensor_input(names[name]["index"], array.shape)
            plain.allocate_tensors()
            for name, array in given.items():
                plain.set_tensor(names[name]["index"], array)
            plain.invoke()
            wanted = {row["name"]: plain.get_tensor(row["index"]) for row in plain.get_output_details()}
            found = version.answer(call(version, **given))
            assert len(found) == 2
            assert {name: array.tolist() for name, array in found.items()} == {
                name: array.tolist() for name, array in wanted.items()
            }


def test_signatures_listed_in_the_metadata_name_the_tensors(many: bytes, tmp_path: Path) -> None:
    bare = LiteEngine(written(tmp_path / "bare", without_signatures(many)) / "1/model.tflite", 1)
    own = bare.signatures["serving_default"]
    listed = meta_graph_pb2.SignatureDef(method_name="tensorflow/serving/predict")
    for info in own.inputs.values():
        listed.inputs["matrix" if len(info.tensor_shape.dim) == 2 else "numbers"].CopyFrom(info)
    for info in own.outputs.values():
        listed.outputs["even" if info.dtype == types_pb2.DT_BOOL else "product"].CopyFrom(info)
    serialized = listed.SerializeToString()
    with pytest.raises(UnicodeDecodeError):
        serialized.decode()  # otherwise this would show less
    content = without_signatures(many, flexbuffer_map({"by_hand": serialized, "once_more": serialized}))
    with loaded(written(tmp_path / "listed", content)) as version:
        assert set(version.signatures) == {"by_hand", "once_more"}
        assert version.signatures["by_hand"] == listed
        asked = call(version, "by_hand", matrix=np.ones((2, 2), np.float32), numbers=np.array([2, 3]))
        found = version.answer(asked)
        assert found["product"].tolist() == [[2, 2], [3, 3]]
        assert found["even"].tolist() == [True, False]


def test_texts_go_in_and_come_out(tmp_path: Path) -> None:
    import tensorflow as tf

    specs = {"text": tf.TensorSpec([None], tf.string)}
    builders.save(tmp_path / "saved", {"serving_default": (lambda text: {"swapped": tf.gather(text, [1, 0])}, specs)})
    with loaded(written(tmp_path / "lite", converted(tmp_path / "saved"))) as version:
        assert version.signatures["serving_default"].inputs["text"].dtype == types_pb2.DT_STRING
        found = version.answer(call(version, text=np.array([b"one", b"\xff\x00"], object)))
        assert found["swapped"].tolist() == [b"\xff\x00", b"one"]


def test_sixteen_threads_get_their_own_answers(several: bytes, tmp_path: Path) -> None:
    with loaded(written(tmp_path, several), interpreters=3) as version, ThreadPoolExecutor(16) as pool:

        def ask(seed: int) -> None:
            draw = np.random.default_rng(seed)
            for at in range(30):
                x: npt.NDArray[Any] = draw.random(int(draw.integers(1, 5)), np.float32)
                asked = call(version, "doubled" if at % 3 else "serving_default", x=x)
                found = version.answer(asked) if at % 2 else version.submit(asked).result(60)
                np.testing.assert_allclose(found["y"], x * 2 if at % 3 else x * 0.5 + 2, rtol=1e-6)

        assert len(list(pool.map(ask, range(16)))) == 16


def test_a_short_call_is_answered_where_it_arrives_unless_all_interpreters_are_busy(
    several: bytes, tmp_path: Path
) -> None:
    with loaded(written(tmp_path, several), interpreters=1) as version:
        asked = call(version, x=X)
        assert version.short == {"serving_default", "doubled", "sums"}
        assert version.inline(asked)
        with version._engine._borrowed():  # type: ignore[attr-defined]
            assert not version.inline(asked)
        before = threading.active_count()
        assert version.answer(asked)["y"].tolist() == [2.5, 3.0, 4.5]
        assert threading.active_count() == before


def test_rows_are_run_together_only_where_that_changes_nothing(
    saved_models: SavedModels, several: bytes, tmp_path: Path
) -> None:
    with loaded(written(tmp_path / "several", several)) as version:
        assert {key for key, trial in version._tried.items() if trial.independent} == set(version.signatures)
    with loaded(written(tmp_path / "centred", converted(saved_models.centred / "1"))) as version:
        assert not version._tried["serving_default"].independent


def test_a_bad_call_is_refused_and_the_next_is_told_nothing_of_it(many: bytes, tmp_path: Path) -> None:
    for name, content in {"runners": many, "tensors": without_signatures(many)}.items():
        with loaded(written(tmp_path / name, content), interpreters=1) as version:
            ports = version.signatures["serving_default"].inputs
            a, b = (next(port for port, info in ports.items() if info.dtype == dtype) for dtype in (1, 9))
            good = call(version, **{a: np.ones((1, 2), np.float32), b: np.array([3])})
            bad = [
                ({a: np.ones((3, 2), np.float32), b: np.array([3, 4])}, "failed to prepare"),
                ({a: np.ones((1, 2), np.float64), b: np.array([3])}, "FLOAT64"),
                ({a: np.ones((1, 2), np.float32), b: np.array([b"x"], object)}, "STRING"),
            ]
            said = []
            for inputs, word in bad:
                with pytest.raises(Refusal) as refused:
                    version.answer(call(version, **inputs))
                assert refused.value.code is Code.INVALID_ARGUMENT
                assert word.lower() in refused.value.message.lower()
                said.append(refused.value.message)
                found = [array.tolist() for array in version.answer(good).values()]
                assert found in ([[False], [[3, 3]]], [[[3, 3]], [False]])
            assert "prepare" not in said[1]


@pytest.mark.parametrize("shape", [(), (2,), (1, 3), (1, 2, 1)])
def test_dimensions_that_are_fixed_are_never_resized(many: bytes, tmp_path: Path, shape: tuple[int, ...]) -> None:
    for name, content in {"runners": many, "tensors": without_signatures(many)}.items():
        with loaded(written(tmp_path / name, content), interpreters=1) as version:
            ports = version.signatures["serving_default"].inputs
            a, b = (next(port for port, info in ports.items() if info.dtype == dtype) for dtype in (1, 9))
            with pytest.raises(Refusal, match="and the file takes") as refused:
                version.answer(call(version, **{a: np.ones(shape, np.float32), b: np.array([3])}))
            assert refused.value.code is Code.INVALID_ARGUMENT


def recurrent(weights: dict[str, tuple[Any, Any]]) -> bytes:
    """Return a file with a recurrent layer for each signature, its state a tensor as in an LSTM of Keras 2."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    def buffer(array: Any = None) -> Any:
        made = schema.BufferT()
        made.data = None if array is None else np.frombuffer(array.tobytes(), np.uint8)
        model.buffers.append(made)
        return len(model.buffers) - 1

    def tensor(name: str, shape: tuple[int, ...], array: Any = None, variable: bool = False) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.isVariable = name, list(shape), variable
        made.type, made.buffer = schema.TensorType.FLOAT32, buffer(array)
        return made

    def port(name: str, index: int) -> Any:
        made = schema.TensorMapT()
        made.name, made.tensorIndex = name, index
        return made

    model = schema.ModelT()
    model.version, model.buffers, model.subgraphs, model.signatureDefs = 3, [], [], []
    buffer()
    code, operator = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.UNIDIRECTIONAL_SEQUENCE_RNN
    model.operatorCodes = [code]
    operator.inputs, operator.outputs = [0, 1, 2, 3, 4], [5]
    operator.builtinOptionsType = schema.BuiltinOptions.SequenceRNNOptions
    operator.builtinOptions = schema.SequenceRNNOptionsT()
    operator.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.TANH
    for key, (of_input, of_state) in weights.items():
        graph, signature = schema.SubGraphT(), schema.SignatureDefT()
        graph.tensors = [
            tensor("x", (1, 5, 3)),
            tensor("w", of_input.shape, of_input),
            tensor("r", of_state.shape, of_state),
            tensor("b", (4,), np.zeros(4, np.float32)),
            tensor("state", (1, 4), variable=True),
            tensor("y", (1, 5, 4)),
        ]
        graph.inputs, graph.outputs, graph.operators = [0], [5], [operator]
        signature.signatureKey, signature.subgraphIndex = key, len(model.subgraphs)
        signature.inputs, signature.outputs = [port("x", 0)], [port("y", 5)]
        model.subgraphs.append(graph)
        model.signatureDefs.append(signature)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_recurrent_layers_answer_each_call_afresh(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    x = draw.random((1, 5, 3), np.float32)
    weights = {key: (draw.random((4, 3), np.float32), draw.random((4, 4), np.float32)) for key in ("one", "two")}

    def by_hand(of_input: Any, of_state: Any) -> Any:
        state, rows = np.zeros(4), []
        for row in x[0]:
            state = np.tanh(of_input @ row + of_state @ state)
            rows.append(state)
        return np.array([rows])

    for name, content in {"runners": recurrent(weights), "tensors": without_signatures(recurrent(weights))}.items():
        with loaded(written(tmp_path / name, content), interpreters=1) as version:
            for key in reversed(version.signatures):
                wanted = by_hand(*weights.get(key, weights["one"]))
                for _ in range(3):
                    np.testing.assert_allclose(version.answer(call(version, key, x=x))["y"], wanted, atol=1e-6)
                with pytest.raises(Refusal):
                    version.answer(call(version, key, x=x[..., :2]))
                np.testing.assert_allclose(version.answer(call(version, key, x=x))["y"], wanted, atol=1e-6)


def test_a_file_with_variables_has_one_state_and_is_not_asked_before_it_is_served(
    saved_models: SavedModels, tmp_path: Path
) -> None:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_models.state / "1"))
    converter.experimental_enable_resource_variables = True
    with loaded(written(tmp_path, converter.convert()), interpreters=4) as version:
        asked = call(version, by=np.int64(5))
        assert not version.inline(asked)
        assert [int(version.answer(asked)["count"]) for _ in range(5)] == [5, 10, 15, 20, 25]


def test_bytes_that_are_no_such_file_are_refused(many: bytes, tmp_path: Path) -> None:
    for name, content in {"empty": b"", "text": b"no flatbuffer at all" * 10, "cut": many[: len(many) // 2]}.items():
        with (
            pytest.raises(Refusal, match=r"Could not load .*model\.tflite") as refused,
            loaded(written(tmp_path / name, content)),
        ):
            pass
        assert refused.value.code is Code.INVALID_ARGUMENT


def test_the_saved_model_beside_it_is_served_unless_the_file_is_preferred(
    saved_models: SavedModels, several: bytes, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(saved_models.half_plus_two, tmp_path / "both")
    (tmp_path / "both/1/model.tflite").write_bytes(several)
    version = LoadedVersion("m", 1, tmp_path / "both/1", Settings())
    assert set(version.signatures) == {"serving_default"}
    version.close()
    with loaded(tmp_path / "both") as preferred:
        assert "doubled" in preferred.signatures
    with loaded(saved_models.half_plus_two) as without:
        assert without.answer(call(without, x=X))["y"].tolist() == [2.5, 3.0, 4.5]
