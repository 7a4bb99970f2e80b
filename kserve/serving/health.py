"""Is the process alive, does its snapshot answer rightly, and what do the others on this host serve?"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from aiohttp import web
from msgspec import UNSET

from kserve._buckets import Buckets
from kserve._roster import Roster, SeatView
from kserve.errors import KserveError
from kserve.serving.models import Health, Limiting, Process, Ready, Staged
from kserve.serving.problems import Problem
from kserve.serving.samples import MODES
from kserve.serving.site import Call, Handler, Site

if TYPE_CHECKING:
    from kserve._core import Snapshot

RESIDENT_SECONDS = 5.0
"""How long the share in memory is good for: asking the kernel about every page of a big file takes a while."""


class Resident:
    """The share of the served file that is in memory, asked for off the event loop and kept for some seconds."""

    def __init__(self) -> None:
        self._version = ""
        self._share = 0.0
        self._good_until = 0.0

    async def share(self, site: Site, snapshot: Snapshot) -> float:
        """0 to 1, at most ``RESIDENT_SECONDS`` old, of exactly this version."""
        if snapshot.version != self._version or time.monotonic() >= self._good_until:
            share = await asyncio.get_running_loop().run_in_executor(site.slow, snapshot.resident)
            self._version, self._share = snapshot.version, share
            self._good_until = time.monotonic() + RESIDENT_SECONDS
            return share
        return self._share


async def alive(call: Call) -> web.Response:
    """GET /healthz."""
    return call.json(Health("ok"))


def readiness() -> Handler:
    """GET /readyz: 503 while draining, and when the snapshot answers a known question wrongly."""
    resident = Resident()

    async def ready(call: Call) -> web.Response:
        if call.site.draining:
            raise drained()
        check_known_answer(call.snapshot)
        share = await resident.share(call.site, call.snapshot)
        limits = limiting(call.site.buckets)
        found = await asyncio.get_running_loop().run_in_executor(call.site.slow, seats, call.site.roster)
        return call.json(Ready("ready", call.version, share, limits, [process(seat) for seat in found]))

    return ready


def drained() -> Problem:
    """Why who is draining is not ready."""
    return Problem("not-ready", "the server is draining: it finishes what it has and takes no more")


def limiting(buckets: Buckets) -> Limiting:
    """How keys are limited now."""
    state = buckets.state()
    return Limiting(MODES[state.mode], state.hosts)


def seats(roster: Roster) -> list[SeatView]:
    """Who reads from the same data directory; a roster that cannot be read makes nobody unready."""
    try:
        return roster.seats()
    except OSError:
        return []


def process(seat: SeatView) -> Process:
    """A process as others see it."""
    staged = None
    if seat.staged is not None:
        staged = Staged(seat.staged, seat.staged_state, seat.refused or UNSET)
    return Process(seat.pid, seat.role, seat.version, staged, seat.resident)


def check_known_answer(snapshot: Snapshot) -> None:
    """Raises Problem ``not-ready`` unless the snapshot gives the score that the builder wrote down apart from it."""
    try:
        profile_id, expected = snapshot.known_answer()
        found = snapshot.score(profile_id)
    except KserveError as error:
        raise Problem("not-ready", f"the known-answer look-up failed: {error}") from None
    if found != expected:
        raise Problem("not-ready", f"the known-answer look-up of {snapshot.version} gave another score than was built")
