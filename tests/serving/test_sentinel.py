"""The sentinel: what it thinks of figures, against a slow twin; and what it does, on real servers that are killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import snapshots
from hypothesis import given
from serving.processes import Load, acts, orders, seats, servers
from serving.processes import Served as Server
from waiting import until

from kserve._roster import Seat, SeatView, Served
from kserve._sample import sample
from kserve.serving import verdict
from kserve.serving.keys import Keys
from kserve.serving.sentinel import NOTHING, History, Sentinel, minus, plus, total
from kserve.serving.verdict import Bounds, Pairs
from kserve.settings import MODELS, Settings, Watch
from kserve.snapshots.catalog import Catalog

BOUNDS = Bounds.of(Watch())
DAY = timedelta(days=1)


# What it thinks.


def counts(scores: list[float | None] | None = None, **others: int) -> Served:
    """The counts of these answers; an answer of None is unscored, one below 1 unknown."""
    scores = scores or []
    known = [round(score * 100) for score in scores if score is not None and score >= 1]
    found = {
        "answers": len(scores),
        "scored": len(known),
        "unscored": scores.count(None),
        "lowest": known.count(100),
        "hundredths": sum(known),
        "squares": sum(score * score for score in known),
    }
    found["unknown"] = found["answers"] - found["scored"] - found["unscored"]
    return NOTHING._replace(**found, **others)


ANSWERS = st.lists(
    st.tuples(st.sampled_from([None, 0.0, 1.0, 1.01, 33.3, 50.0, 99.99, 100.0]), st.integers(1, 90)), max_size=8
).map(lambda runs: [score for score, times in runs for _ in range(times)])


def proportion_breaches(before: list[bool], after: list[bool], bound: float, either_way: bool = False) -> bool:
    """From the answers themselves."""
    old, new, pooled = statistics.fmean(before), statistics.fmean(after), statistics.fmean(before + after)
    change = abs(new - old) if either_way else new - old
    deviation = math.sqrt(pooled * (1 - pooled) / len(before) + pooled * (1 - pooled) / len(after))
    return change > bound and change > verdict.SIGNIFICANT * deviation


@given(ANSWERS, ANSWERS)
def test_served_answers_against_a_slow_twin(before: list[float | None], after: list[float | None]) -> None:
    found = verdict.served(counts(before), counts(after), BOUNDS)
    enough = min(len(before), len(after)) >= BOUNDS.answers
    for name, test, bound in (
        ("unknown", lambda score: score == 0, BOUNDS.unknown),
        ("unscored", lambda score: score is None, BOUNDS.unknown),
        ("lowest", lambda score: score is not None and round(score * 100) == 100, BOUNDS.lowest),
    ):
        expected = enough and proportion_breaches([test(s) for s in before], [test(s) for s in after], bound)
        assert (name in found) == expected
    old, new = ([round(s * 100) / 100 for s in scores if s is not None and s >= 1] for scores in (before, after))
    if min(len(old), len(new)) >= BOUNDS.answers:
        change = abs(statistics.fmean(new) - statistics.fmean(old))
        deviation = math.sqrt(statistics.pvariance(old) / len(old) + statistics.pvariance(new) / len(new))
        expected = change / statistics.fmean(old) > BOUNDS.mean and change > verdict.SIGNIFICANT * deviation
        assert ("mean" in found) == expected
    else:
        assert "mean" not in found


@given(st.lists(st.booleans(), min_size=1, max_size=300), st.lists(st.booleans(), min_size=1, max_size=300))
def test_eligibility_and_errors_against_a_slow_twin(before: list[bool], after: list[bool]) -> None:
    def told(answers: list[bool]) -> Served:
        yes, no = sum(answers), len(answers) - sum(answers)
        return counts(asked=len(answers), eligible=yes, errors=yes, requests=no)

    found = verdict.served(told(before), told(after), BOUNDS)
    enough = min(len(before), len(after)) >= BOUNDS.answers
    assert ("eligible" in found) == (enough and proportion_breaches(before, after, BOUNDS.eligible, either_way=True))
    assert ("errors" in found) == (enough and proportion_breaches(before, after, BOUNDS.errors))


STORED = st.lists(st.one_of(st.sampled_from([0, 0xFFFF, 100]), st.integers(100, 10_000)), min_size=1, max_size=300)


@given(st.data())
def test_pairs_against_a_slow_twin(data: st.DataObject) -> None:
    old = data.draw(STORED)
    new = data.draw(st.lists(st.sampled_from([*old, 0, 0xFFFF, 100]), min_size=len(old), max_size=len(old)))
    pairs = Pairs.of(np.array(old, dtype=np.uint16), np.array(new, dtype=np.uint16))
    both = [(a, b) for a, b in zip(old, new, strict=True) if a not in (0, 0xFFFF) and b not in (0, 0xFFFF)]
    assert (pairs.ids, pairs.both) == (len(old), len(both))
    for name, value in (("unknown", 0), ("unscored", 0xFFFF), ("lowest", 100)):
        assert getattr(pairs, name) == pytest.approx((old.count(value) / len(old), new.count(value) / len(new)))
    if both:
        assert pairs.moved == pytest.approx(sum(abs(b - a) > 1000 for a, b in both) / len(both))
        assert pairs.mean == pytest.approx(tuple(statistics.fmean(column) / 100 for column in zip(*both, strict=True)))


@given(STORED)
def test_a_version_is_as_good_as_itself(stored: list[int]) -> None:
    scores = np.array(stored, dtype=np.uint16)
    assert verdict.hot(Pairs.of(scores, scores), BOUNDS) == {}


def pairs(share_bad: float, to: int, of: int = 1000) -> Pairs:
    old = np.full(of, 5000, dtype=np.uint16)
    new = old.copy()
    new[: round(share_bad * of)] = to
    return Pairs.of(old, new)


@pytest.mark.parametrize(
    ("to", "share", "figures"),
    [
        (0, 0.06, {"hot_unknown"}),
        (0, 0.04, set()),
        (0xFFFF, 0.06, {"hot_unscored"}),
        (100, 0.03, {"hot_lowest"}),
        (100, 0.01, set()),
        (6500, 0.06, {"hot_moved"}),
        (5900, 0.20, set()),
        (5600, 1.0, {"hot_mean"}),
    ],
)
def test_what_the_same_ids_show(to: int, share: float, figures: set[str]) -> None:
    assert set(verdict.hot(pairs(share, to), BOUNDS)) == figures


def test_few_ids_show_nothing() -> None:
    assert verdict.hot(pairs(1.0, 100, of=99), BOUNDS) == {}


def test_other_traffic_is_not_the_versions_fault() -> None:
    """A crawler asks for ids that nobody has, another campaign for the famous: on both versions alike."""
    before = counts([50.0] * 1000)
    crawled = counts([0.0] * 500 + [50.0] * 500)
    famous = counts([95.0] * 1000)
    alike = pairs(0.0, 0)
    assert set(verdict.served(before, crawled, BOUNDS)) == {"unknown"}
    assert verdict.verdict(before, crawled, alike, alike, BOUNDS) == {}
    assert verdict.verdict(before, famous, alike, alike, BOUNDS) == {}
    assert set(verdict.verdict(before, famous, None, None, BOUNDS)) == {"mean"}


def test_two_witnesses_need_fewer_ids() -> None:
    """What is asked for is bad, although it is a small part of all."""
    before, after = counts([50.0] * 1000), counts([1.0] * 500 + [50.0] * 500)
    found = verdict.verdict(before, after, pairs(0.5, 100, of=60), pairs(0.005, 100), BOUNDS)
    assert set(found) == {"lowest", "mean"}


@pytest.mark.parametrize(("after", "to"), [(56.0, 5600), (1.0, 100), (0.0, 0), (None, 0xFFFF)])
def test_one_profile_that_everybody_looks_at_is_no_witness(after: float | None, to: int) -> None:
    """It grew, fell, left, or lost its score, as any may in a night: that is no fault of the version."""
    before, now = counts([50.0] * 1000), counts([after] * 1000)
    some = pairs(0.0, 0)
    assert verdict.served(before, now, BOUNDS)
    assert verdict.verdict(before, now, pairs(1.0, to, of=1), some, BOUNDS) == {}
    assert verdict.verdict(before, now, pairs(1.0, to, of=verdict.WITNESSES), some, BOUNDS)


@pytest.mark.parametrize(
    ("after", "breached"),
    [
        ({"paired": 1000, "were_eligible": 100, "are_eligible": 90}, False),
        ({"paired": 1000, "were_eligible": 900, "are_eligible": 100}, True),
        ({"paired": 1000, "were_eligible": 100, "are_eligible": 900}, True),
        ({"paired": verdict.WITNESSES - 1, "were_eligible": verdict.WITNESSES - 1, "are_eligible": 0}, False),
        ({"paired": verdict.WITNESSES, "were_eligible": verdict.WITNESSES, "are_eligible": 0}, True),
        ({}, False),
    ],
)
def test_other_rules_are_not_the_versions_fault(after: dict[str, int], breached: bool) -> None:
    """Eligibility counts when the same ids by the same rules show it; or alone, without a good version before."""
    before, now = counts(asked=1000, eligible=900), counts(asked=1000, eligible=100, **after)
    same = pairs(0.0, 0)
    assert set(verdict.served(before, now, BOUNDS)) == {"eligible"}
    assert set(verdict.verdict(before, now, same, same, BOUNDS)) == ({"eligible"} if breached else set())
    assert set(verdict.verdict(before, now, same, same, BOUNDS, paired_with_good=False)) == {"eligible"}


def test_errors_need_no_second_witness() -> None:
    before, after = counts(requests=1000), counts(requests=900, errors=100)
    assert set(verdict.verdict(before, after, pairs(0.0, 0), pairs(0.0, 0), BOUNDS)) == {"errors"}


def test_failures_are_told_apart_from_other_traffic() -> None:
    before = counts([50.0] * 1000, requests=1000, asked=1000, eligible=900)
    after = counts([95.0] * 500 + [0.0] * 500, requests=1000, asked=1000, eligible=100)
    assert set(verdict.served(before, after, BOUNDS)) == {"unknown", "mean", "eligible"}
    assert verdict.failures(before, after, BOUNDS) == {}
    assert set(verdict.failures(before, after._replace(errors=50), BOUNDS)) == {"errors"}


def test_a_declared_model_has_wider_bounds() -> None:
    wide = Bounds.of(Watch(), MODELS["2011-10"])
    moved = pairs(0.9, 3500)
    assert set(verdict.hot(moved, BOUNDS)) == {"hot_moved", "hot_mean"}
    assert verdict.hot(moved, wide) == {}
    assert set(verdict.hot(pairs(0.9, 100), wide)) >= {"hot_lowest"}
    assert set(verdict.hot(pairs(0.06, 0), wide)) == {"hot_unknown"}


# What it remembers.


def view(pid: int, version: str, served: Served, switched: float, switches: int = 1, **others: object) -> SeatView:
    fields = {"place": pid, "pid": pid, "role": "server", "since": 1.0, "address": "", "version": version}
    fields |= {"switched": switched, "switches": switches, "staged": None, "staged_state": "", "refused": ""}
    fields |= {"resident": None, "ids": 0, "served": served, "previous": None, "previous_served": NOTHING}
    return SeatView(**(fields | others))


def test_what_was_answered_before_anyone_looked_is_not_counted() -> None:
    history = History(60)
    history.add(0.0, [view(1, "A", counts([5.0] * 1000), switched=50.0)], wall=100.0)
    history.add(0.25, [view(1, "A", counts([5.0] * 1010), switched=50.0)], wall=100.25)
    assert history.answers("A", 0, 1).answers == 10


def test_a_switch_ends_one_spell_and_begins_another() -> None:
    history = History(60)
    history.add(0.0, [view(1, "A", counts([5.0] * 100), switched=50.0)], wall=100.0)
    later = view(
        1, "B", counts([1.0] * 7), switched=100.1, switches=2, previous="A", previous_served=counts([5.0] * 105)
    )
    history.add(0.25, [later, view(2, "B", counts([1.0] * 3), switched=100.2)], wall=100.25)
    assert history.answers("A", 0, 1).answers == 5
    assert (history.answers("B", 0, 1).lowest, history.answers("B", 0.25, 0.25)) == (10, NOTHING)


def test_history_is_bounded() -> None:
    history = History(10)
    for turn in range(400):
        history.add(turn / 4, [view(1, "A", counts([5.0] * turn), switched=50.0)], wall=100.0 + turn / 4)
    assert history.answers("A", 0, 100).answers == 10 * 4 + 1
    assert len(history._samples) == 41


SERVED = st.builds(Served, *[st.integers(0, 2**60)] * len(Served._fields))


@given(st.lists(SERVED, max_size=5), SERVED)
def test_counts_add_up(many: list[Served], one: Served) -> None:
    assert total(many) == Served(*(sum(values) for values in zip(NOTHING, *many, strict=True)))
    assert minus(plus(total(many), one), one) == total(many)


def test_a_sample_is_of_the_profiles_that_there_are(tmp_path: Path) -> None:
    ids = set(range(0, 5000, 5))
    snapshot = snapshots.publish(tmp_path, [{"profile_id": i, "score": 5.0} for i in ids])
    drawn = sample(snapshot, 400, 1).tolist()
    assert set(drawn) <= ids
    assert len(set(drawn)) == len(drawn) > 250
    assert drawn == sample(snapshot, 400, 1).tolist() != sample(snapshot, 400, 2).tolist()
    assert set(sample(snapshot, 20_000, 3).tolist()) == ids
    assert sample(snapshot, 0, 3).tolist() == []


# What it does.

PROFILES = 1500
ROLLED_BACK_WITHIN = 10.0
"""Seconds; `make drill` shows how soon it is."""
Score = Callable[[int], float | None]


def fine(i: int) -> float:
    return 10.0 + i % 70


def ruined(i: int) -> float:
    return 1.0 if i % 10 else fine(i)


def rows(score: Score) -> list[dict[str, object]]:
    return [{"profile_id": i, "score": score(i)} for i in range(PROFILES)]


def placed(data: Path, score: Score, day: int) -> str:
    version = snapshots.candidate(data, rows(score), scored_at=snapshots.NOON + day * DAY).version
    Catalog(data).place(version)
    return version


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """With one good version in force."""
    folder = tmp_path / "data"
    orders(folder).judge_good(snapshots.publish(folder, rows(fine)).version)
    return folder


def announced(data: Path) -> str | None:
    return Catalog(data).announced()


def all_serve(data: Path, version: str | None) -> bool:
    return {seat.version for seat in seats(data)} == {version}


def any_id(turn: int) -> int:
    return turn * 7919 % PROFILES


@pytest.mark.heavy
def test_a_bad_version_under_load_is_taken_back_once_by_one(data: Path) -> None:
    good = announced(data)
    bad = placed(data, ruined, 1)
    with servers(data, 3) as found, Load(found, any_id) as load:
        until(lambda: len(load.told) > 1000)
        start = time.monotonic()
        orders(data).announce(bad, against=good)
        seconds = until(lambda: announced(data) == good)
        until(lambda: all_serve(data, good))
        time.sleep(0.6)
    assert seconds < ROLLED_BACK_WITHIN
    assert acts(data) == ["announce", "good", "announce", "breach", "rollback"]
    *_, breach, rollback = Catalog(data).log.entries()
    assert (breach.version, breach.by) == (bad, f"sentinel@{os.uname().nodename}")
    assert {"hot_lowest", "hot_moved", "hot_mean"} <= breach.seen["figures"].keys()
    assert breach.seen["figures"]["hot_lowest"]["figure"] == pytest.approx(0.9, abs=0.02)
    assert (rollback.version, rollback.seen["from"], rollback.seen["by_sentinel"]) == (good, bad, True)
    state = orders(data).state()
    assert state.pin is not None
    assert (state.pin.version, state.frozen) == (good, True)
    wrong = [at - start for at, version, _ in load.told if version == bad]
    assert max(wrong, default=0) < ROLLED_BACK_WITHIN
    assert load.told[-1][1] == good


@pytest.mark.heavy
def test_a_good_version_is_judged_good(data: Path) -> None:
    better = placed(data, lambda i: fine(i) + 0.25, 1)
    with servers(data, 2, watch__seconds="1") as found, Load(found, any_id):
        orders(data).announce(better, against=announced(data))
        until(lambda: orders(data).state().unjudged is None)
    assert acts(data) == ["announce", "good", "announce", "good"]
    good = Catalog(data).log.entries()[-1]
    assert (good.version, good.by) == (better, f"sentinel@{os.uname().nodename}")
    assert good.seen["answers"] > 0


@pytest.mark.heavy
@pytest.mark.parametrize(
    "bad", [lambda i: None if i % 5 == 0 else fine(i), lambda i: fine(i) + 12], ids=["unscored", "moved"]
)
def test_without_traffic_the_version_itself_is_looked_at(data: Path, bad: Score) -> None:
    good = announced(data)
    version = placed(data, bad, 1)
    with servers(data, 1):
        orders(data).announce(version, against=good)
        until(lambda: announced(data) == good)
    assert acts(data)[-2:] == ["breach", "rollback"]


@pytest.mark.heavy
def test_lost_profiles_are_noticed(data: Path) -> None:
    good = announced(data)
    rest = [row for row in rows(fine) if row["profile_id"] % 8]
    version = snapshots.candidate(data, rest, scored_at=snapshots.NOON + DAY).version
    Catalog(data).place(version)
    with servers(data, 2) as found, Load(found, any_id):
        orders(data).announce(version, against=good)
        until(lambda: announced(data) == good)
    figures = Catalog(data).log.entries()[-2].seen["figures"]
    assert "hot_unknown" in figures


@pytest.mark.heavy
def test_a_crawler_does_not_take_a_good_version_back(data: Path) -> None:
    better = placed(data, lambda i: fine(i) + 0.25, 1)
    with servers(data, 2, watch__seconds="2") as found, Load(found, any_id) as load:
        until(lambda: lock_holder(data) and len(load.told) > 1000)
        orders(data).announce(better, against=announced(data))
        with Load(found, lambda turn: 10**9 + turn), Load(found, lambda turn: 2 * 10**9 + turn):
            until(lambda: orders(data).state().unjudged is None)
    assert acts(data)[-2:] == ["announce", "good"]


class Campaign(threading.Thread):
    """Asks a server who is eligible by a rule, a hundred at a time, until it is told to end."""

    def __init__(self, server: Server, rule: dict[str, object]) -> None:
        super().__init__(daemon=True)
        self.rule = rule
        self.asked = 0
        self._server = server
        self._ended = threading.Event()

    def __enter__(self) -> Campaign:
        self.start()
        until(lambda: self.asked > 10)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join(20)

    def run(self) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=20)) as connection:
            while not self._ended.wait(0.01):
                ids = [str((self.asked * 100 + i) % PROFILES) for i in range(100)]
                body = json.dumps({"rule": self.rule, "ids": ids})
                connection.request("POST", "/v3/eligibility", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                assert response.status == 200, response.read()
                response.read()
                self.asked += 1


@pytest.mark.heavy
def test_a_campaign_that_begins_does_not_take_a_good_version_back(data: Path) -> None:
    """Nearly all were eligible, and by its rule nearly nobody is: by the version before, too."""
    better = placed(data, lambda i: fine(i) + 0.25, 1)
    with servers(data, 1, watch__seconds="2") as (server,), Campaign(server, {"min_score": 10}) as campaign:
        time.sleep(1)
        orders(data).announce(better, against=announced(data))
        campaign.rule = {"min_score": 78}
        until(lambda: orders(data).state().unjudged is None)
        (seat,) = seats(data)
        assert seat.served.paired > 300
        assert seat.served.asked - seat.served.eligible > 1000
    assert acts(data)[-2:] == ["announce", "good"]


@pytest.mark.heavy
def test_keys_that_cannot_be_read_are_not_the_versions_fault(data: Path) -> None:
    _, text = Keys(data).create("maria", ["admin"])
    with servers(data, 1, open="false") as (server,):
        for file in data.glob("keys.db*"):
            file.unlink()
        (data / "keys.db").write_bytes(b"no database" * 100)
        until(lambda: "keys cannot be read" in server.log())
        for key in (text, "ks_live_someone") * 20:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as connection:
                connection.request("GET", "/v3/scores/1", headers={"X-Api-Key": key})
                assert connection.getresponse().status >= 400
        time.sleep(0.3)
        assert seats(data)[0].served.errors == 0


@pytest.mark.heavy
def test_places_that_were_mixed_up_are_noticed_by_those_who_are_asked_for(data: Path) -> None:
    """No score has changed, so nothing but eligibility shows it."""

    def located(day: int, place: Callable[[int], str]) -> str:
        people = [row | {"location": place(i)} for i, row in enumerate(rows(fine))]
        version = snapshots.candidate(data, people, scored_at=snapshots.NOON + day * DAY).version
        Catalog(data).place(version)
        return version

    good = located(1, lambda i: "US/New York" if i % 2 else "US/Boston")
    orders(data).announce(good, against=announced(data))
    orders(data).judge_good(good)
    bad = located(2, lambda i: "US/New York" if i % 10 else "US/Boston")
    with servers(data, 1) as (server,), Campaign(server, {"locations": ["US/New York"]}):
        time.sleep(1)
        orders(data).announce(bad, against=good)
        until(lambda: announced(data) == good)
    assert set(Catalog(data).log.entries()[-2].seen["figures"]) == {"eligible"}


@pytest.mark.heavy
def test_another_takes_over_from_a_killed_one(data: Path) -> None:
    """Whoever acts is killed while it watches; a server that starts meanwhile takes its seat."""
    good = announced(data)
    better = placed(data, lambda i: fine(i) + 0.25, 1)
    with servers(data, 3, watch__seconds="3") as found:
        orders(data).announce(better, against=good)
        until(lambda: all_serve(data, better) and lock_holder(data))
        holder = next(server for server in found if lock_holder(data) in server.children())
        worker = holder.worker
        place = next(seat.place for seat in seats(data) if seat.pid == worker)
        holder.kill()
        until(lambda: any(lock_holder(data) in server.children() for server in found if server is not holder))
        with servers(data, 1) as (fresh,):
            assert next(seat.place for seat in seats(data) if seat.pid == fresh.worker) == place
            until(lambda: orders(data).state().unjudged is None)
    assert acts(data)[-2:] == ["announce", "good"]


def lock_holder(data: Path) -> int | None:
    """The process that has the sentinel's lock, as the kernel says."""
    if not (data / "SENTINEL").exists():
        return None
    inode = (data / "SENTINEL").stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            return int(fields[4])
    return None


