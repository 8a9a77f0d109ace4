"""One kernel with a trained model and real data, for every test that types into a notebook."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.notebook.kernels import ROOT, Kernel, kernel

SETUP = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import keras
from sklearn.datasets import load_digits
_digits = load_digits()
x_train, x_test = [(a / 16).astype("float32")[..., None] for a in (_digits.images[:1297], _digits.images[1297:])]
y_train, y_test = _digits.target[:1297], _digits.target[1297:]
keras.utils.set_random_seed(0)
model = keras.Sequential([
    keras.Input((8, 8, 1)), keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.MaxPooling2D(),
    keras.layers.Flatten(), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(10, activation="softmax"),
])
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(x_train, y_train, epochs=10, batch_size=32, verbose=0);
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with kernel(tmp_path_factory.mktemp("kernel")) as running:
        loaded = running.run("%load_ext tfdeploy_magic\nimport sys; print('tensorflow' in sys.modules)")
        assert "%tflite_convert MODEL --int8" in loaded.streams["stdout"]
        assert loaded.streams["stdout"].endswith("False\n"), "loading the extension must not import TensorFlow"
        assert running.run(SETUP).status == "ok"
        yield running
