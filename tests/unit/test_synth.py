"""Synthetic profiles against what they promise: published figures, and days that agree with each other."""

from __future__ import annotations

import csv
import hashlib
import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kserve import synth
from kserve.errors import InputError, StorageError
from kserve.synth import calibration, taxonomy
from kserve.synth.hashing import Choice, key, mix, scramble
from kserve.synth.places import BOROUGHS, cities
from kserve.synth.population import Population

DAY = 40
MANY = 200_000
SOME = 20_000
PINNED = [(580137224866318184, 1121), (5289646530569349506, 1245), (3011080705925412227, 1090)]
"""Ids and hundredths of the first profiles of a thousand, with seed 1, on day 1."""


def table(folder: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(file) for file in sorted(folder.glob("part-*.parquet")))


def ids(folder: Path) -> set[int]:
    return set(table(folder)["profile_id"].to_pylist())


def cells(folder: Path, *columns: str) -> dict[int, tuple]:
    """profile_id to the values of the columns."""
    rows = table(folder)
    values = zip(*(rows[column].to_pylist() for column in columns), strict=True)
    return dict(zip(rows["profile_id"].to_pylist(), values, strict=True))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """The same population on four days: day number to folder."""
    root = tmp_path_factory.mktemp("days")
    for day in (DAY, DAY - 1, DAY - 7, DAY - 30):
        synth.write(root / str(day), synth.Plan(MANY, day=day, columns="core", rows_per_part=90_000))
    return {int(folder.name): folder for folder in root.iterdir()}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full") / "all"
    synth.write(folder, synth.Plan(SOME, day=DAY, rows_per_part=15_000))
    return folder


@pytest.fixture(scope="module")
def core_table(days):
    return table(days[DAY])


@pytest.fixture(scope="module")
def full_table(full):
    return table(full)


@pytest.fixture(scope="module")
def scores(core_table):
    return core_table["score"].drop_null().to_numpy()


class TestNumbers:
    def test_mix_is_splitmix64(self):
        # the first outputs of the reference implementation from state 0
        gamma = 0x9E3779B97F4A7C15
        state = np.array([gamma, 2 * gamma % 2**64, 3 * gamma % 2**64], np.uint64)
        assert mix(state).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]

    @pytest.mark.parametrize("bits", [2, 3, 11, 16])
    def test_scramble_is_a_bijection(self, bits):
        scrambled = scramble(np.arange(1 << bits, dtype=np.uint64), bits, key(1, "any"))
        assert sorted(scrambled.tolist()) == list(range(1 << bits))

    @pytest.mark.parametrize("weights", [[1], [3, 1], [0, 5, 0, 1], [10**9, 1, 1, 7], list(range(1, 200))])
    def test_choice_gives_each_its_share(self, weights):
        choice = Choice(np.array(weights))
        share = np.zeros(len(weights))
        for cell in range(choice.size):
            kept = int(choice._keep[cell]) / 2**32
            share[cell] += kept
            share[choice._other[cell]] += 1 - kept
        assert share / choice.size == pytest.approx(np.array(weights) / sum(weights), abs=1e-8)

    def test_choice_draws_by_its_table(self):
        choice = Choice(np.array([6, 3, 1]))
        drawn = np.bincount(choice.draw(mix(np.arange(300_000, dtype=np.uint64))), minlength=3) / 300_000
        assert drawn == pytest.approx([0.6, 0.3, 0.1], abs=0.005)

    def test_model_1_is_pinned(self):
        """Other days of a seed that is already in use must not change: raise ``model`` in the manifest if this must."""
        cohort = Population(seed=1, size=1000, day=1).cohort(np.arange(3, dtype=np.uint64))
        assert list(zip(cohort.ids.tolist(), cohort.hundredths().tolist(), strict=True)) == PINNED


