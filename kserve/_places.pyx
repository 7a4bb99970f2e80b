"""A file in which processes have places: each is held by the lock on its first byte, which ends with its holder."""

import fcntl
import mmap
import os
import struct
from contextlib import contextmanager
from typing import NamedTuple

__all__ = ["FLOCK", "Mapped", "Places", "claimed", "locked", "opened"]

FLOCK = struct.Struct("hhqqi4x")    # struct flock of 64-bit Linux: kind, whence, start, length, process


class Places(NamedTuple):
    name: str
    header: bytes
    start: int
    size: int
    capacity: int

    def at(self, place):
        return self.start + place * self.size

    @property
    def file_size(self):
        return self.at(self.capacity)


class Mapped:
    """The file as its readers see it; see the stub."""

    def __init__(self, path, places):
        self._descriptor = -1
        self._pages = None
        self._which = None          # device and inode of what is mapped
        self.path = os.fspath(path)
        self.places = places

    def __del__(self):
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def pages(self):
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        if status.st_size < self.places.file_size:
            return None
        if (status.st_dev, status.st_ino) != self._which:
            self._map()
            self._which = status.st_dev, status.st_ino
        return self._pages if self._pages[: len(self.places.header)] == self.places.header else None

    def _map(self):
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._pages = mmap.mmap(descriptor, self.places.file_size, prot=mmap.PROT_READ)
        except BaseException:
            os.close(descriptor)
            raise
        self.__del__()
        self._descriptor = descriptor

    def is_held(self, place):
        return _lock(self._descriptor, fcntl.F_OFD_GETLK, self.places.at(place)) != fcntl.F_UNLCK


@contextmanager
def claimed(path, places):
    descriptor = opened(path, places.header, places.file_size)
    try:
        with locked(descriptor):
            os.posix_fallocate(descriptor, 0, places.start)  # or a full disk would kill us later
            yield descriptor, _first_free(descriptor, places)
    except BaseException:
        os.close(descriptor)
        raise


def _first_free(descriptor, places):
    for place in range(places.capacity):
        if _take(descriptor, places.at(place)):
            os.posix_fallocate(descriptor, places.at(place), places.size)
            return place
    raise OSError(f"all {places.capacity} {places.name} are taken")


def opened(path, header, size):
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with locked(descriptor):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    if _is_ours(descriptor, header, size):
                        return descriptor
                    os.unlink(path)  # whoever has it mapped keeps it
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_ours(descriptor, header, size):
    if os.fstat(descriptor).st_size == 0:
        os.posix_fallocate(descriptor, 0, 4096)
        os.ftruncate(descriptor, size)
        os.pwrite(descriptor, header, 0)
    return os.fstat(descriptor).st_size == size and os.pread(descriptor, len(header), 0) == header


@contextmanager
def locked(descriptor):
    _lock(descriptor, fcntl.F_OFD_SETLKW, 0)
    try:
        yield
    finally:
        _lock(descriptor, fcntl.F_OFD_SETLK, 0, fcntl.F_UNLCK)


def _take(descriptor, start):
    try:
        _lock(descriptor, fcntl.F_OFD_SETLK, start)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _lock(descriptor, command, start, kind=fcntl.F_WRLCK):
    """Locks of an open file, not of a process: they are not lost when another descriptor of the file is closed."""
    return FLOCK.unpack(fcntl.fcntl(descriptor, command, FLOCK.pack(kind, os.SEEK_SET, start, 1, 0)))[0]
