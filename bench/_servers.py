"""Servers for the benchmarks of HTTP, ours and the others', each on the first core; what asks them has the last one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple, Self, cast
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
import psutil

from bench._data import Records
from bench._harness import Child, Run, Skip, plain_environment, say
from bench._peers import RedisServer
from kserve.serving.keys import Keys
from kserve.snapshots.shared import shared_folder

HOST = "127.0.0.1"
START_SECONDS = 60
TIER = {"rate": 1_000_000, "burst": 1_000_000, "priority": "site"}
"""The highest limit there is, which is checked and charged like any other."""

KEYS = 64
"""Keys that batches are asked with in turn: that limit is a million ids a second."""

INDEX_DIGITS = 12
"""Of a key in Redis: redis-benchmark can draw only numbers, of so many digits."""

REDIS_LOAD = 1000  # records in one MSET
NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr error; {user}
{modules}
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; server_tokens off; default_type application/json;
  {http}
  server {{ listen {host}:{port} backlog=1024; {server} }}
}}
"""


class Target(NamedTuple):
    """A server to ask."""

    port: int
    process: subprocess.Popen[bytes]
    log: IO[bytes] | None = None

    def cpu(self) -> float:
        """Seconds of CPU that it and its children have had."""
        seconds = 0.0
        with suppress(psutil.NoSuchProcess):
            whole = psutil.Process(self.process.pid)
            for process in (whole, *whole.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    seconds += sum(process.cpu_times()[:2])
        return seconds

    def wait(self, name: str, ready: Callable[[], bool] | None = None) -> Self:
        """Itself, as soon as it answers. Raises Skip when it does not."""
        deadline = time.monotonic() + START_SECONDS
        while not (ready or self.listens)():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Skip(f"{name} does not start: {self.said()}")
            time.sleep(0.02)
        return self

    def said(self) -> str:
        """The end of what it wrote to its log."""
        if self.log is None:
            return "see above"
        self.log.seek(0)
        return self.log.read()[-2000:].decode(errors="replace")

    def listens(self) -> bool:
        """Whether a connection is accepted."""
        with suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
            return True
        return False


def core(which: int) -> list[str]:
    """What to put before a command that shall run on the first core (0) or the last (-1), where there are several."""
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[which])] if len(cores) > 1 else []


def bind(which: int) -> None:
    """Run this process on that core."""
    os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[which]])


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


@contextmanager
def _running(command: Sequence[str], port: int, environment: dict[str, str]) -> Iterator[Target]:
    with tempfile.TemporaryFile() as log:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        with subprocess.Popen([*core(0), *command], env=environment, **streams) as process:
            try:
                yield Target(port, process, log)
            finally:
                process.terminate()


class Kserve(NamedTuple):
    """``kserve serve`` with one worker, on a data directory of its own. ``keys``: limited as little as can be."""

    data: Path
    target: Target
    keys: list[str]

    def ask(self, path: str, body: bytes | None = None, kind: str = "application/json", key: int = 0) -> bytes:
        """The body of an answer. Raises HTTPError for one that is not 200."""
        headers = {"X-Api-Key": self.keys[key], "Content-Type": kind}
        with urlopen(Request(f"http://{HOST}:{self.target.port}{path}", body, headers), timeout=10) as answer:
            return bytes(answer.read())

    def request(self, path: str, key: int = 0) -> bytes:
        """The bytes of a GET, as short as any client's."""
        return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nX-Api-Key: {self.keys[key]}\r\n\r\n".encode()

    def batch(self, body: bytes, kind: str, key: int = 0) -> bytes:
        """The bytes of a POST to the route of batches."""
        head = f"POST /v3/scores/batch HTTP/1.1\r\nHost: {HOST}\r\nX-Api-Key: {self.keys[key % len(self.keys)]}\r\n"
        return f"{head}Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    def answer(self, path: str) -> bytes:
        """All bytes of the answer to :meth:`request`, its head too."""
        with socket.create_connection((HOST, self.target.port), timeout=10) as connection:
            connection.sendall(self.request(path).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            found = b""
            while data := connection.recv(1 << 16):
                found += data
        return found.replace(b"Connection: close\r\n", b"")

    def ready(self) -> bool:
        """Whether a worker answers from the snapshot."""
        with suppress(URLError, OSError):
            return bool(self.ask("/v3/snapshot"))
        return False


@contextmanager
def kserve(source: Path, keys: int = 1, **settings: Any) -> Iterator[Kserve]:
    """A server of the snapshots in ``source``, with these settings. It sheds nothing: closed load is an overload."""
    data = Path(tempfile.mkdtemp(prefix="serving-", dir=source.parent))
    try:
        _link(source, data)
        made = [Keys(data).create("bench", ["score:read", "batch"], tier="bench")[1] for _ in range(keys)]
        port = free_port()
        ours = {"data": data, "port": port, "admin_port": 0, "workers": 1}
        ours |= {"tiers": json.dumps({"bench": TIER}), "shedding__on": False}
        environment = {f"KSERVE_{name.upper()}": str(value) for name, value in (ours | settings).items()}
        command = [sys.executable, "-P", "-m", "kserve", "serve"]
        with _running(command, port, os.environ | environment) as target:
            found = Kserve(data, target, made)
            target.wait("kserve serve", found.ready)
            yield found
    finally:
        shutil.rmtree(shared_folder(data), ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)


def _link(source: Path, data: Path) -> None:
    """The same published files, and the same order which of them to serve."""
    shutil.copytree(source / "snapshots", data / "snapshots", copy_function=os.link)
    shutil.copy(source / "CURRENT", data)


@contextmanager
def nginx(server: str, http: str = "", modules: Sequence[str] = ()) -> Iterator[Target]:
    """One worker of nginx. Raises Skip without it, or without one of the modules."""
    if shutil.which("nginx") is None:
        raise Skip("nginx is not installed")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="kserve-bench-") as folder:
        user = "user root;" if os.geteuid() == 0 else ""
        loads = "\n".join(f"load_module {module};" for module in modules)
        text = NGINX.format(folder=folder, user=user, modules=loads, http=http, server=server, host=HOST, port=port)
        config = Path(folder, "nginx.conf")
        config.write_text(text)
        with _running(["nginx", "-e", "stderr", "-p", folder, "-c", str(config)], port, plain_environment()) as target:
            yield target.wait("nginx")


