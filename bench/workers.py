"""How connections spread over workers, and how many are lost when a worker ends: three ways to share one port.

`Door` is kserve's own: one listening socket, and a worker that has more than its share leaves the next connection to
the others. `create_server` is uvloop's, on one listening socket too; `SO_REUSEPORT` gives each worker a socket of its
own, and the kernel draws lots. The workers are the same otherwise: kserve's application on kserve's connections.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import uvloop
from aiohttp import web

import kserve
from bench._data import Data
from bench._harness import Report, Run, interleave, say
from kserve.serving.accepting import Door, Table, listening
from kserve.serving.app import SITE, make_app
from kserve.serving.protocol import Runner
from kserve.settings import Settings

WORKERS = 4
CONNECTIONS = 64
ROUNDS = 7
ENDED, TOY_ENDED = 10, 1  # workers, one after the other, in a round
CLIENTS = 4
SHORT = 0.5  # seconds of short connections in a round
OURS, UVLOOP, REUSEPORT = "Door", "create_server", "SO_REUSEPORT"
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
SPREAD_BAR = 25.0
"""Percent that any worker may be off its share."""


class Workers:
    """Processes that share a port in one of the three ways."""

    def __init__(self, way: str, settings: Settings) -> None:
        self._way, self._settings = way, settings
        self._places = Table(WORKERS)
        self._listener = listening("127.0.0.1", 0) if way != REUSEPORT else _reserved()
        self.port: int = self._listener.getsockname()[1]
        self._pids = [self._fork(place) for place in range(WORKERS)]

    def replace(self, place: int) -> None:
        """End a worker, as a reload does, when another has taken its place."""
        old = self._pids[place]
        if self._way != OURS:
            self._pids[place] = self._fork(place)
        os.kill(old, signal.SIGTERM)
        os.waitpid(old, 0)
        if self._way == OURS:
            self._places.free(place)
            self._pids[place] = self._fork(place)

    def close(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._listener.close()

    def _fork(self, place: int) -> int:
        ready, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                uvloop.run(self._serve(place, told))
            finally:
                os._exit(0)
        os.close(told)
        with open(ready, "rb") as pipe:
            assert pipe.read(1), "the worker did not start"
        return pid

    async def _serve(self, place: int, told: int) -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        with kserve.open(self._settings.data, settings=self._settings) as store:
            app = make_app(store, self._settings)
            runner = Runner(app, app[SITE])
            await runner.setup()
            await self._site(runner, place).start()
            os.write(told, b"1")
            os.close(told)
            await ended.wait()
            await runner.cleanup()

    def _site(self, runner: Runner, place: int) -> web.BaseSite:
        if self._way == OURS:
            return Door(runner, runner.app[SITE], self._listener, self._places, place)
        if self._way == UVLOOP:
            return web.SockSite(runner, self._listener, backlog=1024)
        self._listener.close()
        return web.TCPSite(runner, "127.0.0.1", self.port, reuse_port=True, backlog=1024)


def _reserved() -> socket.socket:
    """Bound, so that the port stays ours, and not listening: no connection comes here."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    found.bind(("127.0.0.1", 0))
    return found


def ask(connection: socket.socket) -> str:
    """Which worker answers. Raises OSError."""
    connection.sendall(REQUEST)
    answer = b""
    while not answer.endswith(b"}"):
        data = connection.recv(4096)
        if not data:
            raise ConnectionResetError("closed without an answer")
        answer += data
    return answer.lower().partition(b"x-request-id: ")[2].partition(b"-")[0].decode()


def furthest(port: int) -> float:
    """Percent that the worker furthest from its share of 64 connections is off."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(CONNECTIONS)]
        counts = Counter(ask(connection) for connection in found)
    share = CONNECTIONS / WORKERS
    each = [*counts.values(), *[0] * (WORKERS - len(counts))]
    time.sleep(0.05)
    return max(abs(count - share) for count in each) / share * 100


class Short:
    """Clients that connect, ask once and close, all the time."""

    def __init__(self, port: int) -> None:
        self.answered = self.lost = 0
        self._port, self._stop, self._lock = port, threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def __enter__(self) -> Short:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with closing(socket.create_connection(("127.0.0.1", self._port), timeout=10)) as connection:
                    ask(connection)
            except OSError:
                failed = 1
            else:
                failed = 0
            with self._lock:
                self.lost += failed
                self.answered += 1 - failed


def rate(workers: Workers) -> float:
    """Short connections a second."""
    with Short(workers.port) as short:
        time.sleep(SHORT)
    return short.answered / SHORT


def lost(workers: Workers, ended: int) -> float:
    """Connections that were refused, or never answered, while so many workers end and others take their place."""
    with Short(workers.port) as short:
        for turn in range(ended):
            workers.replace(turn % WORKERS)
    return float(short.lost)


def measure(run: Run) -> Report:
    """Percent, connections a second, connections."""
    report = Report("workers", f"{WORKERS} workers on one port: how {CONNECTIONS} connections spread, what is lost")
    source = Data(run, min(run.profiles, 100_000)).catalog().data
    settings = Settings(data=source, open=True, drain_timeout=2)
    ended = TOY_ENDED if run.toy else ENDED
    with _all(settings) as ways:
        for title, unit, question, more in (
            ("furthest from its share", "%", lambda found: furthest(found.port), False),
            ("short connections", "/s", rate, True),
            (f"lost while {ended} workers end", "", lambda found: lost(found, ended), False),
        ):
            say(title)
            asked: dict[str, Any] = {way: lambda q=question, f=found: q(f) for way, found in ways.items()}
            values = interleave(asked, run.rounds_or(ROUNDS), warm_up=not run.toy)
            for way, series in values.items():
                report.add(f"{title}: {way}", unit, series, more)
            if unit == "%":
                report.bar("a worker's distance from its share", values[OURS], "at most", SPREAD_BAR, "%")
            elif not more:
                report.bar("connections lost", values[OURS], "at most", 0, "")
    return report


@contextmanager
def _all(settings: Settings) -> Iterator[dict[str, Workers]]:
    with ExitStack() as stack:
        yield {way: stack.enter_context(closing(Workers(way, settings))) for way in (OURS, UVLOOP, REUSEPORT)}
