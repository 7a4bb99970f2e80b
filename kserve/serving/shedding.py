"""Turning requests away so that the others are answered in time: what the loop's delay is, and what follows from it.

Three things, for three kinds of too much:

- *Shedding* proper, for a loop that has too much to do. A probe goes the way of a request through the loop, and how
  long it takes decides who is served (``kserve._shed``).
- *Flight*, for handlers that wait for something of ours, a thread or a database: how many may, tunes itself.
- *Pauses*: the connection of one who was turned away is not read for a moment. Who comes back before Retry-After waits
  in the kernel, at no cost to those who are served.
"""

from __future__ import annotations

import asyncio
import fcntl
import heapq
import itertools
import math
import random
import termios
import time
from array import array
from typing import TYPE_CHECKING, Any, Protocol

from kserve._shed import CLASS_NAMES, Shedder, now_us
from kserve._tally import Gauge, Tally, Time
from kserve.serving.problems import Problem

if TYPE_CHECKING:
    from kserve import settings

DETAIL = "the server has more to do than it can; this caller may come back after the seconds of Retry-After"
"""What everyone is told who is turned away, whoever writes the answer."""

PROBE_SECONDS = 0.005
"""Between the end of a probe and the start of the next."""

PAUSE_SECONDS = 1.0
"""At most, and half of it at least. Never more than half of the shortest Retry-After: who obeys does not notice."""

RESUMED_AT_ONCE = 32
"""Connections that are read again after one probe; the others follow after the next."""

MOST_PAUSED = 4096
"""Connections that are not read at the same time; those beyond are answered, but read on."""

SHOW_EVERY = 20
"""Probes between two updates of what metrics show."""

HOUR = 3600
READS = (0, 1)
"""Classes whose handlers wait for nothing."""


class Connection(Protocol):
    """What is known here of aiohttp's protocol, and of the compiled path's."""

    transport: Any
    _reading_paused: bool
    _buffer_paused: bool

    def turned_away(self, klass: int, caller: int) -> None:
        """A request of this class and caller was, just now."""


