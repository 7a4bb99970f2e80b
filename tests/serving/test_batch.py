"""Batches and eligibility: one answer for each id, in the order asked, from one version."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving.support import CROWD, LARGEST, OPTED_OUT, Server, rows, scores

KNOWN = scores(rows(0.0))


def expected_item(item: Any) -> tuple[str, float | None]:
    if (
        not isinstance(item, str)
        or not item.isdecimal()
        or not item.isascii()
        or str(int(item)) != item
        or int(item) > LARGEST
    ):
        return "invalid", None
    if int(item) not in KNOWN:
        return "unknown", None
    score = KNOWN[int(item)]
    return ("unscored" if score is None else "ok"), score


def test_batch(server: Server) -> None:
    answer = server.post("/v3/scores/batch", {"ids": ["42", "7", "999", "042", 42, "42"]})
    changes = {"day": 0.12, "week": -0.3, "month": None}
    ok = {"id": "42", "status": "ok", "score": 62.31, "changes": changes}
    nothing = {"day": None, "week": None, "month": None}
    assert answer.status == 200
    body = answer.json()
    assert body["version"] == server.store.version == answer.headers["kserve-version"]
    assert body["scores"][:3] == [
        ok,
        {"id": "7", "status": "unscored", "score": None, "changes": nothing},
        {"id": "999", "status": "unknown"},
    ]
    assert body["scores"][5] == ok
    for item in body["scores"][3:5]:
        assert item["status"] == "invalid"
        assert "score" not in item
    assert "strings" in body["scores"][4]["detail"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)
IDS = st.integers(0, 2**65).map(str) | st.sampled_from([str(i) for i in KNOWN]) | JSON_VALUES


@settings(max_examples=200)
@given(ids=st.lists(IDS, max_size=30))
def test_any_ids(server: Server, ids: list[Any]) -> None:
    items = server.post("/v3/scores/batch", {"ids": ids}).json()["scores"]
    assert [(item["status"], item.get("score")) for item in items] == [expected_item(item) for item in ids]
    assert [
        item["id"] for item, asked in zip(items, ids, strict=True) if isinstance(asked, str) and len(asked) <= 64
    ] == [asked for asked in ids if isinstance(asked, str) and len(asked) <= 64]


def test_batch_limit(server: Server) -> None:
    ids = [str(i) for i in range(1000)]
    assert len(server.post("/v3/scores/batch", {"ids": ids}).json()["scores"]) == 1000
    answer = server.post("/v3/scores/batch", {"ids": [*ids, "1"]})
    assert (answer.status, answer.kind) == (422, "too-many-ids")
    assert "1000" in answer.json()["detail"]
    assert server.post("/v3/scores/batch", {"ids": []}).json()["scores"] == []


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"", 400, "bad-json"),
        (b"{", 400, "bad-json"),
        (b'{"ids":["1",]}', 400, "bad-json"),
        (b'{"ids":["\xff"]}', 400, "bad-json"),
        (b'{"ids":["\\ud800"]}', 400, "bad-json"),
        (b'{"ids":[NaN]}', 400, "bad-json"),
        (b"\xef\xbb\xbf{}", 400, "bad-json"),
        (b"[" * 100_000, 422, "bad-body"),
        (b'{"ids":' + b"[" * 100_000, 400, "bad-json"),
        (b'["1"]', 422, "bad-body"),
        (b"null", 422, "bad-body"),
        (b"{}", 422, "bad-body"),
        (b'{"ids":"1"}', 422, "bad-body"),
        (b'{"ids":{"1":1}}', 422, "bad-body"),
        (b'{"ids":["1"],"version":"x"}', 422, "bad-body"),
        (b'{"ids":[' + b"1" * 5000 + b"]}", 422, "bad-body"),
    ],
)
@pytest.mark.parametrize("path", ["/v3/scores/batch", "/v3/eligibility"])
def test_misshaped_bodies(server: Server, path: str, body: bytes, status: int, kind: str) -> None:
    if path == "/v3/eligibility":
        body = body.replace(b'{"ids"', b'{"rule":{},"ids"')
    answer = server.post(path, body)
    assert (answer.status, answer.kind) == (status, kind)
    assert answer.json()["detail"]


def test_bad_json_says_where(server: Server) -> None:
    assert "(byte 12)" in server.post("/v3/scores/batch", b'{"ids":["1"]]').json()["detail"]
    assert "(byte 8)" in server.post("/v3/scores/batch", b'{"ids":[').json()["detail"]
    assert "$.ids" in server.post("/v3/scores/batch", b'{"ids":3}').json()["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": ""},
        {"Content-Type": "\xff"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_unsupported_bodies(server: Server, headers: dict[str, str]) -> None:
    answer = server.post("/v3/scores/batch", b'{"ids":["1"]}', **headers)
    assert (answer.status, answer.kind) == (415, "unsupported-media-type")


def test_json_with_charset_is_taken(server: Server) -> None:
    answer = server.post("/v3/scores/batch", b'{"ids":["7"]}', Content_Type="Application/JSON; charset=UTF-8")
    assert answer.json()["scores"][0]["status"] == "unscored"


def eligible(server: Server, rule: dict[str, Any], *ids: Any, **more: Any) -> dict[str, Any]:
    answer = server.post("/v3/eligibility", {"rule": rule, "ids": list(ids), **more})
    assert answer.status == 200, answer.body
    return dict(answer.json())


def test_eligibility_tells_what_failed(server: Server) -> None:
    rule = {"min_score": 60, "any_topics": ["food"], "locations": ["US/New York"]}
    body = eligible(server, rule, "42", str(LARGEST), "7", "999", str(OPTED_OUT), "x", 42)
    found = {item["id"] if item["id"] != "42" or item["eligible"] else "number": item for item in body["results"]}
    assert [item["eligible"] for item in body["results"]] == [True] + [False] * 6
    assert found["42"]["failed"] == []
    assert found[str(LARGEST)]["failed"] == ["locations"]
    assert set(found["7"]["failed"]) == {"min_score", "any_topics", "locations"}
    assert found["999"]["failed"] == found[str(OPTED_OUT)]["failed"] == ["unknown"]
    assert found["x"]["failed"] == found["number"]["failed"] == ["invalid"]
    assert "count" not in body
    assert body["version"] == server.store.version


def test_eligibility_counts_everybody(server: Server) -> None:
    wanted = sum(score is not None and score >= 60 for score in KNOWN.values())
    body = eligible(server, {"min_score": 60}, count=True)
    assert (body["count"], body["results"]) == (wanted, [])
    assert eligible(server, {}, count=True)["count"] == len(KNOWN)


def test_eligibility_agrees_with_the_scores(server: Server) -> None:
    ids = [str(i) for i in CROWD]
    body = eligible(server, {"min_score": 30.5, "max_score": 50}, *ids)
    assert [item["eligible"] for item in body["results"]] == [30.5 <= (KNOWN[i] or 0) <= 50 for i in CROWD]


@pytest.mark.parametrize(
    "rule",
    [
        {"min_points": 3},
        {"min_score": "60"},
        {"min_score": True},
        {"min_score": 0},
        {"min_score": 70, "max_score": 60},
        {"any_topics": "food"},
        {"any_topics": [1]},
        {"any_topics": ["no such topic"]},
        {"locations": [""]},
        {"min_topic_score": 3},
        {"all_topics": None},
    ],
)
def test_rules_that_make_no_sense(server: Server, rule: dict[str, Any]) -> None:
    answer = server.post("/v3/eligibility", {"rule": rule, "ids": ["42"], "count": True})
    assert (answer.status, answer.kind) == (422, "bad-rule")
    assert next(iter(rule)) in answer.json()["detail"] or "topic" in answer.json()["detail"]


@pytest.mark.parametrize("body", [{"ids": ["1"]}, {"rule": [], "ids": []}, {"rule": {}, "ids": [], "count": "yes"}])
def test_misshaped_eligibility(server: Server, body: Any) -> None:
    answer = server.post("/v3/eligibility", body)
    assert (answer.status, answer.kind) == (422, "bad-body")


def test_eligibility_batch_limit(server: Server) -> None:
    answer = server.post("/v3/eligibility", {"rule": {}, "ids": ["1"] * 1001})
    assert (answer.status, answer.kind) == (422, "too-many-ids")
