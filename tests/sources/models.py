"""One small model of every kind, with weights that are not zero; Keras and TensorFlow are imported when one is made."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.sources import How


def sequential() -> Any:
    import keras

    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, activation="relu"), keras.layers.Dense(3)])


def functional() -> Any:
    import keras

    picture = keras.Input((8, 8, 1), name="picture")
    x = keras.layers.Conv2D(4, 3)(picture)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(picture, keras.layers.Dense(2, activation="softmax", name="answer")(x))


def two_in_two_out() -> Any:
    """Named so that alphabetical order is neither the order of the inputs nor that of the outputs."""
    import keras

    text = keras.Input((3,), name="zebra")
    picture = keras.Input((2,), name="ant")
    joined = keras.layers.Concatenate()([text, picture])
    outputs = {"second": keras.layers.Dense(4)(joined), "first": keras.layers.Dense(1)(text)}
    return keras.Model([text, picture], outputs)


def integers() -> Any:
    import keras

    words = keras.Input((6,), dtype="int32", name="words")
    x = keras.layers.Embedding(10, 4)(words)
    return keras.Model(words, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(x)))


def subclassed(called: bool = True) -> Any:
    import keras

    class Doubler(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x: Any, training: bool = False) -> Any:
            return self.dense(x) * (100.0 if training else 2.0)

    model = Doubler()
    if called:
        model(np.zeros((1, 4), "float32"))
    return model


KINDS = (sequential, functional, two_in_two_out, integers, subclassed)


def make(kind: Any) -> Any:
    """Make a model and give every weight a value of its own, biases too."""
    import keras

    keras.utils.set_random_seed(0)
    model = kind()
    random = np.random.default_rng(0)
    model.set_weights([random.uniform(0.1, 1, weight.shape) for weight in model.get_weights()])
    return model


# Models that exist for both Keras 3 and the older tf_keras: ``package`` is one of the two.


def weighed(model: Any) -> Any:
    """Give every weight a value between -1 and 1, which keeps recurrent layers from saturating."""
    random = np.random.default_rng(0)
    for variable in model.weights:
        value = random.uniform(0.1, 1, variable.shape)
        if "variance" not in getattr(variable, "path", variable.name):
            value *= random.choice([-1, 1], variable.shape)
        variable.assign(value)
    return model


def batch_normalized(package: Any, policy: str | None = None) -> Any:
    layers = package.layers
    return weighed(
        package.Sequential(
            [
                package.Input((6, 6, 2)),
                layers.Conv2D(4, 3, dtype=policy),
                layers.BatchNormalization(dtype=policy),
                layers.ReLU(dtype=policy),
                layers.Flatten(dtype=policy),
                layers.Dense(3, dtype=policy),
            ]
        )
    )


def dictionaries(package: Any) -> Any:
    """Inputs of one shape and outputs of one shape: mixed up, only the values would tell."""
    ant, zebra = package.Input((3,), name="ant"), package.Input((3,), name="zebra")
    second = package.layers.Dense(4, name="second")(package.layers.Subtract()([zebra, ant]))
    first = package.layers.Dense(4, name="first")(zebra)
    return weighed(package.Model({"zebra": zebra, "ant": ant}, {"second": second, "first": first}))


def nested_dictionaries(package: Any) -> Any:
    ant, zebra, bee = (package.Input((3,), name=name) for name in ("ant", "zebra", "bee"))
    sums = package.layers.Dense(4)(package.layers.Add()([zebra, ant]))
    rests = [package.layers.Dense(4)(package.layers.Subtract()([zebra, other])) for other in (bee, ant)]
    given = {"zebra": zebra, "inner": {"bee": bee, "ant": ant}}
    return weighed(package.Model(given, {"z": {"sums": sums, "more": rests[0]}, "a": rests[1]}))


RECURRENT = ("lstm", "gru", "bidirectional", "convlstm", "stacked")


def recurrent(package: Any, name: str) -> Any:
    """A recurrent model as one builds it by default: a loop over a batch of unknown size."""
    layers = package.layers
    body = {
        "lstm": [layers.LSTM(4)],
        "gru": [layers.GRU(4)],
        "bidirectional": [layers.Bidirectional(layers.LSTM(3))],
        "convlstm": [layers.ConvLSTM2D(2, 3), layers.Flatten()],
        "stacked": [layers.SimpleRNN(4, return_sequences=True), layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)])],
    }[name]
    shape = (3, 5, 5, 1) if name == "convlstm" else (4, 3)
    return weighed(package.Sequential([package.Input(shape), *body, layers.Dense(2)]))


def package_of(name: str) -> Any:
    import importlib

    return importlib.import_module(name)


# Every kind of source with samples for it, and the original's own answers to them


@dataclass(frozen=True)
class Case:
    """A model as a person names it, and what TensorFlow or Keras itself answers for it.

    Args:
        model: The model, or the path of its file.
        inputs: Input name -> ``[count, ...]``.
        answers: Output name -> ``[count, ...]``.
        how: The choices made about it.
        single_sample: Whether its loop lets a file take one sample at a time only.
        owner: Keeps the variables of a concrete function alive, as a notebook does.
    """

    model: Any
    inputs: Arrays
    answers: Arrays
    how: How = field(default_factory=How)
    single_sample: bool = False
    owner: Any = None


Build = Callable[[Path], Case]

COUNT = 6


def normal(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).normal(size=(COUNT, *shape)).astype("float32")


def _keras(kind: Any) -> Build:
    def build(folder: Path) -> Case:
        model = make(kind)
        inputs = {
            tensor.name: (
                np.random.default_rng(0).integers(0, 10, (COUNT, 6)).astype("int32")
                if tensor.dtype == "int32"
                else np.random.default_rng(n).normal(size=(COUNT, *tensor.shape[1:])).astype("float32")
            )
            for n, tensor in enumerate(getattr(model, "inputs", None) or ())
        } or {"args_0": normal(4)}
        given = list(inputs.values())
        answer = model(given if len(given) > 1 else given[0], training=False)
        return Case(model, inputs, answer if isinstance(answer, dict) else {"output_0": answer})

    build.__name__ = kind.__name__
    return build


def _either(package_name: str, kind: Any, answer: Callable[[Any], Case]) -> Build:
    def build(folder: Path) -> Case:
        return answer(kind(package_of(package_name)))

    build.__name__ = f"{package_name}_{kind.__name__}"
    return build


def _only_output(model: Any) -> str:
    """Keras 3 numbers the outputs of an exported model, tf_keras names them after their layers."""
    return "output_0" if type(model).__module__.startswith("keras.") else str(model.output_names[0])


def _answer_batch_normalized(model: Any) -> Case:
    x = normal(6, 6, 2)
    return Case(model, {model.inputs[0].name: x}, {_only_output(model): model(x, training=False)})


def _answer_dictionaries(model: Any) -> Case:
    inputs = {"ant": normal(3), "zebra": normal(3)[::-1].copy()}
    return Case(model, inputs, model(inputs, training=False))


def _answer_nested(model: Any) -> Case:
    ant, zebra, bee = normal(3), normal(3)[::-1].copy(), normal(3) * 3
    answer = model({"zebra": zebra, "inner": {"bee": bee, "ant": ant}}, training=False)
    answers = {"z/sums": answer["z"]["sums"], "z/more": answer["z"]["more"], "a": answer["a"]}
    return Case(model, {"ant": ant, "zebra": zebra, "bee": bee}, answers)


def _looped(package_name: str, name: str, *, unroll: bool) -> Build:
    def build(folder: Path) -> Case:
        model = recurrent(package_of(package_name), name)
        x = normal(*model.input_shape[1:])
        answers = {_only_output(model): model(x, training=False)}
        return Case(model, {model.inputs[0].name: x}, answers, How(unroll=unroll), single_sample=not unroll)

    build.__name__ = f"{package_name}_{name}_{'unrolled' if unroll else 'one_sample_at_a_time'}"
    return build


def module() -> Any:
    """A ``tf.Module`` of three functions; the arguments of ``weigh`` are alike in shape, and not in sorted order."""
    import tensorflow as tf

    class Scales(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(np.random.default_rng(3).normal(size=(4, 3)), dtype="float32", name="kernel")
            self.bias = tf.Variable([0.5, -1, 2], name="bias")

        @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
        def __call__(self, x: Any) -> Any:
            return x @ self.kernel + self.bias

        @tf.function(input_signature=[tf.TensorSpec((None, 4), name="zebra"), tf.TensorSpec((None, 4), name="ant")])
        def weigh(self, zebra: Any, ant: Any) -> Any:
            return {"z": 3.0 * zebra - ant, "a": zebra + 10.0 * ant}

        @tf.function(input_signature=[tf.TensorSpec((None, 3), name="y")])
        def decode(self, y: Any) -> Any:
            return (y - self.bias) @ tf.transpose(self.kernel)

    return Scales()


def counter() -> Any:
    """A module that counts its calls in a variable, and adds the count."""
    import tensorflow as tf

    class Counter(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = tf.Variable(10.0)

        @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
        def __call__(self, x: Any) -> Any:
            return x + self.count.assign_add(1.0)

    return Counter()


def lookup(words: tuple[str, str] = ("one", "two")) -> Any:
    """A module that gives each of two words its place, with a table."""
    import tensorflow as tf

    class Words(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            places = tf.lookup.KeyValueTensorInitializer(tf.constant(words), tf.constant([1, 2], tf.int64))
            self.codes = tf.lookup.StaticHashTable(places, -1)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])
        def __call__(self, words: Any) -> Any:
            return {"code": self.codes.lookup(words), "same": tf.identity(words)}

    return Words()


def signatures_of(scales: Any) -> dict[str, Any]:
    """The module's functions as one names them in ``tf.saved_model.save``."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, 4), name="x")])
    def serve(x: Any) -> Any:
        return {"y": scales(x)}

    return {"serving_default": serve, "weigh": scales.weigh, "decode": scales.decode}


