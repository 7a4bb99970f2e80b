"""A file in which processes have places: each is held by the lock on its first byte, which ends with its holder."""

import fcntl
import os
import struct
from contextlib import contextmanager

__all__ = ["is_held", "locked", "opened", "take"]

FLOCK = struct.Struct("hhqqi4x")    # struct flock of 64-bit Linux: kind, whence, start, length, process


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
    return os.pread(descriptor, len(header), 0) == header


@contextmanager
def locked(descriptor):
    _lock(descriptor, fcntl.F_OFD_SETLKW, 0)
    try:
        yield
    finally:
        _lock(descriptor, fcntl.F_OFD_SETLK, 0, fcntl.F_UNLCK)


def take(descriptor, start):
    try:
        _lock(descriptor, fcntl.F_OFD_SETLK, start)
    except (BlockingIOError, PermissionError):
        return False
    return True


def is_held(descriptor, start):
    return _lock(descriptor, fcntl.F_OFD_GETLK, start) != fcntl.F_UNLCK


def _lock(descriptor, command, start, kind=fcntl.F_WRLCK):
    """Locks of an open file, not of a process: they are not lost when another descriptor of the file is closed."""
    return FLOCK.unpack(fcntl.fcntl(descriptor, command, FLOCK.pack(kind, os.SEEK_SET, start, 1, 0)))[0]
