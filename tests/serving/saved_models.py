"""Tiny SavedModels of every kind that is served, written once for all tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SavedModels:
    """Base directories, each holding version ``1``.

    Args:
        half_plus_two: TF2; ``serving_default``: x ``[-1]`` -> y = x * 0.5 + 2.
        several: TF2; ``serving_default``: y = x * 0.5 + 2, ``doubled``: y = 2x, ``sums``: x ``[-1, 3]`` -> total.
        tf1: TF1; ``serving_default``: x -> y = x * 0.5 + 2; over serialized ``tf.Example`` with feature x,
            ``regress_x_to_y``: inputs -> outputs ``[-1, 1]``, ``classify_x_to_y``: inputs -> classes and scores.
        many: TF2; a ``float32[-1, 2]``, b ``int64[-1]`` -> scaled = a * b, parity ``bool[-1]``: whether b is even.
        texts: TF2; text ``string[-1]`` -> shouted ``string[-1]``, letters ``int32[-1]``, raw_bytes = text.
        table: TF2, a lookup table with its file among the assets; word ``string[-1]`` -> id ``int64[-1]``: red 0,
            green 1, blue 2, else -1.
        state: TF2; by ``int64[]`` -> count ``int64[]``: the sum of all that it was asked.
        centred: TF2; x ``[-1, 2]`` -> y: x less the mean of its column, so that rows depend on each other.
        fixed: TF2; x ``[4, 2]`` -> y = 2x.
    """

    half_plus_two: Path
    several: Path
    tf1: Path
    many: Path
    texts: Path
    table: Path
    state: Path
    centred: Path
    fixed: Path


def write_all(folder: Path) -> SavedModels:
    """Write each of them into a folder of its own."""
    made = SavedModels(**{name: folder / name for name in SavedModels.__dataclass_fields__})
    for write in (half_plus_two, _several, _tf1, _many, _texts, _table, _state, _centred, _fixed):
        write(folder / write.__name__.removeprefix("_") / "1")
    return made


def save(version_dir: Path, signatures: Mapping[str, tuple[Any, Mapping[str, Any]]], **held: Any) -> Path:
    """Write functions as the signatures of a TF2 SavedModel.

    Args:
        version_dir: Where.
        signatures: Key -> a function of keyword arguments that returns a dictionary, and its ``tf.TensorSpec`` by name.
        held: Variables and tables that it needs.
    """
    import tensorflow as tf

    module = tf.Module()
    for name, thing in held.items():
        setattr(module, name, thing)
    traced = {
        key: tf.function(function, autograph=False).get_concrete_function(
            **{name: tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in specs.items()}
        )
        for key, (function, specs) in signatures.items()
    }
    tf.saved_model.save(module, str(version_dir), signatures=traced)
    return version_dir


def half_plus_two(version_dir: Path, plus: float = 2.0) -> Path:
    """Write TensorFlow Serving's own test model; another ``plus`` tells versions apart."""
    import tensorflow as tf

    half, add = tf.Variable(0.5), tf.Variable(plus)
    specs = {"x": tf.TensorSpec([None])}
    return save(version_dir, {"serving_default": (lambda x: {"y": x * half + add}, specs)}, half=half, add=add)


def _several(version_dir: Path) -> Path:
    import tensorflow as tf

    vector, rows = {"x": tf.TensorSpec([None])}, {"x": tf.TensorSpec([None, 3])}
    return save(
        version_dir,
        {
            "serving_default": (lambda x: {"y": x * 0.5 + 2.0}, vector),
            "doubled": (lambda x: {"y": x * 2.0}, vector),
            "sums": (lambda x: {"total": tf.reduce_sum(x, axis=1)}, rows),
        },
    )


def _tf1(version_dir: Path) -> Path:
    import tensorflow as tf

    tf1 = tf.compat.v1
    with tf1.Graph().as_default(), tf1.Session() as session:
        half, two = tf1.get_variable("a", initializer=0.5, use_resource=False), tf1.get_variable("b", initializer=2.0)
        serialized = tf1.placeholder(tf.string, [None], name="examples")
        parsed = tf1.parse_example(serialized, {"x": tf1.FixedLenFeature([1], tf.float32)})["x"]
        x = tf1.placeholder(tf.float32, [None], name="x")
        y, per_example = x * half + two, parsed * half + two
        classes = tf.tile(tf.constant([[b"up", b"down"]]), [tf.shape(serialized)[0], 1])
        scores = tf.concat([per_example, -per_example], axis=1)
        build = tf1.saved_model.signature_def_utils
        session.run(tf1.global_variables_initializer())
        builder = tf1.saved_model.Builder(str(version_dir))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "serving_default": build.predict_signature_def({"x": x}, {"y": y}),
                "regress_x_to_y": build.regression_signature_def(serialized, per_example),
                "classify_x_to_y": build.classification_signature_def(serialized, classes, scores),
            },
        )
        builder.save()
    return version_dir


def _many(version_dir: Path) -> Path:
    import tensorflow as tf

    def answer(a: Any, b: Any) -> Any:
        return {"scaled": a * tf.cast(b, tf.float32)[:, None], "parity": tf.equal(b % 2, 0)}

    specs = {"a": tf.TensorSpec([None, 2]), "b": tf.TensorSpec([None], tf.int64)}
    return save(version_dir, {"serving_default": (answer, specs)})


def _texts(version_dir: Path) -> Path:
    import tensorflow as tf

    def answer(text: Any) -> Any:
        return {"shouted": tf.strings.upper(text), "letters": tf.strings.length(text), "raw_bytes": tf.identity(text)}

    return save(version_dir, {"serving_default": (answer, {"text": tf.TensorSpec([None], tf.string)})})


def _table(version_dir: Path) -> Path:
    import tensorflow as tf

    words = version_dir.parent.parent / "words.txt"  # what is served is the copy among the assets
    words.parent.mkdir(parents=True, exist_ok=True)
    words.write_text("red\ngreen\nblue\n")
    kinds = tf.lookup.TextFileIndex
    entries = tf.lookup.TextFileInitializer(
        str(words), tf.string, kinds.WHOLE_LINE, tf.int64, kinds.LINE_NUMBER, vocab_size=3
    )
    table = tf.lookup.StaticHashTable(entries, -1)
    specs = {"word": tf.TensorSpec([None], tf.string)}
    save(version_dir, {"serving_default": (lambda word: {"id": table.lookup(word)}, specs)}, table=table)
    words.unlink()
    return version_dir


def _state(version_dir: Path) -> Path:
    import tensorflow as tf

    count = tf.Variable(0, dtype=tf.int64)
    specs = {"by": tf.TensorSpec([], tf.int64)}
    return save(version_dir, {"serving_default": (lambda by: {"count": count.assign_add(by)}, specs)}, count=count)


def _centred(version_dir: Path) -> Path:
    import tensorflow as tf

    specs = {"x": tf.TensorSpec([None, 2])}
    return save(version_dir, {"serving_default": (lambda x: {"y": x - tf.reduce_mean(x, axis=0)}, specs)})


def _fixed(version_dir: Path) -> Path:
    import tensorflow as tf

    return save(version_dir, {"serving_default": (lambda x: {"y": x * 2.0}, {"x": tf.TensorSpec([4, 2])})})
