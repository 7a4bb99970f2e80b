"""The server as processes: what it prints, how it drains, what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving.support import Wire, request
from waiting import PATIENCE, until

SCRIPT = """
import sys
from kserve.serving import protocol
from kserve.serving.supervisor import run
protocol.LAST_REQUEST_SECONDS = 2.0
from kserve.settings import Settings
run(Settings.model_validate_json(sys.argv[1]))
"""


USUAL = {"port": 0, "admin_port": 0, "workers": 1, "open": True}


class Process:
    """A server with one worker, with its address read from its log."""

    def __init__(self, data: Path, **settings: Any) -> None:
        given = json.dumps({"data": str(data), **USUAL, **settings})
        self.popen = subprocess.Popen([sys.executable, "-c", SCRIPT, given], stderr=subprocess.PIPE, text=True)
        assert self.popen.stderr is not None
        assert "without a key" in json.loads(self.popen.stderr.readline())["event"]
        self.first = json.loads(self.popen.stderr.readline())
        assert self.first["event"] == "listening"
        self.port = int(self.first["address"].rpartition(":")[2])
        self._wires: list[Wire] = []

    def connect(self) -> Wire:
        self._wires.append(Wire(self.port))
        return self._wires[-1]

    def close(self) -> None:
        for wire in self._wires:
            wire.socket.close()
        self.popen.kill()
        self.popen.wait()
        assert self.popen.stderr is not None
        self.popen.stderr.close()

    def signal(self, number: int) -> float:
        self.popen.send_signal(number)
        return time.monotonic()

    def log(self) -> list[dict[str, Any]]:
        assert self.popen.stderr is not None
        return [json.loads(line) for line in self.popen.stderr]

    def refuses_connections(self) -> bool:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port), 5):
            return False
        return True


@contextlib.contextmanager
def process(data: Path, **settings: Any) -> Iterator[Process]:
    started = Process(data, **settings)
    try:
        yield started
    finally:
        started.close()


def wait_until_read(*wires: Wire) -> None:
    """What was sent before on connections that the server has taken: these are answered after it was read."""
    for wire in wires * 2:
        wire.get("/healthz")
        assert wire.answer().status == 200


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drain(published: Path, number: int) -> None:
    body = b'{"ids":["42"]}'
    head = request("POST", "/v3/scores/batch", "Content-Type: application/json", f"Content-Length: {len(body)}")
    with process(published, drain_timeout=50, body_timeout=50) as server:
        idle, kept, busy = server.connect(), server.connect(), server.connect()
        wait_until_read(kept, busy)
        busy.send(head + body[:5])
        wait_until_read(kept)
        start = server.signal(number)
        until(server.refuses_connections)
        kept.get("/readyz")
        answer = kept.answer()
        assert (answer.status, answer.kind, answer.headers["connection"]) == (503, "not-ready", "close")
        assert kept.seconds_until_closed() < 10
        time.sleep(max(0.0, start + 2.2 - time.monotonic()))
        busy.send(body[5:])
        answer = busy.answer()
        assert answer.json()["scores"][0]["score"] == 62.31
        assert answer.headers["connection"] == "close"
        assert idle.seconds_until_closed() < 10
        assert server.popen.wait(PATIENCE) == 0
        assert time.monotonic() - start < 40
        assert [line["event"] for line in server.log()] == ["draining", "stopped"]


@pytest.mark.heavy
def test_drain_answers_everything_that_was_pipelined(published: Path) -> None:
    with process(published, drain_timeout=50) as server:
        wire = server.connect()
        wire.get("/healthz")
        assert wire.answer().status == 200
        wire.send(request("GET", "/v3/scores/42") * 2000)
        server.signal(signal.SIGTERM)
        answers = []
        with contextlib.suppress(EOFError):
            while True:
                answers.append(wire.answer())
        assert len(answers) == 2000
        assert {answer.status for answer in answers} == {200}
        assert server.popen.wait(PATIENCE) == 0


def ask_until_told_to_stop(wire: Wire, answered: list[int]) -> None:
    """One request after the other, as long as the server does not say that it closes the connection."""
    connection = ""
    while connection != "close":
        wire.get("/v3/scores/42")
        answer = wire.answer()
        answered.append(answer.status)
        connection = answer.headers.get("connection", "")


@pytest.mark.heavy
def test_drain_under_load_loses_no_request(published: Path) -> None:
    with process(published, drain_timeout=50) as server, ThreadPoolExecutor(8) as pool:
        answered: list[int] = []
        clients = [pool.submit(ask_until_told_to_stop, server.connect(), answered) for _ in range(8)]
        until(lambda: len(answered) > 200)
        server.signal(signal.SIGTERM)
        for client in clients:
            client.result(PATIENCE)
        assert set(answered) == {200}
        assert server.popen.wait(PATIENCE) == 0


def half_asked(server: Process) -> None:
    """A request is being read, and its end does not come."""
    wire, other = server.connect(), server.connect()
    wait_until_read(wire, other)
    wire.send(request("POST", "/v3/scores/batch", "Content-Type: application/json", "Content-Length: 9"))
    wait_until_read(other)


@pytest.mark.heavy
def test_drain_ends_in_time(published: Path) -> None:
    with process(published, drain_timeout=1, body_timeout=60) as server:
        half_asked(server)
        start = server.signal(signal.SIGTERM)
        assert server.popen.wait(PATIENCE) == 0
        assert 0.8 < time.monotonic() - start < 30
        log = server.log()
        assert [line["event"] for line in log] == ["draining", "drain timed out", "stopped"]
        assert log[1]["requests_cut"] == 1


def test_second_signal_ends_at_once(published: Path) -> None:
    with process(published, drain_timeout=30, body_timeout=60) as server:
        half_asked(server)
        server.signal(signal.SIGTERM)
        until(server.refuses_connections)
        start = server.signal(signal.SIGTERM)
        assert server.popen.wait(PATIENCE) == 128 + signal.SIGTERM
        assert time.monotonic() - start < 20


@pytest.mark.heavy
def test_logs_hold_no_ids_and_no_scores(published: Path) -> None:
    with process(published) as server, server.connect() as wire:
        for path in ("/v3/scores/42", "/v3/profiles/42", "/v3/scores/x", "/nowhere"):
            wire.get(path)
            assert wire.answer().status in (200, 400, 404)
        wire.socket.close()
        server.signal(signal.SIGTERM)
        assert server.popen.wait(PATIENCE) == 0
        log = server.log()
        assert [line["event"] for line in log] == ["draining", "stopped"]
        assert "62.31" not in str(log)


def run_to_its_end(data: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    given = json.dumps({"data": str(data), **USUAL, **settings})
    return subprocess.run([sys.executable, "-c", SCRIPT, given], capture_output=True, text=True, timeout=60)


def test_taken_port(published: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_to_its_end(published, port=port)
        assert ended.returncode != 0
        assert f"SettingError: cannot listen on 127.0.0.1, port {port}" in ended.stderr


def test_nothing_to_serve(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    ended = run_to_its_end(tmp_path / "data")
    assert ended.returncode != 0
    assert "NothingPublished" in ended.stderr


def test_pure_python_parser_is_refused(published: Path) -> None:
    given = json.dumps({"data": str(published), "port": 0})
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, given],
        env={**os.environ, "AIOHTTP_NO_EXTENSIONS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode != 0
    assert "C parser is not loaded" in ended.stderr
