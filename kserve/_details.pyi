"""Detail records, and the index of identities over them, as the writer needs them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["DETAIL_COLUMNS", "DETAIL_OVERHEAD", "TEXT_COLUMNS", "encode_details", "index_identities"]

TEXT_COLUMNS: tuple[str, ...]
DETAIL_COLUMNS: tuple[str, ...]
DETAIL_OVERHEAD: int

def encode_details(
    slots: npt.NDArray[np.int64],
    texts: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]] | None],
    lists: Sequence[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint64]] | None],
    counts: Sequence[npt.NDArray[np.uint32] | None],
    buffer: npt.NDArray[np.uint8],
    detail_starts: npt.NDArray[np.uint64],
    start: int,
) -> tuple[int, int]:
    """Detail records of the rows that have a slot; the bytes used in ``buffer``, and how many identities they have.

    ``texts``: by TEXT_COLUMNS. ``start``: where in its section the first record will lie.
    """

def index_identities(
    line_bytes: npt.NDArray[np.uint8],
    scores: npt.NDArray[np.uint16],
    detail_starts: npt.NDArray[np.uint64],
    details: npt.NDArray[np.uint8],
    table: npt.NDArray[np.uint64],
    most_conflicts: int,
) -> tuple[int, list[tuple[str, str, int, int]]]:
    """Enter every identity, but what two profiles claim belongs to neither.

    How many were entered, and of the conflicts, at most so many, (column, text, first id, second id).
    """