@contextmanager
def bare(answer: bytes) -> Iterator[Target]:
    """A protocol of uvloop in Python that answers every read with the same bytes."""
    port = free_port()
    with Child("_servers:serve_bare", answer=answer.decode("latin-1"), port=port) as child:
        yield Target(port, child.process).wait("the bare protocol")


def serve_bare(answer: str, port: int) -> None:
    """In a process of its own."""
    import uvloop

    content = answer.encode("latin-1")

    class Bare(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.write = cast(asyncio.Transport, transport).write

        def data_received(self, _: bytes) -> None:
            self.write(content)

    async def serve() -> None:
        await asyncio.get_running_loop().create_server(Bare, HOST, port, backlog=1024)
        await asyncio.Event().wait()

    bind(0)
    uvloop.run(serve())


@contextmanager
def redis(run: Run) -> Iterator[tuple[RedisServer, Target]]:
    """An empty Redis that listens on a port too. Raises Skip without it."""
    port = free_port()
    server = RedisServer(run, before=core(0), port=port)
    try:
        yield server, Target(port, server.process).wait("redis-server")
    finally:
        server.close()


def load_numbered(server: RedisServer, records: Records) -> None:
    """The records, with their number among all in place of the id: those of the same number are the same profile."""
    say("loading Redis")
    starts = range(0, len(records), REDIS_LOAD)
    server.send((_mset(records, start) for start in starts), len(starts))


def number_key(index: int) -> str:
    """The key of a record in Redis."""
    return f"{index:0{INDEX_DIGITS}}"


def _mset(records: Records, start: int) -> bytes:
    part = records[start : start + REDIS_LOAD]
    places = np.arange(start, start + len(part))[:, None] // 10 ** np.arange(INDEX_DIGITS - 1, -1, -1) % 10
    fields = [("key_size", "S5"), ("key", f"S{INDEX_DIGITS}"), ("value_size", "S7"), ("value", "V12"), ("end", "S2")]
    rows = np.zeros(len(part), dtype=fields)
    rows["key_size"], rows["value_size"], rows["end"] = b"$12\r\n", b"\r\n$12\r\n", b"\r\n"
    rows["key"] = (places + ord("0")).astype(np.uint8).view(f"S{INDEX_DIGITS}")[:, 0]
    rows["value"] = part.packed()
    return b"*%d\r\n$4\r\nMSET\r\n" % (1 + 2 * len(rows)) + rows.tobytes()


def load_texts(server: RedisServer, texts: Iterable[tuple[str, bytes]]) -> None:
    """Values by key."""
    client = server.client()
    with client.pipeline(transaction=False) as pipeline:
        for key, value in texts:
            pipeline.set(key, value)
        pipeline.execute()
    client.close()
