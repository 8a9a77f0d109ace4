from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.views.test_card import Tags
from tfdeploy_magic.artifacts.evidence import Evidence, Finding
from tfdeploy_magic.artifacts.signature import Signature, TensorSpec
from tfdeploy_magic.serving.export import ExportedVersion
from tfdeploy_magic.views import export

EVIL = "<script>alert(1)</script>\x1b[2J\n\ud800"
DEFAULT = Signature(
    "serving_default",
    (TensorSpec("image", (None, 8, 8, 1), "uint8"),),
    (TensorSpec("label", (None,), "string"), TensorSpec("score", (None,), "float32")),
)
EMBED = Signature(
    "embed", (TensorSpec("image", (None, 8, 8, 1), "float32"),), (TensorSpec("output_0", (None, 64), "float32"),)
)
VERSION = ExportedVersion(
    Path("/srv/models/digits"),
    Path("/srv/models/digits/3"),
    3,
    {"serving_default": DEFAULT, "embed": EMBED},
    152_311,
    Evidence(n=256, snr_db=142.4, agreement=1.0, mean_abs_error=1e-8, max_abs_error=1.2e-7),
    "x_test (256 of 500 samples, drawn at random)",
)
COPY = replace(
    VERSION, evidence=Evidence(findings=(Finding("note", "copied", "it is a copy, byte for byte"),)), tested=None
)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (VERSION, "✓ ok"),
        (VERSION, "digits, version 3"),
        (VERSION, "image"),
        (VERSION, "uint8[?, 8, 8, 1]"),
        (VERSION, "string[?]"),
        (VERSION, "embed"),
        (VERSION, "152.3 kB"),
        (VERSION, "max |Δ| 1.2e-07, on 256 samples"),
        (VERSION, "on x_test (256 of 500 samples, drawn at random)"),
        (VERSION, "/srv/models/digits/3"),
        (VERSION, "tfdeploy-serve --model_name=digits --model_base_path=/srv/models/digits"),
        (VERSION, "-v /srv/models/digits:/models/digits:ro -e MODEL_NAME=digits tensorflow/serving:2.20.0"),
        (COPY, "✓ copied"),
        (COPY, "it is a copy, byte for byte"),
        (replace(VERSION, evidence=Evidence(), tested=None), "not measured"),
        (replace(VERSION, evidence=replace(VERSION.evidence, findings=(Finding("error", "x", "odd"),))), "✗ not ok"),
    ],
)
def test_card_and_plain_text_say_the_same(version: ExportedVersion, said: str) -> None:
    assert said in export.text(version, "model")
    assert said in Tags(export.html(version, "model")).text


def test_nothing_is_said_of_the_parity_of_a_copy() -> None:
    assert "parity" not in export.text(COPY, "model")


def test_one_signature_is_named_once() -> None:
    text = export.text(replace(VERSION, signatures={"serving_default": DEFAULT}), "model")
    assert text.count("serving_default") == 1


def test_names_are_text_and_command_no_terminal() -> None:
    spec = TensorSpec(EVIL, (1,), "float32")
    version = replace(
        VERSION,
        base_path=Path("/srv") / EVIL.replace("/", ""),
        path=Path("/srv") / EVIL.replace("/", "") / "1",
        signatures={EVIL: Signature(EVIL, (spec,), (spec,)), "b": Signature("b", (spec,), ())},
        evidence=Evidence(findings=(Finding("warning", "x", EVIL, EVIL),)),
        tested=EVIL,
    )
    tags = Tags(export.html(version, EVIL))
    assert "script" not in tags.seen
    assert tags.text.count("alert(1)") >= 10
    for rendering in (export.html(version, EVIL), export.text(version, EVIL)):
        assert "\x1b" not in rendering
        rendering.encode()


@pytest.mark.parametrize("name", ["digits", "my digits", "it's", 'a"b$c`d\\e'])
@pytest.mark.parametrize("at_home", [True, False])
def test_a_shell_reads_the_lines_as_they_are_meant(name: str, at_home: bool, tmp_path: Path) -> None:
    base = (Path.home() if at_home else tmp_path) / "models" / name
    for line in export.next_lines(replace(VERSION, base_path=base)):
        assert not at_home or str(Path.home()) not in line
        script = line.replace(line.split()[0], "printf '%s\\n'", 1)
        words = subprocess.run(
            ["sh", "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "HOME": str(Path.home())},
        ).stdout.splitlines()
        if line.startswith("docker"):
            assert f"{base}:/models/{name}:ro" in words
            assert f"MODEL_NAME={name}" in words
        else:
            assert words == [f"--model_name={name}", f"--model_base_path={base}"]


def test_a_lite_file_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/model.tflite").touch()
    for line in export.next_lines(replace(VERSION, base_path=tmp_path, path=tmp_path / "1")):
        assert shlex.split(line)[-1] == "--prefer_tflite_model=true"


def test_a_home_folder_is_not_named() -> None:
    base = Path.home() / "models" / "digits"
    version = replace(VERSION, base_path=base, path=base / "3")
    for rendering in (export.text(version, "model"), export.html(version, "model")):
        assert "~/models/digits/3" in rendering
        assert str(Path.home()) not in rendering
