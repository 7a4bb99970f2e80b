"""Where something happened far more often than elsewhere: in a region, topic, network, range or shard of ids.

Profiles to whom it happened, the cases, are held against a sample of all profiles to whom it could have happened. Both
come from the beginning of the file, or of each thread's part of it, in the order of the ids' hashes: a fair sample. Of
N cases, the number in a part with a share s of the profiles is binomial if they spread evenly; its tail is bounded by
Chernoff's inequality, and multiplied by the number of parts that were looked at (Bonferroni).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kserve import Snapshot
from kserve._census import describe
from kserve._compare import EVENTS
from kserve.records import NETWORKS
from kserve.snapshots.measures import Cluster
from kserve.snapshots.regions import Regions

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Cases = Mapping[str, tuple[npt.NDArray[np.uint64], int]]
"""By event: slots of the old snapshot, and how many cases there would be."""

MOST_CLUSTERS = 10  # of one event: whoever has more knows enough
LOG10_P = -6.0  # of an honest night in a million that has a cluster
LIFT = 10.0  # times as often as elsewhere, and
LEAST_LIFT = 4.0  # times as often as everywhere: parts that hold most of the profiles say little
UNIT = 8  # profiles of the sample in the finest unit of id ranges, at least; the smallest range is two units
BROADER = 4  # times less dense may a range be than the one within it, and still be told in its place
MODULI = (*range(2, 17), 32, 64, 100, 128, 256, 1000, 1024)
FOLDS = (5040, 143, 1000, 1024)
"""Each modulus divides one of these: ids are divided four times, not 22 times."""
UNSCORED = 0xFFFF


@dataclass(frozen=True)
class People:
    """n profiles of one snapshot, as they were in it.

    ids: uint64[n]. scores: uint16[n], hundredths or UNSCORED. locations: uint32[n], numbers. networks: uint8[n], a bit
    for each. topic_counts: uint8[n]. topics: numbers of the topics of the first, of the second, and so on.
    """

    ids: npt.NDArray[np.uint64]
    scores: npt.NDArray[np.uint16]
    locations: npt.NDArray[np.uint32]
    networks: npt.NDArray[np.uint8]
    topic_counts: npt.NDArray[np.uint8]
    topics: npt.NDArray[np.uint16]

    @classmethod
    def of(cls, snapshot: Snapshot, slots: npt.NDArray[np.uint64]) -> People:
        """Those in these slots."""
        return cls(*describe(snapshot, slots))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def order(self) -> Ints:
        """By increasing id."""
        return np.argsort(self.ids)

    @cached_property
    def topic_owners(self) -> Ints:
        """For each element of ``topics``, whose it is."""
        return np.repeat(np.arange(len(self)), self.topic_counts)

    def at_risk(self, event: str) -> Bools:
        """bool[n]: to whom the event could happen."""
        if event in ("moved", "unscored", "floored", "remeasured"):
            return np.asarray(self.scores != UNSCORED)
        if event in ("topics", "retopicked"):
            return self.topic_counts > 0
        if event in ("location", "relocated"):
            return self.locations > 0
        if event == "renamed":
            return self.networks > 0
        return np.ones(len(self), bool)


class Search:
    """For clusters in ``old``, of which ``sample`` are profiles at random and ``regions`` all regions."""

    def __init__(self, old: Snapshot, sample: People, regions: Regions) -> None:
        every = (_Places(regions), _Topics(old.vocabulary.slugs), _Networks(), _Ranges(sample), _Shards())
        self._old, self._sample = old, sample
        self._coded = [(dimension, dimension.code(sample)) for dimension in every if dimension.size]

    def clusters(self, cases: Cases, least: int) -> tuple[Cluster, ...]:
        """The clusters of at least so many cases, the most significant first."""
        weight = self._old.profiles / len(self._sample)
        found: list[Cluster] = []
        for event, (slots, total) in cases.items():
            if total >= least:
                search = _EventSearch(event, self._coded, self._sample.at_risk(event), weight)
                found += search.clusters(People.of(self._old, slots), total, least)
        return tuple(sorted(found, key=lambda cluster: cluster.log10_p))


class _EventSearch:
    """For clusters of one event, among the profiles to whom it could happen."""

    def __init__(self, event: str, coded: Sequence[tuple[_Dimension, Any]], at_risk: Bools, weight: float) -> None:
        self._event = event
        self._dimensions = [dimension for dimension, _ in coded]
        counts = [dimension.count(code, at_risk) for dimension, code in coded]
        n = int(np.count_nonzero(at_risk))
        self._at_risk = n * weight
        # Of a share that is known from a sample, the highest that this sample does not speak against.
        bounds = counts if weight == 1 else [count + 2 * np.sqrt(count) + 3 for count in counts]
        self._shares = [np.maximum(count, 1) / max(n, 1) for count in counts]
        self._bounds = [np.clip(bound / max(n, 1), 1e-12, 1) for bound in bounds]

    def clusters(self, people: People, total: int, least: int) -> Iterator[Cluster]:
        """One after the other: the most significant part, then the same with the cases that lie elsewhere."""
        weight = total / len(people)
        codes = [dimension.code(people) for dimension in self._dimensions]
        left = np.ones(len(people), bool)
        for _ in range(MOST_CLUSTERS):
            best = min(self._candidates(codes, left, least / weight), default=None)
            if best is None:
                return
            log10_p, _, number, part = best
            dimension = self._dimensions[number]
            inside = left & dimension.members(codes[number], part)
            where, share = dimension.told(part, people.ids[inside], float(self._shares[number][part]))
            yield Cluster(
                event=self._event,
                dimension=dimension.name,
                where=where,
                cases=round(np.count_nonzero(inside) * weight),
                profiles=share * self._at_risk,
                expected=share * np.count_nonzero(left) * weight,
                log10_p=log10_p,
            )
            left &= ~inside

    def _candidates(self, codes: Sequence[Any], left: Bools, least: float) -> Iterator[tuple[float, float, int, int]]:
        """The best part of each dimension that has one: log10 of its chance, share, number of the dimension, part."""
        n = int(np.count_nonzero(left))
        for number, (dimension, code) in enumerate(zip(self._dimensions, codes, strict=True)):
            counts, shares = dimension.count(code, left), self._bounds[number]
            parts = np.flatnonzero((counts >= least) & (counts >= LEAST_LIFT * shares * n))
            cases, share = counts[parts], shares[parts]
            parts = parts[cases * (1 - share) >= LIFT * share * (n - cases)]
            if len(parts):
                looked_at = dimension.size * len(self._dimensions) * len(EVENTS)
                chances = _log10_tail(counts[parts] / n, shares[parts], n) + np.log10(looked_at)
                best = int(np.lexsort((shares[parts], chances))[0])
                if chances[best] < LOG10_P:
                    part = dimension.widened(int(parts[best]), counts / self._shares[number])
                    yield float(chances[best]), float(shares[parts[best]]), number, part


def _log10_tail(found: Floats, share: Floats, n: int) -> Floats:
    """log10 of a bound on the chance that a share of at least ``found`` of n cases lies in a part with this share."""
    with np.errstate(divide="ignore", invalid="ignore"):
        elsewhere = np.where(found < 1, (1 - found) * np.log((1 - found) / (1 - share)), 0)
        divergence = np.where(found > share, found * np.log(found / share) + elsewhere, 0)
    return np.asarray(-n * divergence / np.log(10))


class _Dimension(ABC):
    """One way to divide the profiles into parts, which may overlap."""

    name: str
    size: int
    """How many parts there are."""

    @abstractmethod
    def code(self, people: People) -> Any:
        """What the other methods take: numbers that say in which parts each is."""

    @abstractmethod
    def count(self, code: Any, kept: Bools) -> Ints:
        """int64[size]: how many of the kept are in each part."""

    @abstractmethod
    def members(self, code: Any, part: int) -> Bools:
        """bool[n]: who is in the part."""

    @abstractmethod
    def where(self, part: int) -> str:
        """The part in words."""

    def told(self, part: int, ids: npt.NDArray[np.uint64], share: float) -> tuple[str, float]:
        """The part in words, and its share of the profiles; ``ids`` are those of its cases."""
        return self.where(part), share

    def widened(self, part: int, density: Floats) -> int:
        """A part to be told instead, around this one; ``density``: cases by profile in all parts."""
        return part


class _Places(_Dimension):
    name = "region"

    def __init__(self, regions: Regions) -> None:
        self._regions = regions
        self.size = len(regions.names)

    def code(self, people: People) -> npt.NDArray[np.uint32]:
        return people.locations

    def count(self, code: npt.NDArray[np.uint32], kept: Bools) -> Ints:
        return self._regions.totals(np.bincount(code[kept], minlength=self._regions.locations + 1))

    def members(self, code: npt.NDArray[np.uint32], part: int) -> Bools:
        return self._regions.inside(part, code)

    def where(self, part: int) -> str:
        return self._regions.names[part]


class _Topics(_Dimension):
    name = "topic"

    def __init__(self, slugs: Sequence[str]) -> None:
        self._slugs = slugs
        self.size = len(slugs)

    def code(self, people: People) -> People:
        return people

    def count(self, code: People, kept: Bools) -> Ints:
        return np.bincount(code.topics[kept[code.topic_owners]], minlength=self.size + 1)[1:]

    def members(self, code: People, part: int) -> Bools:
        inside = np.zeros(len(code), bool)
        inside[code.topic_owners[code.topics == part + 1]] = True
        return inside

    def where(self, part: int) -> str:
        return self._slugs[part]


class _Networks(_Dimension):
    name = "network"
    size = len(NETWORKS)

    def code(self, people: People) -> npt.NDArray[np.uint8]:
        return people.networks

    def count(self, code: npt.NDArray[np.uint8], kept: Bools) -> Ints:
        masks = np.bincount(code[kept], minlength=1 << self.size)
        bits = np.arange(1 << self.size)
        return np.array([masks[bits >> network & 1 == 1].sum() for network in range(self.size)])

    def members(self, code: npt.NDArray[np.uint8], part: int) -> Bools:
        return np.asarray(code >> part & 1 == 1)

    def where(self, part: int) -> str:
        return NETWORKS[part]


class _Shards(_Dimension):
    """Ids modulo each of MODULI."""

    name = "id shard"
    size = sum(MODULI)

    def __init__(self) -> None:
        self._modulus = np.repeat(MODULI, MODULI)
        self._rest = np.concatenate([np.arange(modulus) for modulus in MODULI])

    def code(self, people: People) -> list[npt.NDArray[Any]]:
        return [people.ids, *((people.ids % np.uint64(fold)).astype(np.int64) for fold in FOLDS)]

    def count(self, code: list[npt.NDArray[Any]], kept: Bools) -> Ints:
        folded = [np.bincount(rest[kept], minlength=fold) for rest, fold in zip(code[1:], FOLDS, strict=True)]
        return np.concatenate([_fold(folded, modulus) for modulus in MODULI])

    def members(self, code: list[npt.NDArray[Any]], part: int) -> Bools:
        return np.asarray(code[0] % np.uint64(self._modulus[part]) == np.uint64(self._rest[part]))

    def where(self, part: int) -> str:
        return f"id % {self._modulus[part]} = {self._rest[part]}"


def _fold(folded: Sequence[Ints], modulus: int) -> Ints:
    counts = next(counts for counts, fold in zip(folded, FOLDS, strict=True) if fold % modulus == 0)
    return np.asarray(counts.reshape(-1, modulus).sum(axis=0))


class _Ranges(_Dimension):
    """Ranges of ids with 2, 4, 8 ... units of equally many profiles of the sample, each half-way over its neighbours.

    So every row of neighbouring ids lies within a range that is at most four times as long.
    """

    name = "id range"

    def __init__(self, sample: People) -> None:
        self._sample = sample
        self._sorted = sample.ids[sample.order]
        self._levels = max((len(sample) // UNIT).bit_length() - 1, 0)
        self._units = 1 << self._levels
        lengths = [(self._units >> level - 1) - 1 for level in range(1, self._levels)]
        self._first = np.cumsum([0, *lengths])
        self.size = int(self._first[-1])

    def code(self, people: People) -> Ints:
        """The unit of each."""
        if people is self._sample:
            ranks = np.empty(len(people), np.int64)
            ranks[people.order] = np.arange(len(people))
        else:
            ranks = np.minimum(np.searchsorted(self._sorted, people.ids), len(self._sorted) - 1)
        return ranks * self._units // len(self._sorted)

    def count(self, code: Ints, kept: Bools) -> Ints:
        counts = np.bincount(code[kept], minlength=self._units)
        found = [np.zeros(0, np.int64)]
        for _ in range(1, self._levels):
            found.append(counts[:-1] + counts[1:])
            counts = counts[0::2] + counts[1::2]
        return np.concatenate(found)

    def _span(self, part: int) -> tuple[int, int]:
        """First unit, and the one after the last."""
        level = int(np.searchsorted(self._first, part, "right"))
        start = (part - int(self._first[level - 1])) << level - 1
        return start, start + (1 << level)

    def members(self, code: Ints, part: int) -> Bools:
        first, end = self._span(part)
        return np.asarray((code >= first) & (code < end))

    def where(self, part: int) -> str:
        first, end = self._span(part)
        edges = [min(unit * len(self._sorted) // self._units, len(self._sorted) - 1) for unit in (first, end)]
        return "ids {} to {}".format(*self._sorted[edges])

    def told(self, part: int, ids: npt.NDArray[np.uint64], share: float) -> tuple[str, float]:
        low, high = ids.min(), ids.max()
        between = np.searchsorted(self._sorted, high, "right") - np.searchsorted(self._sorted, low)
        return f"ids {low} to {high}", max(int(between), 1) / len(self._sorted)

    def widened(self, part: int, density: Floats) -> int:
        first, end = self._span(part)
        widest = part
        for level in range((end - first).bit_length(), self._levels):
            at, cells = int(self._first[level - 1]), int(self._first[level] - self._first[level - 1])
            last = first >> level - 1  # cell of this level that begins before the part; so may the one before it
            around = [at + cell for cell in (last - 1, last) if 0 <= cell < cells and cell + 2 << level - 1 >= end]
            best = max(around, key=lambda other: float(density[other]))
            if density[best] * BROADER >= density[part]:
                widest = best
        return widest
