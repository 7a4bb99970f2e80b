"""Ingest: what comes out equals a plain Python reading of the rows, and bad input is named with file, row and field."""

import csv
import decimal
import gc
import gzip
import hashlib
import itertools
import json
import math
import re
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kserve import _columns
from kserve.errors import InputError, StorageError
from kserve.snapshots import arrays, ingest
from kserve.snapshots.columns import KNOWN_COLUMNS, TEXTS, UNKNOWN_COUNT, Dictionaries, Fault, Reason
from kserve.snapshots.ingest import Source
from kserve.snapshots.rejects import Rejects
from kserve.snapshots.taxonomy import Taxonomy

SHARED = Path(__file__).parents[3] / "shared" / "data"
CHANGES = {"day_change": "day", "week_change": "week", "month_change": "month"}
NETWORK_SCORES = {"network_score": "network_scores", "amplification": "amplifications"}
COUNTS = {
    "true_reach": "true_reaches",
    "influencer_count": "influencer_counts",
    "influencee_count": "influencee_counts",
}
BROKEN = "nick\udcff"
"""In files: the byte FF, which no UTF-8 has."""


@contextmanager
def small_batches(rows: int, csv_block: int = ingest.CSV_BLOCK):
    with mock.patch.object(ingest, "ROWS", rows), mock.patch.object(ingest, "CSV_BLOCK", csv_block):
        yield


def read(path, taxonomy: Taxonomy | None = None, **rename: str) -> tuple[list[dict], list[Fault]]:
    """All rows as plain values, those that were rejected as {"reject": Reason}, and their faults."""
    dictionaries = Dictionaries(taxonomy)
    rows: list[dict] = []
    faults: list[Fault] = []
    for columns in Source(path, rename=rename).batches(dictionaries):
        rows += plain_rows(columns, dictionaries)
        faults += columns.faults
    return rows, faults


def plain_rows(columns, dictionaries) -> list[dict]:
    lists = {
        name: None if found is None else np.split(found.ids.astype(object), np.cumsum(found.counts)[:-1])
        for name, found in (("influencers", columns.influencers), ("influencees", columns.influencees))
    }
    topics = None
    if columns.topic_counts is not None:
        scores = columns.topic_scores
        scores = np.full(len(columns.topic_ids), None) if scores is None else [hundredths(s) for s in scores]
        slugs = [dictionaries.topic_table[number - 1][1] for number in columns.topic_ids]
        pairs = iter(zip(slugs, scores, strict=True))
        topics = [list(itertools.islice(pairs, int(length))) for length in columns.topic_counts]
    rows = []
    for i in range(len(columns)):
        place = {"part": columns.part, "row": columns.first_row + i}
        if columns.reject[i]:
            for found in (columns.topic_counts, columns.influencers and columns.influencers.counts):
                assert found is None or found[i] == 0
            rows.append(place | {"reject": Reason(int(columns.reject[i]))})
            continue
        row = place | {"profile_id": int(columns.ids[i]), "score": hundredths(columns.scores[i])}
        for name, field in CHANGES.items():
            values = getattr(columns, field)
            if values is not None:
                row[name] = None if values[i] == _columns.UNKNOWN_CHANGE else int(values[i])
        for name, field in (NETWORK_SCORES | COUNTS).items():
            values = getattr(columns, field)
            if values is not None:
                row[name] = hundredths(values[i]) if name in NETWORK_SCORES else count(values[i])
        if columns.opted_out is not None:
            row["opted_out"] = bool(columns.opted_out[i])
        for name, text in columns.texts.items():
            row[name] = bytes(text.data[text.offsets[i] : text.offsets[i + 1]]).decode()
        for name, found in lists.items():
            if found is not None:
                row[name] = found[i].tolist()
        if columns.locations is not None:
            number = columns.locations[i]
            row["location"] = dictionaries.location_table[number - 1] if number else None
        if topics is not None:
            row["topics"] = topics[i]
        rows.append(row)
    return rows


def hundredths(value) -> int | None:
    return None if value == _columns.UNSCORED else int(value)


def count(value) -> int | None:
    return None if value == UNKNOWN_COUNT else int(value)


# The oracle: one row at a time, in plain Python.


class Bad(Exception):
    pass


NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)


def points(value, low, high, kind):
    if value is None:
        return None
    if isinstance(value, str):
        if not NUMBER.fullmatch(value):
            raise Bad(kind[2])
        value = float(value)
    if not math.isfinite(value):
        raise Bad(kind[1])
    if not low <= value <= high:
        raise Bad(kind[0])
    return round(value * 100)


def whole(value, kinds):
    if value is None:
        raise Bad(kinds[0])
    if isinstance(value, str):
        if not re.fullmatch(r"-?\d+(\.\d*)?", value, re.ASCII):
            raise Bad(kinds[5])
        if value.startswith("-") and re.search(r"[1-9.]", value):
            raise Bad(kinds[1])
        if "." in value:
            raise Bad(kinds[2])
        value = int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Bad(kinds[5])
        if 0 <= value < 1 << 53 and value != int(value):
            raise Bad(kinds[2])
        if (1 << 53) <= value < 1 << 64:
            raise Bad(kinds[4])
    if value < 0:
        raise Bad(kinds[1])
    if value >= 1 << 64:
        raise Bad(kinds[3])
    return int(value)


def counted(value):
    if value is None:
        return None
    number = whole(value, [Reason.bad_count] * 6)
    if number >= UNKNOWN_COUNT:
        raise Bad(Reason.bad_count)
    return number


def utf8(text):
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise Bad(Reason.bad_utf8) from None


def text(value):
    if len(utf8(value or "")) > 255:
        raise Bad(Reason.text_too_long)
    return value or ""


