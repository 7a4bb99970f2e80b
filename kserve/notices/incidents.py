"""Incidents: what people are told when something is wrong, from the first suspicion to the end.

A *public* incident is for everyone, and partners get its events; an *internal* one is for release engineers.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, TypeVar, get_args

import msgspec

from kserve.errors import InputError, KserveError
from kserve.notices.events import name, tell_incident
from kserve.notices.store import Store, stamp

Visibility = Literal["public", "internal"]
Impact = Literal["none", "minor", "major", "critical"]
Status = Literal["investigating", "identified", "monitoring", "resolved"]
Component = Literal["scores", "publishing", "webhooks"]

VISIBILITIES: tuple[Visibility, ...] = get_args(Visibility)
IMPACTS: tuple[Impact, ...] = get_args(Impact)
"""From harmless to worst."""
STATUSES: tuple[Status, ...] = get_args(Status)
COMPONENTS: tuple[Component, ...] = get_args(Component)
"""What an incident can affect: the answers that are served, the nightly publish, the sending of webhooks."""

NEXT: dict[Status, tuple[Status, ...]] = {
    "investigating": ("investigating", "identified", "monitoring", "resolved"),
    "identified": ("identified", "monitoring", "resolved"),
    "monitoring": ("monitoring", "identified", "resolved"),
    "resolved": (),
}
"""The statuses that may follow each."""

Word = TypeVar("Word", bound=str)

TITLE_CHARACTERS = 200
TEXT_CHARACTERS = 4000


class UnknownIncident(KserveError, KeyError):
    """No incident of that id."""

    slug = "unknown-incident"
    http_status = 404
    exit_code = 4

    def __str__(self) -> str:
        return f"there is no incident {self.args[0]}: `kserve incident list --all` lists those that there are"


class Update(msgspec.Struct, frozen=True):
    """One thing that was said about an incident. ``n`` counts from 1; ``at`` is aware UTC, and never runs backwards."""

    n: int
    at: datetime
    by: str
    status: Status
    impact: Impact
    text: str


class Incident(msgspec.Struct, frozen=True):
    """An incident as it stands. ``updates`` begin with the oldest; times are aware UTC."""

    id: str
    title: str
    visibility: Visibility
    impact: Impact
    status: Status
    components: tuple[Component, ...]
    versions: tuple[str, ...]
    opened_at: datetime
    updated_at: datetime
    resolved_at: datetime | None
    automatic: bool
    updates: tuple[Update, ...]

    @property
    def open(self) -> bool:
        """Not resolved yet."""
        return self.resolved_at is None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What is known when an incident is opened. ``origin`` is what opened it, if no human did: one is open of each."""

    title: str
    text: str
    components: tuple[str, ...] = ()
    impact: str = "minor"
    visibility: str = "public"
    status: str = "investigating"
    versions: tuple[str, ...] = ()
    origin: str | None = None
    id: str | None = None


def open_incident(store: Store, report: Report, *, by: str, at: datetime | None = None) -> Incident:
    """Open an incident, with its first update. Raises InputError naming what cannot be taken; StorageError, Busy."""
    moment = at or store.clock()
    status = _one_of(report.status, STATUSES[:3], "status")
    components = tuple(_one_of(component, COMPONENTS, "component") for component in dict.fromkeys(report.components))
    if not components:
        raise InputError("an incident affects something", remedy=f"name one or more of {', '.join(COMPONENTS)}")
    id = report.id or name("inc")
    with store.writing():
        store.run(
            "INSERT INTO incidents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
            id,
            _plain(report.title, "title", TITLE_CHARACTERS, lines=False),
            _one_of(report.visibility, VISIBILITIES, "visibility"),
            report.origin,
            impact := _one_of(report.impact, IMPACTS, "impact"),
            status,
            _list(components),
            _list(report.versions),
            stamp(moment),
            stamp(moment),
        )
        _say(store, id, Update(1, moment, by, status, impact, _plain(report.text, "text", TEXT_CHARACTERS)))
        return _told(store, id)


