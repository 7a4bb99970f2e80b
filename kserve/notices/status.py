"""How things are, for everyone: as a page, as JSON in the shape that status pages share, and as a feed.

Nothing here needs a server of scores, a snapshot or a database: what cannot be read is said to be unknown.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from xml.etree import ElementTree as xml

import msgspec

from kserve._roster import Roster
from kserve.errors import KserveError
from kserve.notices import incidents as records
from kserve.notices import pages, plots
from kserve.notices.events import utc
from kserve.notices.incidents import COMPONENTS, Component, Impact, Incident
from kserve.notices.store import Store
from kserve.settings import Settings
from kserve.snapshots.catalog import Catalog

log = logging.getLogger("kserve.status")

DAYS = 90
"""Days that have a bar."""

PAST_DAYS = 14
"""How long a resolved incident stays on the page."""

SHOWN = 50
"""Open incidents, and past ones, that are told in full at most: those that were updated last."""

FEED_ITEMS = SHOWN

PATIENCE = 0.5
"""Seconds to wait for who keeps the record of incidents locked: ordinary writers keep nobody who reads waiting."""

LATE = 1.5
"""Age of the scores, in cadences, from which on the next ones are late."""

NAMES: dict[Component, tuple[str, str]] = {
    "scores": ("Scores API", "scores, profiles, identities and eligibility over HTTP"),
    "publishing": ("Publishing", "the nightly snapshot"),
    "webhooks": ("Webhooks", "events sent to partners"),
}
STATES: dict[Impact, str] = {
    "none": "operational",
    "minor": "degraded_performance",
    "major": "partial_outage",
    "critical": "major_outage",
}
"""The component states that status pages share, by impact."""

WORDS = {
    "operational": "Operational",
    "degraded_performance": "Degraded",
    "partial_outage": "Partial outage",
    "major_outage": "Major outage",
    "unknown": "Not recorded",
}
TONES = dict(zip(STATES.values(), ("good", "fair", "bad", "bad"), strict=True)) | {"unknown": "soft"}
SUMMARIES: dict[Impact, str] = {
    "none": "All Systems Operational",
    "minor": "Partially Degraded Service",
    "major": "Partial System Outage",
    "critical": "Major Service Outage",
}
UNKNOWN = "Status Not Fully Known"


@dataclass(frozen=True, slots=True)
class ComponentStatus:
    """A component now and on each of the last days, the oldest first; ``note`` is a sentence about now, or empty."""

    id: Component
    impact: Impact
    note: str
    days: tuple[plots.Day, ...]

    @property
    def name(self) -> str:
        return NAMES[self.id][0]

    @property
    def state(self) -> str:
        """Not known without the record of incidents, unless something else is wrong."""
        return STATES[self.impact] if self.days or self.impact != "none" else "unknown"

    @property
    def bars(self) -> Any:
        """The days as inline SVG."""
        return plots.days(self.days, f"{self.name}, the last {len(self.days)} days: {self.summary}")

    @property
    def summary(self) -> str:
        """The days in words."""
        known = [day for day in self.days if day.state != "unknown"]
        bad = [day for day in known if day.state != "operational"]
        if not known:
            return "not recorded"
        text = f"{len(bad)} of {len(known)} recorded days with an incident"
        return text + "".join(f"; {day.day:%-d %b}: {day.words}" for day in bad[-7:])


@dataclass(frozen=True, slots=True)
class Current:
    """The version in force; ``scored_at`` is aware UTC."""

    version: str
    scored_at: datetime
    late: bool


@dataclass(frozen=True, slots=True)
class Status:
    """All that the page tells. ``at`` is when it was read."""

    at: datetime
    url: str
    """Where the page is: links in its twins begin with it."""
    current: Current | None
    components: tuple[ComponentStatus, ...]
    open: tuple[Incident, ...]
    past: tuple[Incident, ...]
    more_open: int
    more_past: int
    """Incidents beyond those that are told in full."""
    troubles: tuple[str, ...]

    @property
    def impact(self) -> Impact:
        """The worst of all components; that something is not known is minor by itself."""
        worst: Impact = max((component.impact for component in self.components), key=records.IMPACTS.index)
        return "minor" if self.troubles and worst == "none" else worst

    @property
    def summary(self) -> str:
        known = any(component.impact != "none" for component in self.components) or not self.troubles
        return SUMMARIES[self.impact] if known else UNKNOWN

    @property
    def updated_at(self) -> datetime:
        """When something last happened; only without anything, when this was read."""
        times = [incident.updated_at for incident in (*self.open, *self.past)]
        return max(times, default=self.current.scored_at if self.current else self.at)


def read(settings: Settings) -> Status:
    """How things are now. Raises nothing: what cannot be read is logged, and said in ``troubles``."""
    at = datetime.now(UTC)
    troubles: list[str] = []
    current = _current(settings, at, troubles)
    public, daily = _recorded(settings, at - timedelta(days=PAST_DAYS), troubles)
    opened = tuple(incident for incident in public if incident.open)
    shown, past = _latest(opened), _latest([incident for incident in public if not incident.open])
    notes = _notes(settings, current)
    return Status(
        at=at,
        url=(settings.public_url or address(settings.admin_host, settings.admin_port)).rstrip("/"),
        current=current,
        components=tuple(_component(name, opened, notes.get(name), daily.get(name, ())) for name in COMPONENTS),
        open=shown,
        past=past,
        more_open=len(opened) - len(shown),
        more_past=len(public) - len(opened) - len(past),
        troubles=tuple(troubles),
    )


def address(host: str, port: int) -> str:
    """As a URL, without a path."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _latest(found: Sequence[Incident]) -> tuple[Incident, ...]:
    """Those of them that are told in full, in the same order."""
    latest = {one.id for one in sorted(found, key=lambda one: one.updated_at, reverse=True)[:SHOWN]}
    return tuple(one for one in found if one.id in latest)


