"""Batches of scores, from the bytes of a request to the bytes of its answer: JSON, or records of fixed size."""

from typing import Protocol, final

import numpy as np
import numpy.typing as npt

from kserve._core import Snapshot

__all__ = ["RECORD", "UNKNOWN_SCORE", "UNSCORED_SCORE", "Asked", "ids_of_json"]

RECORD: np.dtype[np.void]
"""A record of the binary form, 10 bytes, little-endian: ``score`` in hundredths of a point; ``day``, ``week``, ``month``,
its changes in hundredths of a point, -32768 where there is nothing to compare with; ``status``, a
:class:`~kserve.records.Status`; ``zero``."""

UNKNOWN_SCORE: int
"""The ``score`` of a record for no such profile."""

UNSCORED_SCORE: int
"""The ``score`` of a record for a profile without a score."""

class _Seat(Protocol):
    def answered_many(
        self,
        version: str,
        ids: npt.NDArray[np.uint64],
        points: npt.NDArray[np.float64],
        status: npt.NDArray[np.uint8],
    ) -> None: ...

@final
class Asked:
    """The ids of one request, uint64[n], in the order asked. Raises TypeError for another array.

    What is answered is computed from ``snapshot``, looked up together, and counted at ``seat``.
    """

    ids: npt.NDArray[np.uint64]
    def __init__(self, ids: npt.NDArray[np.uint64]) -> None: ...
    def __len__(self) -> int: ...
    def json(self, snapshot: Snapshot, seat: _Seat) -> bytes:
        """The JSON of :class:`~kserve.serving.models.Batch`, the same bytes as msgspec makes."""
    def records(self, snapshot: Snapshot, seat: _Seat) -> bytes:
        """A RECORD for each id."""

def ids_of_json(body: bytes, limit: int) -> Asked | None:
    """The ids of ``{"ids":["42",...]}``; None for a body of any other form, one with an item that is no profile id,
    and one with more than ``limit`` ids: a reader that knows all of JSON then says what it is."""
