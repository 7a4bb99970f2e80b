"""What is done to the table of limits, and seen of it, besides decisions.

In the mode ``LEASED`` a key spends tokens that were bought from Redis. The balance of its bucket begins at 0 and may
fall to -(min(burst, quota) ÷ (4·hosts)): what every host may spend without asking. Below 0 it is what the host owes
to Redis.
"""

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt

from kserve._limits import Limits, _Tier

__all__ = ["Bucket", "Buckets", "Demand", "State"]

class Bucket(NamedTuple):
    """What is known of one name."""

    kind: int
    name: str
    full_us: int
    """Microseconds until it is full; what is left depends on the limit."""
    used_today: int
    """Tokens of the quota."""
    leased: int
    """The balance."""
    admitted: int
    """Tokens, since the name has the bucket."""
    refused: int

class Demand(NamedTuple):
    """Keys, arrays of one length. Tokens since the question before.

    ``wants``: the largest cost that a lease did not suffice for; 0: none.
    """

    names: npt.NDArray[np.bytes_]
    admitted: npt.NDArray[np.int64]
    refused: npt.NDArray[np.int64]
    wants: npt.NDArray[np.int64]
    balances: npt.NDArray[np.int64]

class State(NamedTuple):
    """Of the whole table."""

    mode: int
    hosts: int
    used: int
    """Names that have a bucket."""
    failed_open: int
    """Requests that were admitted because there was no bucket for them."""
    evicted: int
    """Names whose bucket was given to another, because it was as good as new."""

@final
class Buckets:
    """All buckets of a table. Any thread."""

    def __init__(self, limits: Limits) -> None: ...
    def set_mode(self, mode: int, hosts: int = 1, seconds: float = 0.0, standing: bool = True) -> None:
        """How keys are limited by all processes of this host from now on.

        ``LEASED`` becomes ``ALONE`` after so many seconds, at most 1,800, unless it is said again. Without
        ``standing`` nothing may be owed. Raises ValueError.
        """
    def deposit(self, name: str | bytes, tokens: int, seconds: float, left: int = 0) -> int | None:
        """Add bought tokens, for at most 1,800 seconds. ``left``: what Redis could still
        sell, which clients are told; below 0 after it has sold more than it does otherwise.

        The new balance; None: not done, because there is no bucket to be had. Raises ValueError.
        """
    def withdraw(self, name: str | bytes) -> int:
        """Take what is left of the bought tokens out again: how many."""
    def note_used(self, name: str | bytes, tokens: int, day: int) -> None:
        """What the fleet has used of the quota of that day, since 1970; nothing happens if that is not today."""
    def demand(self) -> Demand:
        """Keys that were asked for since this was called last, or whose balance is not 0. For one thread."""
    def state(self) -> State:
        """Mode and counts."""
    def show(self, name: str | bytes, kind: int = ...) -> Bucket | None:
        """One bucket; None: this name has none, which is to say that it is full."""
    def all(self) -> list[Bucket]:
        """Every bucket."""
    def measure(
        self, names: Sequence[str], tier: _Tier, picks: npt.NDArray[np.uint32], clock: bool = True
    ) -> tuple[float, int]:
        """For benchmarks: decisions in a loop of C, about the names with these numbers.

        ``clock``: with the time read for each, else once for all. Seconds, and how many were admitted.
        """
