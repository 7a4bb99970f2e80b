"""What became of the profiles of a snapshot in the next one, counted in one pass over both files at once."""

from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt

from kserve._census import Census

__all__ = ["EVENTS", "MOVER", "SHIFT", "Pairs"]

_Shifts: TypeAlias = tuple[npt.NDArray[np.void], npt.NDArray[np.uint32]]
# Of n groups: SHIFT[n], and uint32[n] profiles that moved more than 10 points.

EVENTS: tuple[str, ...]
"""What may happen to a profile, by the place in ``Pairs.cases``."""
SHIFT: np.dtype[np.void]
"""Profiles of a group that are scored in both: ``sum`` of new - old (int64), ``both``, ``over5`` points (uint32)."""
MOVER: np.dtype[np.void]
"""``id`` (uint64), ``old`` and ``new`` score (uint16)."""

@final
class Pairs:
    """Counts of what became of the profiles of one snapshot in another; both censuses count along.

    At most ``most_cases`` profiles are remembered for each event.
    """

    def __init__(self, old: Census, new: Census, most_cases: int) -> None: ...
    @property
    def old(self) -> Census: ...
    @property
    def new(self) -> Census: ...
    @property
    def moves(self) -> npt.NDArray[np.uint32]:
        """uint32[19801]: profiles scored in both, by new - old + 9900 hundredths."""
    @property
    def regions(self) -> _Shifts:
        """By location number in the old snapshot; ``topics`` and ``networks`` likewise."""
    @property
    def topics(self) -> _Shifts: ...
    @property
    def networks(self) -> _Shifts: ...
    @property
    def found(self) -> npt.NDArray[np.uint64]:
        """By block of the old snapshot: a bit for each slot whose profile the new one has too."""
    @property
    def both(self) -> int: ...
    @property
    def became_unscored(self) -> int: ...
    @property
    def became_scored(self) -> int: ...
    @property
    def movers(self) -> npt.NDArray[np.void]:
        """MOVER[n <= 100]: the biggest moves, the biggest first, equal ones in the order of the file."""
    @property
    def cases(self) -> list[tuple[npt.NDArray[np.uint64], int]]:
        """By the place in EVENTS: slots of the old snapshot, and how many there would be."""
    def count(self, first_block: int, last_block: int) -> None:
        """Pair the profiles of these blocks of the new snapshot. Raises SnapshotError when a file is damaged."""
    def count_removed(self, found: npt.NDArray[np.uint64], first_block: int, last_block: int) -> None:
        """Count the profiles of these blocks of the old snapshot that are not among the ``found`` of all ranges."""
