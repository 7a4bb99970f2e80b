"""Who asks: the key of a request, checked, and known from then on; and the thread that keeps what is known up to date.

A request with a known key costs one look-up in a :class:`~kserve._keyring.Keyring`. Everything else is checked against
a :class:`~kserve.serving.keys.Book` in memory, in one way and in the same time whatever is wrong with it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import datetime

import structlog
from aiohttp import hdrs, web
from multidict import istr

from kserve._keyring import SCOPE_BITS, Keyring, tag_of_key
from kserve._limits import ADDRESS, ADMITTED, Limits
from kserve._tally import Counter, Gauge, Tally
from kserve.serving.addresses import client, network
from kserve.serving.keys import Book, Keys, Match, Watched
from kserve.serving.problems import Problem
from kserve.serving.ratelimits import seconds
from kserve.serving.tiers import Tiers
from kserve.settings import Settings, Tier

POLL_SECONDS = 1.0
"""How often keys and tiers are looked after: what is revoked ends everywhere within 5 seconds."""

UNREADABLE_SECONDS = 300.0
"""How long known keys are still taken for reads when keys cannot be read."""

READS = frozenset({"score:read", "batch"})
"""Scopes of what goes on while keys cannot be read; everything else fails closed."""

CHALLENGE = 'Bearer realm="kserve"'
_HOW = "as `Authorization: Bearer KEY`, as `X-Api-Key: KEY`, or as ?key=KEY"
_AGAIN = {"Retry-After": "5"}
_API_KEY: str = istr("X-Api-Key")

log = structlog.get_logger("kserve.auth")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who was authenticated. ``number`` is that of the tier in `Tiers.names`; ``tag`` tells callers apart."""

    id: str
    partner: str
    tier: str
    number: int
    limit: Tier
    scopes: tuple[str, ...]
    tag: int