class TestScores:
    def test_mean_is_klouts(self, scores):
        assert scores.mean() == pytest.approx(20, abs=0.5)

    def test_range_and_hundredths(self, scores):
        assert scores.min() == calibration.FLOOR / 100
        assert 80 < scores.max() <= 100
        assert (np.round(scores, 2) == scores).all()

    def test_floor_spike(self, scores):
        assert np.mean(scores == calibration.FLOOR / 100) == pytest.approx(calibration.SPIKE_64THS / 64, abs=0.002)
        values, counts = np.unique(scores, return_counts=True)
        assert counts[values > calibration.FLOOR / 100].max() < len(scores) / 200, "no other spike"

    @pytest.mark.parametrize("percentile", range(35, 96, 6))
    def test_connected_share_follows_the_percentiles(self, scores, percentile):
        """Above the lightly-connected there are only connected users: as many as the percentiles say."""
        connected = len(scores) * calibration.CONNECTED_64THS / 64
        above = np.sort(scores)[::-1][: round(connected * (1 - percentile / 100))]
        assert above[-1] == pytest.approx(calibration.PERCENTILES[percentile], abs=0.8)

    def test_percentiles_are_the_published_ones(self):
        published = Path(__file__).parents[3] / "shared/data/scores/klout_percentiles.json"
        if not published.exists():
            pytest.skip("the shared data is not here")
        assert json.loads(published.read_text())["percentiles_0_to_100"] == list(calibration.PERCENTILES)

    def test_missing(self, core_table):
        assert core_table["score"].null_count / MANY == pytest.approx(0.003, abs=0.0005)
        assert core_table["opted_out"].null_count == 0
        assert core_table["opted_out"].to_numpy().mean() == pytest.approx(0.01, abs=0.001)
        assert core_table["location"].null_count / MANY == pytest.approx(0.12, abs=0.003)

    def test_amplitude_leaves_room_at_both_ends(self):
        around = np.arange(calibration.FLOOR, calibration.TOP + 1) * calibration.GRAINS
        widest = calibration.amplitude(around, np.full(len(around), 65535))
        assert (around - widest >= calibration.FLOOR * calibration.GRAINS).all()
        assert (around + widest <= calibration.TOP * calibration.GRAINS).all()


class TestDays:
    @pytest.mark.parametrize(("column", "earlier"), [("day_change", 1), ("week_change", 7), ("month_change", 30)])
    def test_changes_are_differences_of_the_days(self, days, column, earlier):
        before = cells(days[DAY - earlier], "score")
        nulls = 0
        for profile_id, (score, change) in cells(days[DAY], "score", column).items():
            then = before.get(profile_id, (None,))[0]
            expected = None if score is None or then is None else round(score - then, 2)
            assert change == expected
            nulls += change is None
        assert MANY * 0.003 < nulls < MANY * 0.09

    def test_days_are_smooth(self, core_table):
        day = np.abs(core_table["day_change"].drop_null().to_numpy())
        assert np.quantile(day, 0.99) < 1.5
        assert day.max() < 5
        assert np.mean(day > 0) > 0.5

    def test_arrivals_and_departures(self, days):
        today, yesterday = ids(days[DAY]), ids(days[DAY - 1])
        assert 0.001 < len(today - yesterday) / MANY < 0.003
        assert 0.001 < len(yesterday - today) / MANY < 0.003

    def test_who_stays_stays_where_and_who_they_are(self, tmp_path, full):
        synth.write(tmp_path / "next", synth.Plan(SOME, day=DAY + 1))
        columns = ("location", "nick", "tw_id", "tw_name", "gp_id", "fb_id", "ig_id")
        today, tomorrow = cells(full, *columns), cells(tmp_path / "next", *columns)
        assert all(tomorrow[i] == today[i] for i in today.keys() & tomorrow.keys())

    def test_nobody_opts_in_again(self, days):
        before, now = cells(days[DAY - 30], "opted_out"), cells(days[DAY], "opted_out")
        back = {i for i, (out,) in before.items() if out and i in now and not now[i][0]}
        newly = {i for i, (out,) in now.items() if out and i in before and not before[i][0]}
        assert not back
        assert newly

    @pytest.mark.parametrize("day", [0, 36_500])
    def test_first_and_last_day(self, tmp_path, day):
        synth.write(tmp_path / "out", synth.Plan(2000, day=day, columns="core"))
        assert table(tmp_path / "out")["month_change"].null_count < 300, "the days before day 0 exist too"

    def test_scored_at(self):
        assert synth.scored_at(0) == datetime(2026, 1, 1, 4, tzinfo=UTC)
        assert synth.scored_at(31) - synth.scored_at(0) == timedelta(days=31)


