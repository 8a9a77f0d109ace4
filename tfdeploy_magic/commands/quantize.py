"""``%quantize``: every scheme side by side, a search within a budget, and what cost an int8 file its accuracy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize, Field

from tfdeploy_magic.artifacts.comparison import Budget
from tfdeploy_magic.artifacts.schemes import RULES, SCHEMES, IoType, SchemeName, Variant
from tfdeploy_magic.commands.declaration import FromKernel, OnTheLine, command
from tfdeploy_magic.commands.model_options import ModelOptions, value_and_name
from tfdeploy_magic.errors import DataError
from tfdeploy_magic.jobs.progress import Listener
from tfdeploy_magic.quantization import recipe as recipes

if TYPE_CHECKING:
    from tfdeploy_magic.commands.comparison import Comparison
    from tfdeploy_magic.commands.explanation import Explanation

_UNITS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}


def _points(value: object) -> object:
    """Read percentage points: "2%", "2" and 2 are all 0.02."""
    if value is None:
        return None
    if isinstance(value, str):
        value = value.strip().removesuffix("%")
    try:
        points = float(value)  # type: ignore[arg-type]
        assert 0 < points < 100
    except (TypeError, ValueError, AssertionError):
        raise ValueError("should be percentage points between 0 and 100, as in 2%") from None
    return points / 100


def _milliseconds(value: object) -> object:
    """Read a time: "5ms", "0.2s" and 5 ms."""
    if value is None:
        return None
    match = re.fullmatch(r"\s*([0-9.]+)\s*(us|µs|ms|s)?\s*", str(value))
    try:
        assert match is not None
        return float(match[1]) * _UNITS[match[2] or "ms"]
    except (AssertionError, ValueError):
        raise ValueError("should be a time, as in 5ms") from None


class Quantize(ModelOptions):
    """Make a file of every scheme, measure them on the same samples, and say which to take.

    With --max-drop, --max-size or --max-latency it searches for the file that meets them; with --explain it says which
    layers lost the accuracy. As a cell magic its cell is a recipe: "LAYER: SCHEME" in each line, a layer by its name,
    a regular expression or its operator.
    """

    schemes: Annotated[tuple[SchemeName, ...], OnTheLine(flags=True)] = Field(
        (), description="only this scheme and others so named"
    )
    engine: Literal["tflite", "litert", "both"] | None = Field(
        None,
        description="TensorFlow's own schemes, or litert-quantizer's; both shows also where the two differ and why",
    )
    io: IoType | None = Field(None, description="dtype of inputs and outputs of the int8 files; int8 when left out")
    max_drop: Annotated[float | None, BeforeValidator(_points)] = Field(
        None,
        description="percentage points of the metric that a file may lose, 2% or 2; of a metric that is no share, per "
        "cent of its value; without labels, of samples that get another top class",
    )
    max_size: ByteSize | None = Field(None, gt=0, description="bytes that a file may have, as in 300kB")
    max_latency: Annotated[float | None, BeforeValidator(_milliseconds)] = Field(
        None, gt=0, description="time that one sample may take, as in 5ms"
    )
    explain: bool = Field(False, description="show each layer's error, ranges and the samples that changed most")
    sweep: bool = Field(False, description="time every file with several threads and batch sizes, too")
    debug_options: Annotated[Any, FromKernel("value")] = Field(
        None, description="a tf.lite.experimental.QuantizationDebugOptions for --explain: metrics and denylists"
    )
    recipe: Annotated[str | None, OnTheLine(hidden=True)] = Field(
        None, description='lines "LAYER: SCHEME", by name, regular expression or operator; later ones decide'
    )

    @property
    def budget(self) -> Budget:
        """What a file may cost."""
        return Budget(self.max_drop, self.max_size, self.max_latency)

    def variants(self) -> tuple[Variant, ...]:
        """Return the files that are made before anything is searched for."""
        asked = self.schemes or tuple(
            scheme.name for scheme in SCHEMES.values() if self.engine in (None, "both", scheme.engine)
        )
        if self.engine == "litert" and not self.schemes:
            asked = ("float32", *asked)
        return tuple(self._variants(dict.fromkeys(asked)))

    def _variants(self, names: Any) -> Iterator[Variant]:
        for name in names:
            yield Variant(name, self.io if name == "int8" else None)
            if self.engine == "both" and name == "int8":
                yield Variant(name, self.io, range_rule="true_min_max")
            elif self.engine == "both" and SCHEMES[name].engine == "litert" and SCHEMES[name].calibrated:
                yield from (Variant(name, range_rule=rule) for rule, told in RULES.items() if told)

    def calibrated(self) -> bool:
        """Whether any file needs calibration."""
        if self.recipe is not None:
            return any(SCHEMES[name].calibrated for name in recipes.schemes(recipes.parse(self.recipe), self.default()))
        return any(variant.calibrated for variant in self.variants())

    def default(self) -> str:
        """Return the scheme of the layers that no rule of a recipe names."""
        return self.schemes[0] if self.schemes else "int8"

    def data_to_find(self) -> tuple[str, ...]:
        """Calibration data where a scheme needs it, and test data always."""
        return ("calib", "test") if self.calibrated() else ("test",)


@command("quantize", Quantize, cell="recipe")
def quantize(options: Quantize, progress: Listener) -> Comparison | Explanation:
    """Convert and calibrate once, quantize in every way, measure all of them on the same samples.

    Returns:
        The files side by side; with ``explain`` what quantization does inside the model.

    Raises:
        InputError: Something named cannot be used; nothing was started.
        UserCodeError: The model's call(), a generator or a metric raised or hung.
        ConversionError: No file could be made at all.
        JobError: A job crashed, hung or outgrew its memory where nothing was finished yet.
    """
    # Loading the extension imports every verb, and has no need of what this one does.
    from tfdeploy_magic.commands import compare, conversion, explanation

    _check_options(options)
    with conversion.opened(options, progress, calibrated=options.calibrated()) as one:
        if options.explain:
            return explanation.explain(one, options.io, value_and_name(options.debug_options)[0])
        with options.worker() as measurer:
            return compare.compare(options, one, measurer)


def _check_options(options: Quantize) -> None:
    names = [SCHEMES[name].flag for name in options.schemes]
    wrong = next(
        (
            flag
            for name, flag in zip(options.schemes, names, strict=True)
            if options.engine in ("tflite", "litert") and SCHEMES[name].engine != options.engine and name != "float32"
        ),
        None,
    )
    if wrong is not None:
        raise _contradiction(f"--engine {options.engine}", wrong, "that engine does not make it", "--engine")
    if options.explain and options.schemes != ("int8",):
        found = " ".join(names) or "no scheme"
        raise DataError(
            "--explain cannot explain these files",
            found=found,
            wanted="--int8: TensorFlow's debugger looks into int8 files only",
            cure="Write %quantize MODEL --int8 --explain.",
        )
    if options.recipe is not None and len(options.schemes) > 1:
        why = "one scheme is for the layers that it does not name"
        raise _contradiction("a recipe", " ".join(names), why, names[-1])
    for flag, given in (
        (f"--engine {options.engine}", options.engine == "both"),
        ("a budget", bool(options.budget)),
        ("--sweep", options.sweep),
        ("a recipe", bool(options.recipe)),
    ):
        if options.explain and given:
            raise _contradiction("--explain", flag, "it looks into one file and compares none", "--explain")
    if options.debug_options is not None and not options.explain:
        raise _contradiction("--debug-options", "no --explain", "they are for the debugger", "--debug-options")
    if options.recipe is not None:
        recipes.parse(options.recipe)
    made = {options.default()} if options.recipe is not None else {variant.scheme for variant in options.variants()}
    if options.io is not None and "int8" not in made:
        found = " ".join(names) or f"--engine {options.engine}"
        raise _contradiction(f"--io {options.io}", found, "only int8 files store inputs as integers", "--io")
    if options.calibrated() and options.calib is None:
        raise DataError(
            "calibration data is needed",
            found="none",
            wanted="some real samples: random numbers ruin a quantized model while its accuracy looks fine",
            cure="Name some: --calib x_train.",
        )
    if options.budget and options.test is None and (options.max_drop is not None or options.max_latency is not None):
        raise DataError(
            "the budget cannot be measured",
            found="no test data",
            wanted="samples that answers and times are measured on",
            cure="Name some: --test x_test,y_test.",
        )
    if options.explain and options.test is None:
        raise DataError(
            "there is nothing to explain",
            found="no test data",
            wanted="samples to look at",
            cure="Name some: --test x_test,y_test.",
        )


def _contradiction(first: str, second: str, why: str, leave_out: str) -> DataError:
    return DataError(
        f"{first} and {second} do not go together",
        found="both",
        wanted=f"one of them: {why}",
        cure=f"Leave {leave_out} out.",
    )
