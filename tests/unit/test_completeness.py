"""The pipeline's manifest: written by hand, read with the input, and held against every part."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from snapshots import candidate, write_parquet

from kserve import InputError, SnapshotError, synth
from kserve.snapshots.build import Options, build, opted_out_ids
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.completeness import write_manifest
from kserve.snapshots.parts import shortfalls

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
ROWS = [{"profile_id": number, "score": 10.0 + number} for number in range(1, 6)]


def built(tmp_path: Path, source: Path, **options: Any) -> dict[str, Any]:
    return build(Catalog(tmp_path / "data"), source, Options(**options)).manifest


def folder_of_parts(tmp_path: Path) -> Path:
    folder = tmp_path / "input"
    folder.mkdir()
    write_parquet(folder / "a.parquet", ROWS[:2])
    write_parquet(folder / "b.parquet", ROWS[2:])
    return folder


def test_a_manifest_by_hand_says_what_a_build_reads(tmp_path):
    folder = folder_of_parts(tmp_path)
    file = write_manifest(folder, NOON)
    assert file == folder / "_manifest.json"
    told = json.loads(file.read_text())
    assert (told["complete"], told["scored_at"], told["rows"]) == (True, "2026-11-21T12:00:00Z", 5)
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("a.parquet", "b.parquet")]
    assert [(part["name"], part["rows"], part["sha256"]) for part in told["parts"]] == [
        ("a.parquet", 2, digests[0]),
        ("b.parquet", 3, digests[1]),
    ]
    manifest = built(tmp_path, folder)
    assert manifest["input"] == told
    assert manifest["parts"] == told["parts"]
    assert manifest["scored_at"] == "2026-11-21T12:00:00+00:00"
    assert shortfalls(manifest["input"], manifest["parts"]) == []


CSV = {
    "plain": b"profile_id,score\n1,10\n2,20\n3,30\n",
    "no last line end": b"profile_id,score\n1,10\n2,20\n3,30",
    "empty lines": b"\nprofile_id,score\n\n1,10\n2,20\n\n3,30\n\n",
    "carriage returns": b"profile_id,score\r\n1,10\r\n2,20\r\n3,30\r\n",
    "line ends in quotes": b'profile_id,nick,score\n1,"a\nb",10\n2,"c\n\nd",20\n3,e,30\n',
    "rows with too few and too many fields": b"profile_id,score\n1,10\n2\n3,30,3\n",
}


@pytest.mark.parametrize("text", CSV.values(), ids=CSV)
@pytest.mark.parametrize("name", ["scores.csv", "scores.csv.gz"])
def test_rows_of_csv_are_counted_as_a_build_counts_them(tmp_path, name, text):
    source = tmp_path / name
    source.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    file = write_manifest(source, NOON)
    assert file == tmp_path / f"{name}.manifest.json"
    manifest = built(tmp_path, source, max_rejects=10)
    assert [part["rows"] for part in manifest["parts"]] == [3]
    assert shortfalls(manifest["input"], manifest["parts"]) == []


def test_a_manifest_is_replaced_only_when_that_is_said(tmp_path):
    folder = folder_of_parts(tmp_path)
    write_manifest(folder, NOON)
    with pytest.raises(InputError, match="there is a manifest already"):
        write_manifest(folder, NOON)
    later = NOON.astimezone(timezone(timedelta(hours=-5))) + timedelta(days=1)
    told = json.loads(write_manifest(folder, later, force=True).read_text())
    assert told["scored_at"] == "2026-11-22T12:00:00Z"


def test_what_no_manifest_can_be_written_for(tmp_path):
    folder = folder_of_parts(tmp_path)
    with pytest.raises(InputError, match="no time zone"):
        write_manifest(folder, datetime(2026, 1, 1))
    with pytest.raises(InputError, match="no input there"):
        write_manifest(tmp_path / "nowhere", NOON)
    (folder / "c.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(InputError, match=r"c\.parquet: not a whole Parquet file"):
        write_manifest(folder, NOON)
    assert not (folder / "_manifest.json").exists()
    (tmp_path / "x").mkdir()
    write_parquet(tmp_path / "x/d.parquet", ROWS)
    (folder / "c.parquet").unlink()
    with pytest.raises(InputError, match="several folders"):
        write_manifest(tmp_path / "*/*.parquet", NOON)


def test_a_synthetic_input_is_complete(tmp_path):
    synth.write(tmp_path / "day", synth.Plan(300, rows_per_part=100))
    manifest = built(tmp_path, tmp_path / "day")
    assert [part["rows"] for part in manifest["parts"]] == [100, 100, 100]
    assert shortfalls(manifest["input"], manifest["parts"]) == []


def test_an_input_without_a_manifest_is_known_as_such(tmp_path):
    assert built(tmp_path, folder_of_parts(tmp_path))["input"] is None


def test_a_manifest_with_what_is_no_json_is_refused(tmp_path):
    folder = folder_of_parts(tmp_path)
    (folder / "_manifest.json").write_text('{"rows": NaN}')
    with pytest.raises(InputError, match="NaN is no JSON"):
        built(tmp_path, folder)


# Holding a manifest against the parts.

READ = [{"name": f"part-{n}", "rows": 10 + n, "bytes": 100, "sha256": f"{n}" * 64} for n in range(3)]
TOLD = {"complete": True, "scored_at": "2026-11-21T12:00:00Z", "rows": 33, "parts": READ}


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in TOLD.items() if name != field}


def part_changed(**values: Any) -> dict[str, Any]:
    return TOLD | {"parts": [READ[0], READ[1] | values, READ[2]]}


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        (None, "has no manifest"),
        ({}, "does not say that the output is complete"),
        (without("complete"), "does not say that the output is complete"),
        (TOLD | {"complete": 1}, "does not say that the output is complete"),
        (TOLD | {"complete": "true"}, "does not say that the output is complete"),
        (TOLD | {"complete": False}, "does not say that the output is complete"),
        (without("scored_at"), "does not say when"),
        (without("parts"), "does not name its parts"),
        (TOLD | {"parts": {"name": "part-0"}}, "does not name its parts"),
        (TOLD | {"parts": ["part-0"]}, "does not name its parts"),
        (TOLD | {"parts": []}, "part part-0 is not in the manifest"),
        (TOLD | {"parts": READ[:2], "rows": 33}, "part part-2 is not in the manifest"),
        (TOLD | {"parts": [*READ, READ[0] | {"name": "part-3"}]}, r"part part-3 is missing \(10 rows\)"),
        (TOLD | {"parts": [*READ, READ[0]]}, "part part-0 is named twice"),
        (TOLD | {"rows": 34}, "33 rows were read, the manifest says 34"),
        (part_changed(rows=12), "part part-1: rows 11, the manifest says 12"),
        (part_changed(rows="11"), "part part-1: rows 11, the manifest says '11'"),
        (part_changed(rows=None), "part part-1: rows 11, the manifest says None"),
        (part_changed(sha256="f" * 64), f"part part-1: sha256 {'1' * 64}, the manifest says 'ffff"),
        (part_changed(sha256=None), "part part-1: sha256"),
        (part_changed(bytes=99), "part part-1: bytes 100, the manifest says 99"),
    ],
)
def test_what_a_manifest_does_not_cover_is_said(told, fault):
    assert re.search(fault, "; ".join(shortfalls(told, READ)))


def test_a_manifest_may_leave_out_totals_and_bytes():
    parts = [{name: value for name, value in part.items() if name != "bytes"} for part in READ]
    assert shortfalls(without("rows") | {"parts": parts}, READ) == []


@given(st.data())
def test_any_single_difference_is_found(data):
    number = data.draw(st.integers(0, 2))
    field = data.draw(st.sampled_from(["name", "rows", "sha256"]))
    value = data.draw(
        st.one_of(st.none(), st.integers(), st.text(max_size=8)).filter(lambda v: v != READ[number][field])
    )
    parts = [part | ({field: value} if part is READ[number] else {}) for part in READ]
    assert shortfalls(TOLD | {"parts": parts}, READ)


# Who has opted out.


def test_who_has_opted_out_lies_beside_the_snapshot(tmp_path):
    rows = [{"profile_id": 2**64 - number, "score": 10.0, "opted_out": number % 2 == 0} for number in range(1, 7)]
    made = candidate(tmp_path, rows)
    folder = tmp_path / "candidates" / made.version
    ids = opted_out_ids(folder)
    assert ids is not None
    assert ids.dtype == np.uint64
    assert ids.tolist() == [2**64 - 6, 2**64 - 4, 2**64 - 2]
    file = folder / "opted_out.u64"
    assert file.stat().st_mode & 0o777 == 0o444
    assert file.read_bytes() == b"".join(profile_id.to_bytes(8, "little") for profile_id in ids.tolist())
    assert made.manifest["opted_out"] == {"count": 3, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def test_nobody_has_opted_out_of_an_input_that_does_not_say(tmp_path):
    made = candidate(tmp_path, ROWS)
    ids = opted_out_ids(tmp_path / "candidates" / made.version)
    assert ids is not None
    assert len(ids) == 0


def test_a_list_that_was_changed_is_refused_and_an_old_version_has_none(tmp_path):
    made = candidate(tmp_path, ROWS)
    folder = tmp_path / "candidates" / made.version
    file = folder / "opted_out.u64"
    file.unlink()
    assert opted_out_ids(folder) is None
    file.write_bytes(bytes(8))
    with pytest.raises(SnapshotError, match="not the one that was built"):
        opted_out_ids(folder)
