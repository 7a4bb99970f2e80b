"""The sentinel: watches what all servers of a host answer after a switch, and takes a bad version back.

Every server has one. All of them sample the roster; the one that holds the lock acts, and when it dies another does.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kserve._core import Snapshot
from kserve._roster import Roster, SeatView, Served
from kserve._sample import sample
from kserve.errors import Held, KserveError
from kserve.serving.verdict import UNKNOWN, Bounds, Breaches, Pairs, failures, verdict
from kserve.settings import Settings
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.durable import release
from kserve.snapshots.orders import Orders
from kserve.snapshots.state import State, Unjudged

log = logging.getLogger("kserve.sentinel")

SAMPLE_SECONDS = 0.25
"""How often the roster is looked at."""

NOTHING = Served(*[0] * len(Served._fields))


class Spell(NamedTuple):
    """One process's time with one version."""

    place: int
    pid: int
    since: float
    switches: int


class History:
    """What all servers together answered lately, by version; ``seconds`` of it, on the clock of whoever adds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began: float | None = None
        self._last: dict[Spell, Served] = {}
        self._samples: deque[tuple[float, dict[str, Served]]] = deque()

    def add(self, now: float, seats: Sequence[SeatView], wall: float) -> None:
        """Take down how far the servers have come. ``wall``: the same moment as the roster tells time."""
        began = wall if self._began is None else self._began
        known: dict[Spell, Served] = {}
        fresh: dict[str, Served] = {}
        for spell, version, switched, counts in _spells(seats):
            # What a process answered before anyone looked is not of this time.
            before = self._last.get(spell, NOTHING if switched >= began else counts)
            known[spell] = counts
            fresh[version] = plus(fresh.get(version, NOTHING), minus(counts, before))
        self._began, self._last = began, known
        moved = {version: counts for version, counts in fresh.items() if any(counts)}
        if moved:
            self._samples.append((now, moved))
        while self._samples and self._samples[0][0] < now - self._seconds:
            self._samples.popleft()

    def answers(self, version: str, start: float, end: float) -> Served:
        """From that version, from ``start`` until before ``end``."""
        return total(counts[version] for at, counts in self._samples if start <= at < end and version in counts)


def _spells(seats: Iterable[SeatView]) -> Iterator[tuple[Spell, str, float, Served]]:
    for seat in seats:
        if seat.role == "server" and seat.version is not None:
            spell = Spell(seat.place, seat.pid, seat.since, seat.switches)
            yield spell, seat.version, seat.switched, seat.served
            if seat.previous is not None:
                earlier = spell._replace(switches=seat.switches - 1)
                yield earlier, seat.previous, 0.0, seat.previous_served


def plus(one: Served, other: Served) -> Served:
    """The counts of both."""
    return Served(*map(sum, zip(one, other, strict=True)))


def minus(one: Served, other: Served) -> Served:
    """What was counted since ``other``."""
    return Served(*(new - old for new, old in zip(one, other, strict=True)))


def total(counts: Iterable[Served]) -> Served:
    """All of them together."""
    rows = list(counts)
    return Served(*map(sum, zip(*rows, strict=True))) if rows else NOTHING


class Watched:
    """One version under watch, beside the good one that it is compared with.

    A version that was restored was judged before: only whether it is answered from without failures is watched.
    """

    def __init__(self, unjudged: Unjudged, base: str | None, catalog: Catalog, settings: Settings) -> None:
        self.unjudged = unjudged
        self.base = base
        self.began = time.monotonic()
        model = unjudged.model
        self.bounds = Bounds.of(settings.watch, None if model is None else settings.models.get(model))
        self._catalog = catalog
        self._limit = settings.watch.hot_ids
        self._both: tuple[Snapshot, Snapshot] | None = None
        self._others = np.empty(0, dtype=np.uint64)
        self._lost = False

    def breaches(
        self, before: Served, after: Served, hot_ids: npt.NDArray[np.uint64], *, paired_with_good: bool
    ) -> Breaches:
        """What is wrong with the version, as far as can be told at this look: see :func:`verdict`."""
        if not self.looked:
            self._open()
        if self._both is not None:
            asked, some = self._pairs(*self._both, hot_ids)
            return verdict(before, after, asked, some, self.bounds, paired_with_good=paired_with_good)
        if self._lost:
            return verdict(before, after, None, None, self.bounds)
        return failures(before, after, self.bounds)

    @property
    def looked(self) -> bool:
        """Whether all that there is to look at could be looked at: not while a version cannot be opened just now."""
        return self._both is not None or self._lost or self.base is None or self.unjudged.restored

    def _pairs(self, old: Snapshot, new: Snapshot, hot_ids: npt.NDArray[np.uint64]) -> tuple[Pairs, Pairs]:
        """The ids that are asked for now, on both versions; and with others, up to the setting ``watch.hot_ids``.

        Of an id that the good version does not know either, nothing is learnt.
        """
        asked = hot_ids[old.hundredths(hot_ids) != UNKNOWN]
        others = np.setdiff1d(self._others, asked)[: max(self._limit - len(asked), 0)]
        before, after = (np.concatenate([s.hundredths(asked), s.hundredths(others)]) for s in (old, new))
        return Pairs.of(before[: len(asked)], after[: len(asked)]), Pairs.of(before, after)

    def _open(self) -> None:
        assert self.base is not None
        try:
            self._both = self._catalog.open(self.base), self._catalog.open(self.unjudged.version)
        except KserveError as error:
            log.error("only served answers are compared: %s", error)
            self._lost = True
        except OSError as error:
            log.error("only failures are looked for at this look: %s", error)
        else:
            self._others = np.random.default_rng().permutation(sample(self._both[0], self._limit, time.time_ns()))


class Sentinel(threading.Thread):
    """The thread. It must not fail: what it cannot do now it tries again at the next look."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        super().__init__(name="kserve-sentinel", daemon=True)
        self._catalog = catalog
        self._settings = settings
        self._orders = Orders(catalog, settings)
        self._roster = Roster(catalog.roster)
        self._history = History(settings.watch.before + settings.watch.seconds)
        self._lock = Lock(catalog.data / "SENTINEL")
        self._by = f"sentinel@{socket.gethostname()}"
        self._watched: Watched | None = None
        self._troubled = ""
        self._stopped = threading.Event()

    def run(self) -> None:
        """Until :meth:`stop`."""
        while not self._stopped.wait(SAMPLE_SECONDS):
            try:
                self.look()
                self._troubled = ""
            except (KserveError, OSError) as error:
                self._say_once(str(error))
            except Exception:
                log.exception("the sentinel failed")
        self._lock.release()

    def stop(self) -> None:
        """End; another process of the host takes over."""
        self._stopped.set()
        self.join(timeout=2)

    def look(self) -> None:
        """Once: sample, and act if it is this process that does."""
        seats = self._roster.seats()
        self._history.add(time.monotonic(), seats, time.time())
        state = self._orders.state()
        self._watched = self._watch(state)
        if not self._lock.taken():
            return
        restored = self._orders.settle()
        if restored is not None:
            log.warning("carried out the rollback to %s that somebody had begun", restored)
        elif self._watched is not None and self._catalog.live() == self._watched.unjudged.version:
            self._judge(self._watched, seats)

    def _watch(self, state: State) -> Watched | None:
        """What there is to watch: a version in force of which nobody knows yet whether it is good."""
        unjudged = state.unjudged
        if unjudged is None or state.frozen:
            return None
        if self._watched is not None and self._watched.unjudged == unjudged:
            return self._watched
        others = [name for name in state.good if name != unjudged.version]
        base = unjudged.version if unjudged.restored else others[-1] if others else None
        return Watched(unjudged, base, self._catalog, self._settings)

    def _judge(self, watched: Watched, seats: list[SeatView]) -> None:
        before, after = self._answers(watched, seats)
        came_from = {seat.previous for seat in seats if seat.version == watched.unjudged.version} - {None}
        paired = came_from <= {watched.base}
        hot_ids = self._roster.hot_ids(self._settings.watch.hot_ids)
        breaches = watched.breaches(before, after, hot_ids, paired_with_good=paired)
        if breaches:
            self._take_back(watched, breaches, after)
        elif watched.looked and time.monotonic() - watched.began >= self._settings.watch.seconds:
            self._call_good(watched, seats, after)

    def _answers(self, watched: Watched, seats: list[SeatView]) -> tuple[Served, Served]:
        """Of the version that it is compared with, before the switch; and of the new one, since then."""
        now, version, base = time.monotonic(), watched.unjudged.version, watched.base
        after = self._history.answers(version, watched.began - 2 * SAMPLE_SECONDS, now)
        if base is None:
            return NOTHING, after
        restored = watched.unjudged.restored
        end = watched.began - 2 * SAMPLE_SECONDS if restored else now
        before = self._history.answers(base, watched.began - self._settings.watch.before, end)
        if before.answers < watched.bounds.answers:
            # This process is new here, or what is restored was long out of force: the servers know what they had last.
            before = total(seat.previous_served for seat in seats if restored or seat.previous == base)
        return before, after

    def _take_back(self, watched: Watched, breaches: Breaches, after: Served) -> None:
        version = watched.unjudged.version
        figures = {name: breach.told() for name, breach in breaches.items()}
        why = "; ".join(
            f"{name} went from {breach.before:.4g} to {breach.after:.4g} (bound {breach.threshold:g})"
            for name, breach in breaches.items()
        )
        if not self._orders.breached(watched.unjudged):  # it may be told by one that died before it could roll back
            log.error("version %s answers badly: %s", version, why)
            self._orders.breach(version, figures, by=self._by)
        if watched.unjudged.restored:
            self._orders.freeze(f"{version} was restored, and answers badly too: {why}", by=self._by)
            return
        seen: dict[str, Any] = {"by_sentinel": True, "breach": figures, "answers": after.answers}
        try:
            restored = self._orders.rollback(by=self._by, why=why, seen=seen, of=version, frozen=True)
        except Held as error:
            if self._catalog.live() != version:
                return
            self._orders.freeze(f"{version} answers badly ({why}), and {error}", by=self._by)
            log.critical("version %s stays in force: %s", version, error)
        else:
            log.error("rolled back from %s to %s; it is pinned until a human unpins", version, restored)

    def _call_good(self, watched: Watched, seats: list[SeatView], after: Served) -> None:
        version = watched.unjudged.version
        if any(seat.role == "server" and seat.version == version for seat in seats):
            seen = {"answers": after.answers, "compared_with": watched.base}
            if self._orders.judge_good(version, seen, by=self._by):
                log.info("version %s is good: %s answers", version, after.answers)

    def _say_once(self, trouble: str) -> None:
        if trouble != self._troubled:
            self._troubled = trouble
            log.error("the sentinel cannot look: %s", trouble)


class Lock:
    """Who acts: one process of the host, as long as it lives."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def taken(self) -> bool:
        """Whether it is ours, or can be had now. Raises OSError."""
        if self._descriptor >= 0:
            return True
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Let another process have it."""
        if self._descriptor >= 0:
            release(self._descriptor)
            self._descriptor = -1
