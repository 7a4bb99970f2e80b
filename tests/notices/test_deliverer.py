"""What is sent, over real connections: on time, signed, again and again, whatever partners and processes do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from lengths import FULL
from notices.support import V1, V2, Partner, act, announce
from standardwebhooks import Webhook, WebhookVerificationError
from waiting import PATIENCE, until

from kserve.errors import Busy
from kserve.notices import deliverer as module
from kserve.notices import deliveries
from kserve.notices import store as store_module
from kserve.notices.deliverer import NoticesThread, at_work
from kserve.notices.incidents import Report, incidents, open_incident, resolve_incident
from kserve.notices.store import Store
from kserve.notices.webhooks import add_endpoint, endpoint, rotate_secret
from kserve.settings import Settings

Partners = Callable[..., Partner]
DELIVER = "from kserve.cli.webhooks import webhooks_app; webhooks_app()"
SERVER = """
import time
from kserve.notices.deliverer import NoticesThread
from kserve.settings import load
NoticesThread(load()).start()
time.sleep(100)
"""


@pytest.fixture
def now(settings: Settings) -> Iterator[Store]:
    """A store in real time."""
    with Store.of(settings) as store:
        yield store


@contextmanager
def running(settings: Settings) -> Iterator[NoticesThread]:
    thread = NoticesThread(settings)
    thread.start()
    try:
        yield thread
    finally:
        thread.stop()


def all_delivered(store: Store, count: int) -> bool:
    return states(store) == ["delivered"] * count


def states(store: Store) -> list[str]:
    return [delivery.state for delivery in deliveries.deliveries(store)]


def test_an_act_is_with_partners_within_a_second(settings: Settings, now: Store, partner: Partners) -> None:
    one = partner()
    _, secret = add_endpoint(now, one.url, private=True)
    with running(settings):
        until(lambda: (settings.data / "NOTICES").exists())
        began = time.monotonic()
        announce(settings.data, V1)
        (request,) = one.wait(1)
        until(lambda: states(now) == ["delivered"])
    assert request.at - began < 5.0
    assert Webhook(secret).verify(request.body, request.headers) == json.loads(request.body)
    assert request.headers["content-type"] == "application/json"
    assert "cookie" not in request.headers


def test_an_incident_by_hand_is_sent_too(settings: Settings, now: Store, partner: Partners) -> None:
    one = partner()
    add_endpoint(now, one.url, ["incident.opened", "incident.resolved"], private=True)
    with running(settings):
        found = open_incident(now, Report(title="Slow", text="We look.", components=("scores",)), by="a")
        resolve_incident(now, found.id, "Done.", by="a")
        sent = {json.loads(request.body)["type"] for request in one.wait(2)}
    assert sent == {"incident.opened", "incident.resolved"}


@pytest.mark.heavy
def test_a_failed_attempt_is_made_again_with_the_same_id_and_body(
    settings: Settings, now: Store, partner: Partners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "DELAYS", (timedelta(seconds=1),) * 3)
    one = partner(answers=[(500, {}, b"oh\x00no " + b"x" * 9999), (302, {"Location": "/other"}, b""), (204, {}, b"")])
    found, _ = add_endpoint(now, one.url, private=True)
    with running(settings):
        announce(settings.data, V1)
        requests = one.wait(3)
        until(lambda: states(now) == ["delivered"])
    assert len({(request.id, request.body) for request in requests}) == 1
    first, second, third = deliveries.attempts(now, requests[0].id, found.id)
    assert (first.status, first.error) == (500, "answered 500")
    assert first.answer is not None
    assert first.answer.startswith("oh no xx")
    assert len(first.answer) == 200
    assert (second.status, second.error) == (302, "a redirect, which is not followed")
    assert (third.status, third.error) == (204, None)
    assert endpoint(now, found.id).failing_since is None


def test_both_secrets_sign_while_they_overlap(settings: Settings, now: Store, partner: Partners) -> None:
    one = partner()
    found, old = add_endpoint(now, one.url, private=True)
    new = rotate_secret(now, found.id)
    with running(settings):
        announce(settings.data, V1)
        (request,) = one.wait(1)
    for secret in (old, new):
        Webhook(secret).verify(request.body, request.headers)
    assert len(request.headers["webhook-signature"].split()) == 2
    third = rotate_secret(now, found.id, timedelta(0))
    with running(settings):
        announce(settings.data, V2, V1)
        last = one.wait(2)[-1]
    Webhook(third).verify(last.body, last.headers)
    for secret in (old, new):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(last.body, last.headers)


def test_gone_is_gone(settings: Settings, now: Store, partner: Partners) -> None:
    one = partner(answers=[(410, {}, b"")])
    found, _ = add_endpoint(now, one.url, private=True)
    with running(settings):
        announce(settings.data, V1)
        until(lambda: endpoint(now, found.id).state == "disabled")
        announce(settings.data, V2, V1)
        until(lambda: len(states(now)) == 2)
    assert len(one.requests) == 1
    assert states(now) == ["skipped", "failed"]
    (notice,) = incidents(now, "internal")
    assert found.id in notice.title
    assert notice.components == ("webhooks",)


def test_a_slow_partner_delays_no_other(
    settings: Settings, now: Store, partner: Partners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has not answered anything when the other one has everything."""
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.1)
    slow, quick = partner(delay=30.0), partner()
    add_endpoint(now, slow.url, private=True)
    add_endpoint(now, quick.url, private=True)
    for number in range(20):
        act(
            settings.data,
            "rollback",
            V1,
            by_sentinel=False,
            **{"from": f"2026011{number % 10}T040000Z-0000000{number % 10}"},
        )
    with running(settings):
        quick.wait(20)
        assert len(slow.requests) <= module.UNDER_WAY


