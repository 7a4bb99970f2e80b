"""Errors as RFC 9457 problem documents. Every type there is, is in ``KINDS`` and in docs/http-api.md."""

from __future__ import annotations

from typing import NamedTuple

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from kserve.errors import KserveError

MAX_ECHO = 64
"""Characters of what a client sent that an answer repeats."""

TYPE_PREFIX = "urn:kserve:problem:"


class Kind(NamedTuple):
    """A kind of problem: the HTTP status it ends in and its title."""

    status: int
    title: str


KINDS = {
    "malformed-request": Kind(400, "The request is not valid HTTP"),
    "invalid-id": Kind(400, "The profile id is not valid"),
    "bad-query": Kind(400, "A query parameter is not valid"),
    "bad-json": Kind(400, "The body is not valid JSON"),
    "unauthorized": Kind(401, "A valid key is needed"),
    "forbidden": Kind(403, "The key may not do this"),
    "not-found": Kind(404, "There is no such route"),
    "unknown-profile": Kind(404, "There is no such profile"),
    "unknown-identity": Kind(404, "There is no such identity"),
    "unknown-network": Kind(404, "There is no such network"),
    "unknown-topic": Kind(404, "There is no such topic"),
    "method-not-allowed": Kind(405, "The route does not take this method"),
    "slow-body": Kind(408, "The body did not arrive in time"),
    "body-too-large": Kind(413, "The body is too large"),
    "unsupported-media-type": Kind(415, "The body has a type that is not taken"),
    "expectation-failed": Kind(417, "The expectation cannot be met"),
    "bad-body": Kind(422, "The body does not have the right shape"),
    "bad-rule": Kind(422, "The rule makes no sense"),
    "too-many-ids": Kind(422, "There are too many ids in one request"),
    "over-burst": Kind(422, "The request costs more than the key's limit ever allows"),
    "rate-limited": Kind(429, "The key's rate limit is reached"),
    "quota-exhausted": Kind(429, "The key's daily quota is used up"),
    "too-many-failures": Kind(429, "Too many authentications failed from this address"),
    "headers-too-large": Kind(431, "A header or the request line is too long"),
    "internal": Kind(500, "The server failed"),
    "bad-snapshot": Kind(503, "The snapshot cannot be used"),
    "overloaded": Kind(503, "The server is overloaded"),
    "not-ready": Kind(503, "The server is not ready"),
}

MAX_DETAIL = 512
"""Characters; errors repeat what was sent, which may be long."""


class Problem(Exception):
    """An answer other than the one that was asked for. ``close``: the connection cannot be used after it."""

    def __init__(self, slug: str, detail: str, *, close: bool = False, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.slug = slug
        self.kind = KINDS[slug]
        whole = detail.encode("utf-8", "backslashreplace").decode()
        self.detail = whole if len(whole) <= MAX_DETAIL else f"{whole[:MAX_DETAIL]}…"
        self.close = close
        self.headers = headers or {}


def of_kserve(error: KserveError) -> Problem:
    """The problem that an error of kserve ends in. Only errors about what was asked are told in detail."""
    kind = KINDS.get(error.slug)
    if kind is None or error.slug == "internal":
        return internal()
    return Problem(
        error.slug, str(error) if kind.status < 500 else "a read failed; the log has it under this request id"
    )


def wrong_method(method: str, allowed: list[str]) -> Problem:
    """The problem for a route that does not take this method."""
    allow = ", ".join(allowed)
    return Problem("method-not-allowed", f"{method} is not taken here; allowed: {allow}", headers={"Allow": allow})


def not_found(path: str) -> Problem:
    """The problem for a route that there is not."""
    return Problem("not-found", f"no route {path[:MAX_ECHO]}; GET /openapi.json lists them all")


def of_aiohttp(error: web.HTTPException, path: str) -> Problem:
    """The problem for what aiohttp itself refused: an unknown route, an expectation."""
    if error.status == 404:
        return Problem("not-found", f"no route {path[:MAX_ECHO]} here; the API is on the port of the scores")
    if error.status == 417:
        return Problem("expectation-failed", "the only expectation that can be met is 100-continue")
    return Problem("malformed-request" if error.status < 500 else "internal", error.reason)


def of_parser(error: BaseException) -> Problem:
    """The problem for bytes that are no HTTP request. The stream cannot be trusted after it."""
    if isinstance(error, LineTooLong):
        return Problem("headers-too-large", "the request line and each header must be under 8,190 bytes", close=True)
    message = error.message if isinstance(error, HttpProcessingError) else ""
    detail = message.partition("\n")[0].strip(" :") or "the bytes received are not an HTTP/1.1 request"
    return Problem("malformed-request", detail, close=True)


def internal() -> Problem:
    """Our fault; the log has the rest, under the request id."""
    return Problem("internal", "an unexpected error; the log has it under this request id", close=True)
