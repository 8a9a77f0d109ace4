from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfdeploy_magic.artifacts.samples import SampleSet
from tfdeploy_magic.artifacts.signature import TensorSpec
from tfdeploy_magic.errors import DataError, TfdeployError, UserCodeError
from tfdeploy_magic.jobs import Report, silent
from tfdeploy_magic.sources.samples import NamedData, gather

PICTURE = (TensorSpec("x", (None, 4, 4, 1), "float32"),)
TWO = (TensorSpec("zebra", (None, 3), "float32"), TensorSpec("ant", (None, 2), "float32"))
X = np.arange(40 * 16, dtype="float32").reshape(40, 4, 4, 1)
Y = np.arange(40)
ZEBRA, ANT = X.reshape(40, 16)[:, :3], X.reshape(40, 16)[:, 3:5]


@pytest.fixture
def drain(tmp_path: Path) -> Any:
    def gathered(
        value: Any,
        specs: Any = PICTURE,
        *,
        limit: int | None = None,
        role: str = "calibration",
        seconds: float = 10,
        labels: Any = None,
    ) -> SampleSet:
        data = NamedData("mine", value, labels, "my_labels")
        report = Report(silent)
        return gather(data, specs, tmp_path, role=role, limit=limit, seconds=seconds, report=report)

    return gathered


def assert_helpful(error: TfdeployError, *words: str) -> None:
    assert all(len(part) > 2 for part in error.as_fields().values())
    for word in words:
        assert word in str(error)


def dataset(*columns: Any) -> Any:
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(columns if len(columns) > 1 else columns[0])


# What can be given


def test_an_array_is_taken_as_it_is(drain: Any) -> None:
    samples = drain(X)
    np.testing.assert_array_equal(samples.open()["x"], X)
    assert (samples.count, samples.labels, samples.name) == (40, None, "mine (40 samples)")


def test_labels_come_along_row_for_row(drain: Any) -> None:
    samples = drain(X, labels=Y, role="test")
    np.testing.assert_array_equal(samples.labels, Y)
    drawn = drain(X, labels=list(Y), role="test", limit=7)
    np.testing.assert_array_equal(drawn.open()["x"], X[drawn.labels])


@pytest.mark.parametrize("dtype", ["float64", "uint8", "int64", "float16", "bool"])
def test_other_numbers_are_cast_as_keras_would(drain: Any, dtype: str) -> None:
    x = (X % 7).astype(dtype)
    got = drain(x).open()["x"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, x.astype("float32"))


def test_a_list_of_pictures_and_a_tensor_are_arrays_too(drain: Any) -> None:
    import tensorflow as tf

    np.testing.assert_array_equal(drain(list(X)).open()["x"], X)
    np.testing.assert_array_equal(drain(X.tolist()).open()["x"], X)
    np.testing.assert_array_equal(drain(tf.constant(X), limit=5).open()["x"], drain(X, limit=5).open()["x"])


def test_a_memory_map_is_read_where_it_is_needed(drain: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "big.npy", X)
    np.testing.assert_array_equal(drain(np.load(tmp_path / "big.npy", mmap_mode="r")).open()["x"], X)


@pytest.mark.parametrize(
    "value",
    [{"ant": ANT, "zebra": ZEBRA, "more": ANT}, [ZEBRA, ANT], (ZEBRA, ANT)],
    ids=["a dict by name", "a list in argument order", "a tuple in argument order"],
)
def test_two_inputs_are_given_by_name_or_in_the_order_of_arguments(drain: Any, value: Any) -> None:
    opened = drain(value, TWO).open()
    np.testing.assert_array_equal(opened["zebra"], ZEBRA)
    np.testing.assert_array_equal(opened["ant"], ANT)


def test_two_inputs_are_drawn_together(drain: Any) -> None:
    opened = drain([ZEBRA, ANT], TWO, limit=6).open()
    np.testing.assert_array_equal(opened["zebra"][:, 0] + 3, opened["ant"][:, 0])


@pytest.mark.parametrize("batch", [None, 16, 40, 1])
def test_a_dataset_gives_samples_and_labels_batched_or_not(drain: Any, batch: int | None) -> None:
    data = dataset(X, Y)
    samples = drain(data.batch(batch) if batch else data, role="test")
    np.testing.assert_array_equal(samples.open()["x"], X)
    np.testing.assert_array_equal(samples.labels, Y)


