"""Who asks: keys in every place of a request, what is refused and how, and keys and tiers that change meanwhile."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from waiting import until

from kserve._limits import Limits
from kserve._tally import Counter, Gauge, Tallies, Tally
from kserve.serving import auth
from kserve.serving.auth import Authenticator, Caller
from kserve.serving.keys import Keys
from kserve.serving.problems import Problem
from kserve.settings import Failures, Settings

READ = ("score:read",)
FEW = Failures(rate=1, period=3600, burst=3)


def request(*lines: tuple[str, str], path: str = "/v3/scores/42", remote: str = "10.0.0.1") -> web.BaseRequest:
    return make_mocked_request("GET", path, CIMultiDict(lines)).clone(remote=remote)


def bearer(text: str, **options: Any) -> web.BaseRequest:
    return request(("Authorization", f"Bearer {text}"), **options)


class House:
    """Keys, and an authenticator that is told when to look after them."""

    def __init__(self, data: Path, **settings: Any) -> None:
        self.data = data
        self.keys = Keys(data)
        self.tally_file = data.with_name("tally")
        self.tally = Tally(self.tally_file, "worker")
        settings = {"failures": FEW} | settings
        self.auth = Authenticator(Settings(data=data, **settings), Limits(None), self.tally)

    def caller(self, asked: web.BaseRequest) -> Caller | None:
        return self.auth.caller(asked)

    def knows(self, text: str, **request: Any) -> bool:
        """Whether somebody is let in with this key."""
        with suppress(Problem):
            return self.auth.caller(bearer(text, **request)) is not None
        return False

    def refused(self, asked: web.BaseRequest) -> Problem:
        with pytest.raises(Problem) as found:
            self.auth.caller(asked)
        return found.value

    def count(self, counter: Counter) -> int:
        return int(Tallies(self.tally_file).read()[0].counters[counter])

    def gauge(self, gauge: Gauge) -> float:
        (living,) = Tallies(self.tally_file).read()[1]
        return float(living.gauges[gauge])


@pytest.fixture
def house(tmp_path: Path) -> House:
    found = House(tmp_path / "data")
    found.keys.create("somebody", READ)
    found.auth.refresh()
    return found


@pytest.fixture
def text(house: House) -> str:
    text = house.keys.create("maria", ("score:read", "batch"), tier="developer")[1]
    house.auth.refresh()
    return text


def test_a_caller_is_what_its_key_says(house: House, text: str) -> None:
    caller = house.caller(bearer(text))
    assert caller is not None
    key = house.keys.listed()[1]
    assert (caller.id, caller.partner, caller.tier, caller.scopes) == (key.id, "maria", "developer", key.scopes)
    assert house.auth.tiers.names[caller.number] == "developer"
    assert caller.limit.burst == 100
    assert house.caller(bearer(text)) is caller
    assert (len(house.auth.keyring), house.count(Counter.UNAUTHORIZED_REFUSED)) == (1, 0)


def test_a_key_may_stand_in_three_places(house: House, text: str) -> None:
    for asked in (
        bearer(text),
        request(("authorization", f"bEARER   {text} ")),
        request(("X-Api-Key", text)),
        request(path=f"/v3/scores/42?by=id&key={text}"),
        request(("Authorization", "Basic bWFyaWE6eA=="), ("X-Api-Key", text)),
        request(("Authorization", f"Bearer {text}"), ("X-Api-Key", text), path=f"/x?key={text}&key={text}"),
    ):
        assert house.caller(asked) is house.caller(bearer(text))


def test_two_different_keys_are_refused(house: House, text: str) -> None:
    for asked in (
        request(("Authorization", f"Bearer {text}"), ("X-Api-Key", "x")),
        request(("X-Api-Key", text), ("X-Api-Key", f"{text}x")),
        request(("X-Api-Key", text), path="/x?key="),
    ):
        problem = house.refused(asked)
        assert (problem.slug, "different" in problem.detail) == ("unauthorized", True)
    assert house.count(Counter.UNAUTHORIZED_MALFORMED) == 3


def test_without_a_key(house: House, tmp_path: Path) -> None:
    problem = house.refused(request())
    assert (problem.slug, problem.headers) == ("unauthorized", {"WWW-Authenticate": 'Bearer realm="kserve"'})
    assert house.count(Counter.UNAUTHORIZED_MISSING) == 1
    for _ in range(2 * FEW.burst):  # whoever does not try a key does not guess
        assert house.refused(request()).slug == "unauthorized"


def test_the_same_answer_to_all_that_is_wrong(house: House, text: str) -> None:
    revoked, gone = house.keys.create("maria", READ)
    house.keys.revoke(revoked.id)
    _, over = house.keys.create("maria", READ, timedelta(seconds=-1))
    house.auth.refresh()
    answers = []
    wrong = f"{text[:30]}{'a' if text[30] != 'a' else 'b'}{text[31:]}"
    for place, given_text in enumerate([gone, over, wrong, text[:-1], f"{text[:-1]}#", "", "ks_live_é", "x" * 4000]):
        problem = house.refused(bearer(given_text, remote=f"10.1.0.{place}"))
        answers.append((problem.slug, problem.detail, tuple(problem.headers.items())))
    assert len(set(answers)) == 1
    assert answers[0][0] == "unauthorized"


SHARED = Authenticator(Settings(data=Path("/nonexistent")), Limits(None), Tally(None, "worker"))
SHARED.refresh()
DETAILS = {
    "no live key has this text: it may be cut, expired, rotated or revoked",
    "two different keys were given: give one",
}


@given(st.text(st.characters(codec="utf-8"), max_size=100), st.text(st.characters(codec="utf-8"), max_size=100))
def test_nothing_of_what_was_sent_is_told_back(one: str, other: str) -> None:
    for asked in (request(("X-Api-Key", one)), request(("X-Api-Key", one), ("Authorization", f"Bearer {other}"))):
        with pytest.raises(Problem) as found:
            SHARED.caller(asked)
        assert found.value.detail in DETAILS or re.fullmatch("try again in [0-9]+ s", found.value.detail)


def test_failures_are_limited_by_address_and_live_keys_are_served(house: House, text: str) -> None:
    slugs = [house.refused(bearer("wrong")).slug for _ in range(FEW.burst + 2)]
    assert slugs == ["unauthorized"] * FEW.burst + ["too-many-failures"] * 2
    problem = house.refused(bearer("wrong"))
    assert 3590 <= int(problem.headers["Retry-After"]) <= 3600
    assert house.count(Counter.TOO_MANY_FAILURES) == 3
    assert house.caller(bearer(text)) is not None  # also the first time, when it is not known yet
    assert house.caller(bearer(text)) is not None
    assert house.refused(bearer("wrong", remote="10.0.0.2")).slug == "unauthorized"


def test_a_trusted_proxy_is_not_held_to_account_for_its_clients(tmp_path: Path) -> None:
    house = House(tmp_path / "data", trusted_proxies=["10.0.0.0/8"])
    house.auth.refresh()
    for client, slug in [("192.0.2.7", "too-many-failures"), ("192.0.2.8", "unauthorized")]:
        problems = [
            house.refused(request(("X-Api-Key", "wrong"), ("X-Forwarded-For", f"{i}.1.1.1, {client}")))
            for i in range(4 if client.endswith("7") else 1)
        ]
        assert problems[-1].slug == slug


def test_open(tmp_path: Path) -> None:
    house = House(tmp_path / "data", open=True)
    _, text = house.keys.create("maria", READ)
    house.auth.refresh()
    assert house.caller(request()) is None
    assert house.caller(bearer(text)) is not None
    assert house.refused(bearer("wrong")).slug == "unauthorized"
    house.auth.permit(None, "score:read")
    house.auth.permit(None, "batch")
    with pytest.raises(Problem) as found:
        house.auth.permit(None, "claim")
    assert found.value.slug == "unauthorized"


def test_scopes(house: House, text: str) -> None:
    caller = house.caller(bearer(text))
    house.auth.permit(caller, "score:read")
    house.auth.permit(caller, "batch")
    with pytest.raises(Problem) as found:
        house.auth.permit(caller, "publish")
    assert found.value.slug == "forbidden"
    assert found.value.headers["WWW-Authenticate"].endswith('error="insufficient_scope", scope="publish"')
    assert house.count(Counter.FORBIDDEN) == 1


def test_what_happens_to_keys_is_taken_in(house: House, text: str) -> None:
    caller = house.caller(bearer(text))
    assert caller is not None
    _, new = house.keys.rotate(caller.id, timedelta(hours=1))
    assert house.refused(bearer(new)).slug == "unauthorized"
    house.auth.refresh()
    for known in (text, new):
        found = house.caller(bearer(known))
        assert found is not None
        assert (found.id, found.tag) == (caller.id, caller.tag)
    house.keys.revoke(caller.id)
    house.auth.refresh()
    for ended in (text, new):
        assert house.refused(bearer(ended)).slug == "unauthorized"
    assert len(house.auth.keyring) == 0


def test_an_old_secret_ends_by_itself(house: House, text: str) -> None:
    key = house.keys.listed()[1]
    start = time.monotonic()
    house.keys.rotate(key.id, timedelta(seconds=2))
    house.auth.refresh()
    known = house.knows(text)
    assert known or time.monotonic() - start > 1
    until(lambda: not house.knows(text))
    assert time.monotonic() - start > 1


def test_a_change_of_one_key_leaves_the_others_known(house: House, text: str) -> None:
    caller = house.caller(bearer(text))
    other, _ = house.keys.create("joe", READ)
    house.auth.refresh()
    house.keys.revoke(other.id)
    house.auth.refresh()
    assert house.caller(bearer(text)) is caller


def test_tiers_change_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kserve.toml"
    file.write_text("")
    monkeypatch.setenv("KSERVE_CONFIG", str(file))
    house = House(tmp_path / "data")
    _, text = house.keys.create("maria", READ, tier="gold")
    house.auth.refresh()
    assert house.refused(bearer(text)).slug == "forbidden"  # right, but of a tier that there is not
    file.write_text("[tiers.gold]\nrate = 5\nburst = 7\n[failures]\nburst = 1\n")
    house.auth.refresh()
    caller = house.caller(bearer(text))
    assert caller is not None
    assert (caller.limit.burst, house.auth.tiers.names) == (7, ["developer", "partner", "site", "gold"])
    assert house.auth.tiers.failures.burst == 1
    for content in ("[tiers.gold]\nrate = 0\nburst = 7\n", "[tiers", ""):
        file.write_text(content)
        house.auth.refresh()
        assert house.caller(bearer(text)) is caller
    file.write_text("[tiers.gold]\nrate = 5\nburst = 8\n")
    house.auth.refresh()
    changed = house.caller(bearer(text))
    assert changed is not None
    assert (changed.limit.burst, changed.number, changed.tag) == (8, caller.number, caller.tag)


@contextmanager
def broken(data: Path) -> Iterator[None]:
    """A database that is there and cannot be read."""
    whole = (data / "keys.db").read_bytes()
    (data / "keys.db").write_bytes(b"this is no database" * 300)
    yield
    (data / "keys.db").write_bytes(whole)


def test_reads_go_on_for_a_while_when_keys_cannot_be_read(
    house: House, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, later = house.keys.create("joe", READ)
    house.auth.refresh()
    caller = house.caller(bearer(text))
    with structlog.testing.capture_logs() as logs:
        with broken(house.data):
            house.auth.refresh()
            house.auth.refresh()
            assert house.gauge(Gauge.KEYS_STALE) > 0
            assert house.caller(bearer(text)) is caller
            assert house.caller(bearer(later)) is not None  # not known before, and checked in memory
            house.auth.permit(caller, "score:read")
            assert house.refused(bearer("wrong")).slug == "unauthorized"
            monkeypatch.setattr(auth, "UNREADABLE_SECONDS", 0.0)
            house.auth.refresh()
            for known in (text, later, "wrong"):
                problem = house.refused(bearer(known))
                assert (problem.slug, problem.headers) == ("not-ready", {"Retry-After": "5"})
        house.auth.refresh()
    assert house.caller(bearer(text)) == caller
    assert house.gauge(Gauge.KEYS_STALE) == 0
    assert [entry["event"] for entry in logs] == [
        "keys cannot be read",
        "keys could not be read for too long: all are refused",
        "keys can be read again",
    ]


def test_other_acts_fail_closed_at_once(house: House) -> None:
    _, text = house.keys.create("maria", ("score:read", "claim"))
    house.auth.refresh()
    caller = house.caller(bearer(text))
    house.auth.permit(caller, "claim")
    with broken(house.data):
        house.auth.refresh()
        with pytest.raises(Problem) as found:
            house.auth.permit(caller, "claim")
    assert found.value.slug == "not-ready"


def test_keys_that_could_never_be_read(tmp_path: Path) -> None:
    house = House(tmp_path / "data")
    _, text = house.keys.create("maria", READ)
    with broken(house.data):
        house.auth.refresh()
        for known in (text, "wrong"):
            assert house.refused(bearer(known)).slug == "not-ready"
        assert house.refused(request()).slug == "unauthorized"
    house.auth.refresh()
    assert house.caller(bearer(text)) is not None


def test_keys_that_are_not_made_yet(tmp_path: Path) -> None:
    house = House(tmp_path / "data")
    house.auth.refresh()
    assert house.refused(bearer("wrong")).slug == "unauthorized"
    _, text = house.keys.create("maria", READ)
    house.auth.refresh()
    assert house.caller(bearer(text)) is not None


@pytest.mark.parametrize("name", ["keys.db", "pepper"])
def test_files_that_are_gone_end_nothing_at_once(house: House, text: str, name: str) -> None:
    file = house.data / name
    kept = file.rename(file.with_suffix(".kept"))
    house.auth.refresh()
    assert house.caller(bearer(text)) is not None
    assert house.gauge(Gauge.KEYS_STALE) > 0
    kept.rename(file)
    house.auth.refresh()
    assert house.gauge(Gauge.KEYS_STALE) == 0
    assert house.caller(bearer(text)) is not None


def test_what_was_ended_never_comes_back(house: House, text: str) -> None:
    """However requests and the refresher meet: once refused, refused for ever."""
    key = house.keys.listed()[1]
    told: list[bool] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            with suppress(Problem):
                house.auth.caller(bearer(text))
            told.append(house.auth.keyring.get(text) is not None)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: True in told)
    house.keys.revoke(key.id)
    house.auth.refresh()
    asked = len(told)
    until(lambda: len(told) > asked + 100)
    stop.set()
    for thread in threads:
        thread.join()
    assert house.auth.keyring.get(text) is None


def test_the_thread_looks_every_second(tmp_path: Path) -> None:
    house = House(tmp_path / "data")
    key, text = house.keys.create("maria", READ)
    house.auth.start()
    try:
        assert house.caller(bearer(text)) is not None
        house.keys.revoke(key.id)
        assert until(lambda: not house.knows(text, remote="10.9.9.9")) < 5
    finally:
        house.auth.stop()


def test_a_failure_of_any_kind_does_not_end_the_thread(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.keys.create("joe", READ)
    with closing(sqlite3.connect(house.data / "keys.db")) as connection, connection:
        connection.execute("UPDATE keys SET created_at = 'never'")
    house.auth.refresh()
    assert house.gauge(Gauge.KEYS_STALE) > 0