def test_a_partner_that_never_ends_its_answer_has_it(settings: Settings, now: Store, partner: Partners) -> None:
    one = partner(answers=[(200, {"Content-Length": "1000000"}, b"x" * 100_000)])
    add_endpoint(now, one.url, private=True)
    with running(settings):
        announce(settings.data, V1)
        until(lambda: states(now) == ["delivered"])


async def test_one_deliverer_at_a_time(settings: Settings, now: Store, partner: Partners) -> None:
    one = partner(delay=0.2)
    add_endpoint(now, one.url, private=True)
    with running(settings), running(settings) as second:
        until(lambda: (settings.data / "NOTICES").exists())
        announce(settings.data, V1)
        one.wait(1)
        with pytest.raises(Busy):
            async with at_work(settings) as deliverer:
                await deliverer.once()
        second.stop()
    time.sleep(0.5)
    assert len(one.requests) == 1


def test_another_takes_over(settings: Settings, now: Store, partner: Partners) -> None:
    one = partner()
    add_endpoint(now, one.url, private=True)
    first = NoticesThread(settings)
    first.start()
    until(lambda: (settings.data / "NOTICES").exists())
    with running(settings):
        first.stop()
        announce(settings.data, V1)
        one.wait(1)


@contextmanager
def process(settings: Settings, script: str = DELIVER, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"KSERVE_WEBHOOK_PRIVATE": "1", "KSERVE_DATA": str(settings.data)}
    started = subprocess.Popen([sys.executable, "-c", script, *arguments], env=environment, stderr=subprocess.PIPE)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


@pytest.mark.heavy
@pytest.mark.drill
def test_killed_in_the_middle_nothing_is_lost_and_nothing_has_two_ids(
    settings: Settings, now: Store, partner: Partners
) -> None:
    one = partner(delay=0.15)
    found, secret = add_endpoint(now, one.url, private=True)
    previous = None
    for number in range(12):
        version = f"202601{number + 10}T040000Z-0000000a"
        announce(settings.data, version, previous)
        previous = version
    for kill in range(6 if FULL else 3):
        one.delay = 0.15 if kill else 5.0  # the first one is killed in the middle, however late
        with process(settings, DELIVER, "deliver") as deliverer:
            one.wait(2 * kill + 1)
            time.sleep(0.03 * kill)
            deliverer.send_signal(signal.SIGKILL)
            deliverer.wait()
    with process(settings, DELIVER, "deliver", "--once") as last:
        assert last.wait(100) == 0
    assert states(now) == ["delivered"] * 12
    bodies: dict[str, set[bytes]] = {}
    for request in one.requests:
        bodies.setdefault(request.id, set()).add(request.body)
        Webhook(secret).verify(request.body, request.headers)
    assert len(bodies) == 12
    assert all(len(same) == 1 for same in bodies.values())
    cut_off = [a for id in bodies for a in deliveries.attempts(now, id, found.id) if "cut off" in (a.error or "")]
    assert cut_off


@pytest.mark.heavy
@pytest.mark.drill
def test_a_killed_deliverer_is_followed_by_the_one_that_stands_by(
    settings: Settings, now: Store, partner: Partners
) -> None:
    one = partner()
    add_endpoint(now, one.url, private=True)
    previous, count = None, 0
    for number in range(10, 16 if FULL else 13):
        version = f"202601{number}T040000Z-0000000a"
        with process(settings, SERVER) as first, process(settings, SERVER):
            until(lambda: (settings.data / "NOTICES").exists())
            announce(settings.data, version, previous)
            time.sleep(0.1 * (number - 10))
            first.send_signal(signal.SIGKILL)
            count += 1
            until(partial(all_delivered, now, count))
        previous = version
    ids = [row["id"] for row in now.rows("SELECT id FROM events")]
    assert {request.id for request in one.requests} == set(ids)
    assert len(ids) == count


@pytest.mark.heavy
def test_a_deliverer_that_is_asked_to_end_ends_well(settings: Settings, now: Store, partner: Partners) -> None:
    one = partner(delay=0.5)
    add_endpoint(now, one.url, private=True)
    announce(settings.data, V1)
    with process(settings, DELIVER, "deliver") as deliverer:
        one.wait(1)
        deliverer.send_signal(signal.SIGTERM)
        assert deliverer.wait(PATIENCE) == 0
    assert states(now) == ["delivered"]


def test_times_in_payloads_are_utc(settings: Settings, now: Store, partner: Partners) -> None:
    one = partner()
    add_endpoint(now, one.url, private=True)
    with running(settings):
        entry = announce(settings.data, V1)
        (request,) = one.wait(1)
    told = json.loads(request.body)
    assert told["timestamp"].endswith("Z")
    assert abs(datetime.fromisoformat(told["timestamp"]) - entry.at) < timedelta(milliseconds=1)
    assert abs(int(request.headers["webhook-timestamp"]) - datetime.now(UTC).timestamp()) < 60


def test_storage_that_fails_is_waited_for(
    settings: Settings, now: Store, partner: Partners, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.1)
    one = partner()
    add_endpoint(now, one.url, private=True)
    other = Store.of(settings)
    with other.writing(), running(settings):
        announce(settings.data, V1)
        time.sleep(0.5)
        assert one.requests == []
    other.close()
    with running(settings):
        one.wait(1)
