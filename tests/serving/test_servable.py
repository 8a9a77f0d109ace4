"""A loaded version answers as TensorFlow's own loader does, from any number of threads, whatever its signatures."""

from __future__ import annotations

import gc
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.serving import saved_models as builders
from tests.serving.saved_models import SavedModels
from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.serving import tryout
from tfdeploy_magic.serving.batching import Rules
from tfdeploy_magic.serving.calls import Call
from tfdeploy_magic.serving.protos import example_pb2
from tfdeploy_magic.serving.servable import LoadedVersion, Settings
from tfdeploy_magic.serving.status import Code, Refusal

X = np.array([1, 2, 5], np.float32)
TEXTS = np.array([b"red", b"", b"\xff\x00", b"blue"], object)


@contextmanager
def loaded(base: Path, settings: Settings | None = None, **told: Any) -> Iterator[LoadedVersion]:
    version = LoadedVersion(base.name, 1, base / "1", settings or Settings(), **told)
    try:
        yield version
    finally:
        version.close()


def call(version: LoadedVersion, key: str = "serving_default", *, outputs: tuple[str, ...] = (), **inputs: Any) -> Call:
    return Call(key, inputs, outputs or tuple(sorted(version.signatures[key].outputs)))


def reference(base: Path, key: str, **inputs: Any) -> Arrays:
    """Answer by TensorFlow's own loader."""
    import tensorflow as tf

    model = tf.saved_model.load(str(base / "1"))
    signature = model.signatures[key]
    fed = {name: tf.constant(value) for name, value in inputs.items()}
    if len(fed) == 1 and not signature.structured_input_signature[1]:  # of TF1, where inputs have no names
        return {name: answer.numpy() for name, answer in signature(next(iter(fed.values()))).items()}
    return {name: answer.numpy() for name, answer in signature(**fed).items()}


def examples(*numbers: float) -> Any:
    made = np.empty(len(numbers), object)
    for at, number in enumerate(numbers):
        example = example_pb2.Example()
        example.features.feature["x"].float_list.value.append(number)
        made[at] = example.SerializeToString()
    return made


CASES: list[tuple[str, str, Callable[[], dict[str, Any]]]] = [
    ("half_plus_two", "serving_default", lambda: {"x": X}),
    ("several", "serving_default", lambda: {"x": X}),
    ("several", "doubled", lambda: {"x": X}),
    ("several", "sums", lambda: {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}),
    ("tf1", "serving_default", lambda: {"x": X}),
    ("tf1", "regress_x_to_y", lambda: {"inputs": examples(1, 2)}),
    ("tf1", "classify_x_to_y", lambda: {"inputs": examples(1, 2)}),
    ("many", "serving_default", lambda: {"a": np.ones((3, 2), np.float32) * X[:, None], "b": np.array([1, 2, 3])}),
    ("texts", "serving_default", lambda: {"text": TEXTS}),
    ("table", "serving_default", lambda: {"word": TEXTS}),
    ("centred", "serving_default", lambda: {"x": np.array([[1, 2], [3, 6]], np.float32)}),
    ("fixed", "serving_default", lambda: {"x": np.arange(8, dtype=np.float32).reshape(4, 2)}),
]


@pytest.mark.parametrize(("name", "key", "inputs"), CASES, ids=[f"{name}-{key}" for name, key, _ in CASES])
def test_answers_are_those_of_tensorflow(saved_models: SavedModels, name: str, key: str, inputs: Any) -> None:
    base = getattr(saved_models, name)
    wanted = reference(base, key, **inputs())
    with loaded(base) as version:
        asked = call(version, key, **inputs())
        for found in (version.answer(asked), version.submit(asked).result(60)):
            assert set(found) == set(wanted)
            for output, array in wanted.items():
                assert found[output].dtype == array.dtype
                np.testing.assert_array_equal(found[output], array)


