"""Locations and the regions around them: every prefix of a path, from the country down."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from kserve._census import roll_up


class Regions:
    """All prefixes of n location paths.

    ``names``[k]: each once, a region before those inside it. ``places``: int64[n + 1], by location number the index of
    its own path; that of 0, which is unknown, is -1.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        index: dict[str, int] = {}
        parents: list[int] = []
        for path in paths:
            if path not in index:
                _enter(path, index, parents)
        self.names = tuple(index)
        self.locations = len(paths)
        self.places = np.array([-1, *(index[path] for path in paths)], dtype=np.int64)
        self._parents = np.array(parents, dtype=np.int64)

    def totals(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """By region, [k], from values by location number, [n + 1]: 64-bit integers; 0 is unknown."""
        own = np.zeros(len(self.names), dtype=values.dtype)
        own[self.places[1:]] = values[1:]
        return self.rolled_up(own)

    def rolled_up(self, own: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """By region, [k, ...], from 64-bit integers by region, which may count only what is in no region inside it."""
        roll_up(own.view(np.uint64).reshape(len(own), prod(own.shape[1:])), self._parents)
        return own

    def inside(self, region: int, locations: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """bool[m]: which of these location numbers lie in the region."""
        within = np.zeros(len(self.names), bool)
        within[region] = True
        for other in range(region + 1, len(within)):
            within[other] = self._parents[other] >= 0 and within[self._parents[other]]
        return np.concatenate([[False], within[self.places[1:]]])[locations]


def _enter(path: str, index: dict[str, int], parents: list[int]) -> int:
    """The index of a path, which is entered after all that it lies in."""
    found = index.get(path)
    if found is None:
        outer = path.rpartition("/")[0]
        parents.append(_enter(outer, index, parents) if outer else -1)
        found = index[path] = len(index)
    return found
