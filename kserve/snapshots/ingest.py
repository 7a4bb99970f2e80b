"""Pipeline output, Parquet or CSV, one or many parts, to typed batches of columns, with every unusable row explained.

Arrow decodes one batch ahead, in its own threads; memory holds two batches and the row groups they come from.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from kserve import _columns
from kserve.errors import InputError
from kserve.snapshots import arrays
from kserve.snapshots.arrays import Array, Flaws, Lists, Lookup
from kserve.snapshots.columns import (
    INFLUENCE,
    KNOWN_COLUMNS,
    TEXTS,
    U8,
    U16,
    U64,
    Columns,
    Dictionaries,
    Fault,
    Influence,
    Reason,
    Text,
    opt_out,
)
from kserve.snapshots.parts import Part, find_parts, load_manifest
from kserve.snapshots.rejects import Rejects

__all__ = ["Columns", "Dictionaries", "Fault", "Influence", "Part", "Reason", "Rejects", "Source", "Text"]

ROWS = 1 << 17
"""Rows of a batch of Parquet input."""
READ_BUFFER = 1 << 20
"""Bytes of a column that are read at once: with less than a row group, memory does not depend on its size."""
CSV_BLOCK = 8 << 20
"""Bytes of CSV that are parsed at once; no row may be longer."""

Batch: TypeAlias = Any  # a pyarrow.RecordBatch
T = TypeVar("T")


class Source:
    """The output of a scoring pipeline: a Parquet or CSV file, a folder of parts, or a glob.

    In a folder, files whose names start with ``_`` or ``.`` and the files of a taxonomy are no parts. ``rename``: our
    name of a column to the input's. Raises InputError, which names the file: no part, no row, no ``profile_id`` or no
    ``score``, a column of a type that it cannot have, a part that is no whole Parquet or CSV file, or that differs from
    the first part in a known column.
    """

    def __init__(self, source: str | Path, *, rename: Mapping[str, str] | None = None) -> None:
        self.parts: tuple[Part, ...] = find_parts(source)
        """In the order in which they are read."""
        self.manifest: dict[str, Any] | None = load_manifest(source, self.parts)
        """What the pipeline says of its output, if it does."""
        headers = [_read_header(part) for part in self.parts]
        self._names = _known_names(self.parts[0], headers[0], rename or {})
        for part, header in zip(self.parts[1:], headers[1:], strict=True):
            _check_same(part, header, self.parts[0], headers[0], self._names)
        self.columns: tuple[str, ...] = tuple(self._names)
        """The known columns that the input has, by our names."""
        theirs = dict.fromkeys(name for header in headers for name in header.types)
        self.unknown_columns: tuple[str, ...] = tuple(name for name in theirs if name not in self._names.values())
        """Columns that nothing is taken from, by the input's names."""
        self.rows_at_most: int = sum(header.rows for header in headers)
        """Rows in all: exact for Parquet, an upper bound for CSV."""
        if not self.rows_at_most:
            raise self._empty()

    def _empty(self) -> InputError:
        return InputError("the input has no rows", file=self.parts[0].path, remedy="nothing is built from nothing")

    def batches(self, dictionaries: Dictionaries) -> Generator[Columns]:
        """All rows, in the order of parts and rows; the next batch is made while one is used.

        Raises InputError: a part is broken, there is not one row, or there are too many topics.
        """
        convert = _Converter(self._names, dictionaries)
        return _ahead(convert(chunk) for chunk in self._chunks(self._names))

    def locate(self, ids: Collection[int], at_most: int = 2) -> dict[int, list[tuple[str, int]]]:
        """The first places of these profile ids, each as part and row: a second pass over the column of ids."""
        wanted = np.array(sorted(ids), np.uint64)
        places: dict[int, list[tuple[str, int]]] = {int(profile_id): [] for profile_id in wanted}
        with closing(_ahead(self._chunks({"profile_id": self._names["profile_id"]}))) as chunks:
            for chunk in chunks:
                found, flaws = arrays.to_whole(chunk.batch.column(0), arrays.ID_REASONS)
                hits = np.isin(found, wanted) if flaws is None else np.isin(found, wanted) & (flaws == 0)
                for row in np.flatnonzero(hits):
                    known = places[int(found[row])]
                    if len(known) < at_most:
                        known.append((chunk.part.name, chunk.first_row + int(row)))
        return places

    def _chunks(self, names: Mapping[str, str]) -> Iterator[_Chunk]:
        rows = 0
        for part in self.parts:
            read = _parquet_chunks if part.kind == "parquet" else _csv_chunks
            for chunk in read(part, names):
                rows += chunk.batch.num_rows
                yield chunk
        if not rows:
            raise self._empty()