def _weighed(value: Any, how: How) -> Case:
    zebra, ant = normal(4), normal(4)[::-1].copy()
    return Case(value, {"zebra": zebra, "ant": ant}, {"z": 3 * zebra - ant, "a": zebra + 10 * ant}, how)


def tf_module(folder: Path) -> Case:
    model = module()
    return Case(model, {"x": normal(4)}, {"output_0": model(normal(4))})


def tf_module_method(folder: Path) -> Case:
    return _weighed(module(), How(signature="weigh"))


def tf_module_without_functions(folder: Path) -> Case:
    import tensorflow as tf

    class Plain(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(np.random.default_rng(3).normal(size=(4, 3)), dtype="float32")

        def __call__(self, x: Any) -> Any:
            return tf.nn.relu(x @ self.kernel)

    model = Plain()
    return Case(model, {"x": normal(4)}, {"output_0": model(normal(4))}, How(input_spec="?x4"))


def tf_function(folder: Path) -> Case:
    import tensorflow as tf

    @tf.function
    def both(x: Any, a: Any) -> Any:
        return {"difference": x - 2 * a, "nest": {"products": [x * a, x * x]}}

    x, a = normal(4), normal(4)[::-1].copy()
    answers = {"difference": x - 2 * a, "nest/products_0": x * a, "nest/products_1": x * x}
    return Case(both, {"x": x, "a": a}, answers, How(input_spec="?x4,?x4"))


def tf_function_of_a_nested_dict(folder: Path) -> Case:
    import tensorflow as tf

    spec = tf.TensorSpec((None, 2))

    @tf.function(input_signature=[{"q": spec, "p": {"z": spec, "b": spec}}])
    def combine(given: Any) -> Any:
        return given["p"]["z"] - 3 * given["p"]["b"] + 10 * given["q"]

    b, z, q = normal(2), normal(2) * 2, normal(2)[::-1].copy()
    return Case(combine, {"given_p_b": b, "given_p_z": z, "given_q": q}, {"output_0": z - 3 * b + 10 * q})


def concrete_function(folder: Path) -> Case:
    model = module()
    return _weighed(model.weigh.get_concrete_function(), How())


def concrete_function_of_a_keras_3_model(folder: Path) -> Case:
    import tensorflow as tf

    model = weighed(functional())
    function = tf.function(lambda picture: model(picture, training=False))
    concrete = function.get_concrete_function(tf.TensorSpec((None, 8, 8, 1), name="picture"))
    x = normal(8, 8, 1)
    return Case(concrete, {"picture": x}, {"output_0": model(x, training=False)}, owner=model)


def loaded_saved_model(folder: Path) -> Case:
    import tensorflow as tf

    model = module()
    tf.saved_model.save(model, str(folder / "m"), signatures=signatures_of(model))
    return _weighed(tf.saved_model.load(str(folder / "m")), How(signature="weigh"))


def table_of_words(folder: Path) -> Case:
    words = np.array([b"two", b"one", b"three", b"", "zwölf".encode(), b"one"])
    return Case(lookup(), {"words": words}, {"code": np.array([2, 1, -1, -1, -1, 1]), "same": words})


def table_of_numbers(folder: Path) -> Case:
    import tensorflow as tf

    class Numbers(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            keys, values = tf.constant([1, 2], tf.int64), tf.constant(["one", "two"])
            self.words = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), "?")

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="codes")])
        def __call__(self, codes: Any) -> Any:
            return {"word": self.words.lookup(codes)}

    codes = np.array([1, 2, 3, 0, 2, 1], np.int64)
    return Case(Numbers(), {"codes": codes}, {"word": np.array([b"one", b"two", b"?", b"?", b"two", b"one"])})