def test_the_answers_by_hand(saved_models: SavedModels) -> None:
    with loaded(saved_models.half_plus_two) as version:
        assert version.answer(call(version, x=X))["y"].tolist() == [2.5, 3.0, 4.5]
    with loaded(saved_models.tf1) as version:
        found = version.answer(call(version, "classify_x_to_y", inputs=examples(1)))
        assert (found["classes"].tolist(), found["scores"].tolist()) == ([[b"up", b"down"]], [[2.5, -2.5]])
    with loaded(saved_models.table) as version:
        assert version.answer(call(version, word=TEXTS))["id"].tolist() == [0, -1, -1, 2]


def test_the_signatures_are_the_models_own_and_not_tensorflows(saved_models: SavedModels) -> None:
    with loaded(saved_models.several) as version:
        assert list(version.signatures) == ["doubled", "serving_default", "sums"]
        assert [dim.size for dim in version.signatures["sums"].inputs["x"].tensor_shape.dim] == [-1, 3]
        assert (version.name, version.version) == ("several", 1)
    with loaded(saved_models.tf1) as version:
        methods = {key: signature.method_name for key, signature in version.signatures.items()}
    assert methods["classify_x_to_y"] == "tensorflow/serving/classify"


def test_only_the_outputs_that_are_wanted_are_computed(saved_models: SavedModels) -> None:
    with loaded(saved_models.many) as version:
        asked = call(version, outputs=("parity",), a=np.ones((1, 2), np.float32), b=np.array([4]))
        assert version.answer(asked)["parity"].tolist() == [True]
        assert set(version.answer(asked)) == {"parity"}
        both = version.answer(call(version, outputs=("scaled", "parity"), **asked.inputs))
        assert list(both) == ["scaled", "parity"]
        assert both["scaled"].tolist() == [[4, 4]]


@pytest.mark.parametrize(
    "rules", [None, Rules(8, 500, num_batch_threads=2, allowed_batch_sizes=(4, 8), every_call=True)]
)
def test_sixteen_threads_get_their_own_answers(saved_models: SavedModels, rules: Rules | None) -> None:
    with (
        loaded(saved_models.half_plus_two, Settings(rules=rules)) as numbers,
        loaded(saved_models.many, Settings(rules=rules)) as many,
        loaded(saved_models.texts) as texts,
        ThreadPoolExecutor(16) as pool,
    ):

        def ask(seed: int) -> None:
            draw = np.random.default_rng(seed)
            for at in range(30):
                rows = int(draw.integers(1, 4))
                x, b = draw.random(rows, np.float32), draw.integers(0, 9, rows)
                asked = call(numbers, x=x)
                found = numbers.answer(asked) if at % 2 else numbers.submit(asked).result(60)
                np.testing.assert_array_equal(found["y"], x * np.float32(0.5) + 2)
                found = many.submit(call(many, a=np.stack([x, x], 1), b=b)).result(60)
                np.testing.assert_array_equal(found["scaled"], np.stack([x, x], 1) * b.astype(np.float32)[:, None])
                assert found["parity"].tolist() == (b % 2 == 0).tolist()
                text = np.array([f"t{seed}-{at}".encode()] * rows, object)
                assert texts.answer(call(texts, text=text))["shouted"].tolist() == [text[0].upper()] * rows

        assert len(list(pool.map(ask, range(16)))) == 16


def test_rows_that_depend_on_each_other_are_never_run_with_others(saved_models: SavedModels) -> None:
    with loaded(saved_models.centred) as version, ThreadPoolExecutor(16) as pool:

        def ask(seed: int) -> None:
            x = np.random.default_rng(seed).random((3, 2), np.float32)
            for _ in range(20):
                found = version.submit(call(version, x=x)).result(60)["y"]
                np.testing.assert_allclose(found, x - x.mean(axis=0), atol=1e-6)

        assert len(list(pool.map(ask, range(16)))) == 16


