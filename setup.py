"""Compiles kserve/_*.pyx. Everything else about the package is in pyproject.toml.

KSERVE_BUILD chooses how: release (the default), debug, asan, fuzz (by clang), coverage, or none (no extensions: an
editable install that only makes the metadata and the command). Each way has its own directory below build/, so that
objects of two ways never mix.
"""

import os
import platform
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup

# What Cython's own output and CPython's headers set off, not what we write.
QUIET = "unused-function unused-parameter missing-field-initializers cast-function-type discarded-qualifiers"
WARNINGS = ["-Wall", "-Wextra", *(f"-Wno-{name}" for name in QUIET.split())]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]

# What a libFuzzer and an ASan that are loaded beforehand want to know.
SEEN = "-fsanitize-coverage=inline-8bit-counters,pc-table,trace-cmp"
FUZZED = ["-fsanitize=address", "-fno-omit-frame-pointer", SEEN]

# Any x86-64 of the last 15 years counts bits and compares 64-bit numbers in one instruction.
MACHINE = ["-march=x86-64-v2"] if platform.machine() == "x86_64" else []


class Build(NamedTuple):
    """One way to compile: gcc's flags, C macros, and the Cython directives that differ."""

    flags: list[str]
    macros: list[tuple[str, str]]
    directives: dict[str, bool]


# The same in every build, because results depend on them; the last two keep unwanted names out of the modules.
COMMON = {"wraparound": False, "cdivision": True, "auto_pickle": False, "autotestdict": False}
UNCHECKED = {"boundscheck": False, "initializedcheck": False, "nonecheck": False}
CHECKED = {"boundscheck": True, "initializedcheck": True, "nonecheck": True}
BUILDS = {
    "release": Build(["-O3"], [], UNCHECKED),
    "debug": Build(["-O1", "-g", "-Werror"], [("KSERVE_DEBUG", "1")], CHECKED),
    "asan": Build(["-O1", "-g", "-Werror", *SANITIZE], [("KSERVE_DEBUG", "1")], CHECKED),
    "fuzz": Build(["-O1", "-g", "-w", *FUZZED], [], UNCHECKED),
    "coverage": Build(["-O1"], [("CYTHON_TRACE_NOGIL", "1")], CHECKED | {"linetrace": True}),
}


def stale(mode: str) -> bool:
    """Whether a shared declaration or a directive is newer than some C file: Cython does not always notice."""
    shared = [Path("setup.py"), *Path("kserve").glob("*.pxd"), *Path("kserve").glob("*.h")]
    made = [Path(f"build/{mode}", path).with_suffix(".c") for path in Path("kserve").glob("_*.pyx")]
    newest = max(path.stat().st_mtime for path in shared)
    return any(path.stat().st_mtime <= newest for path in made if path.exists())


def extensions(mode: str) -> list[Extension]:
    """The extension modules, as C files below build/MODE."""
    import numpy
    from Cython.Build import cythonize

    build = BUILDS[mode]
    every = Extension(
        "kserve.*",
        ["kserve/_*.pyx"],
        include_dirs=[numpy.get_include(), "kserve"],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), *build.macros],
        extra_compile_args=[*WARNINGS, *MACHINE, *build.flags],
        extra_link_args=SANITIZE if mode == "asan" else [],
    )
    return cythonize(
        [every],
        build_dir=f"build/{mode}",
        force=stale(mode),
        language_level=3,
        compiler_directives=COMMON | build.directives,
    )


mode = os.environ.get("KSERVE_BUILD", "release")
if mode not in {*BUILDS, "none"}:
    raise SystemExit(f"KSERVE_BUILD={mode!r} is not one of {', '.join(BUILDS)}, none")

setup(
    ext_modules=[] if mode == "none" else extensions(mode),
    options={"build": {"build_base": f"build/{mode}"}, "build_ext": {"parallel": os.cpu_count()}},
)
