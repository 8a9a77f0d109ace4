"""Warm-up files are read with TensorFlow Serving's errors, and written so that TensorFlow's own reader reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tfdeploy_magic.errors import DataError, OutputError
from tfdeploy_magic.serving import warmup
from tfdeploy_magic.serving.protos import prediction_log_pb2
from tfdeploy_magic.serving.status import Code, Refusal

PredictionLog = prediction_log_pb2.PredictionLog


def predict_log(value: float = 1.0) -> Any:
    import tensorflow as tf

    log = PredictionLog()
    log.predict_log.request.model_spec.name = "half"
    log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto([value]))
    return log


def one_of_each() -> list[Any]:
    logs = [predict_log(), PredictionLog(), PredictionLog(), PredictionLog()]
    logs[1].classify_log.request.model_spec.name = "half"
    logs[2].regress_log.request.input.example_list.examples.add()
    logs[3].multi_inference_log.request.tasks.add().method_name = "tensorflow/serving/regress"
    return logs


@pytest.fixture
def version(tmp_path: Path) -> Path:
    folder = tmp_path / "half" / "1"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def holding(version: Path) -> Callable[[bytes], Path]:
    def put(content: bytes) -> Path:
        (version / warmup.FILE).parent.mkdir(exist_ok=True)
        (version / warmup.FILE).write_bytes(content)
        return version

    return put


@pytest.fixture
def recorded(holding: Callable[[bytes], Path], tmp_path: Path) -> Callable[[list[bytes]], Path]:
    """Return what puts records into the file with TensorFlow's own writer."""

    def put(records: list[bytes]) -> Path:
        import tensorflow as tf

        with tf.io.TFRecordWriter(str(tmp_path / "records")) as writer:
            for record in records:
                writer.write(record)
        return holding((tmp_path / "records").read_bytes())

    return put


def refusal(version: Path) -> Refusal:
    with pytest.raises(Refusal) as caught:
        warmup.read(version)
    return caught.value


def test_a_version_without_the_file_has_nothing_to_warm_up_with(version: Path) -> None:
    assert warmup.read(version) == []
    assert warmup.read(version / "missing") == []


def test_every_kind_of_request_is_read_in_order(recorded: Callable[[list[bytes]], Path]) -> None:
    logs = one_of_each()
    assert warmup.read(recorded([log.SerializeToString() for log in logs])) == logs


def test_a_written_file_is_read_by_tensorflows_own_reader(version: Path) -> None:
    import tensorflow as tf

    logs = one_of_each()
    path = warmup.write(version, logs)
    assert path == version / "assets.extra" / "tf_serving_warmup_requests"
    found = [PredictionLog.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]
    assert found == logs
    assert warmup.read(version) == logs


def test_the_file_is_read_inside_a_graph_too(version: Path) -> None:
    import tensorflow as tf

    warmup.write(version, one_of_each())
    with tf.Graph().as_default():
        assert len(warmup.read(version)) == 4


def test_writing_again_replaces_the_file_and_leaves_nothing_else(version: Path) -> None:
    warmup.write(version, [predict_log(1.0)] * 3)
    warmup.write(version, [predict_log(2.0)])
    assert warmup.read(version) == [predict_log(2.0)]
    assert [path.name for path in (version / "assets.extra").iterdir()] == ["tf_serving_warmup_requests"]


def test_a_thousand_requests_are_read_and_one_more_is_refused(recorded: Callable[[list[bytes]], Path]) -> None:
    record = predict_log().SerializeToString()
    assert len(warmup.read(recorded([record] * 1000))) == 1000
    version = recorded([record] * 1001)
    error = refusal(version)
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message == f"Number of warmup records exceeds the maximum (1000) at {version / warmup.FILE}"


def test_a_session_run_is_not_supported(recorded: Callable[[list[bytes]], Path]) -> None:
    log = PredictionLog()
    log.session_run_log.SetInParent()
    error = refusal(recorded([predict_log().SerializeToString(), log.SerializeToString()]))
    assert error.code is Code.UNIMPLEMENTED
    assert error.message == "Unsupported log_type for warmup: 5"


