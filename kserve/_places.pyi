"""A file in which processes have places: each is held by the lock on its first byte, which ends with its holder.

The locks belong to the open file that took them, so a place is held until the last descriptor of that is closed, also
one that a child of a fork has.
"""

from contextlib import AbstractContextManager
from mmap import mmap
from os import PathLike
from struct import Struct
from typing import NamedTuple

__all__ = ["FLOCK", "Mapped", "Places", "claimed", "locked", "opened"]

FLOCK: Struct
"""``struct flock`` of 64-bit Linux: kind, whence, start, length, process."""

class Places(NamedTuple):
    """Where in a file the places are: one after another, to its end. ``start`` and ``size`` in bytes."""

    name: str
    """What they are called when all are taken."""
    header: bytes
    """What the file begins with; it names the layout, so that a file of another one is not taken for ours."""
    start: int
    """Of the first place."""
    size: int
    """Of each."""
    capacity: int

    def at(self, place: int) -> int:
        """Where a place begins."""
    @property
    def file_size(self) -> int: ...

class Mapped:
    """The file as its readers see it. Needs read permission only, and never makes the file."""

    path: str
    places: Places
    def __init__(self, path: str | PathLike[str], places: Places) -> None: ...
    def __del__(self) -> None: ...
    def pages(self) -> mmap | None:
        """All of the file, or None when there is none of this layout; mapped anew when it was replaced.

        Raises OSError.
        """
    def is_held(self, place: int) -> bool:
        """Whether another open file holds the place, in the file that ``pages`` gave last."""

def claimed(path: str | PathLike[str], places: Places) -> AbstractContextManager[tuple[int, int]]:
    """A descriptor of the file and a free place of it, held until the descriptor is closed; no other is claimed inside.

    What raises inside gives the place back. Raises OSError, also when no place is free.
    """

def opened(path: str | PathLike[str], header: bytes, size: int) -> int:
    """A writable descriptor of the file; a new one is made with this header and size. Raises OSError.

    A file with another header or size is unlinked first, and stays as it is for those who have it open.
    """

def locked(descriptor: int) -> AbstractContextManager[None]:
    """One process at a time, by the first byte of the file; waits."""
