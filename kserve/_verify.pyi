"""Checks of a snapshot's contents; ``Snapshot.verify`` runs them."""

from typing import Any

__pyx_capi__: dict[str, Any]

FAULTS: tuple[str, ...]
