"""What a server does now: what its counters grew by from one look at them to the next."""

from __future__ import annotations

import functools
import itertools
import math
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tfdeploy_magic.errors import ServingError

if TYPE_CHECKING:
    from tfdeploy_magic.serving.client import Client, Metrics

Who = tuple[int | None, str]
"""Who answered: the version, None where none did, and the arm of a split, empty where none was in force."""

Counters = Mapping[tuple[str, str], float]
"""("status", "OK") -> requests, ("le", "10") -> answers within 10 µs, ("aside", "") -> answers about itself."""

STOPPED = "the server was stopped"
"""Why a model is watched no longer, where that is its server's end."""

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_OURS, _THEIRS = ":tfdeploy:serving:version_", ":tensorflow:serving:"


@dataclass(frozen=True)
class Sample:
    """What a server had counted for one model at one moment.

    Args:
        time: Seconds since 1970.
        model: Of all its requests.
        versions: Of each version and arm; empty where the server does not tell them apart, as TensorFlow Serving's.
    """

    time: float
    model: Counters
    versions: Mapping[Who, Counters] = field(default_factory=dict)

    @classmethod
    def of(cls, metrics: Metrics, time: float) -> Sample:
        """Return what one look found."""
        model: defaultdict[tuple[str, str], float] = defaultdict(float)
        versions: defaultdict[Who, defaultdict[tuple[str, str], float]] = defaultdict(lambda: defaultdict(float))
        for labels, value in _rows(metrics, f"{_THEIRS}request_count"):
            model["status", labels.get("status", "")] += value
        for labels, value in _rows(metrics, f"{_THEIRS}request_latency_count"):
            if labels.get("API") == "":
                model["aside", ""] += value
        for labels, value in _rows(metrics, f"{_THEIRS}request_latency_bucket"):
            if labels.get("API") != "":
                model["le", labels["le"]] += value
        for labels, value in _rows(metrics, f"{_OURS}request_count"):
            versions[_who(labels)]["status", labels.get("status", "")] += value
        for labels, value in _rows(metrics, f"{_OURS}request_latency_bucket"):
            versions[_who(labels)]["le", labels["le"]] += value
        return cls(time, dict(model), {who: dict(counters) for who, counters in versions.items()})


@dataclass(frozen=True)
class Tally:
    """Requests of some time.

    Args:
        requests: Status, "OK" -> how many; none that asked for the model's state or signatures.
        buckets: (more than, at most) microseconds -> how many answers took so long.
    """

    requests: Mapping[str, float] = field(default_factory=dict)
    buckets: Mapping[tuple[float, float], float] = field(default_factory=dict)

    @classmethod
    def of(cls, counters: Counters) -> Tally:
        """Return what counters stand for."""
        requests = {name: count for (kind, name), count in counters.items() if kind == "status"}
        if aside := counters.get(("aside", "")):
            requests["OK"] = requests.get("OK", 0.0) - aside
        limits = sorted((float(name), count) for (kind, name), count in counters.items() if kind == "le")
        buckets = {
            (lower, upper): count - below
            for (lower, below), (upper, count) in itertools.pairwise([(0.0, 0.0), *limits])
        }
        return cls(
            {status: count for status, count in requests.items() if count > 0},
            {limits: count for limits, count in buckets.items() if count > 0},
        )

    @classmethod
    def sum(cls, tallies: Iterable[Tally]) -> Tally:
        """Return several together."""
        requests: defaultdict[str, float] = defaultdict(float)
        buckets: defaultdict[tuple[float, float], float] = defaultdict(float)
        for tally in tallies:
            for status, count in tally.requests.items():
                requests[status] += count
            for limits, count in tally.buckets.items():
                buckets[limits] += count
        return cls(dict(requests), dict(buckets))

    @property
    def asked(self) -> float:
        """How many requests."""
        return sum(self.requests.values())

    @property
    def failed(self) -> float:
        """How many of them were answered with an error."""
        return self.asked - self.requests.get("OK", 0.0)

    @property
    def answered(self) -> float:
        """How many answers were timed."""
        return sum(self.buckets.values())

    def percentile(self, share: float) -> float | None:
        """Return how long an answer took in ms, estimated within its bucket as Prometheus does it.

        Args:
            share: Of the answers that took no longer, 0.99 for p99.

        Returns:
            None where nothing was answered.
        """
        missing = share * self.answered
        for (lower, upper), count in sorted(self.buckets.items()):
            if missing <= count:
                return (lower if math.isinf(upper) else lower + (upper - lower) * missing / count) / 1000
            missing -= count
        return None


