"""The roster: what processes say of themselves is what others read, whoever dies when, and counting costs nothing."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from waiting import PATIENCE

from kserve._roster import PREPARING, READY, REFUSED, RING, SEATS, Roster, Seat, Served

A, B, C = "20261121T040000Z-0000000a", "20261122T040000Z-0000000b", "20261123T040000Z-0000000c"
LARGEST = 2**64 - 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ROSTER"


@pytest.fixture
def seat(path: Path) -> Iterator[Seat]:
    found = Roster(path).take("server")
    yield found
    found.leave()


def only(path: Path):
    (view,) = Roster(path).seats()
    return view


def test_no_roster_is_nobody(path: Path) -> None:
    assert Roster(path).seats() == []
    assert len(Roster(path).hot_ids(10)) == 0
    assert Roster(path).order() is None
    assert not path.exists()


def test_what_a_process_says_is_what_others_read(path: Path, seat: Seat) -> None:
    before = time.time()
    seat.serve(A)
    seat.open_to("server", "http://127.0.0.1:8080")
    seat.stage(B, REFUSED, "é" * 1000)
    seat.resident(0.25)
    view = only(path)
    assert (view.pid, view.role, view.address) == (os.getpid(), "server", "http://127.0.0.1:8080")
    assert (view.version, view.previous, view.switches) == (A, None, 1)
    assert before <= view.switched <= time.time()
    assert (view.staged, view.staged_state, view.resident) == (B, REFUSED, 0.25)
    assert view.refused == "é" * 255
    seat.stage(None)
    assert (only(path).staged, only(path).staged_state, only(path).refused) == (None, "", "")


def test_ready_is_serving_it_or_having_staged_it(path: Path, seat: Seat) -> None:
    seat.serve(A)
    assert only(path).ready(A)
    assert not only(path).ready(B)
    for state, ready in ((PREPARING, False), (READY, True), (REFUSED, False)):
        seat.stage(B, state)
        assert only(path).ready(B) is ready


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("serve"), st.sampled_from([A, B, C])),
        st.tuples(
            st.just("answered"),
            st.sampled_from([A, B, C]),
            st.integers(0, LARGEST),
            st.one_of(st.none(), st.integers(100, 10_000).map(lambda hundredths: hundredths / 100)),
        ),
        st.tuples(st.just("unknown"), st.sampled_from([A, B, C]), st.integers(0, LARGEST)),
        st.tuples(st.just("asked"), st.sampled_from([A, B, C]), st.integers(0, LARGEST), st.booleans()),
        st.tuples(st.sampled_from(["failed", "succeeded"]), st.sampled_from([A, B, C])),
    ),
    max_size=60,
)


class Oracle:
    """The same counts, by version, slowly."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.version: str | None = None
        self.previous: str | None = None
        self.ids: list[int] = []

    def do(self, name: str, version: str, *rest: object) -> None:
        if name == "serve":
            if version != self.version:
                self.previous, self.version = self.version, version
                self.counts[version] = Counter()
            return
        if name in ("answered", "unknown", "asked"):
            self.ids.append(rest[0])
        if version not in (self.version, self.previous):
            return
        counts = self.counts[version]
        if name == "answered" and rest[1] is None:
            counts["unscored"] += 1
        elif name == "answered":
            hundredths = round(rest[1] * 100)
            counts.update(scored=1, hundredths=hundredths, squares=hundredths**2, lowest=int(hundredths == 100))
        elif name == "asked":
            counts.update(asked=1, eligible=int(rest[1]))
        else:
            counts[{"unknown": "unknown", "failed": "errors", "succeeded": "requests"}[name]] += 1

    def served(self, version: str | None) -> Served:
        counts = self.counts.get(version, Counter())
        answers = counts["scored"] + counts["unscored"] + counts["unknown"]
        return Served(**{name: counts[name] for name in Served._fields} | {"answers": answers})


def test_each_id_is_paired_once_and_anew_after_a_switch(tmp_path: Path) -> None:
    path = tmp_path / "ROSTER"
    seat = Seat(path, "server")
    seat.serve(A)
    for turn in range(60):
        seat.asked(A, turn % 20, turn % 2 == 0, turn % 4 == 0)
        seat.asked(A, 20 + turn % 20, True)
    seat.asked(C, 50, True, True)
    seat.flush()
    served = only(path).served
    assert (served.asked, served.paired, served.were_eligible, served.are_eligible) == (120, 20, 5, 10)
    seat.serve(B)
    seat.asked(B, 3, True, False)
    seat.asked(A, 60, True, True)
    seat.flush()
    view = only(path)
    assert (view.served.paired, view.served.were_eligible, view.served.are_eligible) == (1, 0, 1)
    assert (view.previous_served.asked, view.previous_served.paired) == (121, 20)