def opted(value):
    if isinstance(value, bool) or value is None:
        return bool(value)
    if str(value).lower() not in ("true", "false", "1", "0"):
        raise Bad(Reason.bad_opt_out)
    return str(value).lower() in ("true", "1")


def location(value):
    utf8(value or "")
    parts = [part.strip() for part in (value or "").strip().split("/")]
    if parts != [""] and "" in parts:
        raise Bad(Reason.bad_location)
    return "/".join(parts) or None


def influence(values):
    values = values or []
    if len(values) > 5:
        raise Bad(Reason.too_many_influencers)
    return [whole(value, [Reason.bad_influencer] * 6) for value in values]


def topics(pairs, known):
    pairs = pairs or []
    if len(pairs) > 20:
        raise Bad(Reason.too_many_topics)
    for slug, _ in pairs:
        if not slug:
            raise Bad(Reason.bad_topic)
        utf8(slug)
        if known is not None and slug not in known:
            raise Bad(Reason.topic_outside_taxonomy)
        if len(slug.encode()) > 255:
            raise Bad(Reason.text_too_long)
    if len({slug for slug, _ in pairs}) < len(pairs):
        raise Bad(Reason.duplicate_topic)
    return [(slug, points(score, 1, 100, [Reason.bad_topic_score] * 3)) for slug, score in pairs]


IDS = [
    Reason.null_id,
    Reason.negative_id,
    Reason.fractional_id,
    Reason.id_over_64_bits,
    Reason.inexact_id,
    Reason.not_an_id,
]
SCORE = [Reason.score_out_of_range, Reason.score_not_finite, Reason.score_not_a_number]
CHANGE = [Reason.change_out_of_range, Reason.change_not_finite, Reason.change_not_a_number]
NETWORK = [Reason.network_score_out_of_range, Reason.network_score_not_finite, Reason.network_score_not_a_number]
READERS = {
    "profile_id": lambda v: whole(v, IDS),
    "score": lambda v: points(v, 1, 100, SCORE),
    **dict.fromkeys(CHANGES, lambda v: points(v, -99, 99, CHANGE)),
    **dict.fromkeys(NETWORK_SCORES, lambda v: points(v, 0, 100, NETWORK)),
    "opted_out": opted,
    **dict.fromkeys(TEXTS, text),
    **dict.fromkeys(COUNTS, counted),
    **dict.fromkeys(("influencers", "influencees"), influence),
    "location": location,
    "topics": lambda v: topics(v, {"jazz", "music", "été"}),
}


def oracle(row: dict) -> tuple[dict, str | None]:
    """The row as ingest should give it, and the column that it is rejected for."""
    taken = {}
    for name in KNOWN_COLUMNS:
        if name == "location" and name in row and taken.get("opted_out"):
            taken[name] = None  # who has opted out leaves no place behind
        elif name in row:
            try:
                taken[name] = READERS[name](row[name])
            except Bad as error:
                return {"reject": error.args[0]}, name
    return taken, None


def check(path, table: list[dict], part: str) -> None:
    """Ingest and the oracle read the same."""
    taxonomy = Taxonomy(tuple((None, slug, slug, []) for slug in ("jazz", "music", "été")))
    rows, faults = read(path, taxonomy)
    expected = [oracle(row) for row in table]
    assert rows == [{"part": part, "row": i} | taken for i, (taken, _) in enumerate(expected, 1)]
    blamed = {fault.row: (fault.column, fault.reason) for fault in faults}
    assert blamed == {i: (name, taken["reject"]) for i, (taken, name) in enumerate(expected, 1) if name is not None}
    assert [fault.row for fault in faults] == sorted(blamed)


# Random tables.

BAD_POINTS = [0.0, 0.99, 0.9999999, 100.004, 100.01, -99.01, math.nan, math.inf, -math.inf, 1e300, 5e-324]
floats = st.none() | st.floats(1, 100) | st.integers(100, 10_000).map(lambda n: n / 100) | st.sampled_from([1.0, 100.0])
ids = {
    pa.uint64(): st.integers(0, (1 << 64) - 1),
    pa.int64(): st.integers(-3, (1 << 63) - 1),
    pa.uint8(): st.integers(0, 255),
    pa.int16(): st.integers(-3, 500),
    pa.float64(): st.one_of(
        st.integers(0, 1 << 53).map(float),
        st.sampled_from([-1.0, 0.5, -0.5, math.nan, math.inf, 2.0**63, 2.0**64, 1e300]),
    ),
    pa.string(): st.one_of(
        st.integers(-2, (1 << 64) + 2).map(str),
        st.sampled_from(["", "x", "1.5", "1.0", "-0", "-0.0", "1.", ".5", "007", "٣"]),
    ),
    pa.decimal128(25, 0): st.integers(-3, (1 << 64) + 3).map(decimal.Decimal),
}
scores = st.one_of(floats, floats, floats, st.sampled_from(BAD_POINTS))
changes = st.one_of(st.none(), st.floats(-99, 99), st.sampled_from(BAD_POINTS))
places = st.sampled_from([None, "", " ", "US", "US/New York", " US / New York ", "US//x", "/US", "Çeşme/été", BROKEN])
names = st.sampled_from([None, "", "ann", "Zoë", "名前", "x" * 255, "é" * 128, BROKEN, "\ud83d\ude00", "a\nb"])
slugs = st.sampled_from([None, "", "jazz", "music", "été", "jazz", "music", "polka", BROKEN])
topic_lists = st.none() | st.lists(st.tuples(slugs, scores), max_size=3) | st.just([("jazz", None)] * 21)
id_lists = st.none() | st.lists(st.none() | st.integers(0, (1 << 64) - 1), max_size=6)
counts = st.none() | st.integers(0, 1 << 33)


