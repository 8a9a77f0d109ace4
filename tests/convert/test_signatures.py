from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluate import by_hand
from tests.sources import models
from tfdeploy_magic import sources
from tfdeploy_magic.artifacts.signature import Signature
from tfdeploy_magic.convert.converter import FrozenGraph
from tfdeploy_magic.convert.signatures import put_signature


@pytest.mark.parametrize("kind", models.KINDS)
def test_a_converted_graph_answers_by_name_as_the_plain_converters_file(kind: Any, tmp_path: Path) -> None:
    model = models.make(kind)
    saved = sources.open_source(model, "model").model.save(tmp_path)
    content = FrozenGraph.open(saved.path, saved.signature).convert()
    plain = by_hand.plain_file(model)
    assert by_hand.interpreter(content).get_signature_list() == by_hand.interpreter(plain).get_signature_list()
    random = np.random.default_rng(2)
    inputs = {
        spec.name: random.integers(0, 9, (20, *spec.shape[1:])).astype(spec.dtype) for spec in saved.signature.inputs
    }
    expected = by_hand.answers(plain, inputs)
    for name, output in by_hand.answers(content, inputs).items():
        np.testing.assert_array_equal(output, expected[name])


def test_a_signature_whose_inputs_are_not_the_files_is_refused(tmp_path: Path) -> None:
    saved = sources.open_source(models.make(models.two_in_two_out), "model").model.save(tmp_path)
    content = FrozenGraph.open(saved.path, saved.signature).convert()
    first, second = saved.signature.inputs
    swapped: Signature = replace(saved.signature, inputs=(second, first))
    with pytest.raises(ValueError, match="should be tensor"):
        put_signature(content, swapped)
    with pytest.raises(ValueError, match="argument"):
        put_signature(content, replace(saved.signature, inputs=(first,)))
