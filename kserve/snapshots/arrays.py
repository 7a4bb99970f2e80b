"""Arrow arrays to the numbers of a snapshot: whole columns at a time, whatever their type.

``kserve._columns`` checks and converts. Python sees single values only of what is flawed, and of dictionaries: each
different location or topic once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kserve import _columns
from kserve.snapshots.columns import I64, INFLUENCE, TEXTS, U8, U16, U32, U64, Reason, Text

Array: TypeAlias = Any  # pyarrow ships no types: this and Type say what is meant
Type: TypeAlias = Any
Flaws: TypeAlias = U8 | None

_NO_BITMAP = np.empty(0, np.uint8)
ID_REASONS = bytes(
    [
        Reason.null_id,
        Reason.negative_id,
        Reason.fractional_id,
        Reason.id_over_64_bits,
        Reason.inexact_id,
        Reason.not_an_id,
    ]
)
_COUNT_REASONS = bytes([0] + [Reason.bad_count] * 5)
INFLUENCE_REASONS = bytes([Reason.bad_influencer] * 6)
_TEXT_REASONS = bytes([Reason.bad_utf8, Reason.text_too_long])


class Range(NamedTuple):
    """What points may be, low to high; ``null``: hundredths for none; reasons: out of range, not finite, no number."""

    low: float
    high: float
    null: int
    reasons: tuple[Reason, Reason, Reason]


SCORE = Range(
    _columns.LOWEST_SCORE / 100,
    _columns.HIGHEST_SCORE / 100,
    _columns.UNSCORED,
    (Reason.score_out_of_range, Reason.score_not_finite, Reason.score_not_a_number),
)
CHANGE = Range(
    (_columns.LOWEST_SCORE - _columns.HIGHEST_SCORE) / 100,
    (_columns.HIGHEST_SCORE - _columns.LOWEST_SCORE) / 100,
    _columns.UNKNOWN_CHANGE & 0xFFFF,
    (Reason.change_out_of_range, Reason.change_not_finite, Reason.change_not_a_number),
)
NETWORK_SCORE = Range(
    0.0,
    _columns.HIGHEST_SCORE / 100,
    _columns.UNSCORED,
    (Reason.network_score_out_of_range, Reason.network_score_not_finite, Reason.network_score_not_a_number),
)
TOPIC_SCORE = SCORE._replace(reasons=(Reason.bad_topic_score, Reason.bad_topic_score, Reason.bad_topic_score))


# Types of columns.


def is_textual(kind: Type) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null")
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)


def _is_numeric(kind: Type) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return number or is_textual(kind)


def is_list(kind: Type) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_topic_list(kind: Type) -> bool:
    if not is_list(kind) or not pa.types.is_struct(kind.value_type):
        return is_list(kind) and is_textual(kind.value_type)
    fields = {field.name: field.type for field in kind.value_type}
    return set(fields) == {"topic", "score"} and is_textual(fields["topic"]) and _is_numeric(fields["score"])


def wanted_type(column: str, kind: Type) -> str | None:
    """What a known column should be, if it cannot be of this type."""
    if column == "opted_out":
        fits = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or is_textual(kind)
        return None if fits else "booleans"
    if column in TEXTS:
        return None if is_textual(kind) or pa.types.is_integer(kind) else "strings"
    if column == "location":
        return None if is_textual(kind) else "strings"
    if column == "topics":
        return None if is_textual(kind) or _is_topic_list(kind) else "lists of strings, or of {topic, score}"
    if column in INFLUENCE:
        return None if is_textual(kind) or (is_list(kind) and _is_numeric(kind.value_type)) else "lists of ids"
    return None if _is_numeric(kind) else "numbers, or strings of digits"


# Arrow's memory, as NumPy sees it. Nothing is copied.


def _values(array: Array, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, array.offset + len(array))[array.offset :]


def _validity(array: Array) -> tuple[U8, int]:
    if not array.null_count:
        return _NO_BITMAP, 0
    return np.frombuffer(array.buffers()[0], np.uint8), array.offset


def plain(array: Array) -> Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def to_bytes(array: Array) -> Array:
    """Any texts, or integers, as large_binary: Arrow checks no UTF-8 then, and offsets are 64-bit."""
    array = plain(array)
    if pa.types.is_integer(array.type):
        array = array.cast(pa.string())
    return array.cast(pa.large_binary())


def _text(array: Array) -> Text:
    _, offsets, data = array.buffers()
    if not len(array):
        return Text(np.zeros(1, np.int64), _NO_BITMAP)
    ends = np.frombuffer(offsets, np.int64, array.offset + len(array) + 1)[array.offset :]
    return Text(ends, _NO_BITMAP if data is None else np.frombuffer(data, np.uint8))


def value_at(array: Array, i: int) -> Any:
    """A value for an error message; texts as bytes, for they may be no UTF-8."""
    piece = plain(array.slice(i, 1))
    return (to_bytes(piece) if is_textual(piece.type) else piece)[0].as_py()


def shown(value: object) -> str:
    """For an error message, in at most 100 characters; null is empty."""
    value = "" if value is None else value
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return text if len(text) <= 100 else text[:99] + "…"


# Whole columns to numbers. Each gives the numbers, and the flaws if there are any.


def _parse_floats(texts: Array, first: int, unparsed: list[int]) -> None:
    """Append the places of the texts that Arrow takes for no number, found by halving."""
    try:
        texts.cast(pa.float64())
    except pa.ArrowInvalid:
        if len(texts) == 1:
            unparsed.append(first)
            return
        half = len(texts) // 2
        _parse_floats(texts.slice(0, half), first, unparsed)
        _parse_floats(texts.slice(half), first + half, unparsed)


def _floats(array: Array) -> tuple[Array, list[int]]:
    """As float64, with the places of the texts that are no numbers, which become null."""
    if not is_textual(array.type):
        return plain(array).cast(pa.float64(), safe=False), []
    unparsed: list[int] = []
    texts = to_bytes(array).view(pa.large_string())
    try:
        return texts.cast(pa.float64()), unparsed
    except pa.ArrowInvalid:
        _parse_floats(texts, 0, unparsed)
    bad = np.zeros(len(texts), bool)
    bad[unparsed] = True
    return pc.if_else(pa.array(bad), pa.scalar(None, pa.large_string()), texts).cast(pa.float64()), unparsed


def to_points(array: Array, allowed: Range) -> tuple[U16, Flaws]:
    floats, unparsed = _floats(array)
    out = np.empty(len(array), np.uint16)
    low, high, null, reasons = allowed
    why = bytes(reasons[:2])
    flaws = _columns.hundredths(_values(floats, np.float64), *_validity(floats), low, high, null, why, out)
    if unparsed:
        flaws = np.zeros(len(out), np.uint8) if flaws is None else flaws
        out[unparsed], flaws[unparsed] = 0, reasons[2]
    return out, flaws


def to_whole(array: Array, reasons: bytes) -> tuple[U64, Flaws]:
    array = plain(array)
    kind = array.type
    if kind == pa.uint64() and not array.null_count:
        return _values(array, np.uint64), None
    out = np.empty(len(array), np.uint64)
    if is_textual(kind) or pa.types.is_decimal(kind):
        texts = to_bytes(array.cast(pa.string())) if pa.types.is_decimal(kind) else to_bytes(array)
        zeros = pa.types.is_decimal(kind)
        return out, _columns.digits(*_text(texts), *_validity(texts), zeros, reasons, out)
    signed = pa.types.is_signed_integer(kind)
    wide = pa.float64() if pa.types.is_floating(kind) else pa.int64() if signed else pa.uint64()
    array = array.cast(wide)
    return out, _columns.whole(_values(array, wide.to_pandas_dtype()), *_validity(array), reasons, out)


def to_counts(array: Array) -> tuple[U32, Flaws]:
    values, flaws = to_whole(array, _COUNT_REASONS)
    out = values.astype(np.uint32)
    too_high = values >= _columns.UNKNOWN_COUNT
    if too_high.any():
        flaws = np.zeros(len(out), np.uint8) if flaws is None else flaws
        flaws[too_high] = Reason.bad_count
    if array.null_count:
        out[plain(array).is_null().to_numpy(zero_copy_only=False)] = _columns.UNKNOWN_COUNT
    return out, flaws


def to_texts(array: Array) -> tuple[Text, Flaws]:
    text = _text(to_bytes(array))
    return text, _columns.check_texts(text.offsets, text.data, _columns.MAX_TEXT, _TEXT_REASONS)


class Lookup:
    """Strings to numbers, each different one once.

    Parquet repeats a dictionary in every batch of a row group: the last one is remembered with its numbers. The next
    row group's has much the same entries in another order: all that were ever numbered are remembered too.
    """

    def __init__(self, number: Callable[[Any], tuple[int, int]], dtype: type[np.unsignedinteger[Any]]) -> None:
        self._number = number
        self._last: Array = None
        self._seen: list[Array] = []
        self._seen_numbers = [np.zeros(0, dtype)]
        self._table = np.zeros(0, dtype)
        self._reasons = np.zeros(0, np.uint8)
        self._known = np.zeros(0, bool)

    def __call__(self, array: Array, erased: U8 | None = None) -> tuple[npt.NDArray[Any], Flaws]:
        """Numbers[n], and flaws if there are any. Nulls, and what is ``erased``[n], get the number of None."""
        if not pa.types.is_dictionary(array.type):
            array = (to_bytes(array) if is_textual(array.type) else array).dictionary_encode()
        if self._last is None or not self._last.equals(array.dictionary):
            self._last = array.dictionary
            self._recall()
        indices = array.indices.cast(pa.int32())
        if erased is not None and erased.any():
            indices = pc.if_else(pa.array(erased != 0), pa.scalar(None, pa.int32()), indices)
        where = (_values(indices, np.int32), *_validity(indices))
        self._learn(where)
        out = np.empty(len(array), self._table.dtype)
        return out, _columns.look_up(*where, self._table, self._reasons, *self._number(None), out)

    def _recall(self) -> None:
        """Take the numbers of a new dictionary's entries that were seen before."""
        self._entries = to_bytes(self._last) if is_textual(self._last.type) else self._last
        size = max(len(self._entries), 1)  # look_up reads an entry for nulls too, if only to drop it
        self._table = np.zeros(size, self._table.dtype)
        self._reasons = np.zeros(size, np.uint8)
        self._known = np.zeros(len(self._entries), bool)
        if self._seen:
            self._seen = [pa.concat_arrays(self._seen)]
            self._seen_numbers = [np.concatenate(self._seen_numbers)]
            places = pc.index_in(self._entries, self._seen[0])
            self._known = places.is_valid().to_numpy(zero_copy_only=False)
            known = np.flatnonzero(self._known)
            self._table[known] = self._seen_numbers[0][places.drop_null().to_numpy()]

    def _learn(self, where: tuple[Any, U8, int]) -> None:
        """Number the entries that are in use now: a dictionary may have others, which are nobody's."""
        used = np.zeros(len(self._known), np.uint8)
        _columns.mark_used(*where, used)
        new = np.flatnonzero(used > self._known)
        if not len(new):
            return
        entries = self._entries.take(pa.array(new))
        # The detour by NumPy is five times as fast as to_pylist.
        texts = entries.to_numpy(zero_copy_only=False).tolist() if is_textual(entries.type) else entries.to_pylist()
        numbers, reasons = zip(*map(self._number, texts), strict=True)
        self._table[new], self._reasons[new], self._known[new] = numbers, reasons, True
        good = self._reasons[new] == 0
        self._seen.append(entries.filter(pa.array(good)))
        self._seen_numbers.append(self._table[new][good])


