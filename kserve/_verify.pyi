"""Checks of a snapshot's contents; ``Snapshot.verify`` runs them."""

FAULTS: tuple[str, ...]
