"""What clients are told of their limits: fields of every answer that is limited, and refusals.

The fields are those of draft-ietf-httpapi-ratelimit-headers-10, with a policy for the burst and one for the day, and
the older ``X-RateLimit-*`` with the time of the reset in seconds since 1970.
"""

from __future__ import annotations

from multidict import istr

from kserve._limits import EXHAUSTED, NEVER, Decision, interval
from kserve.serving.problems import Problem
from kserve.settings import Tier

DAY_SECONDS = 86_400

_POLICY: str = istr("RateLimit-Policy")
_STATE: str = istr("RateLimit")
_LIMIT: str = istr("X-RateLimit-Limit")
_REMAINING: str = istr("X-RateLimit-Remaining")
_RESET: str = istr("X-RateLimit-Reset")


def fields(tier: Tier, decision: Decision) -> dict[str, str]:
    """Header fields, in the order in which they are sent."""
    left, reset = decision.remaining, seconds(decision.reset_us)
    policy = f'"burst";q={tier.burst};w={seconds(tier.burst * interval(tier))}'
    state = f'"burst";r={left};t={reset}'
    if tier.quota is not None:
        policy += f', "day";q={tier.quota};w={DAY_SECONDS}'
        state += f', "day";r={decision.left_today};t={seconds(decision.midnight_us)}'
        left = min(left, decision.left_today)
    return {
        _POLICY: policy,
        _STATE: state,
        _LIMIT: str(tier.burst),
        _REMAINING: str(left),
        _RESET: str(decision.reset_at),
    }


def refused(tier: Tier, decision: Decision, cost: int) -> Problem:
    """The problem of a request that is not admitted. Who waits for Retry-After, and is alone, is admitted then."""
    told = fields(tier, decision)
    if decision.outcome == NEVER:
        most = tier.burst if tier.quota is None else min(tier.burst, tier.quota)
        return Problem("over-burst", f"this costs {cost} tokens, the key's limit is {most} at once", headers=told)
    slug = "quota-exhausted" if decision.outcome == EXHAUSTED else "rate-limited"
    wait = max(1, seconds(decision.retry_us))
    return Problem(slug, f"try again in {wait} s", headers={"Retry-After": str(wait)} | told)


def seconds(microseconds: int) -> int:
    """Whole seconds, rounded up."""
    return -(-microseconds // 1_000_000)