def test_a_dataset_may_have_no_labels_or_weights_too(drain: Any) -> None:
    assert drain(dataset(X).batch(8)).labels is None
    np.testing.assert_array_equal(drain(dataset(X, Y, np.ones(40)).batch(8)).labels, Y)


@pytest.mark.parametrize("batch", [None, 16])
@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_a_dataset_for_two_inputs(drain: Any, form: str, batch: int | None) -> None:
    inputs = (ZEBRA, ANT) if form == "tuple" else {"ant": ANT, "zebra": ZEBRA}
    for labels in (None, Y):
        data = dataset(inputs, labels) if labels is not None else dataset(inputs)
        samples = drain(data.batch(batch) if batch else data, TWO)
        np.testing.assert_array_equal(samples.open()["zebra"], ZEBRA)
        np.testing.assert_array_equal(samples.open()["ant"], ANT)
        assert (samples.labels is None) is (labels is None)


def test_a_generator_function_as_the_tensorflow_guide_writes_it(drain: Any) -> None:
    import tensorflow as tf

    def representative_dataset() -> Iterator[list[Any]]:
        for data in tf.data.Dataset.from_tensor_slices(X).batch(1).take(25):
            yield [tf.dtypes.cast(data, tf.float32)]

    samples = drain(representative_dataset, limit=100)
    np.testing.assert_array_equal(samples.open()["x"], X[:25])
    assert samples.name == "mine (25 samples)"


def test_a_generator_function_may_yield_dicts_arrays_batches_and_signatures(drain: Any) -> None:
    def dicts() -> Iterator[Any]:
        for i in range(5):
            yield {"x": X[i : i + 1]}

    def arrays() -> Iterator[Any]:
        yield X[:2]
        yield X[2:5]

    def with_signature() -> Iterator[Any]:
        for i in range(5):
            yield "serving_default", {"x": X[i : i + 1]}

    for function in (dicts, arrays, with_signature):
        np.testing.assert_array_equal(drain(function).open()["x"], X[:5])
    np.testing.assert_array_equal(drain(dicts()).open()["x"], X[:5])


def test_a_generator_function_for_two_inputs(drain: Any) -> None:
    def lists() -> Iterator[Any]:
        for i in range(40):
            yield [ZEBRA[i : i + 1], ANT[i : i + 1]]

    def dicts() -> Iterator[Any]:
        for zebra, ant in lists():
            yield {"ant": ant, "zebra": zebra}

    for function in (lists, dicts):
        opened = drain(function, TWO).open()
        np.testing.assert_array_equal(opened["zebra"], ZEBRA)
        np.testing.assert_array_equal(opened["ant"], ANT)


@pytest.mark.parametrize("batch", [None, 8, 40])
@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize(
    ("raw", "preprocess"),
    [
        (X * 255, lambda x: x / 255),
        (X[..., 0], lambda x: x[..., None]),
        (X.reshape(40, 16), lambda x: x.reshape(-1, 4, 4, 1)),
        (X[:, 0, 0, 0], lambda x: x[:, None, None, None] + np.arange(16, dtype="float32").reshape(1, 4, 4, 1)),
    ],
    ids=["scaled", "a channel added", "reshaped", "from single numbers"],
)
def test_a_dataset_is_preprocessed_in_batches_whether_it_has_any_or_not(
    raw: Any, preprocess: Any, labelled: bool, batch: int | None, tmp_path: Path
) -> None:
    data = dataset(raw, Y) if labelled else dataset(raw)
    mine = NamedData("mine", data.batch(batch) if batch else data, preprocess=preprocess)
    samples = gather(mine, PICTURE, tmp_path, role="test", limit=None, seconds=10, report=Report(silent))
    np.testing.assert_allclose(samples.open()["x"], X, rtol=1e-6)
    if labelled:
        np.testing.assert_array_equal(samples.labels, Y)


def test_a_preprocess_that_raises_on_a_dataset_is_the_persons_own_error(tmp_path: Path) -> None:
    def broken(x: Any) -> Any:
        raise KeyError("size")

    mine = NamedData("mine", dataset(X).batch(8), preprocess=broken)
    with pytest.raises(UserCodeError, match=r"the function preprocess raised[^!]*KeyError"):
        gather(mine, PICTURE, tmp_path, role="test", limit=None, seconds=10, report=Report(silent))


# How many


