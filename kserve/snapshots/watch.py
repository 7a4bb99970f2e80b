"""A thread that keeps a store at the announced version, and makes a staged one ready beside it."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import NamedTuple

from kserve._core import Snapshot, Store
from kserve._doorbell import Doorbell
from kserve._roster import PREPARING, READY, REFUSED, Roster, SeatView
from kserve.errors import KserveError, SnapshotError
from kserve.settings import Settings
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.signing import Order, Trust, admit, check_order, decode_order, encode_order

log = logging.getLogger("kserve.watch")

IDLE_SECONDS = 1.0
"""How often CURRENT is read although the doorbell did not ring: it may have come by another way, such as a copy."""

RETIRING_SECONDS = 0.02
"""How often a replaced version is looked at, until its last reader is gone."""

RESIDENT_SECONDS = 10.0
"""How often the kernel is asked which pages of the served file are in memory."""

_REFERENCES_HERE = 2  # the attribute, and the argument of getrefcount


class Gate:
    """Whom a process obeys that trusts keys: signed orders only, and each later than those obeyed before.

    The latest order is kept in ROSTER too, so that a restart does not forget it.
    """

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._settings = settings
        self._roster = Roster(catalog.roster)
        self._latest: Order | None = None

    def admit(self, version: str) -> None:
        """Raises SnapshotError unless the order in CURRENT may put this version in force; SettingError, OSError."""
        if self._settings.trusted_keys is None:
            return
        what = self._catalog.data / "CURRENT"
        order = self._catalog.order()
        if order is None:
            raise SnapshotError(what, "signature", f"nobody signed the order that puts {version} in force")
        check_order(order, Trust.load(self._settings.trusted_keys), what)
        self._roster.keep_order(lambda kept: self._latest_after(order, version, kept))

    def _latest_after(self, order: Order, version: str, kept: bytes | None) -> bytes:
        known = [] if self._latest is None else [self._latest]
        if kept is not None:
            known.append(decode_order(kept, self._catalog.roster))
        latest = max(known, key=lambda found: found.number, default=None)
        admit(order, version, latest, self._catalog.data / "CURRENT")
        self._latest = order
        return encode_order(order)


def in_force(catalog: Catalog, settings: Settings, gate: Gate) -> Snapshot:
    """The announced version, ready to be served. Raises NothingPublished, SnapshotError, SettingError."""
    version = catalog.announced()
    if version is not None:
        gate.admit(version)
    return prepared(catalog, version, settings)


def prepared(catalog: Catalog, version: str | None, settings: Settings) -> Snapshot:
    """A version opened, checked and warmed as far as the settings say. Raises SnapshotError, NothingPublished."""
    name = version or catalog.announced()
    if name is not None and settings.trusted_keys is not None:
        catalog.check_signature(name, Trust.load(settings.trusted_keys))
    snapshot = catalog.open(name)
    if settings.verify_at_open == "full":
        snapshot.verify()
    if settings.warm:
        snapshot.warm()
    return snapshot


class _Staging:
    """One version on its way to being ready, in a thread of its own: nobody waits for it, nor can it be stopped."""

    def __init__(self, version: str, seen: tuple[object, ...], make: Callable[[], Snapshot]) -> None:
        self.version = version
        self.seen = seen
        """What it was about the version, and the count of the bell; a refused one is tried again when that changes."""
        self.snapshot: Snapshot | None = None
        self.refused = ""
        self._make = make
        self._thread = threading.Thread(target=self._run, name="kserve-staging", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.snapshot = self._make()
        except (KserveError, OSError) as error:
            log.error("staged version %s is refused: %s", self.version, error)
            self.refused = str(error)
        except Exception as error:
            log.exception("staged version %s is refused", self.version)
            self.refused = repr(error)

    @property
    def state(self) -> str:
        """One of PREPARING, READY, REFUSED."""
        if self.refused:
            return REFUSED
        return PREPARING if self.snapshot is None else READY


class _Retired(NamedTuple):
    """A replaced version, and until when it is kept although nobody reads it (seconds of the monotonic clock)."""

    snapshot: Snapshot
    until: float


class Follower:
    """Opens, checks and warms a newly announced version, then swaps it in; unmaps the old one here, not in a reader.

    A version that is refused is remembered and logged, and the store keeps what it has, until the file or the
    announcement is another one. What may pass, such as a file that is not there yet, is tried again. A staged version
    is made ready beside that, so that neither an announcement nor a rollback waits for it.
    """

    def __init__(self, store: Store, catalog: Catalog, settings: Settings, gate: Gate | None = None) -> None:
        self._store = weakref.ref(store)
        self._catalog = catalog
        self._settings = settings
        self._gate = gate or Gate(catalog, settings)
        self.seat = Roster(catalog.roster).take("reader")
        """Where other processes see what this one serves."""
        self.seat.serve(store.version)
        self._keep_seconds = 0.0
        self._stopped = False
        self._retired: list[_Retired] = []
        self._switch = ("", "")
        """The version that was swapped in last, and the one that it replaced."""
        self._staging: _Staging | None = None
        self._told: tuple[str | None, str, str] = (None, "", "")
        self._refused: tuple[object, ...] | None = None
        """The version that cannot be served, and what it was about it: until that changes it is not tried again."""
        self._troubles: dict[str, str] = {}
        """By step, what kept it from being done; told when it is new."""
        self._measure_at = 0.0
        self._bell: Doorbell | None = None
        self._start()
        _followers.add(self)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="kserve-follower", daemon=True)
        self._thread.start()

    def follows(self, store: Store) -> bool:
        """Whether it is this store that is kept up to date."""
        return self._store() is store

    def serves_at(self, address: str) -> None:
        """This process is a server: it keeps the version before at hand as long as the new one is watched."""
        self._keep_seconds = self._settings.watch.seconds
        self.seat.open_to("server", address)

    def replaced(self, version: str) -> Snapshot | None:
        """The version that this one has replaced, while the switch is watched."""
        now = time.monotonic()
        kept = (retired.snapshot for retired in list(self._retired) if now < retired.until)
        return next((snapshot for snapshot in kept if (version, snapshot.version) == self._switch), None)

    def stop(self) -> None:
        """End the thread. The store keeps its version."""
        self._stopped = True
        if self._bell is not None:
            self._bell.wake()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=2 * IDLE_SECONDS)
        self.seat.leave()

    def restart_after_fork(self) -> None:
        """Threads do not survive a fork; the store of the child follows too, from a place of its own."""
        if not self._stopped:
            self._staging = None
            self.seat.renew()
            self._start()

    def _run(self) -> None:
        while not self._stopped and self._store() is not None:
            self._bell = self._bell or self._catalog.doorbell()
            seen = self._bell.count() if self._bell is not None else 0
            self._try(self._catch_up, seen)
            self._try(self._follow_staged, seen)
            self._try(self._measure, seen)
            self._wait(seen)
        self.seat.leave()

    def _try(self, step: Callable[[int], None], rung: int) -> None:
        try:
            step(rung)
        except (KserveError, OSError) as error:
            self._say_once(step.__name__, str(error))
        except Exception:
            log.exception("cannot follow %s", self._catalog.data)

    def _wait(self, seen: int) -> None:
        releasing = self._release()
        staging = self._staging is not None and self._told[1] == PREPARING
        seconds = RETIRING_SECONDS if releasing or staging else IDLE_SECONDS
        if self._bell is None:
            threading.Event().wait(min(seconds, 0.05))
        elif not self._stopped:
            self._bell.wait(seen, seconds)

    def _catch_up(self, rung: int) -> None:
        store = self._store()
        version = self._catalog.announced()
        if store is None or version is None or version == store.version:
            return
        seen = (version, rung, self._catalog.fingerprint(version))
        if seen == self._refused or self._is_on_its_way(version):
            return
        try:
            self._gate.admit(version)
            fresh = self._at_hand(version) or prepared(self._catalog, version, self._settings)
        except SnapshotError as error:
            self._refused = seen
            log.error("version %s stays unserved, %s is kept: %s", version, store.version, error)
        except (KserveError, OSError) as error:
            trouble = f"version {version} cannot be opened yet, {store.version} is kept: {error}"
            self._say_once(self._catch_up.__name__, trouble)
        else:
            self._swap(store, fresh)

    def _swap(self, store: Store, fresh: Snapshot) -> None:
        if self._stopped:
            return
        self.seat.serve(fresh.version)  # before the first answer from it is counted
        self._switch = (fresh.version, store.version)
        self._retired.append(_Retired(store.swap(fresh), time.monotonic() + self._keep_seconds))
        self._troubles.clear()
        self._measure_at = 0.0
        log.info("now at version %s", fresh.version)

    def _is_on_its_way(self, version: str) -> bool:
        return self._staging is not None and self._staging.version == version and self._staging.state == PREPARING

    def _at_hand(self, version: str) -> Snapshot | None:
        """A version that was made ready, or that is still mapped from before: it was checked then."""
        if self._staging is not None and self._staging.version == version:
            return self._staging.snapshot
        for retired in self._retired:
            if retired.snapshot.version == version:
                self._retired.remove(retired)
                return retired.snapshot
        return None

    def _follow_staged(self, rung: int) -> None:
        store = self._store()
        version = self._catalog.staged()
        if store is None:
            return
        if version is None or version == store.version:
            self._staging = None
            self._tell(version, READY if version else "")
            return
        seen = (version, rung, self._catalog.fingerprint(version))
        staging = self._staging
        if staging is None or staging.version != version or (staging.refused and staging.seen != seen):
            staging = _Staging(version, seen, lambda: prepared(self._catalog, version, self._settings))
            self._staging = staging
        self._tell(version, staging.state, staging.refused)

    def _tell(self, version: str | None, state: str, why: str = "") -> None:
        if self._told != (version, state, why):
            self._told = (version, state, why)
            self.seat.stage(version, state, why)

    def _measure(self, rung: int) -> None:
        """Ask how much of the served file is in memory, now and then."""
        store = self._store()
        if store is not None and not self._stopped and time.monotonic() >= self._measure_at:
            self._measure_at = time.monotonic() + RESIDENT_SECONDS
            self.seat.resident(store.snapshot().resident())

    def _say_once(self, step: str, trouble: str) -> None:
        """What may pass is tried again every second."""
        if self._troubles.get(step) != trouble:
            self._troubles[step] = trouble
            log.error(trouble)

    def _release(self) -> bool:
        """Let go of replaced versions that nobody reads, nor may want back; whether one only waits for readers."""
        kept = []
        now = time.monotonic()
        while self._retired:
            retired = self._retired.pop()
            if now < retired.until or sys.getrefcount(retired.snapshot) > _REFERENCES_HERE:
                kept.append(retired)
        self._retired = kept
        return any(now >= retired.until for retired in kept)


_followers: weakref.WeakSet[Follower] = weakref.WeakSet()


def follower_of(store: Store) -> Follower | None:
    """Who keeps this store up to date."""
    return next((follower for follower in list(_followers) if follower.follows(store)), None)


def processes(catalog: Catalog) -> list[SeatView]:
    """The living processes that read from this data directory, by place. Raises OSError."""
    return Roster(catalog.roster).seats()


def _restart_followers() -> None:
    for follower in list(_followers):
        follower.restart_after_fork()


os.register_at_fork(after_in_child=_restart_followers)