def test_records_without_a_request_are_passed_over(recorded: Callable[[list[bytes]], Path]) -> None:
    streamed = PredictionLog()
    streamed.predict_streamed_log.SetInParent()
    records = [b"", streamed.SerializeToString(), predict_log().SerializeToString()]
    assert warmup.read(recorded(records)) == [predict_log()]


def test_a_record_that_is_no_prediction_log_is_named_and_cut(recorded: Callable[[list[bytes]], Path]) -> None:
    version = recorded([b"\xffnot a log" + b"x" * 100_000])
    error = refusal(version)
    assert error.code is Code.INVALID_ARGUMENT
    assert error.message.startswith("Failed to parse warmup record: \\xffnot a log")
    assert error.message.endswith(f" from {version / warmup.FILE}")
    assert len(error.message) < 1000


def test_an_empty_file_has_no_requests(holding: Callable[[bytes], Path]) -> None:
    assert warmup.read(holding(b"")) == []


def test_a_file_of_another_format_is_refused_by_name(holding: Callable[[bytes], Path]) -> None:
    version = holding(b'{"instances": [1.0, 2.0, 5.0]}' * 10)
    error = refusal(version)
    assert error.code is Code.DATA_LOSS
    assert str(version / warmup.FILE) in error.message
    assert error.message.endswith(". Please verify your warmup data is in TFRecord format.")


@pytest.mark.parametrize("cut", [1, 4, 10])
def test_a_truncated_file_is_refused_by_name(recorded: Callable[[list[bytes]], Path], cut: int) -> None:
    record = predict_log().SerializeToString()
    version = recorded([record, record])
    path = version / warmup.FILE
    path.write_bytes(path.read_bytes()[:-cut])
    error = refusal(version)
    assert error.code is Code.DATA_LOSS
    assert f"{path}: truncated record at {len(record) + 16}. Please verify" in error.message


def test_a_changed_byte_is_refused_by_name(recorded: Callable[[list[bytes]], Path]) -> None:
    version = recorded([predict_log().SerializeToString()] * 2)
    path = version / warmup.FILE
    content = bytearray(path.read_bytes())
    for place in (0, 9, 20, len(content) - 1):
        content[place] ^= 0x10
        path.write_bytes(content)
        assert refusal(version).code is Code.DATA_LOSS
        assert str(path) in refusal(version).message
        content[place] ^= 0x10


def test_a_record_that_claims_terabytes_is_refused_before_tensorflow_reserves_them(
    holding: Callable[[bytes], Path],
) -> None:
    # The checksum of the length is right: TensorFlow 2.21's reader dies of a segmentation fault.
    error = refusal(holding((4 * 10**12).to_bytes(8, "little") + masked_checksum(4 * 10**12) + b"abc"))
    assert error.code is Code.DATA_LOSS
    assert "truncated record at 0" in error.message


def masked_checksum(length: int) -> bytes:
    crc = 0xFFFFFFFF
    for byte in length.to_bytes(8, "little"):
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def test_a_folder_in_place_of_the_file_is_refused_by_name(version: Path) -> None:
    (version / warmup.FILE).mkdir(parents=True)
    assert str(version / warmup.FILE) in refusal(version).message


@pytest.mark.parametrize(
    ("count", "said"), [(0, r"0 requests[^!]*Record some requests"), (1001, r"1001 requests[^!]*Leave out the rest")]
)
def test_too_few_or_too_many_requests_are_not_written(version: Path, count: int, said: str) -> None:
    with pytest.raises(DataError, match=said):
        warmup.write(version, [predict_log()] * count)
    assert not (version / "assets.extra").exists()


def test_what_could_not_be_read_back_is_not_written(version: Path) -> None:
    log = PredictionLog()
    log.session_run_log.SetInParent()
    with pytest.raises(DataError, match="session_run_log"):
        warmup.write(version, [predict_log(), log])
    with pytest.raises(DataError, match="an empty record"):
        warmup.write(version, [PredictionLog()])


def test_only_an_existing_version_gets_a_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no folder[^!]*saved_model.pb"):
        warmup.write(tmp_path / "typo", [predict_log()])
    assert not (tmp_path / "typo").exists()


def test_a_place_that_cannot_be_written_is_named(version: Path) -> None:
    (version / "assets.extra").write_text("a file in the way")
    with pytest.raises(OutputError, match="tf_serving_warmup_requests"):
        warmup.write(version, [predict_log()])