def _ahead(items: Iterator[T]) -> Generator[T]:
    """The same items; while one is used, another thread makes the next."""
    with ThreadPoolExecutor(1, "kserve-ingest") as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
            del item


# What a part has.


def count_rows(part: Part) -> int:
    """Data rows, those that could not be taken too, as a build counts them. Raises InputError for a broken part."""
    header = _read_header(part)
    if part.kind == "parquet":
        return header.rows
    first = next(iter(header.types))
    return sum(chunk.batch.num_rows for chunk in _csv_chunks(part, {first: first}))


class _Header(NamedTuple):
    """Types of columns by the input's names, and how many rows there are at most."""

    types: dict[str, Any]
    rows: int


@contextmanager
def _reading(part: Part) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError, csv.Error) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        message = f"not a whole {'Parquet' if part.kind == 'parquet' else 'CSV'} file: {reason[0]}"
        raise InputError(message, file=part.path, remedy="write this part again") from error


def _read_header(part: Part) -> _Header:
    with _reading(part):
        return _parquet_header(part) if part.kind == "parquet" else _csv_header(part)


def _parquet_header(part: Part) -> _Header:
    with pq.ParquetFile(part.path) as file:
        schema = file.schema_arrow
        _check_distinct(part, schema.names)
        return _Header({field.name: field.type for field in schema}, file.metadata.num_rows)


def _csv_header(part: Part) -> _Header:
    with pa.input_stream(str(part.path)) as stream:
        # Text is decoded ahead of the header's end; broken UTF-8 of later rows is these rows' affair.
        lines = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline=""), strict=True)
        names = next((line for line in lines if line), [])
    for name in names:
        name.encode()
    _check_distinct(part, names)
    return _Header(dict.fromkeys(names, pa.large_binary()), _count_lines(part) - 1)


