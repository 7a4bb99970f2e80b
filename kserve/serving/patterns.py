"""Answers with gaps in them, for the compiled path to fill.

They are written by the very functions that write all other answers, so that the two cannot drift apart. What differs
from one answer of a version to the next is a gap: ``~`` and a letter of ``kserve._wire.GAPS``.
"""

from __future__ import annotations

from typing import cast

import msgspec
from aiohttp import web

from kserve._wire import OUTCOMES
from kserve.errors import UnknownProfile
from kserve.serving import models, problems
from kserve.serving.site import Call, Site, encode

Pattern = tuple[int, bytes, bytes]
"""(status, head, body)."""

ID, POINTS, CHANGES, ROW, REQUEST_ID, LENGTH, DATE = (f"~{letter}" for letter in "IPCWRLD")

_EXAMPLE = models.Score(id=ID, score=62.31, changes=models.Changes(1.25, 2.25, 3.25), version="")


class Patterns:
    """The answers that the compiled path gives for a site."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def __call__(self, version: str) -> list[Pattern]:
        """Of each outcome, in the order of ``OUTCOMES``."""
        call = _Nobody(self._site, version)
        etag = f'"{version}-{ROW}"'
        scored = msgspec.structs.replace(_EXAMPLE, version=version)
        unscored = models.Score(id=ID, score=None, reason="unscored", changes=models.NO_CHANGES, version=version)
        made = {
            "scored": call.cacheable(scored, etag),
            "unscored": call.cacheable(unscored, etag),
            "unchanged": call.not_modified(etag),
            "unknown": call.refuse(problems.of_kserve(UnknownProfile(ID, version))),
        }
        return [_pattern(made[outcome]) for outcome in OUTCOMES]


class _Nobody(Call):
    """A call that has only what answers repeat."""

    __slots__ = ()

    def __init__(self, site: Site, version: str) -> None:
        self.site = site
        self.request = cast(web.Request, None)
        self.version = version
        self.id = REQUEST_ID
        self.fields = {}
        self._owes = False


def _pattern(answer: web.Response) -> Pattern:
    """The bytes that aiohttp would send, with gaps for the numbers of the example too."""
    lines = [f"HTTP/1.1 {answer.status} {answer.reason}", *(f"{name}: {text}" for name, text in answer.headers.items())]
    if answer.status != 304:
        lines.append(f"Content-Length: {LENGTH}")
    head = "\r\n".join([*lines, f"Date: {DATE}", "", ""]).encode()
    assert isinstance(answer.body, bytes | None)
    body = (answer.body or b"").replace(b'"score":62.31', b'"score":' + POINTS.encode())
    return answer.status, head, body.replace(encode(_EXAMPLE.changes), CHANGES.encode())
