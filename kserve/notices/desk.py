"""The desk: reads the log of acts and tells of them. The log is the truth, incidents and events follow from it.

Where the desk has got to stands in the database, and moves in the transaction that records what followed: a crash
between an act and its notice loses nothing and tells nothing twice. Ids follow from the act's own line.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from kserve.errors import Busy, KserveError, StorageError
from kserve.notices import events
from kserve.notices.incidents import (
    TEXT_CHARACTERS,
    TITLE_CHARACTERS,
    Incident,
    Report,
    Status,
    fitted,
    open_incident,
    open_of,
    resolve_incident,
    update_incident,
)
from kserve.notices.store import Store, stamp
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.durable import storage
from kserve.snapshots.log import Entry, Log, line_digest

log = logging.getLogger("kserve.notices")

HELD, SCORES, FREEZE, REPLACED = "held", "scores", "freeze", "log"
"""Origins of automatic incidents; of each, one is open at a time."""

GATES_IN_TITLE = 3


class Desk:
    """What follows from the acts in ``catalog``, in ``store``. Any number of desks may work on one data directory."""

    def __init__(self, store: Store, catalog: Catalog) -> None:
        self._store = store
        self._catalog = catalog
        self._path = catalog.data / "log.jsonl"
        self._seen: tuple[int, ...] | None = None
        self._handlers: dict[str, Callable[[Entry, str], None]] = {
            "check": self._checked,
            "announce": self._announced,
            "breach": self._breached,
            "rollback": self._rolled_back,
            "good": self._judged,
            "freeze": self._frozen,
            "unpin": self._unpinned,
        }

    def poll(self) -> int:
        """As :meth:`catch_up`, but looks no further when nothing was written since the last time."""
        seen = self._status()
        if seen == self._seen and self._store.fact("announcing") is None:
            return 0
        count = self.catch_up()
        self._seen = seen
        return count

    def catch_up(self) -> int:
        """Tell of every act that was not told of yet; returns how many. Raises StorageError, Busy."""
        with storage(f"reading {self._path}"), self._store.writing():
            entries = Log(self._path).entries()
            fresh = self._fresh(entries)
            for entry in fresh:
                self._handle(entry)
            if entries and fresh:
                self._store.keep("position", f"{entries[-1].n} {line_digest(entries[-1])}")
            self._settle(self._catalog.live(), final=False)
        return len(fresh)

    def _status(self) -> tuple[int, ...]:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return ()
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _fresh(self, entries: list[Entry]) -> list[Entry]:
        """The acts after the last one that was told of; all that are not known when the log was replaced."""
        position = self._store.fact("position")
        if position is None or not entries:
            return entries
        number, digest = position.split()
        last = next((entry for entry in entries if entry.n == int(number)), None)
        if last is not None and line_digest(last) == digest:
            return [entry for entry in entries if entry.n > last.n]
        log.error("%s does not go on from act %s: it was replaced, and is read from its beginning", self._path, number)
        known = {row["digest"] for row in self._store.rows("SELECT digest FROM acts")}
        self._report_replaced(number)
        self._store.keep("position", f"{entries[-1].n} {line_digest(entries[-1])}")
        return [entry for entry in entries if line_digest(entry) not in known]

    def _report_replaced(self, number: str) -> None:
        text = f"log.jsonl does not go on from act {number}. Look for who replaced it, and verify it."
        if open_of(self._store, REPLACED) is None:
            report = Report(
                title="The log of acts was replaced",
                text=text,
                components=("publishing",),
                impact="major",
                visibility="internal",
                origin=REPLACED,
            )
            open_incident(self._store, report, by="kserve")

    def _handle(self, entry: Entry) -> None:
        """An act that cannot be told of must not keep the desk from all that come after it."""
        digest = line_digest(entry)
        self._store.run("INSERT OR IGNORE INTO acts VALUES (?, ?)", digest, entry.n)
        handler = self._handlers.get(entry.act)
        if handler is None:
            return
        try:
            with self._store.writing():
                handler(entry, digest)
        except (StorageError, Busy):
            raise
        except (KserveError, LookupError, TypeError, ValueError, AttributeError) as error:
            log.error("act %d (%s) of %s cannot be told of: %r", entry.n, entry.act, self._path, error)

    def _checked(self, entry: Entry, digest: str) -> None:
        self._settle(entry.seen.get("against"), final=False)
        held = [str(gate) for gate in entry.seen.get("held") or ()]
        if not held:
            return
        text = f"{entry.version} was held by {_words(held)}. Readers keep what they have."
        found = open_of(self._store, HELD)
        if found is not None:
            self._update(found, text, entry)
            return
        shown = held[:GATES_IN_TITLE] + [f"{len(held) - GATES_IN_TITLE} more"] * (len(held) > GATES_IN_TITLE)
        title = f"Publish of {entry.version} held by {_words(shown)}"
        self._open(HELD, title, text, entry, digest, components=("publishing",), visibility="internal")

    def _announced(self, entry: Entry, digest: str) -> None:
        """An announcement is logged before it takes effect, so it is told of when it has."""
        self._settle(entry.seen.get("previous"), final=True)
        self._store.keep("announcing", msgspec.json.encode(entry).decode())

    def _settle(self, in_force: str | None, *, final: bool) -> None:
        """Tell of the announcement that waits if its version is, or was, in force; forget it when that is final."""
        waiting = self._store.fact("announcing")
        if waiting is None:
            return
        entry = msgspec.json.decode(waiting, type=Entry)
        if final or entry.version == in_force:
            self._store.keep("announcing", None)
        if entry.version == in_force:
            self._tell_announced(entry)

    def _tell_announced(self, entry: Entry) -> None:
        previous = entry.seen.get("previous")
        self._store.keep(f"announced {entry.version}", stamp(entry.at))
        if previous != entry.version:
            data = {
                "version": entry.version,
                "previous": previous,
                "scored_at": events.scored_at(entry.version),
                "announced_at": events.utc(entry.at),
            }
            self._tell("snapshot.announced", entry, data)
        found = open_of(self._store, HELD)
        if found is not None:
            text = f"{entry.version} was announced."
            self._resolve(found, text, entry)

    def _breached(self, entry: Entry, digest: str) -> None:
        self._settle(entry.version, final=False)
        text = f"Answers from {entry.version} look wrong{_figures(entry.seen)}."
        found = open_of(self._store, SCORES)
        if found is None:
            title = f"Wrong scores served from version {entry.version}"
            self._open(SCORES, title, text, entry, digest, components=("scores",), impact="major")
        else:
            self._update(found, text, entry, "identified" if found.status == "monitoring" else found.status)

    def _rolled_back(self, entry: Entry, digest: str) -> None:
        bad = entry.seen.get("from")
        self._settle(bad, final=True)
        since = self._store.fact(f"announced {bad}")
        self._store.keep(f"announced {entry.version}", stamp(entry.at))
        data = {
            "version": entry.version,
            "rolled_back": bad,
            "scored_at": events.scored_at(entry.version),
            "announced_at": since and events.utc(datetime.fromisoformat(since)),
            "rolled_back_at": events.utc(entry.at),
            "automatic": bool(entry.seen.get("by_sentinel")),
        }
        self._tell("snapshot.rolled_back", entry, data)
        self._explain_rollback(entry, digest, bad, None if since is None else datetime.fromisoformat(since))

    def _explain_rollback(self, entry: Entry, digest: str, bad: str | None, since: datetime | None) -> None:
        began = "an unknown time" if since is None else f"{since:%Y-%m-%d %H:%M:%S}Z"
        text = (
            f"{bad} was taken back, and {entry.version} restored. Answers that name {bad}, given from {began} to"
            f" {entry.at:%Y-%m-%d %H:%M:%S}Z, are not to be relied on: read those scores again."
        )
        found = open_of(self._store, SCORES)
        if found is None:
            title = f"Version {bad} was rolled back"
            options = {"components": ("scores",), "impact": "major", "status": "identified"}
            found = self._open(SCORES, title, text, entry, digest, versions=(bad,) if bad else (), **options)
        else:
            found = self._update(found, text, entry, "identified", versions=(bad,) if bad else ())
        until = ", and stays until an engineer has looked" if entry.seen.get("frozen") else ", and is watched"
        self._update(found, f"{entry.version} is served again{until}.", entry, "monitoring", versions=())

    def _judged(self, entry: Entry, digest: str) -> None:
        self._settle(entry.version, final=False)
        found = open_of(self._store, SCORES)
        if found is not None and entry.version not in found.versions:
            text = f"{entry.version} was watched, and its answers are good."
            self._resolve(found, text, entry)

    def _frozen(self, entry: Entry, digest: str) -> None:
        found = open_of(self._store, SCORES)
        if found is not None:
            text = "Nothing more is done automatically: an engineer is needed, and is called."
            self._update(found, text, entry, impact="critical", versions=())
            return
        title = "Automatic rollback is frozen until a human unpins"
        text = f"The sentinel does nothing more. {entry.why or ''}".strip()
        options = {"components": ("publishing",), "impact": "critical", "visibility": "internal"}
        if open_of(self._store, FREEZE) is None:
            self._open(FREEZE, title, text, entry, digest, **options)

    def _unpinned(self, entry: Entry, digest: str) -> None:
        for origin in (SCORES, FREEZE):
            found = open_of(self._store, origin)
            if found is not None and (origin == FREEZE or found.status == "monitoring"):
                text = "An engineer has looked, and lets publishing go on."
                self._resolve(found, text, entry)

    def _tell(self, type: str, entry: Entry, data: dict[str, Any]) -> None:
        events.tell(self._store, events.name("msg", line_digest(entry), type), type, entry.at, data)

    def _open(self, origin: str, title: str, text: str, entry: Entry, digest: str, **options: Any) -> Incident:
        versions = options.pop("versions", (entry.version,) if entry.version else ())
        id = events.name("inc", digest, origin)
        title, text = fitted(title, TITLE_CHARACTERS), fitted(text, TEXT_CHARACTERS)
        report = Report(title=title, text=text, origin=origin, id=id, versions=versions, **options)
        return open_incident(self._store, report, by=_by(entry), at=entry.at)

    def _update(
        self,
        found: Incident,
        text: str,
        entry: Entry,
        status: Status | None = None,
        *,
        impact: str | None = None,
        versions: tuple[str, ...] | None = None,
    ) -> Incident:
        affected = ((entry.version,) if entry.version else ()) if versions is None else versions
        text = fitted(text, TEXT_CHARACTERS)
        return update_incident(
            self._store, found.id, text, by=_by(entry), status=status, impact=impact, versions=affected, at=entry.at
        )

    def _resolve(self, found: Incident, text: str, entry: Entry) -> None:
        resolve_incident(self._store, found.id, text, by=_by(entry), at=entry.at)


def _by(entry: Entry) -> str:
    """Who acted. The log takes any name, and what it takes must be told of."""
    return fitted(entry.by, TITLE_CHARACTERS) or "unknown"


def _words(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _figures(seen: dict[str, Any]) -> str:
    """What the answers were judged by, in words; empty when it is not said."""
    figures = seen.get("figures") or {}
    said = [f"{name} {_change(one)}" for name, one in figures.items()]
    return f": {_words(said)}" if said else ""


def _change(one: dict[str, Any]) -> str:
    after, before, threshold = (_number(one.get(name)) for name in ("after", "before", "threshold"))
    return f"{after} ({before} before, may change by {threshold})"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "unknown"
