"""A data directory with its store, and partners."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from notices.support import Clock, Partner, serving

from kserve.notices.desk import Desk
from kserve.notices.store import Store
from kserve.settings import Settings
from kserve.snapshots.catalog import Catalog


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of whoever runs the tests are none of the tests'."""
    for name in [name for name in os.environ if name.startswith("KSERVE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def settings(data: Path) -> Settings:
    return Settings(data=data, webhook_private=True, public_url="https://scores.example/")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(settings: Settings, clock: Clock) -> Iterator[Store]:
    """A store whose clock stands still."""
    with Store(settings.data, public_url=settings.public_url, clock=clock) as found:
        yield found


@pytest.fixture
def desk(store: Store, data: Path) -> Desk:
    return Desk(store, Catalog(data))


@pytest.fixture
def partner() -> Iterator[Callable[..., Partner]]:
    """Makes partners that serve."""
    with ExitStack() as stack:

        def make(**options: Any) -> Partner:
            return stack.enter_context(serving(Partner(**options)))

        yield make
