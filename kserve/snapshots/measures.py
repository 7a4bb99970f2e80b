"""What is known of a snapshot as a whole, and of two of them side by side: plain figures, no verdicts.

:mod:`kserve._compare` fills these in one pass over the files; the gates, the diff and the pages read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.uint64]

POINTS = 101
"""Bins of a histogram by whole points: bin p holds scores of p.00 to p.99; 0 stays empty."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Profiles by group, such as region or topic; row i of each array belongs to ``names[i]``; one may be in many."""

    names: tuple[str, ...]
    profiles: Counts
    """uint64[n]: all of the group, unscored ones too."""
    histogram: Counts
    """uint64[n, POINTS]: the scored ones, by whole points."""
    sums: npt.NDArray[np.float64]
    """float64[n]: sum of the scores of the scored ones, in points."""


@dataclass(frozen=True, slots=True)
class Portrait:
    """One snapshot as a whole."""

    version: str
    scored_at: datetime
    file_bytes: int
    profiles: int
    unscored: int
    histogram: Counts
    """uint64[10001]: scored profiles by hundredths of a point."""
    values: dict[str, Counts]
    """By column, of network_score, amplification, true_reach: uint64[65536], profiles by the low 16 bits. Of topics:
    their entries, by score in hundredths."""
    nulls: dict[str, int]
    """By column that the snapshot has, named as in the input: profiles without a value in it."""
    regions: Groups
    """Every prefix of a location's path ("US", "US/New York", ...)."""
    topics: Groups
    """Every topic that a profile has; ancestors are not counted."""
    networks: Groups
    """By network (tw, gp, fb, ig): profiles with an identity there. Empty when the snapshot has no details."""
    digest: str
    """Hexadecimal digest of ids, scores, locations, topics and identities: the same for any order, and on any day."""


@dataclass(frozen=True, slots=True)
class Moves:
    """Profiles of a group that are scored in both versions, and how they moved; rows as in Groups."""

    names: tuple[str, ...]
    both: Counts
    over5: Counts
    """Moved more than 5 points, up or down."""
    over10: Counts
    sums: npt.NDArray[np.float64]
    """Sum of new - old, in points."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A part of the profiles where something happened far more often than elsewhere."""

    event: str
    """What happened: a key of ``Comparison.events``."""
    dimension: str
    """``region``, ``topic``, ``network``, ``id range``, ``id shard``."""
    where: str
    """Such as "US/New York", "ids 1000 to 1999", "id % 16 = 3"."""
    cases: int
    profiles: float
    """About how many there are in this part."""
    expected: float
    """Cases, if they had spread evenly."""
    log10_p: float
    """Of so many cases by chance, after correction for all parts that were looked at; 0 or below."""


@dataclass(frozen=True, slots=True)
class Mover:
    """A profile whose score changed much; scores in points."""

    profile_id: int
    old: float
    new: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions side by side."""

    old: Portrait
    new: Portrait
    both: int
    """Profiles that are in both, scored or not."""
    added: int
    removed: int
    became_unscored: int
    became_scored: int
    changed: int
    """Scored in both, with another score."""
    events: dict[str, int]
    """By event: ``moved`` (more than 10 points), ``removed``, ``unscored`` (had a score), ``topics`` or ``location``
    (lost), ``floored`` (to 1.00), ``relocated``, ``retopicked`` (about none in common), ``renamed`` (on a network),
    ``remeasured`` (network score or amplification by more than 10 points, or true reach by a factor of 2),
    ``reconnected`` (about none of the influencers or influencees in common)."""
    moves: Counts
    """uint64[19801]: profiles scored in both, by new - old + 9900 hundredths."""
    regions: Moves
    topics: Moves
    networks: Moves
    id_ranges: Moves
    """About equally many profiles each, by profile id; from a sample, so the counts are of the sample."""
    clusters: tuple[Cluster, ...]
    """The most significant first; nested ones (a country and its city) are told once, as the narrowest."""
    movers: tuple[Mover, ...]
    """The biggest moves, the biggest first; at most 100."""
