"""How scores are spread, drawn in characters: small enough for a publish, and telling enough for 23 May 2011."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

ROWS = 3
"""Lines of a drawing."""

BLOCKS = " ▁▂▃▄▅▆▇█"
ASCII = " .:|"
"""Characters of rising height, for outputs that cannot show blocks."""

WIDTHS = (1, 2, 4, 5, 10)
"""Points that a column may stand for."""

TICKS = (1, 25, 50, 75, 100)


def distributions(histograms: Sequence[tuple[str, Sequence[int]]], room: int, ramp: str = BLOCKS) -> list[str]:
    """Lines with a drawing for each label and histogram, all to one scale; they are at most ``room`` wide, if it is 20.

    A histogram has 101 counts, of scores from p.00 to p.99 for p from 0. A column with any profile at all is seen.
    """
    margin = 2 + max(len(label) for label, _ in histograms)
    points = next((width for width in WIDTHS if margin + 100 // width + 3 <= room), WIDTHS[-1])
    shares = [_shares(histogram, points) for _, histogram in histograms]
    highest = max(max(share) for share in shares)
    lines = []
    for (label, _), share in zip(histograms, shares, strict=True):
        names = [""] * (ROWS - 1) + [label]
        rows = _drawn([one / (highest or 1.0) for one in share], ramp)
        lines += [f"{name:<{margin}}{row}".rstrip() for name, row in zip(names, rows, strict=True)]
    scale = f"{points} point{'s' if points > 1 else ''} a column, the highest {100 * highest:.1f} %"
    return [*lines, " " * margin + _axis(points), " " * margin + scale]


def _shares(histogram: Iterable[int], points: int) -> list[float]:
    """The columns' shares of all that are scored."""
    columns = [0] * (100 // points)
    for score, count in enumerate(histogram):
        if score:
            columns[(score - 1) // points] += int(count)
    scored = sum(columns) or 1
    return [count / scored for count in columns]


def _drawn(heights: Iterable[float], ramp: str) -> list[str]:
    """Rows from the top; heights are 0 to 1."""
    steps = len(ramp) - 1
    levels = [math.ceil(height * ROWS * steps - 1e-9) or int(height > 0) for height in heights]
    return ["".join(ramp[min(max(level - row * steps, 0), steps)] for level in levels) for row in reversed(range(ROWS))]


def _axis(points: int) -> str:
    line = ""
    for tick in TICKS:
        line = f"{line:<{(tick - 1) // points}}{tick}"
    return line
