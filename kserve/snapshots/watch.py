"""A thread that keeps a store at the announced version."""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref

from kserve._core import Snapshot, Store
from kserve._doorbell import Doorbell
from kserve.errors import KserveError, SnapshotError
from kserve.settings import Settings
from kserve.snapshots.catalog import Catalog

log = logging.getLogger("kserve.watch")

IDLE_SECONDS = 1.0
"""How often CURRENT is read although the doorbell did not ring: it may have come by another way, such as a copy."""

RETIRING_SECONDS = 0.02
"""How often a replaced version is looked at, until its last reader is gone."""

_REFERENCES_HERE = 2  # the variable, and the argument of getrefcount


class Follower:
    """Opens, checks and warms a newly announced version, then swaps it in; unmaps the old one here, not in a reader.

    A version that is refused is remembered and logged, and the store keeps what it has, until the file or the
    announcement is another one. What may pass, such as a file that is not there yet, is tried again.
    """

    def __init__(self, store: Store, catalog: Catalog, settings: Settings) -> None:
        self._store = weakref.ref(store)
        self._catalog = catalog
        self._settings = settings
        self._stopped = False
        self._retired: list[Snapshot] = []
        self._refused: tuple[object, ...] | None = None
        """The version that cannot be served, and what it was about it: until that changes it is not tried again."""
        self._troubled = ""
        self._bell: Doorbell | None = None
        self._start()
        _followers.add(self)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="kserve-follower", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. The store keeps its version."""
        self._stopped = True
        if self._bell is not None:
            self._bell.wake()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=2 * IDLE_SECONDS)

    def restart_after_fork(self) -> None:
        """Threads do not survive a fork; the store of the child follows too."""
        if not self._stopped:
            self._start()

    def _run(self) -> None:
        while not self._stopped and self._store() is not None:
            self._bell = self._bell or self._catalog.doorbell()
            seen = self._bell.count() if self._bell is not None else 0
            try:
                self._catch_up(seen)
            except (KserveError, OSError) as error:
                self._say_once(str(error))
            except Exception:
                log.exception("cannot follow %s", self._catalog.data)
            self._release()
            seconds = RETIRING_SECONDS if self._retired else IDLE_SECONDS
            if self._bell is None:
                threading.Event().wait(min(seconds, 0.05))
            elif not self._stopped:
                self._bell.wait(seen, seconds)

    def _catch_up(self, rung: int) -> None:
        store = self._store()
        version = self._catalog.announced()
        if store is None or version is None or version == store.version:
            return
        state = (version, rung, self._catalog.fingerprint(version))
        if state == self._refused:
            return
        try:
            fresh = prepared(self._catalog, version, self._settings)
        except SnapshotError as error:
            self._refused = state
            log.error("version %s stays unserved, %s is kept: %s", version, store.version, error)
        except (KserveError, OSError) as error:
            self._say_once(f"version {version} cannot be opened yet, {store.version} is kept: {error}")
        else:
            if not self._stopped:
                self._retired.append(store.swap(fresh))
                self._troubled = ""
                log.info("now at version %s", version)

    def _say_once(self, trouble: str) -> None:
        """What may pass is tried again every second, and told when it is new."""
        if trouble != self._troubled:
            self._troubled = trouble
            log.error(trouble)

    def _release(self) -> None:
        """Let go of replaced versions that nobody else reads any more."""
        kept = []
        while self._retired:
            snapshot = self._retired.pop()
            if sys.getrefcount(snapshot) > _REFERENCES_HERE:
                kept.append(snapshot)
        self._retired = kept


def prepared(catalog: Catalog, version: str | None, settings: Settings) -> Snapshot:
    """A version opened, checked and warmed as far as the settings say. Raises SnapshotError, NothingPublished."""
    snapshot = catalog.open(version)
    if settings.verify_at_open == "full":
        snapshot.verify()
    if settings.warm:
        snapshot.warm()
    return snapshot


_followers: weakref.WeakSet[Follower] = weakref.WeakSet()


def _restart_followers() -> None:
    for follower in list(_followers):
        follower.restart_after_fork()


os.register_at_fork(after_in_child=_restart_followers)
