"""One version to read from, and the store that holds the version in force."""

from collections.abc import Callable, Sequence
from collections.abc import Mapping as MappingOf
from os import PathLike
from types import TracebackType
from typing import Any, Self, TypeAlias, final, overload

import numpy as np
import numpy.typing as npt

from kserve._mapping import Mapping
from kserve.records import Profile, Scores, Topic
from kserve.rule import Rule

_Ids: TypeAlias = npt.NDArray[np.integer[Any]] | Sequence[int]
_RuleLike: TypeAlias = Rule | MappingOf[str, Any]

__all__ = ["Snapshot", "Store", "as_ids"]

@final
class Snapshot(Mapping):
    """One immutable version, mapped read-only. Any number of threads may read it at once.

    Methods with a rule raise :class:`~kserve.errors.RuleError`; those with a profile id raise
    :class:`~kserve.errors.UnknownProfile` (a KeyError) for one that is not there, and TypeError for no integer.
    """

    @property
    def format(self) -> int:
        """Format version of the file."""
    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the input columns that this version has."""
    def __init__(self, path: str | PathLike[str]) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def score(self, profile_id: int) -> float | None:
        """Points; None when unscored."""
    def core(self, profile_id: int) -> tuple[int, float | None, float | None, float | None, float | None]:
        """(slot, score, day, week, month change): what a score answer needs, from one cache line."""
    def get(self, profile_id: int) -> Profile:
        """All fields."""
    def get_many(self, ids: _Ids, changes: bool = False) -> Scores:
        """Scores of n ids. Raises TypeError for ids that are no integers, OverflowError for negative ones."""
    def hundredths(self, ids: _Ids) -> npt.NDArray[np.uint16]:
        """Scores as they are kept: uint16[n] hundredths; 0 for no such profile, 65535 for unscored."""
    def find(self, network: str, key: str, by: str | None = None) -> int | None:
        """The profile with that id or name on a network, or None. ``by``: "id", "name", or None for id, then name."""
    @overload
    def eligible(self, rule: _RuleLike, ids: int) -> bool: ...
    @overload
    def eligible(self, rule: _RuleLike, ids: _Ids) -> npt.NDArray[np.bool_]: ...
    def explain(self, rule: _RuleLike, profile_id: int) -> tuple[str, ...]:
        """The criteria that the profile does not meet; ("unknown",) for no such profile, () for an eligible one."""
    def count(self, rule: _RuleLike) -> int:
        """How many profiles are eligible."""
    def select(self, rule: _RuleLike, limit: int) -> npt.NDArray[np.uint64]:
        """_Ids of at most ``limit`` eligible profiles: highest score first, then lowest id; the unscored last."""
    def topic(self, slug: str) -> Topic | None: ...
    def topics(self) -> tuple[Topic, ...]:
        """The whole taxonomy, by slug."""
    def locations(self) -> tuple[str, ...]:
        """Every location path of this version."""
    def known_answer(self) -> tuple[int, float | None]:
        """A profile id and its score as the builder read them, kept apart from the look-up's sections."""

@final
class Store:
    """The snapshot in force, made and kept up to date by :func:`kserve.open`; for any number of threads.

    Every call reads one version from beginning to end. Several reads of one version: ``with store.snapshot() as s``.
    Raises as :class:`Snapshot` does, and KserveError once it is closed.
    """

    def __init__(self, snapshot: Snapshot) -> None: ...
    @property
    def version(self) -> str: ...
    def snapshot(self) -> Snapshot:
        """The version in force now; it stays as it is for as long as it is held."""
    def swap(self, snapshot: Snapshot) -> Snapshot:
        """Put another version in force at once; the one before."""
    def on_close(self, stop: Callable[[], None]) -> None:
        """What :meth:`close` has to stop."""
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def score(self, profile_id: int) -> float | None: ...
    def get(self, profile_id: int) -> Profile: ...
    def get_many(self, ids: _Ids, changes: bool = False) -> Scores: ...
    def find(self, network: str, key: str, by: str | None = None) -> int | None: ...
    @overload
    def eligible(self, rule: _RuleLike, ids: int) -> bool: ...
    @overload
    def eligible(self, rule: _RuleLike, ids: _Ids) -> npt.NDArray[np.bool_]: ...
    def explain(self, rule: _RuleLike, profile_id: int) -> tuple[str, ...]: ...
    def count(self, rule: _RuleLike) -> int: ...
    def select(self, rule: _RuleLike, limit: int) -> npt.NDArray[np.uint64]: ...

def as_ids(ids: _Ids) -> npt.NDArray[np.uint64]:
    """A batch of profile ids as uint64[n]. Raises TypeError, or OverflowError naming the first that cannot be an id."""
