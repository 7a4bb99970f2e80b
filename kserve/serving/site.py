"""What the handlers of one server share, and what they know of one request."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import msgspec
import structlog
from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import must_be_empty_body, rfc822_formatted_time
from msgspec import UNSET
from multidict import CIMultiDict, istr

from kserve._buckets import Buckets
from kserve._limits import Limits
from kserve._roster import Roster, Seat
from kserve._tally import AIOHTTP, ROUTES, TIER_NONE, TIER_OPEN, Tally
from kserve._wire import Numbers
from kserve.errors import KserveError, UnknownProfile
from kserve.serving import problems
from kserve.serving.admission import DOCUMENT, Access, Admission, Fields
from kserve.serving.auth import Authenticator, Caller
from kserve.serving.models import ProblemDocument
from kserve.serving.problems import Problem
from kserve.serving.samples import limits_file, tally_file
from kserve.serving.shedding import Shedding
from kserve.settings import Settings
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.watch import follower_of

if TYPE_CHECKING:
    from kserve._core import Snapshot, Store

SLOW_THREADS = 2
"""Threads for what would stop the event loop: counting all profiles, asking which pages are in memory."""

PRIVATE = "private, "
"""Begins the Cache-Control of answers to a key."""

_JSON = "application/json"
_PROBLEM_JSON = "application/problem+json"
_CONTENT_TYPE: str = istr("Content-Type")
_CACHE_CONTROL: str = istr("Cache-Control")
_ETAG: str = istr("ETag")
_REQUEST_ID: str = istr("X-Request-Id")
_SERVER: str = istr("Server")
_VERSION: str = istr("Kserve-Version")
_IF_NONE_MATCH: str = istr("If-None-Match")
_WELL_FORMED_ID = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch

Endpoint = Callable[[web.Request], Awaitable[web.Response]]

encode = msgspec.json.Encoder().encode
log = structlog.get_logger("kserve.serving")


class Front:
    """What every server has, with scores or without: its settings, whether it is draining, and how it refuses."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.draining = False
        self.prefix = os.urandom(4).hex()
        self.numbers = Numbers()
        """Of requests; with the prefix they name those that the client has not named."""

    def request_id(self, request: web.BaseRequest) -> str:
        """The client's own id of the request when it is well-formed, else a new one."""
        given = request.headers.get(_REQUEST_ID)
        if given is not None and _WELL_FORMED_ID(given):
            return given
        return f"{self.prefix}-{next(self.numbers)}"

    def version(self) -> str | None:
        """The version in force, for errors outside of every handler; None when there is none."""
        return None

    def refuse(self, problem: Problem, request: web.BaseRequest, request_id: str, version: str | None) -> web.Response:
        """The answer that a problem ends in."""
        kind = problem.kind
        document = ProblemDocument(
            type=problems.TYPE_PREFIX + problem.slug,
            title=kind.title,
            status=kind.status,
            detail=problem.detail,
            instance=request_id,
            version=UNSET if version is None else version,
        )
        headers = {_CONTENT_TYPE: _PROBLEM_JSON, _CACHE_CONTROL: "no-store", **problem.headers}
        response = respond(kind.status, encode(document), headers, request_id, version)
        if problem.close or self.closes(request):
            response.force_close()
        return response

    def closes(self, request: web.BaseRequest) -> bool:
        """Whether this answer is the last one on its connection, because the server is draining."""
        return self.draining and not getattr(request.protocol, "waiting_requests", 0)