def test_a_draw_is_spread_reproducible_and_without_repeats(drain: Any) -> None:
    x = np.arange(10_000, dtype="float32").repeat(16).reshape(-1, 4, 4, 1)
    samples = drain(x, limit=100)
    drawn = samples.open()["x"][:, 0, 0, 0].copy()
    assert len(set(drawn)) == 100
    quarters = np.bincount((drawn // 2500).astype(int), minlength=4)
    assert quarters.min() >= 10
    np.testing.assert_array_equal(drain(x, limit=100).open()["x"][:, 0, 0, 0], drawn)
    assert samples.name == "mine (100 of 10000 samples, drawn at random)"


def test_a_stream_gives_its_first_samples_even_when_it_never_ends(drain: Any) -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield [X[:3]]

    samples = drain(endless, limit=10)
    assert samples.count == len(samples.open()["x"]) == 10
    assert samples.name == "mine (the first 10 samples)"
    assert drain(dataset(X, Y).batch(16).repeat(), limit=20).labels.tolist() == list(range(20))


def test_chosen_rows_are_the_only_ones_used(tmp_path: Path) -> None:
    rows = np.array([3, 5, 7])
    data = NamedData("mine", X, Y, "my_labels", rows=rows, remark="set apart")
    samples = gather(data, PICTURE, tmp_path, role="test", limit=None, seconds=1, report=Report(silent))
    np.testing.assert_array_equal(samples.open()["x"], X[rows])
    np.testing.assert_array_equal(samples.labels, rows)
    assert samples.name == "mine (3 of 40 samples, drawn at random, set apart)"


# What cannot be used


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (X[:, :3], ["float32[40, 3, 4, 1]", "float32[n, 4, 4, 1] for input x", "--calib NAME"]),
        (X[..., 0], ["float32[40, 4, 4]", "Add the channel: mine[..., None]."]),
        (X[0], ["float32[4, 4, 1]"]),
        (X.reshape(40, 16), ["float32[40, 16]", "mine.reshape(-1, 4, 4, 1)"]),
        (X.reshape(40, 1, 4, 4), ["float32[40, 1, 4, 4]", "mine.reshape(-1, 4, 4, 1)"]),
        (X.astype("complex64"), ["complex64[40, 4, 4, 1]", 'astype("float32")']),
        (X.astype(str), ["for input x", 'astype("float32")']),
        (X.astype(object), ["object[40, 4, 4, 1]", 'astype("float32")']),
        (X[:0], ["no samples in it", "at least one", "slice or a filter"]),
        ([], ["mine cannot be used for calibration"]),
        (3, ["found an int", "def representative_dataset()"]),
        (None, ["found None", "def representative_dataset()"]),
        ("x_train", ["found a str", "def representative_dataset()"]),
        ({"x": 3}, ["a single value for input x"]),
        ({"other": X}, ["mine cannot be used for calibration"]),
        ([[1, 2], [3]], ["mine cannot be used for calibration"]),
        (np.float32(3), ["mine cannot be used for calibration"]),
    ],
    ids=lambda value: "" if isinstance(value, list) and value and isinstance(value[0], str) else None,
)
def test_data_that_does_not_fit_is_an_error_that_says_what_would(drain: Any, value: Any, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        drain(value)
    assert_helpful(caught.value, "mine", *words)


@pytest.mark.parametrize(("broken", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
@pytest.mark.parametrize("stream", [False, True])
def test_numbers_that_are_not_finite_are_refused_and_located(
    drain: Any, broken: float, word: str, stream: bool
) -> None:
    x = X.copy()
    x[33, 1, 1, 0] = broken
    value = (lambda: ([x[i : i + 1]] for i in range(40))) if stream else x
    with pytest.raises(DataError) as caught:
        drain(value)
    assert_helpful(caught.value, f"{word} in sample 33", "finite numbers", "drop or repair")


@pytest.mark.parametrize(("missing", "found"), [(None, "None"), (np.nan, "a float"), (3, "an int")])
def test_what_is_no_text_among_texts_is_refused_and_located(drain: Any, missing: Any, found: str) -> None:
    texts = (TensorSpec("x", (None, 2), "string"),)
    value = np.array([["a", b"b"]] * 5, object)
    np.testing.assert_array_equal(drain(value, texts).open()["x"], [[b"a", b"b"]] * 5)
    value[3, 1] = missing
    with pytest.raises(DataError) as caught:
        drain(value, texts)
    assert_helpful(caught.value, f"{found} in sample 3", "texts for input x")


@pytest.mark.parametrize("labels", [Y[:39], Y[:0], 3])
def test_labels_that_are_not_one_a_sample_are_refused(drain: Any, labels: Any) -> None:
    with pytest.raises(DataError) as caught:
        drain(X, labels=labels, role="test")
    assert_helpful(caught.value, "my_labels does not label mine", "40 samples", "--test x_test,y_test")


def test_inputs_of_different_length_are_refused(drain: Any) -> None:
    with pytest.raises(DataError) as caught:
        drain({"zebra": ZEBRA, "ant": ANT[:-1]}, TWO)
    assert_helpful(caught.value, "zebra 40, ant 39", "same length")


def test_a_streamed_sample_of_different_lengths_is_refused(drain: Any) -> None:
    for pair in ([ZEBRA[:2], ANT[:1]], [ZEBRA[:1], ANT[:2]]):
        with pytest.raises(DataError) as caught:
            drain(lambda pair=pair: iter([pair]), TWO)
        assert_helpful(caught.value, "zebra", "ant", "same length")


def test_a_missing_input_is_named(drain: Any) -> None:
    def lacking() -> Iterator[Any]:
        yield {"zebra": ZEBRA[:1]}

    with pytest.raises(DataError) as caught:
        drain(lacking, TWO)
    assert_helpful(caught.value, "a dict with zebra", "a dict with zebra, ant", "yield [x[i:i+1]]")


@pytest.mark.parametrize(
    "item",
    [
        3,
        "text",
        None,
        [],
        [3],
        [None],
        ["text"],
        [X[:1], X[:1]],
        {"y": X[:1]},
        {1: 2},
        [[1, 2], [3]],
        [[[1, 2], [3]]],
        object(),
    ],
    ids=str,
)
def test_a_generator_that_yields_nonsense_is_refused(drain: Any, item: Any) -> None:
    with pytest.raises(DataError) as caught:
        drain(lambda: iter([item]))
    assert_helpful(caught.value, "mine cannot be used for calibration")


def test_a_generator_that_forgets_the_batch_dimension_is_told_so(drain: Any) -> None:
    with pytest.raises(DataError) as caught:
        drain(lambda: ([X[i]] for i in range(3)))
    assert_helpful(caught.value, "float32[4, 4, 1]", "yield [x[i:i+1]] and not [x[i]]")


def test_a_generator_that_changes_shape_where_the_model_allows_any_is_refused(drain: Any) -> None:
    wide = (TensorSpec("x", (None, None), "float32"),)
    with pytest.raises(DataError) as caught:
        drain(lambda: ([np.zeros((1, n), "float32")] for n in (3, 4)), wide)
    assert_helpful(caught.value, "[4] after [3]", "one shape", "Pad or crop")


def test_an_exhausted_generator_is_empty_and_not_a_mystery(drain: Any) -> None:
    once = ([X[i : i + 1]] for i in range(3))
    assert drain(once).count == 3
    with pytest.raises(DataError) as caught:
        drain(once)
    assert_helpful(caught.value, "no samples in it", "afresh each time")


def test_a_generator_that_raises_is_the_persons_own_error(drain: Any) -> None:
    def broken() -> Iterator[Any]:
        yield [X[:1]]
        raise FileNotFoundError("cat.jpg")

    with pytest.raises(UserCodeError, match=r"the generator mine raised[^!]*FileNotFoundError: cat\.jpg") as caught:
        drain(broken)
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_function_that_forgot_to_yield_is_the_persons_own_error(drain: Any) -> None:
    with pytest.raises(UserCodeError, match=r"mine\(\) returned NoneType; it must yield samples"):
        drain(lambda: None)


def test_a_generator_that_hangs_is_ended_at_its_deadline(drain: Any) -> None:
    release = threading.Event()

    def hanging() -> Iterator[Any]:
        yield [X[:1]]
        release.wait()

    with pytest.raises(UserCodeError, match=r"the generator mine hung: found nothing after 0\.3 s"):
        drain(hanging, seconds=0.3)
    release.set()


def test_a_dataset_that_raises_is_the_persons_own_error(drain: Any) -> None:
    import tensorflow as tf

    broken = dataset(X).map(lambda x: tf.debugging.check_numerics(x / 0.0, "division")).batch(4)
    with pytest.raises(UserCodeError, match="the dataset mine raised"):
        drain(broken)


def test_labels_by_name_in_a_dataset_are_refused_with_a_cure(drain: Any) -> None:
    with pytest.raises(DataError) as caught:
        drain(dataset(X, {"a": Y, "b": Y}).batch(8), role="test")
    assert_helpful(caught.value, "labels", "map")