def update_incident(
    store: Store,
    id: str,
    text: str,
    *,
    by: str,
    status: str | None = None,
    impact: str | None = None,
    components: Iterable[str] = (),
    versions: Iterable[str] = (),
    at: datetime | None = None,
) -> Incident:
    """Say something new about an incident; what is not given stays, components and versions are added.

    Raises UnknownIncident; InputError when that status cannot follow, or a value cannot be taken; StorageError, Busy.
    """
    with store.writing():
        before = incident(store, id)
        after = before.status if status is None else _one_of(status, STATUSES, "status")
        _check_order(before, after)
        moment = max(at or store.clock(), before.updated_at)
        worst = before.impact if impact is None else _one_of(impact, IMPACTS, "impact")
        added = [_one_of(component, COMPONENTS, "component") for component in components]
        store.run(
            "UPDATE incidents SET status = ?, impact = ?, components = ?, versions = ?, updated_at = ?, resolved_at = ?"
            " WHERE id = ?",
            after,
            worst,
            _list([*before.components, *added]),
            _list([*before.versions, *versions]),
            stamp(moment),
            stamp(moment) if after == "resolved" else None,
            id,
        )
        text = _plain(text, "text", TEXT_CHARACTERS)
        _say(store, id, Update(len(before.updates) + 1, moment, by, after, worst, text))
        return _told(store, id)


def resolve_incident(store: Store, id: str, text: str, *, by: str, at: datetime | None = None) -> Incident:
    """The last update of an incident. Raises as :func:`update_incident` does."""
    return update_incident(store, id, text, by=by, status="resolved", at=at)


def incident(store: Store, id: str) -> Incident:
    """One incident. Raises UnknownIncident."""
    found = _incidents(store, "id = ?", id)
    if not found:
        raise UnknownIncident(id)
    return found[0]


def incidents(
    store: Store, visibility: Visibility | None = None, *, open_only: bool = False, since: datetime | None = None
) -> list[Incident]:
    """Incidents, the latest first: all, or those of one visibility, not resolved yet, not resolved before a time."""
    conditions = ["TRUE"]
    values: list[str] = []
    if visibility is not None:
        conditions, values = [*conditions, "visibility = ?"], [visibility]
    if open_only:
        conditions += ["resolved_at IS NULL"]
    if since is not None:
        conditions, values = [*conditions, "coalesce(resolved_at, '9') >= ?"], [*values, stamp(since)]
    return _incidents(store, " AND ".join(conditions), *values)


def open_of(store: Store, origin: str) -> Incident | None:
    """The open incident that was opened by this origin, if there is one."""
    return next(iter(_incidents(store, "origin = ? AND resolved_at IS NULL", origin)), None)


def current_status(store: Store, visibility: Visibility = "public") -> dict[Component, Impact]:
    """By component, the worst impact of its open incidents; "none" when there are none."""
    found = incidents(store, visibility, open_only=True)
    return {
        component: _worst(one.impact for one in found if component in one.components) or "none"
        for component in COMPONENTS
    }


def daily_status(
    store: Store, days: int = 90, visibility: Visibility = "public"
) -> dict[Component, list[tuple[date, Impact | None]]]:
    """By component, for each UTC day up to today, the oldest first, the worst impact that was in force on it.

    "none" is a day without an incident; None is a day of which nothing is known, as nothing was recorded yet.
    """
    now = store.clock().astimezone(UTC)
    span = [now.date() - timedelta(days=back) for back in reversed(range(days))]
    found = incidents(store, visibility, since=datetime.combine(span[0], datetime.min.time(), UTC))
    began = _first_day(store)
    return {
        component: [(day, _worst(impacts[day]) if day in impacts else "none" if day >= began else None) for day in span]
        for component in COMPONENTS
        for impacts in [_by_day([one for one in found if component in one.components], now)]
    }


