"""What ingest hands on: typed columns, the reasons why rows cannot be taken, and the strings that became numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from kserve._columns import MAX_INFLUENCE, MAX_TEXT, MAX_TOPICS, UNKNOWN_COUNT, UNSCORED
from kserve.errors import InputError

if TYPE_CHECKING:
    from kserve.snapshots.taxonomy import Taxonomy
    from kserve.vocabulary import TopicRow

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I16 = npt.NDArray[np.int16]
I64 = npt.NDArray[np.int64]

MAX_TOPIC_NUMBER = UNSCORED - 1

TEXTS = ("nick", "tw_id", "tw_name", "gp_id", "fb_id", "ig_id")
COUNTS = ("true_reach", "influencer_count", "influencee_count")
INFLUENCE = ("influencers", "influencees")
KNOWN_COLUMNS = (
    "profile_id",
    "score",
    "day_change",
    "week_change",
    "month_change",
    "network_score",
    "amplification",
    "opted_out",
    *TEXTS,
    *COUNTS,
    *INFLUENCE,
    "location",
    "topics",
)
"""Every column that a snapshot can take, in the order in which a row's values are checked."""


class Reason(IntEnum):
    """Why a row cannot be taken. The numbers are those of ``Columns.reject``; 0 is no reason."""

    malformed_row = 1
    null_id = 2
    negative_id = 3
    fractional_id = 4
    id_over_64_bits = 5
    inexact_id = 6
    not_an_id = 7
    duplicate_id = 8
    score_out_of_range = 9
    score_not_finite = 10
    score_not_a_number = 11
    change_out_of_range = 12
    change_not_finite = 13
    change_not_a_number = 14
    network_score_out_of_range = 15
    network_score_not_finite = 16
    network_score_not_a_number = 17
    bad_count = 18
    bad_opt_out = 19
    bad_utf8 = 20
    text_too_long = 21
    duplicate_identity = 22
    too_many_influencers = 23
    bad_influencer = 24
    bad_location = 25
    too_many_topics = 26
    bad_topic = 27
    topic_outside_taxonomy = 28
    duplicate_topic = 29
    bad_topic_score = 30

    @property
    def explanation(self) -> str:
        """What is wrong with the value, and what is right, in a sentence's end."""
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    Reason.malformed_row: "the row has another number of fields than the header",
    Reason.null_id: "the profile id is missing",
    Reason.negative_id: "profile ids are not negative",
    Reason.fractional_id: "profile ids are whole numbers, written without a fraction",
    Reason.id_over_64_bits: "profile ids are below 2^64",
    Reason.inexact_id: "a floating-point id of 2^53 or more is not exact; write ids as integers or strings",
    Reason.not_an_id: "profile ids are whole numbers or strings of digits",
    Reason.duplicate_id: "another row has the same profile id",
    Reason.score_out_of_range: "scores are 1.00 to 100.00, or null",
    Reason.score_not_finite: "scores are finite; write null for a profile without a score",
    Reason.score_not_a_number: "scores are numbers, or null",
    Reason.change_out_of_range: "changes are -99.00 to 99.00, or null",
    Reason.change_not_finite: "changes are finite, or null",
    Reason.change_not_a_number: "changes are numbers, or null",
    Reason.network_score_out_of_range: "network scores and amplifications are 0.00 to 100.00, or null",
    Reason.network_score_not_finite: "network scores and amplifications are finite, or null",
    Reason.network_score_not_a_number: "network scores and amplifications are numbers, or null",
    Reason.bad_count: f"counts are whole numbers from 0 to {UNKNOWN_COUNT - 1}, or null",
    Reason.bad_opt_out: "opted_out is true or false, 1 or 0",
    Reason.bad_utf8: "the text is not UTF-8",
    Reason.text_too_long: f"texts have at most {MAX_TEXT} bytes of UTF-8",
    Reason.duplicate_identity: "another profile has the same identity",
    Reason.too_many_influencers: f"a profile has at most {MAX_INFLUENCE} influencers and {MAX_INFLUENCE} influencees",
    Reason.bad_influencer: "influencers and influencees are profile ids",
    Reason.bad_location: "a location is a path such as US/New York/New York City, without empty components",
    Reason.too_many_topics: f"a profile has at most {MAX_TOPICS} topics",
    Reason.bad_topic: "a topic is a slug of the taxonomy, not empty",
    Reason.topic_outside_taxonomy: "the taxonomy has no such topic",
    Reason.duplicate_topic: "the profile has the same topic twice",
    Reason.bad_topic_score: "topic scores are numbers from 1.00 to 100.00, or null",
}


class Fault(NamedTuple):
    """One row that cannot be taken. ``row`` counts data rows of the part from 1; ``column`` is the input's own name."""

    part: str
    row: int
    column: str
    reason: Reason
    value: str
    profile_id: int | None

    def __str__(self) -> str:
        return (
            f"{self.part}, row {self.row}, column {self.column}: {self.reason.name}: {self.value!r}: "
            f"{self.reason.explanation}"
        )


