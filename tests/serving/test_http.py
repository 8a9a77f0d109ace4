"""The REST door: what HTTP leaves open is answered without harm, and strangers are turned away."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.serving.live import Asking, wait_until
from tfdeploy_magic.errors import ServingError
from tfdeploy_magic.serving import http, rest
from tfdeploy_magic.serving.http import HttpDoor, check_port, free_port, is_loopback

PATH = "/v1/models/m:predict"
METRICS = "/monitoring/prometheus/metrics"


class Echo:
    """Answers with what it was asked; "slow" when it is told to, "broken" with an exception."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.asked = 0

    async def reply(self, method: str, path: str, body: bytes, headers: Any) -> tuple[int, bytes, str]:
        self.asked += 1
        while path == "/v1/slow" and not self.go_on.is_set():
            await asyncio.sleep(0.01)
        return (
            200,
            json.dumps(
                {"method": method, "path": path, "bytes": len(body), "start": body[:9].decode("latin1")}
            ).encode(),
            headers.get("x-tfdeploy-key") or "",
        )


@contextlib.contextmanager
def opened(host: str = "127.0.0.1", api: Any = None, **options: Any) -> Iterator[Asking]:
    known: dict[str, Any] = {"metrics_path": METRICS, "metrics": lambda: b"up 1\n", **options}
    door = HttpDoor(api or Echo(), host, free_port(host), **known)
    ask = Asking(door.port)
    try:
        yield ask
    finally:
        ask.close()
        door.close()


@pytest.fixture(scope="module")
def ask() -> Iterator[Asking]:
    with opened() as asking:
        yield asking


def request(
    method: str = "GET", path: str = "/v1/x", *headers: str, body: bytes = b"", host: str = "localhost"
) -> bytes:
    lines = [
        f"{method} {path} HTTP/1.1",
        f"Host: {host}",
        *headers,
        *([f"Content-Length: {len(body)}"] if body else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin1") + body


LAST = "Connection: close"


def status(answer: bytes) -> list[int]:
    """Return the status of each answer."""
    return [int(code) for code in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answer)]


# Bodies


def test_a_body_comes_whole_in_one_piece_or_in_chunks(ask: Asking) -> None:
    body = b"0123456789" * 20_000
    assert ask.post(PATH, body).json == {"method": "POST", "path": PATH, "bytes": 200_000, "start": "012345678"}
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:1], body[1:70_000], body[70_000:]))
    answer = ask.raw(request("POST", PATH, "Transfer-Encoding: chunked", LAST) + chunks + b"0\r\n\r\n")
    assert (status(answer), b'"bytes": 200000' in answer) == ([200], True)


def test_a_connection_is_kept_alive_and_takes_requests_before_it_has_answered(ask: Asking) -> None:
    three = request("POST", PATH, body=b"abc") + request("GET", "/v1/y") + request("POST", PATH, LAST, body=b"d")
    answer = ask.raw(three)
    assert status(answer) == [200, 200, 200]
    assert [int(size) for size in re.findall(rb'"bytes": (\d+)', answer)] == [3, 0, 1]


def test_http_1_0_is_answered_and_ended(ask: Asking) -> None:
    answer = ask.raw(b"GET /v1/x HTTP/1.0\r\n\r\n")
    assert status(answer) == [200]


def test_a_client_that_waits_to_be_told_is_told_to_go_on(ask: Asking) -> None:
    with socket.create_connection(("127.0.0.1", ask.port), 60) as connection:
        connection.sendall(request("POST", PATH, "Expect: 100-continue", "Content-Length: 3", LAST))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(b"abc")
        assert status(connection.recv(1000)) == [200]


def test_a_gzip_body_is_unfolded(ask: Asking) -> None:
    zipped = gzip.compress(b"x" * 1_000_000)
    answer = ask("POST", PATH, zipped, {"Content-Encoding": "gzip"})
    assert (answer.json["bytes"], answer.json["start"]) == (1_000_000, "x" * 9)
    assert "content-encoding" not in answer.headers
    assert ask("POST", PATH, zipped, {"Content-Encoding": "x-GZIP"}).json["bytes"] == 1_000_000


