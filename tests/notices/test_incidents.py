"""Incidents: what follows what, what is told of it, and the days that a status page shows."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings as options
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from notices.support import V1, V2, Clock

from kserve.errors import InputError
from kserve.notices.incidents import (
    IMPACTS,
    NEXT,
    STATUSES,
    Incident,
    Report,
    UnknownIncident,
    current_status,
    daily_status,
    incident,
    incidents,
    open_incident,
    resolve_incident,
    update_incident,
)
from kserve.notices.store import Store


def report(**fields: Any) -> Report:
    return Report(**({"title": "Wrong scores", "text": "We look.", "components": ("scores",)} | fields))


def told(store: Store) -> list[dict[str, Any]]:
    """Every event, the oldest first."""
    return [json.loads(row["body"]) for row in store.rows("SELECT body FROM events ORDER BY rowid")]


def test_from_the_first_suspicion_to_the_end(store: Store, clock: Clock) -> None:
    found = open_incident(store, report(impact="major", versions=(V1,)), by="ann")
    clock.move(minutes=1)
    update_incident(store, found.id, "It is a disk.", by="bob", status="identified", components=["publishing"])
    clock.move(minutes=1)
    update_incident(store, found.id, "Replaced.", by="bob", status="monitoring", versions=[V2, V1])
    clock.move(minutes=1)
    ended = resolve_incident(store, found.id, "Well again.", by="ann")
    assert ended == incident(store, found.id)
    assert [said.status for said in ended.updates] == list(STATUSES)
    assert [said.by for said in ended.updates] == ["ann", "bob", "bob", "ann"]
    assert (ended.components, ended.versions) == (("scores", "publishing"), (V1, V2))
    assert ended.resolved_at == ended.updated_at == found.opened_at + timedelta(minutes=3)
    assert not ended.open
    assert not ended.automatic
    assert [event["type"] for event in told(store)] == [
        "incident.opened",
        "incident.updated",
        "incident.updated",
        "incident.resolved",
    ]


def test_what_partners_are_told(store: Store) -> None:
    found = open_incident(store, report(), by="secret@host")
    (event,) = told(store)
    assert event == {
        "type": "incident.opened",
        "timestamp": "2026-01-12T12:00:00.000Z",
        "data": {
            "id": found.id,
            "title": "Wrong scores",
            "impact": "minor",
            "status": "investigating",
            "components": ["scores"],
            "versions": [],
            "opened_at": "2026-01-12T12:00:00.000Z",
            "updated_at": "2026-01-12T12:00:00.000Z",
            "resolved_at": None,
            "update": {"status": "investigating", "text": "We look.", "at": "2026-01-12T12:00:00.000Z"},
            "url": f"https://scores.example/status#{found.id}",
        },
    }


def test_nobody_outside_is_told_of_an_internal_one(store: Store) -> None:
    found = open_incident(store, report(visibility="internal"), by="ann")
    resolve_incident(store, found.id, "Done.", by="ann")
    assert told(store) == []
    assert incidents(store, "public") == []
    assert [one.id for one in incidents(store, "internal")] == [found.id]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"title": " "}, "title is empty"),
        ({"title": "a\nb"}, "characters that cannot be shown"),
        ({"title": "x" * 201}, "201 characters"),
        ({"text": "\x00"}, "characters that cannot be shown"),
        ({"text": "\udc80"}, "characters that cannot be shown"),
        ({"components": ()}, "affects something"),
        ({"components": ("moon",)}, "'moon' is no component"),
        ({"impact": "bad"}, "'bad' is no impact"),
        ({"status": "resolved"}, "'resolved' is no status"),
        ({"visibility": "secret"}, "'secret' is no visibility"),
    ],
)
def test_what_cannot_be_taken_is_named_and_leaves_nothing(store: Store, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_incident(store, report(**fields), by="ann")
    assert incidents(store) == []
    assert told(store) == []


def test_unknown_ones(store: Store) -> None:
    with pytest.raises(UnknownIncident, match="inc_x"):
        resolve_incident(store, "inc_x", "Done.", by="ann")


def test_a_clock_that_goes_back_does_not_turn_time(store: Store, clock: Clock) -> None:
    found = open_incident(store, report(), by="ann")
    clock.move(hours=-5)
    ended = resolve_incident(store, found.id, "Done.", by="ann")
    assert ended.resolved_at == found.opened_at


def test_the_days_of_a_status_page(store: Store, clock: Clock) -> None:
    clock.time = datetime(2026, 1, 14, 23, 59, tzinfo=UTC)
    late = open_incident(store, report(impact="minor"), by="ann")
    clock.move(minutes=2)
    update_incident(store, late.id, "Worse.", by="ann", impact="critical")
    clock.move(hours=1)
    update_incident(store, late.id, "Better.", by="ann", impact="none")
    clock.move(days=1)
    resolve_incident(store, late.id, "Done.", by="ann")
    clock.move(days=1)
    open_incident(store, report(impact="major", components=("publishing",)), by="ann")
    open_incident(store, report(impact="critical", visibility="internal"), by="ann")
    clock.move(days=1)
    assert daily_status(store, 7)["scores"] == [
        (date(2026, 1, 12), "none"),
        (date(2026, 1, 13), "none"),
        (date(2026, 1, 14), "minor"),
        (date(2026, 1, 15), "critical"),
        (date(2026, 1, 16), "none"),
        (date(2026, 1, 17), "none"),
        (date(2026, 1, 18), "none"),
    ]
    assert [impact for _, impact in daily_status(store, 3)["publishing"]] == ["none", "major", "major"]
    assert current_status(store) == {"scores": "none", "publishing": "major", "webhooks": "none"}
    assert current_status(store, "internal")["scores"] == "critical"


def test_a_day_that_nothing_is_known_of_is_not_a_good_day(store: Store) -> None:
    days = daily_status(store)
    assert {len(found) for found in days.values()} == {90}
    assert [impact for _, impact in days["scores"]] == [None] * 89 + ["none"]


def test_days_are_of_utc(store: Store, clock: Clock) -> None:
    clock.time = datetime.fromisoformat("2026-01-13T01:00:00+05:00")
    open_incident(store, report(), by="ann")
    assert daily_status(store, 1)["scores"] == [(date(2026, 1, 12), "minor")]


def test_lists(store: Store, clock: Clock) -> None:
    first = open_incident(store, report(), by="ann")
    clock.move(days=1)
    second = open_incident(store, report(), by="ann")
    clock.move(days=1)
    resolve_incident(store, first.id, "Done.", by="ann")
    assert [one.id for one in incidents(store)] == [second.id, first.id]
    assert [one.id for one in incidents(store, open_only=True)] == [second.id]
    clock.move(seconds=1)
    assert [one.id for one in incidents(store, since=clock())] == [second.id]


class Book(RuleBasedStateMachine):
    """Any order of acts on incidents, against a model that is a table."""

    ids = Bundle("ids")
    words = st.text("abc \n", min_size=1, max_size=9).filter(str.strip)

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.store = Store(Path(self.folder.name), clock=self.clock)
        self.model: dict[str, list[str]] = {}
        self.public: set[str] = set()
        self.events = 0

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(target=ids, public=st.booleans(), impact=st.sampled_from(IMPACTS), status=st.sampled_from(STATUSES[:3]))
    def open(self, public: bool, impact: str, status: str) -> str:
        visibility = "public" if public else "internal"
        found = open_incident(self.store, report(visibility=visibility, impact=impact, status=status), by="x")
        self.model[found.id] = [status]
        self.public |= {found.id} if public else set()
        self.events += public
        return found.id

    @rule(id=ids, status=st.none() | st.sampled_from(STATUSES), text=words)
    def update(self, id: str, status: Any, text: str) -> None:
        before = self.model[id]
        after = before[-1] if status is None else status
        if after in NEXT[before[-1]]:
            assert update_incident(self.store, id, text, by="x", status=status).updates[-1].text == text.strip()
            before.append(after)
            self.events += id in self.public
        else:
            with pytest.raises(InputError):
                update_incident(self.store, id, text, by="x", status=status)

    @rule(minutes=st.integers(-60, 600))
    def wait(self, minutes: int) -> None:
        self.clock.move(minutes=minutes)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store(Path(self.folder.name), clock=self.clock)

    @invariant()
    def what_is_kept_is_what_was_said(self) -> None:
        found: list[Incident] = incidents(self.store)
        assert {one.id: [said.status for said in one.updates] for one in found} == self.model
        for one in found:
            times = [said.at for said in one.updates]
            assert times == sorted(times)
            assert (one.resolved_at is not None) == (one.status == "resolved")
        assert len(told(self.store)) == self.events
        worst = [max(IMPACTS.index(i) for i in {said.impact for said in one.updates}) for one in found]
        assert all(level >= 0 for level in worst)


TestBook = Book.TestCase
TestBook.settings = options(max_examples=10, stateful_step_count=12, deadline=None)
