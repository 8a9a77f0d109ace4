"""Load is measured by clients in a process of their own: all they sent is counted, and nothing of them is left."""

from __future__ import annotations

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from tests.serving.fake_server import Fake, serving
from tests.serving.test_client import BOTH, free_port
from tfdeploy_magic.errors import DataError, ServingError
from tfdeploy_magic.jobs.progress import Progress, Report
from tfdeploy_magic.serving import load, load_clients
from tfdeploy_magic.serving.client import Client
from tfdeploy_magic.serving.load import Load, Saturation, Second, Target

ROWS = ([[1.0, 2, 3]], [[4.0, 5, 6]])


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving() as one:
        yield one


def target(fake: Fake, over: Any = "rest") -> Target:
    with Client(fake.url, grpc=fake.grpc) as client:
        made = client.target(ROWS, over=over)
    fake.asked.clear()
    return made


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """Answer every request with these bytes, and then end the connection where they say so."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while head := self.rfile.readline():
                while (line := self.rfile.readline()).strip():
                    if line.lower().startswith(b"content-length"):
                        length = int(line.split()[1])
                assert head.startswith(b"POST /x HTTP/1.1")
                self.rfile.read(length)
                self.wfile.write(answer)
                if b"close" in answer:
                    return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, address: Any) -> None:
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/x"
        server.shutdown()
        thread.join()


def example(clients: int = 1, throughput: float = 10.0) -> Load:
    return Load(
        clients=clients,
        seconds=2.0,
        over="rest",
        requests=int(throughput * 2) + 3,
        failures={"503": 2, "closed": 1},
        first_failure="no",
        latencies_ms=np.arange(1.0, 101.0),
        max_ms=100.0,
        concurrency=0.9,
        timeline=(Second(0, 12, 3, 95.0), Second(1, 0, 0, None)),
        request_bytes=100.0,
        answer_bytes=50.0,
        generator=0.1,
    )


# What is measured


@pytest.mark.parametrize("over", BOTH)
def test_every_request_is_counted_and_every_answer_timed(fake: Fake, over: Any) -> None:
    found = load.run(target(fake, over), clients=3, seconds=0.5, report=None)
    served = len(fake.asked) + len(fake.messages)
    assert (found.requests, found.failures, found.first_failure) == (served, {}, "")
    assert (found.clients, found.over) == (3, over)
    assert len(found.latencies_ms) == served
    assert found.seconds >= 0.5
    assert found.throughput == pytest.approx(served / found.seconds)
    assert found.max_ms == found.latencies_ms.max()
    assert found.concurrency == pytest.approx(found.latencies_ms.sum() / 1000 / found.seconds)
    assert found.concurrency <= 3
    assert [row.requests for row in found.timeline] == [served]
    assert found.generator > 0


@pytest.mark.parametrize("over", BOTH)
def test_the_bodies_take_turns(fake: Fake, over: Any) -> None:
    load.run(target(fake, over), clients=1, seconds=0.2)
    asked = [json.loads(body)["inputs"] for _, _, body in fake.asked]
    asked += [
        np.frombuffer(message.inputs["x"].tensor_content, "f4").reshape(1, 3).tolist() for message in fake.messages
    ]
    assert asked[:4] == [*ROWS, *ROWS]


def test_sizes_are_of_what_went_over_the_wire() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n[1.25]\n"
    with answering(answer) as url:
        found = load.run(Target(url, (b"{}", b"{}" * 2)), clients=2, seconds=0.2)
    assert found.failures == {}
    assert found.answer_bytes == len(answer)
    head = f"POST /x HTTP/1.1\r\nHost: {url[7:-2]}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"
    assert len(head) + 2 < found.request_bytes < len(head) + 4


def test_percentiles_are_of_the_latencies() -> None:
    found = example()
    assert (found.p50_ms, found.p95_ms, found.p99_ms) == tuple(np.percentile(found.latencies_ms, [50, 95, 99]))
    assert (found.failed, found.throughput) == (3, 10.0)


def test_of_many_latencies_a_fair_sample_is_kept_and_the_longest_known(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(load_clients, "KEPT", 100)
    seen = load_clients._Seen(10.0)
    for number in range(1000):  # each is slower than the one before
        now = 1000.0 + number / 100
        seen.answer(now - number / 1000, 5, 7)
    now = 1010.0
    seen.failure("503", "full", now - 1.0, 5)
    found = seen.result(2, "rest")
    assert (found.requests, found.failures, found.seconds) == (1001, {"503": 1}, 10)
    assert found.max_ms == pytest.approx(999)
    assert len(found.latencies_ms) == 100
    assert abs(found.latencies_ms.mean() - 500) < 150  # five standard errors
    assert [row.requests for row in found.timeline] == [100] * 9 + [101]
    assert found.timeline[-1].failures == 1
    assert found.timeline[3].p95_ms == pytest.approx(np.percentile(np.arange(300, 400), 95))
    assert found.concurrency == pytest.approx((499.5 + 1) / 10)


def test_a_second_without_answers_is_in_the_timeline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    seen = load_clients._Seen(4.0)
    seen.answer(now, 1, 1)
    now = 53.5
    seen.answer(53.0, 1, 1)
    assert [(row.second, row.requests, row.p95_ms) for row in seen.result(1, "rest").timeline] == [
        (0, 1, 0.0),
        (1, 0, None),
        (2, 0, None),
        (3, 1, pytest.approx(500)),
    ]


# What goes wrong


def test_refusals_are_counted_by_status_with_the_words_of_the_first(fake: Fake) -> None:
    fake.answers["/v1/models/echo:predict"] = (503, '{"error": "the queue is full"}')
    found = load.run(target(fake), clients=2, seconds=0.2)
    assert found.failures == {"503": found.requests} == {"503": len(fake.asked)}
    assert found.first_failure == '{"error": "the queue is full"}'
    assert (found.throughput, found.p50_ms, found.max_ms, found.timeline[0].p95_ms) == (0, None, None, None)


def test_refusals_of_grpc_are_counted_by_code(fake: Fake) -> None:
    wanted = target(fake, "grpc")
    fake.respond = lambda _, context: context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many")
    found = load.run(wanted, clients=2, seconds=0.2)
    assert found.failures == {"RESOURCE_EXHAUSTED": found.requests}
    assert found.first_failure == "too many"


def test_refused_and_answered_requests_are_told_apart(fake: Fake) -> None:
    wanted = target(fake)
    bad = replace(wanted, bodies=(wanted.bodies[0], b'{"inputs": 1}'))
    turns = iter(range(10**9))
    whole = fake.answer
    fake.answer = lambda *asked: (500, b"{}") if next(turns) % 4 == 3 else whole(*asked)  # type: ignore[method-assign]
    found = load.run(bad, clients=1, seconds=0.3)
    assert found.failures == {"500": found.requests // 4}
    assert len(found.latencies_ms) == found.requests - found.requests // 4


@pytest.mark.parametrize("over", BOTH)
def test_a_server_that_is_not_there_is_a_failure_and_not_an_error(over: Any) -> None:
    address = f"127.0.0.1:{free_port()}"
    found = load.run(
        Target(f"http://{address}/x" if over == "rest" else address, (b"{}",), over), clients=2, seconds=0.3, timeout=2
    )
    assert found.failures == {"unreachable" if over == "rest" else "UNAVAILABLE": found.requests}
    assert 2 <= found.requests <= 20  # it does not try without a pause
    assert found.throughput == 0


@pytest.mark.parametrize(("over", "kind"), [("rest", "timeout"), ("grpc", "DEADLINE_EXCEEDED")])
def test_an_answer_that_does_not_come_is_a_failure(fake: Fake, over: Any, kind: str) -> None:
    wanted = target(fake, over)
    fake.hold = threading.Event()
    fake.respond = lambda *_: fake.hold and fake.hold.wait(10) and None
    found = load.run(wanted, clients=2, seconds=0.1, timeout=0.2)
    fake.hold.set()
    assert found.failures == {kind: 2}


def test_a_connection_that_ends_without_an_answer_is_a_failure() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nclose") as url:
        found = load.run(Target(url, (b"{}",)), clients=1, seconds=0.1)
    assert found.failures == {"closed": found.requests}


def test_a_server_that_ends_each_connection_and_says_so_is_asked_over_new_ones() -> None:
    with answering(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\nConnection: close\r\n\r\n{}") as url:
        found = load.run(Target(url, (b"{}",)), clients=2, seconds=0.2)
    assert found.failures == {}
    assert found.requests > 2


def test_answers_in_chunks_are_read() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n") as url:
        found = load.run(Target(url, (b"{}",)), clients=2, seconds=0.2)
    assert found.failures == {}
    assert found.requests > 2


def test_what_is_no_load_is_refused() -> None:
    for target_, clients, seconds in (((b"",), 0, 1.0), ((b"",), 1, 0.0), ((), 1, 1.0)):
        with pytest.raises(DataError, match="this is no load"):
            load.run(Target("http://127.0.0.1:1/x", target_), clients=clients, seconds=seconds)


def test_clients_that_die_are_an_error_with_their_last_words() -> None:
    with pytest.raises(ServingError, match=r"the process of the clients ended early: found .*Error"):
        load.run(Target("http://127.0.0.1:99999999/x", (b"{}",)), clients=1, seconds=0.1)


# Its process


SCRIPT = """\
import sys
from tfdeploy_magic.serving import load
print("once", load.run(load.Target(sys.argv[1], (b'{"inputs": 1}',)), clients=2, seconds=0.2).failures)
"""


def test_a_script_without_a_main_guard_measures_and_runs_once(fake: Fake, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-W", "error", str(script), f"{fake.url}:predict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("once {}\n", "")


@pytest.mark.parametrize("over", BOTH)
def test_the_clients_import_no_tensorflow(fake: Fake, over: Any) -> None:
    url = f"{fake.url}:predict" if over == "rest" else fake.grpc
    order = {"url": url, "over": over, "clients": 1, "seconds": 0.1, "timeout": 1, "bodies": [""]}
    code = (
        "import sys; from tfdeploy_magic.serving import load_clients; load_clients.main(); "
        "print('tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as clients:
        assert clients.stdin is not None and clients.stdout is not None
        clients.stdin.write(json.dumps(order) + "\n")
        clients.stdin.flush()
        assert clients.stdout.readlines()[-1] == "False\n"


def test_progress_names_the_clients_and_ends_at_one(fake: Fake) -> None:
    heard: list[Progress] = []
    load.run(target(fake), clients=2, seconds=0.7, report=Report(heard.append))
    assert {one.stage for one in heard} == {"2 clients"}
    fractions = [one.fraction for one in heard if one.fraction is not None]
    assert fractions and fractions == sorted(fractions) and fractions[-1] <= 1


def test_the_stop_button_ends_the_clients_at_once(fake: Fake) -> None:
    def stop(progress: Progress) -> None:
        if progress.fraction is not None:
            raise KeyboardInterrupt

    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(KeyboardInterrupt):
        load.run(target(fake), clients=2, seconds=60, report=Report(stop))
    assert set(psutil.Process().children(recursive=True)) <= before


def test_clients_whose_notebook_died_end_by_themselves(fake: Fake) -> None:
    code = (
        f"from tfdeploy_magic.serving import load; load.run(load.Target('{fake.url}:predict', (b'{{}}',)), seconds=60)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        while not fake.asked:
            time.sleep(0.01)
        (clients,) = psutil.Process(parent.pid).children()
        os.kill(parent.pid, signal.SIGKILL)
    clients.wait(10)


# How it grows


def test_a_sweep_doubles_the_clients_up_to_the_most(fake: Fake) -> None:
    heard: list[Progress] = []
    found = load.saturation(target(fake), clients=3, seconds=0.1, report=Report(heard.append))
    assert [one.clients for one in found.loads] == [1, 2, 3]
    assert sum(one.requests for one in found.loads) == len(fake.asked)
    assert list(dict.fromkeys(one.stage for one in heard)) == ["1 client", "2 clients", "3 clients"]


@pytest.mark.parametrize(
    ("throughputs", "asked", "knee"),
    [
        ([100, 190, 360, 365, 370, 900], 5, 4),
        ([100, 100, 90, 900], 3, 1),
        ([100, 200, 400, 800, 1600, 3200, 6400], 7, None),
        ([100, 150, 140, 200, 400, 410, 405], 7, 16),
        ([0, 0, 0, 0], 3, None),
    ],
)
def test_a_sweep_ends_where_two_steps_gained_nothing_and_knows_the_fewest_clients_that_are_enough(
    throughputs: list[float], asked: int, knee: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(target: Target, *, clients: int, **options: Any) -> Load:
        return example(clients, throughputs[clients.bit_length() - 1])

    monkeypatch.setattr(load, "run", run)
    found = load.saturation(Target("", (b"",)), clients=64)
    assert [one.clients for one in found.loads] == [2**step for step in range(asked)]
    assert (found.knee and found.knee.clients) == knee
    assert found.peak.throughput == max(throughputs[:asked])


def test_results_survive_json() -> None:
    made = Saturation((example(1), example(2)))
    back = Saturation.from_dict(json.loads(json.dumps(made.to_dict())))
    assert back.to_dict() == made.to_dict()
    assert back.loads[0].timeline == example().timeline
    assert back.loads[0].latencies_ms.dtype == np.float64
    assert back.loads[1].p95_ms == example().p95_ms