def test_a_gzip_bomb_and_a_broken_gzip_are_refused(ask: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "MAX_UNCOMPRESSED", 1 << 20)
    bomb = gzip.compress(b"x" * (1 << 21))
    for body, why in ((bomb, "more than 1048576 bytes"), (bomb[:100], "its end is missing"), (b"none", "header")):
        answer = ask("POST", PATH, body, {"Content-Encoding": "gzip"})
        assert (answer.status, why in answer.error) == (400, True)
    assert ask.get("/v1/x").status == 200


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large_is_refused(ask: Asking, monkeypatch: pytest.MonkeyPatch, declared: bool) -> None:
    monkeypatch.setattr(http, "MAX_BODY", 100_000)
    body = bytes(200_000)
    if declared:
        data = request("POST", PATH, body=body)
    else:
        data = request("POST", PATH, "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    answer = ask.raw(data)
    assert (status(answer), b"the body is larger than 100000 bytes" in answer) == ([413], True)
    assert ask.post(PATH, bytes(100_000)).status == 200


@pytest.mark.parametrize("length", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_a_body_that_does_not_arrive_is_not_waited_for_without_end(length: str) -> None:
    with opened(timeout=0.1) as ask:
        answer = ask.raw(request("POST", PATH, length) + b"3\r\nabc\r\n")
        assert (status(answer), b"the body did not arrive in 0.1 s" in answer) == ([408], True)
        assert ask.get("/v1/x").status == 200


def test_no_timeout_is_any_time() -> None:
    with opened(timeout=0) as ask:
        assert ask.post(PATH, bytes(100_000)).json["bytes"] == 100_000


def test_a_body_that_ends_too_early_is_refused(ask: Asking) -> None:
    for length in (10, 100_000):
        with socket.create_connection(("127.0.0.1", ask.port), 60) as connection:
            connection.sendall(request("POST", PATH, f"Content-Length: {length}") + b"abc")
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
        assert (status(answer), b"the body is shorter than it was said to be" in answer) == ([400], True)


def test_clients_that_go_away_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    api = Echo()
    with opened(api=api) as ask:
        for length in ("Content-Length: 100", "Content-Length: 100000", "Transfer-Encoding: chunked"):
            ask.raw(request("POST", PATH, length), wait=0.05)
        asked = api.asked
        ask.raw(request("GET", "/v1/slow"), wait=0.05)
        wait_until(lambda: api.asked > asked)
        api.go_on.set()
        assert ask.get("/v1/x").status == 200
    assert not caplog.records


def test_a_slow_answer_holds_up_nobody() -> None:
    api = Echo()
    with opened(api=api) as ask, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask.get, "/v1/slow")
        wait_until(lambda: api.asked == 1)
        assert [ask.get("/v1/x").status for _ in range(10)] == [200] * 10
        assert not slow.done()
        api.go_on.set()
        assert slow.result(60).status == 200
        pool.submit(ask.close).result()


def test_a_body_of_a_get_is_read_past(ask: Asking) -> None:
    answer = ask.raw(request("GET", "/v1/x", body=b"abc") + request("GET", "/v1/y", LAST))
    assert status(answer) == [200, 200]
    assert b'"/v1/y"' in answer


# Paths


def test_a_query_is_part_of_the_path_as_in_tensorflow_serving(ask: Asking) -> None:
    assert ask.get("/v1/models/m?x=1&y").json["path"] == "/v1/models/m?x=1&y"


def test_a_path_is_percent_decoded_once(ask: Asking) -> None:
    assert ask.get("/v1/models/%6D%20%C3%A9%2531").json["path"] == "/v1/models/m é%31"
    assert ask.get("/v1/models/%zz").json["path"] == "/v1/models/%zz"


def test_a_whole_url_is_a_path_too(ask: Asking) -> None:
    assert b'"path": "/v1/x"' in ask.raw(request("GET", "http://localhost/v1/x", LAST))


def test_metrics_are_told_at_their_path_alone(ask: Asking) -> None:
    answer = ask.get(METRICS)
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "text/plain", b"up 1\n")
    assert ask("HEAD", METRICS).status == 200
    wrong = ask.get(f"{METRICS}?x=1")
    assert (wrong.status, wrong.headers["content-type"]) == (400, "text/plain")
    assert wrong.body.decode() == f"Unexpected path: {METRICS}?x=1. Should be {METRICS}"
    assert ask.get(f"{METRICS}/").status == 404


