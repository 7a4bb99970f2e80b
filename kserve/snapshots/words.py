"""Figures as people read them, in verdicts and reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

DIGITS = 3
"""Significant digits of a share."""

LAST_DIGIT = 4
"""Decimals of a percentage: one profile in a million is seen."""

SHOWN = 3
"""Of many, how many are named."""


def number(value: float) -> str:
    """Three significant digits, without exponent: 41.2, 0.00123, 1260."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 10 ** (DIGITS - 1):
        return f"{value:.0f}"
    return np.format_float_positional(value, DIGITS, fractional=False, trim="-")


def percent(share: float, sign: bool = False) -> str:
    """A share of 1: "41.2 %"; with ``sign``, of a change: "-3.2 %"."""
    return f"{_hundredfold(share, sign)} %"


def more_percent(share: float) -> str:
    """A change of a share, in percentage points: "+1.2 pp"."""
    return f"{_hundredfold(share, True)} pp"


def _hundredfold(share: float, sign: bool) -> str:
    value = round(100 * float(share), LAST_DIGIT) + 0.0  # no negative zero
    return ("+" if sign and value > 0 else "") + number(value)


def points(value: float, sign: bool = False) -> str:
    """Score points with two decimals."""
    value = round(float(value), 2) + 0.0
    return f"{value:+.2f}" if sign else f"{value:.2f}"


def count(value: float, what: str = "") -> str:
    """ "1,020"; "3.2" for what is expected; with ``what``, a regular noun: "1 profile", "2 profiles"."""
    text = f"{value:,.0f}" if value >= 10 or value == int(value) else number(value)
    return f"{text} {what}{'' if text == '1' else 's'}" if what else text


def some(texts: Iterable[str], separator: str = ", ") -> str:
    """The first few, and how many there are besides."""
    known: Sequence[str] = list(texts)
    left = len(known) - SHOWN
    return separator.join(known[:SHOWN]) + (f"{separator}and {left:,} more" if left > 0 else "")
