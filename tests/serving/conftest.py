"""Servers for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving.support import FIRST_DAY, Pair, Server, paired, publish, rows, serving


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with one day announced."""
    folder = tmp_path_factory.mktemp("served")
    publish(folder / "data", rows(0.0), FIRST_DAY)
    return folder / "data"


@pytest.fixture(scope="session")
def server(published: Path) -> Iterator[Server]:
    """A server for requests that change nothing."""
    with serving(published) as found:
        yield found


@pytest.fixture
def fresh(published: Path) -> Iterator[Server]:
    """A server with short time-outs for requests, for tests that wait for them."""
    with serving(published, header_timeout=0.6, body_timeout=0.8) as found:
        yield found


@pytest.fixture(scope="module")
def pair(published: Path) -> Iterator[Pair]:
    """Two servers, with the compiled path and without, for requests that change nothing."""
    with paired(published) as found:
        yield found
