"""What is told of acts: incidents and events, each once, whatever becomes of the log, the desk and the publisher."""

from __future__ import annotations

import json
import logging
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from lengths import FULL
from notices.support import V1, V2, V3, act, announce, python

from kserve.notices.desk import Desk
from kserve.notices.incidents import incidents
from kserve.notices.store import Store
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.log import Log

FIGURES = {"lowest": {"after": 0.61234, "threshold": 0.02, "before": 0.01}, "errors": {"after": None}}


def told(store: Store) -> list[tuple[str, dict[str, Any]]]:
    """Type and data of every event, the oldest first."""
    rows = store.rows("SELECT type, body FROM events ORDER BY rowid")
    return [(row["type"], json.loads(row["body"])["data"]) for row in rows]


def types(store: Store) -> list[str]:
    return [type for type, _ in told(store)]


def statuses(store: Store) -> list[list[str]]:
    """Of every incident, the latest first."""
    return [[said.status for said in one.updates] for one in incidents(store)]


def test_an_announcement(desk: Desk, store: Store, data: Path) -> None:
    entry = announce(data, V2, V1)
    assert desk.catch_up() == 1
    ((type, found),) = told(store)
    at = entry.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert type == "snapshot.announced"
    assert found == {"version": V2, "previous": V1, "scored_at": "2026-01-11T04:00:00.000Z", "announced_at": at}


def test_the_same_version_again_is_no_news(desk: Desk, store: Store, data: Path) -> None:
    announce(data, V1)
    announce(data, V1, V1)
    desk.catch_up()
    assert types(store) == ["snapshot.announced"]


def test_each_act_is_told_of_once(desk: Desk, store: Store, data: Path) -> None:
    announce(data, V1)
    assert [desk.poll(), desk.poll(), desk.catch_up()] == [1, 0, 0]
    act(data, "good", V1)
    assert Desk(store, Catalog(data)).poll() == 1
    assert types(store) == ["snapshot.announced"]


def test_an_announcement_without_effect_is_not_told_of(desk: Desk, store: Store, data: Path) -> None:
    announce(data, V1)
    act(data, "announce", V2, previous=V1)  # and its publisher died
    desk.poll()
    assert len(told(store)) == 1
    announce(data, V3, V1)
    desk.poll()
    assert [found["version"] for _, found in told(store)] == [V1, V3]


def test_an_announcement_is_told_of_when_it_takes_effect(desk: Desk, store: Store, data: Path) -> None:
    act(data, "announce", V1, previous=None)
    desk.poll()
    desk.poll()
    assert told(store) == []
    (data / "CURRENT").write_text(f"{V1}\n")
    desk.poll()
    desk.poll()
    assert len(told(store)) == 1


@pytest.mark.parametrize(
    ("name", "version", "seen"),
    [
        ("announce", V2, {"previous": V1}),
        ("rollback", V2, {"from": V1}),
        ("breach", V1, {}),
        ("good", V1, {}),
        ("check", V2, {"against": V1}),
    ],
)
def test_what_came_after_shows_that_it_took_effect(
    desk: Desk, store: Store, data: Path, name: str, version: str, seen: dict[str, Any]
) -> None:
    act(data, "announce", V1, previous=None)
    act(data, name, version, **seen)
    desk.catch_up()
    assert told(store)[0][1]["version"] == V1


def test_a_held_publish(desk: Desk, store: Store, data: Path) -> None:
    act(data, "check", V1, gates={"rows": "pass"}, held=[])
    act(data, "check", V2, held=["mass", "mean", "shape", "rows", "nulls"])
    act(data, "check", V3, held=["mass"])
    desk.catch_up()
    (found,) = incidents(store)
    assert found.title == f"Publish of {V2} held by mass, mean, shape and 2 more"
    assert (found.visibility, found.components, found.automatic) == ("internal", ("publishing",), True)
    assert found.versions == (V2, V3)
    assert "mass, mean, shape, rows and nulls" in found.updates[0].text
    announce(data, V3, V1)
    desk.catch_up()
    assert statuses(store) == [["investigating", "investigating", "resolved"]]
    assert types(store) == ["snapshot.announced"]
    act(data, "check", V2, held=["mass"])
    desk.catch_up()
    assert len(incidents(store, open_only=True)) == 1


