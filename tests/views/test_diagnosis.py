from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from tests.views.test_card import Tags
from tests.views.test_comparison import EQUALIZED, EVIL
from tfdeploy_magic.artifacts.debugging import ChangedSample, ChannelSpread, Diagnosis, Histogram, LayerError
from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.views import diagnosis, diagnosis_figures


def layer(name: str, steps: float, snr: float, scale: float = 0.02, **more: Any) -> LayerError:
    """Return a tensor whose root mean square error is that many steps."""
    held = Histogram((-4.0, -2.0, 0.0, 2.0, 4.0), (5, 40, 50, 5), -2.0, 2.0)
    known = {"histogram": held, "custom": {}, **more}
    error = (steps * scale) ** 2
    return LayerError("CONV_2D", 3, 4096.0, 0.01, 1e-4, 0.123, error, scale, -3, f"t/{name};x", name, snr, **known)


def sample(row: int, **more: Any) -> ChangedSample:
    known = {
        "reference": {"scores": np.asarray([0.1, 0.7, 0.2], np.float32)},
        "answer": {"scores": np.asarray([0.6, 0.3, 0.1], np.float32)},
        "label": np.asarray(1),
        "inputs": {"image": np.arange(64, dtype=np.float32).reshape(8, 8, 1)},
    }
    return ChangedSample(row, 0.37, **{**known, **more})


LAYERS = (
    layer("conv2d (Conv2D)", 0.30, 41.0, custom={"skew": 0.5}),
    layer("conv2d_1 (Conv2D)", 6.57, 3.1),
    layer("max_pooling2d (MaxPooling2D)", 0.0, math.inf),
)
SPREADS = (
    ChannelSpread("image", "", "image", (1.0, 1.0), 1.0),
    ChannelSpread("t/a", "CONV_2D", "conv2d (Conv2D)", (1.0, 530.0, 1.0, 0.0), 530.0),
)
FINDING = Finding("warning", "region", "conv2d to conv2d_1 hold unequal channels", "Equalize them.")
DIAGNOSIS = Diagnosis(EQUALIZED, LAYERS, SPREADS, (sample(17), sample(48)), {"brier": 0.125}, (FINDING,))
DRAW = (
    diagnosis.layers_figure,
    diagnosis.spread_figure,
    diagnosis.histograms_figure,
    diagnosis.samples_figure,
)


def both(found: Diagnosis) -> tuple[str, str]:
    bundle = diagnosis.mimebundle(found)
    return bundle["text/plain"], Tags(bundle["text/html"]).text


@pytest.fixture(scope="module")
def renderings() -> tuple[str, str]:
    return both(DIAGNOSIS)


def texts(axes: Axes) -> list[str]:
    return [each.get_text() for each in axes.texts]


def bars(axes: Axes) -> list[float]:
    return [bar.get_width() for bar in axes.containers[0]]


@pytest.mark.parametrize(
    "said",
    [
        "conv2d_1 (Conv2D) is the worst layer: its CONV_2D is off by 6.57 steps of its scale",
        "rounding alone gives about 0.29 (SNR 3.1 dB)",
        *(
            "conv2d to conv2d_1 hold unequal channels",
            "Equalize them.",
            "6.57",
            "exact",
            "0.123",
            "363.1 kB",
            "39.8 dB",
        ),
        "most unequal in conv2d (Conv2D) · CONV_2D: the widest has 530 times the range of the median one",
        *("class 1", "class 0", "0.37", "brier", "0.125"),
    ],
)
def test_card_and_plain_text_say_the_same(said: str, renderings: tuple[str, str]) -> None:
    for rendering in renderings:
        assert said in rendering


def test_the_first_sentence_names_the_worst_layer() -> None:
    assert diagnosis.text(DIAGNOSIS).splitlines()[1].startswith("  conv2d_1 (Conv2D) is the worst layer")
    fine = diagnosis.first_sentence(replace(DIAGNOSIS, layers=LAYERS[:1]))
    assert fine.startswith("No layer does more than round")
    nothing = diagnosis.first_sentence(replace(DIAGNOSIS, layers=(layer("a", math.nan, math.nan), *LAYERS)))
    assert nothing.startswith("a is the worst layer: the error of its CONV_2D is no number")
    assert diagnosis.first_sentence(replace(DIAGNOSIS, layers=())) == "No tensor was measured."


