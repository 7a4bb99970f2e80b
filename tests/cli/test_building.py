"""build, manifest and synth."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from cli.support import DAY_TWO, TAXONOMY, done, run, tree
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


def test_data_from_the_environment_and_from_the_settings_file(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("kserve.toml").write_text('data = "from-file"\n')
    done("build", "day1")
    monkeypatch.setenv("KSERVE_DATA", "from-environment")
    done("build", "day1")
    done("build", "day1", "--data", "from-flag")
    assert {path.name for path in Path().glob("from-*")} == {"from-file", "from-environment", "from-flag"}


def test_synth_makes_what_build_takes(inputs: Path) -> None:
    document = done("synth", "more", "--profiles", 500, "--day", 9, "--seed", 3, "--columns", "core", "--json").json()
    assert {"out", "files", "scored_at", "profiles", "day", "seed", "columns", "bytes", "seconds"} == document.keys()
    assert DAY_TWO <= datetime.fromisoformat(document["scored_at"]) <= datetime.now(UTC)
    assert all(Path(file).is_file() for file in document["files"])
    manifest = done("build", "more", "--json").json()["manifest"]
    assert manifest["rows"]["read"] == 500
    assert json.loads(Path("more/_manifest.json").read_text())["rows"] == 500
    said = done("synth", "text", "--profiles", 50).out
    done(*said.rpartition("kserve ")[2].split(), "--first")
    earlier = done("synth", "earlier", "--profiles", 5, "--scored-at", "2026-03-01T12:00:00+02:00", "--json").json()
    assert earlier["scored_at"] == "2026-03-01T10:00:00+00:00"


def test_manifest_for_a_pipeline_that_writes_none(inputs: Path) -> None:
    written = json.loads(Path("day1/_manifest.json").read_text())
    assert run("manifest", "day1", "--json").error()["slug"] == "bad-input"
    document = done("manifest", "day1", "--scored-at", written["scored_at"], "--force", "--json").json()
    assert document["file"] == "day1/_manifest.json"
    assert document["manifest"] == {name: value for name, value in written.items() if name != "generator"}
    assert "rows" in done("manifest", "day1", "--force").out
    write_parquet(Path("rows.parquet"), ROWS)
    done("manifest", "rows.parquet", "--scored-at", DAY_TWO)
    version = done("build", "rows.parquet", "--json").json()["version"]
    assert version.startswith(f"{DAY_TWO:%Y%m%dT%H%M%SZ}")
    assert run("manifest", "rows.parquet", "--scored-at", "now", "--force", "--json").error()["slug"] == "usage"
    assert run("manifest", "nothing", "--json").error()["slug"] == "bad-input"