def names_of_classes(folder: Path) -> Case:
    """Numbers in, words out."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, 3), name="x")])
    def name(x: Any) -> Any:
        return tf.gather(tf.constant(["ant", "bee", "zebra"]), tf.argmax(x, axis=-1))

    x = normal(3)
    return Case(name, {"x": x}, {"output_0": np.array([b"ant", b"bee", b"zebra"])[x.argmax(axis=-1)]})


def any_size(folder: Path) -> Case:
    """An image of a size that is not the 1x1 that converters assume of an open dimension."""
    import keras

    layers = keras.layers
    model = weighed(
        keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()])
    )
    x = normal(9, 7, 3)
    return Case(model, {model.inputs[0].name: x}, {"output_0": model(x, training=False)})


def any_rank(folder: Path) -> Case:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec(None, name="x")])
    def double(x: Any) -> Any:
        return x * 2 + 1

    return Case(double, {"x": normal(3, 2)}, {"output_0": normal(3, 2) * 2 + 1})


# Files


def exported_saved_model(folder: Path) -> Case:
    model = make(sequential)
    model.export(folder / "m", verbose=False)
    return Case(folder / "m", {model.inputs[0].name: normal(4)}, {"output_0": model(normal(4), training=False)})


def tf_keras_saved_model(folder: Path) -> Case:
    import tf_keras

    case = _answer_batch_normalized(batch_normalized(tf_keras))
    case.model.save(folder / "m")
    return Case(folder / "m", case.inputs, case.answers)


def saved_model_of_a_module(folder: Path) -> Case:
    import tensorflow as tf

    model = module()
    tf.saved_model.save(model, str(folder / "m"), signatures=signatures_of(model))
    return Case(folder / "m", {"x": normal(4)}, {"y": model(normal(4))})


def saved_model_with_arguments_out_of_order(folder: Path) -> Case:
    case = saved_model_of_a_module(folder)
    return _weighed(case.model, How(signature="weigh"))


def saved_model_with_a_table(folder: Path) -> Case:
    import tensorflow as tf

    case = table_of_words(folder)
    tf.saved_model.save(case.model, str(folder / "m"))
    return Case(folder / "m", case.inputs, case.answers)


def v1_saved_model(folder: Path) -> Case:
    import tensorflow as tf

    with v1_graph() as (session, x, y, answer):
        tf.compat.v1.saved_model.simple_save(session, str(folder / "m"), {"zebra": x}, {"ant": y})
        return Case(folder / "m", {"zebra": normal(4)}, {"ant": answer(normal(4))})


def saved_model_with_unusual_tags(folder: Path) -> Case:
    import tensorflow as tf

    v1 = tf.compat.v1
    with v1_graph() as (session, x, y, answer):
        builder = v1.saved_model.Builder(str(folder / "m"))
        signature = v1.saved_model.predict_signature_def({"zebra": x}, {"ant": y})
        builder.add_meta_graph_and_variables(session, ["mobile", "v7"], {"embed": signature})
        builder.save()
        return Case(folder / "m", {"zebra": normal(4)}, {"ant": answer(normal(4))})


@contextlib.contextmanager
def v1_graph() -> Iterator[tuple[Any, Any, Any, Callable[[Any], Any]]]:
    """A graph of TensorFlow 1 with variables: its session, input, output, and what answers for it."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 4), name="x")
        kernel = v1.get_variable("kernel", initializer=tf.random.stateless_normal((4, 3), (1, 2)), use_resource=False)
        hidden = tf.identity(tf.matmul(x, kernel), name="hidden")
        y = tf.add(tf.nn.relu(hidden), [0.5, -1, 2], name="y")
        session.run(v1.global_variables_initializer())
        yield session, x, y, lambda rows, of=y: session.run(of, {x: rows})


