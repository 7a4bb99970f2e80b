"""The deliverer: what turns acts into notices and sends them. One of a host works, the others stand by."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

from kserve.errors import Busy, KserveError, StorageError
from kserve.notices import deliveries
from kserve.notices.deliveries import Due
from kserve.notices.desk import Desk
from kserve.notices.sender import Sender
from kserve.notices.standby import Standby
from kserve.notices.store import Store
from kserve.notices.webhooks import valid_secrets
from kserve.settings import Settings
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.durable import lock, storage

log = logging.getLogger("kserve.notices")

P = ParamSpec("P")
T = TypeVar("T")

POLL_SECONDS = 0.25
UNDER_WAY = 4
"""Messages under way to one endpoint: a slow partner fills its own places, and nobody else's."""

GRACE_SECONDS = 3.0
"""How long attempts under way may go on when the deliverer ends."""


class Deliverer:
    """Sends what is due, until told to stop. Runs in one event loop; the database is used in a thread of its own."""

    def __init__(self, store: Store, desk: Desk, sender: Sender) -> None:
        self._store = store
        self._desk = desk
        self._sender = sender
        self._database = ThreadPoolExecutor(1, "kserve-notices-db")
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: Counter[str] = Counter()
        self._wake = asyncio.Event()
        self._said = ""
        self.states: Counter[str] = Counter()
        """Where the messages stood after the attempts that were made."""

    async def run(self, stop: asyncio.Event) -> None:
        """Tell and send until ``stop``. Raises StorageError at the beginning; later it waits for storage that fails."""
        stopped = asyncio.create_task(stop.wait())
        try:
            await self._call(deliveries.recover, self._store)
            while not stopped.done():
                self._wake.clear()
                await self._round()
                await self._pause(stopped)
        finally:
            stopped.cancel()
            await self.close()

    async def once(self, event: str | None = None) -> None:
        """Tell, and send what is due now or only one event; wait until every attempt has ended. Raises StorageError."""
        try:
            await self._call(deliveries.recover, self._store)
            await self._call(self._desk.catch_up)
            while await self._start_due(event) or self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self.close()

    async def close(self) -> None:
        """Let attempts under way end, for a while; those that do not are made again by whoever delivers next."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GRACE_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._database.shutdown()

    async def _round(self) -> None:
        try:
            await self._call(self._desk.poll)
            await self._start_due()
            self._said = ""
        except (StorageError, Busy) as error:
            self._say(f"notices wait: {error}")

    async def _start_due(self, event: str | None = None) -> int:
        found = await self._call(deliveries.due, self._store, UNDER_WAY, dict(self._under_way), event)
        for one in found:
            n = await self._call(deliveries.begin, self._store, one)
            self._under_way[one.endpoint] += 1
            task = asyncio.create_task(self._attempt(one, n))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
        return len(found)

    async def _attempt(self, one: Due, n: int) -> None:
        try:
            secrets = await self._call(valid_secrets, self._store, one.endpoint)
            outcome = await self._sender.send(one.url, one.event, one.body, secrets, self._store.clock)
            state = await self._call(deliveries.finish, self._store, one, n, outcome)
            self.states[state] += 1
            level = logging.INFO if outcome.arrived else logging.WARNING
            log.log(level, "%s to %s: %s", one.event, one.endpoint, outcome.error or f"arrived, {outcome.status}")
        except KserveError as error:
            log.error(
                "%s to %s is made again later, as its outcome is not on record: %s", one.event, one.endpoint, error
            )
        finally:
            self._under_way[one.endpoint] -= 1
            self._wake.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("an attempt failed in a way that was not foreseen", exc_info=task.exception())

    def _say(self, text: str) -> None:
        """Once, not at every round."""
        if text != self._said:
            log.error("%s", text)
        self._said = text

    async def _pause(self, stopped: asyncio.Task[Any]) -> None:
        woken = asyncio.create_task(self._wake.wait())
        await asyncio.wait({woken, stopped}, timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        woken.cancel()

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._database, lambda: function(*args, **kwargs))


@asynccontextmanager
async def at_work(settings: Settings) -> AsyncIterator[Deliverer]:
    """The one deliverer of this host. Raises Busy when another process is it, StorageError."""
    with (
        storage(f"delivering from {settings.data}"),
        lock(settings.data / "NOTICES", "delivering notices"),
        Store.of(settings) as store,
    ):
        async with Sender(settings.webhook_private) as sender:
            yield Deliverer(store, Desk(store, Catalog(settings.data)), sender)


class NoticesThread(Standby):
    """A deliverer in a thread of a server. Every office has one; one of the host works, the others stand by."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("kserve-notices", 2 * GRACE_SECONDS)
        self._settings = settings
        self._said = ""

    async def work(self, stop: asyncio.Event) -> None:
        """Deliver until ``stop``."""
        async with at_work(self._settings) as deliverer:
            await deliverer.run(stop)

    def failed(self, error: Exception) -> None:
        """What is said once is not said again."""
        if isinstance(error, Busy):
            self._said = ""
        elif isinstance(error, (KserveError, OSError)):
            self._say(f"notices wait: {error}")
        else:
            log.error("the deliverer failed, and begins again", exc_info=error)

    def _say(self, text: str) -> None:
        if text != self._said:
            log.error("%s", text)
        self._said = text