@given(ACTIONS)
def test_counts_belong_to_the_version_that_answered(tmp_path_factory: pytest.TempPathFactory, actions) -> None:
    path = tmp_path_factory.mktemp("roster") / "ROSTER"
    seat, oracle = Seat(path, "server"), Oracle()
    for name, version, *rest in actions:
        getattr(seat, name)(version, *rest)
        oracle.do(name, version, *rest)
    seat.flush()
    view = only(path)
    assert (view.version, view.served) == (oracle.version, oracle.served(oracle.version))
    assert (view.previous, view.previous_served) == (oracle.previous, oracle.served(oracle.previous))
    assert view.ids == len(oracle.ids)
    hot = Roster(path).hot_ids(100).tolist()
    assert sorted(hot) == sorted(set(oracle.ids))
    times = Counter(oracle.ids)
    assert [times[i] for i in hot] == sorted(times.values(), reverse=True)
    seat.leave()


def test_a_batch_counts_as_its_items_do(tmp_path: Path) -> None:
    ids = np.array([1, 2, 3, LARGEST], dtype=np.uint64)
    points, status = np.array([1.0, np.nan, np.nan, 99.99]), np.array([2, 1, 0, 2], dtype=np.uint8)
    one, many = Seat(tmp_path / "one", "server"), Seat(tmp_path / "many", "server")
    for seat in (one, many):
        seat.serve(A)
    one.answered(A, 1, 1.0)
    one.answered(A, 2, None)
    one.unknown(A, 3)
    one.answered(A, LARGEST, 99.99)
    many.answered_many(A, ids, points, status)
    for seat in (one, many):
        seat.flush()
    assert only(tmp_path / "one").served == only(tmp_path / "many").served
    assert only(tmp_path / "many").served.answers == 4
    with pytest.raises(ValueError, match="one length"):
        many.answered_many(A, ids[:2], points, status)
    with pytest.raises(OverflowError):
        many.answered(A, 2**64, 1.0)


def test_the_ring_keeps_the_last_ids(path: Path, seat: Seat) -> None:
    seat.serve(A)
    for turn in range(2):
        for i in range(RING - 500):
            seat.unknown(A, turn * RING + i)
        seat.flush()
    asked = [turn * RING + i for turn in range(2) for i in range(RING - 500)]
    assert sorted(Roster(path).hot_ids(2 * RING).tolist()) == sorted(asked[-RING:])


def test_hot_ids_are_those_of_all_processes(path: Path) -> None:
    seats = [Seat(path, "server") for _ in range(3)]
    for seat in seats:
        seat.serve(A)
        seat.unknown(A, 7)
        seat.flush()
    seats[0].unknown(A, 8)
    seats[0].unknown(A, 8)
    seats[0].flush()
    assert Roster(path).hot_ids(2).tolist() == [7, 8]
    seats[1].leave()
    assert len(Roster(path).seats()) == 2
    del seats


HOLDS = """
import sys, time
from kserve._roster import Seat
seat = Seat(sys.argv[1], "reader")
seat.serve(sys.argv[2])
print(seat.place, flush=True)
time.sleep(60)
"""