def test_what_waits_is_batched_where_rows_are_known_to_be_independent(saved_models: SavedModels) -> None:
    batches: list[list[int]] = []
    with loaded(saved_models.half_plus_two, batched=lambda rows, *_: batches.append(list(rows))) as version:
        futures = [version.submit(call(version, x=X)) for _ in range(200)]
        assert all(future.result(60)["y"].tolist() == [2.5, 3.0, 4.5] for future in futures)
    assert sum(map(len, batches)) == 200


def test_models_that_look_at_the_whole_batch_are_found_out(tmp_path: Path) -> None:
    import tensorflow as tf

    rows, scalars = tf.TensorSpec([None, 3]), tf.TensorSpec([None])
    dependent = {
        "mean": (lambda x: {"y": x - 0.001 * tf.reduce_mean(x, axis=0)}, rows),
        "softmax": (lambda x: {"y": tf.nn.softmax(x, axis=0)}, rows),
        "sort": (lambda x: {"y": tf.sort(x)}, scalars),
        "rank": (lambda x: {"y": tf.argsort(x)}, scalars),
        "sum": (lambda x: {"y": tf.cumsum(x)}, scalars),
        "reverse": (lambda x: {"y": tf.reverse(x, [0])}, scalars),
        "clip": (lambda x: {"y": tf.clip_by_norm(x, 50.0)}, rows),
        "mask": (lambda x: {"y": tf.boolean_mask(x, x > 0)}, scalars),
        "neighbours": (lambda x: {"y": x * tf.reduce_max(tf.abs(x[:, 1:] - x[:, :-1]))}, tf.TensorSpec([None, None])),
        "pixels": (
            lambda x: {"y": tf.cast(x, tf.float32) / tf.where(tf.reduce_max(x) > 1, 255.0, 1.0)},
            tf.TensorSpec([None, 2], tf.uint8),
        ),
        "size": (lambda x: {"y": x / tf.cast(tf.shape(x)[0], tf.float32)}, scalars),
        "one": (lambda x: {"y": tf.reduce_sum(x, keepdims=True)}, scalars),
        "scalar": (lambda x: {"y": tf.reduce_sum(x)}, scalars),
        "swapped": (lambda x: {"y": tf.transpose(x)}, tf.TensorSpec([None, None])),
        "unequal ids": (lambda x: {"y": x - tf.reduce_max(x)}, tf.TensorSpec([None], tf.int32)),
        "random": (lambda x: {"y": x + tf.random.uniform(tf.shape(x))}, scalars),
    }
    for name, (function, spec) in dependent.items():
        builders.save(tmp_path / name / "1", {"serving_default": (function, {"x": spec})})
        with loaded(tmp_path / name) as version:
            trial = version._tried.get("serving_default", tryout.Trial())
            assert not trial.independent, name


def test_layers_that_keep_rows_apart_are_found_too(tmp_path: Path) -> None:
    import tensorflow as tf

    kernel = tf.Variable(np.random.default_rng(0).standard_normal((64, 32)).astype("f"))
    filters = tf.Variable(np.random.default_rng(0).standard_normal((3, 3, 3, 8)).astype("f"))

    def dense(x: Any) -> Any:
        return {"y": tf.nn.softmax(tf.matmul(tf.nn.relu(x), kernel), axis=1)}

    def convolution(x: Any) -> Any:
        return {"y": tf.reduce_mean(tf.nn.conv2d(x, filters, 1, "SAME"), axis=[1, 2]), "best": tf.argmax(x[:, 0, 0], 1)}

    def lookup(x: Any) -> Any:
        return {"y": tf.gather(kernel, x)}

    builders.save(
        tmp_path / "m" / "1",
        {
            "dense": (dense, {"x": tf.TensorSpec([None, 64])}),
            "convolution": (convolution, {"x": tf.TensorSpec([None, 9, 9, 3])}),
            "lookup": (lookup, {"x": tf.TensorSpec([None, None], tf.int32)}),
        },
        kernel=kernel,
        filters=filters,
    )
    with loaded(tmp_path / "m") as version:
        assert {key for key, trial in version._tried.items() if trial.independent} == {"dense", "convolution", "lookup"}


