"""Counting: histograms to 1 %, sums over all processes there ever were, whoever dies when, for a few nanoseconds."""

from __future__ import annotations

import collections
import logging
import mmap
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from lengths import FULL

from kserve._tally import (
    CLASSES,
    MIDDLES,
    PATHS,
    ROUTES,
    STATUSES,
    UPPERS,
    WHYS,
    Counter,
    Counts,
    Gauge,
    Living,
    Tallies,
    Tally,
    Time,
)
from kserve.serving.readings import quantiles

MICROSECOND, MINUTE = 1_000, 60_000_000_000
TIERS = ["developer", "partner", "site"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tally"


@pytest.fixture
def tally(path: Path) -> Iterator[Tally]:
    found = Tally(path, "worker", TIERS)
    yield found
    found.leave()


def total(path: Path) -> Counts:
    return Tallies(path).read()[0]


def only(path: Path) -> Living:
    (found,) = Tallies(path).read()[1]
    return found


def test_nobody_has_counted(path: Path) -> None:
    counts, living = Tallies(path).read()
    assert counts.requests.sum() == counts.counters.sum() == counts.times["buckets"].sum() == 0
    assert living == []
    assert not path.exists()


@settings(max_examples=25)
@given(st.lists(st.integers(MICROSECOND, MINUTE), min_size=1, max_size=20))
def test_a_bucket_is_within_one_percent(tmp_path_factory: pytest.TempPathFactory, durations: list[int]) -> None:
    path = tmp_path_factory.mktemp("tally") / "tally"
    tally = Tally(path, "worker")
    for nanoseconds in durations:
        tally.time(Time.REDIS_CALL, nanoseconds)
    found = total(path).times[Time.REDIS_CALL]
    seen = np.repeat(MIDDLES, found["buckets"].astype(int)) * 1e9
    assert np.abs(seen / np.sort(durations) - 1).max() <= 0.01
    assert int(found["sum"]) == sum(durations)


EDGES = [-1, 0, 1, 7, 8, 511, 512, 1023, 1024, 2**36 - 1, 2**36, 2**62]


@pytest.mark.parametrize("nanoseconds", [*EDGES, *(int(upper * 1e9) for upper in UPPERS[::97])])
def test_every_duration_has_its_bucket(path: Path, tally: Tally, nanoseconds: int) -> None:
    tally.time(Time.DELAY_OF_LOOP, nanoseconds)
    (bucket,) = np.flatnonzero(total(path).times[Time.DELAY_OF_LOOP]["buckets"])
    assert bucket == min(np.searchsorted(UPPERS, max(nanoseconds, 0) / 1e9, side="right"), len(UPPERS) - 1)


def test_quantiles(path: Path, tally: Tally) -> None:
    durations = np.random.default_rng(1).lognormal(11, 1.5, 20_000).astype(int)
    for nanoseconds in durations.tolist():
        tally.time(Time.REDIS_CALL, nanoseconds)
    found = quantiles(total(path).times[Time.REDIS_CALL]["buckets"], (0, 0.5, 0.99, 0.999, 1))
    assert found is not None
    expected = np.quantile(durations, (0, 0.5, 0.99, 0.999, 1), method="inverted_cdf") / 1e9
    assert found == pytest.approx(expected, rel=0.01)
    assert quantiles(np.zeros(len(UPPERS), np.uint64)) is None


def expected_status(status: int) -> str:
    if str(status) in STATUSES:
        return str(status)
    return f"{status // 100}xx" if 200 <= status < 600 else "unknown"


requests = st.tuples(
    st.integers(-2, len(ROUTES) + 1),
    st.integers(0, 700),
    st.integers(-2, 20),
    st.integers(0, 1),
    st.integers(-1, 10**9),
)


@settings(max_examples=25)
@given(st.lists(requests, max_size=50))
def test_requests_are_counted_by_what_they_were(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, int, int, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("tally") / "tally"
    tally = Tally(path, "worker", TIERS)
    expected: collections.Counter[tuple[str, str, str]] = collections.Counter()
    tiers: collections.Counter[str] = collections.Counter()
    for route, status, tier, way, nanoseconds in asked:
        tally.count(route, status, tier, way, nanoseconds)
        name = ROUTES[route] if 0 <= route < len(ROUTES) else "other"
        expected[PATHS[way], name, expected_status(status)] += 1
        named = {-2: "open", -1: "none"} | dict(enumerate(TIERS))
        tiers[named.get(tier, "other")] += nanoseconds >= 0 and (tier in named or tier >= 13)
    counts = total(path)
    found = {
        (PATHS[a], ROUTES[b], STATUSES[c]): int(counts.requests[a, b, c])
        for a, b, c in np.argwhere(counts.requests).tolist()
    }
    assert found == expected
    by_tier = {tier: int(found["buckets"].sum()) for tier, found in counts.by_tier.items()}
    assert {tier: by_tier[tier] for tier in tiers} == tiers
    assert counts.by_route["buckets"].sum() == sum(nanoseconds >= 0 for *_, nanoseconds in asked)


def test_limited_shed_counters_and_gauges(path: Path, tally: Tally) -> None:
    for outcome in range(5):
        tally.limited(1, outcome)
    for klass in (0, 5, 6, -1):
        tally.shed(klass)
    tally.add(Counter.MALFORMED, 3)
    tally.add(len(Counter), 1)
    tally.set(Gauge.LOOP_DELAY, 0.25)
    tally.set(-1, 1.0)
    found = only(path)
    assert found.counts.limited["partner"].tolist() == [1] * len(WHYS)
    assert found.counts.shed.tolist() == [1, 0, 0, 0, 0, 3]
    assert len(found.counts.shed) == len(CLASSES)
    assert found.counts.counters.sum() == found.counts.counters[Counter.MALFORMED] == 3
    assert np.flatnonzero(~np.isnan(found.gauges)).tolist() == [Gauge.LOOP_DELAY]
    assert (found.pid, found.role) == (os.getpid(), "worker")
    assert abs(found.since - time.time()) < 60


def test_processes_are_summed_by_the_names_of_their_tiers(path: Path) -> None:
    for tiers in (["partner"], ["developer", "partner"], ["x", "y", "partner"], [f"t{i:02}" for i in range(20)]):
        for kept in (Tally(path, "worker", tiers), Tally(path, "worker")):
            kept.name_tiers(tiers)
            for tier in range(len(tiers)):
                kept.limited(tier, 1)
                kept.count(0, 200, tier, 0, 1000)
            kept.leave()
    limited = {tier: int(counts[0]) for tier, counts in total(path).limited.items() if counts[0]}
    assert limited.pop("partner") == limited["developer"] + limited["x"] + limited["y"] == 6
    assert sum(limited.values()) == 2 * (1 + 2 + 20)
    assert limited["other"] >= 2 * 7


def test_what_left_stays_counted_and_its_place_is_used_again(path: Path, tally: Tally) -> None:
    for _ in range(20):
        other = Tally(path, "worker")
        other.count(0, 200, -2, 0, 1000)
        assert other.place == 1
        other.leave()
        other.count(0, 200, -2, 0, 1000)  # seen by nobody
    size, used = path.stat().st_size, path.stat().st_blocks
    assert total(path).requests.sum() == 20
    assert only(path).pid == os.getpid()
    tally.renew()
    assert (path.stat().st_size, path.stat().st_blocks) == (size, used)
    assert total(path).requests.sum() == 20


def fork_and_count(path: Path, oracle: memoryview) -> int:
    """A child that takes a place, counts, leaves, and so on, until it is killed; its process id."""
    child = os.fork()
    try:
        while child == 0:
            tally = Tally(path, "worker", ["partner"])
            for _ in range(50):
                tally.count(0, 200, 0, 0, 5000)
                oracle[0] += 1
            tally.leave()
    finally:
        if child == 0:
            os._exit(1)
    return child


@pytest.mark.heavy
@pytest.mark.drill
def test_no_count_is_lost_or_goes_backwards_whoever_is_killed_when(path: Path) -> None:
    """At most one count of each that is killed is not yet in the oracle."""
    tallies, before = Tallies(path), 0
    keeper = Tally(path, "office")
    oracles = [memoryview(mmap.mmap(-1, 8)).cast("Q") for _ in range(90 if FULL else 36)]
    for turn in range(0, len(oracles), 3):
        children = [fork_and_count(path, oracle) for oracle in oracles[turn : turn + 3]]
        end = time.monotonic() + 0.02 + 0.007 * (turn % 11)
        while time.monotonic() < end:
            now = int(tallies.read()[0].requests.sum())
            assert now >= before
            before = now
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    counts, living = tallies.read()
    assert [one.role for one in living] == ["office"]
    expected = sum(oracle[0] for oracle in oracles)
    assert expected > 1000
    assert expected <= counts.requests.sum() <= expected + len(oracles)
    assert counts.requests.sum() == counts.by_tier["partner"]["buckets"].sum()
    keeper.leave()


def test_a_child_renews_its_place(path: Path, tally: Tally) -> None:
    tally.count(0, 200, 0, 0, 1000)
    child = os.fork()
    if child == 0:
        tally.renew()
        tally.count(0, 200, 0, 0, 1000)
        os._exit(tally.place)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert total(path).requests.sum() == 2
    assert only(path).counts.requests.sum() == 1


def test_where_nothing_can_be_shared_counting_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tally = Tally(tmp_path / "nowhere" / "tally", "worker", TIERS)
    assert "not in the metrics" in caplog.text
    assert tally.place == -1
    tally.count(0, 200, 0, 0, 1000)
    tally.set(Gauge.LOOP_DELAY, 1.0)
    assert Tallies(tmp_path / "nowhere" / "tally").read()[1] == []


def test_a_file_of_another_layout_is_replaced(path: Path) -> None:
    Tally(path, "worker").count(0, 200, 0, 0, 1000)
    with path.open("r+b") as file:
        file.seek(8)
        file.write(b"\1" * 8)
    tallies = Tallies(path)
    assert tallies.read()[0].requests.sum() == 0
    tally = Tally(path, "worker")
    tally.count(0, 200, 0, 0, 1000)
    assert tallies.read()[0].requests.sum() == 1
    assert tally.place == 0


def test_a_file_that_was_cut_short_is_replaced(path: Path) -> None:
    Tally(path, "worker").leave()
    os.truncate(path, path.stat().st_size - 4096)
    tally = Tally(path, "worker")
    tally.count(0, 200, 0, 0, 1000)
    assert tally.place == 0
    assert total(path).requests.sum() == 1


def test_readers_need_not_write(path: Path, tally: Tally) -> None:
    tally.count(0, 200, 0, 0, 1000)
    path.chmod(0o444)
    assert total(path).requests.sum() == 1
    assert only(path).counts.requests.sum() == 1
