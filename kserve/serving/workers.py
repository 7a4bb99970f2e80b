"""The workers of `kserve serve`: gunicorn's configuration, made from ours, and what one worker process is."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from aiohttp.worker import GunicornUVLoopWebWorker
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

import kserve
from kserve._tally import Counter
from kserve.errors import KserveError
from kserve.serving.accepting import Door
from kserve.serving.app import SITE, make_app
from kserve.serving.protocol import Runner
from kserve.serving.site import log
from kserve.settings import Settings

if TYPE_CHECKING:
    from kserve.serving.supervisor import Supervisor

HANGS_SECONDS = 30
"""A worker whose loop gives no sign of life for so long is killed."""

BEAT_SECONDS = 1.0
"""How often it gives one."""

BOOT_FAILED = 3
"""Exit code of a worker that could not start."""


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


class Quiet(Logger):  # type: ignore[misc]
    """gunicorn's log, in ours: what it warns of. What happens is told by the supervisor."""

    def setup(self, cfg: Any) -> None:
        """No handler of its own, no access log."""
        self.cfg = cfg
        self._access_log_enabled = False
        self.error_log.setLevel(logging.WARNING)
        self.error_log.propagate = True


class Application(BaseApplication):  # type: ignore[misc]
    """gunicorn's configuration, made from ours; nothing of it is read from a file, the environment or arguments."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        """What differs from gunicorn's defaults, and what it would take from the environment."""
        given = {
            "bind": ["127.0.0.1:0"],  # the supervisor brings its sockets
            "workers": self._settings.workers or cores(),
            "worker_class": Worker,
            "logger_class": Quiet,
            "timeout": HANGS_SECONDS,
            "control_socket_disable": True,
            "worker_tmp_dir": "/dev/shm" if os.access("/dev/shm", os.W_OK) else None,
            "forwarded_allow_ips": "127.0.0.1",
            "pre_fork": _before_fork,
            "post_fork": _after_fork,
        }
        for name, value in given.items():
            self.cfg.set(name, value)

    def load(self) -> None:
        """The workers make their applications themselves."""


def _before_fork(supervisor: Supervisor, worker: Worker) -> None:
    taken = {sibling.place for sibling in supervisor.WORKERS.values()}
    worker.place = min(set(range(len(supervisor.places))) - taken)
    worker.supervisor = supervisor
    supervisor.places.take(worker.place, 0)
    supervisor.tally.add(Counter.WORKERS_STARTED, 1)


def _after_fork(supervisor: Supervisor, worker: Worker) -> None:
    supervisor.places.take(worker.place, os.getpid())
    supervisor.admin.close()
    supervisor.tally.leave()  # this process has one of its own


class Worker(GunicornUVLoopWebWorker):
    """One process that serves scores."""

    place: int
    supervisor: Supervisor

    def init_signals(self) -> None:
        """SIGTERM drains; what a terminal sends to all its processes is for the arbiter, which tells us."""
        super().init_signals()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH):
            self.loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    def load_wsgi(self) -> None:
        """The factory that the loop asks for a runner."""
        self.wsgi = self._runner

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Drain: now, not at the next beat."""
        self.handle_quit(sig, frame)

    def run(self) -> None:
        """Until SIGTERM. A worker that cannot start says why, and ends with BOOT_FAILED."""
        try:
            super().run()
        except (KserveError, OSError) as error:
            log.error("worker failed", booted=self.booted, error=str(error))
            sys.exit(1 if self.booted else BOOT_FAILED)
        except Exception as error:
            log.error("worker failed", booted=self.booted, exc_info=error)
            sys.exit(1 if self.booted else BOOT_FAILED)

    async def _runner(self) -> Runner:
        signal.pthread_sigmask(
            signal.SIG_UNBLOCK, {signal.SIGTERM}
        )  # held back so far: uvloop forgets it before it runs
        settings = self.supervisor.settings
        beats = self.loop.create_task(self._beat())
        opened = functools.partial(kserve.open, settings.data, settings=settings)
        store = await self.loop.run_in_executor(None, opened)
        app = make_app(store, settings)

        async def end(app: Any) -> None:
            beats.cancel()
            await asyncio.to_thread(store.close)

        app.on_cleanup.append(end)
        return WorkerRunner(app, self)

    async def _beat(self) -> None:
        """A sign of life: also while the snapshot is opened, and while the last requests are answered."""
        while True:
            self.notify()
            await asyncio.sleep(BEAT_SECONDS)


class WorkerRunner(Runner):
    """A runner that takes connections as soon as it is set up."""

    def __init__(self, app: Any, worker: Worker) -> None:
        super().__init__(app, app[SITE])
        self._worker = worker

    async def setup(self) -> None:
        """Start, and tell the arbiter."""
        await super().setup()
        worker = self._worker
        (listener,) = worker.sockets
        worker.sockets = []  # or aiohttp would accept from it too
        limit = worker.supervisor.settings.max_connections
        site = self.app[SITE]
        door = Door(self, site, listener, worker.supervisor.places, worker.place, limit, site.tally)
        site.seat.open_to("server", door.name)
        await door.start()
        if os.getppid() == worker.ppid:
            os.kill(worker.ppid, signal.SIGUSR1)
