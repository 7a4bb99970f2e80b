"""What a catalog and a build do when their surroundings are not as they should be."""

import os
import resource
import subprocess
import sys
from datetime import timedelta

import pytest
import snapshots

import kserve
from kserve.settings import Settings
from kserve.snapshots import durable
from kserve.snapshots.catalog import MANIFEST, SNAPSHOT, Catalog
from kserve.snapshots.durable import lock, replace_file
from kserve.snapshots.orders import Orders

DAY = timedelta(days=1)


def rows(score):
    return [{"profile_id": i, "score": score} for i in range(50)]


@pytest.fixture
def data(tmp_path):
    snapshots.publish(tmp_path, rows(10.0))
    return tmp_path


@pytest.mark.parametrize("garbage", [b"oops", b"\xff\xfe", b"", b"../../etc\n"])
def test_a_damaged_announcement_is_an_error_for_readers_and_repaired_by_a_publish(data, garbage):
    (data / "CURRENT").write_bytes(garbage)
    with pytest.raises(kserve.SnapshotError, match="announcement"):
        Catalog(data).announced()
    assert [version.state for version in Catalog(data).versions()] == ["retired"]
    fresh = snapshots.publish(data, rows(20.0), scored_at=snapshots.NOON + DAY)
    assert Catalog(data).announced() == fresh.version
    assert fresh.get(1).changes.day == 10.0


def test_a_broken_neighbour_stops_nothing(data):
    first = Catalog(data).announced()
    second = snapshots.candidate(data, rows(20.0), scored_at=snapshots.NOON + DAY)
    (data / "candidates" / second.version / MANIFEST).write_text("{}")
    path = data / "snapshots" / first / SNAPSHOT
    path.chmod(0o600)
    os.truncate(path, 5000)
    made = snapshots.candidate(data, rows(30.0), scored_at=snapshots.NOON + DAY)
    assert [version.name for version in Catalog(data).versions()] == [made.version, first]
    assert any("day changes are not known" in warning for warning in made.warnings)
    assert snapshots.announce(data, made.version).get(1).changes.day is None


@pytest.mark.parametrize("published", [False, True])
def test_a_damaged_version_is_built_anew_from_its_input(data, published):
    made = snapshots.candidate(data, rows(20.0), scored_at=snapshots.NOON + DAY)
    catalog = Catalog(data)
    if published:
        snapshots.announce(data, made.version)
    path = catalog.folder(made.version) / SNAPSHOT
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(4100)
        file.write(b"\xff\xff")
    with pytest.raises(kserve.SnapshotError, match="section checksum"):
        snapshots.announce(data, made.version)
    again = snapshots.candidate(data, rows(20.0), scored_at=snapshots.NOON + DAY)
    assert again.version == made.version
    assert snapshots.announce(data, made.version).score(1) == 20.0


def test_a_damaged_version_and_its_new_candidate_are_one_version(data):
    """It is pruned with its candidate, and not in its stead."""
    catalog = Catalog(data)
    first = catalog.announced()
    path = catalog.snapshots / first / SNAPSHOT
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(4100)
        file.write(b"\xff\xff")
    assert snapshots.candidate(data, rows(10.0)).version == first
    assert os.listdir(catalog.candidates) == os.listdir(catalog.snapshots) == [first]
    assert [(version.name, version.state) for version in catalog.versions()] == [(first, "announced")]
    second = snapshots.publish(data, rows(20.0), scored_at=snapshots.NOON + DAY).version
    orders = Orders(catalog, Settings(data=data, by="me"))
    orders.judge_good(second)
    assert orders.prune(1)[0] == [first]
    assert (os.listdir(catalog.candidates), os.listdir(catalog.snapshots)) == ([], [second])


