"""Command lines of tensorflow_model_server are read as it reads them, and nothing is ignored in silence."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tfdeploy_magic.errors import InputError
from tfdeploy_magic.serving import flags
from tfdeploy_magic.serving.flags import ServerOptions

IN_VAIN = "accepted, and told to have no effect"

# The flags of main.cc: how each may be written, and what that means.
MAIN_CC: dict[str, tuple[str, Any]] = {
    "port": ("8600", 8600),
    "grpc_socket_path": ("/tmp/tfs.sock", Path("/tmp/tfs.sock")),
    "rest_api_port": ("8601", 8601),
    "rest_api_num_threads": ("3", IN_VAIN),
    "rest_api_timeout_in_ms": ("100", 100),
    "rest_api_enable_cors_support": ("true", True),
    "enable_batching": ("true", True),
    "allow_version_labels_for_unavailable_models": ("true", True),
    "batching_parameters_file": ("b.txt", Path("b.txt")),
    "enable_per_model_batching_parameters": ("true", True),
    "model_config_file": ("m.txt", Path("m.txt")),
    "model_config_file_poll_wait_seconds": ("5", 5),
    "model_name": ("half", "half"),
    "model_base_path": ("/m", "/m"),
    "num_load_threads": ("2", 2),
    "num_unload_threads": ("2", IN_VAIN),
    "max_num_load_retries": ("0", 0),
    "load_retry_interval_micros": ("-1", -1),
    "file_system_poll_wait_seconds": ("0", 0),
    "flush_filesystem_caches": ("false", IN_VAIN),
    "tensorflow_session_parallelism": ("2", 2),
    "tensorflow_session_config_file": ("c.txt", Path("c.txt")),
    "tensorflow_intra_op_parallelism": ("1", 1),
    "tensorflow_inter_op_parallelism": ("0", 0),
    "use_alts_credentials": ("false", IN_VAIN),
    "ssl_config_file": ("s.txt", Path("s.txt")),
    "platform_config_file": ("p.txt", IN_VAIN),
    "per_process_gpu_memory_fraction": ("0.5", 0.5),
    "saved_model_tags": ("serve,gpu", ("serve", "gpu")),
    "grpc_channel_arguments": ("a=1", (("a", 1),)),
    "grpc_max_threads": ("4", 4),
    "enable_model_warmup": ("true", True),
    "num_request_iterations_for_warmup": ("2", 2),
    "monitoring_config_file": ("o.txt", Path("o.txt")),
    "remove_unused_fields_from_bundle_metagraph": ("false", IN_VAIN),
    "prefer_tflite_model": ("true", True),
    "num_tflite_pools": ("2", 2),
    "num_tflite_interpreters_per_pool": ("2", IN_VAIN),
    "enable_signature_method_name_check": ("true", True),
    "xla_cpu_compilation_enabled": ("true", IN_VAIN),
    "xla_gpu_compilation_enabled": ("true", IN_VAIN),
    "enable_profiler": ("true", True),
    "thread_pool_factory_config_file": ("t.txt", IN_VAIN),
    "mixed_precision": ("bfloat16", "bfloat16"),
    "skip_initialize_tpu": ("true", IN_VAIN),
    "enable_grpc_healthcheck_service": ("true", True),
    "enable_serialization_as_tensor_content": ("true", True),
}


def parsed(*argv: str) -> ServerOptions:
    return flags.parse(["--model_base_path=/m", *argv])


def test_a_model_alone_is_served_as_tensorflow_serving_would_but_on_this_machine_only() -> None:
    options = parsed()
    assert (options.port, options.rest_api_port, options.host) == (8500, 0, "127.0.0.1")
    assert (options.model_name, options.model_base_path) == ("default", "/m")
    assert (options.file_system_poll_wait_seconds, options.model_config_file_poll_wait_seconds) == (1, 0)
    assert (options.max_num_load_retries, options.load_retry_interval_micros) == (5, 60_000_000)
    assert (options.rest_api_timeout_in_ms, options.saved_model_tags) == (30_000, ("serve",))
    assert options.enable_model_warmup
    assert not (
        options.enable_profiler or options.enable_batching or options.enable_signature_method_name_check or options.gpu
    )
    assert options.parallelism == (0, 0)
    assert options.notes == ()


def test_every_flag_of_tensorflow_model_server_is_known() -> None:
    options = flags.parse([f"--{name}={text}" for name, (text, _) in MAIN_CC.items()])
    meant = {name: getattr(options, name, IN_VAIN) for name in MAIN_CC}
    assert meant == {name: value for name, (_, value) in MAIN_CC.items()}
    told = {note.partition(" has no effect: ")[0] for note in options.notes if " has no effect: " in note}
    assert told == {f"--{name}" for name, value in meant.items() if value == IN_VAIN}
    assert not [note for note in options.notes if "unknown" in note]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--enable_batching"], True),
        (["--enable_batching=true"], True),
        (["--enable_batching=TRUE"], True),
        (["--enable_batching=t"], True),
        (["--enable_batching=1"], True),
        (["--enable_batching", "true"], True),
        (["--enable_batching=false"], False),
        (["--enable_batching=F"], False),
        (["--enable_batching=0"], False),
        (["--enable_batching", "false"], False),
        (["--enable_batching", "--gpu"], True),
        (["--enable_batching", "--enable_batching=false"], False),
    ],
)
def test_a_switch_is_true_alone_or_says_what_it_is(argv: list[str], expected: bool) -> None:
    assert parsed(*argv).enable_batching is expected


def test_a_value_follows_an_equals_sign_or_a_space_and_the_last_one_counts() -> None:
    assert parsed("--port", "9000").port == 9000
    assert parsed("--port=9000", "--port=9001").port == 9001
    assert parsed("--file_system_poll_wait_seconds", "-1").file_system_poll_wait_seconds == -1
    assert parsed("--model_name=a=b").model_name == "a=b"
    assert parsed("--model_name=--odd").model_name == "--odd"


def test_an_empty_path_is_none_as_in_tensorflow_serving() -> None:
    assert parsed("--ssl_config_file=").ssl_config_file is None
    assert parsed("--ssl_config_file=s.txt").ssl_config_file == Path("s.txt")


def test_grpc_channel_arguments_are_numbers_where_they_look_like_it() -> None:
    read = parsed("--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.x=-1,a.b=text,c=99999999999,d=")
    assert read.grpc_channel_arguments == (
        ("grpc.max_connection_age_ms", 2000),
        ("grpc.x", -1),
        ("a.b", "text"),
        ("c", "99999999999"),
        ("d", ""),
    )


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--port=eighty", '--port cannot be read: found "eighty"'),
        ("--port=", "--port cannot be read"),
        ("--port=80 ", "--port cannot be read"),
        ("--port=1_000", "--port cannot be read"),
        ("--port=65536", "from 0 to 65535"),
        ("--port=-1", "from 0 to 65535"),
        ("--port=" + "9" * 5000, "--port cannot be read"),
        ("--port", "--port cannot be read: found expected one argument"),
        ("--max_num_load_retries=-1", "from 0 to"),
        ("--rest_api_timeout_in_ms=99999999999", "--rest_api_timeout_in_ms cannot be read"),
        ("--enable_batching=maybe", "true or false"),
        ("--enable_batching=", "true or false"),
        ("--request_log_sampling_rate=1.5", "from 0 to 1"),
        ("--request_log_sampling_rate=nan", "from 0 to 1"),
        ("--request_log_sampling_rate=x", "from 0 to 1"),
        ("--grpc_channel_arguments=a", '--grpc_channel_arguments cannot be read: found "a"'),
        ("--mixed_precision=int8", '--mixed_precision cannot be read: found "int8"'),
        ("--use_alts_credentials", "Wanted --ssl_config_file"),
    ],
)
def test_a_value_that_cannot_be_read_is_an_error_that_names_the_flag(flag: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        parsed(flag)
    assert said in str(error.value)


def test_unknown_arguments_are_told_and_ignored() -> None:
    options = parsed("--use_saved_model=true", "--rest_port=8501", "word", "-port=3")
    assert options.notes == (
        "unknown argument: --use_saved_model=true",
        "unknown argument: --rest_port=8501; did you mean --rest_api_port?",
        "unknown argument: word",
        "unknown argument: -port=3; did you mean --port?",
    )
    assert (options.port, options.rest_api_port) == (8500, 0)


def test_the_beginning_of_a_flags_name_is_not_the_flag() -> None:
    assert parsed("--model_nam=x").model_name == "default"
    assert parsed("--enable_batch").enable_batching is False


def test_a_flag_that_means_nothing_here_says_so_and_why() -> None:
    (note,) = parsed("--skip_initialize_tpu").notes
    assert note == "--skip_initialize_tpu has no effect: no TPU is ever used"


@pytest.mark.parametrize(
    ("argv", "note"),
    [
        (["--rest_api_timeout_in_ms=5"], "--rest_api_timeout_in_ms has no effect without --rest_api_port"),
        (["--per_process_gpu_memory_fraction=0.5"], "--per_process_gpu_memory_fraction has no effect without --gpu"),
        (["--enable_per_model_batching_parameters"],
         "--enable_per_model_batching_parameters has no effect without --enable_batching"),
        (["--request_log_max_records=3"], "--request_log_max_records has no effect without --request_log_file"),
        (["--model_config_file=m.txt"], "--model_base_path has no effect beside --model_config_file"),
        (["--any_port", "--port=9000"], "--port has no effect beside --any_port"),
        (["--tensorflow_session_parallelism=2", "--tensorflow_intra_op_parallelism=3"],
         "--tensorflow_session_parallelism has no effect beside --tensorflow_..._op_parallelism"),
    ],
)  # fmt: skip
def test_a_flag_that_another_one_makes_idle_says_so(argv: list[str], note: str) -> None:
    assert parsed(*argv).notes == (note,)


def test_flags_that_have_what_they_need_say_nothing() -> None:
    options = parsed(
        "--any_port", "--rest_api_timeout_in_ms=5", "--gpu", "--per_process_gpu_memory_fraction=0.5",
        "--request_log_file=log", "--request_log_sampling_rate=0.5",
    )  # fmt: skip
    assert options.notes == ()
    assert (options.request_log_file, options.request_log_sampling_rate) == (Path("log"), 0.5)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org"])
def test_an_address_that_others_reach_is_warned_of(host: str) -> None:
    (note,) = parsed(f"--host={host}").notes
    assert f"--host={host}" in note
    assert "whoever reaches this machine" in note


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_an_address_of_this_machine_only_needs_no_warning(host: str) -> None:
    assert parsed(f"--host={host}").notes == ()


def test_rest_on_the_port_of_grpc_is_left_out_as_tensorflow_serving_does() -> None:
    options = parsed("--rest_api_port=8500")
    assert options.rest_api_port == 0
    assert options.notes[0].startswith("--rest_api_port cannot be same as --port.")


def test_no_port_takes_a_socket_or_any_port() -> None:
    with pytest.raises(InputError, match="--port=0 and no --grpc_socket_path"):
        parsed("--port=0")
    assert parsed("--port=0", "--grpc_socket_path=/tmp/s").grpc_socket_path == Path("/tmp/s")
    options = parsed("--any_port")
    assert (options.any_port, options.port, options.rest_api_port) == (True, 0, 0)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "neither --model_base_path nor --model_config_file"),
        (["--model_base_path=/m", "--batching_parameters_file=b"], "without --enable_batching"),
        (["--model_base_path=/m", "--tensorflow_session_parallelism=1", "--tensorflow_intra_op_parallelism=1",
          "--tensorflow_inter_op_parallelism=1"], "--tensorflow_session_parallelism beside"),
    ],
)  # fmt: skip
def test_what_tensorflow_serving_does_not_start_with_is_refused(argv: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        flags.parse(argv)


def test_session_parallelism_sizes_both_pools_and_the_others_one_each() -> None:
    assert parsed("--tensorflow_session_parallelism=3").parallelism == (3, 3)
    assert parsed("--tensorflow_intra_op_parallelism=2").parallelism == (2, 0)
    assert parsed("--tensorflow_inter_op_parallelism=4", "--tensorflow_session_parallelism=3").parallelism == (0, 4)


def test_help_names_every_flag_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        flags.parse(["--help"])
    printed = capsys.readouterr().out
    assert end.value.code == 0
    for name in (*MAIN_CC, "host", "any_port", "gpu", "request_log_file"):
        assert f"--{name} " in printed


def test_version_is_printed_in_tensorflow_servings_layout(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        flags.parse(["--version"])
    ours, library = capsys.readouterr().out.splitlines()
    assert end.value.code == 0
    assert ours.startswith("TensorFlow ModelServer: tfdeploy-serve ")
    assert library.startswith("TensorFlow Library: 2.")


NAMES = st.sampled_from(["--", *(f"--{name}" for name in MAIN_CC)])
WORDS = st.text(max_size=6) | NAMES | st.builds("{}={}".format, NAMES, st.text(max_size=6))


@given(st.lists(WORDS, max_size=5))
@example(["--help=x"])
@example(["--", "--port=1"])
@example(["--port=٣"])
def test_no_command_line_ends_in_an_error_that_is_not_ours(argv: list[str]) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(parsed(*argv), ServerOptions)
