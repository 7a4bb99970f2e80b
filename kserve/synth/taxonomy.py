"""A made-up taxonomy of about a thousand topics in three to four levels; a DAG, not a tree."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kserve.synth.hashing import Choice, mix

FIELDS = {
    "arts-and-humanities": "books dance design history jazz painting philosophy photography poetry theatre",
    "business": "accounting advertising careers investing law marketing real-estate retail startups venture-capital",
    "education": "colleges language-learning libraries literacy online-courses schools teaching tutoring",
    "entertainment": "anime blogging comedy comics hip-hop movies opera podcasts rock-music television video-games",
    "fashion-and-beauty": "cosmetics fragrance hair-care jewelry menswear sneakers streetwear tattoos",
    "food-and-drink": "baking barbecue cheese chocolate coffee cooking craft-beer tea vegan-food wine",
    "health": "dentistry fitness meditation mental-health nursing nutrition parenting pharmacy sleep yoga",
    "hobbies": "astronomy board-games chess crafts drones fishing gardening knitting model-trains origami",
    "lifestyle": "cats dating dogs home-decor houseplants minimalism motorcycles sports-cars weddings",
    "news-and-politics": "climate-policy diplomacy economics elections human-rights immigration journalism local-news",
    "science": "archaeology biology chemistry genetics geology mathematics neuroscience oceans physics space",
    "sports": "baseball basketball boxing cricket cycling football golf ice-hockey running skiing surfing tennis",
    "technology": "android cloud-computing databases electric-cars machine-learning nosql programming robotics",
    "travel": "airlines backpacking beaches camping cruises hiking hotels national-parks road-trips trains",
}
"""Topics of the first level and, in one line each, their subjects."""

ASPECTS = ("news", "events", "gear", "people", "reviews", "tips")
"""What is said of each subject, as in ``jazz-events``: the third level."""

GATHERINGS = ("festivals", "meetups", "workshops")
"""Below the events of every fourth subject: the fourth level."""

SECOND_HOMES = {
    "astronomy": "science", "climate-policy": "science", "dance": "entertainment", "design": "technology",
    "drones": "technology", "economics": "business", "electric-cars": "lifestyle", "fishing": "sports",
    "hiking": "sports", "jazz": "entertainment", "nutrition": "food-and-drink", "oceans": "travel",
    "photography": "hobbies", "theatre": "entertainment", "video-games": "technology", "wine": "hobbies",
    "yoga": "sports",
}  # fmt: skip
"""Subjects that belong to another field as well."""

SHARED_ASPECTS = {"gear": "retail", "news": "journalism", "reviews": "blogging"}
"""Aspects that for every third subject belong to another, too: ``books-reviews``, below ``books`` and ``blogging``."""


class Topic(NamedTuple):
    """``topic_id`` is unsigned 64-bit, and often above 2^63; ``parents`` are slugs, none for the first level."""

    topic_id: int
    slug: str
    name: str
    parents: tuple[str, ...]


def _display(slug: str) -> str:
    small = {"and", "of"}
    return " ".join(word if word in small else word.capitalize() for word in slug.split("-"))


def _parents() -> dict[str, tuple[str, ...]]:
    """Slug to the slugs above it, parents first."""
    above: dict[str, tuple[str, ...]] = dict.fromkeys(FIELDS, ())
    subjects = {subject: field for field, line in FIELDS.items() for subject in line.split()}
    for subject, field in subjects.items():
        above[subject] = (field, SECOND_HOMES[subject]) if subject in SECOND_HOMES else (field,)
    for place, subject in enumerate(subjects):
        for aspect in ASPECTS:
            other = SHARED_ASPECTS.get(aspect) if place % 3 == 0 else None
            above[f"{subject}-{aspect}"] = (subject, other) if other not in (None, subject) else (subject,)
        for gathering in GATHERINGS if place % 4 == 0 else ():
            above[f"{subject}-{gathering}"] = (f"{subject}-events",)
    return above


@cache
def topics() -> tuple[Topic, ...]:
    """The whole taxonomy, parents before children. It is the same for every seed."""
    above = _parents()
    ids = mix(np.arange(1, len(above) + 1, dtype=np.uint64)).tolist()
    named = zip(ids, above.items(), strict=True)
    return tuple(Topic(topic_id, slug, _display(slug), parents) for topic_id, (slug, parents) in named)


class Popularity(NamedTuple):
    """``slugs`` of the topics that have none below them, most popular first; ``choice`` draws positions, by Zipf."""

    slugs: list[str]
    choice: Choice


@cache
def popularity() -> Popularity:
    """Who talks about what: the topic of rank r in proportion to 1/r."""
    inner = {parent for topic in topics() for parent in topic.parents}
    leaves = [topic for topic in topics() if topic.slug not in inner]
    leaves.sort(key=lambda topic: topic.topic_id)  # ids are evenly spread, so this shuffles
    weights = (1 << 32) // np.arange(1, len(leaves) + 1)
    return Popularity([topic.slug for topic in leaves], Choice(weights))


def write_files(topics_file: Path, edges_file: Path) -> None:
    """Writes the taxonomy as the two CSV files of Klout's ontology, with its headers but for a misspelt name."""
    ids = {topic.slug: topic.topic_id for topic in topics()}
    with topics_file.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("topicId", "topicSlug", "topicDisplayName"))
        rows.writerows((topic.topic_id, topic.slug, topic.name) for topic in topics())
    with edges_file.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("parentTopicId", "parentTopicSlug", "childTopicId", "childTopicSlug"))
        rows.writerows((ids[up], up, topic.topic_id, topic.slug) for topic in topics() for up in topic.parents)
