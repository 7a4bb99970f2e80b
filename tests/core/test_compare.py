"""Portraits and comparisons, against plain Python over the rows that the snapshots were made from."""

import itertools
from collections import Counter, defaultdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import resealing
import snapshots
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kserve import Snapshot, SnapshotError
from kserve.snapshots.build import Options, build
from kserve.snapshots.catalog import SNAPSHOT, Catalog
from kserve.snapshots.compare import compare, portrait

TOPICS = [f"t{i}" for i in range(8)]
PLACES = ["US", "US/New York", "US/New York/New York City", "US/New Yorkshire", "FR/Paris", "A\0B/C", "A/B"]
NETWORKS = {"tw": ("tw_id", "tw_name"), "gp": ("gp_id",), "fb": ("fb_id",), "ig": ("ig_id",)}

point = st.integers(100, 10000).map(lambda n: n / 100)
move = st.integers(-9900, 9900).map(lambda n: n / 100)
COLUMNS = {
    "day_change": st.none() | move,
    "month_change": st.none() | move,
    "network_score": st.none() | point,
    "amplification": st.none() | point,
    "true_reach": st.none() | st.integers(0, 1000),
    "location": st.none() | st.sampled_from(PLACES),
    "topics": st.none()
    | st.dictionaries(st.sampled_from(TOPICS), st.none() | point, max_size=6).map(
        lambda topics: [{"topic": slug, "score": score} for slug, score in topics.items()]
    ),
    "influencers": st.none() | st.lists(st.integers(0, 50), max_size=3, unique=True),
    "influencer_count": st.none() | st.integers(0, 9),
    "nick": st.none() | st.sampled_from(["ann", "bob", "cy"]),
    "tw_id": st.booleans(),
    "tw_name": st.booleans(),
    "gp_id": st.booleans(),
    "fb_id": st.booleans(),
    "ig_id": st.booleans(),
}
numbers = itertools.count()
IDENTITIES = tuple(column for columns in NETWORKS.values() for column in columns)


@st.composite
def tables(draw):
    """Rows by profile id, with some of the columns."""
    names = draw(st.sets(st.sampled_from(sorted(COLUMNS))))
    rows = draw(
        st.dictionaries(
            st.integers(0, 40) | st.integers((1 << 64) - 3, (1 << 64) - 1),
            st.fixed_dictionaries({"score": st.none() | point} | {name: COLUMNS[name] for name in sorted(names)}),
            min_size=1,
            max_size=60,
        )
    )
    return {profile_id: with_identities(profile_id, row) for profile_id, row in rows.items()}


def with_identities(profile_id, row):
    """Identities are of one profile each."""
    texts = {name: f"{name}{profile_id}" if row[name] else None for name in IDENTITIES if name in row}
    return {"profile_id": profile_id, **row, **texts}


def publish(data, rows, later=0, **options):
    """A snapshot of rows; each later one has a scored_at of its own, and nothing to take changes from."""
    data = Path(data, str(later), str(next(numbers)))
    scored_at = snapshots.NOON + timedelta(hours=later)
    version = snapshots.candidate(data, rows, scored_at=scored_at, **options).version
    return Snapshot(Catalog(data).folder(version) / SNAPSHOT)


def groups_of(row):
    """The names of all groups that a profile is in, by kind."""
    parts = (row.get("location") or "").split("/")
    return {
        "regions": {"/".join(parts[:depth]) for depth in range(1, len(parts) + 1)} if row.get("location") else set(),
        "topics": {topic["topic"] for topic in row.get("topics") or ()},
        "networks": {network for network, columns in NETWORKS.items() if any(row.get(name) for name in columns)},
    }


