"""A Grafana dashboard, Prometheus' alerts and its settings for a model server, to take along.

They ask for the metrics that every TensorFlow Serving has, and for those by version where a server has them.
"""

from __future__ import annotations

import json
import tempfile
import urllib.parse
from importlib import resources
from pathlib import Path
from string import Template

from tfdeploy_magic.artifacts import store
from tfdeploy_magic.errors import OutputError

METRICS_PATH = "/monitoring/prometheus/metrics"

NAMES = ("dashboard.json", "alerts.yml", "prometheus.yml", "README.txt")


def write(folder: Path, url: str, model: str) -> tuple[Path, ...]:
    """Write the files, each whole or not at all; those that are there already, and the same, are left.

    Args:
        folder: Where; it is made when missing.
        url: The model's REST address.
        model: What it is called.

    Returns:
        The files.

    Raises:
        OutputError: There is another file by one of the names, or the disk or the permissions refuse; in the first
            case nothing was written.
    """
    folder = folder.expanduser()
    wanted = {folder / name: content for name, content in files(url, model).items()}
    missing = [path for path, content in wanted.items() if not _is_there(path, content)]
    with tempfile.TemporaryDirectory(prefix="tfdeploy-") as scratch:
        for path in missing:
            whole = Path(scratch) / path.name
            whole.write_text(wanted[path], encoding="utf-8")
            store.write_whole(whole, path, force=False)
    return tuple(wanted)


def files(url: str, model: str) -> dict[str, str]:
    """Return the files, name -> content."""
    parts = urllib.parse.urlsplit(url)
    target = parts.netloc.rpartition("@")[2]
    if parts.port is None:
        target += ":443" if parts.scheme == "https" else ":80"
    settings = {
        "scheme": parts.scheme,
        "metrics_path": json.dumps(parts.path.rpartition("/v1/models/")[0] + METRICS_PATH),  # YAML reads JSON
        "target": json.dumps(target),
    }
    home = resources.files(__package__) / "grafana_files"
    found = {name: (home / name).read_text(encoding="utf-8") for name in NAMES}
    found["prometheus.yml"] = Template(found["prometheus.yml"]).substitute(settings)
    found["README.txt"] = Template(found["README.txt"]).substitute(target=target)
    dashboard = json.loads(found["dashboard.json"])
    variable = next(each for each in dashboard["templating"]["list"] if each["name"] == "model")
    variable["current"].update(text=[model], value=[model])
    return {**found, "dashboard.json": json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"}


def _is_there(path: Path, content: str) -> bool:
    """Return whether a file is there, and holds this.

    Raises:
        OutputError: It holds something else.
    """
    try:
        if not path.exists():
            return False
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == content:
            return True
    except OSError as error:
        raise store.unwritable(path, error, "") from error
    raise OutputError(
        f"cannot write {path}",
        found="another file of that name, which may be yours",
        wanted="a folder without one",
        cure="Give another folder: --grafana DIR; or move the file away.",
    )