def test_a_short_call_is_answered_where_it_arrives(saved_models: SavedModels) -> None:
    with loaded(saved_models.half_plus_two) as version:
        assert version.short == {"serving_default"}
        assert version.inline(call(version, x=X))
        assert not version.inline(call(version, x=np.zeros(1 << 20, np.float32)))
        before = threading.active_count()
        assert version.answer(call(version, x=X))["y"].tolist() == [2.5, 3.0, 4.5]
        assert threading.active_count() == before


def test_what_takes_long_is_not_answered_where_it_arrives(tmp_path: Path) -> None:
    import tensorflow as tf

    def slow(x: Any) -> Any:
        return {"y": tf.while_loop(lambda i, _: i < 3000, lambda i, v: (i + 1, v * 1.0001), (0, x))[1]}

    builders.save(tmp_path / "m" / "1", {"serving_default": (slow, {"x": tf.TensorSpec([None])})})
    with loaded(tmp_path / "m") as version:
        assert version.short == frozenset()
        assert not version.inline(call(version, x=X))


def test_a_loop_of_any_length_is_never_run_on_the_event_loop(tmp_path: Path) -> None:
    import tensorflow as tf

    def count(n: Any) -> dict[str, Any]:
        steps = tf.reduce_max(n)
        return {"y": n + tf.while_loop(lambda i: i < steps, lambda i: [i + 1], [tf.constant(0)])[0]}

    spec = {"n": tf.TensorSpec([None], tf.int32)}
    builders.save(tmp_path / "1", {"serving_default": (count, spec)})
    with loaded(tmp_path) as version:
        asked = call(version, n=np.array([3], np.int32))
        assert not version.inline(asked)
        assert version.answer(asked)["y"].tolist() == [6]


def test_a_call_that_was_not_short_after_all_is_the_last_of_its_signature(
    saved_models: SavedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loaded(saved_models.half_plus_two) as version:
        asked = call(version, x=X)
        assert version.inline(asked)
        monkeypatch.setattr(tryout, "SHORT_SECONDS", 0.0)
        version.answer(asked)
        assert not version.inline(asked)


def test_longer_rows_are_timed_and_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.serving.stand_ins import FLOAT, signature_def

    clock = [0.0]
    monkeypatch.setattr(tryout.time, "perf_counter", lambda: clock[0])
    asked: list[tuple[int, ...]] = []

    def attention(asked_for: Call, *, here: bool = False) -> Arrays:
        """Take a microsecond for each pair of words."""
        x = asked_for.inputs["x"]
        asked.append(x.shape)
        clock[0] += 1e-6 * x.shape[0] * x.shape[1] ** 2
        return {"y": x}

    signatures = {"s": signature_def({"x": (FLOAT, (-1, -1))}, {"y": (FLOAT, (-1, -1))})}
    found = tryout.try_out(signatures, attention)["s"]
    assert found.short == 16  # of 32 words, the next that is tried, there are 1024 pairs
    assert max(asked)[0] == len(tryout.SCALES)  # rows go together only where independence is looked at


def test_a_model_that_changes_its_state_is_not_asked_before_it_is_served(saved_models: SavedModels) -> None:
    with loaded(saved_models.state) as version:
        asked = call(version, by=np.int64(5))
        assert version.short == frozenset()
        assert not version.inline(asked)
        assert [int(version.answer(asked)["count"]) for _ in range(3)] == [5, 10, 15]


def test_no_kind_of_side_effect_is_caused_by_trying_out(tmp_path: Path) -> None:
    import tensorflow as tf

    written = tmp_path / "written"
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, -1)
    numbers = tf.Variable([0.0, 0.0])

    def scatters(x: Any) -> Any:
        with tf.control_dependencies([numbers.scatter_add(tf.IndexedSlices(x, tf.zeros_like(x, tf.int32)))]):
            return {"y": numbers.read_value()}

    def inserts(x: Any) -> Any:
        with tf.control_dependencies([table.insert(tf.cast(x, tf.int64), tf.cast(x, tf.int64))]):
            return {"y": tf.identity(table.size())}

    def writes(x: Any) -> Any:
        with tf.control_dependencies([tf.io.write_file(str(written), tf.as_string(x[0]))]):
            return {"y": tf.identity(x)}

    for name, function in {"scatters": scatters, "inserts": inserts, "writes": writes}.items():
        builders.save(
            tmp_path / name / "1",
            {"serving_default": (function, {"x": tf.TensorSpec([None])})},
            table=table,
            numbers=numbers,
        )
        with loaded(tmp_path / name) as version:
            assert version.short == frozenset(), name
            assert not written.exists()
            version.answer(call(version, x=np.ones(1, np.float32)))
    assert written.read_text() == "1.000000"


