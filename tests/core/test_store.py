"""A store follows announcements by itself: in threads, in other processes, across forks, and past bad versions."""

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import snapshots
from waiting import PATIENCE, until

import kserve
from kserve._mapping import live_mappings
from kserve.settings import Settings
from kserve.snapshots.catalog import SNAPSHOT, Catalog

DAY = timedelta(days=1)
PROFILES = 400


def rows(shift):
    return [{"profile_id": i, "score": 10.0 + shift} for i in range(PROFILES)]


def mapped(data):
    return [mapping for mapping in live_mappings() if mapping.path.startswith(str(data))]


@pytest.fixture
def data(tmp_path):
    snapshots.publish(tmp_path, rows(0))
    return tmp_path


def next_day(data, shift):
    return snapshots.candidate(data, rows(shift), scored_at=snapshots.NOON + shift * DAY).version


def test_nothing_published_is_an_error(tmp_path):
    with pytest.raises(kserve.NothingPublished, match="kserve publish"):
        kserve.open(tmp_path)


def test_a_store_follows_and_lets_go(data):
    with kserve.open(data) as store:
        assert store.score(3) == 10.0
        held = store.snapshot()
        version = next_day(data, 1)
        snapshots.announce(data, version)
        until(lambda: store.version == version)
        assert (store.score(3), held.score(3)) == (11.0, 10.0)
        assert store.get(3).changes.day == 1.0
        assert {s.version for s in mapped(data)} >= {version, held.version}
        del held
        until(lambda: gc.collect() is not None and len(mapped(data)) == 1)
    with pytest.raises(kserve.KserveError, match="closed"):
        store.score(3)
    until(lambda: not mapped(data))


def test_a_store_that_is_dropped_ends_its_thread(data):
    before = threading.active_count()
    store = kserve.open(data)
    assert threading.active_count() == before + 1
    del store
    until(lambda: threading.active_count() == before)


def test_several_reads_of_one_version(data):
    with kserve.open(data) as store, store.snapshot() as snapshot:
        version = next_day(data, 1)
        snapshots.announce(data, version)
        until(lambda: store.version == version)
        assert snapshot.score(1) == snapshot.get(1).score == 10.0


