"""What ``%quantize`` does: the order of its steps, and what becomes of what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tfdeploy_magic.artifacts.schemes import Variant
from tfdeploy_magic.commands import search
from tfdeploy_magic.commands.comparison import Comparison
from tfdeploy_magic.commands.contrast import contrasts
from tfdeploy_magic.commands.conversion import Conversion
from tfdeploy_magic.commands.matrix import Matrix
from tfdeploy_magic.evaluate import judge
from tfdeploy_magic.jobs import Worker
from tfdeploy_magic.quantization import recipe as recipes

if TYPE_CHECKING:
    from tfdeploy_magic.commands.quantize import Quantize


def compare(options: Quantize, one: Conversion, measurer: Worker) -> Comparison:
    """Make, measure, search and time; what is finished stays when it is stopped.

    Args:
        options: What was asked for.
        one: The model and its data.
        measurer: The process that asks and times files.
    """
    matrix = Matrix(one, measurer, options.budget)
    variants = matrix.possible(options.variants()) if options.recipe is None else ()
    one.read_data()
    if one.comparable:
        _ = one.baseline  # a metric that does not fit shows before anything is converted
    search.check_budget(one, options.budget)
    more: dict[str, Any] = {}
    try:
        matrix.add(variants or _of_recipe(options, one))
        for step in _steps(options, matrix, more):
            with matrix.surviving():
                step()
    except KeyboardInterrupt:
        matrix.stop()
        if not matrix.table().rows:
            raise
        more["stopped"] = True
    one.keep_starts()
    models = matrix.keep()
    table = matrix.table()
    best = search.best_of(table.rows, options.budget)
    doubts = search.resolution(table[best], options.budget) if best else ()
    findings = judge.worst_first((*table.findings, *doubts))
    return Comparison(replace(table, best=best, findings=findings, **more), models)


def _steps(options: Quantize, matrix: Matrix, more: dict[str, Any]) -> Iterator[Callable[[], None]]:
    """Yield what is done once the files are there; what it finds beside the rows goes into ``more``."""
    yield matrix.look_at_calibration
    yield matrix.time
    if options.max_drop is not None:
        yield search.Search(matrix).run
        yield matrix.time
    if options.engine == "both":
        yield lambda: more.update(contrasts=tuple(contrasts(matrix)))
    if options.sweep:
        yield lambda: more.update(sweep=matrix.sweep())


def _of_recipe(options: Quantize, one: Conversion) -> tuple[Variant, ...]:
    """Return the file of the recipe, after its float twin and the same without the recipe."""
    assert options.recipe is not None
    asked = recipes.resolve(recipes.parse(options.recipe), one.maker.operators(), options.default())
    asked = replace(asked, io=options.io)
    files = (Variant("float32"), Variant(asked.scheme, asked.io), asked)
    return tuple({variant.label: variant for variant in files}.values())
