"""A real server on a thread of its own, a client that sees every byte, and a small day of profiles to serve."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import snapshots
import uvloop
from aiohttp import web
from waiting import PATIENCE

import kserve
from kserve.serving.accepting import Table
from kserve.serving.app import SITE, make_app
from kserve.serving.office import make_office
from kserve.serving.protocol import Runner
from kserve.settings import Settings

LARGEST = 2**64 - 1
OPTED_OUT = 13
CROWD = range(1000, 1400)
FIRST_DAY = datetime(2026, 11, 21, 4, tzinfo=UTC)
DAY = timedelta(days=1)

Row = dict[str, Any]


def rows(shift: float) -> list[Row]:
    """The profiles of one day; each scored one has ``shift`` more points than on day one."""
    known: list[Row] = [
        {
            "profile_id": 42,
            "score": 62.31 + shift,
            "day_change": 0.12,
            "week_change": -0.3,
            "month_change": None,
            "network_score": 50.5,
            "amplification": 12.25,
            "true_reach": 4711,
            "topics": [{"topic": "pizza", "score": 71.5}, {"topic": "zürich", "score": None}],
            "location": "US/New York/New York City",
            "nick": "Joe",
            "tw_id": "12",
            "tw_name": "JoeFernandez",
            "gp_id": "g/1 2",
            "influencers": [7, LARGEST],
            "influencees": [0],
            "influencer_count": 2,
            "influencee_count": 1,
        },
        {"profile_id": 7, "score": None, "day_change": 0.5, "tw_id": "77", "tw_name": "12"},
        {"profile_id": 0, "score": 1.0 + shift},
        {
            "profile_id": LARGEST,
            "score": 90.0 + shift,
            "location": "DE/Berlin",
            "topics": [{"topic": "food", "score": 5.0}],
        },
        {"profile_id": OPTED_OUT, "score": 50.0 + shift, "opted_out": True, "tw_name": "gone"},
    ]
    return known + [{"profile_id": i, "score": 10.0 + (i % 70) + shift} for i in CROWD]


def scores(day_rows: list[Row]) -> dict[int, float | None]:
    """What the served scores of a day must be."""
    return {
        row["profile_id"]: None if row["score"] is None else round(row["score"], 2)
        for row in day_rows
        if not row.get("opted_out")
    }


TOPICS = "topicId,topicSlug,topicDisplayName\n1,food,Food\n2,pizza,Pizza\n10000000000000020305,zürich,Zürich\n"
EDGES = "parentTopicSlug,childTopicSlug\nfood,pizza\n"


def publish(data: Path, day_rows: list[Row], scored_at: datetime) -> str:
    """Build and announce a snapshot of these rows, with the taxonomy; returns its version."""
    data.mkdir(parents=True, exist_ok=True)
    topics, edges = data.with_name("topics.csv"), data.with_name("edges.csv")
    topics.write_text(TOPICS)
    edges.write_text(EDGES)
    return snapshots.publish(data, day_rows, scored_at=scored_at, topics=topics, topic_edges=edges).version


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def kind(self) -> str:
        """The last part of a problem document's type."""
        assert self.headers["content-type"] == "application/problem+json"
        return str(self.json()["type"]).rpartition(":")[2]


RESETS = 5
"""Times that a connection may be reset, one after the other, before that is no chance any more."""

OFFICE = ("/metrics", "/status", "/console")
"""Paths that begin like this are asked of the office."""