def test_no_metrics_are_told_where_there_are_none() -> None:
    with opened(metrics_path=None) as ask:
        assert ask.get(METRICS).status == 404


# Strangers


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8501", "127.0.0.1:1", "127.9.9.9", "[::1]:8501", "localhost."]
)
def test_this_machine_may_be_called_by_each_of_its_names(ask: Asking, host: str) -> None:
    assert status(ask.raw(request("GET", "/v1/x", LAST, host=host))) == [200]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8501", "localhost.evil.example", "10.0.0.1", "", "[::2]"]
)
@pytest.mark.parametrize("path", ["/v1/x", METRICS, "/"])
def test_a_name_that_only_points_here_is_refused(ask: Asking, host: str, path: str) -> None:
    answer = ask.raw(request("GET", path, LAST, host=host))
    assert (status(answer), b"is not this server's; it listens on 127.0.0.1 only" in answer) == ([403], True)


def test_a_whole_url_does_not_hide_whose_name_it_is(ask: Asking) -> None:
    assert status(ask.raw(request("GET", "http://127.0.0.1/v1/x", LAST, host="evil.example"))) == [403]


ORIGINS = ["http://evil.example", "null", "https://localhost.evil.example", "http://[::1", "file://", "x"]


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_page_of_another_origin_may_not_ask(ask: Asking, origin: str) -> None:
    answer = ask.raw(request("POST", PATH, f"Origin: {origin}", "Content-Type: text/plain", LAST, body=b"{}"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert (status(head), json.loads(body)["error"]) == (
        [403],
        f"Origin {origin} may not ask; --rest_api_enable_cors_support lets pages of any origin ask",
    )
    assert b"access-control-allow-origin" not in head.lower()


@pytest.mark.parametrize("origin", ["http://localhost:8888", "http://127.0.0.1", "https://[::1]:1"])
def test_a_page_of_this_machine_may_ask(ask: Asking, origin: str) -> None:
    assert ask("POST", PATH, b"{}", {"Origin": origin}).status == 200


def test_a_refused_request_does_not_spoil_the_next_one_of_its_connection(ask: Asking) -> None:
    two = request("POST", PATH, body=b"abc", host="evil.example") + request("GET", "/v1/x", LAST)
    assert status(ask.raw(two)) == [403, 200]


def test_with_cors_any_page_may_ask_but_still_by_a_name_of_this_machine() -> None:
    allowed = {
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "POST, GET",
        "access-control-allow-headers": "Content-Type, x-tfdeploy-key",
        "access-control-expose-headers": "x-tfdeploy-arm",
    }
    with opened(cors=True) as ask:
        for method, body in (("POST", b"{}"), ("GET", None), ("OPTIONS", None)):
            answer = ask(method, PATH, body, {"Origin": "https://app.example"})
            assert (answer.status, {**answer.headers, **allowed}) == (200, answer.headers)
        assert ask("OPTIONS", PATH, None, {"Origin": "https://app.example"}).body == b""
        assert ask("OPTIONS", PATH, None, {"Origin": "chrome://x"}).json["method"] == "OPTIONS"
        assert status(ask.raw(request("GET", "/v1/x", LAST, host="evil.example"))) == [403]


def test_whoever_opens_a_server_to_the_network_is_called_by_any_name() -> None:
    with opened("0.0.0.0") as ask:
        assert status(ask.raw(request("GET", "/v1/x", "Origin: http://a.example", LAST, host="gpu.example"))) == [200]


@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_a_server_listens_where_it_is_told(host: str) -> None:
    with opened(host) as ask, socket.create_connection((host, ask.port), 60) as connection:
        connection.sendall(request("GET", "/v1/x", LAST))
        assert status(connection.recv(1000)) == [200]


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("Localhost.", True)]
    + [(host, False) for host in ("", "0.0.0.0", "::", "10.0.0.1", "example.com", "localhost.example", "127.0.0.1.x")],
)
def test_loopback_is_what_can_only_mean_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


