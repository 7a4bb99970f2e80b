"""The script that sells leases, against a plain model of it, on Redis, Valkey and a cluster; and its messages."""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redises
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from limits_contract import TIERS, Adapter, LimitsContract, Moment, machine, whole_again
from proxy import Proxy
from redis.exceptions import RedisError, ResponseError
from waiting import PATIENCE

from kserve._limits import ADMITTED, EXHAUSTED, LIMITED, NEVER, Decision
from kserve.errors import SettingError
from kserve.serving.books import Sold
from kserve.serving.till import DAY, SHARDS, Damaged, Till, client_of, told
from kserve.settings import Settings, Tier

KINDS = ["redis", "valkey", "cluster"]
GONE = 10**9
"""µs of a token that does not come back while a test runs: what the script does is then exact."""

TTL = 3_000_000
TillOf = Callable[..., Till]


@pytest.fixture(scope="module", params=KINDS)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "cluster":
        with redises.cluster("redis", folder) as nodes:
            yield Settings(redis=f"redis://127.0.0.1:{nodes[1].port}", redis_cluster=True, redis_timeout=2)
    else:
        with redises.server(request.param, folder) as server:
            yield Settings(redis=server.url, redis_timeout=2)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redises.Server]:
    with redises.server("redis", tmp_path_factory.mktemp("single")) as server:
        yield server


