"""The package as it is installed: its name and version, its command, what it ships and what it loads."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import kserve

PACKAGE = Path(kserve.__file__).parent
BELOW_THE_CORE = {"kserve.errors", "kserve.records", "kserve.rule", "kserve.settings", "kserve.vocabulary"}
NEVER_LOADED = {"pyarrow", "matplotlib", "locust", "kserve.synth", "kserve.snapshots.ingest", "kserve.snapshots.build"}


def compiled_modules() -> list[str]:
    return sorted(path.name.split(".")[0] for path in PACKAGE.glob("_*.so"))


def test_version_is_the_distributions() -> None:
    assert kserve.__version__ == metadata.version("kserve-scores")


def test_cannot_be_uploaded() -> None:
    assert "Private :: Do Not Upload" in metadata.metadata("kserve-scores").get_all("Classifier", [])


def test_command_is_the_cli() -> None:
    (command,) = metadata.entry_points(group="console_scripts", name="kserve")
    assert callable(command.load())


@pytest.mark.parametrize("module", ["_core", "_writer"])
def test_core_and_writer_are_compiled_and_ship_their_types(module: str) -> None:
    assert module in compiled_modules()
    assert (PACKAGE / f"{module}.pyi").exists()
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("module", compiled_modules())
def test_compiled_modules_import_only_what_is_below_them(module: str) -> None:
    """import-linter does not see into Cython."""
    source = (PACKAGE / f"{module}.pyx").read_text().replace("from .", "from kserve.")
    imported = re.findall(r"^\s*(?:from (kserve[\w.]*) )?import (kserve[\w.]*)?", source, re.MULTILINE)
    names = {first or second for first, second in imported if first or second}
    assert {name for name in names if not name.startswith("kserve._")} <= BELOW_THE_CORE


@pytest.mark.parametrize("module", ["kserve", "kserve.serving.app"])
def test_readers_load_neither_builder_nor_plots(module: str) -> None:
    script = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert not NEVER_LOADED & set(loaded)
