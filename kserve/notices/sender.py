"""One HTTP request to a partner, signed as Standard Webhooks has it; everything that it answers is mistrusted."""

from __future__ import annotations

import asyncio
import itertools
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import metadata
from types import TracebackType
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp.abc import AbstractResolver
from standardwebhooks import Webhook

from kserve.notices.deliveries import Outcome
from kserve.notices.incidents import fitted
from kserve.notices.lookups import Resolver
from kserve.notices.targets import Guard

if TYPE_CHECKING:
    from aiohttp.connector import Connection

log = logging.getLogger("kserve.notices")

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0
"""From the connection to the status of the answer."""
BODY_SECONDS = 2.0
BODY_BYTES = 1 << 16
EXCERPT_CHARACTERS = 200
PROVISIONAL = 10
"""Messages of an answer that are read, of which all but the last have a status below 200."""

AGENT = f"kserve-webhooks/{metadata.version('kserve-scores')}"


def headers(id: str, at: datetime, body: str, secrets: Sequence[str]) -> dict[str, str]:
    """The headers of a message that is sent at this time, signed with each secret. ``at`` is aware."""
    moment = at.astimezone(UTC)  # the library takes any other zone's clock for UTC
    return {
        "Content-Type": "application/json",
        "User-Agent": AGENT,
        "webhook-id": id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(Webhook(secret).sign(id, moment, body) for secret in secrets),
    }


class Answer(aiohttp.ClientResponse):
    """An answer that begins in time: a partner that sends provisional ones for ever would keep a core busy."""

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        """Read until the answer proper begins. Raises ClientPayloadError when it does not."""
        protocol = connection.protocol
        assert protocol is not None
        read, begun = protocol.read, itertools.count(1)

        async def counted() -> Any:
            if next(begun) > PROVISIONAL:
                raise aiohttp.ClientPayloadError("one provisional answer after another")
            return await read()

        protocol.read = counted  # type: ignore[method-assign]  # aiohttp has no limit; no connection is used twice
        return await super().start(connection)


class Sender:
    """Connections to partners, a new one for each message. ``private``: allowed to private addresses and to http."""

    def __init__(
        self, private: bool, *, resolver: AbstractResolver | None = None, trust: ssl.SSLContext | None = None
    ) -> None:
        connector = aiohttp.TCPConnector(
            resolver=resolver or Resolver(),
            use_dns_cache=False,
            force_close=True,
            limit=0,
            socket_factory=Guard(private),
            ssl=trust or True,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            response_class=Answer,
        )

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def send(
        self, url: str, id: str, body: str, secrets: Sequence[str], clock: Callable[[], datetime]
    ) -> Outcome:
        """Send a message once. Whatever goes wrong is in the outcome."""
        began = time.monotonic()
        if not secrets:
            return Outcome(error="there is no secret to sign with")
        try:
            async with self._session.post(
                url, data=body.encode(), headers=headers(id, clock(), body, secrets), allow_redirects=False
            ) as response:
                answer = await _excerpt(response)
                return Outcome(
                    status=response.status,
                    answer=answer,
                    error=_complaint(response.status),
                    retry_after=_retry_after(response.headers.get("Retry-After"), clock()),
                    seconds=time.monotonic() - began,
                )
        except TimeoutError:
            return Outcome(error="no answer in time", seconds=time.monotonic() - began)
        except aiohttp.ClientResponseError as error:  # without the URL: a partner may have put a secret in it
            return Outcome(error=_shown(f"no HTTP: {error.message}"), seconds=time.monotonic() - began)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Outcome(error=_shown(f"{error}" or type(error).__name__), seconds=time.monotonic() - began)


def _complaint(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    return "a redirect, which is not followed" if 300 <= status < 400 else f"answered {status}"


async def _excerpt(response: aiohttp.ClientResponse) -> str | None:
    """The beginning of the body; the status counts already, so what fails from here on does not matter."""
    read = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while len(read) < BODY_BYTES and (chunk := await response.content.read(BODY_BYTES - len(read))):
                read += chunk
    except (TimeoutError, aiohttp.ClientError, OSError):
        pass
    finally:
        response.close()
    return _shown(read.decode("utf-8", "replace")) or None


def _shown(text: str) -> str:
    return fitted(text, EXCERPT_CHARACTERS)


def _retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds that a partner asks us to wait, as a number or a date; None when it says nothing that can be used."""
    if value is None:
        return None
    if value.strip().isdecimal() and len(value.strip()) < 10:
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds())
