"""Profiles whose scores somebody knows: a CSV file of profile_id, low and high."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kserve._columns import UNSCORED
from kserve._core import Snapshot
from kserve.errors import SettingError
from kserve.snapshots import words

HEADER = ["profile_id", "low", "high"]
WORDS = {"absent": 0, "unscored": UNSCORED}
"""Instead of a range: as :meth:`Snapshot.hundredths` answers."""


class Golden(NamedTuple):
    """``low`` and ``high`` as :meth:`Snapshot.hundredths` answers."""

    profile_id: int
    low: int
    high: int


def read(file: Path) -> list[Golden]:
    """Raises SettingError, which names file, row and remedy."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            lines = list(csv.reader(opened, strict=True))
    except (OSError, UnicodeError, csv.Error) as error:
        raise SettingError(f"golden profiles: {file}: {error}") from None
    if not lines or [name.strip() for name in lines[0]] != HEADER:
        raise SettingError(f"golden profiles: {file}: the first line must be {','.join(HEADER)}")
    found = [_golden(file, row, line) for row, line in enumerate(lines[1:], 1) if line]
    if not found:
        raise SettingError(f"golden profiles: {file}: no profile is in it")
    return found


def _golden(file: Path, row: int, line: Sequence[str]) -> Golden:
    try:
        profile_id, low, high = (value.strip() for value in line)
        if low in WORDS or high in WORDS:
            golden = Golden(int(profile_id), WORDS[low], WORDS[high])
        else:
            golden = Golden(int(profile_id), _hundredths(low), _hundredths(high))
        if not 0 <= golden.profile_id < 1 << 64 or golden.low > golden.high or (low in WORDS and low != high):
            raise ValueError
    except (ValueError, KeyError, OverflowError):
        raise SettingError(
            f"golden profiles: {file}, row {row}: {','.join(line)!r} is not profile_id,low,high: give points from"
            f" 1 to 100, or one of {' and '.join(WORDS)} for both"
        ) from None
    return golden


def _hundredths(text: str) -> int:
    value = round(float(text) * 100)
    if not 100 <= value <= 10_000:
        raise ValueError
    return value


def faults(profiles: Sequence[Golden], snapshot: Snapshot) -> list[str]:
    """One text for each that is out of its range."""
    answers = snapshot.hundredths(np.array([golden.profile_id for golden in profiles], np.uint64)).tolist()
    return [
        f"profile {golden.profile_id} {_said(answer)}, not {_expected(golden)}"
        for golden, answer in zip(profiles, answers, strict=True)
        if not golden.low <= answer <= golden.high
    ]


def _said(answer: int) -> str:
    return {0: "is absent", UNSCORED: "is unscored"}.get(answer) or f"has the score {words.points(answer / 100)}"


def _expected(golden: Golden) -> str:
    if golden.low in WORDS.values():
        return {value: word for word, value in WORDS.items()}[golden.low]
    return f"{words.points(golden.low / 100)} to {words.points(golden.high / 100)}"