ANNOUNCES_AND_DIES = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from serving.processes import orders
acts = orders(Path(sys.argv[2]))
acts.announce(sys.argv[3], against=acts.catalog.announced())
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.heavy
def test_it_needs_no_publisher_and_no_earlier_life(data: Path) -> None:
    """The publisher dies, and so do all servers, before anybody could look; the next server looks first."""
    good = announced(data)
    bad = placed(data, ruined, 1)
    tests = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", ANNOUNCES_AND_DIES, tests, str(data), bad], check=False)
    assert announced(data) == bad
    with servers(data, 1):
        until(lambda: announced(data) == good)
    assert acts(data)[-2:] == ["breach", "rollback"]


@pytest.mark.heavy
def test_it_carries_out_what_somebody_had_begun(data: Path) -> None:
    """A rollback is in the log, and who wrote it died before CURRENT said so."""
    good = announced(data)
    bad = placed(data, fine, 1)
    orders(data).announce(bad, against=good)
    before = (data / "CURRENT").read_bytes()
    orders(data).rollback(why="a test")
    (data / "CURRENT").write_bytes(before)
    with servers(data, 2):
        until(lambda: announced(data) == good)
        until(lambda: all_serve(data, good))
    assert acts(data).count("rollback") == 1


@pytest.mark.heavy
def test_with_nothing_to_go_back_to_it_calls_for_a_human(tmp_path: Path) -> None:
    """The first version was never judged good; the second answers badly, in what is served."""
    data = tmp_path / "data"
    first = snapshots.publish(data, rows(fine)).version
    bad = placed(data, ruined, 1)
    orders(data).judge_good(first)
    with servers(data, 1) as found, Load(found, any_id) as load:
        until(lambda: lock_holder(data))
        asked = len(load.told)
        until(lambda: len(load.told) > asked + 1000)
        path = Catalog(data).snapshots / first / "snapshot.kss"
        path.rename(path.with_name("gone"))
        orders(data).announce(bad, against=first)
        until(lambda: orders(data).state().frozen)
        time.sleep(0.6)
        assert announced(data) == bad
    assert acts(data)[-2:] == ["breach", "freeze"]


