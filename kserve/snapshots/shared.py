"""Where the processes of a host that serve one data directory keep what they share in memory."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path

MEMORY = Path("/dev/shm")
DATA = "DATA"
"""Name of the link in each folder that leads to the data directory."""

NEW = 3600.0
"""Seconds."""

log = logging.getLogger("kserve.shared")


def shared_folder(data: Path) -> Path:
    """The folder of this user and this data directory, made if need be: in memory, else ``data/shm`` and a warning.

    Raises OSError when that cannot be made either.
    """
    resolved = data.resolve()
    digest = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:16]
    ours = f"kserve-{os.geteuid()}-"
    try:
        folder = _private(MEMORY / f"{ours}{digest}")
        if not (folder / DATA).is_symlink():
            sweep(ours)
            with suppress(FileExistsError):
                (folder / DATA).symlink_to(resolved)
        return folder
    except OSError as error:
        log.warning("limits and counters are shared through %s/shm, which is slower: %s", resolved, error)
    return _private(resolved / "shm")


def sweep(prefix: str, below: Path | None = None) -> None:
    """Remove the folders of data directories that are gone, or of all ``below`` one: memory is not for ever.

    One that is younger than an hour may be of a data directory that is not made yet.
    """
    for folder in MEMORY.glob(f"{prefix}*"):
        with suppress(OSError):
            data, made = (folder / DATA).readlink(), (folder / DATA).lstat().st_mtime
            gone = not data.is_dir() and time.time() - made > NEW
            if gone or (below is not None and data.is_relative_to(below)):
                shutil.rmtree(folder)


def _private(folder: Path) -> Path:
    """The folder, if it is nobody else's; anybody may have made one of that name in a place that all may write to."""
    folder.mkdir(mode=0o700, parents=folder.parent != MEMORY, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written")
    return folder