def test_every_batch_is_of_one_version_while_versions_change(data):
    versions = [Catalog(data).announced(), *(next_day(data, shift) for shift in (1, 2, 3))]
    expected = {version: 10.0 + shift for shift, version in enumerate(versions)}
    ids = np.arange(PROFILES, dtype=np.uint64)
    wrong, seen, stop = [], set(), threading.Event()

    def read(store):
        while not stop.is_set():
            batch = store.get_many(ids)
            seen.add(batch.version)
            if not (batch.values == expected[batch.version]).all():
                wrong.append(batch)

    with kserve.open(data) as store:
        threads = [threading.Thread(target=read, args=(store,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for n in range(40):
            snapshots.announce(data, versions[n % 4])
            time.sleep(0.005)
        until(lambda: store.version == versions[3])
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert len(seen) > 1
    gc.collect()
    until(lambda: not mapped(data))


FOLLOWS = """
import sys, time, kserve
with kserve.open(sys.argv[1]) as store:
    print("ready", flush=True)
    end = time.monotonic() + 60
    while store.version != sys.argv[2] and time.monotonic() < end:
        time.sleep(0.001)
    print(store.score(1))
"""


@contextlib.contextmanager
def started(script, *arguments):
    """A process of this script; its pipe is closed, and it is gone, however the test ends."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_other_processes_follow(data):
    version = next_day(data, 1)
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(started(FOLLOWS, data, version)) for _ in range(3)]
        assert [child.stdout.readline() for child in children] == ["ready\n"] * 3
        snapshots.announce(data, version)
        assert [child.communicate(timeout=PATIENCE)[0] for child in children] == ["11.0\n"] * 3


FORKS = """
import os, sys, time, kserve
store = kserve.open(sys.argv[1])
before = store.version
child = os.fork()
os.write(1, b"ready" + bytes([10]))
end = time.monotonic() + 60
while store.version == before and time.monotonic() < end:
    time.sleep(0.001)
os.write(1, str(store.score(1)).encode() + bytes([10]))
if child:
    os.waitpid(child, 0)
"""


def test_both_sides_of_a_fork_follow(data):
    version = next_day(data, 1)
    with started(FORKS, data) as process:
        lines = [process.stdout.readline(), process.stdout.readline()]
        assert lines == ["ready\n"] * 2
        snapshots.announce(data, version)
        assert process.communicate(timeout=PATIENCE)[0] == "11.0\n11.0\n"


def damage(path):
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 64)
    path.chmod(0o444)


@pytest.mark.parametrize("verify", ["structure", "full"])
def test_a_version_that_cannot_be_served_is_left_alone(data, verify):
    settings = Settings(verify_at_open=verify)
    with kserve.open(data, settings=settings) as store:
        good = store.version
        bad, better = next_day(data, 1), next_day(data, 2)
        snapshots.announce(data, bad)
        until(lambda: store.version == bad)
        snapshots.announce(data, good)
        until(lambda: store.version == good)
        path = data / "snapshots" / bad / SNAPSHOT
        if verify == "full":
            damage(path)
        else:
            path.chmod(0o600)
            os.truncate(path, path.stat().st_size - 1)
        (data / "CURRENT").write_text(bad + "\n")
        Catalog(data).doorbell().wake()
        time.sleep(0.1)
        assert store.version == good
        assert store.score(1) == 10.0
        snapshots.announce(data, better)
        until(lambda: store.version == better)


def test_an_announcement_without_a_bell_is_found_too(data):
    """As when the directory is a copy that is kept up to date by other means."""
    version = next_day(data, 1)
    with kserve.open(data) as store:
        os.rename(data / "candidates" / version, data / "snapshots" / version)
        fresh = data / "CURRENT.new"
        fresh.write_text(version + "\n")
        os.replace(fresh, data / "CURRENT")
        until(lambda: store.version == version)


def test_a_version_that_arrives_after_its_announcement_is_served(data):
    """A copy may bring CURRENT first."""
    version = next_day(data, 1)
    with kserve.open(data) as store:
        (data / "CURRENT").write_text(version + "\n")
        Catalog(data).doorbell().wake()
        time.sleep(0.1)
        assert store.score(1) == 10.0
        os.rename(data / "candidates" / version, data / "snapshots" / version)
        until(lambda: store.version == version)


def test_a_damaged_version_that_is_put_right_is_served(data):
    version = next_day(data, 1)
    with kserve.open(data) as store:
        path = data / "candidates" / version / SNAPSHOT
        whole = path.read_bytes()
        os.rename(data / "candidates" / version, data / "snapshots" / version)
        path = data / "snapshots" / version / SNAPSHOT
        path.unlink()
        path.write_bytes(whole[:-1])
        (data / "CURRENT").write_text(version + "\n")
        time.sleep(1.2)
        assert store.score(1) == 10.0
        path.unlink()
        path.write_bytes(whole)
        until(lambda: store.version == version)


def test_a_damaged_announcement_keeps_what_is_served(data):
    version = next_day(data, 1)
    with kserve.open(data) as store:
        (data / "CURRENT").write_bytes(b"\xff oops")
        Catalog(data).doorbell().wake()
        time.sleep(0.05)
        assert store.score(1) == 10.0
        snapshots.announce(data, version)
        until(lambda: store.version == version)


def test_a_reader_needs_no_write_permission(data):
    Path(data / "DOORBELL").chmod(0o444)
    version = next_day(data, 1)
    with kserve.open(data) as store:
        Path(data / "DOORBELL").chmod(0o644)
        snapshots.announce(data, version)
        until(lambda: store.version == version)
