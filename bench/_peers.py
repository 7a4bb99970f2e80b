"""Other stores of the same records, for look-ups and loading, each with the settings that suit it best.

Where there is a choice, the peer gains: keys are made into its bytes before the clock starts, and what it answers is
left as it comes, while kserve takes ids and gives numbers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench._data import U64, UNSCORED, Records, chunks, keys
from bench._harness import Run, Skip, Stopwatch, plain_environment, say

LARGEST_DICT = 20_000_000
LARGEST_REDIS = 20_000_000
MAP_SIZE = 1 << 37  # of LMDB: address space, not disk
ROCKSDB_BLOCK = 1024  # bytes; smaller ones make point look-ups faster, see bench/README.md
REDIS_LOAD = 1000  # records in one MSET


class Peer(ABC):
    """One store, loaded. ``one`` looks up one key, and gives what the store has."""

    name: str
    one: Callable[[Any], object]

    @abstractmethod
    def keys(self, ids: U64) -> Any:
        """Ids in the form that the store takes; not timed."""

    @abstractmethod
    def many(self, wanted: Any) -> Any:
        """Look up a batch, as the store does it fastest."""

    @abstractmethod
    def hundredths(self, answers: Any) -> list[int]:
        """Scores in what :meth:`many` returned, 0 for none; not timed."""

    def close(self) -> None:
        """Give back what others would miss."""
        return


class DictPeer(Peer):
    """A Python dict of id to score."""

    name = "dict"

    def __init__(self, records: Records) -> None:
        say("filling a dict")
        points: list[float | None] = (records.scores / 100.0).tolist()
        for place in np.flatnonzero(records.scores == UNSCORED).tolist():
            points[place] = None
        self.scores = dict(zip(records.ids.tolist(), points, strict=True))
        self.one = self.scores.get

    def keys(self, ids: U64) -> list[int]:
        return list(ids.tolist())

    def many(self, wanted: list[int]) -> list[float | None]:
        get = self.scores.get
        return [get(i) for i in wanted]

    def hundredths(self, answers: list[float | None]) -> list[int]:
        return [0 if points is None else round(points * 100) for points in answers]


class SortedPeer(Peer):
    """np.searchsorted on sorted ids, and the scores found there; it does not look whether the id is the wanted one."""

    name = "searchsorted"

    def __init__(self, ordered: Records) -> None:
        self.ids, self.scores = ordered.ids, ordered.scores

    def keys(self, ids: U64) -> U64:
        return ids

    def many(self, wanted: U64) -> Any:
        return self.scores[np.searchsorted(self.ids, wanted)]

    def hundredths(self, answers: Any) -> list[int]:
        return [int(score) for score in answers]


class BytesPeer(Peer):
    """What stores of bytes have in common: their values are those of :meth:`Records.packed`."""

    byte_order = "<"

    def keys(self, ids: U64) -> list[bytes]:
        return keys(ids, self.byte_order)

    def hundredths(self, answers: Iterable[bytes | None]) -> list[int]:
        return [0 if value is None else int.from_bytes(value[:2], "little") for value in answers]


class LmdbPeer(BytesPeer):
    """LMDB with integer keys, one read transaction for all look-ups."""

    name = "lmdb"

    def __init__(self, run: Run, folder: Path, ordered: Records) -> None:
        run.require(self.name, module="lmdb")
        import lmdb

        if not (folder / ".whole").exists():
            say("loading LMDB")
            load_lmdb(folder, ordered)
            (folder / ".whole").touch()
        self.environment = lmdb.open(str(folder), map_size=MAP_SIZE, max_dbs=1, readonly=True, lock=False)
        self.transaction = self.environment.begin(db=self.environment.open_db(b"scores", integerkey=True, create=False))
        self.one = self.transaction.get

    def many(self, wanted: list[bytes]) -> list[bytes | None]:
        get = self.transaction.get
        return [get(key) for key in wanted]

    def close(self) -> None:
        self.transaction.abort()
        self.environment.close()


class Loading(NamedTuple):
    """Seconds of a load from sorted arrays, and those that the store itself took, without the making of bytes."""

    seconds: float
    in_store: float


def load_lmdb(folder: Path, ordered: Records) -> Loading:
    """Load records in append mode, and sync."""
    import lmdb

    shutil.rmtree(folder, ignore_errors=True)
    whole, store = Stopwatch(), Stopwatch()
    with whole:
        with store:
            environment = lmdb.open(str(folder), map_size=MAP_SIZE, max_dbs=1, sync=False)
            scores = environment.open_db(b"scores", integerkey=True)
            transaction = environment.begin(write=True, db=scores)
            cursor = transaction.cursor(scores)
        for items in chunks(ordered, "<"):
            with store:
                cursor.putmulti(items, append=True)
        with store:
            cursor.close()
            transaction.commit()
            environment.sync(True)
    environment.close()
    return Loading(whole.seconds, store.seconds)


class RocksdbPeer(BytesPeer):
    """RocksDB for point look-ups: one sorted file, mapped, without checksums, bloom filter, hashed blocks."""

    name = "rocksdb"
    byte_order = ">"

    def __init__(self, run: Run, folder: Path, ordered: Records) -> None:
        run.require(self.name, module="rocksdict")
        from rocksdict import Rdict, ReadOptions

        if not (folder / ".whole").exists():
            say("loading RocksDB")
            load_rocksdb(folder, ordered)
            (folder / ".whole").touch()
        self.store = Rdict(str(folder / "db"), rocksdb_options())
        options = ReadOptions()
        options.set_verify_checksums(False)
        self.store.set_read_options(options)
        self.one = self.store.get

    def many(self, wanted: Any) -> Any:
        return self.store[wanted]

    def close(self) -> None:
        self.store.close()


def rocksdb_options() -> Any:
    """The fastest of those tried for random point look-ups of what is in the page cache."""
    from rocksdict import BlockBasedOptions, Cache, ChecksumType, DataBlockIndexType, DBCompressionType, Options

    blocks = BlockBasedOptions()
    blocks.set_bloom_filter(10, False)
    blocks.set_block_size(ROCKSDB_BLOCK)
    blocks.set_data_block_index_type(DataBlockIndexType.binary_and_hash())
    blocks.set_data_block_hash_ratio(0.75)
    blocks.set_checksum_type(ChecksumType.no_checksum())
    blocks.set_block_cache(Cache(1 << 30))
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_compression_type(DBCompressionType.none())
    options.set_allow_mmap_reads(True)
    options.set_max_open_files(-1)
    options.set_block_based_table_factory(blocks)
    return options


def load_rocksdb(folder: Path, ordered: Records) -> Loading:
    """Load records through an SST file, RocksDB's fastest way from sorted keys, and sync."""
    from rocksdict import SstFileWriter

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sst = folder / "sorted.sst"
    whole, store = Stopwatch(), Stopwatch()
    with whole:
        with store:
            writer = SstFileWriter(rocksdb_options())
            writer.open(str(sst))
        for items in chunks(ordered, ">"):
            with store:
                for key, value in items:
                    writer[key] = value
        with store:
            writer.finish()
            _ingest(folder / "db", sst)
    return Loading(whole.seconds, store.seconds)


