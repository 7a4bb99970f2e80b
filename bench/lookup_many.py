"""get_many of 1,024 random ids, against the reads alone and against other stores.

The limit is a C loop, called for as many ids at a time, that only reads the ids' home lines out of kserve's own mapping
and adds their words: no comparison of ids, no second line for what overflowed, no answers. Of several ways to prefetch,
the fastest counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench import _kernels
from bench._data import U64, Data, Records
from bench._harness import Report, Run, Stopwatch, fastest, interleave, ratios
from bench._lookups import Ids, check_answers, loaded_peers
from bench._peers import Peer, RedisPeer
from kserve import Snapshot

BATCH = 1024
FAST_BATCHES, SLOW_BATCHES = 1024, 32
PIPELINED = 4  # MGETs in one round trip
ROUNDS = 21
BARS = {"dict": 10, "searchsorted": 10, "lmdb": 10, "rocksdb": 10, "redis": 20}
GROUPS = (8, 16, 32, 64, 128, 256)


def measure(run: Run) -> Report:
    """Nanoseconds an id."""
    data = Data(run)
    report = Report("lookup_many", f"get_many of {BATCH:,} random ids")
    records, snapshot = data.records(), data.snapshot()
    ids = Ids(records)
    limit = Limit(snapshot, run)
    report.notes.append(limit.check(ids.take(BATCH)))
    with loaded_peers(run, data, records, report, tuple(BARS)) as peers:
        report.notes.append(check_answers(snapshot, records, peers))
        report.notes.append(f"limit: {limit.tune(ids)}")
        contenders = {"kserve": lambda: kserve_once(snapshot, ids), "limit": lambda: limit.once(ids)}
        contenders |= {name: peer_once(peer, ids) for name, peer in peers.items()}
        seconds = interleave(contenders, run.rounds_or(ROUNDS))
    report.add_seconds(seconds, "ns")
    report.bar("get_many / the same reads alone", ratios(seconds["kserve"], seconds["limit"]), "at most", 1.5)
    for name in peers:
        report.bar(f"{name} / get_many", ratios(seconds[name], seconds["kserve"]), "at least", BARS[name])
    report.notes.append(size_note(snapshot, records))
    return report


def size_note(snapshot: Snapshot, records: Records) -> str:
    lines = snapshot.sections()["lines"]["length"]
    return f"{len(records):,} profiles in {lines / 1e6:,.0f} MB of lines, all in memory"


def kserve_once(snapshot: Snapshot, ids: Ids) -> float:
    """Seconds an id."""
    batches = ids.batches(FAST_BATCHES, BATCH)
    get_many = snapshot.get_many
    with Stopwatch() as watch:
        for batch in batches:
            get_many(batch)
    return watch.seconds / (FAST_BATCHES * BATCH)


def peer_once(peer: Peer, ids: Ids) -> Callable[[], float]:
    """What measures a peer: seconds an id."""
    if isinstance(peer, RedisPeer):
        return lambda: redis_once(peer, ids)

    def once() -> float:
        batches = [peer.keys(batch) for batch in ids.batches(SLOW_BATCHES, BATCH)]
        with Stopwatch() as watch:
            for batch in batches:
                peer.many(batch)
        return watch.seconds / (SLOW_BATCHES * BATCH)

    return once


def redis_once(peer: RedisPeer, ids: Ids) -> float:
    """Seconds an id, several MGETs of the batch's size in one pipeline."""
    batches = [peer.keys(batch) for batch in ids.batches(SLOW_BATCHES, BATCH)]
    with Stopwatch() as watch:
        for first in range(0, SLOW_BATCHES, PIPELINED):
            peer.pipelined(batches[first : first + PIPELINED])
    return watch.seconds / (SLOW_BATCHES * BATCH)


class Limit:
    """The C loop over the lines of a snapshot."""

    def __init__(self, snapshot: Snapshot, run: Run) -> None:
        self.kernels = _kernels.load(run.cache)
        self.snapshot = snapshot
        self.address = _kernels.address_of(snapshot, "lines")
        self.lines = snapshot.sections()["lines"]["length"] // 64
        self.read, self.group = self.kernels.read_grouped, GROUPS[0]

    def tune(self, ids: Ids) -> str:
        """Take the fastest way; which it is."""
        ways = {
            f"{name} {group}": (getattr(self.kernels, name), group)
            for name in ("read_grouped", "read_rolling")
            for group in GROUPS
        }
        best = fastest({name: self._trial(ids, *way) for name, way in ways.items()}, tries=5)
        self.read, self.group = ways[best]
        return best

    def _trial(self, ids: Ids, read: Callable[..., int], group: int) -> Callable[[], object]:
        def trial() -> None:
            for batch in ids.batches(FAST_BATCHES // 4, BATCH):
                read(self.address, self.lines, batch.ctypes.data, BATCH, group)

        return trial

    def once(self, ids: Ids) -> float:
        """Seconds an id."""
        addresses = [batch.ctypes.data for batch in ids.batches(FAST_BATCHES, BATCH)]
        read, address, lines, group = self.read, self.address, self.lines, self.group
        with Stopwatch() as watch:
            for batch in addresses:
                read(address, lines, batch, BATCH, group)
        return watch.seconds / (FAST_BATCHES * BATCH)

    def check(self, ids: U64) -> str:
        """The loop reads what kserve reads: the lines that hold most of the ids. Raises AssertionError if not."""
        lines = np.memmap(
            self.snapshot.path, np.uint64, "r", self.snapshot.sections()["lines"]["offset"], (self.lines, 8)
        )
        homes = home_lines(ids, self.lines)
        expected = int(lines[homes].sum(dtype=np.uint64))
        for read in (self.kernels.read_grouped, self.kernels.read_rolling):
            assert read(self.address, self.lines, ids.ctypes.data, len(ids), 16) == expected, (
                "the loop reads other lines"
            )
        held = float((lines[homes][:, :4] == ids[:, None]).any(axis=1).mean())
        assert held > 0.5, "these are not the home lines of kserve's profiles"
        return f"{held:.1%} of the ids are in their home line, the only one that the limit reads"


def home_lines(ids: U64, lines: int) -> list[int]:
    """As in kserve/layout.pxd, in plain Python."""
    return [mix(int(i)) * lines >> 64 for i in ids]


def mix(x: int) -> int:
    """As in kserve/layout.pxd, in plain Python."""
    x ^= x >> 27
    x = x * 0x3C79AC492BA7B653 & 0xFFFFFFFFFFFFFFFF
    x ^= x >> 33
    x = x * 0x1C69B3F74AC4AE35 & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 27)
