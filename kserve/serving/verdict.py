"""What a sentinel thinks of a version, from figures alone: nothing here reads, waits or acts.

There are two witnesses. The *served* answers of a version are compared with those that were served before it; but who
asks for what changes too, at any time. So the same ids are read on both versions as well: how the *hot* ids moved is
the fault of the version alone. A bad share of served answers counts when the ids that are asked for now show it too.
Where there is no other version to read them on, only failures count: whatever else changed may be the traffic's doing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kserve._roster import Served
from kserve.settings import Watch

Hundredths = npt.NDArray[np.uint16]

WITNESSES = 50
"""Different ids that must be asked for until what they show counts: fewer of them are a few people's own affair."""

SIGNIFICANT = 5.0
"""Standard deviations. A watch looks a hundred times at half a dozen figures: at 5, chance does it in 1 of 5,000."""

UNKNOWN, UNSCORED, LOWEST, FAR = 0, 0xFFFF, 100, 1000
"""Scores as :meth:`Snapshot.hundredths` gives them; and how far is far."""


class Breach(NamedTuple):
    """A figure that is out of bounds. ``figure`` is the change since before, and ``threshold`` what it may be."""

    figure: float
    threshold: float
    before: float
    after: float

    def told(self) -> dict[str, float]:
        """For the log."""
        return {name: round(value, 6) for name, value in self._asdict().items()}


