"""The arithmetic of score distributions: means and quantiles of histograms, and how far apart two of them are."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kserve.snapshots.measures import POINTS, Counts

Floats = npt.NDArray[np.float64]

LEAST_BIN = 0.05
"""Share of both distributions together that a bin of the PSI has at least: 20 bins at most."""

SIGMAS = 3.0
"""Standard deviations of chance that a distance is allowed before it counts."""

KS_CHANCE = 1.95
"""Kolmogorov's quantile for 1 in 1,000, to be multiplied with sqrt(1/n + 1/m)."""


class Distance(NamedTuple):
    """How far apart two distributions are, and how far chance alone may bring them."""

    value: float
    chance: float


def mean(hundredths: Counts) -> float | None:
    """Of a histogram by hundredths, in points; None when it is empty."""
    total = int(hundredths.sum())
    return float(hundredths @ np.arange(len(hundredths), dtype=np.float64)) / total / 100 if total else None


def quantile(hundredths: Counts, share: float) -> float | None:
    """The least score, in points, that at least this share of the scores does not exceed; None: there are no scores."""
    cumulated = np.cumsum(hundredths)
    total = int(cumulated[-1])
    return int(np.searchsorted(cumulated, math.ceil(share * total), side="left")) / 100 if total else None


def by_points(hundredths: Counts) -> Counts:
    """uint64[10001] by hundredths to uint64[POINTS] by whole points."""
    starts = np.minimum(np.arange(POINTS) * 100, len(hundredths) - 1)
    return np.add.reduceat(hundredths, starts)


def psi(old: npt.NDArray[Any], new: npt.NDArray[Any]) -> Distance:
    """Population stability index of two histograms with the same bins, which are merged until none is tiny.

    Half a profile is added to each bin, so that an empty one has a logarithm. Two samples of the same distribution have
    chi-square / (1/n + 1/m): its mean and three standard deviations are what chance may do.
    """
    count_old, count_new = float(old.sum()), float(new.sum())
    if not count_old or not count_new:
        return Distance(0.0 if count_old == count_new else math.inf, 0.0)
    starts = _bins(old / count_old + new / count_new)
    shares_old, shares_new = (_shares(np.add.reduceat(counts, starts)) for counts in (old, new))
    value = float(((shares_new - shares_old) * np.log(shares_new / shares_old)).sum())
    freedom = len(starts) - 1
    return Distance(value, (1 / count_old + 1 / count_new) * (freedom + SIGMAS * math.sqrt(2 * freedom)))


def _bins(weights: Floats) -> list[int]:
    """Where merged bins start: each has at least LEAST_BIN of the total weight of 2, the last one what is left too."""
    starts, weight = [0], 0.0
    for place, share in enumerate(weights.tolist()):
        if weight >= 2 * LEAST_BIN:
            starts.append(place)
            weight = 0.0
        weight += share
    if weight < 2 * LEAST_BIN and len(starts) > 1:
        starts.pop()
    return starts


def _shares(counts: npt.NDArray[Any]) -> Floats:
    smoothed = counts.astype(np.float64) + 0.5
    return np.asarray(smoothed / smoothed.sum(), np.float64)


def ks(old: npt.NDArray[Any], new: npt.NDArray[Any]) -> Distance:
    """Kolmogorov-Smirnov: the greatest distance of the cumulated distributions, and what chance does in 1 of 1,000."""
    count_old, count_new = float(old.sum()), float(new.sum())
    if not count_old or not count_new:
        return Distance(0.0 if count_old == count_new else 1.0, 0.0)
    distance = np.abs(np.cumsum(old) / count_old - np.cumsum(new) / count_new).max()
    return Distance(float(distance), KS_CHANCE * math.sqrt(1 / count_old + 1 / count_new))
