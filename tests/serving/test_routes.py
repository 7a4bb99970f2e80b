"""What every route answers, compared with the rows that the snapshot was built from."""

from __future__ import annotations

from typing import Any

import pytest
from serving.support import CROWD, LARGEST, OPTED_OUT, Server, rows, scores


def test_score_is_exactly_this(server: Server) -> None:
    answer = server.get("/v3/scores/42")
    assert answer.status == 200
    assert answer.body.decode() == (
        '{"id":"42","score":62.31,"changes":{"day":0.12,"week":-0.3,"month":null},'
        f'"version":"{server.store.version}"}}'
    )


def test_unscored_is_null_with_a_reason(server: Server) -> None:
    answer = server.get("/v3/scores/7")
    assert answer.status == 200
    assert answer.body.decode() == (
        '{"id":"7","score":null,"reason":"unscored","changes":{"day":null,"week":null,"month":null},'
        f'"version":"{server.store.version}"}}'
    )


@pytest.mark.parametrize(("profile_id", "score"), [(0, 1.0), (LARGEST, 90.0), (CROWD[5], 10.0 + CROWD[5] % 70)])
def test_scores_at_the_ends_of_the_range(server: Server, profile_id: int, score: float) -> None:
    assert server.get(f"/v3/scores/{profile_id}").json()["score"] == score


@pytest.mark.parametrize("route", ["scores", "profiles"])
@pytest.mark.parametrize("profile_id", [OPTED_OUT, 999, LARGEST - 1])
def test_unknown_profiles(server: Server, route: str, profile_id: int) -> None:
    answer = server.get(f"/v3/{route}/{profile_id}")
    assert (answer.status, answer.kind) == (404, "unknown-profile")


@pytest.mark.parametrize("route", ["scores", "profiles"])
@pytest.mark.parametrize(
    "text", ["x", "-1", "+1", "042", "00", "1.0", str(2**64), "1" * 21, "%20", "1e3", "٤٢", "42%00"]
)
def test_what_is_no_id(server: Server, route: str, text: str) -> None:
    path = f"/v3/{route}/" + "".join(c if c.isascii() else "".join(f"%{b:02X}" for b in c.encode()) for c in text)
    answer = server.get(path)
    assert (answer.status, answer.kind) == (400, "invalid-id")


def test_profile_has_every_field(server: Server) -> None:
    assert server.get("/v3/profiles/42").json() == {
        "id": "42",
        "score": 62.31,
        "changes": {"day": 0.12, "week": -0.3, "month": None},
        "network_score": 50.5,
        "amplification": 12.25,
        "true_reach": 4711,
        "topics": [{"slug": "pizza", "score": 71.5}, {"slug": "zürich", "score": None}],
        "location": "US/New York/New York City",
        "nick": "Joe",
        "identities": {"tw": {"id": "12", "name": "JoeFernandez"}, "gp": {"id": "g/1 2", "name": None}},
        "influencers": ["7", str(LARGEST)],
        "influencees": ["0"],
        "influencer_count": 2,
        "influencee_count": 1,
        "version": server.store.version,
    }


def test_profile_of_which_nothing_is_known(server: Server) -> None:
    profile = server.get("/v3/profiles/7").json()
    assert profile["score"] is None
    assert profile["reason"] == "unscored"
    assert profile["true_reach"] is None
    assert profile["topics"] == profile["influencers"] == []
    assert set(profile["changes"].values()) == {None}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("tw/12", ("42", "id")),
        ("tw/12?by=id", ("42", "id")),
        ("tw/12?by=name", ("7", "name")),
        ("tw/joefernandez", ("42", "name")),
        ("tw/77", ("7", "id")),
        ("gp/g%2F1%202", ("42", "id")),
    ],
)
def test_identities(server: Server, path: str, found: tuple[str, str]) -> None:
    answer = server.get(f"/v3/identities/{path}")
    body = answer.json()
    assert answer.status == 200
    assert (body["id"], body["matched"]) == found
    assert body["network"] == path[:2]
    assert server.get(f"/v3/identities/{path}", If_None_Match=answer.headers["etag"]).status == 304


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("tw/nobody", 404, "unknown-identity"),
        ("tw/gone", 404, "unknown-identity"),
        ("tw/JoeFernandez?by=id", 404, "unknown-identity"),
        ("gp/g%2F1%202?by=name", 404, "unknown-identity"),
        ("tw/%FF", 404, "unknown-identity"),
        (f"tw/{'x' * 4000}", 404, "unknown-identity"),
        ("xx/12", 404, "unknown-network"),
        ("TW/12", 404, "unknown-network"),
        ("tw/12?by=nick", 400, "bad-query"),
        ("tw/12?by=", 400, "bad-query"),
        ("tw/", 404, "not-found"),
    ],
)
def test_identities_that_are_not_there(server: Server, path: str, status: int, kind: str) -> None:
    answer = server.get(f"/v3/identities/{path}")
    assert (answer.status, answer.kind) == (status, kind)


def test_topic_pages_hold_the_whole_taxonomy_once(server: Server) -> None:
    path: str | None = "/v3/topics?limit=1"
    found: list[dict[str, Any]] = []
    while path is not None:
        page = server.get(path).json()
        assert page["version"] == server.store.version
        found += page["topics"]
        path = page["next"]
    assert [topic["slug"] for topic in found] == ["food", "pizza", "zürich"]
    assert found == server.get("/v3/topics").json()["topics"]
    assert server.get("/v3/topics?after=zz&limit=1000").json()["topics"][0]["slug"] == "zürich"


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "x", "", "1.5", "%FF"])
def test_topics_with_a_bad_limit(server: Server, limit: str) -> None:
    answer = server.get(f"/v3/topics?limit={limit}")
    assert (answer.status, answer.kind) == (400, "bad-query")


def test_one_topic(server: Server) -> None:
    version = server.store.version
    assert server.get("/v3/topics/food").json() == {
        "slug": "food", "name": "Food", "id": "1", "parents": [], "children": ["pizza"], "version": version,
    }  # fmt: skip
    beyond_int64 = server.get("/v3/topics/z%C3%BCrich").json()
    assert (beyond_int64["id"], beyond_int64["name"]) == ("10000000000000020305", "Zürich")
    assert server.get("/v3/topics/pizza").json()["parents"] == ["food"]
    missing = server.get("/v3/topics/Food")
    assert (missing.status, missing.kind) == (404, "unknown-topic")


def test_snapshot(server: Server) -> None:
    served = scores(rows(0.0))
    body = server.get("/v3/snapshot").json()
    assert body.pop("bytes") > 4096
    assert body == {
        "version": server.store.version,
        "scored_at": "2026-11-21T04:00:00.000000Z",
        "profiles": len(served),
        "scored": sum(score is not None for score in served.values()),
    }


def test_health(server: Server) -> None:
    assert server.get("/healthz").json() == {"status": "ok"}
    ready = server.get("/readyz").json()
    assert (ready["status"], ready["version"]) == ("ready", server.store.version)
    assert 0.0 < ready["resident"] <= 1.0


def test_not_ready_while_draining(fresh: Server) -> None:
    with fresh.connect() as wire:
        wire.get("/readyz")
        assert wire.answer().status == 200
        fresh.site.draining = True
        wire.get("/readyz")
        answer = wire.answer()
        assert (answer.status, answer.kind) == (503, "not-ready")
        assert answer.headers["connection"] == "close"
    fresh.site.draining = False