Breaches = dict[str, Breach]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far each figure may change, and how many answers it takes to say so."""

    answers: int
    unknown: float
    lowest: float
    mean: float
    eligible: float
    errors: float
    hot_moved: float

    @classmethod
    def of(cls, watch: Watch, model: Mapping[str, float] | None = None) -> Bounds:
        """The settings; wider for a declared change of the model, by the thresholds that its gates have.

        A distance (Kolmogorov-Smirnov) of d between two distributions moves the share above any score by d at most:
        that is how much more, or less, may be eligible.
        """
        wide = model or {}
        return cls(
            answers=watch.answers,
            unknown=watch.unknown,
            lowest=max(watch.lowest, wide.get("mass", 0.0)),
            mean=max(watch.mean, wide.get("mean", 0.0)),
            eligible=max(watch.eligible, wide.get("ks", 0.0)),
            errors=watch.errors,
            hot_moved=max(watch.hot_moved, wide.get("moved_far", 0.0)),
        )


@dataclass(frozen=True, slots=True)
class Pairs:
    """The same ids, read on two versions. Shares are of all ids, but ``moved`` is of those scored in both."""

    ids: int
    both: int
    moved: float
    """By more than 10 points."""
    unknown: tuple[float, float]
    unscored: tuple[float, float]
    lowest: tuple[float, float]
    mean: tuple[float, float]
    """Points, of those scored in both; 0 when there are none."""

    @classmethod
    def of(cls, old: Hundredths, new: Hundredths) -> Pairs:
        """From what was read; row i of both arrays is of one id."""
        both = is_score(old) & is_score(new)
        before, after = old[both].astype(np.int64), new[both].astype(np.int64)
        count = len(before)

        def shares(value: int) -> tuple[float, float]:
            return share(np.count_nonzero(old == value), len(old)), share(np.count_nonzero(new == value), len(new))

        return cls(
            ids=len(old),
            both=count,
            moved=share(np.count_nonzero(abs(after - before) > FAR), count),
            unknown=shares(UNKNOWN),
            unscored=shares(UNSCORED),
            lowest=shares(LOWEST),
            mean=(share(before.sum(), 100 * count), share(after.sum(), 100 * count)),
        )


def is_score(values: Hundredths) -> npt.NDArray[np.bool_]:
    """Which of them are scores."""
    found: npt.NDArray[np.bool_] = (values != UNKNOWN) & (values != UNSCORED)
    return found


def share(part: Any, whole: int) -> float:
    """0 of nothing."""
    return float(part) / whole if whole else 0.0


def hot(pairs: Pairs, bounds: Bounds) -> Breaches:
    """What the version does to the same ids."""
    if pairs.ids < bounds.answers:
        return {}
    found = {
        "hot_unknown": _grown(pairs.unknown, bounds.unknown),
        "hot_unscored": _grown(pairs.unscored, bounds.unknown),
        "hot_lowest": _grown(pairs.lowest, bounds.lowest),
    }
    if pairs.both >= max(bounds.answers, 1):
        found["hot_moved"] = _over(pairs.moved, bounds.hot_moved, 0.0, pairs.moved)
        before, after = pairs.mean
        found["hot_mean"] = _over(abs(after - before) / before, bounds.mean, before, after)
    return {name: breach for name, breach in found.items() if breach is not None}


def served(before: Served, after: Served, bounds: Bounds) -> Breaches:
    """What became of the answers, beyond chance. None of a kind of which there were too few, before or after."""
    found = {}
    if min(before.answers, after.answers) >= bounds.answers:
        for name, bound in (("unknown", bounds.unknown), ("unscored", bounds.unknown), ("lowest", bounds.lowest)):
            parts = getattr(before, name), getattr(after, name)
            found[name] = _share(parts, (before.answers, after.answers), bound)
    if min(before.scored, after.scored) >= bounds.answers:
        found["mean"] = _mean(before, after, bounds.mean)
    if min(before.asked, after.asked) >= bounds.answers:
        wholes = before.asked, after.asked
        found["eligible"] = _share((before.eligible, after.eligible), wholes, bounds.eligible, either_way=True)
    return {name: breach for name, breach in found.items() if breach is not None} | failures(before, after, bounds)


def failures(before: Served, after: Served, bounds: Bounds) -> Breaches:
    """What needs no second witness, whoever asks for what: requests that failed by our fault."""
    wholes = before.requests + before.errors, after.requests + after.errors
    if min(wholes) < bounds.answers:
        return {}
    breach = _share((before.errors, after.errors), wholes, bounds.errors)
    return {} if breach is None else {"errors": breach}


def alike(after: Served, bounds: Bounds) -> Breaches:
    """What the version does to the same ids by the same rules."""
    if after.paired < WITNESSES:
        return {}
    was, now = share(after.were_eligible, after.paired), share(after.are_eligible, after.paired)
    breach = _over(abs(now - was), bounds.eligible, was, now)
    return {} if breach is None else {"eligible_alike": breach}


WITNESSED = {
    "unknown": "hot_unknown",
    "unscored": "hot_unscored",
    "lowest": "hot_lowest",
    "mean": "hot_mean",
    "eligible": "eligible_alike",
}
"""Served figures that follow the traffic too, and what the ids that are asked for must show then."""


def verdict(
    before: Served,
    after: Served,
    asked: Pairs | None,
    sample: Pairs | None,
    bounds: Bounds,
    *,
    paired_with_good: bool = True,
) -> Breaches:
    """All that is wrong with a version; nothing when it is as good as the one before.

    ``asked``: the ids that are asked for now; ``sample``: those and others. None when the version to compare with is
    lost: then the served answers alone decide. ``paired_with_good``: the version that the servers had before is the
    good one; else the served eligibility has no second witness.
    """
    if asked is None or sample is None:
        return served(before, after, bounds)
    witness = hot(asked, replace(bounds, answers=WITNESSES)) | alike(after, bounds)
    alone = {"errors"} if paired_with_good else {"errors", "eligible"}
    counted = {
        name: breach
        for name, breach in served(before, after, bounds).items()
        if name in alone or WITNESSED[name] in witness
    }
    return counted | hot(sample, bounds)


def _over(figure: float, bound: float, before: float, after: float) -> Breach | None:
    return Breach(figure, bound, before, after) if figure > bound else None


def _grown(shares: tuple[float, float], bound: float) -> Breach | None:
    before, after = shares
    return _over(after - before, bound, before, after)


def _share(parts: tuple[int, int], wholes: tuple[int, int], bound: float, either_way: bool = False) -> Breach | None:
    """Two proportions: the change is over the bound, and a z-test with the pooled share finds it significant."""
    before, after = parts[0] / wholes[0], parts[1] / wholes[1]
    change = abs(after - before) if either_way else after - before
    pooled = sum(parts) / sum(wholes)
    deviation = sqrt(pooled * (1 - pooled) * (1 / wholes[0] + 1 / wholes[1]))
    return _over(change, bound, before, after) if change > SIGNIFICANT * deviation else None


def _mean(before: Served, after: Served, bound: float) -> Breach | None:
    """Two means of unequal variance (Welch)."""
    (old, old_variance), (new, new_variance) = _moments(before), _moments(after)
    deviation = sqrt(old_variance / before.scored + new_variance / after.scored)
    change = abs(new - old)
    return _over(change / old, bound, old, new) if change > SIGNIFICANT * deviation else None


def _moments(counts: Served) -> tuple[float, float]:
    """Mean and variance of the served scores, in points."""
    mean = counts.hundredths / counts.scored
    variance = max(counts.squares / counts.scored - mean * mean, 0.0)
    return mean / 100, variance / 10_000
