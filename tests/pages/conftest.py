"""A data directory with three nights of publishing, and servers of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from pages.support import Visitor, make_key, publish_days
from serving.support import Server, serving


class Nights(NamedTuple):
    """Versions, the oldest first."""

    data: Path
    versions: list[str]


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """For tests that change nothing."""
    data = tmp_path_factory.mktemp("nights") / "data"
    return Nights(data, publish_days(data))


@pytest.fixture
def nights(published: Nights, tmp_path: Path) -> Nights:
    """For tests that act."""
    shutil.copytree(published.data, tmp_path / "data")
    return Nights(tmp_path / "data", published.versions)


@pytest.fixture
def server(nights: Nights) -> Iterator[Server]:
    with serving(nights.data) as found:
        yield found


@pytest.fixture
def maria(nights: Nights, server: Server) -> Visitor:
    """Someone who is signed in to the console."""
    visitor = Visitor(server)
    assert visitor.sign_in(make_key(nights.data)[1]).status == 303
    return visitor
