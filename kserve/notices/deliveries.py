"""What is due to whom, and the record of every attempt. One message has one row for each endpoint, whatever happens."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from kserve.errors import InputError, KserveError
from kserve.notices import events
from kserve.notices.store import Store, stamp
from kserve.notices.webhooks import disable_endpoint, endpoint

State = Literal["pending", "delivered", "failed", "skipped"]
"""``skipped``: its endpoint was disabled; ``failed``: given up after the last retry, or refused for good."""

DELAYS = tuple(
    timedelta(seconds=seconds)
    for seconds in (10, 600, 3600, 4 * 3600, 10 * 3600, 20 * 3600, 28 * 3600, 40 * 3600, 48 * 3600)
)
"""The longest time before each retry. With full jitter the mean is half: 5 s, 5 min, 30 min, 2 h, ... 24 h; 3 days."""

LONGEST_WAIT = timedelta(hours=24)
"""Of what a partner may ask for by Retry-After."""

DISABLED_AFTER = timedelta(days=5)
"""An endpoint where nothing has arrived for so long is disabled."""

LEASE = timedelta(minutes=5)
"""An attempt that did not end by then was cut off, and is made again."""

GONE = 410


class UnknownDelivery(KserveError, KeyError):
    """No such message, or none of it to that endpoint."""

    slug = "unknown-delivery"
    http_status = 404
    exit_code = 4

    def __str__(self) -> str:
        return f"there is no delivery {self.args[0]}: `kserve webhooks deliveries` lists those that there are"


class Due(msgspec.Struct, frozen=True):
    """A message that is to be sent now. ``body`` is sent as it is, at every attempt."""

    event: str
    endpoint: str
    url: str
    body: str
    attempts: int


class Outcome(msgspec.Struct, frozen=True):
    """What became of an attempt: the partner's status, or an error. ``answer`` is the beginning of what it said."""

    status: int | None = None
    error: str | None = None
    answer: str | None = None
    seconds: float = 0.0
    retry_after: float | None = None

    @property
    def arrived(self) -> bool:
        """The partner has it."""
        return self.status is not None and 200 <= self.status < 300


class Attempt(msgspec.Struct, frozen=True):
    """One attempt. Neither status nor error: it is under way."""

    n: int
    at: datetime
    seconds: float | None
    status: int | None
    error: str | None
    answer: str | None


class Delivery(msgspec.Struct, frozen=True):
    """A message and where it stands. ``due_at``: the next attempt, when it is pending."""

    event: str
    type: str
    endpoint: str
    state: State
    attempts: int
    due_at: datetime
    finished_at: datetime | None
    last: Attempt | None


_FIRST = (
    "SELECT * FROM (SELECT event FROM deliveries WHERE state = 'pending' AND endpoint = endpoints.id AND {}"
    " AND (event = ?4 OR ?4 IS NULL) ORDER BY due_at LIMIT ?3)"
)
"""The first of an endpoint by the index: looking for what is due must not read all that waits."""


def due(store: Store, most: int, under_way: Mapping[str, int], event: str | None = None) -> list[Due]:
    """Messages that are due, the longest waiting first, no more than ``most`` under way to one endpoint.

    A time that lies further ahead than any delay was set by a clock that was wrong, and is now.
    """
    now = store.clock()
    rows = store.rows(
        "SELECT due.event, due.endpoint, url, body, due.attempts FROM endpoints CROSS JOIN deliveries AS due"
        " ON due.endpoint = endpoints.id AND due.event IN"
        f" (SELECT event FROM ({_FIRST.format('due_at <= ?1')} UNION ALL {_FIRST.format('due_at > ?2')}))"
        " CROSS JOIN events ON events.id = due.event"
        " WHERE endpoints.state = 'enabled' AND due.state = 'pending' ORDER BY due.due_at",
        stamp(now),
        stamp(now + DELAYS[-1] + timedelta(hours=1)),
        most,
        event,
    )
    found, counts = [], dict(under_way)
    for row in rows:
        counts[row["endpoint"]] = counts.get(row["endpoint"], 0) + 1
        if counts[row["endpoint"]] <= most:
            found.append(Due(row["event"], row["endpoint"], row["url"], row["body"], row["attempts"]))
    return found


