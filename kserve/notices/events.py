"""What programs are told: events, kept as the exact bytes that are sent, and due to every endpoint that wants them.

An event is written in the transaction of what it tells, and so are its deliveries: either all of it happened or none.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from kserve.notices.store import Store, stamp

if TYPE_CHECKING:
    from kserve.notices.incidents import Incident

TYPES = (
    "snapshot.announced",
    "snapshot.rolled_back",
    "incident.opened",
    "incident.updated",
    "incident.resolved",
)
"""Every type that an endpoint can ask for."""

TEST = "webhook.test"
"""Sent to one endpoint when somebody asks for it."""


def name(prefix: str, *parts: object) -> str:
    """An id: the same for the same parts, and one of its own when there are none."""
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).digest() if parts else secrets.token_bytes(16)
    return f"{prefix}_{base64.b32encode(digest)[:20].decode().lower()}"


def utc(moment: datetime | None) -> str | None:
    """A time as payloads have it."""
    return None if moment is None else f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat('T', 'milliseconds')}Z"


def scored_at(version: str | None) -> str | None:
    """When the scores of a version were made: its name begins with it."""
    try:
        return utc(datetime.strptime((version or "").partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC))
    except ValueError:
        return None


def tell(store: Store, id: str, type: str, at: datetime, data: dict[str, Any]) -> bool:
    """Record an event and what is due; False, and nothing, when there is one of this id already.

    Endpoints that are disabled get it when somebody retries what they have skipped.
    """
    body = msgspec.json.encode({"type": type, "timestamp": utc(at), "data": data}).decode()
    with store.writing():
        if not store.run("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?)", id, type, stamp(at), body):
            return False
        for endpoint in store.rows("SELECT id, types, state FROM endpoints WHERE state != 'removed'"):
            if type in msgspec.json.decode(endpoint["types"], type=list[str]):
                owe(store, id, endpoint["id"], "pending" if endpoint["state"] == "enabled" else "skipped")
    return True


def owe(store: Store, event: str, endpoint: str, state: str = "pending") -> None:
    """Make an event due to an endpoint, now."""
    due = stamp(store.clock())
    store.run(
        "INSERT INTO deliveries (event, endpoint, state, due_at) VALUES (?, ?, ?, ?)", event, endpoint, state, due
    )


def tell_incident(store: Store, incident: Incident, id: str | None = None) -> None:
    """The event of an incident's last update, when the incident is public."""
    if incident.visibility != "public":
        return
    last = incident.updates[-1]
    type = "incident.resolved" if last.status == "resolved" else "incident.updated"
    if len(incident.updates) == 1:
        type = "incident.opened"
    tell(store, id or name("msg", incident.id, last.n), type, last.at, _incident(store, incident))


def _incident(store: Store, incident: Incident) -> dict[str, Any]:
    last = incident.updates[-1]
    return {
        "id": incident.id,
        "title": incident.title,
        "impact": incident.impact,
        "status": incident.status,
        "components": incident.components,
        "versions": incident.versions,
        "opened_at": utc(incident.opened_at),
        "updated_at": utc(incident.updated_at),
        "resolved_at": utc(incident.resolved_at),
        "update": {"status": last.status, "text": last.text, "at": utc(last.at)},
        "url": store.public_url and f"{store.public_url}/status#{incident.id}",
    }