def test_a_file_that_another_process_is_making_is_left_alone(tmp_path, monkeypatch):
    """Of a process that this one cannot see, as in another container; what dead ones left is swept away."""
    path, others, syncs = tmp_path / "CURRENT", tmp_path / ".CURRENT.backup-1", []
    (tmp_path / ".CURRENT.12-0123abcd").touch()
    others.touch()
    real = os.fsync

    def fsync(descriptor):
        syncs.append(descriptor)
        if len(syncs) == 1:
            replace_file(path, b"theirs")
        real(descriptor)

    monkeypatch.setattr(durable.os, "getpid", lambda: 1 << 30)
    monkeypatch.setattr(durable.os, "fsync", fsync)
    replace_file(path, b"ours")
    assert path.read_bytes() == b"ours"
    assert sorted(tmp_path.iterdir()) == sorted([path, others])


def test_a_torn_line_of_the_log_hides_no_later_one(data):
    with (data / "log.jsonl").open("ab") as file:
        file.write(b'{"n": 2, "version": "2026')
    fresh = snapshots.publish(data, rows(20.0), scored_at=snapshots.NOON + DAY)
    newest = Catalog(data).versions()[0]
    assert (newest.name, newest.state) == (fresh.version, "announced")
    assert newest.announced_at is not None


def test_one_publisher_at_a_time_and_the_lock_ends_with_it(data):
    with lock(data / "LOCK", "publishing"):
        with pytest.raises(kserve.Busy, match="another process is publishing"):
            snapshots.announce(data, Catalog(data).announced())
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(5)"], close_fds=False)
    snapshots.announce(data, Catalog(data).announced())
    child.kill()
    child.wait()


def test_an_opted_out_person_is_not_served_from_another_row(tmp_path):
    for score in (60.0, 0.0):
        with pytest.raises(kserve.InputError, match=r"more than one row.*row 1 and .* row 2"):
            snapshots.candidate(
                tmp_path,
                [{"profile_id": 42, "score": 50.0}, {"profile_id": 42, "score": score, "opted_out": True}],
                max_rejects=5,
            )
    assert not list((tmp_path / "candidates").iterdir())


def test_duplicates_are_named_with_both_rows_and_briefly(tmp_path):
    with pytest.raises(kserve.InputError) as caught:
        snapshots.candidate(tmp_path, [{"profile_id": 7, "score": 50.0}] * 5000)
    text = str(caught.value)
    assert "profile 7 is in" in text
    assert text.count("profile 7 is in") == 1
    assert " row 1 and " in text
    assert "4,999 duplicate_id" in text
    assert len(text) < 1000


def test_claims_of_one_identity_by_everybody_are_counted_in_bounded_memory(tmp_path):
    many = [{"profile_id": i, "score": 50.0, "tw_name": "same"} for i in range(2000)]
    with pytest.raises(kserve.InputError, match="duplicate_identity"):
        snapshots.candidate(tmp_path, many)
    found = snapshots.publish(tmp_path, many, max_rejects=5000)
    found.verify()
    assert found.find("tw", "same") is None


def test_a_build_that_cannot_have_its_space_gives_all_of_it_back(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    source = snapshots.write_parquet(tmp_path / "input.parquet", rows(10.0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4200, hard))
    try:
        for _ in range(3):
            with pytest.raises(kserve.StorageError, match="building in"):
                kserve.snapshots.build.build(Catalog(tmp_path / "data"), source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(os.listdir("/proc/self/fd")) == before
    assert not list((tmp_path / "data" / "work").iterdir())


def test_scores_from_before_1970_are_refused(tmp_path):
    with pytest.raises(kserve.InputError, match="before 1970"):
        snapshots.candidate(tmp_path, rows(1.0), scored_at=snapshots.NOON.replace(year=900))


def test_a_place_where_only_someone_lived_who_has_opted_out_is_forgotten(tmp_path):
    snapshot = snapshots.publish(
        tmp_path,
        [
            {"profile_id": 1, "score": 5.0, "location": "US"},
            {"profile_id": 2, "score": 5.0, "location": "FR/Tiny/Village", "opted_out": True},
            {"profile_id": 3, "score": 5.0, "location": "US/Ohio"},
        ],
    )
    assert snapshot.locations() == ("US", "US/Ohio")
    assert [snapshot.get(i).location for i in (1, 3)] == ["US", "US/Ohio"]
