"""Who is let in: who asks, whether the key may, whether there is room, and what it costs. In this order, and only here.

The compiled path decides the same for plain requests, with the same keys, shares and buckets.
"""

from __future__ import annotations

from typing import NamedTuple

from aiohttp import web

from kserve._limits import ADMITTED, Limits
from kserve._shed import CLASS_NAMES
from kserve._tally import Tally
from kserve.serving import ratelimits
from kserve.serving.auth import Authenticator, Caller
from kserve.serving.shedding import Shedding

Fields = dict[str, str]
"""Header fields."""

SITE_READS, PARTNER_READS, BATCHES, ELIGIBILITIES, _CLAIMS, OTHERS = range(len(CLASS_NAMES))
READS = -1
"""One of the first two classes, by the caller's tier."""

NOBODY = 0
"""Without a key nobody can be told from anybody: for shedding, each request is a caller of its own."""


class Access(NamedTuple):
    """What a route asks of its callers.

    ``scope``: None lets in everybody. ``klass``: of shedding; None is never shed. ``flat``: each answer but a 304 costs
    one token; otherwise the handler charges what it costs.
    """

    scope: str | None = None
    klass: int | None = None
    flat: bool = False


READ = Access("score:read", READS, flat=True)
BATCH = Access("batch", BATCHES)
ELIGIBILITY = Access("score:read", ELIGIBILITIES)
DOCUMENT = Access(klass=OTHERS)
HEALTH = Access()


class Admission:
    """Decides on the requests that aiohttp answers."""

    def __init__(self, keys: Authenticator, limits: Limits, shedding: Shedding, tally: Tally) -> None:
        self._keys = keys
        self._limits = limits
        self._shedding = shedding
        self._tally = tally

    def enter(self, request: web.Request, access: Access) -> Caller | None:
        """Who asks; None without a key, where none is needed. Raises Problem."""
        caller = None
        if access.scope is not None:
            caller = self._keys.caller(request)
            self._keys.permit(caller, access.scope)
        if access.klass is not None:
            whom = NOBODY if caller is None else caller.tag
            self._shedding.admit(_class(access.klass, caller), whom, request.protocol)
        return caller

    def charge(self, caller: Caller | None, cost: int) -> Fields:
        """Take tokens; the fields that say what is left. Raises Problem when the limit does not allow it."""
        if caller is None:
            return {}
        decision = self._limits.take(caller.id, caller.limit, cost)
        if decision.outcome != ADMITTED:
            self._tally.limited(caller.number, decision.outcome)
            raise ratelimits.refused(caller.limit, decision, cost)
        return ratelimits.fields(caller.limit, decision)


def _class(klass: int, caller: Caller | None) -> int:
    if klass != READS:
        return klass
    return SITE_READS if caller is not None and caller.limit.priority == "site" else PARTNER_READS