def test_signatures_that_take_nothing_or_anything_are_served(tmp_path: Path) -> None:
    import tensorflow as tf

    builders.save(
        tmp_path / "m" / "1",
        {
            "nothing": (lambda: {"y": tf.constant([1.0, 2.0])}, {}),
            "any": (lambda x: {"y": tf.reduce_sum(x)}, {"x": tf.TensorSpec(None)}),
            "half": (lambda x: {"y": x * 2}, {"x": tf.TensorSpec([None], tf.bfloat16)}),
            "complex": (lambda x: {"y": x * 2}, {"x": tf.TensorSpec([None], tf.complex64)}),
        },
    )
    with loaded(tmp_path / "m") as version:
        assert version.answer(call(version, "nothing"))["y"].tolist() == [1, 2]
        assert version.answer(call(version, "any", x=np.ones((2, 2), np.float32)))["y"] == 4
        half = np.ones(2, tf.bfloat16.as_numpy_dtype)
        assert version.answer(call(version, "half", x=half))["y"].astype(float).tolist() == [2, 2]
        assert version.submit(call(version, "complex", x=np.array([1j], np.complex64))).result(60)["y"].tolist() == [2j]


def test_a_signature_of_tensors_that_are_not_there_is_refused_when_it_is_asked(
    saved_models: SavedModels, tmp_path: Path
) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    shutil.copytree(saved_models.half_plus_two, tmp_path / "m")
    file = tmp_path / "m/1/saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    broken = proto.meta_graphs[0].signature_def["broken"]
    broken.CopyFrom(proto.meta_graphs[0].signature_def["serving_default"])
    broken.outputs["output_0" if "output_0" in broken.outputs else "y"].name = "nowhere:0"
    file.write_bytes(proto.SerializeToString())
    with loaded(tmp_path / "m") as version:
        assert version.answer(call(version, x=X))["y"].tolist() == [2.5, 3.0, 4.5]
        with pytest.raises(Refusal, match="nowhere"):
            version.answer(call(version, "broken", x=X))


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (np.zeros((3, 2), np.float32), np.zeros(2, np.int64), "shapes"),
        (np.zeros((3, 2), np.int64), np.zeros(3, np.int64), "float"),
        (np.array([[b"no"]], object), np.zeros(1, np.int64), ""),
    ],
)
def test_what_tensorflow_refuses_is_an_invalid_argument(saved_models: SavedModels, a: Any, b: Any, said: str) -> None:
    with loaded(saved_models.many) as version:
        for ask in (version.answer, lambda asked: version.submit(asked).result(60)):
            with pytest.raises(Refusal) as refused:
                ask(call(version, a=a, b=b))
            assert refused.value.code is Code.INVALID_ARGUMENT
            assert said in refused.value.message
        good = call(version, a=np.ones((1, 2), np.float32), b=np.array([3]))
        assert version.answer(good)["scaled"].tolist() == [[3, 3]]


