"""Runs a function of this package in a process of its own: ``_child.py MODULE:FUNCTION OUT < ARGUMENTS``.

Arguments and result are JSON. The package is loaded by its path, so that nothing else of the tree gets onto the path of
imports: which kserve is measured is decided by the environment alone.
"""

import importlib
import importlib.util
import json
import sys
from pathlib import Path


def load_package() -> None:
    """Make ``bench`` importable."""
    folder = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(
        "bench", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = package
    spec.loader.exec_module(package)


def main() -> None:
    load_package()
    module, function = sys.argv[1].split(":")
    arguments = json.load(sys.stdin)
    result = getattr(importlib.import_module(module), function)(**arguments)
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
