"""A plain model of one event loop under open arrivals: pools of connections, pauses, and nothing of the real one."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from kserve._shed import Shedder

TICK = 0.005
"""Seconds between two probes."""
RESUMED_AT_ONCE = 32
LOOK = 16
"""Requests after which a pass that lasts long is noticed."""


class Window(NamedTuple):
    """What came of a while; latencies in seconds, rates a second."""

    goodput: float
    p99: float
    turned_away: float
    missed: float
    share: float


class Loop:
    """``service`` and ``refusal``: seconds of computing. ``others``: seconds for which others have the processor, each
    time that this loop has had it for 3 ms.
    """

    def __init__(
        self,
        *,
        service: float = 200e-6,
        refusal: float = 20e-6,
        callers: int = 100,
        connections: int = 10,
        pause: float = 1.0,
        others: float = 0.0,
        seed: int = 1,
    ) -> None:
        self.shedder = Shedder(0.005, 0.1, 2)
        self.now = self.computed = 0.0
        self._service, self._refusal, self._pause, self._others = service, refusal, pause, others
        self._random = random.Random(seed)
        self._connections = connections
        self._idle = [[c + k * connections for c in range(connections)] for k in range(callers)]
        self._readable: deque[tuple[int, float, bool]] = deque()
        self._paused: list[tuple[float, int]] = []
        self._stuck: dict[int, float | None] = {}
        self._next = self._due = self._slice = 0.0
        self._latencies: list[float] = []
        self._refused = self._missed = 0

    def run(self, rate: Callable[[float], float], seconds: float, window: float = 0.5) -> list[Window]:
        """Go on for so long, at ``rate(time)`` arrivals a second."""
        found, began = [], self.now
        while self.now < began + seconds:
            self._once(rate)
            if self.now >= began + window * (len(found) + 1):
                found.append(self._seen(window))
        return found

    def _seen(self, window: float) -> Window:
        times = sorted(self._latencies)
        good = sum(time < 0.05 for time in times)
        p99 = times[int(0.99 * len(times))] if times else 0.0
        seen = Window(good / window, p99, self._refused / window, self._missed / window, self.shedder.share)
        self._latencies, self._refused, self._missed = [], 0, 0
        return seen

    def _once(self, rate: Callable[[float], float]) -> None:
        """One pass of the loop."""
        while self._next <= self.now:
            self._arrive(self._next)
            self._next += self._random.expovariate(rate(self._next))
        probe = self._due if self._due <= self.now else None
        if not self._readable and probe is None:
            self.now = self._slice = min(self._next, self._due)
            return
        self._compute(3e-6)
        for turn in range(len(self._readable)):
            if turn % LOOK == LOOK - 1 and self.now - self._due > TICK:
                self._tell(self._due)
            self._handle(*self._readable.popleft())
        if probe is not None:
            self._tell(probe)
            self._due = self.now + TICK
            self._resume()

    def _arrive(self, at: float) -> None:
        idle = self._idle[self._random.randrange(len(self._idle))]
        if not idle:
            self._missed += 1
            return
        place = self._random.randrange(len(idle))
        idle[place], idle[-1] = idle[-1], idle[place]
        connection = idle.pop()
        if connection in self._stuck:
            self._stuck[connection] = at
        else:
            self._readable.append((connection, at, False))

    def _handle(self, connection: int, arrived: float, stale: bool) -> None:
        caller = connection // self._connections
        self._idle[caller].append(connection)
        if stale:
            self.shedder.refuses(1, caller)
        elif self.shedder.admits(1, caller):
            self._compute(self._service)
            self._latencies.append(self.now - arrived)
            return
        elif self._pause:
            self._stuck[connection] = None
            heapq.heappush(self._paused, (self.now + self._pause * self._random.uniform(0.5, 1), connection))
        self._refused += 1
        self._compute(self._refusal)

    def _resume(self) -> None:
        for _ in range(RESUMED_AT_ONCE):
            if not self._paused or self._paused[0][0] > self.now:
                break
            connection = heapq.heappop(self._paused)[1]
            arrived = self._stuck.pop(connection)
            if arrived is not None:
                self._readable.append((connection, arrived, True))

    def _compute(self, seconds: float) -> None:
        self.now += seconds
        self.computed += seconds
        if self._others and self.now - self._slice > 0.003:
            self.now += self._others
            self._slice = self.now

    def _tell(self, due: float) -> None:
        self.shedder.measured(round((self.now - due) * 1e6), round(self.now * 1e6), round(self.computed * 1e6))
