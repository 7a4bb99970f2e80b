"""The office: what a host is watched and steered by, on an address of its own, off the loops that serve scores.

Metrics, status page, console and health of the host; beside them the sentinel, the notices, and the buyer of leases.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

import uvloop
from aiohttp import web
from msgspec import Struct

from kserve._buckets import Buckets
from kserve._limits import Limits
from kserve._roster import Roster
from kserve._tally import Tally
from kserve.errors import KserveError
from kserve.notices.deliverer import NoticesThread
from kserve.serving import metrics
from kserve.serving.accepting import Door, Table, address_of, listening
from kserve.serving.console import Console
from kserve.serving.health import check_known_answer, drained, limiting, process, seats
from kserve.serving.leases import LeaseState, LeaseThread
from kserve.serving.models import Limiting, Process
from kserve.serving.pages import StatusPage, add, reply
from kserve.serving.problems import Problem
from kserve.serving.protocol import Runner
from kserve.serving.samples import limits_file, tally_file
from kserve.serving.sentinel import Sentinel
from kserve.serving.site import Front, encode
from kserve.settings import Settings
from kserve.snapshots.catalog import Catalog

CONNECTIONS = 512
"""Open connections of an office."""

ORPHAN_SECONDS = 0.5
"""How often it is asked whether the arbiter still lives."""

_HEADERS = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class Worker(Struct, frozen=True):
    """One worker of this server: what it does (`starting`, `open`, `paused`, `draining`), and its connections."""

    pid: int
    state: str
    connections: int


class HostReady(Struct, frozen=True):
    """Some worker takes requests, and the versions that are served answer a known question rightly.

    ``leases``: how the buyer of leases fares; null without Redis.
    """

    status: Literal["ready"]
    versions: list[str]
    wanted: int
    workers: list[Worker]
    limits: Limiting
    leases: LeaseState | None
    processes: list[Process]


class Beside(Protocol):
    """A thread of the office."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End, within seconds."""


def make_office(settings: Settings, places: Table) -> tuple[web.Application, Front]:
    """The application of the office, and what it is served with. ``places``: of the workers that it speaks for."""
    app, front = web.Application(client_max_size=settings.body_limit), Front(settings)
    add(app, front, "/metrics", get=metrics.page(front))
    StatusPage(front).mount(app)
    if settings.console:
        Console(front).mount(app)
    app[HEALTH] = HostHealth(front, places)
    app[HEALTH].mount(app)
    app.cleanup_ctx.append(_beside)
    app[FRONT] = front
    return app, front


FRONT = web.AppKey("front", Front)


async def _beside(app: web.Application) -> AsyncIterator[None]:
    settings = app[FRONT].settings
    tally = Tally(tally_file(settings.data), "office")
    threads = list(_threads(settings, tally))
    for thread in threads:
        thread.start()
        if isinstance(thread, LeaseThread):
            app[HEALTH].leases = thread.state
    yield
    await asyncio.gather(*(asyncio.to_thread(thread.stop) for thread in threads))
    tally.leave()


def _threads(settings: Settings, tally: Tally) -> Iterator[Beside]:
    if settings.sentinel:
        yield Sentinel(Catalog(settings.data), settings)
    yield NoticesThread(settings)
    if settings.redis is not None:
        yield LeaseThread(settings, Limits(limits_file(settings.data)), tally)


class HostHealth:
    """Is the office alive, and does this host serve? Asked in a thread."""

    def __init__(self, front: Front, places: Table) -> None:
        self._front = front
        self._places = places
        self._catalog = Catalog(front.settings.data)
        self._roster = Roster(self._catalog.roster)
        self._buckets = Buckets(Limits(limits_file(front.settings.data)))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kserve-health")
        self.leases: Callable[[], LeaseState | None] = lambda: None

    def mount(self, app: web.Application) -> None:
        """Add the routes."""
        add(app, self._front, "/healthz", get=self._alive)
        add(app, self._front, "/readyz", get=self._ready)
        app.on_cleanup.append(self._stop)

    async def _alive(self, request: web.Request) -> web.Response:
        return reply(self._front, request, 200, b'{"status":"ok"}', dict(_HEADERS))

    async def _ready(self, request: web.Request) -> web.Response:
        if self._front.draining:
            raise drained()
        found = await asyncio.get_running_loop().run_in_executor(self._thread, self._look)
        return reply(self._front, request, 200, encode(found), dict(_HEADERS))

    def _look(self) -> HostReady:
        if not self._places.accepting():
            raise Problem("not-ready", "no worker takes connections")
        places, found = self._places.places(), seats(self._roster)
        ours = {place.pid for place in places}
        versions = sorted({seat.version for seat in found if seat.pid in ours and seat.version is not None})
        for version in versions:
            self._check(version)
        workers = [Worker(place.pid, place.state, place.connections) for place in places]
        processes = [process(seat) for seat in found]
        limits, leases = limiting(self._buckets), self.leases()
        return HostReady("ready", versions, len(self._places), workers, limits, leases, processes)

    def _check(self, version: str) -> None:
        """A file that is gone, or cannot be opened, is no fault of workers that have it mapped."""
        with contextlib.suppress(KserveError, OSError), self._catalog.open(version) as snapshot:
            check_known_answer(snapshot)

    async def _stop(self, app: web.Application) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


HEALTH = web.AppKey("health", HostHealth)


async def serve(settings: Settings, listener: socket.socket, places: Table, stopped: asyncio.Event) -> None:
    """An office on that socket until ``stopped``, then drained."""
    app, front = make_office(settings, places)
    runner = Runner(app, front)
    await runner.setup()
    try:
        await Door(runner, front, listener, Table(1), 0, CONNECTIONS).start()
        await stopped.wait()
    finally:
        await runner.cleanup()


def main(settings: Settings, listener: socket.socket, places: Table) -> None:
    """The office as a process, a child of the arbiter: until SIGTERM, or until the arbiter is gone."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # meant for the arbiter, which tells us
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    uvloop.run(_serve_child(settings, listener, places))


async def _serve_child(settings: Settings, listener: socket.socket, places: Table) -> None:
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # the arbiter held it back until now
    watching = asyncio.create_task(_orphaned(os.getppid(), stopped))
    await serve(settings, listener, places, stopped)
    watching.cancel()


async def _orphaned(parent: int, stopped: asyncio.Event) -> None:
    while os.getppid() == parent:
        await asyncio.sleep(ORPHAN_SECONDS)
    stopped.set()


class OfficeThread:
    """An office in a thread, with a loop of its own, for a server in one process. Raises SettingError at the start."""

    def __init__(self, settings: Settings, places: Table) -> None:
        self._settings = settings
        self._places = places
        self._listener = listening(settings.admin_host, settings.admin_port, "admin_port")
        self.address = address_of(self._listener)
        self._loop = uvloop.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="kserve-office", daemon=True)

    def __enter__(self) -> OfficeThread:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(serve(self._settings, self._listener, self._places, self._stopped))
