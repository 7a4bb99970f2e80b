"""publish and check: the cycle, what the gates hold, and the command lines that help."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli.support import ALONE, DAY_TWO, KSERVE, TAXONOMY, Result, done, run, started, tree
from waiting import PATIENCE, until

from kserve.cli import drawing
from kserve.snapshots import gates
from kserve.snapshots.catalog import Catalog

STEPS = ["build", "re-read", "check", "stage", "announce", "watch"]
HELD_BY = {"mass", "centre", "shape", "movement"}


def names(result: Result) -> list[tuple[str, str]]:
    """Number and name of each step told."""
    return [
        (line.split()[0], line.split()[1])
        for line in result.out.splitlines()
        if line[:1] in "123456" and line[1:2] == " "
    ]


def live() -> str:
    version = Catalog("data").announced()
    assert version is not None
    return version


@pytest.fixture
def defaulted(inputs: Path) -> str:
    """Day one is published; day two came out with the score 1 for nine of ten, and is a candidate."""
    done("publish", "day1", *TAXONOMY, "--first")
    spoil("day2")
    version: str = done("build", "day2", *TAXONOMY, "--json").json()["version"]
    return version


def spoil(folder: str) -> None:
    """The last step of the pipeline has defaulted: 23 May 2011, with a manifest that agrees."""
    (part,) = Path(folder).glob("*.parquet")
    table = pq.read_table(part)
    scores = [1.0 if number % 10 else score for number, score in enumerate(table["score"].to_pylist())]
    place = table.schema.get_field_index("score")
    pq.write_table(table.set_column(place, "score", pa.array(scores, pa.float64())), part)
    done("manifest", folder, "--scored-at", DAY_TWO, "--force")


def helpful(result: Result, command: str) -> list[str]:
    """The words of the suggested command line of that name."""
    (line,) = [line for line in result.out.splitlines() if line.startswith(f"  kserve {command} ")]
    return shlex.split(line)[1:]


def test_a_cycle_tells_what_it_will_do_and_its_steps(inputs: Path) -> None:
    result = done("publish", "day1", *TAXONOMY, "--first", "--by", "ann")
    assert result.out.splitlines()[0] == "publish day1 in data, as the first version, by ann"
    assert names(result) == [(str(number), name) for number, name in enumerate(STEPS, 1)]
    first = live()
    result = done("publish", "day2", *TAXONOMY, "--by", "ben")
    assert result.out.splitlines()[0] == f"publish day2 in data, against {first}, which is live, by ben"
    assert [gate.name for gate in gates.GATES] == [
        line.split()[0] for line in result.out.splitlines() if line.split()[1:2] in (["pass"], ["warn"])
    ]
    assert f"data now serves {live()}" in result.out
    assert live() != first
    acts = done("history", "--log", "--json").json()["acts"]
    assert [act["act"] for act in acts] == ["build", "check", "stage", "announce", "good"] * 2
    assert [act["by"] for act in acts] == ["ann"] * 5 + ["ben"] * 5


def test_a_cycle_as_json(inputs: Path) -> None:
    done("publish", "day1", *TAXONOMY, "--first")
    first = live()
    document = done("publish", "day2", *TAXONOMY, "--reason", "as every night", "--json").json()
    assert document.keys() == {
        *("version", "previous", "by", "built", "outcome", "steps", "report", "manifest", "seconds"),
    }
    assert (document["version"], document["previous"], document["built"]) == (live(), first, True)
    assert document["outcome"] == "good"
    assert [(step["number"], step["name"]) for step in document["steps"]] == list(enumerate(STEPS, 1))
    assert {finding["verdict"] for finding in document["report"]["findings"]} <= {"pass", "warn"}
    assert document["manifest"]["changes_from"] == {"day": first, "week": None, "month": None}
    assert done("history", "--log", "--json").json()["acts"][-2]["why"] == "as every night"


def test_a_version_then_an_input_then_what_is_live_again(inputs: Path) -> None:
    first = done("build", "day1", *TAXONOMY, "--json").json()["version"]
    document = done("publish", first, "--first", "--json").json()
    assert (document["version"], document["previous"], document["built"]) == (first, None, False)
    assert [step["name"] for step in document["steps"]] == STEPS
    assert done("publish", "day2/*.parquet", *TAXONOMY, "--scored-at", DAY_TWO, "--json").json()["previous"] == first
    again = done("publish", live())
    assert "is in force already" in again.out
    held = run("publish", first, "--json")
    assert held.json()["error"]["gates"] == ["fresh"]


def test_without_history_nothing_passes(inputs: Path) -> None:
    result = run("publish", "day1", *TAXONOMY)
    assert result.code == 3
    assert "held by schema" in result.one_line()
    assert "--first" in helpful(result, "publish")
    assert Catalog("data").announced() is None
    done(*helpful(result, "publish"))
    assert names(result)[-1] == ("3", "check")
    assert live() == helpful(result, "publish")[1]


def test_held_with_the_gates_that_hold(defaulted: str) -> None:
    before = live()
    result = run("publish", defaulted, "--by", "ann")
    assert result.code == 3
    verdicts = {line.split()[0]: line for line in result.out.splitlines() if line.split()[1:2] == ["hold"]}
    assert set(verdicts) >= HELD_BY
    assert "of all profiles have the score 1" in verdicts["mass"]
    assert "held by" in result.out
    assert live() == before
    assert done("history", "--json").json()["versions"][0]["state"] == "candidate"
    assert done(*helpful(result, "diff")).code == 0
    assert run(*helpful(result, "check")).code == 3


def test_held_as_json(defaulted: str) -> None:
    result = run("publish", defaulted, "--json")
    error = result.error()
    document = result.json()
    assert (error["slug"], result.code, document["outcome"]) == ("held", 3, "held")
    assert set(error["gates"]) >= HELD_BY
    assert error["gates"] == [one["gate"] for one in document["report"]["findings"] if one["verdict"] == "hold"]
    assert [step["name"] for step in document["steps"]] == ["build", "re-read", "check"]
    assert [line.split()[1] for line in document["try"]] == ["diff", "check", "publish"]


def test_a_hold_is_accepted_by_name_with_reason_author_and_end(defaulted: str) -> None:
    held = run("publish", defaulted, "--by", "ann")
    words = [word.replace("=WHY", "=a drill") for word in helpful(held, "publish")]
    assert "--by" in words
    result = done(*words, "--until", "2h")
    assert live() == defaulted
    accepted = [line for line in result.out.splitlines() if line.split()[1:2] == ["accepted"]]
    assert len(accepted) >= len(HELD_BY)
    until = datetime.now(UTC) + timedelta(hours=2)
    assert all("by ann until " in line and ": a drill; " in line for line in accepted)
    acts = [act for act in done("history", "--log", "--json").json()["acts"] if act["act"] == "accept"]
    assert {act["seen"]["gate"] for act in acts} >= HELD_BY
    assert all(act["by"] == "ann" and act["why"] == "a drill" for act in acts)
    assert all(abs(datetime.fromisoformat(act["seen"]["until"]) - until) < timedelta(minutes=2) for act in acts)


def test_one_acceptance_is_not_enough(defaulted: str) -> None:
    before = live()
    document = run("publish", defaulted, "--accept", "mass=a drill", "--json").json()
    assert "mass" not in document["error"]["gates"]
    assert document["outcome"] == "held"
    assert live() == before


@pytest.mark.parametrize(
    ("options", "slug"),
    [
        (("--accept", "mass"), "usage"),
        (("--accept", "mass= "), "usage"),
        (("--accept", "=why"), "usage"),
        (("--accept", "nothing=why"), "usage"),
        (("--accept", "complete=why"), "usage"),
        (("--accept", "erased=why"), "usage"),
        (("--accept", "mass=why", "--until", "2020-01-01T00:00:00Z"), "usage"),
        (("--accept", "mass=why", "--until", "soon"), "usage"),
        (("--accept", "mass=why", "--until", "2y"), "usage"),
        (("--declare", "model"), "usage"),
        (("--declare", "colour=red"), "usage"),
        (("--declare", "model=nobody-registered-it"), "usage"),
    ],
)
def test_what_cannot_be_accepted_or_declared_is_refused_first(
    inputs: Path, options: tuple[str, ...], slug: str
) -> None:
    assert run("publish", "day1", *TAXONOMY, *options, "--json").error()["slug"] == slug
    assert not Path("data").exists()


def test_no_manifest_is_a_hold_that_nobody_can_accept(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("day1/_manifest.json").unlink()
    result = run("publish", "day1", *TAXONOMY, "--scored-at", DAY_TWO, "--first", "--json")
    assert result.json()["error"]["gates"] == ["complete"]
    assert [line.split()[1] for line in result.json()["try"]] == ["check"]
    monkeypatch.setenv("KSERVE_REQUIRE_MANIFEST", "false")
    version = result.json()["version"]
    done("publish", version, "--first")
    assert live() == version


def test_dry_run_stops_before_anything_is_staged(inputs: Path) -> None:
    result = done("publish", "day1", *TAXONOMY, "--first", "--dry-run")
    assert names(result)[-1] == ("3", "check")
    assert Catalog("data").announced() is None
    assert [version.state for version in Catalog("data").versions()] == ["candidate"]
    done(*helpful_end(result))
    spoil("day2")
    held = run("publish", "day2", *TAXONOMY, "--dry-run", "--json")
    assert (held.code, held.json()["outcome"]) == (3, "held")
    assert done("publish", live(), "--dry-run", "--json").json()["outcome"] in ("dry-run", "good")


def helpful_end(result: Result) -> list[str]:
    """The words of the command line at the end of the last line."""
    return shlex.split(result.out.splitlines()[-1].rpartition("kserve ")[2])


def test_pinned(inputs: Path) -> None:
    done("publish", "day1", *TAXONOMY, "--first")
    pinned = live()
    done("pin", pinned, "--reason", "the finals are tonight", "--by", "ann")
    result = run("publish", "day2", *TAXONOMY)
    assert result.code == 12
    assert "the finals are tonight" in result.one_line()
    assert live() == pinned
    document = run("publish", "day2", *TAXONOMY, "--json")
    assert document.error()["slug"] == "pinned"
    (line,) = document.json()["try"]
    done(*[word.replace("WHY", "they are over") for word in shlex.split(line)[1:]])
    done("publish", "day2", *TAXONOMY)
    assert live() != pinned


@pytest.mark.heavy
def test_rolled_back_while_it_is_watched(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a human here; the sentinel has drills of its own."""
    done("publish", "day1", *TAXONOMY, "--first")
    first = live()
    monkeypatch.setenv("KSERVE_WATCH__SECONDS", "60")
    with started("serve", *ALONE, "--json") as server:
        assert server.stdout is not None
        server.stdout.readline()
        with started("publish", "day2", *TAXONOMY, "--json") as popen:
            until(lambda: Catalog("data").announced() != first)
            done("rollback", "--reason", "it looks wrong", "--by", "ben")
            out, _ = popen.communicate(timeout=PATIENCE)
    assert popen.returncode == 11
    document = json.loads(out)
    assert document["error"]["slug"] == document["outcome"] == "rolled-back"
    assert "ben" in document["error"]["message"]
    assert live() == first


