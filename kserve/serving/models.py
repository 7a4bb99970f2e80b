"""What goes over the wire. The OpenAPI document is made from these, so that it cannot say anything else.

``gc=False`` keeps the small ones, of which a batch has thousands, away from the cycle collector.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from kserve import records
from kserve.records import NETWORKS

ProfileId = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,19})$", description="unsigned 64-bit, in decimal digits")]
Version = Annotated[str, Meta(description="the snapshot version that the whole answer was computed from")]
Points = Annotated[float, Meta(ge=1, le=100)]
Change = Annotated[float, Meta(ge=-99, le=99)]
Count = Annotated[int, Meta(ge=0)]
Unscored = Literal["unscored"]
Network = Annotated[str, Meta(extra_json_schema={"enum": list(NETWORKS)})]


class Changes(Struct, frozen=True, gc=False):
    """Differences of the score to earlier snapshots, in points; null where there is nothing to compare with."""

    day: Change | None
    week: Change | None
    month: Change | None


NO_CHANGES = Changes(None, None, None)


class Score(Struct, frozen=True, kw_only=True):
    """A score. `reason` is there when, and only when, `score` is null."""

    id: ProfileId
    score: Points | None
    reason: Unscored | UnsetType = UNSET
    changes: Changes
    version: Version


class BatchRequest(Struct, forbid_unknown_fields=True):
    """Ids are strings of decimal digits; anything else is answered with the status `invalid`."""

    ids: list[Any]


class BatchItem(Struct, frozen=True, gc=False):
    """One id of a batch. `score` and `changes` are there for known profiles, `detail` for invalid ids."""

    id: str
    status: Literal["ok", "unscored", "unknown", "invalid"]
    score: Points | UnsetType | None = UNSET
    changes: Changes | UnsetType = UNSET
    detail: str | UnsetType = UNSET


class Batch(Struct, frozen=True):
    """One item for each id, in the order asked."""

    version: Version
    scores: list[BatchItem]


class TopicScore(Struct, frozen=True):
    """A topic of a profile; `score` is null where the pipeline gave none."""

    slug: str
    score: Annotated[float, Meta(ge=0, le=100)] | None


class NetworkIdentity(Struct, frozen=True):
    """Who a profile is on one network."""

    id: str | None
    name: str | None


class Profile(Struct, frozen=True, kw_only=True):
    """All that the snapshot knows of one profile; null is "not known". `reason` is there when `score` is null."""

    id: ProfileId
    score: Points | None
    reason: Unscored | UnsetType = UNSET
    changes: Changes
    network_score: Points | None
    amplification: Points | None
    true_reach: Count | None
    topics: list[TopicScore]
    location: str | None
    nick: str | None
    identities: dict[Network, NetworkIdentity]
    influencers: list[ProfileId]
    influencees: list[ProfileId]
    influencer_count: Count | None
    influencee_count: Count | None
    version: Version

    @classmethod
    def of(cls, found: records.Profile) -> Profile:
        """A profile as JSON has it: every id is a string."""
        return cls(
            id=str(found.id),
            score=found.score,
            reason="unscored" if found.score is None else UNSET,
            changes=NO_CHANGES if found.score is None else Changes(*found.changes),
            network_score=found.network_score,
            amplification=found.amplification,
            true_reach=found.true_reach,
            topics=[TopicScore(topic.slug, topic.score) for topic in found.topics],
            location=found.location,
            nick=found.nick,
            identities={name: NetworkIdentity(who.id, who.name) for name, who in found.identities.items()},
            influencers=[str(other) for other in found.influencers],
            influencees=[str(other) for other in found.influencees],
            influencer_count=found.influencer_count,
            influencee_count=found.influencee_count,
            version=found.version,
        )


class Identity(Struct, frozen=True):
    """The profile behind an identity, and whether the key matched as an id or as a name."""

    network: Network
    key: str
    matched: Literal["id", "name"]
    id: ProfileId
    version: Version


class EligibilityRequest(Struct, forbid_unknown_fields=True):
    """Which of `ids` meet `rule`; with `count`, also how many of all profiles do."""

    rule: dict[str, Any]
    ids: list[Any] = []
    count: bool = False


class EligibilityItem(Struct, frozen=True, gc=False):
    """`failed`: the criteria that are not met; `unknown` for no such profile, `invalid` for what is no id."""

    id: str
    eligible: bool
    failed: list[str]
    detail: str | UnsetType = UNSET


class Eligibility(Struct, frozen=True):
    """One result for each id, in the order asked; `count` if it was asked for."""

    version: Version
    results: list[EligibilityItem]
    count: Count | UnsetType = UNSET


class Topic(Struct, frozen=True):
    """A topic of the snapshot's taxonomy; `id` is the taxonomy's own, null if it has none."""

    slug: str
    name: str
    id: str | None
    parents: list[str]
    children: list[str]


class TopicAnswer(Topic, frozen=True, kw_only=True):
    """One topic, and the version that it is from."""

    version: Version


class TopicPage(Struct, frozen=True):
    """Topics by slug; `next` is the path of the page after this one, null on the last."""

    version: Version
    topics: list[Topic]
    next: str | None


class SnapshotInfo(Struct, frozen=True):
    """The snapshot that is served."""

    version: Version
    scored_at: Annotated[str, Meta(description="RFC 3339, UTC")]
    profiles: Count
    scored: Count
    bytes: Count


class Health(Struct, frozen=True):
    """The process is alive and answers."""

    status: Literal["ok"]


Share = Annotated[float, Meta(ge=0, le=1)]


class Staged(Struct, frozen=True):
    """The version that is made ready before it is announced, and how far this process is; `reason` when refused."""

    version: str
    state: Annotated[str, Meta(pattern="^(preparing|ready|refused)$")]
    reason: str | UnsetType = UNSET


class Process(Struct, frozen=True):
    """A process of this host that reads from the same data directory, and what it serves now."""

    pid: int
    role: Annotated[str, Meta(pattern="^(server|reader)$")]
    version: str | None
    staged: Staged | None
    resident: Share | None


class Limiting(Struct, frozen=True):
    """How keys are limited on this host: `memory` (the whole limit), `leased` (what was bought from Redis) or `alone`
    (the limit divided by `hosts`, because Redis cannot be asked)."""

    mode: Annotated[str, Meta(pattern="^(memory|leased|alone)$")]
    hosts: Count


class Ready(Struct, frozen=True):
    """The snapshot answers a known question rightly. `resident`: the share of it that is in memory, 0 to 1."""

    status: Literal["ready"]
    version: Version
    resident: Share
    limits: Limiting
    processes: list[Process]


class ProblemDocument(Struct, frozen=True):
    """RFC 9457. `instance` is the request id; `version` is left out only when no snapshot could be had."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    version: Version | UnsetType = UNSET