@st.composite
def tables(draw):
    """Rows for Parquet, the type of the ids, and which optional columns there are."""
    kind = draw(st.sampled_from(list(ids)))
    columns = {
        "profile_id": ids[kind] | st.none(),
        "score": scores,
        **dict.fromkeys(CHANGES, changes),
        **dict.fromkeys(NETWORK_SCORES, scores),
        "opted_out": st.none() | st.booleans(),
        **dict.fromkeys(TEXTS, names),
        **dict.fromkeys(COUNTS, counts),
        **dict.fromkeys(("influencers", "influencees"), id_lists),
        "location": places,
        "topics": topic_lists,
    }
    optional = draw(st.lists(st.sampled_from(list(columns)[2:]), unique=True))
    row = st.fixed_dictionaries({name: columns[name] for name in ["profile_id", "score", *optional]})
    return draw(st.lists(row, min_size=1, max_size=40)), kind


def strings(values) -> pa.Array:
    """As string, which Arrow reads without a look at its UTF-8."""
    raw = [None if value is None else value.encode("utf-8", "surrogateescape") for value in values]
    return pa.array(raw, pa.binary()).view(pa.string())


def clean(value):
    """Surrogate pairs as the character that they stand for."""
    return (
        value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") if isinstance(value, str) else value
    )


def arrow_table(table: list[dict], id_type: pa.DataType) -> pa.Table:
    columns = {}
    for name in table[0]:
        values = [row[name] for row in table]
        if name == "profile_id":
            columns[name] = pa.array(values, id_type)
        elif name in (*TEXTS, "location"):
            columns[name] = strings(values)
        elif name in COUNTS:
            columns[name] = pa.array(values, pa.int64())
        elif name in ("influencers", "influencees"):
            columns[name] = pa.array(values, pa.list_(pa.uint64()))
        elif name == "topics":
            columns[name] = topic_array(values)
        else:
            columns[name] = pa.array(values, pa.bool_() if name == "opted_out" else pa.float64())
    return pa.table(columns)


def topic_array(lists) -> pa.Array:
    offsets = np.cumsum([0] + [len(pairs or ()) for pairs in lists])
    pairs = [pair for pairs in lists for pair in pairs or ()]
    fields = [strings([slug for slug, _ in pairs]), pa.array([score for _, score in pairs], pa.float64())]
    missing = pa.array([pairs is None for pairs in lists])
    elements = pa.StructArray.from_arrays(fields, names=["topic", "score"])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), elements, mask=missing)


@settings(max_examples=150)
@given(tables(), st.integers(1, 50), st.integers(1, 9), st.booleans())
def test_random_parquet_equals_the_oracle(tmp_path_factory, drawn, row_group, batch, dictionary):
    table, id_type = drawn
    table = [{name: clean(value) for name, value in row.items()} for row in table]
    path = tmp_path_factory.mktemp("p") / "t.parquet"
    pq.write_table(arrow_table(table, id_type), path, row_group_size=row_group, use_dictionary=dictionary)
    with small_batches(batch):
        check(path, table, "t.parquet")


NUMBERS = [
    "",
    "1",
    "100",
    "61.235",
    "1e1",
    "+5",
    ".5",
    "99.999",
    "100.01",
    "0",
    "nan",
    "inf",
    "-inf",
    "x",
    " 5",
    "0x1p3",
    "5 ",
]
csv_ids = st.one_of(
    st.integers(-2, (1 << 64) + 2).map(str), st.sampled_from(["", "x", "1.5", "1.0", "-0", "٣", BROKEN, "1e3"])
)
csv_rows = st.fixed_dictionaries(
    {
        "profile_id": csv_ids,
        "score": st.sampled_from(NUMBERS),
        "day_change": st.sampled_from([*NUMBERS, "-98.5", "-99.01"]),
        "amplification": st.sampled_from(NUMBERS),
        "true_reach": st.sampled_from(["", "0", "4294967294", "4294967295", "1.5", "-1", "x"]),
        "opted_out": st.sampled_from(["", "0", "1", "true", "False", "TRUE", "yes", "2"]),
        "nick": names.map(clean),
        "location": places,
        "topics": st.sampled_from(
            ["", "jazz", "jazz|music", "jazz:61.235|été:", "jazz|jazz", "jazz:0", "a", "jazz:x", "|jazz"]
        ),
        "influencers": st.sampled_from(["", "1", "1|18446744073709551615", "1|x", "1|", "1|2|3|4|5|6", "-1"]),
        "unknown": st.sampled_from(["", "a,b", 'q"q']),
    }
)


def csv_values(row: dict) -> dict:
    """What the texts of a CSV row mean: empty is null."""
    values = {name: value or None for name, value in row.items()}
    if row["topics"]:
        pairs = [entry.partition(":") for entry in row["topics"].split("|")]
        values["topics"] = [(slug, score or None) for slug, _, score in pairs]
    values["influencers"] = row["influencers"].split("|") if row["influencers"] else None
    return values


def write_csv(path, rows: list[dict], **options) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)


@settings(max_examples=150)
@given(st.lists(csv_rows, min_size=1, max_size=40), st.sampled_from(["\n", "\r\n"]), st.sampled_from([1200, 8000]))
def test_random_csv_equals_the_oracle(tmp_path_factory, table, ending, block):
    path = tmp_path_factory.mktemp("c") / "t.csv"
    write_csv(path, table, lineterminator=ending)
    with small_batches(1, csv_block=block):
        check(path, [csv_values(row) for row in table], "t.csv")


LINES = ["ok", "short", "long", "blank", "bad"]


