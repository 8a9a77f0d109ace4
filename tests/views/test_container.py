from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.views.test_card import Tags
from tfdeploy_magic.serving.containers import ContainerSeen
from tfdeploy_magic.views import container, html

SEEN = ContainerSeen(
    "1a2b3c4d5e6f",
    "tensorflow/serving:2.20.0",
    "sha256:0123",
    "running",
    cpu_percent=12.3,
    memory=264_000_000,
    memory_limit=2 << 30,
    cpu_limit=1.5,
    log=("Running gRPC ModelServer at 0.0.0.0:8500 ...", "Exporting HTTP/REST API at:localhost:8501 ..."),
)


def test_what_it_is_and_uses_stands_there_with_its_limits() -> None:
    assert dict(container.facts(SEEN)) == {
        "container": "1a2b3c4d5e6f of tensorflow/serving:2.20.0, running",
        "digest": "sha256:0123",
        "uses": "12% of a core of at most 150%, 264.0 MB of at most 2.15 GB",
    }


@pytest.mark.parametrize(
    ("changed", "uses"),
    [
        ({"memory_limit": None, "cpu_limit": None}, "12% of a core, 264.0 MB"),
        ({"memory": None, "cpu_percent": None}, "at most 150% of a core, at most 2.15 GB"),
        ({"memory": None, "cpu_percent": None, "memory_limit": None, "cpu_limit": None}, None),
    ],
)
def test_what_is_not_known_is_left_out(changed: dict[str, None], uses: str | None) -> None:
    assert dict(container.facts(replace(SEEN, **changed))).get("uses") == uses


def test_one_without_a_registry_has_no_digest_and_one_that_is_gone_says_so() -> None:
    found = dict(container.facts(ContainerSeen("", "mine:1", None, "gone")))
    assert found == {"container": "mine:1, gone"}
    assert container.log(ContainerSeen("", "mine:1", None, "gone")) == ""
    assert list(container.plain_log(ContainerSeen("", "mine:1", None, "gone"))) == []


def test_the_log_is_folded_and_whole() -> None:
    shown = Tags(container.log(SEEN))
    assert "details" in shown.seen
    for line in SEEN.log:
        assert line in shown.text
        assert any(line in plain for plain in container.plain_log(SEEN))


def test_markup_in_a_log_or_a_name_is_text_and_no_home_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    evil = "<script>alert(1)</script>\x1b[2J"
    seen = replace(
        SEEN, image=evil, state=f"not known: no engine at {Path.home()}/docker.sock", log=(evil, "/home/ada/x")
    )
    for shown in (container.log(seen), html.facts(container.facts(seen))):
        assert "script" not in Tags(shown).seen
        assert "\x1b" not in shown
        assert "ada" not in shown
    assert "~/x" in container.log(seen)
    assert "~/docker.sock" in dict(container.facts(seen))["container"]
