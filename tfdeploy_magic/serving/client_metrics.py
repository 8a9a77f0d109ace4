"""What a server has counted for one model, read from the page that Prometheus reads."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


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
    """

    requests: dict[str, int]
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    raw: dict[str, dict[str, float]]

    @classmethod
    def read(cls, text: str, model: str) -> Metrics:
        """Read what Prometheus would be given, in its text format, and keep what belongs to one model."""
        raw: defaultdict[str, dict[str, float]] = defaultdict(dict)
        requests: defaultdict[str, int] = defaultdict(int)
        buckets: defaultdict[float, float] = defaultdict(float)
        microseconds = 0.0
        for line in text.splitlines():
            if (sample := _SAMPLE.match(line)) is None:
                continue
            labels = dict(_LABEL.findall(sample[2] or ""))
            if re.sub(r"\\(.)", r"\1", labels.pop("model_name", labels.pop("model", ""))) != model:
                continue
            name, value = sample[1], float(sample[3])
            raw[name][",".join(f'{key}="{text}"' for key, text in labels.items())] = value
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
        p50, p95, p99 = (_quantile(sorted(buckets.items()), share) for share in (0.5, 0.95, 0.99))
        counted = {status: count for status, count in requests.items() if count > 0}
        return cls(counted, mean, p50, p95, p99, dict(raw))


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
