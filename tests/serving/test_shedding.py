"""Who is turned away, when, and what it does to the others: the controller in a model, the connections for real."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
import types
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from serving.queueing import Loop
from serving.support import Answer, request, serving
from waiting import PATIENCE

from kserve._shed import CLASS_NAMES, Shedder, now_us
from kserve._tally import Tally
from kserve.serving import shedding as rooms
from kserve.serving.problems import Problem
from kserve.serving.protocol import Runner
from kserve.serving.refusals import Refusals, remembered
from kserve.serving.shedding import Flight, Shedding
from kserve.serving.site import Front, respond
from kserve.settings import Settings
from kserve.settings import Shedding as Given

CAPACITY = 5000
MS = 1000
SECOND = 1_000_000


def told(shedder: Shedder, delay_ms: float, from_ms: int, to_ms: int, computing: float = 1.0) -> None:
    """This delay every 5 ms of that time, of which so much was spent computing."""
    for ms in range(from_ms, to_ms, 5):
        shedder.measured(round(delay_ms * MS), ms * MS, round(computing * ms * MS))


def overloaded(classes: list[int], callers: range = range(400), delay_ms: float = 40) -> Shedder:
    """After 300 ms of too much, with requests of these classes and callers."""
    shedder = Shedder()
    for ms in range(0, 300, 5):
        for caller in callers:
            shedder.admits(classes[(caller + ms) % len(classes)], caller * 7919)
        shedder.measured(round(delay_ms * MS), ms * MS, ms * MS)
    return shedder


def test_a_short_queue_turns_nobody_away() -> None:
    shedder = Shedder(target=0.005, interval=0.1)
    for start in range(0, 2000, 100):
        told(shedder, 8, start, start + 85)
        told(shedder, 1, start + 85, start + 100)
        assert all(shedder.admits(klass, 1) for klass in range(6))
    assert shedder.share == 1.0


def test_a_queue_that_stays_does() -> None:
    shedder = Shedder(target=0.005, interval=0.1)
    for _ in range(100):
        shedder.admits(5, 1)
    told(shedder, 6, 0, 95)
    assert shedder.share == 1.0
    told(shedder, 20, 95, 300)
    assert shedder.share < 1.0


def test_all_are_served_again_when_it_is_gone() -> None:
    shedder = overloaded([1])
    assert shedder.share < 1.0
    told(shedder, 0.2, 300, 5000, 0.1)
    assert shedder.share == 1.0
    assert shedder.kept == (1.0,) * 6


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True), st.integers(9, 200))
def test_a_class_goes_wholly_before_the_next_is_touched(classes: list[int], delay_ms: int) -> None:
    kept = overloaded(classes, delay_ms=delay_ms).kept
    assert len(kept) == len(CLASS_NAMES)
    assert list(kept) == sorted(kept, reverse=True)
    assert sum(0 < share < 1 for share in kept) <= 1


def test_whole_callers_are_turned_away() -> None:
    shedder = overloaded([1])
    callers = [number * 104729 for number in range(2000)]
    answers = {caller: {shedder.admits(1, caller) for _ in range(8)} for caller in callers}
    mixed = sum(len(found) > 1 for found in answers.values())
    assert sum(found == {True} for found in answers.values()) > 0
    assert sum(found == {False} for found in answers.values()) > 0
    assert mixed < 2000 / 256 * 3


def test_other_callers_in_another_hour() -> None:
    shedder = overloaded([1])
    callers = [number * 104729 for number in range(1000)]
    shedder.renew(1)
    before = [shedder.admits(1, caller) for caller in callers]
    shedder.renew(1)
    assert sum(a != b for a, b in zip(before, (shedder.admits(1, c) for c in callers), strict=True)) < 12
    shedder.renew(2)
    assert sum(a != b for a, b in zip(before, (shedder.admits(1, c) for c in callers), strict=True)) > 100


def test_two_workers_turn_the_same_callers_away() -> None:
    one, other = overloaded([1]), overloaded([1])
    same = sum(one.admits(1, caller) == other.admits(1, caller) for caller in range(0, 10**7, 10007))
    assert same > 970


def test_one_caller_alone_is_served_in_part() -> None:
    loop = Loop(callers=1, connections=1000)
    windows = loop.run(lambda _: 3 * CAPACITY, 3)
    assert statistics.mean(window.goodput for window in windows[2:]) > 0.85 * CAPACITY


def test_who_is_peeked_at_is_not_asked_twice() -> None:
    shedder = overloaded([1])
    passed = [caller for caller in range(100_000) if shedder.peeks(1, caller)]
    assert 0 < len(passed) < 100_000
    assert all(shedder.admits(1, caller) for caller in passed)
    assert sum(shedder.turned_away) - 100_000 + len(passed) >= 0


def test_served_and_turned_away_are_counted() -> None:
    shedder = overloaded([0, 5])
    before = sum(shedder.served) + sum(shedder.turned_away)
    answers = [shedder.admits(klass, 99 * klass) for klass in range(6)]
    shedder.refuses(2, 1)
    assert sum(shedder.served) + sum(shedder.turned_away) == before + 7
    assert not answers[5]


def test_retry_after_is_spread_over_its_range() -> None:
    shedder = Shedder(retry_after=3)
    assert {shedder.retry_after() for _ in range(500)} == {3, 4, 5, 6}


def test_a_pass_that_does_not_end_is_noticed_in_it() -> None:
    shedder = Shedder()
    shedder.measured(0, now_us())
    shedder.expect(now_us())
    end = time.monotonic() + PATIENCE
    while shedder.admits(1, 5):
        assert time.monotonic() < end
    assert shedder.share < 1


@pytest.mark.parametrize("times", [1.5, 2, 4, 8, 24])
def test_goodput_is_a_plateau(times: float) -> None:
    loop = Loop()
    windows = loop.run(lambda _: times * CAPACITY, 3)
    late = windows[2:]
    goodput = [window.goodput for window in late]
    assert statistics.mean(goodput) > 0.87 * CAPACITY
    assert min(goodput) > 0.75 * CAPACITY  # it does not swing
    assert max(window.p99 for window in late) < 0.05


def test_a_surge_leaves_nothing_behind() -> None:
    loop = Loop()
    loop.run(lambda _: 0.7 * CAPACITY, 1)
    loop.run(lambda _: 24 * CAPACITY, 2)
    loop.run(lambda _: 0.7 * CAPACITY, 1.5)
    after = loop.run(lambda _: 0.7 * CAPACITY, 1)
    assert all(window.turned_away == window.missed == 0 for window in after)
    assert all(window.share == 1 and window.p99 < 0.02 for window in after)


@given(st.integers(6, 300), st.floats(0, 0.15))
def test_a_starved_loop_with_little_to_do_turns_nobody_away(delay_ms: int, computing: float) -> None:
    shedder = Shedder()
    for ms in range(0, 3000, 5):
        assert shedder.admits(5, ms)
        shedder.measured(delay_ms * MS, ms * MS, round(computing * ms * MS))
    assert shedder.share == 1.0


def test_a_loop_below_its_capacity_is_left_alone() -> None:
    assert all(window.turned_away == 0 for window in Loop().run(lambda _: 0.85 * CAPACITY, 3))


def test_who_waits_for_a_processor_still_serves() -> None:
    # Two thirds of the time others have the processor, whatever this loop does: turning away does not help.
    loop = Loop(others=0.006)
    windows = loop.run(lambda _: 3 * CAPACITY, 4)
    assert statistics.mean(window.goodput for window in windows[3:]) > 0.6 * CAPACITY / 3


def test_the_limit_of_what_waits_finds_its_size() -> None:
    flight = Flight()
    for _ in range(500):  # two threads of 10 ms each, and as many wait as may
        waiting = round(flight.limit)
        flight._learn(0.01, 1)
        flight._learn(0.005 * max(waiting, 2), waiting)
    assert 4 <= flight.limit < 30
    flight.waiting = round(flight.limit * 1.3)
    assert [flight.has_room(klass) for klass in range(6)] == [True, True, True, True, False, False]


def test_the_limit_grows_while_waits_are_short() -> None:
    flight = Flight()
    flight._learn(0.01, 1)
    for _ in range(200):
        flight._learn(0.011, round(flight.limit))
    assert flight.limit > 200


async def test_what_waits_is_counted() -> None:
    flight = Flight()
    work = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(flight.run(work))
    await asyncio.sleep(0)
    assert flight.waiting == 1
    work.set_result("done")
    assert await task == "done"
    assert flight.waiting == 0


class Small:
    """A small aiohttp server with shedding; each answer takes ``seconds`` of the loop."""

    def __init__(self, **given: float) -> None:
        settings = Settings(shedding=Given(**given))
        self.front = Front(settings)
        self.shedding = Shedding(settings.shedding, Tally(None, "worker"))
        self.seconds = 0.0

    async def answer(self, asked: web.Request) -> web.Response:
        identity = self.front.request_id(asked)
        try:
            self.shedding.admit(5, 77, asked.protocol)
        except Problem as problem:
            return self.front.refuse(problem, asked, identity, None)
        time.sleep(self.seconds)
        return respond(200, b"{}", {}, identity, None)

    async def start(self) -> int:
        app = web.Application()
        app.router.add_get("/", self.answer)
        self.runner = Runner(app, self.front)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.shedding.start()
        return site.port


@pytest.fixture
async def small(request: pytest.FixtureRequest) -> AsyncIterator[Small]:
    made = Small(interval=0.05, **getattr(request, "param", {}))
    yield made
    made.shedding.stop()
    await made.runner.cleanup()


async def asked(streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> tuple[int, dict[str, str], bytes]:
    """One request on a connection: status, headers and body."""
    reader, writer = streams
    writer.write(request("GET", "/"))
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def turn_everyone_away(shedder: Shedder, seconds: int = 60) -> None:
    """As if the loop was late by far for so long from now on; what really happens meanwhile is not looked at."""
    for _ in range(1000):
        shedder.admits(0, 1)
    now, computed = time.monotonic_ns() // 1000, time.thread_time_ns() // 1000
    for ahead in range(20 * MS, seconds * SECOND, 20 * MS):
        shedder.measured(SECOND, now + ahead, computed + ahead // 2)


async def test_the_answer_to_one_who_is_turned_away(small: Small) -> None:
    port = await small.start()
    streams = await asyncio.open_connection("127.0.0.1", port)
    assert (await asked(streams))[0] == 200
    turn_everyone_away(small.shedding.shedder)
    status, headers, body = await asked(streams)
    assert (status, headers["content-type"]) == (503, "application/problem+json")
    assert headers["retry-after"] in {"2", "3", "4"}
    assert headers["cache-control"] == "no-store"
    found = json.loads(body)
    assert (found["type"], found["detail"]) == ("urn:kserve:problem:overloaded", rooms.DETAIL)
    streams[1].close()


async def test_who_comes_back_too_soon_waits_and_is_turned_away_again(small: Small) -> None:
    port = await small.start()
    streams = await asyncio.open_connection("127.0.0.1", port)
    turn_everyone_away(small.shedding.shedder, 2)
    start = time.monotonic()
    assert (await asked(streams))[0] == 503
    small.shedding.shedder.measured(0, time.monotonic_ns() // 1000)
    assert (await asked(streams))[0] == 503  # it is read after the pause: too old
    assert time.monotonic() - start > 0.4
    async with asyncio.timeout(PATIENCE):
        while (await asked(streams))[0] != 200:
            await asyncio.sleep(0.1)
    assert not small.shedding.stale
    streams[1].close()


@pytest.mark.parametrize("small", [{"retry_after": 1}], indirect=True)
async def test_who_obeys_is_not_held_up(small: Small) -> None:
    port = await small.start()
    streams = await asyncio.open_connection("127.0.0.1", port)
    turn_everyone_away(small.shedding.shedder, 1)
    status, headers, _ = await asked(streams)
    assert status == 503
    async with asyncio.timeout(PATIENCE):
        while status != 200:  # this machine may really be busy
            await asyncio.sleep(int(headers["retry-after"]))
            assert not small.shedding._paused
            status, headers, _ = await asked(streams)
    streams[1].close()


async def test_only_so_many_connections_are_paused(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "MOST_PAUSED", 3)
    port = await small.start()
    turn_everyone_away(small.shedding.shedder)
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
    for streams in opened:
        await asked(streams)
        assert len(small.shedding._paused) <= 3
    for _, writer in opened:
        writer.close()


async def test_delay_is_what_a_request_waits(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    port = await small.start()
    small.seconds = 0.05
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
    seen = []
    monkeypatch.setattr(
        small.shedding, "_tally", types.SimpleNamespace(time=lambda _, ns: seen.append(ns / 1e9), set=max)
    )
    start = time.monotonic()
    await asyncio.gather(*(asked(streams) for streams in opened))
    await asyncio.sleep(0.05)
    assert 0.1 < max(seen) < time.monotonic() - start
    for _, writer in opened:
        writer.close()


async def test_off_means_off() -> None:
    small = Small(on=False)
    port = await small.start()
    streams = await asyncio.open_connection("127.0.0.1", port)
    turn_everyone_away(small.shedding.shedder)
    small.shedding.pause(object())  # type: ignore[arg-type]  # nothing is paused, so nothing is looked at
    assert small.shedding._timer is None
    streams[1].close()
    small.shedding.stop()
    await small.runner.cleanup()


def same(one: Answer, other: Answer) -> bool:
    """Whether two answers differ in nothing but what is each one's own."""
    own = {"x-request-id", "retry-after", "date", "content-length"}
    heads = [
        [(name, None if name in own else text) for name, text in answer.headers.items()] for answer in (one, other)
    ]
    bodies = [answer.json() | {"instance": ""} for answer in (one, other)]
    return one.status == other.status and heads[0] == heads[1] and bodies[0] == bodies[1]