@pytest.mark.heavy
def test_it_rolls_back_once_and_then_waits_for_a_human(data: Path) -> None:
    good = announced(data)
    bad, worse = placed(data, ruined, 1), placed(data, lambda i: 1.0, 2)
    with servers(data, 2, watch__seconds="1"):
        orders(data).announce(bad, against=good)
        until(lambda: announced(data) == good)
        time.sleep(1.2)
        assert acts(data)[-1] == "rollback"
        orders(data).unpin(why="looked at it")
        until(lambda: orders(data).state().unjudged is None)
        orders(data).announce(worse, against=good)
        until(lambda: announced(data) == good)
    assert acts(data)[2:] == ["announce", "breach", "rollback", "unpin", "good", "announce", "breach", "rollback"]


@pytest.mark.heavy
def test_a_setting_turns_it_off(data: Path) -> None:
    good = announced(data)
    bad = placed(data, ruined, 1)
    with servers(data, 1, sentinel="false"):
        orders(data).announce(bad, against=good)
        until(lambda: all_serve(data, bad))
        time.sleep(1)
        assert announced(data) == bad
    assert not (data / "SENTINEL").exists()


@contextlib.contextmanager
def other_traffic(found: list[Server]) -> Iterator[None]:
    """All at once: one profile that everybody looks at, a crawler, and a campaign for few."""
    with contextlib.ExitStack() as stack:
        for ids in (lambda turn: 69, lambda turn: 69, lambda turn: 10**9 + turn):
            stack.enter_context(Load(found, ids))
        stack.enter_context(Campaign(found[0], {"min_score": 78}))
        yield


