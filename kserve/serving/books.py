"""What a host owns of each key's limit, what it will need, and so what to ask Redis for. No I/O; times are µs."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

TTL = 3_000_000
"""How long leases hold; nothing is spent after that, and Redis knows."""

IDLE = 2_500_000
"""After this long without a request the tokens of a key go back."""

KEPT = 60_000_000
"""What a batch needed stands ready for the next one for so long, at the only host that is asked for the key."""

RENEWED = TTL // 3
"""Leases of keys that are in use are made to last again when less than this is left."""

LOOKED_AT = TTL - 500_000
"""What stands ready only in case is asked about when less than this is left: another host may want it."""

MEMORY = 200_000
"""Time constant of the demand that is looked at."""

PROMISED_MORE = 1_100_000
"""Who was refused is told to wait at most so much longer than until the tokens can be had: whole seconds, and slack."""

FORGOTTEN = 60_000_000
"""A key that owes nothing and is owed nothing is forgotten after this long."""

STANDING = 4
"""The part of a burst that stands at the hosts, unbought, is one in so many."""

DAY = 86_400


class Terms(NamedTuple):
    """A limit as it is sold: µs of a token, tokens at once, tokens of a UTC day (0: no quota)."""

    interval: int
    burst: int
    quota: int

    def standing(self, hosts: int) -> int:
        """Tokens that each host may spend before it has bought any."""
        return min(self.burst, self.quota or self.burst) // (STANDING * hosts)


@dataclass(slots=True)
class Account:
    """What is known of one key. ``balance``: tokens owned; below 0: spent of what stands at this host, and owed.

    ``want``: tokens that the largest batch needs, which waits for them until ``waits``; or they are to stand ready for
    the next one until ``ready``, unless ``others``, that many hosts, are asked for the key too. ``left``: tokens that
    Redis could still sell when it was asked last.
    """

    name: str
    record: str
    shard: int
    terms: Terms
    balance: int = 0
    expires: int = 0
    rate: float = 0.0
    want: int = 0
    waits: int = 0
    ready: int = 0
    others: int = 0
    left: int = 0
    active: int = 0
    told: bool = False
    full: int = 0
    used: int = 0
    day: int = 0

    def ahead(self, now: int) -> int:
        """How far ahead of ``now`` the fleet's theoretical arrival time is, as far as this host knows."""
        return min(max(0, self.full - now), self.terms.burst * self.terms.interval)

    def used_on(self, day: int) -> int:
        """The fleet's tokens of that day, as far as this host knows."""
        return self.used if day == self.day else 0


class Ask(NamedTuple):
    """One key's part of a message; the script says what each number means."""

    account: Account
    managed: int
    quota: int
    held: int
    back: int
    least: int
    most: int
    ahead: int
    used: int

    def numbers(self) -> tuple[int, ...]:
        """In the script's order."""
        terms = self.account.terms
        return (terms.interval, terms.burst, *self[1:])


class Sold(NamedTuple):
    """Tokens granted, µs that the theoretical arrival time is ahead, tokens used today, other hosts that asked."""

    granted: int
    ahead: int
    used: int
    others: int


class Seen(NamedTuple):
    """What the table of limits tells of a key: tokens since it was last asked, and what stands in it now.

    ``ahead`` and ``used`` are what a host that is alone makes of it; they matter for a key that is new here.
    """

    name: str
    terms: Terms
    admitted: int
    refused: int
    want: int
    balance: int
    ahead: int = 0
    used: int = 0


