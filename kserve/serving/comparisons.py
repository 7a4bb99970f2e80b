"""Comparisons of two versions for the console: one at a time, on one core, the last few kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from dataclasses import dataclass

from kserve._core import Snapshot
from kserve.errors import Busy
from kserve.snapshots.catalog import SNAPSHOT, Catalog
from kserve.snapshots.compare import compare
from kserve.snapshots.measures import Comparison

KEPT = 4
"""Comparisons that are remembered: each has the histograms of every region and topic."""

Pair = tuple[str, str]


@dataclass
class _Running:
    """The comparison that is being made; ``share`` of it is done."""

    pair: Pair
    result: Future[Comparison]
    share: float = 0.0


class Comparisons:
    """For any number of threads."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="kserve-compare")
        self._running: _Running | None = None
        self._kept: OrderedDict[Pair, Comparison] = OrderedDict()
        self._closed = False

    def get(self, old: str, new: str, seconds: float) -> Comparison | float:
        """Two versions side by side; after so many seconds, the share that is done by then: ask again.

        Raises Busy while two other versions are compared, and after :meth:`close`; UnknownVersion, SnapshotError.
        """
        with self._lock:
            kept = self._kept.get((old, new))
            if kept is not None:
                self._kept.move_to_end((old, new))
                return kept
            running = self._begin((old, new))
        try:
            found = running.result.result(seconds)
        except TimeoutError:
            return running.share
        self._keep((old, new), found)
        return found

    def close(self) -> None:
        """Begin no more, and end what is under way: the interpreter waits for it at its end."""
        self._closed = True
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise Busy("this server is ending: nothing more is compared")

    def _begin(self, pair: Pair) -> _Running:
        self._refuse_closed()
        if self._running is not None and self._running.pair == pair:
            failed = self._running.result.done() and self._running.result.exception() is not None
            if not failed:
                return self._running
        elif self._running is not None and not self._running.result.done():
            raise Busy(f"{' and '.join(self._running.pair)} are being compared: try again in a moment")
        self._running = running = _Running(pair, Future())
        self._worker.submit(self._make, running)
        return running

    def _make(self, running: _Running) -> None:
        def progress(done: int, total: int) -> None:
            self._refuse_closed()
            running.share = done / max(total, 1)

        try:
            with self._open(running.pair[0]) as old, self._open(running.pair[1]) as new:
                running.result.set_result(compare(old, new, progress, threads=1))
        except BaseException as error:
            running.result.set_exception(error)

    def _open(self, version: str) -> Snapshot:
        return Snapshot(self._catalog.folder(version) / SNAPSHOT)

    def _keep(self, pair: Pair, found: Comparison) -> None:
        with self._lock:
            self._kept[pair] = found
            self._kept.move_to_end(pair)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            if self._running is not None and self._running.pair == pair:
                self._running = None