def _current(settings: Settings, at: datetime, troubles: list[str]) -> Current | None:
    catalog = Catalog(settings.data)
    try:
        version = catalog.announced()
        if version is None:
            troubles.append("No scores are published yet.")
            return None
        scored_at = datetime.strptime(version.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except (KserveError, OSError, ValueError) as error:
        log.error("status page: %s", error)
        troubles.append("Which version is in force cannot be read at the moment.")
        return None
    return Current(version, scored_at, at - scored_at > LATE * timedelta(hours=settings.cadence))


def _recorded(
    settings: Settings, since: datetime, troubles: list[str]
) -> tuple[list[Incident], dict[Component, tuple[plots.Day, ...]]]:
    """Public incidents that are open or were resolved since then, the latest first, and the days by component."""
    try:
        with Store.of(settings, PATIENCE) as store:
            daily = {name: tuple(map(_day, days)) for name, days in records.daily_status(store, DAYS).items()}
            return records.incidents(store, "public", since=since), daily
    except (KserveError, OSError, msgspec.ValidationError) as error:
        log.error("status page: %s", error)
        troubles.append("The record of incidents cannot be read at the moment.")
        return [], {}


def _day(recorded: tuple[Any, Impact | None]) -> plots.Day:
    day, impact = recorded
    state = "unknown" if impact is None else STATES[impact]
    return plots.Day(day, state, "no incident" if state == "operational" else WORDS[state].lower())


def _notes(settings: Settings, current: Current | None) -> dict[Component, tuple[Impact, str]]:
    """What is wrong without an incident."""
    notes: dict[Component, tuple[Impact, str]] = {}
    if current is not None and current.late:
        notes["publishing"] = ("minor", "The next snapshot is late.")
    roster = Catalog(settings.data).roster
    try:
        if roster.exists() and not any(seat.role == "server" for seat in Roster(roster).seats()):
            notes["scores"] = ("critical", "No server is running.")
    except (KserveError, OSError, ValueError) as error:
        log.error("status page: %s", error)
    return notes


def _component(
    name: Component, opened: tuple[Incident, ...], note: tuple[Impact, str] | None, days: tuple[plots.Day, ...]
) -> ComponentStatus:
    impacts = [incident.impact for incident in opened if name in incident.components]
    if note is not None:
        impacts.append(note[0])
    worst: Impact = max(impacts, key=records.IMPACTS.index, default="none")
    return ComponentStatus(name, worst, "" if note is None else note[1], days)


def to_html(status: Status) -> bytes:
    """The page."""
    age = None if status.current is None else pages.age(status.at - status.current.scored_at)
    words = {"words": WORDS, "tones": TONES, "names": NAMES, "days": DAYS, "past_days": PAST_DAYS}
    return pages.render("status.html", status=status, tone=TONES[STATES[status.impact]], age=age, **words).encode()


def to_json(status: Status) -> bytes:
    """The page as ``summary.json``, and more: the version in force, and incidents that were resolved lately."""
    current = status.current
    document = {
        "page": {
            "id": "kserve",
            "name": "kserve",
            "url": f"{status.url}/status",
            "time_zone": "Etc/UTC",
            "updated_at": utc(status.updated_at),
        },
        "status": {"indicator": status.impact, "description": status.summary},
        "components": [_component_json(place, one, status) for place, one in enumerate(status.components, 1)],
        "incidents": [_incident_json(incident, status) for incident in status.open],
        "scheduled_maintenances": [],
        "past_incidents": [_incident_json(incident, status) for incident in status.past],
        "more_incidents": status.more_open,
        "more_past_incidents": status.more_past,
        "snapshot": current and {"version": current.version, "scored_at": utc(current.scored_at), "late": current.late},
        "unknown": status.troubles,
    }
    return msgspec.json.encode(document)


def _component_json(place: int, component: ComponentStatus, status: Status) -> dict[str, Any]:
    name, description = NAMES[component.id]
    times = [one.updated_at for one in (*status.open, *status.past) if component.id in one.components]
    return {
        "id": component.id,
        "name": name,
        "status": None if component.state == "unknown" else component.state,
        "description": description,
        "position": place,
        "updated_at": utc(max(times, default=None)),
        "group_id": None,
        "group": False,
        "page_id": "kserve",
        "showcase": True,
        "only_show_if_degraded": False,
        "days": [{"date": day.day, "status": None if day.state == "unknown" else day.state} for day in component.days],
    }


def _incident_json(incident: Incident, status: Status) -> dict[str, Any]:
    """Without the names of those who wrote it."""
    watched = [update.at for update in incident.updates if update.status == "monitoring"]
    return {
        "id": incident.id,
        "name": incident.title,
        "status": incident.status,
        "impact": incident.impact,
        "created_at": utc(incident.opened_at),
        "started_at": utc(incident.opened_at),
        "updated_at": utc(incident.updated_at),
        "monitoring_at": utc(max(watched, default=None)),
        "resolved_at": utc(incident.resolved_at),
        "shortlink": f"{status.url}/status#{incident.id}",
        "page_id": "kserve",
        "components": [{"id": name, "name": NAMES[name][0]} for name in incident.components],
        "affected_versions": incident.versions,
        "incident_updates": [
            {
                "id": f"{incident.id}-{update.n}",
                "incident_id": incident.id,
                "status": update.status,
                "body": update.text,
                "created_at": utc(update.at),
                "updated_at": utc(update.at),
                "display_at": utc(update.at),
            }
            for update in reversed(incident.updates)
        ],
    }


def to_rss(status: Status) -> bytes:
    """The updates of public incidents as RSS 2.0, the latest first."""
    atom = "http://www.w3.org/2005/Atom"
    xml.register_namespace("atom", atom)
    root = xml.Element("rss", version="2.0")
    channel = xml.SubElement(root, "channel")
    _texts(channel, title="kserve status", link=f"{status.url}/status", description="Incidents of the Scores API.")
    link = {"href": f"{status.url}/status.rss", "rel": "self", "type": "application/rss+xml"}
    xml.SubElement(channel, f"{{{atom}}}link", link)
    _texts(channel, language="en", lastBuildDate=format_datetime(status.updated_at))
    said = [(update, incident) for incident in (*status.open, *status.past) for update in incident.updates]
    for update, incident in sorted(said, key=lambda pair: pair[0].at, reverse=True)[:FEED_ITEMS]:
        item = xml.SubElement(channel, "item")
        _texts(item, title=f"{update.status.capitalize()}: {incident.title}", description=update.text)
        _texts(item, link=f"{status.url}/status#{incident.id}", pubDate=format_datetime(update.at))
        xml.SubElement(item, "guid", isPermaLink="false").text = f"{incident.id}-{update.n}"
    text: bytes = xml.tostring(root, encoding="utf-8", xml_declaration=True)
    return text


def _texts(parent: xml.Element, **texts: str) -> None:
    for name, text in texts.items():
        xml.SubElement(parent, name).text = text