def check_portrait(figures, snapshot, table):
    rows = list(table.values())
    scores = [row["score"] for row in rows if row["score"] is not None]
    assert (figures.version, figures.file_bytes) == (snapshot.version, snapshot.nbytes)
    assert (figures.profiles, figures.unscored) == (len(rows), len(rows) - len(scores))
    assert {i: n for i, n in enumerate(figures.histogram.tolist()) if n} == Counter(round(100 * s) for s in scores)
    assert figures.nulls == {
        column: sum(row.get(column) in (None, []) for row in rows) for column in set(rows[0]) - {"profile_id"}
    }
    for kind in ("regions", "topics", "networks"):
        check_groups(getattr(figures, kind), kind, rows)
    listed = [topic for row in rows for topic in row.get("topics") or ()]
    found = figures.values.get("topics", np.empty(0)).tolist()
    kept = Counter(65535 if topic.get("score") is None else round(topic["score"] * 100) for topic in listed)
    assert {i: n for i, n in enumerate(found) if n} == kept
    for column, kept in (("network_score", 100), ("amplification", 100), ("true_reach", 1)):
        values = [None if row.get(column) is None else round(row[column] * kept) for row in rows]
        found = {} if column not in rows[0] else Counter(65535 if value is None else value for value in values)
        assert {i: n for i, n in enumerate(figures.values.get(column, np.empty(0)).tolist()) if n} == found


def check_groups(groups, kind, rows):
    members = defaultdict(list)
    for row in rows:
        for name in groups_of(row)[kind]:
            members[name].append(row["score"])
    assert set(groups.names) == set(members)
    for i, name in enumerate(groups.names):
        scores = [score for score in members[name] if score is not None]
        assert groups.profiles[i] == len(members[name])
        assert groups.sums[i] == pytest.approx(sum(scores))
        assert {p: n for p, n in enumerate(groups.histogram[i].tolist()) if n} == Counter(map(int, scores))


def check_comparison(figures, old, new):
    both = old.keys() & new.keys()
    moves = {
        i: round(100 * new[i]["score"]) - round(100 * old[i]["score"])
        for i in both
        if old[i]["score"] is not None and new[i]["score"] is not None
    }
    counts = (figures.both, figures.added, figures.removed)
    assert counts == (len(both), len(new.keys() - both), len(old.keys() - both))
    assert figures.became_unscored == sum(old[i]["score"] is not None and new[i]["score"] is None for i in both)
    assert figures.became_scored == sum(old[i]["score"] is None and new[i]["score"] is not None for i in both)
    assert figures.changed == sum(move != 0 for move in moves.values())
    assert {d - 9900: n for d, n in enumerate(figures.moves.tolist()) if n} == Counter(moves.values())
    for kind in ("regions", "topics", "networks"):
        check_moves(getattr(figures, kind), kind, old, moves)
    assert int(figures.id_ranges.both.sum()) == len(moves)
    assert int(figures.id_ranges.over5.sum()) == sum(abs(move) > 500 for move in moves.values())
    sizes = [abs(round(100 * mover.new) - round(100 * mover.old)) for mover in figures.movers]
    assert sizes == sorted((abs(move) for move in moves.values() if move), reverse=True)[:100]
    assert all((old[m.profile_id]["score"], new[m.profile_id]["score"]) == (m.old, m.new) for m in figures.movers)


def check_events(figures, old, new):
    pairs = [(old[i], new[i]) for i in old.keys() & new.keys()]
    assert figures.events["floored"] == sum(
        now["score"] == 1.0 and was["score"] is not None and was["score"] > 1.0 for was, now in pairs
    )
    assert figures.events["relocated"] == sum(
        len({was.get("location"), now.get("location")} - {None, ""}) == 2 for was, now in pairs
    )
    assert figures.events["retopicked"] == sum(
        all(a != b for a, b in zip(was, now, strict=True))
        for was, now in ((ends(was), ends(now)) for was, now in pairs)
        if was and now
    )
    assert figures.events["renamed"] == sum(
        any(
            any(was.get(name) for name in names)
            and any(now.get(name) for name in names)
            and [was.get(name) for name in names] != [now.get(name) for name in names]
            for names in NETWORKS.values()
        )
        for was, now in pairs
    )

    assert figures.events["remeasured"] == sum(is_remeasured(was, now) for was, now in pairs)
    assert figures.events["reconnected"] == sum(
        any(
            was.get(name) and now.get(name) and min(was[name]) != min(now[name]) and max(was[name]) != max(now[name])
            for name in ("influencers", "influencees")
        )
        for was, now in pairs
    )


