"""The search for an int8 file that keeps the accuracy: the reference case, healthy models, and other damage."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from tests.conftest import Digits
from tests.evaluate import by_hand
from tests.quantization import unequal
from tfdeploy_magic import quantize
from tfdeploy_magic.commands import search
from tfdeploy_magic.commands.comparison import Comparison
from tfdeploy_magic.commands.lite_model import LiteModel
from tfdeploy_magic.errors import BudgetNotMet, ConversionError

ALLOWED = 0.02


def searched(model: Any, calibration: Any, test: Any, **options: Any) -> Comparison:
    made = quantize(model, **{"schemes": ("int8",), "max_drop": "2%", "calib": calibration, "test": test, **options})
    assert isinstance(made, Comparison)
    return made


def accuracy(lite: LiteModel, x: Any, y: Any) -> float:
    return unequal.accuracy(by_litert(lite, x), y)


def by_litert(lite: LiteModel, x: Any) -> Any:
    (answers,) = by_hand.answers(lite.path.read_bytes(), {lite.inputs[0].name: x}).values()
    return answers


def float_tensors(lite: LiteModel) -> list[str]:
    """Return the names of what operators compute in float, in LiteRT's own words."""
    interpreter = by_hand.interpreter(lite.path.read_bytes())
    interpreter.allocate_tensors()
    operators = [op for op in interpreter._get_ops_details() if op["op_name"] not in ("DEQUANTIZE", "DELEGATE")]
    made = {int(index) for op in operators for index in op["outputs"]}
    tensors = [tensor for tensor in interpreter.get_tensor_details() if tensor["index"] in made]
    return [tensor["name"] for tensor in tensors if tensor["dtype"] is np.float32]


# The reference case: 4 of 64 channels 500 times larger, and the next layer makes up for it


@pytest.fixture(scope="module")
def unequal_model() -> Any:
    return unequal.unbalance(unequal.reference_model(), unequal.PRODUCER, unequal.CONSUMER)


@pytest.fixture(scope="module")
def found(unequal_model: Any) -> Comparison:
    x, _, x_test, y_test = unequal.data()
    return searched(unequal_model, x[:100], (x_test, y_test), no_cache=True)


def test_plain_int8_misses_and_two_cures_meet_the_budget(found: Comparison) -> None:
    plain, equalized, region = found.table.trials
    assert [trial.met for trial in found.table.trials] == [False, True, True]
    assert [trial.label for trial in found.table.trials] == [row.label for row in found.table.rows]
    assert plain.label == "int8"
    assert equalized.label == "int8, equalized"
    assert region.label.startswith(f"int8, {unequal.PRODUCER}, ") and region.label.endswith(" float")


def test_what_the_trials_say_is_what_the_files_answer_by_hand(found: Comparison, unequal_model: Any) -> None:
    _, _, x, y = unequal.data()
    before = unequal.accuracy(unequal_model.predict(x, verbose=0), y)
    for trial in found.table.trials:
        lite = found[trial.label]
        assert lite.evidence.accuracy == pytest.approx(accuracy(lite, x, y))
        assert trial.met == (before - accuracy(lite, x, y) <= ALLOWED)
    assert before - accuracy(found["int8"], x, y) > 0.5


def test_equalization_wins_because_it_is_smaller(found: Comparison) -> None:
    assert found.best is found["int8, equalized"]
    met = [found[trial.label] for trial in found.table.trials if trial.met]
    assert found.best.size == min(lite.size for lite in met)


def test_an_equalized_file_is_int8_everywhere_and_no_larger(found: Comparison) -> None:
    lite = found["int8, equalized"]
    assert lite.size <= 1.05 * found["int8"].size
    assert float_tensors(lite) == []
    assert set(lite.file.activations) == {"int8"}


def test_the_region_alone_stays_float_at_half_the_float_size(found: Comparison, unequal_model: Any) -> None:
    lite = found[found.table.trials[2].label]
    assert lite.size <= len(by_hand.plain_file(unequal_model)) / 2
    names = float_tensors(lite)
    wanted = (unequal.PRODUCER, "pool_2", unequal.CONSUMER)
    assert len(names) == 3
    assert all(any(f"/{layer}_" in name for layer in wanted) for name in names)


def test_each_step_says_why_it_was_taken_what_came_of_it_and_what_it_cost(found: Comparison) -> None:
    plain, *cures = found.table.trials
    assert plain.why == "what was asked for, as it is"
    for trial in cures:
        assert f"one channel of {unequal.PRODUCER} (Conv2D) is" in trial.why
        assert "one scale serves them all" in trial.why
    assert cures[0].why.endswith("even them out")
    assert cures[1].why.endswith("leave that region in float")
    for trial in found.table.trials:
        assert trial.seconds > 0
        assert "points below the source model (95% interval" in trial.outcome
    assert "no difference shown" in cures[0].outcome and "no difference shown" not in plain.outcome
    shown = found._repr_mimebundle_()["text/plain"]
    assert "the search, step by step" in shown
    assert "int8, equalized meets it" in shown and "the smallest of 2 that do" in shown


