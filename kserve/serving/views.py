"""What the console shows and does, for someone who is signed in. Everything here runs in a thread, not on the loop."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from kserve._roster import Roster
from kserve.errors import Held, KserveError, UnknownVersion
from kserve.notices import figures, pages
from kserve.serving.comparisons import Comparisons
from kserve.serving.keys import Key
from kserve.serving.sessions import Session
from kserve.settings import Settings
from kserve.snapshots import report as reports
from kserve.snapshots.catalog import Catalog, Version
from kserve.snapshots.log import Entry
from kserve.snapshots.orders import Orders
from kserve.snapshots.state import State

HOME = "/console"
COMPARE_SECONDS = 2.0
"""How long a page waits for a comparison before it says how far that is, and looks again."""

LOOK_AGAIN_SECONDS = 2
ACTS_ON_A_PAGE = 100
REASON_CHARACTERS = 500
DONE = {
    "pin": "The version in force is pinned.",
    "unpin": "What is published is announced again.",
    "rollback": "The rollback is done, and the version pinned.",
}


class Answer(NamedTuple):
    """A page, or where to go instead.

    ``session`` is one that the browser shall keep from now on, ``wait`` the seconds until it may ask again.
    """

    code: int
    html: str = ""
    location: str | None = None
    session: Session | None = None
    wait: int = 0


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of the console. ``key`` is None before sign-in."""

    settings: Settings
    comparisons: Comparisons
    session: Session
    key: Key | None
    address: str | None
    path: Mapping[str, str]
    query: Mapping[str, str]
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def catalog(self) -> Catalog:
        return Catalog(self.settings.data)

    @property
    def by(self) -> str:
        """Who acts, in the log."""
        assert self.key is not None
        return f"{self.key.partner} (key {self.key.id})"

    def page(self, template: str, code: int = 200, **values: Any) -> Answer:
        """A page of the console with what all of them show."""
        return Answer(code, pages.render(f"console/{template}", token=self.session.token, key=self.key, **values))

    def refused(self, code: int, title: str, text: str) -> Answer:
        """A page that says why there is no other."""
        return self.page("refused.html", code, title=title, text=text)


View = Callable[[Visit], Answer]


class Line(NamedTuple):
    """A version with what the log knows of it."""

    version: Version
    marks: tuple[str, ...]


def versions(visit: Visit) -> Answer:
    """All versions, and the acts that there are."""
    orders = Orders(visit.catalog, visit.settings)
    state = orders.state()
    found = [Line(version, _marks(version.name, state)) for version in orders.catalog.versions()]
    live = orders.catalog.live()
    said = DONE.get(visit.query.get("done", ""))
    return visit.page("versions.html", lines=found, state=state, live=live, said=said, staged=_staged(orders.catalog))


def _marks(version: str, state: State) -> tuple[str, ...]:
    pinned = state.pin is not None and state.pin.version == version
    quarantined = any(found.version == version for found in state.quarantined.values())
    watched = state.unjudged is not None and state.unjudged.version == version
    marks = {
        "good": version in state.good,
        "pinned": pinned,
        "quarantined": quarantined,
        "not judged yet": watched,
    }
    return tuple(name for name, holds in marks.items() if holds)


def _staged(catalog: Catalog) -> str | None:
    try:
        return catalog.staged()
    except KserveError:
        return None


def version(visit: Visit) -> Answer:
    """One version: what the gates said, how its scores are spread, and what was done with it."""
    name = visit.path["version"]
    orders = Orders(visit.catalog, visit.settings)
    manifest = orders.catalog.manifest(name)
    found = next((one for one in orders.catalog.versions() if one.name == name), None)
    report = reports.load(visit.settings.data, name)
    rows, spread = figures.of_report(report) if report is not None else ((), None)
    state, live = orders.state(), orders.catalog.live()
    return visit.page(
        "version.html",
        name=name,
        found=found,
        marks=_marks(name, state),
        manifest=manifest,
        report=report,
        rows=rows,
        spread=spread,
        acts=[_shown(entry) for entry in reversed(orders.catalog.log.entries()) if entry.version == name],
        live=live,
        restorable=name in _restorable(orders, live),
    )


def diff(visit: Visit) -> Answer:
    """Two versions side by side; the ids of the biggest movers only when they are asked for."""
    old, new = visit.query.get("old", ""), visit.query.get("new", "")
    for name in (old, new):
        visit.catalog.folder(name)
    compared = visit.comparisons.get(old, new, COMPARE_SECONDS)
    if isinstance(compared, float):
        return visit.page("comparing.html", 202, old=old, new=new, share=compared, seconds=LOOK_AGAIN_SECONDS)
    movers = compared.movers if visit.query.get("movers") == "1" else None
    return visit.page("diff.html", diff=figures.of(compared), movers=movers)


