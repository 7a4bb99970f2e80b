"""What is to be known of a snapshot, and of two of them side by side, measured at memory speed on all cores.

``kserve._census`` and ``kserve._compare`` count, each thread its own part of the file; here the parts are added up,
and get their names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kserve import Snapshot
from kserve._census import COLUMNS, MEASURES, RANGE_SLOTS, Census, add_rows, first_slots
from kserve._compare import EVENTS, Pairs
from kserve._details import DETAIL_COLUMNS
from kserve.records import NETWORKS
from kserve.snapshots.clusters import People, Search
from kserve.snapshots.measures import POINTS, Comparison, Groups, Mover, Moves, Portrait
from kserve.snapshots.regions import Regions

Progress = Callable[[int, int], None]
"""Called with what is done and what there is, now and then, from any thread, one call after the other."""

BLOCK = 64  # slots
STEP = 1 << 14  # blocks between two calls of progress
PARALLEL_BLOCKS = 1 << 13
LARGEST_CENSUS = RANGE_SLOTS // BLOCK
CASES = 1 << 19  # of one event that are looked at, at most, and profiles that they are held against
ID_RANGES = 1024
LEAST_IN_RANGE = 16  # profiles of the sample
MOVERS = 100
UNSCORED = 0xFFFF
ORDINARY = {"reconnected"}
"""Events of every night, which those have more often who have more to lose: no clusters are sought among them."""

FIVE, TEN = 500, 1000  # points, in hundredths
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def portrait(snapshot: Snapshot, progress: Progress | None = None, threads: int | None = None) -> Portrait:
    """One snapshot as a whole. ``threads``: as many as there are cores, if they are not given.

    Raises SnapshotError when the file is damaged.
    """
    ranges = _ranges(snapshot, threads)
    told = _Told(progress, _blocks(snapshot))
    first = Census(snapshot)
    parts = [first, *(Census(snapshot, first) for _ in ranges[1:])]
    _on_threads(lambda part, first, last: part.count(first, last), parts, ranges, told)
    return _portrait(parts, Regions(snapshot.locations()))


def compare(
    old: Snapshot, new: Snapshot, progress: Progress | None = None, *, least: int = 8, threads: int | None = None
) -> Comparison:
    """Two versions side by side. ``least``: profiles that are a cluster; ``threads``: as in :func:`portrait`.

    Raises SnapshotError when one of the files is damaged.
    """
    with ThreadPoolExecutor(1) as aside:
        preparing = aside.submit(_Prepared.of, old, new)
        parts = _paired(old, new, progress, threads)
        ready = preparing.result()
    before = _portrait([part.old for part in parts], ready.old_regions)
    after = _portrait([part.new for part in parts], ready.new_regions)
    both = sum(part.both for part in parts)
    moves = _sum([part.moves for part in parts])
    cases = _cases(parts)
    return Comparison(
        old=before,
        new=after,
        both=both,
        added=after.profiles - both,
        removed=before.profiles - both,
        became_unscored=sum(part.became_unscored for part in parts),
        became_scored=sum(part.became_scored for part in parts),
        changed=int(moves.sum() - moves[len(moves) // 2]),
        events={event: total for event, (_, total) in cases.items()},
        moves=moves,
        regions=_moves(ready.old_regions.names, [part.regions for part in parts], ready.old_regions.totals),
        topics=_moves(old.vocabulary.slugs, [part.topics for part in parts], lambda values: values[1:]),
        networks=_moves(NETWORKS, [part.networks for part in parts], lambda values: values),
        id_ranges=ready.id_ranges,
        clusters=ready.search.clusters({event: cases[event] for event in cases if event not in ORDINARY}, least),
        movers=_movers(parts),
    )


class _Prepared(NamedTuple):
    """What does not wait for the scan."""

    old_regions: Regions
    new_regions: Regions
    id_ranges: Moves
    search: Search

    @classmethod
    def of(cls, old: Snapshot, new: Snapshot) -> _Prepared:
        """For two snapshots."""
        regions = Regions(old.locations())
        sample = People.of(old, first_slots(old, CASES))
        return cls(regions, Regions(new.locations()), _id_ranges(sample, new), Search(old, sample, regions))


class _Told:
    """Adds up what the threads have done, for a progress bar."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = Lock()

    def add(self, blocks: int) -> None:
        if self._progress is not None:
            with self._lock:
                self._done += blocks
                self._progress(self._done * BLOCK, self._total * BLOCK)


