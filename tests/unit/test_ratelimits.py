"""What clients are told of their limits."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kserve._limits import ADMITTED, EXHAUSTED, LIMITED, NEVER, Decision, Limits
from kserve.serving.ratelimits import fields, refused
from kserve.settings import TIERS, Tier

ITEM = re.compile(r'"([a-z]+)"((?:;[a-z]+=\d{1,15})+)')
START, NOON = 10**12, 20_780 * 86_400 * 10**6 + 43_200 * 10**6


def parsed(field):
    """A list of strings with whole numbers as parameters, as RFC 9651 has it; nothing else is sent."""
    found = {}
    for item in field.split(", "):
        name, parameters = ITEM.fullmatch(item).groups()
        found[name] = {key: int(value) for key, value in (one.split("=") for one in parameters[1:].split(";"))}
    return found


def decided(**changes):
    defaults = {"outcome": ADMITTED, "remaining": 0, "reset_us": 0, "retry_us": 0, "left_today": -1}
    return Decision(**(defaults | {"midnight_us": 0, "reset_at": 1_800_000_000} | changes))


def test_a_tier_without_a_quota_has_one_policy():
    found = fields(TIERS["site"], decided(remaining=39_998, reset_us=100))
    assert list(found.items()) == [
        ("RateLimit-Policy", '"burst";q=40000;w=2'),
        ("RateLimit", '"burst";r=39998;t=1'),
        ("X-RateLimit-Limit", "40000"),
        ("X-RateLimit-Remaining", "39998"),
        ("X-RateLimit-Reset", "1800000000"),
    ]


def test_a_quota_is_a_second_policy():
    found = fields(TIERS["developer"], decided(remaining=99, reset_us=100_000, left_today=7, midnight_us=3_600_000_001))
    assert found["RateLimit-Policy"] == '"burst";q=100;w=10, "day";q=20000;w=86400'
    assert found["RateLimit"] == '"burst";r=99;t=1, "day";r=7;t=3601'
    assert found["X-RateLimit-Remaining"] == "7"


@pytest.mark.parametrize(
    ("outcome", "slug", "status", "wait"),
    [(LIMITED, "rate-limited", 429, "3"), (EXHAUSTED, "quota-exhausted", 429, "3"), (NEVER, "over-burst", 422, None)],
)
def test_a_refusal_says_how_long_to_wait(outcome, slug, status, wait):
    found = refused(TIERS["developer"], decided(outcome=outcome, retry_us=2_000_001, left_today=7), 5)
    assert (found.slug, found.kind.status, found.headers.get("Retry-After")) == (slug, status, wait)
    assert (
        list(found.headers)[:2]
        == (["Retry-After"] if wait else []) + ["RateLimit-Policy", "RateLimit"][: 2 - bool(wait)]
    )


TIER = st.builds(
    Tier,
    rate=st.integers(1, 1_000_000),
    period=st.integers(1, 86_400),
    burst=st.integers(1, 1_000_000),
    quota=st.none() | st.integers(1, 10**12),
)


@given(TIER, st.lists(st.tuples(st.floats(0, 1), st.integers(0, 10**7)), max_size=12), st.floats(0, 1))
def test_who_waits_as_long_as_told_is_not_refused_again(tier, requests, share):
    limits, now = Limits(None), START
    most = min(tier.burst, tier.quota or tier.burst)
    for part, pause in [*requests, (1.0, 0), (share, 0)]:
        cost = max(1, int(part * most))
        found = limits.take("a", tier, cost, now=now, wall=NOON + now - START)
        told = parsed(fields(tier, found)["RateLimit"])
        assert told["burst"]["r"] <= tier.burst
        assert ("day" in told) == (tier.quota is not None)
        if found.outcome != ADMITTED:
            now += int(refused(tier, found, cost).headers["Retry-After"]) * 10**6
            assert limits.take("a", tier, cost, now=now, wall=NOON + now - START).outcome == ADMITTED
        now += pause


@given(TIER, st.integers(0, 10**6))
def test_all_that_is_told_are_structured_fields(tier, cost):
    limits = Limits(None)
    found = fields(tier, limits.take("a", tier, cost, now=START, wall=NOON))
    policy = parsed(found["RateLimit-Policy"])
    assert policy["burst"]["q"] == tier.burst
    assert policy["burst"]["w"] * tier.rate >= tier.burst * tier.period, "the window is never too short"
    assert policy.keys() == parsed(found["RateLimit"]).keys()
    assert int(found["X-RateLimit-Remaining"]) >= 0
