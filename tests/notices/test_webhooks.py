"""Endpoints and their secrets, and when what is sent to them: a clock that is moved, and outcomes that are made up."""

from __future__ import annotations

from datetime import timedelta

import pytest
from notices.support import V1, V2, Clock, announce
from standardwebhooks import Webhook

from kserve.errors import InputError
from kserve.notices import deliveries, events, webhooks
from kserve.notices.deliveries import (
    DELAYS,
    Due,
    Outcome,
    UnknownDelivery,
    begin,
    due,
    finish,
    recover,
    retry,
    send_test,
)
from kserve.notices.desk import Desk
from kserve.notices.events import TYPES
from kserve.notices.incidents import Report, incidents, open_incident
from kserve.notices.store import Store
from kserve.notices.webhooks import (
    UnknownEndpoint,
    add_endpoint,
    disable_endpoint,
    enable_endpoint,
    endpoint,
    endpoints,
    remove_endpoint,
    rotate_secret,
    valid_secrets,
)
from kserve.settings import Settings

URL = "https://8.8.8.8/hook"
ARRIVED = Outcome(status=204)
FAILED = Outcome(status=503, error="answered 503")


def longest(_: float, most: float) -> float:
    return most


def happen(store: Store) -> None:
    """Something that partners are told of."""
    open_incident(store, Report(title="Slow", text="We look.", components=("scores",)), by="ann")


def one_due(store: Store) -> Due:
    (found,) = due(store, 4, {})
    return found


def attempt(store: Store, outcome: Outcome) -> str:
    """Make the one attempt that is due."""
    found = one_due(store)
    return finish(store, found, begin(store, found), outcome, longest)


def state(store: Store) -> str:
    (found,) = deliveries.deliveries(store)
    return found.state


def test_an_endpoint_gets_what_it_asked_for_from_now_on(store: Store) -> None:
    happen(store)
    found, secret = add_endpoint(store, URL)
    assert (found.url, found.types, found.state) == (URL, TYPES, "enabled")
    assert endpoints(store) == [found]
    assert secret.startswith("whsec_")
    assert Webhook(secret)
    add_endpoint(store, URL, ["snapshot.announced", "snapshot.announced"])
    happen(store)
    (only,) = deliveries.deliveries(store)
    assert (only.endpoint, only.state, only.attempts) == (found.id, "pending", 0)


@pytest.mark.parametrize("types", [["moon.rose"], []])
def test_events_that_there_are_not(store: Store, types: list[str]) -> None:
    with pytest.raises(InputError):
        add_endpoint(store, URL, types)
    assert endpoints(store) == []


def test_no_more_endpoints_than_can_be_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "ENDPOINTS", 1)
    add_endpoint(store, URL)
    with pytest.raises(InputError, match="1 endpoints already"):
        add_endpoint(store, URL)


def test_what_is_not_told_yet_when_an_endpoint_is_added(store: Store, desk: Desk, settings: Settings) -> None:
    announce(settings.data, V1)
    desk.catch_up()
    add_endpoint(store, URL)
    announce(settings.data, V2, V1)
    desk.catch_up()
    assert len(deliveries.deliveries(store)) == 1


def test_secrets_overlap(store: Store, clock: Clock) -> None:
    found, first = add_endpoint(store, URL)
    assert valid_secrets(store, found.id) == [first]
    second = rotate_secret(store, found.id)
    assert valid_secrets(store, found.id) == [second, first]
    clock.move(hours=23)
    third = rotate_secret(store, found.id)
    assert valid_secrets(store, found.id) == [third, second]
    clock.move(hours=24)
    assert valid_secrets(store, found.id) == [third]
    last = rotate_secret(store, found.id, timedelta(0))
    assert valid_secrets(store, found.id) == [last]
    assert len({first, second, third, last}) == 4
    with pytest.raises(InputError):
        rotate_secret(store, found.id, timedelta(hours=-1))


def test_unknown_ones(store: Store) -> None:
    for step in (endpoint, rotate_secret, enable_endpoint, send_test):
        with pytest.raises(UnknownEndpoint, match="wh_x"):
            step(store, "wh_x", **({"by": "ann"} if step is enable_endpoint else {}))
    with pytest.raises(UnknownDelivery, match="msg_x"):
        retry(store, event="msg_x")


