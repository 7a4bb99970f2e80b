"""`kserve serve`: gunicorn's arbiter, which keeps the workers, and the office beside them, running."""

from __future__ import annotations

import gc
import os
import queue
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import gunicorn.systemd
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from kserve._limits import Limits
from kserve._tally import Counter, Gauge, Tally
from kserve.serving import leases, logs, office, reloading
from kserve.serving.accepting import STARTING, Table, address_of, listening, refuse_new
from kserve.serving.keys import Keys
from kserve.serving.protocol import assert_c_parser
from kserve.serving.reloading import Handover
from kserve.serving.samples import limits_file, tally_file
from kserve.serving.site import log
from kserve.serving.till import client_of
from kserve.serving.workers import BOOT_FAILED, Application, Worker
from kserve.settings import Settings
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.watch import Gate, in_force

Told = Callable[[dict[str, Any]], None]
"""Given ``address``, ``admin`` and ``pid`` once every worker listens."""

GRACE_SECONDS = 2.0
"""Beyond ``drain_timeout``, until what has not ended is killed."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.25, 15.0
"""Seconds between two attempts to start what does not start."""

STABLE_SECONDS = 10.0
"""An office that lived for so long is started again at once."""

SPARE_DESCRIPTORS = 256
"""That a worker needs beside its connections."""


def run(settings: Settings, told: Told | None = None) -> NoReturn:
    """Serve the announced snapshot of ``settings.data`` with ``settings.workers`` processes until SIGTERM or SIGINT.

    Raises NothingPublished or SnapshotError if there is nothing to serve, SettingError if an address cannot be had.
    """
    logs.configure()
    assert_c_parser()
    handover = reloading.received() or Handover()
    taken_over = handover.sockets()
    if taken_over is None:  # else there was a trial a moment ago, and whoever fails now ends what serves well
        _check_servable(settings)
    if handover.trial:
        sys.exit(0)
    sockets = taken_over or (
        listening(settings.host, settings.port),
        listening(settings.admin_host, settings.admin_port, "admin_port"),
    )
    _say_who_may_read(settings)
    _allow_descriptors(settings.max_connections)
    gc.collect()
    gc.freeze()  # so that collections in the workers leave the pages that they share alone
    Supervisor(settings, *sockets, handover, told).run()
    raise AssertionError("an arbiter ends by SystemExit")


def _check_servable(settings: Settings) -> None:
    """What keeps every worker from starting is told before there is any."""
    quickly = settings.model_copy(update={"warm": False, "verify_at_open": "structure"})
    catalog = Catalog(settings.data)
    in_force(catalog, quickly, Gate(catalog, quickly))
    if settings.redis is not None:
        client_of(settings)


def _say_who_may_read(settings: Settings) -> None:
    if settings.open:
        log.warning("open: whoever can reach this server may read all scores, without a key and without limits")
    elif not Keys(settings.data).exist("score:read"):
        log.warning("there are no keys: every request is refused; see `kserve keys create`, or serve with --open")


def _allow_descriptors(connections: int) -> None:
    """As many as the system lets us have."""
    wanted = connections + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
        if allowed < wanted:
            log.warning("fewer connections than max_connections are possible", file_descriptors=allowed)


class Retry:
    """When to start again what does not start: later each time."""

    def __init__(self) -> None:
        self._failures = 0
        self._at = 0.0

    def failed(self) -> None:
        """Once more."""
        self._at = time.monotonic() + min(SHORTEST_PAUSE * 2**self._failures, LONGEST_PAUSE)
        self._failures = min(self._failures + 1, 16)

    def succeeded(self) -> None:
        """It runs."""
        self._failures = 0

    @property
    def due(self) -> bool:
        """Whether to try now."""
        return time.monotonic() >= self._at


class Supervisor(Arbiter):  # type: ignore[misc]
    """gunicorn's arbiter, with an office, and with ways of its own to begin, to reload and to end."""

    WORKERS: dict[int, Worker]

    def __init__(
        self, settings: Settings, public: socket.socket, admin: socket.socket, handover: Handover, told: Told | None
    ) -> None:
        self.settings = settings
        self.admin = admin
        self._public = public
        self._told = told
        self._old = set(handover.children)
        """Children of the image before this one; they serve until ours do."""
        self._kill_old_at = float("inf")
        self._up = False
        self._reason = ""
        self._trial = 0
        self._office = 0
        self._office_since = 0.0
        self._retry_workers, self._retry_office = Retry(), Retry()
        super().__init__(Application(settings))
        self.places = Table(self.num_workers)
        self.LISTENERS, self.WORKERS = [public], {}

    def start(self) -> None:
        """Handlers first; `run` of gunicorn's arbiter goes on from here."""
        self.pid = os.getpid()
        self._stats["start_time"] = time.time()
        self._found = reloading.be_found(self.settings.data)
        if not self._old or self.settings.redis is None:  # the buyer of the image before this one knows better
            leases.prepare(self.settings, Limits(limits_file(self.settings.data)))
        self.tally = Tally(tally_file(self.settings.data), "arbiter")
        self.init_signals()
        reloading.listen()

    # What is kept running.

    def manage_workers(self) -> None:
        """Start what is missing; look how far it is."""
        if self._retry_workers.due:
            super().manage_workers()
        if not self._office and self._retry_office.due:
            self._start_office()
        self.tally.set(Gauge.WORKERS_WANTED, self.num_workers)
        self.tally.set(Gauge.WORKERS_ALIVE, self.places.accepting())
        if self.places.accepting() == self.num_workers:
            self._retry_workers.succeeded()
            if not self._up:
                self._up = True
                self._say_up()
        if time.monotonic() >= self._kill_old_at:
            self._signal(self._old, signal.SIGKILL)

    def _say_up(self) -> None:
        where = {"address": address_of(self._public), "admin": address_of(self.admin), "pid": self.pid}
        log.info(
            "reloaded" if self._old else "listening",
            **where,
            version=Catalog(self.settings.data).announced(),
            workers=sorted(self.WORKERS),
        )
        if self._old:
            self.tally.add(Counter.RELOADS, 1)
            self._signal(self._old, signal.SIGTERM)
            self._kill_old_at = time.monotonic() + self.settings.drain_timeout + GRACE_SECONDS
        elif self._told is not None:
            self._told(where)
        gunicorn.systemd.sd_notify("READY=1", self.log)

    def spawn_worker(self) -> None:
        """A worker, which lets SIGTERM in when it has a handler for it."""
        with _no_sigterm():
            super().spawn_worker()

    def _start_office(self) -> None:
        self._office_since = time.monotonic()
        with _no_sigterm():
            self._office = os.fork()
            if not self._office:
                self._be_office()

    def _be_office(self) -> NoReturn:
        status = 1
        try:
            self._public.close()
            self.tally.leave()  # the office has one of its own
            office.main(self.settings, self.admin, self.places)
            status = 0
        except Exception as error:
            log.error("the office failed", exc_info=error)
        finally:
            os._exit(status)  # what the arbiter has begun is not ours to end

    def reap_workers(self) -> None:
        """See to the children that have ended."""
        for pid, status in _ended():
            worker = self.WORKERS.pop(pid, None)
            code = os.waitstatus_to_exitcode(status)
            if worker is not None:
                self._lose(worker, code)
            elif pid == self._office:
                self._lose_office(code)
            elif pid == self._trial:
                self._end_trial(code)
            self._old.discard(pid)

    def _lose(self, worker: Worker, code: int) -> None:
        started = self.places.state(worker.place) != STARTING
        worker.tmp.close()
        self.places.free(worker.place)
        if self._reason:
            return
        if code:
            self.tally.add(Counter.WORKERS_DIED, 1)
            log.error("worker ended", worker=worker.pid, **_how(code))
        if not started or code == BOOT_FAILED:
            if not self._up and not self._old:
                raise HaltServer("a worker cannot start", 1)
            self._retry_workers.failed()

    def _lose_office(self, code: int) -> None:
        self._office = 0
        if self._reason:
            return
        log.error("office ended", office_since=round(time.monotonic() - self._office_since), **_how(code))
        if time.monotonic() - self._office_since > STABLE_SECONDS:
            self._retry_office.succeeded()
        else:
            self._retry_office.failed()

    # Reloading.

    def handle_hup(self) -> None:
        """Find out whether a server could start now; if so, become the next image."""
        if not self._up or self._trial:
            log.warning("not reloaded: the server is starting, or reloads already")
            return
        self._trial = reloading.begin_trial()
        log.info("trying whether a server could start", trial=self._trial)

    def _end_trial(self, code: int) -> None:
        self._trial = 0
        if code:
            log.error("not reloaded: a server could not start now; see above why", **_how(code))
            return
        children = [*self.WORKERS, *self._old, *filter(None, [self._office])]
        try:
            reloading.execute(Handover(public=self._public.fileno(), admin=self.admin.fileno(), children=children))
        except OSError as error:
            log.error("not reloaded", error=str(error))

    # The end.

    def handle_term(self) -> NoReturn:
        """Drain."""
        self._reason = self._reason or "SIGTERM"
        raise StopIteration

    def handle_int(self) -> NoReturn:
        """Drain: Ctrl-C."""
        self._reason = "SIGINT"
        self.handle_term()

    handle_quit = handle_int

    def stop(self, graceful: bool = True) -> None:
        """Let every child finish what it has; the second signal ends all at once."""
        self._reason = self._reason or "failure"
        log.info("draining", reason=self._reason, seconds=self.settings.drain_timeout)
        refuse_new(self._public)
        self._public.close()
        self.LISTENERS = []
        until = time.monotonic() + self.settings.drain_timeout + GRACE_SECONDS
        self._signal(self._children(), signal.SIGTERM)
        while self._children() and time.monotonic() < until:
            self._hurry_if_told_again(until)
            self.reap_workers()
        self._signal(self._children(), signal.SIGKILL)
        log.info("stopped")

    def _hurry_if_told_again(self, until: float) -> None:
        try:
            number = self.SIG_QUEUE.get(timeout=max(0.0, min(until - time.monotonic(), 0.1)))
        except queue.Empty:
            return
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self._signal(self._children(), signal.SIGKILL)
            os._exit(128 + number)

    def _children(self) -> set[int]:
        return {*self.WORKERS, *self._old, *filter(None, [self._office])}

    def _signal(self, children: set[int], number: signal.Signals) -> None:
        for pid in children:
            os.kill(pid, number)  # nobody else takes its number before we have reaped it

    def _ignore(self) -> None:
        """Of gunicorn's other signals none means anything here; SIGUSR1 is how a worker says that it listens."""

    handle_usr1 = handle_usr2 = handle_ttin = handle_ttou = handle_winch = _ignore


@contextmanager
def _no_sigterm() -> Iterator[None]:
    """A child that is told to end before it has a handler of its own would take it for a signal to the arbiter."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _ended() -> Iterator[tuple[int, int]]:
    """Children that have ended, with their wait status."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def _how(code: int) -> dict[str, Any]:
    return {"signal": signal.Signals(-code).name} if code < 0 else {"exit_code": code}
