from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.views.test_card import Tags
from tfdeploy_magic.artifacts.evidence import Evidence, Finding
from tfdeploy_magic.artifacts.signature import UNKNOWN_RANK, Signature, TensorSpec
from tfdeploy_magic.serving.calls import VersionStatus
from tfdeploy_magic.serving.client import Metrics
from tfdeploy_magic.serving.containers import ContainerSeen
from tfdeploy_magic.serving.sequential import ArmSeen, Counts
from tfdeploy_magic.serving.served import Served
from tfdeploy_magic.serving.status import Code, Refusal
from tfdeploy_magic.views import endpoint
from tfdeploy_magic.views.endpoint import Seen

EVIL = "<script>alert(1)</script>\x1b[2J\n\ud800"
URL = "http://127.0.0.1:8501/v1/models/digits"
IMAGE = TensorSpec("image", (None, 2, 2), "float32")
SCORES = TensorSpec("scores", (None, 3), "float32")
DEFAULT = Signature("serving_default", (IMAGE,), (SCORES,))
SEEN = Seen(
    "digits",
    URL,
    "127.0.0.1:8500",
    (VersionStatus(2, "AVAILABLE"), VersionStatus(1, "END")),
    Metrics({"OK": 1200, "NOT_FOUND": 3}, 1.5, 1.25, 2.5, 10.0, {}),
    {"serving_default": DEFAULT},
)
SERVED = Served(
    version=2,
    source="model: Sequential, 5,130 parameters",
    base_path="/srv/versions/digits",
    size=51_977,
    parity={"the model in this kernel": Evidence(n=128, snr_db=float("inf"), agreement=1.0, max_abs_error=0.0)},
    tested="x_test (128 of 500 samples, drawn at random)",
    seconds={"tracing": 0.1, "writing": 0.3, "starting a job": 4.0, "loading the model": 0.2},
    request='{"instances": [[[0.1, 1.0], [0.5, 0.0]]]}',
    ends="a process of its own, which ends with this kernel",
    replaced=1,
)
LITE = replace(
    SERVED,
    lite={
        "serving_default": Signature(
            "serving_default",
            (replace(IMAGE, dtype="int8", scale=1 / 256, zero_point=-128),),
            (replace(SCORES, dtype="int8", scale=0.5),),
        )
    },
)


LABELLED = replace(
    SEEN,
    states=(VersionStatus(2, "AVAILABLE"), VersionStatus(1, "AVAILABLE")),
    labels={"stable": 1, "canary": 2},
)
ARMS = (
    ArmSeen("stable", 0.9, "digits", 1, {"OK": 900}, Counts(700, 200), 1.0, 2.0, 3.0),
    ArmSeen("canary", 0.1, "digits", 2, {"OK": 99, "INTERNAL": 1}, Counts(95, 5), 1.0, 2.0, 3.0),
)
SPLIT = replace(LABELLED, arms=ARMS)
CONTAINER = ContainerSeen("0123456789ab", "tensorflow/serving:2.20.0", "sha256:f00", "running", log=("a line of it",))


def signed(*inputs: TensorSpec, key: str = "serving_default") -> Seen:
    return replace(SEEN, signatures={key: Signature(key, inputs, (SCORES,))})


@pytest.mark.parametrize(
    ("seen", "served", "said"),
    [
        (SEEN, SERVED, "✓ serving version 2"),
        (SEEN, SERVED, "model: Sequential, 5,130 parameters → "),
        (SEEN, SERVED, URL),
        (SEEN, SERVED, "serving_default: image: float32[?, 2, 2] → scores: float32[?, 3]"),
        (SEEN, SERVED, "127.0.0.1:8500"),
        (SEEN, SERVED, "3 NOT_FOUND, 1,200 OK; in the server p50 1.25 ms, p95 2.5 ms, p99 10 ms"),
        (SEEN, SERVED, "http://127.0.0.1:8501/monitoring/prometheus/metrics"),
        (SEEN, SERVED, "the model in this kernel"),
        (SEEN, SERVED, "exact"),
        (SEEN, SERVED, "100.0%"),
        (SEEN, SERVED, "on x_test (128 of 500 samples, drawn at random), asked through the server"),
        (SEEN, SERVED, "/srv/versions/digits/2, 52.0 kB"),
        (SEEN, SERVED, "4.6 s: mostly starting a job 4.0 s, writing 0.30 s, loading the model 0.20 s"),
        (SEEN, SERVED, "a process of its own, which ends with this kernel; took over from version 1"),
        (SEEN, replace(SERVED, ends="this kernel's own process", replaced=None), "this kernel's own process"),
        (SEEN, SERVED, "END"),
        (SEEN, SERVED, f"next: %loadtest {URL}"),
        (SEEN, LITE, "image = 0.00390625 × (stored + 128), scores = 0.5 × stored"),
        (replace(SEEN, metrics=Metrics({}, None, None, None, None, {})), SERVED, "none yet"),
        (replace(SEEN, states=(), metrics=None, signatures={}), SERVED, "✗ not answering"),
        (replace(SEEN, states=(), metrics=None, signatures={}), SERVED, "next: %serve --list"),
        (replace(SEEN, states=(VersionStatus(2, "LOADING"),), signatures={}), SERVED, "– loading"),
        (SEEN, replace(SERVED, parity={"the file": Evidence()}), "not measured"),
        (
            replace(SEEN, states=(VersionStatus(3, "END", Refusal(Code.NOT_FOUND, "no graph")), *SEEN.states)),
            SERVED,
            "version 3 cannot be served: NOT_FOUND: no graph",
        ),
    ],
)
def test_card_and_plain_text_say_the_same(seen: Seen, served: Served, said: str) -> None:
    bundle = endpoint.mimebundle(seen, served)
    assert said in bundle["text/plain"]
    assert said in Tags(bundle["text/html"]).text