class Server:
    """``kserve serve`` without its processes: the same applications and connections, on any free ports."""

    def __init__(self, data: Path, **settings: Any) -> None:
        usual: dict[str, Any] = {"open": True, "shedding": {"on": False}, "drain_timeout": 2}
        self.settings = Settings(data=data, port=0, **(usual | settings))
        self.store = kserve.open(data, settings=self.settings)
        self.loop = uvloop.new_event_loop()
        self.port = self.office_port = 0
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(PATIENCE)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._start())
        self._started.set()
        self.loop.run_forever()

    async def _start(self) -> None:
        app = make_app(self.store, self.settings)
        self.site = app[SITE]
        self.runner = Runner(app, self.site)
        self.port = await self._listen(self.runner)
        self.office = Runner(*make_office(self.settings, Table(1)))
        self.office_port = await self._listen(self.office)

    async def _listen(self, runner: Runner) -> int:
        await runner.setup()
        listening = web.TCPSite(runner, "127.0.0.1", 0)
        await listening.start()
        return listening.port

    async def _stop(self) -> None:
        await asyncio.gather(self.runner.cleanup(), self.office.cleanup())

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self.loop).result(PATIENCE)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()
        self.store.close()

    def connect(self) -> Wire:
        return Wire(self.port)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request on a connection of its own; header names with ``_`` for ``-``."""
        port = self.office_port if path.startswith(OFFICE) else self.port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        with contextlib.closing(connection):
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.ask("POST", path, body, **headers)


class Wire:
    """A bare connection: bytes out, answers in."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._left = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def get(self, path: str, *lines: str) -> None:
        self.send(request("GET", path, *lines))

    def answer(self) -> Answer:
        """The next answer; raises EOFError when the connection is closed first."""
        head, self._left = self._until(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", 0))
        while len(self._left) < length:
            self._more()
        body, self._left = self._left[:length], self._left[length:]
        return Answer(int(first.split()[1]), headers, body)

    def seconds_until_closed(self) -> float:
        """How long the server keeps the connection from now on, if it is sent nothing more."""
        start = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            while self.socket.recv(65536):
                pass
        return time.monotonic() - start

    def _until(self, mark: bytes) -> tuple[bytes, bytes]:
        while mark not in self._left:
            self._more()
        head, _, rest = self._left.partition(mark)
        return head, rest

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError("the server closed the connection")
        self._left += data


def request(method: str, path: str, *lines: str, body: bytes = b"") -> bytes:
    """The bytes of a request."""
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", *lines]
    if body:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@contextlib.contextmanager
def serving(data: Path, **settings: Any) -> Iterator[Server]:
    """A server with settings of its own."""
    server = Server(data, **settings)
    try:
        yield server
    finally:
        server.close()


class Pair(NamedTuple):
    """Two servers of the same data, with the compiled path and without it."""

    compiled: Server
    plain: Server


@contextlib.contextmanager
def paired(data: Path, copy: Path | None = None, **settings: Any) -> Iterator[Pair]:
    """Both, with these settings. ``copy``: the data of the second one, if it is to have its own."""
    with serving(data, **settings) as compiled, serving(copy or data, compiled=False, **settings) as plain:
        for server in (compiled, plain):
            draw_numbers(server)
        yield Pair(compiled, plain)


def draw_numbers(server: Server) -> None:
    """So many that the numbers of all requests to come have the same length."""
    for _ in range(100_000):
        next(server.site.numbers)


def masked(server: Server, data: bytes) -> bytes:
    """Without the date, and the ids that the server itself has given to requests."""
    data = re.sub(rb"\r\nDate: [^\r]{29}\r\n", b"\r\nDate: now\r\n", data)
    return re.sub(server.site.prefix.encode() + rb"-[0-9]{6}\b", b"ID", data)


def read_all(wire: Wire, *parts: bytes, pause: float = 0.002) -> bytes:
    """Everything that is answered to these parts; the server must end the connection."""
    found = bytearray()
    with contextlib.suppress(ConnectionError):
        for part in parts:
            wire.send(part)
            time.sleep(pause)
    with contextlib.suppress(ConnectionError):
        while data := wire.socket.recv(1 << 20):
            found += data
    return bytes(found)


def until_closed(server: Server, *parts: bytes, pause: float = 0.002) -> bytes:
    """The same, on a connection of its own, and masked."""
    with server.connect() as wire:
        return masked(server, read_all(wire, *parts, pause=pause))


def same(pair: Pair, *parts: bytes) -> bytes:
    """What both servers answer until they end the connection, after what may be the last request.

    A connection that is ended while more is coming is reset, and once in a while what its client has not got by then is
    lost: answers that are only cut short are asked for again.
    """
    for _ in range(RESETS):
        found, expected = until_closed(pair.compiled, *parts), until_closed(pair.plain, *parts)
        if found == expected or not (found.startswith(expected) or expected.startswith(found)):
            break
    assert found == expected
    return found
