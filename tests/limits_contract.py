"""What every limiter must do, whatever keeps its buckets: an oracle in plain Python, and tests against it.

A limiter is tested through an :class:`Adapter`. A test module makes a fixture ``adapter`` and inherits
:class:`LimitsContract`; :func:`machine` makes the property test of an adapter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kserve._limits import ADMITTED, EXHAUSTED, LIMITED, NEVER, Decision
from kserve.settings import Tier

SECOND = 1_000_000
DAY = 86_400 * SECOND
PATIENCE = SECOND
"""Microseconds that a limiter may ask to wait more than needed; it must never ask for less."""


class Moment(NamedTuple):
    """The time that a decision was made for: microseconds of a clock that nobody sets, and since 1970."""

    now: int
    wall: int


class Adapter(ABC):
    """One limiter with empty buckets. ``days``: whether :meth:`advance` may go on to another day."""

    days = True

    @abstractmethod
    def take(self, name: str, tier: Tier, cost: int) -> tuple[Decision, Moment]:
        """Ask it, and say when it thinks that was."""

    @abstractmethod
    def advance(self, microseconds: int) -> None:
        """Let time pass, or wait."""

    def close(self) -> None:
        """After the last test."""
        return


def whole_again(decision: Decision, moment: Moment) -> Decision:
    """With the time at which what is short, the burst or the quota, is whole again."""
    of_day = decision.outcome == EXHAUSTED or 0 <= decision.left_today < decision.remaining
    wait = decision.midnight_us if of_day else decision.reset_us
    return decision._replace(reset_at=-(-(moment.wall + wait) // SECOND))


@dataclass
class Oracle:
    """GCRA and quotas as they are defined. ``hosts``: among whom the limit is divided."""

    hosts: int = 1
    full: dict[str, int] = field(default_factory=dict)
    used: dict[str, tuple[int, int]] = field(default_factory=dict)
    day: int = 0

    def take(self, name: str, tier: Tier, cost: int, moment: Moment) -> Decision:
        interval = -(-tier.period * SECOND // tier.rate) * self.hosts
        share = max(tier.burst // self.hosts, 1)
        self._see_day(moment.wall // DAY)
        tat = min(max(self.full.get(name, 0), moment.now), moment.now + tier.burst * interval)
        day, used = self.used.get(name, (self.day, 0))
        used = used if day == self.day else 0
        late = tat + cost * interval - max(share, cost) * interval - moment.now
        over = tier.quota is not None and used + cost * self.hosts > tier.quota
        if cost == 0:
            outcome = ADMITTED
        elif cost > tier.burst or (tier.quota is not None and cost > tier.quota):
            outcome = NEVER
        elif over or late > 0:
            outcome = EXHAUSTED if over else LIMITED
            self.full[name] = tat
        else:
            outcome = ADMITTED
            self.full[name] = tat = tat + cost * interval
            if tier.quota is not None:
                used += cost * self.hosts
                self.used[name] = self.day, used
        midnight = 0 if tier.quota is None else (self.day + 1) * DAY - moment.wall
        retry = {ADMITTED: 0, NEVER: -1, LIMITED: late, EXHAUSTED: max(late, midnight)}[outcome]
        left = -1 if tier.quota is None else max(tier.quota - used, 0) // self.hosts
        room = max(moment.now + share * interval - tat, 0) // interval
        reset = tat - moment.now
        return whole_again(Decision(outcome, room, reset, retry, left, midnight, 0), moment)

    def _see_day(self, day: int) -> None:
        if self.day != day + 1:
            self.day = day


def agree(found: Decision, expected: Decision) -> None:
    """Raises AssertionError unless both say the same, but for a little patience."""
    assert found._replace(retry_us=0) == expected._replace(retry_us=0)
    assert expected.retry_us <= found.retry_us <= expected.retry_us + (PATIENCE if expected.retry_us > 0 else 0)


TIERS = (
    Tier(rate=10, burst=3),
    Tier(rate=7, period=2, burst=5, quota=9),
    Tier(rate=1, period=3600, burst=2, quota=3),
    Tier(rate=1000, burst=1),
    Tier(rate=1_000_000, burst=1_000_000, quota=1_500_000),
    Tier(rate=1, period=86_400, burst=1_000_000),
)
NAMES = ("a", "b", "sixteen-letters!")


def machine(make: Callable[[], Adapter], hosts: int = 1, tiers: Sequence[Tier] = TIERS) -> type[RuleBasedStateMachine]:
    """A state machine that asks a limiter and the oracle the same, while tiers change and time passes."""

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.adapter = make()
            self.oracle = Oracle(hosts)
            self.tier = dict.fromkeys(NAMES, tiers[0])
            self.told: Decision | None = None

        def ask(self, name: str, cost: int) -> Decision:
            found, moment = self.adapter.take(name, self.tier[name], cost)
            agree(found, self.oracle.take(name, self.tier[name], cost, moment))
            return found

        @rule(name=st.sampled_from(NAMES), cost=st.one_of(st.integers(0, 6), st.sampled_from([999_999, 10**6, 10**7])))
        def asks(self, name: str, cost: int) -> None:
            self.told = self.ask(name, cost)

        @rule(name=st.sampled_from(NAMES), tier=st.sampled_from(tiers))
        def reconfigures(self, name: str, tier: Tier) -> None:
            self.tier[name] = tier

        @rule(microseconds=st.one_of(st.integers(0, 300_000), st.sampled_from([1, 99_999, 100_000, 285_715])))
        def waits(self, microseconds: int) -> None:
            self.adapter.advance(microseconds)

        @rule(name=st.sampled_from(NAMES), cost=st.integers(1, 3))
        def obeys(self, name: str, cost: int) -> None:
            found = self.ask(name, cost)
            if found.outcome in (LIMITED, EXHAUSTED) and (self.adapter.days or found.retry_us < SECOND):
                self.adapter.advance(found.retry_us)
                again = self.ask(name, cost)
                assert again.outcome in (ADMITTED, EXHAUSTED if hosts > 1 else ADMITTED)

        @rule(microseconds=st.integers(0, 2 * DAY))
        def sleeps(self, microseconds: int) -> None:
            if self.adapter.days:
                self.adapter.advance(microseconds)

        @invariant()
        def is_plausible(self) -> None:
            if self.told is not None:
                assert self.told.remaining >= 0
                assert self.told.reset_us >= 0

        def teardown(self) -> None:
            self.adapter.close()

    return Machine


class LimitsContract:
    """Examples that say more than a property. Inherited by the tests of each limiter."""

    tier = Tier(rate=10, burst=3)
    daily = Tier(rate=1000, burst=4, quota=5)

    def test_the_burst_is_admitted_at_once_and_no_more(self, adapter: Adapter) -> None:
        slow = Tier(rate=1, period=3600, burst=3)
        assert [adapter.take("a", slow, 1)[0].outcome for _ in range(5)] == [ADMITTED] * 3 + [LIMITED] * 2
        assert adapter.take("b", slow, 1)[0].outcome == ADMITTED

    def test_a_batch_costs_what_it_has(self, adapter: Adapter) -> None:
        slow = Tier(rate=1, period=3600, burst=3)
        assert adapter.take("a", slow, 2)[0].remaining == 1
        assert adapter.take("a", slow, 2)[0].outcome == LIMITED
        assert adapter.take("a", slow, 1)[0].remaining == 0

    def test_obeying_is_never_met_with_a_second_refusal(self, adapter: Adapter) -> None:
        refused = 0
        for _ in range(12):
            found, _moment = adapter.take("a", self.tier, 2)
            if found.outcome == LIMITED:
                refused += 1
                adapter.advance(found.retry_us)
                assert adapter.take("a", self.tier, 2)[0].outcome == ADMITTED
        assert refused

    def test_more_than_the_burst_is_never_admitted_and_changes_nothing(self, adapter: Adapter) -> None:
        found, _moment = adapter.take("a", self.tier, 4)
        assert (found.outcome, found.retry_us, found.remaining) == (NEVER, -1, 3)
        assert adapter.take("a", self.tier, 3)[0].outcome == ADMITTED

    def test_more_than_the_quota_is_never_admitted(self, adapter: Adapter) -> None:
        assert adapter.take("a", Tier(rate=10, burst=10, quota=5), 6)[0].outcome == NEVER

    def test_nothing_is_charged_for_a_look(self, adapter: Adapter) -> None:
        for _ in range(9):
            assert adapter.take("a", self.daily, 0)[0][:2] == (ADMITTED, 4)
        assert adapter.take("a", self.daily, 0)[0].left_today == 5

    def test_the_quota_refuses_when_the_rate_would_not(self, adapter: Adapter) -> None:
        for cost in (4, 1):
            assert adapter.take("a", self.daily, cost)[0].outcome == ADMITTED
            adapter.advance(10_000)
        found, _moment = adapter.take("a", self.daily, 1)
        assert (found.outcome, found.remaining, found.left_today) == (EXHAUSTED, 4, 0)
        assert 0 < found.midnight_us <= found.retry_us <= found.midnight_us + PATIENCE

    def test_who_is_refused_by_one_is_not_charged_by_the_other(self, adapter: Adapter) -> None:
        slow = Tier(rate=1, period=3600, burst=2, quota=3)
        assert adapter.take("a", slow, 2)[0].left_today == 1
        assert adapter.take("a", slow, 1)[0][:1] + adapter.take("a", slow, 1)[0][4:5] == (LIMITED, 1)
        quick = Tier(rate=1, period=3600, burst=9, quota=3)
        before = adapter.take("a", quick, 0)[0].remaining
        assert adapter.take("a", quick, 2)[0][:2] == (EXHAUSTED, before)

    def test_a_new_limit_resets_nobody(self, adapter: Adapter) -> None:
        slow = Tier(rate=1, period=3600, burst=10)
        adapter.take("a", slow, 8)
        assert adapter.take("a", Tier(rate=1, period=3600, burst=20), 0)[0].remaining == 12
        assert adapter.take("a", Tier(rate=1, period=3600, burst=4), 1)[0].outcome == LIMITED

    def test_a_faster_limit_is_not_paid_for_at_the_slow_rate(self, adapter: Adapter) -> None:
        adapter.take("a", Tier(rate=1, period=86_400, burst=1000), 1000)
        found, _moment = adapter.take("a", self.tier, 1)
        assert (found.outcome, found.retry_us) == (LIMITED, 100_000)
        adapter.advance(100_000)
        assert adapter.take("a", self.tier, 1)[0].outcome == ADMITTED
