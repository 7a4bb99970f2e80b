"""The public application, and a server of it in one process; `kserve serve` runs it in workers (`workers`)."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import uvloop
from aiohttp import HttpVersion11, hdrs, web

import kserve
from kserve._limits import Limits
from kserve.serving import leases, logs, metrics, openapi, problems
from kserve.serving.accepting import Door, Table, listening, refuse_new
from kserve.serving.admission import DOCUMENT, Access
from kserve.serving.office import OfficeThread
from kserve.serving.pages import status_app
from kserve.serving.protocol import Runner, assert_c_parser
from kserve.serving.routes import table
from kserve.serving.samples import limits_file
from kserve.serving.site import Call, Front, Handler, Site, encode, log
from kserve.settings import Settings

if TYPE_CHECKING:
    from kserve._core import Store

SITE = web.AppKey("site", Site)

Made = Callable[[], tuple[web.Application, Front]]
Session = Callable[[str], bool]
"""What to do beside serving, given the address; returns whether to go on serving."""


def make_app(store: Store, settings: Settings) -> web.Application:
    """The application that answers from ``store``. Serve it with :class:`~kserve.serving.protocol.Runner`."""
    site = Site(store, settings)
    app = web.Application(client_max_size=settings.body_limit)
    app[SITE] = site
    routes = table()
    for route in routes:
        methods = ["GET", "HEAD"] if route.method == "GET" else [route.method]
        _add(app, route.path, methods, site, route.name, route.handler, route.access)
    document = encode(openapi.document(routes, settings, kserve.__version__))
    _add(app, "/openapi.json", ["GET", "HEAD"], site, "openapi", _constant(document), DOCUMENT)
    unknown = site.refusing(lambda request: problems.not_found(request.path))
    app.router.add_route("*", "/{path:.*}", unknown, expect_handler=_go_on)
    app.cleanup_ctx.append(_shown)
    return app


def run(settings: Settings, session: Session | None = None) -> None:
    """Serve the announced snapshot of ``settings.data`` from this process alone, until SIGTERM or SIGINT, then drain.

    The office is a thread of it. ``session`` runs in another one once the server listens; that it returns False or
    raises ends the serving too. Raises NothingPublished or SnapshotError if there is nothing to serve, SettingError if
    an address cannot be had.
    """
    logs.configure()
    assert_c_parser()
    leases.prepare(settings, Limits(limits_file(settings.data)))
    places = Table(1)
    with (
        kserve.open(settings.data, settings=settings) as store,
        listening(settings.host, settings.port) as listener,
        OfficeThread(settings, places) as office,
    ):

        def made() -> tuple[web.Application, Front]:
            app = make_app(store, settings)
            return app, app[SITE]

        uvloop.run(_serve(made, listener, places, session, admin=office.address))


def run_status(settings: Settings, session: Session | None = None) -> None:
    """Serve the status page alone, as :func:`run` serves scores. Raises SettingError if the address cannot be had."""
    logs.configure()
    assert_c_parser()
    with listening(settings.host, settings.port) as listener:
        uvloop.run(_serve(lambda: status_app(settings), listener, Table(1), session))


async def _serve(made: Made, listener: socket.socket, places: Table, session: Session | None, **said: str) -> None:
    stopped = stop_signal()
    app, front = made()
    runner = Runner(app, front)
    await runner.setup()
    try:
        tally = app[SITE].tally if SITE in app else None
        door = Door(runner, front, listener, places, 0, front.settings.max_connections, tally)
        await door.start()
        if SITE in app:
            app[SITE].seat.open_to("server", door.name)
        log.info("listening", address=door.name, **said, version=front.version())
        reason = await _end(stopped, session, door.name)
        log.info("draining", reason=reason, seconds=front.settings.drain_timeout)
        refuse_new(listener)
    finally:
        await runner.cleanup()
    log.info("stopped")


async def _end(stopped: asyncio.Future[str], session: Session | None, address: str) -> str:
    """Why the serving ends, when it does."""
    if session is not None:
        task = asyncio.create_task(asyncio.to_thread(session, address))
        either: set[asyncio.Future[Any]] = {task, stopped}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if task.done() and not task.result():
            return "the session is over"
    return await stopped


def _add(
    app: web.Application, path: str, methods: list[str], site: Site, name: str, handler: Handler, access: Access
) -> None:
    resource = app.router.add_resource(path)
    for method in methods:
        resource.add_route(method, site.endpoint(name, handler, access), expect_handler=_go_on)
    refused = site.refusing(lambda request: problems.wrong_method(request.method, methods))
    resource.add_route("*", refused, expect_handler=_go_on)


async def _go_on(request: web.Request) -> None:
    """As aiohttp has it, which fails when it repeats an expectation that is no text."""
    if request.version != HttpVersion11:
        return
    if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
        raise web.HTTPExpectationFailed
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer has not begun


def _constant(body: bytes) -> Handler:
    async def answer(call: Call) -> web.Response:
        return call.constant(body)

    return answer


async def _shown(app: web.Application) -> AsyncIterator[None]:
    """Let the other processes of the host see what is served here."""
    site = app[SITE]
    if site.follower is not None:
        site.follower.serves_at("")
    shower = metrics.Shower(site.seat)
    shower.start()
    site.start()
    yield
    site.stop()
    await asyncio.to_thread(shower.stop)


def stop_signal() -> asyncio.Future[str]:
    """Done at the first SIGTERM, SIGINT or SIGHUP; the second ends the process at once."""
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[str] = loop.create_future()

    def stop(number: signal.Signals) -> None:
        if stopped.done():
            os._exit(128 + number)
        stopped.set_result(number.name)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    return stopped