def begin(store: Store, one: Due) -> int:
    """Record that an attempt begins; returns its number, from 1. If it never ends, the message is due again."""
    now = store.clock()
    with store.writing():
        store.run(
            "UPDATE deliveries SET attempts = attempts + 1, tries = tries + 1, due_at = ?"
            " WHERE event = ? AND endpoint = ?",
            stamp(now + LEASE),
            one.event,
            one.endpoint,
        )
        _cut_off(store, "event = ? AND endpoint = ?", one.event, one.endpoint)  # its outcome could not be recorded
        n = one.attempts + 1
        store.run(
            "INSERT INTO attempts (event, endpoint, n, at) VALUES (?, ?, ?, ?)", one.event, one.endpoint, n, stamp(now)
        )
    return n


def finish(
    store: Store, one: Due, n: int, outcome: Outcome, jitter: Callable[[float, float], float] = random.uniform
) -> State:
    """Record how an attempt ended, and what comes next. Returns where the message stands."""
    with store.writing():
        store.run(
            "UPDATE attempts SET seconds = ?, status = ?, error = ?, answer = ?"
            " WHERE event = ? AND endpoint = ? AND n = ?",
            round(outcome.seconds, 3),
            outcome.status,
            outcome.error,
            outcome.answer,
            one.event,
            one.endpoint,
            n,
        )
        if outcome.arrived:
            store.run("UPDATE endpoints SET failing_since = NULL WHERE id = ?", one.endpoint)
            return _settle(store, one, "delivered")
        return _fail(store, one, outcome, jitter)


def _fail(store: Store, one: Due, outcome: Outcome, jitter: Callable[[float, float], float]) -> State:
    row = store.row("SELECT state, tries FROM deliveries WHERE event = ? AND endpoint = ?", one.event, one.endpoint)
    assert row is not None
    if row["state"] != "pending":  # the endpoint was disabled or removed meanwhile
        return "skipped"
    now = store.clock()
    store.run("UPDATE endpoints SET failing_since = coalesce(failing_since, ?) WHERE id = ?", stamp(now), one.endpoint)
    state: State = "pending"
    if outcome.status == GONE or row["tries"] > len(DELAYS):
        state = _settle(store, one, "failed")
    else:
        wait = _wait(DELAYS[row["tries"] - 1], outcome.retry_after, jitter)
        store.run(
            "UPDATE deliveries SET due_at = ? WHERE event = ? AND endpoint = ?",
            stamp(now + wait),
            one.event,
            one.endpoint,
        )
    _disable(store, one.endpoint, now, outcome)
    return state


def _wait(longest: timedelta, retry_after: float | None, jitter: Callable[[float, float], float]) -> timedelta:
    """A random part of the delay, but never less than the partner asked for, within bounds."""
    asked = min(timedelta(seconds=max(retry_after or 0.0, 1.0)), LONGEST_WAIT)
    return max(timedelta(seconds=jitter(0.0, longest.total_seconds())), asked)


def _disable(store: Store, id: str, now: datetime, outcome: Outcome) -> None:
    """An endpoint that is gone, or where nothing arrives for days, is not tried for ever."""
    found = endpoint(store, id)
    since = found.failing_since or now
    if outcome.status == GONE:
        disable_endpoint(store, id, "it answered 410: it is gone", by="kserve", notice=True)
    elif now - since >= DISABLED_AFTER:
        reason = f"nothing arrives there since {since:%Y-%m-%d %H:%M}Z"
        disable_endpoint(store, id, reason, by="kserve", notice=True)


def _settle(store: Store, one: Due, state: State) -> State:
    store.run(
        "UPDATE deliveries SET state = ?, finished_at = ? WHERE event = ? AND endpoint = ?",
        state,
        stamp(store.clock()),
        one.event,
        one.endpoint,
    )
    return state


def recover(store: Store) -> int:
    """Make attempts that were cut off due again; returns how many. Only for who is the one deliverer of the host."""
    with store.writing():
        store.run(
            "UPDATE deliveries SET due_at = ? WHERE state = 'pending' AND (event, endpoint) IN"
            " (SELECT event, endpoint FROM attempts WHERE seconds IS NULL)",
            stamp(store.clock()),
        )
        return _cut_off(store, "TRUE")


