"""What is in a .tflite file is named after the layers of its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.evaluate import by_hand
from tests.quantization import unequal
from tfdeploy_magic.quantization.litegraph import Graph, layers_of, parse


def fused() -> Any:
    """A model whose operators are fused from several layers each, with a last one that the converter names anew."""
    import keras

    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, use_bias=False, name="plain"),
            keras.layers.BatchNormalization(name="norm_1"),
            keras.layers.ReLU(name="activation"),
            keras.layers.DepthwiseConv2D(3, use_bias=False, name="deep"),
            keras.layers.BatchNormalization(name="norm_2"),
            keras.layers.MaxPooling2D(name="pool"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(3, activation="softmax", name="classes"),
        ]
    )


@pytest.fixture(scope="module")
def layers() -> dict[str, str]:
    return {layer.name: f"{layer.name} ({type(layer).__name__})" for layer in fused().layers}


def made_in(content: bytes, layers: dict[str, str]) -> list[tuple[str, str]]:
    graph = Graph(parse(content))
    places = layers_of(content, layers)
    assert places == layers_of(parse(content), layers)
    return [
        (op.name, places[graph.name(op.outputs[0])].split()[0]) for op in graph.ops if graph.is_float(op.outputs[0])
    ]


EXPECTED = [
    ("CONV_2D", "plain"),
    ("DEPTHWISE_CONV_2D", "deep"),
    ("MAX_POOL_2D", "pool"),
    ("RESHAPE", "flat"),
    ("FULLY_CONNECTED", "classes"),
    ("SOFTMAX", "classes"),
]


def test_every_operator_of_our_own_files_has_its_layer(layers: dict[str, str], tmp_path: Path) -> None:
    content, found = unequal.float_file(fused(), tmp_path)
    assert {name: found[name] for name in layers} == layers
    assert made_in(content, layers) == EXPECTED


def test_every_operator_of_the_plain_converters_files_has_its_layer(layers: dict[str, str]) -> None:
    assert made_in(by_hand.plain_file(fused()), layers) == EXPECTED


def test_what_is_in_no_layer_keeps_its_name(tmp_path: Path) -> None:
    content, _ = unequal.float_file(fused(), tmp_path)
    assert all(name == layer for name, layer in layers_of(content, {}).items())


def test_a_model_of_layers_with_numbers_keeps_them_apart(tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4, name=name) for name in ("d", "d_1", "d_2"))])
    content, layers = unequal.float_file(model, tmp_path)
    assert made_in(content, layers) == [("FULLY_CONNECTED", name) for name in ("d", "d_1", "d_2")]
