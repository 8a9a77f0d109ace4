"""What a server counts, as TensorFlow Serving names it, in the text that Prometheus reads.

Names, labels and buckets are those of util.cc, batching_util.h, request_logger.cc and saved_model_warmup_util.cc of
tensorflow/serving, so that dashboards made for it go on working. Three things are better here: sums keep all their
digits (there it is six), a value on the limit of a bucket is in that bucket, which is what Prometheus means by "le",
and there is the start of the process, without which a restart looks like a gap.

What TensorFlow Serving does not count stands under a name of our own: requests by version and by the arm of a split,
and whether what an arm had answered was any good.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import psutil

Api = Literal["", "predict", "classify", "regress", "Predict", "Classify", "Regress", "MultiInference"]
"""What was asked: small letters over REST, capitals over gRPC, nothing for status and metadata."""

Entrypoint = Literal["REST", "GRPC"]

MOST = 100
"""Versions, version directories and sizes of batches that are kept apart, the latest: a model that is exported every
minute, or a client that sends batches of every size, would fill memory otherwise."""

_NAMESPACE = ":tensorflow:serving:"
_OURS = ":tfdeploy:serving:"

Labels = tuple[str, ...]
_Cell = list[float]


def _exponential(scale: float, growth: float, count: int) -> tuple[float, ...]:
    limits = [scale]
    while len(limits) < count:
        limits.append(limits[-1] * growth)  # as TensorFlow computes them: the last digits show in the text
    return tuple(limits)


_LATENCY = _exponential(10, 1.8, 33)
_EXAMPLES = _exponential(1, 2, 15)
_BATCH = _exponential(1, 2, 14)
_QUEUING = _exponential(100, 1.2, 52)


@dataclass(eq=False)
class _Metric:
    """A counter, or a histogram where it has limits; one cell for each set of label values.

    A counter's cell is [count]; a histogram's the count of each bucket, the last without limit, then the sum.
    """

    name: str
    meaning: str
    labels: Labels = ()
    limits: tuple[float, ...] = ()
    most: int | None = None
    cells: dict[Labels, _Cell] = field(default_factory=dict)

    def cell(self, key: Labels) -> _Cell:
        """Return the cell of these label values, made where there is none; needs the lock."""
        found = self.cells.get(key)
        if found is None:
            if self.most is not None and len(self.cells) >= self.most:
                del self.cells[next(iter(self.cells))]
            found = self.cells[key] = [0] * (len(self.limits) + 2 if self.limits else 1)
        return found

    def add(self, cell: _Cell, value: float) -> None:
        """Put a value into a histogram's cell; needs the lock."""
        cell[bisect_left(self.limits, value)] += 1
        cell[-1] += value

    def lines(self, cells: Mapping[Labels, _Cell]) -> Iterator[str]:
        """Write the metric as Prometheus reads it."""
        yield f"# HELP {self.name} {self.meaning}"
        yield f"# TYPE {self.name} {'histogram' if self.limits else 'counter'}"
        for key, cell in cells.items():
            labels = [f'{label}="{_escaped(value)}"' for label, value in zip(self.labels, key, strict=True)]
            if self.limits:
                yield from self._histogram(labels, cell)
            else:
                yield f"{self.name}{{{','.join(labels)}}} {cell[0]}"

    def _histogram(self, labels: list[str], cell: _Cell) -> Iterator[str]:
        total = 0.0
        for limit, count in zip([*(f"{limit:g}" for limit in self.limits), "+Inf"], cell[:-1], strict=True):
            total += count
            bucket = ",".join([*labels, f'le="{limit}"'])
            yield f"{self.name}_bucket{{{bucket}}} {total:.0f}"
        yield f"{self.name}_sum{{{','.join(labels)}}} {cell[-1]}"
        yield f"{self.name}_count{{{','.join(labels)}}} {total:.0f}"


