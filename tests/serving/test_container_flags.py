from __future__ import annotations

import pytest

from tfdeploy_magic.errors import InputError
from tfdeploy_magic.serving import container_flags


@pytest.mark.parametrize(
    ("flag", "cure"),
    [
        ("--request_log_file=/tmp/x", "Only the embedded server has it"),
        ("--any_port", "Only the embedded server has it"),
        ("--host=0.0.0.0", "Only the embedded server has it"),
        ("--port=1", "--grpc-port"),
        ("--model_config_file=/x", "--label"),
        ("--ssl_config_file=/x", "nothing"),
        ("word", "leave it out"),
    ],
)
def test_flags_that_a_container_cannot_heed_are_refused(flag: str, cure: str) -> None:
    with pytest.raises(InputError, match="--flags has one that a container does not take") as caught:
        container_flags.check_flags([flag, "--enable_batching"])
    assert cure in caught.value.cure


def test_every_flag_of_our_own_is_known_as_that() -> None:
    assert {"host", "any_port", "gpu", "request_log_file"} <= {
        n for n, kind in container_flags._KNOWN.items() if not kind
    }
    assert {"batching_parameters_file", "monitoring_config_file", "platform_config_file"} <= container_flags.FILES


def test_a_value_may_follow_a_space_and_a_switch_alone_means_true() -> None:
    said = ["--batching_parameters_file", "/x", "--enable_batching", "--num_load_threads=2"]
    assert dict(container_flags.given(said)) == {
        "batching_parameters_file": "/x",
        "enable_batching": "true",
        "num_load_threads": "2",
    }
