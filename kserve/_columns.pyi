"""Whole Arrow columns into the numbers of a snapshot, with every value checked. No Python object is touched per value.

Common to all functions: ``values``, ``indices`` or ``offsets`` with ``data`` are a column of n values; ``valid`` is its
validity bitmap (empty: no nulls), whose first bit is bit ``offset``. ``out``[n] receives the numbers. What is returned
is None when all values can be taken, else uint8[n]: the reason why a value cannot, 0 when it can. A value that cannot
be taken leaves 0 in ``out``. ValueError: the arrays do not fit each other.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

_Bytes: TypeAlias = npt.NDArray[np.uint8] | bytes
_Flaws: TypeAlias = npt.NDArray[np.uint8] | None

LOWEST_SCORE: int
"""Hundredths of a point; HIGHEST_SCORE too."""
HIGHEST_SCORE: int
UNSCORED: int
"""As a score: the profile has none. As a topic score, network score or amplification: not known."""
UNKNOWN_CHANGE: int
UNKNOWN_COUNT: int
"""As true reach, or as a number of influencers or influencees."""
UNKNOWN_LOCATION: int
MAX_TOPICS: int
"""Of one profile."""
MAX_INFLUENCE: int
"""Ids in one influence list."""
MAX_TEXT: int
"""Bytes of UTF-8 in a name, a network's id or a topic's slug."""

def hundredths(
    values: npt.NDArray[np.float64],
    valid: _Bytes,
    offset: int,
    low: float,
    high: float,
    null: int,
    reasons: _Bytes,
    out: npt.NDArray[np.uint16],
) -> _Flaws:
    """Points to hundredths of a point: ``value * 100`` rounded half to even, as two's complement of 16 bits.

    Taken from ``low`` to ``high`` points, both within ±327.67; a null becomes ``null``. ``reasons``: outside the range,
    not finite.
    """

def whole(
    values: npt.NDArray[np.int64] | npt.NDArray[np.uint64] | npt.NDArray[np.float64],
    valid: _Bytes,
    offset: int,
    reasons: _Bytes,
    out: npt.NDArray[np.uint64],
) -> _Flaws:
    """Numbers to unsigned 64-bit integers; a float only below 2**53, where it is exact.

    ``reasons``: null, negative, fractional, 2**64 or more, inexact, no number. A null becomes 0 with its reason.
    """

def digits(
    offsets: npt.NDArray[np.int64],
    data: _Bytes,
    valid: _Bytes,
    offset: int,
    zeros: bool,
    reasons: _Bytes,
    out: npt.NDArray[np.uint64],
) -> _Flaws:
    """As :func:`whole`, of texts of ASCII digits; ``zeros`` allows a fraction that is all zeros (``12.00``)."""

def mark_used(indices: npt.NDArray[np.int32], valid: _Bytes, offset: int, used: npt.NDArray[np.uint8]) -> None:
    """Set ``used``[d] to 1 for each entry d of a dictionary of ``len(used)`` that the column refers to."""

def look_up(
    indices: npt.NDArray[np.int32],
    valid: _Bytes,
    offset: int,
    table: npt.NDArray[Any],
    reasons: npt.NDArray[np.uint8],
    null: int,
    null_reason: int,
    out: npt.NDArray[Any],
) -> _Flaws:
    """Dictionary indices to ``table``[index], flawed for ``reasons``[index]; :func:`mark_used` has checked them before.

    ``table`` is not empty; it and ``out`` are uint8, uint16 or uint32. A null becomes ``null`` with ``null_reason``.
    """

def check_texts(offsets: npt.NDArray[np.int64], data: _Bytes, limit: int, reasons: _Bytes) -> _Flaws:
    """Each text is UTF-8 of at most ``limit`` bytes. ``reasons``: no UTF-8, too long."""

def find_repeats(
    offsets: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.uint16],
    limit: int,
    reason: int,
) -> _Flaws:
    """Lists ``numbers``[offsets[i]:offsets[i + 1]] that hold a number twice; longer ones than ``limit`` are let be."""