class Authenticator:
    """Of one process. Requests are authenticated by any thread; `start` begins to follow keys and tiers."""

    def __init__(self, settings: Settings, limits: Limits, tally: Tally) -> None:
        self.keyring = Keyring()
        """For compiled code: whom it knows is live, and within its scopes may ask."""
        self.tiers = Tiers(settings)
        self._open = settings.open
        self._proxies = settings.trusted_proxies
        self._limits = limits
        self._tally = tally
        self._keys = Keys(settings.data)
        self._watched = Watched(self._keys)
        self._book: Book | None = None
        self._seen: object = None
        self._read_at = time.monotonic()
        self._unreadable = False
        self._lock = threading.Lock()
        """Held while a key is checked and added, and while what is known changes: nothing that was ended comes back."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="kserve-keys", daemon=True)

    def start(self) -> None:
        """Read the keys, and follow what happens to them. Without keys that can be read, every key is refused."""
        self._tally.name_tiers(self.tiers.names)
        self.refresh()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * POLL_SECONDS)
        self._watched.close()

    def caller(self, request: web.BaseRequest) -> Caller | None:
        """Who asks; None: somebody without a key, where none is needed. Raises Problem."""
        texts = _given(request)
        if not texts:
            if self._open:
                return None
            self._count(Counter.UNAUTHORIZED_MISSING)
            raise Problem("unauthorized", f"give a key, {_HOW}", headers={"WWW-Authenticate": CHALLENGE})
        if len(texts) > 1:
            self._count(Counter.UNAUTHORIZED_MALFORMED)
            raise self._failed(request, "two different keys were given: give one")
        (text,) = texts
        known: Caller | None = self.keyring.get(text)
        if known is not None:
            return known
        caller = self._authenticated(text)
        if caller is None:
            self._count(Counter.UNAUTHORIZED_REFUSED)
            raise self._failed(request, "no live key has this text: it may be cut, expired, rotated or revoked")
        return caller

    def permit(self, caller: Caller | None, scope: str) -> None:
        """Raises Problem unless this caller may do what the scope is for."""
        if caller is None:
            if scope not in READS:
                raise Problem("unauthorized", f"give a key, {_HOW}", headers={"WWW-Authenticate": CHALLENGE})
            return
        if scope not in caller.scopes:
            self._count(Counter.FORBIDDEN)
            challenge = f'{CHALLENGE}, error="insufficient_scope", scope="{scope}"'
            raise Problem("forbidden", f"this needs a key for {scope}", headers={"WWW-Authenticate": challenge})
        if self._unreadable and scope not in READS:
            raise Problem("not-ready", "whether this key is still live cannot be told now", headers=_AGAIN)

    def refresh(self) -> None:
        """Take in what has happened to keys and tiers since the last time."""
        changed = self.tiers.refresh()
        try:
            state = self._watched.state()
            if state != self._seen:
                self._take(self._keys.book(self._book))
                self._seen = state
        except Exception as error:  # of whatever kind: what is known must not be taken for live for ever
            self._not_read(error)
        else:
            self._read()
        if changed:
            self._tally.name_tiers(self.tiers.names)
            self._forget({key.id for key in self._book or () if key.tier in changed})
        self._tally.set(Gauge.KEYS_KNOWN, float(len(self.keyring)))

    def _forget(self, ids: set[str]) -> None:
        with self._lock:
            self.keyring.forget(ids)

    def _follow(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            self.refresh()

    def _take(self, book: Book) -> None:
        """Authenticate with this book from now on."""
        before = self._book
        changed = None if before is None else book.changed_since(before)
        with self._lock:
            self._book = book
            if changed is None or changed:
                self.keyring.forget(changed)
        self._count(Counter.KEYS_REFRESHED)

    def _read(self) -> None:
        self._read_at = time.monotonic()
        self._tally.set(Gauge.KEYS_STALE, 0.0)
        if self._unreadable:
            self._unreadable = False
            log.info("keys can be read again")

    def _not_read(self, error: Exception) -> None:
        """Go on with what is known, for a while."""
        seconds = time.monotonic() - self._read_at
        self._tally.set(Gauge.KEYS_STALE, max(seconds, POLL_SECONDS))
        if not self._unreadable:
            self._unreadable = True
            log.error("keys cannot be read", error=str(error), known=len(self._book or ()))
        if self._book is not None and seconds > UNREADABLE_SECONDS:
            log.error("keys could not be read for too long: all are refused", seconds=round(seconds))
            with self._lock:
                self._book = self._seen = None
                self.keyring.forget()

    def _authenticated(self, text: str) -> Caller | None:
        """The slow way: an HMAC. Whoever is authenticated is known from then on."""
        with self._lock:
            if self._book is None:
                raise Problem("not-ready", "keys cannot be read now", headers=_AGAIN)
            match = self._book.match(text)
            return None if match is None else self._know(text, match)

    def _know(self, text: str, match: Match) -> Caller:
        key = match.key
        limit = self.tiers.get(key.tier)
        if limit is None:
            self._count(Counter.FORBIDDEN)
            raise Problem("forbidden", f"the key's tier, {key.tier}, is not set on this server")
        number = self.tiers.names.index(key.tier)
        caller = Caller(key.id, key.partner, key.tier, number, limit, key.scopes, tag_of_key(key.id))
        bits = sum(SCOPE_BITS[scope] for scope in key.scopes if scope in SCOPE_BITS)
        self.keyring.add(
            text, caller, key_id=key.id, scopes=bits, tier=number, limit=limit, expires=_seconds(match.ends)
        )
        return caller

    def _failed(self, request: web.BaseRequest, detail: str) -> Problem:
        """What a failed authentication ends in; too many of one address are told less."""
        verdict = self._limits.take(network(client(request, self._proxies)), self.tiers.failures, kind=ADDRESS)
        if verdict.outcome == ADMITTED:
            return Problem("unauthorized", detail, headers={"WWW-Authenticate": f'{CHALLENGE}, error="invalid_token"'})
        self._count(Counter.TOO_MANY_FAILURES)
        wait = max(1, seconds(verdict.retry_us))
        return Problem("too-many-failures", f"try again in {wait} s", headers={"Retry-After": str(wait)})

    def _count(self, counter: Counter) -> None:
        self._tally.add(counter, 1)


def _given(request: web.BaseRequest) -> set[str]:
    """The different keys that a request has, in whatever place."""
    texts = set(request.headers.getall(_API_KEY, ()))
    for value in request.headers.getall(hdrs.AUTHORIZATION, ()):
        scheme, _, text = value.partition(" ")
        if scheme.lower() == "bearer":
            texts.add(text.strip())
    if request.query_string:
        texts.update(request.query.getall("key", ()))
    return texts


def _seconds(ends: datetime | None) -> int:
    return 0 if ends is None else max(1, int(ends.timestamp()))