@given(st.lists(st.sampled_from(LINES), min_size=1, max_size=60), st.integers(34, 120))
def test_malformed_rows_keep_all_row_numbers_right(tmp_path_factory, kinds, block):
    path = tmp_path_factory.mktemp("m") / "t.csv"
    lines = {"ok": "{0},50,n", "short": "{0},50", "long": "{0},50,n,x", "blank": "", "bad": "{0},0,n"}
    path.write_text("profile_id,score,nick\n" + "".join(lines[kind].format(i) + "\n" for i, kind in enumerate(kinds)))
    kinds = [(i, kind) for i, kind in enumerate(kinds) if kind != "blank"]
    if not kinds:
        with pytest.raises(InputError, match="no rows"):
            read(path)
        return
    with small_batches(1, csv_block=block):
        rows, faults = read(path)
    assert [row["row"] for row in rows] == list(range(1, len(kinds) + 1))
    reasons = {"short": Reason.malformed_row, "long": Reason.malformed_row, "bad": Reason.score_out_of_range}
    assert [row.get("reject") for row in rows] == [reasons.get(kind) for _, kind in kinds]
    assert [row["profile_id"] for row in rows if "reject" not in row] == [i for i, kind in kinds if kind == "ok"]
    shown = {fault.row: fault.value for fault in faults if fault.reason == Reason.malformed_row}
    texts = {n: lines[kind].format(i) for n, (i, kind) in enumerate(kinds, 1) if kind in ("short", "long")}
    assert shown == texts


# Arrow arrays in any shape.


@given(st.lists(scores, max_size=200), st.integers(0, 100), st.integers(0, 100))
def test_slices_of_points(values, start, length):
    array = pa.array(values, pa.float64()).slice(start, length)
    out, flaws = arrays.to_points(array, arrays.SCORE)
    for i, value in enumerate(array.to_pylist()):
        taken, column = oracle({"score": value})
        flaw = 0 if flaws is None else flaws[i]
        assert (hundredths(out[i]), flaw) == ((taken["score"], 0) if column is None else (0, taken["reject"]))


def test_hundredths_are_rounded_half_to_even():
    values = [i / 1000 for i in range(1000, 100_001)]
    out, flaws = arrays.to_points(pa.array(values), arrays.SCORE)
    assert flaws is None
    assert out.tolist() == [round(value * 100) for value in values]
    assert arrays.to_points(pa.array([1.125, 1.375, 50.125]), arrays.SCORE)[0].tolist() == [112, 138, 5012]


@pytest.mark.parametrize(
    "kind",
    [pa.float32(), pa.float16(), pa.int8(), pa.uint64(), pa.decimal128(9, 2), pa.decimal256(50, 4), pa.string()],
)
def test_scores_of_any_type_of_number(kind):
    cell = pa.array(["1", "62", "100"]).cast(pa.int64() if pa.types.is_integer(kind) else pa.string()).cast(kind)
    array = pa.concat_arrays([cell, pa.nulls(2, kind)])
    out, flaws = arrays.to_points(array, arrays.SCORE)
    assert out.tolist() == [100, 6200, 10_000, _columns.UNSCORED, _columns.UNSCORED]
    assert flaws is None


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("encoded", [False, True])
def test_texts_of_any_type(kind, encoded):
    array = pa.array(["US", None, "", "été", "US"]).cast(kind)
    if encoded:
        if kind == pa.string_view():
            pytest.skip("Arrow makes no dictionaries of views")
        array = array.dictionary_encode()
    lookup = arrays.Lookup(Dictionaries().location, np.uint32)
    assert lookup(array)[0].tolist() == [1, 0, 0, 2, 1]
    assert lookup(array.slice(3))[0].tolist() == [2, 1]
    found, flaws = arrays.to_texts(array.slice(1, 3))
    assert [bytes(found.data[a:b]).decode() for a, b in zip(found.offsets, found.offsets[1:], strict=False)] == [
        "",
        "",
        "été",
    ]
    assert flaws is None


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.uint64()),
        pa.large_list(pa.int32()),
        pa.list_(pa.string()),
        pa.list_(pa.dictionary(pa.int8(), pa.string())),
        pa.list_(pa.decimal128(20, 2)),
        pa.list_(pa.float32()),
    ],
)
def test_lists_of_any_type(kind):
    entry = str if pa.types.is_string(kind.value_type) or pa.types.is_dictionary(kind.value_type) else int
    array = pa.array([[9] * 3, [entry(1), entry(2)], None, [], [entry(3)]][1:], kind)
    lists = arrays.to_lists(array.slice(1))
    ids, flaws = arrays.to_whole(lists.elements, arrays.INFLUENCE_REASONS)
    assert (lists.lengths.tolist(), ids.tolist(), flaws) == ([0, 0, 1], [3], None)