class Text(NamedTuple):
    """n texts: ``data``[offsets[i]:offsets[i + 1]], UTF-8; empty is "not known". ``offsets`` need not start at 0."""

    offsets: I64
    data: U8


class Influence(NamedTuple):
    """``counts``[n], and the ids of all rows one after the other."""

    counts: U8
    ids: U64


@dataclass(slots=True)
class Columns:
    """n rows of one part. Arrays are C-contiguous and may be read-only views of the input's own memory.

    An absent input column is None. ``reject``[i] is 0 or the :class:`Reason` why row i cannot be taken; such a row has
    no topics and no influence list, and its other values mean nothing.
    """

    part: str
    first_row: int
    """Number of the first row in its part: data rows count from 1, a CSV header is none."""
    ids: U64
    scores: U16
    """Hundredths of a point, or UNSCORED."""
    reject: U8
    faults: list[Fault]
    """The rejected rows, explained."""
    day: I16 | None = None
    """Hundredths of a point, or UNKNOWN_CHANGE; week and month too."""
    week: I16 | None = None
    month: I16 | None = None
    network_scores: U16 | None = None
    amplifications: U16 | None = None
    true_reaches: U32 | None = None
    """UNKNOWN_COUNT for null; the counts of influencers and influencees too."""
    locations: U32 | None = None
    """Numbers of :attr:`Dictionaries.location_table`, from 1; 0 is unknown, and whoever has opted out."""
    topic_counts: U8 | None = None
    topic_ids: U16 | None = None
    """Numbers of :attr:`Dictionaries.topic_table`, from 1, of all rows one after the other."""
    topic_scores: U16 | None = None
    """One to each of ``topic_ids``: hundredths of a point, or UNSCORED; None when the input has no topic scores."""
    opted_out: U8 | None = None
    """1 for who has opted out; null is 0."""
    texts: dict[str, Text] = field(default_factory=dict)
    influencers: Influence | None = None
    influencees: Influence | None = None
    influencer_counts: U32 | None = None
    influencee_counts: U32 | None = None

    def __len__(self) -> int:
        return len(self.ids)


class Dictionaries:
    """Strings that become numbers, the same for the whole build. Numbers count from 1; 0 is "not known".

    With a taxonomy, its topics are all there are; without, topics are numbered as they first appear. Locations
    always are.
    """

    def __init__(self, taxonomy: Taxonomy | None = None) -> None:
        self.topic_table: list[TopicRow] = [] if taxonomy is None else taxonomy.table()
        """By number - 1: topic id or None, slug, name, indexes of the parents in this table."""
        self.location_table: list[str] = []
        """By number - 1: the path."""
        self._closed = taxonomy is not None
        self._topics = {row[1]: number for number, row in enumerate(self.topic_table, 1)}
        self._locations: dict[str, int] = {}

    def location(self, raw: bytes | None) -> tuple[int, int]:
        """Number and 0, or 0 and the Reason why this is no location; null and empty are 0 and 0."""
        try:
            parts = [part.strip() for part in (raw or b"").decode().split("/")]
        except UnicodeDecodeError:
            return 0, Reason.bad_utf8
        if parts == [""]:
            return 0, 0
        if "" in parts:
            return 0, Reason.bad_location
        path = "/".join(parts)
        number = self._locations.setdefault(path, len(self.location_table) + 1)
        if number > len(self.location_table):
            self.location_table.append(path)
        return number, 0

    def topic(self, raw: bytes | None) -> tuple[int, int]:
        """Number and 0, or 0 and the Reason. Raises InputError when there are more topics than numbers."""
        if not raw:
            return 0, Reason.bad_topic
        try:
            slug = raw.decode()
        except UnicodeDecodeError:
            return 0, Reason.bad_utf8
        number = self._topics.get(slug, 0)
        if number:
            return number, 0
        if self._closed:
            return 0, Reason.topic_outside_taxonomy
        if len(raw) > MAX_TEXT:
            return 0, Reason.text_too_long
        return self._new_topic(slug), 0

    def _new_topic(self, slug: str) -> int:
        if len(self.topic_table) == MAX_TOPIC_NUMBER:
            raise InputError(
                f"more than {MAX_TOPIC_NUMBER} different topics, the last being {slug!r}",
                field="topics",
                remedy="give a taxonomy with --topics",
            )
        self.topic_table.append((None, slug, slug, []))
        self._topics[slug] = len(self.topic_table)
        return len(self.topic_table)


_OPT_OUTS = {b"true": 1, b"1": 1, b"false": 0, b"0": 0, b"": 0}


def opt_out(raw: bytes | int | None) -> tuple[int, int]:
    """1 or 0 and no Reason, for an opt-out written as text or number; null and empty are "has not opted out"."""
    if raw is None:
        return 0, 0
    text = raw.lower() if isinstance(raw, bytes) else str(raw).encode()
    return (_OPT_OUTS[text], 0) if text in _OPT_OUTS else (0, Reason.bad_opt_out)
