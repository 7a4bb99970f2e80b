"""Turning away for little those who were turned away just now.

Whoever goes on asking while the server has no room would have every request parsed and every key checked, which costs
nearly as much as an answer. But a read that differs from the one before it on the same connection in nothing but the id
at the end of its path is of the same caller and the same class: when those are not served, it need not be looked at.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import TYPE_CHECKING, NamedTuple, cast

from aiohttp import web

from kserve._tally import AIOHTTP, ROUTES, TIER_NONE
from kserve.serving.patterns import DATE, LENGTH, REQUEST_ID, pattern
from kserve.serving.problems import Problem
from kserve.serving.shedding import DETAIL

if TYPE_CHECKING:
    from kserve.serving.shedding import Connection
    from kserve.serving.site import Site

LONGEST = 2048
"""Bytes of a request that is remembered."""

ROUTES_OF = {
    b"GET /v3/scores/": ROUTES.index("score"),
    b"GET /v3/profiles/": ROUTES.index("profile"),
    b"GET /v3/topics/": ROUTES.index("topic"),
}
"""By the start of a request for it: routes whose path ends with what is asked for."""

TIME_UNKNOWN = -1
_WAIT = "~A"
_END = b"\r\n\r\n"
_NO_ID = frozenset(b" /?#%\r\n")
_SINGULAR = (b"x-request-id", b"connection", b"content-length", b"transfer-encoding", b"expect", b"upgrade")
"""Fields by which two answers may differ."""


class Refused(NamedTuple):
    """A request that was turned away: what stands before and behind the id, who asked, and for what."""

    start: bytes
    rest: bytes
    route: int
    klass: int
    caller: int

    def is_like(self, data: bytes) -> bool:
        """Whether these bytes are one request that differs in nothing but the id."""
        if len(data) > LONGEST or not (data.startswith(self.start) and data.endswith(self.rest)):
            return False
        middle = data[len(self.start) : len(data) - len(self.rest)]
        return bool(middle) and _NO_ID.isdisjoint(middle)


def remembered(data: bytes, klass: int, caller: int) -> Refused | None:
    """What the requests that will be like this one have in common; None when it is not a plain one."""
    start = data[: data.find(b"/", 8) + 1]
    route = ROUTES_OF.get(start)
    end = data.find(b" HTTP/1.1\r\n", len(start))
    if route is None or end < 0 or not _NO_ID.isdisjoint(data[len(start) : end]) or data.find(_END) != len(data) - 4:
        return None
    rest = data[end:]
    folded = rest.lower()
    if any(b"\n" + name in folded for name in _SINGULAR):
        return None
    return Refused(start, rest, route, klass, caller)


class Refusals:
    """The answer to those who are turned away, as bytes, made by what writes all answers."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._made_for: tuple[str | None, int] = (None, 0)
        self._head = self._body = ""

    def answer(self, refused: Refused, connection: Connection) -> bytes | None:
        """The bytes for one more of what was refused; None when there is room for it now, or when the server drains."""
        if self._site.draining or not self._site.shedding.still_refuses(refused.klass, refused.caller, connection):
            return None
        self._site.tally.count(refused.route, 503, TIER_NONE, AIOHTTP, TIME_UNKNOWN)
        return self._bytes()

    def _bytes(self) -> bytes:
        """With a number, a Retry-After and a date of its own."""
        site = self._site
        version, second = site.version(), int(time.time())
        if (version, second) != self._made_for:
            self._make(version, second)
        body = self._body.replace(REQUEST_ID, name := f"{site.prefix}-{next(site.numbers)}")
        head = self._head.replace(REQUEST_ID, name).replace(LENGTH, str(len(body)))
        return f"{head.replace(_WAIT, str(site.shedding.shedder.retry_after()))}{body}".encode()

    def _make(self, version: str | None, second: int) -> None:
        problem = Problem("overloaded", DETAIL, headers={"Retry-After": _WAIT})
        _, head, body = pattern(self._site.refuse(problem, cast(web.Request, None), REQUEST_ID, version))
        self._head = head.decode().replace(DATE, formatdate(second, usegmt=True))
        self._body = body.decode()
        self._made_for = (version, second)
