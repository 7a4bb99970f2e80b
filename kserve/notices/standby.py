"""Work that one process of a host does while others stand by, in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from abc import ABC, abstractmethod

STANDBY_SECONDS = 1.0
"""How often who stands by looks whether the working one is gone."""


class Standby(ABC):
    """Tries to work until told to stop. Start it after the last fork; it ends with :meth:`stop`, and never by itself.

    ``patience``: seconds that the work may take to end.
    """

    def __init__(self, name: str, patience: float) -> None:
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._patience = patience
        self._ended = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    @abstractmethod
    async def work(self, stop: asyncio.Event) -> None:
        """Work until ``stop``. Raises Busy when another process does."""

    @abstractmethod
    def failed(self, error: Exception) -> None:
        """Say what :meth:`work` raised; it is tried again."""

    def start(self) -> None:
        """Begin, or stand by."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is under way gets a few seconds."""
        self._ended.set()
        if self._loop is not None and self._stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(self._patience)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                asyncio.run(self._begin())
            except Exception as error:
                self.failed(error)
            self._ended.wait(STANDBY_SECONDS)

    async def _begin(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if not self._ended.is_set():
            await self.work(self._stop)