def test_the_files_say_how_they_were_made(found: Comparison) -> None:
    assert any("Nagel" in step for step in found["int8, equalized"].provenance.route)
    assert any("left in float" in step for step in found[found.table.trials[2].label].provenance.route)
    assert found["int8, equalized"].path.name == "model-int8-equalized.tflite"


def test_the_equalized_file_answers_as_the_undamaged_models_int8_file(found: Comparison) -> None:
    x, _, x_test, y_test = unequal.data()
    healthy = by_hand.plain_file(unequal.reference_model(), "int8", "int8", x[:100])
    (name,) = by_hand.interpreter(healthy).get_signature_runner().get_input_details()
    (answers,) = by_hand.answers(healthy, {name: x_test}).values()
    undamaged = unequal.accuracy(answers, y_test)
    assert accuracy(found["int8, equalized"], x_test, y_test) == pytest.approx(undamaged, abs=0.01)


def test_the_same_search_again_finds_its_files_and_comes_to_the_same_end(unequal_model: Any, found: Comparison) -> None:
    x, _, x_test, y_test = unequal.data()
    again = searched(unequal_model, x[:100], (x_test, y_test))
    assert all(lite.provenance.file_cached for lite in again)
    assert [(trial.label, trial.why, trial.outcome, trial.met) for trial in again.table.trials] == [
        (trial.label, trial.why, trial.outcome, trial.met) for trial in found.table.trials
    ]
    assert again.table.best == found.table.best


def test_a_search_that_is_stopped_keeps_what_it_tried(unequal_model: Any) -> None:
    x, _, x_test, y_test = unequal.data()

    def listen(progress: Any) -> None:
        if progress.so_far is not None and len(progress.so_far.table.rows) == 2:
            raise KeyboardInterrupt

    stopped = searched(unequal_model, x[:100], (x_test, y_test), no_cache=True, progress=listen)
    assert stopped.table.stopped
    assert [row.label for row in stopped.table.rows] == ["int8", "int8, equalized"]
    assert stopped.best is stopped["int8, equalized"]


def test_inputs_and_outputs_stay_as_asked_in_every_cure(unequal_model: Any) -> None:
    x, _, x_test, y_test = unequal.data()
    made = searched(unequal_model, x[:100], (x_test, y_test), io="uint8")
    assert len(made) == 3
    assert {spec.dtype for lite in made for spec in (*lite.inputs, *lite.outputs)} == {"uint8"}
    assert made.best is made["int8, equalized"]


def test_the_search_runs_beside_other_schemes_and_they_may_win(unequal_model: Any) -> None:
    x, _, x_test, y_test = unequal.data()
    made = searched(unequal_model, x[:100], (x_test, y_test), schemes=("float32", "int8", "weight_only_wi8"))
    labels = [row.label for row in made.table.rows]
    assert labels[:4] == ["float32", "int8", "weight_only_wi8", "int8, equalized"]
    meet = [lite for lite in made if made.table["float32"].evidence.accuracy - lite.evidence.accuracy <= ALLOWED]
    assert made.best is min(meet, key=lambda lite: lite.size)


def test_without_int8_among_the_schemes_nothing_is_searched(unequal_model: Any) -> None:
    _, _, x_test, y_test = unequal.data()
    made = searched(unequal_model, None, (x_test, y_test), schemes=("dynamic",))
    assert made.table.trials == ()
    with pytest.raises(BudgetNotMet, match="found as the nearest dynamic"):
        _ = made.best


# Models that need no cure, or another one


def test_a_healthy_model_stops_after_one_trial() -> None:
    x, _, x_test, y_test = unequal.data()
    made = searched(unequal.reference_model(), x[:100], (x_test, y_test))
    (trial,) = made.table.trials
    assert (trial.label, trial.met) == ("int8", True)
    assert made.best is made["int8"]
    assert len(made) == 1


@pytest.fixture(scope="module")
def dense(digits: Digits) -> Any:
    """A classifier of digits as ``float32[n, 64]``; train or change only a copy."""
    import keras

    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(32, activation="relu", name="pixels"),
        keras.layers.Dense(32, activation="relu", name="mixed"),
        keras.layers.Dense(10, activation="softmax", name="classes"),
    ]
    model = keras.Sequential([keras.Input((64,)), *layers])
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    model.fit(flat(digits.x_train), digits.y_train, epochs=8, verbose=0)
    return model


def flat(x: Any) -> Any:
    return x.reshape(len(x), 64)


def weights_drowned(model: Any, layer: str, row: int) -> Any:
    """Copy a model with huge weights of something that is always 0: answers stay, and 8 bits hold no other weight."""
    import keras

    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    kernel, bias = copy.get_layer(layer).get_weights()
    kernel[row] = 1000
    copy.get_layer(layer).set_weights([kernel, bias])
    return copy


