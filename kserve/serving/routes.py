"""The routes of version 3: what each one answers. One table tells the router and the OpenAPI document alike."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import msgspec
import numpy as np
from aiohttp import web
from msgspec import UNSET, UnsetType

from kserve._batch import Asked, ids_of_bytes, ids_of_json
from kserve.errors import KserveError
from kserve.records import NETWORKS, Status, Topic
from kserve.rule import Rule
from kserve.serving import bodies, health, models
from kserve.serving.admission import BATCH, ELIGIBILITY, HEALTH, READ, Access
from kserve.serving.problems import Problem
from kserve.serving.site import Call, Handler

if TYPE_CHECKING:
    from kserve._core import Snapshot

TOPICS_PER_PAGE = 100
MAX_TOPICS_PER_PAGE = 1000
COUNT_COST = 50
"""Tokens that counting all profiles costs, beside those of the ids."""

_BATCH = msgspec.json.Decoder(models.BatchRequest)
_ELIGIBILITY = msgspec.json.Decoder(models.EligibilityRequest)


async def score(call: Call) -> web.Response:
    """GET /v3/scores/{id}. The hot route: one look-up, one small object, one encode."""
    text = call.request.match_info["id"]
    row, points, day, week, month = call.core(bodies.path_id(text))
    etag = f'"{call.version}-{row}"'
    unchanged = call.unchanged(etag)
    if unchanged is not None:
        return unchanged
    reason: models.Unscored | UnsetType = "unscored" if points is None else UNSET
    changes = models.NO_CHANGES if points is None else models.Changes(day, week, month)
    return call.cacheable(
        models.Score(id=text, score=points, reason=reason, changes=changes, version=call.version), etag
    )


async def batch(call: Call) -> web.Response:
    """POST /v3/scores/batch: as JSON, or ids of 8 bytes and a record for each."""
    settings = call.site.settings
    body = await bodies.content(call.request, settings, bodies.JSON, bodies.BINARY)
    binary = bodies.kind(call.request) == bodies.BINARY
    asked = ids_of_bytes(body) if binary else ids_of_json(body, settings.batch_limit)
    if asked is None:
        if binary:
            raise bodies.cut_short(body)
        return _any_batch(call, bodies.parse(body, _BATCH).ids)
    bodies.check_count(asked, settings.batch_limit)
    call.charge(max(1, len(asked)))
    return _batch_answer(call, asked)


def _batch_answer(call: Call, asked: Asked) -> web.Response:
    kind = bodies.answered_as(call.request)
    answer = asked.records if kind == bodies.BINARY else asked.json
    return call.whole(answer(call.snapshot, call.site.seat), kind)


def _any_batch(call: Call, ids: list[Any]) -> web.Response:
    """A batch in which there may be what is no profile id: JSON has an item for it, records have none."""
    bodies.check_count(ids, call.site.settings.batch_limit)
    call.charge(max(1, len(ids)))
    if bodies.answered_as(call.request) == bodies.JSON:
        return call.json(models.Batch(call.version, batch_items(call, ids)))
    values = [bodies.parse_id(item) if isinstance(item, str) else None for item in ids]
    for item, value in zip(ids, values, strict=True):
        if value is None:
            raise Problem(
                "bad-body", f"{bodies.shown(item)}: {bodies.why_invalid(item)}; JSON answers have room for it"
            )
    asked = ids_of_bytes(np.array(values, dtype=np.uint64).tobytes())
    assert asked is not None
    return _batch_answer(call, asked)


def batch_items(call: Call, ids: list[Any]) -> list[models.BatchItem]:
    """One item for each id, in the order asked; the valid ones are looked up together."""
    parsed = [bodies.parse_id(item) if isinstance(item, str) else None for item in ids]
    wanted = np.array([value for value in parsed if value is not None], dtype=np.uint64)
    found = call.snapshot.get_many(wanted, changes=True)
    call.site.seat.answered_many(call.version, wanted, found.values, found.status)
    assert found.changes is not None
    rows = zip(found.status.tolist(), found.values.tolist(), found.changes.tolist(), strict=True)
    return [
        _invalid(item) if value is None else _batch_item(item, *next(rows))
        for item, value in zip(ids, parsed, strict=True)
    ]


def _invalid(item: Any) -> models.BatchItem:
    return models.BatchItem(bodies.shown(item), "invalid", detail=bodies.why_invalid(item))


def _batch_item(text: str, status: int, points: float, changes: list[float]) -> models.BatchItem:
    if status == Status.UNKNOWN:
        return models.BatchItem(text, "unknown")
    if status == Status.UNSCORED:
        return models.BatchItem(text, "unscored", None, models.NO_CHANGES)
    day, week, month = changes
    known = models.Changes(
        day if day == day else None,  # NaN is unknown
        week if week == week else None,
        month if month == month else None,
    )
    return models.BatchItem(text, "ok", points, known)


async def profile(call: Call) -> web.Response:
    """GET /v3/profiles/{id}."""
    profile_id = bodies.path_id(call.request.match_info["id"])
    row = call.core(profile_id)[0]
    etag = f'"{call.version}-{row}-profile"'
    return call.unchanged(etag) or call.cacheable(models.Profile.of(call.snapshot.get(profile_id)), etag)


async def identity(call: Call) -> web.Response:
    """GET /v3/identities/{network}/{key}: by id first, then by name, or only one of them with ?by=."""
    network = call.request.match_info["network"]
    key = call.request.match_info["key"]
    if network not in NETWORKS:
        raise Problem("unknown-network", f"no network {bodies.shown(network)}; there are {', '.join(NETWORKS)}")
    by = call.request.query.get("by")
    if by not in (None, "id", "name"):
        raise Problem("bad-query", f"by={bodies.shown(by)} is neither id nor name")
    for way in ("id", "name") if by is None else (by,):
        profile_id = call.snapshot.find(network, key, way)
        if profile_id is not None:
            etag = f'"{call.version}-{profile_id}-{way}"'
            answer = models.Identity(network, key, way, str(profile_id), call.version)
            return call.unchanged(etag) or call.cacheable(answer, etag)
    raise Problem("unknown-identity", f"no {by or 'id or name'} {bodies.shown(key)} on {network} in this snapshot")


async def eligibility(call: Call) -> web.Response:
    """POST /v3/eligibility. Counting all profiles takes a while, and is done in a thread."""
    settings = call.site.settings
    request = await bodies.decode(call.request, settings, _ELIGIBILITY)
    bodies.check_count(request.ids, settings.batch_limit)
    rule = Rule.of(request.rule)
    call.charge(max(1, len(request.ids)) + COUNT_COST * request.count)
    before = None if call.site.follower is None else call.site.follower.replaced(call.version)
    results = [_eligibility_item(call, rule, before, item) for item in request.ids]
    answer = models.Eligibility(call.version, results)
    if request.count:
        loop = asyncio.get_running_loop()
        count = await loop.run_in_executor(call.site.slow, call.snapshot.count, rule)
        answer = models.Eligibility(call.version, results, count)
    return call.json(answer)


def _eligibility_item(call: Call, rule: Rule, before: Snapshot | None, item: Any) -> models.EligibilityItem:
    profile_id = bodies.parse_id(item) if isinstance(item, str) else None
    if profile_id is None:
        return models.EligibilityItem(bodies.shown(item), False, ["invalid"], bodies.why_invalid(item))
    failed = list(call.snapshot.explain(rule, profile_id))
    call.site.seat.asked(call.version, profile_id, not failed, _was_eligible(before, rule, profile_id))
    return models.EligibilityItem(item, not failed, failed)


def _was_eligible(before: Snapshot | None, rule: Rule, profile_id: int) -> bool | None:
    """In the version before, for the sentinel; None when that is not known."""
    try:
        return None if before is None else not before.explain(rule, profile_id)
    except KserveError:
        return None


def topics() -> Handler:
    """GET /v3/topics: the taxonomy in pages, by slug. It is read once for each version."""
    kept: list[tuple[str, list[models.Topic]]] = [("", [])]

    async def page(call: Call) -> web.Response:
        if kept[0][0] != call.version:
            kept[0] = (call.version, [topic_answer(found) for found in call.snapshot.topics()])
        limit = bodies.query_number(call.request, "limit", TOPICS_PER_PAGE, 1, MAX_TOPICS_PER_PAGE)
        etag = f'"{call.version}-topics"'
        after = call.request.query.get("after", "")
        return call.unchanged(etag) or call.cacheable(_topic_page(kept[0][1], call.version, after, limit), etag)

    return page


def _topic_page(all_topics: list[models.Topic], version: str, after: str, limit: int) -> models.TopicPage:
    start = bisect_right(all_topics, after, key=lambda topic: topic.slug)
    found = all_topics[start : start + limit]
    more = start + limit < len(all_topics)
    next_path = f"/v3/topics?after={quote(found[-1].slug, safe='')}&limit={limit}" if more else None
    return models.TopicPage(version, found, next_path)


def topic_answer(found: Topic) -> models.Topic:
    """A topic as JSON has it: its id, which may need all 64 bits, is a string."""
    topic_id = None if found.topic_id is None else str(found.topic_id)
    return models.Topic(found.slug, found.name, topic_id, list(found.parents), list(found.children))


async def topic(call: Call) -> web.Response:
    """GET /v3/topics/{slug}."""
    slug = call.request.match_info["slug"]
    found = call.snapshot.topic(slug)
    if found is None:
        raise Problem("unknown-topic", f"no topic {bodies.shown(slug)} in this snapshot; GET /v3/topics lists them")
    etag = f'"{call.version}-topic"'
    answer = models.TopicAnswer(**msgspec.structs.asdict(topic_answer(found)), version=call.version)
    return call.unchanged(etag) or call.cacheable(answer, etag)


async def snapshot(call: Call) -> web.Response:
    """GET /v3/snapshot."""
    served = call.snapshot
    etag = f'"{call.version}"'
    scored_at = str(np.datetime_as_string(np.datetime64(served.scored_at, "us"), timezone="UTC"))
    answer = models.SnapshotInfo(call.version, scored_at, served.profiles, served.scored, served.nbytes)
    return call.unchanged(etag) or call.cacheable(answer, etag)


class Route(NamedTuple):
    """A row of the table: where, who answers and may ask, what goes in and out, and which problems there can be."""

    name: str
    method: str
    path: str
    handler: Handler
    answer: type
    problems: tuple[str, ...] = ()
    body: type | None = None
    cached: bool = False
    access: Access = READ


_BODY = (
    "malformed-request",
    "bad-json",
    "slow-body",
    "body-too-large",
    "unsupported-media-type",
    "bad-body",
    "too-many-ids",
)


def table() -> tuple[Route, ...]:
    """The routes of one server."""
    profile_problems = ("invalid-id", "unknown-profile")
    identity_problems = ("bad-query", "unknown-network", "unknown-identity")
    one, many, rule = models.Score, models.BatchRequest, models.EligibilityRequest
    return (
        Route("score", "GET", "/v3/scores/{id}", score, one, profile_problems, cached=True),
        Route("batch", "POST", "/v3/scores/batch", batch, models.Batch, _BODY, many, access=BATCH),
        Route("profile", "GET", "/v3/profiles/{id}", profile, models.Profile, profile_problems, cached=True),
        Route(
            "identity",
            "GET",
            "/v3/identities/{network}/{key}",
            identity,
            models.Identity,
            identity_problems,
            cached=True,
        ),
        Route(
            "eligibility",
            "POST",
            "/v3/eligibility",
            eligibility,
            models.Eligibility,
            (*_BODY, "bad-rule"),
            rule,
            access=ELIGIBILITY,
        ),
        Route("topics", "GET", "/v3/topics", topics(), models.TopicPage, ("bad-query",), cached=True),
        Route("topic", "GET", "/v3/topics/{slug}", topic, models.TopicAnswer, ("unknown-topic",), cached=True),
        Route("snapshot", "GET", "/v3/snapshot", snapshot, models.SnapshotInfo, cached=True),
        Route("health", "GET", "/healthz", health.alive, models.Health, access=HEALTH),
        Route("ready", "GET", "/readyz", health.readiness(), models.Ready, ("not-ready",), access=HEALTH),
    )
