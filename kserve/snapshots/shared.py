"""Where the processes of a host that serve one data directory keep what they share in memory."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from pathlib import Path

MEMORY = Path("/dev/shm")

log = logging.getLogger("kserve.shared")


def shared_folder(data: Path) -> Path:
    """The folder of this user and this data directory, made if need be: in memory, else ``data/shm`` and a warning.

    Raises OSError when that cannot be made either.
    """
    resolved = data.resolve()
    digest = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:16]
    try:
        return _private(MEMORY / f"kserve-{os.geteuid()}-{digest}")
    except OSError as error:
        log.warning("limits and counters are shared through %s/shm, which is slower: %s", resolved, error)
    return _private(resolved / "shm")


def _private(folder: Path) -> Path:
    """The folder, if it is nobody else's; anybody may have made one of that name in a place that all may write to."""
    folder.mkdir(mode=0o700, parents=folder.parent != MEMORY, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written")
    return folder