@contextlib.contextmanager
def usual_traffic(found: list[Server]) -> Iterator[None]:
    """Begun long enough ago to be the comparison."""
    with Load(found, any_id) as load, Campaign(found[0], {"min_score": 10}):
        until(lambda: len(load.told) > 500)
        time.sleep(1)  # the last moments before a switch are of neither side
        yield


def roll_back_by_hand(data: Path, found: list[Server], good: str, better: str) -> None:
    with usual_traffic(found):
        orders(data).announce(better, against=good)
        until(lambda: all_serve(data, better))
        orders(data).rollback(why="to be safe", quarantine=False)
        until(lambda: all_serve(data, good))


def is_judged(data: Path) -> bool:
    return orders(data).state().unjudged is None


@pytest.mark.heavy
@pytest.mark.parametrize("pinned", [False, True], ids=["as it is", "pinned and unpinned"])
def test_other_traffic_does_not_condemn_what_a_human_restored(data: Path, pinned: bool) -> None:
    good = announced(data)
    better = placed(data, lambda i: fine(i) + 0.25, 1)
    with servers(data, 2, watch__seconds="4") as found:
        roll_back_by_hand(data, found, good, better)
        if pinned:
            orders(data).unpin(why="looked at it")
            orders(data).pin(why="not tonight")
        with other_traffic(found):
            until(lambda: is_judged(data))
    assert acts(data)[2:] == ["announce", "rollback", *(["unpin", "pin"] if pinned else []), "good"]
    assert orders(data).state().good == (good,)


