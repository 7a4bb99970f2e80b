"""What the look-up benchmarks share: the peers that there are, ids that are new each time, a check of all answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from bench._data import U64, Data, Records
from bench._harness import Report, Run
from bench._peers import LARGEST_DICT, DictPeer, LmdbPeer, Peer, RedisPeer, RocksdbPeer, SortedPeer
from kserve import Snapshot

POOL = 1 << 22
"""Random ids before they repeat: their lines are several times the processor's cache."""

CHECKED = 2048


class Ids:
    """Random ids of profiles; everybody gets others, so that nobody finds in the cache what another has read."""

    def __init__(self, records: Records, pool: int = POOL) -> None:
        self._pool = records.random_ids(pool, seed=7)
        self._at = 0

    def take(self, n: int) -> U64:
        """The next n."""
        if self._at + n > len(self._pool):
            self._at = 0
        self._at += n
        return self._pool[self._at - n : self._at]

    def batches(self, count: int, size: int) -> list[U64]:
        """``count`` times the next ``size``."""
        return [self.take(size) for _ in range(count)]


@contextmanager
def loaded_peers(
    run: Run, data: Data, records: Records, report: Report, names: tuple[str, ...]
) -> Iterator[dict[str, Peer]]:
    """Those of the named peers that can be had; the report says why the others cannot."""
    ordered = records.sorted()
    makers: dict[str, Callable[[], Peer]] = {
        "dict": lambda: DictPeer(records),
        "searchsorted": lambda: SortedPeer(ordered),
        "lmdb": lambda: LmdbPeer(run, data.folder / "lmdb", ordered),
        "rocksdb": lambda: RocksdbPeer(run, data.folder / "rocksdb", ordered),
        "redis": lambda: RedisPeer(run, records),
    }
    peers: dict[str, Peer] = {}
    with ExitStack() as stack:
        for name in names:
            with report.optional(name):
                run.require(name, most=LARGEST_DICT if name == "dict" else None)
                peers[name] = makers[name]()
                stack.callback(peers[name].close)
        yield peers


def check_answers(snapshot: Snapshot, records: Records, peers: dict[str, Peer]) -> str:
    """A sentence that all give the same scores for a sample. Raises AssertionError when one does not."""
    rows = np.random.default_rng(5).integers(0, len(records), CHECKED)
    ids, expected = records.ids[rows], records.scores[rows]
    scores = snapshot.get_many(ids)
    found = np.where(
        scores.status == 2, np.rint(np.nan_to_num(scores.values) * 100), np.where(scores.status == 1, 0xFFFF, 0)
    )
    assert np.array_equal(found.astype(np.uint16), expected), "kserve disagrees with its input"
    assert not snapshot.get_many(records.absent_ids(CHECKED)).status.any(), "kserve finds who is not there"
    for name, peer in peers.items():
        wanted = [0 if name == "dict" and score == 0xFFFF else int(score) for score in expected]
        assert peer.hundredths(peer.many(peer.keys(ids))) == wanted, f"{name} disagrees with the input"
    return f"the same {CHECKED:,} scores from the input, kserve{''.join(f', {name}' for name in peers)}"
