from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.conftest import Digits
from tests.sources import models
from tfdeploy_magic.commands.declaration import Named, OnTheLine, marker
from tfdeploy_magic.commands.export import Export, Exported, export
from tfdeploy_magic.commands.tflite_convert import tflite_convert
from tfdeploy_magic.errors import NotAModel, OutputError
from tfdeploy_magic.sources.samples import NamedData


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "digits"


def ask(exported: Exported, name: str = "serving_default", **inputs: Any) -> dict[str, Any]:
    import tensorflow as tf

    signature = tf.saved_model.load(str(exported.path)).signatures[name]
    return {key: np.asarray(answer) for key, answer in signature(**inputs).items()}


def test_a_trained_model_becomes_a_version_that_was_compared(trained_cnn: Any, digits: Digits, base: Path) -> None:
    stages: list[str] = []
    exported = export(
        trained_cnn,
        base_path=base,
        test=(digits.x_test, digits.y_test),
        progress=lambda progress: stages.append(progress.stage),
    )
    assert (exported.version, exported.path, exported.base_path) == (1, base / "1", base)
    assert exported.evidence.verdict == "ok"
    assert exported.findings == ()
    assert list(exported.signatures) == ["serving_default"]
    order = [
        "tracing",
        "writing",
        "reading test data",
        "asking the source model",
        "loading it back",
        "comparing answers",
    ]
    assert [stage for stage in dict.fromkeys(stages) if stage in order] == order
    assert repr(exported) == f"<Exported digits, version 1: {exported.size:,} bytes>"
    bundle = exported._repr_mimebundle_()
    assert f"--model_base_path={base}" in bundle["text/plain"]
    assert "✓ ok" in bundle["text/html"]


def test_names_of_the_kernel_come_with_their_values(base: Path) -> None:
    import tensorflow as tf

    scales = models.module()
    exported = export(
        Named("scales", scales),
        base_path=base,
        signature={"double": Named("doubled", lambda x: 2 * scales(x))},
        preprocess=Named("halved", lambda raw: tf.cast(raw, tf.float32) / 2),
        postprocess=Named("signs", lambda y: {"sign": tf.sign(y)}),
        input_spec="?x4:int32",
        test=NamedData("rows", np.arange(160, dtype="int32").reshape(40, 4)),
    )
    raw = np.array([[1, -2, 3, 4]], "int32")
    assert [str(spec) for spec in exported.signatures["serving_default"].inputs] == ["raw: int32[?, 4]"]
    np.testing.assert_array_equal(ask(exported, raw=raw)["sign"], np.sign(scales(raw / np.float32(2))))
    np.testing.assert_allclose(
        ask(exported, "double", x=raw.astype("float32"))["output_0"], 2 * np.asarray(scales(raw.astype("float32")))
    )
    assert exported.source == "scales"
    assert exported.evidence.n == 40


def test_a_shape_can_be_said_where_a_function_does_not(base: Path) -> None:
    import tensorflow as tf

    exported = export(tf.function(lambda x: x + 1), base_path=base, input_spec="?x2")
    assert [str(spec) for spec in exported.signatures["serving_default"].inputs] == ["x: float32[?, 2]"]


@pytest.mark.parametrize("version", [None, "auto"])
def test_the_next_number_is_the_default(version: Any, base: Path) -> None:
    (base / "4").mkdir(parents=True)
    assert export(models.module(), base_path=base, version=version).version == 5


def test_a_number_on_a_line_is_text(base: Path) -> None:
    assert Export(model=models.module(), base_path=base, version="12").version == 12
    for wrong in ("-1", "next", 2**63):
        with pytest.raises(ValidationError):
            Export(model=models.module(), base_path=base, version=wrong)


def test_a_number_that_is_taken_is_an_error(base: Path) -> None:
    (base / "4").mkdir(parents=True)
    with pytest.raises(OutputError, match="version 4"):
        export(models.module(), base_path=base, version=4)


def test_a_converted_model_is_copied(trained_cnn: Any, base: Path, empty_store: Path) -> None:
    lite = tflite_convert(trained_cnn)
    exported = export(lite, base_path=base)
    assert (exported.path / "model.tflite").read_bytes() == lite.path.read_bytes()
    assert list(exported.signatures) == list(lite.signatures)
    assert "--prefer_tflite_model=true" in exported._repr_mimebundle_()["text/plain"]


def test_test_data_is_looked_for_where_answers_can_be_compared(trained_cnn: Any, base: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    class Pair(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None,))])
        def up(self, x: Any) -> Any:
            return x + 1

        @tf.function(input_signature=[tf.TensorSpec((None,))])
        def down(self, x: Any) -> Any:
            return x - 1

    trained_cnn.save(tmp_path / "m.keras")
    trained_cnn.export(tmp_path / "m", verbose=False)

    def found(model: Any) -> tuple[str, ...]:
        return Export(model=model, base_path=base).data_to_find()

    assert found(trained_cnn) == found(str(tmp_path / "m.keras")) == ("test",)
    assert found(Pair()) == found(tmp_path / "m") == ()
    with pytest.raises(NotAModel):
        found(tmp_path / "nothing")


def test_what_it_takes_is_shown_as_options() -> None:
    alone = [name for name, field in Export.model_fields.items() if getattr(marker(field, OnTheLine), "positional", 0)]
    assert alone == ["model", "base_path"]
    assert Export.model_json_schema()["required"] == ["model", "base_path"]
