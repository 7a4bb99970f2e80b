"""store.score(id) of random ids, against dict.get, LMDB and RocksDB, one call an id.

All are called in the same Python loop, whose own time is shown and not taken off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench._data import Data
from bench._harness import Report, Run, Stopwatch, interleave, ratios
from bench._lookups import Ids, check_answers, loaded_peers
from bench._peers import Peer
from bench.lookup_many import size_note
from kserve import Store

CALLS = 100_000
ROUNDS = 15
BAR = 2
PEERS = ("dict", "lmdb", "rocksdb")


def measure(run: Run) -> Report:
    """Nanoseconds a call."""
    data = Data(run)
    report = Report("lookup_one", "store.score(id), random ids")
    records, snapshot = data.records(), data.snapshot()
    ids = Ids(records)
    with loaded_peers(run, data, records, report, PEERS) as peers:
        report.notes.append(check_answers(snapshot, records, peers))
        store = Store(snapshot)
        contenders = {"kserve": lambda: timed(store.score, ids.take(CALLS).tolist())}
        contenders |= {name: peer_once(peer, ids) for name, peer in peers.items()}
        contenders["the loop alone"] = lambda: timed(bool, ids.take(CALLS).tolist())
        seconds = interleave(contenders, run.rounds_or(ROUNDS))
        store.close()
    report.add_seconds(seconds, "ns")
    for name in peers:
        report.bar(f"{name} / store.score", ratios(seconds[name], seconds["kserve"]), "at least", BAR)
    report.notes.append(size_note(snapshot, records))
    return report


def peer_once(peer: Peer, ids: Ids) -> Callable[[], float]:
    """What measures a peer: seconds a call."""
    return lambda: timed(peer.one, peer.keys(ids.take(CALLS)))


def timed(function: Callable[..., object], arguments: Iterable[object]) -> float:
    """Seconds a call."""
    with Stopwatch() as watch:
        for argument in arguments:
            function(argument)
    return watch.seconds / CALLS
