"""Records requests as TensorFlow Serving's ``PredictionLog``, and makes a warm-up file of them.

A request only joins a queue; another thread turns it into a record and writes that. What does not fit is left out and
counted: neither a slow disk nor a full log ever holds up an answer.
"""

from __future__ import annotations

import collections
import os
import queue
import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tfdeploy_magic.artifacts.signature import Arrays
from tfdeploy_magic.errors import DataError, OutputError
from tfdeploy_magic.serving import warmup
from tfdeploy_magic.serving.monitoring import Monitoring
from tfdeploy_magic.serving.protos import model_pb2, prediction_log_pb2
from tfdeploy_magic.serving.status import Code

QUEUE = 64
"""Requests that may wait to be written; their arrays are in memory."""


class RequestLog:
    """A file of the requests that a server answered; any thread may record.

    It stops at ``max_records``: the file then stays as it is, and what comes later is counted.

    Args:
        path: The file, a TFRecord of ``PredictionLog``; only its owner can read it.
        sampling_rate: The share of requests that is recorded, 0 to 1.
        max_records: How many are recorded at most.
        monitoring: Where recorded and left out requests are counted too.

    Attributes:
        counts: How many requests that were chosen came to what: "OK" is in the file, "RESOURCE_EXHAUSTED" came when
            the file or the queue was full, and "INTERNAL" could not be written.

    Raises:
        DataError: The sampling rate is no share.
        OutputError: The file exists already, or cannot be made.
    """

    def __init__(
        self, path: Path, sampling_rate: float = 1.0, max_records: int = 1000, monitoring: Monitoring | None = None
    ) -> None:
        if not 0 <= sampling_rate <= 1:
            raise DataError(
                "the request log cannot be started",
                found=f"a sampling rate of {sampling_rate}",
                wanted="0 to 1",
                cure="1 records every request, 0.01 one of a hundred.",
            )
        self.path = path
        self.counts: collections.Counter[str] = collections.Counter()
        self._sampling_rate = sampling_rate
        self._left = max_records
        self._monitoring = monitoring
        self._lock = threading.Lock()  # of what is left and what was counted
        self._ending = threading.Lock()  # nobody may wait for a flush behind the end of the queue
        self._closed = False
        self._queue: queue.Queue[_Item] = queue.Queue(QUEUE)
        self._writer = _new_file(path)
        self._thread = threading.Thread(target=self._write, name="request-log", daemon=True)
        self._thread.start()

    def record_predict(
        self, model_name: str, version: int, signature_key: str, inputs: Arrays, outputs: Arrays | None = None
    ) -> None:
        """Record a call of a signature.

        Args:
            model_name: The model's name.
            version: The version that answered.
            signature_key: The key of the signature.
            inputs: Alias -> array; not to be changed afterwards.
            outputs: Alias -> array; not to be changed afterwards.
        """
        if random.random() < self._sampling_rate:
            self._offer(model_name, partial(_predicted, model_name, version, signature_key, inputs, outputs))

    def record(self, log: Any) -> None:
        """Record a request that came as a message.

        Args:
            log: A ``PredictionLog`` of it, to predict, classify, regress or do several of these; what is known of the
                log itself is added to it, and it is not to be changed afterwards.
        """
        if random.random() < self._sampling_rate:
            spec = _spec_of(log)
            log.log_metadata.model_spec.CopyFrom(spec)
            self._offer(spec.name, lambda: log)

    def flush(self) -> None:
        """Wait until everything recorded so far is in the file."""
        written = threading.Event()
        with self._ending:
            if self._closed:
                return
            self._queue.put(written)
        written.wait()

    def close(self) -> None:
        """Write what waits, and record nothing more."""
        with self._lock:
            self._left = 0
        with self._ending:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _offer(self, model_name: str, make: Callable[[], Any]) -> None:
        with self._lock:
            taken = self._left > 0 and self._queued((model_name, make))
            self._left -= taken
        if not taken:
            self._count(model_name, Code.RESOURCE_EXHAUSTED.name)

    def _queued(self, item: _Item) -> bool:
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            return False
        return True

    def _count(self, model_name: str, status: str) -> None:
        with self._lock:
            self.counts[status] += 1
        if self._monitoring is not None:
            self._monitoring.logged(model_name, status)

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                self._on_disk(self._writer.flush)
                item.set()
            else:
                self._append(*item)
                if self._queue.empty():  # what is recorded can be read while the server runs
                    self._on_disk(self._writer.flush)
        self._on_disk(self._writer.close)

    def _append(self, model_name: str, make: Callable[[], Any]) -> None:
        try:
            log = make()
            log.log_metadata.sampling_config.sampling_rate = self._sampling_rate
            record = log.SerializeToString()
        except Exception:  # whatever it is, the next request can be written, and nobody waits for this one
            self._count(model_name, Code.INTERNAL.name)
        else:
            written = self._on_disk(partial(self._writer.write, record))
            self._count(model_name, "OK" if written else Code.INTERNAL.name)

    def _on_disk(self, act: Callable[[], None]) -> bool:
        """Do something with the file, and say whether it went well; the log ends where it did not."""
        import tensorflow as tf

        try:
            act()
        except tf.errors.OpError:
            with self._lock:
                self._left = 0
            return False
        return True


