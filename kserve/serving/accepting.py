"""Taking connections: one listening socket for all workers of a server, of which each takes its share.

A connection wakes every worker. One that has more than another leaves it to that one, and takes it after all if the
other has not come for some milliseconds; until that one gives a sign of life, nothing more is left to it. How many each
has is in memory that they share; so is who waits, and waiting ends at once when the other has caught up and rings. What
is still to be taken when the last of them stops accepting, is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import mmap
import os
import random
import socket
import struct
from collections.abc import Callable, Mapping
from email.utils import formatdate
from functools import partial
from typing import NamedTuple, cast

from aiohttp import web

from kserve._tally import Counter, Gauge, Tally
from kserve.errors import SettingError
from kserve.serving.patterns import DATE, LENGTH, REQUEST_ID, pattern
from kserve.serving.problems import Problem
from kserve.serving.protocol import Server
from kserve.serving.site import Front, log

BACKLOG = 1024
"""Connections that wait to be taken, at most; the kernel may allow fewer (`net.core.somaxconn`)."""

SEND_BUFFER = 1 << 17
"""Bytes of answers that the kernel keeps for who does not read; it doubles that. By itself it keeps up to 4 MiB."""

PATIENCE_SECONDS = 0.01
"""How long a worker that has more than its share leaves a connection to the one that has the fewest."""

DRY_SECONDS = 0.1
"""Pause after accepting failed for want of file descriptors or memory."""

REFUSED_SECONDS = 0.5
"""How long the answer to a connection that is one too many has to arrive, before the connection is closed."""

REFUSED_AT_ONCE = 64
"""Connections that are being refused; more wait."""

TOO_MANY = "the server has as many connections as it may; keep those that you have open, and try again"

DRY = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

FREE, STARTING, OPEN, PAUSED, DRAINING = range(5)
STATES = ("free", "starting", "open", "paused", "draining")

_WORDS = 8  # of 8 bytes: a line of the cache
_PID, _STATE, _CONNECTIONS, _ACCEPTED, _WAITING, _LIFE = range(6)

_DROP_SYN = struct.pack(
    "=HBBIHBBIHBBIHBBI",
    *(0x30, 0, 0, 13),  # the flags of the TCP header
    *(0x45, 0, 1, 0x02),  # is SYN among them?
    *(0x06, 0, 0, 0),  # drop it
    *(0x06, 0, 0, 0xFFFF_FFFF),
)
_SO_ATTACH_FILTER = 26


class Place(NamedTuple):
    """One worker, as the others see it. ``connections``: open now; ``accepted``: taken since it started."""

    place: int
    pid: int
    state: str
    connections: int
    accepted: int


class Table:
    """The places of the workers of one server, in memory that their forks share. Made before the first fork."""

    def __init__(self, places: int) -> None:
        self._words = memoryview(mmap.mmap(-1, places * _WORDS * 8)).cast("q")
        self._bells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(places)]

    def __len__(self) -> int:
        return len(self._bells)

    def take(self, place: int, pid: int) -> None:
        """For a worker that is about to start."""
        self.free(place)
        self._put(place, _PID, pid)
        self._put(place, _STATE, STARTING)

    def free(self, place: int) -> None:
        """Its worker has ended, however it did."""
        for word in range(_WORDS):
            self._put(place, word, 0)

    def places(self) -> list[Place]:
        """All that somebody has."""
        rows = [self._words[place * _WORDS : (place + 1) * _WORDS].tolist() for place in range(len(self))]
        return [
            Place(place, row[_PID], STATES[row[_STATE]], row[_CONNECTIONS], row[_ACCEPTED])
            for place, row in enumerate(rows)
            if row[_STATE] != FREE
        ]

    def accepting(self) -> int:
        """Workers that take connections, or will as soon as they have file descriptors again."""
        return sum(self._get(place, _STATE) in (OPEN, PAUSED) for place in range(len(self)))

    def state(self, place: int) -> int:
        """One of FREE, STARTING, OPEN, PAUSED, DRAINING."""
        return self._get(place, _STATE)

    def set_state(self, place: int, state: int) -> None:
        """One of FREE, STARTING, OPEN, PAUSED, DRAINING."""
        self._put(place, _STATE, state)

    def show(self, place: int, connections: int, accepted: int) -> None:
        """What a worker has."""
        self._put(place, _CONNECTIONS, connections)
        self._put(place, _ACCEPTED, accepted)

    def live(self, place: int) -> None:
        """This worker looks after its connections."""
        self._put(place, _LIFE, self._get(place, _LIFE) + 1)

    def life(self, place: int) -> int:
        """It changes while a worker does."""
        return self._get(place, _LIFE)

    def least(self, but: int, absent: Mapping[int, int]) -> tuple[int, int] | None:
        """Connections and place of the open worker with the fewest; None when there is no other than ``but``.

        ``absent``: those that are not counted, as long as their life is this one.
        """
        others = (
            (self._get(place, _CONNECTIONS), place)
            for place in range(len(self))
            if place != but and self._get(place, _STATE) == OPEN and absent.get(place) != self.life(place)
        )
        return min(others, default=None)

    def wait(self, place: int, rival: int) -> None:
        """This worker leaves what comes to that one, which must not do the same."""
        self._put(place, _WAITING, 1)
        if self._get(rival, _WAITING):
            os.eventfd_write(self._bells[rival], 1)

    def wait_no_more(self, place: int) -> None:
        """This worker takes connections again."""
        self._put(place, _WAITING, 0)

    def bell(self, place: int) -> int:
        """A descriptor that is readable when the worker has waited for long enough."""
        return self._bells[place]

    def _get(self, place: int, word: int) -> int:
        return self._words[place * _WORDS + word]

    def _put(self, place: int, word: int, value: int) -> None:
        self._words[place * _WORDS + word] = value


def listening(host: str, port: int, what: str = "port") -> socket.socket:
    """A socket that listens there. Raises SettingError; ``what`` names the setting with another port in it."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0]
        remedy = f"; choose another with --{what.replace('_', '-')}" if error.errno == errno.EADDRINUSE else ""
        raise SettingError(f"cannot listen on {host}, port {port}: {reason}{remedy}") from None
    found.setblocking(False)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is accepted has both
    found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    return found


