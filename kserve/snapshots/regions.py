"""Locations and the regions around them: every prefix of a path, from the country down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


class Regions:
    """All prefixes of n location paths; ``names``[k], each once.

    In the order of the paths' parts, the locations of a region stand side by side.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        order = sorted(range(len(paths)), key=lambda index: paths[index].split("/"))
        spans: dict[str, list[int]] = {}
        for place, index in enumerate(order):
            for prefix in _prefixes(paths[index]):
                spans.setdefault(prefix, [place, place])[1] = place + 1
        self.names = tuple(spans)
        self._starts, self._ends = np.array(list(spans.values()), dtype=np.int64).reshape(-1, 2).T
        self._numbers = np.array(order, dtype=np.int64) + 1
        self._places = np.full(len(paths) + 1, -1, dtype=np.int64)
        self._places[self._numbers] = np.arange(len(paths))

    @property
    def locations(self) -> int:
        """n."""
        return len(self._numbers)

    def totals(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """By region, [k, ...], from values by location number, [n + 1, ...]: integers, of which 0 is unknown."""
        sums = np.zeros((len(self._numbers) + 1, *values.shape[1:]), dtype=values.dtype)
        np.cumsum(values[self._numbers], axis=0, out=sums[1:])
        return np.asarray(sums[self._ends] - sums[self._starts])

    def inside(self, region: int, locations: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """bool[m]: which of these location numbers lie in the region."""
        places = self._places[locations]
        return np.asarray((places >= self._starts[region]) & (places < self._ends[region]))


def _prefixes(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
