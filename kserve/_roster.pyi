"""Which process of a host reads which version, and what each has answered: the file ROSTER, mapped by all of them."""

from collections.abc import Callable
from os import PathLike
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt

__all__ = ["PREPARING", "READY", "REFUSED", "RING", "SEATS", "Roster", "Seat", "SeatView", "Served"]

PREPARING: str
READY: str
REFUSED: str
"""States of a staged version."""

RING: int
"""Ids that a seat remembers."""

SEATS: int
"""Processes that have a place; those beyond work without one."""

class Served(NamedTuple):
    """What one process answered from one version. An answer is one profile id that was looked up for a client."""

    answers: int
    scored: int
    unscored: int
    unknown: int
    lowest: int
    """Of the scored: with a score of exactly 1.00."""
    hundredths: int
    """Sum of the scores, in hundredths of a point."""
    squares: int
    """Sum of the squares of the scores, in hundredths of a point."""
    asked: int
    """Profiles whose eligibility was asked for."""
    eligible: int
    requests: int
    """Requests that did not fail by our fault."""
    errors: int
    """Requests that failed by our fault (5xx)."""
    paired: int
    """Different profiles whose eligibility by the same rule is known in the version before too; at most 4,096."""
    were_eligible: int
    """Of the paired: in the version before."""
    are_eligible: int
    """Of the paired: in this one."""

class SeatView(NamedTuple):
    """What a living process said of itself last. Times are seconds since 1970."""

    place: int
    pid: int
    role: str
    """"server" or "reader"."""
    since: float
    address: str
    """Where a server listens; else empty."""
    version: str | None
    """The one that it answers from."""
    switched: float
    """Since when it does."""
    switches: int
    """How often it has switched; with ``place`` and ``since`` it tells one period of answers from another."""
    staged: str | None
    """The version that it was asked to make ready."""
    staged_state: str
    """PREPARING, READY, REFUSED; empty when nothing is staged."""
    refused: str
    """Why the staged version is refused."""
    resident: float | None
    """Share of the served file that is in memory, 0 to 1; None when nobody has looked yet."""
    ids: int
    """Ids that it was ever asked for; the last RING of them are remembered."""
    served: Served
    """From ``version``."""
    previous: str | None
    """The version before."""
    previous_served: Served

    def ready(self, version: str) -> bool:
        """Whether it can answer from that version at once."""

@final
class Seat:
    """The place of this process. Without a path, or where ROSTER cannot be written, nobody sees it.

    Counting is for one thread at a time that has the GIL, costs nanoseconds and touches private memory only;
    what is said otherwise is shown at once, what is counted when :meth:`flush` is called. Answers are counted for the
    version that gave them, if that is the one served now or the one before.
    """

    place: int
    """Number of the place; -1 without one."""
    def __init__(self, path: str | PathLike[str] | None, role: str) -> None: ...
    def leave(self) -> None:
        """Give the place up; whatever is counted from now on is seen by nobody."""
    def renew(self) -> None:
        """Take another place, after a fork."""
    def flush(self) -> None:
        """Show what was counted. May wait for the disk: not for an event loop."""
    def open_to(self, role: str, address: str) -> None:
        """Say what this process does, and where."""
    def serve(self, version: str) -> None:
        """The store answers from this version from now on; what was counted for the one before is kept."""
    def stage(self, version: str | None, state: str = "", reason: str = "") -> None:
        """How far the staged version is; None: nothing is staged."""
    def resident(self, share: float) -> None:
        """Share of the served file that is in memory, 0 to 1."""
    def answered(self, version: str, profile_id: int, points: float | None) -> None:
        """One answer with a score, or without one for an unscored profile."""
    def unknown(self, version: str, profile_id: int) -> None:
        """One answer that there is no such profile."""
    def answered_many(
        self,
        version: str,
        ids: npt.NDArray[np.uint64],
        points: npt.NDArray[np.float64],
        status: npt.NDArray[np.uint8],
    ) -> None:
        """n answers; arrays as in :class:`~kserve.records.Scores`."""
    def asked(self, version: str, profile_id: int, eligible: bool, was_eligible: bool | None = None) -> None:
        """One profile was asked for with a rule. ``was_eligible``: by it, in the version before; None: not known."""
    def succeeded(self, version: str) -> None:
        """One request was answered as it should be."""
    def failed(self, version: str) -> None:
        """One request failed."""

class Roster:
    """All seats of a data directory. Reading needs read permission only, and never makes the file."""

    path: str
    def __init__(self, path: str | PathLike[str]) -> None: ...
    def take(self, role: str) -> Seat:
        """A seat for this process."""
    def seats(self) -> list[SeatView]:
        """The living processes, by place. Raises OSError."""
    def hot_ids(self, limit: int) -> npt.NDArray[np.uint64]:
        """Ids that living processes were asked for lately: at most ``limit``, the most often seen first."""
    def order(self) -> bytes | None:
        """What :meth:`keep_order` kept last."""
    def keep_order(self, decide: Callable[[bytes | None], bytes]) -> None:
        """Keep what ``decide`` makes of what was kept last; one at a time, and on disk when this returns.

        Where ROSTER cannot be written ``decide`` is called all the same. Raises what it raises, ValueError for more
        than 1,536 bytes.
        """