@contextmanager
def running(script: str, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of this script, and the first line that it prints; killed at the end."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_the_place_of_a_killed_process_is_taken_again(path: Path) -> None:
    with running(HOLDS, path, A) as (first, place), running(HOLDS, path, A) as (second, other):
        assert (place, other) == ("0", "1")
        assert [view.pid for view in Roster(path).seats()] == [first.pid, second.pid]
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert [view.pid for view in Roster(path).seats()] == [second.pid]
        seat = Seat(path, "server")
        assert seat.place == 0
        assert [view.pid for view in Roster(path).seats()] == [os.getpid(), second.pid]
        assert only_own(path).served == Served(*[0] * len(Served._fields))
        seat.leave()


def only_own(path: Path):
    return next(view for view in Roster(path).seats() if view.pid == os.getpid())


def test_a_child_has_a_place_of_its_own(path: Path, seat: Seat) -> None:
    seat.serve(A)
    seat.unknown(A, 1)
    seat.flush()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        seat.flush()  # does nothing: the place is the parent's
        seat.renew()
        seat.serve(B)
        seat.flush()
        os.write(
            write, repr([(v.place, v.pid == os.getpid(), v.served.answers) for v in Roster(path).seats()]).encode()
        )
        os._exit(0)
    seen = os.read(read, 4096).decode()
    os.waitpid(child, 0)
    assert seen == "[(0, False, 1), (1, True, 0)]"
    assert (only(path).pid, only(path).version, only(path).served.answers) == (os.getpid(), A, 1)


def test_more_processes_than_places_work_without(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seats = [Seat(path, "reader") for _ in range(SEATS)]
    assert sorted(seat.place for seat in seats) == list(range(SEATS))
    late = Seat(path, "reader")
    assert late.place == -1
    assert "seats are taken" in caplog.text
    late.serve(A)
    late.answered(A, 1, 1.0)
    late.flush()
    assert len(Roster(path).seats()) == SEATS
    seats[17].leave()
    assert Seat(path, "reader").place == 17


def test_a_reader_without_write_permission_has_no_place(tmp_path: Path) -> None:
    seat = Seat("/proc/ROSTER", "reader")
    assert seat.place == -1
    seat.serve(A)
    seat.flush()
    assert Seat(None, "reader").place == -1


FULL = """
import resource, signal, sys
from kserve._roster import Roster, Seat
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
seat = Seat(sys.argv[1], "server")
seat.serve("A")
seat.flush()
print(seat.place, len(Roster(sys.argv[1]).seats()))
"""


def test_no_room_on_the_disk_is_no_place_and_no_crash(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "-1 0\n"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1 << 20


@pytest.mark.parametrize("content", [b"x", b"KSROSTER" + b"\xff" * 5000])
def test_a_file_that_is_no_roster_is_replaced(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert Roster(path).seats() == []
    with path.open("rb") as held:
        seat = Seat(path, "reader")
        assert seat.place == 0
        assert held.read() == content
    assert only(path).pid == os.getpid()
    seat.leave()


def test_a_roster_that_was_cut_short_is_replaced(path: Path) -> None:
    Seat(path, "reader").leave()
    whole = path.stat().st_size
    os.truncate(path, whole - 4096)
    seat = Seat(path, "reader")
    assert (seat.place, path.stat().st_size) == (0, whole)
    assert only(path).pid == os.getpid()
    seat.leave()


def test_a_roster_that_was_replaced_is_noticed(path: Path) -> None:
    roster = Roster(path)
    seat = Seat(path, "reader")
    assert len(roster.seats()) == 1
    path.unlink()
    assert roster.seats() == []
    other = Seat(path, "reader")
    assert len(roster.seats()) == 1
    seat.leave()
    other.leave()


WRITES = """
import sys
from kserve._roster import Seat
seat = Seat(sys.argv[1], "server")
print("ready", flush=True)
n = 0
while True:
    n += 1
    letter = "abcdef"[n % 6]
    seat.open_to(letter * 15, letter * 120)
"""


def test_a_reader_never_sees_half_of_a_change(path: Path) -> None:
    roster, seen = Roster(path), set()
    with running(WRITES, path):
        end = time.monotonic() + 1.0
        while time.monotonic() < end or (seen != set("abcdef") and time.monotonic() < end + PATIENCE):
            for view in roster.seats():
                if view.address:
                    assert view.role == view.address[0] * 15
                    assert view.address == view.address[0] * 120
                    seen.add(view.address[0])
    assert seen == set("abcdef")


def test_threads_that_show_and_say_at_once(path: Path, seat: Seat) -> None:
    stop = threading.Event()

    def show() -> None:
        while not stop.is_set():
            seat.flush()

    threads = [threading.Thread(target=show) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(300):
        version = (A, B)[turn % 2]
        seat.serve(version)
        seat.answered(version, turn, 50.0)
    stop.set()
    for thread in threads:
        thread.join()
    seat.flush()
    assert (only(path).switches, only(path).served.answers, only(path).previous_served.answers) == (300, 1, 1)


def test_orders_are_kept_one_after_another(path: Path) -> None:
    seen = []

    def decide(kept: bytes | None) -> bytes:
        seen.append(kept)
        return f"order {len(seen)}".encode()

    roster = Roster(path)
    for _ in range(3):
        roster.keep_order(decide)
    assert seen == [None, b"order 1", b"order 2"]
    assert Roster(path).order() == b"order 3"
    with pytest.raises(ValueError, match="longer than"):
        roster.keep_order(lambda kept: b"x" * 1537)
    with pytest.raises(ZeroDivisionError):
        roster.keep_order(lambda kept: b"x" * (1 // 0))
    assert roster.order() == b"order 3"
    roster.keep_order(lambda kept: b"x" * 1536)
    assert roster.order() == b"x" * 1536


def test_an_order_is_decided_on_where_it_cannot_be_kept() -> None:
    seen = []
    Roster("/proc/ROSTER").keep_order(lambda kept: seen.append(kept) or b"")
    assert seen == [None]


def test_a_seat_that_could_not_be_made_closes_nothing_of_others() -> None:
    no_path: Any = 7
    ours = os.dup(0)
    try:
        with pytest.raises(TypeError):
            Seat(no_path, "reader")
        assert os.path.samestat(os.fstat(0), os.fstat(ours))
    finally:
        os.dup2(ours, 0)
        os.close(ours)