class Site(Front):
    """A server of scores: its store, and what it keeps between requests."""

    def __init__(self, store: Store, settings: Settings) -> None:
        super().__init__(settings)
        self.store = store
        self.follower = follower_of(store)
        self.seat = Seat(None, "server") if self.follower is None else self.follower.seat
        """Where what is answered is counted, for other processes to see."""
        self.roster = Roster(Catalog(settings.data).roster)
        self.slow = ThreadPoolExecutor(SLOW_THREADS, thread_name_prefix="kserve-slow")
        self.tally = Tally(tally_file(settings.data), "worker")
        self.limits = Limits(limits_file(settings.data))
        self.buckets = Buckets(self.limits)
        self.keys = Authenticator(settings, self.limits, self.tally)
        self.shedding = Shedding(settings.shedding, self.tally)
        self.admission = Admission(self.keys, self.limits, self.shedding, self.tally)
        self.public_cache_control = f"max-age={settings.cache_seconds}"

    def version(self) -> str | None:
        """The version in force; None when the store is closed."""
        try:
            return self.store.version
        except KserveError:
            return None

    def start(self) -> None:
        """Follow keys, and measure the running event loop."""
        self.keys.start()
        self.shedding.start()

    def stop(self) -> None:
        """End what :meth:`start` began; what was counted stays counted."""
        self.shedding.stop()
        self.keys.stop()
        self.tally.leave()
        self.slow.shutdown(wait=False, cancel_futures=True)

    def endpoint(self, name: str, handler: Handler, access: Access) -> Endpoint:
        """An aiohttp handler of the route ``name``: admits the request, gives ``handler`` exactly one snapshot, turns
        errors into problem documents, and counts the answer."""
        route = ROUTES.index(name)

        async def answer(request: web.Request) -> web.Response:
            start = time.perf_counter_ns()
            call = Call(self, request, self.store.snapshot(), access)
            try:
                call.enter()
                response = await handler(call)
            except Exception as error:
                response = call.refuse(_problem_of(error, call))
            else:
                self.seat.succeeded(call.version)
                if self.draining and self.closes(request):
                    response.force_close()
            self.tally.count(route, response.status, call.tier, AIOHTTP, time.perf_counter_ns() - start)
            return response

        return answer

    def refusing(
        self, problem_of: Callable[[web.Request], Problem]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """An aiohttp handler for what no route takes, which needs no snapshot and no key."""
        other = ROUTES.index("other")

        async def answer(request: web.Request) -> web.Response:
            start = time.perf_counter_ns()
            try:
                self.admission.enter(request, DOCUMENT)
                problem = problem_of(request)
            except Problem as shed:
                problem = shed
            response = self.refuse(problem, request, self.request_id(request), self.version())
            self.tally.count(other, response.status, TIER_NONE, AIOHTTP, time.perf_counter_ns() - start)
            return response

        return answer


class Call:
    """One request, with the one snapshot that its answer is computed from, and who asks."""

    __slots__ = ("_access", "_owes", "caller", "fields", "id", "request", "site", "snapshot", "version")

    def __init__(self, site: Site, request: web.Request, snapshot: Snapshot, access: Access) -> None:
        self.site = site
        self.request = request
        self.snapshot = snapshot
        self.version = snapshot.version
        self.id = site.request_id(request)
        self.caller: Caller | None = None
        self._access = access
        self.fields: Fields = {}
        """Header fields that say what is left of the caller's limit."""
        self._owes = False

    @property
    def tier(self) -> int:
        """The number of the caller's tier, as it is counted."""
        if self.caller is not None:
            return self.caller.number
        return TIER_OPEN if self.site.settings.open else TIER_NONE

    def enter(self) -> None:
        """Let the caller in, and charge what is known beforehand. Raises Problem."""
        self.caller = self.site.admission.enter(self.request, self._access)
        if self._access.flat and _IF_NONE_MATCH in self.request.headers:
            self._owes = True  # a 304 costs nothing
        elif self._access.flat:
            self.charge(1)

    @property
    def cache_control(self) -> str:
        """Of an answer that holds as long as this version does: with a key it is for the key's holder alone."""
        public = self.site.public_cache_control
        return public if self.caller is None else PRIVATE + public

    def charge(self, cost: int) -> None:
        """Take tokens from the caller's limit. Raises Problem."""
        self._owes = False
        self.fields = self.site.admission.charge(self.caller, cost)

    def core(self, profile_id: int) -> tuple[int, float | None, float | None, float | None, float | None]:
        """(slot, score, day, week, month change) of a profile, counted as an answer. Raises UnknownProfile."""
        try:
            found = self.snapshot.core(profile_id)
        except UnknownProfile:
            self.site.seat.unknown(self.version, profile_id)
            raise
        self.site.seat.answered(self.version, profile_id, found[1])
        return found

    def json(self, answer: Any) -> web.Response:
        """An answer that is not to be kept."""
        return self.whole(encode(answer), _JSON)

    def whole(self, body: bytes, kind: str) -> web.Response:
        """An answer that is not to be kept, ready as bytes of this media type."""
        return self._respond(200, body, {_CONTENT_TYPE: kind, _CACHE_CONTROL: "no-store"})

    def constant(self, body: bytes) -> web.Response:
        """An answer, ready as JSON, that depends neither on the snapshot nor on who asks."""
        return self._respond(200, body, {_CONTENT_TYPE: _JSON, _CACHE_CONTROL: self.site.public_cache_control})

    def unchanged(self, etag: str) -> web.Response | None:
        """304 if the client has this representation already; otherwise the answer is charged. Raises Problem."""
        wanted = self.request.headers.get(_IF_NONE_MATCH)
        if wanted is not None and matches(wanted, etag):
            return self.not_modified(etag)
        if self._owes:
            self.charge(1)
        return None

    def not_modified(self, etag: str) -> web.Response:
        """304: the client has this representation already."""
        return self._respond(304, None, {_ETAG: etag, _CACHE_CONTROL: self.cache_control})

    def cacheable(self, answer: Any, etag: str) -> web.Response:
        """An answer that holds as long as this version does."""
        headers = {_CONTENT_TYPE: _JSON, _ETAG: etag, _CACHE_CONTROL: self.cache_control}
        return self._respond(200, encode(answer), headers)

    def refuse(self, problem: Problem) -> web.Response:
        """The problem document for this request, which costs what any answer costs."""
        if self._owes:
            try:
                self.charge(1)
            except Problem as limited:
                problem = limited
        problem.headers.update(self.fields)
        return self.site.refuse(problem, self.request, self.id, self.version)

    def _respond(self, status: int, body: bytes | None, headers: dict[str, str]) -> web.Response:
        return respond(status, body, headers | self.fields, self.id, self.version)


Handler = Callable[[Call], Awaitable[web.Response]]


class Whole(web.Response):
    """A response that is whole when it is made, and is sent at once: the same bytes as aiohttp's, in fewer steps."""

    def __init__(self, status: int, body: bytes | None, headers: dict[str, str]) -> None:
        web.StreamResponse.__init__(self, status=status, _real_headers=CIMultiDict(headers))
        self._body = body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send it, with the fields that depend on the request."""
        if self._eof_sent or self._cookies:
            return await super().prepare(request)
        headers, version = self._headers, request.version
        body = b"" if self._body is None else cast(bytes, self._body)
        empty = must_be_empty_body(request.method, self._status)
        if body or not empty:
            headers.add(hdrs.CONTENT_LENGTH, str(len(body)))
        headers.add(hdrs.DATE, rfc822_formatted_time())
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        if self._keep_alive:
            if version == HttpVersion10:
                headers.add(hdrs.CONNECTION, "keep-alive")
        elif version == HttpVersion11:
            headers.add(hdrs.CONNECTION, "close")
        writer = request.writer
        await writer.write_headers(f"HTTP/{version[0]}.{version[1]} {self._status} {self._reason}", headers)
        await writer.write_eof(b"" if empty else body)
        self._eof_sent = True
        return writer


def respond(
    status: int, body: bytes | None, headers: dict[str, str], request_id: str, version: str | None
) -> web.Response:
    """A response with the headers that every answer has."""
    if version is not None:
        headers[_VERSION] = version
    headers[_REQUEST_ID] = request_id
    headers[_SERVER] = "kserve"
    return Whole(status, body, headers)


def matches(wanted: str, etag: str) -> bool:
    """Whether an If-None-Match names this entity tag (weak comparison; ours have no commas in them)."""
    if wanted == etag or wanted.strip() == "*":
        return True
    return any(tag.strip().removeprefix("W/") == etag for tag in wanted.split(","))


def _problem_of(error: Exception, call: Call) -> Problem:
    """What a request that failed is answered; what is our fault is logged."""
    if isinstance(error, Problem):
        return error
    said: dict[str, Any] = {"exc_info": error}
    problem = problems.internal()
    if isinstance(error, KserveError):
        said = {"error": str(error)}
        problem = problems.of_kserve(error)
    if problem.kind.status >= 500:
        call.site.seat.failed(call.version)
        log.error("request failed", request_id=call.id, version=call.version, **said)
    return problem