@dataclass(frozen=True)
class Interval:
    """What came between two looks, or between several.

    Args:
        start: Seconds since 1970.
        end: Likewise.
        seconds: How long it was looked at in between.
        model: All requests.
        versions: Those of each version and arm that had any.
        restarted: Whether the server began to count anew.
    """

    start: float
    end: float
    seconds: float
    model: Tally
    versions: Mapping[Who, Tally] = field(default_factory=dict)
    restarted: bool = False

    @classmethod
    def between(cls, before: Sample, after: Sample) -> Interval:
        """Return what counters grew by; those that fell had begun again at zero."""
        model, restarted = _growth(before.model, after.model)
        grown = {who: Tally.of(_growth(before.versions.get(who, {}), now)[0]) for who, now in after.versions.items()}
        versions = {who: tally for who, tally in grown.items() if tally.requests or tally.buckets}
        return cls(before.time, after.time, after.time - before.time, Tally.of(model), versions, restarted)

    @classmethod
    def over(cls, intervals: Sequence[Interval]) -> Interval:
        """Return several as one."""
        versions: defaultdict[Who, list[Tally]] = defaultdict(list)
        for who, tally in (item for interval in intervals for item in interval.versions.items()):
            versions[who].append(tally)
        return cls(
            intervals[0].start,
            intervals[-1].end,
            sum(interval.seconds for interval in intervals),
            Tally.sum(interval.model for interval in intervals),
            {who: Tally.sum(tallies) for who, tallies in versions.items()},
            any(interval.restarted for interval in intervals),
        )


class History:
    """What was seen of a model lately; one thread looks, any may read.

    Args:
        client: What asks the server.
        kept: Intervals that are kept, the last ones.
    """

    def __init__(self, client: Client, *, kept: int) -> None:
        self.client = client
        self.intervals: tuple[Interval, ...] = ()
        self.until = time.time()
        """When it was looked last, seconds since 1970."""
        self.problem: str | None = None
        """Why the last look found nothing."""
        self.tells_versions = False
        """Whether the server tells versions apart."""
        self._kept = kept
        self._last: Sample | None = None
        self._restarted = False
        # The person's clock may be set meanwhile; this one only goes on.
        self._began = self.until - time.monotonic()

    def look(self) -> None:
        """Ask the server what it has counted; where it does not say, there is a gap.

        Raises:
            ServingError: It does not say, and never has.
        """
        try:
            sample = Sample.of(self.client.metrics(), self._now())
        except (ServingError, ValueError, KeyError) as error:
            if self._last is None and isinstance(error, ServingError):
                raise
            self.miss(self._now(), error.found if isinstance(error, ServingError) else "a page that holds no metrics")
        else:
            self.add(sample)

    def add(self, sample: Sample) -> None:
        """Take what a look found; what came before a gap is compared with only to see whether it was a restart."""
        if self._last is not None and sample.time > self._last.time:
            interval = Interval.between(self._last, sample)
            if self.problem is None:
                interval = replace(interval, restarted=interval.restarted or self._restarted)
                self.intervals = (*self.intervals, interval)[-self._kept :]
                self._restarted = False
            else:
                self._restarted = interval.restarted
        self._last, self.until, self.problem = sample, sample.time, None
        self.tells_versions = bool(sample.versions)

    def miss(self, time: float, problem: str) -> None:
        """Take that a look found nothing."""
        self.until, self.problem = time, problem

    def lately(self, seconds: float) -> Interval | None:
        """Return the intervals of the last seconds as one; None where there are none."""
        last = [interval for interval in self.intervals if interval.end > self.until - seconds]
        return Interval.over(last) if last else None

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """From when to when nothing is known, seconds since 1970."""
        intervals = self.intervals
        edges = [*((interval.start, interval.end) for interval in intervals), (self.until, self.until)]
        return [(end, start) for (_, end), (start, _) in itertools.pairwise(edges) if start > end]

    def _now(self) -> float:
        return self._began + time.monotonic()


def _growth(before: Counters, after: Counters) -> tuple[Counters, bool]:
    """Return how much counters grew, and whether one fell; then all of them had begun again."""
    if any(after.get(key, 0.0) < value for key, value in before.items()):
        return after, True
    return {key: value - before.get(key, 0.0) for key, value in after.items()}, False


def _rows(metrics: Metrics, name: str) -> Iterable[tuple[Mapping[str, str], float]]:
    return ((_labels(text), value) for text, value in metrics.raw.get(name, {}).items())


@functools.lru_cache(4096)
def _labels(text: str) -> Mapping[str, str]:
    """Return the labels of a row; every look finds the same rows."""
    return {name: re.sub(r"\\(.)", r"\1", value) for name, value in _LABEL.findall(text)}


def _who(labels: Mapping[str, str]) -> Who:
    version = labels.get("version", "")
    return int(version) if version else None, labels.get("arm", "")