def _cut_off(store: Store, which: str, *values: str) -> int:
    statement = "UPDATE attempts SET seconds = 0, error = 'cut off: nobody knows whether it arrived'"
    return store.run(f"{statement} WHERE seconds IS NULL AND {which}", *values)


def send_test(store: Store, id: str) -> str:
    """Make a ``webhook.test`` due to one endpoint; returns the message's id. Raises UnknownEndpoint, InputError."""
    with store.writing():
        found = endpoint(store, id)
        if found.state != "enabled":
            raise InputError(f"endpoint {id} is disabled: {found.reason}", remedy=f"`kserve webhooks enable {id}`")
        event = events.name("msg")
        events.tell(store, event, events.TEST, store.clock(), {"endpoint": id})
        events.owe(store, event, id)
    return event


def retry(store: Store, *, event: str | None = None, to: str | None = None) -> int:
    """Make messages due again that failed or were skipped; returns how many.

    ``event``: this one, even if it has arrived; ``to``: of this endpoint only. Raises UnknownDelivery when there is no
    such message, InputError when its endpoint is disabled, UnknownEndpoint when that was removed.
    """
    wanted = "(event = ?1 OR (?1 IS NULL AND state IN ('failed', 'skipped'))) AND (endpoint = ?2 OR ?2 IS NULL)"
    with store.writing():
        rows = store.rows(f"SELECT DISTINCT endpoint FROM deliveries WHERE {wanted}", event, to)
        if event is not None and not rows:
            raise UnknownDelivery(event)
        for row in rows:
            found = endpoint(store, row["endpoint"])
            if found.state != "enabled":
                remedy = f"`kserve webhooks enable {found.id}`"
                raise InputError(f"endpoint {found.id} is disabled: {found.reason}", remedy=remedy)
        statement = "UPDATE deliveries SET state = 'pending', tries = 0, finished_at = NULL, due_at = ?3 WHERE "
        return store.run(statement + wanted, event, to, stamp(store.clock()))


def deliveries(
    store: Store, *, to: str | None = None, event: str | None = None, failed: bool = False, most: int = 100
) -> list[Delivery]:
    """The delivery log, the latest event first. ``failed``: only what has not arrived though it was tried."""
    rows = store.rows(
        "SELECT deliveries.*, events.type, attempts.n, attempts.at, attempts.seconds, attempts.status, attempts.error,"
        " attempts.answer FROM deliveries JOIN events ON events.id = deliveries.event LEFT JOIN attempts"
        " ON attempts.event = deliveries.event AND attempts.endpoint = deliveries.endpoint"
        " AND attempts.n = deliveries.attempts"
        " WHERE (?1 IS NULL OR deliveries.endpoint = ?1) AND (?2 IS NULL OR deliveries.event = ?2)"
        " AND (NOT ?3 OR (state != 'delivered' AND deliveries.attempts > 0))"
        " ORDER BY events.at DESC, events.rowid DESC LIMIT ?4",
        to,
        event,
        failed,
        most,
    )
    return [msgspec.convert(dict(row) | {"last": None if row["n"] is None else dict(row)}, Delivery) for row in rows]


def attempts(store: Store, event: str, to: str) -> list[Attempt]:
    """Every attempt of one message to one endpoint, the first first."""
    rows = store.rows("SELECT * FROM attempts WHERE event = ? AND endpoint = ? ORDER BY n", event, to)
    return [msgspec.convert(dict(row), Attempt) for row in rows]


def backlog(store: Store) -> tuple[int, float]:
    """How many messages wait, and for how many seconds the longest due of them has been due."""
    row = store.row("SELECT count(*) AS waiting, min(due_at) AS oldest FROM deliveries WHERE state = 'pending'")
    assert row is not None
    oldest = row["oldest"]
    late = 0.0 if oldest is None else (store.clock() - datetime.fromisoformat(oldest)).total_seconds()
    return row["waiting"], max(late, 0.0)
