"""What holds for every test: hypothesis without deadlines, and the heavy tests after the fast ones."""

import os

import hypothesis
import pytest

from kserve.snapshots.shared import sweep

hypothesis.settings.register_profile("kserve", deadline=None)
hypothesis.settings.load_profile("kserve")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("heavy") is not None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Memory that servers of tests shared is not left behind."""
    factory = getattr(session.config, "_tmp_path_factory", None)
    if factory is not None:
        sweep(f"kserve-{os.geteuid()}-", below=factory.getbasetemp().resolve())