@pytest.mark.heavy
def test_other_traffic_does_not_condemn_what_was_restored_and_unpinned(data: Path) -> None:
    good = announced(data)
    bad = placed(data, ruined, 1)
    with servers(data, 2, watch__seconds="4") as found:
        with usual_traffic(found):
            orders(data).announce(bad, against=good)
            until(lambda: announced(data) == good)
            until(lambda: all_serve(data, good))
            time.sleep(1)
        orders(data).unpin(why="looked at it")
        with other_traffic(found):
            until(lambda: is_judged(data))
    assert acts(data)[2:] == ["announce", "breach", "rollback", "unpin", "good"]
    assert orders(data).state().good == (good,)


@pytest.mark.heavy
def test_other_traffic_does_not_condemn_what_is_announced_again(data: Path) -> None:
    good = announced(data)
    better = placed(data, lambda i: fine(i) + 0.25, 1)
    with servers(data, 2, watch__seconds="4") as found:
        roll_back_by_hand(data, found, good, better)
        orders(data).unpin(why="it was good")
        orders(data).announce(better, against=good)
        with other_traffic(found):
            until(lambda: is_judged(data))
    assert acts(data)[2:] == ["announce", "rollback", "unpin", "announce", "good"]
    assert orders(data).state().good == (good, better)


