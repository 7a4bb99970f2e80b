"""The table of limits: the contract of all limiters, and what only memory that processes share can go through."""

import json
import logging
import os
import random
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lengths import FULL
from limits_contract import DAY, SECOND, Adapter, LimitsContract, Moment, Oracle, agree, machine

from kserve._buckets import Buckets
from kserve._limits import (
    ADDRESS,
    ADMITTED,
    ALONE,
    EXHAUSTED,
    LEASED,
    LIMITED,
    MEMORY,
    SLOTS,
    Limits,
    interval,
)
from kserve.settings import Failures, Tier

SLOW = Tier(rate=1, period=3600, burst=10)
START = Moment(5 * DAY, 20_780 * DAY + DAY // 2)
HOSTS = 4


class InMemory(Adapter):
    """A table of this process, and a clock of our own."""

    def __init__(self, hosts=1):
        self.limits = Limits(None)
        self.moment = START
        if hosts > 1:
            Buckets(self.limits).set_mode(ALONE, hosts)

    def take(self, name, tier, cost):
        return self.limits.take(name, tier, cost, now=self.moment.now, wall=self.moment.wall), self.moment

    def advance(self, microseconds):
        self.moment = Moment(self.moment.now + microseconds, self.moment.wall + microseconds)


@pytest.fixture
def adapter():
    return InMemory()


class TestContract(LimitsContract):
    pass


TestMemory = machine(InMemory).TestCase
TestMemory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAlone = machine(lambda: InMemory(HOSTS), HOSTS).TestCase
TestAlone.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "limits"


def outcomes(limits, name, tier, times, **more):
    return [limits.take(name, tier, **more).outcome for _ in range(times)]


def admitted(found):
    return found.count(ADMITTED)


# Numbers.

TIERS = st.builds(
    Tier,
    rate=st.integers(1, 1_000_000),
    period=st.integers(1, 86_400),
    burst=st.integers(1, 1_000_000),
    quota=st.none() | st.integers(1, 10**12),
)


@given(TIERS, st.integers(0, 2**62), st.integers(0, 2**40), st.sampled_from([1, 2, 7, 65_535]))
@settings(max_examples=300, deadline=None)
def test_no_setting_makes_a_number_overflow(tier, cost, now, hosts):
    limits = Limits(None)
    if hosts > 1:
        Buckets(limits).set_mode(ALONE, hosts)
    oracle = Oracle(hosts)
    bounded = hosts == 1 or interval(tier) * tier.burst * hosts < 2**60
    for size in (cost, tier.burst, 1, 0):
        found = limits.take("a", tier, size, now=now, wall=START.wall + now)
        expected = oracle.take("a", tier, size, Moment(now, START.wall + now))
        if bounded:
            agree(found._replace(left_today=0), expected._replace(left_today=0))
        assert found.outcome == expected.outcome
        assert found.remaining >= 0
        assert found.reset_us >= 0


def test_the_reset_is_of_what_is_short():
    limits, tier = Limits(None), Tier(rate=1, burst=10, quota=12)
    midnight = (START.wall // 86_400_000_000 + 1) * 86_400
    clock = {"now": START.now, "wall": START.wall}
    assert limits.take("a", tier, 1, **clock).reset_at == -(-START.wall // 1_000_000) + 1
    assert limits.take("a", tier, 9, **clock).reset_at == -(-START.wall // 1_000_000) + 10
    later = {name: moment + 10_000_000 for name, moment in clock.items()}
    assert limits.take("a", tier, 1, **later).reset_at == midnight
    refused = limits.take("a", tier, 5, **later)
    assert (refused.outcome, refused.reset_at) == (EXHAUSTED, midnight)


def test_a_cost_below_nothing_is_refused():
    assert Limits(None).take("a", SLOW, -1).outcome not in (ADMITTED, LIMITED)


@pytest.mark.parametrize(("rate", "period", "expected"), [(10, 1, 100_000), (3, 1, 333_334), (1_000_000, 1, 1)])
def test_the_interval_is_rounded_up(rate, period, expected):
    assert interval(Tier(rate=rate, period=period, burst=1)) == expected


@pytest.mark.parametrize("name", ["", "seventeen letters", "ä" * 9])
def test_a_name_that_does_not_fit_is_refused(name):
    with pytest.raises(ValueError, match="16 bytes"):
        Limits(None).take(name, SLOW)


# Clocks.


def test_the_wall_clock_set_back_over_midnight_grants_no_second_quota():
    tier = Tier(rate=1000, burst=10, quota=10)
    limits, hour = Limits(None), 3600 * SECOND
    midnight = 20_780 * DAY
    take = lambda now, wall: limits.take("a", tier, 10, now=now, wall=wall)  # noqa: E731
    assert take(0, midnight - hour // 2).outcome == ADMITTED
    assert take(SECOND, midnight + hour // 2).outcome == ADMITTED, "it is tomorrow, an hour early"
    found = take(2 * SECOND, midnight - hour // 2)
    assert found.outcome == EXHAUSTED, "it still is tomorrow"
    assert DAY + hour // 2 <= found.retry_us <= DAY + hour // 2 + SECOND
    assert take(3 * SECOND, midnight + hour).outcome == EXHAUSTED
    assert take(4 * SECOND, midnight + DAY).outcome == ADMITTED


@pytest.mark.parametrize("jump", [-3600 * SECOND, 3600 * SECOND])
def test_a_jump_of_the_wall_clock_does_not_change_the_rate(jump):
    limits = Limits(None)
    for number in range(30):
        wall = START.wall + (jump if number % 2 else 0)
        found = limits.take("a", SLOW, 1, now=number, wall=wall)
        assert found.outcome == (ADMITTED if number < 10 else LIMITED)


def test_a_clock_that_was_years_ahead_does_not_block_for_years():
    tier = Tier(rate=1000, burst=10, quota=10)
    limits = Limits(None)
    assert limits.take("a", tier, 10, now=0, wall=START.wall + 400 * DAY).outcome == ADMITTED
    assert limits.take("a", tier, 10, now=SECOND, wall=START.wall).outcome == ADMITTED


# Many processes.


def hammer(path, until, tier):
    """How often a process that asks all the time was admitted."""
    limits, total = Limits(path), 0
    while time.monotonic() < until:
        total += limits.take("hot", tier).outcome == ADMITTED
    return total


class Forked:
    """A function in a process of its own; what it returns comes back as JSON."""

    def __init__(self, function, *arguments):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            try:
                os.write(writer, json.dumps(function(*arguments)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        self.reader = os.fdopen(reader, "rb")

    def result(self):
        with self.reader:
            text = self.reader.read()
        os.waitpid(self.pid, 0)
        return json.loads(text)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.reader.close()
        os.waitpid(self.pid, 0)


def results(*processes):
    return [process.result() for process in processes]


def test_processes_that_ask_for_one_key_get_what_one_would(path):
    begin = time.monotonic()
    total = sum(results(*(Forked(hammer, path, begin + 1.0, Tier(rate=1000, burst=50)) for _ in range(4))))
    seconds = time.monotonic() - begin
    assert 2 * 50 < total <= 50 + 1000 * seconds + 1
    assert Buckets(Limits(path)).show("hot").admitted == total


def exhaust(path, start, tier):
    """How often a process was admitted that asks from then on until it has long been refused."""
    limits, total, refused = Limits(path), 0, 0
    time.sleep(max(start - time.monotonic(), 0))
    while refused < 1000:
        admitted = limits.take("hot", tier).outcome == ADMITTED
        total, refused = total + admitted, 0 if admitted else refused + 1
    return total


@pytest.mark.heavy
def test_processes_share_a_burst_and_a_quota_to_the_last_token(path):
    tier = Tier(rate=1, period=86_400, burst=1_000_000, quota=5000)
    assert sum(results(*(Forked(exhaust, path, time.monotonic() + 0.1, tier) for _ in range(4)))) == 5000
    seen = Buckets(Limits(path)).show("hot")
    assert seen.used_today == seen.admitted == 5000
    tier = Tier(rate=1, period=86_400, burst=7000, quota=100_000)
    assert sum(results(*(Forked(exhaust, path, time.monotonic() + 0.1, tier) for _ in range(4)))) == 2000


@pytest.mark.heavy
@pytest.mark.drill
def test_whoever_is_killed_leaves_nothing_stuck_and_nothing_free(path):
    limits, tier = Limits(path), Tier(rate=1000, burst=100, quota=10**9)
    begin = time.monotonic()
    rounds = 20 if FULL else 5
    for _ in range(rounds):
        processes = [Forked(hammer, path, begin + 600, tier) for _ in range(4)]
        time.sleep(random.uniform(0.02, 0.1))
        for process in processes:
            process.kill()
    seen = Buckets(limits).show("hot")
    assert 0 < seen.admitted <= 100 + 1000 * (time.monotonic() - begin)
    assert seen.admitted <= seen.used_today <= seen.admitted + rounds * 4, "at most one request of each process"
    found = limits.take("hot", tier, 100)
    if found.outcome != ADMITTED:
        time.sleep(found.retry_us / SECOND)
        found = limits.take("hot", tier, 100)
    assert found.outcome == ADMITTED


def bring_names(path, start, count):
    """The numbers of the names that were admitted."""
    limits, tier = Limits(path), Tier(rate=1, period=86_400, burst=1)
    time.sleep(max(start - time.monotonic(), 0))
    return [number for number in range(count) if limits.take(f"new-{number}", tier).outcome == ADMITTED]


def test_a_name_that_all_bring_at_once_has_one_bucket(path):
    Limits(path)
    start = time.monotonic() + 0.1
    found = results(*(Forked(bring_names, path, start, 8000) for _ in range(4)))
    assert sorted(number for numbers in found for number in numbers) == list(range(8000))
    names = [bucket.name for bucket in Buckets(Limits(path)).all()]
    assert len(names) == len(set(names)) == 8000


def bring_many(path, seed, count):
    """What is left of each name after it was asked for, at the speed at which buckets are given away all the time."""
    limits, tier, chosen = Limits(path), Tier(rate=100_000, burst=1), random.Random(seed)
    for _ in range(count):
        limits.take(f"name-{chosen.randrange(4 * SLOTS)}", tier)


@pytest.mark.heavy
def test_buckets_that_change_hands_all_the_time_stay_one_for_each_name(path):
    for process in [Forked(bring_many, path, seed, 200_000) for seed in range(4)]:
        assert process.result() is None
    buckets = Buckets(Limits(path))
    names = [bucket.name for bucket in buckets.all()]
    assert buckets.state().evicted > SLOTS
    assert len(names) == len(set(names))
    assert buckets.state().used - len(names) < 100, "names that a late process wrote over; who asks puts them right"


# Room.


def test_a_bucket_that_owes_is_never_given_away_and_beyond_that_all_is_admitted():
    limits = Limits(None)
    buckets = Buckets(limits)
    names = [f"key-{number}" for number in range(SLOTS + 5000)]
    for name in names:
        limits.take(name, SLOW, now=START.now, wall=START.wall)
    state = buckets.state()
    assert state.evicted == 0
    assert 0.75 * SLOTS < state.used < SLOTS
    assert state.failed_open == len(names) - state.used
    kept = {bucket.name: bucket.admitted for bucket in buckets.all()}
    assert set(kept.values()) == {1}
    lost = next(name for name in names if name not in kept)
    assert limits.take(lost, SLOW, now=START.now, wall=START.wall) == limits.take(lost, SLOW, 0, now=START.now)


def test_a_bucket_that_is_full_again_is_given_away():
    limits = Limits(None)
    tier = Tier(rate=1000, burst=1)
    for number in range(2 * SLOTS):
        assert limits.take(f"key-{number}", tier, now=START.now + 20 * number, wall=START.wall).outcome == ADMITTED
    state = Buckets(limits).state()
    assert state.failed_open == 0
    assert state.evicted > 0


def test_a_quota_that_was_used_today_is_remembered():
    limits = Limits(None)
    daily = Tier(rate=1000, burst=1, quota=1)
    limits.take("a", daily, now=START.now, wall=START.wall)
    for number in range(2 * SLOTS):
        limits.take(f"key-{number}", Tier(rate=1000, burst=1), now=START.now + 20 * number, wall=START.wall)
    later = START.now + 40 * SLOTS
    assert limits.take("a", daily, now=later, wall=START.wall).outcome == EXHAUSTED


def test_addresses_leave_room_for_keys():
    limits = Limits(None)
    at = {"now": START.now, "wall": START.wall}
    for number in range(SLOTS):
        limits.take(f"{number:016x}", Failures(), kind=ADDRESS, **at)
    buckets = Buckets(limits)
    assert 0.99 * SLOTS // 4 < buckets.state().used <= SLOTS // 4
    failed = buckets.state().failed_open
    for number in range(SLOTS // 16):
        assert admitted(outcomes(limits, f"key-{number}", SLOW, 2, cost=10, **at)) == 1
    assert buckets.state().failed_open == failed


def test_a_key_and_an_address_of_one_name_are_two():
    limits = Limits(None)
    assert admitted(outcomes(limits, "a", SLOW, 12)) == 10
    assert admitted(outcomes(limits, "a", SLOW, 12, kind=ADDRESS)) == 10


# The file.


def test_it_outlives_the_processes(path):
    assert admitted(outcomes(Limits(path), "a", SLOW, 8)) == 8
    assert admitted(outcomes(Limits(path), "a", SLOW, 8)) == 2


@pytest.mark.parametrize("damage", ["foreign", "short", "long", "other boot", "empty"])
def test_a_file_that_is_not_ours_is_replaced(path, damage):
    before = Limits(path)
    outcomes(before, "a", SLOW, 10)
    whole = path.read_bytes()
    changed = {
        "foreign": b"something else" + whole[14:],
        "short": whole[: len(whole) // 2],
        "long": whole + bytes(4096),
        "other boot": whole.replace(Path("/proc/sys/kernel/random/boot_id").read_bytes()[:36], b"0" * 36),
        "empty": b"",
    }[damage]
    replacement = path.with_name("replacement")
    replacement.write_bytes(changed)
    replacement.rename(path)
    assert admitted(outcomes(Limits(path), "a", SLOW, 12)) == 10
    assert path.stat().st_size == len(whole)
    assert admitted(outcomes(before, "a", SLOW, 2)) == 0, "who has the old one keeps it"


@given(noise=st.binary(min_size=24, max_size=24))
@settings(max_examples=100, deadline=None)
def test_whatever_a_slot_says_waiting_helps(tmp_path_factory, noise):
    path = tmp_path_factory.mktemp("noise") / "limits"
    limits, tier = Limits(path), Tier(rate=1000, burst=10, quota=10**12)
    limits.take("a-very-long-name", tier)
    name_at = path.read_bytes().index(b"a-very-long-name")
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), noise, name_at - 40)  # tat, quota and lease
    assert limits.take("a-very-long-name", tier, 10).retry_us <= 10_000


def test_where_no_file_can_be_made_the_process_limits_alone(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "kserve.limits"):
        limits = Limits(tmp_path / "absent" / "limits")
    assert not limits.shared
    assert "by itself alone" in caplog.text
    assert admitted(outcomes(limits, "a", SLOW, 12)) == 10


def test_a_child_shares_what_its_parent_opened(path):
    limits = Limits(path)
    outcomes(limits, "a", SLOW, 4)
    child = os.fork()
    if child == 0:
        os._exit(admitted(outcomes(limits, "a", SLOW, 4)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
    assert admitted(outcomes(limits, "a", SLOW, 4)) == 2


# Leases.


@pytest.fixture
def leased():
    limits = Limits(None)
    buckets = Buckets(limits)
    buckets.set_mode(LEASED, HOSTS, 60)
    return limits, buckets


WIDE = Tier(rate=1, period=3600, burst=64)


def test_without_a_purchase_there_are_the_standing_tokens_once(leased):
    limits, buckets = leased
    assert admitted(outcomes(limits, "a", WIDE, 10)) == 64 // (4 * HOSTS)
    assert buckets.show("a").leased == -4
    assert buckets.deposit("a", 3, 10) == -1
    assert admitted(outcomes(limits, "a", WIDE, 10)) == 3


def test_what_was_bought_is_spent_and_no_more(leased):
    limits, buckets = leased
    assert buckets.deposit("a", 20, 10, left=30) == 20
    found = limits.take("a", WIDE, 0)
    assert (found.remaining, found.reset_us) == (20 + 4 + 30, 10 * 3600 * SECOND)
    assert admitted(outcomes(limits, "a", WIDE, 40)) == 24
    assert limits.take("a", WIDE).retry_us <= SECOND
    assert buckets.withdraw("a") == 0


def test_what_is_withdrawn_cannot_be_spent(leased):
    limits, buckets = leased
    buckets.deposit("a", 20, 10)
    assert buckets.withdraw("a") == 20
    assert admitted(outcomes(limits, "a", WIDE, 40)) == 4
    assert buckets.withdraw("b") == 0


def test_bought_tokens_expire_and_debts_do_not(leased):
    limits, buckets = leased
    outcomes(limits, "owes", WIDE, 2)
    buckets.deposit("a", 20, 0.1)
    time.sleep(0.2)
    assert buckets.show("a").leased == 0
    assert buckets.show("owes").leased == -2
    assert admitted(outcomes(limits, "a", WIDE, 40)) == 4


def test_the_demand_is_told_once(leased):
    limits, buckets = leased
    outcomes(limits, "before", SLOW, 3)
    assert buckets.demand()[:4] == ([b"before"], [0], [0], [1]), (
        "what was counted before the first question is not told"
    )
    outcomes(limits, "a", WIDE, 6)
    limits.take("b", WIDE, 9)
    limits.take("c", WIDE, 0)
    outcomes(limits, "d", Failures(), 2, kind=ADDRESS)
    found = buckets.demand()
    rows = zip(*(column.tolist() for column in found), strict=True)
    assert sorted(rows) == [(b"a", 4, 2, 1, -4), (b"b", 0, 9, 9, 0)]
    assert buckets.demand().names.tolist() == [b"a"], "it owes"
    buckets.deposit("a", 4, 10)
    assert buckets.demand().names.tolist() == []


def test_a_host_that_joins_has_no_standing_tokens(leased):
    limits, buckets = leased
    buckets.set_mode(LEASED, HOSTS, 60, standing=False)
    assert admitted(outcomes(limits, "a", WIDE, 3)) == 0
    assert buckets.deposit("a", 2, 10) == 2
    assert admitted(outcomes(limits, "a", WIDE, 3)) == 2


def test_what_is_wanted_is_the_largest_cost_refused(leased):
    limits, buckets = leased
    buckets.demand()
    for cost in (9, 20, 7):
        assert limits.take("a", WIDE, cost).outcome == LIMITED
    assert buckets.demand().wants.tolist() == [20]
    assert limits.take("a", WIDE, 5).outcome == LIMITED
    assert buckets.demand()[1:] == ([0], [5], [5], [0])
    assert buckets.show("a").refused == 41


def test_the_fleets_use_of_the_quota_is_what_counts(leased):
    limits, buckets = leased
    tier = Tier(rate=1, period=3600, burst=64, quota=100)
    today = int(time.time() // 86_400)
    buckets.note_used("a", 97, today)
    assert limits.take("a", tier).left_today == 3
    outcomes(limits, "a", tier, 3)
    assert limits.take("a", tier).outcome == LIMITED
    buckets.note_used("a", 100, today)
    assert limits.take("a", tier).outcome == EXHAUSTED
    buckets.note_used("a", 5, today - 1)
    assert limits.take("a", tier).outcome == EXHAUSTED


def test_when_nobody_buys_any_more_the_host_is_alone(leased):
    limits, buckets = leased
    outcomes(limits, "a", WIDE, 10)
    buckets.set_mode(LEASED, HOSTS, 0.05)
    time.sleep(0.1)
    assert buckets.state()[:2] == (ALONE, HOSTS)
    assert admitted(outcomes(limits, "a", WIDE, 40)) == 64 // HOSTS - 4, "what was spent before is not forgotten"
    assert admitted(outcomes(limits, "b", WIDE, 40)) == 64 // HOSTS


def test_addresses_are_not_leased(leased):
    limits, _buckets = leased
    assert admitted(outcomes(limits, "a", SLOW, 12, kind=ADDRESS)) == 10


@pytest.mark.parametrize("mode", [(LEASED, 0, 1), (7, 1, 1), (MEMORY, 70_000, 1), (LEASED, 1, 10**6)])
def test_a_mode_that_cannot_be_is_refused(mode):
    with pytest.raises(ValueError, match="mode"):
        Buckets(Limits(None)).set_mode(*mode)


def test_a_batch_larger_than_the_share_waits_for_it_and_is_owed():
    limits = Limits(None)
    Buckets(limits).set_mode(ALONE, HOSTS)
    tier = Tier(rate=64, burst=64)
    assert limits.take("a", tier, 40, now=START.now, wall=START.wall).outcome == ADMITTED
    found = limits.take("a", tier, 40, now=START.now, wall=START.wall)
    assert (found.outcome, found.retry_us) == (LIMITED, 40 * HOSTS * interval(tier))
    later = START.now + found.retry_us
    assert limits.take("a", tier, 40, now=later, wall=START.wall).outcome == ADMITTED


def lease(path, until):
    """Tokens bought, and not given back."""
    buckets, bought = Buckets(Limits(path)), 0
    while time.monotonic() < until:
        if buckets.deposit("hot", 5, 60) is not None:
            bought += 5
        time.sleep(0.0005)
        if random.random() < 0.1:
            bought -= buckets.withdraw("hot")
    return bought


def test_processes_spend_what_another_buys_and_not_a_token_more(path):
    buckets = Buckets(Limits(path))
    buckets.set_mode(LEASED, HOSTS, 60)
    until = time.monotonic() + 1.0
    bought, *spent = results(Forked(lease, path, until), *(Forked(hammer, path, until, WIDE) for _ in range(3)))
    assert sum(spent) > 100
    assert buckets.show("hot").leased == bought - sum(spent)
