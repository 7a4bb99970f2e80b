"""Workers that are killed and servers that are ended, again and again, while clients ask all the time.

One of each with the other tests; `make drill` does a hundred.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from drilling import TimeLine
from lengths import FULL
from serving.hammer import Hammer
from serving.processes import Served, servers
from serving.support import FIRST_DAY, publish, rows
from waiting import PATIENCE, until

pytestmark = [pytest.mark.heavy, pytest.mark.drill, pytest.mark.timeout(1800)]

TIMES = 100 if FULL else 1
RELOADS = 20
WORKERS = 2
BACK_WITHIN = 2.0
"""Seconds; on a machine that has other work, what a server takes to start, of which this is a part."""
RESERVE = 0.5
"""Of what the clients could ask for, they ask for this: half load."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers") / "data"
    publish(folder, rows(0.0), FIRST_DAY)
    return folder


def pause_at_half_load(server: Served, clients: int) -> float:
    """Seconds between two requests of a client at which all together ask for half of what they could."""
    with Hammer(server.port, clients, pause=0.0) as hammer:
        time.sleep(1.0)
    return clients / (hammer.answered * RESERVE)


@contextlib.contextmanager
def at_half_load(data: Path) -> Iterator[tuple[Served, Hammer]]:
    """A server, and clients who ask for half of what it could answer."""
    with (
        servers(data, 1, workers=str(WORKERS), drain_timeout="5") as (server,),
        Hammer(server.port, 12, pause_at_half_load(server, 12)) as hammer,
    ):
        yield server, hammer


def all_open(server: Served, but: int) -> bool:
    found = server.ready()["workers"]
    return but not in {w["pid"] for w in found} and [w["state"] for w in found] == ["open"] * WORKERS


def test_killed_workers(data: Path) -> None:
    """kill -9 of a worker: only the connections of that worker die, nobody is refused, and it is back in time."""
    line = TimeLine(f"kill -9 of one of {WORKERS} workers under load, {TIMES} times")
    seconds, took = [], []
    with servers(data, 1, workers=str(WORKERS)) as (server,), Hammer(server.port, clients=16) as hammer:
        for _ in range(TIMES):
            until(lambda: all(worker["connections"] >= 4 for worker in server.ready()["workers"]))
            dead, before = random.choice(server.workers), len(hammer.lost)
            os.kill(dead, signal.SIGKILL)
            seconds.append(until(lambda dead=dead: all_open(server, dead)))
            time.sleep(0.05)
            lost = hammer.lost[before:]
            assert len({found.worker for found in lost} - {""}) <= 1
            took.append(len(lost))
    line.say(f"back after {statistics.median(seconds):.2f} s, at most {max(seconds):.2f} s")
    line.say(f"{sum(took)} requests died with their worker, at most {max(took)}; {hammer.answered:,} were answered")
    line.say(f"{hammer.connected:,} connections made, {len(hammer.refused)} refused")
    assert max(seconds) < max(BACK_WITHIN, server.seconds_to_start)
    assert hammer.refused == []
    assert set(hammer.statuses) == {200}


def test_ended_workers(data: Path) -> None:
    """SIGTERM to a worker: it finishes what it has, another takes its place, nobody notices."""
    line = TimeLine(f"SIGTERM to one of {WORKERS} workers at half load, {TIMES} times")
    with at_half_load(data) as (server, hammer):
        for _ in range(TIMES):
            ended = random.choice(server.workers)
            os.kill(ended, signal.SIGTERM)
            until(lambda ended=ended: all_open(server, ended))
    line.say(f"{hammer.answered:,} answered, {len(hammer.lost)} lost, {len(hammer.refused)} refused")
    assert (hammer.lost, hammer.refused, set(hammer.statuses)) == ([], [], {200})


def test_ended_servers(data: Path) -> None:
    """SIGTERM to the server: every request that it took is answered, and then it is gone."""
    line = TimeLine(f"SIGTERM to a server at half load, {TIMES} times")
    answered, seconds = 0, []
    pause = 0.0
    for _ in range(TIMES):
        with servers(data, 1, workers=str(WORKERS), drain_timeout="10") as (server,):
            pause = pause or pause_at_half_load(server, 12)
            with Hammer(server.port, 12, pause) as hammer:
                time.sleep(0.3)
                start = time.monotonic()
                server.process.send_signal(signal.SIGTERM)
                assert server.process.wait(PATIENCE) == 0
                seconds.append(time.monotonic() - start)
                hammer.join()
            assert hammer.lost == []
            assert set(hammer.statuses) == {200}
            answered += hammer.answered
    line.say(f"{answered:,} answered, none lost; a server ends after {statistics.median(seconds):.2f} s")


@pytest.mark.skipif(not FULL, reason="tests/serving has one reload; `make drill` repeats it")
def test_reloads(data: Path) -> None:
    line = TimeLine(f"a reload at half load, {RELOADS} times")
    with at_half_load(data) as (server, hammer):
        for _ in range(RELOADS):
            before = server.children()
            server.process.send_signal(signal.SIGHUP)
            until(lambda before=before: len(server.children() - before) == WORKERS + 1)
            until(lambda before=before: not server.children() & before)
    line.say(f"{hammer.answered:,} answered, {len(hammer.lost)} lost, {len(hammer.refused)} refused")
    assert (hammer.lost, hammer.refused, set(hammer.statuses)) == ([], [], {200})