class Host:
    """A server and its sentinel without their threads: answers are counted, and looks happen, when a test says so."""

    def __init__(self, data: Path) -> None:
        self.sentinel = Sentinel(Catalog(data), Settings(data=data, watch=Watch(seconds=0.2)))
        self.seat = Seat(Catalog(data).roster, "server")

    def answers(self, version: str, failed: int = 0, score: float = 50.0) -> None:
        """From this version, seen before and after."""
        self.seat.serve(version)
        self.sentinel.look()
        for _ in range(200):
            self.seat.answered(version, 1, score)
            self.seat.succeeded(version)
        for _ in range(failed):
            self.seat.failed(version)
        self.seat.flush()
        self.sentinel.look()


def test_a_restored_version_that_fails_too_is_left_to_a_human(data: Path) -> None:
    good = announced(data)
    better = placed(data, lambda i: fine(i) + 0.25, 1)
    host = Host(data)
    host.answers(good)
    time.sleep(0.6)  # the last moments before a switch are of neither side
    orders(data).announce(better, against=good)
    orders(data).rollback(why="a human thinks so", quarantine=False)
    host.answers(good, failed=100)
    host.sentinel.look()
    assert acts(data)[-3:] == ["rollback", "breach", "freeze"]
    assert announced(data) == good
    host.seat.leave()