def test_rounding_alone_is_0_29_steps() -> None:
    values = np.random.default_rng(0).uniform(-100, 100, 100_000)
    assert np.sqrt(np.mean((np.round(values) - values) ** 2)) == pytest.approx(diagnosis.ROUNDING, rel=0.01)


def test_all_columns_of_the_debugger_and_the_persons_own_are_one_click_away() -> None:
    folded = diagnosis.html(DIAGNOSIS).partition("<details")[2]
    for column in ("op_name", "tensor_idx", "num_elements", "stddev", "mean_error", "max_abs_error", "zero_point"):
        assert f">{column}</th>" in folded
    assert ">skew</th>" in folded
    assert "t/conv2d_1 (Conv2D);x" in folded


def test_of_many_layers_the_worst_are_shown_first_and_all_are_folded() -> None:
    many = tuple(layer(f"layer_{n}", 0.2 + 0.01 * n, 30.0, histogram=None) for n in range(40))
    found = replace(DIAGNOSIS, layers=many, spreads=(), changed=())
    text = diagnosis.text(found)
    assert "the worst 12 of 40 quantized tensors" in text
    assert [f"layer_{n} " in text for n in (39, 28, 27)] == [True, True, False]
    assert "layer_0<" in diagnosis.html(found)


def test_what_a_tensor_cannot_hold_is_counted_from_its_bins() -> None:
    assert diagnosis.outside(LAYERS[0]) == pytest.approx(0.1, abs=0.01)  # 5 below and 5 above, of 100
    assert "about 9.9% of the values outside −2 to 2" in texts(diagnosis.histograms_figure(DIAGNOSIS).axes[0])
    wide = layer("a", 1.0, 1.0, histogram=Histogram((0.0, 1.0), (7,), -1.0, 2.0))
    assert diagnosis.outside(wide) == 0
    assert math.isnan(diagnosis.outside(layer("a", 1.0, 1.0, histogram=None)))


def test_markup_in_names_is_text_and_commands_no_terminal() -> None:
    evil = replace(LAYERS[1], layer=EVIL, op_name=EVIL, tensor_name=EVIL, custom={EVIL: 1.0})
    found = Diagnosis(
        replace(EQUALIZED, label=EVIL),
        (evil,),
        (replace(SPREADS[0], layer=EVIL, op_name=EVIL),),
        (sample(1, label=np.asarray(EVIL), reference={EVIL: np.ones(3)}, answer={EVIL: np.ones(3)}),),
        {EVIL: 1.0},
        (Finding("error", "x", EVIL, EVIL),),
    )
    html = diagnosis.html(found)
    tags = Tags(html)
    assert "script" not in tags.seen
    assert tags.text.count("alert(1)") >= 10
    for rendering in (html, diagnosis.text(found)):
        assert "\x1b" not in rendering


def test_text_takes_the_colour_of_the_page_and_every_picture_has_words() -> None:
    html = re.sub(r'src="[^"]*"', "", diagnosis.html(DIAGNOSIS))
    assert re.findall(r"(?<![-\w])color:", html) == []
    said = re.findall(r'<img alt="([^"]*)"', html)
    assert len(said) == 4
    assert "conv2d_1 (Conv2D) · CONV_2D: RMSE / scale 6.57, SNR 3.1 dB" in said[0]
    assert "530 times" in said[1]
    assert "9.9% outside" in said[2]
    assert "17, class 1, class 1, class 0, 0.37" in said[3]


