"""What a server counts, as TensorFlow Serving names it, in the text that Prometheus reads.

Names, labels and buckets are those of util.cc, batching_util.h, request_logger.cc and saved_model_warmup_util.cc of
tensorflow/serving, so that dashboards made for it go on working. Three things are better here: sums keep all their
digits (there it is six), a value on the limit of a bucket is in that bucket, which is what Prometheus means by "le",
and there is the start of the process, without which a restart looks like a gap.
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
"""Version directories and sizes of batches that are kept apart, the latest: a model that is exported every minute, or
a client that sends batches of every size, would fill memory otherwise."""

_NAMESPACE = ":tensorflow:serving:"

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

    def served(self, model: str) -> None:
        """Count requests for this model under its name from now on."""
        self._served.add(model)

    def request(self, model: str, status: str, api: Api, entrypoint: Entrypoint, microseconds: float) -> None:
        """Count a request; its latency too, where it was answered.

        Args:
            model: The name that the request gave.
            status: "OK", or the name of a canonical code.
            api: What it asked for.
            entrypoint: Where it came in.
            microseconds: From its arrival to its answer.
        """
        with self._lock:
            self._by_model(self._requests, (model, status))[0] += 1
            if status == "OK":
                self._latency.add(self._by_model(self._latency, (model, api, entrypoint)), microseconds)

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
            seen = [(metric, {key: list(cell) for key, cell in metric.cells.items()}) for metric in self._metrics]
        lines = [line for metric, cells in seen for line in metric.lines(cells)]
        return ("\n".join([*lines, *self._process_lines()]) + "\n").encode()

    def _new(
        self, name: str, meaning: str, *labels: str, limits: tuple[float, ...] = (), most: int | None = None
    ) -> _Metric:
        self._metrics.append(_Metric(_NAMESPACE + name, meaning, labels, limits, most))
        return self._metrics[-1]

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
