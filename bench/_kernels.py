"""The C loops of ``_kernels.c``, compiled for this machine into the cache folder, and the mapping they read."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from bench._harness import Skip, plain_environment
from kserve import Snapshot

SOURCE = Path(__file__).with_name("_kernels.c")
FLAGS = ["-O3", "-march=native", "-shared", "-fPIC"]


def load(cache: Path) -> ctypes.CDLL:
    """The compiled loops. Raises Skip without a C compiler."""
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:12]
    library = cache / f"kernels-{digest}.so"
    if not library.exists():
        _compile(library)
    kernels = ctypes.CDLL(str(library))
    pointer, word, size = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t
    for name in ("read_grouped", "read_rolling"):
        _declare(kernels, name, [pointer, word, pointer, size, size])
    _declare(kernels, "read_through", [pointer, size])
    return kernels


def _compile(library: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Skip("there is no C compiler")
    library.parent.mkdir(parents=True, exist_ok=True)
    fresh = library.with_suffix(f".{os.getpid()}")
    subprocess.run([compiler, *FLAGS, "-o", fresh, SOURCE], check=True, env=plain_environment())
    fresh.rename(library)


def _declare(kernels: ctypes.CDLL, name: str, arguments: list[type]) -> None:
    function = getattr(kernels, name)
    function.argtypes = arguments
    function.restype = ctypes.c_uint64


def address_of(snapshot: Snapshot, section: str | None = None) -> int:
    """Where this process has mapped a snapshot, or one section of it: the very pages that kserve reads."""
    offset = 0 if section is None else snapshot.sections()[section]["offset"]
    file = str(Path(snapshot.path).resolve())
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == file and int(fields[2], 16) == 0:
            return int(fields[0].split("-")[0], 16) + offset
    raise RuntimeError(f"{file} is not mapped")
