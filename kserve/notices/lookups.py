"""Looking up the names of partners, whose name servers may hang."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

from aiohttp.abc import AbstractResolver, ResolveResult

LOOK_UPS = 64
"""Names that are looked up at once."""


class Resolver(AbstractResolver):
    """Looks names up in threads that nobody waits for: a look-up that hangs must not keep a server from ending."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(LOOK_UPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a name. Raises OSError."""
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        result: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def end(found: list[ResolveResult] | Exception) -> None:
            self._places.release()
            if result.done():
                return  # who asked has given up
            if isinstance(found, Exception):
                result.set_exception(found)
            else:
                result.set_result(found)

        def work() -> None:
            found = _looked_up(host, port, family)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(end, found)

        threading.Thread(target=work, name="kserve-look-up", daemon=True).start()
        return await result

    async def close(self) -> None:
        """There is nothing to close."""


def _looked_up(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult] | Exception:
    try:
        found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return error
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return [
        ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=protocol, flags=flags)
        for kind, _, protocol, _, address in found
    ]
