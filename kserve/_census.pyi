"""What a snapshot holds, counted in one pass over the file.

The figures are in the file's own numbers (slots, location and topic numbers, hundredths of a point);
``kserve.snapshots.compare`` gives them their names. Blocks are those of the file: 64 slots each.
"""

from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt

from kserve._core import Snapshot

__all__ = ["COLUMNS", "HEAD", "MEASURES", "RANGE_SLOTS", "Census", "add_rows", "describe", "first_slots", "roll_up"]

_Groups: TypeAlias = tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint32], npt.NDArray[np.void]]
# Of n groups: uint16[n, 101] profiles by whole points of the score (0: without a score), to which uint32[n, 101] adds
# 65536 each; and HEAD[n].

COLUMNS: tuple[str, ...]
"""By the place in ``Census.nulls``."""
MEASURES: tuple[str, ...]
"""By the place in ``Census.measures``."""
HEAD: np.dtype[np.void]
"""Of a group: ``sum`` of the scores in hundredths, ``hash`` of its name (both uint64)."""
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
    def measures(self) -> npt.NDArray[np.uint32]:
        """uint32[4, 65536]: by the place in MEASURES, profiles by the low 16 bits of the value; entries of topics."""
    @property
    def regions(self) -> _Groups:
        """By location number; 0 is unknown."""
    @property
    def topics(self) -> _Groups:
        """By topic number, from 1 on."""
    @property
    def networks(self) -> _Groups:
        """In the order of ``records.NETWORKS``."""
    @property
    def lanes(self) -> npt.NDArray[np.uint64]:
        """uint64[2]: two sums of hashes of (id, score, location path, topics with scores, identities)."""
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
    """What is known of the profiles in n slots. Raises SnapshotError when the file is damaged.

    Arrays of n: ids, scores as they are kept, location numbers, networks (a bit for each), numbers of topics; then the
    topic numbers of the first, of the second, and so on.
    """

def add_rows(rows: npt.NDArray[np.uint16], places: npt.NDArray[np.int64], to: npt.NDArray[np.uint64]) -> None:
    """Add every row, [n, k], to that of its place, [m, k]; a place below 0 is none."""

def roll_up(rows: npt.NDArray[np.uint64], parents: npt.NDArray[np.int64]) -> None:
    """Add every row, [n, k], to that of its parent, which must come before it; a parent below 0 is none."""