class Shop(Adapter):
    """The script as a limiter: what is asked for is spent before, owed, and paid for at once or not at all."""

    days = False

    def __init__(self, settings: Settings) -> None:
        self._loop = asyncio.new_event_loop()
        self._till = Till(settings, b"contract")
        self._client = self._till._client
        self._records: dict[str, str] = {}
        self._passed = 0

    def take(self, name: str, tier: Tier, cost: int) -> tuple[Decision, Moment]:
        record = self._records.setdefault(name, fresh() + name)
        interval = -(-tier.period * 1_000_000 // tier.rate)
        quota = -1 if tier.quota is None else tier.quota
        never = cost > tier.burst or cost > (quota if quota >= 0 else cost)
        wish = 0 if never else cost
        row = (interval, tier.burst, tier.burst, quota, -wish, 0, wish, wish, -1, 0)
        [(granted, ahead, used, _)] = self._loop.run_until_complete(self._ask(record, row, look=wish == 0))
        moment = Moment(int(self._till.clock) + self._passed, int(self._till.clock) + self._passed)
        late = ahead + (cost - max(tier.burst, cost)) * interval
        midnight = 0 if quota < 0 else DAY - moment.wall % DAY
        outcome, retry = ADMITTED, 0
        if never:
            outcome, retry = NEVER, -1
        elif quota >= 0 and granted < cost and used + cost > quota:
            outcome, retry = EXHAUSTED, max(late, midnight)
        elif granted < cost:
            outcome, retry = LIMITED, late
        room = max(tier.burst * interval - ahead, 0) // interval
        left = -1 if quota < 0 else max(quota - used, 0)
        return whole_again(Decision(outcome, room, ahead, retry, left, midnight, 0), moment), moment

    async def _ask(self, record: str, row: tuple[int, ...], *, look: bool) -> list[Sold]:
        """One that only looks leaves no trace."""
        before = await self._client.get(record)
        answer = await self._till.buy([record], [row], TTL)
        if look and before is not None:
            await self._client.set(record, before, keepttl=True)
        elif look:
            await self._client.delete(record)
        return answer

    def advance(self, microseconds: int) -> None:
        """Time passes for the records, not for the test."""
        self._passed += microseconds
        self._loop.run_until_complete(self._shift(microseconds))

    async def _shift(self, microseconds: int) -> None:
        for record in self._records.values():
            if raw := await self._client.get(record):
                (full,) = struct.unpack_from("<d", raw)
                await self._client.setrange(record, 0, struct.pack("<d", full - microseconds))

    def close(self) -> None:
        self._loop.run_until_complete(self._till.aclose())
        self._loop.close()


class TestContract(LimitsContract):
    """Redis, Valkey and a cluster limit as memory does."""

    @pytest.fixture
    def adapter(self, shop: Settings) -> Iterator[Shop]:
        made = Shop(shop)
        yield made
        made.close()

    def test_decides_as_the_oracle_does_whatever_happens(self, shop: Settings) -> None:
        steps = settings(max_examples=8, stateful_step_count=20, suppress_health_check=[HealthCheck.too_slow])
        run_state_machine_as_test(machine(lambda: Shop(shop), tiers=TIERS[:-1]), settings=steps)


@pytest.fixture
async def till_of() -> AsyncIterator[TillOf]:
    """Tills that are closed at the end."""
    async with AsyncExitStack() as stack:

        def made(settings: Settings, host: bytes = b"hosthost") -> Till:
            till = Till(settings, host)
            stack.push_async_callback(till.aclose)
            return till

        yield made


def fresh(shard: int = 0) -> str:
    """The name of a record that no test has used."""
    return f"kserve:{{{shard}}}:{time.monotonic_ns()}"


@dataclass
class Model:
    """A bucket from which nothing is refilled: what is in it, and what each host may hold of it."""

    managed: int
    quota: int
    spent: int = 0
    used: int = 0
    held: dict[int, int] = field(default_factory=dict)

    def ask(self, host: int, held: int, back: int, least: int, most: int) -> int:
        out = sum(self.held.values())
        self.spent = max(self.spent, out)
        back = min(back, self.held.get(host, 0))
        self.spent -= back
        self.used = max(0, self.used - back) if self.quota >= 0 else 0
        self.held[host] = max(0, held)
        free = min(self.managed - self.spent, self.managed - sum(self.held.values()))
        if self.quota >= 0:
            free = min(free, self.quota - self.used)
        granted = min(most, free)
        if granted < 1 or granted < least:
            granted = 0
        self.spent += granted
        self.used += granted if self.quota >= 0 else 0
        self.held[host] = max(0, held + granted)
        return granted


STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(0, 12), st.integers(1, 10), st.integers(0, 20)),
    max_size=25,
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(managed=st.integers(1, 40), quota=st.none() | st.integers(0, 60), steps=STEPS)
def test_sells_what_a_plain_model_sells(shop: Settings, managed: int, quota: int | None, steps: list) -> None:
    model = Model(managed, -1 if quota is None else quota)
    record, balances = fresh(managed % SHARDS), [0, 0, 0]

    async def play() -> None:
        async with AsyncExitStack() as stack:
            tills = [await stack.enter_async_context(aclosing(Till(shop, b"host000%d" % i))) for i in range(3)]
            for host, spent, back, least, most in steps:
                balances[host] -= spent
                back = min(back, max(0, balances[host]))
                balances[host] -= back
                row = (GONE, managed, managed, model.quota, balances[host], back, least, most, -1, 0)
                [(granted, ahead, used, _)] = await tills[host].buy([record], [row], TTL)
                assert granted == model.ask(host, balances[host], back, least, most)
                assert used == model.used
                assert -(-ahead // GONE) in (model.spent, max(model.spent, 0))
                balances[host] += granted

    asyncio.run(play())


async def test_never_sells_more_than_the_rate_gives_and_nearly_all_of_it(shop: Settings, till_of: TillOf) -> None:
    interval, managed, record = 1000, 50, fresh(3)
    till = till_of(shop, b"hostrate")
    start = before = time.monotonic()
    sold, full = 0, 0.0
    for _ in range(120):
        asked = time.monotonic()
        [(granted, *_)] = await till.buy([record], [(interval, managed, managed, -1, 0, 0, 1, 50, -1, 0)], TTL)
        sold += granted
        now = time.monotonic()
        full += max(0.0, now - before - managed * interval / 1e6)  # as this process had to wait
        before = asked
        await asyncio.sleep(0.002)
    most = managed + (now - start) * 1e6 / interval
    assert 0.85 * (most - full * 1e6 / interval) < sold <= most


async def test_what_is_held_is_not_in_the_bucket_until_it_has_run_out(shop: Settings, till_of: TillOf) -> None:
    one, other, record = till_of(shop, b"host-one"), till_of(shop, b"host-two"), fresh(1)
    row = (100, 30, 30, -1, 0, 0, 1, 20, -1, 0)
    assert (await one.buy([record], [row], 1_000_000))[0][0] == 20
    await asyncio.sleep(0.02)  # long enough for the whole burst to come back, were nothing held
    assert (await other.buy([record], [row], 1_000_000))[0][0] == 10
    await asyncio.sleep(1.05)
    assert (await other.buy([record], [row], 300_000))[0][0] == 0, "what has just run out was spent until now"
    await asyncio.sleep(0.02)
    assert (await other.buy([record], [row], 300_000))[0][0] == 20


async def test_a_batch_larger_than_what_is_sold_needs_rest_before_it(shop: Settings, till_of: TillOf) -> None:
    till, record = till_of(shop, b"host-big"), fresh(2)
    row = (5000, 100, 75, -1, 0, 0, 90, 90, -1, 0)
    assert (await till.buy([record], [row], TTL))[0][0] == 0
    await asyncio.sleep(15 * 5000e-6 + 0.02)
    assert (await till.buy([record], [row], TTL))[0][0] == 90


async def test_a_tier_that_changes_resets_nobody_and_leaves_nobody_waiting(shop: Settings, till_of: TillOf) -> None:
    till, record = till_of(shop, b"hosttier"), fresh(4)
    large, small = (GONE, 100, 100, -1), (1000, 10, 10, -1)
    assert (await till.buy([record], [(*large, 0, 0, 1, 60, -1, 0)], TTL))[0][0] == 60
    assert (await till.buy([record], [(*large, 0, 0, 1, 60, -1, 0)], TTL))[0][0] == 40, "spent is spent"
    [(granted, ahead, *_)] = await till.buy([record], [(*small, 0, 0, 1, 10, -1, 0)], TTL)
    assert (granted, ahead) == (0, 10 * 1000), "as empty as the new limit can be"
    await asyncio.sleep(0.012)
    assert (await till.buy([record], [(*small, 0, 0, 1, 10, -1, 0)], TTL))[0][0] == 10


async def test_what_a_host_knows_is_believed_when_redis_knows_less(shop: Settings, till_of: TillOf) -> None:
    till, record = till_of(shop, b"hostback"), fresh(5)
    [(granted, ahead, used, _)] = await till.buy([record], [(GONE, 100, 75, 500, 0, 0, 0, 0, 70 * GONE, 480)], TTL)
    assert (granted, round(ahead / GONE), used) == (0, 70, 480)
    [(granted, _, used, _)] = await till.buy([record], [(GONE, 100, 75, 500, 0, 0, 1, 50, -1, 0)], TTL)
    assert (granted, used) == (5, 485)


async def test_a_late_message_is_not_carried_out(single: redises.Server, till_of: TillOf) -> None:
    till, record = till_of(Settings(redis=single.url), b"hostlate"), fresh()
    row = (GONE, 100, 75, -1, 0, 0, 1, 5, -1, 0)
    await till.buy([record], [row], TTL)
    till._number = -(10**15)
    till._next = lambda: 1  # type: ignore[method-assign]
    with pytest.raises(Damaged, match="later message"):
        await till.buy([record], [row], TTL)


async def test_a_new_day_begins_with_what_is_held(single: redises.Server, till_of: TillOf) -> None:
    till, record = till_of(Settings(redis=single.url), b"hostdays"), fresh()
    row = (1000, 1000, 1000, 100, 0, 0, 1, 60, -1, 0)
    assert (await till.buy([record], [row], TTL))[0][:3:2] == (60, 60)
    with single.client() as client:  # the same record, as it would stand if it had been written yesterday
        _, day, used = struct.unpack_from("<ddd", client.get(record))
        client.setrange(record, 8, struct.pack("<d", day - 1))
        assert (int(day), used) == (int(time.time() * 1e6 // DAY), 60)
    [(granted, _, used, _)] = await till.buy([record], [(*row[:4], 25, 0, 1, 100, -1, 0)], TTL)
    assert (granted, used) == (40, 100), "the 60 that could be spent today count today"


async def test_records_run_out_when_they_say_nothing_any_more(single: redises.Server, till_of: TillOf) -> None:
    till, quick, daily = till_of(Settings(redis=single.url), b"hostkept"), fresh(), fresh()
    rows = [(1000, 100, 75, quota, 0, 0, 1, 10, -1, 0) for quota in (-1, 500)]
    await till.buy([quick, daily], rows, TTL)
    with single.client() as client:
        assert 12_000 < client.pttl(quick) < 14_000
        assert abs(client.pttl(daily) / 1000 - (86_403 - time.time() % 86_400)) < 5 or client.pttl(daily) > 12_000


async def test_hosts_are_counted_while_they_are_heard_of(shop: Settings, till_of: TillOf) -> None:
    names = [b"%8d" % (time.monotonic_ns() % 10**7 + i) for i in range(3)]
    tills = [till_of(shop, name) for name in names]
    before = await tills[0].heartbeat() - 1
    assert [await till.heartbeat() - before for till in tills] == [1, 2, 3]
    assert await tills[2].heartbeat(0) - before == 2
    await asyncio.sleep(0.06)
    assert await tills[0].heartbeat(50_000) <= 1 + before


async def test_a_server_that_has_forgotten_the_script_is_taught_it_again(shop: Settings, till_of: TillOf) -> None:
    till = till_of(shop, b"hostteac")
    row = (GONE, 100, 75, -1, 0, 0, 1, 5, -1, 0)
    for _ in range(2):
        assert (await till.buy([fresh(7)], [row], TTL))[0][0] == 5
        await till._client.script_flush()


async def bought(till: Till, row: tuple[int, ...]) -> None:
    """Whatever the first purchases took: time is short, and others have work for the machine too."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await till.buy([fresh()], [row], TTL)
                return


@pytest.mark.parametrize("side", ["requests", "answers"])
async def test_what_is_damaged_on_the_way_is_not_believed(single: redises.Server, till_of: TillOf, side: str) -> None:
    row = (GONE, 10_000, 10_000, -1, 0, 0, 1, 5, -1, 0)
    with Proxy(single.port) as proxy:
        for at in range(0, 700, 23):
            record = fresh()
            till = till_of(Settings(redis=f"redis://127.0.0.1:{proxy.port}/0", redis_timeout=0.15), b"hostdama")
            proxy.heal()
            await bought(till, row)

            def flip(data: bytes, at: int = at) -> bytes:
                return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if len(data) > at else data

            setattr(proxy, side, flip)
            try:
                [(granted, *_)] = await till.buy([record], [row], TTL)
            except (RedisError, OSError, TimeoutError):
                continue
            assert granted == 5  # the flipped byte was one that means nothing, or was not sent


async def test_no_answer_reaches_another_call(single: redises.Server, till_of: TillOf) -> None:
    """Calls are given up while their answers are under way; what the next ones get is theirs."""
    with Proxy(single.port) as proxy:
        till = till_of(Settings(redis=f"redis://127.0.0.1:{proxy.port}/0", redis_timeout=20), b"hostgive")
        row = (GONE, 10_000, 10_000, -1, 0, 0, 1, 5, -1, 0)
        await till.buy([fresh()], [row], TTL)
        given_up = 0
        for i in range(1, 30):
            proxy.delay = 0.03
            try:
                async with asyncio.timeout(0.001 * i):
                    await till.buy([fresh()], [row], TTL)
            except TimeoutError:  # redis-py swallows some that come at the very start of a call
                given_up += 1
            proxy.delay = 0.0
            wanted = (*row[:7], 6 + i % 5, -1, 0)
            assert (await till.buy([fresh()], [wanted], TTL))[0][0] == 6 + i % 5
        assert given_up > 10


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:6379",
        "http://u:secret@127.0.0.1",
        "redis://127.0.0.1:port/0",
        "redis://127.0.0.1/0?retry_on_timeout=true",
        "redis://127.0.0.1/0?socket_timeout=60",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(SettingError, match="setting redis") as caught:
        client_of(Settings(redis=url))
    assert "secret" not in str(caught.value)


def test_no_password_is_told() -> None:
    url = "redis://me:s%40crt@127.0.0.1:6379/0"
    text = told(ResponseError(f"cannot reach {url} with s@crt or s%40crt"), url)
    assert "crt" not in text
    assert text.startswith("ResponseError: cannot reach ***")


async def test_a_user_with_the_permissions_that_are_documented_is_enough(
    single: redises.Server, till_of: TillOf
) -> None:
    found = re.search(r"`(\+evalsha [^`]*)`", (Path(__file__).parents[2] / "docs" / "fleet.md").read_text())
    assert found is not None
    with single.client() as client:
        client.execute_command("ACL", "SETUSER", "kserve", "on", ">s3cret", *found[1].split())
    till = till_of(Settings(redis=f"redis://kserve:s3cret@127.0.0.1:{single.port}/0"))
    assert await till.heartbeat() >= 1
    await till.heartbeat(0)
    assert (await till.buy([fresh()], [(GONE, 100, 75, 500, 0, 0, 1, 5, -1, 0)], TTL))[0].granted == 5