class _Answers:
    """What one version answered as one arm: requests by status, their latencies, and when it was last asked."""

    __slots__ = ("last", "latency", "requests")

    def __init__(self) -> None:
        self.requests: dict[str, int] = {}
        self.latency: _Cell = [0] * (len(_LATENCY) + 2)
        self.last = 0


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class Monitoring:
    """The counters and histograms of one server; every method may be called from any thread.

    One plain lock guards all cells, so that what :meth:`text` shows belongs together. A lock that is free takes 0.2 of
    the 0.6 microseconds of a call here; cells for each thread would save no more, and outlive their threads.

    Requests are counted by a model's name only once :meth:`served` has named it. Others are counted under an empty
    name, so that made-up names cost no memory.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._served: set[str] = set()
        self._process = psutil.Process()
        self._metrics: list[_Metric] = []
        self._answers: dict[tuple[str, int | None, str], _Answers] = {}
        self._splits: dict[str, object] = {}
        self._asked = 0
        new = self._new
        self._requests = new("request_count", "Requests by outcome.", "model_name", "status")
        self._latency = new(
            "request_latency",
            "Microseconds from a request to its answer, of those that were answered.",
            "model_name",
            "API",
            "entrypoint",
            limits=_LATENCY,
        )
        self._runtime = new(
            "runtime_latency", "Microseconds in TensorFlow.", "model_name", "API", "runtime", limits=_LATENCY
        )
        self._examples = new("request_example_counts", "Examples of a request.", "model", limits=_EXAMPLES)
        self._example_total = new("request_example_count_total", "Examples of all requests.", "model")
        self._warmups = new(
            "model_warmup_latency",
            "Microseconds of warming up a version.",
            "model_path",
            "status",
            limits=_LATENCY,
            most=MOST,
        )
        self._warmup_records = new(
            "model_warmup_records_read", "Requests read to warm up a version.", "model_path", most=MOST
        )
        self._logged = new("request_log_count", "Requests chosen for the request log.", "model_name", "status_code")
        self._queuing = new(
            "batching_session:queuing_latency",
            "Microseconds that a request waited for its batch.",
            "thread_pool_name",
            limits=_QUEUING,
        )
        self._batches = new("batching_session:wrapped_run_count", "Batches that were run.")
        self._input_size = new("batching_session:input_batch_size", "Rows of a request.", limits=_BATCH)
        self._batch_size = new(
            "batching_session:processed_batch_size", "Rows of a batch, padding included.", limits=_BATCH
        )
        self._padding = new(
            "batching_session:padding_size",
            "Rows of padding in a batch.",
            "execution_batch_size",
            limits=_BATCH,
            most=MOST,
        )

        by_version = ("model_name", "version", "arm")
        self._version_requests = new(
            "version_request_count", "Requests by who answered and outcome.", *by_version, "status", namespace=_OURS
        )
        self._version_latency = new(
            "version_request_latency",
            "Microseconds from a request to its answer, by who answered.",
            *by_version,
            limits=_LATENCY,
            namespace=_OURS,
        )
        self._outcomes = new(
            "arm_outcome_count",
            "What clients told of the answers of an arm.",
            "model_name",
            "arm",
            "outcome",
            namespace=_OURS,
        )

    def served(self, model: str) -> None:
        """Count requests for this model under its name from now on."""
        self._served.add(model)

    def split(self, model: str, split: object) -> None:
        """Count what the arms of a model answer for this split from now on, beginning at zero.

        Args:
            model: What clients ask for.
            split: What its requests come with; those of the split before count for no arm any more.
        """
        with self._lock:
            self._served.add(model)
            self._splits[model] = split
            self._answers = {key: each for key, each in self._answers.items() if key[0] != model or not key[2]}
            for key in [key for key in self._outcomes.cells if key[0] == model]:
                del self._outcomes.cells[key]

    def request(
        self,
        model: str,
        status: str,
        api: Api,
        entrypoint: Entrypoint,
        microseconds: float,
        version: int | None = None,
        arm: str = "",
        split: object = None,
    ) -> None:
        """Count a request; its latency too, where it was answered.

        Args:
            model: The name that the request gave.
            status: "OK", or the name of a canonical code.
            api: What it asked for.
            entrypoint: Where it came in.
            microseconds: From its arrival to its answer.
            version: Of the servable that answered; None where none did.
            arm: What that is of the split.
            split: What was in force when the request came; None where nothing was.
        """
        with self._lock:
            self._by_model(self._requests, (model, status))[0] += 1
            if status == "OK":
                self._latency.add(self._by_model(self._latency, (model, api, entrypoint)), microseconds)
            if not api:
                return
            if split is not None and self._splits.get(model) is not split:
                arm = ""
            self._asked += 1
            answers = self._answers.get((model, version, arm)) or self._new_answers(model, version, arm)
            answers.last = self._asked
            answers.requests[status] = answers.requests.get(status, 0) + 1
            if status == "OK":
                self._version_latency.add(answers.latency, microseconds)

    def outcomes(self, model: str, split: object, counts: Mapping[tuple[str, str], int]) -> bool:
        """Count what clients tell of the answers of a split's arms.

        Args:
            model: What they had asked for.
            split: The split.
            counts: The name of an arm, and "success" or "failure" -> how many.

        Returns:
            Whether it was counted; nothing is when another split has begun.
        """
        with self._lock:
            if self._splits.get(model) is not split:
                return False
            for (arm, outcome), count in counts.items():
                self._outcomes.cell((model, arm, outcome))[0] += count
            return True

    def ran(self, model: str, api: Api, runtime: str, microseconds: float) -> None:
        """Note how long TensorFlow took.

        Args:
            model: The model's name.
            api: What was asked, in capitals at both doors.
            runtime: What ran it, "TF1".
            microseconds: Inside TensorFlow alone.
        """
        with self._lock:
            self._runtime.add(self._by_model(self._runtime, (model, api, runtime)), microseconds)

    def examples(self, model: str, count: int) -> None:
        """Note how many ``tf.Example`` a request for classes, values or both had."""
        with self._lock:
            self._examples.add(self._by_model(self._examples, (model,)), count)
            self._by_model(self._example_total, (model,))[0] += count

    def warmed_up(self, model_path: str, status: str, microseconds: float, records: int = 0) -> None:
        """Note that a version was warmed up.

        Args:
            model_path: Its version directory.
            status: "OK", or the name of a canonical code.
            microseconds: For all requests together.
            records: How many requests the warm-up file had.
        """
        with self._lock:
            self._warmups.add(self._warmups.cell((model_path, status)), microseconds)
            self._warmup_records.cell((model_path,))[0] += records

    def logged(self, model: str, status: str) -> None:
        """Count a request that the request log took ("OK") or could not take (the name of a canonical code)."""
        with self._lock:
            self._by_model(self._logged, (model, status))[0] += 1

    def batch(self, thread_pool: str, rows: Sequence[int], processed: int, waits: Sequence[float]) -> None:
        """Note a batch.

        Args:
            thread_pool: The name of the pool that ran it.
            rows: Rows of each of its requests.
            processed: Rows that were run: all of those, and the padding.
            waits: Microseconds that each of its requests waited.
        """
        with self._lock:
            self._batches.cell(())[0] += 1
            self._batch_size.add(self._batch_size.cell(()), processed)
            self._padding.add(self._padding.cell((str(processed),)), processed - sum(rows))
            sizes, queuing = self._input_size.cell(()), self._queuing.cell((thread_pool,))
            for count in rows:
                self._input_size.add(sizes, count)
            for wait in waits:
                self._queuing.add(queuing, wait)

    def text(self) -> bytes:
        """Return everything counted so far in Prometheus' text format, UTF-8."""
        with self._lock:
            self._fill_by_version()
            seen = [(metric, {key: list(cell) for key, cell in metric.cells.items()}) for metric in self._metrics]
        lines = [line for metric, cells in seen for line in metric.lines(cells)]
        return ("\n".join([*lines, *self._process_lines()]) + "\n").encode()

    def _new(
        self,
        name: str,
        meaning: str,
        *labels: str,
        limits: tuple[float, ...] = (),
        most: int | None = None,
        namespace: str = _NAMESPACE,
    ) -> _Metric:
        self._metrics.append(_Metric(namespace + name, meaning, labels, limits, most))
        return self._metrics[-1]

    def _new_answers(self, model: str, version: int | None, arm: str) -> _Answers:
        """Return what there is of a model under the name that counts, made where there is none; needs the lock."""
        key = (model if model in self._served else "", version, arm)
        found = self._answers.get(key)
        if found is None:
            if len(self._answers) >= MOST:
                del self._answers[min(self._answers, key=lambda each: self._answers[each].last)]
            found = self._answers[key] = _Answers()
        return found

    def _fill_by_version(self) -> None:
        """Put what versions answered into the cells of its metrics; needs the lock."""
        requests, latency = self._version_requests.cells, self._version_latency.cells
        requests.clear()
        latency.clear()
        for (model, version, arm), answers in self._answers.items():
            labels = (model, "" if version is None else str(version), arm)
            requests.update(((*labels, status), [count]) for status, count in answers.requests.items())
            if "OK" in answers.requests:
                latency[labels] = answers.latency

    def _by_model(self, metric: _Metric, key: Labels) -> _Cell:
        """Return the cell of label values that begin with a model's name; needs the lock."""
        return metric.cells.get(key) or metric.cell(key if key[0] in self._served else ("", *key[1:]))

    def _process_lines(self) -> Iterator[str]:
        with self._process.oneshot():
            spent = self._process.cpu_times()
            values = (
                ("process_start_time_seconds", "gauge", "Since 1970.", self._process.create_time()),
                ("process_cpu_seconds_total", "counter", "User and system time.", spent.user + spent.system),
                ("process_resident_memory_bytes", "gauge", "Resident memory.", self._process.memory_info().rss),
            )
        for name, kind, meaning, value in values:
            yield from (f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", f"{name} {value}")
