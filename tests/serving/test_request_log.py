"""Requests are recorded beside the answers, up to a limit, and become a warm-up file."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfdeploy_magic.errors import DataError, OutputError
from tfdeploy_magic.serving import request_log, warmup
from tfdeploy_magic.serving.monitoring import Monitoring
from tfdeploy_magic.serving.protos import prediction_log_pb2
from tfdeploy_magic.serving.request_log import RequestLog, to_warmup


@pytest.fixture
def log(tmp_path: Path) -> Iterator[RequestLog]:
    log = RequestLog(tmp_path / "requests")
    yield log
    log.close()


@pytest.fixture
def version(tmp_path: Path) -> Path:
    folder = tmp_path / "half" / "1"
    folder.mkdir(parents=True)
    return folder


def recorded(log: RequestLog) -> list[Any]:
    """Return what TensorFlow's own reader finds in the file."""
    import tensorflow as tf

    log.flush()
    records = tf.data.TFRecordDataset(str(log.path))
    return [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in records]


def ask(log: RequestLog, rows: int = 1, value: float = 0.0, model: str = "half", signature: str = "serve") -> None:
    log.record_predict(model, 1, signature, {"x": np.full((rows,), value, "float32")})


def first_values(version: Path) -> list[float]:
    import tensorflow as tf

    return [float(tf.make_ndarray(log.predict_log.request.inputs["x"])[0]) for log in warmup.read(version)]


def warmup_of(log: RequestLog, *arguments: Any, **named: Any) -> int:
    log.flush()
    return to_warmup(log.path, *arguments, **named)


def test_a_call_is_recorded_with_its_inputs_outputs_and_version(log: RequestLog) -> None:
    import tensorflow as tf

    inputs = {"x": np.arange(6, dtype="float32").reshape(2, 3), "text": np.array([b"a", b"\xff\x00"], dtype=object)}
    log.record_predict("half", 7, "embed", inputs, {"y": np.array(3, "int64")})
    (found,) = recorded(log)
    assert found.log_metadata.model_spec.name == "half"
    assert found.log_metadata.sampling_config.sampling_rate == 1
    request, response = found.predict_log.request, found.predict_log.response
    assert (request.model_spec.name, request.model_spec.version.value) == ("half", 7)
    assert request.model_spec.signature_name == "embed"
    for alias, array in inputs.items():
        np.testing.assert_array_equal(tf.make_ndarray(request.inputs[alias]), array)
    assert request.inputs["x"].dtype == tf.float32.as_datatype_enum
    assert request.inputs["text"].dtype == tf.string.as_datatype_enum
    assert tf.make_ndarray(response.outputs["y"]) == 3


def test_texts_of_no_rows_are_recorded_as_texts(log: RequestLog) -> None:
    import tensorflow as tf

    log.record_predict("half", 1, "serve", {"text": np.array([], dtype=object)})
    (found,) = recorded(log)
    assert found.predict_log.request.inputs["text"].dtype == tf.string.as_datatype_enum


def test_messages_are_recorded_as_they_came(log: RequestLog) -> None:
    entries = [prediction_log_pb2.PredictionLog() for _ in range(4)]
    entries[0].classify_log.request.model_spec.name = "digits"
    entries[0].classify_log.request.input.example_list.examples.add().features.feature["f"].int64_list.value.append(3)
    entries[0].classify_log.response.result.classifications.add().classes.add().label = "three"
    entries[1].regress_log.request.model_spec.name = "prices"
    entries[2].multi_inference_log.request.tasks.add().model_spec.name = "digits"
    entries[3].predict_log.request.model_spec.name = "half"
    given = [prediction_log_pb2.PredictionLog.FromString(entry.SerializeToString()) for entry in entries]
    for entry in entries:
        log.record(entry)
    found = recorded(log)
    assert [entry.log_metadata.model_spec.name for entry in found] == ["digits", "prices", "digits", "half"]
    for entry in found:
        entry.ClearField("log_metadata")
    assert found == given


def test_a_message_that_names_no_model_holds_up_nothing(log: RequestLog) -> None:
    entry = prediction_log_pb2.PredictionLog()
    entry.multi_inference_log.SetInParent()
    log.record(entry)
    assert [found.WhichOneof("log_type") for found in recorded(log)] == ["multi_inference_log"]


def test_a_full_log_stays_as_it_is_and_says_so(tmp_path: Path) -> None:
    monitoring = Monitoring()
    monitoring.served("half")
    log = RequestLog(tmp_path / "requests", max_records=3, monitoring=monitoring)
    for number in range(5):
        ask(log, value=number)
    log.close()
    assert log.counts == {"OK": 3, "RESOURCE_EXHAUSTED": 2}
    assert [entry.predict_log.request.inputs["x"].float_val[0] for entry in recorded(log)] == [0, 1, 2]
    text = monitoring.text().decode()
    assert ':tensorflow:serving:request_log_count{model_name="half",status_code="OK"} 3' in text
    assert ':tensorflow:serving:request_log_count{model_name="half",status_code="RESOURCE_EXHAUSTED"} 2' in text