class TestDetails:
    def test_profile_ids(self, core_table):
        ids = core_table["profile_id"].to_numpy()
        assert ids.dtype == np.uint64
        assert len(np.unique(ids)) == MANY
        assert 0.03 < np.mean(ids >= 2**63) < 0.1

    def test_ids_are_never_used_again(self):
        everyone = [Population(1, 500, day).cohort(np.arange(500, dtype=np.uint64)) for day in range(0, 36_500, 250)]
        pairs = {(int(i), int(x)) for cohort in everyone for i, x in zip(cohort.ids, cohort.index, strict=True)}
        assert len({i for i, _ in pairs}) == len({x for _, x in pairs}) == len(pairs) > 20_000

    def test_columns(self, core_table, full_table):
        shared = ["profile_id", "score", "location", "opted_out"]
        assert core_table.column_names == [*shared, "day_change", "week_change", "month_change"]
        assert full_table.column_names == [
            *shared, "network_score", "amplification", "true_reach", "topics", "nick", "tw_name", "tw_id", "gp_id",
            "fb_id", "ig_id", "influencers", "influencees", "influencer_count", "influencee_count",
        ]  # fmt: skip
        types = {field.name: str(field.type) for field in full_table.schema}
        assert types["topics"] == "list<element: struct<topic: string, score: double>>"
        assert types["influencers"] == "list<element: uint64>"
        assert types["location"].startswith("dictionary<values=string, indices=int32")
        full_table.validate(full=True)

    def test_both_kinds_tell_the_same(self, full_table, tmp_path):
        synth.write(tmp_path / "core", synth.Plan(SOME, day=DAY, columns="core"))
        other = table(tmp_path / "core")
        for column in ("profile_id", "score", "opted_out"):
            assert other[column].to_pylist() == full_table[column].to_pylist()
        assert other["location"].to_pylist() == full_table["location"].to_pylist()

    @pytest.mark.parametrize("column", ["nick", "tw_id", "tw_name", "gp_id", "fb_id", "ig_id"])
    def test_identities_are_unique(self, full_table, column):
        values = [value.lower() for value in full_table[column].to_pylist() if value is not None]
        assert len(set(values)) == len(values)
        share = synth.details.NETWORK_SHARES.get(column[:2], 100) / 100
        assert len(values) / SOME == pytest.approx(share, abs=0.02)

    def test_identities_look_like_real_ones(self, full_table):
        names = full_table["tw_name"].drop_null().to_pylist()
        assert all(len(name) <= 15 and name.replace("_", "").isalnum() and name.isascii() for name in names)
        assert any(name != name.lower() for name in names)
        plus = full_table["gp_id"].drop_null().to_pylist()
        assert all(len(i) == 21 and i.isdigit() and int(i) >= 2**64 for i in plus)
        others = [i for column in ("tw_id", "fb_id", "ig_id") for i in full_table[column].drop_null().to_pylist()]
        assert all(i.isdigit() and i[0] != "0" for i in others)

    def test_network_scores(self, full_table):
        unscored = full_table["score"].is_null().to_pylist()
        for column, most in (("network_score", 100), ("amplification", 100), ("true_reach", 2**32)):
            assert full_table[column].is_null().to_pylist() == unscored
            values = full_table[column].drop_null().to_numpy()
            assert 1 <= values.min() < values.max() <= most
            assert (np.round(values, 2) == values).all()

    def test_topics(self, full_table):
        known = set(taxonomy.popularity().slugs)
        used: dict[str, int] = {}
        for score, topics in zip(full_table["score"].to_pylist(), full_table["topics"].to_pylist(), strict=True):
            assert (topics is None) == (score is None)
            slugs, strengths = [topic["topic"] for topic in topics or ()], [topic["score"] for topic in topics or ()]
            assert len(slugs) == len(set(slugs)) <= 20
            assert all(1 <= strength <= 100 and round(strength, 2) == strength for strength in strengths)
            for slug in slugs:
                used[slug] = used.get(slug, 0) + 1
        assert used.keys() <= known
        by_rank = [used.get(slug, 0) for slug in taxonomy.popularity().slugs]
        assert by_rank[0] > 1.4 * by_rank[1] > 1.4 * by_rank[3] > 1.4 * by_rank[15]
        assert 4 < sum(by_rank) / SOME < 6

    def test_influence_is_mutual_and_goes_downwards(self, full_table):
        profiles = {row["profile_id"]: row for row in full_table.to_pylist()}
        for profile_id, row in profiles.items():
            for listed, count, back, sign in (
                ("influencers", "influencer_count", "influencees", 1),
                ("influencees", "influencee_count", "influencers", -1),
            ):
                if row["score"] is None:
                    assert row[listed] is row[count] is None
                    continue
                assert len(set(row[listed])) == len(row[listed]) == min(row[count], 5)
                for other in (profiles[i] for i in row[listed]):
                    assert sign * (other["score"] - row["score"]) > 0
                    assert profile_id in other[back] or len(other[back]) == 5
        counts = [(row["influencer_count"] or 0, row["influencee_count"] or 0) for row in profiles.values()]
        assert sum(up for up, _ in counts) == sum(down for _, down in counts)
        assert max(up for up, _ in counts) > 5, "more than are listed"

    @pytest.mark.parametrize("profiles", [1, 2, 3, 7, 9])
    def test_few_profiles(self, tmp_path, profiles):
        synth.write(tmp_path / "out", synth.Plan(profiles))
        rows = table(tmp_path / "out").to_pylist()
        assert len(rows) == profiles
        for row in rows:
            assert row["profile_id"] not in (listed := (row["influencers"] or []) + (row["influencees"] or []))
            assert len(set(listed)) == len(listed)


