"""Which version is in force, and why: the acts that decide it. The log is the truth; CURRENT carries it out.

Every act is logged before it takes effect. An announcement that was logged and not carried out has no effect; a
rollback that was logged and not carried out is carried out by whoever comes next (:meth:`Orders.settle`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from kserve.errors import Held, KserveError, Pinned, SnapshotError, UnknownVersion
from kserve.settings import Settings
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.durable import release, replace_file, storage
from kserve.snapshots.log import Entry, author
from kserve.snapshots.signing import Order, Signer, admit, decode_order, encode_order, sign_order
from kserve.snapshots.state import Quarantined, State, Unjudged, after

Act = Literal["announce", "rollback"]

log = logging.getLogger("kserve.orders")


class Orders:
    """The acts on one data directory. Those that write raise StorageError."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self.catalog = catalog
        self.settings = settings
        self._return = catalog.data / "RETURN"
        self._folded = (0, State())

    def state(self) -> State:
        """What follows from the log and from what is in force; cheap when nothing was added."""
        live = self._in_force()  # read first: an act is logged before it takes effect
        entries = self.catalog.log.entries()
        count, state = self._folded
        if count > len(entries):
            count, state = 0, State()
        for entry in entries[count:]:
            state = after(state, entry)
        self._folded = len(entries), state
        return state.under(live)

    def _in_force(self) -> str | None:
        """None too when CURRENT is damaged: whoever needs it says so."""
        try:
            return self.catalog.announced()
        except SnapshotError:
            return None

    def announce(
        self,
        version: str,
        *,
        against: str | None,
        by: str | None = None,
        why: str | None = None,
        seen: dict[str, Any] | None = None,
    ) -> None:
        """Put a published version in force. ``against`` is the version that was in force when it was checked.

        Raises Pinned, Held when another version came in force or this one in quarantine meanwhile, UnknownVersion and
        SnapshotError when it cannot be read any more.
        """
        with self._act():
            self.refuse_pinned(version)
            live = self.catalog.live()
            if live != against:
                raise Held(f"{live} came in force while {version} was checked against {against}: publish it again")
            _refuse_quarantined(self.state(), version, (seen or {}).get("digest"))
            self._readable(version)
            order = self._order("announce", version, live)
            self._append("announce", by, version, why, {"previous": live} | (seen or {}))
            self.catalog.put_in_force(version, order)
            self.catalog.unstage()

    def refuse_pinned(self, version: str) -> None:
        """Raise Pinned when another version is pinned, or a human is waited for."""
        state = self.state()
        pin = state.pin
        if pin is not None and pin.version != version:
            raise Pinned(
                f"{pin.version} is pinned since {pin.at:%Y-%m-%d %H:%M}Z by {pin.by}: {pin.why}; {version} is not"
                " announced until `kserve unpin --reason ...`"
            )
        if pin is None and state.frozen:
            raise Pinned(
                f"a human is waited for ({state.frozen_why}); {version} is not announced until"
                " `kserve unpin --reason ...`"
            )

    def rollback(
        self,
        version: str | None = None,
        *,
        why: str,
        by: str | None = None,
        seen: dict[str, Any] | None = None,
        of: str | None = None,
        quarantine: bool = True,
        frozen: bool = False,
    ) -> str:
        """Put a good version back in force and pin it; by default the last one. Returns its name.

        ``of``: the version that is to be taken back, when the caller has judged one.
        ``quarantine``: the content of the version in force so far must not come back under any name.
        ``frozen``: until a human unpins, the sentinel does nothing more.
        Raises Held when there is no good version to go back to, UnknownVersion, SnapshotError.
        """
        with self._act():
            live = self.catalog.live()
            if of not in (None, live):
                raise Held(f"{of} is not in force any more: {live} is")
            digest = self.state().digests.get(live or "") if quarantine else None
            target = self._target(version, live, digest)
            if target == live:
                raise Held(f"{target} is in force already: `kserve pin` keeps it there")
            order = self._order("rollback", target, live)
            known = {"from": live, "digest": digest, "frozen": frozen} | (seen or {})
            self._append("rollback", by, target, why, known)
            self.catalog.put_in_force(target, order)
            self.catalog.unstage()
        return target

    def _target(self, version: str | None, live: str | None, bad: str | None) -> str:
        """``bad``: the digest of content that is no way back, whatever it is called."""
        state = self.state()
        if version is not None:
            _refuse_quarantined(state, version)
            self._readable(version)
            return version
        for name in reversed(state.good):
            if name == live or (bad is not None and state.digests.get(name) == bad):
                continue
            try:
                self._readable(name)
            except (KserveError, OSError) as error:
                log.error("cannot go back to %s: %s", name, error)
            else:
                return name
        raise Held("there is no other good version to go back to: name one with `kserve rollback VERSION`")

    def _readable(self, version: str) -> None:
        with self.catalog.open(version) as snapshot:
            profile_id, expected = snapshot.known_answer()
            if snapshot.score(profile_id) != expected:
                raise SnapshotError(snapshot.path, "known answers", "a look-up gave another score than was built")

    def settle(self) -> str | None:
        """Carry out a rollback that was logged by somebody who died. Returns the version that it put in force."""
        state = self.state()
        if not state.rollback or state.current is None or state.current == self.catalog.live():
            return None
        with self._act():
            state = self.state()
            live = self.catalog.live()
            if state.rollback and state.current is not None and state.current != live:
                self.catalog.put_in_force(state.current, self._order("rollback", state.current, live))
        return state.current

    def judge_good(self, version: str, seen: dict[str, Any] | None = None, by: str | None = None) -> bool:
        """Note that a version was watched without a breach: the one in force, and if nobody has judged it yet.

        Returns whether it was noted: not if it has breached.
        """
        with self._act():
            unjudged = self.state().unjudged
            if unjudged is None or not unjudged.version == version == self.catalog.live():
                return False
            if self.breached(unjudged):
                return False
            self._append("good", by, version, None, seen)
            return True

    def breached(self, unjudged: Unjudged) -> bool:
        """Whether a breach of a version is in the log since it was put in force."""
        since = self.catalog.log.entries(after=unjudged.n)
        return any(entry.act == "breach" and entry.version == unjudged.version for entry in since)

    def breach(self, version: str, figures: dict[str, Any], by: str | None = None) -> None:
        """Note that the answers from a version are bad."""
        self._append("breach", by, version, None, {"figures": figures})

    def freeze(self, why: str, by: str | None = None) -> None:
        """Note that nothing more is done until a human has looked."""
        if not self.state().frozen:
            self._append("freeze", by, self.catalog.live(), why, None)

    def pin(self, *, why: str, by: str | None = None) -> str:
        """Keep the version in force, whatever is published. Returns it. Raises NothingPublished."""
        with self._act(), self.catalog.open() as snapshot:
            self._append("pin", by, snapshot.version, why, None)
            return snapshot.version

    def unpin(self, *, why: str, by: str | None = None) -> str | None:
        """Let what is published be announced again. Returns the version that was pinned, None: there was no pin."""
        with self._act():
            state = self.state()
            if state.pin is None and not state.frozen:
                return None
            version = state.pin.version if state.pin is not None else state.current
            self._append("unpin", by, version, why, None)
            return version

    def quarantine(self, version: str, digest: str, *, why: str, by: str | None = None) -> None:
        """Keep the content of a version out, under whatever name. Raises Held when it is in force."""
        with self._act():
            if version == self.catalog.live():
                raise Held(f"{version} is in force: `kserve rollback` takes it out and quarantines it")
            self._append("quarantine", by, version, why, {"digest": digest})

    def release(self, digest: str, *, why: str, by: str | None = None) -> Quarantined:
        """Let quarantined content be published again. Raises UnknownVersion."""
        with self._act():
            found = self.state().quarantined.get(digest)
            if found is None:
                raise UnknownVersion(f"nothing with the digest {digest} is in quarantine")
            self._append("release", by, found.version, why, {"digest": digest})
            return found

    def accept(self, version: str, gate: str, *, why: str, by: str, until: datetime) -> None:
        """Note that a hold of a gate is accepted for this version, until a time."""
        self._append("accept", by, version, why, {"gate": gate, "until": until.isoformat()})

    def prune(
        self, keep: int, *, served: Collection[str] = (), by: str | None = None, dry_run: bool = False
    ) -> tuple[list[str], int]:
        """Delete all but the ``keep`` latest published versions, and candidates that are older than the live one.

        Never deleted: the live one, the pinned one, the last good ones, the staged one, and those that are ``served``.
        Returns the names and their bytes.
        """
        with self._act():
            state, versions, live = self.state(), self.catalog.versions(), self.catalog.live()
            published = [version.name for version in versions if version.state != "candidate"]
            pinned = state.pin.version if state.pin is not None else None
            kept = {live, state.current, pinned, self.catalog.staged(), *state.good[-2:], *served, *published[:keep]}
            scored_at = max((version.scored_at for version in versions if version.name == live), default=None)
            waiting = {
                v.name for v in versions if v.state == "candidate" and (not scored_at or v.scored_at > scored_at)
            }
            gone = [version for version in versions if version.name not in kept | waiting]
            names, size = [version.name for version in gone], sum(version.file_bytes for version in gone)
            if names and not dry_run:
                self._append("prune", by, None, None, {"versions": names, "bytes": size})
                self.catalog.discard(names)
        return names, size

    def note(self, act: str, version: str | None, seen: dict[str, Any], by: str | None = None) -> None:
        """Log an act that changes nothing of what is in force."""
        self._append(act, by, version, None, seen)

    def _append(
        self, act: str, by: str | None, version: str | None, why: str | None, seen: dict[str, Any] | None
    ) -> Entry:
        return self.catalog.log.append(act, by=by or author(self.settings), version=version, why=why, seen=seen)

    @contextmanager
    def _act(self) -> Iterator[None]:
        """One act at a time, of all processes; waits. Only short things happen under this lock."""
        with storage(f"acting in {self.catalog.data}"):
            descriptor = os.open(self.catalog.data / "ACT", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                release(descriptor)

    def _order(self, act: Act, version: str, previous: str | None) -> bytes:
        """The signed order as a line; empty where nothing is signed. Raises Held when readers would not obey it."""
        if self.settings.signing_key is not None:
            return self._signed(act, version, previous, Signer.load(self.settings.signing_key))
        line = self._ticket(version, previous) if act == "rollback" else b""
        if not line and self.settings.trusted_keys is not None:
            raise Held(f"readers here obey signed orders only: give the setting signing_key to {act} {version}")
        return line

    def _signed(self, act: Act, version: str, previous: str | None, signer: Signer) -> bytes:
        """A signed order; with an announcement also the return ticket: the rollback for a sentinel without a key."""
        last = self._last_order()
        number = max(time.time_ns() // 1000, 0 if last is None else last.number + 2)  # the clock may go back
        order = Order(act, version, previous, number, datetime.now(UTC))
        try:
            admit(order, version, last)
        except SnapshotError as error:
            raise Held(f"readers would not obey: {error}") from None
        good = [name for name in self.state().good if name != version]
        if act == "announce" and good:
            back = Order("rollback", good[-1], version, order.number + 1, order.at)
            replace_file(self._return, encode_order(sign_order(back, signer)) + b"\n")
        return encode_order(sign_order(order, signer))

    def _last_order(self) -> Order | None:
        """That in force; None too when it cannot be read."""
        try:
            return self.catalog.order()
        except SnapshotError:
            return None

    def _ticket(self, version: str, previous: str | None) -> bytes:
        """The order that was signed in advance for just this rollback; empty when there is none to be obeyed."""
        try:
            line = self._return.read_bytes().strip()
        except FileNotFoundError:
            return b""
        order = decode_order(line, self._return)
        last = self._last_order()
        obeyed = last is None or order.number > last.number
        return line if obeyed and (order.version, order.previous) == (version, previous) else b""


def _refuse_quarantined(state: State, version: str, digest: str | None = None) -> None:
    """Raise Held when a version, or its content under another name, is in quarantine."""
    contents = {digest, state.digests.get(version)}
    if any(found.version == version or found.digest in contents for found in state.quarantined.values()):
        raise Held(f"{version} is in quarantine: `kserve quarantine list` tells why")