def _blocks(snapshot: Snapshot) -> int:
    return snapshot.sections()["scores"]["length"] // 2 // BLOCK


def _ranges(snapshot: Snapshot, threads: int | None) -> list[range]:
    """The blocks of a snapshot, one range for each thread."""
    blocks = _blocks(snapshot)
    if threads is None:
        threads = (os.cpu_count() or 1) if blocks >= PARALLEL_BLOCKS else 1
    parts = max(threads, -(-blocks // LARGEST_CENSUS))
    edges = [blocks * part // parts for part in range(parts + 1)]
    return [range(first, last) for first, last in pairwise(edges)]


def _on_threads(
    count: Callable[[Any, int, int], None], parts: Sequence[Any], ranges: Sequence[range], told: _Told
) -> None:
    """``count(part, first block, last block)`` for every part and its range, step by step."""

    def run(part: Any, blocks: range) -> None:
        for first in blocks[::STEP]:
            last = min(first + STEP, blocks.stop)
            count(part, first, last)
            told.add(last - first)

    if len(parts) == 1:
        run(parts[0], ranges[0])
        return
    with ThreadPoolExecutor(len(parts)) as pool:
        for _ in pool.map(run, parts, ranges):
            pass


def _paired(old: Snapshot, new: Snapshot, progress: Progress | None, threads: int | None) -> list[Pairs]:
    """Both files counted: every profile of the new one with its partner, then those of the old one without."""
    ranges = _ranges(new, threads)
    told = _Told(progress, _blocks(old) + _blocks(new))
    first, most = (Census(old), Census(new)), -(-CASES // len(ranges))
    parts = [Pairs(*first, most)]
    parts += [Pairs(Census(old, first[0]), Census(new, first[1]), most) for _ in ranges[1:]]
    _on_threads(lambda part, first, last: part.count(first, last), parts, ranges, told)
    found = np.bitwise_or.reduce([part.found for part in parts])
    rest = _ranges(old, len(parts))
    _on_threads(lambda part, first, last: part.count_removed(found, first, last), parts, rest, told)
    return parts


def _sum(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.uint64]:
    total = arrays[0].astype(np.uint64)
    for array in arrays[1:]:
        total += array
    return total


def _portrait(parts: Sequence[Census], regions: Regions) -> Portrait:
    snapshot = parts[0].snapshot
    scores = _sum([part.scores for part in parts])
    slugs = snapshot.vocabulary.slugs
    first, second = _sum([part.lanes for part in parts]).tolist()
    places = _groups(regions.names, [part.regions for part in parts], regions.places, regions.rolled_up)
    return Portrait(
        version=snapshot.version,
        scored_at=EPOCH + timedelta(microseconds=snapshot.scored_at),
        file_bytes=snapshot.nbytes,
        profiles=int(scores.sum()),
        unscored=int(scores[UNSCORED]),
        histogram=scores[:10_001].copy(),
        values=_values(parts),
        nulls=_nulls(parts, scores),
        regions=places,
        topics=_groups(slugs, [part.topics for part in parts], np.arange(-1, len(slugs))),
        networks=_groups(NETWORKS, [part.networks for part in parts], np.arange(len(NETWORKS))),
        digest=f"{first:016x}{second:016x}",
    )


def _groups(
    names: Sequence[str],
    parts: Sequence[tuple[Any, Any, Any]],
    places: npt.NDArray[np.int64],
    finish: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] = lambda own: own,
) -> Groups:
    """Those that have a profile. ``places``: by the number of a group in the parts, the index of its name, or -1."""
    bins, sums = np.zeros((len(names), POINTS), np.uint64), np.zeros(len(names), np.uint64)
    for counts, carries, heads in parts:
        add_rows(counts, places, bins)
        if carries.any():
            bins[places[places >= 0]] += carries[places >= 0].astype(np.uint64) << 16
        sums[places[places >= 0]] += heads["sum"][places >= 0]
    profiles = finish(bins).sum(axis=1)
    sums = finish(sums)
    bins[:, 0] = 0
    if profiles.all():
        return Groups(tuple(names), profiles, bins, sums / 100)
    kept = np.flatnonzero(profiles)
    return Groups(tuple(names[i] for i in kept.tolist()), profiles[kept], bins[kept], sums[kept] / 100)


def _nulls(parts: Sequence[Census], scores: npt.NDArray[np.uint64]) -> dict[str, int]:
    """By column that the snapshot has: profiles without a value in it."""
    masks = _sum([part.details for part in parts])
    fields = np.arange(len(masks))
    without = [int(masks[fields >> field & 1 == 0].sum()) for field in range(len(DETAIL_COLUMNS))]
    nulls = {"score": int(scores[UNSCORED]), "location": sum(_size(part.regions, 0) for part in parts)}
    nulls |= dict(zip(COLUMNS, _sum([part.nulls for part in parts]).tolist(), strict=True))
    nulls |= dict(zip(DETAIL_COLUMNS, without, strict=True))
    return {column: nulls[column] for column in parts[0].snapshot.columns if column in nulls}


def _values(parts: Sequence[Census]) -> dict[str, npt.NDArray[np.uint64]]:
    columns, counts = parts[0].snapshot.columns, _sum([part.measures for part in parts])
    return {column: counts[i] for i, column in enumerate(MEASURES) if column in columns}


def _size(groups: tuple[Any, Any, Any], group: int) -> int:
    counts, carries, _ = groups
    return int(counts[group].sum(dtype=np.int64)) + (int(carries[group].sum(dtype=np.int64)) << 16)


def _moves(
    names: Sequence[str],
    parts: Sequence[tuple[npt.NDArray[np.void], npt.NDArray[np.uint32]]],
    totals: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
) -> Moves:
    both, over5 = (totals(_sum([near[name] for near, _ in parts])) for name in ("both", "over5"))
    over10 = totals(_sum([far for _, far in parts]))
    sums = totals(np.sum([near["sum"] for near, _ in parts], axis=0))
    kept = np.flatnonzero(both)
    return Moves(tuple(names[i] for i in kept.tolist()), both[kept], over5[kept], over10[kept], sums[kept] / 100)


def _id_ranges(sample: People, new: Snapshot) -> Moves:
    """How the profiles of a sample moved, by ranges of their ids with equally many of them."""
    before, after = sample.scores.astype(np.int64), new.hundredths(sample.ids).astype(np.int64)
    n, order = len(sample), sample.order
    count = max(min(ID_RANGES, n // LEAST_IN_RANGE), 1)
    edges = -(-n * np.arange(count + 1) // count)
    paired = (before != UNSCORED) & (after != UNSCORED) & (after != 0)
    move = ((after - before) * paired)[order]
    columns = (paired[order], np.abs(move) > FIVE, np.abs(move) > TEN, move)
    both, over5, over10, sums = (np.add.reduceat(column, edges[:-1], dtype=np.int64) for column in columns)
    names = [f"ids {a} to {b}" for a, b in sample.ids[order[np.stack([edges[:-1], edges[1:] - 1], axis=1)]]]
    return Moves(tuple(names), both.view(np.uint64), over5.view(np.uint64), over10.view(np.uint64), sums / 100)


def _cases(parts: Sequence[Pairs]) -> dict[str, tuple[npt.NDArray[np.uint64], int]]:
    """By event: slots of the old snapshot, and how many there would be."""
    lists = zip(*(part.cases for part in parts), strict=True)
    return {
        event: (np.concatenate([slots for slots, _ in found]), sum(total for _, total in found))
        for event, found in zip(EVENTS, lists, strict=True)
    }


def _movers(parts: Sequence[Pairs]) -> tuple[Mover, ...]:
    rows = np.concatenate([part.movers for part in parts])
    size = np.abs(rows["new"].astype(np.int64) - rows["old"])
    best = rows[np.argsort(-size, kind="stable")[:MOVERS]]
    return tuple(Mover(row["id"].item(), row["old"].item() / 100, row["new"].item() / 100) for row in best)
