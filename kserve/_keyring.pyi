"""Keys that have been authenticated, by a hash of their text: what a request with one of them costs is this look-up."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol, Self, final

__all__ = ["GRACE_SECONDS", "PRIORITIES", "SCOPE_BITS", "Keyring", "siphash", "tag_of_key"]

SCOPE_BITS: Mapping[str, int]
"""The bit of each scope in ``scopes``."""

PRIORITIES: Mapping[str, int]
"""Of tiers, under overload."""

GRACE_SECONDS: float
"""How long compiled readers may go on using an entry that was forgotten."""

class _Limit(Protocol):
    @property
    def rate(self) -> int: ...
    @property
    def period(self) -> int: ...
    @property
    def burst(self) -> int: ...
    @property
    def quota(self) -> int | None: ...
    @property
    def priority(self) -> str: ...

@final
class Keyring:
    """Of one process. Texts are not kept, but SipHash-2-4 of them, of 128 bits, under a random key of the process.

    Readers, in compiled code too, need not hold the GIL; who adds or forgets does.
    """

    def __new__(cls, seed: bytes | None = None) -> Self:
        """``seed``: 16 bytes, for tests."""
    def __len__(self) -> int:
        """How many texts are known; those that have expired are counted until they are forgotten."""
    def get(self, text: str) -> Any | None:
        """The ``holder`` of this key; None when it is not known, or has expired."""
    def known(self, texts: bytes) -> int:
        """How many of these keys, one right behind the other, are known; without the GIL."""
    def add(
        self,
        text: str,
        holder: object,
        *,
        key_id: str,
        scopes: int,
        tier: int,
        limit: _Limit,
        expires: int = 0,
    ) -> None:
        """Know a key from now on; one that is known stays as it is. ``expires``: seconds since 1970, 0: never.

        Raises ValueError for what has not the length of a key or of an id.
        """
    def forget(self, ids: Collection[str] | None = None) -> None:
        """Know the keys of these ids no more, or none at all."""

def tag_of_key(key_id: str) -> int:
    """What tells the callers of a host and of a fleet apart, in limits and in shedding."""

def siphash(key: bytes, text: bytes) -> bytes:
    """SipHash-2-4 with 16 bytes of key and 16 of hash."""
