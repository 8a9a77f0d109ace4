"""What is taken along: written whole or not at all, and asking only for metrics that a server has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.serving.live import Process
from tfdeploy_magic.errors import OutputError
from tfdeploy_magic.serving import grafana

URL = "http://127.0.0.1:8501/v1/models/digits"
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    grafana.write(tmp_path / "taken", URL, "digits")
    return tmp_path / "taken"


def dashboard(url: str = URL, model: str = "digits") -> Any:
    return json.loads(grafana.files(url, model)["dashboard.json"])


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(grafana.files(URL, "digits")["alerts.yml"])["groups"]
    return list(group["rules"])


def expressions() -> list[str]:
    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return [*queries, *(rule["expr"] for rule in rules())]


def promtool(*arguments: str, folder: Path) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_four_files_are_written(tmp_path: Path) -> None:
    written = grafana.write(tmp_path / "new" / "folder", URL, "digits")
    assert [path.name for path in written] == ["dashboard.json", "alerts.yml", "prometheus.yml", "README.txt"]
    assert all(path.parent == tmp_path / "new" / "folder" and path.stat().st_size > 100 for path in written)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(grafana.NAMES)


def test_a_file_of_the_person_is_not_overwritten_and_nothing_else_is_written(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("mine")
    with pytest.raises(OutputError, match="Give another folder: --grafana DIR"):
        grafana.write(tmp_path, URL, "digits")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("README.txt", "mine")]


def test_the_same_line_again_leaves_what_it_wrote(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    grafana.write(folder, URL, "digits")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(OutputError, match=r"prometheus\.yml: found another file"):
        grafana.write(folder, URL.replace("8501", "8502"), "digits")
    assert "8501" in (folder / "prometheus.yml").read_text()


def test_a_folder_that_is_a_file_is_an_error_with_a_cure(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OutputError, match="cannot write"):
        grafana.write(tmp_path / "taken", URL, "digits")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("url", "scheme", "path", "target"),
    [
        (URL, "http", "/monitoring/prometheus/metrics", "127.0.0.1:8501"),
        ("http://[::1]:8501/v1/models/m", "http", "/monitoring/prometheus/metrics", "[::1]:8501"),
        ("https://models.test/v1/models/m", "https", "/monitoring/prometheus/metrics", "models.test:443"),
        ("http://models.test/a/v1/models/m/labels/x", "http", "/a/monitoring/prometheus/metrics", "models.test:80"),
    ],
)
def test_prometheus_is_told_where_the_server_is(url: str, scheme: str, path: str, target: str) -> None:
    made = grafana.files(url, "m")
    settings = yaml.safe_load(made["prometheus.yml"])
    (job,) = settings["scrape_configs"]
    assert (job["scheme"], job["metrics_path"], job["static_configs"]) == (scheme, path, [{"targets": [target]}])
    assert settings["rule_files"] == ["alerts.yml"]
    assert target in made["README.txt"]
    assert "$" not in made["README.txt"]


def test_a_dashboard_has_what_grafana_needs_to_import_it() -> None:
    made = dashboard()
    assert made["schemaVersion"] >= 38
    assert made["title"] and made["uid"] and "id" not in made
    variables = {each["name"]: each for each in made["templating"]["list"]}
    assert variables["datasource"] | {"type": "datasource", "query": "prometheus"} == variables["datasource"]
    assert variables["model"]["query"]["query"] == "label_values(:tensorflow:serving:request_count, model_name)"
    assert variables["model"]["current"]["value"] == ["digits"]
    panels = made["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == 8
    for panel in panels:
        assert panel["type"] in ("timeseries", "state-timeline")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


def test_no_two_panels_of_a_dashboard_lie_on_one_another() -> None:
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in dashboard()["panels"]):
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & taken
        assert place["x"] + place["w"] <= 24
        taken |= own


def test_a_name_that_json_has_to_escape_is_the_one_that_is_shown() -> None:
    (model,) = (each for each in dashboard(model='a "b" $c')["templating"]["list"] if each["name"] == "model")
    assert model["current"]["value"] == ['a "b" $c']


def test_every_metric_that_is_asked_for_is_on_the_page_of_a_real_server(live: Process) -> None:
    page = live.ask.get("/monitoring/prometheus/metrics").body.decode()
    there = {"up"}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M):
        there |= {f"{name}{end}" for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    asked = {
        name
        for expression in expressions()
        for name in re.findall(r"(?<![\w:]):[a-z]+:[\w:]+|\bprocess_\w+|\bup\b", expression)
    }
    assert len(asked) > 8
    assert asked <= there


def test_what_is_shown_by_version_is_shown_for_the_model_where_a_server_does_not_tell_versions_apart() -> None:
    for panel in dashboard()["panels"]:
        for expression in (target["expr"] for target in panel["targets"]):
            if ":tfdeploy:" in expression:
                _, _, otherwise = expression.partition(" or on () ")
                assert ":tensorflow:" in otherwise
                assert ":tfdeploy:" not in otherwise


def test_percentiles_are_of_buckets_by_their_limits_and_of_requests_only() -> None:
    found = [expression for expression in expressions() if "histogram_quantile" in expression]
    assert len(found) > 5
    for expression in found:
        assert (
            expression.count("histogram_quantile")
            == expression.count("_bucket")
            == len(re.findall(r"sum by \([^)]*\ble\b", expression))
        )
        assert expression.count(":tensorflow:serving:request_latency_bucket") == expression.count('API!=""')


def test_an_alert_says_what_is_wrong_and_how_bad_that_is() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


@needs_promtool
def test_prometheus_takes_the_files(folder: Path) -> None:
    promtool("check", "config", "prometheus.yml", folder=folder)
    promtool("check", "rules", "--lint-fatal", "alerts.yml", folder=folder)


@needs_promtool
def test_an_alert_fires_when_it_should_and_only_then(folder: Path) -> None:
    shutil.copy(Path(__file__).with_name("alert_cases.yml"), folder / "cases.yml")
    promtool("test", "rules", "cases.yml", folder=folder)
