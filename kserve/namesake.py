"""On PyPI, `kserve` is the model server for Kubernetes, which installs a package `kserve` too."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

from kserve.errors import SettingError


def refuse_namesake() -> None:
    """Raise SettingError when the other one is installed here as well: nobody could tell whose modules are loaded."""
    try:
        other = distribution("kserve")
    except PackageNotFoundError:
        return
    raise SettingError(
        f"`kserve` {other.version}, the Kubernetes model server, is installed beside `kserve-scores`, and both bring a "
        "package `kserve`: remove it (pip uninstall kserve), then install kserve-scores again; or give each its own "
        "environment"
    )
