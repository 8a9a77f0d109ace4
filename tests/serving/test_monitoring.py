"""What is counted is read back with Prometheus' own parser, and nothing is lost among threads."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from tfdeploy_magic.serving.monitoring import MOST, Monitoring

TFS = ":tensorflow:serving:"
OURS = ":tfdeploy:serving:"


@pytest.fixture
def monitoring() -> Monitoring:
    monitoring = Monitoring()
    monitoring.served("digits")
    return monitoring


@pytest.fixture
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def samples(monitoring: Monitoring) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Read every sample; the parser gives the names of all counters OpenMetrics' ``_total``."""
    families = text_string_to_metric_families(monitoring.text().decode())
    found = [(s.name, frozenset(s.labels.items()), s.value) for family in families for s in family.samples]
    assert len({(name, labels) for name, labels, _ in found}) == len(found), "a sample is there twice"
    return {(name.removeprefix(TFS), labels): value for name, labels, value in found}


def value(monitoring: Monitoring, name: str, **labels: str) -> float:
    return samples(monitoring)[name, frozenset(labels.items())]


def buckets(monitoring: Monitoring, name: str, **labels: str) -> dict[float, float]:
    wanted = labels.items()
    return {
        float(dict(key)["le"]): number
        for (sample, key), number in samples(monitoring).items()
        if sample == f"{name}_bucket" and wanted <= dict(key).items()
    }


