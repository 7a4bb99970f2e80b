"""What a gate works with: the case before it, figures with their limits, and the judgement they add up to."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kserve._core import Snapshot
from kserve.settings import Gates, Settings
from kserve.snapshots import words
from kserve.snapshots.measures import Comparison, Portrait
from kserve.snapshots.report import Figures, Verdict

Ids = npt.NDArray[np.uint64]

ORDER: tuple[Verdict, ...] = ("pass", "warn", "hold")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One candidate before the gates, and all that is known of it."""

    candidate: Snapshot
    manifest: Mapping[str, Any]
    live: Snapshot | None
    live_manifest: Mapping[str, Any]
    """Empty without a live version."""
    new: Portrait
    comparison: Comparison | None
    """None: there is no live version to compare with."""
    history: Sequence[Figures]
    settings: Settings
    limits: Gates
    """The thresholds in force: the settings', or those of the model that was declared."""
    now: datetime
    quarantined: Collection[str]
    opted_out: Ids | None
    once_opted_out: Ids

    def share(self, limit: float) -> float:
        """The share that so few profiles cannot exceed by ``few`` of them: a handful never holds a version."""
        return max(limit, min(self.limits.few / self.new.profiles, 1.0))


class Judgement(NamedTuple):
    """The verdict of a gate; fields as in :class:`~kserve.snapshots.report.Finding`."""

    verdict: Verdict
    figure: str
    value: float | None
    threshold: str
    reason: str


class Measure(NamedTuple):
    """One figure and its limits: above ``hold`` it holds, above ``warn`` it warns."""

    value: float
    hold: float
    figure: str
    threshold: str
    reason: str
    warn: float | None = None

    @property
    def verdict(self) -> Verdict:
        if self.value > self.hold:
            return "hold"
        return "warn" if self.warn is not None and self.value > self.warn else "pass"

    @property
    def strain(self) -> tuple[int, float]:
        """How bad it is: by verdict, then by how much of the limit is used."""
        used = self.value / self.hold if self.hold > 0 else self.value
        return ORDER.index(self.verdict), used


def judge(headline: Measure, *others: Measure) -> Judgement:
    """The worst figure, with the reasons of all that do not pass, the worst first; the headline when all pass."""
    ordered = sorted((headline, *others), key=lambda measure: measure.strain, reverse=True)
    told = headline if ordered[0].verdict == "pass" else ordered[0]
    reasons = [measure.reason for measure in ordered if measure.verdict != "pass"] or [headline.reason]
    value = told.value if math.isfinite(told.value) else None
    return Judgement(told.verdict, told.figure, value, told.threshold, words.some(dict.fromkeys(reasons), "; "))


def plain(faults: Sequence[str], figure: str, threshold: str, fine: str, verdict: Verdict = "hold") -> Judgement:
    """A gate without figures: any fault holds, or warns."""
    if not faults:
        return Judgement("pass", figure, 0.0, threshold, fine)
    return Judgement(verdict, figure, float(len(faults)), threshold, words.some(faults, "; "))
