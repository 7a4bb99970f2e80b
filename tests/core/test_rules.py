"""Random rules on random profiles, against a plain Python evaluator."""

import numpy as np
import pytest
import snapshots
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kserve
from kserve import Rule, RuleError
from kserve._rules import CRITERIA

TOPICS = [f"t{i}" for i in range(12)]
PLACES = ["US", "US/New York", "US/New York/New York City", "US/New Yorkshire", "FR", "FR/Paris"]
UNIVERSE = 60

point = st.integers(100, 10000).map(lambda n: n / 100)
move = st.integers(-9900, 9900).map(lambda n: n / 100)
profiles = st.fixed_dictionaries(
    {
        "score": st.none() | point,
        "day_change": st.none() | move,
        "week_change": st.none() | move,
        "month_change": st.none() | move,
        "network_score": st.none() | point,
        "amplification": st.none() | point,
        "true_reach": st.none() | st.integers(0, 1000),
        "location": st.none() | st.sampled_from(PLACES),
        "topics": st.dictionaries(st.sampled_from(TOPICS), st.none() | point, max_size=6).map(
            lambda topics: [{"topic": slug, "score": score} for slug, score in topics.items()]
        ),
        "opted_out": st.booleans(),
    }
)
some_topics = st.lists(st.sampled_from(TOPICS), max_size=3)
some_places = st.lists(st.sampled_from([*PLACES, "US/New", "DE"]), max_size=2)


@st.composite
def rules(draw):
    low, high = draw(st.none() | point), draw(st.none() | point)
    if low is not None and high is not None and low > high:
        low, high = high, low
    topics = {"any_topics": draw(some_topics), "all_topics": draw(some_topics)}
    criteria = {
        "min_score": low,
        "max_score": high,
        **topics,
        "min_topic_score": draw(st.none() | point) if any(topics.values()) else None,
        "locations": draw(some_places),
        "not_locations": draw(some_places),
        "min_day_change": draw(st.none() | move),
        "min_week_change": draw(st.none() | move),
        "min_month_change": draw(st.none() | move),
        "min_network_score": draw(st.none() | point),
        "min_amplification": draw(st.none() | point),
        "min_true_reach": draw(st.none() | st.integers(0, 1000)),
    }
    asked = draw(st.sets(st.sampled_from(sorted(criteria)), max_size=4))
    if not asked & {"any_topics", "all_topics"}:
        asked.discard("min_topic_score")
    given = {name: criteria[name] for name in asked}
    return {name: value for name, value in given.items() if name != "min_topic_score" or any_topic(given)}


def any_topic(criteria):
    return bool(criteria.get("any_topics") or criteria.get("all_topics"))


@st.composite
def taxonomies(draw):
    """Edges from a lower to a higher number: no cycle."""
    pairs = st.tuples(st.sampled_from(range(12)), st.sampled_from(range(12))).filter(lambda pair: pair[0] < pair[1])
    return [(TOPICS[a], TOPICS[b]) for a, b in draw(st.sets(pairs, max_size=10))]


def below(topic, edges):
    found = {topic}
    while more := {child for parent, child in edges if parent in found} - found:
        found |= more
    return found


def inside(path, places):
    parts = path.split("/")
    return any(parts[: len(place.split("/"))] == place.split("/") for place in places)


def failing(rule, profile, edges):
    """Names of the criteria that a profile does not meet: the meaning of a rule, written down once more."""
    failed = set()

    def at_least(criterion, value):
        if rule.get(criterion) is not None and (value is None or value < rule[criterion]):
            failed.add(criterion)

    at_least("min_score", profile["score"])
    if rule.get("max_score") is not None and (profile["score"] is None or profile["score"] > rule["max_score"]):
        failed.add("max_score")
    for period in ("day", "week", "month"):
        at_least(f"min_{period}_change", profile[f"{period}_change"])
    for column in ("network_score", "amplification", "true_reach"):
        at_least(f"min_{column}", profile[column])
    if rule.get("locations") or rule.get("not_locations"):
        path = profile["location"]
        allowed = path is not None and (not rule.get("locations") or inside(path, rule["locations"]))
        if not allowed or inside(path, rule.get("not_locations", [])):
            failed.add("locations")
    lowest = rule.get("min_topic_score")
    held = {
        t["topic"] for t in profile["topics"] if lowest is None or (t["score"] is not None and t["score"] >= lowest)
    }
    met = [bool(below(topic, edges) & held) for topic in rule.get("any_topics", [])]
    if met and not any(met):
        failed.add("any_topics")
    if not all(below(topic, edges) & held for topic in rule.get("all_topics", [])):
        failed.add("all_topics")
    return failed


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.dictionaries(st.integers(0, UNIVERSE), profiles, min_size=1, max_size=50), taxonomies(), st.data())
def test_random_rules_mean_what_the_oracle_says(tmp_path, table, edges, data):
    present = {profile_id: row for profile_id, row in table.items() if not row["opted_out"]}
    if not present:
        return
    words = snapshots.taxonomy_files(tmp_path / "words", TOPICS, edges)
    snapshot = snapshots.publish(tmp_path, [{"profile_id": i, **row} for i, row in table.items()], **words)
    for rule in data.draw(st.lists(rules(), min_size=5, max_size=15)):
        check(snapshot, rule, present, edges)


