"""What the tests of the core share: snapshots made through the public path from rows written down in plain Python."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kserve import Snapshot
from kserve.settings import Settings
from kserve.snapshots.build import Candidate, Options, build
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.orders import Orders
from kserve.snapshots.signing import Signer

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TOPIC = pa.struct([("topic", pa.string()), ("score", pa.float64())])
TYPES = {
    "profile_id": pa.uint64(),
    "score": pa.float64(),
    "day_change": pa.float64(),
    "week_change": pa.float64(),
    "month_change": pa.float64(),
    "network_score": pa.float64(),
    "amplification": pa.float64(),
    "true_reach": pa.uint32(),
    "topics": pa.list_(TOPIC),
    "location": pa.string(),
    "opted_out": pa.bool_(),
    "influencers": pa.list_(pa.uint64()),
    "influencees": pa.list_(pa.uint64()),
    "influencer_count": pa.uint32(),
    "influencee_count": pa.uint32(),
} | {name: pa.string() for name in ("nick", "tw_id", "tw_name", "gp_id", "fb_id", "ig_id")}

Row = Mapping[str, Any]
_numbers = itertools.count()


def write_parquet(path: Path, rows: Iterable[Row]) -> Path:
    """Rows as a Parquet file with the columns that any of them has, profile_id and score at least."""
    rows = list(rows)
    names = {"profile_id", "score"}.union(*rows)
    table = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in TYPES.items() if name in names}
    pq.write_table(pa.table(table), path)
    return path


def candidate(data: Path, rows: Iterable[Row], **options: Any) -> Candidate:
    """Build a candidate from rows."""
    data.mkdir(parents=True, exist_ok=True)
    source = write_parquet(data / f"input-{os.getpid()}-{next(_numbers)}.parquet", rows)
    return build(Catalog(data), source, Options(**{"scored_at": NOON, **options}))


def publish(data: Path, rows: Iterable[Row], **options: Any) -> Snapshot:
    """Build a candidate from rows, publish and announce it; the snapshot."""
    return announce(data, candidate(data, rows, **options).version)


def announce(data: Path, version: str, **settings: Any) -> Snapshot:
    """Put a version in force as the last steps of a publish do, without gates; the snapshot."""
    catalog = Catalog(data)
    told = Settings(data=data, **settings)
    with catalog.publishing():
        catalog.reread(version)
        catalog.place(version, None if told.signing_key is None else Signer.load(told.signing_key))
        Orders(catalog, told).announce(version, against=catalog.live())
    return catalog.open(version)


def taxonomy_files(folder: Path, topics: Iterable[str], edges: Iterable[tuple[str, str]]) -> dict[str, Path]:
    """Options of a build with this taxonomy; edges are (parent, child)."""
    folder.mkdir(parents=True, exist_ok=True)
    topics_file, edges_file = folder / "topics.csv", folder / "edges.csv"
    topics_file.write_text("topicSlug,topicDisplayName\n" + "".join(f"{slug},{slug.title()}\n" for slug in topics))
    edges_file.write_text("parentTopicSlug,childTopicSlug\n" + "".join(f"{a},{b}\n" for a, b in edges))
    return {"topics": topics_file, "topic_edges": edges_file}
