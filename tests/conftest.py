"""What holds for every test: hypothesis without deadlines, and the heavy tests after the fast ones."""

import os
from pathlib import Path

import hypothesis
import pytest

from kserve.snapshots.shared import sweep

pytest.register_assert_rewrite("serving.support", "serving.twins", "drilling", "threads", "waiting")
hypothesis.settings.register_profile("kserve", deadline=None)
hypothesis.settings.load_profile("kserve")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("heavy") is not None)


def forget_shared(below: Path) -> None:
    """Memory that servers of tests shared is not left behind."""
    sweep(f"kserve-{os.geteuid()}-", below=below.resolve())


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    own = getattr(item, "funcargs", {}).get("tmp_path")
    if own is not None:
        forget_shared(own)


def pytest_sessionfinish(session: pytest.Session) -> None:
    factory = getattr(session.config, "_tmp_path_factory", None)
    if factory is not None:
        forget_shared(factory.getbasetemp())
