"""Clients that mean harm, by the thousand, against a server in its own process: it goes on answering the others."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from serving.processes import Served, servers
from serving.support import CROWD as CROWD_IDS
from serving.support import Wire, request
from waiting import until

pytestmark = pytest.mark.heavy

CROWD = 1000
MIB = 1 << 20
PATIENCE = 5.0
"""Seconds that a decent client may wait meanwhile, on a machine that has other work too."""

HEAD = b"GET /v3/scores/42 HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v3/scores/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SETTINGS = {
    "open": "true",
    "workers": "1",
    "header_timeout": "3",
    "body_timeout": "3",
    "send_timeout": "3",
    "shedding__on": "false",
}


@pytest.fixture(scope="module")
def attacked(published: Path) -> Iterator[Served]:
    """A server with short time-outs, and descriptors enough for both sides."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    with servers(published, 1, **SETTINGS) as (server,):
        yield server
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def crowd(server: Served, size: int = CROWD, receive_bytes: int | None = None) -> Iterator[list[socket.socket]]:
    """So many connections."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(size):
            client = stack.enter_context(socket.socket())
            if receive_bytes is not None:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            client.settimeout(20)
            client.connect(("127.0.0.1", server.port))
            found.append(client)
        yield found


def memory(server: Served) -> float:
    """MiB that the server and its workers have."""
    whole = psutil.Process(server.pid)
    return sum(process.memory_info().rss for process in (whole, *whole.children(recursive=True))) / MIB


def connections(server: Served) -> int:
    """Open ones to the workers."""
    workers = psutil.Process(server.pid).children(recursive=True)
    return sum(len([c for c in worker.net_connections() if c.status == "ESTABLISHED"]) for worker in workers)


def answers(server: Served) -> float:
    """Seconds that a decent client waits for its score; the worst of some."""
    worst = 0.0
    for _ in range(20):
        start = time.monotonic()
        assert server.get("/v3/scores/42")["score"] == 62.31
        worst = max(worst, time.monotonic() - start)
    return worst


def all_closed(clients: list[socket.socket], seconds: float) -> None:
    """Every connection is ended by the server within that time."""
    end = time.monotonic() + seconds
    for client in clients:
        client.settimeout(max(end - time.monotonic(), 0.01))
        with contextlib.suppress(ConnectionResetError):
            while client.recv(1 << 16):
                pass


def trickle(clients: list[socket.socket], part: bytes, seconds: float) -> None:
    """A byte now and then on each, as long as the server takes them."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for client in clients:
            with contextlib.suppress(OSError):
                client.send(part)
        time.sleep(0.3)


@pytest.mark.parametrize(
    ("start", "part"),
    [
        (HEAD, b"X-A: b\r\n"),
        (HEAD + b"X-Long: ", b"a"),
        (POST + b"Content-Length: 900000\r\n\r\n", b"["),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n[\r\n"),
    ],
    ids=["headers", "one header", "a body", "chunks"],
)
def test_the_slow_by_the_thousand(attacked: Served, start: bytes, part: bytes) -> None:
    before = memory(attacked)
    with crowd(attacked) as clients:
        for client in clients:
            client.send(start)
        assert answers(attacked) < PATIENCE
        trickle(clients, part, 2)
        assert answers(attacked) < PATIENCE
        all_closed(clients, 20)
    assert memory(attacked) - before < 64


def test_those_who_do_not_read_by_the_thousand(attacked: Served) -> None:
    before = memory(attacked)
    ids = json.dumps({"ids": [str(number) for number in CROWD_IDS]}).encode()
    asked = request("POST", "/v3/scores/batch", "Content-Type: application/json", body=ids) * 15
    with crowd(attacked, receive_bytes=2048) as clients:
        for client in clients:
            client.send(asked)
        assert answers(attacked) < 2 * PATIENCE
        assert memory(attacked) - before < 256
        until(lambda: connections(attacked) < CROWD // 20, 40)  # cut, though nobody has read a byte


def test_half_open_connections(attacked: Served) -> None:
    with crowd(attacked) as clients:
        for client in clients[: CROWD // 2]:
            client.shutdown(socket.SHUT_WR)
        assert answers(attacked) < PATIENCE
        all_closed(clients, 20)  # those that never say anything too


def test_connections_that_come_and_go(attacked: Served) -> None:
    before = memory(attacked)
    for _ in range(5):
        with crowd(attacked) as clients:
            for client in clients[::2]:
                client.send(HEAD)
    assert answers(attacked) < PATIENCE
    assert memory(attacked) - before < 32


def status(server: Served, sent: bytes) -> int:
    """Of the answer to these bytes."""
    with Wire(server.port) as wire:
        wire.send(sent)
        return wire.answer().status


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"X-Long: " + b"a" * 8192 + b"\r\n\r\n",
        b"GET /v3/scores/" + b"4" * 8192 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        HEAD + b"a" * 8192 + b": b\r\n\r\n",
        HEAD + b"".join(b"X-%d: b\r\n" % number for number in range(200)) + b"\r\n",
    ],
    ids=["an 8 KB header", "an 8 KB path", "an 8 KB name", "200 headers"],
)
def test_heads_that_are_too_large(attacked: Served, sent: bytes) -> None:
    for _ in range(50):
        assert status(attacked, sent) in {400, 431}
    assert answers(attacked) < PATIENCE


def test_a_head_without_end(attacked: Served) -> None:
    grown = [memory(attacked)]
    while len(grown) < 10 and (len(grown) < 3 or grown[-1] - grown[-2] >= 32):
        with crowd(attacked, 50) as clients:
            for client in clients:
                with contextlib.suppress(OSError):
                    for _ in range(400):
                        client.send(b"X-A: " + b"b" * 4000 + b"\r\n" if client.fileno() % 2 else b"a" * 4000)
            assert answers(attacked) < PATIENCE
        grown.append(memory(attacked))
    assert grown[-1] - grown[-2] < 32  # it takes what it needs, and no more then


def test_a_flood_of_chunks(attacked: Served) -> None:
    before = memory(attacked)
    flood = POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 100_000
    with crowd(attacked, 8) as clients:
        for client in clients:
            with contextlib.suppress(OSError):
                client.sendall(flood)
        assert answers(attacked) < PATIENCE
    assert memory(attacked) - before < 64


def test_bodies_over_the_limit(attacked: Served) -> None:
    before = memory(attacked)
    for _ in range(30):
        assert status(attacked, POST + b"Content-Length: 2000000000\r\n\r\n" + b"[" * 100_000) == 413
    assert memory(attacked) - before < 32


def test_a_deep_pipeline_waits_in_the_kernel(attacked: Served) -> None:
    before = memory(attacked)
    asked = request("GET", "/v3/profiles/42") * 200
    with crowd(attacked, 100) as clients:
        for client in clients:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(50):
                    client.send(asked)
        assert answers(attacked) < PATIENCE
        assert memory(attacked) - before < 128


def test_memory_is_flat(attacked: Served) -> None:
    attacks: list[Callable[[], object]] = [
        lambda: status(attacked, HEAD + b"X-Long: " + b"a" * 9000 + b"\r\n\r\n"),
        lambda: status(attacked, POST + b"Content-Length: 3\r\n\r\n[1]"),
        lambda: status(attacked, request("GET", "/v3/scores/42")),
        lambda: status(attacked, b"\x16\x03\x01 nonsense\r\n\r\n"),
    ]
    for attack in attacks * 100:
        attack()
    before = memory(attacked)
    for attack in attacks * 300:
        attack()
    assert memory(attacked) - before < 8