def in_threads(count: int, act: Callable[[int], None]) -> None:
    start = threading.Barrier(count)

    def run(number: int) -> None:
        start.wait()
        act(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_requests_are_counted_by_model_and_outcome(monitoring: Monitoring) -> None:
    monitoring.served("other")
    for _ in range(3):
        monitoring.request("digits", "OK", "predict", "REST", 50)
    monitoring.request("digits", "INVALID_ARGUMENT", "predict", "REST", 50)
    monitoring.request("other", "OK", "Predict", "GRPC", 50)
    assert b'\n:tensorflow:serving:request_count{model_name="digits",status="OK"} 3\n' in monitoring.text()
    assert value(monitoring, "request_count_total", model_name="digits", status="OK") == 3
    assert value(monitoring, "request_count_total", model_name="digits", status="INVALID_ARGUMENT") == 1
    assert value(monitoring, "request_count_total", model_name="other", status="OK") == 1


def test_the_latency_of_what_was_refused_is_not_mixed_in(monitoring: Monitoring) -> None:
    monitoring.request("digits", "OK", "predict", "REST", 50)
    monitoring.request("digits", "INVALID_ARGUMENT", "predict", "REST", 1)
    labels = {"model_name": "digits", "API": "predict", "entrypoint": "REST"}
    assert value(monitoring, "request_latency_count", **labels) == 1
    assert value(monitoring, "request_latency_sum", **labels) == 50


def test_latency_buckets_are_tensorflow_servings(monitoring: Monitoring) -> None:
    monitoring.request("digits", "OK", "predict", "REST", 1)
    limits = list(buckets(monitoring, "request_latency"))
    assert len(limits) == 34
    assert limits[-1] == math.inf
    assert limits[:-1] == pytest.approx([10 * 1.8**n for n in range(33)], rel=1e-5)
    text = monitoring.text().decode()
    assert 'le="104.976"' in text  # with the six digits that TensorFlow Serving writes: dashboards sum by "le"
    assert 'le="1.27482e+06"' in text


def test_buckets_sums_and_counts_are_those_of_prometheus_own_client(monitoring: Monitoring) -> None:
    values = [0, 9.99, 10, 10.01, 18, 500, 123456.75, 1e12]
    limits = [10 * 1.8**n for n in range(33)]
    reference = Histogram("h", "reference", registry=CollectorRegistry(), buckets=limits)
    for number in values:
        monitoring.ran("digits", "Predict", "TF1", number)
        reference.observe(number)
    labels = {"model_name": "digits", "API": "Predict", "runtime": "TF1"}
    expected = {s.labels["le"]: s.value for m in reference.collect() for s in m.samples if s.name == "h_bucket"}
    found = buckets(monitoring, "runtime_latency", **labels)
    assert list(found.values()) == list(expected.values())
    assert value(monitoring, "runtime_latency_sum", **labels) == sum(values)
    assert value(monitoring, "runtime_latency_count", **labels) == len(values)


def test_sums_keep_all_their_digits(monitoring: Monitoring) -> None:
    for _ in range(2):
        monitoring.ran("digits", "Predict", "TF1", 123456789)
    assert value(monitoring, "runtime_latency_sum", model_name="digits", API="Predict", runtime="TF1") == 246913578


def test_examples_are_counted_per_request_and_altogether(monitoring: Monitoring) -> None:
    for count in (1, 3, 8):
        monitoring.examples("digits", count)
    assert value(monitoring, "request_example_count_total", model="digits") == 12
    found = buckets(monitoring, "request_example_counts", model="digits")
    assert (found[1], found[2], found[4], found[8]) == (1, 1, 2, 3)
    assert len(found) == 16


def test_a_batch_tells_its_rows_its_padding_and_how_long_each_request_waited(monitoring: Monitoring) -> None:
    monitoring.batch("pool", [1, 2], 4, [90.0, 150.0])
    monitoring.batch("pool", [4], 4, [10.0])
    assert value(monitoring, "batching_session:wrapped_run_count_total") == 2
    assert value(monitoring, "batching_session:processed_batch_size_sum") == 8
    assert value(monitoring, "batching_session:input_batch_size_count") == 3
    assert value(monitoring, "batching_session:input_batch_size_sum") == 7
    assert value(monitoring, "batching_session:padding_size_sum", execution_batch_size="4") == 1
    assert value(monitoring, "batching_session:padding_size_count", execution_batch_size="4") == 2
    assert value(monitoring, "batching_session:queuing_latency_sum", thread_pool_name="pool") == 250
    waits = buckets(monitoring, "batching_session:queuing_latency", thread_pool_name="pool")
    assert len(waits) == 53
    assert (waits[100], waits[120], waits[172.8]) == (2, 2, 3)


def test_warm_ups_and_the_request_log_are_counted(monitoring: Monitoring) -> None:
    monitoring.warmed_up("/models/digits/1", "OK", 1500, records=7)
    monitoring.warmed_up("/models/digits/2", "DATA_LOSS", 20)
    monitoring.logged("digits", "OK")
    assert value(monitoring, "model_warmup_latency_count", model_path="/models/digits/1", status="OK") == 1
    assert value(monitoring, "model_warmup_latency_sum", model_path="/models/digits/1", status="OK") == 1500
    assert value(monitoring, "model_warmup_latency_count", model_path="/models/digits/2", status="DATA_LOSS") == 1
    assert value(monitoring, "model_warmup_records_read_total", model_path="/models/digits/1") == 7
    assert value(monitoring, "request_log_count_total", model_name="digits", status_code="OK") == 1


def test_labels_are_escaped(monitoring: Monitoring) -> None:
    name = 'a "quoted"\\name\nwith, {all} = of it: é'
    monitoring.served(name)
    monitoring.request(name, "OK", "predict", "REST", 5)
    assert value(monitoring, "request_count_total", model_name=name, status="OK") == 1
    assert buckets(monitoring, "request_latency", model_name=name)[math.inf] == 1


def test_made_up_model_names_share_one_label_set(monitoring: Monitoring) -> None:
    before = len(monitoring.text())
    for number in range(10_000):
        name = f"made-up-{number}"
        monitoring.request(name, "NOT_FOUND", "predict", "REST", 5)
        monitoring.ran(name, "Predict", "TF1", 5)
        monitoring.examples(name, 1)
        monitoring.logged(name, "OK")
    assert value(monitoring, "request_count_total", model_name="", status="NOT_FOUND") == 10_000
    assert b"made-up" not in monitoring.text()
    assert len(monitoring.text()) < before + 20_000


def test_a_model_is_counted_by_name_from_when_it_is_served(monitoring: Monitoring) -> None:
    monitoring.request("later", "NOT_FOUND", "predict", "REST", 5)
    monitoring.served("later")
    monitoring.request("later", "NOT_FOUND", "predict", "REST", 5)
    assert value(monitoring, "request_count_total", model_name="", status="NOT_FOUND") == 1
    assert value(monitoring, "request_count_total", model_name="later", status="NOT_FOUND") == 1


def test_only_the_latest_version_directories_are_kept(monitoring: Monitoring) -> None:
    for version in range(3 * MOST):
        monitoring.warmed_up(f"/models/digits/{version}", "OK", 5, records=1)
    kept = [dict(key)["model_path"] for name, key in samples(monitoring) if name == "model_warmup_records_read_total"]
    assert kept == [f"/models/digits/{version}" for version in range(2 * MOST, 3 * MOST)]


def test_only_the_latest_sizes_of_batches_are_kept_apart(monitoring: Monitoring) -> None:
    for size in range(1, 3 * MOST):
        monitoring.batch("pool", [size], size, [1.0])
    sizes = [key for name, key in samples(monitoring) if name == "batching_session:padding_size_count"]
    assert len(sizes) == MOST
    assert value(monitoring, "batching_session:processed_batch_size_count") == 3 * MOST - 1


@pytest.mark.usefixtures("switching_often")
def test_no_count_is_lost_among_threads_that_meet_on_new_and_old_label_sets(monitoring: Monitoring) -> None:
    models = [f"model-{number}" for number in range(50)]
    for model in models:
        monitoring.served(model)

    def ask(_: int) -> None:
        for model in models:
            for _ in range(20):
                monitoring.request(model, "OK", "predict", "REST", 5)
                monitoring.ran(model, "Predict", "TF1", 3)

    in_threads(8, ask)
    found = samples(monitoring)
    for sample, expected in (
        ("request_count_total", 160),
        ("request_latency_count", 160),
        ("runtime_latency_sum", 480),
    ):
        assert {number for (name, _), number in found.items() if name == sample} == {expected}


@pytest.mark.usefixtures("switching_often")
def test_what_is_read_meanwhile_is_consistent(monitoring: Monitoring) -> None:
    done = threading.Event()

    def ask(_: int) -> None:
        while not done.is_set():
            monitoring.request("digits", "OK", "predict", "REST", 5)

    monitoring.request("digits", "OK", "predict", "REST", 5)
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            found = samples(monitoring)
            requests = found["request_count_total", frozenset({("model_name", "digits"), ("status", "OK")})]
            labels = {("model_name", "digits"), ("API", "predict"), ("entrypoint", "REST")}
            assert found["request_latency_count", frozenset(labels)] == requests
            assert found["request_latency_sum", frozenset(labels)] == 5 * requests
            assert found["request_latency_bucket", frozenset({*labels, ("le", "+Inf")})] == requests
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_the_process_tells_its_start_its_cpu_time_and_its_memory(monitoring: Monitoring) -> None:
    started = value(monitoring, "process_start_time_seconds")
    assert time.time() - 86400 < started < time.time()
    assert 0 < value(monitoring, "process_cpu_seconds_total") <= sum(os.times()[:2])
    assert value(monitoring, "process_resident_memory_bytes") > 1_000_000


def test_every_metric_says_its_type_and_what_it_is(monitoring: Monitoring) -> None:
    monitoring.request("digits", "OK", "predict", "REST", 5)
    families = {family.name: family for family in text_string_to_metric_families(monitoring.text().decode())}
    assert families[f"{TFS}request_count"].type == "counter"
    assert families[f"{TFS}request_latency"].type == "histogram"
    assert families["process_start_time_seconds"].type == "gauge"
    assert all(family.documentation and family.type != "unknown" for family in families.values())


def test_two_servers_of_one_process_count_apart(monitoring: Monitoring) -> None:
    other = Monitoring()
    other.served("digits")
    monitoring.request("digits", "OK", "predict", "REST", 5)
    assert not any(name == "request_count_total" for name, _ in samples(other))


# By version and by arm


def by_version(monitoring: Monitoring, name: str = "version_request_count_total", **wanted: str) -> dict[str, float]:
    """Return what is counted, by the values of the labels."""
    return {
        " ".join(value for _, value in sorted(key)): number
        for (sample, key), number in samples(monitoring).items()
        if sample == OURS + name and wanted.items() <= dict(key).items()
    }


def test_inferences_are_counted_by_the_version_that_answered(monitoring: Monitoring) -> None:
    for version in (1, 2, 2):
        monitoring.request("digits", "OK", "predict", "REST", 50, version)
    monitoring.request("digits", "OK", "Predict", "GRPC", 50, 2)
    monitoring.request("digits", "INVALID_ARGUMENT", "predict", "REST", 50, 2)
    monitoring.request("digits", "NOT_FOUND", "predict", "REST", 50)
    monitoring.request("digits", "OK", "", "REST", 50)
    assert by_version(monitoring) == {
        " digits OK 1": 1,
        " digits OK 2": 3,
        " digits INVALID_ARGUMENT 2": 1,
        " digits NOT_FOUND ": 1,
    }
    assert by_version(monitoring, "version_request_latency_count") == {" digits 1": 1, " digits 2": 3}
    assert by_version(monitoring, "version_request_latency_sum") == {" digits 1": 50, " digits 2": 150}
    limits = [key for sample, key in samples(monitoring) if sample == f"{OURS}version_request_latency_bucket"]
    assert len(limits) == 2 * 34


def test_an_arm_is_counted_beside_the_version_that_it_is(monitoring: Monitoring) -> None:
    split = object()
    monitoring.split("digits", split)
    monitoring.request("digits", "OK", "predict", "REST", 50, 2, "canary", split)
    monitoring.request("digits", "OK", "predict", "REST", 50, 2)
    monitoring.request("digits", "NOT_FOUND", "predict", "REST", 50, None, "stable", split)
    assert by_version(monitoring) == {"canary digits OK 2": 1, " digits OK 2": 1, "stable digits NOT_FOUND ": 1}


def test_a_new_split_counts_from_zero_and_nothing_of_the_one_before_it(monitoring: Monitoring) -> None:
    first, second, other = object(), object(), object()
    monitoring.split("digits", first)
    monitoring.split("other", other)
    for model, split in (("digits", first), ("other", other)):
        monitoring.request(model, "OK", "predict", "REST", 50, 1, "stable", split)
        assert monitoring.outcomes(model, split, {("stable", "success"): 3, ("stable", "failure"): 1})
    monitoring.request("digits", "OK", "predict", "REST", 50, 1)
    monitoring.split("digits", second)
    assert by_version(monitoring) == {" digits OK 1": 1, "stable other OK 1": 1}
    assert by_version(monitoring, "arm_outcome_count_total") == {"stable other success": 3, "stable other failure": 1}
    monitoring.request("digits", "OK", "predict", "REST", 50, 1, "stable", first)  # it was on its way
    assert not monitoring.outcomes("digits", first, {("stable", "success"): 1})
    assert by_version(monitoring, model_name="digits") == {" digits OK 1": 2}
    assert by_version(monitoring, "arm_outcome_count_total", model_name="digits") == {}
    monitoring.request("digits", "OK", "predict", "REST", 50, 1, "stable", second)
    assert by_version(monitoring, model_name="digits") == {" digits OK 1": 2, "stable digits OK 1": 1}


def test_of_many_versions_those_that_are_still_asked_are_kept(monitoring: Monitoring) -> None:
    for version in range(2, 3 * MOST):
        monitoring.request("digits", "OK", "predict", "REST", 50, 1)
        monitoring.request("digits", "OK", "predict", "REST", 50, version)
    kept = by_version(monitoring)
    assert len(kept) == MOST
    assert kept[" digits OK 1"] == 3 * MOST - 2
    assert f" digits OK {3 * MOST - 1}" in kept
    assert " digits OK 2" not in kept


def test_versions_of_made_up_models_share_one_label_set(monitoring: Monitoring) -> None:
    for number in range(1000):
        monitoring.request(f"made-up-{number}", "NOT_FOUND", "predict", "REST", 5)
    assert by_version(monitoring) == {"  NOT_FOUND ": 1000}


def test_names_of_arms_are_escaped(monitoring: Monitoring) -> None:
    split, arm = object(), 'a "b"\\c\nd'
    monitoring.split("digits", split)
    monitoring.request("digits", "OK", "predict", "REST", 5, 1, arm, split)
    monitoring.outcomes("digits", split, {(arm, "success"): 1})
    assert by_version(monitoring) == {f"{arm} digits OK 1": 1}
    assert by_version(monitoring, "arm_outcome_count_total") == {f"{arm} digits success": 1}