def test_labels_stand_beside_their_versions_and_who_answers_without_one_is_said() -> None:
    text = endpoint.text(LABELLED, None)
    assert "canary: version 2, stable: version 1" in text
    assert re.search(r"2 +AVAILABLE +canary\n +1 +AVAILABLE +stable", text)
    assert "who names no label is answered by version 2" in text
    assert f"Ask {URL}/labels/stable for version 1, or split: %serve --route digits 90/10." in text
    at_its_label = endpoint.text(replace(LABELLED, url=f"{URL}/labels/canary", asked=2), None)
    assert f"Ask {URL}/labels/stable for version 1" in at_its_label
    in_a_container = endpoint.text(replace(LABELLED, container=CONTAINER), None)
    assert "--route" not in in_a_container, "the official image has no router"
    promoted = replace(LABELLED, labels={"stable": 2})
    assert "who names no label" not in endpoint.text(promoted, None)


def test_a_split_has_its_arms_in_a_table_and_the_next_line_promotes_the_better_one() -> None:
    text, html = endpoint.text(SPLIT, None), endpoint.html(SPLIT, None)
    assert text.startswith("✓ requests are split: stable 90% / canary 10%")
    assert re.search(r"stable +digits version 1 +90% +900", text)
    assert "✓ canary is better: 95.0% right against 77.8%" in text
    assert text.endswith("next: %serve --promote digits canary")
    assert "who names no label" not in text
    assert "data:image/png" in html
    undecided = replace(SPLIT, arms=tuple(replace(arm, outcomes=Counts(0, 0), requests={}) for arm in ARMS))
    assert endpoint.text(undecided, None).endswith(f"next: %monitor {URL}"), "nothing is to be promoted yet"
    assert "data:image/png" not in endpoint.html(undecided, None), "there is nothing to draw yet"


def test_who_asks_a_version_of_a_split_model_sees_that_version() -> None:
    one = replace(SPLIT, url=f"{URL}/labels/canary", asked=2)
    assert endpoint.text(one, None).startswith("✓ serving version 2")
    alone = replace(SPLIT, arms=(replace(ARMS[1], name="rival", share=1.0),))
    assert endpoint.text(alone, None).startswith("✓ rival answers for digits")


def test_a_container_is_described_and_its_log_is_one_click_away() -> None:
    seen = replace(SEEN, container=CONTAINER)
    for said in ("0123456789ab of tensorflow/serving:2.20.0, running", "sha256:f00", "a line of it"):
        assert said in endpoint.text(seen, SERVED)
        assert said in Tags(endpoint.html(seen, SERVED)).text


def test_nothing_is_said_of_a_version_that_another_has_replaced() -> None:
    newer = replace(SEEN, states=(VersionStatus(3, "AVAILABLE"), *SEEN.states))
    text = endpoint.mimebundle(newer, SERVED)["text/plain"]
    assert "serving version 3" in text
    for known in ("Sequential", "x_test", "exact", "took over", "52.0 kB"):
        assert known in endpoint.text(SEEN, SERVED)
        assert known not in text


def test_an_endpoint_of_any_server_has_a_card() -> None:
    text = endpoint.mimebundle(replace(SEEN, grpc=None, metrics=None), None)["text/plain"]
    assert text.startswith(f"✓ serving version 2: {URL}")
    assert "gRPC" not in text
    assert "requests" not in text


@pytest.mark.parametrize(
    ("findings", "edge"),
    [((), "#009E73"), (("note",), "#009E73"), (("note", "warning"), "#E69F00"), (("warning", "error"), "#D55E00")],
)
def test_the_edge_is_as_bad_as_the_worst_that_was_noticed(findings: tuple[Any, ...], edge: str) -> None:
    served = replace(SERVED, findings=tuple(Finding(level, level, level) for level in findings))
    assert f"border-left:5px solid {edge}" in endpoint.html(SEEN, served)


