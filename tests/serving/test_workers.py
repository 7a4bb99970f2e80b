"""Workers: how connections spread, and what a crash, a reload and a lack of descriptors do to clients."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from serving.hammer import REQUEST, Hammer, answer
from serving.processes import KSERVE, USUAL, Served, servers
from serving.support import request
from waiting import until

pytestmark = pytest.mark.heavy

CONNECTIONS = 64
WORKERS = 3


@pytest.fixture(scope="module")
def server(published: Path) -> Iterator[Served]:
    """With several workers, for tests that leave it as it was."""
    with servers(published, 1, workers=str(WORKERS)) as (found,):
        yield found


@pytest.fixture
def data(published: Path, tmp_path: Path) -> Path:
    """For tests of a server of their own."""
    shutil.copytree(published, tmp_path / "data")
    return tmp_path / "data"


def connect(server: Served, count: int = 1) -> list[socket.socket]:
    return [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(count)]


def ask(connection: socket.socket) -> tuple[int, str, bool]:
    connection.sendall(REQUEST % 1000)
    return answer(connection)


@contextlib.contextmanager
def closing(connections: list[socket.socket]) -> Iterator[list[socket.socket]]:
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


def all_gone(server: Served) -> bool:
    return all(worker["connections"] == 0 for worker in server.ready()["workers"])


def spread(connections: list[socket.socket]) -> list[int]:
    """Connections of each worker."""
    return sorted(Counter(ask(connection)[1] for connection in connections).values())


def is_even(found: list[int]) -> bool:
    """Whether each of the workers is within a quarter of its share."""
    share = CONNECTIONS / WORKERS
    assert sum(found) == CONNECTIONS
    return len(found) == WORKERS and 0.75 * share <= min(found) <= max(found) <= 1.25 * share


def at_once(server: Served, connections: list[socket.socket]) -> None:
    connections += connect(server, CONNECTIONS)


def one_by_one(server: Served, connections: list[socket.socket]) -> None:
    for _ in range(CONNECTIONS):
        connections += connect(server)
        ask(connections[-1])


def after_others_have_gone(server: Served, connections: list[socket.socket]) -> None:
    """Those of one worker are closed, and come again."""
    at_once(server, connections)
    ours = ask(connections[0])[1]
    gone = [connection for connection in connections if ask(connection)[1] == ours]
    for connection in gone:
        connection.close()
        connections.remove(connection)
    until(lambda: sum(worker["connections"] for worker in server.ready()["workers"]) == len(connections))
    connections += connect(server, len(gone))


@pytest.mark.parametrize("come", [at_once, one_by_one, after_others_have_gone])
def test_connections_spread_evenly(server: Served, come: Callable[[Served, list[socket.socket]], None]) -> None:
    """A worker that gets no processor for 10 ms may lose its share: on a busy machine not every time is looked at."""
    even = turn = 0
    while even < 3:
        turn += 1
        assert turn <= 20, f"{even} times even"
        with closing([]) as connections:
            come(server, connections)
            even += is_even(spread(connections))
        until(lambda: all_gone(server))


def test_a_stopped_worker_holds_nobody_up(server: Served) -> None:
    """It has the fewest connections, and takes none."""
    stopped = server.workers[0]
    os.kill(stopped, signal.SIGSTOP)
    try:
        start = time.monotonic()
        with closing(connect(server, 40)) as connections:
            assert {ask(connection)[0] for connection in connections} == {200}
        assert time.monotonic() - start < 10
    finally:
        os.kill(stopped, signal.SIGCONT)
    until(lambda: all_gone(server))


def test_what_moved_is_not_on_the_public_port(server: Served) -> None:
    for path in ("/metrics", "/status", "/status.json", "/console"):
        assert server.get(path, server.port)["type"] == "urn:kserve:problem:not-found"
    refused = server.get("/v3/scores/42", server.office_port)
    assert refused["type"] == "urn:kserve:problem:not-found"
    assert "openapi" not in refused["detail"]  # it has none
    for port in (server.port, server.office_port):
        assert server.get("/healthz", port) == {"status": "ok"}
        assert server.get("/readyz", port)["status"] == "ready"
    assert [(worker["state"], len(server.workers)) for worker in server.ready()["workers"]] == [
        ("open", WORKERS)
    ] * WORKERS


def back(server: Served, dead: int) -> bool:
    found = server.ready()["workers"]
    return dead not in {worker["pid"] for worker in found} and [w["state"] for w in found] == ["open"] * len(found)


def test_a_killed_worker_takes_only_its_own_connections_with_it(server: Served) -> None:
    with Hammer(server.port) as hammer:
        for _ in range(2):
            until(lambda: all(worker["connections"] for worker in server.ready()["workers"]))
            dead = server.workers[0]
            lost = len(hammer.lost)
            os.kill(dead, signal.SIGKILL)
            assert until(lambda dead=dead: back(server, dead)) < max(2.0, server.seconds_to_start)
            broken = {found.worker for found in hammer.lost[lost:]} - {""}
            assert len(broken) <= 1
    assert hammer.refused == []
    assert set(hammer.statuses) == {200}
    assert server.log().count('"worker ended"') >= 2


def test_a_killed_office_comes_back_and_nobody_is_refused(server: Served) -> None:
    office = server.children() - set(server.workers)
    assert len(office) == 1
    with Hammer(server.port, clients=2) as hammer:
        os.kill(*office, signal.SIGKILL)
        assert server.ready()["status"] == "ready"
        assert server.children() - set(server.workers) != office
    assert (hammer.lost, hammer.refused) == ([], [])


def test_a_reload_loses_nothing_and_takes_new_settings(data: Path, tmp_path: Path) -> None:
    toml = tmp_path / "kserve.toml"
    toml.write_text("batch_limit = 5\n")
    body = json.dumps({"ids": [str(n) for n in range(9)]}).encode()

    def reload() -> subprocess.CompletedProcess[str]:
        command = [*KSERVE, "reload", "--data", str(data), "--json"]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def batch(server: Served) -> int:
        lines = ("Content-Type: application/json",)
        with closing(connect(server)) as (connection,):
            connection.sendall(request("POST", "/v3/scores/batch", *lines, body=body))
            return answer(connection)[0]

    with (
        servers(data, 1, workers="2", config=str(toml), drain_timeout="5") as (server,),
        Hammer(server.port) as hammer,
    ):
        before = server.children()
        assert batch(server) == 422
        toml.write_text("batch_limit = 10\n")
        done = reload()
        assert done.returncode == 0, (done, server.log())
        assert [found["pid"] for found in json.loads(done.stdout)["reloaded"]] == [server.pid]
        assert not before & server.children()
        assert batch(server) == 200
        now = server.children()
        toml.write_text("batch_limit = 'many'\n")
        done = reload()
        assert (done.returncode, json.loads(done.stdout)["error"]["slug"]) == (8, "setting")
        assert now == server.children()
    assert (hammer.lost, hammer.refused) == ([], [])
    assert set(hammer.statuses) == {200}
    assert len(hammer.workers) == 4
    events = [json.loads(line)["event"] for line in server.final_log.splitlines() if line.startswith("{")]
    assert [event for event in events if "reloaded" in event] == [
        "reloaded",
        "not reloaded: a server could not start now; see above why",
    ]


def test_nobody_stays_when_the_arbiter_is_killed(data: Path) -> None:
    with servers(data, 1, workers="2") as (server,):
        children = server.children()
        assert len(children) == 3
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: not any(Path(f"/proc/{pid}/stat").exists() for pid in children))


def test_a_worker_that_cannot_start_is_tried_again(data: Path) -> None:
    """Meanwhile the other one serves."""
    with servers(data, 1, workers="2") as (server,):
        current = data / "CURRENT"
        kept = current.read_bytes()
        try:
            current.unlink()
            os.kill(server.workers[0], signal.SIGKILL)
            until(lambda: server.log().count('"worker failed"') >= 2)
            assert server.get("/v3/scores/42")["score"] == 62.31
        finally:
            current.write_bytes(kept)
        until(lambda: len(server.ready()["workers"]) == 2 and server.ready()["workers"][0]["state"] == "open")


def test_a_server_whose_workers_cannot_start_ends(data: Path) -> None:
    """The arbiter looks at the structure of the snapshot, the workers at every byte."""
    (path,) = data.glob("snapshots/*/snapshot.kss")
    whole = bytearray(path.read_bytes())
    path.unlink()
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    environment = os.environ | {f"KSERVE_{name.upper()}": value for name, value in USUAL.items()}
    command = [*KSERVE, "serve", "--port", "0", "--verify-at-open", "full", "--data", str(data)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert ended.returncode == 1
    assert "not a usable snapshot" in ended.stderr
    assert '"listening"' not in ended.stderr


def test_without_descriptors_it_waits_and_goes_on(data: Path) -> None:
    with servers(data, 1) as (server,), closing(connect(server, 4)) as connections:
        assert {ask(connection)[0] for connection in connections} == {200}
        used = len(os.listdir(f"/proc/{server.worker}/fd"))
        limits = resource.prlimit(server.worker, resource.RLIMIT_NOFILE)
        worker = server.worker
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 2, limits[1]))
        with closing(connect(server, 20)) as more:
            until(lambda: "cannot accept connections for now" in server.log())
            time.sleep(0.5)
            assert {ask(connection)[0] for connection in connections} == {200}
            resource.prlimit(worker, resource.RLIMIT_NOFILE, limits)
            assert {ask(connection)[0] for connection in more} == {200}
        assert server.log().count("cannot accept connections for now") == 1
        assert server.log().count("accepting connections again") == 1


def assert_refused_like_others(server: Served, times: int) -> None:
    """Those that are one too many are told what all are told who are turned away."""
    (version,) = server.ready()["versions"]
    waits, names = set(), set()
    for _ in range(times):
        with closing(connect(server)) as (extra,):
            head, _, body = b"".join(iter(lambda: extra.recv(1 << 16), b"")).decode().partition("\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
        document = json.loads(body)
        assert (document["type"], document["status"]) == ("urn:kserve:problem:overloaded", 503)
        assert document["version"] == fields["Kserve-Version"] == version
        assert document["instance"] == fields["X-Request-Id"]
        assert int(fields["Content-Length"]) == len(body)
        assert abs(parsedate_to_datetime(fields["Date"]).timestamp() - time.time()) < 5
        waits.add(int(fields["Retry-After"]))
        names.add(fields["X-Request-Id"])
    assert len(names) == times
    assert waits <= {2, 3, 4}
    assert len(waits) > 1


def test_connections_are_bounded(data: Path) -> None:
    limits = {"workers": "2", "max_connections": "3"}
    with servers(data, 1, **limits) as (server,), closing(connect(server, 6)) as connections:
        assert {ask(connection)[0] for connection in connections} == {200}
        with closing(connect(server)) as (extra,):
            status, _, closes = answer(extra)
            assert (status, closes) == (503, True)
            assert extra.recv(1) == b""
        assert_refused_like_others(server, 20)
        assert {ask(connection)[0] for connection in connections} == {200}
        connections.pop().close()
        until(lambda: sum(worker["connections"] for worker in server.ready()["workers"]) == 5)
        connections += connect(server)
        assert ask(connections[-1])[0] == 200
