"""The compiled path lets in, limits and turns away whom aiohttp would: two servers, each with its own copy of the data.

Seconds that are told are compared with some tolerance, all other bytes exactly.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from serving.corpus import BATCH, JSON, score
from serving.support import Server, Wire, masked, paired, request

from kserve.serving.keys import Keys
from kserve.settings import Tier

DAY = 86_400
TIERS = {
    "rated": Tier(rate=1, period=DAY, burst=6),
    "quota": Tier(rate=7, period=DAY, burst=1000, quota=6),
    "fast": Tier(rate=1_000_000, burst=1_000_000, quota=10**12, priority="site"),
}
TIMES = re.compile(rb"(?<=t=)\d+|(?<=-Reset: )\d+|(?<=Retry-After: )\d+|(?<=try again in )\d+")
LATE = 5
"""Seconds that the two servers may be asked apart."""


class Pair(NamedTuple):
    """Servers, and keys by tier."""

    compiled: Server
    plain: Server
    keys: dict[str, str]


@pytest.fixture(scope="module")
def pair(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folders = [tmp_path_factory.mktemp(name) / "data" for name in ("compiled", "plain")]
    shutil.copytree(published, folders[0])
    book = Keys(folders[0])
    keys = {tier: book.create("maria", ["score:read", "batch"], tier=tier)[1] for tier in TIERS}
    keys["no reader"] = book.create("joe", ["batch"], tier="fast")[1]
    shutil.copytree(folders[0], folders[1])
    with paired(*folders, open=False, tiers=TIERS) as servers:
        yield Pair(*servers, keys)


def bytes_of(wire: Wire, server: Server, sent: bytes) -> bytes:
    """The bytes of one answer, masked."""
    wire.send(sent)
    head, wire._left = wire._until(b"\r\n\r\n")
    length = 0 if sent.startswith(b"HEAD") else int((re.findall(rb"Content-Length: (\d+)", head) or [b"0"])[0])
    while len(wire._left) < length:
        wire._more()
    body, wire._left = wire._left[:length], wire._left[length:]
    return masked(server, head + b"\r\n\r\n" + body)


def same(pair: Pair, asked: list[bytes]) -> list[bytes]:
    """What is answered, one after the other, by the compiled path; the same as aiohttp's but for seconds."""
    found = []
    with pair.compiled.connect() as compiled, pair.plain.connect() as plain:
        for sent in asked:
            ours, theirs = bytes_of(compiled, pair.compiled, sent), bytes_of(plain, pair.plain, sent)
            assert TIMES.sub(b"", ours) == TIMES.sub(b"", theirs)
            times = [[int(number) for number in TIMES.findall(answer)] for answer in (ours, theirs)]
            assert all(abs(ours - theirs) <= LATE for ours, theirs in zip(*times, strict=True))
            found.append(ours)
    return found


def test_a_limit(pair: Pair) -> None:
    """Until it is reached, and beyond; what costs nothing in between, and what is unknown."""
    key = f"Authorization: Bearer {pair.keys['rated']}"
    found = same(
        pair,
        [
            score("42", key),
            score("42", key, method="HEAD"),
            score("42", key, "If-None-Match: *"),
            score("42", key, 'If-None-Match: "x"'),
            score("999", key),
            score("999", key, "If-None-Match: *"),
            score("7", key),
            score("42", key, "X-Request-Id: mine"),
            score("42", key, method="HEAD"),
            score("42", key, "If-None-Match: *"),
            score("42", key, 'If-None-Match: "x"'),
            score("999", key, "If-None-Match: *"),
            score("999", key),
        ],
    )
    assert [int(answer[9:12]) for answer in found] == [200, 200, 304, 200, 404, 404, 200, 429, 429, 304, 429, 429, 429]
    assert [int(left) for answer in found for left in re.findall(rb"Remaining: (\d+)", answer)][:6] == [
        5,
        4,
        3,
        2,
        1,
        0,
    ]


def test_a_quota(pair: Pair) -> None:
    key = pair.keys["quota"]
    asked = [score("42", f"X-Api-Key: {key}"), score(f"42?key={key}")] * 4
    found = same(pair, asked)
    assert [int(answer[9:12]) for answer in found] == [200] * 6 + [429] * 2
    assert b"quota-exhausted" in found[-1]
    assert b'"day";r=0' in found[-1]


def test_who_is_let_in(pair: Pair) -> None:
    fast, batcher = pair.keys["fast"], pair.keys["no reader"]
    again = [score("42", f"Authorization: Bearer {fast}"), request("POST", "/v3/scores/batch", JSON, body=BATCH)] * 2
    refused = [
        score("42"),
        score("42", "If-None-Match: *"),
        score("42", f"Authorization: Bearer {fast}x"),
        score("42", f"Authorization: Basic {fast}"),
        score("42", "X-Api-Key: x"),
        score("42?key=x"),
        score("42", f"X-Api-Key: {batcher}"),
        score(f"42?key={batcher}", f"X-Api-Key: {fast}"),
    ]
    taken = [
        score("42", f"authorization: bearer {fast}"),
        score("42", f"AUTHORIZATION: Bearer  {fast}"),
        score(f"42?key={fast}", f"X-Api-Key: {fast}"),
        score(f"42?x=1&key={fast}"),
        score("042", f"X-Api-Key: {fast}"),
    ]
    found = same(pair, again + refused + taken)
    statuses = [int(answer[9:12]) for answer in found]
    assert set(statuses[len(again) : -len(taken)]) == {401, 403}
    assert statuses[-len(taken) :] == [200, 200, 200, 200, 400]


def test_it_is_the_compiled_path_that_answers(pair: Pair) -> None:
    key = f"X-Api-Key: {pair.keys['fast']}"
    with pair.compiled.connect() as wire:
        wire.send(score("42", key) * 2)
        assert [wire.answer().status for _ in range(2)] == [200, 200]
        server = pair.compiled.runner.server
        assert server is not None
        (connection,) = server.connections
        wire.send(score("42", key))
        assert wire.answer().status == 200
        assert connection._wire.ours  # type: ignore[attr-defined]


def turn_away_all(server: Server) -> None:
    """As if what is sent on the connections of now had waited for too long."""
    assert server.runner.server is not None
    server.site.shedding.stale.update(server.runner.server.connections)


def test_who_is_turned_away(pair: Pair) -> None:
    key = f"X-Api-Key: {pair.keys['fast']}"
    with pair.compiled.connect() as compiled, pair.plain.connect() as plain:
        both = ((compiled, pair.compiled), (plain, pair.plain))
        for wire, server in both:
            assert bytes_of(wire, server, score("42", key)).startswith(b"HTTP/1.1 200 ")
            turn_away_all(server)
        for sent in (score("42", key), score("42", key, "If-None-Match: *"), score("999", key, method="HEAD")):
            ours, theirs = (TIMES.sub(b"", bytes_of(wire, server, sent)) for wire, server in both)
            assert ours.startswith(b"HTTP/1.1 503 ")
            assert ours == theirs
        for wire, server in both:
            server.site.shedding.stale.clear()
            assert bytes_of(wire, server, score("42", key)).startswith(b"HTTP/1.1 200 ")