def test_retries_go_on_for_days_and_end(store: Store, clock: Clock) -> None:
    add_endpoint(store, URL)
    happen(store)
    began = clock()
    waits = []
    while state(store) == "pending":
        (before,) = deliveries.deliveries(store)
        waits.append(before.due_at - clock())
        clock.time = before.due_at
        attempt(store, FAILED)
    assert waits[1:] == list(DELAYS)
    assert state(store) == "failed"
    assert timedelta(days=6) < clock() - began < timedelta(days=7)  # the mean is half of it
    assert due(store, 4, {}) == []


def test_jitter_is_of_the_whole_delay(store: Store, clock: Clock) -> None:
    add_endpoint(store, URL)
    happen(store)
    found = one_due(store)
    asked: list[tuple[float, float]] = []
    finish(store, found, begin(store, found), FAILED, lambda low, high: asked.append((low, high)) or low)
    assert asked == [(0.0, DELAYS[0].total_seconds())]
    (after,) = deliveries.deliveries(store)
    assert after.due_at == clock() + timedelta(seconds=1)  # never at once


@pytest.mark.parametrize(("asked", "waited"), [(60.0, 60.0), (1e9, 24 * 3600.0), (0.0, 10.0), (None, 10.0)])
def test_a_partner_may_ask_for_time_within_bounds(
    store: Store, clock: Clock, asked: float | None, waited: float
) -> None:
    add_endpoint(store, URL)
    happen(store)
    attempt(store, Outcome(status=429, error="answered 429", retry_after=asked))
    (after,) = deliveries.deliveries(store)
    assert (after.due_at - clock()).total_seconds() == waited


def test_an_endpoint_that_fails_for_days_is_disabled_and_somebody_told(store: Store, clock: Clock) -> None:
    found, _ = add_endpoint(store, URL)
    for _ in range(3):
        happen(store)
    for day in range(6):
        for one in due(store, 99, {}):
            finish(store, one, begin(store, one), FAILED, longest)
        clock.move(days=1)
        if day == 2:
            assert endpoint(store, found.id).state == "enabled"
    after = endpoint(store, found.id)
    assert after.state == "disabled"
    assert after.reason == "nothing arrives there since 2026-01-12 12:00Z"
    (notice,) = incidents(store, "internal")
    assert (notice.components, notice.open) == (("webhooks",), True)
    assert {one.state for one in deliveries.deliveries(store)} <= {"failed", "skipped"}
    happen(store)
    assert due(store, 4, {}) == []
    with pytest.raises(InputError, match="disabled"):
        retry(store, to=found.id)
    with pytest.raises(InputError, match="disabled"):
        send_test(store, found.id)
    assert enable_endpoint(store, found.id, by="ann").failing_since is None
    assert not incidents(store, "internal")[0].open
    assert retry(store, to=found.id) == 4
    assert len(due(store, 4, {})) == 4


def test_an_arrival_ends_the_days_of_failure(store: Store, clock: Clock) -> None:
    found, _ = add_endpoint(store, URL)
    for outcome in (FAILED, ARRIVED, FAILED):
        happen(store)
        one = due(store, 9, {})[-1]
        finish(store, one, begin(store, one), outcome, longest)
        clock.move(days=3)
    assert endpoint(store, found.id).state == "enabled"
    assert endpoint(store, found.id).failing_since == clock() - timedelta(days=3)


def test_a_pause(store: Store) -> None:
    found, _ = add_endpoint(store, URL)
    happen(store)
    disable_endpoint(store, found.id, "they move", by="ann")
    happen(store)
    assert {one.state for one in deliveries.deliveries(store)} == {"skipped"}
    assert incidents(store, "internal") == []
    enable_endpoint(store, found.id, by="ann")
    assert due(store, 4, {}) == []
    assert retry(store, to=found.id) == 2


def test_a_removed_endpoint_is_sent_nothing(store: Store) -> None:
    found, _ = add_endpoint(store, URL)
    happen(store)
    one = one_due(store)
    n = begin(store, one)
    remove_endpoint(store, found.id, by="ann")
    assert finish(store, one, n, FAILED) == "skipped"
    assert valid_secrets(store, found.id) == []
    assert endpoints(store) == []
    assert state(store) == "skipped"
    with pytest.raises(UnknownEndpoint):
        retry(store, event=one.event)