def test_the_layers_are_drawn_in_the_models_order_and_the_worst_stands_out() -> None:
    errors, ratios = diagnosis.layers_figure(DIAGNOSIS).axes
    names = [label.get_text() for label in errors.get_yticklabels()]
    assert names[1] == "▶ conv2d_1 (Conv2D) · CONV_2D"
    assert names[0] == "conv2d (Conv2D) · CONV_2D"
    assert bars(errors) == pytest.approx([0.30, 6.57, 0.0])
    assert bars(ratios)[:2] == [41.0, 3.1]
    assert bars(ratios)[2] > 41.0  # exact: longer than any number
    assert "6.57  ◀ worst" in texts(errors)
    assert [bool(bar.get_hatch()) for bar in errors.containers[0]] == [False, True, False]
    assert [line.get_xdata()[0] for line in errors.lines] == pytest.approx([1 / math.sqrt(12)])


@pytest.mark.parametrize("count", [1, 5, 60, 80])
def test_up_to_sixty_tensors_can_be_read(count: int) -> None:
    many = tuple(layer(f"layer_{n}", 0.2 + 0.01 * n, 30.0) for n in range(count))
    figure = diagnosis.layers_figure(replace(DIAGNOSIS, layers=many))
    names = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == min(count, diagnosis_figures.MOST_TENSORS)
    assert all(box.count_overlaps(names[:number]) == 0 for number, box in enumerate(names))
    assert ("60 of 80" in figure.axes[0].get_title(loc="left")) == (count == 80)


def test_spreads_stand_on_a_log_axis_and_the_widest_shows_its_channels() -> None:
    every, channels = diagnosis.spread_figure(DIAGNOSIS).axes
    assert (every.get_xscale(), channels.get_yscale()) == ("log", "log")
    assert texts(every) == ["×1", "×530  ◀ widest"]
    ends = [segment[1][1] for segment in channels.collections[0].get_segments()]
    assert ends == [1.0, 530.0, 1.0]
    assert "1 of them always 0" in channels.get_xlabel()


def test_histograms_show_the_worst_tensors_and_shade_what_is_held() -> None:
    many = tuple(layer(f"layer_{n}", 0.2 + 0.1 * n, 30.0) for n in range(9))
    axes = diagnosis.histograms_figure(replace(DIAGNOSIS, layers=many)).axes
    titles = [each.get_title(loc="left") for each in axes]
    assert titles == [f"layer_{n} · CONV_2D" for n in (8, 7, 6, 5, 4, 3)]
    held = axes[0].patches[0].get_extents().transformed(axes[0].transData.inverted())
    assert (held.x0, held.x1) == pytest.approx((-2.0, 2.0))
    assert axes[0].get_yscale() == "log"


def test_an_image_is_drawn_from_its_darkest_to_its_brightest_value() -> None:
    top = diagnosis.samples_figure(DIAGNOSIS).axes[0]
    drawn = np.asarray(top.images[0].get_array())
    assert drawn.shape == (8, 8)
    assert (drawn.min(), drawn.max()) == (0.0, 1.0)
    assert top.get_title(loc="left") == "sample 17, label class 1"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((8, 8), (8, 8)), ((8, 8, 1), (8, 8)), ((8, 8, 3), (8, 8, 3)), ((8, 8, 4), None), ((64,), None), ((1, 64), None)],
)
def test_what_is_an_image_is_told_by_its_shape(shape: tuple[int, ...], expected: tuple[int, ...] | None) -> None:
    image = diagnosis_figures.as_image(np.arange(math.prod(shape), dtype=np.uint8).reshape(shape))
    assert (None if image is None else image.shape) == expected


def test_an_image_of_one_value_or_with_nan_is_still_one() -> None:
    flat = diagnosis_figures.as_image(np.full((4, 4), 7.0))
    holes = diagnosis_figures.as_image(np.asarray([[np.nan, 1.0], [0.0, 2.0]]))
    assert flat is not None and not flat.any()
    assert holes is not None and np.isfinite(holes).all()


def test_both_models_scores_stand_side_by_side() -> None:
    figure = diagnosis.samples_figure(DIAGNOSIS)
    scores = figure.axes[3]  # below the first of three places for samples
    heights = [[bar.get_height() for bar in pair] for pair in scores.containers]
    assert np.asarray(heights) == pytest.approx(np.asarray([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]]), rel=1e-6)
    assert scores.get_title(loc="left") == "class 1 → class 0"
    assert [each.get_text() for each in figure.legends[0].get_texts()] == ["source model", "quantized"]