def check(snapshot, rule, present, edges):
    expected = {profile_id for profile_id, row in present.items() if not failing(rule, row, edges)}
    everyone = np.arange(UNIVERSE + 5, dtype=np.uint64)
    assert set(everyone[snapshot.eligible(rule, everyone)].tolist()) == expected
    assert snapshot.count(rule) == len(expected)
    for profile_id, row in present.items():
        assert set(snapshot.explain(rule, profile_id)) == failing(rule, row, edges)
        assert snapshot.eligible(rule, profile_id) == (profile_id in expected)
    best = sorted(expected, key=lambda i: (-(present[i]["score"] or 0), i))
    for limit in (0, 1, 3, len(expected), 1000):
        assert snapshot.select(rule, limit).tolist() == best[:limit]


def test_a_scan_of_many_blocks_agrees_with_single_verdicts(tmp_path):
    generator = np.random.default_rng(7)
    rows = [
        {
            "profile_id": i,
            "score": None if i % 100 == 0 else int(generator.integers(100, 10001)) / 100,
            "location": PLACES[int(generator.integers(len(PLACES)))] if i % 3 else None,
            "topics": [{"topic": TOPICS[i % 12], "score": 50.0}],
        }
        for i in range(20_000)
    ]
    snapshot = snapshots.publish(tmp_path, rows)
    ids = np.arange(20_000, dtype=np.uint64)
    for rule in (
        {},
        {"min_score": 99},
        {"max_score": 50},
        {"locations": ["US"]},
        {"min_score": 5, "locations": ["FR"]},
    ):
        assert snapshot.count(rule) == snapshot.eligible(rule, ids).sum()
        narrow = {**rule, "any_topics": ["t3", "t4"], "min_topic_score": 50}
        assert snapshot.count(narrow) == snapshot.eligible(narrow, ids).sum() == len(snapshot.select(narrow, 20_000))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return snapshots.publish(tmp_path_factory.mktemp("plain"), [{"profile_id": 1, "score": 50.0}])


@pytest.mark.parametrize(
    "rule",
    [
        {"min_network_score": 1},
        {"min_amplification": 1},
        {"min_true_reach": 0},
        {"locations": ["US"]},
        {"not_locations": ["US"]},
        {"min_day_change": -99},
        {"min_month_change": -99},
    ],
)
def test_what_a_snapshot_does_not_know_makes_nobody_eligible(plain, rule):
    assert plain.count(rule) == 0
    assert not plain.eligible(rule, 1)
    assert plain.eligible({}, 1)


def test_a_topic_that_nobody_has_heard_of_is_an_error(plain):
    with pytest.raises(RuleError, match="'musik' is not in the taxonomy"):
        plain.count({"any_topics": ["musik"]})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"min_score": 0.5}, "outside 1.0 to 100.0"),
        ({"min_score": 101}, "outside"),
        ({"min_score": float("nan")}, "not a number"),
        ({"min_score": "50"}, "not a number"),
        ({"min_score": True}, "not a number"),
        ({"min_score": 60, "max_score": 50}, "above max_score"),
        ({"minimum": 50}, "no such criterion"),
        ({"locations": "US"}, "list of strings"),
        ({"not_locations": ["/"]}, "everything or nothing"),
        ({"locations": [""]}, "everything or nothing"),
        ({"min_topic_score": 50}, "needs any_topics"),
        ({"min_true_reach": 1.5}, "whole number"),
        ({"min_true_reach": -1}, "whole number"),
        ({"all_topics": [f"t{i}" for i in range(40)]}, "at most 31"),
        ({"any_topics": ["t"] * 1001}, "at most 1000"),
        ({"not_locations": ["US"] * 1001}, "at most 1000"),
        (["min_score"], "object of criteria"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(plain, rule, message):
    with pytest.raises(RuleError, match=message):
        plain.count(rule)


def test_thresholds_between_two_hundredths_let_nobody_in(plain):
    rule = {"min_score": 49.999, "max_score": 50.001}
    assert (plain.count(rule), plain.eligible(rule, 1)) == (1, True)
    rule = {"min_score": 50.001, "max_score": 50.004}
    assert (plain.count(rule), plain.eligible(rule, 1), plain.select(rule, 5).tolist()) == (0, False, [])


def test_thresholds_are_hundredths():
    from kserve._rules import hundredths_at_least

    assert hundredths_at_least(50.005) == 5001
    assert hundredths_at_least(0.29) == 29
    assert hundredths_at_least(-0.3) == -30


def test_criteria_are_named_as_in_the_rule():
    assert set(CRITERIA) <= set(Rule.__dataclass_fields__)
    assert kserve.Rule.of({"min_score": 50, "locations": ["US"]}).to_dict() == {"min_score": 50, "locations": ("US",)}


@pytest.mark.parametrize("place", ["US/", " US", "US ", "US / New York"])
def test_places_are_compared_as_a_build_writes_them(tmp_path, place):
    snapshot = snapshots.publish(tmp_path, [{"profile_id": 1, "score": 5.0, "location": "US/New York"}])
    assert snapshot.count({"locations": [place]}) == 1
    assert snapshot.count({"not_locations": [place]}) == 0


def test_a_place_with_an_empty_component_is_refused(plain):
    with pytest.raises(RuleError, match="empty component"):
        plain.count({"not_locations": ["US//New York"]})