def test_a_removed_endpoint_may_have_got_it(store: Store) -> None:
    found, _ = add_endpoint(store, URL)
    happen(store)
    one = one_due(store)
    n = begin(store, one)
    remove_endpoint(store, found.id, by="ann")
    assert finish(store, one, n, ARRIVED) == "delivered"


def test_one_message_is_one_row_and_keeps_its_body(store: Store, clock: Clock) -> None:
    found, _ = add_endpoint(store, URL)
    happen(store)
    first = one_due(store)
    attempt(store, FAILED)
    clock.move(days=2)
    again = one_due(store)
    assert (again.event, again.body) == (first.event, first.body)
    assert attempt(store, ARRIVED) == "delivered"
    assert retry(store, event=first.event) == 1
    assert attempt(store, ARRIVED) == "delivered"
    assert len(deliveries.deliveries(store)) == 1
    assert [one.n for one in deliveries.attempts(store, first.event, found.id)] == [1, 2, 3]


def test_an_attempt_that_was_cut_off_is_made_again(store: Store, clock: Clock) -> None:
    found, _ = add_endpoint(store, URL)
    happen(store)
    one = one_due(store)
    begin(store, one)
    assert due(store, 4, {}) == []
    assert recover(store) == 1
    assert attempt(store, ARRIVED) == "delivered"
    first, second = deliveries.attempts(store, one.event, found.id)
    assert "cut off" in (first.error or "")
    assert second.status == 204


def test_an_outcome_that_was_not_recorded_is_made_up_for_by_the_lease(store: Store, clock: Clock) -> None:
    found, _ = add_endpoint(store, URL)
    happen(store)
    one = one_due(store)
    begin(store, one)
    clock.move(minutes=6)
    assert attempt(store, ARRIVED) == "delivered"
    first, _ = deliveries.attempts(store, one.event, found.id)
    assert "cut off" in (first.error or "")


def test_a_time_set_by_a_wrong_clock_is_not_waited_for(store: Store, clock: Clock) -> None:
    add_endpoint(store, URL)
    clock.move(days=365)
    happen(store)
    clock.move(days=-365)
    assert one_due(store)


def test_no_more_than_some_messages_are_under_way_to_one_endpoint(store: Store) -> None:
    first, _ = add_endpoint(store, URL)
    for _ in range(9):
        happen(store)
    second, _ = add_endpoint(store, URL)
    happen(store)
    found = [one.endpoint for one in due(store, 4, {first.id: 1})]
    assert sorted(found) == sorted([first.id] * 3 + [second.id])


def test_a_test_message_goes_to_one_endpoint(store: Store) -> None:
    found, _ = add_endpoint(store, URL)
    add_endpoint(store, URL)
    event = send_test(store, found.id)
    one = one_due(store)
    assert (one.event, one.endpoint) == (event, found.id)
    assert '"type":"webhook.test"' in one.body


def test_the_log_of_deliveries(store: Store, clock: Clock) -> None:
    first, _ = add_endpoint(store, URL)
    second, _ = add_endpoint(store, URL)
    happen(store)
    for one, outcome in zip(due(store, 4, {}), (FAILED, ARRIVED), strict=True):
        finish(store, one, begin(store, one), outcome)
    clock.move(seconds=1)
    happen(store)
    assert len(deliveries.deliveries(store)) == 4
    assert len(deliveries.deliveries(store, most=1)) == 1
    assert {one.endpoint for one in deliveries.deliveries(store, to=second.id)} == {second.id}
    (failed,) = deliveries.deliveries(store, failed=True)
    assert failed.last is not None
    assert (failed.state, failed.last.error, failed.last.status) == ("pending", "answered 503", 503)
    clock.move(seconds=9)
    waiting, late = deliveries.backlog(store)
    assert (waiting, late) == (3, pytest.approx(10, abs=10))
    assert first.id != second.id


def test_a_backlog_is_not_read_to_find_what_is_due(store: Store) -> None:
    for n in range(2):
        add_endpoint(store, f"http://127.0.0.1/{n}", private=True)
    with store.writing():
        for n in range(1000):
            events.tell(store, f"msg_{n}", "snapshot.announced", store.clock(), {})
    steps: list[int] = []
    store._connection.set_progress_handler(lambda: steps.append(1), 100)
    assert len(deliveries.due(store, 4, {})) == 8
    assert len(steps) < 20