def test_a_stuck_disk_leaves_requests_out_and_holds_none_up(log: RequestLog) -> None:
    stuck, reached = threading.Event(), threading.Event()

    class Stuck:
        dtype = object

        def __array__(self, *_: Any, **__: Any) -> Any:
            reached.set()
            stuck.wait(60)
            return np.array([b"a"], dtype=object)

    slow: Any = Stuck()
    log.record_predict("half", 1, "serve", {"x": slow})
    assert reached.wait(60)
    for _ in range(request_log.QUEUE + 5):
        ask(log)
    assert log.counts == {"RESOURCE_EXHAUSTED": 5}
    stuck.set()
    assert len(recorded(log)) == request_log.QUEUE + 1


def test_what_cannot_be_recorded_is_counted_and_the_next_is_recorded(log: RequestLog) -> None:
    log.record_predict("half", 1, "serve", {"x": np.array([object()], dtype=object)})
    ask(log)
    assert len(recorded(log)) == 1
    assert log.counts == {"INTERNAL": 1, "OK": 1}


def test_a_broken_disk_ends_the_log_but_not_the_requests(log: RequestLog, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    class Broken:
        def write(self, record: bytes) -> None:
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

        flush = close = lambda self: None

    monkeypatch.setattr(log, "_writer", Broken())
    ask(log)
    log.flush()
    ask(log)
    assert log.counts == {"INTERNAL": 1, "RESOURCE_EXHAUSTED": 1}


def test_a_share_of_the_requests_is_recorded(tmp_path: Path) -> None:
    none = RequestLog(tmp_path / "none", sampling_rate=0.0)
    some = RequestLog(tmp_path / "some", sampling_rate=0.5, max_records=0)
    for _ in range(1000):
        ask(none)
        ask(some)
    none.close()
    some.close()
    assert none.counts == {}
    assert 350 < some.counts["RESOURCE_EXHAUSTED"] < 650  # nine standard deviations either side


def test_many_threads_record_at_once(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "requests", max_records=500)
    threads = [threading.Thread(target=lambda: [ask(log) for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert sum(log.counts.values()) == 1600
    assert log.counts["OK"] <= 500
    assert len(recorded(log)) == log.counts["OK"]


def test_a_closed_log_takes_nothing_and_can_be_closed_and_flushed_again(log: RequestLog) -> None:
    ask(log)
    log.close()
    ask(log)
    log.close()
    log.flush()
    assert len(recorded(log)) == 1
    assert log.counts == {"OK": 1, "RESOURCE_EXHAUSTED": 1}


def test_others_cannot_read_the_log(log: RequestLog) -> None:
    ask(log)
    log.flush()
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "requests").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"an existing file[^!]*Choose another name"):
        RequestLog(tmp_path / "requests")
    assert (tmp_path / "requests").read_bytes() == b"precious"


def test_a_log_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        RequestLog(tmp_path / "missing" / "requests")
    with pytest.raises(DataError, match="a sampling rate of 50"):
        RequestLog(tmp_path / "requests", sampling_rate=50)
    assert not (tmp_path / "requests").exists()


def test_the_newest_request_of_each_shape_becomes_the_warm_up_file(log: RequestLog, version: Path) -> None:
    for value, rows in enumerate([1, 2, 1, 3, 2]):
        ask(log, rows, value)
    assert warmup_of(log, version) == 3
    assert first_values(version) == [2, 3, 4]
    assert warmup_of(log, version, count=2) == 2
    assert first_values(version) == [3, 4]


def test_another_dtype_signature_or_number_of_examples_is_another_shape(log: RequestLog, version: Path) -> None:
    ask(log)
    ask(log, signature="embed")
    log.record_predict("half", 1, "serve", {"x": np.zeros(1, "float64")})
    for count in (1, 2, 1):
        entry = prediction_log_pb2.PredictionLog()
        entry.regress_log.request.model_spec.name = "half"
        for _ in range(count):
            entry.regress_log.request.input.example_list.examples.add()
        log.record(entry)
    several = prediction_log_pb2.PredictionLog()
    several.multi_inference_log.request.tasks.add().model_spec.name = "half"
    log.record(several)
    assert warmup_of(log, version) == 6


def test_answers_are_left_out_of_the_warm_up_file(log: RequestLog, version: Path) -> None:
    log.record_predict("half", 1, "serve", {"x": np.zeros(1)}, {"y": np.zeros(100_000)})
    warmup_of(log, version)
    (found,) = warmup.read(version)
    assert not found.predict_log.HasField("response")
    assert found.predict_log.request.inputs["x"].tensor_shape.dim[0].size == 1
    assert (version / warmup.FILE).stat().st_size < 1000


def test_the_requests_of_one_of_several_models_are_chosen_by_name(log: RequestLog, version: Path) -> None:
    ask(log, value=1)
    ask(log, value=2, model="digits")
    with pytest.raises(DataError, match=r"digits, half[^!]*whose requests"):
        warmup_of(log, version)
    assert warmup_of(log, version, model="half") == 1
    assert first_values(version) == [1]


@pytest.mark.parametrize(("model", "count"), [("unknown", 100), (None, 0)])
def test_nothing_to_choose_from_makes_no_file(log: RequestLog, version: Path, model: str | None, count: int) -> None:
    ask(log)
    with pytest.raises(DataError, match="Record some requests first"):
        warmup_of(log, version, count, model)
    assert not (version / warmup.FILE).exists()
