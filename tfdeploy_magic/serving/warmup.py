"""Warm-up files: the requests in ``assets.extra`` of a version directory that are run before it is served.

The file and its errors are TensorFlow Serving's (saved_model_warmup_util.cc and saved_model_warmup.cc), so that a file
that was written here warms up a real one.
"""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from tfdeploy_magic.artifacts import store
from tfdeploy_magic.errors import DataError, OutputError
from tfdeploy_magic.serving import status
from tfdeploy_magic.serving.protos import prediction_log_pb2
from tfdeploy_magic.serving.status import Code, Refusal

FILE = "assets.extra/tf_serving_warmup_requests"
"""Where it lies in a version directory."""

MOST_RECORDS = 1000
"""Requests that a warm-up file may hold."""

REQUESTS = ("predict_log", "classify_log", "regress_log", "multi_inference_log")
"""The kinds of ``PredictionLog`` that hold a request to warm up with."""

_HEADER, _FOOTER = 12, 4  # of a TFRecord: its length (8 bytes) and that one's checksum; the data's checksum


def read(version_dir: Path) -> list[Any]:
    """Return the ``PredictionLog`` of each request in a version's warm-up file, none where there is no file.

    Records without a request (an empty one, a streamed one) are passed over, as TensorFlow Serving does.

    Raises:
        Refusal: The file cannot be read, is damaged, holds more than 1000 records, or one that is no request.
    """
    path = version_dir / FILE
    if not os.access(path, os.F_OK):
        return []
    logs = []
    for number, record in enumerate(records(path), 1):
        if number > MOST_RECORDS:
            raise status.invalid(f"Number of warmup records exceeds the maximum ({MOST_RECORDS}) at {path}")
        log = parse(record, path)
        kind = log.WhichOneof("log_type")
        if kind == "session_run_log":
            number_of_kind = log.DESCRIPTOR.fields_by_name[kind].number
            raise Refusal(Code.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number_of_kind}")
        if kind in REQUESTS:
            logs.append(log)
    return logs


def write(version_dir: Path, logs: Sequence[Any]) -> Path:
    """Make requests the warm-up file of a version, in place of one that is there.

    Args:
        version_dir: The directory of a version, ``model/1``.
        logs: ``PredictionLog`` messages; TensorFlow Serving reads only their requests.

    Returns:
        The file.

    Raises:
        DataError: There are none or more than 1000, or one holds no request.
        OutputError: There is no such directory, or the file cannot be written.
    """
    import tensorflow as tf

    path = version_dir / FILE
    _check(logs, path)
    if not version_dir.is_dir():
        raise OutputError(
            f"cannot write {path}",
            found=f"no folder {version_dir}",
            wanted="the directory of a version",
            cure="Name the folder that holds saved_model.pb.",
        )
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / path.name
        try:
            with tf.io.TFRecordWriter(str(whole)) as writer:
                for log in logs:
                    writer.write(log.SerializeToString())
            store.write_whole(whole, path, force=True)
        except tf.errors.OpError as error:
            raise _unwritable(path, error.message) from error
        except OutputError as error:
            raise _unwritable(path, error.found) from error
    return path


def records(path: Path) -> Iterator[bytes]:
    """Read a TFRecord file, one record at a time.

    Raises:
        Refusal: It cannot be opened, or it is damaged: the text names the file and where.
    """
    import tensorflow as tf

    _check_lengths(path)
    # It is deprecated in favour of tf.data, which fails inside a graph and starts TensorFlow's eager runtime; the
    # notice alone is unwrapped.
    iterator = inspect.unwrap(tf.compat.v1.io.tf_record_iterator)
    try:
        yield from iterator(str(path))
    except tf.errors.DataLossError as error:
        raise _damaged(path, error.message) from error
    except tf.errors.OpError as error:
        raise status.from_number(error.error_code, f"{path}: {error.message}") from error


def parse(record: bytes, path: Path) -> Any:
    """Return the ``PredictionLog`` that a record is.

    Raises:
        Refusal: INVALID_ARGUMENT, it is none.
    """
    try:
        return prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError as error:
        start = record[:256].decode("utf-8", "backslashreplace")
        raise status.invalid(f"Failed to parse warmup record: {start} from {path}") from error


def _check_lengths(path: Path) -> None:
    """Refuse a record that claims to be longer than its file: TensorFlow takes that memory first, and may crash."""
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = 0
            while len(header := stream.read(_HEADER)) == _HEADER:
                end = start + _HEADER + int.from_bytes(header[:8], "little") + _FOOTER
                if end > size:
                    raise _damaged(path, f"truncated record at {start}")
                start = stream.seek(end)
    except OSError as error:
        code = Code.PERMISSION_DENIED if isinstance(error, PermissionError) else Code.FAILED_PRECONDITION
        raise Refusal(code, f"{path}: {error.strerror}") from error


def _damaged(path: Path, message: str) -> Refusal:
    return Refusal(Code.DATA_LOSS, f"{path}: {message}. Please verify your warmup data is in TFRecord format.")


def _check(logs: Sequence[Any], path: Path) -> None:
    kinds = [log.WhichOneof("log_type") for log in logs]
    others = [str(kind or "an empty record") for kind in kinds if kind not in REQUESTS]
    if others or not 0 < len(logs) <= MOST_RECORDS:
        raise DataError(
            f"{path.name} cannot be made",
            found=others[0] if others else f"{len(logs)} requests",
            wanted=f"1 to {MOST_RECORDS} requests to predict, classify, regress, or do several of these",
            cure="Record some requests first." if not logs else "Leave out the rest.",
        )


def _unwritable(path: Path, found: str) -> OutputError:
    return OutputError(
        f"cannot write {path}",
        found=found,
        wanted="a place with room that you may write to",
        cure="Free some space, or copy the version to a folder that you may write to.",
    )
