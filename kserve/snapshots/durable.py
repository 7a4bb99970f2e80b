"""Writes that are either whole and on disk, or not there."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kserve.errors import Busy, StorageError

_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another --data directory",
    errno.EDQUOT: "the quota is used up: free some space, or choose another --data directory",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "give this user write permission on the data directory",
    errno.EIO: "the disk failed: nothing of this attempt is kept; look at the kernel's log before you try again",
}


@contextmanager
def storage(doing: str) -> Iterator[None]:
    """Turn an OSError into a StorageError that says what was being done, and what helps."""
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        file = f" ({error.filename})" if error.filename else ""
        raise StorageError(f"{doing}: {error.strerror or error}{file}" + (f"; {remedy}" if remedy else "")) from error


def sync_directory(path: Path) -> None:
    """Make renames and unlinks in a directory last. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, content: bytes, mode: int = 0o644) -> None:
    """A new file, synced. Raises OSError, also when it exists."""
    descriptor = _new_file(path)
    try:
        _fill(descriptor, content, mode)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Replace a small file: readers see the old content or the new, never neither. Raises OSError."""
    made = re.compile(rf"\.{re.escape(path.name)}\.\d+-[0-9a-f]{{8}}")
    for name in filter(made.fullmatch, os.listdir(path.parent)):
        _remove_abandoned(path.with_name(name))
    fresh, descriptor = _in_the_making(path)
    try:
        _fill(descriptor, content, 0o644)
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    finally:
        release(descriptor)
    sync_directory(path.parent)


def _new_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _fill(descriptor: int, content: bytes, mode: int) -> None:
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.fchmod(descriptor, mode)
    os.fsync(descriptor)


def _in_the_making(path: Path) -> tuple[Path, int]:
    """A new file beside that one, with its lock, which others see whatever namespace of processes they live in."""
    while True:
        fresh = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
        descriptor = _new_file(fresh)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return fresh, descriptor
        except BaseException:
            fresh.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was swept away before it was locked


@contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends. Raises Busy when another process holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another process is {what} in {path.parent}; wait for it to end") from None
        yield
    finally:
        release(descriptor)


def release(descriptor: int) -> None:
    """Unlock and close: a child that was forked meanwhile has the lock too, and must not keep it."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextmanager
def working_folder(parent: Path) -> Iterator[Path]:
    """A folder for files in the making, removed at the end; what killed processes left behind is removed first."""
    parent.mkdir(parents=True, exist_ok=True)
    sweep = _locked(parent)
    try:
        for left in parent.iterdir():
            _remove_abandoned(left)
        folder = parent / f"{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir()
        descriptor = _locked(folder)
    finally:
        release(sweep)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        release(descriptor)


def _locked(folder: Path) -> int:
    """A descriptor of the folder that holds its lock; waits for it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _remove_abandoned(path: Path) -> None:
    """Whoever makes a file, or works in a folder, holds its lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    except BlockingIOError:
        pass
    finally:
        release(descriptor)
