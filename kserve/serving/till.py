"""The till: the two scripts in Redis, their messages sealed and their answers checked. Redis is known only here."""

from __future__ import annotations

import asyncio
import hashlib
import struct
import time
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from kserve.errors import SettingError
from kserve.serving.books import Sold
from kserve.settings import Settings

SECOND = 1_000_000
DAY = 86_400 * SECOND

HOST_KEPT = 10 * SECOND
"""µs that a host is counted in after it was last heard of."""

SHARDS = 16
"""Hash tags that the records of a cluster are spread over. Without a cluster there is one."""

CONNECTIONS = 4
FLEET = "kserve:{fleet}"
SUM = 40
HEAD = SUM + 16
ALLOWED_OPTIONS = ("db", "ssl_", "username", "password")
"""What an address may have behind its question mark: nothing that makes a client try again, or wait longer."""


class Damaged(RedisError):
    """An answer that is not one to the question."""


def client_of(settings: Settings) -> Redis | RedisCluster:
    """A client that tries once, and drops every connection that an answer did not come on. Raises SettingError."""
    url = settings.redis or ""
    options = parse_qs(urlsplit(url).query)
    for name in options:
        if not name.startswith(ALLOWED_OPTIONS):
            raise SettingError(f"setting redis: the address may not have the option {name[:64]!r}")
    common: dict[str, Any] = {
        "socket_timeout": settings.redis_timeout,
        "socket_connect_timeout": settings.redis_timeout,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "driver_info": None,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    try:
        if settings.redis_cluster:
            return RedisCluster.from_url(url, max_connections=SHARDS + 1, **common)
        pool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=settings.redis_timeout, **common
        )
        return Redis.from_pool(pool)
    except (ValueError, RedisError):
        raise SettingError("setting redis: not an address such as redis://user:password@host:6379/0") from None


class Till:
    """The two scripts on one client: sealed messages out, answers checked before they are believed.

    ``clock``: µs since 1970 by Redis's clock, at its last answer.
    """

    clock = 0.0

    def __init__(self, settings: Settings, host: bytes) -> None:
        self._host = host
        self._number = 0
        self._client = client_of(settings)
        here = resources.files(__package__)
        self._leases = self._client.register_script((here / "leases.lua").read_text())
        self._fleet = self._client.register_script((here / "fleet.lua").read_text())

    async def open(self) -> None:
        """Learn where a cluster has what. To be done once, before anything else: calls at the same time upset it."""
        await self._client.initialize()

    async def buy(self, records: Sequence[str], rows: Iterable[tuple[int, ...]], ttl: int) -> list[Sold]:
        """What was sold of each record.

        ``rows``: ten numbers for each record, as the script names them. ``ttl``: µs that Redis counts leases for.
        Raises RedisError, OSError.
        """
        number = self._next()
        body = struct.pack("<8sddd", self._host, number, ttl, DAY)
        body += b"".join(struct.pack("<10d", *row) for row in rows)
        total = hashlib.sha1(" ".join(records).encode() + b" " + body).hexdigest()
        answer = await self._leases(keys=list(records), args=[total, body])
        found = self._opened(answer, number, 4)
        if any(row[0] < 0 for row in found):
            raise Damaged("Redis has carried out a later message of this host")
        return [Sold(*map(int, row)) for row in found]

    async def heartbeat(self, kept: int = HOST_KEPT) -> int:
        """Hosts of the fleet, this one included unless ``kept`` is 0. Raises RedisError."""
        number = self._next()
        answer = await self._fleet(keys=[FLEET], args=[self._host, number, kept])
        return int(self._opened(answer, number, 1)[0][0])

    def _next(self) -> int:
        """The number of a message: greater than that of any before it, also of an earlier process of this host."""
        self._number = max(self._number + 1, time.monotonic_ns() // 1000)
        return self._number

    def _opened(self, answer: Any, number: int, width: int) -> list[tuple[float, ...]]:
        """The rows of an answer. Raises Damaged if it is not whole, or to another question."""
        if not isinstance(answer, bytes) or len(answer) < HEAD or (len(answer) - HEAD) % (8 * width):
            raise Damaged("an answer of Redis has the wrong form")
        body = answer[SUM:]
        if hashlib.sha1(body).hexdigest().encode() != answer[:SUM]:
            raise Damaged("an answer of Redis was damaged on the way")
        told, self.clock = struct.unpack_from("<dd", body)
        if told != number:
            raise Damaged("an answer of Redis belongs to another question")
        return list(struct.iter_unpack(f"<{width}d", answer[HEAD:]))

    async def aclose(self) -> None:
        """Drop all connections, whatever state they are in."""
        closing = [self._client.aclose()]
        if isinstance(self._client, RedisCluster):  # whose own way does nothing once a call has failed
            nodes = self._client.nodes_manager
            closing += [node.disconnect() for node in (*nodes.nodes_cache.values(), *nodes.startup_nodes.values())]
        await asyncio.gather(*closing, return_exceptions=True)


def told(error: BaseException, url: str | None) -> str:
    """An error in words, without what must not be told: the address may have a password in it."""
    text = f"{type(error).__name__}: {error}"[:300] if str(error) else type(error).__name__
    given = urlsplit(url or "").password or ""
    for secret in filter(None, (url, given, unquote(given))):
        text = text.replace(secret, "***")
    return text