def test_publish_what_is_not_there(inputs: Path) -> None:
    for what in ("nothing", "20260102T040000Z-00000000", "nothing/*.parquet"):
        error = run("publish", what, "--json").error()
        assert error["slug"] == "unknown-version"
        assert what in error["message"]


def test_publish_takes_no_build_options_with_a_version(inputs: Path) -> None:
    version = done("build", "day1", "--json").json()["version"]
    assert run("publish", version, "--column", "score=s", "--json").error()["slug"] == "usage"
    assert run("publish", version, "--max-rejects", "3", "--json").error()["slug"] == "usage"
    assert Catalog("data").announced() is None


def test_check_changes_nothing_but_the_report(nights: Path) -> None:
    candidate = Catalog("data").versions()[0].name
    before, log = tree(Path("data")), Path("data/log.jsonl").read_bytes()
    result = run("check", candidate)
    assert result.code == 3  # it is of next week
    assert "held by fresh" in result.one_line()
    assert tree(Path("data")) - before == {f"checks/{candidate}.json"}
    assert Path("data/log.jsonl").read_bytes() == log
    report = gates.load("data", candidate)
    assert report is not None
    assert [finding.gate for finding in report.held] == ["fresh"]


def test_check_as_json_and_against_another(nights: Path) -> None:
    candidate, second, first = (version.name for version in Catalog("data").versions())
    document = done("check", second, "--against", first, "--json").json()
    assert document.keys() == {"version", "held", "report"}
    assert (document["version"], document["held"], document["report"]["against"]) == (second, [], first)
    result = run("check", candidate, "--json")
    assert result.error()["gates"] == result.json()["held"] == ["fresh"]
    assert run("check", second, "--against", candidate, "--json").error()["slug"] == "unknown-version"
    assert run("check", "20260102T040000Z-00000000", "--json").error()["slug"] == "unknown-version"
    assert run("check", candidate, "--declare", "model=nobody", "--json").error()["slug"] == "usage"


