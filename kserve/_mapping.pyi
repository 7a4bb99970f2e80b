"""A sealed snapshot file, mapped and checked: its header, its sections, its pages."""

from collections.abc import Callable
from os import PathLike

from typing_extensions import disjoint_base

from kserve.vocabulary import Vocabulary

__all__ = ["BYTE_ORDER", "MAGIC", "PAGE", "SECTIONS", "Mapping", "live_mappings", "version_name"]

SECTIONS: tuple[str, ...]
MAGIC: bytes
BYTE_ORDER: int
PAGE: int

@disjoint_base
class Mapping:
    """The file of one snapshot, open as long as this object lives.

    Opening checks that it is exactly a sealed snapshot: regular file, size, magic, format, header checksum, name,
    section table. Raises :class:`~kserve.errors.SnapshotError` naming the check that failed, or OSError.
    """

    def __init__(self, path: str | PathLike[str]) -> None: ...
    @property
    def path(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def scored_at(self) -> int:
        """Microseconds since 1970, UTC."""
    @property
    def profiles(self) -> int: ...
    @property
    def scored(self) -> int: ...
    @property
    def nbytes(self) -> int:
        """Size of the file."""
    @property
    def vocabulary(self) -> Vocabulary: ...
    def sections(self) -> dict[str, dict[str, int]]:
        """By name: offset and length in bytes, checksum (XXH3-64)."""
    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Read every byte: section checksums, then what they hold (profiles in their places, columns that agree).

        ``progress(done_bytes, total_bytes)``. Raises SnapshotError.
        """
    def warm(self) -> None:
        """Map all pages now, so that no look-up waits for one."""
    def resident(self) -> float:
        """Share of the file that is in memory, 0 to 1. Looks at every page: not for an event loop."""

def live_mappings() -> list[Mapping]:
    """The snapshots that this process has mapped."""

def version_name(header: bytes) -> str:
    """The version that a header seals: its time, then a digest of all else that it says."""