def test_columns_without_a_type(tmp_path):
    table = {"profile_id": [1, 2], "score": pa.nulls(2)} | {name: pa.nulls(2) for name in KNOWN_COLUMNS[2:]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    rows, faults = read(tmp_path / "t.parquet")
    assert not faults
    empty = dict.fromkeys(TEXTS, "") | {"influencers": [], "influencees": [], "topics": [], "opted_out": False}
    unknown = dict.fromkeys(("score", *CHANGES, *NETWORK_SCORES, *COUNTS, "location"))
    assert rows[1] == {"part": "t.parquet", "row": 2, "profile_id": 2} | unknown | empty


def test_ids_are_not_copied():
    array = pa.array(range(1000), pa.uint64()).slice(7)
    ids, _ = arrays.to_whole(array, arrays.ID_REASONS)
    assert ids.__array_interface__["data"][0] == array.buffers()[1].address + 7 * 8


@pytest.mark.parametrize(
    "call",
    [
        lambda: _columns.hundredths(np.ones(9), np.zeros(1, np.uint8), 0, 1, 2, 0, b"ab", np.zeros(9, np.uint16)),
        lambda: _columns.hundredths(np.ones(9), b"", 0, 1, 2, 0, b"ab", np.zeros(8, np.uint16)),
        lambda: _columns.mark_used(np.array([0, 3], np.int32), b"", 0, np.zeros(3, np.uint8)),
        lambda: _columns.mark_used(np.array([-1], np.int32), b"", 0, np.zeros(3, np.uint8)),
        lambda: _columns.check_texts(np.array([0, 9]), b"abc", 255, b"ab"),
        lambda: _columns.check_texts(np.array([2, 1, 3]), b"abc", 255, b"ab"),
        lambda: _columns.find_repeats(np.array([0, 3]), np.zeros(2, np.uint16), 20, 1),
    ],
)
def test_arrays_that_do_not_fit_are_refused(call):
    with pytest.raises(ValueError, match="_columns: "):
        call()


@given(st.binary(max_size=40))
def test_utf8_as_python_has_it(raw):
    flaws = _columns.check_texts(np.array([0, len(raw)]), raw, 255, b"\1\2")
    try:
        raw.decode()
    except UnicodeDecodeError:
        assert flaws.tolist() == [1]
    else:
        assert flaws is None


# Rows that cannot be taken, one by one, as the issue lists them.

CORE = "profile_id,score"


@pytest.mark.parametrize(
    ("header", "row", "column", "reason", "value"),
    [
        (CORE, "-7,50", "profile_id", Reason.negative_id, "-7"),
        (CORE, "1.5,50", "profile_id", Reason.fractional_id, "1.5"),
        (CORE, f"{1 << 64},50", "profile_id", Reason.id_over_64_bits, str(1 << 64)),
        (CORE, f"{10**30},50", "profile_id", Reason.id_over_64_bits, str(10**30)),
        (CORE, ",50", "profile_id", Reason.null_id, ""),
        (CORE, "bob,50", "profile_id", Reason.not_an_id, "bob"),
        (CORE, "1,0", "score", Reason.score_out_of_range, "0"),
        (CORE, "1,0.999999", "score", Reason.score_out_of_range, "0.999999"),
        (CORE, "1,100.01", "score", Reason.score_out_of_range, "100.01"),
        (CORE, "1,100.004", "score", Reason.score_out_of_range, "100.004"),
        (CORE, "1,NaN", "score", Reason.score_not_finite, "NaN"),
        (CORE, "1,inf", "score", Reason.score_not_finite, "inf"),
        (CORE, "1,high", "score", Reason.score_not_a_number, "high"),
        (CORE, "1,true", "score", Reason.score_not_a_number, "true"),
        (CORE + ",day_change", "1,50,99.5", "day_change", Reason.change_out_of_range, "99.5"),
        (CORE + ",month_change", "1,50,up", "month_change", Reason.change_not_a_number, "up"),
        (CORE + ",network_score", "1,50,-1", "network_score", Reason.network_score_out_of_range, "-1"),
        (CORE + ",true_reach", "1,50,4294967295", "true_reach", Reason.bad_count, "4294967295"),
        (CORE + ",opted_out", "1,50,maybe", "opted_out", Reason.bad_opt_out, "maybe"),
        (CORE + ",nick", "1,50,a\udcffb", "nick", Reason.bad_utf8, r"a\xffb"),
        (CORE + ",tw_name", "1,50," + "x" * 256, "tw_name", Reason.text_too_long, "x" * 99 + "…"),
        (CORE + ",location", "1,50,US//x", "location", Reason.bad_location, "US//x"),
        (CORE + ",topics", "1,50,music|polka", "topics", Reason.topic_outside_taxonomy, "polka"),
        (CORE + ",topics", "1,50," + "|".join(map(str, range(21))), "topics", Reason.too_many_topics, "21 entries"),
        (CORE + ",topics", "1,50,music|jazz|music", "topics", Reason.duplicate_topic, "music|jazz|music"),
        (CORE + ",topics", "1,50,music:0.5", "topics", Reason.bad_topic_score, "0.5"),
        (CORE + ",influencees", "1,50,1|2|3|4|5|6", "influencees", Reason.too_many_influencers, "6 entries"),
        (CORE + ",influencers", "1,50,1|-2", "influencers", Reason.bad_influencer, "-2"),
        (CORE, "1,50,extra", "", Reason.malformed_row, "1,50,extra"),
    ],
)
def test_bad_values_in_csv_are_named(tmp_path, header, row, column, reason, value):
    path = tmp_path / "day.csv"
    fill = "," * (header.count(",") - 1)
    path.write_bytes(f"{header}\n5,50{fill}\n{row}\n6,60{fill}\n".encode(errors="surrogateescape"))
    taxonomy = Taxonomy(((None, "music", "Music", []), (None, "jazz", "Jazz", [])))
    rows, (fault,) = read(path, taxonomy)
    assert [r.get("profile_id") for r in rows] == [5, None, 6]
    assert rows[1]["reject"] == reason
    assert fault[:5] == ("day.csv", 2, column, reason, value)
    assert fault.profile_id == (None if column in ("profile_id", "") else 1)
    assert f"day.csv, row 2, column {column}: {reason.name}" in str(fault)


@pytest.mark.parametrize(
    ("column", "array", "reason", "value"),
    [
        ("profile_id", pa.array([1, -1], pa.int8()), Reason.negative_id, "-1"),
        ("profile_id", pa.array([1, 1.5]), Reason.fractional_id, "1.5"),
        ("profile_id", pa.array([1, 2.0**53]), Reason.inexact_id, "9007199254740992.0"),
        ("profile_id", pa.array([decimal.Decimal("1.00"), decimal.Decimal("1.25")]), Reason.fractional_id, "1.25"),
        ("profile_id", pa.array([1, None], pa.uint64()), Reason.null_id, ""),
        ("score", pa.array([50.0, math.nan]), Reason.score_not_finite, "nan"),
        ("score", pa.array([50, 101], pa.int64()), Reason.score_out_of_range, "101"),
        ("score", pa.array(["50", ""]), Reason.score_not_a_number, ""),
        ("opted_out", pa.array([0, 2]), Reason.bad_opt_out, "2"),
        ("nick", strings(["ann", BROKEN]), Reason.bad_utf8, r"nick\xff"),
        ("location", strings(["US", BROKEN]), Reason.bad_utf8, r"nick\xff"),
        ("topics", pa.array([["music"], ["music", None]]), Reason.bad_topic, ""),
        ("topics", pa.array([["music"], ["x" * 256]]), Reason.text_too_long, "x" * 99 + "…"),
    ],
)
def test_bad_values_in_parquet_are_named(tmp_path, column, array, reason, value):
    columns = {"profile_id": pa.array([7, 8], pa.uint64()), "score": pa.array([1.0, 2.0])} | {column: array}
    pq.write_table(pa.table(columns), tmp_path / "day.parquet")
    rows, (fault,) = read(tmp_path / "day.parquet")
    assert "reject" not in rows[0]
    assert fault[:5] == ("day.parquet", 2, column, reason, value)


def test_many_texts_that_are_no_numbers_are_all_found():
    texts = ["x" if i % 3 == 0 else "50" for i in range(3000)]
    out, flaws = arrays.to_points(pa.array(texts), arrays.SCORE)
    assert np.flatnonzero(flaws).tolist() == list(range(0, 3000, 3))
    assert set(out[1::3]) == {5000}


def test_the_taxonomy_is_open_without_one(tmp_path):
    (tmp_path / "t.csv").write_text(f"{CORE},topics\n1,50,b|a\n2,0,never\n3,50,a|c\n")
    dictionaries = Dictionaries()
    list(Source(tmp_path / "t.csv").batches(dictionaries))
    assert {row[1] for row in dictionaries.topic_table} >= {"a", "b", "c"}
    assert dictionaries.topic_table[0] == (None, "b", "b", [])


def test_more_topics_than_numbers(tmp_path):
    slugs = [str(i) for i in range(65_535)]
    pq.write_table(
        pa.table({"profile_id": range(65_535), "score": [1.0] * 65_535, "topics": [[s] for s in slugs]}),
        tmp_path / "t.parquet",
    )
    with pytest.raises(InputError, match=r"more than 65534 different topics.*--topics"):
        read(tmp_path / "t.parquet")


# Files that cannot be taken.


def write_parts(folder: Path, *tables: dict) -> None:
    folder.mkdir(exist_ok=True)
    for number, table in enumerate(tables):
        pq.write_table(pa.table(table), folder / f"part-{number}.parquet")


GOOD = {"profile_id": pa.array([1, 2], pa.uint64()), "score": [50.0, None]}


def test_parts_are_read_in_the_order_of_their_names(tmp_path):
    write_parts(tmp_path / "day", GOOD, {"profile_id": pa.array([3], pa.uint64()), "score": [1.0]})
    for name in ("_SUCCESS", ".part-0.parquet.crc", "topics.csv", "topic_edges.csv"):
        (tmp_path / "day" / name).write_text("no part")
    for source in (tmp_path / "day", str(tmp_path / "day" / "*.parquet"), str(tmp_path / "**" / "part-*")):
        rows, _ = read(source)
        places = [(row["part"], row["row"], row["profile_id"]) for row in rows]
        assert places == [("part-0.parquet", 1, 1), ("part-0.parquet", 2, 2), ("part-1.parquet", 1, 3)]
    source = Source(tmp_path / "day")
    assert source.rows_at_most == 3
    assert source.locate([2, 3, 9]) == {2: [("part-0.parquet", 2)], 3: [("part-1.parquet", 1)], 9: []}
    digest = hashlib.sha256((tmp_path / "day" / "part-0.parquet").read_bytes()).hexdigest()
    assert source.parts[0].digest() == digest
    assert source.parts[0].bytes == (tmp_path / "day" / "part-0.parquet").stat().st_size


def test_parts_of_one_name_in_many_folders(tmp_path):
    write_parts(tmp_path / "a", GOOD)
    write_parts(tmp_path / "b", GOOD)
    assert [part.name for part in Source(tmp_path / "*" / "*.parquet").parts] == [
        "a/part-0.parquet",
        "b/part-0.parquet",
    ]


def test_duplicates_are_located_in_all_parts(tmp_path):
    write_parts(tmp_path / "day", GOOD, {"profile_id": pa.array([5, 2, 2], pa.uint64()), "score": [1.0, 2.0, 3.0]})
    source = Source(tmp_path / "day")
    assert source.locate({2}) == {2: [("part-0.parquet", 2), ("part-1.parquet", 2)]}
    places = source.locate({2}, at_most=5)
    assert places == {2: [("part-0.parquet", 2), ("part-1.parquet", 2), ("part-1.parquet", 3)]}


def test_columns_are_renamed_and_unknown_ones_listed(tmp_path):
    write_parts(tmp_path, {"uid": [1], "SCORE_COL": [50.0], "score": ["text"], "mood": ["good"]})
    source = Source(tmp_path, rename={"profile_id": "uid", "score": "SCORE_COL"})
    assert source.columns == ("profile_id", "score")
    assert source.unknown_columns == ("score", "mood")
    assert [columns.scores.tolist() for columns in source.batches(Dictionaries())] == [[5000]]


@pytest.mark.parametrize(
    ("table", "rename", "said"),
    [
        ({"score": [1.0]}, {}, ("column profile_id", "there are: score", "--column")),
        ({"profile_id": [1]}, {}, ("column score",)),
        ({"profile_id": [1], "score": [1.0]}, {"score": "points"}, ("column points",)),
        ({"profile_id": [1], "score": [1.0]}, {"points": "score"}, ("column points", "known are profile_id, score")),
        ({"profile_id": [1], "score": [True]}, {}, ("column score", "the type is bool", "numbers")),
        ({"profile_id": [True], "score": [1.0]}, {}, ("column profile_id", "the type is bool")),
        ({"profile_id": [1], "score": [1.0], "topics": [[1]]}, {}, ("column topics", "list<", "lists of strings")),
        ({"profile_id": [1], "score": [1.0], "topics": [[{"slug": "a"}]]}, {}, ("column topics", "{topic, score}")),
        ({"profile_id": [1], "score": [1.0], "location": [1]}, {}, ("column location", "strings")),
        ({"profile_id": [1], "score": [1.0], "opted_out": [1.0]}, {}, ("column opted_out", "booleans")),
        ({"profile_id": [1], "score": [1.0], "nick": [1.0]}, {}, ("column nick", "strings")),
        ({"profile_id": [1], "score": [1.0], "influencers": [[True]]}, {}, ("column influencers", "lists of ids")),
        ({"profile_id": pa.array([], pa.uint64()), "score": pa.array([], pa.float64())}, {}, ("no rows",)),
    ],
)
def test_schemas_that_cannot_be_taken(tmp_path, table, rename, said):
    write_parts(tmp_path, table)
    with pytest.raises(InputError) as error:
        Source(tmp_path, rename=rename)
    for words in said:
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"profile_id": pa.array([1], pa.int64()), "score": [1.0]}, ("column profile_id", "int64", "uint64")),
        ({"profile_id": pa.array([1], pa.uint64()), "Score": [1.0]}, ("column score", "no such column", "double")),
        (GOOD | {"nick": ["a", "b"]}, ("column nick", "string", "no such column")),
    ],
)
def test_a_part_whose_schema_differs(tmp_path, other, said):
    write_parts(tmp_path, GOOD, other)
    with pytest.raises(InputError) as error:
        Source(tmp_path)
    for words in (*said, "part-0.parquet", "part-1.parquet"):
        assert words in str(error.value)