def test_the_drawing_shows_where_the_scores_are() -> None:
    spread = [0, *range(1, 101)]
    spike = [0, 1000] + [0] * 99
    lines = drawing.distributions([("old", spread), ("new", spike)], 160)
    old, new = lines[2], lines[5]
    assert (old[:5], new[:5]) == ("old  ", "new  ")
    assert len(old) == 105
    assert new[5:] == "█"
    assert old[5:] == "▁" * 100  # beside the spike they are small, but they are seen
    assert lines[-1].strip() == "1 point a column, the highest 100.0 %"
    assert lines[-2].split() == ["1", "25", "50", "75", "100"]
    assert lines[-2].index("100") == 5 + 99


@pytest.mark.parametrize(("room", "points"), [(160, 1), (108, 1), (107, 2), (80, 2), (40, 4), (20, 10)])
def test_the_drawing_fits(room: int, points: int) -> None:
    lines = drawing.distributions([("old", [5] * 101), ("new", [7] * 101)], room, drawing.ASCII)
    assert f"{points} point" in lines[-1]
    assert max(map(len, lines[:-1])) <= room
    assert "".join(lines).isascii()


@pytest.mark.heavy
def test_a_terminal_that_is_narrow_and_one_without_blocks(published: Path) -> None:
    version = Catalog("data").versions()[1].name
    command = [*KSERVE, "check", version, "--against", Catalog("data").versions()[2].name]
    narrow = on_terminal(command, {"COLUMNS": "60", "LANG": "C.UTF-8"})
    assert "█" in narrow
    assert max(map(len, narrow.splitlines()[1:])) <= 60
    assert "fresh" in narrow
    ascii_only = subprocess.run(
        command, capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    ).stdout.decode()
    assert ascii_only.isascii()
    assert "|||" in ascii_only


