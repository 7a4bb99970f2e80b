"""Format version 1 is pinned: a committed file is read as ever, and the same rows still make the same bytes."""

from pathlib import Path

import snapshots

from kserve import Snapshot

GOLDEN = Path(__file__).with_name("format-1.kss")
TOPICS = {
    "topics": ["music", "jazz", "pizza"],
    "edges": [("music", "jazz")],
}
ROWS = [
    {
        "profile_id": 42,
        "score": 62.31,
        "day_change": 0.12,
        "week_change": -0.3,
        "network_score": 55.5,
        "amplification": 12.25,
        "true_reach": 14,
        "topics": [{"topic": "jazz", "score": 71.5}, {"topic": "pizza", "score": None}],
        "location": "US/New York/New York City",
        "nick": "jörg",
        "tw_id": "200653266",
        "tw_name": "Mandubian",
        "gp_id": "112345678901234567890",
        "influencers": [7, 18446744073709551615],
        "influencer_count": 8,
    },
    {"profile_id": 18446744073709551615, "score": 100.0, "location": "FR"},
    {"profile_id": 0, "score": 1.0, "day_change": -99.0},
    {"profile_id": 7, "score": None, "influencees": [42]},
    {"profile_id": 13, "score": 13.0, "opted_out": True},
]


def test_the_golden_file_reads_as_it_was_written():
    golden = Snapshot(GOLDEN)
    golden.verify()
    assert (golden.version, golden.format, golden.profiles, golden.scored) == ("20260301T120000Z-b1090dec", 1, 4, 3)
    assert [golden.score(i) for i in (42, 18446744073709551615, 0, 7)] == [62.31, 100.0, 1.0, None]
    profile = golden.get(42)
    assert profile.changes == (0.12, -0.3, None)
    assert (profile.network_score, profile.amplification, profile.true_reach) == (55.5, 12.25, 14)
    assert profile.topics == (("jazz", 71.5), ("pizza", None))
    assert (profile.location, profile.nick) == ("US/New York/New York City", "jörg")
    assert profile.identities == {"tw": ("200653266", "Mandubian"), "gp": ("112345678901234567890", None)}
    assert (profile.influencers, profile.influencer_count) == ((7, 18446744073709551615), 8)
    assert golden.get(0).changes.day == -99.0
    assert golden.find("tw", "MANDUBIAN") == 42
    assert golden.count({"any_topics": ["music"], "locations": ["US"]}) == 1


def test_the_same_rows_make_the_golden_file(tmp_path):
    words = snapshots.taxonomy_files(tmp_path / "words", TOPICS["topics"], TOPICS["edges"])
    made = snapshots.publish(tmp_path, ROWS, **words)
    assert Path(made.path).read_bytes() == GOLDEN.read_bytes()


def test_two_builds_of_the_same_rows_are_one_version(tmp_path):
    first = snapshots.candidate(tmp_path, ROWS)
    again = snapshots.candidate(tmp_path, ROWS)
    assert again.version == first.version
    assert snapshots.publish(tmp_path, ROWS).version == first.version
    assert Path(snapshots.publish(tmp_path, ROWS).path).stat().st_mode & 0o777 == 0o444