def test_bad_answers_and_a_rollback(desk: Desk, store: Store, data: Path) -> None:
    announce(data, V1)
    began = announce(data, V2, V1)
    act(data, "breach", V2, figures=FIGURES)
    (data / "CURRENT").write_text(f"{V1}\n")
    ended = act(data, "rollback", V1, by_sentinel=True, digest="d", **{"from": V2})
    desk.catch_up()
    (found,) = incidents(store, "public")
    assert (found.components, found.versions, found.impact) == (("scores",), (V2,), "major")
    assert found.title == f"Wrong scores served from version {V2}"
    first, second, _ = found.updates
    assert "lowest 0.6123 (0.01 before, may change by 0.02)" in first.text
    assert "errors unknown" in first.text
    assert f"{began.at:%H:%M:%S}Z to {ended.at:%Y-%m-%d %H:%M:%S}Z" in second.text
    act(data, "good", V1)
    desk.catch_up()
    assert statuses(store) == [["investigating", "identified", "monitoring", "resolved"]]
    kinds = ["opened", "updated", "updated", "resolved"]
    assert sorted(types(store)[2:]) == sorted(["snapshot.rolled_back", *(f"incident.{kind}" for kind in kinds)])
    rolled_back = dict(told(store))["snapshot.rolled_back"]
    assert (rolled_back["version"], rolled_back["rolled_back"], rolled_back["automatic"]) == (V1, V2, True)
    assert rolled_back["announced_at"][:19] == f"{began.at:%Y-%m-%dT%H:%M:%S}"


def test_a_rollback_by_a_human(desk: Desk, store: Store, data: Path) -> None:
    announce(data, V1)
    announce(data, V2, V1)
    (data / "CURRENT").write_text(f"{V1}\n")
    act(data, "rollback", V1, "secret reason", by_sentinel=False, **{"from": V2})
    desk.catch_up()
    assert statuses(store) == [["identified", "monitoring"]]
    assert incidents(store, "public")[0].title == f"Version {V2} was rolled back"
    assert "secret" not in json.dumps(told(store))
    act(data, "unpin", V1)
    desk.catch_up()
    assert statuses(store) == [["identified", "monitoring", "resolved"]]


def test_another_bad_version_belongs_to_the_same_incident(desk: Desk, store: Store, data: Path) -> None:
    announce(data, V1)
    for bad in (V2, V3):
        announce(data, bad, V1)
        act(data, "breach", bad, figures={})
        (data / "CURRENT").write_text(f"{V1}\n")
        act(data, "rollback", V1, **{"from": bad})
    act(data, "good", V2)  # cannot be: it is bad
    desk.catch_up()
    (found,) = incidents(store)
    assert found.versions == (V2, V3)
    again = ["identified", "identified", "monitoring"]
    assert [said.status for said in found.updates] == ["investigating", "identified", "monitoring", *again]


def test_a_freeze_calls_a_human(desk: Desk, store: Store, data: Path) -> None:
    announce(data, V2, V1)
    act(data, "breach", V2, figures={})
    act(data, "freeze", V2, "second breach")
    desk.catch_up()
    (found,) = incidents(store)
    assert found.impact == "critical"
    assert "an engineer is needed" in found.updates[-1].text
    act(data, "unpin", V2)
    desk.catch_up()
    assert found.id in {one.id for one in incidents(store, open_only=True)}


def test_a_freeze_without_bad_answers_is_internal_and_ends_with_the_unpin(desk: Desk, store: Store, data: Path) -> None:
    act(data, "freeze", V2, "no good version")
    act(data, "freeze", V2, "no good version")
    act(data, "unpin", V2)
    desk.catch_up()
    assert statuses(store) == [["investigating", "resolved"]]
    assert told(store) == []