def _check_distinct(part: Part, names: list[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError("there are two columns of this name", file=part.path, field=twice, remedy="rename one of them")


def _count_lines(part: Part) -> int:
    """Lines that are not empty, at most. Sees to it that every quote is closed: Arrow would swallow what follows."""
    lines = returns = quotes = 0
    last = b"\n"
    with pa.input_stream(str(part.path)) as stream:
        while block := stream.read(READ_BUFFER):
            lines += block.count(b"\n")
            returns += block.count(b"\r")
            quotes += block.count(b'"')
            last = block[-1:]
    if quotes % 2:
        raise InputError("a quoted value is not closed: the number of quotes is odd", file=part.path)
    return max(lines, returns) + (last not in b"\r\n")


def _known_names(part: Part, header: _Header, rename: Mapping[str, str]) -> dict[str, str]:
    """Our names of the known columns, in the order of KNOWN_COLUMNS, to the input's."""
    for ours, theirs in rename.items():
        if ours not in KNOWN_COLUMNS:
            raise InputError("kserve has no such column", field=ours, remedy=f"known are {', '.join(KNOWN_COLUMNS)}")
        if theirs not in header.types:
            raise _missing(part, header, theirs)
    names = {ours: rename.get(ours, ours) for ours in KNOWN_COLUMNS if rename.get(ours, ours) in header.types}
    for ours in ("profile_id", "score"):
        if ours not in names:
            raise _missing(part, header, ours)
    for ours, theirs in names.items():
        kind = header.types[theirs]
        wanted = arrays.wanted_type(ours, kind)
        if wanted:
            raise InputError(f"the type is {kind}", file=part.path, field=theirs, remedy=f"write {wanted}")
    return names


def _missing(part: Part, header: _Header, column: str) -> InputError:
    has = ", ".join(header.types) or "none"
    return InputError(
        f"there is no such column; there are: {has}",
        file=part.path,
        field=column,
        remedy="write it, or name the one that has it: --column NAME=THEIRS",
    )


def _check_same(part: Part, header: _Header, first: Part, wanted: _Header, names: dict[str, str]) -> None:
    ours = [column for column in KNOWN_COLUMNS if column not in names]
    for column in [*names.values(), *ours]:
        here, there = header.types.get(column), wanted.types.get(column)
        if here != there:
            raise InputError(
                f"the type is {here or 'none: no such column'}, but {there or 'none: no such column'} in {first.path}",
                file=part.path,
                field=column,
                remedy="write all parts with one schema",
            )


# Reading.


class _Chunk(NamedTuple):
    """Rows of a part. ``malformed``: index in the batch to the text of a row that has no values there."""

    part: Part
    first_row: int
    batch: Batch
    malformed: dict[int, str]


def _parquet_chunks(part: Part, names: Mapping[str, str]) -> Iterator[_Chunk]:
    row = 1
    with closing(_parquet_batches(part, names)) as batches:
        while True:
            with _reading(part):
                batch = next(batches, None)
            if batch is None:
                return
            if batch.num_rows:
                yield _Chunk(part, row, batch, {})
            row += batch.num_rows


def _parquet_batches(part: Part, names: Mapping[str, str]) -> Generator[Batch]:
    repeating = [names[ours] for ours in ("location", "topics") if ours in names]
    with pq.ParquetFile(part.path) as file:
        metadata, dictionaries = file.metadata, _string_leaves(file.schema, repeating)
    # Either a buffer or pre-buffering; the latter, Arrow's default, would hold whole row groups.
    options = {"buffer_size": READ_BUFFER, "pre_buffer": False, "page_checksum_verification": True}
    with pq.ParquetFile(part.path, metadata=metadata, read_dictionary=dictionaries, **options) as file:
        # One row group after the other: Arrow cannot make a batch of lists whose strings have two dictionaries.
        for group in range(metadata.num_row_groups):
            yield from file.iter_batches(ROWS, row_groups=[group], columns=list(names.values()))


def _string_leaves(schema: Any, columns: list[str]) -> list[str]:
    """Paths of the strings in these columns, at whatever depth."""
    leaves = [schema.column(i) for i in range(len(schema))]
    strings = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    return [path for path in strings if any(path == name or path.startswith(name + ".") for name in columns)]


def _csv_chunks(part: Part, names: Mapping[str, str]) -> Iterator[_Chunk]:
    """Arrow drops rows with a wrong number of fields; they get their place back, as rows of nulls."""
    malformed: list[tuple[int, str]] = []
    with _reading(part):
        reader = _open_csv(part, names, malformed)
    row, last = 1, False
    while not last:
        with _reading(part):
            batch = next(reader, None)
        last = batch is None
        batch = pa.RecordBatch.from_pylist([], reader.schema) if last else batch
        chunk = _with_malformed(part, row, batch, malformed)
        if chunk.batch.num_rows:
            yield chunk
        row += chunk.batch.num_rows


def _open_csv(part: Part, names: Mapping[str, str], malformed: list[tuple[int, str]]) -> Any:
    def skip(row: Any) -> str:
        malformed.append((row.number - 1, row.text))
        return "skip"

    columns = list(dict.fromkeys(names.values()))
    return pyarrow.csv.open_csv(
        part.path,
        # Rows are numbered only without threads; the next batch is made in a thread of ours anyway.
        read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=CSV_BLOCK),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
        convert_options=pyarrow.csv.ConvertOptions(
            check_utf8=False,
            column_types=dict.fromkeys(columns, pa.large_binary()),
            include_columns=columns,
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


def _with_malformed(part: Part, first_row: int, batch: Batch, malformed: list[tuple[int, str]]) -> _Chunk:
    """The batch with the malformed rows among and right after its own, which are taken off the list."""
    count = 0
    while count < len(malformed) and malformed[count][0] <= first_row + batch.num_rows + count:
        count += 1
    here = {number - first_row: text for number, text in malformed[:count]}
    del malformed[:count]
    if here:
        gap = np.zeros(batch.num_rows + count, bool)
        gap[list(here)] = True
        batch = batch.take(pa.array(np.cumsum(~gap) - 1, mask=gap))
    return _Chunk(part, first_row, batch, here)


# Converting.


class _Rows:
    """A chunk on its way to Columns: its columns in turn give their numbers, and faults to rows that have none yet."""

    def __init__(self, chunk: _Chunk, names: Mapping[str, str]) -> None:
        self._chunk = chunk
        self._names = names
        self.reject = np.zeros(chunk.batch.num_rows, np.uint8)
        self.faults: list[Fault] = []
        self.ids: U64 | None = None
        for row, text in chunk.malformed.items():
            self._add(row, "", Reason.malformed_row, text)

    def _add(self, row: int, column: str, reason: Reason, value: object) -> None:
        self.reject[row] = reason
        profile_id = None if self.ids is None else int(self.ids[row])
        place = (self._chunk.part.name, self._chunk.first_row + row, column)
        self.faults.append(Fault(*place, reason, arrays.shown(value), profile_id))

    def array(self, ours: str) -> Array | None:
        """The column as it was read; None: the input has none."""
        return self._chunk.batch.column(self._names[ours]) if ours in self._names else None

    def blame(self, ours: str, flaws: Flaws, value: Callable[[int], object]) -> None:
        """Reject rows with a flaw; ``value``(i) is what is wrong with row i."""
        if flaws is None:
            return
        for row in np.flatnonzero((flaws != 0) & (self.reject == 0)).tolist():
            self._add(row, self._names[ours], Reason(int(flaws[row])), value(row))

    def blame_elements(self, ours: str, lists: Lists, flaws: Flaws, elements: Array) -> None:
        """Reject rows for the first flawed element of their list."""
        if flaws is None:
            return
        where = np.zeros(len(self.reject), np.int64)
        bad = np.flatnonzero(flaws)[::-1]
        rows = lists.rows[bad]
        where[rows] = bad
        row_flaws = np.zeros(len(self.reject), np.uint8)
        row_flaws[rows] = flaws[bad]
        self.blame(ours, row_flaws, lambda row: arrays.value_at(elements, int(where[row])))

    def blame_long(self, ours: str, lists: Lists, limit: int, reason: Reason) -> None:
        """Reject rows whose list is too long."""
        lengths = lists.lengths
        self.blame(ours, np.where(lengths > limit, reason, 0).astype(np.uint8), lambda row: f"{lengths[row]} entries")

    def take(self, ours: str, convert: Callable[[Array], tuple[Any, Flaws]]) -> Any:
        """The column as numbers, or None."""
        array = self.array(ours)
        if array is None:
            return None
        out, flaws = convert(array)
        self.blame(ours, flaws, partial(arrays.value_at, array))
        return out

    def change(self, ours: str) -> Any:
        """A column of changes."""
        out = self.take(ours, partial(arrays.to_points, allowed=arrays.CHANGE))
        return None if out is None else out.view(np.int16)


class _Converter:
    """Chunks to Columns, all with the same dictionaries."""

    def __init__(self, names: Mapping[str, str], dictionaries: Dictionaries) -> None:
        self._names = names
        self._locations = Lookup(dictionaries.location, np.uint32)
        self._topics = Lookup(dictionaries.topic, np.uint16)
        self._opt_outs = Lookup(opt_out, np.uint8)

    def __call__(self, chunk: _Chunk) -> Columns:
        rows = _Rows(chunk, self._names)
        rows.ids = rows.take("profile_id", partial(arrays.to_whole, reasons=arrays.ID_REASONS))
        columns = Columns(
            part=chunk.part.name,
            first_row=chunk.first_row,
            ids=rows.ids,
            scores=rows.take("score", partial(arrays.to_points, allowed=arrays.SCORE)),
            reject=rows.reject,
            faults=rows.faults,
        )
        self._fill(columns, rows)
        columns.faults.sort(key=lambda fault: fault.row)
        return columns

    def _fill(self, columns: Columns, rows: _Rows) -> None:
        network_score = partial(arrays.to_points, allowed=arrays.NETWORK_SCORE)
        columns.day, columns.week, columns.month = map(rows.change, ("day_change", "week_change", "month_change"))
        columns.network_scores = rows.take("network_score", network_score)
        columns.amplifications = rows.take("amplification", network_score)
        columns.opted_out = rows.take("opted_out", self._to_opt_outs)
        columns.texts = {name: rows.take(name, arrays.to_texts) for name in TEXTS if name in self._names}
        columns.true_reaches = rows.take("true_reach", arrays.to_counts)
        columns.influencer_counts = rows.take("influencer_count", arrays.to_counts)
        columns.influencee_counts = rows.take("influencee_count", arrays.to_counts)
        influence = [_influence(rows, name) for name in INFLUENCE]
        columns.locations = rows.take("location", partial(self._locations, erased=columns.opted_out))
        topics = self._take_topics(rows)
        # From here on no row is rejected any more: the lists of those that were are left out.
        if topics is not None:
            lists, ids, scores = topics
            columns.topic_counts, columns.topic_ids = _keep(lists, rows.reject, ids)
            columns.topic_scores = None if scores is None else _keep(lists, rows.reject, scores)[1]
        columns.influencers, columns.influencees = (
            None if found is None else Influence(*_keep(found[0], rows.reject, found[1])) for found in influence
        )

    def _to_opt_outs(self, array: Array) -> tuple[U8, Flaws]:
        return arrays.to_flags(array) if arrays.is_boolean(array) else self._opt_outs(array)

    def _take_topics(self, rows: _Rows) -> tuple[Lists, U16, U16 | None] | None:
        array = rows.array("topics")
        if array is None:
            return None
        lists = arrays.to_lists(array)
        rows.blame_long("topics", lists, _columns.MAX_TOPICS, Reason.too_many_topics)
        slugs, points = arrays.split_topics(lists.elements, arrays.is_textual(array.type))
        ids, flaws = self._topics(slugs)
        rows.blame_elements("topics", lists, flaws, slugs)
        rows.blame("topics", arrays.find_repeats(lists, ids), partial(arrays.value_at, array))
        if points is None:
            return lists, ids, None
        scores, flaws = arrays.to_points(points, arrays.TOPIC_SCORE)
        rows.blame_elements("topics", lists, flaws, points)
        return lists, ids, scores


def _influence(rows: _Rows, ours: str) -> tuple[Lists, U64] | None:
    array = rows.array(ours)
    if array is None:
        return None
    lists = arrays.to_lists(array)
    rows.blame_long(ours, lists, _columns.MAX_INFLUENCE, Reason.too_many_influencers)
    ids, flaws = arrays.to_whole(lists.elements, arrays.INFLUENCE_REASONS)
    rows.blame_elements(ours, lists, flaws, lists.elements)
    return lists, ids


def _keep(lists: Lists, reject: U8, entries: Any) -> tuple[U8, Any]:
    """Lengths of the lists, and their entries; a rejected row has none."""
    lengths = lists.lengths
    rejected = reject != 0
    if rejected.any():
        entries = entries[np.repeat(~rejected, lengths)]
        lengths = np.where(rejected, 0, lengths)
    return lengths.astype(np.uint8), entries
