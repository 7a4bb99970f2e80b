"""The status page and its twins over HTTP: true, escaped, kept a moment, and there when nothing else is."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import time
from base64 import b64decode
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from pages.conftest import Nights
from serving.support import Server, serving
from waiting import until

from kserve.notices import incidents as records
from kserve.notices import pages, status
from kserve.notices.incidents import COMPONENTS, Incident, Report, open_incident, resolve_incident, update_incident
from kserve.notices.store import BUSY_SECONDS, Store
from kserve.serving import pages as served
from kserve.settings import Settings

TWINS = ("/status", "/status.json", "/status.rss")
HOSTILE = "</title><script>alert('1')</script> & ]]> {{ 7 * 7 }} é"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "RENDER_SECONDS", 0.0)


def opened(data: Path, title: str = "Wrong scores", **report: Any) -> Incident:
    with Store(data) as store:
        fields: dict[str, Any] = {"components": ("scores",), "impact": "major", "text": "We look into it."}
        return open_incident(store, Report(title=title, **(fields | report)), by="joe@secret-host")


def read(data: Path, **settings: Any) -> status.Status:
    return status.read(Settings(data=data, **settings))


def components(answer: Any) -> dict[str, str]:
    return {one["id"]: one["status"] for one in answer["components"]}


def test_all_is_well(server: Server, nights: Nights) -> None:
    document = server.get("/status.json").json()
    assert document["status"] == {"indicator": "none", "description": "All Systems Operational"}
    assert components(document) == dict.fromkeys(COMPONENTS, "operational")
    assert document["snapshot"]["version"] == nights.versions[-1]
    assert document["snapshot"]["late"] is False
    page = server.get("/status").body.decode()
    assert nights.versions[-1] in page
    assert "Fresh" in page
    assert "10 hours ago" in page


def test_json_has_the_common_shape(server: Server, nights: Nights) -> None:
    incident = opened(nights.data)
    with Store(nights.data) as store:
        update_incident(store, incident.id, "Found it.", by="joe", status="identified", versions=(nights.versions[0],))
    document = server.get("/status.json").json()
    assert document["status"] == {"indicator": "major", "description": "Partial System Outage"}
    assert {"id", "name", "url", "time_zone", "updated_at"} <= document["page"].keys()
    assert {"id", "name", "status", "position", "description"} <= document["components"][0].keys()
    assert components(document)["scores"] == "partial_outage"
    (found,) = document["incidents"]
    assert {"id", "name", "status", "impact", "created_at", "updated_at", "shortlink", "components"} <= found.keys()
    assert [one["status"] for one in found["incident_updates"]] == ["identified", "investigating"]
    assert found["affected_versions"] == [nights.versions[0]]
    assert document["scheduled_maintenances"] == []
    assert [day["status"] for day in document["components"][0]["days"]][-1] == "partial_outage"
    assert len(document["components"][0]["days"]) == 90
    times = re.findall(r'"\w+_at":"([^"]+)"', server.get("/status.json").body.decode())
    assert times
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text) for text in times)


def test_who_wrote_it_and_what_is_internal_stay_inside(server: Server, nights: Nights) -> None:
    opened(nights.data)
    opened(nights.data, "A gate holds", visibility="internal")
    for path in TWINS:
        body = server.get(path).body.decode()
        assert "Wrong scores" in body
        assert "A gate holds" not in body
        assert "secret-host" not in body
        assert str(nights.data) not in body


def test_hostile_words_stay_words(server: Server, nights: Nights) -> None:
    incident = opened(nights.data, HOSTILE, text=f"{HOSTILE}\nand more")
    page = server.get("/status").body.decode()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    (item,) = ElementTree.fromstring(server.get("/status.rss").body).iter("item")
    assert item.findtext("title") == f"Investigating: {HOSTILE}"
    assert item.findtext("description") == f"{HOSTILE}\nand more"
    (found,) = server.get("/status.json").json()["incidents"]
    assert found["name"] == HOSTILE
    assert found["id"] == incident.id


def test_feed_has_an_item_for_each_update(nights: Nights) -> None:
    with serving(nights.data, public_url="https://scores.example/") as server:
        incident = opened(nights.data)
        with Store(nights.data) as store:
            resolve_incident(store, incident.id, "All is well again.", by="joe")
        answer = server.get("/status.rss")
    assert answer.headers["content-type"] == "application/rss+xml; charset=utf-8"
    feed = ElementTree.fromstring(answer.body)
    assert (feed.tag, feed.get("version")) == ("rss", "2.0")
    (channel,) = feed
    assert channel.findtext("link") == "https://scores.example/status"
    own = channel.find("{http://www.w3.org/2005/Atom}link")
    assert own is not None
    assert own.get("href") == "https://scores.example/status.rss"
    items = list(channel.iter("item"))
    assert [item.findtext("title") for item in items] == ["Resolved: Wrong scores", "Investigating: Wrong scores"]
    assert [item.findtext("guid") for item in items] == [f"{incident.id}-2", f"{incident.id}-1"]
    assert items[0].findtext("link") == f"https://scores.example/status#{incident.id}"
    for item in items:
        assert datetime.now(UTC) - parsedate_to_datetime(item.findtext("pubDate") or "") < timedelta(minutes=1)


def links(server: Server, **headers: str) -> set[str]:
    """All that the two twins link to."""
    document = server.get("/status.json", **headers).json()
    feed = ElementTree.fromstring(server.get("/status.rss", **headers).body)
    own = feed.find("channel/{http://www.w3.org/2005/Atom}link")
    assert own is not None
    found = {document["page"]["url"], *(one["shortlink"] for one in document["incidents"]), own.get("href") or ""}
    return found | {link.text or "" for link in feed.iter("link")}


@pytest.mark.parametrize(
    ("headers", "address"),
    [
        ({}, None),
        ({"Host": "status.example:81"}, "http://status.example:81"),
        ({"Host": "status.example", "X_Forwarded_Proto": "https"}, "https://status.example"),
        ({"Host": 'x"><script>&'}, None),
    ],
)
def test_links_lead_to_where_the_page_was_asked_for(
    server: Server, nights: Nights, headers: dict[str, str], address: str | None
) -> None:
    incident = opened(nights.data)
    expected = address or f"http://127.0.0.1:{server.office_port}"
    pages_of_it = {"/status", f"/status#{incident.id}", "/status.rss"}
    assert links(server, **headers) == {f"{expected}{path}" for path in pages_of_it}


def test_a_link_of_nobodys_request_leads_to_the_admin_port(nights: Nights) -> None:
    assert read(nights.data, admin_port=8099).url == "http://127.0.0.1:8099"
    assert read(nights.data, admin_host="::1").url == "http://[::1]:8081"
    assert read(nights.data, public_url="https://scores.example/").url == "https://scores.example"


def test_resolved_incidents_stay_a_while(nights: Nights) -> None:
    recent, old = opened(nights.data), opened(nights.data, "Long ago")
    now = datetime.now(UTC)
    with Store(nights.data) as store:
        resolve_incident(store, recent.id, "Over.", by="joe")
        store.run("UPDATE incidents SET resolved_at = ? WHERE id = ?", (now - timedelta(days=15)).isoformat(), old.id)
    found = read(nights.data)
    assert [one.id for one in found.past] == [recent.id]
    assert not found.open
    assert found.impact == "none"


def test_late_scores_degrade_publishing(nights: Nights) -> None:
    found = read(nights.data, cadence=6)
    assert found.current is not None
    assert found.current.late
    assert {one.id: one.state for one in found.components}["publishing"] == "degraded_performance"
    assert b"Late" in status.to_html(found)


def test_scores_without_a_server_are_out(nights: Nights) -> None:
    with serving(nights.data):
        assert read(nights.data).impact == "none"
    found = read(nights.data)
    assert found.impact == "critical"
    assert b"No server is running." in status.to_html(found)


def test_no_data_directory(tmp_path: Path) -> None:
    found = read(tmp_path / "nowhere")
    assert found.current is None
    assert found.troubles == ("No scores are published yet.", "The record of incidents cannot be read at the moment.")
    page = status.to_html(found).decode()
    assert page.count("The last 90 days are unknown.") == 3
    assert "Unknown." in page
    assert not (tmp_path / "nowhere").exists()
    document = json.loads(status.to_json(found))
    assert document["status"] == {"indicator": "minor", "description": "Status Not Fully Known"}
    assert components(document) == dict.fromkeys(COMPONENTS)
    assert "Operational" not in page
    assert ElementTree.fromstring(status.to_rss(found)) is not None


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, b"20261121T040000Z-zzzzzzzz\n", b"99999999T999999Z-00000000\n"]
)
def test_a_damaged_announcement(nights: Nights, content: bytes) -> None:
    (nights.data / "CURRENT").write_bytes(content)
    found = read(nights.data)
    assert found.current is None
    assert found.troubles == ("Which version is in force cannot be read at the moment.",)


def test_the_snapshot_itself_is_not_needed(nights: Nights) -> None:
    shutil.rmtree(nights.data / "snapshots")
    found = read(nights.data)
    assert found.current is not None
    assert not found.troubles


@pytest.mark.parametrize("content", [b"no database" * 500, b"SQLite format 3\0" + bytes(100)])
def test_a_damaged_record_of_incidents(nights: Nights, content: bytes) -> None:
    for file in nights.data.glob("notices.db*"):
        file.unlink()
    (nights.data / "notices.db").write_bytes(content)
    found = read(nights.data)
    assert found.current is not None
    assert found.troubles == ("The record of incidents cannot be read at the moment.",)
    assert all(not one.days and one.state == "unknown" for one in found.components)
    assert found.summary == "Status Not Fully Known"


def test_what_is_long_past_is_not_read(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(nights.data) as store:
        old = open_incident(store, Report(title="old", text="x", components=("scores",)), by="joe")
        resolve_incident(store, old.id, "done", by="joe")
        store.run("UPDATE incidents SET resolved_at = '2020-01-01T00:00:00.000000+00:00'")
    made: list[Any] = []
    monkeypatch.setattr(records, "_made", made.append)
    assert not read(nights.data).past
    assert not made


def test_of_many_incidents_the_latest_are_told_and_the_others_counted(nights: Nights) -> None:
    for end in (None, "Over."):
        made = [opened(nights.data, f"{'past' if end else 'open'} {i}", impact="minor") for i in range(60)]
        with Store(nights.data) as store:
            for one in made if end else ():
                resolve_incident(store, one.id, "Over.", by="joe")
            if not end:
                update_incident(store, made[0].id, "It grows.", by="joe", impact="critical")
    found = read(nights.data)
    assert (found.more_open, found.more_past, found.impact) == (10, 10, "critical")
    assert [one.title for one in found.open] == [f"open {i}" for i in (*range(59, 10, -1), 0)]
    assert [one.title for one in found.past] == [f"past {i}" for i in range(59, 9, -1)]
    assert status.to_html(found).count(b"And 10 more.") == 2
    document = json.loads(status.to_json(found))
    assert (len(document["incidents"]), document["more_incidents"]) == (50, 10)
    assert (len(document["past_incidents"]), document["more_past_incidents"]) == (50, 10)
    items = [item.findtext("title") for item in ElementTree.fromstring(status.to_rss(found)).iter("item")]
    assert (len(items), items[0]) == (50, "Resolved: past 59")


def test_a_record_that_somebody_keeps_locked_is_not_waited_for(nights: Nights) -> None:
    opened(nights.data)
    with closing(sqlite3.connect(nights.data / "notices.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        start = time.monotonic()
        found = read(nights.data)
        assert time.monotonic() - start < BUSY_SECONDS / 2
    assert found.troubles == ("The record of incidents cannot be read at the moment.",)
    assert read(nights.data).open


def test_a_damaged_roster(nights: Nights) -> None:
    (nights.data / "ROSTER").write_bytes(b"x" * 5000)
    assert read(nights.data).current is not None


@pytest.mark.parametrize("path", TWINS)
def test_headers(server: Server, path: str) -> None:
    answer = server.get(path)
    assert answer.status == 200
    assert answer.headers["cache-control"] == "public, max-age=10"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    head = server.ask("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["etag"] == answer.headers["etag"]
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        refused = server.ask(method, path)
        assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")


def test_policy_allows_our_style_and_no_other(server: Server) -> None:
    answer = server.get("/status")
    allowed = re.findall(r"'sha256-([^']+)'", answer.headers["content-security-policy"])
    styles = re.findall(r"<style>(.*?)</style>", answer.body.decode(), re.DOTALL)
    assert [b64decode(digest) for digest in allowed] == [hashlib.sha256(text.encode()).digest() for text in styles]
    assert " style=" not in answer.body.decode()


@pytest.mark.parametrize("path", TWINS)
def test_what_has_not_changed_is_not_sent_again(server: Server, nights: Nights, path: str) -> None:
    etag = server.get(path).headers["etag"]
    again = server.get(path, If_None_Match=etag)
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == etag
    opened(nights.data)
    changed = server.get(path, If_None_Match=etag)
    assert changed.status == 200
    assert changed.headers["etag"] != etag


def test_it_is_made_at_most_every_few_seconds(server: Server, nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "RENDER_SECONDS", 2.0)
    start = time.monotonic()
    before = server.get("/status.json").headers["etag"]
    opened(nights.data)
    again = server.get("/status.json").headers["etag"]
    assert again == before or time.monotonic() - start > served.RENDER_SECONDS
    until(lambda: server.get("/status.json").headers["etag"] != before)


def test_a_page_that_cannot_be_made_anew_stays(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    before = server.get("/status")

    def fail(settings: Settings) -> status.Status:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(status, "read", fail)
    after = server.get("/status")
    assert (after.status, after.body) == (200, before.body)


class Outline(HTMLParser):
    """Tags that are opened and closed, and the levels of headings."""

    VOID = frozenset({"meta", "link", "br", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.levels: list[int] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attributes if name == "id"]
        if re.fullmatch("h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None: ...

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_well_formed(server: Server, nights: Nights) -> None:
    opened(nights.data)
    outline = Outline()
    outline.feed(server.get("/status").body.decode())
    assert not outline.open
    assert outline.levels[0] == 1
    assert all(below - above <= 1 for above, below in zip(outline.levels, outline.levels[1:], strict=False))
    assert len(outline.ids) == len(set(outline.ids))


def test_ages_in_words() -> None:
    spans = {-5: "0 minutes", 59: "0 minutes", 60: "1 minute", 3599: "59 minutes", 3600: "1 hour", 172_800: "2 days"}
    assert {seconds: pages.age(timedelta(seconds=seconds)) for seconds in spans} == spans
