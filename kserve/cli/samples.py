"""Questions to try on a snapshot, asked for real: over HTTP, and in this process."""

from __future__ import annotations

import json
import shlex
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import kserve

if TYPE_CHECKING:
    from pathlib import Path

    from kserve.records import Profile

CANDIDATES = 1000
"""How many of the best profiles are looked at for one that has everything to show."""

SECONDS = 10.0
"""How long a sample request may take."""


class Picks(NamedTuple):
    """Profiles and a rule that exist in a snapshot; None where it has nothing of the kind."""

    scored: int
    unscored: int | None
    name: str | None
    """On the network tw, of the scored one."""
    rule: dict[str, Any]


class Sample(NamedTuple):
    """What was asked, as one would type it, and what came back."""

    asked: str
    answer: str


def choose(snapshot: kserve.Snapshot) -> Picks:
    """Something to show of everything."""
    best = [snapshot.get(int(profile_id)) for profile_id in snapshot.select({}, CANDIDATES)]
    profile = max(best, key=_worth)
    everyone = snapshot.select({}, snapshot.profiles) if snapshot.scored < snapshot.profiles else None
    return Picks(
        scored=profile.id,
        unscored=None if everyone is None else int(everyone[-1]),
        name=_twitter_name(profile),
        rule=_rule(profile),
    )


def _worth(profile: Profile) -> int:
    """How much there is to show of a profile."""
    known = (
        profile.score,
        _twitter_name(profile),
        profile.location,
        profile.topics or None,
        profile.changes.day or None,
    )
    return len(known) - known.count(None)


def _twitter_name(profile: Profile) -> str | None:
    return profile.identities["tw"].name if "tw" in profile.identities else None


def _rule(profile: Profile) -> dict[str, Any]:
    """A rule that this profile meets, and others with it."""
    rule: dict[str, Any] = {} if profile.score is None else {"min_score": min(float(int(profile.score)), 40.0)}
    if profile.topics:
        rule["any_topics"] = [max(profile.topics, key=lambda topic: topic.score or 0.0).slug]
    if profile.location is not None:
        rule["locations"] = [profile.location.split("/")[0]]
    return rule


def over_http(address: str, shown: str, picks: Picks, key: str) -> list[Sample]:
    """Ask the server at ``address``; the curl lines say ``shown``. Raises OSError when nobody answers."""
    ids = [str(profile_id) for profile_id in (picks.scored, picks.unscored) if profile_id is not None]
    questions: list[tuple[str, Any]] = [(f"/v3/scores/{profile_id}", None) for profile_id in ids]
    if picks.name is not None:
        questions.append((f"/v3/identities/tw/{quote(picks.name, safe='')}", None))
    questions.append(("/v3/scores/batch", {"ids": ids}))
    questions.append(("/v3/eligibility", {"rule": picks.rule, "ids": ids, "count": True}))
    questions.append(("/v3/snapshot", None))
    return [Sample(_curl(shown + path, body, key), _ask(address + path, body, key)) for path, body in questions]


def _curl(url: str, body: Any, key: str) -> str:
    asked = f'curl -s {shlex.quote(url)} -H "Authorization: Bearer {key}"'
    if body is None:
        return asked
    return f"{asked} -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"


def _ask(url: str, body: Any, key: str) -> str:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}"} | ({"Content-Type": "application/json"} if data else {})
    request = urllib.request.Request(url, data, headers)
    try:
        with _direct.open(request, timeout=SECONDS) as response:
            answer: bytes = response.read()
    except urllib.error.HTTPError as error:
        answer = error.read()
    return answer.decode()


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Past every proxy of the environment: it would be asked for our own host."""


def in_process(data: Path, picks: Picks) -> list[Sample]:
    """Run the lines that are shown; the first two have no result."""
    known: dict[str, Any] = {"kserve": kserve}
    opening = f"kserve.open({str(data)!r})"
    store = known["store"] = eval(opening, known)
    lines = [f"store.score({picks.scored})"]
    if picks.unscored is not None:
        lines.append(f"store.score({picks.unscored}) is None")
    if picks.name is not None:
        lines.append(f"store.find('tw', {picks.name!r})")
    rule = picks.rule
    lines += [f"store.eligible({rule}, {picks.scored})", f"store.count({rule})", f"store.select({rule}, 3)"]
    with store:
        results = [Sample(line, repr(eval(line, known))) for line in lines]
    return [Sample("import kserve", ""), Sample(f"store = {opening}", ""), *results]