@pytest.fixture(scope="module")
def drowned(dense: Any, digits: Digits) -> Comparison:
    corner = 0
    assert not np.any(flat(digits.x_test)[:, corner])
    assert not np.any(flat(digits.x_train)[:, corner])
    model = weights_drowned(dense, "pixels", corner)
    return searched(model, flat(digits.x_train[:60]), (flat(digits.x_test), digits.y_test))


def test_damage_that_channels_do_not_explain_is_cured_by_leaving_the_worst_layer_in_float(
    drowned: Comparison, digits: Digits
) -> None:
    plain, cure = drowned.table.trials
    assert (plain.met, cure.met) == (False, True)
    assert cure.label == "int8, pixels float"
    assert cure.why == "no channel stands out: leave the worst layer by the debugger's error over scale in float"
    best = drowned.best
    assert best is drowned["int8, pixels float"]
    assert len(float_tensors(best)) == 1 and "/pixels_" in float_tensors(best)[0]
    x, y = flat(digits.x_test), digits.y_test
    assert accuracy(best, x, y) > 0.9 > 0.5 > accuracy(drowned["int8"], x, y)


def test_more_layers_are_left_in_float_until_it_is_enough(dense: Any, digits: Digits) -> None:
    import keras

    # A unit that never answers, so that what the second layer makes of it may be anything.
    silent = keras.models.clone_model(dense)
    silent.set_weights(dense.get_weights())
    kernel, bias = silent.get_layer("pixels").get_weights()
    kernel[:, 5], bias[5] = 0, 0
    silent.get_layer("pixels").set_weights([kernel, bias])
    model = weights_drowned(weights_drowned(silent, "pixels", 0), "mixed", 5)
    test = flat(digits.x_test), digits.y_test
    made = searched(model, flat(digits.x_train[:60]), test)
    assert [trial.met for trial in made.table.trials] == [False, False, True]
    assert made.table.trials[2].why.endswith("leave the 2 worst layers by the debugger's error over scale in float")
    names = float_tensors(made.best)
    assert len(names) == 2 and {"/pixels_" in name or "/mixed_" in name for name in names} == {True}
    assert accuracy(made.best, *test) > 0.85


def test_two_trials_that_leave_tensors_of_one_layer_in_float_are_two_rows(digits: Digits) -> None:
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.SeparableConv2D(32, 8, depth_multiplier=24, activation="relu", name="sep"),
            layers.Flatten(),
            layers.Dense(10, activation="softmax", name="classes"),
        ]
    )
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    model.fit(digits.x_train, digits.y_train, epochs=8, verbose=0)
    depthwise, pointwise, bias = model.get_layer("sep").get_weights()
    depthwise[0, 0], depthwise[..., -1] = 1000, 0
    pointwise[:, :, -1, :] = 1000
    model.get_layer("sep").set_weights([depthwise, pointwise, bias])
    made = searched(model, digits.x_train[:60], (digits.x_test, digits.y_test))
    names = [row.label for row in made.table.rows]
    assert [trial.met for trial in made.table.trials] == [False, False, True]
    assert len(names) == len(set(names)) == 3


def test_each_file_is_the_one_that_was_measured_however_long_its_layers_are_called() -> None:
    import keras

    reference = unequal.reference_model()
    prefix = "a_layer_of_some_backbone_with_a_really_long_name_"
    layers = [
        type(layer).from_config({**layer.get_config(), "name": prefix + layer.name}) for layer in reference.layers
    ]
    model = keras.Sequential([keras.Input((16, 16, 1)), *layers])
    model.set_weights(reference.get_weights())
    x, _, x_test, y_test = unequal.data()
    ruined = unequal.unbalance(model, prefix + unequal.PRODUCER, prefix + unequal.CONSUMER)
    made = searched(ruined, x[:100], (x_test, y_test))
    assert len(made) >= 3
    for lite in made:
        assert hashlib.sha256(lite.path.read_bytes()).hexdigest() == lite.file.sha256
        assert accuracy(lite, x_test, y_test) == pytest.approx(lite.evidence.accuracy, abs=0.003)


def test_a_search_whose_debugger_fails_keeps_its_rows(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(32, activation="relu", name="pixels"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    model.fit(flat(digits.x_train), digits.y_train, epochs=6, verbose=0)

    def fails(one: Any) -> Any:
        raise ConversionError("this model cannot be debugged", found="x", wanted="y", cure="z")

    monkeypatch.setattr(search, "debugged", fails)
    made = searched(
        weights_drowned(model, "pixels", 0), flat(digits.x_train[:60]), (flat(digits.x_test), digits.y_test)
    )
    assert made.table.rows[0].label == "int8"
    assert any("cannot be debugged" in finding.message for finding in made.table.findings)


def test_a_mark_stands_only_beside_what_meets_every_limit(unequal_model: Any) -> None:
    x, _, x_test, y_test = unequal.data()
    made = searched(unequal_model, x[:100], (x_test, y_test), max_size="20kB")
    assert len(made.table.trials) >= 3, "both cures are tried for the accuracy's sake"
    assert not any(trial.met for trial in made.table.trials)
    with pytest.raises(BudgetNotMet, match="the size asked"):
        _ = made.best
