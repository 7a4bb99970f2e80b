"""The console over HTTP: who may see it, what it shows, and that nothing happens by accident."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from pages.conftest import Nights
from pages.support import Visitor, hidden_fields, make_key
from serving.support import Server, serving
from waiting import until

from kserve.errors import Busy
from kserve.serving import console, sessions
from kserve.serving.comparisons import Comparisons
from kserve.serving.keys import Key, Keys
from kserve.serving.sessions import ATTEMPTS, Attempts, Sessions
from kserve.settings import Settings
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.log import Entry
from kserve.snapshots.orders import Orders
from kserve.snapshots.state import State

PAGES = ["/console", "/console/log", "/console/processes", "/console/diff?old=a&new=b", "/console/versions/x"]
ACTS = [f"/console/acts/{act}" for act in ("pin", "unpin", "rollback")]


def state(nights: Nights) -> State:
    return Orders(Catalog(nights.data), Settings(data=nights.data)).state()


def last_act(nights: Nights) -> Entry:
    return Catalog(nights.data).log.entries()[-1]


@pytest.mark.parametrize("path", [*PAGES, *ACTS, "/console/sign-in"])
def test_without_a_key_it_says_how_to_make_one(server: Server, nights: Nights, path: str) -> None:
    make_key(nights.data, "score:read")
    answer = server.get(path)
    assert answer.status == 403
    page = answer.body.decode()
    assert "kserve keys create --scopes console --partner NAME --data DIRECTORY" in page
    assert str(nights.data) not in page


def test_whether_there_is_a_key_is_looked_up_once_a_second(server: Server, nights: Nights) -> None:
    """Anybody may ask that, as often as they like; who signs in, and with what, is looked up each time."""
    key, text = make_key(nights.data)
    visitor = Visitor(server)
    assert visitor.get("/console/sign-in").status == 200
    Keys(nights.data).revoke(key.id)
    assert visitor.sign_in(text).status == 401
    for _ in range(100):
        if server.get("/console/sign-in").status == 403:
            return
        time.sleep(0.05)
    raise AssertionError("it was never looked up again")


def test_those_who_find_no_thread_are_bounded(server: Server, nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    make_key(nights.data)
    go, entered = threading.Event(), threading.Semaphore(0)

    known = Keys(nights.data).listed()

    def stuck(keys: Keys) -> list[Key]:
        entered.release()
        assert go.wait(20)
        return known

    monkeypatch.setattr(console, "WAITING", console.THREADS)
    monkeypatch.setattr(Keys, "listed", stuck)
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(server.get("/console/sign-in").status))
        for _ in range(console.THREADS)
    ]
    for thread in threads:
        thread.start()
    for _ in range(console.THREADS):
        assert entered.acquire(timeout=20)
    try:
        refused = server.get("/console/sign-in")
        assert refused.status == 503
        assert refused.json()["type"].endswith("overloaded")
        assert refused.headers["retry-after"] == "1"
    finally:
        go.set()
        for thread in threads:
            thread.join(20)
    assert statuses == [200] * len(threads)


def test_a_comparison_ends_with_the_server(nights: Nights) -> None:
    """The interpreter would wait for it, for minutes when the versions are big."""
    go = threading.Event()

    class Slow(Catalog):
        def folder(self, version: str) -> Path:
            assert go.wait(20)
            return super().folder(version)

    comparisons = Comparisons(Slow(nights.data))
    assert comparisons.get(*nights.versions[:2], 0.0) == 0.0
    running = comparisons._running
    comparisons.close()
    go.set()
    assert running is not None
    assert isinstance(running.result.exception(20), Busy)
    with pytest.raises(Busy, match="ending"):
        comparisons.get(*nights.versions[1:], 0.0)


def test_an_unknown_version_is_not_told_with_where_we_are(maria: Visitor, nights: Nights) -> None:
    for path in ("/console/versions/20200101T000000Z-00000000", f"/console/diff?old=x&new={nights.versions[0]}"):
        answer = maria.get(path)
        assert answer.status == 404
        assert str(nights.data) not in answer.body.decode()


@pytest.mark.parametrize("path", [*PAGES, *ACTS])
def test_nobody_sees_anything_before_sign_in(server: Server, nights: Nights, path: str) -> None:
    make_key(nights.data)
    answer = server.get(path)
    assert (answer.status, answer.headers["location"], answer.body) == (303, "/console/sign-in", b"")
    if path in ACTS:
        assert Visitor(server).post(path, {"confirm": "x"}).headers["location"] == "/console/sign-in"


def test_it_can_be_turned_off(nights: Nights) -> None:
    make_key(nights.data)
    with serving(nights.data, console=False) as server:
        assert server.get("/console").status == 404
        assert server.get("/status").status == 200


def test_sign_in_and_out(server: Server, nights: Nights) -> None:
    visitor = Visitor(server)
    answer = visitor.sign_in(f"  {make_key(nights.data)[1]} ")
    assert (answer.status, answer.headers["location"]) == (303, "/console")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/console", "Max-Age=28800"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    page = visitor.get("/console")
    assert page.status == 200
    assert page.headers["cache-control"] == "no-store"
    assert visitor.get("/console/sign-in").headers["location"] == "/console"
    token = hidden_fields(visitor.get("/console/acts/pin"))["token"]
    assert visitor.post("/console/sign-out", {"token": token}).headers["location"] == "/console/sign-in"
    assert visitor.get("/console").status == 303


def test_the_cookie_is_secure_behind_tls(server: Server, nights: Nights) -> None:
    make_key(nights.data)
    assert "; Secure" in server.get("/console/sign-in", X_Forwarded_Proto="https").headers["set-cookie"]


@pytest.mark.parametrize("wrong", ["", "x", "scope", "revoked"])
def test_wrong_keys(server: Server, nights: Nights, wrong: str) -> None:
    make_key(nights.data)
    key, text = make_key(nights.data, *(["score:read", "admin"] if wrong == "scope" else ["console"]))
    if wrong == "revoked":
        Keys(nights.data).revoke(key.id)
    visitor = Visitor(server)
    answer = visitor.sign_in(text if wrong in ("scope", "revoked") else wrong)
    assert answer.status == 401
    assert "This is no key for the console." in answer.body.decode()
    assert visitor.get("/console").status == 303


def test_failed_attempts_are_limited(server: Server, nights: Nights) -> None:
    _, text = make_key(nights.data)
    visitor = Visitor(server)
    for _ in range(ATTEMPTS):
        assert visitor.sign_in("wrong").status == 401
    answer = visitor.sign_in(text)
    assert answer.status == 429
    assert 0 < int(answer.headers["retry-after"]) <= 301
    assert Visitor(server).sign_in(text).status == 429


def test_attempts_by_address() -> None:
    now = 1000.0
    attempts = Attempts(lambda: now)
    for place in range(ATTEMPTS):
        assert attempts.wait("2001:db8::1") == 0
        attempts.failed(f"2001:db8::{place}")
        now += 1
    assert attempts.wait("2001:db8::ffff") == 295
    assert attempts.wait("2001:db8:0:1::1") == attempts.wait("10.0.0.1") == attempts.wait(None) == 0
    now += 294
    assert attempts.wait("2001:db8::1") == 1
    now += 1
    assert attempts.wait("2001:db8::1") == 0
    for number in range(sessions.MOST_ADDRESSES + 10):
        attempts.failed(f"10.0.{number // 256}.{number % 256}")
    assert len(attempts._failed) == sessions.MOST_ADDRESSES


def test_sessions_end_and_cannot_be_altered() -> None:
    now = 1000.0
    found = Sessions(lambda: b"p" * 32, lambda: now)
    session = found.begin("key")
    assert found.read(session.cookie) == session
    assert not found.begin().signed_in
    for place, character in enumerate(session.cookie):
        other = "0" if character != "0" else "1"
        assert found.read(session.cookie[:place] + other + session.cookie[place + 1 :]) is None
    for wrong in (None, "", "a.b.c.d", "a.١.c.d", "....", "x" * 5000, session.cookie + "0", "é.1.é.é", "\ud800.1..x"):
        assert found.read(wrong) is None
    assert Sessions(lambda: b"q" * 32, lambda: now).read(session.cookie) is None
    now += sessions.SECONDS - 1
    assert found.read(session.cookie) is not None
    now += 1
    assert found.read(session.cookie) is None


def test_a_revoked_key_ends_its_sessions(maria: Visitor, nights: Nights) -> None:
    form = hidden_fields(maria.get("/console/acts/pin"))
    (key,) = Keys(nights.data).listed()
    make_key(nights.data)
    Keys(nights.data).revoke(key.id)
    assert maria.get("/console").headers["location"] == "/console/sign-in"
    fields = form | {"reason": "because", "confirm": nights.versions[-1]}
    assert maria.post("/console/acts/pin", fields).headers["location"] == "/console/sign-in"
    assert state(nights).pin is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_forms_of_other_sites_are_refused(maria: Visitor, nights: Nights, headers: dict[str, str]) -> None:
    fields = hidden_fields(maria.get("/console/acts/pin")) | {"reason": "because", "confirm": nights.versions[-1]}
    assert maria.post("/console/acts/pin", fields, **headers).status == 403
    assert state(nights).pin is None


@pytest.mark.parametrize("token", ["", "0" * 64, "é", "\ud800"])
def test_forms_without_their_token_are_refused(maria: Visitor, nights: Nights, token: str) -> None:
    fields = hidden_fields(maria.get("/console/acts/pin")) | {"reason": "because", "confirm": nights.versions[-1]}
    fields["token"] = token.encode("utf-8", "surrogatepass").decode("latin-1")
    assert maria.post("/console/acts/pin", fields).status == 403
    assert state(nights).pin is None


def test_the_token_of_another_session_is_refused(maria: Visitor, server: Server, nights: Nights) -> None:
    other = Visitor(server)
    other.sign_in(make_key(nights.data)[1])
    fields = hidden_fields(other.get("/console/acts/pin")) | {"reason": "because", "confirm": nights.versions[-1]}
    assert maria.post("/console/acts/pin", fields).status == 403


def test_our_own_origins_are_taken(nights: Nights) -> None:
    with serving(nights.data, public_url="https://scores.example") as server:
        visitor = Visitor(server)
        visitor.headers = {"Origin": "https://scores.example", "Sec-Fetch-Site": "same-origin"}
        assert visitor.sign_in(make_key(nights.data)[1]).status == 303
        visitor.headers = {"Origin": f"http://127.0.0.1:{server.office_port}"}
        fields = {"reason": "because", "confirm": nights.versions[-1]}
        assert visitor.send("/console/acts/pin", **fields).status == 303


def test_versions_and_their_marks(maria: Visitor, nights: Nights) -> None:
    page = maria.get("/console").body.decode()
    assert all(page.count(version) >= 3 for version in nights.versions)
    assert page.count("<td>good</td>") == 3
    for version in nights.versions:
        assert maria.get(f"/console/versions/{version}").status == 200
    assert maria.get("/console/versions/20260101T000000Z-00000000").status == 404
    assert maria.get("/console/versions/..%2F..%2Fetc").status == 404


def test_a_version_shows_its_gates_and_its_scores(maria: Visitor, nights: Nights) -> None:
    page = maria.get(f"/console/versions/{nights.versions[1]}").body.decode()
    assert "No gate holds it." in page
    for gate in ("complete", "movement", "erased"):
        assert f'<th scope="row">{gate}</th>' in page
    assert 'role="img" aria-label="Distribution of scores by whole points.' in page
    assert "Roll back to this version" in page
    assert "Roll back to this version" not in maria.get(f"/console/versions/{nights.versions[2]}").body.decode()


def test_a_diff_shows_ids_only_when_asked(maria: Visitor, nights: Nights) -> None:
    path = f"/console/diff?old={nights.versions[0]}&new={nights.versions[2]}"
    until(lambda: maria.get(path).status != 202)
    answer = maria.get(path)
    page = answer.body.decode()
    assert answer.status == 200
    assert "changed score" in page
    assert "62.31" not in page
    page = maria.get(f"{path}&movers=1").body.decode()
    assert '<td class="number">62.31</td>' in page
    assert maria.get("/console/diff?old=x&new=y").status == 404


def test_the_log_is_shown_and_verified(maria: Visitor, nights: Nights) -> None:
    Orders(Catalog(nights.data), Settings(data=nights.data)).pin(why="<script>alert(1)</script>", by="joe")
    page = maria.get("/console/log").body.decode()
    assert "acts is whole" in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    file = nights.data / "log.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"by":"joe"', b'"by":"eve"').replace(b"announce", b"annoumce", 1))
    assert 'class="banner bad"' in maria.get("/console/log").body.decode()
    for before in ("3", "x", "-1", "9" * 40):
        assert maria.get(f"/console/log?before={before}").status == 200


def test_processes(maria: Visitor, nights: Nights) -> None:
    page = maria.get("/console/processes").body.decode()
    assert "<td>server</td>" in page
    assert nights.versions[-1] in page


def test_rollback_needs_the_name_and_a_reason(maria: Visitor, nights: Nights) -> None:
    good, live = nights.versions[1:]
    refused = [{"confirm": live, "reason": "bad"}, {"confirm": good, "reason": "  "}, {"confirm": "", "reason": "bad"}]
    refused.append({"confirm": good, "reason": "x" * 501})
    for fields in refused:
        answer = maria.send("/console/acts/rollback", **fields)
        assert answer.status == 409
        assert "Nothing was done" in answer.body.decode()
        assert Catalog(nights.data).live() == live
    sent = {"confirm": f" {good} ", "reason": "scores\nare wrong", "quarantine": "yes"}
    answer = maria.send("/console/acts/rollback", **sent)
    assert (answer.status, answer.headers["location"]) == (303, "/console?done=rollback")
    assert "The rollback is done" in maria.get("/console?done=rollback").body.decode()
    found = state(nights)
    assert Catalog(nights.data).live() == good
    assert found.pin is not None
    assert found.pin.version == good
    assert [one.version for one in found.quarantined.values()] == [live]
    entry = last_act(nights)
    assert (entry.act, entry.version, entry.why) == ("rollback", good, "scores are wrong")
    assert entry.by == f"maria (key {Keys(nights.data).listed()[0].id})"


def test_rollback_to_a_version_that_was_chosen(maria: Visitor, nights: Nights) -> None:
    oldest, _, live = nights.versions
    path = f"/console/acts/rollback?version={oldest}"
    assert maria.send(path, confirm=oldest, reason="older is better").status == 303
    assert Catalog(nights.data).live() == oldest
    assert not state(nights).quarantined
    for impossible in (oldest, "20260101T000000Z-00000000", "x"):
        answer = maria.get(f"/console/acts/rollback?version={impossible}")
        assert answer.status == 409
        assert "<button>Roll back</button>" not in answer.body.decode()
    assert maria.get(f"/console/acts/rollback?version={live}").status == 200


def test_what_came_in_force_meanwhile_is_not_rolled_back(maria: Visitor, nights: Nights) -> None:
    form = hidden_fields(maria.get("/console/acts/rollback"))
    Orders(Catalog(nights.data), Settings(data=nights.data)).rollback(why="the sentinel was faster", by="sentinel")
    answer = maria.post("/console/acts/rollback", form | {"confirm": nights.versions[1], "reason": "bad"})
    assert answer.status == 409
    assert "came in force since the form was made" in answer.body.decode()
    assert last_act(nights).by == "sentinel"


def test_pin_and_unpin(maria: Visitor, nights: Nights) -> None:
    live = nights.versions[-1]
    assert "Nothing is pinned" in maria.get("/console/acts/unpin").body.decode()
    assert maria.send("/console/acts/pin", confirm=live, reason="a campaign <b>").status == 303
    found = state(nights)
    assert found.pin is not None
    assert (found.pin.version, found.pin.why) == (live, "a campaign <b>")
    assert "a campaign &lt;b&gt;" in maria.get("/console").body.decode()
    assert maria.send("/console/acts/unpin", confirm="wrong", reason="over").status == 409
    assert maria.send("/console/acts/unpin", confirm=live, reason="over").status == 303
    assert state(nights).pin is None


def test_every_page_loads_nothing_and_is_kept_nowhere(maria: Visitor, nights: Nights) -> None:
    for path in [*PAGES, *ACTS, f"/console/versions/{nights.versions[0]}", "/console/sign-in"]:
        answer = maria.get(path)
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_refused(server: Server, method: str) -> None:
    for path, allowed in (("/console", "GET, HEAD"), (ACTS[0], "GET, HEAD, POST"), ("/console/sign-out", "POST")):
        answer = server.ask(method, path)
        assert (answer.status, answer.headers["allow"]) == (405, allowed)


def test_bodies_that_are_no_forms(maria: Visitor) -> None:
    assert maria.server.post("/console/sign-in", {"key": "x"}).status == 415
    assert maria.post("/console/sign-in", {"x": "y" * (1 << 20)}).status == 413
    assert maria.post("/console/sign-in", {f"x{n}": "y" for n in range(100)}).status == 400
    assert maria.server.ask("POST", "/console/sign-in", b"\xff=%ff", **_FORM).status == 400


_FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def test_a_damaged_database_of_keys_is_an_error_not_an_entry(maria: Visitor, nights: Nights) -> None:
    (nights.data / "keys.db").write_bytes(b"no database" * 500)
    assert maria.get("/console").status == 500


@pytest.mark.parametrize(
    "cookie", ["", ";;;", "kserve_console", "kserve_console=", "kserve_console=\xff", "a=b; " * 99]
)
def test_cookies_that_are_none(server: Server, nights: Nights, cookie: str) -> None:
    make_key(nights.data)
    assert server.get("/console", Cookie=cookie).headers["location"] == "/console/sign-in"


def test_expired_key(server: Server, nights: Nights) -> None:
    make_key(nights.data)
    _, text = Keys(nights.data).create("joe", ["console"], timedelta(seconds=-1))
    assert Visitor(server).sign_in(text).status == 401


def test_a_session_of_a_copied_cookie_is_bound_to_the_pepper(maria: Visitor, nights: Nights, tmp_path: Path) -> None:
    (nights.data / "pepper").rename(tmp_path / "gone")
    assert maria.get("/console").status == 303