def is_remeasured(was, now):
    """In hundredths, as they are kept."""
    for name in ("network_score", "amplification"):
        known = was.get(name) is not None and now.get(name) is not None
        if known and abs(round(100 * was[name]) - round(100 * now[name])) > 1000:
            return True
    low, high = sorted((was.get("true_reach") or 0, now.get("true_reach") or 0))
    known = was.get("true_reach") is not None and now.get("true_reach") is not None
    return known and high > 2 * low + 100


def ends(row):
    """The least and the greatest hash of the topics."""
    hashes = [xxhash.xxh3_64_intdigest(topic["topic"].encode()) for topic in row.get("topics") or ()]
    return (min(hashes), max(hashes)) if hashes else ()


def check_moves(found, kind, old, moves):
    members = defaultdict(list)
    for profile_id, move in moves.items():
        for name in groups_of(old[profile_id])[kind]:
            members[name].append(move)
    assert set(found.names) == set(members)
    for i, name in enumerate(found.names):
        over = [sum(abs(move) > limit for move in members[name]) for limit in (500, 1000)]
        assert [found.both[i], found.over5[i], found.over10[i]] == [len(members[name]), *over]
        assert found.sums[i] == pytest.approx(sum(members[name]) / 100)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(tables(), tables())
def test_figures_are_those_of_the_rows(tmp_path, before, after):
    old, new = publish(tmp_path, before.values()), publish(tmp_path, after.values(), 1)
    figures = compare(old, new, threads=2)
    check_portrait(figures.old, old, before)
    check_portrait(figures.new, new, after)
    check_comparison(figures, before, after)
    check_events(figures, before, after)
    check_portrait(portrait(old), old, before)
    assert figures.old.digest == portrait(old).digest
    assert (figures.old.digest == figures.new.digest) == (essence(before) == essence(after))


def essence(table):
    """What the digest says is the same."""
    return {
        i: (
            row["score"],
            row.get("location"),
            {(t["topic"], t["score"]) for t in row.get("topics") or ()},
            [row.get(column) for column in IDENTITIES],
        )
        for i, row in table.items()
    }