def test_what_two_comparisons_noticed_alike_is_said_once() -> None:
    few = Evidence(n=3, snr_db=9.0, max_abs_error=0.1, findings=(Finding("warning", "few", "only 3 samples"),))
    served = replace(SERVED, parity={"LiteRT's interpreter here": few, "the model in this kernel": few})
    assert endpoint.text(SEEN, served).count("only 3 samples") == 1


def test_names_are_text_and_command_no_terminal() -> None:
    spec = TensorSpec(EVIL, (None,), "float32")
    seen = replace(SEEN, name=EVIL, signatures={EVIL: Signature(EVIL, (spec,), (spec,))})
    served = replace(
        SERVED, source=EVIL, tested=EVIL, parity={EVIL: Evidence()}, findings=(Finding("warning", "x", EVIL, EVIL),)
    )
    for rendering in endpoint.mimebundle(seen, served).values():
        assert "\x1b" not in rendering
        rendering.encode()
    assert "script" not in Tags(endpoint.html(seen, served)).seen


@pytest.mark.parametrize(
    ("seen", "request_sent"),
    [
        (signed(IMAGE), {"instances": [[[0.0, 0.0], [0.0, 0.0]]]}),
        (signed(TensorSpec("n", (4,), "int32")), {"instances": [0, 0, 0, 0]}),
        (signed(TensorSpec("by", (), "int64")), {"inputs": {"by": 0}}),
        (signed(TensorSpec("word", (None,), "string")), {"instances": [""]}),
        (signed(TensorSpec("on", (None, 1), "bool")), {"instances": [[False]]}),
        (signed(IMAGE, TensorSpec("n", (None,), "int32")), {"inputs": {"image": [[[0.0] * 2] * 2], "n": [0]}}),
        (signed(IMAGE, key="embed"), {"signature_name": "embed", "instances": [[[0.0, 0.0], [0.0, 0.0]]]}),
    ],
)
def test_without_a_sample_zeros_show_the_form_of_a_request(seen: Seen, request_sent: object) -> None:
    words = shlex.split(endpoint.curl(seen, None))
    assert words[:2] == ["curl", "-d"]
    assert json.loads(words[2]) == request_sent
    assert words[3] == f"{URL}:predict"


@pytest.mark.parametrize(
    "spec", [TensorSpec("image", (None, 224, 224, 3), "float32"), TensorSpec("x", UNKNOWN_RANK, "float32")]
)
def test_where_zeros_would_be_long_the_lines_ask_what_the_model_takes(spec: TensorSpec) -> None:
    seen = signed(spec)
    assert endpoint.curl(seen, None) == f"curl {URL}/metadata"
    assert endpoint.python(seen, None).splitlines()[-1] == f"endpoint.predict(x)  # {spec}"


def test_another_signature_is_named_in_every_line() -> None:
    seen = signed(IMAGE, key="embed it")
    assert f"next: %loadtest {URL} --signature 'embed it'" in endpoint.text(seen, None)
    assert "endpoint.predict(request['instances'], signature='embed it')" in endpoint.python(seen, None)
    large = signed(TensorSpec("image", (None, 224, 224, 3), "float32"), key="embed it")
    assert "endpoint.predict(x, signature='embed it')" in endpoint.python(large, None)


def test_a_long_request_is_read_from_its_file_and_the_home_folder_is_not_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "my cache" / "digits-request.json"
    file.parent.mkdir()
    file.write_text('{"instances": [[[1.0, 2.0], [3.0, 4.0]]]}')
    served = replace(SERVED, request=file.read_text(), request_file=str(file), base_path=str(file.parent))
    for rendering in endpoint.mimebundle(SEEN, served).values():
        assert str(tmp_path) not in rendering
    environment = {**os.environ, "HOME": str(tmp_path)}
    line = endpoint.curl(SEEN, served).replace("curl", "printf '%s\\n'", 1)
    words = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True, env=environment).stdout
    assert words.splitlines() == ["-d", f"@{file}", f"{URL}:predict"]
    reading = "\n".join(endpoint.python(SEEN, served).splitlines()[:2])
    command = [sys.executable, "-c", f"{reading}\nprint(request)"]
    read = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert read == "{'instances': [[[1.0, 2.0], [3.0, 4.0]]]}\n"


def test_bytes_that_are_no_text_are_left_to_python_alone() -> None:
    seen = signed(TensorSpec("photo", (None,), "string"))
    code = endpoint.python(seen, replace(SERVED, request='{"instances": [{"b64": "/w=="}]}'))
    assert "tfdeploy_magic" not in code
    assert "request = {'instances': [{'b64': '/w=='}]}" in code


def test_json_becomes_python() -> None:
    code = endpoint.python(SEEN, replace(SERVED, request='{"instances": [[true, null]]}'))
    assert "request = {'instances': [[True, None]]}" in code