def test_what_is_restored_after_long_is_measured_by_what_was_served_last(data: Path) -> None:
    """What was served of it itself is forgotten: failures of the version after it are what is known."""
    good = announced(data)
    better = placed(data, lambda i: fine(i) + 0.25, 1)
    orders(data).announce(better, against=good)
    orders(data).judge_good(better)
    host = Host(data)
    host.answers(better)
    orders(data).rollback(why="a human thinks so", quarantine=False)
    host.answers(good, failed=100)
    assert acts(data)[-3:] == ["rollback", "breach", "freeze"]
    host.seat.leave()


def test_failed_answers_alone_take_a_version_back(data: Path) -> None:
    good = announced(data)
    better = placed(data, lambda i: fine(i) + 0.25, 1)
    host = Host(data)
    host.answers(good)
    orders(data).announce(better, against=good)
    host.answers(better, failed=100)
    assert Catalog(data).log.entries()[-1].seen["breach"].keys() == {"errors"}
    assert announced(data) == good
    host.seat.leave()


def test_a_version_that_no_server_serves_is_not_called_good(data: Path) -> None:
    better = placed(data, lambda i: fine(i) + 0.25, 1)
    good = announced(data)
    host = Host(data)
    host.answers(good)
    orders(data).announce(better, against=good)
    host.answers(good)
    time.sleep(0.3)
    host.sentinel.look()
    assert orders(data).state().unjudged is not None
    host.answers(better)
    assert acts(data)[-1] == "good"
    host.seat.leave()


