"""`kserve serve` as real processes on one data directory, load on them, and what the roster says of them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from threads import Threads
from waiting import PATIENCE

from kserve._roster import Roster, SeatView
from kserve.settings import Settings
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.orders import Orders

KSERVE = [sys.executable, "-m", "kserve"]


OFFICE = ("/metrics", "/status", "/console")
"""Paths that begin like this are asked of the office."""

USUAL = {"open": "true", "workers": "1", "admin_port": "0", "shedding__on": "false"}


class Served:
    """One `kserve serve`, with one worker and open unless told otherwise. Settings are KSERVE_* without the prefix."""

    def __init__(self, data: Path, **settings: str) -> None:
        given = USUAL | settings
        environment = dict(os.environ) | {f"KSERVE_{name.upper()}": value for name, value in given.items()}
        self._log = os.memfd_create("log")
        self._started = time.monotonic()
        self.seconds_to_start = 0.0
        """How fast the machine is just now."""
        self.process = subprocess.Popen(
            [*KSERVE, "serve", "--port", "0", "--json", "--data", str(data)],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.pid = self.process.pid
        """The arbiter."""
        self.port = self.office_port = 0
        self.final_log = ""

    def wait_until_it_listens(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log()
        self.seconds_to_start = time.monotonic() - self._started
        told = json.loads(line)
        self.port, self.office_port = (int(told[name].rpartition(":")[2]) for name in ("address", "admin"))

    @property
    def workers(self) -> list[int]:
        """Their process ids, in no order."""
        return [worker["pid"] for worker in self.ready()["workers"]]

    @property
    def worker(self) -> int:
        """The process id of the only one."""
        (pid,) = self.workers
        return pid

    def children(self) -> set[int]:
        """All processes of this server but the arbiter."""
        return {int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()}

    def ready(self) -> Any:
        """What the office says of the host."""
        return self.get("/readyz", self.office_port)

    def log(self) -> str:
        """What it has logged so far."""
        return os.pread(self._log, 1 << 20, 0).decode()

    def get(self, path: str, port: int = 0) -> Any:
        """The JSON of an answer, or its text."""
        port = port or (self.office_port if path.startswith(OFFICE) else self.port)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)) as connection:
            connection.request("GET", path)
            body = connection.getresponse().read()
            return json.loads(body) if body.startswith(b"{") else body.decode()

    def kill(self) -> None:
        """All of it at once, so that nothing can be ended in order."""
        everybody = [self.pid, *self.children()]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        for pid in everybody:
            os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE)

    def close(self) -> None:
        with self.process:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENCE)
        self.final_log = self.log()
        os.close(self._log)


@contextlib.contextmanager
def servers(data: Path, count: int, **settings: str) -> Iterator[list[Served]]:
    """So many of them; ended at the end, those that a test killed too."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            server = Served(data, **{"drain_timeout": "1", **settings})
            stack.callback(server.close)
            found.append(server)
        for server in found:
            server.wait_until_it_listens()
        yield found


class Load(Threads):
    """One connection to each server that asks for one id after another; keeps what it was told, when and by whom."""

    def __init__(self, found: Iterable[Served], ids: Callable[[int], int], path: str = "/v3/scores/{}") -> None:
        self.told: list[tuple[float, str, float | None]] = []
        self._ids = ids
        self._path = path
        super().__init__(partial(self._run, server) for server in found)

    def _run(self, server: Served) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        turn = 0
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            while not self.stopping.is_set():
                turn += 1
                connection.request("GET", self._path.format(self._ids(turn)))
                response = connection.getresponse()
                answer = json.loads(response.read())
                self.told.append((time.monotonic(), response.headers["Kserve-Version"], answer.get("score")))


def seats(data: Path) -> list[SeatView]:
    """The living processes, by place."""
    return Roster(Catalog(data).roster).seats()


def orders(data: Path) -> Orders:
    """The acts on a data directory, for this process."""
    return Orders(Catalog(data), Settings(data=data))


def acts(data: Path) -> list[str]:
    """What the log has, in order."""
    return [entry.act for entry in Catalog(data).log.entries()]
