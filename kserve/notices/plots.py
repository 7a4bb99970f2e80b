"""Plots as inline SVG: shapes only, coloured by the page's style sheet, each with its content in words.

Texts such as axis labels stay outside, in HTML, so that they keep their size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from kserve.snapshots.measures import Counts

WIDTH, HEIGHT = 600, 180
"""Units of the drawing; it is stretched to the room that there is."""

_STEPS = (1, 2, 5)
_ROOM = 0.96  # of the height, for the highest bar

Shares = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Day:
    """A day of a component: ``state`` is a status such as "operational", or "unknown" where nothing was recorded."""

    day: date
    state: str
    words: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing, what the distance of its grid lines means, and the labels below it from left to right."""

    svg: Markup
    grid: str
    ticks: tuple[str, ...]


def distribution(old: Counts | None, new: Counts, words: str) -> Plot:
    """How the scores of two versions (uint64[POINTS] by whole points) are spread, as shares of the scored profiles."""
    shares = [_shares(histogram) for histogram in (old, new) if histogram is not None]
    top = max(float(share.max()) for share in shares) or 1.0
    step = _nice(top)
    body = [_grid(step / top)]
    if old is not None:
        body.append(_steps(shares[0] / top, "old"))
    body.append(_steps(shares[-1] / top, "new"))
    return Plot(_svg(body, words), f"{_percent(step)} of the scored profiles", ("1", "25", "50", "75", "100"))


def moves(counts: Counts, words: str) -> Plot:
    """How far profiles moved (uint64[19801] by hundredths from -9900), by whole points, on a logarithmic scale."""
    rounded = (np.arange(len(counts)) - len(counts) // 2 + 50) // 100  # to the nearest point
    half = int(rounded[-1])
    by_points = np.bincount(rounded + half, weights=counts, minlength=2 * half + 1)
    moved = np.nonzero(by_points)[0]
    reach = max(int(np.abs(moved - half).max()) if len(moved) else 0, 5)
    heights = np.log10(1.0 + by_points[half - reach : half + reach + 1])
    top = max(float(heights.max()), 1.0)
    plot = _svg([_grid(1 / top), _bars(heights / top)], words)
    ticks = (f"-{reach}", "0", f"+{reach}")
    return Plot(plot, "ten times as many profiles", ticks)


def shift(value: float, largest: float) -> Markup:
    """A bar to the left or right of the middle; the number stands beside it."""
    share = min(abs(value) / largest, 1.0) * 50
    left = 50 - share if value < 0 else 50.0
    return Markup(
        '<svg class="shift" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        '<line class="grid" x1="50" x2="50" y1="0" y2="12"/><rect class="{}" x="{}" y="2" width="{}" height="8"/></svg>'
    ).format("down" if value < 0 else "up", _number(left), _number(share))


def days(found: Sequence[Day], words: str) -> Markup:
    """A bar for each day, the oldest first; days that were not as they should be are higher, not only coloured."""
    bars = [
        Markup('<rect class="day {}" x="{}" y="{}" width="3" height="{}"><title>{}</title></rect>').format(
            day.state, 4 * place, *_DAY.get(day.state, _DAY["unknown"]), f"{day.day:%-d %b %Y}: {day.words}"
        )
        for place, day in enumerate(found)
    ]
    return Markup(
        '<svg class="days" viewBox="0 0 {} 32" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(max(4 * len(found) - 1, 1), words, Markup("").join(bars))


_DAY = {"operational": (10, 22), "unknown": (26, 6), "degraded_performance": (5, 27)}
_DAY |= dict.fromkeys(("partial_outage", "major_outage"), (0, 32))


def _shares(counts: Counts) -> Shares:
    values = counts.astype(np.float64)[1:]
    return np.asarray(values / max(float(values.sum()), 1.0))


def _nice(top: float) -> float:
    """The distance of about four grid lines below ``top``: 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(top / 4))
    return next((step * power for step in _STEPS if top / (step * power) <= 5), 10 * power)


def _grid(share: float) -> Markup:
    count = int(1 / share + 1e-9)
    return Markup("").join(_line(HEIGHT * (1 - _ROOM * share * number)) for number in range(1, count + 1))


def _line(y: float) -> Markup:
    return Markup('<line class="grid" x1="0" x2="{}" y1="{}" y2="{}"/>').format(WIDTH, _number(y), _number(y))


def _steps(heights: Shares, name: str) -> Markup:
    """An outline like a staircase, filled down to the ground."""
    width = WIDTH / len(heights)
    points = [f"0,{HEIGHT}"]
    for place, height in enumerate(heights):
        y = _number(HEIGHT * (1 - _ROOM * height))
        points += [f"{_number(place * width)},{y}", f"{_number((place + 1) * width)},{y}"]
    return Markup('<polygon class="{}" points="{}"/>').format(name, " ".join([*points, f"{WIDTH},{HEIGHT}"]))


def _bars(heights: Shares) -> Markup:
    width = WIDTH / len(heights)
    return Markup("").join(
        Markup('<rect class="new" x="{}" y="{}" width="{}" height="{}"/>').format(
            _number(place * width),
            _number(HEIGHT * (1 - _ROOM * height)),
            _number(width),
            _number(HEIGHT * _ROOM * height),
        )
        for place, height in enumerate(heights)
        if height > 0
    )


def _svg(body: Iterable[Markup], words: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, escape(words), Markup("").join(body)
    )


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _percent(share: float) -> str:
    return f"{share * 100:.10g} %"
