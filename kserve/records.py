"""What a look-up gives back: plain immutable records, without behaviour."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NETWORKS = ("tw", "gp", "fb", "ig")
"""The social networks of the identities; only ``tw`` has names beside ids."""


class Status(IntEnum):
    """What is known of one id of a batch."""

    UNKNOWN = 0
    UNSCORED = 1
    SCORED = 2


class Scores(NamedTuple):
    """Scores of a batch of n ids, all from one version.

    ``values``: float64[n], points; NaN where there is no score. ``status``: uint8[n] of :class:`Status`.
    ``changes``: float64[n, 3] (day, week, month; NaN where unknown) if they were asked for, else None.
    """

    values: npt.NDArray[np.float64]
    status: npt.NDArray[np.uint8]
    changes: npt.NDArray[np.float64] | None
    version: str

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        """bool[n]: the id is a profile of this version, scored or not."""
        found: npt.NDArray[np.bool_] = self.status != Status.UNKNOWN
        return found

    @property
    def scored(self) -> npt.NDArray[np.bool_]:
        """bool[n]: the id is a profile with a score."""
        scored: npt.NDArray[np.bool_] = self.status == Status.SCORED
        return scored


class Changes(NamedTuple):
    """Differences of the score to earlier snapshots, in points; None where there is nothing to compare with."""

    day: float | None
    week: float | None
    month: float | None


class TopicScore(NamedTuple):
    """A topic of a profile; ``score`` is the influence in this topic, None where the pipeline gave none."""

    slug: str
    score: float | None


class Identity(NamedTuple):
    """Who a profile is on one network."""

    id: str | None
    name: str | None


class Profile(NamedTuple):
    """All that a snapshot knows of one profile. None is "not known", never a number."""

    id: int
    score: float | None
    changes: Changes
    network_score: float | None
    amplification: float | None
    true_reach: int | None
    topics: tuple[TopicScore, ...]
    location: str | None
    nick: str | None
    identities: dict[str, Identity]
    influencers: tuple[int, ...]
    influencees: tuple[int, ...]
    influencer_count: int | None
    influencee_count: int | None
    version: str


class Topic(NamedTuple):
    """A topic of a snapshot's taxonomy. ``topic_id`` is the taxonomy's own id, unsigned 64-bit, None if it has none."""

    slug: str
    name: str
    topic_id: int | None
    parents: tuple[str, ...]
    children: tuple[str, ...]