class Act(NamedTuple):
    """An act of the log as a page shows it."""

    entry: Entry
    seen: str


def _shown(entry: Entry) -> Act:
    return Act(entry, json.dumps(entry.seen, indent=1, ensure_ascii=False) if entry.seen else "")


def log(visit: Visit) -> Answer:
    """The acts, the latest first."""
    acts = visit.catalog.log
    try:
        whole, verdict = True, f"The chain of all {acts.verify():,} acts is whole."
    except KserveError as error:
        whole, verdict = False, str(error)
    text = visit.query.get("before", "")
    before = int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None
    entries = [entry for entry in acts.entries() if before is None or entry.n < before]
    shown = [_shown(entry) for entry in reversed(entries[-ACTS_ON_A_PAGE:])]
    older = shown[-1].entry.n if len(entries) > ACTS_ON_A_PAGE else None
    return visit.page("log.html", acts=shown, verdict=verdict, whole=whole, older=older)


def processes(visit: Visit) -> Answer:
    """Which process of this host serves what."""
    roster = visit.catalog.roster
    seats = Roster(roster).seats() if roster.exists() else []
    began = {seat.place: datetime.fromtimestamp(seat.since, UTC) for seat in seats}
    return visit.page("processes.html", seats=seats, began=began, live=visit.catalog.live())


def asked(visit: Visit) -> Answer:
    """The form of an act."""
    return _form(visit, Orders(visit.catalog, visit.settings), 200, "")


def acted(visit: Visit) -> Answer:
    """Carry out an act whose form was sent. What is wrong with it is said above the form."""
    act = visit.path["act"]
    orders = Orders(visit.catalog, visit.settings)
    reason = " ".join(visit.fields.get("reason", "").split())
    try:
        target = _confirmed(visit, orders, reason)
        if act == "pin":
            orders.pin(why=reason, by=visit.by)
        elif act == "unpin":
            orders.unpin(why=reason, by=visit.by)
        else:
            orders.rollback(target, why=reason, by=visit.by, quarantine=visit.fields.get("quarantine") == "yes")
    except KserveError as error:
        return _form(visit, orders, 409, str(error))
    return Answer(303, location=f"{HOME}?done={act}")


def _confirmed(visit: Visit, orders: Orders, reason: str) -> str:
    """The version that was typed, if it is the one that the act is about now. Raises Held, UnknownVersion."""
    live = orders.catalog.live() or ""
    if visit.fields.get("live", "") != live:
        raise Held(f"{live or 'nothing'} came in force since the form was made: look again before you act")
    target = _target(visit, orders)
    if visit.fields.get("confirm", "").strip() != target:
        raise Held(f"nothing was done: to confirm, type {target} exactly")
    if not reason or len(reason) > REASON_CHARACTERS:
        raise Held(f"nothing was done: say why, in at most {REASON_CHARACTERS} characters")
    return target


def _target(visit: Visit, orders: Orders) -> str:
    """The version that an act is about. Raises Held when there is nothing to act on."""
    state, live = orders.state(), orders.catalog.live()
    match visit.path["act"]:
        case "pin":
            target, lack = live, "nothing is in force: there is nothing to pin"
        case "unpin":
            pinned = state.pin.version if state.pin is not None else state.current if state.frozen else None
            target, lack = pinned, "nothing is pinned"
        case "rollback":
            target = visit.fields.get("version") or visit.query.get("version") or _last_good(orders, live)
            lack = "there is no other good version to go back to"
            if target is not None and target not in _restorable(orders, live):
                raise Held(f"{target} cannot be put back in force: it is in force, in quarantine, or not published")
        case other:
            raise UnknownVersion(f"there is no act {other}")
    if target is None:
        raise Held(lack)
    return target


def _restorable(orders: Orders, live: str | None) -> list[str]:
    """Published versions that may be put back in force, the latest scores first."""
    kept_out = {found.version for found in orders.state().quarantined.values()}
    return [
        one.name
        for one in orders.catalog.versions()
        if one.state in ("retired", "published") and one.name not in kept_out and one.name != live
    ]


def _last_good(orders: Orders, live: str | None) -> str | None:
    there = set(_restorable(orders, live))
    return next((name for name in reversed(orders.state().good) if name in there), None)


def _form(visit: Visit, orders: Orders, code: int, error: str) -> Answer:
    live, state = orders.catalog.live(), orders.state()
    try:
        target: str | None = _target(visit, orders)
    except KserveError as trouble:
        target, error = None, error or str(trouble)
        code = 409
    return visit.page(
        "act.html",
        code,
        act=visit.path["act"],
        target=target,
        live=live,
        state=state,
        error=error,
        known=(live or "") in state.digests,
        reason=visit.fields.get("reason", ""),
        quarantine=visit.fields.get("quarantine") == "yes" if visit.fields else True,
        reason_characters=REASON_CHARACTERS,
    )
