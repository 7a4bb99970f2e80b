"""The console for release engineers: signing in, and what every request of it must show. The views are in `views`."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from kserve.errors import KserveError, SnapshotError, UnknownVersion
from kserve.notices import pages
from kserve.serving import bodies, sessions, views
from kserve.serving.addresses import client
from kserve.serving.comparisons import Comparisons
from kserve.serving.keys import Key, Keys
from kserve.serving.pages import HTML, PageHandler, add, reply
from kserve.serving.problems import Problem
from kserve.serving.sessions import Attempts, Sessions
from kserve.serving.site import Front, log
from kserve.serving.views import HOME, Answer, View, Visit
from kserve.snapshots.catalog import Catalog

SCOPE = "console"
SIGN_IN = f"{HOME}/sign-in"
THREADS = 2
"""Requests of the console that are worked on at once."""

WAITING = 32
"""Requests of the console that wait for a thread or have one; more are turned away."""

REMEMBERED_SECONDS = 1.0

PAGES: dict[str, View] = {
    HOME: views.versions,
    f"{HOME}/versions/{{version}}": views.version,
    f"{HOME}/diff": views.diff,
    f"{HOME}/log": views.log,
    f"{HOME}/processes": views.processes,
}
ACT = f"{HOME}/acts/{{act:pin|unpin|rollback}}"


class Remembered:
    """Whether something is so, found out once a second at most: for what anybody may ask, at any rate."""

    def __init__(self, look: Callable[[], bool]) -> None:
        self._look = look
        self._known = False
        self._until = 0.0

    def __call__(self) -> bool:
        if time.monotonic() >= self._until:
            self._known, self._until = self._look(), time.monotonic() + REMEMBERED_SECONDS
        return self._known


class Console:
    """The routes of the console, beside the API in one server or without it."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._settings = front.settings
        self._keys = Keys(self._settings.data)
        self._sessions = Sessions(self._keys.pepper)
        self._attempts = Attempts()
        self._comparisons = Comparisons(Catalog(self._settings.data))
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="kserve-console")
        self._waiting = 0
        self._has_key = Remembered(functools.partial(self._keys.exist, SCOPE))

    def mount(self, app: web.Application) -> None:
        """Add the routes."""
        for path, view in PAGES.items():
            add(app, self._front, path, get=self._route(view))
        add(app, self._front, ACT, get=self._route(views.asked), post=self._route(views.acted))
        add(app, self._front, SIGN_IN, get=self._route(_ask, signed_in=False), post=self._route(self._begin, False))
        add(app, self._front, f"{HOME}/sign-out", post=self._route(self._end))
        app.on_cleanup.append(self._stop)

    def _route(self, view: View, signed_in: bool = True) -> PageHandler:
        """A handler that lets nobody see ``view`` who may not."""

        async def answer(request: web.Request) -> web.Response:
            fields = await bodies.form(request, self._settings) if request.method == "POST" else None
            found = await self._in_turn(functools.partial(self._answer, view, request, fields, signed_in))
            return self._reply(request, found)

        return answer

    async def _in_turn(self, answered: Callable[[], Answer]) -> Answer:
        """What a thread makes of a request. Raises Problem when too many wait for one."""
        if self._waiting >= WAITING:
            raise Problem("overloaded", "too many want the console at once", headers={"Retry-After": "1"})
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, answered)
        finally:
            self._waiting -= 1

    def _answer(self, view: View, request: web.Request, fields: dict[str, str] | None, signed_in: bool) -> Answer:
        visit = self._visit(request, fields)
        if not self._has_key():
            return visit.refused(403, "There is no key for the console", NO_KEY)
        if signed_in and visit.key is None:
            return Answer(303, location=SIGN_IN)
        if fields is not None and not self._sent_by_us(request, visit):
            return visit.refused(403, "This form was not accepted", FORGED)
        try:
            return view(visit)
        except UnknownVersion:
            return visit.refused(404, "There is no such version", UNKNOWN)
        except SnapshotError as error:
            return visit.refused(503, "This version cannot be read", str(error))
        except KserveError as error:
            log.error("console failed", path=request.path, error=str(error))
            return visit.refused(error.http_status, "This cannot be shown now", str(error))

    def _visit(self, request: web.Request, fields: dict[str, str] | None) -> Visit:
        session = self._sessions.read(sessions.cookie_of(request))
        key: Key | None = None
        if session is not None and session.signed_in:
            key = self._keys.live(session.key_id, SCOPE)
        if session is None or (session.signed_in and key is None):
            session = self._sessions.begin()
        return Visit(
            settings=self._settings,
            comparisons=self._comparisons,
            session=session,
            key=key,
            address=client(request, self._settings.trusted_proxies),
            path=request.match_info,
            query=request.query,
            fields=fields or {},
        )

    def _sent_by_us(self, request: web.Request, visit: Visit) -> bool:
        token = visit.fields.get("token", "")
        return sessions.ours(request, self._settings.public_url) and sessions.right_token(visit.session, token)

    def _begin(self, visit: Visit) -> Answer:
        """Sign in."""
        wait = self._attempts.wait(visit.address)
        if wait:
            text = f"Too many attempts failed from your address. Try again in {wait} seconds."
            return visit.page("sign_in.html", 429, error=text)._replace(wait=wait)
        key = self._keys.check(visit.fields.get("key", "").strip(), SCOPE)
        if key is None:
            self._attempts.failed(visit.address)
            log.warning("sign-in to the console refused", address=visit.address)
            return visit.page("sign_in.html", 401, error="This is no key for the console.")
        log.info("signed in to the console", key=key.id, partner=key.partner, address=visit.address)
        return Answer(303, location=HOME, session=self._sessions.begin(key.id))

    def _end(self, visit: Visit) -> Answer:
        """Sign out."""
        return Answer(303, location=SIGN_IN, session=self._sessions.begin())

    def _reply(self, request: web.Request, answer: Answer) -> web.Response:
        headers = {"Content-Type": HTML, "Cache-Control": "no-store", **pages.headers()}
        if answer.location is not None:
            headers["Location"] = answer.location
        if answer.wait:
            headers["Retry-After"] = str(answer.wait)
        response = reply(self._front, request, answer.code, answer.html.encode(), headers)
        if answer.session is not None:
            sessions.keep(response, answer.session, request)
        return response

    async def _stop(self, app: web.Application) -> None:
        self._comparisons.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _ask(visit: Visit) -> Answer:
    """The sign-in form, with a session for nobody: the form's token belongs to it."""
    if visit.key is not None:
        return Answer(303, location=HOME)
    return visit.page("sign_in.html", error="")._replace(session=visit.session)


NO_KEY = (
    "Make one on the host of the data directory, keep what it prints, and come back:"
    " kserve keys create --scopes console --partner NAME --data DIRECTORY"
)
UNKNOWN = "It was never here, or it was pruned: the list of versions shows what there is, the log what there was."
FORGED = (
    "It was not made by this console for your session, or that has ended. Go back, load the page again, and repeat it."
)
