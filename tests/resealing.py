"""A second, slow reading of the file's header, for tests that damage a snapshot and seal it again."""

import struct
from pathlib import Path

import xxhash

from kserve._mapping import SECTIONS, version_name

HEADER = 4096
NAMES = SECTIONS
FIELDS = struct.Struct("<8sIIQq40s6Q")
SECTION = struct.Struct("<3Q")
VERSION = slice(32, 72)


def section(content: bytes, name: str) -> tuple[int, int]:
    """Offset and length."""
    offset, length, _ = SECTION.unpack_from(content, FIELDS.size + SECTION.size * NAMES.index(name))
    return offset, length


def resealed(content: bytes) -> bytes:
    """The same bytes with checksums, name and header checksum that fit them."""
    image = bytearray(content)
    for number in range(len(NAMES)):
        at = FIELDS.size + SECTION.size * number
        offset, length, _ = SECTION.unpack_from(image, at)
        if length:
            SECTION.pack_into(image, at, offset, length, xxhash.xxh3_64_intdigest(image[offset : offset + length]))
    image[VERSION] = version_name(bytes(image[:HEADER])).encode().ljust(40, b"\0")
    return with_header_checksum(image)


def with_header_checksum(image: bytearray) -> bytes:
    """The same bytes with a header checksum that fits them."""
    struct.pack_into("<Q", image, HEADER - 8, xxhash.xxh3_64_intdigest(image[: HEADER - 8]))
    return bytes(image)


def put(path: Path, content: bytes) -> Path:
    """A file with this content, in place of what was there."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path