def test_a_bad_call_among_good_ones_fails_alone(saved_models: SavedModels) -> None:
    rules = Rules(max_batch_size=3, batch_timeout_micros=60_000_000, every_call=True)
    with loaded(saved_models.tf1, Settings(rules=rules)) as version:
        rows = [examples(1), np.array([b"no example"], object), examples(3)]
        good, bad, other = (version.submit(call(version, "regress_x_to_y", inputs=row)) for row in rows)
        assert good.result(60)["outputs"].tolist() == [[2.5]]
        assert other.result(60)["outputs"].tolist() == [[3.5]]
        with pytest.raises(Refusal) as refused:
            bad.result(60)
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_with_batching_parameters_every_call_is_batched(saved_models: SavedModels) -> None:
    batches: list[Any] = []
    rules = Rules(max_batch_size=4, allowed_batch_sizes=(2, 4), every_call=True)
    with loaded(
        saved_models.half_plus_two, Settings(rules=rules), batched=lambda *told: batches.append(told[:2])
    ) as version:
        assert not version.inline(call(version, x=X))
        assert version.short == frozenset()
        assert version.answer(call(version, x=X))["y"].tolist() == [2.5, 3.0, 4.5]
    assert batches == [([3], 4)]


def test_each_run_is_timed(saved_models: SavedModels) -> None:
    spent: list[float] = []
    with loaded(saved_models.half_plus_two, ran=spent.append) as version:
        assert spent == []  # trying out is none
        version.answer(call(version, x=X))
        version.submit(call(version, x=X)).result(60)
    assert len(spent) == 2
    assert all(microseconds > 0 for microseconds in spent)


def test_closing_answers_what_waits_and_refuses_what_comes_later(saved_models: SavedModels) -> None:
    with loaded(saved_models.half_plus_two) as version:
        futures = [version.submit(call(version, x=X)) for _ in range(50)]
        asked = call(version, x=X)
        version.close()
        assert all(future.result(60)["y"].tolist() == [2.5, 3.0, 4.5] for future in futures)
        with pytest.raises(Refusal) as refused:
            version.answer(asked)
    assert refused.value.code is Code.UNAVAILABLE


def test_what_cannot_be_loaded_says_why(saved_models: SavedModels, tmp_path: Path) -> None:
    (tmp_path / "empty/1").mkdir(parents=True)
    with pytest.raises(Refusal, match="Could not find SavedModel") as refused, loaded(tmp_path / "empty"):
        pass
    assert refused.value.code is Code.NOT_FOUND
    (tmp_path / "bad/1").mkdir(parents=True)
    (tmp_path / "bad/1/saved_model.pb").write_bytes(b"no SavedModel")
    with pytest.raises(Refusal), loaded(tmp_path / "bad"):
        pass
    shutil.copytree(saved_models.half_plus_two, tmp_path / "cut")
    for part in (tmp_path / "cut/1/variables").iterdir():
        part.unlink()
    with pytest.raises(Refusal), loaded(tmp_path / "cut"):
        pass
    with (
        pytest.raises(Refusal, match="no_such_tag"),
        loaded(saved_models.half_plus_two, Settings(tags=("no_such_tag",))),
    ):
        pass


def test_loading_and_unloading_leaves_nothing_behind(saved_models: SavedModels) -> None:
    import tensorflow as tf

    def once() -> None:
        with loaded(saved_models.many) as version:
            asked = call(version, a=np.ones((1, 2), np.float32), b=np.array([2]))
            version.answer(asked)
            version.submit(asked).result(60)

    def sessions() -> int:
        gc.collect()
        return sum(isinstance(thing, tf.compat.v1.Session) for thing in gc.get_objects())

    for _ in range(5):  # what is made once and kept
        once()
    threads, open_before, memory = threading.active_count(), sessions(), psutil.Process().memory_info().rss
    for _ in range(30):
        once()
    assert threading.active_count() == threads
    assert sessions() == open_before
    assert psutil.Process().memory_info().rss - memory < 60 << 20
