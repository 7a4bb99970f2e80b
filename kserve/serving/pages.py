"""Pages over HTTP: what every page route has, and the status page."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

from aiohttp import web

from kserve.errors import KserveError
from kserve.notices import pages, status
from kserve.serving import problems, sessions
from kserve.serving.problems import Problem
from kserve.serving.site import Front, log, matches, respond
from kserve.settings import Settings

HTML = "text/html; charset=utf-8"

RENDER_SECONDS = 5.0
"""How old a page may be before it is made anew."""

MAX_AGE = 10
"""Seconds that a browser or a proxy may keep the status page."""

_SOMEWHERE = f"http://{secrets.token_hex(16)}.invalid"
"""In links of pages as they are made; where they were asked for takes its place. Nobody can guess it."""

_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}").fullmatch

PageHandler = Callable[[web.Request], Awaitable[web.Response]]


class Representation(NamedTuple):
    """A body with its type and tag."""

    media: str
    body: bytes
    etag: str


class StatusPage:
    """The status page and its twins, made in a thread and at most every RENDER_SECONDS."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kserve-status")
        self._made: dict[str, tuple[str, bytes]] = {}
        self._good_until = 0.0
        self._making: asyncio.Future[None] | None = None

    def mount(self, app: web.Application) -> None:
        """Add the routes."""
        for path in TWINS:
            add(app, self._front, path, get=self._answer)
        app.on_cleanup.append(self._stop)

    async def _answer(self, request: web.Request) -> web.Response:
        if time.monotonic() >= self._good_until:
            await self._refresh()
        media, body = self._made[request.path]
        found = represented(media, body.replace(_SOMEWHERE.encode(), _asked_at(request).encode()))
        headers = {"ETag": found.etag, "Cache-Control": f"public, max-age={MAX_AGE}", **pages.headers()}
        if matches(request.headers.get("If-None-Match", ""), found.etag):
            return reply(self._front, request, 304, None, headers)
        return reply(self._front, request, 200, found.body, headers | {"Content-Type": found.media})

    async def _refresh(self) -> None:
        """Make the pages, once for all who ask meanwhile. What cannot be made anew stays as it was, and is logged."""
        if self._making is None:
            self._making = asyncio.get_running_loop().run_in_executor(self._thread, self._make)
            self._making.add_done_callback(self._done)
        try:
            await asyncio.shield(self._making)
        except Exception as error:
            if not self._made:
                raise
            log.error("the status page could not be made", exc_info=error)

    def _done(self, made: asyncio.Future[None]) -> None:
        self._making = None
        self._good_until = time.monotonic() + RENDER_SECONDS

    def _make(self) -> None:
        found = status.read(self._front.settings)
        if self._front.settings.public_url is None:
            found = replace(found, url=_SOMEWHERE)
        self._made = {path: (media, twin(found)) for path, (media, twin) in TWINS.items()}

    async def _stop(self, app: web.Application) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


TWINS: dict[str, tuple[str, Callable[[status.Status], bytes]]] = {
    "/status": (HTML, status.to_html),
    "/status.json": ("application/json", status.to_json),
    "/status.rss": ("application/rss+xml; charset=utf-8", status.to_rss),
}
"""Where the status is told, and how."""


def status_app(settings: Settings) -> tuple[web.Application, Front]:
    """The status page alone: it needs no snapshot, and nothing of what serves scores."""
    app, front = web.Application(client_max_size=settings.body_limit), Front(settings)
    StatusPage(front).mount(app)
    return app, front


def _asked_at(request: web.Request) -> str:
    """The address that the client used; ours, when it names none."""
    host = request.headers.get("Host", "")
    if not _HOST(host):
        return status.address(*request.get_extra_info("sockname", ("localhost", 0))[:2])
    return f"{'https' if sessions.encrypted(request) else 'http'}://{host}"


def represented(media: str, body: bytes) -> Representation:
    """A body with the tag that follows from it."""
    return Representation(media, body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def add(
    app: web.Application, front: Front, path: str, get: PageHandler | None = None, post: PageHandler | None = None
) -> None:
    """A route of pages, which refuses the methods that it does not have."""
    resource = app.router.add_resource(path)
    taken = {"GET": get, "HEAD": get, "POST": post}
    allowed = [method for method, handler in taken.items() if handler is not None]
    for method, handler in taken.items():
        if handler is not None:
            resource.add_route(method, guarded(front, handler))

    async def refuse(request: web.Request) -> web.Response:
        raise problems.wrong_method(request.method, allowed)

    resource.add_route("*", guarded(front, refuse))


def guarded(front: Front, handler: PageHandler) -> PageHandler:
    """The handler, with its errors turned into problem documents."""

    async def answer(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except Problem as problem:
            return refused(problem, request)
        except KserveError as error:
            log.error("page failed", path=request.path, error=str(error))
            return refused(problems.of_kserve(error), request)
        except Exception as error:
            log.error("page failed", path=request.path, exc_info=error)
            return refused(problems.internal(), request)

    def refused(problem: Problem, request: web.Request) -> web.Response:
        return front.refuse(problem, request, front.request_id(request), front.version())

    return answer


def reply(front: Front, request: web.Request, code: int, body: bytes | None, headers: dict[str, str]) -> web.Response:
    """An answer with the headers that every answer has."""
    response = respond(code, body, headers, front.request_id(request), front.version())
    if front.closes(request):
        response.force_close()
    return response
