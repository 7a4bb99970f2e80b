"""Answers with gaps in them, for the compiled path to fill.

They are written by the very functions that write all other answers, so that the two cannot drift apart. What differs
from one answer of a version to the next is a gap: ``~`` and a letter of ``kserve._wire.GAPS``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import msgspec
from aiohttp import web

from kserve._limits import EXHAUSTED, LIMITED, Decision
from kserve._wire import GAPS, OUTCOMES
from kserve.errors import UnknownProfile
from kserve.serving import bodies, models, problems, ratelimits
from kserve.serving.admission import Fields
from kserve.serving.problems import Problem
from kserve.serving.shedding import DETAIL
from kserve.serving.site import Call, Site, encode
from kserve.settings import Tier

Pattern = tuple[int, bytes, bytes]
"""(status, head, body)."""

ID, POINTS, CHANGES, ROW, REQUEST_ID, LENGTH, DATE, FIELDS, SECONDS, HOLDER = (f"~{letter}" for letter in GAPS)

_EXAMPLE = models.Score(id=ID, score=62.31, changes=models.Changes(1.25, 2.25, 3.25), version="")
_TIER = Tier(rate=1, burst=1, quota=1)
_WAIT = 9_876_543_210
"""More digits than any version has in a row."""
_TOLD = ratelimits.fields(_TIER, Decision(LIMITED, 0, 0, _WAIT * 1_000_000, 0, 0, 0))


class Patterns:
    """The answers that the compiled path gives for a site."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def __call__(self, version: str) -> list[Pattern]:
        """Of each outcome, in the order of ``OUTCOMES``."""
        etag = f'"{version}-{ROW}"'
        scored = msgspec.structs.replace(_EXAMPLE, version=version)
        unscored = models.Score(id=ID, score=None, reason="unscored", changes=models.NO_CHANGES, version=version)
        problem = Problem("overloaded", DETAIL, headers={"Retry-After": SECONDS})
        paid, unpaid = _Nobody(self._site, version, _TOLD), _Nobody(self._site, version, {})
        made = {
            "scored": paid.cacheable(scored, etag),
            "unscored": paid.cacheable(unscored, etag),
            "unchanged": unpaid.not_modified(etag),
            "unknown": paid.refuse(problems.of_kserve(UnknownProfile(ID, version))),
            "items": paid.whole(b"", bodies.JSON),
            "records": paid.whole(b"", bodies.BINARY),
            "limited": unpaid.refuse(_refused(LIMITED)),
            "exhausted": unpaid.refuse(_refused(EXHAUSTED)),
            "overloaded": unpaid.refuse(problem),
        }
        return [pattern(made[outcome]) for outcome in OUTCOMES]


class _Nobody(Call):
    """A call that has only what answers repeat."""

    __slots__ = ()

    def __init__(self, site: Site, version: str, fields: Fields) -> None:
        self.site = site
        self.request = cast(web.Request, None)
        self.version = version
        self.id = REQUEST_ID
        self.fields = fields
        self._owes = False

    @property
    def cache_control(self) -> str:
        """For whoever asks."""
        return HOLDER + self.site.public_cache_control


def _refused(outcome: int) -> Problem:
    return ratelimits.refused(_TIER, Decision(outcome, 0, 0, _WAIT * 1_000_000, 0, 0, 0), 1)


def pattern(answer: web.Response) -> Pattern:
    """The bytes that aiohttp would send, with gaps for the numbers of the examples too."""
    lines = [f"HTTP/1.1 {answer.status} {answer.reason}", *_lines(answer.headers)]
    if answer.status != 304:
        lines.append(f"Content-Length: {LENGTH}")
    head = "\r\n".join([*lines, f"Date: {DATE}", "", ""])
    head = head.replace("".join(f"{line}\r\n" for line in _lines(_TOLD)), FIELDS)
    assert isinstance(answer.body, bytes | None)
    body = (answer.body or b"").decode().replace('"score":62.31', f'"score":{POINTS}')
    body = body.replace(encode(_EXAMPLE.changes).decode(), CHANGES)
    return answer.status, _waiting(head).encode(), _waiting(body).encode()


def _lines(headers: Mapping[str, str]) -> list[str]:
    return [f"{name}: {text}" for name, text in headers.items()]


def _waiting(text: str) -> str:
    return text.replace(str(_WAIT), SECONDS)
