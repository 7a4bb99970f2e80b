"""The log: chained, append-only, whole after a torn write, and told when it was altered."""

import json
import sys
import threading
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kserve
from kserve.snapshots.log import ACTS, Log, line_digest

TEXT = st.text(max_size=20)


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "log.jsonl")


def add(log, count, **known):
    return [log.append("stage", by="me", version=f"v{i}", **known) for i in range(count)]


def test_an_empty_log_is_whole(log):
    assert (log.entries(), log.verify()) == ([], 0)


def test_each_line_carries_the_digest_of_the_one_before(log):
    entries = add(log, 5, why="so", seen={"figure": 1.5, "words": ["ü", "\n"]})
    lines = log.path.read_bytes().splitlines()
    assert log.entries() == entries
    assert [entry.n for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry.prev for entry in entries] == ["", *(sha256(line).hexdigest() for line in lines[:-1])]
    assert [line_digest(entry) for entry in entries] == [sha256(line).hexdigest() for line in lines]
    assert log.verify() == 5


def test_only_what_is_new_is_read_again(log):
    reader = Log(log.path)
    first = add(log, 2)
    assert reader.entries() == first
    last = add(log, 1)
    assert reader.entries(after=2) == last
    assert reader.entries() == first + last


def test_another_log_in_its_place_is_read_from_its_beginning(log, tmp_path):
    add(log, 3)
    reader = Log(log.path)
    reader.entries()
    log.path.rename(tmp_path / "old")
    fresh = add(log, 1)
    assert reader.entries() == fresh


@given(who=TEXT, why=st.none() | TEXT, seen=st.dictionaries(TEXT, st.none() | TEXT | st.integers(0, 2**53)))
def test_whatever_is_told_is_read_back(tmp_path_factory, who, why, seen):
    log = Log(tmp_path_factory.mktemp("log") / "log.jsonl")
    entry = log.append("pin", by=who, why=why, seen=seen)
    assert Log(log.path).entries() == [entry]
    assert log.verify() == 1


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_line_is_no_entry_and_the_chain_goes_on(log, cut):
    add(log, 2)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-cut])
    assert len(Log(log.path).entries()) == (2 if cut == 1 else 1)
    fresh = Log(log.path).append("pin", by="me")
    assert Log(log.path).entries()[-1] == fresh
    assert log.verify() == (3 if cut == 1 else 2)


@pytest.mark.parametrize("line", [0, 1, 2])
@pytest.mark.parametrize("change", ["altered", "deleted", "doubled", "moved"])
def test_a_changed_past_is_told(log, line, change):
    add(log, 4)
    lines = log.path.read_bytes().splitlines()
    if change == "altered":
        told = json.loads(lines[line])
        lines[line] = json.dumps(told | {"by": "somebody else"}).encode()
    elif change == "deleted":
        del lines[line]
    elif change == "doubled":
        lines.insert(line, lines[line])
    else:
        lines[line], lines[line + 1] = lines[line + 1], lines[line]
    log.path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(kserve.SnapshotError, match=r"log\.jsonl.*line \d does not follow"):
        log.verify()


def test_many_writers_make_one_chain(log):
    threads = [threading.Thread(target=add, args=(Log(log.path), 20)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log.verify() == 160


def test_one_log_is_read_by_many_threads(log):
    """None of them hears of an act twice, or not at all."""
    done = threading.Event()
    wrong = []

    def read():
        while not done.is_set():
            numbers = [entry.n for entry in log.entries()]
            if numbers != list(range(1, len(numbers) + 1)):
                wrong.append(numbers)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    readers = [threading.Thread(target=read) for _ in range(4)]
    for thread in readers:
        thread.start()
    add(Log(log.path), 200)
    done.set()
    for thread in readers:
        thread.join()
    sys.setswitchinterval(interval)
    assert wrong == []


def test_a_log_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(kserve.StorageError, match=r"writing .*log\.jsonl"):
        Log(tmp_path / "log.jsonl").append(ACTS[0], by="me")