# What is no HTTP


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/x\r\n\r\n",
        b"GET  HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: -3\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n" + b"X-Y: z\r\n" * 10_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_or_hung_up_on(ask: Asking, data: bytes) -> None:
    assert all(400 <= code < 500 for code in status(ask.raw(data)))
    assert ask.get("/v1/x").status == 200


HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["Host", "Origin", "Content-Encoding", "Content-Length", "Transfer-Encoding", "Expect", "X"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=12)
        | st.sampled_from(["gzip", "chunked", "localhost", "http://localhost", "0", "3", "100-continue"]),
    ),
    max_size=4,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "BREW"]), HEADERS, st.binary(max_size=30))
@example("GET", [("Origin", "http://[::1")], b"")
@example("GET", [("Host", "\xff")], b"")
@example("POST", [("Content-Encoding", "gzip"), ("Content-Length", "3")], b"abc")
def test_no_header_is_an_error_of_the_server(
    ask: Asking, method: str, headers: list[tuple[str, str]], body: bytes
) -> None:
    lines = [f"{method} {PATH} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), LAST, "", ""]
    with socket.create_connection(("127.0.0.1", ask.port), 60) as connection:
        connection.sendall("\r\n".join(lines).encode("latin1") + body)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 16):
                answer += part
    assert all(code < 500 for code in status(answer)), answer
    assert ask.get("/v1/x").status == 200


# Ports


def test_a_port_that_is_taken_is_refused_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=rf"cannot listen on 127.0.0.1:{port}: found another program there"):
            check_port("127.0.0.1", port)
        with pytest.raises(ServingError, match="another program there"):
            HttpDoor(Echo(), "127.0.0.1", port, metrics_path=None, metrics=bytes)  # type: ignore[arg-type]


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ServingError, match=r"cannot listen on 203\.0\.113\.1:"):
        check_port("203.0.113.1", 8501)


def test_a_port_is_free_again_when_its_server_has_ended() -> None:
    port = free_port("127.0.0.1")
    for _ in range(2):
        door = HttpDoor(Echo(), "127.0.0.1", port, metrics_path=None, metrics=bytes)  # type: ignore[arg-type]
        ask = Asking(port)
        assert ask.get("/v1/x").status == 200
        ask.close()
        door.close()
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), 1)


def test_a_server_that_ends_answers_what_it_was_asked() -> None:
    api = Echo()
    with opened(api=api) as ask, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask.get, "/v1/slow")
        wait_until(lambda: api.asked == 1)
        threading.Timer(0.3, api.go_on.set).start()
    assert slow.result(60).status == 200


# Arms


def test_a_header_says_which_arm_answered(ask: Asking) -> None:
    assert "x-tfdeploy-arm" not in ask("POST", PATH, b"{}").headers
    assert ask("POST", PATH, b"{}", {"X-TFDeploy-Key": "canary"}).headers["x-tfdeploy-arm"] == "canary"


class Named(Echo):
    """Answers as an arm of an odd name."""

    async def reply(self, method: str, path: str, body: bytes, headers: Any) -> tuple[int, bytes, str]:
        return 200, b"{}", "zwei hälften\r\nx: y"


def test_the_name_of_an_arm_cannot_break_the_head_of_an_answer() -> None:
    with opened(api=Named()) as ask:
        headers = ask("POST", PATH, b"{}").headers
    assert (headers["x-tfdeploy-arm"], "x" in headers) == ("zwei%20h%C3%A4lften%0D%0Ax%3A%20y", False)


def test_outcomes_are_guarded_as_everything_is(ask: Asking) -> None:
    path = "/v1/models/m:outcome"
    assert status(ask.raw(request("POST", path, LAST, body=b"{}", host="evil.example"))) == [403]
    assert ask("POST", path, b"{}", {"Origin": "http://evil.example"}).status == 403
    assert ask("POST", path, b"{}").status == 200
