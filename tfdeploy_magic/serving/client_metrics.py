"""What a server has counted for one model, read from the page that Prometheus reads."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_OURS = ":tfdeploy:serving:"

_Row = tuple[int | None, str]
"""The version that answered, and the arm that it was."""


@dataclass(frozen=True)
class Counted:
    """What a server of ours counted of one version, as one arm of a split or without one.

    Args:
        version: Its number; None where none could answer, or none was asked yet.
        arm: What it was called in the split; "" where the requests were not split.
        requests: Status, "OK" -> number of requests.
        p50_ms: Median of the time from a request's arrival to its answer.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        successes: Answers of the arm that clients told were good. They are told of an arm whatever version it was,
            and stand with its newest.
        failures: Those that were not.
    """

    version: int | None
    arm: str
    requests: Mapping[str, int]
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    successes: int = 0
    failures: int = 0


@dataclass(frozen=True)
class Metrics:
    """What a server counted for one model since it started.

    Args:
        requests: Status, "OK" -> number of requests; those for its state and signatures count only when they failed.
        mean_ms: Mean time from a request's arrival to its answer; None where none was measured.
        p50_ms: Median of that time, estimated within the histogram's bucket, as Prometheus does it.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        raw: Name of each metric of the model -> its other labels as text -> value.
        by_version: What each version answered, by arm and version; of a server of ours only.
    """

    requests: dict[str, int]
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    raw: dict[str, dict[str, float]]
    by_version: tuple[Counted, ...] = ()

    @classmethod
    def read(cls, text: str, model: str) -> Metrics:
        """Read what Prometheus would be given, in its text format, and keep what belongs to one model."""
        raw: defaultdict[str, dict[str, float]] = defaultdict(dict)
        requests: defaultdict[str, int] = defaultdict(int)
        buckets: defaultdict[float, float] = defaultdict(float)
        microseconds = 0.0
        ours = _ByVersion()
        for line in text.splitlines():
            if (sample := _SAMPLE.match(line)) is None:
                continue
            labels = dict(_LABEL.findall(sample[2] or ""))
            if _unescaped(labels.pop("model_name", labels.pop("model", ""))) != model:
                continue
            name, value = sample[1], float(sample[3])
            raw[name][",".join(f'{key}="{text}"' for key, text in labels.items())] = value
            if name.startswith(_OURS):
                ours.add(name.removeprefix(_OURS), labels, value)
            asked_for_itself = labels.get("API") == ""
            if name == ":tensorflow:serving:request_count":
                requests[labels.get("status", "")] += int(value)
            elif asked_for_itself:
                if name == ":tensorflow:serving:request_latency_count":
                    requests["OK"] -= int(value)
            elif name == ":tensorflow:serving:request_latency_bucket":
                buckets[float(labels["le"])] += value
            elif name == ":tensorflow:serving:request_latency_sum":
                microseconds += value
        measured = buckets.get(math.inf, 0.0)
        mean = microseconds / measured / 1000 if measured else None
        p50, p95, p99 = _percentiles(buckets)
        counted = {status: count for status, count in requests.items() if count > 0}
        return cls(counted, mean, p50, p95, p99, dict(raw), ours.rows())


class _ByVersion:
    """Gathers what is counted by version."""

    def __init__(self) -> None:
        self._requests: defaultdict[_Row, dict[str, int]] = defaultdict(dict)
        self._buckets: defaultdict[_Row, dict[float, float]] = defaultdict(dict)
        self._outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Take a sample; its name is without what is common to all."""
        arm, version = _unescaped(labels.get("arm", "")), labels.get("version", "")
        row = (int(version) if version else None, arm)
        if name == "version_request_count":
            self._requests[row][labels.get("status", "")] = int(value)
        elif name == "version_request_latency_bucket":
            self._buckets[row][float(labels["le"])] = value
        elif name == "arm_outcome_count":
            self._outcomes[arm][labels.get("outcome", "")] = int(value)

    def rows(self) -> tuple[Counted, ...]:
        """Return them by arm and version."""
        found = {
            row: Counted(*row, counts, *_percentiles(self._buckets[row])) for row, counts in self._requests.items()
        }
        for arm, counts in self._outcomes.items():
            newest = max((row for row in found if row[1] == arm), key=_by_arm, default=(None, arm))
            counted = found.get(newest) or Counted(*newest, {}, None, None, None)
            found[newest] = replace(counted, successes=counts["success"], failures=counts["failure"])
        return tuple(found[row] for row in sorted(found, key=_by_arm))


def _by_arm(row: _Row) -> tuple[str, int]:
    version, arm = row
    return arm, -1 if version is None else version


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: "\n" if match[1] == "n" else match[1], text)


def _percentiles(buckets: Mapping[float, float]) -> tuple[float | None, float | None, float | None]:
    rising = sorted(buckets.items())
    return _quantile(rising, 0.5), _quantile(rising, 0.95), _quantile(rising, 0.99)


def _quantile(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """Return a quantile in ms of a histogram of cumulative counts by upper limits in microseconds."""
    wanted = share * buckets[-1][1] if buckets else 0.0
    lower = below = 0.0
    for limit, count in buckets:
        if count >= wanted > 0:
            inside = (wanted - below) / (count - below)
            return (lower if math.isinf(limit) else lower + (limit - lower) * inside) / 1000
        lower, below = limit, count
    return None
