"""Unequal channels are found in one pass, and what is kept float because of them is enough and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tests.quantization import unequal
from tests.quantization.test_equalization import PICTURE, conv, in_a_row
from tfdeploy_magic.artifacts.debugging import ChannelSpread
from tfdeploy_magic.quantization import regions
from tfdeploy_magic.quantization.regions import Region


def screened(content: bytes, rows: Any, layers: dict[str, str]) -> tuple[ChannelSpread, ...]:
    return regions.screen(content, {unequal.input_of(content)[1]: rows}, layers)


def regions_of(model: Any, rows: Any, folder: Path) -> tuple[Region, ...]:
    content, layers = unequal.float_file(model, folder)
    return regions.find(content, screened(content, rows, layers))


def with_larger_channels(model: Any, layer: str, factor: float = 500) -> Any:
    """Multiply two channels of a layer in place."""
    kernel, bias = model.get_layer(layer).get_weights()
    kernel[..., :2] *= factor
    bias[:2] *= factor
    model.get_layer(layer).set_weights([kernel, bias])
    return model


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, bytes, dict[str, str]]:
    model = unequal.unbalance(unequal.reference_model(), unequal.PRODUCER, unequal.CONSUMER)
    return model, *unequal.float_file(model, tmp_path_factory.mktemp("harmed"))


def test_ranges_are_those_of_the_keras_layers(harmed: tuple[Any, bytes, dict[str, str]]) -> None:
    import keras

    model, content, layers = harmed
    x = unequal.data()[0][:30]
    # The dense layer's softmax is an operator of its own.
    spreads = [each for each in screened(content, x, layers) if each.op_name not in ("", "FULLY_CONNECTED")]
    assert [each.layer for each in spreads] == [layers[layer.name] for layer in model.layers]
    inner = keras.Model(model.inputs, [layer.output for layer in model.layers]).predict(x[:20], verbose=0)
    for spread, values in zip(spreads, inner, strict=True):
        largest = abs(values).reshape(-1, values.shape[-1]).max(axis=0)
        np.testing.assert_allclose(spread.ranges, largest, rtol=1e-4, atol=1e-6 * largest.max())
        assert spread.spread == pytest.approx(largest.max() / np.median(largest[largest > 0]), rel=1e-4)


def test_the_region_is_the_two_convolutions_and_what_is_between(harmed: tuple[Any, bytes, dict[str, str]]) -> None:
    _, content, layers = harmed
    spreads = screened(content, unequal.data()[0], layers)
    (region,) = regions.find(content, spreads)
    assert region.layers == ("middle (Conv2D)", "pool_2 (MaxPooling2D)", "last (Conv2D)")
    assert len(region.tensors) == 3
    assert region.spread == max(each.spread for each in spreads) > 300


def test_int8_with_the_region_in_float_is_as_good_as_float_at_half_the_size(
    harmed: tuple[Any, bytes, dict[str, str]],
) -> None:
    _, content, layers = harmed
    x, _, tested, labels = unequal.data()
    (region,) = regions.find(content, screened(content, x, layers))
    mixed = unequal.int8_file(content, x[:100], region.tensors)
    whole, cured = (unequal.accuracy(unequal.answers(file, tested), labels) for file in (content, mixed))
    assert cured > whole - 0.02
    assert len(mixed) <= len(content) / 2
    for missing in range(3):  # nothing of it can be left out
        fewer = [name for position, name in enumerate(region.tensors) if position != missing]
        assert unequal.accuracy(unequal.answers(unequal.int8_file(content, x[:100], fewer), tested), labels) < 0.5


# Where there is nothing to find


def test_undamaged_nets_have_no_regions(trained_cnn: Any, digits: Digits, tmp_path: Path) -> None:
    assert regions_of(unequal.reference_model(), unequal.data()[0], tmp_path / "reference") == ()
    assert regions_of(trained_cnn, digits.x_train, tmp_path / "cnn") == ()


def test_mobilenet_v2_has_no_regions(tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2((96, 96, 3), weights=None, classes=10, alpha=0.35)
    rows = np.random.default_rng(0).uniform(-1, 1, (4, 96, 96, 3)).astype("float32")
    content, layers = unequal.float_file(model, tmp_path)
    spreads = screened(content, rows, layers)
    assert len(spreads) > 60
    assert regions.find(content, spreads) == ()
    named = {each.layer for each in spreads if each.op_name == "DEPTHWISE_CONV_2D"}
    assert named == {text for text in layers.values() if "DepthwiseConv2D" in text}


def test_classes_that_no_sample_is_of_are_no_region(tmp_path: Path) -> None:
    import keras

    model = in_a_row(keras.layers.Dense(5, activation="softmax", name="classes"), shape=(3,))
    kernel, _ = model.get_weights()
    model.set_weights([kernel, np.array([12, 0, 0, 0, 0], "float32")])
    rows = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    content, layers = unequal.float_file(model, tmp_path)
    spreads = screened(content, rows, layers)
    assert spreads[-1].spread > regions.UNEQUAL
    assert regions.find(content, spreads) == ()


# What belongs together


def test_regions_that_touch_are_one_and_the_worst_comes_first(tmp_path: Path) -> None:
    import keras

    names = ("a", "b", "c", "d", "e", "f", "g")
    model = in_a_row(*(conv(name) for name in names))
    keras.utils.set_random_seed(0)
    for layer in model.layers:
        layer.set_weights([abs(weight) for weight in layer.get_weights()])  # nothing dies in ReLU
    with_larger_channels(model, "a", 100)
    with_larger_channels(model, "e", 1000)
    with_larger_channels(model, "f", 1000)
    found = regions_of(model, np.ones((3, 8, 8, 3), "float32"), tmp_path)
    assert [[layer.split()[0] for layer in region.layers] for region in found] == [["e", "f", "g"], ["a", "b"]]


def test_a_region_goes_on_through_what_only_hands_channels_on(tmp_path: Path) -> None:
    import keras

    model = in_a_row(
        conv("made"),
        keras.layers.MaxPooling2D(name="pool"),
        keras.layers.Flatten(name="flat"),
        keras.layers.Dense(4, name="taken"),
    )
    found = regions_of(
        with_larger_channels(model, "made"), np.random.default_rng(0).normal(size=(5, *PICTURE)), tmp_path
    )
    assert [layer.split()[0] for region in found for layer in region.layers] == ["made", "pool", "flat", "taken"]


def test_every_taker_of_an_unequal_tensor_is_in_its_region(tmp_path: Path) -> None:
    import keras

    start = keras.Input(PICTURE)
    stem = conv("stem")(start)
    joined = keras.layers.Add(name="joined")([stem, conv("inner")(stem)])
    model = keras.Model(start, conv("last")(joined))
    found = regions_of(
        with_larger_channels(model, "stem"), np.random.default_rng(0).normal(size=(5, *PICTURE)), tmp_path
    )
    assert [layer.split()[0] for region in found for layer in region.layers] == ["stem", "inner", "joined"]


# Inputs


def test_a_fixed_batch_and_several_inputs_are_fed_as_the_model_takes_them(tmp_path: Path) -> None:
    import keras

    first, second = keras.Input((3,), batch_size=4, name="first"), keras.Input((2,), batch_size=4, name="second")
    model = keras.Model([first, second], keras.layers.Concatenate(name="joined")([first, second]))
    content, layers = unequal.float_file(model, tmp_path)
    rng = np.random.default_rng(0)
    samples = {"first": rng.normal(size=(10, 3)), "second": rng.normal(size=(10, 2))}
    (joined,) = (each for each in regions.screen(content, samples, layers) if each.op_name == "CONCATENATION")
    np.testing.assert_allclose(joined.ranges, abs(np.concatenate([*samples.values()], axis=1)).max(axis=0), rtol=1e-6)
