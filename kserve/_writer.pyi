"""Rows into the slots of a candidate file, by the same ``layout.pxd`` that readers use."""

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from os import PathLike

import numpy as np
import numpy.typing as npt

from kserve.snapshots.columns import Columns
from kserve.vocabulary import TopicRow

__all__ = ["ROWS_PER_BLOCK", "Writer", "differences"]

ROWS_PER_BLOCK: int

class Writer:
    """One candidate file in the making.

    ``path`` must not exist yet. ``rows_at_most`` bounds the profiles; ``columns`` are the input's columns and decide
    which sections there are. Call :meth:`add` for every batch, then :meth:`finish`, and :meth:`close` in any case.
    All raise OSError when the file system fails.
    """

    profiles: int
    def __init__(self, path: str | PathLike[str], rows_at_most: int, columns: Collection[str]) -> None: ...
    def add(self, batch: Columns, duplicate: int) -> npt.NDArray[np.uint8]:
        """Take the rows of a batch that are not rejected and have not opted out.

        uint8[n]: ``duplicate`` for rows whose id is taken already, else 0. Raises InputError when there are more rows
        than announced.
        """
    def finish(
        self,
        scored_at: datetime,
        topic_table: Sequence[TopicRow],
        location_table: Sequence[str],
        most_conflicts: int,
        progress: Callable[[int, int], None] | None,
    ) -> tuple[str, list[tuple[str, str, int, int]]]:
        """Lay out what had to wait, seal the file and sync it: the version, and the identities that two profiles claim.

        Those are (column, text, first profile id, second profile id), at most ``most_conflicts`` of them.
        ``progress(done_bytes, total_bytes)``.
        """
    def close(self) -> None:
        """Give back the descriptor and the mappings; the file stays for the caller to keep or unlink."""

def differences(scores: npt.NDArray[np.uint16], earlier: npt.NDArray[np.uint16]) -> npt.NDArray[np.int16]:
    """int16[n]: changes from an earlier snapshot's ``hundredths``; unknown where either side has no score."""
