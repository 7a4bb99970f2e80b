"""Two servers of the same data in one event loop, one without the compiled path, and clients of both that see it all.

Nothing but the transport is made up: connections, parsers, handlers and answers are those of `kserve serve`. A read is
what the test says it is, and it is known when nothing more will happen before the next one. Time is the test's, too: it
stands still while there is anything to do, and jumps to the next timer when there is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import selectors
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import kserve
from kserve.serving.app import SITE, make_app
from kserve.serving.keys import Keys
from kserve.serving.protocol import Connection, Runner, Server
from kserve.settings import Settings, Tier

PATIENCE = 60.0
"""Seconds until a client that waits gives up: longer than every time-out but the one for idle connections."""

SMALL_SEND_BUFFER = 1
"""Bytes: the system takes its least."""

TIERS = {
    "fast": Tier(
        rate=1, period=86_400, burst=1_000_000, quota=10**12, priority="site"
    ),  # so slowly, time changes nothing
    "scarce": Tier(rate=1, period=86_400, burst=40),
}
COMMON: dict[str, Any] = {
    "port": 0,
    "drain_timeout": 0.5,
    "keepalive_timeout": 3600.0,
    "shedding": {"on": False},
    "failures": {"rate": 1_000_000, "period": 1, "burst": 1_000_000},
    "tiers": TIERS,
}


class Heard(NamedTuple):
    """What a client has got, masked, and whether its connection was still open; after each read, and at the end."""

    data: bytes
    states: tuple[tuple[int, bool], ...]
    """(bytes got until then, open) after each read."""


class Clock(selectors.EpollSelector):
    """Lets no time pass by waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = time.monotonic()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0 if timeout else timeout)
        if timeout and not found:
            self.now += timeout
        return found


