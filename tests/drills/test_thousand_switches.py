"""Switches under full read load, over several servers: no failed, no mixed, no older-than-seen answer.

A thousand of them with `make drill`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import timedelta

import aiohttp
import pytest
import snapshots
from drilling import TimeLine
from lengths import FULL
from waiting import PATIENCE

from kserve._roster import Roster
from kserve.settings import Settings
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.orders import Orders

pytestmark = [pytest.mark.heavy, pytest.mark.drill, pytest.mark.timeout(600)]

SWITCHES = 1000 if FULL else 120
SERVERS = 2
CONNECTIONS = 8
"""To each server."""

VERSIONS = 200 if FULL else 40
"""In turn. An answer that is older than one before is taken for a newer one only if its reader waited for so many."""

IDS = range(1, 101)


def score(profile_id: int, number: int) -> float:
    """Every version gives every profile another score."""
    return 10.0 + number / 10 + profile_id / 100


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Published versions, the first one announced."""
    folder = tmp_path_factory.mktemp("switches")
    for number in range(VERSIONS):
        rows = [{"profile_id": i, "score": score(i, number)} for i in IDS]
        made = snapshots.candidate(folder, rows, scored_at=snapshots.NOON + timedelta(minutes=number))
        Catalog(folder).place(made.version)
    snapshots.announce(folder, sorted(os.listdir(folder / "snapshots"))[0])
    return folder


@contextlib.contextmanager
def serving(data):
    """A server as a process of its own; its address."""
    command = [sys.executable, "-m", "kserve", "serve", "--data", str(data)]
    command += ["--port", "0", "--admin-port", "0", "--workers", "1", "--open"]
    environment = os.environ | {"KSERVE_SENTINEL": "false", "KSERVE_SHEDDING__ON": "false"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as server:
        assert server.stdout is not None
        address = next(line for line in server.stdout if "listening" in line)
        reader = threading.Thread(target=server.stdout.read, daemon=True)
        reader.start()
        try:
            yield json.loads(address)["address"]
        finally:
            server.terminate()
            server.wait(PATIENCE)
            reader.join()


class Turn:
    """The number of the announcement that was begun last."""

    begun = 0


class Reader:
    """One connection that asks without a pause, and looks at every answer."""

    def __init__(self, address: str, versions: list[str], turn: Turn) -> None:
        self.address = address
        self.numbers = {version: number for number, version in enumerate(versions)}
        self.turn = turn
        self.seen = 0
        """The announcement that the last answer is of."""
        self.counts: Counter[str] = Counter()

    async def run(self, stop: threading.Event) -> None:
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(self.address, connector=connector) as session:
            while not stop.is_set():
                async with session.get("/v3/scores/77") as answer:
                    document = await answer.json()
                    self.look(answer, document, {77: document.get("score")})
                async with session.post("/v3/scores/batch", json={"ids": [str(i) for i in IDS]}) as answer:
                    document = await answer.json()
                    self.look(answer, document, {int(item["id"]): item["score"] for item in document["scores"]})

    def look(self, answer: aiohttp.ClientResponse, document: dict, scores: dict[int, float]) -> None:
        self.counts["answers"] += 1
        self.counts["failed"] += answer.status != 200
        version = document["version"]
        number = self.numbers[version]
        right = all(round(score(i, number), 2) == found for i, found in scores.items())
        self.counts["mixed"] += not right or answer.headers["Kserve-Version"] != version
        seen = self.seen + (number - self.seen) % VERSIONS
        self.counts["switches"] += seen != self.seen
        if seen <= self.turn.begun:
            self.seen = seen
        else:
            self.counts["older"] += 1


def test_a_thousand_switches_under_load(data):
    line = TimeLine(f"{SWITCHES} switches under full read load: {SERVERS} servers, {CONNECTIONS} connections to each")
    orders = Orders(Catalog(data), Settings(data=data, by="drill"))
    versions = sorted(os.listdir(data / "snapshots"))
    stop, turn = threading.Event(), Turn()
    with contextlib.ExitStack() as stack:
        addresses = [stack.enter_context(serving(data)) for _ in range(SERVERS)]
        line.say("the servers listen")
        readers = [Reader(address, versions, turn) for address in addresses for _ in range(CONNECTIONS)]

        async def load():
            await asyncio.gather(*(reader.run(stop) for reader in readers))

        thread = threading.Thread(target=asyncio.run, args=(load(),))
        thread.start()
        try:
            slowest = switch(data, orders, versions, turn)
        finally:
            stop.set()
            thread.join()
        switched = line.say(f"{SWITCHES} announcements, each served by every server before the next one")
    total = sum((reader.counts for reader in readers), Counter())
    line.say(f"{total['answers']:,} answers: {total['failed']} failed, {total['mixed']} mixed, {total['older']} older")
    line.say(
        f"from announcement to served everywhere: {switched / SWITCHES * 1e3:.0f} ms, at most {slowest * 1e3:.0f} ms"
    )
    assert (total["failed"], total["mixed"], total["older"]) == (0, 0, 0)
    assert total["answers"] > 10 * len(readers)
    assert all(reader.counts["switches"] > SWITCHES / 20 for reader in readers)


def switch(data, orders, versions, turn) -> float:
    """Announce in turn, each when every server serves the one before; the longest that took."""
    roster = Roster(data / "ROSTER")
    slowest = 0.0
    for turn.begun in range(1, SWITCHES + 1):
        version = versions[turn.begun % VERSIONS]
        start = time.monotonic()
        orders.announce(version, against=orders.catalog.live())
        while {seat.version for seat in roster.seats()} != {version}:
            assert time.monotonic() < start + PATIENCE, f"not served everywhere: {roster.seats()}"
            time.sleep(0.001)
        slowest = max(slowest, time.monotonic() - start)
    return slowest