def test_a_csv_part_whose_header_differs(tmp_path):
    (tmp_path / "1.csv").write_text("profile_id,score\n1,50\n")
    (tmp_path / "2.csv").write_text("score,profile_id\n60,2\n")
    assert [row["profile_id"] for row in read(tmp_path)[0]] == [1, 2]
    (tmp_path / "3.csv").write_text("profile_id,score,nick\n1,50,ann\n")
    with pytest.raises(InputError, match=r"3\.csv, column nick"):
        Source(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", b"", "0 bytes"),
        ("a.csv", b"", "0 bytes"),
        ("a.parquet", b"no parquet at all", "not a whole Parquet file"),
        ("a.txt", b"profile_id,score\n1,50\n", "neither Parquet nor CSV"),
        ("a.csv", b"profile_id,score\n", "no rows"),
        ("a.csv", b"\n\n", "no such column"),
        ("a.csv", b'profile_id,score,nick\n1,50,"ann\n2,60,bob\n', "quoted value is not closed"),
        ("a.csv", b"profile_id,score,score\n1,50,60\n", "two columns of this name"),
        ("a.csv", b"profile_id,\xff\n1,50\n", "not a whole CSV file"),
        ("a.csv.gz", b"\x1f\x8b no gzip", "not a whole CSV file"),
    ],
)
def test_files_that_cannot_be_taken(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(InputError, match=re.escape(name)) as error:
            read(source)
        assert said in str(error.value)


def test_sources_that_are_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "nowhere", tmp_path / "empty", tmp_path / "*.parquet"):
        with pytest.raises(InputError, match=r"no input there.*a folder or a glob"):
            Source(source)
    (tmp_path / "nested" / "day=1").mkdir(parents=True)
    with pytest.raises(InputError, match=r"day=1: not a file, within a folder of parts"):
        Source(tmp_path / "nested")
    write_parts(tmp_path / "mixed", GOOD)
    (tmp_path / "mixed" / "part-1.csv").write_text("profile_id,score\n1,50\n")
    with pytest.raises(InputError, match=r"part-1\.csv: this part is csv, but .*part-0\.parquet is parquet"):
        Source(tmp_path / "mixed")