def address_of(listener: socket.socket) -> str:
    """As a URL."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def refuse_new(listener: socket.socket) -> None:
    """Let nobody begin a connection any more; those that have begun to are still made, and can be taken.

    Whoever tries is refused a second later, when the socket is closed. Where the kernel has no socket filters, a client
    that connects in the moment between the last accept and the closing meets a reset connection.
    """
    program = ctypes.create_string_buffer(_DROP_SYN)
    try:
        listener.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_DROP_SYN) // 8, ctypes.addressof(program))
        )
    except OSError as error:
        log.debug("connections that are made at the very end may be lost", error=str(error))


class Door(web.BaseSite):
    """Where one worker takes its connections from the listening socket of all."""

    def __init__(
        self,
        runner: web.BaseRunner,
        front: Front,
        listener: socket.socket,
        table: Table,
        place: int = 0,
        limit: int = 10_000,
        tally: Tally | None = None,
    ) -> None:
        super().__init__(runner)
        self._front = front
        self._tally = tally or Tally(None, "")
        self._listener = listener
        self._table = table
        self._place = place
        self._limit = limit
        self._open = 0
        self._accepted = 0
        self._taking: set[asyncio.Task[None]] = set()
        self._refusing: set[socket.socket] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._absent: dict[int, int] = {}
        """Who did not come when a connection was left to them, and their life then."""
        self._dry = False
        self._stopped = False

    @property
    def name(self) -> str:
        """The address."""
        return address_of(self._listener)

    async def start(self) -> None:
        """Take connections from now on."""
        await super().start()
        self._loop = asyncio.get_running_loop()
        if isinstance(self._runner.server, Server):
            self._runner.server.after_loss = self._lose
        self._loop.add_reader(self._table.bell(self._place), self._rung)
        self._table.set_state(self._place, OPEN)
        self._watch()

    async def stop(self) -> None:
        """Take no more; if no other worker does, then first what is waiting to be taken. Those taken stay open."""
        self._stopped = True
        self._ignore()
        self._loop.remove_reader(self._table.bell(self._place))
        self._table.set_state(self._place, DRAINING)
        self._tally.set(Gauge.DRAINING, 1.0)
        if not self._table.accepting():
            while self._accept():
                pass
        for refused in self._refusing:
            refused.close()
        self._listener.close()
        while self._taking:
            await asyncio.wait(self._taking)
        await super().stop()

    def _show(self) -> None:
        self._table.show(self._place, self._open, self._accepted)
        self._tally.set(Gauge.CONNECTIONS_OPEN, self._open)

    def _lose(self) -> None:
        """A connection has ended."""
        self._open -= 1
        self._show()

    def _watch(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._come)

    def _ignore(self) -> None:
        self._loop.remove_reader(self._listener.fileno())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ignore_for(self, seconds: float, then: Callable[[], None]) -> None:
        self._ignore()
        self._timer = self._loop.call_later(seconds, then)

    def _come(self) -> None:
        """There is a connection to be taken, or there was."""
        self._table.live(self._place)
        rival = self._table.least(self._place, self._absent)
        if rival is not None and self._is_for(rival[0]):
            self._table.wait(self._place, rival[1])
            self._ignore_for(PATIENCE_SECONDS, partial(self._waited, rival[1], self._table.life(rival[1])))
        elif self._open < self._limit:
            self._accept()
        else:
            self._refuse()

    def _is_for(self, theirs: int) -> bool:
        """Whether a worker with so many connections should have the next one."""
        if self._open >= self._limit:
            return theirs < self._limit
        return self._open > theirs + max(1, theirs // 8)

    def _rung(self) -> None:
        """The worker that the connections were left to has more than its share by now."""
        os.eventfd_read(self._table.bell(self._place))
        if self._timer is not None and not self._dry:
            self._end_waiting()

    def _waited(self, rival: int, life: int) -> None:
        """For long enough: nothing more is left to who did not come."""
        self._end_waiting()
        self._absent[rival] = life
        if self._open < self._limit:
            self._accept()

    def _end_waiting(self) -> None:
        self._table.wait_no_more(self._place)
        self._ignore()
        self._watch()

    def _accept(self) -> bool:
        """Whether a connection was taken."""
        taken = self._taken()
        if taken is None:
            return False
        self._open += 1
        self._accepted += 1
        self._tally.add(Counter.CONNECTIONS_ACCEPTED, 1)
        self._show()
        task = self._loop.create_task(self._connect(taken))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)
        return True

    def _taken(self) -> socket.socket | None:
        try:
            taken, _ = self._listener.accept()
        except OSError as error:  # mostly: another worker was faster
            if error.errno in DRY:
                self._run_dry(error)
            return None
        if self._dry:
            self._dry = False
            log.info("accepting connections again")
        taken.setblocking(False)
        return taken

    def _run_dry(self, error: OSError) -> None:
        """Without descriptors nothing can be taken; what is open is served, and some of it will end."""
        if not self._stopped:
            self._table.set_state(self._place, PAUSED)
            self._ignore_for(DRY_SECONDS, self._try_again)
        if not self._dry:
            self._dry = True
            log.error("cannot accept connections for now", error=error.strerror, connections=self._open)

    def _try_again(self) -> None:
        self._table.set_state(self._place, OPEN)
        self._ignore()
        self._watch()

    async def _connect(self, taken: socket.socket) -> None:
        assert self._runner.server is not None
        try:
            await self._loop.connect_accepted_socket(self._runner.server, taken)
        except OSError:  # it is gone already
            taken.close()
            self._lose()

    def _refuse(self) -> None:
        """This connection is one too many, here and everywhere: say so, and close it."""
        if len(self._refusing) >= REFUSED_AT_ONCE:
            self._ignore_for(DRY_SECONDS, self._end_waiting)
            return
        taken = self._taken()
        if taken is None:
            return
        self._tally.add(Counter.CONNECTIONS_REFUSED, 1)
        try:
            taken.send(too_many(self._front))
            taken.shutdown(socket.SHUT_WR)
        except OSError:
            taken.close()
            return
        self._refusing.add(taken)
        self._loop.call_later(REFUSED_SECONDS, self._close, taken)

    def _close(self, refused: socket.socket) -> None:
        """With what it has sent read, or the kernel would take the answer back."""
        self._refusing.discard(refused)
        with contextlib.suppress(OSError):
            refused.recv(1 << 16)
        refused.close()


def too_many(front: Front) -> bytes:
    """What a connection beyond the setting ``max_connections`` gets, without being asked."""
    least = front.settings.shedding.retry_after
    headers = {"Retry-After": str(random.randint(least, 2 * least)), "Connection": "close"}
    problem = Problem("overloaded", TOO_MANY, headers=headers, close=True)
    nobody = cast(web.BaseRequest, None)
    _, head, body = pattern(front.refuse(problem, nobody, REQUEST_ID, front.version()))
    number = f"{front.prefix}-{next(front.numbers)}".encode()
    body = body.replace(REQUEST_ID.encode(), number)
    for gap, text in ((REQUEST_ID, number), (LENGTH, b"%d" % len(body)), (DATE, formatdate(usegmt=True).encode())):
        head = head.replace(gap.encode(), text)
    return head + body
