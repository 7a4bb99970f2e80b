"""rollback, pin, unpin, quarantine, prune, status, and the log of it all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli.support import ALONE, DAY, DAY_TWO, TAXONOMY, done, run, started
from waiting import until

import kserve
from kserve.snapshots.catalog import Catalog


def versions() -> tuple[str, str, str]:
    """The candidate, the live version and the one before."""
    candidate, live, before = (version.name for version in Catalog("data").versions())
    return candidate, live, before


def status() -> Any:
    return done("status", "--json").json()


def acts() -> list[Any]:
    found: list[Any] = done("history", "--log", "--verify", "--json").json()["acts"]
    return found


def test_rollback_to_the_last_good_version_pins_it_and_quarantines_the_bad_one(nights: Path) -> None:
    _, live, before = versions()
    with kserve.open("data") as store:
        document = done("rollback", "--reason", "it is wrong", "--by", "ann", "--json").json()
        assert document.keys() == {"version", "from", "pinned", "quarantined", "by"}
        assert (document["version"], document["from"], document["by"]) == (before, live, "ann")
        until(lambda: store.version == before)
    assert acts()[-1]["act"] == "rollback"
    assert (acts()[-1]["by"], acts()[-1]["why"]) == ("ann", "it is wrong")
    assert acts()[-1]["seen"]["digest"] == document["quarantined"]
    assert status()["pin"]["version"] == before
    assert status()["quarantined"] == [live]
    history = {one["version"]: one for one in done("history", "--json").json()["versions"]}
    assert history[before]["pinned"]
    assert history[live]["quarantined"]
    assert history[live]["state"] == "retired"
    text = done("history").out
    assert any(live in line and "quarantined" in line for line in text.splitlines())
    done("unpin", "--reason", "let us see")
    held = run("publish", live, "--json")
    assert held.json()["error"]["gates"] == ["quarantine"]
    assert [line.split()[1] for line in held.json()["try"]] == ["diff", "check"]


def test_the_same_content_does_not_come_back_under_another_name(nights: Path) -> None:
    done("rollback", "--reason", "it is wrong")
    done("unpin", "--reason", "the next night")
    again = run("publish", "day2", *TAXONOMY, "--scored-at", DAY_TWO - DAY / 24, "--json")
    assert again.json()["error"]["gates"] == ["quarantine"]


def test_rollback_to_a_named_version_without_quarantine(nights: Path) -> None:
    _, live, before = versions()
    document = done("rollback", before, "--reason", "to be sure", "--no-quarantine", "--json").json()
    assert (document["version"], document["quarantined"]) == (before, None)
    assert status()["quarantined"] == []
    assert "retired" in done("rollback", live, "--reason", "and back", "--no-quarantine").out
    assert status()["announced"] == status()["pin"]["version"] == live


def test_rollback_where_there_is_nothing_to_go_back_to(nights: Path, tmp_path: Path) -> None:
    candidate, live, before = versions()
    assert run("rollback", "--reason", "why not", "--data", tmp_path / "none", "--json").error()["exit_code"] == 7
    assert run("rollback", live, "--reason", "it is live", "--json").error()["slug"] == "held"
    assert run("rollback", candidate, "--reason", "never published", "--json").error()["slug"] == "unknown-version"
    shutil.rmtree(Path("data/snapshots", before))
    assert run("rollback", "--reason", "nothing left", "--json").error()["slug"] == "held"
    assert run("rollback", "--json").error()["slug"] == "usage"  # without a reason
    assert Catalog("data").announced() == live


def test_rollback_when_nobody_knows_what_is_in_force(nights: Path) -> None:
    _, live, _ = versions()
    Path("data/CURRENT").write_text("scribbled over\n")
    document = done("rollback", "--reason", "CURRENT is damaged", "--json").json()
    assert (document["version"], document["from"], document["quarantined"]) == (live, None, None)
    assert Catalog("data").announced() == live


def test_pin_only_what_was_meant(nights: Path) -> None:
    _, live, before = versions()
    assert run("pin", before, "--reason", "this one", "--json").error()["slug"] == "usage"
    assert run("pin", "20260102T040000Z-00000000", "--reason", "x", "--json").error()["slug"] == "unknown-version"
    assert status()["pin"] is None
    document = done("pin", live, "--reason", "this one", "--by", "ann", "--json").json()
    assert document == {"pinned": live, "by": "ann", "reason": "this one"}
    assert f"{live}, since" in done("status").out
    document = done("unpin", "--reason", "over", "--by", "ben", "--json").json()
    assert document == {"unpinned": live, "was_frozen": False, "by": "ben", "reason": "over"}
    assert "nothing is pinned" in done("unpin", "--reason", "again").out
    assert [act["act"] for act in acts()][-2:] == ["pin", "unpin"]


def test_quarantine_by_hand(nights: Path) -> None:
    candidate, live, _ = versions()
    assert "nothing is in quarantine" in done("quarantine", "list").out
    assert run("quarantine", "add", live, "--reason", "x", "--json").error()["slug"] == "held"
    document = done("quarantine", "add", candidate, "--reason", "of the test system", "--by", "ann", "--json").json()
    assert document.keys() == {"version", "digest", "by", "reason"}
    (listed,) = done("quarantine", "list", "--json").json()["quarantined"]
    assert listed.items() >= document.items()
    assert document["digest"][:16] in done("quarantine", "list").out
    assert "quarantine" in run("check", candidate, "--json").json()["held"]
    assert run("quarantine", "release", "00000000", "--reason", "x", "--json").error()["slug"] == "unknown-version"
    assert done("quarantine", "release", document["digest"][:8], "--reason", "it was right").out
    assert done("quarantine", "list", "--json").json()["quarantined"] == []
    assert "quarantine" not in run("check", candidate, "--json").json()["held"]


@pytest.mark.heavy
def test_prune_keeps_what_may_be_needed(nights: Path) -> None:
    candidate, live, before = versions()
    later = done("synth", "day3", "--profiles", 2000, "--day", 3, "--json").json()
    assert later
    assert done("prune", "--keep", 1, "--json").json()["deleted"] == []  # the last two good ones
    for day in (3, 4):
        scored_at = DAY_TWO + (day - 2) * DAY / 24 / 60
        done("synth", f"night{day}", "--profiles", 2000, "--day", day, "--scored-at", scored_at)
        done("publish", f"night{day}", *TAXONOMY, "--accept", "fresh=a test")
    old = done("build", "day1", *TAXONOMY, "--scored-at", DAY_TWO - 5 * DAY, "--json").json()["version"]
    document = done("prune", "--keep", 1, "--dry-run", "--json").json()
    assert set(document["deleted"]) == {live, before, old}
    assert document["dry_run"]
    assert "would be deleted" in done("prune", "--keep", 1, "--dry-run").out
    with kserve.open("data"):  # a reader of this host holds what it reads
        done("rollback", live, "--reason", "to read it", "--no-quarantine")
    document = done("prune", "--keep", 1, "--by", "ann", "--json").json()
    assert set(document["deleted"]) == {before, old}
    assert document["bytes"] > 0
    left = {version.name for version in Catalog("data").versions()}
    assert {live, candidate} < left
    assert not {before, old} & left
    assert (acts()[-1]["act"], acts()[-1]["by"]) == ("prune", "ann")
    assert run("prune", "--keep", 0, "--json").error()["slug"] == "usage"


def test_status_shows_which_process_serves_what(nights: Path) -> None:
    _, live, _ = versions()
    assert status()["processes"] == []
    assert "no process reads from here" in done("status").out
    with started("serve", *ALONE, "--json") as server:
        assert server.stdout is not None
        address = json.loads(server.stdout.readline())["address"]
        (process,) = status()["processes"]
        assert (process["role"], process["address"]) == ("server", address)
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        assert str(process["pid"]) in children
        assert process["version"] == live
        text = done("status").out
        assert str(process["pid"]) in text
        assert address in text
        assert "!" not in text


def test_status_of_nothing(tmp_path: Path) -> None:
    document = done("status", "--data", tmp_path, "--json").json()
    assert (document["announced"], document["processes"], document["acts"]) == (None, [], [])
    assert "announced   nothing" in done("status", "--data", tmp_path).out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [("status",), ("top", "--once"), ("limits", "top"), ("keys", "list")])
def test_a_data_directory_that_is_not_there_is_named(tmp_path: Path, command: tuple[str, ...]) -> None:
    error = run(*command, "--data", tmp_path / "none", "--json").error()
    assert (error["slug"], error["exit_code"]) == ("storage", 9)
    assert error["message"] == f"there is no directory {tmp_path / 'none'}: name the data directory with --data"
    assert not (tmp_path / "none").exists()


def test_an_altered_log_is_found_out(nights: Path) -> None:
    assert "each line follows from the one before" in done("history", "--verify").out
    log = Path("data/log.jsonl")
    log.write_text(log.read_text().replace('"by":"', '"by":"not ', 1))
    error = run("history", "--verify", "--json").error()
    assert (error["slug"], error["check"]) == ("bad-snapshot", "log")
    assert run("publish", "day2", *TAXONOMY, "--json").error()["check"] == "log"


@pytest.mark.parametrize("command", [("rollback",), ("pin",), ("unpin",), ("quarantine", "add", "x")])
def test_acts_need_a_reason(published: Path, command: tuple[str, ...]) -> None:
    assert run(*command, "--json").error()["slug"] == "usage"
