"""Hosts that share limits through Redis: what they admit together, and what becomes of it without Redis."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redises
import structlog
from proxy import Proxy
from waiting import PATIENCE, comes, until

from kserve._buckets import Buckets
from kserve._limits import ADMITTED, ALONE, EXHAUSTED, LEASED, LIMITED, MEMORY, Limits, interval
from kserve._tally import Tally
from kserve.serving.books import IDLE, Terms
from kserve.serving.keys import Keys
from kserve.serving.leases import HORIZON, Buyer, LeaseThread, prepare
from kserve.settings import Settings, Tier

TIER = Tier(rate=1000, burst=300)
SWITCH = HORIZON / 1e6 + 0.8
"""Seconds until a host must be on its own, and a few rounds more that nothing had to be bought in."""
SLOW = 0.9
"""Seconds that Redis may take where it is not to fail, on a machine that has other work too."""

Fault = Callable[[redises.Server, Proxy], None]


@dataclass
class Prices:
    """The limits of keys, for a buyer; one for those that have none of their own."""

    default: Tier = TIER
    own: dict[str, Tier] = field(default_factory=dict)

    def tier(self, name: str) -> Tier:
        return self.own.get(name, self.default)

    def get(self, key_id: str) -> Terms:
        tier = self.tier(key_id)
        return Terms(interval(tier), tier.burst, tier.quota or 0)

    def refresh(self) -> None:
        return


class Host:
    """A host: a table of limits and a buyer for it."""

    def __init__(self, settings: Settings, name: bytes, prices: Prices, limits: Limits | None = None) -> None:
        self.limits = limits or Limits(None)
        prepare(settings, self.limits)
        self.buckets = Buckets(self.limits)
        self.prices = prices
        self.buyer = Buyer(settings, self.limits, name, prices, Tally(None, "office"))
        self.admitted = 0
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self.buyer.run(self.stop))

    def take(self, name: str, cost: int = 1) -> bool:
        return self.limits.take(name, self.prices.tier(name), cost).outcome == ADMITTED

    async def becomes(self, mode: int, seconds: float = PATIENCE) -> None:
        """Wait until the table is in that mode."""
        await comes(lambda: self.buckets.state().mode == mode, seconds)

    async def hammer(self, name: str, seconds: float = 600.0, least: float = 0) -> int:
        """Ask four times a millisecond, more or less, and until so many were admitted; how many were."""
        end, admitted = time.monotonic() + seconds, 0
        while time.monotonic() < end or admitted < least:
            now = sum(self.take(name) for _ in range(12))
            admitted += now
            self.admitted += now
            await asyncio.sleep(0.003)
        return admitted


@contextlib.asynccontextmanager
async def fleet(settings: Settings, count: int = 1, prices: Prices | None = None) -> AsyncIterator[list[Host]]:
    """Hosts that have leases."""
    hosts = [Host(settings, b"host%04d" % i, prices or Prices()) for i in range(count)]
    try:
        for host in hosts:
            await host.becomes(LEASED if settings.hosts > 1 or count > 1 else MEMORY)
        await comes(lambda: all(host.buyer.state.hosts >= count for host in hosts))
        yield hosts
    finally:
        for host in hosts:
            host.stop.set()
        await asyncio.gather(*(host.task for host in hosts))


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redises.Server]:
    with redises.server("redis", tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def settings(redis: redises.Server) -> Settings:
    with redis.client() as client:
        client.flushall()
    return Settings(redis=redis.url, redis_timeout=SLOW, hosts=3)


async def test_an_idle_key_is_admitted_at_once_at_every_host(settings: Settings) -> None:
    async with fleet(settings, 3) as hosts:
        assert all(host.take(f"key{i}") for host in hosts for i in range(50))


@pytest.mark.parametrize("busy", [1, 3])
async def test_the_fleet_admits_its_limit_and_no_more(settings: Settings, busy: int) -> None:
    """Much more of it than the third that one host has without leases; `bench leases` measures how much."""
    async with fleet(settings, 3) as hosts:
        start = time.monotonic()
        admitted = sum(await asyncio.gather(*(host.hammer("hot", 1.8) for host in hosts[:busy])))
        most = TIER.burst + TIER.rate * (time.monotonic() - start)
    assert 0.5 * most < admitted <= most


async def test_every_busy_host_gets_something(settings: Settings) -> None:
    """More than stands there anyway, and goes on getting it."""
    async with fleet(settings, 3) as hosts:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(host.hammer("hot", 0.5, least=TIER.burst / 2) for host in hosts))


async def test_the_quota_of_the_day_is_one_for_the_fleet(settings: Settings) -> None:
    daily = Tier(rate=100_000, burst=400, quota=600)
    async with fleet(settings, 3, Prices(daily)) as hosts:
        async with asyncio.timeout(PATIENCE):
            while sum(host.admitted for host in hosts) < 0.9 * 600:
                await asyncio.gather(*(host.hammer("daily", 0.1) for host in hosts))
            while (last := hosts[0].limits.take("daily", daily)).outcome != EXHAUSTED:
                hosts[0].admitted += last.outcome == ADMITTED
                await asyncio.sleep(0.01)
        assert last.left_today == 0
        assert sum(host.admitted for host in hosts) <= 600


async def obeys(host: Host, name: str, tier: Tier, cost: int) -> str:
    """What becomes of three batches of somebody who waits as told, and is alone with the key."""
    for number in range(3):
        told = host.limits.take(name, tier, cost)
        while told.outcome == LIMITED:
            if told.remaining >= cost:
                return f"batch {number} of {cost} was refused, with {told.remaining} left"
            again = time.monotonic() + -(-told.retry_us // 1_000_000)
            await asyncio.sleep(again - time.monotonic())
            late = time.monotonic() > again + 0.1 or host.buyer.state.round_seconds > 0.1
            before, told = told, host.limits.take(name, tier, cost)
            if told.outcome != ADMITTED and not late:  # else the machine is so busy that the buyer is late, too
                return f"batch {number} of {cost} came again after {before.retry_us} µs, {told.retry_us} too early"
        await asyncio.sleep(number / 2)
    return ""


@pytest.mark.heavy
@pytest.mark.parametrize("count", [1, 2, 3])
async def test_who_was_refused_is_admitted_when_he_comes_again_as_told(settings: Settings, count: int) -> None:
    """Batches need all of their tokens at one host."""
    tiers = [Tier(rate=400, burst=800, quota=1_000_000), Tier(rate=50, burst=100), Tier(rate=5000, burst=4000)]
    prices = Prices()
    async with fleet(settings.model_copy(update={"hosts": count}), count, prices) as hosts:
        clients = []
        for part, (i, tier) in itertools.product((0.06, 0.2, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0), enumerate(tiers)):
            name = f"obeys-{i}-{part}"
            prices.own[name] = tier
            clients.append(obeys(hosts[len(clients) % count], name, tier, int(part * tier.burst)))
        assert not list(filter(None, await asyncio.gather(*clients)))


async def test_the_only_host_has_the_whole_burst_and_redis_knows(settings: Settings) -> None:
    alone, tier = settings.model_copy(update={"hosts": 1}), Tier(rate=1, period=60, burst=100, quota=1000)
    prices = Prices(tier)
    async with fleet(alone, 1, prices) as (first,):
        assert sum(first.take("only") for _ in range(150)) == 100
        assert first.buyer.state.mode == "single"
        second = Host(alone, b"hostlate", prices)
        await second.becomes(LEASED)
        await first.becomes(LEASED)
        await asyncio.sleep(HORIZON / 1e6 + 0.5)
        standing = Terms(interval(tier), tier.burst, 1000).standing(2)
        assert sum(host.take("only") for _ in range(150) for host in (first, second)) <= 2 * standing
        assert sum(second.take("fresh") for _ in range(5)) == 5
        second.stop.set()
        await second.task


@pytest.mark.heavy
async def test_a_key_that_rests_gives_back(settings: Settings) -> None:
    async with fleet(settings, 2) as (one, other):
        await one.hammer("moves", 0.3)
        await asyncio.sleep(IDLE / 1e6)
        await comes(lambda: one.buckets.show("moves").leased <= 0)  # type: ignore[union-attr]
        async with asyncio.timeout(PATIENCE):
            await other.hammer("moves", 0.0, least=TIER.burst * 0.5)


@pytest.mark.heavy
async def test_a_new_limit_holds_within_a_second_and_resets_nobody(settings: Settings) -> None:
    prices = Prices(Tier(rate=2000, burst=2000))
    async with fleet(settings, 1, prices) as (host,):
        await host.hammer("tier", 1.2)
        prices.default = Tier(rate=100, burst=50)
        held = host.buckets.show("tier").leased  # type: ignore[union-attr]
        start = time.monotonic()
        await asyncio.sleep(0.05)
        admitted = await host.hammer("tier", 1.0)
        seconds = time.monotonic() - start
    assert admitted <= max(held, 0) + 50 + 100 * (seconds + 0.1)


async def test_a_stopped_host_gives_back_and_is_counted_no_more(settings: Settings, redis: redises.Server) -> None:
    async with fleet(settings, 2) as (one, other):
        await one.hammer("last", 0.2)
        one.stop.set()
        await one.task
        assert one.buckets.state().mode == ALONE
        with redis.client() as client:
            assert client.zcard("kserve:{fleet}") == 1
        assert other.buyer.state.mode == "leased"


async def test_a_host_whose_buyer_dies_is_on_its_own_within_a_second(settings: Settings) -> None:
    async with fleet(settings) as (host,):
        host.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await host.task
        await host.becomes(ALONE, HORIZON / 1e6)
        assert host.take("anybody")
        host.task = asyncio.create_task(asyncio.sleep(0))


def burstiest(admitted: list[list[float]], rate: float) -> float:
    """The most that any stretch of time had beyond what the rate alone gives it."""
    most, lowest, total = 0.0, float("inf"), 0.0
    for when, lasted, cost in admitted:
        if lasted < 0.001:  # else the process was not running, and it is not known when this was
            lowest = min(lowest, total - rate * when)
            total += cost
            most = max(most, total - rate * when - lowest)
    return most


async def test_what_was_spent_alone_is_told_by_the_next_buyer(redis: redises.Server, settings: Settings) -> None:
    with Proxy(redis.port) as proxy:
        proxy.refusing = True
        cut_off = Settings(redis=f"redis://127.0.0.1:{proxy.port}/0", redis_timeout=SLOW, hosts=2)
        before = Host(cut_off, b"hostcut0", Prices())
        start = time.monotonic()
        spent = await before.hammer("alone", 0.1, least=TIER.burst / 2)
        assert TIER.burst / 2 <= spent <= TIER.burst / 2 + TIER.rate / 2 * (time.monotonic() - start)
        before.stop.set()
        await before.task
        proxy.heal()
        start = time.monotonic()
        again = Host(cut_off, b"hostcut0", Prices(), before.limits)
        await again.becomes(LEASED)
        async with fleet(settings) as (other,):
            found = await other.hammer("alone", 0.1)
            assert spent + found <= TIER.burst + TIER.rate * (time.monotonic() - start)
        again.stop.set()
        await again.task


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["valkey", "cluster"])
async def test_valkey_and_a_cluster_serve_a_fleet_as_well(kind: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        if kind == "cluster":
            port = stack.enter_context(redises.cluster("redis", tmp_path))[0].port
        else:
            port = stack.enter_context(redises.server(kind, tmp_path)).port
        address = f"redis://127.0.0.1:{port}"
        settings = Settings(redis=address, redis_timeout=SLOW, redis_cluster=kind == "cluster", hosts=3)
        async with fleet(settings, 3) as hosts:
            start = time.monotonic()
            names = ["one", "two", "three", "four"]
            asking = [host.hammer(name, 1.5) for host in hosts for name in names]
            admitted = sum(await asyncio.gather(*asking)) / len(names)
            most = TIER.burst + TIER.rate * (time.monotonic() - start)
    assert 0.5 * most < admitted <= most


@pytest.mark.heavy
@pytest.mark.parametrize("paces", [(5000, 5000, 5000), (5000, 20, 20)], ids=["even", "skewed"])
def test_processes_admit_the_limit_together_in_any_stretch_of_time(settings: Settings, paces: tuple[int, ...]) -> None:
    program, tier, seconds = Path(__file__).with_name("lease_host.py"), TIER.model_dump_json(), 3
    commands = [[str(settings.redis), f"proc{i:04}", str(pace), tier] for i, pace in enumerate(paces)]
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as stack:
        hosts = [
            stack.enter_context(subprocess.Popen([sys.executable, program, *one], stdin=pipe, stdout=pipe, text=True))
            for one in commands
        ]
        for host in hosts:
            assert host.stdout is not None
            while "ready" not in host.stdout.readline():
                assert host.poll() is None
        start = time.monotonic() + 0.5
        told = [json.loads(host.communicate(f"[{start}, {start + seconds}]\n")[0].splitlines()[-1]) for host in hosts]
    assert [one["mode"] for one in told] == ["leased"] * 3
    admitted = sorted(entry for one in told for entry in one["admitted"])
    most = TIER.burst + TIER.rate * (admitted[-1][0] - start)
    assert 0.5 * most < sum(cost for _, _, cost in admitted) <= most
    assert burstiest(admitted, TIER.rate) <= TIER.burst + 0.002 * TIER.rate


async def test_a_host_more_than_were_expected_begins_with_nothing_of_its_own(redis: redises.Server) -> None:
    with redis.client() as client:
        client.flushall()
    settings = Settings(redis=redis.url, redis_timeout=SLOW, hosts=1)
    async with fleet(settings) as (first,):
        start = time.monotonic()
        late = Host(settings, b"hostlate", first.prices)
        await late.becomes(LEASED)
        taken = late.take("new")
        if time.monotonic() - start < HORIZON / 1e6:
            assert not taken, "the others may not know of it yet"
        names = map(str, itertools.count())
        await comes(lambda: late.take(next(names)))
        assert time.monotonic() - start > HORIZON / 1e6
        assert first.buyer.state.hosts == late.buyer.state.hosts == 2
        late.stop.set()
        await late.task


# Faults. Each has a server and a proxy of its own, and all are played at the same time.


def gone(server: redises.Server, proxy: Proxy) -> None:
    server.kill()


def restarted_empty(server: redises.Server, proxy: Proxy) -> None:
    server.start()


def refused(server: redises.Server, proxy: Proxy) -> None:
    proxy.refusing = True
    proxy.cut()


def hung(server: redises.Server, proxy: Proxy) -> None:
    proxy.frozen = True


def slow(server: redises.Server, proxy: Proxy) -> None:
    proxy.delay = 0.4


def corrupt_answers(server: redises.Server, proxy: Proxy) -> None:
    proxy.answers = lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:] if len(data) > 60 else data


def corrupt_requests(server: redises.Server, proxy: Proxy) -> None:
    proxy.requests = lambda data: data.replace(b"kserve:", b"kserve;")


def garbage(server: redises.Server, proxy: Proxy) -> None:
    proxy.answers = lambda data: b"HTTP/1.1 400 Bad Request\r\n\r\n"


def out_of_memory(server: redises.Server, proxy: Proxy) -> None:
    with server.client() as client:
        client.config_set("maxmemory", 1)


def memory_again(server: redises.Server, proxy: Proxy) -> None:
    with server.client() as client:
        client.config_set("maxmemory", 0)


def read_only(server: redises.Server, proxy: Proxy) -> None:
    with server.client() as client:
        client.replicaof("127.0.0.1", redises.free_port())


def promoted(server: redises.Server, proxy: Proxy) -> None:
    with server.client() as client:
        client.replicaof("NO", "ONE")


def password_changed(server: redises.Server, proxy: Proxy) -> None:
    with server.client() as client:
        client.config_set("requirepass", "another-secret")
        client.client_kill_filter(_type="normal", skipme=True)


def password_back(server: redises.Server, proxy: Proxy) -> None:
    import redis

    with redis.Redis(port=server.port, password="another-secret") as client:
        client.config_set("requirepass", "")


def healed(server: redises.Server, proxy: Proxy) -> None:
    proxy.heal()


FAULTS: dict[Fault, Fault] = {
    gone: restarted_empty,
    refused: healed,
    hung: healed,
    slow: healed,
    corrupt_answers: healed,
    corrupt_requests: healed,
    garbage: healed,
    out_of_memory: memory_again,
    read_only: promoted,
    password_changed: password_back,
}


async def suffers(server: redises.Server, proxy: Proxy, fault: Fault, cure: Fault) -> None:
    """One of two hosts has its share and no more while the fault lasts, and more than that when it is over."""
    settings = Settings(redis=f"redis://127.0.0.1:{proxy.port}/0", hosts=2)
    async with fleet(settings) as (host,):
        begun = time.monotonic()
        hammering = asyncio.create_task(host.hammer("key"))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(fault, server, proxy)
        await host.becomes(ALONE, SWITCH)
        since, before = time.monotonic(), host.admitted
        share = TIER.rate / 2
        await comes(lambda: host.admitted - before > 0.6 * share)
        assert host.admitted - before <= TIER.burst / 2 + share * (time.monotonic() - since)
        await comes(lambda: host.buyer.state.mode == "alone")
        assert host.buyer.state.error
        await asyncio.to_thread(cure, server, proxy)
        await host.becomes(LEASED)
        since, before = time.monotonic(), host.admitted
        await comes(lambda: host.admitted - before > TIER.burst / 2 + share * (time.monotonic() - since))
        hammering.cancel()
        most = TIER.burst + TIER.rate * (time.monotonic() - begun)
        assert host.buyer.state.error is None
    assert host.admitted <= most


@pytest.mark.heavy
async def test_without_redis_a_host_goes_on_with_its_share_and_comes_back(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        plays: list[Awaitable[None]] = []
        for fault, cure in FAULTS.items():
            server = stack.enter_context(redises.server("redis", tmp_path / fault.__name__))
            proxy = stack.enter_context(Proxy(server.port))
            plays.append(suffers(server, proxy, fault, cure))
        with structlog.testing.capture_logs() as logs:
            ended = await asyncio.gather(*plays, return_exceptions=True)
    assert dict(zip((fault.__name__ for fault in FAULTS), ended, strict=True)) == dict.fromkeys(
        (fault.__name__ for fault in FAULTS), None
    )
    switches = [entry for entry in logs if entry["event"].startswith("Redis cannot be asked")]
    assert len(switches) == len(FAULTS), "each is said once"
    assert "secret" not in str(logs)


@pytest.mark.heavy
async def test_a_master_of_a_cluster_that_is_gone_is_noticed(tmp_path: Path) -> None:
    with redises.cluster("redis", tmp_path) as nodes:
        settings = Settings(redis=f"redis://127.0.0.1:{nodes[0].port}", redis_cluster=True, hosts=2)
        async with fleet(settings) as (host,):
            names = [f"key{i}" for i in range(40)]
            assert all(host.take(name) for name in names)
            hammering = asyncio.gather(*(host.hammer(name) for name in names))
            nodes[2].kill()
            await host.becomes(ALONE)
            hammering.cancel()
            await asyncio.gather(hammering, return_exceptions=True)
            assert host.take("somebody else")


def until_replicated(master: redises.Server, replica: redises.Server) -> None:
    """What was sold and did not reach the replica would be sold again. Nothing is sold meanwhile: the loop waits."""
    with master.client() as here, replica.client() as there:
        until(lambda: there.info("replication")["slave_repl_offset"] >= here.info("replication")["master_repl_offset"])


@pytest.mark.heavy
async def test_a_promoted_replica_sells_on(tmp_path: Path) -> None:
    with redises.server("redis", tmp_path / "a") as master, redises.server("redis", tmp_path / "b") as replica:
        with replica.client() as client:
            client.replicaof("127.0.0.1", master.port)
            while client.info("replication")["master_link_status"] != "up":
                await asyncio.sleep(0.02)
        with Proxy(master.port) as proxy:
            async with fleet(Settings(redis=f"redis://127.0.0.1:{proxy.port}", hosts=2)) as (host,):
                start = time.monotonic()
                admitted = await host.hammer("key", 0.5)
                until_replicated(master, replica)
                master.kill()
                with replica.client() as client:
                    client.replicaof("NO", "ONE")
                proxy.target = replica.port
                proxy.cut()
                async with asyncio.timeout(PATIENCE):
                    admitted += await host.hammer("key", 0.5, least=2 * TIER.burst)
                most = TIER.burst + TIER.rate * (time.monotonic() - start)
                assert host.buyer.state.mode == "leased", "a failover of less than a second is not noticed"
        assert admitted <= most


# The thread of an office.


@pytest.fixture
def office(tmp_path: Path, redis: redises.Server, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("KSERVE_CONFIG", str(tmp_path / "kserve.toml"))
    (tmp_path / "kserve.toml").write_text("")
    with redis.client() as client:
        client.flushall()
    return Settings(data=tmp_path / "data", redis=redis.url, hosts=2)


@pytest.mark.heavy
def test_an_office_buys_for_the_keys_that_there_are_and_by_the_tiers_in_force(office: Settings) -> None:
    office.data.mkdir()
    key, _text = Keys(office.data).create("partner", ["score:read"], tier="developer")
    limits = Limits(None)
    thread = LeaseThread(office, limits, Tally(None, "office"))
    thread.start()
    try:
        until(lambda: thread.state().mode == "leased")
        tier = office.tiers["developer"]
        taken = itertools.count()
        until(lambda: limits.take(key.id, tier).outcome == ADMITTED and next(taken) > tier.burst / 2)
        (office.data.parent / "kserve.toml").write_text("[tiers.developer]\nrate = 1000\nburst = 3000\n")
        larger = Tier(rate=1000, burst=3000)
        until(lambda: all(limits.take(key.id, larger).outcome == ADMITTED for _ in range(2 * tier.burst)))
    finally:
        thread.stop()
    assert Buckets(limits).state().mode == ALONE


def test_one_office_of_a_host_buys_and_the_next_one_takes_over(office: Settings) -> None:
    limits = Limits(None)
    first, second = (LeaseThread(office, limits, Tally(None, "office")) for _ in range(2))
    first.start()
    until(lambda: first.state().mode == "leased")
    second.start()
    until(lambda: second.state().mode == "standby")
    first.stop()
    until(lambda: second.state().mode == "leased")
    second.stop()