class TestPlaces:
    def test_paths(self):
        paths = cities().paths
        assert len(paths) == len(set(paths)) > 30_000
        city = "US/New York/New York City"
        assert {city, "GB/England/London", "CA/Ontario/Toronto", "AU/Victoria/Melbourne"} <= set(paths)
        assert [path for path in paths if path.count("/") != 2] == [f"{city}/{borough}" for borough in BOROUGHS]
        assert all(all(path.split("/")) for path in paths)

    def test_weighted_by_population(self, core_table):
        locations = core_table["location"].drop_null().to_pylist()
        new_york = sum(path.startswith("US/New York/New York City") for path in locations) / len(locations)
        assert new_york == pytest.approx(8_804_190 / 3.93e9, rel=0.25)
        assert sum(path.startswith("CN/") for path in locations) > sum(path.startswith("GB/") for path in locations) * 3


class TestTaxonomy:
    def test_a_dag_with_everything_in_it(self):
        topics = taxonomy.topics()
        assert 900 < len(topics) < 1200
        assert len({topic.topic_id for topic in topics}) == len({topic.slug for topic in topics}) == len(topics)
        assert any(topic.topic_id >= 2**63 for topic in topics)
        assert all(0 < topic.topic_id < 2**64 for topic in topics)
        assert sum(len(topic.parents) > 1 for topic in topics) > 50
        depth: dict[str, int] = {}
        for topic in topics:  # parents come first, or this is a KeyError: so there is no cycle
            depth[topic.slug] = 1 + max((depth[up] for up in topic.parents), default=0)
        assert {1, 2, 3, 4} <= set(depth.values())

    def test_files(self, full):
        topics, edges = (
            list(csv.DictReader((full / name).read_text(encoding="utf-8").splitlines()))
            for name in ("topics.csv", "topic_edges.csv")
        )
        assert list(topics[0]) == ["topicId", "topicSlug", "topicDisplayName"]
        assert list(edges[0]) == ["parentTopicId", "parentTopicSlug", "childTopicId", "childTopicSlug"]
        ids = {row["topicSlug"]: row["topicId"] for row in topics}
        for edge in edges:
            assert ids[edge["parentTopicSlug"]] == edge["parentTopicId"]
            assert ids[edge["childTopicSlug"]] == edge["childTopicId"]


