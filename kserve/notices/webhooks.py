"""Endpoints of partners: where events go, which ones, and the secrets that they are signed with."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from kserve.errors import InputError, KserveError
from kserve.notices import events
from kserve.notices.incidents import Report, open_incident, open_of, resolve_incident
from kserve.notices.store import Store, stamp
from kserve.notices.targets import check_url

State = Literal["enabled", "disabled", "removed"]

SECRET_BYTES = 32
OVERLAP = timedelta(hours=24)
"""How long the old secret signs too after a rotation."""

ENDPOINTS = 1000
"""As many endpoints can be kept."""


class UnknownEndpoint(KserveError, KeyError):
    """No endpoint of that id."""

    slug = "unknown-endpoint"
    http_status = 404
    exit_code = 4

    def __str__(self) -> str:
        return f"there is no endpoint {self.args[0]}: `kserve webhooks list` lists those that there are"


class Endpoint(msgspec.Struct, frozen=True):
    """Where a partner wants events. ``reason``: why it is disabled; since ``failing_since`` nothing arrives there."""

    id: str
    url: str
    types: tuple[str, ...]
    state: State
    reason: str | None
    created_at: datetime
    failing_since: datetime | None

    @property
    def shown(self) -> str:
        """The URL for people to see: a partner may have put a secret in its query, of which only the names are told."""
        place, mark, query = self.url.partition("?")
        return place + mark + "&".join(_hidden(part) for part in query.split("&") if part)


def _hidden(part: str) -> str:
    name, sign, _ = part.partition("=")
    return f"{name}=..." if sign else "..."


def add_endpoint(
    store: Store, url: str, types: Iterable[str] = events.TYPES, *, private: bool = False
) -> tuple[Endpoint, str]:
    """A new endpoint and its secret, which is shown this once. It gets what happens from now on.

    Call :meth:`~kserve.notices.desk.Desk.catch_up` before, or it gets what was not told of yet, too.
    Raises InputError when no webhook may go there or there is no such event; StorageError, Busy.
    """
    checked = check_url(url, private)
    wanted = [_type(type) for type in dict.fromkeys(types)]
    if not wanted:
        raise InputError("an endpoint wants one type of event at least", remedy=f"of {', '.join(events.TYPES)}")
    id = events.name("wh")
    with store.writing():
        if len(endpoints(store)) >= ENDPOINTS:
            raise InputError(f"there are {ENDPOINTS} endpoints already", remedy="remove those that nobody needs")
        store.run(
            "INSERT INTO endpoints VALUES (?, ?, ?, 'enabled', NULL, ?, NULL)",
            id,
            checked,
            msgspec.json.encode(wanted).decode(),
            stamp(store.clock()),
        )
        secret = _new_secret(store, id)
        return endpoint(store, id), secret


def rotate_secret(store: Store, id: str, overlap: timedelta = OVERLAP) -> str:
    """A new secret of an endpoint, shown this once. The old one signs too until the overlap is over; older ones end.

    Raises UnknownEndpoint, InputError, StorageError, Busy.
    """
    if overlap < timedelta(0) or overlap > timedelta(days=365):
        raise InputError("an overlap is between 0 and 8,760 hours")
    with store.writing():
        endpoint(store, id)
        store.run("DELETE FROM secrets WHERE endpoint = ? AND expires_at IS NOT NULL", id)
        store.run("UPDATE secrets SET expires_at = ? WHERE endpoint = ?", stamp(store.clock() + overlap), id)
        return _new_secret(store, id)


def valid_secrets(store: Store, id: str) -> list[str]:
    """The secrets that an event to this endpoint is signed with now, the newest first."""
    rows = store.rows(
        "SELECT secret FROM secrets WHERE endpoint = ? AND coalesce(expires_at, '9') > ?"
        " ORDER BY expires_at IS NOT NULL, created_at DESC",
        id,
        stamp(store.clock()),
    )
    return [row["secret"] for row in rows]


def endpoint(store: Store, id: str) -> Endpoint:
    """One endpoint that was not removed. Raises UnknownEndpoint."""
    found = _endpoints(store, "id = ? AND state != 'removed'", id)
    if not found:
        raise UnknownEndpoint(id)
    return found[0]


def endpoints(store: Store) -> list[Endpoint]:
    """All endpoints that were not removed, the oldest first."""
    return _endpoints(store, "state != 'removed'")


def remove_endpoint(store: Store, id: str, *, by: str) -> None:
    """Send nothing more to an endpoint and forget its secrets; its deliveries stay known. Raises UnknownEndpoint."""
    with store.writing():
        endpoint(store, id)
        _stop(store, id, "removed", "removed")
        store.run("DELETE FROM secrets WHERE endpoint = ?", id)
        _resolve_notice(store, id, "The endpoint was removed.", by)


def disable_endpoint(store: Store, id: str, reason: str, *, by: str, notice: bool = False) -> None:
    """Send nothing more to an endpoint until it is enabled. ``notice``: nobody asked for it, so engineers are told.

    Raises UnknownEndpoint.
    """
    with store.writing():
        found = endpoint(store, id)
        _stop(store, id, "disabled", reason)
        if notice and open_of(store, _origin(id)) is None:
            report = Report(
                title=f"Webhook endpoint {id} was disabled",
                text=f"{found.url.partition('?')[0]}: {reason}. What it misses is kept: `kserve webhooks enable {id}`,"
                f" then `kserve webhooks retry --endpoint {id}`.",
                components=("webhooks",),
                visibility="internal",
                origin=_origin(id),
            )
            open_incident(store, report, by=by)


def enable_endpoint(store: Store, id: str, *, by: str) -> Endpoint:
    """Send to an endpoint again what happens from now on; a retry sends what it missed. Raises UnknownEndpoint."""
    with store.writing():
        endpoint(store, id)
        store.run("UPDATE endpoints SET state = 'enabled', reason = NULL, failing_since = NULL WHERE id = ?", id)
        _resolve_notice(store, id, "The endpoint was enabled.", by)
        return endpoint(store, id)


def _stop(store: Store, id: str, state: State, reason: str) -> None:
    store.run("UPDATE endpoints SET state = ?, reason = ? WHERE id = ?", state, reason[:500], id)
    store.run("UPDATE deliveries SET state = 'skipped' WHERE endpoint = ? AND state = 'pending'", id)


def _resolve_notice(store: Store, id: str, text: str, by: str) -> None:
    found = open_of(store, _origin(id))
    if found is not None:
        resolve_incident(store, found.id, text, by=by)


def _origin(id: str) -> str:
    return f"endpoint {id}"


def _new_secret(store: Store, id: str) -> str:
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
    store.run("INSERT INTO secrets VALUES (?, ?, ?, NULL)", id, secret, stamp(store.clock()))
    return secret


def _type(text: str) -> str:
    if text not in events.TYPES:
        raise InputError(f"{text!r} is no type of event", remedy=f"one of {', '.join(events.TYPES)}")
    return text


def _endpoints(store: Store, condition: str, *values: str) -> list[Endpoint]:
    rows = store.rows(f"SELECT * FROM endpoints WHERE {condition} ORDER BY created_at, id", *values)
    return [msgspec.convert(dict(row) | {"types": msgspec.json.decode(row["types"])}, Endpoint) for row in rows]