@pytest.mark.parametrize("nowhere", ["a closed pipe", "a full disk"])
def test_nobody_who_reads_along_changes_nothing(inputs: Path, nowhere: str) -> None:
    """A publish that is under way goes on, and ends as it would have ended: a good one, and one that is held."""
    spoil("day2")
    for command, code in (("publish", "day1", *TAXONOMY, "--first"), 0), (("publish", "day2", *TAXONOMY), 3):
        if nowhere == "a closed pipe":
            reading, writing = os.pipe()
            os.close(reading)
        else:
            writing = os.open("/dev/full", os.O_WRONLY)
        ended = subprocess.run([*KSERVE, *command], stdout=writing, stderr=writing, check=False, timeout=100)
        os.close(writing)
        assert ended.returncode == code
        acts = [entry.act for entry in Catalog("data").log.entries()]
        assert acts[-1] == ("good" if code == 0 else "check")


def on_terminal(command: list[str], environment: dict[str, str]) -> str:
    """What a terminal as standard output gets to see, without its escapes."""
    terminal, inside = pty.openpty()
    environment = os.environ | {"TERM": "dumb"} | environment
    popen = subprocess.Popen(command, stdout=inside, stderr=subprocess.DEVNULL, env=environment)
    os.close(inside)
    seen = b""
    try:
        while chunk := os.read(terminal, 65536):
            seen += chunk
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    assert popen.wait() == 0
    return seen.decode()