class Lists(NamedTuple):
    """n lists of ``elements``, one after the other."""

    offsets: I64
    elements: Array

    @property
    def lengths(self) -> I64:
        return np.diff(self.offsets)

    @property
    def rows(self) -> I64:
        """The row of each element."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)


def to_lists(array: Array) -> Lists:
    """Lists, or texts such as ``a|b``, of which null and empty are lists without elements."""
    if is_textual(array.type):
        texts = to_bytes(array)
        array = pc.split_pattern(pc.if_else(pc.equal(texts, b""), pa.scalar(None, texts.type), texts), "|")
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.large_list(array.type.value_type))
    if not len(array):
        return Lists(np.zeros(1, np.int64), array.values)
    offsets = array.offsets.to_numpy().astype(np.int64)
    return Lists(offsets - offsets[0], array.values.slice(offsets[0], offsets[-1] - offsets[0]))


def split_topics(elements: Array, from_text: bool) -> tuple[Array, Array | None]:
    """Slugs, and scores if there are any, of topics, structs or strings; ``from_text``: ``slug`` or ``slug:score``."""
    if pa.types.is_struct(elements.type):
        fields = dict(zip((field.name for field in elements.type), elements.flatten(), strict=True))
        return fields["topic"], fields["score"]
    if not from_text:
        return elements, None
    parts = pc.extract_regex(elements, r"(?s)^(?P<slug>[^:]*)(?::(?P<score>.*))?$")
    slugs, scores = parts.flatten()
    return slugs, pc.if_else(pc.equal(scores, b""), pa.scalar(None, scores.type), scores)


def is_boolean(array: Array) -> bool:
    return bool(pa.types.is_boolean(array.type))


def to_flags(array: Array) -> tuple[U8, Flaws]:
    """Booleans as 0 and 1; null is 0."""
    return _values((array.fill_null(False) if array.null_count else array).cast(pa.uint8()), np.uint8), None


def find_repeats(lists: Lists, numbers: U16) -> Flaws:
    """By list: duplicate_topic if it has a number twice. Lists that are too long anyway are left alone."""
    return _columns.find_repeats(lists.offsets, numbers, _columns.MAX_TOPICS, Reason.duplicate_topic)
