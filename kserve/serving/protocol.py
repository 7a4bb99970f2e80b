"""aiohttp's connection, with what it lacks: a time-out for request headers, and problem documents."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import http_parser, web
from aiohttp.streams import EMPTY_PAYLOAD

from kserve._tally import Counter
from kserve._wire import Wire, WireSite
from kserve.serving import problems
from kserve.serving.framing import MAX_HEAD, Framing
from kserve.serving.patterns import Patterns
from kserve.serving.refusals import LONGEST, Refusals, Refused, remembered
from kserve.serving.shortcuts import Shortcuts
from kserve.serving.site import Front, Site, log

if TYPE_CHECKING:
    from kserve.serving.problems import Problem

T = TypeVar("T")

LINGER_SECONDS = 5.0
"""How long the answer to a body that was not read waits for the client to stop sending, before the connection goes."""

LAST_REQUEST_SECONDS = 1.0
"""How long a drain waits for the next request of a kept-alive connection, to answer it with ``Connection: close``."""

CUT_SECONDS = 0.1
"""What a request that outlives the drain is given to notice that it is cancelled."""

POLL_SECONDS = 0.02
SLOW = problems.KINDS["slow-body"].status


def assert_c_parser() -> None:
    """Refuse to serve with aiohttp's pure-Python parser: it is several times slower, and not the one that is tested."""
    if http_parser.HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise RuntimeError("aiohttp's C parser is not loaded: install its binary wheel, unset AIOHTTP_NO_EXTENSIONS")


