"""A TCP proxy that delays, cuts, freezes and corrupts, to put between a client and a server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

Change = Callable[[bytes], bytes]


def unchanged(data: bytes) -> bytes:
    return data


class Proxy:
    """Forwards ``port`` to ``target``. Its attributes may be set at any time, and hold for what comes after.

    ``delay``: seconds added each way. ``frozen``: bytes are taken, and none come out. ``refusing``: new connections
    are closed at once. ``requests`` and ``answers`` change what passes.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.accepted = 0
        self.delay = 0.0
        self.frozen = False
        self.refusing = False
        self.requests: Change = unchanged
        self.answers: Change = unchanged

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)

    def heal(self) -> None:
        """Forward again as if nothing had been."""
        self.delay, self.frozen, self.refusing = 0.0, False, False
        self.requests = self.answers = unchanged

    def cut(self) -> None:
        """Reset every connection that is open now."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(5)

    async def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        await self._cut()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refusing:
            return writer.transport.abort()
        there = None
        try:
            back, there = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers |= {writer, there}
            await asyncio.gather(
                self._pump(reader, there, lambda data: self.requests(data)),
                self._pump(back, writer, lambda data: self.answers(data)),
            )
        except (OSError, asyncio.CancelledError):  # either side is gone, or the proxy ends
            pass
        finally:
            for side in filter(None, (writer, there)):
                side.transport.abort()
                self._writers.discard(side)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Change) -> None:
        while data := await reader.read(1 << 16):
            if self.delay:
                await asyncio.sleep(self.delay)
            while self.frozen:
                await asyncio.sleep(0.005)
            writer.write(change(data))
            await writer.drain()
        raise ConnectionResetError("the other side is done")