def _by_day(found: list[Incident], now: datetime) -> dict[date, set[Impact]]:
    """The impacts in force on each day, in UTC."""
    impacts: dict[date, set[Impact]] = {}
    for one in found:
        for update, end in zip(one.updates, [*(later.at for later in one.updates[1:]), now], strict=True):
            if update.status == "resolved":
                break
            for days in range((max(end, update.at).date() - update.at.date()).days + 1):
                impacts.setdefault(update.at.date() + timedelta(days=days), set()).add(update.impact)
    return impacts


def _first_day(store: Store) -> date:
    """The day that records begin."""
    first = store.row("SELECT min(opened_at) AS at FROM incidents")
    times = [store.fact("since"), first and first["at"]]
    return min(datetime.fromisoformat(time).date() for time in times if time)


def _worst(impacts: Iterable[Impact]) -> Impact | None:
    return max(impacts, key=IMPACTS.index, default=None)


def _told(store: Store, id: str) -> Incident:
    """The incident as it is now, after its event was recorded."""
    found = incident(store, id)
    tell_incident(store, found)
    return found


def _say(store: Store, id: str, update: Update) -> None:
    by = _plain(update.by, "by", TITLE_CHARACTERS, lines=False)
    store.run(
        "INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?)",
        id,
        update.n,
        stamp(update.at),
        by,
        update.status,
        update.impact,
        update.text,
    )


def _incidents(store: Store, condition: str, *values: Any) -> list[Incident]:
    rows = store.rows(
        f"SELECT incidents.*, updates.n, updates.at, updates.by, updates.status AS said, updates.impact AS then_impact,"
        f" updates.text FROM (SELECT * FROM incidents WHERE {condition}) AS incidents"
        " JOIN updates ON updates.incident = incidents.id ORDER BY opened_at DESC, id, n",
        *values,
    )
    grouped: dict[str, list[sqlite3.Row]] = {}
    for row in rows:
        grouped.setdefault(row["id"], []).append(row)
    return [_made(same) for same in grouped.values()]


def _made(rows: list[sqlite3.Row]) -> Incident:
    row = dict(rows[0])
    said = [
        {"n": one["n"], "at": one["at"], "by": one["by"], "status": one["said"], "impact": one["then_impact"]}
        | {"text": one["text"]}
        for one in rows
    ]
    lists = {field: msgspec.json.decode(row[field]) for field in ("components", "versions")}
    return msgspec.convert(row | lists | {"automatic": row["origin"] is not None, "updates": said}, Incident)


def _check_order(before: Incident, after: Status) -> None:
    if before.status == "resolved":
        raise InputError(f"incident {before.id} is resolved, which is final", remedy="open a new one")
    if after not in NEXT[before.status]:
        allowed = ", ".join(NEXT[before.status])
        raise InputError(
            f"incident {before.id} is {before.status}: it cannot become {after}", remedy=f"one of {allowed}"
        )


def _one_of(value: str, allowed: tuple[Word, ...], what: str) -> Word:
    for one in allowed:
        if value == one:
            return one
    raise InputError(f"{value!r} is no {what} of an incident", remedy=f"one of {', '.join(allowed)}")


def _plain(text: str, what: str, most: int, *, lines: bool = True) -> str:
    """Text that every page and feed can show."""
    text = text.strip()
    if not text:
        raise InputError(f"the {what} is empty", remedy="say what is known, and what is done about it")
    if len(text) > most:
        raise InputError(f"the {what} has {len(text)} characters", remedy=f"say it in {most}")
    if not all(c.isprintable() or (lines and c == "\n") for c in text):
        raise InputError(f"the {what} has characters that cannot be shown", remedy="plain text only")
    return text


def fitted(text: str, most: int) -> str:
    """Text of any origin as one line that every page and feed can show, cut to so many characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _list(values: Iterable[str]) -> str:
    return msgspec.json.encode(list(dict.fromkeys(values))).decode()