@pytest.mark.parametrize("clock", [0, -1])
def test_a_breach_is_told_once_although_who_told_it_died(data: Path, clock: int) -> None:
    """And although the clock went back meanwhile, by so many days."""
    good = announced(data)
    bad = placed(data, ruined, 1)
    orders(data).announce(bad, against=good)
    orders(data).breach(bad, {})
    if clock:
        log = data / "log.jsonl"
        first, last = log.read_bytes().strip().rsplit(b"\n", 1)
        told = json.loads(last)
        told["at"] = (datetime.fromisoformat(told["at"]) + clock * DAY).isoformat()
        log.write_bytes(first + b"\n" + json.dumps(told).encode() + b"\n")
    Host(data).sentinel.look()
    assert acts(data)[-3:] == ["announce", "breach", "rollback"]


def test_a_version_that_cannot_be_opened_just_now_is_opened_at_the_next_look(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = announced(data)
    bad = placed(data, ruined, 1)
    host = Host(data)
    host.answers(good)
    orders(data).announce(bad, against=good)
    with monkeypatch.context() as full:
        full.setattr(Catalog, "open", lambda *_: os.open("/proc/self/no such file", os.O_RDONLY))
        host.answers(bad, score=95.0)
    assert acts(data)[-1] == "announce"
    host.sentinel.look()
    assert acts(data)[-1] == "rollback"
    host.seat.leave()
