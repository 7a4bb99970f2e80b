"""What holds for every test: hypothesis without deadlines, and the heavy tests after the fast ones."""

import hypothesis
import pytest

hypothesis.settings.register_profile("kserve", deadline=None)
hypothesis.settings.load_profile("kserve")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("heavy") is not None)
