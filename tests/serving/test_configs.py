"""Configuration files of tensorflow_model_server are read and refused as TensorFlow Serving does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tfdeploy_magic.errors import InputError
from tfdeploy_magic.serving import configs
from tfdeploy_magic.serving.batching import Rules
from tfdeploy_magic.serving.configs import Monitoring, Ssl
from tfdeploy_magic.serving.protos import model_server_config_pb2
from tfdeploy_magic.serving.status import Code, Refusal

TWO_MODELS = """
# Two models; one of them in two versions, with labels.
model_config_list: {
  config: {
    name: "half_plus_two",
    base_path: "/models/half_plus_two",
    model_platform: "tensorflow"
    model_version_policy { specific { versions: 42 versions: 43 } }
    version_labels { key: 'stable' value: 42 }
    version_labels { key: 'canary' value: 43 }
  }
  config {
    name: "half_plus_three"
    base_path: "gs://bucket/half_plus_three"
    model_platform: "tensorflow"
    model_version_policy: { all: {} }
  }
}
"""


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "config.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def config_of(*models: dict[str, Any]) -> Any:
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.SetInParent()
    for model in models:
        config.model_config_list.config.add(**{"base_path": "/m", "model_platform": "tensorflow", **model})
    return config


def test_a_model_config_is_read_with_comments_and_both_spellings(written: Any) -> None:
    config = configs.read_model_config(written(TWO_MODELS))
    two, three = config.model_config_list.config
    assert list(two.model_version_policy.specific.versions) == [42, 43]
    assert dict(two.version_labels) == {"stable": 42, "canary": 43}
    assert three.base_path == "gs://bucket/half_plus_three"
    assert three.model_version_policy.WhichOneof("policy_choice") == "all"
    configs.check_model_config(config)
    assert configs.remarks(config) == ()


def test_one_model_of_the_command_line_is_a_config_of_one() -> None:
    expected = config_of({"name": "digits", "base_path": "/models/digits"})
    assert configs.single_model_config("digits", "/models/digits") == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("improperly formatted file contents", 'no field named "improperly"'),
        ('model_config_list {\n  config { name: "m" bogus: 1 }\n}', '2:22: Message type "tensorflow.serving.ModelC'),
        ("model_config_list { config { name: m } }", "1:36"),
        ("model_config_list { config { name: 'm'", "1:"),
        ("model_config_list {} custom_model_config {}", 'another member of oneof "config"'),
        ("model_config_list { config { name: 'm' name: 'n' } }", "name"),
    ],
)
def test_a_bad_model_config_says_what_clients_look_for_and_where(written: Any, text: str, said: str) -> None:
    path = written(text)
    with pytest.raises(InputError) as error:
        configs.read_model_config(path)
    assert str(error.value).startswith("Error parsing text-format tensorflow.serving.ModelServerConfig: ")
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there_or_is_no_text_is_an_error_that_names_it(written: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.txt cannot be read: found No such file or directory"):
        configs.read_model_config(tmp_path / "none.txt")
    with pytest.raises(InputError, match=r"config\.txt cannot be read: found bytes that are no UTF-8"):
        configs.read_model_config(written(b"\xff\xfe"))
    with pytest.raises(InputError, match="cannot be read: found Is a directory"):
        configs.read_model_config(tmp_path)


def test_an_empty_model_config_asks_for_nothing(written: Any) -> None:
    configs.check_model_config(configs.read_model_config(written("# nothing yet\n")))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([{"name": "m"}, {"name": "n"}, {"name": "m"}], "Illegal to list model m multiple times in config list"),
        ([{"name": "m", "base_path": "models/m"}],
         "Expected model m to have an absolute path or URI; got base_path()=models/m"),
        ([{"name": "m", "base_path": "./m"}],
         "Expected model m to have an absolute path or URI; got base_path()=./m"),
        ([{"name": "m", "base_path": ""}], "Expected model m to have an absolute path or URI; got base_path()="),
        ([{"name": "m", "base_path": "C:\\m"}],
         "Expected model m to have an absolute path or URI; got base_path()=C:\\m"),
        ([{"name": ""}], "Illegal to list a model without a name in config list; its base_path()=/m"),
        ([{"name": "m", "model_platform": ""}],
         "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform."),
        ([{"name": "m", "model_type": 1}],
         "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform."),
        ([{"name": "m", "model_type": 2, "model_platform": ""}],
         "ModelServerConfig::model_type choice 2 not supported."),
        ([{"name": "m", "model_platform": "caffe"}], "Model m requests unsupported platform caffe"),
    ],
)  # fmt: skip
def test_a_model_config_is_refused_in_tensorflow_servings_words(models: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(Refusal) as refusal:
        configs.check_model_config(config_of(*models))
    assert (refusal.value.code, refusal.value.message) == (Code.INVALID_ARGUMENT, message)


def test_the_old_model_type_and_one_path_for_two_models_are_served() -> None:
    configs.check_model_config(config_of({"name": "m", "model_type": 1, "model_platform": ""}, {"name": "n"}))


def test_a_custom_model_config_is_refused(written: Any) -> None:
    with pytest.raises(Refusal, match="UNIMPLEMENTED: ModelServer does not yet support custom model config"):
        configs.check_model_config(configs.read_model_config(written("custom_model_config {}")))


def test_a_reload_may_not_change_a_platform_nor_end_in_nothing() -> None:
    running = config_of({"name": "m"})
    configs.check_model_config(config_of({"name": "m", "base_path": "/other"}, {"name": "n"}), running)
    configs.check_model_config(config_of(), running)
    with pytest.raises(Refusal) as refusal:
        configs.check_model_config(config_of({"name": "m", "model_platform": "caffe"}), running)
    assert refusal.value.message == (
        "Illegal to change a model's platform. For model m platform was tensorflow and new platform requested is caffe"
    )
    with pytest.raises(Refusal) as refusal:
        configs.check_model_config(model_server_config_pb2.ModelServerConfig(), running)
    assert (refusal.value.code, refusal.value.message) == (
        Code.FAILED_PRECONDITION,
        "Cannot transition to requested config. It is only legal to transition from one ModelConfigList to another.",
    )


def test_a_logging_config_is_accepted_and_told_to_be_in_vain() -> None:
    config = config_of({"name": "m"}, {"name": "n"})
    config.model_config_list.config[1].logging_config.sampling_config.sampling_rate = 1.0
    configs.check_model_config(config)
    (remark,) = configs.remarks(config)
    assert remark.startswith("logging_config of model n has no effect")


def test_batching_parameters_are_read_with_their_wrappers(written: Any) -> None:
    text = """
    max_batch_size { value: 128 }   # rows
    batch_timeout_micros: { value: 5000 }
    max_enqueued_batches { value: 1000000 }
    num_batch_threads { value: 3 }
    thread_pool_name { value: "shared" }
    allowed_batch_sizes: 32
    allowed_batch_sizes: [64, 128]
    pad_variable_length_inputs: true
    """
    assert configs.read_batching_parameters(written(text)) == Rules(
        max_batch_size=128,
        batch_timeout_micros=5000,
        max_enqueued_batches=1_000_000,
        num_batch_threads=3,
        allowed_batch_sizes=(32, 64, 128),
        pad_variable_length_inputs=True,
        every_call=True,
    )


def test_what_batching_parameters_leave_out_is_as_in_tensorflow_serving(written: Any) -> None:
    rules = configs.read_batching_parameters(written(""))
    assert (rules.max_batch_size, rules.batch_timeout_micros, rules.max_enqueued_batches) == (1000, 0, 10)
    assert (rules.num_batch_threads, rules.allowed_batch_sizes) == (os.cpu_count(), ())
    assert rules.most_rows == 1000
    assert not (rules.pad_variable_length_inputs or rules.enable_large_batch_splitting)


def test_a_written_zero_is_not_a_missing_number(written: Any) -> None:
    with pytest.raises(InputError, match="max_batch_size must be positive; was 0"):
        configs.read_batching_parameters(written("max_batch_size { value: 0 }"))
    with pytest.raises(InputError, match="max_batch_size must be positive; was 0"):
        configs.read_batching_parameters(written("max_batch_size {}"))
    # SharedBatchScheduler keeps models going that were configured so.
    assert configs.read_batching_parameters(written("max_enqueued_batches { value: 0 }")).max_enqueued_batches == 1


def test_splitting_sets_the_largest_batch_that_is_run(written: Any) -> None:
    text = "max_batch_size { value: 64 } enable_large_batch_splitting { value: true }"
    assert configs.read_batching_parameters(written(text)).most_rows == 64
    text += "max_execution_batch_size { value: 16 } allowed_batch_sizes: [4, 16]"
    assert configs.read_batching_parameters(written(text)).most_rows == 16


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("max_batch_size { value: 8 } allowed_batch_sizes: [2, 4]",
         "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; expected 8"),
        ("allowed_batch_sizes: 4",
         "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; expected 1000"),
        ("max_batch_size { value: 4 } allowed_batch_sizes: [2, 2, 4]",
         "allowed_batch_sizes entries must be monotonically increasing"),
        ("max_batch_size { value: 4 } allowed_batch_sizes: [-1, 4]",
         "allowed_batch_sizes entries must be monotonically increasing"),
        ("max_batch_size { value: 64 } enable_large_batch_splitting { value: true } "
         "max_execution_batch_size { value: 16 } allowed_batch_sizes: [8, 64]",
         "Last entry in allowed_batch_sizes must be equal to max_execution_batch_size; last entry was 64; expected 16"),
        ("max_batch_size { value: 8 } enable_large_batch_splitting { value: true } "
         "max_execution_batch_size { value: 16 }", "max_batch_size must be greater than or equal to max_execution_"),
        ("num_batch_threads { value: 0 }", "num_batch_threads must be positive; was 0"),
        ("max_enqueued_batches { value: 0 } enable_large_batch_splitting { value: true }",
         "max_enqueued_batches must be positive; was 0"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be non-negative; was -1"),
    ],
)  # fmt: skip
def test_batching_parameters_that_do_not_go_together_are_refused(written: Any, text: str, complaint: str) -> None:
    path = written(text)
    with pytest.raises(InputError) as error:
        configs.read_batching_parameters(path)
    assert complaint in str(error.value)
    assert str(path) in str(error.value)


def test_a_bare_number_where_a_wrapper_belongs_is_an_error_as_in_tensorflow_serving(written: Any) -> None:
    with pytest.raises(
        InputError, match=r"Error parsing text-format tensorflow\.serving\.BatchingParameters: found 1:"
    ):
        configs.read_batching_parameters(written("max_batch_size: 128"))


def test_metrics_are_told_unless_a_file_says_otherwise(written: Any) -> None:
    assert Monitoring() == Monitoring(enabled=True, path="/monitoring/prometheus/metrics")
    read = configs.read_monitoring_config
    assert read(written("prometheus_config { enable: true }")) == Monitoring()
    assert read(written('prometheus_config: { enable: true, path: "/metrics" }')) == Monitoring(True, "/metrics")
    assert read(written("prometheus_config { enable: false }")) == Monitoring(False)
    assert read(written("")) == Monitoring(False)


def test_a_path_for_metrics_that_no_client_can_ask_for_is_refused(written: Any) -> None:
    with pytest.raises(InputError, match='Write path: "/metrics"'):
        configs.read_monitoring_config(written('prometheus_config { enable: true path: "metrics" }'))


KEY = "-----BEGIN PRIVATE KEY-----\\nc2VjcmV0\\n-----END PRIVATE KEY-----\\n"
CERT = "-----BEGIN CERTIFICATE-----\\ncHVibGlj\\n-----END CERTIFICATE-----\\n"


def test_an_ssl_config_gives_the_bytes_that_grpc_takes(written: Any) -> None:
    one_way = configs.read_ssl_config(written(f'server_key: "{KEY}"\nserver_cert: "{CERT}"'))
    key, cert = (text.replace("\\n", "\n").encode() for text in (KEY, CERT))
    assert one_way == Ssl(key, cert)
    mutual = configs.read_ssl_config(
        written(f'server_key: "{KEY}" server_cert: "{CERT}" custom_ca: "{CERT}" client_verify: true')
    )
    assert mutual == Ssl(key, cert, cert, True)


def test_a_private_key_is_never_shown(written: Any) -> None:
    shown = repr(configs.read_ssl_config(written(f'server_key: "{KEY}" server_cert: "{CERT}"')))
    assert "c2VjcmV0" not in shown
    with pytest.raises(InputError, match=r"tensorflow\.serving\.SSLConfig: found line 1 \(in ") as error:
        configs.read_ssl_config(written(f'server_key: "{KEY}'))
    assert "c2VjcmV0" not in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        (f'server_cert: "{CERT}"', "server_key"),
        (f'server_key: "{KEY}" server_cert: "/etc/ssl/server.pem"', "server_cert"),
        (f'server_key: "{KEY}" server_cert: "{CERT}" client_verify: true', "custom_ca"),
        (f'server_key: "{KEY}" server_cert: "{CERT}" custom_ca: "ca.pem"', "custom_ca"),
    ],
)
def test_an_ssl_config_that_cannot_secure_anything_is_refused(written: Any, text: str, missing: str) -> None:
    with pytest.raises(InputError, match=f"no PEM text in {missing}"):
        configs.read_ssl_config(written(text))


def test_a_session_config_is_read_and_the_flags_are_put_over_it(written: Any) -> None:
    path = written("intra_op_parallelism_threads: 3 gpu_options { allow_growth: true }")
    config = configs.read_session_config(path, gpu_memory_fraction=0.5, mixed_precision="bfloat16")
    assert (config.intra_op_parallelism_threads, config.gpu_options.allow_growth) == (3, True)
    assert config.gpu_options.per_process_gpu_memory_fraction == 0.5
    assert config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 == 1  # RewriterConfig.ON
    assert not configs.read_session_config(None).ByteSize()
    with pytest.raises(InputError, match=r"Error parsing text-format tensorflow\.ConfigProto"):
        configs.read_session_config(written("threads: 3"))


def test_flags_and_configs_are_imported_without_tensorflow() -> None:
    code = "import sys; from tfdeploy_magic.serving import configs, flags; print('tensorflow' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
