"""All fields of a profile, and look-ups by identity, against the rows that went in."""

import pytest
import snapshots
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kserve import InputError

text = st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30))
digits = st.one_of(st.none(), st.integers(0, 10**22).map(str))
point = st.one_of(st.none(), st.integers(100, 10000).map(lambda n: n / 100))
count = st.one_of(st.none(), st.integers(0, 2**32 - 2))
some_ids = st.lists(st.integers(0, 40), max_size=5)
topics = st.lists(
    st.tuples(st.sampled_from([f"topic-{i}" for i in range(25)]), point), max_size=20, unique_by=lambda pair: pair[0]
).map(lambda pairs: [{"topic": slug, "score": score} for slug, score in pairs])
rows = st.fixed_dictionaries(
    {
        "score": point,
        "network_score": point,
        "amplification": point,
        "true_reach": count,
        "location": st.one_of(st.none(), st.sampled_from(["US", "US/New York", "US/New York/New York City", "FR/Île"])),
        "topics": topics,
        "nick": text,
        "tw_id": digits,
        "tw_name": st.one_of(st.none(), st.text("abcXYZ_09é", min_size=1, max_size=15)),
        "gp_id": digits,
        "fb_id": digits,
        "ig_id": digits,
        "influencers": some_ids,
        "influencees": some_ids,
        "influencer_count": count,
        "influencee_count": count,
    }
)
IDENTITIES = {"tw_id": "tw", "tw_name": "tw", "gp_id": "gp", "fb_id": "fb", "ig_id": "ig"}


def folded(column, value):
    return "".join(c.lower() if c.isascii() else c for c in value) if column == "tw_name" else value


def owners(table):
    claims = {}
    for profile_id, row in table.items():
        for column in IDENTITIES:
            if row[column] is not None:
                claims.setdefault((column, folded(column, row[column])), []).append(profile_id)
    return claims


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.dictionaries(st.integers(0, 40), rows, min_size=1, max_size=25))
def test_every_field_comes_back(tmp_path, table):
    claims = owners(table)
    disputed = sum(len(profiles) - 1 for profiles in claims.values())
    source = [{"profile_id": profile_id, **row} for profile_id, row in table.items()]
    if disputed:
        with pytest.raises(InputError, match="same identity"):
            snapshots.candidate(tmp_path, source)
    snapshot = snapshots.publish(tmp_path, source, max_rejects=disputed)
    snapshot.verify()
    for profile_id, row in table.items():
        check(snapshot.get(profile_id), row, table)
    for (column, value), profiles in claims.items():
        by = "name" if column == "tw_name" else "id"
        expected = profiles[0] if len(profiles) == 1 else None
        assert snapshot.find(IDENTITIES[column], value, by) == expected
        if column == "tw_name":
            assert snapshot.find("tw", value.upper() if value.isascii() else value, "name") == expected


def check(profile, row, table):
    for name in ("score", "network_score", "amplification", "true_reach", "location", "nick"):
        assert getattr(profile, name) == row[name], name
    for name in ("influencer_count", "influencee_count"):
        assert getattr(profile, name) == row[name]
    for name in ("influencers", "influencees"):
        assert getattr(profile, name) == tuple(other for other in row[name] if other in table)
    assert [topic._asdict() for topic in profile.topics] == [
        {"slug": topic["topic"], "score": topic["score"]} for topic in row["topics"]
    ]
    for column, network in IDENTITIES.items():
        identity = profile.identities.get(network)
        found = None if identity is None else identity.name if column == "tw_name" else identity.id
        assert found == row[column]


@pytest.fixture
def snapshot(tmp_path):
    return snapshots.publish(
        tmp_path,
        [
            {"profile_id": 1, "score": 50.0, "tw_id": "77", "tw_name": "Jane_Doe"},
            {"profile_id": 2, "score": 60.0, "tw_id": "88", "tw_name": "77", "gp_id": "112345678901234567890"},
            {"profile_id": 3, "score": 70.0, "fb_id": "77", "opted_out": True, "tw_name": "gone"},
        ],
    )


def test_an_id_comes_before_a_name(snapshot):
    assert snapshot.find("tw", "77") == 1
    assert snapshot.find("tw", "77", "id") == 1
    assert snapshot.find("tw", "77", "name") == 2
    assert snapshot.find("tw", "jANE_dOE") == 1


def test_networks_are_apart_and_ids_are_exact(snapshot):
    assert snapshot.find("gp", "112345678901234567890") == 2
    assert snapshot.find("gp", "77") is None
    assert snapshot.find("gp", "x", "name") is None
    assert snapshot.find("myspace", "77") is None
    assert snapshot.find("tw", "") is None
    assert snapshot.find("tw", "x" * 300) is None


def test_who_has_opted_out_is_found_by_no_name(snapshot):
    assert snapshot.find("tw", "gone") is None
    assert snapshot.find("fb", "77") is None


def test_a_snapshot_without_details_finds_nobody(tmp_path):
    plain = snapshots.publish(tmp_path, [{"profile_id": 1, "score": 5.0}])
    assert plain.find("tw", "jane") is None
    assert plain.get(1).identities == {}
    assert plain.get(1).true_reach is None
