"""Batches of scores, from the bytes of a request to the bytes of its answer: JSON, or records of fixed size."""

from typing import final

import numpy as np
import numpy.typing as npt

from kserve._core import Snapshot
from kserve._roster import Seat

__all__ = ["RECORD", "UNKNOWN_SCORE", "UNSCORED_SCORE", "Asked", "ids_of_bytes", "ids_of_json"]

RECORD: np.dtype[np.void]
"""A record of the binary form, 10 bytes, little-endian: ``score`` in hundredths of a point; ``day``, ``week`` and
``month``, its changes in hundredths of a point, -32768 where there is nothing to compare with; ``status``, a
:class:`~kserve.records.Status`; ``zero``."""

UNKNOWN_SCORE: int
"""The ``score`` of a record for no such profile."""

UNSCORED_SCORE: int
"""The ``score`` of a record for a profile without a score."""

@final
class Asked:
    """The ids of one request, in the order asked, from :func:`ids_of_json` or :func:`ids_of_bytes`.

    What is answered is computed from ``snapshot``, looked up together, and counted at ``seat``.
    """

    def __len__(self) -> int: ...
    @property
    def ids(self) -> npt.NDArray[np.uint64]:
        """uint64[n]."""
    def json(self, snapshot: Snapshot, seat: Seat) -> bytes:
        """The JSON of :class:`~kserve.serving.models.Batch`, the same bytes as msgspec makes."""
    def records(self, snapshot: Snapshot, seat: Seat) -> bytes:
        """A RECORD for each id."""

def ids_of_json(body: bytes, limit: int) -> Asked | None:
    """The ids of ``{"ids":["42",...]}``; None for a body of any other form, one with an item that is no profile id,
    and one with more than ``limit`` ids: a reader that knows all of JSON then says what it is."""

def ids_of_bytes(body: bytes) -> Asked | None:
    """Ids of 8 bytes, little-endian; None when the last one is cut short."""
