"""diff: the same counts as both versions read in Python, and a page that stands alone."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli.support import DAY_TWO, TAXONOMY, done, run

import kserve
from kserve.snapshots.catalog import Catalog


def scores(version: str) -> dict[int, float | None]:
    with kserve.Snapshot(Catalog("data").folder(version) / "snapshot.kss") as snapshot:
        return {int(one): snapshot.score(int(one)) for one in snapshot.select({}, snapshot.profiles)}


@pytest.fixture
def two(published: Path) -> tuple[str, str]:
    _, new, old = (version.name for version in Catalog("data").versions())
    return old, new


def test_counts_are_those_of_the_profiles(two: tuple[str, str]) -> None:
    old, new = map(scores, two)
    document = done("diff", *two, "--json").json()
    both = old.keys() & new.keys()
    moved = {one: new[one] - old[one] for one in both if old[one] is not None and new[one] is not None}  # type: ignore[operator]
    assert document["both"] == len(both)
    assert document["added"] == len(new.keys() - old.keys())
    assert document["removed"] == len(old.keys() - new.keys())
    assert document["changed"] == sum(move != 0 for move in moved.values())
    assert document["became_unscored"] == sum(old[one] is not None and new[one] is None for one in both)
    assert document["moved_over_5"] == sum(abs(round(move, 2)) > 5 for move in moved.values())
    for name, known in (("old", old), ("new", new)):
        counts = Counter(int(score) for score in known.values() if score is not None)
        assert document[name]["histogram"] == [counts[points] for points in range(101)]
        assert document[name]["unscored"] == sum(score is None for score in known.values())
    biggest = max(moved.values(), key=abs)
    first = document["movers"][0]
    assert abs(first["new"] - first["old"]) == pytest.approx(abs(biggest))
    assert moved[int(first["id"])] == pytest.approx(first["new"] - first["old"])


def test_tables_for_people(two: tuple[str, str]) -> None:
    document = done("diff", *two, "--top", 3, "--json").json()
    text = done("diff", *two, "--top", 3).out
    assert len(document["movers"]) == len(document["regions"]) == len(document["topics"]) == 3
    for mover in document["movers"]:
        assert any(line.split()[:1] == [mover["id"]] for line in text.splitlines())
    for region in document["regions"]:
        assert re.search(rf"^{re.escape(region['name'])} ", text, re.MULTILINE)
    assert f"profiles   {document['old']['profiles']:,}" in text
    assert "█" in text


def test_a_fault_in_one_place_is_told_first(nights: Path) -> None:
    (part,) = Path("day2").glob("*.parquet")
    table = pq.read_table(part)
    moved: list[Any] = [
        score + 20 if score and place and place.startswith("US") and score < 80 else score
        for score, place in zip(table["score"].to_pylist(), table["location"].to_pylist(), strict=True)
    ]
    place = table.schema.get_field_index("score")
    pq.write_table(table.set_column(place, "score", pa.array(moved, pa.float64())), part)
    done("manifest", "day2", "--scored-at", DAY_TWO, "--force")
    live = Catalog("data").versions()[1].name
    candidate = done("build", "day2", *TAXONOMY, "--json").json()["version"]
    first = done("diff", live, candidate, "--json").json()["clusters"][0]
    assert first["event"] == "moved"
    assert (first["dimension"], first["where"]) == ("region", "US")
    text = done("diff", live, candidate).out
    assert text.index("far more often than elsewhere") < text.index("mean move by region")
    assert "region US" in text


def test_a_page_that_needs_no_network(two: tuple[str, str], tmp_path: Path) -> None:
    page = tmp_path / "diff.html"
    document = done("diff", *two, "--html", page, "--json").json()
    assert document["html"] == str(page)
    text = page.read_text()
    assert all(version in text for version in two)
    assert "<svg" in text
    assert not re.search(r"""(src|href)=["'](https?:)?//""", text)
    error = run("diff", *two, "--html", tmp_path / "nowhere" / "diff.html", "--json").error()
    assert (error["slug"], "nowhere" in error["message"]) == ("storage", True)


def test_what_cannot_be_compared(two: tuple[str, str]) -> None:
    assert run("diff", two[0], "20260102T040000Z-00000000", "--json").error()["slug"] == "unknown-version"
    assert run("diff", two[0], "--json").error()["slug"] == "usage"
    assert run("diff", *two, "--top", 0, "--json").error()["slug"] == "usage"