@dataclass(slots=True)
class Books:
    """The accounts of a host. ``hosts``: of the fleet, as far as is known. ``lead``: µs that purchases must last.

    ``shards``: hash tags that the records are spread over.
    """

    shards: int
    hosts: int
    lead: int = 300_000
    seen: int = 0
    accounts: dict[str, Account] = field(default_factory=dict)
    live: dict[str, Account] = field(default_factory=dict)

    def see(self, rows: Iterable[Seen], now: int, *, alone: bool) -> None:
        """Take in what was asked of this host since the last time. ``alone``: it was not bought for."""
        elapsed = max(1, now - self.seen) if self.seen else MEMORY
        weight = 1.0 - math.exp(-elapsed / MEMORY)
        for account in self.live.values():
            account.rate *= 1.0 - weight
        for row in rows:
            known = row.name in self.accounts
            account = self._account(row)
            account.balance, account.terms = row.balance, row.terms
            self.live[row.name] = account
            if row.admitted or row.refused:
                account.active = now
                account.rate += weight * (row.admitted + row.refused) / elapsed
            if row.want:
                account.want, account.ready = row.want, 0
                account.waits = now + self._promised(account) + IDLE
            elif account.want and row.admitted >= account.want:
                account.waits, account.ready = 0, now + KEPT
            if not known:
                account.full, account.used, account.day = now + row.ahead, row.used, today()
            elif alone and row.admitted:
                self._spent_alone(account, row.admitted, now)
        self.seen = now

    def _promised(self, account: Account) -> int:
        """µs after which a batch that was refused comes again, when it obeys; see the table of limits."""
        missing = account.want - account.balance - account.terms.standing(self.hosts) - account.left
        return max(missing, 0) * account.terms.interval + PROMISED_MORE

    def _account(self, row: Seen) -> Account:
        account = self.accounts.get(row.name)
        if account is None:
            shard = zlib.crc32(row.name.encode()) % self.shards
            account = Account(row.name, f"kserve:{{{shard}}}:{row.name}", shard, row.terms)
            self.accounts[row.name] = account
        return account

    def _spent_alone(self, account: Account, tokens: int, now: int) -> None:
        """A token that a host spends alone stands for one at each host, as nobody can be asked."""
        whole = tokens * self.hosts
        account.full = max(account.full, now) + whole * account.terms.interval
        account.full = now + account.ahead(now)
        day = today()
        account.used, account.day = account.used_on(day) + whole, day
        account.told = False

    def unsettle(self) -> None:
        """Redis may know less than it did: tell it of every key, at the next opportunity, what is known here."""
        for account in self.accounts.values():
            account.told = False

    def untold(self, now: int) -> Iterator[Ask]:
        """What Redis should know before this host buys again: of each key what was spent, and no wish."""
        day = today()
        for account in self.accounts.values():
            if not account.told and (account.ahead(now) or account.used_on(day)):
                yield self._ask(account, 0, 0, 0, now)

    def due(self, now: int, most: int) -> list[Ask]:
        """What to ask for now, of at most so many keys; those that wait longest come first in the next call."""
        asks: list[Ask] = []
        resting: list[str] = []
        for name, account in self.live.items():
            ask = self._due(account, now)
            if ask is not None:
                asks.append(ask)
                if len(asks) == most:
                    break
            elif account.balance == 0 and account.rate < 1e-9 and now - account.active > IDLE:
                resting.append(name)
        for name in resting:
            del self.live[name]
        if len(asks) == most:
            for ask in asks:
                self.live[ask.account.name] = self.live.pop(ask.account.name)
        return asks

    def _due(self, account: Account, now: int) -> Ask | None:
        if account.balance > 0 and account.expires <= now:
            account.balance = 0
        balance = account.balance
        kept = now < account.waits or (now < account.ready and not account.others)
        ready = account.want - account.terms.standing(self.hosts) if kept else 0
        if now - account.active > IDLE and balance >= 0 and ready <= 0:
            return self._ask(account, balance, 0, 0, now) if balance else None
        target = self._target(account)
        if ready > max(0, balance):
            return self._ask_for_batch(account, ready, target - balance, now)
        target = max(target, ready)
        if account.others and balance > 4 * max(1, target):
            return self._ask(account, balance, 1, target, now)
        if balance < 0 or 2 * balance < target:
            return self._ask(account, 0, 1, target - balance, now)
        if balance and account.expires - now < (LOOKED_AT if ready > 0 else RENEWED):
            return self._ask(account, 0, 0, target - balance, now)
        return None

    def _ask_for_batch(self, account: Account, ready: int, most: int, now: int) -> Ask | None:
        """All or nothing, or two hosts that want much could each have half of it for ever; but bit by bit for the only
        host that is asked for the key. For a batch that is not waiting, only when there is enough, as far as is known.

        More than one host can have beside the others is bought whole and anew, which Redis sees as an exception.
        """
        managed, missing = self.managed(account.terms), ready - account.balance
        if now >= account.waits and missing > managed - account.ahead(now) // account.terms.interval:
            return self._ask(account, 0, 1, -account.balance, now) if account.balance < 0 else None
        if ready > managed:
            back = max(account.balance, 0)
            return self._ask(account, back, missing + back, missing + back, now)
        return self._ask(account, 0, missing if account.others else 1, max(missing, most), now)

    def closing(self, account: Account, now: int) -> Ask:
        """Give everything back."""
        return self._ask(account, account.balance, 0, 0, now)

    def _target(self, account: Account) -> int:
        """Tokens to own: what is spent until the next purchase, but some are left to others that want them."""
        most = self.managed(account.terms)
        if account.others:
            most = max(1, 2 * most // (self.hosts + 1))
        return min(most, int(account.rate * self.lead))

    def managed(self, terms: Terms) -> int:
        """Tokens of the burst that are sold; the rest stands at the hosts."""
        return terms.burst - self.hosts * terms.standing(self.hosts)

    def _ask(self, account: Account, back: int, least: int, most: int, now: int) -> Ask:
        terms = account.terms
        quota = terms.quota - self.hosts * terms.standing(self.hosts) if terms.quota else -1
        ahead, used = (-1, 0) if account.told else (account.ahead(now), account.used_on(today()))
        return Ask(account, self.managed(terms), quota, account.balance - back, back, least, max(0, most), ahead, used)

    def pause(self, asks: Iterable[Ask], longest: int, shortest: int) -> int:
        """µs until the next round: short limits are bought for more often, as never more than they is held."""
        bought = [ask.managed * ask.account.terms.interval // 4 for ask in asks if ask.most > 0]
        return max(shortest, min([longest, *bought]))

    def settle(self, ask: Ask, balance: int, sold: Sold, now: int, expires: int) -> None:
        """What Redis answered: the fleet's figures, and what this host owns from now on until ``expires``."""
        account = ask.account
        account.balance, account.expires, account.left = balance, expires, self.left(ask, sold.ahead)
        account.full = now + sold.ahead
        account.used, account.day = sold.used, today()
        account.others = sold.others
        account.told = True

    def left(self, ask: Ask, ahead: int) -> int:
        """Tokens that Redis could still sell after an answer; below 0 after a batch of more than it sells otherwise."""
        return ask.managed - -(-ahead // ask.account.terms.interval)

    def noted(self, ask: Ask, used: int) -> int:
        """The day's use to tell clients: the whole quota when all that is sold of it is sold."""
        return -(-used * ask.account.terms.quota // ask.quota) if ask.quota > 0 else ask.account.terms.quota

    def forget(self, now: int) -> None:
        """Drop the accounts that say no more than a new one would."""
        day = today()
        for name in [name for name, one in self.live.items() if not one.balance and now - one.active > FORGOTTEN]:
            del self.live[name]
        old = [
            name
            for name, account in self.accounts.items()
            if now - account.active > FORGOTTEN
            and not account.ahead(now)
            and not account.used_on(day)
            and name not in self.live
        ]
        for name in old:
            del self.accounts[name]


def today() -> int:
    """The UTC day, since 1970."""
    return int(time.time()) // DAY
