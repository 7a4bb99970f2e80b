"""A file in which processes have places: each is held by the lock on its first byte, which ends with its holder.

The locks belong to the open file that took them, so a place is held until the last descriptor of that is closed, also
one that a child of a fork has.
"""

from contextlib import AbstractContextManager
from os import PathLike

__all__ = ["is_held", "locked", "opened", "take"]

def opened(path: str | PathLike[str], header: bytes, size: int) -> int:
    """A writable descriptor of the file; a new one is made with this header and size. Raises OSError.

    A file with another header is unlinked first, and stays as it is for those who have it open.
    """

def locked(descriptor: int) -> AbstractContextManager[None]:
    """One process at a time, by the first byte of the file; waits."""

def take(descriptor: int, start: int) -> bool:
    """Whether the place that starts there is now held by this open file."""

def is_held(descriptor: int, start: int) -> bool:
    """Whether another open file holds the place; read permission is enough to ask."""
