"""Influence scores from immutable, memory-mapped snapshots.

>>> import kserve
>>> store = kserve.open("data")
>>> store.score(42)
62.31
"""

from __future__ import annotations

from os import PathLike

from kserve._core import Snapshot, Store
from kserve.errors import (
    Busy,
    InputError,
    KserveError,
    NothingPublished,
    RuleError,
    SettingError,
    SnapshotError,
    StorageError,
    UnknownProfile,
    UnknownVersion,
)
from kserve.namesake import refuse_namesake
from kserve.records import Changes, Identity, Profile, Scores, Status, Topic, TopicScore
from kserve.rule import Rule
from kserve.settings import Settings, load
from kserve.snapshots.catalog import Catalog
from kserve.snapshots.watch import Follower, Gate, in_force

__version__ = "0.1.0"

__all__ = [
    "Busy",
    "Changes",
    "Identity",
    "InputError",
    "KserveError",
    "NothingPublished",
    "Profile",
    "Rule",
    "RuleError",
    "Scores",
    "SettingError",
    "Snapshot",
    "SnapshotError",
    "Status",
    "StorageError",
    "Store",
    "Topic",
    "TopicScore",
    "UnknownProfile",
    "UnknownVersion",
    "__version__",
    "open",
]


def open(data: str | PathLike[str] | None = None, *, settings: Settings | None = None) -> Store:
    """The announced snapshot of a data directory (``KSERVE_DATA``, else ``data``), followed until it is closed.

    Raises NothingPublished when there is none yet, SnapshotError when it cannot be used, SettingError when the model
    server of the same name is installed here too.
    """
    refuse_namesake()
    settings = settings or load()
    catalog = Catalog(settings.data if data is None else data)
    gate = Gate(catalog, settings)
    store = Store(in_force(catalog, settings, gate))
    follower = Follower(store, catalog, settings, gate)
    store.on_close(follower.stop)
    return store
