"""Closed load: wrk and redis-benchmark on the last core, with as many connections as they are asked for."""

from __future__ import annotations

import csv
import os
import re
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench._harness import Report, Skip, plain_environment
from bench._servers import HOST, Target, core

CONNECTIONS = 64
SCRIPT = """
local requests, at = {}, 0
function init()
  local file = io.open("FILE", "rb")
  while true do
    local length = file:read(8)
    if not length then break end
    requests[#requests + 1] = file:read(tonumber(length))
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
"""
FIRST_REQUESTS = 2000


class Rate(NamedTuple):
    """Requests a second, and how much of a core the client and the server had meanwhile."""

    a_second: float
    client: float
    server: float


class Wrk:
    """wrk with these requests, in turn; each is sent at once, and may be several in a pipeline. ``close`` it."""

    def __init__(self, requests: Sequence[bytes]) -> None:
        if shutil.which("wrk") is None:
            raise Skip("wrk is not installed")
        self._folder = tempfile.TemporaryDirectory(prefix="kserve-bench-")
        file, self.script = (Path(self._folder.name, name) for name in ("requests", "script.lua"))
        file.write_bytes(b"".join(b"%8d" % len(request) + request for request in requests))
        self.script.write_text(SCRIPT.replace("FILE", str(file)))

    def __enter__(self) -> Wrk:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def __call__(self, target: Target, seconds: int, connections: int = CONNECTIONS) -> Rate:
        """Raises RuntimeError when an answer was not 200, or did not come."""
        script = ["-s", str(self.script), f"http://{HOST}:{target.port}"]
        output, client, server = _timed(["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", *script], target)
        if "Non-2xx" in output or "Socket errors" in output:
            raise RuntimeError(output)
        found = re.search(r"Requests/sec:\s+([\d.]+)", output)
        assert found is not None, output
        return Rate(float(found[1]), client, server)


class RedisBenchmark:
    """redis-benchmark with one command, over and over. ``keyspace``: it draws numbers below this for __rand_int__."""

    def __init__(self, command: Sequence[str], pipeline: int = 1, keyspace: int | None = None) -> None:
        if shutil.which("redis-benchmark") is None:
            raise Skip("redis-benchmark is not installed")
        drawn = [] if keyspace is None else ["-r", str(keyspace)]
        self._start = ["redis-benchmark", "--csv", "-c", str(CONNECTIONS), "-P", str(pipeline), *drawn]
        self._command = list(command)
        self._requests = FIRST_REQUESTS

    def __call__(self, target: Target, seconds: int) -> Rate:
        """It has no clock: how many requests make so many seconds is learnt from the run before; the first is short."""
        command = [*self._start, "-h", HOST, "-p", str(target.port), "-n", str(self._requests), *self._command]
        output, client, server = _timed(command, target)
        rate = float(list(csv.reader(output.splitlines()))[-1][1])
        self._requests = max(int(rate * seconds), FIRST_REQUESTS)
        return Rate(rate, client, server)


def _timed(command: list[str], target: Target) -> tuple[str, float, float]:
    """What it prints, and shares of a core: its own, the server's."""
    children, server, start = resource.getrusage(resource.RUSAGE_CHILDREN), target.cpu(), time.monotonic()
    output = subprocess.run(
        [*core(-1), *command], check=True, capture_output=True, text=True, env=plain_environment()
    ).stdout
    seconds = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
    return output, used / seconds, (target.cpu() - server) / seconds


class Shares:
    """How busy both sides were, by contender: who waits for whom decides what a rate means."""

    def __init__(self) -> None:
        self._found: dict[str, list[Rate]] = {}

    def measured(self, name: str, measure: Callable[[], Rate]) -> Callable[[], float]:
        """A contender that gives its rate, and leaves the rest here."""

        def contend() -> float:
            rate = measure()
            self._found.setdefault(name, []).append(rate)
            return rate.a_second

        return contend

    def tell(self, report: Report) -> None:
        """A note with the medians."""
        told = [
            f"{name} {statistics.median(rate.server for rate in rates):.2f} / "
            f"{statistics.median(rate.client for rate in rates):.2f}"
            for name, rates in self._found.items()
        ]
        report.notes.append(f"of its core the server / the load generator used: {'; '.join(told)}")
        report.notes.append(f"{CONNECTIONS} connections; {os.cpu_count()} cores, the servers on the first")