def many(n, seed=0):
    """Rows with everything, in no order."""
    generator = np.random.default_rng(seed)
    rows = [
        with_identities(
            int(profile_id),
            {
                "score": None if i % 50 == 0 else int(generator.integers(100, 10001)) / 100,
                "location": PLACES[int(generator.integers(len(PLACES)))] if i % 3 else None,
                "topics": [
                    {"topic": TOPICS[k], "score": k + 1.5} for k in generator.permutation(8)[: generator.integers(5)]
                ],
                "tw_id": bool(i % 2),
                "fb_id": bool(i % 5),
            },
        )
        for i, profile_id in enumerate(generator.permutation(3 * n)[:n])
    ]
    return {row["profile_id"]: row for row in rows}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two tables of many profiles, and their snapshots."""
    data = tmp_path_factory.mktemp("pair")
    before = many(20_000)
    after = {i: row for i, row in before.items() if i % 97} | {i: row for i, row in many(20_000, 1).items() if i % 2}
    return before, after, publish(data, before.values()), publish(data, after.values(), 1)


def test_many_blocks_and_threads_agree_with_the_rows(pair):
    before, after, old, new = pair
    figures = [compare(old, new, threads=threads) for threads in (1, 2, 3)]
    check_portrait(figures[0].old, old, before)
    check_portrait(figures[0].new, new, after)
    check_comparison(figures[0], before, after)
    assert str(figures[0]) == str(figures[1]) == str(figures[2])
    for other in figures[1:]:
        assert other.new.histogram.tolist() == figures[0].new.histogram.tolist()
        assert other.regions.sums.tolist() == figures[0].regions.sums.tolist()
        assert other.movers == figures[0].movers


def test_a_place_of_more_than_a_narrow_counter_holds(tmp_path):
    score, place = np.full(140_000, 50.0), "US/New York"
    score[:5] = 50.99
    table = pa.table({"profile_id": np.arange(len(score)), "score": score, "location": [place] * len(score)})
    pq.write_table(table, tmp_path / "many.parquet")
    version = build(Catalog(tmp_path), tmp_path / "many.parquet", Options(scored_at=snapshots.NOON)).version
    snapshot = Snapshot(Catalog(tmp_path).folder(version) / SNAPSHOT)
    for figures in (portrait(snapshot, threads=1), compare(snapshot, snapshot, threads=2).old):
        assert figures.regions.names == ("US", place)
        assert figures.regions.histogram[:, 50].tolist() == figures.regions.profiles.tolist() == [140_000] * 2
        assert figures.regions.sums.tolist() == pytest.approx([score.sum()] * 2)


def test_who_is_compared_with_itself_has_not_moved(pair):
    _, _, old, _ = pair
    figures = compare(old, old)
    assert (figures.both, figures.added, figures.removed) == (old.profiles, 0, 0)
    assert (figures.changed, figures.movers, figures.clusters) == (0, (), ())
    assert figures.moves.sum() == figures.moves[9900] == old.scored


def test_digest_knows_neither_order_nor_day(tmp_path):
    rows = list(many(2_000).values())
    first = portrait(publish(tmp_path, rows)).digest
    shuffled = [row | {"topics": row["topics"][::-1]} for row in rows[::-1]]
    assert portrait(publish(tmp_path, shuffled, 1)).digest == first
    words = snapshots.taxonomy_files(tmp_path / "words", ["zero", *TOPICS[::-1]], [])
    assert portrait(publish(tmp_path, shuffled, 2, **words)).digest == first
    changes = [row | {"day_change": 1.5, "true_reach": 5, "nick": "n"} for row in rows]
    assert portrait(publish(tmp_path, changes, 3)).digest == first


def test_digest_knows_each_score_place_and_topic(tmp_path):
    rows = list(many(2_000).values())
    variants = [
        rows,
        rows[1:],
        [rows[0] | {"score": 1.0}, *rows[1:]],
        [rows[1] | {"location": "US"}, *rows[:1], *rows[2:]],
        [rows[1] | {"location": "FR"}, *rows[:1], *rows[2:]],
        [rows[0] | {"topics": [{"topic": "t0", "score": None}]}, *rows[1:]],
        [rows[0] | {"topics": [{"topic": "t0", "score": 1.0}]}, *rows[1:]],
        [rows[2] | {"score": rows[3]["score"]}, rows[3] | {"score": rows[2]["score"]}, *rows[:2], *rows[4:]],
    ]
    digests = [portrait(publish(tmp_path, variant, later)).digest for later, variant in enumerate(variants)]
    assert len(set(digests)) == len(variants)
    assert all(len(bytes.fromhex(digest)) == 16 for digest in digests)


def test_progress_goes_from_first_to_last(pair):
    _, _, old, new = pair
    told = []
    compare(old, new, lambda done, total: told.append((done, total)))
    assert told
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1] == len({total for _, total in told}) * told[0][1]


DAMAGE = {
    "topic_counts": (np.uint8, 255, "entries outside"),
    "topic_starts": (np.uint64, 1 << 60, "entries outside"),
    "topic_ids": (np.uint16, 60_000, "topics: a number outside"),
    "locations": (np.uint32, 1 << 30, "locations: a number outside"),
    "detail_starts": (np.uint64, 1 << 62, "a record outside"),
    "lines": (np.uint16, 20_000, "a score outside"),
}


@pytest.mark.parametrize("section", DAMAGE)
def test_a_damaged_file_gives_an_error(pair, tmp_path, section):
    _, _, old, _ = pair
    image = bytearray(Path(old.path).read_bytes())
    offset, length = resealing.section(bytes(image), section)
    kind, value, message = DAMAGE[section]
    values = np.frombuffer(image, kind, length // np.dtype(kind).itemsize, offset)
    if section == "lines":
        values = values.reshape(-1, 32)[:, 16:20]
    values[values != 0] = value
    damaged = Snapshot(resealing.put(tmp_path / "damaged.kss", resealing.resealed(bytes(image))))
    for act in (lambda: portrait(damaged), lambda: compare(old, damaged), lambda: compare(damaged, old)):
        with pytest.raises(SnapshotError, match=message):
            act()
