"""Who may spend how much: GCRA and a daily quota, in one table for all processes of a host.

With T = period / rate in whole microseconds, rounded up, and tat the time at which a bucket is full again:
``tat = max(tat, now)``, clamped to ``now + burst·T`` in case the limit has changed; ``new = tat + cost·T``; admitted if
``now >= new - burst·T`` and the quota of the UTC day has ``cost`` left; then, and only then, both are charged. Time is
the monotonic clock. The day is that of the wall clock, but never goes back, unless by more than a day.
"""

from os import PathLike
from typing import NamedTuple, Protocol, final

__all__ = [
    "ADDRESS",
    "ADMITTED",
    "ALONE",
    "EXHAUSTED",
    "KEY",
    "LEASED",
    "LIMITED",
    "MEMORY",
    "NEVER",
    "SLOTS",
    "Decision",
    "Limits",
    "interval",
]

KEY: int
ADDRESS: int
"""Kinds of names. The ids of keys are limited as the mode says; addresses always by this host alone."""

ADMITTED: int
LIMITED: int
EXHAUSTED: int
NEVER: int
"""Outcomes: refused by the rate, by the quota, or because the cost is more than burst or quota ever allow."""

MEMORY: int
LEASED: int
ALONE: int
"""Modes: the whole limit; tokens bought from Redis, and those that every host has anyway; limit ÷ hosts."""

SLOTS: int
"""Names that have a bucket at the same time. Beyond, all is admitted, and counted."""

class _Tier(Protocol):
    @property
    def rate(self) -> int: ...
    @property
    def period(self) -> int: ...
    @property
    def burst(self) -> int: ...

class Decision(NamedTuple):
    """What came of one request, and what is left after it."""

    outcome: int
    remaining: int
    """Tokens that may be spent at once now."""
    reset_us: int
    """Microseconds until the burst is whole."""
    retry_us: int
    """Microseconds after which the same is admitted if nobody asks meanwhile; 0: it was, -1: never."""
    left_today: int
    """Tokens of the quota; -1 without one."""
    midnight_us: int
    """Microseconds until the quota is whole; 0 without one."""
    reset_at: int
    """Seconds since 1970, rounded up: when the burst is whole; if less is left of the quota, when that is."""

@final
class Limits:
    """The table in this file, which is made when it is not there and replaced when it is damaged, or older than this
    boot. Without a path, or where the file cannot be made, it is this process's own."""

    path: str | None
    shared: bool
    """Whether other processes see it."""
    def __init__(self, path: str | PathLike[str] | None) -> None: ...
    def take(
        self,
        name: str | bytes,
        tier: _Tier,
        cost: int = 1,
        kind: int = ...,
        now: int | None = None,
        wall: int | None = None,
    ) -> Decision:
        """Charge ``cost`` tokens to the name, of 1 to 16 bytes, if the tier's limit and quota both admit it.

        A cost of 0 only looks, and is always admitted. ``now`` and ``wall``: microseconds of the monotonic clock and
        since 1970, to replay other times than this moment; both or neither. Any thread. Raises ValueError for a name
        or a tier that cannot be counted.
        """

def interval(tier: _Tier) -> int:
    """Microseconds until one token comes back, rounded up: above 10⁵ tokens a second the rate is a little less."""
