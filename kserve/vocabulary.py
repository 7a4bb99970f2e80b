"""Topics and locations of one snapshot: what the numbers in its columns stand for, and what a rule's words cover."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from kserve.errors import RuleError
from kserve.records import Topic

if TYPE_CHECKING:
    import numpy.typing as npt

    from kserve.rule import Rule

TopicRow = tuple[int | None, str, str, list[int]]
"""Topic id, slug, name, indexes of the parents in the table."""


class Vocabulary:
    """Decoded from the MessagePack tables of a snapshot. Numbers in columns start at 1, so index + 1."""

    def __init__(self, version: str, topic_table: memoryview, location_table: memoryview) -> None:
        self._version = version
        self._table = msgspec.msgpack.decode(topic_table, type=list[TopicRow])
        self.locations = msgspec.msgpack.decode(location_table, type=tuple[str, ...])
        self.slugs = [row[1] for row in self._table]
        self._index = {slug: index for index, slug in enumerate(self.slugs)}
        self._children: list[list[int]] = [[] for _ in self._table]
        for index, row in enumerate(self._table):
            for parent in row[3]:
                if parent < 0:
                    raise IndexError(f"topic {row[1]!r} has a parent numbered {parent}")
                self._children[parent].append(index)

    def topic(self, slug: str) -> Topic | None:
        """A topic with its neighbours, or None."""
        index = self._index.get(slug)
        if index is None:
            return None
        topic_id, _, name, parents = self._table[index]
        children = self._children[index]
        slugs = self.slugs
        return Topic(slug, name, topic_id, tuple(slugs[i] for i in parents), tuple(slugs[i] for i in children))

    def topics(self) -> tuple[Topic, ...]:
        """All topics, by slug."""
        return tuple(topic for slug in sorted(self._index) if (topic := self.topic(slug)) is not None)

    def topic_bits(self, rule: Rule) -> npt.NDArray[np.uint32] | None:
        """By topic number: bit 0 if it meets any_topics, bit i + 1 if it meets all_topics[i]; None: not asked."""
        wanted = [(slug, 1) for slug in rule.any_topics] + [(slug, 2 << i) for i, slug in enumerate(rule.all_topics)]
        if not wanted:
            return None
        bits = np.zeros(len(self._table) + 1, dtype=np.uint32)
        for slug, bit in wanted:
            bits[[index + 1 for index in self._closure(slug)]] |= bit
        return bits

    def _closure(self, slug: str) -> set[int]:
        """Indexes of a topic and all below it."""
        if slug not in self._index:
            raise RuleError(f"topic {slug!r} is not in the taxonomy of snapshot {self._version}")
        reached: set[int] = set()
        border = {self._index[slug]}
        while border:
            reached |= border
            border = {child for index in border for child in self._children[index]} - reached
        return reached

    def allowed_locations(self, rule: Rule) -> npt.NDArray[np.uint8] | None:
        """By location number: 1 if the rule allows it; an unknown location never is. None: not asked."""
        if not rule.locations and not rule.not_locations:
            return None
        allowed = np.full(len(self.locations) + 1, not rule.locations, dtype=np.uint8)
        allowed[0] = False
        for place in rule.locations:
            allowed[self._numbers_below.get(place, [])] = True
        for place in rule.not_locations:
            allowed[self._numbers_below.get(place, [])] = False
        return allowed

    @cached_property
    def _numbers_below(self) -> dict[str, list[int]]:
        """By every path and every beginning of one, the numbers of the locations there."""
        below: dict[str, list[int]] = {}
        for number, path in enumerate(self.locations, 1):
            end = path.find("/")
            while end >= 0:
                below.setdefault(path[:end], []).append(number)
                end = path.find("/", end + 1)
            below.setdefault(path, []).append(number)
        return below
