"""HTTP itself: methods, caching, ids of requests, pipelining, and clients that are slow, huge or wrong."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from pathlib import Path

import pytest
from serving.support import Answer, Server, Wire, request, serving

GETS = [
    "/v3/scores/42",
    "/v3/scores/7",
    "/v3/profiles/42",
    "/v3/identities/tw/12",
    "/v3/topics",
    "/v3/topics/food",
    "/v3/snapshot",
    "/healthz",
    "/readyz",
    "/openapi.json",
]
POSTS = ["/v3/scores/batch", "/v3/eligibility"]
CACHED = GETS[:7]
VOLATILE = {"date", "x-request-id"}


def stable(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in VOLATILE}


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_the_body(server: Server, path: str) -> None:
    got, head = server.get(path), server.ask("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert stable(head) == stable(got)
    assert int(head.headers["content-length"]) == len(got.body)


def test_head_of_an_error_has_no_body(server: Server) -> None:
    with server.connect() as wire:
        for path, status in (("/v3/scores/999", 404), ("/v3/scores/x", 400), ("/nowhere", 404)):
            wire.send(request("HEAD", path))
            wire.get("/v3/scores/42")
            head, _, rest = wire._until(b"\r\n\r\n")[0].partition(b"\r\n")
            assert int(head.split()[1]) == status
            wire._left = wire._left.partition(b"\r\n\r\n")[2]
            assert wire.answer().status == 200
            assert rest


@pytest.mark.parametrize("path", GETS)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_methods_that_a_get_route_does_not_take(server: Server, path: str, method: str) -> None:
    answer = server.ask(method, path)
    assert (answer.status, answer.kind, answer.headers["allow"]) == (405, "method-not-allowed", "GET, HEAD")


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_methods_that_a_post_route_does_not_take(server: Server, path: str, method: str) -> None:
    answer = server.ask(method, path)
    assert (answer.status, answer.kind, answer.headers["allow"]) == (405, "method-not-allowed", "POST")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v3",
        "/v3/",
        "/v3/scores",
        "/v3/scores/",
        "/v3/scores/42/",
        "/v3/scores/42/x",
        "//v3/scores/42",
        "/V3/scores/42",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_unknown_routes(server: Server, method: str, path: str) -> None:
    answer = server.ask(method, path)
    assert answer.status == 404
    if method != "HEAD":
        assert answer.kind == "not-found"


@pytest.mark.parametrize("path", CACHED)
def test_if_none_match(server: Server, path: str) -> None:
    got = server.get(path)
    etag = got.headers["etag"]
    assert re.fullmatch(r'"[\x21\x23-\x7e]+"', etag)
    assert got.headers["cache-control"] == "max-age=60"
    for wanted in (etag, f"W/{etag}", "*", f'"x", {etag}', f'"x",W/{etag} , "y"'):
        for method in ("GET", "HEAD"):
            answer = server.ask(method, path, If_None_Match=wanted)
            assert (answer.status, answer.body) == (304, b"")
            for name in ("etag", "cache-control", "kserve-version"):
                assert answer.headers[name] == got.headers[name]
            assert answer.headers["x-request-id"]
    for other in ('"x"', etag.strip('"'), etag[:-1], ""):
        assert server.get(path, If_None_Match=other).status == 200


def test_tags_of_different_answers_differ(server: Server) -> None:
    tags = [server.get(path).headers["etag"] for path in CACHED]
    assert len(set(tags)) == len(tags)
    assert all(server.store.version in tag for tag in tags)


@pytest.mark.parametrize("path", ["/v3/scores/999", "/v3/scores/x", "/nowhere"])
def test_errors_are_not_kept_and_never_304(server: Server, path: str) -> None:
    answer = server.get(path, If_None_Match="*")
    assert answer.status in (400, 404)
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("given", ["a", "A-b_c.9", "x" * 64])
def test_well_formed_request_ids_come_back(server: Server, given: str) -> None:
    for path in ("/v3/scores/42", "/v3/scores/x", "/nowhere"):
        answer = server.get(path, X_Request_Id=given)
        assert answer.headers["x-request-id"] == given
        if answer.status >= 400:
            assert answer.json()["instance"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "ü", 'a"b', "a\tb"])
def test_other_request_ids_are_replaced(server: Server, given: str) -> None:
    found = {server.get("/v3/scores/42", X_Request_Id=given).headers["x-request-id"] for _ in range(3)}
    assert len(found) == 3
    assert given not in found


def test_every_answer_names_its_version_and_server(server: Server) -> None:
    asked = [("GET", path) for path in GETS] + [
        ("POST", POSTS[0]),
        ("PUT", GETS[0]),
        ("GET", "/x"),
        ("GET", "/v3/scores/x"),
    ]
    for method, path in asked:
        answer = server.ask(method, path)
        assert answer.headers["kserve-version"] == server.store.version
        assert answer.headers["server"] == "kserve"
        assert "date" in answer.headers
        assert "aiohttp" not in str(answer)
        if answer.status >= 400:
            problem = answer.json()
            assert problem["version"] == server.store.version
            assert problem["status"] == answer.status
            assert set(problem) == {"type", "title", "status", "detail", "instance", "version"}


def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    paths = ["/v3/scores/42", "/v3/scores/999", "/v3/profiles/42", "/healthz", "/v3/scores/x"] * 20
    batch = request("POST", POSTS[0], "Content-Type: application/json", body=b'{"ids":["42"]}')
    with server.connect() as wire:
        wire.send(b"".join(request("GET", path, f"X-Request-Id: {i}") + batch for i, path in enumerate(paths)))
        for i, path in enumerate(paths):
            answer = wire.answer()
            assert answer.headers["x-request-id"] == str(i)
            assert answer.body == server.get(path).body or answer.status >= 400
            assert wire.answer().json()["scores"][0]["score"] == 62.31


def test_a_request_cut_at_every_byte(server: Server) -> None:
    body = b'{"ids":["42"]}'
    data = request("POST", POSTS[0], "Content-Type: application/json", body=body)
    with server.connect() as wire:
        for cut in range(1, len(data)):
            wire.send(data[:cut])
            time.sleep(0.001)
            wire.send(data[cut:])
            assert wire.answer().status == 200


def test_http_1_0(server: Server) -> None:
    with server.connect() as wire:
        wire.send(b"GET /v3/scores/42 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert wire.answer().headers["connection"] == "keep-alive"
        wire.send(b"GET /v3/scores/42 HTTP/1.0\r\n\r\n")
        assert wire.answer().status == 200
        assert wire.seconds_until_closed() < server.settings.keepalive_timeout / 2


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"FETCH / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /v3/scores/42 HTTP/1.1\r\n\r\n",
        b"GET /v3/scores/42 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: \x00\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    ],
)
def test_what_is_not_http(server: Server, data: bytes) -> None:
    with server.connect() as wire:
        wire.send(data)
        answer = wire.answer()
        assert (answer.status, answer.kind) == (400, "malformed-request")
        assert "Traceback" not in answer.body.decode()
        assert wire.seconds_until_closed() < 1


@pytest.mark.parametrize("data", [b"GET /" + b"a" * 9000, b"GET / HTTP/1.1\r\nX: " + b"a" * 9000])
def test_long_lines(server: Server, data: bytes) -> None:
    with server.connect() as wire:
        wire.send(data)
        answer = wire.answer()
        assert (answer.status, answer.kind) == (431, "headers-too-large")


def test_expectations(server: Server) -> None:
    with server.connect() as wire:
        head = ("Content-Type: application/json", "Content-Length: 14", "Expect: 100-continue")
        wire.send(request("POST", POSTS[0], *head))
        assert wire.answer().status == 100
        wire.send(b'{"ids":["42"]}')
        assert wire.answer().status == 200
    odd = server.get("/v3/scores/42", Expect="miracles")
    assert (odd.status, odd.kind) == (417, "expectation-failed")


def test_targets_without_a_path(server: Server) -> None:
    with server.connect() as wire:
        wire.send(request("OPTIONS", "*"))
        assert wire.answer().kind == "not-found"
        wire.send(request("GET", "http://localhost/v3/scores/42"))
        assert wire.answer().status == 200
        wire.send(request("CONNECT", "localhost:80"))
        assert wire.answer().status in (400, 404)


def test_declined_upgrade_keeps_the_connection(server: Server) -> None:
    with server.connect() as wire:
        wire.get("/v3/scores/42", "Connection: upgrade", "Upgrade: websocket")
        wire.get("/v3/scores/7")
        assert wire.answer().json()["id"] == "42"
        assert wire.answer().json()["id"] == "7"


def post_head(*lines: str) -> bytes:
    return request("POST", POSTS[0], "Content-Type: application/json", *lines)


def test_huge_body_is_refused_before_it_is_read(server: Server) -> None:
    with server.connect() as wire:
        wire.send(post_head(f"Content-Length: {1 << 40}"))
        answer = wire.answer()
        assert (answer.status, answer.kind, answer.headers["connection"]) == (413, "body-too-large", "close")


def test_huge_chunked_body_is_refused_at_the_limit(server: Server) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with server.connect() as wire:
        wire.send(post_head("Transfer-Encoding: chunked"))
        with contextlib.suppress(ConnectionError):
            for _ in range(32):
                wire.send(chunk)
        answer = wire.answer()
        assert (answer.status, answer.kind) == (413, "body-too-large")


def test_body_at_the_limit_is_taken(fresh: Server) -> None:
    body = b'{"ids":["42"]}'.ljust(fresh.settings.body_limit)
    assert fresh.post(POSTS[0], body).status == 200
    assert fresh.post(POSTS[0], body + b" ").status == 413


def test_broken_chunks(server: Server) -> None:
    with server.connect() as wire:
        wire.send(post_head("Transfer-Encoding: chunked") + b"zz\r\n")
        answer = wire.answer()
        assert (answer.status, answer.kind) == (400, "malformed-request")


def test_slow_body(fresh: Server) -> None:
    with fresh.connect() as wire:
        start = time.monotonic()
        wire.send(post_head("Content-Length: 14") + b'{"ids"')
        answer = wire.answer()
        assert (answer.status, answer.kind) == (408, "slow-body")
        assert 0.8 * fresh.settings.body_timeout < time.monotonic() - start
        assert wire.seconds_until_closed() < fresh.settings.keepalive_timeout / 2


def test_client_that_leaves_in_the_middle_of_a_body(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    for ending in (socket.SHUT_WR, socket.SHUT_RDWR):
        with server.connect() as wire:
            wire.send(post_head("Content-Length: 14") + b'{"ids"')
            wire.socket.shutdown(ending)
    assert server.get("/healthz").status == 200
    assert not caplog.records


def drip(wire: Wire, data: bytes, pause: float) -> None:
    with contextlib.suppress(ConnectionError):
        for i in range(len(data)):
            wire.send(data[i : i + 1])
            time.sleep(pause)


def is_cut_in_time(wire: Wire, since: float, limit: float) -> bool:
    """By the one time-out that is short: the others last for longer than this client waits."""
    wire.seconds_until_closed()
    return 0.8 * limit < time.monotonic() - since


def test_silent_connection_is_cut(fresh: Server) -> None:
    start = time.monotonic()
    with fresh.connect() as wire:
        assert is_cut_in_time(wire, start, fresh.settings.header_timeout)


def test_dripping_headers_are_cut(fresh: Server) -> None:
    start = time.monotonic()
    with fresh.connect() as wire:
        drip(wire, b"GET /v3/scores/42 HTTP/1.1\r\nHost: x\r\nX: yyyyyyyyyyyyyyyy", 0.05)
        assert is_cut_in_time(wire, start, fresh.settings.header_timeout)


def test_dripping_headers_on_a_kept_alive_connection_are_cut(fresh: Server) -> None:
    with fresh.connect() as wire:
        wire.get("/v3/scores/42")
        assert wire.answer().status == 200
        time.sleep(1.5 * fresh.settings.header_timeout)
        start = time.monotonic()
        drip(wire, b"GET /v3/scores/42 HTTP/1.1\r\nHost: x\r\nX: yyyyyyyyyyyyyyyy", 0.05)
        assert is_cut_in_time(wire, start, fresh.settings.header_timeout)


def test_dripping_behind_a_pipelined_request_is_cut(fresh: Server) -> None:
    with fresh.connect() as wire:
        wire.send(request("GET", "/v3/scores/42") + b"GET /v3/scores/7")
        assert wire.answer().status == 200
        start = time.monotonic()
        drip(wire, b" HTTP/1.1\r\nHost: x\r\nX: yyyyyyyyyyyyyyyyyyyyyyyyyyyy", 0.05)
        assert is_cut_in_time(wire, start, fresh.settings.header_timeout)


def test_slow_but_whole_headers_are_answered(published: Path) -> None:
    """Each within its time, all together not: the clock starts anew."""
    data = request("GET", "/v3/scores/42")
    with serving(published, header_timeout=2.0) as server, server.connect() as wire:
        for _ in range(3):
            drip(wire, data, 0.4 * server.settings.header_timeout / len(data))
            assert wire.answer().status == 200


@pytest.mark.heavy
def test_idle_connection_is_kept_then_closed(published: Path) -> None:
    with serving(published, header_timeout=0.4, keepalive_timeout=2.0) as server, server.connect() as wire:
        wire.get("/v3/scores/42")
        assert wire.answer().status == 200
        time.sleep(1.5 * server.settings.header_timeout)
        start = time.monotonic()
        wire.get("/v3/scores/42")
        assert wire.answer().status == 200
        assert is_cut_in_time(wire, start, server.settings.keepalive_timeout)


def test_body_in_pieces_does_not_start_the_header_clock(fresh: Server) -> None:
    """A body may take longer than headers may, and the idle connection after it is not cut early either."""
    body = b'{"ids":["42"]}'
    with fresh.connect() as wire:
        wire.send(post_head(f"Content-Length: {len(body)}"))
        drip(wire, body, 0.05)
        assert wire.answer().status == 200
        time.sleep(1.5 * fresh.settings.header_timeout)
        wire.get("/v3/scores/42")
        assert wire.answer().status == 200


@pytest.mark.heavy
def test_a_client_that_does_not_read_is_cut(published: Path) -> None:
    with serving(published, send_timeout=0.5) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        body = json.dumps({"ids": [str(i) for i in range(1000)]}).encode()
        client.sendall(request("POST", "/v3/scores/batch", "Content-Type: application/json", body=body) * 100)
        time.sleep(3 * server.settings.send_timeout)
        client.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(1 << 16):
                pass
        assert server.get("/healthz").status == 200


def test_a_rule_of_many_places_holds_nobody_up(server: Server) -> None:
    rule = {"locations": [f"L{i}" for i in range(1000)], "not_locations": [f"M{i}" for i in range(1000)]}
    before = time.process_time()
    assert server.post("/v3/eligibility", {"rule": rule, "ids": ["42"], "count": True}).status == 200
    assert time.process_time() - before < 1
    too_many = {"rule": {"locations": ["x" * 10] * 50_000}, "ids": ["42"]}
    answer = server.post("/v3/eligibility", too_many)
    assert answer.status == 422
    assert len(answer.body) < 2000


def test_a_long_mistake_is_not_repeated_in_full(server: Server) -> None:
    answer = server.post("/v3/eligibility", {"rule": {"x" * 100_000: 1}, "ids": ["42"]})
    assert answer.status == 422
    assert len(answer.body) < 2000
