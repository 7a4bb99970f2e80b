"""serve: the server as a command."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request
from pathlib import Path

import pytest
from cli.support import ALONE, ended, process, started

from kserve.snapshots.catalog import Catalog


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_it_is_told_to_end(published: Path, number: signal.Signals) -> None:
    with started("serve", *ALONE, "--json", "--cache-seconds", 7, "--no-warm") as popen:
        assert popen.stdout is not None
        document = json.loads(popen.stdout.readline())
        assert document.keys() == {"address", "admin", "pid"}
        assert document["pid"] == popen.pid
        with urllib.request.urlopen(f"{document['address']}/v3/snapshot", timeout=20) as answer:
            assert answer.headers["Kserve-Version"] == Catalog("data").announced()
            assert answer.headers["Cache-Control"] == "max-age=7"
        result = ended(popen, number)
    assert (result.code, result.out) == (0, "")
    opened, *events = [json.loads(line)["event"] for line in result.err.splitlines()]
    assert "without a key" in opened
    assert events == ["listening", "draining", "stopped"]


@pytest.mark.parametrize("port", ["--port", "--admin-port"])
def test_address_that_is_taken(published: Path, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        error = process("serve", "--port", 0, "--admin-port", 0, port, number, "--open", "--json").error()
    assert (error["slug"], error["exit_code"]) == ("setting", 8)
    assert error["message"].startswith(f"cannot listen on 127.0.0.1, port {number}: ")
    assert error["message"].endswith(f"choose another with {port}")


def test_nothing_to_serve(tmp_path: Path) -> None:
    assert process("serve", *ALONE, "--data", tmp_path, "--json").error()["slug"] == "nothing-published"
