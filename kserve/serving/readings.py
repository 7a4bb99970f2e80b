"""What was counted, as people ask for it: quantiles, rates between two moments, what the kernel knows of a process."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kserve._tally import MIDDLES, Counts

QUANTILES = (0.5, 0.99, 0.999)

WINDOW_SECONDS = 60.0
"""How far back quantiles of late look."""

SPACING_SECONDS = 5.0
"""Least time between two readings that are kept for that."""

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

Counted = npt.NDArray[np.uint64]


def quantiles(buckets: Counted, wanted: Iterable[float] = QUANTILES) -> list[float] | None:
    """Seconds at the quantiles of a histogram's counts, to 1 %; None when nothing was counted."""
    reached = np.cumsum(buckets, dtype=np.uint64)
    total = int(reached[-1])
    if total == 0:
        return None
    ranks = [max(int(np.ceil(quantile * total)), 1) for quantile in wanted]
    return [float(MIDDLES[np.searchsorted(reached, rank)]) for rank in ranks]


class Histograms(NamedTuple):
    """Counts of buckets by route, (routes, buckets), and by tier."""

    by_route: Counted
    by_tier: dict[str, Counted]

    def since(self, past: Histograms | None) -> Histograms:
        """What was counted after ``past``."""
        if past is None:
            return self
        nothing = np.zeros_like(self.by_route[0])
        by_tier = {tier: increase(found, past.by_tier.get(tier, nothing)) for tier, found in self.by_tier.items()}
        return Histograms(increase(self.by_route, past.by_route), by_tier)


def increase(now: Counted, past: Counted) -> Counted:
    """What a counter has more than it had; all of it, when it started anew in between."""
    return np.where(now >= past, now - past, now)


def histograms(counts: Counts) -> Histograms:
    """Those of the answers."""
    by_tier = {tier: found["buckets"] for tier, found in counts.by_tier.items()}
    return Histograms(counts.by_route["buckets"], by_tier)


class Window:
    """Readings of the last minute, so that what is shown is of late, and not of the life of the host."""

    def __init__(self) -> None:
        self._kept: deque[tuple[float, Histograms]] = deque()

    def of_late(self, now: float, found: Histograms) -> Histograms:
        """What was counted since the reading of WINDOW_SECONDS ago, or the oldest there is; keeps this one."""
        while len(self._kept) > 1 and now - self._kept[1][0] >= WINDOW_SECONDS:
            self._kept.popleft()
        past = self._kept[0][1] if self._kept else None
        if not self._kept or now - self._kept[-1][0] >= SPACING_SECONDS:
            self._kept.append((now, found))
        return found.since(past)


class Usage(NamedTuple):
    """What the kernel says of a process."""

    cpu_seconds: float
    memory_bytes: int
    descriptors: int
    descriptors_limit: int


def usage(pid: int) -> Usage | None:
    """Of a process of this user; None when it has just ended."""
    folder = Path("/proc", str(pid))
    try:
        fields = folder.joinpath("stat").read_text().rpartition(")")[2].split()
        pages = int(folder.joinpath("statm").read_text().split()[1])
        descriptors = len(os.listdir(folder / "fd"))
        limits = folder.joinpath("limits").read_text()
    except (OSError, IndexError):
        return None
    (allowed,) = re.findall(r"^Max open files +(\d+)", limits, re.MULTILINE) or [0]
    return Usage((int(fields[11]) + int(fields[12])) / _TICKS, pages * _PAGE, descriptors, int(allowed))