class _InPlace:
    """The event loop as a connection uses it, but that its requests are not made tasks of their own.

    aiohttp does that so that they do not see each other's context variables; here nobody sets any. From Python 3.12 on
    it starts these tasks at once by itself, and asks no loop for them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.time = loop.time
        self.call_at, self.call_later, self.call_soon = loop.call_at, loop.call_later, loop.call_soon
        self.create_future = loop.create_future

    @staticmethod
    def create_task(work: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        """To be awaited at once."""
        return work


class Connection(web.RequestHandler):
    """One connection, answered by the compiled path and by aiohttp in turn.

    What is read goes to :class:`~kserve._wire.Wire` first, which gives aiohttp whatever it does not answer itself, from
    the first byte, and takes over again once aiohttp :meth:`may_leave`.

    The header time-out runs from the moment the connection is open, and on a kept-alive one from the first byte of the
    next request. A part of a request that aiohttp read together with the end of the one before it starts the time-out
    with its next byte; until then the keep-alive time-out holds it, like any idle connection. A head that grows beyond
    64 KiB without an end ends the connection.
    """

    __slots__ = (
        "_answered",
        "_body",
        "_framing",
        "_head_size",
        "_head_timer",
        "_in_place",
        "_latest",
        "_refusals",
        "_refused",
        "_send_timer",
        "_site",
        "_unread",
        "_wire",
        "data_received",
    )

    data_received: Callable[[bytes], None]  # type: ignore[assignment]  # the slot takes the place of the method

    def __init__(self, manager: Server, site: Front, wires: WireSite, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._site = site
        self._refusals = manager.refusals
        self._refused: Refused | None = None
        self._latest = b""
        self._in_place = manager.in_place
        self._wire = Wire(wires, self)
        self.data_received = self._wire.data_received  # for uvloop to call C at once, without a method of ours between
        self._framing = Framing()
        self._unread = b""
        self._body: Any = EMPTY_PAYLOAD
        self._answered: Any = None
        """The body of the last request that was answered."""
        self._head_size = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    @property
    def waiting_requests(self) -> int:
        """Requests that were read after the one that is being answered."""
        return len(self._messages)

    @property
    def busy(self) -> bool:
        """Whether there is a request that is not answered yet, or an answer that is not sent yet."""
        return self._waiter is None or self._waiter.done() or self._wire.held

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock for the first request."""
        super().connection_made(transport)
        self._loop = self._in_place
        self._start_head_timer()
        if transport.get_extra_info("sslcontext") is None:
            self._wire.attach(transport.get_extra_info("socket").fileno())

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the clock."""
        self._wire.release()
        self.stop_clock()
        self._stop_send_timer()
        super().connection_lost(exc)

    def receive(self, data: bytes) -> None:
        """Feed aiohttp's parser, one head or body at a time.

        All at once it would forget good requests when a bad one comes behind them, and what comes behind an upgrade
        that nobody offers. It gets no more than it has room for; for the rest it asks with an empty read.
        """
        if self._refused is not None and self._refused_again(self._refused, data):
            return
        self._latest = data if len(data) <= LONGEST else b""
        if self._unread:
            data, self._unread = self._unread + data, b""
        if not data:
            self._feed(b"")
        at = 0
        while at < len(data) and len(self._messages) < self._max_msg_queue_size and not self._reading_paused:
            end = self._framing.first_end(data, at)
            self._feed(data[at:end])
            at = end
        self._unread = data[at:]

    def turned_away(self, klass: int, caller: int) -> None:
        """The request that is being answered was; the like of it can be turned away for less."""
        if self._refusals is not None and not self._messages:
            self._refused = remembered(self._latest, klass, caller)

    def _refused_again(self, refused: Refused, data: bytes) -> bool:
        """Turn away the like of what was turned away before, if that would still be."""
        if self._refusals is None or not refused.is_like(data) or not self.may_leave():
            return False
        answer = self._refusals.answer(refused, self)
        if answer is None or self.transport is None:
            self._refused = None
            return False
        self.transport.write(answer)
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        return True

    def _feed(self, data: bytes) -> None:
        """Watch whether a request head is whole, begun, or not in question."""
        seen, body = self._request_count, self._body
        in_body = body is not EMPTY_PAYLOAD and not body.is_eof()
        web.RequestHandler.data_received(self, data)
        if self._request_count == seen:
            self._framing.follow(data, ())
            if data and not in_body:
                self._grow_head(len(data))
            return
        found = [self._messages[i][0] for i in range(seen - self._request_count, 0)]
        self._framing.follow(data, found)
        self._body = self._messages[-1][1]
        self._head_size = 0
        if self._head_timer is not None:
            self.stop_clock()
        if in_body and not body.is_eof():
            self._break_off(body, found[0])

    def _grow_head(self, size: int) -> None:
        """So many bytes more, and it is still not whole."""
        self._head_size += size
        if self._head_size > MAX_HEAD:
            self.force_close()
        elif self._head_timer is None:
            self._start_head_timer()

    def _break_off(self, body: Any, error: object) -> None:
        """What came is no request: it is where the parser gave up in a body, which aiohttp only tells the next handler.

        The one that reads the body is told too, and who waits for its end waits no longer.
        """
        exception = getattr(error, "exc", None)
        if exception is not None and body is not self._answered:
            body.set_exception(web.RequestPayloadError(problems.of_parser(exception).detail))
        if exception is not None:
            body.feed_eof()

    def may_leave(self) -> bool:
        """Whether aiohttp has answered and sent everything, and has no part of what is read next."""
        waiter = self._waiter
        return (
            waiter is not None
            and not waiter.done()
            and self._framing.between
            and not (self._unread or self._messages or self._close or self._force_close)
            and not (self._upgraded or self._paused or self._reading_paused or self._buffer_paused)
            and self.transport is not None
            and self.transport.get_write_buffer_size() == 0
        )

    def finish(self, rest: bytes) -> bool:
        """Send what the socket did not take at once. False: reading waits until the client has read it."""
        transport = self.transport
        if transport is None:
            return False
        transport.write(rest)
        if transport.is_closing():
            return False
        if transport.get_write_buffer_size() == 0:
            return True
        self._pause_reading_for_buffer()
        transport.set_write_buffer_limits(high=0)  # so that we are told as soon as it is sent
        return False

    def pause_writing(self) -> None:
        """The client takes less than it is sent: start the clock."""
        super().pause_writing()
        self._send_timer = self._loop.call_later(self._site.settings.send_timeout, self._cut)

    def resume_writing(self) -> None:
        """What was waiting to be sent is sent."""
        super().resume_writing()
        self._stop_send_timer()
        if self._wire.held:
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.set_write_buffer_limits()
            self._resume_reading_for_buffer()
            self._wire.go_on()

    def _process_keepalive(self) -> None:
        """As aiohttp does it, which does not know of the requests that others answer."""
        last = self._loop.time() if self._wire.held else self._wire.answered_at
        self._next_keepalive_close_time = max(self._next_keepalive_close_time, last + self._keepalive_timeout)
        super()._process_keepalive()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The problem document for what is no HTTP request, or for what failed outside of every handler."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer is sent in part; the connection cannot be used any more")
        if status < 500 and exc is not None:
            self._count(Counter.MALFORMED)
            return self._refuse(request, problems.of_parser(exc))
        log.error("request failed outside of its handler", exc_info=exc)
        return self._refuse(request, problems.internal())

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """Send the answer; what aiohttp refused itself becomes a problem document first."""
        if resp.status >= 400:  # so that what goes well pays nothing for this
            if isinstance(resp, web.HTTPException):
                resp = self._refuse(request, problems.of_aiohttp(resp, request.path))
            elif resp.status == SLOW:
                self._lingering_time = 0.0  # it has been waited for long enough
                self._count(Counter.CONNECTIONS_TIMED_OUT)
        self._answered = request.content
        sending = super().finish_response(request, resp, start_time)
        return self._and_wait(sending) if self._messages else sending

    async def _and_wait(self, sending: Coroutine[Any, Any, T]) -> T:
        """Requests that wait here wait for those of others, too, and for what is to be read behind them."""
        sent = await sending
        await asyncio.sleep(0)
        return sent

    def _cut(self) -> None:
        """The client does not read: what is not sent by now never will be."""
        if self.transport is not None:
            self._count(Counter.CONNECTIONS_TIMED_OUT)
            self.transport.abort()

    async def start(self) -> None:
        """Answer requests, until the connection ends."""
        try:
            await super().start()
        finally:
            self._end_in_time(self.transport)

    def force_close(self) -> None:
        """End the connection, as soon as what is written is sent."""
        transport = self.transport
        super().force_close()
        self._end_in_time(transport)

    def _end_in_time(self, transport: asyncio.Transport | None) -> None:
        """What is still to be sent when a connection ends waits no longer for its client than other answers do."""
        if transport is not None and transport.get_write_buffer_size():
            self._loop.call_later(self._site.settings.send_timeout, transport.abort)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """To our log, with the text that aiohttp gives."""
        log.error(str(args[0]) % args[1:] if args else "connection failed", exc_info=kw.get("exc_info"))

    def _refuse(self, request: web.BaseRequest, problem: Problem) -> web.Response:
        return self._site.refuse(problem, request, self._site.request_id(request), self._site.version())

    def _start_head_timer(self) -> None:
        self._head_timer = self._loop.call_later(self._site.settings.header_timeout, self._head_is_late)

    def stop_clock(self) -> None:
        """The head of a request is whole."""
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _head_is_late(self) -> None:
        if self.busy and not self._force_close:
            self._start_head_timer()  # an earlier request is still being answered; its client waits for us
            return
        self._head_timer = None
        self._count(Counter.CONNECTIONS_TIMED_OUT)
        self.force_close()

    def _count(self, counter: Counter) -> None:
        if isinstance(self._site, Site):
            self._site.tally.add(counter, 1)


def compiled(site: Front) -> WireSite:
    """The compiled path of a server. It leaves everything to aiohttp when it is turned off, or there are no scores."""
    return WireSite(site, Patterns(site)) if isinstance(site, Site) else WireSite(None, None)


class Server(web.Server):
    """aiohttp's server of an application, on our connections."""

    def __init__(self, app: web.Application, plain: web.Server, site: Front, **kwargs: Any) -> None:
        shortcuts = Shortcuts(app, plain.request_handler)
        super().__init__(shortcuts.answer, request_factory=plain.request_factory, **kwargs)
        self._site = site
        self.in_place: Any = _InPlace(self._loop)
        self.wires = compiled(site)
        self.refusals = Refusals(site) if isinstance(site, Site) else None
        self.after_loss: Callable[[], None] | None = None
        """Called when a connection has ended."""

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """A connection has ended."""
        super().connection_lost(handler, exc)
        if self.after_loss is not None:
            self.after_loss()

    def __call__(self) -> Connection:
        """A connection that has been accepted."""
        return Connection(self, self._site, self.wires, loop=self._loop, **self._kwargs)

    @property
    def busy(self) -> int:
        """Connections with a request that is not answered yet."""
        return sum(connection.busy for connection in self.connections if isinstance(connection, Connection))


