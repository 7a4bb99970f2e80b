"""Partners as real HTTP servers, a clock that can be set, and acts in a log."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from waiting import until

from kserve.snapshots.log import Entry, Log

V1 = "20260110T040000Z-00000001"
V2 = "20260111T040000Z-00000002"
V3 = "20260112T040000Z-00000003"


@dataclass
class Clock:
    """A clock that stands still until it is moved."""

    time: datetime = datetime(2026, 1, 12, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def move(self, **distance: float) -> None:
        self.time += timedelta(**distance)


@dataclass
class Request:
    """What a partner was sent."""

    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Partner:
    """A server on 127.0.0.1. ``answers`` are (status, headers, body), the last for ever, after ``delay`` seconds."""

    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=lambda: [(200, {}, b"ok")])
    delay: float = 0.0
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    url: str = ""

    def wait(self, count: int) -> list[Request]:
        """The requests, once there are so many."""
        until(lambda: len(self.requests) >= count)
        return list(self.requests)


@contextmanager
def serving(partner: Partner) -> Iterator[Partner]:
    class Handler(BaseHTTPRequestHandler):
        def setup(self) -> None:
            partner.connections += 1
            super().setup()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            names = {name.lower(): value for name, value in self.headers.items()}
            partner.requests.append(Request(names, body, time.monotonic()))
            time.sleep(partner.delay)
            status, headers, answer = partner.answers[0] if len(partner.answers) == 1 else partner.answers.pop(0)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(answer))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 100

        def handle_error(self, *_: object) -> None:
            """Who asked is gone."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    partner.url = f"http://127.0.0.1:{server.server_port}/hook"
    try:
        yield partner
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def announce(data: Path, version: str, previous: str | None = None) -> Entry:
    """An announcement, logged and carried out."""
    entry = act(data, "announce", version, previous=previous)
    (data / "CURRENT").write_text(f"{version}\n")
    return entry


def act(data: Path, name: str, version: str | None = None, why: str | None = None, **seen: Any) -> Entry:
    """An act in the log."""
    return Log(data / "log.jsonl").append(name, by="tester", version=version, why=why, seen=seen)


def python(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs a script."""
    words = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