def frozen_graph(folder: Path) -> Case:
    import tensorflow as tf

    with v1_graph() as (session, _, _, answer):
        constants = tf.compat.v1.graph_util.convert_variables_to_constants(session, session.graph_def, ["y"])
        (folder / "m.pb").write_bytes(constants.SerializeToString())
        return Case(folder / "m.pb", {"x": normal(4)}, {"y": answer(normal(4))})


def frozen_graph_cut_out(folder: Path) -> Case:
    """From a tensor in the middle of the graph to two others."""
    case = frozen_graph(folder)
    hidden = normal(3)
    relu = np.maximum(hidden, 0)
    how = How(inputs=("hidden:0",), outputs=("y", "Relu"))
    return Case(case.model, {"hidden": hidden}, {"y": relu + np.array([0.5, -1, 2], "float32"), "Relu": relu}, how)


def _keras_file(package_name: str, suffix: str) -> Build:
    def build(folder: Path) -> Case:
        model = batch_normalized(package_of(package_name))
        case = _answer_batch_normalized(model)
        with without_warnings():
            model.save(folder / f"m{suffix}")
        # A model made anew from its configuration calls its input after the input layer.
        name = model.get_config()["layers"][0]["config"]["name"]
        return Case(folder / f"m{suffix}", {name: normal(6, 6, 2)}, case.answers)

    build.__name__ = f"{package_name}_file_{suffix[1:]}"
    return build


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Where Keras or TensorFlow says that a format is an old one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def lite_file(folder: Path) -> Case:
    import tensorflow as tf

    model = make(two_in_two_out)
    (folder / "m.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    zebra, ant = normal(3), normal(2)
    return Case(folder / "m.tflite", {"zebra": zebra, "ant": ant}, model([zebra, ant], training=False))


def lite_file_without_a_signature(folder: Path) -> Case:
    import tensorflow as tf

    with v1_graph() as (session, x, y, answer):
        converter = tf.compat.v1.lite.TFLiteConverter.from_session(session, [x], [y])
        (folder / "m.tflite").write_bytes(converter.convert())
        return Case(folder / "m.tflite", {"x": normal(4)}, {"y": answer(normal(4))})


BUILDS: tuple[Build, ...] = (
    *map(_keras, KINDS),
    *(
        _either(package, kind, answer)
        for package in ("keras", "tf_keras")
        for kind, answer in (
            (batch_normalized, _answer_batch_normalized),
            (dictionaries, _answer_dictionaries),
            (nested_dictionaries, _answer_nested),
        )
    ),
    *(_looped(package, name, unroll=False) for package in ("keras", "tf_keras") for name in RECURRENT),
    *(_looped("keras", name, unroll=True) for name in RECURRENT),
    *(_looped("tf_keras", name, unroll=True) for name in ("lstm", "bidirectional")),
    tf_module,
    tf_module_method,
    tf_module_without_functions,
    tf_function,
    tf_function_of_a_nested_dict,
    concrete_function,
    concrete_function_of_a_keras_3_model,
    loaded_saved_model,
    table_of_words,
    table_of_numbers,
    names_of_classes,
    any_size,
    any_rank,
    exported_saved_model,
    tf_keras_saved_model,
    saved_model_of_a_module,
    saved_model_with_arguments_out_of_order,
    saved_model_with_a_table,
    v1_saved_model,
    saved_model_with_unusual_tags,
    frozen_graph,
    frozen_graph_cut_out,
    *(_keras_file(package, suffix) for package in ("keras", "tf_keras") for suffix in (".keras", ".h5")),
    lite_file,
    lite_file_without_a_signature,
)

FILES: dict[str, Build] = {
    "saved_model": saved_model_of_a_module,
    "keras": _keras_file("keras", ".keras"),
    "h5": _keras_file("keras", ".h5"),
    "pb": frozen_graph,
    "tflite": lite_file,
}
"""One of each kind of file."""
