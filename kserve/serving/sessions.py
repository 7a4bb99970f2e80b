"""Sessions of the console: who is signed in, for how long, and proof that a form is ours. Nothing is kept here.

A session is a signed cookie. It names the key that it was begun with, and is worth nothing once that key is not live.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

from kserve.serving import addresses

SECONDS = 8 * 3600
"""How long a session lasts."""

NOBODY = "-"
"""In place of a key's id, before sign-in."""

ATTEMPTS = 5
ATTEMPTS_SECONDS = 300.0
"""Failed sign-ins that an address may have in so many seconds."""

MOST_ADDRESSES = 10_000

_COOKIE = "kserve_console"
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Session:
    """``key_id`` is NOBODY before sign-in; ``token`` belongs in every form that is sent back."""

    key_id: str
    token: str
    cookie: str

    @property
    def signed_in(self) -> bool:
        return self.key_id != NOBODY


class Sessions:
    """Makes and reads sessions. ``pepper`` is read whenever it is needed: another one ends all sessions."""

    def __init__(self, pepper: Callable[[], bytes], clock: Callable[[], float] = time.time) -> None:
        self._pepper = pepper
        self._clock = clock

    def begin(self, key_id: str = NOBODY) -> Session:
        """A new session, for a key or for nobody yet."""
        return self._made(key_id, int(self._clock()) + SECONDS, secrets.token_urlsafe(18))

    def read(self, cookie: str | None) -> Session | None:
        """The session of a cookie; None when it is not ours, was altered, or is over."""
        if cookie is None or len(cookie) > _LONGEST or cookie.count(".") != 3:
            return None
        key_id, ends, nonce, _ = cookie.split(".")
        if not (ends.isascii() and ends.isdigit() and len(ends) < 12):
            return None
        session = self._made(key_id, int(ends), nonce)
        if not _same(session.cookie, cookie) or int(ends) <= self._clock():
            return None
        return session

    def _made(self, key_id: str, ends: int, nonce: str) -> Session:
        pepper = self._pepper()
        named = f"{key_id}.{ends}.{nonce}"
        return Session(key_id, _mac(pepper, f"form {named}"), f"{named}.{_mac(pepper, f'cookie {named}')}")


class Attempts:
    """Failed sign-ins by address, of the last minutes; an IPv6 network of 64 bits is one address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[str, list[float]] = OrderedDict()

    def wait(self, address: str | None) -> int:
        """Seconds until this address may try again; 0: now."""
        recent = self._recent(addresses.network(address))
        if len(recent) < ATTEMPTS:
            return 0
        return math.ceil(recent[-ATTEMPTS] + ATTEMPTS_SECONDS - self._clock())

    def failed(self, address: str | None) -> None:
        """Count one more."""
        network = addresses.network(address)
        self._failed[network] = [*self._recent(network), self._clock()][-ATTEMPTS:]
        self._failed.move_to_end(network)
        while len(self._failed) > MOST_ADDRESSES:
            self._failed.popitem(last=False)

    def _recent(self, network: str) -> list[float]:
        since = self._clock() - ATTEMPTS_SECONDS
        return [moment for moment in self._failed.get(network, ()) if moment > since]


def cookie_of(request: web.Request) -> str | None:
    """What the browser sent back."""
    return request.cookies.get(_COOKIE)


def keep(response: web.Response, session: Session, request: web.Request) -> None:
    """Let the browser keep a session: sent to the console alone, never to scripts, and over TLS only if we are."""
    response.set_cookie(
        _COOKIE,
        session.cookie,
        max_age=SECONDS,
        path="/console",
        httponly=True,
        samesite="Strict",
        secure=encrypted(request),
    )


def encrypted(request: web.Request) -> bool:
    """Whether the browser speaks TLS, to us or to the proxy before us. A client that lies hurts only itself."""
    return request.secure or request.headers.get("X-Forwarded-Proto", "").strip().lower() == "https"


def ours(request: web.Request, public_url: str | None) -> bool:
    """Whether a form was sent by a page of this site, as far as the browser says."""
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("Origin")
    if origin is None:
        return True  # no browser; the form's token is asked for all the same
    try:
        hosts = {request.host, urlsplit(public_url or "").netloc} - {""}
        return urlsplit(origin).netloc in hosts
    except ValueError:
        return False


def right_token(session: Session, token: str) -> bool:
    """Whether a form was made for this session."""
    return _same(session.token, token)


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


def _mac(pepper: bytes, text: str) -> str:
    return hmac.new(pepper, b"console " + text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
