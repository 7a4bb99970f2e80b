"""Locations and the regions around them: every prefix of a path, from the country down."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from kserve._census import roll_up


class Regions:
    """All prefixes of n location paths; ``names``[k], each once, a region before those inside it.

    In the order of the paths' parts, the locations of a region stand side by side.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        order = sorted(range(len(paths)), key=[path.split("/") for path in paths].__getitem__)
        names, parents, spans = _prefixes([paths[index] for index in order])
        index = {name: i for i, name in enumerate(names)}
        self.names = tuple(names)
        self.locations = len(paths)
        self._parents = np.array(parents, dtype=np.int64)
        self._own = np.array([index[path] for path in paths], dtype=np.int64)
        self._starts, self._ends = (np.array(edges, dtype=np.int64) for edges in spans)
        self._places = np.full(len(paths) + 1, -1, dtype=np.int64)
        self._places[np.array(order, dtype=np.int64) + 1] = np.arange(len(paths))

    def totals(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """By region, [k, ...], from values by location number, [n + 1, ...]: 64-bit integers; 0 is unknown."""
        totals = np.zeros((len(self.names), *values.shape[1:]), dtype=values.dtype)
        totals[self._own] = values[1:]
        roll_up(totals.view(np.uint64).reshape(len(totals), prod(values.shape[1:])), self._parents)
        return totals

    def inside(self, region: int, locations: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """bool[m]: which of these location numbers lie in the region."""
        places = self._places[locations]
        return np.asarray((places >= self._starts[region]) & (places < self._ends[region]))


def _prefixes(paths: Sequence[str]) -> tuple[list[str], list[int], tuple[list[int], list[int]]]:
    """The prefixes of ordered paths, each after the one it lies in: names; the index of that one, or -1; and spans.

    A span is where the first path of a region stands, and where the one after its last would.
    """
    names: list[str] = []
    parents: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    inside = [-1]  # indexes of the prefixes of the path before, the longest last
    for place, path in enumerate(paths):
        while len(inside) > 1 and not path.startswith(names[inside[-1]] + "/"):
            ends[inside.pop()] = place
        at = len(names[inside[-1]]) if len(inside) > 1 else -1
        while at < len(path):
            at = path.find("/", at + 1)
            at = len(path) if at < 0 else at
            parents.append(inside[-1])
            inside.append(len(names))
            names.append(path[:at])
            starts.append(place)
            ends.append(len(paths))
    return names, parents, (starts, ends)