class Loop(asyncio.SelectorEventLoop):
    """An event loop of which it can be known that nothing happens in it any more."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now

    async def settle(self) -> None:
        """Until there is nothing to do without a read, or without time passing."""
        while self._ready:  # type: ignore[attr-defined]
            await asyncio.sleep(0)


class Transport(asyncio.Transport):
    """What a connection reads from and writes to: one end of a pair of sockets; the client has the other one."""

    def __init__(self, loop: Loop, protocol: Connection, *, slow: bool = False) -> None:
        super().__init__()
        self._loop, self.protocol = loop, protocol
        self._ours, self._client = socket.socketpair()
        for end in (self._ours, self._client):
            end.setblocking(False)
        self.slow = slow
        if slow:
            self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_SEND_BUFFER)
        self.got = bytearray()
        self._unread = b""
        self._unsent = b""
        self._reading, self._closing, self._lost = True, False, False
        self._high, self._low = 65536, 16384
        self._full = False

    # The client's side.

    @property
    def open(self) -> bool:
        return not self._lost

    def send(self, data: bytes) -> None:
        """One read of the server, when it reads."""
        self._unread += data
        if self._reading:
            self._loop.call_soon(self._deliver)

    def half_close(self) -> None:
        """No more from the client. No server of ours goes on then."""
        if not self._closing and not self.protocol.eof_received():
            self.close()

    def take(self) -> None:
        """The client reads whatever is there."""
        if self.open:
            self._receive()
            self._flush()

    def discard(self) -> None:
        """The client is gone."""
        self.abort()

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self._client.recv(1 << 18):
                self.got += data

    # The server's side.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"socket": self._ours, "peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._loop.call_soon(self._deliver)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 65536 if high is None else high
        self._low = self._high // 4 if low is None else low
        self._watch()

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def write(self, data: Any) -> None:
        if self._lost:
            return
        self._unsent += bytes(data)
        if not self.slow:
            self.take()
        self._flush()

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def close(self) -> None:
        if not self._closing:
            self._closing, self._reading = True, False
            self._end_when_sent()

    def abort(self) -> None:
        self._closing, self._reading, self._unsent = True, False, b""
        self._loop.call_soon(self._lose)

    def _deliver(self) -> None:
        if self._unread and self._reading and not self._closing:
            data, self._unread = self._unread, b""
            self.protocol.data_received(data)

    def _flush(self) -> None:
        if self._lost:
            return
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                self._unsent = self._unsent[self._ours.send(self._unsent) :]
        self._watch()
        self._end_when_sent()

    def _watch(self) -> None:
        if not self._full and len(self._unsent) > self._high:
            self._full = True
            self.protocol.pause_writing()
        elif self._full and len(self._unsent) <= self._low:
            self._full = False
            self.protocol.resume_writing()

    def _end_when_sent(self) -> None:
        if self._closing and not self._unsent:
            self._loop.call_soon(self._lose)

    def _lose(self) -> None:
        if not self._lost:
            self._receive()
            self._lost = True
            self.protocol.connection_lost(None)
            self._ours.close()
            self._client.close()


class Twin:
    """One of the two servers."""

    def __init__(self, loop: Loop, data: Path, **settings: Any) -> None:
        self.loop = loop
        self.settings = Settings(data=data, **(COMMON | settings))
        self.store = kserve.open(data, settings=self.settings)

    async def start(self) -> None:
        app = make_app(self.store, self.settings)
        self.site = app[SITE]
        self.runner = Runner(app, self.site)
        await self.runner.setup()
        for _ in range(100_000):  # so that all numbers of requests have the same length
            next(self.site.numbers)
        self._prefix = self.site.prefix.encode()

    async def stop(self) -> None:
        await self.runner.cleanup()
        self.store.close()

    def connect(self, *, slow: bool = False) -> Transport:
        server = self.runner.server
        assert isinstance(server, Server)
        protocol = server()
        transport = Transport(self.loop, protocol, slow=slow)
        protocol.connection_made(transport)
        return transport

    async def hear_on(self, transport: Transport, part: bytes) -> None:
        """One read more, and all that it leads to."""
        await self.loop.settle()
        transport.send(part)
        await self.loop.settle()
        if not transport.slow:
            transport.take()

    async def hear(self, parts: Sequence[bytes], end: str, *, slow: bool = False) -> Heard:
        """What a client gets that sends these parts, each when there is nothing more to come, and ends like this."""
        transport = self.connect(slow=slow)
        states = []
        for part in parts:
            await self.hear_on(transport, part)
            states.append((len(transport.got), transport.open))
        await self._end(transport, end)
        states.append((len(transport.got), transport.open))
        found = Heard(masked(bytes(transport.got), self._prefix), () if slow else tuple(states))
        transport.discard()
        await self.loop.settle()
        return found

    async def _end(self, transport: Transport, end: str) -> None:
        before = -1
        while transport.slow and transport.open and len(transport.got) > before:
            before = len(transport.got)
            transport.take()
            await self.loop.settle()
        transport.slow = False
        if end == "half":
            transport.half_close()
        elif end == "wait":
            await asyncio.sleep(PATIENCE)
        await self.loop.settle()
        if transport.open:
            transport.take()


SECONDS = re.compile(rb"(?<=;t=)\d+|(?<=-Reset: )\d+|(?<=Retry-After: )\d+|(?<=try again in )\d+")


def masked(data: bytes, prefix: bytes) -> bytes:
    """Without what differs from server to server, and from second to second."""
    data = re.sub(rb"\r\nDate: [^\r]{29}\r\n", b"\r\nDate: now\r\n", data)
    data = re.sub(re.escape(prefix) + rb"-[0-9]+\b", b"ID", data)
    return SECONDS.sub(b"", data)


class Twins:
    """Both servers. Each has a copy of the data of its own, and so keys and limits that the other has not."""

    def __init__(self, data: Path, folder: Path, **settings: Any) -> None:
        self.loop = Loop()
        places = [folder / name / "data" for name in ("compiled", "plain")]
        shutil.copytree(data, places[0])
        book = Keys(places[0])
        self.keys = {tier: book.create("maria", ["score:read", "batch"], tier=tier)[1] for tier in TIERS}
        self.keys["batches only"] = book.create("joe", ["batch"], tier="fast")[1]
        shutil.copytree(places[0], places[1])
        self.compiled = Twin(self.loop, places[0], **settings)
        self.plain = Twin(self.loop, places[1], compiled=False, **settings)
        self._run(self.compiled.start)
        self._run(self.plain.start)
        self.n_compared = 0

    def _run(self, what: Callable[[], Any]) -> Any:
        return self.loop.run_until_complete(what())

    def close(self) -> None:
        self._run(self.compiled.stop)
        self._run(self.plain.stop)
        self._run(self.loop.shutdown_default_executor)
        self.loop.close()

    def same(self, parts: Sequence[bytes], end: str = "", *, slow: bool = False) -> Heard:
        """What both answer to these reads, which must be the same."""
        ours, theirs = self.heard(self.compiled, parts, end, slow=slow), self.heard(self.plain, parts, end, slow=slow)
        assert ours == theirs, difference(parts, ours, theirs)
        self.n_compared += 1
        return ours

    def heard(self, twin: Twin, parts: Sequence[bytes], end: str = "", *, slow: bool = False) -> Heard:
        found: Heard = self.loop.run_until_complete(twin.hear(parts, end, slow=slow))
        return found


def difference(parts: Sequence[bytes], ours: Heard, theirs: Heard) -> str:
    """For whom it may concern."""
    asked = "\n".join(f"  {part!r}" for part in parts)
    return f"reads\n{asked}\ncompiled {ours.states}\n  {ours.data!r}\naiohttp {theirs.states}\n  {theirs.data!r}"


@contextlib.contextmanager
def twins(data: Path, folder: Path, **settings: Any) -> Iterator[Twins]:
    """Two servers, until the end of the block."""
    found = Twins(data, folder, **settings)
    try:
        yield found
    finally:
        found.close()


def with_key(data: bytes, key: str) -> bytes:
    """The same, said by somebody who is known. What has no Host, or an odd one, stays as it is."""
    line = b"\r\nX-Api-Key: " + key.encode()
    for host in (b"\r\nHost: x", b"\r\nHost: localhost", b"\r\nHost: hidden"):
        data = data.replace(host + b"\r\n", host + line + b"\r\n")
    return data


WHO = ("open", "fast", "scarce", "batches only", "nobody")


class Everyone(NamedTuple):
    """Servers that ask nobody for a key, and servers that do."""

    unlocked: Twins
    locked: Twins

    def same(self, reads: Sequence[bytes], end: str, slow: bool, who: str) -> Heard:
        """What this one of ``WHO`` is answered, by either; see :meth:`Twins.same`."""
        if who == "open":
            return self.unlocked.same(reads, end, slow=slow)
        key = self.locked.keys.get(who)
        return self.locked.same([with_key(read, key) for read in reads] if key else reads, end, slow=slow)


@contextlib.contextmanager
def everyone(data: Path, folder: Path) -> Iterator[Everyone]:
    """All four servers, until the end of the block. A key is known to the compiled path from its second use on."""
    with twins(data, folder / "open", open=True) as unlocked, twins(data, folder / "locked", open=False) as locked:
        for key in locked.keys.values():
            locked.same([with_key(b"GET /v3/scores/42 HTTP/1.1\r\nHost: x\r\n\r\n", key)])
        yield Everyone(unlocked, locked)
