"""Parsing of ids, against a plain oracle; and of If-None-Match."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kserve.serving.bodies import parse_id, shown
from kserve.serving.problems import KINDS, MAX_ECHO, Problem
from kserve.serving.site import matches


def oracle(text: str) -> int | None:
    if not re.fullmatch(r"0|[1-9][0-9]*", text, re.ASCII) or int(text) >= 2**64:
        return None
    return int(text)


NEAR_DIGITS = st.text(st.sampled_from("0123456789+-_ .eE\n\x00٤²"), max_size=22)


@given(st.text() | NEAR_DIGITS | st.integers(-10, 2**66).map(str))
@example("")
@example("0")
@example("00")
@example(str(2**64 - 1))
@example(str(2**64))
@example("9" * 4301)
@example("42\n")
@example("²")
def test_parse_id(text: str) -> None:
    assert parse_id(text) == (oracle(text) if len(text) < 100 else None)


@given(st.text(max_size=200) | st.integers() | st.floats(allow_nan=False) | st.lists(st.text()))
def test_shown_is_short(item: object) -> None:
    assert len(shown(item)) <= MAX_ECHO + 3


@given(st.text(st.characters(), max_size=50))
def test_details_of_problems_are_always_text(detail: str) -> None:
    Problem("internal", detail + "\udcff").detail.encode()


@pytest.mark.parametrize("slug", KINDS)
def test_kinds_have_titles(slug: str) -> None:
    assert 400 <= KINDS[slug].status < 600
    assert KINDS[slug].title


TAGS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='",'), max_size=8).map(
    lambda text: f'"{text}"'
)


@given(st.lists(st.tuples(st.booleans(), TAGS), max_size=5), TAGS)
def test_matches(wanted: list[tuple[bool, str]], etag: str) -> None:
    header = ", ".join(("W/" if weak else "") + tag for weak, tag in wanted)
    assert matches(header, etag) == (etag in {tag for _, tag in wanted})
