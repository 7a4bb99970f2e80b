"""What a snapshot holds, counted in one pass over the file.

The figures are in the file's own numbers (slots, location and topic numbers, hundredths of a point);
``kserve.snapshots.compare`` gives them their names. Blocks are those of the file: 64 slots each.
"""

from typing import final

import numpy as np
import numpy.typing as npt

from kserve._core import Snapshot

__all__ = ["COLUMNS", "GROUP", "RANGE_SLOTS", "Census", "describe", "first_slots"]

COLUMNS: tuple[str, ...]
"""By the place in ``Census.nulls``."""
GROUP: np.dtype[np.void]
"""A group of profiles: ``sum`` of the scores (uint64), ``bins`` by whole points (uint32[101]; bin 0: no score)."""
RANGE_SLOTS: int
"""Slots of the longest range that one Census may count."""

@final
class Census:
    """Counts of a snapshot, or of a part of it; of one thread at a time.

    ``like``: another census of the same snapshot, which has hashed its words already.
    """

    def __init__(self, snapshot: Snapshot, like: Census | None = None) -> None: ...
    @property
    def snapshot(self) -> Snapshot: ...
    @property
    def scores(self) -> npt.NDArray[np.uint32]:
        """uint32[65536]: profiles by their score as it is kept; the last are the unscored."""
    @property
    def nulls(self) -> npt.NDArray[np.uint64]:
        """By the place in COLUMNS: profiles without a value. 0 for a column that the snapshot does not have."""
    @property
    def details(self) -> npt.NDArray[np.uint32]:
        """uint32[1024]: profiles by the fields of their detail record, a bit for each."""
    @property
    def regions(self) -> npt.NDArray[np.void]:
        """GROUP by location number; 0 is unknown."""
    @property
    def topics(self) -> npt.NDArray[np.void]:
        """GROUP by topic number, from 1 on."""
    @property
    def networks(self) -> npt.NDArray[np.void]:
        """GROUP[4], in the order of ``records.NETWORKS``."""
    @property
    def lanes(self) -> npt.NDArray[np.uint64]:
        """uint64[2]: two sums of hashes of (id, score, location path, topics with scores)."""
    def count(self, first_block: int, last_block: int) -> None:
        """Count the profiles of these blocks. Raises SnapshotError when the file is damaged."""

def first_slots(snapshot: Snapshot, limit: int) -> npt.NDArray[np.uint64]:
    """The slots of the first profiles in the order of the file, which is that of the ids' hashes; at most so many."""

def describe(
    snapshot: Snapshot, slots: npt.NDArray[np.uint64]
) -> tuple[
    npt.NDArray[np.uint64],
    npt.NDArray[np.uint16],
    npt.NDArray[np.uint32],
    npt.NDArray[np.uint8],
    npt.NDArray[np.uint8],
    npt.NDArray[np.uint16],
]:
    """What is known of the profiles in n slots of a snapshot that a Census has counted.

    Arrays of n: ids, scores as they are kept, location numbers, networks (a bit for each), numbers of topics; then the
    topic numbers of the first, of the second, and so on.
    """
