"""What the log of a data directory adds up to: what is in force, good, pinned, in quarantine, and not judged yet.

Each act of the log leads from one state to the next; nothing here reads or writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime

from kserve.snapshots.log import Entry

EPOCH_GATES = {"centre", "shape", "drift"}
"""An accepted hold of one of these starts a new baseline: what came before is no measure of what comes."""


@dataclass(frozen=True, slots=True)
class Pin:
    """A version that stays in force, whatever is published. ``frozen``: the sentinel has acted, and waits for us."""

    version: str
    by: str
    why: str
    at: datetime
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Content that must not come back under any name."""

    digest: str
    version: str
    by: str
    why: str
    at: datetime
    was_good: tuple[str, ...] = ()
    """Versions with this content that were good before, and are again when it is released."""


@dataclass(frozen=True, slots=True)
class Unjudged:
    """A version that was put in force, and of which nobody knows yet whether it is good."""

    version: str
    at: datetime
    model: str | None
    restored: bool
    """It was put back by a rollback."""
    n: int
    """Of the act that did so."""


@dataclass(frozen=True, slots=True)
class State:
    """What follows from the log, all of it."""

    current: str | None = None
    """The version that was ordered last."""
    good: tuple[str, ...] = ()
    """Versions that were watched without a breach, the oldest first."""
    epochs: tuple[str, ...] = ()
    """Versions that began a new baseline: a change of the model was declared, or a drift accepted."""
    pin: Pin | None = None
    frozen: bool = False
    frozen_why: str = ""
    quarantined: dict[str, Quarantined] = field(default_factory=dict)
    unjudged: Unjudged | None = None
    passed: Unjudged | None = None
    """That of the version which the last announcement replaces: as long as that is not carried out, it is watched."""
    rollback: bool = False
    """The last order was a rollback."""
    digests: dict[str, str] = field(default_factory=dict)
    """By version that was announced, the digest of its content."""
    accepted: dict[str, tuple[Entry, ...]] = field(default_factory=dict)
    """By version, the acts that accepted a hold of it."""

    @property
    def baseline(self) -> tuple[str, ...]:
        """The good versions since the last new beginning, the oldest first: what the next one is measured against."""
        if self.unjudged is not None and self.unjudged.version in self.epochs:
            return ()
        began = max((i for i, name in enumerate(self.good) if name in self.epochs), default=0)
        return self.good[began:]

    def under(self, live: str | None) -> State:
        """The state when ``live`` is in force: an announcement that was logged and not carried out has no effect."""
        if self.rollback or live in (None, self.current):
            return self
        passed = self.passed if self.passed is not None and self.passed.version == live else None
        return replace(self, current=live, unjudged=passed)


def after(state: State, entry: Entry) -> State:
    """The state that an act leads to."""
    change = _CHANGES.get(entry.act)
    return state if change is None else change(state, entry)


def _announced(state: State, entry: Entry) -> State:
    assert entry.version is not None
    replaced, model = state.under(entry.seen.get("previous")), entry.seen.get("model")
    begins = model is not None or not EPOCH_GATES.isdisjoint(entry.seen.get("accepted", ()))
    return replace(
        state,
        current=entry.version,
        rollback=False,
        epochs=(*state.epochs, entry.version) if begins else state.epochs,
        digests=state.digests | ({entry.version: entry.seen["digest"]} if "digest" in entry.seen else {}),
        unjudged=Unjudged(entry.version, entry.at, model, restored=False, n=entry.n),
        passed=replaced.unjudged,
    )


def _rolled_back(state: State, entry: Entry) -> State:
    assert entry.version is not None
    bad, digest, frozen = entry.seen.get("from"), entry.seen.get("digest"), bool(entry.seen.get("frozen"))
    quarantined = dict(state.quarantined)
    if digest and bad:
        quarantined[digest] = Quarantined(digest, bad, entry.by, entry.why or "", entry.at, _alike(state, bad, digest))
    return replace(
        state,
        current=entry.version,
        rollback=True,
        good=tuple(name for name in state.good if name not in _alike(state, bad, digest)),
        pin=Pin(entry.version, entry.by, entry.why or "", entry.at, frozen),
        frozen=frozen,
        quarantined=quarantined,
        unjudged=Unjudged(entry.version, entry.at, None, restored=True, n=entry.n),
        passed=None,
    )


def _judged(state: State, entry: Entry) -> State:
    assert entry.version is not None
    return replace(
        state,
        good=(*(name for name in state.good if name != entry.version), entry.version),
        unjudged=None,
        passed=None,
    )


def _frozen(state: State, entry: Entry) -> State:
    good = tuple(name for name in state.good if name != entry.version)
    return replace(state, good=good, frozen=True, frozen_why=entry.why or "", unjudged=None, passed=None)


def _pinned(state: State, entry: Entry) -> State:
    assert entry.version is not None
    return replace(state, pin=Pin(entry.version, entry.by, entry.why or "", entry.at))


def _unpinned(state: State, entry: Entry) -> State:
    return replace(state, pin=None, frozen=False)


def _quarantined(state: State, entry: Entry) -> State:
    digest = entry.seen["digest"]
    alike = _alike(state, entry.version, digest)
    found = Quarantined(digest, entry.version or "", entry.by, entry.why or "", entry.at, alike)
    good = tuple(name for name in state.good if name not in alike)
    return replace(state, good=good, quarantined=state.quarantined | {digest: found})


def _alike(state: State, version: str | None, digest: str | None) -> tuple[str, ...]:
    """Of the good versions, this one and those with the same content under other names."""
    return tuple(
        name for name in state.good if name == version or (digest is not None and state.digests.get(name) == digest)
    )


def _released(state: State, entry: Entry) -> State:
    quarantined = dict(state.quarantined)
    found = quarantined.pop(entry.seen["digest"], None)
    again = () if found is None else tuple(name for name in found.was_good if name not in state.good)
    return replace(state, good=(*again, *state.good), quarantined=quarantined)


def _accepted(state: State, entry: Entry) -> State:
    version = entry.version or ""
    return replace(state, accepted=state.accepted | {version: (*state.accepted.get(version, ()), entry)})


_CHANGES = {
    "announce": _announced,
    "rollback": _rolled_back,
    "good": _judged,
    "freeze": _frozen,
    "pin": _pinned,
    "unpin": _unpinned,
    "quarantine": _quarantined,
    "release": _released,
    "accept": _accepted,
}
