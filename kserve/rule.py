"""What an eligibility rule may say. What it means is decided in ``_core``, against one snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from kserve.errors import RuleError

MAX_ALL_TOPICS = 31
"""One bit of a 32-bit word stands for each topic of ``all_topics``, and one for ``any_topics``."""

MAX_NAMES = 1000
"""Topics or places in one criterion."""

_POINTS = {
    "min_score": (1.0, 100.0),
    "max_score": (1.0, 100.0),
    "min_topic_score": (0.0, 100.0),
    "min_day_change": (-99.0, 99.0),
    "min_week_change": (-99.0, 99.0),
    "min_month_change": (-99.0, 99.0),
    "min_network_score": (1.0, 100.0),
    "min_amplification": (1.0, 100.0),
}
_LISTS = ("any_topics", "all_topics", "locations", "not_locations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Who is eligible. Every criterion that is given must hold; what is unknown of a profile never satisfies one.

    Scores and changes are points, compared in hundredths. A topic stands for itself and all below it in the
    taxonomy; ``min_topic_score`` applies to every topic criterion. A location is a path such as ``US/New York``
    and stands for itself and all below it; with ``not_locations`` alone, an unknown location is not eligible either.

    Raises :class:`~kserve.errors.RuleError`, naming the criterion.
    """

    min_score: float | None = None
    max_score: float | None = None
    any_topics: tuple[str, ...] = ()
    all_topics: tuple[str, ...] = ()
    min_topic_score: float | None = None
    locations: tuple[str, ...] = ()
    not_locations: tuple[str, ...] = ()
    min_day_change: float | None = None
    min_week_change: float | None = None
    min_month_change: float | None = None
    min_network_score: float | None = None
    min_amplification: float | None = None
    min_true_reach: int | None = None

    def __post_init__(self) -> None:
        for name in _LISTS:
            object.__setattr__(self, name, _strings(name, getattr(self, name)))
        for name, (low, high) in _POINTS.items():
            _check_points(name, getattr(self, name), low, high)
        reach = self.min_true_reach
        if reach is not None and (isinstance(reach, bool) or not isinstance(reach, int) or not 0 <= reach < 2**32):
            raise RuleError(f"min_true_reach: {reach!r} is not a whole number of 0 to {2**32 - 1}")
        if self.min_score is not None and self.max_score is not None and self.min_score > self.max_score:
            raise RuleError(f"min_score: {self.min_score} is above max_score {self.max_score}")
        if self.min_topic_score is not None and not (self.any_topics or self.all_topics):
            raise RuleError("min_topic_score: needs any_topics or all_topics beside it")
        if len(self.all_topics) > MAX_ALL_TOPICS:
            raise RuleError(f"all_topics: {len(self.all_topics)} topics, at most {MAX_ALL_TOPICS} fit a rule")

    @classmethod
    def of(cls, source: Rule | Mapping[str, Any]) -> Self:
        """A rule from a rule or from a mapping of its fields (a JSON object)."""
        if isinstance(source, cls):
            return source
        if not isinstance(source, Mapping):
            raise RuleError(f"a rule is an object of criteria, not {type(source).__name__}")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(source) - known)
        if unknown:
            raise RuleError(f"{unknown[0]}: no such criterion; there are {', '.join(sorted(known))}")
        return cls(**source)

    def to_dict(self) -> dict[str, Any]:
        """The criteria that are given, as JSON has them."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}


def _strings(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, (list, tuple)):
        raise RuleError(f"{name}: a list of strings, not {value!r}")
    if len(value) > MAX_NAMES:
        raise RuleError(f"{name}: {len(value)} names, at most {MAX_NAMES} fit a rule")
    for item in value:
        if not isinstance(item, str) or not item.strip(" /"):
            raise RuleError(f"{name}: {item!r} would match everything or nothing")
    if not name.endswith("locations"):
        return tuple(dict.fromkeys(value))
    return tuple(dict.fromkeys(_path(name, item) for item in value))


def _path(name: str, item: str) -> str:
    """A location path as a build writes it down; a trailing slash says nothing more."""
    parts = [part.strip() for part in item.strip().removesuffix("/").split("/")]
    if not all(parts):
        raise RuleError(f"{name}: {item!r} has an empty component; a path is such as US/New York")
    return "/".join(parts)


def _check_points(name: str, value: Any, low: float, high: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise RuleError(f"{name}: {value!r} is not a number")
    if not low <= value <= high:
        raise RuleError(f"{name}: {value} is outside {low} to {high}")