def test_blank_lines_are_an_empty_input(tmp_path):
    (tmp_path / "a.csv").write_text("profile_id,score\n\n\n\n")
    with pytest.raises(InputError, match="no rows"):
        read(tmp_path / "a.csv")


def big_parquet(path: Path, rows: int, row_group: int) -> None:
    random = np.random.default_rng(7)
    places = pa.array(random.integers(0, 50, rows)).cast(pa.string())
    table = {
        "profile_id": random.permutation(rows).astype(np.uint64),
        "score": random.uniform(1, 100, rows),
        "location": places,
    }
    pq.write_table(pa.table(table), path, row_group_size=row_group, use_dictionary=["location"])


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.999])
def test_a_truncated_part(tmp_path, keep):
    big_parquet(tmp_path / "a.parquet", 5000, 1000)
    whole_file = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole_file[: int(len(whole_file) * keep)])
    with pytest.raises(InputError, match=r"a\.parquet: not a whole Parquet file"):
        Source(tmp_path / "a.parquet")


def test_a_part_that_is_broken_within(tmp_path):
    big_parquet(tmp_path / "a.parquet", 50_000, 10_000)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[len(content) // 2 - 40_000 : len(content) // 2] = bytes(40_000)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.parquet"):
        read(tmp_path / "a.parquet")


def test_compressed_csv(tmp_path):
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write("profile_id,score\n1,50\n2,60\n")
    assert [row["score"] for row in read(tmp_path / "a.csv.gz")[0]] == [5000, 6000]


def test_manifests(tmp_path):
    write_parts(tmp_path, GOOD)
    assert Source(tmp_path).manifest is None
    (tmp_path / "_manifest.json").write_text('{"scored_at": "2026-11-21T04:00:00Z"}')
    assert Source(tmp_path).manifest == {"scored_at": "2026-11-21T04:00:00Z"}
    assert Source(tmp_path / "*.parquet").manifest == {"scored_at": "2026-11-21T04:00:00Z"}
    file = tmp_path / "part-0.parquet"
    assert Source(file).manifest is None
    (tmp_path / "part-0.parquet.manifest.json").write_text("{}")
    assert Source(file).manifest == {}
    for broken in ("[]", "{", "\xff"):
        (tmp_path / "_manifest.json").write_text(broken)
        with pytest.raises(InputError, match=r"_manifest\.json: no JSON"):
            Source(tmp_path)


# Memory and threads.


def test_memory_is_bounded_by_batches_not_by_rows(tmp_path):
    big_parquet(tmp_path / "a.parquet", 1_000_000, 1_000_000)
    gc.collect()
    before = pa.total_allocated_bytes()
    most = rows = 0
    with small_batches(1 << 14):
        for columns in Source(tmp_path / "a.parquet").batches(Dictionaries()):
            rows += len(columns)
            most = max(most, pa.total_allocated_bytes() - before)
    assert rows == 1_000_000
    assert most < 8 << 20, "a row group of 1,000,000 rows is 20 MB"
    del columns
    gc.collect()
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_a_reader_that_is_left_early_ends_its_thread(tmp_path):
    big_parquet(tmp_path / "a.parquet", 10_000, 1000)
    with small_batches(100):
        batches = Source(tmp_path / "a.parquet").batches(Dictionaries())
        next(batches)
        batches.close()
    with pytest.raises(StopIteration):
        next(batches)


# Rejects.


def test_rejects_are_counted_shown_and_written(tmp_path):
    lines = "".join(f"{i},{0 if i % 2 else 50}\n" for i in range(1, 11))
    (tmp_path / "a.csv").write_text("profile_id,score\n" + lines + 'x,50\n1\n"a,b",1\n')
    source = Source(tmp_path / "a.csv")
    with Rejects(tmp_path / "rejects.csv") as rejects:
        for columns in source.batches(Dictionaries()):
            codes = np.zeros(len(columns), np.uint8)
            codes[[0, 1]] = Reason.duplicate_id
            assert rejects.add(columns, codes) == 9
    assert rejects.total == 9
    assert rejects.counts == {
        Reason.score_out_of_range: 5,
        Reason.duplicate_id: 1,
        Reason.not_an_id: 2,
        Reason.malformed_row: 1,
    }
    assert len(rejects.examples[Reason.score_out_of_range]) == 3
    with (tmp_path / "rejects.csv").open(newline="") as file:
        header, first, second, *_, last = csv.reader(file)
    assert header == ["part", "row", "column", "reason", "value", "profile_id"]
    assert first == ["a.csv", "1", "score", "score_out_of_range", "0", "1"]
    assert second == ["a.csv", "2", "profile_id", "duplicate_id", "2", "2"]
    assert last == ["a.csv", "13", "profile_id", "not_an_id", "a,b", ""]
    rejects.check(9)
    with pytest.raises(InputError) as error:
        rejects.check(8, also="profile 1 is in two rows")
    for words in ("a.csv, row 1, column score", "9 rows", "5 score_out_of_range", "--max-rejects 9", "in two rows"):
        assert words in str(error.value)


def test_no_rejects_leave_no_file(tmp_path):
    with Rejects(tmp_path / "rejects.csv") as rejects:
        rejects.check(0)
    assert not (tmp_path / "rejects.csv").exists()


def test_a_rejects_file_that_cannot_be_written(tmp_path):
    fault = Fault("a", 1, "score", Reason.score_not_finite, "nan", 1)
    with pytest.raises(StorageError, match="rejects file cannot be written"):
        Rejects(tmp_path / "no" / "folder.csv").extend([fault])
    rejects = Rejects("/dev/full")
    rejects.extend([fault])
    with pytest.raises(StorageError, match="No space left"):
        rejects.close()


def test_every_reason_is_explained():
    assert all(reason.explanation for reason in Reason)
    assert {reason.value for reason in Reason} == set(range(1, len(Reason) + 1))


# Real input.


@pytest.mark.skipif(not SHARED.exists(), reason="the data of the project's users are not beside it")
def test_twitch_with_klouts_taxonomy():
    path = SHARED / "profiles" / "twitch.parquet"
    taxonomy = Taxonomy.load(SHARED / "klout_topics" / "topics.csv", SHARED / "klout_topics" / "edges.csv")
    rows, faults = read(path, taxonomy)
    assert not faults
    assert len(rows) == 9997
    assert sum(row["opted_out"] for row in rows) == 318
    assert sum(row["score"] is None for row in rows) == 5
    for row, original in zip(rows, pq.read_table(path).to_pylist(), strict=True):
        assert row["profile_id"] == original["profile_id"]
        assert row["score"] == (None if original["score"] is None else round(original["score"] * 100))
        assert [slug for slug, _ in row["topics"]] == (original["topics"] or [])
        assert row["location"] == original["location"]


@pytest.mark.skipif(not SHARED.exists(), reason="the data of the project's users are not beside it")
def test_topics_of_twitch_outside_a_taxonomy():
    rows, faults = read(SHARED / "profiles" / "twitch.parquet", Taxonomy(((None, "video-games", "Games", []),)))
    assert {fault.value for fault in faults} == {"livestreaming"}
    assert json.loads(json.dumps([fault.reason for fault in faults[:1]])) == [Reason.topic_outside_taxonomy]
    assert len(rows) == 9997
