"""What a plain request is: the two forms that the compiled path answers. Everything else is for aiohttp."""

from typing import Literal

__all__ = ["HARMLESS", "UNDERSTOOD", "classify"]

HARMLESS: frozenset[str]
"""Headers that a plain request may have, because no answer depends on them. In small letters."""

UNDERSTOOD: dict[str, int]
"""Headers that answers depend on, and that the compiled path understands, some values of them at least."""

def classify(data: bytes) -> list[tuple[int, int, Literal["get", "head", "post", "other"]]]:
    """What the compiled path makes of bytes that begin where a request begins: (start, end, kind) in order, no gaps.

    ``get``, ``head`` and ``post`` are whole plain requests. The first that is none, or is not whole, is ``other``, with
    all that comes behind it: aiohttp gets that. It touches nothing else and keeps nothing: made for tests.
    """
