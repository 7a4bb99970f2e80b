"""A folder with two days of input and of snapshots, for commands that change nothing; and empty ones for the others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.support import DAY, DAY_ONE, DAY_TWO, TAXONOMY, done


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of whoever runs the tests are none of the tests'."""
    for name in [name for name in os.environ if name.startswith("KSERVE_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """day1, day2 (inputs of 2,000 profiles of yesterday and now) and data: both published, and a candidate waits."""
    folder = tmp_path_factory.mktemp("cli")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for day, scored_at in ((1, DAY_ONE), (2, DAY_TWO)):
            done("synth", f"day{day}", "--profiles", 2000, "--day", day, "--scored-at", scored_at)
        done("publish", "day1", *TAXONOMY, "--first")
        done("publish", "day2", *TAXONOMY)
        done("build", "day1", *TAXONOMY, "--scored-at", DAY_TWO + 7 * DAY)
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture
def published(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Within the folder of two published days; only to be read."""
    monkeypatch.chdir(made)
    return made


@pytest.fixture
def nights(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it all, to be changed."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def inputs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Within a folder of its own, with the two inputs and nothing published."""
    for day in ("day1", "day2"):
        shutil.copytree(made / day, tmp_path / day)
    monkeypatch.chdir(tmp_path)
    return tmp_path