@pytest.mark.parametrize("seen", [{"held": 5}, {"held": [None]}, {"held": ["\x00"]}, {"figures": [1]}, {"figures": 3}])
@pytest.mark.parametrize("name", ["check", "breach"])
def test_an_act_that_makes_no_sense_keeps_nothing_up(
    desk: Desk, store: Store, data: Path, name: str, seen: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    act(data, name, V1, **seen)
    announce(data, V2, V1)
    assert desk.catch_up() == 2
    assert "snapshot.announced" in types(store)
    assert desk.catch_up() == 0


def test_a_torn_line_is_passed_over(desk: Desk, store: Store, data: Path) -> None:
    announce(data, V1)
    log = data / "log.jsonl"
    whole = log.read_bytes()
    announce(data, V2, V1)
    line = log.read_bytes()[len(whole) :]
    log.write_bytes(whole + line[: len(line) // 2])
    assert desk.catch_up() == 1
    announce(data, V3, V1)
    assert desk.catch_up() == 1
    assert [found["version"] for _, found in told(store)] == [V1, V3]


def test_a_log_that_was_restored_from_a_copy_repeats_nothing(
    desk: Desk, store: Store, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    announce(data, V1)
    copy = (data / "log.jsonl").read_bytes()
    announce(data, V2, V1)
    act(data, "check", V3, held=["mass"])
    desk.poll()
    before = store.rows("SELECT id FROM events")
    (data / "log.jsonl").write_bytes(copy)
    with caplog.at_level(logging.ERROR):
        desk.poll()
    assert "it was replaced" in caplog.text
    assert store.rows("SELECT id FROM events") == before
    announce(data, V3, V1)
    desk.poll()
    assert [found["version"] for _, found in told(store)] == [V1, V2, V3]
    assert len([one for one in incidents(store) if one.title == "The log of acts was replaced"]) == 1


def test_another_log_is_told_of_from_its_beginning(desk: Desk, store: Store, data: Path) -> None:
    announce(data, V1)
    announce(data, V2, V1)
    desk.poll()
    (data / "log.jsonl").unlink()
    desk.poll()
    announce(data, V3)
    desk.poll()
    assert [found["version"] for _, found in told(store)] == [V1, V2, V3]
    assert len({row["id"] for row in store.rows("SELECT id FROM events")}) == 3


def test_the_same_log_gives_the_same_ids(desk: Desk, store: Store, data: Path) -> None:
    announce(data, V1)
    announce(data, V2, V1)
    act(data, "breach", V2, figures=FIGURES)
    act(data, "rollback", V1, **{"from": V2})
    desk.catch_up()
    ids = {row["id"] for row in store.rows("SELECT id FROM events")}
    names = {one.id for one in incidents(store)}
    store.close()
    for file in data.glob("notices.db*"):
        file.unlink()
    with Store(data) as other:
        Desk(other, Catalog(data)).catch_up()
        assert {row["id"] for row in other.rows("SELECT id FROM events")} == ids
        assert {one.id for one in incidents(other)} == names


DESK = """
import sys, time
from kserve.notices.desk import Desk
from kserve.notices.store import Store
from kserve.snapshots.catalog import Catalog
store = Store(sys.argv[1])
desk = Desk(store, Catalog(sys.argv[1]))
print("ready", flush=True)
while True:
    desk.poll()
"""


@pytest.mark.heavy
@pytest.mark.drill
def test_two_desks_and_kills_at_any_moment_tell_all_of_it_once(data: Path) -> None:
    previous, nights = None, 20 if FULL else 4
    for night in range(nights):
        desks = [python(DESK, data) for _ in range(2)]
        for desk in desks:
            assert desk.stdout is not None
            desk.stdout.readline()
        for day in range(5):
            version = f"20{night + 20}010{day + 1}T040000Z-0000000a"
            announce(data, version, previous)
            act(data, "check", version, held=["mass"], against=version)
            previous = version
            time.sleep(0.005 * (night % 8))
        for desk in desks:
            desk.send_signal(signal.SIGKILL)
            desk.communicate()
    with Store(data) as store:
        Desk(store, Catalog(data)).catch_up()
        assert len(told(store)) == 5 * nights
        assert len(Log(data / "log.jsonl").entries()) == 10 * nights
        assert sum(len(one.updates) for one in incidents(store)) == 10 * nights - 1


@pytest.mark.parametrize("by", ["x" * 300, "anna\u00a0b\t\x1b[31m", "", " "])
def test_an_act_by_anybody_is_told_of(desk: Desk, store: Store, data: Path, by: str) -> None:
    announce(data, V1)
    announce(data, V2, V1)
    Log(data / "log.jsonl").append("rollback", by=by, version=V1, why="bad", seen={"from": V2})
    (data / "CURRENT").write_text(f"{V1}\n")
    desk.catch_up()
    assert types(store)[2:] == ["snapshot.rolled_back", "incident.opened", "incident.updated"]
    assert all(update.by for update in incidents(store)[0].updates)


def test_acts_with_long_and_unprintable_words_are_told_of(desk: Desk, store: Store, data: Path) -> None:
    act(data, "check", V1, held=["g" * 100] * 3 + ["h" * 5000])
    act(data, "freeze", why="one\ntwo\x07" + "w" * 5000)
    act(data, "breach", V1, figures={"n" * 5000: {"after": 1.0}})
    desk.catch_up()
    found = incidents(store)
    assert len(found) == 3
    assert all(len(one.title) <= 200 and len(one.updates[0].text) <= 4000 for one in found)