class Shedding:
    """One for each event loop. ``tally``: where this process counts."""

    def __init__(self, given: settings.Shedding, tally: Tally) -> None:
        self.shedder = Shedder(given.delay, given.interval, given.retry_after)
        self.flight = Flight()
        self.on = given.on
        self._tally = tally
        self._pause = min(PAUSE_SECONDS, given.retry_after / 2)
        self._paused: list[tuple[float, int, Connection, Any]] = []
        """A heap: until when, and which."""
        self._pauses = itertools.count()
        self.stale: set[Connection | None] = set()
        """Those whose pause is just over, and who sent something meanwhile: it is too old to be served."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due_us = 0
        self._probes = 0

    def admit(self, klass: int, caller: int, connection: Any = None) -> None:
        """Raises Problem ``overloaded`` for a request that is turned away; its :class:`Connection` is then paused.

        ``klass``: the number of its class in CLASS_NAMES. ``caller``: 64 bits that stay the same for a caller.
        """
        stale = connection in self.stale
        if stale or not self.flight.has_room(klass):
            self.shedder.refuses(klass, caller)
        elif self.shedder.admits(klass, caller):
            return
        self._turned_away(klass, None if stale else connection)
        if connection is not None:
            connection.turned_away(klass, caller)
        raise self.overloaded()

    def still_refuses(self, klass: int, caller: int, connection: Connection) -> bool:
        """Whether one who was turned away on this connection before is so again; then it is counted, like any other."""
        stale = connection in self.stale
        if stale:
            self.shedder.refuses(klass, caller)
        elif self.shedder.peeks(klass, caller):
            return False
        self._turned_away(klass, None if stale else connection)
        return True

    def _turned_away(self, klass: int, connection: Connection | None) -> None:
        self._tally.shed(klass)
        if connection is not None:
            self.pause(connection)

    def overloaded(self) -> Problem:
        """What one who is turned away is told."""
        return Problem("overloaded", DETAIL, headers={"Retry-After": str(self.shedder.retry_after())})

    def pause(self, connection: Connection) -> None:
        """Leave what this client sends in the kernel, for a moment."""
        if self._loop is None or len(self._paused) >= MOST_PAUSED:
            return
        transport = connection.transport
        if transport is None or not transport.is_reading():
            return
        transport.pause_reading()
        until = time.monotonic() + self._pause * random.uniform(0.5, 1.0)
        heapq.heappush(self._paused, (until, next(self._pauses), connection, transport))

    def start(self) -> None:
        """Begin to measure the running loop, when the setting is on."""
        if self.on:
            self._loop = asyncio.get_running_loop()
            self._begin()

    def stop(self) -> None:
        """End it, and read all connections again."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop = None
        self.shedder.expect(0)
        self.stale.clear()
        self._resume(math.inf, len(self._paused))

    def _begin(self) -> None:
        """The next probe is a request that comes at its due time..."""
        if self._loop is not None:
            self._due_us = now_us() + round(PROBE_SECONDS * 1e6)
            self.shedder.expect(self._due_us)
            self._timer = self._loop.call_later(PROBE_SECONDS, self._read)

    def _read(self) -> None:
        """...is read when the loop gets round to it, and wakes aiohttp's task for the connection..."""
        if self._loop is not None:
            self._loop.call_soon(self._handled)

    def _handled(self) -> None:
        """...which runs the handler now."""
        now = now_us()
        delay = max(now - self._due_us, 0)
        self.shedder.renew(int(time.time()) // HOUR)
        self.shedder.measured(delay, now)
        self._tally.time(Time.DELAY_OF_LOOP, 1000 * delay)
        self.stale.clear()
        self._resume(time.monotonic(), RESUMED_AT_ONCE)
        self._probes += 1
        if self._probes % SHOW_EVERY == 0:
            self._show()
        self._begin()

    def _resume(self, now: float, most: int) -> None:
        """Read on where the pause is over, unless aiohttp itself has a reason not to."""
        while most and self._paused and self._paused[0][0] <= now:
            most -= 1
            _, _, connection, transport = heapq.heappop(self._paused)
            if connection.transport is transport and not (connection._reading_paused or connection._buffer_paused):
                if _unread(transport):
                    self.stale.add(connection)
                transport.resume_reading()

    def _show(self) -> None:
        self._tally.set(Gauge.LOOP_DELAY, self.shedder.delay)
        self._tally.set(Gauge.CONCURRENCY_LIMIT, self.flight.limit)
        self._tally.set(Gauge.IN_PROGRESS, self.flight.waiting)
        for klass, share in enumerate(self.shedder.kept):
            self._tally.set(Gauge.KEPT_SITE + klass, share)


def _unread(transport: Any) -> int:
    """Bytes that wait in the kernel."""
    waiting = array("i", [0])
    fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, waiting)
    return waiting[0]


class Flight:
    """Handlers that wait for something of ours, and how many may.

    A gradient limit. How long a wait takes while hardly anyone waits is the measure; where waits take more than twice
    as long the limit shrinks with their ratio, else it grows by its square root. The last class is turned away at the
    limit, each one before it a fifth of it later.
    """

    FEWEST, MOST, FIRST = 4.0, 1000.0, 16.0
    TOLERANCE = 2.0
    PATIENCE = 0.2
    """How much of the way to a new limit one wait moves the old one, and one alone the measure."""

    def __init__(self) -> None:
        self.limit = self.FIRST
        self.waiting = 0
        self._alone = 0.0
        """Seconds of a wait when at most half of FEWEST wait."""

    def has_room(self, klass: int) -> bool:
        """Whether one more of this class may wait; reads never do, and are never asked to."""
        return klass in READS or self.waiting < self.limit * (2 - klass / (len(CLASS_NAMES) - 1))

    async def run(self, work: asyncio.Future[Any]) -> Any:
        """What ``work`` ends in; it is in flight until then."""
        began, before = time.monotonic(), self.waiting
        self.waiting += 1
        try:
            return await work
        finally:
            self.waiting -= 1
            self._learn(time.monotonic() - began, before)

    def _learn(self, seconds: float, before: int) -> None:
        if before <= self.FEWEST / 2:
            self._alone += (self.PATIENCE if self._alone else 1.0) * (seconds - self._alone)
        if 2 * before < self.limit:
            return  # so few say nothing of the limit
        gradient = min(max(self.TOLERANCE * self._alone / max(seconds, 1e-9), 0.5), 1.0)
        wanted = self.limit * gradient + math.sqrt(self.limit)
        self.limit += self.PATIENCE * (wanted - self.limit)
        self.limit = min(max(self.limit, self.FEWEST), self.MOST)