class Runner(web.AppRunner):
    """Runs an application on our connections; gunicorn takes one of these too.

    :meth:`cleanup` is the drain: it stops accepting, answers what is in progress and what comes within a moment on open
    connections (with ``Connection: close``), then closes them all, within the setting ``drain_timeout``.
    """

    def __init__(self, app: web.Application, site: Front) -> None:
        self._kserve_site = site
        super().__init__(
            app,
            access_log=None,
            keepalive_timeout=site.settings.keepalive_timeout,
            lingering_time=LINGER_SECONDS,
            auto_decompress=False,
            shutdown_timeout=CUT_SECONDS,
        )

    async def _make_server(self) -> Server:
        plain = await super()._make_server()
        return Server(self.app, plain, self._kserve_site, **plain._kwargs)

    async def cleanup(self) -> None:
        """Drain, then release everything."""
        self._kserve_site.draining = True
        if isinstance(self.server, Server):
            self.server.wires.on = False
        for site in self.sites:
            await site.stop()
        if isinstance(self.server, Server):
            await self._drain(self.server)
        await super().cleanup()

    async def _drain(self, server: Server) -> None:
        start = time.monotonic()
        end = start + max(self._kserve_site.settings.drain_timeout - 2 * CUT_SECONDS, 0.0)
        while server.connections and time.monotonic() < min(start + LAST_REQUEST_SECONDS, end):
            await asyncio.sleep(POLL_SECONDS)
        while server.busy and time.monotonic() < end:
            await asyncio.sleep(POLL_SECONDS)
        if server.busy:
            log.warning("drain timed out", requests_cut=server.busy)
