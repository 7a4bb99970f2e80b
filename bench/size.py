"""Bytes a profile: the file with the core columns, with five topics, and the same in other encodings.

Five topics each have a score. In Redis a profile is a hash with the fields s d w m l f: score and changes in
hundredths, the number of its location, and flags, as decimal strings; unknown ones are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bench._data import UNKNOWN_CHANGE, UNSCORED, Data, Records
from bench._harness import Report, Run
from bench._peers import LmdbPeer, RedisServer, RocksdbPeer, mset

SAMPLE = 1_000_000
CORE_BAR, FIVE_BAR, REDIS_BAR = 40, 64, 4
REDIS_CHUNK = 10_000
BUCKET = 100
"""Profiles in one hash, when Redis is used to keep small hashes in its compact form."""


def measure(run: Run) -> Report:
    """Bytes a profile."""
    data, sample = Data(run), Data(run, min(run.profiles, SAMPLE))
    report = Report("size", "bytes a profile")
    core, five = data.catalog().open(), sample.catalog("five").open()
    sizes = {
        "kserve, core columns": core.nbytes / core.profiles,
        "kserve, with five topics": five.nbytes / five.profiles,
    }
    records = sample.records()
    with report.optional("redis"):
        sizes |= {f"redis, {name}": redis_size(run, records, encode) for name, encode in REDIS.items()}
    sizes |= _other_files(run, report, sample, records)
    for name, size in sizes.items():
        report.add(name, "B", [size])
    report.bar("size, core columns", [sizes["kserve, core columns"]], "at most", CORE_BAR, "B")
    report.bar("size, with five topics", [sizes["kserve, with five topics"]], "at most", FIVE_BAR, "B")
    if "redis, hashes" in sizes:
        report.bar(
            "Redis hashes / kserve, core",
            [sizes["redis, hashes"] / sizes["kserve, core columns"]],
            "at least",
            REDIS_BAR,
        )
    fixed = core.sections()["location_table"]["length"] / core.profiles
    report.notes.append(f"core: {core.profiles:,} profiles, of which the table of locations takes {fixed:.2f} B each")
    full = len(records) / (1 << (len(records) - 1).bit_length())
    report.notes.append(
        f"five topics and the others: {len(records):,} profiles; Redis' table of keys is {full:.0%} full"
    )
    return report


def _other_files(run: Run, report: Report, sample: Data, records: Records) -> dict[str, float]:
    """Bytes a profile in the files of stores without a server."""
    rows = len(records)
    sizes = {"parquet, uncompressed with dictionaries": folder_size(sample.input(), ".parquet") / rows}
    with report.optional("lmdb"):
        LmdbPeer(run, sample.folder / "lmdb", records.sorted()).close()
        sizes["lmdb, 12-byte values"] = folder_size(sample.folder / "lmdb", ".mdb") / rows
    with report.optional("rocksdb"):
        RocksdbPeer(run, sample.folder / "rocksdb", records.sorted()).close()
        sizes["rocksdb, 12-byte values, uncompressed"] = folder_size(sample.folder / "rocksdb" / "db", ".sst") / rows
    return sizes


def folder_size(folder: Path, suffix: str) -> int:
    """Bytes on disk of the files with that suffix."""
    return sum(512 * file.stat().st_blocks for file in folder.iterdir() if file.suffix == suffix)


def redis_size(run: Run, records: Records, encode: Callable[[Records], Iterator[tuple[bytes, int]]]) -> float:
    """Bytes of used_memory that each of these records adds."""
    server = RedisServer(run, most=None)
    try:
        client = server.client()
        before = client.info("memory")["used_memory"]
        for content, commands in encode(records):
            server.send([content], commands)
        return float(client.info("memory")["used_memory"] - before) / len(records)
    finally:
        server.close()


def _pieces(records: Records) -> Iterator[Records]:
    for start in range(0, len(records), REDIS_CHUNK):
        yield records[start : start + REDIS_CHUNK]


def hashes(records: Records) -> Iterator[tuple[bytes, int]]:
    """A hash for each profile."""
    for piece in _pieces(records):
        commands = [
            command(b"HSET", b"%d" % profile, *fields)
            for profile, fields in zip(piece.ids.tolist(), _fields(piece), strict=True)
        ]
        yield b"".join(commands), len(commands)


def _fields(piece: Records) -> Iterator[list[bytes]]:
    rows = zip(piece.scores.tolist(), piece.changes.tolist(), piece.locations.tolist(), strict=True)
    for score, (day, week, month), location in rows:
        fields = [b"f", b"0"]
        for name, value, missing in (
            (b"s", score, UNSCORED), (b"d", day, UNKNOWN_CHANGE), (b"w", week, UNKNOWN_CHANGE),
            (b"m", month, UNKNOWN_CHANGE), (b"l", location, 0),
        ):  # fmt: skip
            if value != missing:
                fields += [name, b"%d" % value]
        yield fields


def strings(records: Records) -> Iterator[tuple[bytes, int]]:
    """A string of 12 bytes for each profile, under a key of 8."""
    for piece in _pieces(records):
        yield mset(piece), 1


def buckets(records: Records) -> Iterator[tuple[bytes, int]]:
    """Hashes of about BUCKET profiles, small enough for Redis' compact form: 8-byte fields, 12-byte values."""
    ordered = records[np.argsort(records.ids % np.uint64(max(len(records) // BUCKET, 1)))]
    for piece in _pieces(ordered):
        rows = zip(piece.ids.tolist(), piece.packed().tolist(), strict=True)
        commands = [
            command(b"HSET", b"%d" % (profile % max(len(records) // BUCKET, 1)), profile.to_bytes(8, "little"), value)
            for profile, value in rows
        ]
        yield b"".join(commands), len(commands)


REDIS = {"hashes": hashes, "12-byte strings": strings, f"12-byte values in hashes of {BUCKET}": buckets}


def command(*words: bytes) -> bytes:
    """A command in Redis' protocol."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
