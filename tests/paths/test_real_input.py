"""Real users with Klout's real taxonomy, from the Parquet file to answers in process and over HTTP."""

import csv
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import snapshots

import kserve
from kserve.snapshots.build import Options, build
from kserve.snapshots.catalog import Catalog

SHARED = Path(__file__).parents[3] / "shared" / "data"
PROFILES = SHARED / "profiles" / "twitch.parquet"
TOPICS, EDGES = (SHARED / "klout_topics" / name for name in ("topics.csv", "edges.csv"))

pytestmark = pytest.mark.skipif(not PROFILES.exists(), reason="the real data lies beside the checkout, and is not here")


@pytest.fixture(scope="module")
def rows():
    return pq.read_table(PROFILES).to_pylist()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    catalog = Catalog(folder)
    made = build(catalog, PROFILES, Options(topics=TOPICS, topic_edges=EDGES))
    assert made.manifest["rows"] == {"read": 9997, "taken": 9679, "opted_out": 318, "rejected": {}}
    assert any("economics" in warning for warning in made.warnings)
    assert any("_ROOT_" in warning for warning in made.warnings)
    assert any("parrentTopicSlug" in warning for warning in made.warnings)
    snapshots.announce(folder, made.version)
    return folder


@pytest.fixture(scope="module")
def store(data):
    with kserve.open(data) as opened:
        yield opened


def test_every_row_is_served_as_it_stands_in_the_file(store, rows):
    assert len(rows) == 9997
    assert sum(row["score"] is None for row in rows) == 5
    for row in rows:
        if row["opted_out"]:
            with pytest.raises(KeyError):
                store.get(row["profile_id"])
            continue
        profile = store.get(row["profile_id"])
        assert profile.score == store.score(row["profile_id"])
        assert profile.score is None if row["score"] is None else abs(profile.score - row["score"]) <= 0.005 + 1e-9
        assert [topic.slug for topic in profile.topics] == row["topics"]
        assert profile.location == row["location"]
    batch = store.get_many(np.array([row["profile_id"] for row in rows], dtype=np.uint64))
    assert batch.found.tolist() == [not row["opted_out"] for row in rows]


def below(slug):
    """A topic and all below it, straight from the two files."""
    with TOPICS.open(encoding="utf-8") as file:
        known = {row["topicSlug"] for row in csv.DictReader(file)}
    with EDGES.open(encoding="utf-8") as file:
        edges = [(row["parrentTopicSlug"], row["childTopicSlug"]) for row in csv.DictReader(file)]
    found = {slug}
    while more := {child for parent, child in edges if parent in found and child in known} - found:
        found |= more
    return found


@pytest.mark.parametrize("slug", ["entertainment", "technology", "video-games", "gaming"])
def test_a_topic_covers_all_below_it(store, rows, slug):
    if store.snapshot().topic(slug) is None:
        with pytest.raises(kserve.RuleError):
            store.count({"any_topics": [slug]})
        return
    covered = below(slug)
    wanted = {row["profile_id"] for row in rows if not row["opted_out"] and covered & set(row["topics"])}
    assert store.count({"any_topics": [slug]}) == len(wanted)
    assert set(store.select({"any_topics": [slug]}, 10_000).tolist()) == wanted


def test_topic_ids_above_int64_survive(store):
    ids = {topic.topic_id for topic in store.snapshot().topics()}
    assert 10000000000000020305 in ids
    assert len(ids) == 8033


def test_the_same_over_http(data, rows):
    command = [
        sys.executable,
        "-m",
        "kserve",
        "serve",
        "--data",
        str(data),
        "--port",
        "0",
        "--admin-port",
        "0",
        "--workers",
        "1",
        "--open",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as server:
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+", next(line for line in server.stderr if "listening" in line))
            check_batches(address.group(), rows)
            check_single(address.group(), rows[:300])
        finally:
            server.terminate()
            server.stderr.read()
        assert server.wait(30) == 0


def check_batches(address, rows):
    for start in range(0, len(rows), 1000):
        part = rows[start : start + 1000]
        body = json.dumps({"ids": [str(row["profile_id"]) for row in part]}).encode()
        request = urllib.request.Request(
            f"{address}/v3/scores/batch", body, {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request) as answer:
            items = json.load(answer)["scores"]
        for row, item in zip(part, items, strict=True):
            assert item["id"] == str(row["profile_id"])
            if row["opted_out"]:
                assert item["status"] == "unknown"
            else:
                assert abs(item["score"] - row["score"]) <= 0.005 + 1e-9


def check_single(address, rows):
    for row in rows:
        url = f"{address}/v3/profiles/{row['profile_id']}"
        if row["opted_out"]:
            with pytest.raises(urllib.error.HTTPError, match="404") as caught:
                urllib.request.urlopen(url)
            caught.value.close()
            continue
        with urllib.request.urlopen(url) as answer:
            profile = json.load(answer)
        assert [topic["slug"] for topic in profile["topics"]] == row["topics"]