@pytest.mark.parametrize("path", ["/v3/profiles/{}", "/v3/scores/{}"])
def test_the_like_of_it_is_turned_away_the_same(published: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    short = []
    answer = Refusals.answer
    monkeypatch.setattr(Refusals, "answer", lambda *given: short.append(found := answer(*given)) or found)
    with serving(published, shedding={"on": True}, compiled=False) as server, server.connect() as wire:
        server.loop.call_soon_threadsafe(turn_everyone_away, server.site.shedding.shedder)
        wire.get(path.format(42))
        first = wire.answer()
        assert (first.status, short) == (503, [])
        wire.get(path.format(7))
        second = wire.answer()
        assert len(short) == 1
        assert same(first, second)
        assert first.headers["x-request-id"] != second.headers["x-request-id"] == second.json()["instance"]
        wire.get(path.format(42), "X-Request-Id: mine")
        assert wire.answer().headers["x-request-id"] == "mine"
        assert len(short) == 1


@pytest.mark.parametrize(
    ("sent", "like"),
    [
        (request("GET", "/v3/scores/42"), True),
        (request("GET", "/v3/scores/42", "X-Api-Key: k"), True),
        (request("GET", "/v3/scores/42", "X-Api-Key: k") * 2, False),
        (request("GET", "/v3/scores/42", "Connection: close"), False),
        (request("GET", "/v3/scores/42", "x-request-ID: a"), False),
        (request("GET", "/v3/scores/42?key=k"), False),
        (request("GET", "/v3/scores/"), False),
        (request("HEAD", "/v3/scores/42"), False),
        (request("GET", "/v3/scores/42")[:-2], False),
        (request("GET", "/v3/identities/twitter/42"), False),
        (request("POST", "/v3/scores/batch", body=b"{}"), False),
        (b"", False),
    ],
)
def test_what_is_plain_enough_to_be_remembered(sent: bytes, like: bool) -> None:
    found = remembered(sent, 1, 2)
    assert (found is not None and found.is_like(sent.replace(b"/42 ", b"/4711 "))) == like
    if found is not None:
        assert not found.is_like(sent + b" ")
        assert not found.is_like(sent * 2)
        assert not found.is_like(sent.replace(b"/42 ", b"/4/2 "))
        assert not found.is_like(sent.replace(b"localhost", b"elsewhere"))
