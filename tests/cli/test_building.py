"""build, publish and synth."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli.support import TAXONOMY, done, run, tree
from snapshots import write_parquet

from kserve.snapshots.catalog import Catalog

ROWS = [{"profile_id": 42, "score": 62.31}, {"profile_id": 7, "score": None}]


def test_build_tells_what_it_made(inputs: Path) -> None:
    result = done("build", "day1", *TAXONOMY)
    version = result.out.split()[1]
    assert Catalog("data").folder(version).parent.name == "candidates"
    for line in ("profiles  1,", "rows      2,000 read", "rejected  none", "bytes a profile", "seconds   "):
        assert line in result.out
    assert f"kserve publish {version} --data data" in result.out
    assert result.err == ""


def test_build_as_json(inputs: Path) -> None:
    document = done("build", "day1", *TAXONOMY, "--json").json()
    assert document.keys() == {"version", "manifest", "warnings", "seconds"}
    assert document["manifest"] == Catalog("data").manifest(document["version"])
    assert document["manifest"]["rows"]["read"] == 2000


def test_build_options(inputs: Path) -> None:
    rows = [*ROWS, {"profile_id": 8, "score": 0.5}, {"profile_id": 9, "score": 100.01}]
    table = pq.read_table(write_parquet(Path("rows.parquet"), rows))
    pq.write_table(table.rename_columns(["profile_id", "SCORE_COL"]).append_column("shoes", table[0]), "rows.parquet")
    options = ("--column", "score=SCORE_COL", "--scored-at", "2026-03-01T12:00:00+02:00", "--data", "elsewhere")
    result = done("build", "rows.parquet", *options, "--max-rejects", 2, "--rejects", "refused.csv")
    assert "2 score_out_of_range" in result.out
    assert result.one_line() == "kserve: warning: columns that kserve does not know, left out: shoes"
    assert len(Path("refused.csv").read_text().splitlines()) == 3
    (version,) = Catalog("elsewhere").versions()
    assert version.scored_at == datetime.fromisoformat("2026-03-01T10:00:00Z")


def test_refused_rows_fail_the_build_and_leave_nothing(inputs: Path) -> None:
    write_parquet(Path("rows.parquet"), [*ROWS, {"profile_id": 8, "score": 0.5}])
    error = run("build", "rows.parquet", "--json").error()
    assert (error["slug"], error["exit_code"]) == ("bad-input", 5)
    assert (error["file"], error["row"], error["field"]) == ("rows.parquet", 3, "score")
    assert "--max-rejects 1" in error["remedy"]
    assert done("history", "--json").json()["versions"] == []
    assert {path for path in tree(Path("data")) if not path.startswith("rejects")} == {
        "candidates",
        "snapshots",
        "work",
    }


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("build", "nothing"), None),
        (("build", "day1", "--column", "shoes=score"), "shoes"),
        (("build", "day1", "--column", "score=shoes"), "shoes"),
        (("build", "day1", "--topic-edges", "day1/topic_edges.csv"), None),
        (("build", "day1", "--topics", "nothing.csv"), None),
        (("synth", "day1", "--profiles", "10"), None),
        (("synth", "day3", "--profiles", "0"), None),
    ],
)
def test_input_that_cannot_be_taken(inputs: Path, arguments: tuple[str, ...], field: str | None) -> None:
    error = run(*arguments, "--json").error()
    assert error["slug"] == "bad-input"
    assert error.get("field") == field


@pytest.mark.parametrize(
    "options",
    [
        ("--column", "score"),
        ("--column", "=score"),
        ("--scored-at", "yesterday"),
        ("--scored-at", "2026-03-01T12:00:00"),
        ("--max-rejects", "few"),
    ],
)
def test_options_that_make_no_sense(inputs: Path, options: tuple[str, str]) -> None:
    assert run("build", "day1", *options, "--json").error()["slug"] == "usage"
    assert not Path("data").exists()


def test_publish_tells_its_steps(inputs: Path) -> None:
    lines = done("publish", "day1", *TAXONOMY).out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["1", "build"],
        ["2", "verify"],
        ["3", "rename"],
        ["4", "announce"],
    ]
    version = Catalog("data").announced()
    assert version is not None
    assert f"data now serves {version}" in lines[-1]


def test_publish_a_version_then_an_input_then_the_old_version_again(inputs: Path) -> None:
    first = done("build", "day1", *TAXONOMY, "--json").json()["version"]
    document = done("publish", first, "--json").json()
    assert document.keys() == {"version", "previous", "built", "manifest", "seconds"}
    assert (document["version"], document["previous"], document["built"]) == (first, None, False)
    document = done("publish", "day2/*.parquet", *TAXONOMY, "--scored-at", "2026-01-03T04:00:00Z", "--json").json()
    assert (document["previous"], document["built"]) == (first, True)
    assert document["manifest"]["changes_from"] == {"day": first, "week": None, "month": None}
    again = done("publish", first)
    assert "3  rename    it lies in data/snapshots/" in again.out
    assert Catalog("data").announced() == first


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


def test_data_from_the_environment_and_from_the_settings_file(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("kserve.toml").write_text('data = "from-file"\n')
    done("publish", "day1")
    monkeypatch.setenv("KSERVE_DATA", "from-environment")
    done("publish", "day1")
    done("publish", "day1", "--data", "from-flag")
    assert {path.name for path in Path().glob("from-*")} == {"from-file", "from-environment", "from-flag"}


def test_synth_makes_what_build_takes(inputs: Path) -> None:
    document = done("synth", "more", "--profiles", 500, "--day", 9, "--seed", 3, "--columns", "core", "--json").json()
    assert {"out", "files", "scored_at", "profiles", "day", "seed", "columns", "bytes", "seconds"} == document.keys()
    assert document["scored_at"] == "2026-01-10T04:00:00+00:00"
    assert all(Path(file).is_file() for file in document["files"])
    manifest = done("build", "more", "--json").json()["manifest"]
    assert manifest["rows"]["read"] == 500
    assert json.loads(Path("more/_manifest.json").read_text())["rows"] == 500
    said = done("synth", "text", "--profiles", 50).out
    done(*said.rpartition("kserve ")[2].split())