def _ingest(folder: Path, sst: Path) -> None:
    """Make the file the whole of a new database, and sync that."""
    from rocksdict import IngestExternalFileOptions, Rdict

    database = Rdict(str(folder), rocksdb_options())
    move = IngestExternalFileOptions()
    move.set_move_files(True)
    database.ingest_external_file([str(sst)], move)
    database.flush(True)
    database.close()
    for file in folder.iterdir():
        sync_file(file)


def sync_file(file: Path) -> None:
    """All of a file to the disk."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RedisServer:
    """A Redis of our own on a private unix socket, without persistence. Raises Skip if there is none.

    ``before``: what to put before its command. ``port``: where else it listens, 0 nowhere.
    """

    def __init__(self, run: Run, most: int | None = LARGEST_REDIS, before: Sequence[str] = (), port: int = 0) -> None:
        run.require("redis", most=most, module="redis", command="redis-server")
        self._folder = tempfile.TemporaryDirectory(prefix="kserve-bench-")
        self.path = f"{self._folder.name}/redis.sock"
        options = [
            "--port",
            str(port),
            "--unixsocket",
            self.path,
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            self._folder.name,
        ]
        command = [*before, "redis-server", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=plain_environment())
        deadline = time.monotonic() + 10
        while not Path(self.path).exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Skip("redis-server does not start")
            time.sleep(0.01)

    def client(self) -> Any:
        """A connection of redis-py, which takes hiredis when it is there."""
        import redis

        return redis.Redis(unix_socket_path=self.path)

    def send(self, commands: Iterable[bytes], n: int) -> None:
        """Mass insertion: n encoded commands, whose replies are only counted."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(self.path)
            replies = 0
            for command in commands:
                connection.sendall(command)
                connection.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    replies += connection.recv(1 << 16).count(b"\n")
                connection.setblocking(True)
            while replies < n:
                replies += connection.recv(1 << 16).count(b"\n")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self._folder.cleanup()


class RedisPeer(BytesPeer):
    """Redis strings, read by redis-py and hiredis with MGET in a pipeline."""

    name = "redis"

    def __init__(self, run: Run, records: Records) -> None:
        self.server = RedisServer(run)
        say("loading Redis")
        starts = range(0, len(records), REDIS_LOAD)
        self.server.send((mset(records[start : start + REDIS_LOAD]) for start in starts), len(starts))
        self.client = self.server.client()

    def many(self, wanted: list[bytes]) -> Any:
        return self.client.mget(wanted)

    def pipelined(self, batches: list[list[bytes]]) -> Any:
        """Several MGETs in one round trip."""
        pipeline = self.client.pipeline(transaction=False)
        for wanted in batches:
            pipeline.mget(wanted)
        return pipeline.execute()

    def close(self) -> None:
        self.client.close()
        self.server.close()


def mset(records: Records) -> bytes:
    """All of these records as one MSET, in Redis' protocol."""
    fields = [("key_size", "S4"), ("key", "<u8"), ("value_size", "S7"), ("value", "V12"), ("end", "S2")]
    rows = np.zeros(len(records), dtype=fields)
    rows["key_size"], rows["value_size"], rows["end"] = b"$8\r\n", b"\r\n$12\r\n", b"\r\n"
    rows["key"], rows["value"] = records.ids, records.packed()
    return b"*%d\r\n$4\r\nMSET\r\n" % (1 + 2 * len(rows)) + rows.tobytes()