class TestFiles:
    @pytest.mark.parametrize("columns", ["core", "all"])
    def test_same_plan_same_bytes(self, tmp_path, columns):
        plan = synth.Plan(30_000, seed=7, columns=columns, rows_per_part=20_000)
        for name in "ab":
            synth.write(tmp_path / name, plan)
        assert contents(tmp_path / "a") == contents(tmp_path / "b")

    def test_other_seed_other_profiles(self, tmp_path):
        for seed in (1, 2):
            synth.write(tmp_path / str(seed), synth.Plan(5000, seed=seed, columns="core"))
        assert not ids(tmp_path / "1") & ids(tmp_path / "2")

    def test_parts_and_groups_do_not_matter(self, tmp_path, monkeypatch):
        synth.write(tmp_path / "one", synth.Plan(5000))
        monkeypatch.setattr(synth, "CHUNK", 700)
        monkeypatch.setattr(synth, "ROW_GROUP", 1000)
        synth.write(tmp_path / "many", synth.Plan(5000, rows_per_part=2400))
        assert pq.ParquetFile(tmp_path / "many/part-00000.parquet").num_row_groups == 3
        assert table(tmp_path / "one").to_pylist() == table(tmp_path / "many").to_pylist()

    def test_manifest(self, full):
        manifest = json.loads((full / "_manifest.json").read_text())
        assert manifest["complete"] is True
        assert manifest["scored_at"] == "2026-02-10T04:00:00Z"
        assert manifest["rows"] == SOME
        assert manifest["generator"]["seed"] == 1
        assert [part["rows"] for part in manifest["parts"]] == [15_000, 5_000]
        for part in manifest["parts"]:
            file = full / part["name"]
            assert part["bytes"] == file.stat().st_size
            assert part["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
            assert part["rows"] == pq.ParquetFile(file).metadata.num_rows

    def test_the_manifest_says_when_the_scores_claim_to_be_made(self, tmp_path):
        there = timezone(timedelta(hours=2))
        synth.write(tmp_path / "out", synth.Plan(10), when=datetime(2026, 11, 21, 6, tzinfo=there))
        assert json.loads((tmp_path / "out/_manifest.json").read_text())["scored_at"] == "2026-11-21T04:00:00Z"

    def test_returns_what_it_wrote_in_order(self, tmp_path):
        made = synth.write(tmp_path / "deep/out", synth.Plan(10, rows_per_part=6))
        names = ["part-00000.parquet", "part-00001.parquet", "topics.csv", "topic_edges.csv", "_manifest.json"]
        assert made == [tmp_path / "deep/out" / name for name in names]
        assert sorted(made) == sorted((tmp_path / "deep/out").iterdir())

    def test_progress(self, tmp_path):
        calls: list[tuple[int, int]] = []
        synth.write(tmp_path / "out", synth.Plan(150_000, columns="core"), lambda *call: calls.append(call))
        assert calls == sorted(calls)
        assert len(calls) > 1
        assert calls[-1] == (150_000, 150_000)

    def test_takes_an_empty_folder(self, tmp_path):
        (tmp_path / "out").mkdir()
        synth.write(tmp_path / "out", synth.Plan(10))
        assert (tmp_path / "out/_manifest.json").exists()

    def test_refuses_a_folder_with_something_in_it(self, tmp_path):
        (tmp_path / "mine.txt").write_text("x")
        with pytest.raises(InputError, match=r"the folder is not empty \(name a new folder"):
            synth.write(tmp_path, synth.Plan(10))
        with pytest.raises(InputError, match="not a folder"):
            synth.write(tmp_path / "mine.txt", synth.Plan(10))
        assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]

    def test_nowhere_to_write(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(StorageError, match="file/out: cannot be written"):
            synth.write(tmp_path / "file" / "out", synth.Plan(10))

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *(("profiles", 0), ("profiles", 2**32 + 1), ("day", -1), ("day", 36_501)),
            *(("seed", -1), ("seed", 2**63), ("rows_per_part", 0), ("columns", "some")),
        ],
    )
    def test_refuses_a_plan_out_of_bounds(self, field, value):
        with pytest.raises(InputError, match=f"{field} is "):
            synth.Plan(**({"profiles": 10} | {field: value}))


class TestInterrupted:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_while_computing(self, tmp_path, error):
        def stop(done: int, total: int) -> None:
            if done > 70_000:
                raise error

        with pytest.raises(error):
            synth.write(tmp_path / "out", synth.Plan(200_000, columns="core", rows_per_part=50_000), stop)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("call", [1, 2])
    def test_while_writing(self, tmp_path, monkeypatch, call):
        real = pq.ParquetWriter.write_table
        calls = []

        def full_disk(*args):
            calls.append(args)
            if len(calls) == call:
                raise OSError(28, "No space left on device")
            real(*args)

        monkeypatch.setattr(pq.ParquetWriter, "write_table", full_disk)
        with pytest.raises(StorageError, match="No space left"):
            synth.write(tmp_path / "out", synth.Plan(3000, columns="core", rows_per_part=1000))
        assert not list(tmp_path.iterdir())

    def test_killed(self, tmp_path):
        plan = "synth.Plan(10**9, columns='core', rows_per_part=20_000)"
        code = f"import sys, pathlib, kserve.synth as synth; synth.write(pathlib.Path(sys.argv[1]), {plan})"
        with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")]) as process:
            while not list(tmp_path.glob(".out.*/part-*")):
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        assert not (tmp_path / "out").exists()
        assert all(file.name.startswith(".out.") for file in tmp_path.iterdir())