def test_of_a_thousand_classes_those_with_the_highest_scores_are_drawn() -> None:
    before = np.zeros(1000)
    before[[3, 500, 999]] = 0.9, 0.8, 0.7
    after = np.zeros(1000)
    after[44] = 0.6
    found = replace(DIAGNOSIS, changed=(sample(1, reference={"o": before}, answer={"o": after}),))
    classes = [int(label.get_text()) for label in diagnosis.samples_figure(found).axes[3].get_xticklabels()]
    assert len(classes) == 10
    assert {3, 44, 500, 999} <= set(classes)


@pytest.mark.parametrize(
    "value",
    [np.ones((16, 16, 4)), np.asarray(0.5), np.asarray([0.5]), np.full(3, np.nan), np.asarray([b"a"]), np.ones(0)],
)
def test_answers_and_samples_of_any_shape_can_be_drawn(value: npt.NDArray[Any]) -> None:
    odd = sample(1, reference={"o": value}, answer={"o": value}, label=None, inputs={"x": value})
    figure = diagnosis.samples_figure(replace(DIAGNOSIS, changed=(odd,)))
    figure.savefig("/dev/null", format="png")
    assert figure.axes[0].get_title(loc="left") == "sample 1"
    assert "unknown" in diagnosis.text(replace(DIAGNOSIS, changed=(odd,)))


def test_answers_that_are_no_vectors_are_lines() -> None:
    before = np.arange(1024.0).reshape(16, 16, 4)
    odd = sample(1, reference={"o": before}, answer={"o": before + 1})
    axes = diagnosis.samples_figure(replace(DIAGNOSIS, changed=(odd,))).axes[3]
    assert [line.get_label() for line in axes.lines] == ["source model", "quantized"]
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()
    assert axes.get_xlabel() == "171 of 1,024 values"


@pytest.mark.parametrize(
    ("steps", "snr", "scale"),
    [(math.nan, math.nan, 0.02), (math.inf, -math.inf, 0.02), (0.0, math.inf, 0.0), (math.nan, math.nan, 0.0)],
)
def test_one_layer_without_numbers_makes_a_card(steps: float, snr: float, scale: float) -> None:
    odd = layer("a", 1.0, snr, scale=scale)
    odd = replace(odd, mean_squared_error=steps)
    bundle = diagnosis.mimebundle(replace(DIAGNOSIS, layers=(odd,), spreads=(), changed=()))
    assert "a" in bundle["text/plain"]
    assert bundle["text/html"].count("<img") == 2


def test_an_empty_diagnosis_is_a_card_without_pictures() -> None:
    empty = Diagnosis(EQUALIZED, (), (), ())
    assert "<img" not in diagnosis.html(empty)
    assert "No tensor was measured." in diagnosis.text(empty)
    for draw in DRAW:
        assert [each.get_text()[:3] for each in draw(empty).texts] == ["no "]


@pytest.mark.parametrize("draw", DRAW)
def test_long_names_and_dollar_signs_are_drawn_and_a_persons_dark_style_is_kept_out(draw: Any) -> None:
    name = "$x^{ " + "very_long_name_" * 20
    odd = tuple(replace(each, layer=name) for each in LAYERS)
    found = replace(DIAGNOSIS, layers=odd, spreads=tuple(replace(each, layer=name) for each in SPREADS))
    with matplotlib.rc_context({"text.color": "white", "xtick.color": "white", "axes.labelcolor": "white"}):
        figure = draw(found)
        figure.savefig("/dev/null", format="png")
    written = [each for axes in figure.axes for each in (*axes.texts, axes.xaxis.label, *axes.get_yticklabels())]
    assert written
    assert "#ffffff" not in {to_hex(each.get_color()) for each in written}
    width = figure.get_window_extent().width
    assert all(each.get_window_extent().x1 <= width for axes in figure.axes for each in axes.get_yticklabels())