def to_warmup(path: Path, version_dir: Path, count: int = 100, model: str | None = None) -> int:
    """Make a version's warm-up file of the newest requests in a log that differ in signature, dtype or shape.

    Args:
        path: The log.
        version_dir: The directory of a version.
        count: How many requests at most.
        model: Whose requests; needed where the log has those of several.

    Returns:
        How many requests it holds.

    Raises:
        DataError: No such request is in the log, or it has several models'.
        OutputError: The file cannot be written.
        Refusal: The log is damaged.
    """
    newest: dict[Any, Any] = {}
    names: set[str] = set()
    for record in warmup.records(path):
        log = warmup.parse(record, path)
        names.add(log.log_metadata.model_spec.name)
        if model in (None, log.log_metadata.model_spec.name):
            key = _shape(log)
            newest.pop(key, None)  # so that it moves to the end
            newest[key] = log
    if model is None and len(names) > 1:
        raise DataError(
            "the request log is of several models",
            found=", ".join(sorted(names)),
            wanted="the name of one",
            cure="Say whose requests to take.",
        )
    chosen = list(newest.values())[max(0, len(newest) - count) :]
    for log in chosen:
        getattr(log, log.WhichOneof("log_type")).ClearField("response")  # nobody reads it, and it may be large
    warmup.write(version_dir, chosen)
    return len(chosen)


_Item = tuple[str, Callable[[], Any]] | threading.Event | None


def _new_file(path: Path) -> Any:
    """Open a file that is closed to others: requests are people's data."""
    import tensorflow as tf

    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as error:
        raise OutputError(
            f"cannot write {path}",
            found="an existing file" if isinstance(error, FileExistsError) else error.strerror or str(error),
            wanted="a new file in a folder that you may write to",
            cure="Choose another name for the request log.",
        ) from error
    return tf.io.TFRecordWriter(str(path))


def _predicted(model_name: str, version: int, signature_key: str, inputs: Arrays, outputs: Arrays | None) -> Any:
    import tensorflow as tf

    log = prediction_log_pb2.PredictionLog()
    spec = log.log_metadata.model_spec
    spec.name, spec.signature_name, spec.version.value = model_name, signature_key, version
    request, response = log.predict_log.request, log.predict_log.response
    request.model_spec.CopyFrom(spec)
    for alias, array in inputs.items():
        request.inputs[alias].CopyFrom(tf.make_tensor_proto(array))
    if outputs is not None:
        response.model_spec.CopyFrom(spec)
        for alias, array in outputs.items():
            response.outputs[alias].CopyFrom(tf.make_tensor_proto(array))
    return log


def _spec_of(log: Any) -> Any:
    """Return the model that a request names; the tasks of one request share it."""
    request = getattr(log, log.WhichOneof("log_type")).request
    if log.WhichOneof("log_type") == "multi_inference_log":
        return request.tasks[0].model_spec if request.tasks else model_pb2.ModelSpec()
    return request.model_spec


def _shape(log: Any) -> Any:
    """Return what tells a request from others that would warm up the same."""
    kind = log.WhichOneof("log_type")
    request = getattr(log, kind).request
    if kind == "predict_log":
        tensors = ((alias, tensor.dtype, str(tensor.tensor_shape)) for alias, tensor in request.inputs.items())
        return (kind, request.model_spec.signature_name, *sorted(tensors))
    which = request.input.WhichOneof("kind")
    examples = len(getattr(request.input, which).examples) if which else 0
    tasks = getattr(request, "tasks", (request,))
    return (kind, examples, *(task.model_spec.signature_name for task in tasks))
